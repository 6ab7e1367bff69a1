//! Calls that ask who asks: the client's address, its text, its session. A shard sees the proxy
//! instead, so the calls are replaced by the values before the statement is planned.

use std::collections::HashSet;

use pg_query::{
    NodeEnum,
    protobuf::{self, ObjectType},
};

use crate::{
    admin,
    builtins::{self, Rows},
    plan::{AskerCall, AskerFunction, Signalled},
    route::Statement,
    sequences,
    tree::{self, Child, inner, nodes, strings},
};

/// Texts without these have no such call.
const NAMES: &[&str] = &[
    "inet_client_",
    "current_query",
    "pg_backend_pid",
    "pg_cancel_backend",
    "pg_terminate_backend",
];

/// The calls of a statement that the proxy answers, in the order of the text.
pub(crate) fn calls(statement: &Statement<'_>) -> Vec<AskerCall> {
    let text = statement.own_text().to_ascii_lowercase();
    if !runs_now(statement.node) || !NAMES.iter().any(|name| text.contains(name)) {
        return Vec::new();
    }
    let mut finder = Finder {
        once: match statement.node {
            NodeEnum::SelectStmt(select) => sequences::plain_targets(select),
            _ => HashSet::new(),
        },
        ..Finder::default()
    };
    tree::walk(statement.node, &mut |child| finder.visit(child));
    let source = statement.source();
    let server = finder.reads_server;
    let mut calls: Vec<AskerCall> = finder
        .found
        .iter()
        // Beside the views of the server's processes, what counts is the process there.
        .filter(|(function, ..)| !(server && *function == AskerFunction::Process))
        .filter(|(_, location, _)| !finder.inside.contains(location))
        .filter_map(|(function, location, process)| {
            let location = usize::try_from(*location).ok()?;
            Some(AskerCall {
                function: *function,
                span: source.call(location)?,
                is_output: finder.outputs.contains(&location),
                process: process.clone(),
            })
        })
        .collect();
    calls.sort_by_key(|call| call.span);
    calls
}

/// Its expressions are computed now, and not whenever what it defines is used.
fn runs_now(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::SelectStmt(_)
        | NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_)
        | NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::CopyStmt(_)
        | NodeEnum::CallStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::ExplainStmt(_) => true,
        NodeEnum::CreateTableAsStmt(create) => create.objtype() == ObjectType::ObjectTable,
        _ => false,
    }
}

#[derive(Default)]
struct Finder {
    found: Vec<(AskerFunction, i32, Option<Signalled>)>,
    /// Calls that are the argument of another one.
    inside: HashSet<i32>,
    /// Calls here are made exactly once.
    once: HashSet<i32>,
    /// Calls in outputs without a name, which may give them theirs.
    outputs: HashSet<usize>,
    /// The statement reads what a server says of its processes.
    reads_server: bool,
}

impl Finder {
    fn visit(&mut self, child: Child<'_>) {
        match child {
            Child::Node(NodeEnum::SelectStmt(select)) => self.outputs_of(&select.target_list),
            Child::Select(select) => self.outputs_of(&select.target_list),
            Child::Node(NodeEnum::InsertStmt(insert)) => self.returned(&insert.returning_clause),
            Child::Node(NodeEnum::UpdateStmt(update)) => self.returned(&update.returning_clause),
            Child::Node(NodeEnum::DeleteStmt(delete)) => self.returned(&delete.returning_clause),
            Child::Node(NodeEnum::MergeStmt(merge)) => self.returned(&merge.returning_clause),
            Child::Node(NodeEnum::FuncCall(call)) => {
                if let Some(function) = asked(call) {
                    self.call(function, call);
                }
            }
            Child::Node(NodeEnum::RangeVar(range)) => {
                self.reads_server |= builtins::relation(&range.relname) == Some(Rows::Server);
            }
            _ => {}
        }
    }

    fn call(&mut self, function: AskerFunction, call: &protobuf::FuncCall) {
        let process = match function {
            AskerFunction::Address
            | AskerFunction::Port
            | AskerFunction::Query
            | AskerFunction::Process => None,
            AskerFunction::Cancel | AskerFunction::Terminate => {
                let own = nodes(&call.args).next().and_then(own_process);
                self.inside.extend(own);
                // A server process that is to cancel its own statement cancels the client's.
                if own.is_some() && function == AskerFunction::Cancel {
                    return;
                }
                let given = || nodes(&call.args).next().and_then(admin::argument);
                let process = match own {
                    Some(_) => Some(Signalled::Own),
                    None => given().map(Signalled::Given),
                };
                // A process that a row names is one of the home shard's.
                match process.filter(|_| self.once.contains(&call.location)) {
                    Some(process) => Some(process),
                    None => return,
                }
            }
        };
        self.found.push((function, call.location, process));
    }

    fn returned(&mut self, clause: &Option<protobuf::ReturningClause>) {
        if let Some(clause) = clause {
            self.outputs_of(&clause.exprs);
        }
    }

    fn outputs_of(&mut self, targets: &[pg_query::Node]) {
        for target in nodes(targets) {
            let NodeEnum::ResTarget(target) = target else {
                continue;
            };
            let Some(value) = inner(&target.val).filter(|_| target.name.is_empty()) else {
                continue;
            };
            tree::walk(value, &mut |child| {
                if let Child::Node(NodeEnum::FuncCall(call)) = child
                    && asked(call).is_some()
                {
                    self.outputs.extend(usize::try_from(call.location));
                }
            });
        }
    }
}

/// Where `pg_backend_pid()` stands, if that is what a function is given.
fn own_process(argument: &NodeEnum) -> Option<i32> {
    match argument {
        NodeEnum::FuncCall(call) if asked(call) == Some(AskerFunction::Process) => {
            Some(call.location)
        }
        NodeEnum::TypeCast(cast) => own_process(inner(&cast.arg)?),
        _ => None,
    }
}

fn asked(call: &protobuf::FuncCall) -> Option<AskerFunction> {
    let names = strings(&call.funcname);
    let (["pg_catalog", name] | [name]) = names.as_slice() else {
        return None;
    };
    let function = AskerFunction::named(name)?;
    let takes_process = matches!(function, AskerFunction::Cancel | AskerFunction::Terminate);
    (call.args.is_empty() != takes_process).then_some(function)
}
