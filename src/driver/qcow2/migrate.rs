//! `premigrate` and `postmigrate` on shared storage: nothing is moved; a directory in the system datastore that the VM has
//! left is removed.
//!
//! Source: contract 02, pre/postmigrate. Which datastore that was is for oned to say; without a clear answer nothing is
//! removed, and neither while the VM's directory is not where it should be by now.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::args::VmPlace;
use crate::driver::common::migrate::Migration;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{FileKind, Op, Stat};
use crate::exec::step::Step;

/// `premigrate`.
pub fn premigrate(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let migration = Migration::read(request)?;
    if !migration.is_on_one_host(cx) {
        migration.tell_others(cx)?;
    }
    Ok(Reply::Nothing)
}

/// `postmigrate`.
pub fn postmigrate(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let migration = Migration::read(request)?;
    let failure = || format!("Error running {} postmigrate", request.mad);
    let vm = cx.oned().vm(migration.id).with_context(failure)?;
    let before = match vm.previous_history() {
        Some(history) => history.ds_id.get().map_err(misuse)?,
        None => None,
    };
    if before.is_none() {
        cx.warn(format!("oned does not say which system datastore VM {} has left, nothing is removed", migration.id));
    }
    let removed = match before.filter(|before| *before != migration.datastore) {
        Some(before) => remove_old(cx, request, &migration, before).with_context(failure),
        None if migration.is_on_one_host(cx) => return Ok(Reply::Nothing),
        None => Ok(()),
    };
    // The others have their own to clean up, whatever became of ours.
    migration.tell_others(cx)?;
    removed.map(|()| Reply::Nothing)
}

/// Removes the VM's directory in the datastore `before`, on the host that the VM has left.
fn remove_old(cx: &Cx<'_>, request: &TmRequest, migration: &Migration<'_>, before: u32) -> Result<()> {
    let new = request.place_of(cx, &migration.to, 2, migration.id)?;
    if new.name.is_some() || new.datastore != migration.datastore {
        bail!("{} is not the directory of VM {} in datastore {}", new.dir.display(), migration.id, migration.datastore);
    }
    let old = VmPlace {
        datastore: before,
        dir: new.root.join(before.to_string()).join(migration.id.to_string()),
        ..new.clone()
    };
    let stat = |path: &Path| Op::Stat { path: path.to_owned(), follow: false };
    let arrived = cx.ask(&new.host, stat(&new.dir))?.stat();
    if arrived.is_none_or(|stat| stat.kind != FileKind::Dir) {
        bail!("{} is not on {}, so {} stays", new.dir.display(), new.host.name(), old.dir.display());
    }
    let left = cx.host(&migration.from)?;
    let found = cx.query(&left, [stat(&old.dir), stat(&new.dir)])?;
    let [was, is] = found.as_slice() else { bail!("{} did not answer all questions", left.name()) };
    let inode = |stat: Stat| (stat.dev, stat.ino);
    match (was.stat(), is.stat()) {
        (None, _) => Ok(()),
        (Some(was), Some(is)) if inode(was) == inode(is) => {
            cx.info(format!("Not removing {}, it is {}", old.dir.display(), new.dir.display()));
            Ok(())
        }
        _ => {
            let what = format!("Remove {}, which the VM has left; this cannot be undone", old.dir.display());
            let remove = Op::Remove { path: old.dir, tree: true, must_exist: false };
            cx.apply(Step::new(&left, what, [remove])).map(drop)
        }
    }
}
