//! Names of built-in functions, operators and types that mean something else in a session, as its
//! search path has another schema before `pg_catalog`.
//!
//! What is proved of a statement rests on what `=` and the like mean. Where they are somebody's own,
//! nothing is.

use pg_query::{NodeEnum, protobuf};

use crate::{
    builtins::{self, Kind},
    catalog::{ObjectKind, Placement},
    plan::PlanError,
    route::Statement,
    scope,
    tree::{self, Child, strings},
};

/// Refuses a statement that may run on several shards, or be answered by the proxy, where one of its
/// names is not the built-in one's.
pub(crate) fn refuse(statement: &Statement<'_>) -> Result<(), PlanError> {
    let (catalog, path) = (statement.catalog, statement.context.search_path);
    if !catalog.has_placed_relations || catalog.hiding.is_empty(path) {
        return Ok(());
    }
    let mut seen = Seen::default();
    tree::walk(statement.node, &mut |child| seen.visit(statement, child));
    let operator = catalog.hiding.operator(path).filter(|_| seen.placed);
    if let Some((schema, name)) = operator {
        return Err(hidden("operator", schema, name));
    }
    if let Some((schema, name)) = &seen.function {
        return Err(hidden("function", schema, name));
    }
    match seen.cast.filter(|_| seen.placed) {
        Some((schema, name)) => Err(hidden("type", &schema, &name)),
        None => Ok(()),
    }
}

/// What a statement names.
#[derive(Default)]
struct Seen {
    /// A distributed or reference table, or a view on one.
    placed: bool,
    /// Schema and name of a function in the place of a built-in one that is not the same everywhere,
    /// so that the proxy does something about it. Any other is computed where the rows are.
    function: Option<(String, String)>,
    /// The same of a type that something is cast to.
    cast: Option<(String, String)>,
}

impl Seen {
    fn visit(&mut self, statement: &Statement<'_>, child: Child<'_>) {
        match child {
            Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) => {
                self.placed |= is_placed(statement, range);
            }
            Child::Node(NodeEnum::FuncCall(call)) => {
                if let [name] = strings(&call.funcname).as_slice()
                    && builtins::kinds(name).any(|kind| kind != Kind::Same)
                    && let Some(found) = find(statement, ObjectKind::Function, name)
                {
                    self.function.get_or_insert(found);
                }
            }
            Child::Node(NodeEnum::TypeCast(cast)) => {
                let names = cast.type_name.as_ref().map(|name| strings(&name.names));
                if let Some([name]) = names.as_deref()
                    && let Some(found) = find(statement, ObjectKind::Type, name)
                {
                    self.cast.get_or_insert(found);
                }
            }
            Child::Node(node) => {
                if let Some(range) = crate::write::target_of(node) {
                    self.placed |= is_placed(statement, range);
                }
            }
            Child::Select(_) | Child::Strange => {}
        }
    }
}

/// The schema in which a name is found before the built-in object, and the name.
fn find(statement: &Statement<'_>, kind: ObjectKind, name: &str) -> Option<(String, String)> {
    let hiding = &statement.catalog.hiding;
    let schema = hiding.before(statement.context.search_path, kind, name)?;
    Some((schema.to_owned(), name.to_owned()))
}

fn is_placed(statement: &Statement<'_>, range: &protobuf::RangeVar) -> bool {
    scope::find_known(statement.catalog, statement.context, range).is_some_and(|relation| {
        relation.placement != Placement::Local || scope::is_view_on_placed(relation)
    })
}

fn hidden(kind: &str, schema: &str, name: &str) -> PlanError {
    PlanError::unsupported(format!(
        "{kind} \"{name}\" of schema \"{schema}\" stands in for the built-in one, which is not supported over several shards"
    ))
    .detail("The search path has that schema before pg_catalog.")
    .hint(format!(
        "Put pg_catalog first in search_path, and write {schema}.{name} with its schema where it is meant."
    ))
}
