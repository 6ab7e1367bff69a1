//! Drivers and client programs that people use, through the proxy to three shards.
//!
//! The scripts lie in `tests/drivers`; each also passes on plain Postgres with `PLAIN=1`. What
//! they need is installed by `scripts/setup test`.

mod pgbench;
mod psql;
mod tokio_postgres;

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    checks::{self, Check},
    postgres,
    process::Group,
    wire::Server,
};

const SCRIPT_LIMIT: Duration = Duration::from_secs(180);
/// Of one run of `psql` or `pgbench`.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
/// What is shown of a failed program's output.
const SHOWN_BYTES: usize = 16_000;

const SCRIPTS: &[Check<Dev>] = &[
    ("psycopg", |dev| python(dev, "psycopg_checks.py")),
    ("psycopg: sessions", |dev| {
        python(dev, "psycopg_sessions.py")
    }),
    ("asyncpg", |dev| python(dev, "asyncpg_checks.py")),
    ("sqlalchemy", |dev| python(dev, "sqlalchemy_checks.py")),
    ("node-postgres", |dev| node(dev, "node_postgres.js")),
];

#[test]
fn drivers_work_through_the_proxy() {
    let dev = Dev::start(3).expect("start");
    let checks = [
        SCRIPTS,
        tokio_postgres::CHECKS,
        psql::CHECKS,
        pgbench::CHECKS,
    ]
    .concat();
    checks::run(&dev, &checks);
}

/// What a program said before it ended.
struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Output {
    /// Its standard output, when it ended with 0.
    fn success(self, what: &str) -> Result<String> {
        ensure!(self.code == Some(0), "{what}: {}", self.describe());
        Ok(self.stdout)
    }

    fn describe(&self) -> String {
        let (stdout, stderr) = (tail(&self.stdout), tail(&self.stderr));
        format!("exit code {:?}\n{stdout}\n{stderr}", self.code)
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(SHOWN_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Runs `command` until it ends or `limit` has passed; its output goes to files in `directory`.
fn run(command: &mut Command, directory: &Path, name: &str, limit: Duration) -> Result<Output> {
    let stdout = directory.join(format!("{name}.out"));
    let file = File::create(&stdout).with_context(|| format!("create {}", stdout.display()))?;
    command.stdout(file);
    let mut group = Group::start(command, &directory.join(format!("{name}.err")))?;
    let code = group.wait(limit);
    let output = Output {
        code: code.as_ref().copied().unwrap_or_default(),
        stdout: String::from_utf8_lossy(&fs::read(&stdout)?).into_owned(),
        stderr: group.log(),
    };
    code.with_context(|| output.describe())?;
    Ok(output)
}

/// Runs `psql` or `pgbench` against `server`.
fn client(server: &Server, directory: &Path, program: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(postgres::binaries()?.join(program));
    command.args(arguments).current_dir(directory);
    command
        .envs(server.environment())
        .env("PGCONNECT_TIMEOUT", "10");
    run(&mut command, directory, program, CLIENT_LIMIT)
}

fn python(dev: &Dev, script: &str) -> Result<()> {
    let program = postgres::cache()?.join("venv/bin/python");
    script_of(dev, Command::new(program).arg("-B"), script)
}

fn node(dev: &Dev, script: &str) -> Result<()> {
    let modules = postgres::cache()?.join("node/node_modules");
    script_of(dev, Command::new("node").env("NODE_PATH", modules), script)
}

fn script_of(dev: &Dev, command: &mut Command, script: &str) -> Result<()> {
    let path = Path::new("drivers").join(script);
    command
        .arg(path)
        .env("DATABASE_URL", dev.server().url()?)
        .env("LIMIT", SCRIPT_LIMIT.as_secs().to_string());
    run(command, dev.directory(), script, SCRIPT_LIMIT)
        .context("are the drivers there? scripts/setup test")?
        .success(script)?;
    Ok(())
}
