//! The fastest durable copy that is known for the machines of the bench: a contestant, not a tool. It does nothing but
//! bring the data of a new file to the disk: no name, no check, no look for zeroes.
//!
//! Eight threads hand pages of the cache to the disk without copying them (`splice(2)` into a file that was opened with
//! `O_DIRECT`), into blocks that were allocated before; one `fsync` at the end. Measured beside it and not faster: write
//! and `fadvise` or `sync_file_range` of each MiB, the same with two threads, `copy_file_range`, `O_DIRECT` from a buffer
//! or from a mapping, with one to sixteen threads and parts of 256 KiB to 4 MiB.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice};

/// The first word of the hidden call `xtask durable-copy FROM TO`.
pub const VERB: &str = "durable-copy";

const PART: u64 = 512 << 10;
const THREADS: usize = 8;

/// The hidden call.
///
/// # Errors
/// The file system cannot do one of these things; the words are not two.
pub fn run(words: &[OsString]) -> Result<()> {
    let [from, to] = words else { bail!("{VERB} takes two files") };
    copy(from.as_ref(), to.as_ref()).with_context(|| format!("Cannot copy {}", from.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from)?;
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    let target = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(to)?;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut parts = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&source, SeekFrom::Data(at)) {
        at = seek(&source, SeekFrom::Hole(start))?;
        fallocate(&target, FallocateFlags::KEEP_SIZE, start, at - start)?;
        let mut from = start;
        while from < at {
            parts.push((from, PART.min(at - from)));
            from += PART;
        }
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let worker = || work(&source, &target, &parts, &next);
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("A thread panicked"))?)
    })?;
    Ok(target.sync_all()?)
}

fn work(source: &File, target: &File, parts: &[(u64, u64)], next: &AtomicUsize) -> Result<()> {
    let (out, into) = pipe()?;
    fcntl_setpipe_size(&into, usize::try_from(PART)?)?;
    let flags = SpliceFlags::empty();
    while let Some((at, mut left)) = parts.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
        let (mut here, mut there) = (at, at);
        while left > 0 {
            let mut held = splice(source, Some(&mut here), &into, None, usize::try_from(left)?, flags)?;
            if held == 0 {
                bail!("It became shorter");
            }
            left -= u64::try_from(held)?;
            while held > 0 {
                held -= splice(&out, None, target, Some(&mut there), held, flags)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::copy;
    use crate::bench::files::{Source, make};
    use crate::bench::stop::Stop;

    #[test]
    fn the_copy_is_one() {
        // Not on a temporary file system of memory, which may know no direct writing.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        make(Source::Dense64M, &from, &Stop::install().unwrap()).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap());
    }
}
