//! Expressions in two spellings: a key of GROUP BY or an item of ORDER BY that stands elsewhere in
//! other words. Postgres takes most pairs for equal, and refuses the rest with 42803 or 42P10.

use super::{Column, Expression, Feature, Generator, Scope, schema::Type};

/// `{}` is a column; the second may be another spelling of the same.
type Pair = (&'static str, &'static str, Type);

const OF_TEXT: [Pair; 16] = [
    ("lower({})", "pg_catalog.lower({})", Type::Text),
    ("upper({})", "UPPER ( ({}) )", Type::Text),
    (
        "substring({} from 1 for 2)",
        "substring({}, 1, 2)",
        Type::Text,
    ),
    (
        "substring({}, 2)",
        "pg_catalog.substring({} , 2)",
        Type::Text,
    ),
    (
        "position('b' in {})",
        "pg_catalog.position({}, 'b')",
        Type::Int4,
    ),
    ("trim({})", "btrim({})", Type::Text),
    ("trim(leading 'a' from {})", "ltrim({}, 'a')", Type::Text),
    (
        "overlay({} placing 'q' from 1)",
        "overlay({}, 'q', 1)",
        Type::Text,
    ),
    ("({} like '%b%')", "({} ~~ '%b%')", Type::Bool),
    (
        "({} in ('ann', 'bob'))",
        "({} = any (array['ann', 'bob']))",
        Type::Bool,
    ),
    (
        "({} not in ('ann', 'bob'))",
        "({} <> all (array['ann', 'bob']))",
        Type::Bool,
    ),
    (
        "({} || '!')",
        "({} operator(pg_catalog.||) '!')",
        Type::Text,
    ),
    (
        "(case when {} > 'b' then 1 end)",
        "(case when {} > 'b' then 1 else null end)",
        Type::Int4,
    ),
    ("({} collate \"C\")", "(({}) COLLATE \"C\")", Type::Text),
    ("length({})", "char_length({})", Type::Int4),
    ("substr({}, 1, 2)", "substring({}, 1, 2)", Type::Text),
];

const OF_INTEGERS: [Pair; 13] = [
    ("({} % 3)", "({}%3)", Type::Int4),
    ("({} in (1, 2))", "({} = any (array[1, 2]))", Type::Bool),
    ("({} in (1, 7))", "({} = some (array[1, 7]))", Type::Bool),
    ("({} between 2 and 5)", "({} >= 2 and {} <= 5)", Type::Bool),
    ("({} <> 3)", "({} != 3)", Type::Bool),
    ("cast({} as int8)", "{}::int8", Type::Int8),
    ("abs({})", "pg_catalog.abs({})", Type::Int4),
    ("({} is null)", "({} isnull)", Type::Bool),
    ("coalesce({}, 0)", "coalesce({}, 0::int4)", Type::Int4),
    (
        "({} + 1)",
        "({} operator(pg_catalog.+) int4 '1')",
        Type::Int4,
    ),
    ("(not {} = 4)", "(not ({} = 4))", Type::Bool),
    (
        "(case {} when 1 then 'a' else 'b' end)",
        "(case when {} = 1 then 'a' else 'b' end)",
        Type::Text,
    ),
    ("mod({}, 3)", "({} % 3)", Type::Int4),
];

const OF_MOMENTS: [Pair; 6] = [
    (
        "extract(month from {})",
        "pg_catalog.extract('month', {})",
        Type::Numeric,
    ),
    (
        "extract(day from {})",
        "date_part('day', {})",
        Type::Numeric,
    ),
    (
        "date_trunc('day', {})",
        "pg_catalog.date_trunc('day', {})",
        Type::Timestamp,
    ),
    ("cast({} as date)", "{}::date", Type::Date),
    (
        "({} + interval '1 day')",
        "({} + '1 day'::interval)",
        Type::Timestamp,
    ),
    (
        "({} at time zone 'UTC')",
        "timezone('UTC', {})",
        Type::Timestamptz,
    ),
];

impl Generator {
    /// An expression over `column` that has another spelling; `None` for types that lack one.
    pub(super) fn spelled_twice(&mut self, column: &Column) -> Option<Column> {
        if !Feature::Spellings.is_wanted() {
            return None;
        }
        let pair = match column.value.kind {
            Type::Text => self.random.pick(&OF_TEXT),
            Type::Int4 => self.random.pick(&OF_INTEGERS),
            Type::Timestamp => self.random.pick(&OF_MOMENTS),
            _ => return None,
        };
        let (first, second, kind) = pair;
        let (text, other) = (&column.value.text, &column.other);
        let other = match other {
            Some(other) if self.random.chance(50) => other,
            _ => text,
        };
        let value = Expression {
            exact: true,
            ..Expression::new(first.replace("{}", text), kind)
        };
        Some(Column {
            value,
            name: String::new(),
            other: Some(second.replace("{}", other)),
            distinct: 8.0,
        })
    }

    /// Gives columns of relations other spellings: without the relation, if no other column has
    /// the name, and as a field of the whole row.
    pub(super) fn spell_columns(&mut self, scope: &mut Scope) {
        if !Feature::Spellings.is_wanted() {
            return;
        }
        let names: Vec<String> = scope.columns.iter().map(|it| it.name.clone()).collect();
        for column in &mut scope.columns {
            let Some((alias, name)) = column.value.text.split_once('.') else {
                continue;
            };
            if name != column.name || name.is_empty() {
                continue;
            }
            let alone = names.iter().filter(|other| *other == name).count() == 1;
            let whole = scope.whole_rows.iter().any(|row| row == alias);
            column.other = match self.random.below(8) {
                0..=4 if alone => Some(name.to_owned()),
                6 | 7 if whole && Feature::Fields.is_wanted() => {
                    let row = self.random.pick(&["({})", "({}.*)"]).replace("{}", alias);
                    Some(format!("{row}.{name}"))
                }
                _ => None,
            };
        }
    }

    /// `column` in one of its spellings.
    pub(super) fn spelled(&mut self, column: &Column) -> Expression {
        let value = column.value.clone();
        match &column.other {
            Some(other) if self.random.chance(30) => Expression {
                text: other.clone(),
                ..value
            },
            _ => value,
        }
    }

    /// `text`, or what else the scope's column with this text is called.
    pub(super) fn respelled(&mut self, scope: &Scope, text: &str) -> String {
        let column = scope.columns.iter().find(|it| it.value.text == text);
        match column {
            Some(column) => self.spelled(&column.clone()).text,
            None => text.to_owned(),
        }
    }
}
