//! Which ranges of an unfinished copy are known to be good: a file beside it.
//!
//! The first line names the state of the source, then follow records of 12 bytes: a range's number and a check. Several
//! processes append to it. It is a hint and never a proof: ranges that it names are read again and compared at both ends
//! before they count, so that a journal that lies, or that outlived a power cut, costs time and nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Identity, Span};

/// Records that are gathered before they are written.
const BATCH: usize = 16;

/// Most ranges that a journal can name: those of 4 TiB.
const MOST: usize = 4 << 20;

/// The journal of a file that is written.
pub struct Journal {
    file: File,
    waiting: Vec<u8>,
}

fn title(identity: &Identity) -> String {
    let Identity { size, ino, mtime, mode: _ } = identity;
    format!("onestore journal 1: size {size} inode {ino} mtime {mtime}\n")
}

fn check(at: u64) -> [u8; 4] {
    let bytes = blake3::hash(&at.to_le_bytes());
    let [a, b, c, d, ..] = *bytes.as_bytes();
    [a, b, c, d]
}

impl Journal {
    /// Begins a new one; an old one is gone.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(path: &Path, identity: &Identity) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(title(identity).as_bytes())?;
        Self::open(path)
    }

    /// Goes on with one.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().append(true).open(path)?, waiting: Vec::new() })
    }

    /// The ranges of a journal of this source, in order; `None` where there is none, or one of another.
    #[must_use]
    pub fn read(path: &Path, identity: &Identity) -> Option<Vec<Span>> {
        let mut reader = BufReader::new(File::open(path).ok()?);
        let mut line = String::new();
        reader.by_ref().take(400).read_line(&mut line).ok()?;
        if line != title(identity) {
            return None;
        }
        let mut ranges = Vec::new();
        let mut record = [0; 12];
        while ranges.len() < MOST && reader.read_exact(&mut record).is_ok() {
            let [at @ .., a, b, c, d] = record;
            let at = u64::from_le_bytes(at);
            // A record that was torn shifts all that follow it.
            if check(at) != [a, b, c, d] || at >= identity.ranges() {
                break;
            }
            ranges.push(at);
        }
        ranges.sort_unstable();
        ranges.dedup();
        Some(spans(ranges))
    }

    /// Adds a range that was written and read back.
    ///
    /// # Errors
    /// What the system answers.
    pub fn add(&mut self, at: u64) -> io::Result<()> {
        self.waiting.extend_from_slice(&at.to_le_bytes());
        self.waiting.extend_from_slice(&check(at));
        if self.waiting.len() >= BATCH * 12 { self.flush() } else { Ok(()) }
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// What the system answers.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.file.write_all(&self.waiting);
        self.waiting.clear();
        result
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Best effort: what is not in the journal is sent again.
        let _ = self.flush();
    }
}

/// Ranges in order, as spans.
#[must_use]
pub fn spans(ranges: impl IntoIterator<Item = u64>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for at in ranges {
        match spans.last_mut() {
            Some((first, count)) if *first + *count == at => *count += 1,
            _ => spans.push((at, 1)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OF: Identity = Identity { size: 1 << 30, ino: 7, mtime: 5, mode: 0o600 };

    proptest! {
        #[test]
        fn a_journal_that_is_cut_anywhere_is_a_shorter_one(ranges in prop::collection::vec(0..1024_u64, 0..60), cut in 0..900_usize) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("j");
            let mut journal = Journal::new(&path, &OF).expect("makes");
            for at in &ranges {
                journal.add(*at).expect("adds");
            }
            drop(journal);
            let all: Vec<u64> = Journal::read(&path, &OF).expect("of this").iter().flat_map(|(at, n)| *at..at + n).collect();
            prop_assert!(ranges.iter().all(|at| all.contains(at)) && all.iter().all(|at| ranges.contains(at)));
            let bytes = std::fs::read(&path).expect("reads");
            std::fs::write(&path, &bytes[..bytes.len().saturating_sub(cut)]).expect("writes");
            let part = Journal::read(&path, &OF).unwrap_or_default();
            prop_assert!(part.iter().flat_map(|(at, n)| *at..at + n).all(|at| ranges.contains(&at)));
            prop_assert_eq!(Journal::read(&path, &Identity { mtime: 6, ..OF }), None);
        }
    }
}
