//! What a bank's books must say: money moves between accounts, and none is made or lost.
//!
//! Every transfer takes an amount from one account, gives it to another and writes a row in
//! `transfers`, in one transaction. [`Book`] notes what each client was told; [`Book::audit`]
//! holds that against what the shards hold in the end.

use std::collections::BTreeMap;

/// How many accounts there are; their ids count from 1.
pub const ACCOUNTS: i64 = 200;
/// What each account holds at first.
pub const INITIAL: i64 = 1000;
/// What all hold together, always.
pub const TOTAL: i64 = ACCOUNTS * INITIAL;

/// An amount that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Its row in `transfers`.
    pub id: i64,
    /// The account that pays.
    pub from: i64,
    /// The account that is paid.
    pub to: i64,
    /// How much.
    pub amount: i64,
}

/// What the client of a transfer was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// COMMIT succeeded.
    Acknowledged,
    /// It failed for certain: an error that says so, or COMMIT was never sent.
    Failed(String),
    /// The connection was lost after COMMIT was sent, or 08007.
    Unknown(String),
}

/// Everything that clients were told, by the transfer's id.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<i64, (Transfer, Outcome)>,
}

/// How many transfers had each outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// COMMIT succeeded.
    pub acknowledged: usize,
    /// Failed for certain.
    pub failed: usize,
    /// Nobody was told.
    pub unknown: usize,
}

/// What the shards hold.
#[derive(Debug, Default, Clone)]
pub struct Vault {
    /// For every account, the shard that holds it and its balance.
    pub balances: BTreeMap<i64, (String, i64)>,
    /// For every row of `transfers`, the shard that holds it and the row.
    pub transfers: BTreeMap<i64, (String, Transfer)>,
}

impl Book {
    /// Notes what the client of `transfer` was told.
    pub fn note(&mut self, transfer: Transfer, outcome: Outcome) {
        self.entries.insert(transfer.id, (transfer, outcome));
    }

    /// How many transfers had each outcome.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (_, outcome) in self.entries.values() {
            match outcome {
                Outcome::Acknowledged => counts.acknowledged += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Unknown(_) => counts.unknown += 1,
            }
        }
        counts
    }

    /// How often clients were told each reason of a failure or of not knowing.
    pub fn reasons(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for (_, outcome) in self.entries.values() {
            let reason = match outcome {
                Outcome::Acknowledged => continue,
                Outcome::Failed(why) => format!("failed: {why}"),
                Outcome::Unknown(why) => format!("unknown: {why}"),
            };
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }

    /// The ids of transfers of an amount, to tell which one a sum has seen in part.
    pub fn of_amount(&self, amount: i64) -> Vec<i64> {
        let of = self.entries.values().map(|(transfer, _)| transfer);
        of.filter(|it| it.amount == amount)
            .map(|it| it.id)
            .collect()
    }

    /// Every contradiction between what clients were told and what the shards hold.
    pub fn audit(&self, vault: &Vault) -> Vec<String> {
        let mut wrong = self.lost_or_undead(vault);
        wrong.extend(strangers(&self.entries, vault));
        wrong.extend(unbalanced(vault));
        wrong
    }

    fn lost_or_undead(&self, vault: &Vault) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, (transfer, outcome)) in &self.entries {
            let found = vault.transfers.get(id);
            let places = || {
                let of = |account| vault.balances.get(account).map_or("?", |(shard, _)| shard);
                let Transfer { from, to, .. } = transfer;
                format!("account {from} on {}, account {to} on {}", of(from), of(to))
            };
            match (outcome, found) {
                (Outcome::Acknowledged, None) => wrong.push(format!(
                    "transfer {id} was acknowledged and is lost: {transfer:?}, {}",
                    places()
                )),
                (Outcome::Failed(why), Some((shard, _))) => wrong.push(format!(
                    "transfer {id} failed with {why} and its row is on {shard}: {transfer:?}, {}",
                    places()
                )),
                (_, Some((shard, row))) if row != transfer => wrong.push(format!(
                    "transfer {id} on {shard} is {row:?}, not {transfer:?}"
                )),
                _ => {}
            }
        }
        wrong
    }
}

fn strangers(entries: &BTreeMap<i64, (Transfer, Outcome)>, vault: &Vault) -> Vec<String> {
    let unknown = vault
        .transfers
        .iter()
        .filter(|(id, _)| !entries.contains_key(id));
    unknown
        .map(|(id, (shard, row))| format!("transfer {id} on {shard} is nobody's: {row:?}"))
        .collect()
}

/// Accounts whose balance is not the initial one plus the transfers whose rows are there.
fn unbalanced(vault: &Vault) -> Vec<String> {
    let mut expected: BTreeMap<i64, i64> = (1..=ACCOUNTS).map(|id| (id, INITIAL)).collect();
    for (_, transfer) in vault.transfers.values() {
        *expected.entry(transfer.from).or_default() -= transfer.amount;
        *expected.entry(transfer.to).or_default() += transfer.amount;
    }
    let mut wrong = Vec::new();
    for (account, expected) in expected {
        let Some((shard, balance)) = vault.balances.get(&account) else {
            wrong.push(format!("account {account} is gone"));
            continue;
        };
        if *balance != expected {
            let off = balance - expected;
            let suspects = vault.transfers.values().filter(|(_, transfer)| {
                (transfer.from == account || transfer.to == account) && transfer.amount == off.abs()
            });
            let suspects: Vec<_> = suspects.map(|(_, transfer)| transfer.id).collect();
            wrong.push(format!(
                "account {account} on {shard} holds {balance} instead of {expected}, \
                 off by {off}; transfers of it with that amount: {suspects:?}"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests;
