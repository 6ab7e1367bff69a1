//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; manual, "SASL
//! Authentication"). Values in, values out: the nonce is an argument.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What the server keeps of a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored>:<server>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: String,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl Verifier {
    /// Reads the form that `pg_authid.rolpassword` has.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        Some(Verifier {
            iterations: iterations.parse().ok()?,
            salt: salt.to_owned(),
            stored_key: BASE64.decode(stored).ok()?.try_into().ok()?,
            server_key: BASE64.decode(server).ok()?.try_into().ok()?,
        })
    }

    /// A verifier no password fits, so that an unknown user sees the same conversation as a wrong
    /// password: also the same salt at every attempt.
    pub fn unmatched(secret: &[u8; 32], user: &str) -> Self {
        let salt = hmac(secret, user.as_bytes());
        Verifier {
            iterations: 4096,
            salt: BASE64.encode(&salt[..16]),
            stored_key: [0; 32],
            server_key: [0; 32],
        }
    }
}

/// Why the conversation failed.
#[derive(Debug, PartialEq, Eq)]
pub enum ScramError {
    /// A message is not what the RFC says: the reason, in the server's words.
    Malformed(&'static str),
    /// The proof does not fit the verifier.
    WrongPassword,
}

/// What the client may bind to.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// The client chose SCRAM-SHA-256-PLUS.
    pub chosen: bool,
    /// `tls-server-end-point` of our certificate; `None` without TLS.
    pub certificate_hash: Option<&'a [u8]>,
}

/// The conversation after the server's first message.
pub struct Exchange {
    gs2_header: String,
    auth_message: String,
    nonce: String,
}

/// Answers the client's first message. Returns the conversation and the server's first message.
pub fn first(
    verifier: &Verifier,
    client_first: &str,
    server_nonce: &str,
    binding: Binding<'_>,
) -> Result<(Exchange, String), ScramError> {
    let malformed = ScramError::Malformed("malformed SCRAM message");
    let mut parts = client_first.splitn(3, ',');
    let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(malformed);
    };
    check_binding_flag(flag, binding)?;
    if !authzid.is_empty() {
        return Err(ScramError::Malformed(
            "client uses authorization identity, but it is not supported",
        ));
    }
    let client_nonce = bare
        .split(',')
        .nth(1)
        .and_then(|field| field.strip_prefix("r="))
        .filter(|nonce| !nonce.is_empty())
        .ok_or(malformed)?;
    if bare.starts_with("m=") {
        return Err(ScramError::Malformed(
            "client requires an unsupported SCRAM extension",
        ));
    }
    let nonce = format!("{client_nonce}{server_nonce}");
    let server_first = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
    let exchange = Exchange {
        gs2_header: format!("{flag},{authzid},"),
        auth_message: format!("{bare},{server_first}"),
        nonce,
    };
    Ok((exchange, server_first))
}

fn check_binding_flag(flag: &str, binding: Binding<'_>) -> Result<(), ScramError> {
    match flag {
        "n" if binding.chosen => Err(ScramError::Malformed(
            "client selected SCRAM-SHA-256-PLUS, but the message has no channel binding data",
        )),
        "n" => Ok(()),
        "y" if binding.chosen => Err(ScramError::Malformed("malformed SCRAM message")),
        // The client could bind and thinks that we cannot: somebody removed our offer.
        "y" if binding.certificate_hash.is_some() => Err(ScramError::Malformed(
            "client supports channel binding but thinks that the server does not",
        )),
        "y" => Ok(()),
        "p=tls-server-end-point" if binding.chosen && binding.certificate_hash.is_some() => Ok(()),
        _ => Err(ScramError::Malformed(
            "unsupported SCRAM channel-binding type",
        )),
    }
}

impl Exchange {
    /// Checks the client's final message. Returns the server's final message.
    pub fn finish(
        self,
        verifier: &Verifier,
        client_final: &str,
        binding: Binding<'_>,
    ) -> Result<String, ScramError> {
        let malformed = || ScramError::Malformed("malformed SCRAM message");
        let (without_proof, proof) = client_final.rsplit_once(",p=").ok_or_else(malformed)?;
        let mut fields = without_proof.split(',');
        let bound = fields
            .next()
            .and_then(|f| f.strip_prefix("c="))
            .ok_or_else(malformed)?;
        let nonce = fields
            .next()
            .and_then(|f| f.strip_prefix("r="))
            .ok_or_else(malformed)?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed("SCRAM nonce does not match"));
        }
        let mut expected = self.gs2_header.clone().into_bytes();
        if binding.chosen {
            expected.extend_from_slice(binding.certificate_hash.unwrap_or_default());
        }
        if bound != BASE64.encode(&expected) {
            return Err(ScramError::Malformed("SCRAM channel binding check failed"));
        }
        let proof: [u8; 32] = BASE64
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or_else(malformed)?;
        let auth_message = format!("{},{without_proof}", self.auth_message);
        if !proof_fits(verifier, &auth_message, &proof) {
            return Err(ScramError::WrongPassword);
        }
        let signature = hmac(&verifier.server_key, auth_message.as_bytes());
        Ok(format!("v={}", BASE64.encode(signature)))
    }
}

fn proof_fits(verifier: &Verifier, auth_message: &str, proof: &[u8; 32]) -> bool {
    let signature = hmac(&verifier.stored_key, auth_message.as_bytes());
    let mut client_key = *proof;
    client_key
        .iter_mut()
        .zip(signature)
        .for_each(|(key, byte)| *key ^= byte);
    let stored: [u8; 32] = Sha256::digest(client_key).into();
    stored.ct_eq(&verifier.stored_key).into()
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
