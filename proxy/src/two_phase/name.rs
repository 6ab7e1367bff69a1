//! The name of a transaction over several shards, as every shard sees it. It says all that is
//! needed to end it: who began it, which shard decides, and which have parts.

use std::fmt;

use automator67_planner::catalog::ShardId;

use crate::server::call::{self, Key};

/// What every name starts with.
pub const PREFIX: &str = "a67_";
/// Postgres takes at most 199 bytes.
const BYTES_MAX: usize = 199;

/// `a67_<cluster>_<proxy>_<number>_<anchor>_<parts>`: cluster and proxy are 8 hexadecimal digits,
/// number and anchor hexadecimal, parts a hexadecimal bit set of shard ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The catalog's name.
    pub cluster: String,
    /// The proxy's, new at each start.
    pub proxy: u32,
    /// The transaction's, in that proxy; see [`register`](super::register).
    pub number: u64,
    /// The shard that decides.
    pub anchor: ShardId,
    /// The shards that are prepared, ascending.
    pub parts: Vec<ShardId>,
}

impl Name {
    /// Reads a name. `None`: it is not one of ours.
    pub fn parse(text: &str) -> Option<Name> {
        let mut fields = text.strip_prefix(PREFIX)?.split('_');
        let cluster = fields.next().filter(|cluster| is_cluster(cluster))?;
        let proxy = hexadecimal(fields.next().filter(|proxy| proxy.len() == 8)?)?;
        let number = hexadecimal(fields.next()?)?;
        let anchor = ShardId::try_from(hexadecimal(fields.next()?)?).ok()?;
        let parts = shards_of(fields.next()?)?;
        let whole = fields.next().is_none() && !parts.is_empty() && !parts.contains(&anchor);
        whole.then(|| Name {
            cluster: cluster.to_owned(),
            proxy: proxy as u32,
            number,
            anchor,
            parts,
        })
    }

    /// The name as one shard has it: with a digest that only proxies of this cluster can make, and
    /// that is another one on every shard. So nobody else can prepare what would be taken for
    /// theirs, and who sees the name on one shard cannot take it on another.
    pub fn signed(&self, key: &Key, shard: ShardId) -> String {
        let name = self.to_string();
        let digest = digest(key, &name, shard);
        format!("{name}_{digest}")
    }

    /// Reads the name that a shard has. `None`: it is not one of ours.
    pub fn parse_signed(text: &str, key: &Key, shard: ShardId) -> Option<Name> {
        let (name, given) = text.rsplit_once('_')?;
        (given == digest(key, name, shard)).then(|| Name::parse(name))?
    }
}

/// The first 16 digits say enough: nobody can try them out.
fn digest(key: &Key, name: &str, shard: ShardId) -> String {
    let mut digest = call::digest(key, format!("{name}@{shard}").as_bytes());
    digest.truncate(16);
    digest
}

/// It is short enough for Postgres.
pub fn fits(gid: &str) -> bool {
    gid.len() <= BYTES_MAX
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name {
            cluster,
            proxy,
            number,
            anchor,
            parts,
        } = self;
        write!(
            formatter,
            "{PREFIX}{cluster}_{proxy:08x}_{number:x}_{anchor:x}_{}",
            bits_of(parts)
        )
    }
}

fn is_cluster(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(is_digit)
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn hexadecimal(text: &str) -> Option<u64> {
    let plain =
        text.bytes().all(is_digit) && (text == "0" || text.len() == 8 || !text.starts_with('0'));
    u64::from_str_radix(text, 16).ok().filter(|_| plain)
}

/// Bit n, counted from the last digit's lowest, is shard n.
fn bits_of(shards: &[ShardId]) -> String {
    let highest = shards.iter().max().copied().unwrap_or(0);
    let digits = highest as usize / 4 + 1;
    let mut bits = vec![0u8; digits];
    for shard in shards {
        bits[digits - 1 - *shard as usize / 4] |= 1 << (shard % 4);
    }
    bits.iter().map(|digit| format!("{digit:x}")).collect()
}

fn shards_of(text: &str) -> Option<Vec<ShardId>> {
    let plain = (1..=BYTES_MAX).contains(&text.len()) && text.bytes().all(is_digit);
    if !plain {
        return None;
    }
    let mut shards = Vec::new();
    for (place, digit) in text.chars().rev().enumerate() {
        let bits = digit.to_digit(16)?;
        shards.extend(
            (0..4)
                .filter(|bit| bits >> bit & 1 == 1)
                .map(|bit| place as u32 * 4 + bit),
        );
    }
    Some(shards)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_names_are_not_ours() {
        for text in [
            "",
            "a67_",
            "a67_0123abcd",
            "a67_0123abcd_00000001_1_1_",
            "a67_0123abcd_00000001_1_1_4_",
            "a67_0123abcd_00000001_1_1_4_5",
            "a67_0123ABCD_00000001_1_1_4",
            "a67_0123abcd_1_1_1_4",
            "a67_0123abcd_00000001_1_1_0",
            "a67_0123abcd_00000001_1_2_4",
            "a67_0123abcd_00000001_+1_1_4",
            "a67_0123abcd_00000001_01_1_4",
            "a67_0123abcd_00000001_1_fffffffff_4",
            "b67_0123abcd_00000001_1_1_4",
            "a67_0123abcd_00000001_1_1_\u{e9}",
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn names_come_back(
            cluster in "[0-9a-f]{8}",
            proxy: u32,
            number: u64,
            anchor in 1u32..200,
            parts in proptest::collection::btree_set(1u32..200, 1..12),
        ) {
            let parts: Vec<u32> = parts.into_iter().filter(|part| *part != anchor).collect();
            prop_assume!(!parts.is_empty());
            let name = Name { cluster, proxy, number, anchor, parts };
            prop_assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
            let gid = name.signed(&[7; 32], 3);
            prop_assert!(fits(&gid));
            prop_assert_eq!(Name::parse_signed(&gid, &[7; 32], 3), Some(name.clone()));
            prop_assert_eq!(Name::parse_signed(&gid, &[8; 32], 3), None);
            prop_assert_eq!(Name::parse_signed(&gid, &[7; 32], 4), None);
            prop_assert_eq!(Name::parse_signed(&name.to_string(), &[7; 32], 3), None);
            let other = Name { number: name.number ^ 1, ..name };
            let (_, digest) = gid.rsplit_once('_').unwrap();
            prop_assert_eq!(Name::parse_signed(&format!("{other}_{digest}"), &[7; 32], 3), None);
        }

        #[test]
        fn nothing_panics(text in "a67_[0-9a-f_]{0,60}") {
            if let Some(name) = Name::parse(&text) {
                prop_assert!(Name::parse(&name.to_string()).is_some());
            }
        }
    }
}
