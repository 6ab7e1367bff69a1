use super::*;

/// Captured from a server; `document.sql` says how.
fn catalog() -> Catalog {
    Catalog::from_document(include_str!("tests/document.json")).expect("the fixture is a document")
}

fn relation<'a>(catalog: &'a Catalog, name: &str) -> &'a Relation {
    let path = ["public".to_owned(), "App".to_owned()];
    catalog
        .resolve(&path, None, name)
        .unwrap_or_else(|| panic!("{name} is not in the fixture"))
}

#[test]
fn reads_shards_and_ring() {
    let catalog = catalog();
    assert_eq!(catalog.epoch, 2);
    assert_eq!(catalog.home(), 1);
    assert_eq!(
        catalog.shard(2).map(|shard| shard.name.as_str()),
        Some("shard2")
    );
    assert_eq!(catalog.shard(3), None);
    assert_eq!(catalog.ring.shard_of(0), Some(2));
    assert!(catalog.has_placed_relations);
    assert!(catalog.schemas.contains(&"App".to_owned()));
}

#[test]
fn resolves_names_by_the_search_path() {
    let catalog = catalog();
    let public = ["public".to_owned()];
    assert!(catalog.resolve(&public, None, "users").is_some());
    assert!(catalog.resolve(&public, None, "Odd Table").is_none());
    assert!(catalog.resolve(&public, Some("App"), "Odd Table").is_some());
    assert!(catalog.resolve(&[], None, "users").is_none());
    assert!(
        catalog
            .resolve(&public, Some("automator67"), "tables")
            .is_some()
    );
    for hidden in ["placement", "login"] {
        assert!(
            catalog
                .resolve(&public, Some("automator67"), hidden)
                .is_none(),
            "{hidden}"
        );
    }
    assert!(catalog.resolve(&public, None, "temporary").is_none());
}

#[test]
fn reads_placements() {
    let catalog = catalog();
    let placement = |name| relation(&catalog, name).placement.clone();
    let distributed = |key: &str, key_type, colocation| Placement::Distributed {
        key: key.to_owned(),
        key_type,
        colocation,
    };
    assert_eq!(placement("users"), distributed("id", KeyType::Integer, 1));
    assert_eq!(
        placement("orders"),
        distributed("user_id", KeyType::Integer, 1)
    );
    assert_eq!(placement("Odd Table"), distributed("Key", KeyType::Uuid, 2));
    assert_eq!(placement("countries"), Placement::Reference);
    assert_eq!(placement("local_t"), Placement::Local);
}

#[test]
fn reads_columns() {
    let catalog = catalog();
    let users = relation(&catalog, "users");
    assert_eq!(users.primary_key, ["id"]);
    assert_eq!(relation(&catalog, "orders").primary_key, ["user_id", "no"]);

    let name = users.column("name").unwrap();
    assert_eq!(
        (name.type_oid, name.sql_type.as_str(), name.not_null),
        (25, "text", true)
    );
    assert_eq!(name.collate, " COLLATE pg_catalog.\"C\"");
    assert_eq!(name.default.as_deref(), Some("'it''s'::text"));

    let doubled = users.column("doubled").unwrap();
    assert_eq!((doubled.generated, &doubled.default), (true, &None));
    assert_eq!(users.column("id").unwrap().identity_always, None);
    assert_eq!(
        relation(&catalog, "orders")
            .column("no")
            .unwrap()
            .identity_always,
        Some(true)
    );
}

#[test]
fn knows_the_sequences_behind_columns() {
    let catalog = catalog();
    let sequence = |table, column| {
        relation(&catalog, table)
            .column(column)
            .and_then(|column| column.sequence.clone())
    };
    assert_eq!(
        sequence("users", "id").as_deref(),
        Some("public.users_id_seq")
    );
    assert_eq!(
        sequence("orders", "no").as_deref(),
        Some("public.orders_no_seq")
    );
    assert_eq!(
        sequence("local_t", "id").as_deref(),
        Some("\"App\".\"My'Seq\"")
    );
    assert_eq!(sequence("users", "created"), None);
}

#[test]
fn only_types_without_oids_travel_in_binary() {
    let catalog = catalog();
    let users = relation(&catalog, "users");
    let unportable: Vec<&str> = users
        .columns
        .iter()
        .filter(|column| !column.portable_binary)
        .map(|column| column.name.as_str())
        .collect();
    assert_eq!(unportable, ["feeling", "cls", "moods"]);
}

#[test]
fn only_some_columns_can_be_keys() {
    let catalog = catalog();
    let users = relation(&catalog, "users");
    let key_type = |name| users.column(name).unwrap().key_type();
    assert_eq!(key_type("id"), Ok(KeyType::Integer));
    assert_eq!(key_type("name"), Ok(KeyType::Text));
    assert_eq!(key_type("created"), Ok(KeyType::TimestampTz));
    for name in ["size", "feeling", "tags", "soft", "doubled"] {
        assert!(key_type(name).is_err(), "{name}");
    }
    let mut rounded = users.column("created").unwrap().clone();
    rounded.sql_type = "timestamp(3) with time zone".to_owned();
    assert!(rounded.key_type().is_err());
}

#[test]
fn knows_what_views_read() {
    let catalog = catalog();
    let reads_placed = |name| relation(&catalog, name).reads_placed;
    for (view, expected) in [
        ("v_users", true),
        ("v_v", true),
        ("m_users", true),
        ("v_m", false),
        ("v_local", false),
        ("users", false),
        ("ruled", false),
    ] {
        assert_eq!(reads_placed(view), expected, "{view}");
    }
    let definition = relation(&catalog, "v_v")
        .view_definition
        .as_deref()
        .unwrap();
    assert!(definition.contains("FROM public.v_users"), "{definition}");
    assert!(!definition.trim_end().ends_with(';'), "{definition}");
}

#[test]
fn judges_functions() {
    let catalog = catalog();
    let safety = |name: &str| match catalog.functions.get(name) {
        Some(FunctionSafety::Safe) => "safe",
        Some(FunctionSafety::HomeOnly(_)) => "home",
        Some(FunctionSafety::Unsafe(_)) => "unsafe",
        None => "none",
    };
    for (name, expected) in [
        ("reads_users", "unsafe"),
        ("reads_view", "unsafe"),
        ("calls_unsafe", "unsafe"),
        ("dynamic", "unsafe"),
        ("odd", "unsafe"),
        ("standard", "unsafe"),
        ("agg_unsafe", "unsafe"),
        ("dblink", "unsafe"),
        ("overloaded", "home"),
        ("uses_seq", "home"),
        ("calls_home", "home"),
        ("log_user", "unsafe"),
        ("pure", "safe"),
        ("checked", "safe"),
        ("touch", "safe"),
        ("uuid_generate_v4", "none"),
        ("bump", "none"),
    ] {
        assert_eq!(
            safety(name),
            expected,
            "{name}: {:?}",
            catalog.functions.get(name)
        );
    }
    let chain = FunctionSafety::Unsafe(
        "Function \"calls_unsafe\" calls \"reads_users\". \
         Function \"reads_users\" names the distributed table \"users\"."
            .to_owned(),
    );
    assert_eq!(catalog.functions["calls_unsafe"], chain);
    assert!(matches!(
        catalog.operators.get("###"),
        Some(FunctionSafety::Unsafe(_))
    ));
    for (name, expected) in [
        ("uuid_generate_v4", true),
        ("calls_unsafe", false),
        ("reads_users", true),
        ("pure", false),
    ] {
        assert_eq!(
            catalog.volatile_functions.contains(name),
            expected,
            "{name}"
        );
    }
}

#[test]
fn knows_unsafe_writes() {
    let catalog = catalog();
    let writes = |name| {
        let danger = relation(&catalog, name).unsafe_writes.as_ref();
        danger.map(|danger| danger.why.as_str())
    };
    for (name, expected) in [
        ("users", None),
        ("audit", Some("references distributed table \"users\"")),
        ("badorders", Some("does not join the shard keys")),
        ("Odd Table", Some("does not join the shard keys")),
        (
            "orders",
            Some("Trigger \"set_key\" is not safe. Function \"set_key\" assigns the shard key"),
        ),
        ("countries", Some("Trigger \"log_country\" is not safe.")),
        ("local_t", Some("Trigger \"notes\" is not safe.")),
        (
            "checked_t",
            Some("Function \"reads_users\" names the distributed table \"users\"."),
        ),
        ("ruled", Some("has a rule")),
        ("secured", Some("Row level security")),
        ("parted", None),
    ] {
        match (writes(name), expected) {
            (None, None) => {}
            (Some(why), Some(part)) if why.contains(part) => {}
            (why, _) => panic!("{name}: {why:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn knows_unsafe_reads() {
    let catalog = catalog();
    for (name, expected) in [
        ("v_calls", true),
        ("v_v_calls", true),
        ("v_operator", true),
        ("secured", true),
        ("v_users", false),
        ("users", false),
    ] {
        let reads = &relation(&catalog, name).unsafe_reads;
        assert_eq!(reads.is_some(), expected, "{name}: {reads:?}");
    }
}

#[test]
fn knows_families_and_foreign_keys() {
    let catalog = catalog();
    assert!(relation(&catalog, "parted").inherits);
    assert!(relation(&catalog, "parted_1").inherits);
    assert!(!relation(&catalog, "users").inherits);
    let name = |name: &str| QualifiedName {
        schema: "public".to_owned(),
        name: name.to_owned(),
    };
    let expected = ForeignKey {
        name: "orders_user_id_fkey".to_owned(),
        table: name("orders"),
        columns: vec!["user_id".to_owned()],
        referenced_table: name("users"),
        referenced_columns: vec!["id".to_owned()],
    };
    assert!(
        catalog.foreign_keys.contains(&expected),
        "{:?}",
        catalog.foreign_keys
    );
}

#[test]
fn a_key_changed_behind_our_back_makes_one_table_useless() {
    let check = |column: &str, expected: &str| {
        let json = format!(
            r#"{{"epoch": 1, "relations": [{{"oid": 1, "schema": "s", "name": "t", "kind": "r",
            "placement": {{"kind": "distributed", "key": 1, "key_type": "integer", "colocation": 1}},
            "columns": [{column}]}},
            {{"oid": 2, "schema": "s", "name": "v", "kind": "v", "view": "SELECT 1", "reads_placed": true}},
            {{"oid": 3, "schema": "s", "name": "other", "kind": "r"}}],
            "view_reads": [[2, 1]],
            "functions": [{{"oid": 4, "name": "f", "language": "sql", "body": "select from t"}}]}}"#
        );
        let catalog = Catalog::from_document(&json).expect(column);
        let relation = |name| catalog.resolve(&[], Some("s"), name).expect(name);
        let why = relation("t").unusable.as_deref().unwrap_or_default();
        assert!(why.contains(expected), "{why}");
        // What reads it stays away from it.
        assert!(catalog.has_placed_relations && relation("v").unsafe_reads.is_some());
        let function = &catalog.functions["f"];
        assert!(
            matches!(function, FunctionSafety::Unsafe(_)),
            "{function:?}"
        );
        assert_eq!(relation("other").unusable, None);
    };
    check(
        r#"{"attnum": 2, "name": "b", "type": 23, "sql_type": "integer"}"#,
        "dropped",
    );
    check(
        r#"{"attnum": 1, "name": "a", "type": 25, "sql_type": "text"}"#,
        "type was changed",
    );
    check(
        r#"{"attnum": 1, "name": "a", "type": 16, "sql_type": "boolean"}"#,
        "a shard key is a",
    );
}

#[test]
fn what_could_not_be_read_is_not_used() {
    let catalog = Catalog::from_document(
        r#"{"epoch": 1, "incomplete": true, "relations": [
        {"oid": 1, "schema": "s", "name": "v", "kind": "v", "reads_placed": true},
        {"oid": 2, "schema": "s", "name": "local", "kind": "v"}],
        "functions": [{"oid": 3, "name": "f", "language": "sql"}]}"#,
    )
    .expect("a document");
    assert!(catalog.incomplete);
    let unusable = |name| {
        let relation = catalog.resolve(&[], Some("s"), name).expect(name);
        relation.unusable.is_some()
    };
    assert!(unusable("v") && !unusable("local"));
    assert!(matches!(catalog.functions["f"], FunctionSafety::Unsafe(_)));
    assert!(catalog.residues.of_statement("select f()", false).may_keep);
}

#[test]
fn what_calls_temporary_functions_is_not_safe() {
    let catalog = Catalog::from_document(
        r#"{"epoch": 1, "relations": [
        {"oid": 1, "schema": "s", "name": "v", "kind": "v"},
        {"oid": 2, "schema": "s", "name": "t", "kind": "r"}],
        "functions": [{"oid": 3, "name": "f", "language": "sql", "body": "select g()"},
        {"oid": 4, "name": "h", "language": "sql", "body": "select pg_temp.g()"}],
        "function_calls": [[3, 0]], "relation_calls": [[1, 0]], "operators": [["+++", 0]],
        "triggers": [{"relation": 2, "name": "x", "function": 0, "type": 4, "arguments": ""}]}"#,
    )
    .expect("a document");
    for name in ["f", "h"] {
        let function = &catalog.functions[name];
        assert!(
            matches!(function, FunctionSafety::Unsafe(_)),
            "{function:?}"
        );
    }
    assert!(matches!(
        catalog.operators["+++"],
        FunctionSafety::Unsafe(_)
    ));
    let relation = |name| catalog.resolve(&[], Some("s"), name).expect(name);
    assert!(relation("v").unsafe_reads.is_some());
    assert!(relation("t").unsafe_writes.is_some());
    assert!(
        catalog
            .residues
            .of_statement("select * from v", false)
            .may_keep
    );
}

#[test]
fn functions_are_declared_safe_by_their_oids() {
    let catalog = Catalog::from_document(
        r#"{"epoch": 1, "safe_functions": [1], "functions": [
        {"oid": 1, "name": "f", "language": "sql", "body": "select nextval('x')"},
        {"oid": 2, "name": "g", "language": "sql", "body": "select nextval('x')"},
        {"oid": 3, "name": "g", "language": "sql", "body": "select 1"}]}"#,
    )
    .expect("a document");
    assert_eq!(catalog.functions["f"], FunctionSafety::Safe);
    assert!(matches!(
        catalog.functions["g"],
        FunctionSafety::HomeOnly(_)
    ));
}

#[test]
fn finds_calls_of_temporary_functions() {
    for (text, expected) in [
        ("select pg_temp.f(1)", true),
        ("select \"pg_temp\" . \"f g\" (1)", true),
        ("select pg_temp_3.f()", true),
        ("select 1 operator(pg_temp.+) 2", true),
        ("select * from pg_temp.t where a = f(1)", false),
        ("insert into pg_temp.t (a) values (1)", false),
        ("create table pg_temp.t (a integer)", false),
        ("set search_path = pg_catalog, pg_temp", false),
    ] {
        assert_eq!(crate::functions::calls_temporary(text), expected, "{text}");
    }
}

fn with_split(split: &str) -> Result<Catalog, DocumentError> {
    let json = format!(
        r#"{{"epoch": 1, "shards": [{{"id": 1, "name": "a", "home": true}}],
        "splits": [{split}], "tenants": [["t", 7]], "relations": [
        {{"oid": 1, "schema": "s", "name": "keyed", "kind": "r",
            "placement": {{"kind": "distributed", "key": 1, "key_type": "integer", "colocation": 7}},
            "columns": [{{"attnum": 1, "name": "a", "type": 23, "sql_type": "integer"}}]}},
        {{"oid": 2, "schema": "t", "name": "plain", "kind": "r",
            "placement": {{"kind": "schema", "colocation": 8}}, "columns": []}}]}}"#
    );
    Catalog::from_document(&json)
}

#[test]
fn groups_say_where_values_are() {
    let integer = |number| crate::key::KeyValue::Integer(number);
    let owner = |split: &str, number| with_split(split).expect(split).owner(7, &integer(number));
    let ranges = r#"{"group": 7, "method": "range", "key_type": "integer",
        "ranges": [["10", 3], [null, 2]]}"#;
    assert_eq!(owner(ranges, 9), Owner::Shard(2));
    assert_eq!(owner(ranges, 10), Owner::Shard(3));
    let directory =
        r#"{"group": 7, "method": "directory", "key_type": "integer", "entries": [["5", 2]]}"#;
    assert_eq!(owner(directory, 5), Owner::Shard(2));
    assert_eq!(owner(directory, 6), Owner::Unassigned("6".to_owned()));
    let schema = r#"{"group": 7, "method": "schema", "shard": 3}"#;
    assert_eq!(owner(schema, 1), Owner::Shard(3));
    // A group that is not listed is one by hash; without a ring nothing is anywhere.
    assert_eq!(owner("", 1), Owner::Nowhere);
    let catalog = with_split(ranges).expect("ranges");
    assert_eq!(
        catalog.owner(7, &crate::key::KeyValue::Null),
        Owner::Shard(1)
    );
    let keyed = catalog.resolve(&[], Some("s"), "keyed").expect("keyed");
    assert_eq!(keyed.placement.group(), Some(7));
    assert_eq!(catalog.members(8).len(), 1);
    assert_eq!(catalog.tenants.get("t"), Some(&7));
}

#[test]
fn groups_that_are_none_make_their_tables_useless() {
    for split in [
        r#"{"group": 7, "method": "range", "key_type": "integer"}"#,
        r#"{"group": 7, "method": "range", "key_type": "integer", "ranges": [["1", 1]]}"#,
        r#"{"group": 7, "method": "range", "key_type": "integer", "ranges": [[null, 1], ["x", 1]]}"#,
        r#"{"group": 7, "method": "range", "ranges": [[null, 1]]}"#,
        r#"{"group": 7, "method": "schema"}"#,
    ] {
        let catalog = with_split(split).expect(split);
        let keyed = catalog.resolve(&[], Some("s"), "keyed").expect("keyed");
        let why = keyed.unusable.as_deref().unwrap_or_default();
        assert!(why.contains("colocation group 7"), "{why}");
        let plain = catalog.resolve(&[], Some("t"), "plain").expect("plain");
        assert_eq!(plain.unusable, None);
    }
}

#[test]
fn malformed_documents_are_errors() {
    for json in [
        "",
        "{}",
        "[]",
        "{\"epoch\": -1}",
        "{\"epoch\": 1, \"ring\": [[1]]}",
    ] {
        let error = Catalog::from_document(json);
        assert!(matches!(error, Err(DocumentError::Json(_))), "{json}");
    }
    let empty = Catalog::from_document("{\"epoch\": 1}").expect("an empty catalog");
    assert!(!empty.has_placed_relations);
    assert_eq!(empty.home(), 1);
}

#[test]
fn triggers_may_not_move_rows() {
    for (body, moves) in [
        ("begin new.updated = now(); return new; end", false),
        (
            "begin if tg_op = 'DELETE' then return old; end if; return NEW; end",
            false,
        ),
        ("begin return null; end", false),
        ("begin new.\"Id\" := 1; return new; end", true),
        ("begin new := other(new); return new; end", true),
        ("begin NEW = row(1, 2); return new; end", true),
        ("declare r record; begin return r; end", true),
        ("begin select 1, 2 into new; return new; end", true),
        ("begin renew := 1; x.new := 2; return new; end", false),
    ] {
        assert_eq!(keys::changes("f", body, "Id").is_some(), moves, "{body}");
    }
}

/// Tables of schema `s`, each with an integer column `a`: `d` is distributed by it, `r` is a
/// reference table, all others are local. Then more of the document.
fn reaching(relations: &[(u32, &str)], more: &str) -> Catalog {
    let column = r#""columns": [{"attnum": 1, "name": "a", "type": 23, "sql_type": "integer"},
        {"attnum": 2, "name": "b", "type": 900, "sql_type": "s.dom"}]"#;
    let relation = |(oid, name): &(u32, &str)| {
        let (kind, name) = name.split_once(' ').unwrap_or(("r", name));
        let placement = match name {
            "d" => {
                r#""placement": {"kind": "distributed", "key": 1, "key_type": "integer", "colocation": 1},"#
            }
            "r" => r#""placement": {"kind": "reference"},"#,
            _ => "",
        };
        let (kind, secured) = match kind {
            "secured" => ("r", r#""row_security": true,"#),
            kind => (kind, ""),
        };
        let column = if kind == "v" || name == "plain" {
            "\"columns\": []"
        } else {
            column
        };
        format!(
            r#"{{"oid": {oid}, "schema": "s", "name": "{name}", "kind": "{kind}", {placement} {secured} {column}}}"#
        )
    };
    let relations: Vec<String> = relations.iter().map(relation).collect();
    let json = format!(
        r#"{{"epoch": 1, "relations": [{}], {more}}}"#,
        relations.join(",")
    );
    Catalog::from_document(&json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// Which of the relations cannot be read, and which cannot be written.
fn dangers(catalog: &Catalog) -> (Vec<&str>, Vec<&str>) {
    let named = |danger: &dyn Fn(&Relation) -> bool| {
        let relations = catalog.relations.values().filter(|one| danger(one));
        let mut names: Vec<&str> = relations.map(|one| one.name.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    (
        named(&|one| one.unsafe_reads.is_some()),
        named(&|one| one.unsafe_writes.is_some()),
    )
}

const EVIL: &str =
    r#"{"oid": 50, "name": "evil", "language": "sql", "body": "select count(*) from d"}"#;

#[test]
fn policies_reach_what_they_read() {
    let tables = [
        (1, "d"),
        (2, "secured l"),
        (3, "l2"),
        (4, "r"),
        (5, "v v"),
        (6, "secured m"),
    ];
    // A policy that reads a distributed table, one that is not enabled, one that reads a copy.
    let catalog = reaching(
        &tables,
        r#""reach": {"policy_reads": [[2, 1], [3, 1], [6, 4]]}, "view_reads": [[5, 2]]"#,
    );
    assert_eq!(dangers(&catalog), (vec!["l", "v"], vec!["l", "v"]));
    // By a function, and by a view with such a function.
    let catalog = reaching(
        &tables,
        &format!(
            r#""functions": [{EVIL}], "relation_calls": [[2, 50]], "reach": {{"policy_reads": [[6, 2]]}}"#
        ),
    );
    assert_eq!(dangers(&catalog), (vec!["l", "m"], vec!["l", "m"]));
}

#[test]
fn every_kind_of_code_is_judged() {
    for (what, more) in [
        ("default, check, index", r#""relation_calls": [[2, 50]]"#),
        (
            "partition, statistics",
            r#""routes": {"stored_calls": [[2, "read", 50]]}"#,
        ),
        (
            "condition of a trigger",
            r#""routes": {"stored_calls": [[2, "write", 50]]}"#,
        ),
        ("domain, cast", r#""reach": {"types": [[900, "dom", 50]]}"#),
        (
            "row trigger",
            r#""triggers": [{"relation": 2, "name": "x", "function": 50, "type": 5, "arguments": ""}]"#,
        ),
        (
            "statement trigger",
            r#""triggers": [{"relation": 2, "name": "x", "function": 50, "type": 4, "arguments": ""}]"#,
        ),
        (
            "rule, child",
            r#""relation_calls": [[3, 50]], "routes": {"follows": [[2, 3]]}"#,
        ),
        (
            "cascade",
            r#""triggers": [{"relation": 3, "name": "x", "function": 50, "type": 9, "arguments": ""}],
            "routes": {"follows": [[2, 3]]}, "cascades": [[3, 2]]"#,
        ),
    ] {
        let tables = [(1, "plain"), (2, "l"), (3, "l2"), (9, "d")];
        let catalog = reaching(&tables, &format!(r#""functions": [{EVIL}], {more}"#));
        let (reads, writes) = dangers(&catalog);
        assert!(writes.contains(&"l"), "{what}: {writes:?}");
        assert!(!writes.contains(&"plain"), "{what}: {writes:?}");
        assert!(reads.is_empty(), "{what}: {reads:?}");
    }
}

#[test]
fn an_insert_trigger_is_nothing_to_a_cascade() {
    let catalog = reaching(
        &[(2, "l"), (3, "l2"), (9, "d")],
        &format!(
            r#""functions": [{EVIL}], "triggers": [{{"relation": 3, "name": "x", "function": 50, "type": 5,
            "arguments": ""}}], "routes": {{"follows": [[2, 3]]}}, "cascades": [[3, 2]]"#
        ),
    );
    assert_eq!(dangers(&catalog).1, ["l2"]);
}

#[test]
fn functions_are_no_safer_than_the_relations_they_name() {
    let functions = format!(
        r#""functions": [{EVIL},
        {{"oid": 51, "name": "writes", "language": "sql", "body": "insert into l values (1)"}},
        {{"oid": 52, "name": "reads", "language": "sql", "body": "select a from l"}},
        {{"oid": 53, "name": "outer", "language": "plpgsql", "body": "begin perform writes(); end"}},
        {{"oid": 54, "name": "made", "language": "sql", "body": "select 1::dom"}}],
        "reach": {{"types": [[901, "dom", 50]]}},
        "triggers": [{{"relation": 2, "name": "x", "function": 50, "type": 5, "arguments": ""}},
        {{"relation": 3, "name": "y", "function": 53, "type": 5, "arguments": ""}}]"#
    );
    let catalog = reaching(&[(2, "l"), (3, "l2"), (9, "d")], &functions);
    let is_unsafe = |name: &str| matches!(catalog.functions[name], FunctionSafety::Unsafe(_));
    for name in ["writes", "outer", "made"] {
        assert!(is_unsafe(name), "{name}: {:?}", catalog.functions[name]);
    }
    assert!(matches!(
        catalog.functions["reads"],
        FunctionSafety::HomeOnly(_)
    ));
    assert_eq!(dangers(&catalog).1, ["l", "l2"]);
    assert!(matches!(catalog.types["dom"], FunctionSafety::Unsafe(_)));
}

#[test]
fn no_declaration_lets_a_trigger_tell_or_move_rows() {
    let check = |body: &str, kind: u32, hint: &str| {
        let catalog = reaching(
            &[(1, "d")],
            &format!(
                r#""functions": [{{"oid": 51, "name": "f", "language": "plpgsql", "body": "{body}"}}],
                "safe_functions": [51],
                "triggers": [{{"relation": 1, "name": "x", "function": 51, "type": {kind}, "arguments": ""}}]"#
            ),
        );
        let relation = catalog.resolve(&[], Some("s"), "d").expect("a table");
        let danger = relation.unsafe_writes.as_ref().expect(body);
        assert!(danger.hint.contains(hint), "{danger:?}");
        assert!(!danger.hint.contains("declare"), "{danger:?}");
    };
    check(
        "begin new.a := new.a + 1000; return new; end",
        7,
        "final value",
    );
    check("begin new.a = 1; return new; end", 23, "final value");
    check(
        "begin perform pg_notify('c', 'x'); return new; end",
        5,
        "notification",
    );
    check("begin notify c; return null; end", 9, "notification");
}

#[test]
fn copies_of_a_row_get_equal_values() {
    let triggers = |body: &str| {
        let catalog = reaching(
            &[(1, "r")],
            &format!(
                r#""functions": [{{"oid": 51, "name": "f", "language": "plpgsql", "body": "{body}"}}],
                "triggers": [{{"relation": 1, "name": "x", "function": 51, "type": 7, "arguments": ""}}]"#
            ),
        );
        dangers(&catalog).1.len()
    };
    assert_eq!(triggers("begin new.b := now(); return new; end"), 1);
    assert_eq!(
        triggers("begin new.b := gen_random_uuid(); return new; end"),
        1
    );
    assert_eq!(triggers("begin new.b := new.a + 1; return new; end"), 0);
}

#[test]
fn keys_to_rows_of_other_shards_are_judged_from_both_ends() {
    let key = r#""foreign_keys": [{"name": "k", "table": 2, "columns": [1], "referenced_table": 1,
        "referenced_columns": [1]}]"#;
    let tables = [(1, "d"), (2, "p l"), (3, "part")];
    let catalog = reaching(
        &tables,
        &format!(r#"{key}, "routes": {{"follows": [[2, 3]]}}"#),
    );
    assert_eq!(dangers(&catalog).1, ["l", "part"]);
    let catalog = reaching(
        &tables,
        &format!(r#"{key}, "reach": {{"not_valid": [[2, "k"]]}}"#),
    );
    assert_eq!(dangers(&catalog).1, ["d", "l"]);
}

#[test]
fn knows_triggers_that_see_a_whole_statement() {
    let trigger = |name: &str, kind: u32| {
        format!(
            r#"{{"relation": 1, "name": "{name}", "function": 51, "type": {kind}, "arguments": ""}}"#
        )
    };
    let triggers = [
        trigger("totals", 4 + 8),
        trigger("each_row", 1 + 4),
        trigger("with_table", 1 + 16),
        trigger("a67_index_1_insert", 4),
    ];
    let catalog = reaching(
        &[(1, "d")],
        &format!(
            r#""functions": [{{"oid": 51, "name": "f", "language": "plpgsql", "body": "begin return null; end"}}],
            "triggers": [{}], "reach": {{"transitions": [[1, "with_table"]]}}"#,
            triggers.join(",")
        ),
    );
    let relation = catalog.resolve(&[], Some("s"), "d").expect("a table");
    let triggers = &relation.statement_triggers;
    let found: Vec<(&str, &[Change])> = triggers
        .iter()
        .map(|one| (one.name.as_str(), one.changes.as_slice()))
        .collect();
    assert_eq!(
        found,
        [
            ("totals", &[Change::Insert, Change::Delete][..]),
            ("with_table", &[Change::Update][..])
        ]
    );
}

#[test]
fn functions_that_define_are_known() {
    let catalog = reaching(
        &[(2, "l")],
        r#""functions": [
        {"oid": 51, "name": "makes", "language": "plpgsql", "body": "begin create type t as (a int); end"},
        {"oid": 52, "name": "checked", "language": "plpgsql", "body": "begin create type t as (a int); end"},
        {"oid": 53, "name": "stages", "language": "plpgsql", "body": "begin create temp table x (a int); end"},
        {"oid": 54, "name": "calls", "language": "sql", "body": "select makes()"}],
        "function_calls": [[54, 51]], "safe_functions": [52]"#,
    );
    let mut names: Vec<&str> = catalog.definers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["calls", "makes"]);
}
