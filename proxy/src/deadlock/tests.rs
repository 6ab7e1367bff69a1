use super::*;

fn member(session: u64) -> Member {
    Member { session, proxy: 1 }
}

fn wait(shard: ShardId, waiter: u64, holder: u64) -> Wait {
    Wait {
        shard,
        waiter: member(waiter),
        holder: member(holder),
    }
}

#[test]
fn a_chain_is_no_circle() {
    assert!(circles(&[]).is_empty());
    assert!(circles(&[wait(1, 1, 2), wait(2, 2, 3), wait(1, 4, 3)]).is_empty());
}

#[test]
fn two_sessions_on_two_shards() {
    let found = circles(&[wait(1, 7, 8), wait(2, 8, 7)]);
    assert_eq!(found.len(), 1);
    assert_eq!(members(&found[0]), [7, 8].map(member));
}

#[test]
fn four_sessions_on_four_shards_beside_bystanders() {
    let waits = [
        wait(1, 1, 2),
        wait(2, 2, 3),
        wait(3, 3, 4),
        wait(4, 4, 1),
        wait(1, 9, 2),
        wait(1, 2, 10),
    ];
    let found = circles(&waits);
    assert_eq!(found.len(), 1);
    assert_eq!(members(&found[0]), [1, 2, 3, 4].map(member));
}

#[test]
fn a_circle_on_one_shard_is_left_to_it() {
    assert!(circles(&[wait(1, 1, 2), wait(1, 2, 1)]).is_empty());
}

#[test]
fn a_dead_end_is_left_again() {
    let found = circles(&[wait(1, 1, 5), wait(1, 1, 2), wait(2, 2, 1), wait(2, 5, 6)]);
    assert_eq!(members(&found[0]), [1, 2].map(member));
}
