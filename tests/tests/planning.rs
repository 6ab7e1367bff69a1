//! Texts that are long, deep or laborious: planned, or refused as one Postgres or the budget would,
//! while other clients go on.

use std::{
    fmt::Write,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    answer::{self, TypeNames},
    automator::{self, Automator, Dev},
    batch::Batch,
    postgres::{PASSWORD, Plain, USER},
    wait,
    wire::{self, Connection},
};
use nix::sys::signal::Signal;

const TABLE: &str = "create table things (id bigint primary key, name text, n int)";
/// For whatever must happen soon on a loaded machine in a debug build.
const SOON: Duration = Duration::from_secs(30);

/// A way to nest, and a statement that does it so many times.
type Nesting = (&'static str, fn(usize) -> String);

const NESTINGS: &[Nesting] = &[
    ("added terms", |n| {
        format!("select n{} from things", " + 1".repeat(n))
    }),
    ("concatenated columns", |n| {
        format!("select name{} from things", " || name".repeat(n))
    }),
    ("nested calls", |n| {
        format!("select {}n{} from things", "abs(".repeat(n), ")".repeat(n))
    }),
    ("brackets", |n| {
        format!("select {}n{} from things", "(".repeat(n), ")".repeat(n))
    }),
    ("scalar subqueries", |n| {
        let (open, close) = ("(select ".repeat(n / 4), ")".repeat(n / 4));
        format!("select {open}1{close} from things")
    }),
    ("subqueries in FROM", |n| {
        let (open, close) = ("(select * from ".repeat(n / 4), ") x".repeat(n / 4));
        format!("select id from {open}things{close}")
    }),
    ("arrows", |n| {
        format!("select '{{}}'::jsonb{} from things", " -> 'a'".repeat(n))
    }),
    ("arms of UNION", |n| {
        let n = n / 4;
        format!("select 1{}", " union all select 1".repeat(n))
    }),
    ("CASE", |n| {
        let (open, close) = ("case when n = 1 then 2 else ".repeat(n), " end".repeat(n));
        format!("select {open}n{close} from things")
    }),
    ("NOT", |n| {
        format!("select {}true from things", "not ".repeat(n))
    }),
    ("arrays", |n| {
        let n = n.min(6);
        format!(
            "select array{}1{} from things",
            "[".repeat(n),
            "]".repeat(n)
        )
    }),
    ("casts", |n| {
        format!("select n{} from things", "::int".repeat(n))
    }),
    ("AND and OR", |n| {
        let (open, close) = ("n = 1 and (n = 2 or ".repeat(n / 2), ")".repeat(n / 2));
        format!("select count(*) from things where {open}true{close}")
    }),
    ("rows", |n| {
        let n = n.min(20);
        format!("select {}1{} from things", "row(".repeat(n), ")".repeat(n))
    }),
];

/// A proxy with one serving thread, and with lines of its own in the section of SQL.
fn proxy(dev: &Dev, name: &str, sql: &str) -> Result<Automator> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\nshard_connect_timeout_ms = 30000\n{sql}\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
    );
    for shard in dev.shards() {
        let (name, url) = (&shard.name, shard.server.url()?);
        write!(text, "[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n")?;
    }
    let file = dev.directory().join(format!("{name}.toml"));
    fs::write(&file, text)?;
    automator::serve(&file)
}

fn distribute(connection: &mut Connection) -> Result<()> {
    connection.execute(TABLE)?;
    connection.execute("select create_distributed_table('things', 'id')")?;
    connection.execute("insert into things select i, 'n' || i, i from generate_series(1, 20) i")?;
    Ok(())
}

/// How many plans are under way on threads of their own.
fn plans(proxy: &Automator) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", proxy.group.id()));
    let tasks = tasks.into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "plan").count()
}

/// `id = 0 or id = 1 ...`: some seconds of planning in a debug build.
fn long(terms: usize) -> String {
    let terms: Vec<String> = (0..terms).map(|id| format!("id = {id}")).collect();
    format!("select count(*) from things where {}", terms.join(" or "))
}

/// Each subquery is planned for itself, with all that are in it: minutes in a debug build.
fn laborious() -> String {
    let (open, close) = (
        "exists (select 1 from things where ".repeat(350),
        ")".repeat(350),
    );
    format!("select count(*) from things where {open}true{close}")
}

/// Sends a text that is planned for long, and waits until it is.
fn start_planning(proxy: &Automator) -> Result<Connection> {
    let mut connection = Connection::open(&proxy.server)?;
    connection.send(Batch::new().query(&laborious()).bytes())?;
    wait::until("a plan under way", SOON, || {
        (plans(proxy) > 0).then_some(())
    })?;
    Ok(connection)
}

#[test]
fn deep_statements_are_taken_as_by_postgres() {
    deep().expect("deep statements");
}

fn deep() -> Result<()> {
    let (plain, dev) = std::thread::scope(|scope| {
        let plain = scope.spawn(Plain::start);
        let dev = Dev::start(2);
        (plain.join().expect("no panic"), dev)
    });
    let (plain, dev) = (plain?, dev?);
    let mut one = Connection::open(&plain.server)?;
    let mut two = dev.connect()?;
    one.execute(TABLE)?;
    one.execute("insert into things select i, 'n' || i, i from generate_series(1, 20) i")?;
    distribute(&mut two)?;
    for (name, nesting) in NESTINGS {
        for count in [20, 100, 400] {
            let text = format!("{} order by 1 limit 3", nesting(count));
            let [expected, found] = [&mut one, &mut two].map(|connection| -> Result<_> {
                answer::events(&connection.simple(&text)?, &TypeNames::new())
            });
            let (expected, found) = (expected?, found?);
            let difference = answer::difference(&expected, &found, true);
            ensure!(
                difference.is_none(),
                "{count} {name}: {}",
                difference.unwrap_or_default()
            );
        }
    }
    // Far beyond what a stack holds, in a text that is short enough to be planned at once and in a
    // long one, the session and the process go on.
    for (name, nesting) in NESTINGS {
        for count in [1500, 30_000] {
            let frames = two.simple(&nesting(count)).context(*name)?;
            let error = frames.iter().find(|frame| frame.tag == b'E');
            let state = error
                .and_then(|error| error.field(b'C'))
                .unwrap_or_default();
            let refused = ["54001", "54000", "42601", "54011", "57014", ""];
            ensure!(
                refused.contains(&state.as_str()),
                "{count} {name}: {state} {:?}",
                error.and_then(|error| error.field(b'M'))
            );
            ensure!(two.execute("select 1")?.as_deref() == Some("1"), "{name}");
        }
    }
    Ok(())
}

#[test]
fn long_texts_hold_up_nobody() {
    bystander().expect("a bystander");
}

fn bystander() -> Result<()> {
    let dev = Dev::start(2)?;
    distribute(&mut dev.connect()?)?;
    let proxy = proxy(&dev, "bystander", "")?;
    let list: Vec<String> = (0..40_000).map(|id| id.to_string()).collect();
    let nested = 20_000;
    let texts = [
        format!(
            "select count(*) from things where id in ({})",
            list.join(", ")
        ),
        long(20_000),
        format!(
            "select {}{} count(*) from things",
            "/* ".repeat(nested),
            " */".repeat(nested)
        ),
    ];
    for text in &texts {
        let done = AtomicBool::new(false);
        let (answered, longest) = std::thread::scope(|scope| -> Result<_> {
            let heavy = scope.spawn(|| -> Result<_> {
                let mut connection = Connection::open(&proxy.server)?;
                let found = connection.execute(text);
                done.store(true, Ordering::SeqCst);
                found
            });
            let mut connection = Connection::open(&proxy.server)?;
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::SeqCst) {
                let start = Instant::now();
                connection.execute("select name from things where id = 7")?;
                longest = longest.max(start.elapsed());
            }
            Ok((heavy.join().expect("no panic")?, longest))
        })?;
        ensure!(answered.as_deref() == Some("20"), "{answered:?}");
        eprintln!("longest wait of a bystander: {longest:?}");
        ensure!(longest < Duration::from_secs(3), "{longest:?}: {text:.60}");
    }
    Ok(())
}

#[test]
fn plans_are_called_off() {
    called_off().expect("plans are called off");
}

fn called_off() -> Result<()> {
    let dev = Dev::start(2)?;
    distribute(&mut dev.connect()?)?;
    let limits = "plan_timeout_ms = 600000\nplan_memory_max = 1000000000000";
    let mut proxy = proxy(&dev, "patient", limits)?;
    let none = |proxy: &Automator| {
        wait::until("the plan to end", SOON, || {
            (plans(proxy) == 0).then_some(())
        })
    };

    // The client leaves.
    drop(start_planning(&proxy)?);
    none(&proxy)?;

    // It asks for an end.
    let mut connection = start_planning(&proxy)?;
    wire::cancel(&proxy.server, connection.process, &connection.secret)?;
    let frames = connection.until_ready()?;
    ensure!(
        frames[0].field(b'C').as_deref() == Some("57014"),
        "{:?}",
        frames[0]
    );
    none(&proxy)?;

    // It has asked for one before.
    connection.execute("set statement_timeout = '200ms'")?;
    let (state, message) = connection.failure(&laborious())?;
    ensure!(state == "57014", "{state} {message}");
    ensure!(message.contains("statement timeout"), "{message}");
    none(&proxy)?;

    // The process is told to end.
    let waiting = start_planning(&proxy)?;
    proxy.group.signal(Signal::SIGTERM)?;
    let code = proxy.group.wait(SOON)?;
    ensure!(code == Some(0), "{code:?}");
    drop(waiting);
    Ok(())
}

#[test]
fn plans_have_a_budget() {
    budget().expect("a budget");
}

fn budget() -> Result<()> {
    let dev = Dev::start(2)?;
    distribute(&mut dev.connect()?)?;
    let refused = |proxy: &Automator, text: &str, setting: &str| -> Result<()> {
        let mut connection = Connection::open(&proxy.server)?;
        let frames = connection.simple(text)?;
        let error = frames.iter().find(|frame| frame.tag == b'E');
        let error = error.context("an error")?;
        let field = |code| error.field(code).unwrap_or_default();
        ensure!(field(b'C') == "54000", "{}", field(b'C'));
        ensure!(field(b'M') == "statement is too complex to plan");
        ensure!(field(b'D').contains(setting), "{}", field(b'D'));
        ensure!(field(b'H').contains(setting), "{}", field(b'H'));
        let count = connection.execute("select count(*) from things")?;
        ensure!(count.as_deref() == Some("20"), "{count:?}");
        // In the extended protocol, too.
        let frames = connection.batch(&Batch::new().run(text, &[]).sync())?;
        ensure!(frames[0].field(b'C').as_deref() == Some("54000"));
        Ok(())
    };
    let hasty = proxy(&dev, "hasty", "plan_timeout_ms = 1")?;
    refused(&hasty, &long(20_000), "plan_timeout_ms")?;
    let small = proxy(&dev, "small", "plan_memory_max = 10000000")?;
    refused(&small, &long(20_000), "plan_memory_max")?;
    Ok(())
}

/// As many parameters as a message can have leave no room for one of the proxy's own.
#[test]
fn all_parameters_are_the_clients() {
    parameters().expect("parameters");
}

fn parameters() -> Result<()> {
    let dev = Dev::start(2)?;
    let mut connection = dev.connect()?;
    distribute(&mut connection)?;
    let numbers: Vec<String> = (1..=65_535).map(|number| format!("${number}")).collect();
    let values: Vec<String> = (0..65_535).map(|value| value.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let text = format!(
        "select count(*) from things where id in ({})",
        numbers.join(", ")
    );
    let frames = connection.batch(&Batch::new().run(&text, &values).sync())?;
    let row = frames.iter().find(|frame| frame.tag == b'D');
    let row = row.with_context(|| format!("{:?}", frames.last()))?;
    ensure!(row.body.ends_with(b"20"), "{row:?}");
    Ok(())
}

/// A statement behind one that changes the schema is planned again, alone: a text of very many
/// such statements is not read anew for each.
#[test]
fn statements_behind_a_setting_are_planned_one_by_one() {
    many_statements().expect("many statements");
}

fn many_statements() -> Result<()> {
    let dev = Dev::start(2)?;
    let mut connection = dev.connect()?;
    distribute(&mut connection)?;
    let mut text = "set search_path = public".to_owned();
    for id in 0..2_000 {
        write!(
            text,
            "; insert into things (id, n) values ({}, 0)",
            1_000 + id
        )?;
    }
    text.push_str("; select count(*) from things where n = 0");
    let frames = connection.simple(&text)?;
    let row = frames.iter().rfind(|frame| frame.tag == b'D');
    let row = row.context("a row")?;
    ensure!(row.body.ends_with(b"2000"), "{row:?}");
    Ok(())
}
