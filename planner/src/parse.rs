//! Text to trees, by Postgres's own grammar (libpg_query). All uses of its parser are here.
//!
//! Trees are never printed: rewritten statements are the client's text with parts replaced
//! ([`crate::splice`]), which changes nothing else, and libpg_query's printer can abort the
//! process on trees that its own parser made.

use std::panic;

use pg_query::{NodeEnum, protobuf};

use crate::normalise::{self, TokenKind, tokens};

/// The stack that planning needs below its caller, in bytes. libpg_query's trees have at most
/// 10,000 levels of messages (`PG_QUERY_PROTOBUF_MAX_DEPTH`), and its own parser takes 2 MB; every
/// level is a frame or two of whatever walks the tree, and these are large in debug builds. Most
/// of it is never touched, so it is address space and no memory.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) {
    256 << 20
} else {
    128 << 20
};

/// Runs `work` with room for the deepest tree on the stack: on the thread's own where that has it.
pub(crate) fn with_room<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(STACK_BYTES, STACK_BYTES + (1 << 20), work)
}

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

/// What libpg_query says of trees that are too deep for the stack, and for its protobuf.
const TOO_DEEP: &[&str] = &["stack depth limit exceeded", "nested too deeply"];

/// Parses all statements of a text.
pub(crate) fn parse(text: &str) -> Result<Vec<Parsed>, ParseFailure> {
    // libpg_query reads C strings; the wire protocol cannot carry a zero byte either.
    if text.contains('\0') {
        return Err(ParseFailure::Syntax(
            "invalid byte sequence for encoding \"UTF8\": 0x00".into(),
        ));
    }
    let readable = normalise::without_traps(text).ok_or(ParseFailure::TooDeep)?;
    // The crate's summary of a tree has `panic!` branches that no known statement reaches.
    let tree =
        panic::catch_unwind(|| pg_query::parse(&readable, 0)).map_err(|_| ParseFailure::TooDeep)?;
    let tree = tree.map_err(|error| match error {
        pg_query::Error::Parse(message) if TOO_DEEP.iter().any(|part| message.contains(part)) => {
            ParseFailure::TooDeep
        }
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
