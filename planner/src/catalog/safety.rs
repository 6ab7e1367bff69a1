//! Which functions could reach rows behind the proxy's back.
//!
//! A function's body is opaque to the planner: it runs on whatever server the statement runs on
//! and sees only that server's rows. It is judged by the words in it, comments and strings
//! included. A word too many costs a `declare_safe`; a word too few would cost a wrong answer, so
//! every doubt counts against the function.

use std::collections::{HashMap, HashSet};

use super::{FunctionSafety, document::Function};
use crate::{
    builtins::{self, Kind},
    functions,
};

/// The command of PL/pgSQL that runs SQL given as text, so that no word of the body need name what is
/// read.
const EXECUTE: &str = "execute";

/// Kinds of statement that read or change the state of one server: definitions, statistics,
/// notifications, locks.
const SERVER_STATEMENTS: &[&str] = &[
    "notify", "listen", "unlisten", "create", "alter", "drop", "truncate", "grant", "revoke",
    "reindex", "refresh", "analyze", "cluster", "lock",
];

/// Stands for all functions in schemas of temporary objects: each belongs to one session, so that the
/// catalog lists none of them. What calls one could read anything.
pub(super) const TEMPORARY: u32 = 0;

/// What a name in a body stands for.
pub(super) struct Names {
    /// Lower-case names of distributed and reference tables and of views on them, and a noun
    /// phrase for each.
    pub placed: HashMap<String, String>,
    /// Lower-case names of all other relations.
    pub local: HashSet<String>,
    /// Oids of functions declared safe.
    pub declared: HashSet<u32>,
    /// Some table has rows on several servers.
    pub has_parts: bool,
    /// Of those, the ones of which reading or writing reaches placed tables, and why.
    pub dangerous_reads: HashMap<String, String>,
    pub dangerous_writes: HashMap<String, String>,
    /// Lower-case names of types that run code, and the function.
    pub types: Vec<(String, u32)>,
}

/// What functions are.
pub(super) struct Verdicts {
    /// The safety of every function, by oid.
    pub safety: HashMap<u32, FunctionSafety>,
    /// Those that send notifications. A server delivers them to its own sessions.
    pub telling: HashSet<u32>,
}

/// Words of statements that change rows.
const CHANGES: &[&str] = &["insert", "update", "delete", "merge", "truncate", "copy"];

/// Words that send a notification.
const TELLS: &[&str] = &["notify", "pg_notify"];

/// The safety of every function: one that calls a less safe one is no safer.
pub(super) fn judge(functions: &[Function], calls: &[(u32, u32)], names: &Names) -> Verdicts {
    let bodies: Vec<Body> = functions.iter().map(Body::of).collect();
    let telling = telling(functions, &bodies, calls);
    let own = |(function, body): (&Function, &Body)| match own_safety(function, body, names) {
        FunctionSafety::Safe if telling.contains(&function.oid) => {
            FunctionSafety::HomeOnly(format!(
                "Function \"{}\" sends notifications, which only the home shard delivers.",
                function.name
            ))
        }
        own => own,
    };
    let mut safety: HashMap<u32, FunctionSafety> = functions
        .iter()
        .zip(&bodies)
        .map(|pair| (pair.0.oid, own(pair)))
        .collect();
    safety.insert(
        TEMPORARY,
        FunctionSafety::Unsafe("A temporary function can read any table.".to_owned()),
    );
    // Each round raises at least one verdict, and each can be raised twice.
    loop {
        let raised = raised(functions, &bodies, calls, names, &safety);
        if raised.is_empty() {
            return Verdicts { safety, telling };
        }
        safety.extend(raised);
    }
}

/// Functions that are less safe than they are known to be, by what they call.
fn raised(
    functions: &[Function],
    bodies: &[Body],
    calls: &[(u32, u32)],
    names: &Names,
    verdicts: &HashMap<u32, FunctionSafety>,
) -> Vec<(u32, FunctionSafety)> {
    let least_safe = by_name(functions, names, verdicts);
    let undeclared = functions
        .iter()
        .zip(bodies)
        .filter(|(function, _)| !names.declared.contains(&function.oid));
    undeclared
        .filter_map(|(function, body)| {
            let by_word = least_safe
                .iter()
                .filter(|(name, _)| **name != function.name.to_lowercase() && body.mentions(name))
                .map(|(name, safety)| (name.as_str(), *safety));
            let by_oid = calls
                .iter()
                .filter(|(caller, _)| *caller == function.oid)
                .filter_map(|(_, callee)| Some((callee, verdicts.get(callee)?)))
                .map(|(callee, safety)| (name_of(functions, *callee), safety));
            let worst = by_word.chain(by_oid).max_by_key(|(_, safety)| rank(safety));
            let (callee, safety) = worst?;
            let reason = format!("Function \"{}\" calls \"{callee}\".", function.name);
            (rank(safety) > rank(&verdicts[&function.oid]))
                .then(|| (function.oid, because(safety, reason)))
        })
        .collect()
}

/// Functions that send notifications, or call such. What they are declared to be does not change
/// who hears of it.
fn telling(functions: &[Function], bodies: &[Body], calls: &[(u32, u32)]) -> HashSet<u32> {
    let all = || functions.iter().zip(bodies);
    let tells = all().filter(|(_, body)| body.has_any(TELLS).is_some());
    let mut found: HashSet<u32> = tells.map(|(function, _)| function.oid).collect();
    let mut size = 0;
    while size != found.len() {
        size = found.len();
        let callees = functions.iter().filter(|one| found.contains(&one.oid));
        let callees: Vec<String> = callees.map(|one| one.name.to_lowercase()).collect();
        let by_word = all().filter(|(_, body)| callees.iter().any(|name| body.mentions(name)));
        let by_oid = calls.iter().filter(|(_, callee)| found.contains(callee));
        let callers: Vec<u32> = by_word
            .map(|(function, _)| function.oid)
            .chain(by_oid.map(|(caller, _)| *caller))
            .collect();
        found.extend(callers);
    }
    found
}

/// Greater is less safe.
pub(super) fn rank(safety: &FunctionSafety) -> u8 {
    match safety {
        FunctionSafety::Safe => 0,
        FunctionSafety::HomeOnly(_) => 1,
        FunctionSafety::Unsafe(_) => 2,
    }
}

/// The same verdict for a caller, with the caller's reason before the callee's.
fn because(safety: &FunctionSafety, reason: String) -> FunctionSafety {
    match safety {
        FunctionSafety::Safe => FunctionSafety::Safe,
        FunctionSafety::HomeOnly(why) => FunctionSafety::HomeOnly(format!("{reason} {why}")),
        FunctionSafety::Unsafe(why) => FunctionSafety::Unsafe(format!("{reason} {why}")),
    }
}

/// Lower-case names of all functions, and types with code, that are not safe, with the least safe
/// one's verdict.
fn by_name<'a>(
    functions: &[Function],
    names: &Names,
    verdicts: &'a HashMap<u32, FunctionSafety>,
) -> HashMap<String, &'a FunctionSafety> {
    let mut least_safe: HashMap<String, &FunctionSafety> = HashMap::new();
    let functions = functions
        .iter()
        .map(|one| (one.name.to_lowercase(), one.oid));
    for (name, oid) in functions.chain(names.types.iter().cloned()) {
        let Some(safety) = verdicts.get(&oid) else {
            continue;
        };
        if *safety == FunctionSafety::Safe {
            continue;
        }
        let entry = least_safe.entry(name).or_insert(safety);
        if rank(safety) > rank(entry) {
            *entry = safety;
        }
    }
    least_safe
}

fn name_of(functions: &[Function], oid: u32) -> &str {
    functions
        .iter()
        .find(|function| function.oid == oid)
        .map_or("", |function| &function.name)
}

/// A body, lower-cased and split into words.
struct Body {
    text: String,
    words: HashSet<String>,
    /// Words before an opening bracket.
    called: HashSet<String>,
}

impl Body {
    fn of(function: &Function) -> Body {
        let text = function.body.as_deref().unwrap_or_default().to_lowercase();
        let called = called(&text).map(str::to_owned).collect();
        let words = words(&text).map(str::to_owned).collect();
        Body {
            text,
            words,
            called,
        }
    }

    /// Whether a lower-case name may stand in the body: as a word, or anywhere if it is not one.
    fn mentions(&self, name: &str) -> bool {
        if name.chars().all(continues_word) {
            self.words.contains(name)
        } else {
            // In quotes, a quote in a name is doubled.
            self.text.contains(name) || self.text.contains(&name.replace('"', "\"\""))
        }
    }

    fn has_any(&self, words: &[&'static str]) -> Option<&'static str> {
        words
            .iter()
            .copied()
            .find(|word| self.words.contains(*word))
    }

    /// A built-in function that may be called, and that is of some kind with some number of arguments.
    fn calls(&self, is_wanted: impl Fn(Kind) -> bool) -> Option<&str> {
        let wanted = |word: &&String| builtins::kinds(word).any(&is_wanted);
        self.called.iter().filter(wanted).map(String::as_str).min()
    }

    /// The same of a function that is of such a kind with every number of arguments.
    fn surely_calls(&self, is_wanted: impl Fn(Kind) -> bool) -> Option<&str> {
        let wanted = |word: &&String| {
            let mut kinds = builtins::kinds(word).peekable();
            kinds.peek().is_some() && kinds.all(&is_wanted)
        };
        self.called.iter().filter(wanted).map(String::as_str).min()
    }

    /// A size that is asked for, or a relation of which a number is read.
    fn asks_for_numbers(&self) -> Option<&str> {
        let of_relations = |kind| matches!(kind, Kind::Size | Kind::Maintenance);
        let reads = |relation: &&String| {
            let columns =
                builtins::summed_columns(relation).map_or(&[][..], |(_, columns)| columns);
            columns.iter().any(|column| self.words.contains(*column))
        };
        let relation = || self.words.iter().filter(reads).min();
        self.calls(of_relations)
            .or_else(|| relation().map(String::as_str))
    }
}

fn continues_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !continues_word(c))
        .filter(|word| !word.is_empty())
}

/// Words before an opening bracket, with or without quotes, also where a comment is between.
fn called(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('(').flat_map(|(at, _)| {
        let before = text[..at].trim_end();
        let behind = std::iter::successors(Some(before), |text| without_comment(text));
        behind.filter_map(last_word)
    })
}

fn last_word(text: &str) -> Option<&str> {
    let text = text.strip_suffix('"').unwrap_or(text);
    words(text.rsplit(|c| !continues_word(c)).next()?).next()
}

/// A text without what may be a comment at its end.
fn without_comment(text: &str) -> Option<&str> {
    let at = match text.strip_suffix("*/") {
        Some(text) => text.rfind("/*")?,
        None => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            line + text[line..].find("--")?
        }
    };
    Some(text[..at].trim_end())
}

/// What a function of this kind tells or does belongs to one server. Times, random numbers, and who
/// asks, are those of the server where the row is.
fn is_of_one_server(kind: Kind) -> bool {
    match kind {
        Kind::Sequence
        | Kind::Seed
        | Kind::SessionLock
        | Kind::Changes
        | Kind::OwnTransaction
        | Kind::Home => true,
        Kind::Same
        | Kind::TransactionTime
        | Kind::StatementTime
        | Kind::CallTime
        | Kind::Random
        | Kind::Setting
        | Kind::Client
        | Kind::Query
        | Kind::Size
        | Kind::Maintenance
        | Kind::Catalog => false,
    }
}

/// What a function is by its own body alone.
fn own_safety(function: &Function, body: &Body, names: &Names) -> FunctionSafety {
    let name = &function.name;
    if names.declared.contains(&function.oid) {
        return FunctionSafety::Safe;
    }
    if let Some(extension) = &function.extension {
        return FunctionSafety::Unsafe(format!(
            "Function \"{name}\" of extension \"{extension}\" can reach any table."
        ));
    }
    match function.language.as_str() {
        "c" | "internal" => return FunctionSafety::Safe,
        "sql" | "plpgsql" if function.body.is_none() => {
            return FunctionSafety::Unsafe(format!(
                "Function \"{name}\" could not be read: somebody holds a lock on a table in it."
            ));
        }
        "sql" | "plpgsql" => {}
        language => {
            return FunctionSafety::Unsafe(format!(
                "Function \"{name}\" is written in {language}, which can read any table."
            ));
        }
    }
    if let Some(reason) = unsafe_reason(name, body, names) {
        return FunctionSafety::Unsafe(reason);
    }
    if let Some(relation) = names
        .local
        .iter()
        .filter(|local| body.mentions(local))
        .min()
    {
        return FunctionSafety::HomeOnly(format!(
            "Function \"{name}\" names the local relation \"{relation}\"."
        ));
    }
    let state = body
        .has_any(SERVER_STATEMENTS)
        .or_else(|| body.surely_calls(is_of_one_server));
    match state {
        Some(word) => FunctionSafety::HomeOnly(format!(
            "Function \"{name}\" uses \"{word}\", which belongs to one server."
        )),
        None => FunctionSafety::Safe,
    }
}

fn unsafe_reason(name: &str, body: &Body, names: &Names) -> Option<String> {
    let placed = names
        .placed
        .iter()
        .filter(|(placed, _)| body.mentions(placed))
        .min();
    if let Some((_, placed)) = placed {
        return Some(format!("Function \"{name}\" names the {placed}."));
    }
    if let Some((local, why)) = names.dangerous(body) {
        return Some(format!(
            "Function \"{name}\" names the relation \"{local}\". {why}"
        ));
    }
    let runs_text = body.has_any(&[EXECUTE]);
    if let Some(word) = runs_text.or_else(|| body.calls(|kind| kind == Kind::Query)) {
        return Some(format!(
            "Function \"{name}\" runs SQL given as text, by \"{word}\"."
        ));
    }
    if let Some(word) = names.has_parts.then(|| body.asks_for_numbers()).flatten() {
        return Some(format!(
            "Function \"{name}\" uses \"{word}\", of which every shard has its own share."
        ));
    }
    if functions::calls_temporary(&body.text) {
        return Some(format!("Function \"{name}\" calls a temporary function."));
    }
    if body.text.contains("u&\"") {
        return Some(format!(
            "Function \"{name}\" spells names by Unicode escapes."
        ));
    }
    let spreads = body.has_any(&["drop", "truncate"]).is_some()
        && body.has_any(&["cascade", "schema", "owned"]).is_some();
    spreads.then(|| format!("Function \"{name}\" drops or truncates by cascade."))
}

impl Names {
    /// A relation that code reaches placed tables by, if the body names one and does that to it.
    fn dangerous(&self, body: &Body) -> Option<(&str, &str)> {
        let changes = body.has_any(CHANGES).is_some();
        let writes = self.dangerous_writes.iter().filter(|_| changes);
        let named = self.dangerous_reads.iter().chain(writes);
        let named = named.filter(|(name, _)| body.mentions(name)).min();
        named.map(|(name, why)| (name.as_str(), why.as_str()))
    }
}

/// Words of code whose values differ from server to server.
const UNEVEN: &[&str] = &[
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "clock_timestamp",
    "statement_timestamp",
    "timeofday",
    "now",
    "transaction_timestamp",
    "current_timestamp",
    "current_time",
    "current_date",
    "localtime",
    "localtimestamp",
];

/// A word by which a function may give each copy of a row other values.
pub(super) fn uneven(function: &Function) -> Option<&'static str> {
    Body::of(function).has_any(UNEVEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_words_before_a_bracket() {
        for (text, name, is_called) in [
            ("select nextval('s')", "nextval", true),
            ("select pg_catalog . \"nextval\" ('s')", "nextval", true),
            ("select nextval /* of s */ ('s')", "nextval", true),
            ("select nextval -- of s\n ('s')", "nextval", true),
            ("select '--' || nextval('s')", "nextval", true),
            ("select version from t where (a)", "version", false),
            ("select f(version)", "version", false),
        ] {
            assert_eq!(called(text).any(|word| word == name), is_called, "{text}");
        }
    }
}
