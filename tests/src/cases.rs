//! The case files in `tests/sql/*.slt`.
//!
//! Paragraphs are separated by blank lines; each is one statement, which every server must
//! answer alike. Lines that start with `#` are comments. Lines that start with `@`, before the
//! statement, say more about it:
//!
//! - `@setup`: must succeed everywhere; the answer is not compared.
//! - `@plain`: runs only on plain Postgres, and must succeed there.
//! - `@proxy`: runs only on the proxies, and must succeed there.
//! - `@refused SQLSTATE`: plain Postgres does not see it; the proxies refuse it with this code and
//!   a hint.
//! - `@fails SQLSTATE`: plain Postgres does not see it; on the proxies it fails with this code, for a
//!   mistake that Postgres has words of its own for.
//! - `@ordered`, `@unordered`: whether row order counts; without it, it does when the text has
//!   an ORDER BY outside of parentheses.
//! - `@bind VALUE ...`: runs in the extended protocol with these parameters. A value is
//!   `type=text`, `b:type=text` for binary format, `~` before it to leave the type undeclared;
//!   `type` alone is NULL. Text may stand in single quotes.
//! - `@copyin`: the statement ends at a line `----`, and what follows up to the next such line
//!   is COPY data. `@copyin last` sends what the last COPY to the client produced.
//! - `@reconnect`: opens a new connection (no statement).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// A case file.
#[derive(Debug, Clone)]
pub struct CaseFile {
    /// File name without directory.
    pub name: String,
    /// In order.
    pub cases: Vec<Case>,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Line of its first word.
    pub line: usize,
    /// What runs.
    pub text: String,
    /// How it is judged.
    pub kind: Kind,
    /// Row order counts.
    pub ordered: bool,
    /// Parameters.
    pub bind: Option<Vec<Parameter>>,
    /// What answers CopyInResponse.
    pub copy: Option<CopyData>,
}

/// How a statement is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Must succeed everywhere.
    Setup,
    /// Must succeed on plain Postgres, which alone sees it.
    Plain,
    /// Must succeed on proxies, which alone see it.
    Proxy,
    /// Proxies, which alone see it, must refuse it with this SQLSTATE.
    Refused(String),
    /// On proxies, which alone see it, it must fail with this SQLSTATE.
    Fails(String),
    /// Every server answers alike.
    Same,
    /// Not a statement: opens a new connection.
    Reconnect,
}

/// A parameter value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The type's name.
    pub type_name: String,
    /// The type is told in Parse.
    pub declared: bool,
    /// Sent in binary.
    pub binary: bool,
    /// `None` is NULL.
    pub value: Option<String>,
}

/// COPY data to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyData {
    /// From the case file.
    Text(String),
    /// What the last COPY to the client produced.
    Last,
}

/// Every `.slt` file of `directory`, by name; `AUTOMATOR67_CASES` keeps those whose name
/// contains it.
pub fn read_all(directory: &Path) -> Result<Vec<CaseFile>> {
    let wanted = std::env::var("AUTOMATOR67_CASES").unwrap_or_default();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.contains(&wanted) {
            let text = std::fs::read_to_string(&path)?;
            let cases = parse(&text).with_context(|| format!("in {name}"))?;
            files.push(CaseFile { name, cases });
        }
    }
    Ok(files)
}

/// Reads the text of a case file.
pub fn parse(text: &str) -> Result<Vec<Case>> {
    let mut lines = text.lines().enumerate().peekable();
    let mut cases = Vec::new();
    while let Some(&(index, line)) = lines.peek() {
        if line.trim().is_empty() || line.starts_with('#') {
            lines.next();
            continue;
        }
        let mut directives = Vec::new();
        while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with('@')) {
            directives.push(&line[1..]);
        }
        let mut body = Vec::new();
        let mut data = None;
        while let Some((_, line)) = lines.next_if(|(_, line)| !line.trim().is_empty()) {
            if line == "----" {
                data = Some(read_data(&mut lines)?);
                break;
            }
            body.push(line);
        }
        let case = case(index + 1, &directives, &body.join("\n"), data)
            .with_context(|| format!("line {}", index + 1))?;
        cases.push(case);
    }
    Ok(cases)
}

fn read_data<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>) -> Result<String> {
    let mut data = String::new();
    for (_, line) in lines {
        if line == "----" {
            return Ok(data);
        }
        data.push_str(line);
        data.push('\n');
    }
    bail!("COPY data without an end");
}

fn case(line: usize, directives: &[&str], text: &str, data: Option<String>) -> Result<Case> {
    let mut case = Case {
        line,
        text: text.to_owned(),
        kind: Kind::Same,
        ordered: has_outer_order_by(text),
        bind: None,
        copy: data.map(CopyData::Text),
    };
    for directive in directives {
        let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
        match word {
            "setup" => case.kind = Kind::Setup,
            "plain" => case.kind = Kind::Plain,
            "proxy" => case.kind = Kind::Proxy,
            "reconnect" => case.kind = Kind::Reconnect,
            "refused" => case.kind = Kind::Refused(rest.trim().to_owned()),
            "fails" => case.kind = Kind::Fails(rest.trim().to_owned()),
            "ordered" => case.ordered = true,
            "unordered" => case.ordered = false,
            "bind" => case.bind = Some(parameters(rest)?),
            "copyin" if rest.trim() == "last" => case.copy = Some(CopyData::Last),
            "copyin" => ensure!(case.copy.is_some(), "@copyin without data"),
            other => bail!("unknown directive @{other}"),
        }
    }
    ensure!(
        text.is_empty() == (case.kind == Kind::Reconnect),
        "a directive without a statement"
    );
    Ok(case)
}

fn parameters(text: &str) -> Result<Vec<Parameter>> {
    words(text)?.iter().map(|word| parameter(word)).collect()
}

fn parameter(word: &str) -> Result<Parameter> {
    let (declared, word) = match word.strip_prefix('~') {
        Some(rest) => (false, rest),
        None => (true, word),
    };
    let (binary, word) = match word.strip_prefix("b:") {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let (type_name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    ensure!(!type_name.is_empty(), "a parameter without a type");
    Ok(Parameter {
        type_name: type_name.to_owned(),
        declared,
        binary,
        value,
    })
}

/// Splits at spaces outside of single quotes, which are taken away.
fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut any = false;
    for character in text.chars() {
        match character {
            '\'' => {
                quoted = !quoted;
                any = true;
            }
            ' ' if !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => {
                word.push(other);
                any = true;
            }
        }
    }
    ensure!(!quoted, "an unclosed quote");
    if any {
        words.push(word);
    }
    Ok(words)
}

/// True when `ORDER BY` stands outside of parentheses and quotes.
fn has_outer_order_by(text: &str) -> bool {
    let mut depth = 0_i32;
    let mut quote = None;
    let mut outer = String::new();
    for character in text.chars() {
        match (quote, character) {
            (Some(end), found) if end == found => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth -= 1,
            (None, other) if depth == 0 => outer.extend(other.to_lowercase()),
            (None, _) => {}
        }
    }
    let words: Vec<&str> = outer.split_whitespace().collect();
    words.windows(2).any(|pair| pair == ["order", "by"])
}

#[cfg(test)]
mod tests;
