//! What code leaves in a server session when its transaction is over: settings, the role, locks,
//! temporary objects ...
//!
//! Server connections are shared, so what one client's statement leaves behind would be the next
//! client's. The text of a statement does not tell: functions, triggers, defaults, policies do it
//! as well. So every routine is judged by its body, and a statement by the names in its text. A
//! name too many costs a reset of the connection; a name too few would be a leak, so whatever runs
//! code that is not known counts as [`Residue::may_keep`].

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::{BitOr, BitOrAssign},
};

use serde::{Deserialize, Serialize};

use super::{document::Function, safety};
use crate::{
    gather::folded,
    normalise::{Token, TokenKind, tokens},
};

mod reader;
mod settings;

pub(crate) use reader::Reader;
use reader::calls;
pub use settings::{MadeSettings, custom_names, is_custom_name};

/// What a statement may leave in its server session beyond its transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residue {
    /// Known to leave something that a server keeps for the session.
    pub keeps: bool,
    /// Runs code that is not known, so it may.
    pub may_keep: bool,
    /// No command takes it back, only the end of the connection.
    pub lasting: bool,
    /// Code in a server may move sequences, of which `lastval` would speak.
    pub moves_sequence: bool,
    /// Code in a server calls `currval` or `lastval`.
    pub reads_sequence: bool,
    /// It asks for settings by name.
    pub reads_setting: bool,
    /// Code in a server may make settings.
    pub settings: MadeSettings,
}

impl Residue {
    /// Nothing.
    pub const NONE: Residue = Residue {
        keeps: false,
        may_keep: false,
        lasting: false,
        moves_sequence: false,
        reads_sequence: false,
        reads_setting: false,
        settings: MadeSettings::None,
    };
    /// Nothing, but it asks for settings.
    pub(crate) const READS_SETTING: Residue = Residue {
        reads_setting: true,
        ..Residue::NONE
    };
    /// Something that no command takes back.
    pub(crate) const KEEPS_LASTING: Residue = Residue {
        keeps: true,
        lasting: true,
        ..Residue::NONE
    };
    /// Code in a language that is not looked into.
    const UNKNOWN_CODE: Residue = Residue {
        may_keep: true,
        lasting: true,
        moves_sequence: true,
        reads_sequence: true,
        reads_setting: true,
        keeps: false,
        settings: MadeSettings::None,
    };

    /// The same of code that may run with statements that do not name it: it is looked for
    /// afterwards, so that not every session keeps its connections.
    fn looked_for(self) -> Residue {
        Residue {
            keeps: false,
            may_keep: self.stays(),
            settings: MadeSettings::None,
            ..self
        }
    }

    /// The connection must not go to another client as it is.
    pub fn stays(self) -> bool {
        self.keeps || self.may_keep
    }
}

impl BitOr for Residue {
    type Output = Residue;

    fn bitor(self, other: Residue) -> Residue {
        Residue {
            keeps: self.keeps | other.keeps,
            may_keep: self.may_keep | other.may_keep,
            lasting: self.lasting | other.lasting,
            moves_sequence: self.moves_sequence | other.moves_sequence,
            reads_sequence: self.reads_sequence | other.reads_sequence,
            reads_setting: self.reads_setting | other.reads_setting,
            settings: self.settings.max(other.settings),
        }
    }
}

impl BitOrAssign for Residue {
    fn bitor_assign(&mut self, other: Residue) {
        *self = *self | other;
    }
}

/// The part of the catalog document that only this file needs. Lists without members are null.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct Routes {
    /// Functions that run without being named: of casts, operator classes, ranges and domains.
    implicit: Option<Vec<u32>>,
    /// Functions of event triggers.
    definitions: Option<Vec<u32>>,
    /// Writing to the first relation may write to the second: rules, children, foreign keys.
    follows: Option<Vec<(u32, u32)>>,
    /// Writing to the first relation reads the second: foreign keys, from both sides.
    looks_up: Option<Vec<(u32, u32)>>,
    /// Volatile functions of extensions that are not known to keep nothing: name, extension.
    extension_functions: Option<Vec<(String, String, u32)>>,
    /// Built-in functions that keep something, or run a text.
    built_in: Option<Vec<(u32, String)>>,
    /// Operators that are such functions.
    operators: Option<Vec<(String, u32)>>,
    /// What expressions that are stored call beside what `relation_calls` has: whose they are, when
    /// they run, and the function.
    stored_calls: Option<Vec<(u32, Runs, u32)>>,
    /// Functions in language `internal` that are not made by CREATE TYPE or CREATE AGGREGATE.
    internal: Option<Vec<u32>>,
}

/// When a stored expression runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Runs {
    /// With what writes to a relation.
    Write,
    /// And with what reads it, be it only while that is planned.
    Read,
    /// With calls of a function.
    Call,
    /// With any statement: it is a domain's or a cast's.
    Implicit,
}

/// A relation as this file sees it.
pub(super) struct Rows<'a> {
    pub oid: u32,
    pub name: &'a str,
    /// A view, or a table with policies: reading it runs what it calls.
    pub calls_when_read: bool,
}

/// Everything the judgement is made of.
pub(super) struct Sources<'a> {
    pub functions: &'a [Function],
    /// Function -> function.
    pub calls: &'a [(u32, u32)],
    pub operators: &'a [(String, u32)],
    pub relations: Vec<Rows<'a>>,
    /// Relation -> function of a trigger.
    pub triggers: Vec<(u32, u32)>,
    /// Relation -> function of a view, rule, default, check, index or policy.
    pub relation_calls: &'a [(u32, u32)],
    /// View -> relation.
    pub view_reads: &'a [(u32, u32)],
    pub routes: &'a Routes,
}

/// What each name in a statement may leave behind.
#[derive(Debug, Clone, Default)]
pub struct Residues {
    functions: HashMap<String, Residue>,
    operators: HashMap<String, Residue>,
    reads: HashMap<String, Residue>,
    writes: HashMap<String, Residue>,
    /// Of functions that nothing in a text names.
    implicit: Residue,
    /// Of commands that go through relations without naming them: ANALYZE, VACUUM ...
    maintenance: Residue,
    /// Of event triggers.
    definitions: Residue,
    /// There is code whose residue only the end of the connection takes away.
    any_lasting: bool,
    /// Custom settings that bodies name.
    custom_settings: BTreeSet<String>,
}

/// Operators that key words stand for: IN, BETWEEN, LIKE, USING, DISTINCT ...
const UNNAMED_OPERATORS: &[&str] = &[
    "=", "<>", "<", ">", "<=", ">=", "~~", "!~~", "~~*", "!~~*", "~", "!~",
];

/// Built-in functions that change the session.
const KEEPING: &[&str] = &["setseed"];
/// Those whose trace no command takes back.
const KEEPING_LASTING: &[&str] = &[
    "pg_replication_origin_session_setup",
    "pg_create_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_copy_logical_replication_slot",
    "pg_backup_start",
    "pg_start_backup",
];
/// Built-in functions that run SQL given as text.
const DYNAMIC: &[&str] = &["ts_stat", "ts_rewrite"];
const DYNAMIC_PREFIXES: &[&str] = &[
    "query_to_xml",
    "table_to_xml",
    "cursor_to_xml",
    "schema_to_xml",
    "database_to_xml",
];
/// Words of statements that change rows.
const CHANGES: &[&str] = &["insert", "update", "delete", "merge", "truncate", "copy"];
/// Words of statements that may set off event triggers.
const DEFINES: &[&str] = &[
    "create", "alter", "drop", "grant", "revoke", "comment", "refresh", "reindex", "import",
    "security",
];
/// Words of commands that run expressions of all tables, or of a table by the name of its index.
const MAINTAINS: &[&str] = &["analyze", "analyse", "vacuum", "cluster", "reindex"];
/// What CREATE may be followed by where it makes something in the first schema of `search_path`,
/// which may be the temporary one.
const MAKES: &[&str] = &[
    "aggregate",
    "collation",
    "domain",
    "foreign",
    "function",
    "operator",
    "or",
    "procedure",
    "recursive",
    "sequence",
    "table",
    "type",
    "unlogged",
    "view",
];
/// Words of code in which a sequence may be moved.
const MOVES_SEQUENCE: &[&str] = &["nextval", "setval", "insert", "merge", "copy"];
/// Extensions of which functions are in the document for what they read, and keep nothing.
const STATELESS: &[&str] = &["autoinc", "lo", "refint"];
/// A string that is executed may hold another, and so on.
const NESTED_MAX: usize = 4;

/// Judges all functions, and all names by them.
pub(super) fn judge(sources: &Sources<'_>) -> Residues {
    let codes: Vec<Code> = sources
        .functions
        .iter()
        .map(|one| code(one, sources))
        .collect();
    let mut verdicts: Vec<Residue> = codes.iter().map(|code| code.own).collect();
    let places: HashMap<u32, usize> = sources
        .functions
        .iter()
        .enumerate()
        .map(|(place, function)| (function.oid, place))
        .collect();
    let others = others(sources.routes);
    // Each round adds at least one flag to a verdict.
    loop {
        let of = |oid: &u32| match places.get(oid) {
            Some(at) => verdicts[*at],
            None if *oid == safety::TEMPORARY => Residue::UNKNOWN_CODE,
            None => others.get(oid).copied().unwrap_or_default(),
        };
        let residues = by_name(sources, &of);
        let mut next: Vec<Residue> = codes
            .iter()
            .zip(&verdicts)
            .map(|(code, verdict)| *verdict | residues.of_code(code))
            .collect();
        let stored = sources.routes.stored(Runs::Call);
        for (caller, callee) in sources.calls.iter().copied().chain(stored) {
            if let Some(at) = places.get(&caller) {
                next[*at] |= of(&callee);
            }
        }
        if next == verdicts {
            let bodies = sources
                .functions
                .iter()
                .filter_map(|one| one.body.as_deref());
            return Residues {
                custom_settings: bodies.flat_map(settings::custom_names).collect(),
                ..residues
            };
        }
        verdicts = next;
    }
}

fn add_new(pairs: &mut Vec<(u32, u32)>, others: impl IntoIterator<Item = (u32, u32)>) {
    for pair in others {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
}

/// What functions leave behind that have no place among the sources.
fn others(routes: &Routes) -> HashMap<u32, Residue> {
    let extensions = routes.extension_functions.iter().flatten();
    let extensions = extensions.map(|(name, extension, oid)| (*oid, of_extension(name, extension)));
    let built_in = routes.built_in.iter().flatten();
    let built_in = built_in.map(|(oid, name)| (*oid, of_built_in(name)));
    extensions.chain(built_in).collect()
}

/// A built-in function of [`Routes::built_in`]. What a setting is, and for how long, is in its
/// arguments, which are not looked into.
fn of_built_in(name: &str) -> Residue {
    let mut code = Code::default();
    code.note_call(name);
    Residue {
        keeps: code.own.keeps || name == "set_config" || locks_session(name),
        may_keep: code.dynamic,
        lasting: code.own.lasting || code.dynamic,
        moves_sequence: code.dynamic,
        reads_sequence: code.dynamic,
        reads_setting: code.dynamic,
        // What the call is given is not in the text.
        settings: match name {
            "set_config" => MadeSettings::Computed,
            _ => MadeSettings::None,
        },
    }
}

/// Advisory locks that outlive the transaction.
fn locks_session(name: &str) -> bool {
    (name.starts_with("pg_advisory_") || name.starts_with("pg_try_advisory_"))
        && !name.contains("_xact_")
}

impl Routes {
    /// Relations, and functions that stored expressions of theirs call.
    pub fn relation_calls(&self) -> impl Iterator<Item = (u32, u32)> {
        self.stored(Runs::Write).chain(self.stored(Runs::Read))
    }

    /// See [`Routes::follows`].
    pub fn follows(&self) -> impl Iterator<Item = (u32, u32)> {
        self.follows.iter().flatten().copied()
    }

    /// A stored expression of the relation calls something.
    pub fn calls_of(&self, relation: u32) -> bool {
        self.relation_calls().any(|(owner, _)| owner == relation)
    }

    /// Adds pairs of foreign keys that are not there.
    pub fn add(&mut self, follows: Vec<(u32, u32)>, looks_up: Vec<(u32, u32)>) {
        add_new(self.follows.get_or_insert_default(), follows);
        let both = looks_up.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]);
        add_new(self.looks_up.get_or_insert_default(), both);
    }

    /// Owners and functions of the stored expressions that run then.
    fn stored(&self, wanted: Runs) -> impl Iterator<Item = (u32, u32)> {
        let all = self.stored_calls.iter().flatten();
        all.filter(move |(_, runs, _)| *runs == wanted)
            .map(|(owner, _, function)| (*owner, *function))
    }
}

/// What names stand for, if functions leave behind what `of` says.
fn by_name(sources: &Sources<'_>, of: &dyn Fn(&u32) -> Residue) -> Residues {
    let routes = sources.routes;
    let mut residues = Residues::default();
    let all = |list: &Option<Vec<u32>>| {
        let list = list.iter().flatten();
        list.fold(Residue::NONE, |all, oid| all | of(oid))
    };
    residues.implicit = all(&routes.implicit);
    for (_, function) in routes.stored(Runs::Implicit) {
        residues.implicit |= of(&function).looked_for();
    }
    residues.definitions = all(&routes.definitions);
    for function in sources.functions {
        add(&mut residues.functions, &function.name, of(&function.oid));
    }
    for (name, extension, _) in routes.extension_functions.iter().flatten() {
        add(&mut residues.functions, name, of_extension(name, extension));
    }
    let operators = routes.operators.as_deref().unwrap_or_default();
    for (name, function) in sources.operators.iter().chain(operators) {
        let residue = of(function);
        add(&mut residues.operators, name, residue);
        if UNNAMED_OPERATORS.contains(&name.as_str()) {
            residues.implicit |= residue.looked_for();
        }
    }
    let (reads, writes) = by_relation(sources, of);
    let all_reads = reads.values().fold(Residue::NONE, |all, one| all | *one);
    residues.maintenance = all_reads.looked_for();
    for relation in &sources.relations {
        let at = |list: &HashMap<u32, Residue>| list.get(&relation.oid).copied();
        add(
            &mut residues.reads,
            relation.name,
            at(&reads).unwrap_or_default(),
        );
        add(
            &mut residues.writes,
            relation.name,
            at(&writes).unwrap_or_default(),
        );
    }
    let maps = [&residues.functions, &residues.reads, &residues.writes];
    residues.any_lasting = maps.iter().any(|map| map.values().any(|one| one.lasting));
    residues
}

fn add(map: &mut HashMap<String, Residue>, name: &str, residue: Residue) {
    if residue != Residue::NONE {
        *map.entry(name.to_owned()).or_default() |= residue;
    }
}

/// What reading and what writing to each relation may leave behind.
fn by_relation(
    sources: &Sources<'_>,
    of: &dyn Fn(&u32) -> Residue,
) -> (HashMap<u32, Residue>, HashMap<u32, Residue>) {
    let mut reads: HashMap<u32, Residue> = HashMap::new();
    let mut writes: HashMap<u32, Residue> = HashMap::new();
    let called_when_read: HashSet<u32> = sources
        .relations
        .iter()
        .filter(|relation| relation.calls_when_read)
        .map(|relation| relation.oid)
        .collect();
    for (relation, function) in sources.triggers.iter().chain(sources.relation_calls) {
        *writes.entry(*relation).or_default() |= of(function);
    }
    for (relation, function) in sources.relation_calls {
        if called_when_read.contains(relation) {
            *reads.entry(*relation).or_default() |= of(function);
        }
    }
    for (relation, function) in sources.routes.stored(Runs::Write) {
        *writes.entry(relation).or_default() |= of(&function);
    }
    for (relation, function) in sources.routes.stored(Runs::Read) {
        *reads.entry(relation).or_default() |= of(&function);
    }
    let follows = sources.routes.follows.as_deref().unwrap_or_default();
    let spread = |map: &mut HashMap<u32, Residue>, pairs: &[(u32, u32)]| {
        let mut spread = false;
        for (from, to) in pairs {
            let after = map.get(to).copied().unwrap_or_default();
            let before = map.get(from).copied().unwrap_or_default();
            if before | after != before {
                map.insert(*from, before | after);
                spread = true;
            }
        }
        spread
    };
    while spread(&mut reads, sources.view_reads) | spread(&mut reads, follows) {}
    for (relation, residue) in &reads {
        *writes.entry(*relation).or_default() |= *residue;
    }
    for (relation, looked_up) in sources.routes.looks_up.iter().flatten() {
        if let Some(residue) = reads.get(looked_up) {
            *writes.entry(*relation).or_default() |= *residue;
        }
    }
    while spread(&mut writes, sources.view_reads) | spread(&mut writes, follows) {}
    (reads, writes)
}

/// A function of an extension that is not looked into.
fn of_extension(name: &str, extension: &str) -> Residue {
    match extension {
        // set_limit sets a setting.
        "pg_trgm" => Residue {
            lasting: false,
            ..Residue::UNKNOWN_CODE
        },
        "dblink" if name.starts_with("dblink_connect") => Residue::KEEPS_LASTING,
        "dblink" => Residue::NONE,
        _ => Residue::UNKNOWN_CODE,
    }
}

/// Words and operators of a text, and what it does by itself.
#[derive(Debug, Default)]
struct Code {
    names: HashSet<String>,
    operators: HashSet<String>,
    own: Residue,
    /// It runs a text that is not known.
    dynamic: bool,
    /// It changes rows.
    changes: bool,
}

fn code(function: &Function, sources: &Sources<'_>) -> Code {
    let only = |own| Code {
        own,
        ..Code::default()
    };
    match function.extension.as_deref() {
        None => {}
        Some("dblink") => return only(of_extension(&function.name, "dblink")),
        Some(known) if STATELESS.contains(&known) => return Code::default(),
        // Those are in the document because they run SQL given as text.
        Some(_) => {
            return Code {
                dynamic: true,
                ..Code::default()
            };
        }
    }
    match (function.language.as_str(), &function.body) {
        ("plpgsql", Some(body)) => Code::of_body(body, 0),
        ("sql", Some(body)) => {
            let mut code = Code::of_body(body, 0);
            code.own.may_keep |= selects_into(body);
            code
        }
        // CREATE TYPE and CREATE AGGREGATE make such functions.
        ("internal", _) => {
            let internal = sources.routes.internal.as_deref().unwrap_or_default();
            only(if internal.contains(&function.oid) {
                Residue::UNKNOWN_CODE
            } else {
                Residue::NONE
            })
        }
        _ => only(Residue::UNKNOWN_CODE),
    }
}

impl Residues {
    /// Custom settings (`app.tenant`) that bodies of functions name.
    pub fn custom_settings(&self) -> &BTreeSet<String> {
        &self.custom_settings
    }

    /// What a statement may leave behind, by the names in its text.
    pub(crate) fn of_statement(&self, text: &str, defines: bool) -> Residue {
        let code = Code::of_statement(text);
        let definitions = if defines {
            self.definitions
        } else {
            Residue::NONE
        };
        let changes = code.changes || defines;
        self.of_code(&Code { changes, ..code }) | definitions
    }

    /// The same for a DO block.
    pub(crate) fn of_block(&self, language: &str, body: &str) -> Residue {
        match language {
            "sql" | "plpgsql" => self.of_code(&Code::of_body(body, 0)),
            _ => Residue::UNKNOWN_CODE,
        }
    }

    /// A statement of which nothing is known.
    pub(crate) fn of_unknown(&self) -> Residue {
        Residue {
            keeps: false,
            may_keep: true,
            lasting: self.any_lasting,
            moves_sequence: true,
            reads_sequence: true,
            reads_setting: true,
            settings: MadeSettings::Named,
        }
    }

    fn of_code(&self, code: &Code) -> Residue {
        let mut residue = code.own | self.implicit;
        if code.dynamic {
            residue |= self.of_unknown();
        }
        let defines = || DEFINES.iter().any(|word| code.names.contains(*word));
        if self.definitions != Residue::NONE && defines() {
            residue |= self.definitions;
        }
        if self.maintenance != Residue::NONE
            && MAINTAINS.iter().any(|word| code.names.contains(*word))
        {
            residue |= self.maintenance;
        }
        let relations = if code.changes {
            &self.writes
        } else {
            &self.reads
        };
        for (names, map) in [
            (&code.names, &self.functions),
            (&code.names, relations),
            (&code.operators, &self.operators),
        ] {
            if !map.is_empty() {
                let found = names.iter().filter_map(|name| map.get(name));
                residue = found.fold(residue, |all, one| all | *one);
            }
        }
        residue
    }
}

impl Code {
    /// A statement of a client: what it says itself is known to whoever runs it, except for the
    /// functions that change the session unseen.
    fn of_statement(text: &str) -> Code {
        let list = tokens(text);
        let mut code = Code::default();
        for at in 0..list.len() {
            code.note_token(text, &list, at);
        }
        code
    }

    /// The body of a routine.
    fn of_body(text: &str, nested: usize) -> Code {
        let list = tokens(text);
        let mut code = Code::default();
        let reader = Reader { text, list: &list };
        for at in 0..list.len() {
            code.note_token(text, &list, at);
            code.note_command(&reader, at, nested);
        }
        if reader.makes_temporary() {
            code.own.keeps = true;
        } else {
            code.own.may_keep |= reader.makes_in_first_schema();
        }
        let mut words = MOVES_SEQUENCE.iter();
        code.own.moves_sequence |= words.any(|word| code.names.contains(*word));
        // What is behind a token without an end is not known, and neither is an escaped name.
        let complete = list.last().is_none_or(|last| {
            let rest = text[last.end..].trim_start();
            rest.is_empty() || rest.starts_with("--") || rest.starts_with("/*")
        });
        code.dynamic |= !complete;
        // Of a text that is put together, what is set cannot be seen afterwards.
        if code.dynamic && list.iter().any(|token| reader.sets_in_string(*token)) {
            code.own.keeps = true;
        }
        if code.dynamic && list.iter().any(|token| reader.computes_setting(*token)) {
            code.make(MadeSettings::Computed);
        }
        code
    }

    fn note_token(&mut self, text: &str, list: &[Token], at: usize) {
        let spelled = &text[list[at].start..list[at].end];
        match list[at].kind {
            TokenKind::Operator => self.note_operator(text, list, at),
            TokenKind::Word => {
                let word = folded(spelled);
                self.changes |= CHANGES.contains(&word.as_str());
                if calls(list, at) {
                    self.note_call(&word);
                }
                self.names.insert(word);
            }
            TokenKind::QuotedIdentifier => {
                let name = folded(spelled);
                // U&"...": whatever it may be.
                self.dynamic |= !spelled.starts_with('"');
                if calls(list, at) {
                    self.note_call(&name);
                }
                self.names.insert(name);
            }
            TokenKind::String
            | TokenKind::Number
            | TokenKind::Parameter
            | TokenKind::Punctuation(_) => {}
        }
    }

    /// Where signs stand side by side, where one operator ends depends on all of them: any run of
    /// them may be one.
    fn note_operator(&mut self, text: &str, list: &[Token], at: usize) {
        let start = list[at].start;
        let mut end = start;
        for token in &list[at..] {
            if token.kind != TokenKind::Operator || token.start != end {
                break;
            }
            end = token.end;
            self.operators.insert(text[start..end].to_owned());
        }
    }

    /// Built-in functions that change the session, or run a text.
    fn note_call(&mut self, name: &str) {
        self.own.keeps |= KEEPING.contains(&name);
        if KEEPING_LASTING.contains(&name) {
            self.own |= Residue::KEEPS_LASTING;
        }
        let prefixed = || {
            DYNAMIC_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        self.dynamic |= DYNAMIC.contains(&name) || prefixed();
    }

    /// What a body does that a client's own text would be seen to do.
    fn note_command(&mut self, reader: &Reader<'_>, at: usize, nested: usize) {
        let call = calls(reader.list, at);
        let quoted = reader.list[at].kind == TokenKind::QuotedIdentifier;
        let name = match reader.word(at) {
            None if quoted && call => Some(folded(reader.spelled(reader.list[at]))),
            word => word,
        };
        let Some(word) = name else { return };
        match word.as_str() {
            "set" if reader.starts_statement(at) => {
                let scope = reader.word(at + 1);
                let local = ["local", "constraints", "transaction"];
                self.own.keeps |= !scope.is_some_and(|scope| local.contains(&scope.as_str()));
                self.make(MadeSettings::Named);
            }
            "reset" | "discard" | "listen" | "unlisten" | "prepare" | "deallocate"
                if reader.starts_statement(at) =>
            {
                self.own.keeps = true;
                self.make(MadeSettings::Named);
            }
            "load" if reader.starts_statement(at) => self.own |= Residue::KEEPS_LASTING,
            "hold" => self.own.keeps |= reader.word_before(at, 1).as_deref() == Some("with"),
            "set_config" if call => {
                self.own.keeps |= !reader.third_argument_is_true(at + 1);
                self.make(reader.setting_of_call(at + 1));
            }
            "currval" | "lastval" if call => self.own.reads_sequence = true,
            "current_setting" if call => self.own.reads_setting = true,
            "execute" => self.note_execute(reader, at, nested),
            "do" if reader.starts_statement(at) => self.note_text(reader, at + 1, nested),
            lock if call => self.own.keeps |= locks_session(lock),
            _ => {}
        }
    }

    fn make(&mut self, settings: MadeSettings) {
        self.own.settings = self.own.settings.max(settings);
    }

    /// EXECUTE of a text; other uses of the word run nothing now.
    fn note_execute(&mut self, reader: &Reader<'_>, at: usize, nested: usize) {
        let after = reader.word(at + 1);
        let of_trigger = matches!(after.as_deref(), Some("function" | "procedure" | "on"));
        if !of_trigger {
            self.note_text(reader, at + 1, nested);
        }
    }

    /// The text at a place is run: if it is one plain string, it is known.
    fn note_text(&mut self, reader: &Reader<'_>, at: usize, nested: usize) {
        let ends = match reader.list.get(at + 1) {
            None => true,
            Some(next) if next.kind == TokenKind::Punctuation(';') => true,
            Some(_) => {
                let word = reader.word(at + 1);
                matches!(
                    word.as_deref(),
                    Some("into" | "using" | "loop" | "language")
                )
            }
        };
        let text = reader
            .list
            .get(at)
            .and_then(|token| reader.plain_string(*token));
        match text.filter(|_| ends && nested < NESTED_MAX) {
            None => {
                self.dynamic = true;
                self.make(MadeSettings::Named);
            }
            Some(text) => {
                let inner = Code::of_body(&text, nested + 1);
                self.names.extend(inner.names);
                self.operators.extend(inner.operators);
                self.own |= inner.own;
                self.dynamic |= inner.dynamic;
                self.changes |= inner.changes;
            }
        }
    }
}

/// SELECT INTO of SQL makes a table.
fn selects_into(text: &str) -> bool {
    let list = tokens(text);
    let reader = Reader { text, list: &list };
    let into = |at: &usize| reader.word(*at).as_deref() == Some("into");
    let adds = |at: usize| {
        let before = reader.word_before(at, 1);
        matches!(before.as_deref(), Some("insert" | "merge"))
    };
    (0..list.len()).filter(into).any(|at| !adds(at))
}

#[cfg(test)]
mod tests;
