//! `ln.ssh` and `mvds.ssh`: a persistent image whose VM runs on the host's own storage (mixed mode). It goes there with
//! its layers, and comes back.
//!
//! Source: contract 02 §1, §6. Backing names are made to fit the new place; they stay relative. On the way back the image
//! is replaced when all of it has arrived and is on the disk; only then the host's copy goes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::clone::{Layout, begin_layers, monitoring};
use super::mounts::{self, Mounts};
use crate::context::Cx;
use crate::driver::common::args::{Disk, lock_of, plain_number};
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::layers::{HEAD, Layer, Layers, data_format, judged};
use crate::driver::common::swap::{Before, Swap};
use crate::driver::common::trees::drop_old;
use crate::driver::{Reply, TmRequest};
use crate::exec::op::{FileKind, Node, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::image::Format;
use crate::location::ImageFiles;
use crate::tool::qemu_img;

/// `ln.ssh`.
pub fn ln(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let (id, datastore) = (request.number(2, "VM_ID")?, request.number(3, "DS_ID")?);
    let to = request.disk(cx, 1, id)?;
    let place = &to.place;
    let files = place.image(&request.path(0)?)?;
    let failure = format!("Error copying {} to {}", request.text(0), place.text);
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let wanted = record(&vm, id, to.number).with_context(|| failure.clone())?;
    let format = wanted.format.trimmed();
    let sparse = if wanted.sparse.is_no() { Sparse::Allocate } else { Sparse::Holes };
    let mounts = Mounts::wanted(cx, place, datastore, None)?;
    Target::lock(cx, place)?;
    let looked = mounts::look(cx, &mounts, place, files).with_context(|| failure.clone())?;
    let (target, image) = (&looked.target, &looked.image);
    if !looked.is_planned {
        image.must_exist(&place.host).with_context(|| failure.clone())?;
    }

    // What is decided.
    let layers = if image.has_layers() {
        Some(Layers::read(cx, &place.host, &image.files, format).with_context(|| failure.clone())?)
    } else {
        None
    };
    let qcow2 = match &layers {
        Some(layers) => layers.image.format == Format::Qcow2,
        None if looked.is_planned || format == Some("raw") => format == Some("qcow2"),
        None => image.current(cx, &place.host, format).with_context(|| failure.clone())?.format == Format::Qcow2,
    };

    // What is done.
    cx.info(format!("Copying {} in {}", image.files.image.display(), place.text));
    let staged = target.staged_layers();
    let copy = |from: PathBuf, to: PathBuf| Op::Copy { from, to, sparse };
    let mut ops = Vec::new();
    let names: Vec<&OsString> = image.names.iter().flatten().filter(|name| is_layer_name(name)).collect();
    if qcow2 || !names.is_empty() {
        ops.extend(begin_layers(target));
    }
    for name in &names {
        ops.push(copy(image.files.snapshots().join(name), staged.join(name)));
    }
    if let Some(layers) = &layers {
        if let Some(first) = layers.first()? {
            ops.push(copy(image.files.image.clone(), staged.join(first.to_string())));
        }
        for (id, below, format) in layers.numbered()? {
            let backing = own_name(&to.name(), &below);
            ops.push(Op::Run(qemu_img::rebase(&staged.join(id.to_string()), Some(&backing), format, false)));
        }
    }
    if qcow2 {
        if image.numbers().next().is_none() {
            ops.push(copy(image.files.image.clone(), staged.join("0")));
        }
        ops.extend(synced(&ops));
        ops.extend(target.put_layers(image.numbers().max().unwrap_or(0)));
    } else {
        ops.extend(synced(&ops));
        ops.push(copy(image.files.image.clone(), target.staged_file()));
        ops.extend(target.put_file());
        if !names.is_empty() {
            ops.push(Op::Rename { from: staged, to: target.snapshots() });
        }
    }
    ops.extend(monitoring(place, Layout::Host, looked.monitor.as_deref()));
    let what = format!("Copy {} with its layers to the host's own storage", image.files.image.display());
    cx.apply(target.step(what, ops).or_say(failure))?;
    Ok(Reply::Nothing)
}

/// `K`, `K.current` or `K.deleting`: what belongs to a chain of layers. Without the last a snapshot that is half deleted
/// would be taken for a whole one at the other end.
fn is_layer_name(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    let marked = [".current", ".deleting"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
    plain_number(marked.unwrap_or(name)).is_some()
}

/// An answer that is the beginning of a file; nothing where there is none.
fn bytes(answer: &Value) -> &[u8] {
    match answer {
        Value::Bytes(bytes) => bytes,
        _ => &[],
    }
}

/// What brings the copies among `ops` to the disk.
fn synced(ops: &[Op]) -> Vec<Op> {
    let copies = ops.iter().filter_map(|op| if let Op::Copy { to, .. } = op { Some(to) } else { None });
    copies.map(|path| Op::Sync { path: path.clone() }).collect()
}

/// How a layer is named by the one that stands on it: through the link of the directory to itself.
fn own_name(disk: &str, below: &Path) -> PathBuf {
    Path::new(&format!("{disk}.snap")).join(below.file_name().unwrap_or_default())
}

/// `mvds.ssh`.
pub fn mvds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let from = request.disk(cx, 0, id)?;
    let files = from.place.image(&request.path(1)?)?;
    let host = &from.place.host;
    let failure = format!("Error moving disk {} to {} on {}", from.path.display(), files.image.display(), host.name());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let format = record(&vm, id, from.number).with_context(|| failure.clone())?.format.trimmed();
    Target::lock(cx, &from.place)?;
    let Some(back) = Back::read(cx, &from, files, format).with_context(|| failure.clone())? else {
        // A run that was killed had put everything in place, and was removing what it came from.
        drop_old(cx, host, vec![from.snapshots()]);
        return Ok(Reply::Nothing);
    };

    // What is done.
    cx.info(format!("Moving {} to datastore as {}", from.place.text, back.files.image.display()));
    back.copy(cx, &failure)?;
    back.put(cx, &failure)?;
    Ok(Reply::Nothing)
}

/// Whether the image is one of layers, and has each of these under the same name and of the same size.
fn is_in_image(cx: &Cx<'_>, disk: &Disk, files: &ImageFiles, layers: &[Node]) -> Result<bool> {
    let snapshots = files.snapshots();
    let questions = [Op::ReadLink { path: files.image.clone() }, Op::Tree { path: snapshots.clone(), depth: 1 }];
    let answers = cx.query(&disk.place.host, questions)?;
    let [Value::Bytes(link), Value::Tree(there)] = answers.as_slice() else { return Ok(false) };
    let link = Path::new(OsStr::from_bytes(link));
    let is_file = |node: &&Node| node.kind == FileKind::File;
    let has = |wanted: &Path, size: Option<u64>| {
        there.iter().filter(is_file).any(|node| node.path == wanted && size.is_none_or(|size| node.size == size))
    };
    let own = link.parent().is_some_and(|parent| Some(parent.as_os_str()) == snapshots.file_name());
    let whole = own && link.file_name().is_some_and(|name| has(Path::new(name), None));
    Ok(whole && layers.iter().filter(is_file).all(|node| has(&node.path, Some(node.size))))
}

/// A disk on its way back into its image.
struct Back<'d> {
    disk: &'d Disk,
    files: ImageFiles,
    folder: Folder,
    /// Files of `disk.N.snap` by name, with their sizes.
    layers: Vec<(OsString, u64)>,
    /// Layers that stand on another: file, what it stands on, and the format of that.
    stands: Vec<(OsString, PathBuf, &'static str)>,
    /// The layer that the disk is, where it is one.
    active: Option<OsString>,
    /// Size of the disk where it is a file of its own.
    file: Option<u64>,
    /// The image now.
    before: Before,
}

impl<'d> Back<'d> {
    /// Nothing where the disk is gone and what is left of its layers is in the image.
    fn read(cx: &Cx<'_>, disk: &'d Disk, files: ImageFiles, format: Option<&str>) -> Result<Option<Self>> {
        let host = &disk.place.host;
        let questions = [
            Op::Stat { path: disk.path.clone(), follow: false },
            Op::ReadLink { path: disk.path.clone() },
            Op::Tree { path: disk.snapshots(), depth: 1 },
            Folder::question(&files.base),
            Op::Stat { path: files.base.clone(), follow: true },
        ];
        let now = Before::questions(&files);
        let mut answers = cx.query(host, questions.into_iter().chain(now).chain(disk.dirs()))?;
        disk.refuse_links(&answers.split_off(answers.len().min(8)))?;
        let before = Before::read(&answers.split_off(answers.len().min(5)))?;
        let [stat, link, tree, staging, base] =
            <[Value; 5]>::try_from(answers).map_err(|_| anyhow::anyhow!("The host did not answer all questions"))?;
        if base.stat().is_none() {
            bail!("{} does not exist on {}", files.base.display(), host.name());
        }
        let Some(stat) = stat.stat() else {
            if let Value::Tree(left) = &tree
                && is_in_image(cx, disk, &files, left)?
            {
                return Ok(None);
            }
            bail!("{} does not exist on {}", disk.path.display(), host.name())
        };
        let nodes = if let Value::Tree(nodes) = tree { nodes } else { Vec::new() };
        let is_layer = |node: &&Node| node.kind == FileKind::File && is_layer_name(node.path.as_os_str());
        let layers: Vec<(OsString, u64)> =
            nodes.iter().filter(is_layer).map(|node| (node.path.clone().into_os_string(), node.size)).collect();
        let active = match link {
            Value::Bytes(text) => {
                let text = Path::new(OsStr::from_bytes(&text));
                let target = super::super::common::backing::without_self_links(&disk.place.dir.join(text));
                let name = target.file_name().unwrap_or_default().to_owned();
                let own = target.parent() == Some(&disk.snapshots()) && layers.iter().any(|(layer, _)| *layer == name);
                if !own {
                    bail!("{} is a link to {}, which is no layer of it", disk.path.display(), text.display());
                }
                Some(name)
            }
            _ if stat.kind == FileKind::File => None,
            _ => bail!("{} is no file", disk.path.display()),
        };
        let folder = Folder::of(host, &files.base, &staging)?;
        let file = active.is_none().then_some(stat.size);
        let mut back = Self { disk, files, folder, layers, stands: Vec::new(), active, file, before };
        if format != Some("raw") {
            back.read_layers(cx)?;
        }
        Ok(Some(back))
    }

    /// What the layers stand on, each of them on another one of the disk.
    fn read_layers(&mut self, cx: &Cx<'_>) -> Result<()> {
        let host = &self.disk.place.host;
        let dir = self.disk.snapshots();
        let numbered: Vec<OsString> = self
            .layers
            .iter()
            .map(|(name, _)| name.clone())
            .filter(|name| name.to_str().and_then(plain_number).is_some())
            .collect();
        let mut questions: Vec<Op> = numbered.iter().map(|name| Op::Head { path: dir.join(name), len: HEAD }).collect();
        if self.file.is_some() {
            questions.push(Op::Head { path: self.disk.path.clone(), len: HEAD });
        }
        let heads = cx.query(host, questions)?;
        let mut seen: Vec<(OsString, Layer)> = Vec::new();
        for (name, head) in numbered.iter().zip(&heads) {
            seen.push((name.clone(), judged(cx, host, &dir.join(name), None, bytes(head))?));
        }
        if let (Some(size), Some(head)) = (self.file, heads.get(numbered.len())) {
            let own = judged(cx, host, &self.disk.path, Some(size), bytes(head))?;
            if let Some(backing) = own.backing {
                bail!(
                    "{} is a file that stands on {}, which no image may",
                    self.disk.path.display(),
                    backing.display()
                );
            }
        }
        for (name, one) in &seen {
            let Some(backing) = &one.backing else { continue };
            let below =
                super::super::common::backing::without_self_links(&crate::location::normalize(&dir.join(backing)));
            let found = seen.iter().find(|(name, _)| below == dir.join(name));
            let Some((below, on)) = found else {
                bail!("{} refers to {}, which is not a part of it", dir.join(name).display(), backing.display());
            };
            let file = self.files.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.stands.push((name.clone(), own_name(&file, Path::new(below)), data_format(on.format)));
        }
        Ok(())
    }

    fn staged_layers(&self) -> PathBuf {
        self.folder.staging(self.files.snapshots().file_name().unwrap_or_default())
    }

    fn staged_file(&self) -> PathBuf {
        self.folder.staging(self.files.image.file_name().unwrap_or_default())
    }

    /// Copies everything beside the image, has it on the disk, and compares sizes.
    fn copy(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let host = &self.disk.place.host;
        let staged = self.staged_layers();
        let mut ops = vec![Op::Lock { name: lock_of(self.disk.place.vm, &self.disk.name()), wait_seconds: 600 }];
        ops.extend(self.folder.prepare());
        let mut made = Vec::new();
        if !self.layers.is_empty() {
            let own = self.files.snapshots().file_name().map(ToOwned::to_owned).unwrap_or_default();
            ops.push(Op::MakeDir { path: staged.clone() });
            ops.push(Op::Symlink { target: ".".into(), link: staged.join(&own) });
            if let Some(layer) = &self.active {
                ops.push(Op::Symlink { target: Path::new(&own).join(layer), link: self.staged_file() });
            }
        }
        let all = self.layers.iter().map(|(name, size)| (self.disk.snapshots().join(name), staged.join(name), *size));
        let all = all.chain(self.file.map(|size| (self.disk.path.clone(), self.staged_file(), size)));
        for (from, to, size) in all {
            ops.push(Op::Copy { from, to: to.clone(), sparse: Sparse::Holes });
            made.push((to, size));
        }
        // Before the names in the headers are changed: these are sizes of the originals.
        ops.extend(made.iter().map(|(path, _)| Op::Stat { path: path.clone(), follow: false }));
        let rebase = |(name, backing, format): &(OsString, PathBuf, &'static str)| {
            Op::Run(qemu_img::rebase(&staged.join(name), Some(backing), format, false))
        };
        ops.extend(self.stands.iter().map(rebase));
        ops.extend(made.iter().map(|(path, _)| Op::Sync { path: path.clone() }));
        let remove = |path: PathBuf| Op::Remove { path, tree: true, must_exist: false };
        let undo = [remove(staged.clone()), remove(self.staged_file())].into_iter().chain(self.folder.leave());
        let what = "Copy the disk with its layers beside the image";
        let answers = cx.apply(Step::new(host, what, ops).undo(undo).or_say(failure))?;
        let sizes = answers.iter().filter_map(Value::stat).map(|stat| stat.size);
        if cx.is_real() && !sizes.eq(made.iter().map(|(_, size)| *size)) {
            bail!("{failure}: the copy differs from the disk in size");
        }
        Ok(())
    }

    /// Puts the copies in place, and only then removes the disk.
    fn put(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let swap = Swap {
            folder: &self.folder,
            files: &self.files,
            before: &self.before,
            drops_layers: true,
            layers: (!self.layers.is_empty()).then(|| self.staged_layers()),
            image: self.staged_file(),
            source: vec![self.disk.path.clone(), self.disk.snapshots()],
        };
        let what = format!("Put them in the place of {}", self.files.image.display());
        swap.run(cx, what, failure)
    }
}
