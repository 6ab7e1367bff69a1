use serde_json::{Value, json};

use crate::catalog::{Catalog, QualifiedName};

/// A table with a column of each type.
fn table(oid: u32, name: &str, types: &[u32]) -> Value {
    let column = |(at, type_oid): (usize, &u32)| json!({"attnum": at + 1, "name": format!("c{at}"), "type": type_oid, "sql_type": "x"});
    let columns: Vec<Value> = types.iter().enumerate().map(column).collect();
    json!({"oid": oid, "schema": "public", "name": name, "kind": "r", "columns": columns})
}

fn document() -> Value {
    json!({
        "epoch": 7,
        "shards": [{"id": 1, "name": "s1", "home": true}],
        "relations": [table(20000, "t", &[23, 30000]), table(20001, "u", &[23])],
        "foreign_keys": [{"name": "f", "table": 20001, "columns": [1], "referenced_table": 20000,
            "referenced_columns": [1]}],
        "routes": {"follows": [[20000, 20001]], "looks_up": [[20001, 20000], [20000, 20001]]},
    })
}

fn news(since: u64, relations: &[Value], more: Value) -> Value {
    let mut news = json!({"since": since, "relations": relations});
    let fields = more.as_object().into_iter().flatten();
    for (field, value) in fields {
        news[field] = value.clone();
    }
    json!({"epoch": since + 2, "news": news})
}

fn known(document: &Value) -> Catalog {
    Catalog::from_document(&document.to_string()).expect("a document")
}

fn newer(document: &Value, news: &Value) -> Option<Catalog> {
    let newer = known(document).newer(&news.to_string());
    newer.expect("it is understood")
}

#[test]
fn entries_take_the_place_of_old_ones() {
    let changed = [
        table(20000, "t", &[23, 30000, 25]),
        table(20002, "v", &[20]),
    ];
    let key = json!({"name": "g", "table": 20002, "columns": [1], "referenced_table": 20000,
        "referenced_columns": [1]});
    let old = json!({"name": "f", "table": 20001, "columns": [1], "referenced_table": 20000,
        "referenced_columns": [1]});
    let more = json!({
        "foreign_keys": [key, old],
        "follows": [[20000, 20002]],
        "looks_up": [[20002, 20000], [20001, 20000]],
        "not_valid": [[20002, "g"]],
    });
    let found = newer(&document(), &news(7, &changed, more)).expect("it is put together");
    let mut whole = document();
    whole["epoch"] = json!(9);
    whole["relations"] = json!([changed[0], table(20001, "u", &[23]), changed[1]]);
    let keys = whole["foreign_keys"].as_array_mut().expect("a list");
    keys.push(key);
    whole["routes"] = json!({
        "follows": [[20000, 20001], [20000, 20002]],
        "looks_up": [[20001, 20000], [20000, 20001], [20002, 20000], [20000, 20002]],
    });
    whole["reach"] = json!({"not_valid": [[20002, "g"]]});
    assert_eq!(found.differences(&known(&whole)), [""; 0]);
    assert_eq!((found.epoch, found.of_news), (9, true));
    assert_eq!(found.foreign_keys.len(), 2);
    let name = QualifiedName {
        schema: "public".to_owned(),
        name: "t".to_owned(),
    };
    let columns = found.relation(&name).map(|one| one.columns.len());
    assert_eq!(columns, Some(3));
    // And more can be added to that.
    assert_eq!(found.since(), Some(9));
}

#[test]
fn what_is_not_surely_known_is_not_put_together() {
    let more_columns = [table(20000, "t", &[23, 30000, 25])];
    let good = news(7, &more_columns, json!({}));
    assert!(newer(&document(), &good).is_some());
    let with = |field: &str, value: Value| {
        let mut document = document();
        document[field] = value;
        document
    };
    let index = json!([{"id": 1, "name": "i", "relation": 20001, "column": 1}]);
    for base in [
        with("epoch", json!(6)),
        with("incomplete", json!(true)),
        with("unique_indexes", index),
        with("relation_calls", json!([[20000, 40000]])),
        with("routes", json!({"stored_calls": [[20000, "write", 40000]]})),
    ] {
        assert!(newer(&base, &good).is_none(), "{base}");
    }
    for changed in [
        // Values of such a type may run code.
        table(20002, "v", &[30000]),
        table(20000, "t", &[23, 30000, 30000]),
        table(20000, "t", &[23, 30001]),
    ] {
        let news = news(7, std::slice::from_ref(&changed), json!({}));
        assert!(newer(&document(), &news).is_none(), "{changed}");
    }
    assert!(
        Catalog::default()
            .newer(&good.to_string())
            .is_ok_and(|found| found.is_none())
    );
}

#[test]
fn a_part_is_not_a_whole() {
    let part = news(7, &[], json!({})).to_string();
    assert!(Catalog::from_document(&part).is_err());
    let whole = newer(&document(), &document()).expect("a document in whole is read as one");
    assert!(!whole.of_news);
}
