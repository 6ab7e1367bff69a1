//! A blocking Postgres client that shows every message as it came.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    message::frontend,
};

use crate::batch::Batch;

const READ_LIMIT: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Port on the loopback address.
    Tcp(u16),
    /// Directory of the socket, and the number in its name.
    Unix(PathBuf, u16),
}

/// A server and who to be there.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it listens.
    pub host: Host,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The database.
    pub database: String,
    /// Further fields of the startup packet.
    pub options: Vec<(String, String)>,
}

impl Server {
    /// A server on the loopback address.
    pub fn tcp(port: u16, user: &str, password: &str, database: &str) -> Server {
        Server {
            host: Host::Tcp(port),
            user: user.to_owned(),
            password: password.to_owned(),
            database: database.to_owned(),
            options: Vec::new(),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> Result<u16> {
        match self.host {
            Host::Tcp(port) => Ok(port),
            Host::Unix(..) => bail!("a Unix socket has no port"),
        }
    }

    /// libpq's environment variables for this server.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let (host, port) = match &self.host {
            Host::Tcp(port) => ("127.0.0.1".to_owned(), *port),
            Host::Unix(directory, port) => (directory.display().to_string(), *port),
        };
        vec![
            ("PGHOST", host),
            ("PGPORT", port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGPASSWORD", self.password.clone()),
            ("PGDATABASE", self.database.clone()),
        ]
    }

    /// A URL, with the slashes of a socket's directory as `%2F`.
    pub fn url(&self) -> Result<String> {
        let password = self.password.replace('%', "%25").replace(' ', "%20");
        let (host, port) = match &self.host {
            Host::Tcp(port) => ("127.0.0.1".to_owned(), port),
            Host::Unix(directory, port) => {
                let directory = directory
                    .to_str()
                    .context("a socket's directory in UTF-8")?;
                (directory.replace('/', "%2F"), port)
            }
        };
        let (user, database) = (&self.user, &self.database);
        Ok(format!(
            "postgres://{user}:{password}@{host}:{port}/{database}"
        ))
    }
}

/// One message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

impl Frame {
    /// A field of an ErrorResponse or NoticeResponse (manual, "Error and Notice Message Fields").
    pub fn field(&self, code: u8) -> Option<String> {
        let mut rest = &self.body[..];
        while let Some((&found, tail)) = rest.split_first() {
            if found == 0 {
                return None;
            }
            let end = tail.iter().position(|&byte| byte == 0)?;
            if found == code {
                return Some(String::from_utf8_lossy(&tail[..end]).into_owned());
            }
            rest = &tail[end + 1..];
        }
        None
    }

    /// The body up to its first NUL, as text.
    pub fn text(&self) -> String {
        let end = self.body.iter().position(|&byte| byte == 0);
        String::from_utf8_lossy(&self.body[..end.unwrap_or(self.body.len())]).into_owned()
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(host: &Host) -> Result<Stream> {
        match host {
            Host::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(READ_LIMIT))?;
                Ok(Stream::Tcp(stream))
            }
            Host::Unix(directory, port) => {
                let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}")))?;
                stream.set_read_timeout(Some(READ_LIMIT))?;
                Ok(Stream::Unix(stream))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }
}

/// A connection, logged in or not.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buffer: BytesMut,
    /// The process id of BackendKeyData.
    pub process: u32,
    /// The secret of BackendKeyData.
    pub secret: Bytes,
    /// What ParameterStatus told so far.
    pub parameters: BTreeMap<String, String>,
    /// NoticeResponses that [`Connection::until_ready`] put aside.
    pub notices: Vec<Frame>,
    /// NotificationResponses that [`Connection::until_ready`] put aside.
    pub notifications: Vec<Frame>,
}

impl Connection {
    /// Connects without a word.
    pub fn raw(server: &Server) -> Result<Connection> {
        let stream = Stream::connect(&server.host)
            .with_context(|| format!("connect to {:?}", server.host))?;
        Ok(Connection {
            stream,
            buffer: BytesMut::new(),
            process: 0,
            secret: Bytes::new(),
            parameters: BTreeMap::new(),
            notices: Vec::new(),
            notifications: Vec::new(),
        })
    }

    /// Connects and logs in.
    pub fn open(server: &Server) -> Result<Connection> {
        let mut connection = Connection::raw(server)?;
        match connection.login(server)? {
            None => Ok(connection),
            Some(error) => Err(anyhow!(
                "login failed: {} {}",
                error.field(b'C').unwrap_or_default(),
                error.field(b'M').unwrap_or_default()
            )),
        }
    }

    /// Sends the startup packet and answers SCRAM; the ErrorResponse, if the server refuses.
    pub fn login(&mut self, server: &Server) -> Result<Option<Frame>> {
        let mut fields = vec![
            ("user", server.user.as_str()),
            ("database", server.database.as_str()),
        ];
        for (name, value) in &server.options {
            fields.push((name, value));
        }
        let mut packet = BytesMut::new();
        frontend::startup_message(fields, &mut packet)?;
        self.send(&packet)?;
        let mut scram = None;
        loop {
            let frame = self.receive()?;
            match frame.tag {
                b'E' => return Ok(Some(frame)),
                b'R' => self.authenticate(&frame, server, &mut scram)?,
                b'S' => self.note_parameter(&frame),
                b'K' => self.note_key(&frame)?,
                b'Z' => return Ok(None),
                b'N' | b'v' => self.notices.push(frame),
                other => bail!("unexpected message {:?} at login", char::from(other)),
            }
        }
    }

    fn authenticate(
        &mut self,
        frame: &Frame,
        server: &Server,
        scram: &mut Option<ScramSha256>,
    ) -> Result<()> {
        let mut body = frame.body.clone();
        let mut answer = BytesMut::new();
        match body.try_get_i32()? {
            0 => return Ok(()),
            10 => {
                let client =
                    ScramSha256::new(server.password.as_bytes(), ChannelBinding::unsupported());
                frontend::sasl_initial_response(SCRAM_SHA_256, client.message(), &mut answer)?;
                *scram = Some(client);
            }
            11 => {
                let client = scram.as_mut().context("SASLContinue before SASL")?;
                client.update(&body)?;
                frontend::sasl_response(client.message(), &mut answer)?;
            }
            12 => {
                let client = scram.as_mut().context("SASLFinal before SASL")?;
                client.finish(&body)?;
                return Ok(());
            }
            3 => frontend::password_message(server.password.as_bytes(), &mut answer)?,
            other => bail!("unknown authentication request {other}"),
        }
        self.send(&answer)
    }

    fn note_parameter(&mut self, frame: &Frame) {
        let mut parts = frame.body.split(|&byte| byte == 0);
        let mut next = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let name = next();
        let value = next();
        self.parameters.insert(name, value);
    }

    fn note_key(&mut self, frame: &Frame) -> Result<()> {
        let mut body = frame.body.clone();
        self.process = body.try_get_u32()?;
        self.secret = body;
        Ok(())
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("write to the server")
    }

    /// Another end to send by, while this one receives.
    pub fn writer(&self) -> Result<Writer> {
        Ok(Writer(match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        }))
    }

    /// Takes one byte that is not part of a frame (the answer to SSLRequest).
    pub fn receive_byte(&mut self) -> Result<u8> {
        while self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(self.buffer.get_u8())
    }

    /// Takes one frame.
    pub fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
                let size = 1 + usize::try_from(length)?;
                if size < 5 {
                    bail!("the server sent a frame of length {length}");
                }
                if self.buffer.len() >= size {
                    let mut bytes = self.buffer.split_to(size);
                    let tag = bytes.get_u8();
                    bytes.advance(4);
                    return Ok(Frame {
                        tag,
                        body: bytes.freeze(),
                    });
                }
            }
            self.fill()?;
        }
    }

    /// True when the server has closed the connection; frames before that are skipped.
    pub fn is_closed(&mut self) -> Result<bool> {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(error) => return Ok(error.is::<Closed>()),
            }
        }
    }

    /// Changes how long a read may take.
    pub fn set_read_limit(&mut self, limit: Duration) -> Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit))?,
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit))?,
        }
        Ok(())
    }

    /// Changes how long a write may take.
    pub fn set_write_limit(&mut self, limit: Duration) -> Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(limit))?,
            Stream::Unix(stream) => stream.set_write_timeout(Some(limit))?,
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Closed.into()),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(Closed.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error).context("read from the server"),
        }
    }

    /// Frames up to and with the next ReadyForQuery; notices, notifications and parameter
    /// changes are put aside.
    pub fn until_ready(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.receive()?;
            match frame.tag {
                b'N' => self.notices.push(frame),
                b'A' => self.notifications.push(frame),
                b'S' => self.note_parameter(&frame),
                b'Z' => {
                    frames.push(frame);
                    return Ok(frames);
                }
                _ => frames.push(frame),
            }
        }
    }

    /// Sends a batch and returns its frames up to and with the next ReadyForQuery.
    pub fn batch(&mut self, batch: &Batch) -> Result<Vec<Frame>> {
        self.send(batch.bytes())?;
        self.until_ready()
    }

    /// Runs a simple query and returns its frames.
    pub fn simple(&mut self, text: &str) -> Result<Vec<Frame>> {
        let mut bytes = BytesMut::new();
        frontend::query(text, &mut bytes)?;
        self.send(&bytes)?;
        self.until_ready()
    }

    /// Runs a simple query that must succeed; returns the first value of the first row.
    pub fn execute(&mut self, text: &str) -> Result<Option<String>> {
        Ok(self
            .rows(text)?
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten()))
    }

    /// Runs a simple query that must succeed; returns its rows as text.
    pub fn rows(&mut self, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        let frames = self.simple(text)?;
        let mut rows = Vec::new();
        for frame in &frames {
            match frame.tag {
                b'E' => bail!(
                    "{text}: {} {}",
                    frame.field(b'C').unwrap_or_default(),
                    frame.field(b'M').unwrap_or_default()
                ),
                b'D' => rows.push(
                    values(&frame.body)?
                        .into_iter()
                        .map(|value| {
                            value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                        })
                        .collect(),
                ),
                _ => {}
            }
        }
        Ok(rows)
    }

    /// Runs a simple query that must fail; returns its SQLSTATE and message. A refusal must have a
    /// hint.
    pub fn failure(&mut self, text: &str) -> Result<(String, String)> {
        let frames = self.simple(text)?;
        let error = frames
            .iter()
            .find(|frame| frame.tag == b'E')
            .with_context(|| format!("{text} did not fail"))?;
        let field = |code| error.field(code).unwrap_or_default();
        hint_is_there(error).with_context(|| text.to_owned())?;
        Ok((field(b'C'), field(b'M')))
    }

    /// Says goodbye.
    pub fn terminate(mut self) -> Result<()> {
        self.send(b"X\0\0\0\x04")
    }
}

/// Sends on a [`Connection`].
#[derive(Debug)]
pub struct Writer(Stream);

impl Writer {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).context("write to the server")
    }
}

/// The server closed the connection.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server closed the connection")
    }
}

impl std::error::Error for Closed {}

/// What the proxy answers where it does not do what Postgres does: feature_not_supported, or
/// configuration_limit_exceeded.
pub fn is_refusal(sqlstate: &str) -> bool {
    ["0A000", "53400"].contains(&sqlstate)
}

/// What the proxy refuses says what to do instead.
pub fn hint_is_there(error: &Frame) -> Result<()> {
    let field = |code| error.field(code).unwrap_or_default();
    let (sqlstate, message) = (field(b'C'), field(b'M'));
    ensure!(
        !is_refusal(&sqlstate) || error.field(b'H').is_some(),
        "refused without a hint: {sqlstate} {message}"
    );
    Ok(())
}

/// The values of a DataRow.
pub fn values(body: &Bytes) -> Result<Vec<Option<Bytes>>> {
    let mut rest = body.clone();
    let count = rest.try_get_u16()?;
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = rest.try_get_i32()?;
        if length < 0 {
            values.push(None);
            continue;
        }
        let length = usize::try_from(length)?;
        if rest.len() < length {
            bail!("a value is longer than its DataRow");
        }
        values.push(Some(rest.split_to(length)));
    }
    Ok(values)
}

/// Asks `server` to cancel what the session with this key does.
pub fn cancel(server: &Server, process: u32, secret: &[u8]) -> Result<()> {
    let mut connection = Connection::raw(server)?;
    let mut packet = BytesMut::new();
    packet.extend_from_slice(&u32::try_from(12 + secret.len())?.to_be_bytes());
    packet.extend_from_slice(&80_877_102_u32.to_be_bytes());
    packet.extend_from_slice(&process.to_be_bytes());
    packet.extend_from_slice(secret);
    connection.send(&packet)?;
    connection.is_closed()?;
    Ok(())
}
