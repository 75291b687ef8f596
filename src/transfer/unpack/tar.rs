//! tar: v7, ustar, GNU and pax, from a stream.
//!
//! Sources: POSIX.1-2024 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format" and
//! "Storing Sparse Files" (old GNU format).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, UNIX_EPOCH};

use super::tree::{Tree, refuse};
use super::{Limits, UnpackError};
use crate::exec::control::Control;
use crate::exec::copy;
use crate::exec::op::Sparse;

/// Bytes of a block; everything is padded to it.
const BLOCK: usize = 512;

/// Longest extended header or long name in bytes: 64 KiB.
const EXTENDED: u64 = 64 << 10;

/// Extents of a sparse member: a hundred thousand.
const EXTENTS: usize = 100_000;

type Block = [u8; BLOCK];

/// Whether a block is a header: its checksum is right, and it has a name.
pub(super) fn is_header(block: &Block) -> bool {
    // The field itself counts as blanks.
    let sum = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) });
    block[0] != 0 && number(&block[148..156]) == Some(sum.sum())
}

/// The stream, with what is known of it for messages.
struct Input<'a> {
    stream: &'a mut dyn Read,
    /// Bytes that may still come: whatever an archive claims, it ends.
    left: u64,
    member: Vec<u8>,
    /// Set once reading failed, so that it is told apart from writing.
    failed: Option<io::Error>,
}

impl Read for Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.stream.read(buf).and_then(|n| match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => Err(io::Error::new(io::ErrorKind::FileTooLarge, "It is longer than what it may unpack to")),
        });
        result.map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let copy = io::Error::new(error.kind(), error.to_string());
            self.failed = Some(error);
            copy
        })
    }
}

impl Input<'_> {
    fn damaged(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Damaged { member: self.member.clone(), why: why.into() }
    }

    /// What a failure was: of reading, else of writing the member.
    fn judge(&mut self, error: io::Error) -> UnpackError {
        match self.failed.take() {
            Some(error) => UnpackError::Read(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => self.damaged("it was cut short"),
            None => UnpackError::Write { member: self.member.clone(), source: error },
        }
    }

    fn block(&mut self) -> Result<Block, UnpackError> {
        let mut block = [0; BLOCK];
        self.read_exact(&mut block).map_err(|error| self.judge(error))?;
        Ok(block)
    }

    /// A short text and its padding.
    fn text(&mut self, len: u64) -> Result<Vec<u8>, UnpackError> {
        if len > EXTENDED {
            return Err(self.damaged(format!("an extended header has {len} bytes, {EXTENDED} are allowed")));
        }
        let mut text = Vec::new();
        let got = self.by_ref().take(len).read_to_end(&mut text).map_err(|error| self.judge(error))?;
        if got as u64 != len {
            return Err(self.damaged("it was cut short"));
        }
        self.skip(padding(len))?;
        Ok(text)
    }

    fn skip(&mut self, len: u64) -> Result<(), UnpackError> {
        let skipped = io::copy(&mut self.by_ref().take(len), &mut io::sink()).map_err(|error| self.judge(error))?;
        if skipped == len { Ok(()) } else { Err(self.damaged("it was cut short")) }
    }
}

/// Bytes up to the next block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Extended {
    /// The records `length key=value\n` of a pax header.
    fn pax(&mut self, mut text: &[u8]) -> Option<()> {
        while !text.is_empty() {
            let blank = text.iter().position(|byte| *byte == b' ')?;
            let len: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
            let record = text.get(blank + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
            text = &text[len..];
        }
        Some(())
    }
}

/// Unpacks a tar and reads the stream to its end.
pub(super) fn unpack(stream: &mut dyn Read, limits: Limits, tree: &mut Tree<'_>) -> Result<(), UnpackError> {
    // Headers and padding come on top; a member has at most three of each.
    let left = limits.bytes.saturating_add(limits.members.saturating_mul(8 << 10)).saturating_add(1 << 20);
    let mut input = Input { stream, left, member: Vec::new(), failed: None };
    let mut next = Extended::default();
    loop {
        let block = match input.block() {
            Err(UnpackError::Damaged { member, .. }) => {
                return Err(UnpackError::Damaged {
                    member,
                    why: "it was cut short: its end mark is missing".to_owned(),
                });
            }
            other => other?,
        };
        if block == [0; BLOCK] {
            break;
        }
        if !is_header(&block) {
            return Err(input.damaged("what follows is no header"));
        }
        let size = number(&block[124..136]).ok_or_else(|| input.damaged("a size is no number"))?;
        match block[156] {
            b'L' => next.name = Some(until_zero(&input.text(size)?).to_vec()),
            b'K' => next.link = Some(until_zero(&input.text(size)?).to_vec()),
            b'x' | b'X' => {
                let text = input.text(size)?;
                next.pax(&text).ok_or_else(|| input.damaged("an extended header cannot be read"))?;
            }
            b'g' => drop(input.text(size)?),
            _ => {
                let size = next.size.unwrap_or(size);
                let extended = std::mem::take(&mut next);
                input.member = extended.name.clone().unwrap_or_else(|| name(&block));
                member(&mut input, tree, &block, &extended, size)?;
            }
        }
    }
    // What follows is padding; its end says whether all arrived and is what was asked for.
    io::copy(&mut input, &mut io::sink()).map(drop).map_err(|error| input.judge(error))
}

fn member(
    input: &mut Input<'_>,
    tree: &mut Tree<'_>,
    block: &Block,
    extended: &Extended,
    size: u64,
) -> Result<(), UnpackError> {
    let name = input.member.clone();
    let mode = number(&block[100..108]).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644);
    let time = number(&block[136..148]).unwrap_or(0);
    let link = || extended.link.clone().unwrap_or_else(|| until_zero(&block[157..257]).to_vec());
    if extended.sparse {
        return Err(refuse(&name, "is stored as a sparse file of the pax format: pack it without --sparse"));
    }
    let dated = |file: &File| {
        // A time that cannot be kept is no reason to fail.
        let _ = file.set_modified(UNIX_EPOCH + Duration::from_secs(time.min(u64::from(u32::MAX))));
    };
    match block[156] {
        b'5' => tree.dir(&name, mode)?,
        0 | b'0' if name.ends_with(b"/") => tree.dir(&name, mode)?,
        0 | b'0' | b'7' => {
            tree.file(&name, mode, size, |file, control| {
                let got = copy::receive(&mut input.by_ref().take(size), file, Sparse::Holes, control);
                let got = got.map_err(|error| input.judge(error))?;
                dated(file);
                if got == size { Ok(()) } else { Err(input.damaged("it was cut short")) }
            })?;
            return input.skip(padding(size));
        }
        b'S' => {
            let (extents, real) = sparse_map(input, block)?;
            tree.file(&name, mode, real, |file, control| {
                sparse(input, file, &extents, (size, real), control)?;
                dated(file);
                Ok(())
            })?;
            return input.skip(padding(size));
        }
        b'1' => tree.hard_link(&name, &link())?,
        b'2' => tree.symlink(&name, &link())?,
        b'3' | b'4' => return Err(refuse(&name, "is a device")),
        b'6' => return Err(refuse(&name, "is a pipe")),
        // A volume's label.
        b'V' => {}
        kind => return Err(refuse(&name, format!("is of the unknown kind '{}'", kind.escape_ascii()))),
    }
    // pax writes the size of the file into a hard link, with and without its data; other kinds have none.
    if block[156] == b'1' {
        return Ok(());
    }
    input.skip(size)?;
    input.skip(padding(size))
}

/// The extents of a sparse member of the old GNU format, offset and length, and its real size.
fn sparse_map(input: &mut Input<'_>, block: &Block) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
    let mut extents = Vec::new();
    let mut take = |input: &Input<'_>, fields: &[u8]| {
        for field in fields.as_chunks::<24>().0.iter().filter(|field| field[0] != 0) {
            let pair = number(&field[..12]).zip(number(&field[12..]));
            extents.push(pair.ok_or_else(|| input.damaged("the map of a sparse file cannot be read"))?);
        }
        if extents.len() > EXTENTS {
            return Err(input.damaged(format!("a sparse file has more than {EXTENTS} extents")));
        }
        Ok(())
    };
    take(input, &block[386..482])?;
    let mut more = block[482] != 0;
    while more {
        let block = input.block()?;
        take(input, &block[..504])?;
        more = block[504] != 0;
    }
    let real = number(&block[483..495]).ok_or_else(|| input.damaged("the size of a sparse file cannot be read"))?;
    Ok((extents, real))
}

fn sparse(
    input: &mut Input<'_>,
    file: &File,
    extents: &[(u64, u64)],
    (stored, real): (u64, u64),
    control: &Control,
) -> Result<(), UnpackError> {
    let sum = extents.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len));
    let inside = extents.iter().all(|(at, len)| at.checked_add(*len).is_some_and(|end| end <= real));
    if sum != Some(stored) || !inside {
        return Err(input.damaged("the map of a sparse file contradicts its size"));
    }
    file.set_len(real).map_err(|error| input.judge(error))?;
    let mut buffer = vec![0; copy::BUFFER];
    for (at, len) in extents {
        let (mut at, mut left) = (*at, *len);
        while left > 0 {
            control.check().map_err(|stopped| input.judge(io::Error::other(stopped)))?;
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let part = &mut buffer[..part];
            input.read_exact(part).and_then(|()| file.write_all_at(part, at)).map_err(|error| input.judge(error))?;
            at += part.len() as u64;
            left -= part.len() as u64;
        }
    }
    Ok(())
}

/// The name in a header; only ustar proper has a prefix.
fn name(block: &Block) -> Vec<u8> {
    let own = until_zero(&block[..100]);
    let prefix = until_zero(&block[345..500]);
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", own].concat();
    }
    own.to_vec()
}

fn until_zero(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or in base 256 where the first bit says so; an empty field is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // Negative ones begin with 0xff.
        let first = u64::from(field[0] & 0x7F);
        return field[1..]
            .iter()
            .try_fold(first, |value, byte| (value >> 56 == 0).then_some(value << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}
