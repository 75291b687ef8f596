//! What was seen of one disk: the input of the model.
//!
//! Everything here comes from one listing, from links, sizes and headers; whoever has a host to ask fills it in. Nothing
//! is concluded yet.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::super::{Format, Inspection, Reason, RefKind};

/// Device and inode number: whether two names are one file.
pub type Inode = (u64, u64);

/// The names of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What the VM opens: `S/disk.N`.
    pub disk: PathBuf,
    /// What the folder of snapshots stands beside: the disk itself, or the persistent image that the VM uses in place.
    pub origin: PathBuf,
}

impl Names {
    /// A disk whose snapshots stand beside it: every disk but a persistent one that is used in place.
    #[must_use]
    pub fn own(disk: PathBuf) -> Self {
        Self { origin: disk.clone(), disk }
    }

    /// The folder of the layers: `<origin>.snap`.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        crate::location::with_suffix(&self.origin, ".snap")
    }
}

/// How snapshots of a disk are kept, where nothing on the disk tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As layers of a chain, named in this manner.
    Layers(Manner),
    /// As full copies: raw disks, and every disk of the `ssh` transfer manager.
    Copies,
}

/// How a layer names a sibling as its backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// `disk.N.snap/1`, by way of the link `disk.N.snap -> .` (`qcow2`, `shared`, mixed mode).
    Relative,
    /// `/…/<hash>.snap/1` (persistent images used in place).
    Absolute,
    /// `1` (`local`).
    Bare,
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The names.
    pub names: Names,
    /// How snapshots are to be kept where nothing on the disk tells.
    pub style: Style,
    /// What is at [`Names::disk`].
    pub disk: Entry,
    /// What is at [`Names::origin`]; the same as `disk` where the names are the same.
    pub origin: Entry,
    /// What is in the folder of layers; `None` where there is no folder.
    pub folder: Option<BTreeMap<OsString, Entry>>,
    /// Other disks of the VM that are links: their names and the texts of the links.
    pub others: Vec<(PathBuf, PathBuf)>,
    /// Files outside of the disk that were looked at: `None` for one that is missing.
    pub outside: BTreeMap<PathBuf, Option<Inode>>,
}

/// What is at a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub kind: Kind,
    /// The file, links followed.
    pub inode: Option<Inode>,
    /// What the header of the file says, links followed; for images.
    pub header: Option<Header>,
    /// Content of a small text file (`k.current`).
    pub text: Option<Vec<u8>>,
}

/// Kind of an [`Entry`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// There is nothing.
    #[default]
    Absent,
    /// A regular file.
    File,
    /// A symbolic link with this text.
    Link(PathBuf),
    /// A directory.
    Folder,
    /// Anything else.
    Other,
}

/// What matters here of an image's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format.
    pub format: Format,
    /// Bytes that a guest sees.
    pub virtual_size: Option<u64>,
    /// The backing file.
    pub backing: Option<Backing>,
    /// Whether nothing was ever written to it; `None` where nobody looked.
    pub blank: Option<bool>,
    /// Why no program may open it, if so. A backing file is no such reason, nor are internal snapshots.
    pub fault: Option<String>,
}

/// A backing file as it is written in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, to the letter.
    pub name: String,
    /// The format declared for it.
    pub format: Option<String>,
}

impl Header {
    /// A raw file of `size` bytes, whatever its bytes look like: a guest can write any header into its raw disk.
    #[must_use]
    pub fn raw(size: Option<u64>) -> Self {
        Self { format: Format::Raw, virtual_size: size, backing: None, blank: None, fault: None }
    }
}

impl From<&Inspection> for Header {
    fn from(seen: &Inspection) -> Self {
        let is_backing = |reason: &Reason| matches!(reason, Reason::Reference(r) if r.kind == RefKind::BackingFile);
        let taken = |reason: &&Reason| is_backing(reason) || matches!(reason, Reason::Snapshots(_));
        let backing = seen.references.iter().find(|r| r.kind == RefKind::BackingFile);
        // A trailer makes no other format of the same first bytes: QEMU takes such a file for raw.
        let fixed = seen.format == Format::Vpc && seen.variant.as_deref() == Some("fixed");
        Self {
            format: if fixed { Format::Raw } else { seen.format },
            virtual_size: seen.virtual_size,
            backing: backing.map(|r| Backing { name: r.name.clone(), format: r.format.clone() }),
            blank: None,
            fault: seen.verdict.reasons().iter().find(|r| !taken(r)).map(ToString::to_string),
        }
    }
}
