//! The storage catalog on a real Postgres: what is visible when, and what comes back.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use automator67_storage::{
    catalog::{
        About, Bucket, BucketSettings, Catalog, CatalogError, Condition, Content, Listed, Lock,
        NewChunk, NewPiece, NewVersion, Root, State, Versioning,
    },
    chunk::{CHUNK_BYTES, Chunk, ChunkId, ChunkKey},
    download::Downloads,
    fleet::{Copies, Fleet},
    keys::RootKey,
    upload::{UploadError, Uploads},
};
use automator67_tests::postgres::Plain;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

/// A server, and a catalog on it with one bucket.
struct Store {
    plain: Plain,
    root: RootKey,
    catalog: Catalog,
    provider: i64,
}

impl Store {
    async fn start() -> Result<Store> {
        let plain = Plain::start()?;
        let root = RootKey::generate();
        let catalog = Catalog::open(config(&plain)?, &Root::Key(root.clone())).await?;
        catalog
            .create_access_key("ann", true, "AK1", "a secret")
            .await?;
        let provider = catalog
            .put_provider("here", "local", "home", r#"{"path":"/nowhere"}"#, None)
            .await?;
        Ok(Store {
            plain,
            root,
            catalog,
            provider,
        })
    }

    async fn bucket(&self, name: &str, versioning: Versioning) -> Result<Arc<Bucket>> {
        let settings = BucketSettings::default();
        let snapshot = self.catalog.snapshot();
        let owner = snapshot.logins.values().next().context("a login")?.id;
        self.catalog.create_bucket(name, owner, &settings).await?;
        let bucket = self.catalog.bucket(name).await?;
        self.catalog
            .set_bucket(&bucket, versioning, &settings)
            .await?;
        Ok(self.catalog.bucket(name).await?)
    }

    /// As if chunks of these lengths were at the provider.
    async fn chunks(&self, lengths: &[usize]) -> Result<Content> {
        let names = self.catalog.reserve(lengths.len() as i64).await?;
        let chunk = |(id, length): (&ChunkId, &usize)| NewChunk {
            chunk: Chunk {
                id: *id,
                key: ChunkKey::generate(),
                length: *length,
            },
            hash: [1; 32],
            alike: [*length as u8; 32],
            copies: Copies {
                sure: vec![self.provider],
                doubtful: Vec::new(),
            },
        };
        let chunks: Vec<NewChunk> = names.iter().zip(lengths).map(chunk).collect();
        let pieces = chunks.iter().map(|new| NewPiece {
            chunk: new.chunk.id,
            start: 0,
            length: new.chunk.length,
        });
        Ok(Content {
            size: lengths.iter().sum::<usize>() as u64,
            value: None,
            pieces: pieces.collect(),
            chunks,
        })
    }

    async fn put(&self, bucket: &Arc<Bucket>, key: &str, text: &str) -> Result<Option<String>> {
        let new = new(bucket, key, text, Condition::default());
        Ok(self.catalog.put_version(&new, &small(text)).await?)
    }

    async fn read(&self, bucket: &Bucket, key: &str, id: Option<&str>) -> Result<Option<String>> {
        let found = self.catalog.find(bucket, key, id).await?;
        let value = found.filter(|found| !found.whole.marker);
        let value = value.map(|found| found.value.context("it is in the catalog"));
        let value = value.transpose()?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// Keys, and prefixes in brackets, in pages of `limit`.
    async fn list(
        &self,
        bucket: &Bucket,
        prefix: &str,
        delimiter: Option<&str>,
        limit: i32,
    ) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self
                .catalog
                .list(bucket, prefix, delimiter, after.as_deref(), limit)
                .await?;
            let full = page.len() == limit as usize;
            for entry in page {
                let (shown, name) = match entry {
                    Listed::Object(whole) => (whole.key.clone(), whole.key.clone()),
                    Listed::Prefix(prefix) => (format!("[{prefix}]"), prefix),
                };
                all.push(shown);
                after = Some(name);
            }
            if !full {
                return Ok(all);
            }
        }
    }

    async fn count(&self, table: &str) -> Result<i64> {
        let (client, connection) = config(&self.plain)?.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let text = format!("select count(*) from automator67_storage.{table}");
        Ok(client.query_one(&text, &[]).await?.get(0))
    }
}

fn config(plain: &Plain) -> Result<tokio_postgres::Config> {
    Ok(plain.server.url()?.parse()?)
}

fn small(text: &str) -> Content {
    Content {
        size: text.len() as u64,
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        ..Content::default()
    }
}

fn new(bucket: &Arc<Bucket>, key: &str, etag: &str, condition: Condition) -> NewVersion {
    NewVersion {
        bucket: bucket.clone(),
        key: key.to_owned(),
        etag: etag.to_owned(),
        about: About::default(),
        lock: Lock::default(),
        condition,
    }
}

fn if_none_match(etag: &str) -> Condition {
    Condition {
        differs: Some(etag.to_owned()),
        ..Condition::default()
    }
}

fn if_match(etag: &str) -> Condition {
    Condition {
        matches: Some(etag.to_owned()),
        ..Condition::default()
    }
}

fn run(test: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(test).expect("as the docs say");
}

#[test]
fn another_root_key_changes_nothing() {
    run(async {
        let store = Store::start().await?;
        let other = Root::Key(RootKey::generate());
        match Catalog::open(config(&store.plain)?, &other).await {
            Err(CatalogError::OtherRoot) => {}
            Err(error) => bail!("{error}"),
            Ok(_) => bail!("it opens"),
        }
        let again = Catalog::open(config(&store.plain)?, &Root::Key(store.root.clone())).await?;
        let snapshot = again.snapshot();
        ensure!(*snapshot.access_keys["AK1"].secret == "a secret");
        ensure!(snapshot.providers[0].place.contains("/nowhere"));
        ensure!(snapshot.providers[0].state == State::Active);
        Ok(())
    });
}

#[test]
fn a_passphrase_opens_what_it_made() {
    run(async {
        let plain = Plain::start()?;
        let phrase = |text: &str| Root::Passphrase(text.to_owned().into());
        let first = phrase("a horse that nobody staples");
        Catalog::open(config(&plain)?, &first).await?;
        Catalog::open(config(&plain)?, &first).await?;
        let other = phrase("a horse that somebody staples");
        let refused = Catalog::open(config(&plain)?, &other).await.err();
        ensure!(matches!(refused, Some(CatalogError::OtherRoot)));
        Ok(())
    });
}

#[test]
fn an_object_is_whole_or_as_it_was() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("plain", Versioning::Off).await?;
        ensure!(store.put(&bucket, "k", "one").await?.is_none());
        store.put(&bucket, "k", "two").await?;
        ensure!(store.read(&bucket, "k", None).await?.as_deref() == Some("two"));
        ensure!(store.read(&bucket, "k", Some("null")).await?.as_deref() == Some("two"));
        ensure!(store.read(&bucket, "K", None).await?.is_none());

        // Conditions are of the moment of the change.
        for (condition, holds) in [
            (if_none_match("*"), false),
            (if_none_match("two"), false),
            (if_none_match("other"), true),
            (if_match("two"), false),
            (if_match("three"), true),
            (if_match("*"), true),
        ] {
            let new = new(&bucket, "k", "three", condition.clone());
            let done = store.catalog.put_version(&new, &small("three")).await;
            let refused = matches!(done, Err(CatalogError::Precondition));
            ensure!(refused != holds, "{condition:?}: {done:?}");
        }
        let absent = new(&bucket, "absent", "x", if_match("x"));
        let done = store.catalog.put_version(&absent, &small("x")).await;
        ensure!(matches!(done, Err(CatalogError::NoSuchKey)), "{done:?}");

        // Of writers that want to be the first one is.
        let first = new(&bucket, "race", "mine", if_none_match("*"));
        let tries = (0..12).map(|_| {
            let (catalog, first) = (store.catalog.clone(), first.clone());
            tokio::spawn(async move { catalog.put_version(&first, &small("mine")).await })
        });
        let mut won = 0;
        for attempt in tries.collect::<Vec<_>>() {
            match attempt.await? {
                Ok(_) => won += 1,
                Err(CatalogError::Precondition) => {}
                Err(error) => bail!("{error}"),
            }
        }
        ensure!(won == 1, "{won} were the first");

        let condition = Condition::default();
        let gone = store.catalog.delete_latest(&bucket, "k", &condition);
        ensure!(gone.await?.is_none());
        ensure!(store.read(&bucket, "k", None).await?.is_none());
        // What nobody sees any more can be restored for a while.
        ensure!(store.count("version where removed is not null").await? >= 4);
        Ok(())
    });
}

#[test]
fn versions_stay_until_they_are_deleted_by_name() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("kept", Versioning::Enabled).await?;
        let one = store.put(&bucket, "k", "one").await?.context("an id")?;
        let two = store.put(&bucket, "k", "two").await?.context("an id")?;
        ensure!(one != two);
        let marker = store
            .catalog
            .delete_latest(&bucket, "k", &Condition::default())
            .await?;
        let marker = marker.context("a marker")?;
        ensure!(store.read(&bucket, "k", None).await?.is_none());
        ensure!(store.read(&bucket, "k", Some(&one)).await?.as_deref() == Some("one"));
        ensure!(store.list(&bucket, "", None, 10).await?.is_empty());

        let delete = |id: String, bypass| {
            let (catalog, bucket) = (store.catalog.clone(), bucket.clone());
            async move {
                let condition = Condition::default();
                catalog
                    .delete_version(&bucket, "k", &id, bypass, &condition)
                    .await
            }
        };
        ensure!(delete(marker, false).await? == Some(true));
        ensure!(store.read(&bucket, "k", None).await?.as_deref() == Some("two"));
        ensure!(delete(two, false).await? == Some(false));
        ensure!(store.read(&bucket, "k", None).await?.as_deref() == Some("one"));
        ensure!(delete("nosuch".to_owned(), false).await?.is_none());

        // Locked ones are not deleted; retention in the mode that governs can be gone round.
        for (held, mode, bypassed) in [
            (true, "GOVERNANCE", false),
            (false, "COMPLIANCE", false),
            (false, "GOVERNANCE", true),
        ] {
            let mut locked = new(&bucket, "k", "locked", Condition::default());
            locked.lock = Lock {
                until: Some(SystemTime::now() + Duration::from_secs(3600)),
                held,
            };
            locked.about.lock_mode = Some(mode.to_owned());
            let id = store
                .catalog
                .put_version(&locked, &small("locked"))
                .await?
                .context("an id")?;
            let refused = delete(id.clone(), false).await;
            ensure!(matches!(refused, Err(CatalogError::Locked)), "{refused:?}");
            let bypass = delete(id, true).await;
            ensure!(bypass.is_ok() == bypassed, "{held} {mode}: {bypass:?}");
        }
        let refused = store.catalog.delete_bucket(&bucket).await;
        ensure!(matches!(refused, Err(CatalogError::BucketNotEmpty)));
        Ok(())
    });
}

#[test]
fn a_listing_has_every_entry_once_and_in_order() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("listed", Versioning::Off).await?;
        let keys = [
            "a",
            "a/",
            "a/b",
            "a/b/c",
            "a//d",
            "a0",
            "b\0",
            "b\u{1}",
            "b/x",
            "b/y/z",
            "ä",
            "🦀/1",
            "../x",
            "%2e%2e/x",
            "c--d--e",
            " ",
            "z\u{10ffff}",
            "z\u{10ffff}x",
        ];
        for key in keys {
            store.put(&bucket, key, "x").await?;
        }
        for prefix in ["", "a", "a/", "b", "z\u{10ffff}", "nothing", ".."] {
            for delimiter in [None, Some("/"), Some("--"), Some("x")] {
                let expected = listing(&keys, prefix, delimiter);
                for limit in [1, 2, 3, 1000] {
                    let found = store.list(&bucket, prefix, delimiter, limit).await?;
                    ensure!(
                        found == expected,
                        "{prefix:?} {delimiter:?} {limit}: {found:?}, not {expected:?}"
                    );
                }
            }
        }
        Ok(())
    });
}

/// What S3 says a listing is.
fn listing(keys: &[&str], prefix: &str, delimiter: Option<&str>) -> Vec<String> {
    let mut entries = BTreeSet::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix)) {
        let rest = &key[prefix.len()..];
        match delimiter.and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len())) {
            Some(end) => entries.insert((key[..prefix.len() + end].to_owned(), true)),
            None => entries.insert(((*key).to_owned(), false)),
        };
    }
    let shown = |(name, is_prefix): (String, bool)| match is_prefix {
        true => format!("[{name}]"),
        false => name,
    };
    entries.into_iter().map(shown).collect()
}

#[test]
fn pieces_are_those_of_the_range() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("large", Versioning::Off).await?;
        let content = store.chunks(&[CHUNK_BYTES, CHUNK_BYTES, 10]).await?;
        ensure!(store.count("intent").await? == 3);
        let new = new(&bucket, "k", "e", Condition::default());
        store.catalog.put_version(&new, &content).await?;
        ensure!(store.count("intent").await? == 0);
        let found = store.catalog.find(&bucket, "k", None).await?;
        let whole = found.context("it is there")?.whole;
        let chunk = CHUNK_BYTES as u64;
        ensure!(whole.size == 2 * chunk + 10);
        for (range, expected) in [
            (0..1, vec![0]),
            (0..chunk, vec![0]),
            (chunk - 1..chunk + 1, vec![0, chunk]),
            (chunk..2 * chunk, vec![chunk]),
            (2 * chunk + 9..2 * chunk + 10, vec![2 * chunk]),
            (0..2 * chunk + 10, vec![0, chunk, 2 * chunk]),
        ] {
            let pieces = store.catalog.pieces(whole.number, range.clone(), 100);
            let pieces = pieces.await?;
            let at: Vec<u64> = pieces.iter().map(|piece| piece.at).collect();
            ensure!(at == expected, "{range:?}: {at:?}");
            let same = |piece: &automator67_storage::catalog::Piece| {
                let mut written = content.chunks.iter();
                let written = written.find(|new| new.chunk.id == piece.chunk.id);
                written.is_some_and(|new| *new.chunk.key.0 == *piece.chunk.key.0)
                    && piece.replicas == [store.provider]
            };
            ensure!(pieces.iter().all(same));
        }
        // The same bytes again.
        let id = content.chunks[2].chunk.id;
        ensure!(store.catalog.alike(&[10; 32]).await? == Some(id));
        Ok(())
    });
}

#[test]
fn a_name_that_was_collected_is_not_used() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("names", Versioning::Off).await?;
        let mut content = store.chunks(&[100]).await?;
        content.chunks[0].chunk.id = ChunkId::generate();
        content.pieces[0].chunk = content.chunks[0].chunk.id;
        let new = new(&bucket, "k", "e", Condition::default());
        ensure!(store.catalog.put_version(&new, &content).await.is_err());
        // A chunk that is said to be there, and is not.
        content.chunks.clear();
        ensure!(store.catalog.put_version(&new, &content).await.is_err());
        ensure!(store.catalog.find(&bucket, "k", None).await?.is_none());
        ensure!(store.count("version").await? == 0 && store.count("piece").await? == 0);
        Ok(())
    });
}

#[test]
fn parts_become_an_object_once() {
    run(async {
        let store = Store::start().await?;
        let bucket = store.bucket("parts", Versioning::Off).await?;
        let about = About::default();
        let upload = store.catalog.create_upload(&bucket, "k", &about).await?;
        // Out of order, and one of them twice.
        for (part, lengths) in [(7, &[30][..]), (1, &[10, 20]), (7, &[40]), (3, &[5])] {
            let content = store.chunks(lengths).await?;
            let etag = format!("e{part}-{}", lengths[0]);
            store
                .catalog
                .put_part(&bucket, &upload, part, &etag, &about, &content)
                .await?;
        }
        let new = new(&bucket, "k", "all", Condition::default());
        let complete = |parts: &[(i32, &str)]| {
            let (catalog, upload, new) = (store.catalog.clone(), upload.clone(), new.clone());
            let parts: Vec<(i32, String)> = parts
                .iter()
                .map(|(part, etag)| (*part, (*etag).to_owned()))
                .collect();
            async move { catalog.complete_upload(&upload, &new, &parts).await }
        };
        for wrong in [
            &[(1, "e1-10"), (7, "e7-30")][..],
            &[(1, "e1-10"), (2, "e2-1")],
        ] {
            let refused = complete(wrong).await;
            ensure!(
                matches!(refused, Err(CatalogError::InvalidPart)),
                "{refused:?}"
            );
        }
        let parts = [(1, "e1-10"), (7, "e7-40")];
        let (one, other) = tokio::join!(complete(&parts), complete(&parts));
        ensure!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
        let aborted = store.catalog.abort_upload(&bucket, "k", &upload).await;
        ensure!(matches!(aborted, Err(CatalogError::NoSuchUpload)));
        let found = store.catalog.find(&bucket, "k", None).await?;
        let whole = found.context("it is there")?.whole;
        ensure!(whole.size == 70, "{}", whole.size);
        let pieces = store.catalog.pieces(whole.number, 0..70, 10).await?;
        let lengths: Vec<(u64, usize)> = pieces
            .iter()
            .map(|piece| (piece.at, piece.within.len()))
            .collect();
        ensure!(lengths == [(0, 10), (10, 20), (30, 40)], "{lengths:?}");
        // What was not used is of nobody now, and is collected.
        ensure!(store.count("piece").await? == 3 && store.count("part").await? == 0);
        Ok(())
    });
}

/// Three providers in memory, and what goes through them.
async fn walks(store: &Store) -> Result<(Uploads, Downloads)> {
    for (name, region) in [("one", "eu"), ("two", "us"), ("three", "asia")] {
        let place = r#"{"kind":"memory"}"#;
        store
            .catalog
            .put_provider(name, "memory", region, place, None)
            .await?;
    }
    ensure!(store.catalog.set_provider("here", State::Dead).await?);
    let fleet = Fleet::of(&store.catalog.snapshot(), &Fleet::default());
    let (_, fleet) = tokio::sync::watch::channel(fleet);
    let catalog = &store.catalog;
    Ok((
        Uploads::new(catalog.clone(), fleet.clone(), 2),
        Downloads::new(catalog.clone(), fleet, None),
    ))
}

/// Bytes that no compression and no accident makes equal.
fn bytes(length: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(next).collect::<Vec<u8>>().into()
}

fn body(bytes: &Bytes) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> + use<> {
    let pieces: Vec<_> = bytes.chunks(70_001).map(Bytes::copy_from_slice).collect();
    futures_util::stream::iter(pieces.into_iter().map(Ok))
}

#[test]
fn what_was_uploaded_comes_back() {
    run(async {
        let store = Store::start().await?;
        let (uploads, downloads) = walks(&store).await?;
        let bucket = store.bucket("through", Versioning::Off).await?;
        let small = automator67_storage::upload::VALUE_BYTES_MAX;
        for length in [0, 1, small, small + 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 4711] {
            let sent = bytes(length, length as u64);
            let content = uploads.take(&bucket, body(&sent)).await?;
            ensure!(content.size == length as u64);
            ensure!(content.value.is_some() == (length <= small), "{length}");
            let copies = content.chunks.iter().all(|new| new.copies.sure.len() == 2);
            ensure!(copies);
            let key = format!("of {length}");
            let new = new(&bucket, &key, "e", Condition::default());
            store.catalog.put_version(&new, &content).await?;
            let found = store.catalog.find(&bucket, &key, None).await?;
            let found = found.context("it is there")?;
            let end = length as u64;
            for range in [
                0..end,
                0..end.min(1),
                end / 3..end / 2,
                end.saturating_sub(1)..end,
                end.min(65_530)..end.min(CHUNK_BYTES as u64 + 9),
            ] {
                let read = downloads.read(&found, range.clone()).await?;
                let read: Vec<Bytes> = read.try_collect().await?;
                let expected = &sent[range.start as usize..range.end as usize];
                ensure!(read.concat() == expected, "{length}: {range:?}");
            }
        }
        ensure!(store.count("chunk").await? == 1 + 1 + 3);

        // The same bytes again are there already, for the same owner.
        let sent = bytes(2 * CHUNK_BYTES + 4711, 2 * CHUNK_BYTES as u64 + 4711);
        let content = uploads.take(&bucket, body(&sent)).await?;
        ensure!(content.chunks.is_empty() && content.pieces.len() == 3);
        let again = new(&bucket, "again", "e", Condition::default());
        store.catalog.put_version(&again, &content).await?;
        let found = store.catalog.find(&bucket, "again", None).await?;
        let found = found.context("it is there")?;
        let read = downloads.read(&found, 0..content.size).await?;
        ensure!(read.try_collect::<Vec<Bytes>>().await?.concat() == sent);
        ensure!(store.count("chunk").await? == 5);
        Ok(())
    });
}

#[test]
fn a_body_that_breaks_off_leaves_nothing_to_see() {
    run(async {
        let store = Store::start().await?;
        let (uploads, _) = walks(&store).await?;
        let bucket = store.bucket("broken", Versioning::Off).await?;
        let sent = bytes(CHUNK_BYTES + 10, 3);
        // The client goes when its first chunk has a name.
        let end = futures_util::stream::once(async {
            while store.count("intent").await.is_ok_and(|names| names == 0) {
                tokio::task::yield_now().await;
            }
            Err(std::io::Error::other("the client is gone"))
        });
        let done = uploads.take(&bucket, body(&sent).chain(end)).await;
        ensure!(matches!(done, Err(UploadError::Body(_))));
        ensure!(store.count("chunk").await? == 0 && store.count("version").await? == 0);
        // What was put is named.
        ensure!(store.count("intent").await? > 0);
        Ok(())
    });
}
