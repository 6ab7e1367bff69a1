//! Which statement comes next: transactions, reads, locks, mistakes, and all the writes.

use super::{EPISODE, Maker, Step, schema::Table};
use crate::generate::without_gaps;

impl Maker {
    /// The statement in place `place` (from 1) of the episode.
    pub(super) fn step(&mut self, number: u64, place: u64) -> Step {
        let step = |text: String| Step {
            number,
            text,
            parameters: None,
            rows: None,
            ordered: false,
            shuffles_numbers: false,
            control: false,
        };
        if let Some(control) = self.control(place) {
            return Step {
                control: true,
                ..step(control)
            };
        }
        if self.random.chance(5) {
            let (text, rows) = self.copy();
            return Step {
                rows: Some(rows),
                ..step(text)
            };
        }
        self.parameters = self.random.chance(30).then(Vec::new);
        self.shuffles_numbers = false;
        let (text, ordered) = self.statement();
        let (text, parameters) = match self.parameters.take() {
            None => (text, None),
            Some(parameters) => {
                let (text, used) = without_gaps(&text, &parameters);
                (text, Some(used))
            }
        };
        Step {
            parameters,
            ordered,
            shuffles_numbers: self.shuffles_numbers,
            ..step(text)
        }
    }

    fn control(&mut self, place: u64) -> Option<String> {
        if !self.open {
            if place + 3 < EPISODE && self.random.chance(12) {
                self.open = true;
                self.savepoints = 0;
                return Some("begin".to_owned());
            }
            return None;
        }
        if place == EPISODE {
            self.open = false;
            return Some("commit".to_owned());
        }
        match self.random.below(100) {
            0..=11 => {
                self.open = false;
                Some("commit".to_owned())
            }
            12..=16 => {
                self.open = false;
                Some("rollback".to_owned())
            }
            17..=24 => {
                self.savepoints += 1;
                Some(format!("savepoint s{}", self.savepoints))
            }
            25..=30 if self.savepoints > 0 => {
                let which = self.random.below(self.savepoints) + 1;
                self.savepoints = which;
                Some(format!("rollback to savepoint s{which}"))
            }
            31..=32 if self.savepoints > 0 => {
                let released = self.savepoints;
                self.savepoints -= 1;
                Some(format!("release savepoint s{released}"))
            }
            _ => None,
        }
    }

    /// A statement, and whether its rows come in an order that leaves no choice.
    fn statement(&mut self) -> (String, bool) {
        let table = self.table();
        let text = match self.random.below(100) {
            0..=24 => self.insert(table),
            25..=50 => self.update(table),
            51..=60 => self.delete(table),
            61..=70 => self.merge(table),
            71..=77 => self.compound(),
            78..=80 => self.temporary(),
            81..=82 => self.triggered(),
            83..=86 => self.lock(table),
            87..=90 => self.mistake(),
            91 => self.truncate(),
            _ => return (self.read(table), true),
        };
        (text, false)
    }

    fn lock(&mut self, table: Table) -> String {
        let strength = self.one_of(&["update", "no key update", "share", "key share"]);
        let key = self.by_key(table, "u");
        let list = match table {
            Table::Owners => "u.id, u.score",
            Table::Items => "u.owner, u.n, u.price",
            Table::Tags => "u.name, u.changed",
            Table::Events => "u.id, u.account, u.amount",
            Table::Rates => "u.code, u.factor",
            Table::Notes => "u.ref, u.body",
        };
        format!(
            "select {list} from {} u where {key} for {strength}",
            table.name()
        )
    }

    fn read(&mut self, table: Table) -> String {
        match self.random.below(8) {
            5 | 6 => self.made_now(),
            7 => "select what, count(*), sum(rows), sum(total) from journal group by what order by what"
                .to_owned(),
            0 => {
                let rows = self.subquery();
                format!("select k, t, n from {rows} s order by k")
            }
            1 => {
                let condition = self.condition(table, "u");
                format!("select count(*) from {} u{condition}", table.name())
            }
            2 => "select o.id, o.score, i.n, i.price from owners o left join items i on i.owner = o.id \
                  order by o.id, i.n"
                .to_owned(),
            3 => "select o.id, e.id, e.kind from owners o join events e on e.account = o.id \
                  order by o.id, e.id, e.account"
                .to_owned(),
            _ => "select t.name, t.weight, r.note, n.body from tags t \
                  left join rates r on substr(r.code, 2) = substr(t.name, 2) \
                  left join notes n on n.ref = t.weight order by t.name"
                .to_owned(),
        }
    }

    /// The rows of this transaction: it has one time on all shards.
    fn made_now(&mut self) -> String {
        self.one_of(&[
            "select id from owners where at = now() order by id",
            "select count(*), count(distinct at) from owners where at >= transaction_timestamp()",
            "select id, account from events where at = current_timestamp order by id, account",
            "select n.ref, count(e.id) from notes n left join events e on e.at = n.at \
             where n.at = now() group by n.ref order by n.ref",
            "select count(distinct at) from (select at from owners union all select at from events \
             union all select at from notes) a where at = now() order by 1",
        ])
    }

    fn truncate(&mut self) -> String {
        self.one_of(&[
            "truncate items",
            "truncate tags",
            "truncate tags, events",
            "truncate notes",
            "truncate owners cascade",
            "truncate owners, items",
            "truncate only events",
        ])
    }

    /// What breaks one rule.
    fn mistake(&mut self) -> String {
        let fresh = self.random.between(10_000, 60_000);
        let known = self.known();
        match self.random.below(16) {
            0 => format!("insert into owners (id, name) values ({fresh}, null)"),
            1 => format!("insert into owners (id, score) values ({fresh}, 1001)"),
            2 => format!("insert into owners (id, twice) values ({fresh}, 4)"),
            3 => format!("insert into items (owner, n) values (9999, {fresh})"),
            4 => format!(
                "insert into items (owner, n, code) select max(id), {fresh}, 'r999' from owners"
            ),
            5 => format!("insert into events (id, account, turn) values ({fresh}, 1, 5)"),
            6 => format!("insert into tags (weight) values ({known})"),
            7 => "update owners set score = score / (score - score)".to_owned(),
            8 => "update owners set score = score + 5000".to_owned(),
            9 => format!(
                "update tags set weight = 2147483647 + changed + 1 where name = 't{fresh}' or weight >= -5"
            ),
            10 => format!("update events set account = null where id = {known}"),
            11 => format!("update owners set nosuch = 1 where id = {known}"),
            12 => "delete from rates where code in (select i.code from items i)".to_owned(),
            13 => "insert into rates (code, factor) values ('r77', 0)".to_owned(),
            14 => format!(
                "insert into owners (id, name) values ({fresh}, 'a'), ({fresh}, 'b') \
                           on conflict (id) do update set name = excluded.name"
            ),
            _ => format!("insert into notes (ref) values ({fresh}, 4)"),
        }
    }
}
