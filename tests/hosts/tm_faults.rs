//! Actions of a transfer manager, killed and cancelled at moments of their runs: the real binary in a small cloud. Hosts are
//! this machine behind a stand-in for ssh, so that scripts go through sh as on a host where the binary does not stand.
//!
//! Whoever uses this says in `MAD` which transfer manager it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::MAD;

/// Moments of a run at which it is disturbed.
pub const MOMENTS: u32 = 6;

/// A cloud in a temporary folder: image datastore 1, system datastores 103 and 104, VM 7.
pub struct Cloud {
    root: tempfile::TempDir,
}

const SSH: &str = "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n[ $# -ge 3 ] || exit 1\nshift 2\nexec sh -c \"$1\"\n";

impl Cloud {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["ds/1", "ds/103/7", "ds/104", "oned/vm", "oned/datastore", "one/etc", "one/var", "home", "vms"] {
            fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        let cloud = Self { root };
        fs::write(cloud.path("ssh"), SSH).expect("ssh");
        fs::set_permissions(cloud.path("ssh"), fs::Permissions::from_mode(0o755)).expect("executable");
        let source = cloud.path("ds/1/abc").display().to_string();
        let disk = |id: u32, more: &str| format!("<DISK><DISK_ID>{id}</DISK_ID><SOURCE>{source}</SOURCE>{more}</DISK>");
        let disks = [
            disk(0, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE>"),
            disk(1, "<FORMAT>qcow2</FORMAT><CLONE>YES</CLONE><QCOW2_STANDALONE>yes</QCOW2_STANDALONE>"),
            disk(2, "<FORMAT>raw</FORMAT><CLONE>YES</CLONE>"),
            disk(3, "<FORMAT>qcow2</FORMAT><CLONE>NO</CLONE>"),
            "<DISK><DISK_ID>5</DISK_ID><FS>ext4</FS></DISK>".to_owned(),
        ];
        let vm = format!("<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><TEMPLATE>{}</TEMPLATE></VM>", disks.concat());
        fs::write(cloud.path("oned/vm/7.xml"), vm).expect("the VM");
        for id in [1, 103, 104] {
            let xml = format!("<DATASTORE><ID>{id}</ID></DATASTORE>");
            fs::write(cloud.path(&format!("oned/datastore/{id}.xml")), xml).expect("a datastore");
        }
        cloud
    }

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

/// An action, what it needs, and what has to be there when it is done.
pub struct Case {
    pub action: &'static str,
    pub words: &'static [&'static str],
    pub prepare: fn(&Cloud),
    pub check: fn(&Cloud),
}

/// Runs a case undisturbed and gives how long that took.
fn reference(case: &Case) -> Duration {
    let cloud = Cloud::new();
    (case.prepare)(&cloud);
    let begin = Instant::now();
    cloud.done(case.action, case.words);
    (case.check)(&cloud);
    begin.elapsed()
}

pub fn killed(case: &Case) {
    let took = reference(case);
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        (case.prepare)(&cloud);
        let mut child = cloud.start(case.action, case.words);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        // What is called a saved image is one, at any time.
        let saved = cloud.path("ds/1/new");
        assert!(!saved.exists() || same(&saved, &cloud.path("ds/103/7/disk.2")), "{} at {moment}", case.action);
        cloud.done(case.action, case.words);
        (case.check)(&cloud);
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{} at {moment}", case.action);
    }
}

pub fn cancelled(case: &Case) {
    let took = reference(case);
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        (case.prepare)(&cloud);
        // A datastore that has had a VM: `.monitor`, once made, stays; the next action wants it as well.
        fs::write(cloud.path("ds/103/.monitor"), "ssh\n").expect("the mark");
        let before = cloud.listing();
        let child = cloud.start(case.action, case.words);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, Signal::TERM);
        let ran = child.wait_with_output().expect("waits");
        let about = format!("{} at {moment}: {}", case.action, String::from_utf8_lossy(&ran.stderr));
        match ran.status.code() {
            Some(0) => (case.check)(&cloud),
            // Before the first instruction of ours there is no code.
            Some(143) | None => assert_eq!(cloud.listing(), before, "{about}"),
            code => panic!("{about}: {code:?}"),
        }
    }
}

/// Tests of cases: each killed, and each cancelled.
macro_rules! disturbances {
    ($($name:ident $case:ident),*) => { $(
        mod $name {
            #[test]
            fn killed() { super::killed(&super::$case); }
            #[test]
            fn cancelled() { super::cancelled(&super::$case); }
        }
    )* };
}

pub(crate) use disturbances;
