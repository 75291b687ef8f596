//! The ssh transfer manager killed, cancelled and called twice. The real binary; hosts are this machine behind a stand-in for ssh, so that scripts go through
//! sh as on a host where the binary does not stand.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Moments of a run at which it is disturbed.
const MOMENTS: u32 = 6;

/// A cloud in a temporary folder: image datastore 1, system datastores 103 and 104, VM 7.
struct Cloud {
    root: tempfile::TempDir,
}

const SSH: &str = "#!/bin/sh\nwhile [ $# -gt 0 ] && [ \"$1\" != -- ]; do shift; done\n[ $# -ge 3 ] || exit 1\nshift 2\nexec sh -c \"$1\"\n";

impl Cloud {
    fn new() -> Self {
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

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn command(&self, action: &str, words: &[&str]) -> Command {
        let root = self.root.path().display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
        command.args(["tm", "ssh", action]).args(words.iter().map(|word| word.replace("{ds}", &format!("{root}//ds"))));
        command.env_clear().env("ONESTORE_ONED", format!("dir:{root}/oned")).env("ONE_LOCATION", self.path("one"));
        command.env("SSH", self.path("ssh")).env("ONESTORE_SSH", "openssh").env("HOME", self.path("home"));
        command.env("ONESTORE_LOCK_DIR", self.path("locks")).env("DS_DIR", self.path("ds"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    fn start(&self, action: &str, words: &[&str]) -> Child {
        self.command(action, words).spawn().expect("starts")
    }

    #[track_caller]
    fn done(&self, action: &str, words: &[&str]) -> Output {
        let ran = self.command(action, words).output().expect("runs");
        assert!(ran.status.success(), "{action}: {}", String::from_utf8_lossy(&ran.stderr));
        ran
    }

    /// An image with data that does not compress to nothing.
    fn image(&self, below: &str, mib: u32) -> PathBuf {
        let path = self.path(below);
        let bytes: Vec<u8> = (0..mib << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        fs::write(&path, bytes).expect("an image");
        path
    }

    fn qcow2(&self, below: &str, mib: u32) -> PathBuf {
        let raw = self.image("raw", mib);
        let path = self.path(below);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &path]);
        fs::remove_file(raw).expect("removes");
        path
    }

    /// All paths below the datastores, and what they are.
    fn listing(&self) -> Vec<String> {
        let found = Command::new("find").arg(self.path("ds")).args(["-printf", "%P %y %l\\n"]).output().expect("find");
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn staged(&self) -> Vec<String> {
        self.listing().into_iter().filter(|line| line.contains(".onestore")).collect()
    }
}

#[track_caller]
fn qemu_img(words: &[&str], paths: &[&Path]) {
    let ran = Command::new("qemu-img").args(words).args(paths).output().expect("qemu-img");
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Whether a guest reads the same from both.
fn same(a: &Path, b: &Path) -> bool {
    Command::new("qemu-img").arg("compare").args(["-q", "-U"]).args([a, b]).status().expect("qemu-img").success()
}

fn signal(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

/// An action, what it needs, and what has to be there when it is done.
struct Case {
    action: &'static str,
    words: &'static [&'static str],
    prepare: fn(&Cloud),
    check: fn(&Cloud),
}

const RAW: Case = Case {
    action: "clone",
    words: &["{ds}/1/abc", "node1:{ds}/103/7/disk.2", "7", "1"],
    prepare: |cloud| {
        cloud.image("ds/1/abc", 16);
        fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
        cloud.image("ds/1/abc.snap/0", 8);
    },
    check: |cloud| {
        assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")));
        assert!(same(&cloud.path("ds/103/7/disk.2.snap/0"), &cloud.path("ds/1/abc.snap/0")));
    },
};

const LARGER: Case = Case {
    action: "clone",
    words: &["{ds}/1/abc", "node1:{ds}/103/7/disk.1", "7", "1"],
    prepare: |cloud| drop(cloud.qcow2("ds/1/abc", 16)),
    check: |cloud| qemu_img(&["check", "-q", "-f", "qcow2"], &[&cloud.path("ds/103/7/disk.1")]),
};

const CPDS: Case = Case {
    action: "cpds",
    words: &["node1:{ds}/103/7/disk.2", "{ds}/1/new", "-1", "7", "1"],
    prepare: |cloud| drop(cloud.image("ds/103/7/disk.2", 24)),
    check: |cloud| assert!(same(&cloud.path("ds/1/new"), &cloud.path("ds/103/7/disk.2"))),
};

const SNAPSHOT: Case = Case {
    action: "snap_create",
    words: &["node1:{ds}/103/7/disk.2", "0", "7", "103"],
    prepare: |cloud| drop(cloud.image("ds/103/7/disk.2", 24)),
    check: |cloud| assert!(same(&cloud.path("ds/103/7/disk.2.snap/0"), &cloud.path("ds/103/7/disk.2"))),
};

/// Runs a case undisturbed and gives how long that took.
fn reference(case: &Case) -> Duration {
    let cloud = Cloud::new();
    (case.prepare)(&cloud);
    let begin = Instant::now();
    cloud.done(case.action, case.words);
    (case.check)(&cloud);
    begin.elapsed()
}

fn killed(case: &Case) {
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

fn cancelled(case: &Case) {
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

disturbances!(clone_raw RAW, clone_larger LARGER, cpds CPDS, snapshot SNAPSHOT);

#[test]
fn a_killed_move_has_the_directory_whole() {
    let words = ["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "104"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        let original = cloud.image("original", 12);
        fs::copy(&original, cloud.path("ds/103/7/disk.2")).expect("copies");
        let mut child = cloud.start("mv", &words);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 40));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        let (old, new) = (cloud.path("ds/103/7/disk.2"), cloud.path("ds/104/7/disk.2"));
        assert!(same(if new.exists() { &new } else { &old }, &original), "{moment}");
        let again = cloud.command("mv", &words).output().expect("runs");
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.success() || said.contains("does not exist"), "{moment}: {said}");
        assert!(!old.exists() && same(&new, &original), "{moment}: {said}");
    }
}

/// A disk that goes back into an image with a snapshot.
fn returning(cloud: &Cloud) -> (PathBuf, PathBuf) {
    let old = cloud.qcow2("old", 2);
    fs::copy(&old, cloud.path("ds/1/abc")).expect("copies");
    fs::create_dir(cloud.path("ds/1/abc.snap")).expect("snapshots");
    fs::copy(&old, cloud.path("ds/1/abc.snap/0")).expect("copies");
    let new = cloud.qcow2("new", 12);
    fs::copy(&new, cloud.path("ds/103/7/disk.3")).expect("copies");
    fs::create_dir(cloud.path("ds/103/7/disk.3.snap")).expect("snapshots");
    fs::copy(&old, cloud.path("ds/103/7/disk.3.snap/0")).expect("copies");
    (old, new)
}

const RETURN: [&str; 4] = ["node1:{ds}/103/7/disk.3", "{ds}/1/abc", "7", "1"];

#[test]
fn a_killed_return_to_the_image_loses_nothing() {
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        let (old, new) = returning(&cloud);
        let mut child = cloud.start("mvds", &RETURN);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 40));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        // The image is the old one or the new one, at any time, and the disk is where it was.
        let image = cloud.path("ds/1/abc");
        assert!(same(&image, &old) || same(&image, &new), "{moment}");
        assert!(same(&cloud.path("ds/103/7/disk.3"), &new), "{moment}");
        cloud.done("mvds", &RETURN);
        assert!(same(&image, &new) && same(&cloud.path("ds/1/abc.snap/0"), &old), "{moment}");
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{moment}");
    }
}

#[test]
fn a_cancelled_return_to_the_image_is_none() {
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        let (old, new) = returning(&cloud);
        let child = cloud.start("mvds", &RETURN);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 40));
        signal(&child, Signal::TERM);
        let ran = child.wait_with_output().expect("waits");
        let image = cloud.path("ds/1/abc");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(same(&image, if ran.status.success() { &new } else { &old }), "{moment}: {said}");
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{moment}: {said}");
    }
}

/// A disk that is layers, as it is where recovery snapshots are taken of it.
fn layered(cloud: &Cloud) {
    let snap = cloud.path("ds/103/7/disk.0.snap");
    fs::create_dir(&snap).expect("layers");
    symlink(".", snap.join("disk.0.snap")).expect("the self link");
    let base = cloud.qcow2("base", 8);
    fs::copy(&base, snap.join("base")).expect("copies");
    fs::copy(&base, snap.join("0")).expect("copies");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "disk.0.snap/base"];
    qemu_img(&create, &[&snap.join("base.1")]);
    let write = Command::new("qemu-io").args(["-c", "write -P 9 0 1M"]).arg(snap.join("base.1")).output();
    assert!(write.expect("qemu-io").status.success());
    symlink("disk.0.snap/base.1", cloud.path("ds/103/7/disk.0")).expect("the disk");
}

#[test]
fn a_killed_revert_of_layers_leaves_a_disk() {
    let words = ["node1:{ds}/103/7/disk.0", "0", "7", "103"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        layered(&cloud);
        let written = cloud.path("written");
        let disk = cloud.path("ds/103/7/disk.0");
        qemu_img(&["convert", "-O", "qcow2"], &[&disk, &written]);
        let mut child = cloud.start("snap_revert", &words);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 25));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        assert!(same(&disk, &written) || same(&disk, &cloud.path("base")), "{moment}");
        cloud.done("snap_revert", &words);
        assert!(same(&disk, &cloud.path("base")), "{moment}");
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{moment}");
    }
}

#[test]
fn layers_whose_merging_fails_stay() {
    let cloud = Cloud::new();
    layered(&cloud);
    fs::remove_file(cloud.path("ds/103/7/disk.0.snap/base")).expect("removes");
    cloud.image("ds/1/abc", 1);
    let before = cloud.listing();
    let ran = cloud.command("mvds", &["node1:{ds}/103/7/disk.0", "{ds}/1/abc", "7", "1"]).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && said.starts_with("Error copying"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(cloud.listing(), before);
}

#[test]
fn two_at_once_on_one_disk_come_one_after_the_other() {
    let cloud = Cloud::new();
    (RAW.prepare)(&cloud);
    let both = [cloud.start("clone", RAW.words), cloud.start("clone", RAW.words)];
    for child in both {
        let ran = child.wait_with_output().expect("waits");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    (RAW.check)(&cloud);
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

#[test]
fn an_image_that_changes_is_brought_to_the_replica_host_again() {
    let cloud = Cloud::new();
    let system = "<DATASTORE><ID>103</ID><TEMPLATE><REPLICA_HOST>replica</REPLICA_HOST></TEMPLATE></DATASTORE>";
    fs::write(cloud.path("oned/datastore/103.xml"), system).expect("a datastore");
    fs::create_dir_all(cloud.path("one/var/remotes/etc/tm/ssh")).expect("a folder");
    let conf = format!("REPLICA_RECOVERY_SNAPS_DIR={}\nREPLICA_MAX_SIZE_MB=1\n", cloud.path("kept").display());
    fs::write(cloud.path("one/var/remotes/etc/tm/ssh/sshrc"), conf).expect("the configuration");
    // The replica host is this machine: it sees the image where it keeps its copies.
    cloud.image("ds/1/abc", 3);
    let words = ["{ds}/1/abc", "node1:{ds}/103/7/disk.2", "7", "1"];
    cloud.done("clone", &words);
    assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")));
    assert_eq!(fs::read_to_string(cloud.path("ds/1/.monitor")).expect("the mark"), "replica\n");
    let sum = fs::read_to_string(cloud.path("ds/1/abc.md5sum")).expect("the digest");
    let md5 = Command::new("md5sum").arg(cloud.path("ds/1/abc")).output().expect("md5sum");
    assert_eq!(String::from_utf8_lossy(&md5.stdout).split(' ').next(), Some(sum.trim()));
    assert_eq!(cloud.staged(), Vec::<String>::new());
}
