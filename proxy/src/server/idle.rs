//! What a connection hears while nobody uses it.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};

use super::Server;
use crate::{
    frame::{self, FRAME_BYTES_MAX, HEADER_BYTES},
    message,
    wire::Stream,
};

/// More than a server says to a connection that asks for nothing.
const HEARD_BYTES: usize = 1024;

impl Server {
    /// Whether the server has ended the connection, or says something, as the kernel knows it: the
    /// runtime may not have heard of it yet.
    pub fn was_closed(&self) -> bool {
        let socket = match &self.wire.stream {
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Unix(stream) => SockRef::from(stream),
            Stream::TlsClient(stream) => SockRef::from(stream.get_ref().0),
            Stream::TlsServer(_) | Stream::Closed => return true,
        };
        match socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// It was closed by the server, or is being closed: an error is a farewell, and so is a notice that
    /// says so, which servers send when another of their processes crashed.
    pub fn went_stale(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); HEARD_BYTES];
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.wire.stream).poll_read(&mut context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.wire.input.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => return true,
            }
        }
        // Other notices and changed parameters are kept for whoever reads next.
        let mut rest = &self.wire.input[..];
        while !rest.is_empty() {
            let Ok(Some((tag, size))) = frame::peek(rest, FRAME_BYTES_MAX) else {
                return true;
            };
            let Some(body) = rest.get(HEADER_BYTES..size) else {
                return true;
            };
            let shutdown = message::error_field(body, b'C').is_some_and(|it| it.starts_with("57P"));
            if !matches!(tag, b'S' | b'N') || tag == b'N' && shutdown {
                return true;
            }
            rest = &rest[size..];
        }
        false
    }

    /// Waits for bytes: how many have come, 0 at the end. Dropping it loses nothing.
    pub async fn listen(&mut self) -> io::Result<usize> {
        self.wire.fill().await
    }

    /// Breaks the connection, as a failure of the network does.
    #[cfg(feature = "failpoints")]
    pub fn cut(&mut self) {
        self.wire.stream.cut();
    }
}
