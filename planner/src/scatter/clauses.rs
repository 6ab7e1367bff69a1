//! The clauses of a SELECT in its own text, and the text of what its tree points to.
//!
//! Trees say where things start, not where they end. Every part that is cut out here is parsed
//! again and compared with the tree it was cut for; what does not come out equal is not used.

use std::fmt::{self, Write};

use pg_query::{NodeEnum, protobuf};

use crate::{
    budget::Budget,
    parse,
    plan::{Piece, Template},
    splice::Source,
    tree::{self, Child, inner, nodes},
};

/// A range of bytes.
pub(crate) type Span = (usize, usize);

/// A statement's text, and which of its bytes are literals that were cut out of it.
#[derive(Debug)]
pub(crate) struct Base<'t> {
    pub(crate) source: Source<'t>,
    /// Start, end, number. Empty where other literals would make another plan.
    pub(crate) literals: Vec<(usize, usize, usize)>,
    /// What trying may cost.
    pub(crate) budget: &'t Budget,
}

impl<'t> Base<'t> {
    /// The text of a part.
    pub(crate) fn text(&self, span: Span) -> &'t str {
        self.source.text.get(span.0..span.1).unwrap_or("")
    }

    /// The tree of a text that was made from this one. `None` also when the budget does not allow
    /// it.
    fn parsed(&self, text: &str) -> Option<NodeEnum> {
        self.may_parse(text).then(|| parse::parse_one(text))?
    }

    fn may_parse(&self, text: &str) -> bool {
        self.budget.spend(1 + text.len() / BYTES_OF_A_STEP)
    }
}

/// Bytes of a text that are parsed in about the time that a node of a tree takes elsewhere.
const BYTES_OF_A_STEP: usize = 4;

/// Text that is put together from parts of a [`Base`] and words between them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Composed {
    pub(crate) pieces: Template,
}

impl Composed {
    /// Words of our own.
    pub(crate) fn word(&mut self, text: &str) -> &mut Self {
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
        self
    }

    /// A part of the statement, with replacements inside of it (in order, without overlaps).
    pub(crate) fn part(&mut self, base: &Base<'_>, span: Span, edits: &[Edit]) -> &mut Self {
        let mut at = span.0;
        let inside = |edit: &&Edit| edit.span.0 >= span.0 && edit.span.1 <= span.1;
        // Edits are in order.
        let first = edits.partition_point(|edit| edit.span.0 < span.0);
        let edits = edits[first..].iter();
        let until = edits.take_while(|edit| edit.span.0 <= span.1);
        for edit in until.filter(inside) {
            self.plain(base, (at, edit.span.0));
            for piece in &edit.pieces {
                match piece {
                    Piece::Text(text) => {
                        self.word(text);
                    }
                    other => self.pieces.push(other.clone()),
                }
            }
            at = edit.span.1;
        }
        self.plain(base, (at, span.1));
        self
    }

    fn plain(&mut self, base: &Base<'_>, span: Span) {
        let mut at = span.0;
        let first = base.literals.partition_point(|(start, ..)| *start < at);
        let until = base.literals[first..].iter();
        for (start, end, slot) in until.take_while(|(start, ..)| *start <= span.1) {
            if *start >= at && *end <= span.1 {
                self.word(base.text((at, *start)));
                self.pieces.push(Piece::Literal(*slot));
                at = *end;
            }
        }
        self.word(base.text((at, span.1)));
    }
}

/// What takes the place of a part.
#[derive(Debug, Clone)]
pub(crate) struct Edit {
    pub(crate) span: Span,
    pub(crate) pieces: Template,
}

impl Edit {
    /// A replacement by words.
    pub(crate) fn new(span: Span, text: impl Into<String>) -> Self {
        Edit {
            span,
            pieces: vec![Piece::Text(text.into())],
        }
    }
}

/// Where the clauses of a plain SELECT are. Spans of lists are without the key words.
#[derive(Debug, Clone)]
pub(crate) struct Clauses {
    /// From the statement's start to behind SELECT: `WITH ... SELECT`.
    pub(crate) head: Span,
    /// `DISTINCT`, `DISTINCT ON (...)` or `ALL`, or nothing.
    pub(crate) distinct: Span,
    /// Each output.
    pub(crate) targets: Vec<Span>,
    /// From FROM to the end of WHERE.
    pub(crate) body: Span,
    /// Each element of GROUP BY.
    pub(crate) groups: Vec<Span>,
    /// GROUP BY, HAVING and WINDOW with their key words.
    pub(crate) grouping: Span,
    /// ORDER BY with its key words.
    pub(crate) order: Span,
    /// Each element of ORDER BY.
    pub(crate) sorts: Vec<Span>,
    /// LIMIT, OFFSET and FETCH.
    pub(crate) limit: Span,
    /// FOR UPDATE and the like.
    pub(crate) locking: Span,
}

/// Key words that start a clause, in the order in which clauses come.
const CLAUSES: &[&str] = &[
    "from", "where", "group", "having", "window", "order", "limit", "offset", "fetch", "for",
];

/// The clauses of a SELECT that fills a span. `None` when its text is not understood.
pub(crate) fn clauses(
    base: &Base<'_>,
    span: Span,
    select: &protobuf::SelectStmt,
) -> Option<Clauses> {
    let source = &base.source;
    let first = source.token_from(span.0);
    let depth = source.tokens.get(first)?.depth;
    let end = source.token_from(span.1);
    let words: Vec<usize> = (first..end)
        .filter(|at| source.tokens[*at].depth == depth)
        .collect();
    let start = *words.iter().find(|at| source.is_word(**at, "select"))?;
    let starts = clause_starts(source, &words, start)?;
    let begins = |word: &str| {
        starts
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, at)| *at)
    };
    let offset = |token: usize| {
        source
            .tokens
            .get(token)
            .map_or(span.1, |token| token.start.min(span.1))
    };
    // Where the first of some clauses starts, else where the statement ends.
    let border = |names: &[&str]| {
        let first = names.iter().filter_map(|name| begins(name)).min();
        first.unwrap_or(end)
    };
    let tokens_to_span = |from: usize, to: usize| -> Span {
        match (
            source.tokens.get(from),
            to.checked_sub(1).and_then(|last| source.tokens.get(last)),
        ) {
            (Some(first), Some(last)) if to > from => (first.start, last.end),
            _ => (offset(from), offset(from)),
        }
    };
    let list = |from: usize, to: usize| -> Vec<Span> {
        let mut parts = Vec::new();
        let mut at = from;
        for token in from..=to {
            if token == to || (source.is_mark(token, ',') && source.tokens[token].depth == depth) {
                if token > at {
                    parts.push(tokens_to_span(at, token));
                }
                at = token + 1;
            }
        }
        parts
    };
    let body_start = border(&CLAUSES[..2]).min(border(&CLAUSES[2..]));
    let grouping_start = border(&CLAUSES[2..]);
    let order_start = border(&CLAUSES[5..]);
    let tail_start = border(&CLAUSES[6..]);
    let (limit, locking) = tail(border(&CLAUSES[6..9]), border(&CLAUSES[9..]), end);
    let targets_start = targets_start(source, start)?;
    let groups = match begins("group") {
        Some(at) => {
            let from = at + 2;
            let quantified = source.is_word(from, "distinct") || source.is_word(from, "all");
            list(from + usize::from(quantified), border(&CLAUSES[3..]))
        }
        None => Vec::new(),
    };
    let found = Clauses {
        head: (span.0, source.tokens.get(start)?.end),
        distinct: tokens_to_span(start + 1, targets_start),
        targets: list(targets_start, body_start),
        body: tokens_to_span(body_start, grouping_start),
        groups,
        grouping: tokens_to_span(grouping_start, order_start),
        order: tokens_to_span(order_start, tail_start),
        sorts: begins("order").map_or_else(Vec::new, |at| list(at + 2, tail_start)),
        limit: tokens_to_span(limit.0, limit.1),
        locking: tokens_to_span(locking.0, locking.1),
    };
    // One behind the other they are all of the statement.
    let borders = [
        start + 1,
        targets_start,
        body_start,
        grouping_start,
        order_start,
        tail_start,
        end,
    ];
    let whole = borders.is_sorted() && is_head(source, first, start, select);
    (whole && is_proved(base, &found, select)).then_some(found)
}

/// The tokens of LIMIT, OFFSET and FETCH, and those of FOR UPDATE and the like. Either may come
/// first, and each ends where the other one starts.
fn tail(limit: usize, locking: usize, end: usize) -> (Span, Span) {
    let until = |from: usize, other: usize| if other > from { other } else { end };
    (
        (limit, until(limit, locking)),
        (locking, until(locking, limit)),
    )
}

/// The clauses of a SELECT whose word is the token `start`, each with its first token.
fn clause_starts(
    source: &Source<'_>,
    words: &[usize],
    start: usize,
) -> Option<Vec<(&'static str, usize)>> {
    let mut starts: Vec<(&'static str, usize)> = Vec::new();
    for at in words.iter().copied().filter(|at| *at > start) {
        let Some(word) = clause_at(source, at, start) else {
            continue;
        };
        let known = starts.iter().any(|(other, _)| *other == word);
        // `IS DISTINCT FROM` and `ROWS FROM` behind FROM.
        if word == "from" && known {
            continue;
        }
        if known {
            return None;
        }
        starts.push((word, at));
    }
    Some(starts)
}

/// The first token behind SELECT and DISTINCT.
fn targets_start(source: &Source<'_>, start: usize) -> Option<usize> {
    let first = start + 1;
    if source.is_word(first, "all") {
        return Some(first + 1);
    }
    if !source.is_word(first, "distinct") {
        return Some(first);
    }
    if source.is_word(first + 1, "on") && source.is_mark(first + 2, '(') {
        return Some(source.closing(first + 2)? + 1);
    }
    Some(first + 1)
}

/// The clause that a token begins.
fn clause_at(source: &Source<'_>, at: usize, start: usize) -> Option<&'static str> {
    let word = CLAUSES.iter().find(|word| source.is_word(at, word))?;
    // A label (`AS order`) or a part of a name (`t.order`).
    if source.is_word(at - 1, "as") && at - 1 > start || source.is_mark(at - 1, '.') {
        return None;
    }
    let belongs = match *word {
        "from" => {
            let distinct = source.is_word(at - 1, "distinct");
            let is = at >= 2 && (source.is_word(at - 2, "is") || source.is_word(at - 2, "not"));
            !(distinct && is)
        }
        "group" => source.is_word(at + 1, "by") && !source.is_word(at - 1, "within"),
        "order" => source.is_word(at + 1, "by"),
        _ => true,
    };
    belongs.then_some(*word)
}

/// What stands before the word SELECT is WITH and what belongs to it, or nothing.
fn is_head(source: &Source<'_>, first: usize, start: usize, select: &protobuf::SelectStmt) -> bool {
    let with = select.with_clause.is_some();
    let plain = select.op() <= protobuf::SetOperation::SetopNone && select.larg.is_none();
    plain && with == (first < start) && with == source.is_word(first, "with")
}

/// The elements of lists, parsed on their own, are those of the tree.
fn is_proved(base: &Base<'_>, found: &Clauses, select: &protobuf::SelectStmt) -> bool {
    let counts = found.targets.len() == select.target_list.len()
        && found.groups.len() == select.group_clause.len()
        && found.sorts.len() == select.sort_clause.len();
    if !counts || !select.values_lists.is_empty() || select.into_clause.is_some() {
        return false;
    }
    nodes(&select.target_list)
        .zip(&found.targets)
        .all(|(node, span)| is_list_element(base, *span, node, ""))
        && nodes(&select.group_clause)
            .zip(&found.groups)
            .all(|(node, span)| is_list_element(base, *span, node, "GROUP BY "))
        && nodes(&select.sort_clause)
            .zip(&found.sorts)
            .all(|(node, span)| is_list_element(base, *span, node, "ORDER BY "))
}

fn is_list_element(base: &Base<'_>, span: Span, node: &NodeEnum, clause: &str) -> bool {
    let text = format!("SELECT {clause}{}", base.text(span));
    let Some(NodeEnum::SelectStmt(parsed)) = base.parsed(&text) else {
        return false;
    };
    let list = match clause {
        "" => &parsed.target_list,
        "GROUP BY " => &parsed.group_clause,
        _ => &parsed.sort_clause,
    };
    let mut parsed = nodes(list);
    let same = parsed
        .next()
        .is_some_and(|parsed| shape(parsed) == shape(node));
    same && parsed.next().is_none()
}

/// The span of an output's expression, without its label.
pub(crate) fn expression_of(
    base: &Base<'_>,
    span: Span,
    target: &protobuf::ResTarget,
) -> Option<Span> {
    let value = inner(&target.val)?;
    if target.name.is_empty() {
        return proves(base, span, value).then_some(span);
    }
    let source = &base.source;
    let label = source.token_from(span.1).checked_sub(1)?;
    let labelled = label.checked_sub(usize::from(source.is_word(label - 1, "as")))?;
    let last = source.tokens.get(labelled.checked_sub(1)?)?;
    let found = (span.0, last.end);
    proves(base, found, value).then_some(found)
}

/// The span of a node inside of `within`: the shortest text around its known places that parses
/// to it.
pub(crate) fn extent(base: &Base<'_>, within: Span, node: &NodeEnum) -> Option<Span> {
    let (first, last) = places(node)?;
    let source = &base.source;
    let low = source.token_from(within.0);
    let high = source.token_from(within.1);
    let (first, last) = (source.token_at(first)?, source.token_at(last)?);
    // An expression starts at most a few brackets before its first known place.
    for start in (low..=first).rev().take(4) {
        for end in last..high.min(last + 24) {
            let span = (source.tokens[start].start, source.tokens[end].end);
            if source.tokens[start].depth == source.tokens[end].depth && proves(base, span, node) {
                return Some(span);
            }
        }
    }
    None
}

/// The text of a SELECT in brackets.
pub(crate) fn select_extent(base: &Base<'_>, select: &protobuf::SelectStmt) -> Option<Span> {
    let (first, _) = places_of_select(select)?;
    let source = &base.source;
    let mut at = source.token_at(first)?;
    let wanted = shape(select);
    // Outwards, bracket by bracket.
    loop {
        let depth = source.tokens[at].depth.checked_sub(1)?;
        at = (0..at)
            .rev()
            .find(|token| source.tokens[*token].depth == depth && source.is_mark(*token, '('))?;
        let close = source.closing(at)?;
        if close <= at + 1 {
            continue;
        }
        let span = (source.tokens[at + 1].start, source.tokens[close - 1].end);
        if let Some(NodeEnum::SelectStmt(parsed)) = base.parsed(base.text(span))
            && shape(&*parsed) == wanted
        {
            return Some(span);
        }
        base.budget.excess().is_none().then_some(())?;
    }
}

/// The text of an arm of UNION, INTERSECT or EXCEPT without brackets around it.
pub(crate) fn arm_extent(
    base: &Base<'_>,
    within: Span,
    select: &protobuf::SelectStmt,
) -> Option<Span> {
    let (place, _) = places_of_select(select)?;
    let source = &base.source;
    let at = source.token_at(place)?;
    let (low, high) = (source.token_from(within.0), source.token_from(within.1));
    let depth = source.tokens[at].depth;
    let wanted = shape(select);
    let starts = (low..=at)
        .rev()
        .filter(|token| source.tokens[*token].depth <= depth && source.is_word(*token, "select"));
    for start in starts.take(4) {
        let depth = source.tokens[start].depth;
        let ends = (at..high).filter(|token| {
            let next = token + 1;
            let border = [
                "union",
                "intersect",
                "except",
                "order",
                "limit",
                "offset",
                "fetch",
                "for",
            ];
            source.tokens[*token].depth >= depth
                && (next == high
                    || source.tokens[next].depth == depth
                        && (border.iter().any(|word| source.is_word(next, word))
                            || source.is_mark(next, ')')))
        });
        for end in ends {
            let span = (source.tokens[start].start, source.tokens[end].end);
            let parsed = base.parsed(base.text(span));
            if let Some(NodeEnum::SelectStmt(parsed)) = parsed
                && shape(&*parsed) == wanted
            {
                return Some(span);
            }
        }
    }
    None
}

fn proves(base: &Base<'_>, span: Span, node: &NodeEnum) -> bool {
    let text = base.text(span);
    base.may_parse(text)
        && parse::parse_expression(text).is_some_and(|parsed| shape(&parsed) == shape(node))
}

/// The lowest and the highest place that a tree names.
fn places(node: &NodeEnum) -> Option<Span> {
    let mut found = None;
    tree::walk(node, &mut |child| take_place(child, &mut found));
    found
}

fn places_of_select(select: &protobuf::SelectStmt) -> Option<Span> {
    let mut found = None;
    tree::walk_select(select, &mut |child| take_place(child, &mut found));
    found
}

fn take_place(child: Child<'_>, found: &mut Option<Span>) {
    let Child::Node(node) = child else { return };
    if let Some(at) = location(node).and_then(|at| usize::try_from(at).ok()) {
        let (low, high) = found.unwrap_or((at, at));
        *found = Some((low.min(at), high.max(at)));
    }
}

/// Where a node of an expression says that it is.
pub(crate) fn location(node: &NodeEnum) -> Option<i32> {
    Some(match node {
        NodeEnum::ColumnRef(node) => node.location,
        NodeEnum::AConst(node) => node.location,
        NodeEnum::ParamRef(node) => node.location,
        NodeEnum::FuncCall(node) => node.location,
        NodeEnum::AExpr(node) => node.location,
        NodeEnum::BoolExpr(node) => node.location,
        NodeEnum::CaseExpr(node) => node.location,
        NodeEnum::CoalesceExpr(node) => node.location,
        NodeEnum::MinMaxExpr(node) => node.location,
        NodeEnum::NullTest(node) => node.location,
        NodeEnum::BooleanTest(node) => node.location,
        NodeEnum::RowExpr(node) => node.location,
        NodeEnum::AArrayExpr(node) => node.location,
        NodeEnum::SqlvalueFunction(node) => node.location,
        NodeEnum::SubLink(node) => node.location,
        NodeEnum::CollateClause(node) => node.location,
        NodeEnum::TypeCast(node) => node.location,
        NodeEnum::GroupingFunc(node) => node.location,
        NodeEnum::RangeVar(node) => node.location,
        _ => return None,
    })
}

/// A tree without the places it points to: equal shapes mean the same.
pub(crate) fn shape(tree: &dyn fmt::Debug) -> String {
    let mut shape = Shape::default();
    let _ = write!(shape, "{tree:?}");
    shape.text
}

/// Fields of nodes that are places in a text.
const PLACES: &[&str] = &["location: ", "list_start: ", "list_end: "];

/// Takes a tree's printed form and leaves out places.
#[derive(Default)]
struct Shape {
    text: String,
    quoted: bool,
    escaped: bool,
    /// The number behind a field of places is passed over.
    skipping: bool,
}

impl fmt::Write for Shape {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for letter in part.chars() {
            if self.skipping {
                if letter == '-' || letter.is_ascii_digit() {
                    continue;
                }
                self.skipping = false;
            }
            self.text.push(letter);
            if self.quoted {
                match letter {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    '"' => self.quoted = false,
                    _ => {}
                }
            } else if letter == '"' {
                self.quoted = true;
            } else if letter == ' ' && PLACES.iter().any(|field| self.text.ends_with(field)) {
                self.skipping = true;
            }
        }
        Ok(())
    }
}
