//! Rows in COPY data.

use automator67_proxy::fuzzing::{
    CopyFormat,
    copy_rows::{self, Piece, RowError, Scan},
};
use bytes::BytesMut;

/// Fields of a row that are looked at.
const FIELDS_MAX: usize = 64;

/// All layouts, all chunkings.
pub fn check(data: &[u8]) {
    let csv = |quote, escape| CopyFormat::Csv {
        delimiter: b',',
        null: String::new(),
        header: false,
        quote,
        escape,
    };
    for format in [
        text(),
        csv(b'"', b'"'),
        csv(b'\'', b'\\'),
        CopyFormat::Binary,
    ] {
        check_format(&format, data);
    }
    check_header(data);
}

fn text() -> CopyFormat {
    CopyFormat::Text {
        delimiter: b'\t',
        null: "\\N".to_owned(),
        header: false,
    }
}

/// Rows and how the data ended.
#[derive(Debug, Default, PartialEq)]
struct Split {
    rows: Vec<Vec<u8>>,
    rest: Vec<u8>,
    ended: bool,
    error: Option<RowError>,
}

fn split(format: &CopyFormat, data: &[u8], sizes: &[usize]) -> Split {
    let mut split = Split::default();
    let mut buffer = BytesMut::new();
    let mut scan = Scan::default();
    let mut fed = 0;
    for size in sizes {
        buffer.extend_from_slice(&data[fed..fed + size]);
        fed += size;
        while !split.ended && split.error.is_none() {
            match copy_rows::next_row(format, &buffer, &mut scan) {
                Ok(Piece::Row(size)) => {
                    assert!(size > 0, "a row of nothing");
                    split.rows.push(buffer.split_to(size).to_vec());
                }
                Ok(Piece::Last(size)) => {
                    split.rows.push(buffer.split_to(size).to_vec());
                    split.ended = true;
                }
                Ok(Piece::End) => split.ended = true,
                Ok(Piece::More) => break,
                Err(error) => split.error = Some(error),
            }
        }
    }
    split.rest = buffer.to_vec();
    split
}

fn check_format(format: &CopyFormat, data: &[u8]) {
    let mut first: Option<Split> = None;
    for sizes in crate::chunkings(data) {
        let split = split(format, data, &sizes);
        let joined: Vec<u8> = split
            .rows
            .iter()
            .flatten()
            .chain(&split.rest)
            .copied()
            .collect();
        assert_eq!(joined, data, "the rows are not the data");
        match &first {
            None => first = Some(split),
            Some(first) => assert_eq!(*first, split, "rows depend on the chunks"),
        }
    }
    let first = first.unwrap_or_default();
    for row in first.rows.iter().chain([&first.rest]) {
        check_row(format, row);
    }
}

/// Fields, written as FORMAT text, are read back the same.
fn check_row(format: &CopyFormat, row: &[u8]) {
    let mut values = Vec::new();
    for index in 0..FIELDS_MAX {
        match copy_rows::field(format, row, index) {
            Ok(value) => values.push(value.map(|value| value.into_owned())),
            Err(_) => break,
        }
    }
    // Far behind the end there is nothing either.
    let _ = copy_rows::field(format, row, usize::from(u16::MAX));
    if values.is_empty() {
        return;
    }
    let mut written = BytesMut::new();
    copy_rows::put_text_row(&mut written, values.iter().map(Option::as_deref));
    let piece = copy_rows::next_row(&text(), &written, &mut Scan::default());
    assert_eq!(
        piece,
        Ok(Piece::Row(written.len())),
        "not one row: {written:?}"
    );
    for (index, value) in values.iter().enumerate() {
        let again = copy_rows::field(&text(), &written, index).expect("a field of ours is there");
        assert_eq!(
            again.as_deref(),
            value.as_deref(),
            "field {index} of {written:?}"
        );
    }
    assert_eq!(
        copy_rows::field(&text(), &written, values.len()),
        Err(RowError::MissingColumn(values.len() + 1))
    );
}

/// A header that is there stays the same when more follows; one that is wrong stays wrong.
fn check_header(data: &[u8]) {
    let whole = copy_rows::binary_header(data);
    for size in 0..data.len().min(64) {
        match copy_rows::binary_header(&data[..size]) {
            Ok(None) => {}
            Ok(Some(header)) => {
                assert!(header <= size, "a header of more than there is");
                assert_eq!(whole, Ok(Some(header)));
            }
            Err(error) => assert_eq!(whole, Err(error)),
        }
    }
}
