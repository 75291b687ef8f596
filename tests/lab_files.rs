//! The qcow2 transfer manager on file systems of their own, with real containers, and on a machine that is another one than
//! it seems: `cargo test --test lab_files -- --ignored`, as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "faults/cloud.rs"]
#[allow(dead_code)]
mod cloud;
#[path = "lab/mount.rs"]
#[allow(dead_code)]
mod mount;

use cloud::{Cloud, same, signal};
use mount::Mounted;

const DISK: &str = "node1:{ds}/103/7/disk.0";
const RAW: &str = "node1:{ds}/103/7/disk.2";
const MV: [&str; 4] = ["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"];

/// A datastore that is a file system of its own.
struct Own {
    mounted: Mounted,
    at: PathBuf,
}

impl Own {
    fn new(cloud: &Cloud, id: u32, kind: &str, mib: u64) -> Self {
        let (mounted, at) = (Mounted::new(kind, mib), cloud.path(&format!("ds/{id}")));
        let there = mounted.path("ds");
        must(Command::new("cp").args(["-a", "-T", "--"]).arg(&at).arg(&there));
        must(Command::new("mount").arg("--bind").arg(&there).arg(&at));
        Self { mounted, at }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.at).status());
    }
}

/// A VM's directory with all that may be in one.
fn plant(cloud: &Cloud) {
    cloud.layered("disk.0", 2);
    cloud.image("ds/103/7/disk.2", 2);
    let vm = cloud.path("ds/103/7");
    let hole = fs::File::create(vm.join("checkpoint")).expect("a file");
    hole.set_len(64 << 20).expect("a hole");
    fs::write(vm.join("vm.xml"), "<VM/>").expect("a file");
    fs::set_permissions(vm.join("vm.xml"), fs::Permissions::from_mode(0o600)).expect("a mode");
    symlink(cloud.path("ds/1/abc"), vm.join("disk.3")).expect("a link");
}

#[test]
#[ignore = "needs root"]
fn a_vm_goes_to_another_file_system() {
    for kind in ["ext4", "xfs"] {
        let cloud = Cloud::new();
        plant(&cloud);
        let (disk, raw) = (cloud.content(&cloud.path("ds/103/7/disk.0")), fs::read(cloud.path("ds/103/7/disk.2")));
        // A name that upstream left.
        let (layer, below) = (cloud.path("ds/103/7/disk.0.snap/2"), cloud.path("ds/103/7/disk.0.snap/1"));
        cloud::qemu_img(&["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"], &[&below, &layer]);
        let _other = Own::new(&cloud, 104, kind, 320);
        cloud.done("mv", &MV);
        let vm = cloud.path("ds/104/7");
        assert!(!cloud.path("ds/103/7").exists());
        assert!(cloud.content(&vm.join("disk.0")) == disk && fs::read(vm.join("disk.2")).ok() == raw.ok(), "{kind}");
        let hole = fs::metadata(vm.join("checkpoint")).expect("there");
        assert_eq!((hole.len(), hole.blocks()), (64 << 20, 0), "{kind}");
        assert_eq!(fs::metadata(vm.join("vm.xml")).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_link(vm.join("disk.3")).expect("a link"), cloud.path("ds/1/abc"));
        assert_eq!(cloud.staged(), Vec::<String>::new());
        // And back, killed on the way at several moments.
        for moment in [0, 30, 80, 200] {
            let back = ["node1:{ds}/104/7", "node1:{ds}/103/7", "7", "103"];
            let mut child = cloud.start("mv", &back);
            std::thread::sleep(Duration::from_millis(moment));
            signal(&child, Signal::KILL);
            child.wait().expect("waits");
            let (old, new) = (cloud.path("ds/104/7"), cloud.path("ds/103/7"));
            let whole = if new.exists() { &new } else { &old };
            assert!(cloud.content(&whole.join("disk.0")) == disk, "{kind} after {moment} ms");
            if new.exists() {
                drop(fs::remove_dir_all(&old));
                cloud.done("mv", &MV);
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_full_file_system_changes_nothing() {
    let cloud = Cloud::new();
    plant(&cloud);
    fs::remove_file(cloud.path("ds/103/7/checkpoint")).expect("removes");
    fs::create_dir(cloud.path("ds/103/7/disk.2.snap")).expect("copies");
    fs::copy(cloud.path("ds/103/7/disk.2"), cloud.path("ds/103/7/disk.2.snap/0")).expect("copies");
    let small = Own::new(&cloud, 103, "ext4", 24);
    let fill = small.mounted.path("fill");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=64k", "status=none"]).arg(format!("of={}", fill.display())).stderr(Stdio::null());
    assert!(!dd.status().expect("dd").success(), "it is full now");
    let _tiny = Own::new(&cloud, 104, "ext4", 2);
    let before = cloud.listing();
    let contents = || {
        let raw = ["disk.2", "disk.2.snap/0"].map(|name| fs::read(cloud.path("ds/103/7").join(name)).expect("reads"));
        (cloud.content(&cloud.path("ds/103/7/disk.0")), raw)
    };
    let content = contents();
    let actions: [(&str, &[&str]); 7] = [
        ("snap_create", &[DISK, "2", "7", "1"]),
        ("clone", &["fe:{ds}/1/abc", "node1:{ds}/103/7/disk.1", "7", "1"]),
        ("snap_create", &[RAW, "1", "7", "1"]),
        ("snap_revert", &[RAW, "0", "7", "1"]),
        ("snap_delete", &[DISK, "1", "7", "1"]),
        ("cpds", &[RAW, "{ds}/104/new", "-1", "7", "1"]),
        ("mv", &MV),
    ];
    for (action, words) in actions {
        let said = cloud.fails(action, words);
        assert!(said.contains("No space left on device") || said.contains("space"), "{action}: {said}");
        assert_eq!(cloud.listing(), before, "{action}: {said}");
        assert!(contents() == content, "{action}");
    }
}

/// A container whose root is a raw disk with a file system, as OpenNebula's LXC driver mounts it; stopped and gone when
/// dropped.
struct Container {
    name: String,
    home: PathBuf,
    root: PathBuf,
}

impl Container {
    fn start(disk: &Path) -> Self {
        let name = format!("onestore-{}", std::process::id());
        let home = Path::new("/var/lib/lxc").join(&name);
        let root = home.join("rootfs");
        fs::create_dir_all(&root).expect("makes");
        let new = Self { name, home, root };
        must(Command::new("mount").args(["-o", "loop"]).arg(disk).arg(&new.root));
        for folder in ["bin", "dev", "proc", "tmp"] {
            fs::create_dir_all(new.root.join(folder)).expect("makes");
        }
        fs::copy("/bin/busybox", new.root.join("bin/busybox")).expect("needs a static busybox");
        let config = format!(
            "lxc.uts.name = {}\nlxc.net.0.type = none\nlxc.rootfs.path = dir:{}\nlxc.apparmor.profile = unconfined\n\
             lxc.mount.auto =\nlxc.autodev = 0\n",
            new.name,
            new.root.display()
        );
        fs::write(new.home.join("config"), config).expect("writes");
        let writes =
            "n=0; while :; do n=$((n + 1)); echo $n >/tmp/n.new; mv /tmp/n.new /tmp/n; echo $n >>/tmp/all; done";
        let mut start = Command::new("lxc-start");
        start.args(["--name", &new.name, "--daemon", "--", "/bin/busybox", "sh", "-c"]);
        must(start.arg(writes.replace("mv ", "/bin/busybox mv ")));
        new
    }

    fn state(&self) -> String {
        let told = Command::new("lxc-info").args(["--name", &self.name, "--state", "--no-humanize"]).output();
        String::from_utf8_lossy(&told.expect("lxc-info").stdout).trim().to_owned()
    }

    fn lines(&self) -> usize {
        fs::read_to_string(self.root.join("tmp/all")).unwrap_or_default().lines().count()
    }

    fn writes_on(&self) {
        let (now, until) = (self.lines(), Instant::now() + Duration::from_secs(30));
        while self.lines() <= now {
            assert!(Instant::now() < until, "the container does not write any more");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(Command::new("lxc-unfreeze").args(["--name", &self.name]).status());
        drop(Command::new("lxc-stop").args(["--name", &self.name, "--kill"]).status());
        drop(Command::new("umount").arg(&self.root).status());
        drop(fs::remove_dir_all(&self.home));
    }
}

fn must(command: &mut Command) {
    let done = command.output().expect("runs");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
#[ignore = "needs root, lxc and a static busybox"]
fn a_container_that_writes_is_snapshot_whole() {
    // The storage is the same for each of them, what they do on it is not.
    for (mad, snapshots) in [("qcow2", 3), ("ssh", 1), ("local", 1)] {
        is_snapshot_whole(&Cloud::of(mad), snapshots);
    }
}

fn is_snapshot_whole(cloud: &Cloud, snapshots: u32) {
    let disk = cloud.path("ds/103/7/disk.2");
    let file = fs::File::create(&disk).expect("a disk");
    file.set_len(32 << 20).expect("a disk");
    must(Command::new("mkfs.ext4").arg("-Fq").arg(&disk));
    let container = Container::start(&disk);
    cloud.vm(0, "lxc", &container.name);
    if !Path::new("/usr/bin/sudo").exists() {
        cloud.program("sudo", "[ \"$1\" != -n ] || shift\nexec \"$@\"\n");
    }
    for k in 0..snapshots {
        container.writes_on();
        let before = container.lines();
        cloud.done("snap_create_live", &[RAW, &k.to_string(), "7", "1"]);
        assert_eq!(container.state(), "RUNNING");
        container.writes_on();
        // The copy is a file system without a fault, with all that was written before.
        let copy = cloud.path(&format!("ds/103/7/disk.2.snap/{k}"));
        let looked = cloud.path(&format!("look{k}"));
        fs::copy(&copy, &looked).expect("copies");
        let mut replay = Command::new("e2fsck");
        let code = replay.args(["-fp"]).arg(&looked).output().expect("e2fsck").status.code();
        assert!(code.is_some_and(|code| code <= 1), "the snapshot's file system is broken: {code:?}");
        let read = Command::new("debugfs").args(["-R", "cat /tmp/all"]).arg(&looked).output().expect("debugfs");
        let lines = String::from_utf8_lossy(&read.stdout).lines().count();
        assert!(lines >= before, "{lines} of {before} lines are in snapshot {k}");
    }
    // Killed while it stands still: it runs on.
    cloud.program("cp", "sleep 60\n");
    let mut child = cloud.start("snap_create_live", &[RAW, &snapshots.to_string(), "7", "1"]);
    let until = Instant::now() + Duration::from_secs(60);
    while container.state() != "FROZEN" {
        assert!(Instant::now() < until, "it is never frozen");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(&child, Signal::KILL);
    child.wait().expect("waits");
    while container.state() != "RUNNING" {
        assert!(Instant::now() < until, "it is never thawed");
        std::thread::sleep(Duration::from_millis(50));
    }
    container.writes_on();
    assert!(same(&cloud.path("ds/103/7/disk.2.snap/0"), &cloud.path("ds/103/7/disk.2.snap/0")));
}
