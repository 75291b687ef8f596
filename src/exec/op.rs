//! The typed operations that scripts are made of, and what they answer.
//!
//! Two interpreters run them and must agree: [`super::interpret`] in process, [`super::posix`] as POSIX sh on hosts
//! where this binary does not stand. `tests/interpreters.rs` compares both on real trees.
//!
//! Paths are absolute. An operation that changes something says below what it leaves behind when it fails.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::answer::{FileKind, Node, Space, Stat, Value};
use super::carry::{Carry, Freight};
use super::cmd::{Cmd, Secret, show_word};
use super::source::PathPolicy;

/// One operation of a [`Script`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    // --- questions: change nothing ---
    /// What is at `path`; answers [`Value::Stat`] or, where there is nothing, [`Value::Absent`].
    Stat {
        /// The path asked about.
        #[serde(with = "path")]
        path: PathBuf,
        /// Whether a symbolic link is followed. A dangling link, followed, is absent.
        follow: bool,
    },
    /// Text of a symbolic link: [`Value::Bytes`], or [`Value::Absent`] where there is none or it is no link.
    ReadLink {
        /// The link.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Names in a directory, unsorted, without `.` and `..`: [`Value::Names`], or [`Value::Absent`].
    List {
        /// The directory.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// `len` bytes at `offset`, fewer at the end of the file: [`Value::Bytes`]. Fails where there is no file.
    Read {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes; at most [`READ_LIMIT`].
        len: u64,
    },
    /// The first `len` bytes of a file, fewer where it is shorter: [`Value::Bytes`], or [`Value::Absent`] where there is
    /// nothing. So what may not be there yet is looked at and read in one go.
    Head {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
        /// Number of bytes; at most [`READ_LIMIT`].
        len: u64,
    },
    /// What lies below a directory, itself first, down to `depth` levels: [`Value::Tree`], or [`Value::Absent`]. `path`
    /// itself is followed where it is a link, links below it are not. What vanishes meanwhile is left out.
    Tree {
        /// The directory, or a single file.
        #[serde(with = "path")]
        path: PathBuf,
        /// Levels below it; 0 means itself alone.
        depth: u32,
    },
    /// Space of the file system that holds `path`: [`Value::Space`], as `df -P` counts it.
    Space {
        /// Any existing path on the file system.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Bytes that a tree holds, as `du -sb` counts them (apparent size, links not followed): [`Value::Number`].
    TreeSize {
        /// A directory or file.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// MD5 of a file's content, lower-case hexadecimal: [`Value::Bytes`].
    Md5 {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
    },

    /// SHA-256 of a file's content, lower-case hexadecimal: [`Value::Bytes`]. Holes are not read.
    Sha256 {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
    },

    // --- changes ---
    /// `mkdir -p`: makes a directory and its missing parents. Leaves the ones made so far.
    MakeDir {
        /// The directory.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Makes a directory for us alone and its missing parents, and an empty file in it, against others that remove the directory when it
    /// is empty: while the file is there they cannot. A file that is there already is left as it is.
    Claim {
        /// The file.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Removes an empty directory; one that is missing or not empty is left and is no failure.
    RemoveDirIfEmpty {
        /// The directory.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Makes `link` a symbolic link to `target`, replacing a link or file of that name in one step.
    Symlink {
        /// Text of the link; may be relative to it.
        #[serde(with = "path")]
        target: PathBuf,
        /// Name of the link.
        #[serde(with = "path")]
        link: PathBuf,
    },
    /// Gives a file a second name; fails where `to` exists.
    HardLink {
        /// The file.
        #[serde(with = "path")]
        from: PathBuf,
        /// The new name, on the same file system.
        #[serde(with = "path")]
        to: PathBuf,
    },
    /// Writes a small file by way of a temporary name, synced and renamed: old or new content, never half.
    Write {
        /// The file.
        #[serde(with = "path")]
        path: PathBuf,
        /// Its content; never shown.
        content: Secret,
        /// Permission bits, not reduced by the umask.
        mode: u32,
    },
    /// Renames within one file system, replacing a file or link at `to`; fails where both are names of one file.
    Rename {
        /// Old name.
        #[serde(with = "path")]
        from: PathBuf,
        /// New name.
        #[serde(with = "path")]
        to: PathBuf,
    },
    /// A file or directory takes the place of another one, which is kept: `to` becomes `kept`, and `from` becomes `to`. On a
    /// file system that can exchange two names something is at `to` at every moment; else, and in sh, nothing is there
    /// between the two renames. Fails where there is nothing at `to`, or something at `kept`. A failure leaves all as it
    /// was. All three are on one file system.
    Replace {
        /// What comes.
        #[serde(with = "path")]
        from: PathBuf,
        /// The place.
        #[serde(with = "path")]
        to: PathBuf,
        /// Name of what was there.
        #[serde(with = "path")]
        kept: PathBuf,
    },
    /// Takes a rename back, for the way back of a step that may have been left anywhere: what is at `from` gets the name `to`
    /// where nothing has that. Where there is nothing at `from`, or something at `to`, nothing happens.
    PutBack {
        /// Where it lies, if it was renamed.
        #[serde(with = "path")]
        from: PathBuf,
        /// Where it was, on the same file system.
        #[serde(with = "path")]
        to: PathBuf,
    },
    /// Moves, also to another file system (`mv -f`): there by copy, sync, rename and remove.
    Move {
        /// Old name: a file.
        #[serde(with = "path")]
        from: PathBuf,
        /// New name.
        #[serde(with = "path")]
        to: PathBuf,
    },
    /// Removes a file or link, or with `tree` also a directory with all in it; never follows a link.
    Remove {
        /// What goes.
        #[serde(with = "path")]
        path: PathBuf,
        /// Whether a directory goes too.
        tree: bool,
        /// Whether it must have been there.
        must_exist: bool,
    },
    /// Copies a file: reflink where the file system can, else data extents only. Not synced. Leaves a part on failure.
    Copy {
        /// Source; links are followed.
        #[serde(with = "path")]
        from: PathBuf,
        /// New file; an existing one is overwritten.
        #[serde(with = "path")]
        to: PathBuf,
        /// What becomes of holes and zeroes.
        sparse: Sparse,
    },
    /// Turns blocks of zeroes into holes (`fallocate -d`); best effort, a file system that cannot is no failure.
    PunchHoles {
        /// The file.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Makes a file of `bytes` zeroes that occupies nothing (`truncate -s`); fails where it exists.
    CreateSparse {
        /// The file.
        #[serde(with = "path")]
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Writes the script's input stream to a new file, zero blocks as holes: [`Value::Number`] of bytes received. Not synced.
    /// At most one per script, followed by questions, [`Op::Sync`] and [`Op::PunchHoles`] only: a connection that broke
    /// looks like the end of the data, so the sender has to compare the number before it publishes. Leaves a part on
    /// failure.
    Receive {
        /// The file; fails where it exists.
        #[serde(with = "path")]
        path: PathBuf,
        /// What becomes of zeroes.
        sparse: Sparse,
    },
    /// Writes a file's content to the script's output stream. Must be the last operation, and the only one that answers.
    Send {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Writes the size in bytes of a file or block device and a line break, then its content, to the script's output
    /// stream, if a policy allows what `path` leads to. What is judged is the object that was opened. Else like
    /// [`Op::Send`].
    SendAllowed {
        /// The file; links are followed.
        #[serde(with = "path")]
        path: PathBuf,
        /// Where it may lie. [`super::source::HOME`] is the home directory over there.
        policy: PathPolicy,
    },
    /// Carries files between two hosts, one of which may be the one that runs it, see [`super::carry`]. Writes lines to the
    /// script's output stream: `progress <bytes done> <of bytes>` now and then, and at last `report <Report as JSON>`,
    /// also of what failed. Else like [`Op::Send`]. Not without this binary.
    Carry(Carry),
    /// The far end of [`Op::Carry`]: answers frames of the script's input stream, which carries nothing else, on its output
    /// stream, until the input ends. Else like [`Op::Send`]. Not without this binary.
    Attend {
        /// Files that are read, by their numbers.
        #[serde(with = "os_strings")]
        reads: Vec<PathBuf>,
        /// Files that are written, by their numbers, each with a journal beside it.
        #[serde(with = "os_strings")]
        writes: Vec<PathBuf>,
    },
    /// Syncs a file or directory to the disk (`fsync(2)`).
    Sync {
        /// The file or directory.
        #[serde(with = "path")]
        path: PathBuf,
    },
    /// Takes the named lock of [`super::lock`] until the script ends.
    Lock {
        /// Name of the lock, or the lock file of another program as an absolute path.
        name: String,
        /// Seconds to wait for it.
        wait_seconds: u64,
    },
    /// Leaves a command with a process in a session of its own, which runs it when the script ends, however it ends: also
    /// when whoever runs the script is killed or the connection breaks. For what must never stay as the script makes it:
    /// a frozen guest. Up to three tries; the script returns when it is done, and a script that came to its end
    /// fails when the command does. Counts as a lock of the script; takes no secrets.
    Guard {
        /// The command; its output is dropped.
        cmd: Cmd,
        /// Whether it is run only when the script does not come to its end. Then its own failure is ignored.
        only_on_failure: bool,
    },
    /// Gives a finished staging file its final name (see [`super::staging`]): synced, then a hard link, or a rename where
    /// the file system has no links. The names are durable once [`super::staging::retire`] has synced the directories.
    /// Fails where `to` exists.
    Publish {
        /// The staging file. It keeps its name, except where the file system has no links.
        #[serde(with = "path")]
        from: PathBuf,
        /// The final name.
        #[serde(with = "path")]
        to: PathBuf,
    },
    /// Removes what killed runs left in a staging directory, whole directories too; a final name goes with its staging
    /// name if it is the same inode. Best effort: what cannot be removed stays.
    Sweep {
        /// The staging directory.
        #[serde(with = "path")]
        staging: PathBuf,
        /// Names in it whose owner is dead, as [`super::staging::clear`] found. Others are not touched.
        #[serde(with = "os_strings")]
        dead: Vec<OsString>,
    },
    /// Runs an external command; its standard output is the answer: [`Value::Bytes`].
    Run(Cmd),
}

/// What a copy does with zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sparse {
    /// Holes stay holes and blocks of zeroes become holes.
    Holes,
    /// Every block is allocated (`SPARSE=NO`).
    Allocate,
}

/// Most bytes that [`Op::Read`] answers with: 4 MiB.
pub const READ_LIMIT: u64 = 4 << 20;

/// Operations that run on one host in one go, in order, until one fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The operations.
    pub ops: Vec<Op>,
    /// Directories that no path leaves which begins with them, see [`super::fence`].
    #[serde(default, with = "os_strings", skip_serializing_if = "Vec::is_empty")]
    pub fences: Vec<PathBuf>,
}

impl Script {
    /// A script of these operations.
    #[must_use]
    pub fn new(ops: impl IntoIterator<Item = Op>) -> Self {
        Self { ops: ops.into_iter().collect(), fences: Vec::new() }
    }

    /// Whether it has an [`Op::Receive`].
    #[must_use]
    pub fn receives(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Receive { .. }))
    }

    /// Whether it writes to its output stream: [`Op::Send`], [`Op::SendAllowed`], [`Op::Carry`], [`Op::Attend`].
    #[must_use]
    pub fn sends(&self) -> bool {
        let sends = |op: &Op| matches!(op, Op::Send { .. } | Op::SendAllowed { .. } | Op::Carry(_) | Op::Attend { .. });
        self.ops.iter().any(sends)
    }

    /// Whether it reads its input stream and writes its output stream by turns: [`Op::Attend`].
    #[must_use]
    pub fn converses(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Attend { .. }))
    }

    /// Whether it logs in elsewhere by ssh, with the keys of whoever runs it: [`Op::Carry`].
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Carry(_)))
    }
}

impl From<Op> for Script {
    fn from(op: Op) -> Self {
        Self::new([op])
    }
}

/// What an operation does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is a name in a directory: a link there is taken as a link.
    Name,
    /// It leads to something: links are followed.
    Object,
}

impl Op {
    /// The paths of the operation, and what it does with them. Not those that are handed to a program, nor a link's text.
    pub fn places_mut(&mut self) -> Vec<(&mut PathBuf, Role)> {
        match self {
            Self::Stat { path, follow: true }
            | Self::List { path }
            | Self::Read { path, .. }
            | Self::Head { path, .. }
            | Self::Tree { path, .. }
            | Self::Space { path }
            | Self::Md5 { path }
            | Self::Sha256 { path }
            | Self::PunchHoles { path }
            | Self::Send { path }
            | Self::SendAllowed { path, .. }
            | Self::Sync { path }
            | Self::Sweep { staging: path, .. } => vec![(path, Role::Object)],
            Self::Stat { path, follow: false }
            | Self::ReadLink { path }
            | Self::TreeSize { path }
            | Self::MakeDir { path }
            | Self::Claim { path }
            | Self::RemoveDirIfEmpty { path }
            | Self::Symlink { link: path, .. }
            | Self::Write { path, .. }
            | Self::Remove { path, .. }
            | Self::CreateSparse { path, .. }
            | Self::Receive { path, .. } => vec![(path, Role::Name)],
            Self::Copy { from, to, .. } => vec![(from, Role::Object), (to, Role::Name)],
            Self::HardLink { from, to }
            | Self::Rename { from, to }
            | Self::PutBack { from, to }
            | Self::Move { from, to }
            | Self::Publish { from, to } => vec![(from, Role::Name), (to, Role::Name)],
            Self::Replace { from, to, kept } => vec![(from, Role::Name), (to, Role::Name), (kept, Role::Name)],
            Self::Carry(carry) => {
                let (reads, writes) = (carry.source.is_none(), carry.target.is_none());
                let places = carry.files.iter_mut().flat_map(|file| {
                    let from = reads.then_some((&mut file.from, Role::Object));
                    from.into_iter().chain(writes.then_some((&mut file.part, Role::Name)))
                });
                places.collect()
            }
            Self::Attend { reads, writes } => {
                let writes = writes.iter_mut().map(|path| (path, Role::Name));
                reads.iter_mut().map(|path| (path, Role::Object)).chain(writes).collect()
            }
            Self::Lock { .. } | Self::Guard { .. } | Self::Run(_) => Vec::new(),
        }
    }

    /// The same to look at.
    #[must_use]
    pub fn places(&self) -> Vec<(PathBuf, Role)> {
        self.clone().places_mut().into_iter().map(|(path, role)| (path.clone(), role)).collect()
    }

    /// Whether it changes nothing. [`Op::Run`] is taken for a change; questions put to programs go through `Cx::query`.
    #[must_use]
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Self::Stat { .. }
                | Self::ReadLink { .. }
                | Self::List { .. }
                | Self::Read { .. }
                | Self::Head { .. }
                | Self::Tree { .. }
                | Self::Space { .. }
                | Self::TreeSize { .. }
                | Self::Md5 { .. }
                | Self::Sha256 { .. }
        )
    }
}

impl fmt::Display for Op {
    /// The operation in the words of the command that a person would use for it, for `explain` and errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let w = |path: &Path| show_word(path.as_os_str());
        match self {
            Self::Stat { path, .. } => write!(f, "stat {}", w(path)),
            Self::ReadLink { path } => write!(f, "readlink {}", w(path)),
            Self::List { path } => write!(f, "ls {}", w(path)),
            Self::Read { path, offset, len } => {
                write!(f, "read {len} bytes at {offset} of {}", w(path))
            }
            Self::Head { path, len } => write!(f, "head -c {len} {}", w(path)),
            Self::Tree { path, depth } => write!(f, "find {} -maxdepth {depth}", w(path)),
            Self::Space { path } => write!(f, "df {}", w(path)),
            Self::TreeSize { path } => write!(f, "du -sb {}", w(path)),
            Self::Md5 { path } => write!(f, "md5sum {}", w(path)),
            Self::Sha256 { path } => write!(f, "sha256sum {}", w(path)),
            Self::MakeDir { path } => write!(f, "mkdir -p {}", w(path)),
            Self::Claim { path } => {
                let dir = path.parent().unwrap_or(Path::new("/"));
                write!(f, "mkdir -p {}, touch {}", w(dir), w(path))
            }
            Self::RemoveDirIfEmpty { path } => write!(f, "rmdir {} (if empty)", w(path)),
            Self::Symlink { target, link } => write!(f, "ln -sfn {} {}", w(target), w(link)),
            Self::HardLink { from, to } => write!(f, "ln {} {}", w(from), w(to)),
            Self::Write { path, mode, .. } => write!(f, "write {} (mode {mode:04o})", w(path)),
            Self::Rename { from, to } => write!(f, "rename {} {}", w(from), w(to)),
            Self::Replace { from, to, kept } => write!(f, "rename {1} {2}, {0} {1} (at once)", w(from), w(to), w(kept)),
            Self::PutBack { from, to } => write!(f, "rename {} {} (if that was done)", w(from), w(to)),
            Self::Move { from, to } => write!(f, "mv -f {} {}", w(from), w(to)),
            Self::Remove { path, tree, must_exist } => {
                let flags = match (tree, must_exist) {
                    (true, true) => "-r",
                    (true, false) => "-rf",
                    (false, true) => "",
                    (false, false) => "-f",
                };
                let gap = if flags.is_empty() { "" } else { " " };
                write!(f, "rm{gap}{flags} {}", w(path))
            }
            Self::Copy { from, to, sparse } => {
                write!(f, "cp --reflink=auto --sparse={} {} {}", sparse.word(), w(from), w(to))
            }
            Self::PunchHoles { path } => write!(f, "fallocate -d {}", w(path)),
            Self::CreateSparse { path, bytes } => write!(f, "truncate -s {bytes} {}", w(path)),
            Self::Receive { path, sparse } => {
                write!(f, "write the stream to {} (sparse={})", w(path), sparse.word())
            }
            Self::Send { path } => write!(f, "cat {}", w(path)),
            Self::SendAllowed { path, .. } => write!(f, "stat and cat {}, if it is allowed", w(path)),
            Self::Carry(carry) => {
                let at = |host: &Option<String>| host.as_ref().map_or_else(String::new, |host| format!("{host}:"));
                write!(f, "carry")?;
                for Freight { from, part } in &carry.files {
                    write!(f, " {}{} to {}{}", at(&carry.source), w(from), at(&carry.target), w(part))?;
                }
                Ok(())
            }
            Self::Attend { reads, writes } => {
                let names: Vec<String> = reads.iter().chain(writes).map(|path| w(path)).collect();
                write!(f, "serve {}", names.join(" "))
            }
            Self::Sync { path } => write!(f, "fsync {}", w(path)),
            Self::Lock { name, wait_seconds } => write!(f, "flock -w {wait_seconds} {name}"),
            Self::Publish { from, to } => write!(f, "fsync {0}, ln {0} {1}", w(from), w(to)),
            Self::Sweep { staging, dead } => {
                let names: Vec<String> = dead.iter().map(|name| w(&staging.join(name))).collect();
                write!(f, "rm -rf {}, with the final name where it is the same file", names.join(" "))
            }
            Self::Run(cmd) => write!(f, "{cmd}"),
            Self::Guard { cmd, only_on_failure: false } => write!(f, "at the end, whatever happens: {cmd}"),
            Self::Guard { cmd, only_on_failure: true } => write!(f, "should anything fail: {cmd}"),
        }
    }
}

impl Sparse {
    /// The word of `cp --sparse=`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Holes => "always",
            Self::Allocate => "never",
        }
    }
}

/// Serde for byte strings as text of the characters U+0000 to U+00FF: readable for ASCII, exact for everything.
mod latin1 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn to_text(bytes: &[u8]) -> String {
        bytes.iter().map(|b| char::from(*b)).collect()
    }

    pub fn to_bytes(text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
    }

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&to_text(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        to_bytes(&text).ok_or_else(|| serde::de::Error::custom("a character beyond U+00FF"))
    }
}

/// Serde for paths, which are bytes.
pub mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserializer, Serializer};

    /// As text of the characters U+0000 to U+00FF: readable for ASCII, exact for everything.
    pub fn serialize<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
        super::latin1::serialize(path.as_os_str().as_bytes(), s)
    }

    /// As text of the characters U+0000 to U+00FF: readable for ASCII, exact for everything.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
        super::latin1::deserialize(d).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }
}

/// Serde for lists of byte strings.
pub mod os_strings {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use serde::{Deserialize, Deserializer, Serializer};

    /// As text of the characters U+0000 to U+00FF: readable for ASCII, exact for everything.
    pub fn serialize<S: Serializer, T: AsRef<OsStr>>(list: &[T], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(list.iter().map(|one| super::latin1::to_text(one.as_ref().as_bytes())))
    }

    /// As text of the characters U+0000 to U+00FF: readable for ASCII, exact for everything.
    pub fn deserialize<'de, D: Deserializer<'de>, T: From<OsString>>(d: D) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        let bytes = texts.iter().map(|text| super::latin1::to_bytes(text).map(|b| T::from(OsString::from_vec(b))));
        bytes.collect::<Option<_>>().ok_or_else(|| serde::de::Error::custom("a character beyond U+00FF"))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn scripts_survive_the_wire_with_any_bytes() {
        let script = Script::new([
            Op::Remove { path: Path::new(OsStr::from_bytes(b"/a\xff\n'")).to_owned(), tree: true, must_exist: false },
            Op::Run(Cmd::new("mkfs").arg(OsStr::from_bytes(b"\xfe"))),
        ]);
        let json = serde_json::to_string(&script).expect("serialises");
        assert_eq!(serde_json::from_str::<Script>(&json).expect("parses"), script);
    }
}
