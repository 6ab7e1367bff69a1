//! GROUP BY, HAVING, and what a grouped query shows.

use super::{Ask, Body, Output, Shape, unnamed};
use crate::generate::{Column, Expression, Generator, Scope, schema::Type};

impl Generator {
    /// A query that is grouped by up to three keys, or has one group.
    pub(super) fn grouped(&mut self, ask: &Ask, scope: Scope, mut tail: String) -> Body {
        let keys = self.group_keys(&scope);
        let mut identity: Vec<Expression> = keys.iter().map(|key| key.value.clone()).collect();
        let mut by_number = false;
        if !keys.is_empty() {
            let texts: Vec<String> = keys.iter().map(|key| key.value.text.clone()).collect();
            let all = texts.join(", ");
            let sets = self.grouping_sets(&texts, tail.contains(" where "));
            by_number = sets.is_none() && ask.want.is_empty() && self.random.chance(20);
            if sets.is_some() {
                identity.push(Expression::new(format!("grouping({all})"), Type::Int4));
            }
            let numbers: Vec<String> = (1..=keys.len()).map(|number| number.to_string()).collect();
            let by = match (sets, by_number) {
                (Some(sets), _) => sets,
                (None, true) => numbers.join(", "),
                (None, false) => all,
            };
            tail = format!("{tail} group by {by}");
        }
        let after = self.groups(&scope, &keys, identity);
        if self.random.chance(25) {
            let having = self.having(&scope, &after);
            tail = format!("{tail} having {having}");
        }
        let mut outputs = Vec::new();
        match ask.want.is_empty() {
            true => self.group_outputs(&after, keys.len(), by_number, &mut outputs),
            false => self.outputs(ask, &after, &mut outputs),
        }
        Body {
            shape: Shape::Grouped,
            tail,
            scope: after,
            outputs,
            star: None,
        }
    }

    fn grouping_sets(&mut self, keys: &[String], filtered: bool) -> Option<String> {
        let all = keys.join(", ");
        match self.random.below(14) {
            // Servers before 18 take a column that a condition makes one value for one that an ORDER BY
            // needs no more, though a set that lacks it has NULL there.
            _ if filtered => None,
            0 => Some(format!("rollup ({all})")),
            1 => Some(format!("cube ({all})")),
            2 => Some(format!("grouping sets (({all}), ())")),
            3 if keys.len() > 1 => {
                let rest = keys[1..].join(", ");
                Some(format!("grouping sets (({}), ({rest}), ())", keys[0]))
            }
            _ => None,
        }
    }

    /// What HAVING, the select list and ORDER BY may mention: keys and aggregates.
    fn groups(&mut self, scope: &Scope, keys: &[Column], identity: Vec<Expression>) -> Scope {
        let mut columns = keys.to_vec();
        for _ in 0..self.random.between(i64::from(keys.is_empty()), 4) {
            columns.push(Column {
                value: self.aggregate(scope),
                name: String::new(),
                other: None,
                distinct: 10.0,
            });
        }
        let rows = keys.iter().map(|key| key.distinct).product::<f64>();
        Scope {
            rows: rows.min(scope.rows),
            columns,
            outer: scope.outer.clone(),
            identity: Some(identity),
            grouped: true,
            whole_rows: Vec::new(),
        }
    }

    fn having(&mut self, scope: &Scope, after: &Scope) -> String {
        match self.random.chance(50) {
            true => format!("{} > {}", self.count_of(scope), self.random.between(0, 3)),
            false => self.condition(after, 1),
        }
    }

    fn group_outputs(
        &mut self,
        after: &Scope,
        keys: usize,
        by_number: bool,
        outputs: &mut Vec<Output>,
    ) {
        let columns = &after.columns;
        let shown: &[Column] = match by_number || self.random.chance(75) {
            true => columns,
            false => &columns[keys.min(columns.len() - 1)..],
        };
        for column in shown {
            let value = self.spelled(column);
            outputs.push(unnamed(value, column.distinct));
        }
        if self.random.chance(18) {
            let value = self.window(after);
            outputs.push(unnamed(value, 10.0));
        }
        if self.random.chance(30) {
            let kind = self.any_kind(after);
            let value = self.expression(after, kind, 1);
            outputs.push(unnamed(value, 10.0));
        }
    }

    fn count_of(&mut self, scope: &Scope) -> String {
        let kind = self
            .kind_of(scope, Type::is_comparable)
            .unwrap_or(Type::Int4);
        match self.column(&scope.local(), kind) {
            Some(column) if self.random.chance(50) => format!("count({})", column.value.text),
            _ => "count(*)".to_owned(),
        }
    }

    /// Up to three different expressions to group by.
    fn group_keys(&mut self, scope: &Scope) -> Vec<Column> {
        let count = self.random.weighted(&[(15, 0), (45, 1), (30, 2), (10, 3)]);
        let mut keys: Vec<Column> = Vec::new();
        for _ in 0..count {
            let Some(kind) = self.kind_of(scope, Type::is_comparable) else {
                break;
            };
            let Some(mut column) = self.column(&scope.local(), kind) else {
                break;
            };
            // Often by what the rows are distributed by.
            if let Some(first) = scope.columns.first()
                && first.value.kind.is_comparable()
                && self.random.chance(20)
            {
                column = first.clone();
            }
            let twice = match self.random.chance(25) {
                true => self.spelled_twice(&column),
                false => None,
            };
            let row = self.random.chance(4).then(|| self.row_key(scope)).flatten();
            let key = match (twice, row) {
                (Some(key), _) => key,
                (None, Some(value)) => Column {
                    value,
                    name: String::new(),
                    other: None,
                    distinct: scope.rows,
                },
                (None, None) if self.random.chance(75) => column,
                (None, None) => self.group_expression(scope, column),
            };
            let value = self.exact(key.value.clone());
            let name = if value == key.value {
                key.name
            } else {
                String::new()
            };
            let known = keys.iter().any(|other| other.value.text == value.text);
            let other = key.other.filter(|_| value == key.value);
            if !known && value.exact {
                keys.push(Column {
                    value,
                    name,
                    other,
                    distinct: key.distinct,
                });
            }
        }
        keys
    }

    fn group_expression(&mut self, scope: &Scope, column: Column) -> Column {
        let text = &column.value.text;
        let value = match column.value.kind {
            kind if kind.is_integer() => {
                let number = self.random.between(2, 5);
                Expression::new(format!("({text} % {number})"), wider(kind))
            }
            kind if kind.is_text() => Expression::new(format!("length({text})"), Type::Int4),
            Type::Date | Type::Timestamp | Type::Timestamptz => {
                Expression::new(format!("extract(day from {text})::int4"), Type::Int4)
            }
            _ => {
                let other = self.column(&scope.local(), column.value.kind);
                let other = other.map_or("null".to_owned(), |other| other.value.text);
                Expression::new(format!("({text} is not distinct from {other})"), Type::Bool)
            }
        };
        Column {
            value,
            name: String::new(),
            other: None,
            distinct: 5.0,
        }
    }
}

/// The type of `smallint % integer` and so on.
fn wider(kind: Type) -> Type {
    match kind {
        Type::Int8 => Type::Int8,
        _ => Type::Int4,
    }
}
