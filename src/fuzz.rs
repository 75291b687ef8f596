//! What must hold of every reader of outside bytes, whatever the bytes: one function for each reader.
//!
//! `fuzz/` runs them on bytes that libFuzzer finds, `cargo test` on the corpus that is kept there. They are not part of
//! the program: the module is there for tests and under `--cfg fuzzing` only. Rooms with private readers have a `fuzz`
//! of their own.
//!
//! # Layout
//!
//! - `documents`: payloads, configuration files, calls, options. `images`: headers. `archives`: tar and zip.
//! - `crate::oned::fuzz`, `crate::transfer::fuzz`, `crate::exec::fuzz`, `crate::driver::places`: what is private there.

mod archives;
mod documents;
mod images;

pub use crate::driver::places;
pub use crate::exec::fuzz::{answers, ssh, wire};
pub use crate::oned::fuzz::{monitord, reply};
pub use crate::transfer::fuzz::{location, url, word};
pub use archives::{tar, zip};
pub use documents::{conf, domain, invocation, options, payload};
pub use images::{image_other, image_qcow2, image_vhdx, image_vmdk};

/// Judges bytes, by a panic.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz/fuzz_targets` and of its folder in `fuzz/corpus`.
pub static TARGETS: &[(&str, Target)] = &[
    ("answers", answers),
    ("conf", conf),
    ("domain", domain),
    ("image_other", image_other),
    ("image_qcow2", image_qcow2),
    ("image_vhdx", image_vhdx),
    ("image_vmdk", image_vmdk),
    ("invocation", invocation),
    ("location", location),
    ("monitord", monitord),
    ("options", options),
    ("payload", payload),
    ("places", places),
    ("reply", reply),
    ("ssh", ssh),
    ("tar", tar),
    ("url", url),
    ("wire", wire),
    ("word", word),
    ("zip", zip),
];

/// Cuts the bytes in two at the first `mark`; without one the second part is empty.
pub(crate) fn halves(data: &[u8], mark: u8) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == mark).unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}

/// The bytes as text that XML can hold.
pub(crate) fn xml_text(data: &[u8]) -> String {
    let good = |c: &char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    String::from_utf8_lossy(data).chars().filter(good).collect()
}

/// The text as content of an element or attribute, every character that might mean something by its number.
pub(crate) fn xml_escaped(text: &str) -> String {
    let one = |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("&#{};", u32::from(c)) };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    #[test]
    fn every_target_holds_for_its_corpus() {
        for (name, target) in TARGETS {
            let entries = fs::read_dir(folder().join("corpus").join(name)).expect("a corpus");
            let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
            files.sort();
            assert!(!files.is_empty(), "{name} has a corpus");
            for file in files {
                println!("{}", file.display());
                target(&fs::read(file).expect("readable"));
            }
        }
    }

    #[test]
    fn every_target_has_its_program() {
        let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("the manifest");
        for (name, _) in TARGETS {
            let program = fs::read_to_string(folder().join(format!("fuzz_targets/{name}.rs"))).expect("a program");
            assert!(program.contains(&format!("onestore::fuzz::{name}(")), "{name}");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
        assert_eq!(fs::read_dir(folder().join("fuzz_targets")).expect("programs").count(), TARGETS.len());
    }
}
