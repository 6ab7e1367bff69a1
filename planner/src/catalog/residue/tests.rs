use serde_json::json;

use crate::catalog::{Catalog, Residue};

fn flags(residue: Residue) -> String {
    let all = [
        (residue.keeps, "keeps"),
        (residue.may_keep, "may_keep"),
        (residue.lasting, "lasting"),
        (residue.moves_sequence, "moves"),
        (residue.reads_sequence, "reads"),
    ];
    let set: Vec<&str> = all.iter().filter(|one| one.0).map(|one| one.1).collect();
    set.join(" ")
}

fn catalog(mut document: serde_json::Value) -> Catalog {
    document["epoch"] = json!(1);
    Catalog::from_document(&document.to_string()).expect("a document")
}

fn function(oid: u32, name: &str, body: &str) -> serde_json::Value {
    json!({"oid": oid, "name": name, "language": "plpgsql", "body": body})
}

/// What `select f()` leaves behind if this is the body of `f`.
fn check(body: &str, expected: &str) {
    let catalog = catalog(json!({"functions": [function(20000, "f", body)]}));
    let residue = catalog.residues.of_statement("select f()", false);
    assert_eq!(flags(residue), expected, "{body}");
    let block = catalog.residues.of_block("plpgsql", body);
    assert_eq!(flags(block), expected, "DO: {body}");
}

#[test]
fn bodies_that_leave_nothing() {
    for body in [
        "begin return 1; end",
        "begin update t set v = 1; return 1; end",
        "begin set local work_mem = '1MB'; return 1; end",
        "begin perform set_config('app.tenant', x, true); end",
        "begin perform pg_advisory_xact_lock(1); end",
        "begin create temp table x on commit drop as select 1; end",
        "begin -- set role nobody\n return 'listen to this; reset all'; end",
        "begin declare c cursor without hold for select 1; end",
        "begin execute 'update t set v = $1' using 1; end",
        "create trigger t after insert on x for each row execute function g()",
        "select a.listen, a.load from a",
        "",
    ] {
        let catalog = catalog(json!({"functions": [function(20000, "f", body)]}));
        let residue = catalog.residues.of_statement("select f()", false);
        assert!(!residue.stays() && !residue.lasting, "{body}: {residue:?}");
    }
}

#[test]
fn bodies_that_keep_something() {
    for body in [
        "begin set work_mem = '1MB'; return 1; end",
        "begin if true then set role other; end if; end",
        "begin SET SESSION AUTHORIZATION other; end",
        "begin perform set_config('app.tenant', x, false); end",
        "begin perform pg_catalog.set_config('app.tenant', x, y); end",
        "begin perform \"set_config\"('app.tenant', x, false); end",
        "begin reset all; end",
        "begin perform pg_advisory_lock(1); end",
        "begin perform pg_try_advisory_lock_shared(1); end",
        "begin create temp table x as select 1; end",
        "begin create temporary view x as select 1; end",
        "begin create function pg_temp.g() returns int as 'select 1' language sql; end",
        "begin execute 'set work_mem = 1'; end",
        "begin execute $$set work_mem = 1$$; end",
        "begin perform setseed(0.5); end",
        "<<here>> listen x",
        "prepare p as select 1",
    ] {
        check(body, "keeps");
    }
}

#[test]
fn bodies_that_are_not_known() {
    for body in [
        "begin execute x; end",
        "begin execute format('update %I set v = 1', x); end",
        "begin execute 'set local ' || x; end",
        "begin execute E'reset work_mem'; end",
        "begin return query execute x; end",
        "begin perform query_to_xml(x, true, true, ''); end",
        "begin perform U&\"\\0066\"(); end",
        "begin return 'no end",
    ] {
        check(body, "may_keep moves reads");
    }
}

#[test]
fn what_is_set_by_a_text_that_is_put_together_cannot_be_seen_afterwards() {
    check(
        "begin execute 'set ' || x; end",
        "keeps may_keep moves reads",
    );
    check(
        "begin execute format('set %I = 1', x); end",
        "keeps may_keep moves reads",
    );
    check(
        "begin execute x || 'set_config('; end",
        "keeps may_keep moves reads",
    );
}

#[test]
fn sequences_are_moved_and_read() {
    check("begin insert into t default values; end", "moves");
    check("begin return lastval(); end", "reads");
    check("select currval('s')", "reads");
}

#[test]
fn code_in_other_languages_is_not_known_and_neither_is_what_may_run_it() {
    let catalog = catalog(json!({"functions": [
        {"oid": 20000, "name": "p", "language": "plperl"},
        {"oid": 20001, "name": "g", "language": "internal"},
        {"oid": 20002, "name": "h", "language": "c", "extension": "tablefunc"},
        {"oid": 20003, "name": "dblink_connect", "language": "c", "extension": "dblink"},
        {"oid": 20004, "name": "dblink", "language": "c", "extension": "dblink"},
        function(20005, "d", "begin execute x; end"),
    ]}));
    let of = |text| flags(catalog.residues.of_statement(text, false));
    assert_eq!(of("select p()"), "may_keep lasting moves reads");
    assert_eq!(of("select g()"), "");
    assert_eq!(of("select h()"), "may_keep lasting moves reads");
    assert_eq!(of("select dblink_connect('x')"), "keeps lasting");
    assert_eq!(of("select * from dblink('x')"), "");
    assert_eq!(of("select d()"), "may_keep lasting moves reads");
    assert_eq!(of("select 1"), "");
    let block = catalog.residues.of_block("plperl", "1");
    assert_eq!(flags(block), "may_keep lasting moves reads");
}

#[test]
fn state_comes_by_every_route() {
    let keeping = function(20000, "keeping", "begin set role x; end");
    let table =
        |oid: u32, name: &str| json!({"oid": oid, "schema": "public", "name": name, "kind": "r"});
    let view =
        |oid: u32, name: &str| json!({"oid": oid, "schema": "public", "name": name, "kind": "v"});
    let mut guarded = table(30004, "guarded");
    guarded["row_security"] = json!(true);
    let catalog = catalog(json!({
        "functions": [
            keeping,
            function(20001, "caller", "begin perform keeping(); end"),
            function(20002, "writer", "begin insert into watched values (1); end"),
            function(20003, "reader", "begin perform 1 from watched; end"),
            {"oid": 20004, "name": "total", "language": "internal"},
            function(20005, "Odd Name", "select keeping()"),
            function(20006, "definer", "begin create table x (); end"),
        ],
        "function_calls": [[20004, 20000]],
        "operators": [["+++", 20000]],
        "relations": [
            table(30000, "watched"), table(30001, "parent"), table(30002, "plain"),
            view(30003, "seen"), guarded, view(30005, "over"), table(30006, "defaults"),
        ],
        "triggers": [
            {"relation": 30000, "name": "t", "function": 20000, "type": 5, "arguments": ""},
        ],
        "relation_calls": [[30003, 20000], [30004, 20000], [30006, 20000]],
        "view_reads": [[30005, 30003]],
        "routes": {"follows": [[30001, 30000]], "definitions": [20000]},
    }));
    let of = |text| flags(catalog.residues.of_statement(text, false));
    for text in [
        "select keeping()",
        "select caller()",
        "call public.caller()",
        "select total(v) from plain",
        "select \"Odd Name\"()",
        "select 1 +++ 2",
        "insert into watched values (1)",
        "copy watched from stdin",
        "delete from parent",
        "with w as (insert into watched values (1) returning 1) select 1",
        "select * from seen",
        "select * from over",
        "select * from guarded",
        "insert into defaults default values",
        "prepare p as select keeping()",
    ] {
        assert_eq!(of(text), "keeps", "{text}");
    }
    let block = catalog
        .residues
        .of_block("plpgsql", "begin create table x (); end");
    assert_eq!(flags(block), "keeps may_keep");
    assert_eq!(of("select definer()"), "keeps may_keep");
    assert_eq!(of("select writer()"), "keeps moves");
    for text in [
        "select * from watched",
        "select * from defaults",
        "select * from parent",
        "insert into plain values (1)",
        "select 'keeping()'",
        "select reader()",
        "select 1 + 2",
    ] {
        assert_eq!(of(text), "", "{text}");
    }
    let defines = catalog.residues.of_statement("create table x ()", true);
    assert_eq!(flags(defines), "keeps");
}

#[test]
fn what_runs_unnamed_counts_for_every_statement() {
    let catalog = catalog(json!({
        "functions": [function(20000, "cast_it", "begin set role x; end")],
        "routes": {"implicit": [20000]},
    }));
    let residue = catalog.residues.of_statement("select 1", false);
    assert_eq!(flags(residue), "keeps");
}

#[test]
fn stored_expressions_count_with_what_runs_them() {
    let table =
        |oid: u32, name: &str| json!({"oid": oid, "schema": "public", "name": name, "kind": "r"});
    let catalog = catalog(json!({
        "functions": [
            function(20000, "f", "begin return 1; end"),
            {"oid": 20001, "name": "total", "language": "internal"},
        ],
        "relations": [
            table(30000, "defaults"), table(30001, "checked"), table(30002, "child"),
            table(30003, "dynamic"), table(30004, "limited"),
        ],
        "routes": {
            "built_in": [[1, "set_config"], [2, "pg_try_advisory_lock"], [3, "query_to_xml"]],
            "extension_functions": [["set_limit", "pg_trgm", 20002]],
            "stored_calls": [
                [30000, "write", 1], [30001, "read", 2], [30003, "read", 3], [30004, "read", 20002],
                [20000, "call", 1], [20001, "call", 1],
            ],
            "operators": [["<+>", 2]],
            "looks_up": [[30002, 30001]],
        },
    }));
    let of = |text| flags(catalog.residues.of_statement(text, false));
    for text in [
        "insert into defaults values (1)",
        "select * from checked",
        "explain select * from checked",
        "insert into checked values (1)",
        "insert into child values (1)",
        "select f()",
        "select total(1)",
        "select 1 <+> 2",
    ] {
        assert_eq!(of(text), "keeps", "{text}");
    }
    assert_eq!(of("select * from defaults"), "");
    assert_eq!(of("select * from child"), "");
    assert_eq!(of("select * from limited"), "may_keep moves reads");
    assert_eq!(of("table dynamic"), "may_keep lasting moves reads");
    assert_eq!(of("analyze"), "may_keep lasting moves reads");
}

#[test]
fn a_domain_of_a_built_in_function_is_looked_for_with_every_statement() {
    let catalog = catalog(json!({"routes": {
        "built_in": [[1, "set_config"]],
        "stored_calls": [[30000, "implicit", 1]],
    }}));
    let residue = catalog.residues.of_statement("select 1", false);
    assert_eq!(flags(residue), "may_keep");
}

#[test]
fn what_is_made_in_the_first_schema_may_be_temporary() {
    for (language, body) in [
        ("plpgsql", "begin create table x (); end"),
        (
            "plpgsql",
            "begin execute 'create or replace view x as select 1'; end",
        ),
        ("sql", "create domain x as int"),
        ("sql", "select 1 as a into x"),
    ] {
        let catalog = catalog(json!({"functions": [
            {"oid": 20000, "name": "f", "language": language, "body": body}
        ]}));
        let residue = catalog.residues.of_statement("select f()", false);
        assert_eq!(flags(residue), "may_keep", "{body}");
    }
}
