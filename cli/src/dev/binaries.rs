//! Where the Postgres programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::account::Account;

/// The oldest major version whose features we use.
const MAJOR_MIN: u32 = 14;
/// Where Debian and its kin keep one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// What a directory must hold to be of use.
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "pg_ctl"];

/// A directory with a working `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The directory.
    pub directory: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Binaries {
    /// The flag's directory, else the one on PATH, else the newest that is installed.
    pub fn find(flag: Option<&Path>) -> Result<Binaries> {
        if let Some(directory) = flag {
            return look(directory)
                .with_context(|| format!("--postgres-bin {} cannot be used", directory.display()));
        }
        let on_path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&on_path)
            .filter(|directory| directory.join("postgres").exists())
            .map(|directory| real(&directory))
            .chain(installed(Path::new(DEBIAN)))
            .find_map(|directory| look(&directory).ok());
        found.with_context(|| {
            format!(
                "no PostgreSQL server programs were found on PATH or under {DEBIAN}\n\
                 install them ({}), or name their directory with --postgres-bin DIR",
                install_command()
            )
        })
    }

    /// The path of one of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Programs under a directory that the account cannot enter would fail later and darkly.
    pub fn check_runs_as(&self, account: Option<&Account>, directory: &Path) -> Result<()> {
        let Some(account) = account else {
            return Ok(());
        };
        let mut command = Command::new(self.program("postgres"));
        command.arg("--version").current_dir(directory);
        account.apply(&mut command);
        let runs = command.output().is_ok_and(|output| output.status.success());
        ensure!(
            runs,
            "the account \"{}\" cannot run {}\nname programs that it can run with --postgres-bin DIR",
            account.name,
            self.program("postgres").display()
        );
        Ok(())
    }
}

/// The directory that a link on PATH leads to, where the other programs are.
fn real(directory: &Path) -> PathBuf {
    let linked = fs::canonicalize(directory.join("postgres")).ok();
    let linked = linked.as_deref().and_then(Path::parent).map(Path::to_owned);
    linked
        .filter(|linked| has_programs(linked))
        .unwrap_or_else(|| directory.to_owned())
}

/// `<root>/<version>/bin`, newest first.
fn installed(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions
        .into_iter()
        .map(|(_, directory)| directory)
        .collect()
}

fn has_programs(directory: &Path) -> bool {
    PROGRAMS
        .iter()
        .all(|program| directory.join(program).is_file())
}

fn look(directory: &Path) -> Result<Binaries> {
    let directory = fs::canonicalize(directory)
        .with_context(|| format!("{} cannot be read", directory.display()))?;
    if let Some(missing) = PROGRAMS.iter().find(|it| !directory.join(it).is_file()) {
        bail!("it has no {missing}");
    }
    let output = Command::new(directory.join("postgres"))
        .arg("--version")
        .output()
        .context("postgres --version does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "postgres --version fails");
    let major = major(&text).with_context(|| format!("not a version: {}", text.trim()))?;
    ensure!(
        major >= MAJOR_MIN,
        "it is PostgreSQL {major}; {MAJOR_MIN} or newer is needed"
    );
    Ok(Binaries { directory, major })
}

/// `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)` is 15; so are `15devel` and `15beta1`.
fn major(version: &str) -> Option<u32> {
    let rest = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = rest.find(|letter: char| !letter.is_ascii_digit());
    rest[..digits.unwrap_or(rest.len())].parse().ok()
}

fn install_command() -> &'static str {
    let known = [
        ("/usr/bin/apt-get", "apt-get install postgresql"),
        ("/usr/bin/dnf", "dnf install postgresql-server"),
        ("/sbin/apk", "apk add postgresql"),
        ("/usr/bin/pacman", "pacman -S postgresql"),
        ("/usr/bin/zypper", "zypper install postgresql-server"),
    ];
    known
        .iter()
        .find(|(program, _)| Path::new(program).exists())
        .map_or("with the system's package manager", |(_, command)| command)
}

#[cfg(test)]
mod tests;
