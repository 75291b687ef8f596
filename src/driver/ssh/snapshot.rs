//! `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`: every snapshot is a full copy of the disk, `disk.N.snap/K`.
//!
//! Source: contract 02 §1, §7. A disk of which recovery snapshots are taken is layers, `base` and `base.1`; its snapshots are
//! merged copies, for the layers go on changing. Upstream copies the upper one alone, which nobody can go back to.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::export::{Found, Running};
use super::recovery::{self, Kept};
use crate::context::Cx;
use crate::driver::common::args::{Disk, lock_of};
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::layers::data_format;
use crate::driver::common::snapshot::{self as common, Act, Keeping};
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::payload::Vm;
use crate::tool::qemu_img::{self, CreateOptions};

/// Seconds that a script waits on the host for another one that changes the same disk.
const LOCK_WAIT: u64 = 600;

/// `snap_create`.
pub fn create(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let asked = Asked::read(cx, request, Act::Create)?;
    asked.create(cx)?;
    asked.send_to_replica(cx)?;
    Ok(Reply::Nothing)
}

/// `snap_create_live`.
pub fn create_live(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let asked = Asked::read(cx, request, Act::CreateLive)?;
    asked.create_live(cx)?;
    asked.send_to_replica(cx)?;
    Ok(Reply::Nothing)
}

/// `snap_revert`.
pub fn revert(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let asked = Asked::read(cx, request, Act::Revert)?;
    if asked.is_layered {
        asked.revert_layers(cx)?;
        return Ok(Reply::Nothing);
    }
    common::run(cx, request, Keeping::Copies, Act::Revert)
}

/// `snap_delete`.
pub fn delete(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let asked = Asked::read(cx, request, Act::Delete)?;
    if !asked.is_layered {
        return common::run(cx, request, Keeping::Copies, Act::Delete);
    }
    Target::lock(cx, &asked.disk.place)?;
    cx.info(format!("Deleting snapshot {}", asked.path.display()));
    let ops = [asked.lock(), Op::Remove { path: asked.path.clone(), tree: false, must_exist: false }];
    let what = format!("Remove the snapshot {}; this cannot be undone", asked.path.display());
    cx.apply(Step::new(&asked.disk.place.host, what, ops).or_say(&asked.failure))?;
    Ok(Reply::Nothing)
}

/// What is asked for.
struct Asked {
    disk: Disk,
    vm: Vm,
    /// `disk.N.snap/K`.
    path: PathBuf,
    failure: String,
    /// Whether the disk is layers of which recovery snapshots are taken.
    is_layered: bool,
    /// Name of the replica host, if there is one.
    replica: Option<String>,
}

impl Asked {
    fn read(cx: &Cx<'_>, request: &TmRequest, act: Act) -> Result<Self> {
        let id = request.number(2, "VM_ID")?;
        let k: u32 = request.number(1, "SNAPSHOT_ID")?;
        let disk = request.disk(cx, 0, id)?;
        let path = disk.snapshots().join(k.to_string());
        let failure = match act {
            Act::Create | Act::CreateLive => format!("Error creating snapshot {}", path.display()),
            Act::Revert => format!("Error reverting snapshot to {}", path.display()),
            Act::Delete => format!("Error deleting snapshot {}", path.display()),
        };
        let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
        let last = match vm.last_history() {
            Some(history) => history.ds_id.get().map_err(misuse)?,
            None => None,
        };
        let replica =
            recovery::replica_of(cx, last.unwrap_or(disk.place.datastore)).with_context(|| failure.clone())?;
        let link = cx.ask(&disk.place.host, Op::ReadLink { path: disk.path.clone() });
        let is_layered = matches!(link.with_context(|| failure.clone())?, Value::Bytes(_));
        Ok(Self { disk, vm, path, failure, is_layered, replica })
    }

    fn format(&self) -> Result<Option<&str>> {
        Ok(record(&self.vm, self.disk.place.vm, self.disk.number)?.format.trimmed())
    }

    fn lock(&self) -> Op {
        Op::Lock { name: lock_of(self.disk.place.vm, &self.disk.name()), wait_seconds: LOCK_WAIT }
    }

    /// The VM's directory, the staging name of the snapshot in it, and what takes the snapshot back. One of that number that
    /// is there already is from a try that oned was not told of: it is replaced.
    fn room(&self, cx: &Cx<'_>) -> Result<(Folder, PathBuf, Vec<Op>)> {
        let host = &self.disk.place.host;
        let dir = &self.disk.place.dir;
        let questions = [Folder::question(dir), Op::Stat { path: self.path.clone(), follow: false }];
        let answers = cx.query(host, questions)?;
        let [staging, there] = answers.as_slice() else { bail!("The host did not answer all questions") };
        let folder = Folder::of(host, dir, staging)?;
        let name = format!("{}.snap.{}", self.disk.name(), self.path.file_name().unwrap_or_default().display());
        let staged = folder.staging(name);
        let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
        let mut undo = vec![remove(staged.clone())];
        if there.stat().is_none() {
            undo.extend([remove(self.path.clone()), Op::RemoveDirIfEmpty { path: self.disk.snapshots() }]);
        }
        undo.extend(folder.leave());
        Ok((folder, staged, undo))
    }

    /// What gives the staged snapshot its name.
    fn put(&self, staged: PathBuf) -> [Op; 3] {
        let dir = self.disk.snapshots();
        [Op::MakeDir { path: dir.clone() }, Op::Rename { from: staged, to: self.path.clone() }, Op::Sync { path: dir }]
    }

    fn create(&self, cx: &Cx<'_>) -> Result<()> {
        let failure = || self.failure.clone();
        Target::lock(cx, &self.disk.place)?;
        let (folder, staged, undo) = self.room(cx).with_context(failure)?;
        let found = Found::look(cx, &self.disk, &self.disk.path, self.format()?).with_context(failure)?;
        cx.info(format!("Creating snapshot {}", self.path.display()));
        let mut ops = vec![self.lock()];
        ops.extend(folder.prepare());
        match found.merge(&staged) {
            Some(merge) => ops.extend(merge),
            None => ops.extend([
                Op::Copy { from: found.file, to: staged.clone(), sparse: Sparse::Holes },
                Op::Sync { path: staged.clone() },
            ]),
        }
        ops.extend(self.put(staged));
        ops.extend(folder.leave());
        let what = if self.is_layered {
            "Merge the disk's layers into a copy that stands alone".to_owned()
        } else {
            format!("Copy the disk to {}, sharing its blocks where the file system can", self.path.display())
        };
        cx.apply(Step::new(&folder.host, what, ops).undo(undo).or_say(&self.failure))?;
        Ok(())
    }

    fn create_live(&self, cx: &Cx<'_>) -> Result<()> {
        let failure = || self.failure.clone();
        Target::lock(cx, &self.disk.place)?;
        let (folder, staged, undo) = self.room(cx).with_context(failure)?;
        cx.info(format!("Creating snapshot {}", self.path.display()));
        let running = Running { disk: &self.disk, vm: &self.vm, to: &staged };
        running.copy(cx, &folder, &self.failure).with_context(failure)?;
        let mut ops = vec![self.lock()];
        ops.extend(self.put(staged));
        ops.extend(folder.leave());
        let what = format!("The copy is whole: give it its name {}", self.path.display());
        cx.apply(Step::new(&folder.host, what, ops).undo(undo).or_say(&self.failure))?;
        Ok(())
    }

    /// Also on the replica host, as its last snapshot: a disk without layers can be brought back from there by hand.
    fn send_to_replica(&self, cx: &Cx<'_>) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let kept = Kept::of(cx, replica, self.disk.place.vm)?;
        let name = format!("{}.replica_snap", self.disk.name());
        let from = (&self.disk.place.host, self.path.as_path());
        kept.put(cx, from, (&kept.dir.join(&name), &name), [], &self.failure)
    }

    /// The snapshot becomes the base of an empty layer. At every moment the disk is what it was at some moment: first the
    /// layer is emptied, which makes it the old base, then the base is replaced.
    fn revert_layers(&self, cx: &Cx<'_>) -> Result<()> {
        // What is read.
        let failure = || self.failure.clone();
        Target::lock(cx, &self.disk.place)?;
        let host = &self.disk.place.host;
        let found = Found::look(cx, &self.disk, &self.path, self.format()?).with_context(failure)?;
        let layers = self.disk.snapshots();
        let base = layers.join("base");
        let questions = [
            Folder::question(&self.disk.place.dir),
            Op::Stat { path: base.clone(), follow: false },
            Op::ReadLink { path: self.disk.path.clone() },
        ];
        let answers = cx.query(host, questions).with_context(failure)?;
        let [staging, there, link] = answers.as_slice() else { bail!("{}: no answer", self.failure) };
        let top = Path::new(layers.file_name().unwrap_or_default()).join("base.1");
        if there.stat().is_none_or(|stat| stat.kind != FileKind::File) || link.text() != top.display().to_string() {
            bail!("{}: {} is not an upper layer on {}", self.failure, self.disk.path.display(), base.display());
        }
        let folder = Folder::of(host, &self.disk.place.dir, staging)?;
        let format = qemu_img::written(self.format()?);
        let old = crate::driver::common::backing::judged(cx, &self.disk, &base, &mut std::collections::HashMap::new());
        let old = old.with_context(failure)?;
        let new = if format == "raw" { Some(found.size) } else { None };
        let name = |what: &str| folder.staging(format!("{}.{what}", self.disk.name()));
        let (new_base, empty, new_top) = (name("base"), name("old.1"), name("base.1"));

        // What is done.
        cx.info(format!("Reverting to snapshot {}", self.path.display()));
        if let Some(replica) = &self.replica {
            // Layers that it has do not fit the new base.
            let kept = Kept::of(cx, replica, self.disk.place.vm)?;
            let remove = |name: &str| Op::Remove {
                path: kept.layers(&self.disk.name()).join(name),
                tree: false,
                must_exist: false,
            };
            let what = "Remove what the replica host has of the disk: it will not fit any more";
            cx.apply(Step::new(&kept.host, what, ["base.1", "base"].map(remove)).or_say(&self.failure))?;
        }
        let mut ops = vec![self.lock()];
        ops.extend(folder.prepare());
        match found.merge(&new_base) {
            Some(merge) => ops.extend(merge),
            None => ops.extend([
                Op::Copy { from: found.file.clone(), to: new_base.clone(), sparse: Sparse::Holes },
                Op::Sync { path: new_base.clone() },
            ]),
        }
        let backing = Path::new(layers.file_name().unwrap_or_default()).join("base");
        let options = CreateOptions::default();
        let old_bytes = old.virtual_size.with_context(|| format!("{}: its size is unknown", self.failure))?;
        let bytes = match new {
            Some(bytes) => bytes,
            None => crate::driver::common::backing::judged(
                cx,
                &self.disk,
                &found.file,
                &mut std::collections::HashMap::new(),
            )
            .with_context(failure)?
            .virtual_size
            .with_context(|| format!("{}: its size is unknown", self.failure))?,
        };
        for (path, format, bytes) in [(&empty, data_format(old.format), old_bytes), (&new_top, format, bytes)] {
            ops.push(Op::Run(qemu_img::create_overlay_with(path, &backing, format, bytes, &options)));
            ops.push(Op::Sync { path: path.clone() });
        }
        let to_top = layers.join("base.1");
        ops.push(Op::Rename { from: empty.clone(), to: to_top.clone() });
        ops.push(Op::Sync { path: layers.clone() });
        ops.push(Op::Rename { from: new_base.clone(), to: base.clone() });
        ops.push(Op::Rename { from: new_top.clone(), to: to_top });
        ops.push(Op::Sync { path: layers });
        ops.extend(folder.leave());
        let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
        let undo = [new_base, empty, new_top].map(remove).into_iter().chain(folder.leave());
        let what = format!("Make {} the base of the disk", self.path.display());
        cx.apply(Step::new(host, what, ops).undo(undo).or_say(&self.failure))?;
        if let Some(replica) = &self.replica {
            let kept = Kept::of(cx, replica, self.disk.place.vm)?;
            if let Err(error) = kept.put_base(cx, &self.disk.name(), (host, &base)) {
                cx.control.check()?;
                cx.warn(format!("{error:#}: no recovery snapshot of the disk can be used until it is made anew"));
            }
        }
        Ok(())
    }
}
