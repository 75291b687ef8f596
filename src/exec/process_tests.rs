//! Tests of [`super`]: real children.

use super::*;
use crate::exec::control::Cancel;

fn sh(script: &str) -> Spawn {
    Spawn::of(&Cmd::new("sh").arg("-c").arg(script), &Programs::default()).expect("sh is installed")
}

fn control() -> Control {
    Control::only_within(Duration::from_secs(60))
}

fn gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn output_is_captured_and_both_are_drained() {
    let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; echo end >&2";
    let done = run(&sh(script), ProcessIo::default(), &control()).expect("runs");
    assert_eq!((done.status, done.stdout.len()), (0, 300_000));
    assert_eq!(done.stderr.len(), STDERR_KEPT);
    assert!(done.stderr.ends_with("end\n"));
}

#[test]
fn input_comes_from_bytes_streams_and_files() {
    let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut stream = &text[..];
    let mut file = tempfile::tempfile().expect("temp");
    file.write_all(&text).expect("write");
    io::Seek::rewind(&mut file).expect("rewind");
    for stdin in [Stdin::Bytes(text.clone()), Stdin::Stream(&mut stream), Stdin::File(file)] {
        let done = run(&sh("cat"), ProcessIo { stdin, ..ProcessIo::default() }, &control()).expect("cat");
        assert!(done.stdout == text);
    }
    let done = run(&sh("cat"), ProcessIo::default(), &control()).expect("cat");
    assert!(done.stdout.is_empty());
}

#[test]
fn a_child_may_leave_its_input_unread() {
    let stdin = Stdin::Bytes(vec![0; 1 << 20]);
    run(&sh("exit 0"), ProcessIo { stdin, ..ProcessIo::default() }, &control()).expect("no broken pipe");
}

#[test]
fn a_failing_input_is_said() {
    struct Bad;
    impl Read for Bad {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    let io = ProcessIo { stdin: Stdin::Stream(&mut Bad), ..ProcessIo::default() };
    let error = run(&sh("cat"), io, &control()).expect_err("must fail");
    assert!(matches!(error.kind, ProcessErrorKind::Io(_)), "{error:?}");
}

#[test]
fn a_failure_is_one_line() {
    let error = run(&sh("echo a >&2; echo 'sh: why' >&2; echo >&2; exit 3"), ProcessIo::default(), &control());
    let text = error.expect_err("must fail").to_string();
    assert!(text.starts_with("sh -c ") && text.ends_with(" failed with exit status 3: sh: why"), "{text}");
    let error = run(&sh("kill -USR1 $$"), ProcessIo::default(), &control()).expect_err("must fail");
    assert!(matches!(error.kind, ProcessErrorKind::Signal(10)));
}

#[test]
fn a_status_can_be_accepted() {
    let cmd = Cmd::new("sh").args(["-c", "exit 3"]).also_ok(3);
    let spawn = Spawn::of(&cmd, &Programs::default()).expect("sh");
    assert_eq!(run(&spawn, ProcessIo::of(&cmd), &control()).expect("accepted").status, 3);
}

#[test]
fn secrets_reach_the_child_and_nothing_else() {
    let cmd = Cmd::new("sh")
        .args(["-c", "cat; printf %s \"$KEY\"; echo \"bad key $KEY\" >&2"])
        .env("KEY", Secret::new("canary1"))
        .stdin(Secret::new("canary2"));
    let spawn = Spawn::of(&cmd, &Programs::default()).expect("sh");
    let done = run(&spawn, ProcessIo::of(&cmd), &control()).expect("runs");
    assert_eq!(done.stdout, b"canary2canary1");
    assert_eq!(done.stderr, "bad key ***\n");
}

#[test]
fn a_grandchild_that_keeps_the_pipes_does_not_hang_us() {
    let begin = Instant::now();
    let done = run(&sh("sleep 30 & echo $!"), ProcessIo::default(), &control()).expect("runs");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let pid: i32 = String::from_utf8_lossy(&done.stdout).trim().parse().expect("a number");
    rustix::process::kill_process(Pid::from_raw(pid).expect("pid"), Signal::KILL).expect("ours to kill");
}

#[test]
fn a_grandchild_that_keeps_the_input_does_not_hang_us() {
    let stdin = Stdin::Bytes(vec![0; 1 << 20]);
    let io = ProcessIo { stdin, ..ProcessIo::default() };
    let begin = Instant::now();
    // A background job of a shell without job control gets /dev/null, so the input is named.
    let done = run(&sh("exec 3<&0; sleep 30 <&3 >/dev/null 2>&1 & echo $!"), io, &control()).expect("runs");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let pid: i32 = String::from_utf8_lossy(&done.stdout).trim().parse().expect("a number");
    rustix::process::kill_process(Pid::from_raw(pid).expect("pid"), Signal::KILL).expect("ours to kill");
}

#[test]
fn cancelling_ends_the_whole_group() {
    let cancel = Cancel::new();
    let control = Control::new(cancel.clone()).within(Duration::from_secs(60));
    let (mut reader, mut writer) = io::pipe().expect("pipe");
    let pids = thread::scope(|scope| {
        let canceller = scope.spawn(move || {
            let mut line = [0; 32];
            let len = reader.read(&mut line).expect("two numbers");
            cancel.set();
            String::from_utf8_lossy(&line[..len]).into_owned()
        });
        let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(&mut writer) };
        let error = run(&sh("sleep 100 & echo $! $$; wait"), io, &control).expect_err("must be cancelled");
        assert!(matches!(error.kind, ProcessErrorKind::Stopped(Stopped::Cancelled)), "{error:?}");
        canceller.join().expect("no panic")
    });
    let begin = Instant::now();
    for pid in pids.split_whitespace().map(|pid| pid.parse().expect("a number")) {
        while !gone(pid) {
            assert!(begin.elapsed() < Duration::from_secs(30), "{pid} is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_stubborn_child_is_killed_after_the_grace_and_its_children_too() {
    let begin = Instant::now();
    let dir = tempfile::tempdir().expect("temp");
    let pids = dir.path().join("pids");
    let script = format!("trap '' TERM; sleep 100 & echo $! $$ > {}; while :; do sleep 100; done", pids.display());
    let error = run(&sh(&script), ProcessIo::default(), &Control::only_within(Duration::from_secs(1)));
    assert!(matches!(error.expect_err("late").kind, ProcessErrorKind::Stopped(Stopped::Deadline)));
    let took = begin.elapsed();
    assert!(took >= GRACE && took < Duration::from_secs(30), "{took:?}");
    let pids = std::fs::read_to_string(pids).expect("pids");
    for pid in pids.split_whitespace().map(|pid| pid.parse().expect("a number")) {
        while !gone(pid) {
            assert!(begin.elapsed() < Duration::from_secs(30), "{pid} is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn too_much_output_ends_the_child() {
    let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Capture(1000) };
    let error = run(&sh("exec cat /dev/zero"), io, &control()).expect_err("must fail");
    assert!(matches!(error.kind, ProcessErrorKind::TooMuch(1000)), "{error:?}");
}

#[test]
fn a_panicking_writer_leaves_no_child() {
    struct Panics;
    impl Write for Panics {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            std::panic::panic_any(String::from_utf8_lossy(bytes).into_owned())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let caught = std::panic::catch_unwind(|| {
        let io = ProcessIo { stdin: Stdin::Null, stdout: Stdout::Writer(&mut Panics) };
        run(&sh("echo $$; exec sleep 100"), io, &control())
    });
    let pid = *caught.expect_err("panics").downcast::<String>().expect("the text");
    assert!(gone(pid.trim().parse().expect("a number")));
}

#[test]
fn limits_hold() {
    let limits =
        Limits { cpu_seconds: Some(7), address_space: Some(1 << 30), file_size: Some(4096), wall_seconds: None };
    let cmd = Cmd::new("sh").args(["-c", "ulimit -t; ulimit -v; ulimit -f"]).limits(limits);
    let done = run(&Spawn::of(&cmd, &Programs::default()).expect("sh"), ProcessIo::of(&cmd), &control());
    assert_eq!(done.expect("runs").stdout, b"7\n1048576\n8\n");
}

#[test]
fn programs_are_found_overridden_or_missed() {
    let programs = Programs::default().with("qemu-img", ["sh", "-c", "echo \"$@\"", "x"]);
    let cmd = Cmd::new("qemu-img").args(["a b", "c"]);
    let done = run(&Spawn::of(&cmd, &programs).expect("sh"), ProcessIo::of(&cmd), &control());
    assert_eq!(done.expect("runs").stdout, b"a b c\n");
    let error = Spawn::of(&Cmd::new("no-such-program"), &programs).expect_err("missing").to_string();
    assert_eq!(error, "Cannot find the program no-such-program: install the package no-such-program");
    let error = Missing { program: "mkfs.xfs".to_owned() }.to_string();
    assert_eq!(error, "Cannot find the program mkfs.xfs: install the package xfsprogs");
    let argv = Programs::default().argv(&Cmd::new("lvs").arg("x").sudo());
    assert_eq!(argv, ["sudo", "-n", "lvs", "x"]);
}
