//! Digests of a stream: md5, sha1, sha256 and sha512, as many at once as are asked for.

use std::fmt;
use std::fmt::Write as _;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// A digest algorithm, named as the attributes of an image template are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Number of hexadecimal digits.
    fn digits(self) -> usize {
        match self {
            Self::Md5 => 32,
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest that a stream must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    algorithm: Algorithm,
    hex: String,
}

/// A text is no digest of the algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not a {algorithm} digest: '{}'", text.escape_debug())]
pub struct NotADigest {
    algorithm: Algorithm,
    text: String,
}

impl Expected {
    /// Takes a digest in hexadecimal, in either case, with or without surrounding white space.
    ///
    /// # Errors
    /// Where the text has other characters or another length: it could never match, so nothing need be downloaded.
    pub fn new(algorithm: Algorithm, hex: &str) -> Result<Self, NotADigest> {
        let hex = hex.trim().to_ascii_lowercase();
        if hex.len() != algorithm.digits() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotADigest { algorithm, text: hex });
        }
        Ok(Self { algorithm, hex })
    }
}

/// A stream has another digest than expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Hash does not match: {algorithm} of {source_name} is {actual}, expected {expected}")]
pub struct Mismatch {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The stream, as it is shown to people.
    pub source_name: String,
    /// The digest it has.
    pub actual: String,
    /// The digest it should have.
    pub expected: String,
}

enum State {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

/// Digests in the making.
pub struct Hashers(Vec<(State, Expected)>);

impl Hashers {
    /// One for each expected digest.
    #[must_use]
    pub fn new(expected: &[Expected]) -> Self {
        let start = |expected: &Expected| {
            let state = match expected.algorithm {
                Algorithm::Md5 => State::Md5(Md5::new()),
                Algorithm::Sha1 => State::Sha1(Sha1::new()),
                Algorithm::Sha256 => State::Sha256(Sha256::new()),
                Algorithm::Sha512 => State::Sha512(Sha512::new()),
            };
            (state, expected.clone())
        };
        Self(expected.iter().map(start).collect())
    }

    /// Takes in the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        for (state, _) in &mut self.0 {
            match state {
                State::Md5(hasher) => hasher.update(bytes),
                State::Sha1(hasher) => hasher.update(bytes),
                State::Sha256(hasher) => hasher.update(bytes),
                State::Sha512(hasher) => hasher.update(bytes),
            }
        }
    }

    /// Compares at the end of the stream that people know as `source_name`.
    ///
    /// # Errors
    /// The first digest that differs.
    pub fn verify(self, source_name: &str) -> Result<(), Mismatch> {
        for (state, expected) in self.0 {
            let actual = match state {
                State::Md5(hasher) => hex(&hasher.finalize()),
                State::Sha1(hasher) => hex(&hasher.finalize()),
                State::Sha256(hasher) => hex(&hasher.finalize()),
                State::Sha512(hasher) => hex(&hasher.finalize()),
            };
            if actual != expected.hex {
                let (algorithm, expected) = (expected.algorithm, expected.hex);
                return Err(Mismatch { algorithm, source_name: source_name.to_owned(), actual, expected });
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180 and RFC 1321 test vectors for "abc".
    const ABC: [(Algorithm, &str); 4] = [
        (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (Algorithm::Sha1, "A9993E364706816ABA3E25717850C26C9CD0D89D"),
        (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            Algorithm::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
    ];

    #[test]
    fn all_digests_are_made_in_one_pass() {
        let expected: Vec<_> = ABC.iter().map(|&(algorithm, hex)| Expected::new(algorithm, hex).unwrap()).collect();
        let mut hashers = Hashers::new(&expected);
        hashers.update(b"a");
        hashers.update(b"bc");
        assert_eq!(hashers.verify("abc"), Ok(()));
    }

    #[test]
    fn a_difference_is_named() {
        let mut hashers = Hashers::new(&[Expected::new(ABC[0].0, ABC[0].1).unwrap()]);
        hashers.update(b"abd");
        let text = hashers.verify("http://host/x").unwrap_err().to_string();
        assert!(text.starts_with("Hash does not match: md5 of http://host/x is 4911e516e5aa21d327512e0c8b197616, exp"));
    }

    #[test]
    fn what_cannot_be_a_digest_is_refused_at_once() {
        for text in ["", "abc", "g00150983cd24fb0d6963f7d28e17f72", "900150983cd24fb0d6963f7d28e17f72aa"] {
            assert!(Expected::new(Algorithm::Md5, text).is_err(), "{text}");
        }
    }
}
