//! Snapshots of disks under bad input and faults: one clear line, and the state is as before or completely changed. The real
//! binary; the host is this machine behind a stand-in for ssh.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "faults/cloud.rs"]
#[allow(dead_code)]
mod cloud;

use cloud::{Cloud, qemu_img, same, signal};

const DISK: &str = "node1:{ds}/103/7/disk.0";
const RAW: &str = "node1:{ds}/103/7/disk.2";

/// `LCM_STATE` of a VM whose snapshot is deleted while it runs.
const SNAPSHOT_DELETE: u32 = 59;

/// A clone with the snapshots 0 and 1, and a raw disk with the copy 0.
fn cloud() -> Cloud {
    let cloud = Cloud::new();
    cloud.layered("disk.0", 2);
    cloud.image("ds/103/7/disk.2", 2);
    fs::create_dir(cloud.path("ds/103/7/disk.2.snap")).expect("copies");
    cloud.image("ds/103/7/disk.2.snap/0", 1);
    cloud
}

/// Every snapshot action of a VM that is off, save-as and resize: they need disk 0, or disk 2 which is raw.
const ACTIONS: [(&str, &[&str]); 9] = [
    ("snap_create", &[DISK, "2", "7", "1"]),
    ("snap_revert", &[DISK, "0", "7", "1"]),
    ("snap_delete", &[DISK, "0", "7", "1"]),
    ("snap_delete.ssh", &[DISK, "1", "7", "1"]),
    ("snap_create", &[RAW, "1", "7", "1"]),
    ("snap_revert", &[RAW, "0", "7", "1"]),
    ("snap_delete", &[RAW, "0", "7", "1"]),
    ("cpds", &[DISK, "{ds}/1/new", "0", "7", "1"]),
    ("resize", &[DISK, "4", "7", "1"]),
];

/// What a guest reads from everything that a guest may be given: the disks, and the snapshots that are there.
fn contents(cloud: &Cloud) -> Vec<Option<Vec<u8>>> {
    let qcow2 = ["disk.0", "disk.0.snap/0", "disk.0.snap/1", "disk.0.snap/2"].map(|name| {
        let path = cloud.path("ds/103/7").join(name);
        path.exists().then(|| cloud.content(&path))
    });
    let raw = ["disk.2", "disk.2.snap/0", "disk.2.snap/1"].map(|name| fs::read(cloud.path("ds/103/7").join(name)).ok());
    qcow2.into_iter().chain(raw).collect()
}

#[test]
fn a_host_that_is_down_is_named_and_nothing_happens() {
    let cloud = cloud();
    let before = cloud.listing();
    cloud.connection("down", "");
    for (action, words) in ACTIONS {
        let said = cloud.fails(action, words);
        assert!(said.contains("node1"), "{action}: {said}");
        assert_eq!(cloud.listing(), before, "{action}");
    }
}

#[test]
fn a_connection_that_is_cut_leaves_what_the_same_action_completes() {
    for (action, words) in ACTIONS.into_iter().take(5) {
        let reference = cloud();
        reference.done(action, words);
        let after = contents(&reference);
        for nth in 2..=3 {
            let cloud = cloud();
            let before = contents(&cloud);
            cloud.connection("cut", &format!("{nth} 0.0{}", 3 * nth));
            let ran = cloud.command(action, words).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            cloud.connection("", "");
            cloud.settle();
            let now = contents(&cloud);
            for ((now, before), after) in now.iter().zip(&before).zip(&after) {
                assert!(now == before || now == after, "{action} cut at {nth}: {said}");
            }
            if !ran.status.success() {
                cloud.done(action, words);
            }
            assert!(contents(&cloud) == after, "{action} again after a cut at {nth}: {said}");
            assert_eq!(cloud.staged(), Vec::<String>::new(), "{action} cut at {nth}");
        }
    }
}

#[test]
fn a_host_without_qemu_img_says_so() {
    let cloud = cloud();
    let before = cloud.listing();
    cloud.connection("hidden", "qemu-img");
    let qcow2 = ACTIONS.iter().filter(|(_, words)| words[0] == DISK);
    for (action, words) in qcow2 {
        let said = cloud.fails(action, words);
        assert!(said.contains("qemu-img"), "{action}: {said}");
        assert_eq!(cloud.listing(), before, "{action}");
    }
}

#[test]
fn a_directory_that_was_deleted_is_not_made_again() {
    let cloud = cloud();
    fs::remove_dir_all(cloud.path("ds/103/7")).expect("removes");
    let before = cloud.listing();
    for (action, words) in ACTIONS {
        let said = cloud.fails(action, words);
        assert!(said.contains("disk."), "{action}: {said}");
        assert_eq!(cloud.listing(), before, "{action}: {said}");
    }
}

#[test]
fn a_vm_without_the_disk_is_refused() {
    let cloud = cloud();
    let before = cloud.listing();
    let xml = "<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><TEMPLATE><DISK><DISK_ID>9</DISK_ID></DISK></TEMPLATE></VM>";
    fs::write(cloud.path("oned/vm/7.xml"), xml).expect("the VM");
    for (action, words) in ACTIONS {
        let said = cloud.fails(action, words);
        assert!(said.contains("has no disk"), "{action}: {said}");
    }
    fs::remove_file(cloud.path("oned/vm/7.xml")).expect("removes");
    for (action, words) in ACTIONS {
        cloud.fails(action, words);
    }
    assert_eq!(cloud.listing(), before);
}

#[test]
fn hostile_places_are_refused() {
    let cloud = cloud();
    let before = cloud.listing();
    let bad = [
        "node1:{ds}/103/7/../8/disk.0",
        "node1:{ds}/103/8/disk.0",
        "node1:{ds}/103/7/disk.0;touch x",
        "node1:{ds}/103/7/$(touch x)",
        "node1:{ds}/103/7/disk.0\n",
        "node1:{ds}/103/7/disk.-1",
        "node1:disk.0",
        "-oProxyCommand=touch:{ds}/103/7/disk.0",
        "{ds}/103/7/disk.0",
        "node1:/7/disk.0",
        "",
    ];
    for place in bad {
        for action in ["snap_create", "snap_create_live", "snap_revert", "snap_delete"] {
            let said = cloud.fails(action, &[place, "0", "7", "1"]);
            assert!(said.starts_with("Bad ") || said.contains("as a host name"), "{action} {place:?}: {said}");
        }
    }
    for number in ["", "-1", "x", "4294967296", "0;x"] {
        cloud.fails("snap_delete", &[DISK, number, "7", "1"]);
    }
    assert_eq!(cloud.listing(), before);
}

#[test]
fn two_at_once_on_one_disk_are_one_after_the_other() {
    let cloud = cloud();
    let before = cloud.content(&cloud.path("ds/103/7/disk.0"));
    let all: [(&str, [&str; 4]); 3] = [
        ("snap_create", [DISK, "2", "7", "1"]),
        ("snap_create", [DISK, "2", "7", "1"]),
        ("snap_delete", [DISK, "0", "7", "1"]),
    ];
    let running: Vec<_> = all.iter().map(|(action, words)| cloud.start(action, words)).collect();
    for child in running {
        let ran = child.wait_with_output().expect("waits");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let disk = cloud.path("ds/103/7/disk.0");
    assert_eq!(fs::read_link(&disk).expect("a link"), Path::new("disk.0.snap/3"));
    assert!(!cloud.path("ds/103/7/disk.0.snap/0").exists());
    assert!(cloud.content(&disk) == before);
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

/// State before or after, in every file; and the same action again succeeds.
#[test]
fn killed_at_any_moment_the_same_action_completes_it() {
    for (seed, (action, words)) in (1_u32..).zip(ACTIONS) {
        let reference = cloud();
        let begin = Instant::now();
        reference.done(action, words);
        let (took, after) = (begin.elapsed(), contents(&reference));
        for moment in 0..3_u32 {
            let cloud = cloud();
            let before = contents(&cloud);
            let mut child = cloud.start(action, words);
            // Moments that look random and are the same every time.
            let dice = seed.wrapping_mul(2_654_435_769).wrapping_add(moment * 40_503) % 1000;
            std::thread::sleep(took * (moment * 333 + dice / 3) / 1000);
            signal(&child, Signal::KILL);
            child.wait().expect("waits");
            cloud.settle();
            let about = format!("{action} {words:?} at {moment}");
            for ((now, before), after) in contents(&cloud).iter().zip(&before).zip(&after) {
                assert!(now == before || now == after, "{about}");
            }
            cloud.done(action, words);
            assert!(contents(&cloud) == after, "{about}, again");
            assert_eq!(cloud.staged(), Vec::<String>::new(), "{about}");
        }
    }
}

#[test]
fn a_domain_that_is_gone_is_named_and_nothing_happens() {
    let cloud = cloud();
    let before = cloud.listing();
    cloud.program("virsh", "echo \"error: failed to get domain\" >&2\nexit 1\n");
    for (action, lcm) in [("snap_create_live", 0), ("snap_delete", SNAPSHOT_DELETE), ("cpds", 26)] {
        cloud.vm(lcm, "kvm", "one-7");
        let words = if action == "cpds" { vec![DISK, "{ds}/1/new", "-1", "7", "1"] } else { vec![DISK, "0", "7", "1"] };
        let said = cloud.fails(action, &words);
        assert!(said.contains("failed to get domain") && said.contains("one-7"), "{action}: {said}");
        assert_eq!(cloud.listing(), before, "{action}");
    }
}

#[test]
fn a_hostile_name_of_a_domain_is_one_word() {
    let cloud = cloud();
    let name = "--help'; touch \"$(hostname)\" `x`\\";
    cloud.vm(0, "kvm", name);
    let log = cloud.path("virsh.log");
    cloud.program("virsh", &format!("printf '%s\\n' \"$@\" >>'{}'\nexit 1\n", log.display()));
    cloud.fails("snap_create_live", &[DISK, "2", "7", "1"]);
    let told = fs::read_to_string(log).expect("it was called");
    assert!(told.lines().any(|line| line == format!("--domain={name}")), "{told}");
}

/// The container's programs, which write down how they are called and keep its state.
fn container(cloud: &Cloud) -> std::path::PathBuf {
    let (log, state) = (cloud.path("lxc.log"), cloud.path("lxc.state"));
    fs::write(&state, "RUNNING\n").expect("writes");
    cloud.program("sudo", "[ \"$1\" != -n ] || shift\nexec \"$@\"\n");
    let note = format!("echo \"${{0##*/}} $*\" >>'{}'\n", log.display());
    cloud.program("lxc-info", &format!("{note}cat '{}'\n", state.display()));
    for (program, word) in [("lxc-freeze", "FROZEN"), ("lxc-unfreeze", "RUNNING")] {
        cloud.program(program, &format!("{note}echo {word} >'{}'\n", state.display()));
    }
    log
}

#[test]
fn a_raw_disk_of_a_container_is_copied_while_it_is_frozen() {
    let cloud = cloud();
    cloud.vm(0, "lxc", "one-7");
    let log = container(&cloud);
    let told = || fs::read_to_string(&log).unwrap_or_default();
    cloud.done("snap_create_live", &[RAW, "1", "7", "1"]);
    assert_eq!(
        told(),
        "lxc-info --name=one-7 --state --no-humanize\nlxc-freeze --name=one-7\nlxc-unfreeze --name=one-7\n"
    );
    assert_eq!(
        fs::read(cloud.path("ds/103/7/disk.2.snap/1")).expect("a copy"),
        fs::read(cloud.path("ds/103/7/disk.2")).expect("the disk")
    );
    // Deleted while it runs: a full copy is nobody else's.
    cloud.vm(SNAPSHOT_DELETE, "lxc", "one-7");
    cloud.done("snap_delete", &[RAW, "1", "7", "1"]);
    assert!(!cloud.path("ds/103/7/disk.2.snap/1").exists());

    // One that stands still is left so.
    cloud.vm(0, "lxc", "one-7");
    fs::remove_file(&log).expect("removes");
    fs::write(cloud.path("lxc.state"), "FROZEN\n").expect("writes");
    cloud.done("snap_create_live", &[RAW, "1", "7", "1"]);
    assert_eq!(told(), "lxc-info --name=one-7 --state --no-humanize\n");

    // Layers would need the hypervisor's help.
    let said = cloud.fails("snap_create_live", &[DISK, "2", "7", "1"]);
    assert!(said.ends_with("LXC driver does not support live qcow2 snapshots"), "{said}");
    fs::write(cloud.path("lxc.state"), "STOPPED\n").expect("writes");
    let said = cloud.fails("snap_create_live", &[RAW, "2", "7", "1"]);
    assert!(said.contains("Container one-7 does not run: it is STOPPED"), "{said}");
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

#[test]
fn a_container_is_thawed_whatever_happens() {
    let cloud = cloud();
    cloud.vm(0, "lxc", "one-7");
    container(&cloud);
    let state = || fs::read_to_string(cloud.path("lxc.state")).expect("a state");
    // The copy fails.
    fs::create_dir(cloud.path("ds/103/7/.onestore")).expect("a folder");
    cloud.program("cp", "sleep 0.3\necho 'cp: No space left on device' >&2\nexit 1\n");
    let said = cloud.fails("snap_create_live", &[RAW, "1", "7", "1"]);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(state(), "RUNNING\n");
    assert!(!cloud.path("ds/103/7/disk.2.snap/1").exists());
    // It cannot be frozen.
    cloud.program("lxc-freeze", "echo 'lxc-freeze: Failed to freeze' >&2\nexit 1\n");
    let said = cloud.fails("snap_create_live", &[RAW, "1", "7", "1"]);
    assert!(said.contains("Failed to freeze"), "{said}");
    assert_eq!(state(), "RUNNING\n");
    // We are killed while it stands still.
    container(&cloud);
    cloud.program("cp", "sleep 30\n");
    let mut child = cloud.start("snap_create_live", &[RAW, "1", "7", "1"]);
    let until = Instant::now() + Duration::from_secs(20);
    while state() != "FROZEN\n" {
        assert!(Instant::now() < until, "it is never frozen");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, Signal::KILL);
    child.wait().expect("waits");
    while state() != "RUNNING\n" {
        assert!(Instant::now() < until, "it is never thawed");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(cloud.path("ssh.bin/cp")).expect("removes");
    cloud.done("snap_create_live", &[RAW, "1", "7", "1"]);
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

/// Names that upstream's powered-off delete leaves behind hold after a move.
#[test]
fn a_disk_with_absolute_names_can_be_moved() {
    let cloud = cloud();
    let before = contents(&cloud);
    let layer = cloud.path("ds/103/7/disk.0.snap/2");
    let below = cloud.path("ds/103/7/disk.0.snap/1");
    let below = below.to_str().expect("plain");
    qemu_img(&["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below], &[&layer]);
    let disk = cloud.path("ds/103/7/disk.0");
    fs::remove_file(&disk).expect("removes");
    std::os::unix::fs::symlink(&layer, &disk).expect("the disk");
    cloud.done("mv", &["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"]);
    fs::rename(cloud.path("ds/103"), cloud.path("ds/gone")).expect("renames");
    assert!(cloud.content(&cloud.path("ds/104/7/disk.0")) == before[0].clone().expect("a disk"));
    assert_eq!(fs::read_link(cloud.path("ds/104/7/disk.0")).expect("a link"), Path::new("disk.0.snap/2"));
    // And goes on there.
    cloud.done("snap_delete", &["node1:{ds}/104/7/disk.0", "1", "7", "1"]);
    assert!(cloud.content(&cloud.path("ds/104/7/disk.0")) == before[0].clone().expect("a disk"));
    assert!(same(&cloud.path("ds/104/7/disk.2"), &cloud.path("ds/104/7/disk.2")));
}
