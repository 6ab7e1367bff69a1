//! UPDATE by keys and columns, with FROM and subqueries, and of shard keys.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn update(&mut self, table: Table) -> String {
        match self.random.below(20) {
            0..=9 => self.update_plain(table),
            10..=12 => self.update_from(table),
            13..=16 => self.update_subquery(table),
            // Keys of tables with triggers stay: one such refusal tells as much as two.
            17 if matches!(table, Table::Owners | Table::Tags) => self.update_plain(table),
            _ => self.update_key(table),
        }
    }

    /// Assignments from constants and the row itself.
    pub(super) fn assignments(&mut self, table: Table, a: &str) -> String {
        let number = self.int(1, 90);
        let word = self.word();
        if matches!(table, Table::Owners | Table::Events | Table::Notes) && self.random.chance(12) {
            return self.one_of(&["at = now()", "at = default", "at = current_timestamp"]);
        }
        match (table, self.random.below(4)) {
            (Table::Owners, 0) => format!("score = ({a}.score + {number}) % 1000"),
            (Table::Owners, 1) => format!("name = {word}, grade = {}", self.code()),
            (Table::Owners, 2) => format!(
                "score = case when {a}.score % 2 = 0 then {number} else -{a}.score end, name = default"
            ),
            (Table::Owners, _) => format!("(name, score) = ({a}.name || {word}, {number} + 1)"),
            (Table::Items, 0) => format!("label = {word}"),
            (Table::Items, 1) => format!("price = {a}.price * 1.5 + {number}"),
            (Table::Items, 2) => "code = null, price = default".to_owned(),
            (Table::Items, _) => format!("label = {a}.label || {a}.n"),
            (Table::Tags, 0) => format!("weight = {a}.weight + {number}"),
            (Table::Tags, _) => format!("note = {word} || {a}.changed"),
            (Table::Events, 0) => format!("amount = coalesce({a}.amount, 0) - {number}"),
            (Table::Events, 1) => format!("kind = {word}"),
            (Table::Events, _) => "kind = default, amount = null".to_owned(),
            (Table::Rates, 0) => format!("factor = {a}.factor % 7 + {number}"),
            (Table::Rates, _) => format!("note = {word}"),
            (Table::Notes, _) => format!("body = {word} || {a}.ref"),
        }
    }

    /// Assignments from a row `s (k, t, n)`.
    pub(super) fn joined_assignments(&mut self, table: Table, a: &str) -> String {
        match (table, self.random.chance(50)) {
            (Table::Owners, true) => format!("score = ({a}.score + coalesce(s.n, 0)) % 900"),
            (Table::Owners, false) => "name = coalesce(s.t, 'gone'), grade = s.t".to_owned(),
            (Table::Items, true) => "label = s.t".to_owned(),
            (Table::Items, false) => "price = s.n * 0.25".to_owned(),
            (Table::Tags, true) => format!("weight = {a}.weight + coalesce(s.n, 1)"),
            (Table::Tags, false) => "note = s.t".to_owned(),
            (Table::Events, true) => "amount = s.n".to_owned(),
            (Table::Events, false) => "kind = coalesce(s.t, kind)".to_owned(),
            (Table::Rates, true) => format!("factor = {a}.factor + abs(coalesce(s.n, 0)) % 9"),
            (Table::Rates, false) => "note = s.t".to_owned(),
            (Table::Notes, _) => "body = s.t || s.k".to_owned(),
        }
    }

    fn update_plain(&mut self, table: Table) -> String {
        let (name, alias) = self.aliased(table);
        let changes = self.assignments(table, alias);
        let condition = self.condition(table, alias);
        let returning = self.returning(table, Some(alias));
        format!("update {name} set {changes}{condition}{returning}")
    }

    /// How the table stands after UPDATE, and what its columns are called by.
    pub(super) fn aliased(&mut self, table: Table) -> (String, &'static str) {
        match self.random.chance(50) {
            true => (format!("{} u", table.name()), "u"),
            false => (table.name().to_owned(), table.name()),
        }
    }

    fn update_from(&mut self, table: Table) -> String {
        if self.random.chance(40) {
            return self.update_from_tables(table);
        }
        let (name, alias) = self.aliased(table);
        let changes = self.joined_assignments(table, alias);
        let value = self.joinable(table, alias);
        let rows = self.subquery();
        let extra = match self.random.chance(30) {
            true => format!(" and {}", self.by_key(table, alias)),
            false => String::new(),
        };
        let returning = self.returning(table, Some(alias));
        format!("update {name} set {changes} from {rows} s where s.k = {value}{extra}{returning}")
    }

    /// Joins of tables by unique columns, as applications write them.
    fn update_from_tables(&mut self, table: Table) -> String {
        let text = match (table, self.random.below(3)) {
            (Table::Owners, 0) => {
                "update owners u set score = b.factor * 5 from rates b where b.code = u.grade"
            }
            (Table::Owners, 1) => {
                "update owners u set name = coalesce(b.note, 'x') from tags b where b.name = 't' || u.id"
            }
            (Table::Owners, _) => {
                "update owners u set name = b.body || '!' from notes b where b.ref = u.id and b.body is not null"
            }
            (Table::Items, 0) => {
                "update items u set label = b.name from owners b where b.id = u.owner"
            }
            (Table::Items, 1) => {
                "update items u set price = b.factor + 0.5 from owners a, rates b \
                 where a.id = u.owner and b.code = a.grade"
            }
            (Table::Items, _) => {
                "update items u set label = b.note from tags b where b.name = 't' || u.n"
            }
            (Table::Tags, 0) => {
                "update tags u set weight = b.score from owners b where 't' || b.id = u.name"
            }
            (Table::Tags, _) => {
                "update tags u set note = b.note from rates b where substr(b.code, 2) = substr(u.name, 2)"
            }
            (Table::Events, 0) => {
                "update events u set amount = b.score from owners b where b.id = u.account"
            }
            (Table::Events, 1) => {
                "update events u set kind = b.kind || 'x' from events b \
                 where b.id = u.id - 1 and b.account = u.account - 1"
            }
            (Table::Events, _) => {
                "update events u set amount = b.ref from notes b where b.ref = u.id"
            }
            (Table::Rates, _) => {
                "update rates u set factor = b.score % 9 + 1 from owners b \
                 where b.id = substr(u.code, 2)::int and b.score >= 0"
            }
            (Table::Notes, _) => {
                "update notes u set body = b.name from owners b where b.id = u.ref"
            }
        };
        let extra = match self.random.chance(50) {
            true => format!(" and {}", self.by_key(table, "u")),
            false => String::new(),
        };
        format!("{text}{extra}{}", self.returning(table, Some("u")))
    }

    fn update_subquery(&mut self, table: Table) -> String {
        let (name, alias) = self.aliased(table);
        let rows = self.subquery();
        let value = self.joinable(table, alias);
        let found = match self.random.below(4) {
            0 => format!("(select max(s.n) from {rows} s)"),
            1 => format!("(select s.n from {rows} s where s.k = {value})"),
            2 => format!("(select count(*)::int from {rows} s where s.k <= {value})"),
            _ => format!("(select s.n from {rows} s order by s.k desc limit 1)"),
        };
        let changes = match table {
            Table::Owners => format!("score = coalesce({found}, 0) % 900"),
            Table::Items => format!("price = {found} * 0.5"),
            Table::Tags => format!("weight = coalesce({found}, -1)"),
            Table::Events => format!("amount = {found}"),
            Table::Rates => format!("factor = 1 + abs(coalesce({found}, 0))"),
            Table::Notes => format!("body = 'b' || {found}"),
        };
        let condition = self.condition(table, alias);
        let returning = self.returning(table, Some(alias));
        format!("update {name} set {changes}{condition}{returning}")
    }

    /// Rows that may have to move to another shard. Keys that move never meet keys that leave.
    fn update_key(&mut self, table: Table) -> String {
        let fresh = self.random.between(10_000, 60_000);
        let known = self.random.between(1, 30);
        let childless = "not exists (select 1 from items i where i.owner = owners.id)";
        let text = match (table, self.random.below(4)) {
            (Table::Owners, 0) => format!("update owners set id = {fresh} where id = {known}"),
            (Table::Owners, 1) => format!(
                "update owners set id = {}, score = score % 7 where id = {known} and {childless}",
                self.known()
            ),
            (Table::Owners, 2) => {
                format!("update owners set id = id + 100000 where id < 100000 and {childless}")
            }
            (Table::Owners, _) => format!(
                "update owners set id = {fresh} + id where id in ({known}, {known} + 1, {known} + 2) and {childless}"
            ),
            (Table::Items, 0) => {
                format!(
                    "update items set owner = {} where owner = {known}",
                    self.int(1, 35)
                ) + &format!(" and n = {}", known - 1)
            }
            (Table::Items, 1) => format!(
                "update items set owner = (select max(o.id) from owners o), n = n + 100000 \
                 where n < 100000 and owner = {known}"
            ),
            (Table::Items, _) => format!(
                "update items set owner = owner % 20 + 1, n = n * 50 + owner + 1000000 \
                 where n < 1000000 and n % 7 = {}",
                self.int(0, 6)
            ),
            (Table::Tags, 0) => {
                format!(
                    "update tags set name = {} where name = 't{known}'",
                    self.tag()
                )
            }
            (Table::Tags, _) => format!(
                "update tags set name = 't' || (substr(name, 2)::int + 100000) \
                 where substr(name, 2)::int < 100000 and weight <> {}",
                self.int(0, 6)
            ),
            (Table::Events, 0) => format!(
                "update events set account = {} where account = {} and id = {known}",
                self.int(0, 15),
                self.random.between(0, 12)
            ),
            (Table::Events, _) => format!(
                "update events set account = account + 100000, kind = kind || 'm' \
                 where account < 100000 and id % 5 = {}",
                self.int(0, 4)
            ),
            (Table::Rates, _) => {
                format!(
                    "update rates set code = 'r{fresh}' where code = {}",
                    self.code()
                )
            }
            (Table::Notes, _) => {
                "update notes set ref = ref + 100000 where ref < 100000".to_owned()
            }
        };
        format!("{text}{}", self.returning(table, None))
    }
}
