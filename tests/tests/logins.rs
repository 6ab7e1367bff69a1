//! Who gets in, and what those cost that do not: crowds that stay silent, wrong passwords.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use automator67_tests::{
    automator::{self, Automator, Dev},
    checks, postgres, wait,
    wire::{Connection, Server},
};

#[test]
fn logins_have_limits() {
    let dev = Dev::start(1).expect("dev starts");
    checks::run(
        &dev,
        &[
            ("a silent crowd", silent_crowd),
            ("a crowd that begins to speak", speaking_crowd),
            ("sessions are those logged in", sessions_max),
            ("wrong passwords", wrong_passwords),
        ],
    );
}

fn serve(dev: &Dev, name: &str, sql: &str) -> Result<Automator> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n{sql}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{}\"\npassword = \"{}\"\n",
        postgres::USER,
        postgres::PASSWORD
    );
    for shard in dev.shards() {
        let url = shard.server.url()?;
        text += &format!("[[shards]]\nname = \"{}\"\nurl = \"{url}\"\n", shard.name);
    }
    let file: PathBuf = dev.directory().join(format!("{name}.toml"));
    std::fs::write(&file, text)?;
    automator::serve(&file)
}

fn crowd(server: &Server, size: usize) -> Result<Vec<Connection>> {
    (0..size).map(|_| Connection::raw(server)).collect()
}

/// How many of them the proxy has closed within a while.
fn closed(crowd: &mut [Connection]) -> Result<usize> {
    let mut count = 0;
    for connection in crowd {
        connection.set_read_limit(Duration::from_millis(1))?;
        count += usize::from(connection.is_closed()?);
    }
    Ok(count)
}

fn silent_crowd(dev: &Dev) -> Result<()> {
    let limits = "sessions_max = 20\nlogins_per_address_max = 10";
    let proxy = serve(dev, "silent", limits)?;
    let mut silent = crowd(&proxy.server, 200)?;
    let mut session = Connection::open(&proxy.server)?;
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    // Those that stay are the last.
    wait::until("the crowd to leave", Duration::from_secs(30), || {
        (closed(&mut silent[..190]).ok()? == 190).then_some(())
    })?;
    ensure!(closed(&mut silent[190..])? == 0, "too many had to leave");
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    Ok(())
}

/// All of them have sent the startup packet; the oldest makes room for one that logs in.
fn speaking_crowd(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "speaking", "sessions_max = 20\nlogins_max = 30")?;
    let mut crowd = crowd(&proxy.server, 60)?;
    for connection in &mut crowd {
        // The oldest may be closed already.
        let _ = connection.send(b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0");
    }
    let mut session = Connection::open(&proxy.server)?;
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    wait::until("the oldest to leave", Duration::from_secs(30), || {
        (closed(&mut crowd).ok()? >= 30).then_some(())
    })
}

fn sessions_max(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "sessions", "sessions_max = 2")?;
    let silent = crowd(&proxy.server, 5)?;
    let first = Connection::open(&proxy.server)?;
    let second = Connection::open(&proxy.server)?;
    let mut third = Connection::raw(&proxy.server)?;
    let refused = third.login(&proxy.server)?;
    let code = refused.and_then(|error| error.field(b'C'));
    ensure!(code.as_deref() == Some("53300"), "{code:?}");
    drop(first);
    wait::until("a place", Duration::from_secs(10), || {
        Connection::open(&proxy.server).ok()
    })?;
    drop((second, silent));
    Ok(())
}

fn wrong_passwords(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "wrong", "")?;
    let mut wrong = proxy.server.clone();
    wrong.password = "wrong".to_owned();
    let refused = |server: &Server| -> Result<Duration> {
        let mut connection = Connection::raw(server)?;
        let start = Instant::now();
        let error = connection.login(server)?;
        let code = error.and_then(|error| error.field(b'C'));
        ensure!(code.as_deref() == Some("28P01"), "{code:?}");
        Ok(start.elapsed())
    };
    for _ in 0..5 {
        refused(&wrong)?;
    }
    let sixth = refused(&wrong)?;
    ensure!(sixth >= Duration::from_millis(400), "{sixth:?}");
    let mut nobody = wrong.clone();
    nobody.user = "nobody".to_owned();
    let seventh = refused(&nobody)?;
    ensure!(seventh >= Duration::from_millis(800), "{seventh:?}");
    // Many at once wait beside each other, and a right password does not wait at all.
    std::thread::scope(|scope| -> Result<()> {
        let many: Vec<_> = (0..30).map(|_| scope.spawn(|| refused(&wrong))).collect();
        let start = Instant::now();
        let mut connection = Connection::open(&proxy.server)?;
        ensure!(connection.execute("select 1")?.as_deref() == Some("1"));
        ensure!(
            start.elapsed() < Duration::from_secs(1) + sixth,
            "{:?}",
            start.elapsed()
        );
        for one in many {
            one.join().expect("a client's thread")?;
        }
        Ok(())
    })?;
    let told = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("login refused"));
        let left_out = lines
            .clone()
            .filter(|line| line.contains("suppressed="))
            .count();
        (lines.count(), left_out)
    };
    wait::until(
        "a line about what was left out",
        Duration::from_secs(10),
        || (told(&proxy.group.log()).1 > 0).then_some(()),
    )?;
    let (lines, _) = told(&proxy.group.log());
    ensure!(lines < 30, "{lines} lines for 37 wrong passwords");
    Ok(())
}
