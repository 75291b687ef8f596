//! `onestore inspect` as a person calls it: what it prints, its exit status, and how little it reads.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "inspect/hostile.rs"]
#[allow(dead_code)]
mod hostile;
#[path = "transfer/server.rs"]
#[allow(dead_code)]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Reply, Request, Server};

fn inspect(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onestore"));
    command.arg("inspect").args(args).env_clear().env("PATH", "/usr/bin:/bin").env("ONE_LOCATION", "/nonexistent");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit status, standard output as JSON.
fn json_of(args: &[&str]) -> (i32, Value) {
    let out = inspect(&[&["--json"], args].concat());
    assert!(out.stderr.is_empty(), "{}", text(&out.stderr));
    (out.status.code().unwrap(), serde_json::from_slice(&out.stdout).unwrap())
}

fn create(dir: &Path, name: &str, format: &str, options: &str, size: &str) -> PathBuf {
    let path = dir.join(name);
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", format]);
    if !options.is_empty() {
        create.args(["-o", options]);
    }
    assert!(create.arg(&path).arg(size).status().unwrap().success());
    path
}

/// The beginning and parts of an object, as a server with ranges gives them.
fn parts(request: &Request, body: &[u8]) -> Reply {
    server::ranged(request, body, "\"a\"")
}

#[test]
fn people_get_an_aligned_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(dir.path(), "good", "qcow2", "compression_type=zstd", "10G");
    assert!(Command::new("qemu-img").args(["bitmap", "--add"]).arg(&path).arg("b").status().unwrap().success());
    let out = inspect(&[path.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(0));
    let file = fs::metadata(&path).unwrap().len();
    let expected = format!(
        "{}\n\
         \x20 Format      qcow2 (3)\n\
         \x20 Disk size   10 GiB (10240 MiB, 10737418240 bytes)\n\
         \x20 File size   320 KiB (1 MiB, {file} bytes)\n\
         \x20 Clusters    64 KiB, compression zstd\n\
         \x20 Encryption  none\n\
         \x20 Features    compression-type, bitmaps, feature-name-table, persistent-bitmaps\n\
         \x20 Bitmaps     1\n\
         \x20 Verdict     safe\n",
        path.display()
    );
    assert_eq!(text(&out.stdout), expected);
    assert!(out.stderr.is_empty());
}

#[test]
fn names_in_headers_cannot_write_to_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil\x1b[2Jname");
    let name = b"/etc/\x1b]0;title\x07\r\nVerdict     safe\xe2\x80\xae".to_vec();
    fs::write(&path, hostile::Qcow2 { backing: name.clone(), ..hostile::Qcow2::default() }.build()).unwrap();
    let flat = dir.path().join("flat");
    let extents = format!("RW 1 FLAT \"{}\" 0\n", "\x1b[31mred\x07");
    fs::write(&flat, hostile::descriptor("mono\x1b[1mFlat", "", &extents)).unwrap();
    let out = inspect(&[path.to_str().unwrap(), flat.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let shown = text(&out.stdout);
    assert!(!shown.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{shown:?}");
    assert_eq!(shown.lines().filter(|line| line.trim_start().starts_with("Verdict")).count(), 2, "{shown}");
    assert!(shown.contains("unsafe because it refers to the backing file"), "{shown}");
    assert!(shown.contains("and because it refers to the extent"), "{shown}");
    // As JSON the name is there as it is written, in the escapes of JSON.
    let (status, found) = json_of(&[path.to_str().unwrap()]);
    assert_eq!((status, found["references"][0]["name"].as_str().unwrap().as_bytes()), (1, &name[..]));
}

#[test]
fn the_json_is_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = hostile::Qcow2 { backing: b"/secret".to_vec(), ..hostile::Qcow2::default() };
    let path = dir.path().join("overlay");
    fs::write(&path, overlay.build()).unwrap();
    let shown = path.to_str().unwrap();
    let (status, found) = json_of(&[shown]);
    let reference = json!({ "kind": "backing-file", "name": "/secret", "format": "raw" });
    let expected = json!({
        "location": shown,
        "verdict": "unsafe",
        "reasons": [{ "reason": "reference", "detail": reference, "text": "it refers to the backing file '/secret'" }],
        "next-step": "where the image was made: qemu-img convert -O qcow2 OLD NEW, then use NEW",
        "file-size": 262_144,
        "wrapped-in": null,
        "format": "qcow2",
        "variant": "3",
        "virtual-size": 1_048_576,
        "cluster-size": 65536,
        "encryption": null,
        "payload-offset": null,
        "compression": "zlib",
        "features": [],
        "unknown-features": [],
        "references": [reference],
        "snapshots": 0,
        "bitmaps": 0,
        "contents": [],
    });
    assert_eq!((status, &found), (1, &expected));
    // A list for several, in their order; what cannot be read has an error in place of the rest.
    let raw = dir.path().join("raw");
    fs::write(&raw, vec![0; 4096]).unwrap();
    let (status, list) = json_of(&[raw.to_str().unwrap(), shown, "/nonexistent/image"]);
    assert_eq!(status, 2);
    assert_eq!(list[0]["verdict"], "safe");
    assert_eq!(list[1], expected);
    let error = "Cannot read from /nonexistent/image: No such file or directory (os error 2)";
    assert_eq!(list[2], json!({ "location": "/nonexistent/image", "error": error }));
}

#[test]
fn the_exit_status_tells_the_worst() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    fs::write(&good, vec![0; 4096]).unwrap();
    fs::write(&bad, b"QFI\xfb").unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for (args, status) in [
        (&[good][..], 0),
        (&[bad], 1),
        (&["/nonexistent"], 2),
        (&[good, bad, good], 1),
        (&[bad, "/nonexistent", good], 2),
        (&[], 2),
        (&["--wrong"], 2),
        (&["s3://bucket/image"], 2),
    ] {
        assert_eq!(inspect(args).status.code(), Some(status), "{args:?}");
    }
    let out = inspect(&["/nonexistent"]);
    assert_eq!(text(&out.stderr), "Cannot read from /nonexistent: No such file or directory (os error 2)\n");
}

#[test]
fn nothing_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (place, what) in [(pipe.to_str().unwrap(), "a pipe"), ("/dev/zero", "a character device"), ("/", "a directory")]
    {
        let begin = Instant::now();
        let out = inspect(&[place]);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(&format!("it is {what}, not a file or block device")), "{out:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn of_a_file_the_end_is_seen_and_no_more_than_needed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let fixed = create(dir.path(), "fixed", "vpc", "subformat=fixed,force_size=on", "1G");
    let (status, found) = json_of(&[fixed.to_str().unwrap()]);
    assert_eq!((status, &found["format"], &found["variant"]), (0, &json!("vpc"), &json!("fixed")));
    assert_eq!(found["virtual-size"], 1 << 30);
    for (name, format, options) in
        [("s", "vmdk", "subformat=streamOptimized"), ("x", "vhdx", ""), ("p", "parallels", "")]
    {
        let path = create(dir.path(), name, format, options, "64M");
        let (status, found) = json_of(&[path.to_str().unwrap()]);
        assert_eq!((status, found["format"].as_str()), (0, Some(format)), "{found}");
    }
    // 8 TiB of nothing are not read.
    let sparse = dir.path().join("sparse");
    fs::File::create(&sparse).unwrap().set_len(8 << 40).unwrap();
    let begin = Instant::now();
    assert_eq!(json_of(&[sparse.to_str().unwrap()]).1["virtual-size"], 8u64 << 40);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn compressed_files_are_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(dir.path(), "image", "qcow2", "", "7G");
    for (tool, name) in [("gzip", "gzip"), ("xz", "xz"), ("bzip2", "bzip2"), ("zstd", "zstd"), ("lz4", "lz4")] {
        let out = Command::new(tool).arg("-c").arg(&path).output().unwrap();
        let packed = dir.path().join("packed");
        fs::write(&packed, &out.stdout).unwrap();
        let packed = packed.to_str().unwrap();
        let (status, found) = json_of(&[packed]);
        assert_eq!((status, &found["format"], &found["wrapped-in"]), (0, &json!("qcow2"), &json!(name)));
        assert_eq!(
            (found["virtual-size"].as_u64(), found["file-size"].as_u64()),
            (Some(7 << 30), Some(out.stdout.len() as u64))
        );
        let (_, found) = json_of(&["--no-decompress", packed]);
        assert_eq!((&found["format"], &found["wrapped-in"]), (&json!("raw"), &Value::Null));
    }
}

#[test]
fn of_a_download_the_head_is_asked_for_and_at_most_one_more_range() {
    let dir = tempfile::tempdir().unwrap();
    let read =
        |name: &str, format: &str, options: &str| fs::read(create(dir.path(), name, format, options, "64M")).unwrap();
    let qcow2 = read("q", "qcow2", "");
    let raw = vec![0; 8 << 20];
    let fixed = read("f", "vpc", "subformat=fixed,force_size=on");
    let mut stream = {
        // Whoever writes to a pipe tells the directory's place in a second header at the end.
        let lines = hostile::descriptor("streamOptimized", "", "RW 2048 SPARSE \"a.vmdk\"\n");
        let mut stream = hostile::vmdk(2048, 1, u64::MAX, &lines);
        let mut footer = stream[..512].to_vec();
        footer[56..64].copy_from_slice(&40u64.to_le_bytes());
        let mut marker = vec![0; 512];
        marker[12] = 3;
        stream.resize(8 << 20, 0);
        stream.extend([marker, footer, vec![0; 512]].concat());
        stream
    };
    let cases = [("qcow2", &qcow2, 1, 0), ("raw", &raw, 2, 0), ("vpc", &fixed, 2, 0), ("vmdk", &stream, 2, 0)];
    for (format, body, requests, exit) in cases {
        let copy = body.clone();
        let server = Server::start(move |_, request| parts(request, &copy));
        let (status, found) = json_of(&[&server.url("/image")]);
        let log = server.log();
        assert_eq!((found["format"].as_str(), status), (Some(format), exit), "{found}");
        assert_eq!(log.len(), requests, "{format}: {log:?}");
        assert_eq!(log[0].header("range"), None);
        if let Some(second) = log.get(1) {
            assert_eq!(second.range(), Some(body.len() - 2048), "{format}");
        }
    }
    // Its end says something else than its head: only who looks there can see it.
    let at = stream.len() - 1024 + 12;
    stream[at] ^= 1;
    let copy = stream.clone();
    let server = Server::start(move |_, request| parts(request, &copy));
    let (status, found) = json_of(&[&server.url("/image")]);
    assert_eq!(
        (status, found["reasons"][0]["text"].as_str()),
        (1, Some("its footer contradicts its header")),
        "{found}"
    );
    // A server without ranges is not asked to send everything.
    let server = Server::start(move |_, _| Reply::ok(&stream));
    let (status, found) = json_of(&[&server.url("/image")]);
    assert_eq!((status, &found["verdict"], server.log().len()), (1, &json!("unsafe"), 2));
    let text = found["reasons"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("its header needs 8389"), "{text}");
}

#[test]
fn a_failing_server_is_told() {
    let server = Server::start(|_, _| Reply::status("403 Forbidden"));
    let out = inspect(&[&server.url("/image?key=secret").replace("http://", "http://u:secret@")]);
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(text(&out.stderr), format!("HTTP 403 Forbidden from {}\n", server.url("/image")));
}
