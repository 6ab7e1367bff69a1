//! Whether a trigger that runs before a row is stored gives the row another shard key. The row would
//! be on a shard where nobody looks for it, and no declaration makes that right.

use super::residue::Reader;
use crate::{
    gather::folded,
    normalise::{TokenKind, tokens},
};

/// Words of an expression that gives one of the two rows that the trigger was given.
const ROW_OR_NOTHING: &[&str] = &[
    "new", "old", "null", "coalesce", "case", "when", "then", "else", "end", "tg_op", "and", "or",
    "not", "is", "in",
];

/// Why code may store a row with another key than it was given, as the end of a sentence that begins
/// with the function. `None`: it does not.
pub(super) fn changes(body: &str, key: &str) -> Option<String> {
    let list = tokens(body);
    let code = Trigger {
        reader: Reader {
            text: body,
            list: &list,
        },
    };
    // What is behind a quote without an end is not known.
    let complete = list.last().is_none_or(|last| {
        let rest = body[last.end..].trim_start();
        rest.is_empty() || rest.starts_with("--") || rest.starts_with("/*")
    });
    let another_row = "may store another row than it was given.".to_owned();
    if !complete || code.renames_new() || code.returns_another_row() {
        return Some(another_row);
    }
    for at in 0..list.len() {
        match code.part_of_new(at) {
            Some((Some(field), end)) if field == key && code.is_target(at, end) => {
                return Some(format!("assigns the shard key \"{key}\"."));
            }
            Some((None, end)) if code.is_target(at, end) => return Some(another_row),
            _ => {}
        }
    }
    None
}

/// The body of a trigger's function.
struct Trigger<'a> {
    reader: Reader<'a>,
}

impl Trigger<'_> {
    fn is_mark(&self, at: usize, mark: char) -> bool {
        let token = self.reader.list.get(at);
        token.is_some_and(|token| token.kind == TokenKind::Punctuation(mark))
    }

    fn name(&self, at: usize) -> Option<String> {
        let token = self.reader.list.get(at)?;
        let named = matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier);
        named.then(|| folded(self.reader.spelled(*token)))
    }

    /// `new` or `new.field`: the field, and what is behind it.
    fn part_of_new(&self, at: usize) -> Option<(Option<String>, usize)> {
        let qualified = at > 0 && self.is_mark(at - 1, '.');
        if qualified || self.name(at)? != "new" {
            return None;
        }
        Some(match self.is_mark(at + 1, '.') {
            true => (self.name(at + 2), at + 3),
            false => (None, at + 1),
        })
    }

    /// What stands at `at` and ends before `end` gets a value there.
    fn is_target(&self, at: usize, end: usize) -> bool {
        let operator = self.reader.list.get(end);
        let operator = operator.filter(|token| token.kind == TokenKind::Operator);
        let spelled = operator.map_or("", |token| self.reader.spelled(*token));
        let command = self.command_of(at);
        spelled.starts_with(":=")
            || spelled == "=" && (self.reader.starts_statement(at) || command == "get")
            || command == "call"
            || self.reader.word_before(at, 1).as_deref() == Some("for")
            || self.is_in_target_list(at)
    }

    /// `INTO [STRICT] a, new.b`
    fn is_in_target_list(&self, at: usize) -> bool {
        let mut start = at;
        loop {
            match self.reader.word_before(start, 1).as_deref() {
                Some("into") => return true,
                Some("strict") => {
                    return self.reader.word_before(start, 2).as_deref() == Some("into");
                }
                _ => {}
            }
            let comma = start > 1 && self.is_mark(start - 1, ',');
            if !comma || self.name(start - 2).is_none() {
                return false;
            }
            start -= 2;
            while start > 1 && self.is_mark(start - 1, '.') && self.name(start - 2).is_some() {
                start -= 2;
            }
        }
    }

    /// The first word of the statement around a place.
    fn command_of(&self, at: usize) -> String {
        let start = (0..=at).rev().find(|at| self.reader.starts_statement(*at));
        start
            .and_then(|start| self.reader.word(start))
            .unwrap_or_default()
    }

    /// `x ALIAS FOR new`
    fn renames_new(&self) -> bool {
        let word = |at: usize| self.reader.word(at);
        (0..self.reader.list.len()).any(|at| {
            word(at).as_deref() == Some("alias") && self.name(at + 2).as_deref() == Some("new")
        })
    }

    fn returns_another_row(&self) -> bool {
        let list = self.reader.list;
        let returns = |at: &usize| self.reader.word(*at).as_deref() == Some("return");
        (0..list.len()).filter(returns).any(|at| {
            let ends = |token: &&crate::normalise::Token| token.kind != TokenKind::Punctuation(';');
            let value = list[at + 1..].iter().take_while(ends);
            let mut names = value
                .enumerate()
                .filter_map(|(offset, _)| self.name(at + 1 + offset));
            names.any(|name| !ROW_OR_NOTHING.contains(&name.as_str()))
        })
    }
}

#[cfg(test)]
mod tests;
