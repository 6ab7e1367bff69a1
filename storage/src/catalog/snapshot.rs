//! What every request needs to know before it reads anything: logins, buckets, keys, providers. It is
//! read in whole, and read again when somebody says that it has changed.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_postgres::Pool;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, NoTls, types::Json};
use zeroize::Zeroizing;

use super::{Catalog, CatalogError};
use crate::keys::{BucketKey, RootKey};

/// On which changes are told.
const CHANNEL: &str = "automator67_storage";
/// How long the catalog may be away before it is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Whatever nobody has told is seen after so long.
const QUIET: Duration = Duration::from_secs(10);

/// A moment's logins, buckets and providers.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By their names.
    pub buckets: HashMap<String, Arc<Bucket>>,
    /// By their ids, the public halves.
    pub access_keys: HashMap<String, AccessKey>,
    /// By their numbers.
    pub logins: HashMap<i64, Arc<Login>>,
    /// All that are not dead.
    pub providers: Vec<ProviderRow>,
    /// Of all buckets that there are or were, by bucket and version.
    pub bucket_keys: HashMap<(i64, i32), BucketKey>,
}

/// Somebody who may speak to the endpoint.
#[derive(Debug, Clone)]
pub struct Login {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// May everything.
    pub administrator: bool,
}

/// What a login signs with.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Whose.
    pub login: i64,
    /// The secret half.
    pub secret: Zeroizing<String>,
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Whose.
    pub owner: i64,
    /// Versions.
    pub versioning: Versioning,
    /// What else was set.
    pub settings: BucketSettings,
    /// What other logins may.
    pub rights: HashMap<i64, Rights>,
    /// When it was made.
    pub made: SystemTime,
    newest_key: (i32, BucketKey),
}

/// What a login may in a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    /// Read and list.
    pub reads: bool,
    /// Write and delete.
    pub writes: bool,
}

/// Whether a bucket keeps versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// It never has.
    Off,
    /// All.
    Enabled,
    /// It has, and keeps those.
    Suspended,
}

impl Versioning {
    /// As the catalog has it.
    pub fn name(self) -> &'static str {
        match self {
            Versioning::Off => "off",
            Versioning::Enabled => "enabled",
            Versioning::Suspended => "suspended",
        }
    }

    fn of(name: &str) -> Versioning {
        match name {
            "enabled" => Versioning::Enabled,
            "suspended" => Versioning::Suspended,
            _ => Versioning::Off,
        }
    }

    /// The id that a client is told of a version that was written with this one.
    pub(super) fn told(self, id: String) -> Option<String> {
        match self {
            Versioning::Off => None,
            Versioning::Enabled => Some(id),
            Versioning::Suspended => Some("null".to_owned()),
        }
    }
}

/// What is set for a bucket; documents as their owner gave them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BucketSettings {
    /// Entity tags are not the MD5 of what was uploaded, which is dear.
    pub opaque_etags: bool,
    /// Object lock was asked for when it was made.
    pub object_lock: bool,
    /// CORS rules, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<serde_json::Value>,
    /// Lifecycle rules, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<serde_json::Value>,
    /// The bucket policy, as its owner gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
}

/// A provider, as far as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// `local`, `s3`, ...
    pub kind: String,
    /// Where it is, for placement.
    pub region: String,
    /// Endpoint, bucket, credentials, as JSON.
    pub place: Zeroizing<String>,
    /// Whether it takes anything.
    pub state: State,
    /// Bytes that it takes.
    pub quota_bytes: Option<i64>,
}

/// What is done with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Read and written.
    Active,
    /// Read, while what it has is copied to others.
    Draining,
    /// Given up.
    Dead,
}

impl State {
    /// As the catalog has it.
    pub fn name(self) -> &'static str {
        match self {
            State::Active => "active",
            State::Draining => "draining",
            State::Dead => "dead",
        }
    }

    fn of(name: &str) -> State {
        match name {
            "active" => State::Active,
            "draining" => State::Draining,
            _ => State::Dead,
        }
    }
}

impl Bucket {
    /// What new chunks are wrapped under.
    pub fn newest_key(&self) -> (i32, &BucketKey) {
        (self.newest_key.0, &self.newest_key.1)
    }
}

/// The newest snapshot, and the task that keeps it so.
#[derive(Clone)]
pub(super) struct Follower {
    newest: Arc<watch::Sender<Arc<Snapshot>>>,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    pub(super) async fn start(
        config: tokio_postgres::Config,
        pool: Pool,
        root: RootKey,
    ) -> Result<Follower, CatalogError> {
        let newest = Arc::new(watch::Sender::new(Arc::new(read(&pool, &root).await?)));
        let shared = newest.clone();
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = follow(&config, &pool, &root, &shared).await {
                    tracing::warn!(%error, "the storage catalog cannot be followed");
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        Ok(Follower {
            newest,
            _task: Arc::new(AbortOnDrop(task)),
        })
    }
}

/// Listens, and reads what others have changed, until the connection ends.
async fn follow(
    config: &tokio_postgres::Config,
    pool: &Pool,
    root: &RootKey,
    newest: &watch::Sender<Arc<Snapshot>>,
) -> Result<(), CatalogError> {
    let (client, mut connection) = config.connect(NoTls).await?;
    let (told, mut heard) = watch::channel(());
    let driver = tokio::spawn(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notification(_)) => told.send_replace(()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    });
    client.batch_execute(&format!("listen {CHANNEL}")).await?;
    loop {
        newest.send_replace(Arc::new(read(pool, root).await?));
        tokio::select! {
            // Either future can be dropped: the next look reads everything.
            changed = heard.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(QUIET) => {}
        }
    }
    driver.abort();
    Ok(())
}

async fn read(pool: &Pool, root: &RootKey) -> Result<Snapshot, CatalogError> {
    let mut client = pool.get().await?;
    let moment = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let mut snapshot = Snapshot::default();
    for row in moment
        .query("select id, name, administrator from login", &[])
        .await?
    {
        let login = Login {
            id: row.get(0),
            name: row.get(1),
            administrator: row.get(2),
        };
        snapshot.logins.insert(login.id, Arc::new(login));
    }
    for row in moment
        .query("select id, login, secret from access_key", &[])
        .await?
    {
        let id: String = row.get(0);
        let secret = root.open(&secret_name(&id), row.get(2))?;
        let secret = Zeroizing::new(String::from_utf8_lossy(&secret).into_owned());
        let login = row.get(1);
        snapshot.access_keys.insert(id, AccessKey { login, secret });
    }
    let mut rights: HashMap<i64, HashMap<i64, Rights>> = HashMap::new();
    for row in moment
        .query("select bucket, login, reads, writes from bucket_right", &[])
        .await?
    {
        let (reads, writes) = (row.get(2), row.get(3));
        let of_bucket = rights.entry(row.get(0)).or_default();
        of_bucket.insert(row.get(1), Rights { reads, writes });
    }
    let mut newest_keys: HashMap<i64, (i32, BucketKey)> = HashMap::new();
    for row in moment
        .query(
            "select bucket, number, wrapped from bucket_key order by number",
            &[],
        )
        .await?
    {
        let (bucket, number) = (row.get(0), row.get(1));
        let key = root.unwrap(row.get(2))?;
        newest_keys.insert(bucket, (number, key.clone()));
        snapshot.bucket_keys.insert((bucket, number), key);
    }
    for row in moment
        .query(
            "select id, name, owner, versioning, settings, made from bucket",
            &[],
        )
        .await?
    {
        let id = row.get(0);
        let Some(newest_key) = newest_keys.remove(&id) else {
            continue;
        };
        let Json(settings) = row.get(4);
        let bucket = Bucket {
            id,
            name: row.get(1),
            owner: row.get(2),
            versioning: Versioning::of(row.get(3)),
            settings,
            rights: rights.remove(&id).unwrap_or_default(),
            made: row.get(5),
            newest_key,
        };
        snapshot
            .buckets
            .insert(bucket.name.clone(), Arc::new(bucket));
    }
    for row in moment
        .query(
            "select id, name, kind, region, place, state, quota_bytes from provider order by id",
            &[],
        )
        .await?
    {
        let name: String = row.get(1);
        let place = root.open(&place_name(&name), row.get(4))?;
        snapshot.providers.push(ProviderRow {
            id: row.get(0),
            kind: row.get(2),
            region: row.get(3),
            place: Zeroizing::new(String::from_utf8_lossy(&place).into_owned()),
            state: State::of(row.get(5)),
            quota_bytes: row.get(6),
            name,
        });
    }
    Ok(snapshot)
}

fn secret_name(access_key: &str) -> String {
    format!("secret of access key {access_key}")
}

fn place_name(provider: &str) -> String {
    format!("place of provider {provider}")
}

impl Catalog {
    /// The newest snapshot that was read.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.newest.borrow().clone()
    }

    /// Becomes ready when there is a newer one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.newest.subscribe()
    }

    /// Reads one now: it has what was acknowledged before, by whomever.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, CatalogError> {
        let snapshot = Arc::new(read(&self.pool, &self.root).await?);
        self.snapshot.newest.send_replace(snapshot.clone());
        Ok(snapshot)
    }

    /// Tells every process that there is something new, and reads it here.
    async fn changed(&self) -> Result<Arc<Snapshot>, CatalogError> {
        let client = self.client().await?;
        client.batch_execute(&format!("notify {CHANNEL}")).await?;
        drop(client);
        self.refresh().await
    }

    /// A bucket of this name; also one that another process has just made.
    pub async fn bucket(&self, name: &str) -> Result<Arc<Bucket>, CatalogError> {
        if let Some(bucket) = self.snapshot().buckets.get(name) {
            return Ok(bucket.clone());
        }
        let snapshot = self.refresh().await?;
        let bucket = snapshot.buckets.get(name).cloned();
        bucket.ok_or(CatalogError::NoSuchBucket)
    }

    /// Makes a bucket.
    pub async fn create_bucket(
        &self,
        name: &str,
        owner: i64,
        settings: &BucketSettings,
    ) -> Result<(), CatalogError> {
        let wrapped = self.root.wrap(&BucketKey::generate());
        let versioning = match settings.object_lock {
            true => Versioning::Enabled,
            false => Versioning::Off,
        };
        let client = self.client().await?;
        let made = client
            .query_opt(
                "with made as (
                    insert into bucket (name, owner, versioning, settings) values ($1, $2, $3, $4)
                    on conflict do nothing returning id
                ) insert into bucket_key (bucket, number, wrapped) select id, 1, $5 from made
                returning bucket",
                &[
                    &name,
                    &owner,
                    &versioning.name(),
                    &Json(settings),
                    &wrapped.as_slice(),
                ],
            )
            .await?;
        drop(client);
        if made.is_none() {
            return Err(CatalogError::BucketExists);
        }
        self.changed().await.map(drop)
    }

    /// Deletes an empty bucket. What was removed from it goes with it: nobody can restore it any more.
    pub async fn delete_bucket(&self, bucket: &Bucket) -> Result<(), CatalogError> {
        let client = self.client().await?;
        let deleted = client
            .execute(
                "delete from bucket b where id = $1
                    and not exists (select from version where bucket = b.id and removed is null)
                    and not exists (select from upload where bucket = b.id)",
                &[&bucket.id],
            )
            .await?;
        drop(client);
        let snapshot = self.changed().await?;
        match (deleted, snapshot.buckets.get(&bucket.name)) {
            (0, Some(one)) if one.id == bucket.id => Err(CatalogError::BucketNotEmpty),
            (0, _) => Err(CatalogError::NoSuchBucket),
            _ => Ok(()),
        }
    }

    /// Changes what is set for a bucket.
    pub async fn set_bucket(
        &self,
        bucket: &Bucket,
        versioning: Versioning,
        settings: &BucketSettings,
    ) -> Result<(), CatalogError> {
        let client = self.client().await?;
        client
            .execute(
                "update bucket set versioning = $2, settings = $3 where id = $1",
                &[&bucket.id, &versioning.name(), &Json(settings)],
            )
            .await?;
        drop(client);
        self.changed().await.map(drop)
    }

    /// Makes a login, if there is none of that name, and gives it an access key.
    pub async fn create_access_key(
        &self,
        login: &str,
        administrator: bool,
        id: &str,
        secret: &str,
    ) -> Result<(), CatalogError> {
        let sealed = self.root.seal(&secret_name(id), secret.as_bytes());
        let mut client = self.client().await?;
        let change = client.transaction().await?;
        change
            .execute(
                "insert into login (name, administrator) values ($1, $2) on conflict do nothing",
                &[&login, &administrator],
            )
            .await?;
        change
            .execute(
                "insert into access_key (id, login, secret)
                    select $2, id, $3 from login where name = $1",
                &[&login, &id, &sealed],
            )
            .await?;
        change.commit().await?;
        drop(client);
        self.changed().await.map(drop)
    }

    /// Adds a provider, or gives the one of that name another place. Its number.
    pub async fn put_provider(
        &self,
        name: &str,
        kind: &str,
        region: &str,
        place: &str,
        quota_bytes: Option<i64>,
    ) -> Result<i64, CatalogError> {
        let sealed = self.root.seal(&place_name(name), place.as_bytes());
        let client = self.client().await?;
        let row = client
            .query_one(
                "insert into provider (name, kind, region, place, quota_bytes)
                    values ($1, $2, $3, $4, $5)
                    on conflict (name) do update set kind = excluded.kind,
                        region = excluded.region, place = excluded.place,
                        quota_bytes = excluded.quota_bytes
                    returning id",
                &[&name, &kind, &region, &sealed, &quota_bytes],
            )
            .await?;
        drop(client);
        self.changed().await?;
        Ok(row.get(0))
    }

    /// Sets what is done with a provider. False: there is none of that name.
    pub async fn set_provider(&self, name: &str, state: State) -> Result<bool, CatalogError> {
        let client = self.client().await?;
        let set = client
            .execute(
                "update provider set state = $2 where name = $1",
                &[&name, &state.name()],
            )
            .await?;
        drop(client);
        self.changed().await?;
        Ok(set > 0)
    }
}
