//! `monitor_ds`: what the disks in a host's own system datastore occupy. Called on the host, by its monitoring probe.
//!
//! Source: contract 01 §16, 02 §12. VM by VM, so that one directory that cannot be read hides no other. Nothing is started
//! and no image is opened: it runs every few minutes beside the VMs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::args::plain_number;
use super::sizes::{self, message};
use crate::context::Cx;
use crate::driver::{Reply, TmRequest};
use crate::exec::op::{Node, Op, Value};
use crate::location::normalize;
use crate::report::Misuse;

/// Levels below a VM's directory: `disk.N.snap`, layer.
const DEPTH: u32 = sizes::DEPTH - 1;

/// See the module. A datastore that is not there has no VMs.
pub fn monitor_ds(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    // What is read.
    let base = normalize(Path::new(request.arg(0)));
    if !base.is_absolute() {
        bail!(Misuse(format!("Bad DATASTORE_DIR {:?}: it has to be an absolute path", request.text(0))));
    }
    let here = cx.here();
    let Value::Names(names) = cx.ask(&here, Op::List { path: base.clone() })? else {
        return Ok(Reply::Lines(Vec::new()));
    };
    let mut vms: Vec<u32> = names.iter().filter_map(|name| plain_number(name.to_str()?)).collect();
    vms.sort_unstable();

    // What is told.
    let mut lines = Vec::new();
    for vm in vms {
        let dir = base.join(vm.to_string());
        let told = cx.ask(&here, Op::Tree { path: dir.clone(), depth: DEPTH }).and_then(|tree| match tree {
            Value::Tree(nodes) => sizes::read(cx, &here, &base, &inside(vm, nodes)),
            _ => Ok(sizes::Sizes::new()),
        });
        match told {
            Ok(sizes) => lines.extend(
                // The empty line is what probes of this name have always told.
                sizes.get(&vm).map(|disks| format!("VM = [ ID = {vm}, MONITOR = \"{}\"]", message(disks, "\n"))),
            ),
            Err(error) => {
                cx.control.check()?;
                cx.warn(format!("The disks of {} are not told: {:#}", dir.display(), anyhow::Error::new(error)));
            }
        }
    }
    Ok(Reply::Lines(lines))
}

/// The same files, seen from the datastore.
fn inside(vm: u32, nodes: Vec<Node>) -> Vec<Node> {
    let dir = PathBuf::from(vm.to_string());
    nodes.into_iter().map(|node| Node { path: dir.join(&node.path), ..node }).collect()
}
