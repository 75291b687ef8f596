//! `clone` and `clone.ssh`: a VM's own copy of an image: an overlay, a standalone file, or a copy of a raw image.
//!
//! Source: contract 02 §5, §6. What is on the host's image datastore decides; it is looked at, and the copy made, in one
//! round trip each.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::mounts::{self, Mounts};
use crate::context::Cx;
use crate::driver::common::args::VmPlace;
use crate::driver::common::disk::{Target, record};
use crate::driver::common::layers::{Layer, data_format};
use crate::driver::common::monitored;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{Op, Sparse};
use crate::payload::Disk as Record;
use crate::report::Misuse;
use crate::tool::qemu_img::{self, CreateOptions, Growth, Zeroes};

/// What of the cloud the copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The system datastore is shared: overlays may stand on the image.
    Shared,
    /// Mixed mode: the VM's directory is on the host's own disk.
    Host,
}

/// `clone`.
pub fn clone(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Layout::Shared)
}

/// `clone.ssh`.
pub fn clone_ssh(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Layout::Host)
}

/// How the copy is made.
enum Plan {
    /// An empty layer on the image.
    Overlay { on: Layer, bytes: u64 },
    /// All data in a qcow2 file of its own.
    Standalone { from: Layer },
    /// The same bytes.
    Copy { format: &'static str },
}

fn run(cx: &Cx<'_>, request: &TmRequest, layout: Layout) -> Result<Reply> {
    // What is read.
    let (id, datastore) = (request.number(2, "VM_ID")?, request.number(3, "DS_ID")?);
    let to = request.place(cx, 1, id)?;
    let files = to.image(&request.path(0)?)?;
    let failure = match layout {
        Layout::Shared => format!("Error copying {} to {}", request.text(0), to.text),
        Layout::Host => format!("Error copying {} TO {}", request.text(0), to.path().display()),
    };
    let vm = if to.is_disk() { Some(cx.oned().vm(id).with_context(|| failure.clone())?) } else { None };
    // A kernel or ramdisk has no record.
    let number = if to.is_disk() { Some(to.clone().disk()?.number) } else { None };
    let disk = match (&vm, number) {
        (Some(vm), Some(number)) => Some(record(vm, id, number).with_context(|| failure.clone())?),
        _ => None,
    };
    let wanted = Wanted::read(disk, &failure)?;
    let options = CreateOptions::parse(cx.settings.get("QCOW2_OPTIONS").unwrap_or_default());
    let options = options.with_context(|| failure.clone())?;
    let system = if layout == Layout::Shared { Some(to.datastore) } else { None };
    let mounts = Mounts::wanted(cx, &to, datastore, system)?;
    Target::lock(cx, &to)?;
    let looked = mounts::look(cx, &mounts, &to, files).with_context(|| failure.clone())?;
    let (target, image) = (&looked.target, &looked.image);

    // What is decided.
    let plan = if wanted.format == Some("qcow2") {
        let current = looked.current(cx, &to, &wanted).with_context(|| failure.clone())?;
        let virtual_size = current.virtual_size.with_context(|| format!("{failure}: its size is unknown"))?;
        wanted.check(virtual_size, &failure)?;
        if wanted.standalone || layout == Layout::Host {
            Plan::Standalone { from: current }
        } else {
            Plan::Overlay { on: current, bytes: virtual_size }
        }
    } else {
        let stat =
            if looked.is_planned { None } else { Some(image.must_exist(&to.host).with_context(|| failure.clone())?) };
        if let (Some(stat), None | Some("raw")) = (stat, wanted.format) {
            wanted.check(stat.size, &failure)?;
        }
        Plan::Copy { format: qemu_img::written(wanted.format) }
    };

    // What is done.
    cx.info(format!("Cloning {} in {}", image.files.image.display(), to.text));
    let (what, mut ops) = match &plan {
        Plan::Overlay { on, bytes } => overlay(target, &wanted, on, *bytes, &options),
        Plan::Standalone { from } => standalone(target, &wanted, from),
        Plan::Copy { format } => copy(target, &wanted, &image.files.image, format),
    };
    ops.extend(monitoring(&to, layout, looked.monitor.as_deref()));
    cx.apply(target.step(what, ops).or_say(&failure))?;
    Ok(Reply::Nothing)
}

/// What oned wants of the disk.
pub struct Wanted<'r> {
    /// Its format in oned's words; nothing for a kernel.
    pub format: Option<&'r str>,
    /// Size of the image as oned knows it, in bytes.
    pub original: Option<u64>,
    /// MiB to enlarge it to, where that is more than the image has.
    grow: Option<u64>,
    standalone: bool,
    sparse: Sparse,
}

impl<'r> Wanted<'r> {
    fn read(disk: Option<&'r Record>, failure: &str) -> Result<Self> {
        let Some(disk) = disk else {
            return Ok(Self { format: None, original: None, grow: None, standalone: false, sparse: Sparse::Holes });
        };
        let size = disk.size.get().map_err(misuse)?;
        let original = disk.original_size.get().map_err(misuse)?;
        let format = disk.format.trimmed();
        if format.is_none() {
            // With an answer that lost it, upstream copies a qcow2 image as if it were raw.
            bail!(Misuse(format!("{failure}: oned does not say the disk's FORMAT")));
        }
        Ok(Self {
            format,
            original: original.map(|mib| mib << 20),
            grow: size.zip(original).filter(|(size, original)| size > original).map(|(size, _)| size),
            standalone: disk.qcow2_standalone.is_yes(),
            sparse: if disk.sparse.is_no() { Sparse::Allocate } else { Sparse::Holes },
        })
    }

    /// Refuses to make the disk smaller than the image.
    fn check(&self, bytes: u64, failure: &str) -> Result<()> {
        match self.grow {
            Some(mib) if mib.saturating_mul(1 << 20) < bytes => {
                bail!("{failure}: the image has {} MiB, more than the {mib} MiB of the disk", bytes.div_ceil(1 << 20))
            }
            _ => Ok(()),
        }
    }

    fn growth(&self) -> Growth {
        if self.sparse == Sparse::Allocate { Growth::Allocate } else { Growth::Sparse }
    }

    fn resize(&self, path: &Path, format: &str) -> Option<Op> {
        self.grow.map(|mib| Op::Run(qemu_img::resize(path, format, mib, self.growth())))
    }
}

fn overlay(target: &Target, wanted: &Wanted<'_>, on: &Layer, bytes: u64, options: &CreateOptions) -> (String, Vec<Op>) {
    let layer = target.staged_layers().join("0");
    let (bytes, resize) = match wanted.grow {
        // One command less.
        Some(mib) if wanted.sparse == Sparse::Holes => (mib << 20, None),
        _ => (bytes, wanted.resize(&layer, "qcow2")),
    };
    let create = qemu_img::create_overlay_with(&layer, &on.path, data_format(on.format), bytes, options);
    let mut ops = begin_layers(target);
    ops.push(Op::Run(create));
    ops.extend(resize);
    ops.push(Op::Sync { path: layer });
    ops.extend(target.put_layers(0));
    (format!("Make an empty layer on {}", on.path.display()), ops)
}

fn standalone(target: &Target, wanted: &Wanted<'_>, from: &Layer) -> (String, Vec<Op>) {
    let layer = target.staged_layers().join("0");
    let zeroes = if wanted.sparse == Sparse::Holes { Zeroes::Holes } else { Zeroes::Allocate };
    let largest = from.virtual_size.map(qemu_img::largest);
    let convert = qemu_img::convert((&from.path, from.format.name()), (&layer, "qcow2"), zeroes, largest);
    let mut ops = begin_layers(target);
    ops.push(Op::Run(convert));
    ops.extend(wanted.resize(&layer, "qcow2"));
    ops.push(Op::Sync { path: layer });
    ops.extend(target.put_layers(0));
    (format!("Copy {} into a qcow2 file that stands alone", from.path.display()), ops)
}

fn copy(target: &Target, wanted: &Wanted<'_>, from: &Path, format: &str) -> (String, Vec<Op>) {
    let staged = target.staged_file();
    let mut ops = vec![Op::Copy { from: from.to_owned(), to: staged.clone(), sparse: wanted.sparse }];
    ops.extend(wanted.resize(&staged, format));
    ops.extend(target.put_file());
    (format!("Copy {}, sharing its blocks where the file system can", from.display()), ops)
}

/// A new directory of layers with the link to itself: the layers name each other as the disk beside the directory would.
pub fn begin_layers(target: &Target) -> Vec<Op> {
    let staged = target.staged_layers();
    let name = target.snapshots().file_name().map(ToOwned::to_owned).unwrap_or_default();
    vec![Op::MakeDir { path: staged.clone() }, Op::Symlink { target: ".".into(), link: staged.join(name) }]
}

/// Whether the host tells the sizes of the VM's disks by itself: only where the system datastore is its own.
pub fn monitoring(to: &VmPlace, layout: Layout, now: Option<&[u8]>) -> Option<Op> {
    let remove = || Op::Remove { path: to.datastore_dir().join(".monitor"), tree: false, must_exist: false };
    match layout {
        Layout::Shared => now.map(|_| remove()),
        Layout::Host => monitored::by_host(&to.datastore_dir(), now),
    }
}
