//! The ssh transfer manager killed, cancelled and called twice. Whatever happens, the image or the disk is whole in one
//! place, and the same action completes it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

#[path = "hosts/tm_faults.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod tm_faults;

use tm_faults::{Case, Cloud, MOMENTS, cancelled, disturbances, killed, left_by_the_dead, qemu_img, same, signal};

/// The transfer manager.
const MAD: &str = "ssh";

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

disturbances!(clone_raw RAW, clone_larger LARGER, cpds CPDS, snapshot SNAPSHOT);

#[test]
fn a_killed_move_has_the_directory_whole() {
    let words = ["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "104"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::of(MAD);
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

#[test]
fn a_move_clears_away_what_a_killed_one_left_in_the_old_datastore() {
    let cloud = Cloud::of(MAD);
    cloud.image("ds/103/7/disk.2", 2);
    let staging = left_by_the_dead(&cloud.path("ds/103"));
    cloud.done("mv", &["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "104"]);
    assert!(cloud.path("ds/104/7/disk.2").exists() && !cloud.path("ds/103/7").exists());
    assert!(!staging.exists(), "the claim stays");
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
        let cloud = Cloud::of(MAD);
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
        let cloud = Cloud::of(MAD);
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
        let cloud = Cloud::of(MAD);
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
    let cloud = Cloud::of(MAD);
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
    let cloud = Cloud::of(MAD);
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
    let cloud = Cloud::of(MAD);
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
