//! `mkfs`: creates an empty image, with a file system if asked for, or names the place of one to be saved.
//!
//! Source: contract 02 §2.3.

use anyhow::Result;

use super::place::Place;
use crate::context::Cx;
use crate::driver::common::blank::Blank;
use crate::driver::common::nfs;
use crate::driver::{Reply, Request, misuse};

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
    let blank = Blank::of(cx, format, fs, size, &failure)?;

    // What is done.
    nfs::mount(cx, &place, &place.in_host(), &request.data.datastore)?;
    let raw = if blank.is_converted() { place.staging("mkfs") } else { new.staging.clone() };
    let mut ops = place.prepare();
    ops.extend(blank.make(cx, &raw));
    cx.apply(place.staging_step(blank.sentence(), &raw, ops).or_say(&failure))?;
    if blank.is_converted() {
        let ops = Blank::convert(&raw, &new.staging);
        cx.apply(place.staging_step("Convert it to qcow2", &new.staging, ops).or_say(&failure))?;
    }
    place.publish(cx, &new, &failure)?;
    Ok(Reply::Created { source: new.source })
}
