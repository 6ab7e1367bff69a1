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
pub const CREATE: [&str; 10] = [
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
     amount int, turn int generated always as identity, primary key (id, account))",
    "create table notes (ticket serial primary key, body text, ref int not null unique)",
    "create function grade_owner() returns trigger language plpgsql as $$ begin \
     if new.score > 800 then new.grade := 'r1'; end if; \
     if tg_op = 'UPDATE' then new.touched := old.touched + 1; end if; return new; end $$",
    "create function count_change() returns trigger language plpgsql as $$ begin \
     new.changed := old.changed + 1; return new; end $$",
    "create trigger grade before insert or update on owners for each row execute function grade_owner()",
    "create trigger counted before update on tags for each row execute function count_change()",
];

/// Places them on shards.
pub const PLACE: [&str; 6] = [
    "select create_reference_table('rates')",
    "select create_distributed_table('owners', 'id')",
    "select create_distributed_table('items', 'owner', colocate_with => 'owners')",
    "alter table items add foreign key (code) references rates",
    "select create_distributed_table('tags', 'name')",
    "select create_distributed_table('events', 'account')",
];

/// What plain Postgres needs instead of [`PLACE`].
pub const COMPLETE: [&str; 1] = ["alter table items add foreign key (code) references rates"];

/// Makes every table what it is at the start of an episode.
pub const RESET: [&str; 7] = [
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
];
