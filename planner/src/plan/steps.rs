//! Statements that run as several, one after the other, in one transaction.

/// A statement with writes inside WITH: those run first, each as a statement of its own; their rows
/// then stand in the statement as values.
#[derive(Debug, Clone, PartialEq)]
pub struct WithWrites {
    /// Every part of WITH, in order.
    pub parts: Vec<WithPart>,
    /// The statement behind WITH.
    pub main: String,
    /// Tables whose foreign keys must not change rows by themselves, quoted: other parts look at
    /// tables that refer to them.
    pub no_cascades: Vec<String>,
}

/// `name (columns) AS (...)`.
#[derive(Debug, Clone, PartialEq)]
pub struct WithPart {
    /// Unquoted.
    pub name: String,
    /// Names given to its columns, unquoted.
    pub columns: Vec<String>,
    /// What stands in the brackets.
    pub body: String,
    /// The whole part as written, for those that do not write.
    pub text: String,
    /// INSERT, UPDATE or DELETE.
    pub writes: bool,
    /// It has RETURNING.
    pub returns: bool,
}

/// An UPDATE that may move rows to other shards: they are deleted, and inserted again.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyUpdate {
    /// `DELETE ... RETURNING` what new rows are computed to be; on every shard that has some.
    pub delete: String,
    /// The table and its alias, as in `INSERT INTO table AS alias`.
    pub table: String,
    /// The table alone, quoted.
    pub relation: String,
    /// Columns of the new rows.
    pub columns: Vec<(String, NewValue)>,
    /// ` RETURNING ...`, or nothing.
    pub returning: String,
    /// What the DELETE returns as the old key.
    pub old_key: usize,
    /// The new key.
    pub new_key: NewValue,
}

/// A MERGE that inserts, with a source that is not where new rows go: its source is read first,
/// then matched rows are changed where they are, then the rest is inserted.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeSteps {
    /// The table and its alias.
    pub target: String,
    /// `SELECT * FROM` the source.
    pub source: String,
    /// The source's name in the statement, quoted.
    pub source_name: String,
    /// Behind ON.
    pub condition: String,
    /// `WHEN MATCHED ...`
    pub matched: String,
    /// The `WHEN NOT MATCHED` clauses, in order.
    pub inserts: Vec<MergeInsert>,
}

/// A `WHEN NOT MATCHED` clause.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeInsert {
    /// Behind AND.
    pub condition: Option<String>,
    /// `table (columns)` and values; `None`: DO NOTHING.
    pub insert: Option<(String, Vec<String>)>,
}

/// A column of a new row.
#[derive(Debug, Clone, PartialEq)]
pub enum NewValue {
    /// The n-th column that the DELETE returns, 0-based.
    Returned(usize),
    /// As written in the statement: a string, NULL or DEFAULT.
    Text(String),
}
