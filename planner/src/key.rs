//! Shard keys: values, read from whatever spelling a client used, and their tokens.
//!
//! Keys hash by value, not by spelling: `1::int2` and `1::int8` have one token, and a `uuid` has
//! one token in every way of writing it. A spelling that is not certain to mean the same value on
//! every server, whatever its `DateStyle` and `TimeZone`, is not read at all; the caller then asks
//! a server.

use std::{borrow::Cow, cmp::Ordering};

use murmur3::murmur3_x64_128;

use crate::catalog::KeyType;

const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const UNKNOWN: u32 = 705;
const VARCHAR: u32 = 1043;
const DATE: u32 = 1082;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const UUID: u32 = 2950;

const MICROSECONDS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 1970-01-01 to 2000-01-01, the day Postgres counts from.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;

/// A value of a shard key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyValue {
    /// SQL NULL: equal to nothing, and no row has it as its key.
    Null,
    /// int2, int4, int8.
    Integer(i64),
    /// text, varchar: UTF-8 bytes.
    Text(Box<[u8]>),
    /// uuid.
    Uuid([u8; 16]),
    /// Days since 2000-01-01.
    Date(i64),
    /// Microseconds since 2000-01-01, in UTC for timestamptz.
    Timestamp(i64),
}

/// A value's place on the ring. NULL has the token 0, which nothing depends on: a comparison with
/// NULL finds no row on any shard.
///
/// Integers, dates and timestamps are hashed as an int8 in network order, a uuid as its 16 bytes,
/// text as UTF-8 without its trailing spaces: storing `'ab   '` in a `varchar(2)` silently keeps
/// `'ab'` (the manual, section 8.3), and both must land on one shard.
pub fn token(value: &KeyValue) -> i64 {
    match value {
        KeyValue::Null => 0,
        KeyValue::Integer(number) | KeyValue::Date(number) | KeyValue::Timestamp(number) => {
            hash(&number.to_be_bytes())
        }
        KeyValue::Uuid(bytes) => hash(bytes),
        KeyValue::Text(bytes) => hash(unpadded(bytes)),
    }
}

fn unpadded(bytes: &[u8]) -> &[u8] {
    let length = bytes
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |last| last + 1);
    &bytes[..length]
}

/// The order of ranges: numbers and times by value, uuid and text by their bytes, text without its
/// trailing spaces (see [`token`]). Both are values of one key; NULL comes first.
pub fn compare(one: &KeyValue, other: &KeyValue) -> Ordering {
    match (one, other) {
        (KeyValue::Integer(one), KeyValue::Integer(other))
        | (KeyValue::Date(one), KeyValue::Date(other))
        | (KeyValue::Timestamp(one), KeyValue::Timestamp(other)) => one.cmp(other),
        (KeyValue::Uuid(one), KeyValue::Uuid(other)) => one.cmp(other),
        (KeyValue::Text(one), KeyValue::Text(other)) => unpadded(one).cmp(unpadded(other)),
        _ => rank(one).cmp(&rank(other)),
    }
}

/// Of values of different types, which never meet in one group.
fn rank(value: &KeyValue) -> u8 {
    match value {
        KeyValue::Null => 0,
        KeyValue::Integer(_) => 1,
        KeyValue::Text(_) => 2,
        KeyValue::Uuid(_) => 3,
        KeyValue::Date(_) => 4,
        KeyValue::Timestamp(_) => 5,
    }
}

/// One text for every value, whatever its spelling was. [`from_text`] reads it back, but for text
/// that is not UTF-8 and for times that are infinite or outside of the years 1 to 9999; of those
/// it is a number behind `#`.
pub fn canonical(key_type: KeyType, value: &KeyValue) -> String {
    match value {
        KeyValue::Null => String::new(),
        KeyValue::Integer(number) => number.to_string(),
        KeyValue::Text(bytes) => match String::from_utf8_lossy(unpadded(bytes)) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(lossy) => lossy,
        },
        KeyValue::Uuid(bytes) => {
            let mut text = String::with_capacity(36);
            for (at, byte) in bytes.iter().enumerate() {
                if matches!(at, 4 | 6 | 8 | 10) {
                    text.push('-');
                }
                text.push_str(&format!("{byte:02x}"));
            }
            text
        }
        KeyValue::Date(days) => date_text(*days).unwrap_or_else(|| format!("#{days}")),
        KeyValue::Timestamp(microseconds) => {
            let zone = if key_type == KeyType::TimestampTz {
                "+00"
            } else {
                ""
            };
            match timestamp_text(*microseconds) {
                Some(text) => format!("{text}{zone}"),
                None => format!("#{microseconds}"),
            }
        }
    }
}

/// `YYYY-MM-DD` (the inverse of [`date`]).
fn date_text(days: i64) -> Option<String> {
    let (year, month, day) = civil_from_days(days.checked_add(POSTGRES_EPOCH_DAYS)?)?;
    (1..=9999)
        .contains(&year)
        .then(|| format!("{year:04}-{month:02}-{day:02}"))
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` (the inverse of [`timestamp`]).
fn timestamp_text(microseconds: i64) -> Option<String> {
    let per_day = SECONDS_PER_DAY * MICROSECONDS_PER_SECOND;
    let date = date_text(microseconds.div_euclid(per_day))?;
    let rest = microseconds.rem_euclid(per_day);
    let (seconds, fraction) = (
        rest / MICROSECONDS_PER_SECOND,
        rest % MICROSECONDS_PER_SECOND,
    );
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = match fraction {
        0 => String::new(),
        some => format!(".{some:06}").trim_end_matches('0').to_owned(),
    };
    Some(format!(
        "{date} {hours:02}:{minutes:02}:{seconds:02}{fraction}"
    ))
}

/// The low 64 bits of murmur3 x64 128 with seed 0.
pub(crate) fn hash(bytes: &[u8]) -> i64 {
    let mut source = bytes;
    let hash = murmur3_x64_128(&mut source, 0).expect("reading from memory does not fail");
    hash as u64 as i64
}

/// The key type of a column of this type; `None`: such a column cannot be a shard key.
pub fn key_type_of(type_oid: u32) -> Option<KeyType> {
    match type_oid {
        INT2 | INT4 | INT8 => Some(KeyType::Integer),
        TEXT | VARCHAR => Some(KeyType::Text),
        UUID => Some(KeyType::Uuid),
        DATE => Some(KeyType::Date),
        TIMESTAMP => Some(KeyType::Timestamp),
        TIMESTAMPTZ => Some(KeyType::TimestampTz),
        _ => None,
    }
}

/// Whether a parameter of this type compares with the key as the key's own type, so that its text
/// can be given to [`from_text`]. An unspecified type (0) is the caller's to judge.
pub fn accepts_text_of(key_type: KeyType, type_oid: u32) -> bool {
    key_type_of(type_oid) == Some(key_type) || (key_type == KeyType::Text && type_oid == UNKNOWN)
}

/// Reads a value's text. `None`: the text is not certain to mean one and the same value on every
/// server.
pub fn from_text(key_type: KeyType, text: &str) -> Option<KeyValue> {
    match key_type {
        KeyType::Integer => integer(text).map(KeyValue::Integer),
        KeyType::Text => Some(KeyValue::Text(text.as_bytes().into())),
        KeyType::Uuid => uuid(text.as_bytes()).map(KeyValue::Uuid),
        KeyType::Date => {
            let (days, rest) = date(text.as_bytes())?;
            rest.is_empty().then_some(KeyValue::Date(days))
        }
        KeyType::Timestamp => {
            let (microseconds, rest) = timestamp(text.as_bytes())?;
            rest.is_empty().then_some(KeyValue::Timestamp(microseconds))
        }
        KeyType::TimestampTz => {
            let (microseconds, rest) = timestamp(text.as_bytes())?;
            let offset = utc_offset_seconds(rest)?;
            Some(KeyValue::Timestamp(
                microseconds - offset * MICROSECONDS_PER_SECOND,
            ))
        }
    }
}

/// The timestamp without time zone that a date alone means where one is wanted.
pub fn midnight(date: &KeyValue) -> Option<KeyValue> {
    match date {
        KeyValue::Date(days) => days
            .checked_mul(SECONDS_PER_DAY * MICROSECONDS_PER_SECOND)
            .map(KeyValue::Timestamp),
        _ => None,
    }
}

/// The type that a server gives a value of a key that nobody declared: the key's own; for integers
/// the number of bytes tells which of the three.
pub fn native_oid(key_type: KeyType, length: usize) -> Option<u32> {
    match (key_type, length) {
        (KeyType::Integer, 2) => Some(INT2),
        (KeyType::Integer, 4) => Some(INT4),
        (KeyType::Integer, 8) => Some(INT8),
        (KeyType::Integer, _) => None,
        (KeyType::Text, _) => Some(TEXT),
        (KeyType::Uuid, _) => Some(UUID),
        (KeyType::Date, _) => Some(DATE),
        (KeyType::Timestamp, _) => Some(TIMESTAMP),
        (KeyType::TimestampTz, _) => Some(TIMESTAMPTZ),
    }
}

/// Reads a value in binary format. `type_oid` is the type it was sent as. `None`: a type of
/// another family, or not as many bytes as the type has.
pub fn from_binary(key_type: KeyType, type_oid: u32, bytes: &[u8]) -> Option<KeyValue> {
    if !accepts_text_of(key_type, type_oid) {
        return None;
    }
    match type_oid {
        INT2 => Some(KeyValue::Integer(
            i16::from_be_bytes(bytes.try_into().ok()?).into(),
        )),
        INT4 => Some(KeyValue::Integer(
            i32::from_be_bytes(bytes.try_into().ok()?).into(),
        )),
        INT8 => Some(KeyValue::Integer(i64::from_be_bytes(
            bytes.try_into().ok()?,
        ))),
        UUID => Some(KeyValue::Uuid(bytes.try_into().ok()?)),
        DATE => Some(KeyValue::Date(
            i32::from_be_bytes(bytes.try_into().ok()?).into(),
        )),
        TIMESTAMP | TIMESTAMPTZ => Some(KeyValue::Timestamp(i64::from_be_bytes(
            bytes.try_into().ok()?,
        ))),
        _ => Some(KeyValue::Text(bytes.into())),
    }
}

/// `int8in` without its hexadecimal, octal, binary and underscored forms, which only some servers
/// know.
fn integer(text: &str) -> Option<i64> {
    let space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
    text.trim_matches(space).parse().ok()
}

/// 32 hexadecimal digits, or the same as 8-4-4-4-12.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let hyphens: &[usize] = match text.len() {
        32 => &[],
        36 => &[8, 13, 18, 23],
        _ => return None,
    };
    let mut uuid = [0; 16];
    let mut digits = 0;
    for (at, byte) in text.iter().enumerate() {
        if hyphens.contains(&at) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = char::from(*byte).to_digit(16)? as u8;
        uuid[digits / 2] = uuid[digits / 2] << 4 | digit;
        digits += 1;
    }
    Some(uuid)
}

/// `YYYY-MM-DD`, the one form that reads alike under every `DateStyle`: days since 2000-01-01, and
/// what follows.
fn date(text: &[u8]) -> Option<(i64, &[u8])> {
    let (year, rest) = number(text, 4)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?, 2)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?, 2)?;
    let valid = year >= 1 && (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    valid.then(|| {
        (
            days_from_civil(year, month, day) - POSTGRES_EPOCH_DAYS,
            rest,
        )
    })
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]`, with a space or `T` between: microseconds since 2000-01-01, and
/// what follows.
fn timestamp(text: &[u8]) -> Option<(i64, &[u8])> {
    let (days, rest) = date(text)?;
    let rest = rest
        .strip_prefix(b" ")
        .or_else(|| rest.strip_prefix(b"T"))?;
    let (hours, rest) = number(rest, 2)?;
    let (minutes, rest) = number(rest.strip_prefix(b":")?, 2)?;
    let (seconds, rest) = number(rest.strip_prefix(b":")?, 2)?;
    let (microseconds, rest) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=6).contains(&digits) {
                return None;
            }
            let (fraction, rest) = number(rest, digits)?;
            (fraction * 10i64.pow(6 - digits as u32), rest)
        }
        None => (0, rest),
    };
    let valid = hours <= 23 && minutes <= 59 && seconds <= 59;
    let whole = days * SECONDS_PER_DAY + hours * 3600 + minutes * 60 + seconds;
    valid.then_some((whole * MICROSECONDS_PER_SECOND + microseconds, rest))
}

/// `Z`, or `±HH[:MM[:SS]]` as Postgres prints it: seconds east of UTC.
fn utc_offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        b"Z" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, mut rest) = number(rest, 2)?;
    let mut sixtieths = [0; 2];
    for part in &mut sixtieths {
        if !rest.is_empty() {
            (*part, rest) = number(rest.strip_prefix(b":")?, 2)?;
        }
    }
    let [minutes, seconds] = sixtieths;
    // Postgres refuses offsets of 16 hours and more.
    let valid = rest.is_empty() && hours <= 15 && minutes <= 59 && seconds <= 59;
    valid.then_some(sign * (hours * 3600 + minutes * 60 + seconds))
}

/// Exactly `digits` decimal digits, and what follows.
fn number(text: &[u8], digits: usize) -> Option<(i64, &[u8])> {
    let (head, rest) = text.split_at_checked(digits)?;
    let value = head.iter().try_fold(0, |value, byte| {
        byte.is_ascii_digit()
            .then(|| value * 10 + i64::from(byte - b'0'))
    })?;
    Some((value, rest))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar (Howard Hinnant, "chrono-compatible low-level
/// date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`], from the same paper. `None` outside of any year we print.
fn civil_from_days(days: i64) -> Option<(i64, i64, i64)> {
    let days = days.checked_add(719_468)?;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Some((year, month, day))
}

#[cfg(test)]
mod tests;
