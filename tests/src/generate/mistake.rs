//! Statements that fail. Each has one mistake, and SQL alone determines that it is one: it is found
//! before any row is read, or in a place that is computed for every row of FROM.

use super::{
    Expression, Feature, Generator, Scope,
    relation::From,
    schema::{TABLES, Table, Type},
};

/// Values that their types do not have.
const NOT_VALUES: [(&str, &str); 11] = [
    ("x", "int4"),
    ("99999999999", "int4"),
    ("2024-02-30", "date"),
    ("25:61", "time"),
    ("furious", "mood"),
    ("[1", "jsonb"),
    ("1 hour maybe", "interval"),
    ("10.0.0.999", "inet"),
    ("no-uuid", "uuid"),
    ("{1,", "int4[]"),
    ("[5,1)", "int4range"),
];

/// What no analysis accepts, wherever it stands.
const NOT_EXPRESSIONS: [&str; 22] = [
    "nosuch",
    "nosuch.id",
    "nosuch(1)",
    "nosuch.f(1)",
    "cast(1 as nosuch)",
    "(1 + true)",
    "(date '2024-03-01' + date '2024-03-01')",
    "length(1, 2)",
    "lower(array[1])",
    "sum(sum(1))",
    "row_number()",
    "(select 1, 2)",
    "(case when 1 then 2 end)",
    "coalesce(1, true)",
    "((1, 2) = (1, 2, 3))",
    "('a' collate \"nosuch\" < 'b')",
    "(not 5)",
    "array[1, true]",
    "(1 is true)",
    "(select id from nosuch)",
    "extract(nosuch from date '2024-03-01')",
    "('{}'::json = '{}'::json)",
];

impl Generator {
    /// A whole statement, and whether its rows are in an order that leaves no choice.
    pub fn statement(&mut self) -> (String, bool) {
        match self.random.below(100) {
            _ if !Feature::Mistakes.is_wanted() => self.top(),
            0..=2 => self.with_wrong_expression(),
            3..=6 => (self.with_wrong_rows(), false),
            7..=8 => (self.with_wrong_clause(), false),
            _ => self.top(),
        }
    }

    /// A statement as any other, with a wrong expression somewhere.
    fn with_wrong_expression(&mut self) -> (String, bool) {
        let wrong = match self.random.chance(35) {
            true => {
                let (value, kind) = self.random.pick(&NOT_VALUES);
                format!("'{value}'::{kind}")
            }
            false => self.random.pick(&NOT_EXPRESSIONS).to_owned(),
        };
        self.wrong = Some(wrong);
        let statement = self.top();
        // There was no place for it.
        match self.wrong.take() {
            Some(wrong) => (format!("select {wrong} from account"), false),
            None => statement,
        }
    }

    /// The mistake that the statement is to have, if luck puts it here.
    pub(super) fn wrong_expression(&mut self, kind: Type) -> Option<Expression> {
        self.wrong.as_ref()?;
        if !self.random.chance(30) {
            return None;
        }
        let wrong = self.wrong.take()?;
        Some(Expression::new(wrong, kind))
    }

    /// Fails when it comes to a row.
    fn with_wrong_rows(&mut self) -> String {
        let table = self.base_table();
        let one = self.table(table);
        let value = self.wrong_of_row(&one.scope);
        let from = match self.random.chance(30) {
            true => self.joined(one.clone()),
            false => one.clone(),
        };
        let first = one.scope.columns[0].value.text.clone();
        let (text, all) = (&from.text, &one.text);
        match self.random.below(13) {
            0..=2 => format!("select {first}, {value} from {text}"),
            3 => format!("select {first} from {all} where {value} is not null"),
            4 => format!("select count({value}) from {text}"),
            5 => format!("select {value} as x1, count(*) from {text} group by 1"),
            6 => format!("select {first} from {text} order by {value}, {first}"),
            7 => format!("select distinct {value} from {text}"),
            8 => format!("select rank() over (order by {value}) from {text}"),
            9 => format!("select max(x1::text) from (select {value} as x1 from {text}) d"),
            10 => format!("with q as (select {value} as x1 from {text}) select x1, 1 from q"),
            11 => format!("select 1 union all select length(({value})::text) from {text}"),
            _ => format!(
                "select {first} from {text} group by {first} having max(({value})::text) <> ''"
            ),
        }
    }

    /// One that is not a view: conditions on a view's columns may be computed for more rows than
    /// the view has. It may be read: one mistake is enough.
    fn base_table(&mut self) -> Table {
        loop {
            let table = self.random.pick(&TABLES);
            if !table.view && (table.readable || !self.around.reader) {
                return table;
            }
        }
    }

    fn joined(&mut self, one: From) -> From {
        let other = self.base_table();
        let other = self.table(other);
        self.join(one, other, 4000.0)
    }

    /// What fails for some row, or for all.
    fn wrong_of_row(&mut self, scope: &Scope) -> String {
        let number = self.leaf(scope, Type::Int4).text;
        let text = self.leaf(scope, Type::Text).text;
        let few = self.random.between(0, 9);
        match self.random.below(22) {
            0 | 1 => format!("(100 / ({number} - {few}))"),
            2 => format!("(100 % ({number} - {few}))"),
            3 => format!("(1.5 / ({number} - {few}))"),
            4 => format!("({text})::int4"),
            5 => format!("({text})::date"),
            6 => format!("({number} + 2147483647)"),
            7 => format!("({number} + 40000)::int2"),
            8 => format!("sqrt(-1 - abs({number}))"),
            9 => format!("ln({number} - {few}.0)"),
            10 => format!("chr({number} * 0)"),
            11 => format!("substring({text}, 1, -1)"),
            12 => format!("make_date(2024, 2, 30 + {number})"),
            13 => format!("width_bucket({number}, 1, 1, 3)"),
            14 => format!("({text} ~ '(')"),
            15 => format!("decode({text} || 'q', 'hex')"),
            16 => format!("({text} || '{{')::jsonb"),
            17 => format!("repeat({text} || 'x', 9)::short_text"),
            18 => format!("(select n from entry where n <> {number})"),
            19 => format!("(interval '1 year' * (1e10 + {number}))"),
            20 => format!("to_jsonb({text})::int4"),
            _ => format!("power(0, -1 - abs({number}))"),
        }
    }

    /// A clause that does not fit the others.
    fn with_wrong_clause(&mut self) -> String {
        let table = self.base_table();
        let other = self.base_table();
        let (name, other) = (table.name, other.name);
        let column = |at: usize| table.columns[at % table.columns.len()].name;
        let (a, b) = (column(0), column(1));
        match self.random.below(30) {
            0 => format!("select {a}, count(*) from {name}"),
            1 => format!(
                "select {b}, max({a}::text) from {name} group by {a}, {a}::text having {b} is null"
            ),
            2 => format!("select {a} from {name} where count(*) > 1"),
            3 => format!("select {a} from {name} where row_number() over () = 1"),
            4 => format!("select {a}, {b} from {name} group by 7"),
            5 => format!("select {a} from {name} order by 3"),
            6 => format!("select distinct {a} from {name} order by {b}"),
            7 => format!("select distinct on ({a}) {a} from {name} order by {b}, {a}"),
            8 => format!("select 1 from {name} x, {other} x"),
            9 => format!("select {a} from {name} x, {name} y where x.{a} = y.{a}"),
            10 => format!("select * from {name}, nosuch"),
            11 => format!("select {a} from nosuch.{other}"),
            12 => format!("select {a}, {b} from {name} union select 1"),
            13 => format!("select {a} from {name} union all select point '(1,2)'"),
            14 => format!("select {a} from {name} order by 1 limit -1"),
            15 => format!("select {a} from {name} order by 1 offset -2"),
            16 => format!("select {a} from {name} limit 'few'"),
            17 => format!("select 1 from {name} join {other} using (nosuch)"),
            18 => format!("with q as (select {a} from {name}) select * from p"),
            19 => format!("select {a} from {name} where"),
            20 => format!("select {a} from {name} where {a}"),
            21 => format!("select 1 from {name} where {a} in (select 1, 2 from {other})"),
            22 => format!(
                "with recursive r as (select 1 as n union all select max(n) from r) select n, {a} from r, {name}"
            ),
            23 => format!("select 1 from {name} x, (select x.{a}) d"),
            24 => format!("select count(*) over nosuch from {name}"),
            25 => format!("select raw, count(*) from product, {name} group by raw"),
            26 => format!("select {a} from {name} fetch first 2 rows with ties"),
            27 => format!("select ntile(0) over (order by {a}) from {name}"),
            28 => format!("select percentile_cont(1.5) within group (order by 1.0) from {name}"),
            _ => format!("select nth_value({a}, 0) over (order by {a}) from {name}"),
        }
    }
}
