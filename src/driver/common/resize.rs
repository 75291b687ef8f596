//! `resize`: a disk of a VM that does not run is enlarged. A running VM's disk is resized by its hypervisor.
//!
//! Source: contract 02 §4.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::args::{Disk, lock_of};
use super::backing::{LAYER_HEAD, is_image, judged, likely, without_self_links};
use super::disk::{Target, record};
use super::layers::HEAD;
use crate::context::Cx;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{Op, Value};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::tool::qemu_img::{self, Growth};
use crate::tool::util_linux;

/// `LCM_STATE` of a VM whose hypervisor resizes the disk.
const DISK_RESIZE: u32 = 62;

/// Most links that lead from a disk to its file.
const LINKS: u32 = 4;

/// See the module.
pub fn resize(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let mib: u64 = request.number(1, "SIZE_MB")?;
    let disk = request.disk(cx, 0, id)?;
    let place = &disk.place;
    let failure = format!("Error resizing image {}", disk.path.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    if vm.lcm_state.get().map_err(misuse)? == Some(DISK_RESIZE) {
        cx.info(format!("Not resizing disk {} for running virt. machine directly", disk.path.display()));
        return Ok(Reply::Nothing);
    }
    let wanted = record(&vm, id, disk.number).with_context(|| failure.clone())?;
    Target::lock(cx, place)?;
    let image = wanted.source.get().and_then(|source| place.image(Path::new(source)).ok());
    let layers = match &image {
        Some(files) if wanted.clone.is_no() => files.snapshots(),
        _ => disk.snapshots(),
    };
    let layers = likely(&vm, disk.number, &layers);
    let origin = image.map_or_else(|| disk.path.clone(), |files| files.image);
    let mut questions = vec![
        Op::ReadLink { path: disk.path.clone() },
        Op::Stat { path: disk.path.clone(), follow: true },
        Op::Head { path: disk.path.clone(), len: HEAD },
        Op::Head { path: origin.clone(), len: HEAD },
    ];
    questions.extend(disk.dirs());
    questions.extend(layers.iter().map(|path| Op::Head { path: path.clone(), len: LAYER_HEAD }));
    // Where there are no snapshots, the disk is the first layer.
    let may_be_links: Vec<PathBuf> = layers.iter().cloned().chain([disk.snapshots().join("0")]).collect();
    questions.extend(may_be_links.iter().map(|path| Op::ReadLink { path: path.clone() }));
    let mut answers = cx.query(&place.host, questions).with_context(|| failure.clone())?;
    let mut heads = answers.split_off(answers.len().min(6));
    let links = heads.split_off(heads.len().min(layers.len()));
    let dirs = answers.split_off(answers.len().min(4));
    disk.refuse_links(&dirs).with_context(|| failure.clone())?;
    let [link, stat, head, origin_head] = <[Value; 4]>::try_from(answers)
        .map_err(|_| anyhow::anyhow!("{failure}: the host did not answer all questions"))?;
    let Some(stat) = stat.stat() else { bail!("{failure}: it does not exist on {}", place.host.name()) };

    // What is decided.
    let mut links: HashMap<PathBuf, Value> = may_be_links.into_iter().zip(links).collect();
    links.insert(disk.path.clone(), link);
    let file = own_file(cx, &disk, links).with_context(|| failure.clone())?;
    let (format, bytes) = if wanted.format.trimmed() == Some("raw") {
        // A guest can write anything into it, another format's header too.
        ("raw", stat.size)
    } else {
        let mut known: HashMap<PathBuf, Value> = layers.into_iter().zip(heads).collect();
        known.extend([(origin, origin_head), (file.clone(), head)]);
        let top = judged(cx, &disk, &file, &mut known).with_context(|| failure.clone())?;
        (top.format.name(), top.virtual_size.unwrap_or(stat.size))
    };
    let Some(target) = mib.checked_mul(1 << 20) else { bail!("{failure}: a size of {mib} MiB is out of range") };
    if target < bytes {
        bail!("{failure}: it has {} MiB and would become smaller", bytes.div_ceil(1 << 20));
    }

    // What is done.
    let growth = if wanted.sparse.is_no() { Growth::Allocate } else { Growth::Sparse };
    let enlarge = match growth {
        // A run was killed between giving the file its size and allocating it; qemu-img allocates what it adds only.
        Growth::Allocate if target == bytes && format == "raw" => util_linux::allocate(&file, target),
        Growth::Allocate if target == bytes => qemu_img::resize(&file, format, mib, Growth::Sparse),
        growth => qemu_img::resize(&file, format, mib, growth),
    };
    let ops = [Op::Lock { name: lock_of(id, &disk.name()), wait_seconds: 600 }, Op::Run(enlarge)];
    cx.apply(Step::new(&place.host, format!("Enlarge it to {mib} MiB"), ops).or_say(failure))?;
    Ok(Reply::Nothing)
}

/// The file behind the disk's link: every step stays within the disk or ends at an image. A layer that is a link to
/// something else would have that enlarged. `links` holds answers that are at hand.
fn own_file(cx: &Cx<'_>, disk: &Disk, mut links: HashMap<PathBuf, Value>) -> Result<PathBuf> {
    let mut file = disk.path.clone();
    for _ in 0..LINKS {
        let link = match links.remove(&file) {
            Some(link) => link,
            None => cx.ask(&disk.place.host, Op::ReadLink { path: file.clone() })?,
        };
        let Value::Bytes(text) = link else { return Ok(file) };
        file = behind(&file, Path::new(OsStr::from_bytes(&text)));
        if is_image(&disk.place.root, &file) {
            return Ok(file);
        }
        if file.parent() != Some(&disk.snapshots()) {
            bail!("It is a link to {}, which is not a part of it", file.display());
        }
    }
    bail!("{} leads through more than {LINKS} links", disk.path.display())
}

/// What a link at `path` leads to, one step.
fn behind(path: &Path, text: &Path) -> PathBuf {
    without_self_links(&normalize(&path.parent().unwrap_or(Path::new("/")).join(text)))
}
