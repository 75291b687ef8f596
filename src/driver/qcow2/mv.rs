//! `mv`: the directory of a VM goes from one shared system datastore to another.
//!
//! Source: contract 02 §5. Both are seen from the new host. What was there is removed when the copy is known to be whole,
//! and never where both names lead to one directory. Names by which a disk's layers know each other are made relative
//! before, so that they hold at both places whatever happens in between; upstream's scripts write absolute ones.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::VmPlace;
use crate::driver::common::disk::Target;
use crate::driver::common::folder::Folder;
use crate::driver::common::loosen::loosen;
use crate::driver::common::trees::{DEPTH, difference, drop_directory};
use crate::driver::{Reply, TmRequest};
use crate::exec::error::OpErrorKind;
use crate::exec::host::ScriptError;
use crate::exec::op::{FileKind, Node, Op, Value};
use crate::exec::step::Step;
use crate::tool::coreutils;

/// See the module.
pub fn mv(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let (from, to) = (request.place(cx, 0, id)?, request.place(cx, 1, id)?);
    if to.name.is_some() {
        // Disks go with their directory, which comes last.
        return Ok(Reply::Nothing);
    }
    if from.name.is_some() {
        bail!(crate::report::Misuse(format!(
            "Bad place {:?}: a disk cannot become the directory {}",
            from.text, to.text
        )));
    }
    if from.dir == to.dir {
        return Ok(Reply::Nothing);
    }
    let failure = format!(
        "Error moving VM files to another System DS: {} to {} in {}",
        from.dir.display(),
        to.dir.display(),
        to.host.name()
    );
    Target::lock(cx, &from)?;
    let move_ = Move::ask(cx, &from, &to).with_context(|| failure.clone())?;

    // What is decided.
    if move_.same {
        cx.info(format!("Not moving {} to {}, they are the same directory", from.text, to.text));
        return Ok(Reply::Nothing);
    }

    // What is done.
    cx.info(format!("Moving {} to {}", from.text, to.text));
    loosen(cx, &to.host, &from.dir, &move_.nodes).with_context(|| failure.clone())?;
    match move_.rename(cx, &failure) {
        Err(error) if is_other_file_system(&error) => move_.copy(cx, &failure)?,
        result => result?,
    }
    Ok(Reply::Nothing)
}

fn is_other_file_system(error: &anyhow::Error) -> bool {
    let failed = error.chain().find_map(|cause| cause.downcast_ref::<ScriptError>());
    failed.and_then(|e| e.failure.as_ref()).is_some_and(|e| e.kind == OpErrorKind::OtherFileSystem)
}

/// A directory and where it goes.
struct Move {
    from: PathBuf,
    to: PathBuf,
    /// The new system datastore's directory.
    folder: Folder,
    /// The old one's.
    left: Folder,
    /// Both are one directory.
    same: bool,
    /// Both are on one file system, as far as can be told before.
    one_file_system: bool,
    /// There is an empty directory in the way.
    empty: bool,
    /// What is in the old directory, and in the directories in that.
    nodes: Vec<Node>,
}

impl Move {
    fn ask(cx: &Cx<'_>, from: &VmPlace, to: &VmPlace) -> Result<Self> {
        let base = to.datastore_dir();
        let stat = |path: &Path, follow| Op::Stat { path: path.to_owned(), follow };
        let questions = [
            stat(&from.dir, false),
            stat(&to.dir, false),
            stat(&base, true),
            Op::List { path: to.dir.clone() },
            Folder::question(&base),
            Folder::question(&from.datastore_dir()),
            Op::Tree { path: from.dir.clone(), depth: 2 },
        ];
        let answers = cx.query(&to.host, questions)?;
        let [old, new, parent, inside, staging, left, tree] = answers.as_slice() else {
            bail!("The host did not answer all questions")
        };
        let host = to.host.name();
        let old = match old.stat() {
            Some(stat) if stat.kind == FileKind::Dir => stat,
            Some(_) => bail!("{} is no directory on {host}", from.dir.display()),
            None => bail!("{} does not exist on {host}", from.dir.display()),
        };
        let same = new.stat().is_some_and(|new| (new.dev, new.ino) == (old.dev, old.ino));
        let empty = matches!(inside, Value::Names(names) if names.is_empty());
        if new.stat().is_some() && !same && !empty {
            bail!("{} exists on {host} and is not empty", to.dir.display());
        }
        Ok(Self {
            from: from.dir.clone(),
            to: to.dir.clone(),
            folder: Folder::of(&to.host, &base, staging)?,
            left: Folder::of(&to.host, &from.datastore_dir(), left)?,
            same,
            one_file_system: parent.stat().is_none_or(|parent| parent.dev == old.dev),
            empty: new.stat().is_some(),
            nodes: if let Value::Tree(nodes) = tree { nodes.clone() } else { Vec::new() },
        })
    }

    /// What an empty directory in the way needs.
    fn make_way(&self) -> Option<Op> {
        self.empty.then(|| Op::RemoveDirIfEmpty { path: self.to.clone() })
    }

    fn rename(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        if !self.one_file_system {
            return self.copy(cx, failure);
        }
        let mut ops = vec![Op::MakeDir { path: self.folder.base.clone() }];
        ops.extend(self.make_way());
        ops.push(Op::Rename { from: self.from.clone(), to: self.to.clone() });
        let what = format!("Give the directory its new name {}", self.to.display());
        cx.apply(Step::new(&self.folder.host, what, ops).or_say(failure).whole())?;
        Ok(())
    }

    /// Copies to a staging name, compares, and only then lets go of the old one.
    fn copy(&self, cx: &Cx<'_>, failure: &str) -> Result<()> {
        let host = &self.folder.host;
        let staged = self.folder.staging(self.to.file_name().unwrap_or_default());
        let mut ops = self.folder.prepare();
        ops.push(Op::Run(coreutils::copy_tree(&self.from, &staged)));
        ops.push(Op::Run(coreutils::sync_file_system(&staged)));
        let undo = [Op::Remove { path: staged.clone(), tree: true, must_exist: false }];
        let undo = undo.into_iter().chain(self.folder.leave());
        let what = format!("Copy {} to the other file system", self.from.display());
        cx.apply(Step::new(host, what, ops).undo(undo).or_say(failure))?;
        if cx.is_real() {
            let tree = |path: &Path| Op::Tree { path: path.to_owned(), depth: DEPTH };
            let found = cx.query(host, [tree(&self.from), tree(&staged)]).with_context(|| failure.to_owned())?;
            if let Some(path) = difference(&found) {
                bail!("{failure}: the copy differs from the original at {}", path.display());
            }
        }
        let mut ops: Vec<Op> = self.make_way().into_iter().collect();
        // The old one goes last: until then the copy can be taken back.
        let mut undo = vec![self.folder.claim(), Op::PutBack { from: self.to.clone(), to: staged.clone() }];
        ops.push(Op::Rename { from: staged, to: self.to.clone() });
        ops.extend(self.folder.leave());
        if self.empty {
            undo.push(Op::MakeDir { path: self.to.clone() });
        }
        let what = format!("The copy is whole: give it its name {}", self.to.display());
        cx.apply(Step::new(host, what, ops).undo(undo).or_say(failure).whole())?;
        drop_directory(cx, &self.left, &self.from);
        Ok(())
    }
}
