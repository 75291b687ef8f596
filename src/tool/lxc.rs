//! `lxc-freeze` and `lxc-unfreeze`: all processes of a container stand still, or go on. Run by sudo, as OpenNebula's rules
//! allow it.

use crate::exec::cmd::Cmd;

/// `lxc-freeze`.
#[must_use]
pub fn freeze(container: &str) -> Cmd {
    Cmd::new("lxc-freeze").sudo().args(["-n", container])
}

/// `lxc-unfreeze`.
#[must_use]
pub fn unfreeze(container: &str) -> Cmd {
    Cmd::new("lxc-unfreeze").sudo().args(["-n", container])
}
