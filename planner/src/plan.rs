//! What a statement becomes: plain data that says which shards get which bytes.
//!
//! A [`Plan`] borrows nothing and knows no sockets. Plans marked `reusable` depend on the
//! statement's literals only through [`KeySource::Literal`] and [`Piece::Literal`], so one plan
//! serves every statement with the same normalised text.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use crate::catalog::{KeyType, QualifiedName, Residue};

mod admin;
mod calls;
mod steps;

pub use admin::{AdminCall, AdminFunction, Argument};
pub use calls::{
    AskerCall, AskerFunction, Execute, Moved, Prepare, SequenceCall, SequenceFunction, SequenceUse,
    Signalled,
};
pub use steps::{KeyUpdate, MergeInsert, MergeSteps, NewValue, WithPart, WithWrites};

mod lookup;

pub use lookup::IndexLookup;

/// One statement of a query string, planned.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What the statement does.
    pub plan: Plan,
    /// The statement's bytes in the text that was planned: `text[span.0..span.1]`, without the
    /// semicolon.
    pub span: (usize, usize),
    /// The command, as metrics and `automator67.sessions` name it: `select`, `insert`, `ddl` ...
    pub kind: &'static str,
    /// True when the plan also holds for any text with the same normalised form.
    pub reusable: bool,
    /// How many parameters (`$1` ... `$n`) the statement mentions: the highest n.
    pub parameters: usize,
    /// What the statement needs of, or leaves behind in, its server session.
    pub session: SessionEffects,
    /// What it reads and writes, see [`crate::names`].
    pub names: u64,
    /// Distributed and reference tables whose definition it changes.
    pub redefines: Vec<QualifiedName>,
    /// A global unique index may say which one shard has the row that the statement is about. It is
    /// asked first; when the row is not there after all, the plan is what holds.
    pub lookup: Option<IndexLookup>,
}

/// State in a server session that a statement reads or leaves behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionEffects {
    /// The session must keep this server connection from now on (temporary tables, session
    /// advisory locks, LISTEN, WITH HOLD cursors, `set_config` that cannot be replayed).
    pub pins: bool,
    /// May call `nextval` or `setval` in the server session.
    pub moves_sequence: bool,
    /// Calls `setval`: values of the sequence that were reserved before are not to be used.
    pub sets_sequence: bool,
    /// Calls `currval` or `lastval`, which read what an earlier statement of this session left.
    pub reads_sequence: bool,
    /// May write rows (a failed or forgotten commit would matter).
    pub writes: bool,
    /// Does nothing but read rows of tables: nobody sees when it ran, and it holds nobody up.
    pub only_reads: bool,
    /// Names views on placed tables: the home shard is asked for the rights on them.
    pub through_views: bool,
    /// Views' texts stand in for them in a statement that moves no relation: the home shard is asked
    /// for the rights on them, too.
    pub expands_views: bool,
    /// Reads the transaction's time, or a default that it uses does.
    pub reads_clock: bool,
    /// Changes tables, types, functions ...: the catalog snapshot is stale afterwards.
    pub changes_catalog: bool,
    /// May write to a table with a global unique index: what it has changed must be brought to the
    /// index before it is done.
    pub indexed: bool,
    /// What code that it runs inside a server may leave behind there.
    pub residue: Residue,
}

/// The ways a statement runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Nothing between two semicolons.
    Empty,
    /// The client's bytes, unchanged, to one shard.
    Single(Target),
    /// Rows of a multi-row INSERT, each to the shard of its key (or all to every copy of a
    /// reference table).
    Insert(InsertSplit),
    /// INSERT ... SELECT into a distributed or reference table: the rows of `query` are computed
    /// on the home shard and streamed to the shards by COPY.
    InsertSelect(InsertSelect),
    /// One UPDATE, DELETE, MERGE, TRUNCATE or LOCK on several shards, in one transaction.
    Multi(Multi),
    /// A SELECT of which every shard does its part.
    Scatter(Scatter),
    /// Rows are copied to temporary tables on the home shard, and the text runs there.
    Gather(Gather),
    /// COPY ... FROM STDIN.
    CopyIn(CopyIn),
    /// COPY table TO STDOUT of a distributed table: every shard's rows, one after the other.
    CopyOut(CopyOut),
    /// A change of schema on every shard.
    Ddl(Ddl),
    /// CREATE TABLE AS, SELECT INTO, CREATE MATERIALIZED VIEW: with rows on the home shard, the
    /// empty table everywhere else.
    CreateTableAs {
        /// How the home shard runs it: `Single(Home)` or `Gather`.
        home: Box<Plan>,
        /// The statement for every other shard (`... WITH NO DATA`).
        elsewhere: String,
    },
    /// Writes inside WITH, over several shards.
    WithWrites(WithWrites),
    /// An UPDATE of a shard key.
    KeyUpdate(KeyUpdate),
    /// A MERGE in steps.
    MergeSteps(MergeSteps),
    /// `select create_distributed_table(...)` and the other functions that the proxy answers.
    Admin(AdminCall),
    /// BEGIN, COMMIT, SAVEPOINT ...
    Transaction(TransactionCommand),
    /// SET, RESET, DISCARD: state of the session that the proxy keeps.
    Setting(SettingCommand),
    /// DECLARE name CURSOR: `query` says where the cursor lives.
    DeclareCursor {
        /// The cursor's name as the server sees it (case folded).
        name: String,
        /// WITH HOLD: survives its transaction.
        hold: bool,
        /// `Single` or `Gather`; a `Gather`'s statement is the whole DECLARE, rewritten.
        query: Box<Plan>,
    },
    /// FETCH, MOVE: to the shard where the cursor lives.
    FetchCursor {
        /// The cursor's name.
        name: String,
    },
    /// CLOSE name; `None` is CLOSE ALL.
    CloseCursor {
        /// The cursor's name.
        name: Option<String>,
    },
    /// A statement that calls `currval`, `lastval` or `nextval` for sequences whose values the
    /// proxy has drawn.
    Sequences(SequenceUse),
    /// A statement with calls that ask about the client: the proxy puts the answers in their place.
    Asker(Vec<AskerCall>),
    /// SQL-level PREPARE.
    Prepare(Prepare),
    /// SQL-level EXECUTE, or EXPLAIN of one.
    Execute(Execute),
    /// SQL-level DEALLOCATE; `None` is ALL.
    Deallocate {
        /// The statement's name.
        name: Option<String>,
    },
    /// EXPLAIN of a statement that is not `Single(Home)`.
    Explain(Explain),
}

/// Where a one-shard statement runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The home shard: local tables, introspection, server state.
    Home,
    /// Any shard that is up: only reference tables, or no tables at all, and nothing volatile that
    /// belongs to one server.
    AnyCopy,
    /// The shard of a key.
    Key(KeyRoute),
}

/// The proof that a statement needs one shard: every listed key, once known, names the same one.
///
/// When the keys turn out to name several shards, plan again with [`crate::Reach::Many`].
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRoute {
    /// How key values are read and hashed.
    pub key_type: KeyType,
    /// The colocation group of the tables, which says where values are.
    pub group: u32,
    /// The values. Empty only for tables that are on one shard as a whole.
    pub sources: Vec<KeySource>,
}

/// Keys between two ends, both included.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySpan {
    /// How key values are read.
    pub key_type: KeyType,
    /// A colocation group that is split by ranges.
    pub group: u32,
    /// No key is below any of these.
    pub lower: Vec<KeySource>,
    /// No key is above any of these.
    pub upper: Vec<KeySource>,
}

/// Where a key's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// The n-th literal of the normalised text (0-based), as the normaliser cut it out.
    Literal {
        /// Index into [`crate::normalise::Normalised::literals`].
        slot: usize,
        /// A minus sign stood before it.
        negated: bool,
    },
    /// Parameter `$n`, 0-based.
    Parameter {
        /// 0 for `$1`.
        index: usize,
        /// True when the parameter's declared or described type must be looked at before its
        /// bytes are: it occurs more than once, so its type is not that of the key for certain.
        type_unsure: bool,
    },
    /// A value known at planning time (text form of the key type).
    Constant(String),
    /// SQL NULL: equal to nothing (reads find no row on any shard), refused as a key of a new row.
    Null,
    /// An expression without columns that a server must evaluate once, as `SELECT (expr)::type`.
    Expression(Template),
}

/// Text with holes, so that a cached plan can render a new statement's own literals.
pub type Template = Vec<Piece>;

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Text as it stands.
    Text(String),
    /// The n-th literal of the normalised text, as the client spelled it.
    Literal(usize),
    /// The row's next value of the n-th of the plan's sequences.
    Sequence(usize),
    /// The row's evaluated key (`InsertRow::key`), as a quoted literal.
    Key,
    /// The transaction's timestamp, as a quoted literal (`'2026-01-01 00:00:00.123456+00'`, no
    /// cast).
    Now,
}

/// INSERT ... VALUES over several shards.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertSplit {
    /// The target.
    pub table: QualifiedName,
    /// The key's type; `None` where rows have no key.
    pub key_type: Option<KeyType>,
    /// The colocation group of the table; `None` for a reference table, whose rows all go to every
    /// shard.
    pub group: Option<u32>,
    /// The shard key's SQL type for evaluation, like `bigint`.
    pub key_sql_type: String,
    /// `INSERT INTO t (a, b) VALUES`, with columns added for filled-in sequences.
    pub prefix: Template,
    /// Each row with its parentheses.
    pub rows: Vec<InsertRow>,
    /// ` ON CONFLICT ... RETURNING ...`; may be empty.
    pub suffix: Template,
    /// The statement returns rows.
    pub returning: bool,
    /// Every row comes back exactly once, so results can be put in input order.
    pub one_result_per_row: bool,
    /// Sequences (quoted, qualified names) of which each row takes one value.
    pub sequences: Vec<String>,
    /// Some key is a [`KeySource::Expression`] or a sequence value is cast: the original text is
    /// first parsed (not run) on the home shard, so that its errors are Postgres's own.
    pub check_first: bool,
}

/// One row of an [`InsertSplit`].
#[derive(Debug, Clone, PartialEq)]
pub struct InsertRow {
    /// `(1, 'ann')`.
    pub text: Template,
    /// The value of the shard key. `None` where rows have no key. A key that is filled from
    /// `sequences[n]` is `RowKey::Sequence(n)`.
    pub key: Option<RowKey>,
}

impl InsertRow {
    /// True if the row takes a value from `InsertSplit::sequences[n]`.
    pub fn takes(&self, n: usize) -> bool {
        let drawn = Piece::Sequence(n);
        let for_key = match &self.key {
            Some(RowKey::Sequence(sequence)) => *sequence == n,
            Some(RowKey::Source(KeySource::Expression(template))) => template.contains(&drawn),
            Some(RowKey::Source(_)) | None => false,
        };
        for_key || self.text.contains(&drawn)
    }
}

/// The key of a new row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowKey {
    /// From the statement.
    Source(KeySource),
    /// The value drawn from `InsertSplit::sequences[n]`.
    Sequence(usize),
}

/// INSERT ... SELECT into a distributed or reference table.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertSelect {
    /// The target.
    pub table: QualifiedName,
    /// How the SELECT, wrapped so that it yields exactly the target columns with the target
    /// types, runs on the home shard. `Single` targets run `query_sql`; a `Gather`'s `statement`
    /// is already the wrapped query.
    pub query: Box<Plan>,
    /// The wrapped SELECT, for `query` being `Single`.
    pub query_sql: Template,
    /// The target columns, unquoted, in the order of the SELECT's.
    pub columns: Vec<String>,
    /// Index of the shard key in `columns`; `None` where rows have no key.
    pub key_column: Option<usize>,
    /// The key's type; `None` where rows have no key.
    pub key_type: Option<KeyType>,
    /// The colocation group of the table; `None` for a reference table.
    pub group: Option<u32>,
    /// `ON CONFLICT ... RETURNING ...`; rows are then inserted by INSERT instead of COPY.
    pub suffix: Option<String>,
    /// Every row comes back exactly once, so results can be put in input order.
    pub one_result_per_row: bool,
    /// Sequences (quoted, qualified names) of which each row takes one value.
    pub sequences: Vec<String>,
}

/// A write on several shards in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Multi {
    /// Which.
    pub shards: ShardSet,
    /// `None`: the client's own text. `Some`: rewritten.
    pub sql: Option<Template>,
    /// The statement returns rows.
    pub returning: bool,
    /// Every shard changes its own copy of the same rows: report one shard's tag and rows.
    pub copies: bool,
    /// Refused outside of a transaction block: LOCK.
    pub needs_block: bool,
    /// What is read first, for every shard to have it.
    pub moves: Vec<Move>,
}

/// A set of shards that may depend on key values.
#[derive(Debug, Clone, PartialEq)]
pub enum ShardSet {
    /// All of them.
    All,
    /// The home shard alone.
    Home,
    /// Those of the listed keys.
    Keys(KeyRoute),
    /// Those whose ranges meet a span of keys.
    Span(KeySpan),
}

/// The scatter and merge tiers: every shard runs one statement over its own rows, and what comes
/// back is put together.
#[derive(Debug, Clone, PartialEq)]
pub struct Scatter {
    /// Relations that every shard gets for the statement, before it runs.
    pub moves: Vec<Move>,
    /// Other ways, with other moves, to the same answer. Which is best depends on sizes.
    pub others: Vec<Scatter>,
    /// Which shards.
    pub shards: ShardSet,
    /// What each of them runs.
    pub statement: Template,
    /// How their rows become the answer.
    pub combine: Combine,
    /// The one-line reason a cheaper tier was not possible, for EXPLAIN.
    pub reason: String,
    /// Room for what the executor learns about the columns.
    pub memo: Memo,
    /// Room for the executor's choice between the ways.
    pub choice: Memo,
}

impl Scatter {
    /// What it is called.
    pub fn tier(&self) -> crate::Tier {
        match self.combine {
            Combine::Rows(_) if self.moves.is_empty() => crate::Tier::Scatter,
            Combine::Rows(_) | Combine::Final(_) => crate::Tier::Merge,
        }
    }
}

/// A relation whose rows are moved to every shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// Its rows, and the temporary table they go to. For a subquery, `select` is its text, and
    /// `create` makes a table of its columns.
    pub fetch: Fetch,
    /// A subquery with a plan of its own, that is answered first.
    pub query: Option<Box<Planned>>,
    /// Columns that a subquery looks rows up by, once for each row around it, quoted.
    pub looked_up_by: Vec<String>,
    /// Each row matters on one shard only.
    pub route: Option<MoveRoute>,
    /// Rows matter only where a column has one of the values of another relation's column.
    pub reductions: Vec<Reduction>,
}

/// Where a moved row matters: on the shard of the value of one of its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveRoute {
    /// Index into `Fetch::columns`.
    pub column: usize,
    /// The column's type.
    pub type_oid: u32,
    /// How values are read and hashed.
    pub key_type: KeyType,
    /// The colocation group that the shards' rows are of.
    pub group: u32,
}

/// A restriction of a moved relation by values that are known when it is fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduction {
    /// The column, quoted.
    pub column: String,
    /// Type OID and name of the values.
    pub value_type: (u32, String),
    /// Where the values are.
    pub values: ReductionValues,
}

/// Where the values of a [`Reduction`] are.
#[derive(Debug, Clone, PartialEq)]
pub enum ReductionValues {
    /// In a column of another moved relation: indexes into `Scatter::moves` and its columns.
    Moved(usize, usize),
    /// A SELECT gives them, on each shard.
    Select(Template),
}

/// How the rows of several shards become the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Combine {
    /// They are the answer, one shard's after the other's or in order.
    Rows(Rows),
    /// They are partial results; a statement on the home shard makes the answer of them.
    Final(Vec<FinalPiece>),
}

/// Rows that are those of the answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// How many columns at the end are not the client's.
    pub hidden: usize,
    /// ORDER BY.
    pub order: Vec<SortColumn>,
    /// DISTINCT: rows of different shards can be equal.
    pub distinct: Option<Distinct>,
    /// LIMIT. Each shard's own statement is limited to the rows that can matter.
    pub count: Option<Count>,
    /// OFFSET.
    pub offset: Option<Count>,
    /// FETCH FIRST ... WITH TIES.
    pub ties: bool,
    /// FOR UPDATE and the like. The limit is then not part of the shards' statement, as each shard
    /// may lock only rows of the answer.
    pub locking: Option<Template>,
}

/// What DISTINCT compares.
#[derive(Debug, Clone, PartialEq)]
pub enum Distinct {
    /// All columns.
    Rows,
    /// DISTINCT ON.
    On(Vec<ColumnAt>),
}

/// One element of ORDER BY.
#[derive(Debug, Clone, PartialEq)]
pub struct SortColumn {
    /// Where its value is.
    pub column: ColumnAt,
    /// DESC.
    pub descending: bool,
    /// NULLS FIRST.
    pub nulls_first: bool,
}

/// A column of a shard's rows. How many `*` gives is known when they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnAt {
    /// The n-th of the client's, 0-based.
    Visible(usize),
    /// The n-th behind the client's, 0-based.
    Hidden(usize),
}

/// A number of rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Count {
    /// Given in the text.
    Number(i64),
    /// The n-th literal of the normalised text.
    Literal(usize),
    /// `$n`, 0-based.
    Parameter(usize),
}

/// A piece of the statement that makes an answer of partial results.
#[derive(Debug, Clone, PartialEq)]
pub enum FinalPiece {
    /// A piece that is known without the partial results.
    Piece(Piece),
    /// An item of FROM with the partial results, named `a67`; columns `c1`, `c2` ...
    Rows,
    /// The name of the n-th column's type, 0-based.
    Type(usize),
    /// The average, where column `sum` has sums and column `count` has numbers of values.
    Average {
        /// 0-based.
        sum: usize,
        /// 0-based.
        count: usize,
    },
}

/// What an executor has learned about a plan while it ran it. Plans are equal without it.
#[derive(Clone, Default)]
pub struct Memo(pub Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Memo")
    }
}

/// The gather tier.
#[derive(Debug, Clone, PartialEq)]
pub struct Gather {
    /// What is copied, one entry for each occurrence of a relation that needs its own rows.
    pub fetches: Vec<Fetch>,
    /// What runs on the home shard once all fetches are loaded: the user's statement with
    /// relations renamed and views expanded. Parameters keep their numbers.
    pub statement: Template,
    /// The one-line reason a cheaper tier was not possible, for EXPLAIN.
    pub reason: String,
}

/// Rows to be copied to the home shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetch {
    /// The relation the rows come from.
    pub relation: QualifiedName,
    /// `Shards`: `select` runs on each. `Proxy`: the proxy knows the rows.
    pub from: FetchSource,
    /// The temporary table's unqualified name.
    pub temp_table: String,
    /// `CREATE TEMPORARY TABLE ... ON COMMIT DROP`; empty for rows of the proxy, which are in no table.
    pub create: Template,
    /// `SELECT cols FROM t [WHERE ...]`, may hold the statement's own `$n`.
    pub select: Template,
    /// The copied columns, unquoted, in order.
    pub columns: Vec<String>,
    /// All column types travel in binary between any two servers; otherwise text is used.
    pub binary: bool,
    /// `ALTER TABLE ... ADD PRIMARY KEY ...`, where all its columns are copied.
    pub primary_key: Option<String>,
    /// The statement may not be valid without the primary key: `GROUP BY` it, select the rest.
    pub needs_key: bool,
}

impl Fetch {
    /// Its rows are in a temporary table.
    pub fn is_table(&self) -> bool {
        matches!(self.from, FetchSource::Shards(_))
    }
}

/// Who has the rows of a [`Fetch`].
#[derive(Debug, Clone, PartialEq)]
pub enum FetchSource {
    /// Shards; for a reference table never used (the home shard has a copy).
    Shards(ShardSet),
    /// The proxy: those of its views.
    Proxy(ProxyView),
}

/// Relations whose rows only the proxy knows. Columns: see [`ProxyView::columns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyView {
    /// `automator67.shards`
    Shards,
    /// `automator67.pools`
    Pools,
    /// `automator67.sessions`
    Sessions,
    /// `automator67.transactions`
    Transactions,
    /// `pg_prepared_statements`: those of the client, whoever has prepared them on a server.
    PreparedStatements,
}

impl ProxyView {
    /// The setting that has its rows, as JSON, while a statement reads them on the home shard.
    pub fn setting(self) -> &'static str {
        match self {
            ProxyView::Shards => "automator67.rows_of_shards",
            ProxyView::Pools => "automator67.rows_of_pools",
            ProxyView::Sessions => "automator67.rows_of_sessions",
            ProxyView::Transactions => "automator67.rows_of_transactions",
            ProxyView::PreparedStatements => "automator67.rows_of_prepared_statements",
        }
    }

    /// The schema that it is in.
    pub fn schema(self) -> &'static str {
        match self {
            ProxyView::Shards
            | ProxyView::Pools
            | ProxyView::Sessions
            | ProxyView::Transactions => "automator67",
            ProxyView::PreparedStatements => "pg_catalog",
        }
    }

    /// The view's unqualified name.
    pub fn name(self) -> &'static str {
        match self {
            ProxyView::Shards => "shards",
            ProxyView::Pools => "pools",
            ProxyView::Sessions => "sessions",
            ProxyView::Transactions => "transactions",
            ProxyView::PreparedStatements => "pg_prepared_statements",
        }
    }

    /// Column names and SQL types, in order.
    pub fn columns(self) -> &'static [(&'static str, &'static str)] {
        match self {
            ProxyView::Shards => &[
                ("id", "integer"),
                ("name", "text"),
                ("host", "text"),
                ("port", "integer"),
                ("database", "text"),
                ("home", "boolean"),
                ("up", "boolean"),
                ("error", "text"),
            ],
            ProxyView::Pools => &[
                ("shard", "text"),
                ("username", "text"),
                ("size", "integer"),
                ("idle", "integer"),
                ("active", "integer"),
                ("waiting", "integer"),
                ("waits", "bigint"),
                ("wait_seconds", "double precision"),
            ],
            ProxyView::Sessions => &[
                ("pid", "integer"),
                ("username", "text"),
                ("application_name", "text"),
                ("client", "text"),
                ("state", "text"),
                ("statement_kind", "text"),
                ("tier", "text"),
                ("shards", "text"),
                ("pinned", "boolean"),
                ("connected_at", "timestamp with time zone"),
                ("statements", "bigint"),
            ],
            ProxyView::Transactions => &[
                ("gid", "text"),
                ("shard", "text"),
                ("anchor", "text"),
                ("state", "text"),
                ("prepared_at", "timestamp with time zone"),
                ("age_seconds", "double precision"),
                ("username", "text"),
            ],
            ProxyView::PreparedStatements => &[
                ("name", "text"),
                ("statement", "text"),
                ("parameter_types", "pg_catalog.regtype[]"),
                ("from_sql", "boolean"),
            ],
        }
    }
}

/// COPY ... FROM STDIN.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyIn {
    /// The target.
    pub table: QualifiedName,
    /// Where each row goes.
    pub destination: CopyDestination,
    /// How rows are laid out.
    pub format: CopyFormat,
    /// Sent to each shard instead of the client's text when columns were added; `None`: the
    /// client's own text.
    pub sql: Option<String>,
    /// Sequences (quoted, qualified) of which each row takes one value, appended as last columns.
    pub sequences: Vec<String>,
    /// A SELECT for each column whose default reads the transaction's time: its value is the same
    /// for all rows, and is appended behind those of sequences.
    pub timed: Vec<Template>,
    /// The names of the appended columns, unquoted.
    pub appended: Vec<String>,
}

/// Where COPY's rows go.
#[derive(Debug, Clone, PartialEq)]
pub enum CopyDestination {
    /// Every row to every shard (reference tables).
    EveryShard,
    /// Every row to the home shard (local tables).
    Home,
    /// Each row to the shard of its key.
    Key {
        /// 0-based field of the row that holds the key, or the n-th appended sequence.
        key: CopyKey,
        /// How the key is read and hashed.
        key_type: KeyType,
        /// The table's colocation group.
        group: u32,
    },
    /// Every row to the one shard of a colocation group.
    Whole {
        /// The table's colocation group.
        group: u32,
    },
}

/// Where a COPY row's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKey {
    /// In this field (0-based).
    Field(usize),
    /// It is the value drawn from `CopyIn::sequences[n]`.
    Sequence(usize),
}

/// The layout of a COPY stream, with Postgres's defaults resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFormat {
    /// FORMAT text.
    Text {
        /// One byte.
        delimiter: u8,
        /// The string that stands for NULL.
        null: String,
        /// The first line is a header.
        header: bool,
    },
    /// FORMAT csv.
    Csv {
        /// One byte.
        delimiter: u8,
        /// The string that stands for NULL (unquoted).
        null: String,
        /// The first line is a header.
        header: bool,
        /// One byte.
        quote: u8,
        /// One byte.
        escape: u8,
    },
    /// FORMAT binary.
    Binary,
}

/// COPY table TO STDOUT over all shards.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOut {
    /// The layout: only the first shard's header (csv, text) or signature and the last trailer
    /// (binary) are passed on.
    pub format: CopyFormat,
}

/// What a statement says to a transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionBlock {
    /// On all shards or on none, in one transaction.
    Inside,
    /// It may refuse one, and changes nothing that statements see: shard by shard where none is open.
    Unneeded,
    /// It refuses one: shard by shard.
    Refused,
}

impl TransactionBlock {
    pub(crate) fn refused_if(refused: bool) -> TransactionBlock {
        match refused {
            true => TransactionBlock::Refused,
            false => TransactionBlock::Inside,
        }
    }
}

/// A change of schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Ddl {
    /// How it goes with a transaction block.
    pub block: TransactionBlock,
    /// What each shard gets; `None`: the client's own text.
    pub sql: Option<String>,
    /// Runs on the home shard alone (temporary objects, databases ...).
    pub home_only: bool,
    /// For CREATE TABLE (not temporary): the new table's name as written, so that
    /// `automator67.auto_distribute` can act on it.
    pub creates_table: Option<QualifiedName>,
    /// Local tables that must have no rows: they get a foreign key to rows of other shards.
    pub must_be_empty: Vec<QualifiedName>,
    /// It makes a function, whose body may name temporary objects of the session: only the home shard
    /// can check it.
    pub checked_at_home: bool,
    /// What of the snapshot is another one behind it.
    pub touches: Touches,
}

/// What a change of the schema touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touches {
    /// Relations of these names, in whatever schema, and their sequences. They get columns, constraints
    /// or defaults, or are new; nothing is dropped.
    Relations(Vec<String>),
    /// It is not known.
    Everything,
}

/// BEGIN and friends.
#[derive(Debug, Clone, PartialEq)]
pub enum TransactionCommand {
    /// BEGIN, START TRANSACTION.
    Begin {
        /// What it says of the transaction.
        modes: TransactionModes,
        /// The tag is `START TRANSACTION`, not `BEGIN`.
        start: bool,
    },
    /// COMMIT, END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// PREPARE TRANSACTION, which is refused.
    Prepare,
    /// SAVEPOINT name.
    Savepoint(String),
    /// RELEASE SAVEPOINT name.
    Release(String),
    /// ROLLBACK TO SAVEPOINT name.
    RollbackTo(String),
    /// SET CONSTRAINTS.
    SetConstraints {
        /// It says ALL, and names nothing that would have to be there.
        all: bool,
        /// The statement without comments.
        replay: String,
    },
    /// SET TRANSACTION.
    SetTransaction(TransactionModes),
}

/// Modes of a transaction, as far as they are said (manual, "SET TRANSACTION"). Printed, they are
/// what stands behind BEGIN and SET TRANSACTION.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// ISOLATION LEVEL.
    pub isolation: Option<Isolation>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// DEFERRABLE or NOT DEFERRABLE.
    pub deferrable: Option<bool>,
}

impl TransactionModes {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == TransactionModes::default()
    }

    /// With what is said later.
    pub fn with(&self, later: &TransactionModes) -> TransactionModes {
        TransactionModes {
            isolation: later.isolation.or(self.isolation),
            read_only: later.read_only.or(self.read_only),
            deferrable: later.deferrable.or(self.deferrable),
        }
    }
}

impl fmt::Display for TransactionModes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(level) = self.isolation {
            write!(formatter, " ISOLATION LEVEL {}", level.name())?;
        }
        formatter.write_str(match self.read_only {
            None => "",
            Some(true) => " READ ONLY",
            Some(false) => " READ WRITE",
        })?;
        formatter.write_str(match self.deferrable {
            None => "",
            Some(true) => " DEFERRABLE",
            Some(false) => " NOT DEFERRABLE",
        })
    }
}

/// An isolation level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// READ UNCOMMITTED
    ReadUncommitted,
    /// READ COMMITTED
    ReadCommitted,
    /// REPEATABLE READ
    RepeatableRead,
    /// SERIALIZABLE
    Serializable,
}

impl Isolation {
    /// All of them.
    pub const ALL: [Isolation; 4] = [
        Isolation::ReadUncommitted,
        Isolation::ReadCommitted,
        Isolation::RepeatableRead,
        Isolation::Serializable,
    ];

    /// In SQL.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::ReadUncommitted => "READ UNCOMMITTED",
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::RepeatableRead => "REPEATABLE READ",
            Isolation::Serializable => "SERIALIZABLE",
        }
    }
}

/// SET and friends.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingCommand {
    /// SET name = value, SET ROLE.
    Set {
        /// Lower case.
        name: String,
        /// A whole statement that sets it again on another server: `SET name TO value`.
        replay: String,
        /// The value as plain text, for the proxy's own `automator67.*` settings; `None` is
        /// DEFAULT.
        value: Option<String>,
        /// SET LOCAL.
        local: bool,
    },
    /// `SELECT set_config(...)` of constants: SET, with a row as its answer.
    SetConfig {
        /// Lower case.
        name: String,
        /// A whole statement that sets it again on another server.
        replay: String,
        /// The value as plain text.
        value: String,
        /// For the transaction.
        local: bool,
    },
    /// SET SESSION CHARACTERISTICS: settings and their values.
    Characteristics(Vec<(String, String)>),
    /// A SELECT for the home shard that calls `set_config`.
    Configure(Vec<ConfigCall>),
    /// RESET name, SET name TO DEFAULT.
    Reset {
        /// Lower case.
        name: String,
        /// SET LOCAL name TO DEFAULT.
        local: bool,
        /// The command tag: `SET` where it says TO DEFAULT, else `RESET`.
        tag: &'static str,
    },
    /// RESET ALL.
    ResetAll,
    /// SHOW of one of the proxy's own settings (`automator67.*`).
    ShowOwn {
        /// Lower case.
        name: String,
    },
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD of something.
    Discard(Discarded),
}

/// What DISCARD lets go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// PLANS
    Plans,
    /// SEQUENCES
    Sequences,
    /// TEMP
    Temporary,
}

/// A call of `set_config`. What it sets is read afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigCall {
    /// Which setting.
    pub name: ConfigArgument,
    /// Whether only for the transaction.
    pub local: ConfigArgument,
}

/// An argument of `set_config`, as text.
#[derive(Debug, Clone, PartialEq)]
pub enum ConfigArgument {
    /// Known from the statement.
    Known(String),
    /// An expression without columns, perhaps with the statement's own `$n`.
    Expression(String),
}

/// EXPLAIN.
#[derive(Debug, Clone, PartialEq)]
pub struct Explain {
    /// The statement's own plan.
    pub plan: Box<Planned>,
    /// ANALYZE was asked for: the statement is executed.
    pub analyze: bool,
    /// `EXPLAIN (options) `, to be put before a statement that a shard explains.
    pub prefix: String,
    /// The explained statement's text.
    pub statement: String,
    /// FORMAT json.
    pub json: bool,
}

/// Why a statement is refused, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlanError {
    /// Five characters.
    pub sqlstate: &'static str,
    /// The primary message: lower case, no full stop.
    pub message: String,
    /// A sentence that says what stands in the way.
    pub detail: Option<String>,
    /// A sentence that says what to do.
    pub hint: Option<String>,
    /// The 1-based character position in the text that was planned.
    pub position: Option<usize>,
}

impl PlanError {
    /// An error without detail and hint.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        PlanError {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
        }
    }

    /// Something Postgres does and the proxy does not do over several shards.
    pub fn unsupported(message: impl Into<String>) -> Self {
        PlanError::new("0A000", message)
    }

    /// With a detail sentence.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
