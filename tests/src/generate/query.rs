//! Queries: SELECT with all its clauses, set operations, WITH.

mod combination;
mod grouped;
mod order;
mod recursive;
mod subquery;

use super::{Column, Common, Expression, Feature, Generator, Scope, relation::From, schema::Type};

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

    /// A query as `ask` wants it.
    pub fn query(&mut self, ask: &Ask) -> Query {
        let combined = if ask.top { 10 } else { 8 };
        if ask.want.is_empty() && !ask.correlate && self.random.chance(combined) {
            return self.combination(ask);
        }
        let body = self.body(ask);
        self.finish(ask, body)
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
}

fn unnamed(value: Expression, distinct: f64) -> Output {
    Output {
        value,
        name: String::new(),
        distinct,
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
