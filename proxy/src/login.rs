//! From a fresh TCP connection to an authenticated client: TLS, startup packet, SCRAM.

mod options;

use std::{net::SocketAddr, sync::Arc};

use bytes::{Buf, BufMut, BytesMut};
use tokio::net::TcpStream;

use crate::{
    error::{Failure, Report, sqlstate},
    frame::{self, LOGIN_FRAME_BYTES_MAX},
    lobby::{Guest, Stage},
    message::{self, Reader},
    process::Process,
    scram::{self, Binding, ScramError, Verifier},
    settings::User,
    tls::{self, ServerTls},
    wire::{GOODBYE_TIMEOUT, Prefixed, Stream, Wire},
};

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The newest protocol we speak: 3.2.
const PROTOCOL_NEWEST: u32 = (3 << 16) | 2;
/// First byte of a TLS handshake record: a client that does not ask first.
const TLS_HANDSHAKE: u8 = 0x16;

/// A client that has proved who it is.
pub struct Hello {
    /// The stream.
    pub wire: Wire,
    /// Who.
    pub user: Arc<User>,
    /// Settings of the startup packet, names in lower case.
    pub settings: Vec<(String, String)>,
}

/// What a first packet asks for.
enum Startup {
    Cancel {
        pid: i32,
        secret: Vec<u8>,
    },
    Session {
        version: u32,
        parameters: Vec<(String, String)>,
    },
}

/// Talks to a new client until it is logged in. `None`: it is not, and has been told why. The answer
/// to a wrong password may take a while; meanwhile the client is the first to make room for others.
pub async fn welcome(
    process: &Process,
    stream: TcpStream,
    peer: SocketAddr,
    guest: &Guest,
) -> Option<Hello> {
    let mut wire = Wire::new(Stream::Tcp(stream));
    let limit = process.settings.login_timeout;
    let mut user = String::new();
    match tokio::time::timeout(limit, log_in(process, &mut wire, guest, &mut user)).await {
        Err(_) => None,
        Ok(Ok(None)) => None,
        Ok(Ok(Some((user, settings)))) => Some(Hello {
            wire,
            user,
            settings,
        }),
        Ok(Err(failure)) => {
            process.telemetry.login_failures.increment(1);
            if let Some(suppressed) = process.lobby.refused.line() {
                let sqlstate = failure.sqlstate();
                tracing::info!(%peer, sqlstate, suppressed, "login refused");
            }
            if failure.sqlstate() == sqlstate::INVALID_PASSWORD {
                guest.reaches(Stage::Refused);
                let pause = process.wrong_passwords.count(peer.ip(), &user);
                tokio::time::sleep(pause).await;
            }
            refuse(&mut wire, failure).await;
            None
        }
    }
}

/// Sends a last message.
pub async fn refuse(wire: &mut Wire, failure: Failure) {
    if let Failure::Report(report) = failure {
        report.fatal().write(&mut wire.output);
        // The client may be gone already, or not listen; there is nobody left to tell.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, wire.flush()).await;
        wire.close().await;
    }
}

type LoggedIn = (Arc<User>, Vec<(String, String)>);

/// Writes the user's name into `name` as soon as it is known.
async fn log_in(
    process: &Process,
    wire: &mut Wire,
    guest: &Guest,
    name: &mut String,
) -> Result<Option<LoggedIn>, Failure> {
    let (version, parameters) = match first_packet(process, wire, guest).await? {
        Startup::Cancel { pid, secret } => {
            process.cancel(pid, &secret).await;
            wire.close().await;
            return Ok(None);
        }
        Startup::Session {
            version,
            parameters,
        } => (version, parameters),
    };
    negotiate(wire, version, &parameters)?;
    let required = process.tls.as_ref().is_some_and(|tls| tls.required);
    if required && !matches!(wire.stream, Stream::TlsServer(_)) {
        return Err(
            Report::error(sqlstate::INVALID_AUTHORIZATION, "connection requires TLS")
                .hint("Connect with sslmode=require.")
                .into(),
        );
    }
    let find = |name: &str| {
        parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let user = find("user")
        .filter(|user| !user.is_empty())
        .ok_or_else(|| {
            Report::error(
                sqlstate::INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            )
        })?;
    user.clone_into(name);
    if find("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            "replication connections are not supported",
        )
        .hint("Connect to the shard itself.")
        .into());
    }
    let login = authenticate(process, wire, user).await?;
    let database = find("database")
        .filter(|name| !name.is_empty())
        .unwrap_or(user);
    if database != process.settings.database {
        return Err(Report::error(
            sqlstate::INVALID_CATALOG_NAME,
            format!("database \"{database}\" does not exist"),
        )
        .hint(format!(
            "The only database is \"{}\".",
            process.settings.database
        ))
        .into());
    }
    let settings = session_settings(parameters)?;
    Ok(Some((login, settings)))
}

/// Reads packets until one is more than a question about encryption.
async fn first_packet(
    process: &Process,
    wire: &mut Wire,
    guest: &Guest,
) -> Result<Startup, Failure> {
    fill(wire).await?;
    if wire.input.first() == Some(&TLS_HANDSHAKE) {
        let tls = process.tls.as_ref().ok_or(Failure::ClientGone)?;
        start_tls(wire, tls, true).await?;
    }
    loop {
        let mut packet = loop {
            match frame::take_startup(&mut wire.input) {
                Ok(Some(packet)) => break packet,
                Ok(None) => fill(wire).await?,
                Err(_) => {
                    return Err(Report::protocol("invalid length of startup packet").into());
                }
            }
        };
        guest.reaches(Stage::Speaking);
        if packet.len() < 4 {
            return Err(Report::protocol("invalid length of startup packet").into());
        }
        match packet.get_u32() {
            SSL_REQUEST if matches!(wire.stream, Stream::Tcp(_)) => match &process.tls {
                Some(tls) => {
                    wire.output.put_u8(b'S');
                    flush(wire).await?;
                    start_tls(wire, tls, false).await?;
                }
                None => {
                    wire.output.put_u8(b'N');
                    flush(wire).await?;
                }
            },
            GSS_REQUEST => {
                wire.output.put_u8(b'N');
                flush(wire).await?;
            }
            CANCEL_REQUEST if packet.len() >= 8 => {
                return Ok(Startup::Cancel {
                    pid: packet.get_i32(),
                    secret: packet.to_vec(),
                });
            }
            version => return startup_parameters(version, &packet),
        }
    }
}

async fn start_tls(wire: &mut Wire, tls: &ServerTls, direct: bool) -> Result<(), Failure> {
    let Stream::Tcp(stream) = std::mem::replace(&mut wire.stream, Stream::Closed) else {
        return Err(Failure::ClientGone);
    };
    let prefix = std::mem::take(&mut wire.input);
    if !direct && !prefix.is_empty() {
        // Bytes sent before the handshake are not protected by it: somebody may have put them
        // there.
        wire.stream = Stream::Tcp(stream);
        return Err(Report::protocol("received unencrypted data after SSL request").into());
    }
    let accepted = tls.acceptor.accept(Prefixed { prefix, stream }).await;
    let stream = accepted.map_err(|_| Failure::ClientGone)?;
    // Without ALPN any protocol could be tricked into talking to us.
    if direct && stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
        return Err(Failure::ClientGone);
    }
    wire.stream = Stream::TlsServer(Box::new(stream));
    Ok(())
}

fn startup_parameters(version: u32, packet: &[u8]) -> Result<Startup, Failure> {
    if version >> 16 != 3 {
        return Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!(
                "unsupported frontend protocol {}.{}: server supports 3.0 to 3.2",
                version >> 16,
                version & 0xffff
            ),
        )
        .into());
    }
    let mut reader = Reader::new(packet);
    let mut parameters = Vec::new();
    loop {
        let name = reader.string()?;
        if name.is_empty() {
            break;
        }
        parameters.push((name.to_lowercase(), reader.string()?.to_owned()));
    }
    if reader.end().is_err() {
        return Err(Report::protocol(
            "invalid startup packet layout: expected terminator as last byte",
        )
        .into());
    }
    Ok(Startup::Session {
        version,
        parameters,
    })
}

/// Tells a client that asks for more than we know what we know (manual, "NegotiateProtocolVersion").
fn negotiate(
    wire: &mut Wire,
    version: u32,
    parameters: &[(String, String)],
) -> Result<(), Failure> {
    let unknown: Vec<&str> = parameters
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("_pq_."))
        .collect();
    if version > PROTOCOL_NEWEST || !unknown.is_empty() {
        message::framed(&mut wire.output, b'v', |body| {
            body.put_u32(version.min(PROTOCOL_NEWEST));
            body.put_i32(unknown.len() as i32);
            for name in unknown {
                message::put_string(body, name);
            }
        });
    }
    Ok(())
}

async fn authenticate(
    process: &Process,
    wire: &mut Wire,
    user: &str,
) -> Result<Arc<User>, Failure> {
    let wrong = || {
        Report::error(
            sqlstate::INVALID_PASSWORD,
            format!("password authentication failed for user \"{user}\""),
        )
    };
    let hash = match &wire.stream {
        Stream::TlsServer(_) => process.tls.as_ref().map(|tls| tls.certificate_hash.clone()),
        Stream::Tcp(_) | Stream::Unix(_) | Stream::TlsClient(_) | Stream::Closed => None,
    };
    message::framed(&mut wire.output, b'R', |body| {
        body.put_i32(10);
        if hash.is_some() {
            message::put_string(body, "SCRAM-SHA-256-PLUS");
        }
        message::put_string(body, "SCRAM-SHA-256");
        body.put_u8(0);
    });
    flush(wire).await?;

    let unmatched = Verifier::unmatched(&process.secret, user);
    let login = process.logins.get(user);
    let verifier = login.map_or(&unmatched, |login| &login.verifier);
    let response = sasl_message(wire).await?;
    let mut reader = Reader::new(&response);
    let chosen = match reader.string()? {
        "SCRAM-SHA-256-PLUS" if hash.is_some() => true,
        "SCRAM-SHA-256" => false,
        _ => {
            return Err(Report::protocol(
                "client selected an invalid SASL authentication mechanism",
            )
            .into());
        }
    };
    let length = usize::try_from(reader.int32()?)
        .map_err(|_| Report::protocol("malformed SCRAM message"))?;
    let first = text(reader.bytes(length)?)?;
    reader.end()?;
    let binding = Binding {
        chosen,
        certificate_hash: hash.as_deref(),
    };
    let nonce: String = (0..24)
        .map(|_| char::from(rand::random_range(b'a'..=b'z')))
        .collect();
    let malformed = |error| match error {
        ScramError::Malformed(message) => Report::protocol(message),
        ScramError::WrongPassword => wrong(),
    };
    let (exchange, reply) = scram::first(verifier, first, &nonce, binding).map_err(malformed)?;
    put_sasl(wire, 11, &reply);
    flush(wire).await?;
    let last = sasl_message(wire).await?;
    let reply = exchange
        .finish(verifier, text(&last)?, binding)
        .map_err(malformed)?;
    let login = login.ok_or_else(wrong)?;
    put_sasl(wire, 12, &reply);
    message::framed(&mut wire.output, b'R', |body| body.put_i32(0));
    Ok(login.user.clone())
}

fn text(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|_| Report::protocol("malformed SCRAM message").into())
}

fn put_sasl(wire: &mut Wire, kind: i32, text: &str) {
    message::framed(&mut wire.output, b'R', |body| {
        body.put_i32(kind);
        body.extend_from_slice(text.as_bytes());
    });
}

/// The body of the next SASL message.
async fn sasl_message(wire: &mut Wire) -> Result<BytesMut, Failure> {
    loop {
        match frame::take(&mut wire.input, LOGIN_FRAME_BYTES_MAX) {
            Ok(Some(mut frame)) if frame.tag == b'p' => {
                return Ok(frame.bytes.split_off(frame::HEADER_BYTES));
            }
            Ok(Some(frame)) => {
                return Err(Report::protocol(format!(
                    "expected SASL response, got message type {}",
                    frame.tag
                ))
                .into());
            }
            Ok(None) => fill(wire).await?,
            Err(error) => return Err(Report::protocol(error.to_string()).into()),
        }
    }
}

/// Startup parameters that are session settings. Those that `options` gives come first: one that is
/// given by name as well is as the name says.
fn session_settings(parameters: Vec<(String, String)>) -> Result<Vec<(String, String)>, Report> {
    let mut settings = Vec::new();
    for (_, value) in parameters.iter().filter(|(name, _)| name == "options") {
        settings.extend(options::settings(value)?);
    }
    let named = parameters.into_iter().filter(|(name, _)| {
        let of_login = ["user", "database", "replication", "options"].contains(&name.as_str());
        !of_login && !name.starts_with("_pq_.")
    });
    settings.extend(named);
    Ok(settings)
}

async fn fill(wire: &mut Wire) -> Result<(), Failure> {
    match wire.fill().await {
        Ok(0) | Err(_) => Err(Failure::ClientGone),
        Ok(_) => Ok(()),
    }
}

async fn flush(wire: &mut Wire) -> Result<(), Failure> {
    wire.flush().await.map_err(|_| Failure::ClientGone)
}
