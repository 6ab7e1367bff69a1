//! Splits a byte stream into frames of the Postgres protocol (manual, "Message Flow" and
//! "Message Formats"): one type byte, an int32 length that counts itself, the body.
//!
//! The length is checked before anything else is looked at, and exactly one frame is cut out, so
//! no decoder ever sees bytes of its neighbour.

use bytes::{Buf, BytesMut};
use thiserror::Error;

/// Largest startup packet or authentication message: the server's own limit for a startup packet.
pub const LOGIN_FRAME_BYTES_MAX: usize = 10_000;
/// Largest frame after login: what the server itself can allocate.
pub const FRAME_BYTES_MAX: usize = 1 << 30;
/// Type byte and length.
pub const HEADER_BYTES: usize = 5;

/// Why bytes are not a frame. The stream cannot be trusted after any of these.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The length field is smaller than itself or negative.
    #[error("invalid message length {0}")]
    Length(i32),
    /// The frame is larger than the limit in force.
    #[error("message of {length} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// What the length field says.
        length: usize,
        /// What is allowed now.
        limit: usize,
    },
}

/// One whole frame, cut out of the stream.
#[derive(Debug)]
pub struct Frame {
    /// The message type.
    pub tag: u8,
    /// Type byte, length and body, as received.
    pub bytes: BytesMut,
}

impl Frame {
    /// What follows the length.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

/// Reads a frame's header without taking anything. `Ok(None)`: fewer than five bytes are there.
/// Returns the type byte and the whole frame's size, header included.
pub fn peek(buffer: &[u8], limit: usize) -> Result<Option<(u8, usize)>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let [tag, length @ ..] = *header;
    Ok(Some((tag, 1 + checked_length(length, limit)?)))
}

/// Cuts one whole frame off the front. `Ok(None)`: it is not complete yet.
pub fn take(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    let Some((tag, size)) = peek(buffer, limit)? else {
        return Ok(None);
    };
    if buffer.len() < size {
        return Ok(None);
    }
    // Mostly one frame is all there is: then nothing has to be shared.
    let bytes = if buffer.len() == size {
        std::mem::take(buffer)
    } else {
        buffer.split_to(size)
    };
    Ok(Some(Frame { tag, bytes }))
}

/// Cuts one startup packet (no type byte) off the front and returns its body.
pub fn take_startup(buffer: &mut BytesMut) -> Result<Option<BytesMut>, FrameError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let size = checked_length(*header, LOGIN_FRAME_BYTES_MAX)?;
    if buffer.len() < size {
        return Ok(None);
    }
    let mut packet = buffer.split_to(size);
    packet.advance(4);
    Ok(Some(packet))
}

fn checked_length(length: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let length = i32::from_be_bytes(length);
    let size = usize::try_from(length).map_err(|_| FrameError::Length(length))?;
    if size < 4 {
        return Err(FrameError::Length(length));
    }
    if size > limit {
        return Err(FrameError::TooLarge {
            length: size,
            limit,
        });
    }
    Ok(size)
}

#[cfg(test)]
mod tests;
