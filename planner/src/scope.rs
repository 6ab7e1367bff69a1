//! Which relation a name in FROM means, and which column of it a name in an expression means.
//!
//! The rules are those of `src/backend/parser/parse_relation.c`. A name whose meaning is not
//! certain has none here: nothing is then concluded from it.

use std::rc::Rc;

use pg_query::{NodeEnum, protobuf};

use crate::{
    builtins,
    catalog::{Catalog, Placement, Relation, RelationKind, is_temporary_schema},
    facts::ColumnId,
    plan::ProxyView,
    statement::Context,
    tree,
};

/// What a relation's name means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'t> {
    /// A relation of the catalog.
    Known(&'t Relation),
    /// One that is named where nothing is read: in a CTE that nobody uses. It has to be there, but
    /// its rows do not matter, and nobody asks for rights on it.
    Unread(&'t Relation),
    /// One whose rows the proxy has.
    Proxy(ProxyView),
    /// A system catalog, a temporary table, or nothing at all: the home shard knows.
    Home,
}

impl<'t> Found<'t> {
    /// The relation, if it is distributed or a reference table.
    pub(crate) fn placed(self) -> Option<&'t Relation> {
        match self {
            Found::Known(relation) if relation.placement != Placement::Local => Some(relation),
            _ => None,
        }
    }

    /// A temporary relation of the session.
    pub(crate) fn is_temporary(self) -> bool {
        match self {
            Found::Known(relation) | Found::Unread(relation) => {
                is_temporary_schema(&relation.name.schema) && relation.placement == Placement::Local
            }
            Found::Proxy(_) | Found::Home => false,
        }
    }

    /// The relation, if each of its rows is on one shard: it is distributed, by a key or with its
    /// schema.
    pub(crate) fn distributed(self) -> Option<&'t Relation> {
        match self {
            Found::Known(relation)
                if matches!(
                    relation.placement,
                    Placement::Distributed { .. } | Placement::Schema { .. }
                ) =>
            {
                Some(relation)
            }
            _ => None,
        }
    }
}

/// Where relations are that are moved to every shard for one statement.
pub(crate) const MOVED_SCHEMA: &str = "pg_temp";

/// Searched before the schemas of a search path that does not name it.
const CATALOG_SCHEMA: &str = "pg_catalog";

/// What a relation's name means in a client's text. The caller has made sure that it is not a CTE's.
pub(crate) fn find_in<'t>(
    catalog: &'t Catalog,
    context: &Context<'t>,
    range: &protobuf::RangeVar,
) -> Found<'t> {
    let (path, schema) = (context.search_path, range.schemaname.as_str());
    let moved = || {
        context
            .moved
            .iter()
            .find(|one| one.name.name == range.relname)
    };
    let temporary = || {
        context
            .temporary
            .resolve(catalog, path, schema, &range.relname)
    };
    match moved()
        .filter(|_| schema == MOVED_SCHEMA)
        .or_else(temporary)
    {
        Some(relation) => Found::Known(relation),
        None => find(catalog, context.moved, path, range),
    }
}

/// The same where no temporary relation is meant.
pub(crate) fn find<'t>(
    catalog: &'t Catalog,
    moved: &'t [Relation],
    search_path: &[String],
    range: &protobuf::RangeVar,
) -> Found<'t> {
    let name = range.relname.as_str();
    if range.schemaname == MOVED_SCHEMA {
        let moved = moved.iter().find(|relation| relation.name.name == name);
        return moved.map_or(Found::Home, Found::Known);
    }
    if !range.schemaname.is_empty() {
        let schema = range.schemaname.as_str();
        if let Some(view) = proxy_view(schema, name) {
            return Found::Proxy(view);
        }
        return match catalog.resolve(&[], Some(schema), name) {
            Some(relation) => Found::Known(relation),
            None => Found::Home,
        };
    }
    let named = search_path.iter().any(|schema| schema == CATALOG_SCHEMA);
    let implied = proxy_view(CATALOG_SCHEMA, name).filter(|_| !named);
    if let Some(view) = implied {
        return Found::Proxy(view);
    }
    for schema in search_path {
        if let Some(view) = proxy_view(schema, name) {
            return Found::Proxy(view);
        }
        if let Some(relation) = catalog.resolve(&[], Some(schema), name) {
            return Found::Known(relation);
        }
    }
    Found::Home
}

/// The relation of the catalog that a name means.
pub(crate) fn find_known<'t>(
    catalog: &'t Catalog,
    context: &Context<'t>,
    range: &protobuf::RangeVar,
) -> Option<&'t Relation> {
    match find_in(catalog, context, range) {
        Found::Known(relation) | Found::Unread(relation) => Some(relation),
        Found::Proxy(_) | Found::Home => None,
    }
}

fn proxy_view(schema: &str, name: &str) -> Option<ProxyView> {
    [
        ProxyView::Shards,
        ProxyView::Pools,
        ProxyView::Sessions,
        ProxyView::Transactions,
        ProxyView::PreparedStatements,
    ]
    .into_iter()
    .find(|view| view.name() == name && view.schema() == schema)
}

/// True for relations that are judged by what they read, not by where they are.
pub(crate) fn is_view_on_placed(relation: &Relation) -> bool {
    relation.kind == RelationKind::View && relation.reads_placed
}

/// A column that an item of FROM gives.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output<'t> {
    /// Its name.
    pub(crate) name: String,
    /// The stored column that it is, unchanged and for every row, if it is one.
    pub(crate) column: Option<ColumnId>,
    /// The expression that it is for every row, if that is a constant or a parameter.
    pub(crate) constant: Option<&'t NodeEnum>,
}

/// Something that stands in FROM under one name.
#[derive(Debug, Clone)]
pub(crate) struct Item<'t> {
    /// The name that qualifies its columns; empty when it has none.
    pub(crate) name: String,
    /// For a relation without an alias: the schema that may qualify the name.
    pub(crate) schema: Option<String>,
    /// Its columns in order; `None` when they are not known.
    pub(crate) columns: Option<Vec<Output<'t>>>,
    /// The relation's occurrence, if it is one.
    pub(crate) occurrence: Option<usize>,
    /// The view's use, if it is one.
    pub(crate) view_use: Option<usize>,
    /// The text that its constants are in.
    pub(crate) text: usize,
    /// The SELECT that has it in FROM.
    pub(crate) block: Option<usize>,
    /// Found by qualified names only (the alias of JOIN ... USING).
    pub(crate) qualified_only: bool,
}

/// Columns that JOIN ... USING made one.
#[derive(Debug, Clone)]
pub(crate) struct Merged {
    /// Their name.
    pub(crate) name: String,
    /// The items on both sides.
    pub(crate) items: Vec<usize>,
    /// The column that has the merged value.
    pub(crate) column: Option<ColumnId>,
    /// The value has that column's type, as both columns do.
    pub(crate) keeps_type: bool,
}

/// What a part of FROM adds to the names that expressions see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visible {
    /// Indexes into the list of all items.
    pub(crate) items: Vec<usize>,
    /// Inner joins first.
    pub(crate) merged: Vec<Merged>,
}

impl Visible {
    /// Both parts.
    pub(crate) fn and(mut self, other: Visible) -> Visible {
        self.items.extend(other.items);
        self.merged.extend(other.merged);
        self
    }
}

/// The names that an expression sees: those of its own query level, then those of outer ones.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Of this level.
    pub(crate) visible: Visible,
    /// The level around it.
    pub(crate) outer: Option<Rc<Names>>,
}

/// What a column reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A stored column.
    Column(ColumnId),
    /// The n-th output of an item of FROM that is a constant.
    Constant(usize, usize),
    /// An item of FROM as a whole: `u`, `u.*`.
    Item(usize),
    /// Every item of this level: `*`.
    Star,
    /// Not known.
    Unknown,
}

/// What a column reference means where `names` are seen.
pub(crate) fn meaning(items: &[Item<'_>], names: &Names, column: &protobuf::ColumnRef) -> Meaning {
    let fields = tree::strings(&column.fields);
    let star = matches!(
        column.fields.last().and_then(|node| node.node.as_ref()),
        Some(NodeEnum::AStar(_))
    );
    match (fields.as_slice(), star) {
        ([], true) => Meaning::Star,
        ([name], false) => unqualified(items, names, name),
        ([table], true) => {
            named_item(items, names, None, table).map_or(Meaning::Unknown, Meaning::Item)
        }
        ([table, name], false) => qualified(items, names, None, table, name),
        ([schema, table], true) => {
            named_item(items, names, Some(schema), table).map_or(Meaning::Unknown, Meaning::Item)
        }
        ([schema, table, name], false) => qualified(items, names, Some(schema), table, name),
        _ => Meaning::Unknown,
    }
}

fn qualified(
    items: &[Item<'_>],
    names: &Names,
    schema: Option<&str>,
    table: &str,
    name: &str,
) -> Meaning {
    let item = named_item(items, names, schema, table);
    let meant = item.and_then(|item| named_output(items, item, name));
    meant.map_or(Meaning::Unknown, |meant| meaning_of_output(items, meant))
}

/// An output of an item of FROM: which item, and which of its outputs.
type Place = (usize, usize);

/// The one output of an item that has a name.
fn named_output(items: &[Item<'_>], item: usize, name: &str) -> Option<Place> {
    let outputs = items[item].columns.iter().flatten().enumerate();
    let mut hits = outputs.filter(|(_, output)| output.name == name);
    match (hits.next(), hits.next()) {
        (Some((at, _)), None) => Some((item, at)),
        _ => None,
    }
}

fn meaning_of_output(items: &[Item<'_>], (item, at): Place) -> Meaning {
    let output = items[item].columns.as_ref().and_then(|all| all.get(at));
    output.map_or(Meaning::Unknown, |output| output_meaning(item, at, output))
}

/// The output that a node is, whether it is a stored column or not. Not one that USING made.
pub(crate) fn output_of(items: &[Item<'_>], names: &Names, node: &NodeEnum) -> Option<Place> {
    let column = match node {
        NodeEnum::ColumnRef(column) => column,
        NodeEnum::AIndirection(one) if one.indirection.len() == 1 => {
            return part_place(items, names, one);
        }
        _ => return None,
    };
    let fields = tree::strings(&column.fields);
    if fields.len() < column.fields.len() {
        return None;
    }
    let (schema, table, name) = match fields.as_slice() {
        [name] => return lone_output(items, &names.visible, name),
        [table, name] => (None, table, name),
        [schema, table, name] => (Some(*schema), table, name),
        _ => return None,
    };
    named_output(items, named_item(items, names, schema, table)?, name)
}

/// The output of one level that an unqualified name is.
fn lone_output(items: &[Item<'_>], visible: &Visible, name: &str) -> Option<Place> {
    if visible.merged.iter().any(|merged| merged.name == name) {
        return None;
    }
    let mut found = None;
    for item in visible
        .items
        .iter()
        .filter(|item| !items[**item].qualified_only)
    {
        let columns = items[*item].columns.as_ref()?;
        if columns.iter().any(|output| output.name == name) {
            if found.is_some() {
                return None;
            }
            found = Some(named_output(items, *item, name)?);
        }
    }
    found
}

/// The item whose row has a part taken from it: that of `(t).x`, `(t.*).x`, `(t).*`.
pub(crate) fn item_of_part(
    items: &[Item<'_>],
    names: &Names,
    part: &protobuf::AIndirection,
) -> Option<usize> {
    match tree::inner(&part.arg)? {
        NodeEnum::ColumnRef(row) => match meaning(items, names, row) {
            Meaning::Item(item) => Some(item),
            _ => None,
        },
        _ => None,
    }
}

/// `(t).*`
pub(crate) fn is_all(part: &protobuf::AIndirection) -> bool {
    let first = part.indirection.first().and_then(|node| node.node.as_ref());
    matches!(first, Some(NodeEnum::AStar(_)))
}

/// The column that `(t).x` begins with: of a row in FROM a part is the column itself, not a part of
/// a value (`ParseComplexProjection` in `src/backend/parser/parse_func.c`).
pub(crate) fn part(
    items: &[Item<'_>],
    names: &Names,
    part: &protobuf::AIndirection,
) -> Option<Meaning> {
    part_place(items, names, part).map(|place| meaning_of_output(items, place))
}

fn part_place(items: &[Item<'_>], names: &Names, part: &protobuf::AIndirection) -> Option<Place> {
    let item = item_of_part(items, names, part)?;
    match part.indirection.first()?.node.as_ref()? {
        NodeEnum::String(name) => named_output(items, item, &name.sval),
        _ => None,
    }
}

/// What an expression means that may be a column: `x`, `t.x`, `(t).x`.
pub(crate) fn meaning_of(items: &[Item<'_>], names: &Names, node: &NodeEnum) -> Meaning {
    match node {
        NodeEnum::ColumnRef(column) => meaning(items, names, column),
        NodeEnum::AIndirection(one) if one.indirection.len() == 1 => {
            part(items, names, one).unwrap_or(Meaning::Unknown)
        }
        _ => Meaning::Unknown,
    }
}

/// Whether a reference is a call of a function of its last name.
pub(crate) enum Called {
    /// With a row of this item of FROM, which has no column of that name.
    With(usize),
    /// It is a column.
    Not,
    /// The columns of what it qualifies are not known.
    Unsure,
}

/// `t.f`: a column, or `f(t)` (the manual, "Composite Type Arguments").
pub(crate) fn called_with(
    items: &[Item<'_>],
    names: &Names,
    column: &protobuf::ColumnRef,
) -> Called {
    let fields = tree::strings(&column.fields);
    let (item, name) = match fields.as_slice() {
        [table, name] => (named_item(items, names, None, table), name),
        [schema, table, name] => (named_item(items, names, Some(schema), table), name),
        _ => (None, &""),
    };
    if builtins::is_system_column(name) {
        return Called::Not;
    }
    let columns = item.map(|item| (item, items[item].columns.as_ref()));
    match columns {
        Some((item, Some(columns))) => match columns.iter().any(|one| one.name == *name) {
            true => Called::Not,
            false => Called::With(item),
        },
        Some((_, None)) | None => Called::Unsure,
    }
}

fn output_meaning(item: usize, index: usize, output: &Output<'_>) -> Meaning {
    match (output.column, output.constant) {
        (Some(column), _) => Meaning::Column(column),
        (None, Some(_)) => Meaning::Constant(item, index),
        (None, None) => Meaning::Unknown,
    }
}

/// The item of a name, at the innermost level that has one.
fn named_item(
    items: &[Item<'_>],
    names: &Names,
    schema: Option<&str>,
    table: &str,
) -> Option<usize> {
    let matches = |index: &&usize| {
        let item = &items[**index];
        item.name == table && (schema.is_none() || item.schema.as_deref() == schema)
    };
    let mut hits = names.visible.items.iter().filter(matches);
    match (hits.next(), hits.next()) {
        (Some(item), None) => Some(*item),
        (Some(_), Some(_)) => None,
        (None, _) => named_item(items, names.outer.as_ref()?, schema, table),
    }
}

fn unqualified(items: &[Item<'_>], names: &Names, name: &str) -> Meaning {
    match lookup(items, &names.visible, name) {
        Lookup::One(meaning) => meaning,
        Lookup::Unsure => Meaning::Unknown,
        Lookup::None => {
            // A column of any level comes before a whole row; the row is then of this level.
            let row = names
                .visible
                .items
                .iter()
                .copied()
                .find(|item| items[*item].name == name);
            match (row, &names.outer) {
                (None, None) => Meaning::Unknown,
                (None, Some(outer)) => unqualified(items, outer, name),
                (Some(item), outer) => match outer.as_ref().map(|o| unqualified(items, o, name)) {
                    None | Some(Meaning::Item(_)) => Meaning::Item(item),
                    Some(Meaning::Unknown) if !has_doubt(items, outer.as_deref(), name) => {
                        Meaning::Item(item)
                    }
                    Some(_) => Meaning::Unknown,
                },
            }
        }
    }
}

/// Who gives what a column reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This item of FROM, of whichever level.
    Item(usize),
    /// The level itself: `*`.
    Level,
    /// Not known.
    Unknown,
}

/// The item of FROM that a column reference belongs to.
pub(crate) fn owner(items: &[Item<'_>], names: &Names, column: &protobuf::ColumnRef) -> Owner {
    let fields = tree::strings(&column.fields);
    let star = fields.len() < column.fields.len();
    let item = match (fields.as_slice(), star) {
        ([], _) => return Owner::Level,
        ([name], false) => return unqualified_owner(items, names, name),
        ([table], true) | ([table, _], false) => named_item(items, names, None, table),
        ([schema, table], true) | ([schema, table, _], false) => {
            named_item(items, names, Some(schema), table)
        }
        _ => None,
    };
    item.map_or(Owner::Unknown, Owner::Item)
}

fn unqualified_owner(items: &[Item<'_>], names: &Names, name: &str) -> Owner {
    let visible = &names.visible;
    let mut unsure = false;
    for index in visible
        .items
        .iter()
        .filter(|index| !items[**index].qualified_only)
    {
        match &items[*index].columns {
            Some(columns) if columns.iter().any(|output| output.name == name) => {
                return Owner::Item(*index);
            }
            Some(_) => unsure |= items[*index].name == name,
            None => unsure = true,
        }
    }
    if unsure {
        return Owner::Unknown;
    }
    match &names.outer {
        Some(outer) => unqualified_owner(items, outer, name),
        None => Owner::Unknown,
    }
}

/// Some level may have a column of the name.
fn has_doubt(items: &[Item<'_>], names: Option<&Names>, name: &str) -> bool {
    let Some(names) = names else { return false };
    !matches!(lookup(items, &names.visible, name), Lookup::None)
        || has_doubt(items, names.outer.as_deref(), name)
}

/// What one level says about an unqualified name.
pub(crate) enum Lookup {
    /// One column.
    One(Meaning),
    /// None for certain.
    None,
    /// It has more than one, or items whose columns are not known.
    Unsure,
}

/// Looks an unqualified name up in one level.
pub(crate) fn lookup(items: &[Item<'_>], visible: &Visible, name: &str) -> Lookup {
    let mut hits: Vec<(usize, Meaning)> = Vec::new();
    for index in &visible.items {
        let item = &items[*index];
        if item.qualified_only {
            continue;
        }
        let Some(columns) = &item.columns else {
            return Lookup::Unsure;
        };
        let named = columns
            .iter()
            .enumerate()
            .filter(|(_, output)| output.name == name);
        hits.extend(named.map(|(at, output)| (*index, output_meaning(*index, at, output))));
    }
    // The outermost join of the name swallows those inside it.
    for merged in visible
        .merged
        .iter()
        .rev()
        .filter(|merged| merged.name == name)
    {
        let inside = |(item, _): &(usize, Meaning)| merged.items.contains(item);
        if hits.iter().any(inside) {
            hits.retain(|hit| !inside(hit));
            hits.push((
                usize::MAX,
                merged.column.map_or(Meaning::Unknown, Meaning::Column),
            ));
        }
    }
    match hits.as_slice() {
        [] => Lookup::None,
        [(_, meaning)] => Lookup::One(*meaning),
        _ => Lookup::Unsure,
    }
}
