//! Makes files, directories and links below one directory and nowhere else.
//!
//! Every name is walked from the root by descriptors, never through a link (`openat(2)` with `O_NOFOLLOW`). A link may
//! only say `..` at its beginning and not more often than its directory is deep: as the directories on the way are real,
//! no chain of such links leads outside.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, openat, statat, symlinkat, syncfs, unlinkat};
use rustix::io::Errno;

use super::{Limits, UnpackError};
use crate::exec::control::Control;

/// Longest name of a member in bytes, as of paths (`PATH_MAX`).
const LONGEST: usize = 4096;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory and what may still come into it.
pub(super) struct Tree<'a> {
    root: OwnedFd,
    limits: Limits,
    bytes: u64,
    members: u64,
    pub(super) control: &'a Control,
}

/// A name that stays inside: the directories on the way, and the last part.
struct Name<'n> {
    way: Vec<&'n OsStr>,
    last: &'n OsStr,
}

pub(super) fn refuse(member: &[u8], why: impl Into<String>) -> UnpackError {
    UnpackError::Refused { member: member.to_vec(), why: why.into() }
}

impl<'a> Tree<'a> {
    pub(super) fn open(dir: &Path, limits: Limits, control: &'a Control) -> io::Result<Self> {
        let root = openat(CWD, dir, DIRECTORY, Mode::empty())?;
        Ok(Self { root, limits, bytes: 0, members: 0, control })
    }

    /// Makes a directory, or takes the one that is there.
    pub(super) fn dir(&mut self, member: &[u8], mode: u32) -> Result<(), UnpackError> {
        self.count(member)?;
        let Some(name) = parts(member)? else { return Ok(()) };
        let parent = self.walk(member, &name.way)?;
        // We must be able to go on in it.
        match mkdirat(&parent, name.last, permissions(mode) | Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => drop_error(openat(&parent, name.last, DIRECTORY, Mode::empty()), member),
            Err(errno) => Err(failed(member, errno)),
        }
    }

    /// Makes a file that is announced to have `len` bytes; `write` fills it.
    pub(super) fn file(
        &mut self,
        member: &[u8],
        mode: u32,
        len: u64,
        write: impl FnOnce(&File, &Control) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        self.count(member)?;
        self.bytes = self.bytes.saturating_add(len);
        if self.bytes > self.limits.bytes {
            let why = format!("brings the archive to {} bytes, {} are allowed", self.bytes, self.limits.bytes);
            return Err(refuse(member, why));
        }
        let (parent, name) = self.place(member)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(&parent, name, flags, permissions(mode) | Mode::WUSR).map_err(|errno| failed(member, errno))?;
        write(&File::from(file), self.control)
    }

    /// Makes a symbolic link that leads nowhere outside.
    pub(super) fn symlink(&mut self, member: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        self.count(member)?;
        let depth = parts(member)?.map_or(0, |name| name.way.len());
        stays_inside(target, depth).map_err(|why| {
            refuse(member, format!("is a link to '{}', {why}", String::from_utf8_lossy(target).escape_debug()))
        })?;
        let (parent, name) = self.place(member)?;
        symlinkat(OsStr::from_bytes(target), &parent, name).map_err(|errno| failed(member, errno))
    }

    /// Gives a file that is there already a second name.
    pub(super) fn hard_link(&mut self, member: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        self.count(member)?;
        let none = || {
            let target = String::from_utf8_lossy(target).escape_debug().to_string();
            refuse(member, format!("is a hard link to '{target}', which is no file unpacked before"))
        };
        let old = parts(target).ok().flatten().ok_or_else(none)?;
        let from = self.open_way(&old.way).map_err(|_| none())?;
        // A link that got another depth could lead outside.
        let there = statat(&from, old.last, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| none())?;
        if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
            return Err(none());
        }
        if parts(member)?.is_some_and(|new| (&new.way, new.last) == (&old.way, old.last)) {
            return Ok(());
        }
        let (parent, name) = self.place(member)?;
        linkat(&from, old.last, &parent, name, AtFlags::empty()).map_err(|errno| failed(member, errno))
    }

    /// Writes everything to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        // One call for any number of files.
        Ok(syncfs(&self.root)?)
    }

    fn count(&mut self, member: &[u8]) -> Result<(), UnpackError> {
        if let Err(stopped) = self.control.check() {
            return Err(UnpackError::Write { member: member.to_vec(), source: io::Error::other(stopped) });
        }
        self.members += 1;
        if self.members > self.limits.members {
            return Err(refuse(
                member,
                format!("is one more than the {} members that are allowed", self.limits.members),
            ));
        }
        Ok(())
    }

    /// The directory of a member, made where it is missing, and the member's name in it, which is free.
    fn place<'m>(&mut self, member: &'m [u8]) -> Result<(OwnedFd, &'m OsStr), UnpackError> {
        let name = parts(member)?.ok_or_else(|| refuse(member, "has no name"))?;
        let parent = self.walk(member, &name.way)?;
        // As tar does: the last one of a name counts. A directory is never replaced.
        match unlinkat(&parent, name.last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((parent, name.last)),
            Err(Errno::ISDIR | Errno::PERM) => Err(refuse(member, "is a directory as well")),
            Err(errno) => Err(failed(member, errno)),
        }
    }

    /// Opens the directories on the way, and makes those that are missing.
    fn walk(&mut self, member: &[u8], way: &[&OsStr]) -> Result<OwnedFd, UnpackError> {
        let mut at = self.again().map_err(|errno| failed(member, errno))?;
        for part in way {
            at = match openat(&at, *part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    self.count(member)?;
                    mkdirat(&at, *part, Mode::from_raw_mode(0o777)).map_err(|errno| failed(member, errno))?;
                    openat(&at, *part, DIRECTORY, Mode::empty())
                }
                other => other,
            }
            .map_err(|errno| through(member, errno))?;
        }
        Ok(at)
    }

    /// Opens the directories on the way, which must be there.
    fn open_way(&self, way: &[&OsStr]) -> Result<OwnedFd, Errno> {
        way.iter().try_fold(self.again()?, |at, part| openat(&at, *part, DIRECTORY, Mode::empty()))
    }

    fn again(&self) -> Result<OwnedFd, Errno> {
        openat(self.root.as_fd(), ".", DIRECTORY, Mode::empty())
    }
}

fn failed(member: &[u8], errno: Errno) -> UnpackError {
    UnpackError::Write { member: member.to_vec(), source: errno.into() }
}

/// A part of the way that is no directory is a link or a file.
fn through(member: &[u8], errno: Errno) -> UnpackError {
    match errno {
        Errno::LOOP | Errno::NOTDIR | Errno::MLINK => refuse(member, "leads through a link or file"),
        errno => failed(member, errno),
    }
}

fn drop_error<T>(result: Result<T, Errno>, member: &[u8]) -> Result<(), UnpackError> {
    result.map(drop).map_err(|errno| through(member, errno))
}

/// Read, write and execute; never set-uid, set-gid or sticky. The umask takes its part.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

/// The parts of a member's name; nothing for the directory itself (`./`).
fn parts(member: &[u8]) -> Result<Option<Name<'_>>, UnpackError> {
    if member.len() > LONGEST || member.contains(&0) {
        return Err(refuse(member.get(..64).unwrap_or(member), "has a name that no file can have"));
    }
    if member.first() == Some(&b'/') {
        return Err(refuse(member, "has an absolute name"));
    }
    let mut way: Vec<&OsStr> = Vec::new();
    for part in member.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse(member, "leads outside by '..'")),
            part => way.push(OsStr::from_bytes(part)),
        }
    }
    Ok(way.pop().map(|last| Name { way, last }))
}

/// Whether a link in a directory so deep leads nowhere outside.
fn stays_inside(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() || target.len() >= LONGEST || target.contains(&0) {
        return Err("which no link can have");
    }
    if target.first() == Some(&b'/') {
        return Err("which is absolute");
    }
    let mut up = 0;
    let mut down = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            // What is gone into may be a link itself, so that there is no way back to count.
            b".." if down => return Err("which goes back on its way"),
            b".." => up += 1,
            _ => down = true,
        }
    }
    if up > depth { Err("which leads outside") } else { Ok(()) }
}
