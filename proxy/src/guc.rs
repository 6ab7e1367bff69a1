//! Settings a session has made, so that they can be made again on another server connection.

use std::{collections::BTreeMap, sync::Arc};

/// Settings by name. Cheap to clone and to compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingMap {
    entries: Arc<BTreeMap<String, Made>>,
}

/// A setting that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    /// As SHOW gives it, or as it was written.
    value: String,
    /// A whole statement that makes it.
    replay: String,
}

impl SettingMap {
    /// Remembers a setting. `replay` is a whole statement.
    pub fn set(&mut self, name: &str, value: &str, replay: &str) {
        let made = Made {
            value: value.to_owned(),
            replay: replay.to_owned(),
        };
        Arc::make_mut(&mut self.entries).insert(name.to_owned(), made);
    }

    /// Makes one what it is in `other`.
    pub fn take_back(&mut self, name: &str, other: &SettingMap) {
        match other.entries.get(name) {
            Some(made) => {
                Arc::make_mut(&mut self.entries).insert(name.to_owned(), made.clone());
            }
            None if self.entries.contains_key(name) => {
                Arc::make_mut(&mut self.entries).remove(name);
            }
            None => {}
        }
    }

    /// The value of `name`, if it was set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|made| made.value.as_str())
    }

    /// The names of all settings.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// True when both hold the same settings; one comparison of pointers in the common case.
    pub fn same(&self, other: &SettingMap) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries) || self.entries == other.entries
    }

    /// Settings `to`, but with the role of these: RESET ALL leaves that as it is (the manual,
    /// "RESET").
    pub fn reset_all(&self, to: &SettingMap) -> SettingMap {
        let mut reset = to.clone();
        let entries = Arc::make_mut(&mut reset.entries);
        entries.remove(ROLE);
        if let Some((name, role)) = self.entries.get_key_value(ROLE) {
            entries.insert(name.clone(), role.clone());
        }
        reset
    }

    /// Statements that turn a connection with `self` into one with `wanted`; empty when equal.
    ///
    /// A role may not make every setting that the user may, who can have taken the role later: all
    /// others are made without it.
    pub fn difference(&self, wanted: &SettingMap) -> String {
        let other = |(name, _): &(&String, &Made)| name.as_str() != ROLE;
        let gone = self
            .entries
            .iter()
            .filter(other)
            .filter(|(name, _)| !wanted.entries.contains_key(*name))
            .map(|(name, _)| format!("RESET {}", quote_setting(name)));
        let changed = wanted
            .entries
            .iter()
            .filter(other)
            .filter(|(name, made)| self.entries.get(*name) != Some(made))
            .map(|(_, made)| made.replay.clone());
        let mut statements: Vec<String> = gone.chain(changed).collect();
        let (role, wanted) = (self.entries.get(ROLE), wanted.entries.get(ROLE));
        if statements.is_empty() && role == wanted {
            return String::new();
        }
        if role.is_some() {
            statements.insert(0, "RESET ROLE".to_owned());
        }
        statements.extend(wanted.map(|made| made.replay.clone()));
        statements.join("; ")
    }
}

const ROLE: &str = "role";

/// A setting's name as it stands in SET: each part quoted, so that no name is taken for syntax.
pub fn quote_setting(name: &str) -> String {
    name.split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
        .collect::<Vec<_>>()
        .join(".")
}

/// The statement that sets `name` to a plain value, as a startup packet gives it.
pub fn set_statement(name: &str, value: &str) -> String {
    let quoted = quote_literal(value);
    // A list setting given as one quoted string would become one element.
    if matches!(name, "search_path" | "datestyle") {
        let parts: Vec<String> = value
            .split(',')
            .map(|part| quote_literal(part.trim().trim_matches('"')))
            .collect();
        return format!("SET {} TO {}", quote_setting(name), parts.join(", "));
    }
    format!("SET {} TO {quoted}", quote_setting(name))
}

/// A string literal that means `text` whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// A time, in milliseconds unless it says a unit; `None` is none.
pub fn duration(value: &str) -> Option<std::time::Duration> {
    let value = value.trim();
    let end = value
        .find(|letter: char| letter.is_ascii_alphabetic())
        .unwrap_or(value.len());
    let number: f64 = value[..end].trim().parse().ok()?;
    let factor = match value[end..].trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1_000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let milliseconds = (number * factor).round();
    (milliseconds >= 1.0 && milliseconds < i32::MAX.into())
        .then(|| std::time::Duration::from_millis(milliseconds as u64))
}

/// True for the value of a switch that is turned on.
pub fn is_on(value: &str) -> bool {
    let value = value.to_lowercase();
    // Every beginning of a word that is not one of another word, too.
    ["on", "1"].contains(&value.as_str())
        || !value.is_empty() && ["true", "yes"].iter().any(|word| word.starts_with(&value))
}

/// The statement that sets `name` to a value in the form of SHOW.
pub fn config_statement(name: &str, value: &str, local: &str) -> String {
    let (name, value) = (quote_literal(name), quote_literal(value));
    format!("SELECT pg_catalog.set_config({name}, {value}, {local})")
}

/// An identifier in double quotes.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The schemas of a `search_path` value, with `"$user"` resolved.
pub fn search_path(value: &str, user: &str) -> Vec<String> {
    let mut schemas = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (name, tail) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((name, tail)) => (name.to_owned(), tail),
                None => (quoted.to_owned(), ""),
            },
            None => match rest.split_once(',') {
                Some((name, _)) => (name.trim().to_lowercase(), &rest[name.len()..]),
                None => (rest.trim().to_lowercase(), ""),
            },
        };
        let name = if name == "$user" {
            user.to_owned()
        } else {
            name
        };
        if !name.is_empty() {
            schemas.push(name);
        }
        rest = tail.trim_start().trim_start_matches(',').trim_start();
    }
    schemas
}

#[cfg(test)]
mod tests;
