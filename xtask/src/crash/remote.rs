//! The other end of ssh: the server of the harness runs every command through this binary, which traces it.
//!
//! An action may open several connections. They count together, in a file.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tracer::{self, Plan, Point, Who};

/// Word for the command line of this binary that makes it the server's command.
pub const WORD: &str = "crash-remote";

/// What all connections of one run share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Number of the call to kill at; 0 for none.
    pub at: usize,
    /// Calls that were counted.
    pub count: usize,
    /// Where it was killed.
    pub killed: Option<String>,
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
    let mut command = tracer::command(Path::new("/bin/sh"))?;
    command.arg("-c").arg(asked);
    if let Some(tree) = agent {
        command.env("SCRIPTS_REMOTE_DIR", tree);
    }
    let child = command.spawn()?;
    let trace = tracer::follow(&child, Who::Remote, &mut Shared(state.to_owned()))?;
    Ok(ExitCode::from(u8::try_from(trace.status).unwrap_or(255)))
}

struct Shared(PathBuf);

impl Plan for Shared {
    fn kill(&mut self, point: &Point) -> bool {
        self.count(point).unwrap_or(false)
    }
}

impl Shared {
    fn count(&self, point: &Point) -> Result<bool> {
        let mut file: File = OpenOptions::new().read(true).write(true).open(&self.0)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut state: State = serde_json::from_str(&text)?;
        state.count += 1;
        let kill = state.count == state.at;
        if kill {
            state.killed = Some(point.to_string());
        }
        file.seek(SeekFrom::Start(0))?;
        let text = serde_json::to_string(&state)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        Ok(kill)
    }
}
