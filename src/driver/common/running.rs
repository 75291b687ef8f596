//! The running VM whose disk's snapshots are made or deleted: what a plan leaves to the domain.
//!
//! Source: contract 02 §5. How it is done safely is [`crate::driver::common::live`]'s matter; here steps find their way there.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::args::Disk;
use super::disk::record;
use super::live::{Above, Live, Seen};
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::Op;
use crate::image::chain::{self, Step, Style};
use crate::payload::Vm;

/// Which domain it is, and which of its disks.
pub struct Guest {
    domain: String,
    target: String,
}

impl Guest {
    /// By what oned knows of the VM.
    ///
    /// # Errors
    /// oned does not say; it is no VM of libvirt's.
    pub fn of(vm: &Vm, id: u32, disk: &Disk, style: Style) -> Result<Self> {
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or("kvm");
        if hypervisor == "lxc" {
            match style {
                Style::Layers(_) => bail!("LXC driver does not support live qcow2 snapshots"),
                Style::Copies => bail!("Live snapshots of LXC containers are not supported, power the VM off first"),
            }
        }
        let domain = vm.deploy_id.trimmed().with_context(|| format!("VM {id} has no DEPLOY_ID in oned"))?;
        let target = record(vm, id, disk.number)?.target.trimmed();
        let target = target.with_context(|| format!("Disk {} of VM {id} has no TARGET in oned", disk.number))?;
        Ok(Self { domain: domain.to_owned(), target: target.to_owned() })
    }

    /// Looks at the domain.
    ///
    /// # Errors
    /// It does not run on `host`.
    pub fn look<'a>(&self, cx: &'a Cx<'a>, host: &Arc<dyn Host>) -> Result<Running<'a>> {
        let live = Live::new(cx, host, &self.domain);
        let seen = live.look()?;
        Ok(Running { live, seen, target: self.target.clone() })
    }
}

/// A domain that was looked at.
pub struct Running<'a> {
    live: Live<'a>,
    seen: Seen,
    target: String,
}

impl Running<'_> {
    /// The files of the disk that it has open.
    pub fn files(&self) -> chain::Live {
        chain::Live { chain: self.seen.files(&self.target) }
    }

    /// Does a step that is the domain's. A plan has one of them: positions are those that were seen.
    ///
    /// # Errors
    /// What libvirt says; the step is one for files.
    pub fn run(&self, step: &Step) -> Result<()> {
        let (live, seen, target) = (&self.live, &self.seen, self.target.as_str());
        match step {
            Step::LiveSnapshot { file } => live.snapshot(seen, target, file),
            Step::BlockPull { file, base, backing } => {
                let above = Above { file, backing: backing.as_deref() };
                live.pull(seen, target, base.as_ref().map(|base| base.at), above)
            }
            Step::BlockCommit { top, base, above, backing } => {
                let above = Above { file: above, backing: Some(backing) };
                live.commit(seen, target, (top.at, base.at), above)
            }
            other => bail!("Not a step of the domain: {other}"),
        }
    }

    /// Does something while the guest stands still.
    ///
    /// # Errors
    /// What failed.
    pub fn frozen(&self, what: String, ops: &[Op], undo: impl IntoIterator<Item = Op>) -> Result<()> {
        self.live.frozen(&self.seen, what, ops, undo).map(drop)
    }
}
