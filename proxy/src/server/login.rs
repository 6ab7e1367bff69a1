//! Opening a connection to a shard: the way there, TLS, the login, and whose server it is.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::Arc,
};

use automator67_planner::catalog::Residue;
use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, ScramSha256},
};
use tokio::net::{TcpStream, UnixStream};

use super::{BackendKey, ConnectError, SequenceOwner, Server};
use crate::{
    error::{Report, sqlstate},
    frame::{self, FRAME_BYTES_MAX, Frame},
    guc::SettingMap,
    message,
    settings::{ShardHost, ShardTls, User},
    shard::{self, Identity, Shard},
    shard_auth::AuthCheck,
    tls, types,
    wire::{Stream, Wire},
};

/// Opens a connection and logs in.
pub async fn connect(shard: &Arc<Shard>, user: &User) -> Result<Server, ConnectError> {
    match tokio::time::timeout(shard.connect_timeout, open(shard, user)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// Asks for a sign of life on a connection that is kept for that. Without one, or when it has
/// broken, logs in as the shard's admin.
pub async fn probe(shard: &Arc<Shard>, kept: &mut Option<Server>) -> Result<(), ConnectError> {
    if let Some(mut server) = kept.take()
        && answers(&mut server).await.is_ok()
    {
        *kept = Some(server);
        return Ok(());
    }
    let user = User {
        name: shard.settings.admin_user.clone(),
        password: shard.settings.admin_password.clone(),
        shard_password: shard.settings.admin_password.clone(),
    };
    *kept = Some(connect(shard, &user).await?);
    Ok(())
}

/// Sends Sync, which costs a server next to nothing, and waits for ReadyForQuery.
async fn answers(server: &mut Server) -> Result<(), ConnectError> {
    message::put_sync(&mut server.wire.output);
    server.wire.flush().await?;
    while login_frame(&mut server.wire).await?.tag != b'Z' {}
    Ok(())
}

/// Asks the server behind `key` to stop what it does. Returns when it has passed the request on.
pub async fn cancel(key: &BackendKey) -> Result<(), ConnectError> {
    let request = async {
        let (mut wire, _) = dial(&key.shard).await?;
        wire.output.put_i32(8 + key.key.len() as i32);
        wire.output.put_i32(80_877_102);
        wire.output.extend_from_slice(&key.key);
        wire.flush().await?;
        // The server closes the connection after it has sent the signal.
        while wire.fill().await? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(key.shard.connect_timeout, request).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

async fn open(shard: &Arc<Shard>, user: &User) -> Result<Server, ConnectError> {
    let (mut wire, certificate_hash) = dial(shard).await?;
    put_startup(&mut wire.output, &user.name, &shard.settings.database);
    wire.flush().await?;
    let check = AuthCheck::new(shard.settings.auth);
    authenticate(&mut wire, user, check, certificate_hash).await?;
    let mut server = Server {
        wire,
        shard: shard.clone(),
        key: Arc::new(BackendKey::new(shard, &[0; 8])),
        parameters: Vec::new(),
        settings: SettingMap::default(),
        placeholders: BTreeMap::new(),
        expected: VecDeque::new(),
        status: b'I',
        unnamed: None,
        hidden_error: None,
        forget_tables: false,
        shape: None,
        copying: false,
        passing: 0,
        sequence_owner: SequenceOwner::Nobody,
        unread: false,
        residue: Residue::NONE,
        doubtful: false,
        columns: None,
        plain: types::PlainStatements::new(),
        prepared: HashMap::new(),
        uses: 0,
    };
    // Read behind what the login still has to say, which the server does not wait for either.
    if shard.identity().is_some() {
        message::put_query(&mut server.wire.output, IDENTITY);
        server.wire.flush().await?;
    }
    loop {
        let frame = login_frame(&mut server.wire).await?;
        match frame.tag {
            b'Z' => break,
            b'K' => {
                server.key = Arc::new(BackendKey::new(shard, frame.body()));
                shard.note_backend(&server.key);
            }
            b'S' => {
                let mut reader = message::Reader::new(frame.body());
                if let (Ok(name), Ok(value)) = (reader.string(), reader.string()) {
                    server.parameters.push((name.to_owned(), value.to_owned()));
                }
            }
            _ => {}
        }
    }
    if shard.identity().is_some() {
        let found = read_identity(&mut server.wire).await?;
        shard
            .recognise(found.as_ref())
            .map_err(ConnectError::Stranger)?;
    }
    Ok(server)
}

/// What a server has been told of itself; see [`Shard::recognise`].
pub const IDENTITY: &str = "SELECT cluster, shard FROM automator67.identity";

/// The answer to that. A server that has no such table has been told nothing.
async fn read_identity(wire: &mut Wire) -> Result<Option<Identity>, ConnectError> {
    let mut found = None;
    loop {
        let frame = next_frame(wire).await?;
        match frame.tag {
            b'D' => {
                let values = message::data_row(frame.body()).unwrap_or_default();
                let text = |index: usize| std::str::from_utf8(values.get(index).copied()??).ok();
                found = text(0).zip(text(1)).and_then(|(cluster, shard)| {
                    let shard = shard.parse().ok()?;
                    let cluster = cluster.to_owned();
                    Some(Identity { cluster, shard })
                });
            }
            b'E' => {
                let report = Report::of_body(frame.body());
                let unknown = [sqlstate::UNDEFINED_TABLE, sqlstate::INVALID_SCHEMA_NAME];
                if !unknown.contains(&report.sqlstate.as_str()) {
                    return Err(ConnectError::Server(Box::new(report)));
                }
            }
            b'Z' => return Ok(found),
            _ => {}
        }
    }
}

/// Connects, with TLS where the settings ask for it. Returns the hash of the server's certificate
/// for channel binding.
pub async fn dial(shard: &Shard) -> Result<(Wire, Option<Vec<u8>>), ConnectError> {
    let host = match &shard.settings.host {
        ShardHost::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", shard.settings.port));
            return Ok((
                Wire::new(Stream::Unix(UnixStream::connect(path).await?)),
                None,
            ));
        }
        ShardHost::Tcp(host) => host,
    };
    let mut stream = TcpStream::connect((host.as_str(), shard.settings.port)).await?;
    stream.set_nodelay(true)?;
    shard::guard_against_silence(&stream, shard.connect_timeout)?;
    let Some(connector) = &shard.connector else {
        return Ok((Wire::new(Stream::Tcp(stream)), None));
    };
    if !offers_tls(&mut stream).await? {
        return match shard.settings.tls {
            ShardTls::Disable | ShardTls::Prefer => Ok((Wire::new(Stream::Tcp(stream)), None)),
            ShardTls::Require | ShardTls::VerifyCa | ShardTls::VerifyFull => {
                Err(ConnectError::TlsRequired)
            }
        };
    }
    let name = rustls_pki_types::ServerName::try_from(host.clone())
        .map_err(|_| ConnectError::Protocol("host name is not valid for TLS"))?;
    let stream = connector.connect(name, stream).await?;
    let hash = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|all| all.first())
        .map(|first| tls::end_point_hash(first));
    Ok((Wire::new(Stream::TlsClient(Box::new(stream))), hash))
}

async fn offers_tls(stream: &mut TcpStream) -> Result<bool, ConnectError> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(ConnectError::Protocol("answer to SSLRequest")),
    }
}

fn put_startup(output: &mut BytesMut, user: &str, database: &str) {
    let start = output.len();
    output.put_i32(0);
    output.put_i32(3 << 16);
    let parameters = [
        ("user", user),
        ("database", database),
        ("client_encoding", "UTF8"),
        // Tables with a global unique index take writes from no one else.
        ("automator67.proxy", "on"),
    ];
    for (name, value) in parameters {
        message::put_string(output, name);
        message::put_string(output, value);
    }
    output.put_u8(0);
    let length = (output.len() - start) as i32;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

async fn authenticate(
    wire: &mut Wire,
    user: &User,
    mut check: AuthCheck,
    certificate_hash: Option<Vec<u8>>,
) -> Result<(), ConnectError> {
    let mut scram: Option<ScramSha256> = None;
    loop {
        let frame = login_frame(wire).await?;
        if frame.tag != b'R' {
            return Err(ConnectError::Protocol("message before authentication"));
        }
        let mut body = frame.body();
        if body.len() < 4 {
            return Err(ConnectError::Protocol("authentication message"));
        }
        check.heed(body)?;
        let bad = |_| ConnectError::Protocol("SCRAM message");
        match body.get_i32() {
            0 => return Ok(()),
            3 => put_password(wire, user.shard_password.as_bytes()),
            5 => {
                let salt = body
                    .first_chunk::<4>()
                    .ok_or(ConnectError::Protocol("authentication salt"))?;
                let hash = md5_hash(user.name.as_bytes(), user.shard_password.as_bytes(), *salt);
                put_password(wire, hash.as_bytes());
            }
            10 => {
                let (mechanism, binding) = choose_mechanism(body, certificate_hash.clone());
                let conversation = ScramSha256::new(user.shard_password.as_bytes(), binding);
                message::framed(&mut wire.output, b'p', |out| {
                    message::put_string(out, mechanism);
                    out.put_i32(conversation.message().len() as i32);
                    out.extend_from_slice(conversation.message());
                });
                scram = Some(conversation);
            }
            11 => {
                let mut conversation = scram
                    .take()
                    .ok_or(ConnectError::Protocol("SCRAM message"))?;
                let challenge = body.to_vec();
                // Thousands of hashes: the thread's clients do not wait for them.
                let answered = tokio::task::spawn_blocking(move || {
                    conversation.update(&challenge).map(|()| conversation)
                });
                let conversation = answered.await.map_err(io::Error::other)?.map_err(bad)?;
                let reply = conversation.message();
                message::framed(&mut wire.output, b'p', |out| out.extend_from_slice(reply));
                scram = Some(conversation);
            }
            12 => {
                let conversation = scram
                    .as_mut()
                    .ok_or(ConnectError::Protocol("SCRAM message"))?;
                conversation.finish(body).map_err(bad)?;
            }
            _ => return Err(ConnectError::Protocol("unsupported authentication method")),
        }
        wire.flush().await?;
    }
}

fn choose_mechanism(
    offered: &[u8],
    certificate_hash: Option<Vec<u8>>,
) -> (&'static str, ChannelBinding) {
    let plus = offered
        .split(|byte| *byte == 0)
        .any(|name| name == b"SCRAM-SHA-256-PLUS");
    match certificate_hash {
        Some(hash) if plus => (
            "SCRAM-SHA-256-PLUS",
            ChannelBinding::tls_server_end_point(hash),
        ),
        Some(_) => ("SCRAM-SHA-256", ChannelBinding::unrequested()),
        None => ("SCRAM-SHA-256", ChannelBinding::unsupported()),
    }
}

fn put_password(wire: &mut Wire, password: &[u8]) {
    message::framed(&mut wire.output, b'p', |body| {
        body.extend_from_slice(password);
        body.put_u8(0);
    });
}

/// The next frame of the login; an ErrorResponse is an error.
pub(super) async fn login_frame(wire: &mut Wire) -> Result<Frame, ConnectError> {
    let frame = next_frame(wire).await?;
    if frame.tag == b'E' {
        return Err(ConnectError::Server(Box::new(Report::of_body(
            frame.body(),
        ))));
    }
    Ok(frame)
}

async fn next_frame(wire: &mut Wire) -> Result<Frame, ConnectError> {
    loop {
        let taken = frame::take(&mut wire.input, FRAME_BYTES_MAX)
            .map_err(|_| ConnectError::Protocol("malformed frame"))?;
        match taken {
            Some(frame) => return Ok(frame),
            None => {
                if wire.fill().await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
    }
}
