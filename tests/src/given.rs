//! What the environment gives to tests: how long, how many, which ones.

/// The whole number in the variable `name`.
pub fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a whole number"))
}

/// `AUTOMATOR67_SEED`, else one that nobody had before. It is told, so that `what` can be had again.
pub fn seed(what: &str) -> u64 {
    seed_or(what, rand::random())
}

/// The same, else `default`.
pub fn seed_or(what: &str, default: u64) -> u64 {
    let seed = number("AUTOMATOR67_SEED", default);
    eprintln!("{what}: AUTOMATOR67_SEED={seed}");
    seed
}
