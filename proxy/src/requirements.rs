//! What servers must have, and be, before the proxy begins to work on them. All that can be reached
//! are asked at the start, before anything is written to one: a start that fails leaves nothing.
//!
//! Who a server is stands in `automator67.identity` there, written when the shard is set up, and is
//! compared again by every connection, see [`Shard::recognise`](crate::shard::Shard::recognise).

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use crate::{
    settings::{Settings, TwoPhaseMode},
    shard::{Identity, Shard},
    store::{self, StoreError},
};

/// Why servers cannot be used, with what to change.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{problem}\nchange that: {remedy}")]
pub struct Unfit {
    problem: String,
    remedy: String,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    /// Its name in the settings, and where it is.
    shard: String,
    address: String,
    /// `server_version_num`.
    version: i32,
    /// This database of this running server, and no other.
    place: String,
    /// Written by a proxy.
    identity: Option<Identity>,
    /// The cluster whose catalog is here.
    home_of: Option<String>,
    prepared_max: i32,
    /// Encoding, locale, and the versions of what compares texts.
    collation: BTreeMap<String, String>,
    /// Names and versions.
    extensions: BTreeMap<String, String>,
    role: String,
    /// The role may make our schemas, or has.
    may_create: bool,
    database: String,
}

/// Columns that are not there in an older version come out of `to_jsonb` as null.
const FACTS: &str = "
    select current_setting('server_version_num')::integer,
        concat_ws(' ', (select system_identifier from pg_control_system()),
            extract(epoch from pg_postmaster_start_time()), d.oid),
        to_regclass('automator67.identity') is not null,
        to_regclass('automator67.cluster') is not null,
        current_setting('max_prepared_transactions')::integer,
        json_build_object(
            'encoding', current_setting('server_encoding'),
            'provider', coalesce(j.row ->> 'datlocprovider', 'c'),
            'collate', d.datcollate::text,
            'ctype', d.datctype::text,
            'locale', coalesce(j.row ->> 'datlocale', j.row ->> 'daticulocale', ''),
            'libc version', (
                select coalesce(max(pg_collation_actual_version(c.oid)), '') from pg_collation c
                where c.collprovider = 'c' and c.collencoding in (-1, d.encoding)),
            'ICU version', (
                select coalesce(max(pg_collation_actual_version(c.oid)), '') from pg_collation c
                where c.collname = 'und-x-icu')
        )::text,
        (select coalesce(json_object_agg(e.extname, e.extversion), '{}')::text from pg_extension e),
        current_user::text,
        has_database_privilege(d.oid, 'CREATE')
            or exists (
                select from pg_namespace n
                where n.nspname = 'automator67' and pg_has_role(n.nspowner, 'USAGE')),
        d.datname::text
    from pg_database d
    cross join lateral (select to_jsonb(d) as row) j
    where d.datname = current_database()";

/// Asks all servers that can be reached whether they will do. Says what could be better.
pub async fn check(shards: &[Arc<Shard>], settings: &Settings) -> Result<(), StoreError> {
    let mut all = Vec::new();
    for shard in shards {
        match look(shard).await {
            Ok(facts) => all.push((shard.id, facts)),
            // The home shard is needed; another one is asked who it is when it is back.
            Err(error) if shard.id == shards[0].id => return Err(error),
            Err(error) => {
                tracing::warn!(shard = shard.settings.name, %error, "not asked what it has");
            }
        }
    }
    known(&all, &shards[0].names)?;
    for (_, facts) in &all {
        may_create(facts)?;
    }
    for (id, facts) in all.iter().filter(|_| shards.len() > 1) {
        let shard = shards.iter().find(|shard| shard.id == *id);
        let pool = shard.map_or(0, |shard| shard.settings.pool_size_max);
        let needed = settings.users.len() * pool;
        if is_short_of_places(facts, needed) {
            tracing::warn!(
                shard = facts.shard,
                max_prepared_transactions = facts.prepared_max,
                needed,
                "the server may run out of places for prepared transactions: set \
                 max_prepared_transactions there, and restart it"
            );
        }
    }
    let prepared = prepared(&all);
    let alike = alike(&all);
    let tolerated = [
        (settings.two_phase == TwoPhaseMode::Prefer, prepared),
        (settings.mixed_versions, alike),
    ];
    for (tolerated, judged) in tolerated {
        match judged {
            Err(unfit) if tolerated => tracing::warn!(problem = unfit.problem, "servers differ"),
            judged => judged?,
        }
    }
    Ok(())
}

async fn look(shard: &Arc<Shard>) -> Result<Facts, StoreError> {
    let (client, connection) = store::connect(shard).await?;
    tokio::spawn(connection);
    let row = client.query_one(FACTS, &[]).await?;
    let map = |text: &str| serde_json::from_str(text).unwrap_or_default();
    let identity = if row.get(2) {
        store::read_identity(&client).await?
    } else {
        None
    };
    let home_of = if row.get(3) {
        let cluster = "select name from automator67.cluster";
        client.query_opt(cluster, &[]).await?.map(|row| row.get(0))
    } else {
        None
    };
    Ok(Facts {
        shard: shard.settings.name.clone(),
        address: shard.address(),
        version: row.get(0),
        place: row.get(1),
        identity,
        home_of,
        prepared_max: row.get(4),
        collation: map(row.get(5)),
        extensions: map(row.get(6)),
        role: row.get(7),
        may_create: row.get(8),
        database: row.get(9),
    })
}

/// Each server is the one that its name had before, and no other's.
fn known(all: &[(u32, Facts)], names: &[String]) -> Result<(), Unfit> {
    for (index, (_, facts)) in all.iter().enumerate() {
        if let Some((_, other)) = all[..index].iter().find(|(_, it)| it.place == facts.place) {
            return Err(Unfit {
                problem: format!(
                    "shards \"{}\" and \"{}\" are the same database of the same server ({}, {})",
                    other.shard, facts.shard, other.address, facts.address
                ),
                remedy: format!("give shard \"{}\" the URL of its own server", facts.shard),
            });
        }
    }
    let home = all.first().map(|(_, home)| home);
    let home_of = home.and_then(|home| home.home_of.as_ref());
    for (id, facts) in all {
        let who = |text: String| Unfit {
            problem: format!(
                "the server of shard \"{}\" ({}) is {text}",
                facts.shard, facts.address
            ),
            remedy: "give every shard the URL that it had before; the order of [[shards]] is that \
                     of the first start"
                .to_owned(),
        };
        let other_home = facts.home_of.as_ref().filter(|_| *id != 1);
        match (&facts.identity, home_of) {
            (Some(is), _) if is.shard != *id => {
                return Err(who(is.describe(names, home_of.unwrap_or(&is.cluster))));
            }
            (Some(is), Some(cluster)) if is.cluster != *cluster => {
                return Err(who(is.describe(names, cluster)));
            }
            (Some(is), None) => return Err(who(is.describe(names, ""))),
            // Of a version that wrote no identity.
            (None, _) if other_home.is_some() => {
                let cluster = other_home.map_or("", String::as_str);
                return Err(who(format!("the home shard of cluster {cluster}")));
            }
            (Some(_) | None, _) => {}
        }
    }
    Ok(())
}

fn may_create(facts: &Facts) -> Result<(), Unfit> {
    if facts.may_create {
        return Ok(());
    }
    let Facts { shard, role, .. } = facts;
    Err(Unfit {
        problem: format!(
            "role \"{role}\" of the URL of shard \"{shard}\" may not create the schema automator67"
        ),
        remedy: format!(
            "on shard \"{shard}\": grant create on database \"{}\" to \"{role}\"",
            facts.database
        ),
    })
}

/// One writer of a transaction may be unable to prepare, but not two.
fn prepared(all: &[(u32, Facts)]) -> Result<(), Unfit> {
    let unable = all.iter().filter(|(_, it)| it.prepared_max == 0);
    let unable: Vec<String> = unable
        .map(|(_, it)| format!("\"{}\" ({})", it.shard, it.address))
        .collect();
    if unable.len() < 2 {
        return Ok(());
    }
    Err(Unfit {
        problem: format!(
            "max_prepared_transactions is 0 on shards {}: no transaction could write on two of them, \
             and no schema could change",
            unable.join(", ")
        ),
        remedy: "in postgresql.conf of each: max_prepared_transactions = 100; then restart it \
                 (at least users × pool_size of all proxies; or [transactions] two_phase = \"prefer\")"
            .to_owned(),
    })
}

/// The server takes prepared transactions, but not so many as this proxy alone may want at once.
fn is_short_of_places(facts: &Facts, needed: usize) -> bool {
    let places = usize::try_from(facts.prepared_max).unwrap_or(0);
    (1..needed).contains(&places)
}

/// What one server answers another would answer, too.
fn alike(all: &[(u32, Facts)]) -> Result<(), Unfit> {
    let Some(((_, home), others)) = all.split_first() else {
        return Ok(());
    };
    for (_, other) in others {
        let differ = |what: &str, at_home: &str, elsewhere: &str, remedy: String| Unfit {
            problem: format!(
                "{what} is {at_home} on shard \"{}\" and {elsewhere} on shard \"{}\" ({})",
                home.shard, other.shard, other.address
            ),
            remedy: format!("{remedy}, or accept the differences: [sql] mixed_versions = true"),
        };
        let (major, other_major) = (home.version / 10_000, other.version / 10_000);
        if major != other_major {
            return Err(differ(
                "the major version of Postgres",
                &major.to_string(),
                &other_major.to_string(),
                "use one version".to_owned(),
            ));
        }
        if let Some((key, at_home, elsewhere)) = first_difference(&home.collation, &other.collation)
        {
            return Err(differ(
                &format!("the database's {key}"),
                at_home,
                elsewhere,
                "make all databases alike, on the same operating system".to_owned(),
            ));
        }
        if let Some((name, at_home, elsewhere)) =
            first_difference(&home.extensions, &other.extensions)
        {
            let (shard, command) = match (at_home, elsewhere) {
                (NOT_THERE, version) => {
                    (home, format!("create extension {name} version '{version}'"))
                }
                (version, NOT_THERE) => (
                    other,
                    format!("create extension {name} version '{version}'"),
                ),
                (version, _) => (
                    other,
                    format!("alter extension {name} update to '{version}'"),
                ),
            };
            return Err(differ(
                &format!("extension {name}"),
                at_home,
                elsewhere,
                format!("on shard \"{}\": {command}", shard.shard),
            ));
        }
    }
    Ok(())
}

const NOT_THERE: &str = "not there";

/// The first key whose values differ, with both.
fn first_difference<'f>(
    one: &'f BTreeMap<String, String>,
    other: &'f BTreeMap<String, String>,
) -> Option<(&'f str, &'f str, &'f str)> {
    let keys = one.keys().chain(other.keys());
    let value =
        |map: &'f BTreeMap<String, String>, key| map.get(key).map_or(NOT_THERE, String::as_str);
    let mut differences = keys.map(|key| (key.as_str(), value(one, key), value(other, key)));
    differences.find(|(_, one, other)| one != other)
}

#[cfg(test)]
mod tests;
