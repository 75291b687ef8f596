//! A disk of a VM that is made or replaced: built under a staging name beside it, put in its place by renames.
//!
//! Source: contract 02 §1 (layouts), §13 (what overwrites). One script on the host does all of it. Killed anywhere, the
//! disk is the old one, the new one, or (between two renames of a layer directory) a link to nowhere; oned takes the
//! action for failed then, and the next one starts afresh.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::args::{VmPlace, lock_of};
use super::folder::Folder;
use crate::context::Cx;
use crate::exec::op::{FileKind, Op, Value};
use crate::exec::step::Step;
use crate::location::with_suffix;
use crate::payload::{Disk as DiskRecord, Vm};

/// Seconds that a script waits on the host for another one that changes the same disk.
const LOCK_WAIT: u64 = 600;

/// Number of questions that [`Target::questions`] asks.
const QUESTIONS: usize = 5;

/// The place of a disk (or kernel, or ramdisk) and what is there now.
pub struct Target {
    /// The VM's directory, and its staging directory.
    pub folder: Folder,
    /// Where the disk will be.
    pub path: PathBuf,
    name: String,
    lock: String,
    /// Whether there are the directory, the disk, its layers, and the system datastore's directory now.
    has: [bool; 4],
}

impl Target {
    /// What has to be asked of the host.
    pub fn questions(place: &VmPlace) -> [Op; QUESTIONS] {
        let stat = |path| Op::Stat { path, follow: false };
        [
            Folder::question(&place.dir),
            stat(place.dir.clone()),
            stat(place.path()),
            stat(with_suffix(&place.path(), ".snap")),
            stat(place.datastore_dir()),
        ]
    }

    /// The place, by the answers; what is left of them is given back.
    ///
    /// # Errors
    /// The place has no file name; a directory is in the way.
    pub fn read<'v>(place: &VmPlace, answers: &'v [Value]) -> Result<(Self, &'v [Value])> {
        let Some(([list, found @ ..], rest)) = answers.split_first_chunk::<QUESTIONS>() else {
            bail!("The host did not answer all questions");
        };
        let Some(name) = place.name.clone() else { bail!("{} is a directory, not a disk", place.text) };
        let has = [0, 1, 2, 3].map(|at| found[at].stat().is_some());
        let is = |at: usize, kind: FileKind| found[at].stat().is_some_and(|stat| stat.kind == kind);
        if is(0, FileKind::Link) {
            bail!("{} is a link, not the VM's directory", place.dir.display());
        }
        if is(1, FileKind::Dir) {
            bail!("{} is a directory", place.path().display());
        }
        let folder = Folder::of(&place.host, &place.dir, list)?;
        let target = Self { folder, path: place.path(), lock: lock_of(place.vm, &name), name, has };
        Ok((target, rest))
    }

    /// `disk.N.snap`.
    pub fn snapshots(&self) -> PathBuf {
        with_suffix(&self.path, ".snap")
    }

    /// Where a plain file is built.
    pub fn staged_file(&self) -> PathBuf {
        self.folder.staging(&self.name)
    }

    /// Where a directory of layers is built.
    pub fn staged_layers(&self) -> PathBuf {
        self.folder.staging(format!("{}.snap", self.name))
    }

    /// What every script begins with.
    pub fn begin(&self) -> Vec<Op> {
        let mut ops = vec![Op::Lock { name: self.lock.clone(), wait_seconds: LOCK_WAIT }];
        ops.extend(self.folder.prepare());
        ops
    }

    /// What puts a built file in place, once it is on the disk. Layers of the disk that was there before go.
    pub fn put_file(&self) -> Vec<Op> {
        let mut ops =
            vec![Op::Sync { path: self.staged_file() }, Op::Rename { from: self.staged_file(), to: self.path.clone() }];
        ops.extend(self.drop_layers());
        ops
    }

    /// What makes the disk a link. Layers of the disk that was there before go.
    pub fn put_link(&self, target: &Path) -> Vec<Op> {
        let mut ops = vec![Op::Symlink { target: target.to_owned(), link: self.path.clone() }];
        ops.extend(self.drop_layers());
        ops
    }

    /// What puts built layers in place, with `active` as the one that is written to.
    pub fn put_layers(&self, active: impl std::fmt::Display) -> Vec<Op> {
        let away = self.away();
        let mut ops = Vec::new();
        if self.has[2] {
            ops.push(Op::Rename { from: self.snapshots(), to: away.clone() });
        }
        ops.push(Op::Rename { from: self.staged_layers(), to: self.snapshots() });
        // Relative, so that the directory can be moved.
        let target = Path::new(&format!("{}.snap", self.name)).join(active.to_string());
        ops.push(Op::Symlink { target, link: self.path.clone() });
        if self.has[2] {
            ops.push(Op::Remove { path: away, tree: true, must_exist: false });
        }
        ops
    }

    fn away(&self) -> PathBuf {
        self.folder.staging(format!("{}.snap.old", self.name))
    }

    fn drop_layers(&self) -> Option<Op> {
        self.has[2].then(|| Op::Remove { path: self.snapshots(), tree: true, must_exist: false })
    }

    /// What takes everything back that was not there before.
    pub fn undo(&self) -> Vec<Op> {
        let remove = |path: PathBuf| Op::Remove { path, tree: true, must_exist: false };
        let mut undo = vec![remove(self.staged_file()), remove(self.staged_layers())];
        if !self.has[1] {
            undo.push(remove(self.path.clone()));
        }
        if self.has[2] {
            // Where the new ones are in place already, the old ones belong to nothing.
            undo.extend([Op::PutBack { from: self.away(), to: self.snapshots() }, remove(self.away())]);
        } else {
            undo.push(remove(self.snapshots()));
        }
        undo.extend(self.folder.leave());
        if !self.has[0] {
            undo.push(Op::RemoveDirIfEmpty { path: self.folder.base.clone() });
        }
        if let (false, Some(datastore)) = (self.has[3], self.folder.base.parent()) {
            undo.push(Op::RemoveDirIfEmpty { path: datastore.to_owned() });
        }
        undo
    }

    /// A step that begins, does `ops`, has the names on the disk, and leaves.
    pub fn step(&self, what: impl Into<String>, ops: impl IntoIterator<Item = Op>) -> Step {
        let mut all = self.begin();
        all.extend(ops);
        all.push(Op::Sync { path: self.folder.base.clone() });
        all.extend(self.folder.leave());
        Step::new(&self.folder.host, what, all).undo(self.undo())
    }

    /// Keeps other actions of this front-end from the disk until this one ends.
    ///
    /// # Errors
    /// Another one held it for ten minutes.
    pub fn lock(cx: &Cx<'_>, place: &VmPlace) -> Result<()> {
        let name = place.name.as_deref().unwrap_or("dir");
        // Not the name that the script takes on the host: the host may be this machine.
        let lock = format!("{}-action", lock_of(place.vm, name));
        cx.lock(&lock).with_context(|| format!("Cannot keep others from {}", place.text))
    }
}

/// The VM's record of a disk.
///
/// # Errors
/// oned knows no such disk of it.
pub fn record(vm: &Vm, id: u32, number: u32) -> Result<&DiskRecord> {
    match vm.disk(number) {
        Some(disk) => Ok(disk),
        None => bail!("VM {id} has no disk {number} in oned"),
    }
}
