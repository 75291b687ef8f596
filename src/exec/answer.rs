//! What operations of scripts answer. No I/O.

use std::ffi::OsString;
use std::path::PathBuf;

/// Kind of a file system object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link (only where it was not followed).
    Link,
    /// A block device.
    Block,
    /// Anything else: pipe, socket, character device.
    Other,
}

impl FileKind {
    /// The kind by a mode (`S_IFMT` of `inode(7)`).
    #[must_use]
    pub fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Dir,
            0o120_000 => Self::Link,
            0o060_000 => Self::Block,
            _ => Self::Other,
        }
    }
}

/// Answer to [`super::op::Op::Stat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Apparent size in bytes.
    pub size: u64,
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Device number, to tell file systems apart.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// One thing in the answer to [`super::op::Op::Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it is, seen from the directory that was asked about; empty for that itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Apparent size in bytes.
    pub size: u64,
    /// Bytes that it occupies.
    pub allocated: u64,
    /// Text of a symbolic link.
    pub link: Option<PathBuf>,
}

/// Answer to [`super::op::Op::Space`], in MiB rounded as `df -B1M -P` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total_mib: u64,
    /// Used.
    pub used_mib: u64,
    /// Available to ordinary users.
    pub free_mib: u64,
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// It was done; there is nothing to say.
    Done,
    /// There is no such thing.
    Absent,
    /// See [`super::op::Op::Stat`].
    Stat(Stat),
    /// See [`super::op::Op::Space`].
    Space(Space),
    /// A count.
    Number(u64),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// Names in a directory.
    Names(Vec<OsString>),
    /// See [`super::op::Op::Tree`], in the order of paths.
    Tree(Vec<Node>),
    /// The step was explained, not run: nobody knows.
    Unknown,
}

impl Value {
    /// The text of [`Value::Bytes`] without surrounding white space; empty for everything else.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).trim().to_owned(),
            _ => String::new(),
        }
    }

    /// The count of [`Value::Number`].
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(n) => Some(*n),
            _ => None,
        }
    }

    /// The [`Stat`], where there was something.
    #[must_use]
    pub fn stat(&self) -> Option<Stat> {
        match self {
            Self::Stat(stat) => Some(*stat),
            _ => None,
        }
    }
}
