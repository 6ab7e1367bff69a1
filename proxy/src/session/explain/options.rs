//! The options of an EXPLAIN, as far as they concern what the proxy itself asks of shards.

use automator67_planner::normalise::{TokenKind, tokens};

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines.
    Text,
    /// One document.
    Json,
    /// XML or YAML.
    Other,
}

/// Options that mean something only together with ANALYZE, or that ask for it.
const OF_ANALYZE: &[&str] = &[
    "analyze",
    "analyse",
    "timing",
    "wal",
    "serialize",
    "summary",
];

/// The format that `prefix`, all that stands before the explained statement, asks for.
pub fn format(prefix: &str) -> Format {
    let options = split(prefix);
    let last = options.iter().rev().find(|(name, _)| name == "format");
    match last.map(|(_, value)| value.as_str()) {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(_) => Format::Other,
    }
}

/// The same prefix without what would run the statement.
pub fn without_analyze(prefix: &str) -> String {
    let kept: Vec<String> = split(prefix)
        .into_iter()
        .filter(|(name, _)| !OF_ANALYZE.contains(&name.as_str()))
        .map(|(name, value)| format!("{name} {value}").trim_end().to_owned())
        .collect();
    if kept.is_empty() {
        return "EXPLAIN ".to_owned();
    }
    format!("EXPLAIN ({}) ", kept.join(", "))
}

/// Names and values, in lower case and without quotes. An option without value has an empty one.
fn split(prefix: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let list = tokens(prefix);
    let in_brackets = list
        .iter()
        .any(|token| token.kind == TokenKind::Punctuation('('));
    let mut starts = true;
    // The first word is EXPLAIN itself.
    for token in list.iter().skip(1) {
        let word = prefix.get(token.start..token.end).unwrap_or_default();
        let word = word.trim_matches(['\'', '"']).to_lowercase();
        match token.kind {
            TokenKind::Punctuation(_) => starts = true,
            _ if starts || !in_brackets => {
                found.push((word, String::new()));
                starts = false;
            }
            _ => {
                if let Some((_, value)) = found.last_mut() {
                    value.push_str(&word);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_text() {
        for (prefix, expected, rest) in [
            ("explain", Format::Text, "EXPLAIN "),
            (
                "EXPLAIN ANALYZE VERBOSE\n",
                Format::Text,
                "EXPLAIN (verbose) ",
            ),
            (
                "explain /* format xml */ (analyze, format 'JSON', costs off)\n",
                Format::Json,
                "EXPLAIN (format json, costs off) ",
            ),
            (
                "explain (format yaml)",
                Format::Other,
                "EXPLAIN (format yaml) ",
            ),
            (
                "explain (analyze on, timing off, buffers true)",
                Format::Text,
                "EXPLAIN (buffers true) ",
            ),
        ] {
            assert_eq!(format(prefix), expected, "{prefix}");
            assert_eq!(without_analyze(prefix), rest, "{prefix}");
        }
    }
}
