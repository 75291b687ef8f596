//! `ln`: a VM is given a persistent image itself, by a link into the image datastore.
//!
//! Source: contract 02 §1, §5. Whether the image has layers is asked on the host that will run the VM: front-end and host
//! may see the datastores in different places.

use anyhow::{Context as _, Result};

use super::mounts::{self, Mounts};
use crate::context::Cx;
use crate::driver::common::disk::{Target, record};
use crate::driver::{Reply, TmRequest};
use crate::exec::op::Op;
use crate::image::Format;

/// See the module.
pub fn ln(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let (id, datastore) = (request.number(2, "VM_ID")?, request.number(3, "DS_ID")?);
    let to = request.disk(cx, 1, id)?;
    let place = &to.place;
    let files = place.image(&request.path(0)?)?;
    let failure = format!("Error linking {} to {}", request.text(0), place.text);
    let vm = cx.oned().vm(id).with_context(|| failure.clone())?;
    let format = record(&vm, id, to.number).with_context(|| failure.clone())?.format.trimmed();
    let mounts = Mounts::wanted(cx, place, datastore, Some(place.datastore))?;
    Target::lock(cx, place)?;
    let looked = mounts::look(cx, &mounts, place, files).with_context(|| failure.clone())?;
    let (target, image) = (&looked.target, &looked.image);
    let path = &image.files.image;

    // What is decided.
    let raw = if looked.is_planned || image.has_layers() || format == Some("raw") {
        format == Some("raw")
    } else {
        let layer = image.current(cx, &place.host, format).with_context(|| failure.clone())?;
        matches!(layer.format, Format::Raw | Format::Luks)
    };
    if !looked.is_planned {
        image.must_exist(&place.host).with_context(|| failure.clone())?;
    }

    // What is done.
    cx.info(format!("Linking {} in {}", path.display(), place.text));
    if raw {
        let step = target.step(format!("Make the disk a link to {}", path.display()), target.put_link(path));
        cx.apply(step.or_say(failure))?;
        return Ok(Reply::Nothing);
    }
    let snapshots = image.files.snapshots();
    let mut ops = Vec::new();
    let mut undo = Vec::new();
    let own_name = snapshots.file_name().unwrap_or_default();
    let made = |link| Op::Remove { path: link, tree: false, must_exist: false };
    if image.names.is_none() {
        ops.push(Op::MakeDir { path: snapshots.clone() });
        undo.push(Op::RemoveDirIfEmpty { path: snapshots.clone() });
    }
    if !image.names.iter().flatten().any(|name| name == own_name) {
        let link = snapshots.join(own_name);
        undo.insert(0, made(link.clone()));
        ops.push(Op::Symlink { target: ".".into(), link });
    }
    let active = image.numbers().max().unwrap_or(0);
    if image.numbers().next().is_none() {
        // No layer yet: the image is the first one.
        let link = image.files.snapshot(0);
        undo.insert(0, made(link.clone()));
        ops.push(Op::Symlink { target: path.clone(), link });
    }
    let layer = image.files.snapshot(active);
    ops.extend(target.put_link(&layer));
    let mut step = target.step(format!("Make the disk a link to {}", layer.display()), ops).or_say(failure);
    step.undo.ops.extend(undo);
    cx.apply(step)?;
    Ok(Reply::Nothing)
}
