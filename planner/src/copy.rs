//! COPY.

use pg_query::{NodeEnum, protobuf};

use crate::{
    admin,
    catalog::{Column, Placement, Relation},
    clock,
    functions::{Lookup, Traits},
    insert::without_length,
    plan::{
        CopyDestination, CopyFormat, CopyIn, CopyKey, CopyOut, Plan, PlanError, SessionEffects,
        Target, Template,
    },
    route::Statement,
    scope,
    splice::Edits,
    sql::{identifier, qualified},
    statement::{self, Draft, Reach},
    tree::{self, Child, constant_text, inner, nodes, strings},
    write,
};

/// The plan of COPY.
pub(crate) fn copy(
    statement: &Statement<'_>,
    copy: &protobuf::CopyStmt,
) -> Result<Draft, PlanError> {
    let file = copy.is_program || !copy.filename.is_empty();
    if let Some(query) = inner(&copy.query) {
        let draft = of_query(&statement.inner(query))?;
        let here = matches!(draft.plan, Plan::Single(Target::Home | Target::AnyCopy));
        if file && !here {
            return Err(no_files());
        }
        if file {
            return Ok(Draft::home("copy").session(draft.session));
        }
        return match draft.plan {
            Plan::Single(_) | Plan::Gather(_) => Ok(Draft {
                kind: "copy",
                ..draft
            }),
            // With the transaction's time in it.
            Plan::Multi(_) if statement.context.reach == Reach::OneTime => Ok(Draft {
                kind: "copy",
                ..draft
            }),
            _ => Err(PlanError::unsupported(
                "COPY of this query is not supported over several shards",
            )
            .hint("Restrict it to one shard key by equality.")),
        };
    }
    let Some(range) = &copy.relation else {
        return Ok(Draft::home("copy"));
    };
    let known = scope::find_known(statement.catalog, statement.context, range);
    let placed = known.filter(|relation| relation.placement != Placement::Local);
    if let Some(relation) = known.filter(|_| statement.catalog.has_placed_relations) {
        crate::route::refuse_unusable(relation)?;
        match &relation.unsafe_reads {
            Some(danger) if !copy.is_from => {
                return Err(PlanError::unsupported(format!(
                    "reading \"{}\" is not supported",
                    relation.name.name
                ))
                .detail(&danger.why)
                .hint(&danger.hint));
            }
            _ => {}
        }
        if copy.is_from {
            write::refuse_write(relation)?;
        }
    }
    let Some(relation) = placed else {
        return match (known, copy.is_from) {
            (Some(relation), true) => copy_in_at_home(statement, copy, range, relation),
            (None, true) => Ok(Draft::home("copy").writes()),
            (_, false) => Ok(Draft::home("copy")),
        };
    };
    if file {
        return Err(no_files());
    }
    if !copy.is_from {
        return copy_out(copy, relation);
    }
    copy_in(statement, copy, range, relation)
}

/// The plan of COPY's query: its rows are needed on one server.
fn of_query(query: &Statement<'_>) -> Result<Draft, PlanError> {
    match query.node {
        NodeEnum::SelectStmt(select) if admin::call(query, select)?.is_none() => {
            statement::query(query, "copy")
        }
        _ => statement::draft(query),
    }
}

fn no_files() -> PlanError {
    PlanError::unsupported("COPY of distributed and reference tables with files of a server or programs is not supported")
        .hint("Use COPY ... FROM STDIN, COPY ... TO STDOUT, or psql's \\copy.")
}

fn copy_out(copy: &protobuf::CopyStmt, relation: &Relation) -> Result<Draft, PlanError> {
    if relation.placement == Placement::Reference {
        return Ok(Draft::new(Plan::Single(Target::AnyCopy), "copy"));
    }
    let format = Options::of(&copy.options)?.format()?;
    Ok(Draft::new(Plan::CopyOut(CopyOut { format }), "copy"))
}

/// COPY into a local table. Where the transaction's time is another shard's, defaults that read it
/// are filled in.
fn copy_in_at_home(
    statement: &Statement<'_>,
    copy: &protobuf::CopyStmt,
    range: &protobuf::RangeVar,
    relation: &Relation,
) -> Result<Draft, PlanError> {
    let given = strings(&copy.attlist);
    let filled = |column: &Column| {
        !given.contains(&column.name.as_str())
            && write::default_reads_clock(statement.catalog, column)
    };
    let reads_clock = !given.is_empty() && relation.columns.iter().any(filled);
    let from_client = !copy.is_program && copy.filename.is_empty();
    if reads_clock && from_client && statement.context.reach == Reach::OneTime {
        return copy_in(statement, copy, range, relation);
    }
    let mut draft = Draft::home("copy").writes();
    draft.session.reads_clock = reads_clock && from_client;
    Ok(draft)
}

fn copy_in(
    statement: &Statement<'_>,
    copy: &protobuf::CopyStmt,
    range: &protobuf::RangeVar,
    relation: &Relation,
) -> Result<Draft, PlanError> {
    let options = Options::of(&copy.options)?;
    options.refuse_for_split()?;
    refuse_condition(statement, copy)?;
    let columns: Vec<String> = if copy.attlist.is_empty() {
        let stored = relation.columns.iter().filter(|column| !column.generated);
        stored.map(|column| column.name.clone()).collect()
    } else {
        strings(&copy.attlist)
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    if columns.iter().any(|name| relation.column(name).is_none()) {
        // Its error is the server's own.
        return Ok(Draft::home("copy").writes());
    }
    let appended = appended(statement, relation, &columns, &options)?;
    let destination = match &relation.placement {
        Placement::Schema { colocation } => CopyDestination::Whole { group: *colocation },
        Placement::Distributed {
            key,
            key_type,
            colocation,
        } => {
            let field = columns
                .iter()
                .position(|name| name == key)
                .map(CopyKey::Field);
            let place = || appended.drawn.iter().position(|(name, _)| name == key);
            let key = field
                .or_else(|| place().map(CopyKey::Sequence))
                .ok_or_else(|| {
                    PlanError::unsupported(format!("COPY must give shard key \"{key}\""))
                        .hint(format!("Add \"{key}\" to the column list and to the data."))
                })?;
            CopyDestination::Key {
                key,
                key_type: *key_type,
                group: *colocation,
            }
        }
        Placement::Reference => CopyDestination::EveryShard,
        Placement::Local => CopyDestination::Home,
    };
    let drawn = appended.drawn.iter().map(|(name, _)| name);
    let timed = appended.timed.iter().map(|(name, _)| name);
    let added: Vec<String> = drawn.chain(timed).cloned().collect();
    let sql = match added.is_empty() {
        true => None,
        false => {
            let names = columns.iter().chain(&added);
            let names: Vec<String> = names.map(|name| identifier(name)).collect();
            Some(with_columns(
                statement,
                copy,
                range,
                relation,
                &names.join(", "),
            )?)
        }
    };
    let session = SessionEffects {
        moves_sequence: !appended.drawn.is_empty(),
        ..SessionEffects::default()
    };
    let plan = CopyIn {
        table: relation.name.clone(),
        destination,
        format: options.format()?,
        sql,
        sequences: seconds(appended.drawn),
        timed: seconds(appended.timed),
        appended: added,
    };
    Ok(Draft::new(Plan::CopyIn(plan), "copy")
        .session(session)
        .writes())
}

/// Columns that are left out of the data and filled in, by name.
#[derive(Default)]
struct Appended {
    /// With the sequence that each row takes a value from.
    drawn: Vec<(String, String)>,
    /// With a SELECT of the value of all rows.
    timed: Vec<(String, Template)>,
}

fn seconds<T>(pairs: Vec<(String, T)>) -> Vec<T> {
    pairs.into_iter().map(|(_, second)| second).collect()
}

fn appended(
    statement: &Statement<'_>,
    relation: &Relation,
    columns: &[String],
    options: &Options,
) -> Result<Appended, PlanError> {
    let mut appended = Appended::default();
    let local = relation.placement == Placement::Local;
    for column in &relation.columns {
        if columns.contains(&column.name) || column.generated {
            continue;
        }
        let timed = write::default_reads_clock(statement.catalog, column);
        if local && !timed {
            continue;
        }
        if let Some(sequence) = &column.sequence {
            appended.drawn.push((column.name.clone(), sequence.clone()));
            continue;
        }
        let traits = write::default_traits(statement.catalog, column);
        let reference = relation.placement == Placement::Reference;
        let uneven = (reference || timed) && (traits.volatile.is_some() || traits.statement_clock);
        if traits.home.is_some() || traits.unsafe_call.is_some() || uneven {
            return Err(not_computable(relation, column));
        }
        if timed {
            let value = clock::one_time(&value_of_all(column, options));
            let value = value.ok_or_else(|| not_computable(relation, column))?;
            appended.timed.push((column.name.clone(), value));
        }
    }
    Ok(appended)
}

fn not_computable(relation: &Relation, column: &Column) -> PlanError {
    PlanError::unsupported(format!(
        "the default of column \"{}\" of \"{}\" cannot be computed on each shard",
        column.name, relation.name.name
    ))
    .hint(format!(
        "Add \"{}\" to the column list and to the data.",
        column.name
    ))
}

/// A SELECT of a column's default, in a form that COPY reads alike at every setting.
fn value_of_all(column: &Column, options: &Options) -> String {
    let sql_type = without_length(&column.sql_type);
    let value = format!("({})::{sql_type}", write::default_text(column));
    let of_time = sql_type.starts_with("timestamp") || sql_type == "date";
    match options.format.as_deref() {
        Some("binary") => format!("SELECT {value}"),
        // In JSON they do not depend on DateStyle.
        _ if of_time && !sql_type.ends_with("[]") => {
            format!("SELECT pg_catalog.to_json({value}) #>> '{{}}'")
        }
        _ => format!("SELECT ({value})::text"),
    }
}

fn refuse_condition(statement: &Statement<'_>, copy: &protobuf::CopyStmt) -> Result<(), PlanError> {
    let Some(condition) = inner(&copy.where_clause) else {
        return Ok(());
    };
    let mut traits = Traits::default();
    tree::walk(condition, &mut |child| {
        if let Child::Node(node) = child {
            traits.note(Lookup::of(statement), node, false);
        }
    });
    traits.refuse_unsafe(statement.catalog)?;
    let uneven = traits.home.is_some()
        || traits.volatile.is_some()
        || traits.statement_clock
        || !traits.clocks.is_empty();
    if uneven {
        return Err(PlanError::unsupported(
            "the condition of COPY would be computed by each shard for itself",
        )
        .hint("Use constants and the row's own columns."));
    }
    Ok(())
}

/// The client's text with another column list.
fn with_columns(
    statement: &Statement<'_>,
    copy: &protobuf::CopyStmt,
    range: &protobuf::RangeVar,
    relation: &Relation,
    columns: &str,
) -> Result<String, PlanError> {
    let failure =
        || PlanError::unsupported("this form of COPY is not supported").hint("List every column.");
    let source = statement.source();
    let location = usize::try_from(range.location).map_err(|_| failure())?;
    let (from, mut to) = source.name(location).ok_or_else(failure)?;
    if !copy.attlist.is_empty() {
        let open = source.token_from(to);
        if !source.is_mark(open, '(') {
            return Err(failure());
        }
        to = source.tokens[source.closing(open).ok_or_else(failure)?].end;
    }
    let mut edits = Edits::default();
    edits.replace(
        (from, to),
        format!("{} ({columns})", qualified(&relation.name)),
    );
    edits
        .apply(statement.text, statement.span)
        .ok_or_else(failure)
}

// ---- options ----

/// Options that say how a row is written, and nothing about how many there are.
const OF_A_ROW: &[&str] = &["freeze", "force_quote", "force_not_null", "force_null"];
/// Options that say something about all rows together.
const OF_ALL_ROWS: &[&str] = &["on_error", "reject_limit", "log_verbosity"];

/// COPY's options as given; the old syntax comes in the same form.
#[derive(Debug, Default)]
struct Options {
    format: Option<String>,
    delimiter: Option<String>,
    null: Option<String>,
    header: Option<String>,
    quote: Option<String>,
    escape: Option<String>,
    encoding: Option<String>,
    default: bool,
    /// The first option that would mean something else on a part of the rows.
    counted: Option<String>,
}

impl Options {
    fn of(list: &[pg_query::Node]) -> Result<Options, PlanError> {
        let mut options = Options::default();
        for node in nodes(list) {
            let NodeEnum::DefElem(option) = node else {
                continue;
            };
            let value = inner(&option.arg).and_then(constant_text);
            match option.defname.to_lowercase().as_str() {
                "format" => options.format = value.map(|value| value.to_lowercase()),
                "delimiter" => options.delimiter = value,
                "null" => options.null = value,
                "header" => options.header = Some(value.unwrap_or_else(|| "true".to_owned())),
                "quote" => options.quote = value,
                "escape" => options.escape = value,
                "encoding" => options.encoding = value,
                "default" => options.default = true,
                name if OF_A_ROW.contains(&name) => {}
                // A shard that stops at its first error stops as one server would.
                "on_error" if value.as_deref() == Some("stop") => {}
                name if OF_ALL_ROWS.contains(&name) => {
                    options.counted.get_or_insert_with(|| name.to_owned());
                }
                name => {
                    let message = format!("option \"{name}\" not recognized");
                    return Err(PlanError::new("42601", message));
                }
            }
        }
        Ok(options)
    }

    fn refuse_for_split(&self) -> Result<(), PlanError> {
        let utf8 = |name: &String| {
            matches!(
                name.to_lowercase().replace(['-', '_'], "").as_str(),
                "utf8" | "unicode"
            )
        };
        if self.encoding.as_ref().is_some_and(|name| !utf8(name)) {
            return Err(PlanError::unsupported(
                "COPY into distributed and reference tables needs encoding UTF8",
            )
            .hint("Convert the data to UTF-8."));
        }
        if let Some(name) = &self.counted {
            return Err(PlanError::unsupported(format!(
                "COPY option {} is not supported for distributed and reference tables",
                name.to_uppercase()
            ))
            .detail("It would hold for the rows of each shard, and not for all of them together.")
            .hint("Copy into a local table with it, then INSERT ... SELECT from there."));
        }
        if self.default {
            return Err(PlanError::unsupported(
                "COPY option DEFAULT is not supported for distributed and reference tables",
            )
            .hint("Leave the column out of the column list."));
        }
        Ok(())
    }

    fn header(&self) -> bool {
        let off = |value: &String| matches!(value.to_lowercase().as_str(), "false" | "off" | "0");
        self.header.as_ref().is_some_and(|value| !off(value))
    }

    fn format(&self) -> Result<CopyFormat, PlanError> {
        let header = self.header();
        match self.format.as_deref() {
            None | Some("text") => Ok(CopyFormat::Text {
                delimiter: byte(&self.delimiter, b'\t')?,
                null: self.null.clone().unwrap_or_else(|| "\\N".to_owned()),
                header,
            }),
            Some("csv") => {
                let quote = byte(&self.quote, b'"')?;
                Ok(CopyFormat::Csv {
                    delimiter: byte(&self.delimiter, b',')?,
                    null: self.null.clone().unwrap_or_default(),
                    header,
                    quote,
                    escape: byte(&self.escape, quote)?,
                })
            }
            Some("binary") => Ok(CopyFormat::Binary),
            Some(other) => Err(PlanError::new(
                "22023",
                format!("COPY format \"{other}\" not recognized"),
            )),
        }
    }
}

fn byte(option: &Option<String>, default: u8) -> Result<u8, PlanError> {
    match option.as_ref().map(String::as_bytes) {
        None => Ok(default),
        Some([one]) => Ok(*one),
        Some(_) => Err(PlanError::new(
            "0A000",
            "COPY delimiter, quote and escape must be a single one-byte character",
        )),
    }
}
