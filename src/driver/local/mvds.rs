//! `mvds`: a persistent image comes back from the host that ran its VM, with its snapshots.
//!
//! Source: contract 02 §1, §8. Everything is copied beside the image, compared and on the disk before the image is
//! replaced. The VM's disk stays: oned removes it with the VM's directory, and an epilog that failed later can be done
//! again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::{Disk, plain_number, registered};
use crate::driver::common::backing::without_self_links;
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::common::layers::{self, HEAD, Layer, data_format};
use crate::driver::common::swap::{Before, Swap};
use crate::driver::{Reply, TmRequest};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Node, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::{ImageFiles, normalize};
use crate::tool::qemu_img;

/// See the module.
pub fn mvds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let _: u32 = request.number(3, "DS_ID")?;
    let from = request.disk(cx, 0, id)?;
    let to = request.holder(cx, 1)?;
    let files = registered(&request.path(1)?)?;
    let failure = format!("Error copying {} to {}", from.place.text, files.image.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let format = record(&vm, id, from.number).with_context(|| failure.clone())?.format.trimmed();
    Target::lock(cx, &from.place)?;
    cx.lock(&format!("onestore-image-{}", files.image.display()))?;
    let trip = Trip::ask(cx, &from, to, files, format).with_context(|| failure.clone())?;

    // What is done.
    cx.info(format!("Moving {} to datastore as {}", from.place.text, trip.files.image.display()));
    trip.copy(cx, &failure)?;
    trip.put(cx, &failure)?;
    Ok(Reply::Nothing)
}

/// A disk on its way back into its image.
struct Trip<'d> {
    disk: &'d Disk,
    to: Arc<dyn Host>,
    files: ImageFiles,
    folder: Folder,
    /// Files of `disk.N.snap` that come along, by name.
    layers: Vec<OsString>,
    /// Layers that stand on another one: layer, the name of that for the image, and its format.
    stands: Vec<(OsString, PathBuf, &'static str)>,
    /// The layer that the disk is, where it is one.
    active: Option<OsString>,
    /// The image now.
    before: Before,
}

/// `K` or `K.current`.
fn is_layer(node: &Node) -> bool {
    let name = node.path.to_str().unwrap_or_default();
    node.kind == FileKind::File && plain_number(name.strip_suffix(".current").unwrap_or(name)).is_some()
}

impl<'d> Trip<'d> {
    fn ask(cx: &Cx<'_>, disk: &'d Disk, to: Arc<dyn Host>, files: ImageFiles, format: Option<&str>) -> Result<Self> {
        let host = &disk.place.host;
        let questions = [
            Op::Stat { path: disk.path.clone(), follow: false },
            Op::ReadLink { path: disk.path.clone() },
            Op::Tree { path: disk.snapshots(), depth: 1 },
        ];
        let mut answers = cx.query(host, questions.into_iter().chain(disk.dirs()))?;
        disk.refuse_links(&answers.split_off(answers.len().min(3)))?;
        let [stat, link, tree] =
            <[Value; 3]>::try_from(answers).map_err(|_| anyhow::anyhow!("The host did not answer all questions"))?;
        let Some(stat) = stat.stat() else { bail!("{} does not exist on {}", disk.path.display(), host.name()) };
        let nodes = if let Value::Tree(nodes) = tree { nodes } else { Vec::new() };
        let layers: Vec<OsString> =
            nodes.iter().filter(|node| is_layer(node)).map(|node| node.path.clone().into_os_string()).collect();
        let active = match link {
            Value::Bytes(text) => {
                let text = Path::new(OsStr::from_bytes(&text));
                let target = without_self_links(&normalize(&disk.place.dir.join(text)));
                let name = target.file_name().unwrap_or_default().to_owned();
                if target.parent() != Some(&disk.snapshots()) || !layers.contains(&name) {
                    bail!("{} is a link to {}, which is no layer of it", disk.path.display(), text.display());
                }
                Some(name)
            }
            _ if stat.kind == FileKind::File => None,
            _ => bail!("{} is no file", disk.path.display()),
        };
        let questions = [
            Folder::question(&files.base),
            Op::Stat { path: files.base.clone(), follow: true },
            Op::Stat { path: files.image.clone(), follow: true },
        ];
        let there = cx.query(&to, questions.into_iter().chain(Before::questions(&files)))?;
        let [staging, base, image, before @ ..] = there.as_slice() else {
            bail!("The host did not answer all questions")
        };
        let before = Before::read(before)?;
        if base.stat().is_none() {
            bail!("{} does not exist", files.base.display());
        }
        if image.stat().is_some_and(|image| image.kind != FileKind::File) {
            bail!("{} is no file", files.image.display());
        }
        let folder = Folder::of(&to, &files.base, staging)?;
        let mut trip = Self { disk, to, files, folder, layers, stands: Vec::new(), active, before };
        if format == Some("raw") {
            if trip.active.is_some() {
                bail!("{} is a link, and oned says raw", disk.path.display());
            }
        } else {
            trip.judge(cx)?;
        }
        Ok(trip)
    }

    /// Judges every layer: it stands on another one of the disk, or on nothing.
    fn judge(&mut self, cx: &Cx<'_>) -> Result<()> {
        let host = &self.disk.place.host;
        let dir = self.disk.snapshots();
        let is_marker = |name: &&OsString| name.as_bytes().ends_with(b".current");
        let mut paths: Vec<PathBuf> =
            self.layers.iter().filter(|name| !is_marker(name)).map(|name| dir.join(name)).collect();
        if self.active.is_none() {
            paths.push(self.disk.path.clone());
        }
        let stats = paths.iter().map(|path| Op::Stat { path: path.clone(), follow: false });
        let heads = paths.iter().map(|path| Op::Head { path: path.clone(), len: HEAD });
        let answers = cx.query(host, stats.chain(heads))?;
        let (stats, heads) = answers.split_at(paths.len());
        let mut seen: Vec<Layer> = Vec::new();
        for ((path, stat), head) in paths.iter().zip(stats).zip(heads) {
            let size = stat.stat().map(|stat| stat.size);
            let Value::Bytes(head) = head else { bail!("{} cannot be read", path.display()) };
            seen.push(layers::judged(cx, host, path, size, head)?);
        }
        for one in &seen {
            let Some(backing) = &one.backing else { continue };
            let parent = one.path.parent().unwrap_or(Path::new("/"));
            let below = without_self_links(&normalize(&parent.join(backing)));
            let Some(below) = seen.iter().find(|other| other.path == below && other.path != self.disk.path) else {
                bail!("{} refers to {}, which is not a part of it", one.path.display(), backing.display());
            };
            if one.path == self.disk.path {
                bail!("{} is a file that stands on {}, which no image may", one.path.display(), backing.display());
            }
            let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
            let by = Path::new(&self.own_name()).join(name(&below.path));
            self.stands.push((name(&one.path), by, data_format(below.format)));
        }
        Ok(())
    }

    /// The name of the image's folder of layers, and of the link in it by which they name each other.
    fn own_name(&self) -> OsString {
        self.files.snapshots().file_name().unwrap_or_default().to_owned()
    }

    fn staged_layers(&self) -> PathBuf {
        self.folder.staging(self.own_name())
    }

    fn staged_file(&self) -> PathBuf {
        self.folder.staging(self.files.image.file_name().unwrap_or_default())
    }

    /// Brings everything beside the image.
    fn copy(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let staged = self.staged_layers();
        let mut ops = self.folder.prepare();
        if !self.layers.is_empty() {
            ops.push(Op::MakeDir { path: staged.clone() });
        }
        if let Some(layer) = &self.active {
            ops.push(Op::Symlink { target: ".".into(), link: staged.join(self.own_name()) });
            let target = Path::new(&self.own_name()).join(layer);
            ops.push(Op::Symlink { target, link: self.staged_file() });
        }
        let remove = |path: PathBuf| Op::Remove { path, tree: true, must_exist: false };
        let undo = [remove(staged.clone()), remove(self.staged_file())].into_iter().chain(self.folder.leave());
        cx.apply(Step::new(&self.to, "Make room beside the image", ops).undo(undo).or_say(failure))?;
        let load = |from: PathBuf, to: PathBuf| Load { from, to };
        let layers = self.layers.iter().map(|name| load(self.disk.snapshots().join(name), staged.join(name)));
        let file = self.active.is_none().then(|| load(self.disk.path.clone(), self.staged_file()));
        let loads: Vec<Load> = layers.chain(file).collect();
        let journey = Journey { from: &self.disk.place.host, to: &self.to, sparse: Sparse::Holes, address: None };
        carry(cx, &journey, &loads, failure)
    }

    /// Puts the copies in place.
    fn put(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let staged = self.staged_layers();
        let rebase = |(layer, below, format): &(OsString, PathBuf, &'static str)| {
            let file = staged.join(layer);
            [Op::Run(qemu_img::rebase(&file, Some(below), format, false)), Op::Sync { path: file }]
        };
        let names: Vec<Op> = self.stands.iter().flat_map(rebase).collect();
        if !names.is_empty() {
            cx.apply(
                Step::new(&self.to, "Have the layers name each other as those of an image", names).or_say(failure),
            )?;
        }
        let swap = Swap {
            folder: &self.folder,
            files: &self.files,
            before: &self.before,
            drops_layers: true,
            layers: (!self.layers.is_empty()).then_some(staged),
            image: self.staged_file(),
            source: Vec::new(),
        };
        let what = format!("All of it is here: put it in the place of {}", self.files.image.display());
        swap.run(cx, what, failure)
    }
}
