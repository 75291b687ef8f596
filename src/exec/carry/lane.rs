//! Streams beside ssh: TLS 1.3 over a port of a range that the operator opened between his hosts.
//!
//! ssh has proven who both ends are, and over it they have agreed on a [`Key`] for one journey. The handshake knows nothing
//! but that key (`TLS_AES_128_GCM_SHA256`, a pre-shared key with an ephemeral exchange, RFC 8446 §2.2): no certificates, no
//! tickets, no early data. Whoever has not got the key gets no further than the handshake, in both directions.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ssl::{
    HandshakeError, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslStream,
    SslVerifyMode, SslVersion,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use crate::exec::control::Control;
use crate::exec::host::config::SshConfig;
use crate::exec::host::session;

/// The only cipher suite.
const SUITE: &str = "TLS_AES_128_GCM_SHA256";

/// What the key is called in the handshake. There is only one.
const NAME: &[u8] = b"onestore-journey";

/// How long the near end waits for a port, the handshake and the greeting, before it goes by ssh: one second.
pub const REACH: Duration = Duration::from_secs(1);

/// How long a wait lasts until it is looked around for a reason to stop.
const TICK: Duration = Duration::from_millis(100);

/// Bytes that are read or written at a time: measured, eight records of TLS cost the least.
const BUFFER: usize = 128 << 10;

/// Milliseconds that sent data may stay unacknowledged before the connection counts as broken, as over ssh.
const UNACKNOWLEDGED_MS: u32 = 45_000;

/// Bytes that one key encrypts: 256 GiB. AES-GCM is good for 24 million records of 16 KiB, 388 GiB (RFC 8446 §5.5).
pub const MOST: u64 = 256 << 30;

/// A range of TCP ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// A text that is no range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot use {0:?} as ports: two numbers from 1024 to 65535 with - between them are a range")]
pub struct BadPorts(String);

impl FromStr for Ports {
    type Err = BadPorts;

    /// `49152-49215`, or one port alone. None below 1024: those are the system's.
    fn from_str(text: &str) -> Result<Self, BadPorts> {
        let bad = || BadPorts(text.chars().take(100).collect());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port >= 1024).ok_or_else(bad);
        let new = Self { first: number(first)?, last: number(last)? };
        if new.first <= new.last { Ok(new) } else { Err(bad()) }
    }
}

/// What only the two ends of one journey know: 32 random bytes. They travel by ssh and nowhere else.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Bytes of a key.
    pub const LEN: usize = 32;

    /// A new one.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        openssl::rand::rand_bytes(&mut bytes).map_err(|e| unusable(&e))?;
        Ok(Self(bytes))
    }

    /// The one that was sent.
    #[must_use]
    pub fn of_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// To be sent, by ssh.
    #[must_use]
    pub fn reveal(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn unusable(error: &ErrorStack) -> io::Error {
    io::Error::other(format!("Cannot use TLS: {error}"))
}

/// What both ends have in common.
fn context(method: SslMethod) -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(method)?;
    context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_ciphersuites(SUITE)?;
    context.set_options(SslOptions::NO_TICKET);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    Ok(context)
}

/// Writes the key to where OpenSSL wants it.
fn fill(room: &mut [u8], key: &Key) -> Result<usize, ErrorStack> {
    match room.get_mut(..Key::LEN) {
        Some(room) => room.copy_from_slice(&key.0),
        None => return Err(ErrorStack::get()),
    }
    Ok(Key::LEN)
}

/// A stream to or from somebody who knows the key.
pub struct Lane(SslStream<Wire>);

impl Lane {
    /// Connects to where ssh goes, at this port.
    ///
    /// # Errors
    /// Nobody listens, or not within [`REACH`]; whoever does has another key. The text names the port.
    pub fn connect(config: &SshConfig, port: u16, key: &Key, control: &Control) -> io::Result<Self> {
        let until = Instant::now() + REACH;
        let socket = session::connect(config, port, &control.within(REACH), until).map_err(io::Error::other)?;
        Self::over(socket, key, until, control)
    }

    /// The near end over a connection that is there, which has until then to greet ([`Lane::calm`]).
    ///
    /// # Errors
    /// As of [`Lane::connect`].
    pub fn over(socket: TcpStream, key: &Key, until: Instant, control: &Control) -> io::Result<Self> {
        let build = || {
            let mut context = context(SslMethod::tls_client())?;
            // A certificate proves nothing here, and none is believed: only the key is.
            context.set_verify(SslVerifyMode::PEER);
            let key = key.clone();
            context.set_psk_client_callback(move |_, _, name, room| {
                if let Some((name, [end, ..])) = name.split_at_mut_checked(NAME.len()) {
                    name.copy_from_slice(NAME);
                    *end = 0;
                    return fill(room, &key);
                }
                Err(ErrorStack::get())
            });
            Ssl::new(&context.build())
        };
        let ssl = build().map_err(|e| unusable(&e))?;
        Self::agreed(ssl.connect(Wire::new(socket, until, control)?))
    }

    /// The far end over a connection that came in.
    ///
    /// # Errors
    /// Whoever came has another key, or none, or took longer than until then.
    pub fn accept(socket: TcpStream, key: &Key, until: Instant, control: &Control) -> io::Result<Self> {
        let build = || {
            let mut context = context(SslMethod::tls_server())?;
            let key = key.clone();
            context.set_psk_server_callback(move |_, name, room| {
                // No bytes are no key: the handshake fails, for there is no certificate either.
                if name == Some(NAME) { fill(room, &key) } else { Ok(0) }
            });
            Ssl::new(&context.build())
        };
        let ssl = build().map_err(|e| unusable(&e))?;
        let mut lane = Self::agreed(ssl.accept(Wire::new(socket, until, control)?))?;
        lane.calm();
        Ok(lane)
    }

    fn agreed(done: Result<SslStream<Wire>, HandshakeError<Wire>>) -> io::Result<Self> {
        match done {
            // OpenSSL's word for: by the key that both have, and not by a certificate.
            Ok(stream) if stream.ssl().session_reused() => Ok(Self(stream)),
            Ok(_) => Err(io::Error::other("The other end has not got the key")),
            Err(HandshakeError::SetupFailure(error)) => Err(unusable(&error)),
            Err(HandshakeError::Failure(half) | HandshakeError::WouldBlock(half)) => {
                let cause = match half.into_error().into_io_error() {
                    Ok(error) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                Err(io::Error::other(format!("The handshake failed: {cause}")))
            }
        }
    }

    /// From now on it may take as long as it takes.
    pub fn calm(&mut self) {
        self.0.get_mut().until = None;
    }

    /// Whether the other end has said something that was not read yet.
    #[must_use]
    pub fn speaks(&self) -> bool {
        self.0.ssl().pending() > 0 || self.0.get_ref().has_some()
    }

    /// Says no more, and lets the other end read what was said: one that still writes would lose it otherwise. Until the other
    /// end goes, at most this long.
    pub fn linger(&mut self, time: Duration) {
        let _ = self.0.shutdown();
        let _ = self.0.flush();
        self.0.get_mut().until = Instant::now().checked_add(time);
        let mut room = vec![0; 64 << 10];
        while self.0.read(&mut room).is_ok_and(|len| len > 0) {}
    }
}

impl Read for Lane {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.0.read(room)
    }
}

impl Write for Lane {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.get_mut().until = Instant::now().checked_add(TICK);
        // The other end finds out in any case.
        let _ = self.0.shutdown();
        let _ = self.0.flush();
        let _ = self.0.get_ref().socket.shutdown(Shutdown::Both);
    }
}

/// The connection below TLS: reads and writes in large pieces, and never waits longer than it may.
struct Wire {
    socket: TcpStream,
    control: Control,
    /// When it has taken too long.
    until: Option<Instant>,
    came: Vec<u8>,
    /// What of it was not taken yet.
    left: std::ops::Range<usize>,
    goes: Vec<u8>,
}

impl Wire {
    fn new(socket: TcpStream, until: Instant, control: &Control) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        // A peer that is gone has to be noticed, whoever would speak next.
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(15))?;
        sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(15))?;
        sockopt::set_tcp_keepcnt(&socket, 3)?;
        sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MS)?;
        Ok(Self {
            socket,
            control: control.clone(),
            until: Some(until),
            came: vec![0; BUFFER],
            left: 0..0,
            goes: Vec::with_capacity(BUFFER),
        })
    }

    /// Again and again, while the only fault is that it takes time.
    fn patiently<T>(&self, mut call: impl FnMut(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        loop {
            match call(&self.socket) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                    self.control.check().map_err(io::Error::other)?;
                    if self.until.is_some_and(|until| Instant::now() >= until) {
                        return Err(io::Error::new(ErrorKind::ConnectionAborted, "It took too long"));
                    }
                }
                done => return done,
            }
        }
    }

    fn has_some(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.left.is_empty() || poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.flush()?;
        if self.left.is_empty() {
            let mut came = std::mem::take(&mut self.came);
            let done = self.patiently(|mut socket| socket.read(&mut came));
            self.came = came;
            self.left = 0..done?;
        }
        let len = room.len().min(self.left.len());
        room[..len].copy_from_slice(&self.came[self.left.start..self.left.start + len]);
        self.left.start += len;
        Ok(len)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.goes.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.goes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What could not be sent is gone: what the other end said last can be read all the same.
        let mut goes = std::mem::take(&mut self.goes);
        let mut sent = 0;
        while sent < goes.len() {
            match self.patiently(|mut socket| socket.write(&goes[sent..]))? {
                0 => return Err(ErrorKind::WriteZero.into()),
                len => sent += len,
            }
        }
        goes.clear();
        self.goes = goes;
        Ok(())
    }
}
