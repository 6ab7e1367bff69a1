//! Malformed, truncated, oversized and out-of-order frames, before and after login: that
//! connection gets an error or is closed, and no other connection notices.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::{
    automator::Dev,
    checks,
    wire::{self, Connection, Frame, Server},
};
use bytes::{BufMut, BytesMut};

const PROTOCOL_3_0: u32 = 196_608;
const PROTOCOL_3_2: u32 = 196_610;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

#[test]
fn bad_frames_hurt_nobody_else() {
    let dev = Dev::start(1).expect("dev starts");
    checks::run(
        &dev,
        &[
            ("startup garbage", startup_garbage),
            ("startup without end", startup_without_end),
            ("startup twice", startup_twice),
            ("SSLRequest twice", ssl_request_twice),
            ("GSSENCRequest", gss_request),
            ("old protocol", old_protocol),
            ("protocol 3.2", protocol_3_2),
            ("unknown minor and options", unknown_minor),
            ("no user", no_user),
            ("wrong password", wrong_password),
            ("unknown user", unknown_user),
            ("unknown database", unknown_database),
            ("replication", replication),
            ("query before password", query_before_password),
            ("bad SASL", bad_sasl),
            ("login too large", login_too_large),
            ("broken messages", broken_messages),
            ("broken lengths", broken_lengths),
            ("empty query is one frame", empty_query_is_one_frame),
            ("out of order", out_of_order),
            ("strings that are not UTF-8", not_utf8),
            ("cut off", cut_off),
            ("cancel with a wrong key", cancel_with_wrong_key),
            ("noise", noise),
        ],
    );
}

/// Another connection still works, and the process lives.
fn still_serving(dev: &Dev) -> Result<()> {
    let mut other = dev.connect().context("another connection")?;
    ensure!(other.execute("select 1")?.as_deref() == Some("1"));
    other.terminate()
}

fn startup_packet(code: u32, rest: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u32(8 + rest.len() as u32);
    bytes.put_u32(code);
    bytes.put_slice(rest);
    bytes
}

fn message(tag: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(tag);
    bytes.put_u32(4 + body.len() as u32);
    bytes.put_slice(body);
    bytes
}

/// The next frame must be an ErrorResponse with one of these SQLSTATEs, or the end.
fn error_or_closed(connection: &mut Connection, sqlstates: &[&str]) -> Result<()> {
    connection.set_read_limit(Duration::from_secs(5))?;
    match connection.receive() {
        Ok(frame) if frame.tag == b'E' => has_code(&frame, sqlstates),
        Ok(frame) => bail!("answered with {:?}", char::from(frame.tag)),
        Err(error) if error.is::<automator67_tests::wire::Closed>() => Ok(()),
        Err(error) => Err(error),
    }
}

fn has_code(frame: &Frame, sqlstates: &[&str]) -> Result<()> {
    let code = frame.field(b'C').unwrap_or_default();
    ensure!(
        sqlstates.contains(&code.as_str()),
        "{code} instead of {sqlstates:?}: {}",
        frame.field(b'M').unwrap_or_default()
    );
    Ok(())
}

/// Login must fail with this SQLSTATE and severity FATAL, and then the end.
fn login_fails(dev: &Dev, change: impl FnOnce(&mut Server), sqlstate: &str) -> Result<()> {
    let mut server = dev.server().clone();
    change(&mut server);
    let mut connection = Connection::raw(&server)?;
    let error = connection.login(&server)?.context("login succeeded")?;
    has_code(&error, &[sqlstate])?;
    ensure!(error.field(b'V').as_deref() == Some("FATAL"));
    ensure!(connection.is_closed()?, "the connection stays open");
    still_serving(dev)
}

fn startup_garbage(dev: &Dev) -> Result<()> {
    let packets: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"\0\0\0\x03abc",
        b"\0\0\0\x04",
        b"\0\0\0\x07\0\x03\0",
        b"\xff\xff\xff\xff\0\x03\0\0",
        b"\x80\0\0\0\0\x03\0\0",
        b"\x7f\xff\xff\xff\0\x03\0\0",
        b"\0\0\x27\x11\0\x03\0\0",
        // A whole TLS record (direct TLS) that is no ClientHello.
        b"\x16\x03\x01\x00\x07garbage",
        b"\0\0\0\x08\xde\xad\xbe\xef",
    ];
    for packet in packets {
        let mut connection = Connection::raw(dev.server())?;
        connection.set_read_limit(Duration::from_secs(5))?;
        connection.send(packet)?;
        ensure!(
            connection
                .is_closed()
                .with_context(|| format!("{packet:?}"))?,
            "{packet:?} is not refused"
        );
    }
    still_serving(dev)
}

fn startup_without_end(dev: &Dev) -> Result<()> {
    for rest in [
        &b"user"[..],
        b"user\0app",
        b"user\0app\0",
        b"user\0app\0database\0",
        b"",
    ] {
        let mut connection = Connection::raw(dev.server())?;
        connection.send(&startup_packet(PROTOCOL_3_0, rest))?;
        error_or_closed(&mut connection, &["08P01", "28000"])
            .with_context(|| format!("{rest:?}"))?;
    }
    still_serving(dev)
}

fn startup_twice(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let packet = startup_packet(PROTOCOL_3_0, b"user\0app\0\0");
    connection.send(&packet)?;
    error_or_closed(&mut connection, &["08P01"])?;
    still_serving(dev)
}

fn ssl_request_twice(dev: &Dev) -> Result<()> {
    let mut connection = Connection::raw(dev.server())?;
    connection.send(&startup_packet(SSL_REQUEST, b""))?;
    ensure!(connection.receive_byte()? == b'S', "dev offers TLS");
    connection.send(&startup_packet(SSL_REQUEST, b""))?;
    connection.set_read_limit(Duration::from_secs(5))?;
    // What may come is a TLS alert, which is no frame.
    while connection.receive_byte().is_ok() {}
    // Both requests in one segment: the second would be injected plaintext.
    let mut connection = Connection::raw(dev.server())?;
    let mut both = startup_packet(SSL_REQUEST, b"");
    both.extend_from_slice(&startup_packet(PROTOCOL_3_0, b"user\0app\0\0"));
    connection.send(&both)?;
    connection.set_read_limit(Duration::from_secs(5))?;
    while let Ok(byte) = connection.receive_byte() {
        ensure!(byte != b'R', "plaintext behind SSLRequest was read");
    }
    still_serving(dev)
}

fn gss_request(dev: &Dev) -> Result<()> {
    let mut connection = Connection::raw(dev.server())?;
    connection.send(&startup_packet(GSS_REQUEST, b""))?;
    ensure!(connection.receive_byte()? == b'N');
    ensure!(connection.login(dev.server())?.is_none(), "login goes on");
    Ok(())
}

fn old_protocol(dev: &Dev) -> Result<()> {
    for version in [131_072, 65_536, 262_144] {
        let mut connection = Connection::raw(dev.server())?;
        connection.send(&startup_packet(version, b"user\0app\0\0"))?;
        error_or_closed(&mut connection, &["0A000", "08P01"])?;
    }
    still_serving(dev)
}

/// What follows a startup packet of ours: NegotiateProtocolVersion or the request to log in.
fn negotiation(dev: &Dev, version: u32, fields: &[u8]) -> Result<Frame> {
    let mut connection = Connection::raw(dev.server())?;
    connection.send(&startup_packet(version, fields))?;
    connection.receive()
}

fn protocol_3_2(dev: &Dev) -> Result<()> {
    let frame = negotiation(dev, PROTOCOL_3_2, b"user\0app\0database\0app\0\0")?;
    match frame.tag {
        b'R' => Ok(()),
        b'v' => {
            let newest = frame.body.get(..4).context("a short message")?;
            ensure!(newest == 196_608_u32.to_be_bytes() || newest == [0, 0, 0, 0]);
            Ok(())
        }
        other => bail!("answered with {:?}", char::from(other)),
    }
}

fn unknown_minor(dev: &Dev) -> Result<()> {
    let frame = negotiation(dev, 196_608 + 99, b"user\0app\0database\0app\0\0")?;
    ensure!(frame.tag == b'v', "no NegotiateProtocolVersion for 3.99");
    let fields = b"user\0app\0database\0app\0_pq_.nothing\0on\0\0";
    let frame = negotiation(dev, PROTOCOL_3_0, fields)?;
    ensure!(
        frame.tag == b'v',
        "no NegotiateProtocolVersion for _pq_.nothing"
    );
    ensure!(
        frame.body.ends_with(b"\0\0\0\x01_pq_.nothing\0"),
        "{frame:?}"
    );
    still_serving(dev)
}

fn no_user(dev: &Dev) -> Result<()> {
    let mut connection = Connection::raw(dev.server())?;
    connection.send(&startup_packet(PROTOCOL_3_0, b"database\0app\0\0"))?;
    error_or_closed(&mut connection, &["28000"])
}

fn wrong_password(dev: &Dev) -> Result<()> {
    login_fails(dev, |server| server.password = "wrong".into(), "28P01")?;
    login_fails(dev, |server| server.password = String::new(), "28P01")
}

fn unknown_user(dev: &Dev) -> Result<()> {
    login_fails(dev, |server| server.user = "nobody".into(), "28P01")
}

fn unknown_database(dev: &Dev) -> Result<()> {
    login_fails(dev, |server| server.database = "nothing".into(), "3D000")
}

fn replication(dev: &Dev) -> Result<()> {
    let mut server = dev.server().clone();
    server.options = vec![("replication".into(), "true".into())];
    let mut connection = Connection::raw(&server)?;
    ensure!(
        connection.login(&server)?.is_some(),
        "replication is not refused"
    );
    still_serving(dev)
}

/// A connection that was asked for SASL.
fn asked_for_sasl(dev: &Dev) -> Result<Connection> {
    let mut connection = Connection::raw(dev.server())?;
    let packet = startup_packet(PROTOCOL_3_0, b"user\0app\0database\0app\0\0");
    connection.send(&packet)?;
    let frame = connection.receive()?;
    ensure!(frame.tag == b'R' && frame.body.starts_with(&[0, 0, 0, 10]));
    Ok(connection)
}

fn query_before_password(dev: &Dev) -> Result<()> {
    for bytes in [
        message(b'Q', b"select 1\0"),
        message(b'P', b"\0select 1\0\0\0"),
        message(b'S', b""),
        message(b'X', b""),
        message(b'd', b"data"),
    ] {
        let mut connection = asked_for_sasl(dev)?;
        connection.send(&bytes)?;
        error_or_closed(&mut connection, &["08P01", "28000"])?;
        ensure!(connection.is_closed()?);
    }
    still_serving(dev)
}

fn bad_sasl(dev: &Dev) -> Result<()> {
    for body in [
        &b""[..],
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\0\0\0\xffn,,n=,r=abc",
        b"SCRAM-SHA-256\0\0\0\0\x03n,,",
        b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc",
        b"SCRAM-SHA-256\0\0\0\0\x0by,,n=,r=abc",
        b"SCRAM-SHA-256-PLUS\0\0\0\0\x0bn,,n=,r=abc",
        b"NOTHING\0\0\0\0\x01x",
        b"password\0",
    ] {
        let mut connection = asked_for_sasl(dev)?;
        connection.send(&message(b'p', body))?;
        connection.set_read_limit(Duration::from_secs(5))?;
        let frame = connection.receive();
        if let Ok(frame) = frame
            && frame.tag == b'R'
        {
            // A valid first message: the second is nonsense.
            connection.send(&message(b'p', b"c=biws,r=wrong,p=AAAA"))?;
            error_or_closed(&mut connection, &["08P01", "28P01", "28000"])?;
        }
        ensure!(
            connection
                .is_closed()
                .with_context(|| format!("{body:?}"))?,
            "{body:?}"
        );
    }
    still_serving(dev)
}

fn login_too_large(dev: &Dev) -> Result<()> {
    let mut connection = asked_for_sasl(dev)?;
    connection.send(b"p\0\x10\0\0")?;
    error_or_closed(&mut connection, &["08P01"])?;
    let mut connection = Connection::raw(dev.server())?;
    connection.send(&startup_packet(PROTOCOL_3_0, &[b'x'; 10_001]))?;
    error_or_closed(&mut connection, &["08P01"])?;
    still_serving(dev)
}

/// Messages whose body is shorter or longer than what it holds. After the error the connection is
/// in step, or closed.
fn broken_messages(dev: &Dev) -> Result<()> {
    let bodies: &[(u8, &[u8])] = &[
        (b'Q', b"select 1"),
        (b'Q', b""),
        (b'Q', b"select 1\0more\0"),
        (b'P', b""),
        (b'P', b"name"),
        (b'P', b"name\0"),
        (b'P', b"\0select 1"),
        (b'P', b"\0select 1\0"),
        (b'P', b"\0select 1\0\0"),
        (b'P', b"\0select 1\0\0\x05"),
        (b'P', b"\0select 1\0\xff\xff"),
        (b'P', b"\0select 1\0\0\x01\0\0\0"),
        (b'P', b"\0select 1\0\0\0extra"),
        (b'B', b""),
        (b'B', b"\0"),
        (b'B', b"\0\0"),
        (b'B', b"\0\0\0"),
        (b'B', b"\0\0\0\0\0\x01"),
        (b'B', b"\0\0\0\0\0\x01\0\0\0\x09abc\0\0"),
        (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
        (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"),
        (b'B', b"\0\0\0\x02\0\0\0\0\0\x01\xff\xff\xff\xff\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\x05\0\x01"),
        (b'B', b"\0\0\xff\xff\0\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0extra"),
        (b'B', b"\0nothing\0\0\0\0\0\0\0"),
        (b'E', b""),
        (b'E', b"\0"),
        (b'E', b"\0\0\0"),
        (b'E', b"nothing\0\0\0\0\0"),
        (b'E', b"\0\0\0\0\0\0"),
        (b'D', b""),
        (b'D', b"S"),
        (b'D', b"Sname"),
        (b'D', b"Xname\0"),
        (b'D', b"Snothing\0"),
        (b'D', b"Pnothing\0"),
        (b'C', b""),
        (b'C', b"Zname\0"),
        (b'C', b"Sname"),
        (b'F', b""),
        (b'F', b"\0\0\0\x01\0\0\0\0\0\0"),
        (b'H', b"extra"),
        (b'S', b"extra"),
    ];
    for (tag, body) in bodies {
        let mut connection = dev.connect()?;
        connection.set_read_limit(Duration::from_secs(5))?;
        connection.send(&message(*tag, body))?;
        connection.send(&message(b'S', b""))?;
        connection.send(&message(b'Q', b"select 'in step'\0"))?;
        let what = || format!("{} {body:?}", char::from(*tag));
        in_step_or_closed(&mut connection).with_context(what)?;
    }
    still_serving(dev)
}

/// An error came, and then either the end or the answer to `select 'in step'`.
fn in_step_or_closed(connection: &mut Connection) -> Result<()> {
    let mut failed = false;
    loop {
        match connection.receive() {
            Ok(frame) => match frame.tag {
                b'E' => {
                    failed = true;
                    let code = frame.field(b'C').unwrap_or_default();
                    let known = ["08P01", "26000", "34000", "0A000", "42883", "22021"];
                    ensure!(known.contains(&code.as_str()), "SQLSTATE {code}");
                    wire::hint_is_there(&frame)?;
                }
                b'D' => {
                    ensure!(frame.body.ends_with(b"in step"), "an answer to nothing");
                    ensure!(failed, "no error before the answer");
                    return Ok(());
                }
                _ => {}
            },
            Err(error) if error.is::<automator67_tests::wire::Closed>() => {
                ensure!(failed, "closed without an error");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

fn broken_lengths(dev: &Dev) -> Result<()> {
    let headers: &[&[u8]] = &[
        b"Q\0\0\0\0",
        b"Q\0\0\0\x03",
        b"Q\xff\xff\xff\xff",
        b"Q\x80\0\0\0",
        b"Q\x7f\xff\xff\xff",
        b"Q\x40\0\0\x01",
        b"d\xff\xff\xff\xfb",
        b"\0\0\0\0\x04",
        b"~\0\0\0\x04",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"v\0\0\0\x08\0\0\0\0",
    ];
    for header in headers {
        let mut connection = dev.connect()?;
        connection.send(header)?;
        error_or_closed(&mut connection, &["08P01"]).with_context(|| format!("{header:?}"))?;
        ensure!(
            connection.is_closed()?,
            "{header:?} leaves the connection open"
        );
    }
    still_serving(dev)
}

/// A `Q` of length 4 must not swallow the next message.
fn empty_query_is_one_frame(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let mut bytes = message(b'Q', b"");
    bytes.extend_from_slice(&message(b'Q', b"select 'in step'\0"));
    connection.send(&bytes)?;
    in_step_or_closed(&mut connection)
}

fn out_of_order(dev: &Dev) -> Result<()> {
    // COPY messages out of place are ignored (manual, "COPY Operations").
    let mut connection = dev.connect()?;
    connection.send(&message(b'd', b"1\tx\n"))?;
    connection.send(&message(b'c', b""))?;
    connection.send(&message(b'f', b"why\0"))?;
    ensure!(connection.execute("select 1")?.as_deref() == Some("1"));
    // A password is not expected any more.
    connection.send(&message(b'p', b"secret\0"))?;
    error_or_closed(&mut connection, &["08P01"])?;
    // Sync and Flush alone.
    let mut connection = dev.connect()?;
    connection.send(&message(b'H', b""))?;
    connection.send(&message(b'S', b""))?;
    connection.send(&message(b'S', b""))?;
    ensure!(connection.until_ready()?.len() == 1 && connection.until_ready()?.len() == 1);
    // Execute and Describe before Parse and Bind.
    for bytes in [
        message(b'E', b"\0\0\0\0\0"),
        message(b'D', b"P\0"),
        message(b'D', b"S\0"),
    ] {
        connection.send(&bytes)?;
        connection.send(&message(b'S', b""))?;
        let frames = connection.until_ready()?;
        ensure!(frames.len() == 2 && frames[0].tag == b'E', "{frames:?}");
        has_code(&frames[0], &["34000", "26000"])?;
    }
    // Queries inside of COPY end it with an error.
    connection.execute("create table if not exists lines (line text)")?;
    connection.send(&message(b'Q', b"copy lines from stdin\0"))?;
    ensure!(connection.receive()?.tag == b'G');
    connection.send(&message(b'd', b"a line\n"))?;
    connection.send(&message(b'Q', b"select 1\0"))?;
    error_or_closed(&mut connection, &["08P01", "57014"])?;
    let mut connection = dev.connect()?;
    ensure!(connection.execute("select count(*) from lines")?.as_deref() == Some("0"));
    still_serving(dev)
}

fn not_utf8(dev: &Dev) -> Result<()> {
    for (tag, body) in [
        (b'Q', &b"select '\xff\xfe'\0"[..]),
        (b'P', b"\0select '\xc3('\0\0\0"),
        (b'P', b"\xff\0select 1\0\0\0"),
    ] {
        let mut connection = dev.connect()?;
        connection.send(&message(tag, body))?;
        connection.send(&message(b'S', b""))?;
        error_or_closed(&mut connection, &["22021", "08P01"])?;
    }
    still_serving(dev)
}

/// Clients that leave in the middle of a frame, of login, of a batch.
fn cut_off(dev: &Dev) -> Result<()> {
    for bytes in [
        &b""[..],
        b"\0",
        b"\0\0\0\x20",
        b"\0\0\0\x20\0\x03\0\0user\0",
    ] {
        Connection::raw(dev.server())?.send(bytes)?;
    }
    drop(asked_for_sasl(dev)?);
    for bytes in [
        &b"Q"[..],
        b"Q\0\0\0\xffselect",
        b"P\0\0\0\x10\0select 1\0\0\0",
        b"d\0\0\0\x10ab",
    ] {
        dev.connect()?.send(bytes)?;
    }
    let mut connection = dev.connect()?;
    connection.send(&message(b'P', b"\0select 1\0\0\0"))?;
    connection.send(&message(b'B', b"\0\0\0\0\0\0\0\0"))?;
    drop(connection);
    still_serving(dev)
}

fn cancel_with_wrong_key(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    connection.send(&message(b'Q', b"select pg_sleep(0.3)\0"))?;
    let process = connection.process;
    let secret = connection.secret.clone();
    let wrong: Vec<u8> = secret.iter().map(|byte| !byte).collect();
    automator67_tests::wire::cancel(dev.server(), process, &wrong)?;
    automator67_tests::wire::cancel(dev.server(), process.wrapping_add(1), &secret)?;
    automator67_tests::wire::cancel(dev.server(), process, b"")?;
    automator67_tests::wire::cancel(dev.server(), process, &[7; 300])?;
    let frames = connection.until_ready()?;
    ensure!(
        frames.iter().all(|frame| frame.tag != b'E'),
        "a wrong key cancelled the query"
    );
    still_serving(dev)
}

/// Frames with random types, lengths and bodies, from a fixed seed.
fn noise(dev: &Dev) -> Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let tags = b"QPBEDCSHXdcfpFv~\0";
    for round in 0..150 {
        let mut bytes = BytesMut::new();
        for _ in 0..1 + random.below(6) {
            let tag = tags[random.below(tags.len())];
            let mut body: Vec<u8> = (0..random.below(40)).map(|_| random.byte()).collect();
            if random.below(2) == 0 {
                body.extend_from_slice(b"\0select 1\0\0\0");
            }
            let mut frame = message(tag, &body);
            if random.below(4) == 0 {
                let at = random.below(frame.len());
                frame[at] = random.byte();
            }
            bytes.extend_from_slice(&frame);
        }
        let mut connection = dev.connect()?;
        // The other side may close while we still write.
        let _ = connection.send(&bytes);
        if round % 10 == 0 {
            still_serving(dev).with_context(|| format!("after round {round}: {bytes:?}"))?;
        }
    }
    still_serving(dev)
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 32) as u8
    }
}
