//! Datastores that are mounted on demand: `NFS_AUTO_ENABLE`, `NFS_AUTO_HOST`, `NFS_AUTO_PATH`, `NFS_AUTO_OPTS`.
//!
//! Source: contract 02 §9, the temporary set-up of `cp`, `clone`, `mkfs` and `rm`. Mounts of datastores that no longer
//! ask for it are taken off first; when oned cannot tell which these are, none is. A mount that fails is a failure:
//! going on would fill the file system below the mount point.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::folder::Folder;
use crate::context::Cx;
use crate::exec::op::Op;
use crate::exec::step::Step;
use crate::payload::{Datastore, DatastoreTemplate};
use crate::report::Misuse;
use crate::tool::mount;

/// Marks a datastore that we mounted.
pub const MARKER: &str = ".automounted";

/// Whether the datastore's files can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// They can: no mount is asked for, or it is there.
    There,
    /// `explain` has planned a mount; until it is done they cannot.
    Planned,
}

/// Mounts the datastore if it asks for it and is not mounted.
///
/// # Errors
/// Host or path are missing; the mount fails.
pub fn mount(cx: &Cx<'_>, place: &Folder, in_host: &str, datastore: &Datastore) -> Result<Mount> {
    let template = &datastore.template;
    if !template.nfs_auto_enable.is_yes_any_case() {
        return Ok(Mount::There);
    }
    let source = export(template)?;
    unmount_unwanted(cx, place)?;
    let found = cx.ask(&place.host, Op::Run(mount::find(&source, &place.base)))?;
    if !found.text().is_empty() {
        return Ok(Mount::There);
    }
    let marker = place.base.join(MARKER);
    let options = template.nfs_auto_opts.trimmed();
    let step = Step::new(
        &place.host,
        format!("Mount {source} on {}", place.base.display()),
        [
            Op::MakeDir { path: place.base.clone() },
            Op::Run(mount::mount(&source, options, &place.base)),
            Op::Write { path: marker, content: crate::exec::cmd::Secret::new(""), mode: 0o644 },
        ],
    );
    cx.apply(step.or_say(format!("Error setting up NFS mount of {source}{in_host}")))?;
    Ok(if cx.is_real() { Mount::There } else { Mount::Planned })
}

/// What is mounted: `HOST:PATH`.
///
/// # Errors
/// One of them is missing.
pub fn export(template: &DatastoreTemplate) -> Result<String> {
    let need = |text: &crate::payload::Text| text.required().map(str::to_owned).map_err(|e| Misuse(e.to_string()));
    Ok(format!("{}:{}", need(&template.nfs_auto_host)?, need(&template.nfs_auto_path)?))
}

/// Takes off NFS mounts below the datastores' folder that carry our mark and whose datastore no longer asks for one.
fn unmount_unwanted(cx: &Cx<'_>, place: &Folder) -> Result<()> {
    let pool = match cx.oned().datastore_pool() {
        Ok(pool) => pool,
        Err(e) => {
            cx.warn(format!("Cannot tell which NFS mounts are still wanted, all stay: {e}"));
            return Ok(());
        }
    };
    let wanted: HashSet<String> = pool
        .datastores
        .iter()
        .filter(|d| d.template.nfs_auto_enable.is_yes_any_case())
        .filter_map(|d| d.id.text().trimmed().map(str::to_owned))
        .collect();
    let Some(folder) = place.base.parent() else { return Ok(()) };
    let mounts = cx.ask(&place.host, Op::Run(mount::list_nfs())).context("Cannot list NFS mounts")?.text();
    // What stands in fstab was mounted for VMs and is theirs; it would also come back at the next boot.
    let fstab = cx.ask(&place.host, Op::Read { path: "/etc/fstab".into(), offset: 0, len: 1 << 20 });
    let fstab = fstab.map_or_else(|_| String::new(), |text| text.text());
    let stays = |target: &Path| fstab.lines().any(|l| l.split_whitespace().nth(1).map(Path::new) == Some(target));
    for target in mounts.lines().map(Path::new).filter(|t| t.parent() == Some(folder) && !stays(t)) {
        let id = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if id.parse::<u32>().is_err() || wanted.contains(&id) || target == place.base {
            continue;
        }
        let marked = cx.ask(&place.host, Op::Stat { path: target.join(MARKER), follow: false })?;
        if marked.stat().is_none() {
            continue;
        }
        let ops = [Op::Run(mount::umount(target)), Op::RemoveDirIfEmpty { path: target.to_owned() }];
        let what = format!("Unmount {}, whose datastore no longer asks for it", target.display());
        if let Err(e) = cx.apply(Step::new(&place.host, what, ops)) {
            cx.warn(format!("{e:#}"));
        }
    }
    Ok(())
}
