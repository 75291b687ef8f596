//! Which keys a host is known by: `known_hosts` files, read as sshd(8) "`SSH_KNOWN_HOSTS` FILE FORMAT" describes them.
//!
//! libssh2 brings a reader of its own, which knows neither patterns nor markers; a revoked key must not pass for known,
//! so we read the files ourselves and leave every doubtful case to the OpenSSH client.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// What `known_hosts` files say about one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownKeys {
    /// Type (`ssh-ed25519`) and blob of every key that is good.
    pub good: Vec<(String, Vec<u8>)>,
    /// Blobs of keys that must never be accepted.
    pub revoked: Vec<Vec<u8>>,
}

impl KnownKeys {
    /// Looks the host up under `names`, of which the first that has keys counts. Files that cannot be read are empty.
    #[must_use]
    pub fn read(files: &[PathBuf], names: &[String]) -> Self {
        let texts: Vec<String> = files
            .iter()
            .filter_map(|file| fs::read(file).ok())
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .collect();
        let mut all = Self::default();
        for name in names {
            let found = Self::parse(&texts, name);
            // A revocation holds under either name.
            all.revoked.extend(found.revoked);
            if all.good.is_empty() {
                all.good = found.good;
            }
        }
        all
    }

    pub(in crate::exec) fn parse(texts: &[String], name: &str) -> Self {
        let mut keys = Self::default();
        for line in texts.iter().flat_map(|text| text.lines()) {
            let mut fields = line.split_ascii_whitespace().peekable();
            let marker = fields.next_if(|field| field.starts_with('@'));
            let (Some(hosts), Some(kind), Some(blob)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if hosts.starts_with('#') || !names_host(hosts, name) {
                continue;
            }
            let Ok(blob) = STANDARD.decode(blob) else {
                continue;
            };
            match marker {
                None => keys.good.push((kind.to_owned(), blob)),
                Some("@revoked") => keys.revoked.push(blob),
                // A certificate authority's key proves certificates, which libssh2 does not know: not a host key.
                Some(_) => {}
            }
        }
        keys
    }

    /// Whether a host that shows this key is the one we know.
    #[must_use]
    pub fn accepts(&self, blob: &[u8]) -> bool {
        self.good.iter().any(|(_, good)| good == blob) && !self.revoked.iter().any(|bad| bad == blob)
    }

    /// The host key algorithms under which the known keys can be shown, best first; to be asked for in the key exchange,
    /// so that a host with several keys shows one that we know.
    #[must_use]
    pub fn algorithms(&self) -> Vec<&str> {
        let mut all = Vec::new();
        for (kind, _) in &self.good {
            let names = match kind.as_str() {
                "ssh-rsa" => vec!["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
                other => vec![other],
            };
            all.extend(names.into_iter().filter(|name| !all.contains(name)).collect::<Vec<_>>());
        }
        all
    }
}

/// Whether the first field of a line means this host: a hash, or patterns of which none says no.
fn names_host(field: &str, name: &str) -> bool {
    if let Some(hashed) = field.strip_prefix("|1|") {
        return hash_matches(hashed, name);
    }
    let mut found = false;
    for pattern in field.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if matches(not.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => found |= matches(pattern.as_bytes(), name.as_bytes()),
        }
    }
    found
}

/// Matches `*` and `?`; letters of either case. Goes back to the last star only, so that no pattern takes long.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte.eq_ignore_ascii_case(&name[n]) => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((after, at)) => {
                    star = Some((after, at + 1));
                    (p, n) = (after, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// `salt|hash`: the hash is HMAC-SHA1 of the name under the salt.
fn hash_matches(field: &str, name: &str) -> bool {
    let Some((salt, hash)) = field.split_once('|') else {
        return false;
    };
    match (STANDARD.decode(salt), STANDARD.decode(hash)) {
        (Ok(salt), Ok(hash)) => hmac_sha1(&salt, name.as_bytes()) == hash,
        _ => false,
    }
}

/// RFC 2104 over SHA-1.
fn hmac_sha1(key: &[u8], message: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let mut block = [0_u8; BLOCK];
    if key.len() > BLOCK {
        block[..20].copy_from_slice(&Sha1::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha1::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha1::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str, name: &str) -> KnownKeys {
        KnownKeys::parse(&[text.to_owned()], name)
    }

    #[test]
    fn the_digest_is_that_of_rfc_2202() {
        let short = hmac_sha1(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(short[..4], [0xef, 0xfc, 0xdf, 0x6a]);
        let long = hmac_sha1(&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(long[..4], [0xaa, 0x4a, 0xe5, 0xe1]);
    }

    #[test]
    fn plain_ported_and_pattern_entries_are_found() {
        let text = "# a comment\n\nnode3,10.0.0.3 ssh-ed25519 QUJD note\n[node3]:2222 ssh-rsa REVG\n\
                    *.cloud,!bad.cloud ecdsa-sha2-nistp256 R0hJ\n";
        assert_eq!(keys(text, "node3").algorithms(), ["ssh-ed25519"]);
        assert_eq!(keys(text, "NODE3").good.len(), 1);
        assert_eq!(keys(text, "[node3]:2222").algorithms(), ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]);
        assert_eq!(keys(text, "a.cloud").good.len(), 1);
        assert_eq!(keys(text, "bad.cloud"), KnownKeys::default());
        assert!(keys(text, "node3").accepts(b"ABC"));
        assert!(!keys(text, "node3").accepts(b"DEF"));
    }

    #[test]
    fn hashed_entries_are_found() {
        // `ssh-keygen -H` of OpenSSH 9.2 made these of "node3" and "[node3]:2222".
        let text = "|1|uZeL5y97zZrmn3Tn+zcMUEabk20=|hhdrH86o8QQ6Ybg4CU4kzG42VIk= ssh-ed25519 QUJD\n\
                    |1|63cc4Eu/YIRx7gAmApDOxKsZ4yU=|JIboVkM9yoFJhjN/S7S9fQF+nhE= ssh-ed25519 REVG\n\
                    |1|broken ssh-ed25519 QUJD\n";
        assert!(keys(text, "node3").accepts(b"ABC"));
        assert!(keys(text, "[node3]:2222").accepts(b"DEF"));
        assert_eq!(keys(text, "[node3]:2222").good.len(), 1);
        assert_eq!(keys(text, "node4").good.len(), 0);
    }

    #[test]
    fn revoked_keys_are_refused_and_authorities_are_no_host_keys() {
        let text = "node3 ssh-ed25519 QUJD\n@revoked * ssh-ed25519 QUJD\n@cert-authority node3 ssh-ed25519 REVG\n";
        let keys = keys(text, "node3");
        assert!(!keys.accepts(b"ABC"));
        assert!(!keys.accepts(b"DEF"));
    }
}
