//! An empty disk, with a file system or a swap area on it if asked for: `mkfs` of a datastore, `mkimage` and `mkswap` of a
//! transfer manager.
//!
//! Source: contract 02 §2.3.

use std::path::Path;

use anyhow::{Result, bail};

use crate::context::Cx;
use crate::exec::op::Op;
use crate::report::Misuse;
use crate::tool::mkfs as tool;
use crate::tool::qemu_img::{self, Zeroes};

/// Largest size that is taken for meant, in MiB: 8 EiB is what a file offset can say.
const MOST_MIB: u64 = (1 << 43) - 1;

/// What the disk is to be.
pub struct Blank<'a> {
    mib: u64,
    fs: Option<&'a str>,
    /// Anything but qcow2 is made as raw.
    qcow2: bool,
    swap: bool,
}

impl<'a> Blank<'a> {
    /// A disk of this format (`raw`, `qcow2`, `swap`), file system and size in MiB.
    ///
    /// # Errors
    /// No size, or one that no file can have; a file system that the operator does not allow (`SUPPORTED_FS`).
    pub fn of(cx: &Cx<'_>, format: &str, fs: Option<&'a str>, mib: Option<u64>, failure: &str) -> Result<Self> {
        let mib = match mib {
            Some(mib) if mib <= MOST_MIB => mib,
            Some(mib) => bail!(Misuse(format!("{failure}: a size of {mib} MiB is out of range"))),
            None => bail!(Misuse(format!("{failure}: IMAGE/SIZE is missing"))),
        };
        let supported = cx.settings.supported_fs();
        if let Some(fs) = fs.filter(|fs| !supported.contains(fs)) {
            bail!("Unsupported file system type: {fs}. Supported types are: {}", supported.join(","));
        }
        Ok(Self { mib, fs, qcow2: format == "qcow2", swap: format == "swap" })
    }

    /// Whether it is made as raw and converted: file systems are made on raw files.
    pub fn is_converted(&self) -> bool {
        self.qcow2 && self.fs.is_some()
    }

    /// What makes it at `path`, as raw where it is converted afterwards.
    pub fn make(&self, cx: &Cx<'_>, path: &Path) -> Vec<Op> {
        let path = path.to_owned();
        let mut ops = match (self.fs, self.qcow2) {
            (Some(fs), _) => {
                let make = tool::mkfs(fs, &cx.settings.fs_options(fs), &path);
                vec![Op::CreateSparse { path: path.clone(), bytes: self.mib << 20 }, Op::Run(make)]
            }
            (None, true) => vec![Op::Run(qemu_img::create("qcow2", &path, self.mib))],
            (None, false) => vec![Op::CreateSparse { path: path.clone(), bytes: self.mib << 20 }],
        };
        if self.swap {
            ops.push(Op::Run(tool::mkswap(&path)));
        }
        ops
    }

    /// What converts a raw one into qcow2, and removes it.
    pub fn convert(raw: &Path, to: &Path) -> [Op; 2] {
        [
            Op::Run(qemu_img::convert((raw, "raw"), (to, "qcow2"), Zeroes::Holes, None)),
            Op::Remove { path: raw.to_owned(), tree: false, must_exist: true },
        ]
    }

    /// What is done, as a sentence.
    pub fn sentence(&self) -> String {
        match self.fs {
            Some(fs) => format!("Create an image of {} MiB with an {fs} file system", self.mib),
            None => format!("Create an empty image of {} MiB", self.mib),
        }
    }
}
