use proptest::prelude::*;

use super::*;

fn candidate(id: i64, region: &str) -> Candidate {
    Candidate {
        id,
        region: region.to_owned(),
        takes: true,
        answers: true,
        free: None,
        latency: Duration::from_millis(20),
        failures: 0.0,
    }
}

fn chunk(number: u64) -> ChunkId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ChunkId(bytes)
}

/// How often each of them is the first of so many chunks.
fn firsts(candidates: &[Candidate], chunks: u64) -> Vec<u64> {
    let first = |number| for_new(candidates, chunk(number), 1)[0];
    let firsts: Vec<i64> = (0..chunks).map(first).collect();
    let count = |one: &Candidate| firsts.iter().filter(|id| **id == one.id).count() as u64;
    candidates.iter().map(count).collect()
}

#[test]
fn copies_are_in_as_many_regions_as_there_are() {
    let all = [
        candidate(1, "eu"),
        candidate(2, "eu"),
        candidate(3, "us"),
        candidate(4, "eu"),
    ];
    for number in 0..200 {
        let order = for_new(&all, chunk(number), 1);
        assert_eq!(order.len(), 4);
        assert!(order[..2].contains(&3), "{order:?}");
    }
}

#[test]
fn chunks_are_shared_by_weight() {
    let mut all = [candidate(1, "a"), candidate(2, "b"), candidate(3, "c")];
    for count in firsts(&all, 3000) {
        assert!((900..1100).contains(&count), "{count}");
    }
    // Half full, ten times slower.
    all[1].free = Some((50, 100));
    all[2].latency = Duration::from_millis(200);
    let counts = firsts(&all, 3000);
    let expected = [1.0 / 1.6, 0.5 / 1.6, 0.1 / 1.6].map(|share| share * 3000.0);
    for (count, expected) in counts.iter().zip(expected) {
        assert!((*count as f64 - expected).abs() < 100.0, "{counts:?}");
    }
}

#[test]
fn who_cannot_take_it_is_not_asked() {
    let mut all = [
        candidate(1, "a"),
        candidate(2, "b"),
        candidate(3, "c"),
        candidate(4, "d"),
    ];
    all[0].takes = false;
    all[1].answers = false;
    all[2].free = Some((9, 100));
    assert_eq!(for_new(&all, chunk(0), 10), [4]);
    assert!(for_new(&all[..3], chunk(0), 10).is_empty());
}

#[test]
fn the_best_copy_is_read_first_and_none_is_given_up() {
    let mut all = [candidate(1, "eu"), candidate(2, "us"), candidate(3, "us")];
    all[1].latency = Duration::from_millis(30);
    assert_eq!(for_reading(&all, &[1, 2], None), [1, 2]);
    assert_eq!(for_reading(&all, &[1, 2], Some("us")), [2, 1]);
    all[1].failures = 0.5;
    assert_eq!(for_reading(&all, &[1, 2], Some("us")), [1, 2]);
    all[0].answers = false;
    assert_eq!(for_reading(&all, &[1, 2], None), [2, 1]);
    assert_eq!(for_reading(&all, &[9], None), Vec::<i64>::new());
}

#[test]
fn a_new_copy_goes_where_none_is() {
    let all = [
        candidate(1, "eu"),
        candidate(2, "eu"),
        candidate(3, "us"),
        candidate(4, "asia"),
    ];
    for number in 0..100 {
        let order = for_repair(&all, chunk(number), 1, &[1, 3]);
        assert_eq!(order, [4, 2]);
    }
}

proptest! {
    #[test]
    fn an_order_has_everybody_once(
        regions in prop::collection::vec(0u8..4, 0..12),
        latencies in prop::collection::vec(0u64..5_000, 12),
        failures in prop::collection::vec(0.0f64..1.0, 12),
        number: u64,
    ) {
        let all: Vec<Candidate> = regions
            .iter()
            .enumerate()
            .map(|(at, region)| Candidate {
                latency: Duration::from_millis(latencies[at]),
                failures: failures[at],
                ..candidate(at as i64, &region.to_string())
            })
            .collect();
        let mut order = for_new(&all, chunk(number), 1);
        let different: BTreeSet<u8> = regions.iter().copied().collect();
        let first: BTreeSet<u8> = order[..different.len()].iter().map(|id| regions[*id as usize]).collect();
        prop_assert_eq!(first, different);
        order.sort_unstable();
        prop_assert_eq!(order, (0..regions.len() as i64).collect::<Vec<_>>());
    }
}
