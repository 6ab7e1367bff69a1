//! Cursors and SQL-level prepared statements.

use pg_query::NodeEnum;

use crate::{
    plan::{Plan, PlanError, SessionEffects, Target},
    route::Statement,
    statement::{self, Draft},
    tree::inner,
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
            if !matches!(draft.plan, Plan::Single(Target::Home | Target::AnyCopy)) {
                return Err(PlanError::unsupported(
                    "PREPARE of a statement on distributed tables is not supported",
                )
                .hint("Use your driver's prepared statements."));
            }
            let session = SessionEffects {
                pins: true,
                ..draft.session
            };
            let plan = Plan::Prepare {
                name: prepare.name.clone(),
            };
            Ok(Draft::new(plan, "prepare").session(session))
        }
        NodeEnum::ExecuteStmt(execute) => {
            let plan = Plan::Execute {
                name: execute.name.clone(),
            };
            Ok(Draft::new(plan, "execute").writes())
        }
        NodeEnum::DeallocateStmt(deallocate) => {
            let name = Some(deallocate.name.clone()).filter(|_| !deallocate.isall);
            Ok(Draft::new(Plan::Deallocate { name }, "deallocate"))
        }
        _ => Err(not_understood()),
    }
}

fn not_understood() -> PlanError {
    PlanError::unsupported("the statement is not understood")
}
