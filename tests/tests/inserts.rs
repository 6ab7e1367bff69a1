//! INSERT of many rows of parameters: the same answers, errors and rows as from one Postgres,
//! whatever way they take to the shards.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    answer::{self, Event, TypeNames},
    automator::Dev,
    cases::Parameter,
    play,
    postgres::Plain,
    wire::Connection,
};
use bytes::BytesMut;

const TABLE: &str = "create table things (id bigint primary key, name varchar(8) not null, \
    note text, score numeric(6,2), seen timestamptz, token uuid, raw bytea, ok bool default true, \
    day date, half real, whole double precision, tiny smallint check (tiny < 30000), n int)";

/// Column, type of its parameter, and the value for a row, as it is written down in binary.
type Column = (&'static str, &'static str, fn(usize) -> Option<String>);

const COLUMNS: &[Column] = &[
    ("id", "int8", |row| Some(row.to_string())),
    ("name", "varchar", |row| Some(format!("n{}", row % 100))),
    ("note", "text", |row| {
        (row % 3 != 0).then(|| "ä'$1\"{},".repeat(row % 7))
    }),
    ("score", "numeric", |row| {
        (row % 5 != 0).then(|| format!("{}.125", row % 1000))
    }),
    ("seen", "timestamptz", |row| {
        (row % 2 == 0).then(|| (row * 1_000_003).to_string())
    }),
    ("token", "uuid", |row| {
        Some(format!("00000000-0000-4000-8000-{row:012}"))
    }),
    ("raw", "bytea", |row| Some(format!("\\x{row:08x}"))),
    ("ok", "bool", |row| Some((row % 2 == 0).to_string())),
    ("day", "date", |row| Some(row.to_string())),
    ("half", "float4", |row| Some(format!("{}.5", row))),
    ("whole", "float8", |row| {
        (row % 4 != 0).then(|| format!("{}.25", row))
    }),
    ("tiny", "int2", |row| Some((row % 1000).to_string())),
    ("n", "int4", |row| Some((row * 7).to_string())),
];

#[test]
fn many_rows_of_parameters_are_inserted_as_in_postgres() {
    inserts().expect("inserts");
}

struct Insert<'t> {
    columns: &'t [&'t str],
    rows: std::ops::Range<usize>,
    /// Behind the parameter of some column.
    casts: &'t [(&'t str, &'t str)],
    /// Row, column and value of another one.
    odd: Option<(usize, &'t str, Option<&'t str>)>,
    suffix: &'t str,
    binary: bool,
}

fn inserts() -> Result<()> {
    let (plain, dev) = std::thread::scope(|scope| {
        let plain = scope.spawn(Plain::start);
        let dev = Dev::start(3);
        (plain.join().expect("no panic"), dev)
    });
    let (plain, dev) = (plain?, dev?);
    let mut one = Connection::open(&plain.server)?;
    let mut three = dev.connect()?;
    for connection in [&mut one, &mut three] {
        connection.execute(TABLE)?;
    }
    three.execute("select create_distributed_table('things', 'id')")?;
    let all: Vec<&str> = COLUMNS.iter().map(|column| column.0).collect();
    let few = ["note", "id", "name"];
    let sizes = [1..2, 10..19, 20..30, 100..200, 1000..2000];
    for rows in sizes {
        for binary in [false, true] {
            for (columns, suffix) in [
                (&all[..], ""),
                (&few[..], " returning *"),
                (&few[..], " returning id, upper(name) as shouted"),
                (
                    &few[..],
                    " on conflict (id) do update set note = excluded.name",
                ),
            ] {
                let insert = Insert {
                    columns,
                    rows: rows.clone(),
                    casts: &[],
                    odd: None,
                    suffix,
                    binary,
                };
                same(&mut one, &mut three, &insert)?;
            }
            let insert = Insert {
                columns: &["id", "name", "score", "n"],
                rows: rows.clone(),
                casts: &[("score", "::numeric(10, 1)"), ("n", "::INTEGER")],
                odd: None,
                suffix: "",
                binary,
            };
            same(&mut one, &mut three, &insert)?;
        }
    }
    let clash = "insert into things (id, name) values (15, 'before')";
    for (text, odd) in [
        ("too long", (12, "name", Some("ninechars"))),
        ("a null", (17, "name", None)),
        ("a check", (13, "tiny", Some("30001"))),
        ("an overflow", (14, "score", Some("12345.67"))),
        ("no key", (11, "id", None)),
        ("twice", (18, "id", Some("10"))),
        ("there already", (15, "n", Some("1"))),
    ] {
        for suffix in ["", " returning n, id"] {
            for connection in [&mut one, &mut three] {
                if text == "there already" {
                    connection.execute(clash)?;
                }
            }
            let insert = Insert {
                columns: &["id", "name", "score", "tiny", "n"],
                rows: 10..40,
                casts: &[],
                odd: Some(odd),
                suffix,
                binary: true,
            };
            same(&mut one, &mut three, &insert).context(text)?;
        }
    }
    Ok(())
}

fn same(one: &mut Connection, three: &mut Connection, insert: &Insert<'_>) -> Result<()> {
    let mut found = Vec::new();
    for connection in [one, three] {
        let mut events = run(connection, insert)?;
        // Some errors of values come with Bind on one server, and with Execute on shards.
        if events.iter().any(|event| matches!(event, Event::Error(_))) {
            events.retain(|event| matches!(event, Event::Error(_) | Event::Ready(_)));
        }
        let rows = connection.rows("select t::text from things t order by id")?;
        connection.execute("delete from things")?;
        found.push((events, rows));
    }
    ensure!(
        found[0] == found[1],
        "{} rows of {:?}{}, binary {}\nPostgres: {:?}\nthree shards: {:?}",
        insert.rows.len(),
        insert.columns,
        insert.suffix,
        insert.binary,
        found[0],
        found[1]
    );
    Ok(())
}

fn run(connection: &mut Connection, insert: &Insert<'_>) -> Result<Vec<Event>> {
    let mut text = format!("insert into things ({}) values", insert.columns.join(", "));
    let mut parameters = Vec::new();
    for row in insert.rows.clone() {
        text.push_str(if row == insert.rows.start {
            " ("
        } else {
            ", ("
        });
        for (position, name) in insert.columns.iter().enumerate() {
            let column = COLUMNS.iter().find(|column| column.0 == *name);
            let (_, type_name, value) = column.context("no such column")?;
            let cast = insert.casts.iter().find(|(of, _)| of == name);
            let cast = cast.map_or("", |(_, cast)| cast);
            let comma = if position == 0 { "" } else { ", " };
            write!(text, "{comma}${}{cast}", parameters.len() + 1)?;
            let odd = insert.odd.filter(|(at, of, _)| *at == row && of == name);
            let value = match (odd, *type_name) {
                (Some((_, _, value)), _) => value.map(str::to_owned),
                (None, "date") if !insert.binary => Some(format!("{}-02-28", 2000 + row)),
                (None, "timestamptz") if !insert.binary => {
                    value(row).map(|_| format!("2020-01-01 00:00:{:02}+00", row % 60))
                }
                (None, _) => value(row),
            };
            parameters.push(Parameter {
                type_name: (*type_name).to_owned(),
                declared: false,
                binary: insert.binary,
                value,
            });
        }
        text.push(')');
    }
    text.push_str(insert.suffix);
    let mut bytes = BytesMut::new();
    play::put_extended(&mut bytes, &text, &parameters, Vec::new(), 0)?;
    connection.send(&bytes)?;
    answer::events(&connection.until_ready()?, &TypeNames::new())
}
