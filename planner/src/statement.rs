//! A query string becomes plans, one for each statement.

use std::collections::HashSet;

use pg_query::NodeEnum;

use crate::{
    admin,
    analysis::{self, Analysis, RowOrder},
    asker,
    budget::Budget,
    catalog::{Catalog, Placement, Relation, RelationKind, Residue, Temporary},
    clock, copy, cursor, ddl, explain, gather, hiding, insert, maintenance, names,
    normalise::{Normalised, TokenKind, tokens},
    once,
    own_schemas::{self, OwnSchemas},
    parse::{self, ParseFailure, Parsed},
    plan::{
        IndexLookup, Moved, Plan, PlanError, Planned, SequenceCall, SessionEffects, ShardSet,
        Target,
    },
    rights,
    route::{self, Statement, Verdict, count_parameters},
    scatter,
    scope::Found,
    sequences, session, sizes, steps, table_as, tree, unique,
    views::Views,
    write,
};

/// What a plan depends on beside the text and the catalog.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Schemas in which unqualified names are looked up: `"$user"` resolved, without `pg_catalog`.
    pub search_path: &'a [String],
    /// The session's user.
    pub user: &'a str,
    /// What is known about the statement's keys.
    pub reach: Reach,
    /// Parameter types as the client declared them; 0 or missing is unspecified.
    pub parameter_types: &'a [u32],
    /// No tier below this one answers a query.
    pub tier: Tier,
    /// Relations in `pg_temp` that every shard has a copy of while the statement runs.
    pub moved: &'a [Relation],
    /// The session's temporary objects.
    pub temporary: &'a Temporary,
    /// Whether system catalogs show the proxy's own schemas.
    pub own_schemas: OwnSchemas,
    /// What planning may cost.
    pub budget: &'a Budget,
}

/// What is known about the shards of a statement's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing yet: a proof that all keys name one shard may be the answer.
    Single,
    /// They name several, or cannot be read: the answer is not [`Target::Key`].
    Many,
    /// They name one, which is not the one whose clock the transaction goes by: what reads the
    /// transaction's time is not [`Target::Key`] or [`Target::Home`].
    OneTime,
}

/// The ways to answer a query, cheapest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// One shard has everything.
    #[default]
    Single,
    /// Every shard's rows are a part of the answer.
    Scatter,
    /// Shards' partial results are put together.
    Merge,
    /// Rows of tables are copied to the home shard.
    Gather,
}

/// A plan without what every statement has.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) plan: Plan,
    pub(crate) kind: &'static str,
    pub(crate) reusable: bool,
    pub(crate) session: SessionEffects,
    pub(crate) lookup: Option<IndexLookup>,
}

impl Draft {
    /// A plan for this text alone.
    pub(crate) fn new(plan: Plan, kind: &'static str) -> Self {
        Draft {
            plan,
            kind,
            reusable: false,
            session: SessionEffects::default(),
            lookup: None,
        }
    }

    /// The client's text to the home shard.
    pub(crate) fn home(kind: &'static str) -> Self {
        Draft::new(Plan::Single(Target::Home), kind)
    }

    /// For all texts with the same normalised form.
    pub(crate) fn reusable(mut self, reusable: bool) -> Self {
        self.reusable = reusable;
        self
    }

    /// With the row that an index may find.
    pub(crate) fn lookup(mut self, statement: &Statement<'_>, analysis: &Analysis<'_>) -> Self {
        self.lookup = unique::look_up(statement, analysis, &self);
        self
    }

    /// With effects on the session.
    pub(crate) fn session(mut self, session: SessionEffects) -> Self {
        self.session = session;
        self
    }

    /// It writes.
    pub(crate) fn writes(mut self) -> Self {
        self.session.writes = true;
        self
    }

    /// It changes the schema.
    pub(crate) fn changes_catalog(mut self) -> Self {
        self.session.writes = true;
        self.session.changes_catalog = true;
        self
    }
}

/// Plans every statement of a query string. Error 54000 says that this would cost more than
/// [`Context::budget`] allows.
pub fn plan(
    catalog: &Catalog,
    context: &Context<'_>,
    text: &str,
    normalised: Option<&Normalised>,
) -> Result<Vec<Planned>, PlanError> {
    context.budget.hold_tree(text);
    context.budget.check()?;
    let planned = parse::with_room(|| plan_all(catalog, context, text, normalised));
    // What was made past a limit may lack what was not looked at.
    context.budget.check()?;
    planned
}

fn plan_all(
    catalog: &Catalog,
    context: &Context<'_>,
    text: &str,
    normalised: Option<&Normalised>,
) -> Result<Vec<Planned>, PlanError> {
    let parsed = match parse::parse(text) {
        Ok(parsed) => parsed,
        Err(failure) => return unparsed(catalog, text, failure).map(|planned| vec![planned]),
    };
    if parsed.is_empty() {
        return Ok(vec![finish(Draft::new(Plan::Empty, "empty"), (0, 0))]);
    }
    parsed
        .iter()
        .map(|one| plan_one(catalog, context, text, normalised, one))
        .collect()
}

fn plan_one(
    catalog: &Catalog,
    context: &Context<'_>,
    text: &str,
    normalised: Option<&Normalised>,
    parsed: &Parsed,
) -> Result<Planned, PlanError> {
    context.budget.spend(1);
    context.budget.check()?;
    let parameters = count_parameters(&parsed.node);
    let highest = parameters.keys().max().copied().unwrap_or(0);
    let statement = Statement {
        catalog,
        context,
        text,
        span: parsed.span,
        node: &parsed.node,
        normalised,
        parameters,
    };
    hiding::refuse(&statement)?;
    unique::refuse(&statement)?;
    rights::refuse_ours(&statement)?;
    let asker = asker::calls(&statement);
    let draft = match sequences::calls(&statement) {
        _ if !asker.is_empty() => Draft::new(Plan::Asker(asker), kind_of(&statement)),
        None => draft(&statement)?,
        Some(calls) => with_sequence_calls(&statement, calls),
    };
    let draft = own_schemas::hide(&statement, draft)?;
    // Which sequence a call means is a literal of the text.
    let mut draft = match sequences::is_called(statement.node, draft.session) {
        true => draft.reusable(false),
        false => draft,
    };
    draft.session.indexed = unique::changes(&statement, &draft.plan);
    draft.session.residue = residue(&statement, &draft.plan);
    // EXPLAIN tells of the statement behind it.
    draft.session.through_views |= !matches!(statement.node, NodeEnum::ExplainStmt(_))
        && rights::through_views(&statement, statement.node);
    let names = names::of(&parsed.node, &draft.plan);
    let redefines = match draft.plan {
        Plan::Ddl(_) => ddl::redefined(&statement),
        _ => Vec::new(),
    };
    Ok(Planned {
        parameters: usize::try_from(highest).unwrap_or(0),
        names,
        redefines,
        ..finish(draft, parsed.span)
    })
}

/// What code that the statement runs may leave in its server session.
fn residue(statement: &Statement<'_>, plan: &Plan) -> Residue {
    let residues = &statement.catalog.residues;
    match (statement.node, plan) {
        (NodeEnum::DoStmt(block), _) => {
            let (language, code) = ddl::block_code(block);
            residues.of_block(&language, &code)
        }
        (NodeEnum::LoadStmt(_), _) => Residue::KEEPS_LASTING,
        (NodeEnum::VariableShowStmt(show), _) if show.name.contains('.') => Residue::READS_SETTING,
        (_, Plan::Transaction(_) | Plan::Setting(_) | Plan::Empty) => Residue::NONE,
        (node, _) if ddl::runs_nothing(node) => residues.of_statement("", true),
        (_, plan) => {
            let defines = matches!(plan, Plan::Ddl(_) | Plan::CreateTableAs { .. });
            let text = statement.own_text();
            let reads_setting = match text.to_ascii_lowercase().contains("current_setting") {
                true => Residue::READS_SETTING,
                false => Residue::NONE,
            };
            residues.of_statement(text, defines) | reads_setting
        }
    }
}

fn kind_of(statement: &Statement<'_>) -> &'static str {
    match statement.node {
        NodeEnum::SelectStmt(_) => "select",
        NodeEnum::InsertStmt(_) => "insert",
        NodeEnum::UpdateStmt(_) => "update",
        NodeEnum::DeleteStmt(_) => "delete",
        _ => "other",
    }
}

/// The statement waits for the values of its calls; what it is without them is planned, too.
fn with_sequence_calls(statement: &Statement<'_>, calls: (Vec<SequenceCall>, Moved)) -> Draft {
    let kind = kind_of(statement);
    let otherwise = draft(statement).map(|draft| {
        let names = names::of(statement.node, &draft.plan);
        Planned {
            names,
            parameters: highest_parameter(statement.node),
            ..finish(draft, statement.span)
        }
    });
    Draft::new(sequences::plan(calls, otherwise), kind)
}

fn finish(draft: Draft, span: (usize, usize)) -> Planned {
    Planned {
        plan: draft.plan,
        span,
        kind: draft.kind,
        reusable: draft.reusable,
        parameters: 0,
        session: draft.session,
        names: 0,
        redefines: Vec::new(),
        lookup: draft.lookup,
    }
}

/// What cannot run as one statement may run as several.
fn or_in_steps(
    statement: &Statement<'_>,
    draft: Result<Draft, PlanError>,
) -> Result<Draft, PlanError> {
    match draft {
        Err(error) if error.sqlstate == "0A000" => steps::steps(statement).ok_or(error),
        other => other,
    }
}

/// The plan of one statement.
pub(crate) fn draft(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    let draft = draft_of(statement)?;
    once::refuse(statement, &draft.plan)?;
    if matches!(draft.plan, Plan::CreateTableAs { .. }) || draft.kind == "ddl" {
        ddl::refuse_event_trigger(statement)?;
    }
    Ok(draft)
}

fn draft_of(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    match statement.node {
        NodeEnum::SelectStmt(select) if select.into_clause.is_some() => {
            table_as::select_into(statement, select)
        }
        NodeEnum::SelectStmt(select) => match admin::call(statement, select)? {
            Some(draft) => Ok(draft),
            None if let Some(draft) = maintenance::everywhere(statement, select) => Ok(draft),
            None => match sizes::summed(statement)? {
                Some(draft) => Ok(draft),
                None => or_in_steps(statement, select_query(statement, RowOrder::Seen)),
            },
        },
        NodeEnum::InsertStmt(insert) => or_in_steps(statement, insert::insert(statement, insert)),
        NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
            or_in_steps(statement, write::write(statement))
        }
        NodeEnum::CreateTableAsStmt(create) => table_as::create(statement, create),
        NodeEnum::CopyStmt(copy) => copy::copy(statement, copy),
        NodeEnum::ExplainStmt(explain) => explain::explain(statement, explain),
        NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::FetchStmt(_)
        | NodeEnum::ClosePortalStmt(_)
        | NodeEnum::PrepareStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::DeallocateStmt(_) => cursor::cursor(statement),
        NodeEnum::TransactionStmt(_)
        | NodeEnum::VariableSetStmt(_)
        | NodeEnum::VariableShowStmt(_)
        | NodeEnum::DiscardStmt(_)
        | NodeEnum::ConstraintsSetStmt(_)
        | NodeEnum::NotifyStmt(_)
        | NodeEnum::ListenStmt(_)
        | NodeEnum::UnlistenStmt(_)
        | NodeEnum::LoadStmt(_)
        | NodeEnum::CheckPointStmt(_) => session::session(statement),
        _ => ddl::ddl(statement),
    }
}

/// A SELECT whose rows go to the client.
fn select_query(statement: &Statement<'_>, order: RowOrder) -> Result<Draft, PlanError> {
    let views = Views::load(statement.catalog, statement.context, statement.node)?;
    let mut analysis =
        analysis::analyse(statement.catalog, statement.context, &views, statement.node)?;
    analysis.order = order;
    place(statement, &analysis, &views, "select", true)
}

/// A subquery as a statement of its own; `None` where it cannot be one.
pub(crate) fn plan_subquery(statement: &Statement<'_>, order: RowOrder) -> Option<Planned> {
    let draft = select_query(statement, order).ok()?;
    match draft.plan {
        Plan::Single(_) | Plan::Scatter(_) | Plan::Gather(_) => {}
        _ => return None,
    }
    let names = names::of(statement.node, &draft.plan);
    Some(Planned {
        names,
        ..finish(draft, statement.span)
    })
}

/// A SELECT whose rows are needed on one server: on one shard if that is proved, else gathered.
pub(crate) fn query(statement: &Statement<'_>, kind: &'static str) -> Result<Draft, PlanError> {
    let views = Views::load(statement.catalog, statement.context, statement.node)?;
    let analysis = analysis::analyse(statement.catalog, statement.context, &views, statement.node)?;
    place(statement, &analysis, &views, kind, false)
}

/// The plan for a query that was looked at. `scattered`: its rows may come from many servers.
fn place(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    kind: &'static str,
    scattered: bool,
) -> Result<Draft, PlanError> {
    let effects = effects(analysis);
    let verdict = one_shard(statement, analysis, route::verdict(statement, analysis)?);
    if !(scattered && matches!(verdict, Verdict::Home)) {
        session::refuse_set_config(statement, analysis)?;
    }
    let draft = match verdict {
        Verdict::AnyCopy => Draft::new(Plan::Single(Target::AnyCopy), kind).reusable(true),
        Verdict::Home => {
            write::refuse_writes_in_with(statement, analysis)?;
            if write::needs_one_time(statement, analysis) {
                let timed = one_time(statement, analysis, ShardSet::Home, kind)?;
                return Ok(timed.session(effects));
            }
            if let Some(draft) = session::configure(statement, analysis)? {
                return Ok(draft.session(SessionEffects {
                    pins: analysis.traits.pins,
                    ..effects
                }));
            }
            Draft::home(kind).reusable(true)
        }
        Verdict::Key(route, reusable) => {
            write::refuse_key_changes(statement, analysis)?;
            if write::needs_one_time(statement, analysis) {
                let timed = one_time(statement, analysis, ShardSet::Keys(route), kind)?;
                return Ok(timed.session(effects));
            }
            let reusable = reusable && !analysis.positions;
            Draft::new(Plan::Single(Target::Key(route)), kind).reusable(reusable)
        }
        Verdict::Many(reason) => {
            if analysis.locks {
                let floor = statement.context.tier <= Tier::Scatter && scattered;
                let locking = floor.then(|| scatter::locking(statement, analysis, &reason));
                if let Some((plan, reusable)) = locking.flatten() {
                    let draft = Draft::new(Plan::Scatter(plan), kind).reusable(reusable);
                    return Ok(draft.session(effects).lookup(statement, analysis));
                }
                return Err(PlanError::unsupported(
                    "row locks on several shards are not supported",
                )
                .detail(sentence(&reason))
                .hint("Restrict every distributed table in the statement to one shard key by equality, or leave out FOR UPDATE or FOR SHARE."));
            }
            if analysis.writes_in_with {
                return Err(write::with_over_several_shards(&reason));
            }
            let floor = statement.context.tier;
            // Shards know nothing of the proxy's own views.
            let proxy = |one: &analysis::Occurrence<'_>| matches!(one.found, Found::Proxy(_));
            let proxy = analysis.occurrences.iter().any(proxy);
            let scatter = (scattered && floor < Tier::Gather && !proxy)
                .then(|| scatter::scatter(statement, analysis, views, &reason))
                .flatten();
            if let Some((plan, reusable)) = scatter.filter(|(plan, _)| plan.tier() >= floor) {
                let draft = Draft::new(Plan::Scatter(plan), kind).reusable(reusable);
                return Ok(draft.session(effects).lookup(statement, analysis));
            }
            Draft::new(
                Plan::Gather(gather::gather(statement, analysis, views, reason)?),
                kind,
            )
        }
    };
    Ok(draft.session(effects))
}

/// A query for shards whose clock is not the transaction's.
fn one_time(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    shards: ShardSet,
    kind: &'static str,
) -> Result<Draft, PlanError> {
    let in_view = analysis.traits.clocks.iter().any(|clock| clock.in_view);
    let text = (!in_view).then(|| clock::one_time(statement.own_text()));
    let text = text.flatten().ok_or_else(|| {
        PlanError::unsupported("the transaction's time cannot be put into the statement")
            .detail(
                "The transaction began on another shard, whose time is that of the transaction.",
            )
            .hint("Write the time into the statement.")
    })?;
    Ok(write::timed(shards, text, kind))
}

/// A single shard has everything that relations have; of the proxy's own views it knows nothing.
fn one_shard(statement: &Statement<'_>, analysis: &Analysis<'_>, verdict: Verdict) -> Verdict {
    let proxy = |one: &analysis::Occurrence<'_>| matches!(one.found, Found::Proxy(_));
    let alone = statement.catalog.shards.len() == 1 && statement.context.tier == Tier::Single;
    match verdict {
        Verdict::Many(_) if alone && !analysis.occurrences.iter().any(proxy) => Verdict::Home,
        other => other,
    }
}

/// A reason as a sentence.
pub(crate) fn sentence(reason: &str) -> String {
    let mut letters = reason.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string())
        .unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

/// What a query or write does to its session.
pub(crate) fn effects(analysis: &Analysis<'_>) -> SessionEffects {
    let traits = &analysis.traits;
    let mut written = analysis
        .occurrences
        .iter()
        .filter(|one| one.written)
        .peekable();
    let writes = written.peek().is_some();
    let draws = written.any(|one| match one.found {
        Found::Known(relation) if relation.placement == Placement::Local => {
            one.inserted && relation.columns.iter().any(insert::draws)
        }
        _ => false,
    });
    let of_tables = analysis.occurrences.iter().all(|one| {
        let placed = one.found.placed();
        placed.is_some_and(|relation| {
            relation.kind == RelationKind::Table && relation.unsafe_reads.is_none()
        })
    });
    let only_reads = of_tables
        && !writes
        && !analysis.writes_in_with
        && !analysis.locks
        && !analysis.strange
        && traits.are_plain();
    SessionEffects {
        only_reads,
        pins: traits.pins || traits.set_config,
        moves_sequence: traits.moves_sequence || draws,
        sets_sequence: traits.sets_sequence,
        reads_sequence: traits.reads_sequence,
        writes: traits.writes || analysis.writes_in_with || writes,
        through_views: false,
        expands_views: false,
        reads_clock: traits.clocks.iter().any(|clock| !clock.in_view),
        changes_catalog: false,
        indexed: false,
        residue: Residue::NONE,
    }
}

/// A text without a tree. The home shard gives its own error, or takes what a newer or older
/// grammar takes; but not where that could touch a table whose rows are elsewhere.
fn unparsed(catalog: &Catalog, text: &str, failure: ParseFailure) -> Result<Planned, PlanError> {
    let planned = finish(
        Draft::home("other").session(SessionEffects {
            writes: true,
            residue: catalog.residues.of_unknown(),
            ..Default::default()
        }),
        (0, text.len()),
    );
    let forwarded = match &failure {
        ParseFailure::Syntax(_) => !catalog.has_placed_relations || !names_placed(catalog, text),
        ParseFailure::TooDeep => !names_placed(catalog, text),
    };
    if forwarded {
        return Ok(planned);
    }
    Err(match failure {
        ParseFailure::Syntax(message) => PlanError::new("42601", message),
        ParseFailure::TooDeep => PlanError::new("54001", "stack depth limit exceeded")
            .detail("The statement is nested too deeply to be planned.")
            .hint("Split the statement, or write long chains of operators with brackets around halves."),
    })
}

/// Commands that do not concern the home shard alone, and an escape that hides names.
const NEVER_UNSEEN: &[&str] = &[
    "uescape", "do", "call", "set", "begin", "commit", "create", "alter", "drop", "grant",
    "revoke", "truncate", "comment", "copy", "listen", "declare", "prepare",
];

/// A word of the text is the name of a placed table, a view on one, or a function that may touch
/// one; or the text runs what its words do not say.
fn names_placed(catalog: &Catalog, text: &str) -> bool {
    let list = tokens(text);
    let complete = list.last().is_none_or(|token| {
        text[token.end..].trim().is_empty() || text[token.end..].trim_start().starts_with("--")
    });
    let words = list
        .iter()
        .filter(|token| matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier));
    let mut words = words.map(|token| gather::folded(&text[token.start..token.end]));
    let relations = catalog.relations.values();
    let placed: HashSet<&str> = relations
        .filter(|relation| relation.placement != Placement::Local || relation.reads_placed)
        .map(|relation| relation.name.name.as_str())
        .collect();
    !complete
        || words.any(|word| {
            placed.contains(word.as_str())
                || catalog.functions.contains_key(&word)
                || NEVER_UNSEEN.contains(&word.as_str())
        })
}

/// The highest parameter of a node, for plans that are made of parts.
pub(crate) fn highest_parameter(node: &NodeEnum) -> usize {
    tree::parameters(node)
}
