//! Times of day and intervals. The server counts microseconds.

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// A zone is less than this away from UTC (`TZDISP_LIMIT` of the server's source).
const ZONE_SECONDS_LIMIT: i32 = 16 * 3_600;
const MONTH_DAYS: i128 = 30;

/// `time`; 24:00:00 is one.
pub(super) fn of_day(bytes: &[u8]) -> Option<i64> {
    let time = i64::from_be_bytes(super::exact(bytes)?);
    (0..=DAY).contains(&time).then_some(time)
}

/// `time with time zone`: the instant in UTC, then seconds west of it (`timetz_cmp_internal` of
/// the server's source). The instant is not folded into one day: `23:00-02` is after `00:30+00`.
pub(super) fn with_zone(bytes: &[u8]) -> Option<(i64, i32)> {
    let (time, zone) = bytes.split_first_chunk::<8>()?;
    let time = of_day(time)?;
    let zone = i32::from_be_bytes(super::exact(zone)?);
    let is_zone = -ZONE_SECONDS_LIMIT < zone && zone < ZONE_SECONDS_LIMIT;
    is_zone.then_some((time + i64::from(zone) * SECOND, zone))
}

/// `interval`: the microseconds it spans (`interval_cmp_value` of the server's source). The
/// infinities of Postgres 17 have the extremes in all three fields, so they span most.
pub(super) fn span(bytes: &[u8]) -> Option<i128> {
    let bytes: [u8; 16] = super::exact(bytes)?;
    let (time, rest) = bytes.split_first_chunk::<8>()?;
    let (days, months) = rest.split_first_chunk::<4>()?;
    let days = i128::from(i32::from_be_bytes(*days));
    let months = i128::from(i32::from_be_bytes(super::exact(months)?));
    let time = i128::from(i64::from_be_bytes(*time));
    Some((months * MONTH_DAYS + days) * i128::from(DAY) + time)
}
