//! The cache of images on a host without room: images go for others while somebody reads them, and the file system is full
//! before its time. `cargo test --test lab_cache -- --ignored`, as root.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

#[path = "hosts/cached.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod cached;
#[path = "hosts/tm_faults.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "each test uses its part")]
mod tm_faults;

use cached::{ABC, DEF, consistent, hit, leftovers, metadata, plant, said};
use tm_faults::{Cloud, MOMENTS, same, signal};

/// The transfer manager.
const MAD: &str = "local";

/// MiB of an image: two of them do not fit.
const MIB: u32 = 10;

/// A cloud whose cache is a file system of 18 MiB.
struct Small {
    cloud: Cloud,
    at: PathBuf,
}

impl Small {
    fn new() -> Self {
        let cloud = cached::cloud(MIB);
        let at = cloud.path("cache");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=18m,mode=755", "tmpfs"]).arg(&at);
        assert!(mount.status().expect("mount").success(), "needs root");
        Self { cloud, at }
    }

    /// Puts the binary where a synced host has it.
    fn sync(&self) {
        let remotes = self.cloud.path("host");
        fs::create_dir_all(remotes.join("onestore")).expect("a folder");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_onestore"), remotes.join("onestore/onestore")).expect("links");
        let ssh = fs::read_to_string(self.cloud.path("ssh")).expect("reads");
        let ssh = ssh.replace("exec sh", &format!("SCRIPTS_REMOTE_DIR={} exec sh", remotes.display()));
        fs::write(self.cloud.path("ssh"), ssh).expect("writes");
        fs::set_permissions(self.cloud.path("ssh"), fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// An image of no use to the wanted one.
    fn plant_old(&self, name: &str, text: &str) {
        let content = fs::read(self.cloud.path("ds/1/def")).expect("reads");
        plant(&self.cloud, name, &content, text);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.at).status());
    }
}

const OLD: &str = "2026-01-01T00:00:00+00:00";

#[test]
#[ignore = "needs root"]
fn the_least_recently_used_goes_and_what_is_worth_nothing_first() {
    for (name, text) in [("def", metadata(OLD)), ("broken", ":last_used: [\n".to_owned()), ("none", String::new())] {
        let small = Small::new();
        small.plant_old(name, &text);
        if name == "none" {
            fs::remove_file(small.cloud.path("cache/none-metadata")).expect("removes");
        }
        small.cloud.done("clone", &ABC);
        assert!(!small.cloud.path("cache").join(name).exists(), "{name} stays");
        hit(&small.cloud, name);
    }
    // What was asked for just now stays, what is fetched by somebody else, and what is nobody's.
    let small = Small::new();
    small.plant_old("foreign", "");
    fs::remove_file(small.cloud.path("cache/foreign-metadata")).expect("removes");
    fs::remove_file(small.cloud.path("cache/foreign-lock")).expect("removes");
    let ran = small.cloud.done("clone", &ABC);
    assert!(said(&ran).contains("does not fit"), "{}", said(&ran));
    assert!(small.cloud.path("cache/foreign").exists());
    let small = Small::new();
    small.plant_old("def", "");
    let mut upstream =
        Command::new("flock").arg(small.cloud.path("cache/def-lock")).args(["sleep", "60"]).spawn().expect("flock");
    std::thread::sleep(Duration::from_millis(100));
    let ran = small.cloud.done("clone", &ABC);
    upstream.kill().and_then(|()| upstream.wait().map(drop)).expect("ends");
    assert!(said(&ran).contains("is not used"), "{}", said(&ran));
    assert!(same(&small.cloud.path("ds/103/7/disk.2"), &small.cloud.path("ds/1/abc")));
    assert!(small.cloud.path("cache/def").exists());
}

#[test]
#[ignore = "needs root"]
fn an_image_goes_while_another_action_copies_it() {
    let begin = Instant::now();
    let small = Small::new();
    small.cloud.done("clone", &ABC);
    let took = begin.elapsed();
    for moment in 0..MOMENTS {
        let when = format!("at {moment}");
        let small = Small::new();
        let cloud = &small.cloud;
        cloud.done("clone", &ABC);
        fs::write(cloud.path("cache/abc-metadata"), metadata(OLD)).expect("writes");
        let reads = cloud.start("clone", &ABC);
        std::thread::sleep(took * moment / MOMENTS);
        let evicts = cloud.start("clone", &DEF);
        for child in [reads, evicts] {
            let ran = child.wait_with_output().expect("waits");
            assert!(ran.status.success(), "{when}: {}", said(&ran));
        }
        for (disk, image) in [("disk.2", "abc"), ("disk.1", "def")] {
            assert!(same(&cloud.path("ds/103/7").join(disk), &cloud.path("ds/1").join(image)), "{when}: {disk}");
        }
        consistent(cloud, &when);
        assert_eq!(leftovers(cloud), Vec::<String>::new(), "{when}");
    }
}

/// Takes all the room that there is.
fn fill(at: &Path) {
    let mut file = fs::File::create(at).expect("creates");
    while file.write_all(&[1; 1 << 16]).is_ok() {}
}

#[test]
#[ignore = "needs root"]
fn a_file_system_that_becomes_full_holds_nothing_afterwards() {
    for agent in [false, true] {
        let when = if agent { "by the agent" } else { "by the shell" };
        let small = Small::new();
        if agent {
            small.sync();
        }
        let cloud = &small.cloud;
        // There is room when it is looked for, and none when it is used.
        fs::create_dir(cloud.path("cache/.onestore")).expect("a folder");
        let mut tiny = Command::new("mount");
        tiny.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(cloud.path("cache/.onestore"));
        assert!(tiny.status().expect("mount").success());
        let ran = cloud.done("clone", &ABC);
        let left = leftovers(cloud);
        drop(Command::new("umount").arg(cloud.path("cache/.onestore")).status());
        assert!(said(&ran).contains("No space left on device"), "{when}: {}", said(&ran));
        assert_eq!(left, Vec::<String>::new(), "{when}: {}", said(&ran));
        assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")), "{when}");
        assert!(!cloud.path("cache/abc").exists(), "{when}");
        // Full from the beginning: nothing is tried.
        fill(&cloud.path("cache/fill"));
        cloud.done("clone", &ABC);
        assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")), "{when}");
        fs::remove_file(cloud.path("cache/fill")).expect("removes");
        cloud.done("clone", &ABC);
        hit(cloud, when);
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_dead_have_left_is_not_in_the_way() {
    for agent in [false, true] {
        for moment in [3, 4, 5] {
            let when = format!("at {moment}, {agent}");
            let small = Small::new();
            if agent {
                small.sync();
            }
            let cloud = &small.cloud;
            let mut child = cloud.start("clone", &ABC);
            let until = Instant::now() + Duration::from_secs(20);
            while leftovers(cloud).is_empty() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(moment * 8));
            signal(&child, Signal::KILL);
            child.wait().expect("waits");
            cloud.settle();
            cloud.done("clone", &ABC);
            hit(cloud, &when);
        }
    }
}
