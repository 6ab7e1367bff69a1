//! WITH around writes, and writes inside WITH.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn compound(&mut self) -> String {
        match self.random.below(8) {
            0 => self.archive(),
            1 => self.inserted_then_read(),
            2 => self.two_writes(),
            3 => self.updated_then_update(),
            4 => self.old_snapshot(),
            5 => self.with_before(),
            6 => self.removed_with_children(),
            _ => self.moved_between_kinds(),
        }
    }

    fn archive(&mut self) -> String {
        self.shuffles_numbers = true;
        let condition = self.condition(Table::Items, "i");
        let offset = self.random.between(10_000, 60_000);
        format!(
            "with d as (delete from items i{condition} returning i.owner, i.n, i.label) \
             insert into events (id, account, kind, amount) \
             select d.n + {offset}, d.owner, coalesce(d.label, 'x'), d.owner from d \
             on conflict do nothing{}",
            self.returning(Table::Events, None)
        )
    }

    fn inserted_then_read(&mut self) -> String {
        let first = self.random.between(60_000, 90_000);
        let word = self.word();
        let read = self.one_of(&[
            "select * from i",
            "select count(*), sum(weight) from i",
            "select i.name, r.note from i left join rates r on r.factor = i.weight",
            "select i.name, o.name from i join owners o on o.id = i.weight",
        ]);
        format!(
            "with i as (insert into tags (name, weight, note) values ('t{first}', 3, {word}), \
             ('t{}', 4, null), ('t{}', default, 'q') returning name, weight) {read}",
            first + 1,
            first + 2
        )
    }

    fn two_writes(&mut self) -> String {
        let first = self.condition(Table::Tags, "tags");
        let second = self.condition(Table::Events, "events");
        let changes = self.assignments(Table::Tags, "tags");
        let more = self.assignments(Table::Events, "events");
        let read = self.one_of(&[
            "select count(*) from a",
            "select (select count(*) from a), (select count(*) from b)",
            "select 1",
            "select a.name from a union all select b.kind from b",
        ]);
        format!(
            "with a as (update tags set {changes}{first} returning name), \
             b as (update events set {more}{second} returning kind) {read}"
        )
    }

    fn updated_then_update(&mut self) -> String {
        let changes = self.assignments(Table::Tags, "t");
        let condition = self.condition(Table::Tags, "t");
        let returning = self.returning(Table::Owners, Some("u"));
        format!(
            "with w as (update tags t set {changes}{condition} returning t.name, t.weight) \
             update owners u set score = w.weight % 100 from w where w.name = 't' || u.id{returning}"
        )
    }

    /// Every part sees the tables as they were before the statement.
    fn old_snapshot(&mut self) -> String {
        let key = self.random.between(20_000, 60_000);
        match self.random.below(3) {
            0 => format!(
                "with i as (insert into owners (id, name) values ({key}, 'new') returning id) \
                 select (select count(*) from owners), (select count(*) from i)"
            ),
            1 => format!(
                "with d as (delete from notes where ref < {} returning ref) \
                 select count(*), (select count(*) from d) from notes",
                self.int(1, 12)
            ),
            _ => format!(
                "with i as (insert into rates (code) values ('r{key}') returning code) \
                 select r.code from rates r where r.code in (select code from i)"
            ),
        }
    }

    /// A WITH query of which a write reads.
    fn with_before(&mut self) -> String {
        let table = self.table();
        let rows = self.subquery();
        let value = self.joinable(table, "u");
        let name = table.name();
        let returning = self.returning(table, Some("u"));
        match self.random.chance(60) {
            true => {
                let changes = self.joined_assignments(table, "u");
                format!(
                    "with s as {rows} update {name} u set {changes} from s where s.k = {value}{returning}"
                )
            }
            false => format!(
                "with s as {rows} delete from {name} u where {value} in (select k from s where n > 9){returning}"
            ),
        }
    }

    fn removed_with_children(&mut self) -> String {
        let key = self.by_key(Table::Owners, "o");
        let read = self.one_of(&[
            "select id, name, score from d",
            "select count(*) from d",
            "select d.id, i.n from d join items i on i.owner = d.id",
        ]);
        format!("with d as (delete from owners o where {key} returning o.*) {read}")
    }

    fn moved_between_kinds(&mut self) -> String {
        self.shuffles_numbers = true;
        let offset = self.random.between(10_000, 60_000);
        let (from, key, text, number) = self.random.pick(&[
            (Table::Tags, "substr(name, 2)::int", "note", "weight"),
            (Table::Notes, "ref", "body", "ref"),
            (Table::Rates, "substr(code, 2)::int", "note", "factor"),
        ]);
        let into = self
            .random
            .pick(&[Table::Owners, Table::Tags, Table::Notes, Table::Events]);
        let condition = match from {
            Table::Rates => {
                " where code not in (select i.code from items i where i.code is not null)"
                    .to_owned()
            }
            _ => self.condition(from, from.name()),
        };
        let (name, columns) = (into.name(), Maker::columns(into));
        let list = Maker::mapped(into, offset, "d.k", "d.t", "d.n");
        let returning = self.returning(into, None);
        format!(
            "with d as (delete from {}{condition} returning {key} as k, {text} as t, {number} as n) \
             insert into {name} ({columns}) select {list} from d{returning}",
            from.name()
        )
    }
}
