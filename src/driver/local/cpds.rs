//! `cpds`: a disk, or a snapshot of it, is saved as an image.
//!
//! Source: contract 02 §8. What stands on other layers is made one file on the host first; what arrives is compared, and
//! gets its name in the datastore when it is complete and on the disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::chains::{self, Query};
use crate::context::Cx;
use crate::driver::common::args::{Disk, lock_of, registered};
use crate::driver::common::backing::judged;
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::common::live::Live;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Sparse};
use crate::exec::step::Step;
use crate::image::chain::{Chain, Manner, Names, Style};
use crate::location::ImageFiles;
use crate::payload::Vm;
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Zeroes};

/// `LCM_STATE` of a VM whose disk is saved while it runs.
const HOTPLUG_SAVEAS: u32 = 26;

/// Seconds that a script waits on the host for another one that changes the same disk.
const LOCK_WAIT: u64 = 600;

/// See the module.
pub fn cpds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(3, "VM_ID")?;
    let _: u32 = request.number(4, "DS_ID")?;
    let snapshot: i64 = request.number(2, "SNAPSHOT_ID")?;
    let snapshot = match snapshot {
        -1 => None,
        id => Some(u32::try_from(id).map_err(|_| Misuse(format!("SNAPSHOT_ID is no snapshot: {id}")))?),
    };
    let disk = request.disk(cx, 0, id)?;
    let to = request.holder(cx, 1)?;
    let files = registered(&request.path(1)?)?;
    let failure = format!("Error copying {} to {}", disk.place.text, files.image.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let wanted = record(&vm, id, disk.number).with_context(|| failure.clone())?;
    let raw = wanted.format.trimmed() != Some("qcow2");
    let running = vm.lcm_state.get().map_err(misuse)? == Some(HOTPLUG_SAVEAS);
    if running {
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or_default();
        if hypervisor != "kvm" {
            bail!("cpds: Live operation not supported on {hypervisor}");
        }
    }
    let image = Image::ask(cx, to, files, failure)?;
    let host = &disk.place.host;
    let home = Folder::question(&disk.place.dir);
    let home = Folder::of(host, &disk.place.dir, &cx.ask(host, home).with_context(|| image.failure.clone())?)?;
    let export = home.staging(format!("{}.export", disk.name()));

    // What is decided and done.
    if running && snapshot.is_none() {
        let target = wanted.target.trimmed().with_context(|| format!("{}: it has no TARGET in oned", image.failure))?;
        export_live(cx, &disk, &vm, target, (&home, &export), raw)?;
        image.take(cx, &disk, &export)?;
        return image.end(cx, &home, &export);
    }
    Target::lock(cx, &disk.place)?;
    let source = source(cx, &disk, snapshot, raw).with_context(|| image.failure.clone())?;
    cx.info(format!("Moving {} to datastore as {}", source.path.display(), image.files.image.display()));
    if !source.layered {
        image.take(cx, &disk, &source.path)?;
        return image.publish(cx);
    }
    let largest = source.virtual_size.map(qemu_img::largest);
    let convert = qemu_img::convert((&source.path, source.format), (&export, "qcow2"), Zeroes::Holes, largest);
    let mut ops = vec![Op::Lock { name: lock_of(id, &disk.name()), wait_seconds: LOCK_WAIT }];
    ops.extend(home.prepare());
    ops.extend([Op::Run(convert), Op::Sync { path: export.clone() }]);
    let what = format!("Merge the layers of {} into one file", source.path.display());
    cx.apply(home.staging_step(what, &export, ops).or_say(&image.failure))?;
    image.take(cx, &disk, &export)?;
    image.end(cx, &home, &export)
}

/// The file that holds the disk's current state, or that of a snapshot.
struct Source {
    path: PathBuf,
    format: &'static str,
    virtual_size: Option<u64>,
    layered: bool,
}

fn source(cx: &Cx<'_>, disk: &Disk, snapshot: Option<u32>, raw: bool) -> Result<Source> {
    let host = &disk.place.host;
    let style = if raw { Style::Copies } else { Style::Layers(Manner::Relative) };
    let query = Query { names: Names::own(disk.path.clone()), style, raw, images: Vec::new() };
    let mut ask = |ops| cx.query(host, ops).map_err(anyhow::Error::from);
    let reading = chains::read(&query, &mut ask)?;
    let found = Chain::of(&reading.facts).source(snapshot)?;
    if found.layered {
        // Level by level, before a program opens it: it may stand on layers of the disk and on images only.
        judged(cx, disk, &found.path, &mut HashMap::new())?;
    }
    Ok(Source {
        path: found.path,
        format: found.format,
        virtual_size: found.virtual_size,
        layered: found.layered && !raw,
    })
}

/// Has the domain write what its guest sees to `export`, or copies it while the guest stands still.
fn export_live(
    cx: &Cx<'_>,
    disk: &Disk,
    vm: &Vm,
    target: &str,
    (home, export): (&Folder, &Path),
    raw: bool,
) -> Result<()> {
    let host = &disk.place.host;
    let domain = vm.deploy_id.trimmed().context("cpds: the VM has no DEPLOY_ID in oned")?;
    let failure =
        format!("Error creating export for domain {domain} of disk {} at {}", disk.path.display(), export.display());
    let live = Live::new(cx, host, domain);
    let seen = live.look().with_context(|| failure.clone())?;
    let format = if raw { "raw" } else { "qcow2" };
    let whole = |current: &Path| {
        vec![if raw {
            Op::Copy { from: current.to_owned(), to: export.to_owned(), sparse: Sparse::Holes }
        } else {
            Op::Run(qemu_img::convert_open((current, "qcow2"), (export, "qcow2"), Zeroes::Holes))
        }]
    };
    cx.info(format!("Exporting {target} of {domain} to {}", export.display()));
    cx.apply(home.prepared_step("Make room for the export", home.prepare()).or_say(&failure))?;
    live.copy(&seen, target, export, format, whole).with_context(|| failure)
}

/// The image that comes into being.
struct Image {
    host: Arc<dyn Host>,
    files: ImageFiles,
    folder: Folder,
    is_there: bool,
    failure: String,
}

impl Image {
    fn ask(cx: &Cx<'_>, host: Arc<dyn Host>, files: ImageFiles, failure: String) -> Result<Self> {
        let questions = [
            Folder::question(&files.base),
            Op::Stat { path: files.base.clone(), follow: true },
            Op::Stat { path: files.image.clone(), follow: false },
        ];
        let answers = cx.query(&host, questions).with_context(|| failure.clone())?;
        let [staging, base, there] = answers.as_slice() else {
            bail!("{failure}: the host did not answer all questions")
        };
        if base.stat().is_some_and(|base| base.kind != FileKind::Dir) {
            bail!("{failure}: {} is no directory", files.base.display());
        }
        if there.stat().is_some_and(|there| there.kind == FileKind::Dir) {
            bail!("{failure}: {} is a directory", files.image.display());
        }
        let folder = Folder::of(&host, &files.base, staging).with_context(|| failure.clone())?;
        Ok(Self { is_there: there.stat().is_some(), host, files, folder, failure })
    }

    fn staged(&self) -> PathBuf {
        self.folder.staging(self.files.image.file_name().unwrap_or_default())
    }

    /// Brings the file `from` of the disk's host beside the image.
    fn take(&self, cx: &Cx<'_>, disk: &Disk, from: &Path) -> Result<()> {
        let step = self.folder.prepared_step("Make room for the image", self.folder.prepare());
        cx.apply(step.or_say(&self.failure))?;
        let load = Load { from: from.to_owned(), to: self.staged() };
        let journey = Journey { from: &disk.place.host, to: &self.host, sparse: Sparse::Holes, address: None };
        carry(cx, &journey, &[load], &self.failure)
    }

    /// Gives it its name.
    fn publish(&self, cx: &Cx<'_>) -> Result<Reply> {
        let image = &self.files.image;
        let undo = [Op::Remove { path: image.clone(), tree: false, must_exist: false }];
        // A digest that outlives what it was made of makes a replica take old data for current.
        let mut ops = vec![Op::Remove { path: self.files.md5sum(), tree: false, must_exist: false }];
        ops.push(Op::Rename { from: self.staged(), to: image.clone() });
        ops.push(Op::Sync { path: self.files.base.clone() });
        ops.extend(self.folder.leave());
        let what = format!("Give the image its name {}", image.display());
        let step = Step::new(&self.host, what, ops).or_say(&self.failure);
        let step = if self.is_there { step } else { step.undo(undo) };
        cx.apply(step)?;
        Ok(Reply::Nothing)
    }

    /// The same, and the end of what was made on the disk's host for it.
    fn end(&self, cx: &Cx<'_>, home: &Folder, export: &Path) -> Result<Reply> {
        self.publish(cx)?;
        let remove = Op::Remove { path: export.to_owned(), tree: false, must_exist: false };
        let ops = [remove].into_iter().chain(home.leave());
        cx.after(Step::new(&home.host, "Remove the export", ops).best_effort());
        Ok(Reply::Nothing)
    }
}
