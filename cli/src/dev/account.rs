//! The account that Postgres runs as. Postgres refuses to be root, so root lends it another.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, User, chown};

/// Tried in this order; it must be in the password database, else initdb refuses it.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// An unprivileged account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: Uid,
    /// Its group id.
    pub gid: Gid,
}

impl Account {
    /// `None` when we are not root: then Postgres runs as we do.
    pub fn for_postgres() -> Result<Option<Account>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        for name in CANDIDATES {
            let user = User::from_name(name).context("could not read the password database")?;
            if let Some(user) = user.filter(|user| !user.uid.is_root()) {
                return Ok(Some(Account {
                    name: name.to_owned(),
                    uid: user.uid,
                    gid: user.gid,
                }));
            }
        }
        anyhow::bail!(
            "Postgres does not run as root, and there is no account \"postgres\" or \"nobody\" to run it as\n\
             run this as an ordinary user, or add one: useradd --system postgres"
        )
    }

    /// Makes `command` run as the account.
    pub fn apply(&self, command: &mut Command) {
        command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
    }

    /// Gives a file or directory to the account.
    pub fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("could not give {} to \"{}\"", path.display(), self.name))
    }

    /// Every folder on the way to `path` must let the account through.
    pub fn check_reaches(&self, path: &Path) -> Result<()> {
        for folder in path.ancestors() {
            let facts = fs::metadata(folder)
                .with_context(|| format!("could not look at {}", folder.display()))?;
            let shift = if facts.uid() == self.uid.as_raw() {
                6
            } else if facts.gid() == self.gid.as_raw() {
                3
            } else {
                0
            };
            ensure!(
                facts.mode() >> shift & 1 == 1,
                "Postgres runs as the account \"{}\", which cannot reach {}: {} is closed to it\n\
                 choose another place with --data-dir, or open that folder (chmod o+x)",
                self.name,
                path.display(),
                folder.display()
            );
        }
        Ok(())
    }
}
