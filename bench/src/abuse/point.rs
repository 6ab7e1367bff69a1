//! What bounds cost those who never reach them: the processor time of a point query, beside an older
//! binary on the same servers.

use std::{fs, path::Path};

use anyhow::Result;

use super::{ACCOUNTS, Book, Ground, fill, middle, one_thread};
use crate::{
    load::{self, Load, Script, Target},
    servers::psql,
};

/// Where the older binary keeps its tables, on the same servers.
const OLD_DATABASE: &str = "before";
const CLIENTS: u32 = 16;
/// Small differences need more rounds than others.
const ROUNDS: usize = 5;
const DIFFERENCE_MAX: f64 = 0.02;

/// In both protocols, in alternating rounds; the median of the rounds' ratios counts.
pub fn measure(ground: &Ground<'_>, before: Option<&Path>, book: &mut Book) -> Result<()> {
    let common = ground.common;
    let Some(binary) = before else {
        book.note("point query: not compared, no older binary was given".to_owned());
        return Ok(());
    };
    for shard in &ground.shards {
        let text = format!("create database {OLD_DATABASE}");
        psql(&common.bin, shard.port, "postgres", &text)?;
    }
    let directory = ground.directory.path();
    let old = one_thread(binary, directory, OLD_DATABASE, &ground.shards)?;
    fill(common, old.port, OLD_DATABASE, true)?;
    let script = directory.join("point.sql");
    let text =
        format!("\\set id random(1, {ACCOUNTS})\nselect balance from accounts where id = :id;\n");
    fs::write(&script, text)?;
    for mode in ["simple", "prepared"] {
        let load = Load {
            script: Script::File(script.clone()),
            mode,
            clients: CLIENTS,
            seconds: common.seconds,
        };
        let old = Target {
            database: OLD_DATABASE,
            ..Target::new(old.port, &old)
        };
        let new = Target::new(ground.proxy.port, &ground.proxy);
        let cpu = |target| -> Result<f64> {
            Ok(load::run(&common.bin, &load, target, None)?.cpu_microseconds)
        };
        let mut ratios = Vec::new();
        let mut microseconds = Vec::new();
        for round in 0..ROUNDS * common.rounds {
            let (theirs, ours) = if round % 2 == 0 {
                let theirs = cpu(&old)?;
                (theirs, cpu(&new)?)
            } else {
                let ours = cpu(&new)?;
                (cpu(&old)?, ours)
            };
            ratios.push(ours / theirs);
            microseconds.push(ours);
        }
        let ratio: f64 = middle(&mut ratios)?;
        book.row(
            &format!(
                "point query, {mode}, {CLIENTS} clients: processor time to the version before"
            ),
            "1.00",
            // `middle` has sorted them.
            format!(
                "{ratio:.3} ({:.1} µs), half of the rounds between {:.3} and {:.3}",
                middle(&mut microseconds)?,
                ratios[ratios.len() / 4],
                ratios[ratios.len() * 3 / 4]
            ),
            "1.00 ± 0.02",
            (ratio - 1.0).abs() <= DIFFERENCE_MAX,
        );
    }
    Ok(())
}
