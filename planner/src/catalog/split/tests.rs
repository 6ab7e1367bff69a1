use proptest::prelude::*;

use super::*;

fn ranges(starts: &[(Option<i64>, ShardId)]) -> Option<Ranges> {
    let starts = starts
        .iter()
        .map(|(start, shard)| (start.map(KeyValue::Integer), *shard));
    Ranges::new(starts.collect())
}

#[test]
fn gaps_and_doubles_are_no_ranges() {
    assert!(ranges(&[]).is_none());
    assert!(ranges(&[(Some(1), 1)]).is_none());
    assert!(ranges(&[(None, 1), (None, 2)]).is_none());
    assert!(ranges(&[(None, 1), (Some(3), 2), (Some(3), 1)]).is_none());
    assert!(ranges(&[(Some(3), 2), (None, 1)]).is_some());
}

#[test]
fn a_range_begins_with_its_first_value() {
    let ranges = ranges(&[(None, 1), (Some(10), 2), (Some(20), 3)]).unwrap();
    let shard = |value| ranges.shard_of(&KeyValue::Integer(value));
    assert_eq!(
        [i64::MIN, 9, 10, 19, 20, i64::MAX].map(shard),
        [1, 1, 2, 2, 3, 3].map(Some)
    );
    let (ten, twenty) = (KeyValue::Integer(10), KeyValue::Integer(20));
    assert_eq!(ranges.around(&ten), Some((Some(&ten), 2, Some(&twenty))));
}

#[test]
fn text_is_in_order_of_its_bytes() {
    let text = |text: &str| KeyValue::Text(text.as_bytes().into());
    let ranges = Ranges::new(vec![(None, 1), (Some(text("a")), 2)]).unwrap();
    assert_eq!(ranges.shard_of(&text("Z")), Some(1));
    assert_eq!(ranges.shard_of(&text("a")), Some(2));
    assert_eq!(ranges.shard_of(&text("\u{e9}")), Some(2));
    // As one value is stored in a varchar.
    assert_eq!(ranges.shard_of(&text("a  ")), Some(2));
}

fn any_ranges() -> impl Strategy<Value = (Vec<(Option<i64>, ShardId)>, Ranges)> {
    let starts = prop::collection::btree_map(-50i64..50, 1u32..5, 0..12);
    (starts, 1u32..5).prop_map(|(starts, first)| {
        let mut list = vec![(None, first)];
        list.extend(
            starts
                .into_iter()
                .map(|(start, shard)| (Some(start), shard)),
        );
        let mut shuffled = list.clone();
        shuffled.reverse();
        let ranges = ranges(&shuffled).expect("no gap, none twice");
        (list, ranges)
    })
}

proptest! {
    #[test]
    fn a_value_is_in_the_last_range_that_begins_before_it(
        (list, ranges) in any_ranges(), value in -60i64..60,
    ) {
        let expected = list
            .iter()
            .filter(|(start, _)| start.is_none_or(|start| start <= value))
            .map(|(_, shard)| *shard)
            .next_back();
        prop_assert_eq!(ranges.shard_of(&KeyValue::Integer(value)), expected);
    }

    #[test]
    fn pruning_keeps_the_shard_of_every_value_in_the_span(
        (_, ranges) in any_ranges(),
        lower in prop::option::of(-60i64..60),
        upper in prop::option::of(-60i64..60),
        value in -70i64..70,
    ) {
        let (low, high) = (lower.map(KeyValue::Integer), upper.map(KeyValue::Integer));
        let shards = ranges.between(low.as_ref(), high.as_ref());
        prop_assert!(!shards.is_empty());
        let inside = lower.is_none_or(|lower| lower <= value) && upper.is_none_or(|upper| value <= upper);
        if inside {
            let shard = ranges.shard_of(&KeyValue::Integer(value)).unwrap();
            prop_assert!(shards.contains(&shard));
        }
    }

    #[test]
    fn pruning_keeps_nothing_else((_, ranges) in any_ranges(), lower in -60i64..60, width in 0i64..40) {
        let value = |number| KeyValue::Integer(number);
        let mut expected: Vec<ShardId> = (lower..=lower + width)
            .filter_map(|number| ranges.shard_of(&value(number)))
            .collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(ranges.between(Some(&value(lower)), Some(&value(lower + width))), expected);
    }
}
