//! Files on their way from one host to another, or from one place to another on one host.
//!
//! A driver says which files and to which staging names; how they travel is decided here. Nothing is published: when
//! [`carry`] has returned, every file is complete under its staging name, on the disk, and known to be the same at both
//! ends. Whoever called gives it its name, and only then removes what it came from (`docs/transfers.md`).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Sparse, Value};
use crate::exec::relay;
use crate::exec::step::{Feed, Step};

/// One regular file on its way. Links are followed at `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Where it is, on the host that it leaves.
    pub from: PathBuf,
    /// A staging path on the host that it goes to; its directory exists, and nothing is there.
    pub to: PathBuf,
}

/// Between which hosts, and how.
#[derive(Clone, Copy)]
pub struct Journey<'a> {
    /// The host that the files leave; the machine that we run on is `cx.here()`.
    pub from: &'a Arc<dyn Host>,
    /// The host that they go to.
    pub to: &'a Arc<dyn Host>,
    /// What becomes of holes and blocks of zeroes.
    pub sparse: Sparse,
}

impl Journey<'_> {
    /// Whether both ends are one machine under one name: then its own kernel copies, and shares blocks where it can.
    #[must_use]
    pub fn stays(&self) -> bool {
        Arc::ptr_eq(self.from, self.to) || self.from.name() == self.to.name()
    }
}

/// Carries files. When it returns, every file is complete at [`Load::to`] and synced; between two hosts size and digest
/// were compared at both ends. On failure what was written is removed: at once or by the undo stack of the action.
///
/// `failure` is what the user reads first when something goes wrong, as of [`Step::or_say`]. In `explain` the steps are
/// shown and nothing is touched.
///
/// # Errors
/// A host cannot be reached, a file cannot be read or written, the target has no space, the source changed on the way,
/// or the copy is not what the original is; each in one line under `failure`.
pub fn carry(cx: &Cx<'_>, journey: &Journey<'_>, loads: &[Load], failure: &str) -> Result<()> {
    for load in loads {
        if journey.stays() { copy(cx, journey, load, failure)? } else { relayed(cx, journey, load, failure)? }
    }
    Ok(())
}

fn remove(load: &Load) -> Op {
    Op::Remove { path: load.to.clone(), tree: false, must_exist: false }
}

/// On one host.
fn copy(cx: &Cx<'_>, journey: &Journey<'_>, load: &Load, failure: &str) -> Result<()> {
    let Load { from, to } = load;
    let ops = [
        Op::Copy { from: from.clone(), to: to.clone(), sparse: journey.sparse },
        Op::Sync { path: to.clone() },
        Op::Stat { path: from.clone(), follow: true },
        Op::Stat { path: to.clone(), follow: false },
    ];
    let what = format!("Copy {} to {}", from.display(), to.display());
    let values = cx.apply(Step::new(journey.to, what, ops).or_say(failure).undo([remove(load)]))?;
    if !cx.is_real() {
        return Ok(());
    }
    let size = |value: Option<&Value>| value.and_then(Value::stat).map(|stat| stat.size);
    if size(values.get(2)).is_none() || size(values.get(2)) != size(values.get(3)) {
        bail!("{failure}: {} changed while it was copied", from.display());
    }
    Ok(())
}

/// As a stream through the front-end, for hosts of which nothing more is known than that they have a shell.
fn relayed(cx: &Cx<'_>, journey: &Journey<'_>, load: &Load, failure: &str) -> Result<()> {
    let Load { from, to } = load;
    let question = Op::Stat { path: from.clone(), follow: true };
    let before = cx.ask(journey.from, question).with_context(|| failure.to_owned())?.stat();
    let Some(before) = before.filter(|stat| stat.kind == FileKind::File) else {
        bail!("{failure}: {} is no regular file on {}", from.display(), name(journey.from));
    };
    let reader: Box<dyn std::io::Read + Send> = if cx.is_real() {
        Box::new(relay::file_of(journey.from, from, &cx.control).with_context(|| failure.to_owned())?)
    } else {
        Box::new(std::io::empty())
    };
    let ops = [
        Op::Receive { path: to.clone(), sparse: journey.sparse },
        Op::Sync { path: to.clone() },
        Op::Sha256 { path: to.clone() },
    ];
    let what = format!("Stream {} through the front-end", from.display());
    let step = Step::new(journey.to, what, ops).or_say(failure).undo([remove(load)]).feed(Feed::Stream(reader));
    let values = cx.apply(step)?;
    if !cx.is_real() {
        return Ok(());
    }
    // Compared with what is there now: a source that somebody writes to is no source of a copy.
    let original = cx.ask(journey.from, Op::Sha256 { path: from.clone() }).with_context(|| failure.to_owned())?;
    let arrived = values.first().and_then(Value::number);
    if arrived != Some(before.size) {
        let arrived = arrived.unwrap_or_default();
        bail!("{failure}: {arrived} bytes of {} arrived, it had {}", from.display(), before.size);
    }
    if values.get(2) != Some(&original) {
        bail!(
            "{failure}: The copy of {} is not what {} has; was it written to meanwhile?",
            from.display(),
            name(journey.from)
        );
    }
    Ok(())
}

fn name(host: &Arc<dyn Host>) -> &str {
    match host.name() {
        "" => "the front-end",
        name => name,
    }
}
