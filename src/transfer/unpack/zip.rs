//! zip: stored, deflated, bzip2 and zstd members, with and without zip64, from a file.
//!
//! Source: PKWARE's APPNOTE 6.3.10, §4.3 (records), §4.5.3 (zip64). The central directory decides; it is read as a stream.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use super::UnpackError;
use super::tree::{Tree, refuse};
use crate::exec::copy;
use crate::exec::op::Sparse;

/// Bytes of the end record without its comment.
const END: u64 = 22;
/// Longest target of a link in bytes.
const LINK: u64 = 4096;

fn damaged(member: &[u8], why: impl Into<String>) -> UnpackError {
    UnpackError::Damaged { member: member.to_vec(), why: why.into() }
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

/// Where the central directory is.
struct Directory {
    at: u64,
    entries: u64,
}

fn directory(file: &File) -> Result<Directory, UnpackError> {
    let none = || damaged(b"", "its directory is missing: it was cut short");
    let size = file.metadata().map_err(UnpackError::Read)?.len();
    // The record is the last thing but for a comment of at most 64 KiB.
    let start = size.saturating_sub(END + 0xFFFF);
    let mut tail = vec![0; usize::try_from(size - start).unwrap_or(0)];
    file.read_exact_at(&mut tail, start).map_err(UnpackError::Read)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06")
            && at + 22 + usize::try_from(u16_at(&tail, at + 20)).unwrap_or(0) == tail.len()
    };
    let last = tail.len().checked_sub(22).ok_or_else(none)?;
    let at = (0..=last).rev().find(is_end).ok_or_else(none)?;
    let end = &tail[at..];
    let (mut entries, mut len, mut offset) = (u16_at(end, 10), u32_at(end, 12), u32_at(end, 16));
    let mut limit = start + at as u64;
    let locator = at.checked_sub(20).map(|at| &tail[at..at + 20]).filter(|locator| locator.starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        limit = u64_at(locator, 8);
        let mut record = [0; 56];
        file.read_exact_at(&mut record, limit).map_err(|_| none())?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(none());
        }
        (entries, len, offset) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    match offset.checked_add(len) {
        Some(end) if end <= limit => Ok(Directory { at: offset, entries }),
        _ => Err(damaged(b"", "its directory does not lie inside")),
    }
}

/// A member as the central directory has it.
#[derive(Debug)]
struct Member {
    name: Vec<u8>,
    method: u64,
    crc: u32,
    packed: u64,
    size: u64,
    at: u64,
    /// Mode of Unix, with the kind; 0 where the archive comes from another system.
    mode: u32,
}

fn next(reader: &mut impl Read, last: &[u8]) -> Result<Member, UnpackError> {
    let cut = |_| damaged(last, "its directory is cut short");
    let mut head = [0; 46];
    reader.read_exact(&mut head).map_err(cut)?;
    if !head.starts_with(b"PK\x01\x02") {
        return Err(damaged(last, "what follows in its directory is no member"));
    }
    let mut part = |len: u64| -> Result<Vec<u8>, UnpackError> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        reader.read_exact(&mut bytes).map(|()| bytes).map_err(cut)
    };
    let (name, extra) = (part(u16_at(&head, 28))?, part(u16_at(&head, 30))?);
    part(u16_at(&head, 32))?;
    let unix = matches!(head[5], 3 | 19);
    let mut member = Member {
        method: u16_at(&head, 10),
        crc: u32::from_le_bytes([head[16], head[17], head[18], head[19]]),
        packed: u32_at(&head, 20),
        size: u32_at(&head, 24),
        at: u32_at(&head, 42),
        mode: if unix { u32::from(u16::from_le_bytes([head[40], head[41]])) } else { 0 },
        name,
    };
    if head[8] & 1 != 0 {
        return Err(refuse(&member.name, "is encrypted"));
    }
    zip64(&mut member, &extra);
    Ok(member)
}

/// Takes 64-bit values from the extra field, where the fields of 32 bits say that they are there.
fn zip64(member: &mut Member, mut extra: &[u8]) {
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), usize::try_from(u16_at(extra, 2)).unwrap_or(0));
        let body = extra.get(4..4 + len).unwrap_or_default();
        if id == 1 {
            let mut at = 0;
            for value in [&mut member.size, &mut member.packed, &mut member.at] {
                if *value == 0xFFFF_FFFF && body.len() >= at + 8 {
                    *value = u64_at(body, at);
                    at += 8;
                }
            }
        }
        extra = extra.get(4 + len..).unwrap_or_default();
    }
}

/// Reads a part of a file by position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Digests what passes.
struct Summed<R> {
    inner: R,
    crc: flate2::Crc,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.crc.update(&buf[..n]);
        Ok(n)
    }
}

/// Unpacks the zip in `file`.
pub(super) fn unpack(file: &File, tree: &mut Tree<'_>) -> Result<(), UnpackError> {
    let directory = directory(file)?;
    let mut reader = BufReader::with_capacity(64 << 10, Part { file, at: directory.at, left: u64::MAX });
    let mut last = Vec::new();
    for _ in 0..directory.entries {
        let member = next(&mut reader, &last)?;
        one(file, &member, tree)?;
        last = member.name;
    }
    Ok(())
}

fn one(file: &File, member: &Member, tree: &mut Tree<'_>) -> Result<(), UnpackError> {
    let name = &member.name;
    // An archive from elsewhere says nothing.
    let permissions = |default: u32| if member.mode == 0 { default } else { member.mode };
    match member.mode & 0o170_000 {
        0o040_000 => return tree.dir(name, permissions(0o777)),
        0 | 0o100_000 if name.ends_with(b"/") => return tree.dir(name, permissions(0o777)),
        0 | 0o100_000 => {}
        0o120_000 => {
            if member.size > LINK {
                return Err(refuse(name, "is a link with a target that no link can have"));
            }
            let mut target = Vec::new();
            let mut data = open(file, member)?.take(LINK + 1);
            data.read_to_end(&mut target).map_err(|error| damaged(name, error.to_string()))?;
            return tree.symlink(name, &target);
        }
        0o010_000 => return Err(refuse(name, "is a pipe")),
        0o020_000 | 0o060_000 => return Err(refuse(name, "is a device")),
        _ => return Err(refuse(name, "is of an unknown kind")),
    }
    let mut data = Summed { inner: open(file, member)?.take(member.size.saturating_add(1)), crc: flate2::Crc::new() };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            damaged(name, source.to_string())
        }
        _ => UnpackError::Write { member: name.clone(), source },
    };
    tree.file(name, permissions(0o666), member.size, |to, control| {
        let got = copy::receive(&mut data, to, Sparse::Holes, control).map_err(failed)?;
        if got != member.size {
            return Err(damaged(name, format!("it does not hold the {} bytes that it announces", member.size)));
        }
        if data.crc.sum() != member.crc {
            return Err(damaged(name, "its checksum is wrong"));
        }
        Ok(())
    })
}

/// The data of a member, unpacked.
fn open<'a>(file: &'a File, member: &Member) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let mut head = [0; 30];
    let local = file.read_exact_at(&mut head, member.at);
    if local.is_err() || !head.starts_with(b"PK\x03\x04") {
        return Err(damaged(&member.name, "it is not where the directory says"));
    }
    let at = member.at + 30 + u16_at(&head, 26) + u16_at(&head, 28);
    let part = BufReader::with_capacity(64 << 10, Part { file, at, left: member.packed });
    Ok(match member.method {
        0 => Box::new(part),
        8 => Box::new(flate2::bufread::DeflateDecoder::new(part)),
        12 => Box::new(bzip2::bufread::BzDecoder::new(part)),
        93 => Box::new(zstd::Decoder::with_buffer(part).map_err(UnpackError::Read)?),
        other => return Err(refuse(&member.name, format!("is compressed by method {other}, which is not known here"))),
    })
}
