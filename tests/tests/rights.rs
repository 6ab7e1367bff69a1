//! Nobody gets rights through what the proxy has put on the shards: not directly on a shard, not
//! through the proxy, not by code of their own that somebody else's rights would run.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::{
    automator::{self, Automator, Dev},
    postgres::{DATABASE, Plain},
    wait,
    wire::{Connection, Server},
};
use nix::sys::signal::Signal;

mod attempts;
mod list;
mod others;
mod steps;
mod unread;
mod upgrade;
mod views;

/// Plain logins without any right that PUBLIC has not, except on a schema of its own for `mid`.
const ROLES: [&str; 2] = ["low", "mid"];
const PASSWORD: &str = "not a secret";
const PATIENCE: Duration = Duration::from_secs(60);

/// Three shards with a table, an index over all shards, and a proxy that lets the roles in.
struct Cluster {
    dev: Dev,
    proxy: Automator,
}

impl Cluster {
    fn start() -> Result<Cluster> {
        let dev = Dev::start(3)?;
        let mut owner = dev.connect()?;
        for statement in [
            "create table people (id bigint primary key, email text, note integer)",
            "select create_distributed_table('people', 'id')",
            "insert into people select g, 'e' || g, 0 from generate_series(1, 60) g",
            "select automator67.create_unique_index('people', 'email')",
            "create table tenants (name text primary key, n integer)",
            "select create_distributed_table('tenants', 'name', 'directory')",
            "insert into tenants values ('a secret name', 1)",
        ] {
            owner.execute(statement)?;
        }
        let mut users = String::new();
        for role in ROLES {
            owner.execute(&format!("create role {role} login password '{PASSWORD}'"))?;
            users += &format!("[[users]]\nname = \"{role}\"\npassword = \"{PASSWORD}\"\n");
        }
        owner.execute("create schema mid authorization mid")?;
        let proxy = dev.second_proxy("open", &users)?;
        Ok(Cluster { dev, proxy })
    }

    /// The proxy, as a role.
    fn through(&self, role: &str) -> Result<Connection> {
        Connection::open(&as_role(&self.proxy.server, role))
    }

    /// A shard, as a role.
    fn directly(&self, shard: usize, role: &str) -> Result<Connection> {
        Connection::open(&as_role(&self.dev.shards()[shard].server, role))
    }

    /// A shard, as its owner.
    fn owner(&self, shard: usize) -> Result<Connection> {
        Connection::open(&self.dev.shards()[shard].server)
    }

    /// Everything goes on for others: commits over several shards, changes of the schema, indexes.
    fn check_that_it_works(&self, turn: &str) -> Result<()> {
        let mut owner = Connection::open(&self.proxy.server)?;
        owner.execute("begin")?;
        owner.execute("update people set note = note + 1")?;
        owner.execute("commit")?;
        owner.execute(&format!("create table after_{turn} (a integer)"))?;
        owner.execute(&format!("drop table after_{turn}"))?;
        let (code, _) = owner.failure("insert into people values (1000, 'e7', 0)")?;
        ensure!(code == "23505", "the index let a second value in: {code}");
        let found = owner.execute("select id from people where email = 'e7'")?;
        ensure!(found.as_deref() == Some("7"), "{found:?}");
        Ok(())
    }
}

fn as_role(server: &Server, role: &str) -> Server {
    as_role_with(server, role, PASSWORD)
}

fn as_role_with(server: &Server, role: &str, password: &str) -> Server {
    Server {
        user: role.to_owned(),
        password: password.to_owned(),
        ..server.clone()
    }
}

#[test]
fn what_is_ours_on_shards_is_as_the_docs_list_it() {
    let cluster = Cluster::start().expect("the cluster starts");
    list::compare(&cluster).expect("every object has the rights that docs/security.md says");
}

#[test]
fn views_are_read_with_the_rights_that_postgres_asks_for() {
    let cluster = Cluster::start().expect("the cluster starts");
    views::check(&cluster).expect("as one server would");
}

#[test]
fn statements_in_steps_ask_for_the_rights_that_postgres_asks_for() {
    let cluster = Cluster::start().expect("the cluster starts");
    steps::check(&cluster).expect("as one server would");
}

#[test]
fn what_nobody_reads_needs_no_rights() {
    let cluster = Cluster::start().expect("the cluster starts");
    let plain = Plain::start().expect("Postgres starts");
    unread::check(&cluster, &plain).expect("as one server would");
}

#[test]
fn no_function_of_ours_works_for_a_client() {
    let cluster = Cluster::start().expect("the cluster starts");
    attempts::all(&cluster).expect("nothing changes, nothing is read");
    overheard(&cluster).expect("nothing shows a proof");
    forged(&cluster).expect("a forged part is left alone");
    guessed_locks(&cluster).expect("a lock that anybody can take stops nobody");
    work(&cluster).expect("no schema is left for others");
}

#[test]
fn code_of_users_runs_with_their_own_rights() {
    let cluster = Cluster::start().expect("the cluster starts");
    let mut mid = cluster.through("mid").expect("mid logs in");
    evil_domain(&cluster, &mut mid).expect("a check of a domain");
    evil_cast(&cluster, &mut mid).expect("a cast of a type");
    evil_policy(&cluster, &mut mid).expect("a policy of a table");
    evil_names(&cluster, &mut mid).expect("names of a table's columns");
    cluster.check_that_it_works("evil").expect("all works");
}

#[test]
fn a_schema_that_somebody_else_has_made_is_refused() {
    let plain = Plain::start().expect("Postgres starts");
    refuse_foreign_schema(&plain).expect("the start is refused");
}

#[test]
fn a_table_that_lost_its_shard_key_harms_no_other() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::broken_keys(&cluster).expect("only that table is refused");
}

#[test]
fn temporary_objects_of_others_mean_nothing() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::temporary(&cluster).expect("they are not in the catalog");
}

#[test]
fn locks_of_others_do_not_stop_the_catalog() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::locked(&cluster).expect("changes of the schema and new proxies go on");
}

#[test]
fn groups_belong_to_their_owners() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::groups(&cluster).expect("nobody else joins");
}

#[test]
fn answers_tell_nothing_of_values_of_others() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::oracles(&cluster).expect("the answers are the same");
}

#[test]
fn what_is_declared_safe_is_a_function_and_not_a_name() {
    let cluster = Cluster::start().expect("the cluster starts");
    others::declared(&cluster).expect("only what was looked at is safe");
}

#[test]
fn clusters_of_the_version_before_are_mended() {
    upgrade::check().expect("the same rights, and the index works");
}

#[test]
fn who_else_runs_is_not_asked_of_clients() {
    let cluster = Cluster::start().expect("the cluster starts");
    false_names(&cluster).expect("only proxies count as proxies");
}

/// A function that tries to become superuser, and notes as whom it was run.
const EVIL: &str = "create table mid.seen (who text, at text);
    grant insert on mid.seen to public; grant usage on schema mid to public;
    create function mid.evil(at text) returns boolean language plpgsql as $$
    begin
        insert into mid.seen values (current_user, at);
        begin
            execute 'alter role mid superuser';
        exception when others then null;
        end;
        return true;
    end $$";

fn make_evil(cluster: &Cluster) -> Result<()> {
    for shard in 0..3 {
        let mut direct = cluster.directly(shard, "mid")?;
        let known = direct.execute("select to_regprocedure('mid.evil(text)')::text")?;
        if known.is_none() {
            direct.execute(EVIL)?;
        }
    }
    Ok(())
}

/// Nobody but `mid` has run it, and it has no more rights than before.
fn check_evil(cluster: &Cluster, called: bool) -> Result<()> {
    for shard in 0..3 {
        let mut owner = cluster.owner(shard)?;
        let others = owner.rows("select who, at from mid.seen where who <> 'mid'")?;
        ensure!(others.is_empty(), "run by {others:?}");
        let rights = owner.execute("select rolsuper from pg_roles where rolname = 'mid'")?;
        ensure!(rights.as_deref() == Some("f"), "mid is superuser now");
    }
    if called {
        let seen = (0..3).map(|shard| {
            let mut owner = cluster.owner(shard)?;
            owner.execute("select count(*) from mid.seen")
        });
        let seen: Vec<_> = seen.collect::<Result<_>>()?;
        ensure!(
            seen.iter().flatten().any(|count| count != "0"),
            "the check of this test did not run at all"
        );
    }
    Ok(())
}

/// Values of an index pass a domain's check only as values of its owner's table.
fn evil_domain(cluster: &Cluster, mid: &mut Connection) -> Result<()> {
    make_evil(cluster)?;
    for shard in 0..3 {
        let mut direct = cluster.directly(shard, "mid")?;
        direct.execute("create domain mid.address as text check (mid.evil('domain'))")?;
    }
    // The owner of a function says of it what it likes.
    mid.execute("select automator67.declare_safe('evil')")?;
    mid.execute("create table mid.d (id bigint primary key, email mid.address)")?;
    mid.execute("select create_distributed_table('mid.d', 'id')")?;
    mid.execute("insert into mid.d values (1, 'a'), (2, 'b'), (3, 'c')")?;
    // Made or refused: both are right, as long as nobody else runs the check.
    let made = mid.simple("select automator67.create_unique_index('mid.d', 'email')")?;
    mid.simple("insert into mid.d values (4, 'd'), (5, 'e')")?;
    mid.simple("update mid.d set email = email || 'x'")?;
    mid.simple("select * from mid.d where email = 'ax'")?;
    mid.simple("delete from mid.d where id > 3")?;
    ensure!(!made.is_empty(), "no answer");
    check_evil(cluster, true)
}

/// The owner of an indexed table changes its columns on a shard, behind the proxy's back: to a type
/// with a cast of its own.
fn evil_cast(cluster: &Cluster, mid: &mut Connection) -> Result<()> {
    make_evil(cluster)?;
    mid.execute("create table mid.c (id bigint primary key, email text)")?;
    mid.execute("select create_distributed_table('mid.c', 'id')")?;
    mid.execute("select automator67.create_unique_index('mid.c', 'email')")?;
    mid.execute("insert into mid.c values (1, 'a'), (2, 'b'), (3, 'c')")?;
    for shard in 0..3 {
        let mut direct = cluster.directly(shard, "mid")?;
        direct.execute(
            "create type mid.odd as enum ('a', 'b', 'c', 'd');
             create function mid.odd_text(value mid.odd) returns text language plpgsql as $$
             begin perform mid.evil('cast'); return 'x'; end $$;
             create cast (mid.odd as text) with function mid.odd_text(mid.odd) as implicit;
             alter table mid.c alter column email type mid.odd using email::mid.odd;
             select 'a'::mid.odd::text",
        )?;
    }
    for statement in [
        "insert into mid.c values (4, 'd')",
        "update mid.c set email = 'd'",
        "delete from mid.c",
    ] {
        let (code, message) = mid.failure(statement)?;
        ensure!(code == "55000", "{statement}: {code} {message}");
    }
    // The same by two columns that change their names.
    for shard in 0..3 {
        let mut direct = cluster.directly(shard, "mid")?;
        direct.execute(
            "alter table mid.c rename column email to was;
             alter table mid.c add column email mid.odd default 'a'",
        )?;
    }
    let (code, message) = mid.failure("insert into mid.c (id, was) values (5, 'd')")?;
    ensure!(code == "55000", "{code} {message}");
    check_evil(cluster, true)
}

/// Rows are read for a new index with the rights of who makes it.
fn evil_policy(cluster: &Cluster, mid: &mut Connection) -> Result<()> {
    make_evil(cluster)?;
    mid.execute("create table mid.p (id bigint primary key, email text)")?;
    mid.execute("select create_distributed_table('mid.p', 'id')")?;
    mid.execute("insert into mid.p values (1, 'a'), (2, 'b'), (3, 'c')")?;
    for shard in 0..3 {
        let mut direct = cluster.directly(shard, "mid")?;
        direct.execute(
            "create policy all_of_it on mid.p using (mid.evil('policy'));
             alter table mid.p enable row level security; alter table mid.p force row level security",
        )?;
    }
    mid.simple("select automator67.create_unique_index('mid.p', 'email')")?;
    mid.simple("select undistribute_table('mid.p')")?;
    check_evil(cluster, true)
}

/// Names of columns and indexes stand in functions that are made with the owner's rights.
fn evil_names(cluster: &Cluster, mid: &mut Connection) -> Result<()> {
    mid.execute("set check_function_bodies = off")?;
    let tags = [
        "$note$",
        "$body$",
        "$apply$",
        "$owner$",
        "$body_of_note$",
        "$body_of_apply$",
        "$make$",
        "'",
        "\"",
    ];
    for (number, tag) in tags.into_iter().enumerate() {
        let evil = format!("{tag};alter role mid superuser;select {tag}");
        let column = format!("\"{}\"", evil.replace('"', "\"\""));
        mid.execute(&format!(
            "create table mid.n{number} (id bigint primary key, {column} text)"
        ))?;
        mid.execute(&format!(
            "select create_distributed_table('mid.n{number}', 'id')"
        ))?;
        let argument = |text: &str| text.replace('\'', "''");
        mid.simple(&format!(
            "select automator67.create_unique_index('mid.n{number}', '{}', 'named{number}')",
            argument(&column)
        ))?;
        mid.simple(&format!(
            "insert into mid.n{number} values (1, 'a'), (2, 'b'), (3, 'c')"
        ))?;
        let (code, _) = mid.failure(&format!("insert into mid.n{number} values (4, 'b')"))?;
        ensure!(code == "23505", "{tag}: the index does not work: {code}");
        mid.execute(&format!(
            "create table mid.i{number} (id bigint primary key, e text)"
        ))?;
        mid.execute(&format!(
            "select create_distributed_table('mid.i{number}', 'id')"
        ))?;
        mid.simple(&format!(
            "select automator67.create_unique_index('mid.i{number}', 'e', '{}')",
            argument(&format!("\"{}\"", evil.replace('"', "\"\"")))
        ))?;
        mid.simple(&format!(
            "insert into mid.i{number} values (1, 'a'), (2, 'b')"
        ))?;
        cluster.directly(1, "mid")?.execute(&format!(
            "alter table mid.i{number} rename column e to {column}"
        ))?;
        check_evil(cluster, false)?;
    }
    cluster.check_that_it_works("names")
}

/// A session's own settings make servers talk: of the parameters of a failed statement, of plans with
/// the values in them. What they say of our calls stays here.
fn overheard(cluster: &Cluster) -> Result<()> {
    for settings in [
        "set log_parameter_max_length_on_error = -1",
        "set client_min_messages = log; set debug_print_plan = on; set debug_print_parse = on; \
         set debug_print_rewritten = on",
    ] {
        let mut low = cluster.through("low")?;
        low.execute(settings)?;
        for statement in [
            "select automator67.declare_safe('there is none')",
            "insert into tenants values ('somebody new', 1)",
            "select create_distributed_table('people', 'id')",
            "create temporary table mine (a integer)",
            "create table mid.no (a integer)",
        ] {
            let mut frames = low.simple(statement)?;
            frames.append(&mut low.notices);
            for frame in frames {
                let text = String::from_utf8_lossy(&frame.body).into_owned();
                let digits = text.split(|one: char| !one.is_ascii_hexdigit());
                let proof = digits.into_iter().any(|run| run.len() == 64);
                // A text of 64 bytes in a plan, with its header.
                let planned = text.contains(":constvalue 68 [");
                ensure!(!proof && !planned, "{settings}: {statement}: {text}");
            }
        }
    }
    Ok(())
}

/// Who may log in to a shard prepares a transaction with a name like the proxies'. Once the recovery
/// noted it as rolled back: all commits of that proxy had lower numbers, and failed.
fn forged(cluster: &Cluster) -> Result<()> {
    cluster.check_that_it_works("forge")?;
    let mut low = cluster.directly(1, "low")?;
    let known = low.rows("select proxy, slot from automator67.commit_register")?;
    let mut names = Vec::new();
    let cluster_name = cluster
        .owner(0)?
        .execute("select name from automator67.cluster")?
        .context("a cluster has a name")?;
    low.execute("create temp table mine (a integer); drop table mine")?;
    for row in known {
        let [Some(proxy), Some(slot)] = &row[..] else {
            bail!("{row:?}");
        };
        let proxy: u32 = proxy.parse()?;
        let number = (1_u64 << 50) + slot.parse::<u64>()?;
        for digest in ["", "_0123456789abcdef"] {
            let gid = format!("a67_{cluster_name}_{proxy:08x}_{number:x}_1_4{digest}");
            low.execute("begin")?;
            low.execute(&format!("prepare transaction '{gid}'"))?;
            names.push(gid);
        }
    }
    ensure!(!names.is_empty(), "there are no commits to forge");
    wait::until("the recovery to look at all of them", PATIENCE, || {
        let log = cluster.proxy.group.log();
        names.iter().all(|gid| log.contains(gid)).then_some(())
    })?;
    cluster.check_that_it_works("forged")?;
    let noted = cluster.owner(0)?.execute(
        "select count(*) from automator67.commit_register where number >= (1::bigint << 50)",
    )?;
    ensure!(noted.as_deref() == Some("0"), "a forged number was noted");
    for gid in names {
        low.execute(&format!("rollback prepared '{gid}'"))?;
    }
    Ok(())
}

/// The advisory lock that set-up once waited for, and those on names of transactions.
fn guessed_locks(cluster: &Cluster) -> Result<()> {
    let mut holders = Vec::new();
    for shard in 0..3 {
        let mut low = cluster.directly(shard, "low")?;
        low.execute(&format!(
            "select pg_advisory_lock({})",
            0x6175_746f_3637_i64
        ))?;
        for statement in [
            "lock table automator67.setup in access exclusive mode",
            "lock table automator67.fence in share mode",
            "lock table automator67.epoch in access exclusive mode",
            "lock table automator67.commit_register in exclusive mode",
            "select * from automator67.epoch for update",
            "select * from automator67.commit_register for update",
        ] {
            low.execute("begin")?;
            let (code, message) = low.failure(statement)?;
            low.execute("rollback")?;
            let absent = code == "42P01" && shard > 0;
            ensure!(code == "42501" || absent, "{statement}: {code} {message}");
        }
        holders.push(low);
    }
    let other = cluster.dev.second_proxy("beside", "")?;
    Connection::open(&other.server)?.execute("select count(*) from people")?;
    Ok(())
}

/// Rows must not move beside another proxy. A client that takes its name is not taken for it.
fn false_names(cluster: &Cluster) -> Result<()> {
    let mut owner = cluster.dev.connect()?;
    owner.execute("create table filled (id bigint primary key)")?;
    owner.execute("insert into filled values (1), (2), (3)")?;
    let place = "select create_distributed_table('filled', 'id')";
    let (code, message) = owner.failure(place)?;
    ensure!(code == "55006", "{code} {message}");
    cluster.proxy.group.signal(Signal::SIGTERM)?;
    let mut false_proxy = cluster.directly(0, "low")?;
    false_proxy.execute("set application_name = 'automator67 follower'")?;
    wait::until("the other proxy to be gone", PATIENCE, || {
        owner.execute(place).ok()
    })?;
    Ok(())
}

/// Relations are moved inside of a transaction: nothing of it stays, and nobody else may use it.
fn work(cluster: &Cluster) -> Result<()> {
    let mut owner = Connection::open(&cluster.proxy.server)?;
    owner.execute("create table words (w text primary key, id bigint)")?;
    owner.execute("select create_distributed_table('words', 'w')")?;
    owner.execute("insert into words select 'w' || g, g from generate_series(1, 60) g")?;
    owner.execute("begin")?;
    owner.execute("update people set note = 5 where id = 1")?;
    let joined = "select count(*) from people p join words w on w.id = p.id where p.note >= 0";
    let count = owner.execute(joined)?;
    ensure!(count.as_deref() == Some("60"), "{count:?}");
    owner.execute(
        "update people set note = 6 from words where words.id = people.id and words.w <> ''",
    )?;
    owner.execute("commit")?;
    for shard in 0..3 {
        let mut low = cluster.directly(shard, "low")?;
        let left =
            low.rows("select nspname from pg_namespace where nspname ~ '^automator67_work'")?;
        ensure!(left.is_empty(), "{left:?} was left");
        for schema in ["automator67", "automator67_index"] {
            let (code, _) = low.failure(&format!("create table {schema}.x (a integer)"))?;
            ensure!(code == "42501", "{schema}: {code}");
        }
    }
    Ok(())
}

/// Who may make schemas was there before the first start.
fn refuse_foreign_schema(plain: &Plain) -> Result<()> {
    let mut owner = Connection::open(&plain.server)?;
    owner.execute(&format!(
        "create role mid login password '{PASSWORD}'; grant create on database {DATABASE} to mid"
    ))?;
    let mut mid = Connection::open(&as_role(&plain.server, "mid"))?;
    mid.execute("create schema automator67")?;
    let directory = automator67_tests::postgres::directory()?;
    let file = directory.path().join("foreign.toml");
    let text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"mid\"\npassword = \"{PASSWORD}\"\n\
         [[shards]]\nname = \"one\"\nurl = \"{}\"\n",
        plain.server.url()?
    );
    fs::write(&file, text)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let refused = |why: &str| -> Result<()> {
        let output = std::process::Command::new(automator::binary()?)
            .args(["serve", "--config"])
            .arg(&file)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{why}: it started");
        ensure!(
            said.contains("automator67") && said.contains("\"mid\""),
            "{why}: {said}"
        );
        Ok(())
    };
    refused("a schema")?;
    mid.execute("drop schema automator67")?;
    owner.execute("create schema automator67; grant create on schema automator67 to mid")?;
    mid.execute("grant usage on schema public to public").ok();
    owner.execute("grant usage on schema automator67 to mid")?;
    mid.execute("create table automator67.shard_migration (version int4, name text)")?;
    refused("a table in it")?;
    Ok(())
}
