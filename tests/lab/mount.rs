//! A file system of its own in a file, mounted by a loop device; unmounted and gone when dropped, also by a panic.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted file system.
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// Makes `kind` (`ext4`, `xfs`, `btrfs`) of `mib` MiB and mounts it.
    pub fn new(kind: &str, mib: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
        File::create_new(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        fs::create_dir(&point).expect("a mount point");
        let force = if kind == "ext4" { "-Fq" } else { "-fq" };
        run(Command::new(format!("mkfs.{kind}")).arg(force).arg(&image));
        // The loop device is given back with the mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
        Self { dir }
    }

    /// A path on it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.point().join(below)
    }

    /// Mounts it again with other options.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.point()));
    }

    fn point(&self) -> PathBuf {
        Path::new(self.dir.path()).join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for lazy in [&[][..], &["-l"][..]] {
            if Command::new("umount").args(lazy).arg(self.point()).status().is_ok_and(|done| done.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("runs; needs root");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
