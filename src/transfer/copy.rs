//! Copies that keep holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, fallocate};

use crate::exec::control::Control;
use crate::exec::op::Sparse;

const BLOCK: usize = 64 << 10;

/// Copies all of `from` into the empty file `to`; answers the bytes copied.
///
/// # Errors
/// Of the system calls, and [`crate::exec::control::Stopped`] inside an [`io::Error`].
pub fn copy_file(from: &File, to: &File, sparse: Sparse, control: &Control) -> io::Result<u64> {
    let mut from = from;
    from.seek(SeekFrom::Start(0))?;
    receive(&mut from, to, sparse, control)
}

/// Writes all that `reader` gives into the empty file `to`; answers the bytes received.
///
/// # Errors
/// As [`copy_file`].
pub fn receive(reader: &mut dyn Read, to: &File, sparse: Sparse, control: &Control) -> io::Result<u64> {
    let mut to = to;
    let mut reader = control.reader(reader);
    let mut block = Vec::with_capacity(BLOCK);
    let mut total = 0;
    loop {
        block.clear();
        let len = (&mut reader).take(BLOCK as u64).read_to_end(&mut block)?;
        if len == 0 {
            break;
        }
        total += len as u64;
        if sparse == Sparse::Holes && block.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Start(total))?;
        } else {
            to.write_all(&block)?;
        }
    }
    if to.metadata()?.file_type().is_file() {
        to.set_len(total)?;
    }
    Ok(total)
}

/// Turns blocks of zeroes into holes; answers the bytes freed.
///
/// # Errors
/// As the system calls; a file system that has no holes gives `EOPNOTSUPP`.
pub fn punch_zeroes(file: &File) -> io::Result<u64> {
    let block = file.metadata()?.blksize().max(4096);
    let mut buffer = vec![0; usize::try_from(block).map_err(io::Error::other)?];
    let mut freed = 0;
    let mut at = 0;
    loop {
        let len = file.read_at(&mut buffer, at)?;
        if len == 0 {
            return Ok(freed);
        }
        if buffer[..len].iter().all(|byte| *byte == 0) {
            fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len as u64)?;
            freed += len as u64;
        }
        at += len as u64;
    }
}
