//! The file operations of [`super::interpret`], one function each. What they promise stands in [`super::op::Op`].

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sha2::Sha256;

use super::control::Control;
use super::op::{FileKind, Node, READ_LIMIT, Space, Sparse, Stat};
use super::staging;
use crate::exec::copy;

/// Nothing there, instead of an error that says so. A parent that is no directory has nothing in it either.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_errno(error: &io::Error, numbers: &[Errno]) -> bool {
    numbers.iter().any(|number| error.raw_os_error() == Some(number.raw_os_error()))
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// `fsync(2)` of a file or directory.
pub fn sync(path: &Path) -> io::Result<()> {
    // Not blocking: a pipe would wait for its writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all()
}

/// Syncs the directories that hold these paths, each once.
fn sync_dirs(paths: &[&Path]) -> io::Result<()> {
    let mut dirs: Vec<&Path> = paths.iter().map(|path| dir_of(path)).collect();
    dirs.dedup();
    dirs.into_iter().try_for_each(sync)
}

pub fn stat(path: &Path, follow: bool) -> io::Result<Option<Stat>> {
    let data = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    Ok(absent(data)?.map(|data| Stat {
        kind: FileKind::of_mode(data.mode()),
        size: data.size(),
        mode: data.mode() & 0o7777,
        dev: data.dev(),
        ino: data.ino(),
    }))
}

pub fn read_link(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read_link(path) {
        Err(error) if is_errno(&error, &[Errno::INVAL]) => Ok(None),
        result => Ok(absent(result)?.map(|target| target.into_os_string().into_vec())),
    }
}

pub fn list(path: &Path) -> io::Result<Option<Vec<OsString>>> {
    if absent(fs::metadata(path))?.is_none() {
        return Ok(None);
    }
    let entries = match fs::read_dir(path) {
        // Somebody else removed it just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>().map(Some)
}

pub fn read(path: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; usize::try_from(len.min(READ_LIMIT)).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

pub fn head(path: &Path, len: u64) -> io::Result<Option<Vec<u8>>> {
    // It has no first bytes, not even none: head(1) says so as well.
    if path.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    absent(read(path, 0, len))
}

/// See [`super::op::Op::Tree`]. By descriptors: a path of its own for each of many thousands would cost more than the rest.
pub fn tree(top: &Path, depth: u32, control: &Control) -> io::Result<Option<Vec<Node>>> {
    let Some(stat) = absent(rustix::fs::stat(top).map_err(Into::into))? else { return Ok(None) };
    let mut nodes = vec![node(PathBuf::new(), &stat, None)];
    if nodes[0].kind == FileKind::Dir && depth > 0 {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some(fd) = absent(rustix::fs::open(top, flags, Mode::empty()).map_err(Into::into))? else {
            return Ok(None);
        };
        below(&fd, Path::new(""), depth, control, &mut nodes)?;
    }
    nodes.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Ok(Some(nodes))
}

fn below(dir: &OwnedFd, at: &Path, depth: u32, control: &Control, nodes: &mut Vec<Node>) -> io::Result<()> {
    control.check().map_err(io::Error::other)?;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let path = at.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let link = match FileKind::of_mode(stat.st_mode) {
            FileKind::Link => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(text) => Some(PathBuf::from(OsString::from_vec(text.into_bytes()))),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
            _ => None,
        };
        nodes.push(node(path.clone(), &stat, link));
        if depth > 1 && FileKind::of_mode(stat.st_mode) == FileKind::Dir {
            match open_dir(dir.as_fd(), name, &stat) {
                Ok(inner) => below(&inner, &path, depth - 1, control, nodes)?,
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn node(path: PathBuf, stat: &rustix::fs::Stat, link: Option<PathBuf>) -> Node {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Node {
        path,
        kind: FileKind::of_mode(stat.st_mode),
        size: count(stat.st_size),
        allocated: count(stat.st_blocks).saturating_mul(512),
        link,
    }
}

pub fn space(path: &Path) -> io::Result<Space> {
    let data = rustix::fs::statvfs(path)?;
    // Multiplied in 128 bits: a file system that lies about its blocks must not make us panic.
    let mib = |blocks: u64| {
        let bytes = u128::from(blocks) * u128::from(data.f_frsize.max(1));
        u64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u64::MAX)
    };
    Ok(Space {
        total_mib: mib(data.f_blocks),
        used_mib: mib(data.f_blocks.saturating_sub(data.f_bfree)),
        free_mib: mib(data.f_bavail),
    })
}

pub fn md5(path: &Path, control: &Control) -> io::Result<Vec<u8>> {
    digest(path, Md5::new(), control)
}

pub fn sha256(path: &Path, control: &Control) -> io::Result<Vec<u8>> {
    digest(path, Sha256::new(), control)
}

fn digest<D: Digest>(path: &Path, mut digest: D, control: &Control) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    copy::read_all(&file, control, &mut |block| digest.update(block))?;
    Ok(digest.finalize().iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect())
}

/// A file with several names is counted once, as `du` does.
pub fn tree_size(path: &Path, control: &Control) -> io::Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut total: u64 = 0;
    walk(path, control, &mut |visit| {
        let data = &visit.stat;
        if visit.is_dir || data.st_nlink < 2 || seen.insert((data.st_dev, data.st_ino)) {
            total = total.saturating_add(u64::try_from(data.st_size).unwrap_or(0));
        }
        Ok(())
    })?;
    Ok(total)
}

pub fn remove(path: &Path, tree: bool, must_exist: bool, control: &Control) -> io::Result<()> {
    if !must_exist && absent(fs::symlink_metadata(path))?.is_none() {
        return Ok(());
    }
    if !tree {
        return fs::remove_file(path);
    }
    walk(path, control, &mut |visit| {
        let flags = if visit.is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(visit.dir, visit.name, flags) {
            // Somebody else was quicker.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// What [`walk`] came by: a directory after all that is in it, anything else as it is.
struct Visit<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CStr,
    stat: rustix::fs::Stat,
    is_dir: bool,
}

/// Walks a tree, by descriptors and never through a link, with one descriptor however deep it is.
///
/// Somebody who exchanges a directory for a link meanwhile is not followed, and one who moves a directory elsewhere is
/// noticed on the way up, so that a removal cannot be led out of its tree.
fn walk(top: &Path, control: &Control, visit: &mut dyn FnMut(Visit<'_>) -> io::Result<()>) -> io::Result<()> {
    let name = CString::new(top.as_os_str().as_bytes())?;
    let stat = rustix::fs::statat(CWD, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileKind::of_mode(stat.st_mode) != FileKind::Dir {
        return visit(Visit { dir: CWD, name: &name, stat, is_dir: false });
    }
    let mut current = open_dir(CWD, &name, &stat)?;
    // From the top down to `current`: name, identity, and the directories in it that are still to be walked.
    let mut levels = vec![(name, stat, enter(current.as_fd(), control, visit)?)];
    while let Some((_, _, todo)) = levels.last_mut() {
        if let Some((name, stat)) = todo.pop() {
            current = match open_dir(current.as_fd(), &name, &stat) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            let inside = enter(current.as_fd(), control, visit)?;
            levels.push((name, stat, inside));
            continue;
        }
        let Some((name, stat, _)) = levels.pop() else { break };
        match levels.last() {
            Some((_, above, _)) => {
                current = open_dir(current.as_fd(), c"..", above)?;
                visit(Visit { dir: current.as_fd(), name: &name, stat, is_dir: true })?;
            }
            None => visit(Visit { dir: CWD, name: &name, stat, is_dir: true })?,
        }
    }
    Ok(())
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr, known: &rustix::fs::Stat) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if (stat.st_dev, stat.st_ino) != (known.st_dev, known.st_ino) {
        return Err(io::Error::other("The tree was changed meanwhile"));
    }
    Ok(fd)
}

/// Visits all that is no directory, and returns the directories.
fn enter(
    dir: BorrowedFd<'_>,
    control: &Control,
    visit: &mut dyn FnMut(Visit<'_>) -> io::Result<()>,
) -> io::Result<Vec<(CString, rustix::fs::Stat)>> {
    let mut dirs = Vec::new();
    // All names before the first visit, which may remove one.
    let entries: Vec<_> = Dir::read_from(dir)?.collect::<Result<_, _>>()?;
    for entry in entries {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        control.check().map_err(io::Error::other)?;
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Somebody else removed it.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if FileKind::of_mode(stat.st_mode) == FileKind::Dir {
            dirs.push((name.to_owned(), stat));
        } else {
            visit(Visit { dir, name, stat, is_dir: false })?;
        }
    }
    Ok(dirs)
}

/// Fails with [`io::ErrorKind::NotFound`] where the directory is gone.
pub fn claim(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path).map(drop)
}

/// Makes a directory that nobody else looks into or renames in. One that is there stays as it is.
pub fn private_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

pub fn remove_dir_if_empty(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if is_errno(&error, &[Errno::NOENT, Errno::NOTEMPTY, Errno::EXIST]) => Ok(()),
        result => result,
    }
}

/// A name beside `path` that nobody uses. It begins with a dot, so that no listing of images shows it; beside a staging
/// file it is one of the same owner, so that it goes with the others when the owner dies.
fn temp_name(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(temp) = staging::beside(path, count) {
        return temp;
    }
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    dir_of(path).join(format!(".onestore.{:x}-{count:x}-{time:x}", std::process::id()))
}

/// Makes something under a temporary name and renames it to `path`; a failure leaves nothing.
///
/// The name is one of a staging directory, if `path` is in one, or if the script has claimed one on the same file system:
/// nobody else would know what to do with it when we are killed.
fn by_rename(path: &Path, claimed: Option<&Path>, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let is_staged = path.file_name().is_some_and(|name| staging::owner_of(name).is_some());
    let device = |path: &Path| fs::metadata(dir_of(path)).ok().map(|data| data.dev());
    let near = claimed.filter(|claim| !is_staged && device(claim).is_some() && device(claim) == device(path));
    let temp = temp_name(near.unwrap_or(path));
    let result = make(&temp).and_then(|()| fs::rename(&temp, path));
    if result.is_err() {
        // Its own failure would say nothing new.
        let _ = fs::remove_file(&temp);
    }
    result?;
    sync_dirs(&[path])
}

pub fn symlink(target: &Path, link: &Path, claimed: Option<&Path>) -> io::Result<()> {
    by_rename(link, claimed, |temp| std::os::unix::fs::symlink(target, temp))
}

pub fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    sync_dirs(&[to])
}

pub fn write(path: &Path, content: &[u8], mode: u32, claimed: Option<&Path>) -> io::Result<()> {
    by_rename(path, claimed, |temp| {
        // Nobody else's eyes before the mode is set: the content may be secret.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp)?;
        io::Write::write_all(&mut file, content)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        file.sync_all()
    })
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let (old, new) = (fs::symlink_metadata(from)?, absent(fs::symlink_metadata(to))?);
    if new.as_ref().is_some_and(|new| (new.dev(), new.ino()) == (old.dev(), old.ino())) {
        // `rename(2)` does nothing with two names of one file and says that all is well; `mv` refuses, and so do we.
        return Err(io::Error::other("They are the same file"));
    }
    let replaces = new.is_some();
    fs::rename(from, to)?;
    sync_dirs(&[to, from]).inspect_err(|_| {
        // Who is told that it failed takes it for not done, and what the old name should have held would stay away.
        if !replaces {
            let _ = fs::rename(to, from);
        }
    })
}

/// See [`super::op::Op::Replace`].
pub fn replace(from: &Path, to: &Path, kept: &Path) -> io::Result<()> {
    if absent(fs::symlink_metadata(kept))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    let exchange = || rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE).map_err(io::Error::from);
    // What fails on the way back says nothing new.
    match exchange() {
        Ok(()) => fs::rename(from, kept).inspect_err(|_| drop(exchange()))?,
        // NFS has no such rename.
        Err(error) if is_errno(&error, &[Errno::INVAL, Errno::NOSYS]) => {
            fs::rename(to, kept)?;
            fs::rename(from, to).inspect_err(|_| drop(fs::rename(kept, to)))?;
        }
        Err(error) => return Err(error),
    }
    sync_dirs(&[to, from, kept]).inspect_err(|_| drop(fs::rename(to, from).and_then(|()| fs::rename(kept, to))))
}

/// See [`super::op::Op::PutBack`].
pub fn put_back(from: &Path, to: &Path) -> io::Result<()> {
    if absent(fs::symlink_metadata(from))?.is_none() {
        return Ok(());
    }
    match rename_to_new(from, to) {
        Err(error) if is_errno(&error, &[Errno::EXIST]) => Ok(()),
        result => result.and_then(|()| sync_dirs(&[to, from])),
    }
}

pub fn move_file(from: &Path, to: &Path, claimed: Option<&Path>, control: &Control) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        result => return result,
    }
    let data = fs::symlink_metadata(from)?;
    if data.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    by_rename(to, claimed, |temp| {
        if data.is_symlink() {
            return std::os::unix::fs::symlink(fs::read_link(from)?, temp);
        }
        let source = open_regular(from)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(temp)?;
        copy::copy_file(&source, &file, Sparse::Holes, control)?;
        // Only root can give files away; `mv` does not mind either. Before the mode, which this would reduce.
        let _ = rustix::fs::fchown(&file, Some(Uid::from_raw(data.uid())), Some(Gid::from_raw(data.gid())));
        file.set_permissions(data.permissions())?;
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(data.atime(), data.atime_nsec()),
            last_modification: time(data.mtime(), data.mtime_nsec()),
        };
        rustix::fs::futimens(&file, &times)?;
        file.sync_all()
    })?;
    fs::remove_file(from)?;
    sync_dirs(&[from])
}

/// Opens a regular file that is no link.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "It is not a regular file"));
    }
    Ok(file)
}

pub fn copy(from: &Path, to: &Path, sparse: Sparse, control: &Control) -> io::Result<()> {
    let source = File::open(from)?;
    let data = source.metadata()?;
    if data.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    let there = absent(fs::metadata(to))?;
    let same = |there: &fs::Metadata| {
        let both_blocks = there.file_type().is_block_device() && data.file_type().is_block_device();
        (there.dev(), there.ino()) == (data.dev(), data.ino()) || (both_blocks && there.rdev() == data.rdev())
    };
    if there.as_ref().is_some_and(same) {
        return Err(io::Error::other("They are the same file"));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = match there {
        Some(_) => options.truncate(true).open(to)?,
        // A link to nowhere is not written through: `create_new` refuses it.
        None => options.create_new(true).mode(data.mode() & 0o777).open(to)?,
    };
    copy::copy_file(&source, &file, sparse, control).map(drop)
}

pub fn punch_holes(path: &Path, control: &Control) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match copy::punch_zeroes(&file, control) {
        Err(error) if is_errno(&error, &[Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL]) => Ok(()),
        result => result.map(|_| ()),
    }
}

pub fn receive(path: &Path, reader: &mut dyn Read, sparse: Sparse, control: &Control) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    copy::receive(reader, &file, sparse, control)
}

/// The same from an open file, which may share its blocks.
pub fn receive_file(path: &Path, source: &File, sparse: Sparse, control: &Control) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    copy::copy_file(source, &file, sparse, control).map(|copied| copied.size)
}

pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    sync(from)?;
    if fs::symlink_metadata(from)?.is_dir() {
        // As ln(1) has it; the rename that stands in for a link must not take one.
        return Err(io::Error::other("hard link not allowed for directory"));
    }
    match fs::hard_link(from, to) {
        Err(error) if is_errno(&error, &[Errno::PERM, Errno::OPNOTSUPP, Errno::MLINK]) => rename_to_new(from, to),
        result => result,
    }
}

/// Renames without replacing.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system has no such rename: the nearest that it has.
        Err(Errno::INVAL | Errno::NOSYS) => match absent(fs::symlink_metadata(to))? {
            Some(_) => Err(Errno::EXIST.into()),
            None => fs::rename(from, to),
        },
        result => Ok(result?),
    }
}

/// Removes what lies at `path` in a staging directory, and `to`, its final name, if that is the same file.
///
/// The final name goes first and its directory is synced: while the staging name is there, a later sweep finds both.
pub fn sweep(path: &Path, to: &Path, control: &Control) {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let Some(inode) = identity(path) else { return };
    let published = identity(to) == Some(inode);
    if !published || fs::remove_file(to).and_then(|()| sync_dirs(&[to])).is_ok() {
        let _ = remove(path, true, false, control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::staging::Owner;

    /// Where an unfinished file lies that is to be `name`, after a claim in `base`.
    fn unfinished(dir: &Path, base: &str, name: &str) -> PathBuf {
        let claim = staging::claim_path(&dir.join(base), &Owner::me().expect("proc"));
        fs::create_dir_all(dir_of(&claim)).expect("makes");
        let seen = std::cell::RefCell::new(PathBuf::new());
        let make = |temp: &Path| {
            temp.clone_into(&mut seen.borrow_mut());
            fs::write(temp, "x")
        };
        by_rename(&dir.join(name), Some(&claim), make).expect("renames");
        assert_eq!(fs::read(dir.join(name)).expect("is there"), b"x");
        seen.into_inner()
    }

    #[test]
    fn what_a_kill_would_leave_lies_where_it_is_swept() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["103/7/disk.0", "103/.monitor"] {
            let temp = unfinished(dir.path(), "103/7", name);
            assert_eq!(temp.parent(), Some(dir.path().join("103/7/.onestore").as_path()));
            let owner = staging::owner_of(temp.file_name().expect("a name"));
            assert_eq!(owner, Some(Owner::me().expect("proc")));
        }
        // One on another file system could not be renamed.
        let shm = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        if fs::metadata(shm.path()).expect("is there").dev() != fs::metadata(dir.path()).expect("is there").dev() {
            let elsewhere = shm.path().join("ds").display().to_string();
            assert_eq!(unfinished(dir.path(), &elsewhere, "a").parent(), Some(dir.path()));
        }
    }
}
