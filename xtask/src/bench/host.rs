//! A host as a front-end reaches it: a real OpenSSH server, and a connection that is open already, as the client
//! configuration that OpenNebula ships keeps one. It ends with the guard.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::measure::helper;
use crate::conformance::sshd::{More, Sshd};

/// What the host is called.
pub const NAME: &str = "bridge1";

/// The client's configuration beyond how to find the server.
const SHARED: &str = "  ControlMaster auto\n  ControlPersist 3600\n  ControlPath ";

/// A server with a warm connection.
pub struct Host {
    sshd: Sshd,
    config: PathBuf,
}

impl Host {
    /// Starts one. `remotes` is the tree that `onehost sync` would have copied there.
    ///
    /// # Errors
    /// OpenSSH is not installed, or nobody may log in.
    pub fn start(work: &Path, remotes: &Path) -> Result<Self> {
        let dir = work.join("ssh");
        fs::create_dir(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        let client = format!("{SHARED}{}/%C\n", dir.display());
        // Bash would read the account's `.bashrc` in every session, and what people do there is not what is measured.
        let env = [("SCRIPTS_REMOTE_DIR", remotes.display().to_string()), ("SHLVL", "1".to_owned())];
        let sshd = Sshd::start(&More { env: &env, client: &client, ..More::default() })?;
        let config = sshd.config();
        let host = Self { sshd, config };
        let words: Vec<OsString> = [host.words(), [NAME, "true"].map(OsString::from).into()].concat();
        let args: Vec<&OsStr> = words.iter().skip(1).map(OsString::as_os_str).collect();
        // The master keeps standard error open, so that nobody may wait for its end.
        helper(
            "sh",
            &[&["-c".as_ref(), "ssh \"$@\" 2>/dev/null".as_ref(), "sh".as_ref()], &args[..]].concat(),
            Stdio::null(),
        )
        .context("Cannot log in to the host of the bench")?;
        Ok(host)
    }

    /// The client with its configuration, as the variable `SSH` and a command line have it.
    pub fn words(&self) -> Vec<OsString> {
        vec!["ssh".into(), "-F".into(), self.config.clone().into()]
    }

    /// Puts `ssh` and `scp` with this configuration into a directory, for what does not ask `SSH`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn install(&self, bin: &Path, home: &Path) -> Result<()> {
        self.sshd.install(bin, home)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let config = self.config.as_os_str();
        let words = ["-O", "exit", NAME].map(OsStr::new);
        // What cannot be told to go ends with the server's connection.
        let _ = helper("ssh", &[&["-F".as_ref(), config][..], &words].concat(), Stdio::null());
    }
}
