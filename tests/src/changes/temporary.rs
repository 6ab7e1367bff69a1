//! Writes to the session's own table, and from it to the others.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn temporary(&mut self) -> String {
        match self.random.below(10) {
            0 | 1 => self.insert_drafts(),
            2 => self.update_drafts(),
            3 => self.delete_drafts(),
            4 => self.merge_drafts(),
            5 => self.drafts_to_others(),
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

    /// Rows leave the session's table for one that everybody sees.
    fn drafts_to_others(&mut self) -> String {
        self.shuffles_numbers = true;
        let into = self.table();
        let offset = self.random.between(100_000, 900_000);
        let list = match into {
            // Whose owners may be missing.
            Table::Items => format!("1, d.id + {offset}, d.body, 1, null"),
            _ => Maker::mapped(into, offset, "d.id", "d.body", "d.n"),
        };
        let (name, columns) = (into.name(), Maker::columns(into));
        let returning = self.returning(into, None);
        format!(
            "with d as (delete from drafts where n % 2 = {} returning *) \
             insert into {name} ({columns}) select {list} from d on conflict do nothing{returning}",
            self.int(0, 1)
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
