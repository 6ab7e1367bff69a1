//! INSERT: one row to its shard, many rows each to its own, rows of a query by way of the home
//! shard.
//!
//! What must be the same everywhere or be drawn once (sequence values, keys that are computed, the
//! time) is filled in by the proxy; everything else stays as the client wrote it.

use std::collections::{HashMap, HashSet};

use pg_query::{
    NodeEnum,
    protobuf::{self, OnConflictAction, OverridingKind},
};

use crate::{
    analysis::{self, Analysis, listed_columns},
    catalog::{Column, KeyType, Placement, Relation},
    facts, functions,
    plan::{
        InsertRow, InsertSplit, KeySource, Piece, Plan, PlanError, RowKey, SessionEffects, Target,
        Template,
    },
    route::{self, Statement, Verdict},
    splice::Source,
    sql::identifier,
    statement::{Draft, Reach, effects},
    tree::{self, Child, nodes, strings},
    views::Views,
    write,
};

mod defaults;
mod select;
mod values;

use values::Values;

/// The plan of an INSERT.
pub(crate) fn insert(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Result<Draft, PlanError> {
    let (catalog, context) = (statement.catalog, statement.context);
    let views = Views::load(catalog, context, statement.node)?;
    let analysis = analysis::analyse(catalog, context, &views, statement.node)?;
    let target = write::main_target(statement, &analysis);
    let relation = target.and_then(|target| analysis.occurrences[target].found.placed());
    let Some(relation) = relation else {
        return defaults::insert_at_home(statement, insert, &analysis, target);
    };
    route::refuse_unsafe(catalog, &analysis)?;
    crate::session::refuse_set_config(statement, &analysis)?;
    write::refuse_writes(catalog, &analysis)?;
    if insert.r#override() == OverridingKind::OverridingUserValue
        && relation
            .columns
            .iter()
            .any(|column| column.identity_always.is_some())
    {
        return Err(PlanError::unsupported(
            "OVERRIDING USER VALUE is not supported on distributed and reference tables",
        )
        .hint("Leave the identity column out."));
    }
    refuse_of_server(statement, insert, relation)?;
    let draft = match Values::of(insert, relation) {
        Some(values) if insert.with_clause.is_none() => {
            if values.is_wrong() {
                // Its error is the server's own.
                return Ok(Draft::home("insert").writes());
            }
            insert_values(statement, insert, &analysis, relation, &values)?
        }
        Some(_) | None => select::insert_query(statement, insert, &analysis, relation)?,
    };
    // The proxy draws the values of new rows; the servers' sessions do not see it.
    let by_proxy = matches!(draft.plan, Plan::Insert(_));
    let of_statement = effects(&analysis);
    let session = SessionEffects {
        moves_sequence: draft.session.moves_sequence,
        sets_sequence: !by_proxy && of_statement.sets_sequence,
        reads_clock: of_statement.reads_clock || draft.session.reads_clock,
        ..of_statement
    };
    Ok(draft.session(session))
}

/// What stands behind the rows runs on the shards of the rows.
fn refuse_of_server(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    relation: &Relation,
) -> Result<(), PlanError> {
    let mut traits = functions::Traits::default();
    let mut note = |node: &NodeEnum| {
        tree::walk(node, &mut |child| {
            if let Child::Node(node) = child {
                traits.note(functions::Lookup::of(statement), node, false);
            }
        });
    };
    if let Some(clause) = &insert.returning_clause {
        tree::nodes(&clause.exprs).for_each(&mut note);
    }
    if let Some(clause) = &insert.on_conflict_clause {
        tree::nodes(&clause.target_list).for_each(&mut note);
        tree::inner(&clause.where_clause)
            .into_iter()
            .for_each(&mut note);
    }
    match traits.home {
        Some(why) if statement.catalog.shards.len() > 1 => Err(write::of_server(relation, &why)),
        Some(_) | None => Ok(()),
    }
}

/// New rows take a value of a sequence for it, unless one is given.
pub(crate) fn draws(column: &Column) -> bool {
    column.sequence.is_some() || write::default_text(column).contains("nextval")
}

fn insert_values(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
    values: &Values<'_>,
) -> Result<Draft, PlanError> {
    refuse_conflict(statement, insert, analysis, relation)?;
    refuse_readers(analysis, relation)?;
    let reference = relation.placement == Placement::Reference;
    if reference {
        refuse_uneven(statement, analysis, relation)?;
    }
    let mut given = vec![false; relation.columns.len()];
    let width = values.rows.first().map_or(0, Vec::len);
    for column in &values.columns[..width] {
        given[*column] = true;
    }
    let mut builder = Builder {
        given,
        statement,
        analysis,
        relation,
        values,
        one_time: reference || values.rows.len() > 1 || statement.context.reach == Reach::OneTime,
        sequences: Vec::new(),
        shared: None,
        changed: false,
        evaluated: false,
        reusable: true,
        overriding: false,
    };
    let fills = builder.fills()?;
    let rows = builder.rows(&fills)?;
    let as_written = !reference
        && rows.len() == 1
        && !builder.changed
        && !builder.evaluated
        && !write::needs_one_time(statement, analysis);
    if as_written && let Verdict::Key(route, reusable) = route::verdict(statement, analysis)? {
        let plan = Plan::Single(Target::Key(route));
        let session = SessionEffects {
            reads_clock: fills_in_time(statement, relation, values),
            ..SessionEffects::default()
        };
        return Ok(Draft::new(plan, "insert")
            .reusable(reusable)
            .session(session));
    }
    let Some((prefix, suffix)) = builder.frame(insert, &fills)? else {
        return Err(PlanError::unsupported(
            "this form of INSERT is not supported over several shards",
        )
        .hint("Write: INSERT INTO table (columns) VALUES (...), (...)"));
    };
    let (key_type, key_sql_type) = match key_of(relation) {
        Some((column, key_type)) => (Some(key_type), without_length(&column.sql_type)),
        None => (None, String::new()),
    };
    let plan = InsertSplit {
        table: relation.name.clone(),
        key_type,
        group: relation.placement.group(),
        key_sql_type,
        prefix,
        rows,
        suffix,
        returning: write::returns_rows(statement.node),
        one_result_per_row: one_result_per_row(insert),
        check_first: builder.changed || builder.evaluated,
        sequences: builder.sequences,
    };
    let reusable = builder.reusable && statement.normalised.is_some();
    Ok(Draft::new(Plan::Insert(plan), "insert").reusable(reusable))
}

/// The default of a column that is left out reads the transaction's time.
fn fills_in_time(statement: &Statement<'_>, relation: &Relation, values: &Values<'_>) -> bool {
    let mut columns = relation.columns.iter().enumerate();
    columns.any(|(at, column)| {
        column.default.is_some()
            && !column.generated
            && values.uses_default(at)
            && write::default_reads_clock(statement.catalog, column)
    })
}

/// RETURNING gives a row for each that was to be inserted.
fn one_result_per_row(insert: &protobuf::InsertStmt) -> bool {
    insert.on_conflict_clause.as_ref().is_none_or(|conflict| {
        conflict.action() == OnConflictAction::OnconflictUpdate && conflict.where_clause.is_none()
    })
}

/// The shard key of a distributed table.
fn key_of(relation: &Relation) -> Option<(&Column, KeyType)> {
    match &relation.placement {
        Placement::Distributed { key, key_type, .. } => Some((relation.column(key)?, *key_type)),
        Placement::Local | Placement::Reference | Placement::Schema { .. } => None,
    }
}

/// A type without its length or precision: an explicit cast to `varchar(3)` cuts a value off,
/// which storing it does not.
pub(crate) fn without_length(sql_type: &str) -> String {
    let array = if sql_type.ends_with("[]") { "[]" } else { "" };
    let base = sql_type.trim_end_matches("[]");
    let plain = match (base.find('('), base.find(')')) {
        (Some(open), Some(close)) if open < close && !base.contains('"') => {
            format!("{}{}", &base[..open], &base[close + 1..])
        }
        _ => base.to_owned(),
    };
    let plain = match plain.trim() {
        "character" if base != "character" => "bpchar",
        "bit" => "varbit",
        other => other,
    };
    format!("{plain}{array}")
}

// ---- what is refused ----

fn refuse_conflict(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    if insert.on_conflict_clause.is_some() {
        write::refuse_new_keys(statement, analysis, relation)?;
    }
    write::refuse_assigned_defaults(statement, relation)
}

/// Expressions of new rows may read reference tables, which every shard has, and nothing else.
fn refuse_readers(analysis: &Analysis<'_>, relation: &Relation) -> Result<(), PlanError> {
    let other = analysis.occurrences.iter().find(|one| {
        !one.written
            && !one
                .found
                .placed()
                .is_some_and(|read| read.placement == Placement::Reference)
    });
    if let Some(one) = other {
        return Err(PlanError::unsupported(format!(
            "a subquery in INSERT into \"{}\" may read only reference tables",
            relation.name.name
        ))
        .detail(format!("It reads \"{}\".", one.range.relname))
        .hint("Use INSERT ... SELECT, or run the subquery first."));
    }
    if analysis.strange {
        return Err(PlanError::unsupported(
            "this form of INSERT is not supported over several shards",
        )
        .detail("The statement has parts that are not looked into."));
    }
    Ok(())
}

/// Rows of a reference table are computed by every shard for itself. A cell of `nextval` alone is
/// drawn once.
fn refuse_uneven(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    let mut traits = functions::Traits::default();
    tree::walk(statement.node, &mut |child| {
        if let Child::Node(node) = child
            && drawn_sequence(node).is_none()
        {
            traits.note(functions::Lookup::of(statement), node, false);
        }
    });
    write::refuse_uneven_traits(statement, analysis, relation, &traits)
}

// ---- rows ----

/// What a column of new rows gets where the client gives nothing.
#[derive(Debug, Clone)]
enum Fill {
    /// The column's own default, computed where the row is stored.
    Leave,
    /// A value of `sequences[n]`.
    Sequence(usize),
    /// The default as an expression with one time for all shards.
    Expression(Template),
    /// The shard key, computed once.
    Key(Template),
}

struct Builder<'b, 'a> {
    statement: &'b Statement<'a>,
    analysis: &'b Analysis<'b>,
    relation: &'b Relation,
    values: &'b Values<'b>,
    /// For every column of the table: rows have a cell for it.
    given: Vec<bool>,
    /// Several shards store the time: it must be one.
    one_time: bool,
    sequences: Vec<String>,
    /// Where a sequence that cells name is in `sequences`, if one place serves all rows.
    shared: Option<HashMap<String, usize>>,
    /// Rows are not what the client wrote.
    changed: bool,
    /// A key is computed by a server.
    evaluated: bool,
    reusable: bool,
    /// A GENERATED ALWAYS column is filled in.
    overriding: bool,
}

impl Builder<'_, '_> {
    /// For every column of the table, what DEFAULT or leaving it out means.
    fn fills(&mut self) -> Result<Vec<Fill>, PlanError> {
        let relation = self.relation;
        let mut fills = Vec::with_capacity(relation.columns.len());
        for (at, column) in relation.columns.iter().enumerate() {
            let fill = if self.values.uses_default(at) {
                self.fill(column)?
            } else {
                Fill::Leave
            };
            fills.push(fill);
        }
        Ok(fills)
    }

    fn fill(&mut self, column: &Column) -> Result<Fill, PlanError> {
        let is_key = key_of(self.relation).is_some_and(|(key, _)| key.name == column.name);
        if column.generated {
            return Ok(Fill::Leave);
        }
        if let Some(sequence) = &column.sequence {
            self.sequences.push(sequence.clone());
            self.overriding |= column.identity_always == Some(true);
            self.changed = true;
            return Ok(Fill::Sequence(self.sequences.len() - 1));
        }
        let Some(default) = &column.default else {
            return Ok(Fill::Leave);
        };
        let traits = write::default_traits(self.statement.catalog, column);
        let reference = self.relation.placement == Placement::Reference;
        let uneven = reference && (traits.volatile.is_some() || traits.statement_clock);
        if !is_key && (traits.home.is_some() || traits.unsafe_call.is_some() || uneven) {
            return Err(PlanError::unsupported(format!(
                "the default of column \"{}\" of \"{}\" cannot be computed on each shard",
                column.name, self.relation.name.name
            ))
            .detail(format!("The default is {default}."))
            .hint(format!(
                "Give column \"{}\" a value in the statement.",
                column.name
            )));
        }
        if is_key {
            traits.refuse_unsafe(self.statement.catalog)?;
            self.changed = true;
            self.evaluated = true;
            return Ok(Fill::Key(vec![Piece::Text(default.clone())]));
        }
        if self.one_time && !traits.clocks.is_empty() {
            self.changed = true;
            return match default_with_one_time(default, &traits.clocks) {
                Some(template) => Ok(Fill::Expression(template)),
                None => Err(PlanError::unsupported(format!(
                    "the default of column \"{}\" is not understood",
                    column.name
                ))
                .hint(format!(
                    "Give column \"{}\" a value in the statement.",
                    column.name
                ))),
            };
        }
        Ok(Fill::Leave)
    }

    /// All rows, with the cells of filled columns behind those that the client gave.
    fn rows(&mut self, fills: &[Fill]) -> Result<Vec<InsertRow>, PlanError> {
        let values = self.values;
        self.shared = self.draws_once().then(HashMap::new);
        let source = self.statement.source();
        let spans = values.spans(&source, self.statement.span);
        let mut rows = Vec::with_capacity(values.rows.len());
        for (index, cells) in values.rows.iter().enumerate() {
            if !self.statement.context.budget.spend(1 + cells.len()) {
                self.statement.context.budget.check()?;
            }
            let spans = spans.as_ref().map(|spans| spans.rows[index].as_slice());
            rows.push(self.row(cells, spans, &source, fills)?);
        }
        Ok(rows)
    }

    fn row(
        &mut self,
        cells: &[&NodeEnum],
        spans: Option<&[(usize, usize)]>,
        source: &Source<'_>,
        fills: &[Fill],
    ) -> Result<InsertRow, PlanError> {
        let key = key_of(self.relation);
        let key_index = key.and_then(|(key, _)| {
            self.relation
                .columns
                .iter()
                .position(|column| column.name == key.name)
        });
        let mut texts: Vec<Template> = Vec::new();
        let mut row_key = None;
        for (position, cell) in cells.iter().enumerate() {
            let column = self.values.columns[position];
            let span = spans.and_then(|spans| spans.get(position)).copied();
            if matches!(cell, NodeEnum::SetToDefault(_)) {
                texts.push(filled(&fills[column], "DEFAULT"));
                if key_index == Some(column) {
                    row_key = Some(key_of_fill(&fills[column]));
                }
                continue;
            }
            if let (Some(key_type), true) = (key.map(|(_, kind)| kind), key_index == Some(column)) {
                let (source_of_key, text) = self.key_cell(cell, key_type, span, source)?;
                row_key = Some(source_of_key);
                texts.push(text);
                continue;
            }
            texts.push(self.cell(cell, span, source)?);
        }
        for (column, fill) in fills.iter().enumerate() {
            if self.given[column] {
                continue;
            }
            if !matches!(fill, Fill::Leave) {
                texts.push(filled(fill, "DEFAULT"));
            }
            if key_index == Some(column) {
                row_key = Some(key_of_fill(fill));
            }
        }
        if key.is_some() && row_key.is_none() {
            row_key = Some(RowKey::Source(KeySource::Null));
        }
        Ok(InsertRow {
            text: joined(texts),
            key: row_key,
        })
    }

    /// The shard key of a row, as the client gives it.
    fn key_cell(
        &mut self,
        cell: &NodeEnum,
        key_type: KeyType,
        span: Option<(usize, usize)>,
        source: &Source<'_>,
    ) -> Result<(RowKey, Template), PlanError> {
        let types = self.statement.context.parameter_types;
        match facts::constant(cell, key_type, types, true) {
            Some(constant) => {
                let (key, reusable) = self.statement.key_source(&constant);
                self.reusable &= reusable;
                Ok((RowKey::Source(key), self.template(span)))
            }
            None => {
                if has_subquery(cell) {
                    return Err(PlanError::unsupported(
                        "a subquery cannot give the shard key of a row",
                    )
                    .hint("Use INSERT ... SELECT, or run the subquery first."));
                }
                values::refuse_sets(cell)?;
                self.changed = true;
                if let (Some(sequence), KeyType::Integer) = (drawn_sequence(cell), key_type) {
                    let n = self.take_from(sequence);
                    return Ok((RowKey::Sequence(n), vec![Piece::Sequence(n)]));
                }
                self.evaluated = true;
                let span = span.ok_or_else(not_understood)?;
                let text = source.text.get(span.0..span.1).ok_or_else(not_understood)?;
                debug_assert!(!text.is_empty());
                let expression = self.template(Some(span));
                let evaluated = RowKey::Source(KeySource::Expression(expression));
                Ok((evaluated, vec![Piece::Key]))
            }
        }
    }

    /// The place of one more sequence among those that rows take values from.
    fn take_from(&mut self, sequence: String) -> usize {
        self.changed = true;
        // The sequence's name is a literal of the text.
        self.reusable = false;
        if let Some(known) = self.shared.as_ref().and_then(|known| known.get(&sequence)) {
            return *known;
        }
        let n = self.sequences.len();
        if let Some(known) = &mut self.shared {
            known.insert(sequence.clone(), n);
        }
        self.sequences.push(sequence);
        // The executor has a place for every row of each.
        let places = self.values.rows.len() * size_of::<String>();
        self.statement.context.budget.hold(places);
        n
    }

    /// No row calls `nextval` twice for one sequence: values that are drawn row by row come in the
    /// order in which one server would draw them.
    fn draws_once(&self) -> bool {
        self.values.rows.iter().all(|row| {
            let mut seen = HashSet::new();
            let mut drawn = row.iter().filter_map(|cell| drawn_sequence(cell));
            drawn.all(|sequence| seen.insert(sequence))
        })
    }

    /// Any other value.
    fn cell(
        &mut self,
        cell: &NodeEnum,
        span: Option<(usize, usize)>,
        source: &Source<'_>,
    ) -> Result<Template, PlanError> {
        if let Some(sequence) = drawn_sequence(cell) {
            return Ok(vec![Piece::Sequence(self.take_from(sequence))]);
        }
        let mut traits = functions::Traits::default();
        tree::walk(cell, &mut |child| {
            if let Child::Node(node) = child {
                traits.note(functions::Lookup::of(self.statement), node, false);
            }
        });
        if let Some(why) = traits.home {
            return Err(PlanError::unsupported(format!(
                "a value for distributed or reference table \"{}\" is computed by a function of the home shard",
                self.relation.name.name
            ))
            .detail(why)
            .hint("Run the function first, and write its result into the statement."));
        }
        if self.one_time && !traits.clocks.is_empty() {
            self.changed = true;
            let span = span.ok_or_else(not_understood)?;
            return self.template_with_one_time(span, source, &traits.clocks);
        }
        Ok(self.template(span))
    }

    /// The client's bytes, with holes for its literals.
    fn template(&self, span: Option<(usize, usize)>) -> Template {
        let Some(span) = span else { return Vec::new() };
        let mut template = Template::new();
        self.append(&mut template, span);
        template
    }

    fn append(&self, template: &mut Template, (from, to): (usize, usize)) {
        let text = self.statement.text;
        let mut at = from;
        if let Some(normalised) = self.statement.normalised {
            let first = normalised
                .literals
                .partition_point(|literal| literal.start < from);
            for (slot, literal) in normalised.literals.iter().enumerate().skip(first) {
                if literal.end > to {
                    break;
                }
                push_text(template, &text[at..literal.start]);
                template.push(Piece::Literal(slot));
                at = literal.end;
            }
        }
        push_text(template, &text[at..to]);
    }

    fn template_with_one_time(
        &self,
        (from, to): (usize, usize),
        source: &Source<'_>,
        clocks: &[functions::Clock],
    ) -> Result<Template, PlanError> {
        let mut clocks: Vec<&functions::Clock> = clocks.iter().collect();
        clocks.sort_by_key(|clock| clock.location);
        let mut template = Template::new();
        let mut at = from;
        for clock in clocks {
            let (start, end) = source.call(clock.location).ok_or_else(not_understood)?;
            if start < at || end > to {
                return Err(not_understood());
            }
            self.append(&mut template, (at, start));
            push_clock(&mut template, &clock.casts);
            at = end;
        }
        self.append(&mut template, (at, to));
        Ok(template)
    }

    /// What stands before and behind the rows.
    fn frame(
        &mut self,
        insert: &protobuf::InsertStmt,
        fills: &[Fill],
    ) -> Result<Option<(Template, Template)>, PlanError> {
        let source = self.statement.source();
        let Some(spans) = self.values.spans(&source, self.statement.span) else {
            return Ok(None);
        };
        let given = self.values.rows.first().map_or(0, Vec::len);
        let added: Vec<String> = fills
            .iter()
            .enumerate()
            .filter(|(column, fill)| {
                !matches!(fill, Fill::Leave) && !self.values.columns[..given].contains(column)
            })
            .map(|(column, _)| identifier(&self.relation.columns[column].name))
            .collect();
        let mut prefix = Template::new();
        let start = self.statement.span.0;
        if added.is_empty() && self.values.rows.first().is_some_and(|row| !row.is_empty()) {
            self.append(&mut prefix, (start, spans.head_end));
        } else {
            match spans.column_list_end {
                Some(end) => {
                    self.append(&mut prefix, (start, end));
                    push_text(&mut prefix, &format!(", {})", added.join(", ")));
                }
                None => {
                    self.append(&mut prefix, (start, spans.head_end));
                    let listed = self.values.columns[..given].iter();
                    let mut all: Vec<String> = listed
                        .map(|column| identifier(&self.relation.columns[*column].name))
                        .collect();
                    all.extend(added);
                    if all.is_empty() {
                        // DEFAULT VALUES where nothing has to be filled in.
                        let first = self.relation.columns.first().ok_or_else(not_understood)?;
                        all.push(identifier(&first.name));
                    }
                    push_text(&mut prefix, &format!(" ({})", all.join(", ")));
                }
            }
        }
        if insert.r#override() == OverridingKind::OverridingUserValue {
            push_text(&mut prefix, " OVERRIDING USER VALUE");
        } else if self.overriding || insert.r#override() == OverridingKind::OverridingSystemValue {
            push_text(&mut prefix, " OVERRIDING SYSTEM VALUE");
        }
        push_text(&mut prefix, " VALUES");
        let suffix = self.suffix(spans.rows_end, &source)?;
        Ok(Some((prefix, suffix)))
    }

    fn suffix(&mut self, from: usize, source: &Source<'_>) -> Result<Template, PlanError> {
        let span = (from, self.statement.span.1);
        let behind = |clock: &&functions::Clock| clock.location >= from;
        let clocks: Vec<functions::Clock> = self
            .analysis
            .traits
            .clocks
            .iter()
            .filter(behind)
            .cloned()
            .collect();
        if !self.one_time || clocks.is_empty() {
            return Ok(self.template(Some(span)));
        }
        if write::returns_rows(self.statement.node) {
            return Err(PlanError::unsupported(
                "now() behind the rows of an INSERT with RETURNING is not supported over several shards",
            )
            .hint("Insert one row at a time, or write the time into the statement."));
        }
        self.changed = true;
        self.template_with_one_time(span, source, &clocks)
    }
}

fn push_text(template: &mut Template, text: &str) {
    if text.is_empty() {
        return;
    }
    match template.last_mut() {
        Some(Piece::Text(last)) => last.push_str(text),
        _ => template.push(Piece::Text(text.to_owned())),
    }
}

fn push_clock(template: &mut Template, casts: &str) {
    push_text(template, "(");
    template.push(Piece::Now);
    push_text(template, &format!("{casts})"));
}

fn joined(cells: Vec<Template>) -> Template {
    let mut row = Template::new();
    push_text(&mut row, "(");
    if cells.is_empty() {
        push_text(&mut row, "DEFAULT");
    }
    for (position, cell) in cells.into_iter().enumerate() {
        if position > 0 {
            push_text(&mut row, ", ");
        }
        for piece in cell {
            match piece {
                Piece::Text(text) => push_text(&mut row, &text),
                other => row.push(other),
            }
        }
    }
    push_text(&mut row, ")");
    row
}

fn filled(fill: &Fill, otherwise: &str) -> Template {
    match fill {
        Fill::Leave => vec![Piece::Text(otherwise.to_owned())],
        Fill::Sequence(n) => vec![Piece::Sequence(*n)],
        Fill::Expression(template) => template.clone(),
        Fill::Key(_) => vec![Piece::Key],
    }
}

/// The key of a row that does not give one. Without a default it is NULL.
fn key_of_fill(fill: &Fill) -> RowKey {
    match fill {
        Fill::Sequence(n) => RowKey::Sequence(*n),
        Fill::Key(template) => RowKey::Source(KeySource::Expression(template.clone())),
        Fill::Leave | Fill::Expression(_) => RowKey::Source(KeySource::Null),
    }
}

/// A default's text with a hole for the time.
fn default_with_one_time(default: &str, clocks: &[functions::Clock]) -> Option<Template> {
    // Locations count from `SELECT (`, as `write::default_traits` parses it.
    let shift = "SELECT (".len();
    let source = Source::new(default);
    let mut clocks: Vec<&functions::Clock> = clocks.iter().collect();
    clocks.sort_by_key(|clock| clock.location);
    let mut template = Template::new();
    let mut at = 0;
    for clock in clocks {
        let (start, end) = source.call(clock.location.checked_sub(shift)?)?;
        push_text(&mut template, default.get(at..start)?);
        push_clock(&mut template, &clock.casts);
        at = end;
    }
    push_text(&mut template, default.get(at..)?);
    Some(template)
}

/// The sequence of a cell that is exactly `nextval('...')`.
fn drawn_sequence(cell: &NodeEnum) -> Option<String> {
    let NodeEnum::FuncCall(call) = cell else {
        return None;
    };
    let names = strings(&call.funcname);
    if !matches!(names.as_slice(), ["nextval"] | ["pg_catalog", "nextval"]) {
        return None;
    }
    match call.args.as_slice() {
        [_] => sequence_argument(call),
        _ => None,
    }
}

/// The first argument of a call, if it is the constant name of a sequence.
pub(crate) fn sequence_argument(call: &protobuf::FuncCall) -> Option<String> {
    match call.args.first()?.node.as_ref()? {
        constant @ NodeEnum::AConst(_) => tree::constant_text(constant),
        NodeEnum::TypeCast(cast) => {
            let regclass = strings(&cast.type_name.as_ref()?.names).last() == Some(&"regclass");
            let value = tree::inner(&cast.arg).filter(|_| regclass)?;
            matches!(value, NodeEnum::AConst(_)).then(|| tree::constant_text(value))?
        }
        _ => None,
    }
}

fn has_subquery(node: &NodeEnum) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| {
        found |= matches!(child, Child::Node(NodeEnum::SubLink(_)));
    });
    found
}

fn not_understood() -> PlanError {
    PlanError::unsupported("this form of INSERT is not supported over several shards")
        .hint("Write: INSERT INTO table (columns) VALUES (...), (...)")
}

/// The columns that an INSERT's values are for, by their places in the table.
fn target_columns(insert: &protobuf::InsertStmt, relation: &Relation) -> Option<Vec<usize>> {
    if insert.cols.is_empty() {
        return Some((0..relation.columns.len()).collect());
    }
    let names = listed_columns(insert);
    if names.len() != nodes(&insert.cols).count() {
        return None;
    }
    names
        .iter()
        .map(|name| {
            relation
                .columns
                .iter()
                .position(|column| column.name == *name)
        })
        .collect()
}
