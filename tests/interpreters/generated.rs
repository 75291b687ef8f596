//! Generated scripts of file operations.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use onestore::exec::cmd::Secret;
use onestore::exec::error::OpErrorKind;
use onestore::exec::op::{Op, Script, Sparse};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::harness::{AWKWARD, Outcome, as_sh, garden, in_process, rm};

/// Paths of the garden, and some that are not there.
fn place() -> impl Strategy<Value = PathBuf> {
    let fixed = [
        "a",
        "d",
        "d/b",
        "d/e",
        "d/e/b2",
        "link",
        "dangling",
        "dirlink",
        "empty",
        "n1",
        "d/n2",
        "no/n3",
        "a/n4",
        "dirlink/b",
    ];
    let awkward = AWKWARD.map(|name| PathBuf::from(OsStr::from_bytes(name)));
    prop::sample::select(fixed.map(PathBuf::from).into_iter().chain(awkward).collect::<Vec<_>>())
}

/// An operation on relative paths, which [`rooted`] makes absolute.
fn operation() -> impl Strategy<Value = Op> {
    let sparse = || prop_oneof![Just(Sparse::Holes), Just(Sparse::Allocate)];
    let pair = || (place(), place());
    prop_oneof![
        (place(), any::<bool>()).prop_map(|(path, follow)| Op::Stat { path, follow }),
        place().prop_map(|path| Op::ReadLink { path }),
        place().prop_map(|path| Op::List { path }),
        (place(), 0..20_u64, 0..20_u64).prop_map(|(path, offset, len)| Op::Read { path, offset, len }),
        (place(), 0..20_u64).prop_map(|(path, len)| Op::Head { path, len }),
        (place(), 0..3_u32).prop_map(|(path, depth)| Op::Tree { path, depth }),
        place().prop_map(|path| Op::TreeSize { path }),
        place().prop_map(|path| Op::Md5 { path }),
        place().prop_map(|path| Op::Sha256 { path }),
        place().prop_map(|path| Op::MakeDir { path }),
        place().prop_map(|path| Op::RemoveDirIfEmpty { path }),
        pair().prop_map(|(target, link)| Op::Symlink { target, link }),
        pair().prop_map(|(from, to)| Op::HardLink { from, to }),
        (place(), "\\PC{0,20}", 0..0o7777_u32).prop_map(|(path, text, mode)| Op::Write {
            path,
            content: Secret::new(text),
            mode
        }),
        pair().prop_map(|(from, to)| Op::Rename { from, to }),
        pair().prop_map(|(from, to)| Op::PutBack { from, to }),
        pair().prop_map(|(from, to)| Op::Move { from, to }),
        (place(), any::<bool>(), any::<bool>()).prop_map(|(path, tree, must_exist)| rm(path, tree, must_exist)),
        (place(), place(), sparse()).prop_map(|(from, to, sparse)| Op::Copy { from, to, sparse }),
        place().prop_map(|path| Op::PunchHoles { path }),
        (place(), 0..100_000_u64).prop_map(|(path, bytes)| Op::CreateSparse { path, bytes }),
        place().prop_map(|path| Op::Sync { path }),
        pair().prop_map(|(from, to)| Op::Publish { from, to }),
    ]
}

fn rooted(op: &Op, root: &Path) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::Stat { path, .. }
        | Op::ReadLink { path }
        | Op::List { path }
        | Op::Read { path, .. }
        | Op::Head { path, .. }
        | Op::Tree { path, .. }
        | Op::TreeSize { path }
        | Op::Md5 { path }
        | Op::Sha256 { path }
        | Op::MakeDir { path }
        | Op::RemoveDirIfEmpty { path }
        | Op::Symlink { link: path, .. }
        | Op::Write { path, .. }
        | Op::Remove { path, .. }
        | Op::PunchHoles { path }
        | Op::CreateSparse { path, .. }
        | Op::Sync { path } => *path = root.join(&path),
        Op::HardLink { from, to }
        | Op::Rename { from, to }
        | Op::PutBack { from, to }
        | Op::Move { from, to }
        | Op::Copy { from, to, .. }
        | Op::Publish { from, to } => {
            *from = root.join(&from);
            *to = root.join(&to);
        }
        op => panic!("{op:?} is not generated"),
    }
    op
}

/// Failures of which the two say different words, but mean the same: which operation failed is compared.
fn index_only(mut outcome: Outcome) -> Outcome {
    outcome.result = outcome.result.map_err(|(index, _, _)| (index, OpErrorKind::Other, String::new()));
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn generated_scripts_run_alike(ops in prop::collection::vec(operation(), 1..8), bash in any::<bool>()) {
        let fresh = || -> TempDir {
            let temp = tempfile::tempdir().expect("temp");
            garden(temp.path());
            temp
        };
        let script = |root: &Path| Script::new(ops.iter().map(|op| rooted(op, root)));
        let (one, two) = (fresh(), fresh());
        let here = in_process(&script(one.path()), one.path(), None);
        let there = as_sh(if bash { "bash" } else { "dash" }, &script(two.path()), two.path(), None);
        prop_assert_eq!(index_only(here), index_only(there));
    }
}
