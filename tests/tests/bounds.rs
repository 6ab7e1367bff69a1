//! What one client may take: messages, lines of COPY, memory, pipelines without an end.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator, Dev},
    batch::{Batch, shape},
    checks, postgres,
    wire::{Connection, Frame},
};
use bytes::{BufMut, BytesMut};

const MIB: usize = 1 << 20;

#[test]
fn one_client_takes_no_more_than_its_share() {
    let dev = Dev::start(2).expect("dev starts");
    prepare(&dev).expect("tables");
    checks::run(
        &dev,
        &[
            ("large messages", large_messages),
            ("large messages in the extended protocol", large_parse),
            ("large messages while copying", large_copy_data),
            ("long lines", long_lines),
            ("a long line that fits", line_that_fits),
            ("memory of all", memory_of_all),
            ("long pipeline", long_pipeline),
            ("views of a shard that cannot write", views_without_writing),
            (
                "long pipeline is one transaction",
                pipeline_is_one_transaction,
            ),
        ],
    );
}

/// `spread` is distributed, `lone` is local.
fn prepare(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    for text in [
        "create table spread (id bigint primary key, v text)",
        "select create_distributed_table('spread', 'id')",
        "create table lone (id bigint, v text)",
    ] {
        connection.execute(text)?;
    }
    Ok(())
}

/// A proxy with a limit of 1 MiB a message.
fn small(dev: &Dev, name: &str) -> Result<Automator> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\nmessage_bytes_max = {MIB}\n\
         memory_bytes_max = {}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{}\"\npassword = \"{}\"\n",
        4 * MIB,
        postgres::USER,
        postgres::PASSWORD
    );
    for shard in dev.shards() {
        let url = shard.server.url()?;
        text += &format!("[[shards]]\nname = \"{}\"\nurl = \"{url}\"\n", shard.name);
    }
    let file: PathBuf = dev.directory().join(format!("{name}.toml"));
    std::fs::write(&file, text)?;
    automator::serve(&file)
}

fn message(tag: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(tag);
    bytes.put_u32(4 + body.len() as u32);
    bytes.put_slice(body);
    bytes
}

/// `SELECT length('xxx...')` as a simple query.
fn query_of(bytes: usize) -> BytesMut {
    let text = format!("select length('{}')\0", "x".repeat(bytes));
    message(b'Q', text.as_bytes())
}

fn is_refused(frame: &Frame, code: &str, hint: &str) -> Result<()> {
    let found = frame.field(b'C').unwrap_or_default();
    ensure!(frame.tag == b'E' && found == code, "{frame:?}");
    let said = frame.field(b'H').unwrap_or_default();
    ensure!(said.contains(hint), "hint: {said}");
    ensure!(frame.field(b'S').as_deref() == Some("ERROR"), "{frame:?}");
    Ok(())
}

fn goes_on(connection: &mut Connection) -> Result<()> {
    let got = connection.execute("select 'in step'")?;
    ensure!(got.as_deref() == Some("in step"), "{got:?}");
    Ok(())
}

fn large_messages(dev: &Dev) -> Result<()> {
    let proxy = small(dev, "messages")?;
    let mut connection = Connection::open(&proxy.server)?;
    connection.send(&query_of(MIB / 2))?;
    ensure!(shape(&connection.until_ready()?) == "TDCZ");
    connection.send(&query_of(20 * MIB))?;
    let frames = connection.until_ready()?;
    ensure!(shape(&frames) == "E(54000)Z", "{}", shape(&frames));
    is_refused(&frames[0], "54000", "message_bytes_max")?;
    goes_on(&mut connection)?;
    // It fails a transaction like any other statement, and what is behind it is answered.
    connection.execute("begin")?;
    let mut bytes = query_of(2 * MIB);
    bytes.extend_from_slice(&message(b'Q', b"select 1\0"));
    connection.send(&bytes)?;
    let frames = connection.until_ready()?;
    is_refused(&frames[0], "54000", "message_bytes_max")?;
    ensure!(frames.last().is_some_and(|frame| frame.body[..] == *b"E"));
    ensure!(shape(&connection.until_ready()?) == "E(25P02)Z");
    connection.execute("rollback")?;
    goes_on(&mut connection)
}

fn large_parse(dev: &Dev) -> Result<()> {
    let proxy = small(dev, "parse")?;
    let mut connection = Connection::open(&proxy.server)?;
    let mut body = b"\0select '".to_vec();
    body.resize(2 * MIB, b'x');
    body.extend_from_slice(b"'\0\0\0");
    let mut bytes = BytesMut::from(Batch::new().run("select 1", &[]).bytes());
    bytes.extend_from_slice(&message(b'P', &body));
    bytes.extend_from_slice(Batch::new().run("select 2", &[]).sync().bytes());
    connection.send(&bytes)?;
    let frames = connection.until_ready()?;
    let seen = shape(&frames);
    ensure!(seen.ends_with("CE(54000)Z"), "{seen}");
    goes_on(&mut connection)
}

fn large_copy_data(dev: &Dev) -> Result<()> {
    let proxy = small(dev, "copy")?;
    for table in ["spread", "lone"] {
        let mut connection = Connection::open(&proxy.server)?;
        let copy = format!("copy {table} from stdin\0");
        connection.send(&message(b'Q', copy.as_bytes()))?;
        ensure!(connection.receive()?.tag == b'G');
        connection.send(&message(b'd', b"1\ta\n"))?;
        let mut line = b"2\t".to_vec();
        line.resize(3 * MIB, b'x');
        line.push(b'\n');
        connection.send(&message(b'd', &line))?;
        connection.send(&message(b'd', b"3\tc\n"))?;
        connection.send(&message(b'c', b""))?;
        let frames = connection.until_ready()?;
        ensure!(shape(&frames) == "E(54000)Z", "{table}: {}", shape(&frames));
        is_refused(&frames[0], "54000", "message_bytes_max").context(table)?;
        let count = connection.execute(&format!("select count(*) from {table}"))?;
        ensure!(count.as_deref() == Some("0"), "{table}: {count:?}");
    }
    Ok(())
}

/// Sends one line in pieces.
fn copy_line(connection: &mut Connection, format: &str, id: u32, bytes: usize) -> Result<()> {
    let copy = format!("copy spread from stdin ({format})\0");
    connection.send(&message(b'Q', copy.as_bytes()))?;
    ensure!(connection.receive()?.tag == b'G');
    let (start, end) = match format {
        "format csv" => (format!("{id},\"a\n"), "\"\n"),
        _ => (format!("{id}\ta"), "\n"),
    };
    connection.send(&message(b'd', start.as_bytes()))?;
    let piece = message(b'd', &[b'x'; 10_000]);
    for _ in 0..bytes / 10_000 {
        connection.send(&piece)?;
    }
    connection.send(&message(b'd', end.as_bytes()))?;
    connection.send(&message(b'c', b""))
}

fn long_lines(dev: &Dev) -> Result<()> {
    let proxy = small(dev, "lines")?;
    for format in ["format text", "format csv"] {
        let mut connection = Connection::open(&proxy.server)?;
        copy_line(&mut connection, format, 1, 30 * MIB)?;
        let frames = connection.until_ready()?;
        ensure!(
            shape(&frames) == "E(54000)Z",
            "{format}: {}",
            shape(&frames)
        );
        is_refused(&frames[0], "54000", "message_bytes_max").context(format)?;
        goes_on(&mut connection)?;
    }
    let held = memory(&proxy, "VmHWM")?;
    ensure!(held < 200 << 10, "{held} kB for lines of 1 MiB");
    Ok(())
}

/// All of its bytes arrive, through the pieces that a long row is sent in.
fn line_that_fits(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    for (id, format) in [(7, "format text"), (8, "format csv")] {
        copy_line(&mut connection, format, id, 3 * MIB)?;
        let frames = connection.until_ready()?;
        ensure!(shape(&frames) == "CZ", "{}", shape(&frames));
        let text = format!(
            "select length(v), md5(v) = md5(case id when 8 then e'a\\n' else 'a' end
             || repeat('x', {})) from spread where id = {id}",
            3 * MIB / 10_000 * 10_000
        );
        let rows = connection.rows(&text)?;
        ensure!(rows[0][1].as_deref() == Some("t"), "{rows:?}");
    }
    connection.execute("delete from spread")?;
    Ok(())
}

/// A line of `/proc/PID/status`, in kB.
fn memory(proxy: &Automator, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.group.id()))?;
    let line = status.lines().find(|line| line.starts_with(what));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no such line")?.parse()?)
}

fn memory_of_all(dev: &Dev) -> Result<()> {
    let proxy = small(dev, "memory")?;
    let mut holders = Vec::new();
    for _ in 0..6 {
        let mut connection = Connection::open(&proxy.server)?;
        let bytes = query_of(MIB - 100);
        connection.send(&bytes[..bytes.len() - 10])?;
        holders.push((connection, bytes));
    }
    // Some of them do not fit beside the others; all of them stay in step.
    let mut refused = 0;
    for (mut connection, bytes) in holders {
        connection.send(&bytes[bytes.len() - 10..])?;
        let frames = connection.until_ready()?;
        if frames[0].tag == b'E' {
            is_refused(&frames[0], "53200", "memory_bytes_max")?;
            refused += 1;
        }
        goes_on(&mut connection)?;
    }
    ensure!(refused > 0, "6 messages of 1 MiB fit into 4 MiB");
    let mut connection = Connection::open(&proxy.server)?;
    connection.send(&query_of(MIB - 100))?;
    ensure!(
        shape(&connection.until_ready()?) == "TDCZ",
        "memory is lost"
    );
    Ok(())
}

fn long_pipeline(dev: &Dev) -> Result<()> {
    const MANY: usize = 40_000;
    let mut connection = dev.connect()?;
    connection.batch(&Batch::new().parse("p", "select $1::int").sync())?;
    let one = Batch::new().bind("", "p", &[Some("1")]).execute("", 0);
    let mut bytes = one.bytes().repeat(MANY);
    bytes.extend_from_slice(Batch::new().sync().bytes());
    let start = Instant::now();
    let frames = std::thread::scope(|scope| {
        let mut writer = connection.writer()?;
        scope.spawn(move || writer.send(&bytes));
        connection.until_ready()
    })?;
    let took = start.elapsed();
    ensure!(frames.len() == 3 * MANY + 1, "{} frames", frames.len());
    // One round trip to the shard for each of them would take longer.
    ensure!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

fn pipeline_is_one_transaction(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let text = "insert into lone values ($1, 'x')";
    connection.batch(&Batch::new().parse("i", text).sync())?;
    let mut other = dev.connect()?;
    let mut batch = Batch::new();
    for id in 0..1500 {
        let portal = format!("portal{id}");
        let id = id.to_string();
        batch = batch.bind(&portal, "i", &[Some(&id)]).execute(&portal, 0);
    }
    let mut bytes = batch.bytes().to_vec();
    // The rows of the batches that have run already are not there for others.
    connection.send(&bytes)?;
    for _ in 0..1000 {
        connection.receive()?;
    }
    let count = other.execute("select count(*) from lone")?;
    ensure!(count.as_deref() == Some("0"), "before Sync: {count:?}");
    bytes = Batch::new()
        .run("select 1 / ($1::int - 1)", &["1"])
        .sync()
        .bytes()
        .to_vec();
    connection.send(&bytes)?;
    let frames = connection.until_ready()?;
    ensure!(shape(&frames).ends_with("E(22012)Z"), "{}", shape(&frames));
    let count = other.execute("select count(*) from lone")?;
    ensure!(count.as_deref() == Some("0"), "after the error: {count:?}");
    // The same without an error is there.
    let mut batch = Batch::new();
    for id in 0..1500 {
        let id = id.to_string();
        batch = batch.bind("", "i", &[Some(&id)]).execute("", 0);
    }
    connection.batch(&batch.sync())?;
    let count = other.execute("select count(*) from lone")?;
    ensure!(count.as_deref() == Some("1500"), "after Sync: {count:?}");
    connection.execute("delete from lone")?;
    Ok(())
}

/// As on a full disk: the home shard can make no file in the database.
fn views_without_writing(dev: &Dev) -> Result<()> {
    let mut home = Connection::open(&dev.shards()[0].server)?;
    let directory = home
        .execute("select current_setting('data_directory') || '/base/' || oid from pg_database where datname = current_database()")?
        .context("no directory")?;
    let mut connection = dev.connect()?;
    connection.execute("insert into spread select g, 'x' from generate_series(1, 20) g")?;
    let mode = std::fs::metadata(&directory)?.permissions();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o500))?;
    let looked = look_at_views(&mut connection);
    std::fs::set_permissions(&directory, mode)?;
    looked?;
    connection.execute("delete from spread")?;
    Ok(())
}

fn look_at_views(connection: &mut Connection) -> Result<()> {
    let (code, message) = connection.failure("create temporary table nothing (id int)")?;
    ensure!(
        message.contains("could not create file"),
        "{code} {message}"
    );
    for (text, expected) in [
        ("select count(*) from automator67.shards", "2"),
        ("select count(*) from automator67.transactions", "0"),
        (
            "select state from automator67.sessions where state = 'active'",
            "active",
        ),
        (
            "select s.name from automator67.shards s (number, name) where number = 1",
            "shard1",
        ),
        (
            "select count(*) from automator67.sessions a join automator67.sessions b using (pid)",
            "1",
        ),
        (
            "with s as (select * from only automator67.shards) select bool_and(up)::text from s",
            "true",
        ),
        (
            "select count(*) > 0 from automator67.pools where username = current_user",
            "t",
        ),
    ] {
        let got = connection.execute(text).with_context(|| text.to_owned())?;
        ensure!(got.as_deref() == Some(expected), "{text}: {got:?}");
    }
    let batch = Batch::new()
        .run("select name from automator67.shards where id = $1", &["2"])
        .sync();
    let frames = connection.batch(&batch)?;
    ensure!(shape(&frames).ends_with("DCZ"), "{}", shape(&frames));
    for text in [
        "start transaction read only",
        "declare c cursor for select name from automator67.shards order by 1",
        "select * from automator67.pools",
    ] {
        connection.execute(text)?;
    }
    ensure!(connection.rows("fetch all from c")?.len() == 2);
    connection.execute("commit")?;
    Ok(())
}
