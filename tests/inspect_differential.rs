//! The inspector against `qemu-img info`: headers made by qemu-img and then changed. What the inspector calls safe must
//! name no other file to qemu, whatever was changed, and be as large as qemu says.
//!
//! `ONESTORE_MUTATIONS=N` changes N headers instead of 2,400.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "inspect/hostile.rs"]
#[allow(dead_code)]
mod hostile;
#[path = "common/noise.rs"]
mod noise;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use noise::Noise;
use onestore::image::{Format, Inspection, Prefix, inspect};
use serde_json::Value;

/// Headers that are changed where nobody asks for more.
const MUTATIONS: usize = 2400;

/// An image as qemu-img makes it, in a file.
struct Seed {
    name: String,
    bytes: Vec<u8>,
}

/// Every format and variant that may be safe, and raw disks that begin like something else.
fn seeds(dir: &Path) -> Vec<Seed> {
    let secret = ["--object", "secret,id=s,data=abc"];
    let cases: [(&str, &str, &[&str]); 22] = [
        ("qcow2", "", &[]),
        ("qcow2", "compat=0.10", &[]),
        ("qcow2", "cluster_size=512", &[]),
        ("qcow2", "extended_l2=on,compression_type=zstd", &[]),
        ("qcow2", "lazy_refcounts=on", &[]),
        ("qcow2", "preallocation=metadata", &[]),
        ("qcow", "", &[]),
        ("qed", "", &[]),
        ("qed", "cluster_size=4096,table_size=1", &[]),
        ("vmdk", "subformat=monolithicSparse", &[]),
        ("vmdk", "subformat=monolithicSparse,hwversion=6", &[]),
        ("vmdk", "subformat=streamOptimized", &[]),
        ("vpc", "subformat=dynamic", &[]),
        ("vpc", "subformat=dynamic,force_size=on", &[]),
        ("vpc", "subformat=fixed,force_size=on", &[]),
        ("vhdx", "subformat=dynamic,block_size=1M,log_size=1M", &[]),
        ("vhdx", "subformat=fixed,block_size=1M,log_size=1M", &[]),
        ("vdi", "", &[]),
        ("vdi", "static=on", &[]),
        ("parallels", "", &[]),
        ("luks", "key-secret=s,iter-time=10", &secret),
        ("raw", "", &[]),
    ];
    let mut seeds = Vec::new();
    for (n, (format, options, more)) in cases.iter().enumerate() {
        let path = dir.join(format!("seed{n}"));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", format]).args(*more);
        if !options.is_empty() {
            create.args(["-o", options]);
        }
        let out = create.arg(&path).arg("2M").output().unwrap();
        assert!(out.status.success(), "{format} {options}: {}", String::from_utf8_lossy(&out.stderr));
        seeds.push(Seed { name: format!("{format} {options}"), bytes: std::fs::read(&path).unwrap() });
    }
    let texts = ["# Disk DescriptorFile\nversion=1\n", "\n# x\n version=1\n", "#\r\n\r\nversion=3\r\n", "VERSION=1\n"];
    for text in texts {
        let mut bytes = text.as_bytes().to_vec();
        bytes.extend(hostile::descriptor("monolithicFlat", "", "RW 16 FLAT \"canary\" 0\n").into_bytes());
        bytes.resize(64 << 10, 0);
        seeds.push(Seed { name: format!("text {text:?}"), bytes });
    }
    for (name, bytes) in hostile::all() {
        if bytes.len() < 8 << 20 {
            seeds.push(Seed { name: format!("hostile {name}"), bytes });
        }
    }
    seeds
}

/// What is written over a seed, and where it is cut.
struct Change {
    patches: Vec<(usize, Vec<u8>)>,
    cut: Option<usize>,
}

const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    16,
    64,
    72,
    104,
    112,
    512,
    513,
    4096,
    65536,
    1 << 20,
    1 << 31,
    u32::MAX as u64,
    u64::MAX,
];

/// Kinds of changes: noise, fields, references in the places of each format, pieces of hostile images, an end that is
/// missing.
fn change(seed: &Seed, canary: &str, pieces: &[(&str, Vec<u8>)], noise: &mut Noise) -> Change {
    let len = seed.bytes.len();
    let mut change = Change { patches: Vec::new(), cut: None };
    let mut put = |at: usize, bytes: Vec<u8>| {
        if at < len {
            let n = bytes.len().min(len - at);
            change.patches.push((at, bytes[..n].to_vec()));
        }
    };
    let header = *noise.one_of(&[64, 128, 512, 1024, 2048, 70_000, len.max(1)]);
    for _ in 0..=noise.below(3) {
        match noise.below(12) {
            0 | 1 => put(noise.below(header), vec![noise.next().to_be_bytes()[0]]),
            2 => put(noise.below(header), vec![1 << noise.below(8)]),
            3 => put(
                noise.below(header) / 4 * 4,
                u32::try_from(*noise.one_of(&NUMBERS) & 0xFFFF_FFFF).unwrap().to_be_bytes().to_vec(),
            ),
            4 => put(
                noise.below(header) / 4 * 4,
                u32::try_from(*noise.one_of(&NUMBERS) & 0xFFFF_FFFF).unwrap().to_le_bytes().to_vec(),
            ),
            5 => put(noise.below(header) / 8 * 8, noise.one_of(&NUMBERS).to_be_bytes().to_vec()),
            6 => put(noise.below(header) / 8 * 8, noise.one_of(&NUMBERS).to_le_bytes().to_vec()),
            7 => {
                // A backing name as qcow and qcow2 have it.
                let at = *noise.one_of(&[48, 72, 104, 112, 120, 200, 400, 511, 1000, 65_000]);
                put(at, canary.as_bytes().to_vec());
                put(8, (at as u64).to_be_bytes().to_vec());
                put(16, u32::try_from(canary.len()).unwrap().to_be_bytes().to_vec());
            }
            8 => {
                // An extension of qcow2, or a reference of QED.
                let kind: u32 =
                    *noise.one_of(&[0xE279_2ACA, 0x4441_5441, 0x6803_F857, 0x2385_2875, 0x0537_BE77, 0x1234_5678]);
                let extension = [
                    &kind.to_be_bytes()[..],
                    &u32::try_from(canary.len()).unwrap().to_be_bytes(),
                    canary.as_bytes(),
                    &[0; 16],
                ];
                put(*noise.one_of(&[72, 104, 112]), extension.concat());
                put(79, vec![*noise.one_of(&[0, 4, 8, 16, 32])]);
                if noise.below(2) == 0 {
                    put(64, canary.as_bytes().to_vec());
                    put(16, vec![*noise.one_of(&[0, 1, 4, 5, 7])]);
                    put(56, [64u32.to_le_bytes(), u32::try_from(canary.len()).unwrap().to_le_bytes()].concat());
                }
            }
            9 => {
                // Descriptor lines where VMDK looks for them.
                let line = match noise.below(4) {
                    0 => format!("parentFileNameHint=\"{canary}\"\n"),
                    1 => format!("RW 4096 FLAT \"{canary}\" 0\n"),
                    2 => format!("createType=\"monolithicFlat\"\nRW 4096 FLAT \"{canary}\" 0\n"),
                    _ => format!("parentCID=12345678\nparentFileNameHint=\"{canary}\"\n"),
                };
                let at = *noise.one_of(&[512, 512 + 30, 512 + 100, 512 + 200, 512 + 300, 1024]);
                put(at, line.into_bytes());
                if noise.below(3) == 0 {
                    put(12, vec![0; 8]);
                }
            }
            10 => {
                let (_, piece) = noise.one_of(pieces);
                let from = noise.below(piece.len().min(1024));
                let most = *noise.one_of(&[8, 64, 512, 4096]);
                put(from, piece[from..piece.len().min(from + most)].to_vec());
            }
            _ => {
                change.cut = Some(*noise.one_of(&[
                    0,
                    1,
                    63,
                    64,
                    72,
                    104,
                    512,
                    1024,
                    len / 2,
                    len.saturating_sub(1),
                    len.saturating_sub(512),
                ]));
            }
        }
    }
    change.cut = change.cut.filter(|&cut| cut < len);
    change
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        for (at, patch) in &self.patches {
            bytes[*at..*at + patch.len()].copy_from_slice(patch);
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut);
        }
    }
}

/// What `qemu-img info` says, if it opens the image at all: within limits, and only this file is there to be opened.
fn qemu(path: &Path, format: Option<&str>) -> Option<Value> {
    let mut command = Command::new("prlimit");
    command.args(["--as=8589934592", "--cpu=10", "--", "qemu-img", "info", "-U", "--output=json"]);
    if format.is_some_and(|format| format == "luks") {
        // Without the secret, and qemu then does not ask for it.
        command.args(["--object", "secret,id=s,data=abc"]);
    }
    if let Some(format) = format {
        command.args(["-f", format]);
    }
    let out = command.arg(path).current_dir(path.parent().unwrap()).output().unwrap();
    out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
}

/// Names of files besides the image's own in an answer of qemu, wherever they stand in it.
fn names(answer: &Value, own: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![answer];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    let naming =
                        ["filename", "full-backing-filename", "backing-filename", "data-file", "backing-image"];
                    match value {
                        Value::String(name) if naming.contains(&key.as_str()) && name != own => {
                            found.push(format!("{key}={name}"));
                        }
                        value => open.push(value),
                    }
                }
            }
            Value::Array(values) => open.extend(values),
            _ => {}
        }
    }
    found
}

/// What is wrong with calling this image safe; nothing where qemu agrees or does not open it.
fn wrong(found: &Inspection, path: &Path) -> Option<String> {
    let own = path.to_str().unwrap();
    let probed = qemu(path, None);
    let as_found = match &probed {
        Some(answer) if answer["format"] == found.format.name() => probed.clone(),
        _ => qemu(path, Some(found.format.name())),
    };
    for answer in [&probed, &as_found].into_iter().flatten() {
        let names = names(answer, own);
        if !names.is_empty() {
            return Some(format!("qemu names {names:?} as {}", answer["format"]));
        }
    }
    // qemu does not know LUKS 2, nor a fixed VHD by its end.
    let tolerated = found.format == Format::Luks || found.variant.as_deref() == Some("fixed");
    let probed_as = probed.as_ref().and_then(|answer| answer["format"].as_str()).unwrap_or(found.format.name());
    if probed_as != found.format.name() && !tolerated {
        return Some(format!("qemu takes it for {probed_as}"));
    }
    let size = as_found.as_ref().and_then(|answer| answer["virtual-size"].as_u64())?;
    // qemu counts whole sectors, up or down.
    let ours = found.virtual_size?;
    (size.abs_diff(ours) >= 512 && !tolerated).then(|| format!("qemu says it has {size} bytes, not {ours}"))
}

/// Files in the image's directory, and sockets, that a conversion opens besides the image; nothing where strace(1) may
/// not trace.
fn opened(format: Format, path: &Path) -> Option<Vec<String>> {
    let log = path.with_extension("trace");
    let (own, dir) = (path.to_str().unwrap(), path.parent().unwrap().to_str().unwrap());
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-s", "4096", "-e", "trace=open,openat,connect", "-e", "signal=none", "-o"]).arg(&log);
    command.args(["prlimit", "--as=8589934592", "--cpu=10", "--fsize=268435456", "--"]);
    command.args(["qemu-img", "convert", "-f", format.name(), "-O", "raw", own, &format!("{own}.out")]);
    command.output().ok()?;
    let trace = std::fs::read_to_string(&log).ok().filter(|trace| trace.contains(own))?;
    let foreign = |line: &&str| line.contains("connect(") || (line.contains(dir) && !line.contains(own));
    Some(trace.lines().filter(foreign).map(str::to_owned).collect())
}

#[test]
fn what_is_safe_names_nothing_to_qemu() {
    let wanted = std::env::var("ONESTORE_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(MUTATIONS);
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    std::fs::write(&canary, vec![7; 65536]).unwrap();
    let canary = canary.to_str().unwrap().to_owned();
    let seeds = seeds(dir.path());
    let pieces = hostile::all();
    let (next, safe) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrongs: Mutex<BTreeMap<usize, String>> = Mutex::default();
    let work = |worker: usize| {
        let file: PathBuf = dir.path().join(format!("work{worker}"));
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= wanted {
                return;
            }
            let mut noise = Noise(n as u64 * 0x1_0000_0001);
            let seed = &seeds[n % seeds.len()];
            let change = change(seed, &canary, &pieces, &mut noise);
            let mut bytes = seed.bytes.clone();
            change.apply(&mut bytes);
            let found = inspect(&mut Prefix::whole(&bytes)).unwrap();
            if !found.verdict.is_safe() {
                continue;
            }
            let number = safe.fetch_add(1, Ordering::Relaxed);
            let target = File::create(&file).unwrap();
            target.write_all_at(&bytes, 0).unwrap();
            drop(target);
            // Slow, so of some only.
            let traced = (number % 16 == 0).then(|| opened(found.format, &file)).flatten().unwrap_or_default();
            let traced = traced.first().map(|line| format!("qemu opens {line}"));
            if let Some(why) = wrong(&found, &file).or(traced) {
                let text =
                    format!("{} {:?}: {why}; ours: {} {:?}", seed.name, change.cut, found.format, change.patches);
                wrongs.lock().unwrap().insert(n, text);
            }
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let work = &work;
            scope.spawn(move || work(worker));
        }
    });
    let (wrongs, safe) = (wrongs.into_inner().unwrap(), safe.into_inner());
    println!("{wanted} headers, {safe} of them safe");
    for (n, text) in &wrongs {
        println!("{n}: {text}");
    }
    assert!(wrongs.is_empty(), "{} of {safe} are not what the inspector says", wrongs.len());
    // Neither all nor nothing is refused.
    assert!(safe * 8 > wanted && safe * 10 < wanted * 9, "{safe} of {wanted} are safe");
}

#[test]
fn the_judge_sees_every_kind_of_reference() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    std::fs::write(&canary, vec![7; 1 << 20]).unwrap();
    let canary = canary.to_str().unwrap();
    let backing = |name: &str| hostile::Qcow2 { backing: name.as_bytes().to_vec(), ..hostile::Qcow2::default() };
    let data = hostile::Qcow2 { data_file: Some(canary.as_bytes().to_vec()), ..hostile::Qcow2::default() };
    let cases = [
        ("qcow2", backing(canary).build()),
        ("qcow2 data file", data.build()),
        ("qed", hostile::qed(1, canary.as_bytes())),
        ("qcow", hostile::qcow(canary.as_bytes(), 12, 1 << 20)),
        ("vmdk", hostile::descriptor("monolithicFlat", "", &format!("RW 2048 FLAT \"{canary}\" 0\n")).into_bytes()),
        (
            "vmdk capacity",
            hostile::vmdk(
                0,
                1,
                40,
                &hostile::descriptor("monolithicFlat", "", &format!("RW 2048 FLAT \"{canary}\" 0\n")),
            ),
        ),
    ];
    for (name, bytes) in cases {
        let path = dir.path().join("image");
        std::fs::write(&path, &bytes).unwrap();
        let answer = qemu(&path, None).unwrap_or_else(|| panic!("{name}: qemu does not open it"));
        assert!(!names(&answer, path.to_str().unwrap()).is_empty(), "{name}: {answer}");
        assert!(!inspect(&mut Prefix::whole(&bytes)).unwrap().verdict.is_safe(), "{name}");
    }
}
