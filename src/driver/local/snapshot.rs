//! `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`: layers of a qcow2 disk, full copies of a raw one.
//!
//! Source: contract 02 §8. All of it is [`crate::driver::common::snapshot`]'s. Upstream's layers name each other by their
//! bare numbers: seen from the disk's link, by which the domain is started, these lead nowhere, and a VM that was off does
//! not start again. Ours are named as in mixed mode. A chain that upstream has begun goes on as it is.

use anyhow::Result;

use crate::context::Cx;
use crate::driver::common::snapshot::{Act, Keeping, run};
use crate::driver::{Reply, TmRequest};
use crate::image::chain::Manner;

const KEEPING: Keeping = Keeping::WithDisk(Manner::Relative);

/// `snap_create`.
pub fn create(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, KEEPING, Act::Create)
}

/// `snap_create_live`.
pub fn create_live(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, KEEPING, Act::CreateLive)
}

/// `snap_revert`.
pub fn revert(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, KEEPING, Act::Revert)
}

/// `snap_delete`.
pub fn delete(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    run(cx, request, KEEPING, Act::Delete)
}
