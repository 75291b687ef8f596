//! `mv` where system datastores are the hosts' own: the directory of a VM goes from one host to another.
//!
//! Source: contract 02 §7. Two hosts may still see one storage, under one name or two: a file that one of them makes in the
//! directory is looked for by the other, and what is one directory is neither copied nor removed. The files travel as
//! [`super::journey`] has it, with names that hold at both places ([`super::loosen`]); the old directory goes when the new
//! one is known to be whole.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::args::VmPlace;
use super::disk::Target;
use super::folder::Folder;
use super::journey::{self, Journey, Load};
use super::loosen::loosen;
use super::one_directory::is_one;
use super::trees::{DEPTH, difference, drop_directory};
use crate::context::Cx;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::cmd::Secret;
use crate::exec::op::{FileKind, Node, Op, Sparse, Stat, Value};
use crate::exec::step::Step;

/// `LCM_STATE`s in which oned moves nothing: the host of the VM has failed.
const FAULT_TOLERANCE: [u32; 2] = [60, 61];

/// See the module.
pub fn mv(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let (from, to) = (request.place(cx, 0, id)?, request.place(cx, 1, id)?);
    if to.name.is_some() {
        // Disks go with their directory, which comes last.
        return Ok(Reply::Nothing);
    }
    let failure = format!("Error copying disk directory to target host: {} to {}", from.text, to.text);
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    if vm.lcm_state.get().map_err(misuse)?.is_some_and(|state| FAULT_TOLERANCE.contains(&state)) {
        cx.info(format!("Not moving files from {} in FT mode", from.host.name()));
        return Ok(Reply::Nothing);
    }
    Target::lock(cx, &to)?;
    let mut trip = Trip::ask(cx, from, to).with_context(|| failure.clone())?;

    // What is decided.
    if trip.is_one_directory(cx).with_context(|| failure.clone())? {
        cx.info(format!("Not moving {} to {}, they are the same path", trip.from.text, trip.to.text));
        return Ok(Reply::Nothing);
    }

    // What is done.
    cx.info(format!("Moving {} to {}", trip.from.text, trip.to.text));
    trip.loosen(cx).with_context(|| failure.clone())?;
    trip.copy(cx, &failure)?;
    trip.put(cx, &failure)?;
    trip.remove_old(cx).with_context(|| failure.clone())?;
    Ok(Reply::Nothing)
}

/// A directory on its way.
struct Trip {
    from: VmPlace,
    to: VmPlace,
    /// What it is on the old host, to be sure that it is still that when it goes.
    old: Stat,
    nodes: Vec<Node>,
    /// Whether something is there under the new name.
    is_there: bool,
    folder: Folder,
    /// The datastore that it leaves.
    left: Folder,
    /// `.monitor` of the old system datastore: how the host tells the sizes of disks.
    monitor: Option<String>,
}

impl Trip {
    fn ask(cx: &Cx<'_>, from: VmPlace, to: VmPlace) -> Result<Self> {
        let stat = |path: &Path| Op::Stat { path: path.to_owned(), follow: false };
        let monitor = Op::Head { path: from.datastore_dir().join(".monitor"), len: 64 };
        let tree = Op::Tree { path: from.dir.clone(), depth: DEPTH };
        let answers =
            cx.query(&from.host, [stat(&from.dir), tree, monitor, Folder::question(&from.datastore_dir())])?;
        let [old, Value::Tree(nodes), monitor, left] = answers.as_slice() else {
            bail!("{} does not exist on {}", from.dir.display(), from.host.name())
        };
        let Some(old) = old.stat().filter(|stat| stat.kind == FileKind::Dir) else {
            bail!("{} is no directory on {}", from.dir.display(), from.host.name())
        };
        if let Some(odd) = nodes.iter().find(|node| matches!(node.kind, FileKind::Block)) {
            bail!("{} is a device, which cannot be moved", from.dir.join(&odd.path).display());
        }
        let base = to.datastore_dir();
        let answers = cx.query(&to.host, [stat(&to.dir), Folder::question(&base)])?;
        let [new, staging] = answers.as_slice() else { bail!("The host did not answer all questions") };
        let folder = Folder::of(&to.host, &base, staging)?;
        let left = Folder::of(&from.host, &from.datastore_dir(), left)?;
        let monitor = Some(monitor.text()).filter(|text| !text.is_empty());
        Ok(Self { old, nodes: nodes.clone(), is_there: new.stat().is_some(), folder, left, monitor, from, to })
    }

    /// Whether the new name leads to the old directory.
    fn is_one_directory(&self, cx: &Cx<'_>) -> Result<bool> {
        if !self.is_there {
            return Ok(false);
        }
        is_one(cx, (&self.from.host, &self.from.dir), (&self.to.host, &self.to.dir))
    }

    /// Makes names within the disks hold at both places. A link or a header that changes has another size.
    fn loosen(&mut self, cx: &Cx<'_>) -> Result<()> {
        if !loosen(cx, &self.from.host, &self.from.dir, &self.nodes)? || !cx.is_real() {
            return Ok(());
        }
        let answer = cx.ask(&self.from.host, Op::Tree { path: self.from.dir.clone(), depth: DEPTH })?;
        let Value::Tree(nodes) = answer else {
            bail!("{} does not exist on {}", self.from.dir.display(), self.from.host.name())
        };
        self.nodes = nodes;
        Ok(())
    }

    fn staged(&self) -> PathBuf {
        self.folder.staging(self.to.vm.to_string())
    }

    /// Copies everything to a staging name of the new host, and compares.
    fn copy(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let staged = self.staged();
        let mut ops = self.folder.prepare();
        for node in &self.nodes {
            let path = staged.join(&node.path);
            match (node.kind, &node.link) {
                (FileKind::Dir, _) => ops.push(Op::MakeDir { path }),
                (FileKind::Link, Some(target)) => ops.push(Op::Symlink { target: target.clone(), link: path }),
                _ => {}
            }
        }
        let undo = [Op::Remove { path: staged.clone(), tree: true, must_exist: false }];
        let step = Step::new(&self.to.host, "Make the directory and its links", ops);
        cx.apply(step.undo(undo.into_iter().chain(self.folder.leave())).or_say(failure))?;
        let loads = self.files().map(|node| Load { from: self.from.dir.join(&node.path), to: staged.join(&node.path) });
        let loads: Vec<Load> = loads.collect();
        let trip = Journey { from: &self.from.host, to: &self.to.host, sparse: Sparse::Holes, address: None };
        journey::carry(cx, &trip, &loads, failure)?;
        if cx.is_real() {
            let arrived =
                cx.ask(&self.to.host, Op::Tree { path: staged, depth: DEPTH }).with_context(|| failure.to_owned())?;
            // Sockets and pipes of a VM that has stopped mean nothing any more.
            let kept = |node: &&Node| node.kind != FileKind::Other;
            let left = Value::Tree(self.nodes.iter().filter(kept).cloned().collect());
            if let Some(path) = difference(&[left, arrived]) {
                bail!("{failure}: the copy differs from the original at {}", path.display());
            }
        }
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.kind == FileKind::File)
    }

    /// Gives the copy its name. What was there goes when the action has succeeded: until then it can be put back, and the
    /// copy with it.
    fn put(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let away = self.folder.staging(format!("{}.old", self.to.vm));
        let back = |from: PathBuf, to: PathBuf| Op::PutBack { from, to };
        let (mut ops, mut undo) = (Vec::new(), Vec::new());
        if self.is_there {
            ops.push(Op::Rename { from: self.to.dir.clone(), to: away.clone() });
            undo.push(back(away.clone(), self.to.dir.clone()));
        }
        ops.push(Op::Rename { from: self.staged(), to: self.to.dir.clone() });
        undo.insert(0, back(self.to.dir.clone(), self.staged()));
        if let Some(text) = &self.monitor {
            let path = self.to.datastore_dir().join(".monitor");
            ops.push(Op::Write { path, content: Secret::new(format!("{text}\n")), mode: 0o644 });
        }
        if !self.is_there {
            ops.extend(self.folder.leave());
            undo.insert(0, self.folder.claim());
        }
        let what = format!("The copy is whole: give it its name {}", self.to.dir.display());
        cx.apply(Step::new(&self.to.host, what, ops).undo(undo).or_say(failure).whole())?;
        if self.is_there {
            let rest = [Op::Remove { path: away, tree: true, must_exist: false }];
            let step =
                Step::new(&self.to.host, "Remove what was in its place", rest.into_iter().chain(self.folder.leave()));
            cx.after(step.best_effort());
        }
        Ok(())
    }

    /// Removes the old directory, if its name still leads to it: where both hosts see one storage, it leads to the new one.
    fn remove_old(&self, cx: &Cx<'_>) -> Result<()> {
        let path = self.from.dir.clone();
        let now = cx.ask(&self.from.host, Op::Stat { path: path.clone(), follow: false })?;
        let same = now.stat().is_some_and(|now| (now.dev, now.ino) == (self.old.dev, self.old.ino));
        if !same {
            cx.warn(format!("{} is another directory than before, it stays", path.display()));
            return Ok(());
        }
        drop_directory(cx, &self.left, &path);
        Ok(())
    }
}
