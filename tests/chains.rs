//! Snapshot chains with the real tools: random operations by us, and by us and upstream in turns; content is compared
//! after every one.

#[path = "chains/disk.rs"]
mod disk;

use std::io::Write;
use std::process::{Command, Stdio};

use disk::{BLOCKS, By, Disk, STARTS, Start, tool};

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).expect("small")
    }
}

fn pick(disk: &Disk, dice: &mut Dice) -> Option<u32> {
    let ids: Vec<u32> = disk.snapshots.keys().copied().collect();
    (!ids.is_empty()).then(|| ids[dice.roll(ids.len())])
}

/// Does the operation, in one of three cases after a try that was killed.
fn ours(disk: &Disk, dice: &mut Dice, plan: impl Fn(&onestore::image::chain::Chain) -> Plan) {
    if dice.roll(3) == 0 {
        let (_, chain, staged) = disk.read();
        let Ok(first) = plan(&chain) else { panic!("refused at first") };
        let all = disk.ops(&first, &staged).len();
        disk.run(&plan, Some(dice.roll(all)));
        // What was killed and is complete all the same refuses to be done twice; that is checked beside the code.
        if plan(&disk.chain()).is_err() {
            return clean(disk);
        }
    }
    disk.run(&plan, None);
    clean(disk);
}

type Plan = Result<onestore::image::chain::Plan, onestore::image::chain::Refusal>;

/// A killed run of this very process looks alive: what it staged would stay as long as the test runs.
fn clean(disk: &Disk) {
    for folder in ["0/7/.onestore", "1/.onestore"] {
        drop(std::fs::remove_dir_all(disk.root.join(folder)));
    }
}

fn sequence(start: Start, by: By, seed: u64, upstream: bool) {
    let mut disk = Disk::new(start, by);
    let mut dice = Dice(seed * 7919 + 1);
    for step in 0..14 {
        if dice.roll(2) == 0 {
            disk.write(dice.roll(BLOCKS), u8::try_from(10 + dice.roll(200)).expect("small"));
        }
        let theirs = upstream && dice.roll(2) == 0;
        let what = dice.roll(6);
        let done = match (what, pick(&disk, &mut dice)) {
            (0..=2, _) | (_, None) => {
                let k = disk.next;
                disk.next += 1;
                if theirs {
                    disk.upstream_create(k);
                } else {
                    ours(&disk, &mut dice, |chain| chain.create(k));
                }
                disk.snapshots.insert(k, disk.current.clone());
                format!("create {k}")
            }
            (3, Some(k)) => {
                if theirs {
                    disk.upstream_revert(k);
                } else {
                    ours(&disk, &mut dice, |chain| chain.revert(k));
                }
                disk.current.clone_from(&disk.snapshots[&k]);
                format!("revert {k}")
            }
            (_, Some(k)) => {
                let by_them = theirs && (if what == 4 { disk.upstream_merge(k) } else { disk.upstream_delete(k) });
                if !by_them {
                    ours(&disk, &mut dice, |chain| chain.delete(k));
                }
                disk.snapshots.remove(&k);
                format!("delete {k}")
            }
        };
        let done = format!("{start:?} {by:?} seed {seed} step {step} theirs {theirs}: {done}");
        disk.check(&done);
    }
}

#[test]
fn content_is_kept_in_process() {
    for (seed, start) in (1..).zip(STARTS) {
        sequence(start, By::Process, seed, false);
    }
}

#[test]
fn content_is_kept_by_the_shell() {
    for (seed, start) in (11..).zip(STARTS) {
        sequence(start, By::Shell, seed, false);
    }
}

#[test]
fn upstream_and_we_work_on_the_same_disk_in_turns() {
    for seed in 21..24 {
        for start in [Start::Clone, Start::Standalone, Start::Persistent, Start::Local] {
            sequence(start, By::Process, seed, true);
        }
    }
}

#[test]
fn a_chain_is_read_in_two_round_trips() {
    let mut disk = Disk::new(Start::Clone, By::Process);
    for k in 0..3 {
        disk.run(|chain| chain.create(k), None);
        disk.write(1, 30);
    }
    let (trips, chain, _) = disk.read();
    assert_eq!(trips, 2);
    assert_eq!(chain.snapshots(), [0, 1, 2]);
    // A link that leads nowhere costs two more, and is found.
    std::os::unix::fs::symlink("/nowhere", disk.names.folder().join("9")).expect("ln");
    let (trips, chain, _) = disk.read();
    assert_eq!(trips, 4);
    let found: Vec<String> =
        chain.findings().map(|finding| finding.to_string().replace(disk.root.to_str().expect("plain"), "")).collect();
    assert_eq!(found, ["/0/7/disk.0.snap/9 needs its backing file '/nowhere', which is missing"]);
}

#[test]
fn whether_a_layer_was_written_to_is_seen() {
    let mut disk = Disk::new(Start::Clone, By::Shell);
    disk.run(|chain| chain.create(0), None);
    // Killed before the link: the blank layer is taken up.
    std::fs::remove_file(&disk.names.disk).expect("rm");
    std::os::unix::fs::symlink("disk.0.snap/0", &disk.names.disk).expect("ln");
    assert_eq!(disk.chain().create(0).expect("fine").steps.len(), 1);
    std::fs::remove_file(&disk.names.disk).expect("rm");
    std::os::unix::fs::symlink("disk.0.snap/1", &disk.names.disk).expect("ln");
    disk.write(3, 44);
    std::fs::remove_file(&disk.names.disk).expect("rm");
    std::os::unix::fs::symlink("disk.0.snap/0", &disk.names.disk).expect("ln");
    let refusal = disk.chain().create(0).expect_err("data").to_string();
    assert!(refusal.contains("holds data above"), "{refusal}");
}

#[test]
fn a_disk_that_upstream_moved_is_put_right() {
    let mut disk = Disk::new(Start::Standalone, By::Process);
    for k in 0..3 {
        disk.run(|chain| chain.create(k), None);
        disk.write(k as usize, 50);
        disk.snapshots.insert(k, disk.current.clone());
    }
    assert!(disk.upstream_delete(1));
    let (old, new) = (disk.root.join("0/7"), disk.root.join("5/7"));
    std::fs::create_dir(disk.root.join("5")).expect("mkdir");
    std::fs::rename(old, &new).expect("mv");
    disk.names = onestore::image::chain::Names::own(new.join("disk.0"));
    let refusal = disk.chain().create(3).expect_err("moved").to_string();
    assert!(refusal.contains("under another root") && refusal.contains("0/7/disk.0.snap/0"), "{refusal}");
    assert!(disk.chain().delete(0).is_err(), "2 stands on 0 all the same");
    disk.run(onestore::image::chain::Chain::repoint, None);
    disk.snapshots = std::collections::BTreeMap::new();
    let chain = disk.chain();
    assert_eq!((chain.findings().count(), chain.snapshots()), (0, vec![0, 2]));
    disk.run(|chain| chain.create(3), None);
}

#[test]
fn raw_stays_raw_whatever_the_guest_writes() {
    let disk = Disk::new(Start::Raw, By::Process);
    let overlay = disk.root.join("overlay");
    let args =
        ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", overlay.to_str().expect("plain"), "1M"];
    tool("qemu-img", &args, &disk.root);
    let mut bytes = std::fs::read(overlay).expect("readable");
    bytes.resize(1 << 20, 0);
    std::fs::write(&disk.names.disk, bytes).expect("write");
    disk.run(|chain| chain.create(0), None);
    let source = disk.chain().source(Some(0)).expect("there");
    assert_eq!((source.format, source.layered, source.virtual_size), ("raw", false, Some(1 << 20)));
}

/// Layers beside the chain of a running VM can be put elsewhere while it runs: it holds the files below for reading.
#[test]
fn a_branch_is_rebased_while_the_chain_is_open() {
    let mut disk = Disk::new(Start::Standalone, By::Process);
    for k in 0..2 {
        disk.run(|chain| chain.create(k), None);
        disk.write(k as usize, 60);
        disk.snapshots.insert(k, disk.current.clone());
    }
    disk.run(|chain| chain.revert(0), None);
    let mut holder = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&disk.names.disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io");
    let mut stdin = holder.stdin.take().expect("a pipe");
    stdin.write_all(b"write -P 61 0 64k\n").expect("write");
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(holder.stdout.take().expect("a pipe"));
    while !line.contains("wrote") {
        std::io::BufRead::read_line(&mut stdout, &mut line).expect("it answers");
    }
    // 0 <- 1 beside, 0 <- 2 open.
    let chain = vec![disk.names.disk.clone(), disk.names.folder().join("0")];
    let running = onestore::image::chain::Live { chain };
    let plan = disk.chain().delete_live(0, &running).expect("fine");
    let is_rebase =
        |one: &&onestore::image::chain::Planned| matches!(one.step, onestore::image::chain::Step::Rebase { .. });
    let rebase = plan.steps.iter().find(is_rebase).expect("the branch is put elsewhere").clone();
    let only = onestore::image::chain::Plan { steps: vec![rebase], note: None };
    let done = disk.ask(disk.ops(&only, &[]));
    drop(stdin);
    holder.wait().expect("ends");
    done.expect("the branch is rebased");
    let chain = disk.chain();
    assert_eq!(chain.source(Some(1)).map(|source| source.layered), Ok(false));
}
