//! Sequences that new rows of distributed and reference tables take values from, and the calls in
//! a statement whose values the proxy knows.
//!
//! Such values are drawn in blocks, so a server session that is asked for `currval` has not seen
//! them. The calls are replaced by the values before the statement is planned.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use pg_query::{
    NodeEnum,
    protobuf::{self, SetOperation},
};

use crate::{
    catalog::{Catalog, Placement, Relation, RelationKind, Temporary},
    insert,
    normalise::{TokenKind, tokens},
    plan::{
        Moved, Plan, PlanError, Planned, SequenceCall, SequenceFunction, SequenceUse,
        SessionEffects,
    },
    route::Statement,
    splice::Source,
    sql::literal,
    tree::{self, Child, constant_text, inner, nodes, strings},
    write,
};

/// A sequence as a statement names it.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'c> {
    /// What the catalog knows.
    pub relation: &'c Relation,
    /// New rows of a distributed or reference table take values from it.
    pub placed: bool,
    /// It belongs to an identity column: inserting needs no privilege on it.
    pub identity: bool,
}

/// The sequence that the text of a `regclass` means.
pub fn find<'c>(
    catalog: &'c Catalog,
    search_path: &[String],
    temporary: &Temporary,
    text: &str,
) -> Option<Sequence<'c>> {
    let (schema, name) = parse_name(text)?;
    let hidden = temporary.resolve(catalog, search_path, schema.as_deref().unwrap_or(""), &name);
    if hidden.is_some() {
        return None;
    }
    let relation = catalog.resolve(search_path, schema.as_deref(), &name)?;
    if relation.kind != RelationKind::Sequence {
        return None;
    }
    let users = catalog
        .relations
        .values()
        .flat_map(|table| table.columns.iter().map(move |column| (table, column)))
        .filter(|(_, column)| {
            let drawn = column.sequence.as_deref().and_then(parse_name);
            drawn.is_some_and(|(schema, name)| {
                name == relation.name.name && schema.as_ref() == Some(&relation.name.schema)
            })
        });
    let mut found = Sequence {
        relation,
        placed: false,
        identity: false,
    };
    for (table, column) in users {
        found.placed |= table.placement != Placement::Local;
        found.identity |= column.identity_always.is_some();
    }
    Some(found)
}

/// `schema.name` or `name` as `regclass` reads them.
pub(crate) fn parse_name(text: &str) -> Option<(Option<String>, String)> {
    let list = tokens(text);
    let part = |at: usize| {
        let token = list.get(at)?;
        let spelled = &text[token.start..token.end];
        match token.kind {
            TokenKind::Word => Some(spelled.to_lowercase()),
            TokenKind::QuotedIdentifier => {
                let inside = spelled.strip_prefix('"')?.strip_suffix('"')?;
                Some(inside.replace("\"\"", "\""))
            }
            _ => None,
        }
    };
    let dot = |at: usize| {
        list.get(at)
            .is_some_and(|token| token.kind == TokenKind::Punctuation('.'))
    };
    match list.len() {
        1 => Some((None, part(0)?)),
        3 if dot(1) => Some((Some(part(0)?), part(2)?)),
        _ => None,
    }
}

/// The calls of a statement that the proxy may have to answer itself; `None` if there are none.
pub(crate) fn calls(statement: &Statement<'_>) -> Option<(Vec<SequenceCall>, Moved)> {
    if !statement.catalog.has_placed_relations {
        return None;
    }
    let drawing = match statement.node {
        // What is drawn here would not know what `setval` beside it has set.
        NodeEnum::SelectStmt(_) if names_any(statement.node, &["setval"]) => HashSet::new(),
        NodeEnum::SelectStmt(select) => plain_targets(select),
        NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_) => HashSet::new(),
        _ => return None,
    };
    let mut finder = Finder {
        statement,
        drawing,
        calls: Vec::new(),
        labels: HashSet::new(),
        moved: Moved::default(),
        source: OnceCell::new(),
        known: HashMap::new(),
    };
    tree::walk(statement.node, &mut |child| finder.visit(child));
    if finder.calls.is_empty() {
        return None;
    }
    let Finder {
        mut calls,
        labels,
        moved,
        ..
    } = finder;
    for call in &mut calls {
        call.names_column = labels.contains(&call.span.0);
    }
    calls.sort_by_key(|call| call.span);
    Some((calls, moved))
}

/// True if the statement names a sequence.
pub(crate) fn is_called(node: &NodeEnum, effects: SessionEffects) -> bool {
    if !effects.moves_sequence && !effects.reads_sequence {
        return false;
    }
    names_any(node, &["nextval", "setval", "currval", "lastval"])
}

/// True if the statement calls one of these functions, in whatever schema.
fn names_any(node: &NodeEnum, functions: &[&str]) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child {
            let name = strings(&call.funcname).last().copied();
            found |= name.is_some_and(|name| functions.contains(&name));
        }
    });
    found
}

/// The plan of a statement with such calls.
pub(crate) fn plan(
    (calls, moved): (Vec<SequenceCall>, Moved),
    otherwise: Result<Planned, PlanError>,
) -> Plan {
    Plan::Sequences(SequenceUse {
        calls,
        moved,
        otherwise: Box::new(otherwise),
    })
}

/// Where calls stand that are made exactly once: targets of a SELECT that reads nothing.
pub(crate) fn plain_targets(select: &protobuf::SelectStmt) -> HashSet<i32> {
    let plain = select.from_clause.is_empty()
        && select.where_clause.is_none()
        && select.with_clause.is_none()
        && select.group_clause.is_empty()
        && select.having_clause.is_none()
        && select.sort_clause.is_empty()
        && select.limit_count.is_none()
        && select.limit_offset.is_none()
        && select.distinct_clause.is_empty()
        && select.into_clause.is_none()
        && select.op() == SetOperation::SetopNone;
    if !plain {
        return HashSet::new();
    }
    nodes(&select.target_list)
        .filter_map(|node| match node {
            NodeEnum::ResTarget(target) => match inner(&target.val)? {
                NodeEnum::FuncCall(call) => Some(call.location),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

struct Finder<'f, 'a> {
    statement: &'f Statement<'a>,
    /// Calls here may draw a value from the proxy.
    drawing: HashSet<i32>,
    calls: Vec<SequenceCall>,
    /// Calls here give their column its name.
    labels: HashSet<usize>,
    moved: Moved,
    /// The text's tokens, once a call is found.
    source: OnceCell<Source<'a>>,
    /// Sequences by the text of their `regclass`.
    known: HashMap<String, Option<Sequence<'a>>>,
}

impl<'a> Finder<'_, 'a> {
    fn visit(&mut self, child: Child<'_>) {
        match child {
            Child::Node(NodeEnum::ResTarget(target)) if target.name.is_empty() => {
                if let Some(NodeEnum::FuncCall(call)) = inner(&target.val) {
                    self.labels.extend(usize::try_from(call.location));
                }
            }
            Child::Node(NodeEnum::FuncCall(call)) => self.call(call),
            Child::Node(NodeEnum::InsertStmt(insert)) => self.inserts(insert),
            Child::Node(NodeEnum::MergeStmt(_)) | Child::Strange => self.moved.unknown = true,
            _ => {}
        }
    }

    fn sequence(&mut self, text: &str) -> Option<Sequence<'a>> {
        if let Some(known) = self.known.get(text) {
            return *known;
        }
        let context = self.statement.context;
        let (path, temporary) = (context.search_path, context.temporary);
        let found = find(self.statement.catalog, path, temporary, text);
        self.known.insert(text.to_owned(), found);
        found
    }

    fn call(&mut self, call: &protobuf::FuncCall) {
        let names = strings(&call.funcname);
        let function = match names.as_slice() {
            ["pg_catalog", name] | [name] => *name,
            _ => return,
        };
        let function = match function {
            "nextval" => SequenceFunction::Next,
            "currval" => SequenceFunction::Current,
            "lastval" if call.args.is_empty() => SequenceFunction::Last,
            "setval" => {
                self.moved.unknown = true;
                return;
            }
            _ => return,
        };
        let found = insert::sequence_argument(call).or_else(|| self.of_column(call));
        let sequence = found.as_deref().and_then(|text| self.sequence(text));
        let oid = sequence.map(|one| one.relation.oid);
        let placed = sequence.is_some_and(|one| one.placed);
        if function == SequenceFunction::Next && !(placed && self.drawing.contains(&call.location))
        {
            match oid {
                Some(oid) => self.moved.sequences.push(oid),
                None => self.moved.unknown = true,
            }
            return;
        }
        if function == SequenceFunction::Current && !placed {
            return;
        }
        let source = self.source.get_or_init(|| self.statement.source());
        let location = usize::try_from(call.location).ok();
        let Some(span) = location.and_then(|location| source.call(location)) else {
            return;
        };
        self.calls.push(SequenceCall {
            function,
            span,
            sequence: oid,
            text: found.unwrap_or_default(),
            names_column: false,
        });
    }

    /// `currval(pg_get_serial_sequence('table', 'column'))`
    fn of_column(&self, call: &protobuf::FuncCall) -> Option<String> {
        let mut argument = call.args.first()?.node.as_ref()?;
        if let NodeEnum::TypeCast(cast) = argument {
            argument = inner(&cast.arg)?;
        }
        let NodeEnum::FuncCall(serial) = argument else {
            return None;
        };
        if strings(&serial.funcname).last() != Some(&"pg_get_serial_sequence") {
            return None;
        }
        let mut names = nodes(&serial.args).map(|node| match node {
            NodeEnum::AConst(_) => tree::constant_text(node),
            _ => None,
        });
        let (table, column) = (names.next()??, names.next()??);
        let (schema, name) = parse_name(&table)?;
        let context = self.statement.context;
        if schema.is_none() && context.temporary.names().any(|one| one == name) {
            return None;
        }
        let catalog = self.statement.catalog;
        let relation = catalog.resolve(context.search_path, schema.as_deref(), &name)?;
        relation.column(&column)?.sequence.clone()
    }

    /// The sequences that the rows of an INSERT take values from.
    fn inserts(&mut self, insert: &protobuf::InsertStmt) {
        let context = self.statement.context;
        let relation = insert.relation.as_ref().and_then(|range| {
            let schema = Some(range.schemaname.as_str()).filter(|name| !name.is_empty());
            let catalog = self.statement.catalog;
            catalog.resolve(context.search_path, schema, &range.relname)
        });
        let Some(relation) = relation else {
            self.moved.unknown = true;
            return;
        };
        self.moved.unknown |= relation.kind != RelationKind::Table;
        for column in &relation.columns {
            let sequence = column.sequence.as_deref();
            match sequence.and_then(|text| self.sequence(text)) {
                Some(sequence) => self.moved.sequences.push(sequence.relation.oid),
                None => {
                    self.moved.unknown |=
                        sequence.is_some() || write::default_text(column).contains("nextval");
                }
            }
        }
    }
}

/// The sequences that calls of `setval` in a text set, each as an expression of type `regclass`;
/// `None` if that is not known before it runs.
pub fn set_targets(text: &str) -> Option<Vec<String>> {
    if text.len() > SETTING_BYTES_MAX {
        return None;
    }
    crate::parse::with_room(|| set_targets_of(text))
}

/// Longer texts are not read a second time for what they have set.
const SETTING_BYTES_MAX: usize = 8 << 10;

fn set_targets_of(text: &str) -> Option<Vec<String>> {
    let parsed = crate::parse::parse(text).ok()?;
    let source = Source::new(text);
    let mut targets = Some(Vec::new());
    for one in &parsed {
        tree::walk(&one.node, &mut |child| {
            let Child::Node(NodeEnum::FuncCall(call)) = child else {
                return;
            };
            if strings(&call.funcname).last() != Some(&"setval") {
                return;
            }
            match (set_target(call, &source), &mut targets) {
                (Some(target), Some(list)) => list.push(target),
                _ => targets = None,
            }
        });
    }
    targets
}

fn set_target(call: &protobuf::FuncCall, source: &Source<'_>) -> Option<String> {
    if let Some(name) = insert::sequence_argument(call) {
        return Some(format!("{}::regclass", literal(&name)));
    }
    let mut argument = call.args.first()?.node.as_ref()?;
    if let NodeEnum::TypeCast(cast) = argument {
        argument = inner(&cast.arg)?;
    }
    if let Some(name) = constant_text(argument) {
        return Some(format!("{}::regclass", literal(&name)));
    }
    let NodeEnum::FuncCall(serial) = argument else {
        return None;
    };
    let constant = nodes(&serial.args).all(|node| matches!(node, NodeEnum::AConst(_)));
    if strings(&serial.funcname).last() != Some(&"pg_get_serial_sequence") || !constant {
        return None;
    }
    let (from, to) = source.call(usize::try_from(serial.location).ok()?)?;
    Some(format!("({})::regclass", source.text.get(from..to)?))
}

#[cfg(test)]
mod tests {
    use super::{parse_name, set_targets};

    #[test]
    fn names_that_regclass_would_not_read_are_unknown() {
        for text in [
            "", ".", "a.", ".b", "a b", "a.b.c", "1", "'a'", "\"a", "a.b c",
        ] {
            assert_eq!(parse_name(text), None, "{text}");
        }
        assert_eq!(parse_name("S"), Some((None, "s".into())));
        assert_eq!(
            parse_name("A.\"B \"\"c\""),
            Some((Some("a".into()), "B \"c".into()))
        );
    }

    #[test]
    fn targets_of_setval() {
        assert_eq!(set_targets("select setval(s, 1) from names"), None);
        assert_eq!(set_targets("select setval('a' || 'b', 1)"), None);
        assert_eq!(set_targets("select setval("), None);
        assert_eq!(set_targets("select 1"), Some(Vec::new()));
        assert_eq!(
            set_targets("select setval('S', 1), setval('t'::regclass, 2, false)"),
            Some(vec!["'S'::regclass".into(), "'t'::regclass".into()])
        );
        assert_eq!(
            set_targets("select setval('S'::text, 1), setval(cast('t' as varchar)::regclass, 2)"),
            Some(vec!["'S'::regclass".into(), "'t'::regclass".into()])
        );
        assert_eq!(
            set_targets("select setval(pg_get_serial_sequence('t', 'id'), max(id)) from t"),
            Some(vec!["(pg_get_serial_sequence('t', 'id'))::regclass".into()])
        );
    }
}
