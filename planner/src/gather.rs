//! The gather tier: which rows come to the home shard, and the statement over them.
//!
//! Only names are changed in the client's text: a distributed table's to that of a temporary
//! table with its rows, a view's to the view's own text in brackets. The proxy's own views become a
//! query of a setting that has their rows: they can be read where nothing can be written.

use std::collections::{BTreeMap, HashMap, HashSet};

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::{Analysis, CLIENT_TEXT, Filter, Naming, Occurrence, Reference, WholeRow},
    catalog::{Column, Placement, QualifiedName, Relation},
    clock, holes, parse,
    plan::{Fetch, FetchSource, Gather, PlanError, ProxyView, ShardSet, Template},
    route,
    route::Statement,
    scatter::clauses::{self, Base, Span},
    scope::Found,
    splice::{Edits, Source},
    sql::{identifier, qualified},
    tree::{self, Child},
    views::Views,
};

/// A place in a text that names something: text and byte offset.
type Place = (usize, usize);

/// The gather plan of a statement. The target of a write on the home shard stays as it is.
pub(crate) fn gather(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    reason: String,
) -> Result<Gather, PlanError> {
    let fetched = fetch_all(statement, analysis, views)?;
    Ok(Gather {
        fetches: fetched.list,
        statement: clock::one_time(&fetched.text).ok_or_else(not_rewritable)?,
        reason,
    })
}

/// Fetches all that is not on the home shard.
pub(crate) fn fetch_all(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
) -> Result<Fetched, PlanError> {
    refuse(analysis)?;
    let elsewhere = |index: usize| {
        let found = analysis.occurrences[index].found;
        found.distributed().is_some() || matches!(found, Found::Proxy(_))
    };
    fetch(statement, analysis, views, &elsewhere, &[])
}

/// Relations that are read from temporary tables, and the statement over those.
pub(crate) struct Fetched {
    /// What is fetched.
    pub(crate) list: Vec<Fetch>,
    /// For each of those, the occurrences that it stands for.
    pub(crate) occurrences: Vec<Vec<usize>>,
    /// The statement.
    pub(crate) text: String,
}

/// Fetches what stands at the chosen occurrences, and replaces parts of the client's text.
pub(crate) fn fetch(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    chosen: &dyn Fn(usize) -> bool,
    replaced: &[(Span, String)],
) -> Result<Fetched, PlanError> {
    let mut fetches = Fetches::default();
    let whole = whole_relations(analysis);
    let places = place_counts(analysis);
    let tested = tested_elsewhere(statement, analysis, &places, chosen);
    for (index, one) in analysis.occurrences.iter().enumerate() {
        let place = (one.text, location(one.range)?);
        if one.written || !chosen(index) || fetches.at.contains_key(&place) {
            continue;
        }
        let needed = match one.found {
            Found::Proxy(view) => Needed::of_view(view),
            Found::Known(relation) | Found::Unread(relation) => {
                let once = places.get(&place) == Some(&1);
                // A gather keeps the client's literals in its text, so it is never reused for others.
                let shards = if once || route::is_whole(relation) {
                    route::shards(statement, analysis, index).0
                } else {
                    ShardSet::All
                };
                let all = whole.contains(&relation.name);
                Needed::of_table(relation, one, analysis, all, &tested.names, shards)
            }
            Found::Home => continue,
        };
        fetches.add(place, needed);
    }
    if let (Some(name), false) = (&analysis.doubtful_row, fetches.list.is_empty()) {
        return Err(doubtful(name));
    }
    let mut rewriter = Rewriter {
        analysis,
        views,
        fetches: &fetches,
        tested: &tested.spans,
        replaced,
        depth: 0,
    };
    let text = rewriter.rewrite(CLIENT_TEXT, statement.text, statement.span)?;
    let budget = statement.context.budget;
    if !budget.has_room_for(&text) || parse::parse_one(&text).is_none() {
        return Err(not_rewritable());
    }
    let mut occurrences = vec![Vec::new(); fetches.list.len()];
    for (index, one) in analysis.occurrences.iter().enumerate() {
        let temp = fetches.at.get(&(one.text, location(one.range)?));
        let at = temp.and_then(|temp| fetches.list.iter().position(|f| f.temp_table == *temp));
        if let (Some(at), false) = (at, one.written) {
            occurrences[at].push(index);
        }
    }
    Ok(Fetched {
        list: fetches.list,
        occurrences,
        text,
    })
}

/// Conditions as one.
pub(crate) fn conditions(filters: &[Filter<'_>]) -> String {
    let all: Vec<&str> = filters.iter().map(|filter| filter.sql.as_str()).collect();
    all.join(" AND ")
}

/// Conditions that rows meet when they arrive, and what is needed without them.
struct Tested<'a> {
    spans: Vec<Span>,
    /// How often each column's name is used elsewhere.
    names: HashMap<&'a str, usize>,
}

/// Finds the text of conditions that are tested where rows are: it is not needed any more, and
/// columns that only it uses are not fetched.
fn tested_elsewhere<'a>(
    statement: &Statement<'_>,
    analysis: &'a Analysis<'_>,
    places: &BTreeMap<Place, usize>,
    chosen: &dyn Fn(usize) -> bool,
) -> Tested<'a> {
    let names = analysis
        .names
        .iter()
        .map(|(name, uses)| (name.as_str(), *uses));
    let mut tested = Tested {
        spans: Vec::new(),
        names: names.collect(),
    };
    let base = Base {
        source: statement.source(),
        literals: Vec::new(),
        budget: statement.context.budget,
    };
    for (index, one) in analysis.occurrences.iter().enumerate() {
        let once = location(one.range).is_ok_and(|at| places.get(&(one.text, at)) == Some(&1));
        if !chosen(index) || one.written || one.text != CLIENT_TEXT || !once {
            continue;
        }
        for filter in &one.filters {
            let Some(node) = filter.node else {
                continue;
            };
            let Some(span) = clauses::extent(&base, statement.span, node) else {
                continue;
            };
            tested.spans.push(span);
            tree::walk(node, &mut |child| {
                if let Child::Node(NodeEnum::ColumnRef(column)) = child {
                    for name in tree::strings(&column.fields) {
                        if let Some(uses) = tested.names.get_mut(name) {
                            *uses = uses.saturating_sub(1);
                        }
                    }
                }
            });
        }
    }
    tested
}

fn refuse(analysis: &Analysis<'_>) -> Result<(), PlanError> {
    let distributed = |one: &&Occurrence<'_>| {
        one.found.distributed().is_some() || matches!(one.found, Found::Proxy(_))
    };
    if analysis.strange {
        return Err(PlanError::unsupported(
            "the statement has parts that are not supported over several shards",
        )
        .hint("Restrict every distributed table in it to one shard key by equality."));
    }
    if let Some(column) = &analysis.traits.system_column {
        return Err(PlanError::unsupported(format!(
            "system column \"{column}\" is not supported over several shards"
        ))
        .detail("Rows of different shards have system columns of their own.")
        .hint("Restrict every distributed table in it to one shard key by equality."));
    }
    if let Some(one) = analysis
        .occurrences
        .iter()
        .filter(distributed)
        .find(|one| one.sampled)
    {
        return Err(PlanError::unsupported(format!(
            "TABLESAMPLE of \"{}\" is not supported over several shards",
            one.range.relname
        ))
        .hint("Use ORDER BY random() LIMIT n."));
    }
    Ok(())
}

fn not_rewritable() -> PlanError {
    PlanError::unsupported("the statement cannot be rewritten to run over several shards")
        .detail("It names a distributed table or a view in a way that is not understood.")
        .hint("Restrict every distributed table in it to one shard key by equality.")
}

fn doubtful(name: &str) -> PlanError {
    PlanError::unsupported(format!("\"{name}\" may be a row or a column"))
        .detail("The columns of a function or of a table in FROM are not known.")
        .hint("List the columns of the row.")
}

fn location(range: &protobuf::RangeVar) -> Result<usize, PlanError> {
    usize::try_from(range.location).map_err(|_| not_rewritable())
}

/// Tables of which some occurrence needs all columns.
fn whole_relations(analysis: &Analysis<'_>) -> HashSet<QualifiedName> {
    let whole = analysis.occurrences.iter().filter(|one| one.whole);
    whole
        .filter_map(|one| match one.found {
            Found::Known(relation) => Some(relation.name.clone()),
            Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
        })
        .collect()
}

/// How often each place was looked at: a CTE or view that is used twice counts its places twice,
/// and what is known about one use is not known about the other.
fn place_counts(analysis: &Analysis<'_>) -> BTreeMap<Place, usize> {
    let mut counts = BTreeMap::new();
    for one in &analysis.occurrences {
        if let Ok(location) = location(one.range) {
            *counts.entry((one.text, location)).or_insert(0) += 1;
        }
    }
    counts
}

/// What one occurrence needs.
struct Needed {
    relation: QualifiedName,
    from: FetchSource,
    columns: Vec<(String, String)>,
    select: Template,
    binary: bool,
    primary_key: Option<String>,
    /// Columns may be meant to depend on the primary key.
    needs_key: bool,
}

impl Needed {
    fn of_view(view: ProxyView) -> Needed {
        let columns = view.columns().iter();
        Needed {
            relation: QualifiedName {
                schema: view.schema().into(),
                name: view.name().into(),
            },
            from: FetchSource::Proxy(view),
            columns: columns
                .map(|(name, sql_type)| ((*name).to_owned(), (*sql_type).to_owned()))
                .collect(),
            select: Template::new(),
            binary: false,
            primary_key: None,
            needs_key: false,
        }
    }

    fn of_table(
        relation: &Relation,
        one: &Occurrence<'_>,
        analysis: &Analysis<'_>,
        whole: bool,
        names: &HashMap<&str, usize>,
        shards: ShardSet,
    ) -> Needed {
        let mut columns: Vec<&Column> = relation
            .columns
            .iter()
            .filter(|column| {
                whole
                    || names
                        .get(column.name.as_str())
                        .is_some_and(|uses| *uses > 0)
            })
            .collect();
        if columns.is_empty() {
            let key = |column: &&Column| match &relation.placement {
                Placement::Distributed { key, .. } => column.name == *key,
                Placement::Local | Placement::Reference | Placement::Schema { .. } => true,
            };
            columns.extend(relation.columns.iter().find(key));
        }
        let names: Vec<String> = columns
            .iter()
            .map(|column| identifier(&column.name))
            .collect();
        // A local table can have children, whose rows ONLY leaves out.
        let only = if one.range.inh { "" } else { "ONLY " };
        let mut select = format!(
            "SELECT {} FROM {only}{}",
            names.join(", "),
            qualified(&relation.name)
        );
        if !one.filters.is_empty() {
            select.push_str(&format!(" WHERE {}", conditions(&one.filters)));
        }
        let has = |name: &String| columns.iter().any(|column| column.name == *name);
        let key = &relation.primary_key;
        let primary_key = (!key.is_empty() && key.iter().all(has)).then(|| {
            key.iter()
                .map(|name| identifier(name))
                .collect::<Vec<_>>()
                .join(", ")
        });
        Needed {
            relation: relation.name.clone(),
            from: FetchSource::Shards(match relation.placement {
                Placement::Distributed { .. } | Placement::Schema { .. } => shards,
                Placement::Local | Placement::Reference => ShardSet::Home,
            }),
            columns: columns
                .iter()
                .map(|column| {
                    (
                        column.name.clone(),
                        format!("{}{}", column.sql_type, column.collate),
                    )
                })
                .collect(),
            select: holes::template(&select),
            binary: columns.iter().all(|column| column.portable_binary),
            primary_key,
            needs_key: analysis.groups,
        }
    }
}

/// All fetches; occurrences with the same needs share one.
#[derive(Default)]
struct Fetches {
    list: Vec<Fetch>,
    at: BTreeMap<Place, String>,
}

impl Fetches {
    fn add(&mut self, place: Place, needed: Needed) {
        let shared = self.list.iter().find(|fetch| {
            fetch.relation == needed.relation
                && fetch.select == needed.select
                && fetch.from == needed.from
        });
        if let Some(fetch) = shared {
            self.at.insert(place, fetch.temp_table.clone());
            return;
        }
        let temp_table = format!("a67_g{}", self.list.len() + 1);
        let columns: Vec<String> = needed
            .columns
            .iter()
            .map(|(name, definition)| format!("{} {definition}", identifier(name)))
            .collect();
        let primary_key = needed
            .primary_key
            .map(|key| format!("ALTER TABLE pg_temp.{temp_table} ADD PRIMARY KEY ({key})"));
        self.list.push(Fetch {
            relation: needed.relation,
            from: needed.from.clone(),
            create: match needed.from {
                FetchSource::Proxy(_) => Template::new(),
                FetchSource::Shards(_) => holes::template(&format!(
                    "CREATE TEMPORARY TABLE {temp_table} ({}) ON COMMIT DROP",
                    columns.join(", ")
                )),
            },
            select: needed.select,
            columns: needed.columns.into_iter().map(|(name, _)| name).collect(),
            binary: needed.binary,
            primary_key,
            needs_key: needed.needs_key,
            temp_table: temp_table.clone(),
        });
        self.at.insert(place, temp_table);
    }
}

/// Changes names in texts.
struct Rewriter<'r, 't> {
    analysis: &'r Analysis<'t>,
    views: &'r Views<'t>,
    fetches: &'r Fetches,
    /// Conditions of the client's text that rows were tested by where they come from.
    tested: &'r [Span],
    /// Parts of the client's text that something else stands for.
    replaced: &'r [(Span, String)],
    depth: usize,
}

/// Views inside views.
const VIEW_DEPTH_MAX: usize = 50;

impl Rewriter<'_, '_> {
    fn rewrite(
        &mut self,
        number: usize,
        text: &str,
        span: (usize, usize),
    ) -> Result<String, PlanError> {
        self.depth += 1;
        if self.depth > VIEW_DEPTH_MAX {
            return Err(not_rewritable());
        }
        let source = Source::new(text);
        let mut edits = Edits::default();
        let mut renamed: HashSet<String> = HashSet::new();
        for (index, one) in self.analysis.occurrences.iter().enumerate() {
            if one.text != number {
                continue;
            }
            let at = location(one.range)?;
            if let (Some(temp), false) = (self.fetches.at.get(&(number, at)), one.written) {
                renamed.insert(one.range.relname.clone());
                let replacement = match one.found {
                    Found::Proxy(view) => rows_of_setting(view),
                    Found::Known(_) | Found::Unread(_) | Found::Home => format!("pg_temp.{temp}"),
                };
                let alias = self.alias(index);
                replace_relation(&source, &mut edits, one.range, replacement, &alias)?;
            }
        }
        let uses = self
            .analysis
            .view_uses
            .iter()
            .filter(|one| one.text == number);
        let mut expanded: HashSet<usize> = HashSet::new();
        for one in uses {
            if !self.reads_elsewhere(one.view) || !expanded.insert(location(one.range)?) {
                continue;
            }
            renamed.insert(one.range.relname.clone());
            let definition = self.views.text(one.view);
            let inside = self.rewrite(one.view, definition, (0, definition.len()))?;
            let alias = &one.range.relname;
            replace_relation(&source, &mut edits, one.range, format!("({inside})"), alias)?;
        }
        self.edit_references(&source, &mut edits, number, &renamed)?;
        if number == CLIENT_TEXT {
            let tested = self.tested.iter().map(|span| (*span, "true".to_owned()));
            edits.replace_whole(&tested.collect::<Vec<_>>());
            edits.replace_whole(self.replaced);
        }
        self.depth -= 1;
        edits.apply(text, span).ok_or_else(not_rewritable)
    }

    fn is_fetched(&self, occurrence: usize) -> bool {
        let one = &self.analysis.occurrences[occurrence];
        location(one.range).is_ok_and(|at| self.fetches.at.contains_key(&(one.text, at)))
    }

    /// A view has to be replaced when, through others or not, it reads what is fetched.
    fn reads_elsewhere(&self, view: usize) -> bool {
        let fetched = self.analysis.occurrences.iter().any(|one| {
            one.text == view
                && location(one.range).is_ok_and(|at| self.fetches.at.contains_key(&(view, at)))
        });
        let mut inside = self
            .analysis
            .view_uses
            .iter()
            .filter(|one| one.text == view);
        fetched || inside.any(|one| one.view != view && self.reads_elsewhere(one.view))
    }

    /// The name that an occurrence is known by: its alias, or the table's name. Where tables of
    /// two schemas have one name, that of a temporary table could be meant for either.
    fn alias(&self, occurrence: usize) -> String {
        let one = &self.analysis.occurrences[occurrence];
        if let Some(alias) = &one.range.alias {
            return alias.aliasname.clone();
        }
        if self.has_namesake(occurrence) {
            let schema = match one.found {
                Found::Known(relation) | Found::Unread(relation) => relation.name.schema.as_str(),
                Found::Proxy(_) | Found::Home => one.range.schemaname.as_str(),
            };
            return format!("{schema}.{}", one.range.relname);
        }
        one.range.relname.clone()
    }

    /// A whole row with the type that it has in Postgres; `None` where it has that already.
    fn whole_row(&self, whole: WholeRow) -> Result<Option<String>, PlanError> {
        match whole {
            WholeRow::Relation(occurrence) => {
                let one = &self.analysis.occurrences[occurrence];
                let relation = match one.found {
                    Found::Known(relation) | Found::Unread(relation)
                        if !one.written && self.is_fetched(occurrence) =>
                    {
                        Some(relation)
                    }
                    _ => None,
                };
                let row = |relation| row_of_table(one.range, &self.alias(occurrence), relation);
                relation.map(row).transpose()
            }
            WholeRow::View(number) => {
                let one = &self.analysis.view_uses[number];
                if !self.reads_elsewhere(one.view) {
                    return Ok(None);
                }
                let alias = one.range.alias.as_ref();
                let name = alias.map_or(&one.range.relname, |alias| &alias.aliasname);
                let name = identifier(name);
                let row = format!("({name}.*)");
                Ok(Some(unless_missing(&name, &row, &one.relation.name)))
            }
        }
    }

    fn has_namesake(&self, occurrence: usize) -> bool {
        let one = &self.analysis.occurrences[occurrence];
        one.range.alias.is_none()
            && self.analysis.occurrences.iter().any(|other| {
                other.text == one.text
                    && other.range.alias.is_none()
                    && other.range.relname == one.range.relname
                    && other.range.schemaname != one.range.schemaname
            })
    }

    /// `public.users.id` -> `users.id`, and whole rows get the type of their table's rows.
    fn edit_references(
        &self,
        source: &Source<'_>,
        edits: &mut Edits,
        number: usize,
        renamed: &HashSet<String>,
    ) -> Result<(), PlanError> {
        for reference in self
            .analysis
            .references
            .iter()
            .filter(|one| one.text == number)
        {
            if let Some(whole) = reference.whole_row {
                let Some(row) = self.whole_row(whole)? else {
                    continue;
                };
                let (from, to) = source.name(reference.location).ok_or_else(not_rewritable)?;
                let name = &source.text[from..to];
                edits.replace((from, to), row_reference(reference, &row, name));
                continue;
            }
            if let Some(occurrence) = reference.table_of
                && self.has_namesake(occurrence)
                && !self.analysis.occurrences[occurrence].written
                && self.is_fetched(occurrence)
            {
                let parts = reference.qualifiers + 1;
                let span = source.qualifiers(reference.location, parts);
                let alias = format!("{}.", identifier(&self.alias(occurrence)));
                edits.replace(span.ok_or_else(not_rewritable)?, alias);
                continue;
            }
            let table = source
                .token_at(reference.location)
                .map(|first| source.spelled(first + 2 * reference.qualifiers))
                .map(folded)
                .ok_or_else(not_rewritable)?;
            if reference.qualifiers > 0 && renamed.contains(&table) {
                let span = source
                    .qualifiers(reference.location, reference.qualifiers)
                    .ok_or_else(not_rewritable)?;
                edits.replace(span, "");
            }
        }
        Ok(())
    }
}

/// A whole row where `name` stood, under that name where it names an output.
fn row_reference(reference: &Reference, row: &str, name: &str) -> String {
    match (&reference.argument_of, reference.naming) {
        // Both forms of a call give an output the function's name.
        (Some(function), _) => format!("{}({row})", identifier(function)),
        (None, Naming::Whole) => format!("{row} AS {name}"),
        // Of a subquery in an expression an output has the name, of CASE it has not.
        (None, Naming::Part) => format!("(SELECT {row} AS {name})"),
        (None, Naming::Inside | Naming::Labelled) => row.to_owned(),
    }
}

/// The rows of a view of the proxy's, from the setting that the session puts them in.
fn rows_of_setting(view: ProxyView) -> String {
    let columns: Vec<String> = view
        .columns()
        .iter()
        .map(|(name, sql_type)| format!("{} {sql_type}", identifier(name)))
        .collect();
    format!(
        "(SELECT * FROM pg_catalog.json_to_recordset(pg_catalog.current_setting('{}')\
         ::pg_catalog.json) AS a67_rows({}))",
        view.setting(),
        columns.join(", ")
    )
}

/// Puts a relation's replacement where its name stands, under the name it is known by.
fn replace_relation(
    source: &Source<'_>,
    edits: &mut Edits,
    range: &protobuf::RangeVar,
    mut replacement: String,
    alias: &str,
) -> Result<(), PlanError> {
    let at = location(range)?;
    let (from, mut to) = source.name(at).ok_or_else(not_rewritable)?;
    let first = source.token_at(from).ok_or_else(not_rewritable)?;
    let behind = source.token_from(to);
    let subquery = replacement.starts_with('(');
    // `t *` says what is the default anyway. A subquery takes neither that nor ONLY.
    if source.spelled(behind) == "*" && subquery {
        to = source.tokens[behind].end;
    }
    let only = !range.inh;
    if only && subquery {
        let bracketed = first > 0 && source.is_mark(first - 1, '(');
        let word = first.checked_sub(if bracketed { 2 } else { 1 });
        let word = word.filter(|word| source.is_word(*word, "only"));
        let word = word.ok_or_else(not_rewritable)?;
        let token = source.tokens[word];
        edits.replace((token.start, token.end), "");
        if bracketed {
            return Err(not_rewritable());
        }
    }
    if range.alias.is_none() {
        let alias = format!(" AS {}", identifier(alias));
        let bracketed = only && first > 0 && source.is_mark(first - 1, '(');
        if bracketed || source.spelled(source.token_from(to)) == "*" {
            // `ONLY (t)`, `t *`: the alias goes behind that.
            let end = source
                .tokens
                .get(source.token_from(to))
                .ok_or_else(not_rewritable)?
                .end;
            edits.replace((end, end), alias);
        } else {
            replacement.push_str(&alias);
        }
    }
    edits.replace((from, to), replacement);
    spell_out_table(source, edits, first);
    Ok(())
}

/// `TABLE t` is `SELECT * FROM t`, but takes no alias. `name` is the token of the relation's name.
fn spell_out_table(source: &Source<'_>, edits: &mut Edits, name: usize) {
    let before = |token: usize| token.checked_sub(1);
    let mut word = before(name);
    if let Some(at) = word.filter(|at| source.is_mark(*at, '(')) {
        word = before(at).filter(|at| source.is_word(*at, "only"));
    }
    if let Some(at) = word.filter(|at| source.is_word(*at, "only")) {
        word = before(at);
    }
    if let Some(at) = word.filter(|at| source.is_word(*at, "table")) {
        let token = source.tokens[at];
        edits.replace((token.start, token.end), "SELECT * FROM");
    }
}

/// An identifier as Postgres stores it.
pub(crate) fn folded(spelled: &str) -> String {
    match spelled
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'))
    {
        Some(inner) => inner.replace("\"\"", "\""),
        None => spelled.to_ascii_lowercase(),
    }
}

/// A row of a temporary table as a row of the table it stands for.
fn row_of_table(
    range: &protobuf::RangeVar,
    alias: &str,
    relation: &Relation,
) -> Result<String, PlanError> {
    let renamed = |alias: &protobuf::Alias| !alias.colnames.is_empty();
    if range.alias.as_ref().is_some_and(renamed) {
        return Err(PlanError::unsupported(
            "whole rows of a distributed table with renamed columns are not supported over several shards",
        )
        .hint("List the columns."));
    }
    let name = identifier(alias);
    let columns: Vec<String> = relation
        .columns
        .iter()
        .map(|column| format!("{name}.{}", identifier(&column.name)))
        .collect();
    Ok(unless_missing(
        &name,
        &format!("ROW({})", columns.join(", ")),
        &relation.name,
    ))
}

/// On the nullable side of an outer join there may be no row; one that has only nulls is not that.
fn unless_missing(name: &str, row: &str, row_type: &QualifiedName) -> String {
    format!(
        "CASE WHEN ({name}.*) IS DISTINCT FROM NULL THEN {row}::{} END",
        qualified(row_type)
    )
}
