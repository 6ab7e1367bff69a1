//! What names mean that more than one object has: functions of one name, and objects of users with
//! the name of a built-in one.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Catalog, FunctionSafety, document::Function, safety};

/// The schema of everything that is built in. Where a search path does not name it, it comes first.
const BUILT_IN: &str = "pg_catalog";

/// Operators that proofs rest on: those of `=`, IN, BETWEEN, USING, LIKE and the like.
const PROVING: &[&str] = &["=", "<>", "<", "<=", ">", ">=", "~~", "!~~"];

/// Of a function: its oid, its schema, the least number of arguments, the largest one if there is one.
type Signature = (u32, String, usize, Option<usize>);

/// The part of the catalog document that tells functions of one name apart, and has the code that runs
/// where no statement names it. Lists without members are null.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct StoredNames {
    signatures: Option<Vec<Signature>>,
    /// What has the name of something built in: schema, kind, name.
    hiding: Option<Vec<(String, ObjectKind, String)>>,
    /// Casts by functions: both types, the target's name, the function.
    pub casts: Option<Vec<(u32, u32, String, u32)>>,
    /// Types with functions of operator classes.
    pub class_types: Option<Vec<(u32, u32)>>,
    /// Tables with indexes by functions of operator classes.
    pub class_tables: Option<Vec<(u32, u32)>>,
    /// Event triggers and their functions.
    pub event_triggers: Option<Vec<(String, u32)>>,
    /// Views that read numbers that every shard has of its own. No text: a lock kept it from being read.
    pub number_views: Option<Vec<(u32, Option<String>)>>,
}

/// A kind of object that is looked up by its name on the search path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ObjectKind {
    Function,
    Operator,
    Type,
}

/// Objects of users that have the name of a built-in one and take built-in types.
#[derive(Debug, Clone, Default)]
pub struct Hiding(HashSet<(String, ObjectKind, String)>);

/// One of several functions of a name.
#[derive(Debug, Clone)]
pub struct Overload {
    schema: String,
    arguments_min: usize,
    /// `None`: any number, VARIADIC.
    arguments_max: Option<usize>,
    safety: FunctionSafety,
}

impl StoredNames {
    pub(super) fn hiding(&mut self) -> Hiding {
        Hiding(self.hiding.take().into_iter().flatten().collect())
    }

    /// The functions of names of which some, and not all, are safe; no name with a function whose
    /// signature is not known.
    pub(super) fn overloads(
        &self,
        functions: &[Function],
        verdicts: &HashMap<u32, FunctionSafety>,
    ) -> HashMap<String, Vec<Overload>> {
        let signatures: HashMap<u32, _> = self
            .signatures
            .iter()
            .flatten()
            .map(|(oid, schema, min, max)| (*oid, (schema, *min, *max)))
            .collect();
        let mut found: HashMap<String, Option<Vec<Overload>>> = HashMap::new();
        for function in functions {
            let overload = signatures
                .get(&function.oid)
                .map(|(schema, min, max)| Overload {
                    schema: (*schema).clone(),
                    arguments_min: *min,
                    arguments_max: *max,
                    safety: verdicts[&function.oid].clone(),
                });
            let of_name = found.entry(function.name.clone());
            let of_name = of_name.or_insert_with(|| Some(Vec::new()));
            match (overload, of_name.as_mut()) {
                (Some(overload), Some(list)) => list.push(overload),
                (_, _) => *of_name = None,
            }
        }
        let unsafe_ones = |list: &Vec<Overload>| {
            let mut list = list.iter();
            list.any(|one| one.safety != FunctionSafety::Safe)
        };
        let known = found
            .into_iter()
            .filter_map(|(name, list)| Some((name, list?)));
        known.filter(|(_, list)| unsafe_ones(list)).collect()
    }
}

impl Overload {
    fn takes(&self, arguments: usize) -> bool {
        self.arguments_min <= arguments && self.arguments_max.is_none_or(|most| arguments <= most)
    }
}

impl Catalog {
    /// What a call of a function of a user may do, by the least safe function that it can mean: of the
    /// schema that is named, or of those on the search path. `None`: no function of users is meant.
    pub(crate) fn call_safety(
        &self,
        path: &[String],
        names: &[&str],
        arguments: usize,
    ) -> Option<&FunctionSafety> {
        let name = names.last()?;
        let Some(overloads) = self.overloads.get(*name) else {
            return self.functions.get(*name);
        };
        let schema = names.len().checked_sub(2).map(|at| names[at]);
        let meant = overloads.iter().filter(|one| {
            let reached = match schema {
                Some(schema) => one.schema == schema,
                None => path.contains(&one.schema),
            };
            reached && one.takes(arguments)
        });
        meant
            .map(|one| &one.safety)
            .max_by_key(|safety| safety::rank(safety))
    }
}

impl Hiding {
    /// The schema in which a name is found before the built-in object.
    pub(crate) fn before<'p>(
        &self,
        path: &'p [String],
        kind: ObjectKind,
        name: &str,
    ) -> Option<&'p str> {
        let hides = |schema: &&String| self.0.contains(&((*schema).clone(), kind, name.to_owned()));
        before_built_in(path).iter().find(hides).map(String::as_str)
    }

    /// Some operator that proofs rest on and that is found before the built-in one: its schema and name.
    pub(crate) fn operator(&self, path: &[String]) -> Option<(&str, &str)> {
        let path = before_built_in(path);
        let hidden = self.0.iter().filter(|(schema, kind, name)| {
            let proves = PROVING.contains(&name.as_str());
            *kind == ObjectKind::Operator && proves && path.contains(schema)
        });
        hidden
            .map(|(schema, _, name)| (schema.as_str(), name.as_str()))
            .min()
    }

    /// Nothing is found before what is built in.
    pub(crate) fn is_empty(&self, path: &[String]) -> bool {
        self.0.is_empty() || before_built_in(path).is_empty()
    }
}

/// The schemas that are searched before what is built in.
fn before_built_in(path: &[String]) -> &[String] {
    let at = path.iter().position(|schema| schema == BUILT_IN);
    &path[..at.unwrap_or(0)]
}

#[cfg(test)]
mod tests;
