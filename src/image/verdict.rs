//! What the inspector finds in a header, and what follows from it.

use std::fmt;
use std::io;

use serde::Serialize;

use super::source::Miss;

/// Format of an image, named as `qemu-img info` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No header: the bytes are the disk.
    Raw,
    /// qcow2, version 2 and 3.
    Qcow2,
    /// qcow, version 1.
    Qcow,
    /// QED.
    Qed,
    /// VMDK.
    Vmdk,
    /// VHD ("Virtual PC").
    Vpc,
    /// VHDX.
    Vhdx,
    /// VDI.
    Vdi,
    /// LUKS, version 1 and 2. (`qemu-img` knows only version 1 and calls the other raw.)
    Luks,
    /// Parallels.
    Parallels,
    /// Bochs.
    Bochs,
    /// Compressed loop.
    Cloop,
}

impl Format {
    /// The name, as `qemu-img -f` wants it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Luks => "luks",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a raw image holds, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Contents {
    /// A DOS partition table.
    Mbr,
    /// A GUID partition table.
    Gpt,
    /// An ISO 9660 file system; hybrid images have a partition table too.
    Iso9660,
    /// A tar archive, not a disk.
    Tar,
    /// A zip archive, not a disk.
    Zip,
}

/// What kind of outside thing an image refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefKind {
    /// The image that this one is an overlay of.
    BackingFile,
    /// A file that holds the data of this one.
    DataFile,
    /// A file that holds a part of the data.
    Extent,
    /// The image that this one is a difference to.
    Parent,
}

/// Something outside the image that a program opening it would open too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reference {
    /// What it is to the image.
    pub kind: RefKind,
    /// Its name as written in the header, in qemu's language of file names. Empty where the header gives none.
    pub name: String,
    /// The format that the header declares for it.
    pub format: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RefKind::BackingFile => "backing file",
            RefKind::DataFile => "external data file",
            RefKind::Extent => "extent",
            RefKind::Parent => "parent",
        };
        write!(f, "{kind} '{}'", self.name.escape_debug())
    }
}

/// One thing that makes an image unsafe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", content = "detail", rename_all = "kebab-case")]
pub enum Reason {
    /// It refers to something outside itself.
    Reference(Reference),
    /// It needs features that this reader does not know: numbers of the bits.
    UnknownFeatures(Vec<u32>),
    /// It is encrypted inside its container: the method. (LUKS itself is a format, not a reason.)
    Encrypted(String),
    /// It has this many internal snapshots, whose content the virtual size does not show.
    Snapshots(u32),
    /// The fields of its header contradict each other, the format, or the length of the file.
    Inconsistent(String),
    /// It is a kind of image that is not accepted, whatever it holds.
    Refused(String),
    /// It ends inside its own header; bytes that the header needs.
    Truncated(u64),
    /// Its header goes past the bytes at hand; bytes that are needed. Inspect again with more of them.
    /// `u64::MAX` where it goes on at the end of an image of unknown length.
    Incomplete(u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => write!(f, "it refers to the {reference}"),
            Self::UnknownFeatures(bits) => {
                f.write_str("it needs unknown features (bits")?;
                bits.iter().try_for_each(|bit| write!(f, " {bit}"))?;
                f.write_str(")")
            }
            Self::Encrypted(method) => write!(f, "it is encrypted ({method})"),
            Self::Snapshots(1) => f.write_str("it has an internal snapshot"),
            Self::Snapshots(n) => write!(f, "it has {n} internal snapshots"),
            Self::Inconsistent(what) | Self::Refused(what) => f.write_str(what),
            Self::Truncated(needs) => write!(f, "it ends inside its header, which needs {needs} bytes"),
            Self::Incomplete(u64::MAX) => f.write_str("its header goes on at its end, which was not at hand"),
            Self::Incomplete(needs) => write!(f, "its header needs {needs} bytes, more than were at hand"),
        }
    }
}

/// Whether a program may open an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may, with the format stated.
    Safe,
    /// It may not, for these reasons.
    Unsafe(Vec<Reason>),
}

impl Verdict {
    /// Whether it is [`Verdict::Safe`].
    #[must_use]
    pub fn is_safe(&self) -> bool {
        *self == Self::Safe
    }

    /// The reasons; none for a safe image.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Safe => &[],
            Self::Unsafe(reasons) => reasons,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safe => f.write_str("safe"),
            Self::Unsafe(reasons) => {
                f.write_str("unsafe because ")?;
                for (n, reason) in reasons.iter().enumerate() {
                    if n > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{reason}")?;
                }
                Ok(())
            }
        }
    }
}

/// Everything that a header tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// The format.
    pub format: Format,
    /// The version or kind within the format: `3`, `streamOptimized`, `fixed` …
    pub variant: Option<String>,
    /// Size of the disk in bytes. Unknown for a raw image whose length is not known.
    pub virtual_size: Option<u64>,
    /// Unit of allocation in bytes.
    pub cluster_size: Option<u64>,
    /// Method of encryption.
    pub encryption: Option<String>,
    /// Where the encrypted payload begins, in bytes (LUKS).
    pub payload_offset: Option<u64>,
    /// Method of compression of clusters, where the header names one.
    pub compression: Option<String>,
    /// Names of the features and extensions in use.
    pub features: Vec<String>,
    /// Features and extensions in use that this reader does not know: `incompatible-40`, `extension-0x12345678`. Only
    /// those that a reader must know make an image unsafe.
    pub unknown_features: Vec<String>,
    /// Outside things the image refers to.
    pub references: Vec<Reference>,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Number of persistent bitmaps.
    pub bitmaps: u32,
    /// What a raw image holds.
    pub contents: Vec<Contents>,
    /// How many first bytes of the image a full answer needs, where the part at hand was too short.
    pub needs: Option<u64>,
    /// What follows.
    pub verdict: Verdict,
}

/// What a reader that does not know a feature bit may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FeatureKind {
    /// Nothing.
    Incompatible,
    /// Everything.
    Compatible,
    /// Everything, if it clears the bit when it writes.
    Autoclear,
}

impl FeatureKind {
    fn name(self) -> &'static str {
        match self {
            Self::Incompatible => "incompatible",
            Self::Compatible => "compatible",
            Self::Autoclear => "autoclear",
        }
    }
}

/// An inspection in the making.
pub(super) struct Findings {
    pub(super) seen: Inspection,
    reasons: Vec<Reason>,
}

impl Findings {
    pub(super) fn new(format: Format) -> Self {
        let seen = Inspection {
            format,
            variant: None,
            virtual_size: None,
            cluster_size: None,
            encryption: None,
            payload_offset: None,
            compression: None,
            features: Vec::new(),
            unknown_features: Vec::new(),
            references: Vec::new(),
            snapshots: 0,
            bitmaps: 0,
            contents: Vec::new(),
            needs: None,
            verdict: Verdict::Safe,
        };
        Self { seen, reasons: Vec::new() }
    }

    pub(super) fn refer(&mut self, kind: RefKind, name: &str, format: Option<String>) {
        let reference = Reference { kind, name: name.to_owned(), format };
        self.reason(Reason::Reference(reference.clone()));
        self.seen.references.push(reference);
    }

    /// Gives the reference that was noted last its name.
    pub(super) fn name_last(&mut self, name: &str) {
        if let Some(reference) = self.seen.references.last_mut() {
            let old = Reason::Reference(reference.clone());
            name.clone_into(&mut reference.name);
            let new = Reason::Reference(reference.clone());
            self.reasons.iter_mut().filter(|reason| **reason == old).for_each(|reason| *reason = new.clone());
        }
    }

    pub(super) fn inconsistent(&mut self, what: impl Into<String>) {
        self.reason(Reason::Inconsistent(what.into()));
    }

    pub(super) fn refuse(&mut self, what: impl Into<String>) {
        self.reason(Reason::Refused(what.into()));
    }

    pub(super) fn feature(&mut self, name: impl Into<String>) {
        self.seen.features.push(name.into());
    }

    /// Notes the bits of `set` that are not in `known`; those that a reader must know make the image unsafe.
    pub(super) fn unknown(&mut self, kind: FeatureKind, set: u64, known: u64) {
        let bits: Vec<u32> = (0..64).filter(|bit| (set & !known) >> bit & 1 == 1).collect();
        self.seen.unknown_features.extend(bits.iter().map(|bit| format!("{}-{bit}", kind.name())));
        if !bits.is_empty() && kind == FeatureKind::Incompatible {
            self.reason(Reason::UnknownFeatures(bits));
        }
    }

    pub(super) fn reason(&mut self, reason: Reason) {
        // A header with thousands of extents must not make the answer as long.
        if self.reasons.len() < 64 && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// Takes note of a part of the header that is missing.
    pub(super) fn miss(&mut self, miss: Miss) -> io::Result<()> {
        match miss {
            Miss::Io(error) => return Err(error),
            Miss::End(needs) => self.reason(Reason::Truncated(needs)),
            Miss::NotHere(needs) => {
                self.seen.needs = Some(needs.max(self.seen.needs.unwrap_or(0)));
                self.reason(Reason::Incomplete(needs));
            }
            Miss::Budget => self.inconsistent("its header is larger than any honest one"),
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Inspection {
        if !self.reasons.is_empty() {
            self.seen.verdict = Verdict::Unsafe(self.reasons);
        }
        self.seen
    }
}
