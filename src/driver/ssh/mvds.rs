//! `mvds`: a persistent disk goes back into its image, with its snapshots.
//!
//! Source: contract 02 §7. All of it arrives beside the image and is compared; the image is replaced by renames then. Upstream overwrites the image as the data comes in, and removes the layers of a disk
//! whose merging has failed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::export::Found;
use crate::context::Cx;
use crate::driver::common::args::{Disk, lock_of, plain_number, registered};
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::common::swap::{Before, Swap};
use crate::driver::{Reply, TmRequest};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::ImageFiles;

/// See the module.
pub fn mvds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let _: u32 = request.number(3, "DS_ID")?;
    let disk = request.disk(cx, 0, id)?;
    let (keeper, image) = place_of_image(cx, request)?;
    let failure = format!("Error copying {} to {}", disk.place.text, image.image.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let format = record(&vm, id, disk.number).with_context(|| failure.clone())?.format.trimmed();
    Target::lock(cx, &disk.place)?;
    let back = Back::look(cx, &disk, format, &keeper, image).with_context(|| failure.clone())?;

    // What is done.
    cx.info(format!("Moving {} to datastore as {}", disk.place.text, back.image.image.display()));
    back.merge(cx)?;
    back.bring(cx, &failure)?;
    back.put(cx, &failure)?;
    // The disk itself stays until oned has it deleted: an epilog that failed at another disk is repeated as a whole.
    if back.merges() {
        cx.after(Step::new(&disk.place.host, "Remove the merged files", back.leave()).best_effort());
    }
    Ok(Reply::Nothing)
}

/// Where the image is that the argument `[HOST:]SOURCE` names: on the front-end where it names no host.
pub fn place_of_image(cx: &Cx<'_>, request: &TmRequest) -> Result<(Arc<dyn Host>, ImageFiles)> {
    Ok((request.holder(cx, 1)?, registered(&request.path(1)?)?))
}

/// A disk on its way back.
struct Back<'d> {
    disk: &'d Disk,
    /// The VM's directory, where layers are merged.
    home: Folder,
    current: Found,
    snapshots: Vec<(u32, Found)>,
    image: ImageFiles,
    /// The image datastore.
    folder: Folder,
    /// The image now.
    before: Before,
    /// Whether its snapshots go, also where none come.
    replaces: bool,
}

impl<'d> Back<'d> {
    fn look(
        cx: &Cx<'_>,
        disk: &'d Disk,
        format: Option<&str>,
        keeper: &Arc<dyn Host>,
        image: ImageFiles,
    ) -> Result<Self> {
        let host = &disk.place.host;
        let questions = [Folder::question(&disk.place.dir), Op::Tree { path: disk.snapshots(), depth: 1 }];
        let answers = cx.query(host, questions)?;
        let [staging, tree] = answers.as_slice() else { bail!("The host did not answer all questions") };
        let home = Folder::of(host, &disk.place.dir, staging)?;
        let current = Found::look(cx, disk, &disk.path, format)?;
        let nodes = if let Value::Tree(nodes) = tree { nodes.as_slice() } else { &[] };
        let mut snapshots = Vec::new();
        for node in nodes.iter().filter(|node| node.kind == FileKind::File) {
            if let Some(number) = node.path.to_str().and_then(plain_number) {
                snapshots.push((number, Found::look(cx, disk, &disk.snapshots().join(&node.path), format)?));
            }
        }
        snapshots.sort_by_key(|(number, _)| *number);
        let questions = [Op::Stat { path: image.base.clone(), follow: true }, Folder::question(&image.base)];
        let answers = cx.query(keeper, questions.into_iter().chain(Before::questions(&image)))?;
        let [base, staging, before @ ..] = answers.as_slice() else {
            bail!("The front-end did not answer all questions")
        };
        if base.stat().is_none() {
            bail!("{} does not exist", image.base.display());
        }
        let before = Before::read(before)?;
        // A disk that was made anew from a replica host came without them: then the image's own are the last ones there are.
        let knows = matches!(tree, Value::Tree(_)) && !(current.file != disk.path && snapshots.is_empty());
        let folder = Folder::of(keeper, &image.base, staging)?;
        Ok(Self { disk, home, current, snapshots, image, folder, before, replaces: knows })
    }

    /// Each file with the name that a merged copy of it has in the VM's directory.
    fn files(&self) -> impl Iterator<Item = (Option<u32>, &Found, PathBuf)> {
        let merged = |name: String| self.home.staging(name);
        let current = (None, &self.current, merged(format!("{}.full", self.disk.name())));
        let each = self.snapshots.iter();
        let snapshots = each.map(move |(n, found)| (Some(*n), found, merged(format!("{}.full.{n}", self.disk.name()))));
        std::iter::once(current).chain(snapshots)
    }

    /// Has every file stand alone.
    fn merge(&self, cx: &Cx<'_>) -> Result<()> {
        let merges: Vec<Op> = self.files().filter_map(|(_, found, staged)| found.merge(&staged)).flatten().collect();
        if merges.is_empty() {
            return Ok(());
        }
        let mut ops = vec![Op::Lock { name: lock_of(self.disk.place.vm, &self.disk.name()), wait_seconds: 600 }];
        ops.extend(self.home.prepare());
        ops.extend(merges);
        let failure = format!("Error converting {} to standalone image", self.disk.place.text);
        let what = "Merge the disk's layers into files that stand alone";
        cx.apply(Step::new(&self.home.host, what, ops).undo(self.leave()).or_say(failure))?;
        Ok(())
    }

    /// Whether a file does not stand alone.
    fn merges(&self) -> bool {
        self.files().any(|(_, found, staged)| found.merge(&staged).is_some())
    }

    /// What removes merged copies.
    fn leave(&self) -> Vec<Op> {
        let merged = self.files().filter(|(_, found, staged)| found.merge(staged).is_some());
        let remove = merged.map(|(_, _, path)| Op::Remove { path, tree: false, must_exist: false });
        remove.chain(self.home.leave()).collect()
    }

    fn staged(&self) -> PathBuf {
        self.folder.staging(self.image.image.file_name().unwrap_or_default())
    }

    fn staged_snapshots(&self) -> PathBuf {
        self.folder.staging(self.image.snapshots().file_name().unwrap_or_default())
    }

    /// Brings all files to staging names beside the image.
    fn bring(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let mut ops = self.folder.prepare();
        if !self.snapshots.is_empty() {
            ops.push(Op::MakeDir { path: self.staged_snapshots() });
        }
        let undo = [Op::Remove { path: self.staged_snapshots(), tree: true, must_exist: false }];
        let step = Step::new(&self.folder.host, "Make room beside the image", ops);
        cx.apply(step.undo(undo.into_iter().chain(self.folder.leave())).or_say(failure))?;
        let loads = self.files().map(|(number, found, merged)| Load {
            from: if found.merge(&merged).is_some() { merged } else { found.file.clone() },
            to: number.map_or_else(|| self.staged(), |number| self.staged_snapshots().join(number.to_string())),
        });
        let loads: Vec<Load> = loads.collect();
        let journey =
            Journey { from: &self.disk.place.host, to: &self.folder.host, sparse: Sparse::Holes, address: None };
        carry(cx, &journey, &loads, failure)
    }

    /// Puts them in the place of the image. Between the renames the image is the old one with the new snapshots, which are
    /// whole files.
    fn put(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let swap = Swap {
            folder: &self.folder,
            files: &self.image,
            before: &self.before,
            drops_layers: self.replaces,
            layers: (!self.snapshots.is_empty()).then(|| self.staged_snapshots()),
            image: self.staged(),
            source: Vec::new(),
        };
        let what = format!("All of it is there: put it in the place of {}", self.image.image.display());
        swap.run(cx, what, failure)
    }
}
