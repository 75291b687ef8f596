//! `snap_create`, `snap_create_live`, `snap_revert`, `snap_delete`: snapshots of a disk, whichever transfer manager keeps
//! them.
//!
//! Source: contract 02 §5–8. What lies there is read once, [`crate::image::chain`] decides, one script on the host does
//! it; `docs/chains.md` has the table. Killed anywhere, the same action completes it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::args::{Disk, lock_of};
use super::disk::{Target, record};
use super::running::{Guest, Running};
use crate::chains::{self, Files, Phase, Query, Staging};
use crate::context::Cx;
use crate::driver::{Reply, TmRequest, misuse};
use crate::exec::host::{Host, ScriptError};
use crate::exec::op::Op;
use crate::exec::step::Step;
use crate::image::chain::{self, Chain, Manner, Names, Plan, Refusal, Style};
use crate::location::with_suffix;
use crate::payload::Vm;

/// `LCM_STATE` of a VM one of whose snapshots is deleted while it runs.
const SNAPSHOT_DELETE: u32 = 59;

/// Seconds that a script waits on the host for another one that changes the same disk.
const LOCK_WAIT: u64 = 600;

/// How a transfer manager keeps snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// As layers; those of a persistent disk beside the image, in the image datastore.
    WithImage,
    /// As layers beside the disk, which name each other in this manner.
    WithDisk(Manner),
    /// As full copies beside the disk, whatever its format.
    Copies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `snap_create`.
    Create,
    /// `snap_create_live`.
    CreateLive,
    /// `snap_revert`.
    Revert,
    /// `snap_delete`.
    Delete,
}

impl Act {
    fn plan(self, chain: &Chain, k: u32, files: Option<&chain::Live>) -> Result<Plan, Refusal> {
        match (self, files) {
            (Self::Create | Self::CreateLive, None) => chain.create(k),
            (Self::Create | Self::CreateLive, Some(files)) => chain.create_live(k, files),
            (Self::Revert, _) => chain.revert(k),
            (Self::Delete, None) => chain.delete(k),
            (Self::Delete, Some(files)) => chain.delete_live(k, files),
        }
    }

    /// What the user reads first, and what the log says.
    fn words(self, names: &Names, style: Style, k: u32) -> (String, String) {
        let of = |number: u32| names.folder().join(number.to_string()).display().to_string();
        match self {
            Self::Create | Self::CreateLive => {
                // The file that is made: a chain's snapshot is the file that is frozen.
                let made = if style == Style::Copies { k } else { k.saturating_add(1) };
                (format!("Error creating snapshot {}", of(made)), format!("Creating snapshot {}", of(k)))
            }
            Self::Revert => {
                (format!("Error reverting snapshot to {}", of(k)), format!("Reverting to snapshot {}", of(k)))
            }
            Self::Delete => (format!("Error deleting snapshot {}", of(k)), format!("Deleting snapshot {}", of(k))),
        }
    }
}

/// Does it, by the arguments `HOST:SYSDIR/disk.N SNAPSHOT_ID VM_ID DS_ID`.
///
/// # Errors
/// What stands in the way, in upstream's words first; nothing has changed then.
pub fn run(cx: &Cx<'_>, request: &TmRequest, keeping: Keeping, act: Act) -> Result<Reply> {
    // What is read.
    let id = request.number(2, "VM_ID")?;
    let k: u32 = request.number(1, "SNAPSHOT_ID")?;
    let disk = request.disk(cx, 0, id)?;
    let vm = cx.oned().vm(id).with_context(|| format!("Error with the snapshots of {}", disk.place.text))?;
    let query = query(&vm, id, &disk, keeping)?;
    let (failure, what) = act.words(&query.names, query.style, k);
    let live =
        act == Act::CreateLive || (act == Act::Delete && vm.lcm_state.get().map_err(misuse)? == Some(SNAPSHOT_DELETE));
    let guest =
        if live { Some(Guest::of(&vm, id, &disk, query.style).with_context(|| failure.clone())?) } else { None };
    Target::lock(cx, &disk.place)?;
    let host = &disk.place.host;
    let mut ask = |ops| cx.query(host, ops).map_err(anyhow::Error::from);
    let running = guest.as_ref().map(|guest| guest.look(cx, host)).transpose().with_context(|| failure.clone())?;
    let reading = chains::read(&query, &mut ask).with_context(|| failure.clone())?;

    // What is decided.
    let files = running.as_ref().and_then(Running::files);
    let plan = act.plan(&Chain::of(&reading.facts), k, files.as_ref()).with_context(|| failure.clone())?;
    let staging = Staging::of(&query.names).context("Cannot tell this process from others")?;

    // What is done.
    cx.info(what);
    if let Some(note) = &plan.note {
        cx.warn(note);
    }
    let staged = reading.staged.as_deref();
    let lock = Op::Lock { name: lock_of(id, &disk.name()), wait_seconds: LOCK_WAIT };
    let phases = chains::phases(&plan, &staging);
    // A run that was killed had done everything but clear up. An action with work of its own clears up before it.
    if let (Some(staged), false) = (staged, phases.iter().any(|phase| matches!(phase, Phase::Files(_)))) {
        let ops = [lock.clone()].into_iter().chain(staging.prepare(staged)).chain(staging.leave());
        cx.apply(
            Step::new(host, "Clear away what a run left that was killed", ops).undo(staging.leave()).or_say(&failure),
        )?;
    }
    for phase in phases {
        let files = match (phase, &running) {
            (Phase::Files(files), _) => files,
            (Phase::Domain(step), Some(running)) => {
                running.run(&step).with_context(|| failure.clone())?;
                continue;
            }
            (Phase::Domain(_), None) => bail!("{failure}: it needs the VM to run"),
        };
        let mut before = vec![lock.clone()];
        before.extend(staging.prepare(staged.unwrap_or_default()));
        if query.names.origin != query.names.disk {
            // First: a digest that outlives what it was made of makes a replica take old data for current.
            let digest = with_suffix(&query.names.origin, ".md5sum");
            before.push(Op::Remove { path: digest, tree: false, must_exist: false });
        }
        let script =
            Script { host, failure: &failure, lock: lock.clone(), before, files: &files, leave: staging.leave() };
        match running.as_ref().filter(|_| query.style == Style::Copies && act == Act::CreateLive) {
            Some(running) => script.run_frozen(running)?,
            None => script.run(cx)?,
        }
    }
    Ok(Reply::Nothing)
}

/// One script of a plan.
struct Script<'a> {
    host: &'a Arc<dyn Host>,
    failure: &'a str,
    lock: Op,
    before: Vec<Op>,
    files: &'a Files,
    leave: [Op; 2],
}

impl Script<'_> {
    /// Runs it while the guest stands still: a copy of what is being written to.
    fn run_frozen(self, running: &Running<'_>) -> Result<()> {
        let whole = self.files.ops();
        // What is copied to is this action's alone: without the lock nobody has made it.
        let undo = self.files.scratch().into_iter().chain(self.leave.clone());
        let ops: Vec<Op> = self.before.into_iter().chain(whole).chain(self.leave).collect();
        running.frozen(self.files.what(), &ops, undo).with_context(|| self.failure.to_owned())
    }

    /// Runs it. Taken back is what it has done and nothing else: where it did not get the lock, another action is at work.
    fn run(self, cx: &Cx<'_>) -> Result<()> {
        let begin = self.before.len();
        let whole = self.files.ops();
        let done = whole.len();
        let ops = self.before.into_iter().chain(whole).chain(self.leave.clone());
        let scratch = self.files.scratch().into_iter().chain(self.leave);
        let what = self.files.what();
        let step = Step::new(self.host, &what, ops).undo(scratch).or_say(self.failure);
        let applied = cx.apply(step);
        let failed_at = |error: &anyhow::Error| error.downcast_ref::<ScriptError>()?.failure.as_ref()?.index;
        let reached = match &applied {
            Ok(_) => Some(done),
            Err(error) => failed_at(error).and_then(|at| at.checked_sub(begin)),
        };
        let undo = reached.map(|reached| self.files.undo(reached)).unwrap_or_default();
        if !undo.is_empty() {
            cx.on_failure(Step::new(self.host, what, []).undo([self.lock].into_iter().chain(undo)));
        }
        applied.map(drop)
    }
}

/// Which chain it is, by what oned knows of the disk.
fn query(vm: &Vm, id: u32, disk: &Disk, keeping: Keeping) -> Result<Query> {
    let wanted = record(vm, id, disk.number)?;
    let raw = wanted.format.trimmed() != Some("qcow2");
    let layered = !raw && keeping != Keeping::Copies;
    let source = wanted.source.get().map(|source| disk.place.image(Path::new(source)));
    let in_place = keeping == Keeping::WithImage && wanted.clone.get() != Some("YES");
    let own = match keeping {
        Keeping::WithDisk(manner) => manner,
        Keeping::WithImage | Keeping::Copies => Manner::Relative,
    };
    let (names, manner, images) = match source {
        // A persistent disk is the image itself.
        Some(image) if in_place => {
            (Names { disk: disk.path.clone(), origin: image?.image }, Manner::Absolute, Vec::new())
        }
        // A clone may stand on its image: whether that is there is asked in the same breath.
        Some(Ok(image)) if layered => (Names::own(disk.path.clone()), own, vec![image.image]),
        _ => (Names::own(disk.path.clone()), own, Vec::new()),
    };
    let style = if layered { Style::Layers(manner) } else { Style::Copies };
    Ok(Query { names, style, raw, images })
}
