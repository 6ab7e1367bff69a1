//! Every case of `tests/isolation` on plain Postgres, on one shard and on three: the same answers,
//! and the same steps wait.

use std::{fmt::Write, path::Path};

use anyhow::{Context, Result};
use automator67_tests::{
    automator::Dev,
    isolation::{self, File, Keys, Observed},
    play::Mode,
    postgres::Plain,
    wire::Connection,
};

const LEAST_CASES: usize = 60;

#[test]
fn sessions_that_meet_do_as_in_postgres() {
    let directory = Path::new("isolation");
    let files = isolation::read_all(directory).expect("case files are valid");
    let (plain, one, three) = std::thread::scope(|scope| {
        let plain = scope.spawn(Plain::start);
        let one = scope.spawn(|| Dev::start(1));
        let three = Dev::start(3).expect("dev starts with three shards");
        let plain = plain.join().expect("no panic").expect("Postgres starts");
        let one = one.join().expect("no panic");
        (plain, one.expect("dev starts with one shard"), three)
    });
    let servers = [
        Observed {
            server: plain.server.clone(),
            postgres: vec![plain.server.clone()],
            proxy: false,
        },
        observed(&one),
        observed(&three),
    ];
    let [together, apart] = keys(&three).expect("keys of every shard");
    let mut report = String::new();
    for (keys, mode) in [
        (&together, Mode::Simple),
        (&apart, Mode::Simple),
        (&apart, Mode::Text),
    ] {
        for file in &files {
            let told = report.len();
            if let Err(error) = compare(&servers, file, keys, mode, &mut report) {
                let _ = write!(report, "\n== {error:#}\n");
            }
            eprint!("{}", &report[told..]);
        }
    }
    let cases: usize = files.iter().map(|file| file.cases.len()).sum();
    assert!(
        report.is_empty(),
        "{} differences in {cases} cases, told above",
        report.matches("\n==").count()
    );
    let filtered = std::env::var_os("AUTOMATOR67_CASES").is_some();
    assert!(filtered || cases >= LEAST_CASES, "only {cases} cases");
}

fn observed(dev: &Dev) -> Observed {
    Observed {
        server: dev.server().clone(),
        postgres: dev.shards().iter().map(|it| it.server.clone()).collect(),
        proxy: true,
    }
}

/// Three keys on one shard that is not the home shard, and three keys on three shards. Both from
/// 1 to 40, which the cases put into their tables.
fn keys(three: &Dev) -> Result<[Keys; 2]> {
    let mut connection = three.connect()?;
    connection.execute("create table placed (id bigint primary key)")?;
    connection.execute("select create_distributed_table('placed', 'id')")?;
    connection.execute("insert into placed select generate_series(1, 40)")?;
    let mut found: Vec<Vec<i64>> = Vec::new();
    for shard in three.shards() {
        let mut shard = Connection::open(&shard.server)?;
        let rows = shard.rows("select id from placed order by id")?;
        let ids = rows.into_iter().flatten().flatten();
        found.push(ids.map(|id| Ok(id.parse()?)).collect::<Result<_>>()?);
    }
    let key = |shard: usize, index: usize| {
        let keys = found.get(shard).context("three shards")?;
        keys.get(index).copied().context("three keys on each shard")
    };
    Ok([
        Keys {
            name: "together",
            apart: false,
            values: [key(1, 0)?, key(1, 1)?, key(1, 2)?],
        },
        Keys {
            name: "apart",
            apart: true,
            values: [key(0, 0)?, key(1, 0)?, key(2, 0)?],
        },
    ])
}

fn compare(
    servers: &[Observed; 3],
    file: &File,
    keys: &Keys,
    mode: Mode,
    report: &mut String,
) -> Result<()> {
    let [plain, one, three] = std::thread::scope(|scope| {
        let running = servers
            .each_ref()
            .map(|on| scope.spawn(move || isolation::play(on, file, keys, mode)));
        running.map(|thread| thread.join().expect("no panic"))
    });
    let name = |place: &str| format!("{} on {place}, keys {}, {mode:?}", file.name, keys.name);
    let plain = plain.with_context(|| name("Postgres"))?;
    let one = one.with_context(|| name("1 shard"))?;
    let three = three.with_context(|| name("3 shards"))?;
    for (index, case) in file.cases.iter().enumerate() {
        let mut tell = |place: &str, text: String| {
            let line = case.line;
            write!(report, "\n== {}:{line} {}\n{text}", name(place), case.name)
        };
        let expected = match &plain[index] {
            Ok(transcript) => transcript,
            Err(error) => {
                tell("Postgres", format!("  {error:#}\n"))?;
                continue;
            }
        };
        if let Some(text) = isolation::surprise(case, expected) {
            tell("Postgres", text)?;
        }
        for (place, found, alone) in [
            ("1 shard", &one[index], true),
            ("3 shards", &three[index], false),
        ] {
            let judged = match found {
                Err(error) => Some(format!("  {error:#}\n")),
                Ok(found) => {
                    let difference = isolation::difference(case, expected, found);
                    match &case.otherwise {
                        Some(it) if it.applies(alone, keys) => {
                            isolation::unexpected(it, difference, found)
                        }
                        _ => difference,
                    }
                }
            };
            if let Some(text) = judged {
                tell(place, text)?;
            }
        }
    }
    Ok(())
}
