//! One walk over a statement: every relation it touches, what must be equal, and what its
//! functions do. All decisions rest on this.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    ops::Range,
    rc::Rc,
};

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, SubLinkType},
};

use crate::{
    budget::Budget,
    catalog::{Catalog, KeyType, Placement, Relation},
    facts::{ColumnId, Constant, Facts, Known},
    functions::{self, Lookup, Traits},
    plan::PlanError,
    route,
    scope::{Found, Item, Names, Output, Visible},
    statement::Context,
    tree::{self, Child, inner, nodes, strings},
    views::Views,
};

mod expressions;
mod from;
mod joins;
mod references;
mod tables;
mod writes;

pub(crate) use expressions::{is_star, keeps_groups_unless_limited, listed};
pub(crate) use tables::is_set_returning;
pub(crate) use writes::{assigned_columns, listed_columns, plain_columns};

/// The text that a location is in: the client's.
pub(crate) const CLIENT_TEXT: usize = 0;

/// CTEs that are used many times are looked at each time, so nested ones could grow without end.
const OCCURRENCES_MAX: usize = 4000;

/// One place where a statement, or a view that it uses, names a relation. The same place counts
/// once for every time its view or CTE is used.
#[derive(Debug)]
pub(crate) struct Occurrence<'t> {
    /// The name as it stands.
    pub(crate) range: &'t protobuf::RangeVar,
    /// What it means.
    pub(crate) found: Found<'t>,
    /// [`CLIENT_TEXT`], or the view's.
    pub(crate) text: usize,
    /// The scope whose facts are true for its rows.
    pub(crate) scope: usize,
    /// The target of INSERT, UPDATE, DELETE or MERGE.
    pub(crate) written: bool,
    /// It gets new rows.
    pub(crate) inserted: bool,
    /// Under TABLESAMPLE.
    pub(crate) sampled: bool,
    /// All of its columns are used.
    pub(crate) whole: bool,
    /// Conditions on its own columns that every row must meet.
    pub(crate) filters: Vec<Filter<'t>>,
    /// The SELECT that names it.
    pub(crate) block: Option<usize>,
}

/// A condition that can be tested where a relation's rows are.
#[derive(Debug, Clone)]
pub(crate) struct Filter<'t> {
    /// As SQL over unqualified columns.
    pub(crate) sql: String,
    /// Itself; `None` where rows that pass must be tested again.
    pub(crate) node: Option<&'t NodeEnum>,
}

/// A view that is judged by its text, where it is named.
#[derive(Debug)]
pub(crate) struct ViewUse<'t> {
    /// The name as it stands.
    pub(crate) range: &'t protobuf::RangeVar,
    /// The text that names it.
    pub(crate) text: usize,
    /// Its own text.
    pub(crate) view: usize,
    /// What it is.
    pub(crate) relation: &'t Relation,
}

/// A reference to a column that has to be written differently when its table is renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The text it is in.
    pub(crate) text: usize,
    /// Where it starts.
    pub(crate) location: usize,
    /// How many names qualify the table's.
    pub(crate) qualifiers: usize,
    /// The occurrence of the relation that qualifies it.
    pub(crate) table_of: Option<usize>,
    /// Set where it names a whole row of a relation.
    pub(crate) whole_row: Option<WholeRow>,
    /// The function that is called with that row: `t.f`.
    pub(crate) argument_of: Option<String>,
    /// Whether it gives an output its name.
    pub(crate) naming: Naming,
}

/// What a reference is for an output of its SELECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// A part of it, or no part of one.
    Inside,
    /// The whole of one that has an alias.
    Labelled,
    /// The whole of one without an alias.
    Whole,
    /// A part of one without an alias, which has the reference's name: `t::text`.
    Part,
}

/// What a whole row is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WholeRow {
    /// An occurrence of a relation.
    Relation(usize),
    /// A use of a view.
    View(usize),
}

/// How a SELECT stands in the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is the statement.
    Statement,
    /// It is an arm of UNION, INTERSECT or EXCEPT.
    Arm,
    /// In FROM, also by the name of a CTE or view: its rows are joined with others.
    From,
    /// In an expression.
    Expression,
    /// Its rows are not looked through: a recursive CTE, or one that nobody uses.
    Opaque,
}

/// One SELECT of a statement. A CTE or view that is used twice is there twice.
#[derive(Debug)]
pub(crate) struct Block<'t> {
    /// It.
    pub(crate) select: &'t protobuf::SelectStmt,
    /// How it stands in its parent.
    pub(crate) role: Role,
    /// The one around it.
    pub(crate) parent: Option<usize>,
    /// The text that it is in.
    pub(crate) text: usize,
    /// The scope it stands in.
    pub(crate) outer_scope: usize,
    /// The scope whose facts are true for the rows of its FROM.
    pub(crate) scope: usize,
    /// What its expressions see.
    pub(crate) names: Rc<Names>,
    /// A name in it is, or may be, one that is given outside of it.
    pub(crate) correlated: bool,
    /// EXISTS, IN ...: how it is asked, if it is in an expression.
    pub(crate) link: Option<protobuf::SubLinkType>,
}

/// Whether anybody sees in which order a statement gives its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Its client does.
    Seen,
    /// Nobody does.
    Unseen,
}

/// Everything that is known about a statement.
#[derive(Debug)]
pub(crate) struct Analysis<'t> {
    pub(crate) catalog: &'t Catalog,
    context: &'t Context<'t>,
    views: &'t Views<'t>,
    /// Relations, in the order of the walk.
    pub(crate) occurrences: Vec<Occurrence<'t>>,
    /// Every SELECT, outer ones first.
    pub(crate) blocks: Vec<Block<'t>>,
    /// Views on placed tables.
    pub(crate) view_uses: Vec<ViewUse<'t>>,
    /// Equalities.
    pub(crate) facts: Facts,
    /// Functions.
    pub(crate) traits: Traits,
    /// Every name in a column reference or USING, and how often it is there.
    pub(crate) names: HashMap<String, usize>,
    /// See [`Reference`].
    pub(crate) references: Vec<Reference>,
    /// An aggregate may belong to a SELECT around the one it stands in.
    pub(crate) outer_aggregate: bool,
    /// An aggregate is not written as a call: `t.count`.
    pub(crate) hidden_aggregate: bool,
    /// An output that is a row or a column, and it is not certain which.
    pub(crate) doubtful_row: Option<String>,
    /// The reference that gives the output its name that is looked at.
    naming: Option<&'t protobuf::ColumnRef>,
    /// FOR UPDATE, FOR SHARE.
    pub(crate) locks: bool,
    /// INSERT, UPDATE, DELETE or MERGE inside WITH.
    pub(crate) writes_in_with: bool,
    /// Who sees the order of its rows.
    pub(crate) order: RowOrder,
    /// GROUP BY somewhere.
    pub(crate) groups: bool,
    /// `GROUP BY 1`, `DISTINCT ON (1)` somewhere: what is proved may depend on that number.
    pub(crate) positions: bool,
    /// A node that the walk does not know: nothing is proved.
    pub(crate) strange: bool,
    /// Too many occurrences.
    too_large: bool,
    pub(crate) items: Vec<Item<'t>>,
    text: usize,
    block: Option<usize>,
    /// Inside of a CTE that nobody uses.
    unread: bool,
    /// How the next SELECT is asked, if it is one in an expression.
    link: Option<protobuf::SubLinkType>,
}

/// A name that WITH gives, and those before it.
#[derive(Debug)]
struct Cte<'t> {
    name: &'t str,
    /// `None`: its rows are not looked through (recursive, or it writes).
    body: Option<CteBody<'t>>,
    /// The names of its columns, where it has no body and they are known.
    columns: Option<Vec<Output<'t>>>,
    uses: Rc<Uses>,
    /// What a SELECT without a body has named.
    inside: Inside,
    /// The SELECT that WITH belongs to.
    block: Option<usize>,
    previous: Env<'t>,
}

#[derive(Debug)]
struct CteBody<'t> {
    cte: &'t protobuf::CommonTableExpr,
    outer: Rc<Names>,
}

/// Who uses a CTE, by whichever of its names in WITH RECURSIVE.
#[derive(Debug, Default)]
struct Uses {
    /// Somebody: its body was looked at.
    any: Cell<bool>,
    /// Not only one that nobody uses: its rows are read.
    read: Cell<bool>,
}

/// What the text of a CTE has named.
#[derive(Debug, Default)]
struct Inside {
    occurrences: Range<usize>,
    names: HashMap<String, usize>,
}

type Env<'t> = Option<Rc<Cte<'t>>>;

/// The surroundings of a query inside the statement.
#[derive(Debug, Clone)]
struct Place<'t> {
    scope: usize,
    outer: Rc<Names>,
    env: Env<'t>,
    role: Role,
}

/// Looks at one statement.
pub(crate) fn analyse<'t>(
    catalog: &'t Catalog,
    context: &'t Context<'t>,
    views: &'t Views<'t>,
    node: &'t NodeEnum,
) -> Result<Analysis<'t>, PlanError> {
    let mut analysis = Analysis {
        catalog,
        context,
        views,
        occurrences: Vec::new(),
        blocks: Vec::new(),
        view_uses: Vec::new(),
        facts: Facts::default(),
        traits: Traits::default(),
        names: HashMap::new(),
        references: Vec::new(),
        outer_aggregate: false,
        hidden_aggregate: false,
        doubtful_row: None,
        naming: None,
        locks: false,
        writes_in_with: false,
        order: RowOrder::Seen,
        groups: false,
        positions: false,
        strange: false,
        too_large: false,
        items: Vec::new(),
        text: CLIENT_TEXT,
        block: None,
        unread: false,
        link: None,
    };
    let scope = analysis.facts.scope(None);
    let place = Place {
        scope,
        outer: Rc::new(Names::default()),
        env: None,
        role: Role::Statement,
    };
    analysis.query(node, &place);
    context.budget.check()?;
    if analysis.too_large {
        return Err(PlanError::new("54001", "statement too complex")
            .detail("It names relations too many times, counting those inside views and WITH."));
    }
    Ok(analysis)
}

impl<'t> Analysis<'t> {
    // ---- answers ----

    /// The values that the shard key of an occurrence can have, if they are known.
    pub(crate) fn key_values(&self, occurrence: usize) -> Option<Rc<[Constant]>> {
        if self.is_whole(occurrence) {
            return Some(Rc::default());
        }
        self.key_closure(occurrence)?.1.values
    }

    /// What the shard key of an occurrence is not below, and what it is not above.
    pub(crate) fn key_limits(&self, occurrence: usize) -> (Vec<Constant>, Vec<Constant>) {
        let known = self.key_closure(occurrence).map(|(_, known)| known);
        known.map_or_else(Default::default, |known| (known.lower, known.upper))
    }

    /// All rows of the occurrence's relation are on one shard, whatever they are.
    fn is_whole(&self, occurrence: usize) -> bool {
        let relation = self.occurrences[occurrence].found.distributed();
        relation.is_some_and(route::is_whole)
    }

    /// The values that a column of the rows of an occurrence can have.
    pub(crate) fn values_of(&self, column: ColumnId) -> Option<Rc<[Constant]>> {
        self.closure(column).1.values
    }

    /// Columns whose values are equal wherever a row of the column's occurrence matters.
    pub(crate) fn equal_columns(&self, column: ColumnId) -> HashSet<ColumnId> {
        self.closure(column).0
    }

    /// True when rows of one occurrence matter only beside rows of the other with the same key.
    pub(crate) fn linked(&self, occurrence: usize, other: usize) -> bool {
        if self.is_whole(occurrence) && self.is_whole(other) {
            let group = |index: usize| self.occurrences[index].found.distributed();
            return group(occurrence).and_then(|one| one.placement.group())
                == group(other).and_then(|one| one.placement.group());
        }
        let (Some((reached, _)), Some(key)) = (self.key_closure(occurrence), self.key_of(other))
        else {
            return false;
        };
        reached.contains(&key)
    }

    fn key_closure(&self, occurrence: usize) -> Option<(HashSet<ColumnId>, Known)> {
        Some(self.closure(self.key_of(occurrence)?))
    }

    /// Past the budget nothing is known.
    fn closure(&self, column: ColumnId) -> (HashSet<ColumnId>, Known) {
        if !self.budget().spend(1) {
            return Default::default();
        }
        let scope_of = |occurrence: usize| self.occurrences[occurrence].scope;
        let found = self.facts.closure(column, &scope_of);
        self.budget().spend(found.0.len());
        found
    }

    /// Where the functions of the text that is looked at are looked up.
    fn lookup(&self) -> Lookup<'t> {
        match self.text {
            CLIENT_TEXT => Lookup {
                catalog: self.catalog,
                path: self.context.search_path,
            },
            _ => Lookup::printed(self.catalog),
        }
    }

    pub(crate) fn search_path(&self) -> &'t [String] {
        self.context.search_path
    }

    pub(crate) fn budget(&self) -> &'t Budget {
        self.context.budget
    }

    pub(crate) fn key_of(&self, occurrence: usize) -> Option<ColumnId> {
        let relation = self.occurrences[occurrence].found.distributed()?;
        let Placement::Distributed { key, .. } = &relation.placement else {
            return None;
        };
        let column = relation
            .columns
            .iter()
            .position(|column| column.name == *key)?;
        Some(ColumnId { occurrence, column })
    }

    fn family(&self, column: ColumnId) -> Option<KeyType> {
        let Found::Known(relation) = self.occurrences[column.occurrence].found else {
            return None;
        };
        relation.columns[column.column].key_type().ok()
    }

    /// A column of this name is used.
    fn note_name(&mut self, name: &str) {
        if self.unread {
            return;
        }
        *self.names.entry(name.to_owned()).or_insert(0) += 1;
    }

    // ---- queries ----

    /// A statement, at the top or inside WITH. Returns its output columns, if known.
    fn query(&mut self, node: &'t NodeEnum, place: &Place<'t>) -> Option<Vec<Output<'t>>> {
        if !self.budget().spend(1) {
            return None;
        }
        match node {
            NodeEnum::SelectStmt(select) => self.select(select, place),
            NodeEnum::InsertStmt(insert) => {
                self.insert(insert, place);
                None
            }
            NodeEnum::UpdateStmt(update) => {
                self.update(update, place);
                None
            }
            NodeEnum::DeleteStmt(delete) => {
                self.delete(delete, place);
                None
            }
            NodeEnum::MergeStmt(merge) => {
                self.merge(merge, place);
                None
            }
            _ => {
                self.strange = true;
                None
            }
        }
    }

    fn select(
        &mut self,
        select: &'t protobuf::SelectStmt,
        place: &Place<'t>,
    ) -> Option<Vec<Output<'t>>> {
        let around = self.block;
        self.block = Some(self.blocks.len());
        self.blocks.push(Block {
            select,
            role: place.role,
            parent: around,
            text: self.text,
            outer_scope: place.scope,
            scope: place.scope,
            names: place.outer.clone(),
            correlated: false,
            link: self.link.take().filter(|_| place.role == Role::Expression),
        });
        let place = self.with(&select.with_clause, place);
        let outputs = self.select_body(select, &place);
        self.unused(&select.with_clause, &place);
        self.block = around;
        outputs
    }

    fn select_body(
        &mut self,
        select: &'t protobuf::SelectStmt,
        place: &Place<'t>,
    ) -> Option<Vec<Output<'t>>> {
        self.locks |= !select.locking_clause.is_empty();
        let unseen = self
            .block
            .is_some_and(|block| self.blocks[block].link == Some(SubLinkType::ExistsSublink));
        let set_operation = select.op() > protobuf::SetOperation::SetopNone;
        if let (Some(left), Some(right), true) = (&select.larg, &select.rarg, set_operation) {
            let arm = Place {
                role: Role::Arm,
                ..place.clone()
            };
            let outputs = self.select(left, &arm);
            self.select(right, &arm);
            // Names there are those of the outputs.
            let sorted = |node: &&'t NodeEnum| bare_name(node).is_none();
            let clauses = nodes(&select.sort_clause).filter(sorted);
            let limits = [inner(&select.limit_offset), inner(&select.limit_count)];
            for node in clauses.chain(limits.into_iter().flatten()) {
                self.visit(node, place.scope, &place.outer, &place.env);
            }
            let unnamed = |output: Output<'t>| Output {
                name: output.name,
                ..Output::default()
            };
            return outputs.map(|outputs| outputs.into_iter().map(unnamed).collect());
        }
        let scope = self.facts.scope(Some(place.scope));
        let names = self.names_of_from(&select.from_clause, scope, place, Visible::default());
        if let Some(block) = self.block {
            self.blocks[block].scope = scope;
            self.blocks[block].names = names.clone();
        }
        if let Some(condition) = inner(&select.where_clause) {
            self.condition(condition, scope, &names, &place.env);
            self.note_filters(condition, scope, &names);
        }
        self.groups |= !select.group_clause.is_empty();
        let mut listed = nodes(&select.group_clause).chain(nodes(&select.distinct_clause));
        self.positions |= listed.any(|node| matches!(node, NodeEnum::AConst(_)));
        let mut rest: Vec<&'t NodeEnum> = Vec::new();
        tree::select_children(select, &mut |child| {
            if let Child::Node(node) = child {
                rest.push(node);
            }
        });
        let place_of = |node: &NodeEnum| std::ptr::from_ref(node);
        let mut seen: HashSet<*const NodeEnum> = nodes(&select.from_clause).map(place_of).collect();
        seen.extend(inner(&select.where_clause).map(place_of));
        let sorts = nodes(&select.sort_clause).chain(nodes(&select.group_clause));
        let sorts = sorts.chain(nodes(&select.distinct_clause));
        let sorting: HashSet<*const NodeEnum> = sorts.map(place_of).collect();
        let seen = |node: &NodeEnum| {
            seen.contains(&place_of(node)) || matches!(node, NodeEnum::CommonTableExpr(_))
        };
        let outputs: HashSet<String> = output_names(select).into_iter().flatten().collect();
        for node in rest {
            // A bare name in ORDER BY or GROUP BY means an output before it means a whole row.
            if let (true, Some(name)) = (sorting.contains(&place_of(node)), bare_name(node))
                && outputs.contains(name)
            {
                self.note_name(name);
                continue;
            }
            if !(seen(node) || unseen && is_star(node)) {
                self.target_or_expression(node, scope, &names, &place.env);
            }
        }
        if !select.values_lists.is_empty() {
            return values_outputs(select);
        }
        self.outputs(select, &names)
    }

    /// An element of a target list, or any other expression.
    fn target_or_expression(
        &mut self,
        node: &'t NodeEnum,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
    ) {
        if let NodeEnum::ResTarget(target) = node
            && let Some(NodeEnum::ColumnRef(column)) = inner(&target.val)
        {
            let value = inner(&target.val).unwrap_or(node);
            self.traits
                .note(self.lookup(), value, self.text != CLIENT_TEXT);
            let naming = match target.name.is_empty() {
                true => Naming::Whole,
                false => Naming::Labelled,
            };
            self.column(column, names, naming);
            return;
        }
        let naming = match node {
            NodeEnum::ResTarget(target) if target.name.is_empty() => {
                inner(&target.val).and_then(references::named_by)
            }
            _ => None,
        };
        self.visit_named(node, naming, scope, names, env);
    }

    /// An expression in which `naming` gives an output its name.
    fn visit_named(
        &mut self,
        node: &'t NodeEnum,
        naming: Option<&'t protobuf::ColumnRef>,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
    ) {
        let around = std::mem::replace(&mut self.naming, naming);
        self.visit(node, scope, names, env);
        self.naming = around;
    }

    /// WITH: what it names is seen by the query it belongs to.
    fn with(&mut self, clause: &'t Option<protobuf::WithClause>, place: &Place<'t>) -> Place<'t> {
        let Some(clause) = clause else {
            return place.clone();
        };
        let ctes: Vec<&'t protobuf::CommonTableExpr> = nodes(&clause.ctes)
            .filter_map(|node| match node {
                NodeEnum::CommonTableExpr(cte) => Some(cte.as_ref()),
                _ => None,
            })
            .collect();
        let uses: Vec<Rc<Uses>> = ctes.iter().map(|_| Rc::default()).collect();
        // In WITH RECURSIVE every name is seen everywhere; those not reached yet are opaque.
        let mut env = place.env.clone();
        if clause.recursive {
            for (cte, uses) in ctes.iter().zip(&uses) {
                env = Some(Rc::new(Cte {
                    name: &cte.ctename,
                    body: None,
                    columns: None,
                    uses: uses.clone(),
                    inside: Inside::default(),
                    block: self.block,
                    previous: env,
                }));
            }
        }
        for (cte, uses) in ctes.iter().zip(uses) {
            let Some(query) = inner(&cte.ctequery) else {
                continue;
            };
            let writes = !matches!(query, NodeEnum::SelectStmt(_));
            self.writes_in_with |= writes;
            let opaque = writes
                || cte.cycle_clause.is_some()
                || cte.search_clause.is_some()
                || (clause.recursive && mentions(query, &cte.ctename));
            let (body, columns, inside) = if opaque {
                let place = Place {
                    env: env.clone(),
                    role: Role::Opaque,
                    ..place.clone()
                };
                // What it says of itself is no use of it.
                let read = uses.read.get();
                let (outputs, inside) = self.opaque(query, &place);
                uses.read.set(read || writes);
                (None, opaque_columns(cte, outputs), inside)
            } else {
                let outer = place.outer.clone();
                (Some(CteBody { cte, outer }), None, Inside::default())
            };
            env = Some(Rc::new(Cte {
                name: &cte.ctename,
                body,
                columns,
                uses,
                inside,
                block: self.block,
                previous: env,
            }));
        }
        Place {
            env,
            ..place.clone()
        }
    }

    /// The text of a CTE whose rows are not looked through, and what it names.
    fn opaque(
        &mut self,
        query: &'t NodeEnum,
        place: &Place<'t>,
    ) -> (Option<Vec<Output<'t>>>, Inside) {
        let first = self.occurrences.len();
        let around = std::mem::take(&mut self.names);
        let outputs = self.query(query, place);
        let names = std::mem::replace(&mut self.names, around);
        for (name, uses) in &names {
            *self.names.entry(name.clone()).or_insert(0) += uses;
        }
        let occurrences = first..self.occurrences.len();
        (outputs, Inside { occurrences, names })
    }

    /// A CTE is looked at as part of every query that uses it, and one that nobody uses here.
    fn unused(&mut self, clause: &'t Option<protobuf::WithClause>, place: &Place<'t>) {
        let count = clause.as_ref().map_or(0, |clause| clause.ctes.len());
        let mut env = place.env.clone();
        for _ in 0..count {
            let Some(entry) = env else { return };
            match &entry.body {
                Some(body) if !entry.uses.any.get() => {
                    let inside = Place {
                        env: entry.previous.clone(),
                        role: Role::Opaque,
                        ..place.clone()
                    };
                    let first = self.occurrences.len();
                    let around = std::mem::replace(&mut self.unread, true);
                    inner(&body.cte.ctequery).and_then(|query| self.query(query, &inside));
                    self.unread = around;
                    self.mark_unread(first..self.occurrences.len());
                }
                None if !entry.uses.read.get() => {
                    self.mark_unread(entry.inside.occurrences.clone());
                    for (name, uses) in &entry.inside.names {
                        if let Some(all) = self.names.get_mut(name) {
                            *all -= uses;
                        }
                    }
                    self.names.retain(|_, uses| *uses > 0);
                }
                Some(_) | None => {}
            }
            env = entry.previous.clone();
        }
    }

    fn mark_unread(&mut self, occurrences: Range<usize>) {
        for one in &mut self.occurrences[occurrences] {
            if let Found::Known(relation) = one.found {
                one.found = Found::Unread(relation);
            }
        }
    }
}

/// The columns that a recursive query gives: nothing but their names is told by its outputs.
fn opaque_columns<'t>(
    cte: &protobuf::CommonTableExpr,
    outputs: Option<Vec<Output<'t>>>,
) -> Option<Vec<Output<'t>>> {
    let columns = renamed_by(outputs, &cte.aliascolnames)?;
    let search = cte.search_clause.iter();
    let search = search.map(|clause| clause.search_seq_column.as_str());
    let cycle = cte.cycle_clause.iter();
    let cycle = cycle.flat_map(|clause| {
        [
            clause.cycle_mark_column.as_str(),
            clause.cycle_path_column.as_str(),
        ]
    });
    let names = columns.iter().map(|column| named(&column.name));
    Some(names.chain(search.chain(cycle).map(named)).collect())
}

/// The name of a reference without qualifiers, as it stands alone in ORDER BY or GROUP BY.
fn bare_name(node: &NodeEnum) -> Option<&str> {
    let node = match node {
        NodeEnum::SortBy(sort) => inner(&sort.node)?,
        other => other,
    };
    let NodeEnum::ColumnRef(column) = node else {
        return None;
    };
    match (strings(&column.fields).as_slice(), column.fields.len()) {
        ([name], 1) => Some(*name),
        _ => None,
    }
}

/// The names of a SELECT's outputs; those of `*` are left out.
fn output_names(select: &protobuf::SelectStmt) -> Vec<Option<String>> {
    nodes(&select.target_list)
        .map(|node| match node {
            NodeEnum::ResTarget(target) if !target.name.is_empty() => Some(target.name.clone()),
            NodeEnum::ResTarget(target) => functions::output_name(inner(&target.val)?),
            _ => None,
        })
        .collect()
}

fn named<'t>(name: &str) -> Output<'t> {
    Output {
        name: name.to_owned(),
        ..Output::default()
    }
}

/// Columns under the names that an alias gives to the first of them.
fn renamed<'t>(
    columns: Option<Vec<Output<'t>>>,
    alias: &Option<protobuf::Alias>,
) -> Option<Vec<Output<'t>>> {
    match alias {
        Some(alias) => renamed_by(columns, &alias.colnames),
        None => columns,
    }
}

fn renamed_by<'t>(columns: Option<Vec<Output<'t>>>, names: &[Node]) -> Option<Vec<Output<'t>>> {
    let mut columns = columns?;
    for (column, name) in columns.iter_mut().zip(strings(names)) {
        column.name = name.to_owned();
    }
    Some(columns)
}

fn values_outputs<'t>(select: &protobuf::SelectStmt) -> Option<Vec<Output<'t>>> {
    let Some(NodeEnum::List(row)) = nodes(&select.values_lists).next() else {
        return None;
    };
    Some(
        (1..=row.items.len())
            .map(|number| named(&format!("column{number}")))
            .collect(),
    )
}

/// A query names a relation that could be the CTE of this name.
fn mentions(query: &NodeEnum, name: &str) -> bool {
    let mut found = false;
    tree::walk(query, &mut |child| {
        if let Child::Node(NodeEnum::RangeVar(range)) = child {
            found |= range.schemaname.is_empty() && range.relname == name;
        }
    });
    found
}
