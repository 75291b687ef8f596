//! Scripts stay within their fences, whoever runs them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use onestore::exec::cmd::Secret;
use onestore::exec::error::OpErrorKind;
use onestore::exec::op::{Op, Script, Sparse, Value};

use super::harness::{both_scripts, cp, rm};

/// A datastore `ds`, and `out`, which links in it lead to.
fn plant(root: &Path) {
    for dir in ["ds/a.snap", "out/deep"] {
        fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    for file in ["ds/a", "ds/a.snap/1", "out/1", "out/deep/1"] {
        fs::write(root.join(file), file).expect("write");
    }
    symlink(root.join("ds/a"), root.join("ds/a.snap/0")).expect("ln");
    symlink(".", root.join("ds/a.snap/a.snap")).expect("ln");
    symlink("../out", root.join("ds/b.snap")).expect("ln");
    symlink(root.join("out"), root.join("ds/c.snap")).expect("ln");
    symlink("../out/1", root.join("ds/b")).expect("ln");
}

fn run(ops: impl Fn(&Path) -> Vec<Op>) -> super::harness::Outcome {
    let script = |root: &Path| Script { fences: vec![root.join("ds")], ..Script::new(ops(root)) };
    both_scripts(plant, script, None)
}

#[test]
fn what_leads_out_is_refused_and_nothing_there_is_touched() {
    type Make = fn(&Path) -> Op;
    let before = run(|_| Vec::new()).tree;
    let cases: [Make; 20] = [
        |ds| Op::Stat { path: ds.join("b"), follow: true },
        |ds| Op::Stat { path: ds.join("b.snap/1"), follow: false },
        |ds| Op::ReadLink { path: ds.join("b.snap/1") },
        |ds| Op::List { path: ds.join("b.snap") },
        |ds| Op::Read { path: ds.join("b"), offset: 0, len: 9 },
        |ds| Op::Md5 { path: ds.join("c.snap/deep/1") },
        |ds| Op::Sha256 { path: ds.join("c.snap/deep/1") },
        |ds| Op::TreeSize { path: ds.join("c.snap/deep") },
        |ds| Op::Space { path: ds.join("c.snap") },
        |ds| Op::MakeDir { path: ds.join("b.snap/new/er") },
        |ds| Op::Claim { path: ds.join("c.snap/new/claim") },
        |ds| rm(ds.join("b.snap/1"), false, true),
        |ds| rm(ds.join("c.snap/deep"), true, false),
        |ds| cp(ds.join("b"), ds.join("x")),
        |ds| cp(ds.join("a"), ds.join("b.snap/x")),
        |ds| Op::HardLink { from: ds.join("b.snap/1"), to: ds.join("x") },
        |ds| Op::Rename { from: ds.join("a"), to: ds.join("c.snap/1") },
        |ds| Op::Write { path: ds.join("b.snap/x"), content: Secret::new("x"), mode: 0o600 },
        |ds| Op::Symlink { target: "1".into(), link: ds.join("b.snap/x") },
        |ds| Op::CreateSparse { path: ds.join("b.snap/x"), bytes: 1 },
    ];
    for (n, case) in cases.into_iter().enumerate() {
        let outcome = run(|root| vec![case(&root.join("ds"))]);
        let (at, _, said) = outcome.result.as_ref().expect_err(&format!("{n}"));
        assert_eq!(*at, Some(0));
        assert!(said.ends_with(": It leads out of @/ds"), "{n}: {said}");
        assert_eq!(outcome.tree, before, "{n}");
    }
}

#[test]
fn what_stays_inside_is_done() {
    let outcome = run(|root| {
        let ds = root.join("ds");
        vec![
            Op::Read { path: ds.join("a.snap/0"), offset: 0, len: 9 },
            Op::Read { path: ds.join("a.snap/a.snap/1"), offset: 0, len: 20 },
            Op::Stat { path: ds.join("no/thing"), follow: false },
            Op::List { path: ds.join("no") },
            rm(ds.join("no/thing"), true, false),
            Op::MakeDir { path: ds.join("new/er") },
            Op::Copy { from: ds.join("a.snap/0"), to: ds.join("new/er/copy"), sparse: Sparse::Holes },
            Op::Rename { from: ds.join("new/er/copy"), to: ds.join("a.snap/a.snap/2") },
            Op::HardLink { from: ds.join("a.snap/2"), to: ds.join("new/two") },
            rm(ds.join("b.snap"), true, true),
            rm(ds.join("new/er"), true, true),
            Op::Sync { path: ds.clone() },
            // Not below a fence: as ever.
            Op::Read { path: root.join("out/1"), offset: 0, len: 9 },
        ]
    });
    let values = outcome.values();
    assert_eq!(values[0], Value::Bytes(b"ds/a".to_vec()));
    assert_eq!(values[1], Value::Bytes(b"ds/a.snap/1".to_vec()));
    assert_eq!(values[2..5], [Value::Absent, Value::Absent, Value::Done]);
    assert_eq!(values[12], Value::Bytes(b"out/1".to_vec()));
    assert_eq!(outcome.entry("ds/a.snap/2").expect("renamed").links, 2);
    assert_eq!(outcome.entry("ds/b.snap"), None);
    assert!(outcome.entry("out/deep/1").is_some());
}

#[test]
fn what_is_missing_inside_fails_as_ever() {
    let outcome = run(|root| vec![cp(root.join("ds/no/a"), root.join("ds/x"))]);
    let text = "Cannot copy @/ds/no/a to @/ds/x: No such file or directory";
    outcome.failed(0, &OpErrorKind::NotFound, text);
}
