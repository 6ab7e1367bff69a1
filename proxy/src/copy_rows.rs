//! Rows in COPY's three layouts (manual, "COPY", "File Formats"): where a row ends, and one field
//! of it. Plain functions over slices; bytes of a row are never changed.

use std::borrow::Cow;

use automator67_planner::plan::CopyFormat;
use bytes::{BufMut, BytesMut};
use thiserror::Error;

/// Signature, flags and extension length of FORMAT binary.
pub const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The trailer of FORMAT binary.
pub const BINARY_TRAILER: &[u8] = b"\xff\xff";
/// CopyData is sent in pieces of about this size.
pub const COPY_CHUNK_BYTES: usize = 32 * 1024;

/// What is wrong with COPY data, in the server's words.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RowError {
    /// The signature of FORMAT binary.
    #[error("COPY file signature not recognized")]
    Signature,
    /// A header with flags or extensions that we do not know.
    #[error("unrecognized critical flags in COPY file header")]
    Flags,
    /// A tuple that ends too early.
    #[error("unexpected EOF in COPY data")]
    Incomplete,
    /// A field count or length that cannot be.
    #[error("invalid field size")]
    FieldSize,
    /// Fewer fields than the key's position.
    #[error("missing data for column {0}")]
    MissingColumn(usize),
    /// Not UTF-8.
    #[error("invalid byte sequence for encoding \"UTF8\"")]
    Encoding,
    /// A line feed, where other lines end otherwise.
    #[error("{} newline found in data", kind(.csv))]
    Newline {
        /// FORMAT csv.
        csv: bool,
    },
    /// A carriage return, where other lines end otherwise.
    #[error("{} carriage return found in data", kind(.csv))]
    CarriageReturn {
        /// FORMAT csv.
        csv: bool,
    },
    /// Something behind the end of data marker.
    #[error("end-of-copy marker corrupt")]
    MarkerCorrupt,
    /// The end of data marker's line ends otherwise than other lines.
    #[error("end-of-copy marker does not match previous newline style")]
    MarkerStyle,
    /// Something before or behind the end of data marker, as 18 says it.
    #[error("end-of-copy marker is not alone on its line")]
    MarkerNotAlone,
}

fn kind(csv: &bool) -> &'static str {
    if *csv { "unquoted" } else { "literal" }
}

impl RowError {
    /// What to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            RowError::Newline { csv: false } => Some("Use \"\\n\" to represent newline."),
            RowError::Newline { csv: true } => Some("Use quoted CSV field to represent newline."),
            RowError::CarriageReturn { csv: false } => {
                Some("Use \"\\r\" to represent carriage return.")
            }
            RowError::CarriageReturn { csv: true } => {
                Some("Use quoted CSV field to represent carriage return.")
            }
            RowError::Signature
            | RowError::Flags
            | RowError::Incomplete
            | RowError::FieldSize
            | RowError::MissingColumn(_)
            | RowError::Encoding
            | RowError::MarkerCorrupt
            | RowError::MarkerStyle
            | RowError::MarkerNotAlone => None,
        }
    }
}

/// The piece at the front of the data.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A row of this many bytes, line end included.
    Row(usize),
    /// A row of this many bytes, and the end of data marker behind it on its line.
    Last(usize),
    /// The end of data marker: what follows is ignored.
    End,
    /// More data is needed.
    More,
}

/// Where the first row ends. `scan` is how far earlier calls have looked at the same data; it is
/// kept up to date, so that a long row is not looked at again for every piece that arrives.
pub fn next_row(format: &CopyFormat, data: &[u8], scan: &mut Scan) -> Result<Piece, RowError> {
    let piece = match format {
        CopyFormat::Text { .. } => next_text_row(data, scan)?,
        CopyFormat::Csv { quote, escape, .. } => next_csv_row(data, *quote, *escape, scan)?,
        CopyFormat::Binary => next_tuple(data)?,
    };
    if piece != Piece::More {
        scan.at = 0;
        scan.quoted = false;
        scan.no_marker = false;
    }
    Ok(piece)
}

/// The data has come to its end within a line: ends the line, so that it is a row.
pub fn end_line(format: &CopyFormat, data: &mut BytesMut, scan: &mut Scan) -> Result<(), RowError> {
    let csv = matches!(format, CopyFormat::Csv { .. });
    let rest = data.get(scan.at..).unwrap_or_default();
    match rest {
        b"\\." if !csv => return Err(scan.corrupt()),
        // What is before it is all that counts.
        b"\\" if !csv => data.truncate(data.len() - 1),
        b"\r" if !scan.quoted && scan.ends == Some(LineEnd::Both) => {
            return Err(RowError::CarriageReturn { csv });
        }
        b"\r" if !scan.quoted => {
            scan.ends = Some(LineEnd::CarriageReturn);
            return Ok(());
        }
        _ => {}
    }
    scan.no_marker = true;
    data.extend_from_slice(scan.line_end());
    Ok(())
}

/// How far a row that is not complete yet has been looked at, and what earlier rows have shown.
#[derive(Debug, Default, Clone)]
pub struct Scan {
    at: usize,
    quoted: bool,
    /// The line does not begin with an end of data marker.
    no_marker: bool,
    /// How the first line has ended: all others do, too (`CopyReadLineText` in `copyfromparse.c`).
    ends: Option<LineEnd>,
    /// The servers are 18 or later.
    newer: bool,
}

/// What is at the end of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    LineFeed,
    CarriageReturn,
    Both,
}

/// Whether a line that begins or goes on with `\.` ends there.
enum Marker {
    /// It does.
    Here,
    /// Something else stands behind it.
    Other,
    /// The line end is another one.
    Style,
    /// More data is needed.
    More,
}

impl Scan {
    /// For servers of a major version.
    pub fn of(version: u32) -> Scan {
        Scan {
            newer: version >= 18,
            ..Scan::default()
        }
    }

    /// As lines end.
    pub fn line_end(&self) -> &'static [u8] {
        match self.ends {
            None | Some(LineEnd::LineFeed) => b"\n",
            Some(LineEnd::CarriageReturn) => b"\r",
            Some(LineEnd::Both) => b"\r\n",
        }
    }

    fn corrupt(&self) -> RowError {
        match self.newer {
            true => RowError::MarkerNotAlone,
            false => RowError::MarkerCorrupt,
        }
    }

    /// The line ends at a line feed or carriage return, the first of `rest`. Returns the number of
    /// bytes that end it; `None`: more data is needed.
    fn end_at(&mut self, rest: &[u8], csv: bool) -> Result<Option<usize>, RowError> {
        use LineEnd::{Both, CarriageReturn, LineFeed};
        let (ends, size) = match (rest, self.ends) {
            ([b'\n', ..], None | Some(LineFeed)) => (LineFeed, 1),
            ([b'\n', ..], Some(CarriageReturn | Both)) => return Err(RowError::Newline { csv }),
            (_, Some(LineFeed)) => return Err(RowError::CarriageReturn { csv }),
            (_, Some(CarriageReturn)) => (CarriageReturn, 1),
            ([_], None | Some(Both)) => return Ok(None),
            ([_, b'\n', ..], None | Some(Both)) => (Both, 2),
            (_, None) => (CarriageReturn, 1),
            (_, Some(Both)) => return Err(RowError::CarriageReturn { csv }),
        };
        self.ends = Some(ends);
        Ok(Some(size))
    }

    /// What stands behind `\.`.
    fn marker(&self, behind: &[u8]) -> Marker {
        let behind = match (self.ends, behind) {
            (Some(LineEnd::Both), []) => return Marker::More,
            (Some(LineEnd::Both), [b'\n', ..]) => return Marker::Style,
            (Some(LineEnd::Both), [b'\r', rest @ ..]) => rest,
            (Some(LineEnd::Both), _) => return Marker::Other,
            _ => behind,
        };
        let wanted = match self.ends {
            None => None,
            Some(LineEnd::LineFeed | LineEnd::Both) => Some(b'\n'),
            Some(LineEnd::CarriageReturn) => Some(b'\r'),
        };
        match behind.first() {
            None => Marker::More,
            Some(end @ (b'\n' | b'\r')) if wanted.is_none_or(|wanted| wanted == *end) => {
                Marker::Here
            }
            Some(b'\n' | b'\r') => Marker::Style,
            Some(_) => Marker::Other,
        }
    }
}

/// A line end ends a row unless a backslash stands before it.
fn next_text_row(data: &[u8], scan: &mut Scan) -> Result<Piece, RowError> {
    loop {
        let rest = data.get(scan.at..).unwrap_or_default();
        let Some(found) = memchr::memchr3(b'\n', b'\r', b'\\', rest) else {
            scan.at = data.len();
            return Ok(Piece::More);
        };
        scan.at += found;
        let rest = &rest[found..];
        if rest[0] != b'\\' {
            let size = scan.end_at(rest, false)?;
            return Ok(size.map_or(Piece::More, |size| Piece::Row(scan.at + size)));
        }
        match rest.get(1) {
            None => return Ok(Piece::More),
            Some(b'.') => return marker_in_text(&rest[2..], scan),
            Some(_) => scan.at += 2,
        }
    }
}

/// `\.` ends the data, wherever in a line it stands.
fn marker_in_text(behind: &[u8], scan: &Scan) -> Result<Piece, RowError> {
    if scan.newer && scan.at > 0 {
        return Err(RowError::MarkerNotAlone);
    }
    match scan.marker(behind) {
        Marker::Here if scan.at == 0 => Ok(Piece::End),
        Marker::Here => Ok(Piece::Last(scan.at)),
        Marker::Other => Err(scan.corrupt()),
        Marker::Style => Err(RowError::MarkerStyle),
        Marker::More => Ok(Piece::More),
    }
}

/// A line end ends a row unless it is inside quotes.
fn next_csv_row(data: &[u8], quote: u8, escape: u8, scan: &mut Scan) -> Result<Piece, RowError> {
    if !scan.no_marker
        && let Some(piece) = marker_in_csv(data, scan)?
    {
        return Ok(piece);
    }
    while scan.at < data.len() {
        let rest = &data[scan.at..];
        if scan.quoted {
            let Some(found) = memchr::memchr2(quote, escape, rest) else {
                scan.at = data.len();
                break;
            };
            scan.at += found;
            if rest[found] == escape && escape != quote {
                let Some(next) = rest.get(found + 1) else {
                    break;
                };
                scan.at += if *next == quote || *next == escape {
                    2
                } else {
                    1
                };
                continue;
            }
            // A doubled quote closes and opens again: the same as going on.
            scan.quoted = false;
            scan.at += 1;
            continue;
        }
        let Some(found) = memchr::memchr3(b'\n', b'\r', quote, rest) else {
            scan.at = data.len();
            break;
        };
        scan.at += found;
        if rest[found] == quote {
            scan.quoted = true;
            scan.at += 1;
            continue;
        }
        let size = scan.end_at(&rest[found..], true)?;
        return Ok(size.map_or(Piece::More, |size| Piece::Row(scan.at + size)));
    }
    Ok(Piece::More)
}

/// Until 17, a line of `\.` ends the data. `None`: the line is another one.
fn marker_in_csv(data: &[u8], scan: &mut Scan) -> Result<Option<Piece>, RowError> {
    let marker = match data {
        _ if scan.newer => Marker::Other,
        [b'\\', b'.', behind @ ..] => scan.marker(behind),
        [] | [b'\\'] => Marker::More,
        _ => Marker::Other,
    };
    match marker {
        Marker::Here => Ok(Some(Piece::End)),
        Marker::More => Ok(Some(Piece::More)),
        // A carriage return before it is looked at where it stands.
        Marker::Style if scan.ends == Some(LineEnd::Both) => {
            scan.no_marker = true;
            Ok(None)
        }
        Marker::Style => Err(RowError::MarkerStyle),
        Marker::Other => {
            scan.no_marker = true;
            Ok(None)
        }
    }
}

/// A tuple says how long it is.
fn next_tuple(data: &[u8]) -> Result<Piece, RowError> {
    let Some(count) = data.first_chunk::<2>() else {
        return Ok(Piece::More);
    };
    let count = i16::from_be_bytes(*count);
    if count == -1 {
        return Ok(Piece::End);
    }
    let mut at = 2;
    for _ in 0..u16::try_from(count).map_err(|_| RowError::FieldSize)? {
        let Some(length) = data.get(at..at + 4) else {
            return Ok(Piece::More);
        };
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        at += 4;
        if length < -1 {
            return Err(RowError::FieldSize);
        }
        at += usize::try_from(length).unwrap_or(0);
        if at > data.len() {
            return Ok(Piece::More);
        }
    }
    Ok(Piece::Row(at))
}

/// The size of FORMAT binary's header, once it has arrived.
pub fn binary_header(data: &[u8]) -> Result<Option<usize>, RowError> {
    let known = data.len().min(11);
    if data[..known] != BINARY_HEADER[..known] {
        return Err(RowError::Signature);
    }
    let Some(rest) = data.get(11..19) else {
        return Ok(None);
    };
    let flags = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
    let extension = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
    if flags & 0xffff_0000 != 0 || extension > 1 << 20 {
        return Err(RowError::Flags);
    }
    let size = 19 + extension as usize;
    Ok((data.len() >= size).then_some(size))
}

/// One field of a row: `None` is NULL. In binary the bytes are the type's binary form.
pub fn field<'a>(
    format: &CopyFormat,
    row: &'a [u8],
    index: usize,
) -> Result<Option<Cow<'a, [u8]>>, RowError> {
    match format {
        CopyFormat::Text {
            delimiter, null, ..
        } => {
            let raw = text_field(without_line_end(format, row), *delimiter, index)?;
            Ok((raw != null.as_bytes()).then(|| unescape(raw)))
        }
        CopyFormat::Csv {
            delimiter,
            null,
            quote,
            escape,
            ..
        } => {
            let (value, was_quoted) = csv_field(
                without_line_end(format, row),
                *delimiter,
                *quote,
                *escape,
                index,
            )?;
            Ok((was_quoted || *value != *null.as_bytes()).then_some(value))
        }
        CopyFormat::Binary => tuple_field(row, index),
    }
}

/// A row without its line feed, carriage return, or both.
fn without_line_end<'r>(format: &CopyFormat, row: &'r [u8]) -> &'r [u8] {
    let line = row.strip_suffix(b"\n").unwrap_or(row);
    let Some(before) = line.strip_suffix(b"\r") else {
        return line;
    };
    let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\');
    match format {
        // A backslash makes it a part of the value.
        CopyFormat::Text { .. } if backslashes.count() % 2 == 1 => line,
        _ => before,
    }
}

fn text_field(line: &[u8], delimiter: u8, index: usize) -> Result<&[u8], RowError> {
    let mut start = 0;
    let mut seen = 0;
    let mut at = 0;
    loop {
        let found = memchr::memchr2(delimiter, b'\\', &line[at.min(line.len())..]);
        let end = match found {
            Some(found) if line[at + found] == b'\\' => {
                at += found + 2;
                continue;
            }
            Some(found) => at + found,
            None => line.len(),
        };
        if seen == index {
            return Ok(&line[start..end]);
        }
        if found.is_none() {
            return Err(RowError::MissingColumn(index + 1));
        }
        seen += 1;
        start = end + 1;
        at = start;
    }
}

/// Backslash sequences of FORMAT text.
fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    let mut value = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let Some((&escaped, tail)) = rest.split_first().filter(|_| byte == b'\\') else {
            value.push(byte);
            continue;
        };
        rest = tail;
        match escaped {
            b'b' => value.push(8),
            b'f' => value.push(12),
            b'n' => value.push(b'\n'),
            b'r' => value.push(b'\r'),
            b't' => value.push(b'\t'),
            b'v' => value.push(11),
            b'0'..=b'7' => {
                let more = rest
                    .iter()
                    .take(2)
                    .take_while(|b| matches!(b, b'0'..=b'7'))
                    .count();
                let digits = std::iter::once(&escaped).chain(&rest[..more]);
                let code = digits.fold(0u32, |code, digit| code * 8 + u32::from(digit - b'0'));
                value.push((code & 0xff) as u8);
                rest = &rest[more..];
            }
            b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
                let more = rest
                    .iter()
                    .take(2)
                    .take_while(|b| b.is_ascii_hexdigit())
                    .count();
                let digits = std::str::from_utf8(&rest[..more]).unwrap_or("0");
                value.push(u8::from_str_radix(digits, 16).unwrap_or(0));
                rest = &rest[more..];
            }
            other => value.push(other),
        }
    }
    Cow::Owned(value)
}

/// A field without its quotes, and whether it had any.
fn csv_field(
    line: &[u8],
    delimiter: u8,
    quote: u8,
    escape: u8,
    index: usize,
) -> Result<(Cow<'_, [u8]>, bool), RowError> {
    let mut at = 0;
    for _ in 0..index {
        at = csv_field_end(line, at, delimiter, quote, escape) + 1;
        if at > line.len() {
            return Err(RowError::MissingColumn(index + 1));
        }
    }
    let raw = &line[at..csv_field_end(line, at, delimiter, quote, escape)];
    if !raw.contains(&quote) {
        return Ok((Cow::Borrowed(raw), false));
    }
    let mut value = Vec::with_capacity(raw.len());
    let mut quoted = false;
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match tail.first() {
            Some(&next) if quoted && byte == escape && (next == quote || next == escape) => {
                value.push(next);
                rest = &tail[1..];
            }
            _ if byte == quote => quoted = !quoted,
            _ => value.push(byte),
        }
    }
    Ok((Cow::Owned(value), true))
}

fn csv_field_end(line: &[u8], start: usize, delimiter: u8, quote: u8, escape: u8) -> usize {
    let mut at = start;
    let mut quoted = false;
    while at < line.len() {
        let byte = line[at];
        if quoted && byte == escape && escape != quote && at + 1 < line.len() {
            let next = line[at + 1];
            at += if next == quote || next == escape {
                2
            } else {
                1
            };
            continue;
        }
        if byte == quote {
            quoted = !quoted;
        } else if byte == delimiter && !quoted {
            return at;
        }
        at += 1;
    }
    line.len()
}

fn tuple_field(tuple: &[u8], index: usize) -> Result<Option<Cow<'_, [u8]>>, RowError> {
    let mut at = 2;
    let count = tuple
        .first_chunk::<2>()
        .map_or(0, |count| usize::from(u16::from_be_bytes(*count)));
    if index >= count {
        return Err(RowError::MissingColumn(index + 1));
    }
    for position in 0..=index {
        let length = tuple.get(at..at + 4).ok_or(RowError::Incomplete)?;
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        at += 4;
        let size = usize::try_from(length).unwrap_or(0);
        if position == index {
            if length < 0 {
                return Ok(None);
            }
            return tuple
                .get(at..at + size)
                .map(|v| Some(Cow::Borrowed(v)))
                .ok_or(RowError::Incomplete);
        }
        at += size;
    }
    Err(RowError::Incomplete)
}

/// Fields that stand behind those of a row.
#[derive(Debug, Default, Clone)]
pub struct Tail {
    count: u16,
    bytes: Vec<u8>,
}

impl Tail {
    /// Appends a field.
    pub fn push(&mut self, format: &CopyFormat, value: Option<&[u8]>) {
        self.count += 1;
        match format {
            CopyFormat::Text {
                delimiter, null, ..
            } => {
                self.bytes.push(*delimiter);
                match value {
                    None => self.bytes.extend_from_slice(null.as_bytes()),
                    Some(value) => put_text_field(&mut self.bytes, value, *delimiter, null),
                }
            }
            CopyFormat::Csv {
                delimiter,
                null,
                quote,
                escape,
                ..
            } => {
                self.bytes.push(*delimiter);
                match value {
                    None => self.bytes.extend_from_slice(null.as_bytes()),
                    Some(value) => put_csv_field(&mut self.bytes, value, *quote, *escape),
                }
            }
            CopyFormat::Binary => {
                let length = value.map_or(-1, |value| value.len() as i32);
                self.bytes.extend_from_slice(&length.to_be_bytes());
                self.bytes.extend_from_slice(value.unwrap_or_default());
            }
        }
    }

    /// Appends all fields of another.
    pub fn append(&mut self, other: &Tail) {
        self.count += other.count;
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// The fields as they stand behind a row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A field of FORMAT text that is not the string that stands for NULL.
fn put_text_field(output: &mut Vec<u8>, value: &[u8], delimiter: u8, null: &str) {
    let mut rest = value;
    if let (true, Some((first, behind))) = (value == null.as_bytes(), value.split_first()) {
        output.extend_from_slice(format!("\\x{first:02x}").as_bytes());
        rest = behind;
    }
    for byte in rest {
        match *byte {
            b'\n' => output.extend_from_slice(b"\\n"),
            b'\r' => output.extend_from_slice(b"\\r"),
            b'\\' => output.extend_from_slice(b"\\\\"),
            other if other == delimiter => output.extend_from_slice(&[b'\\', other]),
            other => output.push(other),
        }
    }
}

/// In quotes no value stands for NULL.
fn put_csv_field(output: &mut Vec<u8>, value: &[u8], quote: u8, escape: u8) {
    output.push(quote);
    for byte in value {
        if *byte == quote || *byte == escape {
            output.push(escape);
        }
        output.push(*byte);
    }
    output.push(quote);
}

/// What stands before and behind a row's own fields when others follow them: a count of all, the
/// fields, the end of the line.
pub fn around<'r>(
    format: &CopyFormat,
    row: &'r [u8],
    tail: &Tail,
) -> (Option<[u8; 2]>, &'r [u8], &'r [u8]) {
    if tail.count == 0 {
        return (None, row, &[]);
    }
    if let (CopyFormat::Binary, Some((count, fields))) = (format, row.split_first_chunk::<2>()) {
        let count = u16::from_be_bytes(*count).saturating_add(tail.count);
        return (Some(count.to_be_bytes()), fields, &[]);
    }
    let line = without_line_end(format, row);
    (None, line, &row[line.len()..])
}

/// Appends a row with fields behind its own.
pub fn put_row(output: &mut BytesMut, format: &CopyFormat, row: &[u8], tail: &Tail) {
    let (count, fields, end) = around(format, row, tail);
    output.extend_from_slice(count.as_ref().map_or(&[], |count| count.as_slice()));
    output.extend_from_slice(fields);
    output.extend_from_slice(&tail.bytes);
    output.extend_from_slice(end);
}

/// Appends a row in FORMAT text.
pub fn put_text_row<'a>(output: &mut BytesMut, values: impl Iterator<Item = Option<&'a [u8]>>) {
    for (position, value) in values.enumerate() {
        if position > 0 {
            output.put_u8(b'\t');
        }
        match value {
            None => output.put_slice(b"\\N"),
            Some(value) => {
                for byte in value {
                    match byte {
                        b'\\' => output.put_slice(b"\\\\"),
                        b'\n' => output.put_slice(b"\\n"),
                        b'\r' => output.put_slice(b"\\r"),
                        b'\t' => output.put_slice(b"\\t"),
                        other => output.put_u8(*other),
                    }
                }
            }
        }
    }
    output.put_u8(b'\n');
}

#[cfg(test)]
mod tests;
