//! Numbers of a distributed table are those of all its shards, and what asks about the client or acts
//! on a server is answered for the client or refused before anything is done.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    batch::Batch,
    checks,
    pair::Pair,
    wait,
    wire::{Connection, Frame, values},
};

/// How soon servers have told what they have counted.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn what_belongs_to_a_server() {
    let pair = Pair::start(3).expect("servers start");
    let prepare = || -> Result<()> {
        let mut proxy = pair.a.connect()?;
        for text in [
            "create table t (a integer primary key, b integer, e text)",
            "create index t_b on t (b)",
            "select create_distributed_table('t', 'a')",
            "create table near (a integer primary key)",
            "select create_distributed_table('near', 'a', colocate_with => 't')",
            "create table kind (k integer primary key)",
            "select create_reference_table('kind')",
            "create table loc (n integer, note text)",
            "insert into t select g, g % 7, repeat('x', 100) from generate_series(1, 3000) g",
            "insert into kind select g from generate_series(1, 50) g",
            "insert into loc values (1, 'one')",
            "analyze t",
            "analyze kind",
            "analyze loc",
        ] {
            proxy.execute(text).with_context(|| text.to_owned())?;
        }
        Ok(())
    };
    prepare().expect("tables are made");
    checks::run(
        &pair,
        &[
            ("sizes are sums", sizes),
            ("row estimates are sums", estimates),
            ("counters are sums", counters),
            ("numbers that are no sum are refused", no_shares),
            ("what tools ask works", tools),
            ("who asks is the client", asker),
            ("sessions are cancelled and ended", signals),
            ("effects of a server", effects),
        ],
    );
}

/// The sum of a number over all shards.
fn sum(pair: &Pair, text: &str) -> Result<i64> {
    let mut sum = 0;
    for shard in 0..pair.shard_count() {
        let value = Connection::open(pair.shard(shard))?.execute(text)?;
        sum += value.context("a number")?.parse::<i64>()?;
    }
    Ok(sum)
}

fn number(connection: &mut Connection, text: &str) -> Result<i64> {
    let value = connection.execute(text).with_context(|| text.to_owned())?;
    Ok(value.with_context(|| format!("NULL: {text}"))?.parse()?)
}

/// All of a message as text.
fn words(frame: &Frame) -> String {
    String::from_utf8_lossy(&frame.body).into_owned()
}

fn sizes(pair: &Pair) -> Result<()> {
    let mut proxy = pair.a.connect()?;
    for call in [
        "pg_total_relation_size('t')",
        "pg_table_size('public.t'::regclass)",
        "pg_indexes_size('t')",
        "pg_relation_size('t')",
        "pg_catalog.pg_relation_size('t', 'fsm')",
        "pg_relation_size('t_b')",
        "pg_relation_size('t_pkey'::regclass) + pg_relation_size('near')",
        "pg_database_size(current_database())",
    ] {
        let text = format!("select {call}");
        let (whole, shares) = (number(&mut proxy, &text)?, sum(pair, &text)?);
        ensure!(whole == shares, "{call} is {whole}, not {shares}");
    }
    let one = sum(pair, "select pg_relation_size('t')")?;
    for text in [
        "select pg_relation_size(oid) from pg_class where relname = 't'",
        "select pg_relation_size(c.oid::regclass) from pg_catalog.pg_class c where c.oid = 't'::regclass",
        "with x as (select oid from pg_class where relname = 't') select pg_relation_size(x.oid) from x",
        "select max(size) from (select pg_relation_size(c.oid) as size from pg_class c where relname in ('t', 'near')) s",
        "select pg_relation_size('t') from loc",
    ] {
        let whole = number(&mut proxy, text)?;
        ensure!(whole == one, "{text}: {whole}, not {one}");
    }
    // The names of outputs are those of one Postgres.
    let frames = proxy.simple(
        "select pg_relation_size('t'), pg_relation_size('t')::text, 1 + pg_relation_size('t')",
    )?;
    let names = words(&frames[0]);
    ensure!(
        names.matches("pg_relation_size").count() == 2 && names.contains("?column?"),
        "{names}"
    );
    let frames = proxy.batch(
        &Batch::new()
            .parse("", "select pg_relation_size($1)")
            .bind("", "", &[Some("t")])
            .execute("", 0)
            .sync(),
    )?;
    let row = frames
        .iter()
        .find(|frame| frame.tag == b'D')
        .context("a row")?;
    ensure!(values(&row.body)?[0].as_deref() == Some(one.to_string().as_bytes()));
    // A reference table counts once, a local one is what it is.
    let home = pair.shard(0);
    for table in ["kind", "loc"] {
        let text = format!("select pg_total_relation_size('{table}')");
        let (whole, at_home) = (
            number(&mut proxy, &text)?,
            number(&mut Connection::open(home)?, &text)?,
        );
        ensure!(whole == at_home, "{table}: {whole}, not {at_home}");
    }
    Ok(())
}

fn estimates(pair: &Pair) -> Result<()> {
    let mut proxy = pair.a.connect()?;
    for text in [
        "select reltuples from pg_class where relname = 't'",
        "select reltuples::bigint as estimate from pg_class where oid = 't'::regclass",
        "select c.reltuples from pg_catalog.pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'public' and c.relname = 't'",
        "select sum(reltuples) from pg_class where relname in ('t', 'near') and reltuples > 0",
        "select reltuples from pg_class where relname = 't' group by relname, reltuples",
        "select max(x.reltuples) from (select reltuples from pg_class where relname = 't') x",
        "select (select reltuples from pg_class where relname = 't') from loc",
        "select reltuples from pg_class where relname = 't_pkey'",
        "select x.reltuples from (select c.oid, c.*, d.description from pg_catalog.pg_class c left join pg_description d on d.objoid = c.oid) x where x.relname = 't'",
        "select (c).reltuples from pg_class c where relname = 't'",
    ] {
        let rows = number(&mut proxy, text)?;
        ensure!(rows == 3000, "{text}: {rows}");
    }
    let pages = number(
        &mut proxy,
        "select relpages from pg_class where relname = 't'",
    )?;
    let shares = sum(pair, "select relpages from pg_class where relname = 't'")?;
    ensure!(pages == shares, "{pages} pages, not {shares}");
    let copies = number(
        &mut proxy,
        "select reltuples from pg_class where relname = 'kind'",
    )?;
    ensure!(copies == 50, "{copies}");
    let order = proxy.rows(
        "select relname, reltuples from pg_class where relname in ('t', 'kind', 'loc') order by reltuples desc",
    )?;
    let names: Vec<_> = order.iter().map(|row| row[0].as_deref()).collect();
    ensure!(names == [Some("t"), Some("kind"), Some("loc")], "{names:?}");
    // Nobody has looked at it yet.
    proxy.execute("create table fresh (a integer primary key)")?;
    proxy.execute("select create_distributed_table('fresh', 'a')")?;
    let unknown = number(
        &mut proxy,
        "select reltuples from pg_class where relname = 'fresh'",
    )?;
    ensure!(unknown == -1, "{unknown}");
    Ok(())
}

fn counters(pair: &Pair) -> Result<()> {
    let mut proxy = pair.a.connect()?;
    // Each process of a server tells what it has counted when it has time for it.
    let mut compare = |column: &str, text: &str, of_shard: &str| -> Result<()> {
        wait::until(text, SOON, || {
            let whole = number(&mut proxy, text).ok()?;
            let shares = sum(pair, of_shard).ok()?;
            (whole == shares && (whole >= 3000 || column != "n_live_tup")).then_some(())
        })?;
        Ok(())
    };
    let of = |column: &str, view: &str| format!("select {column} from {view} where relname = 't'");
    let tables = of("n_live_tup", "pg_stat_user_tables");
    for text in [
        "select n_live_tup from pg_stat_user_tables where relname = 't'",
        "select s.n_live_tup from pg_stat_all_tables s where s.relid = 't'::regclass",
        "select sum(n_live_tup) from pg_catalog.pg_stat_user_tables where relname in ('t', 'near')",
        "select n_live_tup from pg_stat_user_tables where relname = 't' order by n_live_tup desc",
        "select x.n_live_tup from (select * from pg_stat_user_tables) x where relname = 't'",
        "select to_jsonb(s)->>'n_live_tup' from pg_stat_user_tables s where s.relname = 't'",
    ] {
        compare("n_live_tup", text, &tables)?;
    }
    for (column, view) in [
        ("n_tup_ins", "pg_stat_user_tables"),
        ("seq_scan", "pg_stat_all_tables"),
        ("heap_blks_hit + heap_blks_read", "pg_statio_user_tables"),
        ("sum(idx_scan)", "pg_stat_user_indexes"),
        ("sum(idx_blks_hit)", "pg_statio_user_indexes"),
    ] {
        let text = of(column, view);
        compare(column, &text, &text)?;
    }
    Ok(())
}

fn no_shares(pair: &Pair) -> Result<()> {
    let mut proxy = pair.a.connect()?;
    for text in [
        "select c.*, a from pg_class c, t",
        "select a, pg_relation_size('t') from t",
        "select pg_relation_size('t') from t where a = 1",
        "insert into loc (n) select reltuples from pg_class where relname = 't'",
        "update t set b = pg_relation_size('t')",
        "create table copy as select relname, reltuples from pg_class",
        "select pg_current_xact_id_if_assigned()",
        "select prepare_time from pg_prepared_statements",
        "select * from pg_prepared_statements",
    ] {
        let (state, message) = proxy.failure(text)?;
        ensure!(state == "0A000", "{text}: {state} {message}");
    }
    Ok(())
}

/// What psql and pg_dump read.
fn tools(pair: &Pair) -> Result<()> {
    let mut proxy = pair.a.connect()?;
    let size = sum(pair, "select pg_table_size('t')")?;
    let listed = proxy.execute(
        r#"SELECT pg_catalog.pg_table_size(c.oid) as "Size"
        FROM pg_catalog.pg_class c
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
        WHERE c.relkind IN ('r','p','') AND n.nspname !~ '^pg_toast'
          AND c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default
          AND pg_catalog.pg_table_is_visible(c.oid)
        ORDER BY 1"#,
    )?;
    ensure!(listed == Some(size.to_string()), "{listed:?}, not {size}");
    for text in [
        "select exists (select * from pg_class where relname = 't')",
        "select c.tableoid, c.oid, c.relname, c.relpages, c.relkind from pg_catalog.pg_class c where c.relkind in ('r', 'S') order by c.oid",
        "select relname, relkind, relhasindex from pg_class where oid = 't'::regclass",
        "select d.datname, pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(d.datname)) from pg_catalog.pg_database d where d.datallowconn and d.datname = current_database()",
        "select count(*) from pg_cursors",
        "select name from pg_prepared_statements",
    ] {
        proxy.execute(text).with_context(|| text.to_owned())?;
    }
    Ok(())
}

fn asker(pair: &Pair) -> Result<()> {
    let mut client = pair.a.connect()?;
    let address = client.execute("select inet_client_addr()")?;
    ensure!(address.as_deref() == Some("127.0.0.1"), "{address:?}");
    let port = client
        .execute("select inet_client_port()")?
        .context("a port")?;
    for text in [
        "select inet_client_port() from t where a = 5",
        "select distinct inet_client_port() from t",
        "select min(inet_client_port()) from t",
        "select host(inet_client_addr()) || ':' || inet_client_port() from loc",
        "insert into loc (n, note) values (inet_client_port(), 'port') returning n",
        "update t set b = inet_client_port() where a = 7 returning b",
        "with x as (select inet_client_port() as p) select p from x, t where a = 1",
    ] {
        let value = client.execute(text).with_context(|| text.to_owned())?;
        let value = value.context("a value")?;
        ensure!(value.ends_with(&port), "{text}: {value}, not {port}");
    }
    for (prepare, text) in [
        ("prepare p as select inet_client_port()", "execute p"),
        (
            "prepare q (int) as select $1",
            "execute q (inet_client_port())",
        ),
        (
            "begin; declare c cursor for select inet_client_port()",
            "fetch c",
        ),
        (
            "end; create table made as select inet_client_port()",
            "select inet_client_port from made",
        ),
        (
            "select inet_client_port() as port into also from t where a = 5",
            "select port from also",
        ),
    ] {
        client.simple(prepare)?;
        let value = client.execute(text).with_context(|| text.to_owned())?;
        ensure!(
            value.as_ref() == Some(&port),
            "{text}: {value:?}, not {port}"
        );
    }
    for text in [
        "select current_query()",
        "select current_query() from t where a = 5 -- it's",
        "select max(current_query()) from t",
        "insert into loc (note) values (current_query()) returning note",
    ] {
        let value = client.execute(text)?;
        ensure!(value.as_deref() == Some(text), "{value:?}");
    }
    let own = client.process;
    for text in [
        "select pg_backend_pid()",
        "select pg_catalog.pg_backend_pid() as pid from t where a = 9",
        "insert into loc (n) values (pg_backend_pid()) returning n",
    ] {
        let pid = client.execute(text)?;
        ensure!(pid == Some(own.to_string()), "{text}: {pid:?}, not {own}");
    }
    let frames =
        client.simple("select pg_backend_pid(), inet_client_addr()::text, 1 + pg_backend_pid()")?;
    let names = words(&frames[0]);
    for name in ["pg_backend_pid", "inet_client_addr", "?column?"] {
        ensure!(names.contains(name), "{name} in {names}");
    }
    // Beside the views of a server's processes it is the process there.
    let found =
        client.execute("select count(*) from pg_stat_activity where pid = pg_backend_pid()")?;
    ensure!(found.as_deref() == Some("1"), "{found:?}");
    Ok(())
}

/// The process id of a session is what it is cancelled and ended by, whatever shards it uses.
fn signals(pair: &Pair) -> Result<()> {
    let mut client = pair.a.connect()?;
    let mut home = Connection::open(pair.shard(0))?;
    for (text, values) in [
        ("select pg_cancel_backend({})", vec![]),
        (
            "select pg_catalog.pg_cancel_backend({}::integer) as done",
            vec![],
        ),
        ("select pg_cancel_backend($1)", vec!["{}"]),
    ] {
        let mut other = pair.a.connect()?;
        let own = other.process.to_string();
        other.send(
            Batch::new()
                .query("select pg_sleep(61) from loc limit 1")
                .bytes(),
        )?;
        wait::until("the statement to run", SOON, || {
            let text = "select count(*) from pg_stat_activity where state = 'active' and query ~ '^select pg_sleep.61'";
            (home.execute(text).ok()?.as_deref() == Some("1")).then_some(())
        })?;
        let values: Vec<String> = values
            .iter()
            .map(|value| value.replace("{}", &own))
            .collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let batch = Batch::new().run(&text.replace("{}", &own), &values).sync();
        let frames = client.batch(&batch)?;
        let row = frames
            .iter()
            .find(|frame| frame.tag == b'D')
            .context("a row")?;
        ensure!(values_of(row)? == [Some("t".to_owned())], "{text}");
        let frames = other.until_ready()?;
        let error = frames
            .iter()
            .find(|frame| frame.tag == b'E')
            .context("an error")?;
        ensure!(
            error.field(b'C').as_deref() == Some("57014"),
            "{:?}",
            error.field(b'M')
        );
        other.execute("select 1")?;
        let ended = client.execute(&format!("select pg_terminate_backend({own})"))?;
        ensure!(ended.as_deref() == Some("t"), "{ended:?}");
        ensure!(other.is_closed()?, "the session goes on");
    }
    // A process of the home shard, and nobody's number.
    let server = home
        .execute("select pg_backend_pid()")?
        .context("a number")?;
    for (pid, done) in [(server.as_str(), "t"), ("2147483647", "f")] {
        let text = format!("select pg_cancel_backend({pid})");
        let value = client.execute(&text)?;
        ensure!(value.as_deref() == Some(done), "{text}: {value:?}");
    }
    Ok(())
}

fn values_of(row: &Frame) -> Result<Vec<Option<String>>> {
    let values = values(&row.body)?.into_iter();
    Ok(values
        .map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned()))
        .collect())
}

fn effects(pair: &Pair) -> Result<()> {
    let mut client = pair.a.connect()?;
    let before = client.rows("select a, b from t order by a")?;
    for text in [
        "update t set a = a where a = 1 returning pg_notify('ch', 'u')",
        "update t set a = a + 10000 where b = 1 returning pg_notify('ch', 'u')",
        "update t set b = b where a = 2 returning pg_notify('ch', 'u')",
        "update t set b = b returning pg_notify('ch', 'u')",
        "delete from t where a in (1, 2, 3) returning pg_notify('ch', a::text)",
        "insert into t (a) values (20001) returning pg_notify('ch', 'u')",
        "insert into t (a) values (20001), (20002) returning pg_notify('ch', 'u')",
        "insert into t (a) select 20000 + g from generate_series(1, 3) g returning pg_notify('ch', 'u')",
        "insert into kind values (1000) returning pg_notify('ch', 'u')",
        "with gone as (delete from t where a < 5 returning pg_notify('ch', 'u')) select 1",
    ] {
        let (state, message) = client.failure(text)?;
        ensure!(state == "0A000", "{text}: {state} {message}");
    }
    let after = client.rows("select a, b from t order by a")?;
    ensure!(before == after, "something was done before it was refused");
    let mut listener = pair.a.connect()?;
    listener.execute("listen ch")?;
    for text in [
        "select pg_notify('ch', 'plain')",
        "select pg_notify('ch', 'key') from t where a = 5",
        "select pg_notify('ch', 'all') from t where a in (1, 2, 3)",
        "insert into loc (n) values (5) returning pg_notify('ch', 'local')",
    ] {
        client.execute(text).with_context(|| text.to_owned())?;
    }
    for payload in ["plain", "key", "all", "local"] {
        let frame = loop {
            let frame = listener.receive()?;
            if frame.tag == b'A' {
                break frame;
            }
        };
        ensure!(
            words(&frame).contains(payload),
            "{payload}: {}",
            words(&frame)
        );
    }
    Ok(())
}
