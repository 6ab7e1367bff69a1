use proptest::prelude::*;

use super::*;
use crate::key::{KeyValue, token};

const VIRTUAL_NODES: u32 = 150;
const KEYS: i64 = 100_000;

fn ring(shards: std::ops::RangeInclusive<ShardId>) -> Ring {
    let shards: Vec<(ShardId, f64)> = shards.map(|id| (id, 1.0)).collect();
    Ring::new(Ring::build(&shards, VIRTUAL_NODES))
}

fn key_token(key: i64) -> i64 {
    token(&KeyValue::Integer(key))
}

#[test]
fn a_fifth_shard_takes_a_fifth_and_nothing_else_moves() {
    let (before, after) = (ring(1..=4), ring(1..=5));
    let mut moved = 0;
    for key in 0..KEYS {
        let (from, to) = (
            before.shard_of(key_token(key)),
            after.shard_of(key_token(key)),
        );
        if from != to {
            assert_eq!(to, Some(5), "key {key} moved between old shards");
            moved += 1;
        }
    }
    let share = moved as f64 / KEYS as f64;
    assert!((0.17..=0.23).contains(&share), "{share}");
}

#[test]
fn no_shard_of_eight_holds_much_more_than_its_share() {
    let ring = ring(1..=8);
    let mut held = [0u32; 9];
    for key in 0..KEYS {
        held[ring.shard_of(key_token(key)).unwrap() as usize] += 1;
    }
    let most = f64::from(*held.iter().max().unwrap()) / (KEYS as f64 / 8.0);
    assert!(most <= 1.25, "{most}: {held:?}");
}

#[test]
fn weight_scales_a_share() {
    let ring = Ring::new(Ring::build(&[(1, 1.0), (2, 3.0)], VIRTUAL_NODES));
    let second = (0..KEYS)
        .filter(|key| ring.shard_of(key_token(*key)) == Some(2))
        .count();
    let share = second as f64 / KEYS as f64;
    assert!((0.65..=0.85).contains(&share), "{share}");
}

#[test]
fn senseless_weights_still_give_a_point() {
    for weight in [0.0, -1.0, f64::NAN] {
        assert_eq!(
            Ring::build(&[(7, weight)], VIRTUAL_NODES).len(),
            1,
            "{weight}"
        );
    }
}

#[test]
fn an_empty_ring_owns_nothing() {
    assert_eq!(Ring::default().shard_of(0), None);
}

#[test]
fn a_point_owns_the_tokens_up_to_itself() {
    let ring = Ring::new(vec![(10, 2), (-10, 1)]);
    for (token, shard) in [
        (i64::MIN, 1),
        (-10, 1),
        (-9, 2),
        (10, 2),
        (11, 1),
        (i64::MAX, 1),
    ] {
        assert_eq!(ring.shard_of(token), Some(shard), "{token}");
    }
}

proptest! {
    #[test]
    fn integers_of_all_widths_land_together(key: i16) {
        let ring = ring(1..=3);
        let land = |oid, bytes: &[u8]| {
            let value = crate::key::from_binary(crate::catalog::KeyType::Integer, oid, bytes);
            ring.shard_of(token(&value.unwrap()))
        };
        let int2 = land(21, &key.to_be_bytes());
        prop_assert_eq!(int2, land(23, &i32::from(key).to_be_bytes()));
        prop_assert_eq!(int2, land(20, &i64::from(key).to_be_bytes()));
    }

    #[test]
    fn a_ring_does_not_depend_on_the_order_of_its_points(token: i64, turn in 0usize..450) {
        let mut points = Ring::build(&[(1, 1.0), (2, 1.0), (3, 1.0)], VIRTUAL_NODES);
        let sorted = Ring::new(points.clone());
        points.rotate_left(turn);
        prop_assert_eq!(sorted.shard_of(token), Ring::new(points).shard_of(token));
    }
}
