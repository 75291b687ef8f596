//! `lxc-info`, `lxc-freeze`, `lxc-unfreeze` (lxc-freeze(1)): a container that is to stand still for a while.
//!
//! Through sudo: OpenNebula's rule for LXC hosts (`ONE_LXC`) allows all three.

use crate::exec::cmd::{Cmd, Limits};

/// Seconds for one of them: the kernel waits for processes that cannot be stopped where they are.
const PATIENCE: Limits = Limits { cpu_seconds: None, address_space: None, file_size: None, wall_seconds: Some(60) };

fn on(program: &str, container: &str) -> Cmd {
    Cmd::new(program).sudo().limits(PATIENCE).arg(format!("--name={container}"))
}

/// Its state in one word: `RUNNING`, `FROZEN`, `STOPPED`. Fails for a container that is not there.
#[must_use]
pub fn state(container: &str) -> Cmd {
    on("lxc-info", container).args(["--state", "--no-humanize"])
}

/// Stops its processes where they are. Fails for a container that does not run.
#[must_use]
pub fn freeze(container: &str) -> Cmd {
    on("lxc-freeze", container)
}

/// The opposite; one that runs is no failure.
#[must_use]
pub fn thaw(container: &str) -> Cmd {
    on("lxc-unfreeze", container)
}
