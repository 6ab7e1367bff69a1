//! Questions to shards: rows and values of statements and functions of ours, as text.

use automator67_planner::{catalog::ShardId, plan::SessionEffects};
use bytes::BytesMut;

use crate::{
    error::{Outcome, Report, sqlstate},
    message,
    server::{Answer, call::Call, relay},
    session::{Session, planning::Request, scatter::without_position},
};

impl Session {
    /// The first column of the first row of a statement on one shard.
    pub(in crate::session) async fn query_value(
        &mut self,
        shard: ShardId,
        text: &str,
    ) -> Outcome<Option<String>> {
        let rows = self.query_rows(shard, text).await?;
        Ok(rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten()))
    }

    /// All rows of a statement on one shard, as text.
    pub(in crate::session) async fn query_rows(
        &mut self,
        shard: ShardId,
        text: &str,
    ) -> Outcome<Vec<Vec<Option<String>>>> {
        let index = self.link(shard).await?;
        self.links[index].server.query(text, Answer::Shown);
        self.text_rows(index).await
    }

    /// All rows of a function of ours on one shard, as text.
    pub(in crate::session) async fn call_rows(
        &mut self,
        shard: ShardId,
        call: &Call,
    ) -> Outcome<Vec<Vec<Option<String>>>> {
        self.set_up(shard).await?;
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        server.call(call, Answer::Shown);
        self.text_rows(index).await
    }

    /// The first column of its first row.
    pub(in crate::session) async fn call_value(
        &mut self,
        shard: ShardId,
        call: &Call,
    ) -> Outcome<Option<String>> {
        let mut rows = self.call_rows(shard, call).await?.into_iter();
        Ok(rows.next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// A function of ours that changes something on one shard.
    pub(in crate::session) async fn call(&mut self, shard: ShardId, call: &Call) -> Outcome {
        self.call_rows(shard, call).await.map(drop)
    }

    /// The same on every shard, home first.
    pub(in crate::session) async fn call_everywhere(&mut self, call: &Call) -> Outcome {
        let home = self.home();
        self.call(home, call).await?;
        for shard in self.all_shards() {
            if shard == home {
                continue;
            }
            let index = self.link(shard).await?;
            self.links[index].wrote = true;
            self.call(shard, call).await?;
        }
        Ok(())
    }

    /// Sends what is queued, and reads the rows that come, as text.
    pub(in crate::session) async fn text_rows(
        &mut self,
        index: usize,
    ) -> Outcome<Vec<Vec<Option<String>>>> {
        let mut rows = Vec::new();
        let server = &mut self.links[index].server;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'D' {
                let values = message::data_row(frame.body()).unwrap_or_default();
                let text = |value: Option<&[u8]>| {
                    value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                };
                rows.push(values.into_iter().map(text).collect());
            }
            Ok(())
        })
        .await?;
        debug_assert!(server.is_answered(), "answers are still due");
        self.hidden_error(index)?;
        Ok(rows)
    }

    /// Rows of a question to the home shard that holds the client's parameters, as text.
    pub(in crate::session) async fn ask_home(
        &mut self,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<Vec<Option<String>>>> {
        let home = self.home();
        self.send_select(home, text, &[0], request).await?;
        let mut rows = Vec::new();
        while let Some(frame) = self.next_row(home).await? {
            let values = message::data_row(frame.body()).unwrap_or_default();
            let text = |value: Option<&[u8]>| {
                value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            };
            rows.push(values.into_iter().map(text).collect());
        }
        Ok(rows)
    }

    /// RowDescription of a statement of ours, from the home shard.
    pub(in crate::session) async fn describe_text(
        &mut self,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<BytesMut> {
        let parameter_types = self.types_for_shards(request).await?;
        let index = self.link(self.home()).await?;
        let server = &mut self.links[index].server;
        server.parse(text, &parameter_types, Answer::Hidden);
        server.describe_statement("", Answer::Shown);
        server.sync();
        let mut description = None;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'T' {
                description = Some(frame.bytes);
            }
            Ok(())
        })
        .await
        .map_err(without_position)?;
        self.hidden_error(index).map_err(without_position)?;
        description.ok_or_else(|| {
            Report::error(
                sqlstate::INTERNAL_ERROR,
                "a shard did not describe its rows",
            )
            .into()
        })
    }

    /// Parses the statement as the client wrote it on the home shard: its errors are the server's
    /// own, also when what we send is rewritten, and views are not in it.
    pub(in crate::session) async fn check_on_home(&mut self, request: &Request<'_>) -> Outcome {
        let home = self.home();
        let index = self.link(home).await?;
        let types: &[u32] = request.bound.map_or(&[], |bound| &bound.types);
        let server = &mut self.links[index].server;
        server.parse(request.text, types, Answer::Hidden);
        server.sync();
        let relayed = relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)?;
        relayed.told()?;
        self.check_views_on_home(request).await
    }

    /// The transaction's timestamp, as the shard has it that joined first, in a form that every server
    /// reads alike.
    pub(in crate::session) async fn transaction_time(&mut self) -> Outcome<String> {
        if let Some(known) = &self.transaction.time {
            return Ok(known.clone());
        }
        let shard = self.transaction.clock.unwrap_or(self.home());
        let text = "select to_char(now() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";
        let time = self.query_value(shard, text).await?.unwrap_or_default();
        if self.transaction.is_open() {
            self.transaction.time = Some(time.clone());
        }
        Ok(time)
    }

    /// The transaction's time, where a statement is to read it, is that of another shard.
    pub(in crate::session) fn has_other_clock(
        &self,
        shard: ShardId,
        effects: &SessionEffects,
    ) -> bool {
        effects.reads_clock && self.transaction.clock.is_some_and(|clock| clock != shard)
    }
}
