//! Subqueries in expressions.

use super::{Ask, MOST_ROWS};
use crate::generate::{Column, Expression, Generator, Scope, relation::From, schema::Type};

impl Generator {
    /// A condition with a subquery; `None` when the statement has enough of them.
    pub fn subquery_condition(&mut self, scope: &Scope) -> Option<String> {
        if scope.rows > MOST_ROWS || !self.afford() {
            return None;
        }
        let visible = scope.for_subquery();
        let correlate = !visible.is_empty() && self.random.chance(60);
        let outer: &[Column] = if correlate { &visible } else { &[] };
        let relations = self.random.weighted(&[(5, 1), (2, 2)]);
        let rows = if scope.rows > 500.0 { 250.0 } else { 600.0 };
        let mut ask = Ask {
            outer,
            relations,
            rows,
            correlate,
            ..Ask::default()
        };
        let not = self.random.pick(&["", "not "]);
        let choice = self.random.below(6);
        if choice < 2 {
            let query = self.query(&ask);
            return Some(format!("{not}exists ({})", query.text));
        }
        let kind = self.kind_of(scope, Type::is_comparable)?;
        let value = self.leaf(scope, kind).text;
        ask.want = vec![kind];
        match choice {
            2 | 3 => {
                let query = self.query(&ask);
                Some(format!("{value} {not}in ({})", query.text))
            }
            4 => {
                let operator = self.random.pick(&["= any", "<> all", "> all", "<= any"]);
                let query = self.query(&ask);
                Some(format!("{value} {operator} ({})", query.text))
            }
            _ => {
                let second = self.kind_of(scope, Type::is_comparable)?;
                let other = self.leaf(scope, second).text;
                ask.want = vec![kind, second];
                let query = self.query(&ask);
                Some(format!("({value}, {other}) {not}in ({})", query.text))
            }
        }
    }

    /// A subquery with one value.
    pub fn scalar_subquery(&mut self, scope: &Scope, kind: Type) -> Expression {
        if scope.rows > MOST_ROWS || !self.afford() {
            return self.leaf(scope, kind);
        }
        let visible = scope.for_subquery();
        let correlate = !visible.is_empty() && self.random.chance(65);
        let outer: &[Column] = if correlate { &visible } else { &[] };
        let rows = if scope.rows > 500.0 { 250.0 } else { 600.0 };
        let From {
            text,
            scope: mut inner,
            conditions,
            ..
        } = self.from(outer, 1, rows);
        inner.outer = outer.to_vec();
        let ask = Ask {
            outer,
            correlate,
            ..Ask::default()
        };
        let tail = self.with_where(&ask, &inner, text, conditions);
        let value = self.leaf(&inner.local(), kind);
        let value = self.exact(value);
        let text = match &inner.identity {
            Some(identity) if !identity.is_empty() && self.random.chance(35) => {
                let order: Vec<&str> = identity.iter().map(|value| value.text.as_str()).collect();
                format!(
                    "(select {}{tail} order by {} limit 1)",
                    value.text,
                    order.join(", ")
                )
            }
            _ => format!(
                "(select {}({}){tail})",
                self.random.pick(&["min", "max"]),
                value.text
            ),
        };
        Expression { text, ..value }
    }
}
