//! Plans in a few lines.

use crate::catalog::MadeSettings;
use crate::plan::{
    ColumnAt, Combine, Distinct, Fetch, FetchSource, FinalPiece, InsertSplit, KeyRoute, KeySource,
    Piece, Plan, PlanError, Planned, RowKey, ShardSet, Target, Touches, TransactionBlock,
};

pub(super) fn of(planned: &Planned) -> Vec<String> {
    let mut lines = vec![format!("{}{}", first(&planned.plan), flags(planned))];
    lines.extend(rest(&planned.plan));
    if let Some(lookup) = &planned.lookup {
        lines.push(format!(
            "  by index {}: {:?} {}",
            lookup.index,
            lookup.key_type,
            source(&lookup.source)
        ));
    }
    lines
}

pub(super) fn of_error(error: &PlanError) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", error.sqlstate, error.message)];
    lines.extend(
        error
            .detail
            .iter()
            .map(|detail| format!("  detail: {detail}")),
    );
    lines.extend(error.hint.iter().map(|hint| format!("  hint: {hint}")));
    lines
}

fn flags(planned: &Planned) -> String {
    let session = planned.session;
    let all = [
        (planned.reusable, "reusable"),
        (session.pins, "pins"),
        (session.moves_sequence, "moves_sequence"),
        (session.reads_sequence, "reads_sequence"),
        (session.writes, "writes"),
        (session.changes_catalog, "changes_catalog"),
        (session.indexed, "indexed"),
        (session.residue.keeps, "keeps"),
        (session.residue.may_keep, "may_keep"),
        (session.residue.lasting, "lasting"),
        (
            session.residue.settings != MadeSettings::None,
            "makes_setting",
        ),
    ];
    let set: Vec<&str> = all
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| name)
        .collect();
    if set.is_empty() {
        String::new()
    } else {
        format!(" [{}]", set.join(" "))
    }
}

fn first(plan: &Plan) -> String {
    match plan {
        Plan::Single(target) => format!("single {}", target_text(target)),
        Plan::Insert(insert) => format!(
            "insert {}{}{}{}",
            insert.table.name,
            if insert.returning { " returning" } else { "" },
            if insert.one_result_per_row {
                " one_per_row"
            } else {
                ""
            },
            if insert.check_first {
                " check_first"
            } else {
                ""
            }
        ),
        Plan::InsertSelect(insert) => format!(
            "insert-select {} ({}) key {:?}",
            insert.table.name,
            insert.columns.join(", "),
            insert.key_column
        ),
        Plan::Multi(multi) => format!(
            "multi {}{}{}",
            set(&multi.shards),
            if multi.copies { " copies" } else { "" },
            if multi.returning { " returning" } else { "" }
        ),
        Plan::Scatter(scatter) => {
            let tier = format!("{:?}", scatter.tier()).to_lowercase();
            format!("{tier} {}: {}", set(&scatter.shards), scatter.reason)
        }
        Plan::Gather(gather) => format!("gather: {}", gather.reason),
        Plan::Ddl(ddl) => format!(
            "ddl{}{}{}{}{}",
            if ddl.home_only { " home" } else { "" },
            match ddl.block {
                TransactionBlock::Inside => "",
                TransactionBlock::Unneeded => " alone",
                TransactionBlock::Refused => " outside",
            },
            match &ddl.creates_table {
                Some(name) => format!(" creates {}.{}", name.schema, name.name),
                None => String::new(),
            },
            match ddl.must_be_empty.first() {
                Some(name) => format!(" empty {}.{}", name.schema, name.name),
                None => String::new(),
            },
            match &ddl.touches {
                Touches::Relations(names) => format!(" touches [{}]", names.join(", ")),
                Touches::Everything => String::new(),
            }
        ),
        Plan::CreateTableAs { .. } => "create-table-as".to_owned(),
        Plan::WithWrites(_) => "with-writes".to_owned(),
        Plan::KeyUpdate(_) => "key-update".to_owned(),
        Plan::MergeSteps(_) => "merge-steps".to_owned(),
        Plan::DeclareCursor { name, hold, .. } => format!("declare {name} hold={hold}"),
        Plan::Explain(explain) => format!(
            "explain analyze={} json={} {:?} {:?}",
            explain.analyze, explain.json, explain.prefix, explain.statement
        ),
        Plan::CopyIn(copy) => format!(
            "copy-in {} {:?} {:?} {:?} {:?}{}",
            copy.table.name,
            copy.destination,
            copy.format,
            copy.sql,
            copy.sequences,
            copy.timed
                .iter()
                .map(|value| format!(" {}", template(value)))
                .collect::<String>()
        ),
        Plan::Transaction(command) => format!("{command:?}"),
        Plan::Setting(command) => format!("{command:?}"),
        other => format!("{other:?}"),
    }
}

fn rest(plan: &Plan) -> Vec<String> {
    match plan {
        Plan::Insert(insert) => insert_lines(insert),
        Plan::InsertSelect(insert) => {
            let mut lines = vec![format!("  {}", first(&insert.query))];
            lines.extend(
                rest(&insert.query)
                    .into_iter()
                    .map(|line| format!("  {line}")),
            );
            lines.push(format!("  {}", template(&insert.query_sql)));
            lines
        }
        Plan::Multi(multi) => {
            let mut lines: Vec<String> = multi.moves.iter().map(moved).collect();
            lines.extend(multi.sql.iter().map(|sql| format!("  {}", template(sql))));
            lines
        }
        Plan::Scatter(scatter) => {
            let statement = template(&scatter.statement).replace('\n', " ");
            let combine = match &scatter.combine {
                Combine::Rows(rows) => rows_text(rows),
                Combine::Final(pieces) => final_text(pieces),
            };
            vec![format!("  {statement}"), format!("  {combine}")]
        }
        Plan::Gather(gather) => {
            let mut lines: Vec<String> = gather.fetches.iter().map(fetch).collect();
            lines.push(format!(
                "  {}",
                template(&gather.statement).replace('\n', " ")
            ));
            lines
        }
        Plan::CreateTableAs { home, elsewhere } => {
            let mut lines = vec![format!("  {}", first(home))];
            lines.extend(rest(home).into_iter().map(|line| format!("  {line}")));
            lines.push(format!("  elsewhere {elsewhere}"));
            lines
        }
        Plan::WithWrites(with) => {
            let parts = with.parts.iter().map(|part| match part.writes {
                true => format!("  {} <- {}", part.name, part.body),
                false => format!("  {}", part.text),
            });
            parts.chain([format!("  {}", with.main)]).collect()
        }
        Plan::MergeSteps(merge) => {
            let mut lines = vec![
                format!("  {}", merge.source),
                format!("  on {}:{}", merge.condition, merge.matched),
            ];
            lines.extend(merge.inserts.iter().map(|insert| format!("  {insert:?}")));
            lines
        }
        Plan::KeyUpdate(update) => vec![
            format!("  {}", update.delete),
            format!(
                "  into {} {:?} {}",
                update.table, update.columns, update.returning
            ),
        ],
        Plan::DeclareCursor { query, .. } => {
            let mut lines = vec![format!("  {}", first(query))];
            lines.extend(rest(query));
            lines
        }
        Plan::Explain(explain) => of(&explain.plan)
            .into_iter()
            .map(|line| format!("  {line}"))
            .collect(),
        _ => Vec::new(),
    }
}

fn moved(one: &crate::plan::Move) -> String {
    let route = one.route.as_ref().map_or_else(String::new, |route| {
        format!(" by {}", one.fetch.columns[route.column])
    });
    let answered = if one.query.is_some() { " answered" } else { "" };
    format!("  move{route}{answered} {}", fetch(&one.fetch).trim_start())
}

fn insert_lines(insert: &InsertSplit) -> Vec<String> {
    let mut lines = vec![format!("  {}", template(&insert.prefix))];
    for row in &insert.rows {
        let key = match &row.key {
            None => String::new(),
            Some(RowKey::Sequence(n)) => format!(" <- sequence {n}"),
            Some(RowKey::Source(key)) => format!(" <- {}", source(key)),
        };
        lines.push(format!("  {}{key}", template(&row.text)));
    }
    if !insert.suffix.is_empty() {
        lines.push(format!("  {}", template(&insert.suffix)));
    }
    if !insert.sequences.is_empty() {
        lines.push(format!("  sequences {}", insert.sequences.join(", ")));
    }
    lines
}

fn rows_text(rows: &crate::plan::Rows) -> String {
    let order = rows.order.iter().map(|sort| {
        let direction = if sort.descending { " desc" } else { "" };
        let nulls = if sort.nulls_first { " nulls first" } else { "" };
        format!(" {}{direction}{nulls}", column_at(sort.column))
    });
    let distinct = match &rows.distinct {
        None => String::new(),
        Some(Distinct::Rows) => " distinct".to_owned(),
        Some(Distinct::On(columns)) => {
            let columns: Vec<String> = columns.iter().map(|at| column_at(*at)).collect();
            format!(" distinct on {}", columns.join(" "))
        }
    };
    let order: String = order.collect();
    let ties = if rows.ties { " ties" } else { "" };
    let (count, offset) = (&rows.count, &rows.offset);
    format!(
        "rows hidden={} order={order}{distinct} count={count:?} offset={offset:?}{ties}{}",
        rows.hidden,
        rows.locking.as_deref().map_or_else(String::new, template)
    )
}

fn column_at(at: ColumnAt) -> String {
    match at {
        ColumnAt::Visible(n) => format!("{n}"),
        ColumnAt::Hidden(n) => format!("hidden{n}"),
    }
}

fn final_text(pieces: &[FinalPiece]) -> String {
    let text: String = pieces
        .iter()
        .map(|piece| match piece {
            FinalPiece::Piece(piece) => template(std::slice::from_ref(piece)),
            FinalPiece::Rows => "⟨rows⟩".to_owned(),
            FinalPiece::Type(n) => format!("⟨type {n}⟩"),
            FinalPiece::Average { sum, count } => format!("⟨average {sum} {count}⟩"),
        })
        .collect();
    text.replace('\n', " ")
}

fn template(pieces: &[Piece]) -> String {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Literal(slot) => format!("⟨{slot}⟩"),
            Piece::Sequence(n) => format!("⟨sequence {n}⟩"),
            Piece::Key => "⟨key⟩".to_owned(),
            Piece::Now => "⟨now⟩".to_owned(),
        })
        .collect()
}

fn fetch(fetch: &Fetch) -> String {
    let from = match &fetch.from {
        FetchSource::Proxy(view) => format!("proxy {}", view.name()),
        FetchSource::Shards(shards) => set(shards),
    };
    let key = fetch.primary_key.iter().filter(|_| fetch.needs_key);
    let after: String = key.map(|sql| format!(" | {sql}")).collect();
    let binary = if fetch.binary { "" } else { " text" };
    format!(
        "  {} <- {from}{binary}: {}{after}",
        fetch.temp_table,
        template(&fetch.select)
    )
}

fn target_text(target: &Target) -> String {
    match target {
        Target::Home => "home".to_owned(),
        Target::AnyCopy => "any".to_owned(),
        Target::Key(route) => route_text(route),
    }
}

fn set(shards: &ShardSet) -> String {
    match shards {
        ShardSet::All => "all".to_owned(),
        ShardSet::Home => "home".to_owned(),
        ShardSet::Keys(route) => route_text(route),
        ShardSet::Span(span) => {
            let list = |sources: &[KeySource]| {
                let sources: Vec<String> = sources.iter().map(source).collect();
                sources.join(", ")
            };
            let (lower, upper) = (list(&span.lower), list(&span.upper));
            format!("{:?}({lower} to {upper})", span.key_type)
        }
    }
}

fn route_text(route: &KeyRoute) -> String {
    if route.sources.is_empty() {
        return format!("group {}", route.group);
    }
    let sources: Vec<String> = route.sources.iter().map(source).collect();
    format!("{:?}({})", route.key_type, sources.join(", "))
}

fn source(source: &KeySource) -> String {
    match source {
        KeySource::Literal {
            slot,
            negated: false,
        } => format!("⟨{slot}⟩"),
        KeySource::Literal {
            slot,
            negated: true,
        } => format!("-⟨{slot}⟩"),
        KeySource::Parameter { index, type_unsure } => {
            format!("${}{}", index + 1, if *type_unsure { "?" } else { "" })
        }
        KeySource::Constant(text) => format!("{text:?}"),
        KeySource::Null => "null".to_owned(),
        KeySource::Expression(pieces) => format!("evaluate {}", template(pieces)),
    }
}
