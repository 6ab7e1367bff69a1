//! From a body to [`Content`]: bytes become chunks, chunks are put at providers, and what the catalog is to
//! be told of them comes back. Nothing is visible yet; what is given up here is collected by its names.
//!
//! Memory: a chunk is filled while the one before it is put, so an upload holds two. Chunks are smaller
//! while many uploads run, so that together they hold no more than 256 MiB.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream::FuturesOrdered};
use thiserror::Error;
use tokio::{sync::watch, time::Instant};

use crate::{
    catalog::{Bucket, Catalog, CatalogError, Content, NewChunk, NewPiece},
    chunk::{CHUNK_BYTES, Chunk, ChunkId, ChunkKey},
    fleet::{Fleet, FleetError},
};

/// What all uploads hold together, while there are no more than [`UPLOADS_MAX`].
const MEMORY_BYTES: usize = 256 << 20;
/// Chunks are not smaller, however many uploads run.
const CHUNK_BYTES_MIN: usize = 256 << 10;
/// More are told to come again.
const UPLOADS_MAX: usize = MEMORY_BYTES / CHUNK_BYTES_MIN / 2;
/// Objects of no more bytes are in the catalog.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Names that are reserved at once.
const NAMES: i64 = 64;
/// Names are collected after a day; one that is older than this is not used any more.
const NAME_AGE_MAX: Duration = Duration::from_secs(3600);

/// Why a body did not become content.
#[derive(Debug, Error)]
pub enum UploadError<E> {
    /// The client's end.
    #[error("the body ended early: {0}")]
    Body(E),
    /// Too many at once.
    #[error("{UPLOADS_MAX} uploads are running")]
    Busy,
    /// Not enough copies.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Names, equal chunks.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What uploads of a process share.
#[derive(Clone)]
pub struct Uploads {
    catalog: Catalog,
    fleet: watch::Receiver<Fleet>,
    copies: usize,
    running: Arc<AtomicUsize>,
    names: Arc<Mutex<Vec<(Instant, ChunkId)>>>,
}

/// One of those that run.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Uploads {
    /// Each chunk is put at `copies` providers before it counts.
    pub fn new(catalog: Catalog, fleet: watch::Receiver<Fleet>, copies: usize) -> Uploads {
        Uploads {
            catalog,
            fleet,
            copies,
            running: Arc::default(),
            names: Arc::default(),
        }
    }

    /// Takes a whole body.
    pub async fn take<E>(
        &self,
        bucket: &Bucket,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Content, UploadError<E>> {
        let running = self.enter().ok_or(UploadError::Busy)?;
        let alike = self.catalog.root().dedup_key(bucket.owner);
        let mut content = Content::default();
        let mut putting = FuturesOrdered::new();
        let mut buffer = BytesMut::new();
        let mut body = std::pin::pin!(body);
        loop {
            // Either can be dropped: what a body has given is in the buffer, a put goes on in `putting`.
            let bytes = tokio::select! {
                Some(put) = putting.next() => {
                    add(&mut content, put?);
                    continue;
                }
                bytes = body.next() => bytes,
            };
            let Some(bytes) = bytes else { break };
            let bytes = bytes.map_err(UploadError::Body)?;
            content.size += bytes.len() as u64;
            buffer.extend_from_slice(&bytes);
            let target = target(running.0.load(Ordering::Relaxed));
            while buffer.len() >= target {
                if let Some(put) = putting.next().await {
                    add(&mut content, put?);
                }
                let plaintext = buffer.split_to(target).freeze();
                putting.push_back(self.put(plaintext, &alike));
            }
        }
        while let Some(put) = putting.next().await {
            add(&mut content, put?);
        }
        match (content.pieces.is_empty(), buffer.len()) {
            (true, 0..=VALUE_BYTES_MAX) => content.value = Some(buffer.freeze()),
            (_, 0) => {}
            _ => add(&mut content, self.put(buffer.freeze(), &alike).await?),
        }
        Ok(content)
    }

    fn enter(&self) -> Option<Running> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(self.running.clone());
        (before < UPLOADS_MAX).then_some(running)
    }

    /// A chunk of this plaintext at providers: one that is there, or a new one.
    async fn put<E>(
        &self,
        plaintext: Bytes,
        alike: &[u8; 32],
    ) -> Result<(Option<NewChunk>, NewPiece), UploadError<E>> {
        let piece = |chunk| NewPiece {
            chunk,
            start: 0,
            length: plaintext.len(),
        };
        let alike = *blake3::keyed_hash(alike, &plaintext).as_bytes();
        if let Some(known) = self.catalog.alike(&alike).await? {
            return Ok((None, piece(known)));
        }
        let chunk = Chunk {
            id: self.name().await?,
            key: ChunkKey::generate(),
            length: plaintext.len(),
        };
        let sealed = chunk.seal(&plaintext);
        let hash = *blake3::hash(&sealed).as_bytes();
        let fleet = self.fleet.borrow().clone();
        let copies = fleet.put(chunk.id, &sealed, self.copies).await?;
        let piece = piece(chunk.id);
        let new = NewChunk {
            chunk,
            hash,
            alike,
            copies,
        };
        Ok((Some(new), piece))
    }

    /// A name that nobody else has.
    async fn name(&self) -> Result<ChunkId, CatalogError> {
        if let Some(name) = self.known_name() {
            return Ok(name);
        }
        let made = Instant::now();
        let mut names = self.catalog.reserve(NAMES).await?;
        let name = names.pop();
        let mut known = self.known_names();
        known.extend(names.into_iter().map(|name| (made, name)));
        Ok(name.expect("some were asked for"))
    }

    fn known_name(&self) -> Option<ChunkId> {
        let mut names = self.known_names();
        names.retain(|(made, _)| made.elapsed() < NAME_AGE_MAX);
        names.pop().map(|(_, name)| name)
    }

    fn known_names(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, ChunkId)>> {
        // Nothing panics while it is held.
        self.names
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Bytes of a chunk while so many uploads run.
fn target(running: usize) -> usize {
    (MEMORY_BYTES / 2 / running.max(1)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES)
}

fn add(content: &mut Content, (chunk, piece): (Option<NewChunk>, NewPiece)) {
    content.chunks.extend(chunk);
    content.pieces.push(piece);
}
