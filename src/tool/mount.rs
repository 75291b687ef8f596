//! `findmnt`, `mount`, `umount` for datastores that are mounted on demand (contract 02 §9; findmnt(8), mount(8)).

use std::path::Path;

use crate::exec::cmd::{Cmd, Limits};

/// Asks whether `source` is mounted at `path`: exit status 0 if so, 1 if not; both are answers.
#[must_use]
pub fn find(source: &str, path: &Path) -> Cmd {
    Cmd::new("findmnt")
        .args(["--noheadings", "--output", "SOURCE", "--source", source, "--mountpoint"])
        .arg(path)
        .also_ok(1)
}

/// Lists the NFS mounts of a machine, one mount point a line.
#[must_use]
pub fn list_nfs() -> Cmd {
    Cmd::new("findmnt").args(["--noheadings", "--raw", "--output", "TARGET", "--types", "nfs,nfs4"]).also_ok(1)
}

/// How long a mount may take: a server that does not answer must not hang an action.
const PATIENCE: Limits = Limits { cpu_seconds: None, address_space: None, file_size: None, wall_seconds: Some(30) };

/// Mounts an NFS export.
#[must_use]
pub fn mount(source: &str, options: Option<&str>, path: &Path) -> Cmd {
    let cmd = Cmd::new("mount").sudo().limits(PATIENCE);
    let cmd = match options {
        Some(options) => cmd.args(["-o", options]),
        None => cmd,
    };
    cmd.arg(source).arg(path)
}

/// Unmounts.
#[must_use]
pub fn umount(path: &Path) -> Cmd {
    Cmd::new("umount").sudo().limits(PATIENCE).arg(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_bounded_in_time() {
        assert_eq!(
            mount("nas:/vol", Some("rw,soft"), Path::new("/ds/1")).to_string(),
            "sudo -n mount -o rw,soft nas:/vol /ds/1"
        );
    }
}
