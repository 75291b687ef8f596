//! Hosts over a real sshd: `cargo test --test lab_ssh -- --ignored`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use onestore::exec::cmd::Cmd;
use onestore::exec::control::{Cancel, Control, Stopped};
use onestore::exec::host::libssh2::LibSsh2;
use onestore::exec::host::local::Local;
use onestore::exec::host::openssh::OpenSsh;
use onestore::exec::host::policy::{Policy, Remote};
use onestore::exec::host::session::Target;
use onestore::exec::host::{ErrorKind, Host, HostName, config};
use onestore::exec::interpret::{Input, Io};
use onestore::exec::op::{Op, Script, Sparse, Value};
use sha2::{Digest, Sha256};

#[path = "lab/sshd.rs"]
mod sshd;
use sshd::{Sshd, with_argument, within};

fn name() -> HostName {
    HostName::new("lab").expect("a name")
}

fn control() -> Control {
    Control::new(Cancel::new()).within(Duration::from_secs(120))
}

fn openssh(lab: &Sshd) -> OpenSsh {
    OpenSsh::new(name(), lab.programs())
}

fn libssh2(lab: &Sshd) -> LibSsh2 {
    let config = config::ask(&name(), &[], &lab.programs(), &control()).expect("ssh -G");
    LibSsh2::new(name(), Target::find(&config).expect("libssh2 can"))
}

fn remote(lab: &Sshd, policy: Policy) -> (Remote, Arc<Mutex<Vec<String>>>) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&notes);
    let note = move |text: &str| sink.lock().expect("locks").push(text.to_owned());
    (Remote::new(name(), lab.programs(), policy, Arc::new(note)), notes)
}

/// Both remote clients.
fn clients(lab: &Sshd) -> Vec<(&'static str, Box<dyn Host>)> {
    vec![("openssh", Box::new(openssh(lab))), ("libssh2", Box::new(libssh2(lab)))]
}

fn run(host: &dyn Host, script: impl Into<Script>) -> Result<Vec<Value>, onestore::exec::host::ScriptError> {
    host.run(&script.into(), Io::default(), &control())
}

fn sh(text: &str) -> Op {
    Op::Run(Cmd::new("sh").args(["-c", text]))
}

/// Puts this binary where a synced remotes tree has it.
fn sync_agent(lab: &Sshd) {
    fs::create_dir_all(lab.path("remotes/onestore")).expect("makes");
    fs::copy(env!("CARGO_BIN_EXE_onestore"), lab.path("remotes/onestore/onestore")).expect("copies");
}

/// 64 MiB that do not repeat soon, from a counter.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (64 << 20) - self.0;
        let len = usize::try_from(left.min(buf.len() as u64)).expect("fits");
        for byte in &mut buf[..len] {
            *byte = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
            self.0 += 1;
        }
        Ok(len)
    }
}

fn digest(mut reader: impl Read) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match reader.read(&mut block).expect("reads") {
            0 => return hash.finalize().to_vec(),
            len => hash.update(&block[..len]),
        }
    }
}

fn questions_and_changes(dir: &Path) -> Script {
    let at = |name: &str| dir.join(name);
    let odd = at("it's $(touch /tmp/no) \"`x`\" \\ *;&|\n\u{e9}");
    Script::new([
        Op::Stat { path: odd.clone(), follow: true },
        Op::Remove { path: odd.clone(), tree: true, must_exist: false },
        Op::MakeDir { path: odd.clone() },
        Op::Write { path: odd.join("f"), content: onestore::exec::cmd::Secret::new("a\nb"), mode: 0o640 },
        Op::Read { path: odd.join("f"), offset: 1, len: 9 },
        Op::List { path: odd.clone() },
        Op::Symlink { target: "../x y".into(), link: odd.join("l") },
        Op::ReadLink { path: odd.join("l") },
        Op::Md5 { path: odd.join("f") },
        Op::Run(Cmd::new("printf").args(["%s|", "a b", "$HOME", "'", ""])),
        Op::Remove { path: odd, tree: true, must_exist: true },
    ])
}

#[test]
#[ignore = "needs sshd"]
fn every_host_and_both_far_sides_answer_the_same() {
    let lab = Sshd::start("");
    let script = questions_and_changes(&lab.path("data"));
    let here = run(&Local::default(), script.clone()).expect("local");
    for _ in ["sh", "agent"] {
        for (client, host) in clients(&lab) {
            assert_eq!(run(&*host, script.clone()).expect(client), here, "{client}");
        }
        sync_agent_once(&lab);
    }
}

fn sync_agent_once(lab: &Sshd) {
    if !lab.path("remotes").exists() {
        sync_agent(lab);
    }
}

#[test]
#[ignore = "needs sshd"]
fn the_far_side_is_the_synced_binary_of_the_same_version_only() {
    let lab = Sshd::start("");
    let host = openssh(&lab);
    // The agent runs its children below itself, sh below sh.
    let parents = || sh("cat /proc/$(cut -d' ' -f4 /proc/$$/stat)/comm");
    let parent = |host: &dyn Host| run(host, parents()).expect("runs")[0].text();
    assert_ne!(parent(&host), "onestore");
    fs::create_dir_all(lab.path("remotes/onestore")).expect("makes");
    let agent = lab.path("remotes/onestore/onestore");
    // Another version, one too old to know the verb, one for another machine: none has read anything.
    for status in [75, 2, 126] {
        fs::write(&agent, format!("#!/bin/sh\nexit {status}\n")).expect("writes");
        fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        assert_ne!(parent(&host), "onestore", "{status}");
    }
    fs::remove_file(&agent).expect("removes");
    sync_agent(&lab);
    assert_eq!(parent(&host), "onestore");
    assert_eq!(parent(&libssh2(&lab)), "onestore");
}

#[test]
#[ignore = "needs sshd"]
fn streams_of_64_mib_arrive_whole() {
    let lab = Sshd::start("");
    let expected = digest(Noise(0));
    for far_side in ["sh", "agent"] {
        for (client, host) in clients(&lab) {
            let path = lab.path(&format!("image-{client}-{far_side}"));
            let script = Script::from(Op::Receive { path: path.clone(), sparse: Sparse::Holes });
            let mut noise = Noise(0);
            let io = Io { input: Some(Input::Stream(&mut noise)), ..Io::default() };
            let answer = host.run(&script, io, &control()).expect(client);
            assert_eq!(answer, [Value::Number(64 << 20)]);
            assert_eq!(digest(File::open(&path).expect("opens")), expected, "{client} {far_side} in");
            let mut back = Vec::new();
            let io = Io { output: Some(&mut back), ..Io::default() };
            host.run(&Script::from(Op::Send { path }), io, &control()).expect(client);
            assert_eq!(digest(&back[..]), expected, "{client} {far_side} out");
        }
        sync_agent_once(&lab);
    }
}

#[test]
#[ignore = "needs sshd"]
fn two_mib_of_noise_on_stderr_do_not_stall() {
    let lab = Sshd::start("");
    for (client, host) in clients(&lab) {
        let answer =
            run(&*host, sh("head -c 2200000 /dev/zero | tr '\\0' x >&2; echo; head -c 300000 /dev/zero; echo done"));
        assert!(answer.expect(client)[0].text().ends_with("done"), "{client}");
    }
}

#[test]
#[ignore = "needs sshd"]
fn failures_name_the_operation_and_the_host() {
    let lab = Sshd::start("");
    for _ in ["sh", "agent"] {
        for (client, host) in clients(&lab) {
            let error = run(&*host, Op::Sync { path: "/none/here".into() }).expect_err("fails");
            assert_eq!(error.to_string(), "lab: Cannot sync /none/here: No such file or directory", "{client}");
            assert_eq!(error.kind, ErrorKind::Failed);
            let error = run(&*host, sh("echo oh no >&2; exit 255")).expect_err("fails");
            assert_eq!(error.kind, ErrorKind::Failed, "{client}: {error}");
            assert!(error.to_string().ends_with("failed with exit status 255: oh no"), "{error}");
        }
        sync_agent_once(&lab);
    }
}

#[test]
#[ignore = "needs sshd"]
fn a_host_that_cannot_be_reached_is_told_apart() {
    let lab = Sshd::start("");
    let reason = |extra: &str| {
        lab.configure(extra);
        let error = run(&openssh(&lab), sh("true")).expect_err("fails");
        assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
        error.to_string()
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    assert_eq!(
        reason(&format!("Port {port}")),
        "Cannot reach lab by ssh: Connection refused; check that oneadmin can log in with ssh lab"
    );
    let stranger = format!("IdentityFile {}\nIdentitiesOnly yes", lab.path("stranger").display());
    fs::rename(lab.path("id"), lab.path("id.away")).expect("renames");
    let refused = reason(&stranger);
    assert!(refused.contains(": Permission denied (publickey"), "{refused}");
    let error = run(&libssh2(&lab), sh("true")).expect_err("fails");
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    fs::rename(lab.path("id.away"), lab.path("id")).expect("renames");
    lab.configure("");
    lab.write_known_hosts("otherkey");
    assert!(reason("").contains("another key than known_hosts lists"));
    let error = run(&libssh2(&lab), sh("true")).expect_err("fails");
    assert!(error.to_string().contains("Host key verification failed"), "{error}");
    fs::write(lab.path("known_hosts"), "").expect("writes");
    assert!(reason("").contains("No ED25519 host key is known"));
}

#[test]
#[ignore = "needs sshd"]
fn hashed_known_hosts_are_understood() {
    let lab = Sshd::start("");
    let mut keygen = std::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-H", "-f"]).arg(lab.path("known_hosts")).stderr(std::process::Stdio::null());
    assert!(keygen.status().expect("runs").success());
    assert!(fs::read_to_string(lab.path("known_hosts")).expect("reads").starts_with("|1|"));
    assert_eq!(run(&libssh2(&lab), sh("echo a")).expect("runs")[0].text(), "a");
}

#[test]
#[ignore = "needs sshd"]
fn a_connection_that_breaks_is_an_error_and_nothing_hangs() {
    let lab = Sshd::start("");
    for (client, host) in clients(&lab) {
        let started = lab.path(client);
        let script = sh(&format!(": >'{}'; sleep 300", started.display()));
        let error = thread::scope(|scope| {
            let running = scope.spawn(|| run(&*host, script).expect_err("fails"));
            assert!(within(20, || started.exists()), "{client} starts");
            lab.cut_connections();
            running.join().expect("ends")
        });
        assert_eq!(error.kind, ErrorKind::Lost, "{client}: {error}");
    }
}

/// Gives up in the middle: either the connection is cut, or the reader fails.
struct Halts<'a>(&'a Sshd, u64, bool);
impl Read for Halts<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 += buf.len() as u64;
        buf.fill(7);
        match self.1 > 8 << 20 {
            true if self.2 => return Err(io::Error::other("the download broke")),
            true => self.0.cut_connections(),
            false => {}
        }
        Ok(buf.len())
    }
}

#[test]
#[ignore = "needs sshd"]
fn a_stream_that_breaks_is_an_error_and_never_a_short_file() {
    let lab = Sshd::start("");
    for far_side in ["sh", "agent"] {
        for (client, host) in clients(&lab) {
            let part = lab.path(&format!("part-{client}-{far_side}"));
            let script = Script::from(Op::Receive { path: part.clone(), sparse: Sparse::Holes });
            for fails in [true, false] {
                let mut reader = Halts(&lab, 0, fails);
                let io = Io { input: Some(Input::Stream(&mut reader)), ..Io::default() };
                let error = host.run(&script, io, &control()).expect_err("fails");
                let kind = if fails { ErrorKind::Stream } else { ErrorKind::Lost };
                assert_eq!(error.kind, kind, "{client} {far_side}: {error}");
                assert!(!fails || error.to_string().contains("the download broke"), "{error}");
                assert!(within(20, || with_argument(&part.display().to_string()).is_empty()), "{client} {far_side}");
                let _ = fs::remove_file(&part);
            }
        }
        sync_agent_once(&lab);
    }
}

#[test]
#[ignore = "needs sshd"]
fn cancel_and_deadline_end_what_runs_on_the_host() {
    let lab = Sshd::start("");
    for far_side in ["sh", "agent"] {
        for (client, host) in clients(&lab) {
            // A number that no other process has.
            let seconds = format!(
                "3{}",
                fs::metadata(lab.path("id")).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).expect("stat")
            );
            let script = Script::from(Op::Run(Cmd::new("sleep").arg(&seconds)));
            let begun = Instant::now();
            let error = host.run(&script, Io::default(), &control().within(Duration::from_secs(2))).expect_err("stops");
            assert_eq!(error.kind, ErrorKind::Stopped(Stopped::Deadline), "{client}");
            let cancel = Cancel::new();
            let error = thread::scope(|scope| {
                let running = scope.spawn(|| host.run(&script, Io::default(), &Control::new(cancel.clone())));
                assert!(within(20, || with_argument(&seconds).len() == 2 || !with_argument(&seconds).is_empty()));
                cancel.set();
                running.join().expect("ends").expect_err("stops")
            });
            assert_eq!(error.kind, ErrorKind::Stopped(Stopped::Cancelled), "{client}");
            assert!(begun.elapsed() < Duration::from_secs(30));
            assert!(within(10, || with_argument(&seconds).is_empty()), "{client} {far_side}: it still runs");
        }
        sync_agent_once(&lab);
    }
}

#[test]
#[ignore = "needs sshd"]
fn the_policy_takes_a_live_master_then_libssh2_then_ssh() {
    let lab = Sshd::start("");
    let short = Script::from(sh("echo a"));
    let (host, notes) = remote(&lab, Policy::Auto);
    assert_eq!(host.choice(&short, &control()), Policy::LibSsh2);
    assert_eq!(run(&host, short.clone()).expect("runs")[0].text(), "a");
    assert_eq!(host.choice(&Script::from(Op::Send { path: "/a".into() }), &control()), Policy::OpenSsh);
    assert!(notes.lock().expect("locks").is_empty());

    let socket = lab.path("master");
    lab.configure(&format!("ControlPath {}", socket.display()));
    assert!(lab.ssh(&["-M", "-N", "-f", "-o", "ControlPersist=yes", "lab"]).success());
    let (host, _) = remote(&lab, Policy::Auto);
    assert_eq!(host.choice(&short, &control()), Policy::OpenSsh);
    let client = sh("echo $SSH_CONNECTION");
    let first = run(&host, client.clone()).expect("runs");
    assert_eq!(run(&host, client).expect("runs"), first, "the same connection carries both");
    // Cancelling a script on the master ends it on the host too, and leaves the master alone.
    let stop = host.run(
        &Script::from(Op::Run(Cmd::new("sleep").arg("4711"))),
        Io::default(),
        &control().within(Duration::from_secs(1)),
    );
    assert_eq!(stop.expect_err("stops").kind, ErrorKind::Stopped(Stopped::Deadline));
    let running = || lab.sessions().iter().any(|pid| with_argument("4711").contains(pid));
    assert!(within(10, || !running()));
    assert!(lab.ssh(&["-O", "exit", "lab"]).success());
    assert!(within(5, || !socket.exists()));
    assert_eq!(host.choice(&short, &control()), Policy::LibSsh2);

    lab.configure("ProxyCommand /bin/sh -c 'exec nc %h %p'\nStrictHostKeyChecking yes");
    let (host, notes) = remote(&lab, Policy::Auto);
    assert_eq!(host.choice(&short, &control()), Policy::OpenSsh);
    assert_eq!(notes.lock().expect("locks").len(), 1);
}

#[test]
#[ignore = "needs sshd"]
fn what_libssh2_cannot_send_goes_to_ssh_once_and_is_noted() {
    // libssh2 knows none of these key exchanges.
    let lab = Sshd::start("KexAlgorithms sntrup761x25519-sha512@openssh.com");
    let (host, notes) = remote(&lab, Policy::Auto);
    for _ in 0..2 {
        assert_eq!(run(&host, sh("echo a")).expect("runs")[0].text(), "a");
    }
    let notes = notes.lock().expect("locks");
    assert_eq!(notes.len(), 1, "{notes:?}");
    let (only, _) = remote(&lab, Policy::LibSsh2);
    assert_eq!(run(&only, sh("true")).expect_err("fails").kind, ErrorKind::Unreachable);
}

#[test]
#[ignore = "needs sshd"]
fn eight_scripts_at_once_and_nothing_left() {
    let lab = Sshd::start("");
    for (client, host) in clients(&lab) {
        thread::scope(|scope| {
            let host = &host;
            let all: Vec<_> =
                (0..8).map(|n| scope.spawn(move || run(&**host, sh(&format!("sleep 0.3; echo {n}"))))).collect();
            for (n, one) in all.into_iter().enumerate() {
                assert_eq!(one.join().expect("ends").expect(client)[0].text(), n.to_string());
            }
        });
        drop(host);
        assert!(within(10, || lab.sessions().is_empty()), "{client}: {:?}", lab.sessions());
        assert!(within(5, || with_argument(&lab.path("ssh_config").display().to_string()).is_empty()), "{client}");
    }
}

#[test]
#[ignore = "needs sshd; prints medians for the record"]
fn medians_of_a_small_script() {
    let lab = Sshd::start("");
    let socket: PathBuf = lab.path("master");
    let script = Script::from(Op::Stat { path: "/".into(), follow: true });
    let median = |what: &str, run: &mut dyn FnMut()| {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let t = Instant::now();
                run();
                t.elapsed()
            })
            .collect();
        times.sort();
        writeln!(io::stderr(), "{what}: {:?}", times[times.len() / 2]).expect("writes");
    };
    for far_side in ["sh", "agent"] {
        let host = openssh(&lab);
        median(&format!("{far_side} openssh fresh"), &mut || drop(run(&host, script.clone()).expect("runs")));
        median(&format!("{far_side} libssh2 fresh"), &mut || drop(run(&libssh2(&lab), script.clone()).expect("runs")));
        let host = libssh2(&lab);
        median(&format!("{far_side} libssh2 reused"), &mut || drop(run(&host, script.clone()).expect("runs")));
        lab.configure(&format!("ControlPath {}", socket.display()));
        assert!(lab.ssh(&["-M", "-N", "-f", "-o", "ControlPersist=yes", "lab"]).success());
        let host = openssh(&lab);
        median(&format!("{far_side} openssh mux"), &mut || drop(run(&host, script.clone()).expect("runs")));
        assert!(lab.ssh(&["-O", "exit", "lab"]).success());
        lab.configure("");
        sync_agent_once(&lab);
    }
}
