//! `cpds`: a disk, or a snapshot of it, is saved as an image.
//!
//! Source: contract 02 §7. The image appears under its name when it is complete, compared and on the disk.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::export::{Found, Running, forget};
use super::mvds::place_of_image;
use crate::context::Cx;
use crate::driver::common::args::lock_of;
use crate::driver::common::disk::{Target, record};
use crate::driver::common::folder::Folder;
use crate::driver::common::journey::{Journey, Load, carry};
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::op::{Op, Sparse, Value};
use crate::exec::step::Step;
use crate::report::Misuse;

/// `LCM_STATE` of a VM whose disk is saved while it runs.
const HOTPLUG_SAVEAS: u32 = 26;

/// See the module.
pub fn cpds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(3, "VM_ID")?;
    let snapshot: i64 = request.number(2, "SNAPSHOT_ID")?;
    let snapshot = match snapshot {
        -1 => None,
        id => Some(u32::try_from(id).map_err(|_| Misuse(format!("SNAPSHOT_ID is no snapshot: {id}")))?),
    };
    let disk = request.disk(cx, 0, id)?;
    let (keeper, image) = place_of_image(cx, request)?;
    let host = &disk.place.host;
    let source = snapshot.map_or_else(|| disk.path.clone(), |k| disk.snapshots().join(k.to_string()));
    let shown = format!("{}:{}", host.name(), source.display());
    let failure = format!("Error copying {shown} to {}", image.image.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let wanted = record(&vm, id, disk.number).with_context(|| failure.clone())?;
    let saving = vm.lcm_state.get().map_err(misuse)? == Some(HOTPLUG_SAVEAS);
    if saving {
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or_default();
        if hypervisor != "kvm" {
            bail!("cpds: Live operation not supported on {hypervisor}");
        }
    }
    Target::lock(cx, &disk.place)?;
    let staging = cx.ask(host, Folder::question(&disk.place.dir)).with_context(|| failure.clone())?;
    let home = Folder::of(host, &disk.place.dir, &staging)?;
    let questions = [Folder::question(&image.base), Op::Stat { path: image.image.clone(), follow: true }];
    let answers = cx.query(&keeper, questions).with_context(|| failure.clone())?;
    let [staging, there] = answers.as_slice() else { bail!("{failure}: the front-end did not answer all questions") };
    let folder = Folder::of(&keeper, &image.base, staging)?;

    // What is done: a file that holds all of it.
    let made = home.staging(format!("{}.export", disk.name()));
    let from = if saving && snapshot.is_none() {
        cx.info("VM is running, trying blockcopy, fsfreeze, suspend");
        let running = Running { disk: &disk, vm: &vm, to: &made };
        let failed = || {
            let (domain, target) = (vm.deploy_id.trimmed(), wanted.target.trimmed());
            let (domain, target) = (domain.unwrap_or_default(), target.unwrap_or_default());
            format!("Error creating export for domain {domain} of disk {target} at {}", made.display())
        };
        running.copy(cx, &home, &failure).with_context(failed)?;
        made.clone()
    } else {
        let found = Found::look(cx, &disk, &source, wanted.format.trimmed()).with_context(|| failure.clone())?;
        match found.merge(&made) {
            None => found.file,
            Some(merge) => {
                let mut ops = vec![Op::Lock { name: lock_of(id, &disk.name()), wait_seconds: 600 }];
                ops.extend(home.prepare());
                ops.extend(merge);
                let failed = format!("cpds: Can not convert qcow2 chain {}", source.display());
                cx.apply(
                    home.staging_step("Merge its layers into a file that stands alone", &made, ops).or_say(failed),
                )?;
                made.clone()
            }
        }
    };
    if from == made {
        forget(cx, &home, [made]);
    }

    // And on its way.
    cx.info(format!("Moving {shown} to datastore as {}", image.image.display()));
    let staged = folder.staging(image.image.file_name().unwrap_or_default());
    let room = folder.prepared_step("Make room beside the images", folder.prepare());
    cx.apply(room.or_say(&failure))?;
    let journey = Journey { from: host, to: &keeper, sparse: Sparse::Holes, address: None };
    carry(cx, &journey, &[Load { from, to: staged.clone() }], &failure)?;
    let mut ops = vec![
        Op::Remove { path: image.md5sum(), tree: false, must_exist: false },
        Op::Rename { from: staged, to: image.image.clone() },
        Op::Sync { path: image.base.clone() },
    ];
    ops.extend(folder.leave());
    let remove = |path: PathBuf| Op::Remove { path, tree: false, must_exist: false };
    let is_new = matches!(there, Value::Absent | Value::Unknown);
    let undo: Vec<Op> = is_new.then(|| remove(image.image.clone())).into_iter().chain(folder.leave()).collect();
    let what = format!("The copy is whole: give it its name {}", image.image.display());
    cx.apply(Step::new(&keeper, what, ops).undo(undo).or_say(failure))?;
    Ok(Reply::Nothing)
}
