//! Short transactions: a transfer between two shards, one that stays on its shard, a statement
//! that writes on several.

use anyhow::Result;

use super::{ACCOUNTS, Book, Ground, HEAD, OLD, PLAIN, Place, SHARDS, ratio};
use crate::load::{Figure, Load, Script};

const CLIENTS: [u32; 2] = [1, 16];
/// Asked for.
const TRANSFER_RATIO: f64 = 2.2;
const ONE_SHARD_RATIO: f64 = 1.03;
/// Small differences need more rounds than others.
const ONE_SHARD_ROUNDS: usize = 3;

/// From every shard to each later one, so two transfers do not wait for each other in a circle.
pub fn transfer_script(ground: &Ground<'_>, place: &Place) -> Result<Script> {
    let each = ACCOUNTS / SHARDS;
    let mut texts = Vec::new();
    for (position, from) in place.branches.iter().enumerate() {
        for to in &place.branches[position + 1..] {
            texts.push(format!(
                "\\set a random(1, {each})\n\\set b random(1, {each})\nBEGIN;\n\
                 UPDATE accounts SET balance = balance - 1 WHERE branch = {from} AND id = :a;\n\
                 UPDATE accounts SET balance = balance + 1 WHERE branch = {to} AND id = :b;\n\
                 COMMIT;\n"
            ));
        }
    }
    ground.scripts(&format!("transfer-{}", place.name), &texts)
}

/// BEGIN, an UPDATE on one shard, an UPDATE on another one, COMMIT.
pub fn transfers(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    book.section("Transfers between two shards", HEAD);
    for (mode, clients, figures) in compare(ground, book, "transfer", 1, transfer_script)? {
        let text = format!("p50 of a two-shard transfer to plain, {mode}, clients: {clients}");
        book.ask_p50(text, &figures, TRANSFER_RATIO);
    }
    Ok(())
}

/// BEGIN, an UPDATE and a SELECT on one shard, COMMIT.
pub fn one_shard(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let each = ACCOUNTS / SHARDS;
    let script = |ground: &Ground<'_>, place: &Place| {
        let text = |branch: &i64| {
            format!(
                "\\set a random(1, {each})\nBEGIN;\n\
                 UPDATE accounts SET visits = visits + 1 WHERE branch = {branch} AND id = :a;\n\
                 SELECT visits FROM accounts WHERE branch = {branch} AND id = :a;\nCOMMIT;\n"
            )
        };
        let texts: Vec<String> = place.branches.iter().map(text).collect();
        ground.scripts(&format!("one-shard-{}", place.name), &texts)
    };
    book.section("Transactions of one shard", HEAD);
    for (mode, clients, figures) in compare(ground, book, "one shard", ONE_SHARD_ROUNDS, script)? {
        let [_, old, new] = &figures[..] else {
            continue;
        };
        let cpu = ratio(new, old, |it| it.cpu_microseconds);
        let tps = ratio(old, new, |it| it.tps);
        let what = format!("of a one-shard transaction, {mode}, clients: {clients}");
        let text = format!("CPU {what}, now to before");
        book.ask(text, cpu, ONE_SHARD_RATIO, " x");
        book.ask(
            format!("TPS {what}, before to now"),
            tps,
            ONE_SHARD_RATIO,
            " x",
        );
    }
    Ok(())
}

/// Ten rows at once, and a row of each shard at once: for the record.
pub fn several_shards(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    book.section("One statement that writes on several shards", HEAD);
    let insert = |ground: &Ground<'_>, place: &Place| {
        let draws = (1..=10).map(|row| format!("\\set id{row} random(1, 4000000000000000)\n"));
        let rows: Vec<String> = (1..=10)
            .map(|row| format!("(:id{row}, {row}, 'an event of ten')"))
            .collect();
        let text = format!(
            "{}INSERT INTO events VALUES {};\n",
            draws.collect::<String>(),
            rows.join(", ")
        );
        ground.scripts(&format!("ten-{}", place.name), &[text])
    };
    compare(ground, book, "insert of 10 rows", 1, insert)?;
    let each = ACCOUNTS / SHARDS;
    let update = |ground: &Ground<'_>, place: &Place| {
        let text = format!(
            "\\set a random(1, {each})\nUPDATE accounts SET visits = visits + 1 WHERE id = :a;\n"
        );
        ground.scripts(&format!("update-{}", place.name), &[text])
    };
    compare(ground, book, "update of a row on each shard", 1, update)?;
    Ok(())
}

/// Protocol, clients, and the figures of each place.
type Compared = (&'static str, u32, Vec<Vec<Figure>>);

/// The same load on all places, in both protocols, `times` as many rounds as asked for.
fn compare(
    ground: &Ground<'_>,
    book: &mut Book,
    title: &str,
    times: usize,
    script: impl Fn(&Ground<'_>, &Place) -> Result<Script>,
) -> Result<Vec<Compared>> {
    let places = ground.places();
    let names: Vec<&str> = places.iter().map(|place| place.name).collect();
    let mut all = Vec::new();
    for mode in ["simple", "prepared"] {
        for clients in CLIENTS {
            let mut targets = Vec::new();
            for place in &places {
                let load = Load {
                    script: script(ground, place)?,
                    mode,
                    clients,
                    seconds: ground.common.seconds,
                };
                targets.push((load, place.target("")));
            }
            let figures = ground.alternate(&targets, times * ground.common.rounds)?;
            book.load(title, mode, clients, &names, &figures);
            all.push((mode, clients, figures));
        }
    }
    if !names.contains(&OLD) {
        book.note(format!(
            "{title}: compared with {PLAIN} only, no older binary was given"
        ));
    }
    Ok(all)
}
