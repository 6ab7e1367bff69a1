//! Cursors and SQL-level prepared statements.

use pg_query::{NodeEnum, protobuf};

use crate::{
    asker, functions,
    plan::{Execute, Plan, PlanError, Prepare, SessionEffects, Target},
    route::Statement,
    sequences,
    statement::{self, Draft},
    tree::{self, Child, inner},
};

/// `CURSOR_OPT_HOLD` in `src/include/nodes/parsenodes.h`.
const HOLD: i32 = 0x0020;

/// The plan of DECLARE, FETCH, CLOSE, PREPARE, EXECUTE or DEALLOCATE.
pub(crate) fn cursor(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    match statement.node {
        NodeEnum::DeclareCursorStmt(declare) => {
            let query = inner(&declare.query).ok_or_else(not_understood)?;
            let query = statement.inner(query);
            let hold = declare.options & HOLD != 0;
            let draft = statement::query(&query, "cursor")?;
            let session = SessionEffects {
                pins: draft.session.pins || hold,
                ..draft.session
            };
            let plan = Plan::DeclareCursor {
                name: declare.portalname.clone(),
                hold,
                query: Box::new(draft.plan),
            };
            Ok(Draft::new(plan, "cursor").session(session))
        }
        NodeEnum::FetchStmt(fetch) => {
            let plan = Plan::FetchCursor {
                name: fetch.portalname.clone(),
            };
            Ok(Draft::new(plan, "cursor").reusable(true))
        }
        NodeEnum::ClosePortalStmt(close) => {
            let name = Some(close.portalname.clone()).filter(|name| !name.is_empty());
            Ok(Draft::new(Plan::CloseCursor { name }, "cursor"))
        }
        NodeEnum::PrepareStmt(prepare) => {
            let query = inner(&prepare.query).ok_or_else(not_understood)?;
            let draft = statement::draft(&statement.inner(query))?;
            let name = prepare.name.clone();
            // What reads a sequence's value, or asks about the client, asks for that of each EXECUTE.
            let home = matches!(draft.plan, Plan::Single(Target::Home | Target::AnyCopy))
                && sequences::calls(&statement.inner(query)).is_none()
                && asker::calls(&statement.inner(query)).is_empty();
            if !home {
                let text = Some(text_behind_as(statement).ok_or_else(not_understood)?);
                return Ok(Draft::new(Plan::Prepare(Prepare { name, text }), "prepare"));
            }
            let session = SessionEffects {
                pins: true,
                ..draft.session
            };
            let plan = Plan::Prepare(Prepare { name, text: None });
            Ok(Draft::new(plan, "prepare").session(session))
        }
        NodeEnum::ExecuteStmt(execute) => {
            let plan = Plan::Execute(Execute {
                name: execute.name.clone(),
                prefix: String::new(),
                arguments: arguments(statement, execute)?,
            });
            let mut traits = functions::Traits::default();
            tree::walk(statement.node, &mut |child| {
                if let Child::Node(node) = child {
                    traits.note(functions::Lookup::of(statement), node, false);
                }
            });
            traits.refuse_unsafe(statement.catalog)?;
            let session = SessionEffects {
                moves_sequence: traits.moves_sequence,
                reads_sequence: traits.reads_sequence,
                writes: true,
                ..SessionEffects::default()
            };
            Ok(Draft::new(plan, "execute").session(session))
        }
        NodeEnum::DeallocateStmt(deallocate) => {
            let name = Some(deallocate.name.clone()).filter(|_| !deallocate.isall);
            Ok(Draft::new(Plan::Deallocate { name }, "deallocate"))
        }
        _ => Err(not_understood()),
    }
}

/// The statement that PREPARE prepares.
fn text_behind_as(statement: &Statement<'_>) -> Option<String> {
    let source = statement.source();
    // PREPARE name (types) AS
    let first = source.token_from(statement.span.0);
    let name = source.tokens.get(first + 1)?.start;
    let (_, name_end) = source.name(name)?;
    let mut at = source.token_from(name_end);
    if source.is_mark(at, '(') {
        at = source.closing(at)? + 1;
    }
    if !source.is_word(at, "as") {
        return None;
    }
    let text = statement
        .text
        .get(source.tokens[at].end..statement.span.1)?;
    Some(text.trim_start().to_owned())
}

/// The plan of CREATE TABLE AS EXECUTE.
pub(crate) fn execute_behind(
    statement: &Statement<'_>,
    execute: &protobuf::ExecuteStmt,
) -> Result<Plan, PlanError> {
    let source = statement.source();
    let first = source.token_from(statement.span.0);
    let at = (first..source.tokens.len()).find(|at| {
        source.is_word(*at, "execute")
            && at.checked_sub(1).is_some_and(|at| source.is_word(at, "as"))
    });
    let at = at.ok_or_else(not_understood)?;
    let last = match source.is_mark(at + 2, '(') {
        true => source.closing(at + 2).ok_or_else(not_understood)?,
        false => at + 1,
    };
    let behind = source.tokens.get(last + 1);
    if behind.is_some_and(|token| token.end <= statement.span.1) {
        return Err(PlanError::unsupported(
            "CREATE TABLE AS EXECUTE with WITH NO DATA is not supported",
        )
        .hint("Write the query itself."));
    }
    let start = source.tokens[at].start;
    let inner = Statement {
        span: (start, statement.span.1),
        parameters: statement.parameters.clone(),
        ..*statement
    };
    Ok(Plan::Execute(Execute {
        name: execute.name.clone(),
        prefix: statement.text[statement.span.0..start].to_owned(),
        arguments: arguments(&inner, execute)?,
    }))
}

/// The parameters of EXECUTE as written.
fn arguments(
    statement: &Statement<'_>,
    execute: &protobuf::ExecuteStmt,
) -> Result<Vec<String>, PlanError> {
    if execute.params.is_empty() {
        return Ok(Vec::new());
    }
    let mut subquery = false;
    tree::walk(statement.node, &mut |child| {
        subquery |= matches!(child, Child::Node(NodeEnum::SubLink(_)));
    });
    if subquery {
        return Err(PlanError::unsupported(
            "cannot use subquery in EXECUTE parameter",
        ));
    }
    let source = statement.source();
    let start = source.token_from(statement.span.0);
    let mut brackets =
        (start..source.tokens.len()).skip_while(|at| !source.is_word(*at, "execute"));
    // EXECUTE name (
    let open = brackets.nth(2).filter(|at| source.is_mark(*at, '('));
    let open = open.ok_or_else(not_understood)?;
    let close = source.closing(open).ok_or_else(not_understood)?;
    let depth = source.tokens[open].depth;
    let mut list = Vec::with_capacity(execute.params.len());
    let mut from = source.tokens[open].end;
    for at in open + 1..=close {
        let token = source.tokens[at];
        let ends = at == close || (source.is_mark(at, ',') && token.depth == depth + 1);
        if ends {
            list.push(statement.text[from..token.start].trim().to_owned());
            from = token.end;
        }
    }
    if list.len() != execute.params.len() {
        return Err(not_understood());
    }
    Ok(list)
}

fn not_understood() -> PlanError {
    PlanError::unsupported("the statement is not understood")
}
