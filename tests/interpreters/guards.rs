//! What is run when a script ends, however it ends.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onestore::exec::cmd::Cmd;
use onestore::exec::error::OpErrorKind;
use onestore::exec::host::wire;
use onestore::exec::op::{Op, Script};

use crate::harness::both;

fn sh(text: &str) -> Cmd {
    Cmd::new("sh").args(["-c", text])
}

/// Notes a word in a file of the tree.
fn note(root: &Path, word: &str) -> Cmd {
    sh("echo $1 >>\"$2\"").args(["sh", word]).arg(root.join("notes"))
}

fn guard(cmd: Cmd, only_on_failure: bool) -> Op {
    Op::Guard { cmd, only_on_failure }
}

fn notes(outcome: &crate::harness::Outcome) -> String {
    let entry = outcome.tree.iter().find(|entry| entry.path == Path::new("notes"));
    entry.map(|entry| String::from_utf8_lossy(&entry.content).replace('\n', " ")).unwrap_or_default()
}

#[test]
fn guards_act_when_all_else_is_done_newest_first() {
    let ops = |root: &Path| {
        vec![
            guard(note(root, "last"), false),
            guard(note(root, "failed"), true),
            guard(note(root, "first"), false),
            Op::Run(note(root, "work")),
        ]
    };
    let outcome = both(|_| {}, ops, None);
    assert_eq!((outcome.values().len(), notes(&outcome).as_str()), (4, "work first last "));
}

#[test]
fn a_failure_lets_all_guards_act_and_stays_the_failure() {
    let ops = |root: &Path| {
        vec![
            guard(note(root, "always"), false),
            guard(note(root, "failed"), true),
            guard(sh("exit 7"), true),
            Op::Run(sh("echo why >&2; exit 3")),
            Op::Run(note(root, "never")),
        ]
    };
    let outcome = both(|_| {}, ops, None);
    assert_eq!(notes(&outcome), "failed always ");
    let kind = OpErrorKind::Program { status: Some(3), stderr: String::new() };
    outcome.failed(3, &kind, "sh -c 'echo why >&2; exit 3' failed with exit status 3: why");
}

#[test]
fn a_guard_that_fails_is_told_and_tried_three_times() {
    let bad = |root: &Path| note(root, "try").arg("x");
    let stuck = |root: &Path| {
        let text = "echo try >>\"$1\"; echo frozen >&2; exit 5";
        sh(text).arg("sh").arg(root.join("notes"))
    };
    let outcome = both(|_| {}, |root| vec![guard(bad(root), false), guard(stuck(root), false)], None);
    assert_eq!(notes(&outcome), "try try try try ", "the other one is not forgotten");
    let (index, _, text) = outcome.result.as_ref().expect_err("fails");
    assert!(*index == Some(1) && text.ends_with("failed with exit status 5: frozen"), "{text}");

    let ops = |root: &Path| vec![guard(stuck(root), false), Op::MakeDir { path: "/dev/null/x".into() }];
    let outcome = both(|_| {}, ops, None);
    let (index, _, text) = outcome.result.as_ref().expect_err("fails");
    assert!(
        *index == Some(1)
            && text.starts_with("Cannot create the directory /dev/null/x: Not a directory; and then: sh -c"),
        "{text}"
    );
    assert!(text.ends_with("failed with exit status 5: frozen"), "{text}");
}

#[test]
fn one_that_cannot_be_posted_stops_the_script_before_anything_is_done() {
    let ops = |root: &Path| vec![guard(Cmd::new("no-such-program"), false), Op::Run(note(root, "work"))];
    let outcome = both(|_| {}, ops, None);
    outcome.failed(
        0,
        &OpErrorKind::MissingProgram,
        "Cannot find the program no-such-program: install the package no-such-program",
    );
    assert_eq!(notes(&outcome), "");
}

/// The far side as ssh would start it, killed in the middle: by SIGKILL, which no trap sees.
#[test]
fn a_killed_runner_does_not_keep_a_guard_from_acting() {
    for agent in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        if agent {
            fs::create_dir(dir.path().join("onestore")).expect("makes");
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_onestore"), dir.path().join("onestore/onestore"))
                .expect("links");
        }
        let script = Script::new([
            guard(note(dir.path(), "always"), false),
            guard(note(dir.path(), "failed"), true),
            Op::Run(note(dir.path(), "frozen")),
            Op::Run(Cmd::new("sleep").arg("300")),
        ]);
        let head = wire::Delivery::of(&script).expect("delivers").head;
        let mut far = Command::new("setsid");
        far.args(["sh", "-c", wire::COMMAND]).env("SCRIPTS_REMOTE_DIR", dir.path());
        let mut far = far.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        far.stdin.as_mut().expect("a pipe").write_all(&head).expect("writes");
        let words = || fs::read_to_string(dir.path().join("notes")).unwrap_or_default().replace('\n', " ");
        let within = |wanted: &str| {
            let until = Instant::now() + Duration::from_secs(20);
            while words() != wanted && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(words(), wanted, "agent: {agent}");
        };
        within("frozen ");
        // The whole group but the guards, which have sessions of their own.
        let group = rustix::process::Pid::from_child(&far);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).expect("kills");
        far.wait().expect("ends");
        let until = Instant::now() + Duration::from_secs(20);
        while words().len() < "frozen failed always ".len() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Each is on its own then.
        assert!(
            ["frozen failed always ", "frozen always failed "].contains(&words().as_str()),
            "agent: {agent}: {}",
            words()
        );
    }
}
