//! `snap_delete`, `snap_revert`, `snap_flatten`: snapshots of an image that no VM uses.
//!
//! Source: contract 02 §2.7. Upstream asks whether the transfer manager is called `qcow2`; we look at the layers
//! ([`super::layers`]), so `shared`, `local` and mixed mode are served as well. Every change is one that can be killed
//! and done again.

use anyhow::{Context as _, Result, bail};

use super::place::Place;
use crate::context::Cx;
use crate::driver::common::layers::{Layer, Layers};
use crate::driver::{Reply, Request, misuse};
use crate::exec::op::{Op, Sparse};
use crate::exec::step::Step;
use crate::report::Misuse;
use crate::tool::qemu_img::{self, Zeroes};

/// What the three actions share: the snapshot, its image, and where they are.
struct Target {
    place: Place,
    id: u32,
    source: String,
    format: Option<String>,
}

impl Target {
    fn read(cx: &Cx<'_>, request: &Request) -> Result<Self> {
        let image = request.data.required_image().map_err(misuse)?;
        let id: i64 = image.target_snapshot.get().map_err(misuse)?.unwrap_or(-1);
        let id = u32::try_from(id).map_err(|_| Misuse(format!("IMAGE/TARGET_SNAPSHOT is no snapshot: {id}")))?;
        let source = image.source.required().map_err(misuse)?.to_owned();
        let place = Place::open(cx, &request.data.datastore, request.id)?;
        let lock = format!("onestore-image-{}", request.id);
        cx.lock(&lock).with_context(|| format!("Cannot keep others from {source}"))?;
        Ok(Self { place, id, source, format: image.format.trimmed().map(str::to_owned) })
    }

    fn layers(&self, cx: &Cx<'_>) -> Result<Layers> {
        Layers::read(cx, &self.place.host, &self.place.image(&self.source)?, self.format.as_deref())
    }

    fn name(&self) -> String {
        format!("{}.snap/{}", self.source, self.id)
    }

    fn staging(&self) -> std::path::PathBuf {
        let name = self.source.rsplit('/').next().unwrap_or_default();
        self.place.staging(format!("{name}.{}", self.id))
    }
}

fn remove(path: std::path::PathBuf) -> Op {
    Op::Remove { path, tree: false, must_exist: false }
}

/// Deletes a snapshot. Layers that stand on it are put on what it stands on; their content stays what it is.
pub fn delete(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let target = Target::read(cx, request)?;
    let failure = format!("Error deleting snapshot {}{}", target.name(), target.place.in_host());
    let layers = target.layers(cx).with_context(|| failure.clone())?;
    let data = layers.data(target.id).with_context(|| failure.clone())?;
    if layers.is_chain() && data.path == layers.active().path {
        bail!("{failure}: it holds the current state of the image");
    }
    let place = if target.place.bridge.is_some() { "remote" } else { "local" };
    cx.info(format!("Delete {place} snapshot {}", target.name()));
    for above in layers.above(data)? {
        let (what, rebase) = put_on_what_is_below(&layers, data, above)?;
        cx.apply(Step::new(&target.place.host, what, [Op::Run(rebase)]).or_say(&failure))?;
    }
    // The data last: killed anywhere before, the next try still finds the snapshot.
    let mut ops = vec![remove(layers.files.md5sum())];
    ops.push(Op::Remove { path: data.path.clone(), tree: false, must_exist: true });
    ops.extend(layers.moved_marker(target.id).map(remove));
    // What oned was told to be gone must not come back with the power.
    ops.extend([layers.files.snapshots(), layers.files.base.clone()].map(|path| Op::Sync { path }));
    let what = format!("Remove {}; this cannot be undone", data.path.display());
    cx.apply(Step::new(&target.place.host, what, ops).or_say(&failure).whole())?;
    Ok(Reply::Nothing)
}

/// The command that takes `data` out from under `above`.
fn put_on_what_is_below(layers: &Layers, data: &Layer, above: &Layer) -> Result<(String, crate::exec::cmd::Cmd)> {
    let (below, keep_content) = match (&data.link, &data.backing) {
        // A link: the file behind it has the same content, only the name changes.
        (Some(_), _) => (Some(layers.behind(data)), false),
        (None, Some(_)) => (layers.below(data)?, true),
        (None, None) => (None, true),
    };
    let name = below.map(|below| above.name_for(&below.path));
    let format = below.map_or("raw", |below| below.format.name());
    let what = match &name {
        Some(name) => format!("Put {} on {}, its content stays", above.path.display(), name.display()),
        None => format!("Make {} stand alone, its content stays", above.path.display()),
    };
    Ok((what, qemu_img::rebase(&above.path, name.as_deref(), format, keep_content)))
}

/// Sets the image back: a chain gets a new empty active layer on the snapshot, a full copy is copied back.
pub fn revert(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let target = Target::read(cx, request)?;
    let failure = format!("Error reverting snapshot to {}{}", target.name(), target.place.in_host());
    let layers = target.layers(cx).with_context(|| failure.clone())?;
    let data = layers.data(target.id).with_context(|| failure.clone())?;
    let (place, staging) = (&target.place, target.staging());
    // First: a digest that outlives what it was made of makes a replica take old data for current.
    let mut ops = place.prepare();
    ops.push(remove(layers.files.md5sum()));
    if !layers.is_chain() {
        ops.push(Op::Copy { from: data.path.clone(), to: staging.clone(), sparse: Sparse::Holes });
        let what = format!("Copy snapshot {}", data.path.display());
        let copying = format!("Error copying snapshot {}", target.name());
        cx.apply(place.staging_step(what, &staging, ops).or_say(copying))?;
        place.replace(cx, &staging, &layers.files.image, &format!("Error moving to {}", target.source))?;
        return Ok(Reply::Nothing);
    }
    let active = layers.active();
    if active.path == data.path || active.path == layers.behind(data).path {
        bail!("{failure}: no layer was written since that snapshot, there is nothing to set back");
    }
    if let Some(above) = layers.above(active)?.first() {
        bail!("{failure}: {} stands on the active layer", above.path.display());
    }
    let Some(bytes) = layers.behind(data).virtual_size else { bail!("{failure}: the size of the snapshot is unknown") };
    let backing = active.name_for(&data.path);
    ops.push(Op::Run(qemu_img::create_overlay(&staging, &backing, layers.behind(data).format.name(), bytes)));
    let what = format!("Make a new empty layer on {}", data.path.display());
    cx.apply(place.staging_step(what, &staging, ops).or_say(&failure))?;
    place.replace(cx, &staging, &active.path, &failure)?;
    Ok(Reply::Nothing)
}

/// Makes a snapshot the image and drops all snapshots. The snapshots go last and at once, so that it can be done again
/// wherever it was killed.
pub fn flatten(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    let target = Target::read(cx, request)?;
    let failure = format!("Error flattening {}{}", target.name(), target.place.in_host());
    let (place, staging) = (&target.place, target.staging());
    let files = place.image(&target.source)?;
    let there = |path| cx.ask(&place.host, Op::Stat { path, follow: false }).map(|answer| answer.stat());
    if there(files.snapshots())?.is_none() && there(files.image.clone())?.is_some() {
        cx.warn(format!("{} has no snapshots, it is flat already", target.source));
        let ops = place.prepare().into_iter().chain(place.leave());
        let clear = place.prepared_step("Clear away what a run left that was killed", ops);
        cx.apply(clear.or_say(&failure))?;
        return Ok(Reply::Nothing);
    }
    let layers = target.layers(cx).with_context(|| failure.clone())?;
    let data = layers.behind(layers.data(target.id).with_context(|| failure.clone())?);
    let mut ops = place.prepare();
    ops.push(remove(layers.files.md5sum()));
    // Snapshot 0 of a shared chain is the image itself; and so is a copy that was put in its place by a try that died.
    let inode = |path| there(path).map(|stat| stat.map(|s| (s.dev, s.ino)));
    let done = data.path == files.image || inode(data.path.clone())? == inode(files.image.clone())?;
    if done {
        cx.apply(place.prepared_step("Drop the image's digest", ops).or_say(&failure))?;
    } else {
        let step = if data.backing.is_some() {
            let largest = data.virtual_size.map(qemu_img::largest);
            ops.push(Op::Run(qemu_img::convert((&data.path, "qcow2"), (&staging, "qcow2"), Zeroes::Holes, largest)));
            place.staging_step(format!("Merge the chain of {} into one file", data.path.display()), &staging, ops)
        } else {
            // A second name instead of a move: killed before the end, the snapshot is still there for the next try.
            ops.push(Op::HardLink { from: data.path.clone(), to: staging.clone() });
            place.staging_step(format!("Give {} a second name", data.path.display()), &staging, ops)
        };
        cx.apply(step.or_say(&failure))?;
        place.replace(cx, &staging, &files.image, &format!("Error moving to {}", target.source))?;
    }
    place.drop_tree(cx, &files.snapshots(), &format!("Error removing {}", files.snapshots().display()))?;
    Ok(Reply::Nothing)
}
