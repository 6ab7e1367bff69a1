//! What a shard may ask for when we log in to it, libpq's `require_auth` (manual, "Connection
//! Parameter Key Words"). Whoever answers in a shard's place must not get a password by asking for
//! it, nor be believed because it asks for nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{frame, settings::ShardAuth, wire::Stream};

/// Largest message of a login that is looked at.
const LOGIN_BYTES_MAX: usize = 1 << 20;

/// What a shard asked for, and may not.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the server {0}, which the shard's require_auth does not allow (change the server's pg_hba.conf, or say require_auth={1} in the shard's URL)"
)]
pub struct NotAllowed(&'static str, &'static str);

/// A login's authentication so far.
pub struct AuthCheck {
    allowed: ShardAuth,
    /// The server has proved that it knows the password (SASLFinal), or was shown it.
    done: bool,
}

impl AuthCheck {
    /// Nothing asked yet.
    pub fn new(allowed: ShardAuth) -> Self {
        AuthCheck {
            allowed,
            done: false,
        }
    }

    /// Looks at the body of an authentication message (`R`) before it is answered.
    pub fn heed(&mut self, body: &[u8]) -> Result<(), NotAllowed> {
        let code = body
            .first_chunk::<4>()
            .map(|code| i32::from_be_bytes(*code));
        let allowed = self.allowed;
        match code {
            Some(0) if !self.done && !allowed.none => Err(NotAllowed(
                "did not ask for a password, or not to the end",
                "none",
            )),
            Some(3) if !allowed.password => {
                Err(NotAllowed("asks for the password in the clear", "password"))
            }
            Some(5) if !allowed.md5 => Err(NotAllowed("asks for an md5 password", "md5")),
            Some(10) if !allowed.scram => {
                Err(NotAllowed("asks for SCRAM-SHA-256", "scram-sha-256"))
            }
            Some(3 | 5 | 12) => {
                self.done = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A stream of which a library that knows no `require_auth` gets only what is allowed.
pub struct Guarded {
    stream: Stream,
    /// `None` once it is logged in.
    check: Option<AuthCheck>,
    arrived: BytesMut,
    /// How much of `arrived` may be handed on.
    looked_at: usize,
}

impl Guarded {
    /// Before the startup packet.
    pub fn new(stream: Stream, allowed: ShardAuth) -> Self {
        Guarded {
            stream,
            check: Some(AuthCheck::new(allowed)),
            arrived: BytesMut::new(),
            looked_at: 0,
        }
    }

    /// Looks at whole messages that have arrived, up to the end of the login.
    fn look(&mut self) -> io::Result<()> {
        while let Some(check) = &mut self.check {
            let rest = &self.arrived[self.looked_at..];
            let header = frame::peek(rest, LOGIN_BYTES_MAX).map_err(io::Error::other)?;
            let Some((tag, size)) = header.filter(|(_, size)| *size <= rest.len()) else {
                return Ok(());
            };
            if tag == b'R' {
                let body = &rest[frame::HEADER_BYTES..size];
                check.heed(body).map_err(io::Error::other)?;
                if body.starts_with(&[0; 4]) {
                    self.check = None;
                }
            }
            self.looked_at += size;
        }
        self.looked_at = self.arrived.len();
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guarded = self.get_mut();
        loop {
            if guarded.looked_at > 0 {
                let count = guarded.looked_at.min(buffer.remaining());
                buffer.put_slice(&guarded.arrived[..count]);
                guarded.arrived.advance(count);
                guarded.looked_at -= count;
                return Poll::Ready(Ok(()));
            }
            if guarded.check.is_none() {
                return Pin::new(&mut guarded.stream).poll_read(context, buffer);
            }
            let mut space = [0; 1024];
            let mut piece = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut guarded.stream).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            guarded.arrived.extend_from_slice(piece.filled());
            guarded.look()?;
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heed(allowed: ShardAuth, codes: &[i32]) -> Result<(), NotAllowed> {
        let mut check = AuthCheck::new(allowed);
        codes
            .iter()
            .try_for_each(|code| check.heed(&code.to_be_bytes()))
    }

    #[test]
    fn what_is_asked_must_be_allowed() {
        let scram = ShardAuth::SCRAM;
        assert_eq!(heed(scram, &[10, 11, 12, 0]), Ok(()));
        for refused in [&[0][..], &[3, 0], &[5, 0], &[10, 0], &[10, 11, 0]] {
            assert!(heed(scram, refused).is_err(), "{refused:?}");
        }
        for accepted in [&[0][..], &[3, 0], &[5, 0], &[10, 11, 12, 0]] {
            assert_eq!(heed(ShardAuth::ANY, accepted), Ok(()), "{accepted:?}");
        }
        let md5 = ShardAuth {
            scram: false,
            none: false,
            password: false,
            md5: true,
        };
        assert_eq!(heed(md5, &[5, 0]), Ok(()));
        assert!(heed(md5, &[10]).is_err());
    }
}
