//! What servers have built in is what the table of judgements has.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use automator67_planner::builtins;
use automator67_tests::{
    postgres::{Plain, all_binaries},
    wire::Connection,
};

mod whole;

/// By kind and name, with the versions that have it.
const LIST: &str = include_str!("../../planner/src/builtins/servers.txt");

/// Operators and casts are taken to do the same everywhere, whatever they are applied to; these
/// functions behind them read roles and relations by number.
const BY_NUMBER: &[&str] = &[
    "aclcontains",
    "aclitemeq",
    "aclinsert",
    "aclremove",
    "regclass",
];

#[test]
fn servers_have_built_in_what_is_judged() {
    let directories = all_binaries().expect("Postgres is installed");
    for directory in directories {
        let check = || -> Result<()> {
            let plain = Plain::of(&directory, &[])?;
            let mut connection = Connection::open(&plain.server)?;
            let version = version(&mut connection)?;
            names_are_listed(&mut connection, &version)?;
            system_columns_are_judged(&mut connection)?;
            columns_are_there(&mut connection)?;
            operators_and_casts_are_the_same(&mut connection)?;
            what_is_the_same_is_not_volatile(&mut connection)
        };
        check()
            .with_context(|| directory.display().to_string())
            .unwrap();
    }
}

fn version(connection: &mut Connection) -> Result<String> {
    let number = connection
        .execute("select current_setting('server_version_num')::int / 10000")?
        .context("a version")?;
    Ok(number)
}

fn names_are_listed(connection: &mut Connection, version: &str) -> Result<()> {
    let rows = connection.rows(builtins::NAMES)?;
    let server: BTreeSet<(String, String)> = rows
        .into_iter()
        .filter_map(|row| match row.as_slice() {
            [Some(kind), Some(name)] => Some((kind.clone(), name.clone())),
            _ => None,
        })
        .collect();
    let names = server.iter().map(|(_, name)| name.as_str());
    let unjudged = builtins::unjudged(names);
    ensure!(unjudged.is_empty(), "nobody has judged {unjudged:?}");
    let mut listed = BTreeSet::new();
    let mut kind = None;
    for line in LIST.lines().filter(|line| !line.starts_with('#')) {
        if let Some(heading) = line.strip_prefix("= ") {
            let mut words = heading.split(' ');
            kind = words.next().filter(|_| words.any(|one| one == version));
        } else if let Some(kind) = kind {
            let names = line.split_whitespace();
            listed.extend(names.map(|name| (kind.to_owned(), name.to_owned())));
        }
    }
    let missing: Vec<_> = server.difference(&listed).collect();
    let wrong: Vec<_> = listed.difference(&server).collect();
    ensure!(
        missing.is_empty() && wrong.is_empty(),
        "the list for version {version} lacks {missing:?}, and should not have {wrong:?}"
    );
    Ok(())
}

fn system_columns_are_judged(connection: &mut Connection) -> Result<()> {
    let rows = connection.rows(
        "select attname from pg_attribute where attrelid = 'pg_class'::regclass and attnum < 0",
    )?;
    let server: BTreeSet<String> = rows.into_iter().flatten().flatten().collect();
    let judged: BTreeSet<String> = builtins::judged()
        .filter(|(group, _)| *group == "system-column")
        .map(|(_, name)| name.to_owned())
        .collect();
    ensure!(
        server == judged,
        "{server:?} on the server, {judged:?} judged"
    );
    Ok(())
}

/// Columns that are summed are numbers of the relations that they are said to be of. Some came with
/// later versions.
fn columns_are_there(connection: &mut Connection) -> Result<()> {
    let rows = connection.rows(
        "select attrelid::regclass::text, attname, format_type(atttypid, null) from pg_attribute
         where attrelid < 16384 and attnum > 0",
    )?;
    let mut types = HashMap::new();
    for row in rows {
        if let [Some(relation), Some(column), Some(kind)] = row.as_slice() {
            types.insert((relation.clone(), column.clone()), kind.clone());
        }
    }
    for (group, column) in builtins::judged() {
        let Some((relations, key)) = group
            .strip_prefix("columns ")
            .and_then(|rest| rest.split_once(" by "))
        else {
            continue;
        };
        for relation in relations.split(' ') {
            let type_of = |name: &str| types.get(&(relation.to_owned(), name.to_owned()));
            ensure!(
                type_of(key).is_some_and(|kind| kind == "oid"),
                "{relation}.{key}"
            );
            let expected: &[&str] = match (relation, column) {
                (_, "reltuples") => &["real"],
                ("pg_class", _) => &["integer"],
                _ => &["bigint"],
            };
            match type_of(column) {
                Some(kind) => ensure!(
                    expected.contains(&kind.as_str()),
                    "{relation}.{column}: {kind}"
                ),
                None => ensure!(
                    matches!(column, "relallfrozen" | "n_tup_newpage_upd"),
                    "no {relation}.{column}"
                ),
            }
        }
    }
    Ok(())
}

fn operators_and_casts_are_the_same(connection: &mut Connection) -> Result<()> {
    let groups: HashMap<&str, &str> = builtins::judged()
        .filter(|(group, _)| !group.contains(' '))
        .map(|(group, name)| (name, group))
        .collect();
    let rows = connection.rows(
        "select p.proname::text from pg_proc p
         where p.oid < 16384 and p.oid in (
             select oprcode from pg_operator union select castfunc from pg_cast)",
    )?;
    for name in rows.into_iter().flatten().flatten() {
        let group = groups.get(name.as_str()).copied();
        ensure!(
            group == Some("same") || BY_NUMBER.contains(&name.as_str()),
            "an operator or cast calls {name}, which is {group:?}"
        );
    }
    Ok(())
}

fn what_is_the_same_is_not_volatile(connection: &mut Connection) -> Result<()> {
    let rows = connection.rows(
        "select p.proname::text || '/' || p.pronargs, p.proname::text from pg_proc p
         where p.oid < 16384 and p.provolatile = 'v'",
    )?;
    for row in rows {
        let same = builtins::judged().any(|(group, word)| {
            let word = Some(word);
            group == "same" && (word == row[0].as_deref() || word == row[1].as_deref())
        });
        ensure!(
            !same || row[0].as_deref() == Some("ts_rewrite/3"),
            "{row:?} is volatile"
        );
    }
    Ok(())
}
