//! Text formats shared by all processes: bytes as hex, and an error with its causes. Pure.

use sha2::{Digest, Sha256};
use std::error::Error;

/// Two lower-case digits per byte. Manifests, ledgers and caches write hashes in this form.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(half)]));
        }
    }
    text
}

/// The SHA-256 of bytes, as [`hex`].
#[must_use]
pub fn hex_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// An error and its causes in one line, outermost first.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some libraries include the cause in their own message.
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Fault {
        text: &'static str,
        source: Option<Box<Fault>>,
    }

    #[test]
    fn bytes_become_hex() {
        assert_eq!(hex(&[0, 9, 0xa0, 0xff]), "0009a0ff");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex_sha256(b""), empty);
    }

    #[test]
    fn causes_follow_once_each() {
        let end = Fault {
            text: "os error 2",
            source: None,
        };
        let middle = Fault {
            text: "cannot open x: os error 2",
            source: Some(Box::new(end)),
        };
        let error = Fault {
            text: "no data set",
            source: Some(Box::new(middle)),
        };
        assert_eq!(chain(&error), "no data set: cannot open x: os error 2");
    }
}
