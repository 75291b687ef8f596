//! The kit judging a tree of three scripts, so that the judge itself is known to be right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::case::{self, Case};
use super::sandbox::Tree;
use super::{files, run, vars::Vars};

/// A tree with one entry, `datastore/fs/cp`, that runs this script.
fn tree(script: &str) -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let entry = dir.path().join("datastore/fs/cp");
    fs::create_dir_all(entry.parent().unwrap()).unwrap();
    fs::write(&entry, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o755)).unwrap();
    let tree = Tree { drivers: dir.path().to_owned(), lib: None, env: Vec::new() };
    (dir, tree)
}

fn one(text: &str) -> Case {
    case::parse(&format!("action = 'datastore/fs/cp'\n{text}"), "t", Path::new("t.toml")).unwrap().remove(0)
}

fn difference(script: &str, text: &str) -> Option<String> {
    let (_dir, tree) = tree(script);
    run::case(&one(text), &tree, None).differences.into_iter().next()
}

const FAILS: &str = "[[case]]\nname = 'n'\nwhy = 'w'\nexpect.rc = 'fail'\n";

#[test]
fn a_failure_needs_exactly_one_plain_line() {
    assert_eq!(difference("cat >/dev/null; echo 'ERROR: cp: x' >&2; echo why >&2; exit 1", FAILS), None);
    assert!(difference("exit 1", FAILS).unwrap().starts_with("0 plain lines"));
    assert!(difference("echo a >&2; echo b >&2; exit 1", FAILS).unwrap().starts_with("2 plain lines"));
    assert_eq!(difference("exit 0", FAILS).unwrap(), "It succeeded");
}

#[test]
fn leftovers_and_changes_are_found() {
    assert!(difference("touch $TMPDIR/x; echo why >&2; exit 1", FAILS).unwrap().starts_with("left behind"));
    let before = "[[case]]\nname = 'n'\nwhy = 'w'\nbefore = [{ path = '{work}/a', is = 'text', text = 'x' }]\n\
                  expect.rc = 'fail'\nargv = ['{work}/a']";
    assert!(difference("echo y > $1; echo why >&2; exit 1", before).unwrap().starts_with("changed"));
    assert!(difference("rm $1; echo why >&2; exit 1", before).unwrap().starts_with("gone"));
    assert_eq!(difference("echo why >&2; exit 1", before), None);
}

#[test]
fn groups_of_stdout_name_files() {
    let case = "[[case]]\nname = 'n'\nwhy = 'w'\nimage = { PATH = '{work}/a' }\n\
                before = [{ path = '{work}/a', is = 'pattern', size = '8K' }]\n\
                [case.expect]\nrc = 0\nstdout = '(?<source>{work}/b) raw\\n'\n\
                after = [{ path = '{source}', same_as = '{work}/a', size = '8K', format = 'raw' }]";
    let work = "root=$(dirname \"$HOME\"); cd \"$root/files\"";
    assert_eq!(difference(&format!("{work}; cp a b; echo \"$PWD/b raw\""), case), None);
    let truncated = difference(&format!("{work}; head -c 100 a > b; echo \"$PWD/b raw\""), case);
    assert!(truncated.unwrap().contains("size"));
}

#[test]
fn a_driver_that_hangs_is_ended() {
    let case = "[[case]]\nname = 'n'\nwhy = 'w'\nlimit_s = 1\nexpect.rc = 0";
    assert_eq!(difference("sleep 100", case).unwrap(), "It did not end within 1 s");
    let kill = "[[case]]\nname = 'n'\nwhy = 'w'\nkill = { signal = 'TERM', after_ms = 200 }\n\
                expect = { rc = 143, error_lines = 0 }";
    assert_eq!(difference("sleep 100", kill), None);
}

#[test]
fn payloads_have_oneds_shape() {
    let case = "[[case]]\nname = 'n'\nwhy = 'w'\nstdin_as = 'plain'\n\
                image = { PATH = \"/a'b\", MD5 = 'x' }\ndatastore = { CONVERT = 'no' }\nexpect.rc = 0";
    let case = one(case);
    let mut vars = Vars::default();
    vars.set("base", "/base");
    let xml = String::from_utf8(super::payload::stdin(&case.calls[0], &vars).unwrap()).unwrap();
    assert!(xml.starts_with("<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID>"), "{xml}");
    assert!(xml.contains("<PATH><![CDATA[/a'b]]></PATH>"));
    assert!(xml.contains("<TEMPLATE><DEV_PREFIX><![CDATA[vd]]></DEV_PREFIX><MD5><![CDATA[x]]></MD5></TEMPLATE>"));
    assert!(xml.contains("<BASE_PATH><![CDATA[/base]]></BASE_PATH>"));
    assert!(xml.contains("<CONVERT><![CDATA[no]]></CONVERT>"));
}

#[test]
fn unknown_keys_and_doubled_names_are_refused() {
    let parse = |text: &str| case::parse(text, "t", Path::new("t.toml"));
    assert!(parse("[[case]]\nname = 'n'\nwhy = 'w'\naction = 'a'\nexpect.rc = 0\nwhat = 1").is_err());
    assert!(parse("[[case]]\nname = 'n'\nwhy = 'w'\naction = 'a'\nexpect = { rc = 0, rv = 1 }").is_err());
    let twice = "action = 'a'\nexpect.rc = 0\n[[case]]\nname = 'n'\nwhy = 'w'\n[[case]]\nname = 'n'\nwhy = 'w'";
    assert!(parse(twice).is_err());
}

#[test]
fn paths_are_compared_without_double_slashes() {
    assert_eq!(files::clean("/a//b/./c"), Path::new("/a/b/c"));
}

/// The cases of this repository can be read, and there are as many as promised.
#[test]
fn the_cases_can_be_read() {
    let cases = case::load(&super::default_cases(), None).unwrap();
    assert!(cases.len() >= 400, "{} cases", cases.len());
    assert!(cases.iter().all(|case| !case.why.is_empty() && !case.calls.is_empty()));
}
