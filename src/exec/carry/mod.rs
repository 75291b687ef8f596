//! Files on their way between two hosts on both of which this binary stands: [`Op::Carry`] drives, [`Op::Attend`] is the
//! peer at the far end of an ssh exec.
//!
//! # Layout
//!
//! - [`Carry`], [`Report`]: what a journey is asked for, and what it tells in the end. No I/O.
//! - [`frame`]: what travels, and the digests.
//! - [`store`]: the files of one end.
//! - [`journal`]: which ranges of an unfinished copy are known to be good.
//! - [`peer`]: the far end: a store behind frames.
//! - [`link`]: the near end of a stream to a peer.
//! - [`lane`]: a stream beside ssh, by TLS; [`door`]: where a peer waits for those.
//! - [`drive`]: takes ranges from one end to the other, by several streams.
//!
//! Whoever drives may stand at the source, at the target, or between two peers: what it sees of either end is the
//! same ([`End`]). `docs/transfers.md` says which is chosen, what is compared when, and what stays after a failure.
//!
//! [`Op::Carry`]: super::op::Op::Carry
//! [`Op::Attend`]: super::op::Op::Attend

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::op::Sparse;

pub mod door;
pub mod drive;
pub mod frame;
pub mod journal;
pub mod lane;
pub mod link;
pub mod peer;
pub mod store;

#[cfg(test)]
mod tests;

use frame::{Digest, Packed};
use lane::{Key, Ports};

/// What a host without this binary says to operations of this module.
pub const NOT_HERE: &str = "This version of onestore does not stand there";

/// A file that is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freight {
    /// The original, at the source.
    #[serde(with = "super::op::path")]
    pub from: PathBuf,
    /// Where it is written, at the target: a new file, or what an earlier journey of the same file left.
    #[serde(with = "super::op::path")]
    pub part: PathBuf,
}

impl Freight {
    /// The journal beside [`Freight::part`].
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        journal_of(&self.part)
    }
}

/// The journal beside an unfinished copy. Beside a staging file it is one of the same owner.
#[must_use]
pub fn journal_of(part: &Path) -> PathBuf {
    let mut name = part.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
    let staged = name.ends_with(b".part");
    if staged {
        name.truncate(name.len() - 5);
    }
    name.extend_from_slice(if staged { b".journal.part" } else { b".journal" });
    // Bytes of a name with plain ASCII added are a name.
    part.with_file_name(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(name))
}

/// A journey as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carry {
    /// The host that the files leave; nothing for the one that drives.
    pub source: Option<String>,
    /// The host that they go to; nothing for the one that drives.
    pub target: Option<String>,
    /// Where it is reached instead of at its name.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The files.
    pub files: Vec<Freight>,
    /// What becomes of holes and zeroes.
    pub sparse: Sparse,
    /// How many streams at most; 0 to decide by the link.
    pub streams: u32,
    /// Whether data is compressed; nothing to decide by the link.
    pub zip: Option<bool>,
    /// Bytes a second at most.
    pub rate: Option<u64>,
    /// Ports at which a peer may listen for streams beside ssh; nothing for ssh alone.
    #[serde(default)]
    pub ports: Option<Ports>,
}

/// What became of a journey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// All files are complete at the target, synced and compared.
    Done(Vec<Arrived>),
    /// It failed.
    Failed {
        /// How.
        why: Why,
        /// In one line, without trailing stop.
        text: String,
    },
}

/// A file that arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Bytes.
    pub size: u64,
    /// Digest of the whole, the same at both ends: [`frame::whole`] in hexadecimal.
    pub digest: String,
    /// Bytes of data that it holds.
    pub data: u64,
    /// Bytes of these that an earlier journey had brought.
    pub resumed: u64,
    /// Bytes that were sent, compressed.
    pub sent: u64,
}

/// How a journey failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Why {
    /// A peer cannot be reached by ssh: nothing was touched there.
    Unreachable = 1,
    /// A peer has another version of this binary, or none: nothing was touched there.
    NotThere,
    /// The connection broke, or it was cancelled: what was written is good for another try.
    Lost,
    /// The target has no space.
    NoSpace,
    /// The source was written to.
    Changed,
    /// What was written is not what was sent.
    Differs,
    /// Anything else.
    Other,
}

impl Why {
    fn of(byte: u8) -> Self {
        use Why::{Changed, Differs, Lost, NoSpace, NotThere, Unreachable};
        let known = [Unreachable, NotThere, Lost, NoSpace, Changed, Differs];
        known.into_iter().find(|why| *why as u8 == byte).unwrap_or(Self::Other)
    }
}

/// A failure of one end, with its reason.
#[derive(Debug)]
pub struct Failure {
    /// How.
    pub why: Why,
    /// In one line.
    pub text: String,
}

impl Failure {
    /// A failure.
    #[must_use]
    pub fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }

    /// What the system answered about `path`.
    #[must_use]
    pub fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let why = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Why::NoSpace,
            io::ErrorKind::UnexpectedEof => Why::Changed,
            _ if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<super::control::Stopped>) => {
                Why::Lost
            }
            _ => Why::Other,
        };
        Self::new(why, format!("Cannot {doing} {}: {}", path.display(), in_words(error)))
    }
}

/// An error without the system's number of it.
fn in_words(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Which state of which file is copied: another one is another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Size in bytes.
    pub size: u64,
    /// Inode number.
    pub ino: u64,
    /// When its content was last written, in nanoseconds since 1970.
    pub mtime: i128,
    /// When anything of it was last changed, its times and names among it, in nanoseconds since 1970: nobody can set it.
    pub ctime: i128,
    /// Who may read, write and run it (`0777`): the copy is for nobody else.
    pub mode: u32,
}

/// Bytes of an [`Identity`] on its way.
const IDENTITY: usize = 52;

impl Identity {
    fn to_bytes(self) -> Vec<u8> {
        let Self { size, ino, mtime, ctime, mode } = self;
        let [size, ino] = [size, ino].map(u64::to_le_bytes);
        let [mtime, ctime] = [mtime, ctime].map(i128::to_le_bytes);
        [&size[..], &ino, &mtime, &ctime, &mode.to_le_bytes()].concat()
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; IDENTITY] = bytes.try_into().ok()?;
        let (size, rest) = bytes.split_first_chunk::<8>()?;
        let (ino, rest) = rest.split_first_chunk::<8>()?;
        let (mtime, rest) = rest.split_first_chunk::<16>()?;
        let (ctime, rest) = rest.split_first_chunk::<16>()?;
        let mode: &[u8; 4] = rest.try_into().ok()?;
        Some(Self {
            size: u64::from_le_bytes(*size),
            ino: u64::from_le_bytes(*ino),
            mtime: i128::from_le_bytes(*mtime),
            ctime: i128::from_le_bytes(*ctime),
            mode: u32::from_le_bytes(*mode) & 0o777,
        })
    }

    /// Whether the content is the same, whatever became of names and modes.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        (self.size, self.ino, self.mtime) == (other.size, other.ino, other.mtime)
    }

    /// Number of ranges.
    fn ranges(&self) -> u64 {
        self.size.div_ceil(frame::RANGE as u64)
    }

    /// Bytes of range `at`.
    fn len_of(&self, at: u64) -> usize {
        let start = at.saturating_mul(frame::RANGE as u64);
        usize::try_from(self.size.saturating_sub(start)).unwrap_or(usize::MAX).min(frame::RANGE)
    }
}

/// What a target is to make, in front of the first range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The source.
    pub identity: Identity,
    /// Whether every block is allocated.
    pub allocate: bool,
    /// Whether this is the first stream, which makes the file; the others find it.
    pub first: bool,
}

impl Begin {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.identity.to_bytes();
        bytes.extend([u8::from(self.allocate), u8::from(self.first)]);
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (identity, flags) = bytes.split_at_checked(IDENTITY)?;
        let identity = Identity::of_bytes(identity)?;
        // What a file can be: more is no size.
        i64::try_from(identity.size).ok()?;
        match flags {
            [a @ 0..=1, f @ 0..=1] => Some(Self { identity, allocate: *a == 1, first: *f == 1 }),
            _ => None,
        }
    }
}

/// First range and number of ranges.
pub type Span = (u64, u64);

/// What an earlier journey of this source has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// These ranges.
    pub spans: Vec<Span>,
    /// Whether they were read back since the target was last booted, and neither the copy nor the source was touched since:
    /// then the digests of that time count, and neither end reads them again.
    pub sure: bool,
}

/// One end of a journey, for one stream: the files here, or those of a peer.
pub trait End {
    /// Which state of file `file` is there.
    fn stat(&mut self, file: u16) -> Result<Identity, Failure>;

    /// The ranges that hold data.
    fn map(&mut self, file: u16) -> Result<Vec<Span>, Failure>;

    /// Says that these ranges will be taken next, in this order.
    fn ask(&mut self, file: u16, ranges: &[u64]) -> Result<(), Failure>;

    /// The next of the ranges that were asked for, into `packed`.
    fn take(&mut self, file: u16, at: u64, packed: &mut Packed) -> Result<(), Failure>;

    /// Makes or finds the file to write to; answers the ranges that an earlier journey has brought.
    fn begin(&mut self, file: u16, begin: Begin) -> Result<Known, Failure>;

    /// Writes a range and compares what is there then; tells the bytes sent.
    fn put(&mut self, file: u16, at: u64, packed: &Packed, zip: bool) -> Result<usize, Failure>;

    /// Asks for the digests of `count` ranges; [`End::told`] answers.
    fn tell(&mut self, file: u16, at: u64, count: u32) -> Result<(), Failure>;

    /// The digests that were asked for last.
    fn told(&mut self, file: u16, at: u64, count: u32) -> Result<Vec<Digest>, Failure>;

    /// Syncs what was put, and answers when it is on the disk.
    fn sync(&mut self) -> Result<(), Failure>;

    /// A round trip and back.
    fn ping(&mut self) -> Result<(), Failure>;

    /// Has a peer listen for streams beside this one; the port, or why there is none.
    fn listen(&mut self, _ports: Ports, _key: &Key) -> Result<Result<u16, String>, Failure> {
        Ok(Err("This machine needs no port".to_owned()))
    }

    /// Whether so much went through it that another stream has to go on.
    fn is_worn(&self) -> bool {
        false
    }
}
