//! Names of files that are not finished yet, and what becomes of them when their owner dies.
//!
//! New data in a datastore is written to `<BASE>/.onestore/<owner>.<final name>.part`. Its life:
//!
//! 1. The staging file is written, checked and synced.
//! 2. [`Op::Publish`]: a hard link gives it the final name too.
//! 3. The reply is written to stdout.
//! 4. [`retire`]: the staging name is removed, the directory synced. Only then the process exits with 0.
//!
//! oned takes an action for done only when the process ends with 0: a killed run has failed, even after step 3. So a
//! staging name whose owner is dead means that nobody was told, and [`Op::Sweep`] may remove the file, and the final
//! name too if it is the same inode. When step 4 fails, the action must fail: a staging name left behind with exit
//! status 0 would take the registered image away at the next sweep.
//!
//! # Who is dead
//!
//! The owner is always the action's process on the front-end, also for files on bridges and hosts, where no process
//! lives from one phase to the next. It stands in the name: machine, boot, process and its start time. [`dead`] compares
//! these with `/proc`, on the machine that is the owner, and hands [`Op::Sweep`] the names. So there is no lock file to
//! leak, no trust in `flock` over NFS, no guess by age, and no race: the dead stay dead. A bridge may still be running an
//! orphaned `qemu-img` into a file that is swept: it then writes to an unlinked inode.
//!
//! The staging directory itself stays, even when empty: another run may be about to write in it.
//!
//! What remains: killed between step 4 and its exit, a run has failed for oned and its image, whole, keeps its name. The
//! directory is synced in that time, for otherwise a power failure could bring the staging name of a registered image
//! back. Losing space is the lesser evil.
//!
//! Files of another machine (the other front-end of a pair) are left to that machine, or to an operator: [`owner_of`].

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process;

use md5::{Digest, Md5};

use super::op::{Op, Script};

/// Name of the staging directory in a datastore's directory.
pub const DIR: &str = ".onestore";

/// How names of staging files end.
const SUFFIX: &str = ".part";

/// Who a staging file belongs to: one run of one action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Hash of host name and machine id.
    machine: u32,
    /// Hash of boot id and process-number name space: process numbers of another boot or container mean nothing.
    boot: u32,
    /// Process number.
    pid: u32,
    /// When it was started, in clock ticks since boot.
    start: u64,
}

impl Owner {
    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn me() -> io::Result<Self> {
        let pid = process::id();
        let start = start_of(pid)?.ok_or_else(|| io::Error::other("This process is not in /proc"))?;
        // A machine without an id still has its name, and the other way round.
        let mut machine = rustix::system::uname().nodename().to_bytes().to_vec();
        machine.extend(fs::read("/etc/machine-id").unwrap_or_default());
        let mut boot = fs::read("/proc/sys/kernel/random/boot_id")?;
        boot.extend(fs::read_link("/proc/self/ns/pid")?.into_os_string().into_vec());
        Ok(Self { machine: short(&machine), boot: short(&boot), pid, start })
    }

    /// The owner as it stands in names: hexadecimal and hyphens.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("{:08x}-{:08x}-{:x}-{:x}", self.machine, self.boot, self.pid, self.start)
    }

    fn parse(tag: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(tag).ok()?;
        let mut parts = text.split('-');
        let mut next = || parts.next().filter(|part| !part.starts_with('+'));
        let hex = |part: Option<&str>| u32::from_str_radix(part?, 16).ok();
        let owner = Self {
            machine: hex(next())?,
            boot: hex(next())?,
            pid: hex(next())?,
            start: u64::from_str_radix(next()?, 16).ok()?,
        };
        // Also refuses further parts and other spellings of the same numbers.
        (owner.tag() == text).then_some(owner)
    }

    /// Whether the process is known to have ended, as `me` can tell: it ran on this machine, and is not there any more.
    fn is_dead(&self, me: &Self) -> bool {
        if self.machine != me.machine {
            return false;
        }
        if self.boot != me.boot {
            return true;
        }
        // What cannot be read is taken for alive.
        start_of(self.pid).is_ok_and(|start| start != Some(self.start))
    }
}

/// First bytes of a digest: enough to tell the machines of one cloud apart.
fn short(bytes: &[u8]) -> u32 {
    let digest = Md5::digest(bytes);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Start time of a process (field 22 of `proc(5)` stat), or nothing where there is no such process or it is a zombie.
fn start_of(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => return Ok(None),
        Err(error) => return Err(error),
    };
    let odd = || io::Error::other("The process table reads oddly");
    // The name, in parentheses, may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')').ok_or_else(odd)?;
    let text = String::from_utf8_lossy(&stat[after + 1..]).into_owned();
    let mut fields = text.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    fields.nth(18).and_then(|field| field.parse().ok()).map(Some).ok_or_else(odd)
}

/// The staging directory of a datastore.
#[must_use]
pub fn dir(base: &Path) -> PathBuf {
    base.join(DIR)
}

/// Where the data of `base/final_name` is written first.
#[must_use]
pub fn staging_path(base: &Path, owner: &Owner, final_name: &OsStr) -> PathBuf {
    let mut name = OsString::from(owner.tag());
    name.push(".");
    name.push(final_name);
    name.push(SUFFIX);
    dir(base).join(name)
}

/// Splits the name of a staging file into its owner and the final name.
fn split(name: &OsStr) -> Option<(Owner, &OsStr)> {
    let name = name.as_bytes().strip_suffix(SUFFIX.as_bytes())?;
    let dot = name.iter().position(|byte| *byte == b'.')?;
    let (tag, final_name) = (&name[..dot], &name[dot + 1..]);
    let plain = !final_name.is_empty() && final_name != b"." && final_name != b".." && !final_name.contains(&b'/');
    plain.then_some(())?;
    Some((Owner::parse(tag)?, OsStr::from_bytes(final_name)))
}

/// The final path of a staging file; `None` where the path is no such thing.
#[must_use]
pub fn final_of(staging: &Path) -> Option<PathBuf> {
    let in_dir = staging.parent()?;
    (in_dir.file_name()? == DIR).then_some(())?;
    let (_, final_name) = split(staging.file_name()?)?;
    Some(in_dir.parent()?.join(final_name))
}

/// Who wrote a staging file, by its name.
#[must_use]
pub fn owner_of(name: &OsStr) -> Option<Owner> {
    split(name).map(|(owner, _)| owner)
}

/// Which of the names in a staging directory belong to runs that are dead for certain: what [`Op::Sweep`] gets.
#[must_use]
pub fn dead(names: &[OsString], me: &Owner) -> Vec<OsString> {
    let is_dead = |name: &&OsString| owner_of(name).is_some_and(|owner| owner.is_dead(me));
    names.iter().filter(is_dead).cloned().collect()
}

/// Step 4 of the life of a staging file; see the module's text for what it means when it fails.
#[must_use]
pub fn retire(staging: &Path) -> Script {
    let in_dir = staging.parent().unwrap_or(Path::new("/")).to_owned();
    Script::new([Op::Remove { path: staging.to_owned(), tree: false, must_exist: false }, Op::Sync { path: in_dir }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(me: &Owner) -> Owner {
        Owner { start: me.start + 1, ..me.clone() }
    }

    #[test]
    fn names_go_there_and_back() {
        let me = Owner::me().expect("proc");
        for name in [&b"one-1.qcow2"[..], b"\xff\n.part", b".x", b"a.b.part.part"] {
            let staging = staging_path(Path::new("/ds/1"), &me, OsStr::from_bytes(name));
            assert_eq!(final_of(&staging), Some(Path::new("/ds/1").join(OsStr::from_bytes(name))));
            assert_eq!(owner_of(staging.file_name().expect("name")), Some(me.clone()));
        }
    }

    #[test]
    fn what_we_did_not_name_is_not_ours() {
        let tag = Owner::me().expect("proc").tag();
        for name in
            ["x.part", "1-2-3-4.a.part", &format!("{tag}..part"), &format!("{tag}.a"), &format!("{tag}....part")]
        {
            assert_eq!(final_of(&Path::new("/ds/.onestore").join(name)), None, "{name}");
        }
        assert_eq!(final_of(&Path::new("/ds/x").join(format!("{tag}.a.part"))), None);
    }

    #[test]
    fn only_the_dead_of_this_machine_are_dead() {
        let me = Owner::me().expect("proc");
        assert!(!me.is_dead(&me));
        assert!(other(&me).is_dead(&me), "another process with the same number");
        assert!(Owner { boot: !me.boot, ..me.clone() }.is_dead(&me));
        assert!(!Owner { machine: !me.machine, ..other(&me) }.is_dead(&me));
        let name =
            |owner: &Owner| staging_path(Path::new("/"), owner, OsStr::new("a")).file_name().map(OsStr::to_owned);
        let names: Vec<_> = [name(&me), name(&other(&me)), Some("lost+found".into())].into_iter().flatten().collect();
        assert_eq!(dead(&names, &me), [names[1].clone()]);
    }

    #[test]
    fn a_child_that_ended_but_was_not_reaped_is_dead() {
        let mut child = process::Command::new("true").spawn().expect("spawn");
        let pid = child.id();
        while start_of(pid).expect("proc").is_some() {
            std::thread::yield_now();
        }
        child.wait().expect("wait");
        assert_eq!(start_of(pid).expect("proc"), None);
    }
}
