//! What must be equal for a row to matter: the planner's proofs.
//!
//! A scope holds equalities that are true for every row that can have an influence on what the
//! scope gives. Facts of a scope are true in the scopes inside it, and never the other way: what
//! holds on the nullable side of an outer join says nothing about the other side.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    OneOf(Rc<[Constant]>),
    /// The column is not below this value.
    AtLeast(Constant),
    /// The column is not above this value.
    AtMost(Constant),
}

/// What is known about the value of a column.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It is one of these.
    pub(crate) values: Option<Rc<[Constant]>>,
    /// It is not below any of these.
    pub(crate) lower: Vec<Constant>,
    /// It is not above any of these.
    pub(crate) upper: Vec<Constant>,
}

/// All scopes of a statement.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The scope around each.
    parents: Vec<Option<usize>>,
    /// What each column is named in, with the scope where that is true.
    of_column: HashMap<ColumnId, Vec<(usize, Rc<Fact>)>>,
}

impl Facts {
    /// A new scope inside another.
    pub(crate) fn scope(&mut self, parent: Option<usize>) -> usize {
        self.parents.push(parent);
        self.parents.len() - 1
    }

    /// How many scopes there are.
    pub(crate) fn len(&self) -> usize {
        self.parents.len()
    }

    /// Two columns are equal. The caller has made sure that they are of one key type.
    pub(crate) fn equal(&mut self, scope: usize, left: ColumnId, right: ColumnId) {
        let fact = Rc::new(Fact::Equal(left, right));
        self.note(scope, left, fact.clone());
        self.note(scope, right, fact);
    }

    /// A column has one of some values. The caller has made sure that each compares with the
    /// column as a value of the column's key type.
    pub(crate) fn one_of(&mut self, scope: usize, column: ColumnId, values: Vec<Constant>) {
        let fact = Rc::new(Fact::OneOf(values.into()));
        self.note(scope, column, fact);
    }

    /// A column is not below a value, or not above it. As for [`Facts::one_of`].
    pub(crate) fn limit(&mut self, scope: usize, column: ColumnId, value: Constant, above: bool) {
        let fact = Rc::new(if above {
            Fact::AtLeast(value)
        } else {
            Fact::AtMost(value)
        });
        self.note(scope, column, fact);
    }

    fn note(&mut self, scope: usize, column: ColumnId, fact: Rc<Fact>) {
        let known = self.of_column.entry(column).or_default();
        known.push((scope, fact));
    }

    /// Every column that is equal to `start` where `start`'s row matters, and what is known of
    /// their one value: the first list of constants found for one of them, and all limits.
    /// `scope_of` says where an occurrence stands.
    pub(crate) fn closure(
        &self,
        start: ColumnId,
        scope_of: &dyn Fn(usize) -> usize,
    ) -> (HashSet<ColumnId>, Known) {
        let mut closure = Closure::default();
        closure.reached.insert(start);
        closure.enter(self, scope_of(start.occurrence));
        let mut columns = vec![start];
        while !columns.is_empty() {
            for column in std::mem::take(&mut columns) {
                for (scope, fact) in self.of_column.get(&column).into_iter().flatten() {
                    closure.meet(*scope, fact);
                }
            }
            // A row that is equal to ours in a column is a real one, so what its own scope says
            // is true of it. That may be true of columns reached before, too.
            while let Some(column) = closure.found.pop() {
                columns.push(column);
                closure.enter(self, scope_of(column.occurrence));
            }
            columns.reverse();
        }
        (closure.reached, closure.known)
    }
}

/// What [`Facts::closure`] has found so far.
#[derive(Debug, Default)]
struct Closure<'f> {
    reached: HashSet<ColumnId>,
    /// Reached, and not looked at.
    found: Vec<ColumnId>,
    /// Scopes whose facts are true.
    entered: HashSet<usize>,
    /// Facts about reached columns in scopes that are not entered.
    waiting: HashMap<usize, Vec<&'f Fact>>,
    known: Known,
    limits: HashSet<(&'f Constant, bool)>,
}

impl<'f> Closure<'f> {
    /// A scope and those around it.
    fn enter(&mut self, facts: &'f Facts, scope: usize) {
        let mut at = Some(scope);
        while let Some(scope) = at.filter(|scope| self.entered.insert(*scope)) {
            for fact in self.waiting.remove(&scope).unwrap_or_default() {
                self.take(fact);
            }
            at = facts.parents[scope];
        }
    }

    /// A fact about a reached column.
    fn meet(&mut self, scope: usize, fact: &'f Fact) {
        if self.entered.contains(&scope) {
            self.take(fact);
        } else {
            self.waiting.entry(scope).or_default().push(fact);
        }
    }

    fn take(&mut self, fact: &'f Fact) {
        match fact {
            Fact::Equal(left, right) => {
                for column in [left, right] {
                    if self.reached.insert(*column) {
                        self.found.push(*column);
                    }
                }
            }
            Fact::OneOf(constants) => {
                self.known.values.get_or_insert_with(|| constants.clone());
            }
            Fact::AtLeast(value) => {
                if self.limits.insert((value, true)) {
                    self.known.lower.push(value.clone());
                }
            }
            Fact::AtMost(value) => {
                if self.limits.insert((value, false)) {
                    self.known.upper.push(value.clone());
                }
            }
        }
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
