//! The transaction's time in a text: one value for every place that reads it, on whatever server
//! the text runs.

use pg_query::{NodeEnum, protobuf};

use crate::{
    functions, holes, parse,
    plan::Template,
    splice::{Edits, Source},
    sql::identifier,
    tree::{self, Child, inner, strings},
};

/// A statement with one value for every reading of the transaction's time. Outputs keep their
/// names. `None`: some place is not understood.
pub(crate) fn one_time(text: &str) -> Option<Template> {
    if !may_read(text) {
        return Some(holes::template(text));
    }
    let node = parse::parse_one(text)?;
    let source = Source::new(text);
    let mut edits = Edits::default();
    let readings = Readings::of(&node);
    for (clock, location, casts) in readings.all {
        let value = match readings.named {
            false => format!("({}{casts})", holes::now()),
            // Of the same form everywhere: ORDER BY and GROUP BY find their outputs.
            true => named(clock, &casts)?,
        };
        edits.replace(source.call(location)?, value);
    }
    let text = edits.apply(text, (0, text.len()))?;
    Some(holes::template(&text))
}

/// False: the text does not read the transaction's time.
pub(crate) fn may_read(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // Behind U& a name may be spelled with escapes.
    let words = [
        "now",
        "transaction_timestamp",
        "current_",
        "localtime",
        "u&",
    ];
    words.iter().any(|word| text.contains(word))
}

/// The value as an expression that gives an output the name that the call gives it.
pub(crate) fn named(clock: &NodeEnum, casts: &str) -> Option<String> {
    let name = identifier(&functions::output_name(clock)?);
    Some(format!("(SELECT {}{casts} AS {name})", holes::now()))
}

/// Where a statement reads the time.
#[derive(Default)]
struct Readings<'t> {
    /// The call, its place, and the casts that give a timestamptz its type.
    all: Vec<(&'t NodeEnum, usize, String)>,
    /// Some output has its name from one.
    named: bool,
}

impl<'t> Readings<'t> {
    fn of(node: &'t NodeEnum) -> Self {
        let mut readings = Readings::default();
        tree::walk(node, &mut |child| {
            let Child::Node(node) = child else { return };
            if let Some((location, casts)) = functions::clock_of(node) {
                readings.all.push((node, location, casts));
            }
            if let NodeEnum::ResTarget(target) = node {
                readings.named |= named_by(target).is_some();
            }
        });
        readings
    }
}

/// The call that an output without an alias has its name from.
pub(crate) fn named_by(target: &protobuf::ResTarget) -> Option<&NodeEnum> {
    let mut value = inner(&target.val).filter(|_| target.name.is_empty())?;
    while functions::clock_of(value).is_none() {
        value = match value {
            NodeEnum::TypeCast(cast) => inner(&cast.arg)?,
            NodeEnum::CollateClause(clause) => inner(&clause.arg)?,
            NodeEnum::CaseExpr(case) => inner(&case.defresult)?,
            NodeEnum::AIndirection(part) if strings(&part.indirection).is_empty() => {
                inner(&part.arg)?
            }
            _ => return None,
        };
    }
    Some(value)
}
