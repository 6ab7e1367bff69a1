//! Clients that are not logged in yet: how many there may be, and who makes room for a new one.
//!
//! A connection costs whoever opens it nothing, so the one that has said nothing for longest makes
//! room, as in the kernel's own queue of half-open connections. Behind one address there may be many
//! users, and all of them may come at once: those that talk are let be as long as others are silent,
//! and nobody counts as silent before [`SILENCE`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{log_budget::LogBudget, process::lock};

/// A client's first packet may be on its way, or wait for its thread, for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// How far a client has come. Those that come first here make room first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Its password was wrong; it waits for that answer.
    Refused,
    /// It has not said who it is.
    Silent,
    /// It is logging in.
    Speaking,
}

const STAGES: [Stage; 3] = [Stage::Refused, Stage::Silent, Stage::Speaking];

/// By stage, then by age.
type Key = (Stage, u64);

/// Everybody who is not logged in.
pub struct Lobby {
    guests_max: usize,
    guests_per_address_max: usize,
    guests: Mutex<Guests>,
    /// For refused logins.
    pub refused: LogBudget,
    /// For those that had to make room.
    pub made_room: LogBudget,
}

#[derive(Default)]
struct Guests {
    next: u64,
    all: BTreeMap<Key, Entry>,
    /// Those that are silent or refused.
    by_address: HashMap<IpAddr, BTreeSet<Key>>,
}

struct Entry {
    address: IpAddr,
    since: Instant,
    shown_out: Arc<Notify>,
}

/// A client's place in the lobby; free again when dropped.
pub struct Guest {
    lobby: Arc<Lobby>,
    number: u64,
    stage: AtomicU8,
    shown_out: Arc<Notify>,
}

impl Lobby {
    /// Nobody in it.
    pub fn new(guests_max: usize, guests_per_address_max: usize) -> Arc<Self> {
        Arc::new(Lobby {
            guests_max,
            guests_per_address_max,
            guests: Mutex::default(),
            refused: LogBudget::default(),
            made_room: LogBudget::default(),
        })
    }

    /// Lets a client in; another one may have to leave for it.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Guest {
        self.enter_at(address, Instant::now())
    }

    fn enter_at(self: &Arc<Self>, address: IpAddr, now: Instant) -> Guest {
        let address = network(address);
        let shown_out = Arc::new(Notify::new());
        let mut guests = lock(&self.guests);
        guests.thin_out(address, self.guests_per_address_max - 1, now);
        if guests.all.len() >= self.guests_max
            && let Some(first) = guests.all.keys().next().copied()
        {
            guests.show_out(first);
        }
        let number = guests.next;
        guests.next += 1;
        let entry = Entry {
            address,
            since: now,
            shown_out: shown_out.clone(),
        };
        guests.insert((Stage::Silent, number), entry);
        drop(guests);
        Guest {
            lobby: self.clone(),
            number,
            stage: AtomicU8::new(Stage::Silent as u8),
            shown_out,
        }
    }

    /// Shows those out that came in a crowd and stay silent.
    pub fn sweep(&self) {
        let mut guests = lock(&self.guests);
        let addresses: Vec<IpAddr> = guests.by_address.keys().copied().collect();
        for address in addresses {
            guests.thin_out(address, self.guests_per_address_max, Instant::now());
        }
    }
}

impl Guests {
    /// Leaves an address so many that are silent or refused, and those that have just come.
    fn thin_out(&mut self, address: IpAddr, left: usize, now: Instant) {
        while let Some(same) = self.by_address.get(&address).filter(|it| it.len() > left)
            && let Some(first) = same.first().copied()
        {
            let fresh = |entry: &Entry| now - entry.since < SILENCE;
            if first.0 == Stage::Silent && self.all.get(&first).is_some_and(fresh) {
                return;
            }
            self.show_out(first);
        }
    }

    fn show_out(&mut self, key: Key) {
        if let Some(entry) = self.remove(key) {
            entry.shown_out.notify_one();
        }
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        if key.0 < Stage::Speaking {
            let same = self.by_address.entry(entry.address).or_default();
            same.insert(key);
        }
        self.all.insert(key, entry);
    }

    fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.all.remove(&key)?;
        if let Some(same) = self.by_address.get_mut(&entry.address) {
            same.remove(&key);
            if same.is_empty() {
                self.by_address.remove(&entry.address);
            }
        }
        Some(entry)
    }
}

impl Guest {
    /// Notes how far it has come.
    pub fn reaches(&self, stage: Stage) {
        let old = self.key();
        let mut guests = lock(&self.lobby.guests);
        // Whoever was shown out stays out.
        if let Some(entry) = guests.remove(old) {
            guests.insert((stage, self.number), entry);
        }
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// Ends when it must make room for another.
    pub async fn shown_out(&self) {
        self.shown_out.notified().await;
    }

    fn key(&self) -> Key {
        let stage = usize::from(self.stage.load(Ordering::Relaxed));
        (STAGES[stage], self.number)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let key = self.key();
        lock(&self.lobby.guests).remove(key);
    }
}

/// What one user can have as many addresses of as they like: of IPv6, half of the address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_out(guest: &Guest) -> bool {
        let mut out = std::pin::pin!(guest.shown_out());
        let mut context = Context::from_waker(Waker::noop());
        out.as_mut().poll(&mut context) == Poll::Ready(())
    }

    #[test]
    fn the_oldest_silent_one_of_the_address_makes_room() {
        let lobby = Lobby::new(10, 3);
        let [here, there] = [[127, 0, 0, 1], [10, 0, 0, 1]].map(IpAddr::from);
        let start = Instant::now();
        let later = start + SILENCE;
        let other = lobby.enter_at(there, start);
        let talks = lobby.enter_at(here, start);
        talks.reaches(Stage::Speaking);
        let first = lobby.enter_at(here, start);
        let second = lobby.enter_at(here, start);
        let third = lobby.enter_at(here, start);
        let fourth = lobby.enter_at(here, start);
        assert!(!is_out(&first), "it may have spoken already");
        let fifth = lobby.enter_at(here, later);
        assert!(is_out(&first) && is_out(&second) && !is_out(&third));
        fourth.reaches(Stage::Refused);
        let sixth = lobby.enter_at(here, later);
        assert!(is_out(&fourth));
        for guest in [&other, &talks, &third, &fifth, &sixth] {
            assert!(!is_out(guest));
        }
    }

    #[test]
    fn all_addresses_have_a_limit_together() {
        let lobby = Lobby::new(2, 2);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let first = lobby.enter(address(1));
        drop(lobby.enter(address(2)));
        let second = lobby.enter(address(3));
        assert!(!is_out(&first));
        let third = lobby.enter(address(4));
        assert!(is_out(&first) && !is_out(&second) && !is_out(&third));
        drop((first, second, third));
        let guests = lock(&lobby.guests);
        assert!(guests.all.is_empty() && guests.by_address.is_empty());
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let address = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(address("2001:db8:1:2::5"), address("2001:db8:1:2:ffff::"));
        assert_ne!(address("2001:db8:1:2::5"), address("2001:db8:1:3::5"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }
}
