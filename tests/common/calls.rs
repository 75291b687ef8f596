//! Calls of the real binary in a small cloud, and what disks there hold. The module above has the cloud, and says in `MAD`
//! which transfer manager is called.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{Cloud, MAD};

impl Cloud {
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn command(&self, action: &str, words: &[&str]) -> Command {
        let root = self.root.path().display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
        command.args(["tm", MAD, action]).args(words.iter().map(|word| word.replace("{ds}", &format!("{root}//ds"))));
        command.env_clear().env("ONESTORE_ONED", format!("dir:{root}/oned")).env("ONE_LOCATION", self.path("one"));
        command.env("SSH", self.path("ssh")).env("ONESTORE_SSH", "openssh").env("HOME", self.path("home"));
        command.env("ONESTORE_LOCK_DIR", self.path("locks")).env("DS_DIR", self.path("ds"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    pub fn start(&self, action: &str, words: &[&str]) -> Child {
        self.command(action, words).spawn().expect("starts")
    }

    #[track_caller]
    pub fn done(&self, action: &str, words: &[&str]) -> Output {
        let ran = self.command(action, words).output().expect("runs");
        assert!(ran.status.success(), "{action}: {}", String::from_utf8_lossy(&ran.stderr));
        ran
    }

    /// An image with data that does not compress to nothing.
    pub fn image(&self, below: &str, mib: u32) -> PathBuf {
        let path = self.path(below);
        let bytes: Vec<u8> = (0..mib << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        fs::write(&path, bytes).expect("an image");
        path
    }

    pub fn qcow2(&self, below: &str, mib: u32) -> PathBuf {
        let raw = self.image("raw", mib);
        let path = self.path(below);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &path]);
        fs::remove_file(raw).expect("removes");
        path
    }

    /// All paths below the datastores, and what they are.
    pub fn listing(&self) -> Vec<String> {
        let found = Command::new("find").arg(self.path("ds")).args(["-printf", "%P %y %l\\n"]).output().expect("find");
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    pub fn staged(&self) -> Vec<String> {
        self.listing().into_iter().filter(|line| line.contains(".onestore")).collect()
    }
}

#[track_caller]
pub fn qemu_img(words: &[&str], paths: &[&Path]) {
    let ran = Command::new("qemu-img").args(words).args(paths).output().expect("qemu-img");
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Whether a guest reads the same from both.
pub fn same(a: &Path, b: &Path) -> bool {
    Command::new("qemu-img").arg("compare").args(["-q", "-U"]).args([a, b]).status().expect("qemu-img").success()
}

pub fn signal(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}
