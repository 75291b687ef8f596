//! This machine: scripts run in process.

use super::super::control::Control;
use super::super::interpret::{self, Io};
use super::super::op::{Script, Value};
use super::super::process::Programs;
use super::{Host, ScriptError};

/// This machine.
#[derive(Clone, Debug, Default)]
pub struct Local {
    programs: Programs,
}

impl Local {
    /// Calls external programs as `programs` says.
    #[must_use]
    pub fn new(programs: Programs) -> Self {
        Self { programs }
    }
}

impl Host for Local {
    fn name(&self) -> &'static str {
        "localhost"
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        interpret::run(script, io, &self.programs, control).map_err(|failure| ScriptError::failed(self.name(), failure))
    }
}
