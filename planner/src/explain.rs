//! EXPLAIN: the plan of the statement inside, and its text without EXPLAIN.

use pg_query::{NodeEnum, protobuf};

use crate::{
    names,
    plan::{Execute, Explain, Plan, PlanError, Planned, SessionEffects, Target},
    rights,
    route::Statement,
    statement::{self, Draft},
    tree::{constant_text, inner, nodes},
};

/// The plan of EXPLAIN.
pub(crate) fn explain(
    statement: &Statement<'_>,
    explain: &protobuf::ExplainStmt,
) -> Result<Draft, PlanError> {
    let (Some(node), Some(start)) = (inner(&explain.query), inner_start(statement)) else {
        return Ok(Draft::home("explain").writes());
    };
    let analyze = option(&explain.options, "analyze").is_some_and(|value| is_true(&value));
    let json =
        option(&explain.options, "format").is_some_and(|value| value.eq_ignore_ascii_case("json"));
    let span = (start, statement.span.1);
    let inside = Statement {
        span,
        ..statement.inner(node)
    };
    let draft = statement::draft(&inside)?;
    let session = SessionEffects {
        changes_catalog: false,
        writes: analyze && draft.session.writes,
        ..draft.session
    };
    if let Plan::Execute(execute) = draft.plan {
        let plan = Plan::Execute(Execute {
            prefix: format!("{}\n", statement.text[statement.span.0..start].trim_end()),
            ..execute
        });
        return Ok(Draft::new(plan, "explain").session(session));
    }
    let native = !statement.catalog.has_placed_relations
        && matches!(draft.plan, Plan::Single(Target::Home | Target::AnyCopy));
    if native {
        return Ok(Draft::home("explain").session(session));
    }
    if matches!(
        node,
        NodeEnum::CreateTableAsStmt(_) | NodeEnum::DeclareCursorStmt(_)
    ) {
        return Err(
            PlanError::unsupported("EXPLAIN of this statement is not supported")
                .hint("EXPLAIN its SELECT."),
        );
    }
    let text = statement.text;
    let names = names::of(node, &draft.plan);
    let plan = Explain {
        plan: Box::new(Planned {
            plan: draft.plan,
            span,
            kind: draft.kind,
            reusable: false,
            parameters: statement::highest_parameter(node),
            session: SessionEffects {
                through_views: rights::through_views(statement, node),
                ..draft.session
            },
            names,
            redefines: Vec::new(),
            lookup: None,
        }),
        analyze,
        prefix: format!("{}\n", text[statement.span.0..start].trim_end()),
        statement: text[start..statement.span.1].to_owned(),
        json,
    };
    Ok(Draft::new(Plan::Explain(plan), "explain").session(session))
}

/// Where the statement behind EXPLAIN and its options starts.
fn inner_start(statement: &Statement<'_>) -> Option<usize> {
    let source = statement.source();
    let mut at = source.token_from(statement.span.0);
    if !source.is_word(at, "explain") {
        return None;
    }
    at += 1;
    // A bracket starts options, or a query in brackets: `EXPLAIN (SELECT 1)`.
    let query = source.is_word(at + 1, "select")
        || source.is_word(at + 1, "values")
        || source.is_word(at + 1, "with")
        || source.is_mark(at + 1, '(');
    if source.is_mark(at, '(') && !query {
        at = source.closing(at)? + 1;
    } else {
        while ["analyze", "analyse", "verbose"]
            .iter()
            .any(|word| source.is_word(at, word))
        {
            at += 1;
        }
    }
    source.tokens.get(at).map(|token| token.start)
}

fn option(options: &[pg_query::Node], name: &str) -> Option<String> {
    nodes(options)
        .filter_map(|node| match node {
            NodeEnum::DefElem(option) if option.defname.eq_ignore_ascii_case(name) => Some(
                inner(&option.arg)
                    .and_then(constant_text)
                    .unwrap_or_else(|| "true".into()),
            ),
            _ => None,
        })
        .last()
}

fn is_true(value: &str) -> bool {
    !matches!(value.to_lowercase().as_str(), "false" | "off" | "0")
}
