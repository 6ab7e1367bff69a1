//! Prepared statements in SQL, and calls for values of sequences.

use super::{PlanError, Planned};

/// SQL-level PREPARE.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    /// The statement's name.
    pub name: String,
    /// `None`: it needs the home shard alone, lives there, and the session keeps that connection.
    /// Otherwise the statement behind AS, which the proxy keeps as text.
    pub text: Option<String>,
}

/// SQL-level EXECUTE.
#[derive(Debug, Clone, PartialEq)]
pub struct Execute {
    /// The statement's name.
    pub name: String,
    /// What stands before EXECUTE: empty, or `EXPLAIN (options) `.
    pub prefix: String,
    /// The parameters, as written.
    pub arguments: Vec<String>,
}

/// Calls of `currval`, `lastval` and `nextval`, see [`Plan::Sequences`](super::Plan::Sequences).
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceUse {
    /// In the order of the text.
    pub calls: Vec<SequenceCall>,
    /// What the statement moves beside them.
    pub moved: Moved,
    /// How the statement runs where the proxy has drawn no value that it asks for.
    pub otherwise: Box<Result<Planned, PlanError>>,
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceCall {
    /// Which function.
    pub function: SequenceFunction,
    /// Its bytes in the text.
    pub span: (usize, usize),
    /// The sequence; `None` for `lastval`.
    pub sequence: Option<u32>,
    /// The sequence as written.
    pub text: String,
    /// The column of the result has its name from the function.
    pub names_column: bool,
}

/// The function of a [`SequenceCall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceFunction {
    /// `nextval`, called exactly once.
    Next,
    /// `currval`.
    Current,
    /// `lastval`.
    Last,
}

impl SequenceFunction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            SequenceFunction::Next => "nextval",
            SequenceFunction::Current => "currval",
            SequenceFunction::Last => "lastval",
        }
    }
}

/// Sequences that a statement moves while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// These.
    pub sequences: Vec<u32>,
    /// And others.
    pub unknown: bool,
}
