//! Directories that a script must not leave: paths below one are reached from the open directory, and never through
//! anything that leads out of it.
//!
//! A datastore may lie on storage that others write to, too: an NFS server, a hypervisor that was broken into. Comparing
//! the text of a path says nothing of what a link in it leads to at the moment of the operation, and a look beforehand can
//! be overtaken. So [`Fences::reach`] opens what holds the path (`openat2(2)`, `RESOLVE_BENEATH`) and answers a path that
//! goes on from that descriptor. The directory itself is the operator's: links on the way to it are followed.
//!
//! Links within a fence are followed if they stay within it, absolute ones too (`0 -> <image>`, contract 02 §1).
//!
//! [`super::host::fenced`] puts the fences around all that is asked of a host. The sh form looks immediately before each operation
//! (`os_in`, [`super::posix`]): it cannot hold a directory open. Names that are handed to programs ([`Op::Run`]) are theirs
//! to open.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::op::{FileKind, Op, Role};

/// Links that one path may lead through: as the kernel's own limit.
const MOST_LINKS: u32 = 40;

/// The fences of one script, opened when they are first needed.
pub struct Fences<'a> {
    roots: &'a [PathBuf],
}

/// A path that goes on from an open directory, which is held as long as this lives.
pub struct Reached {
    /// The path to use: `/proc/self/fd/N/name`, or the one that was asked for where no fence has it.
    pub path: PathBuf,
    _held: Option<OwnedFd>,
}

impl<'a> Fences<'a> {
    /// The directories that are not left.
    #[must_use]
    pub fn new(roots: &'a [PathBuf]) -> Self {
        Self { roots }
    }

    /// The fence that `path` lies below, and the way from there.
    fn around<'p>(&self, path: &'p Path) -> Option<(&'a Path, &'p Path)> {
        self.roots.iter().find_map(|root| {
            let rest = path.strip_prefix(root).ok()?;
            (!rest.as_os_str().is_empty()).then_some((root.as_path(), rest))
        })
    }

    /// A path by which `role` can be done without leaving the fence.
    ///
    /// # Errors
    /// What the system answers where something on the way is missing; [`io::ErrorKind::Other`] where it leads out.
    pub fn reach(&self, path: &Path, role: Role) -> io::Result<Reached> {
        let Some((root, rest)) = self.around(path) else { return Ok(Reached { path: path.to_owned(), _held: None }) };
        let top = open_root(root)?;
        let (dir, name) = match (role, rest.parent(), rest.file_name()) {
            (Role::Object, ..) => {
                let held = object(root, &top, rest)?;
                return Ok(Reached { path: by_descriptor(&held), _held: Some(held) });
            }
            (Role::Name, Some(dir), Some(name)) => (dir, name),
            _ => return Err(leaves(root)),
        };
        let held = if dir.as_os_str().is_empty() { top } else { object(root, &top, dir)? };
        Ok(Reached { path: by_descriptor(&held).join(name), _held: Some(held) })
    }

    /// Makes the directory `path` and its missing parents, as `mkdir -p`.
    ///
    /// # Errors
    /// As of [`Fences::reach`].
    pub fn make_dirs(&self, path: &Path) -> io::Result<()> {
        let Some((root, rest)) = self.around(path) else { return fs::create_dir_all(path) };
        fs::create_dir_all(root)?;
        let top = open_root(root)?;
        let mut so_far = PathBuf::new();
        for part in rest.components() {
            let above = if so_far.as_os_str().is_empty() { top.try_clone()? } else { object(root, &top, &so_far)? };
            so_far.push(part);
            match rustix::fs::mkdirat(&above, Path::new(part.as_os_str()), Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let made = object(root, &top, &so_far)?;
        if fs::metadata(by_descriptor(&made))?.is_dir() { Ok(()) } else { Err(Errno::EXIST.into()) }
    }
}

fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn leaves(root: &Path) -> io::Error {
    io::Error::other(format!("It leads out of {}", root.display()))
}

/// Opens, without opening for reading, what `rest` leads to from the open `root`.
fn object(root: &Path, top: &OwnedFd, rest: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(top, rest, flags, Mode::empty(), resolve) {
        Ok(held) => Ok(held),
        // Links with a whole path as their text; a rename at the same moment; kernels before 5.6, and sandboxes.
        Err(Errno::XDEV | Errno::AGAIN | Errno::NOSYS | Errno::PERM) => walk(root, top, rest),
        Err(error) => Err(error.into()),
    }
}

/// The same step by step. `..` is walked by what was come through, never by the directory tree's own word.
fn walk(root: &Path, top: &OwnedFd, rest: &Path) -> io::Result<OwnedFd> {
    let mut todo: Vec<PathBuf> = parts(rest, root)?;
    let mut at: Vec<OwnedFd> = vec![top.try_clone()?];
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == Path::new("..") {
            at.pop();
            if at.is_empty() {
                return Err(leaves(root));
            }
            continue;
        }
        let here = at.last().ok_or_else(|| leaves(root))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(here, &part, flags, Mode::empty())?;
        if FileKind::of_mode(rustix::fs::fstat(&next)?.st_mode) == FileKind::Link {
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            // Of the link that is held, whatever lies there by now.
            let text = rustix::fs::readlinkat(&next, c"", Vec::new())?;
            let text = Path::new(OsStr::from_bytes(text.as_bytes()));
            let inside = if text.is_absolute() {
                at.truncate(1);
                below(root, top, text).ok_or_else(|| leaves(root))?
            } else {
                text.to_owned()
            };
            todo.extend(parts(&inside, root)?);
            continue;
        }
        at.push(next);
    }
    at.pop().ok_or_else(|| leaves(root))
}

/// The way from the fence to where a whole path leads, which may name the fence by another of its names: datastores are
/// moved, and a link is left. Only a text comes of it, that is walked from the open directory again.
fn below(root: &Path, top: &OwnedFd, text: &Path) -> Option<PathBuf> {
    if let Ok(rest) = text.strip_prefix(root) {
        return Some(rest.to_owned());
    }
    let real = fs::read_link(by_descriptor(top)).ok()?;
    let rest = |path: &Path| path.strip_prefix(&real).ok().map(Path::to_owned);
    rest(text).or_else(|| rest(&fs::canonicalize(text).ok()?))
}

/// The components, the last one first.
fn parts(path: &Path, root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir | Component::Normal(_) => found.push(PathBuf::from(part.as_os_str())),
            Component::RootDir | Component::Prefix(_) => return Err(leaves(root)),
        }
    }
    found.reverse();
    Ok(found)
}

/// The same operation with paths that go on from open directories; the directories are held by what comes with it.
///
/// # Errors
/// As of [`Fences::reach`].
pub fn reach_all(op: &Op, fences: &Fences<'_>) -> io::Result<(Op, Vec<Reached>)> {
    let mut op = op.clone();
    let mut held = Vec::new();
    for (path, role) in op.places_mut() {
        let reached = fences.reach(path, role)?;
        path.clone_from(&reached.path);
        held.push(reached);
    }
    Ok((op, held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (base, out) = (top.join("ds"), top.join("out"));
        fs::create_dir_all(base.join("a/b")).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(base.join("a/b/file"), "in").unwrap();
        fs::write(out.join("file"), "out").unwrap();
        symlink("a/b", base.join("inner")).unwrap();
        symlink(base.join("a"), base.join("whole")).unwrap();
        symlink("b/file", base.join("a/near")).unwrap();
        symlink("../../ds/a", base.join("a/round")).unwrap();
        symlink(&out, base.join("away")).unwrap();
        symlink("../out", base.join("up")).unwrap();
        symlink("../../../out/file", base.join("a/b/far")).unwrap();
        symlink("/proc/self/root", base.join("magic")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        (dir, base, out)
    }

    fn read(base: &Path, name: &str) -> Result<String, String> {
        let roots = [base.to_owned()];
        let reached = Fences::new(&roots).reach(&base.join(name), Role::Object);
        let reached = reached.map_err(|error| error.to_string())?;
        fs::read_to_string(&reached.path).map_err(|error| error.to_string())
    }

    #[test]
    fn what_stays_within_is_reached_and_nothing_else() {
        let (_dir, base, _out) = tree();
        for name in ["a/b/file", "inner/file", "whole/b/file", "a/near", "whole/near"] {
            assert_eq!(read(&base, name).as_deref(), Ok("in"), "{name}");
        }
        for name in ["away/file", "up/file", "a/b/far", "a/round/b/file", "magic/etc/passwd", "loop"] {
            assert!(read(&base, name).is_err(), "{name}");
        }
        assert!(read(&base, "away/file").unwrap_err().contains("It leads out of "));
        assert!(read(&base, "a/c/file").unwrap_err().contains("No such file"));
    }

    #[test]
    fn a_fence_has_more_than_one_name() {
        let (_dir, base, _out) = tree();
        let alias = base.with_file_name("alias");
        symlink(&base, &alias).unwrap();
        symlink(alias.join("a/b/file"), base.join("by-alias")).unwrap();
        for name in ["by-alias", "whole/b/file"] {
            assert_eq!(read(&base, name).as_deref(), Ok("in"), "{name}");
            assert_eq!(read(&alias, name).as_deref(), Ok("in"), "{name}");
        }
        assert!(read(&alias, "away/file").is_err());
    }

    #[test]
    fn names_are_made_where_the_held_directory_is() {
        let (_dir, base, out) = tree();
        let roots = [base.clone()];
        let fences = Fences::new(&roots);
        let reached = fences.reach(&base.join("inner/new"), Role::Name).unwrap();
        // Whatever happens to the name meanwhile.
        fs::remove_file(base.join("inner")).unwrap();
        symlink(&out, base.join("inner")).unwrap();
        fs::write(&reached.path, "new").unwrap();
        assert_eq!(fs::read_to_string(base.join("a/b/new")).unwrap(), "new");
        assert!(!out.join("new").exists());
        assert!(fences.reach(&base.join("inner/new"), Role::Name).is_err());
        assert!(fences.reach(&base.join("up/new"), Role::Name).is_err());
        // A name that is a link is only a name.
        fs::remove_file(fences.reach(&base.join("up"), Role::Name).unwrap().path).unwrap();
        assert!(!base.join("up").is_symlink() && out.join("file").exists());
    }

    #[test]
    fn directories_are_made_within() {
        let (_dir, base, out) = tree();
        let roots = [base.clone(), base.with_file_name("fresh")];
        let fences = Fences::new(&roots);
        fences.make_dirs(&base.join("whole/x/y")).unwrap();
        fences.make_dirs(&base.join("whole/x/y")).unwrap();
        assert!(base.join("a/x/y").is_dir());
        assert!(fences.make_dirs(&base.join("away/x")).is_err());
        assert!(fences.make_dirs(&base.join("a/b/file")).is_err());
        assert!(!out.join("x").exists());
        fences.make_dirs(&roots[1].join("p/q")).unwrap();
        assert!(roots[1].join("p/q").is_dir());
    }

    #[test]
    fn a_racing_swap_is_never_followed_out() {
        let (_dir, base, out) = tree();
        let roots = [base.clone()];
        let done = std::sync::atomic::AtomicBool::new(false);
        let (snap, away) = (base.join("snap"), base.join(".away"));
        fs::create_dir(&snap).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&snap, &away).unwrap();
                    symlink(&out, &snap).unwrap();
                    fs::remove_file(&snap).unwrap();
                    fs::rename(&away, &snap).unwrap();
                }
            });
            for n in 0..3000 {
                let fences = Fences::new(&roots);
                if let Ok(reached) = fences.reach(&snap.join(format!("n{n}")), Role::Name) {
                    let _ = fs::write(&reached.path, "x");
                }
                if let Ok(reached) = fences.reach(&snap.join("file"), Role::Object) {
                    panic!("{} was reached", reached.path.display());
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }
}
