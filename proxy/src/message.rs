//! The few messages we must understand or write ourselves; everything else passes as bytes.
//!
//! Decoders take one frame's body, read it to its end, and say what is wrong in the server's
//! words when it is short, long or not terminated.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{Outcome, Report},
    frame::{Frame, HEADER_BYTES},
};

/// Appends a frame whose body `fill` writes.
pub fn framed(output: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    output.put_u8(tag);
    let start = output.len();
    output.put_i32(0);
    fill(output);
    // A body of ours is far below 2 GiB: it is built from frames that were checked, piece by piece.
    let length = (output.len() - start) as i32;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a NUL-terminated string. The string has no NUL: it came from a NUL-terminated one, or
/// from the catalog.
pub fn put_string(output: &mut BytesMut, text: &str) {
    output.extend_from_slice(text.as_bytes());
    output.put_u8(0);
}

// ---- from the client ----

/// Walks through one frame's body.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Reader { rest: body }
    }

    /// A NUL-terminated UTF-8 string.
    pub fn string(&mut self) -> Outcome<&'a str> {
        let end = memchr::memchr(0, self.rest)
            .ok_or_else(|| Report::protocol("invalid string in message"))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        std::str::from_utf8(text).map_err(|_| {
            Report::error("22021", "invalid byte sequence for encoding \"UTF8\"").into()
        })
    }

    /// An int16.
    pub fn int16(&mut self) -> Outcome<i16> {
        let (value, rest) = self.rest.split_first_chunk().ok_or_else(short)?;
        self.rest = rest;
        Ok(i16::from_be_bytes(*value))
    }

    /// An int32.
    pub fn int32(&mut self) -> Outcome<i32> {
        let (value, rest) = self.rest.split_first_chunk().ok_or_else(short)?;
        self.rest = rest;
        Ok(i32::from_be_bytes(*value))
    }

    /// One byte.
    pub fn byte(&mut self) -> Outcome<u8> {
        let (value, rest) = self.rest.split_first().ok_or_else(short)?;
        self.rest = rest;
        Ok(*value)
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Outcome<&'a [u8]> {
        if self.rest.len() < count {
            return Err(short().into());
        }
        let (value, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(value)
    }

    /// A count that cannot be negative.
    fn count(&mut self) -> Outcome<usize> {
        // Counts are unsigned 16 bit on the wire: the server reads up to 65535 of them.
        Ok(usize::from(self.int16()? as u16))
    }

    /// Nothing may be left.
    pub fn end(self) -> Outcome<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Report::protocol("invalid message format").into())
        }
    }
}

fn short() -> Report {
    Report::protocol("insufficient data left in message")
}

/// `Q`.
pub fn query(body: &[u8]) -> Outcome<&str> {
    let mut reader = Reader::new(body);
    let text = reader.string()?;
    reader.end()?;
    Ok(text)
}

/// `P`: a statement to prepare.
#[derive(Debug, Clone)]
pub struct Parse {
    /// Empty for the unnamed statement.
    pub name: String,
    /// SQL.
    pub text: String,
    /// Declared parameter types; 0 is unspecified.
    pub parameter_types: Vec<u32>,
}

/// Decodes `P`.
pub fn parse(body: &[u8]) -> Outcome<Parse> {
    let mut reader = Reader::new(body);
    let name = reader.string()?.to_owned();
    let text = reader.string()?.to_owned();
    let count = reader.count()?;
    let mut parameter_types = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        parameter_types.push(reader.int32()? as u32);
    }
    reader.end()?;
    Ok(Parse {
        name,
        text,
        parameter_types,
    })
}

/// `B`: a portal to make. Parameters stay in the frame's own bytes.
#[derive(Debug, Clone)]
pub struct Bind {
    /// Empty for the unnamed portal.
    pub portal: String,
    /// The statement's name.
    pub statement: String,
    /// What follows the two names: formats, values, result formats. Goes to shards unchanged.
    pub rest: Bytes,
    formats: Vec<i16>,
    values: Vec<Option<(usize, usize)>>,
    result_formats: Vec<i16>,
}

/// Decodes `B`.
pub fn bind(body: &[u8]) -> Outcome<Bind> {
    let mut reader = Reader::new(body);
    let portal = reader.string()?.to_owned();
    let statement = reader.string()?.to_owned();
    let rest = Bytes::copy_from_slice(reader.rest);
    let mut bind = Bind {
        portal,
        statement,
        rest,
        formats: Vec::new(),
        values: Vec::new(),
        result_formats: Vec::new(),
    };
    read_values(&mut reader, body, &mut bind)?;
    reader.end()?;
    Ok(bind)
}

fn read_values(reader: &mut Reader<'_>, body: &[u8], bind: &mut Bind) -> Outcome<()> {
    let rest_start = body.len() - bind.rest.len();
    for _ in 0..reader.count()? {
        bind.formats.push(reader.int16()?);
    }
    let count = reader.count()?;
    if bind.formats.len() > 1 && bind.formats.len() != count {
        return Err(Report::protocol(format!(
            "bind message has {} parameter formats but {count} parameters",
            bind.formats.len()
        ))
        .into());
    }
    for _ in 0..count {
        let length = reader.int32()?;
        if length == -1 {
            bind.values.push(None);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| short())?;
        let start = body.len() - reader.rest.len() - rest_start;
        reader.bytes(length)?;
        bind.values.push(Some((start, start + length)));
    }
    for _ in 0..reader.count()? {
        bind.result_formats.push(reader.int16()?);
    }
    Ok(())
}

impl Bind {
    /// How many parameters were given.
    pub fn parameter_count(&self) -> usize {
        self.values.len()
    }

    /// The value of `$index+1`; `None` is NULL (or not given).
    pub fn value(&self, index: usize) -> Option<&[u8]> {
        let (start, end) = (*self.values.get(index)?)?;
        self.rest.get(start..end)
    }

    /// True when `$index+1` is in binary format.
    pub fn is_binary(&self, index: usize) -> bool {
        let format = match self.formats.as_slice() {
            [] => 0,
            [one] => *one,
            many => many.get(index).copied().unwrap_or(0),
        };
        format == 1
    }

    /// True when some result is wanted in binary format.
    pub fn wants_binary(&self) -> bool {
        self.result_formats.iter().any(|format| *format != 0)
    }

    /// The format wanted for a result column.
    pub fn result_format(&self, column: usize) -> i16 {
        match self.result_formats.as_slice() {
            [] => 0,
            [one] => *one,
            many => many.get(column).copied().unwrap_or(0),
        }
    }

    /// The same parameters with all results in one format, for the unnamed portal.
    pub fn with_results_in(&self, format: i16) -> Bind {
        let mut rest = BytesMut::from(self.parameters());
        rest.put_i16(1);
        rest.put_i16(format);
        Bind {
            portal: String::new(),
            rest: rest.freeze(),
            result_formats: vec![format],
            ..self.clone()
        }
    }

    /// The last part of [`Bind::rest`]: formats of results.
    pub fn result_formats(&self) -> Bytes {
        self.rest.slice(self.parameters().len()..)
    }

    /// The parameter part of [`Bind::rest`]: formats and values, without the result formats.
    pub fn parameters(&self) -> &[u8] {
        let result_bytes = 2 + 2 * self.result_formats.len();
        &self.rest[..self.rest.len() - result_bytes]
    }
}

/// `D` and `C` (close): what they name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A prepared statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

/// Decodes `D` and `C`.
pub fn named(body: &[u8], message: &str) -> Outcome<Named> {
    let mut reader = Reader::new(body);
    let kind = reader.byte()?;
    let name = reader.string()?.to_owned();
    reader.end()?;
    match kind {
        b'S' => Ok(Named::Statement(name)),
        b'P' => Ok(Named::Portal(name)),
        other => Err(Report::protocol(format!("invalid {message} message subtype {other}")).into()),
    }
}

/// `E`: portal name and row limit (0: no limit).
pub fn execute(body: &[u8]) -> Outcome<(String, i32)> {
    let mut reader = Reader::new(body);
    let portal = reader.string()?.to_owned();
    let limit = reader.int32()?;
    reader.end()?;
    Ok((portal, limit))
}

// ---- to a shard ----

/// Appends `Q`.
pub fn put_query(output: &mut BytesMut, text: &str) {
    framed(output, b'Q', |body| put_string(body, text));
}

/// Appends `P`.
pub fn put_parse(output: &mut BytesMut, name: &str, text: &str, parameter_types: &[u32]) {
    framed(output, b'P', |body| {
        put_string(body, name);
        put_string(body, text);
        body.put_i16(parameter_types.len() as i16);
        for oid in parameter_types {
            body.put_u32(*oid);
        }
    });
}

/// Appends `B`; `rest` is everything after the names.
pub fn put_bind(output: &mut BytesMut, portal: &str, statement: &str, rest: &[u8]) {
    framed(output, b'B', |body| {
        put_string(body, portal);
        put_string(body, statement);
        body.extend_from_slice(rest);
    });
}

/// Appends `B` with the client's parameters and one format for all results.
pub fn put_bind_with_format(
    output: &mut BytesMut,
    portal: &str,
    statement: &str,
    parameters: &[u8],
    result_format: i16,
) {
    framed(output, b'B', |body| {
        put_string(body, portal);
        put_string(body, statement);
        body.extend_from_slice(parameters);
        body.put_i16(1);
        body.put_i16(result_format);
    });
}

/// Appends `B` for the unnamed statement and portal, with one format for each result.
pub fn put_bind_with_formats(output: &mut BytesMut, parameters: &[u8], formats: &[i16]) {
    framed(output, b'B', |body| {
        body.put_u16(0);
        body.extend_from_slice(parameters);
        body.put_i16(formats.len() as i16);
        for format in formats {
            body.put_i16(*format);
        }
    });
}

/// Appends formats and values of a client's parameters, and behind them `arrays` of ours, in binary
/// format: `put_array` writes length and value of each.
pub fn put_parameters<A>(
    body: &mut BytesMut,
    bind: Option<&Bind>,
    arrays: impl Iterator<Item = A> + Clone,
    put_array: impl Fn(&mut BytesMut, A),
) {
    let given = bind.map_or(0, Bind::parameter_count);
    let count = (given + arrays.clone().count()) as i16;
    body.put_i16(count);
    for index in 0..given {
        body.put_i16(i16::from(bind.is_some_and(|bind| bind.is_binary(index))));
    }
    arrays.clone().for_each(|_| body.put_i16(1));
    body.put_i16(count);
    for index in 0..given {
        match bind.and_then(|bind| bind.value(index)) {
            None => body.put_i32(-1),
            Some(value) => {
                body.put_i32(value.len() as i32);
                body.put_slice(value);
            }
        }
    }
    arrays.for_each(|array| put_array(body, array));
}

/// Parameters of a Bind that has none.
pub const NO_PARAMETERS: &[u8] = &[0, 0, 0, 0];

/// Appends `D` (kind `S` or `P`).
pub fn put_describe(output: &mut BytesMut, kind: u8, name: &str) {
    framed(output, b'D', |body| {
        body.put_u8(kind);
        put_string(body, name);
    });
}

/// Appends `C` (kind `S` or `P`).
pub fn put_close(output: &mut BytesMut, kind: u8, name: &str) {
    framed(output, b'C', |body| {
        body.put_u8(kind);
        put_string(body, name);
    });
}

/// Appends `E`.
pub fn put_execute(output: &mut BytesMut, portal: &str, limit: i32) {
    framed(output, b'E', |body| {
        put_string(body, portal);
        body.put_i32(limit);
    });
}

/// Appends `S`.
pub fn put_sync(output: &mut BytesMut) {
    output.extend_from_slice(b"S\0\0\0\x04");
}

/// Appends CopyDone.
pub fn put_copy_done(output: &mut BytesMut) {
    output.extend_from_slice(b"c\0\0\0\x04");
}

/// Appends CopyFail.
pub fn put_copy_fail(output: &mut BytesMut, reason: &str) {
    framed(output, b'f', |body| put_string(body, reason));
}

// ---- to the client ----

/// Appends a server's CopyInResponse without its last `hidden` columns.
pub fn put_copy_in_response(output: &mut BytesMut, response: &[u8], hidden: usize) {
    let (head, formats) = response.split_at(response.len().min(3));
    let shown = (formats.len() / 2).saturating_sub(hidden);
    framed(output, b'G', |body| {
        body.put_slice(&head[..head.len().min(1)]);
        body.put_i16(shown as i16);
        body.put_slice(&formats[..2 * shown]);
    });
}

/// ParseComplete.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// BindComplete.
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
/// CloseComplete.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// NoData.
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
/// PortalSuspended.
pub const PORTAL_SUSPENDED: &[u8] = b"s\0\0\0\x04";
/// EmptyQueryResponse.
pub const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";

/// Appends ReadyForQuery with `I`, `T` or `E`.
pub fn put_ready(output: &mut BytesMut, status: u8) {
    output.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// Appends CommandComplete.
pub fn put_command_complete(output: &mut BytesMut, tag: &str) {
    framed(output, b'C', |body| put_string(body, tag));
}

/// Takes CommandComplete off the end of `output`, if it ends with one.
pub fn split_complete(output: &mut BytesMut) -> BytesMut {
    const TAG_BYTES_MAX: usize = 64;
    let Some((0, rest)) = output.split_last() else {
        return BytesMut::new();
    };
    // A tag has no other zero byte. Before it comes the message's length, whose last byte is not
    // zero either.
    let tag = rest
        .iter()
        .rev()
        .take(TAG_BYTES_MAX)
        .position(|byte| *byte == 0);
    let frame = tag.map(|tag| tag + 5);
    let start = frame.and_then(|frame| output.len().checked_sub(frame));
    match start {
        Some(start)
            if output[start] == b'C'
                && output[start + 1..start + 5]
                    == (output.len() - start - 1).to_be_bytes()[4..] =>
        {
            output.split_off(start)
        }
        _ => BytesMut::new(),
    }
}

/// Appends ParameterStatus.
pub fn put_parameter_status(output: &mut BytesMut, name: &str, value: &str) {
    framed(output, b'S', |body| {
        put_string(body, name);
        put_string(body, value);
    });
}

/// A column of a RowDescription of our own: name, type OID, type size; text format.
pub fn put_row_description(output: &mut BytesMut, columns: &[(&str, u32, i16)]) {
    framed(output, b'T', |body| {
        body.put_i16(columns.len() as i16);
        for (name, oid, size) in columns {
            put_string(body, name);
            body.put_u32(0);
            body.put_i16(0);
            body.put_u32(*oid);
            body.put_i16(*size);
            body.put_i32(-1);
            body.put_i16(0);
        }
    });
}

/// Appends a DataRow of text values.
pub fn put_text_row(output: &mut BytesMut, values: &[Option<&str>]) {
    framed(output, b'D', |body| {
        body.put_i16(values.len() as i16);
        for value in values {
            match value {
                None => body.put_i32(-1),
                Some(value) => {
                    body.put_i32(value.len() as i32);
                    body.extend_from_slice(value.as_bytes());
                }
            }
        }
    });
}

// ---- from a shard ----

/// A field of an ErrorResponse or NoticeResponse body.
pub fn error_field(body: &[u8], code: u8) -> Option<&str> {
    let mut rest = body;
    while let Some((&field, tail)) = rest.split_first() {
        if field == 0 {
            return None;
        }
        let end = memchr::memchr(0, tail)?;
        if field == code {
            return std::str::from_utf8(&tail[..end]).ok();
        }
        rest = &tail[end + 1..];
    }
    None
}

/// Gives a field of an ErrorResponse another text.
pub fn put_field(frame: &mut BytesMut, code: u8, text: &str) {
    forget_field(frame, code);
    // In front of the NUL that ends the fields.
    frame.truncate(frame.len().saturating_sub(1).max(HEADER_BYTES));
    frame.put_u8(code);
    put_string(frame, text);
    frame.put_u8(0);
    let length = (frame.len() - 1) as u32;
    frame[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Takes a field out of an ErrorResponse.
pub fn forget_field(frame: &mut BytesMut, code: u8) {
    let mut at = HEADER_BYTES;
    while let Some(&field) = frame.get(at).filter(|field| **field != 0) {
        let Some(length) = memchr::memchr(0, &frame[at..]) else {
            return;
        };
        let end = at + length + 1;
        if field == code {
            let rest = frame.split_off(end);
            frame.truncate(at);
            frame.unsplit(rest);
            let length = (frame.len() - 1) as u32;
            frame[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
            return;
        }
        at = end;
    }
}

/// What stands before the line's number in the context of COPY's errors.
const LINE_MARK: &str = ", line ";

/// The context of an ErrorResponse of COPY, and where the line's number is in it.
fn copy_context(frame: &[u8]) -> Option<(&str, std::ops::Range<usize>)> {
    let body = frame.get(HEADER_BYTES..)?;
    let context = error_field(body, b'W').filter(|context| context.starts_with("COPY "))?;
    let start = context.find(LINE_MARK)? + LINE_MARK.len();
    let digits = context[start..]
        .bytes()
        .take_while(u8::is_ascii_digit)
        .count();
    Some((context, start..start + digits))
}

/// The line that an ErrorResponse of COPY is about (`COPY t, line 3, column a: ...`).
pub fn copy_line(frame: &[u8]) -> Option<u64> {
    let (context, place) = copy_context(frame)?;
    context[place].parse().ok()
}

/// The ErrorResponse with another number there, where `line` knows one.
pub fn renumber_line(frame: BytesMut, line: impl Fn(u64) -> Option<u64>) -> BytesMut {
    let renumbered = || {
        let (context, place) = copy_context(&frame)?;
        let number = line(context[place.clone()].parse().ok()?)?;
        let (before, behind) = (&context[..place.start], &context[place.end..]);
        Some((context, format!("{before}{number}{behind}")))
    };
    let Some((old, new)) = renumbered() else {
        return frame;
    };
    let body = frame.get(HEADER_BYTES..).unwrap_or_default();
    // The field's text is a part of the body.
    let from = old.as_ptr() as usize - body.as_ptr() as usize;
    let mut changed = BytesMut::new();
    framed(&mut changed, b'E', |output| {
        output.put_slice(&body[..from]);
        output.put_slice(new.as_bytes());
        output.put_slice(&body[from + old.len()..]);
    });
    changed
}

/// A fingerprint of a RowDescription body: names, types and typmods of its columns.
pub fn shape(body: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some(end) = memchr::memchr(0, rest) {
        let (name, fields) = rest.split_at(end + 1);
        // Table (4 bytes), column (2), type (4), its size (2), typmod (4), format (2).
        let Some((fields, next)) = fields.split_at_checked(18) else {
            break;
        };
        name.hash(&mut hasher);
        fields[6..10].hash(&mut hasher);
        fields[12..16].hash(&mut hasher);
        rest = next;
    }
    hasher.finish()
}

/// Passes a ParameterStatus on, and nothing else.
pub fn pass_status(output: &mut BytesMut, frame: Frame) -> Outcome {
    if frame.tag == b'S' {
        output.extend_from_slice(&frame.bytes);
    }
    Ok(())
}

/// The values of a DataRow body; `None` when it is malformed.
pub fn data_row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let count = u16::from_be_bytes(*count);
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        rest = tail;
        if length < 0 {
            values.push(None);
            continue;
        }
        let length = length as usize;
        values.push(Some(rest.get(..length)?));
        rest = &rest[length..];
    }
    Some(values)
}

/// The command tag of a CommandComplete body.
pub fn command_tag(body: &[u8]) -> &str {
    let text = body.strip_suffix(&[0]).unwrap_or(body);
    std::str::from_utf8(text).unwrap_or("")
}

/// The row count at a command tag's end: `UPDATE 3` has 3.
pub fn tag_rows(tag: &str) -> Option<u64> {
    tag.rsplit(' ').next()?.parse().ok()
}

/// Sets table OID and column number of every field of a whole RowDescription frame to zero: the
/// fields came from temporary tables that mean nothing to the client.
pub fn forget_tables(frame: &mut BytesMut) {
    let header = crate::frame::HEADER_BYTES;
    let mut at = header + 2;
    while at < frame.len() {
        let Some(end) = memchr::memchr(0, &frame[at..]) else {
            return;
        };
        let start = at + end + 1;
        let Some(field) = frame.get_mut(start..start + 6) else {
            return;
        };
        field.fill(0);
        at = start + 18;
    }
}

/// The fields of a RowDescription body: where each starts and ends, the end of its name among them.
fn field_spans(body: &[u8]) -> Option<Vec<(usize, usize, usize)>> {
    let (count, _) = body.split_first_chunk::<2>()?;
    let mut at = 2;
    let mut spans = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let name_end = at + memchr::memchr(0, body.get(at..)?)?;
        let end = name_end + 19;
        body.get(at..end)?;
        spans.push((at, name_end, end));
        at = end;
    }
    Some(spans)
}

/// Type OID and type modifier of each column of a RowDescription body.
pub fn columns(body: &[u8]) -> Option<Vec<(u32, i32)>> {
    let spans = field_spans(body)?;
    spans
        .into_iter()
        .map(|(_, name_end, _)| {
            let oid = body.get(name_end + 7..)?.first_chunk::<4>()?;
            let modifier = body.get(name_end + 13..)?.first_chunk::<4>()?;
            Some((u32::from_be_bytes(*oid), i32::from_be_bytes(*modifier)))
        })
        .collect()
}

/// The names of a RowDescription body's columns.
pub fn column_names(body: &[u8]) -> Option<Vec<String>> {
    let spans = field_spans(body)?;
    let name = |(start, end, _): (usize, usize, usize)| {
        Some(String::from_utf8_lossy(body.get(start..end)?).into_owned())
    };
    spans.into_iter().map(name).collect()
}

/// Appends a RowDescription with another format for each column, or what else `frame` is.
pub fn put_columns_in(output: &mut BytesMut, frame: &Frame, format: impl Fn(usize) -> i16) {
    let start = output.len() + crate::frame::HEADER_BYTES;
    output.extend_from_slice(&frame.bytes);
    if frame.tag != b'T' {
        return;
    }
    for (column, (_, _, end)) in field_spans(frame.body()).into_iter().flatten().enumerate() {
        let place = start + end - 2;
        output[place..place + 2].copy_from_slice(&format(column).to_be_bytes());
    }
}

/// Appends the first columns of a whole RowDescription frame.
pub fn put_visible_columns(output: &mut BytesMut, frame: &[u8], visible: usize) {
    let body = frame.get(crate::frame::HEADER_BYTES..).unwrap_or_default();
    let spans = field_spans(body).unwrap_or_default();
    let end = match visible.checked_sub(1).and_then(|last| spans.get(last)) {
        Some((_, _, end)) => *end,
        None => 2,
    };
    framed(output, b'T', |out| {
        out.put_i16(visible as i16);
        out.extend_from_slice(body.get(2..end).unwrap_or_default());
    });
}

/// Where values of some columns are in a DataRow body: start and length, `None` for NULL.
/// `None` when the body is malformed.
pub fn value_spans(body: &[u8], columns: &[usize]) -> Option<Vec<Option<(usize, usize)>>> {
    let mut all = Vec::with_capacity(columns.len());
    let (count, _) = body.split_first_chunk::<2>()?;
    let mut at = 2;
    for _ in 0..u16::from_be_bytes(*count) {
        let length = i32::from_be_bytes(*body.get(at..)?.first_chunk::<4>()?);
        at += 4;
        match usize::try_from(length) {
            Ok(length) => {
                body.get(at..at + length)?;
                all.push(Some((at, length)));
                at += length;
            }
            Err(_) => all.push(None),
        }
    }
    columns
        .iter()
        .map(|column| all.get(*column).copied())
        .collect()
}

/// Cuts a whole DataRow frame down to its first columns.
pub fn cut_row(frame: &mut BytesMut, visible: usize) {
    let header = crate::frame::HEADER_BYTES;
    let Some(count) = frame.get(header..).and_then(|body| body.first_chunk::<2>()) else {
        return;
    };
    if usize::from(u16::from_be_bytes(*count)) <= visible {
        return;
    }
    let mut at = header + 2;
    for _ in 0..visible {
        let Some(length) = frame.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
            return;
        };
        at += 4 + usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    }
    if at > frame.len() {
        return;
    }
    frame.truncate(at);
    let length = (at - 1) as u32;
    frame[1..5].copy_from_slice(&length.to_be_bytes());
    frame[header..header + 2].copy_from_slice(&(visible as u16).to_be_bytes());
}

/// The parameter types of a ParameterDescription body.
pub fn parameter_types(body: &[u8]) -> Option<Vec<u32>> {
    let (count, rest) = body.split_first_chunk::<2>()?;
    let (oids, []) = rest.as_chunks::<4>() else {
        return None;
    };
    let types: Vec<u32> = oids.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
    (types.len() == usize::from(u16::from_be_bytes(*count))).then_some(types)
}

#[cfg(test)]
mod tests;
