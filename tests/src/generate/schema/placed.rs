//! Tables by every kind of placement and with every type of key, and types of more than one part.

use super::{
    Bool, Date, Float8, Int2, Int4, Int8, Mood, Multirange, Numeric, Pair, Range, Rows, Table,
    TableColumn, Text, Timestamp, Timestamptz, Varchar, column, table,
};

const TINY: [TableColumn; 5] = [
    column("code", Int2, 40),
    column("n", Int4, 10),
    column("span", Range, 12),
    column("name", Text, 12),
    column("place", Pair, 20),
];

const TITLE: [TableColumn; 5] = [
    column("label", Varchar, 40),
    column("n", Int4, 10),
    column("kind", Mood, 4),
    column("place", Pair, 20),
    column("spans", Multirange, 12),
];

const DAILY: [TableColumn; 5] = [
    column("day", Date, 40),
    column("n", Int4, 10),
    column("f8", Float8, 30),
    column("spans", Multirange, 12),
    column("name", Text, 12),
];

const TICK: [TableColumn; 5] = [
    column("at", Timestamp, 40),
    column("n", Int4, 10),
    column("ratio", Numeric, 20),
    column("word", Text, 30),
    column("span", Range, 12),
];

const STAMP: [TableColumn; 5] = [
    column("atz", Timestamptz, 40),
    column("owner", Int8, 30),
    column("flag", Bool, 2),
    column("ratio", Numeric, 20),
    column("day", Date, 20),
];

const READING: [TableColumn; 5] = [
    column("id", Int8, 60),
    column("account_id", Int8, 40),
    column("n", Int4, 10),
    column("amount", Numeric, 40),
    column("at", Timestamp, 40),
];

const VISIT: [TableColumn; 4] = [
    column("day", Date, 30),
    column("line", Int4, 2),
    column("name", Text, 12),
    column("n", Int4, 10),
];

const REGION: [TableColumn; 4] = [
    column("word", Text, 5),
    column("line", Int4, 10),
    column("n", Int4, 10),
    column("flag", Bool, 2),
];

const TASK: [TableColumn; 4] = [
    column("id", Int4, 30),
    column("name", Text, 12),
    column("n", Int4, 10),
    column("day", Date, 20),
];

const STEP: [TableColumn; 4] = [
    column("task", Int4, 30),
    column("line", Int4, 2),
    column("name", Text, 12),
    column("amount", Numeric, 40),
];

const LOG: [TableColumn; 4] = [
    column("id", Int4, 40),
    column("day", Date, 30),
    column("n", Int4, 10),
    column("name", Text, 12),
];

const SCRATCH: [TableColumn; 4] = [
    column("id", Int4, 20),
    column("name", Text, 12),
    column("n", Int4, 10),
    column("price", Numeric, 20),
];

/// The tables.
pub(super) const TABLES: [Table; 12] = [
    table("tiny", 40, 1, &TINY).readable(),
    table("title", 40, 1, &TITLE),
    table("daily", 40, 1, &DAILY),
    table("tick", 40, 1, &TICK).readable(),
    table("stamp", 40, 1, &STAMP),
    table("reading", 60, 1, &READING).readable(),
    table("visit", 60, 2, &VISIT),
    table("region", 50, 2, &REGION),
    table("own.task", 30, 1, &TASK),
    table("own.step", 60, 2, &STEP),
    table("log", 40, 2, &LOG),
    table("scratch", 20, 1, &SCRATCH),
];

/// Makes them, but for the temporary one.
pub(super) const CREATE: [&str; 15] = [
    "create type pair as (a integer, b text)",
    "create schema own",
    "create table tiny (code smallint primary key, n integer, span int4range, name text, place pair)",
    "create table title (label varchar(12) primary key, n integer, kind mood, place pair, \
     spans int4multirange)",
    "create table daily (day date primary key, n integer, f8 double precision, \
     spans int4multirange, name text)",
    "create table tick (at timestamp primary key, n integer, ratio numeric, word text, \
     span int4range)",
    "create table stamp (atz timestamptz primary key, owner bigint, flag boolean, ratio numeric, \
     day date)",
    "create table reading (id bigint primary key, account_id bigint, n integer, amount numeric(10,2), \
     at timestamp)",
    "create table visit (day date not null, line integer not null, name text, n integer, \
     primary key (day, line))",
    "create table region (word text not null, line integer not null, n integer, flag boolean, \
     primary key (word, line))",
    "create table own.task (id integer primary key, name text, n integer, day date)",
    "create table own.step (task integer not null references own.task, line integer not null, \
     name text, amount numeric(10,2), primary key (task, line))",
    "create table log (id integer not null, day date not null, n integer, name text, \
     primary key (id, day)) partition by range (day)",
    "create table log_before partition of log for values from (minvalue) to ('2024-03-01')",
    "create table log_after partition of log for values from ('2024-03-01') to (maxvalue)",
];

/// Places them.
pub(super) const PLACE: [&str; 13] = [
    "select create_distributed_table('tiny', 'code')",
    "select create_distributed_table('title', 'label')",
    "select create_distributed_table('daily', 'day')",
    "select create_distributed_table('tick', 'at')",
    "select create_distributed_table('stamp', 'atz')",
    "select create_distributed_table('reading', 'id', 'range')",
    "select automator67.split_range('reading', '20')",
    "select automator67.split_range('reading', '40')",
    "select create_distributed_table('visit', 'day', 'range')",
    "select automator67.split_range('visit', '2024-02-22')",
    "select automator67.split_range('visit', '2024-03-01')",
    "select create_distributed_table('region', 'word', 'directory')",
    "select automator67.distribute_schema('own')",
];

/// What every session makes for itself.
pub(super) const OF_SESSION: [&str; 2] = [
    "create temporary table scratch (id integer primary key, name text, n integer, price numeric(10,2))",
    "insert into scratch select i, case when i % 5 > 0 then (array['ann', 'Bob', 'eve', 'w7'])[1 + i % 4] end, \
     nullif(i % 9, 4), i / 8.0 from generate_series(1, 20) i",
];

impl Rows {
    pub(super) fn placed(&self) -> Vec<String> {
        let (day, minute) = ("date '2024-02-15' + i", "i * interval '31 minutes'");
        vec![
            self.insert("tiny", 40, &[
                "i - 10".to_owned(),
                self.sometimes(201, 10, &self.pick(201, 10)),
                self.sometimes(202, 10, &self.span(202)),
                self.sometimes(203, 10, &self.word_of(203)),
                self.sometimes(204, 10, &self.pair(204)),
            ]),
            self.insert("title", 40, &[
                "'w' || i".to_owned(),
                self.sometimes(211, 10, &self.pick(211, 10)),
                self.sometimes(212, 10, &self.mood(212)),
                self.sometimes(213, 10, &self.pair(213)),
                self.sometimes(214, 10, &self.spans(214)),
            ]),
            self.insert("daily", 40, &[
                day.to_owned(),
                self.sometimes(221, 10, &self.pick(221, 10)),
                self.sometimes(222, 10, &self.float(222, "float8")),
                self.sometimes(223, 10, &self.spans(223)),
                self.sometimes(224, 10, &self.word_of(224)),
            ]),
            self.insert("tick", 40, &[
                format!("timestamp '2024-03-09 20:00' + {minute}"),
                self.sometimes(231, 10, &self.pick(231, 10)),
                self.sometimes(232, 10, &self.ratio(232)),
                self.sometimes(233, 10, &format!("'w' || {}", self.pick(233, 60))),
                self.sometimes(234, 10, &self.span(234)),
            ]),
            self.insert("stamp", 40, &[
                format!("timestamptz '2024-03-09 20:00+00' + {minute}"),
                self.sometimes(241, 10, &self.pick(241, 90)),
                self.sometimes(242, 10, &format!("{} = 0", self.pick(242, 2))),
                self.sometimes(243, 10, &self.ratio(243)),
                format!(
                    "case {} when 0 then date 'infinity' when 1 then date '-infinity' else {} end",
                    self.pick(244, 20),
                    self.day(245)
                ),
            ]),
            self.insert("reading", 60, &[
                "i".to_owned(),
                self.sometimes(251, 10, &format!("1 + {}", self.pick(251, 90))),
                self.sometimes(252, 10, &self.pick(252, 10)),
                self.sometimes(253, 10, &format!("{} / 4.0", self.pick(253, 100))),
                self.sometimes(254, 10, &self.timestamp(254, "timestamp")),
            ]),
            self.insert("visit", 60, &[
                "date '2024-02-15' + (i / 2)".to_owned(),
                "i % 2".to_owned(),
                self.sometimes(261, 10, &self.word_of(261)),
                self.sometimes(262, 10, &self.pick(262, 10)),
            ]),
            self.insert("region", 50, &[
                "'w' || i % 5".to_owned(),
                "i / 5".to_owned(),
                self.sometimes(271, 10, &self.pick(271, 10)),
                self.sometimes(272, 10, &format!("{} = 0", self.pick(272, 2))),
            ]),
            self.insert("own.task", 30, &[
                "i".to_owned(),
                self.sometimes(281, 10, &self.word_of(281)),
                self.sometimes(282, 10, &self.pick(282, 10)),
                self.sometimes(283, 10, &self.day(283)),
            ]),
            self.insert("own.step", 60, &[
                "1 + (i - 1) / 2".to_owned(),
                "i % 2".to_owned(),
                self.sometimes(291, 10, &self.word_of(291)),
                self.sometimes(292, 10, &format!("{} / 4.0", self.pick(292, 100))),
            ]),
            self.insert("log", 40, &[
                "i".to_owned(),
                self.day(301),
                self.sometimes(302, 10, &self.pick(302, 10)),
                self.sometimes(303, 10, &self.word_of(303)),
            ]),
        ]
    }

    fn span(&self, salt: u64) -> String {
        format!(
            "int4range({0}::int, {0}::int + {1}::int)",
            self.pick(salt, 12),
            self.pick(salt + 1, 6)
        )
    }

    fn spans(&self, salt: u64) -> String {
        format!(
            "int4multirange({}, int4range(20, 20 + {}::int))",
            self.span(salt),
            self.pick(salt + 2, 3)
        )
    }

    fn pair(&self, salt: u64) -> String {
        format!(
            "row({}, {})::pair",
            self.pick(salt, 9),
            self.word_of(salt + 1)
        )
    }

    /// Numbers, and what is none.
    fn ratio(&self, salt: u64) -> String {
        let pick = self.pick(salt, 30);
        format!(
            "case {pick} when 0 then 'NaN'::numeric when 1 then 'Infinity' when 2 then '-Infinity' \
             else trim_scale({pick} / 8.0) end"
        )
    }
}
