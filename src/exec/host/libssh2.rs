//! Scripts over libssh2 connections that are kept: no process, and no key exchange for the second script.
//!
//! Only where libssh2 connects as ssh would, see [`Target::find`]. Connections are pooled, because libssh2 has one lock
//! for each: scripts that run at the same time have a connection each.

use std::io::{ErrorKind as IoKind, Read, Write};
use std::sync::{Mutex, PoisonError};

use ssh2::Channel;

use super::super::control::{Control, Stopped};
use super::super::interpret::Io;
use super::super::op::{Script, Value};
use super::super::process::{STDERR_KEPT, STDOUT_LIMIT};
use super::failure::judge;
use super::session::{Connection, SessionError, Target, would_block};
use super::wire::{COMMAND, Delivery, Outgoing};
use super::{ErrorKind, Host, HostName, ScriptError};

/// Connections that are kept for the next script.
const KEPT: usize = 4;

/// A host that libssh2 reaches.
pub struct LibSsh2 {
    name: HostName,
    target: Target,
    idle: Mutex<Vec<Connection>>,
}

/// How a script did not run: whether another client may try.
#[derive(Debug)]
pub enum Attempt {
    /// Nothing of the script was sent.
    NotSent(SessionError),
    /// The script was sent, wholly or in part.
    Sent(ScriptError),
}

impl LibSsh2 {
    /// A host and what has been found out about connecting to it.
    #[must_use]
    pub fn new(name: HostName, target: Target) -> Self {
        Self { name, target, idle: Mutex::new(Vec::new()) }
    }

    /// Runs a script, or says that it was not sent.
    ///
    /// # Errors
    /// [`Attempt`].
    pub fn attempt(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, Attempt> {
        let delivery = Delivery::of(script)
            .map_err(|e| Attempt::NotSent(SessionError::Failed(format!("Cannot send a script: {e}"))))?;
        let (connection, channel) = self.channel(control).map_err(Attempt::NotSent)?;
        let sends = script.sends();
        let mut exchange = Exchange {
            channel,
            connection,
            outgoing: Outgoing::new(delivery, io.input),
            pending: Vec::new(),
            sent: 0,
            input: Ending::Open,
            stuck: None,
            output: if sends { io.output } else { None },
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        match exchange.run(control) {
            Ok(status) => {
                let Exchange { stdout, stderr, channel, connection, .. } = exchange;
                drop(channel);
                self.keep(connection);
                judge(self.name.as_str(), script, status, &stdout, &stderr).map_err(Attempt::Sent)
            }
            Err(broken) => {
                // Before anything that still belongs to it is freed, which might wait for an answer.
                exchange.connection.cut();
                let name = self.name.as_str();
                Err(Attempt::Sent(match broken {
                    Broken::Stopped(why) => ScriptError::stopped(name, why),
                    Broken::Stream(cause) => ScriptError::new(name, ErrorKind::Stream, cause),
                    Broken::Connection(cause) => ScriptError::new(name, ErrorKind::Lost, cause),
                    Broken::TooMuch => ScriptError::new(name, ErrorKind::Protocol, "The answers are too long"),
                }))
            }
        }
    }

    /// Has a connection kept for the next script.
    ///
    /// # Errors
    /// [`SessionError`]: there is none.
    pub fn connect(&self, control: &Control) -> Result<(), SessionError> {
        if self.idle.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.keep(Connection::open(&self.target, control)?);
        }
        Ok(())
    }

    /// A channel on a kept connection, or on a new one where there is none that still works.
    fn channel(&self, control: &Control) -> Result<(Connection, Channel), SessionError> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = kept {
            match connection.exec(COMMAND, control) {
                Ok(channel) => return Ok((connection, channel)),
                Err(SessionError::Stopped(why)) => return Err(why.into()),
                // It broke while nobody used it; others of its age may have, too.
                Err(SessionError::Failed(_)) => self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear(),
            }
        }
        let connection = Connection::open(&self.target, control)?;
        let channel = connection.exec(COMMAND, control)?;
        Ok((connection, channel))
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(connection);
        }
    }
}

impl Host for LibSsh2 {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn run(&self, script: &Script, io: Io<'_>, control: &Control) -> Result<Vec<Value>, ScriptError> {
        self.attempt(script, io, control).map_err(|attempt| match attempt {
            Attempt::Sent(error) => error,
            Attempt::NotSent(SessionError::Stopped(why)) => ScriptError::stopped(self.name(), why),
            Attempt::NotSent(SessionError::Failed(cause)) => {
                ScriptError::new(self.name(), ErrorKind::Unreachable, cause)
            }
        })
    }
}

/// Why an exchange did not come to its end.
enum Broken {
    Stopped(Stopped),
    Stream(String),
    Connection(String),
    TooMuch,
}

/// What may still be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Data.
    Open,
    /// Only the end of file.
    Read,
    /// Nothing.
    Sent,
}

/// One call into libssh2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Send,
    Out,
    Err,
}

/// One script on its channel: sends, and drains both outputs together, since two MiB of unread stderr stall a channel.
struct Exchange<'a> {
    channel: Channel,
    connection: Connection,
    outgoing: Outgoing<'a>,
    pending: Vec<u8>,
    sent: usize,
    input: Ending,
    /// The call whose packet is half sent: libssh2 must be asked the same again before anything else.
    stuck: Option<Step>,
    output: Option<&'a mut (dyn Write + Send)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Exchange<'_> {
    /// The exit status, `None` for a signal.
    fn run(&mut self, control: &Control) -> Result<Option<i32>, Broken> {
        loop {
            control.check().map_err(Broken::Stopped)?;
            let steps = match self.stuck {
                Some(step) => vec![step],
                None => vec![Step::Out, Step::Err, Step::Send],
            };
            let mut moved = false;
            for step in steps {
                let done = match step {
                    Step::Send => self.send()?,
                    Step::Out => self.receive(0)?,
                    Step::Err => self.receive(ssh2::EXTENDED_DATA_STDERR)?,
                };
                moved |= done;
                let half_sent = !done && self.connection.is_sending();
                self.stuck = half_sent.then_some(step);
                if half_sent {
                    break;
                }
            }
            if self.stuck.is_none() && self.channel.eof() {
                return self.finish(control);
            }
            if !moved {
                self.connection.wait(control).map_err(Broken::Stopped)?;
            }
        }
    }

    /// Sends a part; `false` if it cannot now.
    fn send(&mut self) -> Result<bool, Broken> {
        if self.input == Ending::Open && self.sent == self.pending.len() {
            self.pending.resize(64 << 10, 0);
            self.sent = 0;
            let len = self.outgoing.read(&mut self.pending);
            let len = len.map_err(|e| Broken::Stream(e.to_string()))?;
            self.pending.truncate(len);
            if len == 0 {
                self.input = Ending::Read;
            }
        }
        match self.input {
            Ending::Sent => Ok(false),
            Ending::Open => match self.channel.write(&self.pending[self.sent..]) {
                Ok(len) => {
                    self.sent += len;
                    Ok(len > 0)
                }
                Err(error) if error.kind() == IoKind::WouldBlock => Ok(false),
                // The remote command may end before it has read everything; what it said says why.
                Err(error) if self.channel.eof() => {
                    drop(error);
                    self.input = Ending::Sent;
                    Ok(true)
                }
                Err(error) => Err(Broken::Connection(error.to_string())),
            },
            Ending::Read => match self.channel.send_eof() {
                Ok(()) => {
                    self.input = Ending::Sent;
                    Ok(true)
                }
                Err(error) if would_block(&error) => Ok(false),
                Err(_) => {
                    // Only a channel that is closed already refuses it; reading tells the rest.
                    self.input = Ending::Sent;
                    Ok(true)
                }
            },
        }
    }

    /// Takes what has come; `false` if there is nothing now.
    fn receive(&mut self, stream: i32) -> Result<bool, Broken> {
        let mut block = [0_u8; 16 << 10];
        match self.channel.stream(stream).read(&mut block) {
            Ok(0) => Ok(false),
            Ok(len) if stream == 0 => self.take(&block[..len]).map(|()| true),
            Ok(len) => {
                self.stderr.extend_from_slice(&block[..len]);
                let extra = self.stderr.len().saturating_sub(STDERR_KEPT);
                self.stderr.drain(..extra);
                Ok(true)
            }
            Err(error) if error.kind() == IoKind::WouldBlock => Ok(false),
            Err(error) => Err(Broken::Connection(error.to_string())),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match &mut self.output {
            Some(writer) => writer.write_all(bytes).map_err(|e| Broken::Stream(e.to_string())),
            None if self.stdout.len() + bytes.len() > STDOUT_LIMIT => Err(Broken::TooMuch),
            None => {
                self.stdout.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Waits for the far side to close the channel, which it does after it has told the exit status.
    fn finish(&mut self, control: &Control) -> Result<Option<i32>, Broken> {
        for close in [Channel::wait_close, Channel::close] {
            loop {
                match close(&mut self.channel) {
                    Err(error) if would_block(&error) => {
                        self.connection.wait(control).map_err(Broken::Stopped)?;
                    }
                    Err(error) => return Err(Broken::Connection(error.message().to_owned())),
                    Ok(()) => break,
                }
            }
        }
        let broken = |e: ssh2::Error| Broken::Connection(e.to_string());
        let signal = self.channel.exit_signal().map_err(broken)?.exit_signal;
        match signal {
            Some(_) => Ok(None),
            None => self.channel.exit_status().map(Some).map_err(broken),
        }
    }
}
