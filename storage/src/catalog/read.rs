//! What is read of the catalog: one object, a page of a listing, pieces of a range.

use std::{ops::Range, time::SystemTime};

use tokio_postgres::{Row, types::Json};
use zeroize::Zeroizing;

use super::{About, Bucket, Catalog, CatalogError, chunk_id};
use crate::{
    chunk::{CHUNK_BYTES, Chunk, ChunkId},
    keys::KeyError,
};

/// A version of an object, as a client may see it.
#[derive(Debug, Clone)]
pub struct Whole {
    /// What its pieces are found by.
    pub number: i64,
    /// Its name.
    pub key: String,
    /// `null`, or random.
    pub id: String,
    /// It is the one that a client sees who names no version.
    pub latest: bool,
    /// It says that the object was deleted.
    pub marker: bool,
    /// Bytes.
    pub size: u64,
    /// Entity tag, without quotes.
    pub etag: String,
    /// What is told of it.
    pub about: About,
    /// When it was written.
    pub made: SystemTime,
    /// Retention.
    pub retained: Option<SystemTime>,
    /// Legal hold.
    pub held: bool,
}

/// A version that is read, with its bytes if they are in the catalog.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is.
    pub whole: Whole,
    /// All of its bytes, or `None`: they are in pieces.
    pub value: Option<Zeroizing<Vec<u8>>>,
}

/// A piece of an object, and where its chunk is.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Where it begins in the object.
    pub at: u64,
    /// What of the chunk's plaintext it is.
    pub within: Range<usize>,
    /// How the chunk is opened.
    pub chunk: Chunk,
    /// Numbers of providers that have it.
    pub replicas: Vec<Replica>,
}

/// A copy of a chunk, by the number of its provider.
pub type Replica = i64;

/// An entry of a listing.
#[derive(Debug, Clone)]
pub enum Listed {
    /// An object.
    Object(Box<Whole>),
    /// What several keys begin with.
    Prefix(String),
}

const VERSION: &str = "number, key, id, latest, marker, size, etag, about, made, retained, held";

impl Catalog {
    /// A version of an object: the latest, or one by its id. A marker is found like any other.
    pub async fn find(
        &self,
        bucket: &Bucket,
        key: &str,
        id: Option<&str>,
    ) -> Result<Option<Found>, CatalogError> {
        let client = self.client().await?;
        let which = match id {
            None => "latest",
            Some(_) => "removed is null and id = $3",
        };
        let text = format!(
            "select {VERSION}, value, value_key from version \
             where bucket = $1 and key = $2 and {which} order by number desc limit 1"
        );
        let statement = client.prepare_cached(&text).await?;
        let key = key.as_bytes();
        let row = match &id {
            None => client.query_opt(&statement, &[&bucket.id, &key]).await?,
            Some(id) => {
                let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                    [&bucket.id, &key, id];
                client.query_opt(&statement, &parameters).await?
            }
        };
        drop(client);
        row.map(|row| self.found(bucket, &row)).transpose()
    }

    fn found(&self, bucket: &Bucket, row: &Row) -> Result<Found, CatalogError> {
        let whole = whole(row);
        let sealed: Option<&[u8]> = row.get("value");
        let value = sealed.map(|sealed| {
            let number: Option<i32> = row.get("value_key");
            let place = whole.key.as_bytes();
            let snapshot = self.snapshot();
            let key = snapshot.bucket_keys.get(&(bucket.id, number?));
            key.map(|key| key.open(place, sealed))
        });
        let value = match value {
            None => None,
            Some(opened) => Some(opened.ok_or(KeyError::Foreign("a value"))??),
        };
        Ok(Found { whole, value })
    }

    /// The first pieces of an object with bytes of `range`, no more than `limit`.
    pub async fn pieces(
        &self,
        number: i64,
        range: Range<u64>,
        limit: i64,
    ) -> Result<Vec<Piece>, CatalogError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(PIECES).await?;
        let (start, end) = (range.start as i64, range.end as i64);
        let longest = CHUNK_BYTES as i64;
        let rows = client
            .query(&statement, &[&number, &start, &end, &longest, &limit])
            .await?;
        drop(client);
        rows.iter().map(|row| self.piece(row)).collect()
    }

    fn piece(&self, row: &Row) -> Result<Piece, CatalogError> {
        let (start, length): (i32, i32) = (row.get("start"), row.get("length"));
        Ok(Piece {
            at: row.get::<_, i64>("at") as u64,
            within: start as usize..(start + length) as usize,
            chunk: self.chunk(row)?,
            replicas: row.get("replicas"),
        })
    }

    /// A chunk from the columns of [`CHUNK`].
    fn chunk(&self, row: &Row) -> Result<Chunk, CatalogError> {
        let of = (row.get("bucket"), row.get("key_number"));
        let snapshot = self.snapshot();
        let key = snapshot.bucket_keys.get(&of);
        let key = key.ok_or(KeyError::Foreign("a chunk key"))?;
        Ok(Chunk {
            id: chunk_id(row, "chunk"),
            key: key.unwrap(row.get("key"))?,
            length: row.get::<_, i32>("chunk_length") as usize,
        })
    }

    /// A chunk with this plaintext that is there already.
    pub async fn alike(&self, hash: &[u8; 32]) -> Result<Option<ChunkId>, CatalogError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(ALIKE).await?;
        let row = client.query_opt(&statement, &[&hash.as_slice()]).await?;
        Ok(row.map(|row| chunk_id(&row, "id")))
    }

    /// The first objects of a bucket whose keys begin with `prefix` and come after `after`; keys that go
    /// on behind a delimiter are one entry, which comes after `after` if it is not what `after` is, or
    /// begins with.
    pub async fn list(
        &self,
        bucket: &Bucket,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        limit: i32,
    ) -> Result<Vec<Listed>, CatalogError> {
        let prefix = prefix.as_bytes();
        let below = above_all_with(prefix);
        let least = match after {
            None => prefix.to_vec(),
            Some(after) => least_after(prefix, delimiter, after).max(prefix.to_vec()),
        };
        let client = self.client().await?;
        let rows = match delimiter {
            None => {
                let text = format!(
                    "select {VERSION} from version where bucket = $1 and latest and not marker \
                     and key >= $2 and ($3::bytea is null or key < $3) order by key limit $4"
                );
                let statement = client.prepare_cached(&text).await?;
                let limit = i64::from(limit);
                client
                    .query(&statement, &[&bucket.id, &least, &below, &limit])
                    .await?
            }
            Some(delimiter) => {
                let statement = client.prepare_cached(LIST_BY_PREFIX).await?;
                let delimiter = delimiter.as_bytes();
                let end = above_all_with(delimiter).unwrap_or_default();
                client
                    .query(
                        &statement,
                        &[
                            &bucket.id, &prefix, &least, &below, &delimiter, &end, &limit,
                        ],
                    )
                    .await?
            }
        };
        let entry = |row: &Row| match delimiter.is_some() && row.get("is_prefix") {
            true => Listed::Prefix(text(row.get("entry"))),
            false => Listed::Object(Box::new(whole(row))),
        };
        Ok(rows.iter().map(entry).collect())
    }
}

const PIECES: &str = "select p.at, p.start, p.length, p.chunk, c.bucket, c.key_number, c.key, \
        c.length as chunk_length, \
        array(select provider from replica r where r.chunk = c.id and r.good) as replicas \
    from piece p join chunk c on c.id = p.chunk \
    where p.owner = $1 and p.at > $2::bigint - $4::bigint and p.at + p.length > $2 and p.at < $3 \
    order by p.at limit $5";

/// One that waits to be collected still has half of its time.
const ALIKE: &str = "select id from chunk where alike = $1 \
    and (condemned is null or condemned > now() - interval '12 hours') limit 1";

const LIST_BY_PREFIX: &str = "select entry, is_prefix, (shown).* \
    from list_by_prefix($1, $2, $3, $4, $5, $6, $7)";

fn whole(row: &Row) -> Whole {
    let Json(about) = row.get("about");
    Whole {
        number: row.get("number"),
        key: text(row.get("key")),
        id: row.get("id"),
        latest: row.get("latest"),
        marker: row.get("marker"),
        size: row.get::<_, i64>("size") as u64,
        etag: row.get("etag"),
        about,
        made: row.get("made"),
        retained: row.get("retained"),
        held: row.get("held"),
    }
}

/// Keys come from requests, which have them in UTF-8.
fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// The least bytes above all that begin with these; `None`: there are none.
pub(crate) fn above_all_with(start: &[u8]) -> Option<Vec<u8>> {
    let last = start.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut above = start[..=last].to_vec();
    above[last] += 1;
    Some(above)
}

/// Where a listing goes on behind an entry: behind a key, or behind all keys with a prefix.
fn least_after(prefix: &[u8], delimiter: Option<&str>, after: &str) -> Vec<u8> {
    let after = after.as_bytes();
    if let (Some(delimiter), Some(rest)) = (delimiter, after.strip_prefix(prefix)) {
        let delimiter = delimiter.as_bytes();
        let mut windows = rest.windows(delimiter.len().max(1));
        if let Some(at) = windows.position(|window| window == delimiter) {
            let entry = &after[..prefix.len() + at + delimiter.len()];
            if let Some(above) = above_all_with(entry) {
                return above;
            }
        }
    }
    [after, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_behind_its_last_entry() {
        for (prefix, delimiter, after, least) in [
            ("", None, "a", b"a\0".as_slice()),
            ("", Some("/"), "a/b", b"a0"),
            ("", Some("/"), "a/", b"a0"),
            ("a/", Some("/"), "a/b", b"a/b\0"),
            ("a/", Some("/"), "a/b/c", b"a/b0"),
            ("b", Some("/"), "a/b", b"a/b\0"),
            ("", Some("--"), "x--y", b"x-."),
        ] {
            let found = least_after(prefix.as_bytes(), delimiter, after);
            assert_eq!(found, least, "{prefix} {delimiter:?} {after}");
        }
        assert_eq!(above_all_with(&[7, 255]), Some(vec![8]));
        assert_eq!(above_all_with(&[255]), None);
    }
}
