//! Rows to insert, merge or join: of every kind of table, each with a unique number.

use super::{Maker, schema::Table};

/// A SELECT in parts; `key` is unique among its rows.
pub(super) struct Source {
    /// An int.
    pub(super) key: &'static str,
    /// A text, perhaps NULL.
    pub(super) text: &'static str,
    /// An int, perhaps NULL.
    pub(super) number: &'static str,
    pub(super) from: &'static str,
    /// What makes joins complete.
    pub(super) condition: &'static str,
    pub(super) group: &'static str,
}

const fn source(
    key: &'static str,
    text: &'static str,
    number: &'static str,
    from: &'static str,
) -> Source {
    Source {
        key,
        text,
        number,
        from,
        condition: "true",
        group: "",
    }
}

const fn grouped(
    key: &'static str,
    text: &'static str,
    number: &'static str,
    from: &'static str,
) -> Source {
    Source {
        group: key,
        ..source(key, text, number, from)
    }
}

const fn joined(
    key: &'static str,
    text: &'static str,
    number: &'static str,
    from: &'static str,
    condition: &'static str,
) -> Source {
    Source {
        condition,
        ..source(key, text, number, from)
    }
}

const SOURCES: [Source; 19] = [
    source("a.id", "a.name", "a.score", "owners a"),
    source("a.id", "a.grade", "a.twice", "owners a"),
    source("(a.owner * 10000 + a.n)", "a.label", "a.n % 100", "items a"),
    grouped("a.owner", "min(a.label)", "count(*)::int", "items a"),
    grouped("(a.n % 40)", "max(a.code)", "sum(a.owner)::int", "items a"),
    source(
        "substr(a.name, 2)::int",
        "a.note",
        "a.weight + a.changed",
        "tags a",
    ),
    grouped("a.id", "min(a.kind)", "sum(a.amount)::int", "events a"),
    grouped(
        "a.account::int",
        "max(a.kind)",
        "count(a.amount)::int",
        "events a",
    ),
    source("substr(a.code, 2)::int", "a.note", "a.factor", "rates a"),
    source("a.ref", "a.body", "length(a.body)", "notes a"),
    source(
        "a.g",
        "'w' || a.g % 8",
        "a.g % 7",
        "generate_series(3, 9) a (g)",
    ),
    source(
        "a.k",
        "a.t",
        "a.n",
        "(values (4, 'n1', 5), (41, null, 6), (77, 'w2', null)) a (k, t, n)",
    ),
    joined(
        "(a.id * 10000 + b.n)",
        "b.label",
        "a.score + b.n % 9",
        "owners a join items b on b.owner = a.id",
        "true",
    ),
    joined(
        "a.id",
        "b.note",
        "b.weight",
        "owners a, tags b",
        "b.name = 't' || a.id",
    ),
    joined(
        "a.id",
        "b.note",
        "b.factor * 3",
        "owners a left join rates b on b.code = a.grade",
        "true",
    ),
    source("a.id", "a.body", "a.n", "drafts a"),
    source("a.id", "a.body", "a.n * 2", "recent a"),
    joined(
        "a.id",
        "b.name",
        "a.n",
        "drafts a join owners b on b.id = a.id",
        "true",
    ),
    joined(
        "a.id",
        "b.body",
        "a.score",
        "owners a join notes b on b.ref = a.id",
        "true",
    ),
];

impl Maker {
    pub(super) fn source(&mut self) -> &'static Source {
        &SOURCES[self.random.below(SOURCES.len())]
    }

    /// A condition on the rows of `source`.
    pub(super) fn filter(&mut self, source: &Source) -> String {
        let key = match source.group {
            "" => source.key,
            group => group,
        };
        let extra = match self.random.below(6) {
            0 => "true".to_owned(),
            1 => format!("{key} = {}", self.known()),
            2 => {
                let (first, second, third) = (self.known(), self.known(), self.known());
                format!("{key} in ({first}, {second}, {third})")
            }
            3 => {
                let low = self.random.between(1, 25);
                format!("{key} between {low} and {}", low + 8)
            }
            4 => format!("{key} % 3 = {}", self.int(0, 2)),
            _ => format!("{key} < {}", self.int(5, 25)),
        };
        match (source.condition, extra.as_str()) {
            ("true", "true") => String::new(),
            ("true", extra) => format!(" where {extra}"),
            (condition, "true") => format!(" where {condition}"),
            (condition, extra) => format!(" where {condition} and {extra}"),
        }
    }

    /// A subquery of three columns `k`, `t`, `n`, of which `k` is unique.
    pub(super) fn subquery(&mut self) -> String {
        let source = self.source();
        let filter = self.filter(source);
        let Source {
            key,
            text,
            number,
            from,
            group,
            ..
        } = source;
        let group = match *group {
            "" => String::new(),
            group => format!(" group by {group}"),
        };
        format!("(select {key} as k, {text} as t, {number} as n from {from}{filter}{group})")
    }

    /// A condition on `table` under `alias`, with its WHERE; seldom none.
    pub(super) fn condition(&mut self, table: Table, alias: &str) -> String {
        if self.random.chance(5) {
            return String::new();
        }
        let first = self.term(table, alias);
        match self.random.below(8) {
            0 => format!(" where {first} and {}", self.term(table, alias)),
            1 => format!(" where ({first} or {})", self.term(table, alias)),
            _ => format!(" where {first}"),
        }
    }

    fn term(&mut self, table: Table, a: &str) -> String {
        match self.random.below(10) {
            0..=3 => self.by_key(table, a),
            4..=6 => self.by_column(table, a),
            _ => self.by_subquery(table, a),
        }
    }

    pub(super) fn by_key(&mut self, table: Table, a: &str) -> String {
        let many = self.random.chance(35);
        match table {
            Table::Owners if many => {
                format!(
                    "{a}.id in ({}, {}, {})",
                    self.known(),
                    self.known(),
                    self.known()
                )
            }
            Table::Owners => format!("{a}.id = {}", self.known()),
            Table::Items if many => format!("{a}.owner in ({}, {})", self.known(), self.known()),
            Table::Items => format!("{a}.owner = {}", self.known()),
            Table::Tags if many => format!("{a}.name in ({}, {})", self.tag(), self.tag()),
            Table::Tags => format!("{a}.name = {}", self.tag()),
            Table::Events if many => {
                format!("{a}.account in ({}, {})", self.int(0, 12), self.int(0, 12))
            }
            Table::Events => format!("{a}.account = {}", self.int(0, 12)),
            Table::Rates => format!("{a}.code = {}", self.code()),
            Table::Notes => format!("{a}.ref = {}", self.known()),
        }
    }

    fn by_column(&mut self, table: Table, a: &str) -> String {
        let number = self.int(0, 30);
        match (table, self.random.chance(50)) {
            (Table::Owners, true) => format!("{a}.score < {number}"),
            (Table::Owners, false) => format!("{a}.name = {}", self.word()),
            (Table::Items, true) => format!("{a}.n between {number} and {number} + 9"),
            (Table::Items, false) => format!("{a}.label = {}", self.word()),
            (Table::Tags, true) => format!("{a}.weight = {number} % 6"),
            (Table::Tags, false) => format!("{a}.note = {}", self.word()),
            (Table::Events, true) => format!("{a}.id = {number}"),
            (Table::Events, false) => format!("{a}.kind = {}", self.word()),
            (Table::Rates, true) => format!("{a}.factor > {number} % 6"),
            (Table::Rates, false) => format!("{a}.note like {}", self.text("rate%")),
            (Table::Notes, true) => format!("{a}.ref < {number} % 12"),
            (Table::Notes, false) => format!("{a}.body = {}", self.word()),
        }
    }

    /// An expression of `table` that can be compared with keys of sources.
    pub(super) fn joinable(&mut self, table: Table, a: &str) -> String {
        match (table, self.random.chance(70)) {
            (Table::Owners, true) => format!("{a}.id"),
            (Table::Owners, false) => format!("{a}.score"),
            (Table::Items, true) => format!("{a}.owner"),
            (Table::Items, false) => format!("{a}.n"),
            (Table::Tags, true) => format!("substr({a}.name, 2)::int"),
            (Table::Tags, false) => format!("{a}.weight"),
            (Table::Events, true) => format!("{a}.account"),
            (Table::Events, false) => format!("{a}.id"),
            (Table::Rates, true) => format!("substr({a}.code, 2)::int"),
            (Table::Rates, false) => format!("{a}.factor"),
            (Table::Notes, _) => format!("{a}.ref"),
        }
    }

    fn by_subquery(&mut self, table: Table, a: &str) -> String {
        if self.random.chance(25) {
            return self.by_usual_subquery(table, a);
        }
        let value = self.joinable(table, a);
        let rows = self.subquery();
        match self.random.below(6) {
            0 => format!("{value} in (select k from {rows} s)"),
            1 => format!("{value} not in (select k from {rows} s)"),
            2 => format!("exists (select 1 from {rows} s where s.k = {value})"),
            3 => format!("not exists (select 1 from {rows} s where s.k = {value})"),
            4 => format!("{value} > (select avg(n) from {rows} s)"),
            _ => format!("{value} < (select max(s.n) from {rows} s where s.k = {value})"),
        }
    }

    /// What applications write.
    fn by_usual_subquery(&mut self, table: Table, a: &str) -> String {
        match table {
            Table::Owners => format!(
                "exists (select 1 from items i where i.owner = {a}.id and i.n > {})",
                self.int(5, 60)
            ),
            Table::Items => format!(
                "{a}.owner in (select o.id from owners o where o.score > {})",
                self.int(5, 60)
            ),
            Table::Tags => format!("{a}.note in (select b.body from notes b)"),
            Table::Events => {
                format!("{a}.account = (select max(b.account) from events b where b.id = {a}.id)")
            }
            Table::Rates => format!("not exists (select 1 from items i where i.code = {a}.code)"),
            Table::Notes => format!("{a}.ref in (select o.id from owners o)"),
        }
    }

    /// A RETURNING clause, or none.
    pub(super) fn returning(&mut self, table: Table, alias: Option<&str>) -> String {
        if self.random.chance(50) {
            return String::new();
        }
        let prefix = alias.map(|alias| format!("{alias}.")).unwrap_or_default();
        let list = match (table, self.random.below(3)) {
            (_, 0) if alias.is_none() => "*".to_owned(),
            (_, 0) => format!("{prefix}*"),
            (Table::Owners, 1) => format!("{prefix}id, {prefix}twice, {prefix}touched + 1"),
            (Table::Owners, _) => format!("upper({prefix}name) as n, {prefix}ticket"),
            (Table::Items, 1) => format!("{prefix}n, {prefix}owner"),
            (Table::Items, _) => format!("{prefix}price * 2 as p, {prefix}label, {prefix}code"),
            (Table::Tags, 1) => format!("{prefix}changed, {prefix}name"),
            (Table::Tags, _) => format!("{prefix}weight + 1"),
            (Table::Events, 1) => format!("{prefix}account, {prefix}id, {prefix}kind"),
            (Table::Events, _) => format!("coalesce({prefix}amount, 0) as a, {prefix}turn"),
            (Table::Rates, _) => format!("{prefix}code, {prefix}factor"),
            (Table::Notes, _) => format!("{prefix}ref, {prefix}body"),
        };
        format!(" returning {list}")
    }
}
