//! Looks at a file where it lies, on any host, before a program opens it there.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{Op, READ_LIMIT, Value};
use crate::image::{self, Fetched, Format, Inspection, Prefix};

/// Inspects the file `path` of `host`, header and trailer, in as many questions as its format needs.
///
/// # Errors
/// The host's answer when the file cannot be read.
pub fn inspect(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, size: Option<u64>, head: &[u8]) -> Result<Inspection> {
    // What is at hand mostly suffices; a header is looked for in more bytes than it has. What has no header may have a
    // trailer, or a header further on: it is raw only when all of it was looked at.
    let seen = image::inspect(&mut Prefix::new(head, size))?;
    if seen.needs.is_none() && seen.format != Format::Raw {
        return Ok(seen);
    }
    let fetch = |offset, len: u64| {
        let read = Op::Read { path: path.to_owned(), offset, len: len.min(READ_LIMIT) };
        match cx.ask(host, read).map_err(std::io::Error::other)? {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Ok(Vec::new()),
        }
    };
    Ok(image::inspect(&mut Fetched::new(head, size, fetch))?)
}
