//! Malformed values, and the laws of an order. That the orders are the server's is tested against
//! a server, in `tests/tests/kernels.rs`.

use proptest::{collection::vec, prelude::*};

use super::*;

/// A value of the type in binary format.
fn sample(kernel: Kernel) -> Vec<u8> {
    match kernel {
        Kernel::Bool => vec![1],
        Kernel::Char => vec![b'a'],
        Kernel::Int2 => vec![0; 2],
        Kernel::Int4 | Kernel::Oid | Kernel::Float4 | Kernel::Date => vec![0; 4],
        Kernel::Int8
        | Kernel::Float8
        | Kernel::Time
        | Kernel::Timestamp
        | Kernel::TimestampTz
        | Kernel::Money
        | Kernel::PgLsn
        | Kernel::Macaddr8 => vec![0; 8],
        Kernel::TimeTz => vec![0; 12],
        Kernel::Interval | Kernel::Uuid => vec![0; 16],
        Kernel::Macaddr => vec![0; 6],
        Kernel::Numeric => numeric(0, POSITIVE, &[12, 5000]),
        Kernel::Bytea | Kernel::TextC | Kernel::BpcharC | Kernel::Name => b"abc".to_vec(),
        Kernel::Varbit => vec![0, 0, 0, 9, 0xFF, 0x80],
        Kernel::Inet => vec![2, 24, 0, 4, 10, 1, 2, 3],
    }
}

const POSITIVE: u16 = 0;
const NEGATIVE: u16 = 0x4000;

fn numeric(weight: i16, sign: u16, digits: &[u16]) -> Vec<u8> {
    let count = u16::try_from(digits.len()).expect("few digits");
    let mut bytes = Vec::new();
    bytes.extend(count.to_be_bytes());
    bytes.extend(weight.to_be_bytes());
    bytes.extend(sign.to_be_bytes());
    bytes.extend([0, 2]);
    bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
    bytes
}

/// Any bytes are a value of these.
fn takes_all(kernel: Kernel) -> bool {
    matches!(
        kernel,
        Kernel::Bytea | Kernel::TextC | Kernel::BpcharC | Kernel::Name
    )
}

fn malformed(kernel: Kernel, bytes: &[u8]) {
    let good = sample(kernel);
    let error = Err(Malformed {
        sql_type: kernel.sql_type(),
    });
    assert_eq!(kernel.compare(bytes, &good), error, "{kernel:?} {bytes:?}");
    assert_eq!(kernel.compare(&good, bytes), error, "{kernel:?} {bytes:?}");
}

#[test]
fn values_of_another_length_are_refused() {
    for &kernel in Kernel::ALL {
        let good = sample(kernel);
        assert_eq!(kernel.compare(&good, &good), Ok(Ordering::Equal));
        if takes_all(kernel) {
            assert_eq!(kernel.compare(&[], &good), Ok(Ordering::Less));
            continue;
        }
        for length in 0..good.len() {
            malformed(kernel, &good[..length]);
        }
        for extra in 1..20 {
            let mut long = good.clone();
            long.resize(good.len() + extra, 0);
            malformed(kernel, &long);
        }
    }
}

#[test]
fn values_outside_their_type_are_refused() {
    malformed(Kernel::Bool, &[2]);
    malformed(Kernel::Time, &(-1_i64).to_be_bytes());
    malformed(Kernel::Time, &86_400_000_001_i64.to_be_bytes());
    malformed(Kernel::Time, &i64::MAX.to_be_bytes());
    for zone in [57_600, -57_600, i32::MIN, i32::MAX] {
        let mut bytes = vec![0; 8];
        bytes.extend(zone.to_be_bytes());
        malformed(Kernel::TimeTz, &bytes);
    }
    malformed(Kernel::Numeric, &numeric(0, POSITIVE, &[10_000]));
    malformed(Kernel::Numeric, &numeric(0, 0x8000, &[1]));
    malformed(Kernel::Numeric, &[0xFF, 0xFF, 0, 0, 0, 0, 0, 0]);
    malformed(Kernel::Varbit, &[0xFF, 0xFF, 0xFF, 0xFF]);
    malformed(Kernel::Varbit, &[0x7F, 0xFF, 0xFF, 0xFF, 0]);
    malformed(Kernel::Varbit, &[0, 0, 0, 1, 0xFF]);
    malformed(Kernel::Inet, &[4, 24, 0, 4, 10, 1, 2, 3]);
    malformed(Kernel::Inet, &[2, 33, 0, 4, 10, 1, 2, 3]);
    malformed(Kernel::Inet, &[3, 24, 0, 4, 10, 1, 2, 3]);
    malformed(Kernel::Inet, &[2, 24, 0, 5, 10, 1, 2, 3]);
}

/// No server sends these; `numeric_recv` takes them.
#[test]
fn numerics_with_zeros_at_the_ends_are_the_same_numbers() {
    let check = |left: &[u8], right: &[u8], order| {
        assert_eq!(Kernel::Numeric.compare(left, right), Ok(order));
        assert_eq!(Kernel::Numeric.compare(right, left), Ok(order.reverse()));
    };
    let twelve = numeric(0, POSITIVE, &[12]);
    check(&numeric(1, POSITIVE, &[0, 12, 0]), &twelve, Ordering::Equal);
    check(&numeric(1, POSITIVE, &[0, 13]), &twelve, Ordering::Greater);
    let zero = numeric(0, POSITIVE, &[]);
    check(&numeric(0, NEGATIVE, &[]), &zero, Ordering::Equal);
    check(&numeric(9, NEGATIVE, &[0, 0]), &zero, Ordering::Equal);
    check(
        &numeric(i16::MIN, POSITIVE, &[0, 1]),
        &zero,
        Ordering::Greater,
    );
}

#[test]
fn collatable_types_have_an_order_only_under_bytewise_collations() {
    for oid in [19, 25, 1042, 1043] {
        assert_eq!(Kernel::of_type(oid, false), None);
        assert!(Kernel::of_type(oid, true).is_some());
    }
    for oid in (0..20_000).filter(|oid| ![19, 25, 1042, 1043].contains(oid)) {
        assert_eq!(Kernel::of_type(oid, false), Kernel::of_type(oid, true));
    }
}

#[test]
fn all_kernels_are_reached_from_a_type() {
    for &kernel in Kernel::ALL {
        assert!((0..20_000).any(|oid| Kernel::of_type(oid, true) == Some(kernel)));
    }
}

#[test]
fn nulls_stand_where_they_are_told_and_descending_does_not_move_them() {
    let one: Option<&[u8]> = Some(&[0, 1]);
    let two: Option<&[u8]> = Some(&[0, 2]);
    for descending in [false, true] {
        for nulls_first in [false, true] {
            let key = SortKey {
                kernel: Kernel::Int2,
                descending,
                nulls_first,
            };
            let check = |left, right, expected| {
                assert_eq!(compare_keys(&[key], &[left], &[right]), Ok(expected));
                assert_eq!(
                    compare_keys(&[key], &[right], &[left]),
                    Ok(expected.reverse())
                );
            };
            let ascending = |order: Ordering, reversed| {
                if reversed { order.reverse() } else { order }
            };
            check(one, two, ascending(Ordering::Less, descending));
            check(None, one, ascending(Ordering::Less, !nulls_first));
            check(None, None, Ordering::Equal);
            check(one, one, Ordering::Equal);
        }
    }
}

#[test]
fn a_later_key_decides_only_between_equals() {
    let key = SortKey {
        kernel: Kernel::TextC,
        descending: false,
        nulls_first: false,
    };
    let compare = |left: [&str; 2], right: [&str; 2]| {
        let left = left.map(|text| Some(text.as_bytes()));
        let right = right.map(|text| Some(text.as_bytes()));
        compare_keys(&[key, key], &left, &right)
    };
    assert_eq!(compare(["a", "z"], ["b", "a"]), Ok(Ordering::Less));
    assert_eq!(compare(["a", "z"], ["a", "a"]), Ok(Ordering::Greater));
    assert_eq!(compare(["a", "a"], ["a", "a"]), Ok(Ordering::Equal));
    let short: &[Option<&[u8]>] = &[Some(b"a")];
    let error = Err(Malformed { sql_type: "text" });
    assert_eq!(compare_keys(&[key, key], short, short), error);
}

fn any_kernel() -> impl Strategy<Value = Kernel> {
    prop::sample::select(Kernel::ALL)
}

/// Bytes of any length, and ones that are likely to be a value: a sample with some bytes changed.
fn any_value(kernel: Kernel) -> impl Strategy<Value = Vec<u8>> {
    let changed = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4).prop_map(move |changes| {
        let mut bytes = sample(kernel);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..24), changed]
}

fn three_values() -> impl Strategy<Value = (Kernel, [Vec<u8>; 3])> {
    any_kernel().prop_flat_map(|kernel| {
        let values = [any_value(kernel), any_value(kernel), any_value(kernel)];
        (Just(kernel), values)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_ordered_or_refused((kernel, [a, b, c]) in three_values()) {
        let well_formed = |value: &[u8]| kernel.compare(value, value).is_ok();
        let order = |left: &[u8], right: &[u8]| kernel.compare(left, right).ok();
        prop_assert_eq!(order(&a, &b).is_some(), well_formed(&a) && well_formed(&b));
        prop_assert_eq!(order(&a, &b), order(&b, &a).map(Ordering::reverse));
        if well_formed(&a) {
            prop_assert_eq!(order(&a, &a), Some(Ordering::Equal));
        }
        let (Some(ab), Some(bc)) = (order(&a, &b), order(&b, &c)) else {
            return Ok(());
        };
        if ab == bc || bc.is_eq() {
            prop_assert_eq!(order(&a, &c), Some(ab));
        } else if ab.is_eq() {
            prop_assert_eq!(order(&a, &c), Some(bc));
        }
    }
}
