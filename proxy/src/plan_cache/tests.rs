use std::sync::Arc;

use automator67_planner::plan::{Plan, Planned, SessionEffects};

use super::{CACHE_BYTES_MAX, CACHED_TEXT_BYTES_MAX, PlanCache, Surroundings, bytes_of};

fn plan() -> Arc<Planned> {
    Arc::new(Planned {
        plan: Plan::Empty,
        span: (0, 0),
        kind: "empty",
        reusable: true,
        parameters: 0,
        session: SessionEffects::default(),
        names: 0,
        redefines: Vec::new(),
        lookup: None,
    })
}

fn surroundings() -> Surroundings {
    Surroundings {
        search_path: Arc::default(),
        parameter_types: Arc::from([]),
    }
}

fn text(number: usize, length: usize) -> String {
    let mut text = format!("{number} ");
    text.push_str(&"x".repeat(length - text.len()));
    text
}

#[test]
fn long_texts_are_not_kept() {
    let mut cache = PlanCache::new(10);
    let long = text(1, CACHED_TEXT_BYTES_MAX + 1);
    cache.put(&long, surroundings(), plan());
    assert!(cache.get(0, &long, &surroundings()).is_none());
}

#[test]
fn bytes_are_bounded_as_entries_are() {
    let mut cache = PlanCache::new(1_000_000);
    let count = 3 * CACHE_BYTES_MAX / bytes_of(&text(0, CACHED_TEXT_BYTES_MAX));
    for number in 0..count {
        let long = text(number, CACHED_TEXT_BYTES_MAX);
        cache.put(&long, surroundings(), plan());
        let all = cache.young.keys().chain(cache.old.keys());
        let bytes: usize = all.map(|text| bytes_of(text)).sum();
        assert!(bytes <= CACHE_BYTES_MAX, "{bytes}");
    }
}

/// What is used stays, however many others come.
#[test]
fn a_used_plan_stays() {
    let mut cache = PlanCache::new(1_000_000);
    cache.put("used", surroundings(), plan());
    let count = 3 * CACHE_BYTES_MAX / bytes_of(&text(0, CACHED_TEXT_BYTES_MAX));
    for number in 0..count {
        let long = text(number, CACHED_TEXT_BYTES_MAX);
        cache.put(&long, surroundings(), plan());
        assert!(cache.get(0, "used", &surroundings()).is_some());
    }
}
