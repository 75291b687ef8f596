//! `monitor`: space of a shared system datastore, and from time to time the sizes of all disks in it.
//!
//! Source: contract 01 §16, 02 §12. The sizes go to monitord, not into the answer; what becomes of them never changes it.
//! One look through the directory tells them all, without a process for each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::driver::common::bridges::{bridges_on, in_turn, reach};
use crate::driver::common::sizes::{self, Sizes, message};
use crate::driver::{Reply, Request, misuse};
use crate::exec::host::Host;
use crate::exec::op::{Node, Op, Space, Value};
use crate::exec::step::Step;
use crate::location::normalize;
use crate::oned::monitord::Monitord;
use crate::report::Misuse;

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
        questions.push(Op::Tree { path: base.clone(), depth: sizes::DEPTH });
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
    let items = items(&sizes::read(cx, host, base, nodes)?);
    let what = format!("Send the disk sizes of {} VMs to monitord at {}", items.len(), monitord.place());
    cx.apply(Step::new(&cx.here(), what, []))?;
    if cx.is_real() {
        monitord.tell("MONITOR_VM", &items)?;
    }
    Ok(())
}

/// One `VM = […]` for each VM, in monitord's words.
fn items(sizes: &Sizes) -> Vec<String> {
    sizes.iter().map(|(vm, disks)| format!("VM=[ID={vm}, MONITOR=\"{}\"]", message(disks, ""))).collect()
}
