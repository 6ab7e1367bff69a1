//! ORDER BY, DISTINCT ON and LIMIT.

use super::{Ask, Body, Output, Query, Shape};
use crate::generate::{Expression, Generator, Scope, schema::Type};

impl Generator {
    pub(super) fn distinct_on(&mut self, scope: &Scope) -> Vec<Expression> {
        let mut on: Vec<Expression> = Vec::new();
        for _ in 0..self.random.between(1, 2) {
            let kind = self.kind_of(scope, Type::is_comparable);
            let column = kind.and_then(|kind| self.column(&scope.local(), kind));
            if let Some(column) = column
                && !on.contains(&column.value)
            {
                on.push(column.value);
            }
        }
        if on.is_empty() {
            on.extend(scope.identity.iter().flatten().cloned());
        }
        on
    }

    pub(super) fn order_and_limit(
        &mut self,
        ask: &Ask,
        body: &Body,
        on: &[Expression],
        query: &mut Query,
    ) {
        let wanted = if ask.top { 62 } else { 12 };
        let needed = body.shape == Shape::DistinctOn || ask.limit.is_some();
        if !needed && !self.random.chance(wanted) {
            return;
        }
        let mut items: Vec<String> = on
            .iter()
            .map(|value| {
                let text = self.respelled(&body.scope, &value.text);
                format!("{text}{}", self.direction())
            })
            .collect();
        for _ in 0..self.random.between(0, 2) {
            if let Some(item) = self.order_item(body) {
                items.push(format!("{item}{}", self.direction()));
            }
        }
        let ties = ask.top && on.is_empty() && !items.is_empty() && self.random.chance(12);
        if ties {
            let count = self.random.between(1, 9);
            let items = items.join(", ");
            query.text += &format!(" order by {items} fetch first {count} rows with ties");
            return;
        }
        match self.total(body) {
            Some(rest) => {
                for item in rest {
                    items.push(format!("{item}{}", self.direction()));
                }
                query.ordered = true;
            }
            None if ask.limit.is_some() => return,
            None => {}
        }
        if !items.is_empty() {
            query.text += &format!(" order by {}", items.join(", "));
        }
        if query.ordered
            || items.is_empty() && body.scope.identity.as_ref().is_some_and(Vec::is_empty)
        {
            let limited = if ask.top { 45 } else { 70 };
            if ask.limit.is_some() || self.random.chance(limited) {
                let limit = self.limit(ask.limit);
                query.text += &limit;
                query.rows = query.rows.min(20.0);
            }
        }
    }

    /// Items that leave no choice: what identifies a row, or else the whole row.
    fn total(&mut self, body: &Body) -> Option<Vec<String>> {
        let numbers = || (1..=body.outputs.len()).map(|number| number.to_string());
        if body.shape == Shape::Distinct {
            return Some(numbers().collect());
        }
        if let Some(identity) = &body.scope.identity {
            return Some(identity.iter().map(|value| value.text.clone()).collect());
        }
        let alike = body
            .outputs
            .iter()
            .all(|output| output.value.exact && output.value.kind.is_comparable());
        (alike && body.shape != Shape::DistinctOn).then(|| numbers().collect())
    }

    /// Something to order by: an output's number or name, or an expression that is not selected.
    fn order_item(&mut self, body: &Body) -> Option<String> {
        let outputs: Vec<usize> = (0..body.outputs.len())
            .filter(|&index| body.outputs[index].value.kind.is_comparable())
            .collect();
        let hidden = body.shape != Shape::Distinct && self.random.chance(55);
        if !hidden && !outputs.is_empty() {
            let index = self.random.pick(&outputs);
            let Output { name, value, .. } = &body.outputs[index];
            if !value.text.contains("over") && self.random.chance(25) {
                return Some(self.respelled(&body.scope, &value.text));
            }
            return Some(match name.is_empty() || self.random.chance(50) {
                true => (index + 1).to_string(),
                false => name.clone(),
            });
        }
        if !hidden {
            return None;
        }
        let kind = self.kind_of(&body.scope, Type::is_comparable)?;
        let column = self.column(&body.scope.local(), kind)?;
        if kind == Type::Text && self.random.chance(20) {
            let collation = self.random.pick(&["C", "POSIX", "ucs_basic", "default"]);
            return Some(format!("{} collate \"{collation}\"", column.value.text));
        }
        if self.random.chance(60) {
            return Some(column.value.text);
        }
        let value = self.expression(&body.scope, kind, 1);
        // A constant alone would be an error, or the number of an output.
        Some(format!("coalesce({}, {})", column.value.text, value.text))
    }

    pub(super) fn limit(&mut self, most: Option<i64>) -> String {
        if let Some(most) = most {
            return format!(" limit {most}");
        }
        let count = self.random.weighted(&[(1, 0), (8, 3), (8, 7), (8, 15)]);
        match self.random.below(8) {
            0 => format!(" offset {}", self.random.pick(&[0, 1, 2, 5, 5, 400])),
            1 => format!(" limit {count} offset {}", self.random.between(0, 4)),
            2 => " limit null".to_owned(),
            3 => format!(" offset 1 fetch next {count} rows only"),
            4 => format!(" limit {}", self.literal(Type::Int8).text),
            5 => format!(" limit {count} + 1"),
            _ => format!(" limit {count}"),
        }
    }
}
