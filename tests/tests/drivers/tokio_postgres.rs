//! tokio-postgres: everything binary, and as many messages in flight as there are futures.

use std::{error::Error, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use automator67_tests::{automator::Dev, checks::Check};
use bytes::BytesMut;
use tokio::task::JoinSet;
use tokio_postgres::{
    Client, NoTls, SimpleQueryMessage,
    binary_copy::BinaryCopyInWriter,
    error::SqlState,
    types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked},
};

pub(super) const CHECKS: &[Check<Dev>] = &[
    ("tokio-postgres: prepared", |dev| run(dev, prepared)),
    ("tokio-postgres: pipelined", |dev| run(dev, pipelined)),
    ("tokio-postgres: copy", |dev| run(dev, copy)),
    ("tokio-postgres: portals", |dev| run(dev, portals)),
    ("tokio-postgres: savepoints", |dev| run(dev, savepoints)),
    ("tokio-postgres: cancel", |dev| run(dev, cancel)),
    ("tokio-postgres: enums", |dev| run(dev, enums)),
    ("tokio-postgres: texts", |dev| run(dev, texts)),
];

const CHECK_LIMIT: Duration = Duration::from_secs(60);

fn run<F>(dev: &Dev, check: fn(Client) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let url = dev.server().url()?;
    runtime.block_on(async {
        let work = async {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            tokio::spawn(connection);
            check(client).await
        };
        tokio::time::timeout(CHECK_LIMIT, work).await?
    })
}

async fn table(client: &Client, name: &str, columns: &str) -> Result<()> {
    client
        .batch_execute(&format!(
            "drop table if exists {name}; create table {name} ({columns});
             select create_distributed_table('{name}', 'id')"
        ))
        .await?;
    Ok(())
}

async fn prepared(client: Client) -> Result<()> {
    table(
        &client,
        "tp_prepared",
        "id int8 primary key, name text, score float8",
    )
    .await?;
    let insert = client
        .prepare("insert into tp_prepared values ($1, $2, $3)")
        .await?;
    ensure!(insert.params() == [Type::INT8, Type::TEXT, Type::FLOAT8]);
    ensure!(insert.columns().is_empty());
    for id in 0..50i64 {
        let name = (id % 7 != 0).then(|| format!("n{id}"));
        let changed = client
            .execute(&insert, &[&id, &name, &(id as f64 / 2.0)])
            .await?;
        ensure!(changed == 1);
    }
    let one = client
        .prepare("select * from tp_prepared where id = $1")
        .await?;
    let columns: Vec<_> = one
        .columns()
        .iter()
        .map(|c| (c.name(), c.type_()))
        .collect();
    ensure!(
        columns
            == [
                ("id", &Type::INT8),
                ("name", &Type::TEXT),
                ("score", &Type::FLOAT8)
            ]
    );
    for id in 0..50i64 {
        let row = client.query_one(&one, &[&id]).await?;
        let name = (id % 7 != 0).then(|| format!("n{id}"));
        ensure!(row.get::<_, i64>(0) == id, "row of {id}: {row:?}");
        ensure!(row.get::<_, Option<String>>("name") == name);
        ensure!(row.get::<_, f64>(2) == id as f64 / 2.0);
    }
    ensure!(client.query_opt(&one, &[&99i64]).await?.is_none());
    let many = "select count(*), sum(score) from tp_prepared where id = any($1)";
    let row = client.query_one(many, &[&vec![1i64, 2, 3, 80]]).await?;
    ensure!((row.get::<_, i64>(0), row.get::<_, f64>(1)) == (3, 3.0));
    let changed = client
        .execute("update tp_prepared set score = 0 where id < $1", &[&10i64])
        .await?;
    ensure!(changed == 10, "{changed} rows were updated");
    let error = client
        .execute(&insert, &[&3i64, &"again", &0.0f64])
        .await
        .err()
        .context("no error")?;
    let error = error.as_db_error().context("not of the server")?;
    ensure!(*error.code() == SqlState::UNIQUE_VIOLATION);
    ensure!(error.constraint() == Some("tp_prepared_pkey"));
    Ok(())
}

async fn pipelined(client: Client) -> Result<()> {
    table(&client, "tp_pipe", "id int8 primary key, name text").await?;
    let client = Arc::new(client);
    let insert = client
        .prepare("insert into tp_pipe values ($1, $2)")
        .await?;
    let mut tasks = JoinSet::new();
    for id in 0..400i64 {
        let (client, insert) = (client.clone(), insert.clone());
        tasks.spawn(async move { client.execute(&insert, &[&id, &format!("n{id}")]).await });
    }
    while let Some(done) = tasks.join_next().await {
        ensure!(done?? == 1);
    }
    let one = client
        .prepare("select name from tp_pipe where id = $1")
        .await?;
    let mut tasks = JoinSet::new();
    for id in 0..400i64 {
        let (client, one, insert) = (client.clone(), one.clone(), insert.clone());
        tasks.spawn(async move {
            if id % 20 == 0 {
                // Its error must not touch its neighbours.
                return Ok(client.execute(&insert, &[&id, &"again"]).await.is_err());
            }
            let row = client.query_one(&one, &[&id]).await?;
            Ok::<_, tokio_postgres::Error>(row.get::<_, String>(0) == format!("n{id}"))
        });
    }
    while let Some(right) = tasks.join_next().await {
        ensure!(right??);
    }
    let (count, sum, low) = tokio::try_join!(
        client.query_one("select count(*) from tp_pipe", &[]),
        client.query_one("select sum(id)::int8 from tp_pipe", &[]),
        client.query_one("select name from tp_pipe order by id limit 1", &[]),
    )?;
    ensure!(count.get::<_, i64>(0) == 400 && sum.get::<_, i64>(0) == 79_800);
    ensure!(low.get::<_, &str>(0) == "n0");
    Ok(())
}

async fn copy(client: Client) -> Result<()> {
    table(&client, "tp_copy", "id int8 primary key, name text").await?;
    let types = [Type::INT8, Type::TEXT];
    let sink = client.copy_in("copy tp_copy from stdin binary").await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
    for id in 0..10_000i64 {
        let name = (id % 10 != 0).then(|| format!("n{id}"));
        writer.as_mut().write(&[&id, &name]).await?;
    }
    ensure!(writer.finish().await? == 10_000);
    let sums = "select count(*), sum(id)::int8, count(name), sum(length(name)) from tp_copy";
    let row = client.query_one(sums, &[]).await?;
    let found: [i64; 4] = std::array::from_fn(|column| row.get(column));
    ensure!(found == [10_000, 49_995_000, 9000, 44_001], "{found:?}");
    // A writer that is dropped leaves nothing.
    let sink = client.copy_in("copy tp_copy from stdin binary").await?;
    let mut writer = Box::pin(BinaryCopyInWriter::new(sink, &types));
    for id in 20_000..20_100i64 {
        writer.as_mut().write(&[&id, &"x"]).await?;
    }
    drop(writer);
    // A reader that is dropped leaves a connection that works.
    drop(client.copy_out("copy tp_copy to stdout").await?);
    drop(client.copy_out("copy (select 1) to stdout binary").await?);
    let row = client.query_one(sums, &[]).await?;
    ensure!(row.get::<_, i64>(0) == 10_000);
    Ok(())
}

async fn portals(mut client: Client) -> Result<()> {
    table(&client, "tp_portal", "id int8 primary key").await?;
    client
        .batch_execute("insert into tp_portal select generate_series(1, 100)")
        .await?;
    let transaction = client.transaction().await?;
    let many = transaction
        .bind(
            "select id from tp_portal where id > $1 order by id",
            &[&10i64],
        )
        .await?;
    let one = transaction
        .bind("select id from tp_portal where id = $1", &[&7i64])
        .await?;
    let mut found = Vec::new();
    loop {
        let rows = transaction.query_portal(&many, 13).await?;
        found.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        // Another statement and another portal between two fetches.
        let row = transaction
            .query_one("select count(*) from tp_portal", &[])
            .await?;
        ensure!(row.get::<_, i64>(0) == 100);
        if rows.len() < 13 {
            break;
        }
    }
    ensure!(found == (11..=100).collect::<Vec<i64>>(), "{found:?}");
    let rows = transaction.query_portal(&one, 5).await?;
    ensure!(rows.len() == 1 && rows[0].get::<_, i64>(0) == 7);
    ensure!(transaction.query_portal(&one, 5).await?.is_empty());
    transaction.commit().await?;
    Ok(())
}

async fn savepoints(mut client: Client) -> Result<()> {
    table(&client, "tp_save", "id int8 primary key").await?;
    let insert = client.prepare("insert into tp_save values ($1)").await?;
    let mut outer = client.transaction().await?;
    outer.execute(&insert, &[&1i64]).await?;
    let inner = outer.savepoint("first").await?;
    for id in 2..10i64 {
        inner.execute(&insert, &[&id]).await?;
    }
    let error = inner
        .execute(&insert, &[&1i64])
        .await
        .err()
        .context("no error")?;
    ensure!(error.code() == Some(&SqlState::UNIQUE_VIOLATION));
    inner.rollback().await?;
    let inner = outer.transaction().await?;
    inner.execute(&insert, &[&20i64]).await?;
    inner.commit().await?;
    let rows = outer
        .query("select id from tp_save order by id", &[])
        .await?;
    let found: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(found == [1, 20], "{found:?}");
    outer.commit().await?;
    // A dropped transaction rolls back.
    let dropped = client.transaction().await?;
    dropped.execute(&insert, &[&30i64]).await?;
    drop(dropped);
    let row = client
        .query_one("select count(*) from tp_save", &[])
        .await?;
    ensure!(row.get::<_, i64>(0) == 2);
    let reading = client.build_transaction().read_only(true).start().await?;
    let error = reading
        .execute(&insert, &[&40i64])
        .await
        .err()
        .context("no error")?;
    ensure!(
        error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
        "{error}"
    );
    reading.rollback().await?;
    Ok(())
}

async fn cancel(client: Client) -> Result<()> {
    table(&client, "tp_cancel", "id int8 primary key").await?;
    client
        .batch_execute("insert into tp_cancel select generate_series(1, 9)")
        .await?;
    for text in [
        "select pg_sleep(25)",
        "select pg_sleep(25) from tp_cancel where id = 2",
        "select id, pg_sleep(25) from tp_cancel order by id",
    ] {
        let token = client.cancel_token();
        let sleeping = client.batch_execute(text);
        let mut sleeping = pin!(sleeping);
        // A request that comes before the statement runs is lost, so ask until it ends.
        let error = loop {
            tokio::select! {
                ended = &mut sleeping => break ended.err().context("not cancelled")?,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    token.cancel_query(NoTls).await?;
                }
            }
        };
        ensure!(
            error.code() == Some(&SqlState::QUERY_CANCELED),
            "{text}: {error}"
        );
        let row = client
            .query_one("select count(*) from tp_cancel", &[])
            .await?;
        ensure!(row.get::<_, i64>(0) == 9);
    }
    Ok(())
}

/// A label of the enum `tp_mood`.
#[derive(Debug, PartialEq)]
struct Mood(String);

impl<'a> FromSql<'a> for Mood {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Mood, Box<dyn Error + Sync + Send>> {
        Ok(Mood(std::str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(type_: &Type) -> bool {
        matches!(type_.kind(), Kind::Enum(labels) if labels == &["sad", "ok"])
    }
}

impl ToSql for Mood {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(type_: &Type) -> bool {
        <Mood as FromSql>::accepts(type_)
    }

    to_sql_checked!();
}

async fn enums(client: Client) -> Result<()> {
    client
        .batch_execute(
            "drop table if exists tp_enum; drop type if exists tp_pair, tp_mood;
             create type tp_mood as enum ('sad', 'ok');
             create type tp_pair as (a int, b tp_mood);",
        )
        .await?;
    table(
        &client,
        "tp_enum",
        "id int8 primary key, mood tp_mood, moods tp_mood[], pair tp_pair",
    )
    .await?;
    let insert = client
        .prepare("insert into tp_enum values ($1, $2, $3)")
        .await?;
    for id in 0..12i64 {
        let moods = vec![Mood("sad".into()), Mood("ok".into())];
        client
            .execute(&insert, &[&id, &Mood("ok".into()), &moods])
            .await
            .with_context(|| format!("insert {id}"))?;
    }
    let one = client
        .prepare("select mood, moods, pair from tp_enum where id = $1")
        .await?;
    let kind = one.columns()[2].type_().kind();
    ensure!(
        matches!(kind, Kind::Composite(fields) if fields[1].name() == "b"),
        "{kind:?}"
    );
    for id in 0..12i64 {
        let row = client.query_one(&one, &[&id]).await?;
        ensure!(row.get::<_, Mood>(0).0 == "ok");
        ensure!(row.get::<_, Vec<Mood>>(1).len() == 2);
    }
    let rows = client
        .query(
            "select mood from tp_enum where mood = $1",
            &[&Mood("ok".into())],
        )
        .await?;
    ensure!(
        rows.iter()
            .filter(|row| row.get::<_, Mood>(0).0 == "ok")
            .count()
            == 12
    );
    // Types that the client declares.
    let mood = insert.params()[1].clone();
    let typed = client
        .prepare_typed(
            "select id from tp_enum where id = $1 and mood = $2",
            &[Type::INT8, mood],
        )
        .await?;
    for id in 0..12i64 {
        let row = client
            .query_one(&typed, &[&id, &Mood("ok".into())])
            .await
            .with_context(|| format!("select {id} with declared types"))?;
        ensure!(row.get::<_, i64>(0) == id);
    }
    Ok(())
}

async fn texts(client: Client) -> Result<()> {
    table(&client, "tp_text", "id int8 primary key, name text").await?;
    let messages = client
        .simple_query(
            "insert into tp_text values (1, 'a'), (2, null), (3, 'c');
             select * from tp_text where id = 2; select name from tp_text order by id desc",
        )
        .await?;
    let mut rows = Vec::new();
    let mut counts = Vec::new();
    for message in &messages {
        match message {
            SimpleQueryMessage::Row(row) => rows.push(row.get(row.len() - 1)),
            SimpleQueryMessage::CommandComplete(count) => counts.push(*count),
            _ => {}
        }
    }
    ensure!(rows == [None, Some("c"), None, Some("a")], "{rows:?}");
    ensure!(counts == [3, 1, 3], "{counts:?}");
    // The texts of one message are one transaction.
    let error = client
        .batch_execute("insert into tp_text values (4, 'd'), (5, 'e'); select 1 / 0")
        .await
        .err()
        .context("no error")?;
    ensure!(error.code() == Some(&SqlState::DIVISION_BY_ZERO));
    let row = client
        .query_one("select count(*) from tp_text", &[])
        .await?;
    ensure!(row.get::<_, i64>(0) == 3);
    Ok(())
}
