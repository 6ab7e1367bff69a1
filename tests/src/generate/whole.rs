//! Whole rows as values: `t`, `t.*`, `(t).x`.

use super::{Expression, Feature, Generator, Scope, schema::Type};

impl Generator {
    /// A relation whose whole row can be named, and whether rows can be compared.
    fn whole_row(&mut self, scope: &Scope) -> Option<(String, bool)> {
        if scope.whole_rows.is_empty() || !Feature::Rows.is_wanted() {
            return None;
        }
        let alias = self.random.pick(&scope.whole_rows);
        let prefix = format!("{alias}.");
        let mut columns = scope.columns.iter();
        let comparable =
            columns.all(|it| !it.value.text.starts_with(&prefix) || it.value.kind.is_comparable());
        Some((alias, comparable))
    }

    /// A row as a value of its own.
    pub(super) fn row_value(&mut self, scope: &Scope) -> Option<Expression> {
        let (alias, _) = self.whole_row(scope)?;
        Some(Expression::new(alias, Type::Row))
    }

    /// A row that can be grouped by.
    pub(super) fn row_key(&mut self, scope: &Scope) -> Option<Expression> {
        let (alias, comparable) = self.whole_row(scope)?;
        comparable.then(|| Expression::new(alias, Type::Row))
    }

    /// A condition on whole rows.
    pub(super) fn row_condition(&mut self, scope: &Scope) -> Option<String> {
        let (alias, comparable) = self.whole_row(scope)?;
        Some(match self.random.below(8) {
            0 => format!("{alias} is not null"),
            1 => format!("{alias} is null"),
            2 => format!("to_jsonb({alias}) ? 'n'"),
            3 => format!("length({alias}::text) > 40"),
            4 if comparable => format!("{alias} = {alias}"),
            5 if comparable => format!("row({alias}.*) is not distinct from row({alias}.*)"),
            6 if comparable => format!("{alias}.* <= {alias}.*"),
            _ => format!("({alias}.*) is distinct from null"),
        })
    }

    /// A row as text or JSON.
    pub(super) fn row_as(&mut self, scope: &Scope, kind: Type) -> Option<String> {
        let (alias, _) = self.whole_row(scope)?;
        let forms: &[&str] = match kind {
            Type::Json => &["row_to_json({})", "to_json({})", "row_to_json({}.*)"],
            Type::Jsonb => &["to_jsonb({})", "to_jsonb({}.*)", "jsonb_build_array({})"],
            _ => &[
                "{}::text",
                "({}.*)::text",
                "row({}.*)::text",
                "concat({}, '')",
            ],
        };
        Some(self.random.pick(forms).replace("{}", &alias))
    }

    /// An aggregate of whole rows.
    pub(super) fn row_aggregate(&mut self, scope: &Scope) -> Option<Expression> {
        let (alias, comparable) = self.whole_row(scope)?;
        let identity = scope.identity.iter().flatten();
        let order: Vec<&str> = identity.map(|value| value.text.as_str()).collect();
        let choice = self.random.below(6);
        if choice < 3 && !order.is_empty() {
            let order = order.join(", ");
            let (function, kind) = self.random.pick(&[
                ("json_agg({} order by {o})", Type::Json),
                ("jsonb_agg({}.* order by {o})", Type::Jsonb),
                ("jsonb_agg(to_jsonb({}) order by {o})", Type::Jsonb),
                ("string_agg({}::text, ' ' order by {o})", Type::Text),
            ]);
            let text = function.replace("{}", &alias).replace("{o}", &order);
            return Some(Expression::new(text, kind));
        }
        let text = match choice {
            3 if comparable => format!("count(distinct {alias})"),
            4 => format!("count({alias}.*)"),
            _ => format!("count({alias})"),
        };
        Some(Expression::new(text, Type::Int8))
    }
}
