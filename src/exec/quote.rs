//! Words of POSIX sh that stand for exactly the bytes they were made from. Nothing else in the house quotes.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A word of sh that stands for exactly these bytes, in plain ASCII: what is not, goes through `printf`.
///
/// NUL cannot be quoted and is left out; [`super::error::fault`] refuses it before.
#[must_use]
pub fn quote(word: &OsStr) -> String {
    let mut out = String::from("'");
    let mut octal = false;
    for &byte in word.as_bytes() {
        if octal && byte.is_ascii() {
            out.push_str("')\"'");
            octal = false;
        }
        match byte {
            0 => {}
            b'\'' => out.push_str(r"'\''"),
            byte if byte.is_ascii() => out.push(char::from(byte)),
            byte => {
                if !octal {
                    out.push_str("'\"$(printf '");
                    octal = true;
                }
                let _ = write!(out, "\\{byte:03o}");
            }
        }
    }
    out.push_str(if octal { "')\"" } else { "'" });
    out
}

/// A path, quoted.
pub(super) fn q(path: &Path) -> String {
    quote(path.as_os_str())
}
