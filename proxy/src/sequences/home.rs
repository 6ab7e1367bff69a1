//! Reservations on the home shard, as its admin, outside of every session's transaction.

use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tokio_postgres::{Client, Row, types::ToSql};

use super::{Identity, Source};
use crate::{
    error::{Report, sqlstate},
    process::lock,
    shard::Shard,
    store,
};

/// Connections at the same time; more requests wait.
const CONNECTIONS_MAX: usize = 4;

/// A change of the sequence in an open transaction keeps a reservation waiting, which is not the
/// client's own statement: it must end by itself.
const PREPARE_SESSION: &str = "set lock_timeout = '30s'";

/// What a sequence has left is shared by halves, so that proxies which are at it together do not
/// run into its end with values in their hands. Before its first `nextval`, where it starts is not
/// known: one value is drawn.
const DRAW: &str = "
    select nextval($1::oid::regclass)
    from generate_series(1, (
        select case
            when last is null then 1
            when (ending - last) / step >= 2 * $2::bigint then $2::bigint
            else greatest(1, least($2::bigint, div(div(ending - last, step), 2)::bigint))
        end
        from (
            select seqincrement::numeric as step,
                case when seqincrement > 0 then seqmax else seqmin end::numeric as ending,
                pg_sequence_last_value(seqrelid)::numeric as last
            from pg_sequence where seqrelid = $1
        ) as s
    ))";

/// The home shard.
pub struct HomeShard {
    shard: Arc<Shard>,
    idle: Mutex<Vec<Client>>,
    connections: Semaphore,
}

impl HomeShard {
    /// Connects when it is first asked.
    pub fn new(shard: Arc<Shard>) -> Self {
        HomeShard {
            shard,
            idle: Mutex::default(),
            connections: Semaphore::new(CONNECTIONS_MAX),
        }
    }

    /// True if the role may call `nextval`.
    pub async fn may_draw(&self, role: &str, sequence: u32) -> Result<bool, Report> {
        let text = "select has_sequence_privilege($1::text, $2::oid, 'USAGE, UPDATE')";
        let rows = self.query(text, &[&role, &sequence]).await?;
        let allowed: Option<bool> = rows.first().and_then(|row| row.get(0));
        // A sequence that is gone: drawing from it says so.
        Ok(allowed.unwrap_or(true))
    }

    async fn query(
        &self,
        text: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Report> {
        // Never closed: the permit is there in any case.
        let _permit = self.connections.acquire().await.ok();
        let idle = lock(&self.idle).pop().filter(|client| !client.is_closed());
        let client = match idle {
            Some(client) => client,
            None => self.connect().await?,
        };
        let result = client.query(text, parameters).await;
        if !client.is_closed() {
            lock(&self.idle).push(client);
        }
        result.map_err(|error| self.report(&error))
    }

    async fn connect(&self) -> Result<Client, Report> {
        let connected = store::connect(&self.shard).await;
        let (client, connection) =
            connected.map_err(|error| self.shard.unreachable(&error.to_string()))?;
        tokio::spawn(connection);
        let prepared = client.batch_execute(PREPARE_SESSION).await;
        prepared.map_err(|error| self.report(&error))?;
        Ok(client)
    }

    /// An error of the server's is the client's as it is.
    fn report(&self, error: &tokio_postgres::Error) -> Report {
        let Some(server) = error.as_db_error() else {
            return self.shard.broken(&error.to_string());
        };
        let mut report = Report::error(server.code().code(), server.message());
        if let Some(detail) = server.detail() {
            report = report.detail(detail);
        }
        if let Some(hint) = server.hint() {
            report = report.hint(hint);
        }
        report
    }
}

impl Source for HomeShard {
    async fn identity(&self, sequence: u32) -> Result<Option<Identity>, Report> {
        let text = "
            select automator67.sequence_identity(seqrelid), seqcache = 1 and not seqcycle, seqincrement
            from pg_sequence where seqrelid = $1";
        let rows = self.query(text, &[&sequence]).await?;
        Ok(rows.first().map(|row| Identity {
            text: row.get::<_, Option<String>>(0).unwrap_or_default(),
            blocks: row.get(1),
            step: row.get(2),
        }))
    }

    async fn draw(&self, sequence: u32, count: u64) -> Result<Vec<i64>, Report> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let drawn = match self.query(DRAW, &[&sequence, &count]).await {
            // Others drew at the same moment; one value may still be there.
            Err(report) if report.sqlstate == sqlstate::SEQUENCE_LIMIT && count > 1 => {
                self.query(DRAW, &[&sequence, &1i64]).await?
            }
            other => other?,
        };
        let values: Vec<i64> = drawn.iter().map(|row| row.get(0)).collect();
        if values.is_empty() {
            return Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "values of a sequence could not be reserved",
            ));
        }
        Ok(values)
    }
}
