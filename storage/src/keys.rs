//! The hierarchy of keys: a root key that the catalog never has, key versions of buckets wrapped under
//! it, and a key for each chunk, wrapped under the newest version of its bucket when it is written.
//!
//! A bucket gets a new version without touching a chunk: chunk keys are wrapped again, chunks stay.
//! What is lost without the root key is everything; so a root key that is not that of the catalog is
//! told before anything else is done.

use std::{fmt, path::Path};

use aes_gcm::{
    Aes256Gcm,
    aead::{Aead, KeyInit, Payload},
};
use aes_kw::KwAes256;
use argon2::{Algorithm, Argon2, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::chunk::{ChunkId, ChunkKey};

const KEY_BYTES: usize = 32;
/// A wrapped key: AES key wrap puts 8 bytes before it (RFC 3394).
pub const WRAPPED_BYTES: usize = KEY_BYTES + 8;
const NONCE_BYTES: usize = 12;
/// Of a passphrase: 64 MiB and three passes, as OWASP has it for Argon2id, and more of it.
const PASSPHRASE_COST: (u32, u32, u32) = (64 * 1024, 3, 1);
/// A passphrase has at least so many bytes.
const PASSPHRASE_BYTES_MIN: usize = 16;

/// What is wrong with a key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file.
    #[error("the root key could not be read from {0}: {1}")]
    File(String, std::io::Error),
    /// Not 64 hexadecimal digits.
    #[error("a root key is 64 hexadecimal digits: {0} has something else")]
    Form(String),
    /// Too short.
    #[error("a passphrase has at least {PASSPHRASE_BYTES_MIN} bytes")]
    Passphrase,
    /// Not the key that it was wrapped under, or changed since.
    #[error("{0} is not wrapped under this key")]
    Foreign(&'static str),
}

/// The key of everything.
#[derive(Clone)]
pub struct RootKey(Zeroizing<[u8; KEY_BYTES]>);

/// A version of a bucket's key.
#[derive(Clone)]
pub struct BucketKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for RootKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RootKey(..)")
    }
}

impl fmt::Debug for BucketKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BucketKey(..)")
    }
}

impl RootKey {
    /// A new one.
    pub fn generate() -> RootKey {
        RootKey(Zeroizing::new(random()))
    }

    /// From 64 hexadecimal digits; `source` is where they are from, for the message.
    pub fn parse(text: &str, source: &str) -> Result<RootKey, KeyError> {
        let wrong = || KeyError::Form(source.to_owned());
        let text = text.trim().as_bytes();
        if text.len() != 2 * KEY_BYTES {
            return Err(wrong());
        }
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
            *byte = (digit(digits[0])? * 16 + digit(digits[1])?) as u8;
        }
        Ok(RootKey(key))
    }

    /// From a file with those digits.
    pub fn of_file(path: &Path) -> Result<RootKey, KeyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| KeyError::File(path.display().to_string(), error))?;
        RootKey::parse(&Zeroizing::new(text), &path.display().to_string())
    }

    /// From a passphrase, with the salt that the catalog keeps. Takes 64 MiB and some tenths of a
    /// second.
    pub fn of_passphrase(passphrase: &str, salt: &[u8; 16]) -> Result<RootKey, KeyError> {
        if passphrase.len() < PASSPHRASE_BYTES_MIN {
            return Err(KeyError::Passphrase);
        }
        let (memory, passes, lanes) = PASSPHRASE_COST;
        let params =
            Params::new(memory, passes, lanes, Some(KEY_BYTES)).expect("these are allowed");
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
            .expect("salt and output have lengths that are allowed");
        Ok(RootKey(key))
    }

    /// The digits that [`RootKey::parse`] takes.
    pub fn digits(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What the catalog keeps to know the key by. Tells nothing of it.
    pub fn fingerprint(&self) -> [u8; KEY_BYTES] {
        blake3::derive_key("automator67 storage 2026 root key fingerprint", &*self.0)
    }

    /// The key of the hashes by which equal chunks of a tenant are found.
    pub fn dedup_key(&self, tenant: i64) -> [u8; KEY_BYTES] {
        let mut material = Zeroizing::new([0; KEY_BYTES + 8]);
        material[..KEY_BYTES].copy_from_slice(&*self.0);
        material[KEY_BYTES..].copy_from_slice(&tenant.to_be_bytes());
        blake3::derive_key(
            "automator67 storage 2026 equal chunks of a tenant",
            &*material,
        )
    }

    /// A bucket key for the catalog.
    pub fn wrap(&self, key: &BucketKey) -> [u8; WRAPPED_BYTES] {
        wrap(&self.0, &key.0)
    }

    /// A bucket key from the catalog.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<BucketKey, KeyError> {
        let key = unwrap(&self.0, wrapped).ok_or(KeyError::Foreign("a bucket key"))?;
        Ok(BucketKey(key))
    }

    /// A secret for the catalog, where it can be opened only as `name`.
    pub fn seal(&self, name: &str, secret: &[u8]) -> Vec<u8> {
        seal(&self.0, name.as_bytes(), secret)
    }

    /// What was sealed under that name.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        open(&self.0, name.as_bytes(), sealed).ok_or(KeyError::Foreign("a secret"))
    }
}

impl BucketKey {
    /// A new one.
    pub fn generate() -> BucketKey {
        BucketKey(Zeroizing::new(random()))
    }

    /// A chunk key for the catalog.
    pub fn wrap(&self, key: &ChunkKey) -> [u8; WRAPPED_BYTES] {
        wrap(&self.0, &key.0)
    }

    /// A chunk key from the catalog.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<ChunkKey, KeyError> {
        let key = unwrap(&self.0, wrapped).ok_or(KeyError::Foreign("a chunk key"))?;
        Ok(ChunkKey(key))
    }

    /// A value that is small enough to be in the catalog, where it can be opened only in its place.
    pub fn seal(&self, place: &[u8], value: &[u8]) -> Vec<u8> {
        seal(&self.0, place, value)
    }

    /// What was sealed for that place.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        open(&self.0, place, sealed).ok_or(KeyError::Foreign("a value"))
    }
}

impl ChunkKey {
    /// A new one.
    pub fn generate() -> ChunkKey {
        ChunkKey(Zeroizing::new(random()))
    }
}

impl ChunkId {
    /// A new one.
    pub fn generate() -> ChunkId {
        ChunkId(random())
    }
}

/// Random bytes of the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system has random bytes");
    bytes
}

fn wrap(under: &[u8; KEY_BYTES], key: &[u8; KEY_BYTES]) -> [u8; WRAPPED_BYTES] {
    let mut wrapped = [0; WRAPPED_BYTES];
    KwAes256::new(&(*under).into())
        .wrap_key(key, &mut wrapped)
        .expect("a key is four blocks long");
    wrapped
}

fn unwrap(under: &[u8; KEY_BYTES], wrapped: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if wrapped.len() != WRAPPED_BYTES {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    KwAes256::new(&(*under).into())
        .unwrap_key(wrapped, &mut *key)
        .ok()?;
    Some(key)
}

/// Nonce, ciphertext and tag.
fn seal(under: &[u8; KEY_BYTES], place: &[u8], value: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = random();
    let payload = Payload {
        msg: value,
        aad: place,
    };
    let sealed = Aes256Gcm::new(&(*under).into())
        .encrypt(&nonce.into(), payload)
        .expect("the value is shorter than what GCM takes");
    [nonce.as_slice(), &sealed].concat()
}

fn open(under: &[u8; KEY_BYTES], place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload {
        msg: sealed,
        aad: place,
    };
    let value = Aes256Gcm::new(&(*under).into())
        .decrypt(&(*nonce).into(), payload)
        .ok()?;
    Some(Zeroizing::new(value))
}

#[cfg(test)]
mod tests;
