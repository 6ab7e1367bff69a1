//! Writes to the session's own table, and from it to the others.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn temporary(&mut self) -> String {
        match self.random.below(10) {
            0 | 1 => self.insert_drafts(),
            2 => self.update_drafts(),
            3 => self.delete_drafts(),
            4 => self.merge_drafts(),
            5 => self.moved_with_drafts(),
            6 => self.changed_by_drafts(),
            7 => "truncate drafts".to_owned(),
            8 => "insert into notes (body, ref) select r.body, r.id + 300000 from recent r \
                  where not exists (select 1 from notes o where o.ref = r.id + 300000)"
                .to_owned(),
            _ => self.one_of(&[
                "select d.id, d.body, o.name from drafts d join owners o on o.id = d.id",
                "select r.id, t.note from recent r left join tags t on t.weight = r.n",
                "select count(*), sum(n) from recent",
                "select d.id from drafts d where exists (select 1 from items i where i.n = d.id)",
            ]),
        }
    }

    fn insert_drafts(&mut self) -> String {
        let word = self.word();
        let key = self.random.between(1, 60);
        let conflict = self.one_of(&[
            "do nothing",
            "(id) do update set n = excluded.n",
            "(id) do update set body = excluded.body || drafts.body, n = drafts.n + 1",
        ]);
        let rows = match self.random.chance(50) {
            true => format!(
                "values ({key}, {word}, {}), ({}, 'x', null)",
                self.int(0, 9),
                key + 1
            ),
            false => format!("select k, t, n from {} s", self.subquery()),
        };
        let returning = self.one_of(&["", " returning id, n", " returning *"]);
        format!("insert into drafts (id, body, n) {rows} on conflict {conflict}{returning}")
    }

    fn update_drafts(&mut self) -> String {
        let rows = self.subquery();
        match self.random.chance(50) {
            true => format!(
                "update drafts d set n = coalesce(s.n, 0), body = s.t from {rows} s where s.k = d.id \
                 returning d.id, d.n"
            ),
            false => format!(
                "update drafts set n = (select count(*) from {rows} s where s.k <= drafts.id)"
            ),
        }
    }

    fn delete_drafts(&mut self) -> String {
        let rows = self.subquery();
        format!(
            "delete from drafts d where d.id in (select k from {rows} s) and d.n < {}",
            self.int(0, 40)
        )
    }

    fn merge_drafts(&mut self) -> String {
        let rows = self.subquery();
        let action = self.one_of(&["delete", "do nothing", "update set n = s.n"]);
        format!(
            "merge into drafts d using {rows} s on d.id = s.k when matched then {action} \
             when not matched then insert (id, body, n) values (s.k, s.t, s.n)"
        )
    }

    /// Rows come from a table that everybody sees, or seldom go to one.
    fn moved_with_drafts(&mut self) -> String {
        let offset = self.random.between(100_000, 900_000);
        if self.random.chance(15) {
            return format!(
                "with d as (delete from drafts where n % 2 = {} returning *) \
                 insert into tags (name, weight, note) select 't' || (d.id + {offset}), 2, d.body from d",
                self.int(0, 1)
            );
        }
        let (from, key, text, number) = self.random.pick(&[
            (Table::Items, "n", "label", "owner"),
            (Table::Events, "id * 100 + account", "kind", "amount"),
            (Table::Tags, "substr(name, 2)::int", "note", "weight"),
            (Table::Notes, "ref", "body", "ref % 7"),
        ]);
        let condition = self.condition(from, from.name());
        let conflict = self.one_of(&["do nothing", "(id) do update set n = excluded.n"]);
        format!(
            "with d as (delete from {}{condition} returning {key} as k, {text} as t, {number} as n) \
             insert into drafts (id, body, n) select k, max(t), max(n) from d group by k \
             on conflict {conflict} returning id, body, n",
            from.name()
        )
    }

    fn changed_by_drafts(&mut self) -> String {
        let table = self.table();
        let changes = self.assignments(table, "u");
        let value = self.joinable(table, "u");
        let from = self.one_of(&["drafts", "recent"]);
        let returning = self.returning(table, Some("u"));
        let name = table.name();
        format!(
            "update {name} u set {changes} where {value} in (select d.id from {from} d){returning}"
        )
    }
}
