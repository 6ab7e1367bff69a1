//! What planning costs: twice the text, about twice the steps; and limits that end it.

use std::sync::{Arc, atomic::AtomicBool};

use super::{PathBuf, fs, plain_context};
use crate::{
    Context, Reach,
    budget::{Budget, Excess},
    catalog::Catalog,
    normalise::{Normalised, normalise},
    parse::STACK_BYTES,
    plan,
    plan::{PlanError, Planned},
    tests::catalog,
};

/// A text with so many parts of one kind.
type Growing = (&'static str, fn(usize) -> String);

fn list(count: usize, separator: &str, part: impl Fn(usize) -> String) -> String {
    let parts: Vec<String> = (0..count).map(part).collect();
    parts.join(separator)
}

const GROWING: &[Growing] = &[
    ("values in a list", |n| {
        let values = list(n, ", ", |id| id.to_string());
        format!("select * from users where id in ({values})")
    }),
    ("parameters in a list", |n| {
        let values = list(n, ", ", |at| format!("${}", at + 1));
        format!("select * from users where id in ({values})")
    }),
    ("parameters in rows", |n| {
        let rows = list(n, ", ", |at| format!("(${}, ${})", 2 * at + 1, 2 * at + 2));
        format!("insert into users (id, name) values {rows}")
    }),
    ("rows", |n| {
        let rows = list(n, ", ", |id| format!("({id}, 'name', {id})"));
        format!("insert into users (id, name, org) values {rows}")
    }),
    ("rows with values of a sequence", |n| {
        let rows = list(n, ", ", |_| "(nextval('tickets_id_seq'), 'x')".to_owned());
        format!("insert into tickets (id, title) values {rows}")
    }),
    ("terms of AND", |n| {
        let terms = list(n, " and ", |org| format!("org <> {org}"));
        format!("select * from users where {terms}")
    }),
    ("limits of the key", |n| {
        let terms = list(n, " and ", |id| format!("id > {id}"));
        format!("select * from users where {terms}")
    }),
    ("terms of OR", |n| {
        let terms = list(n, " or ", |id| format!("id = {id}"));
        format!("select * from users where {terms}")
    }),
    ("terms of a moved table", |n| {
        let terms = list(n, " and ", |org| format!("u.org <> {org}"));
        format!("select 1 from users u join events e on e.kind = u.name where {terms}")
    }),
    ("columns", |n| {
        let columns = list(n, ", ", |at| format!("org + {at} as c{at}"));
        format!("select {columns} from users")
    }),
    ("aggregates", |n| {
        let columns = list(n, ", ", |at| format!("sum(org + {at})"));
        format!("select {columns} from users")
    }),
    ("calls of nextval", |n| {
        let calls = list(n, ", ", |_| "nextval('tickets_id_seq')".to_owned());
        format!("select {calls}")
    }),
    ("times", |n| {
        let rows = list(n, ", ", |id| format!("({id}, now())"));
        format!("insert into users (id, created) values {rows}")
    }),
    ("statements", |n| {
        list(n, "; ", |id| {
            format!("update users set org = 1 where id = {id}")
        })
    }),
    ("inserts", |n| {
        list(n, "; ", |id| {
            format!("insert into tickets (title) values ('x{id}')")
        })
    }),
    ("comments inside of others", |n| {
        let (open, close) = ("/* ".repeat(n), " */".repeat(n));
        format!("select {open}{close} * from users")
    }),
];

/// Plans with the stack of a serving thread.
fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES + (8 << 20));
        let thread = thread.spawn_scoped(scope, work).expect("a thread");
        thread.join().expect("no panic")
    })
}

fn catalog() -> Catalog {
    let text = fs::read_to_string(PathBuf::from("cases/catalog.txt"));
    catalog::read(&text.expect("the catalog file is there"))
}

fn planned(text: &str, reach: Reach, budget: &Budget) -> Result<Vec<Planned>, PlanError> {
    let path = ["public".to_owned()];
    let context = Context {
        reach,
        ..plain_context(&path, budget)
    };
    let mut normalised = Normalised::default();
    let normal = normalise(text, &mut normalised);
    plan(&catalog(), &context, text, normal.then_some(&normalised))
}

#[test]
fn twice_the_text_takes_twice_the_steps() {
    with_stack(|| {
        for (name, text) in GROWING {
            for reach in [Reach::Single, Reach::Many] {
                let steps = |count: usize| {
                    let budget = Budget::unlimited();
                    planned(&text(count), reach, &budget)
                        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
                    budget.steps()
                };
                let (once, twice) = (steps(300), steps(600));
                assert!(twice * 10 <= once * 22 + 1000, "{name}: {once}, {twice}");
            }
        }
    });
}

#[test]
fn limits_end_a_plan() {
    let text = GROWING[5].1(1_000);
    let with = |budget: Budget| {
        let error = planned(&text, Reach::Single, &budget).expect_err("a limit");
        assert_eq!(error.sqlstate, "54000");
        budget.excess()
    };
    with_stack(|| {
        let called_off = Arc::new(AtomicBool::new(true));
        let max = u64::MAX;
        assert_eq!(
            with(Budget::new(5_000, usize::MAX, Arc::default())),
            Some(Excess::Steps)
        );
        assert_eq!(
            with(Budget::new(max, 1 << 20, Arc::default())),
            Some(Excess::Memory)
        );
        assert_eq!(
            with(Budget::new(max, usize::MAX, called_off)),
            Some(Excess::CalledOff)
        );
        assert!(
            planned(
                &text,
                Reach::Single,
                &Budget::new(max, 64 << 20, Arc::default())
            )
            .is_ok()
        );
    });
}

/// Long chains of operators are deep trees.
#[test]
fn deep_statements_are_planned_or_refused() {
    let chain = |table: &str, length: usize| {
        let terms = " + 1".repeat(length);
        let text = format!("select id{terms} from {table} where id = 1");
        planned(&text, Reach::Single, &Budget::unlimited())
    };
    with_stack(|| {
        assert!(chain("users", 400).is_ok());
        let error = chain("users", 20_000).expect_err("too deep");
        assert_eq!(error.sqlstate, "54001");
        assert_eq!(error.message, "stack depth limit exceeded");
        assert!(chain("notes", 20_000).is_ok());
    });
    // A thread without that stack gets one, and the process goes on.
    assert!(chain("users", 20).is_ok());
    assert_eq!(
        chain("users", 20_000).expect_err("too deep").sqlstate,
        "54001"
    );
}
