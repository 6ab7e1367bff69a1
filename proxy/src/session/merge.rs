//! The merge tier: shards' partial results are brought to the home shard, where a last statement
//! makes the answer of them. Postgres itself adds, divides, sorts and compares, so the answer has
//! the digits and the order that one Postgres gives.
//!
//! Few rows travel as arrays, one parameter for each column; many go into a temporary table.

use std::time::Instant;

use automator67_planner::{
    catalog::ShardId,
    plan::{ColumnAt, Distinct, FinalPiece, Piece, Rows},
};
use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Session,
    planning::Request,
    scatter::{COLLATABLE, Learned, Part, malformed, missing_row, without_position},
    servers::Select,
};
use crate::{
    copy_rows,
    error::{Failure, Outcome},
    frame::{Frame, HEADER_BYTES},
    guc, message,
    server::{Answer, relay},
};

/// More bytes than this do not travel as parameters.
const ARRAY_BYTES_MAX: usize = 4 << 20;
/// Parameters of one Bind; parts that would need more go into the table, however few they are.
const PARAMETERS_MAX: usize = 65_535;
/// A temporary table of more rows gets statistics.
const ANALYZE_ROWS_MIN: u64 = 10_000;
const PARTS_TABLE: &str = "a67_parts";

/// How a column's type is written.
#[derive(Debug, Clone)]
pub struct TypeNames {
    /// With its modifier: `numeric(10,2)`.
    pub full: String,
    /// Without it.
    pub base: String,
    /// ` COLLATE "x"`, or nothing where the type has no collation, or its default.
    pub collate: String,
    /// The values of all columns travel in binary.
    binary: bool,
    oid: u32,
}

/// `text`
const TEXT_OID: u32 = 25;

/// Built-in types whose binary values are elements of arrays as they are.
pub const ELEMENTS: &[u32] = &[
    16, 17, 20, 21, 23, 25, 26, 700, 701, 790, 869, 650, 829, 1042, 1043, 1082, 1083, 1114, 1184,
    1186, 1266, 1560, 1562, 1700, 2950, 3220, 3802, 114,
];

/// `record`, `record[]`: values that cannot be read back.
pub const RECORDS: &[u32] = &[2249, 2287];

/// Partial results, column by column, in the form of array elements.
struct Parts {
    columns: Vec<BytesMut>,
    nulls: Vec<bool>,
    rows: u64,
}

impl Parts {
    fn new(count: usize) -> Parts {
        Parts {
            columns: vec![BytesMut::new(); count],
            nulls: vec![false; count],
            rows: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.columns.iter().map(BytesMut::len).sum()
    }

    fn add(&mut self, row: &Frame) -> Outcome {
        let values = message::data_row(row.body()).ok_or_else(malformed)?;
        if values.len() != self.columns.len() {
            return Err(malformed());
        }
        for (index, value) in values.into_iter().enumerate() {
            let column = &mut self.columns[index];
            match value {
                None => {
                    column.put_i32(-1);
                    self.nulls[index] = true;
                }
                Some(bytes) => {
                    column.put_i32(bytes.len() as i32);
                    column.extend_from_slice(bytes);
                }
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Rows again, as COPY wants them: the columns are read side by side.
    fn put_rows(&self, binary: bool, output: &mut BytesMut) {
        let mut rest: Vec<&[u8]> = self.columns.iter().map(|column| &column[..]).collect();
        for _ in 0..self.rows {
            let values: Vec<Option<&[u8]>> =
                rest.iter_mut().map(|column| next_element(column)).collect();
            if binary {
                output.put_i16(values.len() as i16);
                for value in values {
                    match value {
                        None => output.put_i32(-1),
                        Some(bytes) => {
                            output.put_i32(bytes.len() as i32);
                            output.extend_from_slice(bytes);
                        }
                    }
                }
            } else {
                copy_rows::put_text_row(output, values.into_iter());
            }
        }
    }

    /// One column as a value of an array type (`src/backend/utils/adt/arrayfuncs.c`, array_recv).
    fn put_array(&self, index: usize, oid: u32, output: &mut BytesMut) {
        let elements = &self.columns[index];
        let dimensions = i32::from(self.rows > 0);
        let length = 12 + 8 * dimensions + elements.len() as i32;
        output.put_i32(length);
        output.put_i32(dimensions);
        output.put_i32(i32::from(self.nulls[index]));
        output.put_u32(oid);
        if dimensions > 0 {
            output.put_i32(self.rows as i32);
            output.put_i32(1);
            output.extend_from_slice(elements);
        }
    }
}

fn next_element<'c>(column: &mut &'c [u8]) -> Option<&'c [u8]> {
    let (length, rest) = column.split_first_chunk::<4>()?;
    *column = rest;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    let (value, rest) = column.split_at_checked(length)?;
    *column = rest;
    Some(value)
}

/// Where the partial results are.
enum Brought {
    /// Parameters behind the client's.
    Arrays(Parts),
    /// A temporary table on the home shard.
    Table,
}

impl Session {
    /// Groups that have rows on several shards. `None`: not by this tier; nothing was sent.
    pub(super) async fn merge(
        &mut self,
        pieces: &[FinalPiece],
        shards: &[ShardId],
        text: &str,
        learned: &Learned,
        request: &Request<'_>,
    ) -> Outcome<Option<Vec<Part>>> {
        if learned.columns.iter().any(|(oid, _)| RECORDS.contains(oid)) {
            return Ok(None);
        }
        let names = self.type_names(learned, text, request).await?;
        if self.parts_lose(&names).await? {
            return Ok(None);
        }
        let Some(last) = last_statement(pieces, &names, request) else {
            // The average of single precision values is not made of their sum.
            return Ok(None);
        };
        self.answer_by(&last, shards, text, learned, &names, request)
            .await
            .map(Some)
    }

    /// Rows whose order, or whose equality, only Postgres knows. `None`: not by this tier.
    pub(super) async fn merge_rows(
        &mut self,
        rows: &Rows,
        shards: &[ShardId],
        text: &str,
        learned: &Learned,
        request: &Request<'_>,
    ) -> Outcome<Option<Vec<Part>>> {
        if learned.columns.iter().any(|(oid, _)| RECORDS.contains(oid)) {
            return Ok(None);
        }
        let names = self.type_names(learned, text, request).await?;
        if self.parts_lose(&names).await? {
            return Ok(None);
        }
        let last = self.ordered_statement(rows, learned, request)?;
        self.answer_by(&last, shards, text, learned, &names, request)
            .await
            .map(Some)
    }

    /// Values would not be the same where they are read.
    async fn parts_lose(&mut self, names: &[TypeNames]) -> Outcome<bool> {
        if names.iter().all(|name| name.binary) {
            return Ok(false);
        }
        let types: Vec<u32> = names.iter().map(|name| name.oid).collect();
        self.text_loses(&types).await
    }

    /// Brings the shards' rows together and runs the last statement over them.
    async fn answer_by(
        &mut self,
        last: &[Last],
        shards: &[ShardId],
        text: &str,
        learned: &Learned,
        names: &[TypeNames],
        request: &Request<'_>,
    ) -> Outcome<Vec<Part>> {
        let (brought, parts) = self.bring(shards, text, learned, names, request).await?;
        self.finish_merge(last, brought, names, request).await?;
        self.note_parts(&parts);
        Ok(parts)
    }

    /// Names of the columns' types, from the home shard; asked once for each plan.
    pub(super) async fn type_names(
        &mut self,
        learned: &Learned,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<TypeNames>> {
        if let Some(known) = learned.names.get() {
            return Ok(known.clone());
        }
        let columns = learned.columns.iter().enumerate();
        let questions: Vec<String> = columns
            .map(|(index, (oid, modifier))| {
                let name = format!("a67.c{}", index + 1);
                let collation = match COLLATABLE.contains(oid) {
                    true => format!(
                        "CASE WHEN pg_catalog.pg_collation_for({name}) COLLATE \"C\" <> '\"default\"' \
                         THEN ' COLLATE ' || pg_catalog.pg_collation_for({name}) END"
                    ),
                    false => "NULL".to_owned(),
                };
                format!(
                    "pg_catalog.format_type({oid}, {modifier}), \
                     pg_catalog.format_type({oid}, -1), {collation}"
                )
            })
            .collect();
        let collated = learned
            .columns
            .iter()
            .any(|(oid, _)| COLLATABLE.contains(oid));
        let from = match collated {
            true => format!(" FROM {}", missing_row(text, learned.columns.len())),
            false => String::new(),
        };
        let question = format!("SELECT {}{from}", questions.join(", "));
        let rows = self.ask_home(&question, request).await?;
        let mut values = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut known = Vec::with_capacity(learned.columns.len());
        for (oid, _) in &learned.columns {
            let mut next = || values.next().flatten();
            let (full, base, collate) = (next(), next(), next());
            let collate = collate.unwrap_or_default();
            known.push(TypeNames {
                full: full.ok_or_else(malformed)?,
                base: base.ok_or_else(malformed)?,
                collate,
                binary: ELEMENTS.contains(oid),
                oid: *oid,
            });
        }
        // COPY takes all columns in one format.
        let binary = known.iter().all(|name| name.binary);
        known.iter_mut().for_each(|name| name.binary = binary);
        let _ = learned.names.set(known.clone());
        Ok(known)
    }

    /// Runs the shards' statement and brings its rows to the home shard.
    async fn bring(
        &mut self,
        shards: &[ShardId],
        text: &str,
        learned: &Learned,
        names: &[TypeNames],
        request: &Request<'_>,
    ) -> Outcome<(Brought, Vec<Part>)> {
        let formats: Vec<i16> = names.iter().map(|name| i16::from(name.binary)).collect();
        let started = Instant::now();
        let mut parts = Vec::with_capacity(shards.len());
        let select = Select {
            text,
            formats: &formats,
            learned,
        };
        // What the home shard does with their rows comes after it.
        self.send_selects(shards, &select, false, request).await?;
        // The home shard's rows are read first: then its connection is free for those of others.
        let home = self.home();
        let mut order: Vec<ShardId> = shards.to_vec();
        order.sort_by_key(|shard| *shard != home);
        let mut loader = Loader {
            parts: Parts::new(names.len()),
            table: false,
        };
        for shard in order {
            let mut part = Part {
                shard,
                rows: 0,
                bytes: 0,
                milliseconds: 0.0,
            };
            let result = self.bring_from(&mut part, &mut loader, names).await;
            part.milliseconds = started.elapsed().as_secs_f64() * 1000.0;
            parts.push(part);
            match result {
                Ok(true) => {}
                Ok(false) => {
                    // To cancel would fail the transaction that may be open.
                    for shard in shards {
                        while self.next_row(*shard).await?.is_some() {}
                    }
                    return self.bring_by_table(shards, text, names, request).await;
                }
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(failure) => {
                    self.stop_parts(shards).await?;
                    return Err(failure);
                }
            }
        }
        learned.took(started.elapsed());
        let given = request
            .bound
            .map_or(0, |bound| bound.bind.parameter_count());
        if !loader.table && given + names.len() <= PARAMETERS_MAX {
            return Ok((Brought::Arrays(loader.parts), parts));
        }
        if !loader.table {
            self.start_parts(names).await?;
        }
        self.load_parts(&mut loader.parts, names).await?;
        let rows: u64 = parts.iter().map(|part| part.rows).sum();
        self.end_parts(names, rows).await?;
        Ok((Brought::Table, parts))
    }

    /// Reads one shard's rows. False: those of the home shard are too many to be held.
    async fn bring_from(
        &mut self,
        part: &mut Part,
        loader: &mut Loader,
        names: &[TypeNames],
    ) -> Outcome<bool> {
        let home = self.home();
        while let Some(row) = self.next_row(part.shard).await? {
            part.rows += 1;
            part.bytes += row.bytes.len() as u64;
            loader.parts.add(&row)?;
            let high = if part.shard == home {
                self.settings.own.work_bytes
            } else if loader.table {
                copy_rows::COPY_CHUNK_BYTES
            } else {
                ARRAY_BYTES_MAX
            };
            if loader.parts.bytes() <= high {
                continue;
            }
            if part.shard == home {
                return Ok(false);
            }
            if !loader.table {
                self.start_parts(names).await?;
                loader.table = true;
            }
            self.load_parts(&mut loader.parts, names).await?;
        }
        Ok(true)
    }

    /// The home shard's own rows go straight into the table, then those of the others.
    async fn bring_by_table(
        &mut self,
        shards: &[ShardId],
        text: &str,
        names: &[TypeNames],
        request: &Request<'_>,
    ) -> Outcome<(Brought, Vec<Part>)> {
        let home = self.home();
        let started = Instant::now();
        let milliseconds = || started.elapsed().as_secs_f64() * 1000.0;
        self.begin_implicit();
        self.create_parts(names).await?;
        let insert = format!("INSERT INTO pg_temp.{PARTS_TABLE} {text}");
        let own = self.insert_at_home(&insert, request).await;
        let own = own.map_err(without_position)?;
        let mut parts = vec![Part {
            shard: home,
            rows: own,
            bytes: 0,
            milliseconds: milliseconds(),
        }];
        let others: Vec<ShardId> = shards
            .iter()
            .copied()
            .filter(|shard| *shard != home)
            .collect();
        let formats: Vec<i16> = names.iter().map(|name| i16::from(name.binary)).collect();
        for shard in &others {
            self.send_select(*shard, text, &formats, request).await?;
        }
        self.copy_parts(names).await?;
        let mut loader = Loader {
            parts: Parts::new(names.len()),
            table: true,
        };
        for shard in others.iter().copied() {
            let mut part = Part {
                shard,
                rows: 0,
                bytes: 0,
                milliseconds: 0.0,
            };
            if let Err(failure) = self.bring_from(&mut part, &mut loader, names).await {
                self.stop_parts(&others).await?;
                return Err(failure);
            }
            part.milliseconds = milliseconds();
            parts.push(part);
        }
        self.load_parts(&mut loader.parts, names).await?;
        let rows: u64 = parts.iter().map(|part| part.rows).sum();
        self.end_parts(names, rows).await?;
        Ok((Brought::Table, parts))
    }

    /// Makes the temporary table and starts to copy into it.
    async fn start_parts(&mut self, names: &[TypeNames]) -> Outcome {
        self.begin_implicit();
        self.create_parts(names).await?;
        self.copy_parts(names).await
    }

    async fn create_parts(&mut self, names: &[TypeNames]) -> Outcome {
        let home = self.home();
        self.lift_guard().await?;
        let columns: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(index, name)| format!("c{} {}{}", index + 1, name.full, name.collate))
            .collect();
        let create = format!(
            "DROP TABLE IF EXISTS pg_temp.{PARTS_TABLE}; \
             CREATE TEMPORARY TABLE {PARTS_TABLE} ({}) ON COMMIT DROP",
            columns.join(", ")
        );
        self.run_hidden(home, &create).await
    }

    async fn copy_parts(&mut self, names: &[TypeNames]) -> Outcome {
        let home = self.home();
        let binary = names.iter().all(|name| name.binary);
        let format = if binary { " (FORMAT binary)" } else { "" };
        self.start_copy(
            home,
            &format!("COPY pg_temp.{PARTS_TABLE} FROM STDIN{format}"),
        )
        .await?;
        if binary {
            self.put_copy(home, copy_rows::BINARY_HEADER).await?;
        }
        Ok(())
    }

    async fn load_parts(&mut self, parts: &mut Parts, names: &[TypeNames]) -> Outcome {
        let binary = names.iter().all(|name| name.binary);
        let mut rows = BytesMut::with_capacity(parts.bytes() + 2 * parts.rows as usize);
        parts.put_rows(binary, &mut rows);
        *parts = Parts::new(names.len());
        self.put_copy(self.home(), &rows).await
    }

    async fn end_parts(&mut self, names: &[TypeNames], rows: u64) -> Outcome {
        let home = self.home();
        if names.iter().all(|name| name.binary) {
            self.put_copy(home, copy_rows::BINARY_TRAILER).await?;
        }
        self.end_copy(home).await?;
        if rows > ANALYZE_ROWS_MIN {
            self.run_hidden(home, &format!("ANALYZE pg_temp.{PARTS_TABLE}"))
                .await?;
        }
        self.close_guard().await
    }

    /// Runs the last statement; its rows are the client's.
    async fn finish_merge(
        &mut self,
        last: &[Last],
        brought: Brought,
        names: &[TypeNames],
        request: &Request<'_>,
    ) -> Outcome {
        let given = request
            .bound
            .map_or(0, |bound| bound.bind.parameter_count());
        let source = match &brought {
            Brought::Table => format!("pg_temp.{PARTS_TABLE} a67"),
            Brought::Arrays(_) => arrays_as_rows(names, given),
        };
        let now = match last.contains(&Last::Now) {
            true => self.quoted_time().await?,
            false => String::new(),
        };
        let text: String = last
            .iter()
            .map(|piece| match piece {
                Last::Text(text) => text.as_str(),
                Last::Rows => source.as_str(),
                Last::Now => now.as_str(),
            })
            .collect();
        let started = Instant::now();
        let parameter_types = self.types_for_shards(request).await?;
        let index = self.link(self.home()).await?;
        let server = &mut self.links[index].server;
        server.parse(&text, &parameter_types, Answer::Hidden);
        let arrays = match &brought {
            Brought::Arrays(parts) => Some(parts),
            Brought::Table => None,
        };
        server.bind_written(|body| put_last_bind(body, arrays, names, request));
        if request.bound.is_none() {
            server.describe_portal("", Answer::Shown);
        }
        server.execute_unnamed(Answer::Shown);
        server.sync();
        server.forget_tables = true;
        let relayed = relay::exchange(&mut self.client, server).await;
        if let Some(index) = self.link_position(self.home()) {
            self.links[index].server.forget_tables = false;
        }
        let relayed = relayed?;
        self.process
            .telemetry
            .bytes_to_clients
            .increment(relayed.bytes);
        self.hidden_error(index).map_err(without_position)?;
        relayed.told()?;
        self.work.last_milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        self.work.table = matches!(brought, Brought::Table);
        self.work.last = Some(text);
        if matches!(brought, Brought::Table)
            && self.transaction.is_explicit()
            && !self.transaction.read_only
        {
            let drop = format!("DROP TABLE IF EXISTS pg_temp.{PARTS_TABLE}");
            self.run_hidden(self.home(), &drop).await?;
        }
        Ok(())
    }

    /// `SELECT columns FROM parts ORDER BY ... LIMIT ...`, with the names that the client knows.
    pub(super) fn ordered_statement(
        &self,
        rows: &Rows,
        learned: &Learned,
        request: &Request<'_>,
    ) -> Outcome<Vec<Last>> {
        let visible = learned.columns.len().saturating_sub(rows.hidden);
        let names =
            message::column_names(&learned.description[HEADER_BYTES..]).ok_or_else(malformed)?;
        let at = |column: ColumnAt| match column {
            ColumnAt::Visible(at) => format!("a67.c{}", at + 1),
            ColumnAt::Hidden(at) => format!("a67.c{}", visible + at + 1),
        };
        let mut text = String::from("SELECT ");
        match &rows.distinct {
            None => {}
            Some(Distinct::Rows) => text.push_str("DISTINCT "),
            Some(Distinct::On(columns)) => {
                let columns: Vec<String> = columns.iter().map(|column| at(*column)).collect();
                text.push_str(&format!("DISTINCT ON ({}) ", columns.join(", ")));
            }
        }
        let shown: Vec<String> = names
            .iter()
            .take(visible)
            .enumerate()
            .map(|(index, name)| format!("a67.c{} AS {}", index + 1, guc::quote_identifier(name)))
            .collect();
        text.push_str(&shown.join(", "));
        text.push_str(" FROM ");
        let mut behind = String::new();
        let order: Vec<String> = rows
            .order
            .iter()
            .map(|sort| {
                let direction = if sort.descending { " DESC" } else { "" };
                let nulls = if sort.nulls_first { "FIRST" } else { "LAST" };
                let column = at(sort.column);
                format!("{column}{direction} NULLS {nulls}")
            })
            .collect();
        if !order.is_empty() {
            behind.push_str(&format!(" ORDER BY {}", order.join(", ")));
        }
        let number = |count: &automator67_planner::plan::Count| count_text(count, request);
        if let Some(offset) = &rows.offset {
            behind.push_str(&format!(" OFFSET {}", number(offset)?));
        }
        if let Some(count) = &rows.count {
            let number = number(count)?;
            behind.push_str(&if rows.ties {
                format!(" FETCH FIRST ({number}) ROWS WITH TIES")
            } else {
                format!(" LIMIT {number}")
            });
        }
        Ok(vec![Last::Text(text), Last::Rows, Last::Text(behind)])
    }
}

/// What is read at the moment.
struct Loader {
    parts: Parts,
    /// Rows go to the temporary table.
    table: bool,
}

/// A piece of the last statement.
#[derive(PartialEq)]
pub enum Last {
    /// As it stands.
    Text(String),
    /// The partial results.
    Rows,
    /// The transaction's time.
    Now,
}

/// The last statement with types filled in; `None` where these do not allow it.
pub fn last_statement(
    pieces: &[FinalPiece],
    names: &[TypeNames],
    request: &Request<'_>,
) -> Option<Vec<Last>> {
    let mut done = Vec::new();
    let mut text = String::new();
    for piece in pieces {
        match piece {
            FinalPiece::Piece(Piece::Now) => {
                done.push(Last::Text(std::mem::take(&mut text)));
                done.push(Last::Now);
            }
            FinalPiece::Piece(piece) => {
                request.render(std::slice::from_ref(piece), &|_, _| {}, &mut text);
            }
            FinalPiece::Type(at) => text.push_str(&names.get(*at)?.base),
            FinalPiece::Average { sum, count } => {
                text.push_str(&average(names.get(*sum)?.oid, sum + 1, count + 1)?);
            }
            FinalPiece::Rows => {
                done.push(Last::Text(std::mem::take(&mut text)));
                done.push(Last::Rows);
            }
        }
    }
    done.push(Last::Text(text));
    Some(done)
}

/// The average as Postgres makes it of sum and number, by the type of the sum.
fn average(oid: u32, sum: usize, count: usize) -> Option<String> {
    let number = format!("nullif(sum(a67.c{count}), 0)");
    match oid {
        // bigint, numeric: int8_avg and numeric_avg divide numerics.
        20 | 1700 => Some(format!("(sum(a67.c{sum})::numeric / {number}::numeric)")),
        // double precision, interval
        701 | 1186 => Some(format!("(sum(a67.c{sum}) / {number}::double precision)")),
        _ => None,
    }
}

pub fn count_text(
    count: &automator67_planner::plan::Count,
    request: &Request<'_>,
) -> Outcome<String> {
    use automator67_planner::plan::Count;
    match count {
        Count::Number(number) => Ok(number.to_string()),
        Count::Literal(slot) => {
            let literal = request.literals.get(*slot).ok_or_else(malformed)?;
            let text = request.whole.get(literal.start..literal.end);
            Ok(text.ok_or_else(malformed)?.to_owned())
        }
        Count::Parameter(index) => Ok(format!("${}::bigint", index + 1)),
    }
}

/// An item of FROM that has the arrays' elements as rows.
fn arrays_as_rows(names: &[TypeNames], given: usize) -> String {
    let arrays: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let element = if name.binary {
                name.base.as_str()
            } else {
                "text"
            };
            format!("${}::{element}[]", given + index + 1)
        })
        .collect();
    let columns: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let number = index + 1;
            format!("u.c{number}::{}{} AS c{number}", name.full, name.collate)
        })
        .collect();
    let list: Vec<String> = (1..=names.len())
        .map(|number| format!("c{number}"))
        .collect();
    format!(
        "(SELECT {} FROM unnest({}) u ({})) a67",
        columns.join(", "),
        arrays.join(", "),
        list.join(", ")
    )
}

/// Bind of the last statement: the client's parameters, then the arrays, in binary.
fn put_last_bind(
    body: &mut BytesMut,
    arrays: Option<&Parts>,
    names: &[TypeNames],
    request: &Request<'_>,
) {
    let parts = arrays.into_iter().flat_map(|parts| {
        let names = names.iter().enumerate();
        names.map(move |(index, name)| (parts, index, name))
    });
    let bind = request.bound.map(|bound| &*bound.bind);
    message::put_parameters(body, bind, parts, |body, (parts, index, name)| {
        let oid = if name.binary { name.oid } else { TEXT_OID };
        parts.put_array(index, oid, body);
    });
    let formats: Bytes = request.bound.map_or(Bytes::from_static(&[0, 0]), |bound| {
        bound.bind.result_formats()
    });
    body.extend_from_slice(&formats);
}
