//! What must be equal for a row to matter: the planner's proofs.
//!
//! A scope holds equalities that are true for every row that can have an influence on what the
//! scope gives. Facts of a scope are true in the scopes inside it, and never the other way: what
//! holds on the nullable side of an outer join says nothing about the other side.

use pg_query::{
    NodeEnum,
    protobuf::{self, a_const},
};

use crate::{
    catalog::KeyType,
    key,
    tree::{inner, is_null, nodes, strings},
};

/// A column of one occurrence of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ColumnId {
    /// Index into [`crate::analysis::Analysis::uses`].
    pub(crate) occurrence: usize,
    /// Index into the relation's columns.
    pub(crate) column: usize,
}

/// A value that is known before any row is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Constant {
    /// NULL.
    Null,
    /// `$n`, 0-based.
    Parameter(usize),
    /// A literal.
    Literal {
        /// Where it stands in the client's text; `None` in a view's.
        location: Option<usize>,
        /// Its value as text, with its sign.
        text: String,
        /// It is a string, so that it takes the type of what it is compared with.
        string: bool,
    },
}

/// One fact.
#[derive(Debug, Clone)]
enum Fact {
    /// Two columns of one key type.
    Equal(ColumnId, ColumnId),
    /// The column has one of these values.
    OneOf(ColumnId, Vec<Constant>),
    /// The column is not below this value.
    AtLeast(ColumnId, Constant),
    /// The column is not above this value.
    AtMost(ColumnId, Constant),
}

/// What is known about the value of a column.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It is one of these.
    pub(crate) values: Option<Vec<Constant>>,
    /// It is not below any of these.
    pub(crate) lower: Vec<Constant>,
    /// It is not above any of these.
    pub(crate) upper: Vec<Constant>,
}

#[derive(Debug, Default)]
struct Scope {
    parent: Option<usize>,
    facts: Vec<Fact>,
}

/// All scopes of a statement.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    scopes: Vec<Scope>,
}

impl Facts {
    /// A new scope inside another.
    pub(crate) fn scope(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope {
            parent,
            facts: Vec::new(),
        });
        self.scopes.len() - 1
    }

    /// How many scopes there are.
    pub(crate) fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Two columns are equal. The caller has made sure that they are of one key type.
    pub(crate) fn equal(&mut self, scope: usize, left: ColumnId, right: ColumnId) {
        self.scopes[scope].facts.push(Fact::Equal(left, right));
    }

    /// A column has one of some values. The caller has made sure that each compares with the
    /// column as a value of the column's key type.
    pub(crate) fn one_of(&mut self, scope: usize, column: ColumnId, values: Vec<Constant>) {
        self.scopes[scope].facts.push(Fact::OneOf(column, values));
    }

    /// A column is not below a value, or not above it. As for [`Facts::one_of`].
    pub(crate) fn limit(&mut self, scope: usize, column: ColumnId, value: Constant, above: bool) {
        self.scopes[scope].facts.push(if above {
            Fact::AtLeast(column, value)
        } else {
            Fact::AtMost(column, value)
        });
    }

    /// Every column that is equal to `start` where `start`'s row matters, `start` first, and the
    /// first list of constants found for one of them, and all limits. `scope_of` says where an occurrence stands.
    pub(crate) fn closure(
        &self,
        start: ColumnId,
        scope_of: &dyn Fn(usize) -> usize,
    ) -> (Vec<ColumnId>, Known) {
        let mut reached = vec![start];
        let mut scopes = self.chain(scope_of(start.occurrence));
        let mut known = Known::default();
        loop {
            let before = (reached.len(), scopes.len());
            let mut found = Vec::new();
            for fact in scopes.iter().flat_map(|scope| &self.scopes[*scope].facts) {
                match fact {
                    Fact::Equal(left, right) => {
                        if reached.contains(left) {
                            found.push(*right);
                        }
                        if reached.contains(right) {
                            found.push(*left);
                        }
                    }
                    Fact::OneOf(column, constants) => {
                        if known.values.is_none() && reached.contains(column) {
                            known.values = Some(constants.clone());
                        }
                    }
                    Fact::AtLeast(column, value) => {
                        if reached.contains(column) && !known.lower.contains(value) {
                            known.lower.push(value.clone());
                        }
                    }
                    Fact::AtMost(column, value) => {
                        if reached.contains(column) && !known.upper.contains(value) {
                            known.upper.push(value.clone());
                        }
                    }
                }
            }
            for column in found {
                if !reached.contains(&column) {
                    reached.push(column);
                    // A row that is equal to ours in a column is a real one, so what its own
                    // scope says is true of it.
                    for scope in self.chain(scope_of(column.occurrence)) {
                        if !scopes.contains(&scope) {
                            scopes.push(scope);
                        }
                    }
                }
            }
            if before == (reached.len(), scopes.len()) {
                return (reached, known);
            }
        }
    }

    fn chain(&self, scope: usize) -> Vec<usize> {
        let mut chain = vec![scope];
        let mut at = scope;
        while let Some(parent) = self.scopes[at].parent {
            chain.push(parent);
            at = parent;
        }
        chain
    }
}

/// The value of a node that is a constant or parameter, if comparing it with a column of
/// `key_type` compares values of that type. `parameter_types` are those the client declared.
pub(crate) fn constant(
    node: &NodeEnum,
    key_type: KeyType,
    parameter_types: &[u32],
    in_client_text: bool,
) -> Option<Constant> {
    if is_null(node) {
        return Some(Constant::Null);
    }
    match node {
        NodeEnum::AConst(value) => literal(value, key_type, None, in_client_text),
        NodeEnum::ParamRef(parameter) => self::parameter(parameter, key_type, parameter_types),
        NodeEnum::TypeCast(cast) => {
            let name = cast.type_name.as_ref()?;
            if type_family(name)? != key_type {
                return None;
            }
            match inner(&cast.arg)? {
                NodeEnum::AConst(value) if value.isnull => Some(Constant::Null),
                NodeEnum::AConst(value) => literal(value, key_type, Some(key_type), in_client_text),
                NodeEnum::ParamRef(parameter) => {
                    self::parameter(parameter, key_type, parameter_types)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn parameter(parameter: &protobuf::ParamRef, key_type: KeyType, types: &[u32]) -> Option<Constant> {
    let index = usize::try_from(parameter.number).ok()?.checked_sub(1)?;
    let declared = types.get(index).copied().unwrap_or(0);
    if declared != 0 && !key::accepts_text_of(key_type, declared) {
        return None;
    }
    Some(Constant::Parameter(index))
}

fn literal(
    value: &protobuf::AConst,
    key_type: KeyType,
    cast: Option<KeyType>,
    in_client_text: bool,
) -> Option<Constant> {
    let location = usize::try_from(value.location)
        .ok()
        .filter(|_| in_client_text);
    let literal = |text: String, string| {
        Some(Constant::Literal {
            location,
            text,
            string,
        })
    };
    match value.val.as_ref()? {
        a_const::Val::Ival(number) if key_type == KeyType::Integer => {
            literal(number.ival.to_string(), false)
        }
        // Integers that do not fit an int4 come as text.
        a_const::Val::Fval(number) if key_type == KeyType::Integer => {
            let digits = number.fval.strip_prefix('-').unwrap_or(&number.fval);
            let integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // Beyond int8 it is a numeric; so is its column's side of the comparison then.
            let fits = number.fval.parse::<i64>().is_ok();
            (integer && fits && cast.is_none()).then(|| literal(number.fval.clone(), false))?
        }
        a_const::Val::Sval(string) => literal(string.sval.clone(), true),
        _ => None,
    }
}

/// The key type that a type's name stands for, if values cast to it keep their value.
pub(crate) fn type_family(name: &protobuf::TypeName) -> Option<KeyType> {
    if !name.typmods.is_empty() || !name.array_bounds.is_empty() || name.setof || name.pct_type {
        return None;
    }
    let names = strings(&name.names);
    let name = match names.as_slice() {
        ["pg_catalog", name] | [name] => *name,
        _ => return None,
    };
    Some(match name {
        "int2" | "int4" | "int8" => KeyType::Integer,
        "text" | "varchar" => KeyType::Text,
        "uuid" => KeyType::Uuid,
        "date" => KeyType::Date,
        "timestamp" => KeyType::Timestamp,
        "timestamptz" => KeyType::TimestampTz,
        _ => return None,
    })
}

/// True for the operator `=` as Postgres itself defines it.
pub(crate) fn is_equality(name: &[pg_query::Node]) -> bool {
    matches!(strings(name).as_slice(), ["="] | ["pg_catalog", "="])
}

/// What an inequality of Postgres itself says about its left side: `Some(true)` that it is not
/// below the right one, `Some(false)` that it is not above it.
pub(crate) fn limit(name: &[pg_query::Node]) -> Option<bool> {
    match strings(name).as_slice() {
        [">" | ">="] | ["pg_catalog", ">" | ">="] => Some(true),
        ["<" | "<="] | ["pg_catalog", "<" | "<="] => Some(false),
        _ => None,
    }
}

/// The elements of `IN (...)` or `= ANY (ARRAY[...])`.
pub(crate) fn elements(node: &NodeEnum) -> Option<Vec<&NodeEnum>> {
    match node {
        NodeEnum::List(list) => Some(nodes(&list.items).collect()),
        NodeEnum::AArrayExpr(array) => Some(nodes(&array.elements).collect()),
        _ => None,
    }
}
