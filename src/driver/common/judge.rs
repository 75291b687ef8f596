//! Looks at a file where it lies, on any host, before a program opens it there.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{Op, READ_LIMIT, Value};
use crate::image::{self, Inspection, Prefix, ReadAt, ReadError};

/// Inspects the file `path` of `host`, header and trailer, in as many questions as its format needs.
///
/// # Errors
/// The host's answer when the file cannot be read.
pub fn inspect(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, size: Option<u64>, head: Vec<u8>) -> Result<Inspection> {
    // What is at hand mostly suffices; a header is looked for in more bytes than it has.
    let seen = image::inspect(&mut Prefix::new(&head, size))?;
    if seen.needs.is_none() {
        return Ok(seen);
    }
    Ok(image::inspect(&mut Remote { cx, host, path, size, head })?)
}

/// A file that is read by asking; its beginning is known already.
struct Remote<'a> {
    cx: &'a Cx<'a>,
    host: &'a Arc<dyn Host>,
    path: &'a Path,
    size: Option<u64>,
    head: Vec<u8>,
}

impl ReadAt for Remote<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::result::Result<usize, ReadError> {
        let known = usize::try_from(offset).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        if !known.is_empty() {
            let count = known.len().min(buf.len());
            buf[..count].copy_from_slice(&known[..count]);
            return Ok(count);
        }
        if self.size.is_some_and(|size| offset >= size) {
            return Ok(0);
        }
        let len = (buf.len() as u64).min(READ_LIMIT);
        let answer = self.cx.ask(self.host, Op::Read { path: self.path.to_owned(), offset, len });
        match answer.map_err(std::io::Error::other)? {
            Value::Bytes(bytes) => {
                let count = bytes.len().min(buf.len());
                buf[..count].copy_from_slice(&bytes[..count]);
                Ok(count)
            }
            _ => Ok(0),
        }
    }

    fn len(&self) -> Option<u64> {
        self.size
    }
}
