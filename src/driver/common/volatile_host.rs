//! `mkimage`, `mkswap` and `context` on a host's own storage: the common actions, after which the host tells the disk's size
//! like any other's.
//!
//! Source: contract 02 §4, §7.

use anyhow::Result;

use super::{context, monitored, volatile};
use crate::context::Cx;
use crate::driver::{Reply, TmRequest};

/// `mkimage SIZE_MB FORMAT HOST:SYSDIR/disk.N VM_ID DS_ID`.
pub fn mkimage(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    told(cx, request, volatile::mkimage)
}

/// `mkswap SIZE_MB HOST:SYSDIR/disk.N VM_ID DS_ID`.
pub fn mkswap(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    told(cx, request, volatile::mkswap)
}

/// `context CONTEXT_SH [FILE…] HOST:SYSDIR/disk.N VM_ID DS_ID`.
pub fn context(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    told(cx, request, context::context)
}

fn told(cx: &Cx<'_>, request: &TmRequest, serve: fn(&Cx<'_>, &TmRequest) -> Result<Reply>) -> Result<Reply> {
    let reply = serve(cx, request)?;
    // The last three arguments are the same for all of them.
    let last = request.args.len().saturating_sub(1);
    let place = request.place(cx, last.saturating_sub(2), request.number(last.saturating_sub(1), "VM_ID")?)?;
    monitored::ensure(cx, &place)?;
    Ok(reply)
}
