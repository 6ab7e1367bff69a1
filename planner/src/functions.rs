//! What calls in a statement mean for where it may run.

use pg_query::{NodeEnum, protobuf};

use crate::{
    builtins::{self, Kind},
    catalog::{Catalog, FunctionSafety},
    plan::PlanError,
    route::Statement,
    sizes::Size,
    tree,
};

/// What the functions and operators of a statement do beside computing a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    /// It must run on the home shard: why, as a sentence.
    pub(crate) home: Option<String>,
    /// It may read or write other tables: the function's name and why, as a sentence.
    pub(crate) unsafe_call: Option<(String, String)>,
    /// A function that changes the schema, and by which command.
    pub(crate) defines: Option<(String, String)>,
    /// A function whose result differs from call to call, or that has side effects.
    pub(crate) volatile: Option<String>,
    /// A function of the user's that may write.
    pub(crate) writes: bool,
    /// The session must keep its server connection.
    pub(crate) pins: bool,
    /// `nextval`, `setval`.
    pub(crate) moves_sequence: bool,
    /// `setval`.
    pub(crate) sets_sequence: bool,
    /// `currval`, `lastval`.
    pub(crate) reads_sequence: bool,
    /// Where the transaction's timestamp is read, as `now()` or one of its relatives.
    pub(crate) clocks: Vec<Clock>,
    /// A function whose value is the time of the statement or of the call.
    pub(crate) statement_clock: bool,
    /// Names a system column.
    pub(crate) system_column: Option<String>,
    /// `set_config`, which may change what later texts mean.
    pub(crate) set_config: bool,
    /// Calls that tell the size of a relation or database.
    pub(crate) sizes: Vec<Size>,
    /// A built-in function that keeps house for a relation's part on one server.
    pub(crate) maintenance: Option<String>,
    /// A built-in function that no shard can answer for all, as its name.
    pub(crate) of_no_server: Option<String>,
    /// A built-in function or relation that is newer than our table of them.
    pub(crate) unjudged: Option<String>,
}

/// A reading of the transaction's timestamp in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The byte offset of its first token.
    pub(crate) location: usize,
    /// Casts that turn a timestamptz into its type.
    pub(crate) casts: String,
    /// In the text of a view, not in the client's.
    pub(crate) in_view: bool,
}

/// Types whose values are numbers that a server has given definitions, written as names.
const REGISTERED: &[&str] = &[
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
];
const TEXTS: &[&str] = &["text", "varchar", "bpchar", "name"];

/// Settings that are the same on all connections of a session, beside those with a dot in their name.
const OF_SESSION: &[&str] = &[
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "is_superuser",
    "role",
    "search_path",
    "session_authorization",
    "timezone",
    "transaction_isolation",
    "transaction_read_only",
];

/// A call without arguments that reads the transaction's timestamp, and the casts that give a
/// timestamptz the call's type.
pub(crate) fn clock_of(node: &NodeEnum) -> Option<(usize, String)> {
    let (location, casts) = match node {
        NodeEnum::FuncCall(call) => {
            let names = tree::strings(&call.funcname);
            let reads = matches!(
                names.as_slice(),
                ["now" | "transaction_timestamp"] | ["pg_catalog", "now" | "transaction_timestamp"]
            );
            if !reads || !call.args.is_empty() {
                return None;
            }
            (call.location, "::timestamptz".to_owned())
        }
        NodeEnum::SqlvalueFunction(function) => (function.location, value_function(function)?),
        _ => return None,
    };
    Some((usize::try_from(location).ok()?, casts))
}

fn value_function(function: &protobuf::SqlValueFunction) -> Option<String> {
    use protobuf::SqlValueFunctionOp as Op;
    let digits = function.typmod;
    Some(match function.op() {
        Op::SvfopCurrentTimestamp => "::timestamptz".to_owned(),
        Op::SvfopCurrentTimestampN => format!("::timestamptz({digits})"),
        Op::SvfopLocaltimestamp => "::timestamptz::timestamp".to_owned(),
        Op::SvfopLocaltimestampN => format!("::timestamptz::timestamp({digits})"),
        Op::SvfopCurrentDate => "::timestamptz::date".to_owned(),
        Op::SvfopCurrentTime => "::timestamptz::timetz".to_owned(),
        Op::SvfopCurrentTimeN => format!("::timestamptz::timetz({digits})"),
        Op::SvfopLocaltime => "::timestamptz::time".to_owned(),
        Op::SvfopLocaltimeN => format!("::timestamptz::time({digits})"),
        _ => return None,
    })
}

/// Where names of functions are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) catalog: &'a Catalog,
    /// The search path of the text that they stand in. Texts that a server prints have none, and
    /// qualified names.
    pub(crate) path: &'a [String],
}

impl<'a> Lookup<'a> {
    /// In a client's text.
    pub(crate) fn of(statement: &Statement<'a>) -> Lookup<'a> {
        Lookup {
            catalog: statement.catalog,
            path: statement.context.search_path,
        }
    }

    /// In a text that a server has printed.
    pub(crate) fn printed(catalog: &'a Catalog) -> Lookup<'a> {
        Lookup { catalog, path: &[] }
    }
}

impl Traits {
    /// Values are computed, and nothing else happens.
    pub(crate) fn are_plain(&self) -> bool {
        *self == Traits::default()
    }

    /// Takes one node in; what hangs below it is the caller's.
    pub(crate) fn note(&mut self, lookup: Lookup<'_>, node: &NodeEnum, in_view: bool) {
        let catalog = lookup.catalog;
        if let Some((location, casts)) = clock_of(node) {
            self.clocks.push(Clock {
                location,
                casts,
                in_view,
            });
            return;
        }
        match node {
            NodeEnum::FuncCall(call) => {
                let names = tree::strings(&call.funcname);
                self.note_temporary(&names);
                if let Some(name) = names.last() {
                    self.note_call(lookup, &names, call.args.len());
                    match builtins::function(name, call.args.len()) {
                        Some(Kind::Setting) if *name == "current_setting" => {
                            self.note_setting(call)
                        }
                        Some(Kind::Size) => self.sizes.push(Size::of(call)),
                        _ => {}
                    }
                }
            }
            NodeEnum::AExpr(expr) => {
                let names = tree::strings(&expr.name);
                self.note_temporary(&names);
                if let Some(name) = names.last() {
                    self.note_operator(catalog, name);
                }
            }
            NodeEnum::SortBy(sort) => {
                let names = tree::strings(&sort.use_op);
                self.note_temporary(&names);
                if let Some(name) = names.last() {
                    self.note_operator(catalog, name);
                }
            }
            NodeEnum::ColumnRef(column) => self.note_column(lookup, &column.fields),
            NodeEnum::TypeCast(cast) => {
                self.note_cast(cast);
                self.note_type(catalog, cast.type_name.as_ref());
            }
            NodeEnum::SqlvalueFunction(function)
                if function.op() == protobuf::SqlValueFunctionOp::SvfopCurrentCatalog =>
            {
                self.note_home("current_catalog");
            }
            _ => {}
        }
    }

    /// A value of a type may be checked or made by code.
    fn note_type(&mut self, catalog: &Catalog, name: Option<&protobuf::TypeName>) {
        let names = name.map(|name| tree::strings(&name.names));
        if let Some(name) = names.unwrap_or_default().last() {
            self.note_safety(name, catalog.types.get(*name));
            self.note_safety(name, catalog.casts.get(*name));
        }
    }

    /// The catalog knows no temporary functions and operators. They are found by their schema only
    /// (the manual, `search_path`).
    pub(crate) fn note_temporary(&mut self, names: &[&str]) {
        if let [.., schema, name] = names
            && schema.starts_with("pg_temp")
        {
            let why = format!("\"{name}\" is temporary, and can read any table.");
            self.writes = true;
            self.unsafe_call
                .get_or_insert_with(|| ((*name).to_owned(), why));
        }
    }

    /// Takes an operator in.
    pub(crate) fn note_operator(&mut self, catalog: &Catalog, name: &str) {
        self.note_safety(name, catalog.operators.get(name));
    }

    /// Takes a call in.
    pub(crate) fn note_call(&mut self, lookup: Lookup<'_>, names: &[&str], arguments: usize) {
        let Lookup { catalog, path } = lookup;
        let name = names.last().copied().unwrap_or_default();
        self.note_safety(name, catalog.call_safety(path, names, arguments));
        self.note_called(catalog, name, arguments);
    }

    /// Takes a word of code in that may be a call of any function of that name.
    pub(crate) fn note_word(&mut self, catalog: &Catalog, word: &str) {
        self.note_safety(word, catalog.functions.get(word));
        self.note_called(catalog, word, 0);
    }

    fn note_called(&mut self, catalog: &Catalog, name: &str, arguments: usize) {
        if let Some(command) = catalog.definers.get(name) {
            self.writes = true;
            self.defines
                .get_or_insert_with(|| (name.to_owned(), command.clone()));
        }
        if catalog.volatile_functions.contains(name) {
            self.writes = true;
            self.note_volatile(name);
        }
        match builtins::function(name, arguments) {
            Some(kind) => self.note_built_in(kind, name),
            None if catalog.unjudged.contains(name) => self.note_unjudged(name),
            // Of a user or an extension, which the catalog knows, or of nobody.
            None => {}
        }
    }

    fn note_built_in(&mut self, kind: Kind, name: &str) {
        match kind {
            // Times of the transaction were looked for before.
            Kind::Same | Kind::TransactionTime => {}
            Kind::StatementTime => self.statement_clock = true,
            Kind::CallTime => {
                self.statement_clock = true;
                self.note_volatile(name);
            }
            Kind::Random => self.note_volatile(name),
            Kind::Seed => {
                self.note_home(name);
                self.note_volatile(name);
                self.pins = true;
            }
            Kind::Sequence => {
                self.note_home(name);
                self.note_volatile(name);
                self.moves_sequence |= matches!(name, "nextval" | "setval");
                self.sets_sequence |= name == "setval";
                self.reads_sequence |= matches!(name, "currval" | "lastval");
            }
            // `note` looks at the name of the setting that is read.
            Kind::Setting => self.set_config |= name == "set_config",
            Kind::Query => {
                let why = format!("Function \"{name}\" runs a query that is given to it as text.");
                self.unsafe_call
                    .get_or_insert_with(|| (name.to_owned(), why));
            }
            Kind::SessionLock => {
                self.note_home(name);
                self.pins = true;
            }
            Kind::Changes => {
                self.note_home(name);
                self.writes = true;
            }
            Kind::Maintenance => {
                self.note_home(name);
                self.writes = true;
                self.maintenance.get_or_insert_with(|| name.to_owned());
            }
            Kind::OwnTransaction => {
                self.of_no_server.get_or_insert_with(|| name.to_owned());
                self.note_home(name);
            }
            Kind::Size | Kind::Client | Kind::Home => self.note_home(name),
            Kind::Catalog => {
                let why =
                    format!("Function \"{name}\" knows definitions by numbers of one server.");
                self.home.get_or_insert(why);
            }
        }
    }

    fn note_volatile(&mut self, name: &str) {
        self.volatile.get_or_insert_with(|| name.to_owned());
    }

    fn note_home(&mut self, name: &str) {
        self.home.get_or_insert_with(|| {
            format!("Function \"{name}\" reads or changes the state of one server.")
        });
    }

    /// A built-in function or relation that is newer than our table.
    pub(crate) fn note_unjudged(&mut self, name: &str) {
        self.unjudged.get_or_insert_with(|| name.to_owned());
        self.home
            .get_or_insert_with(|| format!("\"{name}\" is newer than this version."));
    }

    /// `current_setting('x')`: what the session has set is the same on all its connections, the rest
    /// is each server's own.
    fn note_setting(&mut self, call: &protobuf::FuncCall) {
        let name = tree::nodes(&call.args).next().and_then(tree::constant_text);
        let of_session = name.is_some_and(|name| {
            let name = name.to_lowercase();
            name.contains('.') || OF_SESSION.contains(&name.as_str())
        });
        if !of_session {
            self.note_home("current_setting");
        }
    }

    /// Numbers that a server has given definitions: as the value of a cast, or read from a column.
    fn note_cast(&mut self, cast: &protobuf::TypeCast) {
        let target = cast
            .type_name
            .as_ref()
            .map(|name| tree::strings(&name.names));
        let target = target.and_then(|names| names.last().copied()).unwrap_or("");
        let Some(value) = tree::inner(&cast.arg) else {
            return;
        };
        let by_number = match value {
            // A name in, a name out.
            NodeEnum::AConst(_) => {
                let text = tree::constant_text(value).unwrap_or_default();
                REGISTERED.contains(&target) && text.parse::<u32>().is_ok()
            }
            NodeEnum::ColumnRef(column) => {
                REGISTERED.contains(&target)
                    && tree::strings(&column.fields).last() != Some(&"tableoid")
            }
            NodeEnum::TypeCast(cast) => {
                let names = cast
                    .type_name
                    .as_ref()
                    .map(|name| tree::strings(&name.names));
                let source = names.and_then(|names| names.last().copied()).unwrap_or("");
                let name = matches!(tree::inner(&cast.arg), Some(NodeEnum::AConst(_)))
                    && TEXTS.contains(&source);
                match (REGISTERED.contains(&source), REGISTERED.contains(&target)) {
                    (true, true) => false,
                    (true, false) => !TEXTS.contains(&target),
                    (false, registered) => registered && !name,
                }
            }
            _ => REGISTERED.contains(&target),
        };
        if by_number {
            self.home.get_or_insert_with(|| {
                "A cast tells the number that one server has given a definition.".to_owned()
            });
        }
    }

    fn note_safety(&mut self, name: &str, safety: Option<&FunctionSafety>) {
        match safety {
            None | Some(FunctionSafety::Safe) => {}
            Some(FunctionSafety::HomeOnly(why)) => {
                self.home.get_or_insert_with(|| why.clone());
                self.writes = true;
            }
            Some(FunctionSafety::Unsafe(why)) => {
                self.writes = true;
                self.unsafe_call
                    .get_or_insert_with(|| (name.to_owned(), why.clone()));
            }
        }
    }

    /// `t.f` can be a call of `f(t)` (the manual, "Composite Type Arguments").
    fn note_column(&mut self, lookup: Lookup<'_>, fields: &[pg_query::Node]) {
        let catalog = lookup.catalog;
        let names = tree::strings(fields);
        let Some(last) = names.last() else { return };
        if names.len() == fields.len() && builtins::is_system_column(last) {
            self.system_column.get_or_insert_with(|| (*last).to_owned());
        }
        if names.len() > 1 {
            let is_column = || {
                catalog
                    .relations
                    .values()
                    .any(|relation| relation.column(last).is_some())
            };
            if catalog.functions.contains_key(*last) && !is_column() {
                self.note_safety(last, catalog.call_safety(lookup.path, &[*last], 1));
            }
        }
    }

    /// The error for a function that may go behind the proxy's back.
    pub(crate) fn refuse_unsafe(&self, catalog: &Catalog) -> Result<(), PlanError> {
        if let Some((name, command)) = &self.defines
            && catalog.shards.len() > 1
        {
            return Err(PlanError::unsupported(format!(
                "function \"{name}\" changes the schema of one shard"
            ))
            .detail(format!("It runs {}.", command.to_uppercase()))
            .hint("Run the command itself, or in a DO block: it goes to every shard."));
        }
        if !catalog.has_placed_relations {
            return Ok(());
        }
        if let Some((name, why)) = &self.unsafe_call {
            return Err(unsafe_function(name, why));
        }
        if let Some(name) = &self.maintenance
            && catalog.shards.len() > 1
        {
            return Err(maintenance_of_one_shard(name));
        }
        match &self.of_no_server {
            Some(name) if catalog.shards.len() > 1 => Err(PlanError::unsupported(format!(
                "function \"{name}\" is not supported over several shards"
            ))
            .detail(
                "Each shard numbers its own transactions, and this one only where it has written.",
            )
            .hint("Use pg_current_xact_id(), which is the home shard's number.")),
            Some(_) | None => Ok(()),
        }
    }

    /// The error for what is newer than our table, in a statement over rows of shards.
    pub(crate) fn refuse_unjudged(&self, catalog: &Catalog) -> Result<(), PlanError> {
        match &self.unjudged {
            Some(name) if catalog.shards.len() > 1 => Err(PlanError::unsupported(format!(
                "\"{name}\" is not supported over several shards"
            ))
            .detail("It is newer than this version of Automator67, which does not know whether its value is the same on every server.")
            .hint("Ask for it in a statement of its own, and give its value as a parameter.")),
            Some(_) | None => Ok(()),
        }
    }
}

/// The error for a function that would do its work on the home shard alone.
fn maintenance_of_one_shard(name: &str) -> PlanError {
    let hint = match name {
        "brin_summarize_new_values" | "brin_summarize_range" | "gin_clean_pending_list" => {
            "VACUUM the table: it does that on every shard."
        }
        "pg_stat_reset" | "pg_stat_reset_single_table_counters" => {
            "Call it in a SELECT of its own, with the table's name as a constant: it is done on every shard."
        }
        "pg_clear_relation_stats"
        | "pg_clear_attribute_stats"
        | "pg_restore_relation_stats"
        | "pg_restore_attribute_stats" => "ANALYZE the table: it does so on every shard.",
        _ => "Call it on the shards themselves.",
    };
    PlanError::unsupported(format!(
        "function \"{name}\" is not supported over several shards"
    ))
    .detail("It would do its work for the home shard's part of the relation alone.")
    .hint(hint)
}

/// Whether a lower-case text may call a temporary function or use a temporary operator: `pg_temp.f(`,
/// `pg_temp.=`.
pub(crate) fn calls_temporary(text: &str) -> bool {
    text.match_indices("pg_temp").any(|(at, schema)| {
        let before = text[..at].trim_end_matches('"').trim_end();
        // A table, and the bracket begins its columns.
        if ["into", "table", "exists"]
            .iter()
            .any(|word| before.ends_with(word))
        {
            return false;
        }
        let rest =
            text[at + schema.len()..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        let rest = rest.trim_start_matches('"').trim_start();
        let Some(rest) = rest.strip_prefix('.') else {
            return false;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('"') {
            Some(quoted) => quoted
                .trim_start_matches(|c| c != '"')
                .trim_start_matches('"'),
            None => rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_' || c == '$'),
        };
        // Behind an operator's name is the bracket that closes it.
        let next = rest.trim_start().chars().next();
        next.is_some_and(|next| next == '(' || "+-*/<>=~!@#%^&|`?".contains(next))
    })
}

/// The error for a call of a function that may read or write placed tables by itself.
pub(crate) fn unsafe_function(name: &str, why: &str) -> PlanError {
    PlanError::unsupported(format!("function \"{name}\" may read or write distributed tables"))
        .detail(why)
        .hint(format!(
            "If it touches no distributed or reference table, run: select automator67.declare_safe('{name}')"
        ))
}

/// The name Postgres gives an output column without an alias; `None` where this is not certain.
/// (`FigureColname` in `src/backend/parser/parse_target.c`.)
pub(crate) fn output_name(node: &NodeEnum) -> Option<String> {
    Some(match figure(node)? {
        Named::Surely(name) | Named::Weakly(name) => name,
        Named::Not => "?column?".to_owned(),
    })
}

enum Named {
    Surely(String),
    Weakly(String),
    Not,
}

fn figure(node: &NodeEnum) -> Option<Named> {
    let surely = |name: &str| Some(Named::Surely(name.to_owned()));
    match node {
        NodeEnum::ColumnRef(column) => match tree::strings(&column.fields).last() {
            Some(name) => surely(name),
            None => Some(Named::Not),
        },
        NodeEnum::AIndirection(expr) => match tree::strings(&expr.indirection).last() {
            Some(name) => surely(name),
            None => figure(tree::inner(&expr.arg)?),
        },
        NodeEnum::FuncCall(call) => surely(tree::strings(&call.funcname).last()?),
        NodeEnum::AExpr(expr) if expr.kind() == protobuf::AExprKind::AexprNullif => {
            surely("nullif")
        }
        NodeEnum::TypeCast(cast) => match figure(tree::inner(&cast.arg)?)? {
            Named::Surely(name) => surely(&name),
            Named::Weakly(_) | Named::Not => {
                let name = cast.type_name.as_ref()?;
                Some(Named::Weakly(
                    (*tree::strings(&name.names).last()?).to_owned(),
                ))
            }
        },
        NodeEnum::CollateClause(clause) => figure(tree::inner(&clause.arg)?),
        NodeEnum::GroupingFunc(_) => surely("grouping"),
        NodeEnum::MergeSupportFunc(_) => surely("merge_action"),
        NodeEnum::SubLink(link) => figure_sublink(link),
        NodeEnum::CaseExpr(case) => match tree::inner(&case.defresult).map(figure) {
            Some(Some(Named::Surely(name))) => surely(&name),
            Some(None) => None,
            Some(Some(_)) | None => Some(Named::Weakly("case".to_owned())),
        },
        NodeEnum::AArrayExpr(_) => surely("array"),
        NodeEnum::RowExpr(_) => surely("row"),
        NodeEnum::CoalesceExpr(_) => surely("coalesce"),
        NodeEnum::MinMaxExpr(expr) => surely(match expr.op() {
            protobuf::MinMaxOp::IsLeast => "least",
            _ => "greatest",
        }),
        NodeEnum::SqlvalueFunction(function) => surely(value_function_name(function)?),
        NodeEnum::AConst(_)
        | NodeEnum::AExpr(_)
        | NodeEnum::ParamRef(_)
        | NodeEnum::BoolExpr(_)
        | NodeEnum::NullTest(_)
        | NodeEnum::BooleanTest(_) => Some(Named::Not),
        _ => None,
    }
}

fn figure_sublink(link: &protobuf::SubLink) -> Option<Named> {
    use protobuf::SubLinkType as Type;
    match link.sub_link_type() {
        Type::ExistsSublink => Some(Named::Surely("exists".to_owned())),
        Type::ArraySublink => Some(Named::Surely("array".to_owned())),
        Type::ExprSublink => {
            let NodeEnum::SelectStmt(select) = tree::inner(&link.subselect)? else {
                return None;
            };
            let NodeEnum::ResTarget(target) = tree::nodes(&select.target_list).next()? else {
                return None;
            };
            if !target.name.is_empty() {
                return Some(Named::Surely(target.name.clone()));
            }
            figure(tree::inner(&target.val)?)
        }
        _ => Some(Named::Not),
    }
}

fn value_function_name(function: &protobuf::SqlValueFunction) -> Option<&'static str> {
    use protobuf::SqlValueFunctionOp as Op;
    Some(match function.op() {
        Op::SvfopCurrentDate => "current_date",
        Op::SvfopCurrentTime | Op::SvfopCurrentTimeN => "current_time",
        Op::SvfopCurrentTimestamp | Op::SvfopCurrentTimestampN => "current_timestamp",
        Op::SvfopLocaltime | Op::SvfopLocaltimeN => "localtime",
        Op::SvfopLocaltimestamp | Op::SvfopLocaltimestampN => "localtimestamp",
        Op::SvfopCurrentRole => "current_role",
        Op::SvfopCurrentUser => "current_user",
        Op::SvfopUser => "user",
        Op::SvfopSessionUser => "session_user",
        Op::SvfopCurrentCatalog => "current_catalog",
        Op::SvfopCurrentSchema => "current_schema",
        Op::SqlvalueFunctionOpUndefined => return None,
    })
}
