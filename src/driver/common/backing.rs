//! What a disk of a VM stands on, judged level by level before a program opens it.
//!
//! A layer may stand on a layer beside it, on the image in the image datastore, or on a layer of that. Anything else is
//! refused: the program would read a file of the host into the VM.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};

use super::args::{Disk, plain_number};
use super::layers::{self, HEAD, Layer};
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{Op, Value};
use crate::location::normalize;
use crate::payload::Vm;

/// Most levels that are followed.
const LEVELS: usize = 1024;

/// Bytes of a layer's beginning that are asked for before it is known to be needed; a longer header costs a question more.
pub const LAYER_HEAD: u64 = 8 << 10;

/// Most layers that are asked for in that way.
const MOST_LAYERS: usize = 32;

/// Judges the file `top` of the disk and all that it stands on; gives `top`. `known` holds beginnings of files that were
/// read before, so that they are not asked for again.
///
/// # Errors
/// A file is missing, unsafe, or stands on one that is neither the disk's nor an image's; a chain runs in a circle.
pub fn judged(cx: &Cx<'_>, disk: &Disk, top: &Path, known: &mut HashMap<PathBuf, Value>) -> Result<Layer> {
    let host = &disk.place.host;
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut at = top.to_owned();
    let mut first: Option<Layer> = None;
    loop {
        let one = one(cx, host, &at, known)?;
        seen.push(at.clone());
        let below = match &one.backing {
            Some(text) => Some(within(disk, &at, text)?),
            None => None,
        };
        first.get_or_insert(one);
        match below {
            None => break,
            Some(below) if seen.contains(&below) => {
                bail!("The layers of {} back each other in a circle at {}", disk.place.text, below.display())
            }
            Some(_) if seen.len() >= LEVELS => bail!("{} has more than {LEVELS} layers", disk.place.text),
            Some(below) => at = below,
        }
    }
    first.ok_or_else(|| anyhow::anyhow!("{} has no layer", disk.place.text))
}

/// The files in `folder` that the disk consists of, as far as oned knows: they are asked for along with the disk, so that
/// the host is not asked once for each level. One that is not there is no failure.
pub fn likely(vm: &Vm, disk: u32, folder: &Path) -> Vec<PathBuf> {
    let of_disk = vm.snapshots.iter().filter(|all| all.disk_id.get().ok().flatten() == Some(disk));
    let ids: BTreeSet<u32> =
        of_disk.flat_map(|all| &all.snapshots).filter_map(|one| one.id.get().ok().flatten()).collect();
    // The VM writes to the file above its last snapshot.
    let current = ids.last().map(|last| last.saturating_add(1));
    ids.iter().rev().take(MOST_LAYERS).copied().chain(current).map(|id| folder.join(id.to_string())).collect()
}

fn one(cx: &Cx<'_>, host: &Arc<dyn Host>, path: &Path, known: &mut HashMap<PathBuf, Value>) -> Result<Layer> {
    let head = match known.remove(path) {
        Some(head) => head,
        None => cx.ask(host, Op::Head { path: path.to_owned(), len: HEAD })?,
    };
    match head {
        Value::Absent => bail!("{} does not exist on {}", path.display(), host.name()),
        Value::Bytes(head) => layers::judged(cx, host, path, None, &head),
        _ => bail!("{} cannot be read", path.display()),
    }
}

/// The file that `text`, in the header of `layer`, stands for.
fn within(disk: &Disk, layer: &Path, text: &Path) -> Result<PathBuf> {
    let refuse = || bail!("{} refers to {}, which is not a part of it", layer.display(), text.display());
    let whole = without_self_links(&normalize(&layer.parent().unwrap_or(Path::new("/")).join(text)));
    if is_plain_layer(&whole, &disk.snapshots()) || is_image(&disk.place.root, &whole) {
        return Ok(whole);
    }
    refuse()
}

/// `x.snap/x.snap/0` is `x.snap/0`: such a directory holds a link to itself.
pub fn without_self_links(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        let again = matches!(part, Component::Normal(name) if name.as_bytes().ends_with(b".snap")
            && out.file_name() == Some(name));
        if !again {
            out.push(part);
        }
    }
    out
}

/// Names of the layers of a disk of which recovery snapshots are taken (contract 02 §1).
const RECOVERY: [&str; 3] = ["base", "base.1", "rs_tmp"];

/// A file with a number, or with one of those names, directly in this directory.
fn is_plain_layer(path: &Path, dir: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    path.parent() == Some(dir) && (plain_number(name).is_some() || RECOVERY.contains(&name))
}

/// `<root>/<datastore>/<image>` or a layer of it.
pub fn is_image(root: &Path, path: &Path) -> bool {
    let Ok(rest) = path.strip_prefix(root) else { return false };
    let mut parts = rest.components().map(Component::as_os_str);
    let datastore = parts.next().and_then(OsStr::to_str).and_then(plain_number);
    let (Some(_), Some(image)) = (datastore, parts.next()) else { return false };
    if image.as_bytes().starts_with(b".") {
        return false;
    }
    match (parts.next(), parts.next()) {
        (None, _) => !image.as_bytes().ends_with(b".snap") && image.to_str().and_then(plain_number).is_none(),
        (Some(layer), None) => image.as_bytes().ends_with(b".snap") && layer.to_str().and_then(plain_number).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_and_layers_are_stood_on() {
        let root = Path::new("/ds");
        for good in ["/ds/1/abc", "/ds/1/abc.snap/3"] {
            assert!(is_image(root, Path::new(good)), "{good}");
        }
        for bad in [
            "/etc/passwd",
            "/ds/1",
            "/ds/x/abc",
            "/ds/1/.onestore",
            "/ds/1/7/disk.0",
            "/ds/1/abc.snap",
            "/ds/1/7",
            "/ds/1/a.snap/x",
        ] {
            assert!(!is_image(root, Path::new(bad)), "{bad}");
        }
        assert_eq!(without_self_links(Path::new("/a/d.snap/d.snap/d.snap/0")), Path::new("/a/d.snap/0"));
    }
}
