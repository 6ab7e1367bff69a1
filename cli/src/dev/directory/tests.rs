use super::*;

/// A place of its own for one test, gone with it.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Place {
        let name = format!("automator67-directory-{test}-{}", std::process::id());
        let place = env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&place);
        Place(place)
    }

    fn open(&self) -> Directory {
        Directory::open(&self.0, None).expect("opened")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn binaries(major: u32) -> Binaries {
    Binaries {
        directory: PathBuf::from("/programs"),
        major,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").mode() & 0o777
}

#[test]
fn a_second_owner_is_refused_with_the_holder() {
    let place = Place::new("owner");
    let first = place.open();
    let error = Directory::open(&place.0, None).expect_err("it is taken");
    assert_eq!(
        format!("{error:#}"),
        format!(
            "another automator67 dev is running on {} (process {})\n\
             stop it, or choose another --data-dir",
            first.path().display(),
            std::process::id()
        )
    );
    drop(first);
    place.open();
}

#[test]
fn a_directory_is_closed_to_others() {
    let place = Place::new("closed");
    let directory = place.open();
    assert_eq!(mode(directory.path()), 0o700);
    assert_eq!(mode(&directory.path().join("lock")), 0o600);
}

#[test]
fn shards_are_decided_once() {
    let place = Place::new("shards");
    let path = {
        let directory = place.open();
        directory.settle(Some(5), &binaries(15)).expect("decided");
        assert_eq!(directory.shard_count(), 5);
        directory.path().display().to_string()
    };
    let directory = place.open();
    let error = directory
        .settle(Some(4), &binaries(15))
        .expect_err("it has 5");
    assert_eq!(
        format!("{error:#}"),
        format!(
            "{path} was made with 5 shards, --shards asks for 4\n\
             leave --shards out, or choose another --data-dir"
        )
    );
    assert_eq!(
        directory.shard_count(),
        0,
        "a refused directory is not settled"
    );
    directory
        .settle(None, &binaries(15))
        .expect("as it was made");
    assert_eq!(directory.shard_count(), 5);
}

#[test]
fn shards_are_within_bounds() {
    let place = Place::new("bounds");
    let directory = place.open();
    for shards in [0, SHARDS_MAX + 1, usize::MAX] {
        let error = directory
            .settle(Some(shards), &binaries(15))
            .expect_err("out of bounds");
        let expected = format!("--shards must be between 1 and {SHARDS_MAX}");
        assert_eq!(format!("{error:#}"), expected);
    }
    assert!(
        !directory.path().join("dev.json").exists(),
        "nothing was decided"
    );
    directory.settle(None, &binaries(15)).expect("the default");
    assert_eq!(directory.shard_count(), SHARDS_DEFAULT);
}

#[test]
fn another_major_version_is_refused() {
    let place = Place::new("major");
    let directory = place.open();
    directory.settle(None, &binaries(15)).expect("decided");
    let error = directory
        .settle(None, &binaries(18))
        .expect_err("another version");
    assert_eq!(
        format!("{error:#}"),
        format!(
            "{} was made with PostgreSQL 15, /programs is PostgreSQL 18\n\
             name the programs of PostgreSQL 15 with --postgres-bin, or choose another --data-dir",
            directory.path().display()
        )
    );
}

#[test]
fn damaged_facts_are_refused_and_kept() {
    let place = Place::new("damaged");
    let directory = place.open();
    let file = directory.path().join("dev.json");
    for text in [
        "",
        "{",
        "[]",
        r#"{"shards":3}"#,
        r#"{"shards":3,"postgres_major":15,"x":1}"#,
    ] {
        fs::write(&file, text).expect("written");
        let error = directory.settle(None, &binaries(15)).expect_err(text);
        let message = format!("{error:#}");
        let expected = format!("{} is damaged: ", file.display());
        assert!(message.starts_with(&expected), "{text}: {message}");
        assert_eq!(fs::read_to_string(&file).expect("kept"), text);
    }
}

#[test]
fn a_generated_password_is_kept_privately() {
    let place = Place::new("generated");
    let first = place.open().password(None).expect("generated");
    assert_eq!(first.wanted.len(), GENERATED_PASSWORD_LENGTH);
    assert!(
        first
            .wanted
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric())
    );
    assert!(!first.must_be_set, "clusters are made with it");
    assert_eq!(mode(&place.0.join("password")), 0o600);
    let second = place.open().password(None).expect("kept");
    assert_eq!(second.wanted, first.wanted);
    assert!(!second.must_be_set);
}

#[test]
fn a_changed_password_is_set_until_every_cluster_has_it() {
    let place = Place::new("changed");
    let directory = place.open();
    directory.password(Some("first")).expect("accepted");
    let again = directory.password(Some("first")).expect("accepted");
    assert!(!again.must_be_set, "it is the same");

    let changed = directory.password(Some("second")).expect("accepted");
    assert_eq!(changed.wanted, "second");
    assert!(changed.must_be_set);
    // A start that failed here reached some clusters: the kept password must be set again, too.
    let back = directory.password(None).expect("accepted");
    assert_eq!(back.wanted, "first");
    assert!(back.must_be_set);

    directory.keep_password("second").expect("kept");
    let kept = directory.password(None).expect("accepted");
    assert_eq!(kept.wanted, "second");
    assert!(!kept.must_be_set);
    assert_eq!(mode(&directory.path().join("password")), 0o600);
}

#[test]
fn passwords_that_no_client_could_send_are_refused() {
    let place = Place::new("refused");
    let directory = place.open();
    let cases = [
        ("", "--password must not be empty"),
        ("a\0b", "--password must not hold control characters"),
        ("a\n", "--password must not hold control characters"),
        ("\u{7f}", "--password must not hold control characters"),
    ];
    for (password, expected) in cases {
        let error = directory.password(Some(password)).expect_err(expected);
        assert_eq!(format!("{error:#}"), expected);
    }
    assert!(!directory.path().join("password").exists(), "none was kept");
    directory
        .password(Some("pässword 'with' \"quotes\""))
        .expect("accepted");
}

#[test]
fn a_file_that_others_could_read_is_replaced_by_a_private_one() {
    let place = Place::new("private");
    let directory = place.open();
    let file = directory.path().join("password");
    fs::write(&file, "open").expect("written");
    fs::write(file.with_extension("new"), "of an earlier try").expect("written");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("opened");
    write_private(&file, "closed").expect("written");
    assert_eq!(fs::read_to_string(&file).expect("read"), "closed");
    assert_eq!(mode(&file), 0o600);
    assert!(!file.with_extension("new").exists());
}

#[test]
fn a_short_path_keeps_its_sockets() {
    let place = Place::new("near");
    let directory = place.open();
    let sockets = directory.sockets(None).expect("made");
    assert_eq!(sockets, directory.path().join("sockets"));
    assert_eq!(mode(&sockets), 0o700);
    assert_eq!(directory.sockets(None).expect("found"), sockets);
}

#[test]
fn a_long_path_gets_short_sockets_elsewhere() {
    let place = Place::new("long");
    let long = Place(place.0.join("l".repeat(120)));
    let other = Place(place.0.join("o".repeat(120)));
    let directory = long.open();
    let sockets = Place(directory.sockets(None).expect("made"));
    assert!(!sockets.0.starts_with(&place.0));
    assert!(sockets.0.as_os_str().len() + SOCKET_NAME.len() <= SOCKET_PATH_MAX);
    assert_eq!(mode(&sockets.0), 0o700);
    assert_eq!(
        directory.sockets(None).expect("found"),
        sockets.0,
        "the same every time"
    );
    let others = Place(other.open().sockets(None).expect("made"));
    assert_ne!(others.0, sockets.0);
}

#[test]
fn sockets_in_a_directory_open_to_others_are_refused() {
    let place = Place::new("open");
    let directory = place.open();
    let sockets = directory.path().join("sockets");
    fs::create_dir(&sockets).expect("made");
    fs::set_permissions(&sockets, Permissions::from_mode(0o755)).expect("opened");
    let error = directory.sockets(None).expect_err("it is open to others");
    assert!(
        format!("{error:#}").contains("closed to others"),
        "{error:#}"
    );

    fs::remove_dir(&sockets).expect("removed");
    let elsewhere = directory.path().join("elsewhere");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&elsewhere)
        .expect("made");
    std::os::unix::fs::symlink(&elsewhere, &sockets).expect("linked");
    directory
        .sockets(None)
        .expect_err("a link is not a directory");
}

#[test]
fn only_the_state_of_a_living_process_is_believed() {
    let place = Place::new("state");
    let none = State::read(&place.0).expect_err("there is no directory");
    assert!(format!("{none:#}").starts_with("no automator67 dev is running on "));

    let directory = place.open();
    let state = State {
        sql: "postgres://automator67:secret@127.0.0.1:1/automator67".to_owned(),
        http: "http://127.0.0.1:2".to_owned(),
        pid: std::process::id(),
    };
    directory.write_state(&state).expect("written");
    let file = directory.path().join("state.json");
    assert_eq!(mode(&file), 0o600, "it holds the password");
    let read = State::read(&place.0).expect("it is running");
    assert_eq!(
        (read.sql, read.http, read.pid),
        (state.sql, state.http, state.pid)
    );

    // A killed process leaves its state behind, but not its lock.
    drop(directory);
    assert!(file.exists());
    State::read(&place.0).expect_err("it is not running");

    let directory = place.open();
    fs::write(&file, "{").expect("written");
    State::read(&place.0).expect_err("it is damaged");
    directory.forget_state();
    directory.forget_state();
    assert!(!file.exists());
}

#[test]
fn names_of_socket_directories_stay_the_same_in_every_release() {
    assert_eq!(hash(Path::new("")), 0xcbf2_9ce4_8422_2325);
    assert_eq!(hash(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(hash(Path::new("foobar")), 0x8594_4171_f739_67e8);
}
