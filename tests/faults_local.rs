//! The local transfer manager killed, cancelled and without space. Whatever happens, the image or the disk is whole in one
//! place, and the same action completes it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "hosts/tm_faults.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod tm_faults;

use tm_faults::{Case, Cloud, MOMENTS, cancelled, disturbances, killed, qemu_img, same, signal};

/// The transfer manager.
const MAD: &str = "local";

const RAW: Case = Case {
    action: "clone",
    words: &["{ds}/1/abc", "node1:{ds}/103/7/disk.2", "7", "1"],
    prepare: |cloud| drop(cloud.image("ds/1/abc", 16)),
    check: |cloud| assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc"))),
};

const QCOW2: Case = Case {
    action: "clone",
    words: &["node2:{ds}/1/abc", "node1:{ds}/103/7/disk.0", "7", "1"],
    prepare: |cloud| drop(cloud.qcow2("ds/1/abc", 8)),
    check: |cloud| {
        assert_eq!(fs::read_link(cloud.path("ds/103/7/disk.0")).expect("a link"), Path::new("disk.0.snap/0"));
        assert!(same(&cloud.path("ds/103/7/disk.0"), &cloud.path("ds/1/abc")));
    },
};

const LN: Case = Case {
    action: "ln",
    words: &["{ds}/1/abc", "node1:{ds}/103/7/disk.3", "7", "1"],
    prepare: |cloud| {
        fs::create_dir(cloud.path("ds/1/abc.snap")).expect("a folder");
        cloud.qcow2("ds/1/abc.snap/0", 4);
        overlay(cloud, "ds/1/abc.snap/1", "abc.snap/0");
        symlink(".", cloud.path("ds/1/abc.snap/abc.snap")).expect("the self link");
        symlink("abc.snap/1", cloud.path("ds/1/abc")).expect("the image");
    },
    check: |cloud| {
        assert!(same(&cloud.path("ds/103/7/disk.3"), &cloud.path("ds/1/abc")));
        assert!(same(&cloud.path("ds/103/7/disk.3.snap/0"), &cloud.path("ds/1/abc.snap/0")));
    },
};

const CPDS: Case = Case {
    action: "cpds",
    words: &["node1:{ds}/103/7/disk.2", "{ds}/1/new", "-1", "7", "1"],
    prepare: |cloud| drop(cloud.image("ds/103/7/disk.2", 16)),
    check: |cloud| assert!(same(&cloud.path("ds/1/new"), &cloud.path("ds/103/7/disk.2"))),
};

disturbances!(clone_raw RAW, clone_qcow2 QCOW2, ln LN, cpds CPDS);

fn overlay(cloud: &Cloud, path: &str, backing: &str) {
    let path = cloud.path(path);
    qemu_img(
        &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, &path.display().to_string(), "4M"],
        &[],
    );
}

/// A disk with a snapshot, ready to go back, and what its image was.
fn back() -> Cloud {
    let cloud = Cloud::of(MAD);
    cloud.qcow2("ds/1/abc", 2);
    fs::copy(cloud.path("ds/1/abc"), cloud.path("old")).expect("copies");
    fs::create_dir(cloud.path("ds/103/7/disk.3.snap")).expect("a folder");
    cloud.qcow2("ds/103/7/disk.3.snap/0", 4);
    overlay(&cloud, "ds/103/7/disk.3.snap/1", "disk.3.snap/0");
    symlink(".", cloud.path("ds/103/7/disk.3.snap/disk.3.snap")).expect("the self link");
    symlink("disk.3.snap/1", cloud.path("ds/103/7/disk.3")).expect("the disk");
    cloud
}

const BACK: [&str; 4] = ["node1:{ds}/103/7/disk.3", "{ds}/1/abc", "7", "1"];

#[test]
fn a_killed_return_to_the_image_loses_nothing() {
    let whole = back();
    let begin = Instant::now();
    whole.done("mvds", &BACK);
    let took = begin.elapsed();
    for moment in 0..MOMENTS {
        let cloud = back();
        let mut child = cloud.start("mvds", &BACK);
        std::thread::sleep(took * moment / MOMENTS);
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        // The disk is there as it was, at any time.
        assert_eq!(fs::read_link(cloud.path("ds/103/7/disk.3")).expect("a link"), Path::new("disk.3.snap/1"));
        let (image, new) = (cloud.path("ds/1/abc"), cloud.path("ds/103/7/disk.3"));
        if image.exists() {
            assert!(same(&image, &cloud.path("old")) || same(&image, &new), "{moment}");
        }
        cloud.done("mvds", &BACK);
        assert!(same(&image, &new), "{moment}");
        assert_eq!(cloud.staged(), Vec::<String>::new(), "{moment}");
    }
}

#[test]
fn a_cancelled_return_leaves_the_image() {
    for moment in 0..MOMENTS {
        let cloud = back();
        let before = cloud.listing();
        let child = cloud.start("mvds", &BACK);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 60));
        signal(&child, Signal::TERM);
        let ran = child.wait_with_output().expect("waits");
        if ran.status.success() {
            assert!(same(&cloud.path("ds/1/abc"), &cloud.path("ds/103/7/disk.3")));
        } else if fs::read_link(cloud.path("ds/1/abc")).is_err() {
            assert_eq!(cloud.listing(), before, "{moment}: {}", String::from_utf8_lossy(&ran.stderr));
        }
    }
}

#[test]
fn a_killed_move_has_the_directory_in_one_place() {
    let words = ["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "104"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::of(MAD);
        cloud.image("ds/103/7/disk.2", 8);
        cloud.image("same", 8);
        let mut child = cloud.start("mv", &words);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 60));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        let (old, new) = (cloud.path("ds/103/7/disk.2"), cloud.path("ds/104/7/disk.2"));
        let whole = |path: &Path| path.exists() && same(path, &cloud.path("same"));
        assert!(whole(&old) || whole(&new), "{moment}");
        // What has arrived whole stays whole, also if oned tries again and the old one has gone.
        let again = cloud.command("mv", &words).output().expect("runs");
        assert!(whole(&new), "{moment}: {}", String::from_utf8_lossy(&again.stderr));
    }
}
