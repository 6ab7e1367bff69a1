use super::*;

fn transfer(id: i64, from: i64, to: i64, amount: i64) -> Transfer {
    Transfer {
        id,
        from,
        to,
        amount,
    }
}

/// A bank that did the given transfers, on two shards.
fn vault(done: &[Transfer]) -> Vault {
    let shard = |id: i64| format!("s{}", id % 2);
    let mut vault = Vault::default();
    for id in 1..=ACCOUNTS {
        vault.balances.insert(id, (shard(id), INITIAL));
    }
    for it in done {
        vault.transfers.insert(it.id, (shard(it.id), *it));
        pay(&mut vault, it.from, -it.amount);
        pay(&mut vault, it.to, it.amount);
    }
    vault
}

fn pay(vault: &mut Vault, account: i64, amount: i64) {
    if let Some((_, balance)) = vault.balances.get_mut(&account) {
        *balance += amount;
    }
}

fn book(entries: &[(Transfer, Outcome)]) -> Book {
    let mut book = Book::default();
    for (transfer, outcome) in entries {
        book.note(*transfer, outcome.clone());
    }
    book
}

fn failed() -> Outcome {
    Outcome::Failed("40001".to_owned())
}

fn unknown() -> Outcome {
    Outcome::Unknown("08007".to_owned())
}

#[track_caller]
fn check(book: &Book, vault: &Vault, words: &[&[&str]]) {
    let wrong = book.audit(vault);
    assert_eq!(wrong.len(), words.len(), "{wrong:#?}");
    for (line, words) in wrong.iter().zip(words) {
        for word in *words {
            assert!(line.contains(word), "no {word:?} in {line:?}");
        }
    }
}

#[test]
fn books_that_agree_are_silent() {
    let (one, two, three) = (
        transfer(7, 1, 2, 50),
        transfer(8, 2, 3, 20),
        transfer(9, 3, 1, 5),
    );
    let entries = [
        (one, Outcome::Acknowledged),
        (two, failed()),
        (three, unknown()),
    ];
    check(&book(&entries), &vault(&[one]), &[]);
    check(&book(&entries), &vault(&[one, three]), &[]);
    check(&Book::default(), &vault(&[]), &[]);
    let counts = book(&entries).counts();
    assert_eq!(
        (counts.acknowledged, counts.failed, counts.unknown),
        (1, 1, 1)
    );
}

#[test]
fn an_acknowledged_transfer_that_is_gone_is_told() {
    let one = transfer(7, 1, 2, 50);
    let book = book(&[(one, Outcome::Acknowledged)]);
    check(
        &book,
        &vault(&[]),
        &[&[
            "transfer 7",
            "is lost",
            "account 1 on s1",
            "account 2 on s0",
        ]],
    );
}

#[test]
fn a_failed_transfer_that_is_there_is_told() {
    let one = transfer(7, 1, 2, 50);
    let book = book(&[(one, failed())]);
    check(&book, &vault(&[one]), &[&["transfer 7", "40001", "on s1"]]);
}

#[test]
fn a_transfer_of_nobody_and_a_changed_one_are_told() {
    let (one, other) = (transfer(7, 1, 2, 50), transfer(7, 1, 2, 60));
    check(&Book::default(), &vault(&[one]), &[&["nobody's", "7"]]);
    let book = book(&[(one, Outcome::Acknowledged)]);
    check(&book, &vault(&[other]), &[&["transfer 7", "60", "50"]]);
}

#[test]
fn a_skipped_update_is_told() {
    let one = transfer(7, 1, 2, 50);
    let book = book(&[(one, Outcome::Acknowledged)]);
    for (account, amount, off) in [(1, 50, "off by 50"), (2, -50, "off by -50")] {
        let mut vault = vault(&[one]);
        pay(&mut vault, account, amount);
        let name = format!("account {account} on s{}", account % 2);
        check(&book, &vault, &[&[&name, off, "[7]"]]);
    }
}

#[test]
fn half_of_an_unknown_transfer_is_told() {
    // Only the shard of account 2 and the row committed.
    let one = transfer(7, 1, 2, 50);
    let book = book(&[(one, unknown())]);
    let mut half = vault(&[one]);
    pay(&mut half, 1, 50);
    check(&book, &half, &[&["account 1 on s1", "off by 50"]]);
    // Only the shards of the accounts did.
    let mut half = vault(&[one]);
    half.transfers.clear();
    check(
        &book,
        &half,
        &[&["account 1", "off by -50"], &["account 2", "off by 50"]],
    );
}

#[test]
fn a_lost_account_is_told() {
    let mut vault = vault(&[]);
    vault.balances.remove(&9);
    check(&Book::default(), &vault, &[&["account 9 is gone"]]);
}
