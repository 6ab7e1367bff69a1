//! `pgbench` fills its tables and runs its three scripts in every protocol, without a failure.

use anyhow::{Context, Result, ensure};
use automator67_tests::{automator::Dev, checks::Check};

use super::client;

pub(super) const CHECKS: &[Check<Dev>] = &[
    ("pgbench: tables by their own keys", |dev| {
        whole_run(dev, BY_OWN_KEYS)
    }),
    ("pgbench: small reference tables", |dev| {
        whole_run(dev, SMALL_REFERENCE)
    }),
];

const BY_OWN_KEYS: &[&str] = &[
    "select create_distributed_table('pgbench_accounts', 'aid')",
    "select create_distributed_table('pgbench_branches', 'bid')",
    "select create_distributed_table('pgbench_tellers', 'tid')",
    "select create_distributed_table('pgbench_history', 'aid')",
];
const SMALL_REFERENCE: &[&str] = &[
    "select create_distributed_table('pgbench_accounts', 'aid')",
    "select create_distributed_table('pgbench_history', 'aid')",
    "select create_reference_table('pgbench_branches')",
    "select create_reference_table('pgbench_tellers')",
];
const PROTOCOLS: &[&str] = &["simple", "extended", "prepared"];
const CLIENTS: &str = "4";
const TRANSACTIONS: &str = "200";
/// Of one run: clients times transactions.
const PROCESSED: &str = "number of transactions actually processed: 800/800";

fn whole_run(dev: &Dev, placement: &[&str]) -> Result<()> {
    pgbench(dev, &["-i", "-I", "dt"])?;
    let mut connection = dev.connect()?;
    for text in placement {
        connection.execute(text)?;
    }
    pgbench(dev, &["-i", "-s", "1", "-I", "gvp"])?;
    let mut number = |text: &str| -> Result<i64> {
        let value = connection.execute(text)?.context("no row")?;
        Ok(value.parse()?)
    };
    ensure!(number("select count(*) from pgbench_accounts")? == 100_000);
    ensure!(number("select count(distinct aid) from pgbench_accounts")? == 100_000);
    ensure!(number("select count(*) from pgbench_tellers")? == 10);
    for protocol in PROTOCOLS {
        bench(dev, "-btpcb-like", protocol)?;
    }
    let history = "select coalesce(sum(delta), 0) from pgbench_history";
    let delta = number(history)?;
    for (table, column) in [("accounts", 'a'), ("tellers", 't'), ("branches", 'b')] {
        let sum = number(&format!("select sum({column}balance) from pgbench_{table}"))?;
        ensure!(sum == delta, "{table} sum to {sum}, history to {delta}");
    }
    ensure!(number("select count(*) from pgbench_history")? == 2400);
    for protocol in PROTOCOLS {
        bench(dev, "-bsimple-update", protocol)?;
        bench(dev, "-bselect-only", protocol)?;
    }
    ensure!(number("select count(*) from pgbench_history")? == 4800);
    let (sum, delta) = (
        number("select sum(abalance) from pgbench_accounts")?,
        number(history)?,
    );
    ensure!(sum == delta, "accounts sum to {sum}, history to {delta}");
    Ok(())
}

fn bench(dev: &Dev, script: &str, protocol: &str) -> Result<()> {
    let what = format!("{script} {protocol}");
    let arguments = [
        "-n",
        "-c",
        CLIENTS,
        "-j",
        "2",
        "-t",
        TRANSACTIONS,
        "-M",
        protocol,
        script,
    ];
    let output = pgbench(dev, &arguments)?;
    ensure!(output.contains(PROCESSED), "{what}: {output}");
    let failed = output
        .lines()
        .find(|line| line.starts_with("number of failed transactions"));
    ensure!(
        failed.is_none_or(|line| line.contains(": 0 (")),
        "{what}: {output}"
    );
    Ok(())
}

fn pgbench(dev: &Dev, arguments: &[&str]) -> Result<String> {
    client(dev.server(), dev.directory(), "pgbench", arguments)?
        .success(&format!("pgbench {arguments:?}"))
}
