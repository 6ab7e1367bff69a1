//! The kernels of `automator67_proxy::order` order values exactly as a Postgres server does.
//!
//! For each kernel a table of random values and of the type's edges is read in binary format, in
//! the server's order. The kernel must find no value before its predecessor, and must agree with
//! the server on `<` and `=` of neighbours and of random pairs.
//!
//! Values differ from run to run. A failure tells its seed; `AUTOMATOR67_SEED` runs it again.

use std::cmp::Ordering;

use anyhow::{Context, Result, bail, ensure};
use automator67_proxy::order::{Kernel, SortKey, compare_keys};
use automator67_tests::{
    batch::Batch,
    given,
    postgres::Plain,
    wire::{Connection, values},
};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

mod literals;

const VALUES: usize = 3_000;
const PAIRS: usize = 6_000;
/// Literals of 100,000 digits are among them, so they go in parts.
const VALUES_PER_INSERT: usize = 500;
const KEY_ROWS: usize = 600;
const KEY_LISTS: usize = 60;
const KEY_PAIRS: usize = 300;

type Row = Vec<Option<Bytes>>;

#[test]
fn kernels_order_values_as_the_server_does() {
    let plain = Plain::start().expect("Postgres starts");
    let seed = given::seed("kernels");
    let mut tested = Vec::new();
    let mut failures = Vec::new();
    for &kernel in Kernel::ALL {
        match check_kernel(&plain, kernel, seed) {
            Ok(()) => tested.push(kernel),
            Err(error) => failures.push(format!("{kernel:?}: {error:#}")),
        }
    }
    assert!(
        failures.is_empty(),
        "AUTOMATOR67_SEED={seed}\n{}",
        failures.join("\n")
    );
    assert_eq!(tested, Kernel::ALL);
}

#[test]
fn lists_of_keys_order_rows_as_the_server_does() {
    let plain = Plain::start().expect("Postgres starts");
    let seed = given::seed("kernels");
    check_keys(&plain, seed)
        .with_context(|| format!("AUTOMATOR67_SEED={seed}"))
        .expect("the orders agree");
}

/// The columns whose order a kernel claims to know: type and collation. No wildcard arm: a new
/// kernel does not compile before it says here what it is tested with, and in
/// [`literals::random`] and [`literals::edges`] with which values.
fn columns(kernel: Kernel, bytewise: &[String]) -> Vec<String> {
    let collated = |types: &[&str]| {
        types
            .iter()
            .flat_map(|name| {
                bytewise
                    .iter()
                    .map(move |collation| format!("{name} collate \"{collation}\""))
            })
            .collect()
    };
    match kernel {
        Kernel::TextC => collated(&["text", "varchar"]),
        Kernel::BpcharC => collated(&["bpchar", "char(40)"]),
        // Without a clause: its collation is C by itself.
        Kernel::Name => [vec!["name".to_owned()], collated(&["name"])].concat(),
        Kernel::Varbit => vec!["varbit".to_owned(), "bit(20)".to_owned()],
        Kernel::Inet => vec!["inet".to_owned(), "cidr".to_owned()],
        Kernel::Bool
        | Kernel::Int2
        | Kernel::Int4
        | Kernel::Int8
        | Kernel::Oid
        | Kernel::Float4
        | Kernel::Float8
        | Kernel::Numeric
        | Kernel::Date
        | Kernel::Time
        | Kernel::TimeTz
        | Kernel::Timestamp
        | Kernel::TimestampTz
        | Kernel::Interval
        | Kernel::Uuid
        | Kernel::Bytea
        | Kernel::Char
        | Kernel::Money
        | Kernel::PgLsn
        | Kernel::Macaddr
        | Kernel::Macaddr8 => vec![kernel.sql_type().to_owned()],
    }
}

/// The server's collations that the planner may call bytewise.
fn bytewise_collations(connection: &mut Connection) -> Result<Vec<String>> {
    let rows = connection.rows(
        "select distinct collname from pg_collation
         where collname in ('C', 'POSIX', 'C.UTF-8', 'C.utf8', 'pg_c_utf8')
           and collencoding in (-1, 6)",
    )?;
    let names: Vec<String> = rows.into_iter().flatten().flatten().collect();
    ensure!(names.iter().any(|name| name == "C"), "{names:?}");
    Ok(names)
}

fn check_kernel(plain: &Plain, kernel: Kernel, seed: u64) -> Result<()> {
    let mut connection = Connection::open(&plain.server)?;
    let mut random = StdRng::seed_from_u64(seed);
    let bytewise = bytewise_collations(&mut connection)?;
    for column in columns(kernel, &bytewise) {
        check_column(&mut connection, kernel, &column, &mut random).context(column)?;
    }
    connection.terminate()
}

fn check_column(
    connection: &mut Connection,
    kernel: Kernel,
    column: &str,
    random: &mut StdRng,
) -> Result<()> {
    fill(connection, kernel, column, random)?;
    check_type(connection, kernel)?;
    let sorted = binary(
        connection,
        "select v, lag(v) over w,
                case when lag(v) over w < v then -1 when lag(v) over w = v then 0 else 1 end
         from sample window w as (order by v) order by v",
    )?;
    ensure!(sorted.len() >= literals::edges(kernel).len());
    for pair in sorted.windows(2) {
        let [Some(left), Some(right)] = [&pair[0][0], &pair[1][0]] else {
            bail!("a NULL in {pair:?}");
        };
        let order = kernel.compare(left, right)?;
        ensure!(order.is_le(), "server has {left:?} before {right:?}");
        // Equal rows may stand in another order in the window, but equal they are.
        agree(kernel, &pair[1][1..2], &pair[1][..1], &pair[1][2])?;
    }
    let pairs = binary(
        connection,
        "select a.v, b.v, case when a.v < b.v then -1 when a.v = b.v then 0 else 1 end
         from pairs join sample a on a.id = pairs.a join sample b on b.id = pairs.b",
    )?;
    ensure!(pairs.len() == PAIRS, "{} pairs", pairs.len());
    for pair in &pairs {
        agree(kernel, &pair[..1], &pair[1..2], &pair[2])?;
    }
    Ok(())
}

/// Compares one value of each row, and its answer with the server's.
fn agree(
    kernel: Kernel,
    left: &[Option<Bytes>],
    right: &[Option<Bytes>],
    server: &Option<Bytes>,
) -> Result<()> {
    let ([Some(left), Some(right)], Some(server)) = ([&left[0], &right[0]], server) else {
        bail!("a NULL among the values");
    };
    let server = number(server)?.cmp(&0);
    let ours = kernel.compare(left, right)?;
    ensure!(
        ours == server,
        "{left:?} to {right:?} is {ours:?}, {server:?} to the server"
    );
    Ok(())
}

fn number(bytes: &[u8]) -> Result<i64> {
    Ok(match bytes.len() {
        4 => i64::from(i32::from_be_bytes(bytes.try_into()?)),
        _ => i64::from_be_bytes(bytes.try_into()?),
    })
}

/// Makes `sample (id, v)` and `pairs (a, b)`.
fn fill(
    connection: &mut Connection,
    kernel: Kernel,
    column: &str,
    random: &mut StdRng,
) -> Result<()> {
    connection.execute("drop table if exists sample, pairs")?;
    connection.execute(&format!(
        "create temp table sample (id int generated always as identity (minvalue 0), v {column})"
    ))?;
    let mut expressions = edges(connection, kernel)?;
    let edges = expressions.len();
    expressions.resize_with(VALUES.max(2 * expressions.len()), || {
        literals::random(kernel, random)
    });
    let cast = column.split(" collate").next().unwrap_or(column);
    for part in expressions.chunks(VALUES_PER_INSERT) {
        // Casts cut what is too long for a column, where an assignment would refuse it.
        let rows: Vec<String> = part
            .iter()
            .map(|value| format!("((({value})::{})::{cast})", kernel.sql_type()))
            .collect();
        connection.execute(&format!("insert into sample (v) values {}", rows.join(",")))?;
    }
    let count = expressions.len();
    let pairs: Vec<String> = (0..PAIRS)
        .map(|number| {
            // Every other pair is of two edges.
            let among = if number % 2 == 0 { edges } else { count };
            let (a, b) = (random.random_range(0..among), random.random_range(0..among));
            format!("({a},{b})")
        })
        .collect();
    connection.execute("create temp table pairs (a int, b int)")?;
    connection.execute(&format!("insert into pairs values {}", pairs.join(",")))?;
    Ok(())
}

/// The edges that this server's version has.
fn edges(connection: &mut Connection, kernel: Kernel) -> Result<Vec<String>> {
    let version = connection
        .execute("select current_setting('server_version_num')")?
        .context("a version")?;
    let newer: &[&str] = match kernel {
        Kernel::Interval if version.parse::<u32>()? >= 170_000 => &["'infinity'", "'-infinity'"],
        _ => &[],
    };
    let edges = literals::edges(kernel).iter().chain(newer);
    Ok(edges.map(|&edge| edge.to_owned()).collect())
}

/// The column's type leads to the kernel.
fn check_type(connection: &mut Connection, kernel: Kernel) -> Result<()> {
    let oid = connection
        .execute("select atttypid from pg_attribute where attrelid = 'sample'::regclass and attname = 'v'")?
        .context("a type")?;
    let found = Kernel::of_type(oid.parse()?, true);
    ensure!(found == Some(kernel), "type {oid} has {found:?}");
    Ok(())
}

/// Rows of a query, in binary format.
fn binary(connection: &mut Connection, query: &str) -> Result<Vec<Row>> {
    // Unnamed portal and statement, no parameters, all results in binary.
    let bind = b"\0\0\0\0\0\0\0\x01\0\x01";
    let batch = Batch::new().parse("", query).message(b'B', bind);
    let batch = batch.execute("", 0).sync();
    let mut rows = Vec::new();
    for frame in connection.batch(&batch)? {
        match frame.tag {
            b'D' => rows.push(values(&frame.body)?),
            b'E' => bail!("{query}: {}", frame.field(b'M').unwrap_or_default()),
            _ => {}
        }
    }
    Ok(rows)
}

/// What the rows' keys are made of: few values per column, so that later keys matter.
const KEY_COLUMNS: &[(Kernel, &str, &[&str])] = &[
    (Kernel::Int4, "int4", &["1", "2", "-3", "null"]),
    (
        Kernel::TextC,
        "text collate \"C\"",
        &["''", "'a'", "'B'", "'ab'", "'é'", "null"],
    ),
    (
        Kernel::Numeric,
        "numeric",
        &["1.0", "1.00", "'NaN'", "'-Infinity'", "0", "null"],
    ),
    (
        Kernel::Float8,
        "float8",
        &["'-0'", "0", "'NaN'", "1", "null"],
    ),
    (
        Kernel::Interval,
        "interval",
        &["'1 mon'", "'30 days'", "'-1 day'", "null"],
    ),
];

fn check_keys(plain: &Plain, seed: u64) -> Result<()> {
    let mut connection = Connection::open(&plain.server)?;
    let mut random = StdRng::seed_from_u64(seed);
    let columns: Vec<String> = KEY_COLUMNS
        .iter()
        .enumerate()
        .map(|(number, (_, column, _))| format!("v{number} {column}"))
        .collect();
    connection.execute(&format!("create temp table rows ({})", columns.join(",")))?;
    let rows: Vec<String> = (0..KEY_ROWS)
        .map(|_| {
            let values: Vec<&str> = KEY_COLUMNS
                .iter()
                .filter_map(|(_, _, values)| values.choose(&mut random).copied())
                .collect();
            format!("({})", values.join(","))
        })
        .collect();
    connection.execute(&format!("insert into rows values {}", rows.join(",")))?;
    for _ in 0..KEY_LISTS {
        check_key_list(&mut connection, &mut random)?;
    }
    // What SQL implies when NULLS is not said.
    for number in 0..KEY_COLUMNS.len() {
        for (descending, text) in [(false, ""), (true, "desc")] {
            let key = key(number, descending, descending);
            let clause = format!("v{number} {text}");
            check_clause(
                &mut connection,
                &[key],
                &format!("v{number}"),
                &clause,
                &mut random,
            )?;
        }
    }
    connection.terminate()
}

fn key(column: usize, descending: bool, nulls_first: bool) -> SortKey {
    SortKey {
        kernel: KEY_COLUMNS[column].0,
        descending,
        nulls_first,
    }
}

/// One to three random keys.
fn check_key_list(connection: &mut Connection, random: &mut StdRng) -> Result<()> {
    let (mut keys, mut columns, mut clauses) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..random.random_range(1..=3) {
        let column = random.random_range(0..KEY_COLUMNS.len());
        let key = key(column, random.random(), random.random());
        columns.push(format!("v{column}"));
        clauses.push(format!(
            "v{column} {} nulls {}",
            if key.descending { "desc" } else { "asc" },
            if key.nulls_first { "first" } else { "last" },
        ));
        keys.push(key);
    }
    check_clause(
        connection,
        &keys,
        &columns.join(","),
        &clauses.join(","),
        random,
    )
}

/// `dense_rank` gives rows the same number exactly when ORDER BY calls them equal.
fn check_clause(
    connection: &mut Connection,
    keys: &[SortKey],
    columns: &str,
    clause: &str,
    random: &mut StdRng,
) -> Result<()> {
    let rows = binary(
        connection,
        &format!(
            "select {columns}, dense_rank() over (order by {clause}) from rows order by {clause}"
        ),
    )?;
    ensure!(rows.len() == KEY_ROWS, "{} rows", rows.len());
    for pair in rows.windows(2) {
        check_rows(keys, &pair[0], &pair[1]).context(clause.to_owned())?;
        ensure!(rank(&pair[0])? <= rank(&pair[1])?);
    }
    for _ in 0..KEY_PAIRS {
        let (Some(left), Some(right)) = (rows.choose(random), rows.choose(random)) else {
            bail!("no rows");
        };
        check_rows(keys, left, right).context(clause.to_owned())?;
    }
    Ok(())
}

fn check_rows(keys: &[SortKey], left: &Row, right: &Row) -> Result<()> {
    let server = rank(left)?.cmp(&rank(right)?);
    let ours = order_of(keys, left, right)?;
    ensure!(
        ours == server,
        "{left:?} to {right:?} is {ours:?}, {server:?} to the server"
    );
    Ok(())
}

fn rank(row: &Row) -> Result<i64> {
    let rank = row.last().and_then(Option::as_ref).context("a rank")?;
    number(rank)
}

fn order_of(keys: &[SortKey], left: &Row, right: &Row) -> Result<Ordering> {
    let [left, right] = [left, right].map(|row| -> Vec<Option<&[u8]>> {
        row[..keys.len()].iter().map(Option::as_deref).collect()
    });
    Ok(compare_keys(keys, &left, &right)?)
}
