//! Conditions: what stands in WHERE, ON, HAVING, FILTER and CASE.

use super::{Expression, Generator, Scope, schema::Type};

impl Generator {
    /// A condition over `scope`; `depth` bounds how it nests.
    pub fn condition(&mut self, scope: &Scope, depth: usize) -> String {
        if depth > 0 && !(self.simple && self.random.chance(70)) {
            match self.random.below(12) {
                0 | 1 => {
                    let (a, b) = (
                        self.condition(scope, depth - 1),
                        self.condition(scope, depth - 1),
                    );
                    return format!("({a} or {b})");
                }
                2 => {
                    let (a, b) = (
                        self.condition(scope, depth - 1),
                        self.condition(scope, depth - 1),
                    );
                    return format!("({a} and {b})");
                }
                3 => return format!("not ({})", self.condition(scope, depth - 1)),
                4 | 5 => {
                    if let Some(text) = self.subquery_condition(scope) {
                        return text;
                    }
                }
                6 => return self.case_condition(scope, depth),
                7 if self.random.chance(40) => {
                    let moment = self.leaf(scope, Type::Timestamptz).text;
                    return self.clock_condition(&moment);
                }
                8 if !scope.grouped => {
                    if let Some(text) = self.row_condition(scope) {
                        return text;
                    }
                }
                _ => {}
            }
        }
        self.simple_condition(scope, depth)
    }

    fn case_condition(&mut self, scope: &Scope, depth: usize) -> String {
        let tested = self.condition(scope, depth - 1);
        let (a, b) = (
            self.simple_condition(scope, 0),
            self.simple_condition(scope, 0),
        );
        match self.random.below(3) {
            0 => format!("(case when {tested} then {a} else {b} end)"),
            1 => format!("(({tested}) is not true)"),
            _ => format!("(({tested}) is unknown or {a})"),
        }
    }

    /// One without AND, OR, NOT and subqueries.
    fn simple_condition(&mut self, scope: &Scope, depth: usize) -> String {
        let comparable = |kind: Type| kind.is_comparable();
        let kind = self.kind_of(scope, comparable).unwrap_or(Type::Int4);
        let value = match self.random.chance(75) {
            true => self.leaf(scope, kind),
            false => self.expression(scope, kind, depth.min(1)),
        };
        let text = &value.text;
        match self.random.below(14) {
            0 => format!("{text} is null"),
            1 => format!("{text} is not null"),
            2 | 3 => self.in_list(&value),
            4 => {
                let (low, high) = (self.literal(kind), self.literal(kind));
                let symmetric = self.random.pick(&["", "symmetric ", "symmetric "]);
                format!("{text} between {symmetric}{} and {}", low.text, high.text)
            }
            5 => {
                let other = self.leaf(scope, kind);
                let not = self.random.pick(&["", "not "]);
                format!("{text} is {not}distinct from {}", other.text)
            }
            6 => self.special(scope),
            7 => format!("{text} = {}", self.literal(kind).text),
            8 => format!("{text} <> {}", self.literal(kind).text),
            9 => self.row_comparison(scope),
            10 if !matches!(kind, Type::Ints | Type::Texts | Type::Domain | Type::Pair) => {
                let others = [self.literal(kind), self.literal(kind)];
                format!(
                    "{text} = any (array[{}, {}])",
                    others[0].text, others[1].text
                )
            }
            _ => {
                let other = self.leaf(scope, kind);
                let operator = self.random.pick(&["<", "<=", ">", ">=", "<>", "<>", "="]);
                format!("{text} {operator} {}", other.text)
            }
        }
    }

    fn in_list(&mut self, value: &Expression) -> String {
        let count = self.random.between(1, 4);
        let mut items: Vec<String> = (0..count).map(|_| self.literal(value.kind).text).collect();
        let not = self.random.pick(&["", "", "not "]);
        if self.random.chance(8) {
            items.push("null".to_owned());
        }
        format!("{} {not}in ({})", value.text, items.join(", "))
    }

    /// Operators that one type has.
    fn special(&mut self, scope: &Scope) -> String {
        let kind = self.kind_of(scope, |kind| {
            kind.is_text()
                || matches!(
                    kind,
                    Type::Bool
                        | Type::Jsonb
                        | Type::Ints
                        | Type::Texts
                        | Type::Inet
                        | Type::Range
                        | Type::Multirange
                        | Type::Pair
                )
        });
        let Some(kind) = kind else {
            return format!("({} + 1) > 4", self.leaf(scope, Type::Int4).text);
        };
        let value = self.leaf(scope, kind).text;
        match kind {
            Type::Bool => format!("{value} is not {}", self.random.pick(&["true", "false"])),
            Type::Jsonb => match self.random.chance(50) {
                true => format!("{value} @> '{{\"a\": {}}}'", self.random.between(0, 5)),
                false => format!("{value} ? 'c'"),
            },
            Type::Ints => format!("{} = any ({value})", self.leaf(scope, Type::Int4).text),
            Type::Texts => format!("{value} && array['ann', 'eve']"),
            Type::Inet => format!("{value} << '10.0.0.0/30'"),
            Type::Range | Type::Multirange => match self.random.below(3) {
                0 => format!("{value} @> {}", self.leaf(scope, Type::Int4).text),
                1 => format!("{value} && int4range(3, 6)"),
                _ => format!("isempty({value})"),
            },
            Type::Pair => format!("({value}).a > {}", self.random.between(0, 6)),
            Type::Text if self.random.chance(30) => {
                format!("{value} collate \"C\" < {}", self.literal(kind).text)
            }
            _ => match self.random.below(3) {
                0 => format!("{value} like '%b%'"),
                1 => format!("{value} not ilike 'a_%'"),
                _ => format!("{value} ~ '^[a-z]'"),
            },
        }
    }

    fn row_comparison(&mut self, scope: &Scope) -> String {
        let comparable = |kind: Type| kind.is_comparable();
        let first = self.kind_of(scope, comparable).unwrap_or(Type::Int4);
        let second = self.kind_of(scope, comparable).unwrap_or(Type::Int4);
        let (a, b) = (self.leaf(scope, first).text, self.leaf(scope, second).text);
        let (c, d) = (self.literal(first).text, self.literal(second).text);
        match self.random.below(3) {
            0 => format!("({a}, {b}) = ({c}, {d})"),
            1 => format!("({a}, {b}) < ({c}, {d})"),
            _ => {
                let (e, f) = (self.literal(first).text, self.literal(second).text);
                format!("({a}, {b}) in (({c}, {d}), ({e}, {f}))")
            }
        }
    }

    /// One of the key columns equal to a constant.
    pub fn key_condition(&mut self, scope: &Scope) -> Option<String> {
        let keys: Vec<Expression> = scope
            .columns
            .iter()
            .filter(|column| column.distinct >= 50.0 || column.name == "account_id")
            .filter(|column| {
                matches!(
                    column.value.kind,
                    Type::Int4 | Type::Int8 | Type::Text | Type::Uuid
                )
            })
            .map(|column| column.value.clone())
            .collect();
        if keys.is_empty() {
            return None;
        }
        let key = self.random.pick(&keys);
        let constant = self.literal(key.kind).text;
        Some(match self.random.below(6) {
            0 => {
                let other = self.literal(key.kind).text;
                format!("{} in ({constant}, {other})", key.text)
            }
            1 => {
                let other = self.literal(key.kind).text;
                format!("({} = {constant} or {} = {other})", key.text, key.text)
            }
            _ => format!("{} = {constant}", key.text),
        })
    }
}
