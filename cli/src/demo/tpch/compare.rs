//! Two databases' answers to one query.

use tokio_postgres::SimpleQueryMessage;

/// One row, as text.
type Row = Vec<Option<String>>;

/// What a query answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows in the order in which they came.
    pub rows: Vec<Row>,
}

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same rows in the same order, to the last digit.
    Equal,
    /// The same rows in another order. Every query has an order, so this is wrong, too.
    OtherOrder,
    /// How they differ.
    Different(String),
    /// The plain Postgres did not answer.
    Failed(String),
}

impl Answer {
    /// The rows of one statement's messages.
    pub fn new(messages: Vec<SimpleQueryMessage>) -> Answer {
        let mut answer = Answer::default();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    let names = columns.iter().map(|column| column.name().to_owned());
                    answer.columns = names.collect();
                }
                SimpleQueryMessage::Row(row) => {
                    let values = (0..row.len()).map(|index| row.get(index).map(str::to_owned));
                    answer.rows.push(values.collect());
                }
                _ => {}
            }
        }
        answer
    }

    /// Compares with what was expected.
    pub fn compare(&self, expected: &Answer) -> Verdict {
        if self == expected {
            return Verdict::Equal;
        }
        if self.columns != expected.columns {
            let (found, expected) = (self.columns.join(", "), expected.columns.join(", "));
            return Verdict::Different(format!("columns are {found}, expected {expected}"));
        }
        let (found, wanted) = (sorted(&self.rows), sorted(&expected.rows));
        if found == wanted {
            return Verdict::OtherOrder;
        }
        let mut pairs = found.iter().zip(&wanted);
        let different = pairs.find(|(found, wanted)| found != wanted);
        Verdict::Different(match different {
            Some((found, wanted)) => {
                format!("a row is {}, expected {}", show(found), show(wanted))
            }
            None => format!("{} rows, expected {}", found.len(), wanted.len()),
        })
    }
}

fn sorted(rows: &[Row]) -> Vec<&Row> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort();
    rows
}

fn show(row: &Row) -> String {
    let values = row.iter().map(|value| value.as_deref().unwrap_or("NULL"));
    format!("({})", values.collect::<Vec<_>>().join(", "))
}
