//! A catalog from a few lines of text.

use std::collections::HashMap;

use crate::catalog::{
    Catalog, Change, Column, Danger, FunctionSafety, KeyType, Placement, QualifiedName, Ranges,
    Relation, RelationKind, Shard, Split, StatementTrigger, Temporary, UniqueIndex,
};
use crate::key::key_type_of;

/// Lines: `table [schema.]name [distributed|range|directory key group | schema group | reference]`
/// and indented columns;
/// `statement_trigger` behind them;
/// `view [schema.]name` and an indented query; `function name safe|home|unsafe`.
pub(super) fn read(text: &str) -> Catalog {
    let mut catalog = Catalog {
        shards: (1..=3)
            .map(|id| Shard {
                id,
                name: format!("shard{id}"),
                home: id == 1,
            })
            .collect(),
        schemas: vec!["public".to_owned()],
        has_placed_relations: true,
        ..Catalog::default()
    };
    let mut relation: Option<Relation> = None;
    for line in text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        if let Some(inside) = line.strip_prefix("  ") {
            let relation = relation.as_mut().expect("a relation before its lines");
            if relation.kind == RelationKind::View {
                if let Some(column) = inside.strip_prefix("column ") {
                    relation.columns.push(column_of(relation, column).0);
                    continue;
                }
                relation
                    .view_definition
                    .get_or_insert_default()
                    .push_str(inside);
                continue;
            }
            let (column, key) = column_of(relation, inside);
            if key {
                relation.primary_key.push(column.name.clone());
            }
            relation.columns.push(column);
            continue;
        }
        finish(&mut catalog, relation.take());
        relation = start(&mut catalog, line);
    }
    finish(&mut catalog, relation.take());
    let aggregates = "count sum avg min max array_agg string_agg bool_and every stddev mode";
    catalog.aggregates = aggregates.split(' ').map(str::to_owned).collect();
    catalog
}

fn danger(why: &str) -> Danger {
    Danger {
        why: why.to_owned(),
        hint: "Do something else.".to_owned(),
    }
}

/// `schema.name`, or a name in `public`.
pub(super) fn qualified(text: &str) -> QualifiedName {
    let (schema, name) = text.split_once('.').unwrap_or(("public", text));
    QualifiedName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    }
}

/// `schema.table column`
pub(super) fn add_unique_index(catalog: &mut Catalog, text: &str) {
    let (table, column) = text.split_once(' ').expect("a table and a column");
    let table = qualified(table);
    let id = catalog.unique_indexes.len() as u32 + 1;
    catalog.indexed.insert(table.clone());
    catalog.unique_indexes.push(UniqueIndex {
        id,
        name: format!("{}_{column}_key", table.name),
        table,
        column: column.to_owned(),
    });
}

/// `a, index b, type c, unsafe d`: tables with a column `id`, and other things of a session.
pub(super) fn temporary(catalog: &Catalog, list: &str) -> Temporary {
    let parts: Vec<(&str, &str)> = list
        .split(", ")
        .map(|part| part.split_once(' ').unwrap_or(("table", part)))
        .collect();
    let of = |wanted: &[&str]| -> Vec<&str> {
        let parts = parts.iter().filter(|(kind, _)| wanted.contains(kind));
        parts.map(|(_, name)| *name).collect()
    };
    let tables = of(&["table", "unsafe"]);
    let relations: Vec<String> = tables
        .iter()
        .enumerate()
        .map(|(oid, name)| {
            format!(
                r#"{{"oid": {oid}, "schema": "pg_temp", "name": "{name}", "kind": "r", "columns":
                [{{"attnum": 1, "name": "id", "type": 20, "sql_type": "bigint"}}]}}"#
            )
        })
        .collect();
    let calls: Vec<String> = tables
        .iter()
        .enumerate()
        .filter(|(_, name)| of(&["unsafe"]).contains(*name))
        .map(|(oid, _)| format!(r#"[{oid}, "read", 0]"#))
        .collect();
    let json = format!(
        r#"{{"relations": [{}], "indexes": {:?}, "types": {:?}, "calls": [{}]}}"#,
        relations.join(","),
        of(&["index"]),
        of(&["type"]),
        calls.join(",")
    );
    let mut catalog = catalog.clone();
    let why = "A temporary function can read any table.";
    catalog.unsafe_functions.insert(0, why.to_owned());
    Temporary::read(&json, &catalog).expect("a document")
}

fn finish(catalog: &mut Catalog, relation: Option<Relation>) {
    if let Some(mut relation) = relation {
        if let Placement::Distributed { key, key_type, .. } = &mut relation.placement {
            let column = relation.columns.iter().find(|column| column.name == *key);
            *key_type = column
                .and_then(|c| key_type_of(c.type_oid))
                .expect("a key column");
        }
        catalog.relations.insert(relation.name.clone(), relation);
    }
}

fn start(catalog: &mut Catalog, line: &str) -> Option<Relation> {
    let words: Vec<&str> = line.split(' ').collect();
    if let ["function", name, safety] = words.as_slice() {
        let why = || format!("Function \"{name}\" does things.");
        let safety = match *safety {
            "safe" => FunctionSafety::Safe,
            "home" => FunctionSafety::HomeOnly(why()),
            _ => FunctionSafety::Unsafe(why()),
        };
        catalog.functions.insert((*name).to_owned(), safety);
        return None;
    }
    if let ["volatile", name] = words.as_slice() {
        catalog.volatile_functions.insert((*name).to_owned());
        return None;
    }
    let (schema, name) = words[1].split_once('.').unwrap_or(("public", words[1]));
    let by_key = |key: &str, colocation| Placement::Distributed {
        key: key.to_owned(),
        key_type: KeyType::Integer,
        colocation,
    };
    let behind = words[2..]
        .iter()
        .filter(|word| **word != "statement_trigger");
    let behind: Vec<&str> = behind.copied().collect();
    let placement = match behind.as_slice() {
        ["distributed", key, group] => by_key(key, group.parse().expect("a number")),
        ["range", key, group] => {
            let group = group.parse().expect("a number");
            let ranges = Ranges::new(vec![(None, 1)]).expect("a range");
            catalog.splits.insert(group, Split::Ranges(ranges));
            by_key(key, group)
        }
        ["directory", key, group] => {
            let group = group.parse().expect("a number");
            let split = Split::Directory {
                key_type: KeyType::Text,
                entries: HashMap::new(),
            };
            catalog.splits.insert(group, split);
            by_key(key, group)
        }
        ["schema", group] => {
            let colocation = group.parse().expect("a number");
            catalog.splits.insert(colocation, Split::Whole(2));
            catalog.tenants.insert(schema.to_owned(), colocation);
            catalog.schemas.push(schema.to_owned());
            Placement::Schema { colocation }
        }
        ["reference"] => Placement::Reference,
        _ => Placement::Local,
    };
    let view = words[0] == "view";
    Some(Relation {
        name: QualifiedName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        },
        oid: 0,
        kind: match words[0] {
            "view" => RelationKind::View,
            "materialized" => RelationKind::MaterializedView,
            _ => RelationKind::Table,
        },
        placement,
        columns: Vec::new(),
        primary_key: Vec::new(),
        view_definition: None,
        reads_numbers: false,
        reads_placed: view && words.get(2) != Some(&"local"),
        unsafe_writes: words
            .contains(&"unsafe_writes")
            .then(|| danger("Trigger \"t\" does things.")),
        statement_triggers: words
            .contains(&"statement_trigger")
            .then(|| StatementTrigger {
                name: "totals".to_owned(),
                changes: vec![Change::Insert, Change::Update, Change::Truncate],
            })
            .into_iter()
            .collect(),
        unsafe_reads: words
            .contains(&"unsafe_reads")
            .then(|| danger("It does things.")),
        unusable: None,
        inherits: false,
    })
}

fn column_of(relation: &Relation, line: &str) -> (Column, bool) {
    let (line, default) = match line.split_once(" default ") {
        Some((line, default)) => (line, Some(default.to_owned())),
        None => (line, None),
    };
    let words: Vec<&str> = line.split(' ').collect();
    let (type_oid, sql_type) = match words[1] {
        "smallint" => (21, "smallint"),
        "integer" => (23, "integer"),
        "bigint" => (20, "bigint"),
        "text" => (25, "text"),
        "varchar(5)" => (1043, "character varying(5)"),
        "char(3)" => (1042, "character(3)"),
        "uuid" => (2950, "uuid"),
        "date" => (1082, "date"),
        "timestamp" => (1114, "timestamp without time zone"),
        "timestamptz" => (1184, "timestamp with time zone"),
        "numeric" => (1700, "numeric"),
        "boolean" => (16, "boolean"),
        "jsonb" => (3802, "jsonb"),
        "mood" => (20000, "public.mood"),
        other => panic!("no such type: {other}"),
    };
    let sequence = format!(
        "{}.{}_{}_seq",
        relation.name.schema, relation.name.name, words[0]
    );
    let has = |word: &str| words.contains(&word);
    let drawn = has("serial") || has("identity") || has("always");
    let default = if has("serial") {
        Some(format!("nextval('{sequence}'::regclass)"))
    } else {
        default
    };
    let column = Column {
        name: words[0].to_owned(),
        type_oid,
        sql_type: sql_type.to_owned(),
        collate: String::new(),
        not_null: has("pk"),
        default,
        generated: has("generated"),
        identity_always: if has("always") {
            Some(true)
        } else {
            has("identity").then_some(false)
        },
        sequence: drawn.then_some(sequence),
        portable_binary: type_oid < 16384,
        nondeterministic: false,
    };
    (column, has("pk"))
}
