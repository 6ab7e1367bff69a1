//! A provider: a place for chunks by name, that may be slow, full, away or lying. What it gives is
//! checked by whoever has the chunk's key or hash; here a call ends in time, and its error says whose
//! fault it is.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder,
    memory::InMemory, path::Path,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::chunk::ChunkId;

#[cfg(test)]
pub(crate) mod faulty;
mod local;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a call may take, with the bytes of a chunk.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Others are tried meanwhile, so the library's own attempts are few: by itself it goes on for 180 s.
const RETRIES: usize = 1;

/// Where a provider is and how it is spoken to, as the catalog keeps it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Place {
    /// A directory of this machine.
    Local {
        /// Its path.
        path: String,
    },
    /// S3, and what speaks it: R2, B2, Supabase, MinIO.
    S3 {
        /// URL; none for Amazon's own.
        endpoint: Option<String>,
        /// Bucket.
        bucket: String,
        /// Region, as it is signed.
        region: String,
        /// Public half of the key.
        access_key: String,
        /// Secret half.
        secret_key: String,
    },
    /// Google Cloud Storage, also Firebase's.
    Gcs {
        /// Bucket.
        bucket: String,
        /// The service account's key, as JSON.
        account: String,
    },
    /// Azure Blob Storage.
    Azure {
        /// URL; none for Microsoft's own.
        endpoint: Option<String>,
        /// Account.
        account: String,
        /// Its key.
        key: String,
        /// Container.
        container: String,
    },
    /// WebDAV.
    Webdav {
        /// URL of a collection.
        url: String,
    },
    /// This process: gone with it.
    Memory {},
}

/// What a provider did not do.
#[derive(Debug, Error)]
pub enum ProviderError {
    /// There is nothing of that name.
    #[error("there is no such chunk")]
    Missing,
    /// No more space, or quota.
    #[error("the provider is full: {0}")]
    Full(String),
    /// Credentials.
    #[error("the provider refuses: {0}")]
    Denied(String),
    /// No answer in time.
    #[error("the provider did not answer in time")]
    Timeout,
    /// Anything else.
    #[error("the provider failed: {0}")]
    Failed(String),
    /// The place cannot be used as it is written down.
    #[error("the place of the provider cannot be used: {0}")]
    Place(String),
}

impl ProviderError {
    /// It is the provider's fault, and says something about the next call.
    pub fn counts(&self) -> bool {
        match self {
            ProviderError::Missing => false,
            ProviderError::Full(_)
            | ProviderError::Denied(_)
            | ProviderError::Timeout
            | ProviderError::Failed(_)
            | ProviderError::Place(_) => true,
        }
    }
}

/// A connection to a place.
#[derive(Clone)]
pub struct Provider {
    store: Store,
}

#[derive(Clone)]
enum Store {
    Local(local::Directory),
    Remote(Arc<dyn ObjectStore>),
    #[cfg(test)]
    Faulty(faulty::Faulty),
}

impl Provider {
    #[cfg(test)]
    pub(crate) fn faulty(faulty: faulty::Faulty) -> Provider {
        Provider {
            store: Store::Faulty(faulty),
        }
    }

    /// Nothing is called yet.
    pub fn open(place: &Place) -> Result<Provider, ProviderError> {
        let store = match place {
            Place::Local { path } => Store::Local(local::Directory::open(path.as_ref())?),
            other => Store::Remote(
                remote(other).map_err(|error| ProviderError::Place(error.to_string()))?,
            ),
        };
        Ok(Provider { store })
    }

    /// Puts a chunk there, durably: what is acknowledged survives the provider's power going out.
    pub async fn put(&self, chunk: ChunkId, sealed: Bytes) -> Result<(), ProviderError> {
        match &self.store {
            Store::Local(directory) => in_time(directory.put(chunk, sealed)).await,
            #[cfg(test)]
            Store::Faulty(faulty) => in_time(faulty.put(chunk, sealed)).await,
            Store::Remote(store) => {
                let path = path_of(chunk);
                in_time(async {
                    store.put(&path, sealed.into()).await.map_err(failure)?;
                    Ok(())
                })
                .await
            }
        }
    }

    /// Bytes of a chunk: exactly as many as were asked for.
    pub async fn get(&self, chunk: ChunkId, range: Range<usize>) -> Result<Bytes, ProviderError> {
        let length = range.len();
        let bytes = match &self.store {
            Store::Local(directory) => in_time(directory.get(chunk, range)).await?,
            #[cfg(test)]
            Store::Faulty(faulty) => in_time(faulty.get(chunk, range)).await?,
            Store::Remote(store) => {
                let path = path_of(chunk);
                let range = range.start as u64..range.end as u64;
                in_time(async { store.get_range(&path, range).await.map_err(failure) }).await?
            }
        };
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(ProviderError::Failed(format!(
                "{} bytes came where {length} were asked for",
                bytes.len()
            ))),
        }
    }

    /// Deletes a chunk. One that is not there is deleted already.
    pub async fn delete(&self, chunk: ChunkId) -> Result<(), ProviderError> {
        let deleted = match &self.store {
            Store::Local(directory) => in_time(directory.delete(chunk)).await,
            #[cfg(test)]
            Store::Faulty(faulty) => in_time(faulty.delete(chunk)).await,
            Store::Remote(store) => {
                let path = path_of(chunk);
                in_time(async { store.delete(&path).await.map_err(failure) }).await
            }
        };
        match deleted {
            Err(ProviderError::Missing) => Ok(()),
            other => other,
        }
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    // Dropping a call leaves at most a chunk that an intent names.
    let done = tokio::time::timeout(CALL_TIMEOUT, call).await;
    done.unwrap_or(Err(ProviderError::Timeout))
}

/// Two letters are a directory, so that none has too many entries.
fn path_of(chunk: ChunkId) -> Path {
    let name = chunk.to_string();
    Path::from_iter([&name[..2], &name])
}

fn remote(place: &Place) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: CALL_TIMEOUT,
    };
    // A home box or an emulator has no TLS; what is sent is sealed.
    let options = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(CALL_TIMEOUT);
    Ok(match place {
        Place::S3 {
            endpoint,
            bucket,
            region,
            access_key,
            secret_key,
        } => {
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(region)
                .with_access_key_id(access_key)
                .with_secret_access_key(secret_key)
                .with_retry(retry)
                .with_client_options(options);
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            Arc::new(builder.build()?)
        }
        Place::Gcs { bucket, account } => Arc::new(
            GoogleCloudStorageBuilder::new()
                .with_bucket_name(bucket)
                .with_service_account_key(account)
                .with_retry(retry)
                .with_client_options(options)
                .build()?,
        ),
        Place::Azure {
            endpoint,
            account,
            key,
            container,
        } => {
            let mut builder = MicrosoftAzureBuilder::new()
                .with_account(account)
                .with_access_key(key)
                .with_container_name(container)
                .with_retry(retry)
                .with_client_options(options);
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            Arc::new(builder.build()?)
        }
        Place::Webdav { url } => Arc::new(
            HttpBuilder::new()
                .with_url(url)
                .with_retry(retry)
                .with_client_options(options)
                .build()?,
        ),
        Place::Memory {} | Place::Local { .. } => Arc::new(InMemory::new()),
    })
}

fn failure(error: object_store::Error) -> ProviderError {
    use object_store::Error;
    match error {
        Error::NotFound { .. } => ProviderError::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ProviderError::Denied(error.to_string())
        }
        other => ProviderError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
