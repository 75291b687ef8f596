//! What must hold of every reader of outside bytes, whatever the bytes: one function for each reader.
//!
//! `fuzz/` runs them on bytes that libFuzzer finds, `cargo test` on the corpus that is kept there and on changes of it that
//! are the same in every run. They are not part of the program: the module is there for tests and under `--cfg fuzzing` only. Rooms with private readers have a `fuzz`
//! of their own.
//!
//! # Layout
//!
//! - `documents`: payloads, configuration files, calls, options. `images`: headers. `archives`: tar and zip.
//! - `mutations`: how an input is changed where libFuzzer is not there to do it.
//! - `crate::oned::fuzz`, `crate::transfer::fuzz`, `crate::exec::fuzz`, `crate::driver::places`: what is private there.

mod archives;
mod documents;
mod images;
#[cfg(test)]
mod mutations;

use std::fmt::Write as _;

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
    let mut out = String::with_capacity(text.len() * 4);
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "&#{};", u32::from(c));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Changed inputs of each target where nobody asks for more.
    const MUTATIONS: u64 = 1500;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// Inputs that are kept, in the order of their names.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(folder().join("corpus").join(name)).expect("a corpus");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has a corpus");
        files.iter().map(|file| fs::read(file).expect("readable")).collect()
    }

    /// The input is shown where it does not hold.
    fn judge(name: &str, target: Target, data: &[u8], about: &dyn Fn() -> String) {
        let held = catch_unwind(|| target(data));
        assert!(held.is_ok(), "{name}, {}: {}", about(), data.escape_ascii());
    }

    #[test]
    fn every_target_holds_for_its_corpus() {
        for (name, target) in TARGETS {
            for (n, data) in corpus(name).iter().enumerate() {
                judge(name, *target, data, &|| format!("input {n}"));
            }
        }
    }

    /// The same changes of the same inputs in every run. `ONESTORE_FUZZ=N` makes N of each target instead,
    /// `ONESTORE_FUZZ_SEED=S` others.
    #[test]
    fn every_target_holds_for_what_its_corpus_is_changed_to() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let wanted = number("ONESTORE_FUZZ").unwrap_or(MUTATIONS);
        let seed = number("ONESTORE_FUZZ_SEED").unwrap_or(1);
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((name, target)) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (corpus, begin) = (corpus(name), Instant::now());
                for n in 0..wanted {
                    let data = mutations::changed(&corpus, seed.wrapping_mul(0x1_0000_0001) ^ n);
                    judge(name, *target, &data, &|| format!("change {n} of seed {seed}"));
                }
                println!("{name:<14} {wanted:>9} in {:>6.1} s", begin.elapsed().as_secs_f64());
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker.join().expect("every target holds");
            }
        });
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
