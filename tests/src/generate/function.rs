//! Functions and catalogs in FROM.

use super::{Column, Expression, Generator, Scope, relation::From, schema::Type};

/// A relation that is no table: its text (`{}` is its alias), its columns, the one that identifies
/// a row, and what must stand in WHERE.
type Made = (
    &'static str,
    &'static [(&'static str, Type)],
    usize,
    &'static str,
);

const FUNCTIONS: [Made; 16] = [
    (
        "generate_series(timestamp '2024-03-09 20:00', '2024-03-10 20:00', '8 hours') as {}(c1)",
        &[("c1", Type::Timestamp)],
        0,
        "",
    ),
    (
        "generate_series(3, -6, -3) {}(c1)",
        &[("c1", Type::Int4)],
        0,
        "",
    ),
    (
        "jsonb_each('{\"a\": 1, \"b\": \"ann\", \"c\": null}') as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Jsonb)],
        0,
        "",
    ),
    (
        "jsonb_each_text('{\"ann\": 1, \"b\": [2]}') as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Text)],
        0,
        "",
    ),
    (
        "jsonb_array_elements('[1, {\"a\": 2}, null]') with ordinality as {}(c1, c2)",
        &[("c1", Type::Jsonb), ("c2", Type::Int8)],
        1,
        "",
    ),
    (
        "jsonb_object_keys('{\"ann\": 1, \"eve\": 2}') as {}(c1)",
        &[("c1", Type::Text)],
        0,
        "",
    ),
    (
        "jsonb_to_recordset('[{\"c1\": 1, \"c2\": \"ann\"}, {\"c1\": 5, \"c3\": 2.50}]') \
         as {}(c1 int4, c2 text, c3 numeric)",
        &[
            ("c1", Type::Int4),
            ("c2", Type::Text),
            ("c3", Type::Numeric),
        ],
        0,
        "",
    ),
    (
        "jsonb_populate_record(null::pair, '{\"a\": 3, \"b\": \"eve\"}') as {}(c1, c2)",
        &[("c1", Type::Int4), ("c2", Type::Text)],
        0,
        "",
    ),
    (
        "unnest(array[1, 2, 5], array['ann', 'eve']) as {}(c1, c2)",
        &[("c1", Type::Int4), ("c2", Type::Text)],
        0,
        "",
    ),
    (
        "unnest(array[row(1, 'ann'), row(2, null)]::pair[]) as {}(c1, c2)",
        &[("c1", Type::Int4), ("c2", Type::Text)],
        0,
        "",
    ),
    (
        "rows from (generate_series(1, 3), string_to_table('ann,bob', ',')) as {}(c1, c2)",
        &[("c1", Type::Int4), ("c2", Type::Text)],
        0,
        "",
    ),
    (
        "regexp_split_to_table('ann bob', ' ') with ordinality as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Int8)],
        1,
        "",
    ),
    (
        "(select relname::text as c1, relnatts::int4 as c2, relkind::text as c3 from pg_class \
         where relnamespace = 'public'::regnamespace and relname in ('account', 'word', 'busy')) as {}",
        &[("c1", Type::Text), ("c2", Type::Int4), ("c3", Type::Text)],
        0,
        "",
    ),
    (
        "(select column_name::text as c1, ordinal_position::int4 as c2, data_type::text as c3 \
         from information_schema.columns where table_schema = 'public' and table_name = 'entry') as {}",
        &[("c1", Type::Text), ("c2", Type::Int4), ("c3", Type::Text)],
        0,
        "",
    ),
    (
        "pg_type {}",
        &[
            ("typname::text", Type::Text),
            ("typlen", Type::Int2),
            ("typbyval", Type::Bool),
        ],
        0,
        "{}.oid < 1000 and {}.typname in ('int4', 'text', 'bool', 'json')",
    ),
    (
        "pg_class {}",
        &[
            ("relname::text", Type::Text),
            ("relnatts", Type::Int2),
            ("relisshared", Type::Bool),
        ],
        0,
        "{}.relnamespace = 'public'::regnamespace and {}.relname in ('account', 'word', 'tiny')",
    ),
];

/// Functions of a column of the relation before them: the column's type, the call, its columns, the
/// one that identifies a row among those of one call, and roughly how many there are.
type Lateral = (
    Type,
    &'static str,
    &'static [(&'static str, Type)],
    usize,
    f64,
);

const LATERAL: [Lateral; 7] = [
    (
        Type::Texts,
        "unnest({x}) with ordinality as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Int8)],
        1,
        2.0,
    ),
    (
        Type::Jsonb,
        "jsonb_each({x}) as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Jsonb)],
        0,
        3.0,
    ),
    (
        Type::Jsonb,
        "jsonb_each_text({x}) as {}(c1, c2)",
        &[("c1", Type::Text), ("c2", Type::Text)],
        0,
        3.0,
    ),
    (
        Type::Jsonb,
        "jsonb_array_elements({x} -> 'c') with ordinality as {}(c1, c2)",
        &[("c1", Type::Jsonb), ("c2", Type::Int8)],
        1,
        2.0,
    ),
    (
        Type::Jsonb,
        "jsonb_to_record({x}) as {}(a int4, b text)",
        &[("a", Type::Int4), ("b", Type::Text)],
        0,
        1.0,
    ),
    (
        Type::Int4,
        "generate_series(1, {x} % 4) as {}(c1)",
        &[("c1", Type::Int4)],
        0,
        2.0,
    ),
    (
        Type::Ints,
        "unnest({x}, array['ann', 'eve']) with ordinality as {}(c1, c2, c3)",
        &[("c1", Type::Int4), ("c2", Type::Text), ("c3", Type::Int8)],
        2,
        2.0,
    ),
];

impl Generator {
    /// A function or a catalog.
    pub(super) fn function_item(&mut self) -> From {
        let alias = self.alias("f");
        let (text, columns, identity, condition) = self.random.pick(&FUNCTIONS);
        let scope = scope(&alias, columns, identity, 4.0);
        let condition = condition.replace("{}", &alias);
        From {
            text: text.replace("{}", &alias),
            scope,
            conditions: (!condition.is_empty())
                .then_some(condition)
                .into_iter()
                .collect(),
            joined: false,
        }
    }

    /// A function of a column of `left`, what it offers, and roughly how many rows it has.
    pub(super) fn lateral_function(&mut self, left: &Scope) -> Option<(String, Scope, f64)> {
        let (kind, call, columns, identity, rows) = self.random.pick(&LATERAL);
        // JSON of the tables is objects; of anything else it need not be.
        let fits = |column: &&Column| {
            column.value.kind == kind && (kind != Type::Jsonb || column.name == "data")
        };
        let column = left.columns.iter().find(fits)?;
        let alias = self.alias("l");
        let text = call
            .replace("{}", &alias)
            .replace("{x}", &column.value.text);
        Some((text, scope(&alias, columns, identity, rows), rows))
    }
}

fn scope(alias: &str, columns: &[(&str, Type)], identity: usize, rows: f64) -> Scope {
    let columns: Vec<Column> = columns
        .iter()
        .map(|(name, kind)| Column {
            value: Expression {
                exact: true,
                ..Expression::new(format!("{alias}.{name}"), *kind)
            },
            name: (*name).to_owned(),
            other: None,
            distinct: 4.0,
        })
        .collect();
    Scope {
        identity: Some(vec![columns[identity].value.clone()]),
        // Of one column the name would mean the value, and rows of catalogs hold OIDs.
        whole_rows: match columns.len() {
            2 => vec![alias.to_owned()],
            _ => Vec::new(),
        },
        columns,
        rows,
        ..Scope::default()
    }
}
