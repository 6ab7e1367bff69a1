//! The chunk format, version 1: how bytes lie at a provider, which must not be able to read or to
//! change them.
//!
//! ```text
//! header   32 bytes   "A67C" | version 1 | algorithm 1 | log2 of the segment size 16 | 0
//!                     | chunk id, 16 bytes | length of the plaintext, 8 bytes, big endian
//! segment  each       up to 64 KiB of AES-256-GCM ciphertext | tag, 16 bytes
//! ```
//!
//! Every chunk has a random key of its own, so the nonce of a segment is only its number, with a flag
//! in the last byte for the last one. The header and the number are authenticated with each segment:
//! one that is moved, left out, cut off, or taken from another chunk or another version of this format
//! fails its tag. A range costs the segments that it touches, and no more.
//!
//! An empty chunk has one empty segment.

use std::{fmt, ops::Range};

use bytes::{Bytes, BytesMut};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// Plaintext of a chunk, but for the last one of an object.
pub const CHUNK_BYTES: usize = 5 << 20;
/// Plaintext of a segment, but for the last one of a chunk.
pub const SEGMENT_BYTES: usize = 1 << SEGMENT_LOG2;
/// Bytes before the first segment.
pub const HEADER_BYTES: usize = 32;
/// Bytes behind each segment's ciphertext.
pub const TAG_BYTES: usize = 16;

const SEGMENT_LOG2: u8 = 16;
const MAGIC: [u8; 4] = *b"A67C";
const VERSION: u8 = 1;
const ALGORITHM_AES_256_GCM: u8 = 1;
const NONCE_BYTES: usize = 12;

/// What a chunk is called: random, and never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 16]);

impl fmt::Display for ChunkId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The key of one chunk: random, and of no other.
#[derive(Clone)]
pub struct ChunkKey(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for ChunkKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ChunkKey(..)")
    }
}

/// What a provider gave is not what was put there.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Corrupt {
    /// Too short, too long.
    #[error("the chunk has {actual} bytes where {expected} belong")]
    Length {
        /// What belongs there.
        expected: usize,
        /// What is there.
        actual: usize,
    },
    /// Another chunk's header, or none.
    #[error("the chunk's header is not its own")]
    Header,
    /// A tag.
    #[error("segment {0} of the chunk is not what was written")]
    Segment(u32),
}

/// A chunk as far as its format goes: what its bytes are authenticated with.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Its name.
    pub id: ChunkId,
    /// Its key.
    pub key: ChunkKey,
    /// Bytes of plaintext.
    pub length: usize,
}

impl Chunk {
    /// The bytes that a provider gets.
    ///
    /// # Panics
    /// Where `plaintext` has not the chunk's length.
    pub fn seal(&self, plaintext: &[u8]) -> Bytes {
        assert_eq!(
            plaintext.len(),
            self.length,
            "the chunk is of this plaintext"
        );
        let aead = aead(&self.key);
        let mut sealed = BytesMut::with_capacity(sealed_bytes(self.length));
        sealed.extend_from_slice(&self.header());
        let last = self.segments() - 1;
        for number in 0..=last {
            let start = sealed.len();
            sealed.extend_from_slice(&plaintext[self.plaintext_of(number)]);
            let tag = aead
                .seal_in_place_separate_tag(
                    nonce(number, number == last),
                    Aad::from(self.authenticated(number)),
                    &mut sealed[start..],
                )
                .expect("a segment is shorter than what GCM takes");
            sealed.extend_from_slice(tag.as_ref());
        }
        sealed.freeze()
    }

    /// The plaintext of all bytes that a provider gave.
    pub fn open(&self, sealed: &[u8]) -> Result<Bytes, Corrupt> {
        check_length(sealed_bytes(self.length), sealed.len())?;
        if sealed[..HEADER_BYTES] != self.header() {
            return Err(Corrupt::Header);
        }
        self.open_segments(0..self.segments(), &sealed[HEADER_BYTES..])
    }

    /// The plaintext of some segments, of which a provider gave the bytes of [`Chunk::sealed_range`].
    pub fn open_segments(&self, numbers: Range<u32>, sealed: &[u8]) -> Result<Bytes, Corrupt> {
        let at = self.sealed_range(numbers.clone());
        check_length(at.len(), sealed.len())?;
        let aead = aead(&self.key);
        let last = self.segments() - 1;
        let mut plaintext = BytesMut::with_capacity(sealed.len());
        let mut rest = sealed;
        for number in numbers {
            let (segment, behind) = rest.split_at(self.plaintext_of(number).len() + TAG_BYTES);
            rest = behind;
            let start = plaintext.len();
            plaintext.extend_from_slice(segment);
            let opened = aead
                .open_in_place(
                    nonce(number, number == last),
                    Aad::from(self.authenticated(number)),
                    &mut plaintext[start..],
                )
                .map_err(|_| Corrupt::Segment(number))?
                .len();
            plaintext.truncate(start + opened);
        }
        Ok(plaintext.freeze())
    }

    /// How many segments there are.
    pub fn segments(&self) -> u32 {
        let count = self.length.div_ceil(SEGMENT_BYTES).max(1);
        u32::try_from(count).expect("a chunk has fewer than 2^32 segments")
    }

    /// The segments with a range of the plaintext.
    pub fn segments_of(&self, plaintext: Range<usize>) -> Range<u32> {
        let number = |count: usize| u32::try_from(count).expect("inside of the chunk");
        number(plaintext.start / SEGMENT_BYTES)
            ..number(plaintext.end.div_ceil(SEGMENT_BYTES).max(1))
    }

    /// Where segments lie among the bytes at a provider.
    pub fn sealed_range(&self, numbers: Range<u32>) -> Range<usize> {
        let start = |number: u32| HEADER_BYTES + number as usize * (SEGMENT_BYTES + TAG_BYTES);
        start(numbers.start)..start(numbers.end).min(sealed_bytes(self.length))
    }

    /// Where a segment lies in the plaintext.
    pub fn plaintext_of(&self, number: u32) -> Range<usize> {
        let start = number as usize * SEGMENT_BYTES;
        start..(start + SEGMENT_BYTES).min(self.length)
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&[VERSION, ALGORITHM_AES_256_GCM, SEGMENT_LOG2, 0]);
        header[8..24].copy_from_slice(&self.id.0);
        header[24..].copy_from_slice(&(self.length as u64).to_be_bytes());
        header
    }

    fn authenticated(&self, number: u32) -> [u8; HEADER_BYTES + 4] {
        let mut bytes = [0; HEADER_BYTES + 4];
        bytes[..HEADER_BYTES].copy_from_slice(&self.header());
        bytes[HEADER_BYTES..].copy_from_slice(&number.to_be_bytes());
        bytes
    }
}

/// Bytes at a provider of a chunk with so many bytes of plaintext.
pub fn sealed_bytes(length: usize) -> usize {
    HEADER_BYTES + length + TAG_BYTES * length.div_ceil(SEGMENT_BYTES).max(1)
}

fn check_length(expected: usize, actual: usize) -> Result<(), Corrupt> {
    match expected == actual {
        true => Ok(()),
        false => Err(Corrupt::Length { expected, actual }),
    }
}

fn aead(key: &ChunkKey) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &*key.0).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

/// A nonce is used once: its key is of one chunk, whose segments have numbers.
fn nonce(number: u32, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_BYTES];
    bytes[7..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests;
