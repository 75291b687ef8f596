//! Hosts as a front-end reaches them.

use std::sync::Arc;

use anyhow::Result;
use onestore::context::Hosts;
use onestore::exec::host::local::Local;
use onestore::exec::host::policy::{Policy, Remote};
use onestore::exec::host::{Host, HostName};
use onestore::exec::process::Programs;

/// By ssh, as the policy chooses.
pub struct BySsh;

impl Hosts for BySsh {
    fn local(&self) -> Arc<dyn Host> {
        Arc::new(Local::default())
    }

    fn remote(&self, name: &str) -> Result<Arc<dyn Host>> {
        let note = |text: &str| println!("{text}");
        Ok(Arc::new(Remote::new(HostName::new(name)?, Programs::default(), Policy::Auto, Arc::new(note))))
    }
}
