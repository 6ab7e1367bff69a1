//! Many small checks on servers that are expensive to start: all run, all failures are told.

use anyhow::Result;

/// A named check on something that was started once.
pub type Check<T> = (&'static str, fn(&T) -> Result<()>);

/// Runs every check and panics with the list of those that failed. `AUTOMATOR67_CHECKS` keeps
/// those whose name contains it.
pub fn run<T>(subject: &T, checks: &[Check<T>]) {
    let wanted = std::env::var("AUTOMATOR67_CHECKS").unwrap_or_default();
    let failures: Vec<String> = checks
        .iter()
        .filter(|(name, _)| name.contains(&wanted))
        .filter_map(|(name, check)| {
            let error = check(subject).err()?;
            Some(format!("{name}: {error:#}"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} checks failed:\n{}",
        failures.len(),
        checks.len(),
        failures.join("\n")
    );
}
