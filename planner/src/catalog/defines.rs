//! Functions that change the schema: called, they would do so on one shard, and the shards would
//! differ for good.

use std::collections::{HashMap, HashSet};

use super::{document::Function, residue::Reader};
use crate::{
    gather::folded,
    normalise::{TokenKind, tokens},
};

/// What CREATE makes, where another word stands before it.
const BEFORE_KIND: &[&str] = &["or", "replace", "unlogged", "unique", "if", "not", "exists"];

/// The functions that change the schema, by name, and by which command. `relations` are the names of
/// lasting relations, lower-case: another name is a temporary one's.
pub(super) fn definers(
    functions: &[Function],
    calls: &[(u32, u32)],
    relations: &HashSet<String>,
    declared: &HashSet<u32>,
) -> HashMap<String, String> {
    let judged = functions
        .iter()
        .filter(|one| one.extension.is_none() && !declared.contains(&one.oid));
    let judged: Vec<(&Function, &str)> = judged
        .filter_map(|one| Some((one, one.body.as_deref()?)))
        .collect();
    let mut found: HashMap<u32, String> = judged
        .iter()
        .filter_map(|(one, body)| Some((one.oid, command(body, relations)?)))
        .collect();
    let mut size = 0;
    while size != found.len() {
        size = found.len();
        let by_name: HashMap<String, String> = functions
            .iter()
            .filter_map(|one| Some((one.name.clone(), found.get(&one.oid)?.clone())))
            .collect();
        for (caller, body) in &judged {
            let of_caller = |(one, _): &&(u32, u32)| *one == caller.oid;
            let by_oid = calls.iter().filter(of_caller);
            let by_oid = by_oid.filter_map(|(_, callee)| found.get(callee).cloned());
            let command = by_oid.chain(named_in(body, &by_name)).next();
            if let Some(command) = command.filter(|_| !found.contains_key(&caller.oid)) {
                found.insert(caller.oid, command);
            }
        }
    }
    let named = functions.iter();
    named
        .filter_map(|one| Some((one.name.clone(), found.remove(&one.oid)?)))
        .collect()
}

/// What a body calls by one of these names.
fn named_in(body: &str, names: &HashMap<String, String>) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let list = tokens(body);
    let mut words = list
        .iter()
        .filter(|token| matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier));
    words.find_map(|token| names.get(&folded(&body[token.start..token.end])).cloned())
}

/// The first command of a body that changes what lasts.
fn command(body: &str, relations: &HashSet<String>) -> Option<String> {
    let list = tokens(body);
    let reader = Reader {
        text: body,
        list: &list,
    };
    (0..list.len())
        .filter(|at| reader.starts_statement(*at))
        .find_map(|at| {
            let verb = reader.word(at)?;
            let defines = match verb.as_str() {
                "create" => creates(&reader, at + 1, relations),
                "alter" | "drop" => changes(&reader, at + 1, relations),
                "grant" | "revoke" | "comment" => true,
                _ => false,
            };
            let kind = reader.word(kind_at(&reader, at + 1)).unwrap_or_default();
            defines.then(|| format!("{verb} {kind}"))
        })
}

fn kind_at(reader: &Reader<'_>, at: usize) -> usize {
    let skipped = |at: &usize| {
        let word = reader.word(*at);
        word.is_some_and(|word| BEFORE_KIND.contains(&word.as_str()))
    };
    at + (at..).take_while(skipped).count()
}

fn creates(reader: &Reader<'_>, at: usize, relations: &HashSet<String>) -> bool {
    let at = kind_at(reader, at);
    match reader.word(at).as_deref() {
        Some("temp" | "temporary" | "local" | "global") => false,
        Some("index") => {
            let on = (at..reader.list.len()).find(|at| reader.word(*at).as_deref() == Some("on"));
            on.is_some_and(|on| is_lasting(reader, on + 1, relations))
        }
        Some(_) => named(reader, at + 1).0.as_deref() != Some("pg_temp"),
        None => false,
    }
}

fn changes(reader: &Reader<'_>, at: usize, relations: &HashSet<String>) -> bool {
    match reader.word(at).as_deref() {
        Some("table" | "view" | "sequence") => is_lasting(reader, at + 1, relations),
        kind => kind.is_some(),
    }
}

fn is_lasting(reader: &Reader<'_>, at: usize, relations: &HashSet<String>) -> bool {
    match named(reader, at) {
        (Some(schema), _) if schema == "pg_temp" => false,
        (_, Some(name)) => relations.contains(&name.to_lowercase()),
        (_, None) => false,
    }
}

/// The schema and the name that stand at a place, behind IF [NOT] EXISTS and ONLY.
fn named(reader: &Reader<'_>, at: usize) -> (Option<String>, Option<String>) {
    let at = kind_at(reader, at);
    let at = at + usize::from(reader.word(at).as_deref() == Some("only"));
    let name = |at: usize| {
        let token = reader.list.get(at)?;
        let named = matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier);
        named.then(|| folded(reader.spelled(*token)))
    };
    let dot = reader.list.get(at + 1);
    match dot.is_some_and(|dot| dot.kind == TokenKind::Punctuation('.')) {
        true => (name(at), name(at + 2)),
        false => (None, name(at)),
    }
}

#[cfg(test)]
mod tests;
