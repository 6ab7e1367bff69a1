//! From a version of an object to its bytes: pieces of the range, each read from the best provider that has
//! it, opened, and passed on in order. Nothing is passed on that is not what was written.
//!
//! The first bytes are there before anything is answered, so that a client is told of a failure by a
//! status. What is read ahead is two parts.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    catalog::{Catalog, CatalogError, Found, Piece},
    fleet::{Fleet, FleetError},
};

/// The first part of a range is small, so that it comes soon.
const FIRST_BYTES: u64 = 256 << 10;
/// Parts that are read while one is passed on.
const AHEAD: usize = 2;
/// Pieces that are looked up at once.
const PIECES: i64 = 64;

/// Why an object cannot be read.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// No copy of a chunk.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Where its pieces are.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It has fewer bytes than it should have.
    #[error("the object has no bytes from {0} on")]
    Short(u64),
}

/// What downloads of a process share.
#[derive(Clone)]
pub struct Downloads {
    catalog: Catalog,
    fleet: watch::Receiver<Fleet>,
    near: Option<String>,
}

/// Bytes of a piece that are read at once.
#[derive(Debug, Clone)]
struct Part {
    piece: Piece,
    /// Where they are in the object.
    range: Range<u64>,
}

impl Downloads {
    /// Providers in the region `near` are asked first.
    pub fn new(catalog: Catalog, fleet: watch::Receiver<Fleet>, near: Option<String>) -> Downloads {
        Downloads {
            catalog,
            fleet,
            near,
        }
    }

    /// The bytes of a range, which lies inside of the object.
    pub async fn read(
        &self,
        found: &Found,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, DownloadError>> + Send + 'static, DownloadError>
    {
        if let Some(value) = &found.value {
            let whole = Bytes::copy_from_slice(value);
            let part = whole.slice(range.start as usize..range.end as usize);
            return Ok(stream::iter([Ok(part)]).left_stream());
        }
        let this = self.clone();
        let first = range.start..range.end.min(range.start + FIRST_BYTES);
        let parts = self.parts(found.whole.number, first, range.end);
        let mut bytes = parts
            .map_ok(move |part| {
                let this = this.clone();
                async move { this.part(part).await }
            })
            .try_buffered(AHEAD)
            .boxed();
        let start = match bytes.next().await {
            None => stream::iter(None),
            Some(first) => stream::iter(Some(Ok(first?))),
        };
        Ok(start.chain(bytes).right_stream())
    }

    /// The parts of a range, in order; `first` is read before the rest of its piece.
    fn parts(
        &self,
        number: i64,
        first: Range<u64>,
        end: u64,
    ) -> impl Stream<Item = Result<Part, DownloadError>> + Send + use<> {
        struct At {
            start: u64,
            known: VecDeque<Piece>,
        }
        let catalog = self.catalog.clone();
        let at = At {
            start: first.start,
            known: VecDeque::new(),
        };
        stream::try_unfold(at, move |mut at| {
            let (catalog, first) = (catalog.clone(), first.clone());
            async move {
                if at.start >= end {
                    return Ok(None);
                }
                if at.known.is_empty() {
                    let pieces = catalog.pieces(number, at.start..end, PIECES).await?;
                    at.known = pieces.into();
                }
                let piece = at.known.front().cloned();
                let piece = piece.filter(|piece| piece.at <= at.start);
                let piece = piece.ok_or(DownloadError::Short(at.start))?;
                let behind = piece.at + piece.within.len() as u64;
                let mut until = behind.min(end);
                if at.start < first.end {
                    until = until.min(first.end);
                }
                if until == behind {
                    at.known.pop_front();
                }
                let range = at.start..until;
                at.start = until;
                Ok(Some((Part { piece, range }, at)))
            }
        })
    }

    async fn part(&self, Part { piece, range }: Part) -> Result<Bytes, DownloadError> {
        let of_chunk = |at: u64| (at - piece.at) as usize + piece.within.start;
        let within = of_chunk(range.start)..of_chunk(range.end);
        let segments = piece.chunk.segments_of(within.clone());
        let start = piece.chunk.plaintext_of(segments.start).start;
        let fleet = self.fleet.borrow().clone();
        let mut bad = Vec::new();
        let near = self.near.as_deref();
        let read = fleet
            .get(&piece.chunk, segments, &piece.replicas, near, &mut bad)
            .await;
        if !bad.is_empty() {
            self.catalog.mark_bad(&bad).await?;
        }
        Ok(read?.slice(within.start - start..within.end - start))
    }
}
