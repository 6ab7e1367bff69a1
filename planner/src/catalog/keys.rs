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
pub(super) fn changes(function: &str, body: &str, key: &str) -> Option<String> {
    let list = tokens(body);
    let code = Trigger {
        function,
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
    if !complete || code.renames_row() || code.returns_another_row() {
        return Some(another_row);
    }
    (0..list.len())
        .filter_map(|at| code.row(at))
        .find_map(|row| match &row.field {
            Some(field) if field == key && code.is_target(&row) => {
                Some(format!("assigns the shard key \"{key}\"."))
            }
            None if code.is_target(&row) || code.is_declared(&row) => Some(another_row.clone()),
            _ => None,
        })
}

/// One of the two rows that the trigger was given, where the code names it.
struct Row {
    /// The first token of the name.
    start: usize,
    /// What is behind it.
    end: usize,
    /// `None`: the whole row.
    field: Option<String>,
}

/// The body of a trigger's function.
struct Trigger<'a> {
    /// The function's name, which stands for its outermost block.
    function: &'a str,
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

    /// The place of `new`, `old.field` or `f.new.field`, where `f` is the function.
    fn row(&self, at: usize) -> Option<Row> {
        if !["new", "old"].contains(&self.name(at)?.as_str()) {
            return None;
        }
        let (field, end) = match self.is_mark(at + 1, '.') {
            true => (self.name(at + 2), at + 3),
            false => (None, at + 1),
        };
        let start = self.start_of_name(at);
        let qualified = start < at;
        let outermost = start + 2 == at && self.name(start).as_deref() == Some(self.function);
        (!qualified || outermost).then_some(Row { start, end, field })
    }

    /// Where the qualified name begins whose last part is at `at`.
    fn start_of_name(&self, mut at: usize) -> usize {
        while at > 1 && self.is_mark(at - 1, '.') && self.name(at - 2).is_some() {
            at -= 2;
        }
        at
    }

    /// It gets a value there.
    fn is_target(&self, row: &Row) -> bool {
        let operator = self.reader.list.get(row.end);
        let operator = operator.filter(|token| token.kind == TokenKind::Operator);
        let spelled = operator.map_or("", |token| self.reader.spelled(*token));
        let command = self.command_of(row.start);
        spelled.starts_with(":=")
            || spelled == "=" && (self.reader.starts_statement(row.start) || command == "get")
            || command == "call"
            || self.is_in_target_list(row.start)
    }

    /// A variable of the row's name is declared: behind a semicolon, nothing else but an assignment
    /// begins with it.
    fn is_declared(&self, row: &Row) -> bool {
        let behind_semicolon = row.start > 0 && self.is_mark(row.start - 1, ';');
        behind_semicolon || self.reader.word_before(row.start, 1).as_deref() == Some("declare")
    }

    /// `INTO [STRICT] a, new.b`, `FOR a, new.b IN`, `FOREACH new.b IN`
    fn is_in_target_list(&self, mut start: usize) -> bool {
        loop {
            let before = |distance: usize| self.reader.word_before(start, distance);
            match before(1).as_deref() {
                Some("into" | "for" | "foreach") => return true,
                Some("strict") => return before(2).as_deref() == Some("into"),
                _ => {}
            }
            let comma = start > 1 && self.is_mark(start - 1, ',');
            if !comma || self.name(start - 2).is_none() {
                return false;
            }
            start = self.start_of_name(start - 2);
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
    fn renames_row(&self) -> bool {
        let word = |at: usize| self.reader.word(at);
        let rows = (0..self.reader.list.len()).filter_map(|at| self.row(at));
        rows.into_iter().any(|row| {
            let start = row.start;
            start > 1
                && word(start - 1).as_deref() == Some("for")
                && word(start - 2).as_deref() == Some("alias")
        })
    }

    fn returns_another_row(&self) -> bool {
        let list = self.reader.list;
        let returns = |at: &usize| self.reader.word(*at).as_deref() == Some("return");
        (0..list.len()).filter(returns).any(|at| {
            let ends = |at: &usize| self.is_mark(*at, ';');
            let value = (at + 1..list.len()).take_while(|at| !ends(at));
            value.into_iter().any(|at| self.is_of_another_row(at))
        })
    }

    /// What no expression has that gives `new`, `old` or nothing: other names, numbers, a row put
    /// together.
    fn is_of_another_row(&self, at: usize) -> bool {
        match self.reader.list[at].kind {
            TokenKind::Word | TokenKind::QuotedIdentifier => {
                let name = self.name(at).unwrap_or_default();
                !ROW_OR_NOTHING.contains(&name.as_str())
            }
            TokenKind::Punctuation(',') => !self.separates_arguments(at),
            TokenKind::Number | TokenKind::Parameter => true,
            TokenKind::String | TokenKind::Punctuation(_) | TokenKind::Operator => false,
        }
    }

    /// The comma at `at` is one of `coalesce(a, b)` or `IN (a, b)`.
    fn separates_arguments(&self, at: usize) -> bool {
        let list = self.reader.list;
        let open = (0..at)
            .rev()
            .find(|open| list[*open].depth < list[at].depth);
        let before = open.and_then(|open| self.reader.word_before(open, 1));
        matches!(before.as_deref(), Some("coalesce" | "in"))
    }
}

#[cfg(test)]
mod tests;
