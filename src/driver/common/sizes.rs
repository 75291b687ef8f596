//! What the disks of VMs and their snapshots occupy, by one look through a datastore's directory.
//!
//! Source: contract 01 §16, 02 §1 (layouts). Sizes are blocks that files occupy, as `du` counts them: what a header says of
//! an image is not what it takes. Which snapshot a file holds is its number, or what a `K.current` says of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::args::plain_number;
use crate::context::Cx;
use crate::exec::host::{Host, ScriptError};
use crate::exec::op::{FileKind, Node, Op, Value};

/// Levels below the datastore: VM, `disk.N.snap`, layer.
pub const DEPTH: u32 = 3;

/// Bytes of a `K.current` that are read: longer than any path.
const MARKER: u64 = 4096;

/// The sizes of VMs' disks and their snapshots, in bytes.
pub type Sizes = BTreeMap<u32, Disks>;

/// Each disk of a VM: its own size, and those of its snapshots.
pub type Disks = BTreeMap<u32, (u64, BTreeMap<u32, u64>)>;

/// The sizes of what `nodes` shows of the datastore at `base`: paths in it are seen from there.
///
/// # Errors
/// The host does not answer. What cannot be read of a single disk is left out.
pub fn read(cx: &Cx<'_>, host: &Arc<dyn Host>, base: &Path, nodes: &[Node]) -> Result<Sizes, ScriptError> {
    let mut paths: BTreeSet<&PathBuf> = BTreeSet::new();
    let links = nodes.iter().filter(|node| disk_of(&node.path).is_some()).filter_map(|node| node.link.as_ref());
    paths.extend(links.filter(|link| link.is_absolute() && !link.starts_with(base)));
    let markers: Vec<&Node> =
        nodes.iter().filter(|node| node.kind == FileKind::File && marker_of(&node.path).is_some()).collect();
    if paths.is_empty() && markers.is_empty() {
        return Ok(sizes(base, nodes, &Elsewhere::new(), &Moved::new()));
    }
    let questions = paths.iter().map(|path| Op::Tree { path: (*path).clone(), depth: 0 });
    let questions = questions.chain(markers.iter().map(|node| Op::Head { path: base.join(&node.path), len: MARKER }));
    let mut answers = cx.query(host, questions)?.into_iter();
    let sized = paths.iter().zip(answers.by_ref()).filter_map(|(path, answer)| match answer {
        Value::Tree(nodes) => Some(((*path).clone(), nodes.first()?.allocated)),
        _ => None,
    });
    let elsewhere: Elsewhere = sized.collect();
    let mut moved = Moved::new();
    for (node, answer) in markers.iter().zip(answers) {
        let Value::Bytes(text) = answer else { continue };
        // Its directory may have moved since: only the name counts.
        let file = Path::new(OsStr::from_bytes(text.trim_ascii())).file_name().and_then(OsStr::to_str);
        if let (Some((vm, disk, snapshot)), Some(file)) = (marker_of(&node.path), file.and_then(plain_number)) {
            moved.entry((vm, disk, file)).or_default().push(snapshot);
        }
    }
    Ok(sizes(base, nodes, &elsewhere, &moved))
}

/// Sizes of files in other datastores that disks are links to: persistent images. By their paths.
type Elsewhere = HashMap<PathBuf, u64>;

/// Snapshots whose data is in a file of another number: VM, disk and number of the file.
type Moved = HashMap<(u32, u32, u32), Vec<u32>>;

/// VM and disk of `<vm>/disk.N`.
fn disk_of(path: &Path) -> Option<(u32, u32)> {
    let (vm, disk) = path.to_str()?.split_once('/')?;
    Some((plain_number(vm)?, plain_number(disk.strip_prefix("disk.")?)?))
}

/// The layer of `<vm>/disk.N.snap/K`.
fn layer_of(path: &Path) -> Option<(u32, u32, u32)> {
    let (dir, layer) = path.to_str()?.rsplit_once('/')?;
    let (vm, disk) = disk_of(Path::new(dir.strip_suffix(".snap")?))?;
    Some((vm, disk, plain_number(layer)?))
}

/// The snapshot of `<vm>/disk.N.snap/K.current`.
fn marker_of(path: &Path) -> Option<(u32, u32, u32)> {
    layer_of(Path::new(path.to_str()?.strip_suffix(".current")?))
}

fn sizes(base: &Path, nodes: &[Node], elsewhere: &Elsewhere, moved: &Moved) -> Sizes {
    let here: HashMap<&Path, &Node> = nodes.iter().map(|node| (node.path.as_path(), node)).collect();
    let mut active: HashMap<(u32, u32), PathBuf> = HashMap::new();
    let mut sizes = Sizes::new();
    for node in nodes {
        let Some((vm, disk)) = disk_of(&node.path) else { continue };
        let size = match (&node.kind, &node.link) {
            (FileKind::File, _) => Some(node.allocated),
            (FileKind::Link, Some(link)) if link.is_absolute() && !link.starts_with(base) => {
                elsewhere.get(link).copied()
            }
            (FileKind::Link, Some(link)) => {
                let dir = node.path.parent().unwrap_or(Path::new(""));
                let target = link.strip_prefix(base).map_or_else(|_| dir.join(link), Path::to_owned);
                let size = here.get(target.as_path()).filter(|n| n.kind == FileKind::File).map(|n| n.allocated);
                active.insert((vm, disk), target);
                size
            }
            _ => None,
        };
        if let Some(size) = size {
            sizes.entry(vm).or_default().insert(disk, (size, BTreeMap::new()));
        }
    }
    for node in nodes.iter().filter(|node| node.kind == FileKind::File) {
        let Some((vm, disk, layer)) = layer_of(&node.path) else { continue };
        // What is written to is the disk, not a snapshot of it.
        if active.get(&(vm, disk)).is_some_and(|path| *path == node.path) {
            continue;
        }
        if let Some((_, snapshots)) = sizes.get_mut(&vm).and_then(|disks| disks.get_mut(&disk)) {
            let holds = moved.get(&(vm, disk, layer)).map_or(std::slice::from_ref(&layer), Vec::as_slice);
            snapshots.extend(holds.iter().map(|snapshot| (*snapshot, node.allocated)));
        }
    }
    sizes
}

/// The lines that monitord takes from a VM, in Base64: `DISK_SIZE` and `SNAPSHOT_SIZE`, in MiB rounded up as `du -m` does.
/// `begin` stands before the first line.
#[must_use]
pub fn message(disks: &Disks, begin: &str) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut text = begin.to_owned();
    for (disk, (size, snapshots)) in disks {
        let _ = writeln!(text, "DISK_SIZE = [ ID={disk}, SIZE={}]", mib(*size));
        for (snapshot, size) in snapshots {
            let _ = writeln!(text, "SNAPSHOT_SIZE = [ ID={snapshot}, DISK_ID={disk}, SIZE={}]", mib(*size));
        }
    }
    BASE64.encode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, mib: u64, link: Option<&str>) -> Node {
        let kind = if link.is_some() { FileKind::Link } else { FileKind::File };
        Node { path: path.into(), kind, size: 0, allocated: mib << 20, link: link.map(PathBuf::from) }
    }

    fn texts(sizes: &Sizes) -> Vec<(u32, String)> {
        let text = |disks| String::from_utf8(BASE64.decode(message(disks, "")).expect("Base64")).expect("text");
        sizes.iter().map(|(vm, disks)| (*vm, text(disks))).collect()
    }

    #[test]
    fn disks_and_snapshots_are_told_the_active_layer_as_the_disk() {
        let nodes = [
            node("7/disk.0", 0, Some("disk.0.snap/12")),
            node("7/disk.0.snap/0", 3, None),
            node("7/disk.0.snap/11", 1, None),
            node("7/disk.0.snap/12", 5, None),
            node("7/disk.0.snap/11.current", 1, None),
            node("7/disk.0.snap/disk.0.snap", 0, Some(".")),
            node("7/disk.1", 8, None),
            node("7/disk.2", 0, Some("/ds/1/abc.snap/4")),
            node("7/disk.3", 0, Some("disk.3.snap/gone")),
            node("7/deployment.0", 1, None),
            node("lost+found/disk.0", 1, None),
            node("9/disk.0", 0, Some("/ds/0/9/disk.0.snap/0")),
            node("9/disk.0.snap/0", 2, None),
            node("10/vm.xml", 1, None),
        ];
        let elsewhere = HashMap::from([(PathBuf::from("/ds/1/abc.snap/4"), (7 << 20) + 1)]);
        let told = texts(&sizes(Path::new("/ds/0"), &nodes, &elsewhere, &Moved::new()));
        let first = "DISK_SIZE = [ ID=0, SIZE=5]\nSNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=3]\nSNAPSHOT_SIZE = [ ID=11, \
                     DISK_ID=0, SIZE=1]\nDISK_SIZE = [ ID=1, SIZE=8]\nDISK_SIZE = [ ID=2, SIZE=8]\n";
        assert_eq!(told, [(7, first.to_owned()), (9, "DISK_SIZE = [ ID=0, SIZE=2]\n".to_owned())]);
    }

    #[test]
    fn a_snapshot_that_was_merged_into_another_file_keeps_its_number() {
        let nodes = [
            node("7/disk.0", 0, Some("disk.0.snap/2")),
            node("7/disk.0.snap/0", 3, None),
            node("7/disk.0.snap/1.current", 0, None),
            node("7/disk.0.snap/2", 5, None),
        ];
        let moved = Moved::from([((7, 0, 0), vec![1])]);
        let told = texts(&sizes(Path::new("/ds/0"), &nodes, &Elsewhere::new(), &moved));
        let text = "DISK_SIZE = [ ID=0, SIZE=5]\nSNAPSHOT_SIZE = [ ID=1, DISK_ID=0, SIZE=3]\n";
        assert_eq!(told, [(7, text.to_owned())]);
    }

    #[test]
    fn only_markers_of_layers_are_markers() {
        assert_eq!(marker_of(Path::new("7/disk.0.snap/1.current")), Some((7, 0, 1)));
        for other in ["7/disk.0.snap/1", "7/disk.0.snap/x.current", "7/1.current", "7/disk.0.snap/.current"] {
            assert_eq!(marker_of(Path::new(other)), None, "{other}");
        }
    }
}
