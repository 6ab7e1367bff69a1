//! Queries: SELECT with all its clauses, set operations, WITH.

use super::{
    Column, Common, Expression, Feature, Generator, Scope,
    relation::From,
    schema::{TYPES, Type},
};

/// What a query must be like.
#[derive(Debug, Clone, Default)]
pub struct Ask<'a> {
    /// Columns of the levels around it.
    pub outer: &'a [Column],
    /// The types of its columns; free when there are none.
    pub want: Vec<Type>,
    /// How many relations FROM may have; 0 is one.
    pub relations: usize,
    /// Roughly how many rows FROM may have; 0 is few.
    pub rows: f64,
    /// A condition compares with a column of the outer level.
    pub correlate: bool,
    /// At most so many rows.
    pub limit: Option<i64>,
    /// The statement itself.
    pub top: bool,
    /// Equal values must look alike.
    pub exact: bool,
}

/// A column of a result.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its type and character; the text is what was selected.
    pub value: Expression,
    /// How it is named; empty when Postgres chooses.
    pub name: String,
    /// Roughly how many different values it has.
    pub distinct: f64,
}

/// A query.
#[derive(Debug, Clone)]
pub struct Query {
    /// Its text, without parentheses.
    pub text: String,
    /// Its columns.
    pub columns: Vec<Output>,
    /// Columns that together identify a row.
    pub identity: Option<Vec<usize>>,
    /// Roughly how many rows it has.
    pub rows: f64,
    /// Its rows come in an order that leaves no choice.
    pub ordered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Plain,
    Grouped,
    Distinct,
    DistinctOn,
    Windowed,
}

/// A SELECT whose ORDER BY is not chosen yet.
struct Body {
    shape: Shape,
    /// What follows the select list.
    tail: String,
    /// What the select list and ORDER BY may mention.
    scope: Scope,
    outputs: Vec<Output>,
    /// The select list, where it is not simply the outputs.
    star: Option<String>,
}

const MOST_ROWS: f64 = 4000.0;

impl Generator {
    /// A whole statement, and whether its rows are in an order that leaves no choice.
    pub fn top(&mut self) -> (String, bool) {
        let mut with = Vec::new();
        let mut recursive = false;
        let common = if self.simple { 6 } else { 22 };
        if self.random.chance(common) {
            for _ in 0..self.random.between(1, 2) {
                with.push(self.common_query());
            }
        }
        if self.random.chance(4) {
            recursive = true;
            with.push(self.recursive());
        }
        let relations = self
            .random
            .weighted(&[(30, 1), (34, 2), (20, 3), (10, 4), (6, 5)]);
        let query = self.query(&Ask {
            relations,
            rows: MOST_ROWS,
            top: true,
            ..Ask::default()
        });
        let text = match with.is_empty() {
            true => query.text,
            false => {
                let recursive = if recursive { "recursive " } else { "" };
                format!("with {recursive}{} {}", with.join(", "), query.text)
            }
        };
        (text, query.ordered)
    }

    fn common_query(&mut self) -> String {
        let relations = self.random.weighted(&[(5, 1), (3, 2), (1, 3)]);
        let query = self.query(&Ask {
            relations,
            rows: 800.0,
            ..Ask::default()
        });
        let name = self.alias("q");
        let kept = self
            .random
            .pick(&["", "", "materialized ", "not materialized "]);
        let text = format!("{name} as {kept}({})", query.text);
        self.commons.push(Common { name, query });
        text
    }

    fn recursive(&mut self) -> String {
        let name = self.alias("r");
        let (text, first) = match self.random.below(3) {
            0 => {
                let start = self.random.between(1, 30);
                let text = format!(
                    "{name}(c1, c2) as (select id, 1 from account where id = {start} \
                     union all select a.id, {name}.c2 + 1 from account a join {name} \
                     on a.parent_id = {name}.c1 where {name}.c2 < 4)"
                );
                (text, Type::Int8)
            }
            1 => {
                let start = self.literal(Type::Int8).text;
                let text = format!(
                    "{name}(c1, c2) as (select account_id, 0 from note where account_id < {start} \
                     union select a.parent_id, {name}.c2 + 1 from {name}, account a \
                     where a.id = {name}.c1 and {name}.c2 < 5)"
                );
                (text, Type::Int8)
            }
            _ => {
                let text = format!(
                    "{name}(c1, c2) as (select 1, 1 union all select c1 + 1, \
                     (select count(*)::int4 from word w where w.n = {name}.c1) \
                     from {name} where c1 < {})",
                    self.random.between(3, 9)
                );
                (text, Type::Int4)
            }
        };
        let output = |number: usize, kind: Type| Output {
            value: Expression::new("", kind),
            name: format!("c{number}"),
            distinct: 10.0,
        };
        let query = Query {
            text: String::new(),
            columns: vec![output(1, first), output(2, Type::Int4)],
            identity: None,
            rows: 30.0,
            ordered: false,
        };
        self.commons.push(Common { name, query });
        text
    }

    /// A query as `ask` wants it.
    pub fn query(&mut self, ask: &Ask) -> Query {
        let combined = if ask.top { 10 } else { 8 };
        if ask.want.is_empty() && !ask.correlate && self.random.chance(combined) {
            return self.combination(ask);
        }
        let body = self.body(ask);
        self.finish(ask, body)
    }

    /// UNION, INTERSECT or EXCEPT.
    fn combination(&mut self, ask: &Ask) -> Query {
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

    fn body(&mut self, ask: &Ask) -> Body {
        let named = self.random.chance(45) && Feature::Windows.is_wanted();
        let named = named.then(Vec::new);
        let outer = std::mem::replace(&mut self.windows, named);
        let mut body = self.body_without_windows(ask);
        let named = std::mem::replace(&mut self.windows, outer);
        if let Some(windows) = named.filter(|windows| !windows.is_empty()) {
            body.tail = format!("{} window {}", body.tail, windows.join(", "));
        }
        body
    }

    fn body_without_windows(&mut self, ask: &Ask) -> Body {
        let rows = if ask.rows > 0.0 { ask.rows } else { 500.0 };
        let from = self.from(ask.outer, ask.relations.max(1), rows);
        let From {
            text,
            mut scope,
            conditions,
            ..
        } = from;
        scope.outer = ask.outer.to_vec();
        self.spell_columns(&mut scope);
        let tail = self.with_where(ask, &scope, text, conditions);
        let shape = self.random.weighted(&[
            (38, Shape::Plain),
            (34, Shape::Grouped),
            (9, Shape::Distinct),
            (6, Shape::DistinctOn),
            (13, Shape::Windowed),
        ]);
        let shape = match shape {
            Shape::DistinctOn if scope.identity.is_none() => Shape::Distinct,
            shape => shape,
        };
        if shape == Shape::Grouped {
            return self.grouped(ask, scope, tail);
        }
        let mut outputs = Vec::new();
        let windowed = shape == Shape::Windowed;
        if windowed && ask.want.is_empty() {
            for _ in 0..self.random.between(1, 2) {
                let value = self.window(&scope);
                outputs.push(unnamed(value, scope.rows));
            }
        }
        // A derived table that shows what identifies its rows can be ordered outside.
        let identity = scope.identity.clone().filter(|_| ask.want.is_empty());
        if let Some(identity) = identity
            && (self.random.chance(50) && identity.len() < 4)
        {
            for value in identity {
                outputs.push(unnamed(value, scope.rows));
            }
        }
        self.outputs(ask, &scope, &mut outputs);
        if ask.want.is_empty()
            && shape == Shape::Plain
            && self.random.chance(6)
            && let Some(row) = self.row_value(&scope)
        {
            outputs.push(unnamed(row, 10.0));
        }
        let mut star = None;
        if ask.top && shape == Shape::Plain && self.random.chance(10) {
            star = self.star(&scope, &mut outputs);
        }
        Body {
            shape,
            tail,
            scope,
            outputs,
            star,
        }
    }

    /// All columns of one table, or its whole row as one value.
    fn star(&mut self, scope: &Scope, outputs: &mut Vec<Output>) -> Option<String> {
        if scope.whole_rows.is_empty() || !Feature::Rows.is_wanted() {
            return None;
        }
        let alias = self.random.pick(&scope.whole_rows);
        let prefix = format!("{alias}.");
        let columns = scope.columns.iter();
        let columns = columns.filter(|column| column.value.text.starts_with(&prefix));
        *outputs = columns
            .map(|column| unnamed(column.value.clone(), column.distinct))
            .collect();
        let mut list = format!("{alias}.*");
        if self.random.chance(30) {
            // What has no equality is not ordered by.
            outputs.push(unnamed(Expression::new(alias.clone(), Type::Row), 1.0));
            list = format!("{list}, {alias}");
        }
        Some(list)
    }

    fn with_where(
        &mut self,
        ask: &Ask,
        scope: &Scope,
        from: String,
        mut conditions: Vec<String>,
    ) -> String {
        if ask.correlate
            && let Some(condition) = self.correlation(scope)
        {
            conditions.push(condition);
        }
        if ask.top && self.around.timed {
            let moment = self.leaf(scope, Type::Timestamptz).text;
            conditions.push(self.clock_condition(&moment));
        }
        let by_key = if ask.top { 17 } else { 6 };
        if self.random.chance(by_key)
            && let Some(condition) = self.key_condition(scope)
        {
            conditions.push(condition);
        }
        // Few, or most results would be empty.
        if self.random.chance(36) {
            conditions.push(self.condition(scope, 2));
        }
        match conditions.is_empty() {
            true => format!(" from {from}"),
            false => format!(" from {from} where {}", conditions.join(" and ")),
        }
    }

    /// An equality with a column of an outer level.
    fn correlation(&mut self, scope: &Scope) -> Option<String> {
        let mut pairs = Vec::new();
        for inner in &scope.columns {
            for outer in &scope.outer {
                let (x, y) = (inner.value.kind, outer.value.kind);
                if (x == y && x.is_comparable()) || (x.is_integer() && y.is_integer()) {
                    pairs.push((inner.value.text.clone(), outer.value.text.clone()));
                }
            }
        }
        if pairs.is_empty() {
            return None;
        }
        let (inner, outer) = self.random.pick(&pairs);
        let operator = self
            .random
            .pick(&["=", "=", "=", "=", "<", "is not distinct from"]);
        Some(format!("{inner} {operator} {outer}"))
    }

    /// Fills up the select list.
    fn outputs(&mut self, ask: &Ask, scope: &Scope, outputs: &mut Vec<Output>) {
        if ask.want.is_empty() {
            let more = self.random.between(i64::from(outputs.is_empty()), 4);
            for _ in 0..more {
                let kind = self.any_kind(scope);
                let column = self.column(scope, kind).filter(|_| self.random.chance(55));
                let (value, distinct) = match column {
                    Some(column) => (column.value, column.distinct),
                    None => (self.expression(scope, kind, 2), 10.0),
                };
                outputs.push(unnamed(value, distinct));
            }
        } else {
            outputs.clear();
            for &kind in &ask.want {
                let value = self.expression(scope, kind, 1);
                let value = match ask.exact {
                    // Another arm's column may hold the same number with another scale.
                    true if kind == Type::Numeric => Expression {
                        text: format!("trim_scale({})", value.text),
                        exact: true,
                        ..value
                    },
                    true => self.exact(value),
                    false => value,
                };
                outputs.push(unnamed(value, 10.0));
            }
        }
    }

    fn grouped(&mut self, ask: &Ask, scope: Scope, mut tail: String) -> Body {
        let keys = self.group_keys(&scope);
        let texts: Vec<String> = keys.iter().map(|key| key.value.text.clone()).collect();
        let mut identity: Vec<Expression> = keys.iter().map(|key| key.value.clone()).collect();
        let mut by_number = false;
        if !keys.is_empty() {
            let all = texts.join(", ");
            // Servers before 18 take a column that a condition makes one value for one that an ORDER BY
            // needs no more, though a set that lacks it has NULL there.
            let filtered = tail.contains(" where ");
            let sets = match self.random.below(14) {
                _ if filtered => None,
                0 => Some(format!("rollup ({all})")),
                1 => Some(format!("cube ({all})")),
                2 => Some(format!("grouping sets (({all}), ())")),
                3 if keys.len() > 1 => {
                    let rest = texts[1..].join(", ");
                    Some(format!("grouping sets (({}), ({rest}), ())", texts[0]))
                }
                _ => None,
            };
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
        let count = self.random.between(i64::from(keys.is_empty()), 4);
        let mut columns = keys.clone();
        for _ in 0..count {
            columns.push(Column {
                value: self.aggregate(&scope),
                name: String::new(),
                other: None,
                distinct: 10.0,
            });
        }
        let rows = keys.iter().map(|key| key.distinct).product::<f64>();
        let after = Scope {
            rows: rows.min(scope.rows),
            columns: columns.clone(),
            outer: scope.outer.clone(),
            identity: Some(identity),
            grouped: true,
            whole_rows: Vec::new(),
        };
        if self.random.chance(25) {
            let having = match self.random.chance(50) {
                true => format!("{} > {}", self.count_of(&scope), self.random.between(0, 3)),
                false => self.condition(&after, 1),
            };
            tail = format!("{tail} having {having}");
        }
        let mut outputs = Vec::new();
        if ask.want.is_empty() {
            let shown: &[Column] = match by_number || self.random.chance(75) {
                true => &columns,
                false => &columns[keys.len().min(columns.len() - 1)..],
            };
            for column in shown {
                let value = self.spelled(column);
                outputs.push(unnamed(value, column.distinct));
            }
            if self.random.chance(18) {
                let value = self.window(&after);
                outputs.push(unnamed(value, 10.0));
            }
            if self.random.chance(30) {
                let kind = self.any_kind(&after);
                let value = self.expression(&after, kind, 1);
                outputs.push(unnamed(value, 10.0));
            }
        } else {
            self.outputs(ask, &after, &mut outputs);
        }
        Body {
            shape: Shape::Grouped,
            tail,
            scope: after,
            outputs,
            star: None,
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

    /// Puts the select list, ORDER BY and LIMIT around `body`.
    fn finish(&mut self, ask: &Ask, mut body: Body) -> Query {
        let distinct = body.shape == Shape::Distinct;
        if distinct {
            body.outputs
                .retain(|output| output.value.kind.is_comparable());
            if body.outputs.is_empty() {
                body.outputs
                    .push(unnamed(Expression::new("1", Type::Int4), 1.0));
            }
            for output in &mut body.outputs {
                output.value = self.exact(output.value.clone());
            }
        }
        let on: Vec<Expression> = match body.shape {
            Shape::DistinctOn => self.distinct_on(&body.scope),
            _ => Vec::new(),
        };
        if on.is_empty() && body.shape == Shape::DistinctOn {
            body.shape = Shape::Plain;
        }
        let list = match body.star.take() {
            Some(star) => star,
            None => self.name_outputs(ask, &mut body.outputs),
        };
        let text = match body.shape {
            Shape::Distinct => format!("select distinct {list}{}", body.tail),
            Shape::DistinctOn => {
                let on: Vec<&str> = on.iter().map(|value| value.text.as_str()).collect();
                format!("select distinct on ({}) {list}{}", on.join(", "), body.tail)
            }
            _ => format!("select {list}{}", body.tail),
        };
        let identity = identity_of(&body, &on);
        let mut query = Query {
            text,
            rows: body.scope.rows,
            identity,
            columns: body.outputs.clone(),
            ordered: false,
        };
        self.order_and_limit(ask, &body, &on, &mut query);
        query
    }

    fn distinct_on(&mut self, scope: &Scope) -> Vec<Expression> {
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

    fn name_outputs(&mut self, ask: &Ask, outputs: &mut [Output]) -> String {
        let mut list = Vec::new();
        let shadows = outputs
            .iter()
            .any(|output| output.value.text.ends_with("name"));
        for (index, output) in outputs.iter_mut().enumerate() {
            let named = !ask.top || self.random.chance(60);
            output.name = match named {
                // A name that a column has as well: ORDER BY means the output.
                true if ask.top && index == 0 && !shadows && self.random.chance(20) => {
                    "name".to_owned()
                }
                // Subqueries call theirs c1, c2 ..., and an output without a name gets its column's.
                true if ask.top => format!("x{}", index + 1),
                true => format!("c{}", index + 1),
                false => String::new(),
            };
            list.push(match named {
                true => format!("{} as {}", output.value.text, output.name),
                false => output.value.text.clone(),
            });
        }
        list.join(", ")
    }

    fn order_and_limit(&mut self, ask: &Ask, body: &Body, on: &[Expression], query: &mut Query) {
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

    fn limit(&mut self, most: Option<i64>) -> String {
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

fn unnamed(value: Expression, distinct: f64) -> Output {
    Output {
        value,
        name: String::new(),
        distinct,
    }
}

/// The type of `smallint % integer` and so on.
fn wider(kind: Type) -> Type {
    match kind {
        Type::Int8 => Type::Int8,
        _ => Type::Int4,
    }
}

/// Outputs that together identify a row of the result.
fn identity_of(body: &Body, on: &[Expression]) -> Option<Vec<usize>> {
    if body.shape == Shape::Distinct {
        return Some((0..body.outputs.len()).collect());
    }
    let place = |value: &Expression| {
        let mut outputs = body.outputs.iter();
        outputs.position(|output| output.value.text == value.text)
    };
    let whole = match body.shape {
        Shape::DistinctOn => on.iter().map(place).collect(),
        _ => None,
    };
    let identity = body.scope.identity.as_ref()?;
    whole.or_else(|| identity.iter().map(place).collect())
}
