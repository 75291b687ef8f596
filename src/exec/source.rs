//! Opens a file of the machine that this runs on, which a user named, if they may have it copied.
//!
//! What is judged is the object that was opened, not the name: the kind by `fstat(2)`, the place by what the kernel
//! says of the descriptor, and reading goes on with that same object. A link that is swapped after the look changes
//! nothing. Upstream resolves the name first, matches prefixes of text and opens later (contract 02 §2, weak points).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::alive;
use crate::location::normalize;

/// Which directories users may import from: contract 02 §2, `SAFE_DIRS` and `RESTRICTED_DIRS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathPolicy {
    /// What lies in one of these is allowed, even if restricted too.
    #[serde(with = "super::op::os_strings")]
    pub safe: Vec<PathBuf>,
    /// What lies in one of these is refused, the directory itself included. The caller adds the built-in ones.
    #[serde(with = "super::op::os_strings")]
    pub restricted: Vec<PathBuf>,
}

impl PathPolicy {
    /// Whether the canonical path is allowed. Compares whole components: `/var/tmp` says nothing of `/var/tmpX`.
    #[must_use]
    pub fn allows(&self, canonical: &Path) -> bool {
        let within = |dirs: &[PathBuf]| {
            dirs.iter().filter(|dir| !dir.as_os_str().is_empty()).any(|dir| {
                // A directory that does not exist holds nothing, but may be a link one day: compare it as written.
                // Nor does one whose storage is dead hold what has just answered.
                let real = || alive::ask_path(dir).ok().and_then(|()| dir.canonicalize().ok());
                canonical.starts_with(dir) || real().is_some_and(|dir| canonical.starts_with(dir))
            })
        };
        within(&self.safe) || !within(&self.restricted)
    }
}

impl PathPolicy {
    /// The same where the directory [`HOME`] means this one; a login whose home is `/` has none worth guarding.
    #[must_use]
    pub fn at_home(mut self, home: Option<&Path>) -> Self {
        let known = home.filter(|home| home.is_absolute() && home.parent().is_some());
        for dir in self.safe.iter_mut().chain(&mut self.restricted).filter(|dir| dir.as_os_str() == HOME) {
            *dir = known.map(Path::to_owned).unwrap_or_default();
        }
        self
    }
}

/// Stands in a policy for the home directory of whoever reads the file, which only his machine knows.
pub const HOME: &str = "~";

/// What a machine answers about a file that a policy forbids, whether it is there or not.
pub const FORBIDDEN: &str = "Not allowed, check SAFE_DIRS and RESTRICTED_DIRS";

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It lies in a restricted directory. The sentence is upstream's, which operators know.
    #[error("Not allowed to copy image from {}, check RESTRICTED_DIRS in your datastore", path.display())]
    Restricted {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// It is a pipe, a socket, a terminal …
    #[error("Cannot read from {}: it is {what}, not a file or block device", path.display())]
    Kind {
        /// The path as the user gave it.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system refused.
    #[error("Cannot read from {}", path.display())]
    Io {
        /// The path as the user gave it.
        path: PathBuf,
        /// The answer of the system.
        source: io::Error,
    },
}

impl SourceError {
    /// The cause alone, for an error that names the file by itself.
    pub(super) fn cause(self) -> io::Error {
        match self {
            Self::Restricted { .. } => io::Error::other(FORBIDDEN),
            Self::Kind { what, .. } => io::Error::other(format!("It is {what}, not a file or block device")),
            Self::Io { source, .. } => source,
        }
    }
}

/// A file or block device that may be read.
#[derive(Debug)]
pub struct LocalSource {
    /// The open file, at its beginning.
    pub file: File,
    /// Where it really is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

/// Opens what `path` leads to, if it is a file or block device and `policy` allows it.
///
/// # Errors
/// [`SourceError`]; which of them comes first tells nobody whether a restricted file exists in readable form: what lies
/// in a restricted directory is refused before its kind is told and before it is opened for reading.
pub fn open_local(path: &Path, policy: &PathPolicy) -> Result<LocalSource, SourceError> {
    let failed = |source| SourceError::Io { path: path.to_owned(), source };
    alive::ask_path(path).map_err(failed)?;
    let handle = match Handle::open(path) {
        Ok(handle) => handle,
        // What is missing in a restricted directory must not be told apart from what is there.
        Err(_) if !policy.allows(&nearest(path)) => return Err(SourceError::Restricted { path: path.to_owned() }),
        Err(error) => return Err(failed(error)),
    };
    if !policy.allows(&handle.path) {
        return Err(SourceError::Restricted { path: path.to_owned() });
    }
    let kind = handle.meta.file_type();
    let what = match kind {
        _ if kind.is_file() || kind.is_block_device() => None,
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a pipe"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a character device"),
    };
    if let Some(what) = what {
        return Err(SourceError::Kind { path: path.to_owned(), what });
    }
    let file = handle.reopen().map_err(failed)?;
    let len = if kind.is_file() {
        handle.meta.len()
    } else {
        // Leaves the offset at the beginning again.
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| failed(errno.into()))?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(|errno| failed(errno.into()))?;
        end
    };
    Ok(LocalSource { file, path: handle.path, len })
}

/// Where a path that cannot be opened would be: its nearest parent that can, resolved, and the rest as written.
fn nearest(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for parent in whole.ancestors() {
        if let (Ok(real), Ok(rest)) = (parent.canonicalize(), whole.strip_prefix(parent)) {
            return normalize(&real.join(rest));
        }
    }
    whole
}

/// An object that is held but not opened: no pipe is woken, no tape rewound (`O_PATH`, open(2)).
pub(crate) struct Handle {
    file: File,
    /// Where the kernel says it is.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) meta: std::fs::Metadata,
}

impl Handle {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        alive::ask_path(path)?;
        // Not by `custom_flags`: where musl is the C library the standard library takes O_PATH for an access mode and drops
        // it, and a pipe would then be waited for.
        let file = File::from(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
        let meta = file.metadata()?;
        let mut real = std::fs::read_link(proc_path(&file))?;
        // The kernel's mark for a name that is gone; a file may really be called so, then it still has a name.
        if meta.nlink() == 0
            && let Some(name) = real.as_os_str().as_bytes().strip_suffix(b" (deleted)")
        {
            real = PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()));
        }
        Ok(Self { file, path: real, meta })
    }

    /// Opens that very object for reading.
    pub(crate) fn reopen(&self) -> io::Result<File> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(|_| io::ErrorKind::InvalidInput)?;
        File::options().read(true).custom_flags(flags).open(proc_path(&self.file))
    }
}

fn proc_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn policy(safe: &[&Path], restricted: &[&Path]) -> PathPolicy {
        let own = |dirs: &[&Path]| dirs.iter().map(|dir| dir.to_path_buf()).collect();
        PathPolicy { safe: own(safe), restricted: own(restricted) }
    }

    #[test]
    fn directories_are_compared_by_components() {
        let p = policy(&[Path::new("/nonexistent/var/tmp/")], &[Path::new("/nonexistent/")]);
        assert!(p.allows(Path::new("/nonexistent/var/tmp/a")));
        assert!(!p.allows(Path::new("/nonexistent/var/tmpX/a")));
        assert!(!p.allows(Path::new("/nonexistent")));
        assert!(p.allows(Path::new("/nonexistent-2/a")));
        assert!(policy(&[], &[Path::new("")]).allows(Path::new("/a")));
        assert!(!policy(&[], &[Path::new("/")]).allows(Path::new("/a")));
    }

    #[test]
    fn links_are_followed_and_judged_where_they_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (open, secret) = (root.join("open"), root.join("secret"));
        std::fs::create_dir(&open).unwrap();
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("image"), "x").unwrap();
        std::fs::write(open.join("image"), "xyz").unwrap();
        symlink("../secret/image", open.join("link")).unwrap();
        symlink(&secret, root.join("alias")).unwrap();

        let p = policy(&[], &[&secret]);
        assert_eq!(open_local(&open.join("image"), &p).unwrap().len, 3);
        for path in [open.join("link"), secret.join("image"), open.join("../secret/image"), root.join("alias/image")] {
            let error = open_local(&path, &p).unwrap_err();
            let text =
                format!("Not allowed to copy image from {}, check RESTRICTED_DIRS in your datastore", path.display());
            assert_eq!(error.to_string(), text);
        }
        // The directory itself, and one that is named through a link.
        assert!(matches!(open_local(&secret, &p), Err(SourceError::Restricted { .. })));
        let p = policy(&[], &[&root.join("alias")]);
        assert!(matches!(open_local(&secret.join("image"), &p), Err(SourceError::Restricted { .. })));
        let p = policy(&[&secret], &[&root]);
        assert!(open_local(&open.join("link"), &p).is_ok());
        assert!(matches!(open_local(&open.join("image"), &p), Err(SourceError::Restricted { .. })));
    }

    #[test]
    fn only_files_and_block_devices_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let cases = [(dir.path(), "a directory"), (&fifo, "a pipe"), (&socket, "a socket")];
        for (path, what) in cases.into_iter().chain([(Path::new("/dev/zero"), "a character device")]) {
            let text = open_local(path, &PathPolicy::default()).unwrap_err().to_string();
            assert!(text.contains(what) && text.starts_with("Cannot read from "), "{text}");
        }
        let missing = open_local(&dir.path().join("missing"), &PathPolicy::default()).unwrap_err();
        assert!(matches!(missing, SourceError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_name_that_is_gone_is_judged_by_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = root.join("image");
        std::fs::write(&path, "x").unwrap();
        let held = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let handle = Handle::open(&proc_path(&held)).unwrap();
        assert_eq!(handle.path, path);
        let odd = root.join("image (deleted)");
        std::fs::write(&odd, "x").unwrap();
        assert_eq!(open_local(&odd, &PathPolicy::default()).unwrap().path, odd);
    }

    #[test]
    fn the_home_directory_is_that_of_the_reader() {
        let p = policy(&[], &[Path::new(HOME), Path::new("/nonexistent/x")]);
        let there = p.clone().at_home(Some(Path::new("/nonexistent/home")));
        assert!(!there.allows(Path::new("/nonexistent/home/.ssh/id")) && there.allows(Path::new("/nonexistent/a")));
        for none in [None, Some(Path::new("/")), Some(Path::new("relative"))] {
            let there = p.clone().at_home(none);
            assert!(there.allows(Path::new("/nonexistent/home/a")) && !there.allows(Path::new("/nonexistent/x")));
        }
    }

    #[test]
    fn a_swap_after_the_look_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad, link) = (dir.path().join("good"), dir.path().join("bad"), dir.path().join("link"));
        std::fs::write(&good, "good").unwrap();
        std::fs::write(&bad, "bad").unwrap();
        symlink(&good, &link).unwrap();
        let handle = Handle::open(&link).unwrap();
        std::fs::remove_file(&link).unwrap();
        symlink(&bad, &link).unwrap();
        assert_eq!(io::read_to_string(handle.reopen().unwrap()).unwrap(), "good");
    }

    #[test]
    fn a_racing_swap_never_yields_what_is_restricted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let secret = root.join("secret");
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("key"), "secret").unwrap();
        std::fs::write(root.join("image"), "public").unwrap();
        let link = root.join("link");
        symlink(root.join("image"), &link).unwrap();
        let p = policy(&[], &[&secret]);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let target = if n % 2 == 0 { secret.join("key") } else { root.join("image") };
                    symlink(target, root.join("new")).unwrap();
                    std::fs::rename(root.join("new"), &link).unwrap();
                    n += 1;
                }
            });
            for _ in 0..2000 {
                match open_local(&link, &p) {
                    Ok(source) => assert_eq!(io::read_to_string(source.file).unwrap(), "public"),
                    Err(SourceError::Restricted { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
