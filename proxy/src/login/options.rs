//! The startup packet's `options`: switches as the program `postgres` takes them (manual, "postgres",
//! "Options").

use crate::error::{Report, sqlstate};

/// Switches that say something else than a setting's value, and those that only a server's start takes.
const OTHER_SWITCHES: &str = "BbCDdEFfhijklNnOPprsTtvW";

/// Settings by name, in their order.
pub fn settings(text: &str) -> Result<Vec<(String, String)>, Report> {
    let mut settings = Vec::new();
    let mut words = words(text).into_iter();
    while let Some(word) = words.next() {
        let mut argument = |given: &str| match given {
            "" => words.next().ok_or_else(|| invalid(&word)),
            given => Ok(given.to_owned()),
        };
        if let Some(given) = word.strip_prefix("--") {
            settings.push(setting("--", given)?);
        } else if let Some(given) = word.strip_prefix("-c") {
            settings.push(setting("-c ", &argument(given)?)?);
        } else if let Some(given) = word.strip_prefix("-S") {
            settings.push(("work_mem".to_owned(), argument(given)?));
        } else if word == "-e" {
            settings.push(("datestyle".to_owned(), "euro".to_owned()));
        } else {
            return Err(unknown(&word));
        }
    }
    Ok(settings)
}

/// Words between blanks, which a backslash makes part of a word.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let word = words.last_mut().into_iter();
        match letter {
            '\\' => word.for_each(|word| word.extend(letters.next())),
            blank if blank.is_whitespace() => words.push(String::new()),
            other => word.for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// `name=value`, where the name may have `-` for `_`.
fn setting(switch: &str, given: &str) -> Result<(String, String), Report> {
    let Some((name, value)) = given.split_once('=') else {
        let message = format!("{switch}{given} requires a value");
        return Err(Report::error(sqlstate::SYNTAX_ERROR, message));
    };
    let name = name.trim().to_lowercase().replace('-', "_");
    Ok((name, value.to_owned()))
}

fn unknown(word: &str) -> Report {
    let switch = word.strip_prefix('-').and_then(|rest| rest.chars().next());
    match switch.filter(|switch| OTHER_SWITCHES.contains(*switch)) {
        Some(switch) => Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("switch -{switch} in a connection's options is not supported"),
        )
        .hint("Give settings as -c name=value."),
        None => invalid(word),
    }
}

fn invalid(word: &str) -> Report {
    Report::error(
        sqlstate::SYNTAX_ERROR,
        format!("invalid command-line argument for server process: {word}"),
    )
    .hint("Give settings as -c name=value.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_sends_them() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect();
            assert_eq!(settings(text).expect(text), expected);
        };
        check(
            "-c geqo=off --statement-timeout=5min",
            &[("geqo", "off"), ("statement_timeout", "5min")],
        );
        check("-cDateStyle=ISO,\\ MDY", &[("datestyle", "ISO, MDY")]);
        check(
            " -e  -S 4096 -S64 ",
            &[
                ("datestyle", "euro"),
                ("work_mem", "4096"),
                ("work_mem", "64"),
            ],
        );
        check("", &[]);
    }

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        for (text, code) in [
            ("-c", "42601"),
            ("-c geqo", "42601"),
            ("--geqo", "42601"),
            ("foo", "42601"),
            ("-c geqo=off on", "42601"),
            ("-x", "42601"),
            ("-", "42601"),
            ("-S", "42601"),
            ("-ex", "42601"),
            ("-d 5", "0A000"),
            ("-B100", "0A000"),
        ] {
            let error = settings(text).expect_err(text);
            assert_eq!(error.sqlstate, code, "{text}");
        }
    }
}
