//! Wrong passwords, counted by where they come from and by whose they should be: the answer to the
//! next one takes longer. A right password is never kept waiting.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{lobby, process::lock};

/// So many are answered at once.
const FREE: u32 = 3;
/// The first pause; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After so long without another, all is forgotten.
const MEMORY: Duration = Duration::from_secs(60);
/// Most addresses and users that are remembered. Beyond it the counts begin anew.
const ENTRIES_MAX: usize = 10_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    Address(IpAddr),
    /// A user's name, hashed: anybody can make up long ones.
    User(u64),
}

/// All that are remembered.
#[derive(Default)]
pub struct WrongPasswords {
    hasher: RandomState,
    counts: Mutex<HashMap<Of, (u32, Instant)>>,
}

impl WrongPasswords {
    /// Counts one. Returns how long its answer shall take.
    pub fn count(&self, address: IpAddr, user: &str) -> Duration {
        self.count_at(address, user, Instant::now())
    }

    fn count_at(&self, address: IpAddr, user: &str, now: Instant) -> Duration {
        let address = Of::Address(lobby::network(address));
        let user = Of::User(self.hasher.hash_one(user));
        let mut counts = lock(&self.counts);
        if counts.len() + 2 > ENTRIES_MAX {
            counts.retain(|_, (_, last)| now - *last < MEMORY);
            if counts.len() + 2 > ENTRIES_MAX {
                counts.clear();
            }
        }
        let mut most = 0;
        for of in [address, user] {
            let (count, last) = counts.entry(of).or_insert((0, now));
            if now - *last >= MEMORY {
                *count = 0;
            }
            *count = count.saturating_add(1);
            *last = now;
            most = most.max(*count);
        }
        pause(most)
    }
}

fn pause(count: u32) -> Duration {
    match count.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doubled) => PAUSE
            .saturating_mul(1u32.checked_shl(doubled).unwrap_or(u32::MAX))
            .min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let millis: Vec<u128> = (1..=11).map(|count| pause(count).as_millis()).collect();
        assert_eq!(
            millis,
            [0, 0, 0, 100, 200, 400, 800, 1600, 2000, 2000, 2000]
        );
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn addresses_and_users_are_counted_apart_and_forgotten() {
        let wrong = WrongPasswords::default();
        let now = Instant::now();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        for last in 1..=3 {
            assert_eq!(wrong.count_at(address(last), "app", now), Duration::ZERO);
        }
        assert_eq!(wrong.count_at(address(4), "app", now), PAUSE);
        for number in 1..=2 {
            let user = format!("user{number}");
            assert_eq!(wrong.count_at(address(1), &user, now), Duration::ZERO);
        }
        assert_eq!(wrong.count_at(address(1), "user3", now), PAUSE);
        let later = now + MEMORY;
        assert_eq!(wrong.count_at(address(1), "app", later), Duration::ZERO);
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let wrong = WrongPasswords::default();
        let now = Instant::now();
        for number in 0..ENTRIES_MAX as u32 {
            wrong.count_at(IpAddr::from(number.to_be_bytes()), &number.to_string(), now);
        }
        assert!(lock(&wrong.counts).len() <= ENTRIES_MAX);
    }
}
