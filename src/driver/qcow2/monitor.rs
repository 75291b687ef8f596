//! `monitor`: space of a shared system datastore, and from time to time the sizes of all disks in it.
//!
//! Source: contract 01 §16, 02 §12. The sizes go to monitord, not into the answer; what becomes of them never changes it.
//! One look through the directory tells them all, without a process for each.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::context::Cx;
use crate::driver::common::args::plain_number;
use crate::driver::common::bridges::{bridges_on, in_turn, reach};
use crate::driver::{Reply, Request, misuse};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Node, Op, Space, Value};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::oned::monitord::Monitord;
use crate::report::Misuse;

/// Levels below the datastore: VM, `disk.N.snap`, layer.
const DEPTH: u32 = 3;

/// See the module.
pub fn monitor(cx: &Cx<'_>, request: &Request) -> Result<Reply> {
    // What is read.
    let location = request.data.datastore_location.required().map_err(misuse)?;
    let location = normalize(Path::new(location));
    if !location.is_absolute() || location.parent().is_none() {
        bail!(Misuse(format!("Bad DATASTORE_LOCATION {}: it has to be an absolute path below /", location.display())));
    }
    let base = location.join(request.id.to_string());
    let failure = format!("Error monitoring {}", base.display());
    let question = || vec![Op::Stat { path: base.clone(), follow: true }];
    let bridges: Vec<&str> = request.data.datastore.template.bridge_list.words().collect();
    let (host, found) = if bridges.is_empty() {
        let host = cx.here();
        let found = cx.query(&host, question()).with_context(|| failure.clone())?;
        (host, found)
    } else {
        let (host, _, found) = reach(cx, in_turn(bridges_on(cx, &bridges)?, request.id), &question)?;
        (host, found)
    };

    // What is done.
    if found.first().and_then(Value::stat).is_none() {
        let ops = [Op::MakeDir { path: base.clone() }];
        cx.apply(Step::new(&host, "Create the datastore's directory", ops).or_say(&failure))?;
        if !cx.is_real() {
            return Ok(Reply::Usage(Space { total_mib: 0, used_mib: 0, free_mib: 0 }));
        }
    }
    let wanted = request.data.monitor_vm_disks.get().map_err(misuse)? == Some(1);
    let mut questions = vec![Op::Space { path: base.clone() }];
    if wanted {
        questions.push(Op::Tree { path: base.clone(), depth: DEPTH });
    }
    let mut answers = cx.query(&host, questions).with_context(|| failure.clone())?.into_iter();
    let space = match answers.next() {
        Some(Value::Space(Space { total_mib: 0, .. })) => bail!("{failure}: the file system has no size"),
        Some(Value::Space(space)) => space,
        other => bail!("{failure}: unexpected answer {other:?}"),
    };
    if let Some(Value::Tree(nodes)) = answers.next()
        && let Err(error) = tell(cx, &host, &base, &nodes)
    {
        cx.warn(format!("monitord was not told the sizes of disks: {error:#}"));
    }
    Ok(Reply::Usage(space))
}

/// Tells monitord the sizes of the disks below `base`.
fn tell(cx: &Cx<'_>, host: &Arc<dyn Host>, base: &Path, nodes: &[Node]) -> Result<()> {
    // A front-end that is also a host may have only the host's copy.
    let files = [
        cx.layout.etc.join("monitord.conf"),
        PathBuf::from("/var/tmp/one_db/etc/monitord.conf"),
        PathBuf::from("/etc/one/monitord.conf"),
    ];
    let Some(monitord) = Monitord::configured(&files)? else { return Ok(()) };
    let items = items(&sizes(base, nodes, &elsewhere(cx, host, base, nodes)?));
    let what = format!("Send the disk sizes of {} VMs to monitord at {}", items.len(), monitord.place());
    cx.apply(Step::new(&cx.here(), what, []))?;
    if cx.is_real() {
        monitord.tell("MONITOR_VM", &items)?;
    }
    Ok(())
}

/// Sizes of files in other datastores that disks are links to: persistent images. By their paths.
fn elsewhere(cx: &Cx<'_>, host: &Arc<dyn Host>, base: &Path, nodes: &[Node]) -> Result<HashMap<PathBuf, u64>> {
    let links = nodes.iter().filter(|node| disk_of(&node.path).is_some()).filter_map(|node| node.link.as_ref());
    let mut paths: Vec<&PathBuf> = links.filter(|link| link.is_absolute() && !link.starts_with(base)).collect();
    paths.sort();
    paths.dedup();
    let questions = paths.iter().map(|path| Op::Tree { path: (*path).clone(), depth: 0 });
    let answers = cx.query(host, questions)?;
    let sized = paths.into_iter().zip(answers).filter_map(|(path, answer)| match answer {
        Value::Tree(nodes) => Some((path.clone(), nodes.first()?.allocated)),
        _ => None,
    });
    Ok(sized.collect())
}

/// The sizes of a VM's disks and their snapshots, in bytes.
type Sizes = BTreeMap<u32, Disks>;

/// Each disk of a VM: its own size, and those of its snapshots.
type Disks = BTreeMap<u32, (u64, BTreeMap<u32, u64>)>;

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

fn sizes(base: &Path, nodes: &[Node], elsewhere: &HashMap<PathBuf, u64>) -> Sizes {
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
            snapshots.insert(layer, node.allocated);
        }
    }
    sizes
}

/// One `VM = […]` for each VM, in monitord's words; sizes in MiB, rounded up as `du -m` does.
fn items(sizes: &Sizes) -> Vec<String> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let item = |(vm, disks): (&u32, &Disks)| {
        let mut text = String::new();
        for (disk, (size, snapshots)) in disks {
            let _ = writeln!(text, "DISK_SIZE = [ ID={disk}, SIZE={}]", mib(*size));
            for (snapshot, size) in snapshots {
                let _ = writeln!(text, "SNAPSHOT_SIZE = [ ID={snapshot}, DISK_ID={disk}, SIZE={}]", mib(*size));
            }
        }
        format!("VM=[ID={vm}, MONITOR=\"{}\"]", BASE64.encode(text))
    };
    sizes.iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, mib: u64, link: Option<&str>) -> Node {
        let kind = if link.is_some() { FileKind::Link } else { FileKind::File };
        Node { path: path.into(), kind, size: 0, allocated: mib << 20, link: link.map(PathBuf::from) }
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
        let items = items(&sizes(Path::new("/ds/0"), &nodes, &elsewhere));
        let text = |item: &str| {
            let b64 = item.split('"').nth(1).expect("quoted");
            String::from_utf8(BASE64.decode(b64).expect("Base64")).expect("text")
        };
        assert_eq!(items.len(), 2, "{items:?}");
        assert!(items[0].starts_with("VM=[ID=7, MONITOR=\""));
        assert_eq!(
            text(&items[0]),
            "DISK_SIZE = [ ID=0, SIZE=5]\nSNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=3]\nSNAPSHOT_SIZE = [ ID=11, \
             DISK_ID=0, SIZE=1]\nDISK_SIZE = [ ID=1, SIZE=8]\nDISK_SIZE = [ ID=2, SIZE=8]\n"
        );
        assert_eq!(text(&items[1]), "DISK_SIZE = [ ID=0, SIZE=2]\n");
    }
}
