//! Sizes, row estimates and counters of distributed tables: the sums over their shards.
//!
//! A statement that reads them from the catalogs runs on the home shard, with its own words but for
//! those numbers. Every shard is asked first for its own numbers of distributed tables and their
//! indexes, by name, as each server has its own OIDs. A reference table counts once: its copy on the
//! home shard is what one Postgres would have.

use std::collections::HashSet;

use pg_query::{
    NodeEnum,
    protobuf::{self, SetOperation},
};

use crate::{
    analysis::{self, Analysis, CLIENT_TEXT, Occurrence},
    builtins::{self, Kind, Rows},
    catalog::{Catalog, Placement, QualifiedName, Relation},
    functions::output_name,
    holes,
    own_schemas::{self, OwnSchemas},
    plan::{Combine, Memo, Piece, Plan, PlanError, Scatter, ShardSet},
    route::Statement,
    scope::{self, Found},
    sequences,
    splice::{Edits, Source},
    sql::{identifier, literal},
    statement::Draft,
    tree::{self, Child, inner, nodes, strings},
    views::Views,
};

mod numbers;

/// The plan of a SELECT that reads such numbers of distributed tables; `None` for any other.
pub(crate) fn summed(statement: &Statement<'_>) -> Result<Option<Draft>, PlanError> {
    let text = statement.own_text();
    // Every function and relation that is meant has it in its name.
    let may = text.to_ascii_lowercase().contains("pg_");
    let NodeEnum::SelectStmt(_) = statement.node else {
        return Ok(None);
    };
    let through_views = names_number_view(statement);
    if !(may || through_views) || !has_parts(statement.catalog) {
        return Ok(None);
    }
    let views = Views::load(statement.catalog, statement.context, statement.node)?;
    let analysis = analysis::analyse(statement.catalog, statement.context, &views, statement.node)?;
    if !runs_at_home(&analysis) {
        return Ok(None);
    }
    match through_views {
        true => Ok(through_number_views(statement, &analysis)),
        false => Ok(plan(statement, &analysis)),
    }
}

/// The same with the texts of views in their places.
fn through_number_views(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<Draft> {
    if !numbers::are_read(statement.catalog, analysis) {
        return None;
    }
    let text = numbers::expand(statement, analysis)?;
    let node = crate::parse::parse_one(&text)?;
    let expanded = statement.rewritten(&text, &node);
    let mut draft = summed(&expanded).ok()??;
    draft.session.through_views = true;
    draft.session.expands_views = true;
    Some(draft)
}

fn names_number_view(statement: &Statement<'_>) -> bool {
    if !statement.catalog.has_number_views {
        return false;
    }
    let mut found = false;
    tree::walk(statement.node, &mut |child| {
        if let Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) = child {
            found |= scope::find_known(statement.catalog, statement.context, range)
                .is_some_and(|relation| relation.reads_numbers);
        }
    });
    found
}

/// The error for a statement that reads a view by which it would be told one shard's number as the
/// whole.
fn refuse_number_views(catalog: &Catalog, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    if !catalog.has_number_views || !has_parts(catalog) || !numbers::are_read(catalog, analysis) {
        return Ok(());
    }
    Err(PlanError::unsupported(
        "a view that reads sizes, estimates or counters is not supported in this statement over several shards",
    )
    .detail("Every shard has its own numbers, and the sums of them are made only for a SELECT that reads system catalogs, local tables and such views.")
    .hint("Ask for them in a SELECT of its own that names the columns it wants, or read the system catalog itself."))
}

/// The error for a statement over several shards that would tell one shard's number as the whole.
pub(crate) fn refuse(catalog: &Catalog, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    refuse_number_views(catalog, analysis)?;
    let call = analysis.traits.sizes.first();
    let named = |one: &Occurrence<'_>| {
        let columns = builtins::summed_columns(&one.range.relname);
        let mut columns = columns.into_iter().flat_map(|(_, columns)| columns);
        columns.any(|name| analysis.names.contains_key(*name))
    };
    let mut summed = analysis.occurrences.iter().filter(|one| is_summed(one));
    let relation = summed.find(|one| named(one) || is_whole(analysis, one));
    let what = match (call, relation) {
        (Some(size), _) => format!("a call of {}", size.function),
        (None, Some(one)) if !named(one) => format!("every column of {}", one.range.relname),
        (None, Some(one)) => format!("a number of {}", one.range.relname),
        (None, None) => return Ok(()),
    };
    let path = analysis.search_path();
    let placed = |size: &Size| {
        size.distributed(catalog, path)
            .is_none_or(|list| !list.is_empty())
    };
    let only_calls = relation.is_none() && !analysis.traits.sizes.iter().any(placed);
    if only_calls || !has_parts(catalog) {
        return Ok(());
    }
    Err(PlanError::unsupported(format!(
        "{what} is not supported in this statement over several shards"
    ))
    .detail("Every shard has its own number, and the sum of them is made only for a SELECT that reads system catalogs and local tables.")
    .hint("Ask for it in a SELECT of its own that names the columns it wants; or for the share of each shard on that shard."))
}

/// Some table has rows on several servers.
fn has_parts(catalog: &Catalog) -> bool {
    catalog.shards.len() > 1 && catalog.relations.values().any(is_distributed)
}

fn is_distributed(relation: &Relation) -> bool {
    matches!(
        relation.placement,
        Placement::Distributed { .. } | Placement::Schema { .. }
    )
}

/// It has numbers of tables or indexes.
fn is_summed(one: &Occurrence<'_>) -> bool {
    matches!(one.found, Found::Home) && builtins::relation(&one.range.relname) == Some(Rows::Summed)
}

/// All of its columns are wanted: by `*`, or as a row by its name.
fn is_whole(analysis: &Analysis<'_>, one: &Occurrence<'_>) -> bool {
    let blocks = analysis.blocks.iter().enumerate();
    let mut inside = blocks.filter(|(at, _)| {
        let mut around = std::iter::successors(Some(*at), |at| analysis.blocks[*at].parent);
        around.any(|at| one.block == Some(at))
    });
    let name = name_of(one.range);
    one.whole
        || inside.any(|(_, block)| {
            let mut columns = own_columns(block.select).into_iter();
            columns.any(|column| {
                column.fields.len() == 1 && strings(&column.fields).first() == Some(&name)
            })
        })
}

/// What a relation is called where it stands in FROM.
fn name_of(range: &protobuf::RangeVar) -> &str {
    let alias = range.alias.as_ref();
    alias.map_or(range.relname.as_str(), |alias| alias.aliasname.as_str())
}

/// The home shard has all that the statement reads, and it leaves nothing behind.
fn runs_at_home(analysis: &Analysis<'_>) -> bool {
    let traits = &analysis.traits;
    let elsewhere = analysis
        .occurrences
        .iter()
        .any(|one| one.found.distributed().is_some() || matches!(one.found, Found::Proxy(_)));
    let leaves = traits.writes
        || traits.pins
        || traits.set_config
        || traits.moves_sequence
        || traits.reads_sequence
        || traits.unsafe_call.is_some()
        || traits.of_no_server.is_some()
        || traits.unjudged.is_some();
    !elsewhere
        && !leaves
        && !analysis.locks
        && !analysis.writes_in_with
        && !analysis.strange
        && analysis.view_uses.is_empty()
}

/// A call that tells the size of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    /// Its name.
    pub(crate) function: String,
    /// What it is asked of, where that is a constant.
    of: Option<String>,
}

impl Size {
    pub(crate) fn of(call: &protobuf::FuncCall) -> Size {
        Size {
            function: strings(&call.funcname)
                .last()
                .map_or_else(String::new, |name| (*name).to_owned()),
            of: crate::insert::sequence_argument(call),
        }
    }

    /// The distributed tables that it is asked of; `None` if that is not known.
    fn distributed<'c>(&self, catalog: &'c Catalog, path: &[String]) -> Option<Vec<&'c Relation>> {
        if self.function == DATABASE_SIZE {
            return None;
        }
        let (schema, name) = sequences::parse_name(self.of.as_deref()?)?;
        let relation = catalog.resolve(path, schema.as_deref(), &name)?;
        Some(
            Some(relation)
                .into_iter()
                .filter(|one| is_distributed(one))
                .collect(),
        )
    }
}

const DATABASE_SIZE: &str = "pg_database_size";

/// A number that every shard has of a table or an index, as a shard is asked for it.
struct Measure {
    /// Over `c`, a row of pg_class, and the relation's own row of a view.
    of_relation: String,
    /// The shard's own, which belongs to no relation.
    of_server: bool,
    sql_type: &'static str,
}

/// What is put together for a statement.
struct Sums<'s, 'a> {
    statement: &'s Statement<'a>,
    source: Source<'a>,
    measures: Vec<Measure>,
    /// Views that measures are read from, and the columns that name their relation.
    views: Vec<(&'static str, &'static str)>,
    edits: Edits,
    /// Where relations stand that a subquery has taken the place of.
    replaced: HashSet<i32>,
    found: bool,
    /// The tables that are asked about; `None` for all.
    tables: Option<HashSet<QualifiedName>>,
}

fn plan(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<Draft> {
    let mut sums = Sums {
        statement,
        source: statement.source(),
        measures: Vec::new(),
        views: Vec::new(),
        edits: Edits::default(),
        replaced: HashSet::new(),
        found: false,
        tables: Some(HashSet::new()),
    };
    sums.calls()?;
    sums.columns(analysis)?;
    if !sums.found {
        return None;
    }
    if statement.context.own_schemas == OwnSchemas::Hidden {
        // Where it is not certain how, they are shown.
        let _ = own_schemas::replace(statement, analysis, Some(&sums.replaced), &mut sums.edits);
    }
    let question = sums.question();
    let text = sums.edits.apply(statement.text, statement.span)?;
    crate::parse::parse_one(&text)?;
    let pieces = holes::in_last(vec![Piece::Text(text)]);
    let scatter = Scatter {
        moves: Vec::new(),
        others: Vec::new(),
        shards: ShardSet::All,
        statement: vec![Piece::Text(question)],
        combine: Combine::Final(pieces),
        reason: "every shard has a part of what is measured".to_owned(),
        memo: Memo::default(),
        choice: Memo::default(),
    };
    Some(Draft::new(Plan::Scatter(scatter), "select"))
}

impl<'a> Sums<'_, 'a> {
    // ---- calls ----

    /// `pg_table_size(x)`. `None`: one of them is not understood.
    fn calls(&mut self) -> Option<()> {
        let mut calls = Vec::new();
        tree::walk(self.statement.node, &mut |child| {
            if let Child::Node(NodeEnum::FuncCall(call)) = child {
                let names = strings(&call.funcname);
                let name = names.last().copied().unwrap_or("");
                if builtins::function(name, call.args.len()) == Some(Kind::Size) {
                    calls.push(call);
                }
            }
        });
        calls.into_iter().try_for_each(|call| self.call(call))
    }

    fn call(&mut self, call: &protobuf::FuncCall) -> Option<()> {
        let size = Size::of(call);
        let path = self.statement.context.search_path;
        let asked = size.distributed(self.statement.catalog, path);
        if asked.as_ref().is_some_and(Vec::is_empty) {
            return Some(());
        }
        match (asked, &mut self.tables) {
            (Some(list), Some(tables)) => tables.extend(list.iter().map(|one| one.name.clone())),
            (None, tables) if size.function != DATABASE_SIZE => *tables = None,
            (_, _) => {}
        }
        let (whole, argument, rest) = self.call_text(call)?;
        let span = whole;
        let whole = self.statement.text.get(whole.0..whole.1)?;
        let name = identifier(&size.function);
        let server = size.function == DATABASE_SIZE;
        let rows = holes::rows();
        let column = self.measure(Measure {
            of_relation: match server {
                true => "pg_catalog.pg_database_size(pg_catalog.current_database())".to_owned(),
                false => format!("pg_catalog.{}(c.oid{rest})", size.function),
            },
            of_server: server,
            sql_type: "bigint",
        });
        let replacement = if server {
            format!(
                "(SELECT CASE WHEN ({argument})::text IN (pg_catalog.current_database()::text, \
                 (SELECT a67_d.oid::text FROM pg_catalog.pg_database a67_d WHERE a67_d.datname = pg_catalog.current_database())) \
                 THEN (SELECT pg_catalog.sum(a67.c{column})::bigint FROM {rows} WHERE a67.c1 = '') \
                 ELSE {whole} END AS {name})"
            )
        } else {
            format!(
                "(SELECT coalesce((SELECT pg_catalog.sum(a67.c{column})::bigint FROM {rows} \
                 WHERE pg_catalog.to_regclass(a67.c1) = ({argument})::regclass), {whole}) AS {name})"
            )
        };
        self.edits.replace(span, replacement);
        self.found = true;
        Some(())
    }

    /// The bytes of a call, its first argument, and the others with the comma before them.
    fn call_text(&self, call: &protobuf::FuncCall) -> Option<((usize, usize), &'a str, &'a str)> {
        let location = usize::try_from(call.location).ok()?;
        let span = self.source.call(location)?;
        let (_, name_end) = self.source.name(location)?;
        let open = self.source.token_from(name_end);
        let close = self.source.closing(open)?;
        let depth = self.source.tokens[open].depth + 1;
        let comma = (open + 1..close)
            .find(|at| self.source.is_mark(*at, ',') && self.source.tokens[*at].depth == depth);
        let first_end = comma.map_or(self.source.tokens[close].start, |at| {
            self.source.tokens[at].start
        });
        let from = self.source.tokens.get(open)?.end;
        let text: &'a str = self.statement.text;
        let argument = text.get(from..first_end)?;
        let rest = text.get(first_end..self.source.tokens[close].start)?;
        let plain = nodes(&call.args).all(|node| !matches!(node, NodeEnum::NamedArgExpr(_)));
        let constants = nodes(&call.args)
            .skip(1)
            .all(|node| matches!(node, NodeEnum::AConst(_)));
        // Beside the shards' numbers, these names would mean their columns.
        let hidden = (open + 1..close).any(|at| is_ours(self.source.spelled(at)));
        (plain && constants && !hidden && !call.func_variadic).then_some((span, argument, rest))
    }

    /// The number of a column of what the shards give.
    fn measure(&mut self, measure: Measure) -> usize {
        let known = self
            .measures
            .iter()
            .position(|known| known.of_relation == measure.of_relation);
        let at = known.unwrap_or_else(|| {
            self.measures.push(measure);
            self.measures.len() - 1
        });
        // The first is the relation's name.
        at + 2
    }

    // ---- columns ----

    /// `reltuples`, `n_live_tup` and the like. `None`: it cannot be said whose one of them is.
    fn columns(&mut self, analysis: &Analysis<'_>) -> Option<()> {
        for one in analysis.occurrences.iter().filter(|one| is_summed(one)) {
            if one.text == CLIENT_TEXT && is_whole(analysis, one) {
                self.whole(one.range)?;
            }
        }
        for (index, block) in analysis.blocks.iter().enumerate() {
            if block.text != CLIENT_TEXT || block.select.op() > SetOperation::SetopNone {
                continue;
            }
            for column in own_columns(block.select) {
                self.column(analysis, index, column)?;
            }
        }
        Some(())
    }

    /// `pg_class c` where all columns of `c` are wanted: in its place stands a subquery with the same
    /// columns. (System columns are not among them.)
    fn whole(&mut self, range: &protobuf::RangeVar) -> Option<()> {
        let (key, columns) = builtins::summed_columns(&range.relname)?;
        let view = self.view(&range.relname, key);
        let number = self.measure(Measure {
            of_relation: format!("pg_catalog.to_jsonb({view})"),
            of_server: false,
            sql_type: "jsonb",
        });
        // Older servers lack some of them: a field that the row has not is left out.
        let fields: Vec<String> = columns
            .iter()
            .map(|name| {
                let value = format!("(a67.c{number}->>{})::double precision", literal(name));
                format!(
                    "{}, {}",
                    literal(name),
                    sum_of(&range.relname, name, &value)
                )
            })
            .collect();
        let location = usize::try_from(range.location).ok()?;
        let span = self.source.name(location)?;
        let relation = self.statement.text.get(span.0..span.1)?;
        let alias = match range.alias {
            Some(_) => String::new(),
            None => format!(" {}", identifier(&range.relname)),
        };
        let rows = holes::rows();
        let seen = own_schemas::condition(self.statement, range, "a67_v")
            .map_or(String::new(), |condition| format!(" WHERE {condition}"));
        let replacement = format!(
            "(SELECT a67_w.* FROM {relation} a67_v, LATERAL (SELECT pg_catalog.jsonb_build_object({}) AS sums FROM {rows} \
             WHERE pg_catalog.to_regclass(a67.c1) = a67_v.{key} HAVING pg_catalog.count(*) > 0 \
             UNION ALL SELECT '{{}}' LIMIT 1) a67_s, \
             LATERAL pg_catalog.jsonb_populate_record(a67_v, a67_s.sums) a67_w{seen}){alias}",
            fields.join(", ")
        );
        self.edits.replace(span, replacement);
        self.replaced.insert(range.location);
        self.tables = None;
        self.found = true;
        Some(())
    }

    fn column(
        &mut self,
        analysis: &Analysis<'_>,
        block: usize,
        column: &protobuf::ColumnRef,
    ) -> Option<()> {
        let names = strings(&column.fields);
        let Some(name) = names.last().copied() else {
            return Some(());
        };
        if names.len() < column.fields.len() || !builtins::is_summed_column(name) {
            return Some(());
        }
        let qualifier = names.len().checked_sub(2).map(|at| names[at]);
        let Some(range) = owner(analysis, block, qualifier, name)? else {
            return Some(());
        };
        let (key, columns) = builtins::summed_columns(&range.relname)?;
        if !columns.contains(&name) {
            return Some(());
        }
        let table = name_of(range);
        if self.replaced.contains(&range.location) {
            return Some(());
        }
        if range
            .alias
            .as_ref()
            .is_some_and(|alias| !alias.colnames.is_empty())
        {
            return None;
        }
        let number = self.column_measure(&range.relname, key, name);
        let location = usize::try_from(column.location).ok()?;
        let span = self.source.name(location)?;
        let (table, label) = (identifier(table), identifier(name));
        let sum = sum_of(&range.relname, name, &format!("a67.c{number}"));
        let rows = holes::rows();
        let replacement = format!(
            "(SELECT coalesce((SELECT {sum} FROM {rows} WHERE pg_catalog.to_regclass(a67.c1) = {table}.{key}), {table}.{label}) AS {label})"
        );
        self.edits.replace(span, replacement);
        self.tables = None;
        self.found = true;
        Some(())
    }

    fn column_measure(&mut self, view: &str, key: &'static str, name: &str) -> usize {
        let (sql_type, view) = match name {
            "reltuples" => ("double precision", "c"),
            _ => ("bigint", self.view(view, key)),
        };
        self.measure(Measure {
            of_relation: format!("{view}.{name}::{sql_type}"),
            of_server: false,
            sql_type,
        })
    }

    /// What a shard's own row of a view is called in its question. Views of all tables have those of
    /// users.
    fn view(&mut self, relation: &str, key: &'static str) -> &'static str {
        let view = match (relation, key) {
            ("pg_class", _) => return "c",
            (io, "relid") if io.starts_with("pg_statio_") => "pg_statio_all_tables",
            (io, _) if io.starts_with("pg_statio_") => "pg_statio_all_indexes",
            (_, "relid") => "pg_stat_all_tables",
            (_, _) => "pg_stat_all_indexes",
        };
        if !self.views.contains(&(view, key)) {
            self.views.push((view, key));
        }
        view
    }

    // ---- the shards ----

    /// What each shard is asked.
    fn question(&self) -> String {
        let of_relations = self
            .measures
            .iter()
            .enumerate()
            .map(|(at, one)| match one.of_server {
                true => format!(", NULL::bigint AS c{}", at + 2),
                false => format!(", {} AS c{}", one.of_relation, at + 2),
            });
        let views = self
            .views
            .iter()
            .map(|(view, key)| format!(" LEFT JOIN pg_catalog.{view} ON {view}.{key} = c.oid"));
        let relations = self.statement.catalog.relations.values();
        let asked = |one: &&Relation| {
            let tables = self.tables.as_ref();
            is_distributed(one) && tables.is_none_or(|tables| tables.contains(&one.name))
        };
        let mut tables: Vec<String> = relations
            .filter(asked)
            .map(|one| {
                format!(
                    "({}, {})",
                    literal(&one.name.schema),
                    literal(&one.name.name)
                )
            })
            .collect();
        tables.sort();
        let mut question = String::new();
        if !tables.is_empty() {
            question = format!(
                "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS c1{} FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = c.oid \
                 LEFT JOIN pg_catalog.pg_class t ON t.oid = x.indrelid{} \
                 WHERE c.relkind IN ('r', 'i') AND (n.nspname, coalesce(t.relname, c.relname)) IN ({})",
                of_relations.collect::<String>(),
                views.collect::<String>(),
                tables.join(", ")
            );
        }
        if self.measures.iter().any(|one| one.of_server) {
            let values = self
                .measures
                .iter()
                .enumerate()
                .map(|(at, one)| match one.of_server {
                    true => format!(", {} AS c{}", one.of_relation, at + 2),
                    false => format!(", NULL::{} AS c{}", one.sql_type, at + 2),
                });
            let own = format!("SELECT ''::text AS c1{}", values.collect::<String>());
            question = match question.is_empty() {
                true => own,
                false => format!("{question} UNION ALL {own}"),
            };
        }
        question
    }
}

/// The sum of a number of a relation's rows, in the column's own type.
fn sum_of(relation: &str, column: &str, value: &str) -> String {
    match column {
        // What was never counted is -1; one Postgres has counted all of a table or nothing.
        "reltuples" => format!(
            "(CASE WHEN pg_catalog.max({value}) < 0 THEN -1 \
             ELSE pg_catalog.sum(greatest({value}, 0)) END)::real"
        ),
        _ if relation == "pg_class" => format!("pg_catalog.sum({value})::integer"),
        _ => format!("pg_catalog.sum({value})::bigint"),
    }
}

/// `a67`, `c1` ...: names of what the shards give.
fn is_ours(word: &str) -> bool {
    let word = word.trim_matches('"').to_ascii_lowercase();
    let number = word
        .strip_prefix('c')
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()));
    number || word.starts_with("a67")
}

/// Column references of one SELECT, without those that name an output of its own.
fn own_columns(select: &protobuf::SelectStmt) -> Vec<&protobuf::ColumnRef> {
    let outputs: HashSet<String> = nodes(&select.target_list)
        .filter_map(|node| match node {
            NodeEnum::ResTarget(target) if !target.name.is_empty() => Some(target.name.clone()),
            NodeEnum::ResTarget(target) => output_name(inner(&target.val)?),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    let mut rest: Vec<&NodeEnum> = Vec::new();
    tree::select_children(select, &mut |child| {
        if let Child::Node(node) = child {
            rest.push(node);
        }
    });
    while let Some(node) = rest.pop() {
        match node {
            // A block of its own.
            NodeEnum::SelectStmt(_) | NodeEnum::CommonTableExpr(_) => continue,
            NodeEnum::ColumnRef(column) => found.push(column),
            NodeEnum::SortBy(sort) if names_output(inner(&sort.node), &outputs) => continue,
            _ => {}
        }
        tree::children(node, &mut |child| {
            if let Child::Node(node) = child {
                rest.push(node);
            }
        });
    }
    found
}

/// ORDER BY means an output by a bare name first.
fn names_output(node: Option<&NodeEnum>, outputs: &HashSet<String>) -> bool {
    match node {
        Some(NodeEnum::ColumnRef(column)) if column.fields.len() == 1 => strings(&column.fields)
            .first()
            .is_some_and(|name| outputs.contains(*name)),
        _ => false,
    }
}

/// The relation in FROM that a column is of, in its own SELECT or one around it. The inner `None`:
/// none of those that have sums; the outer one: that is not certain.
fn owner<'t>(
    analysis: &Analysis<'t>,
    block: usize,
    qualifier: Option<&str>,
    column: &str,
) -> Option<Option<&'t protobuf::RangeVar>> {
    let mut at = Some(block);
    while let Some(block) = at {
        let here = analysis
            .occurrences
            .iter()
            .filter(|one| one.block == Some(block));
        let mut matching = here.filter(|one| {
            let range = one.range;
            let summed = matches!(one.found, Found::Home)
                && builtins::summed_columns(&range.relname)
                    .is_some_and(|(_, columns)| columns.contains(&column));
            summed && qualifier.is_none_or(|qualifier| qualifier == name_of(range))
        });
        match (matching.next(), matching.next()) {
            (Some(one), None) => return Some(Some(one.range)),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
        let block = &analysis.blocks[block];
        // Another item here may have a column of that name.
        if qualifier.is_none() && !block.select.from_clause.is_empty() {
            return Some(None);
        }
        at = block.parent;
    }
    Some(None)
}
