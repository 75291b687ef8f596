//! The LXC container of one VM: it can be made to stand still while its disk is copied, and no more.
//!
//! Source: contract 02 §5 (`snap_create_live`, VMs of `lxc`). Its file system is the host's affair: what the container has
//! written may be in the host's memory still, and the kernel goes on writing when the container stands still. So all is
//! written out twice: before it stops, which takes long, and then the rest.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{Op, Value};
use crate::exec::step::Step;
use crate::tool::{coreutils, lxc};

/// A container that runs.
pub struct Container<'a> {
    cx: &'a Cx<'a>,
    host: Arc<dyn Host>,
    name: String,
    /// Whether it stands still already; then it is left so.
    frozen: bool,
}

impl<'a> Container<'a> {
    /// Looks at the container `name` (`DEPLOY_ID`) on `host`.
    ///
    /// # Errors
    /// It does not run there.
    pub fn look(cx: &'a Cx<'a>, host: &Arc<dyn Host>, name: &str) -> Result<Self> {
        let state = cx.ask(host, Op::Run(lxc::state(name)));
        let state = state.with_context(|| format!("Cannot look at container {name}"))?;
        let frozen = match state.text().trim() {
            "RUNNING" => false,
            "FROZEN" => true,
            state => bail!("Container {name} does not run: it is {state}"),
        };
        Ok(Self { cx, host: Arc::clone(host), name: name.to_owned(), frozen })
    }

    /// Does something while the container stands still.
    ///
    /// Thawing is left with a guard on the host before: it runs on when the operations have ended, failed, or nobody is left
    /// to wait for them.
    ///
    /// # Errors
    /// It cannot be frozen, or what failed of the operations.
    pub fn frozen(&self, what: &str, ops: &[Op], undo: impl IntoIterator<Item = Op>) -> Result<Vec<Value>> {
        let name = &self.name;
        let (before, how) = if self.frozen {
            (vec![Op::Run(coreutils::sync_all())], format!("container {name} stands still already"))
        } else {
            let thaw = Op::Guard { cmd: lxc::thaw(name), only_on_failure: false };
            let sync = || Op::Run(coreutils::sync_all());
            (vec![sync(), thaw, Op::Run(lxc::freeze(name)), sync()], format!("container {name} frozen"))
        };
        let first = before.len();
        let step = Step::new(&self.host, format!("{what}, {how}"), before.into_iter().chain(ops.iter().cloned()));
        let values = self.cx.apply(step.undo(undo))?;
        Ok(values.into_iter().skip(first).collect())
    }
}
