//! The gather tier: the rows a statement needs are copied to temporary tables on the home shard,
//! undecoded, and the statement runs there.

use automator67_planner::{
    catalog::ShardId,
    plan::{Fetch, FetchSource, Gather, ProxyView},
};
use bytes::BytesMut;

use super::{Session, moving::staged::put_row, planning::Request};
use crate::{
    copy_rows,
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    server::{Answer, relay},
    telemetry::Tier,
    types,
};

/// Fetched relations of more rows get statistics and their primary key, so that the home shard
/// plans as it would with the table itself.
const ANALYZE_ROWS_MIN: u64 = 1000;

/// What a fetch has moved.
#[derive(Debug, Default, Clone)]
pub struct Moved {
    /// Rows.
    pub rows: u64,
    /// Bytes that came from other shards.
    pub bytes: u64,
    /// Per shard: rows, bytes, milliseconds.
    pub shards: Vec<(ShardId, u64, u64, f64)>,
}

impl Moved {
    /// Rows that were not on the home shard.
    pub fn rows_from_others(&self, home: ShardId) -> u64 {
        let others = self.shards.iter().filter(|(shard, ..)| *shard != home);
        others.map(|(_, rows, ..)| rows).sum()
    }
}

impl Session {
    /// A SELECT that needs rows of several shards.
    pub(super) async fn gather(&mut self, gather: &Gather, request: &Request<'_>) -> Outcome<Tier> {
        self.check_on_home(request).await?;
        self.begin_implicit();
        self.load_fetches(gather, request).await?;
        let home = self.home();
        let index = self.link(home).await?;
        self.links[index].server.forget_tables = true;
        let statement = self.sql(&gather.statement, request).await?;
        let result = self.run_text(request, &statement, home).await;
        if let Some(link) = self
            .links
            .iter_mut()
            .find(|link| link.server.shard_id() == home)
        {
            link.server.forget_tables = false;
        }
        result?;
        // A portal that still reads them keeps them to the end of the transaction.
        if request.bound.is_some_and(|bound| self.is_open(&bound.name)) {
            self.keep_fetches(gather);
        } else {
            self.end_fetches(gather).await?;
        }
        Ok(Tier::Gather)
    }

    /// DECLARE CURSOR: the temporary tables live as long as the cursor may.
    pub(super) async fn gather_for_cursor(
        &mut self,
        gather: &Gather,
        request: &Request<'_>,
    ) -> Outcome {
        self.check_views_on_home(request).await?;
        self.begin_implicit();
        self.load_fetches(gather, request).await?;
        self.keep_fetches(gather);
        let statement = self.sql(&gather.statement, request).await?;
        self.run_text(request, &statement, self.home()).await
    }

    /// Copies everything the statement reads to the home shard.
    pub(super) async fn load_fetches(
        &mut self,
        gather: &Gather,
        request: &Request<'_>,
    ) -> Outcome<Vec<Moved>> {
        if gather.fetches.iter().any(Fetch::is_table) {
            self.lift_guard().await?;
        }
        self.rename_kept().await?;
        let mut left = self.settings.own.gather_bytes_max;
        let mut all = Vec::with_capacity(gather.fetches.len());
        for fetch in &gather.fetches {
            let moved = self.load(fetch, request, left).await;
            let moved = moved.map_err(|failure| behind_view(failure, request))?;
            left = left.saturating_sub(moved.bytes);
            self.process.telemetry.bytes_gathered.increment(moved.bytes);
            all.push(moved);
        }
        self.close_guard().await?;
        Ok(all)
    }

    /// The statement is done. Where the transaction ends with it, or must not change tables, its
    /// end is soon enough for them.
    pub(super) async fn end_fetches(&mut self, gather: &Gather) -> Outcome {
        if self.transaction.is_explicit() && !self.transaction.read_only {
            return self.drop_fetches(gather).await;
        }
        self.keep_fetches(gather);
        Ok(())
    }

    /// The temporary tables live as long as the transaction.
    fn keep_fetches(&mut self, gather: &Gather) {
        let tables = gather.fetches.iter().filter(|fetch| fetch.is_table());
        let names = tables.map(|fetch| fetch.temp_table.clone());
        self.transaction.kept.extend(names);
    }

    /// Earlier gathers of the transaction leave their names to the next one.
    pub(super) async fn rename_kept(&mut self) -> Outcome {
        for name in std::mem::take(&mut self.transaction.kept) {
            self.transaction.renamed += 1;
            let rename = format!(
                "ALTER TABLE IF EXISTS pg_temp.{name} RENAME TO a67_kept{}",
                self.transaction.renamed
            );
            self.run_hidden(self.home(), &rename).await?;
        }
        Ok(())
    }

    /// Drops the temporary tables of a statement that is done.
    pub(super) async fn drop_fetches(&mut self, gather: &Gather) -> Outcome {
        let names: Vec<String> = gather
            .fetches
            .iter()
            .filter(|fetch| fetch.is_table())
            .map(|fetch| format!("pg_temp.{}", fetch.temp_table))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        self.run_hidden(self.home(), &format!("DROP TABLE {}", names.join(", ")))
            .await
    }

    async fn load(
        &mut self,
        fetch: &Fetch,
        request: &Request<'_>,
        bytes_max: u64,
    ) -> Outcome<Moved> {
        let home = self.home();
        let set = match &fetch.from {
            FetchSource::Proxy(view) => return self.put_view_rows(*view).await,
            FetchSource::Shards(set) => set,
        };
        // A part of the statement that was answered before may have left a table of this name.
        let create = self.sql(&fetch.create, request).await?;
        let create = format!(
            "DROP TABLE IF EXISTS pg_temp.{}; {create}",
            fetch.temp_table
        );
        self.run_hidden(home, &create).await?;
        let shards = self.shard_set(set, request).await?;
        let moved = self
            .load_from_shards(fetch, &shards, request, bytes_max)
            .await?;
        let many = moved.rows > ANALYZE_ROWS_MIN;
        if let Some(primary_key) = &fetch.primary_key
            && (many || fetch.needs_key)
        {
            self.run_hidden(home, primary_key).await?;
        }
        if many {
            self.run_hidden(home, &format!("ANALYZE pg_temp.{}", fetch.temp_table))
                .await?;
        }
        Ok(moved)
    }

    async fn load_from_shards(
        &mut self,
        fetch: &Fetch,
        shards: &[ShardId],
        request: &Request<'_>,
        bytes_max: u64,
    ) -> Outcome<Moved> {
        let home = self.home();
        let mut moved = Moved::default();
        let others: Vec<ShardId> = shards
            .iter()
            .copied()
            .filter(|shard| *shard != home)
            .collect();
        for shard in &others {
            self.ask(fetch, *shard, request).await?;
        }
        if shards.contains(&home) {
            let started = std::time::Instant::now();
            let rows = self.copy_within_home(fetch, request).await?;
            moved.rows += rows;
            moved.shards.push((home, rows, 0, milliseconds(started)));
        }
        if !others.is_empty() {
            self.stream_to_home(fetch, &others, bytes_max, &mut moved)
                .await?;
        }
        Ok(moved)
    }

    /// Sends a fetch's SELECT to a shard; the answer is read later.
    async fn ask(&mut self, fetch: &Fetch, shard: ShardId, request: &Request<'_>) -> Outcome {
        let parameter_types = self.types_for_shards(request).await?;
        let select = self.sql(&fetch.select, request).await?;
        let index = self.link(shard).await?;
        types::learn_for_shard(&self.links[index].server.shard, &parameter_types).await?;
        let server = &mut self.links[index].server;
        let parameters = request
            .bound
            .map_or(message::NO_PARAMETERS, |b| b.bind.parameters());
        server.parse(&select, &parameter_types, Answer::Hidden);
        server.bind_with(parameters, &[i16::from(fetch.binary)]);
        server.execute_unnamed(Answer::Shown);
        server.sync();
        relay::send(server).await
    }

    /// The home shard's own rows never leave it.
    async fn copy_within_home(&mut self, fetch: &Fetch, request: &Request<'_>) -> Outcome<u64> {
        let select = self.sql(&fetch.select, request).await?;
        let text = format!("INSERT INTO pg_temp.{} {select}", fetch.temp_table);
        self.insert_at_home(&text, request).await
    }

    /// An INSERT of ours on the home shard, with the client's parameters. Returns the number of
    /// rows.
    pub(super) async fn insert_at_home(
        &mut self,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<u64> {
        let types = self.types_for_shards(request).await?;
        let index = self.link(self.home()).await?;
        let server = &mut self.links[index].server;
        let parameters = request
            .bound
            .map_or(message::NO_PARAMETERS, |b| b.bind.parameters());
        server.parse(text, &types, Answer::Hidden);
        server.bind_with(parameters, &[]);
        server.execute_unnamed(Answer::Shown);
        server.sync();
        let mut rows = 0;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'C' {
                rows = message::tag_rows(message::command_tag(frame.body())).unwrap_or(0);
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        Ok(rows)
    }

    /// DataRows of the other shards become COPY data on the home shard: in binary the two have the
    /// same form.
    async fn stream_to_home(
        &mut self,
        fetch: &Fetch,
        shards: &[ShardId],
        bytes_max: u64,
        moved: &mut Moved,
    ) -> Outcome {
        self.refuse_lossy(fetch).await?;
        let home = self.home();
        let format = if fetch.binary { " (FORMAT binary)" } else { "" };
        let copy = format!("COPY pg_temp.{} FROM STDIN{format}", fetch.temp_table);
        self.start_copy(home, &copy).await?;
        if fetch.binary {
            self.put_copy(home, copy_rows::BINARY_HEADER).await?;
        }
        for shard in shards {
            let started = std::time::Instant::now();
            let (rows, bytes) = self
                .stream_one(fetch, *shard, bytes_max, moved.bytes)
                .await?;
            moved.rows += rows;
            moved.bytes += bytes;
            moved
                .shards
                .push((*shard, rows, bytes, milliseconds(started)));
        }
        if fetch.binary {
            self.put_copy(home, copy_rows::BINARY_TRAILER).await?;
        }
        self.end_copy(home).await?;
        Ok(())
    }

    async fn stream_one(
        &mut self,
        fetch: &Fetch,
        shard: ShardId,
        bytes_max: u64,
        bytes_before: u64,
    ) -> Outcome<(u64, u64)> {
        let (mut rows, mut bytes) = (0, 0);
        let mut pending = BytesMut::new();
        loop {
            let Some(source) = self.link_position(shard) else {
                return Ok((rows, bytes));
            };
            if self.links[source].server.is_answered() {
                break;
            }
            let answer =
                relay::next_answer(&mut self.client, &mut self.links[source].server).await?;
            let Some(frame) = answer else { continue };
            match frame.tag {
                b'D' => {
                    rows += 1;
                    bytes += frame.body().len() as u64;
                    if bytes_before + bytes > bytes_max {
                        self.abandon_link(shard);
                        return Err(over_budget(fetch, self.settings.own.gather_bytes_max));
                    }
                    put_row(&mut pending, &frame, fetch.binary);
                    if pending.len() > copy_rows::COPY_CHUNK_BYTES {
                        self.put_copy(self.home(), &pending).await?;
                        pending.clear();
                    }
                }
                b'E' => return Err(Failure::Shard(frame.bytes)),
                _ => {}
            }
        }
        self.put_copy(self.home(), &pending).await?;
        if let Some(source) = self.link_position(shard) {
            self.hidden_error(source)?;
        }
        Ok((rows, bytes))
    }

    /// Puts the rows of a view of the proxy's where the statement finds them: in a setting of the
    /// transaction, which takes no space on a disk.
    async fn put_view_rows(&mut self, view: ProxyView) -> Outcome<Moved> {
        let rows = self.view_rows(view).await?;
        let columns = view.columns();
        let object = |row: &Vec<Option<String>>| -> serde_json::Value {
            let values = row.iter().map(|value| value.clone().into());
            let names = columns.iter().map(|(name, _)| (*name).to_owned());
            serde_json::Value::Object(names.zip(values).collect())
        };
        let json: serde_json::Value = rows.iter().map(object).collect();
        let set = format!(
            "select pg_catalog.set_config('{}', {}, true)",
            view.setting(),
            guc::quote_literal(&json.to_string())
        );
        self.run_hidden(self.home(), &set).await?;
        Ok(Moved {
            rows: rows.len() as u64,
            ..Moved::default()
        })
    }

    // ---- COPY into a shard, from our own hands ----

    /// How many rows a shard has taken, once it says so.
    pub(super) async fn copied_rows(&mut self, shard: ShardId) -> Outcome<u64> {
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        let mut rows = 0;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'C' {
                rows = message::tag_rows(message::command_tag(frame.body())).unwrap_or(0);
            }
            Ok(())
        })
        .await?;
        Ok(rows)
    }
}

/// Servers have found that the views of the statement may be read, but not the relation behind them
/// with the client's own rights.
pub fn behind_view(failure: Failure, request: &Request<'_>) -> Failure {
    let denied = failure.sqlstate() == sqlstate::INSUFFICIENT_PRIVILEGE;
    if !denied || !request.planned.session.through_views {
        return failure;
    }
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "a table cannot be read over several shards with the rights of a view's owner",
    )
    .detail("The view's own text stands in for it in this statement, and is read with the rights of who asks.")
    .hint("Grant SELECT on the table behind the view, or restrict the view to one shard key by equality.")
    .into()
}

fn milliseconds(since: std::time::Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn over_budget(fetch: &Fetch, bytes_max: u64) -> Failure {
    Report::error(
        sqlstate::LIMIT_EXCEEDED,
        format!("statement would copy more than {bytes_max} bytes to the home shard"),
    )
    .detail(format!(
        "Reached while copying \"{}\".",
        fetch.relation.name
    ))
    .hint("Filter by the shard key or by more columns, or raise automator67.gather_max_bytes.")
    .into()
}
