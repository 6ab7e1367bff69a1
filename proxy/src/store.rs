//! The catalog: migrated and filled at start, then followed. Sessions read an immutable snapshot.

use std::{
    collections::HashSet,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use automator67_planner::{
    builtins,
    catalog::{Catalog, DocumentError},
    ring::Ring,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, NoTls, error::SqlState};
use tokio_util::sync::CancellationToken;

use crate::{
    failpoint,
    requirements::Unfit,
    server::{self, ConnectError},
    settings::Settings,
    shard::{Identity, Shard},
    shard_auth::Guarded,
    two_phase::Cluster,
};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// What every shard has, not only the home shard.
mod embedded_in_shards {
    refinery::embed_migrations!("migrations_of_shards");
}

/// The name of every proxy's connection that follows the catalog.
const FOLLOWER: &str = "automator67 follower";
/// First and longest pause between attempts to reach the home shard again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// First and longest pause before a snapshot is loaded again that is not complete, because others hold
/// locks.
const INCOMPLETE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// When so long nothing has changed, a snapshot that was put together is read in whole.
const QUIET: Duration = Duration::from_secs(5);
/// A snapshot that takes longer to read is planned anew the next time.
const SLOW: Duration = Duration::from_millis(100);
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
    /// A secret of the proxies is not one.
    #[error("a key in the schema automator67 is not 32 bytes long")]
    Key,
    /// Servers lack something, or are others than they should be.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// This server is not that of the shard.
    #[error("{0}")]
    Stranger(String),
    /// The document.
    #[error("the catalog could not be understood: {0}")]
    Document(#[from] DocumentError),
    /// Somebody else could have put something into our schema.
    #[error(
        "schema \"{schema}\" on shard \"{shard}\" has {what} of role \"{role}\", and not of the role of the shard's URL"
    )]
    Foreign {
        /// The shard's name.
        shard: String,
        /// Which schema.
        schema: String,
        /// The schema itself, or something in it.
        what: String,
        /// Whose.
        role: String,
    },
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

    /// Waits until the snapshot is at least of `epoch`, but not for long: whether it is.
    pub async fn follow(&self, epoch: u64) -> bool {
        let followed = tokio::time::timeout(FOLLOW_TIMEOUT, self.reach(epoch)).await;
        if followed.is_err() {
            tracing::error!(epoch, "the catalog snapshot does not follow");
        }
        followed.is_ok()
    }

    /// The same, however long it takes.
    pub async fn reach(&self, epoch: u64) {
        let mut snapshot = self.snapshot.clone();
        // There is none to come only at the end of the process.
        let _ = snapshot.wait_for(|catalog| catalog.epoch >= epoch).await;
    }
}

/// Migrates and fills the catalog on the home shard.
pub async fn set_up(home: &Arc<Shard>, settings: &Settings) -> Result<Cluster, StoreError> {
    let (mut client, connection) = connect(home).await?;
    let driver = tokio::spawn(connection);
    let result = fill(&mut client, home, settings).await;
    drop(client);
    // The connection ends with its client; its own result says nothing more.
    let _ = driver.await;
    result
}

/// Gives a shard what transactions over several shards need. Returns `max_prepared_transactions`.
pub async fn set_up_shard(shard: &Arc<Shard>) -> Result<u32, StoreError> {
    let (mut client, connection) = connect(shard).await?;
    tokio::spawn(connection);
    let alone = Alone::wait(&mut client, shard).await?;
    migrate_shard(&mut client, shard).await?;
    stamp(&client, shard).await?;
    alone.end().await?;
    let row = client
        .query_one("show max_prepared_transactions", &[])
        .await?;
    let text: &str = row.get(0);
    Ok(text.parse().unwrap_or(0))
}

/// While it lives, no other proxy migrates this database. What is locked is a table that nobody
/// but its owner can lock: anybody can take an advisory lock, and keep it.
struct Alone(tokio_postgres::Client);

impl Alone {
    /// Waits for its turn, and for a schema that is ours.
    async fn wait(
        client: &mut tokio_postgres::Client,
        shard: &Arc<Shard>,
    ) -> Result<Self, StoreError> {
        make("create schema if not exists automator67", client).await?;
        check_owner(client, shard).await?;
        make("create table if not exists automator67.setup ()", client).await?;
        let (keeper, connection) = connect(shard).await?;
        tokio::spawn(connection);
        keeper
            .batch_execute("begin; lock table automator67.setup in access exclusive mode")
            .await?;
        // What another proxy has made meanwhile.
        check_owner(client, shard).await?;
        Ok(Alone(keeper))
    }

    async fn end(self) -> Result<(), StoreError> {
        Ok(self.0.batch_execute("commit").await?)
    }
}

/// Another proxy may make the same at the same moment; `if not exists` does not see that.
async fn make(statement: &str, client: &tokio_postgres::Client) -> Result<(), StoreError> {
    match client.batch_execute(statement).await {
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(()),
        other => Ok(other?),
    }
}

/// All in our schemas belongs to the role of the shard's URL, or to a superuser: what somebody else
/// has put there before the first start would be called with our rights.
async fn check_owner(
    client: &tokio_postgres::Client,
    shard: &Arc<Shard>,
) -> Result<(), StoreError> {
    let row = client.query_opt(FOREIGN, &[]).await?;
    match row {
        None => Ok(()),
        Some(row) => Err(StoreError::Foreign {
            shard: shard.settings.name.clone(),
            schema: row.get(0),
            what: row.get(1),
            role: row.get(2),
        }),
    }
}

const FOREIGN: &str = "
    with ours as (
        select n.oid, n.nspname::text as name, n.nspowner as owner from pg_namespace n
        where n.nspname in ('automator67', 'automator67_index')
    )
    select f.name, f.what, r.rolname::text
    from (
        select o.name, 'the schema itself' as what, o.owner from ours o
        union all
        select o.name, c.relname::text, c.relowner
        from ours o join pg_class c on c.relnamespace = o.oid and c.relkind <> 'i'
        union all
        select o.name, p.proname::text, p.proowner
        from ours o join pg_proc p on p.pronamespace = o.oid
        union all
        select o.name, t.typname::text, t.typowner
        from ours o join pg_type t on t.typnamespace = o.oid
        union all
        select o.name, x.oprname::text, x.oprowner
        from ours o join pg_operator x on x.oprnamespace = o.oid
    ) f
    join pg_roles r on r.oid = f.owner
    where not r.rolsuper and r.rolname <> current_user
    limit 1";

/// Migrates what every shard has, and learns the key of proofs.
async fn migrate_shard(
    client: &mut tokio_postgres::Client,
    shard: &Arc<Shard>,
) -> Result<(), StoreError> {
    let runner = embedded_in_shards::migrations::runner();
    migrate(runner, "automator67.shard_migration", client, shard).await?;
    let row = client
        .query_one("select key from automator67.proof_key", &[])
        .await?;
    let key: &[u8] = row.get(0);
    shard.set_proof_key(key.try_into().map_err(|_| StoreError::Key)?);
    Ok(())
}

/// Tells the server who it is, once and for all.
async fn stamp(client: &tokio_postgres::Client, shard: &Arc<Shard>) -> Result<(), StoreError> {
    let Some(Identity { cluster, shard: id }) = shard.identity() else {
        return Ok(());
    };
    let text = "insert into automator67.identity (cluster, shard) values ($1, $2) \
        on conflict do nothing";
    client.execute(text, &[&cluster, &(id as i32)]).await?;
    let found = read_identity(client).await?;
    shard
        .recognise(found.as_ref())
        .map_err(StoreError::Stranger)?;
    shard.set_stamped();
    Ok(())
}

/// What the server has been told of itself.
pub async fn read_identity(
    client: &tokio_postgres::Client,
) -> Result<Option<Identity>, StoreError> {
    match client.query_opt(server::IDENTITY, &[]).await {
        Ok(row) => Ok(row.map(|row| Identity {
            cluster: row.get(0),
            shard: row.get::<_, i32>(1) as u32,
        })),
        Err(error) if is_unknown(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_unknown(error: &tokio_postgres::Error) -> bool {
    let unknown = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    error.code().is_some_and(|code| unknown.contains(code))
}

/// Runs what has not run yet, in one transaction.
async fn migrate(
    runner: refinery::Runner,
    table: &str,
    client: &mut tokio_postgres::Client,
    shard: &Arc<Shard>,
) -> Result<(), StoreError> {
    let mut runner = runner.set_grouped(true);
    runner.set_migration_table_name(table);
    let report = runner.run_async(client).await?;
    for migration in report.applied_migrations() {
        tracing::info!(
            shard = shard.settings.name,
            table,
            migration = %migration,
            "migrated"
        );
    }
    Ok(())
}

async fn fill(
    client: &mut tokio_postgres::Client,
    home: &Arc<Shard>,
    settings: &Settings,
) -> Result<Cluster, StoreError> {
    let alone = Alone::wait(client, home).await?;
    migrate_shard(client, home).await?;
    let runner = embedded::migrations::runner();
    migrate(runner, "automator67.migration", client, home).await?;
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
        .query_one(
            "select name, key, extract(epoch from signed_since)::float8 from automator67.cluster",
            &[],
        )
        .await?;
    home.belongs_to(row.get(0));
    stamp(client, home).await?;
    alone.end().await?;
    let key: &[u8] = row.get(1);
    Ok(Cluster {
        name: row.get(0),
        key: key.try_into().map_err(|_| StoreError::Key)?,
        signed_since: row.get(2),
    })
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
        .execute("select automator67.make_newer()", &[])
        .await?;
    transaction.commit().await?;
    Ok(())
}

type Connection = tokio_postgres::Connection<Guarded, tokio_postgres::tls::NoTlsStream>;

/// What our own connections have instead of the defaults of their role and database, which are meant
/// for its clients. What others have put into public, or into a schema of this role's name, is not
/// ours; and whoever only reads by default, or soon gives up, does not keep the catalog.
const OPTIONS: &str = "-c search_path=pg_catalog,pg_temp \
    -c default_transaction_read_only=off \
    -c default_transaction_deferrable=off \
    -c default_transaction_isolation=read\\ committed \
    -c statement_timeout=0 \
    -c lock_timeout=0 \
    -c idle_session_timeout=0 \
    -c idle_in_transaction_session_timeout=0";

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
        .application_name("automator67 catalog")
        .options(OPTIONS);
    let stream = Guarded::new(wire.stream, shard.settings.auth);
    let (client, mut connection) = config.connect_raw(stream, NoTls).await?;
    if shard.identity().is_some() {
        let found = with(&mut connection, read_identity(&client)).await?;
        shard
            .recognise(found.as_ref())
            .map_err(StoreError::Stranger)?;
    }
    Ok((client, connection))
}

/// Asks on a connection that nobody drives yet.
async fn with<T>(
    connection: &mut Connection,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut asked = std::pin::pin!(asked);
    let mut ended = false;
    poll_fn(|context| {
        // What comes between is a notice, and the answer says if the connection broke.
        while !ended && let Poll::Ready(message) = connection.poll_message(context) {
            ended = !matches!(message, Some(Ok(_)));
        }
        asked.as_mut().poll(context)
    })
    .await
}

/// How many proxies follow the catalog. Asked as its owner, and of the owner's connections: others do
/// not see the names of all, and could bear that name themselves.
pub async fn followers(home: &Arc<Shard>) -> Result<i64, StoreError> {
    let (client, connection) = connect(home).await?;
    tokio::spawn(connection);
    let row = client
        .query_one(
            "select count(*) from pg_stat_activity where datname = current_database() \
             and usename = current_user and application_name = $1",
            &[&FOLLOWER],
        )
        .await?;
    Ok(row.get(0))
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

/// Counts a read of the document.
pub fn note_read(catalog: &Catalog, why: Why) {
    let what = match (catalog.of_news, why) {
        (true, _) => "news",
        (false, Why::Changed) => "whole",
        (false, Why::Quiet) => "quiet",
    };
    metrics::counter!("automator67_catalog_reads_total", "what" => what).increment(1);
}

/// Why a snapshot is read.
#[derive(Debug, Clone, Copy)]
pub enum Why {
    /// It is not known, or another one by now.
    Changed,
    /// It was put together, and nothing has changed for a while.
    Quiet,
}

/// What was put together is what is read in whole, if nothing has changed in between. While a whole is
/// read, names of what is dropped meanwhile turn into numbers; the one read behind it then is of another
/// epoch. So what differs does so from both.
#[cfg(feature = "failpoints")]
pub fn note_differences(catalog: &Catalog, wholes: &[Catalog; 2]) -> Option<String> {
    let same = |whole: &Catalog| catalog.of_news && whole.epoch == catalog.epoch;
    if !wholes.iter().all(same) {
        return None;
    }
    metrics::counter!("automator67_catalog_comparisons_total").increment(1);
    let [mut differences, others] = wholes.each_ref().map(|whole| whole.differences(catalog));
    differences.retain(|one| others.contains(one));
    for difference in &differences {
        tracing::error!(difference, "the snapshot is not what the catalog says");
    }
    metrics::counter!("automator67_catalog_differences_total").increment(differences.len() as u64);
    differences.into_iter().next()
}

struct Follower {
    client: tokio_postgres::Client,
    /// Reads the document: what is new since an epoch, or all.
    read: tokio_postgres::Statement,
    changed: tokio::sync::mpsc::Receiver<()>,
    /// Something has changed that makes no new epoch.
    beside: Arc<AtomicBool>,
    /// What the server has built in and the planner has no judgement on.
    unjudged: HashSet<String>,
}

/// What a server that is newer than this version has built in, beside what is known.
async fn unjudged(client: &tokio_postgres::Client) -> Result<HashSet<String>, StoreError> {
    let rows = client.query(builtins::NAMES, &[]).await?;
    let names = rows.iter().map(|row| row.get(1));
    let unjudged: HashSet<String> = builtins::unjudged(names).into_iter().collect();
    if !unjudged.is_empty() {
        tracing::warn!(
            count = unjudged.len(),
            "the home shard is newer than this version; what it has built in that is not known is refused over several shards"
        );
    }
    Ok(unjudged)
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
        let beside = Arc::new(AtomicBool::new(false));
        let heard = beside.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(note) = message {
                    heard.fetch_or(note.payload().is_empty(), Ordering::AcqRel);
                    let _ = signal.try_send(());
                }
            }
        });
        let row = client
            .query_one("select automator67.channel()", &[])
            .await?;
        let channel: &str = row.get(0);
        let text = format!("set application_name = '{FOLLOWER}'; listen {channel}");
        client.batch_execute(&text).await?;
        let unjudged = unjudged(&client).await?;
        let read = client
            .prepare("select automator67.newer_document($1)")
            .await?;
        let follower = Follower {
            client,
            read,
            changed,
            beside,
            unjudged,
        };
        follower
            .load(&Catalog::default(), Why::Changed, publish)
            .await?;
        Ok(follower)
    }

    /// Loads the snapshot, or what is new since `known`; says whether all of it could be read.
    async fn load(
        &self,
        known: &Catalog,
        why: Why,
        publish: &watch::Sender<Arc<Catalog>>,
    ) -> Result<bool, StoreError> {
        failpoint::reach("catalog.before_load", None).await;
        let started = Instant::now();
        let beside = self.beside.swap(false, Ordering::AcqRel);
        let since = known.since().filter(|_| !beside);
        let newer = known.newer(&self.read(since).await?)?;
        let mut catalog = match newer {
            Some(catalog) => catalog,
            None => Catalog::from_document(&self.read(None).await?)?,
        };
        note_read(&catalog, why);
        #[cfg(feature = "failpoints")]
        {
            let first = Catalog::from_document(&self.read(None).await?)?;
            let again = Catalog::from_document(&self.read(None).await?)?;
            note_differences(&catalog, &[first, again]);
        }
        if started.elapsed() > SLOW {
            // Its plan was perhaps made for a smaller catalog.
            self.client.batch_execute("discard plans").await?;
        }
        catalog.unjudged.clone_from(&self.unjudged);
        let complete = !catalog.incomplete;
        metrics::gauge!("automator67_catalog_epoch").set(catalog.epoch as f64);
        metrics::gauge!("automator67_catalog_incomplete").set(u8::from(!complete));
        publish.send_replace(Arc::new(catalog));
        Ok(complete)
    }

    async fn read(&self, since: Option<u64>) -> Result<String, StoreError> {
        let since = since.map(|epoch| epoch as i64);
        Ok(self.client.query_one(&self.read, &[&since]).await?.get(0))
    }

    /// Loads after every change, until the connection breaks; again while something could not be read,
    /// after longer and longer pauses; and in whole when nothing more is heard, as some may have changed
    /// past the proxies.
    async fn run(mut self, publish: &watch::Sender<Arc<Catalog>>) -> Result<(), StoreError> {
        let mut pause = INCOMPLETE.0;
        loop {
            let known = publish.borrow().clone();
            let limit = match (known.incomplete, known.of_news) {
                (true, _) => pause,
                (false, true) => QUIET,
                (false, false) => Duration::MAX,
            };
            let heard = tokio::time::timeout(limit, self.changed.recv()).await;
            if let Ok(None) = heard {
                break;
            }
            pause = match known.incomplete {
                true => (pause * 2).min(INCOMPLETE.1),
                false => INCOMPLETE.0,
            };
            let complete = match heard {
                Ok(_) => self.load(&known, Why::Changed, publish).await?,
                Err(_) => self.load(&Catalog::default(), Why::Quiet, publish).await?,
            };
            if !known.incomplete && !complete {
                tracing::warn!(
                    "locks keep definitions of views or functions from being read; what needs them is refused"
                );
            }
        }
        self.client.batch_execute("select 1").await?;
        Ok(())
    }
}
