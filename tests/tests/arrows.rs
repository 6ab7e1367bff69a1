//! Which of our crates may use which: docs/architecture.md, "Crates and arrows".

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

/// `planner`, `control` and `storage` depend on none of ours; programs that drive others may use anything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("automator67-planner", &[]),
    ("automator67-control", &[]),
    ("automator67-storage", &[]),
    ("automator67-proxy", &["automator67-planner"]),
    ("automator67", &["automator67-control", "automator67-proxy"]),
];
const FREE: &[&str] = &["automator67-tests", "automator67-bench"];

#[test]
fn crates_depend_only_downward() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        if FREE.contains(&name) {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap_or_else(|| panic!("crate {name} has no rule here"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let target = dependency["name"]
                .as_str()
                .expect("a dependency has a name");
            assert!(
                !ours.contains(target) || allowed.contains(&target),
                "{name} must not depend on {target}"
            );
        }
    }
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}
