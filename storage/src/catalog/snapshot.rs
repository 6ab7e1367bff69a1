//! What every request needs to know before it reads anything: logins, buckets, keys, providers. It is
//! read in whole, and read again when somebody says that it has changed.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_postgres::{Pool, Transaction};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, IsolationLevel, NoTls, Row, types::Json};
use zeroize::Zeroizing;

use super::{Catalog, CatalogError};
use crate::keys::{BucketKey, KeyError, RootKey};

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
    /// All, also those that were given up.
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

/// All of it, of one moment.
async fn read(pool: &Pool, root: &RootKey) -> Result<Snapshot, CatalogError> {
    let mut client = pool.get().await?;
    let moment = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let (bucket_keys, newest) = read_bucket_keys(&moment, root).await?;
    Ok(Snapshot {
        logins: read_logins(&moment).await?,
        access_keys: read_access_keys(&moment, root).await?,
        buckets: read_buckets(&moment, newest).await?,
        providers: read_providers(&moment, root).await?,
        bucket_keys,
    })
}

async fn read_logins(moment: &Transaction<'_>) -> Result<HashMap<i64, Arc<Login>>, CatalogError> {
    let text = "select id, name, administrator from login";
    let rows = moment.query(text, &[]).await?;
    let login = |row: &Row| Login {
        id: row.get("id"),
        name: row.get("name"),
        administrator: row.get("administrator"),
    };
    let logins = rows.iter().map(login);
    Ok(logins.map(|login| (login.id, Arc::new(login))).collect())
}

async fn read_access_keys(
    moment: &Transaction<'_>,
    root: &RootKey,
) -> Result<HashMap<String, AccessKey>, CatalogError> {
    let text = "select id, login, secret from access_key";
    let mut keys = HashMap::new();
    for row in moment.query(text, &[]).await? {
        let id: String = row.get("id");
        let secret = open_text(root, &secret_name(&id), row.get("secret"))?;
        let login = row.get("login");
        keys.insert(id, AccessKey { login, secret });
    }
    Ok(keys)
}

type BucketKeys = HashMap<(i64, i32), BucketKey>;
type NewestKeys = HashMap<i64, (i32, BucketKey)>;

async fn read_bucket_keys(
    moment: &Transaction<'_>,
    root: &RootKey,
) -> Result<(BucketKeys, NewestKeys), CatalogError> {
    let text = "select bucket, number, wrapped from bucket_key order by number";
    let (mut all, mut newest) = (HashMap::new(), HashMap::new());
    for row in moment.query(text, &[]).await? {
        let (bucket, number) = (row.get("bucket"), row.get("number"));
        let key = root.unwrap(row.get("wrapped"))?;
        newest.insert(bucket, (number, key.clone()));
        all.insert((bucket, number), key);
    }
    Ok((all, newest))
}

async fn read_buckets(
    moment: &Transaction<'_>,
    mut newest: NewestKeys,
) -> Result<HashMap<String, Arc<Bucket>>, CatalogError> {
    let mut rights = read_rights(moment).await?;
    let text = "select id, name, owner, versioning, settings, made from bucket";
    let mut buckets = HashMap::new();
    for row in moment.query(text, &[]).await? {
        let id = row.get("id");
        // A bucket is made with its first key.
        let newest_key = newest.remove(&id);
        let newest_key = newest_key.ok_or(KeyError::Foreign("a bucket key"))?;
        let Json(settings) = row.get("settings");
        let bucket = Bucket {
            id,
            name: row.get("name"),
            owner: row.get("owner"),
            versioning: Versioning::of(row.get("versioning")),
            settings,
            rights: rights.remove(&id).unwrap_or_default(),
            made: row.get("made"),
            newest_key,
        };
        buckets.insert(bucket.name.clone(), Arc::new(bucket));
    }
    Ok(buckets)
}

/// By bucket and login.
async fn read_rights(
    moment: &Transaction<'_>,
) -> Result<HashMap<i64, HashMap<i64, Rights>>, CatalogError> {
    let text = "select bucket, login, reads, writes from bucket_right";
    let mut rights: HashMap<i64, HashMap<i64, Rights>> = HashMap::new();
    for row in moment.query(text, &[]).await? {
        let (reads, writes) = (row.get("reads"), row.get("writes"));
        let of_bucket = rights.entry(row.get("bucket")).or_default();
        of_bucket.insert(row.get("login"), Rights { reads, writes });
    }
    Ok(rights)
}

async fn read_providers(
    moment: &Transaction<'_>,
    root: &RootKey,
) -> Result<Vec<ProviderRow>, CatalogError> {
    let text = "select id, name, kind, region, place, state, quota_bytes from provider order by id";
    let rows = moment.query(text, &[]).await?;
    let provider = |row: &Row| {
        let name: String = row.get("name");
        Ok(ProviderRow {
            id: row.get("id"),
            kind: row.get("kind"),
            region: row.get("region"),
            place: open_text(root, &place_name(&name), row.get("place"))?,
            state: State::of(row.get("state")),
            quota_bytes: row.get("quota_bytes"),
            name,
        })
    };
    rows.iter().map(provider).collect()
}

fn open_text(root: &RootKey, name: &str, sealed: &[u8]) -> Result<Zeroizing<String>, KeyError> {
    let text = root.open(name, sealed)?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&text).into_owned()))
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
