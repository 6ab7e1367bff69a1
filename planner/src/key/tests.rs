use proptest::prelude::*;

use super::*;

const ALL: [KeyType; 6] = [
    KeyType::Integer,
    KeyType::Text,
    KeyType::Uuid,
    KeyType::Date,
    KeyType::Timestamp,
    KeyType::TimestampTz,
];

fn check(key_type: KeyType, text: &str, expected: KeyValue) {
    assert_eq!(
        from_text(key_type, text),
        Some(expected),
        "{key_type:?} {text:?}"
    );
}

fn refused(key_type: KeyType, texts: &[&str]) {
    for text in texts {
        assert_eq!(from_text(key_type, text), None, "{key_type:?} {text:?}");
    }
}

#[test]
fn tokens_are_those_of_the_reference_implementation() {
    // MurmurHash3_x64_128 of "hello" with seed 0 is cbd8a7b341bd9b02 5b1e906a48ae1d19.
    assert_eq!(hash(b"hello"), 0xcbd8_a7b3_41bd_9b02_u64 as i64);
    assert_eq!(hash(b""), 0);
}

#[test]
fn integers_land_together_whatever_their_width() {
    for number in [0i16, 1, -1, i16::MIN, i16::MAX] {
        let text = token(&from_text(KeyType::Integer, &number.to_string()).unwrap());
        let encodings = [
            (21, number.to_be_bytes().to_vec()),
            (23, i32::from(number).to_be_bytes().to_vec()),
            (20, i64::from(number).to_be_bytes().to_vec()),
        ];
        for (oid, bytes) in encodings {
            let value = from_binary(KeyType::Integer, oid, &bytes).unwrap();
            assert_eq!(token(&value), text, "{number} as {oid}");
        }
    }
}

#[test]
fn reads_integers() {
    check(KeyType::Integer, " \t+007\n", KeyValue::Integer(7));
    check(
        KeyType::Integer,
        "-9223372036854775808",
        KeyValue::Integer(i64::MIN),
    );
    refused(
        KeyType::Integer,
        &[
            "",
            " ",
            "1.0",
            "1e3",
            "0x10",
            "1_000",
            "9223372036854775808",
            "- 1",
            "+-1",
            "1 2",
            "١",
        ],
    );
}

#[test]
fn reads_uuids() {
    let bytes = [
        0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a,
        0x11,
    ];
    check(
        KeyType::Uuid,
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        KeyValue::Uuid(bytes),
    );
    check(
        KeyType::Uuid,
        "A0EEBC999C0B4EF8BB6D6BB9BD380A11",
        KeyValue::Uuid(bytes),
    );
    refused(
        KeyType::Uuid,
        &[
            "",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g",
            "a0eebc999-c0b-4ef8-bb6d-6bb9bd380a11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd38äa1",
        ],
    );
}

#[test]
fn reads_dates() {
    check(KeyType::Date, "2000-01-01", KeyValue::Date(0));
    check(KeyType::Date, "1999-12-31", KeyValue::Date(-1));
    check(KeyType::Date, "2024-02-29", KeyValue::Date(8825));
    check(KeyType::Date, "0001-01-01", KeyValue::Date(-730_119));
    check(KeyType::Date, "9999-12-31", KeyValue::Date(2_921_939));
    refused(
        KeyType::Date,
        &[
            "",
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "2024-04-31",
            "0000-01-01",
            "24-01-01",
            "12024-01-01",
            "2024-1-1",
            "01/02/2024",
            "infinity",
            "2024-01-01 BC",
            " 2024-01-01",
            "2024-01-01 00:00:00",
            "today",
        ],
    );
}

#[test]
fn reads_timestamps() {
    check(
        KeyType::Timestamp,
        "2000-01-01 00:00:00",
        KeyValue::Timestamp(0),
    );
    check(
        KeyType::Timestamp,
        "2000-01-01T00:00:01.5",
        KeyValue::Timestamp(1_500_000),
    );
    check(
        KeyType::Timestamp,
        "1999-12-31 23:59:59.999999",
        KeyValue::Timestamp(-1),
    );
    refused(
        KeyType::Timestamp,
        &[
            "2000-01-01",
            "2000-01-01 00:00",
            "2000-01-01 24:00:00",
            "2000-01-01 00:00:60",
            "2000-01-01 00:00:00.",
            "2000-01-01 00:00:00.1234567",
            "2000-01-01 00:00:00+00",
            "2000-01-01  00:00:00",
            "infinity",
            "2000-01-01t00:00:00",
            "2000-01-01 00:00:00 BC",
        ],
    );
}

#[test]
fn reads_timestamps_with_time_zone() {
    for text in [
        "2000-01-01 00:00:00+00",
        "2000-01-01 00:00:00Z",
        "2000-01-01 02:00:00+02",
        "1999-12-31 18:30:00-05:30",
        "2000-01-01 00:49:56+00:49:56",
    ] {
        check(KeyType::TimestampTz, text, KeyValue::Timestamp(0));
    }
    refused(
        KeyType::TimestampTz,
        &[
            "2000-01-01 00:00:00",
            "2000-01-01 00:00:00 UTC",
            "2000-01-01 00:00:00+2",
            "2000-01-01 00:00:00+16",
            "2000-01-01 00:00:00+02:60",
            "2000-01-01 00:00:00+02:",
            "2000-01-01 00:00:00+00 BC",
            "2000-01-01 00:00:00Zulu",
            "2000-01-01+00",
        ],
    );
}

#[test]
fn storing_text_in_a_varchar_does_not_change_its_token() {
    let token_of = |text| token(&from_text(KeyType::Text, text).unwrap());
    assert_eq!(token_of("ab"), token_of("ab   "));
    assert_eq!(token_of(""), token_of("  "));
    assert_ne!(token_of("ab"), token_of(" ab"));
    assert_ne!(token_of("ab"), token_of("AB"));
}

#[test]
fn binary_values_of_other_types_are_refused() {
    for key_type in ALL {
        for oid in [0, 16, 26, 700, 701, 1042, 1700, 17, 114] {
            assert_eq!(
                from_binary(key_type, oid, &[0; 8]),
                None,
                "{key_type:?} {oid}"
            );
        }
    }
    assert_eq!(from_binary(KeyType::Integer, 25, b"1"), None);
    assert_eq!(from_binary(KeyType::Text, 23, &[0; 4]), None);
    assert_eq!(from_binary(KeyType::Timestamp, 1184, &[0; 8]), None);
    assert_eq!(from_binary(KeyType::Date, 1114, &[0; 8]), None);
    assert!(!accepts_text_of(KeyType::Integer, 705));
    assert!(accepts_text_of(KeyType::Text, 705));
}

#[test]
fn binary_values_of_wrong_length_are_refused() {
    for (key_type, oid, length) in [
        (KeyType::Integer, 20, 8),
        (KeyType::Integer, 21, 2),
        (KeyType::Integer, 23, 4),
        (KeyType::Uuid, 2950, 16),
        (KeyType::Date, 1082, 4),
        (KeyType::Timestamp, 1114, 8),
        (KeyType::TimestampTz, 1184, 8),
    ] {
        for wrong in (0..20).filter(|wrong| *wrong != length) {
            assert_eq!(
                from_binary(key_type, oid, &vec![0; wrong]),
                None,
                "{oid} {wrong}"
            );
        }
        assert!(from_binary(key_type, oid, &vec![0; length]).is_some());
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        for key_type in ALL {
            from_text(key_type, &text);
        }
    }

    #[test]
    fn dates_count_every_day_once(days in -730_119i64..2_921_939) {
        let (year, month, day) = civil(days);
        let text = format!("{year:04}-{month:02}-{day:02}");
        prop_assert_eq!(from_text(KeyType::Date, &text), Some(KeyValue::Date(days)));
    }
}

/// The day by counting whole years, then whole months: slow and plain.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut left = days + 730_119;
    let mut year = 1;
    let length = |year| (1..=12).map(|month| days_in(year, month)).sum::<i64>();
    while left >= length(year) {
        left -= length(year);
        year += 1;
    }
    let mut month = 1;
    while left >= days_in(year, month) {
        left -= days_in(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

#[test]
fn canonical_texts_are_read_back() {
    for (key_type, text, expected) in [
        (KeyType::Integer, " +007", "7"),
        (KeyType::Text, "a b  ", "a b"),
        (
            KeyType::Uuid,
            "0123456789ABCDEF0123456789ABCDEF",
            "01234567-89ab-cdef-0123-456789abcdef",
        ),
        (KeyType::Date, "2024-02-29", "2024-02-29"),
        (KeyType::Date, "0001-01-01", "0001-01-01"),
        (
            KeyType::Timestamp,
            "1999-12-31T23:59:59.900000",
            "1999-12-31 23:59:59.9",
        ),
        (
            KeyType::TimestampTz,
            "2026-07-01 01:30:00+02",
            "2026-06-30 23:30:00+00",
        ),
    ] {
        let value = from_text(key_type, text).expect(text);
        let canonical = canonical(key_type, &value);
        assert_eq!(canonical, expected);
        let again = from_text(key_type, &canonical).expect(expected);
        assert_eq!(compare(&again, &value), Ordering::Equal, "{text}");
    }
    let midnight = from_text(KeyType::Date, "2026-07-01")
        .as_ref()
        .and_then(midnight);
    assert_eq!(
        midnight,
        from_text(KeyType::Timestamp, "2026-07-01 00:00:00")
    );
    let infinity = KeyValue::Timestamp(i64::MAX);
    let text = canonical(KeyType::Timestamp, &infinity);
    assert_eq!(from_text(KeyType::Timestamp, &text), None);
    assert_eq!(
        canonical(KeyType::Date, &KeyValue::Date(i64::MIN)),
        format!("#{}", i64::MIN)
    );
}

proptest! {
    #[test]
    fn equal_canonical_texts_are_equal_values(one in any::<i64>(), other in any::<i64>(), near in -3i64..3) {
        for other in [other, one.saturating_add(near)] {
            for (key_type, make) in [
                (KeyType::Integer, KeyValue::Integer as fn(i64) -> KeyValue),
                (KeyType::Date, KeyValue::Date),
                (KeyType::Timestamp, KeyValue::Timestamp),
                (KeyType::TimestampTz, KeyValue::Timestamp),
            ] {
                let texts = [one, other].map(|number| canonical(key_type, &make(number)));
                prop_assert_eq!(texts[0] == texts[1], one == other, "{:?}", texts);
                if let Some(read) = from_text(key_type, &texts[0]) {
                    prop_assert_eq!(read, make(one));
                }
            }
        }
    }

    #[test]
    fn every_microsecond_is_written_as_it_is_read(number in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
        let text = canonical(KeyType::Timestamp, &KeyValue::Timestamp(number));
        prop_assert_eq!(from_text(KeyType::Timestamp, &text), Some(KeyValue::Timestamp(number)), "{}", text);
    }

    #[test]
    fn uuids_are_written_as_they_are_read(bytes in any::<[u8; 16]>()) {
        let text = canonical(KeyType::Uuid, &KeyValue::Uuid(bytes));
        prop_assert_eq!(from_text(KeyType::Uuid, &text), Some(KeyValue::Uuid(bytes)));
    }
}
