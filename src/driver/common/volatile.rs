//! `mkimage` and `mkswap`: a disk that belongs to no image.
//!
//! Source: contract 02 §4.

use anyhow::{Context as _, Result};

use super::blank::Blank;
use super::disk::{Target, record};
use crate::context::Cx;
use crate::driver::{Reply, TmRequest};
use crate::exec::op::Op;

/// `mkimage SIZE_MB FORMAT HOST:SYSDIR/disk.N VM_ID DS_ID`.
pub fn mkimage(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let format = request.text(1);
    make(cx, request, &format, 2)
}

/// `mkswap SIZE_MB HOST:SYSDIR/disk.N VM_ID DS_ID`.
pub fn mkswap(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    make(cx, request, "swap", 1)
}

/// Makes the disk that the argument `at` names.
fn make(cx: &Cx<'_>, request: &TmRequest, format: &str, at: usize) -> Result<Reply> {
    // What is read.
    let mib = request.number(0, "SIZE_MB")?;
    let id = request.number(at + 1, "VM_ID")?;
    let disk = request.disk(cx, at, id)?;
    let failure = format!("Could not create image {}", disk.path.display());
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let fs = record(&vm, id, disk.number).with_context(|| failure.clone())?.fs.trimmed();
    let blank = Blank::of(cx, format, fs, Some(mib), &failure)?;
    Target::lock(cx, &disk.place)?;
    let answers = cx.query(&disk.place.host, Target::questions(&disk.place)).with_context(|| failure.clone())?;
    let (target, _) = Target::read(&disk.place, &answers).with_context(|| failure.clone())?;

    // What is done.
    cx.info(format!("Making image of {mib}M and type {format} at {}", disk.place.text));
    let staged = target.staged_file();
    let raw = target.folder.staging(format!("{}.raw", disk.name()));
    let ops = if blank.is_converted() {
        let mut ops = blank.make(cx, &raw);
        ops.extend(Blank::convert(&raw, &staged));
        ops
    } else {
        blank.make(cx, &staged)
    };
    let mut step = target.step(blank.sentence(), ops.into_iter().chain(target.put_file()));
    if blank.is_converted() {
        step.undo.ops.insert(0, Op::Remove { path: raw, tree: false, must_exist: false });
    }
    cx.apply(step.or_say(failure))?;
    Ok(Reply::Nothing)
}
