//! One very large message, and one very large value in many small ones.

use std::time::Duration;

use anyhow::{Result, ensure};
use automator67_tests::wire::Connection;

use super::{Answer, Book, Ground, ask, bystander::Felt, bystander::beside, mebibytes};

const TEXT_BYTES: usize = 900 << 20;
const LINE_BYTES: usize = 500 << 20;
/// What a message and a line of COPY were to be allowed.
const ALLOWED_BYTES: u64 = 64 << 20;
const BYSTANDER_MAX: Duration = Duration::from_millis(100);
/// As much as drivers send at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// An INSERT of one string.
pub fn text(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let measured = measured(ground, |connection| {
        let (head, tail) = (b"insert into notes values (2, '", b"')\0");
        let length = 4 + head.len() + TEXT_BYTES + tail.len();
        connection.send(b"Q")?;
        connection.send(&u32::try_from(length)?.to_be_bytes())?;
        connection.send(head)?;
        let chunk = [b'x'; CHUNK_BYTES];
        for _ in 0..TEXT_BYTES / CHUNK_BYTES {
            connection.send(&chunk)?;
        }
        connection.send(tail)
    })?;
    let refused = measured.answer.is_program_limit();
    book.row(
        "900 MB of text: our peak memory",
        "3.1 GB",
        measured.describe(),
        "refused at 64 MiB (54000)",
        refused && measured.peak <= measured.before + ALLOWED_BYTES,
    );
    measured.bystander("900 MB of text", "36 s", book);
    Ok(())
}

/// A line of COPY, in many messages.
pub fn copy_line(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let measured = measured(ground, |connection| {
        let text = b"copy notes from stdin\0";
        connection.send(b"Q")?;
        connection.send(&u32::try_from(4 + text.len())?.to_be_bytes())?;
        connection.send(text)?;
        let begun = connection.receive()?;
        ensure!(begun.tag == b'G', "COPY did not begin: {begun:?}");
        copy_data(connection, b"1\t")?;
        let chunk = [b'x'; CHUNK_BYTES];
        for _ in 0..LINE_BYTES / CHUNK_BYTES {
            copy_data(connection, &chunk)?;
        }
        copy_data(connection, b"\n")?;
        connection.send(b"c\0\0\0\x04")
    })?;
    let peak_max = measured.before + 3 * ALLOWED_BYTES;
    book.row(
        "500 MB in one line of COPY: our peak memory",
        "1.5 GB",
        measured.describe(),
        "≤ 3 x the line's allowed size",
        measured.peak <= peak_max,
    );
    measured.bystander("500 MB in one line of COPY", "3.6 s", book);
    Ok(())
}

fn copy_data(connection: &mut Connection, data: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(5 + data.len());
    message.push(b'd');
    message.extend_from_slice(&u32::try_from(4 + data.len())?.to_be_bytes());
    message.extend_from_slice(data);
    connection.send(&message)
}

struct Measured {
    answer: Answer,
    felt: Felt,
    /// Resident bytes of the proxy before the load, and the most beside it.
    before: u64,
    peak: u64,
}

fn measured(
    ground: &Ground<'_>,
    send: impl FnOnce(&mut Connection) -> Result<()>,
) -> Result<Measured> {
    let before = ground.proxy.resident_bytes()?;
    ground.proxy.forget_peak()?;
    let (answer, felt) = beside(ground, || ask(&ground.proxy(), send))?;
    let peak = ground.proxy.peak_resident_bytes()?;
    Ok(Measured {
        answer,
        felt,
        before,
        peak,
    })
}

impl Measured {
    fn describe(&self) -> String {
        format!(
            "{}, {} before; {}",
            mebibytes(self.peak),
            mebibytes(self.before),
            self.answer.describe()
        )
    }

    fn bystander(&self, load: &str, then: &str, book: &mut Book) {
        book.row(
            &format!("{load}: bystander's longest wait"),
            then,
            self.felt.describe(self.felt.max),
            "≤ 100 ms",
            self.felt.is_within(self.felt.max, BYSTANDER_MAX),
        );
    }
}
