//! `clone` and `ln`: an image goes to the host that runs the VM, as the VM's own copy or as the image itself until `mvds`
//! brings it back.
//!
//! Source: contract 02 §1, §8. A qcow2 disk is a chain in `disk.N.snap` also without snapshots, whose layers name each other
//! so that both the disk's link and the file behind it can be opened: `disk.N.snap/K`, by way of the link
//! `disk.N.snap -> .`. `ln` takes the layers of the image along, `clone` is one file: its snapshots are its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::cache::{self, Cache};
use crate::context::Cx;
use crate::driver::common::args::{VmPlace, registered};
use crate::driver::common::disk::{Target, record};
use crate::driver::common::image::Image;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::common::layers::{Layer, Layers, data_format};
use crate::driver::common::monitored;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::host::Host;
use crate::exec::op::{Op, Sparse};
use crate::exec::step::Step;
use crate::location::ImageFiles;
use crate::payload::Disk as Record;
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Growth, Zeroes};

/// What the VM gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// A copy.
    Copy,
    /// The image with its snapshots.
    Image,
}

/// `clone`.
pub fn clone(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Gets::Copy)
}

/// `ln`.
pub fn ln(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, Gets::Image)
}

/// What oned wants of the disk.
struct Wanted<'r> {
    /// Nothing for a kernel.
    format: Option<&'r str>,
    /// MiB that it has to have.
    mib: Option<u64>,
    sparse: Sparse,
}

impl<'r> Wanted<'r> {
    fn read(disk: Option<&'r Record>, failure: &str) -> Result<Self> {
        let Some(disk) = disk else { return Ok(Self { format: None, mib: None, sparse: Sparse::Holes }) };
        let format = disk.format.trimmed();
        if format.is_none() {
            bail!(Misuse(format!("{failure}: oned does not say the disk's FORMAT")));
        }
        let size = disk.size.get().map_err(misuse)?;
        let original = disk.original_size.get().map_err(misuse)?;
        Ok(Self {
            format,
            mib: size.filter(|size| original.is_none_or(|original| *size > original)),
            sparse: if disk.sparse.is_no_any_case() { Sparse::Allocate } else { Sparse::Holes },
        })
    }

    /// Refuses to make the disk smaller than the image, which has this many bytes.
    fn check(&self, bytes: Option<u64>) -> Result<()> {
        match (self.mib, bytes) {
            (Some(mib), Some(bytes)) if mib.saturating_mul(1 << 20) < bytes => {
                let has = bytes.div_ceil(1 << 20);
                bail!("The image has {has} MiB, more than the {mib} MiB of the disk")
            }
            _ => Ok(()),
        }
    }

    /// What enlarges the file at `path`, which has `bytes`.
    fn resize(&self, path: &Path, format: &str, bytes: Option<u64>) -> Option<Op> {
        let mib = self.mib.filter(|mib| bytes.is_none_or(|bytes| mib.saturating_mul(1 << 20) > bytes))?;
        let growth = if self.sparse == Sparse::Allocate { Growth::Allocate } else { Growth::Sparse };
        Some(Op::Run(qemu_img::resize(path, format, mib, growth)))
    }
}

/// How an image becomes a disk.
enum Plan {
    /// One file stays one file; of a persistent raw image its snapshots, full copies, come along.
    File { format: &'static str, bytes: u64, snapshots: Vec<u32> },
    /// A qcow2 file becomes the layer of this number.
    Layer { number: u32, bytes: Option<u64> },
    /// All layers, and their markers, under the names that they have; what each stands on, and its format. The image itself
    /// becomes the layer `image`, where it is none yet.
    Chain { names: Vec<String>, stands: Vec<(u32, u32, &'static str)>, active: u32, image: Option<u32> },
    /// The layers from the current one down with their formats, which become one file on the host.
    Flat { parts: Vec<(PathBuf, &'static str)>, bytes: Option<u64> },
}

impl Plan {
    /// Bytes that a guest sees, where they are known.
    fn bytes(&self) -> Option<u64> {
        match self {
            Self::File { bytes, .. } => Some(*bytes),
            Self::Layer { bytes, .. } | Self::Flat { bytes, .. } => *bytes,
            Self::Chain { .. } => None,
        }
    }
}

fn run(cx: &Cx<'_>, request: &TmRequest, gets: Gets) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let _: u32 = request.number(3, "DS_ID")?;
    let to = request.place(cx, 1, id)?;
    let from = request.holder(cx, 0)?;
    let files = files(request)?;
    let failure = format!("Error copying {} to {}", request.text(0), to.text);
    let vm = if to.is_disk() { Some(cx.oned().vm(id).with_context(|| failure.clone())?) } else { None };
    // A kernel or ramdisk has no record.
    let number = if to.is_disk() { Some(to.clone().disk()?.number) } else { None };
    let disk = match (&vm, number) {
        (Some(vm), Some(number)) => Some(record(vm, id, number).with_context(|| failure.clone())?),
        _ => None,
    };
    let wanted = Wanted::read(disk, &failure)?;
    Target::lock(cx, &to)?;
    let answers = cx.query(&from, Image::questions(&files)).with_context(|| failure.clone())?;
    let image = Image::read(files, &answers);
    image.must_exist(&from).with_context(|| failure.clone())?;
    let questions = Target::questions(&to).into_iter().chain([monitored::question(&to)]);
    let answers = cx.query(&to.host, questions).with_context(|| failure.clone())?;
    let (target, rest) = Target::read(&to, &answers).with_context(|| failure.clone())?;
    let monitor = rest.first().and_then(monitored::content);

    // What is decided.
    let plan = plan(cx, &from, &image, &wanted, gets).with_context(|| failure.clone())?;
    wanted.check(plan.bytes()).with_context(|| failure.clone())?;

    // What is done.
    cx.info(format!("Cloning {} to {}", request.text(0), to.text));
    let disk = disk.filter(|_| gets == Gets::Copy && !image.has_layers());
    let job = Job { target: &target, plan: &plan, wanted: &wanted, failure: &failure };
    job.begin(cx)?;
    if !from_cache(cx, &job, disk, &from, &image, &to)? {
        job.carry(cx, &from, &image.files)?;
    }
    job.finish(cx, monitored::by_host(&to.datastore_dir(), monitor))?;
    Ok(Reply::Nothing)
}

/// The files of the image that the first argument names, where they lie.
fn files(request: &TmRequest) -> Result<ImageFiles> {
    registered(&request.path(0)?)
}

fn plan(cx: &Cx<'_>, from: &Arc<dyn Host>, image: &Image, wanted: &Wanted<'_>, gets: Gets) -> Result<Plan> {
    let stat = image.must_exist(from)?;
    let numbers: Vec<u32> = image.numbers().collect();
    if wanted.format != Some("qcow2") {
        if image.is_link() {
            // Whoever may write to the datastore must not choose a file of the host.
            image.current(cx, from, wanted.format)?;
        }
        let snapshots = if gets == Gets::Image && wanted.format == Some("raw") { numbers } else { Vec::new() };
        return Ok(Plan::File { format: qemu_img::written(wanted.format), bytes: stat.size, snapshots });
    }
    if !image.has_layers() {
        let layer = image.current(cx, from, wanted.format)?;
        must_be_qcow2(&layer)?;
        return Ok(Plan::Layer { number: 0, bytes: layer.virtual_size });
    }
    let layers = Layers::read(cx, from, &image.files, wanted.format)?;
    let top = layers.behind(layers.active());
    must_be_qcow2(top)?;
    match gets {
        Gets::Copy => flat(&layers, top),
        Gets::Image => chain(image, &layers, top),
    }
}

fn flat(layers: &Layers, top: &Layer) -> Result<Plan> {
    let mut parts = vec![(top.path.clone(), "qcow2")];
    let mut at = top;
    while let Some(below) = layers.below(at)? {
        at = layers.behind(below);
        parts.push((at.path.clone(), data_format(at.format)));
    }
    Ok(Plan::Flat { parts, bytes: top.virtual_size })
}

fn chain(image: &Image, layers: &Layers, top: &Layer) -> Result<Plan> {
    // Markers too: which file holds a snapshot that was merged.
    let names = image.names.iter().flatten().filter_map(|name| name.to_str());
    let mut names: Vec<String> = names.filter(|name| layer_number(name).is_some()).map(str::to_owned).collect();
    names.sort();
    let numbered = layers.numbered()?;
    let is_base = numbered.iter().any(|(_, below, _)| *below == image.files.image);
    let (active, own) = match number_of(&top.path) {
        Some(active) if is_base => (active, Some(0)),
        Some(active) => (active, None),
        // An image that stands beside its snapshots is the newest of them.
        None => {
            let next = image.numbers().max().map_or(0, |last| last + 1);
            (next, Some(next))
        }
    };
    if own.is_some_and(|own| names.contains(&own.to_string())) {
        bail!("{} has a layer of its own name", image.files.image.display());
    }
    if own == Some(active) && top.backing.is_some() {
        bail!("{} stands on another file, which no image may", top.path.display());
    }
    let mut stands = Vec::new();
    for (layer, below, format) in numbered {
        let below = if below == image.files.image { own } else { number_of(&below) };
        let Some(below) = below else { bail!("{} stands on what is no layer", image.files.snapshot(layer).display()) };
        stands.push((layer, below, format));
    }
    Ok(Plan::Chain { names, stands, active, image: own })
}

fn must_be_qcow2(layer: &Layer) -> Result<()> {
    match data_format(layer.format) {
        "qcow2" => Ok(()),
        other => bail!("{} is a {other} image, and oned says qcow2", layer.path.display()),
    }
}

/// K of `K` and `K.current`.
fn layer_number(name: &str) -> Option<u32> {
    crate::driver::common::args::plain_number(name.strip_suffix(".current").unwrap_or(name))
}

/// K of `<image>.snap/K`.
fn number_of(path: &Path) -> Option<u32> {
    let is_folder = path.parent()?.extension()? == "snap";
    crate::driver::common::args::plain_number(path.file_name()?.to_str()?).filter(|_| is_folder)
}

/// A disk that comes into being.
struct Job<'a> {
    target: &'a Target,
    plan: &'a Plan,
    wanted: &'a Wanted<'a>,
    failure: &'a str,
}

impl Job<'_> {
    /// Makes room under a staging name.
    fn begin(&self, cx: &Cx<'_>) -> Result<()> {
        let mut ops = self.target.begin();
        let layers = match self.plan {
            Plan::File { snapshots, .. } => !snapshots.is_empty(),
            _ => true,
        };
        if layers {
            ops.push(Op::MakeDir { path: self.target.staged_layers() });
        }
        let step = Step::new(&self.target.folder.host, "Make room for the disk", ops);
        cx.apply(step.undo(self.target.undo()).or_say(self.failure)).map(drop)
    }

    /// Where the only file of the plan is written first, if there is only one.
    fn only(&self) -> Option<PathBuf> {
        match self.plan {
            Plan::File { snapshots, .. } if snapshots.is_empty() => Some(self.target.staged_file()),
            Plan::Layer { number, .. } => Some(self.target.staged_layers().join(number.to_string())),
            _ => None,
        }
    }

    /// Brings the files.
    fn carry(&self, cx: &Cx<'_>, from: &Arc<dyn Host>, files: &ImageFiles) -> Result<()> {
        let layers = self.target.staged_layers();
        let load = |from: PathBuf, to: PathBuf| Load { from, to };
        let loads: Vec<Load> = match self.plan {
            Plan::File { snapshots, .. } => {
                let snapshots = snapshots.iter().map(|id| load(files.snapshot(*id), layers.join(id.to_string())));
                [load(files.image.clone(), self.target.staged_file())].into_iter().chain(snapshots).collect()
            }
            Plan::Layer { number, .. } => vec![load(files.image.clone(), layers.join(number.to_string()))],
            Plan::Chain { names, image, .. } => {
                let own = image.map(|number| load(files.image.clone(), layers.join(number.to_string())));
                let rest = names.iter().map(|name| load(files.snapshots().join(name), layers.join(name)));
                rest.chain(own).collect()
            }
            Plan::Flat { parts, .. } => {
                parts.iter().enumerate().map(|(at, (path, _))| load(path.clone(), layers.join(part(at)))).collect()
            }
        };
        let journey = Journey { from, to: &self.target.folder.host, sparse: self.wanted.sparse, address: None };
        carry(cx, &journey, &loads, self.failure)
    }

    /// Makes a disk of the files, and gives it its name.
    fn finish(&self, cx: &Cx<'_>, monitor: Option<Op>) -> Result<()> {
        let host = &self.target.folder.host;
        let layers = self.target.staged_layers();
        let (what, made, named) = match self.plan {
            Plan::File { format, bytes, snapshots } => {
                let made = self.wanted.resize(&self.target.staged_file(), format, Some(*bytes)).into_iter().collect();
                let mut named = self.target.put_file();
                if !snapshots.is_empty() {
                    named.push(Op::Rename { from: layers, to: self.target.snapshots() });
                }
                ("Enlarge it", made, named)
            }
            Plan::Layer { number, bytes } => {
                let made = self.wanted.resize(&layers.join(number.to_string()), "qcow2", *bytes).into_iter().collect();
                ("Enlarge it", made, self.target.put_layers(number))
            }
            Plan::Chain { stands, active, .. } => {
                let mut made = self.name_layers(stands);
                made.extend(self.wanted.resize(&layers.join(active.to_string()), "qcow2", None));
                ("Have the layers name each other as those of a disk", made, self.target.put_layers(active))
            }
            Plan::Flat { parts, bytes } => {
                ("Make one layer of them", self.flatten(parts, *bytes), self.target.put_layers(0))
            }
        };
        let begin = || self.target.begin();
        if !made.is_empty() {
            cx.apply(Step::new(host, what, begin().into_iter().chain(made)).or_say(self.failure))?;
        }
        let named = begin().into_iter().chain(named).chain(monitor).chain(self.target.folder.leave());
        cx.apply(Step::new(host, "All of it is here: give the disk its name", named).or_say(self.failure).whole())
            .map(drop)
    }

    /// What has the layers of a chain name each other as those of the disk.
    fn name_layers(&self, stands: &[(u32, u32, &'static str)]) -> Vec<Op> {
        let (folder, layers) = (self.target.snapshots(), self.target.staged_layers());
        let name = Path::new(folder.file_name().unwrap_or_default());
        let mut ops = vec![Op::Symlink { target: ".".into(), link: layers.join(name) }];
        for (layer, below, format) in stands {
            let (file, below) = (layers.join(layer.to_string()), name.join(below.to_string()));
            ops.push(Op::Run(qemu_img::rebase(&file, Some(&below), format, false)));
            ops.push(Op::Sync { path: file });
        }
        ops
    }

    /// What makes the layer `0` of the parts of a chain. Each names the next one first.
    fn flatten(&self, parts: &[(PathBuf, &'static str)], bytes: Option<u64>) -> Vec<Op> {
        let layers = self.target.staged_layers();
        let name = |at: usize| layers.join(part(at));
        let stand = |(at, (_, format)): (usize, &(PathBuf, &'static str))| {
            Op::Run(qemu_img::rebase(&name(at - 1), Some(Path::new(&part(at))), format, false))
        };
        let mut ops: Vec<Op> = parts.iter().enumerate().skip(1).map(stand).collect();
        let zeroes = if self.wanted.sparse == Sparse::Holes { Zeroes::Holes } else { Zeroes::Allocate };
        let whole = layers.join("0");
        let largest = bytes.map(qemu_img::largest);
        ops.push(Op::Run(qemu_img::convert((&name(0), "qcow2"), (&whole, "qcow2"), zeroes, largest)));
        ops.extend((0..parts.len()).map(|at| Op::Remove { path: name(at), tree: false, must_exist: true }));
        ops.extend(self.wanted.resize(&whole, "qcow2", bytes));
        ops.push(Op::Sync { path: whole });
        ops
    }
}

/// What a part of a chain is called that becomes one file.
fn part(at: usize) -> String {
    format!("part.{at}")
}

/// Makes the disk from the cache of the host, if its datastore has one and the image may be in it. Whatever goes wrong with
/// a cache, the image is where it comes from.
fn from_cache(
    cx: &Cx<'_>,
    job: &Job<'_>,
    disk: Option<&Record>,
    from: &Arc<dyn Host>,
    image: &Image,
    to: &VmPlace,
) -> Result<bool> {
    let (Some(disk), Some(staged)) = (disk, job.only()) else { return Ok(false) };
    let tried = || -> Result<bool> {
        let Some(number) = disk.datastore_id.get().map_err(misuse)? else { return Ok(false) };
        let Some(cache) = Cache::of(&cx.oned().datastore(number)?)? else { return Ok(false) };
        let Some(number) = disk.image_id.get().map_err(misuse)? else { return Ok(false) };
        let record = cx.oned().image(number)?;
        if record.persistent.get().map_err(misuse)? != Some(0) {
            return Ok(false);
        }
        let path = &image.files.image;
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(false) };
        let modtime = record.modtime.get().map_err(misuse)?.unwrap_or(0).to_string();
        let size = image.must_exist(from)?.size;
        let wanted = cache::Wanted { name, modtime, origin: from, path, size };
        let Some(cached) = cache.get(cx, &to.host, &wanted)? else { return Ok(false) };
        let load = Load { from: cached.path.clone(), to: staged.clone() };
        let journey = Journey { from: &to.host, to: &to.host, sparse: job.wanted.sparse, address: None };
        carry(cx, &journey, &[load], job.failure)?;
        if cache.used(cx, &to.host, &wanted, &cached)? {
            return Ok(true);
        }
        bail!("{} was exchanged meanwhile", cached.path.display())
    };
    match tried() {
        Ok(done) => Ok(done),
        Err(error) => {
            cx.control.check()?;
            cx.warn(format!("The cache of {} is not used: {error:#}", to.host.name()));
            let remove = Op::Remove { path: staged, tree: false, must_exist: false };
            cx.apply(Step::new(&to.host, "Remove what came from the cache", [remove]).or_say(job.failure))?;
            Ok(false)
        }
    }
}
