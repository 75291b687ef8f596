//! Which client carries a script to a remote host (`docs/architecture.md` §4).
//!
//! `auto`: a live multiplexing master wins, 6 ms a script; else libssh2 for scripts without a data stream, 70 ms and
//! next to nothing for the second, where it connects as ssh would; else the OpenSSH client, which can do everything. A
//! host that drives a journey says little, and goes this way too, unless it is to use our agent. What
//! libssh2 could not even send goes to the OpenSSH client; what it sent does not, for it may have run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::super::control::Control;
use super::super::interpret::Io;
use super::super::op::{Script, Value};
use super::super::process::Programs;
use super::libssh2::{Attempt, LibSsh2};
use super::openssh::OpenSsh;
use super::session::{SessionError, Target};
use super::{ErrorKind, Host, HostName, ScriptError};

/// What `ONESTORE_SSH` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The best for each script.
    #[default]
    Auto,
    /// The OpenSSH client only.
    OpenSsh,
    /// libssh2 only; where it cannot, the script fails.
    LibSsh2,
}

/// A word that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot use ONESTORE_SSH={0:?}: it may be auto, openssh or libssh2")]
pub struct BadPolicy(String);

impl Policy {
    /// Reads the word; empty means `auto`.
    ///
    /// # Errors
    /// [`BadPolicy`], which shows it.
    pub fn parse(word: &str) -> Result<Self, BadPolicy> {
        match word {
            "" | "auto" => Ok(Self::Auto),
            "openssh" => Ok(Self::OpenSsh),
            "libssh2" => Ok(Self::LibSsh2),
            other => Err(BadPolicy(other.to_owned())),
        }
    }

    /// What the environment variable `ONESTORE_SSH` says.
    ///
    /// # Errors
    /// [`BadPolicy`], which shows it.
    pub fn from_env() -> Result<Self, BadPolicy> {
        Self::parse(&std::env::var_os("ONESTORE_SSH").unwrap_or_default().to_string_lossy())
    }
}

/// Is told, once for each host and reason, why a script took another way than the policy's first choice.
pub type Notes = Arc<dyn Fn(&str) + Send + Sync>;

/// A remote host, reached as the policy says.
pub struct Remote {
    openssh: OpenSsh,
    policy: Policy,
    notes: Notes,
    libssh2: OnceLock<Result<LibSsh2, String>>,
    /// libssh2 failed before it had sent anything: not again in this process.
    given_up: AtomicBool,
}

impl Remote {
    /// A host; nothing is asked or connected before its first script.
    #[must_use]
    pub fn new(name: HostName, programs: Programs, policy: Policy, notes: Notes) -> Self {
        let openssh = OpenSsh::new(name, programs);
        Self { openssh, policy, notes, libssh2: OnceLock::new(), given_up: AtomicBool::new(false) }
    }

    /// Which client a script takes now.
    pub fn choice(&self, script: &Script, control: &Control) -> Policy {
        let short = !script.receives() && (!script.sends() || self.openssh.speaks_little(script, control));
        match self.policy {
            Policy::Auto if !short || self.given_up.load(Ordering::Relaxed) => Policy::OpenSsh,
            Policy::Auto if self.openssh.has_live_master(control) => Policy::OpenSsh,
            Policy::Auto if self.libssh2(control).is_ok() => Policy::LibSsh2,
            Policy::Auto => Policy::OpenSsh,
            fixed => fixed,
        }
    }

    /// libssh2 could not even send: not again in this process.
    fn give_up(&self, cause: &str) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            (self.notes)(&format!("{} is reached by the OpenSSH client: {cause}", self.name()));
        }
    }

    fn libssh2(&self, control: &Control) -> &Result<LibSsh2, String> {
        self.libssh2.get_or_init(|| {
            let found = match self.openssh.config(control) {
                Some(config) => Target::find(config),
                None => Err("ssh -G does not tell how to connect".into()),
            };
            let host = found.and_then(|target| {
                let name = HostName::new(self.name()).map_err(|e| e.to_string())?;
                Ok(LibSsh2::new(name, target))
            });
            if let Err(reason) = &host {
                (self.notes)(&format!("{} is reached by the OpenSSH client: {reason}", self.name()));
            }
            host
        })
    }
}

impl Host for Remote {
    fn name(&self) -> &str {
        self.openssh.name()
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        if self.choice(script, control) != Policy::LibSsh2 {
            return self.openssh.run(script, io, control);
        }
        let libssh2 = match self.libssh2(control) {
            Ok(libssh2) => libssh2,
            Err(reason) => {
                return Err(ScriptError::new(self.name(), ErrorKind::Unreachable, reason));
            }
        };
        if self.policy == Policy::LibSsh2 {
            return libssh2.run(script, io, control);
        }
        // A script that libssh2 was chosen for has no streams, so that the second client misses nothing.
        let again = Io { input: None, output: None, locks: io.locks.clone() };
        match libssh2.attempt(script, io, control) {
            Ok(values) => Ok(values),
            Err(Attempt::Sent(error)) => Err(error),
            Err(Attempt::NotSent(SessionError::Stopped(why))) => Err(ScriptError::stopped(self.name(), why)),
            Err(Attempt::NotSent(SessionError::Failed(cause))) => {
                self.give_up(&cause);
                self.openssh.run(script, again, control)
            }
        }
    }

    fn prepare(&self, script: &Script, control: &Control) {
        if self.choice(script, control) == Policy::LibSsh2
            && let Ok(libssh2) = self.libssh2(control)
            && let Err(SessionError::Failed(cause)) = libssh2.connect(control)
            && self.policy == Policy::Auto
        {
            self.give_up(&cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::config::SshConfig;
    use super::*;

    #[test]
    fn the_words_of_the_policy() {
        assert_eq!(Policy::parse(""), Ok(Policy::Auto));
        assert_eq!(Policy::parse("libssh2"), Ok(Policy::LibSsh2));
        assert!(Policy::parse("ssh").expect_err("no policy").to_string().contains("\"ssh\""));
    }

    #[test]
    fn only_a_socket_that_answers_is_a_master() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("master");
        let config = SshConfig::parse(&format!("controlpath {}\n", path.display()));
        assert!(!config.has_live_master());
        let listener = UnixListener::bind(&path).expect("binds");
        assert!(config.has_live_master());
        drop(listener);
        assert!(path.exists() && !config.has_live_master());
        assert!(!SshConfig::parse("controlpath none\n").has_live_master());
    }
}
