//! All providers of a process: a chunk is put at several of them, and read from the best that has it.
//!
//! What is told of a provider's health is what its calls have shown of late. A call that is dropped
//! because others were faster may have left a copy: it is told as doubtful, so that it can be collected.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    breaker::Breaker,
    catalog::{ProviderRow, Snapshot, State},
    chunk::{Chunk, ChunkId, Corrupt},
    placement::{self, Candidate},
    provider::{Place, Provider, ProviderError},
};

/// A put that takes longer is not waited for alone: another provider is asked, too.
const SLOW_PUT: Duration = Duration::from_secs(2);
/// The same for reading, where nothing is known of the provider yet, and at least.
const SLOW_GET: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(20));
/// How long a write waits for enough providers: clients give up within 2 to 5 s, and ignore Retry-After.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for providers that answer again.
const LOOK: Duration = Duration::from_millis(200);
/// How much the newest call counts for what is known of a provider.
const NEWEST: f64 = 0.1;

/// Not enough providers took it, or none gave it.
#[derive(Debug, Error)]
pub enum FleetError {
    /// A write, after waiting.
    #[error("{there} of {wanted} providers have taken a chunk; the last said: {last}")]
    TooFew {
        /// Copies that there are.
        there: usize,
        /// Copies that are promised.
        wanted: usize,
        /// What the last one said that did not take it.
        last: String,
    },
    /// A read.
    #[error("no provider gave chunk {chunk}; the last said: {last}")]
    Lost {
        /// Which.
        chunk: ChunkId,
        /// What the last one said.
        last: String,
    },
}

/// Where a chunk was put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    /// Providers that have acknowledged it.
    pub sure: Vec<i64>,
    /// Providers that may have it, or a part of it.
    pub doubtful: Vec<i64>,
}

/// A copy that is not what it should be: what is to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// At which provider.
    pub provider: i64,
}

/// The providers that a snapshot of the catalog names.
#[derive(Clone, Default)]
pub struct Fleet {
    members: Vec<Arc<Member>>,
}

struct Member {
    row: ProviderRow,
    provider: Provider,
    health: Mutex<Health>,
}

/// What calls of late have shown.
#[derive(Debug, Clone)]
struct Health {
    breaker: Breaker,
    latency: f64,
    deviation: f64,
    failures: f64,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            breaker: Breaker::default(),
            latency: SLOW_GET.0.as_secs_f64(),
            deviation: 0.0,
            failures: 0.0,
        }
    }
}

impl Fleet {
    /// Those of a snapshot. Who was there before keeps its health.
    pub fn of(snapshot: &Snapshot, before: &Fleet) -> Fleet {
        let mut members = Vec::new();
        for row in &snapshot.providers {
            let known = before.members.iter().find(|one| one.row.id == row.id);
            if let Some(known) = known.filter(|one| one.row == *row) {
                members.push(known.clone());
                continue;
            }
            let place: Result<Place, _> = serde_json::from_str(&row.place);
            let place = place.map_err(|error| ProviderError::Place(error.to_string()));
            match place.and_then(|place| Provider::open(&place)) {
                Ok(provider) => members.push(Arc::new(Member {
                    row: row.clone(),
                    provider,
                    health: Mutex::default(),
                })),
                Err(error) => tracing::error!(provider = row.name, %error, "cannot be used"),
            }
        }
        Fleet { members }
    }

    /// Puts a chunk at `wanted` providers.
    pub async fn put(
        &self,
        chunk: ChunkId,
        sealed: &Bytes,
        wanted: usize,
    ) -> Result<Copies, FleetError> {
        let deadline = Instant::now() + PATIENCE;
        let mut copies = Copies::default();
        let mut last = "there is no other provider".to_owned();
        let mut running = FuturesUnordered::new();
        let mut slow = 0;
        loop {
            let needed = (wanted + slow).saturating_sub(copies.sure.len() + running.len());
            for member in self.for_put(chunk, sealed.len(), &copies, needed) {
                copies.doubtful.push(member.row.id);
                let sealed = sealed.clone();
                running.push(async move {
                    let done = member.call(member.provider.put(chunk, sealed)).await;
                    (member.row.id, done)
                });
            }
            let pause = if running.is_empty() { LOOK } else { SLOW_PUT };
            tokio::select! {
                Some((id, done)) = running.next() => match done {
                    Ok(()) => {
                        copies.doubtful.retain(|one| *one != id);
                        copies.sure.push(id);
                    }
                    Err(error) => last = error.to_string(),
                },
                () = tokio::time::sleep(pause) => slow += usize::from(!running.is_empty()),
            }
            if copies.sure.len() >= wanted {
                return Ok(copies);
            }
            if Instant::now() >= deadline {
                let there = copies.sure.len();
                return Err(FleetError::TooFew {
                    there,
                    wanted,
                    last,
                });
            }
        }
    }

    /// The next ones that a chunk is put at.
    fn for_put(
        &self,
        chunk: ChunkId,
        bytes: usize,
        copies: &Copies,
        count: usize,
    ) -> Vec<Arc<Member>> {
        let tried = |id: &i64| copies.sure.contains(id) || copies.doubtful.contains(id);
        let now = Instant::now();
        let candidates = self.candidates(now);
        let order = placement::for_new(&candidates, chunk, bytes as u64);
        let fresh = order.into_iter().filter(|id| !tried(id));
        let members = fresh.filter_map(|id| self.member(id)).cloned();
        members
            .filter(|member| member.health().breaker.enter(now))
            .take(count)
            .collect()
    }

    /// The plaintext of some segments of a chunk, which is what was written: of several copies the first
    /// that comes and opens. `bad` are those that do not.
    pub async fn get(
        &self,
        chunk: &Chunk,
        segments: Range<u32>,
        replicas: &[i64],
        near: Option<&str>,
        bad: &mut Vec<Bad>,
    ) -> Result<Bytes, FleetError> {
        let candidates = self.candidates(Instant::now());
        let order = placement::for_reading(&candidates, replicas, near);
        let mut waiting = order.into_iter().filter_map(|id| self.member(id));
        let mut running = FuturesUnordered::new();
        let mut last = "no provider has it".to_owned();
        let range = chunk.sealed_range(segments.clone());
        let mut patience = Duration::ZERO;
        let mut all_asked = false;
        loop {
            if running.is_empty() || patience.is_zero() {
                match waiting.next() {
                    Some(member) => {
                        patience = member.health().slow_get();
                        let range = range.clone();
                        running.push(async move {
                            let call = member.provider.get(chunk.id, range);
                            (member.row.id, member.call(call).await)
                        });
                    }
                    None if running.is_empty() => {
                        let chunk = chunk.id;
                        return Err(FleetError::Lost { chunk, last });
                    }
                    None => all_asked = true,
                }
            }
            tokio::select! {
                Some((provider, done)) = running.next() => {
                    let opened = done.map(|sealed| chunk.open_segments(segments.clone(), &sealed));
                    let chunk = chunk.id;
                    match opened {
                        Ok(Ok(plaintext)) => return Ok(plaintext),
                        Ok(Err(corrupt)) => {
                            last = Corrupt::to_string(&corrupt);
                            bad.push(Bad { chunk, provider });
                        }
                        Err(ProviderError::Missing) => {
                            last = ProviderError::Missing.to_string();
                            bad.push(Bad { chunk, provider });
                        }
                        Err(error) => last = error.to_string(),
                    }
                }
                () = tokio::time::sleep(patience), if !all_asked => patience = Duration::ZERO,
            }
        }
    }

    /// Deletes a copy.
    pub async fn delete(&self, chunk: ChunkId, provider: i64) -> Result<(), ProviderError> {
        match self.member(provider) {
            Some(member) => member.call(member.provider.delete(chunk)).await,
            None => Err(ProviderError::Failed(
                "there is no such provider".to_owned(),
            )),
        }
    }

    fn member(&self, id: i64) -> Option<&Arc<Member>> {
        self.members.iter().find(|one| one.row.id == id)
    }

    fn candidates(&self, now: Instant) -> Vec<Candidate> {
        let candidate = |member: &Arc<Member>| {
            let health = member.health();
            Candidate {
                id: member.row.id,
                region: member.row.region.clone(),
                takes: member.row.state == State::Active,
                answers: health.breaker.admits(now),
                free: None,
                latency: Duration::from_secs_f64(health.latency),
                failures: health.failures,
            }
        };
        self.members.iter().map(candidate).collect()
    }

    /// What is shown of providers: by number, the breaker's state, latency and share of failures.
    pub fn health(&self) -> HashMap<i64, (&'static str, Duration, f64)> {
        let now = Instant::now();
        let shown = |member: &Arc<Member>| {
            let health = member.health();
            let latency = Duration::from_secs_f64(health.latency);
            (
                member.row.id,
                (health.breaker.name(now), latency, health.failures),
            )
        };
        self.members.iter().map(shown).collect()
    }
}

impl Member {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // Nothing panics while it is held.
        self.health
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes a call and learns from it.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        let started = Instant::now();
        let done = call.await;
        let failed = done.as_ref().err().is_some_and(ProviderError::counts);
        self.health().learn(started.elapsed(), failed);
        done
    }
}

impl Health {
    fn learn(&mut self, took: Duration, failed: bool) {
        let took = took.as_secs_f64();
        self.failures += NEWEST * (f64::from(u8::from(failed)) - self.failures);
        match failed {
            true => self.breaker.failed(Instant::now()),
            false => {
                self.breaker.succeeded();
                self.deviation += NEWEST * ((took - self.latency).abs() - self.deviation);
                self.latency += NEWEST * (took - self.latency);
            }
        }
    }

    /// About where the slowest twentieth of calls begins.
    fn slow_get(&self) -> Duration {
        Duration::from_secs_f64(self.latency + 2.0 * self.deviation).max(SLOW_GET.1)
    }
}

#[cfg(test)]
mod tests;
