//! Very many statements before one Sync.

use std::{io::Write, thread, time::Duration};

use anyhow::{Context, Result};
use automator67_tests::batch::Batch;

use super::{ACCOUNTS, Answer, Book, Ground, ask, bystander::beside, duration, middle};

const STATEMENTS: u32 = 100_000;
const RATIO_MAX: f64 = 2.0;
const LONG: Duration = Duration::from_secs(5);

/// The whole batch's time, beside plain Postgres.
pub fn measure(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let mut batch = Batch::new().parse("by key", "select balance from accounts where id = $1");
    for number in 0..STATEMENTS {
        let id = (number % ACCOUNTS + 1).to_string();
        batch = batch.bind("", "by key", &[Some(&id)]).execute("", 0);
    }
    let batch = batch.sync();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut longest = Duration::ZERO;
    let mut error = None;
    for _ in 0..ground.common.rounds {
        let (answer, felt) = beside(ground, || whole(&ground.proxy(), &batch))?;
        let (plain, _) = beside(ground, || whole(&ground.plain(), &batch))?;
        longest = longest.max(felt.max);
        ours.push(answer.took);
        theirs.push(plain.took);
        error = error.or(answer.error);
        if answer.took > LONG {
            break;
        }
    }
    let (ours, theirs) = (middle(&mut ours)?, middle(&mut theirs)?);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let words = error
        .as_ref()
        .map_or(String::new(), |it| format!(" ({it})"));
    book.row(
        "100,000 Bind/Execute without Sync: time",
        "64 s",
        format!(
            "{}{words}, {ratio:.1} x plain's {}",
            duration(ours),
            duration(theirs)
        ),
        "≤ 2 x plain",
        error.is_none() && ratio <= RATIO_MAX,
    );
    book.note(format!(
        "100,000 Bind/Execute without Sync: the bystander waited at most {}",
        duration(longest)
    ));
    Ok(())
}

/// Answers come while the batch is still being sent: whoever did not read them would wait for ever.
fn whole(server: &automator67_tests::wire::Server, batch: &Batch) -> Result<Answer> {
    ask(server, |connection| {
        let mut sender = connection.sender()?;
        let bytes = batch.bytes().to_vec();
        thread::spawn(move || sender.write_all(&bytes));
        Ok(())
    })
    .context("a batch without Sync")
}
