//! FROM clauses.

use super::{
    Column, Expression, Feature, Generator, Scope,
    query::{Ask, Query},
    schema::{TABLES, Table, Type},
};

/// A FROM clause or a part of one.
#[derive(Debug, Clone)]
pub struct From {
    /// Without the word FROM.
    pub text: String,
    /// What it offers.
    pub scope: Scope,
    /// What must be added to WHERE, so that relations after commas are joined.
    pub conditions: Vec<String>,
    /// There are several relations.
    pub joined: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Inner,
    Left,
    Right,
    Full,
    Cross,
}

impl Join {
    fn words(self) -> &'static str {
        match self {
            Join::Inner => "join",
            Join::Left => "left join",
            Join::Right => "right join",
            Join::Full => "full join",
            Join::Cross => "cross join",
        }
    }
}

/// Tables, by their places in `TABLES`, that are distributed by their first columns, of one type.
const KEY_PAIRS: [(usize, usize); 22] = [
    (0, 1),
    (0, 1),
    (1, 0),
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (2, 6),
    (12, 12),
    (13, 3),
    (14, 18),
    (15, 15),
    (16, 16),
    (17, 0),
    (18, 18),
    (19, 3),
    (20, 21),
    (21, 21),
    (22, 20),
    (23, 2),
    (11, 0),
];

impl Generator {
    /// A FROM clause with up to `relations` relations and roughly up to `rows` rows, inside of a
    /// query whose outer levels offer `outer`.
    pub fn from(&mut self, outer: &[Column], relations: usize, rows: f64) -> From {
        if relations > 1 && self.random.chance(20) {
            let mut from = self.by_key(outer);
            if relations > 2 && self.random.chance(60) {
                let item = self.item(outer, rows);
                from = self.join(from, item, rows);
            }
            return from;
        }
        if relations == 2
            && self.random.chance(16)
            && let Some(from) = self.using(outer, rows)
        {
            return from;
        }
        if relations > 1 && self.random.chance(15) {
            return self.comma_list(outer, relations, rows);
        }
        self.tree(outer, relations, rows)
    }

    fn tree(&mut self, outer: &[Column], relations: usize, rows: f64) -> From {
        if relations <= 1 {
            return self.item(outer, rows);
        }
        let right_relations = match self.random.chance(20) {
            true => relations / 2,
            false => 1,
        };
        let left = self.tree(outer, relations - right_relations, rows);
        if right_relations == 1 && self.random.chance(10) {
            return self.lateral(outer, left, rows);
        }
        let mut right = self.tree(outer, right_relations, rows);
        if right.joined {
            right.text = format!("({})", right.text);
        }
        self.join(left, right, rows)
    }

    fn comma_list(&mut self, outer: &[Column], relations: usize, rows: f64) -> From {
        let mut list = self.item(outer, rows);
        for _ in 1..relations {
            let item = self.item(outer, rows);
            let small = list.scope.rows * item.scope.rows <= rows.min(400.0);
            match self.equality(&list.scope, &item.scope, rows) {
                _ if small && self.random.chance(30) => {
                    list.conditions.extend(item.conditions);
                    let both = list.scope.rows * item.scope.rows;
                    list.text = format!("{}, {}", list.text, item.text);
                    list.scope = merge(list.scope, item.scope, both);
                }
                Some((condition, both)) => {
                    list.conditions.extend(item.conditions);
                    list.conditions.push(condition);
                    list.text = format!("{}, {}", list.text, item.text);
                    list.scope = merge(list.scope, item.scope, both);
                }
                None => break,
            }
        }
        list
    }

    pub(super) fn join(&mut self, left: From, right: From, rows: f64) -> From {
        let product = left.scope.rows * right.scope.rows;
        let mut join = self.random.weighted(&[
            (45, Join::Inner),
            (26, Join::Left),
            (11, Join::Right),
            (11, Join::Full),
            (7, Join::Cross),
        ]);
        let equality = self.equality(&left.scope, &right.scope, rows);
        let (condition, both) = match equality {
            Some(found) if join != Join::Cross || product > rows => found,
            _ if product <= rows => {
                join = Join::Cross;
                (String::new(), product)
            }
            _ => return left,
        };
        let conditions = [left.conditions, right.conditions].concat();
        if join == Join::Cross && !condition.is_empty()
            || join != Join::Cross && !conditions.is_empty()
        {
            join = Join::Inner;
        }
        let both = both.max(match join {
            Join::Left => left.scope.rows,
            Join::Right => right.scope.rows,
            Join::Full => left.scope.rows + right.scope.rows,
            _ => 0.0,
        });
        let mut scope = merge(left.scope, right.scope, both);
        scope.rows = both;
        let mut text = format!("{} {} {}", left.text, join.words(), right.text);
        if join != Join::Cross {
            text = format!("{text} on {condition}");
            if self.random.chance(18) {
                let depth = usize::from(join != Join::Full);
                text = format!("{text} and {}", self.condition(&scope, depth));
            }
        }
        From {
            text,
            scope,
            conditions,
            joined: true,
        }
    }

    /// An equality of a column of each side, and roughly how many pairs of rows satisfy it: at
    /// most `rows`.
    fn equality(&mut self, left: &Scope, right: &Scope, rows: f64) -> Option<(String, f64)> {
        let mut pairs = Vec::new();
        for a in &left.columns {
            for b in &right.columns {
                let (x, y) = (a.value.kind, b.value.kind);
                let same = x == y && x.is_comparable() && x != Type::Bool;
                if same || (x.is_integer() && y.is_integer()) {
                    let both = left.rows * right.rows / a.distinct.max(b.distinct).max(1.0);
                    if both <= rows {
                        pairs.push((format!("{} = {}", a.value.text, b.value.text), both));
                    }
                }
            }
        }
        if pairs.is_empty() {
            return None;
        }
        let mut chosen = self.random.pick(&pairs);
        let other = self.random.pick(&pairs);
        // Keys are joined more often than chance alone would.
        if other.1 < chosen.1 {
            chosen = other;
        }
        Some(chosen)
    }

    /// Two tables joined by what their rows are distributed by.
    fn by_key(&mut self, outer: &[Column]) -> From {
        let (first, second) = self.random.pick(&KEY_PAIRS);
        let (mut left, right) = (self.table(TABLES[first]), self.table(TABLES[second]));
        left.scope.outer = outer.to_vec();
        let key = |from: &From| from.scope.columns[0].value.text.clone();
        let (a, b) = (key(&left), key(&right));
        let join = self.random.pick(&[
            Join::Inner,
            Join::Inner,
            Join::Left,
            Join::Right,
            Join::Full,
        ]);
        let rows = left.scope.rows.max(right.scope.rows) * 4.0;
        let mut text = format!("{} {} {} on {a} = {b}", left.text, join.words(), right.text);
        let scope = merge(left.scope, right.scope, rows);
        if self.random.chance(18) {
            let depth = usize::from(join != Join::Full);
            text = format!("{text} and {}", self.condition(&scope, depth));
        }
        From {
            text,
            scope,
            conditions: Vec::new(),
            joined: true,
        }
    }

    /// Two tables joined USING a column that both have.
    fn using(&mut self, outer: &[Column], rows: f64) -> Option<From> {
        let (first, second) = (self.any_table(), self.any_table());
        let shared: Vec<(&str, f64, Type)> = first
            .columns
            .iter()
            .flat_map(|a| second.columns.iter().map(move |b| (a, b)))
            .filter(|(a, b)| a.name == b.name && a.kind == b.kind && a.kind.is_comparable())
            .map(|(a, b)| (a.name, f64::from(a.distinct.max(b.distinct)), a.kind))
            .filter(|(_, distinct, _)| f64::from(first.rows * second.rows) / distinct <= rows)
            .collect();
        if shared.is_empty() {
            return None;
        }
        let (name, distinct, kind) = self.random.pick(&shared);
        let names = shared_names(&first, &second);
        let natural = names.len() == 1 && names[0] == name && self.random.chance(75);
        let join = self
            .random
            .pick(&[Join::Inner, Join::Left, Join::Right, Join::Full]);
        let (left, right) = (self.table(first), self.table(second));
        let both = f64::from(first.rows * second.rows) / distinct + f64::from(first.rows);
        let mut scope = merge(left.scope, right.scope, both);
        let value = Expression::new(name, kind);
        scope.columns.push(Column {
            value,
            name: name.to_owned(),
            other: None,
            distinct,
        });
        scope.outer = outer.to_vec();
        let (left, right, words) = (&left.text, &right.text, join.words());
        Some(From {
            text: match natural {
                true => format!("{left} natural {words} {right}"),
                false => format!("{left} {words} {right} using ({name})"),
            },
            scope,
            conditions: Vec::new(),
            joined: true,
        })
    }

    /// One relation.
    fn item(&mut self, outer: &[Column], rows: f64) -> From {
        let mut from = match self.random.below(40) {
            0..=3 if self.afford() => self.derived(&[], rows),
            4..=9 if !self.commons.is_empty() => self.common(),
            10 => self.list_of_values(),
            11 | 12 if Feature::Functions.is_wanted() => self.function_item(),
            _ => {
                let table = self.any_table();
                self.table(table)
            }
        };
        from.scope.outer = outer.to_vec();
        from
    }

    /// One that the role of the statement may read, as a rule.
    pub(super) fn any_table(&mut self) -> Table {
        loop {
            let table = self.random.pick(&TABLES);
            if table.readable || !self.around.reader || self.random.chance(3) {
                return table;
            }
        }
    }

    pub(super) fn table(&mut self, table: Table) -> From {
        let alias = self.alias(&table.name[..1]);
        let columns: Vec<Column> = table
            .columns
            .iter()
            .map(|column| {
                let mut value = Expression::new(format!("{alias}.{}", column.name), column.kind);
                // The tables hold no two values that are equal and look different.
                value.exact = true;
                Column {
                    value,
                    name: column.name.to_owned(),
                    other: None,
                    distinct: f64::from(column.distinct),
                }
            })
            .collect();
        let identity = columns[..table.identity].iter();
        let identity = identity.map(|column| column.value.clone()).collect();
        let text = match self.random.chance(70) {
            true => format!("{} {alias}", table.name),
            false => format!("{} as {alias}", table.name),
        };
        From {
            text,
            scope: Scope {
                columns,
                identity: Some(identity),
                rows: f64::from(table.rows),
                whole_rows: vec![alias],
                ..Scope::default()
            },
            conditions: Vec::new(),
            joined: false,
        }
    }

    /// A subquery in FROM.
    fn derived(&mut self, outer: &[Column], rows: f64) -> From {
        let relations = self.random.weighted(&[(6, 1), (3, 2), (1, 3)]);
        let query = self.query(&Ask {
            outer,
            relations,
            rows: rows.min(1000.0),
            ..Ask::default()
        });
        let alias = self.alias("d");
        From {
            text: format!("({}) as {alias}", query.text),
            scope: query_scope(&query, &alias),
            conditions: Vec::new(),
            joined: false,
        }
    }

    fn common(&mut self) -> From {
        let common = self.random.pick(&self.commons);
        let alias = self.alias("w");
        From {
            text: format!("{} {alias}", common.name),
            scope: query_scope(&common.query, &alias),
            conditions: Vec::new(),
            joined: false,
        }
    }

    /// VALUES, `generate_series` or `unnest`.
    fn list_of_values(&mut self) -> From {
        let alias = self.alias("v");
        let number = Expression::new(format!("{alias}.c1"), Type::Int4);
        let word = Expression::new(format!("{alias}.c2"), Type::Text);
        let (text, columns) = match self.random.below(3) {
            0 => (
                format!(
                    "generate_series(1, {}) as {alias}(c1)",
                    self.random.between(2, 9)
                ),
                vec![number.clone()],
            ),
            1 => {
                let words = [self.literal(Type::Text).text, self.literal(Type::Text).text];
                (
                    format!(
                        "unnest(array[{}, {}]) with ordinality as {alias}(c2, c1)",
                        words[0], words[1]
                    ),
                    vec![word, Expression::new(number.text.clone(), Type::Int8)],
                )
            }
            _ => {
                let word_1 = self.literal(Type::Text).text;
                let text = format!(
                    "(values (1, {word_1}), (2, 'eve'), (3, null), (7, 'Bob')) as {alias}(c1, c2)"
                );
                (text, vec![number.clone(), word])
            }
        };
        let columns: Vec<Column> = columns
            .into_iter()
            .map(|value| Column {
                name: value.text.rsplit('.').next().unwrap_or_default().to_owned(),
                value,
                other: None,
                distinct: 4.0,
            })
            .collect();
        From {
            text,
            scope: Scope {
                columns,
                identity: Some(vec![number]),
                rows: 5.0,
                ..Scope::default()
            },
            conditions: Vec::new(),
            joined: false,
        }
    }

    /// `left` joined with a subquery that may mention it.
    fn lateral(&mut self, outer: &[Column], left: From, rows: f64) -> From {
        let visible: Vec<Column> = left.scope.columns.iter().chain(outer).cloned().collect();
        let word = self
            .random
            .pick(&["cross join lateral", "left join lateral"]);
        let on = if word.starts_with("left") {
            " on true"
        } else {
            ""
        };
        let wanted = self.random.chance(45) && Feature::Functions.is_wanted();
        let function = match wanted {
            true => self.lateral_function(&left.scope),
            false => None,
        };
        let (text, right, fanout) = if let Some(function) = function {
            function
        } else if left.scope.rows <= 300.0 && self.afford() {
            let query = self.correlated(&visible);
            let alias = self.alias("l");
            let scope = query_scope(&query, &alias);
            (format!("({}) as {alias}", query.text), scope, 3.0)
        } else {
            return left;
        };
        let both = left.scope.rows * fanout;
        if both > rows {
            return left;
        }
        let mut scope = merge(left.scope, right, both);
        scope.outer = outer.to_vec();
        From {
            text: format!("{} {word} {text}{on}", left.text),
            scope,
            conditions: left.conditions,
            joined: true,
        }
    }

    /// A subquery with few rows that mentions one of `visible`.
    fn correlated(&mut self, visible: &[Column]) -> Query {
        let few = (self.random.chance(50)).then(|| self.random.between(1, 3));
        self.query(&Ask {
            outer: visible,
            rows: 300.0,
            correlate: true,
            limit: few,
            ..Ask::default()
        })
    }
}

/// What NATURAL JOIN would compare.
fn shared_names(first: &Table, second: &Table) -> Vec<&'static str> {
    let known = |name: &str| second.columns.iter().any(|column| column.name == name);
    let names = first.columns.iter().map(|column| column.name);
    names.filter(|name| known(name)).collect()
}

/// The columns of a subquery under its alias.
pub fn query_scope(query: &Query, alias: &str) -> Scope {
    let columns: Vec<Column> = query
        .columns
        .iter()
        .map(|output| Column {
            value: Expression {
                text: format!("{alias}.{}", output.name),
                ..output.value.clone()
            },
            name: output.name.clone(),
            other: None,
            distinct: output.distinct,
        })
        .collect();
    let identity = query.identity.as_ref().map(|identity| {
        let values = identity.iter().map(|&index| columns[index].value.clone());
        values.collect()
    });
    Scope {
        columns,
        identity,
        rows: query.rows,
        whole_rows: vec![alias.to_owned()],
        ..Scope::default()
    }
}

fn merge(left: Scope, right: Scope, rows: f64) -> Scope {
    let identity = match (left.identity, right.identity) {
        (Some(mut left), Some(right)) => {
            left.extend(right);
            Some(left)
        }
        _ => None,
    };
    let mut columns = left.columns;
    columns.extend(right.columns);
    let mut whole_rows = left.whole_rows;
    whole_rows.extend(right.whole_rows);
    Scope {
        columns,
        outer: left.outer,
        identity,
        rows: rows.max(1.0),
        grouped: false,
        whole_rows,
    }
}
