//! Calls of our own functions on a shard, over a connection that works with a client's rights.
//!
//! Such a function does what its owner may do, for whoever calls it, so it wants to be shown that
//! the proxy calls: a digest of a key that only the owner can read there, of the server process and
//! of the function's name (`check_proof` in `migrations_of_shards/V3__rights.sql`). The digest
//! travels as a parameter. Views of running statements, which the client's own code can read, show
//! the text. What a server may say of parameters, to who asks for it by a setting
//! (`debug_print_plan`, `log_parameter_max_length_on_error`), never reaches a client: until the
//! ReadyForQuery of a call, `relay` passes on no notice, and of an error no context.

use std::{borrow::Cow, fmt::Write};

use bytes::{BufMut, BytesMut};
use sha2::{Digest, Sha256};

/// A secret that the owner of our schemas shares with all proxies.
pub type Key = [u8; 32];

/// What a function takes for a proof in the server process `pid` of a shard with this key.
pub fn proof(key: &Key, pid: i32, function: &str) -> String {
    let message = [&pid.to_be_bytes()[..], function.as_bytes()].concat();
    digest(key, &message)
}

/// What only who has the key can make of a message, in 64 hexadecimal digits. SQL makes the same by
/// `encode(sha256(key || message || key), 'hex')`.
pub fn digest(key: &Key, message: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(key);
    digest.update(message);
    digest.update(key);
    let bytes = digest.finalize();
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A function of the schema `automator67`, and what follows the proof.
#[derive(Debug, Clone)]
pub struct Call {
    pub(super) function: Cow<'static, str>,
    pub(super) arguments: Vec<Option<String>>,
}

impl Call {
    /// A call without arguments.
    pub fn to(function: impl Into<Cow<'static, str>>) -> Call {
        Call {
            function: function.into(),
            arguments: Vec::new(),
        }
    }

    /// With one more argument, as Postgres reads its type.
    pub fn with(mut self, argument: impl ToString) -> Call {
        self.arguments.push(Some(argument.to_string()));
        self
    }

    /// With NULL where there is none.
    pub fn with_option(mut self, argument: Option<impl ToString>) -> Call {
        self.arguments
            .push(argument.map(|argument| argument.to_string()));
        self
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("SELECT * FROM automator67.{}($1", self.function);
        for number in 2..self.arguments.len() + 2 {
            // Writing to a String cannot fail.
            let _ = write!(text, ", ${number}");
        }
        text.push(')');
        text
    }
}

/// A text array, as Postgres reads it.
pub fn text_array<'v>(values: impl Iterator<Item = Option<&'v str>>) -> String {
    let mut text = String::from("{");
    for value in values {
        if text.len() > 1 {
            text.push(',');
        }
        match value {
            None => text.push_str("NULL"),
            Some(value) => {
                text.push('"');
                for letter in value.chars() {
                    if matches!(letter, '"' | '\\') {
                        text.push('\\');
                    }
                    text.push(letter);
                }
                text.push('"');
            }
        }
    }
    text.push('}');
    text
}

/// What follows the names in a Bind without parameters, for results as text.
pub const ALL_AS_TEXT: &[u8] = &[0, 0, 0, 0, 0, 0];

pub(super) fn put_value(output: &mut BytesMut, value: Option<&str>) {
    match value {
        None => output.put_i32(-1),
        Some(value) => {
            output.put_u32(value.len() as u32);
            output.extend_from_slice(value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_comes_first() {
        let call = Call::to("f").with(1).with_option(None::<i32>);
        assert_eq!(call.text(), "SELECT * FROM automator67.f($1, $2, $3)");
        assert_eq!(Call::to("g").text(), "SELECT * FROM automator67.g($1)");
    }

    #[test]
    fn arrays_keep_what_values_hold() {
        let values = [Some("a"), None, Some("it's \"x\"\\"), Some("")];
        assert_eq!(
            text_array(values.into_iter()),
            r#"{"a",NULL,"it's \"x\"\\",""}"#
        );
    }

    #[test]
    fn a_proof_is_of_one_key_one_process_and_one_function() {
        let keys = [[1; 32], [2; 32]];
        let proofs = [
            proof(&keys[0], 1, "f"),
            proof(&keys[0], 2, "f"),
            proof(&keys[1], 1, "f"),
            proof(&keys[0], 1, "g"),
        ];
        assert_eq!(proofs[0].len(), 64);
        let different: std::collections::BTreeSet<_> = proofs.iter().collect();
        assert_eq!(different.len(), proofs.len());
    }
}
