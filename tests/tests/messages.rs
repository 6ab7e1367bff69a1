//! Random orders of messages on plain Postgres and on one and three shards: the same answers in the
//! same order, the same status, the same rows behind them.
//!
//! `AUTOMATOR67_CONVERSATIONS` says how many, `AUTOMATOR67_SEED` which ones, `AUTOMATOR67_FIRST` the
//! number of the first. A difference names seed and number: with these two and one conversation it
//! runs again alone.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    batch::Batch,
    postgres::Plain,
    wire::{Closed, Connection, Frame, Server},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

const DEFAULT_SEED: u64 = 20_240_229;
const DEFAULT_CONVERSATIONS: u64 = 400;
const MESSAGES_MAX: usize = 24;
const MOST_DIFFERENCES: usize = 10;
/// Whoever is silent for longer has forgotten an answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Rows of several shards and of one, and what has no rows.
const STATEMENTS: &[&str] = &[
    "update spread set v = v + 1 returning id",
    "update spread set v = v + 1",
    "update spread set v = v + 1 where id = 3 returning v",
    "insert into spread values (11, 0), (12, 0), (13, 0), (14, 0)",
    "insert into spread values (21, 0), (22, 0), (23, 0) returning id",
    "insert into spread values (31, 0)",
    "delete from spread where id > 10 returning id",
    "delete from spread where v > 1000",
    "with w as (update spread set v = 7 returning id) select id from w",
    "select id from spread order by id",
    "select count(*) from spread",
    "select v from spread where id = 1",
    "insert into note values (1), (2) returning n",
    "update note set n = n + 1",
    "select 1",
    "show datestyle",
    "set extra_float_digits = 1",
    "set extra_float_digits = 0",
    "begin",
    "commit",
    "rollback",
    "savepoint a",
    "rollback to a",
    "release a",
    "select 1 / (id - id) from spread",
    "select 1 / (id - id) from spread where id = 2",
    "nonsense",
    "",
];
const STATEMENT_NAMES: &[&str] = &["", "", "s", "t"];
const PORTALS: &[&str] = &["", "", "p", "q"];
const LIMITS: &[u32] = &[0, 0, 1, 2, 3, 50];

/// Messages in words, and as bytes.
struct Conversation {
    words: Vec<String>,
    batch: Batch,
}

impl Conversation {
    fn of(seed: u64, number: u64) -> Conversation {
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut conversation = Conversation {
            words: Vec::new(),
            batch: Batch::new(),
        };
        for _ in 0..random.random_range(3..MESSAGES_MAX) {
            conversation.say(&mut random);
        }
        conversation.add("Sync".to_owned(), |batch| batch.sync());
        conversation
    }

    fn add(&mut self, words: String, message: impl FnOnce(Batch) -> Batch) {
        self.words.push(words);
        self.batch = message(std::mem::take(&mut self.batch));
    }

    fn say(&mut self, random: &mut StdRng) {
        let mut pick = |from: &[&'static str]| *from.choose(random).expect("a choice");
        let (text, statement, portal) = (pick(STATEMENTS), pick(STATEMENT_NAMES), pick(PORTALS));
        let limit = *LIMITS.choose(random).expect("a choice");
        match random.random_range(0..100) {
            0..20 => {
                self.add(format!("Parse {statement:?}: {text}"), |it| {
                    it.parse(statement, text)
                });
                self.add(format!("Bind {portal:?} {statement:?}"), |it| {
                    it.bind(portal, statement, &[])
                });
                self.add(format!("Execute {portal:?} {limit}"), |it| {
                    it.execute(portal, limit)
                });
            }
            20..30 => self.add(format!("Parse {statement:?}: {text}"), |it| {
                it.parse(statement, text)
            }),
            30..42 => self.add(format!("Bind {portal:?} {statement:?}"), |it| {
                it.bind(portal, statement, &[])
            }),
            42..62 => self.add(format!("Execute {portal:?} {limit}"), |it| {
                it.execute(portal, limit)
            }),
            62..66 => self.add(format!("Describe {portal:?}"), |it| {
                it.describe('P', portal)
            }),
            66..70 => self.add(format!("Close {portal:?}"), |it| it.close('P', portal)),
            70..73 => self.add(format!("Close statement {statement:?}"), |it| {
                it.close('S', statement)
            }),
            73..82 => self.add("Sync".to_owned(), |it| it.sync()),
            82..86 => self.add("Flush".to_owned(), |it| it.flush()),
            86..89 => self.add("FunctionCall lo_creat".to_owned(), |it| {
                it.message(b'F', CREATE_LARGE_OBJECT)
            }),
            _ => self.add(format!("Query {text}"), |it| it.query(text)),
        }
    }
}

/// `lo_creat(-1)`: its OID, one format (binary), one argument, the result's format.
const CREATE_LARGE_OBJECT: &[u8] =
    b"\0\0\x03\xbd\0\x01\0\x01\0\x01\0\0\0\x04\xff\xff\xff\xff\0\x01";

/// A message as far as servers agree on it.
fn told(frame: &Frame) -> Option<String> {
    Some(match frame.tag {
        b'N' | b'A' | b'S' => return None,
        b'E' => format!("E({})", frame.field(b'C').unwrap_or_default()),
        b'C' => format!("C({})", frame.text()),
        b'Z' => format!("Z({})", char::from(frame.body[0])),
        other => char::from(other).to_string(),
    })
}

/// What a server answers until it has closed the connection.
fn answers(server: &Server, conversation: &Conversation) -> Result<String> {
    let mut connection = Connection::open(server)?;
    connection.set_read_limit(SILENCE)?;
    connection.send(conversation.batch.bytes())?;
    connection.send(b"X\0\0\0\x04")?;
    let mut all = String::new();
    loop {
        match connection.receive() {
            Ok(frame) => all.extend(told(&frame)),
            Err(error) if error.is::<Closed>() => return Ok(all),
            Err(error) => {
                write!(all, " then {error:#}")?;
                return Ok(all);
            }
        }
    }
}

/// A server, with a connection that looks after the tables.
struct Peer {
    name: String,
    server: Server,
    keeper: Connection,
}

impl Peer {
    fn new(name: String, server: &Server, distribute: bool) -> Result<Peer> {
        let mut keeper = Connection::open(server)?;
        keeper.execute("create table spread (id bigint primary key, v bigint)")?;
        keeper.execute("create table note (n bigint)")?;
        if distribute {
            keeper.execute("select create_distributed_table('spread', 'id')")?;
        }
        Ok(Peer {
            name,
            server: server.clone(),
            keeper,
        })
    }

    /// What it answers, and what it has then.
    fn run(&mut self, conversation: &Conversation) -> Result<String> {
        self.keeper.execute("truncate spread, note")?;
        self.keeper
            .execute("insert into spread select i, 0 from generate_series(1, 7) i")?;
        let answers = answers(&self.server, conversation)?;
        // Locks of what was left open are gone soon; rows are those of what was committed.
        let rows = "select string_agg(id || '=' || v, ' ' order by id) from spread";
        let spread = self.keeper.execute(rows)?.unwrap_or_default();
        let note = "select string_agg(n::text, ' ' order by n) from note";
        let note = self.keeper.execute(note)?.unwrap_or_default();
        Ok(format!("{answers}\n  spread {spread}\n  note {note}"))
    }
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn messages_are_answered_in_their_order() {
    compare().expect("all conversations are alike");
}

fn compare() -> Result<()> {
    let seed = number("AUTOMATOR67_SEED", DEFAULT_SEED);
    let first = number("AUTOMATOR67_FIRST", 0);
    let count = number("AUTOMATOR67_CONVERSATIONS", DEFAULT_CONVERSATIONS);
    eprintln!("{count} conversations of seed {seed} from {first}");
    let plain = Plain::start()?;
    let one = Dev::start(1)?;
    let three = Dev::start(3)?;
    let mut expected = Peer::new("plain Postgres".to_owned(), &plain.server, false)?;
    let mut peers = Vec::new();
    for (shards, dev) in [(1, &one), (3, &three)] {
        peers.push(Peer::new(format!("{shards} shards"), dev.server(), true)?);
    }
    let mut differences = Vec::new();
    for number in first..first + count {
        let conversation = Conversation::of(seed, number);
        let right = expected.run(&conversation)?;
        for peer in &mut peers {
            let got = peer
                .run(&conversation)
                .with_context(|| format!("conversation {number} on {}", peer.name))?;
            if got != right {
                differences.push(format!(
                    "== seed {seed} conversation {number} on {}\n{}\n- {right}\n+ {got}\n",
                    peer.name,
                    conversation.words.join("\n")
                ));
            }
        }
        if differences.len() >= MOST_DIFFERENCES {
            break;
        }
    }
    ensure!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}
