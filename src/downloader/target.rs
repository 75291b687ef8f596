//! Where a download goes: standard output, something that can only be written in place, or a path.
//!
//! At a path nothing stands until it is whole: the data are written to `.<owner>.<name>.part` beside it, synced and
//! renamed. What a killed download left is removed by the next one to the same path ([`crate::exec::staging`]).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::exec::staging::{self, Owner};

/// Bytes of the final name that the staging name repeats; both have to fit into 255.
const REPEATED: usize = 100;

/// Links that are followed to the place itself, as the kernel does.
const MAX_LINKS: usize = 40;

/// Where a download goes.
#[derive(Debug)]
pub enum Target {
    /// `-`.
    Stdout,
    /// A device, a pipe, `/dev/stdout`: what is there stays there and is written to.
    InPlace(PathBuf),
    /// A file or directory that appears when it is whole.
    Path(Place),
}

/// A path whose directory exists.
#[derive(Debug)]
pub struct Place {
    /// As the caller wrote it.
    pub shown: PathBuf,
    dir: PathBuf,
    name: OsString,
    /// What stands there before.
    before: Option<Before>,
}

/// What a file that gives way hands on.
#[derive(Clone, Copy, Debug)]
struct Before {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Before {
    fn of(meta: &Metadata) -> Self {
        Self { mode: meta.permissions().mode(), uid: meta.uid(), gid: meta.gid() }
    }
}

impl Target {
    /// What `to` stands for. A link is followed: what it leads to is replaced, as upstream would write to it.
    ///
    /// # Errors
    /// For a directory, a path in none, or one that cannot be looked at.
    pub fn of(to: &OsStr) -> Result<Self> {
        if to == "-" {
            return Ok(Self::Stdout);
        }
        let shown = Path::new(to);
        let failed = || format!("Error copying to {}", shown.display());
        let mut path = std::path::absolute(shown).with_context(failed)?;
        for _ in 0..MAX_LINKS {
            let Some(name) = path.file_name().map(ToOwned::to_owned) else { bail!("{}: it is a directory", failed()) };
            let dir = path.parent().unwrap_or(Path::new("/")).canonicalize().with_context(failed)?;
            // Links in there lead to open files, not to names.
            if dir.starts_with("/proc") {
                return Ok(Self::InPlace(shown.to_owned()));
            }
            path = dir.join(&name);
            let before = match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_symlink() => {
                    path = dir.join(fs::read_link(&path).with_context(failed)?);
                    continue;
                }
                Ok(meta) => Some(meta),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(failed),
            };
            return match before {
                Some(meta) if meta.is_dir() => Err(anyhow!("{}: it is a directory", failed())),
                Some(meta) if !meta.is_file() => Ok(Self::InPlace(path)),
                before => {
                    let before = before.as_ref().map(Before::of);
                    Ok(Self::Path(Place { shown: shown.to_owned(), dir, name, before }))
                }
            };
        }
        bail!("{}: its links do not end", failed())
    }

    /// The directory of a path.
    #[must_use]
    pub fn dir(&self) -> Option<PathBuf> {
        match self {
            Self::Path(place) => Some(place.dir.clone()),
            Self::Stdout | Self::InPlace(_) => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Stdout => "standard output".to_owned(),
            Self::InPlace(path) | Self::Path(Place { shown: path, .. }) => path.display().to_string(),
        }
    }
}

impl Place {
    /// Whether something stands there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.before.is_some()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// The part of the final name that staging names repeat.
    fn repeated(&self) -> &OsStr {
        let name = self.name.as_bytes();
        OsStr::from_bytes(&name[..name.len().min(REPEATED)])
    }

    fn staging(&self, what: &str) -> io::Result<PathBuf> {
        let staging = staging::staging_path(&self.dir, &Owner::me()?, self.repeated());
        let mut name = OsString::from(".");
        name.push(staging.file_name().unwrap_or_default());
        let mut name = name.into_vec();
        // Two names of one download: the archive and what is in it.
        name.splice(name.len() - b".part".len().., format!("{what}.part").into_bytes());
        Ok(self.dir.join(OsString::from_vec(name)))
    }

    /// Removes what dead downloads to this path left; what cannot be removed stays.
    pub fn sweep(&self) {
        let (Ok(me), Ok(entries)) = (Owner::me(), fs::read_dir(&self.dir)) else { return };
        let marks = [".", ".archive.", ".tree."]
            .map(|mark| [b".", self.repeated().as_bytes(), mark.as_bytes(), b"part"].concat());
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(own) = name.as_bytes().strip_prefix(b".") else { continue };
            let mine = marks.iter().any(|mark| own.ends_with(mark));
            if mine && staging::is_abandoned(OsStr::from_bytes(own), &me) {
                let _ = remove(&entry.path());
            }
        }
    }

    /// Makes the staging file.
    ///
    /// # Errors
    /// What the system says.
    pub fn file(&self, what: &str) -> io::Result<(Staged, File)> {
        let path = self.staging(what)?;
        // Nobody sees more of it than of the file that it replaces; an archive is for nobody else at all.
        let mode = match &self.before {
            _ if !what.is_empty() => 0o600,
            Some(before) => before.mode & 0o600,
            None => 0o666,
        };
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        Ok((Staged(path), file))
    }

    /// Makes the staging directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn directory(&self) -> io::Result<Staged> {
        let path = self.staging(".tree")?;
        fs::create_dir(&path)?;
        Ok(Staged(path))
    }

    /// Whether the file that stands there may be written although nothing may be made beside it.
    #[must_use]
    pub fn only_in_place(&self, error: &io::Error) -> Option<PathBuf> {
        let kept_out = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        (kept_out && self.exists()).then(|| self.path())
    }

    /// Gives the staged file or directory its name. With `replace` what stood there goes, after that; without, it is a
    /// failure if something stands there by now.
    ///
    /// # Errors
    /// What the system says. The staged data are then removed.
    pub fn publish(&self, staged: Staged, file: Option<&File>, replace: bool) -> io::Result<()> {
        if let (Some(file), Some(before)) = (file, self.before) {
            // As if it had been written to; another owner is only for root to give.
            let _ = fchown(file, Some(before.uid), Some(before.gid));
            file.set_permissions(fs::Permissions::from_mode(before.mode))?;
        }
        if let Some(file) = file {
            file.sync_all()?;
        }
        let to = self.path();
        // Before it has its name: a directory that may be written to but not read cannot be synced, which is no failure.
        let dir = File::open(&self.dir).ok();
        let flags = match (replace, file.is_some(), self.exists()) {
            (true, true, _) => RenameFlags::empty(),
            // A directory cannot be renamed over a file.
            (true, false, true) => RenameFlags::EXCHANGE,
            _ => RenameFlags::NOREPLACE,
        };
        match renameat_with(CWD, &staged.0, CWD, &to, flags) {
            Ok(()) if flags == RenameFlags::EXCHANGE => drop(staged),
            Ok(()) => staged.keep(),
            // A file system that knows no flags.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !flags.is_empty() => {
                if flags == RenameFlags::NOREPLACE && fs::symlink_metadata(&to).is_ok() {
                    return Err(Errno::EXIST.into());
                }
                if flags == RenameFlags::EXCHANGE {
                    fs::remove_file(&to)?;
                }
                fs::rename(&staged.0, &to)?;
                staged.keep();
            }
            Err(errno) => return Err(errno.into()),
        }
        match dir.map_or(Ok(()), |dir| dir.sync_all()) {
            // Some file systems do not know that of directories.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            synced => synced,
        }
    }
}

/// Something under a staging name; it is removed when this is dropped.
#[derive(Debug)]
pub struct Staged(PathBuf);

impl Staged {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = remove(&self.0);
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn place(path: &Path) -> Place {
        match Target::of(path.as_os_str()).expect("a target") {
            Target::Path(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_published_and_keeps_its_mode() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("out");
        fs::write(&to, "old").expect("a file");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o640)).expect("its mode");
        let place = place(&to);
        let (staged, file) = place.file("").expect("a staging file");
        fs::write(staged.path(), "new").expect("written");
        assert_eq!(fs::read_to_string(&to).expect("readable"), "old");
        place.publish(staged, Some(&file), true).expect("published");
        assert_eq!(fs::read_to_string(&to).expect("readable"), "new");
        assert_eq!(fs::metadata(&to).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn a_directory_takes_the_place_of_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("out");
        fs::write(&to, "old").expect("a file");
        let place = place(&to);
        let staged = place.directory().expect("a staging folder");
        fs::write(staged.path().join("a"), "x").expect("written");
        place.publish(staged, None, true).expect("published");
        assert_eq!(names(&to), ["a"]);
        assert_eq!(names(dir.path()), ["out"]);
        assert!(Target::of(to.as_os_str()).expect_err("a folder").to_string().contains("it is a directory"));
    }

    #[test]
    fn what_is_given_up_is_removed_and_nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("out");
        let place = place(&to);
        drop(place.file("").expect("a staging file"));
        fs::create_dir(place.directory().expect("a staging folder").path().join("a")).expect("a folder in it");
        assert!(names(dir.path()).is_empty());
        let (staged, file) = place.file("").expect("a staging file");
        fs::write(&to, "somebody else's").expect("a file");
        assert_eq!(place.publish(staged, Some(&file), false).expect_err("there").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&to).expect("readable"), "somebody else's");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn links_are_followed_and_devices_written_in_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let real = dir.path().canonicalize().expect("a folder").join("real");
        symlink("real", dir.path().join("link")).expect("a link");
        assert_eq!(place(&dir.path().join("link")).path(), real);
        symlink("loop", dir.path().join("loop")).expect("a link");
        assert!(Target::of(dir.path().join("loop").as_os_str()).is_err());
        for path in ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            assert!(matches!(Target::of(OsStr::new(path)), Ok(Target::InPlace(_))), "{path}");
        }
        for path in ["/", "/nowhere/at/all", ".."] {
            assert!(Target::of(OsStr::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn what_the_dead_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = place(&dir.path().join("out"));
        let mine = place.staging("").expect("a name");
        // The same process, started at another time.
        let me = Owner::me().expect("proc").tag();
        let mut parts: Vec<&str> = me.split('-').collect();
        parts[4] = "1";
        let dead = parts.join("-");
        let left = [format!(".{dead}.out.part"), format!(".{dead}.out.tree.part"), format!(".{dead}.out.archive.part")];
        let kept = [format!(".{dead}.other.part"), ".out.part".to_owned()];
        for name in left.iter().chain(&kept) {
            fs::write(dir.path().join(name), "x").expect("a file");
        }
        fs::write(&mine, "x").expect("a file");
        place.sweep();
        let mut expected: Vec<OsString> = kept.iter().map(Into::into).collect();
        expected.push(mine.file_name().expect("a name").to_owned());
        expected.sort();
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn long_names_leave_room() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("n".repeat(255));
        let place = place(&to);
        let (staged, file) = place.file(".archive").expect("a staging file");
        place.publish(staged, Some(&file), true).expect("published");
        assert!(to.exists());
    }
}
