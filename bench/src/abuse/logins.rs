//! Clients that never log in: they say nothing, or do not know the password.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::wire::{Connection, Frame};
use bytes::BytesMut;
use postgres_protocol::{authentication::sasl::SCRAM_SHA_256, message::frontend};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Book, Ground, bystander::beside, duration};
use crate::servers::USER;

const SILENT: usize = 10_000;
/// A connection that finds the server's queue full is tried again after a second, so several are.
const OPENERS: usize = 16;
/// What the proxy has closed is opened again.
const OPENING_ROUNDS: u32 = 5;
/// For how long they are opened, at most.
const OPENING_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// For how long logins beside them are tried.
const LOGIN_LIMIT: Duration = Duration::from_secs(90);
const LOGINS: usize = 20;
const LOGIN_MAX: Duration = Duration::from_millis(100);

const WRONG_SECONDS: u64 = 10;
const WRONG_PER_SECOND: u64 = 2_500;
/// They are begun in small groups.
const TICK: Duration = Duration::from_millis(4);
/// More are not under way at a time; what would be is left out.
const WRONG_AT_A_TIME_MAX: usize = 2_000;
const WRONG_LIMIT: Duration = Duration::from_secs(10);
const BYSTANDER_P99: Duration = Duration::from_millis(8);
/// No message of a login is longer.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Opens connections that say nothing, then logs in beside them.
pub fn silent(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let started = Instant::now();
    let mut silent = Vec::new();
    let mut closed = 0;
    for _ in 0..OPENING_ROUNDS {
        let missing = SILENT - silent.len();
        silent.extend(open_silent(ground.proxy.port, missing, started));
        let opened = silent.len();
        silent.retain(is_open);
        closed += opened - silent.len();
    }
    book.note(format!(
        "silent connections: {} open after {}, {closed} were closed by the proxy",
        silent.len(),
        duration(started.elapsed())
    ));
    let (slowest, refused) = slowest_login(ground)?;
    let words = refused
        .as_ref()
        .map_or(String::new(), |it| format!(", refused until then: {it}"));
    book.row(
        "10,000 silent connections: slowest of 20 logins",
        "refused for 60 s",
        format!("{}{words}", duration(slowest)),
        "≤ 100 ms",
        refused.is_none() && slowest <= LOGIN_MAX,
    );
    Ok(())
}

fn open_silent(port: u16, count: usize, started: Instant) -> Vec<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let some = |count: usize| {
        let mut streams = Vec::new();
        while streams.len() < count && started.elapsed() < OPENING_LIMIT {
            streams.extend(TcpStream::connect_timeout(&address, CONNECT_LIMIT).ok());
        }
        streams
    };
    let some = &some;
    thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS)
            .map(|number| (count + number) / OPENERS)
            .map(|share| scope.spawn(move || some(share)))
            .collect();
        openers
            .into_iter()
            .flat_map(|opener| opener.join().unwrap_or_default())
            .collect()
    })
}

/// Nothing is expected to come, so what comes is the proxy's last word.
fn is_open(stream: &TcpStream) -> bool {
    let looked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.peek(&mut [0]));
    looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// How long the slowest login took, with its repetitions, and why one was refused.
fn slowest_login(ground: &Ground<'_>) -> Result<(Duration, Option<String>)> {
    let server = ground.proxy();
    let mut slowest = Duration::ZERO;
    let mut refused = None;
    let all = Instant::now();
    for _ in 0..LOGINS {
        let started = Instant::now();
        while let Err(error) = Connection::open(&server) {
            refused = Some(format!("{error:#}"));
            if all.elapsed() > LOGIN_LIMIT {
                return Ok((started.elapsed(), refused));
            }
            thread::sleep(Duration::from_millis(100));
        }
        slowest = slowest.max(started.elapsed());
    }
    Ok((slowest, refused))
}

/// Wrong passwords at a steady rate.
pub fn wrong_passwords(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let port = ground.proxy.port;
    let (ends, felt) = beside(ground, || Ok(runtime.block_on(wrong_at_a_rate(port))))?;
    book.row(
        "2,500 wrong passwords a second for 10 s: bystander's p99",
        "16.5 ms",
        felt.describe(felt.p99),
        "≤ 8 ms",
        felt.is_within(felt.p99, BYSTANDER_P99),
    );
    let ends: Vec<String> = ends
        .iter()
        .map(|(end, count)| format!("{count} x {end}"))
        .collect();
    book.note(format!(
        "wrong passwords: {}; the bystander's longest wait was {}",
        ends.join(", "),
        felt.describe(felt.max)
    ));
    Ok(())
}

/// How each of them ended, and how many did.
async fn wrong_at_a_rate(port: u16) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let each = WRONG_PER_SECOND * TICK.as_millis() as u64 / 1000;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(WRONG_SECONDS) {
        ticks.tick().await;
        for _ in 0..each {
            if tasks.len() < WRONG_AT_A_TIME_MAX {
                tasks.spawn(timeout(WRONG_LIMIT, wrong_password(port)));
            } else {
                *ends
                    .entry("left out: too many under way".to_owned())
                    .or_default() += 1;
            }
        }
        while let Some(ended) = tasks.try_join_next() {
            *ends.entry(end(ended)).or_default() += 1;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        *ends.entry(end(ended)).or_default() += 1;
    }
    ends
}

type Ended = Result<Result<Result<String>, tokio::time::error::Elapsed>, tokio::task::JoinError>;

fn end(ended: Ended) -> String {
    match ended {
        Ok(Ok(Ok(code))) => code,
        Ok(Ok(Err(error))) => format!("{error:#}"),
        Ok(Err(_)) => format!("no answer within {} s", WRONG_LIMIT.as_secs()),
        Err(error) => error.to_string(),
    }
}

/// A whole SCRAM exchange with a proof that is none, so that it costs this side nothing. The SQLSTATE
/// of the refusal.
async fn wrong_password(port: u16) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut message = BytesMut::new();
    frontend::startup_message([("user", USER), ("database", USER)], &mut message)?;
    stream.write_all(&message).await?;
    let asked = receive(&mut stream).await?;
    if asked.tag == b'E' {
        return Ok(asked.field(b'C').unwrap_or_default());
    }
    message.clear();
    let first = b"n,,n=,r=ZnlkYXk0NHRoZWRyaXZlcg";
    frontend::sasl_initial_response(SCRAM_SHA_256, first, &mut message)?;
    stream.write_all(&message).await?;
    let challenge = receive(&mut stream).await?;
    if challenge.tag == b'E' {
        return Ok(challenge.field(b'C').unwrap_or_default());
    }
    let challenge = challenge.body.get(4..).context("a short challenge")?;
    let challenge = std::str::from_utf8(challenge)?;
    let nonce = challenge.split(',').next().unwrap_or_default();
    ensure!(nonce.starts_with("r="), "no nonce in {challenge}");
    message.clear();
    let last = format!("c=biws,{nonce},p={}=", "A".repeat(43));
    frontend::sasl_response(last.as_bytes(), &mut message)?;
    stream.write_all(&message).await?;
    let refusal = receive(&mut stream).await?;
    if refusal.tag != b'E' {
        bail!("a wrong password was answered with {refusal:?}");
    }
    Ok(refusal.field(b'C').unwrap_or_default())
}

async fn receive(stream: &mut tokio::net::TcpStream) -> Result<Frame> {
    let tag = stream.read_u8().await?;
    let length = usize::try_from(stream.read_u32().await?)?;
    ensure!(
        (4..MESSAGE_BYTES_MAX).contains(&length),
        "a message of {length} bytes"
    );
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await?;
    Ok(Frame {
        tag,
        body: body.into(),
    })
}
