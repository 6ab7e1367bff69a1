//! Money moves between shards while proxies are killed, shards die and connections are cut at
//! every step of a commit: none is made, none is lost, and no reader sees a transfer in part.
//!
//! `AUTOMATOR67_ROUNDS` says how often each step gets a fault (1, with the kinds of fault taking
//! turns over steps and rounds); `AUTOMATOR67_STEPS` keeps the steps whose name contains it;
//! `AUTOMATOR67_SEED` says which transfers each client makes, and every run tells its own (who comes
//! first is left to chance).

mod clients;
mod faults;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    bank::{ACCOUNTS, INITIAL, TOTAL, Transfer, Vault},
    given::{self, number},
    pair::{Pair, RESOLVE_LIMIT},
    wait,
    wire::Connection,
};
use clients::{Clients, Counter, Notes};
use faults::{Fault, STEPS};

const SHARDS: usize = 4;

#[test]
fn money_is_neither_made_nor_lost() {
    bank().expect("the bank");
}

fn bank() -> Result<()> {
    let rounds = usize::try_from(number("AUTOMATOR67_ROUNDS", 1))?;
    let seed = given::seed("the bank");
    let wanted = std::env::var("AUTOMATOR67_STEPS").unwrap_or_default();
    let mut pair = Pair::start(SHARDS)?;
    open_accounts(&pair)?;
    let notes = Arc::new(Notes::new(&pair, seed));
    for round in 0..rounds {
        let clients = Clients::start(&notes);
        notes
            .progress(&[Counter::A, Counter::B], 20)
            .with_context(|| notes.summary())?;
        for (turn, step) in STEPS.iter().enumerate() {
            if step.contains(&wanted) {
                let fault = Fault::of_turn(round + turn, SHARDS);
                faults::strike(&mut pair, &notes, step, fault)
                    .with_context(|| context(&pair, &notes, round, step, fault))?;
            }
        }
        clients.finish()?;
        audit(&pair, &notes).with_context(|| format!("after round {round}"))?;
        eprintln!("round {round}: {}", notes.summary());
    }
    notes.must_have_read()?;
    notices_what_is_wrong(&pair, &notes)
}

/// Where to look when a round fails.
fn context(pair: &Pair, notes: &Notes, round: usize, step: &str, fault: Fault) -> String {
    format!(
        "round {round}, {fault} at {step}\n{}\nbusy:\n{}\nlog of A:\n{}\nlog of B:\n{}\n",
        notes.summary(),
        pair.busy(),
        pair.a.log_end(),
        pair.b.log_end()
    )
}

fn open_accounts(pair: &Pair) -> Result<()> {
    let mut connection = pair.a.connect()?;
    for text in [
        "create table accounts (id bigint primary key, balance bigint not null)",
        "create table transfers (id bigint primary key, payer bigint not null, \
         payee bigint not null, amount bigint not null)",
        // Two rows of one id fail when the transaction is prepared, not before.
        "create table vetoes (id bigint not null, unique (id) deferrable initially deferred)",
        "select create_distributed_table('accounts', 'id')",
        "select create_distributed_table('transfers', 'id')",
        "select create_distributed_table('vetoes', 'id')",
        &format!("insert into accounts select g, {INITIAL} from generate_series(1, {ACCOUNTS}) g"),
    ] {
        connection.execute(text)?;
    }
    let places = pair.places("accounts", "id")?;
    let used: std::collections::BTreeSet<_> = places.values().collect();
    ensure!(used.len() == SHARDS, "accounts on {used:?} alone");
    // The other process has heard of the tables.
    wait::until("B to know the tables", RESOLVE_LIMIT, || {
        let mut connection = pair.b.connect().ok()?;
        connection.execute("select count(*) from vetoes").ok()
    })?;
    Ok(())
}

/// What the shards hold, read without a proxy.
fn vault(pair: &Pair) -> Result<Vault> {
    let mut vault = Vault::default();
    let numbers = |row: Vec<String>| -> Result<Vec<i64>> {
        row.iter().map(|text| Ok(text.parse()?)).collect()
    };
    for (shard, row) in pair.everywhere("select id, balance from only accounts")? {
        if let [id, balance] = numbers(row)?[..] {
            let held = (pair.shard_name(shard), balance);
            vault.balances.insert(id, held);
        }
    }
    let text = "select id, payer, payee, amount from only transfers";
    for (shard, row) in pair.everywhere(text)? {
        if let [id, from, to, amount] = numbers(row)?[..] {
            let transfer = Transfer {
                id,
                from,
                to,
                amount,
            };
            let held = (pair.shard_name(shard), transfer);
            vault.transfers.insert(id, held);
        }
    }
    Ok(vault)
}

/// When all clients have gone: nothing is prepared, and the books agree with the shards.
fn audit(pair: &Pair, notes: &Notes) -> Result<()> {
    let mut left = Vec::new();
    wait::until("the last prepared transactions", RESOLVE_LIMIT, || {
        left = pair.prepared(None).ok()?;
        left.is_empty().then_some(())
    })
    .with_context(|| format!("left: {left:?}"))?;
    let wrong = notes.book().audit(&vault(pair)?);
    ensure!(
        wrong.is_empty(),
        "{} contradictions:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    for proxy in [&pair.a, &pair.b] {
        let sum = clients::sum(&mut proxy.connect()?)?;
        ensure!(sum == TOTAL, "the sum is {sum} instead of {TOTAL}");
    }
    Ok(())
}

/// The checks above must fail when an update is skipped or an acknowledged row goes away.
fn notices_what_is_wrong(pair: &Pair, notes: &Notes) -> Result<()> {
    let mut connection = pair.b.connect()?;
    let amount = 77;
    connection.execute("begin")?;
    connection.execute(&pay(1, -amount))?;
    connection.execute("insert into transfers values (1, 1, 2, 77)")?;
    connection.execute("commit")?;
    let told = told(audit(pair, notes))?;
    for words in ["transfer 1 on ", "account 2 on ", "off by -77"] {
        ensure!(told.contains(words), "no {words:?} in {told}");
    }
    let sum = clients::sum(&mut connection)?;
    ensure!(sum == TOTAL - amount, "the sum is {sum}");
    let by_account = clients::sum_of_each(&mut connection)?;
    ensure!(by_account == TOTAL - amount, "one by one: {by_account}");
    connection.execute(&pay(1, amount))?;
    connection.execute("delete from transfers where id = 1")?;
    audit(pair, notes)?;
    let known = notes.an_acknowledged().context("no transfer")?;
    connection.execute(&format!("delete from transfers where id = {known}"))?;
    let told = self::told(audit(pair, notes))?;
    let words = format!("transfer {known} was acknowledged and is lost");
    ensure!(told.contains(&words), "no {words:?} in {told}");
    Ok(())
}

fn told(result: Result<()>) -> Result<String> {
    let error = result.err().context("nobody noticed")?;
    Ok(format!("{error:#}"))
}

fn pay(account: i64, amount: i64) -> String {
    format!(
        "update accounts set balance = balance + {amount} where id = {account} returning balance"
    )
}

/// The SQLSTATE and message of a statement that failed; an error when the connection did.
fn refused(connection: &mut Connection, text: &str) -> Result<Option<(String, String)>> {
    let frames = connection.simple(text)?;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    Ok(error.map(|error| {
        let field = |code| error.field(code).unwrap_or_default();
        (field(b'C'), field(b'M'))
    }))
}

type Reasons = BTreeMap<String, usize>;

/// How long anything may take that faults hold up.
const PATIENCE: Duration = Duration::from_secs(60);
