//! The order of values as Postgres has it, so that sorted rows of several shards can be merged
//! into one sorted result.
//!
//! A [`Kernel`] is the btree order of one type (`btree_ops`: its operators `<` and `=`) over
//! values in the wire's binary format, as the type's send function writes them. Two values that a
//! kernel calls equal are equal to the server as well, even when their bytes differ: `1.0` and
//! `1.00`, `1 mon` and `30 days`, `-0` and `0`.
//!
//! Deliberately absent: every order that hangs on something which the bytes do not tell, such as
//! collations of a language (the server's libraries), enums (their catalog) and types of
//! extensions. Text is compared as it arrives, so the client encoding of the session that reads
//! it must be the server's encoding.

use std::cmp::Ordering;

mod address;
mod numeric;
mod time;

/// A type's order as Postgres has it, over values in the wire's binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// False, then true.
    Bool,
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// Unsigned.
    Oid,
    /// NaN is the greatest and equals itself, the zeros are equal.
    Float4,
    /// As [`Kernel::Float4`].
    Float8,
    /// NaN is the greatest and equals itself; trailing zeros do not count.
    Numeric,
    /// Infinities are the extremes.
    Date,
    /// Time of day.
    Time,
    /// By the instant, then by the zone: the same instant farther west is greater.
    TimeTz,
    /// Infinities are the extremes.
    Timestamp,
    /// As [`Kernel::Timestamp`].
    TimestampTz,
    /// By the span, with months of 30 days and days of 24 hours.
    Interval,
    /// By bytes.
    Uuid,
    /// By bytes.
    Bytea,
    /// `text` and `varchar` under a collation that compares bytes.
    TextC,
    /// As [`Kernel::TextC`], without the spaces at the end.
    BpcharC,
    /// `"char"`: one unsigned byte.
    Char,
    /// By bytes.
    Name,
    /// By the number of the smallest units.
    Money,
    /// Unsigned.
    PgLsn,
    /// By bytes.
    Macaddr,
    /// By bytes.
    Macaddr8,
    /// `bit` and `bit varying`: by bits, then by length.
    Varbit,
    /// `inet` and `cidr`: by family, network, mask, then address.
    Inet,
}

/// The bytes are not a value of the type in binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is not in the binary format of type {sql_type}")]
pub struct Malformed {
    /// The type that the value should have had.
    pub sql_type: &'static str,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: &[Kernel] = &[
        Kernel::Bool,
        Kernel::Int2,
        Kernel::Int4,
        Kernel::Int8,
        Kernel::Oid,
        Kernel::Float4,
        Kernel::Float8,
        Kernel::Numeric,
        Kernel::Date,
        Kernel::Time,
        Kernel::TimeTz,
        Kernel::Timestamp,
        Kernel::TimestampTz,
        Kernel::Interval,
        Kernel::Uuid,
        Kernel::Bytea,
        Kernel::TextC,
        Kernel::BpcharC,
        Kernel::Char,
        Kernel::Name,
        Kernel::Money,
        Kernel::PgLsn,
        Kernel::Macaddr,
        Kernel::Macaddr8,
        Kernel::Varbit,
        Kernel::Inet,
    ];

    /// The kernel of a built-in type (`pg_type.oid`); none if its values are not ordered here.
    ///
    /// `bytewise` tells that the expression's collation compares bytes (C, POSIX, C.UTF-8). Only
    /// collatable types heed it. `name` is one of them: its columns have the collation C unless
    /// they say otherwise.
    pub fn of_type(oid: u32, bytewise: bool) -> Option<Kernel> {
        // The numbers are those of the server's pg_type.dat.
        let kernel = match oid {
            16 => Kernel::Bool,
            17 => Kernel::Bytea,
            18 => Kernel::Char,
            19 => Kernel::Name,
            20 => Kernel::Int8,
            21 => Kernel::Int2,
            23 => Kernel::Int4,
            25 | 1043 => Kernel::TextC,
            26 => Kernel::Oid,
            650 | 869 => Kernel::Inet,
            700 => Kernel::Float4,
            701 => Kernel::Float8,
            774 => Kernel::Macaddr8,
            790 => Kernel::Money,
            829 => Kernel::Macaddr,
            1042 => Kernel::BpcharC,
            1082 => Kernel::Date,
            1083 => Kernel::Time,
            1114 => Kernel::Timestamp,
            1184 => Kernel::TimestampTz,
            1186 => Kernel::Interval,
            1266 => Kernel::TimeTz,
            1560 | 1562 => Kernel::Varbit,
            1700 => Kernel::Numeric,
            2950 => Kernel::Uuid,
            3220 => Kernel::PgLsn,
            _ => return None,
        };
        (bytewise || !kernel.is_collatable()).then_some(kernel)
    }

    /// True when the order hangs on the collation as well.
    fn is_collatable(self) -> bool {
        matches!(self, Kernel::TextC | Kernel::BpcharC | Kernel::Name)
    }

    /// The type as SQL writes it; of two types with one kernel, the one that loses nothing in a
    /// cast.
    pub fn sql_type(self) -> &'static str {
        match self {
            Kernel::Bool => "bool",
            Kernel::Int2 => "int2",
            Kernel::Int4 => "int4",
            Kernel::Int8 => "int8",
            Kernel::Oid => "oid",
            Kernel::Float4 => "float4",
            Kernel::Float8 => "float8",
            Kernel::Numeric => "numeric",
            Kernel::Date => "date",
            Kernel::Time => "time",
            Kernel::TimeTz => "timetz",
            Kernel::Timestamp => "timestamp",
            Kernel::TimestampTz => "timestamptz",
            Kernel::Interval => "interval",
            Kernel::Uuid => "uuid",
            Kernel::Bytea => "bytea",
            Kernel::TextC => "text",
            Kernel::BpcharC => "bpchar",
            Kernel::Char => "\"char\"",
            Kernel::Name => "name",
            Kernel::Money => "money",
            Kernel::PgLsn => "pg_lsn",
            Kernel::Macaddr => "macaddr",
            Kernel::Macaddr8 => "macaddr8",
            Kernel::Varbit => "varbit",
            Kernel::Inet => "inet",
        }
    }

    /// Compares two values that are not NULL. The error says that one of them is no value of the
    /// type; nothing is known about their order then.
    pub fn compare(self, left: &[u8], right: &[u8]) -> Result<Ordering, Malformed> {
        self.order(left, right).ok_or(Malformed {
            sql_type: self.sql_type(),
        })
    }

    fn order(self, left: &[u8], right: &[u8]) -> Option<Ordering> {
        match self {
            Kernel::Bool => by(left, right, boolean),
            Kernel::Int2 => by(left, right, |b| Some(i16::from_be_bytes(exact(b)?))),
            Kernel::Int4 | Kernel::Date => by(left, right, |b| Some(i32::from_be_bytes(exact(b)?))),
            Kernel::Int8 | Kernel::Timestamp | Kernel::TimestampTz | Kernel::Money => {
                by(left, right, |b| Some(i64::from_be_bytes(exact(b)?)))
            }
            Kernel::Oid => by(left, right, |b| Some(u32::from_be_bytes(exact(b)?))),
            Kernel::PgLsn => by(left, right, |b| Some(u64::from_be_bytes(exact(b)?))),
            Kernel::Float4 => {
                // Widening keeps every value, and so the order.
                let [left, right] = [left, right]
                    .map(|bytes| exact(bytes).map(|bytes| f64::from(f32::from_be_bytes(bytes))));
                Some(floats(left?, right?))
            }
            Kernel::Float8 => {
                let [left, right] = [left, right].map(|bytes| exact(bytes).map(f64::from_be_bytes));
                Some(floats(left?, right?))
            }
            Kernel::Numeric => {
                let (left, right) = (numeric::decode(left)?, numeric::decode(right)?);
                Some(left.cmp(&right))
            }
            Kernel::Time => by(left, right, time::of_day),
            Kernel::TimeTz => by(left, right, time::with_zone),
            Kernel::Interval => by(left, right, time::span),
            Kernel::Uuid => by(left, right, exact::<16>),
            Kernel::Macaddr => by(left, right, exact::<6>),
            Kernel::Macaddr8 => by(left, right, exact::<8>),
            Kernel::Char => by(left, right, exact::<1>),
            Kernel::Bytea | Kernel::TextC | Kernel::Name => Some(left.cmp(right)),
            Kernel::BpcharC => Some(without_padding(left).cmp(without_padding(right))),
            Kernel::Varbit => by(left, right, bits),
            Kernel::Inet => by(left, right, address::decode),
        }
    }
}

/// One key of ORDER BY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SortKey {
    /// The order of its type.
    pub kernel: Kernel,
    /// DESC. It does not move the NULLs.
    pub descending: bool,
    /// NULLS FIRST, which SQL implies for DESC.
    pub nulls_first: bool,
}

impl SortKey {
    fn compare(&self, left: Option<&[u8]>, right: Option<&[u8]>) -> Result<Ordering, Malformed> {
        let null_before_value = if self.nulls_first {
            Ordering::Less
        } else {
            Ordering::Greater
        };
        match (left, right) {
            (None, None) => Ok(Ordering::Equal),
            (None, Some(_)) => Ok(null_before_value),
            (Some(_), None) => Ok(null_before_value.reverse()),
            (Some(left), Some(right)) => {
                let order = self.kernel.compare(left, right)?;
                Ok(if self.descending {
                    order.reverse()
                } else {
                    order
                })
            }
        }
    }
}

/// Compares two rows' keys (`None` is NULL). Values after the first difference are not looked at.
/// A row without a value for a key that is looked at is malformed.
pub fn compare_keys(
    keys: &[SortKey],
    left: &[Option<&[u8]>],
    right: &[Option<&[u8]>],
) -> Result<Ordering, Malformed> {
    for (number, key) in keys.iter().enumerate() {
        let (Some(left), Some(right)) = (left.get(number), right.get(number)) else {
            return Err(Malformed {
                sql_type: key.kernel.sql_type(),
            });
        };
        let order = key.compare(*left, *right)?;
        if order.is_ne() {
            return Ok(order);
        }
    }
    Ok(Ordering::Equal)
}

/// Compares what `decode` makes of the values.
fn by<'a, T: Ord>(
    left: &'a [u8],
    right: &'a [u8],
    decode: impl Fn(&'a [u8]) -> Option<T>,
) -> Option<Ordering> {
    Some(decode(left)?.cmp(&decode(right)?))
}

fn exact<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn boolean(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

/// `float8_cmp_internal` of the server's source: total, unlike IEEE's comparison, and with equal
/// zeros, unlike IEEE's total order.
fn floats(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right)
        .unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// Only the space is padding (`bpchartruelen` of the server's source).
fn without_padding(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' '] = bytes {
        bytes = rest;
    }
    bytes
}

/// The bytes, the last one filled up with zeros, and the number of bits (`bit_cmp` of the
/// server's source).
fn bits(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (count, bytes) = bytes.split_first_chunk()?;
    let count = u32::try_from(i32::from_be_bytes(*count)).ok()?;
    let size = usize::try_from(count.div_ceil(8)).ok()?;
    let filler = (1_u8 << ((8 - count % 8) % 8)) - 1;
    let filled_with_zeros = bytes.last().is_none_or(|last| last & filler == 0);
    (bytes.len() == size && filled_with_zeros).then_some((bytes, count))
}

#[cfg(test)]
mod tests;
