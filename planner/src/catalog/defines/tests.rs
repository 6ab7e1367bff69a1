use std::collections::HashSet;

use super::command;

#[test]
fn tells_lasting_definitions_from_temporary_ones() {
    let relations = HashSet::from(["t".to_owned(), "v".to_owned()]);
    for (body, expected) in [
        ("create type ct as (a int)", Some("create type")),
        ("begin create schema s; end", Some("create schema")),
        (
            "begin create or replace function f() returns int language sql as 'select 1'; end",
            Some("create function"),
        ),
        (
            "begin create table if not exists x (a int); end",
            Some("create table"),
        ),
        (
            "begin create unlogged table x (a int); end",
            Some("create table"),
        ),
        (
            "begin create unique index i on only t (a); end",
            Some("create index"),
        ),
        (
            "begin alter table t add column b int; end",
            Some("alter table"),
        ),
        (
            "begin if true then drop view if exists public.v; end if; end",
            Some("drop view"),
        ),
        ("begin drop type ct; end", Some("drop type")),
        ("begin grant select on t to r; end", Some("grant select")),
        ("begin create temp table x (a int); end", None),
        ("begin create local temporary table x (a int); end", None),
        ("begin create table pg_temp.x (a int); end", None),
        ("begin create index i on x (a); end", None),
        ("begin drop table if exists x; end", None),
        ("begin alter table x add column b int; end", None),
        ("begin raise notice 'create type ct'; end", None),
        ("begin update t set create_at = 1; end", None),
    ] {
        assert_eq!(command(body, &relations).as_deref(), expected, "{body}");
    }
}
