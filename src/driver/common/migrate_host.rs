//! `premigrate` and `postmigrate` where system datastores are the hosts' own: what is in the way on the new host goes
//! before a live migration, what the VM has left on the old one goes after it.
//!
//! Source: contract 02, pre/postmigrate. A datastore that is called the hosts' own may still be shared: a directory that
//! both hosts see is the one that the VM runs in, and is never removed. Neither is one of which oned does not say where it
//! is: upstream removes the datastore whose id is the VM's then.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::args::VmPlace;
use super::migrate::Migration;
use super::one_directory::is_one;
use crate::context::Cx;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{FileKind, Op};
use crate::exec::step::Step;
use crate::payload::{self, Vm};
use crate::report::Misuse;

/// `premigrate`.
pub fn premigrate(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let migration = Migration::read(request)?;
    if migration.is_on_one_host(cx) {
        return Ok(Reply::Nothing);
    }
    let failure = || "Error removing target path to prevent overwrite errors".to_owned();
    let to = directory(cx, request, &migration.to, &migration)?;
    let stat = cx.ask(&to.host, Op::Stat { path: to.dir.clone(), follow: false }).with_context(failure)?.stat();

    // What is decided and done.
    if stat.is_some() {
        if is_in_use(cx, request, &migration, &to).with_context(failure)? {
            cx.info(format!("Not removing {}, it is the directory that the VM is in", to.dir.display()));
        } else {
            let what = format!("Remove {}, which another VM or try has left; this cannot be undone", to.dir.display());
            let remove = Op::Remove { path: to.dir, tree: true, must_exist: false };
            cx.apply(Step::new(&to.host, what, [remove]).or_say(failure()))?;
        }
    }
    migration.tell_others(cx)?;
    Ok(Reply::Nothing)
}

/// Whether what is on the new host is the directory that the VM is in on the old one.
fn is_in_use(cx: &Cx<'_>, request: &TmRequest, migration: &Migration<'_>, to: &VmPlace) -> Result<bool> {
    let xml = request.vm.as_deref().context("There is no VM on standard input")?;
    let vm: Vm = payload::parse(xml).map_err(|e| Misuse(format!("{:#}", anyhow::Error::new(e))))?;
    let from = cx.host(&migration.from)?;
    let mut datastores = vec![migration.datastore];
    // Whether the record of the new host stands there already is oned's business.
    for history in [vm.last_history(), vm.previous_history()].into_iter().flatten() {
        datastores.extend(history.ds_id.get().map_err(misuse)?.filter(|id| !datastores.contains(id)));
    }
    let dirs: Vec<PathBuf> =
        datastores.iter().map(|id| to.root.join(id.to_string()).join(migration.id.to_string())).collect();
    let found = cx.query(&from, dirs.iter().map(|dir| Op::Stat { path: dir.clone(), follow: false }))?;
    for (dir, found) in dirs.iter().zip(found) {
        let there = found.stat().is_some_and(|stat| stat.kind == FileKind::Dir);
        if there && is_one(cx, (&from, dir), (&to.host, &to.dir))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `postmigrate`.
pub fn postmigrate(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let migration = Migration::read(request)?;
    let failure = || format!("Error removing the directory of VM {} on {}", migration.id, migration.from);
    let vm = cx.oned().vm(migration.id).with_context(failure)?;
    let before = match vm.previous_history() {
        Some(history) => history.ds_id.get().map_err(misuse)?,
        None => None,
    };
    if before == Some(migration.datastore) && migration.is_on_one_host(cx) {
        return Ok(Reply::Nothing);
    }
    let removed = if let Some(before) = before {
        remove_old(cx, request, &migration, before).with_context(failure)
    } else {
        cx.warn(format!("oned does not say which system datastore VM {} has left, nothing is removed", migration.id));
        Ok(())
    };
    // The others have their own to clean up, whatever became of ours.
    migration.tell_others(cx)?;
    removed.map(|()| Reply::Nothing)
}

/// Removes the VM's directory in the datastore `before` of the host that it has left.
fn remove_old(cx: &Cx<'_>, request: &TmRequest, migration: &Migration<'_>, before: u32) -> Result<()> {
    let new = directory(cx, request, &migration.to, migration)?;
    let arrived = cx.ask(&new.host, Op::Stat { path: new.dir.clone(), follow: false })?.stat();
    let from = cx.host(&migration.from)?;
    let old = new.root.join(before.to_string()).join(migration.id.to_string());
    let left = cx.ask(&from, Op::Stat { path: old.clone(), follow: false })?.stat();
    if left.is_none() {
        return Ok(());
    }
    if arrived.is_none_or(|stat| stat.kind != FileKind::Dir) {
        bail!("{} is not on {}, so {} stays", new.dir.display(), new.host.name(), old.display());
    }
    if is_one(cx, (&from, &old), (&new.host, &new.dir))? {
        cx.info(format!("Not removing {}, it is {}", old.display(), new.dir.display()));
        return Ok(());
    }
    let what = format!("Remove {}, which the VM has left; this cannot be undone", old.display());
    cx.apply(Step::new(&from, what, [Op::Remove { path: old, tree: true, must_exist: false }])).map(drop)
}

/// The directory of the VM in the datastore that it goes to, on `host`.
fn directory(cx: &Cx<'_>, request: &TmRequest, host: &str, migration: &Migration<'_>) -> Result<VmPlace> {
    let place = request.place_of(cx, host, 2, migration.id)?;
    if place.name.is_some() || place.datastore != migration.datastore {
        bail!(Misuse(format!(
            "{} is not the directory of VM {} in datastore {}",
            place.dir.display(),
            migration.id,
            migration.datastore
        )));
    }
    Ok(place)
}
