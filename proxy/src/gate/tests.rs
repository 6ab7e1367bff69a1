use std::future::Future;

use super::*;

const MOVER: u64 = 1;
const READER: u64 = 2;

fn gate() -> Arc<Gate> {
    Arc::default()
}

#[test]
fn an_open_gate_bars_nobody() {
    assert!(!gate().bars(READER, u64::MAX, 0));
}

#[test]
fn a_closed_gate_bars_those_who_name_the_table() {
    let gate = gate();
    let table = names::bits("users");
    let barrier = gate.close(MOVER, vec![table]);
    assert!(gate.bars(READER, table | names::bits("orders"), 0));
    assert!(!gate.bars(READER, names::bits("orders"), 0));
    assert!(!gate.bars(READER, 0, 0));
    assert!(!gate.bars(MOVER, table, 0), "not the one who moves it");
    assert!(
        !gate.bars(READER, table, table),
        "not one who holds a lock on it"
    );
    drop(barrier);
    assert!(!gate.bars(READER, table, 0));
}

#[test]
fn each_move_opens_only_its_own() {
    let gate = gate();
    let table = names::bits("users");
    let first = gate.close(MOVER, vec![table]);
    let second = gate.close(3, vec![table]);
    drop(first);
    assert!(gate.bars(READER, table, 0));
    drop(second);
    assert!(!gate.bars(READER, table, 0));
}

#[tokio::test]
async fn waiting_ends_with_the_opening() {
    let gate = gate();
    let table = names::bits("users");
    let barrier = gate.close(MOVER, vec![table]);
    let mut wait = Box::pin(gate.wait(READER, table, 0));
    let pending = std::future::poll_fn(|context| {
        std::task::Poll::Ready(wait.as_mut().poll(context).is_pending())
    });
    assert!(pending.await);
    drop(barrier);
    wait.await;
}
