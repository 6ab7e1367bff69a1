//! Views are read with the rights of their owners, and nobody reads one that they may not read: also
//! where its text stands in for it.

use anyhow::{Result, ensure};

use super::Cluster;

/// Statements over several shards that read a view, with the text of the view in its place.
const READS: &[&str] = &[
    "select rank() over (order by a) from {v}",
    "select sum(b) over () from {v} where a > 3",
    "select count(*) from {v} one join {v} other on one.b = other.a",
    "with x as (select * from {v}) select row_number() over (order by b) from x",
    "select a from {v} where b in (select max(b) from {v} group by b % 3) order by a",
    "select distinct on (b) b, a, lag(a) over (order by a) from {v} order by b, a",
    "select a, rank() over (order by b) from (select * from {v} limit 7) few",
    "explain (analyze, costs off) select rank() over (order by a) from {v}",
    "explain select rank() over (order by a) from {v}",
    "copy (select rank() over (order by a) from {v}) to stdout",
    "insert into own select rank() over (order by a) from {v}",
    "create temporary table mine as select rank() over (order by a) as r from {v}",
];

pub fn check(cluster: &Cluster) -> Result<()> {
    prepare(cluster)?;
    let mut low = cluster.through("low")?;
    low.execute("create temporary table own (r bigint)")?;
    for text in READS {
        // The table alone, the view alone in another view's text, one column of two.
        for (view, table) in [("closed", "closed"), ("behind", "closed"), ("half", "half")] {
            let mut text = text.replace("{v}", view);
            if view == "half" {
                text = text.replace("(order by a)", "(order by b)");
            }
            let (code, message) = low.failure(&text)?;
            let told = format!("{code} {message}");
            ensure!(
                told.starts_with("42501")
                    && told.contains(&format!("permission denied for view {table}")),
                "{text}: {told}"
            );
        }
        low.simple(&text.replace("{v}", "open"))?;
        low.execute("drop table if exists mine")?;
    }
    let ranks =
        low.execute("select sum(r) from (select rank() over (order by a) as r from open) s")?;
    ensure!(ranks.as_deref() == Some("1830"), "{ranks:?}");
    in_place(cluster)?;
    lost(cluster)
}

fn prepare(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    for text in [
        "create table t (a integer primary key, b integer)",
        "select create_distributed_table('t', 'a')",
        "insert into t select g, g % 7 from generate_series(1, 60) g",
        "create view open as select * from t",
        "create view closed as select * from t",
        "create view behind as select * from closed",
        "create view half as select * from t",
        "create view joined as select one.a, other.b from t one join t other on one.a = other.b",
        "grant select on t, open, behind, joined to low",
        "grant select (a) on half to low",
        // Nobody owns it who may read what is behind it.
        "alter view behind owner to mid",
        "grant select on t to mid",
    ] {
        owner.execute(text)?;
    }
    Ok(())
}

/// Who may read the view, and not the table: natively where shards run the client's own text, else it
/// is refused with a way out, and never said of the wrong one.
fn in_place(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    for text in [
        "revoke select on t from low",
        "create table other (word text primary key, n integer)",
        "select create_distributed_table('other', 'word')",
        "create view sums as select t.b, count(*) as n from t left join other on other.n = t.b group by t.b",
        "grant select on sums to low",
    ] {
        owner.execute(text)?;
    }
    let mut low = cluster.through("low")?;
    for (text, expected) in [
        ("select count(*) from open", "60"),
        ("select sum(a) from open where b < 3", "783"),
        ("select b from open where a = 10", "3"),
        (
            "select max(a) from open group by b order by 1 limit 1",
            "54",
        ),
    ] {
        let found = low.execute(text)?;
        ensure!(found.as_deref() == Some(expected), "{text}: {found:?}");
    }
    for text in [
        "select rank() over (order by a) from open",
        "select n from sums union select 1",
        "select (select max(n) from sums), a from open where a < 3",
        // One side of the join is moved.
        "select count(*) from joined",
    ] {
        let (code, message) = low.failure(text)?;
        ensure!(
            code == "0A000" && message.contains("a view's owner"),
            "{text}: {code} {message}"
        );
    }
    let (code, _) = low.failure("select rank() over (order by a) from t")?;
    ensure!(code == "42501", "{code}");
    Ok(())
}

/// The view's owner may not read the table any more, who asks may.
fn lost(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    for text in [
        "grant select on t to low",
        "create view given as select * from t",
        "alter view given owner to mid",
        "grant select on given to low",
        "revoke select on t from mid",
    ] {
        owner.execute(text)?;
    }
    let mut low = cluster.through("low")?;
    for text in READS {
        if text.contains("insert") || text.contains("create") {
            continue;
        }
        let (code, message) = low.failure(&text.replace("{v}", "given"))?;
        ensure!(
            code == "42501" && message.contains("permission denied for table t"),
            "{text}: {code} {message}"
        );
    }
    Ok(())
}
