//! A byte stream with its two buffers. Filling and flushing may be dropped at any await: bytes
//! are in a buffer or in the kernel, never in between.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Bytes waiting in an output buffer above which the producer stops and flushes.
pub const OUTPUT_BYTES_HIGH: usize = 64 * 1024;
/// The most one read takes.
const READ_BYTES: usize = 32 * 1024;
/// A buffer that grew beyond this is given back when it is empty.
const KEEP_BYTES_MAX: usize = 64 * 1024;
/// How long a peer may take to receive our goodbye.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for connections that wait for their client.
const KEEP_IDLE_BYTES_MAX: usize = 512;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Plain TCP, a Unix socket, or TLS over either side's TCP.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS, we are the server.
    TlsServer(Box<tokio_rustls::server::TlsStream<Prefixed>>),
    /// TLS, we are the client.
    TlsClient(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// Nothing: the stream was moved out.
    Closed,
}

#[cfg(feature = "failpoints")]
impl Stream {
    /// Ends the connection as a broken network would.
    pub fn cut(&self) {
        use socket2::SockRef;
        let socket = match self {
            Stream::Tcp(stream) => SockRef::from(stream),
            Stream::Unix(stream) => SockRef::from(stream),
            Stream::TlsClient(stream) => SockRef::from(stream.get_ref().0),
            Stream::TlsServer(_) | Stream::Closed => return,
        };
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}

/// A TCP stream of which some bytes were already read.
pub struct Prefixed {
    /// The bytes.
    pub prefix: BytesMut,
    /// The rest.
    pub stream: TcpStream,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A stream and its buffers.
pub struct Wire {
    /// The stream.
    pub stream: Stream,
    /// Received and not yet taken.
    pub input: BytesMut,
    /// To be sent by the next flush.
    pub output: BytesMut,
}

impl Wire {
    /// Wraps a stream with empty buffers.
    pub fn new(stream: Stream) -> Self {
        Wire {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
        }
    }

    /// Waits for more bytes and appends them to `input`. 0 is the end of the stream.
    ///
    /// Bytes land in a buffer of the thread first: a waiting connection holds no memory for them.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.input.capacity() > KEEP_BYTES_MAX {
            self.input = BytesMut::new();
        }
        READ_BUFFER.with_borrow_mut(|space| {
            let mut buffer = ReadBuf::new(space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            self.input.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// The same, while `output` goes out as fast as the peer takes it: a peer may not take any before
    /// its own answers are read.
    pub async fn fill_and_send(&mut self) -> io::Result<usize> {
        poll_fn(|context| {
            self.poll_send(context)?;
            self.poll_fill(context)
        })
        .await
    }

    /// Sends what can be sent now.
    fn poll_send(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let waiting = !self.output.is_empty();
        while !self.output.is_empty() {
            let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write(context, &self.output)
            else {
                return Ok(());
            };
            match sent? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.output.advance(count),
            }
        }
        if waiting {
            self.output = BytesMut::new();
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    /// Throws the next `count` bytes away as they arrive. False: the stream has ended before.
    pub async fn skip(&mut self, count: usize) -> io::Result<bool> {
        let there = self.input.len().min(count);
        self.input.advance(there);
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        let mut left = count - there;
        while left > 0 {
            let stream = &mut self.stream;
            let read = poll_fn(|context| {
                READ_BUFFER.with_borrow_mut(|space| {
                    let size = left.min(space.len());
                    let mut buffer = ReadBuf::new(&mut space[..size]);
                    ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
                    Poll::Ready(io::Result::Ok(buffer.filled().len()))
                })
            });
            match read.await? {
                0 => return Ok(false),
                read => left -= read,
            }
        }
        Ok(true)
    }

    /// Sends all of `output`.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let count = self.stream.write(&self.output).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            if count == self.output.len() {
                // Unlike `advance`, this lets the next answer begin at the buffer's start.
                self.output.clear();
            } else {
                self.output.advance(count);
            }
        }
        if matches!(self.stream, Stream::TlsServer(_) | Stream::TlsClient(_)) {
            self.stream.flush().await?;
        }
        if self.output.capacity() > KEEP_BYTES_MAX {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Sends the first part of `output`, as much as the peer takes now.
    pub async fn start_flush(&mut self) -> io::Result<()> {
        match self.stream.write(&self.output).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            count => {
                self.output.advance(count);
                Ok(())
            }
        }
    }

    /// Sends all of `output` if it has grown above [`OUTPUT_BYTES_HIGH`].
    pub async fn flush_if_high(&mut self) -> io::Result<()> {
        if self.output.len() > OUTPUT_BYTES_HIGH {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Says goodbye where the stream has a word for it: TLS peers take an end without one for an
    /// attack.
    pub async fn close(&mut self) {
        if matches!(self.stream, Stream::TlsServer(_)) {
            // Whoever is gone does not hear it.
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.stream.shutdown()).await;
        }
    }

    /// Gives unused memory back; for connections that go idle.
    pub fn shrink(&mut self) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() && buffer.capacity() > KEEP_IDLE_BYTES_MAX {
                *buffer = BytesMut::new();
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::TlsServer(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::TlsClient(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::TlsServer(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::TlsClient(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Closed => Poll::Ready(Ok(0)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::TlsServer(stream) => Pin::new(stream).poll_flush(context),
            Stream::TlsClient(stream) => Pin::new(stream).poll_flush(context),
            Stream::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::TlsServer(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::TlsClient(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Closed => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
