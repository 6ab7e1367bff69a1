//! What belongs to one server: every function, relation and system column of Postgres, judged once.
//!
//! The table is `builtins.txt`, an allow-list: what is not on it is not harmless but unknown, and
//! refused over several shards. Functions of users and of extensions are judged by what they are made
//! of (`catalog/safety`).

use std::{collections::HashMap, sync::LazyLock};

const TABLE: &str = include_str!("builtins.txt");

/// What a built-in function is over several servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The same value everywhere.
    Same,
    /// The transaction's time.
    TransactionTime,
    /// The statement's time.
    StatementTime,
    /// The time of the call.
    CallTime,
    /// Another value for each call, and no server's own.
    Random,
    /// `setseed`.
    Seed,
    /// A sequence's value, read or drawn.
    Sequence,
    /// A setting, read or made.
    Setting,
    /// Runs SQL given as text.
    Query,
    /// Locks for the session.
    SessionLock,
    /// The size of a relation or database.
    Size,
    /// Who asks, and what.
    Client,
    /// Changes one server.
    Changes,
    /// Keeps house for a relation, of which every shard has a part.
    Maintenance,
    /// Numbers that only a server has that was written to.
    OwnTransaction,
    /// The state of one server.
    Home,
    /// Definitions by one server's numbers.
    Catalog,
}

impl Kind {
    fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "same" => Kind::Same,
            "transaction-time" => Kind::TransactionTime,
            "statement-time" => Kind::StatementTime,
            "call-time" => Kind::CallTime,
            "random" => Kind::Random,
            "seed" => Kind::Seed,
            "sequence" => Kind::Sequence,
            "setting" => Kind::Setting,
            "query" => Kind::Query,
            "session-lock" => Kind::SessionLock,
            "size" => Kind::Size,
            "client" => Kind::Client,
            "changes" => Kind::Changes,
            "maintenance" => Kind::Maintenance,
            "own-transaction" => Kind::OwnTransaction,
            "home" => Kind::Home,
            "catalog" => Kind::Catalog,
            _ => return None,
        })
    }
}

/// What the rows of a built-in relation are over several servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Definitions, which every shard has.
    Definitions,
    /// The state of one server.
    Server,
    /// The state of one server session.
    Session,
    /// Numbers that are summed.
    Summed,
    /// A sample of one shard's rows.
    Sample,
}

impl Rows {
    fn named(name: &str) -> Option<Rows> {
        Some(match name {
            "definitions" => Rows::Definitions,
            "server" => Rows::Server,
            "session" => Rows::Session,
            "summed" => Rows::Summed,
            "sample" => Rows::Sample,
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Table {
    /// By name; with a number of arguments where that has a judgement of its own.
    functions: HashMap<&'static str, Vec<(Option<usize>, Kind)>>,
    relations: HashMap<&'static str, Rows>,
    system_columns: Vec<&'static str>,
    /// By relation: the column that names the table or index, and those that are summed.
    summed: HashMap<&'static str, (&'static str, Vec<&'static str>)>,
}

static JUDGED: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::default();
    let mut group = "";
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("= ") {
            Some(heading) => group = heading.split(" of ").next().unwrap_or(heading),
            None => line
                .split_whitespace()
                .for_each(|word| table.add(group, word)),
        }
    }
    table
});

impl Table {
    fn add(&mut self, group: &'static str, word: &'static str) {
        if let Some(kind) = Kind::named(group) {
            let (name, arguments) = match word.split_once('/') {
                Some((name, count)) => (name, count.parse().ok()),
                None => (word, None),
            };
            let judged = self.functions.entry(name).or_default();
            judged.push((arguments, kind));
        } else if group == "system-column" {
            self.system_columns.push(word);
        } else if let Some((relations, key)) = columns(group) {
            for relation in relations.split_whitespace() {
                let (_, columns) = self.summed.entry(relation).or_insert((key, Vec::new()));
                columns.push(word);
            }
        } else if let Some(rows) = group.strip_prefix("relations ").and_then(Rows::named) {
            self.relations.insert(word, rows);
        }
    }
}

/// `columns relation ... by key`
fn columns(group: &str) -> Option<(&str, &str)> {
    group.strip_prefix("columns ")?.split_once(" by ")
}

/// The judgement on a built-in function; `None` for any other name.
pub(crate) fn function(name: &str, arguments: usize) -> Option<Kind> {
    let judged = JUDGED.functions.get(name)?;
    let of = |wanted| judged.iter().find(|(count, _)| *count == wanted);
    of(Some(arguments))
        .or_else(|| of(None))
        .map(|(_, kind)| *kind)
}

/// The judgements on the built-in functions of a name.
pub(crate) fn kinds(name: &str) -> impl Iterator<Item = Kind> {
    let judged = JUDGED.functions.get(name);
    judged.into_iter().flatten().map(|(_, kind)| *kind)
}

/// The judgement on a built-in relation.
pub(crate) fn relation(name: &str) -> Option<Rows> {
    JUDGED.relations.get(name).copied()
}

/// Of a relation with numbers of tables or indexes: the column that says of which, and those numbers.
pub(crate) fn summed_columns(name: &str) -> Option<(&'static str, &'static [&'static str])> {
    let (key, columns) = JUDGED.summed.get(name)?;
    Some((key, columns))
}

/// Some relation has such numbers in a column of this name.
pub(crate) fn is_summed_column(name: &str) -> bool {
    JUDGED
        .summed
        .values()
        .any(|(_, columns)| columns.contains(&name))
}

/// `ctid` and the like.
pub(crate) fn is_system_column(name: &str) -> bool {
    JUDGED.system_columns.contains(&name)
}

/// Gives the names of a server's built-in functions, tables and views. Left out are functions that nobody
/// can call in SQL, as a type of their arguments or of their result has no values there.
pub const NAMES: &str = "
    with internal as (
        select t.oid from pg_catalog.pg_type t
        where t.typnamespace = 'pg_catalog'::regnamespace and t.typname in (
            'internal', 'trigger', 'event_trigger', 'language_handler', 'fdw_handler',
            'index_am_handler', 'table_am_handler', 'tsm_handler')
    )
    select 'function' as kind, p.proname::text as name from pg_catalog.pg_proc p
    where p.oid < 16384
        and p.pronamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        and p.prorettype not in (select oid from internal)
        and not p.proargtypes::oid[] && array(select oid from internal)
    union
    select 'relation', c.relname::text from pg_catalog.pg_class c
    where c.oid < 16384 and c.relkind in ('r', 'v')
        and c.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)";

/// Those of a server's names that nobody has judged: it is newer than the table.
pub fn unjudged<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let judged =
        |name: &str| JUDGED.functions.contains_key(name) || JUDGED.relations.contains_key(name);
    names
        .filter(|name| !judged(name))
        .map(str::to_owned)
        .collect()
}

/// Every name that the table has, with its group: for tests that read the catalogs of servers.
pub fn judged() -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut group = "";
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(move |line| {
            let heading = line.strip_prefix("= ");
            group = heading.unwrap_or(group);
            let of = group;
            let words = if heading.is_some() { "" } else { line };
            words.split_whitespace().map(move |word| (of, word))
        })
}

#[cfg(test)]
mod tests;
