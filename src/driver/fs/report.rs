//! `monitor` and `export`: what a datastore or an image is like. They change no image.
//!
//! Source: contract 01 §16, 02 §2.6.

use anyhow::{Context as _, Result, bail};

use super::place::Place;
use crate::context::Cx;
use crate::driver::common::layers::Layers;
use crate::driver::{Reply, Request, misuse};
use crate::exec::op::{Op, Space, Value};
use crate::exec::step::Step;

/// Space of the file system that holds the datastore, in MiB. A datastore without a directory gets one.
pub fn monitor(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let place = Place::open(cx, &request.data.datastore, request.id)?;
    let failure = || format!("Error monitoring {}", place.show(&place.base));
    let ask = |path: &std::path::Path| cx.ask(&place.host, Op::Space { path: path.to_owned() });
    let there = cx.ask(&place.host, Op::Stat { path: place.base.clone(), follow: true }).with_context(failure)?;
    if there.stat().is_none() {
        let ops = [Op::MakeDir { path: place.base.clone() }];
        cx.apply(Step::new(&place.host, "Create the datastore's directory", ops).or_say(failure()))?;
        if !cx.is_real() {
            // The directory is only planned; the file system is that of its nearest parent.
            for parent in place.base.ancestors().skip(1) {
                if let Ok(Value::Space(space)) = ask(parent) {
                    return Ok(Reply::Usage(space));
                }
            }
        }
    }
    match ask(&place.base).with_context(failure)? {
        Value::Space(Space { total_mib: 0, .. }) => bail!("{}: the file system has no size", failure()),
        Value::Space(space) => Ok(Reply::Usage(space)),
        other => bail!("{}: unexpected answer {other:?}", failure()),
    }
}

/// What a marketplace needs to fetch the image.
///
/// An image whose current state lies in a chain is refused: its file alone holds old data.
pub fn export(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let image = request.data.required_image().map_err(misuse)?;
    let source = image.source.required().map_err(misuse)?;
    let place = Place::open(cx, &request.data.datastore, request.id)?;
    let files = place.image(source)?;
    let failure = format!("Error exporting {source}{}", place.in_host());
    let layers = Layers::read(cx, &place.host, &files, image.format.trimmed()).with_context(|| failure.clone())?;
    if layers.active().path != layers.image.path || layers.image.backing.is_some() {
        bail!("{failure}: its current state is in a chain of snapshots, flatten it first (oneimage snapshot-flatten)");
    }
    let md5 = cx.ask(&place.host, Op::Md5 { path: files.image.clone() }).with_context(|| failure.clone())?.text();
    Ok(Reply::Exported {
        source: match &place.bridge {
            Some(bridge) => format!("ssh://{bridge}:{source}"),
            None => source.to_owned(),
        },
        md5,
        size_mib: image.size.text().or("").to_owned(),
        format: layers.image.format.name().to_owned(),
    })
}
