//! Text cases in `planner/cases`: statements, and what their plans come down to.
//!
//! A file is a list of blocks, parted by `----`: a statement, then lines that start with `=> `.
//! Lines with `@` before a statement set its surroundings: `@many`, `@types 20 25`, `@path a, b`,
//! `@temporary a, index b, type c` (`unsafe a` runs code that reads a placed table), `@plain` (no
//! normalised text), `@unique schema.table column` (a global unique index), `@unjudged name` (a
//! built-in function or relation that is newer than our table), `@leads schema.table` (a table whose
//! rows take others with an index along), `@hidden` (our schemas are not shown in system catalogs).
//! `UPDATE_CASES=1` writes the files anew, to be
//! read before they are committed.

use std::{fs, path::PathBuf, sync::LazyLock};

use crate::{
    Context, OwnSchemas, Reach, Tier,
    budget::Budget,
    catalog::{Catalog, Temporary},
    normalise::{Normalised, normalise},
    plan,
};

mod catalog;
mod costs;
mod summary;

struct Case {
    settings: Vec<String>,
    statement: String,
    expected: String,
}

fn cases(text: &str) -> Vec<Case> {
    text.split("\n----\n")
        .filter(|block| !block.trim().is_empty())
        .map(|block| {
            let mut case = Case {
                settings: Vec::new(),
                statement: String::new(),
                expected: String::new(),
            };
            for line in block.trim_matches('\n').lines() {
                let part = if let Some(setting) = line.strip_prefix('@') {
                    case.settings.push(setting.to_owned());
                    continue;
                } else if let Some(expected) = line.strip_prefix("=> ") {
                    case.expected.push_str(expected);
                    &mut case.expected
                } else {
                    case.statement.push_str(line);
                    &mut case.statement
                };
                part.push('\n');
            }
            case
        })
        .collect()
}

/// Plans a case's statement and compares what comes out with what is written.
fn run(catalog: &Catalog, case: &Case, floor: Tier) -> String {
    let mut path: Vec<String> = vec!["public".to_owned()];
    let mut types: Vec<u32> = Vec::new();
    let mut temporary = Temporary::default();
    let mut catalog = catalog.clone();
    let (mut reach, mut plain, mut tier) = (Reach::Single, false, floor);
    let mut own_schemas = OwnSchemas::Shown;
    for setting in &case.settings {
        match setting.split_once(' ').unwrap_or((setting, "")) {
            ("many", _) => reach = Reach::Many,
            ("time", _) => reach = Reach::OneTime,
            ("temporary", list) => temporary = catalog::temporary(&catalog, list),
            ("plain", _) => plain = true,
            ("hidden", _) => own_schemas = OwnSchemas::Hidden,
            ("tier", "merge") => tier = Tier::Merge,
            ("types", list) => {
                types = list
                    .split(' ')
                    .map(|oid| oid.parse().expect("an OID"))
                    .collect();
            }
            ("unique", index) => catalog::add_unique_index(&mut catalog, index),
            ("leads", table) => {
                catalog.indexed.insert(catalog::qualified(table));
            }
            ("unjudged", name) => {
                catalog.unjudged.insert(name.to_owned());
            }
            ("path", list) => path = list.split(", ").map(str::to_owned).collect(),
            (other, _) => panic!("no such setting: {other}"),
        }
    }
    let context = Context {
        search_path: &path,
        user: "ann",
        reach,
        parameter_types: &types,
        tier,
        moved: &[],
        temporary: &temporary,
        own_schemas,
        budget: &Budget::unlimited(),
    };
    let text = case.statement.trim_end();
    let mut normalised = Normalised::default();
    let normal = !plain && normalise(text, &mut normalised);
    let result = plan(&catalog, &context, text, normal.then_some(&normalised));
    let mut lines = Vec::new();
    match result {
        Ok(statements) => {
            for one in statements {
                lines.extend(summary::of(&one));
            }
        }
        Err(error) => lines.extend(summary::of_error(&error)),
    }
    lines.join("\n")
}

fn check(name: &str) {
    let floor = if name == "gathers" {
        Tier::Gather
    } else {
        Tier::Single
    };
    let directory = PathBuf::from("cases");
    let path = directory.join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).expect("the case file is there");
    let catalog = catalog::read(
        &fs::read_to_string(directory.join("catalog.txt")).expect("the catalog file is there"),
    );
    let mut written = Vec::new();
    let mut differences = Vec::new();
    for case in cases(&text) {
        let actual = run(&catalog, &case, floor);
        if actual.trim_end() != case.expected.trim_end() {
            differences.push(format!(
                "{}\nexpected:\n{}\nactual:\n{actual}\n",
                case.statement, case.expected
            ));
        }
        let settings: String = case
            .settings
            .iter()
            .map(|line| format!("@{line}\n"))
            .collect();
        let lines: Vec<String> = actual.lines().map(|line| format!("=> {line}")).collect();
        written.push(format!("{settings}{}{}", case.statement, lines.join("\n")));
    }
    if std::env::var_os("UPDATE_CASES").is_some() {
        fs::write(&path, format!("{}\n", written.join("\n----\n"))).expect("writable");
        return;
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn reads() {
    check("reads");
}

#[test]
fn traps() {
    check("traps");
}

#[test]
fn writes() {
    check("writes");
}

#[test]
fn inserts() {
    check("inserts");
}

#[test]
fn scatters() {
    check("scatters");
}

#[test]
fn gathers() {
    check("gathers");
}

#[test]
fn unique() {
    check("unique");
}

#[test]
fn definitions() {
    check("definitions");
}

#[test]
fn rights() {
    check("rights");
}

#[test]
fn own_schemas() {
    check("own_schemas");
}

#[test]
fn placements() {
    check("placements");
}

#[test]
fn sessions() {
    check("sessions");
}

#[test]
fn builtins() {
    check("builtins");
}

static EMPTY: LazyLock<Temporary> = LazyLock::new(Temporary::default);

/// Nothing but a search path.
fn plain_context<'a>(search_path: &'a [String], budget: &'a Budget) -> Context<'a> {
    Context {
        search_path,
        user: "ann",
        reach: Reach::Single,
        parameter_types: &[],
        tier: Default::default(),
        moved: &[],
        temporary: &EMPTY,
        own_schemas: OwnSchemas::Hidden,
        budget,
    }
}

/// Whatever the text, planning returns.
#[test]
fn odd_texts_do_not_panic() {
    let directory = PathBuf::from("cases");
    let catalog = catalog::read(
        &fs::read_to_string(directory.join("catalog.txt")).expect("the catalog file is there"),
    );
    let path = ["public".to_owned()];
    let budget = Budget::unlimited();
    let context = plain_context(&path, &budget);
    for entry in fs::read_dir(directory).expect("the directory is there") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("text");
        for case in cases(&text) {
            let statement = case.statement.trim_end();
            for end in (0..=statement.len()).filter(|end| statement.is_char_boundary(*end)) {
                let cut = &statement[..end];
                let mut normalised = Normalised::default();
                let normal = normalise(cut, &mut normalised);
                let _ = plan(&catalog, &context, cut, normal.then_some(&normalised));
            }
        }
    }
}
