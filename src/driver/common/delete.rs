//! `delete`: a disk or the whole directory of a VM goes.
//!
//! Source: contract 02 §4. What is not there has gone already. With a disk its layers go too: upstream leaves those of a
//! detached disk until the VM ends.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::disk::Target;
use crate::context::Cx;
use crate::driver::{Reply, TmRequest};
use crate::exec::error::OpErrorKind;
use crate::exec::host::fenced::Fenced;
use crate::exec::host::{Host, ScriptError};
use crate::exec::op::Op;
use crate::exec::step::Step;
use crate::location::with_suffix;

/// How often it is tried while a file system still has names of its own in the directory (`.nfs…`).
const TRIES: u32 = 10;

/// How long to wait in between.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub fn delete(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let id = request.number(1, "VM_ID")?;
    let place = request.place(cx, 0, id)?;
    let path = place.path();
    let failure = format!("Error deleting {}", path.display());
    if place.name.is_some() {
        Target::lock(cx, &place).with_context(|| failure.clone())?;
    }

    // What is done.
    cx.info(format!("Deleting {}", path.display()));
    // A link in the place of the VM's directory leads to what is somebody else's.
    let host: Arc<dyn Host> = Arc::new(Fenced::new(Arc::clone(&place.host), vec![place.datastore_dir()]));
    let remove = |path| Op::Remove { path, tree: true, must_exist: false };
    let step = || {
        let (what, mut ops) = match &place.name {
            Some(name) => (format!("Remove {name} with its layers; this cannot be undone"), vec![remove(path.clone())]),
            None => ("Remove the VM's directory; this cannot be undone".to_owned(), vec![remove(path.clone())]),
        };
        if place.is_disk() {
            ops.push(remove(with_suffix(&path, ".snap")));
        }
        Step::new(&host, what, ops).or_say(&failure)
    };
    for tries in 1.. {
        match cx.apply(step()) {
            Err(error) if tries < TRIES && may_pass(&error) => {
                cx.warn(format!("{error:#}; trying again"));
                cx.control.check().with_context(|| failure.clone())?;
                thread::sleep(PAUSE);
            }
            result => {
                result?;
                break;
            }
        }
    }
    Ok(Reply::Nothing)
}

/// Whether it is only that something was added meanwhile.
fn may_pass(error: &anyhow::Error) -> bool {
    let failed = error.chain().find_map(|cause| cause.downcast_ref::<ScriptError>()).and_then(|e| e.failure.as_ref());
    failed.is_some_and(|e| {
        let text = e.to_string();
        e.kind == OpErrorKind::Other && (text.ends_with("Directory not empty") || text.ends_with("resource busy"))
    })
}
