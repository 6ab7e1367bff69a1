//! Whether a value that one server writes as text is the same value where another reads it.
//!
//! Values travel in binary where they can. Where they travel as text, the session's settings are in
//! force, because what the client has written may depend on them: `extra_float_digits` below 1 rounds
//! numbers, and every DateStyle but ISO names zones by abbreviations, which mean several zones.

use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    session::Session,
};

/// What the session's settings lose in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Digits of floating-point numbers.
    digits: bool,
    /// Zones of points in time.
    zones: bool,
}

/// Built-in types of floating-point numbers (`pg_type.dat`): float4, float8, point, lseg, path, box,
/// polygon, line, circle, and their arrays.
const NUMBERS: &[u32] = &[
    700, 701, 600, 601, 602, 603, 604, 628, 718, 1021, 1022, 1017, 1018, 1019, 1020, 1027, 629, 719,
];
/// timestamptz, its array, range and multirange.
const TIMES: &[u32] = &[1184, 1185, 3910, 3911, 4534, 6153];
/// Those that are written alike under all settings, or read as they are written: numbers, texts, dates
/// and times without a zone, json, uuid, addresses, bits; their arrays and ranges.
const SAME: &[u32] = &[
    16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 142, 650, 790, 829, 869, 774, 1042, 1043, 1082, 1083,
    1114, 1186, 1266, 1560, 1562, 1700, 2950, 3220, 3614, 3615, 3802, 199, 1000, 1001, 1002, 1005,
    1007, 1009, 1014, 1015, 1016, 1115, 1182, 1183, 1187, 1231, 2951, 3807, 3904, 3906, 3908, 3912,
    3926,
];

impl Loss {
    /// Nothing is lost of any value.
    pub fn is_nothing(self) -> bool {
        !self.digits && !self.zones
    }

    /// A type of which something may be lost. What is in a type of the user's is not known.
    pub fn is_of(self, oid: u32) -> bool {
        if NUMBERS.contains(&oid) {
            return self.digits;
        }
        if TIMES.contains(&oid) {
            return self.zones;
        }
        !SAME.contains(&oid) && !self.is_nothing()
    }
}

impl Session {
    /// What text loses in this session, or transaction.
    pub(in crate::session) async fn text_loss(&mut self) -> Outcome<Loss> {
        let text = "SELECT pg_catalog.current_setting('extra_float_digits')::pg_catalog.int4 < 1, \
                    pg_catalog.current_setting('DateStyle') !~ '^ISO'";
        let rows = self.query_rows(self.home(), text).await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut is_so = || row.next().flatten().as_deref() == Some("t");
        Ok(Loss {
            digits: is_so(),
            zones: is_so(),
        })
    }
}

/// Values of such types would not be the same where they are read.
pub fn lossy_text() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "values of several shards cannot be brought together under these settings",
    )
    .detail(
        "They travel as text, which extra_float_digits below 1 rounds, and in which every DateStyle \
         but ISO names time zones ambiguously.",
    )
    .hint("Set DateStyle to ISO and extra_float_digits to 1, and format values with to_char().")
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_text_loses() {
        let digits = Loss {
            digits: true,
            zones: false,
        };
        let zones = Loss {
            digits: false,
            zones: true,
        };
        let nothing = Loss {
            digits: false,
            zones: false,
        };
        for (oid, of_digits, of_zones) in [
            (23, false, false),
            (701, true, false),
            (1184, false, true),
            (2249, true, true),
            (16_400, true, true),
        ] {
            assert_eq!(digits.is_of(oid), of_digits, "{oid}");
            assert_eq!(zones.is_of(oid), of_zones, "{oid}");
            assert!(!nothing.is_of(oid), "{oid}");
        }
    }
}
