//! The tables that generated writes change, and the rows that they start with.

/// A kind of table each: two colocated ones with a foreign key, one by a text key, one by a
/// column that is not first in its primary key, a reference table, a local table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Distributed by `id`, with a serial, a generated column, a CHECK and a trigger.
    Owners,
    /// Distributed by `owner`, colocated with [`Table::Owners`], which it refers to.
    Items,
    /// Distributed by its text key, with a trigger that counts updates.
    Tags,
    /// Distributed by `account`, with an identity column.
    Events,
    /// A copy on every shard.
    Rates,
    /// On the home shard, with a serial.
    Notes,
}

/// Every table.
pub const TABLES: [Table; 6] = [
    Table::Owners,
    Table::Items,
    Table::Tags,
    Table::Events,
    Table::Rates,
    Table::Notes,
];

/// The distributed tables and their shard keys.
pub const KEYS: [(&str, &str); 4] = [
    ("owners", "id"),
    ("items", "owner"),
    ("tags", "name"),
    ("events", "account"),
];

/// What else is compared after an episode: what triggers have written, the table of triggers of
/// statements, and the session's own.
const OTHERS: [(&str, &str); 3] = [
    (
        "journal",
        "select what, rows, total from journal order by what, rows, total",
    ),
    (
        "marks",
        "select owner, line, n from marks order by owner, line",
    ),
    ("drafts", "select id, body, n from drafts order by id"),
];

/// All rows of everything: a name, and what reads it.
pub fn contents() -> impl Iterator<Item = (&'static str, &'static str)> {
    let tables = TABLES.into_iter();
    tables
        .map(|table| (table.name(), table.contents()))
        .chain(OTHERS)
}

/// Columns whose values tell when a row was made: no two servers agree on them.
pub const CLOCKS: [&str; 1] = ["at"];
/// Columns that sequences fill.
pub const NUMBERS: [&str; 2] = ["ticket", "turn"];

impl Table {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Table::Owners => "owners",
            Table::Items => "items",
            Table::Tags => "tags",
            Table::Events => "events",
            Table::Rates => "rates",
            Table::Notes => "notes",
        }
    }

    /// A column that sequences fill.
    pub fn is_numbered(self) -> bool {
        matches!(self, Table::Owners | Table::Events | Table::Notes)
    }

    /// Reads all rows, in the order of a key.
    pub fn contents(self) -> &'static str {
        match self {
            Table::Owners => {
                "select id, name, score, grade, twice, touched, ticket from owners order by id"
            }
            Table::Items => "select owner, n, label, price, code from items order by owner, n",
            Table::Tags => "select name, weight, note, changed from tags order by name",
            Table::Events => {
                "select id, account, kind, amount, turn from events order by id, account"
            }
            Table::Rates => "select code, factor, note from rates order by code",
            Table::Notes => "select ref, body, ticket from notes order by ref",
        }
    }
}

/// Makes the tables, empty.
pub const CREATE: [&str; 19] = [
    "create table rates (code text primary key, factor int not null default 2 check (factor > 0), \
     note text)",
    "create table owners (id int primary key, name text not null default 'none', \
     score int not null default 0 check (score between -1000 and 1000), grade text, \
     twice int generated always as (score * 2) stored, touched int not null default 0, \
     ticket serial, at timestamptz not null default now())",
    "create table items (owner int not null references owners on delete cascade, n int not null, \
     label text, price numeric(10, 2) default 1.50, code text, primary key (owner, n))",
    "create table tags (name text primary key, weight int not null default 1, note text, \
     changed int not null default 0)",
    "create table events (id int not null, account bigint not null, kind text not null default 'k', \
     amount int, turn int generated always as identity, at timestamptz not null default current_timestamp, \
     primary key (id, account))",
    "create table notes (ticket serial primary key, body text, ref int not null unique, \
     at timestamptz default now())",
    "create table journal (what text, rows bigint, total bigint)",
    "create table marks (owner int, line int, n int, primary key (owner, line))",
    "create function grade_owner() returns trigger language plpgsql as $$ begin \
     if new.score > 800 then new.grade := 'r1'; end if; \
     if tg_op = 'UPDATE' then new.touched := old.touched + 1; end if; return new; end $$",
    "create function count_change() returns trigger language plpgsql as $$ begin \
     new.changed := old.changed + 1; return new; end $$",
    "create trigger grade before insert or update on owners for each row execute function grade_owner()",
    "create trigger counted before update on tags for each row execute function count_change()",
    "create function note_rows() returns trigger language plpgsql as $$ begin \
     insert into journal select tg_op, count(*), sum(ref) from changed; return null; end $$",
    "create function note_statement() returns trigger language plpgsql as $$ begin \
     insert into journal values (tg_op || ' ' || tg_when, null, null); return null; end $$",
    "create trigger inserted after insert on notes referencing new table as changed \
     for each statement execute function note_rows()",
    "create trigger updated after update on notes referencing old table as changed \
     for each statement execute function note_rows()",
    "create trigger deleted before delete on notes for each statement execute function note_statement()",
    "create function count_marks() returns trigger language plpgsql as $$ begin \
     if (select count(*) from added) > 3 then raise 'too many rows at once'; end if; return null; end $$",
    "create trigger few after insert on marks referencing new table as added \
     for each statement execute function count_marks()",
];

/// Places them on shards.
pub const PLACE: [&str; 7] = [
    "select create_reference_table('rates')",
    "select create_distributed_table('owners', 'id')",
    "select create_distributed_table('items', 'owner', colocate_with => 'owners')",
    "alter table items add foreign key (code) references rates",
    "select create_distributed_table('tags', 'name')",
    "select create_distributed_table('events', 'account')",
    "select create_distributed_table('marks', 'owner')",
];

/// What plain Postgres needs instead of [`PLACE`].
pub const COMPLETE: [&str; 1] = ["alter table items add foreign key (code) references rates"];

/// Makes every table what it is at the start of an episode.
pub const RESET: [&str; 12] = [
    "truncate owners, items, tags, events, rates, notes restart identity",
    "insert into rates select 'r' || g, g, 'rate ' || g from generate_series(1, 5) g",
    "insert into owners (id, name, score, grade) select g, 'n' || g % 10, g * 7 % 50, \
     case when g % 3 > 0 then 'r' || g % 5 + 1 end from generate_series(1, 30) g order by g",
    "insert into items (owner, n, label, price, code) select g % 30 + 1, g, 'w' || g % 7, g * 0.25, \
     case when g % 4 > 0 then 'r' || g % 5 + 1 end from generate_series(1, 60) g",
    "insert into tags (name, weight, note) select 't' || g, g % 6, 'n' || g % 4 \
     from generate_series(1, 15) g",
    "insert into events (id, account, kind, amount) select g, g % 12, 'k' || g % 5, \
     nullif(g * 3 % 20, 0) from generate_series(1, 40) g order by g",
    "insert into notes (body, ref) select 'n' || g % 8, g from generate_series(1, 12) g order by g",
    "create temporary table if not exists drafts (id int primary key, body text, n int)",
    "create or replace temporary view recent as select id, body, n from drafts where n > 2",
    "truncate drafts",
    "insert into drafts select g, 'd' || g % 4, g % 7 from generate_series(1, 9) g",
    "truncate journal, marks",
];
