//! Sending what a policy allows: both interpreters judge the same.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use onestore::exec::error::OpErrorKind;
use onestore::exec::op::Op;
use onestore::exec::source::PathPolicy;

use super::harness::{AWKWARD, both, garden};

#[test]
fn files_are_sent_alike_where_they_may_be_read() {
    let run = |path: &'static str, safe: &'static [&'static str], restricted: &'static [&'static str]| {
        let sent = both(
            |root| {
                garden(root);
                symlink(root.join("d"), root.join("alias")).expect("a link to a folder");
                symlink("/dev/null", root.join("null")).expect("a link to a device");
                let mut fifo = std::process::Command::new("mkfifo");
                assert!(fifo.arg(root.join("pipe")).status().expect("mkfifo runs").success());
            },
            |root| {
                let dirs = |dirs: &[&str]| {
                    let below = |dir: &&str| {
                        if dir.starts_with('/') || dir.is_empty() { PathBuf::from(dir) } else { root.join(dir) }
                    };
                    dirs.iter().map(below).collect()
                };
                let policy = PathPolicy { safe: dirs(safe), restricted: dirs(restricted) };
                vec![Op::SendAllowed { path: root.join(path), policy }]
            },
            None,
        );
        match sent.result {
            Ok(_) => Ok(String::from_utf8_lossy(&sent.sent).into_owned()),
            Err((_, kind, text)) => Err((kind, text)),
        }
    };
    let whole = Ok("13\ncontent of a\n".to_owned());
    assert_eq!(run("a", &[], &[]), whole);
    assert_eq!(run("link", &[], &["d", "a/b", "ab", ""]), whole);
    assert_eq!(run("big", &[], &[]).expect("sent").len(), (3 << 20) + 8);
    let forbidden = |path: &str| {
        let text = format!("Cannot read @/{path}: Not allowed, check SAFE_DIRS and RESTRICTED_DIRS");
        Err((OpErrorKind::Forbidden, text))
    };
    // By name, by place, by a link to the place, by what a link leads to; and what is missing there is no different.
    for (path, restricted) in [
        ("d/b", &["d"] as &[&str]),
        ("d/b", &["x", "d//./"]),
        ("d/b", &["alias"]),
        ("d/b", &["d/b"]),
        ("alias/b", &["d"]),
        ("alias/../d/b", &["d"]),
        ("link", &["a"]),
        ("d/none", &["d"]),
        ("alias/none", &["d"]),
        ("d", &["d"]),
        ("a", &["/"]),
    ] {
        assert_eq!(run(path, &[], restricted), forbidden(path), "{path} {restricted:?}");
    }
    assert!(run("d/b", &["d"], &["/"]).is_ok());
    assert!(run("d/b", &["alias"], &["/"]).is_ok());
    assert_eq!(run("link", &["d"], &["/"]), forbidden("link"));
    for (path, kind, text) in [
        ("none", OpErrorKind::NotFound, "No such file or directory"),
        ("a/none", OpErrorKind::NotFound, "Not a directory"),
        ("dangling", OpErrorKind::NotFound, "No such file or directory"),
        ("d", OpErrorKind::Other, "It is a directory, not a file or block device"),
        ("pipe", OpErrorKind::Other, "It is a pipe, not a file or block device"),
        ("null", OpErrorKind::Other, "It is a character device, not a file or block device"),
    ] {
        assert_eq!(run(path, &[], &["x"]), Err((kind, format!("Cannot read @/{path}: {text}"))), "{path}");
    }
    for name in AWKWARD {
        let op =
            |root: &Path| Op::SendAllowed { path: root.join(OsStr::from_bytes(name)), policy: PathPolicy::default() };
        let sent = both(garden, |root| vec![op(root)], None).sent;
        assert_eq!(sent, [format!("{}\n", name.len()).as_bytes(), name].concat());
        let whole =
            |root: &Path| PathPolicy { safe: vec![root.join(OsStr::from_bytes(name))], restricted: vec!["/".into()] };
        let op = |root: &Path| Op::SendAllowed { path: root.join(OsStr::from_bytes(name)), policy: whole(root) };
        assert!(both(garden, |root| vec![op(root)], None).result.is_ok(), "a pattern is no pattern here");
    }
}
