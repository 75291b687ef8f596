//! `qemu-img` (qemu-img(1)): every command names its formats, none ever probes.
//!
//! File names are given as absolute paths: a name such as `nbd:x` or `json:{…}` is a protocol to qemu-img, a path that
//! starts with `/` never is.

use std::ffi::OsString;
use std::path::Path;

use crate::exec::cmd::{Cmd, Limits};

/// Formats that this project writes, and those it may convert from once the inspector found them safe.
pub type Format<'a> = &'a str;

/// Address space for a qemu-img that reads what a user made: 10.0 converts within 1 GiB, twice that is allowed.
const ADDRESS_SPACE: u64 = 2 << 30;

/// CPU seconds for a command that looks at metadata only.
const METADATA_CPU: u64 = 60;

/// CPU seconds for a command that moves data: an upper bound against files that never end, not a budget.
const DATA_CPU: u64 = 12 * 3600;

/// What [`convert`] does with zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroes {
    /// Runs of zeroes become holes.
    Holes,
    /// Everything is allocated (`-S 0`).
    Allocate,
}

/// `qemu-img create -f FORMAT PATH SIZE`: an empty image of `mib` MiB.
#[must_use]
pub fn create(format: Format<'_>, path: &Path, mib: u64) -> Cmd {
    Cmd::new("qemu-img").args(["create", "-q", "-f", format]).arg(path).arg(format!("{mib}M"))
}

/// `qemu-img create -u -f qcow2 -F FORMAT -b BACKING PATH SIZE`: an empty overlay of `bytes` bytes.
///
/// With `-u` and a size qemu-img does not open the backing file, whose name is stored as it is given: a relative one is
/// meant from the folder in which the overlay will stand.
#[must_use]
pub fn create_overlay(path: &Path, backing: &Path, backing_format: Format<'_>, bytes: u64) -> Cmd {
    Cmd::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b"])
        .arg(backing)
        .arg(path)
        .arg(bytes.to_string())
        .limits(Limits { cpu_seconds: Some(METADATA_CPU), address_space: Some(ADDRESS_SPACE), ..Limits::default() })
}

/// `qemu-img convert -f FROM -O TO`: a copy in another format, or a chain flattened into one file.
///
/// `largest` bounds the file written, in bytes: what the source's header announces, so that no image can grow past it.
#[must_use]
pub fn convert(from: (&Path, Format<'_>), to: (&Path, Format<'_>), zeroes: Zeroes, largest: Option<u64>) -> Cmd {
    let mut cmd = Cmd::new("qemu-img").args(["convert", "-q", "-f", from.1, "-O", to.1]);
    if zeroes == Zeroes::Allocate {
        cmd = cmd.args(["-S", "0"]);
    }
    cmd.arg(from.0).arg(to.0).limits(Limits {
        cpu_seconds: Some(DATA_CPU),
        address_space: Some(ADDRESS_SPACE),
        file_size: largest,
        ..Limits::default()
    })
}

/// `qemu-img rebase -f qcow2 -F FORMAT -b BACKING PATH`: gives an overlay another backing file.
///
/// With `keep_content` clusters that differ are copied into the overlay first, and it may be killed at any time: the old
/// backing file holds until all is copied. That needs `-t writethrough`: otherwise qemu-img changes the name while the
/// tables that lead to the copied clusters are still in its memory, and a kill then shows the new backing file's data.
/// Without (`-u`) only the name changes: for a backing file of equal content.
#[must_use]
pub fn rebase(path: &Path, backing: Option<&Path>, backing_format: Format<'_>, keep_content: bool) -> Cmd {
    let mut args: Vec<OsString> = vec!["rebase".into(), "-q".into(), "-f".into(), "qcow2".into()];
    let safety: &[&str] = if keep_content { &["-t", "writethrough"] } else { &["-u"] };
    args.extend(safety.iter().map(OsString::from));
    match backing {
        Some(backing) => args.extend(["-F".into(), backing_format.into(), "-b".into(), backing.into()]),
        None => args.extend(["-b".into(), OsString::new()]),
    }
    Cmd::new("qemu-img").args(args).arg(path).limits(Limits {
        cpu_seconds: Some(DATA_CPU),
        address_space: Some(ADDRESS_SPACE),
        ..Limits::default()
    })
}

/// Most bytes that an image of this virtual size may take in any format that we write: its data, 2 % of tables, and
/// what an empty one needs.
#[must_use]
pub fn largest(virtual_size: u64) -> u64 {
    virtual_size.saturating_add(virtual_size / 50).saturating_add(64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_named() {
        let convert = convert((Path::new("/a"), "raw"), (Path::new("/b"), "qcow2"), Zeroes::Allocate, Some(1));
        assert_eq!(convert.to_string(), "qemu-img convert -q -f raw -O qcow2 -S 0 /a /b");
        let overlay = create_overlay(Path::new("/s/2"), Path::new("/s/1"), "qcow2", 512);
        assert_eq!(overlay.to_string(), "qemu-img create -q -u -f qcow2 -F qcow2 -b /s/1 /s/2 512");
        assert_eq!(
            rebase(Path::new("/s/2"), None, "", true).to_string(),
            "qemu-img rebase -q -f qcow2 -t writethrough -b '' /s/2"
        );
    }
}
