//! A routine's body as tokens: which words stand where, without a grammar.

use super::MAKES;
use crate::normalise::{Token, TokenKind};

/// A parenthesis follows the name.
pub(super) fn calls(list: &[Token], at: usize) -> bool {
    let next = list.get(at + 1);
    next.is_some_and(|next| next.kind == TokenKind::Punctuation('('))
}

/// A text and its tokens.
pub(crate) struct Reader<'a> {
    pub text: &'a str,
    pub list: &'a [Token],
}

impl Reader<'_> {
    pub fn spelled(&self, token: Token) -> &str {
        &self.text[token.start..token.end]
    }

    pub fn word(&self, at: usize) -> Option<String> {
        let token = self.list.get(at)?;
        (token.kind == TokenKind::Word).then(|| self.spelled(*token).to_ascii_lowercase())
    }

    pub fn word_before(&self, at: usize, distance: usize) -> Option<String> {
        self.word(at.checked_sub(distance)?)
    }

    /// Where a statement of SQL or PL/pgSQL can begin.
    pub fn starts_statement(&self, at: usize) -> bool {
        let Some(before) = at.checked_sub(1).map(|before| self.list[before]) else {
            return true;
        };
        match before.kind {
            TokenKind::Punctuation(';') => true,
            // <<label>>
            TokenKind::Operator => self.spelled(before).ends_with(">>"),
            TokenKind::Word => {
                let word = self.spelled(before).to_ascii_lowercase();
                matches!(word.as_str(), "begin" | "then" | "else" | "loop" | "atomic")
            }
            _ => false,
        }
    }

    /// `(a, b, true)`, where the parenthesis is at `open`.
    pub(super) fn third_argument_is_true(&self, open: usize) -> bool {
        let depth = self.list[open].depth;
        let inside = self.list[open + 1..]
            .iter()
            .take_while(|token| token.depth > depth);
        let mut commas = 0;
        let mut third = Vec::new();
        for token in inside {
            if token.depth == depth + 1 && token.kind == TokenKind::Punctuation(',') {
                commas += 1;
            } else if commas == 2 {
                third.push(*token);
            }
        }
        let [only] = third.as_slice() else {
            return false;
        };
        only.kind == TokenKind::Word && self.spelled(*only).eq_ignore_ascii_case("true")
    }

    /// A temporary object that outlives the transaction.
    pub(super) fn makes_temporary(&self) -> bool {
        let mut made = 0;
        let mut dropped = 0;
        let mut creates = false;
        let mut in_schema = false;
        for at in 0..self.list.len() {
            match self.word(at).as_deref() {
                Some("create") => creates = true,
                Some("pg_temp") => in_schema = true,
                Some("temp" | "temporary") => {
                    let before = self.word_before(at, 1);
                    let makes = ["create", "local", "global", "into", "replace"];
                    made += usize::from(before.is_some_and(|it| makes.contains(&it.as_str())));
                }
                Some("drop") => {
                    let on_commit = self.word_before(at, 1).as_deref() == Some("commit");
                    dropped += usize::from(on_commit);
                }
                _ => {}
            }
        }
        made > dropped || creates && in_schema
    }

    /// Something that is temporary where `search_path` begins with `pg_temp`: whoever runs the code
    /// may have set that.
    pub(super) fn makes_in_first_schema(&self) -> bool {
        (0..self.list.len()).any(|at| {
            let made = self.word(at + 1);
            self.word(at).as_deref() == Some("create")
                && made.is_some_and(|made| MAKES.contains(&made.as_str()))
        })
    }

    /// A string that looks like a SET for the session, or a part of one.
    pub(super) fn sets_in_string(&self, token: Token) -> bool {
        let spelled = self.spelled(token).to_ascii_lowercase();
        let text = spelled.trim_start_matches(['e', '\'', '$']).trim_start();
        token.kind == TokenKind::String
            && (text.contains("set_config")
                || text.starts_with("set ") && !text.starts_with("set local "))
    }

    /// The value of `'...'` or `$tag$...$tag$`.
    pub fn plain_string(&self, token: Token) -> Option<String> {
        if token.kind != TokenKind::String {
            return None;
        }
        let spelled = self.spelled(token);
        if let Some(inner) = spelled.strip_prefix('\'') {
            let inner = inner.strip_suffix('\'')?;
            let undoubled = inner.replace("''", "'");
            // A string that is continued on another line has a quote in between.
            let quotes = inner.matches('\'').count();
            return (quotes % 2 == 0 && !inner.contains('\n')).then_some(undoubled);
        }
        let (tag, _) = spelled.strip_prefix('$')?.split_once('$')?;
        let tag = format!("${tag}$");
        let inner = spelled.strip_prefix(&tag)?.strip_suffix(&tag)?;
        Some(inner.to_owned())
    }
}
