//! TPC-C's transactions on four shards, a tenth of them over two warehouses: the books agree
//! afterwards, and nobody is the victim of a deadlock.
//!
//! `AUTOMATOR67_SECONDS` says how long, `AUTOMATOR67_CLIENTS` how many terminals.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use automator67_tests::{
    automator::Dev,
    given::number,
    tpcc::{self, Counts},
};

const WAREHOUSES: i64 = 8;
const SEED: u64 = 67;

fn run(dev: &Dev, clients: u64, seconds: u64) -> Result<Counts> {
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        let terminals: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || tpcc::terminal(dev.server(), WAREHOUSES, SEED, client, end))
            })
            .collect();
        let mut sum = Counts::default();
        for terminal in terminals {
            sum.add(terminal.join().expect("no panic")?);
        }
        Ok(sum)
    })
}

fn summary(counts: &mut Counts, seconds: u64) -> String {
    counts.waits.sort();
    let waits = &counts.waits;
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied();
    format!(
        "{} transactions in {seconds} s, {:.0} New-Orders a minute (median {:?}, 95 % {:?}); \
         committed {:?}, over two warehouses {}, rolled back {}, 40001 {}, 40P01 {}",
        counts.sum(),
        counts.committed[0] as f64 * 60.0 / seconds.max(1) as f64,
        at(50).unwrap_or_default(),
        at(95).unwrap_or_default(),
        counts.committed,
        counts.remote,
        counts.rolled_back,
        counts.conflicts,
        counts.deadlocks,
    )
}

fn books_agree(dev: &Dev) -> Result<()> {
    let found = tpcc::violations(&mut dev.connect()?)?;
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// What a lost half of a transaction would leave breaks a condition.
fn notices_what_is_wrong(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    for lost in [
        "update warehouse set w_ytd = w_ytd - 1 where w_id = 2",
        "update district set d_ytd = d_ytd - 1 where d_w_id = 3 and d_id = 4",
        "update customer set c_ytd_payment = c_ytd_payment - 1 where c_w_id = 1 and c_d_id = 1 and c_id = 1",
        "update stock set s_ytd = s_ytd + 1 where s_w_id = 5 and s_i_id = 6",
        "delete from order_line where ol_w_id = 8 and ol_d_id = 9 and ol_o_id = 3 and ol_number = 2",
        "delete from new_order where no_w_id = 7 and no_d_id = 2 \
         and no_o_id = (select max(no_o_id) from new_order where no_w_id = 7 and no_d_id = 2)",
    ] {
        connection.execute("begin")?;
        connection.execute(lost)?;
        let found = tpcc::violations(&mut connection)?;
        ensure!(!found.is_empty(), "{lost} is not noticed");
        connection.execute("rollback")?;
    }
    Ok(())
}

#[test]
fn books_agree_after_transactions_over_warehouses() {
    let dev = Dev::start(4).expect("dev starts");
    let mut connection = dev.connect().expect("login");
    tpcc::load(&mut connection, WAREHOUSES).expect("rows");
    books_agree(&dev).expect("the loader's rows agree");
    let seconds = number("AUTOMATOR67_SECONDS", 6);
    let mut counts = run(&dev, number("AUTOMATOR67_CLIENTS", 8), seconds).expect("no errors");
    let summary = summary(&mut counts, seconds);
    eprintln!("{summary}");
    books_agree(&dev).expect(&summary);
    notices_what_is_wrong(&dev).expect("the conditions see what is wrong");
    assert!(counts.remote > 0, "{summary}");
    assert_eq!(counts.deadlocks, 0, "{summary}");
}
