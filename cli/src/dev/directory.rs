//! The data directory: one owner at a time, the facts it was made with, its secrets.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};
use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};

use super::{SHARDS_MAX, account::Account, binaries::Binaries};

const SHARDS_DEFAULT: usize = 3;
/// `sun_path` of a Unix socket holds 108 bytes with the final zero.
const SOCKET_PATH_MAX: usize = 107;
const SOCKET_NAME: &str = "/.s.PGSQL.65535";
const GENERATED_PASSWORD_LENGTH: usize = 24;

/// What a directory was made with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Made {
    shards: usize,
    postgres_major: u32,
}

/// Where the running process is.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// For SQL clients, with the password.
    pub sql: String,
    /// For /metrics.
    pub http: String,
    /// The process.
    pub pid: u32,
}

impl State {
    /// Reads what the running process of a data directory wrote.
    pub fn read(directory: &Path) -> Result<State> {
        let state = fs::read_to_string(directory.join("state.json")).ok();
        let state: Option<State> = state.and_then(|text| serde_json::from_str(&text).ok());
        // Only one that holds the lock is alive: a killed one leaves its state behind.
        let state = state.filter(|_| is_locked(directory));
        state.with_context(|| {
            format!(
                "no automator67 dev is running on {}\nstart one with `automator67 dev`, or say which with --data-dir",
                directory.display()
            )
        })
    }
}

/// The login's password.
#[derive(Debug)]
pub struct Password {
    /// What it shall be.
    pub wanted: String,
    /// Clusters may have another one, from an earlier start.
    pub must_be_set: bool,
}

/// A data directory that this process owns.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    made: std::cell::OnceCell<Made>,
    _lock: Flock<File>,
}

/// `automator67/dev` where the user's data belongs. Root's home is closed to the account that
/// Postgres runs as, so root's place is under /var/lib.
pub fn default_path() -> Result<PathBuf> {
    if Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/lib/automator67/dev"));
    }
    // The XDG specification says that a relative path counts as unset.
    let base = env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|base| base.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".local/share")))
        .context("there is no home directory; say where with --data-dir")?;
    Ok(base.join("automator67/dev"))
}

impl Directory {
    /// Makes it if needed and takes its lock.
    pub fn open(path: &Path, account: Option<&Account>) -> Result<Directory> {
        let failed = || format!("could not use the data directory {}", path.display());
        // Under root the account must get through to its clusters, but not look around.
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        if !path.exists() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(failed)?;
            }
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .with_context(failed)?;
            // The mode above is cut by the umask.
            fs::set_permissions(path, Permissions::from_mode(mode)).with_context(failed)?;
        }
        let path = fs::canonicalize(path).with_context(failed)?;
        if let Some(account) = account {
            account.check_reaches(&path)?;
        }
        let lock = lock(&path)?;
        Ok(Directory {
            path,
            made: std::cell::OnceCell::new(),
            _lock: lock,
        })
    }

    /// Where it is, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Decides at the first start, and checks at later ones, what the directory holds.
    pub fn settle(&self, shards: Option<usize>, binaries: &Binaries) -> Result<()> {
        let file = self.path.join("dev.json");
        let place = self.path.display();
        let made = match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", file.display()))?,
            Err(_) => {
                let shards = shards.unwrap_or(SHARDS_DEFAULT);
                ensure!(
                    (1..=SHARDS_MAX).contains(&shards),
                    "--shards must be between 1 and {SHARDS_MAX}"
                );
                let made = Made {
                    shards,
                    postgres_major: binaries.major,
                };
                write_private(&file, &serde_json::to_string(&made)?)?;
                made
            }
        };
        if let Some(wanted) = shards.filter(|wanted| *wanted != made.shards) {
            bail!(
                "{place} was made with {} shards, --shards asks for {wanted}\n\
                 leave --shards out, or choose another --data-dir",
                made.shards
            );
        }
        ensure!(
            made.postgres_major == binaries.major,
            "{place} was made with PostgreSQL {}, {} is PostgreSQL {}\n\
             name the programs of PostgreSQL {} with --postgres-bin, or choose another --data-dir",
            made.postgres_major,
            binaries.directory.display(),
            binaries.major,
            made.postgres_major
        );
        self.made.set(made).ok();
        Ok(())
    }

    /// How many shards it holds, once settled.
    pub fn shard_count(&self) -> usize {
        self.made.get().map_or(0, |made| made.shards)
    }

    /// The directory of the shards' sockets: closed to all but their account. A path that is too
    /// long for a socket gets a short one elsewhere, named by a hash of this path.
    pub fn sockets(&self, account: Option<&Account>) -> Result<PathBuf> {
        let near = self.path.join("sockets");
        let sockets = if near.as_os_str().len() + SOCKET_NAME.len() <= SOCKET_PATH_MAX {
            near
        } else {
            // Under root, the runtime directory is closed to the account.
            let runtime = env::var_os("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .filter(|runtime| account.is_none() && runtime.is_dir())
                .filter(|runtime| runtime.as_os_str().len() < 60)
                .unwrap_or_else(|| PathBuf::from("/tmp"));
            runtime.join(format!("automator67-{:016x}", hash(&self.path)))
        };
        private_directory(&sockets, account)?;
        Ok(sockets)
    }

    /// The flag's password, else the kept one, else a new one.
    pub fn password(&self, flag: Option<&str>) -> Result<Password> {
        let kept = fs::read_to_string(self.path.join("password")).ok();
        let wanted = match (flag, &kept) {
            (Some(flag), _) => flag.to_owned(),
            (None, Some(kept)) => kept.clone(),
            (None, None) => generate(),
        };
        ensure!(!wanted.is_empty(), "--password must not be empty");
        ensure!(
            !wanted.chars().any(char::is_control),
            "--password must not hold control characters"
        );
        // A change that did not reach every cluster left its mark.
        let changing = self.path.join("password.changing");
        let must_be_set = match &kept {
            None => false,
            Some(kept) => *kept != wanted || changing.exists(),
        };
        if must_be_set {
            write_private(&changing, "")?;
        }
        if kept.is_none() {
            write_private(&self.path.join("password"), &wanted)?;
        }
        Ok(Password {
            wanted,
            must_be_set,
        })
    }

    /// Keeps a password that every cluster has now.
    pub fn keep_password(&self, password: &str) -> Result<()> {
        write_private(&self.path.join("password"), password)?;
        let changing = self.path.join("password.changing");
        fs::remove_file(&changing)
            .with_context(|| format!("could not remove {}", changing.display()))
    }

    /// Tells client commands where this process is.
    pub fn write_state(&self, state: &State) -> Result<()> {
        write_private(
            &self.path.join("state.json"),
            &serde_json::to_string(state)?,
        )
    }

    /// The opposite.
    pub fn forget_state(&self) {
        // A state that stays behind is not believed without the lock.
        let _ = fs::remove_file(self.path.join("state.json"));
    }
}

fn lock(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join("lock");
    let failed = || format!("could not open {}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0).with_context(failed)?;
            writeln!(file, "{}", std::process::id()).with_context(failed)?;
            Ok(file)
        }
        Err(_) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another automator67 dev is running on {} (process {})\n\
                 stop it, or choose another --data-dir",
                directory.display(),
                holder.trim()
            )
        }
    }
}

fn is_locked(directory: &Path) -> bool {
    match File::open(directory.join("lock")) {
        Ok(file) => Flock::lock(file, FlockArg::LockSharedNonblock).is_err(),
        Err(_) => false,
    }
}

/// A file only its owner reads, replaced as a whole, on disk before this returns.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // A file of an earlier try would keep its own mode.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

/// A directory that only the account (without one: we) can enter. One that exists, perhaps made
/// by somebody else in a shared place, must be exactly that.
pub fn private_directory(path: &Path, account: Option<&Account>) -> Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(path);
    match made {
        Ok(()) => {
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
            if let Some(account) = account {
                account.own(path)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let facts = fs::symlink_metadata(path)?;
            let owner = account.map_or_else(Uid::effective, |account| account.uid);
            ensure!(
                facts.is_dir() && facts.uid() == owner.as_raw() && facts.mode() & 0o077 == 0,
                "{} is not a directory of the account that runs Postgres, closed to others\nremove it",
                path.display()
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("could not make {}", path.display())),
    }
}

fn generate() -> String {
    let letters = rand::rng().sample_iter(Alphanumeric).map(char::from);
    letters.take(GENERATED_PASSWORD_LENGTH).collect()
}

/// FNV-1a: the same in every release, unlike the standard library's.
fn hash(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
