//! One TOML file -> the proxy's settings. Unknown keys are errors that name line and column;
//! relative paths start at the file's own folder.

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use automator67_proxy::settings::{
    Consistency, Settings, ShardAuth, ShardHost, ShardSettings, TlsSettings, TwoPhaseMode, User,
};
use serde::Deserialize;
use thiserror::Error;

use crate::server_url::{ServerUrl, UrlError};

/// Where the SQL port is, unless told otherwise.
pub const SQL_LISTEN: &str = "127.0.0.1:6432";
/// Where the HTTP port is, unless told otherwise.
pub const HTTP_LISTEN: &str = "127.0.0.1:8067";

/// The least and the largest limit of a message. Smaller ones would refuse ordinary statements;
/// larger messages are no messages of the protocol for a server either.
const MESSAGE_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 30);

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("could not read {}: {cause}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is not TOML, or not ours.
    #[error("{}: {cause}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, column and reason.
        cause: Box<toml::de::Error>,
    },
    /// A shard's URL.
    #[error("shard \"{shard}\": {cause}")]
    Url {
        /// Its name.
        shard: String,
        /// Why.
        cause: UrlError,
    },
    /// A value that makes no sense.
    #[error("{0}")]
    Value(String),
    /// Others can read a secret.
    #[error(
        "{} holds secrets, and others may read it\nchange that: chmod 600 {}", .0.display(), .0.display()
    )]
    Open(PathBuf),
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    sql: Sql,
    #[serde(default)]
    http: Http,
    users: Vec<Login>,
    shards: Vec<Shard>,
    #[serde(default)]
    gather: Gather,
    #[serde(default)]
    transactions: Transactions,
    #[serde(default)]
    sequences: SequenceConfig,
    #[serde(default)]
    ring: RingConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sql {
    listen: SocketAddr,
    database: String,
    threads: usize,
    sessions_max: usize,
    logins_max: usize,
    logins_per_address_max: usize,
    message_bytes_max: usize,
    memory_bytes_max: usize,
    pool_wait_timeout_ms: u64,
    shard_connect_timeout_ms: u64,
    health_interval_ms: u64,
    login_timeout_s: u64,
    plan_cache_entries_max: usize,
    plan_timeout_ms: u64,
    plan_memory_max: usize,
    mixed_versions: bool,
    tls: Option<Tls>,
}

impl Default for Sql {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Sql {
            listen: SQL_LISTEN.parse().expect("an address"),
            database: "app".to_owned(),
            // The other half of the machine is for the servers, or for the kernel's network.
            threads: (cores / 2).max(1),
            sessions_max: 10_000,
            logins_max: 10_000,
            logins_per_address_max: 100,
            message_bytes_max: 64 << 20,
            memory_bytes_max: 1 << 30,
            pool_wait_timeout_ms: 10_000,
            shard_connect_timeout_ms: 2_000,
            health_interval_ms: 1_000,
            login_timeout_s: 60,
            plan_cache_entries_max: 4_096,
            plan_timeout_ms: 10_000,
            plan_memory_max: 512 << 20,
            mixed_versions: false,
            tls: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default)]
    required: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http {
    listen: SocketAddr,
}

impl Default for Http {
    fn default() -> Self {
        Http {
            listen: HTTP_LISTEN.parse().expect("an address"),
        }
    }
}

/// A user; exactly one of the three says the password, and at most one the password on the shards.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    /// On the shards, where that is another one.
    shard_password: Option<String>,
    shard_password_file: Option<PathBuf>,
    shard_password_env: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    name: String,
    url: String,
    /// Instead of a password in the URL.
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    #[serde(default = "pool_size")]
    pool_size: usize,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Server connections per user to one shard.
pub fn pool_size() -> usize {
    20
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Gather {
    max_bytes: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SequenceConfig {
    block: u64,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        SequenceConfig { block: 100 }
    }
}

impl Default for Gather {
    fn default() -> Self {
        Gather {
            max_bytes: 256 << 20,
        }
    }
}

/// Transactions that write on several shards.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Transactions {
    two_phase: TwoPhase,
    consistency: Level,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TwoPhase {
    #[default]
    Require,
    Prefer,
}

impl From<TwoPhase> for TwoPhaseMode {
    fn from(given: TwoPhase) -> Self {
        match given {
            TwoPhase::Require => TwoPhaseMode::Require,
            TwoPhase::Prefer => TwoPhaseMode::Prefer,
        }
    }
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    #[default]
    Strong,
    Snapshot,
    ReadYourWrites,
    Monotonic,
    Eventual,
}

impl From<Level> for Consistency {
    fn from(given: Level) -> Self {
        match given {
            Level::Strong => Consistency::Strong,
            Level::Snapshot => Consistency::Snapshot,
            Level::ReadYourWrites => Consistency::ReadYourWrites,
            Level::Monotonic => Consistency::Monotonic,
            Level::Eventual => Consistency::Eventual,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RingConfig {
    virtual_nodes: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        RingConfig { virtual_nodes: 150 }
    }
}

/// Flags and environment, which win over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Overrides {
    /// Where clients connect, over `[sql] listen`.
    #[arg(long, env = "AUTOMATOR67_SQL", value_name = "HOST:PORT")]
    pub sql: Option<SocketAddr>,
    /// Where /metrics and /healthz are, over `[http] listen`.
    #[arg(long, env = "AUTOMATOR67_HTTP", value_name = "HOST:PORT")]
    pub http: Option<SocketAddr>,
    /// The database clients ask for, over `[sql] database`.
    #[arg(long, env = "AUTOMATOR67_DATABASE", value_name = "NAME")]
    pub database: Option<String>,
    /// Threads that serve clients, over `[sql] threads`.
    #[arg(long, env = "AUTOMATOR67_THREADS", value_name = "N")]
    pub threads: Option<usize>,
}

/// What a process serves.
#[derive(Debug)]
pub struct Served {
    /// The SQL port and everything behind it.
    pub settings: Settings,
    /// The HTTP port.
    pub http: SocketAddr,
}

/// Reads the file at `path` and resolves it.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Served, ConfigError> {
    let text = read(path)?;
    let config = toml::from_str(&text).map_err(|cause| ConfigError::Parse {
        path: path.to_owned(),
        cause: Box::new(cause),
    })?;
    let config: Config = config;
    if config.holds_passwords() {
        check_private(path)?;
    }
    if let Some(tls) = &config.sql.tls {
        check_private(&path.parent().unwrap_or(Path::new("")).join(&tls.key))?;
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    resolve(config, overrides, folder)
}

impl Config {
    fn holds_passwords(&self) -> bool {
        // A URL that cannot be read is refused later, and may hold one.
        let has_password =
            |shard: &Shard| !ServerUrl::parse(&shard.url).is_ok_and(|url| url.password.is_empty());
        self.users
            .iter()
            .any(|user| user.password.is_some() || user.shard_password.is_some())
            || self.shards.iter().any(has_password)
    }
}

/// As a Postgres server looks at its key: closed to all but its owner; a file of root's may be read
/// by its group.
fn check_private(path: &Path) -> Result<(), ConfigError> {
    let facts = std::fs::metadata(path).map_err(|cause| ConfigError::Read {
        path: path.to_owned(),
        cause,
    })?;
    let open = if facts.uid() == 0 { 0o037 } else { 0o077 };
    if facts.is_file() && facts.mode() & open != 0 {
        return Err(ConfigError::Open(path.to_owned()));
    }
    Ok(())
}

/// The settings of a proxy that has no file: defaults, with these users and shards.
pub fn without_file(users: Vec<User>, shards: Vec<ShardSettings>) -> Settings {
    let config = Config {
        sql: Sql::default(),
        http: Http::default(),
        users: Vec::new(),
        shards: Vec::new(),
        gather: Gather::default(),
        transactions: Transactions::default(),
        sequences: SequenceConfig::default(),
        ring: RingConfig::default(),
    };
    settings(config, users, shards)
}

fn resolve(config: Config, overrides: &Overrides, folder: &Path) -> Result<Served, ConfigError> {
    let mut config = config;
    let http = overrides.http.unwrap_or(config.http.listen);
    let sql = &mut config.sql;
    sql.listen = overrides.sql.unwrap_or(sql.listen);
    sql.threads = overrides.threads.unwrap_or(sql.threads);
    if let Some(database) = &overrides.database {
        sql.database.clone_from(database);
    }
    if let Some(tls) = &mut sql.tls {
        tls.certificate = folder.join(&tls.certificate);
        tls.key = folder.join(&tls.key);
    }
    check(&config)?;
    let users = config.users.iter().map(|login| user(login, folder));
    let users = users.collect::<Result<_, _>>()?;
    let shards = config.shards.iter().map(|it| shard(it, folder));
    let shards = shards.collect::<Result<_, _>>()?;
    let settings = settings(config, users, shards);
    Ok(Served { settings, http })
}

fn settings(config: Config, users: Vec<User>, shards: Vec<ShardSettings>) -> Settings {
    let sql = config.sql;
    Settings {
        listen: sql.listen,
        database: sql.database,
        users,
        shards,
        tls: sql.tls.map(|tls| TlsSettings {
            certificate: tls.certificate,
            key: tls.key,
            required: tls.required,
        }),
        threads: sql.threads,
        sessions_max: sql.sessions_max,
        logins_max: sql.logins_max,
        logins_per_address_max: sql.logins_per_address_max,
        message_bytes_max: sql.message_bytes_max,
        memory_bytes_max: sql.memory_bytes_max,
        pool_wait_timeout: Duration::from_millis(sql.pool_wait_timeout_ms),
        shard_connect_timeout: Duration::from_millis(sql.shard_connect_timeout_ms),
        health_interval: Duration::from_millis(sql.health_interval_ms),
        login_timeout: Duration::from_secs(sql.login_timeout_s),
        gather_bytes_max: config.gather.max_bytes,
        two_phase: config.transactions.two_phase.into(),
        mixed_versions: sql.mixed_versions,
        consistency: config.transactions.consistency.into(),
        sequence_block: config.sequences.block,
        plan_cache_entries_max: sql.plan_cache_entries_max,
        plan_timeout: Duration::from_millis(sql.plan_timeout_ms),
        plan_memory_max: sql.plan_memory_max,
        virtual_nodes: config.ring.virtual_nodes,
    }
}

fn check(config: &Config) -> Result<(), ConfigError> {
    let refuse = |reason: String| Err(ConfigError::Value(reason));
    let sql = &config.sql;
    let counts = [
        ("[sql] threads", sql.threads as u64),
        ("[sql] sessions_max", sql.sessions_max as u64),
        ("[sql] logins_max", sql.logins_max as u64),
        (
            "[sql] logins_per_address_max",
            sql.logins_per_address_max as u64,
        ),
        ("[sql] pool_wait_timeout_ms", sql.pool_wait_timeout_ms),
        (
            "[sql] shard_connect_timeout_ms",
            sql.shard_connect_timeout_ms,
        ),
        ("[sql] health_interval_ms", sql.health_interval_ms),
        ("[sql] login_timeout_s", sql.login_timeout_s),
        (
            "[sql] plan_cache_entries_max",
            sql.plan_cache_entries_max as u64,
        ),
        ("[sql] plan_timeout_ms", sql.plan_timeout_ms),
        ("[sql] plan_memory_max", sql.plan_memory_max as u64),
        ("[gather] max_bytes", config.gather.max_bytes),
        ("[sequences] block", config.sequences.block),
        ("[ring] virtual_nodes", u64::from(config.ring.virtual_nodes)),
    ];
    if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
        return refuse(format!("{key} must be at least 1"));
    }
    if !MESSAGE_BYTES.contains(&sql.message_bytes_max) {
        return refuse(format!(
            "[sql] message_bytes_max must be between {} and {}",
            MESSAGE_BYTES.start(),
            MESSAGE_BYTES.end()
        ));
    }
    if sql.memory_bytes_max / 4 < sql.message_bytes_max {
        return refuse(
            "[sql] memory_bytes_max must be at least 4 times message_bytes_max".to_owned(),
        );
    }
    if sql.database.is_empty() {
        return refuse("[sql] database must not be empty".to_owned());
    }
    let shards = config.shards.iter().map(|shard| shard.name.as_str());
    distinct("[[shards]]", shards)?;
    let users = config.users.iter().map(|user| user.name.as_str());
    distinct("[[users]]", users)?;
    match config.shards.iter().find(|shard| shard.pool_size == 0) {
        Some(shard) => refuse(format!(
            "shard \"{}\": pool_size must be at least 1",
            shard.name
        )),
        None => Ok(()),
    }
}

fn distinct<'a>(section: &str, names: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(ConfigError::Value(format!(
                "{section} name must not be empty"
            )));
        }
        if !seen.insert(name) {
            return Err(ConfigError::Value(format!(
                "{section} names \"{name}\" twice"
            )));
        }
    }
    if seen.is_empty() {
        return Err(ConfigError::Value(format!(
            "at least one of {section} is needed"
        )));
    }
    Ok(())
}

fn user(login: &Login, folder: &Path) -> Result<User, ConfigError> {
    let name = &login.name;
    let who = format!("user \"{name}\"");
    let given = (&login.password, &login.password_file, &login.password_env);
    let password = match given {
        (Some(password), None, None) => password.clone(),
        (None, Some(file), None) => password_of_file(&folder.join(file))?,
        (None, None, Some(variable)) => password_of_variable(&who, variable)?,
        _ => {
            return Err(ConfigError::Value(format!(
                "{who} needs exactly one of password, password_file, password_env"
            )));
        }
    };
    let given = (
        &login.shard_password,
        &login.shard_password_file,
        &login.shard_password_env,
    );
    let shard_password = match given {
        (None, None, None) => password.clone(),
        (Some(password), None, None) => password.clone(),
        (None, Some(file), None) => password_of_file(&folder.join(file))?,
        (None, None, Some(variable)) => password_of_variable(&who, variable)?,
        _ => {
            return Err(ConfigError::Value(format!(
                "{who} takes one of shard_password, shard_password_file, shard_password_env"
            )));
        }
    };
    let named = [("password", &password), ("shard password", &shard_password)];
    if let Some((which, _)) = named.iter().find(|(_, password)| password.is_empty()) {
        return Err(ConfigError::Value(format!("{who}: the {which} is empty")));
    }
    Ok(User {
        name: name.clone(),
        password,
        shard_password,
    })
}

/// The password in a file that only its owner reads.
pub fn password_of_file(path: &Path) -> Result<String, ConfigError> {
    let text = read(path)?;
    check_private(path)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn password_of_variable(who: &str, variable: &str) -> Result<String, ConfigError> {
    std::env::var(variable)
        .map_err(|_| ConfigError::Value(format!("{who}: the environment has no {variable}")))
}

/// Over anything but a Unix socket nobody gets a password by asking for it.
fn default_auth(host: &ShardHost, password: &str) -> ShardAuth {
    match host {
        ShardHost::Unix(_) => ShardAuth::ANY,
        ShardHost::Tcp(_) if password.is_empty() => ShardAuth::SECRET,
        ShardHost::Tcp(_) => ShardAuth::SCRAM,
    }
}

fn shard(shard: &Shard, folder: &Path) -> Result<ShardSettings, ConfigError> {
    let url = ServerUrl::parse(&shard.url).map_err(|cause| ConfigError::Url {
        shard: shard.name.clone(),
        cause,
    })?;
    let who = format!("shard \"{}\"", shard.name);
    let in_url = Some(url.password).filter(|password| !password.is_empty());
    let password = match (in_url, &shard.password_file, &shard.password_env) {
        (in_url, None, None) => in_url.unwrap_or_default(),
        (None, Some(file), None) => password_of_file(&folder.join(file))?,
        (None, None, Some(variable)) => password_of_variable(&who, variable)?,
        _ => {
            return Err(ConfigError::Value(format!(
                "{who} takes one of a password in the URL, password_file, password_env"
            )));
        }
    };
    Ok(ShardSettings {
        auth: url.auth.unwrap_or(default_auth(&url.host, &password)),
        name: shard.name.clone(),
        host: url.host,
        port: url.port,
        database: url.database,
        admin_user: url.user,
        admin_password: password,
        tls: url.tls,
        tls_root: url.tls_root.map(|root| folder.join(root)),
        pool_size_max: shard.pool_size,
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|cause| ConfigError::Read {
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests;
