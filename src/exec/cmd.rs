//! An external command as data: which program, which arguments, which of them are secret.
//!
//! Building a [`Cmd`] runs nothing; `tool/` builds them, [`super::interpret`] and [`super::posix`] run them.

use std::ffi::{OsStr, OsString};
use std::fmt;

use serde::{Deserialize, Serialize};

/// A text that is never shown: passwords, keys, session tokens.
///
/// `Debug` and `Display` print `***`; only [`Secret::reveal`] gives the text, and it is called where a child's
/// environment or standard input is filled, never where something is logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that has to hand it on.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Resource limits of a child, for programs that read what a user made (`setrlimit(2)`, `ulimit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds of CPU time (`RLIMIT_CPU`).
    pub cpu_seconds: Option<u64>,
    /// Bytes of address space (`RLIMIT_AS`).
    pub address_space: Option<u64>,
    /// Bytes a written file may grow to (`RLIMIT_FSIZE`).
    pub file_size: Option<u64>,
    /// Seconds until it is killed, for programs that may wait for ever (`timeout(1)`).
    pub wall_seconds: Option<u64>,
}

/// One external command.
///
/// There is no argument that is a secret: an argument list can be read by every user of the machine. Secrets travel in
/// the environment ([`Cmd::secret_env`]) or on standard input ([`Cmd::secret_stdin`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cmd {
    /// Name of the program as upstream's tables know it (`qemu-img`, `mkfs.xfs`); looked up where it runs.
    pub program: String,
    /// Whether it runs through `sudo -n` (upstream's `SUDO`).
    pub sudo: bool,
    /// The arguments, as bytes.
    #[serde(with = "super::op::os_strings")]
    pub args: Vec<OsString>,
    /// Additional environment; values are never shown.
    pub secret_env: Vec<(String, Secret)>,
    /// Standard input; empty means `/dev/null`. Never shown.
    pub secret_stdin: Option<Secret>,
    /// Limits of the child.
    pub limits: Limits,
    /// Exit statuses that count as success; `0` always does.
    pub also_ok: Vec<i32>,
}

impl Cmd {
    /// A command without arguments.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            sudo: false,
            args: Vec::new(),
            secret_env: Vec::new(),
            secret_stdin: None,
            limits: Limits::default(),
            also_ok: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments in order.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable of the child.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: Secret) -> Self {
        self.secret_env.push((name.into(), value));
        self
    }

    /// Gives the child this text on standard input.
    #[must_use]
    pub fn stdin(mut self, text: Secret) -> Self {
        self.secret_stdin = Some(text);
        self
    }

    /// Limits the child's resources.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Accepts another exit status as success.
    #[must_use]
    pub fn also_ok(mut self, status: i32) -> Self {
        self.also_ok.push(status);
        self
    }

    /// Runs through sudo without asking for a password.
    #[must_use]
    pub fn sudo(mut self) -> Self {
        self.sudo = true;
        self
    }
}

impl fmt::Display for Cmd {
    /// The command as a person would type it, for logs and `explain`: words quoted where a shell would need it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sudo {
            f.write_str("sudo -n ")?;
        }
        f.write_str(&self.program)?;
        for arg in &self.args {
            f.write_str(" ")?;
            f.write_str(&show_word(arg))?;
        }
        Ok(())
    }
}

/// A word for people: bare where that is unambiguous, else in single quotes with control characters escaped.
#[must_use]
pub fn show_word(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    let mut out = String::from("'");
    for c in text.chars() {
        match c {
            '\'' => out.push_str("'\\''"),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let cmd =
            Cmd::new("restic").arg("backup").env("RESTIC_PASSWORD", Secret::new("canary")).stdin(Secret::new("canary"));
        assert!(!format!("{cmd} {cmd:?}").contains("canary"));
    }

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let cmd = Cmd::new("mkfs").args(["-t", "ext4", "a b", "it's", "x\ny"]).sudo();
        assert_eq!(cmd.to_string(), r"sudo -n mkfs -t ext4 'a b' 'it'\''s' 'x\ny'");
    }
}
