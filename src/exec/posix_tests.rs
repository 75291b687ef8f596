//! Tests of [`super`]: rendered scripts under real shells. `tests/interpreters.rs` has the operations.

use std::io::Cursor;
use std::io::Read;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::exec::cmd::{Limits, Secret};
use crate::exec::control::Control;
use crate::exec::interpret::Io;
use crate::exec::process::{Finished, ProcessIo, Spawn, Stdin, run as run_process};

/// What a login shell does with the remote command: `<shell> -c <command>`.
fn deliver(shell: &str, first_line: Vec<u8>, data: &[u8]) -> Result<Finished, ProcessError> {
    let spawn = Spawn::of(&Cmd::new(shell).arg("-c").arg(REMOTE_COMMAND), &Programs::default())?;
    let mut stream = Cursor::new(first_line).chain(data);
    let io = ProcessIo { stdin: Stdin::Stream(&mut stream), ..ProcessIo::default() };
    run_process(&spawn, io, &Control::only_within(Duration::from_secs(120)))
}

const SHELLS: [&str; 2] = ["dash", "bash"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_quoted_word_is_the_word(words in prop::collection::vec(prop::collection::vec(1_u8.., 0..40), 1..8)) {
        let quoted: Vec<String> = words.iter().map(|word| quote(OsStr::from_bytes(word))).collect();
        prop_assert!(quoted.iter().all(|text| text.is_ascii()));
        let text = format!("printf '%s\\0' {}", quoted.join(" "));
        let expected: Vec<u8> = words.iter().flat_map(|word| [&word[..], b"\0"].concat()).collect();
        for shell in SHELLS {
            let spawn = Spawn::of(&Cmd::new(shell).arg("-c").arg(&text), &Programs::default()).expect("shell");
            let done = run_process(&spawn, ProcessIo::default(), &Control::only_within(Duration::from_secs(60)));
            prop_assert_eq!(&done.expect("runs").stdout, &expected, "{}", shell);
        }
    }

    #[test]
    fn no_answer_makes_the_reader_panic(stdout in prop::collection::vec(any::<u8>(), 0..80), which in 0..10_u8) {
        let path = std::path::PathBuf::from("/a");
        let op = match which {
            0 => Op::Stat { path, follow: true },
            1 => Op::ReadLink { path },
            2 => Op::List { path },
            3 => Op::Space { path },
            4 => Op::TreeSize { path },
            5 => Op::Md5 { path },
            6 => Op::Receive { path, sparse: Sparse::Holes },
            7 => Op::Read { path, offset: 0, len: 1 },
            8 => Op::Sha256 { path },
            _ => Op::Run(Cmd::new("x")),
        };
        let script = Script::from(op);
        let _ = parse(&script, &stdout);
        let _ = parse(&script, &[b"0 ", &stdout[..]].concat());
        let _ = parse(&script, &[b"0 :", &stdout[..]].concat());
        let _ = failure(&script, Some(1), &[b"@onestore-failed ", &stdout[..]].concat());
    }
}

#[test]
fn awkward_words_are_quoted() {
    for word in [&b""[..], b"-n", b"'", b"\n\n", b"\xff\n", b"\x81\x88\n\x82", b"$(x)`x`\\", b"!", b"\xc3\xa9t\xc3\xa9"]
    {
        let text = format!("printf %s {}", quote(OsStr::from_bytes(word)));
        for shell in SHELLS {
            let spawn = Spawn::of(&Cmd::new(shell).arg("-c").arg(&text), &Programs::default()).expect("shell");
            let done = run_process(&spawn, ProcessIo::default(), &Control::only_within(Duration::from_secs(60)));
            assert_eq!(done.expect("runs").stdout, word, "{shell} {text}");
        }
    }
}

#[test]
fn a_large_script_travels_and_leaves_the_data_alone() {
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let script = format!("# {}\necho begin; cat; echo end", "x".repeat(1 << 20));
    for shell in SHELLS {
        let done = deliver(shell, first_line(&script), &data).expect("runs");
        assert!(done.stdout == [b"begin\n", &data[..], b"end\n"].concat(), "{shell}");
    }
}

#[test]
fn secrets_travel_in_the_line_and_not_in_any_argument_list() {
    let cmd = Cmd::new("sh")
        .args(["-c", "cat; printf %s \"$KEY\"; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' >&2"])
        .env("KEY", Secret::new("canary'1"))
        .stdin(Secret::new("canary2\n"));
    let script = Script::from(Op::Run(cmd));
    for shell in SHELLS {
        let done = deliver(shell, delivery(&script).1, b"").expect("runs");
        assert_eq!(parse(&script, &done.stdout), Ok(vec![Value::Bytes(b"canary2\ncanary'1".to_vec())]));
        assert!(!done.stderr.contains("canary") && !done.stderr.contains(&BASE64.encode("canary2")), "{}", done.stderr);
    }
}

#[test]
fn a_failure_says_which_operation_and_why() {
    let script = Script::new([
        Op::Run(Cmd::new("sh").args(["-c", "echo no harm done >&2"])),
        Op::Run(Cmd::new("false")),
        Op::Run(Cmd::new("true")),
    ]);
    let missing = Script::from(Op::Run(Cmd::new("qemu-img-x")));
    for shell in SHELLS {
        let error = deliver(shell, delivery(&script).1, b"").expect_err("fails");
        let error = failure(&script, Some(1), error.stderr.as_bytes());
        assert_eq!((error.index, error.to_string().as_str()), (Some(1), "false failed with exit status 1"));
        let error = deliver(shell, delivery(&missing).1, b"").expect_err("fails");
        let error = failure(&missing, Some(1), error.stderr.as_bytes());
        assert_eq!((error.index, error.kind), (Some(0), OpErrorKind::MissingProgram));
    }
}

#[test]
fn a_connection_that_never_was_is_no_operations_fault() {
    let script = Script::from(Op::Sync { path: "/".into() });
    let error = failure(&script, Some(255), b"ssh: connect to host x port 22: Connection refused\r\n");
    assert_eq!(error.index, None);
    assert!(error.to_string().ends_with("255: ssh: connect to host x port 22: Connection refused"), "{error}");
}

#[test]
fn a_login_shells_chatter_is_skipped() {
    let script = Script::from(Op::Stat { path: "/".into(), follow: true });
    let stat = Stat { kind: FileKind::Dir, size: 4096, mode: 0o755, dev: 5, ino: 2 };
    assert_eq!(parse(&script, b"Welcome to node7\n0 :41ed 4096 5 2\nend\n"), Ok(vec![Value::Stat(stat)]));
    assert!(parse(&script, b"0 :41ed 4096\nend\n").is_err());
    assert!(parse(&script, b"0 :41ed 4096 5 2\n").is_err(), "cut off");
}

#[test]
fn a_line_that_was_cut_off_runs_nothing() {
    let script = Script::from(Op::Run(Cmd::new("sh").args(["-c", "echo harm >&2"])));
    let whole = delivery(&script).1;
    for shell in SHELLS {
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            let error = deliver(shell, whole[..len].to_vec(), b"").expect_err("fails");
            let error_text = failure(&script, Some(1), error.stderr.as_bytes());
            assert!(error.stderr.is_empty() && error_text.index.is_none(), "{shell} {len} {}", error.stderr);
        }
        assert!(deliver(shell, b"no base64!\n".to_vec(), b"").is_err());
    }
}

#[test]
fn a_program_with_a_time_limit_stays_in_the_group_of_its_script() {
    let group = || Cmd::new("cut").args(["-d", " ", "-f", "5", "/proc/self/stat"]);
    let limits = Limits { wall_seconds: Some(60), ..Limits::default() };
    let script = Script::new([Op::Run(group()), Op::Run(group().limits(limits))]);
    let done = deliver("dash", first_line(&render(&script)), b"").expect("runs");
    let answers = parse(&script, &done.stdout).expect("answers");
    // What ends the one when the connection breaks has to end the other.
    assert_eq!(answers[0].text(), answers[1].text());
}

#[test]
fn a_time_limit_is_told_from_other_deaths() {
    let limits = Limits { wall_seconds: Some(1), ..Limits::default() };
    let sh = |text: &str| Cmd::new("sh").args(["-c", text]).limits(limits);
    for (cmd, end) in [
        (sh("exec sleep 20"), " ran for more than 1 seconds, its limit, and was killed"),
        (sh("kill -9 $$"), " failed with exit status 137: Killed"),
    ] {
        let script = Script::from(Op::Run(cmd));
        let done = deliver("dash", first_line(&render(&script)), b"").expect_err("fails");
        let there = failure(&script, Some(1), done.stderr.as_bytes()).to_string();
        let control = Control::only_within(Duration::from_secs(120));
        let here = crate::exec::interpret::run(&script, Io::default(), &Programs::default(), &control);
        let here = here.expect_err("fails").to_string();
        assert!(there.ends_with(end), "{there}");
        assert!(here.contains(" seconds, its limit,") == there.contains(" seconds, its limit,"), "{here}");
    }
}

#[test]
fn what_is_written_is_unfinished_where_it_is_swept() {
    let me = staging::Owner::me().unwrap();
    let claim = staging::claim_path(Path::new("/ds/103/7"), &me);
    let write = |path: &str| Op::Write { path: path.into(), content: Secret::new("x"), mode: 0o644 };
    let temp = staging::beside(&claim, 1).unwrap();
    let script = Script::new([Op::Claim { path: claim }, write("/ds/103/.monitor")]);
    let text = render(&script);
    assert!(text.contains(&format!("os_temp '/ds/103/.monitor' {}\n", q(&temp))), "{text}");
    let text = render(&Script::new([write("/ds/103/.monitor")]));
    assert!(text.contains("os_temp '/ds/103/.monitor'\n"), "{text}");
}
