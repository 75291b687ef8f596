//! `.monitor` in a system datastore: that the host itself tells the sizes of the disks there.
//!
//! Source: contract 01 §16. The file names the transfer manager whose `monitor_ds` the host's probe calls: `ssh`, also for
//! `local` and in mixed mode. A host without it has no sizes and no space in oned.

use std::path::Path;

use anyhow::{Result, bail};

use super::args::VmPlace;
use super::folder::Folder;
use crate::context::Cx;
use crate::exec::cmd::Secret;
use crate::exec::op::{Op, Value};

/// What stands in the file.
const SSH: &str = "ssh\n";

/// The question whose answer [`by_host`] wants.
pub fn question(place: &VmPlace) -> Op {
    Op::Head { path: place.datastore_dir().join(".monitor"), len: 64 }
}

/// The content of the file, by the answer.
pub fn content(answer: &Value) -> Option<&[u8]> {
    match answer {
        Value::Bytes(text) => Some(text),
        _ => None,
    }
}

/// What has the host tell sizes, where it does not yet.
pub fn by_host(datastore: &Path, now: Option<&[u8]>) -> Option<Op> {
    let path = datastore.join(".monitor");
    (now != Some(SSH.as_bytes())).then(|| Op::Write { path, content: Secret::new(SSH), mode: 0o644 })
}

/// Has the host of `place` tell sizes from now on: for actions that make a disk there without another reason to ask. Upstream
/// leaves hosts silent whose VMs have volatile disks only.
///
/// # Errors
/// The host cannot be reached, or the file cannot be written.
pub fn ensure(cx: &Cx<'_>, place: &VmPlace) -> Result<()> {
    let answers = cx.query(&place.host, [question(place), Folder::question(&place.dir)])?;
    let [answer, staging] = answers.as_slice() else { bail!("The host did not answer all questions") };
    if let Some(op) = by_host(&place.datastore_dir(), content(answer)) {
        // Its unfinished file lies where the next action clears it.
        let folder = Folder::of(&place.host, &place.dir, staging)?;
        let ops = folder.prepare().into_iter().chain([op]).chain(folder.leave());
        cx.apply(folder.prepared_step("Have the host tell the sizes of its disks", ops))?;
    }
    Ok(())
}
