//! Clients that leave a COPY half way: the shards are free at once, and nothing half written stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    batch::{Batch, shape},
    checks::Check,
    wait,
    wire::{Connection, cancel},
};

pub const CHECKS: &[Check<Dev>] = &[
    ("leaving COPY FROM", leaving_copy_from),
    ("leaving COPY TO", leaving_copy_to),
    ("a cancelled COPY", cancelled),
    ("an error row on one shard", error_row),
];

const AT_ONCE: Duration = Duration::from_secs(1);
const TABLES: &[&str] = &[
    "left_spread",
    "left_local",
    "left_everywhere",
    "left_unique",
];

/// What a client can do without a word to the end.
type Leave = fn(Connection) -> Result<()>;

const WAYS: &[(&str, Leave)] = &[
    ("closed", |connection| {
        drop(connection);
        Ok(())
    }),
    ("Terminate", Connection::terminate),
    ("closed in a message", |mut connection| {
        connection.send(b"d\0\0\x10\0half of")
    }),
    ("CopyFail", |mut connection| {
        connection.send(Batch::new().message(b'f', b"no\0").bytes())?;
        let answer = shape(&connection.until_ready()?);
        ensure!(answer == "E(57014)Z", "{answer}");
        connection.terminate()
    }),
    ("an unknown message", |mut connection| {
        connection.send(Batch::new().message(b'?', b"").bytes())?;
        ensure!(connection.is_closed()?);
        Ok(())
    }),
];

fn prepare(dev: &Dev) -> Result<Connection> {
    let mut connection = dev.connect()?;
    for table in TABLES {
        connection.execute(&format!("drop table if exists {table}"))?;
        let columns = "id integer primary key, n integer check (n <> 13)";
        connection.execute(&format!("create table {table} ({columns})"))?;
    }
    connection.execute("select create_distributed_table('left_spread', 'id')")?;
    connection.execute("select create_distributed_table('left_unique', 'id')")?;
    connection.execute("select create_reference_table('left_everywhere')")?;
    connection.execute("select automator67.create_unique_index('left_unique', 'n')")?;
    Ok(connection)
}

/// Rows that every shard gets some of.
fn rows(first: u32) -> Batch {
    let ids = first..first + 60;
    let rows: String = ids.map(|id| format!("{id}\t{id}\n")).collect();
    Batch::new().message(b'd', rows.as_bytes())
}

/// In COPY, with rows that were sent.
fn begin_copy(dev: &Dev, table: &str, block: bool) -> Result<Connection> {
    let mut connection = dev.connect()?;
    if block {
        connection.execute("begin")?;
        connection.execute("insert into left_spread select generate_series(1, 9), 1")?;
    }
    let text = format!("copy {table} from stdin");
    connection.send(Batch::new().query(&text).bytes())?;
    let frame = connection.receive()?;
    ensure!(frame.tag == b'G', "{frame:?}");
    connection.send(rows(100).bytes())?;
    Ok(connection)
}

/// No shard has a lock of these tables, a statement or a transaction of a client.
fn all_is_free(dev: &Dev) -> Result<()> {
    let tables = TABLES.join("', '");
    let busy = format!(
        "select (select count(*) from pg_locks l join pg_class c on c.oid = l.relation
                where c.relname in ('{tables}'))
            + (select count(*) from pg_stat_activity where backend_type = 'client backend'
                and pid <> pg_backend_pid() and xact_start is not null
                and application_name not like 'automator67%')
            + (select count(*) from pg_prepared_xacts)"
    );
    for shard in dev.shards() {
        let mut direct = Connection::open(&shard.server)?;
        wait::until("the shard to be free", AT_ONCE, || {
            let count = direct.execute(&busy).ok()??;
            (count == "0").then_some(())
        })
        .with_context(|| shard.name.clone())?;
    }
    Ok(())
}

fn nothing_stays(dev: &Dev, connection: &mut Connection) -> Result<()> {
    all_is_free(dev)?;
    for table in TABLES {
        let count = connection.execute(&format!("select count(*) from {table}"))?;
        ensure!(count.as_deref() == Some("0"), "{table}: {count:?}");
    }
    Ok(())
}

fn leaving_copy_from(dev: &Dev) -> Result<()> {
    let mut owner = prepare(dev)?;
    for table in TABLES {
        for block in [false, true] {
            for (way, leave) in WAYS {
                let told = || format!("{table}, {way}, in a block: {block}");
                leave(begin_copy(dev, table, block)?).with_context(told)?;
                nothing_stays(dev, &mut owner).with_context(told)?;
            }
        }
    }
    Ok(())
}

/// As in Postgres, the request is noticed with the next message.
fn cancelled(dev: &Dev) -> Result<()> {
    let mut owner = prepare(dev)?;
    for table in TABLES {
        for block in [false, true] {
            let mut connection = begin_copy(dev, table, block)?;
            cancel(dev.server(), connection.process, &connection.secret)?;
            connection.send(rows(300).message(b'c', b"").bytes())?;
            let answer = shape(&connection.until_ready()?);
            ensure!(answer == "E(57014)Z", "{table}, {block}: {answer}");
            if block {
                let answer = connection.simple("commit")?;
                ensure!(answer[0].text() == "ROLLBACK", "{answer:?}");
            }
            nothing_stays(dev, &mut owner).with_context(|| format!("{table}, {block}"))?;
        }
    }
    Ok(())
}

/// The row is wrong for the shard that has it, and the client leaves before it is told.
fn error_row(dev: &Dev) -> Result<()> {
    let mut owner = prepare(dev)?;
    for table in TABLES {
        for row in ["500\t13\n", "500\tx\n", "500\n", "100\t5\n"] {
            for (way, leave) in &WAYS[..2] {
                let mut connection = begin_copy(dev, table, false)?;
                connection.send(Batch::new().message(b'd', row.as_bytes()).bytes())?;
                leave(connection)?;
                nothing_stays(dev, &mut owner).with_context(|| format!("{table}, {row}, {way}"))?;
            }
        }
    }
    Ok(())
}

fn leaving_copy_to(dev: &Dev) -> Result<()> {
    let mut owner = prepare(dev)?;
    owner.execute("insert into left_spread select g, 1 from generate_series(1, 20) g")?;
    owner.execute("insert into left_local select g, 1 from generate_series(1, 20) g")?;
    for from in [
        "left_spread, generate_series(1, 100000)",
        "left_local, generate_series(1, 100000)",
        "left_spread cross join left_local cross join generate_series(1, 10000)",
    ] {
        for block in [false, true] {
            for (way, leave) in &WAYS[..2] {
                let mut connection = dev.connect()?;
                if block {
                    connection.execute("begin")?;
                    connection.execute("update left_spread set n = 2")?;
                }
                let text = format!("copy (select repeat('x', 1000) from {from}) to stdout");
                connection.send(Batch::new().query(&text).bytes())?;
                ensure!(connection.receive()?.tag == b'H', "{text}");
                ensure!(connection.receive()?.tag == b'd', "{text}");
                leave(connection)?;
                all_is_free(dev).with_context(|| format!("{from}, {way}, {block}"))?;
            }
        }
    }
    let changed = owner.execute("select count(*) from left_spread where n = 2")?;
    ensure!(changed.as_deref() == Some("0"), "{changed:?}");
    for table in TABLES {
        owner.execute(&format!("drop table {table}"))?;
    }
    Ok(())
}
