//! Expressions of a wanted type.

use super::{
    Column, Expression, Generator, MOST_PARAMETERS, Scope,
    schema::{KEYWORD, TYPES, Type, WORDS},
};
use crate::cases::Parameter;

impl Generator {
    /// An expression of type `kind`; `depth` bounds how it nests.
    pub fn expression(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        if let Some(wrong) = self.wrong_expression(kind) {
            return wrong;
        }
        let leaf = if self.simple { 85 } else { 35 };
        if depth == 0 || self.random.chance(leaf) {
            return self.leaf(scope, kind);
        }
        match self.random.below(10) {
            0 => self.case(scope, kind, depth),
            1 => self.coalesce(scope, kind, depth),
            2 => self.nullif(scope, kind, depth),
            3 => self.greatest(scope, kind, depth),
            4 if kind.has_extremes() => self.scalar_subquery(scope, kind),
            _ => self.operation(scope, kind, depth),
        }
    }

    /// A column of type `kind`, or a literal when there is none.
    pub fn leaf(&mut self, scope: &Scope, kind: Type) -> Expression {
        match self.column(scope, kind) {
            Some(column) if kind == Type::Row || !self.random.chance(8) => column.value,
            _ => self.literal(kind),
        }
    }

    /// A column of type `kind`, sometimes of an outer level.
    pub fn column(&mut self, scope: &Scope, kind: Type) -> Option<Column> {
        let of_kind = |columns: &[Column]| -> Vec<Column> {
            let fitting = columns.iter().filter(|column| column.value.kind == kind);
            fitting.cloned().collect()
        };
        let (local, outer) = (of_kind(&scope.columns), of_kind(&scope.outer));
        let chosen = match (local.is_empty(), outer.is_empty()) {
            (true, true) => return None,
            (true, false) => outer,
            (false, false) if self.random.chance(25) => outer,
            (false, _) => local,
        };
        let column = self.random.pick(&chosen);
        let value = self.spelled(&column);
        Some(Column { value, ..column })
    }

    /// A type that some column of `scope` has, and that `fits`.
    pub fn kind_of(&mut self, scope: &Scope, fits: impl Fn(Type) -> bool) -> Option<Type> {
        let kinds: Vec<Type> = scope
            .columns
            .iter()
            .map(|column| column.value.kind)
            .filter(|&kind| fits(kind))
            .collect();
        (!kinds.is_empty()).then(|| self.random.pick(&kinds))
    }

    /// Any type, most often one that the scope has.
    pub fn any_kind(&mut self, scope: &Scope) -> Type {
        match self.kind_of(scope, |_| true) {
            Some(kind) if !self.random.chance(15) => kind,
            _ => self.random.pick(&TYPES),
        }
    }

    /// The same values, equal ones of which look alike.
    pub fn exact(&mut self, value: Expression) -> Expression {
        if value.exact {
            return value;
        }
        let text = match value.kind {
            Type::Numeric => format!("trim_scale({})", value.text),
            // -0 becomes 0.
            Type::Float4 => format!("({} + 0::float4)", value.text),
            Type::Float8 => format!("({} + 0::float8)", value.text),
            Type::Interval => format!("justify_interval({})", value.text),
            _ => value.text.clone(),
        };
        Expression {
            text,
            exact: true,
            ..value
        }
    }

    /// A constant: a literal with its type, or a parameter.
    pub fn literal(&mut self, kind: Type) -> Expression {
        let value = self.value(kind);
        if let Some(text) = self.parameter(kind, &value) {
            return constant(text, kind);
        }
        let text = match kind {
            Type::Int4 if !value.starts_with('-') => value,
            Type::Bool => value,
            _ => format!("'{value}'::{}", kind.name()),
        };
        constant(text, kind)
    }

    /// `value` as a parameter, if the statement has parameters and luck wills it.
    fn parameter(&mut self, kind: Type, value: &str) -> Option<String> {
        let declarable = match kind {
            Type::Varchar | Type::Char => None,
            Type::Domain | Type::Mood | Type::Inet => None,
            Type::Range | Type::Multirange | Type::Pair | Type::Row => None,
            Type::Interval | Type::Time | Type::Bytea | Type::Json | Type::Jsonb => None,
            Type::Ints => Some("int4[]"),
            Type::Texts => Some("text[]"),
            other => Some(other.name()),
        };
        let chance = self.random.chance(50);
        let null = self.random.chance(4);
        let declared = declarable.is_some() && self.random.chance(60);
        let binary = self.random.chance(50)
            && matches!(
                kind,
                Type::Int2
                    | Type::Int4
                    | Type::Int8
                    | Type::Float4
                    | Type::Float8
                    | Type::Bool
                    | Type::Text
                    | Type::Uuid
            );
        let parameters = self.parameters.as_mut()?;
        if !chance || parameters.len() >= MOST_PARAMETERS {
            return None;
        }
        parameters.push(Parameter {
            type_name: declarable.unwrap_or("unknown").to_owned(),
            declared,
            binary,
            value: (!null).then(|| value.to_owned()),
        });
        let number = parameters.len();
        Some(match declared {
            true => format!("${number}"),
            false => format!("${number}::{}", kind.name()),
        })
    }

    /// The text form of a value that the tables may hold.
    fn value(&mut self, kind: Type) -> String {
        let random = &mut self.random;
        match kind {
            Type::Int2 => random.between(-6, 15).to_string(),
            Type::Int4 => random.between(0, 12).to_string(),
            Type::Int8 => random.between(1, 90).to_string(),
            Type::Numeric if random.chance(5) => {
                random.pick(&["NaN", "Infinity", "-Infinity"]).to_owned()
            }
            Type::Numeric => format!("{}.{}", random.between(-5, 15), random.pick(&[0, 5, 25])),
            Type::Float4 | Type::Float8 => match random.below(12) {
                0 => "NaN".to_owned(),
                1 => "Infinity".to_owned(),
                2 => "-Infinity".to_owned(),
                _ => format!("{}.{}", random.between(-9, 9), random.pick(&[0, 5, 25])),
            },
            Type::Text if random.chance(30) => format!("{KEYWORD}{}", random.between(1, 65)),
            Type::Text | Type::Varchar | Type::Char | Type::Domain => {
                random.pick(&WORDS).to_owned()
            }
            Type::Bool => random.pick(&["true", "false"]).to_owned(),
            Type::Date => format!(
                "2024-{}",
                random.pick(&["02-20", "02-29", "03-01", "03-10"])
            ),
            Type::Timestamp => format!("2024-03-{:02} 01:30:00", random.between(9, 11)),
            Type::Timestamptz => format!("2024-03-{:02} 03:30:00+00", random.between(9, 11)),
            Type::Interval => format!("{:02}:{:02}:00", random.between(0, 9), random.between(0, 9)),
            Type::Time => format!("{:02}:31:00.5", random.between(8, 17)),
            Type::Uuid => format!("00000000-0000-4000-8000-{:012}", random.between(1, 80)),
            Type::Bytea => format!("\\x{:04x}", random.between(0, 11)),
            Type::Json | Type::Jsonb => {
                let (a, b) = (random.between(0, 6), random.pick(&WORDS));
                format!("{{\"a\": {a}, \"b\": \"{b}\"}}")
            }
            Type::Ints => format!("{{{},{}}}", random.between(0, 4), random.between(0, 3)),
            Type::Texts => format!(
                "{{\"{}\",\"{}\"}}",
                random.pick(&WORDS),
                random.pick(&WORDS)
            ),
            Type::Mood => random.pick(&["sad", "ok", "happy", "angry"]).to_owned(),
            Type::Inet => format!("10.0.0.{}", random.between(0, 8)),
            Type::Range => format!("[{},{})", random.between(0, 6), random.between(6, 12)),
            Type::Multirange => format!("{{[{},5),[7,9)}}", random.between(0, 4)),
            Type::Pair => format!(
                "({},{})",
                random.between(0, 8),
                random.pick(&["ann", "eve"])
            ),
            Type::Row => String::new(),
        }
    }

    fn case(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let condition = self.condition(scope, depth - 1);
        let yes = self.expression(scope, kind, depth - 1);
        let no = self.expression(scope, kind, depth - 1);
        let text = match self.random.chance(75) {
            true => format!(
                "case when {condition} then {} else {} end",
                yes.text, no.text
            ),
            false => format!("case when {condition} then {} end", yes.text),
        };
        mixed(format!("({text})"), &yes, &no)
    }

    fn coalesce(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let first = self.expression(scope, kind, depth - 1);
        let second = self.leaf(scope, kind);
        mixed(
            format!("coalesce({}, {})", first.text, second.text),
            &first,
            &second,
        )
    }

    fn nullif(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let first = self.expression(scope, kind, depth - 1);
        if !kind.is_comparable() {
            return first;
        }
        let second = self.leaf(scope, kind);
        mixed(
            format!("nullif({}, {})", first.text, second.text),
            &first,
            &second,
        )
    }

    fn greatest(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let first = self.expression(scope, kind, depth - 1);
        if !kind.is_comparable() {
            return first;
        }
        // Of two that are equal one is kept, in an order that SQL does not say.
        let (first, second) = (self.exact(first), self.leaf(scope, kind));
        let second = self.exact(second);
        let function = self.random.pick(&["greatest", "least"]);
        mixed(
            format!("{function}({}, {})", first.text, second.text),
            &first,
            &second,
        )
    }

    /// An operator or function of the type's own.
    fn operation(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        match kind {
            Type::Int2 => self.leaf(scope, kind),
            Type::Int4 => self.int4(scope, depth),
            Type::Int8 => self.int8(scope, depth),
            Type::Numeric => self.numeric(scope, depth),
            Type::Float4 | Type::Float8 => self.float(scope, kind, depth),
            Type::Text => self.text(scope, depth),
            Type::Varchar | Type::Char => {
                let value = self.expression(scope, Type::Text, depth - 1);
                let length = if kind == Type::Char { 6 } else { 12 };
                made(
                    format!("left({}, {length})::{}", value.text, kind.name()),
                    kind,
                )
            }
            Type::Bool => {
                let condition = self.condition(scope, depth);
                made(format!("({condition})"), kind)
            }
            Type::Date | Type::Timestamp | Type::Timestamptz => self.moment(scope, kind, depth),
            Type::Interval => {
                let value = self.leaf(scope, kind);
                let text = match self.random.below(3) {
                    0 => format!("({} * 2)", value.text),
                    1 => format!("(- {})", value.text),
                    _ => format!("justify_hours({} + interval '20 hours')", value.text),
                };
                made(text, kind)
            }
            Type::Time => {
                let value = self.leaf(scope, kind);
                made(format!("({} + interval '1 hour')", value.text), kind)
            }
            Type::Json | Type::Jsonb => self.json(scope, kind, depth),
            Type::Ints if self.random.chance(30) => {
                let value = self.leaf(scope, kind).text;
                // A slice remembers in its binary form that the whole had NULLs.
                made(
                    format!("string_to_array(array_to_string(({value})[1:1], ','), ',')::int4[]"),
                    kind,
                )
            }
            Type::Ints => {
                let first = self.leaf(scope, Type::Int4);
                let second = self.leaf(scope, Type::Int4);
                made(format!("array[{}, {}]", first.text, second.text), kind)
            }
            Type::Texts => {
                let value = self.leaf(scope, kind);
                let word = self.leaf(scope, Type::Text);
                made(format!("({} || {})", value.text, word.text), kind)
            }
            Type::Range | Type::Multirange | Type::Pair => self.compound(scope, kind),
            Type::Domain | Type::Uuid | Type::Bytea | Type::Mood | Type::Inet | Type::Row => {
                self.leaf(scope, kind)
            }
        }
    }

    /// What has parts.
    fn compound(&mut self, scope: &Scope, kind: Type) -> Expression {
        let value = self.leaf(scope, kind).text;
        let text = match (kind, self.random.chance(50)) {
            (Type::Range, true) => format!("({value} * int4range(2, 9))"),
            (Type::Range, false) => {
                let number = self.leaf(scope, Type::Int4).text;
                format!("int4range({number}, {number} + 3)")
            }
            (Type::Multirange, true) => format!("({value} - int4multirange(int4range(3, 8)))"),
            (Type::Multirange, false) => {
                format!("int4multirange({})", self.leaf(scope, Type::Range).text)
            }
            (_, true) => {
                let word = self.leaf(scope, Type::Text).text;
                format!("row(({value}).a, {word})::pair")
            }
            _ => format!("row(1, ({value}).b)::pair"),
        };
        made(text, kind)
    }

    /// Values stay far from where integer overflows: only columns and small numbers multiply.
    fn int4(&mut self, scope: &Scope, depth: usize) -> Expression {
        let text = match self.random.below(12) {
            9 => format!("({}).a", self.leaf(scope, Type::Pair).text),
            10 => {
                let bound = self.random.pick(&["lower", "upper"]);
                let kind = self.random.pick(&[Type::Range, Type::Multirange]);
                format!("{bound}({})", self.leaf(scope, kind).text)
            }
            0 => {
                let (a, b) = (self.leaf(scope, Type::Int4), self.leaf(scope, Type::Int2));
                format!("({} + {})", a.text, b.text)
            }
            1 => {
                let value = self.leaf(scope, Type::Int4);
                format!("({} * {})", value.text, self.random.between(2, 7))
            }
            2 => {
                let value = self.leaf(scope, Type::Int4);
                let operator = self.random.pick(&["/", "%", "-", "&", "#"]);
                format!("({} {operator} {})", value.text, self.random.between(2, 7))
            }
            3 => {
                let value = self.expression(scope, Type::Text, depth - 1);
                format!("length({})", value.text)
            }
            4 => {
                let value = self.leaf(scope, Type::Date);
                let field = self.random.pick(&["day", "month", "dow"]);
                format!("extract({field} from {})::int4", value.text)
            }
            5 => {
                let (a, b) = (self.leaf(scope, Type::Date), self.leaf(scope, Type::Date));
                let (a, b) = (a.text, b.text);
                format!("(case when isfinite({a}) and isfinite({b}) then {a} - {b} end)")
            }
            6 => {
                let value = self.leaf(scope, Type::Ints);
                format!("({})[{}]", value.text, self.random.between(1, 3))
            }
            7 => {
                let value = self.leaf(scope, Type::Int2);
                format!("{}::int4", value.text)
            }
            _ => {
                let value = self.leaf(scope, Type::Int4);
                format!("abs({} - 5)", value.text)
            }
        };
        made(text, Type::Int4)
    }

    fn int8(&mut self, scope: &Scope, depth: usize) -> Expression {
        let text = match self.random.below(5) {
            0 => {
                let (a, b) = (self.leaf(scope, Type::Int8), self.leaf(scope, Type::Int4));
                format!("({} - {})", a.text, b.text)
            }
            1 => {
                let value = self.leaf(scope, Type::Int8);
                format!("({} % {})", value.text, self.random.between(2, 9))
            }
            2 => {
                let value = self.leaf(scope, Type::Int8);
                format!("({} / {})", value.text, self.random.between(2, 9))
            }
            3 => {
                let (a, b) = (self.leaf(scope, Type::Int4), self.leaf(scope, Type::Int4));
                format!("({}::int8 * {})", a.text, b.text)
            }
            _ => {
                let value = self.expression(scope, Type::Int4, depth - 1);
                format!("{}::int8", value.text)
            }
        };
        made(text, Type::Int8)
    }

    fn numeric(&mut self, scope: &Scope, depth: usize) -> Expression {
        let value = self.expression(scope, Type::Numeric, depth - 1).text;
        let text = match self.random.below(8) {
            0 => {
                let other = self.leaf(scope, Type::Numeric);
                format!("({value} + {})", other.text)
            }
            1 => format!("({value} * 1.05)"),
            2 => format!("({value} / 3)"),
            3 => format!("round({value}, {})", self.random.between(0, 2)),
            4 => {
                let other = self.leaf(scope, Type::Int4);
                format!("({value} - {})", other.text)
            }
            5 => {
                let other = self.leaf(scope, Type::Int8);
                format!("({value} / nullif({}, 0))", other.text)
            }
            6 => {
                let other = self.leaf(scope, Type::Float8);
                format!("round({}::numeric, 3)", other.text)
            }
            _ => format!("abs({value})"),
        };
        made(text, Type::Numeric)
    }

    /// Only what keeps multiples of a quarter (or an eighth) exact.
    fn float(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let value = self.expression(scope, kind, depth - 1);
        let (name, number) = (kind.name(), self.random.between(1, 4));
        let text = match self.random.below(6) {
            0 => format!("({} + {number}::{name})", value.text),
            1 => format!("({} * 2::{name})", value.text),
            2 => format!("(- {})", value.text),
            3 => format!("abs({})", value.text),
            4 => {
                let other = self.leaf(scope, kind);
                let text = format!("({} - {})", value.text, other.text);
                return mixed(text, &value, &other);
            }
            _ => {
                let other = self.leaf(scope, Type::Int2);
                format!("{}::{name}", other.text)
            }
        };
        Expression {
            dyadic: value.dyadic,
            ..made(text, kind)
        }
    }

    fn text(&mut self, scope: &Scope, depth: usize) -> Expression {
        let value = self.expression(scope, Type::Text, depth - 1).text;
        let text = match self.random.below(14) {
            9 => self.session_text(),
            10 => match self.row_as(scope, Type::Text).filter(|_| !scope.grouped) {
                Some(text) => text,
                None => format!("({value} collate \"C\")"),
            },
            11 => format!(
                "({})[{}]",
                self.leaf(scope, Type::Texts).text,
                self.random.between(0, 2)
            ),
            12 => format!("({}).b", self.leaf(scope, Type::Pair).text),
            0 => {
                let other = self.leaf(scope, Type::Text);
                format!("({value} || {})", other.text)
            }
            1 => format!("upper({value})"),
            2 => format!("left({value}, {})", self.random.between(-1, 3)),
            3 => format!("substr({value}, 2)"),
            4 => {
                let kind = self.any_kind(scope);
                let other = self.leaf(scope, kind);
                format!("{}::text", other.text)
            }
            5 => {
                let other = self.leaf(scope, Type::Jsonb);
                format!("({} ->> 'b')", other.text)
            }
            6 => {
                let kind = self.random.pick(&[Type::Varchar, Type::Char, Type::Domain]);
                let other = self.leaf(scope, kind);
                format!("({} || '!')", other.text)
            }
            7 => {
                let other = self.leaf(scope, Type::Timestamptz);
                format!("to_char({}, 'YYYY-MM-DD HH24')", other.text)
            }
            _ => format!(
                "concat({value}, '-', {})",
                self.leaf(scope, Type::Int4).text
            ),
        };
        made(text, Type::Text)
    }

    fn moment(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let value = self.expression(scope, kind, depth - 1).text;
        let text = match (kind, self.random.below(3)) {
            (Type::Date, 0) => format!("({value} + {})", self.random.between(-3, 3)),
            (Type::Date, _) => format!("{}::date", self.leaf(scope, Type::Timestamp).text),
            (Type::Timestamp, 0) => format!("date_trunc('hour', {value})"),
            (Type::Timestamp, 1) => {
                let other = self.leaf(scope, Type::Timestamptz);
                format!("({} at time zone 'Europe/Oslo')", other.text)
            }
            (_, 0) => format!("date_trunc('day', {value})"),
            (_, _) => format!("({value} + {})", self.leaf(scope, Type::Interval).text),
        };
        made(text, kind)
    }

    fn json(&mut self, scope: &Scope, kind: Type, depth: usize) -> Expression {
        let (number, word) = (self.leaf(scope, Type::Int4), self.leaf(scope, Type::Text));
        let text = match (kind, self.random.below(3)) {
            (Type::Json, 0) => format!(
                "json_build_object('n', {}, 'w', {})",
                number.text, word.text
            ),
            (Type::Json, 1) if !scope.whole_rows.is_empty() && !scope.grouped => self
                .row_as(scope, kind)
                .unwrap_or_else(|| format!("'[]'::{}", kind.name())),
            (Type::Json, _) => format!("to_json({})", word.text),
            (_, 0) if !scope.whole_rows.is_empty() && !scope.grouped => self
                .row_as(scope, kind)
                .unwrap_or_else(|| format!("'[]'::{}", kind.name())),
            (_, 0) => format!("jsonb_build_array({}, {})", number.text, word.text),
            (_, 1) if self.random.chance(40) => {
                let value = self.leaf(scope, Type::Jsonb);
                format!("({})['c'][0]", value.text)
            }
            (_, 1) => {
                let value = self.expression(scope, Type::Jsonb, depth - 1);
                format!("({} -> 'c')", value.text)
            }
            (_, _) => {
                let value = self.leaf(scope, Type::Jsonb);
                format!("({} #> '{{c,0}}')", value.text)
            }
        };
        made(text, kind)
    }
}

fn constant(text: String, kind: Type) -> Expression {
    Expression {
        text,
        kind,
        exact: !matches!(kind, Type::Numeric | Type::Float4 | Type::Float8),
        dyadic: true,
    }
}

/// The result of an operator.
fn made(text: String, kind: Type) -> Expression {
    Expression::new(text, kind)
}

/// Either of two values.
fn mixed(text: String, first: &Expression, second: &Expression) -> Expression {
    Expression {
        text,
        kind: first.kind,
        exact: Expression::new("", first.kind).exact,
        dyadic: first.dyadic && second.dyadic,
    }
}
