//! Where the inspector's bytes come from, and the bounded window through which the format modules see them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};

/// The most bytes that one inspection reads, and so the most that it holds: 4 MiB.
pub const BUDGET: usize = 4 << 20;

/// Something with bytes at offsets.
pub trait ReadAt {
    /// Reads some bytes at `offset`; 0 only at or after the end.
    ///
    /// # Errors
    /// [`ReadError::NotHere`] for bytes that exist, or may exist, but are not at hand.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError>;

    /// Length of the whole image in bytes, where it is known.
    fn len(&self) -> Option<u64>;

    /// Whether the image is known to have no bytes.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They lie behind the prefix that is at hand.
    #[error("Bytes lie behind the part at hand")]
    NotHere,
    /// The system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first bytes of a stream whose rest has not come yet.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    head: &'a [u8],
    total: Option<u64>,
}

impl<'a> Prefix<'a> {
    /// These first bytes of an image of `total` bytes, or of unknown length.
    #[must_use]
    pub fn new(head: &'a [u8], total: Option<u64>) -> Self {
        // A total below what came is a lie that must not make us doubt what we have.
        Self { head, total: total.map(|total| total.max(head.len() as u64)) }
    }

    /// A whole image.
    #[must_use]
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self::new(bytes, Some(bytes.len() as u64))
    }
}

impl ReadAt for Prefix<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        if rest.is_empty() {
            return match self.total {
                Some(total) if offset >= total => Ok(0),
                _ => Err(ReadError::NotHere),
            };
        }
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn len(&self) -> Option<u64> {
        self.total
    }
}

/// A file that lies elsewhere: its first bytes are at hand, others are fetched when they are needed.
pub struct Fetched<'a, F> {
    head: &'a [u8],
    total: Option<u64>,
    fetch: F,
}

impl<'a, F: FnMut(u64, u64) -> io::Result<Vec<u8>>> Fetched<'a, F> {
    /// These first bytes of an image of `total` bytes, or of unknown length. `fetch` is given an offset and the number of
    /// bytes wanted; it gives at most that many, and none only at or after the end.
    pub fn new(head: &'a [u8], total: Option<u64>, fetch: F) -> Self {
        Self { head, total, fetch }
    }
}

impl<F: FnMut(u64, u64) -> io::Result<Vec<u8>>> ReadAt for Fetched<'_, F> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let known = usize::try_from(offset).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        let fetched;
        let bytes = if !known.is_empty() {
            known
        } else if self.total.is_some_and(|total| offset >= total) {
            return Ok(0);
        } else {
            fetched = (self.fetch)(offset, buf.len() as u64)?;
            &fetched
        };
        let count = bytes.len().min(buf.len());
        buf[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn len(&self) -> Option<u64> {
        self.total
    }
}

/// A regular file or block device that someone else has opened.
#[derive(Debug)]
pub struct FileSource<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileSource<'a> {
    /// Looks how long the file or device is. Of a device the file offset is moved.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(file: &'a File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let len = if meta.file_type().is_block_device() {
            rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?
        } else {
            meta.len()
        };
        Ok(Self { file, len })
    }
}

impl ReadAt for FileSource<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        // Past this the system answers EINVAL; no file is that long.
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        loop {
            match FileExt::read_at(self.file, buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Ok(result?),
            }
        }
    }

    fn len(&self) -> Option<u64> {
        Some(self.len)
    }
}

/// Why a part of a header is not there.
#[derive(Debug)]
pub enum Miss {
    /// The image ends before this byte.
    End(u64),
    /// The part at hand ends before this byte; the image may not.
    NotHere(u64),
    /// It would take more than [`BUDGET`] to read it.
    Budget,
    /// The system failed.
    Io(io::Error),
}

/// A source with a budget.
pub(super) struct Window<'a> {
    source: &'a mut dyn ReadAt,
    left: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(source: &'a mut dyn ReadAt) -> Self {
        Self { source, left: BUDGET }
    }

    pub(super) fn len(&self) -> Option<u64> {
        self.source.len()
    }

    /// As many as there are of the first `len` bytes.
    pub(super) fn start(&mut self, len: usize) -> io::Result<Vec<u8>> {
        match self.up_to(0, len) {
            Ok(bytes) => Ok(bytes),
            Err(Miss::Io(error)) => Err(error),
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Up to `len` bytes at `offset`: fewer where the image, or the part at hand, ends.
    pub(super) fn up_to(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Miss> {
        self.left = self.left.checked_sub(len).ok_or(Miss::Budget)?;
        // Room for what can come; most headers are shorter than what is asked for.
        let rest = self.source.len().map_or(u64::MAX, |total| total.saturating_sub(offset));
        let len = usize::try_from(rest).map_or(len, |rest| len.min(rest));
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            let Some(at) = offset.checked_add(filled as u64) else { break };
            match self.source.read_at(at, &mut bytes[filled..]) {
                Ok(0) | Err(ReadError::NotHere) => break,
                Ok(n) => filled += n.min(len - filled),
                Err(ReadError::Io(error)) => return Err(Miss::Io(error)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Up to `len` bytes at `offset`: fewer only where the image ends, not where the part at hand does.
    pub(super) fn all_up_to(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Miss> {
        let bytes = self.up_to(offset, len)?;
        let wanted = offset.saturating_add(len as u64);
        let end = self.source.len().map_or(wanted, |total| total.min(wanted));
        if offset.saturating_add(bytes.len() as u64) < end { Err(Miss::NotHere(end)) } else { Ok(bytes) }
    }

    /// Exactly `len` bytes at `offset`.
    pub(super) fn exact(&mut self, offset: u64, len: usize) -> Result<Fields, Miss> {
        let end = offset.saturating_add(len as u64);
        if self.source.len().is_some_and(|total| end > total) {
            return Err(Miss::End(end));
        }
        let bytes = self.up_to(offset, len)?;
        if bytes.len() == len {
            return Ok(Fields(bytes));
        }
        // Whether the end was reached or only the end of what is at hand.
        match self.source.read_at(offset.saturating_add(bytes.len() as u64), &mut [0]) {
            Err(ReadError::Io(error)) => Err(Miss::Io(error)),
            Err(ReadError::NotHere) => Err(Miss::NotHere(end)),
            Ok(_) => Err(Miss::End(end)),
        }
    }
}

/// Bytes of a header, with numbers at offsets. Callers ask only for offsets inside; outside reads as zero.
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        if let Some(bytes) = self.0.get(at..at + N) {
            out.copy_from_slice(bytes);
        }
        out
    }

    pub(super) fn u8(&self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub(super) fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub(super) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(super) fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    pub(super) fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// `len` bytes at `at`, or fewer at the end.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        let end = at.saturating_add(len).min(self.0.len());
        self.0.get(at..end).unwrap_or_default()
    }

    /// A C string field of `len` bytes.
    pub(super) fn text(&self, at: usize, len: usize) -> String {
        let bytes = self.bytes(at, len);
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_hand_is_not_fetched() {
        let whole: Vec<u8> = (0..100).collect();
        let mut asked = Vec::new();
        let mut source = Fetched::new(&whole[..10], Some(100), |offset, len| {
            asked.push((offset, len));
            let at = usize::try_from(offset).expect("small");
            Ok(whole[at..].iter().copied().take(usize::try_from(len).expect("small")).collect())
        });
        let mut read = |offset, len: usize| {
            let mut buf = vec![0; len];
            let count = source.read_at(offset, &mut buf).expect("reads");
            buf.truncate(count);
            buf
        };
        assert_eq!(read(4, 20), &whole[4..10]);
        assert_eq!(read(10, 5), &whole[10..15]);
        assert_eq!(read(98, 5), &whole[98..]);
        assert!(read(100, 5).is_empty());
        assert_eq!(asked, [(10, 5), (98, 5)]);
    }
}
