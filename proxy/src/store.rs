//! The catalog: migrated and filled at start, then followed. Sessions read an immutable snapshot.

use std::{future::poll_fn, sync::Arc, time::Duration};

use automator67_planner::{
    catalog::{Catalog, DocumentError},
    ring::Ring,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;

use crate::{
    server::{self, ConnectError},
    settings::Settings,
    shard::Shard,
};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// What every shard has, not only the home shard.
mod embedded_in_shards {
    refinery::embed_migrations!("migrations_of_shards");
}

/// Where changes of the catalog are announced.
const CHANNEL: &str = "automator67_catalog";
/// The name of every proxy's connection that follows the catalog.
pub const FOLLOWER: &str = "automator67 follower";
/// Held while a proxy migrates and fills the catalog, so that two do not at once.
const SETUP_LOCK: i64 = 0x6175_746f_3637;
/// First and longest pause between attempts to reach the home shard again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a statement waits for the snapshot to show its own change.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the catalog could not be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The home shard.
    #[error("could not reach the home shard \"{0}\": {1}")]
    Connect(String, ConnectError),
    /// A statement failed.
    #[error("the catalog could not be read or written: {}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer in time.
    #[error("the shard did not answer in time")]
    Timeout,
    /// Migrations.
    #[error("the catalog could not be migrated: {0}")]
    Migrate(#[from] refinery::Error),
    /// The document.
    #[error("the catalog could not be understood: {0}")]
    Document(#[from] DocumentError),
    /// The catalog knows other shards than the settings.
    #[error("the catalog lists the shards {catalog}, the settings list {settings}")]
    Shards {
        /// Names in the catalog.
        catalog: String,
        /// Names in the settings.
        settings: String,
    },
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => error.to_string(),
    }
}

/// The latest snapshot, and a way to wait for a newer one.
#[derive(Clone)]
pub struct Store {
    snapshot: watch::Receiver<Arc<Catalog>>,
}

impl Store {
    /// The snapshot of now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.snapshot.borrow().clone()
    }

    /// Waits until the snapshot is at least of `epoch`.
    pub async fn follow(&self, epoch: u64) {
        let mut snapshot = self.snapshot.clone();
        let newer = snapshot.wait_for(|catalog| catalog.epoch >= epoch);
        if tokio::time::timeout(FOLLOW_TIMEOUT, newer).await.is_err() {
            tracing::error!(epoch, "the catalog snapshot does not follow");
        }
    }
}

/// Migrates and fills the catalog on the home shard. Returns its name.
pub async fn set_up(home: &Arc<Shard>, settings: &Settings) -> Result<String, StoreError> {
    let (mut client, connection) = connect(home).await?;
    let driver = tokio::spawn(connection);
    let result = fill(&mut client, settings).await;
    drop(client);
    // The connection ends with its client; its own result says nothing more.
    let _ = driver.await;
    result
}

/// Gives a shard what transactions over several shards need. Returns `max_prepared_transactions`.
pub async fn set_up_shard(shard: &Arc<Shard>) -> Result<u32, StoreError> {
    let (mut client, connection) = connect(shard).await?;
    tokio::spawn(connection);
    client
        .execute("select pg_advisory_lock($1)", &[&SETUP_LOCK])
        .await?;
    client
        .batch_execute("create schema if not exists automator67")
        .await?;
    let mut runner = embedded_in_shards::migrations::runner();
    runner.set_migration_table_name("automator67.shard_migration");
    runner.run_async(&mut client).await?;
    client
        .execute("select pg_advisory_unlock($1)", &[&SETUP_LOCK])
        .await?;
    let row = client
        .query_one("show max_prepared_transactions", &[])
        .await?;
    let text: &str = row.get(0);
    Ok(text.parse().unwrap_or(0))
}

async fn fill(
    client: &mut tokio_postgres::Client,
    settings: &Settings,
) -> Result<String, StoreError> {
    client
        .execute("select pg_advisory_lock($1)", &[&SETUP_LOCK])
        .await?;
    client
        .batch_execute("create schema if not exists automator67")
        .await?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name("automator67.migration");
    runner.run_async(client).await?;
    register_shards(client, settings).await?;
    for user in &settings.users {
        let verifier = postgres_protocol::password::scram_sha_256(user.password.as_bytes());
        client
            .execute(
                "insert into automator67.login (name, verifier) values ($1, $2)
                 on conflict (name) do update set verifier = excluded.verifier",
                &[&user.name, &verifier],
            )
            .await?;
    }
    let row = client
        .query_one("select name from automator67.cluster", &[])
        .await?;
    client
        .execute("select pg_advisory_unlock($1)", &[&SETUP_LOCK])
        .await?;
    Ok(row.get(0))
}

/// Writes shards and ring at the first start; later the two lists must agree.
async fn register_shards(
    client: &mut tokio_postgres::Client,
    settings: &Settings,
) -> Result<(), StoreError> {
    let wanted: Vec<String> = settings
        .shards
        .iter()
        .map(|shard| shard.name.clone())
        .collect();
    let rows = client
        .query("select name from automator67.shard order by id", &[])
        .await?;
    let known: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if known == wanted {
        return Ok(());
    }
    if !known.is_empty() {
        return Err(StoreError::Shards {
            catalog: known.join(", "),
            settings: wanted.join(", "),
        });
    }
    let transaction = client.transaction().await?;
    let mut weights = Vec::new();
    for (id, name) in (1i32..).zip(&wanted) {
        let statement = "insert into automator67.shard (id, name, home) values ($1, $2, $3)";
        transaction
            .execute(statement, &[&id, name, &(id == 1)])
            .await?;
        weights.push((id as u32, 1.0));
    }
    let ring = Ring::build(&weights, settings.virtual_nodes);
    let (tokens, owners): (Vec<i64>, Vec<i32>) = ring
        .into_iter()
        .map(|(token, shard)| (token, shard as i32))
        .unzip();
    transaction
        .execute(
            "insert into automator67.ring (token, shard) select * from unnest($1::bigint[], $2::int[])",
            &[&tokens, &owners],
        )
        .await?;
    transaction
        .execute("select automator67.bump()", &[])
        .await?;
    transaction.commit().await?;
    Ok(())
}

type Connection = tokio_postgres::Connection<crate::wire::Stream, tokio_postgres::tls::NoTlsStream>;

/// Logs in as the shard's admin.
pub(crate) async fn connect(
    shard: &Arc<Shard>,
) -> Result<(tokio_postgres::Client, Connection), StoreError> {
    let settings = &shard.settings;
    connect_as(shard, &settings.admin_user, &settings.admin_password).await
}

/// Logs in to a shard.
pub(crate) async fn connect_as(
    shard: &Arc<Shard>,
    user: &str,
    password: &str,
) -> Result<(tokio_postgres::Client, Connection), StoreError> {
    let name = &shard.settings.name;
    let dialed = tokio::time::timeout(shard.connect_timeout, server::dial(shard)).await;
    let (wire, _) = dialed
        .unwrap_or(Err(ConnectError::Timeout))
        .map_err(|error| StoreError::Connect(name.clone(), error))?;
    let mut config = tokio_postgres::Config::new();
    config
        .user(user)
        .password(password)
        .dbname(&shard.settings.database)
        .application_name("automator67 catalog");
    Ok(config.connect_raw(wire.stream, NoTls).await?)
}

/// Loads the first snapshot and keeps following the catalog in a task of its own.
pub async fn follow(
    home: Arc<Shard>,
    stop: CancellationToken,
) -> Result<(Store, impl Future<Output = ()>), StoreError> {
    let (publish, snapshot) = watch::channel(Arc::new(Catalog::default()));
    let first = Follower::connect(&home, &publish).await?;
    let task = async move {
        let mut follower = Some(first);
        let mut pause = RETRY.0;
        loop {
            let result = match follower.take() {
                Some(follower) => {
                    pause = RETRY.0;
                    tokio::select! {
                        () = stop.cancelled() => return,
                        result = follower.run(&publish) => result,
                    }
                }
                None => Follower::connect(&home, &publish)
                    .await
                    .map(|new| follower = Some(new)),
            };
            if let Err(error) = result {
                tracing::warn!(%error, "lost sight of the catalog; statements go on with the last snapshot");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                }
            }
        }
    };
    Ok((Store { snapshot }, task))
}

/// The catalog document, with the ways in which functions run that nothing in a statement names.
/// Of extensions only those count whose functions are not known to keep nothing in the session.
pub const DOCUMENT: &str = "
with call as materialized (
    select d.classid, d.objid, d.refobjid as function from pg_catalog.pg_depend d
    where d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        and d.refobjid >= 16384 and d.deptype <> 'e'
    union
    select d.classid, d.objid, o.oprcode::pg_catalog.oid from pg_catalog.pg_depend d
    join pg_catalog.pg_operator o on o.oid = d.refobjid
    where d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass
        and d.refobjid >= 16384 and d.deptype <> 'e' and o.oprcode::pg_catalog.oid >= 16384
)
select pg_catalog.left(document, -1) || ', \"routes\": ' || pg_catalog.json_build_object(
    'implicit', (
        select pg_catalog.json_agg(function::bigint) from (
            select castfunc as function from pg_catalog.pg_cast
            union select amproc::pg_catalog.oid from pg_catalog.pg_amproc
            union select rngsubdiff::pg_catalog.oid from pg_catalog.pg_range
            union select c.function from call c
            join pg_catalog.pg_constraint n on n.oid = c.objid and n.contypid <> 0
            where c.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
            union select c.function from call c
            join pg_catalog.pg_type t on t.oid = c.objid and t.typtype = 'd'
            where c.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
        ) f
        join pg_catalog.pg_proc p on p.oid = f.function
        join pg_catalog.pg_language l on l.oid = p.prolang
        where f.function >= 16384 and l.lanname not in ('c', 'internal')
    ),
    'definitions', (
        select pg_catalog.json_agg(evtfoid::bigint) from pg_catalog.pg_event_trigger
        where evtenabled <> 'D'
    ),
    'follows', (
        select pg_catalog.json_agg(pg_catalog.json_build_array(a::bigint, b::bigint)) from (
            select confrelid as a, conrelid as b from pg_catalog.pg_constraint
            where contype = 'f' and confrelid <> conrelid
                and (confupdtype in ('c', 'n', 'd') or confdeltype in ('c', 'n', 'd'))
            union select inhparent, inhrelid from pg_catalog.pg_inherits
            union select w.ev_class, d.refobjid from pg_catalog.pg_rewrite w
            join pg_catalog.pg_depend d
                on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
            where w.oid >= 16384 and d.refobjid <> w.ev_class
                and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        ) pairs
    ),
    'internal', (
        select pg_catalog.json_agg(p.oid::bigint) from pg_catalog.pg_proc p
        join pg_catalog.pg_language l on l.oid = p.prolang
        where p.oid >= 16384 and l.lanname = 'internal' and p.prosrc <> 'aggregate_dummy'
            and p.prosrc !~ '^(multi)?range_constructor'
    ),
    'extension_functions', (
        select pg_catalog.json_agg(pg_catalog.json_build_array(p.proname, e.extname))
        from pg_catalog.pg_proc p
        join pg_catalog.pg_depend d
            on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid
                and d.deptype = 'e'
        join pg_catalog.pg_extension e on e.oid = d.refobjid
        where p.oid >= 16384 and p.provolatile = 'v' and e.extname <> all (array[
            'adminpack', 'amcheck', 'autoinc', 'bloom', 'btree_gin', 'btree_gist', 'citext',
            'cube', 'dblink', 'dict_int', 'dict_xsyn', 'earthdistance', 'file_fdw',
            'fuzzystrmatch', 'hll', 'hstore', 'insert_username', 'intagg', 'intarray', 'lo',
            'ltree', 'moddatetime', 'old_snapshot', 'pageinspect', 'pg_buffercache', 'pg_cron',
            'pg_freespacemap', 'pg_prewarm', 'pg_repack', 'pg_stat_statements', 'pg_surgery',
            'pg_visibility', 'pg_walinspect', 'pgaudit', 'pgcrypto', 'pgrowlocks',
            'pgstattuple', 'plperl', 'plpgsql', 'plpython3u', 'pltcl', 'postgis',
            'postgis_raster', 'postgis_topology', 'postgres_fdw', 'refint', 'seg', 'sslinfo',
            'tcn', 'tsm_system_rows', 'tsm_system_time', 'unaccent', 'uuid-ossp', 'vector'
        ]::pg_catalog.name[])
    )
)::pg_catalog.text || '}'
from automator67.catalog_document() document";

struct Follower {
    client: tokio_postgres::Client,
    changed: tokio::sync::mpsc::Receiver<()>,
}

impl Follower {
    /// Connects, listens, then loads: nothing committed in between is missed.
    async fn connect(
        home: &Arc<Shard>,
        publish: &watch::Sender<Arc<Catalog>>,
    ) -> Result<Self, StoreError> {
        let (client, mut connection) = connect(home).await?;
        // One pending signal stands for any number of changes.
        let (signal, changed) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if matches!(message, AsyncMessage::Notification(_)) {
                    let _ = signal.try_send(());
                }
            }
        });
        let text = format!("set application_name = '{FOLLOWER}'; listen {CHANNEL}");
        client.batch_execute(&text).await?;
        let follower = Follower { client, changed };
        follower.load(publish).await?;
        Ok(follower)
    }

    async fn load(&self, publish: &watch::Sender<Arc<Catalog>>) -> Result<(), StoreError> {
        let row = self.client.query_one(DOCUMENT, &[]).await?;
        let catalog = Catalog::from_document(row.get(0))?;
        metrics::gauge!("automator67_catalog_epoch").set(catalog.epoch as f64);
        publish.send_replace(Arc::new(catalog));
        Ok(())
    }

    /// Loads after every change, until the connection breaks.
    async fn run(mut self, publish: &watch::Sender<Arc<Catalog>>) -> Result<(), StoreError> {
        while self.changed.recv().await.is_some() {
            self.load(publish).await?;
        }
        self.client.batch_execute("select 1").await?;
        Ok(())
    }
}
