//! Faults in the place of kills: the N-th call that can fail so answers an error, or does half of its work.
//!
//! | fault | the call | what has to hold |
//! |---|---|---|
//! | `enospc`, `edquot`, `eio` | is not made and answers the error; `close` closes, and answers it | success with the right result, or one line that names object and cause, and everything as before |
//! | `eintr` | is not made and answers `EINTR` | the same; calls of our own are made again, and it succeeds |
//! | `short` | writes half of its bytes | the rest is written, and it succeeds |
//!
//! Only calls that the kernel can answer so are chosen (their manual pages, and POSIX): a full disk is no reason for
//! `unlink` to fail, and a pipe has no quota.

use std::fs;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::calls::{self, Call};

/// What a call is made to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Fault {
    /// No space left on device
    Enospc,
    /// Disk quota exceeded
    Edquot,
    /// Input/output error
    Eio,
    /// Interrupted system call
    Eintr,
    /// Half of the bytes are written
    Short,
}

/// What the tracer still has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing.
    Done,
    /// The call is made; at its exit it is to answer this.
    Afterwards(Errno),
}

/// Calls that need room, by their names.
const TAKES_ROOM: [&str; 22] = [
    "creat",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "splice",
    "ioctl",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mkdir",
    "mkdirat",
    "fsync",
    "fdatasync",
];
/// More of them.
const TAKES_ROOM_TOO: [&str; 8] =
    ["mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "sync_file_range", "syncfs", "close"];

/// Calls beyond those that reach the disk, and can find it broken.
const REACHES_DISK: [&str; 21] = [
    "truncate",
    "ftruncate",
    "unlink",
    "unlinkat",
    "rmdir",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "execve",
    "execveat",
    "open",
    "openat",
    "openat2",
];

/// Calls that wait, and that a signal ends.
const WAITS: [&str; 19] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "splice",
    "sendto",
    "fallocate",
    "truncate",
    "ftruncate",
    "fsync",
    "fdatasync",
    "flock",
];

/// Calls that write bytes from memory or from a file.
const WRITES: [&str; 9] =
    ["write", "writev", "pwrite64", "pwritev", "pwritev2", "copy_file_range", "sendfile", "splice", "sendto"];

impl Fault {
    /// What the call answers; a short write answers no error.
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::Enospc => Some(Errno::ENOSPC),
            Self::Edquot => Some(Errno::EDQUOT),
            Self::Eio => Some(Errno::EIO),
            Self::Eintr => Some(Errno::EINTR),
            Self::Short => None,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enospc => "ENOSPC",
            Self::Edquot => "EDQUOT",
            Self::Eio => "EIO",
            Self::Eintr => "EINTR",
            Self::Short => "short write",
        }
    }

    /// Whether the kernel could answer this call so.
    pub fn possible(self, pid: Pid, call: &Call) -> bool {
        let Ok((_, args)) = calls::registers(pid) else { return false };
        let name = call.name;
        let takes_room = || {
            TAKES_ROOM.contains(&name)
                || TAKES_ROOM_TOO.contains(&name)
                || (name.starts_with("open") && calls::creates(pid, name, args).unwrap_or(false))
        };
        match self {
            Self::Enospc | Self::Edquot => takes_room() && on_disk(pid, call, args[0]),
            Self::Eio => (takes_room() || REACHES_DISK.contains(&name)) && on_disk(pid, call, args[0]),
            Self::Eintr => {
                let lock =
                    [libc::F_SETLKW, libc::F_OFD_SETLKW].iter().any(|lock| i64::from(*lock) == args[1].cast_signed());
                WAITS.contains(&name) || (name == "fcntl" && lock)
            }
            Self::Short => WRITES.contains(&name) && half(pid, name, args).is_ok(),
        }
    }

    /// Does it to a process at the entry of the call.
    ///
    /// # Errors
    /// The process is gone, or the call is none that can fail so.
    pub fn inject(self, pid: Pid, call: &Call) -> Result<Way> {
        let (_, args) = calls::registers(pid)?;
        let Some(errno) = self.errno() else {
            let (number, args) = half(pid, call.name, args)?;
            calls::set(pid, number, args)?;
            return Ok(Way::Done);
        };
        // The descriptor is gone in any case (close(2)).
        if call.name == "close" {
            return Ok(Way::Afterwards(errno));
        }
        calls::set(pid, -1, args)?;
        calls::answer(pid, errno)?;
        Ok(Way::Done)
    }
}

/// Whether it is about a file on a disk, and not about a pipe, a socket or what the kernel makes up.
fn on_disk(pid: Pid, call: &Call, first: u64) -> bool {
    let made_up = ["/proc/", "/dev/", "/sys/", "/memfd:"];
    let about = call.about(pid);
    if made_up.iter().any(|place| about.starts_with(place)) {
        return false;
    }
    if !call.by_descriptor() {
        return true;
    }
    // Of a copy the descriptor that is written is the third argument, which sendfile has first.
    let number = match call.name {
        "copy_file_range" | "splice" => calls::registers(pid).map_or(first, |(_, args)| args[2]),
        _ => first,
    };
    let about = fs::metadata(format!("/proc/{pid}/fd/{}", number & 0xffff_ffff));
    about.is_ok_and(|about| about.is_file() || about.is_dir())
}

/// The call with half of its bytes.
fn half(pid: Pid, name: &str, mut args: [u64; 6]) -> Result<(i64, [u64; 6])> {
    let (number, length) = match name {
        "write" => (libc::SYS_write, 2),
        "pwrite64" => (libc::SYS_pwrite64, 2),
        "sendto" => (libc::SYS_sendto, 2),
        "copy_file_range" => (libc::SYS_copy_file_range, 4),
        "sendfile" => (libc::SYS_sendfile, 3),
        "splice" => (libc::SYS_splice, 4),
        "writev" | "pwritev" | "pwritev2" => return half_of_many(pid, name, args),
        _ => bail!("{name} writes nothing"),
    };
    if args[length] < 2 {
        bail!("One byte has no half");
    }
    args[length] /= 2;
    Ok((number, args))
}

/// Of several pieces, half of the first that holds anything is written; by a call for one piece.
fn half_of_many(pid: Pid, name: &str, mut args: [u64; 6]) -> Result<(i64, [u64; 6])> {
    let mut pieces = Vec::new();
    for piece in 0..args[2].min(1024) {
        let at = args[1] + 16 * piece;
        pieces.push((calls::word(pid, at)?, calls::word(pid, at + 8)?));
    }
    let whole: u64 = pieces.iter().map(|(_, length)| length).sum();
    let Some((start, length)) = pieces.into_iter().find(|(_, length)| *length > 0) else { bail!("Nothing is written") };
    if whole < 2 {
        bail!("One byte has no half");
    }
    (args[1], args[2]) = (start, (length / 2).max(1));
    let here = name == "writev" || (name == "pwritev2" && args[3] == u64::MAX);
    Ok((if here { libc::SYS_write } else { libc::SYS_pwrite64 }, args))
}
