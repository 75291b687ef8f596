//! Where the data of a file is, and where nothing: extents that the file system tells, blocks of zeroes in what was read.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::copy::BLOCK;

/// Walks the data extents of a file up to `size`; a file that cannot tell is one extent.
pub(super) struct Extents<'a> {
    file: &'a File,
    size: u64,
    at: u64,
}

impl<'a> Extents<'a> {
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, at: 0 }
    }
}

impl Extents<'_> {
    /// The next extent: offsets of its first byte and of the byte after its last.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, u64)>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let start = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => {
                self.at = self.size;
                return Ok(None);
            }
            // A block device, or a file system without the notion.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let start = self.at;
                self.at = self.size;
                return Ok(Some((start, self.size)));
            }
            Err(error) => return Err(error.into()),
        };
        if start >= self.size {
            self.at = self.size;
            return Ok(None);
        }
        let end = match seek(self.file, SeekFrom::Hole(start)) {
            // An answer that is not after the start would make us walk in place: the file changed meanwhile.
            Ok(end) if end > start => end.min(self.size),
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => self.size,
            Err(error) => return Err(error.into()),
        };
        self.at = end;
        Ok(Some((start, end)))
    }
}

/// A run of blocks that are all zero, or all not.
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) zero: bool,
}

/// The runs of `data`, whose first byte lies at a multiple of [`BLOCK`]; a shorter last block counts as one.
pub(super) fn runs(data: &[u8]) -> impl Iterator<Item = Run> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = data.get(at..)?.chunks(BLOCK).next()?;
        let zero = is_zero(first);
        let start = at;
        for block in data[start..].chunks(BLOCK) {
            if is_zero(block) != zero {
                break;
            }
            at += block.len();
        }
        Some(Run { start, len: at - start, zero })
    })
}

/// Whether a block holds nothing but zeroes. Not by comparing: `memcmp` of musl looks at one byte at a time.
pub(super) fn is_zero(block: &[u8]) -> bool {
    let (wide, rest) = block.as_chunks::<64>();
    wide.iter().all(|part| part.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}
