//! Journeys between two folders of one machine: the driving end is both ends, no ssh is needed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::exec::control::{Cancel, Control};
use crate::exec::process::Programs;

/// Data, zeroes that are written, or a hole; and the bytes of it.
#[derive(Clone, Debug)]
enum Piece {
    Data(u8, u32),
    Zeroes(u32),
    Hole(u32),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let len = || prop_oneof![1..9000_u32, Just(1 << 20), Just((1 << 20) + 1), (1..700_u32).prop_map(|n| n * 4096)];
    let data = (1..=255_u8, len()).prop_map(|(byte, len)| Piece::Data(byte, len));
    prop::collection::vec(prop_oneof![data, len().prop_map(Piece::Zeroes), len().prop_map(Piece::Hole)], 0..6)
}

fn build(path: &Path, pieces: &[Piece]) {
    let file = File::create(path).expect("makes");
    let mut at = 0;
    for piece in pieces {
        let (byte, len) = match piece {
            Piece::Data(byte, len) => (Some(*byte), *len),
            Piece::Zeroes(len) => (Some(0), *len),
            Piece::Hole(len) => (None, *len),
        };
        if let Some(byte) = byte {
            file.write_all_at(&vec![byte; len as usize], at).expect("writes");
        }
        at += u64::from(len);
    }
    file.set_len(at).expect("extends");
}

fn go(carry: &Carry, control: &Control) -> io::Result<Report> {
    let mut said = Vec::new();
    drive::run(carry, &Programs::default(), control, &mut said)?;
    let text = String::from_utf8(said).expect("text");
    let report = text.lines().last().and_then(|line| line.strip_prefix("report ")).expect("a report").to_owned();
    Ok(serde_json::from_str(&report).expect("JSON"))
}

fn one(dir: &Path, sparse: Sparse) -> Carry {
    let files = vec![Freight { from: dir.join("from"), part: dir.join("to") }];
    Carry { source: None, target: None, files, sparse, streams: 2, zip: None, rate: None, ports: None }
}

fn control() -> Control {
    Control::only_within(Duration::from_secs(60))
}

fn arrived(report: Report) -> Arrived {
    match report {
        Report::Done(mut files) => files.remove(0),
        Report::Failed { why, text } => panic!("{why:?}: {text}"),
    }
}

/// Has the journal be one of an earlier boot.
fn booted(journal: &Path) {
    let mut bytes = fs::read(journal).expect("reads");
    let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line");
    bytes[end - 1] = if bytes[end - 1] == b'0' { b'1' } else { b'0' };
    fs::write(journal, bytes).expect("writes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_arrives_is_what_left(pieces in pieces(), again in pieces(), damage in 0..3_000_000_u64, allocate: bool) {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        build(&from, &pieces);
        let carry = one(dir.path(), if allocate { Sparse::Allocate } else { Sparse::Holes });
        let first = arrived(go(&carry, &control()).expect("runs"));
        let bytes = fs::read(&from).expect("reads");
        prop_assert!(bytes == fs::read(&to).expect("reads"));
        prop_assert!(allocate || fs::metadata(&to).expect("there").blocks() <= fs::metadata(&from).expect("there").blocks() + 8);

        // Interrupted: the journal is there, and nothing is read or sent again.
        let same = arrived(go(&carry, &control()).expect("runs"));
        prop_assert_eq!((&first.digest, 0), (&same.digest, same.sent));
        prop_assert!(bytes == fs::read(&to).expect("reads"));

        // By a power cut: the part is not what the journal says, and the machine was booted since.
        booted(&journal_of(&to));
        let part = File::options().write(true).open(&to).expect("opens");
        if damage < bytes.len() as u64 {
            part.write_all_at(b"damage", damage.min(bytes.len() as u64 - 6.min(bytes.len() as u64))).expect("writes");
            part.set_len(bytes.len() as u64).expect("stays");
        }
        let second = arrived(go(&carry, &control()).expect("runs"));
        prop_assert!(bytes == fs::read(&to).expect("reads"));
        prop_assert_eq!((&first.digest, first.data), (&second.digest, second.data));
        prop_assert!(second.sent <= 1 << 20 , "{} of {} sent again", second.sent, first.sent);

        // Another source starts anew.
        fs::remove_file(&from).expect("there");
        build(&from, &again);
        arrived(go(&carry, &control()).expect("runs"));
        prop_assert!(fs::read(&from).expect("reads") == fs::read(&to).expect("reads"));
    }
}

#[test]
fn a_cancel_leaves_what_the_next_journey_goes_on_with() {
    let dir = tempfile::tempdir().expect("a directory");
    build(&dir.path().join("from"), &[Piece::Data(7, 40 << 20)]);
    let mut carry = one(dir.path(), Sparse::Holes);
    carry.rate = Some(40 << 20);
    let control = Control::new(Cancel::new());
    let stopped = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs::metadata(journal_of(&dir.path().join("to"))).is_ok_and(|data| data.len() > 200) {
                std::thread::sleep(Duration::from_millis(5));
            }
            control.cancel.set();
        });
        go(&carry, &control)
    });
    assert!(stopped.is_err());
    carry.rate = None;
    let done = arrived(go(&carry, &self::control()).expect("runs"));
    assert!(done.resumed > 0 && done.sent < 40 << 20, "{done:?}");
    assert!(fs::read(dir.path().join("from")).expect("reads") == fs::read(dir.path().join("to")).expect("reads"));
}

#[test]
fn a_copy_is_for_nobody_whom_the_original_was_not_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    build(&from, &[Piece::Data(1, 9)]);
    fs::set_permissions(&from, fs::Permissions::from_mode(0o400)).expect("a mode");
    arrived(go(&one(dir.path(), Sparse::Holes), &control()).expect("runs"));
    assert_eq!(fs::metadata(&to).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("from")).expect("makes");
    let report = go(&one(dir.path(), Sparse::Holes), &control()).expect("runs");
    assert!(matches!(report, Report::Failed { why: Why::Other, text } if text.ends_with("is no regular file")));
    assert!(!dir.path().join("to").exists());
    fs::remove_dir(dir.path().join("from")).expect("removes");
    build(&dir.path().join("from"), &[Piece::Data(1, 9)]);
    fs::write(dir.path().join("elsewhere"), "kept").expect("writes");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("to")).expect("links");
    let report = go(&one(dir.path(), Sparse::Holes), &control()).expect("runs");
    assert!(matches!(report, Report::Failed { .. }), "a link is not written through");
    assert_eq!(fs::read(dir.path().join("elsewhere")).expect("reads"), b"kept");
}

#[test]
fn journals_of_staging_files_are_staging_files_of_the_same_owner() {
    let me = crate::exec::staging::Owner::me().expect("proc");
    let part = crate::exec::staging::staging_path(Path::new("/ds"), &me, &crate::exec::staging::journey_name("ab"));
    let journal = journal_of(&part);
    assert_eq!(crate::exec::staging::owner_of(journal.file_name().expect("a name")), Some(me));
    assert_ne!(journal, part);
    assert_eq!(journal_of(Path::new("/a/b")), Path::new("/a/b.journal"));
}
