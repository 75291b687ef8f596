//! Which system calls change something, and reading one from a process that was stopped at its entry.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// What a call has to be like to count, beyond its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// The flags, in this argument, make or cut a file.
    Opens(usize),
    /// The flags are in the structure that this argument points to.
    OpensBy(usize),
    /// Something other than this program's own wake-ups is written to.
    Writes,
    /// It is a copy by reference, or makes blocks zeroes.
    Ioctl,
    /// A process is made and not a thread; the flags are in the first argument.
    Forks,
    /// The same, with the flags where the first argument points to.
    ForksBy,
    /// A lock is set.
    Fcntl,
    /// What is closed was open for writing.
    Closes,
}

use When::{Always, Closes, Fcntl, Forks, ForksBy, Ioctl, Opens, OpensBy, Writes};

/// Every call that changes a file, a directory, a lock, a mount, a process or what another process or machine reads.
const CALLS: &[(i64, &str, When)] = &[
    (libc::SYS_open, "open", Opens(1)),
    (libc::SYS_openat, "openat", Opens(2)),
    (libc::SYS_openat2, "openat2", OpensBy(2)),
    (libc::SYS_creat, "creat", Always),
    (libc::SYS_write, "write", Writes),
    (libc::SYS_writev, "writev", Writes),
    (libc::SYS_pwrite64, "pwrite64", Writes),
    (libc::SYS_pwritev, "pwritev", Writes),
    (libc::SYS_pwritev2, "pwritev2", Writes),
    (libc::SYS_copy_file_range, "copy_file_range", Always),
    (libc::SYS_sendfile, "sendfile", Always),
    (libc::SYS_splice, "splice", Always),
    (libc::SYS_sendto, "sendto", Always),
    (libc::SYS_sendmsg, "sendmsg", Always),
    (libc::SYS_ioctl, "ioctl", Ioctl),
    (libc::SYS_fallocate, "fallocate", Always),
    (libc::SYS_truncate, "truncate", Always),
    (libc::SYS_ftruncate, "ftruncate", Always),
    (libc::SYS_rename, "rename", Always),
    (libc::SYS_renameat, "renameat", Always),
    (libc::SYS_renameat2, "renameat2", Always),
    (libc::SYS_link, "link", Always),
    (libc::SYS_linkat, "linkat", Always),
    (libc::SYS_symlink, "symlink", Always),
    (libc::SYS_symlinkat, "symlinkat", Always),
    (libc::SYS_unlink, "unlink", Always),
    (libc::SYS_unlinkat, "unlinkat", Always),
    (libc::SYS_mkdir, "mkdir", Always),
    (libc::SYS_mkdirat, "mkdirat", Always),
    (libc::SYS_rmdir, "rmdir", Always),
    (libc::SYS_mknod, "mknod", Always),
    (libc::SYS_mknodat, "mknodat", Always),
    (libc::SYS_chmod, "chmod", Always),
    (libc::SYS_fchmod, "fchmod", Always),
    (libc::SYS_fchmodat, "fchmodat", Always),
    (libc::SYS_chown, "chown", Always),
    (libc::SYS_fchown, "fchown", Always),
    (libc::SYS_lchown, "lchown", Always),
    (libc::SYS_fchownat, "fchownat", Always),
    (libc::SYS_utime, "utime", Always),
    (libc::SYS_utimes, "utimes", Always),
    (libc::SYS_futimesat, "futimesat", Always),
    (libc::SYS_utimensat, "utimensat", Always),
    (libc::SYS_setxattr, "setxattr", Always),
    (libc::SYS_lsetxattr, "lsetxattr", Always),
    (libc::SYS_fsetxattr, "fsetxattr", Always),
    (libc::SYS_fsync, "fsync", Always),
    (libc::SYS_fdatasync, "fdatasync", Always),
    (libc::SYS_sync_file_range, "sync_file_range", Always),
    (libc::SYS_syncfs, "syncfs", Always),
    (libc::SYS_sync, "sync", Always),
    (libc::SYS_flock, "flock", Always),
    (libc::SYS_fcntl, "fcntl", Fcntl),
    (libc::SYS_mount, "mount", Always),
    (libc::SYS_umount2, "umount2", Always),
    (libc::SYS_move_mount, "move_mount", Always),
    (libc::SYS_kill, "kill", Always),
    (libc::SYS_fork, "fork", Always),
    (libc::SYS_vfork, "vfork", Always),
    (libc::SYS_clone, "clone", Forks),
    (libc::SYS_clone3, "clone3", ForksBy),
    (libc::SYS_execve, "execve", Always),
    (libc::SYS_execveat, "execveat", Always),
    (libc::SYS_connect, "connect", Always),
    (libc::SYS_exit_group, "exit_group", Always),
];

/// What only a fault is put into: a process that dies closes its files anyway.
const CLOSE: (i64, &str, When) = (libc::SYS_close, "close", Closes);

/// A copy by reference of a whole file (linux/fs.h).
const FICLONE: u64 = 0x4004_9409;
/// `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE`, `BLKDISCARD`, `BLKZEROOUT` (linux/fs.h).
const IOCTLS: [u64; 5] = [FICLONE, 0x4020_940d, 0xc018_9436, 0x1277, 0x127f];

/// Commands of `fcntl` that set a lock.
const LOCKS: [i32; 4] = [libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];

/// Numbers of the calls at which a process has to be stopped; `close` if that is wanted, too.
pub fn numbers(closes: bool) -> impl Iterator<Item = i64> {
    CALLS.iter().chain(closes.then_some(&CLOSE)).map(|(number, _, _)| *number)
}

/// A call that changes something, at its entry.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    args: [u64; 6],
}

/// What a call changes that somebody could find after a kill: a process that lives on, or the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing, whatever comes of it.
    None,
    /// Nothing, if it fails.
    NoneIfItFails,
    /// It has to be taken for one.
    Some,
}

/// Calls that bring to the disk what the kernel has already, or set locks, which go with the process.
const NO_EFFECT: [&str; 7] = ["fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "flock", "fcntl"];

/// Calls that do nothing when they fail. What is written is none of them: a part of it may have been.
const ALL_OR_NOTHING: [&str; 24] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "ioctl",
    "truncate",
    "ftruncate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "mknod",
    "chmod",
    "fchmod",
    "fchmodat",
    "execve",
];

impl Call {
    /// Whether it names what it changes by a descriptor, and not by a path.
    pub fn by_descriptor(&self) -> bool {
        ["f", "write", "pwrite", "copy_file", "send", "splice", "ioctl", "sync", "close", "connect"]
            .iter()
            .any(|start| self.name.starts_with(start))
            && !["fchmodat", "fchownat", "futimesat", "fork"].contains(&self.name)
    }

    /// What is known of its effect before it is made. Whatever is written to a pipe or a socket has one, for who reads it
    /// may live on.
    pub fn effect(&self) -> Effect {
        match self.name {
            name if NO_EFFECT.contains(&name) => Effect::None,
            "kill" if self.args[1] == 0 => Effect::None,
            "ioctl" if self.args[1] & 0xffff_ffff != FICLONE => Effect::Some,
            name if ALL_OR_NOTHING.contains(&name) => Effect::NoneIfItFails,
            _ => Effect::Some,
        }
    }

    /// What it is about, for people: a path, or that of a descriptor.
    pub fn about(&self, pid: Pid) -> String {
        let args = &self.args;
        match self.name {
            "openat" | "openat2" | "unlinkat" | "mkdirat" | "linkat" | "renameat" | "fchmodat" | "utimensat" => {
                text(pid, args[1])
            }
            "renameat2" => format!("{} -> {}", text(pid, args[1]), text(pid, args[3])),
            "rename" | "link" | "symlink" => format!("{} -> {}", text(pid, args[0]), text(pid, args[1])),
            "symlinkat" => text(pid, args[2]),
            "open" | "creat" | "unlink" | "mkdir" | "rmdir" | "chmod" | "execve" | "truncate" => text(pid, args[0]),
            name if name.starts_with("clone") || name.ends_with("fork") || name == "exit_group" || name == "kill" => {
                String::new()
            }
            _ => descriptor(pid, args[0]),
        }
    }
}

/// Whether the call that a process comes back from has failed, and was not merely interrupted.
pub fn has_failed(pid: Pid) -> bool {
    // ERESTARTSYS and its like (include/linux/errno.h), which the kernel shows to tracers only.
    let restarts = 512..=516;
    returned(pid).is_ok_and(|value| {
        (-4095..0).contains(&value) && value != -i64::from(libc::EINTR) && !restarts.contains(&-value)
    })
}

/// The call that a stopped process is about to make, or nothing if it changes nothing.
///
/// # Errors
/// The process is gone, or the machine is none that this knows.
pub fn of(pid: Pid) -> Result<Option<Call>> {
    let (number, args) = registers(pid)?;
    let Some((_, name, when)) = CALLS.iter().chain([&CLOSE]).find(|(known, _, _)| *known == number) else {
        bail!("A system call {number} that was not asked for");
    };
    let thread = libc::CLONE_THREAD as u64;
    let counts = match *when {
        Always => true,
        Opens(at) => makes_or_cuts(args[at]),
        OpensBy(at) => makes_or_cuts(word(pid, args[at])?),
        Writes => !descriptor(pid, args[0]).starts_with("anon_inode:"),
        Ioctl => IOCTLS.contains(&(args[1] & 0xffff_ffff)),
        Forks => args[0] & thread == 0,
        ForksBy => word(pid, args[0])? & thread == 0,
        Closes => writable(pid, args[0]),
        Fcntl => LOCKS.iter().any(|lock| i64::from(*lock) == args[1].cast_signed()),
    };
    if !counts {
        return Ok(None);
    }
    Ok(Some(Call { name, args }))
}

/// Whether flags for `open` make or cut a file.
fn makes_or_cuts(flags: u64) -> bool {
    creates_by(flags) || flags & libc::O_TRUNC as u64 != 0
}

fn creates_by(flags: u64) -> bool {
    let tmpfile = libc::O_TMPFILE as u64;
    flags & libc::O_CREAT as u64 != 0 || flags & tmpfile == tmpfile
}

/// Whether a call of `open`, by its name and arguments, makes a file.
///
/// # Errors
/// The flags cannot be read.
pub fn creates(pid: Pid, name: &str, args: [u64; 6]) -> Result<bool> {
    Ok(creates_by(match name {
        "open" => args[1],
        "openat" => args[2],
        _ => word(pid, args[2])?,
    }))
}

/// Whether a descriptor was opened for writing (proc(5), fdinfo).
fn writable(pid: Pid, number: u64) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number & 0xffff_ffff)).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags
        .and_then(|flags| i32::from_str_radix(flags, 8).ok())
        .is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// The number of the call that a process was stopped at, and its arguments.
///
/// # Errors
/// The process is gone, or the machine is none that this knows.
#[cfg(target_arch = "x86_64")]
pub fn registers(pid: Pid) -> Result<(i64, [u64; 6])> {
    let regs = nix::sys::ptrace::getregs(pid)?;
    Ok((regs.orig_rax.cast_signed(), [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]))
}

#[cfg(target_arch = "x86_64")]
fn returned(pid: Pid) -> Result<i64> {
    Ok(nix::sys::ptrace::getregs(pid)?.rax.cast_signed())
}

/// Makes it another call; the number -1 is none, which answers what [`answer`] says.
///
/// # Errors
/// Those of [`registers`].
#[cfg(target_arch = "x86_64")]
pub fn set(pid: Pid, number: i64, args: [u64; 6]) -> Result<()> {
    let mut regs = nix::sys::ptrace::getregs(pid)?;
    regs.orig_rax = number.cast_unsigned();
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    Ok(nix::sys::ptrace::setregs(pid, regs)?)
}

/// Sets what the call answers: at its exit, or at its entry where it is not made.
///
/// # Errors
/// Those of [`registers`].
#[cfg(target_arch = "x86_64")]
pub fn answer(pid: Pid, errno: Errno) -> Result<()> {
    let mut regs = nix::sys::ptrace::getregs(pid)?;
    regs.rax = (-i64::from(errno as i32)).cast_unsigned();
    Ok(nix::sys::ptrace::setregs(pid, regs)?)
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use anyhow::{Result, bail};
    use nix::errno::Errno;
    use nix::unistd::Pid;

    const WHY: &str = "The crash harness knows the registers of x86-64 only";

    pub fn registers(_: Pid) -> Result<(i64, [u64; 6])> {
        bail!(WHY)
    }

    pub fn set(_: Pid, _: i64, _: [u64; 6]) -> Result<()> {
        bail!(WHY)
    }

    pub fn answer(_: Pid, _: Errno) -> Result<()> {
        bail!(WHY)
    }

    pub fn returned(_: Pid) -> Result<i64> {
        bail!(WHY)
    }
}
#[cfg(not(target_arch = "x86_64"))]
use elsewhere::returned;
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::{answer, registers, set};

/// The first word of what an address of the process holds.
///
/// # Errors
/// There is no such address.
pub fn word(pid: Pid, address: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    let memory = File::open(format!("/proc/{pid}/mem")).context("Cannot read a process's memory")?;
    memory.read_exact_at(&mut bytes, address)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Text at an address, as far as it can be read; paths only serve people.
fn text(pid: Pid, address: u64) -> String {
    let mut bytes = [0; 256];
    let read = File::open(format!("/proc/{pid}/mem")).and_then(|memory| memory.read_at(&mut bytes, address));
    let bytes = &bytes[..read.unwrap_or(0)];
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn descriptor(pid: Pid, number: u64) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{}", number & 0xffff_ffff));
    link.map(|path| path.display().to_string()).unwrap_or_default()
}
