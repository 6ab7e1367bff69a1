//! What a statement answered, in a form that two servers' answers can be compared in.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::Result;
use bytes::{Buf, Bytes};

use crate::wire::{self, Frame};

/// OIDs from here on belong to users: they differ between servers.
const FIRST_USER_OID: u32 = 16_384;
/// `record`, whose binary form holds the OIDs of its columns.
const RECORD_OID: u32 = 2_249;
/// `record[]`.
const RECORD_ARRAY_OID: u32 = 2_287;

/// Names of user-defined types by OID, as one server has them.
pub type TypeNames = BTreeMap<u32, String>;

/// A message of the answer, without what may differ between servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// ParameterDescription.
    Parameters(Vec<String>),
    /// RowDescription.
    Columns(Vec<Column>),
    /// DataRow.
    Row(Vec<Option<Bytes>>),
    /// CopyInResponse or CopyOutResponse: its type byte and body.
    Copy(u8, Bytes),
    /// The rows of a COPY to the client.
    CopyRows(Vec<Bytes>),
    /// CommandComplete.
    Tag(String),
    /// ErrorResponse.
    Error(Failure),
    /// ReadyForQuery: I, T or E.
    Ready(char),
    /// ParseComplete, BindComplete, NoData ...: the type byte.
    Other(char),
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// As the client sees it.
    pub name: String,
    /// OID of a built-in type, name of a user's.
    pub type_name: String,
    /// -1 when there is none.
    pub typmod: i32,
    /// 0 text, 1 binary.
    pub format: i16,
}

/// An error; two are equal when their SQLSTATEs are, and what they are about.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Five characters.
    pub sqlstate: String,
    /// Schema, table, column, type and constraint that it is about: programs read them.
    pub about: String,
    /// For the report alone.
    pub message: String,
    /// What helps. A refusal must have one.
    pub hint: Option<String>,
}

/// The first error.
pub fn failure(events: &[Event]) -> Option<&Failure> {
    events.iter().find_map(|event| match event {
        Event::Error(failure) => Some(failure),
        _ => None,
    })
}

impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.sqlstate == other.sqlstate && self.about == other.about
    }
}

impl Eq for Failure {}

/// OIDs of user-defined types that `frames` mention and `names` does not know.
pub fn mentions_unknown_types(frames: &[Frame], names: &TypeNames) -> bool {
    frames.iter().any(|frame| {
        let oids = match frame.tag {
            b'T' => columns(&frame.body)
                .map(|columns| columns.into_iter().map(|column| column.1).collect())
                .unwrap_or_default(),
            b't' => parameter_oids(&frame.body).unwrap_or_default(),
            _ => Vec::new(),
        };
        oids.iter()
            .any(|oid| *oid >= FIRST_USER_OID && !names.contains_key(oid))
    })
}

/// Turns a server's frames into events.
pub fn events(frames: &[Frame], names: &TypeNames) -> Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    let mut shapes: Vec<Shape> = Vec::new();
    let mut copied: Option<Vec<u8>> = None;
    let mut binary_copy = false;
    for frame in frames {
        let event = match frame.tag {
            b'T' => {
                let found = columns(&frame.body)?;
                shapes = found.iter().map(Shape::of).collect();
                Event::Columns(
                    found
                        .into_iter()
                        .map(|found| column(found, names))
                        .collect(),
                )
            }
            b't' => Event::Parameters(
                parameter_oids(&frame.body)?
                    .into_iter()
                    .map(|oid| type_name(oid, names))
                    .collect(),
            ),
            b'D' => Event::Row(row(&frame.body, &shapes, names)?),
            b'G' | b'H' => {
                binary_copy = frame.body.first() == Some(&1);
                copied = (frame.tag == b'H').then(Vec::new);
                Event::Copy(frame.tag, frame.body.clone())
            }
            b'd' => {
                copied
                    .get_or_insert_default()
                    .extend_from_slice(&frame.body);
                continue;
            }
            b'c' => Event::CopyRows(copy_rows(&copied.take().unwrap_or_default(), binary_copy)),
            b'C' => Event::Tag(frame.text()),
            b'E' => Event::Error(Failure {
                sqlstate: frame.field(b'C').unwrap_or_default(),
                about: b"stcdn"
                    .iter()
                    .filter_map(|code| frame.field(*code))
                    .collect::<Vec<_>>()
                    .join(" "),
                message: frame.field(b'M').unwrap_or_default(),
                hint: frame.field(b'H'),
            }),
            b'Z' => Event::Ready(frame.body.first().map_or('?', |&byte| char::from(byte))),
            other => Event::Other(char::from(other)),
        };
        events.push(event);
    }
    Ok(events)
}

/// Name, type OID, typmod, format.
type RawColumn = (String, u32, i32, i16);

fn columns(body: &Bytes) -> Result<Vec<RawColumn>> {
    let mut rest = body.clone();
    let count = rest.try_get_u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let end = rest.iter().position(|&byte| byte == 0).unwrap_or(0);
        let name = String::from_utf8_lossy(&rest.split_to(end)).into_owned();
        rest.try_get_u8()?;
        let _table = rest.try_get_u32()?;
        let _number = rest.try_get_i16()?;
        let oid = rest.try_get_u32()?;
        let _size = rest.try_get_i16()?;
        columns.push((name, oid, rest.try_get_i32()?, rest.try_get_i16()?));
    }
    Ok(columns)
}

fn column((name, oid, typmod, format): RawColumn, names: &TypeNames) -> Column {
    Column {
        name,
        type_name: type_name(oid, names),
        typmod,
        format,
    }
}

fn parameter_oids(body: &Bytes) -> Result<Vec<u32>> {
    let mut rest = body.clone();
    let count = rest.try_get_u16()?;
    let mut oids = Vec::new();
    for _ in 0..count {
        oids.push(rest.try_get_u32()?);
    }
    Ok(oids)
}

fn type_name(oid: u32, names: &TypeNames) -> String {
    if oid < FIRST_USER_OID {
        return oid.to_string();
    }
    names
        .get(&oid)
        .cloned()
        .unwrap_or_else(|| "a type that pg_type does not have".to_owned())
}

fn holds_oids(oid: u32) -> bool {
    oid >= FIRST_USER_OID || oid == RECORD_OID || oid == RECORD_ARRAY_OID
}

/// What of a column's values is not the same on all servers that hold the same.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    /// OIDs, in arrays and records.
    Oids,
    /// A float, in binary: a NaN has a sign, by which nobody tells it from another, and which is lost
    /// where a value travels as text.
    Float,
}

impl Shape {
    fn of((_, oid, _, format): &RawColumn) -> Shape {
        match (oid, format) {
            (700 | 701, 1) => Shape::Float,
            _ if holds_oids(*oid) => Shape::Oids,
            _ => Shape::Plain,
        }
    }
}

fn row(body: &Bytes, shapes: &[Shape], names: &TypeNames) -> Result<Vec<Option<Bytes>>> {
    Ok(wire::values(body)?
        .into_iter()
        .enumerate()
        .map(|(index, value)| match shapes.get(index) {
            Some(Shape::Oids) => value.map(|bytes| without_oids(bytes, names)),
            Some(Shape::Float) => value.map(without_sign_of_nan),
            _ => value,
        })
        .collect())
}

fn without_sign_of_nan(value: Bytes) -> Bytes {
    let float = match value.len() {
        4 => f64::from(f32::from_be_bytes(value[..].try_into().unwrap_or_default())),
        8 => f64::from_be_bytes(value[..].try_into().unwrap_or_default()),
        _ => return value,
    };
    match float.is_nan() {
        true => Bytes::from_static(b"NaN"),
        false => value,
    }
}

/// Binary arrays and records hold the OIDs of their parts: user-defined ones are replaced by
/// a hash of the type's name, so that servers with other OIDs compare equal.
fn without_oids(value: Bytes, names: &TypeNames) -> Bytes {
    let places = oids_of_record(&value, 0).or_else(|| oids_of_array(&value, 0));
    let mut bytes = value.to_vec();
    for at in places.unwrap_or_default() {
        let place = &mut bytes[at..at + 4];
        let oid = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
        if let Some(name) = names.get(&oid) {
            place.copy_from_slice(&hash(name).to_be_bytes());
        }
    }
    bytes.into()
}

/// Where the OIDs are in what `record_send` writes, if that is what it is: the number of fields, an
/// OID and a value for each.
fn oids_of_record(value: &[u8], start: usize) -> Option<Vec<usize>> {
    let count = number(value, 0)?;
    let mut at = 4;
    let mut places = Vec::new();
    for _ in 0..count {
        let oid = number(value, at)?;
        places.push(start + at);
        at = part(value, at + 4, start, oid, &mut places)?;
    }
    (at == value.len() && count > 0).then_some(places)
}

/// The same of `array_send`: dimensions, a flag, the OID of the elements, two numbers for each
/// dimension, the elements.
fn oids_of_array(value: &[u8], start: usize) -> Option<Vec<usize>> {
    let dimensions = number(value, 0)?;
    let oid = number(value, 8)?;
    let mut places = vec![start + 8];
    let mut at = 12
        + usize::try_from(dimensions)
            .ok()
            .filter(|count| *count <= 6)?
            * 8;
    while at < value.len() {
        at = part(value, at, start, oid, &mut places)?;
    }
    (at == value.len()).then_some(places)
}

/// Looks into the value behind a length at `at`, and gives where it ends.
fn part(value: &[u8], at: usize, start: usize, oid: u32, places: &mut Vec<usize>) -> Option<usize> {
    let length = number(value, at)?;
    if length == u32::MAX {
        return Some(at + 4);
    }
    let end = at + 4 + usize::try_from(length).ok()?;
    let inside = value.get(at + 4..end)?;
    if holds_oids(oid) {
        let found = oids_of_record(inside, start + at + 4);
        places.extend(
            found
                .or_else(|| oids_of_array(inside, start + at + 4))
                .unwrap_or_default(),
        );
    }
    Some(end)
}

fn number(value: &[u8], at: usize) -> Option<u32> {
    let bytes = value.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

fn hash(name: &str) -> u32 {
    // FNV-1a.
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Splits what COPY sent into rows, however it was cut into messages.
fn copy_rows(data: &[u8], binary: bool) -> Vec<Bytes> {
    if binary {
        return binary_rows(data).unwrap_or_else(|| vec![Bytes::copy_from_slice(data)]);
    }
    data.split_inclusive(|&byte| byte == b'\n')
        .map(Bytes::copy_from_slice)
        .collect()
}

/// Tuples between the 19-byte header and the trailer (manual, COPY, "Binary Format").
fn binary_rows(data: &[u8]) -> Option<Vec<Bytes>> {
    let mut rest = data.get(19..)?;
    let mut rows = Vec::new();
    loop {
        let count = i16::from_be_bytes(*rest.first_chunk::<2>()?);
        if count < 0 {
            return (rest.len() == 2).then_some(rows);
        }
        let mut size = 2;
        for _ in 0..count {
            let length = i32::from_be_bytes(*rest.get(size..)?.first_chunk::<4>()?);
            size += 4 + usize::try_from(length).unwrap_or(0);
        }
        rows.push(Bytes::copy_from_slice(rest.get(..size)?));
        rest = &rest[size..];
    }
}

/// What differs, for people; `None` when the answers agree.
pub fn difference(expected: &[Event], found: &[Event], ordered: bool) -> Option<String> {
    if comparable(expected, ordered) == comparable(found, ordered) {
        return None;
    }
    let mut text = String::new();
    let _ = writeln!(text, "  Postgres: {}", summary(expected));
    let _ = write!(text, "  proxy:    {}", summary(found));
    Some(text)
}

/// Rows of one result in a canonical order, unless their order counts; nothing of a statement that
/// failed but its error, because how far it came before that depends on the order of rows and on
/// the step that noticed.
fn comparable(events: &[Event], ordered: bool) -> Vec<Event> {
    let mut events = events.to_vec();
    if let Some(error) = events
        .iter()
        .position(|event| matches!(event, Event::Error(_)))
    {
        let done = events[..error]
            .iter()
            .rposition(|event| matches!(event, Event::Tag(_)));
        events.drain(done.map_or(0, |tag| tag + 1)..error);
    }
    if ordered {
        return events;
    }
    for event in &mut events {
        if let Event::CopyRows(rows) = event {
            rows.sort();
        }
    }
    for run in events.chunk_by_mut(|a, b| is_row(a) && is_row(b)) {
        run.sort_by_cached_key(|event| match event {
            Event::Row(values) => values.clone(),
            _ => Vec::new(),
        });
    }
    events
}

fn is_row(event: &Event) -> bool {
    matches!(event, Event::Row(_))
}

const ROWS_SHOWN: usize = 12;

/// One line per message.
pub fn summary(events: &[Event]) -> String {
    let mut text = String::new();
    let rows = events.iter().filter(|event| is_row(event)).count();
    let mut shown = 0;
    for event in events {
        if is_row(event) {
            shown += 1;
            if shown > ROWS_SHOWN {
                continue;
            }
        }
        text.push_str("\n    ");
        write_event(&mut text, event);
    }
    if rows > ROWS_SHOWN {
        let _ = write!(text, "\n    ({rows} rows)");
    }
    text
}

fn write_event(text: &mut String, event: &Event) {
    let _ = match event {
        Event::Parameters(types) => write!(text, "parameters {types:?}"),
        Event::Columns(columns) => {
            let columns: Vec<String> = columns
                .iter()
                .map(|c| format!("{} {}({}) f{}", c.name, c.type_name, c.typmod, c.format))
                .collect();
            write!(text, "columns {}", columns.join(", "))
        }
        Event::Row(values) => {
            let values: Vec<String> = values.iter().map(|value| shown(value.as_ref())).collect();
            write!(text, "row {}", values.join(" | "))
        }
        Event::Copy(tag, body) => write!(text, "copy {} {body:?}", char::from(*tag)),
        Event::CopyRows(rows) => write!(text, "{} copied: {rows:?}", rows.len()),
        Event::Tag(tag) => write!(text, "tag {tag}"),
        Event::Error(failure) => {
            let about = match failure.about.as_str() {
                "" => String::new(),
                about => format!(" (about {about})"),
            };
            write!(
                text,
                "error {} {}{about}",
                failure.sqlstate, failure.message
            )
        }
        Event::Ready(status) => write!(text, "ready {status}"),
        Event::Other(tag) => write!(text, "message {tag}"),
    };
}

fn shown(value: Option<&Bytes>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
            _ => format!("{bytes:?}"),
        },
    }
}
