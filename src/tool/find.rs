//! `find` (find(1)): files with the moments at which they were used, which no operation of ours tells.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::exec::cmd::Cmd;

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Where it is, seen from the directory that was asked about.
    pub path: PathBuf,
    /// When it was last read, or its data or name changed, in seconds since 1970.
    pub used: f64,
    /// Bytes that it occupies.
    pub bytes: u64,
    /// Whether it is a regular file.
    pub is_file: bool,
}

/// Files in a directory and in the directories in it; [`parse`] reads the answer.
#[must_use]
pub fn ages(dir: &Path) -> Cmd {
    let format = "%A@ %C@ %b %y %P\\0";
    Cmd::new("find").arg(dir).args(["-mindepth", "1", "-maxdepth", "2", "-printf", format])
}

/// What [`ages`] printed. What is no such line is left out.
#[must_use]
pub fn parse(answer: &[u8]) -> Vec<File> {
    let one = |line: &[u8]| {
        let mut words = line.splitn(5, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(words.next()?).ok();
        let (read, changed): (f64, f64) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let blocks: u64 = text()?.parse().ok()?;
        let is_file = text()? == "f";
        let path = PathBuf::from(OsStr::from_bytes(words.next()?));
        Some(File { path, used: read.max(changed), bytes: blocks * 512, is_file })
    };
    answer.split(|byte| *byte == 0).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let found = parse(b"1.5 2.25 8 f a b\nc\x009.0 1.0 0 d x.snap\0junk\0");
        let file = |path: &str, used, bytes, is_file| File { path: path.into(), used, bytes, is_file };
        assert_eq!(found, [file("a b\nc", 2.25, 4096, true), file("x.snap", 9.0, 0, false)]);
    }
}
