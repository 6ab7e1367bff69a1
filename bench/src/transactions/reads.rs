//! Reads at the level `snapshot` beside the same at `strong`, alone and beside writers.

use anyhow::Result;

use super::{ACCOUNTS, Book, Ground, SHARDS, middle, ratio, short::transfer_script};
use crate::load::{Beside, Figure, Load, Script};

const CLIENTS: u32 = 4;
/// Asked for: snapshot keeps this much of strong's throughput.
const COST_PERCENT: f64 = 10.0;
/// Writers that keep to a rate leave both levels the same rest of the machine.
const RATE: u32 = 400;

const LEVELS: [(&str, &str); 2] = [
    ("strong", "-c automator67.consistency=strong"),
    ("snapshot", "-c automator67.consistency=snapshot"),
];

const HEAD: &str = "| read | beside | level | TPS | p50 µs | p99 µs | proxy CPU µs | transfers/s | TPS lost |\n|---|---|---|---|---|---|---|---|---|";

/// Whatever runs beside the reads.
#[derive(Clone, Copy)]
struct Writers {
    name: &'static str,
    /// Transactions per second, all of them together; `None`: as many as they can.
    rate: Option<u32>,
    any: bool,
}

const BESIDE: [Writers; 3] = [
    Writers {
        name: "nothing",
        rate: None,
        any: false,
    },
    Writers {
        name: "4 writers, 400 transfers/s",
        rate: Some(RATE),
        any: true,
    },
    Writers {
        name: "4 writers",
        rate: None,
        any: true,
    },
];

/// All reads, at both levels, beside nothing and beside writers.
pub fn measure(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    book.section("Reads with consistency snapshot", HEAD);
    let place = &ground.new;
    let each = ACCOUNTS / SHARDS;
    let point = place.branches.iter().map(|branch| {
        format!(
            "\\set a random(1, {each})\n\
             SELECT balance FROM accounts WHERE branch = {branch} AND id = :a;\n"
        )
    });
    let reads = [
        (
            "sum of all balances",
            vec!["SELECT sum(balance) FROM accounts;\n".to_owned()],
        ),
        (
            "top 20, sorted",
            vec![
                "SELECT branch, id, visits FROM accounts ORDER BY visits DESC, id LIMIT 20;\n"
                    .to_owned(),
            ],
        ),
        (
            "top 20, by an index",
            vec!["SELECT branch, id, score FROM accounts ORDER BY score LIMIT 20;\n".to_owned()],
        ),
        ("point read by key", point.collect()),
    ];
    for (number, (title, texts)) in reads.iter().enumerate() {
        let script = ground.scripts(&format!("read{number}"), texts)?;
        for writers in BESIDE {
            level_against_level(ground, book, title, &script, writers)?;
        }
    }
    Ok(())
}

fn level_against_level(
    ground: &Ground<'_>,
    book: &mut Book,
    title: &str,
    script: &Script,
    writers: Writers,
) -> Result<()> {
    let place = &ground.new;
    let seconds = ground.common.seconds;
    let load = Load {
        script: script.clone(),
        mode: "simple",
        clients: CLIENTS,
        seconds,
    };
    let transfers = Load {
        script: transfer_script(ground, place)?,
        mode: "simple",
        clients: 4,
        seconds: seconds + 1,
    };
    let measured: Vec<Vec<(Figure, f64)>> =
        ground.in_turn(LEVELS.len(), ground.common.rounds, |number| {
            let options = LEVELS[number].1;
            if !writers.any {
                return Ok((ground.once(&load, &place.target(options))?, 0.0));
            }
            let bin = &ground.common.bin;
            let beside = Beside::start(bin, &transfers, &place.target(""), writers.rate)?;
            let figure = ground.once(&load, &place.target(options))?;
            Ok((figure, beside.finish()?))
        })?;
    let figures: Vec<Vec<Figure>> = measured
        .iter()
        .map(|each| each.iter().map(|(figure, _)| *figure).collect())
        .collect();
    let kept = ratio(&figures[1], &figures[0], |it| it.tps);
    let cost = 100.0 * (1.0 - kept);
    for (number, (level, _)) in LEVELS.iter().enumerate() {
        let it = crate::load::median(&figures[number]);
        let mut rates: Vec<f64> = measured[number].iter().map(|(_, rate)| *rate).collect();
        let rate = middle(&mut rates);
        let lost = match number {
            0 => "–".to_owned(),
            _ => format!("{cost:.1} %"),
        };
        book.line(format!(
            "| {title} | {} | {level} | {:.0} | {:.0} | {:.0} | {:.1} | {rate:.0} | {lost} |",
            writers.name, it.tps, it.p50_microseconds, it.p99_microseconds, it.cpu_microseconds
        ));
        book.rows.push(serde_json::json!({
            "load": title, "beside": writers.name, "level": level, "clients": CLIENTS,
            "tps": it.tps, "p50_microseconds": it.p50_microseconds,
            "p99_microseconds": it.p99_microseconds, "cpu_microseconds": it.cpu_microseconds,
            "transfers_per_second": rate,
        }));
    }
    let text = format!(
        "throughput that snapshot costs: {title}, beside {}",
        writers.name
    );
    book.ask(text, cost, COST_PERCENT, " %");
    Ok(())
}
