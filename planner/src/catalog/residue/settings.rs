//! Settings that code makes in its server session, as far as its text tells which.

use super::{NESTED_MAX, Reader};
use crate::normalise::{Token, TokenKind, tokens};

/// Whether code makes settings, and where their names stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MadeSettings {
    /// It makes none.
    #[default]
    None,
    /// In its text, if they are no built-in ones.
    Named,
    /// In what it is called with.
    ByCaller,
    /// Nowhere.
    Computed,
}

/// Names in the form of custom settings (`app.tenant`) in a text: in SET, and in strings, which may be
/// texts themselves. In lower case, as `pg_settings` and a session compare them.
pub fn custom_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    collect(text, 0, &mut names);
    names
}

fn collect(text: &str, nested: usize, names: &mut Vec<String>) {
    let list = tokens(text);
    let reader = Reader { text, list: &list };
    for (at, token) in list.iter().enumerate() {
        if token.kind == TokenKind::Word
            && reader.word(at).as_deref() == Some("set")
            && reader.starts_statement(at)
        {
            names.extend(reader.setting_of_set(at));
        }
        let Some(string) = reader.plain_string(*token) else {
            continue;
        };
        if is_custom_name(&string) {
            names.push(string.to_lowercase());
        } else if nested < NESTED_MAX {
            collect(&string, nested + 1, names);
        }
    }
}

/// `valid_custom_variable_name` in Postgres's `guc.c`: identifiers with dots between them.
pub fn is_custom_name(text: &str) -> bool {
    let starts = |letter: char| letter.is_alphabetic() || letter == '_' || !letter.is_ascii();
    let goes_on = |letter: char| starts(letter) || letter.is_ascii_digit() || letter == '$';
    let part = |part: &str| part.starts_with(starts) && part.chars().all(goes_on);
    text.contains('.') && text.split('.').all(part)
}

impl Reader<'_> {
    /// The custom setting that SET at this place makes.
    fn setting_of_set(&self, at: usize) -> Option<String> {
        let scope = self.word(at + 1);
        let scoped = matches!(scope.as_deref(), Some("local" | "session"));
        let first = at + 1 + usize::from(scoped);
        let is_part = |token: &&Token| {
            matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier)
                || self.spelled(**token) == "."
        };
        let end = self.list.get(first..)?.iter().take_while(is_part);
        let mut name = String::new();
        let mut dotted = true;
        for token in end {
            let dot = self.spelled(*token) == ".";
            // Two words side by side: the second is TO, or belongs to something else.
            if !dot && !dotted {
                break;
            }
            dotted = dot;
            name.push_str(self.spelled(*token).trim_matches('"'));
        }
        is_custom_name(&name).then(|| name.to_lowercase())
    }

    /// Where the name stands in a call of `set_config`, whose parenthesis is at `open`.
    pub(super) fn setting_of_call(&self, open: usize) -> MadeSettings {
        let depth = self.list[open].depth;
        let mut first = self.list[open + 1..].iter().take_while(|token| {
            token.depth > depth && !(token.depth == depth + 1 && self.spelled(**token) == ",")
        });
        match (first.next().map(|token| token.kind), first.next()) {
            (Some(TokenKind::String), None) => MadeSettings::Named,
            (Some(TokenKind::Word | TokenKind::QuotedIdentifier | TokenKind::Parameter), None) => {
                MadeSettings::ByCaller
            }
            _ => MadeSettings::Computed,
        }
    }

    /// A string that begins with SET, and not with the name of what is set: one that is put together.
    pub(super) fn computes_setting(&self, token: Token) -> bool {
        let Some(text) = self.plain_string(token) else {
            return false;
        };
        let list = tokens(&text);
        let reader = Reader {
            text: &text,
            list: &list,
        };
        if reader.word(0).as_deref() != Some("set") {
            return false;
        }
        let scope = reader.word(1);
        let scoped = matches!(scope.as_deref(), Some("local" | "session"));
        let name = 1 + usize::from(scoped);
        let spelled = |at: usize| list.get(at).map(|token| reader.spelled(*token));
        let whole = |at: usize| matches!(spelled(at), Some("=" | "to" | "TO" | "To"));
        let custom = spelled(name + 1) == Some(".") && whole(name + 3);
        let builtin =
            reader.word(name).is_some() && (whole(name + 1) || scope.is_some() && !scoped);
        !custom && !builtin
    }
}

#[cfg(test)]
mod tests;
