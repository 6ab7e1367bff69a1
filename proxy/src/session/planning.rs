//! From text to plans: the cache, the catalog snapshot, and keys to shards.

use std::{sync::Arc, time::Duration};

use automator67_planner::{
    OwnSchemas, Reach, Tier,
    catalog::{Catalog, KeyType, MadeSettings, Owner, ShardId, Split, Temporary},
    key::{self, KeyValue},
    names,
    normalise::{self, Literal, LiteralClass, Normalised},
    plan::{KeyRoute, KeySource, KeySpan, Piece, Plan, Planned, ShardSet, Target},
};

use super::{Session, extended::Bound, links::cancelled};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
    plan_cache::{CACHED_TEXT_BYTES_MAX, Surroundings},
    planners::Task,
    process::lock,
    server::call::Call,
};

/// A query string, planned.
pub struct Prepared {
    /// Its statements.
    pub statements: Vec<Arc<Planned>>,
    /// Its literals, for plans that are shared by texts that differ in them.
    pub normalised: Normalised,
    /// The snapshot it was planned with.
    pub catalog: Arc<Catalog>,
    /// The search path it was planned with.
    pub search_path: Arc<Vec<String>>,
    /// The temporary objects it was planned with.
    pub temporary: Arc<Temporary>,
    /// A statement changes what later ones mean (SET search_path, DDL).
    pub depends_on_order: bool,
}

impl Prepared {
    /// What its statements name, see [`automator67_planner::names`].
    pub fn names(&self) -> u64 {
        self.statements
            .iter()
            .fold(0, |names, planned| names | planned.names)
    }
}

/// One statement to be run.
pub struct Request<'a> {
    /// Its plan.
    pub planned: &'a Planned,
    /// Its own text.
    pub text: &'a str,
    /// The text that `literals` point into.
    pub whole: &'a str,
    /// Literals of the whole text.
    pub literals: &'a [Literal],
    /// The snapshot it was planned with.
    pub catalog: Arc<Catalog>,
    /// Parameters, in the extended protocol.
    pub bound: Option<&'a Bound>,
}

impl<'a> Request<'a> {
    /// Types of its parameters, as far as they are known.
    pub fn parameter_types(&self) -> &[u32] {
        self.bound.map_or(&[], |bound| &bound.types)
    }

    /// The only statement of a simple query.
    pub fn simple(planned: &'a Planned, prepared: &'a Prepared, text: &'a str) -> Self {
        Request {
            planned,
            text,
            whole: text,
            literals: &prepared.normalised.literals,
            catalog: prepared.catalog.clone(),
            bound: None,
        }
    }

    /// One of several statements.
    pub fn part(
        planned: &'a Planned,
        prepared: &'a Prepared,
        text: &'a str,
        catalog: Arc<Catalog>,
    ) -> Self {
        let (start, end) = planned.span;
        Request {
            planned,
            text: text.get(start..end).unwrap_or(text),
            whole: text,
            literals: &prepared.normalised.literals,
            catalog,
            bound: None,
        }
    }

    /// The same request with another plan.
    pub fn with_plan<'b>(&'b self, planned: &'b Planned) -> Request<'b> {
        Request {
            planned,
            catalog: self.catalog.clone(),
            ..*self
        }
    }

    /// A template with its holes filled.
    pub fn render(
        &self,
        pieces: &[Piece],
        fill: &dyn Fn(&Piece, &mut String),
        output: &mut String,
    ) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => output.push_str(text),
                Piece::Literal(slot) => {
                    if let Some(literal) = self.literals.get(*slot) {
                        output.push_str(self.whole.get(literal.start..literal.end).unwrap_or(""));
                    }
                }
                Piece::Sequence(_) | Piece::Key | Piece::Now => fill(piece, output),
            }
        }
    }
}

/// What keys say about where a statement runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// All on one shard.
    One(ShardId),
    /// On these.
    Several(Vec<ShardId>),
    /// Some value cannot be read with certainty: nothing is known.
    Unknown,
}

/// What the cache says of a text.
enum Known {
    Planned(Prepared),
    Not(Missing),
}

/// A text that has to be planned.
struct Missing {
    catalog: Arc<Catalog>,
    normalised: Normalised,
    surroundings: Surroundings,
    /// `normalised` is that of the text.
    short: bool,
    /// Its plan may serve others.
    cacheable: bool,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy)]
struct Goal {
    reach: Reach,
    tier: Tier,
}

impl Goal {
    /// No tier below this one.
    fn of(tier: Tier) -> Goal {
        let reach = match tier {
            Tier::Single => Reach::Single,
            Tier::Scatter | Tier::Merge | Tier::Gather => Reach::Many,
        };
        Goal { reach, tier }
    }
}

impl Session {
    /// The snapshot for the next statement.
    pub(super) fn catalog(&self) -> Arc<Catalog> {
        match &self.transaction.catalog {
            Some(own) => own.clone(),
            None => self.process.store.catalog(),
        }
    }

    /// Plans the text of a simple query.
    pub(super) async fn plan_simple(&mut self, text: &str) -> Outcome<Prepared> {
        let none = self.no_types.clone();
        self.plan_text(text, &none).await
    }

    /// Plans a text, from the cache if its normalised form was planned before.
    pub(super) async fn plan_text(
        &mut self,
        text: &str,
        parameter_types: &Arc<[u32]>,
    ) -> Outcome<Prepared> {
        match self.plan_known(text, parameter_types) {
            Known::Planned(prepared) => Ok(prepared),
            Known::Not(missing) => Box::pin(self.plan_missing(text, missing)).await,
        }
    }

    fn plan_known(&mut self, text: &str, parameter_types: &Arc<[u32]>) -> Known {
        let catalog = self.catalog();
        let mut normalised = std::mem::take(&mut self.scratch);
        let surroundings = Surroundings {
            search_path: self.settings.search_path.clone(),
            parameter_types: parameter_types.clone(),
        };
        // Longer texts are not in the cache, and are read by another thread.
        let short = text.len() <= CACHED_TEXT_BYTES_MAX;
        let cacheable = short
            && normalise::normalise(text, &mut normalised)
            && normalised.statements == 1
            && self.transaction.catalog.is_none()
            && self.settings.own.plans_like_others();
        if cacheable {
            let mut plans = lock(&self.thread.plans);
            let found = plans
                .get(catalog.epoch, &normalised.text, &surroundings)
                .or_else(|| plans.get(catalog.epoch, text, &surroundings));
            drop(plans);
            if let Some(planned) = found.filter(|planned| !self.may_name_temporary(planned)) {
                self.process.telemetry.plan_hits.increment(1);
                return Known::Planned(Prepared {
                    statements: vec![planned],
                    normalised,
                    catalog,
                    search_path: surroundings.search_path,
                    temporary: self.temporary.objects().clone(),
                    depends_on_order: false,
                });
            }
        }
        Known::Not(Missing {
            catalog,
            normalised: if short {
                normalised
            } else {
                Normalised::default()
            },
            surroundings,
            short,
            cacheable,
        })
    }

    async fn plan_missing(&mut self, text: &str, missing: Missing) -> Outcome<Prepared> {
        self.process.telemetry.plan_misses.increment(1);
        let Missing {
            catalog,
            normalised,
            surroundings,
            short,
            cacheable,
        } = missing;
        let goal = Goal::of(self.settings.own.tier);
        let types = &surroundings.parameter_types;
        let known = short.then_some(&normalised);
        let statements = self.plan_fresh(&catalog, text, types, goal, known).await?;
        if let ([planned], true) = (statements.as_slice(), cacheable) {
            let reads = matches!(
                planned.plan,
                Plan::Scatter(_) | Plan::Gather(_) | Plan::Sequences(_)
            ) || planned.session.reads_sequence
                || planned.session.moves_sequence;
            if planned.reusable || reads {
                // What depends on the literals serves the same text.
                let key = if planned.reusable {
                    &normalised.text
                } else {
                    text
                };
                if !self.may_name_temporary(planned) {
                    lock(&self.thread.plans).put(key, surroundings.clone(), planned.clone());
                }
            }
        }
        let depends_on_order = statements.iter().any(|planned| {
            planned.session.changes_catalog || matches!(planned.plan, Plan::Setting(_))
        });
        let search_path = surroundings.search_path;
        Ok(Prepared {
            statements,
            normalised,
            catalog,
            search_path,
            temporary: self.temporary.objects().clone(),
            depends_on_order,
        })
    }

    /// Plans a text here if that is quickly done, else on a thread of its own.
    async fn plan_fresh(
        &mut self,
        catalog: &Arc<Catalog>,
        text: &str,
        parameter_types: &[u32],
        goal: Goal,
        normalised: Option<&Normalised>,
    ) -> Outcome<Vec<Arc<Planned>>> {
        let process = self.process.clone();
        let task = Task {
            catalog,
            text,
            normalised,
            parameter_types,
            search_path: &self.settings.search_path,
            user: &self.user,
            temporary: self.temporary.objects(),
            reach: goal.reach,
            tier: goal.tier,
            own_schemas: self.settings.own.own_schemas,
        };
        let planned = match process.planners.at_once(&task) {
            Some(planned) => planned?,
            None => {
                let limit = self.settings.map.get("statement_timeout");
                let limit = limit.and_then(guc::duration);
                let card = self.card.clone();
                // Dropping the plan under way calls it off.
                tokio::select! {
                    biased;
                    planned = process.planners.apart(task) => planned?,
                    gone = self.client.gone() => return Err(gone),
                    () = card.cancelled.notified() => return Err(cancelled()),
                    () = over(limit) => return Err(timed_out()),
                    () = tokio::time::sleep(process.planners.timeout()) => {
                        return Err(process.planners.too_long());
                    }
                }
            }
        };
        Ok(planned.into_iter().map(Arc::new).collect())
    }

    /// The statement may name temporary relations, which other sessions do not have; those of
    /// sequences are in its strings.
    fn may_name_temporary(&self, planned: &Planned) -> bool {
        let effects = planned.session;
        let by_string = effects.moves_sequence || effects.reads_sequence;
        let mut temporary = self.temporary.objects().names();
        temporary.any(|name| by_string || names::may_name(planned.names, names::bits(name)))
    }

    /// Plans one of several statements again, after one before it has changed the surroundings.
    pub(super) async fn replan(&mut self, text: &str, planned: &Planned) -> Outcome<Arc<Planned>> {
        let catalog = self.catalog();
        let own = text.get(planned.span.0..planned.span.1).unwrap_or("");
        let goal = Goal::of(Tier::Single);
        let statements = self.plan_fresh(&catalog, own, &[], goal, None).await?;
        let again = statements.into_iter().next().ok_or_else(not_again)?;
        Ok(Arc::new(Planned {
            span: planned.span,
            ..Arc::unwrap_or_clone(again)
        }))
    }

    /// Plans a statement whose keys name several shards, or cannot be read.
    pub(super) async fn plan_for_many(&mut self, request: &Request<'_>) -> Outcome<Arc<Planned>> {
        let goal = Goal {
            reach: Reach::Many,
            tier: self.settings.own.tier,
        };
        Box::pin(self.plan_again(request, goal)).await
    }

    /// Plans a statement whose shard has another time than the transaction.
    pub(super) async fn plan_for_time(&mut self, request: &Request<'_>) -> Outcome<Arc<Planned>> {
        let goal = Goal {
            reach: Reach::OneTime,
            tier: self.settings.own.tier,
        };
        Box::pin(self.plan_again(request, goal)).await
    }

    /// Plans a statement for the home shard.
    pub(super) async fn plan_for_gather(&mut self, request: &Request<'_>) -> Outcome<Arc<Planned>> {
        Box::pin(self.plan_again(request, Goal::of(Tier::Gather))).await
    }

    /// Plans made for the same text a second time are kept like those made first.
    async fn plan_again(&mut self, request: &Request<'_>, goal: Goal) -> Outcome<Arc<Planned>> {
        let types: &[u32] = request.bound.map_or(&[], |bound| &bound.types);
        let surroundings = Surroundings {
            search_path: self.settings.search_path.clone(),
            parameter_types: Arc::from(types),
        };
        let key = format!("{:?} {}", goal, request.text);
        let shared = self.transaction.catalog.is_none()
            && self.temporary.objects().is_empty()
            && self.settings.own.own_schemas == OwnSchemas::Hidden;
        let epoch = request.catalog.epoch;
        if shared && let Some(known) = lock(&self.thread.plans).get(epoch, &key, &surroundings) {
            return Ok(known);
        }
        let catalog = request.catalog.clone();
        let statements = self
            .plan_fresh(&catalog, request.text, types, goal, None)
            .await?;
        let planned = statements.into_iter().next().ok_or_else(not_again)?;
        if shared {
            lock(&self.thread.plans).put(&key, surroundings, planned.clone());
        }
        Ok(planned)
    }

    /// A statement that needs nothing but one exchange with one server connection: no transaction
    /// is open, and it leaves nothing behind in its server session.
    pub(super) fn is_plain(&self, request: &Request<'_>) -> bool {
        let effects = &request.planned.session;
        !self.transaction.is_open()
            && !effects.changes_catalog
            && !effects.pins
            && !effects.sets_sequence
            && !effects.indexed
            && effects.residue.settings == MadeSettings::None
            && request.bound.is_none()
    }

    /// The shard of a target, if its keys name one.
    pub(super) fn resolve_now(
        &self,
        target: &Target,
        request: &Request<'_>,
    ) -> Outcome<Option<ShardId>> {
        Ok(match target {
            Target::Home => Some(self.home()),
            Target::AnyCopy => Some(self.any_copy()),
            Target::Key(route) => match self.resolve(route, request, None)? {
                Resolved::One(shard) => Some(shard),
                Resolved::Several(_) | Resolved::Unknown => None,
            },
        })
    }

    /// Reads and hashes the keys of a route. `types` are the parameters' types as a shard
    /// described them, where that was asked.
    pub(super) fn resolve(
        &self,
        route: &KeyRoute,
        request: &Request<'_>,
        types: Option<&[u32]>,
    ) -> Outcome<Resolved> {
        if let Some(shard) = request.catalog.whole(route.group) {
            return Ok(Resolved::One(shard));
        }
        let mut shards: Vec<ShardId> = Vec::new();
        for source in &route.sources {
            let Some(value) = read_key(route.key_type, source, request, types) else {
                return Ok(Resolved::Unknown);
            };
            if value == KeyValue::Null {
                continue;
            }
            // What has no place yet gets one from who writes it; who reads looks everywhere.
            let Some(shard) = shard_of(&request.catalog, route.group, &value)? else {
                return Ok(Resolved::Unknown);
            };
            if !shards.contains(&shard) {
                shards.push(shard);
            }
        }
        shards.sort_unstable();
        Ok(match shards.as_slice() {
            // Equal to NULL: no row anywhere. Any shard says so in the right form.
            [] => Resolved::One(self.home()),
            [one] => Resolved::One(*one),
            _ => Resolved::Several(shards),
        })
    }

    /// The shards of a set, in order.
    pub(super) async fn shard_set(
        &mut self,
        set: &ShardSet,
        request: &Request<'_>,
    ) -> Outcome<Vec<ShardId>> {
        match set {
            ShardSet::All => Ok(self.all_shards()),
            ShardSet::Home => Ok(vec![self.home()]),
            ShardSet::Keys(route) => Ok(match self.resolve_surely(route, request).await? {
                Resolved::One(shard) => vec![shard],
                Resolved::Several(shards) => shards,
                Resolved::Unknown => self.all_shards(),
            }),
            ShardSet::Span(span) => self.shards_of_span(span, request).await,
        }
    }

    async fn shards_of_span(
        &mut self,
        span: &KeySpan,
        request: &Request<'_>,
    ) -> Outcome<Vec<ShardId>> {
        let sources = span.lower.iter().chain(&span.upper);
        let types = self.unsure_types(sources, request).await?;
        let Some(Split::Ranges(ranges)) = request.catalog.splits.get(&span.group) else {
            return Ok(self.all_shards());
        };
        // An end that cannot be read, or is NULL, is none.
        let read = |source: &KeySource| {
            let read = |key_type| read_key(key_type, source, request, types.as_deref());
            let value = read(span.key_type).or_else(|| match span.key_type {
                KeyType::Timestamp => read(KeyType::Date).and_then(|date| key::midnight(&date)),
                _ => None,
            });
            value.filter(|value| *value != KeyValue::Null)
        };
        let lower = span.lower.iter().filter_map(read);
        let upper = span.upper.iter().filter_map(read);
        Ok(ranges.between(
            lower.max_by(key::compare).as_ref(),
            upper.min_by(key::compare).as_ref(),
        ))
    }

    /// Resolves a route; asks the home shard for parameter types where the proof needs them.
    pub(super) async fn resolve_surely(
        &mut self,
        route: &KeyRoute,
        request: &Request<'_>,
    ) -> Outcome<Resolved> {
        let types = self.unsure_types(route.sources.iter(), request).await?;
        self.resolve(route, request, types.as_deref())
    }

    /// The types of parameters as the home shard describes them, if one of these has to be known.
    async fn unsure_types(
        &mut self,
        mut sources: impl Iterator<Item = &KeySource>,
        request: &Request<'_>,
    ) -> Outcome<Option<Arc<[u32]>>> {
        let unsure = sources.any(|source| {
            matches!(
                source,
                KeySource::Parameter {
                    type_unsure: true,
                    ..
                }
            )
        });
        if !unsure || request.bound.is_none() {
            return Ok(None);
        }
        self.described_types(request).await.map(Some)
    }

    /// The shard that a new row with this key belongs to. A value of a directory that has none
    /// gets one, at once and for all.
    pub(super) async fn owner(
        &mut self,
        catalog: &Catalog,
        group: u32,
        value: &KeyValue,
    ) -> Outcome<ShardId> {
        let canonical = match catalog.owner(group, value) {
            Owner::Shard(shard) => return Ok(shard),
            Owner::Nowhere => return Err(nowhere()),
            Owner::Unassigned(canonical) => canonical,
        };
        let assign = Call::to("assign").with(group).with(&canonical);
        let home = self.home();
        let copying = self.is_copying(home);
        // A group that this transaction has made is seen by nobody else. Otherwise the value is
        // committed at once: who asks for it next must not wait for this transaction.
        let made_here = self.transaction.catalog.is_some();
        if made_here && copying {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!("the value \"{canonical}\" of the shard key has no shard yet"),
            )
            .detail("This transaction has changed tables, so only it could give one, and it is copying.")
            .hint("Commit before COPY.")
            .into());
        }
        let shard = if made_here || !self.transaction.is_open() && !copying {
            self.call_value(home, &assign).await?
        } else {
            self.call_apart(&assign).await?
        };
        let shard = shard.and_then(|shard| shard.parse().ok());
        shard.ok_or_else(nowhere)
    }

    fn is_copying(&self, shard: ShardId) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.server.shard_id() == shard && link.server.copying)
    }
}

fn not_again() -> Failure {
    Report::error(
        sqlstate::INTERNAL_ERROR,
        "the statement could not be planned again",
    )
    .into()
}

pub fn timed_out() -> Failure {
    Report::error(
        sqlstate::QUERY_CANCELED,
        "canceling statement due to statement timeout",
    )
    .into()
}

/// Ends when a limit is over; without one, never.
pub async fn over(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// The shard that owns a key in a colocation group. Rows without a key, where the column allows
/// them, are at home. `None`: a value of a directory that the snapshot does not have.
pub fn shard_of(catalog: &Catalog, group: u32, value: &KeyValue) -> Outcome<Option<ShardId>> {
    match catalog.owner(group, value) {
        Owner::Shard(shard) => Ok(Some(shard)),
        Owner::Unassigned(_) => Ok(None),
        Owner::Nowhere => Err(nowhere()),
    }
}

/// The one shard of a group.
pub fn whole_of(catalog: &Catalog, group: u32) -> Outcome<ShardId> {
    catalog.whole(group).ok_or_else(nowhere)
}

/// The answer to who may not place a value: the same as for a value that has a place.
pub fn denied(failure: Failure, table: &str) -> Failure {
    if failure.sqlstate() != sqlstate::INSUFFICIENT_PRIVILEGE {
        return failure;
    }
    Report::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        format!("permission denied for table {table}"),
    )
    .into()
}

fn nowhere() -> Failure {
    Report::error(
        sqlstate::INTERNAL_ERROR,
        "the catalog has no shard for a value of the shard key",
    )
    .into()
}

/// A key's value, if it can be read with certainty.
pub fn read_key(
    key_type: KeyType,
    source: &KeySource,
    request: &Request<'_>,
    types: Option<&[u32]>,
) -> Option<KeyValue> {
    match source {
        KeySource::Null => Some(KeyValue::Null),
        KeySource::Constant(text) => key::from_text(key_type, text),
        KeySource::Literal { slot, negated } => {
            let literal = request.literals.get(*slot)?;
            let text = literal.unquoted(request.whole);
            match (literal.class, negated) {
                (LiteralClass::Number, _) => None,
                (LiteralClass::Integer, true) => key::from_text(key_type, &format!("-{text}")),
                (LiteralClass::String, true) => None,
                (LiteralClass::Integer | LiteralClass::String, false) => {
                    key::from_text(key_type, &text)
                }
            }
        }
        KeySource::Parameter { index, type_unsure } => {
            parameter_key(key_type, *index, *type_unsure, request.bound?, types)
        }
        KeySource::Expression(_) => None,
    }
}

fn parameter_key(
    key_type: KeyType,
    index: usize,
    type_unsure: bool,
    bound: &Bound,
    types: Option<&[u32]>,
) -> Option<KeyValue> {
    let declared = bound.types.get(index).copied().filter(|oid| *oid != 0);
    let described = types
        .and_then(|types| types.get(index).copied())
        .filter(|oid| *oid != 0);
    let type_oid = match declared.or(described) {
        Some(oid) => Some(oid),
        None if type_unsure => return None,
        None => None,
    };
    if index >= bound.bind.parameter_count() {
        return None;
    }
    let Some(bytes) = bound.bind.value(index) else {
        return Some(KeyValue::Null);
    };
    if bound.bind.is_binary(index) {
        let type_oid = type_oid.or_else(|| key::native_oid(key_type, bytes.len()))?;
        return key::from_binary(key_type, type_oid, bytes);
    }
    if type_oid.is_some_and(|oid| !key::accepts_text_of(key_type, oid)) {
        return None;
    }
    key::from_text(key_type, std::str::from_utf8(bytes).ok()?)
}
