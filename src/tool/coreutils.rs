//! `cp`, `sync`, `chmod`, `stat` (coreutils(1)), for what no operation of ours does.

use std::ffi::OsStr;
use std::path::Path;

use crate::exec::cmd::Cmd;

/// `cp -a`: a directory with all in it, holes and shared blocks kept; `to` must not exist.
#[must_use]
pub fn copy_tree(from: &Path, to: &Path) -> Cmd {
    Cmd::new("cp").args(["-a", "-T", "--reflink=auto", "--sparse=always", "--"]).arg(from).arg(to)
}

/// `cp -R` as the user who runs it, with the permissions of the source: for files that go into a CD-ROM.
#[must_use]
pub fn copy_into(from: &Path, to: &Path) -> Cmd {
    Cmd::new("cp").args(["-R", "-T", "--preserve=mode,timestamps", "--"]).arg(from).arg(to)
}

/// `sync -f`: all of the file system that holds `path` is on the disk.
#[must_use]
pub fn sync_file_system(path: &Path) -> Cmd {
    Cmd::new("sync").arg("-f").arg(path)
}

/// `sync`: everything that was written on this machine is on its disks.
#[must_use]
pub fn sync_all() -> Cmd {
    Cmd::new("sync")
}

/// `stat -c %Y`: when a file was last written to, in seconds since 1970.
#[must_use]
pub fn changed_at(path: &Path) -> Cmd {
    Cmd::new("stat").args(["-c", "%Y", "--"]).arg(path)
}

/// `chmod`.
#[must_use]
pub fn chmod(mode: &str, path: impl AsRef<OsStr>) -> Cmd {
    Cmd::new("chmod").args([mode, "--"]).arg(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_options() {
        let (a, b) = (Path::new("/-a"), Path::new("/b"));
        assert_eq!(copy_tree(a, b).to_string(), "cp -a -T --reflink=auto --sparse=always -- /-a /b");
        assert_eq!(chmod("o=", a).to_string(), "chmod o= -- /-a");
    }
}
