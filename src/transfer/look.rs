//! A look at what a location names: its head, and its end where formats keep something there. Nothing is kept.
//!
//! Of a local file or block device the inspector reads what it needs, wherever it lies. Of a download it gets the head,
//! and in at most one more request the last sectors: a VHD of fixed size and a stream-optimised VMDK are known by them.
//! Of what has to be unpacked only the head is seen.

use std::ffi::OsStr;

use super::decode::Compression;
use super::http;
use super::import::{self, ImportError, Options, is_http};
use super::watch::Stop;
use crate::exec::control::Control;
use crate::image::{FileSource, Format, Inspection, ReadAt, ReadError, inspect};

/// Bytes of the end of a download that are asked for: more than any trailer needs.
const TAIL: u64 = 2048;

/// What was seen.
#[derive(Clone, Debug)]
pub struct Look {
    /// What the inspector says.
    pub inspection: Inspection,
    /// How the source is compressed.
    pub compression: Option<Compression>,
    /// Length of the source in bytes, where it is known.
    pub source_len: Option<u64>,
}

/// Looks at what `location` names. Digests and limits in `options` are ignored.
///
/// # Errors
/// [`ImportError`]: it could not be opened or read. What is nonsense or hostile is no error but a verdict.
pub fn look(location: &OsStr, options: &Options, control: &Control) -> Result<Look, ImportError> {
    let options = Options { digests: Vec::new(), rate: None, max_output: None, ..options.clone() };
    let failed = |source| ImportError::Read { location: import::shown(location), source };
    let mut incoming = import::open(location, &options, control)?;
    let (compression, source_len) = (incoming.compression, incoming.encoded_len);
    let inspection = if let Some(file) = incoming.plain_file.take() {
        inspect(&mut FileSource::new(&file).map_err(failed)?).map_err(failed)?
    } else {
        let head = incoming.inspect().map_err(failed)?;
        let at_end = head.format == Format::Raw || head.needs.is_some();
        let url = location.to_str().filter(|_| at_end && compression.is_none() && is_http(location));
        let start = source_len.and_then(|len| len.checked_sub(TAIL)).filter(|&at| at > incoming.head().len() as u64);
        match (url, start, source_len) {
            (Some(url), Some(start), Some(len)) => {
                // Its connection is not needed any more, and not every server serves two.
                let bytes = incoming.head().to_vec();
                drop(incoming);
                match http::tail(url, &options.http, Stop::new(control), start, len) {
                    Some(tail) => inspect(&mut Ends { head: &bytes, tail: &tail, len }).map_err(failed)?,
                    None => head,
                }
            }
            _ => head,
        }
    };
    Ok(Look { inspection, compression, source_len })
}

/// An image of which beginning and end are at hand.
struct Ends<'a> {
    head: &'a [u8],
    tail: &'a [u8],
    len: u64,
}

impl ReadAt for Ends<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        if offset >= self.len {
            return Ok(0);
        }
        let parts = [(self.head, 0), (self.tail, self.len - self.tail.len() as u64)];
        let rest = parts.into_iter().find_map(|(bytes, start)| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            bytes.get(from..).filter(|rest| !rest.is_empty())
        });
        let rest = rest.ok_or(ReadError::NotHere)?;
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn len(&self) -> Option<u64> {
        Some(self.len)
    }
}
