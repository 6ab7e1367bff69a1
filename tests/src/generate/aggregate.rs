//! Aggregates and window functions.

use super::{Expression, Generator, Scope, schema::Type};

const NUMBERS: [Type; 4] = [Type::Int2, Type::Int4, Type::Int8, Type::Numeric];

impl Generator {
    /// An aggregate over the rows of `scope`.
    pub fn aggregate(&mut self, scope: &Scope) -> Expression {
        let scope = &scope.local();
        let common = if self.simple && self.random.chance(80) {
            10
        } else {
            20
        };
        let mut value = match self.random.below(common) {
            0..=2 => self.count(scope),
            3..=6 => self.sum(scope),
            7..=9 => self.extreme(scope),
            10 => self.boolean(scope),
            11 => self.bits(scope),
            12 | 13 => self.spread(scope),
            14 | 15 => self.list(scope),
            16 => self.json_list(scope),
            17 => self.ordered_set(scope),
            18 => match self.row_aggregate(scope) {
                Some(value) => value,
                None => self.ordered_set(scope),
            },
            _ => self.regression(scope),
        };
        // What is rounded, or has a filter of its own, is not an aggregate call at its end.
        let is_call = !value.text.starts_with("round(") && !value.text.contains(" filter (where");
        if is_call && self.random.chance(18) {
            let condition = self.condition(scope, 0);
            value.text = format!("{} filter (where {condition})", value.text);
        }
        value
    }

    fn argument(&mut self, scope: &Scope, kind: Type) -> Expression {
        match self.random.chance(70) {
            true => self.leaf(scope, kind),
            false => self.expression(scope, kind, 1),
        }
    }

    fn count(&mut self, scope: &Scope) -> Expression {
        let kind = self
            .kind_of(scope, Type::is_comparable)
            .unwrap_or(Type::Int4);
        let value = self.argument(scope, kind).text;
        let text = match self.random.below(5) {
            0 | 1 => "count(*)".to_owned(),
            2 => format!("count({value})"),
            3 => {
                let other = self.leaf(scope, Type::Int4).text;
                format!("count(distinct ({value}, {other}))")
            }
            _ => format!("count(distinct {value})"),
        };
        Expression::new(text, Type::Int8)
    }

    fn sum(&mut self, scope: &Scope) -> Expression {
        let summable =
            |kind: Type| NUMBERS.contains(&kind) || kind.is_float() || kind == Type::Interval;
        let mut kind = self.kind_of(scope, summable).unwrap_or(Type::Int4);
        let mut value = self.argument(scope, kind);
        if kind.is_float() && !value.dyadic {
            kind = Type::Numeric;
            value = Expression::new(format!("({})::numeric", value.text), kind);
        }
        let function = self.random.pick(&["sum", "avg"]);
        let result = match (function, kind) {
            ("sum", Type::Int2 | Type::Int4) => Type::Int8,
            ("sum", Type::Int8) | (_, Type::Int2 | Type::Int4 | Type::Int8) => Type::Numeric,
            ("avg", Type::Float4) => Type::Float8,
            (_, kind) => kind,
        };
        // Which of two equal values stays would show in the scale of the sum.
        let distinct = self.random.chance(15);
        let text = match distinct {
            true => {
                let value = self.exact(value);
                format!("{function}(distinct {})", value.text)
            }
            false => format!("{function}({})", value.text),
        };
        Expression {
            dyadic: function == "sum",
            ..Expression::new(text, result)
        }
    }

    fn extreme(&mut self, scope: &Scope) -> Expression {
        let kind = self
            .kind_of(scope, Type::has_extremes)
            .unwrap_or(Type::Int4);
        let value = self.argument(scope, kind);
        let value = self.exact(value);
        let function = self.random.pick(&["min", "max"]);
        let result = match kind {
            Type::Varchar | Type::Domain => Type::Text,
            kind => kind,
        };
        Expression {
            text: format!("{function}({})", value.text),
            kind: result,
            ..value
        }
    }

    fn boolean(&mut self, scope: &Scope) -> Expression {
        let function = self.random.pick(&["bool_and", "bool_or", "every"]);
        let value = self.condition(scope, 0);
        Expression::new(format!("{function}({value})"), Type::Bool)
    }

    fn bits(&mut self, scope: &Scope) -> Expression {
        if let Some(range) = self.column(scope, Type::Range) {
            let function = self.random.pick(&["range_agg", "range_intersect_agg"]);
            let kind = match function {
                "range_agg" => Type::Multirange,
                _ => Type::Range,
            };
            return Expression::new(format!("{function}({})", range.value.text), kind);
        }
        let function = self.random.pick(&["bit_and", "bit_or", "bit_xor"]);
        let kind = self.kind_of(scope, Type::is_integer).unwrap_or(Type::Int4);
        let value = self.argument(scope, kind).text;
        Expression::new(format!("{function}({value})"), kind)
    }

    /// Over whole numbers and numeric: exact in every order.
    fn spread(&mut self, scope: &Scope) -> Expression {
        let function = self.random.pick(&[
            "stddev",
            "stddev_pop",
            "stddev_samp",
            "variance",
            "var_pop",
            "var_samp",
        ]);
        let kind = self
            .kind_of(scope, |kind| NUMBERS.contains(&kind))
            .unwrap_or(Type::Int4);
        let value = self.argument(scope, kind);
        Expression::new(format!("{function}({})", value.text), Type::Numeric)
    }

    fn list(&mut self, scope: &Scope) -> Expression {
        let kind = self.random.pick(&[Type::Int4, Type::Text, Type::Text]);
        let value = self.argument(scope, kind).text;
        let order = self.order_inside(scope, &value);
        match (kind, self.random.below(3)) {
            (Type::Text, 0) => {
                Expression::new(format!("string_agg({value}, ',' {order})"), Type::Text)
            }
            (Type::Text, 1) => {
                let text = format!("string_agg(distinct {value}, '+' order by {value})");
                Expression::new(text, Type::Text)
            }
            (Type::Text, _) => Expression::new(format!("array_agg({value} {order})"), Type::Texts),
            (_, 0) => {
                let text = format!("array_agg(distinct {value} order by {value} desc)");
                Expression::new(text, Type::Ints)
            }
            (_, _) => Expression::new(format!("array_agg({value} {order})"), Type::Ints),
        }
    }

    /// An ORDER BY that ends with the aggregated value: rows that are equal in all of it are alike.
    fn order_inside(&mut self, scope: &Scope, value: &str) -> String {
        let mut items = Vec::new();
        if self.random.chance(60) {
            let kind = self
                .kind_of(scope, Type::is_comparable)
                .unwrap_or(Type::Int4);
            let first = self.leaf(scope, kind).text;
            items.push(format!("{first}{}", self.direction()));
        }
        items.push(format!("{value}{}", self.direction()));
        format!("order by {}", items.join(", "))
    }

    /// ASC, DESC and where NULLs go.
    pub fn direction(&mut self) -> &'static str {
        self.random.pick(&[
            "",
            "",
            "",
            " asc",
            " desc",
            " desc",
            " nulls first",
            " desc nulls last",
            " asc nulls last",
            " desc nulls first",
        ])
    }

    fn json_list(&mut self, scope: &Scope) -> Expression {
        let kind = self.random.pick(&[Type::Int4, Type::Text, Type::Bool]);
        let value = self.argument(scope, kind).text;
        let order = self.order_inside(scope, &value);
        match self.random.below(3) {
            0 => Expression::new(format!("json_agg({value} {order})"), Type::Json),
            1 => Expression::new(format!("jsonb_agg({value} {order})"), Type::Jsonb),
            _ => {
                let key = self.leaf(scope, Type::Text).text;
                let text = format!(
                    "jsonb_object_agg({key}, {value} order by {key}, {value}) \
                     filter (where {key} is not null)"
                );
                Expression::new(text, Type::Jsonb)
            }
        }
    }

    fn ordered_set(&mut self, scope: &Scope) -> Expression {
        let fraction = self.random.pick(&["0", "0.25", "0.5", "0.9", "1"]);
        let direction = self.random.pick(&["", " desc"]);
        match self.random.below(4) {
            0 => {
                let kind = self.random.pick(&[Type::Float8, Type::Int4]);
                let value = self.argument(scope, kind);
                let value = self.exact(value).text;
                let text = format!(
                    "percentile_cont({fraction}) within group (order by {value}::float8{direction})"
                );
                Expression {
                    dyadic: false,
                    ..Expression::new(text, Type::Float8)
                }
            }
            1 => {
                let value = self.argument(scope, Type::Int4).text;
                let other = self.random.between(0, 9);
                let function = self.random.pick(&["rank", "dense_rank"]);
                let text =
                    format!("{function}({other}) within group (order by {value}{direction})");
                Expression::new(text, Type::Int8)
            }
            other => {
                let kind = self
                    .kind_of(scope, Type::is_comparable)
                    .unwrap_or(Type::Int4);
                let value = self.argument(scope, kind);
                let value = self.exact(value);
                let call = match other {
                    2 => format!("percentile_disc({fraction})"),
                    _ => "mode()".to_owned(),
                };
                Expression {
                    text: format!("{call} within group (order by {}{direction})", value.text),
                    ..value
                }
            }
        }
    }

    /// Rounded: the last digits of these depend on the order of rows.
    fn regression(&mut self, scope: &Scope) -> Expression {
        let function = self.random.pick(&[
            "corr",
            "covar_pop",
            "covar_samp",
            "regr_slope",
            "regr_intercept",
            "regr_r2",
            "regr_avgx",
            "regr_count",
        ]);
        let (a, b) = (
            self.leaf(scope, Type::Int4).text,
            self.leaf(scope, Type::Int4).text,
        );
        let call = format!("{function}({a}, {b})");
        match function {
            "regr_count" => Expression::new(call, Type::Int8),
            _ => Expression::new(format!("round({call}::numeric, 5)"), Type::Numeric),
        }
    }

    /// A window function over the rows of `scope`.
    pub fn window(&mut self, scope: &Scope) -> Expression {
        match &scope.identity {
            Some(identity) if self.random.chance(65) => {
                let identity = identity.clone();
                self.window_over_rows(scope, &identity)
            }
            _ => self.window_over_peers(scope),
        }
    }

    fn partition(&mut self, scope: &Scope) -> String {
        if self.random.chance(40) {
            return String::new();
        }
        // By what the rows are distributed by.
        if let Some(first) = scope.columns.first()
            && first.value.kind.is_comparable()
            && self.random.chance(25)
        {
            return format!("partition by {} ", first.value.text);
        }
        let kind = self
            .kind_of(scope, Type::is_comparable)
            .unwrap_or(Type::Int4);
        let value = match self.random.chance(75) {
            true => self.leaf(&scope.local(), kind),
            false => self.expression(&scope.local(), kind, 1),
        };
        format!("partition by {} ", value.text)
    }

    /// What the order of all rows decides, under an order that leaves no choice.
    fn window_over_rows(&mut self, scope: &Scope, identity: &[Expression]) -> Expression {
        let partition = self.partition(scope);
        let kind = self
            .kind_of(scope, Type::is_comparable)
            .unwrap_or(Type::Int4);
        let first = self.leaf(scope, kind).text;
        let mut order = vec![format!("{first}{}", self.direction())];
        order.extend(identity.iter().map(|value| value.text.clone()));
        let frame = self.random.pick(&[
            "",
            " rows between 1 preceding and current row",
            " rows between unbounded preceding and 1 following",
            " rows between 2 preceding and 2 following exclude current row",
            " rows between current row and unbounded following",
            " groups between 1 preceding and 1 following",
        ]);
        let value = self.leaf(scope, kind);
        let (call, result, frame) = match self.random.below(8) {
            0 | 1 => (
                "row_number()".to_owned(),
                Expression::new("", Type::Int8),
                "",
            ),
            2 => ("ntile(3)".to_owned(), Expression::new("", Type::Int4), ""),
            3 => {
                let function = self.random.pick(&["lag", "lead"]);
                let call = format!("{function}({}, {})", value.text, self.random.between(0, 2));
                (call, value, "")
            }
            4 => {
                let function = self.random.pick(&["first_value", "last_value"]);
                (format!("{function}({})", value.text), value, frame)
            }
            5 => (format!("nth_value({}, 2)", value.text), value, frame),
            _ => {
                let sum = self.sum_without_distinct(scope);
                (sum.text.clone(), sum, frame)
            }
        };
        let order = order.join(", ");
        let over = self.over(format!("{partition}order by {order}"), frame);
        Expression {
            text: format!("{call} {over}"),
            ..result
        }
    }

    /// OVER with a window of its own, or one that the query names.
    fn over(&mut self, definition: String, frame: &str) -> String {
        if self.windows.is_none() || self.random.chance(30) {
            return format!("over ({definition}{frame})");
        }
        let name = self.alias("win");
        let windows = self.windows.get_or_insert_default();
        windows.push(format!("{name} as ({definition})"));
        match frame.is_empty() {
            true => format!("over {name}"),
            false => format!("over ({name}{frame})"),
        }
    }

    /// What is the same for all rows that are equal in the order.
    fn window_over_peers(&mut self, scope: &Scope) -> Expression {
        let partition = self.partition(scope);
        let call = match self.random.below(8) {
            0 => Expression::new("rank()", Type::Int8),
            1 => Expression::new("dense_rank()", Type::Int8),
            2 => Expression {
                dyadic: false,
                ..Expression::new("percent_rank()", Type::Float8)
            },
            3 => Expression {
                dyadic: false,
                ..Expression::new("cume_dist()", Type::Float8)
            },
            4 => Expression::new("count(*)", Type::Int8),
            _ => self.sum_without_distinct(scope),
        };
        let numbered = self.random.chance(50);
        let kind = match numbered {
            true => self.kind_of(scope, Type::is_integer).unwrap_or(Type::Int4),
            false => self
                .kind_of(scope, Type::is_comparable)
                .unwrap_or(Type::Int4),
        };
        let first = self.column(&scope.local(), kind);
        let (Some(first), false) = (first, self.random.chance(15)) else {
            let over = self.over(partition, "");
            return Expression {
                text: format!("{} {over}", call.text),
                ..call
            };
        };
        let frames: &[&str] = match numbered {
            true => &[
                "",
                " range between 2 preceding and 1 following",
                " range between unbounded preceding and 3 following",
            ],
            false => &[
                "",
                " groups between 1 preceding and 1 following",
                " range between unbounded preceding and unbounded following",
                " groups between current row and unbounded following exclude group",
            ],
        };
        let frame = self.random.pick(frames);
        let direction = self.direction();
        let order = format!("{partition}order by {}{direction}", first.value.text);
        let over = self.over(order, frame);
        Expression {
            text: format!("{} {over}", call.text),
            ..call
        }
    }

    /// `sum`, `avg`, `min`, `max` or `count` as windows know them.
    fn sum_without_distinct(&mut self, scope: &Scope) -> Expression {
        let scope = &scope.local();
        for _ in 0..4 {
            let value = match self.random.below(4) {
                0 => self.extreme(scope),
                1 => self.count(scope),
                _ => self.sum(scope),
            };
            if !value.text.contains("(distinct ") {
                return self.filtered(scope, value);
            }
        }
        Expression::new("count(*)", Type::Int8)
    }

    fn filtered(&mut self, scope: &Scope, value: Expression) -> Expression {
        if !self.random.chance(15) {
            return value;
        }
        let condition = self.condition(scope, 0);
        Expression {
            text: format!("{} filter (where {condition})", value.text),
            ..value
        }
    }
}
