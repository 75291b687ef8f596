//! Substitution of `{name}` in the texts of a case.
//!
//! Only names that are known are replaced: every other brace stays, so that regular expressions and XML need no
//! escaping.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use md5::Digest as _;
use regex::Regex;

/// The names a case may use, and what they stand for.
#[derive(Clone, Debug, Default)]
pub struct Vars(BTreeMap<String, String>);

impl Vars {
    /// Makes `{name}` stand for `value` from here on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The text with every known name replaced, and `{md5:PATH}`, `{sha1:PATH}`, `{sha256:PATH}`, `{sha512:PATH}` by the digest of that file.
    ///
    /// Fails if such a file cannot be read.
    pub fn text(&self, template: &str) -> Result<String> {
        let mut text = self.replace(template, str::to_owned);
        while let Some((start, end, digest)) = digest(&text)? {
            text.replace_range(start..end, &digest);
        }
        Ok(text)
    }

    /// The regular expression, with every known name replaced by a literal match of its value.
    pub fn regex(&self, template: &str) -> Result<Regex> {
        let text = self.replace(template, regex::escape);
        Regex::new(&text).with_context(|| format!("Bad regular expression {text}"))
    }

    fn replace(&self, template: &str, quote: impl Fn(&str) -> String) -> String {
        let mut text = template.to_owned();
        for (name, value) in &self.0 {
            text = text.replace(&format!("{{{name}}}"), &quote(value));
        }
        text
    }
}

fn digest(text: &str) -> Result<Option<(usize, usize, String)>> {
    for prefix in ["{md5:", "{sha1:", "{sha256:", "{sha512:"] {
        let Some(start) = text.find(prefix) else {
            continue;
        };
        let Some(length) = text[start..].find('}') else {
            continue;
        };
        let path = Path::new(&text[start + prefix.len()..start + length]);
        let bytes = std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
        let digest = match prefix {
            "{md5:" => hex(&md5::Md5::digest(bytes)),
            "{sha1:" => hex(&sha1::Sha1::digest(bytes)),
            "{sha256:" => hex(&sha2::Sha256::digest(bytes)),
            _ => hex(&sha2::Sha512::digest(bytes)),
        };
        return Ok(Some((start, start + length + 1, digest)));
    }
    Ok(None)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
