//! The running VM whose disk's snapshots are made or deleted: what a plan leaves to the domain.
//!
//! Source: contract 02 §5. How it is done safely is [`crate::driver::common::live`]'s matter; here steps find their way there.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::args::Disk;
use super::container::Container;
use super::disk::record;
use super::live::{Above, Live, Seen};
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::Op;
use crate::image::chain::{self, Step, Style};
use crate::payload::Vm;

/// What the hypervisor knows the VM by.
pub enum Guest {
    /// A domain of libvirt's, and which of its disks.
    Domain { name: String, target: String },
    /// A container of LXC's.
    Container(String),
}

impl Guest {
    /// By what oned knows of the VM.
    ///
    /// # Errors
    /// oned does not say; a chain of layers under a container.
    pub fn of(vm: &Vm, id: u32, disk: &Disk, style: Style) -> Result<Self> {
        let hypervisor = vm.last_history().and_then(|history| history.vm_mad.trimmed()).unwrap_or("kvm");
        if hypervisor == "lxc" && style != Style::Copies {
            bail!("LXC driver does not support live qcow2 snapshots");
        }
        let name = vm.deploy_id.trimmed().with_context(|| format!("VM {id} has no DEPLOY_ID in oned"))?.to_owned();
        if hypervisor == "lxc" {
            return Ok(Self::Container(name));
        }
        let target = record(vm, id, disk.number)?.target.trimmed();
        let target = target.with_context(|| format!("Disk {} of VM {id} has no TARGET in oned", disk.number))?;
        Ok(Self::Domain { name, target: target.to_owned() })
    }

    /// Looks at it.
    ///
    /// # Errors
    /// It does not run on `host`.
    pub fn look<'a>(&self, cx: &'a Cx<'a>, host: &Arc<dyn Host>) -> Result<Running<'a>> {
        match self {
            Self::Domain { name, target } => {
                let live = Live::new(cx, host, name);
                let seen = live.look()?;
                Ok(Running::Domain(Box::new(Domain { live, seen, target: target.clone() })))
            }
            Self::Container(name) => Ok(Running::Container(Container::look(cx, host, name)?)),
        }
    }
}

/// A VM that was looked at.
pub enum Running<'a> {
    Domain(Box<Domain<'a>>),
    Container(Container<'a>),
}

/// A domain that was looked at.
pub struct Domain<'a> {
    live: Live<'a>,
    seen: Seen,
    target: String,
}

impl Running<'_> {
    /// The files of the disk that a domain has open. Of a container nobody needs to know: its snapshots are full copies.
    pub fn files(&self) -> Option<chain::Live> {
        match self {
            Self::Domain(domain) => Some(chain::Live { chain: domain.seen.files(&domain.target) }),
            Self::Container(_) => None,
        }
    }

    /// Does a step that is the domain's. A plan has one of them: positions are those that were seen.
    ///
    /// # Errors
    /// What libvirt says; the step is one for files.
    pub fn run(&self, step: &Step) -> Result<()> {
        let Self::Domain(domain) = self else { bail!("Not a step of a container: {step}") };
        let (live, seen, target) = (&domain.live, &domain.seen, domain.target.as_str());
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
        match self {
            Self::Domain(domain) => domain.live.frozen(&domain.seen, what, ops, undo).map(drop),
            Self::Container(container) => container.frozen(&what, ops, undo).map(drop),
        }
    }
}
