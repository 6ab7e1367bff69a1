//! Which providers a chunk goes to, and which of those that have it is asked for it. Pure: what is known
//! of providers goes in, an order comes out.

use std::{cmp::Ordering, collections::BTreeSet, time::Duration};

use crate::chunk::ChunkId;

/// A provider with less free space than this share of its quota is as good as this share.
const FREE_SHARE_MIN: f64 = 0.05;
/// A slow provider counts at most this much less than the fastest.
const SLOWNESS_MAX: f64 = 10.0;
/// How much a share of failed calls counts.
const FAILURE_WEIGHT: f64 = 20.0;

/// What is known of a provider now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its number.
    pub id: i64,
    /// Two copies in one region are lost together.
    pub region: String,
    /// It takes new chunks.
    pub takes: bool,
    /// Its breaker is closed, or tries again.
    pub answers: bool,
    /// Bytes that it still takes, of how many. `None`: as many as there are.
    pub free: Option<(u64, u64)>,
    /// How long it takes to answer, of late.
    pub latency: Duration,
    /// Which share of calls failed, of late: 0 to 1.
    pub failures: f64,
}

/// Providers for a new chunk of so many bytes, best first: the first ones are in as many regions as there
/// are. Who comes later takes it when one of those does not.
///
/// Which of several good ones is best differs from chunk to chunk, by their weights (weighted rendezvous
/// hashing), so that they fill alike.
pub fn for_new(candidates: &[Candidate], chunk: ChunkId, bytes: u64) -> Vec<i64> {
    let fits = |one: &&Candidate| one.free.is_none_or(|(free, _)| free >= bytes);
    let usable = candidates
        .iter()
        .filter(|one| one.takes && one.answers)
        .filter(fits);
    let fastest = fastest(candidates);
    let mut scored: Vec<(f64, &Candidate)> = usable
        .map(|one| (draw(chunk, one.id) / weight(one, fastest), one))
        .collect();
    scored.sort_by(by_score);
    spread(scored.into_iter().map(|(_, one)| one).collect())
}

/// Providers that have a chunk, best first. One that does not answer is asked last, not never.
pub fn for_reading(candidates: &[Candidate], replicas: &[i64], near: Option<&str>) -> Vec<i64> {
    let fastest = fastest(candidates);
    let mut known: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|one| replicas.contains(&one.id))
        .map(|one| {
            let far = near.is_some_and(|region| one.region != region);
            let slowness = slowness(one, fastest) * (1.0 + FAILURE_WEIGHT * one.failures);
            (slowness * if far { 2.0 } else { 1.0 }, one)
        })
        .collect();
    known.sort_by(|a, b| b.1.answers.cmp(&a.1.answers).then(by_score(a, b)));
    known.into_iter().map(|(_, one)| one.id).collect()
}

/// The providers of a chunk that one more copy of it would be good at, best first: those in other regions
/// than its copies are in come before others.
pub fn for_repair(
    candidates: &[Candidate],
    chunk: ChunkId,
    bytes: u64,
    replicas: &[i64],
) -> Vec<i64> {
    let mut regions = BTreeSet::new();
    for one in candidates.iter().filter(|one| replicas.contains(&one.id)) {
        regions.insert(one.region.as_str());
    }
    let region = |id: &i64| {
        let one = candidates.iter().find(|one| one.id == *id);
        one.map_or("", |one| one.region.as_str())
    };
    let mut all = for_new(candidates, chunk, bytes);
    all.retain(|id| !replicas.contains(id));
    all.sort_by_key(|id| regions.contains(region(id)));
    all
}

/// The best of each region before the second of any.
fn spread(mut sorted: Vec<&Candidate>) -> Vec<i64> {
    let mut order = Vec::with_capacity(sorted.len());
    while !sorted.is_empty() {
        let mut regions = BTreeSet::new();
        sorted.retain(|one| {
            let first = regions.insert(one.region.clone());
            if first {
                order.push(one.id);
            }
            !first
        });
    }
    order
}

fn by_score(a: &(f64, &Candidate), b: &(f64, &Candidate)) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id))
}

fn fastest(candidates: &[Candidate]) -> Duration {
    let latencies = candidates.iter().map(|one| one.latency);
    latencies.min().unwrap_or_default()
}

/// How many times slower than the fastest.
fn slowness(one: &Candidate, fastest: Duration) -> f64 {
    let fastest = fastest.as_secs_f64().max(0.001);
    (one.latency.as_secs_f64() / fastest).clamp(1.0, SLOWNESS_MAX)
}

fn weight(one: &Candidate, fastest: Duration) -> f64 {
    let share = one
        .free
        .map_or(1.0, |(free, of)| free as f64 / of.max(1) as f64);
    let failing = 1.0 + FAILURE_WEIGHT * one.failures;
    share.clamp(FREE_SHARE_MIN, 1.0) / failing / slowness(one, fastest)
}

/// A number that follows the exponential distribution, of this chunk and provider: divided by weights, the
/// least is that of a provider as often as its weight says.
fn draw(chunk: ChunkId, provider: i64) -> f64 {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&chunk.0);
    bytes[16..].copy_from_slice(&provider.to_be_bytes());
    let hash = blake3::hash(&bytes);
    let (first, _) = hash
        .as_bytes()
        .split_first_chunk()
        .expect("a hash has 32 bytes");
    // 53 bits, as many as an f64 has; never 0.
    let uniform = ((u64::from_be_bytes(*first) >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    -uniform.ln()
}

#[cfg(test)]
mod tests;
