//! Staging files: published, retired and swept alike by both interpreters.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use onestore::exec::error::OpErrorKind;
use onestore::exec::op::Op;
use onestore::exec::staging::{self, Owner};

use super::harness::{AWKWARD, both, dead_tag, garden};

#[test]
fn publishing_and_sweeping_are_alike() {
    let me = Owner::me().expect("proc");
    let name = |tag: &str, name: &[u8]| {
        let mut out = OsString::from(format!("{tag}."));
        out.push(OsStr::from_bytes(name));
        out.push(".part");
        out
    };
    let dead = dead_tag();
    let plant = |root: &Path| {
        let dir = staging::dir(root);
        fs::create_dir(&dir).expect("mkdir");
        for file in AWKWARD.iter().map(|file| name(&dead, file)) {
            fs::write(dir.join(file), "new").expect("write");
        }
        fs::write(staging::staging_path(root, &me, OsStr::new("mine")), "mine").expect("write");
        // The first was published, the second's final name is another file's.
        fs::hard_link(dir.join(name(&dead, AWKWARD[0])), root.join(OsStr::from_bytes(AWKWARD[0]))).expect("ln");
        fs::write(root.join(OsStr::from_bytes(AWKWARD[1])), "old").expect("write");
    };
    let swept = |root: &Path| {
        let names: Vec<OsString> =
            fs::read_dir(staging::dir(root)).expect("there").map(|entry| entry.expect("entry").file_name()).collect();
        let mut ops = staging::clear(root, &names, &me);
        let [Op::Sweep { dead, .. }] = ops.as_mut_slice() else { panic!("{ops:?}") };
        assert_eq!(dead.len(), AWKWARD.len());
        dead.push(name(&dead_tag(), b"never-there"));
        ops
    };
    let outcome = both(plant, swept, None);
    outcome.values();
    let mine = format!(".onestore/{}.mine.part", me.tag());
    assert_eq!(outcome.names(), [".onestore", &mine, "it's"]);
    assert_eq!(outcome.entry("it's").expect("kept").content, b"old");

    let publish = |root: &Path| {
        let from = staging::staging_path(root, &me, OsStr::new("mine"));
        let mut ops = vec![Op::Publish { from: from.clone(), to: root.join("mine") }];
        ops.extend(staging::retire(root, &me, &from, true));
        ops
    };
    let outcome = both(plant, publish, None);
    outcome.values();
    assert_eq!(outcome.entry("mine").map(|entry| (entry.links, entry.content.as_slice())), Some((1, &b"mine"[..])));
    assert!(outcome.entry(&mine).is_none());

    let publish = |root: &Path| {
        vec![Op::Publish { from: staging::staging_path(root, &me, OsStr::new("mine")), to: root.join("it's") }]
    };
    let outcome = both(plant, publish, None);
    assert!(matches!(&outcome.result, Err((Some(0), OpErrorKind::Exists, _))), "{:?}", outcome.result);
    let folder = |root: &Path| vec![Op::Publish { from: root.join("empty"), to: root.join("new") }];
    assert!(both(garden, folder, None).result.is_err(), "a directory is not published");
    let bad = |root: &Path| vec![Op::Sweep { staging: staging::dir(root), dead: vec!["../a".into()] }];
    assert!(matches!(both(plant, bad, None).result, Err((Some(0), OpErrorKind::Script, _))));
}
