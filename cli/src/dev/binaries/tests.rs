use super::*;

#[test]
fn versions_are_read() {
    assert_eq!(
        major("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"),
        Some(15)
    );
    assert_eq!(major("postgres (PostgreSQL) 18beta1\n"), Some(18));
    assert_eq!(major("postgres (PostgreSQL) 9.6.24"), Some(9));
    assert_eq!(major("postgres"), None);
    assert_eq!(major("postgres (PostgreSQL) x"), None);
}

#[test]
fn a_directory_without_programs_is_refused_by_name() {
    let error = Binaries::find(Some(Path::new("/"))).expect_err("no programs in /");
    assert_eq!(
        format!("{error:#}"),
        "--postgres-bin / cannot be used: it has no initdb"
    );
}

#[test]
fn newer_versions_come_first() {
    let root = env::temp_dir().join(format!("automator67-binaries-{}", std::process::id()));
    for version in ["9.6", "14", "9", "18", "common"] {
        fs::create_dir_all(root.join(version)).expect("made");
    }
    let found = installed(&root);
    fs::remove_dir_all(&root).expect("removed");
    assert_eq!(
        found,
        ["18", "14", "9"].map(|version| root.join(version).join("bin"))
    );
}
