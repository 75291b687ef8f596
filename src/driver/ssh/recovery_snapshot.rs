//! `recovery_snap_create_live`: what a running VM has written goes to the replica host, for the case that its host fails.
//! Called on the host, by its monitoring probe.
//!
//! Source: contract 02 §7.1. The VM writes to `disk.N.snap/rs_tmp` while `base.1` is copied, and to `base.1` again
//! afterwards. `rs_tmp` stays: its time tells when that was. On the replica host the copy takes the place of the last one
//! when it is whole; upstream writes into the last one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};

use super::recovery::Kept;
use crate::context::Cx;
use crate::driver::common::args::Disk;
use crate::driver::common::backing::judged;
use crate::driver::common::disk::Target;
use crate::driver::common::live::{Live, Seen};
use crate::driver::{Reply, TmRequest};
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Op, Value};
use crate::exec::step::Step;
use crate::report::{Said, one_line};
use crate::tool::coreutils;
use crate::tool::qemu_img::{self, CreateOptions};

/// See the module. The caller wants failures on standard output.
pub fn create(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    let taken = Taking::read(cx, request).and_then(|taking| taking.run(cx));
    match taken {
        Ok(time) => Ok(Reply::Lines(vec![time.to_string()])),
        Err(error) => {
            let said = Said(one_line(&error));
            Err(error.context(said))
        }
    }
}

/// A recovery snapshot that is to be taken.
struct Taking {
    here: Arc<dyn Host>,
    disk: Disk,
    /// Seconds between two of them.
    frequency: u64,
    kept: Kept,
}

impl Taking {
    fn read(cx: &Cx<'_>, request: &TmRequest) -> Result<Self> {
        let id = request.number(0, "VM_ID")?;
        let disk = request.place_here(cx, 1, id)?.disk()?;
        let frequency = request.number(2, "FREQUENCY")?;
        Ok(Self { here: cx.here(), disk, frequency, kept: Kept::of(cx, &request.text(3), id)? })
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.disk.snapshots().join(name)
    }

    /// Takes it, and tells when it was taken, in seconds since 1970.
    fn run(&self, cx: &Cx<'_>) -> Result<u64> {
        // What is read.
        Target::lock(cx, &self.disk.place)?;
        let id = self.disk.place.vm;
        let (top, overlay) = (self.layer("base.1"), self.layer("rs_tmp"));
        let questions = [
            Op::Stat { path: overlay.clone(), follow: false },
            Op::ReadLink { path: self.disk.path.clone() },
            Op::Stat { path: top.clone(), follow: false },
        ];
        let answers = cx.query(&self.here, questions)?;
        let [before, link, layer] = answers.as_slice() else { bail!("No answer") };
        let live = Live::new(cx, &self.here, &format!("one-{id}"));
        let look = || live.look().map_err(|e| e.context(format!("VM {id} is not running")));
        if before.stat().is_some() {
            let taken = self.taken_at(cx, &overlay)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if now.saturating_sub(taken) < self.frequency {
                return Ok(taken);
            }
            let seen = look()?;
            if let Some((target, _)) = writes_to(&seen, &[&overlay]) {
                live.merge_current(&seen, target)?;
                bail!("The last recovery snapshot of {} was interrupted, it has been merged", self.disk.path.display());
            }
        }
        let is_layer = layer.stat().is_some_and(|stat| stat.kind == FileKind::File);
        if !matches!(link, Value::Bytes(_)) || !is_layer {
            bail!("{} not a symlink", self.disk.path.display());
        }
        let seen = look()?;
        let known = writes_to(&seen, &[&self.disk.path, &top]);
        let (target, _) = known.ok_or_else(|| anyhow!("VM {id} does not write to {}", self.disk.path.display()))?;
        let current = judged(cx, &self.disk, &top, &mut HashMap::new())?;
        let bytes = current.virtual_size.with_context(|| format!("The size of {} is unknown", top.display()))?;
        let name = self.disk.name();
        let base = Op::Stat { path: self.kept.layers(&name).join("base"), follow: false };
        let has_base = cx.ask(&self.kept.host, base)?.stat().is_some();

        // What is done.
        if !has_base {
            // It was set back to a snapshot, or the replica host is a new one.
            self.kept.put_base(cx, &name, (&self.here, &self.layer("base")))?;
        }
        let create = qemu_img::create_overlay_with(&overlay, &top, "qcow2", bytes, &CreateOptions::default());
        let ops = [Op::Remove { path: overlay.clone(), tree: false, must_exist: false }, Op::Run(create)];
        // No undo: whether the domain writes to it is known to what follows alone.
        cx.apply(Step::new(&self.here, "Make a layer for the VM to write to meanwhile", ops))?;
        live.snapshot(&seen, target, &overlay)?;
        let failure = format!("Error copying {} to {}", top.display(), self.kept.host.name());
        let link =
            Op::Symlink { target: Path::new(&format!("{name}.snap")).join("base.1"), link: self.kept.dir.join(&name) };
        let before = [Op::MakeDir { path: self.kept.layers(&name) }, link];
        let to = self.kept.layers(&name).join("base.1");
        self.kept.put(cx, (&self.here, &top), (&to, &format!("{name}.base.1")), before, &failure)?;
        let seen = if cx.is_real() { live.look()? } else { seen.clone() };
        live.merge_current(&seen, target)?;
        self.taken_at(cx, &overlay)
    }

    /// When the file was last written to.
    fn taken_at(&self, cx: &Cx<'_>, overlay: &Path) -> Result<u64> {
        if !cx.is_real() {
            return Ok(0);
        }
        let answer = cx.ask(&self.here, Op::Run(coreutils::changed_at(overlay)))?.text();
        answer.parse().with_context(|| format!("Bad time of {}: {answer:?}", overlay.display()))
    }
}

/// The disk of the domain whose current file is one of these: its name there, and the file.
fn writes_to<'s>(seen: &'s Seen, files: &[&Path]) -> Option<(&'s str, &'s Path)> {
    seen.domain.disks.iter().find_map(|disk| {
        let current = disk.chain.first()?.path.as_path();
        files.contains(&current).then_some((disk.target.as_str(), current))
    })
}
