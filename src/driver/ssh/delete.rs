//! `delete`: a disk or the whole directory of a VM goes, and what a replica host keeps of it.
//!
//! Source: contract 02 §4, §7. What is kept of a VM that is deleted and created anew stays: it is created from that. With one
//! disk only what is kept of that one goes; upstream removes that of all of them, and leaves it for a disk of an image.

use anyhow::{Context as _, Result};

use super::recovery::{self, Kept};
use crate::context::Cx;
use crate::driver::common::delete as common;
use crate::driver::{Reply, TmRequest, misuse};
use crate::payload::HISTORY_ACTION_DELETE_RECREATE;

/// See the module.
pub fn delete(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(1, "VM_ID")?;
    let place = request.place(cx, 0, id)?;
    let failure = || format!("Error deleting {}", place.path().display());
    let is_kept = place.name.is_none() || place.is_disk();
    let replica = if is_kept { recovery::replica_of(cx, place.datastore).with_context(failure)? } else { None };
    if let Some(replica) = replica {
        let kept = Kept::of(cx, &replica, id)?;
        let vm = cx.oned().vm(id).with_context(failure)?;
        let action = match vm.last_history() {
            Some(history) => history.action.get().map_err(misuse)?,
            None => None,
        };

        // What is done.
        if action != Some(HISTORY_ACTION_DELETE_RECREATE) {
            kept.drop(cx, place.name.as_deref())?;
        }
    }
    common::delete(cx, request)
}
