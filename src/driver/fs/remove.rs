//! `rm`: removes an image with its snapshots and its digest.
//!
//! Source: contract 02 §2.5. SOURCE has to be a file directly in the datastore, on the front-end and on bridges alike.
//! The image itself goes last: killed anywhere before, the next `rm` still finds it.

use anyhow::{Result, bail};

use super::place::Place;
use crate::context::Cx;
use crate::driver::common::nfs::{self, Mount};
use crate::driver::{Reply, Request, misuse};
use crate::exec::op::Op;
use crate::exec::step::Step;

/// See the module.
pub fn rm(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    // What is read.
    let image = request.data.required_image().map_err(misuse)?;
    let source = image.source.required().map_err(misuse)?;
    let place = Place::open(cx, &request.data.datastore, request.id)?;
    let files = place.image(source)?;
    let mount = nfs::mount(cx, &place, &place.in_host(), &request.data.datastore)?;

    // What is decided.
    let failure = format!("Error deleting {source}{}", place.in_host());
    let there = cx.ask(&place.host, Op::Stat { path: files.image.clone(), follow: false })?;
    if mount == Mount::There && there.stat().is_none() {
        bail!("{failure}: it does not exist");
    }

    // What is done.
    cx.info(format!("Removing {source} from the image repository"));
    let remove = |path, must_exist| Op::Remove { path, tree: true, must_exist };
    cx.apply(
        Step::new(
            &place.host,
            format!("Remove the image {}, its snapshots and digest; this cannot be undone", files.image.display()),
            [remove(files.snapshots(), false), remove(files.md5sum(), false), remove(files.image, true)],
        )
        .or_say(failure),
    )?;
    Ok(Reply::Nothing)
}
