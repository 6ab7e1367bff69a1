use bytes::{BufMut, BytesMut};

use super::*;
use crate::error::Report;

fn told(sqlstate: &str, message: &str, line: u64) -> Failure {
    let context = format!("COPY t, line {line}, column a: \"x\"");
    let mut body = BytesMut::new();
    for (code, text) in [(b'C', sqlstate), (b'M', message), (b'W', &context)] {
        body.put_u8(code);
        body.put_slice(text.as_bytes());
        body.put_u8(0);
    }
    body.put_u8(0);
    let mut frame = BytesMut::from(&b"E"[..]);
    frame.put_i32(i32::try_from(body.len()).expect("short") + 4);
    frame.put_slice(&body);
    Failure::Shard(frame)
}

fn rows(numbers: &[u64]) -> RowNumbers {
    let mut rows = RowNumbers::default();
    for number in numbers {
        rows.push(*number);
    }
    rows
}

fn message_of(first: First) -> String {
    let Some(Failure::Shard(frame)) = first.failure() else {
        panic!("no failure of a shard");
    };
    let body = &frame[HEADER_BYTES..];
    let field = |code| message::error_field(body, code).unwrap_or_default();
    format!("{}: {}", field(b'M'), field(b'W'))
}

#[test]
fn the_first_row_counts_and_not_the_first_shard() {
    let mut first = First::new(1);
    // Its second row is line 3 of what the shard got; the client's row 7, line 8.
    first.note_shard(&rows(&[3, 7]), told("22P02", "later", 3));
    first.note_shard(&rows(&[1, 4, 6]), told("22P02", "first", 3));
    first.note_own(9, Report::error("22P02", "own").into());
    assert_eq!(message_of(first), "first: COPY t, line 5, column a: \"x\"");
}

#[test]
fn duplicates_are_seen_when_rows_are_written() {
    let duplicate = || told("23505", "duplicate", 1);
    let mut first = First::new(0);
    first.note_shard(&rows(&[1, 2]), duplicate());
    first.note_shard(&rows(&[900]), told("22P02", "no number", 1));
    assert_eq!(
        message_of(first),
        "no number: COPY t, line 900, column a: \"x\""
    );
    let mut first = First::new(0);
    first.note_shard(&rows(&[1, 2]), duplicate());
    first.note_shard(&rows(&[1001]), told("22P02", "no number", 1));
    assert_eq!(
        message_of(first),
        "duplicate: COPY t, line 1, column a: \"x\""
    );
}

#[test]
fn what_we_ended_ourselves_is_no_failure() {
    let mut first = First::new(0);
    let ended = format!("COPY from stdin failed: {ELSEWHERE}");
    first.note_shard(&rows(&[1]), told(sqlstate::QUERY_CANCELED, &ended, 1));
    assert!(first.failure().is_none());
}
