//! `findmnt`, `mount`, `umount` for datastores that are mounted on demand (contract 02 §9; findmnt(8), mount(8)).

use std::path::Path;

use crate::exec::cmd::Cmd;

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

/// Mounts an NFS export, given up after 30 seconds: a server that does not answer must not hang an action.
#[must_use]
pub fn mount(source: &str, options: Option<&str>, path: &Path) -> Cmd {
    let cmd = Cmd::new("timeout").args(["-s", "KILL", "30s", "sudo", "-n", "mount"]);
    let cmd = match options {
        Some(options) => cmd.args(["-o", options]),
        None => cmd,
    };
    cmd.arg(source).arg(path)
}

/// Unmounts, given up after 30 seconds.
#[must_use]
pub fn umount(path: &Path) -> Cmd {
    Cmd::new("timeout").args(["-s", "KILL", "30s", "sudo", "-n", "umount"]).arg(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_bounded_in_time() {
        assert_eq!(
            mount("nas:/vol", Some("rw,soft"), Path::new("/ds/1")).to_string(),
            "timeout -s KILL 30s sudo -n mount -o rw,soft nas:/vol /ds/1"
        );
    }
}
