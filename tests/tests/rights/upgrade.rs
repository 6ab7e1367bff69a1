//! A cluster as the version before has left it: with the functions and rights of then, and an index
//! over all shards.

use std::fs;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator,
    postgres::{self, DATABASE, PASSWORD, Plain, USER},
    wire::Connection,
};
use refinery::Target;

mod catalog {
    refinery::embed_migrations!("../proxy/migrations");
}
mod shards {
    refinery::embed_migrations!("../proxy/migrations_of_shards");
}

/// What the version before had.
const CATALOG: i32 = 8;
const SHARDS: i32 = 2;

/// As `create_distributed_table` and `create_unique_index` have left it.
const PLACED: &str = "
    insert into automator67.shard (id, name, home) values (1, 'one', true), (2, 'two', false);
    insert into automator67.ring values (-4611686018427387904, 1), (0, 2),
        (4611686018427387904, 1), (9223372036854775807, 2);
    insert into automator67.colocation (key_type, is_default) values ('integer', true);
    select automator67.place_distributed('people', 'id', 'integer', 1);
    select automator67.place_unique_index('people_email_key', 'people', 'email', 'text')";
const INDEXED: &str =
    "select automator67.a67_make_index(1, 'people_email_key', 'people', 'email', 'id')";

pub fn check() -> Result<()> {
    let plain = [Plain::start()?, Plain::start()?];
    let runtime = tokio::runtime::Runtime::new()?;
    for (number, shard) in plain.iter().enumerate() {
        runtime.block_on(migrate_as_before(shard, number == 0))?;
        let mut owner = Connection::open(&shard.server)?;
        owner.execute("create table people (id bigint primary key, email varchar(20))")?;
        owner.execute(&format!("create role low login password '{PASSWORD}'"))?;
        if number == 0 {
            owner.execute(PLACED)?;
        }
        owner.execute(INDEXED)?;
        // The hole: everybody could.
        let mut low = Connection::open(&super::as_role_with(&shard.server, "low", PASSWORD))?;
        low.execute("select automator67.note_commit(1, 1, 1, '{0}')")?;
    }
    let directory = postgres::directory()?;
    let file = directory.path().join("new.toml");
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
    );
    for (name, shard) in ["one", "two"].iter().zip(&plain) {
        let url = shard.server.url()?;
        text += &format!("[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n");
    }
    fs::write(&file, text)?;
    let proxy = automator::serve(&file)?;
    let mut client = Connection::open(&proxy.server)?;
    client.execute("insert into people select g, 'e' || g from generate_series(1, 50) g")?;
    client.execute("update people set email = 'x' || id where id <= 10")?;
    let (code, _) = client.failure("insert into people values (99, 'x7')")?;
    ensure!(code == "23505", "the index let a second value in: {code}");
    let found = client.execute("select id from people where email = 'e44'")?;
    ensure!(found.as_deref() == Some("44"), "{found:?}");
    for shard in &plain {
        let mut low = Connection::open(&super::as_role_with(&shard.server, "low", PASSWORD))?;
        for call in [
            "automator67.note_commit(1, 1, 2, '{0}')",
            "automator67.a67_make_index(7, 'x', 'people', 'email', 'id')",
            "automator67.a67_rows_1()",
            "automator67.a67_owner_1('e44')",
            "automator67.a67_apply_1('{}', '{}', '{e1}', '{1}')",
        ] {
            let (code, _) = low.failure(&format!("select {call}"))?;
            ensure!(code == "42883", "{call}: {code}");
        }
        let (code, _) = low.failure("create table automator67_work.x (a integer)")?;
        ensure!(code == "3F000", "automator67_work: {code}");
    }
    let log = proxy.group.log();
    for line in ["V3__rights", "V9__rights"] {
        ensure!(log.contains(line), "{line} is not in the log: {log}");
    }
    Ok(())
}

async fn migrate_as_before(shard: &Plain, home: bool) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(shard.server.port()?);
    config.user(USER).password(PASSWORD).dbname(DATABASE);
    let (mut client, connection) = config.connect(tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    client.batch_execute("create schema automator67").await?;
    if home {
        let mut runner = catalog::migrations::runner().set_target(Target::Version(CATALOG as _));
        runner.set_migration_table_name("automator67.migration");
        runner.run_async(&mut client).await?;
    }
    let mut runner = shards::migrations::runner().set_target(Target::Version(SHARDS as _));
    runner.set_migration_table_name("automator67.shard_migration");
    runner.run_async(&mut client).await?;
    drop(client);
    driver.await.context("the connection's task")??;
    Ok(())
}
