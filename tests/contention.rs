//! 64 actions at once on one image datastore and one VM directory, of all kinds: what comes of them is what comes of some
//! order of them, nothing is lost, and nothing is left.
//!
//! What holds for every order is compared, so that no order has to be found: images that were registered are there
//! with their content, images that were removed are not; a disk is as large as the largest that was granted, and whoever
//! was refused asked for less; a disk that snapshots were made of shows what it showed, or what the snapshot holds that
//! it was set back to.
//!
//! `ONESTORE_CONTENTION=N` plays N rounds instead of 1, `ONESTORE_BIN=…` with another build of the binary.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use base64::Engine as _;

#[path = "hostile/ground.rs"]
#[allow(dead_code)]
mod ground;

use ground::Ground;

/// One of the 64.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// Registers the image number n.
    Register(u32),
    /// Copies the shared image in the datastore.
    Copy,
    /// Removes the image `old<n>`.
    Remove(u32),
    Space,
    SizeOf,
    /// Copies the shared image to a disk.
    Clone,
    /// Saves the raw disk as `saved<n>`.
    Save(u32),
    SnapCreate(u32),
    SnapDelete(u32),
    SnapRevert,
    /// Enlarges the raw disk to this many MiB.
    Resize(u32),
    /// Enlarges the disk with snapshots.
    ResizeChain(u32),
    Context,
    Volatile,
    Link,
    Unlink,
}

/// What is done in a round: 64 actions. In every other round the disk is set back as well.
fn acts(round: u64) -> Vec<Act> {
    let mut acts = Vec::new();
    acts.extend((0..8).map(Act::Register));
    acts.extend([const { Act::Copy }; 5]);
    acts.extend((0..8).map(|n| Act::Remove(n / 2)));
    acts.extend([const { Act::Space }; 3]);
    acts.extend([const { Act::SizeOf }; 3]);
    acts.extend([const { Act::Clone }; 3]);
    acts.extend((0..4).map(Act::Save));
    acts.extend((1..7).map(Act::SnapCreate));
    acts.extend([Act::SnapDelete(0), Act::SnapDelete(0), Act::SnapDelete(1), Act::SnapDelete(2)]);
    acts.extend((2..6).map(Act::Resize));
    acts.extend([const { Act::Context }; 3]);
    acts.extend([const { Act::Volatile }; 3]);
    acts.extend([const { Act::Link }; 2]);
    acts.extend([const { Act::Unlink }; 2]);
    acts.push(Act::Register(8));
    if round.is_multiple_of(2) {
        acts.extend([const { Act::ResizeChain(3) }; 3]);
        acts.extend([const { Act::ResizeChain(2) }; 2]);
    } else {
        acts.extend([const { Act::SnapRevert }; 5]);
    }
    assert_eq!(acts.len(), 64);
    acts
}

impl Act {
    fn name(&self) -> String {
        format!("{self:?}").split('(').next().unwrap().to_owned()
    }

    /// The words of the call, and what stands on its standard input.
    fn call(&self, ground: &Ground) -> (Vec<String>, String) {
        let at = |below: &str| ground.text(below);
        let disk = |n: u32| format!("node1:{}", at(&format!("ds/103/7/disk.{n}")));
        let fs = |action: &str, image: &str| {
            let xml = format!(
                "<DS_DRIVER_ACTION_DATA><IMAGE><ID>3</ID>{image}</IMAGE><DATASTORE><ID>1</ID><TYPE>0</TYPE><BASE_PATH>{}\
                 </BASE_PATH><TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
                at("ds/1"),
                at("users")
            );
            (vec!["ds".to_owned(), "fs".to_owned(), action.to_owned(), "3".to_owned()], xml)
        };
        let tm = |action: &str, words: &[String]| {
            let mut all = vec!["tm".to_owned(), "qcow2".to_owned(), action.to_owned()];
            all.extend_from_slice(words);
            (all, String::new())
        };
        let word = |text: &str| text.to_owned();
        match self {
            Self::Register(n) => fs("cp", &format!("<PATH>{}</PATH>", at(&format!("users/new{n}")))),
            Self::Copy => fs("clone", &format!("<PATH>{}</PATH><FORMAT>qcow2</FORMAT><SIZE>1</SIZE>", at("ds/1/abc"))),
            Self::Remove(n) => fs("rm", &format!("<SOURCE>{}</SOURCE>", at(&format!("ds/1/old{n}")))),
            Self::Space => fs("monitor", ""),
            Self::SizeOf => fs("stat", &format!("<PATH>{}</PATH>", at("users/in.raw"))),
            Self::Clone => tm("clone", &[format!("fe:{}", at("ds/1/abc")), disk(1), word("7"), word("1")]),
            Self::Save(n) => tm("cpds", &[disk(2), at(&format!("ds/1/saved{n}")), word("-1"), word("7"), word("1")]),
            Self::SnapCreate(k) => tm("snap_create", &[disk(0), k.to_string(), word("7"), word("1")]),
            Self::SnapDelete(k) => tm("snap_delete", &[disk(0), k.to_string(), word("7"), word("1")]),
            Self::SnapRevert => tm("snap_revert", &[disk(0), word("0"), word("7"), word("1")]),
            Self::Resize(mib) => tm("resize", &[disk(2), mib.to_string(), word("7"), word("103")]),
            Self::ResizeChain(mib) => tm("resize", &[disk(0), mib.to_string(), word("7"), word("1")]),
            Self::Context => tm("context", &[at("users/in.raw"), disk(9), word("7"), word("103")]),
            Self::Volatile => tm("mkimage", &[word("2"), word("raw"), disk(6), word("7"), word("103")]),
            Self::Link => tm("ln", &[format!("fe:{}", at("ds/1/abc")), disk(3), word("7"), word("1")]),
            Self::Unlink => tm("delete", &[disk(3), word("7"), word("103")]),
        }
    }
}

/// Bytes that are this image's and no other's.
fn content(n: u32) -> Vec<u8> {
    (0..16_384u32).flat_map(|at| (at ^ n.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B).to_le_bytes()).collect()
}

/// What a guest reads of a disk.
fn guest(ground: &Ground, path: &Path) -> Vec<u8> {
    let out = ground.path("tmp/guest");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&out);
    let ran = convert.output().unwrap();
    assert!(ran.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&ran.stderr));
    let mut bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    // Room that a disk has gained.
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn write(path: &Path, command: &str) {
    let ran = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(path).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

fn virtual_size(path: &Path) -> u64 {
    let ran = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(path).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

/// What every round begins with.
struct Start {
    /// What the disk with snapshots shows, and what snapshot 0 holds.
    now: Vec<u8>,
    then: Vec<u8>,
    image: Vec<u8>,
}

/// Lays out the beginning of all rounds, once: what is new is put back by [`Ground::reset`].
fn prepare(ground: &Ground) -> Start {
    for n in 0..9 {
        fs::write(ground.path(&format!("users/new{n}")), content(n)).unwrap();
    }
    for n in 0..4 {
        fs::write(ground.path(&format!("ds/1/old{n}")), content(100 + n)).unwrap();
    }
    write(&ground.path("ds/1/abc"), "write -q -P 1 0 64k");
    write(&ground.path("ds/103/7/disk.0.snap/0"), "write -q -P 2 64k 64k");
    let then = guest(ground, &ground.path("ds/103/7/disk.0.snap/0"));
    write(&ground.path("ds/103/7/disk.0.snap/1"), "write -q -P 3 0 32k");
    ground.settle();
    Start { now: guest(ground, &ground.path("ds/103/7/disk.0")), then, image: guest(ground, &ground.path("ds/1/abc")) }
}

fn run(ground: &Ground, act: &Act) -> Output {
    let (words, xml) = act.call(ground);
    let mut child = ground.command(&words).spawn().unwrap();
    let input = base64::engine::general_purpose::STANDARD.encode(xml);
    // An action that takes no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Plays a round; gives how many of each kind succeeded, of how many.
fn round(ground: &Arc<Ground>, start: &Start, number: u64) -> BTreeMap<String, (u32, u32)> {
    ground.reset();
    let acts = acts(number);
    let barrier = Arc::new(Barrier::new(acts.len()));
    let threads: Vec<_> = acts
        .into_iter()
        .map(|act| {
            let (ground, barrier) = (Arc::clone(ground), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                let ran = run(&ground, &act);
                (act, ran)
            })
        })
        .collect();
    let done: Vec<(Act, Output)> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    judge(ground, start, &done, number);
    let mut counts = BTreeMap::new();
    for (act, ran) in &done {
        let count: &mut (u32, u32) = counts.entry(act.name()).or_default();
        count.0 += u32::from(ran.status.success());
        count.1 += 1;
    }
    counts
}

fn judge(ground: &Ground, start: &Start, done: &[(Act, Output)], number: u64) {
    let said = |ran: &Output| String::from_utf8_lossy(&ran.stderr).into_owned();
    let won = |wanted: &Act| done.iter().any(|(act, ran)| act == wanted && ran.status.success());
    let mut images: BTreeSet<PathBuf> = ["abc", "other"].map(|name| ground.path("ds/1").join(name)).into();
    for (act, ran) in done {
        let about = format!("round {number}, {act:?}: {}", said(ran));
        let reply = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.code().is_some() && !about.contains("panicked"), "{about}");
        let image = || PathBuf::from(reply.split_whitespace().next().unwrap_or_default());
        match act {
            Act::Register(n) => {
                assert!(ran.status.success(), "{about}");
                assert_eq!(fs::read(image()).unwrap(), content(*n), "{about}");
                assert!(images.insert(image()), "two images have one name: {about}");
            }
            Act::Copy => {
                assert!(ran.status.success(), "{about}");
                assert_eq!(guest(ground, &image()), start.image, "{about}");
                assert!(images.insert(image()), "two images have one name: {about}");
            }
            // One of two is the first; the other one is told that it is gone.
            Act::Remove(_) => assert!(
                won(act) && (ran.status.success() || about.contains("No such file") || about.contains("exist")),
                "{about}"
            ),
            Act::Space => assert!(ran.status.success() && reply.contains("FREE_MB="), "{about}"),
            Act::SizeOf => assert!(ran.status.success() && reply.trim() == "1", "{about}"),
            Act::Save(n) => {
                assert!(ran.status.success(), "{about}");
                let path = ground.path(&format!("ds/1/saved{n}"));
                let bytes = fs::read(&path).unwrap();
                assert!(bytes[..64 << 10].iter().all(|byte| *byte == 9), "{about}");
                assert!(bytes[64 << 10..].iter().all(|byte| *byte == 0), "{about}");
                images.insert(path);
            }
            Act::Resize(mib) | Act::ResizeChain(mib) if !ran.status.success() => {
                let larger = done.iter().any(|(other, ran)| {
                    let size = match (act, other) {
                        (Act::Resize(_), Act::Resize(size)) | (Act::ResizeChain(_), Act::ResizeChain(size)) => *size,
                        _ => 0,
                    };
                    ran.status.success() && size > *mib
                });
                assert!(larger && (about.contains("smaller") || about.contains("shrink")), "{about}");
            }
            Act::SnapCreate(_) | Act::SnapDelete(_) => {
                assert!(ran.status.success() || about.contains("Error "), "{about}");
            }
            // Not where it was deleted before.
            Act::SnapRevert => assert!(ran.status.success() || won(&Act::SnapDelete(0)), "{about}"),
            Act::Clone
            | Act::Context
            | Act::Volatile
            | Act::Link
            | Act::Unlink
            | Act::Resize(_)
            | Act::ResizeChain(_) => {
                assert!(ran.status.success(), "{about}");
            }
        }
    }
    let about = format!("round {number}");
    let has = |below: &str| ground.path(below).symlink_metadata().is_ok();
    // The datastore: what was registered, and nothing else. A persistent image has its layers beside it.
    let mut found: BTreeSet<PathBuf> =
        fs::read_dir(ground.path("ds/1")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.remove(&ground.path("ds/1/abc.snap"));
    assert_eq!(found, images, "{about}");
    assert_eq!(guest(ground, &ground.path("ds/1/abc")), start.image, "{about}: the shared image");
    // The raw disk: the largest that was granted.
    let most = (2..6).filter(|mib| won(&Act::Resize(*mib))).max().unwrap();
    assert_eq!(fs::metadata(ground.path("ds/103/7/disk.2")).unwrap().len(), u64::from(most) << 20, "{about}");
    assert!(fs::read(ground.path("ds/103/7/disk.2")).unwrap()[..64 << 10].iter().all(|byte| *byte == 9), "{about}");
    // The disk with snapshots.
    let disk = ground.path("ds/103/7/disk.0");
    let reverted = won(&Act::SnapRevert);
    assert_eq!(guest(ground, &disk), if reverted { start.then.clone() } else { start.now.clone() }, "{about}");
    let checked = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&disk).status().unwrap();
    assert!(checked.success(), "{about}");
    if number.is_multiple_of(2) {
        let most = [3, 2].into_iter().filter(|mib| won(&Act::ResizeChain(*mib))).max().unwrap_or(1);
        assert_eq!(virtual_size(&disk), u64::from(most) << 20, "{about}: the disk with snapshots");
    }
    for (k, marker) in (0..8).map(|k| (k, format!("ds/103/7/disk.0.snap/{k}.current"))) {
        let layer = ground.path(&format!("ds/103/7/disk.0.snap/{k}"));
        let alive = !won(&Act::SnapDelete(k)) && (k == 0 || won(&Act::SnapCreate(k)));
        assert!(!alive || layer.exists() || has(&marker), "{about}: snapshot {k} is lost");
        if alive && k == 0 {
            assert_eq!(guest(ground, &layer), start.then, "{about}: snapshot 0");
        } else if layer.exists() {
            let shows = guest(ground, &layer);
            assert!(shows == start.now || shows == start.then, "{about}: snapshot {k}");
        }
    }
    // The other disks.
    assert_eq!(guest(ground, &ground.path("ds/103/7/disk.1")), start.image, "{about}: the clone");
    assert_eq!(fs::metadata(ground.path("ds/103/7/disk.6")).unwrap().len(), 2 << 20, "{about}: the volatile disk");
    let iso = fs::read(ground.path("ds/103/7/disk.9")).unwrap();
    assert_eq!(&iso[32_769..32_774], b"CD001", "{about}: the context");
    assert!(!has("ds/103/7/disk.3") || guest(ground, &ground.path("ds/103/7/disk.3")) == start.image, "{about}");
    let names = fs::read_dir(ground.path("ds/103/7")).unwrap().map(|entry| entry.unwrap().file_name());
    for name in names.map(|name| name.to_string_lossy().into_owned()) {
        let known = ["disk.0", "disk.1", "disk.2", "disk.3", "disk.6", "disk.9"];
        assert!(known.iter().any(|disk| *name == **disk || *name == format!("{disk}.snap")), "{about}: {name} is left");
    }
    leftovers(ground, &about);
}

/// No process, lock or temporary file.
fn leftovers(ground: &Ground, about: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    let root = ground.text("");
    loop {
        let left: Vec<String> = processes(&root);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{about}: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut todo = vec![ground.path("ds"), ground.path("tmp")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.contains(".part") && !name.starts_with(".onestore"), "{about}: {} is left", path.display());
            assert!(!path.starts_with(ground.path("tmp")), "{about}: {} is left", path.display());
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            }
        }
    }
    for entry in fs::read_dir(ground.path("locks")).unwrap() {
        let path = entry.unwrap().path();
        File::open(&path).unwrap().try_lock().unwrap_or_else(|error| panic!("{about}: {}: {error}", path.display()));
    }
}

/// Processes that have a text in their arguments, or are in a folder of that name.
fn processes(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line =
            String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(text));
        if pid != std::process::id() && (inside || line.contains(text)) {
            found.push(format!("{pid}: {line}"));
        }
    }
    found
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn sixty_four_at_once_come_to_what_some_order_of_them_comes_to() {
    let rounds = std::env::var("ONESTORE_CONTENTION").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let ground = Arc::new(Ground::new());
    ground.with_agent();
    let start = prepare(&ground);
    let before = descriptors();
    let mut all: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for number in 0..rounds {
        let begin = Instant::now();
        for (name, (won, of)) in round(&ground, &start, number) {
            let count = all.entry(name).or_default();
            *count = (count.0 + won, count.1 + of);
        }
        // A long run that is broken off is counted as far as it came.
        println!("round {} of {rounds}: {:.1} s", number + 1, begin.elapsed().as_secs_f64());
    }
    assert!(descriptors() <= before, "of the test itself");
    println!("{rounds} rounds of 64 actions: {all:?}");
}
