//! What runs around a statement in its session: settings, transactions, roles, the clock.

use super::{Feature, Generator};

/// Statements before and after another one, which take back what they did.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
    /// `test.began` holds the transaction's time as text.
    pub(super) timed: bool,
    /// The role `reader` reads, which may not see every table.
    pub(super) reader: bool,
}

/// Settings that change what a statement answers, some values, and what the session has.
const SETTINGS: [(&str, &[&str], &str); 6] = [
    (
        "datestyle",
        &["'sql, dmy'", "'german'", "'postgres, mdy'", "'iso, ymd'"],
        "'iso, mdy'",
    ),
    (
        "timezone",
        &[
            "'UTC'",
            "'Asia/Kolkata'",
            "'Europe/Oslo'",
            "'Australia/Lord_Howe'",
        ],
        "'America/New_York'",
    ),
    (
        "intervalstyle",
        &["'iso_8601'", "'sql_standard'", "'postgres_verbose'"],
        "'postgres'",
    ),
    ("bytea_output", &["'escape'"], "'hex'"),
    ("extra_float_digits", &["0", "-4"], "1"),
    (
        "search_path",
        &["own, public", "public, pg_catalog", "pg_temp, own, public"],
        "\"$user\", public",
    ),
];

/// What runs in every session before the first statement: a zone with summer time, which begins
/// among the tables' timestamps.
pub const SESSION: [&str; 3] = [
    "set timezone = 'America/New_York'",
    "set statement_timeout = '20s'",
    "set extra_float_digits = 1",
];

impl Generator {
    /// Decides what runs around the statement to come.
    pub(super) fn surround(&mut self) {
        match self.random.below(100) {
            0..=10 if !Feature::Settings.is_wanted() => {}
            0..=7 => {
                for _ in 0..self.random.between(1, 2) {
                    self.set();
                }
            }
            8..=10 => self.set_locally(),
            11..=13 => {
                let begin = self.random.pick(&[
                    "begin",
                    "begin isolation level repeatable read",
                    "begin read only",
                    "start transaction isolation level repeatable read, read only",
                ]);
                self.around.before.push(begin.to_owned());
                self.around.after.push("commit".to_owned());
            }
            14 | 15 => self.note_the_time(),
            16 | 17 if Feature::Roles.is_wanted() => {
                self.around.reader = true;
                self.around.before.push("set role reader".to_owned());
                self.around.after.push("reset role".to_owned());
            }
            _ => {}
        }
    }

    fn set(&mut self) {
        let (name, values, usual) = self.random.pick(&SETTINGS);
        let value = self.random.pick(values);
        let quoted = value.starts_with('\'');
        self.around.before.push(match self.random.below(4) {
            0 if quoted => format!("select set_config('{name}', {value}, false)"),
            1 => format!("set session {name} to {value}"),
            _ => format!("set {name} = {value}"),
        });
        self.around.after.push(format!("set {name} = {usual}"));
    }

    fn set_locally(&mut self) {
        let (name, values, _) = self.random.pick(&SETTINGS);
        let value = self.random.pick(values);
        let set = match value.starts_with('\'') && self.random.chance(40) {
            true => format!("select set_config('{name}', {value}, true)"),
            false => format!("set local {name} = {value}"),
        };
        self.around.before.extend(["begin".to_owned(), set]);
        let end = self.random.pick(&["commit", "rollback"]);
        self.around.after.push(end.to_owned());
    }

    /// The transaction has one time, which its statements see alike.
    fn note_the_time(&mut self) {
        self.around.timed = true;
        let note = "select set_config('test.began', now()::text, false) is not null";
        self.around.before = vec!["begin".to_owned(), note.to_owned()];
        self.around.after = vec!["commit".to_owned()];
    }

    /// A condition on the time of the statement, which holds whenever it runs.
    pub(super) fn clock_condition(&mut self, moment: &str) -> String {
        if self.around.timed && self.random.chance(60) {
            return "now()::text = current_setting('test.began')".to_owned();
        }
        match self.random.below(9) {
            0 => "now() = transaction_timestamp()".to_owned(),
            1 => "now() <= clock_timestamp()".to_owned(),
            2 => "now() <= statement_timestamp()".to_owned(),
            3 => "current_date = now()::date".to_owned(),
            4 => "localtimestamp = now()::timestamp".to_owned(),
            5 => "now() = (select max(now()) from entry)".to_owned(),
            6 => format!("{moment} < current_timestamp"),
            7 => format!("{moment} < now() - interval '1 day'"),
            _ => "current_timestamp is not distinct from now()".to_owned(),
        }
    }

    /// A text that is the same on every server of one version.
    pub(super) fn session_text(&mut self) -> String {
        self.random
            .pick(&[
                "current_user::text",
                "session_user::text",
                "current_database()::text",
                "current_schema()::text",
                "current_setting('timezone')",
                "current_setting('datestyle')",
                "current_setting('server_version')",
                "version()",
                "array_to_string(current_schemas(false), ',')",
                "current_setting('nosuch.setting', true)",
            ])
            .to_owned()
    }
}
