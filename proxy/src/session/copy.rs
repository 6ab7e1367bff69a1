//! COPY over several shards: rows split while they stream, or collected shard by shard; and rows
//! that move because a table's placement changes.

mod failures;

use automator67_planner::{
    catalog::{Catalog, KeyType, ShardId},
    key::{self, KeyValue},
    plan::{CopyDestination, CopyFormat, CopyIn, CopyKey, CopyOut, InsertSelect},
};
use bytes::{Buf, BytesMut};

use failures::{ELSEWHERE, First, RowNumbers};

use super::{
    Session,
    execute::unexpected_in_copy,
    incoming::{COPIES, Incoming},
    planning::{Request, whole_of},
};
use crate::{
    copy_rows::{self, COPY_CHUNK_BYTES, Piece, RowError, Scan, Tail},
    error::{Failure, Outcome, Report, sqlstate},
    frame::{Frame, HEADER_BYTES},
    guc,
    memory::{Share, UNCOUNTED_BYTES},
    message,
    server::{Answer, Server, call::Call, relay},
    telemetry::Tier,
};

/// Sequence values reserved at once for rows of a COPY.
const SEQUENCE_BLOCK: u64 = 1000;
/// Rows that are read from the home shard at once when they move.
const MOVE_ROWS: usize = 5000;

/// A COPY FROM STDIN in progress.
struct Splitter<'a> {
    copy: &'a CopyIn,
    shards: Vec<ShardId>,
    /// Per shard, data that was not sent yet.
    pending: Vec<BytesMut>,
    /// Per shard, which of the client's rows it got.
    rows: Vec<RowNumbers>,
    /// Received and not yet cut into rows.
    input: BytesMut,
    scan: Scan,
    /// Behind every row, after values of sequences: what is the same for all.
    constant: Tail,
    /// For a long line.
    share: Share,
    started: bool,
    ended: bool,
    line: u64,
}

impl Session {
    /// COPY ... FROM STDIN into a distributed or reference table.
    pub(super) async fn copy_in(&mut self, copy: &CopyIn, request: &Request<'_>) -> Outcome<Tier> {
        if copy.format == CopyFormat::Binary && !copy.sequences.is_empty() {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "binary COPY cannot leave out columns that a sequence fills",
            )
            .hint("Use FORMAT text or csv, or give every column.")
            .into());
        }
        self.check_filling(&copy.table, &copy.sequences).await?;
        for sequence in &copy.sequences {
            self.check_drawing(sequence).await?;
        }
        self.begin_implicit();
        let constant = self.values_of_all(copy, request).await?;
        let shards = match copy.destination {
            CopyDestination::Home => vec![self.home()],
            CopyDestination::EveryShard
            | CopyDestination::Key { .. }
            | CopyDestination::Whole { .. } => self.all_shards(),
        };
        let text = copy.sql.as_deref().unwrap_or(request.text);
        let mut response = None;
        for shard in &shards {
            let frame = self.start_copy(*shard, text).await?;
            response.get_or_insert(frame);
            if let Some(index) = self.link_position(*shard) {
                self.links[index].wrote = true;
            }
        }
        if let Some(frame) = response {
            // The client sends the columns it named; those behind them are ours.
            let hidden = copy.appended.len();
            message::put_copy_in_response(self.client.output(), frame.body(), hidden);
        }
        self.client.flush().await?;
        let pending = shards.iter().map(|_| BytesMut::new()).collect();
        let rows = shards.iter().map(|_| RowNumbers::default()).collect();
        let mut splitter = Splitter {
            copy,
            shards,
            pending,
            rows,
            input: BytesMut::new(),
            scan: Scan::of(self.major_version()),
            constant,
            share: Share::new(&self.process.memory),
            started: false,
            ended: false,
            line: 0,
        };
        let result = self.split_client_data(&mut splitter, request).await;
        let rows = self.end_copies(&mut splitter, result).await?;
        let total = match copy.destination {
            CopyDestination::EveryShard => rows.first().copied().unwrap_or(0),
            CopyDestination::Home | CopyDestination::Key { .. } | CopyDestination::Whole { .. } => {
                rows.iter().sum()
            }
        };
        message::put_command_complete(self.client.output(), &format!("COPY {total}"));
        Ok(Tier::Multi)
    }

    /// The major version of the servers that a COPY has come to.
    fn major_version(&self) -> u32 {
        let mut told = self.links.iter().flat_map(|link| &link.server.parameters);
        let version = told.find(|(name, _)| name == "server_version");
        let digits = version.map(|(_, text)| text.split(|one: char| !one.is_ascii_digit()));
        let major = digits.and_then(|mut digits| digits.next()?.parse().ok());
        major.unwrap_or_default()
    }

    /// The fields of columns that have one value in all rows, as they stand behind a row.
    async fn values_of_all(&mut self, copy: &CopyIn, request: &Request<'_>) -> Outcome<Tail> {
        let home = self.home();
        let format = i16::from(copy.format == CopyFormat::Binary);
        let mut fields = Tail::default();
        for value in &copy.timed {
            let select = self.sql(value, request).await?;
            self.send_select(home, &select, &[format], request).await?;
            let row = self.next_row(home).await?;
            let value = row.as_ref().and_then(|row| message::data_row(row.body()));
            let value = value.and_then(|values| values.first().copied().flatten());
            fields.push(&copy.format, value);
            while self.next_row(home).await?.is_some() {}
        }
        Ok(fields)
    }

    /// Reads the client's COPY messages to their end, also when a row was found to be wrong: what
    /// follows it must not be taken for something else.
    async fn split_client_data(
        &mut self,
        splitter: &mut Splitter<'_>,
        request: &Request<'_>,
    ) -> Outcome {
        let mut failure = None;
        loop {
            let frame = match self.copy_message().await? {
                Incoming::Message(frame) => frame,
                Incoming::Refused(b'd', report) => {
                    splitter.input = BytesMut::new();
                    failure.get_or_insert(Failure::Report(report));
                    continue;
                }
                Incoming::Refused(tag, _) => return Err(unexpected_in_copy(tag)),
            };
            match frame.tag {
                b'd' if failure.is_some() => {}
                b'd' => {
                    splitter.take_in(frame);
                    if let Err(error) = self.split_rows(splitter, request, false).await {
                        splitter.input = BytesMut::new();
                        failure = Some(error);
                    }
                }
                b'H' | b'S' => {}
                b'c' => {
                    if failure.is_none() {
                        failure = self.split_rows(splitter, request, true).await.err();
                    }
                    break;
                }
                b'f' => {
                    let reason = message::query(frame.body()).unwrap_or("").to_owned();
                    failure.get_or_insert(
                        Report::error(
                            sqlstate::QUERY_CANCELED,
                            format!("COPY from stdin failed: {reason}"),
                        )
                        .into(),
                    );
                    break;
                }
                other => return Err(unexpected_in_copy(other)),
            }
        }
        self.sync_taken_by_copy |= request.bound.is_some() && self.batch.is_synced();
        failure.map_or(Ok(()), Err)
    }

    /// Cuts rows off what has arrived and gives each to its shard.
    async fn split_rows(
        &mut self,
        splitter: &mut Splitter<'_>,
        request: &Request<'_>,
        at_end: bool,
    ) -> Outcome {
        if !splitter.started
            && !splitter
                .start()
                .map_err(|error| bad_row(splitter, &error))?
        {
            let bytes = splitter.input.len();
            return self.hold_line(splitter, bytes);
        }
        let mut input = std::mem::take(&mut splitter.input);
        while !splitter.ended {
            let format = &splitter.copy.format;
            let piece = copy_rows::next_row(format, &input, &mut splitter.scan);
            let size = match piece.map_err(|error| next_bad_row(splitter, &error))? {
                Piece::Row(size) => size,
                Piece::Last(size) => {
                    splitter.ended = true;
                    input.truncate(size);
                    input.extend_from_slice(splitter.scan.line_end());
                    input.len()
                }
                Piece::End => {
                    splitter.ended = true;
                    break;
                }
                // The last line may come without its end.
                Piece::More if at_end && !input.is_empty() && splitter.is_lines() => {
                    copy_rows::end_line(format, &mut input, &mut splitter.scan)
                        .map_err(|error| next_bad_row(splitter, &error))?;
                    input.len()
                }
                Piece::More if at_end && !input.is_empty() => {
                    return Err(bad_row(splitter, &RowError::Incomplete));
                }
                Piece::More => break,
            };
            splitter.line += 1;
            self.place_row(splitter, &input[..size], request).await?;
            input.advance(size);
        }
        if splitter.ended {
            input.clear();
        }
        self.hold_line(splitter, input.len())?;
        splitter.input = input;
        self.send_pending(splitter, if at_end { 0 } else { COPY_CHUNK_BYTES })
            .await
    }

    /// A line that has not ended yet is held up to `message_bytes_max`.
    fn hold_line(&self, splitter: &mut Splitter<'_>, bytes: usize) -> Outcome {
        let limit = self.process.settings.message_bytes_max;
        if bytes > limit {
            return Err(Report::error(
                sqlstate::PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "row {} of the COPY data is longer than {limit} bytes",
                    splitter.line + 1
                ),
            )
            .hint("Split the value, or raise message_bytes_max in [sql].")
            .into());
        }
        if bytes > UNCOUNTED_BYTES {
            splitter.share.grow_to(COPIES * bytes)?;
        } else {
            splitter.share.release();
        }
        Ok(())
    }

    async fn place_row(
        &mut self,
        splitter: &mut Splitter<'_>,
        row: &[u8],
        request: &Request<'_>,
    ) -> Outcome {
        let copy = splitter.copy;
        let mut drawn = Vec::with_capacity(copy.sequences.len());
        for sequence in &copy.sequences {
            drawn.push(self.draw_while_copying(sequence, SEQUENCE_BLOCK).await?);
        }
        let tail = splitter.tail(&drawn);
        let target = match &copy.destination {
            CopyDestination::EveryShard | CopyDestination::Home => None,
            CopyDestination::Whole { group } => Some(whole_of(&request.catalog, *group)?),
            CopyDestination::Key {
                key,
                key_type,
                group,
            } => {
                let value = match key {
                    CopyKey::Sequence(n) => {
                        let text = drawn.get(*n).map_or("", String::as_str);
                        key::from_text(*key_type, text)
                            .ok_or_else(|| bad_row(splitter, &RowError::FieldSize))?
                    }
                    CopyKey::Field(index) => {
                        self.field_key(splitter, row, *index, *key_type).await?
                    }
                };
                Some(self.owner(&request.catalog, *group, &value).await?)
            }
        };
        for (position, shard) in splitter.shards.iter().enumerate() {
            if target.is_some_and(|target| target != *shard) {
                continue;
            }
            splitter.rows[position].push(splitter.line);
            let pending = &mut splitter.pending[position];
            if row.len() <= COPY_CHUNK_BYTES {
                copy_rows::put_row(pending, &copy.format, row, &tail);
                continue;
            }
            // A long row is not copied once more for every shard.
            self.put_copy(*shard, pending).await?;
            pending.clear();
            self.put_long_row(*shard, row, &tail, &copy.format).await?;
        }
        if splitter
            .pending
            .iter()
            .any(|pending| pending.len() > COPY_CHUNK_BYTES)
        {
            self.send_pending(splitter, COPY_CHUNK_BYTES).await?;
        }
        Ok(())
    }

    async fn put_long_row(
        &mut self,
        shard: ShardId,
        row: &[u8],
        tail: &Tail,
        format: &CopyFormat,
    ) -> Outcome {
        let (count, fields, end) = copy_rows::around(format, row, tail);
        if let Some(count) = count {
            self.put_copy(shard, &count).await?;
        }
        for piece in fields.chunks(COPY_CHUNK_BYTES) {
            self.put_copy(shard, piece).await?;
        }
        let rest = [tail.bytes(), end].concat();
        self.put_copy(shard, &rest).await
    }

    /// The key in a row's field. A spelling that we do not read with certainty is given to a
    /// server, apart from the copy.
    async fn field_key(
        &mut self,
        splitter: &Splitter<'_>,
        row: &[u8],
        index: usize,
        key_type: KeyType,
    ) -> Outcome<KeyValue> {
        let format = &splitter.copy.format;
        let field =
            copy_rows::field(format, row, index).map_err(|error| bad_row(splitter, &error))?;
        let Some(field) = field else {
            return Ok(KeyValue::Null);
        };
        if *format == CopyFormat::Binary {
            let value = key::native_oid(key_type, field.len())
                .and_then(|oid| key::from_binary(key_type, oid, &field));
            return value.ok_or_else(|| bad_row(splitter, &RowError::FieldSize));
        }
        let text =
            std::str::from_utf8(&field).map_err(|_| bad_row(splitter, &RowError::Encoding))?;
        if let Some(value) = key::from_text(key_type, text) {
            return Ok(value);
        }
        let sql_type = sql_type(key_type);
        let probe = format!("select {}::{sql_type}", guc::quote_literal(text));
        let canonical = self
            .ask_apart(|server| server.query(&probe, Answer::Shown))
            .await?;
        let value = canonical
            .first()
            .and_then(|text| key::from_text(key_type, text));
        value.ok_or_else(|| {
            Report::error(
                "22P02",
                format!("invalid input syntax for type {sql_type}: \"{text}\""),
            )
            .detail(format!(
                "Shard key in row {} of the COPY data.",
                splitter.line
            ))
            .into()
        })
    }

    async fn send_pending(&mut self, splitter: &mut Splitter<'_>, above: usize) -> Outcome {
        for (shard, pending) in splitter.shards.iter().zip(&mut splitter.pending) {
            if pending.len() > above {
                self.put_copy(*shard, pending).await?;
                pending.clear();
            }
        }
        Ok(())
    }

    /// Ends the copies on all shards: done, or failed everywhere if anything failed. The failure is that
    /// of the first row which any of them finds wrong.
    async fn end_copies(
        &mut self,
        splitter: &mut Splitter<'_>,
        mut result: Outcome,
    ) -> Outcome<Vec<u64>> {
        if result.is_err() {
            // Rows before the wrong one may be wrong as well.
            let rest = self.send_pending(splitter, 0).await;
            result = result.and(rest);
        }
        let mut first = First::new(u64::from(splitter.has_header()));
        let done = result.is_ok();
        match result {
            Ok(()) => {}
            Err(Failure::ClientGone) => return Err(Failure::ClientGone),
            Err(failure) => first.note_own(splitter.line, failure),
        }
        for shard in &splitter.shards {
            self.finish_copy(*shard, done).await;
        }
        let mut rows = Vec::new();
        for (shard, numbers) in splitter.shards.iter().zip(&splitter.rows) {
            match self.copied_rows(*shard).await {
                Ok(count) => {
                    self.note_rows(*shard, count);
                    rows.push(count);
                }
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(failure) => first.note_shard(numbers, failure),
            }
        }
        first.failure().map_or(Ok(rows), Err)
    }

    /// Tells a shard that its COPY is at its end; its answer is not waited for. What cannot be sent is
    /// told where the answer is read.
    async fn finish_copy(&mut self, shard: ShardId, done: bool) {
        let Some(index) = self.link_position(shard) else {
            return;
        };
        let server = &mut self.links[index].server;
        if !std::mem::take(&mut server.copying) {
            return;
        }
        if done {
            server.copy_done();
        } else {
            server.copy_fail(ELSEWHERE);
        }
        let _ = relay::send(server).await;
    }

    /// Ends a shard's COPY so that it keeps nothing of it.
    pub(super) async fn fail_copy(&mut self, shard: ShardId) -> Outcome {
        let Some(index) = self.link_position(shard) else {
            return Ok(());
        };
        let server = &mut self.links[index].server;
        if !std::mem::take(&mut server.copying) {
            return Ok(());
        }
        server.copy_fail(ELSEWHERE);
        if relay::send(server).await.is_err() {
            return Ok(());
        }
        self.drain_link(index).await
    }

    /// Values of a sequence, drawn on a connection of their own: this transaction's are all busy
    /// copying.
    pub(super) async fn draw_apart(
        &mut self,
        sequence: &str,
        count: usize,
    ) -> Outcome<Vec<String>> {
        let text = format!(
            "select nextval({}::regclass) from generate_series(1, {count})",
            guc::quote_literal(sequence)
        );
        self.ask_apart(|server| server.query(&text, Answer::Shown))
            .await
    }

    /// What a function of ours returns, called outside of this session's transaction.
    pub(super) async fn call_apart(&mut self, call: &Call) -> Outcome<Option<String>> {
        let ask = |server: &mut Server| {
            server.call(call, Answer::Shown);
        };
        Ok(self.ask_apart(ask).await?.into_iter().next())
    }

    /// The first column of what a statement answers that runs outside of this session's
    /// transaction.
    async fn ask_apart(&mut self, ask: impl FnOnce(&mut Server)) -> Outcome<Vec<String>> {
        let home = self.process.home().clone();
        let pool = self.thread.pools.pool(&home, &self.user);
        let mut server = pool.checkout().await?;
        if !server.settings.same(&Default::default()) {
            let reset = server.settings.difference(&Default::default());
            server.settings = Default::default();
            server.query(&reset, Answer::Hidden);
        }
        ask(&mut server);
        server.move_sequence(0);
        let mut values = Vec::new();
        relay::collect(&mut self.client, &mut server, |_, frame| {
            if frame.tag == b'D' {
                let row = message::data_row(frame.body()).unwrap_or_default();
                let value = row.first().copied().flatten().unwrap_or_default();
                values.push(String::from_utf8_lossy(value).into_owned());
            }
            Ok(())
        })
        .await?;
        Ok(values)
    }

    // ---- out ----

    /// COPY table TO STDOUT: one stream out of the shards' streams.
    pub(super) async fn copy_out(
        &mut self,
        copy: &CopyOut,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let shards = self.all_shards();
        // All shards see one transaction, so that what is read fits together as well as it can.
        self.begin_implicit();
        let header = matches!(
            copy.format,
            CopyFormat::Text { header: true, .. } | CopyFormat::Csv { header: true, .. }
        );
        let mut rows = 0;
        for (position, shard) in shards.iter().enumerate() {
            let index = self.link(*shard).await?;
            self.links[index].server.query(request.text, Answer::Shown);
            relay::send(&mut self.links[index].server).await?;
            let (first, last) = (position == 0, position + 1 == shards.len());
            rows += self.copy_out_of(index, copy, header, first, last).await?;
        }
        self.client.output().extend_from_slice(b"c\0\0\0\x04");
        message::put_command_complete(self.client.output(), &format!("COPY {rows}"));
        Ok(Tier::Multi)
    }

    async fn copy_out_of(
        &mut self,
        index: usize,
        copy: &CopyOut,
        header: bool,
        first: bool,
        last: bool,
    ) -> Outcome<u64> {
        let binary = copy.format == CopyFormat::Binary;
        let mut rows = 0;
        let mut lead = true;
        let server = &mut self.links[index].server;
        relay::collect(&mut self.client, server, |output, frame| {
            match frame.tag {
                b'H' if first => output.extend_from_slice(&frame.bytes),
                b'C' => rows = message::tag_rows(message::command_tag(frame.body())).unwrap_or(0),
                b'd' => {
                    let body = frame.body();
                    let leads = std::mem::take(&mut lead);
                    let skip = if !leads || first {
                        0
                    } else if binary {
                        copy_rows::BINARY_HEADER.len().min(body.len())
                    } else if header {
                        body.len()
                    } else {
                        0
                    };
                    let mut body = &body[skip..];
                    if binary
                        && !last
                        && (body == copy_rows::BINARY_TRAILER
                            || leads
                                && body.len() == 21
                                && body.ends_with(copy_rows::BINARY_TRAILER))
                    {
                        body = &body[..body.len() - 2];
                    }
                    if !body.is_empty() {
                        message::framed(output, b'd', |out| out.extend_from_slice(body));
                    }
                }
                _ => {}
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        Ok(rows)
    }

    // ---- rows that move ----

    /// Rows of the home shard's `pg_temp.a67_stage` to where they belong.
    pub(super) async fn spread_stage(
        &mut self,
        insert: &InsertSelect,
        request: &Request<'_>,
    ) -> Outcome<u64> {
        let columns: Vec<String> = insert
            .columns
            .iter()
            .map(|name| guc::quote_identifier(name))
            .collect();
        let target = format!(
            "{}.{} ({})",
            guc::quote_identifier(&insert.table.schema),
            guc::quote_identifier(&insert.table.name),
            columns.join(", ")
        );
        let source = "SELECT * FROM pg_temp.a67_stage";
        let rule = Rule::of(insert, &request.catalog)?;
        self.spread(source, &target, rule, Spread::Stage, &request.catalog)
            .await
    }

    /// Reads rows on the home shard and copies each to where it belongs.
    pub(super) async fn spread(
        &mut self,
        source: &str,
        target: &str,
        rule: Rule,
        mode: Spread<'_>,
        catalog: &Catalog,
    ) -> Outcome<u64> {
        let home = self.home();
        let others = self.other_shards();
        let declare = format!("DECLARE a67_rows NO SCROLL CURSOR FOR {source}");
        self.run_hidden(home, &declare).await?;
        // It keeps some of the rows, or gives some away.
        self.note_rows(home, 1);
        let copy = format!("COPY {target} FROM STDIN");
        for shard in &others {
            self.start_copy(*shard, &copy).await?;
            if let Some(index) = self.link_position(*shard) {
                self.links[index].wrote = true;
            }
        }
        let mut total = 0;
        loop {
            let rows = self
                .query_rows(home, &format!("FETCH {MOVE_ROWS} FROM a67_rows"))
                .await?;
            if rows.is_empty() {
                break;
            }
            if total == 0 && !matches!(mode, Spread::Stage) {
                self.refuse_beside_others().await?;
            }
            total += rows.len() as u64;
            self.spread_rows(&rows, &others, target, rule, mode, catalog)
                .await?;
        }
        self.run_hidden(home, "CLOSE a67_rows").await?;
        for shard in &others {
            let count = self.end_copy(*shard).await?;
            self.note_rows(*shard, count);
        }
        Ok(total)
    }

    /// The shard of a row in the server's text form; `None`: every one.
    pub(super) async fn owner_of(
        &mut self,
        rule: Rule,
        row: &[Option<String>],
        catalog: &Catalog,
    ) -> Outcome<Option<ShardId>> {
        let (column, key_type, group) = match rule {
            Rule::EveryShard => return Ok(None),
            Rule::Whole(shard) => return Ok(Some(shard)),
            Rule::Key {
                column,
                key_type,
                group,
            } => (column, key_type, group),
        };
        let value = match row.get(column).and_then(Option::as_deref) {
            None => KeyValue::Null,
            Some(text) => key::from_text(key_type, text).ok_or_else(|| unreadable_key(text))?,
        };
        self.owner(catalog, group, &value).await.map(Some)
    }

    /// The transaction has written so many rows on a shard.
    pub(super) fn note_rows(&mut self, shard: ShardId, count: u64) {
        if let (Some(index), true) = (self.link_position(shard), count > 0) {
            self.links[index].wrote = true;
        }
    }

    async fn spread_rows(
        &mut self,
        rows: &[Vec<Option<String>>],
        others: &[ShardId],
        target: &str,
        rule: Rule,
        mode: Spread<'_>,
        catalog: &Catalog,
    ) -> Outcome {
        let home = self.home();
        let leading = usize::from(matches!(mode, Spread::Move { .. }));
        let mut data: Vec<BytesMut> = others.iter().map(|_| BytesMut::new()).collect();
        let mut stay = BytesMut::new();
        let mut moved: Vec<&str> = Vec::new();
        for row in rows {
            let values = row[leading..]
                .iter()
                .map(|value| value.as_deref().map(str::as_bytes));
            let owner = self.owner_of(rule, &row[leading..], catalog).await?;
            for (shard, data) in others.iter().zip(&mut data) {
                if owner.is_none_or(|owner| owner == *shard) {
                    copy_rows::put_text_row(data, values.clone());
                }
            }
            if mode == Spread::Stage && owner.is_none_or(|owner| owner == home) {
                copy_rows::put_text_row(&mut stay, values);
            } else if owner.is_some_and(|owner| owner != home) {
                moved.extend(row.first().and_then(|ctid| ctid.as_deref()));
            }
        }
        for (shard, data) in others.iter().zip(&data) {
            self.put_copy(*shard, data).await?;
        }
        if !stay.is_empty() {
            self.start_copy(home, &format!("COPY {target} FROM STDIN"))
                .await?;
            self.put_copy(home, &stay).await?;
            let count = self.end_copy(home).await?;
            self.note_rows(home, count);
        }
        if let (Spread::Move { table }, false) = (mode, moved.is_empty()) {
            let list = guc::quote_literal(&format!("{{\"{}\"}}", moved.join("\",\"")));
            let delete = format!("DELETE FROM ONLY {table} WHERE ctid = ANY ({list}::tid[])");
            self.run_hidden(home, &delete).await?;
            self.note_rows(home, moved.len() as u64);
        }
        Ok(())
    }
}

/// Which shard a row belongs to.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Every one.
    EveryShard,
    /// This one.
    Whole(ShardId),
    /// That of its key.
    Key {
        /// Where in the row the key is.
        column: usize,
        /// How it is read.
        key_type: KeyType,
        /// The table's colocation group.
        group: u32,
    },
}

impl Rule {
    /// For rows of an INSERT ... SELECT.
    pub fn of(insert: &InsertSelect, catalog: &Catalog) -> Outcome<Rule> {
        Ok(
            match (insert.group, insert.key_column.zip(insert.key_type)) {
                (None, _) => Rule::EveryShard,
                (Some(group), None) => Rule::Whole(whole_of(catalog, group)?),
                (Some(group), Some((column, key_type))) => Rule::Key {
                    column,
                    key_type,
                    group,
                },
            },
        )
    }
}

/// What happens to rows that are read on the home shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread<'a> {
    /// They come from a temporary table: those of the home shard are inserted there, too.
    Stage,
    /// They are the table's own, `ctid` first: those that belong elsewhere are deleted.
    Move {
        /// The table, quoted.
        table: &'a str,
    },
    /// They stay and are copied to every other shard.
    Copy,
}

impl Splitter<'_> {
    fn is_lines(&self) -> bool {
        self.copy.format != CopyFormat::Binary
    }

    /// Appends what has arrived.
    fn take_in(&mut self, mut frame: Frame) {
        if self.input.is_empty() && frame.bytes.len() > COPY_CHUNK_BYTES {
            frame.bytes.advance(HEADER_BYTES);
            self.input = frame.bytes;
        } else {
            self.input.extend_from_slice(frame.body());
        }
    }

    fn has_header(&self) -> bool {
        matches!(
            self.copy.format,
            CopyFormat::Text { header: true, .. } | CopyFormat::Csv { header: true, .. }
        )
    }

    /// What stands behind a row that has drawn these values.
    fn tail(&self, drawn: &[String]) -> Tail {
        let mut tail = Tail::default();
        for value in drawn {
            tail.push(&self.copy.format, Some(value.as_bytes()));
        }
        tail.append(&self.constant);
        tail
    }

    /// Gives the header to every shard. False: it has not arrived yet.
    fn start(&mut self) -> Result<bool, RowError> {
        let size = match &self.copy.format {
            CopyFormat::Binary => match copy_rows::binary_header(&self.input)? {
                Some(size) => size,
                None => return Ok(false),
            },
            CopyFormat::Text { header: true, .. } | CopyFormat::Csv { header: true, .. } => {
                match copy_rows::next_row(&self.copy.format, &self.input, &mut self.scan)? {
                    Piece::Row(size) => size,
                    Piece::Last(_) | Piece::End | Piece::More => return Ok(false),
                }
            }
            CopyFormat::Text { .. } | CopyFormat::Csv { .. } => 0,
        };
        let format = &self.copy.format;
        let header = &self.input[..size];
        let names = match format {
            CopyFormat::Binary => Tail::default(),
            CopyFormat::Text { .. } | CopyFormat::Csv { .. } => {
                let mut names = Tail::default();
                for name in self.copy.appended.iter().filter(|_| size > 0) {
                    names.push(format, Some(name.as_bytes()));
                }
                names
            }
        };
        for pending in &mut self.pending {
            copy_rows::put_row(pending, format, header, &names);
        }
        self.input.advance(size);
        self.started = true;
        Ok(true)
    }
}

fn unreadable_key(text: &str) -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("shard key value \"{text}\" cannot be read"),
    )
    .hint("SET DateStyle TO ISO and use finite dates as shard keys.")
    .into()
}

/// A type that holds every value of a key.
pub fn sql_type(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Integer => "bigint",
        KeyType::Text => "text",
        KeyType::Uuid => "uuid",
        KeyType::Date => "date",
        KeyType::Timestamp => "timestamp",
        KeyType::TimestampTz => "timestamptz",
    }
}

fn bad_row(splitter: &Splitter<'_>, error: &RowError) -> Failure {
    let report = Report::error(sqlstate::BAD_COPY_FILE_FORMAT, error.to_string())
        .detail(format!("Row {} of the COPY data.", splitter.line));
    match error.hint() {
        Some(hint) => report.hint(hint).into(),
        None => report.into(),
    }
}

/// The row behind the last one is wrong.
fn next_bad_row(splitter: &mut Splitter<'_>, error: &RowError) -> Failure {
    splitter.line += 1;
    bad_row(splitter, error)
}
