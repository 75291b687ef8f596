//! `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`: layers of a qcow2 disk that name each other by their
//! bare numbers, full copies of a raw one.
//!
//! Source: contract 02 §8. All of it is [`crate::driver::common::snapshot`]'s.

use anyhow::Result;

use crate::context::Cx;
use crate::driver::common::snapshot::{Act, Keeping, run};
use crate::driver::{Reply, TmRequest};
use crate::image::chain::Manner;

const KEEPING: Keeping = Keeping::WithDisk(Manner::Bare);

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
