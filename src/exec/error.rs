//! How a script fails: which operation, on what, and why, in one line, whichever interpreter ran it.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cmd::show_word;
use super::control::Stopped;
use super::op::{Op, READ_LIMIT, Script};
use super::process::{ProcessError, ProcessErrorKind};
use super::source::FORBIDDEN;
use super::staging;

/// A failed operation. Its text is one line that names the object and the cause, so it has no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", besides.concat())]
pub struct OpError {
    /// Index of the operation in the script; `None` when the far side failed outside any of them (no connection, no shell).
    pub index: Option<usize>,
    /// What kind of failure it is, for code that has to tell.
    pub kind: OpErrorKind,
    message: String,
    besides: Vec<String>,
}

/// What kind of failure an [`OpError`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpErrorKind {
    /// There is no such file or directory.
    NotFound,
    /// The file exists.
    Exists,
    /// The file system is full, or a quota is.
    NoSpace,
    /// Permission denied, or a read-only file system.
    Denied,
    /// A name cannot be given in another file system.
    OtherFileSystem,
    /// A signal or the deadline came.
    Stopped(Stopped),
    /// An external program failed.
    Program {
        /// Its exit status; `None` when a signal ended it.
        status: Option<i32>,
        /// The tail of its standard error.
        stderr: String,
    },
    /// A program is not installed.
    MissingProgram,
    /// A named lock was not to be had in time.
    Locked,
    /// The script itself is at fault: see [`fault`].
    Script,
    /// The file lies where it must not be read from.
    Forbidden,
    /// Anything else.
    Other,
}

/// Stands between a failure and a further one.
const AND_THEN: &str = "; and then: ";

impl OpError {
    /// A failure of no operation in particular.
    pub fn outside(kind: OpErrorKind, message: impl Into<String>) -> Self {
        Self { index: None, kind, message: message.into(), besides: Vec::new() }
    }

    /// The same, and what failed when the script was ended for it.
    pub(super) fn besides(mut self, other: &str) -> Self {
        self.besides.push(format!("{AND_THEN}{other}"));
        self
    }

    /// The failure alone, and what [`OpError::besides`] added.
    pub(super) fn parts(&self) -> (&str, impl Iterator<Item = &str>) {
        let others = self.besides.iter().map(|other| other.strip_prefix(AND_THEN).unwrap_or(other));
        (&self.message, others)
    }

    pub(super) fn new(index: usize, kind: OpErrorKind, message: impl Into<String>) -> Self {
        Self { index: Some(index), kind, message: message.into(), besides: Vec::new() }
    }

    /// A system call failed in `op`.
    pub(super) fn io(index: usize, op: &Op, error: &io::Error) -> Self {
        // Also one that came while another host was read from.
        let inner = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        let stopped =
            std::iter::successors(inner, |error| error.source()).find_map(|e| e.downcast_ref::<Stopped>()).copied();
        if let Some(stopped) = stopped {
            return Self::new(index, OpErrorKind::Stopped(stopped), format!("{}: {stopped}", cannot(op)));
        }
        let cause = without_number(&error.to_string());
        let kind = match error.kind() {
            io::ErrorKind::NotFound => OpErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => OpErrorKind::Exists,
            io::ErrorKind::CrossesDevices => OpErrorKind::OtherFileSystem,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpErrorKind::NoSpace,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpErrorKind::Denied,
            _ => kind_of(&cause),
        };
        Self::new(index, kind, format!("{}: {cause}", cannot(op)))
    }

    /// A tool of the far side failed in `op` and said `cause`.
    pub(super) fn text(index: usize, op: &Op, cause: &str) -> Self {
        Self::new(index, kind_of(cause), format!("{}: {cause}", cannot(op)))
    }

    /// An external program failed.
    pub(super) fn process(index: usize, error: ProcessError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let message = match &cause {
            Some(cause) => format!("{error}: {}", without_number(cause)),
            None => error.to_string(),
        };
        let kind = match error.kind {
            ProcessErrorKind::Missing(_) => OpErrorKind::MissingProgram,
            ProcessErrorKind::Stopped(stopped) => OpErrorKind::Stopped(stopped),
            ProcessErrorKind::Status(status) => OpErrorKind::Program { status: Some(status), stderr: error.stderr },
            ProcessErrorKind::OverTime(_) => OpErrorKind::Program { status: Some(137), stderr: error.stderr },
            ProcessErrorKind::Signal(_) => OpErrorKind::Program { status: None, stderr: error.stderr },
            _ => OpErrorKind::Other,
        };
        Self::new(index, kind, message)
    }
}

/// `io::Error` adds ` (os error 2)`, which nobody who reads a driver's error wants.
fn without_number(text: &str) -> String {
    let end = text.find(" (os error ").unwrap_or(text.len());
    text[..end].to_owned()
}

/// The kind behind a text of `strerror(3)`.
fn kind_of(cause: &str) -> OpErrorKind {
    match cause {
        "No such file or directory" | "Not a directory" => OpErrorKind::NotFound,
        "File exists" => OpErrorKind::Exists,
        "Invalid cross-device link" => OpErrorKind::OtherFileSystem,
        "No space left on device" | "Disk quota exceeded" => OpErrorKind::NoSpace,
        "Permission denied" | "Operation not permitted" | "Read-only file system" => OpErrorKind::Denied,
        FORBIDDEN => OpErrorKind::Forbidden,
        _ => OpErrorKind::Other,
    }
}

/// The beginning of an error about `op`: `Cannot copy /a to /b`.
#[must_use]
pub fn cannot(op: &Op) -> String {
    let w = |path: &Path| show_word(path.as_os_str());
    match op {
        Op::Stat { path, .. } => format!("Cannot look at {}", w(path)),
        Op::ReadLink { path } => format!("Cannot read the link {}", w(path)),
        Op::List { path } => format!("Cannot list {}", w(path)),
        Op::Read { path, .. } | Op::Head { path, .. } | Op::Send { path } | Op::SendAllowed { path, .. } => {
            format!("Cannot read {}", w(path))
        }
        Op::Tree { path, .. } => format!("Cannot look through {}", w(path)),
        Op::Space { path } => format!("Cannot get the space of {}", w(path)),
        Op::TreeSize { path } => format!("Cannot get the size of {}", w(path)),
        Op::Md5 { path } => format!("Cannot get the MD5 digest of {}", w(path)),
        Op::Sha256 { path } => format!("Cannot get the SHA-256 digest of {}", w(path)),
        Op::MakeDir { path } => format!("Cannot create the directory {}", w(path)),
        Op::RemoveDirIfEmpty { path } => format!("Cannot remove the directory {}", w(path)),
        Op::Symlink { target, link } => format!("Cannot link {} to {}", w(link), w(target)),
        Op::HardLink { from, to } => format!("Cannot link {} to {}", w(to), w(from)),
        Op::Write { path, .. } => format!("Cannot write {}", w(path)),
        Op::Rename { from, to } => format!("Cannot rename {} to {}", w(from), w(to)),
        Op::Replace { from, to, .. } => format!("Cannot put {} in the place of {}", w(from), w(to)),
        Op::PutBack { from, to } => format!("Cannot put {} back to {}", w(from), w(to)),
        Op::Move { from, to } => format!("Cannot move {} to {}", w(from), w(to)),
        Op::Remove { path, .. } => format!("Cannot remove {}", w(path)),
        Op::Copy { from, to, .. } => format!("Cannot copy {} to {}", w(from), w(to)),
        Op::PunchHoles { path } => format!("Cannot free the zeroes of {}", w(path)),
        Op::Claim { path } | Op::CreateSparse { path, .. } => format!("Cannot create {}", w(path)),
        Op::Receive { path, .. } => format!("Cannot receive {}", w(path)),
        Op::Sync { path } => format!("Cannot sync {}", w(path)),
        Op::Carry(_) | Op::Attend { .. } => "Cannot carry files".to_owned(),
        Op::Lock { name, .. } => format!("Cannot take the lock {name}"),
        Op::Publish { from, to } => format!("Cannot publish {} as {}", w(from), w(to)),
        Op::Sweep { staging, .. } => format!("Cannot sweep {}", w(staging)),
        Op::Run(cmd) | Op::Guard { cmd, .. } => format!("Cannot run {cmd}"),
    }
}

/// Locks and guards that one script can hold: POSIX sh has ten descriptors, and the sh interpreter needs six of them.
pub const LOCKS_PER_SCRIPT: usize = 4;

/// What is wrong with operation `index` of a script, before anything runs: both interpreters refuse the same.
#[must_use]
pub fn fault(script: &Script, index: usize) -> Option<String> {
    let op = script.ops.get(index)?;
    let before = &script.ops[..index];
    let mut faults = String::new();
    let mut say = |text: &str| {
        let _ = write!(faults, "{}{text}", if faults.is_empty() { "" } else { ", " });
    };
    for (path, _) in op.places() {
        if !path.is_absolute() {
            say("not an absolute path");
        }
        if path.as_os_str().as_bytes().contains(&0) {
            say("a path holds a NUL byte");
        }
    }
    if needs_name(op).is_some_and(|path| path.file_name().is_none()) {
        say("the path has no last name");
    }
    match op {
        Op::Symlink { target, .. } if target.as_os_str().is_empty() || target.as_os_str().as_bytes().contains(&0) => {
            say("the link's text is empty or holds a NUL byte");
        }
        Op::PutBack { from, to } if from.starts_with(to) || to.starts_with(from) => say("one path lies in the other"),
        Op::Read { len, .. } | Op::Head { len, .. } if *len > READ_LIMIT => {
            say("more bytes asked for than one operation answers");
        }
        Op::Receive { .. } if before.iter().any(|op| matches!(op, Op::Receive { .. })) => {
            say("the script receives twice");
        }
        op if before.iter().any(|op| matches!(op, Op::Receive { .. })) && !is_harmless(op) => {
            say("nothing may change after receiving in the same script");
        }
        Op::Send { .. } | Op::SendAllowed { .. } | Op::Carry(_) | Op::Attend { .. }
            if index + 1 != script.ops.len() =>
        {
            say("sending is not the last operation");
        }
        op if script.sends() && (op.is_question() || matches!(op, Op::Receive { .. })) => {
            say("a script that sends cannot answer anything else");
        }
        Op::Lock { name, .. } => {
            if matches!(name.as_str(), "" | "." | "..") || name.contains('\0') {
                say("that is no name");
            }
            if held(before) >= LOCKS_PER_SCRIPT {
                say("too many locks in one script");
            }
        }
        Op::Sweep { staging, dead } if dead.iter().any(|name| staging::final_of(&staging.join(name)).is_none()) => {
            say("not the name of a staging file");
        }
        Op::Guard { cmd, .. }
            if !cmd.secret_env.is_empty() || cmd.secret_stdin.is_some() || !cmd.also_ok.is_empty() =>
        {
            say("a guard takes neither secrets nor other exit statuses");
        }
        Op::Guard { .. } if held(before) >= LOCKS_PER_SCRIPT => say("too many locks in one script"),
        Op::Run(cmd) | Op::Guard { cmd, .. } => {
            if cmd.program.is_empty() || cmd.program.contains('\0') {
                say("no program");
            }
            if cmd.args.iter().any(|arg| arg.as_bytes().contains(&0)) {
                say("an argument holds a NUL byte");
            }
            if !cmd.secret_env.iter().all(|(name, value)| is_variable(name) && !value.reveal().contains('\0')) {
                say("not an environment variable");
            }
        }
        _ => {}
    }
    (!faults.is_empty()).then_some(faults)
}

/// Operations that keep something until the script ends.
fn held(ops: &[Op]) -> usize {
    ops.iter().filter(|op| matches!(op, Op::Lock { .. } | Op::Guard { .. })).count()
}

/// What may follow [`Op::Receive`]. The end of a connection looks like the end of the data, so that only the side that
/// sent it knows whether all has arrived: it compares the number received before it sends the script that publishes.
fn is_harmless(op: &Op) -> bool {
    op.is_question() || matches!(op, Op::Sync { .. } | Op::PunchHoles { .. })
}

fn is_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && name.chars().next().is_some_and(|c| !c.is_ascii_digit())
}

/// The path that is made or replaced in its directory, where there is one.
fn needs_name(op: &Op) -> Option<&Path> {
    match op {
        Op::Symlink { link: path, .. }
        | Op::Write { path, .. }
        | Op::Remove { path, .. }
        | Op::CreateSparse { path, .. }
        | Op::Receive { path, .. }
        | Op::HardLink { to: path, .. }
        | Op::Rename { to: path, .. }
        | Op::PutBack { to: path, .. }
        | Op::Replace { to: path, .. }
        | Op::Move { to: path, .. }
        | Op::Copy { to: path, .. }
        | Op::Publish { to: path, .. } => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::op::Sparse;

    #[test]
    fn an_error_is_one_line_without_numbers() {
        let op = Op::Copy { from: "/a\nb".into(), to: "/c".into(), sparse: Sparse::Holes };
        let error = OpError::io(3, &op, &io::Error::from_raw_os_error(28));
        assert_eq!(error.to_string(), r"Cannot copy '/a\nb' to /c: No space left on device");
        assert_eq!((error.index, error.kind), (Some(3), OpErrorKind::NoSpace));
    }

    #[test]
    fn a_stop_inside_a_copy_is_seen() {
        let error = OpError::io(0, &Op::Sync { path: "/a".into() }, &io::Error::other(Stopped::Deadline));
        assert_eq!(error.kind, OpErrorKind::Stopped(Stopped::Deadline));
    }

    #[test]
    fn a_script_that_cannot_work_is_refused() {
        let script = Script::new([
            Op::Send { path: "/a".into() },
            Op::Stat { path: "b".into(), follow: true },
            Op::Run(crate::exec::cmd::Cmd::new("x").env("A;B", crate::exec::cmd::Secret::new(""))),
            Op::Receive { path: "/r".into(), sparse: Sparse::Holes },
            Op::Rename { from: "/r".into(), to: "/image".into() },
        ]);
        for index in 0..script.ops.len() {
            assert!(fault(&script, index).is_some(), "{index}");
        }
    }
}
