//! Prepared statements in SQL, and calls for values of sequences.

use super::{Argument, PlanError, Planned};

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

/// Calls that ask about the client, see [`Plan::Asker`](super::Plan::Asker).
#[derive(Debug, Clone, PartialEq)]
pub struct AskerCall {
    /// Which function.
    pub function: AskerFunction,
    /// Its bytes in the text.
    pub span: (usize, usize),
    /// It stands in an output without a name, which may have its name from the function.
    pub is_output: bool,
    /// The process that is meant: what is in the brackets, where that is called once and known before
    /// the statement runs.
    pub process: Option<Signalled>,
}

/// Whose process id [`AskerFunction::Terminate`] and [`AskerFunction::Cancel`] are given.
#[derive(Debug, Clone, PartialEq)]
pub enum Signalled {
    /// That of the session itself: `pg_backend_pid()`.
    Own,
    /// Of this one.
    Given(Argument),
}

/// The function of an [`AskerCall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskerFunction {
    /// `inet_client_addr`
    Address,
    /// `inet_client_port`
    Port,
    /// `current_query`
    Query,
    /// `pg_backend_pid`
    Process,
    /// `pg_cancel_backend`
    Cancel,
    /// `pg_terminate_backend`
    Terminate,
}

impl AskerFunction {
    pub(crate) fn named(name: &str) -> Option<AskerFunction> {
        [
            AskerFunction::Address,
            AskerFunction::Port,
            AskerFunction::Query,
            AskerFunction::Process,
            AskerFunction::Cancel,
            AskerFunction::Terminate,
        ]
        .into_iter()
        .find(|function| function.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            AskerFunction::Address => "inet_client_addr",
            AskerFunction::Port => "inet_client_port",
            AskerFunction::Query => "current_query",
            AskerFunction::Process => "pg_backend_pid",
            AskerFunction::Cancel => "pg_cancel_backend",
            AskerFunction::Terminate => "pg_terminate_backend",
        }
    }
}
