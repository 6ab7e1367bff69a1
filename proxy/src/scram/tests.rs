use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::*;

const PLAIN: Binding<'static> = Binding {
    chosen: false,
    certificate_hash: None,
};

fn verifier(password: &str) -> Verifier {
    Verifier::parse(&postgres_protocol::password::scram_sha_256(
        password.as_bytes(),
    ))
    .expect("a verifier made by the driver's library")
}

/// The driver's client against our server.
fn converse(
    password: &str,
    kept: &str,
    client: ChannelBinding,
    ours: Binding<'_>,
) -> Result<(), ScramError> {
    let verifier = verifier(kept);
    let mut scram = ScramSha256::new(password.as_bytes(), client);
    let client_first = String::from_utf8(scram.message().to_vec()).expect("text");
    let (exchange, server_first) = first(&verifier, &client_first, "nonce", ours)?;
    scram
        .update(server_first.as_bytes())
        .expect("a first message the client understands");
    let client_final = String::from_utf8(scram.message().to_vec()).expect("text");
    let server_final = exchange.finish(&verifier, &client_final, ours)?;
    scram
        .finish(server_final.as_bytes())
        .expect("a signature the client believes");
    Ok(())
}

#[test]
fn the_right_password_is_let_in_and_the_wrong_one_is_not() {
    let unsupported = ChannelBinding::unsupported;
    assert_eq!(converse("secret", "secret", unsupported(), PLAIN), Ok(()));
    assert_eq!(
        converse("wrong", "secret", unsupported(), PLAIN),
        Err(ScramError::WrongPassword)
    );
}

#[test]
fn channel_binding_must_name_our_certificate() {
    let bound = |hash: &[u8]| ChannelBinding::tls_server_end_point(hash.to_vec());
    let ours = Binding {
        chosen: true,
        certificate_hash: Some(b"hash"),
    };
    assert_eq!(converse("secret", "secret", bound(b"hash"), ours), Ok(()));
    assert!(matches!(
        converse("secret", "secret", bound(b"other"), ours),
        Err(ScramError::Malformed("SCRAM channel binding check failed"))
    ));
}

#[test]
fn a_stripped_offer_is_noticed() {
    let ours = Binding {
        chosen: false,
        certificate_hash: Some(b"hash"),
    };
    assert!(matches!(
        converse("secret", "secret", ChannelBinding::unrequested(), ours),
        Err(ScramError::Malformed(
            "client supports channel binding but thinks that the server does not"
        ))
    ));
}

#[test]
fn an_unknown_user_never_gets_in() {
    let verifier = Verifier::unmatched(&[7; 32], "nobody");
    let mut scram = ScramSha256::new(b"", ChannelBinding::unsupported());
    let client_first = String::from_utf8(scram.message().to_vec()).expect("text");
    let (exchange, server_first) = first(&verifier, &client_first, "n", PLAIN).expect("first");
    scram.update(server_first.as_bytes()).expect("update");
    let client_final = String::from_utf8(scram.message().to_vec()).expect("text");
    assert_eq!(
        exchange.finish(&verifier, &client_final, PLAIN),
        Err(ScramError::WrongPassword)
    );
}

#[test]
fn malformed_messages_are_refused() {
    let verifier = verifier("secret");
    for message in [
        "",
        "n",
        "n,,",
        "n,,n=,r=",
        "x,,n=,r=abc",
        "n,a=bob,n=,r=abc",
        "n,,m=x,r=abc",
    ] {
        assert!(
            first(&verifier, message, "nonce", PLAIN).is_err(),
            "{message:?}"
        );
    }
    for message in [
        "",
        "c=biws",
        "c=biws,r=abcnonce",
        "c=biws,r=other,p=AAAA",
        "c=eSws,r=abcnonce,p=AAAA",
    ] {
        let (exchange, _) = first(&verifier, "n,,n=,r=abc", "nonce", PLAIN).expect("valid");
        assert!(
            exchange.finish(&verifier, message, PLAIN).is_err(),
            "{message:?}"
        );
    }
    assert!(Verifier::parse("md5abc").is_none());
    assert!(Verifier::parse("SCRAM-SHA-256$x:y$z:w").is_none());
}
