use super::*;
use crate::catalog::residue::Code;

#[test]
fn finds_the_names_of_custom_settings() {
    for (text, expected) in [
        ("begin set local app.tenant = 1; end", vec!["app.tenant"]),
        (
            "begin set App.\"Tenant\".id to 1; end",
            vec!["app.tenant.id"],
        ),
        (
            "select set_config('app.tenant', $1, true)",
            vec!["app.tenant"],
        ),
        (
            "do $$ begin perform set_config('a.b', 'c', false); end $$",
            vec!["a.b"],
        ),
        ("begin execute 'set a.b to 1'; end", vec!["a.b"]),
        (
            "begin execute format('set session a.b = %L', x); end",
            vec!["a.b"],
        ),
        (
            "begin set work_mem = '1MB'; update t set a.b = 1; end",
            vec![],
        ),
        ("select 'a b.c', '1.5', 'a..b', '.a'", vec![]),
        ("select $x$select 'q.r'$x$", vec!["q.r"]),
    ] {
        assert_eq!(custom_names(text), expected, "{text}");
    }
}

#[test]
fn tells_where_the_name_of_a_setting_stands() {
    use MadeSettings::*;
    for (body, expected) in [
        ("begin return 1; end", None),
        ("begin update t set a = 1; end", None),
        ("begin set constraints all immediate; end", Named),
        ("begin set local work_mem = '1MB'; end", Named),
        ("begin reset work_mem; end", Named),
        ("begin perform set_config('a.b', x, true); end", Named),
        ("begin perform set_config(name, x, true); end", ByCaller),
        ("select set_config($1, $2, false)", ByCaller),
        (
            "begin perform set_config('a.' || x, y, true); end",
            Computed,
        ),
        ("begin perform set_config(lower(x), y, true); end", Computed),
        ("begin execute 'set a.b = 1'; end", Named),
        ("begin execute 'set a.b = ' || x; end", Named),
        ("begin execute 'set local a.' || x || ' = 1'; end", Computed),
        ("begin execute format('set %I = %L', x, y); end", Computed),
        ("begin execute 'set work_mem to ' || x; end", Named),
        ("begin execute x; end", Named),
    ] {
        assert_eq!(Code::of_body(body, 0).own.settings, expected, "{body}");
    }
}
