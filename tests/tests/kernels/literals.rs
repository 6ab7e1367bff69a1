//! SQL expressions for values of a kernel's type: its edges, and random ones. Random values come
//! close to each other often, because values that differ in everything are ordered by their first
//! byte.

use automator67_proxy::order::Kernel;
use rand::{
    Rng,
    distr::uniform::{SampleRange, SampleUniform},
    rngs::StdRng,
    seq::IndexedRandom,
};

const DAY_SECONDS: u32 = 86_400;

/// A random value.
pub fn random(kernel: Kernel, random: &mut StdRng) -> String {
    match kernel {
        Kernel::Bool => random.random::<bool>().to_string(),
        Kernel::Int2 => quoted(integer(random, i16::MIN..=i16::MAX)),
        Kernel::Int4 => quoted(integer(random, i32::MIN..=i32::MAX)),
        Kernel::Int8 => quoted(integer(random, i64::MIN..=i64::MAX)),
        Kernel::Oid => quoted(near(random, 0..=20, 0..=u32::MAX)),
        Kernel::Float4 => float4(random),
        Kernel::Float8 => float8(random),
        Kernel::Numeric => numeric(random),
        Kernel::Date => {
            let days = near(random, -40..=40, -2_400_000..=2_000_000);
            format!("date '2000-01-01' + ({days})")
        }
        Kernel::Time => quoted(time(random)),
        Kernel::TimeTz => timetz(random),
        Kernel::Timestamp => timestamp("timestamp", random),
        Kernel::TimestampTz => timestamp("timestamptz", random),
        Kernel::Interval => interval(random),
        Kernel::Uuid => quoted(hex(random, 16..=16)),
        Kernel::Bytea => format!("'\\x{}'", hex(random, 0..=6)),
        Kernel::TextC => text(random, 12),
        Kernel::BpcharC => format!(
            "{} || repeat(' ', {})",
            text(random, 6),
            random.random_range(0..4)
        ),
        Kernel::Char => format!("({})::\"char\"", random.random::<i8>()),
        Kernel::Name => text(random, 70),
        Kernel::Money => {
            let cents = integer(random, i64::MIN..=i64::MAX);
            let sign = if cents < 0 { "-" } else { "" };
            let cents = cents.unsigned_abs();
            format!("'{sign}{}.{:02}'", cents / 100, cents % 100)
        }
        Kernel::PgLsn => {
            let [high, low] = [(); 2].map(|()| near(random, 0..=3, 0..=u32::MAX));
            format!("'{high:X}/{low:X}'")
        }
        Kernel::Macaddr => quoted(hex(random, 6..=6)),
        Kernel::Macaddr8 => quoted(hex(random, 8..=8)),
        Kernel::Varbit => {
            let size = random.random_range(0..=24);
            let bits: String = (0..size).map(|_| bit(random)).collect();
            quoted(bits)
        }
        Kernel::Inet => inet(random),
    }
}

/// The values at the ends of a type, and those that are easily taken for one another.
pub fn edges(kernel: Kernel) -> &'static [&'static str] {
    match kernel {
        Kernel::Bool => &["true", "false"],
        Kernel::Int2 => &["-32768", "-1", "0", "1", "32767", "255", "256"],
        Kernel::Int4 => &[
            "-2147483648",
            "-1",
            "0",
            "1",
            "2147483647",
            "65535",
            "65536",
        ],
        Kernel::Int8 => INT8,
        Kernel::Oid => &["0", "1", "2147483647", "2147483648", "4294967295"],
        Kernel::Float4 => FLOAT4,
        Kernel::Float8 => FLOAT8,
        Kernel::Numeric => NUMERIC,
        Kernel::Date => DATE,
        Kernel::Time => TIME,
        Kernel::TimeTz => TIMETZ,
        Kernel::Timestamp | Kernel::TimestampTz => TIMESTAMP,
        Kernel::Interval => INTERVAL,
        Kernel::Uuid => UUID,
        Kernel::Bytea => BYTEA,
        Kernel::TextC | Kernel::BpcharC | Kernel::Name => TEXT,
        Kernel::Char => CHAR,
        Kernel::Money => MONEY,
        Kernel::PgLsn => PG_LSN,
        Kernel::Macaddr => MACADDR,
        Kernel::Macaddr8 => MACADDR8,
        Kernel::Varbit => VARBIT,
        Kernel::Inet => INET,
    }
}

const DATE: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'4713-01-01 BC'",
    "'0001-01-01 BC'",
    "'0001-01-01'",
    "'1999-12-31'",
    "'2000-01-01'",
    "'5874897-12-31'",
];

const TIME: &[&str] = &[
    "'00:00:00'",
    "'00:00:00.000001'",
    "'12:00'",
    "'23:59:59.999999'",
    "'24:00:00'",
];

const TIMESTAMP: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'4713-01-01 00:00:00 BC'",
    "'0001-12-31 23:59:59.999999 BC'",
    "'0001-01-01 00:00:00'",
    "'1999-12-31 23:59:59.999999'",
    "'2000-01-01 00:00:00'",
    "'2000-01-01 00:00:00.000001'",
    "'294276-12-30 23:59:59.999999'",
];

const UUID: &[&str] = &[
    "'00000000-0000-0000-0000-000000000000'",
    "'00000000-0000-0000-0000-000000000001'",
    "'7fffffff-ffff-ffff-ffff-ffffffffffff'",
    "'80000000-0000-0000-0000-000000000000'",
    "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
];

const BYTEA: &[&str] = &[
    "'\\x'",
    "'\\x00'",
    "'\\x0000'",
    "'\\x01'",
    "'\\x7f'",
    "'\\x80'",
    "'\\xff'",
    "'\\xff00'",
];

const CHAR: &[&str] = &[
    "''",
    "'a'",
    "'A'",
    "' '",
    "(0)::\"char\"",
    "(1)::\"char\"",
    "(127)::\"char\"",
    "(-128)::\"char\"",
    "(-1)::\"char\"",
];

const PG_LSN: &[&str] = &[
    "'0/0'",
    "'0/1'",
    "'0/FFFFFFFF'",
    "'1/0'",
    "'7FFFFFFF/FFFFFFFF'",
    "'80000000/0'",
    "'FFFFFFFF/FFFFFFFF'",
];

const MACADDR: &[&str] = &[
    "'00:00:00:00:00:00'",
    "'00:00:00:ff:ff:ff'",
    "'00:00:01:00:00:00'",
    "'7f:ff:ff:00:00:00'",
    "'80:00:00:00:00:00'",
    "'ff:ff:ff:ff:ff:ff'",
];

const MACADDR8: &[&str] = &[
    "'00:00:00:00:00:00:00:00'",
    "'00:00:00:00:ff:ff:ff:ff'",
    "'00:00:00:01:00:00:00:00'",
    "'7f:ff:ff:ff:00:00:00:00'",
    "'80:00:00:00:00:00:00:00'",
    "'ff:ff:ff:ff:ff:ff:ff:ff'",
];

const VARBIT: &[&str] = &[
    "''",
    "'0'",
    "'00'",
    "'1'",
    "'10'",
    "'0000000'",
    "'00000000'",
    "'000000000'",
    "'11111111'",
    "'111111110'",
    "'111111111'",
    "'01111111'",
];

const INT8: &[&str] = &[
    "-9223372036854775808",
    "-1",
    "0",
    "1",
    "9223372036854775807",
    "4294967295",
    "4294967296",
];

const MONEY: &[&str] = &[
    "'-92233720368547758.08'",
    "'-0.01'",
    "'0'",
    "'-0'",
    "'0.01'",
    "'92233720368547758.07'",
];

const FLOAT4: &[&str] = &[
    "'NaN'",
    "'-NaN'",
    "'Infinity'",
    "'-Infinity'",
    "'0'",
    "'-0'",
    "'1e-45'",
    "'-1e-45'",
    "'1.1754944e-38'",
    "'3.4028235e38'",
    "'-3.4028235e38'",
    "'1'",
    "'1.0000001'",
    "'16777216'",
    "'16777218'",
];

const FLOAT8: &[&str] = &[
    "'NaN'",
    "'-NaN'",
    "'Infinity'",
    "'-Infinity'",
    "'0'",
    "'-0'",
    "'5e-324'",
    "'-5e-324'",
    "'2.2250738585072014e-308'",
    "'1.7976931348623157e308'",
    "'-1.7976931348623157e308'",
    "'1'",
    "'1.0000000000000002'",
    "'9007199254740992'",
    "'9007199254740994'",
];

const NUMERIC: &[&str] = &[
    "'NaN'",
    "'Infinity'",
    "'-Infinity'",
    "'0'",
    "'-0'",
    "'0.000'",
    "'1'",
    "'1.0'",
    "'1.00000000'",
    "'-1'",
    "'-1.0'",
    "'9999'",
    "'9999.9999'",
    "'10000'",
    "'10000.0'",
    "'10000.0001'",
    "'99999999'",
    "'100000000'",
    "'100000001'",
    "'-9999.9999'",
    "'-10000'",
    "'-10000.0001'",
    "'0.0001'",
    "'0.00010'",
    "'0.00009999'",
    "'0.00010001'",
    "'-0.0001'",
    "'1e-16383'",
    "'-1e-16383'",
    "'1e-16382'",
    "'1e131071'",
    "'-1e131071'",
    "repeat('9', 131072)",
    "repeat('9', 131072) || '.' || repeat('9', 16383)",
    "'-' || repeat('9', 131072)",
    "'1' || repeat('0', 131071) || '.' || repeat('0', 16382) || '1'",
];

const TIMETZ: &[&str] = &[
    "'00:00:00+00'",
    "'01:00:00+01'",
    "'23:00:00-01'",
    "'00:00:00+15:59:59'",
    "'24:00:00-15:59:59'",
    "'24:00:00+15:59:59'",
    "'00:00:00-15:59:59'",
    "'24:00:00+00'",
    "'12:00:00+05:30'",
    "'06:30:00+00'",
    "'12:00:00.000001+05:30'",
];

const INTERVAL: &[&str] = &[
    "'0'",
    "'1 mon'",
    "'30 days'",
    "'29 days 24:00:00'",
    "'720:00:00'",
    "'719:59:59.999999'",
    "'1 mon 00:00:00.000001'",
    "'1 mon -1 day'",
    "'29 days'",
    "'-1 mon'",
    "'-30 days'",
    "'1 mon -30 days'",
    "'1 year'",
    "'12 mons'",
    "'360 days'",
    "'365 days'",
    "'1 day -24:00:00'",
    "'2147483646 mons 2147483646 days 2562047788:00:54.775806'",
    "'-2147483647 mons -2147483647 days -2562047788:00:54.775807'",
    "'2147483646 mons'",
    "'2147483646 days'",
    "'2562047788:00:54.775806'",
    "'-2562047788:00:54.775807'",
];

const TEXT: &[&str] = &[
    "''",
    "' '",
    "'  '",
    "'a'",
    "'a '",
    "'a  '",
    "'A'",
    "'ab'",
    "'a b'",
    "' a'",
    "'B'",
    "'b'",
    "'_'",
    "'-'",
    "E'\\x01'",
    "E'\\t'",
    "E'a\\t'",
    "E'a\\x01'",
    "E'a\\n'",
    "E'\\x7f'",
    "'é'",
    "E'e\\u0301'",
    "'ß'",
    "'ss'",
    "E'\\uD7FF'",
    "E'\\uE000'",
    "E'\\uFFFD'",
    "E'\\uFFFF'",
    "E'\\U00010000'",
    "E'\\U0010FFFF'",
    "E'a\\u00A0'",
    "E'\\u3000'",
];

const INET: &[&str] = &[
    "'0.0.0.0'",
    "'0.0.0.0/0'",
    "'0.0.0.0/1'",
    "'10.0.0.0/8'",
    "'10.0.0.0/9'",
    "'10.0.0.0/32'",
    "'10.128.0.0/9'",
    "'127.255.255.255'",
    "'128.0.0.0/1'",
    "'128.0.0.0'",
    "'255.255.255.255'",
    "'::'",
    "'::/0'",
    "'::/128'",
    "'::ffff:10.0.0.0'",
    "'8000::/1'",
    "'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'",
    "'2001:db8::/32'",
    "'2001:db8::/33'",
    "'2001:db8::'",
];

fn quoted(value: impl std::fmt::Display) -> String {
    format!("'{value}'")
}

/// Half of the numbers are from the narrow range.
fn near<T, R>(random: &mut StdRng, narrow: R, wide: R) -> T
where
    T: SampleUniform,
    R: SampleRange<T>,
{
    if random.random() {
        random.random_range(narrow)
    } else {
        random.random_range(wide)
    }
}

fn integer<T, R>(random: &mut StdRng, all: R) -> T
where
    T: SampleUniform + From<i8> + PartialOrd,
    R: SampleRange<T>,
{
    if random.random() {
        random.random_range(T::from(-10)..T::from(10))
    } else {
        random.random_range(all)
    }
}

fn bit(random: &mut StdRng) -> char {
    // Rarely set, so that many begin alike.
    if random.random_ratio(1, 5) { '1' } else { '0' }
}

fn float4(random: &mut StdRng) -> String {
    if random.random() {
        return quoted(random.random_range(-8..8_i8));
    }
    let value = f32::from_bits(random.random());
    quoted(format!("{value:e}"))
}

fn float8(random: &mut StdRng) -> String {
    if random.random() {
        return quoted(random.random_range(-8..8_i8));
    }
    let value = f64::from_bits(random.random());
    quoted(format!("{value:e}"))
}

/// Numbers of all sizes, with equal ones that show other decimals, and ones that differ in the
/// last of many digits.
fn numeric(random: &mut StdRng) -> String {
    let sign = if random.random() { "-" } else { "" };
    let digits = |random: &mut StdRng, count: usize| -> String {
        let few = random.random::<bool>();
        let mut digit = || {
            let digit = if few {
                *b"0019".choose(random).unwrap_or(&b'0')
            } else {
                random.random_range(b'0'..=b'9')
            };
            char::from(digit)
        };
        (0..count).map(|_| digit()).collect()
    };
    let whole_size = random.random_range(1..=10);
    let decimals_size = random.random_range(0..=10);
    let mut value = digits(random, whole_size);
    if decimals_size > 0 {
        value = format!("{value}.{}", digits(random, decimals_size));
    }
    match random.random_range(0..4) {
        0 => value = format!("{value}e{}", random.random_range(-60..60)),
        1 => {
            value = format!(
                "{}.{}",
                random.random_range(0..12),
                ["0", "00", "10", "100"].choose(random).unwrap_or(&"0")
            )
        }
        _ => {}
    }
    format!("'{sign}{value}'")
}

fn time(random: &mut StdRng) -> String {
    let (seconds, micros) = if random.random() {
        (random.random_range(0..3), random.random_range(0..3))
    } else {
        let micros = random.random_range(0..1_000_000_u32);
        (random.random_range(0..DAY_SECONDS), micros)
    };
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

fn timetz(random: &mut StdRng) -> String {
    let sign = ['+', '-'].choose(random).unwrap_or(&'+');
    if random.random() {
        // Whole hours on both sides, so that the same instant comes in many zones.
        let hour = random.random_range(0..24);
        return format!("'{hour:02}:00:00{sign}{:02}'", random.random_range(0..16));
    }
    let (hours, minutes) = (random.random_range(0..16), random.random_range(0..60));
    let seconds = random.random_range(0..60);
    format!(
        "'{}{sign}{hours:02}:{minutes:02}:{seconds:02}'",
        time(random)
    )
}

fn timestamp(name: &str, random: &mut StdRng) -> String {
    let days = near(random, -2..=2, -2_400_000..=100_000_000);
    format!(
        "{name} '2000-01-01' + interval '{days} days' + interval '{}'",
        time(random)
    )
}

fn interval(random: &mut StdRng) -> String {
    let months = near(random, -2..=2, -100_000_000..=100_000_000);
    let days = match random.random_range(0..3) {
        // Whole months, so that there are equal ones.
        0 => 30 * random.random_range(-3..=3),
        1 => random.random_range(-2..=2),
        _ => random.random_range(-1_000_000..=1_000_000),
    };
    let hours = match random.random_range(0..3) {
        0 => 24 * random.random_range(-31..=31),
        1 => 0,
        _ => random.random_range(-2_000_000_000..=2_000_000_000_i64),
    };
    let micros = random.random_range(0..3);
    format!("'{months} mons {days} days {hours:+}:00:00.{micros:06}'")
}

/// Few different bytes at first, so that many begin alike.
fn hex(random: &mut StdRng, size: std::ops::RangeInclusive<usize>) -> String {
    let size = random.random_range(size);
    let wild = random.random::<bool>();
    (0..size)
        .map(|_| {
            let byte = if wild {
                random.random()
            } else {
                *[0x00, 0x7F, 0x80, 0xFF].choose(random).unwrap_or(&0_u8)
            };
            format!("{byte:02x}")
        })
        .collect()
}

/// Characters that languages, cases, widths of UTF-8 and UTF-16 would put in another order.
fn text(random: &mut StdRng, size_max: usize) -> String {
    const ALPHABET: &[char] = &[
        'a',
        'a',
        'a',
        'b',
        'A',
        'B',
        'z',
        'Z',
        '0',
        '9',
        ' ',
        ' ',
        '-',
        '_',
        '"',
        '\\',
        '\t',
        '\u{1}',
        '\u{7F}',
        'ä',
        'é',
        'ß',
        'ı',
        'İ',
        'ж',
        '中',
        '\u{E000}',
        '\u{FFFD}',
        '😀',
        '\u{10FFFF}',
    ];
    let size = random.random_range(0..=size_max);
    let wild = random.random::<bool>();
    let text: String = (0..size)
        .map(|_| {
            if wild {
                random.random_range('\u{1}'..=char::MAX)
            } else {
                *ALPHABET.choose(random).unwrap_or(&'a')
            }
        })
        .collect();
    quoted(text.replace('\'', "''"))
}

fn inet(random: &mut StdRng) -> String {
    let octet = |random: &mut StdRng| *[0, 1, 10, 127, 128, 255].choose(random).unwrap_or(&0_u8);
    if random.random() {
        let [a, b, c, d] = [(); 4].map(|()| octet(random));
        format!("'{a}.{b}.{c}.{d}/{}'", random.random_range(0..=32))
    } else {
        let groups = [(); 8].map(|()| {
            let group = u16::from_be_bytes([octet(random), octet(random)]);
            format!("{group:x}")
        });
        format!("'{}/{}'", groups.join(":"), random.random_range(0..=128))
    }
}
