//! Which ranges of an unfinished copy are known to be good: a file beside it.
//!
//! The first line names the state of the source and the boot of the target, then follow records of 44 bytes: a range's
//! number, its digest and a check. Several processes append to it. A range is entered when it was written and read back.
//! That counts as long as the target has not been booted anew, nobody has written to the copy since the last entry, and
//! nothing of the source was touched, not even its times. Else the journal is a hint only: the ranges are read again and compared at both ends, so that one that outlived a power
//! cut costs time and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::frame::Digest;
use super::{Identity, Span};

/// Records that are gathered before they are written.
const BATCH: usize = 16;

/// Bytes of a record.
const RECORD: usize = 44;

/// The number of no range: a record that takes the certainty from the whole journal.
const DOUBT: u64 = u64::MAX;

/// Most ranges that a journal can name: those of 4 TiB.
const MOST: usize = 4 << 20;

/// The journal of a file that is written.
pub struct Journal {
    file: File,
    waiting: Vec<u8>,
}

/// What a journal says of this source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Ranges and their digests, in order.
    pub ranges: Vec<(u64, Digest)>,
    /// Whether nothing has happened since that could make them untrue.
    pub sure: bool,
}

impl Entries {
    /// The digest of a range that needs not be read again.
    #[must_use]
    pub fn sure_of(&self, at: u64) -> Option<Digest> {
        let found = self.ranges.binary_search_by_key(&at, |(at, _)| *at).ok().filter(|_| self.sure)?;
        self.ranges.get(found).map(|(_, digest)| *digest)
    }
}

fn title(identity: &Identity) -> String {
    let Identity { size, ino, mtime, .. } = identity;
    format!("onestore journal 2: size {size} inode {ino} mtime {mtime}")
}

/// What has to be the same for a range not to be read again. A machine that does not tell its boot is never sure.
fn state(identity: &Identity) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("ctime {} boot {}", identity.ctime, boot.trim())
}

fn check(record: &[u8]) -> [u8; 4] {
    let bytes = blake3::hash(record);
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
        file.write_all(format!("{} {}\n", title(identity), state(identity)).as_bytes())?;
        Self::open(path)
    }

    /// Goes on with one.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().append(true).open(path)?, waiting: Vec::new() })
    }

    /// What a journal says of this source; `None` where there is none, or one of another.
    #[must_use]
    pub fn read(path: &Path, identity: &Identity) -> Option<Entries> {
        let mut reader = BufReader::new(File::open(path).ok()?);
        let mut line = String::new();
        reader.by_ref().take(400).read_line(&mut line).ok()?;
        let then = line.strip_suffix('\n')?.strip_prefix(&title(identity))?.strip_prefix(' ')?;
        let now = state(identity);
        let mut sure = then == now && !now.ends_with(' ');
        let mut ranges = Vec::new();
        let mut record = [0; RECORD];
        while ranges.len() < MOST && reader.read_exact(&mut record).is_ok() {
            let (entry, told) = record.split_at(RECORD - 4);
            let (at, digest) = entry.split_first_chunk::<8>()?;
            let at = u64::from_le_bytes(*at);
            // A record that was torn shifts all that follow it.
            if check(entry) != told || (at >= identity.ranges() && at != DOUBT) {
                break;
            }
            if at == DOUBT {
                sure = false;
                continue;
            }
            ranges.push((at, digest.try_into().ok()?));
        }
        // Of a range that was written twice, the last counts.
        ranges.reverse();
        ranges.sort_by_key(|(at, _)| *at);
        ranges.dedup_by_key(|(at, _)| *at);
        Some(Entries { ranges, sure })
    }

    /// Adds a range that was written and read back.
    ///
    /// # Errors
    /// What the system answers.
    pub fn add(&mut self, at: u64, digest: &Digest) -> io::Result<()> {
        let begin = self.waiting.len();
        self.waiting.extend_from_slice(&at.to_le_bytes());
        self.waiting.extend_from_slice(digest);
        let check = check(&self.waiting[begin..]);
        self.waiting.extend_from_slice(&check);
        if self.waiting.len() >= BATCH * RECORD { self.flush() } else { Ok(()) }
    }

    /// Notes that somebody else has written to the copy. It cannot be told what, so that all that was entered is compared
    /// by every later journey too, also by one behind a journey that was cut before it had compared everything.
    ///
    /// # Errors
    /// What the system answers.
    pub fn doubt(&mut self) -> io::Result<()> {
        self.add(DOUBT, &Digest::default())?;
        self.flush()
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

    const OF: Identity = Identity { size: 1 << 30, ino: 7, mtime: 5, ctime: 6, mode: 0o600 };

    fn ranges(entries: Option<Entries>) -> Vec<u64> {
        entries.unwrap_or_default().ranges.iter().map(|(at, _)| *at).collect()
    }

    proptest! {
        #[test]
        fn a_journal_that_is_cut_anywhere_is_a_shorter_one(added in prop::collection::vec(0..1024_u64, 0..60), cut in 0..2900_usize) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("j");
            let mut journal = Journal::new(&path, &OF).expect("makes");
            for at in &added {
                journal.add(*at, &[7; 32]).expect("adds");
            }
            drop(journal);
            let all = ranges(Journal::read(&path, &OF));
            prop_assert!(added.iter().all(|at| all.contains(at)) && all.iter().all(|at| added.contains(at)));
            let bytes = std::fs::read(&path).expect("reads");
            std::fs::write(&path, &bytes[..bytes.len().saturating_sub(cut)]).expect("writes");
            let part = ranges(Journal::read(&path, &OF));
            prop_assert!(part.iter().all(|at| added.contains(at)));
            prop_assert_eq!(Journal::read(&path, &Identity { mtime: 6, ..OF }), None);
        }
    }

    #[test]
    fn only_what_nobody_touched_since_needs_no_second_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("j");
        let mut journal = Journal::new(&path, &OF).expect("makes");
        for (at, digest) in [(3, [1; 32]), (9, [2; 32]), (3, [3; 32])] {
            journal.add(at, &digest).expect("adds");
        }
        drop(journal);
        let entries = Journal::read(&path, &OF).expect("of this");
        assert_eq!((entries.sure_of(3), entries.sure_of(9), entries.sure_of(4)), (Some([3; 32]), Some([2; 32]), None));
        // Of a copy that somebody has written to nothing is certain, whatever is entered later.
        let other = dir.path().join("doubted");
        std::fs::copy(&path, &other).expect("copies");
        let mut journal = Journal::open(&other).expect("opens");
        journal.doubt().and_then(|()| journal.add(4, &[4; 32])).expect("adds");
        drop(journal);
        let doubted = Journal::read(&other, &OF).expect("of this");
        assert_eq!((doubted.sure_of(4), doubted.ranges.len()), (None, 3));
        // Its times were set back after it had been written to.
        let touched = Journal::read(&path, &Identity { ctime: 7, ..OF }).expect("of this");
        assert_eq!((touched.sure_of(3), touched.ranges.len()), (None, 2));
        // Another boot.
        let text = std::fs::read(&path).expect("reads");
        let line = text.iter().position(|byte| *byte == b'\n').expect("a line");
        let mut other = text.clone();
        other[line - 1] = if other[line - 1] == b'0' { b'1' } else { b'0' };
        std::fs::write(&path, other).expect("writes");
        assert_eq!(Journal::read(&path, &OF).expect("of this").sure_of(3), None);
    }
}
