//! MERGE from sources of every kind.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn merge(&mut self, table: Table) -> String {
        let rows = self.subquery();
        let value = match table {
            // With another value the rows that are inserted could be there already.
            Table::Owners => "m.id".to_owned(),
            Table::Events => "m.account".to_owned(),
            _ => self.joinable(table, "m"),
        };
        let mut text = format!(
            "merge into {} m using {rows} s on {value} = s.k",
            table.name()
        );
        let inserts = self.random.chance(60);
        if self.random.chance(30) {
            let action = self.one_of(&["do nothing", "delete"]);
            text += &format!(
                " when matched and s.n % 4 = {} then {action}",
                self.int(0, 3)
            );
        }
        if self.random.chance(80) || !inserts {
            let changes = match self.random.chance(70) {
                true => self.joined_assignments(table, "m"),
                false => self.assignments(table, "m"),
            };
            text += &format!(" when matched then update set {changes}");
        }
        if inserts {
            self.shuffles_numbers |= table.is_numbered();
            text += &self.merge_insert(table);
        }
        text
    }

    fn merge_insert(&mut self, table: Table) -> String {
        if self.random.chance(20) {
            return " when not matched then do nothing".to_owned();
        }
        let condition = match self.random.chance(30) {
            true => format!(" and s.k > {}", self.int(0, 40)),
            false => String::new(),
        };
        let insert = match table {
            Table::Owners => "(id, name, score) values (s.k, coalesce(s.t, 'm'), s.n % 900)",
            Table::Items => "(owner, n, label) values (s.k, s.k + 500000, s.t)",
            Table::Tags => "(name, note) values ('t' || (s.k + 500000), s.t)",
            Table::Events => "(id, account, amount) values (s.k + 500000, s.k, s.n)",
            Table::Rates => "(code, note) values ('r' || (s.k + 500000), s.t)",
            Table::Notes => "(ref, body) values (s.k + 500000, s.t)",
        };
        format!(" when not matched{condition} then insert {insert}")
    }
}
