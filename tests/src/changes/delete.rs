//! DELETE by keys and columns, with USING and subqueries.

use super::{Maker, schema::Table};

impl Maker {
    pub(super) fn delete(&mut self, table: Table) -> String {
        let (name, alias) = self.aliased(table);
        if self.random.chance(30) {
            let text = self.delete_using(table);
            return format!("{text}{}", self.returning(table, Some("u")));
        }
        let condition = match self.random.chance(60) {
            // Few rows: something shall be left to write on.
            true => format!(" where {}", self.by_key(table, alias)),
            false => match self.condition(table, alias) {
                all if all.is_empty() => format!(" where {}", self.by_key(table, alias)),
                some => some,
            },
        };
        let returning = self.returning(table, Some(alias));
        format!("delete from {name}{condition}{returning}")
    }

    fn delete_using(&mut self, table: Table) -> String {
        if self.random.chance(50) {
            let rows = self.subquery();
            let value = self.joinable(table, "u");
            return format!(
                "delete from {} u using {rows} s where s.k = {value} and s.n % 3 = {}",
                table.name(),
                self.int(0, 2)
            );
        }
        let number = self.int(1, 40);
        match (table, self.random.chance(50)) {
            (Table::Owners, true) => format!(
                "delete from owners u using tags b where b.name = 't' || u.id and b.weight > {number} % 6"
            ),
            (Table::Owners, false) => {
                format!(
                    "delete from owners u using notes b where b.ref = u.id and b.ref > {number} % 12"
                )
            }
            (Table::Items, true) => format!(
                "delete from items u using owners b where b.id = u.owner and b.score < {number}"
            ),
            (Table::Items, false) => format!(
                "delete from items u using rates b where b.code = u.code and b.factor > {number} % 6"
            ),
            (Table::Tags, _) => format!(
                "delete from tags u using events b where u.name = 't' || b.id and b.id < {number}"
            ),
            (Table::Events, true) => format!(
                "delete from events u using owners b where b.id = u.account and b.score < {number}"
            ),
            (Table::Events, false) => format!(
                "delete from events u using items b where b.owner = u.id and b.n = {number}"
            ),
            (Table::Rates, _) => format!(
                "delete from rates u using owners b where b.grade = u.code and b.id = {number} \
                 and not exists (select 1 from items i where i.code = u.code)"
            ),
            (Table::Notes, _) => {
                format!(
                    "delete from notes u using items b where b.n = u.ref and b.n < {number} % 12"
                )
            }
        }
    }
}
