//! `psql` shows the same through the proxy as on plain Postgres, to the byte.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use automator67_tests::{automator::Dev, checks::Check, postgres::Plain, wire::Server};

use super::{Output, client};

pub(super) const CHECKS: &[Check<Dev>] = &[("psql", like_plain_postgres)];

const TABLES: &str = "
create type psql_mood as enum ('sad', 'ok');
create table psql_people (
    id int8 primary key, name text not null default 'nobody', mood psql_mood,
    paid numeric(10, 2) check (paid >= 0), born date, unique (id, name)
);
create index psql_people_born on psql_people (born desc) where mood = 'ok';
create table psql_pets (owner int8 references psql_people, number int, primary key (owner, number));
create view psql_rich as select id, name from psql_people where paid > 100;
comment on table psql_people is 'who pays';
";

/// Only on the proxy.
const PLACEMENT: &str = "
select create_distributed_table('psql_people', 'id');
select create_distributed_table('psql_pets', 'owner');
";

/// Each runs as a file of its own.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "rows",
        "insert into psql_people (id, name, mood, paid, born)
         select g, 'n' || g, 'ok', g * 10, date '2000-01-01' + g from generate_series(1, 20) g;
         insert into psql_people (id) values (21), (22);
         insert into psql_pets select g, 1 from generate_series(1, 5) g;
         update psql_people set paid = 5 where id in (1, 2, 3);
         update psql_people set paid = 6 where id = 3 returning id, paid;
         delete from psql_people where id = 22;
         select * from psql_people where id = 7;
         select * from psql_people order by id;
         select mood, count(*), sum(paid) from psql_people group by mood order by 1;
         select p.name, q.number from psql_people p left join psql_pets q on q.owner = p.id
         order by 1, 2 limit 4;
         select id, name from psql_rich order by id;
         select 1 as one \\; select 2 as two;",
    ),
    (
        "describe",
        "\\d psql_people
         \\d+ psql_people
         \\d psql_pets
         \\d psql_rich
         \\d psql_people_born
         \\d psql*
         \\dt psql*
         \\dt+ absent*
         \\di psql*
         \\dv psql*
         \\dT psql*
         \\df psql*
         \\dp psql_people
         \\dd psql_people
         \\d absent",
    ),
    // Other drivers work in the same database meanwhile: only what is ours is listed.
    (
        "more of describe",
        "create sequence psql_numbers start 5 owned by psql_people.paid;
         create function psql_f(a int, b int default 3) returns int language sql immutable
             as 'select a + b';
         create procedure psql_do(a int) language sql as 'select 1';
         create aggregate psql_sum(int) (sfunc = int4pl, stype = int, initcond = '0');
         create domain psql_small as int check (value < 10);
         create type psql_pair as (a int, b psql_small);
         create materialized view psql_kept as select 1 as a;
         create function psql_stamp() returns trigger language plpgsql
             as 'begin new.name := upper(new.name); return new; end';
         create trigger psql_tr before insert on psql_people
             for each row execute function psql_stamp();
         create table psql_local (id int generated always as identity, n serial);
         alter table psql_local enable row level security;
         create policy psql_own on psql_local using (id > 0);
         grant select on psql_people to public;
         \\d psql*
         \\d+ psql_pets
         \\d+ psql_local
         \\d psql_kept
         \\d psql_numbers
         \\d psql_pair
         \\ds psql*
         \\dm psql*
         \\dv *.psql*
         \\df psql*
         \\dfa psql*
         \\dfp psql*
         \\dft psql*
         \\da psql*
         \\dD psql*
         \\dT psql*
         \\dn+ public
         \\dp psql*
         \\ddp
         \\drds
         \\dx
         \\dy psql*
         \\dX psql*
         \\dF
         \\dAc btree int4
         \\do = int4 int4
         \\l
         \\sf psql_f
         \\sv psql_rich
         \\d *automator67*.*
         \\dT automator67.*
         \\ds automator67*.*
         \\di automator67*.*
         select 'psql_people'::regclass, to_regclass('psql_absent'), 'psql_mood'::regtype,
             'psql_f(int,int)'::regprocedure, 'psql_do'::regproc, 'public'::regnamespace;
         select conrelid::regclass, confrelid::regclass, conname, pg_get_constraintdef(oid)
         from pg_constraint where conrelid::regclass::text ~ '^psql' order by 1::text, 3;
         select indexrelid::regclass, pg_get_indexdef(indexrelid) from pg_index
         where indrelid = 'psql_people'::regclass order by 1::text;
         select tgrelid::regclass, pg_get_triggerdef(oid) from pg_trigger
         where not tgisinternal and tgrelid::regclass::text ~ '^psql';
         select relname from pg_stat_user_tables where relname ~ '^psql' order by 1;
         select sequencename from pg_sequences where sequencename ~ '^psql' order by 1;
         select evtname from pg_event_trigger;
         select pg_get_viewdef('psql_rich'), pg_table_is_visible('psql_rich'::regclass);
         drop table psql_local; drop function psql_f, psql_stamp cascade; drop procedure psql_do;
         drop aggregate psql_sum(int); drop type psql_pair; drop domain psql_small;
         drop materialized view psql_kept; drop sequence psql_numbers;
         revoke select on psql_people from public;",
    ),
    (
        "schemas",
        "\\dn
         \\dn *au*
         \\dt *.psql*
         \\df *.a67*
         \\dv auto*.*
         select schema_name from information_schema.schemata where schema_name !~ '^pg_' order by 1;",
    ),
    (
        "formats",
        "\\x
         select * from psql_people where id in (4, 5) order by id;
         \\x auto
         select id from psql_people where id = 4;
         \\x off
         \\pset null '(null)'
         select mood, born from psql_people where id = 21;
         \\pset format csv
         select id, name from psql_people where id < 4 order by id;
         \\pset format unaligned
         \\t on
         select id, name from psql_people where id < 4 order by id;",
    ),
    (
        "gdesc",
        "select id, name, mood, paid, count(*) over () as n from psql_people \\gdesc
         select * from psql_people where id = 1 \\gdesc
         select id, name from psql_people where id = 3 \\gset got_
         \\echo :got_id :got_name
         select count(*) from psql_people where id > :got_id \\gx
         select format('select %s as n from psql_people where id = %s', g, g)
         from generate_series(1, 3) g \\gexec
         select born, mood, id from psql_people where id < 5 order by born
         \\crosstabview born mood
         \\set FETCH_COUNT 5
         select id from psql_people order by id;",
    ),
    (
        "copy",
        "\\copy psql_pets from 'pets.csv' csv header
         select * from psql_pets order by 1, 2;
         \\copy (select id, name, paid from psql_people order by id) to stdout csv header
         \\copy (select * from psql_people where id = 2) to stdout
         \\copy psql_pets (owner) to 'owners.txt'
         \\! sort -n owners.txt
         copy psql_pets from stdin;
4\t9
5\t9
\\.
         select count(*) from psql_pets;
         \\copy psql_pets from 'broken.csv' csv header
         select count(*) from psql_pets;",
    ),
    (
        "errors",
        "select id, nonsense from psql_people where id = 1;
         select id,
                nonsense
         from psql_people order by id;
         select * form psql_people;
         select * from psql_absent;
         insert into psql_people (id) values (1);
         insert into psql_people (id, name) values (30, null);
         insert into psql_people (id, paid) values (31, -1);
         insert into psql_people (id, mood) values (32, 'angry');
         insert into psql_pets values (1000, 1);
         select 'x'::int from psql_people where id = 1;
         select 1 / (id - id) from psql_people order by id;
         select no_such_function(id) from psql_people;
         \\set VERBOSITY verbose
         insert into psql_people (id, paid) values (31, -1);
         \\set VERBOSITY default
         \\errverbose
         begin;
         select 1 / 0;
         select 1;
         commit;
         do $$ begin raise notice 'hello'; raise exception 'own' using hint = 'try'; end $$;
         select count(*) from psql_people;",
    ),
    (
        "last",
        "drop view psql_rich;
         drop table psql_pets, psql_people;
         drop type psql_mood;",
    ),
];

const STOPS: &str = "
create table psql_stops (id int8 primary key);
insert into psql_people (id) values (101), (102), (103), (104);
select count(*) from psql_people;
insert into psql_people (id) values (1);
insert into psql_people (id) values (105);
";

fn like_plain_postgres(dev: &Dev) -> Result<()> {
    let plain = Plain::start()?;
    let directory = dev.directory();
    fs::write(directory.join("pets.csv"), "owner,number\n7,1\n8,1\n9,2\n")?;
    fs::write(
        directory.join("broken.csv"),
        "owner,number\n10,1\n7,1\n11,2\n",
    )?;
    for server in [&plain.server, dev.server()] {
        script(
            server,
            directory,
            "tables",
            TABLES,
            &["-v", "ON_ERROR_STOP=1"],
        )?
        .success("tables")?;
    }
    script(
        dev.server(),
        directory,
        "placement",
        PLACEMENT,
        &["-v", "ON_ERROR_STOP=1"],
    )?
    .success("placement")?;
    let mut failures = Vec::new();
    for (name, text) in SCRIPTS {
        if *name == "last" {
            failures.extend(one_transaction(&plain, dev).err());
            failures.extend(dumped(&plain, dev).err());
        }
        let expected = script(&plain.server, directory, name, text, &[])?;
        let found = script(dev.server(), directory, name, text, &[])?;
        let compared = same(&expected, &found).with_context(|| format!("script {name}"));
        failures.extend(compared.err());
    }
    let told: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    ensure!(told.is_empty(), "{}", told.join("\n"));
    Ok(())
}

/// `pg_dump` sees what it would see in one server.
fn dumped(plain: &Plain, dev: &Dev) -> Result<()> {
    let dump = |server: &Server, arguments: &[&str]| -> Result<String> {
        let output = client(server, dev.directory(), "pg_dump", arguments)?;
        let text = output.success("pg_dump")?;
        // Newer versions write a random word into the file.
        let lines = text.lines().filter(|line| !line.contains("restrict "));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    };
    let whole = dump(dev.server(), &["--schema-only"])?;
    ensure!(
        !whole.contains("automator67") && !whole.contains("a67_"),
        "{whole}"
    );
    let arguments = ["--schema-only", "--no-owner", "-t", "psql_*"];
    let (expected, found) = (
        dump(&plain.server, &arguments)?,
        dump(dev.server(), &arguments)?,
    );
    ensure!(expected == found, "{expected}\n----\n{found}");
    Ok(())
}

/// `-1` with ON_ERROR_STOP leaves nothing of a script that fails.
fn one_transaction(plain: &Plain, dev: &Dev) -> Result<()> {
    let arguments = ["-1", "-v", "ON_ERROR_STOP=1"];
    let look = "select count(*) from psql_people; select to_regclass('psql_stops');";
    let run = |server: &Server| -> Result<(Output, Output)> {
        let stopped = script(server, dev.directory(), "stops", STOPS, &arguments)?;
        ensure!(stopped.code == Some(3), "{}", stopped.describe());
        Ok((stopped, script(server, dev.directory(), "look", look, &[])?))
    };
    let (expected, left_there) = run(&plain.server)?;
    let (found, left_here) = run(dev.server())?;
    same(&left_there, &left_here).context("what a failed script left")?;
    same(&expected, &found).context("script with -1")
}

fn script(
    server: &Server,
    directory: &Path,
    name: &str,
    text: &str,
    arguments: &[&str],
) -> Result<Output> {
    let file = format!("{name}.sql");
    // Indentation is for the reader here; psql's positions count without it.
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    fs::write(directory.join(&file), lines.join("\n") + "\n")?;
    let mut all = vec!["-X", "-v", "SHOW_ALL_RESULTS=on"];
    all.extend(arguments);
    all.extend(["-f", &file]);
    client(server, directory, "psql", &all)
}

fn same(expected: &Output, found: &Output) -> Result<()> {
    compare("stdout", &expected.stdout, &found.stdout)?;
    compare(
        "stderr",
        &without_place(&expected.stderr),
        &without_place(&found.stderr),
    )?;
    ensure!(
        expected.code == found.code,
        "exit code {:?} instead of {:?}",
        found.code,
        expected.code
    );
    Ok(())
}

/// Without lines that name source files of the server, which differ between minor versions, and
/// without the proxy's own warning.
fn without_place(text: &str) -> String {
    const OWN: [&str; 2] = [
        "shards without two-phase commit",
        "DETAIL:  If a shard had failed during the commit",
    ];
    let dropped =
        |line: &&str| line.contains("LOCATION:") || OWN.iter().any(|own| line.contains(own));
    let kept = text.lines().filter(|line| !dropped(line));
    kept.collect::<Vec<_>>().join("\n")
}

fn compare(what: &str, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (mut left, mut right) = (expected.lines(), found.lines());
    let mut number = 0;
    let (expected, found) = loop {
        number += 1;
        let (left, right) = (left.next(), right.next());
        if left != right || left.is_none() {
            break (left, right);
        }
    };
    anyhow::bail!("{what} line {number}:\n  expected {expected:?}\n  found    {found:?}")
}
