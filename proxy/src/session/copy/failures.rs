//! Which of the client's rows a failure of a COPY over several shards is about, and which of several
//! failures one server would have told: that of the first row.

use std::collections::VecDeque;

use crate::{
    error::{Failure, sqlstate},
    frame::HEADER_BYTES,
    message,
};

/// Row numbers kept per shard of a COPY: more than a shard is ever behind with.
const ROW_NUMBERS_MAX: usize = 1 << 16;
/// Rows that a server keeps before it writes them and sees duplicates (`MAX_BUFFERED_TUPLES` in
/// `src/backend/commands/copyfrom.c`): whatever is wrong with one of them otherwise comes first.
const BUFFERED_ROWS: u64 = 1000;
/// What CopyFail tells a shard.
pub(super) const ELSEWHERE: &str = "another row or shard failed";

/// The numbers, in the client's data, of the last rows that a shard got.
#[derive(Default)]
pub(super) struct RowNumbers {
    numbers: VecDeque<u64>,
    forgotten: u64,
}

impl RowNumbers {
    pub(super) fn push(&mut self, number: u64) {
        if self.numbers.len() == ROW_NUMBERS_MAX {
            self.numbers.pop_front();
            self.forgotten += 1;
        }
        self.numbers.push_back(number);
    }

    /// A shard's error says which line of its own it is about: the client counts all lines.
    /// `header`: lines before the first row.
    fn in_client_rows(&self, failure: Failure, header: u64) -> Failure {
        let Failure::Shard(frame) = failure else {
            return failure;
        };
        let line = |line: u64| {
            let row = line.checked_sub(header + self.forgotten + 1)?;
            let number = self.numbers.get(usize::try_from(row).ok()?)?;
            Some(number + header)
        };
        Failure::Shard(message::renumber_line(frame, line))
    }
}

/// The failure of the first row that failed anywhere.
pub(super) struct First {
    header: u64,
    found: Option<(u64, Failure)>,
}

impl First {
    /// None yet, in data with so many lines before the first row.
    pub(super) fn new(header: u64) -> First {
        First {
            header,
            found: None,
        }
    }

    /// One that was found while the rows were split: `row` was the last that was looked at.
    pub(super) fn note_own(&mut self, row: u64, failure: Failure) {
        self.note(row + self.header, failure);
    }

    /// One that a shard told.
    pub(super) fn note_shard(&mut self, rows: &RowNumbers, failure: Failure) {
        if let Failure::Shard(frame) = &failure
            && is_ours(frame)
        {
            return;
        }
        let failure = rows.in_client_rows(failure, self.header);
        self.note(line_of(&failure), failure);
    }

    fn note(&mut self, line: u64, failure: Failure) {
        if self.found.as_ref().is_none_or(|(first, _)| line < *first) {
            self.found = Some((line, failure));
        }
    }

    /// The failure, if there was one.
    pub(super) fn failure(self) -> Option<Failure> {
        self.found.map(|(_, failure)| failure)
    }
}

/// A shard's answer to our CopyFail: it has found nothing itself.
fn is_ours(frame: &[u8]) -> bool {
    let body = frame.get(HEADER_BYTES..).unwrap_or_default();
    message::error_field(body, b'C') == Some(sqlstate::QUERY_CANCELED)
        && message::error_field(body, b'M').is_some_and(|text| text.ends_with(ELSEWHERE))
}

/// The line at which a server would tell the failure; the last, if it is about no line.
fn line_of(failure: &Failure) -> u64 {
    let Failure::Shard(frame) = failure else {
        return u64::MAX;
    };
    let Some(line) = message::copy_line(frame) else {
        return u64::MAX;
    };
    let body = frame.get(HEADER_BYTES..).unwrap_or_default();
    match message::error_field(body, b'C') {
        Some("23505" | "23P01") => line.div_ceil(BUFFERED_ROWS) * BUFFERED_ROWS,
        _ => line,
    }
}

#[cfg(test)]
mod tests;
