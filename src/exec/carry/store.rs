//! The files of one end, on this machine: read and written range by range.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;

use super::frame::{Digest, Packed, RANGE, digest_of};
use super::journal::{Entries, Journal, spans};
use super::{Begin, End, Failure, Identity, Known, Span, Why, journal_of};
use crate::exec::copy::read_full;
use crate::exec::holes::Extents;
use crate::exec::writeback::WriteBack;

/// Files to read from and files to write to, by number; opened when they are first needed.
pub struct Store {
    reads: Vec<(PathBuf, Option<Arc<File>>)>,
    writes: Vec<(PathBuf, Option<Target>)>,
    /// A range that is read to be compared; its memory is used again.
    back: Vec<u8>,
}

struct Target {
    file: File,
    identity: Identity,
    journal: Journal,
    /// What the journal said when it was opened.
    entries: Entries,
}

const ALL: u64 = RANGE as u64;

impl Store {
    /// Of these files. Nothing is opened.
    #[must_use]
    pub fn new(reads: Vec<PathBuf>, writes: Vec<PathBuf>) -> Self {
        Self {
            reads: reads.into_iter().map(|path| (path, None)).collect(),
            writes: writes.into_iter().map(|path| (path, None)).collect(),
            back: Vec::new(),
        }
    }

    fn source(&mut self, file: u16) -> Result<(&PathBuf, &Arc<File>), Failure> {
        let (path, opened) = self.reads.get_mut(usize::from(file)).ok_or_else(unknown)?;
        if opened.is_none() {
            let file = File::open(&*path).map_err(|e| Failure::io("read", path, &e))?;
            if !file.metadata().is_ok_and(|data| data.is_file()) {
                return Err(Failure::new(Why::Other, format!("{} is no regular file", path.display())));
            }
            *opened = Some(Arc::new(file));
        }
        opened.as_ref().map(|file| (&*path, file)).ok_or_else(unknown)
    }

    fn target(&mut self, file: u16) -> Result<(&PathBuf, &mut Target), Failure> {
        let (path, opened) = self.writes.get_mut(usize::from(file)).ok_or_else(unknown)?;
        opened.as_mut().map(|target| (&*path, target)).ok_or_else(unknown)
    }

    /// What is written to, where that is what there is; else what is read.
    fn any(&mut self, file: u16) -> Result<(PathBuf, &File, Option<u64>), Failure> {
        if self.writes.is_empty() {
            return self.source(file).map(|(path, file)| (path.clone(), &**file, None));
        }
        self.target(file).map(|(path, target)| (path.clone(), &target.file, Some(target.identity.size)))
    }
}

fn unknown() -> Failure {
    Failure::new(Why::Other, "There is no file of this number")
}

fn start_of(at: u64) -> Result<u64, Failure> {
    at.checked_mul(ALL).ok_or_else(|| Failure::new(Why::Other, "There is no range of this number"))
}

/// Bytes of a range; fewer at the end of the file.
fn len_of(file: &File, at: u64) -> io::Result<usize> {
    let size = file.metadata()?.len();
    usize::try_from(size.saturating_sub(at.saturating_mul(ALL)).min(ALL)).map_err(io::Error::other)
}

fn read(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let filled = read_full(file, bytes, at.saturating_mul(ALL))?;
    if filled < bytes.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// The digest of the first `len` bytes of a range as they lie in the file.
fn digest_at(file: &File, at: u64, len: usize, bytes: &mut Vec<u8>) -> io::Result<Digest> {
    if bytes.len() < len {
        bytes.resize(len, 0);
    }
    let bytes = &mut bytes[..len];
    read(file, at, bytes)?;
    Ok(digest_of(bytes))
}

/// Bytes that are written at a time: 128 KiB. For a whole range the page cache takes one large folio of memory that
/// nobody used before; measured, that costs four times the CPU of smaller ones, which are the last ones given back.
const PIECE: usize = 128 << 10;

fn put(target: &Target, at: u64, packed: &Packed) -> io::Result<()> {
    let mut rest = packed.data();
    for (offset, len) in &packed.runs {
        let (run, behind) = rest.split_at(*len as usize);
        let mut to = at * ALL + u64::from(*offset);
        for piece in run.chunks(PIECE) {
            target.file.write_all_at(piece, to)?;
            to += piece.len() as u64;
        }
        rest = behind;
    }
    Ok(())
}

impl End for Store {
    fn stat(&mut self, file: u16) -> Result<Identity, Failure> {
        let (path, file, _) = self.any(file)?;
        let data = file.metadata().map_err(|e| Failure::io("look at", &path, &e))?;
        let time = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        let (mtime, ctime) = (time(data.mtime(), data.mtime_nsec()), time(data.ctime(), data.ctime_nsec()));
        Ok(Identity { size: data.len(), ino: data.ino(), mtime, ctime, mode: data.mode() & 0o777 })
    }

    fn map(&mut self, file: u16) -> Result<Vec<Span>, Failure> {
        let (path, file, _) = self.any(file)?;
        let found = || -> io::Result<Vec<Span>> {
            let mut extents = Extents::new(file, file.metadata()?.len());
            let mut found: Vec<Span> = Vec::new();
            while let Some((start, end)) = extents.next()? {
                let (first, end) = (start / ALL, end.div_ceil(ALL));
                match found.last_mut() {
                    Some((at, count)) if *at + *count >= first => *count = end - *at,
                    _ => found.push((first, end - first)),
                }
            }
            Ok(found)
        };
        found().map_err(|e| Failure::io("find the data of", &path, &e))
    }

    fn ask(&mut self, _file: u16, _ranges: &[u64]) -> Result<(), Failure> {
        Ok(())
    }

    fn take(&mut self, file: u16, at: u64, packed: &mut Packed) -> Result<(), Failure> {
        let (path, file) = self.source(file)?;
        let read = len_of(file, at).and_then(|len| read(file, at, packed.room(len)));
        read.map_err(|e| Failure::io("read", path, &e))?;
        packed.pack();
        packed.lies_in(Arc::clone(file), at.saturating_mul(ALL));
        Ok(())
    }

    fn begin(&mut self, file: u16, begin: Begin) -> Result<Known, Failure> {
        let (path, opened) = self.writes.get_mut(usize::from(file)).ok_or_else(unknown)?;
        let failed = |e: io::Error| Failure::io("write", path, &e);
        let journal_path = journal_of(path);
        let known = Journal::read(&journal_path, &begin.identity);
        let mut options = OpenOptions::new();
        let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).map_err(|e| failed(io::Error::other(e)))?;
        options.read(true).write(true).create(begin.first).custom_flags(nofollow);
        // The other streams have to open it as well.
        options.mode(begin.identity.mode | 0o600);
        let target = options.open(&*path).map_err(failed)?;
        let data = target.metadata().map_err(failed)?;
        if !data.is_file() {
            return Err(failed(io::Error::other("It is no regular file")));
        }
        let mut known = known.filter(|_| !begin.first || data.len() == begin.identity.size);
        if let Some(entries) = &mut known {
            // Whoever wrote to it last entered that: else it was killed, or it was somebody else.
            let entered = std::fs::metadata(&journal_path).and_then(|data| data.modified());
            entries.sure &= entered.is_ok_and(|entered| data.modified().is_ok_and(|written| written <= entered));
        }
        let journal = match (&known, begin.first) {
            (None, true) => {
                target.set_len(0).and_then(|()| target.set_len(begin.identity.size)).map_err(failed)?;
                if begin.allocate && begin.identity.size > 0 {
                    match retry_on_intr(|| fallocate(&target, FallocateFlags::empty(), 0, begin.identity.size)) {
                        // A file system without the notion: what is not written stays a hole.
                        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                        Err(error) => return Err(failed(error.into())),
                    }
                }
                Journal::new(&journal_path, &begin.identity)
            }
            _ => Journal::open(&journal_path),
        };
        let mut journal = journal.map_err(|e| Failure::io("write", &journal_path, &e))?;
        if begin.first && known.as_ref().is_some_and(|entries| !entries.sure) {
            journal.doubt().map_err(|e| Failure::io("write", &journal_path, &e))?;
        }
        let entries = known.unwrap_or_default();
        let known = Known { spans: spans(entries.ranges.iter().map(|(at, _)| *at)), sure: entries.sure };
        *opened = Some(Target { file: target, identity: begin.identity, journal, entries });
        Ok(known)
    }

    fn put(&mut self, file: u16, at: u64, packed: &Packed, _zip: bool) -> Result<usize, Failure> {
        let mut back = std::mem::take(&mut self.back);
        let (path, target) = self.target(file)?;
        let failed = |e: io::Error| Failure::io("write", path, &e);
        let start = start_of(at)?;
        let len = target.identity.len_of(at);
        if at >= target.identity.ranges() || packed.runs.iter().any(|(from, long)| (from + long) as usize > len) {
            return Err(Failure::new(Why::Other, format!("There is no range {at} in {}", path.display())));
        }
        put(target, at, packed).map_err(failed)?;
        // Back from where it was written: what is compared is the file, not what arrived.
        if digest_at(&target.file, at, len, &mut back).map_err(failed)? != packed.digest {
            // A part of an earlier journey may hold what is zero now.
            target.file.write_all_at(&vec![0; len], start).map_err(failed)?;
            put(target, at, packed).map_err(failed)?;
            if digest_at(&target.file, at, len, &mut back).map_err(failed)? != packed.digest {
                let text = format!("{} does not keep what is written to it, at byte {start}", path.display());
                return Err(Failure::new(Why::Differs, text));
            }
        }
        WriteBack::begin(&target.file, start, len as u64);
        target.journal.add(at, &packed.digest).map_err(failed)?;
        self.back = back;
        Ok(packed.data().len())
    }

    fn tell(&mut self, _file: u16, _at: u64, _count: u32) -> Result<(), Failure> {
        Ok(())
    }

    fn told(&mut self, file: u16, at: u64, count: u32) -> Result<Vec<Digest>, Failure> {
        let ranges = at..at.saturating_add(count.into());
        if let Ok((_, target)) = self.target(file)
            && let Some(sure) = ranges.clone().map(|at| target.entries.sure_of(at)).collect()
        {
            return Ok(sure);
        }
        let mut back = std::mem::take(&mut self.back);
        let (path, file, _) = self.any(file)?;
        let one = |at| digest_at(file, at, len_of(file, at)?, &mut back);
        let told = ranges.map(one).collect::<io::Result<_>>();
        let told = told.map_err(|e| Failure::io("read", &path, &e))?;
        self.back = back;
        Ok(told)
    }

    fn sync(&mut self) -> Result<(), Failure> {
        for (path, target) in &mut self.writes {
            if let Some(target) = target {
                let done = target.journal.flush().and_then(|()| target.file.sync_all());
                done.map_err(|e| Failure::io("sync", path, &e))?;
            }
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// The ranges of spans that lie in a file, in order; what a peer says is not believed further than that.
pub(super) fn ranges(spans: &[Span], identity: &Identity) -> Vec<u64> {
    let (end, mut next, mut all) = (identity.ranges(), 0, Vec::new());
    for (at, count) in spans {
        let until = at.saturating_add(*count).min(end);
        all.extend((*at).max(next)..until);
        next = next.max(until);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::journal::spans;
    use super::*;

    #[test]
    fn spans_and_ranges_are_the_same() {
        let of = Identity { size: 5 * ALL + 1, ino: 1, mtime: 1, ctime: 1, mode: 0o600 };
        assert_eq!(ranges(&[(0, 1), (3, u64::MAX), (2, 1), (4, 9)], &of), [0, 3, 4, 5]);
        assert_eq!(spans([0, 3, 4, 5]), [(0, 1), (3, 3)]);
    }
}
