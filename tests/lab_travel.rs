//! `clone`, `mv`, `mvds` and `cpds` of `ssh` and `local`, as oned calls them, between hosts behind a real sshd, in trouble:
//! `cargo test --test lab_travel -- --ignored`, as root.
//!
//! Whatever happens: the target is what it was or whole, the source is there until then, a failure is one line, and the same
//! call once more does it. The transfer alone is tried in `lab_journey.rs`, everything behind a stand-in for ssh in
//! `faults_ssh.rs` and `faults_local.rs`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

#[allow(dead_code, reason = "shared with other labs")]
#[path = "lab/sshd.rs"]
mod sshd;

use sshd::Sshd;

/// MiB of what travels.
const MIB: usize = 6;

/// Data that does not compress.
static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut number = 0x9E37_79B9_7F4A_7C15_u64;
    let mut data = Vec::with_capacity(MIB << 20);
    while data.len() < MIB << 20 {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        data.extend(number.to_le_bytes());
    }
    data
});

/// Moments of a run at which it is disturbed.
const MOMENTS: u32 = 2;

/// An action, with paths below the cloud's folder.
#[derive(Clone, Copy, Debug)]
struct Travel {
    action: &'static str,
    words: [&'static str; 5],
    /// What is read, and where it is then.
    from: &'static str,
    to: &'static str,
    /// The file system that has to have room.
    room: &'static str,
}

const TRAVELS: [Travel; 4] = [
    Travel {
        action: "clone",
        words: ["{ds}/1/abc", "lab1:{ds}/103/7/disk.2", "7", "1", ""],
        from: "ds/1/abc",
        to: "ds/103/7/disk.2",
        room: "ds/103/7",
    },
    Travel {
        action: "mv",
        words: ["lab1:{ds}/103/7", "lab2:{ds}/104/7", "7", "104", ""],
        from: "ds/103/7/disk.2",
        to: "ds/104/7/disk.2",
        room: "ds/104",
    },
    Travel {
        action: "mvds",
        words: ["lab1:{ds}/103/7/disk.3", "{ds}/2/kept", "7", "2", ""],
        from: "ds/103/7/disk.3",
        to: "ds/2/kept",
        room: "ds/2",
    },
    Travel {
        action: "cpds",
        words: ["lab1:{ds}/103/7/disk.2", "{ds}/2/new", "-1", "7", "2"],
        from: "ds/103/7/disk.2",
        to: "ds/2/new",
        room: "ds/2",
    },
];

/// What the hosts have in the place of this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Same,
    /// One that says that it is another version.
    Other,
    Nothing,
}

/// One machine under several names: a front-end with its links, hosts, and one action that is about to be called.
struct Cloud {
    sshd: Sshd,
    mad: &'static str,
    travel: Travel,
}

impl Cloud {
    fn new(mad: &'static str, travel: Travel, peer: Peer) -> Self {
        let sshd = Sshd::start("");
        let path = |below: &str| sshd.path(below);
        for folder in ["ds/1", "ds/2", "ds/103/7", "ds/104", "oned/vm", "oned/datastore", "one/etc", "remotes/onestore"]
        {
            fs::create_dir_all(path(folder)).expect("a folder");
        }
        let remotes = path("one/var/remotes");
        fs::create_dir_all(remotes.join("onestore")).expect("a folder");
        let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes/onestore/launch");
        fs::copy(launch, remotes.join("onestore/launch")).expect("copies");
        symlink(env!("CARGO_BIN_EXE_onestore"), remotes.join("onestore/onestore")).expect("links");
        fs::create_dir_all(remotes.join("tm").join(mad)).expect("a folder");
        symlink("../../onestore/launch", remotes.join("tm").join(mad).join(travel.action)).expect("links");
        let there = match peer {
            Peer::Same => format!(
                "#!/bin/sh\nSSH='ssh -F {}' exec {} \"$@\"\n",
                path("ssh_config").display(),
                env!("CARGO_BIN_EXE_onestore")
            ),
            Peer::Other => "#!/bin/sh\nexit 75\n".to_owned(),
            Peer::Nothing => String::new(),
        };
        if peer != Peer::Nothing {
            fs::write(path("remotes/onestore/onestore"), there).expect("writes");
            fs::set_permissions(path("remotes/onestore/onestore"), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        for id in [1, 2, 103, 104] {
            let xml = format!("<DATASTORE><ID>{id}</ID><TEMPLATE/></DATASTORE>");
            fs::write(path(&format!("oned/datastore/{id}.xml")), xml).expect("a datastore");
        }
        let disk = |id: u32, clone: &str| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><FORMAT>raw</FORMAT><CLONE>{clone}</CLONE><SOURCE>{}</SOURCE></DISK>",
                path("ds/1/abc").display()
            )
        };
        let vm = format!(
            "<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><TEMPLATE>{}{}</TEMPLATE><HISTORY_RECORDS><HISTORY><SEQ>0</SEQ>\
             <DS_ID>103</DS_ID><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            disk(2, "YES"),
            disk(3, "NO")
        );
        fs::write(path("oned/vm/7.xml"), vm).expect("the VM");
        let cloud = Self { sshd, mad, travel };
        cloud.plant();
        cloud
    }

    /// What there is before the action.
    fn plant(&self) {
        fs::write(self.path(self.travel.from), &*DATA).expect("writes");
        if self.travel.action == "mvds" {
            fs::write(self.path(self.travel.to), "the old image").expect("writes");
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.sshd.path(below)
    }

    fn start(&self) -> Child {
        let root = self.path("").display().to_string();
        let root = root.trim_end_matches('/');
        let entry = self.path("one/var/remotes/tm").join(self.mad).join(self.travel.action);
        let mut command = Command::new(entry);
        let words = self.travel.words.iter().filter(|word| !word.is_empty());
        command.args(words.map(|word| word.replace("{ds}", &format!("{root}//ds"))));
        command.env_clear().env("ONESTORE_ONED", format!("dir:{root}/oned")).env("ONE_LOCATION", self.path("one"));
        command.env("SSH", format!("ssh -F {root}/ssh_config")).env("ONESTORE_SSH", "openssh");
        command.env("HOME", self.path("home")).env("ONESTORE_LOCK_DIR", self.path("locks"));
        command
            .env("DS_DIR", self.path("ds"))
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("starts")
    }

    fn run(&self) -> Output {
        self.start().wait_with_output().expect("waits")
    }

    #[track_caller]
    fn done(&self, when: &str) {
        let ran = self.run();
        assert!(ran.status.success(), "{when}: {}", String::from_utf8_lossy(&ran.stderr));
        self.is_done(when);
    }

    fn is_whole(&self) -> bool {
        fs::read(self.path(self.travel.to)).is_ok_and(|there| there == *DATA)
    }

    #[track_caller]
    fn is_done(&self, when: &str) {
        assert!(self.is_whole(), "{when}: it is not whole");
        assert_eq!(self.path(self.travel.from).exists(), self.travel.action != "mv", "{when}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{when}");
    }

    /// The target is what it was, and what was to be read is there.
    #[track_caller]
    fn is_as_before(&self, when: &str) {
        assert!(fs::read(self.path(self.travel.from)).is_ok_and(|there| there == *DATA), "{when}: the source");
        match self.travel.action {
            "mvds" => assert_eq!(fs::read(self.path(self.travel.to)).expect("reads"), b"the old image", "{when}"),
            _ => assert!(!self.path(self.travel.to).exists(), "{when}"),
        }
    }

    /// Whatever has happened: the target is as before or whole, and nothing is lost.
    #[track_caller]
    fn is_sound(&self, when: &str) {
        if !self.is_whole() {
            self.is_as_before(when);
        }
    }

    /// Staging files anywhere, but for what the next run goes on with.
    fn left(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for base in ["ds/1", "ds/2", "ds/103", "ds/103/7", "ds/104", "ds/104/7"] {
            left.extend(
                fs::read_dir(self.path(base).join(".onestore")).into_iter().flatten().flatten().map(|e| e.path()),
            );
        }
        left
    }
}

/// The one line that a user sees.
#[track_caller]
fn one_line(ran: &Output, when: &str) -> String {
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    let is_log = |line: &str| ["INFO:", "WARN:", "ERROR:", "DEBUG:"].iter().any(|level| line.starts_with(level));
    let plain: Vec<&str> = said.lines().filter(|line| !is_log(line)).collect();
    assert!(!ran.status.success() && plain.len() == 1, "{when}: {said}");
    plain[0].to_owned()
}

/// Tries every action of both transfer managers, these side by side.
fn every(peers: &[Peer], test: impl Fn(&Cloud, &str) + Sync) {
    std::thread::scope(|scope| {
        let test = &test;
        for mad in ["ssh", "local"] {
            scope.spawn(move || {
                for (travel, peer) in TRAVELS.iter().flat_map(|travel| peers.iter().map(move |peer| (*travel, *peer))) {
                    let when = format!("{mad}/{}, {peer:?}", travel.action);
                    test(&Cloud::new(mad, travel, peer), &when);
                }
            });
        }
    });
}

/// A file system of this size, gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, options: &str) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at);
        assert!(mount.status().expect("mount").success(), "needs root");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs sshd and root"]
fn a_target_without_space_stays_as_it_was() {
    every(&[Peer::Same, Peer::Nothing], |cloud, when| {
        let small = Small::mount(cloud.path(cloud.travel.room), "size=3m,mode=755");
        cloud.plant();
        let line = one_line(&cloud.run(), when);
        assert!(line.contains("No space left on device"), "{when}: {line}");
        cloud.is_as_before(when);
        assert_eq!(cloud.left(), Vec::<PathBuf>::new(), "{when}");
        let mut more = Command::new("mount");
        assert!(more.args(["-o", "remount,size=200m"]).arg(&small.0).status().expect("mount").success());
        cloud.done(when);
    });
}

#[test]
#[ignore = "needs sshd"]
fn another_version_on_the_host_is_no_obstacle() {
    every(&[Peer::Other], |cloud, when| cloud.done(when));
}

#[test]
#[ignore = "needs sshd"]
fn a_source_that_changes_is_no_source() {
    every(&[Peer::Same], |cloud, when| {
        let over = AtomicBool::new(false);
        let ran = std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::options().write(true).open(cloud.path(cloud.travel.from)).expect("opens");
                while !over.load(Ordering::Relaxed) {
                    file.write_all_at(&DATA[..64], 0).expect("writes");
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let ran = cloud.run();
            over.store(true, Ordering::Relaxed);
            ran
        });
        let line = one_line(&ran, when);
        assert!(line.contains("was written to while it was copied"), "{when}: {line}");
        cloud.is_as_before(when);
        cloud.done(when);
    });
}

#[test]
#[ignore = "needs sshd"]
fn whenever_it_is_cut_or_killed_the_same_call_does_it() {
    every(&[Peer::Same], |cloud, when| {
        let begin = Instant::now();
        cloud.done(when);
        let took = begin.elapsed();
        for moment in 1..=MOMENTS {
            for signal in [None, Some(Signal::KILL), Some(Signal::TERM)] {
                let when = format!("{when}, {signal:?} at {moment}");
                let cloud = Cloud::new(cloud.mad, cloud.travel, Peer::Same);
                let child = cloud.start();
                std::thread::sleep(took * moment / (MOMENTS + 1));
                match signal {
                    None => cloud.sshd.cut_connections(),
                    Some(signal) => drop(kill_process(Pid::from_child(&child), signal)),
                }
                let ran = child.wait_with_output().expect("waits");
                if signal == Some(Signal::KILL) {
                    cloud.is_sound(&when);
                } else if ran.status.success() {
                    cloud.is_done(&when);
                } else {
                    one_line(&ran, &when);
                    cloud.is_as_before(&when);
                }
                // A move that was killed after its last step has nothing to do any more, and says so.
                let again = cloud.run();
                if again.status.success() {
                    cloud.is_done(&when);
                } else {
                    let line = one_line(&again, &when);
                    assert!(cloud.is_whole() && line.contains("does not exist"), "{when}: {line}");
                }
            }
        }
    });
}

#[test]
#[ignore = "needs sshd"]
fn two_at_once_are_as_one() {
    every(&[Peer::Same], |cloud, when| {
        let both = [cloud.start(), cloud.start()].map(|child| child.wait_with_output().expect("waits"));
        assert!(both.iter().any(|ran| ran.status.success()), "{when}: {both:?}");
        for ran in both.iter().filter(|ran| !ran.status.success()) {
            let line = one_line(ran, when);
            assert!(cloud.travel.action == "mv" && line.contains("does not exist"), "{when}: {line}");
        }
        cloud.is_done(when);
    });
}
