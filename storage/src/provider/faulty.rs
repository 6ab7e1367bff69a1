//! A provider for tests, in memory, that does what it is told to do wrong.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;

use super::ProviderError;
use crate::chunk::ChunkId;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Answers nothing, ever.
    BlackHole,
    /// Fails each call.
    Fails,
    /// Says that it has stored what it has not.
    Lies,
    /// Changes a bit of what it gives.
    Corrupts,
    /// Has lost everything for now.
    Forgets,
    /// Takes so many milliseconds.
    Slow(u64),
}

#[derive(Clone, Default)]
pub(crate) struct Faulty {
    pub(crate) fault: Arc<Mutex<Fault>>,
    pub(crate) chunks: Arc<Mutex<HashMap<ChunkId, Bytes>>>,
}

impl Faulty {
    async fn fault(&self) -> Result<Fault, ProviderError> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::BlackHole => std::future::pending().await,
            Fault::Fails => Err(ProviderError::Failed("it is told to".to_owned())),
            Fault::Slow(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(fault)
            }
            Fault::None | Fault::Lies | Fault::Corrupts | Fault::Forgets => Ok(fault),
        }
    }

    pub(super) async fn put(&self, chunk: ChunkId, sealed: Bytes) -> Result<(), ProviderError> {
        if self.fault().await? != Fault::Lies {
            self.chunks.lock().unwrap().insert(chunk, sealed);
        }
        Ok(())
    }

    pub(super) async fn get(
        &self,
        chunk: ChunkId,
        range: Range<usize>,
    ) -> Result<Bytes, ProviderError> {
        let fault = self.fault().await?;
        let known = self.chunks.lock().unwrap().get(&chunk).cloned();
        let known = known.filter(|_| fault != Fault::Forgets);
        let bytes = known.ok_or(ProviderError::Missing)?.slice(range);
        if fault != Fault::Corrupts {
            return Ok(bytes);
        }
        let mut changed = bytes.to_vec();
        let middle = changed.len() / 2;
        changed[middle] ^= 4;
        Ok(changed.into())
    }

    pub(super) async fn delete(&self, chunk: ChunkId) -> Result<(), ProviderError> {
        self.fault().await?;
        self.chunks.lock().unwrap().remove(&chunk);
        Ok(())
    }
}
