//! Where a query or a write can run: the proofs, put together.

use std::collections::{HashMap, HashSet};

use pg_query::NodeEnum;

use crate::{
    analysis::{Analysis, Occurrence},
    builtins::{self, Rows},
    catalog::{Catalog, KeyType, Placement, Relation, Split},
    facts::Constant,
    normalise::{LiteralClass, Normalised},
    plan::{KeyRoute, KeySource, KeySpan, PlanError, ProxyView, ShardSet},
    scope::Found,
    sizes,
    splice::Source,
    statement::{Context, Reach},
    tree::{self, Child},
};

/// A statement and everything its plan may depend on.
#[derive(Debug)]
pub(crate) struct Statement<'a> {
    /// The snapshot.
    pub(crate) catalog: &'a Catalog,
    /// The session.
    pub(crate) context: &'a Context<'a>,
    /// The whole text that was planned.
    pub(crate) text: &'a str,
    /// Where the statement is in it.
    pub(crate) span: (usize, usize),
    /// Its tree.
    pub(crate) node: &'a NodeEnum,
    /// Literals of the whole text.
    pub(crate) normalised: Option<&'a Normalised>,
    /// How often each `$n` (1-based) occurs.
    pub(crate) parameters: HashMap<i32, usize>,
}

impl<'a> Statement<'a> {
    /// The statement in another text, of which it is all.
    pub(crate) fn rewritten<'b>(&self, text: &'b str, node: &'b NodeEnum) -> Statement<'b>
    where
        'a: 'b,
    {
        Statement {
            catalog: self.catalog,
            context: self.context,
            text,
            span: (0, text.len()),
            node,
            normalised: None,
            parameters: self.parameters.clone(),
        }
    }

    /// A statement inside of another's text, like the query of COPY.
    pub(crate) fn inner(&self, node: &'a NodeEnum) -> Statement<'a> {
        Statement {
            node,
            parameters: self.parameters.clone(),
            ..*self
        }
    }

    /// Its text, with its own tokens.
    pub(crate) fn source(&self) -> Source<'a> {
        Source::within(self.text, self.span)
    }

    /// The statement's own text.
    pub(crate) fn own_text(&self) -> &'a str {
        &self.text[self.span.0..self.span.1]
    }

    /// Where a known value of a key comes from, and whether a plan with it is reusable.
    pub(crate) fn key_source(&self, constant: &Constant) -> (KeySource, bool) {
        match constant {
            Constant::Null => (KeySource::Null, true),
            Constant::Parameter(index) => {
                let number = i32::try_from(index + 1).unwrap_or(0);
                let several = self.parameters.get(&number).copied().unwrap_or(0) > 1;
                let declared = self
                    .context
                    .parameter_types
                    .get(*index)
                    .copied()
                    .unwrap_or(0);
                let type_unsure = several && declared == 0;
                (
                    KeySource::Parameter {
                        index: *index,
                        type_unsure,
                    },
                    true,
                )
            }
            Constant::Literal { location, text, .. } => {
                let constant = KeySource::Constant(text.clone());
                let (Some(location), Some(normalised)) = (location, self.normalised) else {
                    return (constant, location.is_none());
                };
                match slot(self.text, normalised, *location) {
                    Slot::At { slot, negated } => (KeySource::Literal { slot, negated }, true),
                    Slot::None => (constant, true),
                    Slot::Unclear => (constant, false),
                }
            }
        }
    }

    /// Sources of many values, without repetition.
    pub(crate) fn sources(&self, constants: &[Constant]) -> (Vec<KeySource>, bool) {
        let mut sources = Vec::with_capacity(constants.len());
        let mut seen = HashSet::with_capacity(constants.len());
        let mut reusable = true;
        for constant in constants {
            let (source, same) = self.key_source(constant);
            reusable &= same;
            if seen.insert(source.clone()) {
                sources.push(source);
            }
        }
        (sources, reusable)
    }
}

/// Which literal of the normalised text stands at a place.
pub(crate) enum Slot {
    At {
        slot: usize,
        negated: bool,
    },
    /// None: what stands there is part of the normalised text itself.
    None,
    /// A literal that was cut out is involved in some other way.
    Unclear,
}

pub(crate) fn slot(text: &str, normalised: &Normalised, location: usize) -> Slot {
    let literals = &normalised.literals;
    let at = literals.partition_point(|literal| literal.start < location);
    let Some(literal) = literals.get(at) else {
        return Slot::None;
    };
    if literal.start == location {
        return Slot::At {
            slot: at,
            negated: false,
        };
    }
    match text
        .get(location..literal.start)
        .and_then(|between| between.strip_prefix('-'))
    {
        Some(between)
            if between.chars().all(|letter| letter == ' ')
                && literal.class != LiteralClass::String =>
        {
            Slot::At {
                slot: at,
                negated: true,
            }
        }
        Some(_) => Slot::Unclear,
        None => Slot::None,
    }
}

/// How often each parameter occurs in a statement.
pub(crate) fn count_parameters(node: &NodeEnum) -> HashMap<i32, usize> {
    let mut counts = HashMap::new();
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::ParamRef(parameter)) = child {
            *counts.entry(parameter.number).or_insert(0) += 1;
        }
    });
    counts
}

/// The answer to "where".
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// On every shard alike.
    AnyCopy,
    /// On the home shard, with what is there.
    Home,
    /// On the shard of a key. The flag: the route holds for other literals too.
    Key(KeyRoute, bool),
    /// On no single shard, for this reason.
    Many(String),
}

/// Where a query can run whole.
pub(crate) fn verdict(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<Verdict, PlanError> {
    refuse_unsafe(statement.catalog, analysis)?;
    let traits = &analysis.traits;
    let all = &analysis.occurrences;
    let distributed = distributed(analysis);
    let elsewhere = all.iter().find_map(|one| at_home(one.found));
    let proxy = all.iter().any(|one| matches!(one.found, Found::Proxy(_)));
    if distributed.is_empty() && !proxy {
        let home = elsewhere.is_some()
            || traits.home.is_some()
            || traits.pins
            || traits.writes
            || traits.set_config
            || analysis.locks
            || analysis.writes_in_with
            || analysis.strange;
        return Ok(if home {
            Verdict::Home
        } else {
            Verdict::AnyCopy
        });
    }
    if proxy {
        return Ok(Verdict::Many(
            "the proxy itself has the rows of its views".to_owned(),
        ));
    }
    traits.refuse_unjudged(statement.catalog)?;
    if let Some(why) = &traits.home {
        return Ok(Verdict::Many(format!(
            "a function runs on the home shard: {why}"
        )));
    }
    if let Some(name) = elsewhere {
        let other = all[distributed[0]].range.relname.as_str();
        return Ok(Verdict::Many(format!(
            "{name} is on the home shard, distributed table \"{other}\" is not"
        )));
    }
    if analysis.strange {
        return Ok(Verdict::Many(
            "the statement has parts that are not looked into".to_owned(),
        ));
    }
    if let Some(why) = not_colocated(analysis, &distributed) {
        return Ok(Verdict::Many(why));
    }
    match bound(statement, analysis, &distributed) {
        Err(why) => Ok(Verdict::Many(why)),
        Ok(_) if statement.context.reach == Reach::Many => Ok(Verdict::Many(
            "the keys belong to several shards, or cannot be read".to_owned(),
        )),
        Ok((route, reusable)) => Ok(Verdict::Key(route, reusable)),
    }
}

/// Errors for functions and relations that could go behind the proxy's back.
pub(crate) fn refuse_unsafe(catalog: &Catalog, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    analysis.traits.refuse_unsafe(catalog)?;
    refuse_counts_of_plans(analysis)?;
    if !catalog.has_placed_relations {
        return Ok(());
    }
    refuse_texts_of_a_session(catalog, analysis)?;
    sizes::refuse(catalog, analysis)?;
    let relations = analysis
        .occurrences
        .iter()
        .filter_map(|one| match one.found {
            Found::Known(relation) => Some(relation),
            Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
        });
    for relation in relations.chain(analysis.view_uses.iter().map(|one| one.relation)) {
        refuse_unusable(relation)?;
        if let Some(danger) = &relation.unsafe_reads {
            return Err(PlanError::unsupported(format!(
                "reading \"{}\" may read distributed tables behind the proxy's back",
                relation.name.name
            ))
            .detail(&danger.why)
            .hint(&danger.hint));
        }
    }
    Ok(())
}

/// The texts of cursors and prepared statements of a server session are the proxy's, not the client's.
fn refuse_texts_of_a_session(catalog: &Catalog, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    let named = analysis.names.contains_key("statement");
    let shows_text = |one: &&Occurrence<'_>| {
        matches!(one.found, Found::Home)
            && builtins::relation(&one.range.relname) == Some(Rows::Session)
            && (named || one.whole)
    };
    match analysis.occurrences.iter().find(shows_text) {
        Some(one) if catalog.shards.len() > 1 => Err(PlanError::unsupported(format!(
            "column \"statement\" of {} is not supported over several shards",
            one.range.relname
        ))
        .detail("It would have what the proxy sent to the home shard, which is not what the client wrote.")
        .hint("Name the other columns.")),
        Some(_) | None => Ok(()),
    }
}

/// What one server would say of a prepared statement beside its name, text and parameters is spread over
/// the servers that have it.
fn refuse_counts_of_plans(analysis: &Analysis<'_>) -> Result<(), PlanError> {
    const UNKNOWN: &[&str] = &[
        "prepare_time",
        "result_types",
        "generic_plans",
        "custom_plans",
    ];
    let of_statements =
        |one: &&Occurrence<'_>| matches!(one.found, Found::Proxy(ProxyView::PreparedStatements));
    let Some(one) = analysis.occurrences.iter().find(of_statements) else {
        return Ok(());
    };
    let named = UNKNOWN
        .iter()
        .find(|name| analysis.names.contains_key(**name));
    let column = match named {
        Some(name) => name,
        None if one.whole => UNKNOWN[0],
        None => return Ok(()),
    };
    Err(PlanError::unsupported(format!(
        "column \"{column}\" of pg_prepared_statements is not supported"
    ))
    .detail("A statement may be prepared on several servers, on each when it is needed.")
    .hint("Name the columns name, statement, parameter_types and from_sql."))
}

/// The error for a relation of which nobody knows where its rows are.
pub(crate) fn refuse_unusable(relation: &Relation) -> Result<(), PlanError> {
    let Some(why) = &relation.unusable else {
        return Ok(());
    };
    let name = &relation.name.name;
    let error = PlanError::new("55000", format!("relation \"{name}\" cannot be used")).detail(why);
    Err(match relation.placement {
        Placement::Local => error.hint("Try again when the lock is gone."),
        _ => error.hint(format!(
            "Undo the change of its shard key where it was made; or run SELECT undistribute_table('{name}'), or drop it."
        )),
    })
}

/// All occurrences of distributed tables.
pub(crate) fn distributed(analysis: &Analysis<'_>) -> Vec<usize> {
    let all = analysis.occurrences.iter().enumerate();
    all.filter(|(_, one)| one.found.distributed().is_some())
        .map(|(index, _)| index)
        .collect()
}

/// What a relation that only the home shard has is called in messages.
pub(crate) fn at_home(found: Found<'_>) -> Option<String> {
    match found {
        Found::Known(relation) | Found::Unread(relation)
            if relation.placement == Placement::Local =>
        {
            Some(format!("local table \"{}\"", relation.name.name))
        }
        Found::Known(_) | Found::Unread(_) | Found::Proxy(_) => None,
        Found::Home => Some("a system catalog, temporary or unknown table".to_owned()),
    }
}

/// The shard key's type and group of a distributed table. Where there is no key the type means
/// nothing, but is the same for all.
pub(crate) fn group(relation: &Relation) -> Option<(KeyType, u32)> {
    match &relation.placement {
        Placement::Distributed {
            key_type,
            colocation,
            ..
        } => Some((*key_type, *colocation)),
        Placement::Schema { colocation } => Some((KeyType::Integer, *colocation)),
        Placement::Local | Placement::Reference => None,
    }
}

/// All rows of the relation are on one shard, that of its schema.
pub(crate) fn is_whole(relation: &Relation) -> bool {
    matches!(relation.placement, Placement::Schema { .. })
}

/// Why equal keys of the tables could be on different shards.
pub(crate) fn not_colocated(analysis: &Analysis<'_>, distributed: &[usize]) -> Option<String> {
    let relation = |index: &usize| analysis.occurrences[*index].found.distributed();
    let first = distributed.first().and_then(relation)?;
    let other = distributed
        .iter()
        .filter_map(relation)
        .find(|one| group(one) != group(first))?;
    Some(format!(
        "distributed tables \"{}\" and \"{}\" are not colocated",
        first.name.name, other.name.name
    ))
}

/// The keys that all given tables are restricted to; `Err` says which one is not.
pub(crate) fn bound(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    distributed: &[usize],
) -> Result<(KeyRoute, bool), String> {
    let mut constants: Vec<Constant> = Vec::new();
    let mut seen: HashSet<Constant> = HashSet::new();
    let mut found = None;
    for index in distributed {
        let one = &analysis.occurrences[*index];
        let relation = one
            .found
            .distributed()
            .map_or("", |relation| &relation.name.name);
        let Some(values) = analysis.key_values(*index) else {
            return Err(format!(
                "distributed table \"{relation}\" is not restricted to one key"
            ));
        };
        for value in values.iter() {
            if seen.insert(value.clone()) {
                constants.push(value.clone());
            }
        }
        found = one.found.distributed().and_then(group);
    }
    let Some((key_type, group)) = found else {
        return Err("no distributed table is involved".to_owned());
    };
    let (sources, reusable) = statement.sources(&constants);
    let route = KeyRoute {
        key_type,
        group,
        sources,
    };
    Ok((route, reusable))
}

/// The shards that can have rows of an occurrence that matter, and whether a plan with them is
/// reusable.
pub(crate) fn shards(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    occurrence: usize,
) -> (ShardSet, bool) {
    let relation = analysis.occurrences[occurrence].found.distributed();
    let Some((key_type, group)) = relation.and_then(group) else {
        return (ShardSet::All, true);
    };
    if let Some(keys) = analysis.key_values(occurrence) {
        let (sources, reusable) = statement.sources(&keys);
        let route = KeyRoute {
            key_type,
            group,
            sources,
        };
        return (ShardSet::Keys(route), reusable);
    }
    if !matches!(statement.catalog.splits.get(&group), Some(Split::Ranges(_))) {
        return (ShardSet::All, true);
    }
    let (lower, upper) = analysis.key_limits(occurrence);
    if lower.is_empty() && upper.is_empty() {
        return (ShardSet::All, true);
    }
    let (lower, reusable) = statement.sources(&lower);
    let (upper, same) = statement.sources(&upper);
    let span = KeySpan {
        key_type,
        group,
        lower,
        upper,
    };
    (ShardSet::Span(span), reusable && same)
}
