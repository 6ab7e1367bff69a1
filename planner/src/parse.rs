//! Text to trees, by Postgres's own grammar (libpg_query). All uses of its parser are here.
//!
//! Trees are never printed: rewritten statements are the client's text with parts replaced
//! ([`crate::splice`]), which changes nothing else, and libpg_query's printer can abort the
//! process on trees that its own parser made.

use std::panic;

use pg_query::{NodeEnum, protobuf};

use crate::normalise::{TokenKind, tokens};

/// A statement of a query string.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    /// Its tree. Locations count bytes of the whole text.
    pub(crate) node: NodeEnum,
    /// `text[span.0..span.1]`, without the semicolon and the white space around it.
    pub(crate) span: (usize, usize),
}

/// Why there is no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ParseFailure {
    /// The grammar's own message.
    Syntax(String),
    /// The grammar takes it, but the tree is too deep to be read.
    TooDeep,
}

/// Parses all statements of a text.
pub(crate) fn parse(text: &str) -> Result<Vec<Parsed>, ParseFailure> {
    // libpg_query reads C strings; the wire protocol cannot carry a zero byte either.
    if text.contains('\0') {
        return Err(ParseFailure::Syntax(
            "invalid byte sequence for encoding \"UTF8\": 0x00".into(),
        ));
    }
    // The crate's summary of a tree has `panic!` branches that no known statement reaches.
    let tree =
        panic::catch_unwind(|| pg_query::parse(text, 0)).map_err(|_| ParseFailure::TooDeep)?;
    let tree = tree.map_err(|error| match error {
        pg_query::Error::Parse(message) if message.contains("stack depth") => ParseFailure::TooDeep,
        pg_query::Error::Parse(message) => ParseFailure::Syntax(message),
        _ => ParseFailure::TooDeep,
    })?;
    let statements = tree.protobuf.stmts.into_iter();
    statements
        .map(|raw| statement(text, raw).ok_or(ParseFailure::TooDeep))
        .collect()
}

/// Parses a text of one statement.
pub(crate) fn parse_one(text: &str) -> Option<NodeEnum> {
    let mut statements = parse(text).ok()?;
    match statements.len() {
        1 => statements.pop().map(|statement| statement.node),
        _ => None,
    }
}

/// Parses an expression that stands alone, like a column's default.
pub(crate) fn parse_expression(text: &str) -> Option<NodeEnum> {
    let NodeEnum::SelectStmt(select) = parse_one(&format!("SELECT {text}"))? else {
        return None;
    };
    let target = select.target_list.into_iter().next()?.node?;
    let NodeEnum::ResTarget(target) = target else {
        return None;
    };
    target.val?.node
}

fn statement(text: &str, raw: protobuf::RawStmt) -> Option<Parsed> {
    let start = usize::try_from(raw.stmt_location).ok()?;
    let length = usize::try_from(raw.stmt_len).ok()?;
    let end = if length == 0 {
        text.len()
    } else {
        start + length
    };
    let span = trimmed(text, start, end)?;
    Some(Parsed {
        node: raw.stmt?.node?,
        span,
    })
}

/// Without white space and comments around it: what is put behind a statement must not become
/// part of a comment.
fn trimmed(text: &str, start: usize, end: usize) -> Option<(usize, usize)> {
    let statement = text.get(start..end)?;
    if statement.contains("--") || statement.contains("/*") {
        let list = tokens(statement);
        let (first, last) = (list.first()?, list.last()?);
        let semicolons = list
            .iter()
            .rev()
            .take_while(|token| token.kind == TokenKind::Punctuation(';'));
        let last = list.iter().rev().nth(semicolons.count()).unwrap_or(last);
        return Some((start + first.start, start + last.end));
    }
    let front = statement.len() - statement.trim_start().len();
    let length = statement.trim().trim_end_matches(';').trim_end().len();
    Some((start + front, start + front + length))
}
