//! The other end of ssh: the server of the harness runs every command through this binary, which traces it.
//!
//! An action may open several connections. They count together, in a file.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::calls::Call;
use super::fault::Fault;
use super::tracer::{self, Deed, Plan, Stop, Who};

/// Word for the command line of this binary that makes it the server's command.
pub const WORD: &str = "crash-remote";

/// What all connections of one run share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Number of the call to disturb; 0 for none.
    pub at: usize,
    /// Calls that were counted.
    pub count: usize,
    /// What to do there instead of a kill.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// Where it was killed, or failed.
    pub disturbed: Option<String>,
}

impl State {
    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
    }

    /// Writes it anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string(self)?).context("Cannot write the state of the remote side")
    }
}

/// Runs the command that ssh was asked for; `agent` is a remotes tree that the far side is to have.
///
/// # Errors
/// It cannot be traced.
pub fn serve(state: &Path, agent: Option<&OsStr>) -> Result<ExitCode> {
    let asked = std::env::var_os("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    let fault = State::load(state)?.fault;
    let mut command = tracer::command(Path::new("/bin/sh"), fault.is_some())?;
    command.arg("-c").arg(asked);
    if let Some(tree) = agent {
        command.env("SCRIPTS_REMOTE_DIR", tree);
    }
    let child = command.spawn()?;
    let trace = tracer::follow(&child, Who::Remote, &mut Shared { file: state.to_owned(), fault })?;
    Ok(ExitCode::from(u8::try_from(trace.status).unwrap_or(255)))
}

struct Shared {
    file: PathBuf,
    fault: Option<Fault>,
}

impl Plan for Shared {
    fn counts(&self, pid: Pid, _: bool, call: &Call) -> bool {
        self.fault.is_none_or(|fault| fault.possible(pid, call))
    }

    fn deed(&mut self, stop: Stop) -> Deed {
        let here = self.count(stop).unwrap_or(false);
        if here { self.fault.map_or(Deed::Kill, Deed::Fault) } else { Deed::Let }
    }
}

impl Shared {
    fn count(&self, stop: Stop) -> Result<bool> {
        let mut file: File = OpenOptions::new().read(true).write(true).open(&self.file)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut state: State = serde_json::from_str(&text)?;
        state.count += 1;
        let here = state.count == state.at;
        if here {
            state.disturbed = Some(stop.point().to_string());
        }
        file.seek(SeekFrom::Start(0))?;
        let text = serde_json::to_string(&state)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        Ok(here)
    }
}
