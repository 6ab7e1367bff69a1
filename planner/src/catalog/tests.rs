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
        ("log_user", "home"),
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
    let writes = |name| relation(&catalog, name).unsafe_writes.as_deref();
    for (name, expected) in [
        ("users", None),
        ("audit", Some("references distributed table \"users\"")),
        ("badorders", Some("does not join the shard keys")),
        ("Odd Table", Some("does not join the shard keys")),
        (
            "orders",
            Some("Trigger \"set_key\" is not safe. Function \"set_key\" names the shard key"),
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
    let function = |body: &str| document::Function {
        oid: 1,
        name: "f".to_owned(),
        language: "plpgsql".to_owned(),
        extension: None,
        body: Some(body.to_owned()),
    };
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
        assert_eq!(
            safety::moves_key(&function(body), "Id").is_some(),
            moves,
            "{body}"
        );
    }
}
