//! `findmnt`, `mount`, `umount` for datastores that are mounted on demand (contract 02 §9; findmnt(8), mount(8)).

use std::path::Path;

use crate::exec::cmd::{Cmd, Limits, Secret};

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

/// Mounts what `/etc/fstab` has for this path.
#[must_use]
pub fn mount_fstab(path: &Path) -> Cmd {
    Cmd::new("mount").sudo().limits(PATIENCE).arg(path)
}

/// Edits `/etc/fstab` under its lock, in the words that OpenNebula's sudoers rule allows: the program of sed(1) comes on
/// standard input.
#[must_use]
pub fn edit_fstab(program: &str) -> Cmd {
    let sed = ["sudo", "-n", "sed", "-i", "-f", "/proc/self/fd/0", "/etc/fstab"];
    Cmd::new("flock").args(["-w", "5", "/etc/fstab"]).args(sed).stdin(Secret::new(program))
}

/// A line of `/etc/fstab` (fstab(5)) for an NFS mount.
#[derive(Debug)]
pub struct Line {
    path: String,
    text: String,
}

impl Line {
    /// The line; `None` where a part of it holds blanks or what sed(1) or fstab(5) take for something else.
    #[must_use]
    pub fn new(source: &str, path: &Path, options: &str) -> Option<Self> {
        let path = path.to_str()?.to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+[]".contains(c);
        let good = |text: &str| !text.is_empty() && !text.starts_with('#') && text.chars().all(plain);
        let text = format!("{source} {path} nfs {options} 0 0");
        (good(source) && good(&path) && good(options)).then_some(Self { path, text })
    }

    /// Whether a line of the file says the same.
    #[must_use]
    pub fn is(&self, line: &str) -> bool {
        line.split_ascii_whitespace().eq(self.text.split(' '))
    }

    /// A program of sed(1) that takes all NFS mounts of the path out.
    #[must_use]
    pub fn removed(&self) -> String {
        // The path in a basic regular expression between `|`, which no path here holds.
        let special = |c: char| if ".[]".contains(c) { format!("\\{c}") } else { c.to_string() };
        let path: String = self.path.chars().map(special).collect();
        format!("\\|^[^[:space:]#]\\{{1,\\}}[[:space:]]\\{{1,\\}}{path}[[:space:]]\\{{1,\\}}nfs|d\n")
    }

    /// A program of sed(1) that puts this line in their place. What is added to the last line comes out also where that
    /// line itself is taken out.
    #[must_use]
    pub fn replaced(&self) -> String {
        format!("$a\\\n{}\n{}", self.text, self.removed())
    }
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

    #[test]
    fn sed_edits_fstab_as_meant() {
        let line = Line::new("nas:/vol.1", Path::new("/ds/1"), "rw,soft").expect("a line");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let edit = |program: String| {
            let script = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(script.path(), program).expect("writes");
            let sed = std::process::Command::new("sed").args(["-i", "-f"]).arg(script.path()).arg(file.path()).status();
            assert!(sed.expect("sed runs").success());
            std::fs::read_to_string(file.path()).expect("reads")
        };
        let old = "/dev/sda1 / ext4 defaults 0 1\nnas:/old /ds/1 nfs defaults 0 0\n";
        std::fs::write(file.path(), old).expect("writes");
        let new = edit(line.replaced());
        assert_eq!(new, "/dev/sda1 / ext4 defaults 0 1\nnas:/vol.1 /ds/1 nfs rw,soft 0 0\n");
        assert!(new.lines().any(|text| line.is(text)) && !old.lines().any(|text| line.is(text)));
        assert_eq!(edit(line.removed()), "/dev/sda1 / ext4 defaults 0 1\n");
        assert_eq!(
            edit(Line::new("nas:/x", Path::new("/ds/11"), "rw").expect("a line").removed()),
            "/dev/sda1 / ext4 defaults 0 1\n"
        );
        for (source, path, options) in
            [("nas:/a b", "/ds/1", "rw"), ("#", "/ds/1", "rw"), ("n:/a", "/d|s", "rw"), ("n:/a", "/d", "a\nb")]
        {
            assert!(Line::new(source, Path::new(path), options).is_none(), "{source} {path} {options}");
        }
    }
}
