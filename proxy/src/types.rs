//! User-defined types have other OIDs on every shard, because each server numbers what it
//! creates. A client knows those of the home shard only: what it sees and what it sends carries
//! home OIDs, and is translated on the way from and to every other shard.
//!
//! Two types are the same type when schema and name agree. Arrays follow their element, because
//! a server may have had to invent another name for them. A pair of OIDs holds as long as the
//! types exist: a type that was dropped and created again has new OIDs, which are unknown until
//! the pairs are read again.
//!
//! Values in text have no OIDs. In binary, arrays hold the OID of their element and records one
//! per field (`array_send` and `record_send` in the server's source). Values from a client need no
//! translation: `array_recv` and `record_recv` know what to expect, and since Postgres 14 take no
//! notice of OIDs of user-defined types; before, they refused other ones. For the same reason
//! the data of a binary COPY passes as it is.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    error::{Failure, Report, sqlstate},
    frame::HEADER_BYTES,
    process::lock,
    shard::Shard,
    store::{self, StoreError},
};

/// OIDs below are the server's own, and alike everywhere.
pub const FIRST_USER_OID: u32 = 16_384;

const ANYARRAY: u32 = 2277;
const RECORD: u32 = 2249;
const RECORD_ARRAY: u32 = 2287;

/// Values nested deeper than this are refused.
const DEPTH_MAX: usize = 64;
/// A table that both servers do not have is looked for again after this time.
const RELATIONS_AGE_MIN: Duration = Duration::from_secs(1);
/// Reads of both servers until they agree with the read before: a schema change that is being
/// committed on one server after the other must not pair an old type with a new one.
const READS_MAX: usize = 6;

/// Where a value in binary holds OIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nowhere.
    Plain,
    /// As `array_send` writes it.
    Array,
    /// As `record_send` writes it.
    Record,
    /// In its bounds, which are of this type.
    Range(u32),
    /// In its ranges' bounds, which are of this type.
    Multirange(u32),
}

/// Why bytes could not be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untranslated {
    /// No pair has this type.
    Type(u32),
    /// No pair has a table that a column comes from, and it is time to look for it again.
    Table,
    /// The bytes are not what they should be.
    Malformed,
}

/// The pairs of one shard and the home shard.
#[derive(Debug, Default, Clone)]
pub struct TypeMap {
    /// By the shard's OID: that of home, and what values look like.
    to_home: HashMap<u32, (u32, Shape)>,
    /// By the OID of home: the shard's.
    to_shard: HashMap<u32, u32>,
    /// By the shard's OID: that of home.
    tables: HashMap<u32, u32>,
    read: Option<Instant>,
}

/// What a shard that is not home knows about its types.
pub struct Types {
    home: Arc<Shard>,
    map: Mutex<Arc<TypeMap>>,
    /// Returns of home that the pairs have seen: each may have brought another server.
    returns: Mutex<u64>,
    reading: tokio::sync::Mutex<()>,
}

/// Columns of a result whose rows must be rewritten, in order.
pub type Columns = Arc<[Shape]>;

/// A RowDescription that was translated.
#[derive(Debug, Default)]
pub struct Described {
    /// Columns in binary that hold OIDs; `None`: rows pass as they are.
    pub columns: Option<Columns>,
    /// No column holds OIDs in any format.
    pub plain: bool,
}

// ---- the pairs ----

impl Types {
    /// Nothing known yet.
    pub fn new(home: Arc<Shard>) -> Self {
        Types {
            home,
            map: Mutex::default(),
            returns: Mutex::new(0),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// The pairs of now.
    pub fn map(&self) -> Arc<TypeMap> {
        let returns = self.home.returns();
        let mut seen = lock(&self.returns);
        if *seen != returns {
            *seen = returns;
            self.forget();
        }
        lock(&self.map).clone()
    }

    /// The shard was away: another server may answer for it now.
    pub fn forget(&self) {
        *lock(&self.map) = Arc::default();
    }

    /// Reads the pairs anew, unless somebody else has since `seen` was looked at.
    pub async fn read(&self, shard: &Arc<Shard>, seen: &Arc<TypeMap>) -> Result<(), Report> {
        let _turn = self.reading.lock().await;
        if !Arc::ptr_eq(&self.map(), seen) {
            return Ok(());
        }
        let limit = shard.connect_timeout + self.home.connect_timeout;
        let reading = tokio::time::timeout(limit, read_pairs(shard, &self.home));
        let result = match reading.await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        let map = result.map_err(|cause| {
            let name = &shard.settings.name;
            let message = format!("the types of shard \"{name}\" could not be read");
            Report::error(sqlstate::CONNECTION_FAILURE, message).detail(format!("{cause}."))
        })?;
        *lock(&self.map) = Arc::new(map);
        Ok(())
    }

    /// Reads until `enough`: at most once for ourselves, and once more where somebody else's
    /// reading came in between.
    async fn read_until(
        &self,
        shard: &Arc<Shard>,
        enough: impl Fn(&TypeMap) -> bool,
    ) -> Result<(), Report> {
        for _ in 0..2 {
            let seen = self.map();
            if enough(&seen) {
                break;
            }
            self.read(shard, &seen).await?;
        }
        Ok(())
    }

    /// The pairs stay as they are; they are not read again soon.
    fn postpone(&self) {
        let mut map = lock(&self.map);
        *map = Arc::new(TypeMap {
            read: Some(Instant::now()),
            ..TypeMap::clone(&map)
        });
    }
}

/// Makes what could not be translated known, if it can be known.
pub async fn learn(shard: &Arc<Shard>, missing: Untranslated) -> Result<(), Failure> {
    let Some(types) = &shard.types else {
        return Ok(());
    };
    match missing {
        Untranslated::Malformed => Err(malformed(shard)),
        Untranslated::Table => {
            // A table's OID is of little use to clients: without it the statement goes on.
            let read = match types.home.is_up() {
                true => types.read(shard, &types.map()).await.is_ok(),
                false => false,
            };
            if !read {
                types.postpone();
            }
            Ok(())
        }
        Untranslated::Type(oid) => {
            let known = |map: &TypeMap| map.to_home(oid).is_some();
            types.read_until(shard, known).await?;
            if known(&types.map()) {
                Ok(())
            } else {
                Err(unknown(shard, oid))
            }
        }
    }
}

/// Makes sure that parameter types of the client, which are those of home, can go to a shard.
pub async fn learn_for_shard(shard: &Arc<Shard>, oids: &[u32]) -> Result<(), Failure> {
    let Some(types) = &shard.types else {
        return Ok(());
    };
    if oids.iter().all(|oid| *oid < FIRST_USER_OID) {
        return Ok(());
    }
    let unpaired = |map: &TypeMap| {
        let mut all = oids.iter().copied();
        all.find(|oid| map.to_shard(*oid).is_none())
    };
    types
        .read_until(shard, |map| unpaired(map).is_none())
        .await?;
    match unpaired(&types.map()) {
        None => Ok(()),
        Some(oid) => Err(unknown(shard, oid)),
    }
}

fn unknown(shard: &Shard, oid: u32) -> Failure {
    let name = &shard.settings.name;
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("a type is not known yet on shard \"{name}\""),
    )
    .detail(format!(
        "No committed type of both this shard and the home shard has OID {oid}: it was created in this transaction, or does not exist."
    ))
    .hint("Commit the transaction that creates the type before you use it, or cast to text.")
    .into()
}

fn malformed(shard: &Shard) -> Failure {
    let name = &shard.settings.name;
    Report::error(
        sqlstate::PROTOCOL_VIOLATION,
        format!("shard \"{name}\" sent a value in an unknown binary format"),
    )
    .hint("Ask for the result in text format.")
    .into()
}

impl TypeMap {
    /// The OID on the home shard.
    fn to_home(&self, oid: u32) -> Option<u32> {
        if oid < FIRST_USER_OID {
            return Some(oid);
        }
        self.to_home.get(&oid).map(|(home, _)| *home)
    }

    /// The OID on the shard.
    pub fn to_shard(&self, oid: u32) -> Option<u32> {
        if oid < FIRST_USER_OID {
            return Some(oid);
        }
        self.to_shard.get(&oid).copied()
    }

    /// What values of one of the shard's types look like.
    fn shape(&self, oid: u32) -> Result<Shape, Untranslated> {
        match oid {
            RECORD => Ok(Shape::Record),
            RECORD_ARRAY | ANYARRAY => Ok(Shape::Array),
            0 => Err(Untranslated::Malformed),
            _ if oid < FIRST_USER_OID => Ok(Shape::Plain),
            _ => match self.to_home.get(&oid) {
                Some((_, shape)) => Ok(*shape),
                None => Err(Untranslated::Type(oid)),
            },
        }
    }

    fn table(&self, oid: u32) -> Result<u32, Untranslated> {
        match self.tables.get(&oid) {
            _ if oid < FIRST_USER_OID => Ok(oid),
            Some(home) => Ok(*home),
            None if self.is_old() => Err(Untranslated::Table),
            None => Ok(0),
        }
    }

    fn is_old(&self) -> bool {
        self.read.is_none_or(|at| at.elapsed() > RELATIONS_AGE_MIN)
    }
}

// ---- reading the pairs ----

const TYPES_QUERY: &str = "
    select n.nspname, t.typname, t.oid, t.typtype, t.typsend::text, t.typrelid, t.typarray,
           coalesce(r.rngsubtype, 0)
    from pg_catalog.pg_type t
    join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    left join pg_catalog.pg_range r
      on coalesce(nullif(t.typbasetype, 0), t.oid)
         in (r.rngtypid, (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::pg_catalog.oid)
    where t.oid >= 16384 and n.nspname !~ '^pg_(toast|temp_)'
    order by t.oid";

/// A row of `pg_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    schema: String,
    name: String,
    oid: u32,
    shape: Shape,
    /// An array that came with its element type.
    is_array: bool,
    /// Its table; 0 is none.
    table: u32,
    /// Its array; 0 is none.
    array: u32,
}

async fn read_pairs(shard: &Arc<Shard>, home: &Arc<Shard>) -> Result<TypeMap, StoreError> {
    let (there, there_connection) = store::connect(shard).await?;
    let (here, here_connection) = store::connect(home).await?;
    let reading = async {
        let mut last = None;
        for _ in 0..READS_MAX {
            let both = (found(&there).await?, found(&here).await?);
            if last.as_ref() == Some(&both) {
                return Ok(pair(&both.0, &both.1));
            }
            last = Some(both);
        }
        // The schema changes all the time: no pair is better than a wrong one.
        Ok::<_, tokio_postgres::Error>(pair(&[], &[]))
    };
    // The connections end with their clients, and before them only with an error.
    tokio::select! {
        map = reading => Ok(map?),
        result = async { tokio::try_join!(there_connection, here_connection) } => {
            result?;
            Err(StoreError::Connect(
                shard.settings.name.clone(),
                std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
            ))
        }
    }
}

async fn found(client: &tokio_postgres::Client) -> Result<Vec<Found>, tokio_postgres::Error> {
    let answer = client.simple_query(TYPES_QUERY).await?;
    let rows = answer.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let found = rows.map(|row| {
        let text = |column| row.try_get(column).ok().flatten().unwrap_or_default();
        let oid = |column: usize| text(column).parse().unwrap_or(0);
        let shape = shape_by_send(text(4), oid(7));
        Found {
            schema: text(0).to_owned(),
            name: text(1).to_owned(),
            oid: oid(2),
            shape,
            is_array: text(3) == "b" && shape == Shape::Array,
            table: oid(5),
            array: oid(6),
        }
    });
    Ok(found.collect())
}

/// Domains have the function of their base type.
fn shape_by_send(function: &str, subtype: u32) -> Shape {
    match function {
        "array_send" => Shape::Array,
        "record_send" => Shape::Record,
        // Bounds of a built-in type hold no OIDs; 0 is a domain over another domain.
        "range_send" | "multirange_send" if is_plain_subtype(subtype) => Shape::Plain,
        "range_send" => Shape::Range(subtype),
        "multirange_send" => Shape::Multirange(subtype),
        _ => Shape::Plain,
    }
}

fn is_plain_subtype(oid: u32) -> bool {
    oid != 0 && oid < FIRST_USER_OID && !matches!(oid, RECORD | RECORD_ARRAY | ANYARRAY)
}

fn pair(there: &[Found], here: &[Found]) -> TypeMap {
    let mut names: HashMap<(&str, &str), &Found> = HashMap::with_capacity(here.len());
    let mut by_oid: HashMap<u32, &Found> = HashMap::with_capacity(here.len());
    for home in here {
        by_oid.insert(home.oid, home);
        if !home.is_array {
            names.insert((&home.schema, &home.name), home);
        }
    }
    let arrays: HashMap<u32, &Found> = there.iter().map(|found| (found.oid, found)).collect();
    let mut map = TypeMap {
        read: Some(Instant::now()),
        ..TypeMap::default()
    };
    let mut add = |found: &Found, home: &Found| {
        map.to_home.insert(found.oid, (home.oid, found.shape));
        map.to_shard.insert(home.oid, found.oid);
        if found.table != 0 && home.table != 0 {
            map.tables.insert(found.table, home.table);
        }
    };
    for found in there.iter().filter(|found| !found.is_array) {
        let Some(home) = names.get(&(found.schema.as_str(), found.name.as_str())) else {
            continue;
        };
        add(found, home);
        if let (Some(array), Some(home)) = (arrays.get(&found.array), by_oid.get(&home.array)) {
            add(array, home);
        }
    }
    map
}

// ---- frames ----

/// Translates a whole RowDescription frame. Nothing is changed when it fails.
pub fn row_description(map: &TypeMap, frame: &mut [u8]) -> Result<Described, Untranslated> {
    let mut cursor = Cursor::frame(frame);
    let mut changes = Changes::default();
    let count = cursor.count()?;
    let mut shapes = Vec::with_capacity(count.min(64));
    let mut described = Described {
        columns: None,
        plain: true,
    };
    let mut holds_oids = false;
    for _ in 0..count {
        cursor.string()?;
        let (at, table) = cursor.oid()?;
        changes.note(at, table, map.table(table)?);
        cursor.skip(2)?;
        let (at, oid) = cursor.oid()?;
        changes.translate(map, at, oid)?;
        cursor.skip(6)?;
        let binary = cursor.int16()? == 1;
        let shape = map.shape(oid).or_else(absent)?;
        described.plain &= shape == Shape::Plain;
        holds_oids |= binary && shape != Shape::Plain;
        shapes.push(if binary { shape } else { Shape::Plain });
    }
    if holds_oids {
        described.columns = Some(Arc::from(shapes));
    }
    changes.make(frame);
    Ok(described)
}

/// A column of no type at all has no value.
fn absent(missing: Untranslated) -> Result<Shape, Untranslated> {
    match missing {
        Untranslated::Malformed => Ok(Shape::Plain),
        Untranslated::Type(_) | Untranslated::Table => Err(missing),
    }
}

/// Translates a whole ParameterDescription frame. Nothing is changed when it fails.
pub fn parameter_description(map: &TypeMap, frame: &mut [u8]) -> Result<(), Untranslated> {
    let mut cursor = Cursor::frame(frame);
    let mut changes = Changes::default();
    for _ in 0..cursor.count()? {
        let (at, oid) = cursor.oid()?;
        changes.translate(map, at, oid)?;
    }
    changes.make(frame);
    Ok(())
}

/// Translates a whole DataRow frame whose columns are `shapes`. Nothing is changed when it fails.
pub fn data_row(map: &TypeMap, shapes: &[Shape], frame: &mut [u8]) -> Result<(), Untranslated> {
    let mut cursor = Cursor::frame(frame);
    let mut changes = Changes::default();
    if cursor.count()? != shapes.len() {
        return Err(Untranslated::Malformed);
    }
    for shape in shapes {
        if let Some(value) = cursor.value()? {
            changes.value(map, *shape, value, 0)?;
        }
    }
    changes.make(frame);
    Ok(())
}

/// OIDs to be written, all of them or none.
#[derive(Default)]
struct Changes {
    places: Vec<(usize, u32)>,
}

impl Changes {
    fn note(&mut self, at: usize, old: u32, new: u32) {
        if old != new {
            self.places.push((at, new));
        }
    }

    fn translate(&mut self, map: &TypeMap, at: usize, oid: u32) -> Result<(), Untranslated> {
        let new = map.to_home(oid).ok_or(Untranslated::Type(oid))?;
        self.note(at, oid, new);
        Ok(())
    }

    fn make(self, bytes: &mut [u8]) {
        for (at, oid) in self.places {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&oid.to_be_bytes());
            }
        }
    }

    fn value(
        &mut self,
        map: &TypeMap,
        shape: Shape,
        value: Cursor<'_>,
        depth: usize,
    ) -> Result<(), Untranslated> {
        if depth > DEPTH_MAX {
            return Err(Untranslated::Malformed);
        }
        match shape {
            Shape::Plain => Ok(()),
            Shape::Array => self.array(map, value, depth),
            Shape::Record => self.record(map, value, depth),
            Shape::Range(subtype) => self.range(map, map.shape(subtype)?, value, depth),
            Shape::Multirange(subtype) => self.multirange(map, map.shape(subtype)?, value, depth),
        }
    }

    /// Dimensions, a flag, the element's OID, two numbers per dimension, the elements.
    fn array(
        &mut self,
        map: &TypeMap,
        mut value: Cursor<'_>,
        depth: usize,
    ) -> Result<(), Untranslated> {
        let dimensions = value.int32()?;
        value.skip(4)?;
        let (at, element) = value.oid()?;
        self.translate(map, at, element)?;
        let shape = map.shape(element)?;
        if shape == Shape::Plain {
            return Ok(());
        }
        let dimensions = usize::try_from(dimensions).map_err(|_| Untranslated::Malformed)?;
        value.skip(dimensions.saturating_mul(8))?;
        while !value.is_at_end() {
            if let Some(element) = value.value()? {
                self.value(map, shape, element, depth + 1)?;
            }
        }
        Ok(())
    }

    /// The number of fields; then an OID and a value for each.
    fn record(
        &mut self,
        map: &TypeMap,
        mut value: Cursor<'_>,
        depth: usize,
    ) -> Result<(), Untranslated> {
        for _ in 0..value.int32()? {
            let (at, oid) = value.oid()?;
            self.translate(map, at, oid)?;
            if let Some(field) = value.value()? {
                self.value(map, map.shape(oid)?, field, depth + 1)?;
            }
        }
        if value.is_at_end() {
            Ok(())
        } else {
            Err(Untranslated::Malformed)
        }
    }

    /// A byte of flags, then the bounds it has.
    fn range(
        &mut self,
        map: &TypeMap,
        bound: Shape,
        mut value: Cursor<'_>,
        depth: usize,
    ) -> Result<(), Untranslated> {
        value.skip(1)?;
        while !value.is_at_end() {
            if let Some(end) = value.value()? {
                self.value(map, bound, end, depth + 1)?;
            }
        }
        Ok(())
    }

    /// The number of ranges, then these.
    fn multirange(
        &mut self,
        map: &TypeMap,
        bound: Shape,
        mut value: Cursor<'_>,
        depth: usize,
    ) -> Result<(), Untranslated> {
        for _ in 0..value.int32()? {
            if let Some(range) = value.value()? {
                self.range(map, bound, range, depth)?;
            }
        }
        Ok(())
    }
}

/// Reads bytes and knows where in the whole it is.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The body of a frame.
    fn frame(frame: &'a [u8]) -> Self {
        Cursor {
            rest: frame.get(HEADER_BYTES..).unwrap_or_default(),
            at: HEADER_BYTES,
        }
    }

    fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<Cursor<'a>, Untranslated> {
        if count > self.rest.len() {
            return Err(Untranslated::Malformed);
        }
        let (taken, rest) = self.rest.split_at(count);
        let taken = Cursor {
            rest: taken,
            at: self.at,
        };
        self.rest = rest;
        self.at += count;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Untranslated> {
        self.take(count).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Untranslated> {
        let taken = self.take(N)?;
        taken.rest.try_into().map_err(|_| Untranslated::Malformed)
    }

    fn int16(&mut self) -> Result<i16, Untranslated> {
        self.array().map(i16::from_be_bytes)
    }

    fn count(&mut self) -> Result<usize, Untranslated> {
        self.array().map(u16::from_be_bytes).map(usize::from)
    }

    fn int32(&mut self) -> Result<i32, Untranslated> {
        self.array().map(i32::from_be_bytes)
    }

    fn oid(&mut self) -> Result<(usize, u32), Untranslated> {
        let at = self.at;
        Ok((at, self.array().map(u32::from_be_bytes)?))
    }

    fn string(&mut self) -> Result<(), Untranslated> {
        let end = memchr::memchr(0, self.rest).ok_or(Untranslated::Malformed)?;
        self.skip(end + 1)
    }

    /// A length and that many bytes; -1 is NULL.
    fn value(&mut self) -> Result<Option<Cursor<'a>>, Untranslated> {
        match self.int32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Untranslated::Malformed)?;
                self.take(length).map(Some)
            }
        }
    }
}

/// Statements of a server connection whose results are known to hold no OIDs.
pub type PlainStatements = HashSet<u64>;

#[cfg(test)]
mod tests;
