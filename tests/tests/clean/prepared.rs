//! Statements that the proxy keeps prepared have names that code on a server can guess.

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    batch::Batch,
    wire::{self, Connection},
};

use super::{Place, report};

/// What code does to the proxy's statements; no text of it is in a body.
const TAMPERS: &[(&str, &str)] = &[
    ("drops all", "deallocate all"),
    (
        "puts others in their place",
        "do $do$ declare s text; begin
            for s in select name from pg_prepared_statements where name ~ '^a67_' loop
                execute 'deallocate ' || s;
                execute 'prepare ' || s || ' as select 666';
            end loop;
        end $do$",
    ),
    (
        "takes the names of later ones",
        "do $do$ begin
            for id in 1..999 loop
                if not exists (select from pg_prepared_statements where name = 'a67_' || id) then
                    execute 'prepare a67_' || id || ' as select 666';
                end if;
            end loop;
        end $do$",
    ),
];

/// Runs a tampering, and looks what the next one gets.
type Check = fn(&Place, &str) -> Result<()>;

#[test]
fn code_cannot_change_what_the_proxy_has_prepared() {
    let place = Place::start().expect("servers start");
    let mut failures = Vec::new();
    for (name, text) in TAMPERS {
        let checks: [(&str, Check); 3] = [
            ("of the next client", check_next),
            ("in its transaction", check_transaction),
            ("of a session that keeps its connection", check_pinned),
        ];
        for (kind, check) in checks {
            let call = format!("select act_on_text($q${text}$q$)");
            if let Err(error) = check(&place, &call) {
                failures.push(format!("{name} {kind}: {error:#}"));
            }
        }
    }
    report(failures);
}

fn client(place: &Place) -> Result<Connection> {
    let mut client = Connection::open(&place.proxy.server)?;
    client.execute(
        "create or replace function act_on_text(what text) returns void language plpgsql as
            $body$ begin execute what; end $body$",
    )?;
    Ok(client)
}

fn parse(client: &mut Connection, name: &str, text: &str) -> Result<()> {
    let frames = client.batch(&Batch::default().parse(name, text).sync())?;
    answers(&frames)
}

fn answers(frames: &[wire::Frame]) -> Result<()> {
    let failed = frames.iter().find(|frame| frame.tag == b'E');
    ensure!(failed.is_none(), "{:?}", failed.map(wire::Frame::text));
    Ok(())
}

/// The value that the prepared statement gives.
fn run(client: &mut Connection, name: &str, expected: &str) -> Result<()> {
    let batch = Batch::default().bind("", name, &[]).execute("", 0).sync();
    let frames = client.batch(&batch)?;
    answers(&frames)?;
    let row = frames.iter().find(|frame| frame.tag == b'D');
    let values = wire::values(&row.context("no row")?.body)?;
    let value = values.into_iter().next().flatten();
    ensure!(value.as_deref() == Some(expected.as_bytes()), "{value:?}");
    Ok(())
}

fn check_next(place: &Place, tamper: &str) -> Result<()> {
    let mut one = client(place)?;
    let mut other = client(place)?;
    parse(&mut other, "s", "select 1")?;
    run(&mut other, "s", "1")?;
    one.execute(tamper)?;
    run(&mut other, "s", "1")?;
    parse(&mut other, "t", "select 2")?;
    run(&mut other, "t", "2")
}

fn check_transaction(place: &Place, tamper: &str) -> Result<()> {
    let mut one = client(place)?;
    parse(&mut one, "s", "select 3")?;
    one.execute("begin")?;
    run(&mut one, "s", "3")?;
    one.execute(tamper)?;
    run(&mut one, "s", "3")?;
    parse(&mut one, "t", "select 4")?;
    run(&mut one, "t", "4")?;
    one.execute("commit")?;
    run(&mut one, "s", "3")
}

fn check_pinned(place: &Place, tamper: &str) -> Result<()> {
    let mut one = client(place)?;
    one.execute("select pg_advisory_lock(1)")?;
    parse(&mut one, "s", "select 5")?;
    run(&mut one, "s", "5")?;
    one.execute(tamper)?;
    run(&mut one, "s", "5")?;
    parse(&mut one, "t", "select 6")?;
    run(&mut one, "t", "6")?;
    run(&mut one, "s", "5")?;
    one.terminate()
}
