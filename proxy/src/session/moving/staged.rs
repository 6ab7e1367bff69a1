//! Rows that wait to be copied to shards: in memory, then in a file.

use std::{fs::File, io::Write};

use bytes::{BufMut, Bytes, BytesMut};

use super::super::scatter::malformed;
use crate::{
    copy_rows,
    error::{Failure, Outcome, Report},
    frame::Frame,
    message,
};

/// Staged rows go to a file in pieces of this size.
pub const SPILL_BYTES: usize = 1 << 20;

/// Rows that wait to be copied.
#[derive(Default)]
pub struct Staged {
    pub memory: Vec<Bytes>,
    pub tail: BytesMut,
    pub file: Option<File>,
    pub spilled: u64,
}

impl Staged {
    /// What is held in memory.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// The row at hand is whole.
    pub fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.memory.push(self.tail.split().freeze());
        }
    }

    /// Moves what is in memory to a file without a name. Writes go to the kernel's cache, so
    /// that other sessions of the thread wait no longer than for a copy in memory.
    pub fn spill(&mut self) -> std::io::Result<()> {
        self.close_tail();
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(unnamed_file()?),
        };
        for piece in self.memory.drain(..) {
            file.write_all(&piece)?;
            self.spilled += piece.len() as u64;
        }
        Ok(())
    }
}

fn unnamed_file() -> std::io::Result<File> {
    let name = format!(
        "automator67-{}-{:016x}",
        std::process::id(),
        rand::random::<u64>()
    );
    let path = std::env::temp_dir().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Captured rows as COPY wants them.
pub fn stage_rows(staged: &mut Staged, rows: &mut BytesMut, binary: bool) -> Outcome {
    let mut rest = &rows[..];
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (body, behind) = behind.split_at_checked(length).ok_or_else(malformed)?;
        if binary {
            staged.tail.put_slice(body);
        } else {
            let values = message::data_row(body).ok_or_else(malformed)?;
            copy_rows::put_text_row(&mut staged.tail, values.into_iter());
        }
        rest = behind;
    }
    rows.clear();
    staged.close_tail();
    Ok(())
}

/// A temporary file cannot be written.
pub fn unwritten(error: std::io::Error) -> Failure {
    Report::error(
        "58030",
        format!("could not write a temporary file: {error}"),
    )
    .into()
}

/// One row as COPY wants it.
pub fn put_row(staged: &mut BytesMut, row: &Frame, binary: bool) {
    if binary {
        staged.put_slice(row.body());
    } else {
        let values = message::data_row(row.body()).unwrap_or_default();
        copy_rows::put_text_row(staged, values.into_iter());
    }
}
