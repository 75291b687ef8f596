//! The `fs` datastore on file systems of its own and behind real bridges: `cargo test --test lab_fs -- --ignored
//! --test-threads 1`, as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[path = "faults/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "lab/mount.rs"]
mod mount;
#[path = "lab/sshd.rs"]
#[allow(dead_code)]
mod sshd;

use house::{House, allocated, digest, finish, guest};
use mount::Mounted;
use sshd::{Sshd, within};

fn path_of(path: &Path) -> String {
    format!("<PATH>{}</PATH>", path.display())
}

fn source_of(path: &Path, id: i64) -> String {
    format!("<SOURCE>{}</SOURCE><TARGET_SNAPSHOT>{id}</TARGET_SNAPSHOT>", path.display())
}

/// Full disks: each action that writes fails with one line that says so, and the datastore is as it was.
fn full_disk(kind: &str, mib: u64) {
    let disk = Mounted::new(kind, mib);
    let house = House::at(Some(&disk.path("ds")));
    let source = house.path("users/disk.raw");
    house.raw(&source, mib, 5);
    let packed = house.path("users/packed.raw");
    house.raw(&packed, mib, 7);
    assert!(Command::new("gzip").arg("-1").arg(&packed).status().expect("gzip").success());
    let image = house.copies();
    // All but a few MiB.
    let filler = disk.path("filler");
    let mut left = rustix::fs::statvfs(disk.path("ds").as_path()).expect("space");
    let file = fs::File::create(&filler).expect("creates");
    let bytes = (left.f_bavail * left.f_frsize).saturating_sub(6 << 20);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).expect("fills");
    let kept = house.content();
    let gzip = path_of(&house.path("users/packed.raw.gz"));
    let cases = [
        ("cp", path_of(&source), ""),
        ("cp", path_of(&source), "<SPARSE>no</SPARSE>"),
        ("cp", path_of(&source), "<DRIVER>qcow2</DRIVER>"),
        ("cp", gzip.clone(), ""),
        ("cp", gzip, "<DRIVER>qcow2</DRIVER>"),
    ];
    for (action, image, template) in cases {
        let ran = house.call(action, &house.document(&image, template));
        let line = ran.failure(&format!("{kind} {action} {template}"));
        assert!(line.contains("No space left on device"), "{kind} {action} {template}: {line}");
        assert_eq!(house.staged(), Vec::<String>::new());
        assert_eq!(house.content(), kept);
    }
    // Now nothing at all is left, not even for a directory entry's worth of data.
    left = rustix::fs::statvfs(disk.path("ds").as_path()).expect("space");
    let rest = fs::File::create(disk.path("rest")).expect("creates");
    let bytes = (left.f_bfree * left.f_frsize).saturating_sub(64 << 10);
    if rustix::fs::fallocate(&rest, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
        let block = vec![1; 1 << 20];
        for size in [1 << 20, 64 << 10, 4096] {
            while std::io::Write::write_all(&mut &rest, &block[..size]).is_ok() {}
        }
    }
    let cases = [
        ("mkfs", "<FORMAT>raw</FORMAT><FS>ext4</FS><SIZE>512</SIZE>".to_owned()),
        ("mkfs", "<FORMAT>qcow2</FORMAT><FS>ext4</FS><SIZE>512</SIZE>".to_owned()),
        ("snap_revert", source_of(&image, 0)),
        ("clone", path_of(&image)),
    ];
    for (action, image) in cases {
        let ran = house.act(action, &image);
        // A file system that shares blocks needs none for a copy.
        if ran.status.success() && action != "mkfs" {
            println!("{kind} {action}: needed no space");
            continue;
        }
        let line = ran.failure(&format!("{kind} {action}"));
        println!("{kind} {action}: {line}");
        assert!(line.contains("No space left") || action == "mkfs", "{kind} {action}: {line}");
        assert_eq!(house.staged(), Vec::<String>::new());
        assert_eq!(house.content(), kept);
    }
    // What frees space works on a full disk.
    house.act("snap_delete", &source_of(&image, 1)).reply("snap_delete on a full disk");
    house.act("snap_flatten", &source_of(&image, 0)).reply("snap_flatten on a full disk");
    house.act("rm", &source_of(&image, -1)).reply("rm on a full disk");
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
}

#[test]
#[ignore = "needs root, loop devices"]
fn a_full_ext4_says_so_and_keeps_what_it_has() {
    full_disk("ext4", 64);
}

#[test]
#[ignore = "needs root, loop devices"]
fn a_full_xfs_says_so_and_keeps_what_it_has() {
    full_disk("xfs", 320);
}

#[test]
#[ignore = "needs root, loop devices"]
fn a_read_only_file_system_is_said() {
    let disk = Mounted::new("ext4", 64);
    let house = House::at(Some(&disk.path("ds")));
    let source = house.path("users/disk.raw");
    house.raw(&source, 1, 5);
    let image = house.copies();
    let kept = house.content();
    disk.remount("ro");
    let cases = [
        ("cp", path_of(&source)),
        ("mkfs", "<FORMAT>raw</FORMAT><SIZE>1</SIZE>".to_owned()),
        ("clone", path_of(&image)),
        ("rm", source_of(&image, -1)),
        ("snap_delete", source_of(&image, 0)),
        ("snap_revert", source_of(&image, 0)),
        ("snap_flatten", source_of(&image, 0)),
    ];
    for (action, image) in cases {
        let line = house.act(action, &image).failure(action);
        assert!(line.contains("Read-only file system"), "{action}: {line}");
    }
    house.act("monitor", "").reply("monitor");
    house.act("export", &source_of(&image, -1)).reply("export");
    assert_eq!(house.content(), kept);
}

/// Copies share their blocks: `cp` of a GiB of data from the same file system, and `clone`.
fn reflink(kind: &str) {
    let disk = Mounted::new(kind, 1700);
    let house = House::at(Some(&disk.path("ds")));
    let users = disk.path("users");
    fs::create_dir(&users).expect("a directory");
    let source = users.join("disk.raw");
    house.raw(&source, 1024, 5);
    rustix::fs::sync();
    let free = || {
        let space = rustix::fs::statvfs(&house.base).expect("space");
        space.f_bfree * space.f_frsize
    };
    let (data, before) = (allocated(&source), free());
    assert!(data > 700 << 20, "{data}");
    let safe = format!("<SAFE_DIRS>{}</SAFE_DIRS>", users.display());
    let document = house.document(&path_of(&source), "").replace("<TEMPLATE>", &format!("<TEMPLATE>{safe}"));
    let copied = house.call("cp", &document);
    let image = copied.source("cp");
    let cloned = house.act("clone", &path_of(&image));
    let second = cloned.source("clone");
    rustix::fs::sync();
    let taken = before.saturating_sub(free());
    println!("{kind}: cp {:?}, clone {:?}, {taken} bytes taken for 2 x {data}", copied.took, cloned.took);
    assert!(taken < 64 << 20, "{kind}: {taken} bytes were taken");
    for copy in [&image, &second] {
        let extents = Command::new("filefrag").arg("-v").arg(copy).output().expect("filefrag runs");
        assert!(String::from_utf8_lossy(&extents.stdout).contains("shared"), "{kind}: nothing is shared");
        assert_eq!(digest(copy), digest(&source));
    }
}

#[test]
#[ignore = "needs root, loop devices"]
fn xfs_shares_blocks() {
    reflink("xfs");
}

#[test]
#[ignore = "needs root, loop devices"]
fn btrfs_shares_blocks() {
    reflink("btrfs");
}

/// A house with bridges: `lab1` and `lab2` are this machine over ssh, `dead` is a port where nobody listens.
struct Bridged {
    house: House,
    lab: Sshd,
}

impl Bridged {
    fn new(agent: bool) -> Self {
        let lab = Sshd::start("");
        lab.configure("Host dead\n HostName 127.0.0.1\n Port 9\n ConnectTimeout 2\n");
        if agent {
            fs::create_dir_all(lab.path("remotes/onestore")).expect("makes");
            fs::copy(env!("CARGO_BIN_EXE_onestore"), lab.path("remotes/onestore/onestore")).expect("copies");
        }
        let mut house = House::new();
        house.env.push(("SSH".into(), format!("ssh -F {}", lab.path("ssh_config").display())));
        Self { house, lab }
    }

    fn act(&self, action: &str, image: &str, template: &str) -> house::Ran {
        let bridges = if template.contains("BRIDGE_LIST") { "" } else { "<BRIDGE_LIST>lab1 lab2</BRIDGE_LIST>" };
        self.house.call(action, &self.house.document(image, &format!("{bridges}{template}")))
    }
}

fn every_action_by_bridge(agent: bool) {
    let b = Bridged::new(agent);
    let house = &b.house;
    let file = house.path("users/disk.raw");
    house.raw(&file, 8, 5);
    let whole = digest(&file);
    // cp: plain, unpacked, converted, by way of another directory, the first bridge dead.
    let image = b.act("cp", &path_of(&file), "").source("cp");
    assert_eq!(digest(&image), whole);
    assert!(Command::new("gzip").args(["-1", "-k"]).arg(&file).status().expect("gzip").success());
    let packed = path_of(&house.path("users/disk.raw.gz"));
    let unpacked = b.act("cp", &packed, "").source("cp gzip");
    assert_eq!(digest(&unpacked), whole);
    let converted = b.act("cp", &packed, "<DRIVER>qcow2</DRIVER>");
    assert!(converted.reply("cp convert").ends_with(" qcow2"));
    assert_eq!(guest(&converted.source("cp convert")), format!("guest {whole}"));
    let stage = house.path("stage");
    let staging = format!("<STAGING_DIR>{}</STAGING_DIR>", stage.display());
    let staged = b.act("cp", &path_of(&file), &staging).source("cp staging");
    assert_eq!(digest(&staged), whole);
    assert_eq!(fs::read_dir(&stage).expect("is there").count(), 0);
    // The id, 7, falls on the dead one of two.
    let half = b.act("cp", &path_of(&file), "<BRIDGE_LIST>lab1 dead</BRIDGE_LIST>");
    assert_eq!(digest(&half.source("cp, one bridge dead")), whole);
    assert!(half.text().contains("WARN: cp: Bridge dead is left out"), "{}", half.text());
    let line = b.act("cp", &path_of(&file), "<BRIDGE_LIST>dead</BRIDGE_LIST>").failure("all dead");
    assert!(line.contains("No host of BRIDGE_LIST can be reached") && line.contains("dead"), "{line}");
    // mkfs, monitor, export.
    let made = b.act("mkfs", "<FORMAT>qcow2</FORMAT><FS>ext4</FS><SIZE>8</SIZE>", "").source("mkfs");
    let here = house.act("monitor", "").reply("monitor here");
    let there = b.act("monitor", "", "").reply("monitor there");
    let total = |text: &str| text.lines().find(|line| line.starts_with("TOTAL_MB")).map(str::to_owned);
    assert_eq!(total(&here), total(&there));
    let export = b.act("export", &source_of(&image, -1), "").reply("export");
    assert!(export.contains(&format!("ssh://lab2:{}", image.display())) && export.contains(&whole), "{export}");
    // clone: within a bridge, from one to the front-end, the other way, and between two.
    let clone = |from: &str, to: &str| {
        let template = if to.is_empty() { String::new() } else { format!("<BRIDGE_LIST>{to}</BRIDGE_LIST>") };
        let beside =
            if from.is_empty() { String::new() } else { format!("<SOURCE_BRIDGE_LIST>{from}</SOURCE_BRIDGE_LIST>") };
        let base = house.base.display().to_string();
        let ran = house.call("clone", &house.document_of(&path_of(&image), &template, &base, &beside));
        let copy = ran.source(&format!("clone {from:?} to {to:?}"));
        assert_eq!(digest(&copy), whole, "{from:?} to {to:?}");
        copy
    };
    let mut images = vec![clone("lab1", "lab1"), clone("lab1", ""), clone("", "lab1"), clone("lab1", "lab2")];
    images.extend([unpacked, converted.source("converted"), staged, half.source("half"), made, image]);
    for image in &images {
        b.act("rm", &source_of(image, -1), "").reply("rm");
    }
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    // Snapshots.
    let current = |house: &House| house.content().get("abc").cloned();
    let image = house.copies();
    let first = digest(&house.base.join("abc.snap/0"));
    b.act("snap_revert", &source_of(&image, 0), "").reply("snap_revert a copy");
    assert_eq!(current(house), Some(first.clone()));
    b.act("snap_delete", &source_of(&image, 1), "").reply("snap_delete a copy");
    b.act("snap_flatten", &source_of(&image, 0), "").reply("snap_flatten a copy");
    assert_eq!((current(house), house.content().len()), (Some(first), 1));
    b.act("rm", &source_of(&image, -1), "").reply("rm");
    let image = house.chain();
    let top = guest(&house.base.join("abc.snap/2"));
    b.act("snap_delete", &source_of(&image, 1), "").reply("snap_delete of a chain");
    assert_eq!(guest(&house.base.join("abc.snap/2")), top);
    b.act("snap_flatten", &source_of(&image, 2), "").reply("snap_flatten of a chain");
    assert_eq!((current(house), house.content().len()), (Some(top), 1));
    b.act("rm", &source_of(&image, -1), "").reply("rm");
    let image = house.chain();
    let first = guest(&house.base.join("abc.snap/0"));
    b.act("snap_revert", &source_of(&image, 0), "").reply("snap_revert a chain");
    assert_eq!(guest(&house.base.join("abc.snap/2")), first);
    assert_eq!(house.staged(), Vec::<String>::new());
    assert!(within(10, || b.lab.sessions().is_empty()), "sessions stay");
}

#[test]
#[ignore = "needs root, sshd"]
fn every_action_works_by_bridges_with_sh() {
    every_action_by_bridge(false);
}

#[test]
#[ignore = "needs root, sshd"]
fn every_action_works_by_bridges_with_the_agent() {
    every_action_by_bridge(true);
}

/// The connection dies in the middle of a stream, or we do.
fn cut_off(agent: bool, kill_us: bool, staging: bool) {
    let b = Bridged::new(agent);
    let house = &b.house;
    let file = house.path("users/disk.raw");
    house.raw(&file, 8, 5);
    let stage = house.path("stage");
    fs::create_dir(&stage).expect("a directory");
    let more = if staging { format!("<STAGING_DIR>{}</STAGING_DIR>", stage.display()) } else { String::new() };
    let template = format!("<BRIDGE_LIST>lab1 lab2</BRIDGE_LIST><LIMIT_TRANSFER_BW>1M</LIMIT_TRANSFER_BW>{more}");
    let started = house.start_call("cp", &house.document(&path_of(&file), &template));
    let landed = || if staging { fs::read_dir(&stage).expect("is there").count() } else { house.staged().len() };
    assert!(within(20, || landed() > 0), "nothing arrives");
    std::thread::sleep(Duration::from_millis(300));
    if kill_us {
        started.signal(rustix::process::Signal::KILL);
        assert!(house::was_killed(&finish(started)));
    } else {
        b.lab.cut_connections();
        let ran = finish(started);
        let line = ran.failure("cut off");
        println!("agent {agent}, staging {staging}: {line}");
        assert!(line.contains("lab2"), "{line}");
    }
    assert!(within(15, || b.lab.sessions().is_empty()), "the far side lives on");
    assert_eq!(house.content().len(), 0, "half an image has a name");
    let image = b.act("cp", &path_of(&file), &more).source("again");
    assert_eq!(digest(&image), digest(&file));
    assert_eq!((house.staged(), house.content().len()), (vec![], 1));
    assert_eq!(fs::read_dir(&stage).expect("is there").count(), 0, "a stray in STAGING_DIR");
    assert_eq!(house.processes_left(10).iter().filter(|line| !line.contains("sshd")).count(), 0);
}

#[test]
#[ignore = "needs root, sshd"]
fn a_bridge_that_dies_in_the_middle_leaves_nothing_behind() {
    for agent in [false, true] {
        for staging in [false, true] {
            cut_off(agent, false, staging);
        }
    }
}

#[test]
#[ignore = "needs root, sshd"]
fn an_action_that_is_killed_in_the_middle_leaves_nothing_on_a_bridge() {
    for agent in [false, true] {
        for staging in [false, true] {
            cut_off(agent, true, staging);
        }
    }
}

/// `qemu-img` is killed while it takes a layer out from under another: whatever it had written, nothing is lost.
#[test]
#[ignore = "needs root, strace"]
fn a_rebase_that_is_killed_loses_nothing() {
    // The main thread, between the writes that others do for it; and those themselves. How many calls there are depends
    // on the machine (`strace` counts for each thread), that there is a first write and a first sync does not.
    for (name, threads, certain) in
        [("ppoll", "", false), ("write", "", false), ("pwrite64", "-f", true), ("fdatasync", "-f", true)]
    {
        let mut kills = 0;
        for count in 1..=60 {
            let mut house = House::new();
            let image = house.chain();
            let kept = house.content();
            let strace =
                format!("strace {threads} -qq -o /dev/null -e inject={name}:signal=KILL:when={count} qemu-img");
            house.env.push(("QEMU_IMG".into(), strace));
            let ran = house.act("snap_delete", &source_of(&image, 1));
            let about = format!("{name} {count}");
            if ran.status.success() {
                break;
            }
            kills += 1;
            ran.failure(&about);
            assert_eq!(house.content(), kept, "{about}");
            house.env.clear();
            house.act("snap_delete", &source_of(&image, 1)).reply(&about);
            assert_eq!(house.content().get("abc.snap/2"), kept.get("abc.snap/2"), "{about}");
        }
        println!("killed {kills} times at {name}");
        assert!(kills > 0 || !certain, "never killed at {name}");
    }
}

/// So that nobody forgets that the labs need these.
#[test]
#[ignore = "needs root"]
fn the_tools_of_the_lab_are_there() {
    for tool in ["strace", "mkfs.xfs", "mkfs.btrfs", "filefrag", "qemu-img", "qemu-io", "losetup"] {
        let found: Option<PathBuf> = which::which_in(tool, Some(onestore::exec::process::SEARCH_PATH), "/").ok();
        assert!(found.is_some(), "{tool} is not installed");
    }
}
