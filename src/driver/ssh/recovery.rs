//! What a replica host keeps of a VM: the image that a disk began with and the last copy of what the VM wrote, from which
//! the disk is made anew when its host has failed.
//!
//! Source: contract 02 §7.1. `<REPLICA_RECOVERY_SNAPS_DIR>/<vm>` holds `disk.N -> disk.N.snap/base.1`,
//! `disk.N.snap/{base,base.1}` and `disk.N.replica_snap`, as upstream lays them out.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::report::Misuse;
use crate::settings::Settings;

/// Where recovery snapshots are where nobody says it.
const ROOT: &str = "/var/lib/one/datastores/replica_snaps";

/// The replica host of a system datastore, if it has one.
///
/// # Errors
/// oned does not answer.
pub fn replica_of(cx: &Cx<'_>, datastore: u32) -> Result<Option<String>> {
    let answer = cx.oned().datastore(datastore)?;
    Ok(answer.template.replica_host.trimmed().map(str::to_owned))
}

/// What there is of a disk on its replica host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Has {
    /// Whether the disk can be made anew from there.
    pub whole: bool,
    base: bool,
    link: bool,
}

/// What a replica host keeps of one VM.
pub struct Kept {
    /// The replica host.
    pub host: Arc<dyn Host>,
    /// `<REPLICA_RECOVERY_SNAPS_DIR>/<vm>`.
    pub dir: PathBuf,
}

impl Kept {
    /// Of the VM `vm`, on the host called `replica`.
    ///
    /// # Errors
    /// A name that cannot be a host's; the operator's directory cannot be one.
    pub fn of(cx: &Cx<'_>, replica: &str, vm: u32) -> Result<Self> {
        let host = cx.host(replica).map_err(|e| Misuse(format!("Bad REPLICA_HOST: {e:#}")))?;
        Ok(Self { host, dir: root(cx.settings)?.join(vm.to_string()) })
    }

    /// `disk.N.snap` there.
    pub fn layers(&self, disk: &str) -> PathBuf {
        self.dir.join(format!("{disk}.snap"))
    }

    /// What is kept of the disk.
    ///
    /// # Errors
    /// The replica host cannot be reached.
    pub fn has(&self, cx: &Cx<'_>, disk: &str) -> Result<Has> {
        let stat = |path: PathBuf| Op::Stat { path, follow: false };
        let layers = self.layers(disk);
        let found =
            cx.query(&self.host, [layers.join("base"), layers.join("base.1"), self.dir.join(disk)].map(stat))?;
        let is = |at: usize| found.get(at).and_then(Value::stat);
        let is_file = |at: usize| is(at).is_some_and(|stat| stat.kind == FileKind::File);
        Ok(Has { whole: is_file(0) && is_file(1), base: is(0).is_some(), link: is(2).is_some() })
    }

    /// Removes what [`Kept::put_base`] makes where nothing is there, should the action fail.
    pub fn forget_on_failure(&self, cx: &Cx<'_>, disk: &str, has: Has) {
        let layers = self.layers(disk);
        let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
        let mut undo = Vec::new();
        undo.extend((!has.base).then(|| remove(layers.join("base"))));
        undo.extend((!has.link).then(|| remove(self.dir.join(disk))));
        undo.extend([layers, self.dir.clone()].map(|path| Op::RemoveDirIfEmpty { path }));
        cx.on_failure(Step::new(&self.host, "Keep a base of the disk on the replica host", []).undo(undo));
    }

    /// Puts a file of `from` there as the one that the disk begins with. What was kept of the disk before is of no use any
    /// more: it goes first, so that it is never taken together with the new one.
    ///
    /// # Errors
    /// The file cannot be brought; then nothing can be made anew from there.
    pub fn put_base(&self, cx: &Cx<'_>, disk: &str, (from, base): (&Arc<dyn Host>, &Path)) -> Result<()> {
        let failure = "Error uploading base image to replica";
        let layers = self.layers(disk);
        let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
        let link = Op::Symlink { target: Path::new(&format!("{disk}.snap")).join("base.1"), link: self.dir.join(disk) };
        let before = [remove(layers.join("base.1")), Op::MakeDir { path: layers.clone() }, link];
        self.put(cx, (from, base), (&layers.join("base"), &format!("{disk}.base")), before, failure)
    }

    /// Puts a file of `from` there under a name.
    ///
    /// # Errors
    /// The file cannot be brought, under `failure`.
    pub fn put(
        &self,
        cx: &Cx<'_>,
        (from, file): (&Arc<dyn Host>, &Path),
        (to, name): (&Path, &str),
        before: impl IntoIterator<Item = Op>,
        failure: &str,
    ) -> Result<()> {
        let list = cx.ask(&self.host, Folder::question(&self.dir)).with_context(|| failure.to_owned())?;
        let folder = Folder::of(&self.host, &self.dir, &list)?;
        let staged = folder.staging(name);
        let ops = folder.prepare().into_iter().chain(before);
        cx.apply(folder.prepared_step("Make room on the replica host", ops).or_say(failure))?;
        let journey = Journey { from, to: &self.host, sparse: Sparse::Holes, address: None };
        carry(cx, &journey, &[Load { from: file.to_owned(), to: staged.clone() }], failure)?;
        let dir = to.parent().unwrap_or(Path::new("/")).to_owned();
        let mut ops = vec![Op::Rename { from: staged, to: to.to_owned() }, Op::Sync { path: dir }];
        ops.extend(folder.leave());
        cx.apply(Step::new(&self.host, format!("Give it its name {}", to.display()), ops).or_say(failure))?;
        Ok(())
    }

    /// Removes what is kept of one disk, or of all of them.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn drop(&self, cx: &Cx<'_>, disk: Option<&str>) -> Result<()> {
        let remove = |path: PathBuf| Op::Remove { path, tree: true, must_exist: false };
        let (what, ops, path) = match disk {
            None => ("the VM", vec![remove(self.dir.clone())], self.dir.clone()),
            Some(disk) => {
                let path = self.dir.join(disk);
                let replica = self.dir.join(format!("{disk}.replica_snap"));
                let ops = vec![
                    remove(path.clone()),
                    remove(self.layers(disk)),
                    remove(replica),
                    Op::RemoveDirIfEmpty { path: self.dir.clone() },
                ];
                ("the disk", ops, path)
            }
        };
        let what = format!("Remove what the replica host keeps of {what}; this cannot be undone");
        cx.apply(Step::new(&self.host, what, ops).or_say(format!("Error deleting {}", path.display())))?;
        Ok(())
    }
}

/// `REPLICA_RECOVERY_SNAPS_DIR`.
///
/// # Errors
/// It is no absolute path, or the root of everything: what is in it is removed.
pub fn root(settings: &Settings) -> Result<PathBuf> {
    let text = settings.get("REPLICA_RECOVERY_SNAPS_DIR").unwrap_or(ROOT);
    let path = Path::new(text);
    let up = path.components().any(|part| part == Component::ParentDir);
    let path = normalize(path);
    if !path.is_absolute() || up || path.parent().is_none() {
        bail!(Misuse(format!("Bad REPLICA_RECOVERY_SNAPS_DIR {text:?}: it has to be an absolute path without ..")));
    }
    Ok(path)
}
