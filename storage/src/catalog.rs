//! The catalog: what buckets hold, and where its bytes are. Every change that a client is told of is
//! one transaction here; what an object consists of is read in one statement, so it is of one moment.
//!
//! Small things that every request needs (logins, buckets, providers) are a snapshot in memory,
//! [`Snapshot`]; whoever changes them notifies every process.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio_postgres::{
    NoTls, Row,
    error::SqlState,
    types::{Json, ToSql},
};
use zeroize::Zeroizing;

use crate::{
    chunk::{Chunk, ChunkId},
    fleet::{Bad, Copies},
    keys::{KeyError, RootKey},
};

mod read;
mod snapshot;

pub use self::{
    read::{Found, Listed, Piece, Replica, Whole},
    snapshot::{
        AccessKey, Bucket, BucketSettings, Login, ProviderRow, Rights, Snapshot, State, Versioning,
    },
};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Connections of one process.
const CONNECTIONS_MAX: usize = 16;
/// How long a request waits for one.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// How long a statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a change is tried again that another one was in the way of.
const ATTEMPTS: usize = 5;

/// Why the catalog did not do it.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// If-Match, If-None-Match.
    #[error("the object is not as the request wants it")]
    Precondition,
    /// If-Match of what is not there.
    #[error("there is no such object")]
    NoSuchKey,
    /// Completed, aborted, or never made.
    #[error("there is no such upload")]
    NoSuchUpload,
    /// Not there, or with another entity tag.
    #[error("a part of the upload is not there, or is another one")]
    InvalidPart,
    /// Deleted meanwhile.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// There is one of that name.
    #[error("there is such a bucket already")]
    BucketExists,
    /// Objects, also removed ones that can be restored, or uploads.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// Object lock.
    #[error("the version is locked")]
    Locked,
    /// What is there was made under another root key.
    #[error("the catalog was made with another root key than the one given; nothing was changed")]
    OtherRoot,
    /// A key does not open.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No connection in time.
    #[error("the catalog cannot be reached: {0}")]
    Unreachable(#[from] deadpool_postgres::PoolError),
    /// Migrations.
    #[error("the catalog could not be migrated: {0}")]
    Migrate(#[from] refinery::Error),
    /// Anything else.
    #[error("the catalog failed: {}", describe(.0))]
    Postgres(tokio_postgres::Error),
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => error.to_string(),
    }
}

impl From<tokio_postgres::Error> for CatalogError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(SqlState::code) {
            Some("P0412") => CatalogError::Precondition,
            Some("P0404") => CatalogError::NoSuchKey,
            Some("P0405") => CatalogError::NoSuchUpload,
            Some("P0406") => CatalogError::InvalidPart,
            Some("P0403") => CatalogError::NoSuchBucket,
            Some("P0423") => CatalogError::Locked,
            _ => CatalogError::Postgres(error),
        }
    }
}

/// Where the root key comes from.
#[derive(Clone)]
pub enum Root {
    /// From a file, or the environment.
    Key(RootKey),
    /// From what somebody remembers, with a salt that the catalog keeps.
    Passphrase(Zeroizing<String>),
}

/// The tables, and the key of what is in them.
#[derive(Clone)]
pub struct Catalog {
    pool: Pool,
    root: RootKey,
    snapshot: snapshot::Follower,
}

/// A new object, all of it but its bytes.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// Where.
    pub bucket: Arc<Bucket>,
    /// Under which name.
    pub key: String,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// What is told of it.
    pub about: About,
    /// Object lock.
    pub lock: Lock,
    /// When it is to be done.
    pub condition: Condition,
}

/// Until when, and for how long, nobody deletes a version.
#[derive(Debug, Clone, Default)]
pub struct Lock {
    /// Retention.
    pub until: Option<SystemTime>,
    /// Legal hold.
    pub held: bool,
}

/// Headers that make a change depend on what is there.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// If-Match: an entity tag without quotes, or `*`.
    pub matches: Option<String>,
    /// If-None-Match.
    pub differs: Option<String>,
}

/// What is told of an object with its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Content-Type and other headers that clients give and get back, by their names in lower case.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub headers: HashMap<String, String>,
    /// `x-amz-meta-*`, without that.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub metadata: HashMap<String, String>,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
    /// Checksums in base64, by their algorithm in lower case.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub checksums: HashMap<String, String>,
    /// The checksum is of the parts' checksums.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub composite: bool,
    /// Sizes of the parts that it was uploaded in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(i32, i64)>,
    /// GOVERNANCE or COMPLIANCE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_mode: Option<String>,
}

/// The bytes of a new object or part, at providers already.
#[derive(Debug, Default)]
pub struct Content {
    /// How many.
    pub size: u64,
    /// All of them, if they are few enough to be in the catalog.
    pub value: Option<Bytes>,
    /// Chunks that were written for it.
    pub chunks: Vec<NewChunk>,
    /// What it consists of.
    pub pieces: Vec<NewPiece>,
}

/// A chunk that lies at providers and is not in the catalog yet.
#[derive(Debug, Clone)]
pub struct NewChunk {
    /// Its format.
    pub chunk: Chunk,
    /// BLAKE3 of what lies at providers.
    pub hash: [u8; 32],
    /// Keyed BLAKE3 of the plaintext.
    pub alike: [u8; 32],
    /// Where it is.
    pub copies: Copies,
}

/// A part of a chunk.
#[derive(Debug, Clone, Copy)]
pub struct NewPiece {
    /// Which.
    pub chunk: ChunkId,
    /// Where it begins in the plaintext.
    pub start: usize,
    /// Bytes.
    pub length: usize,
}

impl Catalog {
    /// Migrates the schema, and compares the root key before anything is changed.
    pub async fn open(
        mut config: tokio_postgres::Config,
        root: &Root,
    ) -> Result<Catalog, CatalogError> {
        config.options(format!(
            "-c search_path=automator67_storage,pg_catalog -c statement_timeout={}",
            STATEMENT_TIMEOUT.as_millis()
        ));
        config.application_name("automator67 storage");
        let recycling_method = RecyclingMethod::Fast;
        let manager =
            Manager::from_config(config.clone(), NoTls, ManagerConfig { recycling_method });
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS_MAX)
            .wait_timeout(Some(CONNECTION_WAIT))
            .create_timeout(Some(CONNECTION_WAIT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is given for the timeouts");
        let root = migrate(&pool, root).await?;
        let snapshot = snapshot::Follower::start(config, pool.clone(), root.clone()).await?;
        Ok(Catalog {
            pool,
            root,
            snapshot,
        })
    }

    /// The root key.
    pub fn root(&self) -> &RootKey {
        &self.root
    }

    async fn client(&self) -> Result<Object, CatalogError> {
        Ok(self.pool.get().await?)
    }

    /// Names for chunks, each of which is in the catalog before it is used.
    pub async fn reserve(&self, count: i64) -> Result<Vec<ChunkId>, CatalogError> {
        let names: Vec<ChunkId> = (0..count).map(|_| ChunkId::generate()).collect();
        let bytes: Vec<&[u8]> = names.iter().map(|name| name.0.as_slice()).collect();
        let client = self.client().await?;
        let statement = client
            .prepare_cached("insert into intent (chunk) select unnest($1::bytea[])")
            .await?;
        client.execute(&statement, &[&bytes]).await?;
        Ok(names)
    }

    /// Makes an object visible. Its id, where the bucket keeps versions.
    pub async fn put_version(
        &self,
        new: &NewVersion,
        content: &Content,
    ) -> Result<Option<String>, CatalogError> {
        let id = version_id();
        let (key_number, bucket_key) = new.bucket.newest_key();
        let value = content.value.as_ref();
        let value = value.map(|value| bucket_key.seal(new.key.as_bytes(), value));
        let value_key = value.as_ref().map(|_| key_number);
        let arrays = Arrays::of(content, &new.bucket);
        let size = content.size as i64;
        let (key, versioning) = (new.key.as_bytes(), new.bucket.versioning.name());
        let about = Json(&new.about);
        let mut parameters: Vec<Parameter<'_>> = vec![
            &new.bucket.id,
            &key,
            &versioning,
            &id,
            &size,
            &new.etag,
            &about,
            &value,
            &value_key,
            &new.lock.until,
            &new.lock.held,
            &new.condition.matches,
            &new.condition.differs,
        ];
        parameters.extend(arrays.parameters());
        for attempt in 1.. {
            let client = self.client().await?;
            let statement = client.prepare_cached(PUT_VERSION).await?;
            let done = client.query_one(&statement, &parameters).await;
            match done {
                Err(error) if attempt < ATTEMPTS && was_in_the_way(&error) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        Ok(new.bucket.versioning.told(id))
    }

    /// A part of an upload.
    pub async fn put_part(
        &self,
        bucket: &Bucket,
        upload: &str,
        part: i32,
        etag: &str,
        about: &About,
        content: &Content,
    ) -> Result<(), CatalogError> {
        let arrays = Arrays::of(content, bucket);
        let (size, about) = (content.size as i64, Json(about));
        let mut parameters: Vec<Parameter<'_>> =
            vec![&upload, &part, &size, &etag, &about, &bucket.id];
        parameters.extend(arrays.parameters());
        let client = self.client().await?;
        let statement = client.prepare_cached(PUT_PART).await?;
        client.query_one(&statement, &parameters).await?;
        Ok(())
    }

    /// Copies that are not what was written: they are not read any more, and are mended.
    pub async fn mark_bad(&self, bad: &[Bad]) -> Result<(), CatalogError> {
        let chunks: Vec<&[u8]> = bad.iter().map(|one| one.chunk.0.as_slice()).collect();
        let providers: Vec<i64> = bad.iter().map(|one| one.provider).collect();
        let client = self.client().await?;
        let text = "update replica r set good = false \
            from unnest($1::bytea[], $2::bigint[]) bad (chunk, provider) \
            where r.chunk = bad.chunk and r.provider = bad.provider";
        let statement = client.prepare_cached(text).await?;
        client.execute(&statement, &[&chunks, &providers]).await?;
        Ok(())
    }

    /// A new upload in parts: its id.
    pub async fn create_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        about: &About,
    ) -> Result<String, CatalogError> {
        let id = version_id();
        let client = self.client().await?;
        let text = "insert into upload (id, bucket, key, about) \
            select $1, b.id, $3, $4 from bucket b where b.id = $2";
        let statement = client.prepare_cached(text).await?;
        let made = client
            .execute(
                &statement,
                &[&id, &bucket.id, &key.as_bytes(), &Json(about)],
            )
            .await?;
        match made {
            0 => Err(CatalogError::NoSuchBucket),
            _ => Ok(id),
        }
    }

    /// Parts become an object. Its id, where the bucket keeps versions.
    pub async fn complete_upload(
        &self,
        upload: &str,
        new: &NewVersion,
        parts: &[(i32, String)],
    ) -> Result<Option<String>, CatalogError> {
        let id = version_id();
        let (numbers, etags): (Vec<i32>, Vec<&str>) = parts
            .iter()
            .map(|(number, etag)| (*number, etag.as_str()))
            .unzip();
        let client = self.client().await?;
        let statement = client.prepare_cached(COMPLETE_UPLOAD).await?;
        client
            .query_one(
                &statement,
                &[
                    &upload,
                    &new.bucket.id,
                    &new.key.as_bytes(),
                    &new.bucket.versioning.name(),
                    &id,
                    &numbers,
                    &etags,
                    &new.etag,
                    &Json(&new.about),
                    &new.lock.until,
                    &new.lock.held,
                    &new.condition.matches,
                    &new.condition.differs,
                ],
            )
            .await?;
        Ok(new.bucket.versioning.told(id))
    }

    /// Throws an upload away.
    pub async fn abort_upload(
        &self,
        bucket: &Bucket,
        key: &str,
        upload: &str,
    ) -> Result<(), CatalogError> {
        let client = self.client().await?;
        let statement = client
            .prepare_cached("select abort_upload($1, $2, $3)")
            .await?;
        let row = client
            .query_one(&statement, &[&upload, &bucket.id, &key.as_bytes()])
            .await?;
        match row.get(0) {
            true => Ok(()),
            false => Err(CatalogError::NoSuchUpload),
        }
    }

    /// DELETE of an object: the id of the marker that stands for it now.
    pub async fn delete_latest(
        &self,
        bucket: &Bucket,
        key: &str,
        condition: &Condition,
    ) -> Result<Option<String>, CatalogError> {
        let id = version_id();
        let client = self.client().await?;
        let statement = client
            .prepare_cached("select delete_latest($1, $2, $3, $4, $5)")
            .await?;
        let row = client
            .query_one(
                &statement,
                &[
                    &bucket.id,
                    &key.as_bytes(),
                    &bucket.versioning.name(),
                    &id,
                    &condition.matches,
                ],
            )
            .await?;
        Ok(row.get(0))
    }

    /// DELETE of one version: whether it was a marker. `None`: there was none.
    pub async fn delete_version(
        &self,
        bucket: &Bucket,
        key: &str,
        id: &str,
        bypass: bool,
        condition: &Condition,
    ) -> Result<Option<bool>, CatalogError> {
        let client = self.client().await?;
        let statement = client
            .prepare_cached("select delete_version($1, $2, $3, $4, $5)")
            .await?;
        let row = client
            .query_one(
                &statement,
                &[
                    &bucket.id,
                    &key.as_bytes(),
                    &id,
                    &bypass,
                    &condition.matches,
                ],
            )
            .await?;
        Ok(row.get(0))
    }
}

const PUT_VERSION: &str = "select put_version($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
    $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)";
const PUT_PART: &str = "select put_part($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
    $15, $16, $17, $18)";
const COMPLETE_UPLOAD: &str =
    "select complete_upload($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";

/// The columns of new chunks, replicas and pieces.
#[derive(Default)]
struct Arrays {
    key_number: i32,
    ids: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    lengths: Vec<i32>,
    hashes: Vec<Vec<u8>>,
    alikes: Vec<Vec<u8>>,
    replica_chunks: Vec<Vec<u8>>,
    replica_providers: Vec<i64>,
    replica_good: Vec<bool>,
    piece_chunks: Vec<Vec<u8>>,
    piece_starts: Vec<i32>,
    piece_lengths: Vec<i32>,
}

impl Arrays {
    fn of(content: &Content, bucket: &Bucket) -> Arrays {
        let (key_number, key) = bucket.newest_key();
        let mut arrays = Arrays {
            key_number,
            ..Arrays::default()
        };
        for new in &content.chunks {
            let id = new.chunk.id.0.to_vec();
            let sure = new.copies.sure.iter().map(|provider| (provider, true));
            let doubtful = new.copies.doubtful.iter().map(|provider| (provider, false));
            for (provider, good) in sure.chain(doubtful) {
                arrays.replica_chunks.push(id.clone());
                arrays.replica_providers.push(*provider);
                arrays.replica_good.push(good);
            }
            arrays.ids.push(id);
            arrays.keys.push(key.wrap(&new.chunk.key).to_vec());
            arrays.lengths.push(as_i32(new.chunk.length));
            arrays.hashes.push(new.hash.to_vec());
            arrays.alikes.push(new.alike.to_vec());
        }
        for piece in &content.pieces {
            arrays.piece_chunks.push(piece.chunk.0.to_vec());
            arrays.piece_starts.push(as_i32(piece.start));
            arrays.piece_lengths.push(as_i32(piece.length));
        }
        arrays
    }

    /// In the order in which functions take them.
    fn parameters(&self) -> [Parameter<'_>; 12] {
        [
            &self.ids,
            &self.key_number,
            &self.keys,
            &self.lengths,
            &self.hashes,
            &self.alikes,
            &self.replica_chunks,
            &self.replica_providers,
            &self.replica_good,
            &self.piece_chunks,
            &self.piece_starts,
            &self.piece_lengths,
        ]
    }
}

type Parameter<'a> = &'a (dyn ToSql + Sync);

fn as_i32(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a chunk is shorter than 2 GiB")
}

/// Random, of letters and digits that need no quotes anywhere.
fn version_id() -> String {
    let bytes: [u8; 16] = crate::keys::random();
    format!("{:032x}", u128::from_be_bytes(bytes))
}

fn was_in_the_way(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| codes.contains(code))
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    error.code().is_some_and(|code| missing.contains(code))
}

/// Migrates with the schema's own lock, so that of processes that start at once one does.
async fn migrate(pool: &Pool, root: &Root) -> Result<RootKey, CatalogError> {
    let mut client = pool.get().await?;
    let locked = "select pg_advisory_lock(hashtextextended('automator67 storage', 0))";
    client.batch_execute(locked).await?;
    let done = migrate_alone(&mut client, root).await;
    client
        .batch_execute("select pg_advisory_unlock_all()")
        .await?;
    done
}

async fn migrate_alone(client: &mut Object, root: &Root) -> Result<RootKey, CatalogError> {
    let known = client
        .query_opt(
            "select fingerprint, salt from automator67_storage.root",
            &[],
        )
        .await;
    let known = match known {
        Err(error) if is_missing(&error) => None,
        other => other?,
    };
    let salt = match &known {
        Some(row) => row.get::<_, &[u8]>("salt").try_into().unwrap_or_default(),
        None => crate::keys::random(),
    };
    let root = match root {
        Root::Key(key) => key.clone(),
        Root::Passphrase(phrase) => RootKey::of_passphrase(phrase, &salt)?,
    };
    let fingerprint = root.fingerprint();
    if known.is_some_and(|row| row.get::<_, &[u8]>("fingerprint") != fingerprint) {
        return Err(CatalogError::OtherRoot);
    }
    client
        .batch_execute("create schema if not exists automator67_storage")
        .await?;
    let mut runner = embedded::migrations::runner().set_grouped(true);
    runner.set_migration_table_name("automator67_storage.migration");
    let report = runner.run_async(&mut ***client).await?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, "migrated");
    }
    client
        .execute(
            "insert into root (fingerprint, salt) values ($1, $2) on conflict do nothing",
            &[&fingerprint.as_slice(), &salt.as_slice()],
        )
        .await?;
    Ok(root)
}

fn chunk_id(row: &Row, column: &str) -> ChunkId {
    let bytes: &[u8] = row.get(column);
    // Columns of ids are filled by us alone, with 16 bytes.
    ChunkId(bytes.try_into().unwrap_or_default())
}
