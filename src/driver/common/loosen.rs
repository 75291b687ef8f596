//! Names by which the layers of disks know each other, before the directory of their VM moves.
//!
//! Source: contract 02 §5, §7. Made relative they hold at both places, whatever happens in between; upstream's scripts
//! write absolute ones. Layers beside an image, in the image datastore, stay where they are and are not touched.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::args::{disk_number, plain_number};
use super::layers::HEAD;
use crate::chains::{self, Phase, Query, Staging};
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Node, Op, Value};
use crate::exec::step::Step;
use crate::image::chain::{Chain, Header, Manner, Names, Style};
use crate::image::{Prefix, inspect};

/// Makes absolute names within the disks of the directory `dir` relative; `nodes` is what is in it. One question where
/// there are layers, more and a change only for a disk that has such names. Tells whether anything changed.
///
/// # Errors
/// What the host answers, or a header that cannot be read. Chains that are broken are left as they are.
pub fn loosen(cx: &Cx<'_>, host: &Arc<dyn Host>, dir: &Path, nodes: &[Node]) -> Result<bool> {
    let mut disks: Vec<(Names, bool)> = nodes.iter().filter_map(|node| layered(dir, node)).collect();
    let paths: Vec<PathBuf> = disks.iter().flat_map(|(names, _)| layers(dir, nodes, names)).collect();
    if paths.is_empty() {
        return Ok(false);
    }
    let heads = cx.query(host, paths.iter().map(|path| Op::Head { path: path.clone(), len: HEAD }))?;
    for (layer, head) in paths.iter().zip(&heads) {
        let Value::Bytes(head) = head else { continue };
        let header = Header::from(&inspect(&mut Prefix::new(head, None))?);
        let absolute = header.backing.is_some_and(|backing| within_disk(Path::new(&backing.name), layer));
        for (_, wanted) in disks.iter_mut().filter(|(names, _)| layer.parent() == Some(&names.folder())) {
            *wanted |= absolute;
        }
    }
    let mut changed = false;
    for (names, _) in disks.into_iter().filter(|(_, wanted)| *wanted) {
        let style = Style::Layers(Manner::Relative);
        let query = Query { names, style, raw: false, images: Vec::new() };
        let reading = chains::read(&query, &mut |ops| cx.query(host, ops).map_err(anyhow::Error::from))?;
        let plan = Chain::of(&reading.facts).movable();
        let staging = Staging::of(&query.names).context("Cannot tell this process from others")?;
        for phase in chains::phases(&plan, &staging) {
            let Phase::Files(files) = phase else { bail!("A disk that is moved is not changed by its domain") };
            // Nothing to take back: the names hold at the old place too.
            cx.apply(Step::new(host, files.what(), files.ops()))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// A disk of the directory that is a link to a layer of its own, and whether that names it by an absolute path. A plain
/// file is none: what looks like a header in it may be the guest's.
fn layered(dir: &Path, node: &Node) -> Option<(Names, bool)> {
    let name = node.path.to_str()?;
    disk_number(name)?;
    let (names, link) = (Names::own(dir.join(name)), node.link.as_ref()?);
    let own = link.parent().and_then(Path::file_name) == names.folder().file_name();
    own.then(|| (names, link.is_absolute()))
}

/// The files with a number in a disk's folder of layers.
fn layers(dir: &Path, nodes: &[Node], names: &Names) -> Vec<PathBuf> {
    let is_layer = |node: &&Node| {
        let number = node.path.file_name().and_then(OsStr::to_str).and_then(plain_number);
        node.kind == FileKind::File && number.is_some() && dir.join(&node.path).parent() == Some(&names.folder())
    };
    nodes.iter().filter(is_layer).map(|node| dir.join(&node.path)).collect()
}

/// Whether a backing name of `layer` is an absolute one that leads to a sibling, under whichever root.
fn within_disk(backing: &Path, layer: &Path) -> bool {
    let folder = |path: &Path| path.parent().and_then(Path::file_name).map(OsStr::to_owned);
    backing.is_absolute() && folder(backing) == folder(layer)
}
