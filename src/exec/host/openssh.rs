//! Scripts through the operator's own `ssh`, with everything that its configuration says: jumps, agents, multiplexing.
//!
//! One exec per script. A script with a data stream gets a connection of its own with AES-GCM first: the multiplexing
//! master is one thread, and `ChaCha20` costs twice the CPU (house style §7).

use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::sync::OnceLock;

use super::super::cmd::Secret;
use super::super::control::Control;
use super::super::interpret::Io;
use super::super::op::{Op, Script, Value};
use super::super::process::{self, ProcessError, ProcessErrorKind, ProcessIo, Programs, Spawn, Stdin, Stdout};
use super::config::{self, SshConfig};
use super::failure::judge;
use super::wire::{COMMAND, Delivery, Outgoing};
use super::{ErrorKind, Host, HostName, ScriptError};

/// A host that the OpenSSH client reaches.
#[derive(Debug)]
pub struct OpenSsh {
    name: HostName,
    port: Option<u16>,
    address: Option<IpAddr>,
    programs: Programs,
    config: OnceLock<Option<SshConfig>>,
}

impl OpenSsh {
    /// Calls ssh as `programs` says: the environment's `SSH` may be several words.
    #[must_use]
    pub fn new(name: HostName, programs: Programs) -> Self {
        Self { name, port: None, address: None, programs, config: OnceLock::new() }
    }

    /// The same at this port, whatever the configuration says.
    #[must_use]
    pub fn at_port(mut self, port: Option<u16>) -> Self {
        self.port = port;
        self
    }

    /// The same at this address, whatever the configuration says. It has to have the key that the host has by its name.
    #[must_use]
    pub fn at_address(mut self, address: Option<IpAddr>) -> Self {
        self.address = address;
        self
    }

    /// What `ssh -G` says, asked once; `None` if it says nothing.
    pub fn config(&self, control: &Control) -> Option<&SshConfig> {
        let ask = |options: &[String]| config::ask(&self.name, options, &self.programs, control).ok();
        let get = || match self.address {
            None => ask(&[]),
            Some(address) => {
                let alias = ask(&[])?.known_as().into_iter().next()?;
                ask(&[format!("HostName={address}"), format!("HostKeyAlias={alias}")])
            }
        };
        self.config.get_or_init(get).as_ref()
    }

    /// Whether a multiplexing master listens.
    pub fn has_live_master(&self, control: &Control) -> bool {
        self.config(control).is_some_and(SshConfig::has_live_master)
    }

    /// Whether there is an agent that could be forwarded: `SSH_AUTH_SOCK`, or `IdentityAgent` of the configuration.
    fn has_agent(&self, control: &Control) -> bool {
        let named = self.config(control).and_then(|config| config.get("identityagent"));
        let by_name = named.is_some_and(|name| name != "SSH_AUTH_SOCK");
        by_name || std::env::var_os("SSH_AUTH_SOCK").is_some_and(|socket| !socket.is_empty())
    }

    /// Whether a script that has an output stream puts no data on it, and needs nothing of a connection of its own: it
    /// drives a journey, and there is no agent to forward.
    pub fn speaks_little(&self, script: &Script, control: &Control) -> bool {
        script.goes_on() && !self.has_agent(control)
    }

    /// Starts a script that converses ([`Script::converses`]) and waits for its end. `stdin` carries what the caller writes,
    /// the script's delivery first; `stdout` is what it answers. Both are handed to ssh as they are. `shared` is to go
    /// through a multiplexing master that is there; else the connection is its own.
    ///
    /// # Errors
    /// As of [`Host::run`].
    pub fn converse(
        &self,
        script: &Script,
        (stdin, stdout): (File, File),
        shared: bool,
        control: &Control,
    ) -> Result<(), ScriptError> {
        let spawn = self.spawn(script, shared, control)?;
        let io = ProcessIo { stdin: Stdin::File(stdin), stdout: Stdout::File(stdout) };
        let done = match process::run(&spawn, io, control) {
            Ok(done) => judge(self.name.as_str(), script, Some(done.status), &done.stdout, done.stderr.as_bytes()),
            Err(error) => self.process_failed(script, error, control),
        };
        done.map(drop)
    }

    fn spawn(&self, script: &Script, shared: bool, control: &Control) -> Result<Spawn, ScriptError> {
        Ok(Spawn {
            argv: self.argv(script, shared, control)?,
            env: Vec::new(),
            shown: format!("ssh {}", self.name),
            also_ok: Vec::new(),
            hidden: secrets(script),
            on_leash: true,
        })
    }

    fn argv(&self, script: &Script, shared: bool, control: &Control) -> Result<Vec<OsString>, ScriptError> {
        let unreachable = |e: process::Missing| self.error(ErrorKind::Unreachable, e.to_string());
        let mut argv = self.programs.find("ssh").map_err(unreachable)?;
        argv.extend(["-T", "-x", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"].map(OsString::from));
        if script.goes_on() && self.has_agent(control) {
            // The keys of whoever runs this, for the one script that logs in elsewhere; it gets no others.
            argv.extend(["-o", "ForwardAgent=yes"].map(OsString::from));
        }
        if script.converses() {
            // What is sent is compressed already where that pays, and a link that was cut has to be noticed.
            let words = ["Compression=no", "ServerAliveInterval=15", "ServerAliveCountMax=3"];
            argv.extend(words.into_iter().flat_map(|word| ["-o".into(), OsString::from(word)]));
        }
        let shared = self.speaks_little(script, control) || shared && self.has_live_master(control);
        if (script.receives() || script.sends()) && !shared {
            argv.extend(["-o", "ControlMaster=no", "-o", "ControlPath=none"].map(OsString::from));
            if let Some(ciphers) = self.config(control).and_then(SshConfig::bulk_ciphers) {
                argv.extend(["-o".into(), format!("Ciphers={ciphers}").into()]);
            }
        }
        if let Some(address) = self.address {
            let alias = self.config(control).and_then(|config| config.known_as().into_iter().next());
            let alias = alias.ok_or_else(|| self.error(ErrorKind::Unreachable, "ssh -G says nothing of it"))?;
            let words = [format!("HostName={address}"), format!("HostKeyAlias={alias}")];
            argv.extend(words.into_iter().flat_map(|word| ["-o".into(), OsString::from(word)]));
        }
        if let Some(port) = self.port {
            argv.extend(["-p".into(), port.to_string().into()]);
        }
        argv.extend(["--", self.name.as_str(), COMMAND].map(OsString::from));
        Ok(argv)
    }

    fn error(&self, kind: ErrorKind, detail: impl Into<String>) -> ScriptError {
        ScriptError::new(self.name.as_str(), kind, detail)
    }

    fn process_failed(
        &self,
        script: &Script,
        error: ProcessError,
        control: &Control,
    ) -> Result<Vec<Value>, ScriptError> {
        let detail = match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        match error.kind {
            ProcessErrorKind::Status(status) => {
                judge(self.name.as_str(), script, Some(status), &[], error.stderr.as_bytes())
            }
            ProcessErrorKind::Stopped(why) => Err(ScriptError::stopped(self.name.as_str(), why)),
            ProcessErrorKind::Missing(_) | ProcessErrorKind::Spawn(_) => {
                Err(self.error(ErrorKind::Unreachable, detail))
            }
            // A child that had no group of its own yet got the signal that was meant for us.
            ProcessErrorKind::Signal(_) | ProcessErrorKind::OverTime(_) => Err(match control.check() {
                Err(why) => ScriptError::stopped(self.name.as_str(), why),
                Ok(()) => self.error(ErrorKind::Lost, detail),
            }),
            // What the reader or writer said, and not what became of ssh for want of it.
            ProcessErrorKind::Io(cause) => Err(self.error(ErrorKind::Stream, cause.to_string())),
            ProcessErrorKind::TooMuch(_) => Err(self.error(ErrorKind::Protocol, detail)),
        }
    }
}

impl Host for OpenSsh {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        let delivery =
            Delivery::of(script).map_err(|e| self.error(ErrorKind::Failed, format!("Cannot send a script: {e}")))?;
        let spawn = self.spawn(script, false, control)?;
        let mut outgoing = Outgoing::new(delivery, io.input);
        let stdout = match io.output {
            Some(writer) if script.sends() => Stdout::Writer(writer),
            _ => Stdout::default(),
        };
        let io = ProcessIo { stdin: Stdin::Stream(&mut outgoing), stdout };
        match process::run(&spawn, io, control) {
            Ok(done) => judge(self.name.as_str(), script, Some(done.status), &done.stdout, done.stderr.as_bytes()),
            Err(error) => self.process_failed(script, error, control),
        }
    }
}

/// The secrets that programs of a script are given, which they may quote in their complaints.
#[must_use]
pub fn secrets(script: &Script) -> Vec<Secret> {
    let runs = script.ops.iter().filter_map(|op| match op {
        Op::Run(cmd) => Some(cmd),
        _ => None,
    });
    runs.flat_map(|cmd| cmd.secret_env.iter().map(|(_, value)| value).chain(&cmd.secret_stdin)).cloned().collect()
}
