//! The files of an image on the host that has it: what travels when a VM is given a disk of it.
//!
//! An image of this transfer manager is one file with full copies as snapshots. One that another transfer manager left as
//! layers of a chain is flattened first, beside it: upstream sends such an image as a link to nowhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::registered;
use crate::driver::common::folder::Folder;
use crate::driver::common::image::{self, Image};
use crate::driver::common::layers::{Layer, Layers, data_format};
use crate::exec::host::Host;
use crate::exec::op::{Op, Value};
use crate::exec::step::Step;
use crate::location::ImageFiles;
use crate::tool::qemu_img::{self, Zeroes};

/// See the module.
pub struct Goods {
    /// The host that has them.
    pub host: Arc<dyn Host>,
    /// The file that holds the image's current state, and nothing of it is elsewhere.
    pub current: PathBuf,
    /// Its format as QEMU has it.
    pub format: &'static str,
    /// Bytes that a guest sees, where that is known.
    pub bytes: Option<u64>,
    /// Its snapshots, each in a file of its own.
    pub snapshots: Vec<(u32, PathBuf)>,
}

/// An image that was looked at.
pub struct Found {
    host: Arc<dyn Host>,
    /// Its names.
    pub files: ImageFiles,
    /// Its size in bytes.
    pub size: u64,
    current: Layer,
    snapshots: Vec<(u32, Layer)>,
    /// Where it is flattened, if it has to be.
    chain: Option<Folder>,
    /// What is written in its `.md5sum`.
    pub digest: Option<String>,
}

impl Found {
    /// Looks at the image `source` of `host`; `format` is what oned says of it.
    ///
    /// # Errors
    /// It is missing, unsafe, or refers to what is not a part of it.
    pub fn look(cx: &Cx<'_>, host: &Arc<dyn Host>, source: &Path, format: Option<&str>) -> Result<Self> {
        let files = registered(source)?;
        let asked = [Folder::question(&files.base), Op::Head { path: files.md5sum(), len: 64 }];
        let questions = Image::questions(&files).into_iter().chain(asked);
        let answers = cx.query(host, questions)?;
        let Some((seen, [staging, digest])) = answers.split_first_chunk::<{ image::QUESTIONS }>() else {
            bail!("The host did not answer all questions")
        };
        let image = Image::read(files.clone(), seen);
        let stat = image.must_exist(host)?;
        let digest = Some(digest.text()).filter(|text| !text.is_empty());
        let raw = |path: PathBuf| image::raw(path, stat.size);
        let (mut snapshots, mut chain) = (Vec::new(), None);
        let current = if image.has_layers() {
            let layers = Layers::read(cx, host, &files, format)?;
            for number in image.numbers() {
                snapshots.push((number, layers.behind(layers.data(number)?).clone()));
            }
            if layers.is_chain() {
                chain = Some(Folder::of(host, &files.base, staging)?);
            }
            layers.active().clone()
        } else if format.is_none() {
            // A kernel: nothing of it is opened.
            raw(files.image.clone())
        } else {
            image.current(cx, host, format)?
        };
        snapshots.sort_by_key(|(number, _)| *number);
        Ok(Self { host: Arc::clone(host), files, size: stat.size, current, snapshots, chain, digest })
    }

    /// The host that has it.
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// Bytes that a guest sees.
    pub fn bytes(&self) -> Option<u64> {
        self.current.virtual_size
    }

    /// Whether it lies there as it will travel.
    pub fn is_plain(&self) -> bool {
        self.chain.is_none()
    }

    /// Numbers of its snapshots.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.snapshots.iter().map(|(number, _)| *number)
    }

    /// The files whose contents make up its digest.
    pub fn content(&self) -> Vec<PathBuf> {
        let snapshots = self.snapshots.iter().map(|(_, layer)| layer.path.clone());
        std::iter::once(self.files.image.clone()).chain(snapshots).collect()
    }

    /// The files that travel; those that need another one are flattened first.
    ///
    /// # Errors
    /// What qemu-img says; no space.
    pub fn goods(&self, cx: &Cx<'_>, failure: &str) -> Result<Goods> {
        let mut goods = Goods {
            host: Arc::clone(&self.host),
            current: self.current.path.clone(),
            format: data_format(self.current.format),
            bytes: self.current.virtual_size,
            snapshots: self.snapshots.iter().map(|(number, layer)| (*number, layer.path.clone())).collect(),
        };
        let Some(folder) = &self.chain else { return Ok(goods) };
        let name = self.files.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut ops = folder.prepare();
        let mut made = Vec::new();
        let mut flatten = |layer: &Layer, to: PathBuf| {
            let largest = layer.virtual_size.map(qemu_img::largest);
            let from = (layer.path.as_path(), data_format(layer.format));
            ops.push(Op::Run(qemu_img::convert(from, (&to, data_format(layer.format)), Zeroes::Holes, largest)));
            made.push(to.clone());
            to
        };
        goods.current = flatten(&self.current, folder.staging(format!("{name}.alone")));
        for ((number, layer), (_, path)) in self.snapshots.iter().zip(&mut goods.snapshots) {
            *path = flatten(layer, folder.staging(format!("{name}.alone.{number}")));
        }
        let remove = |path| Op::Remove { path, tree: false, must_exist: false };
        let undo: Vec<Op> = made.into_iter().map(remove).chain(folder.leave()).collect();
        let what = format!("Merge the layers of {} into files that stand alone", self.files.image.display());
        cx.apply(Step::new(&self.host, what, ops).undo(undo.clone()).or_say(failure))?;
        // They are in nobody's way while the disk is made, and nobody's afterwards.
        cx.after(Step::new(&self.host, "Remove the merged files", undo).best_effort());
        Ok(goods)
    }
}

/// The digest of an image by those of its files: that of a single file is the file's own, as upstream has it.
///
/// # Errors
/// A file cannot be read.
pub fn digest(cx: &Cx<'_>, host: &Arc<dyn Host>, files: &[PathBuf]) -> Result<String> {
    use md5::Digest as _;
    let answers = cx.query(host, files.iter().map(|path| Op::Md5 { path: path.clone() }));
    let sums: Vec<String> = answers.context("Cannot tell its digest")?.iter().map(Value::text).collect();
    if let [only] = sums.as_slice() {
        return Ok(only.clone());
    }
    let mut all = md5::Md5::new();
    for (sum, path) in sums.iter().zip(files) {
        all.update(format!("{sum}  {}\n", path.file_name().unwrap_or_default().to_string_lossy()));
    }
    Ok(format!("{:032x}", u128::from_be_bytes(all.finalize().into())))
}
