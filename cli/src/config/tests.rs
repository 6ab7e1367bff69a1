use automator67_proxy::settings::{ShardHost, ShardTls};

use super::*;

const SMALL: &str = r#"
[[users]]
name = "app"
password = "pw"
[[shards]]
name = "one"
url = "postgres://app:pw@localhost/app"
"#;

fn read_text(text: &str, overrides: &Overrides) -> Result<Served, String> {
    let folder = Path::new("/etc/automator67");
    let config = toml::from_str(text).map_err(|error| error.to_string())?;
    resolve(config, overrides, folder).map_err(|error| error.to_string())
}

/// `text` after the small configuration is refused with a message that holds `expected`.
fn check_refused(text: &str, expected: &str) {
    let error = read_text(text, &Overrides::default()).expect_err(text);
    assert!(error.contains(expected), "{text}\n-> {error}");
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let path = "../automator67.example.toml";
    let text = std::fs::read_to_string(path).expect("the example");
    let shown = read_text(&text, &Overrides::default()).expect("valid");
    let small = read_text(SMALL, &Overrides::default()).expect("valid");
    let mut shown = shown.settings;
    assert_eq!(shown.shards.len(), 3);
    shown.users.clone_from(&small.settings.users);
    shown.shards.clone_from(&small.settings.shards);
    assert_eq!(format!("{shown:?}"), format!("{:?}", small.settings));
}

#[test]
fn every_line_of_the_example_that_is_commented_out_is_valid_too() {
    let path = "../automator67.example.toml";
    let text = std::fs::read_to_string(path).expect("the example");
    let full: String = text
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line)))
        .collect();
    let served = read_text(&full, &Overrides::default()).expect("valid");
    let tls = served.settings.tls.expect("[sql.tls]");
    assert_eq!(tls.certificate, Path::new("/etc/automator67/server.crt"));
}

#[test]
fn defaults_are_the_documented_ones() {
    let served = read_text(SMALL, &Overrides::default()).expect("valid");
    let settings = served.settings;
    assert_eq!(settings.listen.to_string(), SQL_LISTEN);
    assert_eq!(served.http.to_string(), HTTP_LISTEN);
    assert_eq!(settings.pool_wait_timeout, Duration::from_secs(10));
    assert_eq!(settings.shard_connect_timeout, Duration::from_millis(2000));
    assert_eq!(settings.gather_bytes_max, 268_435_456);
    let shard = &settings.shards[0];
    assert_eq!(shard.host, ShardHost::Tcp("localhost".to_owned()));
    assert_eq!((shard.port, shard.pool_size_max), (5432, 20));
    assert_eq!(shard.tls, ShardTls::Prefer);
}

#[test]
fn overrides_win() {
    let overrides = Overrides {
        sql: Some("0.0.0.0:1".parse().expect("an address")),
        http: Some("0.0.0.0:2".parse().expect("an address")),
        database: Some("shop".to_owned()),
        threads: Some(7),
    };
    let text = format!("[sql]\nlisten = \"127.0.0.1:9\"\nthreads = 3\n{SMALL}");
    let served = read_text(&text, &overrides).expect("valid");
    assert_eq!(served.settings.listen.to_string(), "0.0.0.0:1");
    assert_eq!(served.http.to_string(), "0.0.0.0:2");
    assert_eq!(served.settings.database, "shop");
    assert_eq!(served.settings.threads, 7);
}

#[test]
fn unknown_keys_are_errors_with_line_and_column() {
    check_refused(
        &format!("[sql]\nlisten_on = 1\n{SMALL}"),
        "line 2, column 1",
    );
    check_refused(
        &format!("[sql]\nlisten_on = 1\n{SMALL}"),
        "unknown field `listen_on`",
    );
    check_refused(&format!("{SMALL}size = 3\n"), "unknown field `size`");
    check_refused(&format!("[s3]\n{SMALL}"), "unknown field `s3`");
    check_refused(
        &format!("[sql.tls]\ncertificate = 'c'\nkey = 'k'\nx = 1\n{SMALL}"),
        "line 4",
    );
}

#[test]
fn values_that_make_no_sense_are_refused() {
    check_refused("", "missing field `users`");
    check_refused(
        "users = []\nshards = []",
        "at least one of [[shards]] is needed",
    );
    check_refused(
        &format!("[sql]\nthreads = 0\n{SMALL}"),
        "[sql] threads must be at least 1",
    );
    check_refused(&format!("[sql]\nthreads = -1\n{SMALL}"), "line 2");
    check_refused(&format!("[sql]\nlisten = 'x'\n{SMALL}"), "line 2");
    check_refused(
        &format!("[sql]\ndatabase = ''\n{SMALL}"),
        "database must not be empty",
    );
    check_refused(
        &format!("{SMALL}pool_size = 0\n"),
        "pool_size must be at least 1",
    );
    let twice = format!("{SMALL}[[shards]]\nname = 'one'\nurl = 'postgres://a@b'\n");
    check_refused(&twice, "[[shards]] names \"one\" twice");
    let bad_url = format!("{SMALL}[[shards]]\nname = 'two'\nurl = 'b:c'\n");
    check_refused(&bad_url, "shard \"two\": the URL does not start");
}

#[test]
fn a_user_says_the_password_once() {
    let with = |lines: &str| format!("{SMALL}[[users]]\nname = 'ann'\n{lines}\n");
    let once = "user \"ann\" needs exactly one of password, password_file, password_env";
    check_refused(&with(""), once);
    check_refused(&with("password = 'a'\npassword_env = 'B'"), once);
    check_refused(
        &with("password = ''"),
        "user \"ann\": the password is empty",
    );
    check_refused(
        &with("password_env = 'NO_SUCH_A67'"),
        "the environment has no NO_SUCH_A67",
    );
    check_refused(
        &with("password_file = 'no-such'"),
        "could not read /etc/automator67/no-such",
    );
}

#[test]
fn a_user_may_have_another_password_on_the_shards() {
    let with = |lines: &str| {
        format!("{SMALL}[[users]]\nname = 'ann'\npassword = 'at the door'\n{lines}\n")
    };
    let read = |lines: &str| {
        let served = read_text(&with(lines), &Overrides::default()).expect("valid");
        let user = served.settings.users[1].clone();
        (user.password, user.shard_password)
    };
    let expected = |shard: &str| ("at the door".to_owned(), shard.to_owned());
    assert_eq!(read(""), expected("at the door"));
    assert_eq!(read("shard_password = 'inside'"), expected("inside"));
    let path = std::env::var("PATH").expect("PATH");
    assert_eq!(read("shard_password_env = 'PATH'"), expected(&path));
    check_refused(
        &with("shard_password = 'a'\nshard_password_env = 'PATH'"),
        "user \"ann\" takes one of shard_password, shard_password_file, shard_password_env",
    );
    check_refused(
        &with("shard_password = ''"),
        "user \"ann\": the shard password is empty",
    );
    check_refused(
        &with("shard_password_file = 'no-such'"),
        "could not read /etc/automator67/no-such",
    );
}

#[test]
fn no_password_is_in_the_debug_form() {
    let text = SMALL.replace("\"pw\"", "\"hush\"\nshard_password = \"hush\"");
    let config: Config = toml::from_str(&text.replace("pw", "hush")).expect("valid");
    assert!(!format!("{config:?}").contains("hush"));
    let served = resolve(config, &Overrides::default(), Path::new("")).expect("valid");
    assert!(!format!("{served:?}").contains("hush"));
}

#[test]
fn sections_may_be_left_out() {
    let text = "
[[users]]
name = \"app\"
password = \"pw\"
[[shards]]
name = \"shard1\"
url = \"postgres://app:pw@127.0.0.1:5432/app\"
";
    let config: Config = toml::from_str(text).expect("a configuration without sections");
    assert_eq!(config.sequences.block, SequenceConfig::default().block);
    assert!(matches!(config.transactions.two_phase, TwoPhase::Require));
}

#[test]
fn a_file_with_secrets_is_closed_to_others() {
    use std::{fs, os::unix::fs::PermissionsExt};
    let name = format!("automator67-config-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("a directory");
    let file = folder.join("a.toml");
    let secret = folder.join("secret");
    let check = |text: &str, mode: u32, secret_mode: u32, expected: Option<&Path>| {
        for (path, text, mode) in [(&file, text, mode), (&secret, "pw\n", secret_mode)] {
            fs::write(path, text).expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        }
        match (load(&file, &Overrides::default()), expected) {
            (Ok(_), None) => {}
            (Err(ConfigError::Open(path)), Some(expected)) => assert_eq!(path, expected),
            (other, _) => panic!("{mode:o} {secret_mode:o}: {other:?}"),
        }
    };
    check(SMALL, 0o644, 0o600, Some(&file));
    check(SMALL, 0o660, 0o600, Some(&file));
    check(SMALL, 0o600, 0o644, None);
    let elsewhere = SMALL
        .replace("password = \"pw\"", "password_file = \"secret\"")
        .replace(
            "app:pw@localhost/app\"",
            "app@localhost/app\"\npassword_file = \"secret\"",
        );
    check(&elsewhere, 0o644, 0o600, None);
    check(&elsewhere, 0o644, 0o644, Some(&secret));
    let inside = elsewhere.replace(
        "password_file = \"secret\"\n[[shards]]",
        "password_file = \"secret\"\nshard_password = \"pw\"\n[[shards]]",
    );
    check(&inside, 0o644, 0o600, Some(&file));
    let in_url = SMALL.replace("password = \"pw\"", "password_file = \"secret\"");
    check(&in_url, 0o644, 0o600, Some(&file));
    fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn a_shard_says_its_password_once_and_what_it_may_ask_for() {
    let with = |url: &str, lines: &str| {
        let text = format!("{SMALL}[[shards]]\nname = 'two'\nurl = '{url}'\n{lines}\n");
        read_text(&text, &Overrides::default()).map(|served| served.settings.shards[1].clone())
    };
    check_refused(
        &format!("{SMALL}password_env = 'A'\n"),
        "shard \"one\" takes one of a password in the URL, password_file, password_env",
    );
    let auth = |url: &str| with(url, "").expect("valid").auth;
    assert_eq!(auth("postgres://a:b@c"), ShardAuth::SCRAM);
    assert_eq!(auth("postgres://a@c"), ShardAuth::SECRET);
    assert_eq!(auth("postgres://a:b@%2Frun"), ShardAuth::ANY);
    assert!(auth("postgres://a:b@c?require_auth=password").password);
    let home = with("postgres://a@c", "password_env = 'PATH'").expect("valid");
    assert_eq!(home.admin_password, std::env::var("PATH").expect("PATH"));
    assert_eq!(home.auth, ShardAuth::SCRAM);
}
