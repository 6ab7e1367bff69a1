//! What the proxy needs to know to run, resolved: no defaults are left to guess below this point.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Everything [`Proxy::start`](crate::listener::Proxy::start) needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The one database name clients may ask for; others are answered with 3D000.
    pub database: String,
    /// Who may log in. The same name logs in to the shards.
    pub users: Vec<User>,
    /// The shards; the first is the home shard, which holds the catalog.
    pub shards: Vec<ShardSettings>,
    /// TLS towards clients; `None` answers SSLRequest with `N`.
    pub tls: Option<TlsSettings>,
    /// Threads that serve clients, each with its own share of every pool.
    pub threads: usize,
    /// Client sessions at the same time; more are refused with 53300.
    pub sessions_max: usize,
    /// Clients that are not logged in yet; beyond it the oldest, silent ones first, makes room.
    pub logins_max: usize,
    /// Of those from one address, how many may be silent; beyond it the oldest makes room.
    pub logins_per_address_max: usize,
    /// The largest message of a client, and the longest line of a COPY; more is refused with 54000.
    pub message_bytes_max: usize,
    /// What all sessions together may hold of large messages and rows; more is refused with 53200.
    pub memory_bytes_max: usize,
    /// How long a statement waits for a server connection before 53300.
    pub pool_wait_timeout: Duration,
    /// How long connecting to a shard may take; also the limit for unacknowledged data on an
    /// established connection before the shard counts as gone.
    pub shard_connect_timeout: Duration,
    /// How often a shard's health is looked at.
    pub health_interval: Duration,
    /// How long a client may take to log in.
    pub login_timeout: Duration,
    /// Default of `automator67.gather_max_bytes`: what one statement may copy to the home shard.
    pub gather_bytes_max: u64,
    /// Default of `automator67.sequence_block`: values of a sequence reserved at once.
    pub sequence_block: u64,
    /// Plans kept per thread.
    pub plan_cache_entries_max: usize,
    /// How long one plan may take before 54000.
    pub plan_timeout: Duration,
    /// Bytes that one plan may take, by an estimate, before 54000.
    pub plan_memory_max: usize,
    /// What happens to transactions that write on several shards.
    pub two_phase: TwoPhaseMode,
    /// Servers may differ in version, collations and extensions: what they answer may, too.
    pub mixed_versions: bool,
    /// Default of `automator67.consistency`.
    pub consistency: Consistency,
    /// Virtual nodes of a shard of weight 1 on the ring.
    pub virtual_nodes: u32,
}

/// How much transactions that write on several shards need of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwoPhaseMode {
    /// They are refused when more than one shard cannot prepare transactions.
    Require,
    /// They are committed shard by shard then, with a warning.
    Prefer,
}

/// What a statement sees of transactions that wrote on several shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// All that is committed; of one that is being committed perhaps a part.
    Strong,
    /// Each wholly or not at all.
    Snapshot,
    /// As `Strong`, until there are replicas.
    ReadYourWrites,
    /// As `Strong`, until there are replicas.
    Monotonic,
    /// As `Strong`, until there are replicas.
    Eventual,
}

impl Consistency {
    /// All levels.
    pub const ALL: [Consistency; 5] = [
        Consistency::Strong,
        Consistency::Snapshot,
        Consistency::ReadYourWrites,
        Consistency::Monotonic,
        Consistency::Eventual,
    ];

    /// As it is set.
    pub fn name(self) -> &'static str {
        match self {
            Consistency::Strong => "strong",
            Consistency::Snapshot => "snapshot",
            Consistency::ReadYourWrites => "read_your_writes",
            Consistency::Monotonic => "monotonic",
            Consistency::Eventual => "eventual",
        }
    }

    /// The level of that name.
    pub fn named(name: &str) -> Option<Consistency> {
        Consistency::ALL
            .into_iter()
            .find(|level| level.name() == name)
    }
}

/// A login.
#[derive(Clone)]
pub struct User {
    /// Role name, the same on every shard.
    pub name: String,
    /// What its clients log in with.
    pub password: String,
    /// What we log in to the shards with, in its name.
    pub shard_password: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A Postgres server that holds a share of the rows.
#[derive(Clone)]
pub struct ShardSettings {
    /// Its name in messages and views, like `shard1`.
    pub name: String,
    /// Where it listens.
    pub host: ShardHost,
    /// TCP port, or the number in the name of the Unix socket.
    pub port: u16,
    /// The database on that server.
    pub database: String,
    /// The role that owns the catalog: used for migrations, LISTEN and health checks.
    pub admin_user: String,
    /// Its password.
    pub admin_password: String,
    /// What it may ask for when we log in.
    pub auth: ShardAuth,
    /// TLS towards the shard.
    pub tls: ShardTls,
    /// PEM file with the roots to trust instead of the public ones.
    pub tls_root: Option<PathBuf>,
    /// Server connections per user to this shard.
    pub pool_size_max: usize,
}

impl std::fmt::Debug for ShardSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardSettings")
            .field("name", &self.name)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// How a shard is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardHost {
    /// Directory of the Unix socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
    /// Host name or address.
    Tcp(String),
}

/// Ways to log in that a shard may ask for, libpq's `require_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardAuth {
    /// It may ask for nothing.
    pub none: bool,
    /// The password in the clear.
    pub password: bool,
    /// The password, hashed in a way that can be turned around.
    pub md5: bool,
    /// SCRAM-SHA-256, which shows nobody the password and proves that the server knows it.
    pub scram: bool,
}

impl ShardAuth {
    /// Whatever it likes.
    pub const ANY: ShardAuth = ShardAuth {
        none: true,
        password: true,
        md5: true,
        scram: true,
    };
    /// Only what is safe with everybody.
    pub const SCRAM: ShardAuth = ShardAuth {
        none: false,
        password: false,
        md5: false,
        scram: true,
    };
    /// What does not give a password away.
    pub const SECRET: ShardAuth = ShardAuth {
        none: true,
        password: false,
        md5: false,
        scram: true,
    };
}

/// libpq's `sslmode` towards a shard, without `allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardTls {
    /// Never.
    Disable,
    /// If the server offers it; the certificate is not checked.
    Prefer,
    /// Always; the certificate is not checked.
    Require,
    /// Always; the certificate must come from a trusted root.
    VerifyCa,
    /// Always; also the host name must match.
    VerifyFull,
}

/// TLS towards clients.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with the key.
    pub key: PathBuf,
    /// Refuse clients without TLS with 28000.
    pub required: bool,
}
