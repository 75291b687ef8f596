//! How large an image will be once registered, for the `stat` of a datastore (contract 03 §5).
//!
//! Upstream fetches a remote image up to three times, believes gzip's length modulo 4 GiB and asks `qemu-img`. We: one
//! request that is dropped once the header has been read; lengths are counted where no header tells them.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use super::decode::Compression;
use super::import::{self, ImportError, Incoming};
use super::source::{Handle, SourceError};
use super::url::split_scheme;
use crate::exec::alive;
use crate::exec::control::Control;
use crate::image::Format;

/// How a size is found.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How the source is opened; digests are ignored.
    pub import: import::Options,
    /// The most bytes that are downloaded only to count what they decode to. Beyond it, and where the length of the
    /// source is not known, the format is unsupported, as all such images are upstream.
    pub max_download: u64,
}

/// Why a size could not be told.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// The source was not opened.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// It would have to be downloaded whole.
    #[error("Unsupported remote image format")]
    Unsupported,
    /// It could not be read to its end.
    #[error("Cannot determine size for {location}")]
    Read {
        /// The location, without secrets.
        location: String,
        /// The cause.
        source: io::Error,
    },
}

/// Size in bytes of the decoded image that `location` names: of the disk it holds, not of its file.
///
/// A local directory counts as `du -sb` counts it.
///
/// # Errors
/// [`SizeError`].
pub fn size_of(location: &OsStr, options: &Options, control: &Control) -> Result<u64, SizeError> {
    let failed = |source| SizeError::Read { location: import::shown(location), source };
    let remote = location.to_str().is_some_and(|text| split_scheme(text).is_some());
    if !remote && alive::ask_path(Path::new(location)).is_ok() && Path::new(location).is_dir() {
        return directory(Path::new(location), options, control);
    }
    let import_options = import::Options { digests: Vec::new(), ..options.import.clone() };
    let mut incoming = import::open(location, &import_options, control)?;
    let found = incoming.inspect().map_err(failed)?;
    if !matches!(found.format, Format::Raw | Format::Luks)
        && let Some(size) = found.virtual_size
    {
        return Ok(size);
    }
    // Of a LUKS container the part that a guest sees counts, as for every format with a header.
    if let Some(len) = incoming.image_len() {
        return Ok(if found.format == Format::Luks { found.virtual_size.unwrap_or(len) } else { len });
    }
    if remote && incoming.encoded_len.is_none_or(|len| len > options.max_download) {
        return Err(SizeError::Unsupported);
    }
    if !remote
        && incoming.compression == Some(Compression::Xz)
        && let Some(size) = xz_index(location, &import_options)
    {
        return Ok(size);
    }
    count(&mut incoming).map_err(failed)
}

/// Reads to the end. gzip's own note of the length is modulo 4 GiB and of the last member only: never trusted.
fn count(incoming: &mut Incoming) -> io::Result<u64> {
    io::copy(incoming, &mut io::sink())
}

/// Apparent size of a tree: of every file, link and directory in it, each inode once, links not followed.
fn directory(path: &Path, options: &Options, control: &Control) -> Result<u64, SizeError> {
    let failed =
        |source: io::Error| SizeError::Import(ImportError::Source(SourceError::Io { path: path.to_owned(), source }));
    let handle = Handle::open(path).map_err(failed)?;
    if !options.import.policy.allows(&handle.path) {
        return Err(SizeError::Import(ImportError::Source(SourceError::Restricted { path: path.to_owned() })));
    }
    tree(&handle.path, handle.meta.len(), control).map_err(failed)
}

fn tree(root: &Path, own: u64, control: &Control) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut total = own;
    let mut seen = std::collections::HashSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            control.check().map_err(io::Error::other)?;
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            total = total.saturating_add(meta.len());
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(total)
}

/// The length that the index of a single-stream xz file tells; nothing where it must be counted.
///
/// Source: the .xz file format 1.1, §2.1.2 (stream footer) and §4 (index).
fn xz_index(location: &OsStr, options: &import::Options) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let source = super::source::open_local(Path::new(location), &options.policy).ok()?;
    let mut footer = [0; 12];
    source.file.read_exact_at(&mut footer, source.len.checked_sub(12)?).ok()?;
    if footer[10..] != *b"YZ" {
        return None;
    }
    let backward = (u64::from(u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]])) + 1) * 4;
    // A larger index belongs to terabytes in small blocks: counting is right as well, only slower.
    let mut index = vec![0; usize::try_from(backward).ok().filter(|&len| len <= 4 << 20)?];
    let start = source.len.checked_sub(12 + backward)?;
    source.file.read_exact_at(&mut index, start).ok()?;
    let mut at = &index[1..];
    if index[0] != 0 {
        return None;
    }
    let (mut encoded, mut decoded) = (0u64, 0u64);
    for _ in 0..number(&mut at)? {
        encoded = encoded.checked_add(number(&mut at)?.checked_next_multiple_of(4)?)?;
        decoded = decoded.checked_add(number(&mut at)?)?;
    }
    // Header and blocks must fill the file up to the index: else there are several streams.
    (encoded.checked_add(12)? == start).then_some(decoded)
}

/// A number of seven bits a byte, the lowest first.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7F) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
