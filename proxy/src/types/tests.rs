use super::*;

const MOOD: u32 = 20_001;
const MOODS: u32 = 20_002;
const SPOT: u32 = 20_003;
const SPOTS: u32 = 20_004;
const SPAN: u32 = 20_005;
const SPANS: u32 = 20_006;
const TABLE: u32 = 20_100;
/// What home adds to an OID of the shard.
const HOME: u32 = 10_000;

fn found(name: &str, oid: u32, shape: Shape, is_array: bool, array: u32) -> Found {
    Found {
        schema: "public".to_owned(),
        name: name.to_owned(),
        oid,
        shape,
        is_array,
        table: if name == "spot" { oid + 97 } else { 0 },
        array,
    }
}

fn side(add: u32) -> Vec<Found> {
    vec![
        found("mood", MOOD + add, Shape::Plain, false, MOODS + add),
        // The name of an array says nothing: the other server may have had to choose another.
        found(&format!("_mood{add}"), MOODS + add, Shape::Array, true, 0),
        found("spot", SPOT + add, Shape::Record, false, SPOTS + add),
        found("_spot", SPOTS + add, Shape::Array, true, 0),
        found("span", SPAN + add, Shape::Range(SPOT + add), false, 0),
        found(
            "spans",
            SPANS + add,
            Shape::Multirange(SPOT + add),
            false,
            0,
        ),
    ]
}

fn map() -> TypeMap {
    pair(&side(0), &side(HOME))
}

fn array(element: u32, values: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [1, 0, element, values.len() as u32, 1] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    for value in values {
        bytes.extend_from_slice(&sized(value));
    }
    bytes
}

fn record(fields: &[(u32, Option<&[u8]>)]) -> Vec<u8> {
    let mut bytes = (fields.len() as u32).to_be_bytes().to_vec();
    for (oid, value) in fields {
        bytes.extend_from_slice(&oid.to_be_bytes());
        match value {
            Some(value) => bytes.extend_from_slice(&sized(value)),
            None => bytes.extend_from_slice(&(-1i32).to_be_bytes()),
        }
    }
    bytes
}

fn sized(value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(value);
    bytes
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn row(values: &[&[u8]]) -> Vec<u8> {
    let mut body = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        body.extend_from_slice(&sized(value));
    }
    framed(b'D', &body)
}

fn description(columns: &[(u32, u32, u16)]) -> Vec<u8> {
    let mut body = (columns.len() as u16).to_be_bytes().to_vec();
    for (table, oid, format) in columns {
        body.extend_from_slice(b"c\0");
        body.extend_from_slice(&table.to_be_bytes());
        body.extend_from_slice(&[0, 1]);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&format.to_be_bytes());
    }
    framed(b'T', &body)
}

/// A value of the shape `shape`, as the shard says it and as home would.
#[track_caller]
fn check_value(shape: Shape, value: &dyn Fn(u32) -> Vec<u8>) {
    let mut frame = row(&[&value(0)]);
    data_row(&map(), &[shape], &mut frame).expect("translates");
    assert_eq!(frame, row(&[&value(HOME)]));
}

#[test]
fn values_get_the_oids_of_home() {
    check_value(Shape::Array, &|add| array(MOOD + add, &[b"sad", b"ok"]));
    check_value(Shape::Array, &|_| array(23, &[&[0, 0, 0, 1]]));
    check_value(Shape::Record, &|add| {
        record(&[(23, None), (MOOD + add, Some(b"sad"))])
    });
    let spot = |add: u32| {
        record(&[
            (MOODS + add, Some(&array(MOOD + add, &[b"ok"]))),
            (25, None),
        ])
    };
    check_value(Shape::Record, &spot);
    check_value(Shape::Array, &|add| {
        array(SPOT + add, &[&spot(add), &spot(add)])
    });
    check_value(Shape::Array, &|add| array(2249, &[&spot(add)]));
    check_value(Shape::Range(SPOT), &|add| {
        [vec![2], sized(&spot(add)), sized(&spot(add))].concat()
    });
    check_value(Shape::Multirange(SPOT), &|add| {
        let range = [vec![2], sized(&spot(add))].concat();
        [vec![0, 0, 0, 1], sized(&range)].concat()
    });
    check_value(Shape::Plain, &|_| MOOD.to_be_bytes().to_vec());
}

#[test]
fn descriptions_get_the_oids_of_home() {
    let columns = |add| {
        vec![
            (TABLE + add, 23, 1),
            (TABLE + add, MOOD + add, 0),
            (0, SPOTS + add, 1),
        ]
    };
    let mut frame = description(&columns(0));
    let described = row_description(&map(), &mut frame).expect("translates");
    assert_eq!(frame, description(&columns(HOME)));
    assert!(!described.plain);
    let shapes = [Shape::Plain, Shape::Plain, Shape::Array];
    assert_eq!(described.columns.as_deref(), Some(&shapes[..]));
}

#[test]
fn text_and_enums_need_no_rewriting() {
    let mut frame = description(&[(0, MOODS, 0), (0, MOOD, 1)]);
    let described = row_description(&map(), &mut frame).expect("translates");
    assert_eq!(described.columns, None);
    assert!(!described.plain);
    let mut frame = description(&[(0, MOOD, 1), (0, 1007, 1)]);
    let described = row_description(&map(), &mut frame).expect("translates");
    assert!(described.plain);
}

#[test]
fn an_unknown_type_changes_nothing() {
    let mut frame = description(&[(0, MOOD, 0), (0, 30_000, 0)]);
    let before = frame.clone();
    let result = row_description(&map(), &mut frame);
    assert_eq!(result.err(), Some(Untranslated::Type(30_000)));
    assert_eq!(frame, before);
    let mut frame = row(&[&record(&[(MOOD, None), (30_000, None)])]);
    let before = frame.clone();
    let result = data_row(&map(), &[Shape::Record], &mut frame);
    assert_eq!(result, Err(Untranslated::Type(30_000)));
    assert_eq!(frame, before);
}

#[test]
fn an_unknown_table_is_looked_for_and_then_left_out() {
    let mut frame = description(&[(30_000, 23, 0)]);
    let mut old = map();
    old.read = None;
    let result = row_description(&old, &mut frame);
    assert_eq!(result.err(), Some(Untranslated::Table));
    row_description(&map(), &mut frame).expect("translates");
    assert_eq!(frame, description(&[(0, 23, 0)]));
}

#[test]
fn parameter_types_get_the_oids_of_the_shard() {
    assert_eq!(map().to_shard(MOODS + HOME), Some(MOODS));
    assert_eq!(map().to_shard(25), Some(25));
    assert_eq!(map().to_shard(MOODS), None);
}

#[test]
fn parameter_descriptions_get_the_oids_of_home() {
    let body = |add: u32| {
        [
            &[0, 2][..],
            &25u32.to_be_bytes(),
            &(MOOD + add).to_be_bytes(),
        ]
        .concat()
    };
    let mut frame = framed(b't', &body(0));
    parameter_description(&map(), &mut frame).expect("translates");
    assert_eq!(frame, framed(b't', &body(HOME)));
}

#[test]
fn truncated_frames_are_malformed() {
    let spot = record(&[(MOODS, Some(&array(MOOD, &[b"ok"]))), (25, None)]);
    let whole = row(&[&array(SPOT, &[&spot])]);
    for length in 0..whole.len() {
        let mut frame = whole[..length].to_vec();
        let result = data_row(&map(), &[Shape::Array], &mut frame);
        assert_eq!(result, Err(Untranslated::Malformed), "{length}");
        let mut frame = description(&[(TABLE, MOOD, 1)]);
        frame.truncate(length.min(frame.len() - 1));
        assert!(row_description(&map(), &mut frame).is_err());
    }
}

#[test]
fn nonsense_never_panics() {
    let map = map();
    let shapes = [
        Shape::Array,
        Shape::Record,
        Shape::Range(SPOT),
        Shape::Multirange(SPOT),
    ];
    // A generator of one line will do: what matters is that many bytes are odd.
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u32
    };
    for round in 0..20_000 {
        let mut value = array(SPOT, &[&record(&[(MOODS, Some(&array(MOOD, &[b"ok"])))])]);
        for _ in 0..1 + round % 4 {
            let at = next() as usize % value.len();
            value[at] = [0, 1, 0xff, 0x4e, next() as u8][next() as usize % 5];
        }
        for shape in shapes {
            let mut frame = row(&[&value]);
            let before = frame.clone();
            if data_row(&map, &[shape], &mut frame).is_err() {
                assert_eq!(frame, before);
            }
        }
        let mut frame = framed(b'T', &value);
        let _ = row_description(&map, &mut frame);
        let mut frame = framed(b't', &value);
        let _ = parameter_description(&map, &mut frame);
    }
}

#[test]
fn deep_nesting_is_refused() {
    let mut value = record(&[(25, None)]);
    for _ in 0..DEPTH_MAX + 1 {
        value = record(&[(2249, Some(&value))]);
    }
    let mut frame = row(&[&value]);
    let result = data_row(&map(), &[Shape::Record], &mut frame);
    assert_eq!(result, Err(Untranslated::Malformed));
}
