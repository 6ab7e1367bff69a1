//! Writes and transactions made from a seed, over the tables of [`schema`].
//!
//! They come in episodes: each starts from the same rows, so that one runs again alone. What a
//! statement does is determined by SQL alone: sources of joins are unique, LIMIT stands under an
//! ORDER BY that leaves no choice, a statement over many rows can violate one constraint only, and
//! keys that move never meet keys that leave.

mod compound;
mod delete;
mod insert;
mod merge;
pub mod schema;
mod session;
mod source;
mod temporary;
mod triggered;
mod update;

use bytes::BytesMut;

use crate::{batch::Batch, generate::random::Random};
use schema::Table;

/// Statements of an episode.
pub const EPISODE: u64 = 50;
const MOST_PARAMETERS: usize = 8;

/// A statement to run.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number: with the seed, all that it takes to make its episode again.
    pub number: u64,
    /// What runs.
    pub text: String,
    /// Parameters; without, the simple protocol is used.
    pub parameters: Option<Vec<String>>,
    /// The rows of a COPY FROM STDIN.
    pub rows: Option<String>,
    /// Its ORDER BY leaves no choice: row order counts.
    pub ordered: bool,
    /// Which row gets which number of a sequence is not determined.
    pub shuffles_numbers: bool,
    /// BEGIN, COMMIT, SAVEPOINT and the like.
    pub control: bool,
}

/// Statements that run one after the other from [`schema::RESET`] on.
#[derive(Debug, Clone)]
pub struct Episode {
    /// In order; no transaction is left open.
    pub steps: Vec<Step>,
    /// In a transaction every statement has a savepoint before it, which errors return to.
    pub guarded: bool,
}

impl Step {
    /// The messages that run it, but for the rows of a COPY.
    pub fn messages(&self) -> BytesMut {
        let batch = match &self.parameters {
            None => Batch::new().query(&self.text),
            Some(parameters) => {
                let values: Vec<Option<&str>> = parameters
                    .iter()
                    .map(|value| Some(value.as_str()))
                    .collect();
                Batch::new()
                    .parse("", &self.text)
                    .bind("", "", &values)
                    .describe('P', "")
                    .execute("", 0)
                    .sync()
            }
        };
        BytesMut::from(batch.bytes())
    }

    /// As psql would run it, for people.
    pub fn script(&self) -> String {
        let mut text = self.text.clone();
        let parameters = self.parameters.iter().flatten().enumerate();
        for (index, value) in parameters.collect::<Vec<_>>().into_iter().rev() {
            text = text.replace(
                &format!("${}", index + 1),
                &format!("'{}'", value.replace('\'', "''")),
            );
        }
        match &self.rows {
            None => format!("{text};"),
            Some(rows) => format!("{text};\n{rows}\\."),
        }
    }
}

/// Episode `number` of the sequence that `seed` starts.
pub fn episode(seed: u64, number: u64) -> Episode {
    let mut random = Random::new(seed, number);
    let guarded = random.chance(50);
    let mut maker = Maker {
        random,
        parameters: None,
        shuffles_numbers: false,
        open: false,
        savepoints: 0,
    };
    let first = number * EPISODE;
    let steps = (first..first + EPISODE).map(|number| maker.step(number, number + 1 - first));
    Episode {
        steps: steps.collect(),
        guarded,
    }
}

/// Makes one episode.
#[derive(Debug)]
struct Maker {
    random: Random,
    /// `None`: literals only.
    parameters: Option<Vec<String>>,
    shuffles_numbers: bool,
    /// In a transaction block.
    open: bool,
    savepoints: usize,
}

impl Maker {
    fn parameter(&mut self, value: &str) -> Option<usize> {
        let chosen = self.random.chance(50);
        let parameters = self.parameters.as_mut()?;
        if !chosen || parameters.len() >= MOST_PARAMETERS {
            return None;
        }
        parameters.push(value.to_owned());
        Some(parameters.len())
    }

    /// A whole number as a literal or parameter.
    fn int(&mut self, low: i64, high: i64) -> String {
        let value = self.random.between(low, high).to_string();
        match self.parameter(&value) {
            None => value,
            Some(number) => format!("${number}::int"),
        }
    }

    /// A text as a literal or parameter.
    fn text(&mut self, value: &str) -> String {
        match self.parameter(value) {
            None => format!("'{}'", value.replace('\'', "''")),
            Some(number) => format!("${number}::text"),
        }
    }

    /// A text of a few that tables hold.
    fn word(&mut self) -> String {
        let word = match self.random.below(12) {
            0 => "it's".to_owned(),
            1 => "Größe".to_owned(),
            2 => String::new(),
            3..=6 => format!("n{}", self.random.below(10)),
            7..=8 => format!("k{}", self.random.below(6)),
            _ => format!("w{}", self.random.below(8)),
        };
        self.text(&word)
    }

    /// A key that is often there.
    fn known(&mut self) -> String {
        self.int(1, 40)
    }

    fn code(&mut self) -> String {
        let code = format!("r{}", self.random.between(1, 6));
        self.text(&code)
    }

    fn tag(&mut self) -> String {
        let tag = format!("t{}", self.random.between(1, 20));
        self.text(&tag)
    }

    fn one_of(&mut self, items: &[&str]) -> String {
        self.random.pick(items).to_owned()
    }

    fn table(&mut self) -> Table {
        self.random.weighted(&[
            (28, Table::Owners),
            (22, Table::Items),
            (15, Table::Tags),
            (18, Table::Events),
            (9, Table::Rates),
            (8, Table::Notes),
        ])
    }
}

#[cfg(test)]
mod tests;
