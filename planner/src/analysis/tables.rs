//! Functions in FROM, and the columns that they are certain to give.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, JsonTableColumnType},
};

use super::{Analysis, named};
use crate::{
    catalog::Catalog,
    scope::{self, Found, Meaning, Names, Output},
    tree::{inner, nodes, strings},
};

/// Built-in functions of one column, which has the alias's name, else the function's.
const NAMED_BY_ALIAS: &[&str] = &[
    "generate_series",
    "generate_subscripts",
    "json_object_keys",
    "jsonb_object_keys",
    "jsonb_path_query",
    "jsonb_path_query_tz",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
];

/// Built-in functions whose columns have the names of their OUT parameters.
const NAMED_BY_PARAMETERS: &[(&str, &[&str])] = &[
    ("json_each", &["key", "value"]),
    ("jsonb_each", &["key", "value"]),
    ("json_each_text", &["key", "value"]),
    ("jsonb_each_text", &["key", "value"]),
    ("json_array_elements", &["value"]),
    ("jsonb_array_elements", &["value"]),
    ("json_array_elements_text", &["value"]),
    ("jsonb_array_elements_text", &["value"]),
];

/// Types from here on are not built in.
const FIRST_USER_OID: u32 = 16384;

/// A built-in function that gives a set of rows, among those that are known here.
pub(crate) fn is_set_returning(name: &str) -> bool {
    name == "unnest"
        || NAMED_BY_ALIAS.contains(&name)
        || NAMED_BY_PARAMETERS.iter().any(|(one, _)| *one == name)
}

impl<'t> Analysis<'t> {
    /// The name and columns of a function in FROM (`chooseScalarFunctionAlias` in
    /// `src/backend/parser/parse_relation.c`), where they are certain.
    pub(super) fn function_columns(
        &self,
        node: &NodeEnum,
        names: &Names,
    ) -> (String, Option<Vec<Output<'t>>>) {
        let range = match node {
            NodeEnum::RangeFunction(range) => range,
            NodeEnum::RangeTableFunc(table) => return (String::new(), xml_columns(table)),
            NodeEnum::JsonTable(table) => return (String::new(), json_columns(&table.columns)),
            _ => return (String::new(), None),
        };
        let calls: Vec<(&protobuf::FuncCall, &[Node])> =
            nodes(&range.functions).filter_map(called).collect();
        let Some((first, _)) = calls
            .first()
            .filter(|_| calls.len() == range.functions.len())
        else {
            return (String::new(), None);
        };
        let name = strings(&first.funcname).last().copied().unwrap_or_default();
        // The alias names the column of a function that is alone.
        let alias = range.alias.as_ref().filter(|_| calls.len() == 1);
        let columns: Option<Vec<Vec<Output<'t>>>> = calls
            .iter()
            .map(|(call, definitions)| {
                let own = strings(&call.funcname).last().copied().unwrap_or_default();
                let alias = alias.map_or(own, |alias| alias.aliasname.as_str());
                match (definitions, range.coldeflist.as_slice()) {
                    ([], []) => self.columns_of_call(call, own, alias, names),
                    ([], outer) => defined_columns(outer),
                    _ => None,
                }
            })
            .collect();
        let columns = columns.map(|columns| {
            let mut columns: Vec<Output<'t>> = columns.into_iter().flatten().collect();
            columns.extend(range.ordinality.then(|| named("ordinality")));
            columns
        });
        (name.to_owned(), columns)
    }

    fn columns_of_call(
        &self,
        call: &protobuf::FuncCall,
        name: &str,
        alias: &str,
        names: &Names,
    ) -> Option<Vec<Output<'t>>> {
        if !is_built_in(self.catalog, call, name) {
            return None;
        }
        if let Some((_, columns)) = NAMED_BY_PARAMETERS.iter().find(|(one, _)| *one == name) {
            return Some(columns.iter().map(|name| named(name)).collect());
        }
        // One column for each array, or for each column of its elements.
        let plain = |node| is_plain_array(node) || self.is_array_of_values(node, names);
        let unnested = name == "unnest" && call.args.len() == 1 && nodes(&call.args).all(plain);
        (unnested || NAMED_BY_ALIAS.contains(&name)).then(|| vec![named(alias)])
    }

    /// A stored column with an array whose elements are no rows.
    fn is_array_of_values(&self, node: &NodeEnum, names: &Names) -> bool {
        let NodeEnum::ColumnRef(reference) = node else {
            return false;
        };
        let Meaning::Column(column) = scope::meaning(&self.items, names, reference) else {
            return false;
        };
        let Found::Known(relation) = self.occurrences[column.occurrence].found else {
            return false;
        };
        // Built-in types of rows are those of system catalogs, in schemas of theirs.
        let column = &relation.columns[column.column];
        column.type_oid < FIRST_USER_OID
            && column.sql_type.ends_with("[]")
            && !column.sql_type.starts_with("pg_")
            && !column.sql_type.contains('.')
    }
}

/// A function of FROM, with the columns that it is given.
fn called(node: &NodeEnum) -> Option<(&protobuf::FuncCall, &[Node])> {
    let NodeEnum::List(pair) = node else {
        return None;
    };
    let mut parts = pair.items.iter().map(|item| item.node.as_ref());
    let Some(Some(NodeEnum::FuncCall(call))) = parts.next() else {
        return None;
    };
    let definitions = match parts.next() {
        Some(Some(NodeEnum::List(list))) => list.items.as_slice(),
        _ => &[],
    };
    Some((call, definitions))
}

fn is_built_in(catalog: &Catalog, call: &protobuf::FuncCall, name: &str) -> bool {
    match strings(&call.funcname).as_slice() {
        ["pg_catalog", _] => true,
        [_] => !catalog.functions.contains_key(name),
        _ => false,
    }
}

/// `AS t(a int, b text)`
fn defined_columns<'t>(definitions: &[Node]) -> Option<Vec<Output<'t>>> {
    nodes(definitions)
        .map(|node| match node {
            NodeEnum::ColumnDef(column) => Some(named(&column.colname)),
            _ => None,
        })
        .collect()
}

fn xml_columns<'t>(table: &protobuf::RangeTableFunc) -> Option<Vec<Output<'t>>> {
    nodes(&table.columns)
        .map(|node| match node {
            NodeEnum::RangeTableFuncCol(column) => Some(named(&column.colname)),
            _ => None,
        })
        .collect()
}

/// Those of nested paths are columns like the others.
fn json_columns<'t>(list: &[Node]) -> Option<Vec<Output<'t>>> {
    let mut columns = Vec::new();
    for node in nodes(list) {
        let NodeEnum::JsonTableColumn(column) = node else {
            return None;
        };
        match column.coltype() {
            JsonTableColumnType::JtcNested => columns.extend(json_columns(&column.columns)?),
            _ => columns.push(named(&column.name)),
        }
    }
    Some(columns)
}

/// `ARRAY['a'::text, 'b']`: its elements are no rows.
fn is_plain_array(node: &NodeEnum) -> bool {
    let plain = |node: &NodeEnum| match node {
        NodeEnum::AConst(_) => true,
        NodeEnum::TypeCast(cast) => {
            let constant = matches!(inner(&cast.arg), Some(NodeEnum::AConst(_)));
            constant
                && cast
                    .type_name
                    .as_ref()
                    .is_some_and(crate::filter::is_plain_type)
        }
        _ => false,
    };
    matches!(node, NodeEnum::AArrayExpr(array) if nodes(&array.elements).all(plain))
}
