//! What comes in may not grow, reach out or be swapped: conversions of every format, bombs, and the programs' limits.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "inspect/hostile.rs"]
#[allow(dead_code)]
mod hostile;
#[path = "faults/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "transfer/server.rs"]
#[allow(dead_code)]
mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use house::{House, digest};
use server::{Length, Reply, Server};

/// The document of an image at `path`, `size` MiB granted.
fn granted(path: &Path, size: u64) -> String {
    format!("<PATH>{}</PATH><SIZE>{size}</SIZE>", path.display())
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// What is in an image, as raw data without what a format rounds up.
fn content(path: &Path, format: &str, len: u64) -> String {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let (from, to) = (path.to_str().unwrap(), raw.path().to_str().unwrap());
    run("qemu-img", &["convert", "-f", format, "-O", "raw", from, to]);
    fs::File::options().write(true).open(raw.path()).unwrap().set_len(len).unwrap();
    digest(raw.path())
}

/// A program that stands for `qemu-img`: a script, the real one as `$REAL`.
fn instead_of_qemu_img(house: &mut House, script: &str) {
    let program = house.path("home/qemu-img");
    fs::write(&program, format!("#!/bin/sh\nREAL=/usr/bin/qemu-img\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    house.env.push(("QEMU_IMG".into(), program.display().to_string()));
}

const FORMATS: [(&str, &str); 15] = [
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "compat=0.10"),
    ("qcow2", "compression_type=zstd,extended_l2=on"),
    ("qcow", ""),
    ("qed", ""),
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=streamOptimized"),
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("parallels", ""),
];

#[test]
fn every_format_comes_in_and_is_converted() {
    let mut house = House::new();
    let log = house.path("home/log");
    instead_of_qemu_img(
        &mut house,
        &format!("echo \"$@\" >>{0}; cat /proc/self/limits >>{0}\nexec $REAL \"$@\"", log.display()),
    );
    let plain = house.path("users/plain");
    house.raw(&plain, 4, 5);
    let whole = digest(&plain);
    for (n, (format, options)) in FORMATS.into_iter().enumerate() {
        let source = house.path(&format!("users/{n}.{format}"));
        let (from, to) = (plain.to_str().unwrap(), source.to_str().unwrap());
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        run("qemu-img", &[&args[..], &[from, to]].concat());
        for driver in ["", "qcow2", "raw"] {
            let about = format!("{format} {options} to {driver:?}");
            let _ = fs::remove_file(&log);
            let template = if driver.is_empty() { String::new() } else { format!("<DRIVER>{driver}</DRIVER>") };
            let ran = house.call("cp", &house.document(&granted(&source, 4), &template));
            let reply = ran.reply(&about);
            // The end of a fixed VHD is no part of the disk, but nobody who looks at its beginning knows.
            let seen = if options.starts_with("subformat=fixed,") { "raw" } else { format };
            let now = if driver.is_empty() { seen } else { driver };
            assert!(reply.ends_with(&format!(" {now}")), "{about}: {reply}");
            let image = ran.source(&about);
            assert_eq!(content(&image, now, 4 << 20), whole, "{about}");
            fs::remove_file(&image).unwrap();

            // The program was told the format, saw the judged file in the staging directory only, and was limited.
            let Ok(said) = fs::read_to_string(&log) else {
                assert!(now == seen, "{about}: not converted");
                continue;
            };
            let staging = house.base.join(".onestore");
            let call = said.lines().next().unwrap();
            let begin = format!("convert -q -f {seen} -O {driver} {}/", staging.display());
            assert!(call.starts_with(&begin), "{about}: {call}");
            assert_eq!(
                call.split(' ')
                    .filter(|word| word.contains('/') && !word.starts_with(staging.to_str().unwrap()))
                    .count(),
                0,
                "{call}"
            );
            let limit = |name: &str| {
                let line = said.lines().find(|line| line.starts_with(name)).unwrap();
                line[name.len()..].split_whitespace().next().unwrap().parse::<u64>().unwrap()
            };
            assert_eq!(limit("Max cpu time"), 12 * 3600);
            assert_eq!(limit("Max address space"), 8 << 30);
            let most = limit("Max file size");
            assert!((4 << 20..4 << 20 | 80 << 20).contains(&most), "{about}: {most}");
        }
    }
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
}

#[test]
fn every_hostile_image_is_refused_before_a_program_runs() {
    let mut house = House::new();
    let ran_one = house.path("home/ran");
    instead_of_qemu_img(&mut house, &format!("echo \"$@\" >>{}; exec $REAL \"$@\"", ran_one.display()));
    let file = house.path("users/image");
    for (n, (name, bytes)) in hostile::all().into_iter().enumerate() {
        fs::write(&file, &bytes).unwrap();
        let driver = ["", "<DRIVER>raw</DRIVER>", "<DRIVER>qcow2</DRIVER>"][n % 3];
        // Also where its beginning is not its beginning yet.
        if n % 2 == 1 {
            run("sh", &["-c", "gzip -1 <\"$0\" >\"$0.gz\" && mv \"$0.gz\" \"$0\"", file.to_str().unwrap()]);
        }
        let line = house.call("cp", &house.document(&granted(&file, 1 << 20), driver)).failure(name);
        assert!(line.contains("refused: "), "{name}: {line}");
        assert_eq!((house.staged(), house.content().len()), (vec![], 0), "{name}");
    }
    assert!(!ran_one.exists(), "{}", fs::read_to_string(&ran_one).unwrap());
}

#[test]
fn a_program_that_takes_too_much_fails_and_leaves_nothing() {
    // Address space, and the size of the file that it writes: the last word of the call.
    let greedy = [
        ("exec dd if=/dev/zero of=/dev/null bs=9G count=1", "memory"),
        ("for file; do :; done; exec dd if=/dev/zero of=\"$file\" bs=1M count=300", ""),
    ];
    for (script, says) in greedy {
        let mut house = House::new();
        instead_of_qemu_img(&mut house, script);
        let source = house.path("users/disk");
        house.raw(&source, 2, 5);
        let ran = house.call("cp", &house.document(&granted(&source, 2), "<DRIVER>qcow2</DRIVER>"));
        let line = ran.failure(script);
        assert!(line.contains("Error converting") && line.contains(says), "{line}");
        assert_eq!((house.staged(), house.content().len()), (vec![], 0));
    }
}

#[test]
fn nobody_else_swaps_what_was_judged() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can be somebody else");
        return;
    }
    let mut house = House::new();
    let staging = house.base.join(".onestore");
    let evil = house.path("users/evil");
    fs::write(&evil, hostile::Qcow2 { backing: b"/etc/passwd".to_vec(), ..hostile::Qcow2::default() }.build()).unwrap();
    // Even where the datastore's directory can be written by everybody who may not remove others' files.
    fs::set_permissions(&house.base, fs::Permissions::from_mode(0o1777)).unwrap();
    let attack = format!(
        "setpriv --reuid 65534 --clear-groups sh -c '\
         ls {0}; for f in {0}/*.part \"$1\"; do mv -f {1} \"$f\"; ln -sf {1} \"$f\"; echo x >>\"$f\"; done; mv {0} {0}.away; \
         echo tried' x \"$6\" >{2} 2>&1\nexec $REAL \"$@\"",
        staging.display(),
        evil.display(),
        house.path("home/attack").display()
    );
    instead_of_qemu_img(&mut house, &attack);
    fs::write(house.path("home/attack"), "").unwrap();
    let source = house.path("users/disk");
    house.raw(&source, 2, 5);
    let ran = house.call("cp", &house.document(&granted(&source, 2), "<DRIVER>qcow2</DRIVER>"));
    let image = ran.source("attacked");
    assert_eq!(content(&image, "qcow2", 2 << 20), digest(&source));
    let said = fs::read_to_string(house.path("home/attack")).unwrap();
    assert!(said.contains("tried") && said.matches("Permission denied").count() >= 4, "{said}");
    assert!(said.contains("Operation not permitted"), "the directory itself was moved: {said}");
    assert_eq!(house.staged(), Vec::<String>::new());
}

// --- bombs ---

/// 10 GiB of zeroes: 160 members of 64 MiB each.
fn bomb(house: &House, tool: &str) -> PathBuf {
    let zeroes = house.path("home/zeroes");
    if !zeroes.exists() {
        fs::File::create(&zeroes).unwrap().set_len(64 << 20).unwrap();
    }
    let out = Command::new(tool).args(["-1", "-c"]).arg(&zeroes).output().unwrap();
    assert!(out.status.success());
    let path = house.path(&format!("users/bomb.{tool}"));
    fs::write(&path, out.stdout.repeat(160)).unwrap();
    path
}

#[test]
fn bombs_of_every_kind_end_at_what_was_granted() {
    let house = House::new();
    for tool in ["gzip", "bzip2", "xz", "zstd", "lz4"] {
        let bomb = bomb(&house, tool);
        for template in ["", "<DRIVER>qcow2</DRIVER>", "<SPARSE>no</SPARSE>"] {
            let begin = Instant::now();
            let ran = house.call("cp", &house.document(&granted(&bomb, 16), template));
            let line = ran.failure(tool);
            assert!(line.contains("unpacks to more than 80 MiB"), "{tool}: {line}");
            assert_eq!((house.staged(), house.content().len()), (vec![], 0));
            println!("{tool} {template}: {:?} for {} bytes", begin.elapsed(), fs::metadata(&bomb).unwrap().len());
            assert!(begin.elapsed() < Duration::from_secs(20), "{tool}: {:?}", begin.elapsed());
        }
        // By way of a server, and with what was granted being enough for the half.
        let body = fs::read(&bomb).unwrap();
        let server = Server::start(move |_, _| Reply::ok(&body));
        let image = format!("<PATH>{}</PATH><SIZE>1</SIZE>", server.url("/bomb"));
        let line = house.act("cp", &image).failure(tool);
        assert!(line.contains("unpacks to more than 65 MiB"), "{tool}: {line}");
    }
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
}

#[test]
fn a_download_without_a_length_ends_at_what_was_granted() {
    let house = House::new();
    let server = Server::start(|_, _| Reply { length: Length::Unsaid, ..Reply::ok(&vec![1; 70 << 20]) });
    let line = house.act("cp", &format!("<PATH>{}</PATH><SIZE>1</SIZE>", server.url("/x"))).failure("endless");
    assert!(line.contains("more than 65 MiB"), "{line}");
    assert_eq!((house.staged(), house.content().len()), (vec![], 0));
}

#[test]
fn a_disk_larger_than_what_was_granted_is_refused() {
    let house = House::new();
    let (aliased, plain) = (house.path("users/aliased"), house.path("users/plain"));
    fs::write(&aliased, hostile::Qcow2 { size: 1 << 40, l1_size: Some(2048), ..hostile::Qcow2::default() }.build())
        .unwrap();
    fs::File::create(&plain).unwrap().set_len(1 << 30).unwrap();
    for (path, mib) in [(&aliased, 1 << 20), (&plain, 1 << 10)] {
        for template in ["", "<DRIVER>raw</DRIVER>", "<DRIVER>qcow2</DRIVER>"] {
            let line = house.call("cp", &house.document(&granted(path, 16), template)).failure("too large");
            assert!(line.contains(&format!("Its disk has {mib} MiB, IMAGE/SIZE grants 16 MiB")), "{line}");
        }
        // What was charged for comes in.
        house.call("cp", &house.document(&granted(path, mib), "")).reply("charged");
    }
    assert_eq!(house.staged(), Vec::<String>::new());
}

#[test]
fn what_needs_too_much_memory_to_unpack_is_refused() {
    let house = House::new();
    let data = house.path("home/data");
    fs::File::create(&data).unwrap().set_len(1 << 20).unwrap();
    let out = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).arg(&data).output().unwrap();
        assert!(out.status.success());
        let path = house.path("users/packed");
        fs::write(&path, out.stdout).unwrap();
        house.call("cp", &house.document(&granted(&path, 1), ""))
    };
    let line = out("xz", &["-c", "--lzma2=dict=1GiB"]).failure("xz");
    assert!(line.contains("The xz data need more than 100 MiB of memory to unpack"), "{line}");
    out("xz", &["-c", "-9"]).reply("xz -9");
    // A window as large as the data is noted only where their length is not known.
    let long = |log: &str| {
        let script = format!("zstd -q -c --ultra --long={log} <\"$0\"");
        out("sh", &["-c", &script])
    };
    let line = long("30").failure("zstd --long=30");
    assert!(line.contains("The zstd data need more than 128 MiB of memory to unpack"), "{line}");
    long("27").reply("zstd --long");
}
