//! The case files of `tests/isolation`: sessions that meet, step by step.
//!
//! `README.md` beside them tells the format. [`parse`] reads a file, [`play`] runs it on one
//! server and keeps every answer, [`difference`] compares two transcripts.

mod player;

use std::{fmt::Write, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    answer::{self, Event},
    cases,
};

pub use player::{Observed, play};

/// A case file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// File name without directory.
    pub name: String,
    /// Runs once, before the first case.
    pub once: Vec<Preparation>,
    /// In order.
    pub cases: Vec<Case>,
}

/// One story of several sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What it is about.
    pub name: String,
    /// Line of its name.
    pub line: usize,
    /// Runs before the steps.
    pub setup: Vec<Preparation>,
    /// In order.
    pub steps: Vec<Step>,
    /// Exactly one answer has this SQLSTATE; it does not count whose.
    pub victim: Option<String>,
    /// What is not as in Postgres.
    pub otherwise: Option<Otherwise>,
}

/// Something before the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparation {
    /// A statement for every server.
    Sql(String),
    /// A statement for the proxies.
    Placement(String),
}

/// What a case says is not as in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otherwise {
    /// Where.
    pub place: Place,
    /// An answer has this SQLSTATE, and nothing else is compared; without it, the transcript
    /// differs from Postgres's.
    pub refused: Option<String>,
}

/// Where something is not as in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On several shards, when the keys lie on different ones.
    Apart,
    /// On several shards.
    Several,
    /// On every proxy.
    Proxies,
}

impl Otherwise {
    /// Whether it is meant for a proxy with one shard (`alone`) or several, and these keys.
    pub fn applies(&self, alone: bool, keys: &Keys) -> bool {
        match self.place {
            Place::Apart => !alone && keys.apart,
            Place::Several => !alone,
            Place::Proxies => true,
        }
    }
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line in the file.
    pub line: usize,
    /// Which session.
    pub session: u8,
    /// What it does.
    pub action: Action,
    /// Plain Postgres makes it wait.
    pub waits: bool,
    /// How it fails on plain Postgres.
    pub sqlstate: Option<String>,
}

/// What a session does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a statement.
    Run {
        /// With `{a}`, `{b}`, `{c}` for keys.
        text: String,
        /// Row order counts.
        ordered: bool,
    },
    /// Has its answer before the next step.
    Await,
    /// Goes without a word.
    Close,
    /// Its statement is cancelled.
    Cancel,
    /// The server closes the connection, with an error.
    Closed,
}

/// Three keys, and a name for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Where they lie.
    pub name: &'static str,
    /// They lie on different shards.
    pub apart: bool,
    /// For `{a}`, `{b}` and `{c}`.
    pub values: [i64; 3],
}

impl Keys {
    /// The text with keys in it.
    pub fn fill(&self, text: &str) -> String {
        let [a, b, c] = self.values.map(|value| value.to_string());
        text.replace("{a}", &a)
            .replace("{b}", &b)
            .replace("{c}", &c)
    }
}

/// What happened, in order.
pub type Transcript = Vec<Entry>;

/// A line of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Index of the step.
    pub step: usize,
    /// What was seen.
    pub seen: Seen,
}

/// What was seen of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It waits for a lock.
    Waits,
    /// No answer, and no server says that it waits for a lock.
    Silent,
    /// The answer, and whether the connection is closed.
    Answered(Vec<Event>, bool),
}

impl Seen {
    fn sqlstate(&self) -> Option<&str> {
        let Seen::Answered(events, _) = self else {
            return None;
        };
        events.iter().find_map(|event| match event {
            Event::Error(failure) => Some(failure.sqlstate.as_str()),
            _ => None,
        })
    }
}

/// Every `.txt` file of `directory`, by name; `AUTOMATOR67_CASES` keeps those whose name
/// contains it.
pub fn read_all(directory: &Path) -> Result<Vec<File>> {
    let wanted = std::env::var("AUTOMATOR67_CASES").unwrap_or_default();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".txt") && name.contains(&wanted) {
            let text = std::fs::read_to_string(&path)?;
            files.push(parse(&name, &text).with_context(|| format!("in {name}"))?);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Reads the text of a case file.
pub fn parse(name: &str, text: &str) -> Result<File> {
    let mut file = File {
        name: name.to_owned(),
        once: Vec::new(),
        cases: Vec::new(),
    };
    let mut setup = Vec::new();
    for (line, words) in entries(text) {
        let (word, rest) = words
            .split_once(':')
            .with_context(|| format!("line {line}: no colon"))?;
        take(&mut file, &mut setup, line, word, rest.trim())
            .with_context(|| format!("line {line}"))?;
    }
    Ok(file)
}

/// Lines with their numbers: a line that starts with a space belongs to the one before.
fn entries(text: &str) -> Vec<(usize, String)> {
    let mut entries: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match entries.last_mut() {
            Some((_, open)) if line.starts_with(' ') => {
                open.push('\n');
                open.push_str(line.trim());
            }
            _ => entries.push((index + 1, line.to_owned())),
        }
    }
    entries
}

/// `setup` is what the file says before its first case.
fn take(
    file: &mut File,
    setup: &mut Vec<Preparation>,
    line: usize,
    word: &str,
    rest: &str,
) -> Result<()> {
    let case = match (word, file.cases.last_mut()) {
        ("case", _) => {
            file.cases.push(Case {
                name: rest.to_owned(),
                line,
                setup: setup.clone(),
                steps: Vec::new(),
                victim: None,
                otherwise: None,
            });
            return Ok(());
        }
        ("once", None) => {
            file.once.push(Preparation::Sql(rest.to_owned()));
            return Ok(());
        }
        // The tables of the file, or of each case.
        ("distribute", None) if setup.is_empty() => return placements(rest, &mut file.once),
        ("distribute", None) => return placements(rest, setup),
        ("setup", None) => {
            setup.push(Preparation::Sql(rest.to_owned()));
            return Ok(());
        }
        (other, None) => bail!("{other}: before the first case"),
        (_, Some(case)) => case,
    };
    match word {
        "setup" => case.setup.push(Preparation::Sql(rest.to_owned())),
        "distribute" => placements(rest, &mut case.setup)?,
        "victim" => case.victim = Some(rest.to_owned()),
        "refused" | "differs" => case.otherwise = Some(otherwise(word, rest)?),
        _ => case.steps.push(step(line, word, rest)?),
    }
    Ok(())
}

fn otherwise(word: &str, rest: &str) -> Result<Otherwise> {
    let (sqlstate, place) = match word {
        "refused" => rest.split_once(' ').context("refused: SQLSTATE WHERE")?,
        _ => ("", rest),
    };
    let place = match place {
        "apart" => Place::Apart,
        "several" => Place::Several,
        "proxies" => Place::Proxies,
        other => bail!("no place: {other}"),
    };
    Ok(Otherwise {
        place,
        refused: (!sqlstate.is_empty()).then(|| sqlstate.to_owned()),
    })
}

/// `t by id, u by t_id with t, r reference, l local`
fn placements(text: &str, into: &mut Vec<Preparation>) -> Result<()> {
    for part in text.split(',') {
        let words: Vec<&str> = part.split_whitespace().collect();
        let text = match words.as_slice() {
            [table, "by", key] => format!("select create_distributed_table('{table}', '{key}')"),
            [table, "by", key, "with", other] => format!(
                "select create_distributed_table('{table}', '{key}', colocate_with => '{other}')"
            ),
            [table, "reference"] => format!("select create_reference_table('{table}')"),
            [_, "local"] => continue,
            other => bail!("no placement: {other:?}"),
        };
        into.push(Preparation::Placement(text));
    }
    Ok(())
}

fn step(line: usize, word: &str, rest: &str) -> Result<Step> {
    let (text, waits, sqlstate) = expectation(rest)?;
    let number = |text: &str| text.parse().with_context(|| format!("no session: {text}"));
    let (session, action) = match word {
        "wait" => (number(text)?, Action::Await),
        "close" => (number(text)?, Action::Close),
        "cancel" => (number(text)?, Action::Cancel),
        "closed" => (number(text)?, Action::Closed),
        _ => {
            let parsed = cases::parse(text)?;
            let ordered = parsed.first().is_some_and(|case| case.ordered);
            let text = text.to_owned();
            (number(word)?, Action::Run { text, ordered })
        }
    };
    Ok(Step {
        line,
        session,
        action,
        waits,
        sqlstate,
    })
}

/// What stands behind the last ` -- `: `waits`, an SQLSTATE, or both.
fn expectation(text: &str) -> Result<(&str, bool, Option<String>)> {
    let Some((text, words)) = text.rsplit_once(" -- ") else {
        return Ok((text, false, None));
    };
    let mut waits = false;
    let mut sqlstate = None;
    for word in words.split_whitespace() {
        match word {
            "waits" => waits = true,
            code if code.len() == 5 => sqlstate = Some(code.to_owned()),
            other => bail!("neither waits nor an SQLSTATE: {other}"),
        }
    }
    Ok((text.trim_end(), waits, sqlstate))
}

/// What plain Postgres did otherwise than the case says.
pub fn surprise(case: &Case, transcript: &Transcript) -> Option<String> {
    let mut text = String::new();
    if let Some(code) = &case.victim {
        let count = count(transcript, code);
        if count != 1 {
            let _ = writeln!(text, "  {count} victims with {code}");
        }
    } else {
        for (index, step) in case.steps.iter().enumerate() {
            let seen = || transcript.iter().filter(|entry| entry.step == index);
            let waits = seen().any(|entry| entry.seen == Seen::Waits);
            let sqlstate = seen().find_map(|entry| entry.seen.sqlstate());
            if waits != step.waits || sqlstate != step.sqlstate.as_deref() {
                let _ = writeln!(text, "  line {}: waits {waits}, {sqlstate:?}", step.line);
            }
        }
    }
    (!text.is_empty()).then(|| text + &shown(case, transcript))
}

/// What differs, for people.
pub fn difference(case: &Case, expected: &Transcript, found: &Transcript) -> Option<String> {
    let same = match &case.victim {
        Some(_) => is_permutation(case, expected, found),
        None => {
            expected.len() == found.len()
                && expected
                    .iter()
                    .zip(found)
                    .all(|(expected, found)| agree(case, expected, found))
        }
    };
    if same {
        return None;
    }
    Some(format!(
        "  Postgres:\n{}  proxy:\n{}",
        shown(case, expected),
        shown(case, found)
    ))
}

/// What is wrong where the case says that something is not as in Postgres.
pub fn unexpected(
    otherwise: &Otherwise,
    difference: Option<String>,
    found: &Transcript,
) -> Option<String> {
    match (&otherwise.refused, difference) {
        (Some(code), _) if count(found, code) > 0 => None,
        (Some(code), difference) => Some(format!(
            "  not refused with {code}\n{}",
            difference.unwrap_or_default()
        )),
        (None, Some(_)) => None,
        (None, None) => Some("  does not differ any more\n".to_owned()),
    }
}

fn count(transcript: &Transcript, sqlstate: &str) -> usize {
    let codes = transcript.iter().filter_map(|entry| entry.seen.sqlstate());
    codes.filter(|code| *code == sqlstate).count()
}

fn agree(case: &Case, expected: &Entry, found: &Entry) -> bool {
    expected.step == found.step && see_the_same(case, expected, found)
}

fn see_the_same(case: &Case, expected: &Entry, found: &Entry) -> bool {
    let ordered = matches!(
        case.steps[expected.step].action,
        Action::Run { ordered: true, .. }
    );
    match (&expected.seen, &found.seen) {
        (Seen::Answered(expected, closed), Seen::Answered(found, also)) => {
            closed == also && answer::difference(expected, found, ordered).is_none()
        }
        // A proxy may know by itself that a statement has to wait.
        (Seen::Waits, found) => matches!(found, Seen::Waits | Seen::Silent),
        (expected, found) => expected == found,
    }
}

/// The same answers, whoever had them; who waited depends on who was the victim.
fn is_permutation(case: &Case, expected: &Transcript, found: &Transcript) -> bool {
    let answers = |transcript: &Transcript| -> Vec<Entry> {
        let answered = transcript
            .iter()
            .filter(|entry| matches!(entry.seen, Seen::Answered(..)));
        answered.cloned().collect()
    };
    let mut rest = answers(found);
    for expected in answers(expected) {
        let place = rest
            .iter()
            .position(|found| see_the_same(case, &expected, found));
        let Some(place) = place else {
            return false;
        };
        rest.remove(place);
    }
    rest.is_empty()
}

fn shown(case: &Case, transcript: &Transcript) -> String {
    let mut text = String::new();
    for entry in transcript {
        let step = &case.steps[entry.step];
        let what = match &step.action {
            Action::Run { text, .. } => text.as_str(),
            Action::Await => "(wait)",
            Action::Close => "(close)",
            Action::Cancel => "(cancel)",
            Action::Closed => "(closed)",
        };
        let seen = match &entry.seen {
            Seen::Waits => " waits".to_owned(),
            Seen::Silent => " neither answers nor waits for a lock".to_owned(),
            Seen::Answered(events, closed) => {
                let end = if *closed { " closed" } else { "" };
                answer::summary(events).replace("\n    ", "\n        ") + end
            }
        };
        let _ = writeln!(text, "    {}: {what}{seen}", step.session);
    }
    text
}

#[cfg(test)]
mod tests;
