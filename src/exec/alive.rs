//! Whether the storage that a script is about to touch answers at all.
//!
//! A hard NFS mount whose server is gone blocks whoever looks at it, for ever, and SIGKILL does not always help: a process
//! that waits so cannot even end. So before a script begins, a child of ours asks each mount that its paths lead through
//! (`stat -f`). One that has not answered in time is left alone (it ends when the mount answers or is taken off, and nobody
//! waits for it), and the script fails before it has touched anything. Storage that dies later is the operator's to
//! take off.
//!
//! Only mounts whose answers come from elsewhere are asked: the network, FUSE, what is unknown. On a host with none of
//! these it costs a look at the table of mounts. An answer holds for `HOLDS`, a silence for `SILENT`, so that
//! roll-back does not wait again.
//!
//! Links are followed by text, and never through a mount that has not answered. Names that programs are given count
//! where they are words of their own.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::control::{Cancel, Control, Stopped};
use super::op::{Op, Script};
use super::process::Programs;

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(10);
/// How long storage that did not answer is taken for dead.
const SILENT: Duration = Duration::from_secs(60);
/// Links that one path may lead through: as the kernel's own limit.
const MOST_LINKS: u32 = 40;

/// Seconds that storage may take where `ONESTORE_STORAGE_TIMEOUT` does not say.
pub const SECONDS: u64 = 30;

/// File systems that answer from this machine's disks or memory.
pub(super) const LOCAL: &[&str] = &[
    "bcachefs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "mqueue",
    "nsfs",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "rpc_pipefs",
    "securityfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "udf",
    "vfat",
    "xfs",
    "zfs",
];

/// Storage that did not answer in time, or a wait for it that was ended.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// It did not answer.
    #[error("The storage mounted on {at} ({kind} of {source_name}) has not answered within {seconds} s", at = .at.display())]
    Dead {
        /// The mount point.
        at: PathBuf,
        /// The kind of file system.
        kind: String,
        /// What is mounted.
        source_name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A signal or the deadline came.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// How long storage may take to answer: `ONESTORE_STORAGE_TIMEOUT` in seconds; nothing where that is 0.
#[must_use]
pub fn patience() -> Option<Duration> {
    let said = std::env::var("ONESTORE_STORAGE_TIMEOUT").ok().and_then(|text| text.trim().parse().ok());
    Some(Duration::from_secs(said.unwrap_or(SECONDS))).filter(|time| !time.is_zero())
}

/// Asks all storage that a script's operations lead through; gives the operation that would hang.
///
/// # Errors
/// [`Silence`], with the index of the operation.
pub fn ask(script: &Script, programs: &Programs, control: &Control) -> Result<(), (usize, Silence)> {
    let Some(patience) = patience() else { return Ok(()) };
    let mounts = Mounts::of(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    if mounts.0.iter().all(Mount::is_local) {
        return Ok(());
    }
    for (index, op) in script.ops.iter().enumerate() {
        for path in paths(op) {
            mounts.walk(&path, &mut |mount| answers(mount, patience, programs, control)).map_err(|e| (index, e))?;
        }
    }
    Ok(())
}

/// The same for one path that no script has.
///
/// # Errors
/// [`Silence::Dead`], as its source.
pub fn ask_path(path: &Path) -> io::Result<()> {
    let script = Script::new([Op::Stat { path: path.to_owned(), follow: true }]);
    let control = Control::new(Cancel::new());
    ask(&script, &Programs::default(), &control).map_err(|(_, silence)| io::Error::other(silence))
}

/// The paths that an operation touches, those among the arguments of a program too.
pub(super) fn paths(op: &Op) -> Vec<PathBuf> {
    let arguments: &[_] = match op {
        Op::Run(cmd) | Op::Guard { cmd, .. } => &cmd.args,
        _ => &[],
    };
    let own = op.places().into_iter().map(|(path, _)| path);
    own.chain(arguments.iter().map(PathBuf::from)).filter(|path| path.is_absolute()).collect()
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    kind: String,
    source: String,
}

impl Mount {
    fn is_local(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }
}

/// The table of mounts, later ones on top of earlier ones.
#[derive(Debug, Default)]
struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads the lines of `proc(5)` mountinfo; what is not understood is left out.
    fn of(text: &str) -> Self {
        let mount = |line: &str| {
            let (head, tail) = line.split_once(" - ")?;
            let at = PathBuf::from(std::ffi::OsString::from_vec(unescaped(head.split(' ').nth(4)?.as_bytes())));
            let mut tail = tail.split(' ');
            Some(Mount { at, kind: tail.next()?.to_owned(), source: tail.next()?.to_owned() })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// What holds a path, by its text.
    fn holding(&self, path: &Path) -> Option<&Mount> {
        let around = self.0.iter().enumerate().filter(|(_, mount)| path.starts_with(&mount.at));
        around.max_by_key(|(number, mount)| (mount.at.components().count(), *number)).map(|(_, mount)| mount)
    }

    /// Names every mount that is not local on the way along `path`, each before anything on it is looked at.
    fn walk(&self, path: &Path, ask: &mut dyn FnMut(&Mount) -> Result<(), Silence>) -> Result<(), Silence> {
        let mut at = PathBuf::from("/");
        let mut todo: Vec<PathBuf> = parts(path);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            if let Some(mount) = self.holding(&next).filter(|mount| !mount.is_local()) {
                ask(mount)?;
            }
            match fs::read_link(&next) {
                Ok(text) if links < MOST_LINKS => {
                    links += 1;
                    if text.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    todo.extend(parts(&text));
                }
                _ => at = next,
            }
        }
        Ok(())
    }
}

/// The components, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let part = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(PathBuf::from(part.as_os_str())),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// Blanks and the like stand as octal numbers.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let number = (*first == b'\\').then(|| after.get(..3)).flatten();
        let number = number.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    out
}

/// What was heard of each mount point: when, and whether it answered.
static HEARD: LazyLock<Mutex<HashMap<PathBuf, (Instant, bool)>>> = LazyLock::new(Mutex::default);

fn answers(mount: &Mount, patience: Duration, programs: &Programs, control: &Control) -> Result<(), Silence> {
    let heard = || HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    let dead = || Silence::Dead {
        at: mount.at.clone(),
        kind: mount.kind.clone(),
        source_name: mount.source.clone(),
        seconds: patience.as_secs(),
    };
    match heard().get(&mount.at) {
        Some((when, true)) if when.elapsed() < HOLDS => return Ok(()),
        Some((when, false)) if when.elapsed() < SILENT => return Err(dead()),
        _ => {}
    }
    let Some(mut child) = asker(&mount.at, programs) else { return Ok(()) };
    let answered = wait(&mut child, patience, control)?;
    if !answered {
        // It may hear this only when the mount answers.
        let _ = child.kill();
    }
    heard().insert(mount.at.clone(), (Instant::now(), answered));
    if answered { Ok(()) } else { Err(dead()) }
}

/// The child that looks; nothing where it cannot be started, which is no reason to refuse.
fn asker(at: &Path, programs: &Programs) -> Option<Child> {
    let words = programs.find("stat").ok()?;
    let (program, words) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(words).args([OsStr::new("-f"), OsStr::new("--"), OsStr::from_bytes(at.as_os_str().as_bytes())]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
    command.spawn().ok()
}

/// Whether it ended in time; any answer is one, a refusal too.
fn wait(child: &mut Child, patience: Duration, control: &Control) -> Result<bool, Stopped> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if child.try_wait().map_or(true, |status| status.is_some()) {
            return Ok(true);
        }
        if begin.elapsed() >= patience {
            return Ok(false);
        }
        if let Err(stopped) = control.check() {
            let _ = child.kill();
            return Err(stopped);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
        2 1 0:5 / /mnt/nfs\\040one rw,relatime shared:3 - nfs4 srv:/export rw,vers=4.2\n\
        3 2 8:2 / /mnt/nfs\\040one/disk rw - xfs /dev/sdb rw\n\
        4 1 0:9 / /var rw - tmpfs none rw\n5 1 0:10 / /var rw - fuse.sshfs host:/ rw\nodd\n";

    #[test]
    fn the_mount_that_holds_a_path_is_the_deepest_and_the_last() {
        let mounts = Mounts::of(TABLE);
        let holding = |path: &str| mounts.holding(Path::new(path)).map(|mount| mount.source.as_str());
        assert_eq!(holding("/mnt/nfs one/a"), Some("srv:/export"));
        assert_eq!(holding("/mnt/nfs one"), Some("srv:/export"));
        assert_eq!(holding("/mnt/nfs one/disk/a"), Some("/dev/sdb"));
        assert_eq!(holding("/mnt/nfs one two"), Some("/dev/sda1"));
        assert_eq!(holding("/var/lib"), Some("host:/"));
    }

    #[test]
    fn links_lead_to_the_mounts_that_are_asked() {
        let dir = tempfile::tempdir().expect("a folder");
        let top = dir.path().canonicalize().expect("a name");
        std::os::unix::fs::symlink("/mnt/nfs one/ds/./x", top.join("link")).expect("a link");
        std::os::unix::fs::symlink("loop", top.join("loop")).expect("a link");
        let table = TABLE.lines().take(3).collect::<Vec<_>>().join("\n");
        let asked = |path: &str| {
            let mut asked = Vec::new();
            let path = top.join(path);
            Mounts::of(&table)
                .walk(&path, &mut |mount| {
                    asked.push(mount.source.clone());
                    Ok(())
                })
                .expect("an answer");
            asked.dedup();
            asked
        };
        assert_eq!(asked("link/y"), ["srv:/export"]);
        assert_eq!(asked("link/../../../../etc"), ["srv:/export"]);
        assert_eq!(asked("loop/y"), [""; 0]);
        assert_eq!(asked("plain"), [""; 0]);
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().expect("sleep");
        let control = Control::new(Cancel::new());
        assert!(!wait(&mut child, Duration::from_millis(30), &control).expect("no signal"));
        child.kill().expect("it is ours");
        assert!(wait(&mut child, Duration::from_secs(30), &control).expect("no signal"));
    }

    #[test]
    fn arguments_of_programs_are_paths_where_they_are_absolute() {
        let op = Op::Run(super::super::cmd::Cmd::new("qemu-img").arg("info").arg("/a/b"));
        assert_eq!(paths(&op), [PathBuf::from("/a/b")]);
    }
}
