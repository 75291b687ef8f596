//! Commands of util-linux.

use std::path::Path;

use crate::exec::cmd::Cmd;

/// `fallocate -l`: all blocks of the first `bytes` bytes of a file are allocated, what it holds stays (fallocate(1)). A file
/// system that cannot is a failure.
#[must_use]
pub fn allocate(path: &Path, bytes: u64) -> Cmd {
    Cmd::new("fallocate").arg("-l").arg(bytes.to_string()).arg(path)
}
