//! A host whose scripts do not leave some directories ([`crate::exec::fence`]).

use std::path::PathBuf;
use std::sync::Arc;

use super::{Host, ScriptError};
use crate::exec::control::Control;
use crate::exec::interpret::Io;
use crate::exec::op::{Script, Value};

/// A host whose scripts do not leave some directories.
pub struct Fenced {
    host: Arc<dyn Host>,
    roots: Vec<PathBuf>,
}

impl Fenced {
    /// All that is asked of `host` through this stays within each of `roots` that its path begins with.
    #[must_use]
    pub fn new(host: Arc<dyn Host>, roots: Vec<PathBuf>) -> Self {
        Self { host, roots }
    }
}

impl Host for Fenced {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        let mut script = script.clone();
        script.fences.extend(self.roots.iter().cloned());
        self.host.run(&script, io, control)
    }

    fn prepare(&self, script: &Script, control: &Control) {
        self.host.prepare(script, control);
    }
}
