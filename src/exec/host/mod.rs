//! Where scripts run: here, through the operator's OpenSSH client, or through libssh2.
//!
//! # Layout
//!
//! - [`Host`], [`HostName`], [`ScriptError`]: what every caller sees.
//! - [`local`], [`openssh`], [`libssh2`]: the three ways; [`policy`] chooses between the last two.
//! - [`fenced`]: any of them, kept below directories.
//! - [`config`], [`known_hosts`], [`keys`]: what the operator's ssh set-up says about a host.
//! - [`session`]: one authenticated libssh2 connection.
//! - [`wire`]: how a script travels over an ssh exec; the same for both clients and both interpreters.
//! - [`failure`]: telling "cannot get there" from "failed there".
//!
//! Contract 01 §13 describes the ssh set-up of an OpenNebula cloud; `docs/architecture.md` §4 the choice.

use std::fmt;
use std::str::FromStr;

use super::control::{Control, Stopped};
use super::error::{OpError, OpErrorKind};
use super::interpret::Io;
use super::op::{Script, Value};

pub mod config;
pub mod failure;
pub mod fenced;
pub mod keys;
pub mod known_hosts;
pub mod libssh2;
pub mod local;
pub mod openssh;
pub mod policy;
pub mod session;
pub mod wire;

/// Name of a host as OpenNebula lists it: a host name, an address or an alias of the ssh configuration.
///
/// It reaches ssh's command line, so only characters of names and addresses are allowed and never a leading `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// A text that cannot name a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot use {0:?} as a host name: only letters, digits and . - _ : % [ ] @ are allowed, and no leading -")]
pub struct BadHostName(String);

impl HostName {
    /// Checks and takes the name.
    ///
    /// # Errors
    /// [`BadHostName`], which shows the text.
    pub fn new(name: &str) -> Result<Self, BadHostName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:%[]@".contains(c);
        let good = !name.is_empty() && name.len() <= 255 && !name.starts_with(['-', '@']) && name.chars().all(allowed);
        if good { Ok(Self(name.to_owned())) } else { Err(BadHostName(name.chars().take(255).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = BadHostName;

    fn from_str(name: &str) -> Result<Self, BadHostName> {
        Self::new(name)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somewhere scripts run.
pub trait Host: Send + Sync {
    /// The name for people: as OpenNebula lists the host, or nothing for this machine.
    fn name(&self) -> &str;

    /// Runs a script: its operations in order, until one fails. One answer for each operation.
    ///
    /// `io` must bring a stream exactly where the script receives or sends one. Nothing is rolled back: that is for
    /// [`super::step`].
    ///
    /// # Errors
    /// [`ScriptError`], whose kind says whether anything can have run.
    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError>;

    /// Makes ready what running this script will need, such as a connection that is kept, so that it can be done beside
    /// something else. Nothing is sent, and what fails is told by [`Host::run`].
    fn prepare(&self, _script: &Script, _control: &Control) {}
}

/// Why a script did not run to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The host could not be reached: nothing of the script ran.
    Unreachable,
    /// The connection broke while the script ran: how far it came is unknown.
    Lost,
    /// An operation failed, see [`ScriptError::failure`], or the far side's shell did.
    Failed,
    /// It was cancelled or the time was up; what ran on the host has been told to end.
    Stopped(Stopped),
    /// The stream that should be sent could not be read, or the received one not be written: our side failed.
    Stream,
    /// The far side answered what no interpreter of ours answers.
    Protocol,
}

/// A script that did not run to its end: where, at which operation, why.
#[derive(Debug)]
pub struct ScriptError {
    /// The host.
    pub host: String,
    /// What sort of failure it is.
    pub kind: ErrorKind,
    /// The operation that failed, where one is to blame.
    pub failure: Option<Box<OpError>>,
    /// The cause, without trailing stop. Empty where [`ScriptError::failure`] says it all.
    pub detail: String,
}

impl fmt::Display for ScriptError {
    /// One line that names the host, what failed and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, kind, failure, detail } = self;
        // This machine goes without saying.
        let at = if host.is_empty() { String::new() } else { format!("{host}: ") };
        if let Some(failure) = failure {
            return write!(f, "{at}{failure}");
        }
        let detail = detail.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
        match kind {
            ErrorKind::Unreachable => {
                write!(f, "Cannot reach {host} by ssh: {detail}; check that oneadmin can log in with ssh {host}")
            }
            ErrorKind::Lost => write!(f, "Lost the connection to {host} before it had answered: {detail}"),
            ErrorKind::Stream => write!(f, "{at}Cannot carry the data: {detail}"),
            ErrorKind::Protocol => write!(f, "Cannot understand what {host} answered: {detail}"),
            ErrorKind::Failed | ErrorKind::Stopped(_) => write!(f, "{at}{detail}"),
        }
    }
}

impl std::error::Error for ScriptError {
    /// What stopped it: the exit status depends on it.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Stopped(why) => Some(why),
            _ => None,
        }
    }
}

impl ScriptError {
    /// An error without an operation to blame.
    #[must_use]
    pub fn new(host: &str, kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { host: host.to_owned(), kind, failure: None, detail: detail.into() }
    }

    /// The work had to stop.
    #[must_use]
    pub fn stopped(host: &str, why: Stopped) -> Self {
        Self::new(host, ErrorKind::Stopped(why), why.to_string())
    }

    /// An operation failed.
    #[must_use]
    pub fn failed(host: &str, failure: OpError) -> Self {
        let kind = match failure.kind {
            OpErrorKind::Stopped(why) => ErrorKind::Stopped(why),
            _ => ErrorKind::Failed,
        };
        Self { host: host.to_owned(), kind, failure: Some(Box::new(failure)), detail: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_ssh_could_take_for_something_else_are_refused() {
        for good in ["node3", "10.0.0.3", "fe80::1%eth0", "[::1]", "one-host_3.cloud.example", "oneadmin@node3"] {
            assert_eq!(HostName::new(good).expect(good).as_str(), good);
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a\nb", "a;b", "$(x)", "a/b", "@a", "näme", "a'b"] {
            let error = HostName::new(bad).expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn errors_are_one_line_with_host_and_cause() {
        let failure = OpError::outside(OpErrorKind::NoSpace, "Cannot copy /a to /b: No space left on device");
        let error = ScriptError::failed("node3", failure);
        assert_eq!(error.to_string(), "node3: Cannot copy /a to /b: No space left on device");
        let error = ScriptError::new("node3", ErrorKind::Unreachable, "Connection refused");
        assert_eq!(
            error.to_string(),
            "Cannot reach node3 by ssh: Connection refused; check that oneadmin can log in with ssh node3"
        );
        let error = ScriptError::new("node3", ErrorKind::Lost, "a\r\nb\n");
        assert_eq!(error.to_string(), "Lost the connection to node3 before it had answered: a; b");
        assert_eq!(ScriptError::stopped("node3", Stopped::Deadline).to_string(), "node3: Timed out");
    }
}
