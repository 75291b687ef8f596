//! `datastore/downloader.sh` and `onestore download` as programs: pipes that break, names that are taken.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[allow(dead_code)] // The other test that uses it needs more of it.
#[path = "transfer/server.rs"]
mod server;

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use server::{Reply, Server};

/// The program as it is called by its path below a `remotes` folder.
fn downloader(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
    command.arg("--as").arg(dir.join("remotes/datastore/downloader.sh"));
    clean(&mut command, dir);
    command
}

fn person(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
    command.arg("download");
    clean(&mut command, dir);
    command
}

fn clean(command: &mut Command, dir: &Path) {
    for name in ["http_proxy", "https_proxy", "all_proxy", "MAX_SIZE", "NO_DECOMPRESS", "LIMIT_RATE", "DRV_ACTION"] {
        command.env_remove(name);
    }
    command
        .env("ONE_LOCATION", dir)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_reader_that_goes_away_is_a_plain_failure() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), vec![7; 8 << 20]).unwrap();
    let mut child = downloader(dir.path()).args(["image", "-"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let said = said(&output);
    assert!(
        said.starts_with("Error copying image to standard output: Broken pipe") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn a_pipe_is_written_to_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.path().join("image"), &data).unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let child = downloader(dir.path()).args(["image", "fifo"]).spawn().unwrap();
    assert!(fs::read(&fifo).unwrap() == data);
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(names(dir.path()), ["fifo", "image"]);
}

#[test]
fn a_redirected_standard_output_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), "data").unwrap();
    let out = fs::File::create(dir.path().join("out")).unwrap();
    let status =
        downloader(dir.path()).args(["image", "/dev/stdout"]).stdout(out.try_clone().unwrap()).status().unwrap();
    assert!(status.success());
    // The caller's own descriptor sees it.
    assert_eq!(out.metadata().unwrap().len(), 4);
}

#[test]
fn the_document_of_a_datastore_may_waive_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), "data").unwrap();
    // A document that is none is of no interest for a local file.
    let output = downloader(dir.path()).args(["image", "-"]).env("DRV_ACTION", "%%%").output().unwrap();
    assert!(output.status.success() && output.stdout == b"data", "{}", said(&output));
}

#[test]
fn people_get_a_file_of_that_name_and_keep_what_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::ok(b"abc"));
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let get = |args: &[&str]| person(dir.path()).arg(server.url("/images/disk.img?key=1")).args(args).output().unwrap();

    let output = get(&["--dry-run"]);
    assert!(
        output.status.success() && said(&output).contains("Would write a raw image of 3 bytes"),
        "{}",
        said(&output)
    );
    assert!(names(dir.path()).is_empty());

    let output = get(&["--sha256", sha256, "--inspect"]);
    assert!(output.status.success() && said(&output).contains("disk.img: raw image"), "{}", said(&output));
    assert_eq!(fs::read(dir.path().join("disk.img")).unwrap(), b"abc");
    assert_eq!(server.log().len(), 2, "one request for each call");

    fs::write(dir.path().join("disk.img"), "mine").unwrap();
    let output = get(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("disk.img exists: choose another name, or say --force"), "{}", said(&output));
    assert_eq!(server.log().len(), 2, "nothing is asked for in vain");
    let output = get(&["--force", "--md5", "d41d8cd98f00b204e9800998ecf8427e"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).starts_with("Hash does not match: md5 of http://"), "{}", said(&output));
    assert_eq!(fs::read(dir.path().join("disk.img")).unwrap(), b"mine");
    assert!(get(&["--force"]).status.success());
    assert_eq!(fs::read(dir.path().join("disk.img")).unwrap(), b"abc");

    fs::create_dir(dir.path().join("images")).unwrap();
    assert!(get(&["images"]).status.success());
    assert_eq!(names(&dir.path().join("images")), ["disk.img"]);
}

#[test]
fn people_say_how_much_may_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("bomb");
    fs::write(&bomb, vec![0; 4 << 20]).unwrap();
    assert!(Command::new("gzip").arg(&bomb).status().unwrap().success());
    let output = person(dir.path()).args(["bomb.gz", "out", "--max-unpacked", "1M"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("unpacks to more than 1 MiB"), "{}", said(&output));
    assert_eq!(names(dir.path()), ["bomb.gz"]);
}

/// Waits at most ten seconds for a program that was told to stop.
fn stops(mut child: std::process::Child, before: impl Fn() -> bool) -> Option<i32> {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !before() {
        assert!(std::time::Instant::now() < patience, "it never began");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while std::time::Instant::now() < patience {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn a_pipe_that_nobody_empties_does_not_hold_a_cancel() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), vec![7; 8 << 20]).unwrap();
    let mut child = downloader(dir.path()).args(["image", "-"]).spawn().unwrap();
    // The first bytes are there: from now on it fills the pipe and waits.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    assert_eq!(stops(child, || true), Some(143));

    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let child = downloader(dir.path()).args(["image", "pipe"]).spawn().unwrap();
    let waits = format!("/proc/{}/fd", child.id());
    // It has opened the image, so that only the pipe is missing.
    let opened = || {
        fs::read_dir(&waits)
            .is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("image"))))
    };
    assert_eq!(stops(child, opened), Some(143));
}

#[test]
fn nobody_sees_more_of_a_download_than_of_what_it_replaces() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), vec![7; 4 << 20]).unwrap();
    let to = dir.path().join("secret");
    fs::write(&to, "").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    let child = downloader(dir.path()).args(["--limit", "1m", "image", "secret"]).spawn().unwrap();
    let part = || {
        let mut entries = fs::read_dir(dir.path()).unwrap().flatten();
        entries.find(|entry| entry.file_name().to_string_lossy().ends_with(".part"))
    };
    let seen = std::cell::Cell::new(None);
    let status = stops(child, || {
        seen.set(part().and_then(|part| part.metadata().ok()).map(|meta| meta.permissions().mode() & 0o777));
        seen.get().is_some()
    });
    assert_eq!((status, seen.get()), (Some(143), Some(0o600)));
    assert_eq!(names(dir.path()), ["image", "secret"]);
}

#[test]
fn what_is_unpacked_loses_the_ending() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("here")).unwrap();
    fs::write(dir.path().join("disk.raw"), vec![7; 1 << 20]).unwrap();
    assert!(Command::new("gzip").arg(dir.path().join("disk.raw")).status().unwrap().success());
    let get = |more: &[&str]| {
        let mut command = person(dir.path());
        assert!(command.args(["disk.raw.gz", "here"]).args(more).output().unwrap().status.success());
    };
    get(&[]);
    get(&["--nodecomp"]);
    assert_eq!(names(&dir.path().join("here")), ["disk.raw", "disk.raw.gz"]);
    assert_eq!(fs::metadata(dir.path().join("here/disk.raw")).unwrap().len(), 1 << 20);
}
