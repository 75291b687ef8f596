//! What travels between the two ends of a journey: frames with a length, over one ssh exec or one lane beside it.
//!
//! ```text
//! kind u8 | file u16 | at u64 | length u32 | payload      (little endian)
//! ```
//!
//! `at` is a number of a range or a file offset, as the kind has it. Files are numbers in the lists of
//! [`super::super::op::Op::Attend`]: no path is ever read from a stream. A length is refused before anything is
//! reserved for it, and what a payload says is checked against the range it belongs to, so that a peer that lies or
//! has gone mad costs an error and nothing else.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// Version of this page: a peer greets with it.
pub const PROTOCOL: u64 = 4;

/// What a peer says in front of its first frame, so that whatever a login shell printed before can be told from it.
pub const GREETING: &[u8; 16] = b"\x80onestore-peer\r\n";

/// Bytes of a range: 1 MiB. What is digested, sent, written and remembered as one.
pub const RANGE: usize = 1 << 20;

/// Blocks within a range: zeroes are left out in units of 4 KiB.
pub const BLOCK: usize = 4096;

/// Most runs of blocks that are not zero in one range: every second block.
const MOST_RUNS: usize = RANGE / BLOCK / 2 + 1;

/// The longest payload: a whole range, its runs, and what zstd may add to what it cannot compress.
pub const PAYLOAD: usize = RANGE + MOST_RUNS * 8 + 64 + (RANGE >> 7);

const HEAD: usize = 15;

/// Bytes of a range's payload in front of its runs.
const TABLE: usize = 37;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// From a peer, first of all, behind [`GREETING`]: `at` is [`PROTOCOL`].
    Hello = 1,
    /// Answered by the same.
    Ping,
    /// Asks for the identity of a file; answered by the same with [`super::Identity`] as payload.
    Stat,
    /// Asks which ranges from `at` on hold data; answered by the same: pairs of first range and number, `at` the range to
    /// go on with, or 0.
    Map,
    /// Asks for a range; answered by [`Kind::Range`].
    Get,
    /// A range: [`Packed`]. Written where it is sent to a peer.
    Range,
    /// Opens a file to write to; the payload is what it will be a copy of, see [`super::Begin`]. Answered by the same:
    /// the ranges that it holds already, as of [`Kind::Map`], and `at` is 1 where these need not be compared.
    Begin,
    /// Asks for digests of ranges from `at` on, the payload tells how many; answered by the same.
    Digests,
    /// Asks to sync what was written; answered by the same, `at` the number of ranges that were.
    Sync,
    /// From a peer, last of all: it has failed. The first byte is a [`super::Why`], text follows.
    Failed,
    /// Asks to listen for streams beside ssh, which carry the same frames: the payload is a range of ports, the lowest and
    /// the highest, and a [`super::lane::Key`]. Answered by the same: `at` is the port, or 0, with the cause as payload.
    /// Only ever asked over ssh.
    Listen,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Begin, Digests, Failed, Get, Hello, Listen, Map, Ping, Range, Stat, Sync};
        let all = [Hello, Ping, Stat, Map, Get, Range, Begin, Digests, Sync, Failed, Listen];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Number of the file.
    pub file: u16,
    /// See [`Kind`].
    pub at: u64,
}

/// What no frame of ours is.
#[must_use]
pub fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("The other end sent {what}"))
}

/// Bytes of data below which copying them is cheaper than to ask the kernel.
const SPLICED: usize = 64 << 10;

/// Writes a frame but for its payload, which follows.
fn announce(to: &mut impl Write, head: Head, payload: usize) -> io::Result<()> {
    let len = u32::try_from(payload).map_err(io::Error::other)?;
    to.write_all(
        &[&[head.kind as u8][..], &head.file.to_le_bytes(), &head.at.to_le_bytes(), &len.to_le_bytes()].concat(),
    )
}

/// Writes a frame whose payload comes in pieces.
///
/// # Errors
/// Those of the writer.
pub fn write(to: &mut impl Write, head: Head, payload: &[&[u8]]) -> io::Result<()> {
    let len: usize = payload.iter().map(|piece| piece.len()).sum();
    let len = u32::try_from(len).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEAD + payload.first().map_or(0, |piece| piece.len().min(8192)));
    bytes.push(head.kind as u8);
    bytes.extend_from_slice(&head.file.to_le_bytes());
    bytes.extend_from_slice(&head.at.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    // Small pieces go out with the head, the data from where it lies.
    for piece in payload {
        if bytes.len() + piece.len() <= 8192 {
            bytes.extend_from_slice(piece);
        } else {
            to.write_all(&bytes)?;
            bytes.clear();
            to.write_all(piece)?;
        }
    }
    to.write_all(&bytes)
}

/// Reads a frame, its payload into `payload`.
///
/// # Errors
/// Those of the reader; [`io::ErrorKind::UnexpectedEof`] where it ends; [`io::ErrorKind::InvalidData`] for what is no frame.
pub fn read(from: &mut impl Read, payload: &mut Vec<u8>) -> io::Result<Head> {
    let mut bytes = [0; HEAD];
    from.read_exact(&mut bytes)?;
    let [kind, f0, f1, at @ .., l0, l1, l2, l3] = bytes;
    let kind = Kind::of(kind).ok_or_else(|| bad("an unknown frame"))?;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    let len = usize::try_from(len).ok().filter(|len| *len <= PAYLOAD).ok_or_else(|| bad("a frame that is too long"))?;
    // Only what is new is cleared: clearing a megabyte for each frame shows.
    payload.resize(len, 0);
    from.read_exact(payload)?;
    Ok(Head { kind, file: u16::from_le_bytes([f0, f1]), at: u64::from_le_bytes(at) })
}

/// Digest of a range or of a whole image: BLAKE3.
pub type Digest = [u8; 32];

/// A part of a range that is not zero: offset in the range and length, in bytes.
pub type Run = (u32, u32);

/// What a range holds, zero blocks left out. One is used for range after range: its memory stays where it is, for a
/// megabyte that is asked of the system anew costs as much as to send it.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    /// Digest of the range, see [`digest`].
    pub digest: Digest,
    /// Where the data belongs, in order and apart.
    pub runs: Vec<Run>,
    buffer: Vec<u8>,
    /// Where in the buffer the data of all runs lies.
    from: usize,
    len: usize,
    /// The file that it was read from, and where in it.
    source: Option<(Arc<File>, u64)>,
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, &self.runs, self.data()) == (other.digest, &other.runs, other.data())
    }
}

/// The runs of blocks that are not zero.
#[must_use]
pub fn runs_of(bytes: &[u8]) -> Vec<Run> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let runs = crate::exec::holes::runs(bytes).filter(|run| !run.zero);
    runs.map(|run| (number(run.start), number(run.len))).collect()
}

/// The digest of a range by its runs and their data, one after the other. It depends on the content alone, not on how a
/// file system keeps it.
#[must_use]
pub fn digest(runs: &[Run], data: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut rest = data;
    for (start, len) in runs {
        let (here, behind) = rest.split_at((*len as usize).min(rest.len()));
        hasher.update(&start.to_le_bytes());
        hasher.update(&len.to_le_bytes());
        hasher.update(here);
        rest = behind;
    }
    hasher.finalize().into()
}

/// The digest of a range that lies in memory as it lies in the file.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (start, len) in runs_of(bytes) {
        hasher.update(&start.to_le_bytes());
        hasher.update(&len.to_le_bytes());
        hasher.update(&bytes[start as usize..(start + len) as usize]);
    }
    hasher.finalize().into()
}

/// The digest of an image by its size and the digests of its ranges that are not zero.
#[must_use]
pub fn whole<'a>(size: u64, ranges: impl IntoIterator<Item = (&'a u64, &'a Digest)>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    let empty = digest_of(&[]);
    for (at, digest) in ranges.into_iter().filter(|(_, digest)| **digest != empty) {
        hasher.update(&at.to_le_bytes());
        hasher.update(digest);
    }
    hasher.finalize().into()
}

impl Packed {
    /// The data of all runs, one after the other.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.buffer[self.from..self.from + self.len]
    }

    /// Room for a range of `len` bytes as it lies in the file, for [`Packed::pack`]; it holds anything.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        (self.from, self.len, self.source) = (0, len, None);
        &mut self.buffer[..len]
    }

    /// Packs what was read into [`Packed::room`].
    pub fn pack(&mut self) {
        self.runs = runs_of(self.data());
        let mut filled = 0;
        for (start, len) in &self.runs {
            let (start, len) = (*start as usize, *len as usize);
            if start != filled {
                self.buffer.copy_within(start..start + len, filled);
            }
            filled += len;
        }
        self.len = filled;
        self.digest = digest(&self.runs, self.data());
    }

    /// Tells that what was packed lies in `file` at `offset`, as it does in [`Packed::room`].
    pub fn lies_in(&mut self, file: Arc<File>, offset: u64) {
        self.source = Some((file, offset));
    }

    /// What stands in front of the data of a range.
    fn table(&self, zipped: bool) -> Vec<u8> {
        let mut table = Vec::with_capacity(TABLE + self.runs.len() * 8);
        table.extend_from_slice(&self.digest);
        table.push(u8::from(zipped));
        table.extend_from_slice(&u32::try_from(self.runs.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (start, len) in &self.runs {
            table.extend_from_slice(&start.to_le_bytes());
            table.extend_from_slice(&len.to_le_bytes());
        }
        table
    }

    /// Sends it as range `at` of `file`, compressed where that makes it smaller by a tenth and is wanted; tells the bytes sent.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut impl Write, file: u16, at: u64, zip: bool) -> io::Result<usize> {
        let zipped = if zip { Some(zstd::bulk::compress(self.data(), 1)?) } else { None };
        let zipped = zipped.filter(|zipped| zipped.len() < self.len - self.len / 10);
        let data = zipped.as_deref().unwrap_or(self.data());
        write(to, Head { kind: Kind::Range, file, at }, &[&self.table(zipped.is_some()), data])?;
        Ok(data.len())
    }

    /// [`Packed::write`] into a pipe: what lies in a file goes there by `splice(2)`, so that it is not copied. A file that
    /// is written to meanwhile sends other bytes than the digest says, which the other end finds.
    ///
    /// # Errors
    /// As of [`Packed::write`].
    pub fn send(&self, to: &mut PipeWriter, file: u16, at: u64, zip: bool) -> io::Result<usize> {
        let Some((source, base)) = self.source.as_ref().filter(|_| !zip && self.len >= SPLICED) else {
            return self.write(to, file, at, zip);
        };
        let table = self.table(false);
        announce(to, Head { kind: Kind::Range, file, at }, table.len() + self.len)?;
        to.write_all(&table)?;
        let mut data = self.data();
        for (start, len) in &self.runs {
            let (run, rest) = data.split_at(*len as usize);
            let (mut offset, mut left) = (base + u64::from(*start), run.len());
            while left > 0 {
                match splice(source, Some(&mut offset), &*to, None, left, SpliceFlags::empty()) {
                    Ok(0) | Err(Errno::INVAL | Errno::NOSYS) => break,
                    Ok(len) => left = left.saturating_sub(len),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // A file system that cannot, or a file that has become shorter: as it was read.
            to.write_all(&run[run.len() - left..])?;
            data = rest;
        }
        Ok(self.len)
    }

    /// Reads the payload of a [`Kind::Range`] for a range of `len` bytes. The payload becomes the buffer, and its memory is
    /// the one that was used before.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`]: runs that do not lie in the range, in order and at blocks, or other data than
    /// theirs. What it holds then is nothing.
    pub fn unpack(&mut self, payload: &mut Vec<u8>, len: usize) -> io::Result<()> {
        self.runs.clear();
        (self.len, self.source) = (0, None);
        let (head, rest) = payload.split_at_checked(TABLE).ok_or_else(|| bad("a range without a head"))?;
        let (digest, head) = head.split_at(32);
        let count = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (table, data) = (count <= MOST_RUNS)
            .then(|| rest.split_at_checked(count * 8))
            .flatten()
            .ok_or_else(|| bad("a range without its runs"))?;
        let (mut runs, mut end, mut sum) = (std::mem::take(&mut self.runs), 0, 0);
        for [a, b, c, d, e, f, g, h] in table.as_chunks::<8>().0 {
            let (start, long) = (u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]));
            let (from, to) = (start as usize, (start as usize).saturating_add(long as usize));
            let apart = from.is_multiple_of(BLOCK) && (runs.is_empty() || from > end) && long > 0;
            if !apart || to > len || !(to.is_multiple_of(BLOCK) || to == len) {
                return Err(bad("a run outside its range"));
            }
            runs.push((start, long));
            (end, sum) = (to, sum + long as usize);
        }
        self.digest = digest.try_into().map_err(io::Error::other)?;
        match head[0] {
            0 if data.len() == sum => {
                self.from = TABLE + table.len();
                std::mem::swap(&mut self.buffer, payload);
            }
            1 => {
                let room = self.room(sum);
                let filled =
                    zstd::bulk::decompress_to_buffer(data, room).map_err(|_| bad("data that cannot be unpacked"))?;
                if filled != sum {
                    self.len = 0;
                    return Err(bad("other data than its runs"));
                }
            }
            0 => return Err(bad("other data than its runs")),
            _ => return Err(bad("data packed in an unknown way")),
        }
        (self.runs, self.len) = (runs, sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> impl Strategy<Value = Vec<u8>> {
        let block = prop_oneof![Just(vec![0; BLOCK]), any::<u8>().prop_map(|b| vec![b; BLOCK])];
        (prop::collection::vec(block, 0..24), 0..BLOCK, any::<u8>()).prop_map(|(blocks, tail, byte)| {
            let mut bytes = blocks.concat();
            bytes.resize(bytes.len() + tail, byte);
            bytes
        })
    }

    proptest! {
        #[test]
        fn a_range_travels(bytes in image(), zip: bool) {
            let mut packed = Packed::default();
            packed.room(bytes.len() + 5).fill(3);
            packed.room(bytes.len()).copy_from_slice(&bytes);
            packed.pack();
            prop_assert_eq!(packed.digest, digest_of(&bytes));
            let mut sent = Vec::new();
            packed.write(&mut sent, 3, 7, zip).expect("writes");
            let mut payload = vec![9; 5];
            let head = read(&mut &sent[..], &mut payload).expect("reads");
            prop_assert_eq!(head, Head { kind: Kind::Range, file: 3, at: 7 });
            let mut back = Packed::default();
            back.unpack(&mut payload, bytes.len()).expect("a range");
            prop_assert_eq!(&back, &packed);
            let mut there = vec![0; bytes.len()];
            let mut from = 0;
            for (start, len) in &back.runs {
                let (start, len) = (*start as usize, *len as usize);
                there[start..start + len].copy_from_slice(&back.data()[from..from + len]);
                from += len;
            }
            prop_assert_eq!(there, bytes);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..13_u8, len in 0..9000_usize) {
            let mut payload = Vec::new();
            let _ = read(&mut &[&[kind][..], &bytes].concat()[..], &mut payload);
            let mut packed = Packed::default();
            let _ = packed.unpack(&mut bytes.clone(), len);
            let mut odd = vec![0; 33];
            odd.extend_from_slice(&2_u32.to_le_bytes());
            odd.extend_from_slice(&bytes);
            if packed.unpack(&mut odd, len).is_ok() {
                prop_assert!(packed.runs.iter().all(|(start, long)| (start + long) as usize <= len));
            }
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let mut head = vec![Kind::Range as u8, 0, 0];
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&u32::MAX.to_le_bytes());
        let mut payload = Vec::new();
        let error = read(&mut &head[..], &mut payload).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(payload.capacity(), 0);
    }
}
