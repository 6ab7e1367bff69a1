//! Which commits over several shards a snapshot has seen. A proxy numbers its commits in slots: one
//! commit at a time uses a slot, and the next one begins when the last has ended on every shard.
//! Each shard that takes part notes the number in its own part, and beside it, for every shard, the
//! last number of the slot that wrote there. So a snapshot of one shard is behind that of another
//! exactly if the other has a note of it that it has not itself.
//!
//! What a transaction has only read on another shard leaves no note there. So it notes, beside its
//! numbers, the *moment* of that shard's snapshot that it has read in, see V4 of the migrations of
//! shards: a snapshot of an earlier moment is behind, too.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    fmt::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use automator67_planner::catalog::ShardId;

use crate::{message, process::lock, server::call::Call};

/// A transaction's number is that of its slot in the low bits, and above them how often the slot
/// was used.
const SLOT_BITS: u32 = 20;
/// After that time, notes say nothing new. Shards keep them for twice as long.
const STALE: Duration = Duration::from_secs(12 * 3600);
/// When notes of a slot may be removed, everywhere at once, if no shard has a newer one.
pub const REMOVABLE: &str = "interval '1 day'";

/// What a snapshot has seen, and, under the number of no proxy, its own moment; for [`Seen::note`].
pub const SEEN: &str = "SELECT proxy, slot, last, moments FROM automator67.commit_register \
    UNION ALL SELECT -1, -1, '{}', ARRAY[automator67.moment()]";
const NO_PROXY: i64 = -1;
/// The moment of a statement's snapshot.
pub const MOMENT: &str = "SELECT automator67.moment()";

/// By shard from 0, how many transactions its snapshot has seen end; 0 where that is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moments(Vec<u64>);

impl Moments {
    /// Of one shard.
    pub fn of(&self, shard: ShardId) -> u64 {
        self.0.get(shard as usize).copied().unwrap_or(0)
    }

    /// Nothing is known of any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a later one of a shard in.
    pub fn reach(&mut self, shard: ShardId, moment: u64) {
        let index = shard as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] = self.0[index].max(moment);
    }

    fn reach_all(&mut self, others: &Moments) {
        for (shard, moment) in (0..).zip(&others.0) {
            self.reach(shard, *moment);
        }
    }
}

/// What every shard of a commit notes.
#[derive(Debug, Clone)]
pub struct Note {
    proxy: u32,
    number: u64,
    last: String,
    moments: String,
}

impl Note {
    /// As the last arguments of a call.
    pub fn add_to(&self, call: Call) -> Call {
        call.with(self.proxy)
            .with(slot_of(self.number))
            .with(self.number)
            .with(&self.last)
            .with(&self.moments)
    }
}

/// A proxy's slots.
#[derive(Debug, Default)]
pub struct Slots {
    pool: Arc<Mutex<Pool>>,
}

/// The lowest free one is used first: shards keep a row of each.
#[derive(Debug, Default)]
struct Pool {
    free: BinaryHeap<Reverse<Slot>>,
    made: u64,
    /// Numbers of commits that a session is at work on.
    under_way: HashSet<u64>,
}

#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    index: u64,
    uses: u64,
    /// By shard, the number of the last commit that wrote there.
    last: Vec<u64>,
    /// The latest that its commits have read in: a shard keeps the slot's last note only.
    moments: Moments,
    used_at: Option<Instant>,
}

/// A slot that nobody else uses. A transaction whose snapshots stay takes it before they are
/// opened: in them, the slot's rows are as its last commit has left them.
#[derive(Debug)]
pub struct Turn {
    slot: Slot,
    pool: Arc<Mutex<Pool>>,
    under_way: Option<u64>,
}

impl Slots {
    /// Takes the lowest one that is free.
    pub fn take(&self) -> Turn {
        let mut pool = lock(&self.pool);
        let slot = match pool.free.pop() {
            Some(Reverse(slot)) => slot,
            None => {
                pool.made += 1;
                Slot {
                    index: pool.made - 1,
                    ..Slot::default()
                }
            }
        };
        Turn {
            slot,
            pool: self.pool.clone(),
            under_way: None,
        }
    }

    /// A session is at work on this commit.
    pub fn is_under_way(&self, number: u64) -> bool {
        lock(&self.pool).under_way.contains(&number)
    }
}

impl Turn {
    /// A new number for a commit. The slot is not used again before that is told to have ended; if
    /// it never is, a part may still be prepared somewhere. `None`: there are no more slots.
    pub fn begin(&mut self) -> Option<u64> {
        if self.slot.index >> SLOT_BITS != 0 {
            return None;
        }
        self.slot.uses += 1;
        let number = self.slot.uses << SLOT_BITS | self.slot.index;
        self.under_way = Some(number);
        lock(&self.pool).under_way.insert(number);
        Some(number)
    }

    /// What the shards of the commit `number` of this proxy note, which has read in these moments of
    /// others.
    pub fn note(&mut self, proxy: u32, number: u64, shards: &[ShardId], read: &Moments) -> Note {
        if self.slot.used_at.is_some_and(|it| it.elapsed() > STALE) {
            self.slot.last.clear();
            self.slot.moments = Moments::default();
        }
        self.slot.moments.reach_all(read);
        let before = &self.slot.last;
        let highest = shards.iter().max().map_or(0, |shard| *shard as usize + 1);
        let last = (0..before.len().max(highest)).map(|shard| {
            let takes_part = shards.contains(&(shard as ShardId));
            let last = before.get(shard).copied().unwrap_or(0);
            if takes_part { number } else { last }
        });
        Note {
            proxy,
            number,
            last: array(last),
            moments: array(self.slot.moments.0.iter().copied()),
        }
    }

    /// The commit `number` is visible on all of its shards.
    pub fn committed(mut self, number: u64, shards: &[ShardId]) {
        self.end();
        let slot = &mut self.slot;
        for shard in shards {
            let index = *shard as usize;
            slot.last.resize(slot.last.len().max(index + 1), 0);
            slot.last[index] = number;
        }
        slot.used_at = Some(Instant::now());
    }

    /// It has no part on any shard any more, and never will.
    pub fn rolled_back(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(number) = self.under_way.take() {
            lock(&self.pool).under_way.remove(&number);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut pool = lock(&self.pool);
        match self.under_way {
            Some(number) => {
                pool.under_way.remove(&number);
            }
            None => pool.free.push(Reverse(std::mem::take(&mut self.slot))),
        }
    }
}

/// The slot of a commit.
pub fn slot_of(number: u64) -> u64 {
    number & ((1 << SLOT_BITS) - 1)
}

/// An array of Postgres that begins with shard 0.
fn array(values: impl Iterator<Item = u64>) -> String {
    let mut text = String::from("{");
    for (index, value) in values.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{value}");
    }
    text.push('}');
    text
}

fn read_array(text: &[u8]) -> Option<Vec<u64>> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix('{')?.strip_suffix('}')?;
    // `{}` is the note of a slot whose first commit was ended by another proxy.
    let values = text.split(',').filter(|_| !text.is_empty());
    values.map(|value| value.parse().ok()).collect()
}

/// What one shard's snapshot has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// By proxy and slot, and then by shard, the last commit.
    last: HashMap<(i64, i64), Vec<u64>>,
    /// The latest moments of other shards that what it has seen has read in.
    read: Moments,
    /// Its own.
    moment: u64,
}

impl Seen {
    /// Takes a DataRow of [`SEEN`]; false when it is none.
    pub fn note(&mut self, body: &[u8]) -> bool {
        let read = || {
            let values = message::data_row(body)?;
            let [Some(proxy), Some(slot), Some(last), Some(moments)] = values[..] else {
                return None;
            };
            let slot = (number(proxy)?, number(slot)?);
            Some((slot, read_array(last)?, Moments(read_array(moments)?)))
        };
        match read() {
            Some(((NO_PROXY, _), _, own)) => self.moment = own.of(0),
            Some((slot, last, moments)) => {
                self.last.insert(slot, last);
                self.read.reach_all(&moments);
            }
            None => return false,
        }
        true
    }

    /// Of the snapshot itself.
    pub fn moment(&self) -> u64 {
        self.moment
    }

    fn last(&self, slot: &(i64, i64), shard: ShardId) -> u64 {
        let last = self
            .last
            .get(slot)
            .and_then(|last| last.get(shard as usize));
        last.copied().unwrap_or(0)
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The shards whose snapshots miss a commit that another one's has seen, or a moment that it has read
/// in. All of these snapshots were taken after the moments of `past` were over: a server that counts
/// from less, because it has crashed, has kept what was committed in them.
pub fn behind(all: &[(ShardId, Seen)], past: &Moments) -> Vec<ShardId> {
    let misses = |shard: ShardId, own: &Seen| {
        let reached = own.moment.max(past.of(shard));
        let mut others = all.iter().filter(|(other, _)| *other != shard);
        others.any(|(_, seen)| {
            let mut slots = seen.last.keys();
            seen.read.of(shard) > reached
                || slots.any(|slot| seen.last(slot, shard) > own.last(slot, shard))
        })
    };
    let behind = all.iter().filter(|(shard, own)| misses(*shard, own));
    behind.map(|(shard, _)| *shard).collect()
}

/// The moments that these snapshots have a note of: later snapshots come after them.
pub fn past(all: &[(ShardId, Seen)], past: &mut Moments) {
    for (_, seen) in all {
        past.reach_all(&seen.read);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(values: &[&str]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(value.as_bytes());
        }
        body
    }

    #[test]
    fn other_rows_are_no_notes() {
        for values in [
            &[][..],
            &["1", "2"],
            &["1", "2", "{1}"],
            &["1", "2", "{1}", "{}", "4"],
            &["x", "2", "{1}", "{}"],
            &["1", "", "{1}", "{}"],
            &["1", "2", "1", "{}"],
            &["1", "2", "{1,NULL}", "{}"],
            &["1", "2", "{-1}", "{}"],
            &["1", "2", "{1}", "{-1}"],
            &["1", "2", "{1}", ""],
        ] {
            assert!(!Seen::default().note(&row(values)), "{values:?}");
        }
        assert!(!Seen::default().note(b"\0\x01\xff"));
        let mut seen = Seen::default();
        assert!(seen.note(&row(&["1", "2", "{}", "{}"])));
        assert_eq!(seen.last(&(1, 2), 0), 0);
        assert!(seen.note(&row(&["4294967295", "3", "{0,5,7}", "{0,3}"])));
        assert!(seen.note(&row(&["1", "4", "{0,1}", "{0,2,9}"])));
        assert!(seen.note(&row(&["-1", "-1", "{}", "{77}"])));
        assert_eq!((seen.moment(), seen.last.len()), (77, 3));
        assert_eq!(seen.read, Moments(vec![0, 3, 9]));
        let slot = (4_294_967_295, 3);
        let last = [0, 1, 2, 3].map(|shard| seen.last(&slot, shard));
        assert_eq!(last, [0, 5, 7, 0]);
    }

    fn last(turn: &mut Turn, number: u64, shards: &[ShardId]) -> String {
        turn.note(1, number, shards, &Moments::default()).last
    }

    /// A note stands for those before it in its slot.
    #[test]
    fn moments_of_a_slot_are_kept() {
        let slots = Slots::default();
        let mut noted = Vec::new();
        for read in [&[0, 5][..], &[], &[0, 0, 7], &[0, 4]] {
            let mut turn = slots.take();
            let number = turn.begin().expect("a slot");
            let read = Moments(read.to_vec());
            noted.push(turn.note(1, number, &[3], &read).moments);
            turn.committed(number, &[3]);
        }
        assert_eq!(noted, ["{0,5}", "{0,5}", "{0,5,7}", "{0,5,7}"]);
    }

    fn seen(rows: &[[&str; 4]]) -> Seen {
        let mut seen = Seen::default();
        for values in rows {
            assert!(seen.note(&row(values)), "{values:?}");
        }
        seen
    }

    #[test]
    fn a_snapshot_is_behind_a_moment_that_another_has_a_note_of() {
        let own = |moment: &'static str| ["-1", "-1", "{}", moment];
        let noted = ["1", "0", "{0,0,1}", "{0,10}"];
        let all = |first: &'static str| {
            let other = seen(&[own("{3}"), noted]);
            vec![
                (1, seen(&[own(first)])),
                (2, other),
                (3, seen(&[own("{0}")])),
            ]
        };
        let mut known = Moments::default();
        assert_eq!(behind(&all("{9}"), &known), [1]);
        assert!(behind(&all("{10}"), &known).is_empty());
        assert!(behind(&all("{11}"), &known).is_empty());
        // A shard that counts from less since it has crashed.
        past(&all("{9}"), &mut known);
        assert!(behind(&all("{8}"), &known).is_empty());
    }

    #[test]
    fn the_lowest_slot_is_used_again_when_its_commit_has_ended() {
        let slots = Slots::default();
        let mut first = slots.take();
        let mut second = slots.take();
        let numbers = [first.begin(), second.begin()].map(|number| number.expect("a slot"));
        assert_eq!(numbers.map(slot_of), [0, 1]);
        assert_eq!(
            last(&mut first, numbers[0], &[1, 3]),
            "{0,1048576,0,1048576}"
        );
        first.committed(numbers[0], &[1, 3]);
        second.rolled_back();
        let mut third = slots.take();
        let number = third.begin().expect("a slot");
        assert_eq!(number, 2 << SLOT_BITS);
        assert_eq!(
            last(&mut third, number, &[2]),
            "{0,1048576,2097152,1048576}"
        );
        // Nobody knows how it ended.
        assert!(slots.is_under_way(number));
        drop(third);
        assert!(!slots.is_under_way(number));
        let mut fourth = slots.take();
        let number = fourth.begin().expect("a slot");
        assert_eq!(slot_of(number), 1);
        assert_eq!(last(&mut fourth, number, &[2]), format!("{{0,0,{number}}}"));
        drop(slots.take());
        assert_eq!(slots.take().begin().map(slot_of), Some(2));
        lock(&slots.pool).made = 1 << SLOT_BITS;
        assert_eq!(slots.take().begin(), None);
    }

    /// Commits of two slots, and how far each shard has come with them when its snapshot is taken.
    /// A shard is behind exactly if it misses a commit, and another one has seen that commit or one
    /// that began after it in the same slot.
    fn notes_of(commits: &[(usize, Vec<ShardId>)]) -> Vec<String> {
        let slots = [Slots::default(), Slots::default()];
        let note = |(slot, shards): &(usize, Vec<ShardId>)| {
            let mut turn = slots[*slot].take();
            let number = turn.begin().expect("a slot");
            let note = last(&mut turn, number, shards);
            turn.committed(number, shards);
            note
        };
        commits.iter().map(note).collect()
    }

    proptest! {
        #[test]
        fn a_snapshot_is_behind_exactly_if_it_misses_what_another_knows_of(
            commits in proptest::collection::vec(
                (0..2usize, proptest::collection::btree_set(0..4u32, 2..4)),
                0..12,
            ),
            moments in proptest::array::uniform4(0..13usize),
            late in proptest::array::uniform4(0..4u32),
        ) {
            let commits: Vec<_> = commits
                .into_iter()
                .map(|(slot, shards)| (slot, shards.into_iter().collect::<Vec<_>>()))
                .collect();
            let notes = notes_of(&commits);
            // Each shard's snapshot is taken at a moment of its own. The last commit of a slot
            // before that moment may not have come to the shard yet.
            let visible = |shard: ShardId, index: usize| {
                let moment = moments[shard as usize];
                let slot = commits[index].0;
                let newer = (index + 1..moment.min(commits.len()))
                    .any(|other| commits[other].0 == slot);
                index < moment && (newer || late[shard as usize] != 0)
            };
            let seen_by = |shard: ShardId| {
                let mut seen = Seen::default();
                for (index, (slot, shards)) in commits.iter().enumerate() {
                    if shards.contains(&shard) && visible(shard, index) {
                        assert!(seen.note(&row(&["1", &slot.to_string(), &notes[index], "{}"])));
                    }
                }
                seen
            };
            let all: Vec<(ShardId, Seen)> = (0..4).map(|shard| (shard, seen_by(shard))).collect();
            let expected: Vec<ShardId> = (0..4)
                .filter(|shard| {
                    (0..commits.len()).any(|index| {
                        let (slot, shards) = &commits[index];
                        shards.contains(shard)
                            && !visible(*shard, index)
                            && (index..commits.len()).any(|later| {
                                let mut others = commits[later].1.iter();
                                commits[later].0 == *slot
                                    && others.any(|other| other != shard && visible(*other, later))
                            })
                    })
                })
                .collect();
            prop_assert_eq!(behind(&all, &Moments::default()), expected);
        }
    }
}
