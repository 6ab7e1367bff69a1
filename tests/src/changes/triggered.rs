//! Writes to a table whose triggers are fired once for a statement: `marks`.

use super::Maker;

impl Maker {
    pub(super) fn triggered(&mut self) -> String {
        let key = self.random.between(1, 12);
        let line = self.random.between(10, 90_000);
        let conflict = self.one_of(&["", " on conflict do nothing"]);
        match self.random.below(12) {
            0..=3 => format!("insert into marks values ({key}, {line}, 1){conflict}"),
            4 | 5 => format!(
                "insert into marks values ({key}, {line}, 1), ({key}, {}, 2){conflict} returning line, n",
                line + 1
            ),
            // The trigger counts them.
            6 => format!(
                "insert into marks select {key}, {line} + g, g from generate_series(1, {}) g",
                self.int(1, 6)
            ),
            7 | 8 => format!("update marks set n = n + 1 where owner = {key}"),
            9 => format!(
                "delete from marks where owner = {key} and n > {}",
                self.int(1, 4)
            ),
            10 => "select owner, count(*), sum(n) from marks group by owner".to_owned(),
            _ => "update marks set n = n + 1".to_owned(),
        }
    }
}
