use super::changes;

#[test]
fn sees_every_way_to_give_a_row_another_key() {
    for body in [
        "begin new.a := new.a + 1000; return new; end",
        "begin NEW . a = 5; return new; end",
        "begin new.\"a\" := 1; return new; end",
        "begin if true then new.a := 1; end if; return new; end",
        "begin select max(x) into new.a from r; return new; end",
        "begin select 1, 2 into strict new.b, new.a; return new; end",
        "declare x int; begin select 1, 2 into x, new.a; return new; end",
        "begin execute 'select 1' into new.a; return new; end",
        "begin for new.a in 1..3 loop null; end loop; return new; end",
        "begin get diagnostics new.a = row_count; return new; end",
        "begin call p(new.a); return new; end",
        "begin new := jsonb_populate_record(new, '{\"a\": 1}'); return new; end",
        "begin select * into new from r; return new; end",
        "declare r record; begin r := new; r.a := 1; return r; end",
        "declare x alias for new; begin x.a := 1; return x; end",
        "begin return row(1, 2); end",
        "begin return f(new); end",
        "begin raise notice 'x",
        "begin foreach new.a in array array[1, 2] loop null; end loop; return new; end",
        "begin foreach new.a slice 0 in array x loop null; end loop; return new; end",
        "begin f.new.a := 1; return new; end",
        "begin f.new.a = 1; return new; end",
        "begin f.new := (1, 2); return new; end",
        "begin select 1 into f.new.a; return new; end",
        "begin for new.b, new.a in select 1, 2 loop null; end loop; return new; end",
        "declare x int; begin for x, f.new.a in select 1, 2 loop null; end loop; return new; end",
        "declare new record := (1, 2); begin return new; end",
        "declare x int; new record default (1, 2); begin return new; end",
        "declare \"old\" constant record := (1, 2); begin return old; end",
        "begin old := new; old.a := 1; return old; end",
        "begin old := (1, 2); return old; end",
        "begin select 1, 2 into old; return old; end",
        "begin for old in select 1, 2 loop return old; end loop; end",
        "declare x alias for f.new; begin x.a := 1; return new; end",
        "declare x alias for old; begin x := (1, 2); return old; end",
        "begin return (1, 2); end",
        "begin return coalesce(null, (1, 2)); end",
        "begin return case when tg_op = tg_op then (1, 2) else new end; end",
        "begin return (tg_op, tg_op); end",
        "begin return case when tg_op in ('x', 'y') then (tg_op, tg_op) else new end; end",
    ] {
        assert!(changes("f", body, "a").is_some(), "{body}");
    }
}

#[test]
fn what_only_reads_the_key_is_taken() {
    for body in [
        "begin if new.a is null then raise exception 'no'; end if; return new; end",
        "begin if new.a = 5 then new.b := new.a; end if; return new; end",
        "begin new.b := new.a; new.aa := 1; return new; end",
        "begin insert into log (x) values (new.a); return new; end",
        "begin insert into log select x, new.a from r; return null; end",
        "begin select x into new.b from r where id = new.a; return new; end",
        "begin select into new.b new.a + 1; return new; end",
        "begin return coalesce(new, old); end",
        "begin return case when tg_op = 'DELETE' then old else new end; end",
        "begin old.b := 1; return new; end",
        "begin if old.a = new.a and f.new.b = 1 then new.b := 2; end if; return new; end",
        "declare newer int; x record; begin x := new; return new; end",
        "begin for x in select new.a loop null; end loop; return new; end",
        "begin if new is distinct from old then new.b := 2; end if; return new; end",
        "begin foreach x in array new.b loop null; end loop; return new; end",
        "begin return case when tg_op in ('DELETE', 'x') then old else new end; end",
        "begin return new; end; -- it's the row",
        "begin new.A1 := 'new.a := 1'; return new; -- new.a := 1\nend",
    ] {
        assert_eq!(changes("f", body, "a"), None, "{body}");
    }
}
