//! The two interpreters of scripts against each other: the same script on two copies of a real tree, in process and as
//! POSIX sh under dash and bash. Answers, failures and what is left of the tree have to be the same.

#[path = "interpreters/fences.rs"]
mod fences;
#[path = "interpreters/generated.rs"]
mod generated;
#[path = "interpreters/guards.rs"]
mod guards;
#[path = "interpreters/harness.rs"]
mod harness;
#[path = "interpreters/publishing.rs"]
mod publishing;
#[path = "interpreters/sending.rs"]
mod sending;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use onestore::exec::cmd::{Cmd, Limits, Secret};
use onestore::exec::control::{Cancel, Control, Stopped};
use onestore::exec::error::{LOCKS_PER_SCRIPT, OpErrorKind};
use onestore::exec::interpret::{self, Input, Io};
use onestore::exec::lock::LockDir;
use onestore::exec::op::{FileKind, Op, READ_LIMIT, Script, Sparse, Value};
use onestore::exec::process::{self, ProcessIo, Programs, Spawn};

use harness::{AWKWARD, as_sh, both, control, cp, entries, garden, in_process, locks, md5_of, rm};

#[test]
fn questions_are_answered_alike() {
    let paths = |root: &Path| {
        let mut paths: Vec<PathBuf> = ["a", "d", "d/b", "link", "dangling", "dirlink", "missing", "a/x", "empty"]
            .iter()
            .map(|p| root.join(p))
            .collect();
        paths.extend(AWKWARD.iter().map(|name| root.join(OsStr::from_bytes(name))));
        paths
    };
    let outcome = both(
        garden,
        |root| {
            let each = |path: PathBuf| {
                [
                    Op::Stat { path: path.clone(), follow: false },
                    Op::Stat { path: path.clone(), follow: true },
                    Op::ReadLink { path },
                ]
            };
            let mut ops: Vec<Op> = paths(root).into_iter().flat_map(each).collect();
            ops.extend(["d", "dirlink", "missing", "empty", ""].map(|path| Op::List { path: root.join(path) }));
            ops
        },
        None,
    );
    let values = outcome.values();
    let kinds: Vec<_> = values[..9].iter().map(|value| value.stat().map(|stat| stat.kind)).collect();
    let file = Some(FileKind::File);
    assert_eq!(kinds[..6], [file, file, None, Some(FileKind::Dir), Some(FileKind::Dir), None]);
    assert_eq!(values[11], Value::Bytes(b"a".to_vec()), "the text of the link");
    assert_eq!(values[12..15].iter().filter(|value| **value == Value::Absent).count(), 1, "a dangling link, followed");
    assert_eq!(values[18..24].iter().filter(|value| **value == Value::Absent).count(), 6);
    let all = &values[values.len() - 1];
    assert!(
        matches!(all, Value::Names(names) if AWKWARD.iter().all(|name| names.contains(&OsString::from(OsStr::from_bytes(name)))))
    );
}

#[test]
fn contents_are_read_and_counted_alike() {
    let outcome = both(
        garden,
        |root| {
            let read = |path: &str, offset, len| Op::Read { path: root.join(path), offset, len };
            let mut ops = vec![
                read("a", 0, 7),
                read("a", 8, 100),
                read("a", 50, 10),
                read("link", 0, 0),
                read("big", 4990, READ_LIMIT),
                Op::TreeSize { path: root.join("a") },
                Op::TreeSize { path: root.join("link") },
                Op::TreeSize { path: root.join("d") },
                Op::TreeSize { path: root.to_owned() },
                Op::Md5 { path: root.join("link") },
                Op::Sha256 { path: root.join("link") },
            ];
            ops.extend(AWKWARD.map(|name| Op::Md5 { path: root.join(OsStr::from_bytes(name)) }));
            ops
        },
        None,
    );
    let values = outcome.values();
    assert_eq!(values[0], Value::Bytes(b"content".to_vec()));
    assert_eq!(values[2..4], [Value::Bytes(vec![]), Value::Bytes(vec![])]);
    assert_eq!(values[5..7], [Value::Number(13), Value::Number(1)]);
    assert_eq!(values[9].text(), md5_of(b"content of a\n"));
    assert_eq!(values[10].text(), "ae1234b2b51186ede2fca3f1c69ec585b263c4bdc45adaafcd3921bd3eb9fea6");
}

#[test]
fn questions_fail_alike() {
    let fails = |op: &dyn Fn(&Path) -> Op, kind: OpErrorKind, text: &str| {
        both(garden, |root| vec![Op::Sync { path: root.to_owned() }, op(root)], None).failed(1, &kind, text);
    };
    let gone = OpErrorKind::NotFound;
    fails(&|r| Op::List { path: r.join("a") }, gone.clone(), "Cannot list @/a: Not a directory");
    fails(
        &|r| Op::Read { path: r.join("x"), offset: 0, len: 1 },
        gone.clone(),
        "Cannot read @/x: No such file or directory",
    );
    fails(
        &|r| Op::Read { path: r.join("d"), offset: 0, len: 1 },
        OpErrorKind::Other,
        "Cannot read @/d: Is a directory",
    );
    for len in [0, 1] {
        assert!(both(garden, |r| vec![Op::Head { path: r.join("dirlink"), len }], None).result.is_err());
    }
    fails(&|r| Op::Space { path: r.join("x") }, gone.clone(), "Cannot get the space of @/x: No such file or directory");
    fails(
        &|r| Op::TreeSize { path: r.join("x") },
        gone.clone(),
        "Cannot get the size of @/x: No such file or directory",
    );
    fails(
        &|r| Op::Md5 { path: r.join("dangling") },
        gone.clone(),
        "Cannot get the MD5 digest of @/dangling: No such file or directory",
    );
    fails(&|r| Op::Send { path: r.join("x") }, gone, "Cannot read @/x: No such file or directory");
    fails(
        &|r| Op::Read { path: r.join("a"), offset: 0, len: READ_LIMIT + 1 },
        OpErrorKind::Script,
        "Cannot read @/a: more bytes asked for than one operation answers",
    );
    fails(
        &|_| Op::Stat { path: "a".into(), follow: true },
        OpErrorKind::Script,
        "Cannot look at a: not an absolute path",
    );
}

#[test]
fn space_is_what_df_says() {
    let df = || {
        let cmd = Cmd::new("df").args(["-B1M", "-P", "/dev/shm"]);
        let done = process::run(&Spawn::of(&cmd, &Programs::default()).expect("df"), ProcessIo::of(&cmd), &control());
        let text = String::from_utf8_lossy(&done.expect("df").stdout).into_owned();
        text.lines().nth(1).expect("a line").split_whitespace().skip(1).take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    // Others use the machine as well: the answer counts when nothing changed around it.
    for _ in 0..100 {
        let before = df();
        let script = Script::from(Op::Space { path: "/dev/shm".into() });
        let temp = tempfile::tempdir().expect("temp");
        let here = in_process(&script, temp.path(), None);
        let there = as_sh("dash", &script, temp.path(), None);
        if df() != before {
            continue;
        }
        assert_eq!(here, there);
        let Value::Space(space) = here.values()[0] else { panic!("no space: {here:?}") };
        assert_eq!([space.total_mib, space.used_mib, space.free_mib].map(|mib| mib.to_string()), before[..]);
        return;
    }
    panic!("the file system never holds still");
}

#[test]
fn directories_come_and_go_alike() {
    let outcome = both(
        garden,
        |root| {
            let mut ops: Vec<Op> = ["new/x/y", "d", "dirlink/z"].map(|p| Op::MakeDir { path: root.join(p) }).into();
            ops.extend(["claims/a", "claims/b", "claims/a"].map(|p| Op::Claim { path: root.join(p) }));
            ops.extend(["empty", "d", "missing", "new/x/y"].map(|p| Op::RemoveDirIfEmpty { path: root.join(p) }));
            ops
        },
        None,
    );
    assert!(outcome.entry("new/x").is_some() && outcome.entry("new/x/y").is_none());
    assert!(outcome.entry("d/z").is_some() && outcome.entry("empty").is_none());
    both(garden, |root| vec![Op::MakeDir { path: root.join("a/x") }], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot create the directory @/a/x: Not a directory",
    );
    both(garden, |root| vec![Op::RemoveDirIfEmpty { path: root.join("a") }], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot remove the directory @/a: Not a directory",
    );
}

#[test]
fn links_are_made_alike() {
    let outcome = both(
        garden,
        |root| {
            let ln = |target: &str, link: &str| Op::Symlink { target: target.into(), link: root.join(link) };
            vec![
                ln("-n", "l1"),
                ln("x\ny", "link"),
                ln("/abs", "dirlink"),
                ln("d", "a"),
                Op::HardLink { from: root.join("d/b"), to: root.join("h") },
                Op::HardLink { from: root.join("dangling"), to: root.join("h2") },
            ]
        },
        None,
    );
    assert_eq!(outcome.entry("a").expect("replaced").kind, FileKind::Link);
    assert_eq!(outcome.entry("h").expect("made").links, 3);
    assert_eq!(outcome.entry("h2").expect("made").kind, FileKind::Link);
    both(garden, |root| vec![Op::Symlink { target: "x".into(), link: root.join("empty") }], None);
    both(garden, |root| vec![Op::HardLink { from: root.join("a"), to: root.join("d/b") }], None).failed(
        0,
        &OpErrorKind::Exists,
        "Cannot link @/d/b to @/a: File exists",
    );
    both(garden, |root| vec![Op::HardLink { from: root.join("x"), to: root.join("y") }], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot link @/y to @/x: No such file or directory",
    );
}

#[test]
fn one_takes_the_place_of_another_alike() {
    let replace = |root: &Path, [from, to, kept]: [&str; 3]| Op::Replace {
        from: root.join(from),
        to: root.join(to),
        kept: root.join(kept),
    };
    let all = [["d", "empty", "old"], ["dangling", "link", "n"], ["a", "link", "kept"]];
    let outcome = both(garden, |root| all.iter().map(|names| replace(root, *names)).collect(), None);
    assert!(outcome.entry("empty/b").is_some() && outcome.entry("d").is_none());
    assert_eq!(outcome.entry("old").expect("kept").kind, FileKind::Dir);
    assert_eq!(outcome.entry("n").expect("kept").kind, FileKind::Link);
    assert_eq!(outcome.entry("link").expect("replaced").kind, FileKind::File);
    for (names, kind, why) in [
        (["a", "dangling", "d"], OpErrorKind::Exists, "File exists"),
        (["nothing", "d", "old"], OpErrorKind::NotFound, "No such file or directory"),
        (["a", "nothing", "old"], OpErrorKind::NotFound, "No such file or directory"),
    ] {
        let outcome = both(garden, |root| vec![replace(root, names)], None);
        outcome.failed(0, &kind, &format!("Cannot put @/{} in the place of @/{}: {why}", names[0], names[1]));
        assert!(outcome.entry("a").is_some() && outcome.entry("d/b").is_some() && outcome.entry("old").is_none());
    }
}

#[test]
fn a_rename_is_taken_back_alike() {
    let back = |root: &Path, from: &str, to: &str| Op::PutBack { from: root.join(from), to: root.join(to) };
    let outcome = both(
        garden,
        |root| {
            vec![
                // Nothing to take back, also where its directory is gone.
                back(root, "nothing", "new"),
                back(root, "no/where", "new"),
                // It was not done, or both are names of one file.
                back(root, "a", "d"),
                back(root, "a", "dangling"),
                back(root, "d/b", "d/e/b2"),
                // A file, a directory, a link to nowhere.
                back(root, "a", "d/a"),
                back(root, "d/e", "e"),
                back(root, "dangling", "empty/link"),
            ]
        },
        None,
    );
    for (gone, there) in [("a", "d/a"), ("d/e", "e/b2"), ("dangling", "empty/link")] {
        assert!(outcome.entry(gone).is_none() && outcome.entry(there).is_some(), "{gone} became {there}");
    }
    assert!(outcome.entry("new").is_none() && outcome.entry("d/b").is_some());
    both(garden, |root| vec![back(root, "d/b", "d/b/c")], None).failed(
        0,
        &OpErrorKind::Script,
        "Cannot put @/d/b back to @/d/b/c: one path lies in the other",
    );
}

#[test]
fn files_are_written_alike() {
    let write = |path: PathBuf, content: &str, mode| Op::Write { path, content: Secret::new(content), mode };
    let outcome = both(
        garden,
        |root| {
            let mut ops = vec![
                write(root.join("a"), "new", 0o600),
                write(root.join("link"), "", 0o4755),
                write(root.join("n"), "'\n\\x $y\n\n", 0o644),
                write(root.join("z"), &"zero\0".repeat(100_000), 0o666),
            ];
            ops.extend(AWKWARD.map(|name| write(root.join(OsStr::from_bytes(name)), "x", 0o444)));
            ops
        },
        None,
    );
    assert_eq!(outcome.entry("link").map(|entry| (entry.kind, entry.mode)), Some((FileKind::File, 0o4755)));
    assert_eq!(outcome.entry("a").expect("there").mode, 0o600);
    let error = both(garden, |root| vec![write(root.join("empty"), "x", 0o644)], None);
    assert!(error.result.is_err());
    assert_eq!(error.names(), both(garden, |_| vec![], None).names(), "nothing is left beside it");
    both(garden, |root| vec![write(root.join("no/x"), "x", 0o644)], None);
}

#[test]
fn renames_and_moves_are_alike() {
    for make in [(|from, to| Op::Rename { from, to }) as fn(PathBuf, PathBuf) -> Op, |from, to| Op::Move { from, to }] {
        let outcome = both(
            garden,
            |root| {
                vec![
                    make(root.join("a"), root.join("link")),
                    make(root.join("dangling"), root.join("d/q")),
                    make(root.join(OsStr::from_bytes(AWKWARD[3])), root.join("-n")),
                ]
            },
            None,
        );
        assert_eq!(outcome.entry("link").expect("there").kind, FileKind::File);
        for (from, to) in
            [("missing", "x"), ("a", "no/x"), ("a", "empty"), ("d", "a"), ("a", "a"), ("d/b", "d/e/b2"), ("d", "d/x")]
        {
            let outcome = both(garden, |root| vec![make(root.join(from), root.join(to))], None);
            assert!(outcome.result.is_err(), "{from} {to}");
        }
    }
}

#[test]
fn moving_goes_to_other_file_systems_and_renaming_does_not() {
    let other = tempfile::tempdir_in("/dev/shm").expect("temp");
    let dev = |path: &Path| fs::metadata(path).expect("there").dev();
    let here = tempfile::tempdir().expect("temp");
    assert_ne!(dev(other.path()), dev(here.path()), "this test needs /dev/shm beside the temporary directory");
    // One place for all runs, so that the links to it are equal; looked at and emptied before each.
    let side = other.path().join("side");
    let left = std::cell::RefCell::new(Vec::new());
    let collect = || {
        if side.exists() {
            left.borrow_mut().push(entries(&side));
            fs::remove_dir_all(&side).expect("rm");
        }
    };
    let outcome = both(
        |root| {
            garden(root);
            collect();
            fs::create_dir(&side).expect("mkdir");
            symlink(&side, root.join("side")).expect("ln");
        },
        |root| {
            let mv = |from: &str, to: &str| Op::Move { from: root.join(from), to: root.join(to) };
            vec![
                mv("d/b", "side/b"),
                mv("big", "side/big"),
                mv("dangling", "side/l"),
                mv("side/b", "back"),
                mv("side/l", "l"),
            ]
        },
        None,
    );
    outcome.values();
    collect();
    assert_eq!(outcome.entry("back").map(|entry| (entry.mode, entry.links)), Some((0o640, 1)));
    let left = left.into_inner();
    assert_eq!(left.len(), 3);
    for side in left {
        assert_eq!(side.len(), 1);
        assert_eq!((side[0].path.as_path(), side[0].size, side[0].sparse), (Path::new("big"), 3 << 20, true));
    }
    for (rename, text) in [
        (true, "Cannot rename @/a to @/side/a: Invalid cross-device link"),
        (false, "Cannot move @/d to @/side/a: Is a directory"),
    ] {
        let outcome = both(
            |root| {
                garden(root);
                symlink("/dev/shm", root.join("side")).expect("ln");
            },
            |root| {
                let to = root.join("side/a");
                vec![if rename {
                    Op::Rename { from: root.join("a"), to }
                } else {
                    Op::Move { from: root.join("d"), to }
                }]
            },
            None,
        );
        let kind = if rename { OpErrorKind::OtherFileSystem } else { OpErrorKind::Other };
        outcome.failed(0, &kind, text);
    }
}

#[test]
fn removing_never_follows_a_link() {
    let outcome = both(
        garden,
        |root| {
            vec![
                rm(root.join("dirlink"), true, true),
                rm(root.join("link"), false, true),
                rm(root.join("d/e"), true, true),
            ]
        },
        None,
    );
    assert!(outcome.entry("d/b").is_some_and(|entry| entry.links == 1) && outcome.entry("a").is_some());
    assert!(outcome.entry("d/e").is_none());
    let plant = |root: &Path| {
        garden(root);
        symlink(root, root.join("d/up")).expect("ln");
        symlink("../..", root.join("d/e/up")).expect("ln");
    };
    let outcome =
        both(plant, |root| vec![rm(root.join("d"), true, false), rm(root.join("missing"), true, false)], None);
    assert!(outcome.entry("d").is_none() && outcome.entry("a").is_some());
    let names = AWKWARD.map(OsStr::from_bytes);
    both(garden, |root| names.map(|name| rm(root.join(name), false, true)).into(), None).values();
    both(garden, |root| vec![rm(root.join("a/x"), false, false)], None).values();
    both(garden, |root| vec![rm(root.join("x"), true, true)], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot remove @/x: No such file or directory",
    );
    both(garden, |root| vec![rm(root.join("d"), false, false)], None).failed(
        0,
        &OpErrorKind::Other,
        "Cannot remove @/d: Is a directory",
    );
}

/// Names too long for one path, and more levels than a process has descriptors.
#[test]
fn deep_trees_are_removed_and_counted() {
    let temp = tempfile::tempdir().expect("temp");
    let top = temp.path().join("top");
    fs::create_dir(&top).expect("mkdir");
    let name = "n".repeat(100);
    let mut dir = rustix::fs::open(&top, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).expect("open");
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).expect("mkdir");
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).expect("open");
    }
    let script = Script::new([Op::TreeSize { path: top.clone() }, rm(top.clone(), true, true)]);
    let outcome = in_process(&script, temp.path(), None);
    assert!(outcome.values()[0].number() >= Some(3000), "{outcome:?}");
    assert!(!top.exists());
}

#[test]
fn copies_are_alike() {
    for sparse in [Sparse::Holes, Sparse::Allocate] {
        let outcome = both(
            garden,
            |root| {
                let copy = |from: &str, to: &str| Op::Copy { from: root.join(from), to: root.join(to), sparse };
                let mut ops =
                    vec![copy("a", "c1"), copy("link", "c2"), copy("d/b", "a"), copy("big", "c3"), copy("d/b", "link")];
                ops.extend(AWKWARD.map(|name| Op::Copy {
                    from: root.join(OsStr::from_bytes(name)),
                    to: root.join("last"),
                    sparse,
                }));
                ops
            },
            None,
        );
        assert_eq!(
            outcome.entry("c3").map(|entry| (entry.size, entry.sparse)),
            Some((3 << 20, sparse == Sparse::Holes))
        );
        assert_eq!(outcome.entry("link").expect("written through").kind, FileKind::Link);
    }
    for (from, to) in
        [("missing", "x"), ("d", "x"), ("a", "d"), ("a", "link"), ("d/b", "d/e/b2"), ("a", "dangling"), ("a", "no/x")]
    {
        let outcome = both(garden, |root| vec![cp(root.join(from), root.join(to))], None);
        assert!(outcome.result.is_err(), "{from} {to}");
        assert_eq!(outcome.entry("a").expect("there").content, b"content of a\n");
    }
    both(garden, |root| vec![cp(root.join("a"), "/dev/full".into())], None).failed(
        0,
        &OpErrorKind::NoSpace,
        "Cannot copy @/a to /dev/full: No space left on device",
    );
}

#[test]
fn zeroes_are_freed_alike() {
    let plant = |root: &Path| {
        let mut zeroes = vec![0; 2 << 20];
        zeroes[..10].fill(1);
        fs::write(root.join("z"), zeroes).expect("write");
        symlink("z", root.join("link")).expect("ln");
    };
    let outcome = both(plant, |root| vec![Op::PunchHoles { path: root.join("link") }], None);
    assert_eq!(outcome.entry("z").map(|entry| (entry.size, entry.sparse)), Some((2 << 20, true)));
    both(plant, |root| vec![Op::PunchHoles { path: root.join("x") }], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot free the zeroes of @/x: No such file or directory",
    );
}

#[test]
fn sparse_files_are_made_alike() {
    let make = |path: PathBuf, bytes| Op::CreateSparse { path, bytes };
    let outcome = both(
        garden,
        |root| {
            vec![
                make(root.join("n"), 1 << 40),
                make(root.join("o"), 0),
                Op::Sync { path: root.join("n") },
                rm(root.join("n"), false, true),
                make(root.join("s"), 5 << 20),
            ]
        },
        None,
    );
    assert_eq!(outcome.entry("s").map(|entry| (entry.size, entry.sparse)), Some((5 << 20, true)));
    both(garden, |root| vec![make(root.join("a"), 5)], None).failed(
        0,
        &OpErrorKind::Exists,
        "Cannot create @/a: File exists",
    );
    both(garden, |root| vec![make(root.join("dangling"), 5)], None).failed(
        0,
        &OpErrorKind::Exists,
        "Cannot create @/dangling: File exists",
    );
}

#[test]
fn streams_are_received_alike() {
    let mut data = vec![0; (3 << 20) + 77];
    data[..100].fill(3);
    data[2_000_000..2_000_100].fill(4);
    for (sparse, data) in
        [(Sparse::Holes, &data[..]), (Sparse::Allocate, &data), (Sparse::Holes, b""), (Sparse::Holes, b"\n\nx")]
    {
        let outcome = both(
            garden,
            |root| {
                vec![
                    // None of these may eat the stream.
                    Op::Run(Cmd::new("cat")),
                    Op::Md5 { path: root.join("a") },
                    Op::Receive { path: root.join("r"), sparse },
                    Op::Md5 { path: root.join("r") },
                ]
            },
            Some(data),
        );
        assert_eq!(outcome.values()[0], Value::Bytes(vec![]));
        assert_eq!(outcome.values()[2], Value::Number(data.len() as u64));
        assert_eq!(outcome.values()[3].text(), md5_of(data));
        assert_eq!(outcome.entry("r").expect("there").sparse, sparse == Sparse::Holes && data.len() > 1 << 20);
    }
    both(garden, |root| vec![Op::Receive { path: root.join("a"), sparse: Sparse::Holes }], Some(b"x")).failed(
        0,
        &OpErrorKind::Exists,
        "Cannot receive @/a: File exists",
    );
}

#[test]
fn files_are_received_in_process() {
    let temp = tempfile::tempdir().expect("temp");
    let source = temp.path().join("source");
    fs::write(&source, vec![7; 70_000]).expect("source");
    let file = File::open(&source).expect("source");
    let io = Io { input: Some(Input::File(&file)), ..Io::default() };
    let path = temp.path().join("r");
    let script = Script::from(Op::Receive { path: path.clone(), sparse: Sparse::Allocate });
    interpret::run(&script, io, &Programs::default(), &control()).expect("runs");
    assert_eq!(fs::read(path).expect("made"), fs::read(source).expect("source"));
    let again = Script::from(Op::Receive { path: temp.path().join("s"), sparse: Sparse::Allocate });
    let error = interpret::run(&again, Io::default(), &Programs::default(), &control()).expect_err("no input");
    assert!(error.to_string().ends_with("There is no input"), "{error}");
}

#[test]
fn files_are_sent_alike() {
    let send = |path: PathBuf| {
        vec![Op::Run(Cmd::new("echo").arg("noise")), Op::MakeDir { path: path.with_extension("d") }, Op::Send { path }]
    };
    assert_eq!(both(garden, |root| send(root.join("big")), None).sent.len(), 3 << 20);
    for name in AWKWARD {
        assert_eq!(both(garden, |root| send(root.join(OsStr::from_bytes(name))), None).sent, name);
    }
    both(garden, |root| vec![Op::Send { path: root.join("a") }, Op::Sync { path: root.join("a") }], None).failed(
        0,
        &OpErrorKind::Script,
        "Cannot read @/a: sending is not the last operation",
    );
    assert!(both(garden, |root| send(root.join("d")), None).result.is_err());
}

#[test]
fn syncing_is_alike() {
    both(garden, |root| ["", "a", "link", "dirlink", "-n"].map(|path| Op::Sync { path: root.join(path) }).into(), None)
        .values();
    both(garden, |root| vec![Op::Sync { path: root.join("x") }], None).failed(
        0,
        &OpErrorKind::NotFound,
        "Cannot sync @/x: No such file or directory",
    );
}

#[test]
fn locks_exclude_alike() {
    let lock = |name: &str| Op::Lock { name: name.to_owned(), wait_seconds: 0 };
    let program = |root: &Path| {
        let file = locks(root).join("replica--x");
        Op::Run(Cmd::new("flock").args(["-n", "-E", "9"]).arg(file).arg("true").also_ok(9))
    };
    let outcome = both(garden, |root| vec![lock("replica-/x"), lock("it's a b"), program(root)], None);
    assert!(outcome.entry("locks/replica--x").is_some_and(|entry| entry.mode == 0o640));
    assert!(outcome.entry("locks/it's a b").is_some());
    let held = std::cell::RefCell::new(Vec::new());
    let outcome = both(
        |root| {
            let dir = LockDir::at(locks(root));
            held.borrow_mut().push(dir.take("x", Duration::ZERO, &control()).expect("free"));
        },
        |_| vec![lock("y"), lock("x")],
        None,
    );
    outcome.failed(1, &OpErrorKind::Locked, "Could not acquire exclusive lock on @/locks/x");
    both(|root| fs::write(locks(root), "").expect("write"), |_| vec![lock("x")], None).failed(
        0,
        &OpErrorKind::Locked,
        "Could not create or open lock @/locks/x",
    );
    let many = |_: &Path| (0..=LOCKS_PER_SCRIPT).map(|n| lock(&n.to_string())).collect();
    let outcome = both(garden, many, None);
    assert!(matches!(outcome.result, Err((Some(LOCKS_PER_SCRIPT), OpErrorKind::Script, _))));
}

#[test]
fn programs_run_alike() {
    let sh = |script: &str| Cmd::new("sh").arg("-c").arg(script);
    let outcome = both(
        garden,
        |root| {
            vec![
                Op::Run(sh("printf 'a\\0b\\n\\n'")),
                Op::Run(sh("cat; printf %s \"$K\"").env("K", Secret::new("it's\n")).stdin(Secret::new("\n'in'\0\n"))),
                Op::Run(sh("exit 3").also_ok(2).also_ok(3)),
                Op::Run(sh("ulimit -f; ulimit -t").limits(Limits {
                    file_size: Some(1 << 20),
                    cpu_seconds: Some(9),
                    address_space: None,
                    wall_seconds: None,
                })),
                Op::Run(Cmd::new("ls").arg("--").arg(root.join(OsStr::from_bytes(AWKWARD[3])))),
                Op::Run(sh(
                    "printf '%s ' \"$LANG\" \"$LC_ALL\"; head -c 300000 /dev/zero | wc -c; ls -l /proc/self/fd | wc -l",
                )),
                Op::Run(sh("head -c 300000 /dev/zero")),
            ]
        },
        None,
    );
    let values = outcome.values();
    assert_eq!(values[0], Value::Bytes(b"a\0b\n\n".to_vec()));
    assert_eq!(values[1], Value::Bytes(b"\n'in'\0\nit's\n".to_vec()));
    assert_eq!(values[3].text(), "2048\n9");
    let gone = OpErrorKind::Program { status: Some(3), stderr: String::new() };
    both(garden, |_| vec![Op::Run(sh("echo out; echo why >&2; exit 3"))], None).failed(
        0,
        &gone,
        "sh -c 'echo out; echo why >&2; exit 3' failed with exit status 3: why",
    );
    both(garden, |_| vec![Op::Run(Cmd::new("no-such-program")), Op::Run(sh(":"))], None).failed(
        0,
        &OpErrorKind::MissingProgram,
        "Cannot find the program no-such-program: install the package no-such-program",
    );
    let limited = Cmd::new("no-such-program").limits(Limits { cpu_seconds: Some(1), ..Limits::default() });
    both(garden, |_| vec![Op::Run(limited.clone())], None).failed(
        0,
        &OpErrorKind::MissingProgram,
        "Cannot find the program no-such-program: install the package no-such-program",
    );
    both(garden, |_| vec![Op::Run(Cmd::new("true").env("A B", Secret::new("")))], None).failed(
        0,
        &OpErrorKind::Script,
        "Cannot run true: not an environment variable",
    );
}

#[test]
fn a_cancelled_script_stops_before_its_next_operation() {
    let cancel = Cancel::new();
    cancel.set();
    let temp = tempfile::tempdir().expect("temp");
    let script = Script::from(Op::MakeDir { path: temp.path().join("x") });
    let error = interpret::run(&script, Io::default(), &Programs::default(), &Control::new(cancel)).expect_err("stops");
    assert_eq!((error.index, error.kind), (Some(0), OpErrorKind::Stopped(Stopped::Cancelled)));
    assert_eq!(fs::read_dir(&temp).expect("there").count(), 0);
}
