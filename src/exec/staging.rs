//! Names of files that are not finished yet, and what becomes of them when their owner dies.
//!
//! New data in a datastore is written to `<BASE>/.onestore/<owner>.<final name>.part`. Its life:
//!
//! 1. The staging file is written, checked and synced.
//! 2. [`Op::Publish`]: a hard link gives it the final name too.
//! 3. The reply is written to stdout.
//! 4. [`retire`]: the final name is made durable, and last the staging name is removed. Then the process exits with 0.
//!
//! oned takes an action for done only when the process ends with 0: a killed run has failed, even after step 3. So a
//! staging name whose owner was killed means that nobody was told, and [`Op::Sweep`] may remove the file, and the final
//! name too if it is the same inode. When step 4 fails, the action must fail: a staging name left behind with exit
//! status 0 would take the registered image away at the next sweep.
//!
//! After a power cut a staging name may be back that had been removed, because directories are written late. Then nobody
//! knows whether oned was told, and only the staging name goes: an orphan at worst, never a lost image. A bridge may
//! lose power alone, so there the removal is synced before the process ends.
//!
//! # Who is dead
//!
//! The owner is always the action's process on the front-end, also for files on bridges and hosts, where no process
//! lives from one phase to the next. It stands in the name: machine, boot, process and its start time. [`clear`] compares
//! these with `/proc`, on the machine that is the owner, and hands [`Op::Sweep`] the names. So there is no lock file to
//! leak, no trust in `flock` over NFS, no guess by age, and no race: the dead stay dead. A bridge may still be running an
//! orphaned `qemu-img` into a file that is swept: it then writes to an unlinked inode.
//!
//! The last one to leave removes the staging directory; a claim file ([`claim_path`]) keeps it until then.
//!
//! What remains: killed between the removal and its exit, a run has failed for oned and its image, whole, keeps its name.
//! Losing space is the lesser evil.
//!
//! Files of another machine (the other front-end of a pair) are left to that machine, or to an operator: [`owner_of`].

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};

use super::op::Op;

/// Name of the staging directory in a datastore's directory.
pub const DIR: &str = ".onestore";

/// How names of staging files end.
const SUFFIX: &str = ".part";

/// Who a staging file belongs to: one run of one action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Hash of host name and machine id.
    machine: u32,
    /// Hash of the boot id.
    boot: u32,
    /// Hash of the process-number name space: numbers of another one mean nothing here.
    space: u32,
    /// Process number.
    pid: u32,
    /// When it was started, in clock ticks since boot.
    start: u64,
    /// When it began to work, in seconds since 1970.
    epoch: u64,
}

impl Owner {
    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn me() -> io::Result<Self> {
        static ME: OnceLock<Owner> = OnceLock::new();
        if let Some(me) = ME.get() {
            return Ok(me.clone());
        }
        let me = Self::read()?;
        Ok(ME.get_or_init(|| me).clone())
    }

    fn read() -> io::Result<Self> {
        let pid = process::id();
        let start = start_of(pid)?.ok_or_else(|| io::Error::other("This process is not in /proc"))?;
        // A machine without an id still has its name, and the other way round.
        let mut machine = rustix::system::uname().nodename().to_bytes().to_vec();
        machine.extend(fs::read("/etc/machine-id").unwrap_or_default());
        let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
        let space = fs::read_link("/proc/self/ns/pid")?.into_os_string().into_vec();
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { machine: short(&machine), boot: short(&boot), space: short(&space), pid, start, epoch })
    }

    /// The owner as it stands in names: hexadecimal and hyphens.
    #[must_use]
    pub fn tag(&self) -> String {
        let Self { machine, boot, space, pid, start, epoch } = self;
        format!("{machine:08x}-{boot:08x}-{space:08x}-{pid:x}-{start:x}-{epoch:x}")
    }

    fn parse(tag: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(tag).ok()?;
        let mut parts = text.split('-');
        let mut next = || parts.next().filter(|part| !part.starts_with('+'));
        let short = |part: Option<&str>| u32::from_str_radix(part?, 16).ok();
        let long = |part: Option<&str>| u64::from_str_radix(part?, 16).ok();
        let owner = Self {
            machine: short(next())?,
            boot: short(next())?,
            space: short(next())?,
            pid: short(next())?,
            start: long(next())?,
            epoch: long(next())?,
        };
        // Also refuses further parts and other spellings of the same numbers.
        (owner.tag() == text).then_some(owner)
    }

    /// What is known of the process, as `me` can tell; what cannot be told is taken for alive.
    ///
    /// Killed, or ended: it is of this boot and name space and not there any more. Of another boot of this machine: it was
    /// started before this boot, which tells a reboot from a second machine that was cloned with name and id.
    fn fate(&self, me: &Self) -> Fate {
        if self.machine != me.machine {
            return Fate::Alive;
        }
        if self.boot != me.boot {
            return if boot_time().is_some_and(|boot| self.epoch < boot) { Fate::Rebooted } else { Fate::Alive };
        }
        let gone = self.space == me.space && start_of(self.pid).is_ok_and(|start| start != Some(self.start));
        if gone && !hidden(self.pid) { Fate::Killed } else { Fate::Alive }
    }
}

/// See [`Owner::fate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Alive,
    Killed,
    Rebooted,
}

/// When this machine was booted, in seconds since 1970 (`btime` of `proc(5)` stat).
fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

/// Whether there is a process of this number although `/proc` does not show it (mount option `hidepid`).
fn hidden(pid: u32) -> bool {
    if Path::new(&format!("/proc/{pid}")).exists() {
        return false;
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
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
    dir(base).join(staging_name(owner, final_name))
}

fn staging_name(owner: &Owner, final_name: &OsStr) -> OsString {
    let mut name = OsString::from(owner.tag());
    name.push(".");
    name.push(final_name);
    name.push(SUFFIX);
    name
}

/// Another staging file of the owner of `staging`, beside it; `None` where the name is not one of a staging file.
pub(super) fn beside(staging: &Path, count: u64) -> Option<PathBuf> {
    let (owner, final_name) = split(staging.file_name()?)?;
    let mut name = final_name.to_owned();
    name.push(format!(".temp{count}"));
    Some(staging.with_file_name(staging_name(&owner, &name)))
}

/// A file that keeps the staging directory while this owner works in it: others remove the directory when it is empty.
#[must_use]
pub fn claim_path(base: &Path, owner: &Owner) -> PathBuf {
    staging_path(base, owner, OsStr::new("claim"))
}

/// What gives up the claim; the last one to leave removes the directory.
#[must_use]
pub fn leave(base: &Path, owner: &Owner) -> [Op; 2] {
    [
        Op::Remove { path: claim_path(base, owner), tree: false, must_exist: false },
        Op::RemoveDirIfEmpty { path: dir(base) },
    ]
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

/// Whether the owner of a staging file of this name is dead for certain.
#[must_use]
pub fn is_abandoned(name: &OsStr, me: &Owner) -> bool {
    owner_of(name).is_some_and(|owner| owner.fate(me) != Fate::Alive)
}

/// How long what an interrupted journey brought is kept, from its beginning on, in seconds: a day.
const KEPT: u64 = 86_400;

/// How final names of unfinished journeys begin: none is ever published under one.
const JOURNEY: &str = ".journey-";

/// The final name under which the unfinished copy of a journey is staged. `key` tells what is copied to where.
#[must_use]
pub fn journey_name(key: &str) -> OsString {
    format!("{JOURNEY}{key}").into()
}

fn is_journey(name: &OsStr) -> bool {
    split(name).is_some_and(|(_, name)| name.as_bytes().starts_with(JOURNEY.as_bytes()))
}

/// The files among these names that are what `like`, of `me`, is, and whose owner is dead for certain, or is `me`.
#[must_use]
pub fn inherited<'a>(names: &'a [OsString], like: &Path, me: &Owner) -> Vec<&'a OsString> {
    let Some((_, wanted)) = like.file_name().and_then(split) else { return Vec::new() };
    let is_it = |name: &&OsString| {
        split(name).is_some_and(|(owner, of)| of == wanted && (owner == *me || owner.fate(me) != Fate::Alive))
    };
    names.iter().filter(is_it).collect()
}

/// A staging path without the owner in it: the same for every run.
#[must_use]
pub fn without_owner(path: &Path) -> PathBuf {
    let part = |part: &OsStr| split(part).map_or(part.to_owned(), |(_, name)| name.to_owned());
    path.components().map(|component| part(component.as_os_str())).collect()
}

/// What clears the staging directory of `base`, which holds these names, of runs that are dead for certain.
///
/// What an interrupted journey brought ([`journey_name`]) stays for a day, for the next one to go on with.
#[must_use]
pub fn clear(base: &Path, names: &[OsString], me: &Owner) -> Vec<Op> {
    let kept = |name: &OsStr| is_journey(name) && owner_of(name).is_some_and(|owner| me.epoch < owner.epoch + KEPT);
    let dead = |name: &OsStr, fate| owner_of(name).is_some_and(|owner| owner.fate(me) == fate) && !kept(name);
    let of = |fate| names.iter().filter(move |name| dead(name, fate));
    let dead: Vec<OsString> = of(Fate::Killed).cloned().collect();
    let sweep = (!dead.is_empty()).then(|| Op::Sweep { staging: dir(base), dead });
    let remove = |name| Op::Remove { path: dir(base).join(name), tree: true, must_exist: false };
    sweep.into_iter().chain(of(Fate::Rebooted).map(remove)).collect()
}

/// Step 4 of the life of a staging file, and the end of the owner's claim; see the module's text for the order and for what
/// it means when it fails. `remote`: whether another machine holds the files.
#[must_use]
pub fn retire(base: &Path, owner: &Owner, staging: &Path, remote: bool) -> Vec<Op> {
    let unlink = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
    let mut ops = vec![Op::Sync { path: base.to_owned() }, unlink(claim_path(base, owner)), unlink(staging.to_owned())];
    if remote {
        ops.push(Op::Sync { path: dir(base) });
    }
    ops.push(Op::RemoveDirIfEmpty { path: dir(base) });
    ops
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
        let rebooted = Owner { boot: !me.boot, epoch: 0, ..me.clone() };
        assert_eq!(me.fate(&me), Fate::Alive);
        assert_eq!(other(&me).fate(&me), Fate::Killed, "another process with the same number");
        assert_eq!(rebooted.fate(&me), Fate::Rebooted);
        assert_eq!(Owner { boot: !me.boot, ..other(&me) }.fate(&me), Fate::Alive, "a cloned machine");
        assert_eq!(Owner { space: !me.space, ..other(&me) }.fate(&me), Fate::Alive, "another container");
        assert_eq!(Owner { machine: !me.machine, ..other(&me) }.fate(&me), Fate::Alive);
        let name =
            |owner: &Owner| staging_path(Path::new("/"), owner, OsStr::new("a")).file_name().map(OsStr::to_owned);
        let names: Vec<_> =
            [name(&me), name(&other(&me)), name(&rebooted), Some("lost+found".into())].into_iter().flatten().collect();
        let sweep = Op::Sweep { staging: dir(Path::new("/")), dead: vec![names[1].clone()] };
        // After a power cut the final name stays: oned may have been told.
        let remove = Op::Remove { path: dir(Path::new("/")).join(&names[2]), tree: true, must_exist: false };
        assert_eq!(clear(Path::new("/"), &names, &me), [sweep, remove]);
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
