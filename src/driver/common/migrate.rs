//! Live migration, as far as several transfer managers share it: the others that hold disks of the VM are told.
//!
//! Source: contract 02, pre/postmigrate; 01 §15. oned calls the transfer manager of the system datastore alone; that one
//! calls the others with the same arguments, its own name as the sixth, and the same standard input. What they answer
//! changes nothing.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::context::Cx;
use crate::driver::{Reply, TmRequest};
use crate::exec::cmd::{Cmd, Secret};
use crate::exec::op::Op;
use crate::exec::step::Step;
use crate::payload::{self, Vm};
use crate::report::Misuse;

/// Where a VM migrates from and to.
pub struct Migration<'r> {
    /// Host that it leaves.
    pub from: String,
    /// Host that it goes to.
    pub to: String,
    /// The VM.
    pub id: u32,
    /// The system datastore that it goes to.
    pub datastore: u32,
    request: &'r TmRequest,
}

impl<'r> Migration<'r> {
    /// The arguments `SRC_HOST DST_HOST SYSDIR VM_ID DS_ID [CALLER_MAD]`.
    ///
    /// # Errors
    /// Ids that are none.
    pub fn read(request: &'r TmRequest) -> Result<Self> {
        Ok(Self {
            from: request.text(0),
            to: request.text(1),
            id: request.number(3, "VM_ID")?,
            datastore: request.number(4, "DS_ID")?,
            request,
        })
    }

    /// Whether it stays where it is.
    pub fn is_on_one_host(&self, cx: &Cx<'_>) -> bool {
        let same = self.from == self.to;
        if same {
            cx.info(format!("Not moving {} to {}, they are the same host", self.from, self.to));
        }
        same
    }

    /// Calls the other transfer managers, unless it was one of them who called us.
    ///
    /// # Errors
    /// The VM on standard input cannot be read. A transfer manager that fails is warned of.
    pub fn tell_others(&self, cx: &Cx<'_>) -> Result<()> {
        let request = self.request;
        if !request.arg(5).is_empty() {
            return Ok(());
        }
        let xml = request.vm.as_deref().context("There is no VM on standard input")?;
        let vm: Vm = payload::parse(xml).map_err(|e| Misuse(format!("{:#}", anyhow::Error::new(e))))?;
        let mut told: Vec<&str> = vec![&request.mad];
        for mad in vm.template.disks.iter().filter_map(|disk| disk.tm_mad.trimmed()) {
            if told.contains(&mad) {
                continue;
            }
            told.push(mad);
            let is_name = mad.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            if !is_name {
                cx.warn(format!("There is no transfer manager of the name {mad:?}"));
                continue;
            }
            let action = request.action;
            cx.info(format!("Call {mad}/{action}"));
            let program = cx.layout.remotes.join("tm").join(mad).join(action);
            let call = Cmd::new(program.display().to_string())
                .args(&request.args)
                .arg(&request.mad)
                .stdin(Secret::new(BASE64.encode(xml)));
            let step = Step::new(&cx.here(), format!("Let {mad} do the same for its disks"), [Op::Run(call)]);
            if let Err(e) = cx.apply(step.or_say(format!("{mad}/{action} failed"))) {
                cx.control.check()?;
                cx.warn(format!("{e:#}"));
            }
        }
        Ok(())
    }
}

/// `failmigrate`: nothing of ours is there to be taken back; the others are told. Upstream tells nobody, and what their
/// `premigrate` has made ready on the new host stays.
pub fn failmigrate(cx: &Cx<'_>, request: &TmRequest) -> Result<Reply> {
    Migration::read(request)?.tell_others(cx)?;
    Ok(Reply::Nothing)
}
