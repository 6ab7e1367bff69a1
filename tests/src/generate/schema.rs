//! The relations that generated statements read, and their rows.

mod placed;

/// A type as the generator sees it. Types between which Postgres converts without being asked
/// are kept apart, so that every expression has the type it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// smallint.
    Int2,
    /// integer.
    Int4,
    /// bigint.
    Int8,
    /// numeric with or without scale.
    Numeric,
    /// real.
    Float4,
    /// double precision.
    Float8,
    /// text.
    Text,
    /// varchar(12).
    Varchar,
    /// char(6).
    Char,
    /// The domain `short_text`.
    Domain,
    /// boolean.
    Bool,
    /// date.
    Date,
    /// timestamp.
    Timestamp,
    /// timestamptz.
    Timestamptz,
    /// interval.
    Interval,
    /// time.
    Time,
    /// uuid.
    Uuid,
    /// bytea.
    Bytea,
    /// json, which has no equality.
    Json,
    /// jsonb.
    Jsonb,
    /// integer[].
    Ints,
    /// text[].
    Texts,
    /// The enum `mood`.
    Mood,
    /// inet.
    Inet,
    /// int4range.
    Range,
    /// int4multirange.
    Multirange,
    /// The composite type `pair`.
    Pair,
    /// The row of a relation: each has a type of its own.
    Row,
}

use Type::{
    Bool, Bytea, Char, Date, Domain, Float4, Float8, Inet, Int2, Int4, Int8, Interval, Ints, Json,
    Jsonb, Mood, Multirange, Numeric, Pair, Range, Row, Text, Texts, Time, Timestamp, Timestamptz,
    Uuid, Varchar,
};

/// All but [`Type::Row`], which has no name.
pub const TYPES: [Type; 27] = [
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Char,
    Domain,
    Bool,
    Date,
    Timestamp,
    Timestamptz,
    Interval,
    Time,
    Uuid,
    Bytea,
    Json,
    Jsonb,
    Ints,
    Texts,
    Mood,
    Inet,
    Range,
    Multirange,
    Pair,
];

impl Type {
    /// Its name in a cast.
    pub fn name(self) -> &'static str {
        match self {
            Int2 => "int2",
            Int4 => "int4",
            Int8 => "int8",
            Numeric => "numeric",
            Float4 => "float4",
            Float8 => "float8",
            Text => "text",
            Varchar => "varchar(12)",
            Char => "char(6)",
            Domain => "short_text",
            Bool => "bool",
            Date => "date",
            Timestamp => "timestamp",
            Timestamptz => "timestamptz",
            Interval => "interval",
            Time => "time",
            Uuid => "uuid",
            Bytea => "bytea",
            Json => "json",
            Jsonb => "jsonb",
            Ints => "int4[]",
            Texts => "text[]",
            Mood => "mood",
            Inet => "inet",
            Range => "int4range",
            Multirange => "int4multirange",
            Pair => "pair",
            Row => "record",
        }
    }

    /// A whole number.
    pub fn is_integer(self) -> bool {
        matches!(self, Int2 | Int4 | Int8)
    }

    /// A binary floating-point number.
    pub fn is_float(self) -> bool {
        matches!(self, Float4 | Float8)
    }

    /// A string of characters.
    pub fn is_text(self) -> bool {
        matches!(self, Text | Varchar | Char | Domain)
    }

    /// Can be compared, sorted and grouped.
    pub fn is_comparable(self) -> bool {
        !matches!(self, Json | Row)
    }

    /// `min` and `max` exist.
    pub fn has_extremes(self) -> bool {
        !matches!(
            self,
            Bool | Uuid | Bytea | Json | Jsonb | Range | Multirange | Pair | Row
        )
    }
}

/// A column of a relation.
#[derive(Debug, Clone, Copy)]
pub struct TableColumn {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// Roughly how many different values it has.
    pub distinct: u32,
}

/// A table or view.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Roughly how many rows it has.
    pub rows: u32,
    /// How many of its first columns together identify a row; 0 when none do.
    pub identity: usize,
    /// Its columns.
    pub columns: &'static [TableColumn],
    /// The role `reader` may read it.
    pub readable: bool,
    /// A view.
    pub view: bool,
}

impl Table {
    const fn readable(self) -> Table {
        Table {
            readable: true,
            ..self
        }
    }

    const fn view(self) -> Table {
        Table { view: true, ..self }
    }
}

const fn column(name: &'static str, kind: Type, distinct: u32) -> TableColumn {
    TableColumn {
        name,
        kind,
        distinct,
    }
}

const ACCOUNT: [TableColumn; 15] = [
    column("id", Int8, 80),
    column("parent_id", Int8, 27),
    column("code", Int2, 20),
    column("n", Int4, 12),
    column("big", Int8, 40),
    column("price", Numeric, 80),
    column("ratio", Numeric, 30),
    column("f4", Float4, 40),
    column("f8", Float8, 40),
    column("name", Text, 12),
    column("label", Varchar, 8),
    column("flag", Bool, 2),
    column("day", Date, 30),
    column("at", Timestamp, 60),
    column("atz", Timestamptz, 60),
];

const ENTRY: [TableColumn; 10] = [
    column("account_id", Int8, 80),
    column("line", Int4, 4),
    column("qty", Int2, 10),
    column("amount", Numeric, 150),
    column("memo", Text, 12),
    column("kind", Mood, 4),
    column("spent", Interval, 20),
    column("day", Date, 30),
    column("n", Int4, 10),
    column("ok", Bool, 2),
];

const PRODUCT: [TableColumn; 11] = [
    column("id", Int4, 90),
    column("name", Text, 12),
    column("pad", Char, 8),
    column("tags", Texts, 12),
    column("nums", Ints, 12),
    column("data", Jsonb, 20),
    column("raw", Json, 10),
    column("weight", Float4, 30),
    column("price", Numeric, 80),
    column("made", Timestamptz, 60),
    column("account_id", Int8, 60),
];

const WORD: [TableColumn; 7] = [
    column("word", Text, 60),
    column("n", Int4, 15),
    column("short", Domain, 6),
    column("addr", Inet, 8),
    column("f8", Float8, 30),
    column("code", Int2, 20),
    column("kind", Mood, 4),
];

const DEVICE: [TableColumn; 9] = [
    column("id", Uuid, 70),
    column("owner", Int8, 50),
    column("body", Bytea, 10),
    column("seen", Timestamptz, 60),
    column("clock", Time, 20),
    column("spent", Interval, 20),
    column("addr", Inet, 8),
    column("word", Text, 60),
    column("n", Int4, 12),
];

const EVENT: [TableColumn; 8] = [
    column("seq", Int4, 250),
    column("account_id", Int8, 20),
    column("at", Timestamp, 100),
    column("kind", Mood, 4),
    column("amount", Numeric, 100),
    column("n", Int4, 10),
    column("data", Jsonb, 20),
    column("device", Uuid, 40),
];

const SPARSE: [TableColumn; 13] = [
    column("id", Int4, 100),
    column("a", Int4, 4),
    column("b", Int8, 4),
    column("name", Text, 4),
    column("price", Numeric, 10),
    column("f8", Float8, 6),
    column("flag", Bool, 2),
    column("day", Date, 5),
    column("atz", Timestamptz, 5),
    column("spent", Interval, 5),
    column("word", Text, 10),
    column("nums", Ints, 4),
    column("pad", Char, 4),
];

const COUNTRY: [TableColumn; 4] = [
    column("code", Int2, 12),
    column("name", Text, 12),
    column("rate", Numeric, 6),
    column("kind", Mood, 4),
];

const NOTE: [TableColumn; 6] = [
    column("id", Int4, 60),
    column("account_id", Int8, 40),
    column("body", Text, 12),
    column("label", Varchar, 8),
    column("day", Date, 30),
    column("f4", Float4, 20),
];

const WEALTH: [TableColumn; 6] = [
    column("account_id", Int8, 80),
    column("line", Int4, 4),
    column("name", Text, 12),
    column("amount", Numeric, 150),
    column("kind", Mood, 4),
    column("big", Int8, 40),
];

const BUSY: [TableColumn; 4] = [
    column("word", Text, 30),
    column("devices", Int8, 4),
    column("last", Timestamptz, 30),
    column("total", Int8, 20),
];

const fn table(
    name: &'static str,
    rows: u32,
    identity: usize,
    columns: &'static [TableColumn],
) -> Table {
    Table {
        name,
        rows,
        identity,
        columns,
        readable: false,
        view: false,
    }
}

const FIRST: [Table; 12] = [
    table("account", 80, 1, &ACCOUNT).readable(),
    table("entry", 200, 2, &ENTRY).readable(),
    table("product", 90, 1, &PRODUCT).readable(),
    table("word", 60, 1, &WORD),
    table("device", 70, 1, &DEVICE),
    table("event", 250, 1, &EVENT),
    table("sparse", 100, 1, &SPARSE),
    table("country", 12, 1, &COUNTRY).readable(),
    table("note", 60, 1, &NOTE).readable(),
    table("wealth", 200, 2, &WEALTH).view(),
    table("busy", 30, 1, &BUSY).view().readable(),
    table("kept", 200, 2, &WEALTH).view().readable(),
];

/// Everything that statements read.
pub const TABLES: [Table; 24] = {
    let mut all = [FIRST[0]; 24];
    let mut at = 0;
    while at < 12 {
        all[at] = FIRST[at];
        all[12 + at] = placed::TABLES[at];
        at += 1;
    }
    all
};

/// Makes the first tables; the same on every server.
const CREATE: [&str; 12] = [
    "create type mood as enum ('sad', 'ok', 'happy', 'angry')",
    "create domain short_text as text check (length(value) <= 8)",
    "create table account (id bigint primary key, parent_id bigint, code smallint not null, \
     n integer, big bigint, price numeric(10,2), ratio numeric, f4 real, f8 double precision, \
     name text, label varchar(12), flag boolean, day date, at timestamp, atz timestamptz)",
    "create table entry (account_id bigint, line integer, qty smallint, amount numeric(8,3), \
     memo text, kind mood, spent interval, day date, n integer, ok boolean, \
     primary key (account_id, line))",
    "create table product (id integer primary key, name text, pad char(6), tags text[], \
     nums integer[], data jsonb, raw json, weight real, price numeric(12,2), made timestamptz, \
     account_id bigint)",
    "create table word (word text primary key, n integer, short short_text, addr inet, \
     f8 double precision, code smallint, kind mood)",
    "create table device (id uuid primary key, owner bigint, body bytea, seen timestamptz, \
     clock time, spent interval, addr inet, word text, n integer)",
    "create table event (seq integer not null, account_id bigint not null, at timestamp, \
     kind mood, amount numeric, n integer, data jsonb, device uuid, primary key (account_id, seq))",
    "create table sparse (id integer primary key, a integer, b bigint, name text, \
     price numeric(10,2), f8 double precision, flag boolean, day date, atz timestamptz, \
     spent interval, word text, nums integer[], pad char(6))",
    "create table country (code smallint primary key, name text not null, rate numeric(6,4), \
     kind mood)",
    "create table note (id integer primary key, account_id bigint, body text, label varchar(12), \
     day date, f4 real)",
    "create index on event (at)",
];

const PLACE: [&str; 8] = [
    "select create_distributed_table('account', 'id')",
    "select create_distributed_table('entry', 'account_id', colocate_with => 'account')",
    "select create_distributed_table('product', 'id')",
    "select create_distributed_table('word', 'word')",
    "select create_distributed_table('device', 'id')",
    "select create_distributed_table('event', 'account_id', colocate_with => 'none')",
    "select create_distributed_table('sparse', 'id', colocate_with => 'none')",
    "select create_reference_table('country')",
];

/// Makes the tables; the same on every server.
pub fn create() -> impl Iterator<Item = &'static str> {
    CREATE.into_iter().chain(placed::CREATE)
}

/// Places them; for the program under test alone.
pub fn place() -> impl Iterator<Item = &'static str> {
    PLACE.into_iter().chain(placed::PLACE)
}

/// What every session makes for itself: a temporary table.
pub const OF_SESSION: [&str; 2] = placed::OF_SESSION;

/// Views, made when the tables have been placed, and who reads what: `keeper` has a view on tables
/// that `reader` may not see.
pub const VIEWS: [&str; 10] = [
    "create view wealth as select e.account_id, e.line, a.name, e.amount, e.kind, a.big \
     from account a join entry e on e.account_id = a.id where a.code > -4",
    "create view busy as select d.word, count(*) as devices, max(d.seen) as last, \
     sum(w.n) as total from device d left join word w on w.word = d.word \
     where d.word is not null group by d.word",
    "create view kept as select * from wealth",
    "create role keeper",
    "create role reader",
    "grant usage, create on schema public to keeper",
    "grant select on wealth to keeper",
    "alter view kept owner to keeper",
    "grant select on kept, account, entry, product, country, note, busy, tiny, tick, reading \
     to reader",
    "grant reader, keeper to app",
];

/// Words that text columns hold.
pub const WORDS: [&str; 12] = [
    "ann", "Bob", "eve", "", "zoë", "a b", "Zed", "bob", "ab", "x_y", "10", "9",
];

/// Words of `word.word`; they are followed by a number.
pub const KEYWORD: &str = "w";

/// Statements that fill the tables with rows that depend on `seed` alone.
pub fn fill(seed: u64) -> Vec<String> {
    let rows = Rows { seed: seed % 1000 };
    let mut all = vec![
        rows.account(),
        rows.entry(),
        rows.product(),
        rows.word(),
        rows.device(),
        rows.event(),
        rows.sparse(),
        rows.country(),
        rows.note(),
    ];
    all.extend(rows.placed());
    all
}

struct Rows {
    seed: u64,
}

impl Rows {
    /// A number from 0 to `bound` - 1 for row `i`; `salt` tells columns apart.
    fn pick(&self, salt: u64, bound: u64) -> String {
        let salt = self.seed * 1000 + salt;
        format!("(abs(hashint8extended(i::int8, {salt}) % {bound}))")
    }

    /// `value`, but NULL in `percent` of 100 rows.
    fn sometimes(&self, salt: u64, percent: u64, value: &str) -> String {
        format!(
            "case when {} >= {percent} then {value} end",
            self.pick(salt + 500, 100)
        )
    }

    /// One of the words.
    fn word_of(&self, salt: u64) -> String {
        let words: Vec<String> = WORDS.iter().map(|word| format!("'{word}'")).collect();
        let index = self.pick(salt, 12);
        format!("(array[{}])[1 + {index}]", words.join(", "))
    }

    fn mood(&self, salt: u64) -> String {
        let index = self.pick(salt, 4);
        format!("(array['sad', 'ok', 'happy', 'angry'])[1 + {index}]::mood")
    }

    /// Quarters between -10 and 10, with infinities and NaN: sums of them are exact in every
    /// order of addition.
    fn float(&self, salt: u64, kind: &str) -> String {
        let pick = self.pick(salt, 88);
        format!(
            "case {pick} when 81 then 'NaN'::{kind} when 82 then 'Infinity'::{kind} \
             when 83 then '-Infinity'::{kind} else (({pick} - 40) / 4.0)::{kind} end"
        )
    }

    fn day(&self, salt: u64) -> String {
        format!("(date '2024-02-15' + {}::int)", self.pick(salt, 30))
    }

    fn timestamp(&self, salt: u64, kind: &str) -> String {
        let minutes = self.pick(salt, 60);
        format!("({kind} '2024-03-09 20:00:00' + {minutes} * interval '17 minutes 30.25 seconds')")
    }

    /// Less than a day: equal intervals look alike.
    fn interval(&self, salt: u64) -> String {
        format!(
            "({} * interval '31 minutes 0.5 seconds')",
            self.pick(salt, 20)
        )
    }

    fn uuid(&self, number: &str) -> String {
        format!("('00000000-0000-4000-8000-' || lpad(({number})::text, 12, '0'))::uuid")
    }

    fn json(&self, salt: u64) -> String {
        let (a, b) = (self.pick(salt, 6), self.word_of(salt + 1));
        let c = self.pick(salt + 2, 3);
        format!("jsonb_build_object('a', {a}, 'b', {b}, 'c', jsonb_build_array({c}, null))")
    }

    fn insert(&self, table: &str, rows: u32, values: &[String]) -> String {
        format!(
            "insert into {table} select {} from generate_series(1, {rows}) i",
            values.join(", ")
        )
    }

    fn account(&self) -> String {
        let trimmed = format!("trim_scale({}::numeric / 8)", self.pick(6, 40));
        self.insert(
            "account",
            80,
            &[
                "i".to_owned(),
                "case when i > 2 then greatest(1, i / 3) end".to_owned(),
                format!("{} - 5", self.pick(2, 20)),
                self.sometimes(3, 10, &self.pick(3, 12)),
                self.sometimes(4, 5, &format!("{} * 1000", self.pick(4, 40))),
                self.sometimes(5, 10, &format!("{} / 100.0 - 5", self.pick(5, 2000))),
                self.sometimes(6, 10, &trimmed),
                self.sometimes(7, 10, &self.float(7, "float4")),
                self.sometimes(8, 10, &self.float(8, "float8")),
                self.sometimes(9, 10, &self.word_of(9)),
                self.sometimes(10, 10, &format!("left({}, 8)", self.word_of(10))),
                self.sometimes(11, 15, &format!("{} = 0", self.pick(11, 2))),
                self.sometimes(12, 5, &self.day(12)),
                self.sometimes(13, 5, &self.timestamp(13, "timestamp")),
                self.sometimes(14, 5, &self.timestamp(14, "timestamptz")),
            ],
        )
    }

    fn entry(&self) -> String {
        self.insert(
            "entry",
            200,
            &[
                // The last accounts have no entries, and some entries have no account.
                "1 + (i - 1) / 4 * 86 / 50".to_owned(),
                "1 + (i - 1) % 4".to_owned(),
                format!("{} - 2", self.pick(22, 10)),
                self.sometimes(23, 5, &format!("{} / 1000.0", self.pick(23, 9000))),
                self.sometimes(24, 10, &self.word_of(24)),
                self.sometimes(25, 5, &self.mood(25)),
                self.sometimes(26, 10, &self.interval(26)),
                self.day(27),
                self.sometimes(28, 20, &self.pick(28, 10)),
                self.sometimes(29, 20, &format!("{} = 0", self.pick(29, 2))),
            ],
        )
    }

    fn product(&self) -> String {
        let tags = format!("array[{}, {}]", self.word_of(33), self.word_of(34));
        let nums = format!("array[{}, {}]::int4[]", self.pick(35, 4), self.pick(36, 3));
        self.insert(
            "product",
            90,
            &[
                "i".to_owned(),
                self.sometimes(31, 5, &self.word_of(31)),
                self.sometimes(32, 10, &format!("left({}, 6)", self.word_of(32))),
                self.sometimes(33, 10, &tags),
                self.sometimes(35, 10, &nums),
                self.sometimes(37, 10, &self.json(37)),
                self.sometimes(40, 10, &format!("{}::json", self.json(40))),
                self.sometimes(44, 10, &self.float(44, "float4")),
                self.sometimes(45, 5, &format!("{} / 100.0", self.pick(45, 500))),
                self.sometimes(46, 10, &self.timestamp(46, "timestamptz")),
                self.sometimes(47, 20, &format!("1 + {}", self.pick(47, 90))),
            ],
        )
    }

    fn word(&self) -> String {
        self.insert(
            "word",
            60,
            &[
                format!("'{KEYWORD}' || i"),
                self.sometimes(51, 10, &self.pick(51, 15)),
                self.sometimes(52, 10, &format!("left({}, 4)", self.word_of(52))),
                self.sometimes(
                    53,
                    10,
                    &format!("('10.0.0.' || {})::inet", self.pick(53, 8)),
                ),
                self.sometimes(54, 10, &self.float(54, "float8")),
                format!("{} - 5", self.pick(55, 20)),
                self.sometimes(56, 20, &self.mood(56)),
            ],
        )
    }

    fn device(&self) -> String {
        let clock = format!("(time '08:00' + {})", self.interval(64));
        self.insert(
            "device",
            70,
            &[
                self.uuid("i"),
                self.sometimes(61, 10, &format!("1 + {}", self.pick(61, 90))),
                self.sometimes(
                    62,
                    10,
                    &format!("decode(lpad(to_hex({}), 4, '0'), 'hex')", self.pick(62, 10)),
                ),
                self.sometimes(63, 5, &self.timestamp(63, "timestamptz")),
                self.sometimes(64, 10, &clock),
                self.sometimes(65, 10, &self.interval(65)),
                self.sometimes(
                    66,
                    10,
                    &format!("('10.0.0.' || {})::inet", self.pick(66, 8)),
                ),
                self.sometimes(
                    67,
                    10,
                    &format!("'{KEYWORD}' || (1 + {})", self.pick(67, 70)),
                ),
                self.sometimes(68, 10, &self.pick(68, 12)),
            ],
        )
    }

    /// Four of five rows belong to one account.
    fn event(&self) -> String {
        let other = self.pick(71, 90);
        let account = format!(
            "case when {} < 80 then 7 else 1 + {other} end",
            self.pick(70, 100)
        );
        self.insert(
            "event",
            250,
            &[
                "i".to_owned(),
                account,
                self.sometimes(72, 5, &self.timestamp(72, "timestamp")),
                self.mood(73),
                self.sometimes(
                    74,
                    10,
                    &format!("trim_scale({} / 16.0)", self.pick(74, 100)),
                ),
                self.sometimes(75, 10, &self.pick(75, 10)),
                self.sometimes(76, 20, &self.json(76)),
                self.sometimes(79, 20, &self.uuid(&format!("1 + {}", self.pick(79, 80)))),
            ],
        )
    }

    fn sparse(&self) -> String {
        let nums = format!("array[{}, null]::int4[]", self.pick(91, 4));
        self.insert(
            "sparse",
            100,
            &[
                "i".to_owned(),
                self.sometimes(81, 70, &self.pick(81, 4)),
                self.sometimes(82, 70, &format!("1 + {}", self.pick(82, 4))),
                self.sometimes(83, 80, &self.word_of(83)),
                self.sometimes(84, 70, &format!("{} / 10.0", self.pick(84, 10))),
                self.sometimes(85, 70, &self.float(85, "float8")),
                self.sometimes(86, 70, &format!("{} = 0", self.pick(86, 2))),
                self.sometimes(87, 70, &self.day(87)),
                self.sometimes(88, 70, &self.timestamp(88, "timestamptz")),
                self.sometimes(89, 70, &self.interval(89)),
                self.sometimes(
                    90,
                    70,
                    &format!("'{KEYWORD}' || (1 + {})", self.pick(90, 10)),
                ),
                self.sometimes(91, 70, &nums),
                self.sometimes(92, 70, &format!("left({}, 6)", self.word_of(92))),
            ],
        )
    }

    fn country(&self) -> String {
        self.insert(
            "country",
            12,
            &[
                "i - 4".to_owned(),
                self.word_of(101),
                self.sometimes(102, 20, &format!("{} / 8.0", self.pick(102, 6))),
                self.sometimes(103, 20, &self.mood(103)),
            ],
        )
    }

    fn note(&self) -> String {
        self.insert(
            "note",
            60,
            &[
                "i".to_owned(),
                self.sometimes(111, 20, &format!("1 + {}", self.pick(111, 90))),
                self.sometimes(112, 10, &self.word_of(112)),
                self.sometimes(113, 10, &format!("left({}, 8)", self.word_of(113))),
                self.sometimes(114, 10, &self.day(114)),
                self.sometimes(115, 10, &self.float(115, "float4")),
            ],
        )
    }
}
