//! Named advisory locks, those of upstream's `/var/lock/one/<name>` (contract 01 §10), so that both kinds of driver
//! respect each other.
//!
//! `flock(2)`: released when the [`NamedLock`] is dropped, and by the death of the process. The files stay: removing one
//! would let two holders lock two files of the same name.

use std::env;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::control::{Control, Stopped};

/// Variable that names another lock directory, for tests and for hosts without `/var/lock/one`.
pub const VARIABLE: &str = "ONESTORE_LOCK_DIR";

/// How often a lock that is held is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// The directory that locks are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockDir {
    path: PathBuf,
    /// Whose owner root gives to what it makes.
    like: Option<PathBuf>,
}

impl LockDir {
    /// `/var/lock/one`, or what [`VARIABLE`] says.
    #[must_use]
    pub fn from_env() -> Self {
        let set = env::var_os(VARIABLE).filter(|value| !value.is_empty());
        Self::at(set.map_or_else(|| PathBuf::from("/var/lock/one"), PathBuf::from))
    }

    /// This directory.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), like: None }
    }

    /// Run by root, gives what it makes the owner of `like`: the cloud's administrator has to take the same locks.
    #[must_use]
    pub fn owned_like(mut self, like: impl Into<PathBuf>) -> Self {
        self.like = Some(like.into());
        self
    }

    /// The file of a lock. A name that is an absolute path is the lock file of another program; its directory is there.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        if is_path(name) { PathBuf::from(name) } else { self.path.join(file_name(name)) }
    }

    /// Takes a lock, waiting for at most `wait`.
    ///
    /// # Errors
    /// [`LockError`]; upstream's words.
    pub fn take(&self, name: &str, wait: Duration, control: &Control) -> Result<NamedLock, LockError> {
        let path = self.file(name);
        let file = self.open(&path).map_err(|cause| LockError::Open { path: path.clone(), cause })?;
        let until = Instant::now().checked_add(wait);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(NamedLock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(cause)) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(cause)) => return Err(LockError::Open { path, cause }),
            }
            control.check().map_err(|stopped| LockError::Stopped { path: path.clone(), stopped })?;
            let left = until.map_or(PAUSE, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(LockError::Held { path });
            }
            thread::sleep(left.min(PAUSE));
        }
    }

    /// Modes as under upstream's umask of 0027.
    fn open(&self, path: &Path) -> io::Result<File> {
        let made = [self.path.as_path(), path].map(|path| !path.exists());
        if path.starts_with(&self.path) {
            DirBuilder::new().recursive(true).mode(0o750).create(&self.path)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        if let Some(owner) = self.like.as_ref().filter(|_| rustix::process::geteuid().is_root())
            && let Ok(owner) = std::fs::metadata(owner)
        {
            for path in [self.path.as_path(), path].iter().zip(made).filter_map(|(path, made)| made.then_some(path)) {
                std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
            }
        }
        Ok(file)
    }
}

/// The file name of a lock: slashes become hyphens.
pub(super) fn file_name(name: &str) -> String {
    name.replace('/', "-")
}

/// Whether the name of a lock is a file of its own.
pub(super) fn is_path(name: &str) -> bool {
    name.starts_with('/')
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct NamedLock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Its file cannot be opened.
    #[error("Could not create or open lock {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else holds it.
    #[error("Could not acquire exclusive lock on {}", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// A signal or our own deadline came while waiting.
    #[error("Could not acquire exclusive lock on {}", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
        /// Which of them.
        #[source]
        stopped: Stopped,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::exec::control::Cancel;

    #[test]
    fn a_lock_is_exclusive_and_given_back() {
        let temp = tempfile::tempdir().expect("temp");
        let locks = LockDir::at(temp.path().join("a/one"));
        let control = Control::new(Cancel::new());
        let held = locks.take("replica-/x/y", Duration::ZERO, &control).expect("free");
        let file = temp.path().join("a/one/replica--x-y");
        assert_eq!(std::fs::metadata(&file).expect("made").permissions().mode() & 0o777, 0o640);
        let error = locks.take("replica-/x/y", Duration::from_millis(60), &control).expect_err("held");
        assert_eq!(error.to_string(), format!("Could not acquire exclusive lock on {}", file.display()));
        let flock = |status: i32| {
            let done = Command::new("flock").args(["-n", "-E", "7"]).arg(&file).arg("true").status().expect("flock");
            assert_eq!(done.code(), Some(status), "upstream's flock(1) sees the same");
        };
        flock(7);
        drop(held);
        flock(0);
    }

    #[test]
    fn waiting_ends_with_the_holder_or_the_signal() {
        let temp = tempfile::tempdir().expect("temp");
        let locks = LockDir::at(temp.path());
        let cancel = Cancel::new();
        let control = Control::new(cancel.clone());
        let held = locks.take("x", Duration::ZERO, &control).expect("free");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| locks.take("x", Duration::from_secs(60), &control).map(drop));
            thread::sleep(Duration::from_millis(20));
            drop(held);
            waiter.join().expect("no panic").expect("given back");
        });
        // Not at once: a child that another test is just starting holds all descriptors until it executes something.
        let _held = locks.take("x", Duration::from_secs(60), &control).expect("free");
        cancel.set();
        let error = locks.take("x", Duration::from_secs(60), &control).expect_err("cancelled");
        assert!(matches!(error, LockError::Stopped { stopped: Stopped::Cancelled, .. }));
    }

    #[test]
    fn a_directory_that_cannot_be_is_said() {
        let error = LockDir::at("/dev/null/one").take("x", Duration::ZERO, &Control::new(Cancel::new()));
        assert_eq!(error.expect_err("no").to_string(), "Could not create or open lock /dev/null/one/x");
    }
}
