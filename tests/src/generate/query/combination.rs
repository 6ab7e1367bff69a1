//! UNION, INTERSECT and EXCEPT.

use super::{Ask, Query};
use crate::generate::{
    Generator,
    schema::{TYPES, Type},
};

impl Generator {
    /// UNION, INTERSECT or EXCEPT.
    pub(super) fn combination(&mut self, ask: &Ask) -> Query {
        let count = self.random.between(1, 4);
        let want: Vec<Type> = (0..count).map(|_| self.groupable()).collect();
        let arms = self.random.weighted(&[(7, 2), (3, 3)]);
        let mut text = String::new();
        let mut columns = Vec::new();
        let mut rows = 0.0;
        let mut all = true;
        for number in 0..arms {
            let relations = self.random.weighted(&[(4, 1), (2, 2)]);
            let arm = self.query(&Ask {
                outer: ask.outer,
                want: want.clone(),
                relations,
                rows: ask.rows.min(800.0),
                exact: true,
                ..Ask::default()
            });
            rows += arm.rows;
            let limited = [" order by ", " limit ", " offset "]
                .iter()
                .any(|word| arm.text.contains(word));
            let arm_text = match limited || self.random.chance(20) {
                true => format!("({})", arm.text),
                false => arm.text.clone(),
            };
            if number == 0 {
                text = arm_text;
                columns = arm.columns;
                continue;
            }
            let word = self.random.pick(&["union", "union", "intersect", "except"]);
            let quantifier = self.random.pick(&["", " all"]);
            all = all && quantifier == " all";
            text = match number > 1 && self.random.chance(50) {
                true => format!("({text}) {word}{quantifier} {arm_text}"),
                false => format!("{text} {word}{quantifier} {arm_text}"),
            };
            // Which arm binds tighter depends on the words: rows may repeat.
            all = all || number > 1;
        }
        for output in &mut columns {
            output.value.dyadic = false;
        }
        let mut query = Query {
            text,
            identity: (!all).then(|| (0..columns.len()).collect()),
            columns,
            rows,
            ordered: false,
        };
        let wanted = if ask.top { 60 } else { 10 };
        if ask.limit.is_some() || self.random.chance(wanted) {
            let numbers: Vec<String> = (1..=query.columns.len())
                .map(|number| format!("{number}{}", self.direction()))
                .collect();
            query.text = format!("{} order by {}", query.text, numbers.join(", "));
            query.ordered = true;
            query.text += &self.limit(ask.limit);
        }
        query
    }

    fn groupable(&mut self) -> Type {
        loop {
            let kind = self.random.pick(&TYPES);
            if kind.is_comparable() {
                return kind;
            }
        }
    }
}
