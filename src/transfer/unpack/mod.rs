//! Unpacks tar and zip archives that a user named into a directory that nobody else uses yet.
//!
//! # Layout
//!
//! - [`Archive`], [`unpack`]: what callers see.
//! - `tree`: the only place that makes something; all guards are there.
//! - `tar`, `zip`: readers of the two formats.
//!
//! Both readers are ours, on the decoders that are there anyway: the libraries at hand keep a zip's whole directory, and the
//! long names of a tar, in memory, whatever length they claim.
//!
//! Guards: names stay inside and lead through real directories only; links may not lead outside; devices and pipes are
//! refused; no set-uid bits, no owners; numbers and bytes are limited ([`Limits`]).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::exec::control::Control;

mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod zip;

use tree::Tree;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, links and directories.
    pub members: u64,
}

impl Default for Limits {
    /// 256 GiB in 100 000 members.
    fn default() -> Self {
        Self { bytes: 256 << 30, members: 100_000 }
    }
}

/// A kind of archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// tar: v7, ustar, GNU or pax.
    Tar,
    /// zip.
    Zip,
}

impl Archive {
    /// What the first 512 bytes of a stream say: a tar's header carries a checksum, a zip begins with a member or is empty.
    #[must_use]
    pub fn detect(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            return Some(Self::Zip);
        }
        let block = start.first_chunk()?;
        (tar::is_header(block)).then_some(Self::Tar)
    }

    /// Its name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Zip => "zip",
        }
    }
}

/// Why an archive was not unpacked. The directory then holds a part.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A member that nobody should unpack.
    #[error("Member {} {why}", shown(.member))]
    Refused {
        /// Its name.
        member: Vec<u8>,
        /// Why, as the rest of the sentence.
        why: String,
    },
    /// A member could not be made.
    #[error("Cannot unpack member {}", shown(.member))]
    Write {
        /// Its name.
        member: Vec<u8>,
        /// The answer of the system.
        source: io::Error,
    },
    /// The archive is cut, or contradicts itself.
    #[error("Archive is damaged{}: {why}", behind(.member))]
    Damaged {
        /// The last member that was begun; empty where there is none.
        member: Vec<u8>,
        /// What is wrong.
        why: String,
    },
    /// The archive itself could not be read.
    #[error("Cannot read the archive")]
    Read(#[source] io::Error),
}

fn shown(member: &[u8]) -> String {
    format!("'{}'", String::from_utf8_lossy(member).escape_debug())
}

fn behind(member: &[u8]) -> String {
    if member.is_empty() { String::new() } else { format!(" at member {}", shown(member)) }
}

/// Unpacks a tar stream, or a zip that is in a file, into the empty directory `into`, and syncs it. The stream is read to
/// its end.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(from: Source<'_>, into: &Path, limits: Limits, control: &Control) -> Result<(), UnpackError> {
    let own = |source| UnpackError::Write { member: b".".to_vec(), source };
    let mut tree = Tree::open(into, limits, control).map_err(own)?;
    match from {
        Source::Tar(stream) => tar::unpack(stream, limits, &mut tree)?,
        Source::Zip(file) => zip::unpack(file, &mut tree)?,
    }
    tree.sync().map_err(own)
}

/// Where an archive comes from.
pub enum Source<'a> {
    /// A tar, read once.
    Tar(&'a mut dyn Read),
    /// A zip, whose directory stands at its end.
    Zip(&'a File),
}
