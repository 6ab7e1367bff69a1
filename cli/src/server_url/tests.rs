use super::*;

/// `expected` is `user password host port database sslmode sslrootcert`, or the error.
fn check(url: &str, expected: &str) {
    let found = match ServerUrl::parse(url) {
        Ok(url) => {
            let host = match &url.host {
                ShardHost::Unix(path) => path.display().to_string(),
                ShardHost::Tcp(host) => host.clone(),
            };
            let root = url.tls_root.unwrap_or_default();
            format!(
                "{} {} {host} {} {} {:?} {}",
                url.user,
                url.password,
                url.port,
                url.database,
                url.tls,
                root.display()
            )
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(found.trim_end(), expected, "{url}");
}

#[test]
fn require_auth_is_a_list() {
    let auth = |value: &str| {
        ServerUrl::parse(&format!("postgres://a@b?require_auth={value}")).map(|url| url.auth)
    };
    let without = ServerUrl::parse("postgres://a@b").map(|url| url.auth);
    assert_eq!(without, Ok(None));
    assert_eq!(auth("scram-sha-256"), Ok(Some(ShardAuth::SCRAM)));
    assert_eq!(auth("!password,!md5"), Ok(Some(ShardAuth::SECRET)));
    let both = ShardAuth {
        md5: true,
        ..ShardAuth::SCRAM
    };
    assert_eq!(auth("md5,scram-sha-256"), Ok(Some(both)));
    for wrong in ["", "md4", "md5,!none", "!md5,none", "gss"] {
        assert_eq!(auth(wrong), Err(UrlError::RequireAuth(wrong.to_owned())));
    }
}

#[test]
fn urls_are_read_as_libpq_does() {
    check(
        "postgres://ann:s3cret@db.example:6000/shop?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "ann s3cret db.example 6000 shop VerifyFull /etc/ca.pem",
    );
    check("postgresql://ann@db", "ann  db 5432 ann Prefer");
    check(
        "postgres://a%40b:p%2F%3a@[::1]:7/d%20e",
        "a@b p/: ::1 7 d e Prefer",
    );
    check(
        "postgres://ann@%2Frun%2Fpg:5433/shop",
        "ann  /run/pg 5433 shop Disable",
    );
    check(
        "postgres:///shop?host=/run/pg&user=ann&password=p",
        "ann p /run/pg 5432 shop Disable",
    );
    check(
        "postgres://ann@h/?dbname=x&port=9&application_name=me",
        "ann  h 9 x Prefer",
    );
}

#[test]
fn bad_urls_are_refused_without_repeating_them() {
    check(
        "mysql://ann@h/x",
        "the URL does not start with postgres:// or postgresql://",
    );
    check("postgres://h/x", "the URL names no user");
    check("postgres://ann@/x", "the URL names no host");
    check(
        "postgres://ann@a,b/x",
        "the URL names several hosts; name one",
    );
    check(
        "postgres://ann@h:x/x",
        "the port \"x\" is not a number between 1 and 65535",
    );
    check(
        "postgres://ann@h:0/x",
        "the port \"0\" is not a number between 1 and 65535",
    );
    check(
        "postgres://ann:%zz@h/x",
        "the URL holds a wrong percent encoding",
    );
    check(
        "postgres://ann:%2@h/x",
        "the URL holds a wrong percent encoding",
    );
    check(
        "postgres://ann:%ff@h/x",
        "the URL holds a wrong percent encoding",
    );
    check(
        "postgres://ann@[::1/x",
        "the address in brackets is not closed",
    );
    check(
        "postgres://ann@h/x?sslmode=allow",
        "sslmode \"allow\" is not one of disable, prefer, require, verify-ca, verify-full",
    );
    check(
        "postgres://ann@h/x?target_session_attrs=any",
        "unknown URL parameter \"target_session_attrs\" (known: sslmode, sslrootcert, require_auth, host, port, dbname, user, password, application_name)",
    );
}

#[test]
fn encoding_and_decoding_are_inverse() {
    for text in ["plain", "open sesame", "a/b:c@d%", "ä€", "-._~"] {
        assert_eq!(decode(&encode(text)).as_deref(), Ok(text));
    }
}
