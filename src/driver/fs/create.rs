//! `mkfs`: creates an empty image, with a file system if asked for, or names the place of one to be saved.
//!
//! Source: contract 02 §2.3.

use anyhow::{Result, bail};

use super::nfs;
use super::place::Place;
use crate::context::Cx;
use crate::driver::{Reply, Request, misuse};
use crate::exec::op::Op;
use crate::report::Misuse;
use crate::tool::qemu_img::Zeroes;
use crate::tool::{mkfs as tool, qemu_img};

/// Largest size that is taken for meant, in MiB: 8 EiB is what a file offset can say.
const MOST_MIB: u64 = (1 << 43) - 1;

/// See the module.
pub fn mkfs(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    // What is read.
    let image = request.data.required_image().map_err(misuse)?;
    let format = image.format.or("raw");
    let place = Place::open(cx, &request.data.datastore, request.id)?;
    let new = place.new_image(cx, request.id);
    if format == "save_as" {
        // A disk will be saved here by the transfer manager; only the name is wanted.
        return Ok(Reply::Created { source: new.source });
    }
    let fs = image.fs.trimmed();
    let size = image.size.get().map_err(misuse)?;

    // What is decided.
    let failure = format!("Unable to create image with format {format} in {}", place.show(&new.path));
    let mib = match size {
        Some(mib) if mib <= MOST_MIB => mib,
        Some(mib) => bail!(Misuse(format!("{failure}: a size of {mib} MiB is out of range"))),
        None => bail!(Misuse(format!("{failure}: IMAGE/SIZE is missing"))),
    };
    let supported = cx.settings.supported_fs();
    if let Some(fs) = fs.filter(|fs| !supported.contains(fs)) {
        bail!("Unsupported file system type: {fs}. Supported types are: {}", supported.join(","));
    }
    // Anything but qcow2 is made as raw, `swap` among them.
    let qcow2 = format == "qcow2";
    let raw = if qcow2 && fs.is_some() { place.staging("mkfs") } else { new.staging.clone() };

    // What is done.
    nfs::mount(cx, &place, &request.data.datastore)?;
    let mut ops = place.prepare();
    match (fs, qcow2) {
        (Some(fs), _) => {
            ops.push(Op::CreateSparse { path: raw.clone(), bytes: mib << 20 });
            ops.push(Op::Run(tool::mkfs(fs, &cx.settings.fs_options(fs), &raw)));
        }
        (None, true) => ops.push(Op::Run(qemu_img::create("qcow2", &raw, mib))),
        (None, false) => ops.push(Op::CreateSparse { path: raw.clone(), bytes: mib << 20 }),
    }
    if format == "swap" {
        ops.push(Op::Run(tool::mkswap(&raw)));
    }
    let what = match fs {
        Some(fs) => format!("Create an image of {mib} MiB with an {fs} file system"),
        None => format!("Create an empty image of {mib} MiB"),
    };
    cx.apply(place.staging_step(what, &raw, ops).or_say(&failure))?;
    if raw != new.staging {
        let ops = [
            Op::Run(qemu_img::convert((&raw, "raw"), (&new.staging, "qcow2"), Zeroes::Holes, None)),
            Op::Remove { path: raw.clone(), tree: false, must_exist: true },
        ];
        cx.apply(place.staging_step("Convert it to qcow2", &new.staging, ops).or_say(&failure))?;
    }
    place.publish(cx, &new, &failure)?;
    Ok(Reply::Created { source: new.source })
}
