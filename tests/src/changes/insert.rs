//! INSERT of rows and of SELECTs, with every ON CONFLICT, and COPY FROM STDIN.

use std::fmt::Write as _;

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn insert(&mut self, table: Table) -> String {
        match self.random.below(10) {
            0..=5 => self.insert_values(table),
            _ => self.insert_select(table),
        }
    }

    /// A key that is mostly free, when a second row with it would be an error.
    fn new_key(&mut self, free: bool) -> i64 {
        match free && self.random.chance(85) {
            true => self.random.between(41, 9000),
            false => self.random.between(1, 45),
        }
    }

    pub(super) fn columns(table: Table) -> &'static str {
        match table {
            Table::Owners => "id, name, score, grade",
            Table::Items => "owner, n, label, price, code",
            Table::Tags => "name, weight, note",
            Table::Events => "id, account, kind, amount",
            Table::Rates => "code, factor, note",
            Table::Notes => "body, ref",
        }
    }

    /// A row for [`Maker::columns`].
    fn row(&mut self, table: Table, free: bool) -> String {
        let key = self.new_key(free);
        let number = self.random.between(0, 900);
        let number = match self.random.chance(20) {
            true => "default".to_owned(),
            false => self.int(number, number),
        };
        let word = self.word();
        match table {
            Table::Owners => {
                let name = match self.random.chance(20) {
                    true => "default".to_owned(),
                    false => word,
                };
                let grade = match self.random.chance(40) {
                    true => "null".to_owned(),
                    false => self.code(),
                };
                format!("({}, {name}, {number}, {grade})", self.int(key, key))
            }
            Table::Items => {
                let price = self.one_of(&["default", "null", "12.345", "0.1 + 0.2", "7"]);
                let code = self.one_of(&["default", "null", "'r1'", "'r2'"]);
                let owner = self.int(1, 32);
                format!("({owner}, {}, {word}, {price}, {code})", self.int(key, key))
            }
            Table::Tags => {
                let name = self.text(&format!("t{key}"));
                format!("({name}, {number}, {word})")
            }
            Table::Events => {
                let account = self.int(0, 15);
                format!("({}, {account}, {word}, {number})", self.int(key, key))
            }
            Table::Rates => {
                let code = self.text(&format!("r{}", key % 50 + 1));
                format!("({code}, {} + 1, {word})", self.int(0, 9))
            }
            Table::Notes => format!("({word}, {})", self.int(key, key)),
        }
    }

    fn insert_values(&mut self, table: Table) -> String {
        let conflict = self.conflict(table);
        let free = conflict.is_empty();
        // Rows of items whose owner may be missing come alone, unless nothing else can be wrong.
        let count = match (table, self.random.chance(50)) {
            (Table::Items, _) if free => 1,
            (_, true) => 1,
            (_, false) => self.random.between(2, 6),
        };
        let rows: Vec<String> = (0..count).map(|_| self.row(table, free)).collect();
        let returning = self.returning(table, None);
        let (name, columns) = (table.name(), Maker::columns(table));
        if count > 1 && self.random.chance(10) && !rows.concat().contains("default") {
            let rows = rows.join(", ");
            return format!(
                "insert into {name} ({columns}) select * from (values {rows}) v ({columns}){conflict}{returning}"
            )
            .replace("null", "null::text");
        }
        format!(
            "insert into {name} ({columns}) values {}{conflict}{returning}",
            rows.join(", ")
        )
    }

    /// What is the primary key, or the unique column.
    fn arbiter(table: Table) -> &'static str {
        match table {
            Table::Owners => "id",
            Table::Items => "owner, n",
            Table::Tags => "name",
            Table::Events => "id, account",
            Table::Rates => "code",
            Table::Notes => "ref",
        }
    }

    /// ON CONFLICT, or nothing.
    fn conflict(&mut self, table: Table) -> String {
        let arbiter = Maker::arbiter(table);
        let changes = match (table, self.random.below(3)) {
            (Table::Owners, 0) => "score = (owners.score + excluded.score) % 1000",
            (Table::Owners, 1) => "name = excluded.name || owners.name, grade = null",
            (Table::Owners, _) => "(name, score) = (excluded.name, excluded.score)",
            (Table::Items, 0) => "label = excluded.label",
            (Table::Items, _) => "price = excluded.price + items.price, code = default",
            (Table::Tags, 0) => "weight = tags.weight + 1",
            (Table::Tags, _) => "weight = excluded.weight, note = excluded.note",
            (Table::Events, 0) => "kind = excluded.kind",
            (Table::Events, _) => "amount = coalesce(events.amount, 0) + excluded.amount",
            (Table::Rates, _) => "factor = rates.factor + 1, note = excluded.note",
            (Table::Notes, _) => "body = notes.body || excluded.body",
        };
        let condition = match (table, self.random.chance(30)) {
            (_, false) => "",
            (Table::Owners, _) => " where owners.score < excluded.score",
            (Table::Items, _) => " where items.n % 2 = 0",
            (Table::Tags, _) => " where tags.weight < 4",
            (Table::Events, _) => " where excluded.amount is not null",
            (Table::Rates, _) => " where rates.factor < 4",
            (Table::Notes, _) => " where notes.ref > 6",
        };
        match self.random.below(10) {
            0..=3 => String::new(),
            4 => " on conflict do nothing".to_owned(),
            5 => format!(" on conflict ({arbiter}) do nothing"),
            _ => format!(" on conflict ({arbiter}) do update set {changes}{condition}"),
        }
    }

    /// Expressions for [`Maker::columns`] from a key, a text and a number; keys stay different.
    pub(super) fn mapped(table: Table, offset: i64, key: &str, text: &str, number: &str) -> String {
        match table {
            Table::Owners => format!(
                "{key} + {offset}, coalesce({text}, 'x'), coalesce({number}, 1) % 900, {text}"
            ),
            Table::Items => format!("{key} % 40, {key} + {offset}, {text}, {number} * 0.5, null"),
            Table::Tags => format!("'t' || ({key} + {offset}), coalesce({number}, 3), {text}"),
            Table::Events => {
                format!("{key} + {offset}, {key} % 13, coalesce({text}, 'k0'), {number}")
            }
            Table::Rates => {
                format!("'r' || ({key} + {offset}), 1 + abs(coalesce({number}, 0)), {text}")
            }
            Table::Notes => format!("{text}, {key} + {offset}"),
        }
    }

    fn insert_select(&mut self, table: Table) -> String {
        let source = self.source();
        let filter = self.filter(source);
        let offset = self.random.pick(&[0, 0, 50, 700, 20_000]);
        let mut conflict = self.conflict(table);
        let mut condition = filter;
        if table == Table::Items && source.group.is_empty() && conflict.is_empty() {
            // Owners that are missing shall be what is wrong, or keys that are there, not both.
            conflict = " on conflict do nothing".to_owned();
        } else if table == Table::Items && conflict.is_empty() {
            condition = format!(
                "{} exists (select 1 from owners e where e.id = {} % 40)",
                match condition.is_empty() {
                    true => " where".to_owned(),
                    false => format!("{condition} and"),
                },
                source.group
            );
        }
        let list = Maker::mapped(table, offset, source.key, source.text, source.number);
        let group = match source.group {
            "" => String::new(),
            group => format!(" group by {group}"),
        };
        let order = match table.is_numbered() || self.random.chance(10) {
            true => format!(" order by {}", source.key),
            false => String::new(),
        };
        let limit = match !order.is_empty() && self.random.chance(20) {
            true => " limit 5",
            false => "",
        };
        let (name, columns) = (table.name(), Maker::columns(table));
        let with = self.random.chance(10);
        let returning = self.returning(table, None);
        let query = format!("select {list} from {}{condition}{group}", source.from);
        if with {
            self.shuffles_numbers |= table.is_numbered();
            return format!(
                "with w ({columns}) as ({query}{order}{limit}) insert into {name} ({columns}) \
                 select * from w{conflict}{returning}"
            );
        }
        format!("insert into {name} ({columns}) {query}{order}{limit}{conflict}{returning}")
    }

    /// COPY and its rows.
    pub(super) fn copy(&mut self) -> (String, String) {
        let table = self.table();
        let csv = self.random.chance(30);
        let mut rows = String::new();
        let mut used = Vec::new();
        for _ in 0..self.random.between(1, 12) {
            let key = self.new_key(true);
            if used.contains(&key) && self.random.chance(90) {
                continue;
            }
            used.push(key);
            let word = format!("w{}", self.random.below(9));
            let number = self.random.between(1, 30);
            let row = match table {
                Table::Owners => format!("{key}\t{word}\t{number}"),
                Table::Items => format!("{number}\t{}\t{word}", key + 20_000),
                Table::Tags => format!("t{key}\t{number}\t{word}"),
                Table::Events => format!("{key}\t{}\t{word}", number % 13),
                Table::Rates => format!("r{key}\t{number}\t{word}"),
                Table::Notes => format!("{word}\t{key}"),
            };
            let row = match csv {
                true => row.replace('\t', ","),
                false => row,
            };
            let _ = writeln!(rows, "{row}");
        }
        let columns = match table {
            Table::Owners => "id, name, score",
            Table::Items => "owner, n, label",
            Table::Tags => "name, weight, note",
            Table::Events => "id, account, kind",
            Table::Rates => "code, factor, note",
            Table::Notes => "body, ref",
        };
        let format = match csv {
            true => " with (format csv)",
            false => "",
        };
        let text = format!("copy {} ({columns}) from stdin{format}", table.name());
        (text, rows)
    }
}
