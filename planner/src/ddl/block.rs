//! DO. A block that changes the schema runs on every shard, so it must come to the same end on each:
//! what it decides by may only be definitions, which all shards have alike. Rows they have not. Any
//! other block runs on the home shard.
//!
//! PL/pgSQL is read as tokens: commands that define are cut out and judged as if they stood alone; the
//! rest may name nothing that differs from shard to shard. What is not understood is refused.

use std::collections::HashMap;

use pg_query::{
    NodeEnum,
    protobuf::{self, AlterTableType as Command, ConstrType},
};

use super::{broadcast, table};
use crate::{
    catalog::{Placement, QualifiedName, Reader},
    functions::{Traits, calls_temporary},
    gather::folded,
    normalise::{TokenKind, tokens},
    parse,
    plan::{Plan, PlanError, TransactionBlock},
    route::Statement,
    statement::Draft,
    tree::{constant_text, inner, nodes},
};

/// Words of commands that change the schema.
const DEFINES: &[&str] = &[
    "create", "alter", "drop", "grant", "revoke", "comment", "reindex",
];
/// Words of commands that change rows or sequences.
const CHANGES: &[&str] = &[
    "insert", "update", "delete", "merge", "truncate", "copy", "nextval", "setval",
];
/// Words whose values differ from shard to shard.
const UNEVEN: &[&str] = &[
    "now",
    "current_timestamp",
    "current_time",
    "current_date",
    "localtime",
    "localtimestamp",
    "reltuples",
    "relpages",
    "last_value",
];
/// System catalogs that every shard has alike, but for oids.
const DEFINITIONS: &[&str] = &[
    "pg_am",
    "pg_attrdef",
    "pg_attribute",
    "pg_auth_members",
    "pg_authid",
    "pg_available_extensions",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_database",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_server",
    "pg_group",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_language",
    "pg_matviews",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_partitioned_table",
    "pg_policies",
    "pg_policy",
    "pg_proc",
    "pg_range",
    "pg_rewrite",
    "pg_roles",
    "pg_rules",
    "pg_sequence",
    "pg_tables",
    "pg_tablespace",
    "pg_trigger",
    "pg_type",
    "pg_user",
    "pg_views",
];
/// Conditions that definitions alone decide, by name and by SQLSTATE.
const OF_DEFINITIONS: &[&str] = &[
    "dependent_objects_still_exist",
    "duplicate_column",
    "duplicate_function",
    "duplicate_object",
    "duplicate_schema",
    "duplicate_table",
    "feature_not_supported",
    "insufficient_privilege",
    "invalid_schema_name",
    "invalid_table_definition",
    "undefined_column",
    "undefined_function",
    "undefined_object",
    "undefined_table",
    "wrong_object_type",
    "2bp01",
    "3f000",
    "42501",
    "42701",
    "42703",
    "42704",
    "42710",
    "42723",
    "42809",
    "42883",
    "42p01",
    "42p06",
    "42p07",
    "42p16",
];
/// Words that end a list of FROM.
const BEHIND_FROM: &[&str] = &[
    "where",
    "group",
    "order",
    "having",
    "limit",
    "offset",
    "fetch",
    "for",
    "loop",
    "union",
    "except",
    "intersect",
    "into",
    "then",
    "window",
];

/// The plan of DO.
pub(super) fn block(
    statement: &Statement<'_>,
    block: &protobuf::DoStmt,
) -> Result<Draft, PlanError> {
    let (language, code) = block_code(block);
    let words = words(&code);
    let defines = words.iter().any(|word| DEFINES.contains(&word.as_str()));
    if defines && language == "plpgsql" {
        let list = tokens(&code);
        let reader = Reader {
            text: &code,
            list: &list,
        };
        let mut block = Block {
            statement,
            reader,
            must_be_empty: Vec::new(),
            temporary: 0,
            lasting: 0,
            looks_at_rows: false,
        };
        block.judge()?;
        if block.temporary == 0 || block.lasting > 0 {
            return block.everywhere();
        }
    } else if defines {
        return Err(not_alike(format!("It is written in {language}.")));
    }
    at_home(statement, &language, &code, &words)
}

/// A block's language and its text.
pub(crate) fn block_code(block: &protobuf::DoStmt) -> (String, String) {
    let mut code = String::new();
    let mut language = "plpgsql".to_owned();
    for node in nodes(&block.args) {
        let NodeEnum::DefElem(option) = node else {
            continue;
        };
        let value = inner(&option.arg)
            .and_then(constant_text)
            .unwrap_or_default();
        match option.defname.as_str() {
            "as" => code = value,
            "language" => language = value,
            _ => {}
        }
    }
    (language, code)
}

/// All words, those in strings and comments included, lower-case.
fn words(code: &str) -> Vec<String> {
    let code = code.to_lowercase();
    code.split(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == '$'))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

// ---- on the home shard ----

fn at_home(
    statement: &Statement<'_>,
    language: &str,
    code: &str,
    words: &[String],
) -> Result<Draft, PlanError> {
    let mut traits = Traits::default();
    for word in words {
        traits.note_word(statement.catalog, word);
    }
    if traits.defines.is_some() {
        traits.refuse_unsafe(statement.catalog)?;
    }
    if !statement.catalog.has_placed_relations {
        return Ok(Draft::home("do").writes());
    }
    let temporary = || {
        let calls = calls_temporary(&code.to_lowercase());
        calls.then(|| "It calls a temporary function.".to_owned())
    };
    if let Some(why) = touches(statement, words).or_else(temporary) {
        return Err(PlanError::unsupported(
            "DO that may read or write distributed tables is not supported",
        )
        .detail(why)
        .hint("Run the statements themselves."));
    }
    if language != "plpgsql" && language != "sql" {
        return Err(
            PlanError::unsupported(format!("DO in language {language} is not supported"))
                .hint("Use plpgsql."),
        );
    }
    Ok(Draft::home("do").writes())
}

/// Why code with these words may reach placed tables, as a sentence.
fn touches(statement: &Statement<'_>, words: &[String]) -> Option<String> {
    let catalog = statement.catalog;
    let has = |name: &str| words.iter().any(|word| word == name);
    if has("execute") {
        return Some("It runs statements that are not known before.".to_owned());
    }
    let relations = catalog.relations.values();
    let named = relations.filter(|relation| has(&relation.name.name.to_lowercase()));
    for relation in named {
        if relation.placement != Placement::Local || relation.reads_placed {
            return Some(format!("It names \"{}\".", relation.name.name));
        }
        let changes = CHANGES.iter().any(|word| has(word));
        let written = relation.unsafe_writes.as_ref().filter(|_| changes);
        if let Some(danger) = relation.unsafe_reads.as_ref().or(written) {
            return Some(format!(
                "It names \"{}\". {}",
                relation.name.name, danger.why
            ));
        }
    }
    words.iter().find_map(|word| {
        let mut traits = Traits::default();
        traits.note_word(catalog, word);
        traits.unsafe_call.map(|(_, why)| why)
    })
}

// ---- on every shard ----

struct Block<'b, 'a> {
    statement: &'b Statement<'a>,
    reader: Reader<'b>,
    /// Tables that must have no rows for the block to be right.
    must_be_empty: Vec<QualifiedName>,
    /// Commands that define something temporary.
    temporary: usize,
    /// Commands that define something else.
    lasting: usize,
    /// Some command fails or not by the rows that a shard has.
    looks_at_rows: bool,
}

impl Block<'_, '_> {
    /// Judges the commands, and what leads to them.
    fn judge(&mut self) -> Result<(), PlanError> {
        let mut flow = Vec::new();
        let mut at = 0;
        while at < self.reader.list.len() {
            let begins = self.reader.starts_statement(at);
            let verb = self.reader.word(at).filter(|_| begins);
            match verb.as_deref() {
                Some(verb) if DEFINES.contains(&verb) => {
                    let end = self.end(at);
                    self.command(&self.text(at, end))?;
                    at = end;
                }
                Some("execute") if self.known_text(at + 1).is_some() => {
                    let text = self.known_text(at + 1).unwrap_or_default();
                    self.executed(&text)?;
                    at += 2;
                }
                Some("execute") => {
                    let end = self.end(at);
                    self.put_together(at + 1, end)?;
                    at = end;
                }
                _ => {
                    flow.push(at);
                    at += 1;
                }
            }
        }
        // What is temporary is at home, and so is all that the block does with it.
        if self.lasting == 0 && self.temporary > 0 {
            return Ok(());
        }
        if self.temporary > 0 {
            return Err(not_alike(
                "It makes both temporary and lasting objects.".to_owned(),
            ));
        }
        for at in flow {
            self.step(at)?;
        }
        Ok(())
    }

    fn everywhere(self) -> Result<Draft, PlanError> {
        let mut draft = broadcast(TransactionBlock::Inside);
        if let Plan::Ddl(ddl) = &mut draft.plan {
            ddl.must_be_empty = self.must_be_empty;
        }
        Ok(draft)
    }

    /// Where the semicolon is that ends the statement at `at`.
    fn end(&self, at: usize) -> usize {
        let depth = self.reader.list[at].depth;
        let ends = |at: &usize| {
            let token = self.reader.list[*at];
            token.depth <= depth && token.kind == TokenKind::Punctuation(';')
        };
        let list = at..self.reader.list.len();
        list.clone().find(ends).unwrap_or(list.end)
    }

    fn text(&self, start: usize, end: usize) -> String {
        let last = self.reader.list[end - 1].end;
        self.reader.text[self.reader.list[start].start..last].to_owned()
    }

    /// A command that stands in the block or in a string.
    fn command(&mut self, text: &str) -> Result<(), PlanError> {
        let node = parse::parse_one(text).ok_or_else(|| {
            not_alike(format!("It has a command that is not understood: {text}."))
        })?;
        if let NodeEnum::CreateTableAsStmt(create) = &node {
            let range = create.into.as_ref().and_then(|into| into.rel.as_ref());
            if !range.is_some_and(super::is_temporary) {
                return Err(not_alike("It makes a table of rows.".to_owned()));
            }
            self.temporary += 1;
            return Ok(());
        }
        let alone = Statement {
            catalog: self.statement.catalog,
            context: self.statement.context,
            text,
            span: (0, text.len()),
            node: &node,
            normalised: None,
            parameters: HashMap::new(),
        };
        let Plan::Ddl(ddl) = super::ddl(&alone)?.plan else {
            // REINDEX of something temporary.
            self.temporary += 1;
            return Ok(());
        };
        match ddl.home_only {
            true => self.temporary += 1,
            false => self.lasting += 1,
        }
        self.must_be_empty.extend(ddl.must_be_empty);
        self.looks_at_rows |= looks_at_rows(&node);
        Ok(())
    }

    /// The text that EXECUTE is given, where that is all it is given.
    fn known_text(&self, at: usize) -> Option<String> {
        let token = *self.reader.list.get(at)?;
        let next = self.reader.list.get(at + 1)?;
        (next.kind == TokenKind::Punctuation(';')).then_some(())?;
        self.reader.plain_string(token)
    }

    fn executed(&mut self, text: &str) -> Result<(), PlanError> {
        let verb = words(text).into_iter().next().unwrap_or_default();
        match DEFINES.contains(&verb.as_str()) {
            true => self.command(text),
            false => Err(not_alike(format!("It executes {}.", verb.to_uppercase()))),
        }
    }

    /// A text that is put together: `'drop table ' || quote_ident(name)`, `format('alter ...', ...)`.
    fn put_together(&mut self, from: usize, end: usize) -> Result<(), PlanError> {
        let list = &self.reader.list[from..end];
        let strings = list.iter().filter(|token| token.kind == TokenKind::String);
        let texts: Vec<Vec<String>> = strings
            .map(|token| words(self.reader.spelled(*token)))
            .collect();
        let begins = match self.reader.word(from).as_deref() {
            Some("format") => from + 2,
            _ => from,
        };
        let first = self.reader.list.get(begins);
        let known = first.is_some_and(|token| token.kind == TokenKind::String)
            && texts
                .first()
                .and_then(|words| words.first())
                .is_some_and(|verb| DEFINES.contains(&verb.as_str()));
        let changes = texts.iter().any(|words| {
            (0..words.len()).any(|at| {
                let word = words[at].as_str();
                let action = at > 0 && words[at - 1] == "on";
                CHANGES.contains(&word) && !action || word == "select"
            })
        });
        if !known || changes {
            return Err(not_alike(
                "It executes a text that is put together, and that may be anything.".to_owned(),
            ));
        }
        self.lasting += 1;
        self.looks_at_rows = true;
        for at in from..end {
            self.step(at)?;
        }
        Ok(())
    }

    /// A token of what leads to the commands.
    fn step(&self, at: usize) -> Result<(), PlanError> {
        let token = self.reader.list[at];
        if !matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier) {
            return Ok(());
        }
        let word = folded(self.reader.spelled(token));
        let qualified = at > 0 && self.is_mark(at - 1, '.');
        match word.as_str() {
            "from" if !self.is_distinct_from(at) => self.sources(at + 1),
            "join" => self.source(at + 1),
            "table" if at > 0 && self.is_mark(at - 1, '(') => {
                Err(not_alike("It reads a table.".to_owned()))
            }
            "when" if self.is_handler(at) => self.handler(at + 1),
            changing if CHANGES.contains(&changing) && !qualified => Err(PlanError::unsupported(
                "DO that changes both the schema and rows is not supported",
            )
            .detail("The schema changes on every shard, rows on some.")
            .hint("Use a block for each.")),
            uneven if UNEVEN.contains(&uneven) => Err(not_alike(format!("It uses \"{uneven}\"."))),
            name if self.is_mark(at + 1, '(') => self.call(name),
            _ => Ok(()),
        }
    }

    fn is_mark(&self, at: usize, mark: char) -> bool {
        let token = self.reader.list.get(at);
        token.is_some_and(|token| token.kind == TokenKind::Punctuation(mark))
    }

    /// `a IS [NOT] DISTINCT FROM b`
    fn is_distinct_from(&self, at: usize) -> bool {
        let word = |distance| self.reader.word_before(at, distance);
        let before = word(2);
        word(1).as_deref() == Some("distinct") && matches!(before.as_deref(), Some("is" | "not"))
    }

    /// The relations of a list in FROM.
    fn sources(&self, at: usize) -> Result<(), PlanError> {
        self.source(at)?;
        let depth = self.reader.list.get(at).map_or(0, |token| token.depth);
        for at in at..self.reader.list.len() {
            let token = self.reader.list[at];
            let word = self.reader.word(at).unwrap_or_default();
            let over = token.depth < depth
                || token.kind == TokenKind::Punctuation(';')
                || token.depth == depth && BEHIND_FROM.contains(&word.as_str());
            if over {
                return Ok(());
            }
            if token.depth == depth && token.kind == TokenKind::Punctuation(',') {
                self.source(at + 1)?;
            }
        }
        Ok(())
    }

    /// A relation must be a catalog that all shards have alike. What is read in brackets is looked at
    /// by itself, and so is a function.
    fn source(&self, at: usize) -> Result<(), PlanError> {
        let skipped = |at: &usize| {
            let word = self.reader.word(*at);
            matches!(word.as_deref(), Some("only" | "lateral"))
        };
        let at = at + (at..).take_while(skipped).count();
        let name = |at: usize| {
            let token = *self.reader.list.get(at)?;
            let named = matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier);
            named.then(|| folded(self.reader.spelled(token)))
        };
        let (schema, name, end) = match self.is_mark(at + 1, '.') {
            true => (name(at), name(at + 2), at + 3),
            false => (None, name(at), at + 1),
        };
        let known = match (schema.as_deref(), name.as_deref()) {
            (None, None) => self.is_mark(at, '('),
            (None, Some(_)) if self.is_mark(end, '(') => true,
            (None | Some("pg_catalog"), Some(name)) => DEFINITIONS.contains(&name),
            (Some("information_schema"), Some(_)) => true,
            (_, _) => false,
        };
        if known {
            return Ok(());
        }
        Err(not_alike(match name {
            Some(name) => format!("It reads \"{name}\"."),
            None => "It reads something that is not understood.".to_owned(),
        }))
    }

    fn call(&self, name: &str) -> Result<(), PlanError> {
        let mut traits = Traits::default();
        traits.note_word(self.statement.catalog, name);
        traits.refuse_unsafe(self.statement.catalog)?;
        let uneven = traits.home.is_some() || traits.volatile.is_some() || traits.statement_clock;
        match uneven || traits.unsafe_call.is_some() {
            true => Err(not_alike(format!("It calls \"{name}\"."))),
            false => Ok(()),
        }
    }

    /// WHEN behind EXCEPTION, or behind another handler.
    fn is_handler(&self, at: usize) -> bool {
        let exception = |at: &usize| {
            self.reader.word(*at).as_deref() == Some("exception")
                && self.reader.starts_statement(*at)
        };
        let behind = self.reader.word_before(at, 1).as_deref() == Some("exception");
        (behind || self.reader.starts_statement(at)) && (0..at).any(|at| exception(&at))
    }

    /// What a handler catches must be what all shards meet.
    fn handler(&self, at: usize) -> Result<(), PlanError> {
        let conditions = (at..self.reader.list.len())
            .take_while(|at| self.reader.word(*at).as_deref() != Some("then"));
        for at in conditions {
            let spelled = self.reader.spelled(self.reader.list[at]).to_lowercase();
            let condition = spelled.trim_matches('\'');
            let alike = match condition {
                "or" | "sqlstate" => true,
                "others" => !self.looks_at_rows,
                known => OF_DEFINITIONS.contains(&known),
            };
            if !alike {
                return Err(not_alike(format!(
                    "It goes on after \"{condition}\", which some shards may meet and others not."
                ))
                .hint("Catch conditions that rows do not decide, like duplicate_object."));
            }
        }
        Ok(())
    }
}

fn not_alike(why: String) -> PlanError {
    PlanError::unsupported("DO that could change the schema of some shards only is not supported")
        .detail(why)
        .hint("Decide in the application, and run the commands themselves; or let the block look at system catalogs only.")
}

/// A command that fails or not by the rows there are.
fn looks_at_rows(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::IndexStmt(_) | NodeEnum::AlterDomainStmt(_) => true,
        NodeEnum::AlterTableStmt(alter) => nodes(&alter.cmds).any(|node| {
            let NodeEnum::AlterTableCmd(command) = node else {
                return true;
            };
            match command.subtype() {
                Command::AtAddConstraint
                | Command::AtValidateConstraint
                | Command::AtSetNotNull
                | Command::AtAlterColumnType
                | Command::AtAttachPartition => true,
                Command::AtAddColumn => table::constraints(command)
                    .any(|one| !matches!(one, ConstrType::ConstrDefault | ConstrType::ConstrNull)),
                _ => false,
            }
        }),
        _ => false,
    }
}
