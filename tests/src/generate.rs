//! Statements made from a seed, over the relations of [`schema`].
//!
//! Every statement is type-correct by construction, and its result is determined by SQL alone:
//! what depends on the order of rows (LIMIT, `row_number`, `array_agg` ...) stands under an ORDER
//! BY that leaves no choice, values that are equal but look different (1.0 and 1.00) are made
//! alike where Postgres keeps one of them, and floating-point numbers that are added are multiples
//! of a quarter, whose sums are exact.

pub mod aggregate;
pub mod condition;
pub mod expression;
mod function;
mod mistake;
pub mod query;
pub mod random;
pub mod relation;
pub mod schema;
pub mod setting;
mod spelling;
mod whole;

use std::sync::OnceLock;

use bytes::BytesMut;

use crate::{cases::Parameter, play};
use random::Random;
use schema::Type;

/// A statement to run.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its number: with the seed, all that it takes to make it again.
    pub number: u64,
    /// What runs before it, in the same session: settings, BEGIN.
    pub before: Vec<String>,
    /// What runs.
    pub text: String,
    /// What takes back what ran before it.
    pub after: Vec<String>,
    /// Its ORDER BY leaves no choice: row order counts.
    pub ordered: bool,
    /// Parameters; without, the simple protocol is used.
    pub parameters: Option<Vec<Parameter>>,
    /// Results are asked for in binary.
    pub binary: bool,
}

impl Statement {
    /// How many times ReadyForQuery comes.
    pub fn answers(&self) -> usize {
        self.before.len() + 1 + self.after.len()
    }

    /// The messages that run it.
    pub fn messages(&self) -> anyhow::Result<BytesMut> {
        let mut bytes = BytesMut::new();
        for text in &self.before {
            postgres_protocol::message::frontend::query(text, &mut bytes)?;
        }
        match &self.parameters {
            None => postgres_protocol::message::frontend::query(&self.text, &mut bytes)?,
            Some(parameters) => {
                let oid = |parameter: &Parameter| match parameter.declared {
                    true => play::postgres_type(&parameter.type_name).unwrap_or(0),
                    false => 0,
                };
                let types = parameters.iter().map(oid).collect();
                let format = i16::from(self.binary);
                play::put_extended(&mut bytes, &self.text, parameters, types, format)?;
            }
        }
        for text in &self.after {
            postgres_protocol::message::frontend::query(text, &mut bytes)?;
        }
        Ok(bytes)
    }
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// SQL that can stand anywhere in a larger expression.
    pub text: String,
    /// What it evaluates to.
    pub kind: Type,
    /// Values that are equal also look alike.
    pub exact: bool,
    /// A float whose sums do not depend on the order of addition.
    pub dyadic: bool,
}

impl Expression {
    /// One whose equal values look alike if its type's always do.
    pub fn new(text: impl Into<String>, kind: Type) -> Expression {
        Expression {
            text: text.into(),
            kind,
            exact: !matches!(
                kind,
                Type::Numeric | Type::Float4 | Type::Float8 | Type::Interval
            ),
            dyadic: true,
        }
    }
}

/// Something that a FROM clause, or a GROUP BY, offers to expressions.
#[derive(Debug, Clone)]
pub struct Column {
    /// How it is written.
    pub value: Expression,
    /// Its name without the relation; empty for an expression.
    pub name: String,
    /// Another way to write it.
    pub other: Option<String>,
    /// Roughly how many different values it has.
    pub distinct: f64,
}

/// What an expression may mention.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Columns of this query level.
    pub columns: Vec<Column>,
    /// Columns of the levels around it.
    pub outer: Vec<Column>,
    /// Expressions that together identify a row.
    pub identity: Option<Vec<Expression>>,
    /// Roughly how many rows there are.
    pub rows: f64,
    /// Columns are the results of aggregates and GROUP BY.
    pub grouped: bool,
    /// Aliases of tables, whose whole rows can be named.
    pub whole_rows: Vec<String>,
}

impl Scope {
    /// What a subquery of this level may mention from it.
    pub fn for_subquery(&self) -> Vec<Column> {
        // A name without a relation could mean a column of the subquery.
        let visible = self
            .columns
            .iter()
            .filter(|column| !column.name.is_empty() && column.value.text.contains('.'));
        let mut visible: Vec<Column> = visible.chain(&self.outer).cloned().collect();
        for column in &mut visible {
            column.other = None;
        }
        visible
    }

    /// Without the levels around it: the arguments of an aggregate must not all come from there.
    pub fn local(&self) -> Scope {
        Scope {
            outer: Vec::new(),
            ..self.clone()
        }
    }
}

/// A WITH query that FROM can name.
#[derive(Debug, Clone)]
pub struct Common {
    name: String,
    query: query::Query,
}

/// What statements can do without, to look for differences behind one that is known. It changes
/// what follows in a statement, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feature {
    /// `(t).x` and `(t.*).x` for `t.x`.
    Fields,
    Functions,
    Mistakes,
    Roles,
    Rows,
    Settings,
    Spellings,
    Windows,
}

impl Feature {
    /// False when `AUTOMATOR67_WITHOUT` names it: `rows,spellings`.
    fn is_wanted(self) -> bool {
        static WITHOUT: OnceLock<String> = OnceLock::new();
        let without =
            WITHOUT.get_or_init(|| std::env::var("AUTOMATOR67_WITHOUT").unwrap_or_default());
        let name = format!("{self:?}").to_lowercase();
        !without.split(',').any(|word| word == name)
    }
}

/// Makes one statement.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    /// `None`: literals only.
    parameters: Option<Vec<Parameter>>,
    commons: Vec<Common>,
    aliases: usize,
    /// How many more subqueries the statement may get.
    budget: usize,
    /// Mostly columns and common aggregates: what need not be gathered.
    simple: bool,
    /// A wrong expression that has no place yet.
    wrong: Option<String>,
    /// The windows of the query under way that have names; `None` where they must not.
    windows: Option<Vec<String>>,
    /// What runs before and after it, and is compared as well.
    around: setting::Around,
}

const MOST_PARAMETERS: usize = 10;

/// Statement `number` of the sequence that `seed` starts.
pub fn statement(seed: u64, number: u64) -> Statement {
    let mut random = Random::new(seed, number);
    let extended = random.chance(34);
    let binary = extended && random.chance(50);
    let simple = random.chance(45);
    let budget = match simple {
        true => random.weighted(&[(7, 0), (2, 1), (1, 2)]),
        false => random.weighted(&[(4, 1), (4, 3), (2, 6)]),
    };
    let mut generator = Generator {
        random,
        parameters: extended.then(Vec::new),
        commons: Vec::new(),
        aliases: 0,
        budget,
        simple,
        wrong: None,
        windows: None,
        around: setting::Around::default(),
    };
    generator.surround();
    let (text, ordered) = generator.statement();
    let (text, parameters) = match generator.parameters {
        None => (text, None),
        Some(parameters) => {
            let (text, used) = without_gaps(&text, &parameters);
            (text, Some(used))
        }
    };
    Statement {
        number,
        before: generator.around.before,
        text,
        after: generator.around.after,
        ordered,
        parameters,
        binary,
    }
}

/// Numbers the parameters that `text` mentions anew: those of parts that were thrown away leave
/// gaps.
pub(crate) fn without_gaps<T: Clone>(text: &str, parameters: &[T]) -> (String, Vec<T>) {
    let mut places: Vec<usize> = Vec::new();
    let mut result = String::new();
    let mut parts = text.split('$');
    result.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let end = part.find(|character: char| !character.is_ascii_digit());
        let (number, rest) = part.split_at(end.unwrap_or(part.len()));
        let Ok(number) = number.parse::<usize>() else {
            result.push('$');
            result.push_str(part);
            continue;
        };
        let place = places.iter().position(|&known| known == number);
        let place = place.unwrap_or_else(|| {
            places.push(number);
            places.len() - 1
        });
        result.push_str(&format!("${}{rest}", place + 1));
    }
    let used = places
        .iter()
        .filter_map(|&number| parameters.get(number - 1));
    (result, used.cloned().collect())
}

impl Generator {
    fn alias(&mut self, prefix: &str) -> String {
        self.aliases += 1;
        format!("{prefix}{}", self.aliases)
    }

    /// Takes one subquery from the budget.
    fn afford(&mut self) -> bool {
        let affordable = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        affordable
    }
}

#[cfg(test)]
mod tests;
