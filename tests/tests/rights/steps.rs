//! A statement that runs as several asks for the rights that Postgres asks for, and no other rights
//! than those are of use.

use anyhow::{Context, Result, ensure};
use automator67_tests::wire::Connection;

use super::Cluster;

pub fn check(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    for text in [
        "create table moved (a integer primary key, b integer)",
        "select create_distributed_table('moved', 'a')",
        "insert into moved select g, g from generate_series(1, 20) g",
        "create table news (n integer, t integer)",
        "insert into news values (3, 1), (77, 2)",
        "grant select on news, moved to low",
        "grant insert, delete on moved to low",
    ] {
        owner.execute(text)?;
    }
    let mut low = cluster.through("low")?;
    let merge = "merge into moved using news on moved.b = news.n \
        when matched then update set b = moved.b + 100 \
        when not matched then insert values (n, t)";
    let denied = [
        "update moved set a = a + 100 where a = 3",
        "update moved set a = a + 100",
        "update moved set a = a + 100 where a = 1000",
        merge,
    ];
    for text in denied {
        let (code, message) = low.failure(text)?;
        let told = format!("{code} {message}");
        ensure!(
            told == "42501 permission denied for table moved",
            "{text}: {told}"
        );
    }
    owner.execute("grant update (b) on moved to low")?;
    let (code, _) = low.failure("update moved set a = a + 100, b = 1 where a = 3")?;
    ensure!(code == "42501", "{code}");
    let changed = low.execute("update moved set b = b + 1 where a = 3 returning b")?;
    ensure!(changed.as_deref() == Some("4"), "{changed:?}");

    // Rows are deleted and inserted for it, which the role may not.
    owner.execute("grant update on moved to low")?;
    owner.execute("revoke delete on moved from low")?;
    let (code, message) = low.failure("update moved set a = a + 100 where a = 3")?;
    ensure!(
        code == "0A000" && message.contains("more rights than UPDATE"),
        "{code} {message}"
    );
    owner.execute("grant delete on moved to low")?;
    low.execute("update moved set a = a + 100 where a = 3")?;
    let rows = owner.execute("select count(*) from moved where a between 1 and 20 or a = 103")?;
    ensure!(rows.as_deref() == Some("20"), "{rows:?}");
    numbers(cluster)?;
    filled(cluster)
}

/// Columns that a sequence fills: Postgres fills them unasked, the proxy says what it needs for it.
fn filled(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    for text in [
        "create table filled (id bigserial primary key, v text)",
        "select create_distributed_table('filled', 'id')",
        "grant insert (v) on filled to low",
        "grant usage on sequence filled_id_seq to low",
    ] {
        owner.execute(text)?;
    }
    let mut low = cluster.through("low")?;
    for text in [
        "insert into filled (v) values ('x')",
        "insert into filled (v) select 'x' from news",
    ] {
        let (code, detail) = failure_in_detail(&mut low, text)?;
        ensure!(
            code == "42501" && detail.contains("needs INSERT on it"),
            "{text}: {code} {detail}"
        );
    }
    owner.execute("grant insert (id) on filled to low")?;
    low.execute("insert into filled (v) values ('x'), ('y')")?;
    let rows = owner.execute("select count(*) from filled")?;
    ensure!(rows.as_deref() == Some("2"), "{rows:?}");
    let mut mid = cluster.through("mid")?;
    let (code, detail) = failure_in_detail(&mut mid, "insert into filled (v) values ('x')")?;
    ensure!(code == "42501" && detail.is_empty(), "{code} {detail}");
    Ok(())
}

/// The SQLSTATE and the detail of an error.
fn failure_in_detail(connection: &mut Connection, text: &str) -> Result<(String, String)> {
    let frames = connection.simple(text)?;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    let error = error.with_context(|| format!("{text} did not fail"))?;
    let field = |code| error.field(code).unwrap_or_default();
    Ok((field(b'C'), field(b'D')))
}

/// A view whose text stands in for it, as its numbers are summed.
fn numbers(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    owner.execute("create view relations as select relname, reltuples from pg_class")?;
    owner.execute("analyze moved")?;
    let mut low = cluster.through("low")?;
    let text = "select reltuples from relations where relname = 'moved'";
    let (code, message) = low.failure(text)?;
    ensure!(
        code == "42501" && message.contains("permission denied for view relations"),
        "{code} {message}"
    );
    owner.execute("grant select (relname) on relations to low")?;
    let (code, _) = low.failure(text)?;
    ensure!(code == "42501", "{code}");
    owner.execute("grant select on relations to low")?;
    let found = low.execute(text)?;
    ensure!(found.as_deref() == Some("20"), "{found:?}");
    Ok(())
}
