//! Files on their way between hosts by a real sshd: straight, through the front-end, by the shell alone; cut, resumed,
//! without space, from a source that changes.
//!
//! `ONESTORE_CUTS=200` cuts that often (else 6 times), `ONESTORE_CUTS_SEED` repeats a run.
//! `ONESTORE_BINARY` is what the hosts have, a release build to measure, else the binary of this build.

#[path = "lab/delay.rs"]
mod delay;
#[path = "lab/journey_speed.rs"]
mod speed;
#[allow(dead_code, reason = "shared with other labs")]
#[path = "lab/sshd.rs"]
mod sshd;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use onestore::context::{Cx, Hosts, Parts};
use onestore::driver::journey::{self, Journey, Load};
use onestore::exec::control::{Cancel, Control};
use onestore::exec::host::local::Local;
use onestore::exec::host::policy::{Policy, Remote};
use onestore::exec::host::{Host, HostName};
use onestore::exec::op::Sparse;
use onestore::exec::process::Programs;
use onestore::exec::staging::{self, Owner};
use onestore::exec::step::{Executor, Explainer, Runner};
use onestore::location::Layout;
use onestore::report::Log;
use onestore::settings::Settings;
use sshd::{Sshd, within};

const MIB: u64 = 1 << 20;

fn binary() -> String {
    std::env::var("ONESTORE_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_onestore").to_owned())
}

struct ByLab(Programs);

impl Hosts for ByLab {
    fn local(&self) -> Arc<dyn Host> {
        Arc::new(Local::new(self.0.clone()))
    }

    fn remote(&self, name: &str) -> Result<Arc<dyn Host>> {
        let note = |_: &str| {};
        Ok(Arc::new(Remote::new(HostName::new(name)?, self.0.clone(), Policy::Auto, Arc::new(note))))
    }
}

/// One machine under several names, its datastore, and what it was told.
struct Lab {
    sshd: Sshd,
    /// Where the source reaches the target, if not at its name.
    address: std::sync::OnceLock<std::net::IpAddr>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { sshd: Sshd::start(""), address: std::sync::OnceLock::new() };
        fs::create_dir_all(lab.path("source")).expect("makes");
        fs::create_dir_all(lab.path("ds/.onestore")).expect("makes");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sshd.path(name)
    }

    /// Puts this binary where a synced remotes tree has it. It finds the lab's ssh, as one with a configuration would.
    fn sync(&self) {
        self.sync_with("");
    }

    /// The same, with more in its environment.
    fn sync_with(&self, more: &str) {
        let dir = self.path("remotes/onestore");
        fs::create_dir_all(&dir).expect("makes");
        let config = self.path("ssh_config");
        let text = format!("#!/bin/sh\nexport SSH='ssh -F {}' {more}\nexec {} \"$@\"\n", config.display(), binary());
        fs::write(dir.join("onestore"), text).expect("writes");
        fs::set_permissions(dir.join("onestore"), fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    /// Writes `etc/onestore.conf`.
    fn set(&self, settings: &str) {
        fs::create_dir_all(self.path("remotes/etc")).expect("makes");
        fs::write(self.path("remotes/etc/onestore.conf"), settings).expect("writes");
    }

    /// A file with holes, blocks of zeroes and `mib` MiB of data.
    fn image(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path("source").join(name);
        let file = File::create(&path).expect("makes");
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64 ^ mib;
        for at in 0..mib {
            let mut block = vec![0_u8; 1 << 20];
            for word in block.as_chunks_mut::<8>().0 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *word = seed.to_le_bytes();
            }
            block[8192..65536].fill(0);
            // Every other MiB is a hole, and nothing is aligned to one.
            file.write_all_at(&block, at * 2 * MIB + 4096 * (at % 3)).expect("writes");
        }
        file.set_len(2 * mib * MIB + 12_345).expect("extends");
        path
    }

    fn to(&self, name: &str) -> PathBuf {
        let owner = Owner::me().expect("proc");
        staging::staging_path(&self.path("ds"), &owner, name.as_ref())
    }

    fn carry(&self, from: &str, to: &str, loads: &[Load], control: &Control) -> Result<()> {
        let log = Log::quiet("tm/ssh/mv");
        let runner = Runner::new(control.clone(), &log);
        self.carry_by(&runner, &log, from, to, loads, control)?;
        runner.commit()
    }

    fn carry_by(
        &self,
        executor: &dyn Executor,
        log: &Log,
        from: &str,
        to: &str,
        loads: &[Load],
        control: &Control,
    ) -> Result<()> {
        let layout = Layout::new(|_| None, Some(&self.path("remotes")));
        let settings = Settings::load(&layout, "ssh", |_| None)?;
        let hosts = ByLab(self.sshd.programs());
        let cx = Cx::new(Parts {
            layout: &layout,
            settings: &settings,
            log,
            control: control.clone(),
            hosts: &hosts,
            executor,
            connect: &|| unreachable!("oned is not asked"),
            name: &|_| "name".to_owned(),
        });
        let host = |name: &str| if name.is_empty() { Ok(cx.here()) } else { cx.host(name) };
        let (from, to) = (host(from)?, host(to)?);
        journey::carry(
            &cx,
            &Journey { from: &from, to: &to, sparse: Sparse::Holes, address: self.address.get().copied() },
            loads,
            "Error moving",
        )
    }

    /// What lies in the staging directory, without the owner.
    fn staged(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("ds/.onestore")).expect("lists").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn control() -> Control {
    Control::new(Cancel::new()).within(Duration::from_secs(300))
}

fn same(a: &Path, b: &Path) {
    let (one, two) = (fs::read(a).expect("reads"), fs::read(b).expect("reads"));
    assert!(one == two, "{} differs from {}", a.display(), b.display());
}

fn sparse(a: &Path, b: &Path) {
    let blocks = |path: &Path| fs::metadata(path).expect("there").blocks();
    // dd, which writes where the binary is not, looks at 64 KiB at a time.
    assert!(
        blocks(b) <= blocks(a) / 4 * 5 + 64,
        "{} has {} blocks, {} has {}",
        a.display(),
        blocks(a),
        b.display(),
        blocks(b)
    );
}

#[test]
#[ignore = "needs sshd"]
fn files_arrive_by_every_way() {
    let lab = Lab::new();
    let odd = lab.image("it's a \"disk\"", 3);
    let big = lab.image("disk.1", 50);
    fs::write(lab.path("source/empty"), "").expect("writes");
    fs::write(lab.path("source/small"), "x").expect("writes");
    for agent in [false, true] {
        if agent {
            lab.sync();
        }
        for (from, to) in [("", "lab2"), ("lab1", ""), ("lab1", "lab2"), ("", ""), ("lab1", "lab1")] {
            let names = ["it's a \"disk\"", "disk.1", "empty", "small"];
            let loads: Vec<Load> = names
                .iter()
                .map(|name| Load { from: lab.path("source").join(name), to: lab.to(&name.replace('1', "2")) })
                .collect();
            lab.carry(from, to, &loads, &control()).unwrap_or_else(|e| panic!("{from:?} to {to:?}, {agent}: {e:#}"));
            for load in &loads {
                same(&load.from, &load.to);
                sparse(&load.from, &load.to);
                fs::remove_file(&load.to).expect("there");
            }
            assert_eq!(lab.staged(), Vec::<String>::new(), "{from:?} to {to:?}");
        }
    }
    assert!(odd.exists() && big.exists());
    assert!(within(10, || lab.sshd.sessions().is_empty()), "sessions are left");
}

#[test]
#[ignore = "needs sshd"]
fn explaining_touches_nothing() {
    let lab = Lab::new();
    lab.sync();
    let from = lab.image("disk.0", 1);
    let explainer = Explainer::default();
    let loads = [Load { from, to: lab.to("disk.0") }];
    lab.carry_by(&explainer, &Log::quiet("tm/ssh/mv"), "lab1", "lab2", &loads, &control()).expect("explains");
    let plan = explainer.plan();
    assert_eq!(plan.iter().map(|step| step.host.as_str()).collect::<Vec<_>>(), ["lab1", "lab2"]);
    assert!(plan[0].what.contains("straight from lab1 to lab2") && !plan[1].undo.is_empty(), "{plan:?}");
    assert_eq!(lab.staged(), Vec::<String>::new());
}

#[test]
#[ignore = "needs sshd"]
fn hosts_that_cannot_reach_each_other_are_served_through_us() {
    let lab = Lab::new();
    lab.sync();
    // The source's own ssh knows no such host.
    let wrapper = lab.path("remotes/onestore/onestore");
    let text = format!("#!/bin/sh\nSSH='ssh -F /dev/null' exec {} \"$@\"\n", binary());
    fs::write(&wrapper, text).expect("writes");
    let from = lab.image("disk.0", 40);
    let load = Load { from, to: lab.to("disk.0") };
    lab.carry("lab1", "lab2", std::slice::from_ref(&load), &control()).expect("arrives");
    same(&load.from, &load.to);
}

#[test]
#[ignore = "needs sshd"]
fn a_login_shell_that_talks_is_listened_to_by_nobody() {
    let lab = Lab::new();
    lab.sync();
    // Bash reads this for whoever comes by ssh.
    fs::write(lab.path("home/.bashrc"), "echo Welcome; echo to this host\n").expect("writes");
    let load = Load { from: lab.image("disk.0", 40), to: lab.to("disk.0") };
    for (from, to) in [("", "lab2"), ("lab1", ""), ("lab1", "lab2")] {
        lab.carry(from, to, std::slice::from_ref(&load), &control())
            .unwrap_or_else(|e| panic!("{from:?} to {to:?}: {e:#}"));
        same(&load.from, &load.to);
        fs::remove_file(&load.to).expect("there");
        assert_eq!(lab.staged(), Vec::<String>::new(), "{from:?} to {to:?}");
    }
}

#[test]
#[ignore = "needs sshd"]
fn another_version_at_the_peer_is_no_obstacle() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("remotes/onestore")).expect("makes");
    fs::write(lab.path("remotes/onestore/onestore"), "#!/bin/sh\nexit 75\n").expect("writes");
    fs::set_permissions(lab.path("remotes/onestore/onestore"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let load = Load { from: lab.image("disk.0", 2), to: lab.to("disk.0") };
    lab.carry("lab1", "lab2", std::slice::from_ref(&load), &control()).expect("arrives");
    same(&load.from, &load.to);
    sparse(&load.from, &load.to);
}

/// A tree that is as full as wanted.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u64) -> Self {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at);
        assert!(mount.status().expect("mount").success(), "needs root");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs sshd and root"]
fn a_peer_without_space_says_so_and_nothing_is_left() {
    let lab = Lab::new();
    lab.sync();
    let _small = Small::mount(&lab.path("ds/.onestore"), 8);
    let load = Load { from: lab.image("disk.0", 40), to: lab.to("disk.0") };
    for (from, settings) in [("", ""), ("lab1", ""), ("", PORTS), ("lab1", PORTS)] {
        lab.set(settings);
        let error = lab.carry(from, "lab2", std::slice::from_ref(&load), &control()).expect_err("no space");
        let text = format!("{error:#}");
        assert!(text.contains("No space left on device") && !text.contains('\n'), "{text}");
        assert_eq!(lab.staged(), Vec::<String>::new());
    }
}

#[test]
#[ignore = "needs sshd"]
fn a_source_that_changes_meanwhile_is_noticed() {
    let lab = Lab::new();
    lab.sync();
    let load = Load { from: lab.image("disk.0", 60), to: lab.to("disk.0") };
    let over = std::sync::atomic::AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&load.from).expect("opens");
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all_at(b"changed", 77).expect("writes");
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let done = lab.carry("lab1", "lab2", std::slice::from_ref(&load), &control());
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        done.expect_err("changed")
    });
    assert!(format!("{error:#}").contains("was written to while it was copied"), "{error:#}");
    assert_eq!(lab.staged(), Vec::<String>::new());
}

/// Numbers that a seed determines.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "needs sshd"]
fn whenever_it_is_cut_the_target_is_absent_or_whole() {
    let lab = Lab::new();
    lab.sync();
    let from = lab.image("disk.0", 60);
    let (cuts, seed) = (number("ONESTORE_CUTS", 6), number("ONESTORE_CUTS_SEED", 4711));
    let mut dice = Dice(seed | 1);
    let (mut whole, mut absent) = (0, 0);
    for cut in 0..cuts {
        // By turns also beside ssh.
        lab.set(if cut % 2 == 0 { "" } else { PORTS });
        let load = Load { from: from.clone(), to: lab.to(&format!("disk.{}", cut % 3)) };
        let way = [("", "lab2"), ("lab1", ""), ("lab1", "lab2")][usize::try_from(dice.below(3)).expect("small")];
        let after = Duration::from_millis(20 + dice.below(900));
        // By SIGTERM, or by the connections.
        let by_signal = dice.below(3) == 0;
        let control = control();
        let done = std::thread::scope(|scope| {
            let (lab, control) = (&lab, &control);
            scope.spawn(move || {
                std::thread::sleep(after);
                if by_signal { control.cancel.set() } else { lab.sshd.cut_connections() }
            });
            lab.carry(way.0, way.1, std::slice::from_ref(&load), control)
        });
        match done {
            Ok(()) => {
                whole += 1;
                same(&from, &load.to);
            }
            Err(error) => {
                absent += 1;
                let text = format!("{error:#}");
                assert!(!load.to.exists(), "cut {cut} of seed {seed}, {way:?}: {text}");
                assert!(!text.contains('\n') && text.starts_with("Error moving"), "{text}");
                // Again, with what there is.
                lab.carry(way.0, way.1, std::slice::from_ref(&load), &self::control()).unwrap_or_else(|e| {
                    panic!("cut {cut} of seed {seed}, {way:?} after {after:?}: {text}, then {e:#}")
                });
                same(&from, &load.to);
            }
        }
        fs::remove_file(&load.to).expect("there");
        assert!(lab.staged().is_empty(), "cut {cut} of seed {seed}: {:?}", lab.staged());
        if (cut + 1) % 20 == 0 {
            println!(
                "{} of {cuts} cuts: {whole} went through, {absent} failed and were whole at the second try",
                cut + 1
            );
        }
    }
    println!("{cuts} cuts, seed {seed}: {whole} went through, {absent} failed and were whole at the second try");
}

#[test]
#[ignore = "needs sshd"]
fn an_interrupted_journey_goes_on_where_it_was() {
    goes_on("");
    goes_on(PORTS);
}

fn goes_on(settings: &str) {
    let lab = Lab::new();
    lab.sync();
    let load = Load { from: lab.image("disk.0", 200), to: lab.to("disk.0") };
    // Slower than the cut.
    lab.set(&format!("TRANSFER_RATE=100m\n{settings}"));
    let first = control();
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let grown = |name: &String| {
                name.contains("journal")
                    && fs::metadata(lab.path("ds/.onestore").join(name)).is_ok_and(|data| data.len() > 4000)
            };
            within(60, || lab.staged().iter().any(grown));
            first.cancel.set();
        });
        lab.carry("lab1", "lab2", std::slice::from_ref(&load), &first)
    });
    done.expect_err("it was cut");
    assert_eq!(lab.staged().len(), 2, "the part and its journal: {:?}", lab.staged());
    // Blindly trusted, this would be part of the copy.
    let part = lab.staged().into_iter().find(|name| !name.contains("journal")).expect("a part");
    let part = File::options().write(true).open(lab.path("ds/.onestore").join(part)).expect("opens");
    // The peer learns late that nobody wants it any more, and enters then what it has written.
    let state = || {
        lab.staged()
            .iter()
            .map(|name| fs::metadata(lab.path("ds/.onestore").join(name)).map(|data| data.mtime_nsec()).ok())
            .collect::<Vec<_>>()
    };
    assert!(within(60, || {
        let before = state();
        std::thread::sleep(Duration::from_secs(1));
        state() == before
    }));
    part.write_all_at(b"not what was sent", 100).expect("writes");
    let log = Log::new("tm/ssh/mv", Some(&lab.path("log")));
    let control = control();
    let runner = Runner::new(control.clone(), &log);
    lab.carry_by(&runner, &log, "lab1", "lab2", std::slice::from_ref(&load), &control).expect("goes on");
    runner.commit().expect("done");
    same(&load.from, &load.to);
    let said = fs::read_to_string(lab.path("log")).expect("reads");
    let resumed = said.split_once(" of data, ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
    // The journal named 80 ranges at the least; the one that was damaged was sent again.
    assert!(resumed.is_some_and(|bytes| (70 * MIB..400 * MIB).contains(&bytes)), "{said}");
    assert_eq!(lab.staged().len(), 1);
}

/// Ports of the lab, several, for tests that run side by side, and away from those that the system gives to anybody.
const PORTS: &str = "TRANSFER_PORTS=21500-21899\n";

/// Carries one file by these settings, and tells what the log has about it.
fn told(lab: &Lab, settings: &str, (from, to): (&str, &str), load: &Load) -> String {
    lab.set(settings);
    let _ = fs::remove_file(lab.path("log"));
    let log = Log::new("tm/ssh/mv", Some(&lab.path("log")));
    let control = control();
    let runner = Runner::new(control.clone(), &log);
    lab.carry_by(&runner, &log, from, to, std::slice::from_ref(load), &control)
        .unwrap_or_else(|e| panic!("{from:?} to {to:?}: {e:#}"));
    runner.commit().expect("done");
    same(&load.from, &load.to);
    sparse(&load.from, &load.to);
    fs::remove_file(&load.to).expect("there");
    assert_eq!(lab.staged(), Vec::<String>::new(), "{from:?} to {to:?}");
    fs::read_to_string(lab.path("log")).expect("reads")
}

#[test]
#[ignore = "needs sshd"]
fn the_target_is_reached_at_another_address() {
    let lab = Lab::new();
    lab.sync();
    let load = Load { from: lab.image("disk.0", 2), to: lab.to("disk.0") };
    // From a host, its name leads to where nobody listens; the key is known by that.
    let away = "Match originalhost lab2 exec \"env | grep -q ^SSH_CONNECTION=\"\n HostName 127.0.0.9\nMatch all";
    lab.sshd.configure(away);
    let known = fs::read_to_string(lab.sshd.path("known_hosts")).expect("reads");
    fs::write(lab.sshd.path("known_hosts"), known.replace("127.0.0.1", "127.0.0.9") + "\n" + &known).expect("writes");
    let said = told(&lab, "", ("lab1", "lab2"), &load);
    assert!(said.contains("taking another way"), "{said}");
    lab.address.set("127.0.0.1".parse().expect("an address")).expect("once");
    let said = told(&lab, "", ("lab1", "lab2"), &load);
    assert!(!said.contains("taking another way"), "{said}");
}

const BESIDE: &str = "the data goes beside ssh, at port 21";

#[test]
#[ignore = "needs sshd"]
fn data_goes_beside_ssh_where_ports_are_open() {
    let lab = Lab::new();
    lab.sync();
    let load = Load { from: lab.image("disk.0", 60), to: lab.to("disk.0") };
    for ends in [("", "lab2"), ("lab1", ""), ("lab1", "lab2")] {
        let said = told(&lab, PORTS, ends, &load);
        assert_eq!(said.matches(BESIDE).count(), 1, "{ends:?}: {said}");
        let said = told(&lab, "", ends, &load);
        assert!(!said.contains(BESIDE), "{ends:?}, without ports: {said}");
    }
    // Through the front-end, which has a peer at either side.
    let said = told(&lab, &format!("{PORTS}TRANSFER_DIRECT=no\n"), ("lab1", "lab2"), &load);
    assert_eq!(said.matches(BESIDE).count(), 2, "{said}");
    let little = Load { from: lab.image("disk.1", 2), to: lab.to("disk.1") };
    let said = told(&lab, PORTS, ("lab1", "lab2"), &little);
    assert!(!said.contains(BESIDE), "{said}");
    assert!(within(10, || lab.sshd.sessions().is_empty()), "sessions are left");
}

#[test]
#[ignore = "needs sshd"]
fn where_no_port_can_be_reached_ssh_carries_the_data() {
    let lab = Lab::new();
    let load = Load { from: lab.image("disk.0", 60), to: lab.to("disk.0") };
    let stranger = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = stranger.local_addr().expect("an address").port();
    let settings = format!("TRANSFER_PORTS={port}\n");
    let try_it = |settings: &str, expected: &str| {
        let begun = std::time::Instant::now();
        let said = told(&lab, settings, ("lab1", "lab2"), &load);
        assert!(said.contains(expected) && !said.contains(BESIDE), "{expected}: {said}");
        println!("{expected}: {:?}", begun.elapsed());
    };
    lab.sync();
    try_it(&settings, "Cannot listen at 127.0.0.1: Address already in use");
    try_it("TRANSFER_PORTS=22-23\n", "as ports: two numbers from 1024 to 65535");
    // The peer listens at another address than ssh goes to, where a stranger lets everybody in and says nothing.
    lab.sync_with("SSH_CONNECTION='127.0.0.1 9 127.0.0.5 9'");
    try_it(&settings, &format!("Cannot use port {port} of lab2: The handshake failed"));
    // Now nobody does.
    drop(stranger);
    try_it(&settings, &format!("Cannot use port {port} of lab2: Cannot connect to 127.0.0.1:{port}"));
    // The peer listens for another host than the one that comes.
    lab.sync_with("SSH_CONNECTION='127.0.0.7 9 127.0.0.1 9'");
    try_it(&settings, &format!("Cannot use port {port} of lab2: The handshake failed"));
}
