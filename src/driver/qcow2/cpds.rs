//! `cpds` and `cpds.ssh`: a disk, or a snapshot of it, is saved as an image.
//!
//! Source: contract 02 §5, §6. The image appears under its name when it is complete and on the disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::{Disk, lock_of, plain_number};
use crate::driver::common::backing::{LAYER_HEAD, is_image, judged, likely, without_self_links};
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::layers::HEAD;
use crate::driver::common::live::Live;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::{ImageFiles, normalize, with_suffix};
use crate::payload::{Disk as Record, Vm};
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Zeroes};

/// `LCM_STATE` of a VM whose disk is saved while it runs.
const HOTPLUG_SAVEAS: u32 = 26;

/// Which file holds snapshots of a persistent disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// The image in the image datastore.
    Shared,
    /// The disk itself.
    Host,
}

/// `cpds`.
pub fn cpds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Layout::Shared)
}

/// `cpds.ssh`.
pub fn cpds_ssh(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Layout::Host)
}

fn run(cx: &Cx<'_>, request: &TmRequest, layout: Layout) -> Result<Reply> {
    // What is read.
    let id = request.number(3, "VM_ID")?;
    let snapshot: i64 = request.number(2, "SNAPSHOT_ID")?;
    let snapshot = match snapshot {
        -1 => None,
        id => Some(u32::try_from(id).map_err(|_| Misuse(format!("SNAPSHOT_ID is no snapshot: {id}")))?),
    };
    let disk = request.disk(cx, 0, id)?;
    let place = &disk.place;
    let image = place.image(&request.path(1)?)?;
    let failure = format!("Could not move image {}", image.image.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let wanted = record(&vm, id, disk.number).with_context(|| failure.clone())?;
    let format = wanted.format.trimmed();
    if vm.lcm_state.get().map_err(misuse)? == Some(HOTPLUG_SAVEAS) {
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or_default();
        if hypervisor != "kvm" {
            bail!("cpds: Live operation not supported on {hypervisor}");
        }
        if snapshot.is_none() {
            let copy = LiveCopy { disk: &disk, vm: &vm, record: wanted, to: &image };
            copy_live(cx, &copy, &failure).with_context(|| failure.clone())?;
            return Ok(Reply::Nothing);
        }
    }
    Target::lock(cx, place)?;
    let base = match (layout, snapshot) {
        (Layout::Shared, Some(_)) if wanted.clone.get() != Some("YES") => {
            let source = wanted.source.required().map_err(misuse)?;
            place.image(Path::new(source))?.image
        }
        _ => disk.path.clone(),
    };
    // A disk usually stands on its image: what that is can be asked in the same breath.
    let origin = wanted.source.get().and_then(|source| place.image(Path::new(source)).ok());
    let folder = match &origin {
        Some(files) if layout == Layout::Shared && wanted.clone.is_no() => files.snapshots(),
        _ => disk.snapshots(),
    };
    // So can its layers be, as far as oned knows them.
    let layers = if format == Some("qcow2") { likely(&vm, disk.number, &folder) } else { Vec::new() };
    let origin = origin.map(|files| files.image);
    let ask = Ask { disk: &disk, base: &base, snapshot, image: &image, origin, layers };
    let mut files = ask.files(cx).with_context(|| failure.clone())?;

    // What is decided.
    let source = files.source.clone();
    if files.same {
        cx.info(format!("Not copying {}, it is {}", source.display(), image.image.display()));
        return Ok(Reply::Nothing);
    }
    let folder = Folder::of(&place.host, &image.base, &files.staging)?;
    let staged = folder.staging(image.image.file_name().unwrap_or_default());
    let (what, op) = if format == Some("qcow2") {
        let top = judged(cx, &disk, &source, &mut files.heads).with_context(|| failure.clone())?;
        let largest = top.virtual_size.map(qemu_img::largest);
        let convert = qemu_img::convert((&source, top.format.name()), (&staged, "qcow2"), Zeroes::Holes, largest);
        (format!("Merge the layers of {} into one file", source.display()), Op::Run(convert))
    } else {
        let copy = Op::Copy { from: source.clone(), to: staged.clone(), sparse: Sparse::Holes };
        (format!("Copy {}, sharing its blocks where the file system can", source.display()), copy)
    };

    // What is done.
    cx.info(format!("Copying {} to datastore as {}", source.display(), image.image.display()));
    let mut ops = vec![Op::Lock { name: lock_of(id, &disk.name()), wait_seconds: 600 }];
    ops.extend(folder.prepare());
    ops.extend([op, Op::Sync { path: staged.clone() }, Op::Rename { from: staged.clone(), to: image.image.clone() }]);
    ops.extend(folder.leave());
    let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
    let mut undo = vec![remove(staged)];
    if !files.is_there {
        undo.push(remove(image.image.clone()));
    }
    undo.extend(folder.leave());
    cx.apply(Step::new(&place.host, what, ops).undo(undo).or_say(failure))?;
    Ok(Reply::Nothing)
}

/// What is saved from a running VM.
struct LiveCopy<'a> {
    disk: &'a Disk,
    vm: &'a Vm,
    record: &'a Record,
    to: &'a ImageFiles,
}

/// Saves a disk of a running VM: the domain copies what the guest sees; where it cannot, the guest stands still meanwhile.
///
/// # Errors
/// The domain does not run there, neither way was possible, or the copy cannot get its name. The domain runs if it ran.
fn copy_live(cx: &Cx<'_>, copy: &LiveCopy<'_>, failure: &str) -> Result<()> {
    // What is read.
    let LiveCopy { disk, vm, record, to } = copy;
    let host = &disk.place.host;
    let domain = vm.deploy_id.trimmed().context("The VM has no DEPLOY_ID in oned")?;
    let target = record.target.trimmed().context("The disk has no TARGET in oned")?;
    let questions = [Folder::question(&to.base), Op::Stat { path: to.image.clone(), follow: true }];
    let answers = cx.query(host, questions)?;
    let [staging, there] = answers.as_slice() else { bail!("The host did not answer all questions") };
    let live = Live::new(cx, host, domain);
    let seen = live.look()?;

    // What is decided.
    let folder = Folder::of(host, &to.base, staging)?;
    let staged = folder.staging(to.image.file_name().unwrap_or_default());
    let format = if record.format.trimmed() == Some("qcow2") { "qcow2" } else { "raw" };
    let whole = |current: &Path| {
        let (from, to) = (current.to_owned(), staged.clone());
        match format {
            "qcow2" => vec![Op::Run(qemu_img::convert_open((&from, "qcow2"), (&to, "qcow2"), Zeroes::Holes))],
            _ => vec![Op::Copy { from, to, sparse: Sparse::Holes }],
        }
    };

    // What is done.
    cx.info(format!("Copying {target} of {domain} to datastore as {}", to.image.display()));
    cx.apply(folder.prepared_step("Make room for the image", folder.prepare()).or_say(failure))?;
    live.copy(&seen, target, &staged, format, whole)?;
    let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
    let mut undo = vec![remove(staged.clone())];
    if there.stat().is_none() {
        undo.push(remove(to.image.clone()));
    }
    let mut ops = vec![Op::Rename { from: staged, to: to.image.clone() }];
    ops.extend(folder.leave());
    let what = format!("Give the image its name {}", to.image.display());
    cx.apply(Step::new(host, what, ops).undo(undo).or_say(failure))?;
    Ok(())
}

/// What the host has: the file to save, and what is where the image will be.
struct Files {
    /// The file with the data, links followed as far as they are the disk's own.
    source: PathBuf,
    /// Beginnings of files.
    heads: HashMap<PathBuf, Value>,
    /// Answer to [`Folder::question`] of the image datastore.
    staging: Value,
    /// Whether there is something under the image's name.
    is_there: bool,
    /// Whether that is the file to save, under whatever names.
    same: bool,
}

/// What is asked about.
struct Ask<'a> {
    disk: &'a Disk,
    /// What the snapshots stand beside.
    base: &'a Path,
    snapshot: Option<u32>,
    image: &'a ImageFiles,
    /// The image that the disk was made of.
    origin: Option<PathBuf>,
    /// What the disk probably consists of.
    layers: Vec<PathBuf>,
}

impl Ask<'_> {
    /// One question to the host, and a second one where the data of a snapshot lives in another file since a live commit.
    fn files(self, cx: &Cx<'_>) -> Result<Files> {
        let host = &self.disk.place.host;
        let layers = with_suffix(self.base, ".snap");
        let source = self.snapshot.map_or_else(|| self.base.to_owned(), |id| layers.join(id.to_string()));
        let origin = self.origin.unwrap_or_else(|| source.clone());
        let questions = [
            Op::Stat { path: source.clone(), follow: true },
            Op::ReadLink { path: source.clone() },
            Op::Head { path: source.clone(), len: HEAD },
            Op::Head { path: with_suffix(&source, ".current"), len: 4096 },
            Op::Head { path: with_suffix(&source, ".deleting"), len: 1 },
            Folder::question(&self.image.base),
            Op::Stat { path: self.image.image.clone(), follow: true },
            Op::Head { path: origin.clone(), len: HEAD },
        ];
        let likely = self.layers.iter().map(|path| Op::Head { path: path.clone(), len: LAYER_HEAD });
        let mut answers = cx.query(host, questions.into_iter().chain(self.disk.dirs()).chain(likely))?;
        let known = answers.split_off(answers.len().min(10));
        self.disk.refuse_links(&answers.split_off(answers.len().min(8)))?;
        let [mut stat, link, head, current, deleting, staging, there, origin_head] =
            <[Value; 8]>::try_from(answers).map_err(|_| anyhow::anyhow!("The host did not answer all questions"))?;
        let mut heads: HashMap<PathBuf, Value> = self.layers.into_iter().zip(known).collect();
        heads.insert(origin, origin_head);
        if let (Value::Bytes(_), Some(_)) = (&deleting, self.snapshot) {
            bail!("{} was being deleted when that was interrupted, it no longer holds the snapshot", source.display());
        }
        let mut at = source.clone();
        if let (Value::Bytes(text), Some(_)) = (&current, self.snapshot) {
            // Its directory may have moved since: only the name counts.
            let name = Path::new(OsStr::from_bytes(text.trim_ascii())).file_name().unwrap_or_default().to_owned();
            if name.to_str().and_then(plain_number).is_none() {
                bail!("{}.current names {}, which is no layer", source.display(), name.display());
            }
            at = layers.join(&name);
            stat = cx.ask(host, Op::Stat { path: at.clone(), follow: true })?;
        } else if let Value::Bytes(text) = link {
            let text = Path::new(OsStr::from_bytes(&text));
            at = without_self_links(&normalize(&source.parent().unwrap_or(Path::new("/")).join(text)));
            let own = at.parent() == Some(&self.disk.snapshots());
            if !own && !is_image(&self.disk.place.root, &at) {
                bail!("{} is a link to {}, which is not a part of it", source.display(), text.display());
            }
            heads.insert(at.clone(), head);
        } else {
            heads.insert(at.clone(), head);
        }
        let file = |value: &Value| value.stat().map(|stat| (stat.dev, stat.ino));
        let Some(this) = file(&stat) else { bail!("{} does not exist on {}", at.display(), host.name()) };
        let there = file(&there);
        Ok(Files { source: at, heads, staging, is_there: there.is_some(), same: there == Some(this) })
    }
}
