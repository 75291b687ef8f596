//! `clone`: copies an image, of this datastore or another, into a new image.
//!
//! Source: contract 02 §2.2. Where source and target are handled by one machine the copy stays on it (and shares blocks
//! where the file system can); else the data streams through the front-end, without a temporary file.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::place::{NewImage, Place};
use super::register::{conversion, sparse_of};
use crate::context::Cx;
use crate::driver::common::bridges::{bridges_on, in_turn, reach};
use crate::driver::common::layers::{Layer, Layers, data_format};
use crate::driver::common::nfs;
use crate::driver::{Reply, Request, misuse};
use crate::exec::host::Host;
use crate::exec::op::{Op, Sparse};
use crate::exec::relay;
use crate::exec::step::{Feed, Step};
use crate::image::Format;
use crate::location::ImageFiles;
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Zeroes};
use crate::transfer::import;

/// See the module.
pub fn clone(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    // What is read.
    let image = request.data.required_image().map_err(misuse)?;
    let datastore = &request.data.datastore;
    let text = image.path.required().map_err(misuse)?;
    let place = Place::open(cx, datastore, request.id)?;
    nfs::mount(cx, &place, &place.in_host(), datastore)?;
    let source = Source::find(cx, request, &place, Path::new(text))?;
    let new = place.new_image(cx, request.id);
    let failure = match &source.bridge {
        Some(from) if Some(from) != place.bridge.as_ref() => {
            format!("Error copying {text} from {from} to {}", place.show(&new.path))
        }
        _ => format!("Error copying {text} to {}{}", new.path.display(), place.in_host()),
    };
    let layer = source.current_layer(cx, image.format.trimmed()).with_context(|| failure.clone())?;

    // What is decided.
    let wanted = datastore.template.driver.trimmed();
    let target = conversion(wanted, layer.format);
    let flatten = layer.backing.is_some();

    // What is done.
    cx.info(format!("Copying image {} to the image repository", place_text(&source, text)));
    if flatten || (target.is_some() && source.is_on(&place)) {
        if !source.is_on(&place) {
            bail!(
                "{failure}: its state is in a chain of snapshots on another machine, flatten it first (oneimage snapshot-flatten)"
            );
        }
        let format = target.unwrap_or(layer.format.name());
        convert(cx, &place, &layer, &new, format, &failure)?;
    } else {
        let sparse = sparse_of(datastore);
        let raw = if target.is_some() { place.staging("clone") } else { new.staging.clone() };
        copy(cx, &place, &source, &layer.path, &raw, sparse, &failure)?;
        if let Some(format) = target {
            let from = Layer { path: raw.clone(), ..layer.clone() };
            convert(cx, &place, &from, &new, format, &failure)?;
            let ops = [Op::Remove { path: raw, tree: false, must_exist: false }];
            cx.apply(Step::new(&place.host, "Drop the copy in the old format", ops))?;
        }
    }
    place.publish(cx, &new, &failure)?;
    let format = wanted.map(|wanted| replied(wanted, target, layer.format).to_owned());
    Ok(Reply::Cloned { source: new.source, format })
}

/// The format to tell oned where the datastore has a `DRIVER`: what was written, where that is a format that we write. An
/// encrypted image is not converted, and to QEMU it is raw.
fn replied<'f>(wanted: &'f str, target: Option<&'f str>, format: Format) -> &'f str {
    match wanted {
        "qcow2" | "raw" => target.unwrap_or_else(|| data_format(format)),
        other => other,
    }
}

fn place_text(source: &Source, path: &str) -> String {
    source.bridge.as_ref().map_or_else(|| path.to_owned(), |bridge| format!("{bridge}:{path}"))
}

/// The image that is copied and the machine that has it.
struct Source {
    host: Arc<dyn Host>,
    bridge: Option<String>,
    path: PathBuf,
}

impl Source {
    /// A source datastore with bridges is asked through one of them; one without is looked for on the target's machine
    /// first, which upstream takes for granted, and then on the front-end.
    fn find(cx: &Cx<'_>, request: &Request, place: &Place, path: &Path) -> Result<Self> {
        if !path.is_absolute() {
            // An address may hold a password.
            let shown = import::shown(path.as_os_str());
            bail!(Misuse(format!("Bad IMAGE/PATH {shown}: it has to be an absolute path")));
        }
        let path = crate::location::normalize(path);
        let bridges: Vec<&str> = request.data.source_bridge_list.words().collect();
        if !bridges.is_empty() {
            let on = bridges_on(cx, &bridges)?;
            if let Some(name) = place.bridge.as_deref().filter(|name| on.contains(name)) {
                return Ok(Self { host: Arc::clone(&place.host), bridge: Some(name.to_owned()), path });
            }
            let question = || vec![Op::Stat { path: path.clone(), follow: true }];
            let (host, name, _) = reach(cx, in_turn(on, request.id), &question)?;
            return Ok(Self { host, bridge: Some(name), path });
        }
        let there = cx.ask(&place.host, Op::Stat { path: path.clone(), follow: true })?;
        if place.bridge.is_some() && there.stat().is_none() {
            return Ok(Self { host: cx.here(), bridge: None, path });
        }
        Ok(Self { host: Arc::clone(&place.host), bridge: place.bridge.clone(), path })
    }

    fn is_on(&self, place: &Place) -> bool {
        self.bridge == place.bridge
    }

    /// The file that holds the image's current state. It may stand on other files of the image, on nothing else.
    fn current_layer(&self, cx: &Cx<'_>, format: Option<&str>) -> Result<Layer> {
        let base = self.path.parent().unwrap_or(Path::new("/"));
        let files = ImageFiles::new(base, &self.path)?;
        let layers = Layers::read(cx, &self.host, &files, format)?;
        Ok(layers.active().clone())
    }
}

/// Copies a file into the staging file `to`.
fn copy(
    cx: &Cx<'_>,
    place: &Place,
    source: &Source,
    from: &Path,
    to: &Path,
    sparse: Sparse,
    failure: &str,
) -> Result<()> {
    if source.is_on(place) {
        let mut ops = place.prepare();
        ops.push(Op::Copy { from: from.to_owned(), to: to.to_owned(), sparse });
        let what = format!("Copy {}, sharing its blocks where the file system can", from.display());
        cx.apply(place.staging_step(what, to, ops).or_say(failure))?;
        return Ok(());
    }
    let reader: Box<dyn Read + Send> = if cx.is_real() {
        Box::new(relay::file_of(&source.host, from, &cx.control).with_context(|| failure.to_owned())?)
    } else {
        Box::new(io::empty())
    };
    let from = source.bridge.as_deref().unwrap_or("the front-end");
    let what = format!("Stream the image from {from} through the front-end");
    cx.apply(place.receive(what, to, sparse, Feed::Stream(reader)).or_say(failure))?;
    Ok(())
}

/// Converts a layer, with what it stands on, into the new image.
fn convert(cx: &Cx<'_>, place: &Place, from: &Layer, new: &NewImage, format: &str, failure: &str) -> Result<()> {
    let largest = from.virtual_size.map(qemu_img::largest);
    let mut ops = place.prepare();
    ops.push(Op::Run(qemu_img::convert(
        (&from.path, from.format.name()),
        (&new.staging, format),
        Zeroes::Holes,
        largest,
    )));
    let what = format!("Convert {} from {} to {format}", from.path.display(), from.format);
    cx.apply(place.staging_step(what, &new.staging, ops).or_say(failure))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oned_is_told_what_was_written() {
        assert_eq!(replied("qcow2", Some("qcow2"), Format::Raw), "qcow2");
        assert_eq!(replied("qcow2", None, Format::Qcow2), "qcow2");
        // It stays as it is, and a VM given it as qcow2 would not start.
        assert_eq!(replied("qcow2", None, Format::Luks), "raw");
        assert_eq!(replied("vmdk", None, Format::Raw), "vmdk");
    }
}
