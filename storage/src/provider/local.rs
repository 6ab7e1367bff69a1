//! A directory as a provider. A chunk is there whole or not at all, also after the power went out: it is
//! written beside its name, synced, renamed, and the directory synced.

use std::{
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};

use super::ProviderError;
use crate::chunk::ChunkId;

/// Files that are being written.
const UNFINISHED: &str = "unfinished";

#[derive(Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory where there is none, and throws away what was not finished.
    pub(super) fn open(path: &Path) -> Result<Directory, ProviderError> {
        let place = |error: io::Error| ProviderError::Place(format!("{}: {error}", path.display()));
        if !path.is_absolute() {
            return Err(ProviderError::Place(format!(
                "{} is not an absolute path",
                path.display()
            )));
        }
        fs::create_dir_all(path.join(UNFINISHED)).map_err(place)?;
        Ok(Directory {
            path: path.to_owned(),
        })
    }

    fn of(&self, chunk: ChunkId) -> PathBuf {
        let name = chunk.to_string();
        self.path.join(&name[..2]).join(name)
    }

    pub(super) async fn put(&self, chunk: ChunkId, sealed: Bytes) -> Result<(), ProviderError> {
        let unfinished = self.path.join(UNFINISHED).join(chunk.to_string());
        let path = self.of(chunk);
        blocking(move || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&sealed)?;
            file.sync_all()?;
            let directory = path.parent().unwrap_or(&path);
            if !directory.exists() {
                fs::create_dir_all(directory)?;
                sync(directory.parent().unwrap_or(directory))?;
            }
            fs::rename(&unfinished, &path)?;
            sync(directory)
        })
        .await
    }

    pub(super) async fn get(
        &self,
        chunk: ChunkId,
        range: Range<usize>,
    ) -> Result<Bytes, ProviderError> {
        let path = self.of(chunk);
        blocking(move || {
            let mut bytes = BytesMut::zeroed(range.len());
            File::open(path)?.read_exact_at(&mut bytes, range.start as u64)?;
            Ok(bytes.freeze())
        })
        .await
    }

    pub(super) async fn delete(&self, chunk: ChunkId) -> Result<(), ProviderError> {
        let path = self.of(chunk);
        blocking(move || fs::remove_file(path)).await
    }
}

/// What a directory names is there after a crash only when the directory itself is synced.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ProviderError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProviderError::Missing,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ProviderError::Full(error.to_string())
        }
        io::ErrorKind::PermissionDenied => ProviderError::Denied(error.to_string()),
        _ => ProviderError::Failed(error.to_string()),
    })
}
