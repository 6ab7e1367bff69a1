//! Startup parameters and SCRAM.

use automator67_proxy::fuzzing::{
    message::Reader,
    scram::{self, Binding, Verifier},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

const CLIENT_KEY: [u8; 32] = [7; 32];
const SERVER_KEY: [u8; 32] = [9; 32];
const SERVER_NONCE: &str = "servernonce";

/// A startup packet's body is read without a panic and not beyond its end.
pub fn check_startup(body: &[u8]) {
    let mut reader = Reader::new(body);
    let mut size = 0;
    if reader.int32().is_err() {
        return;
    }
    while let Ok(text) = reader.string() {
        size += text.len() + 1;
    }
    assert!(4 + size <= body.len());
}

/// The data as the client's two messages: the first line is the first.
pub fn check_scram(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (first, last) = text.split_once('\n').unwrap_or((text, ""));
    // Reading a verifier from the catalog must not panic either.
    let _ = Verifier::parse(text);
    let verifier = verifier();
    let unmatched = Verifier::unmatched(&[5; 32], "nobody");
    let hash = [3; 32];
    for (chosen, hash) in [(false, None), (false, Some(&hash)), (true, Some(&hash))] {
        let binding = Binding {
            chosen,
            certificate_hash: hash.map(|hash| hash.as_slice()),
        };
        let Ok((exchange, reply)) = scram::first(&verifier, first, SERVER_NONCE, binding) else {
            continue;
        };
        assert!(reply.starts_with("r=") && reply.contains(SERVER_NONCE));
        assert!(
            exchange.finish(&verifier, last, binding).is_err(),
            "let in without the key"
        );
        let Ok((exchange, reply)) = scram::first(&unmatched, first, SERVER_NONCE, binding) else {
            panic!("an unknown user is answered differently");
        };
        assert!(
            exchange
                .finish(&unmatched, &right(first, &reply, binding), binding)
                .is_err()
        );
        let Ok((exchange, reply)) = scram::first(&verifier, first, SERVER_NONCE, binding) else {
            panic!("the same message is answered differently");
        };
        assert!(
            exchange
                .finish(&verifier, &right(first, &reply, binding), binding)
                .is_ok(),
            "not let in with the key"
        );
    }
}

fn verifier() -> Verifier {
    let text = format!(
        "SCRAM-SHA-256$4096:{}${}:{}",
        BASE64.encode([1; 16]),
        BASE64.encode(Sha256::digest(CLIENT_KEY)),
        BASE64.encode(SERVER_KEY)
    );
    Verifier::parse(&text).expect("a verifier of the server's form is read")
}

/// The final message of a client that has the key (RFC 5802, section 3).
fn right(first: &str, reply: &str, binding: Binding<'_>) -> String {
    let bare_start = first.match_indices(',').nth(1).map_or(0, |(at, _)| at + 1);
    let (header, bare) = first.split_at(bare_start);
    let nonce = reply.split(',').next().unwrap_or_default();
    let mut bound = header.as_bytes().to_vec();
    if binding.chosen {
        bound.extend_from_slice(binding.certificate_hash.unwrap_or_default());
    }
    let without_proof = format!("c={},{nonce}", BASE64.encode(bound));
    let stored: [u8; 32] = Sha256::digest(CLIENT_KEY).into();
    let mut mac = Hmac::<Sha256>::new_from_slice(&stored).expect("HMAC takes a key of any length");
    mac.update(format!("{bare},{reply},{without_proof}").as_bytes());
    let proof: Vec<u8> = CLIENT_KEY
        .iter()
        .zip(mac.finalize().into_bytes())
        .map(|(key, byte)| key ^ byte)
        .collect();
    format!("{without_proof},p={}", BASE64.encode(proof))
}
