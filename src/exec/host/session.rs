//! One authenticated libssh2 connection to a host whose key is known.
//!
//! The session is never blocking: every call that would block waits in [`Connection::wait`], which also watches the
//! cancel flag, the deadline and the keepalive. Nothing here has sent a script yet, so every failure may be answered by
//! trying the OpenSSH client instead.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use ssh2::{BlockDirections, Channel, ErrorCode, MethodType, Session};

use super::super::control::{Control, Stopped};
use super::config::SshConfig;
use super::keys::Identities;
use super::known_hosts::KnownKeys;

/// How long connecting and logging in may take where the configuration sets no `ConnectTimeout`.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Seconds between signs of life on a quiet connection.
const KEEPALIVE_SECONDS: u32 = 15;

/// Milliseconds that sent data, keepalives included, may stay unacknowledged before the connection counts as broken.
const UNACKNOWLEDGED_MS: u32 = 45_000;

/// `LIBSSH2_ERROR_EAGAIN`: the call would have blocked.
const EAGAIN: i32 = -37;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The work had to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}

impl SessionError {
    fn new(what: &str, cause: &dyn std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }
}

/// What one connection needs to know.
#[derive(Clone, Debug)]
pub struct Target {
    config: SshConfig,
    known: KnownKeys,
    identities: Identities,
}

impl Target {
    /// Collects it from the configuration; `Err` says why libssh2 cannot or must not connect to this host.
    ///
    /// # Errors
    /// One sentence with the reason: a setting that libssh2 does not know, an unknown host key, no usable key.
    pub fn find(config: &SshConfig) -> Result<Self, String> {
        if let Some(obstacle) = config.beyond_libssh2() {
            return Err(obstacle);
        }
        let files = [config.files("userknownhostsfile"), config.files("globalknownhostsfile")].concat();
        let known = KnownKeys::read(&files, &config.known_as());
        if known.good.is_empty() {
            // Whether an unknown host may be trusted is for ssh to say (StrictHostKeyChecking).
            return Err("No known_hosts file lists the host".into());
        }
        let identities = Identities::find(config);
        if identities.is_empty() {
            return Err("There is neither a key without passphrase nor an agent".into());
        }
        Ok(Self { config: config.clone(), known, identities })
    }
}

/// An authenticated connection.
pub struct Connection {
    session: Session,
    socket: TcpStream,
}

impl Connection {
    /// Connects, checks the host key, logs in.
    ///
    /// # Errors
    /// [`SessionError`]; no script has been sent.
    pub fn open(target: &Target, control: &Control) -> Result<Self, SessionError> {
        let limit = target.config.get("connecttimeout").and_then(|s| s.parse().ok()).map(Duration::from_secs);
        let until = Instant::now() + limit.unwrap_or(CONNECT_LIMIT);
        let socket = connect(&target.config, target.config.port(), control, until)?;
        let handle = socket.try_clone().map_err(|e| SessionError::new("Cannot use the connection", &e))?;
        let session = Session::new().map_err(|e| SessionError::new("Cannot use libssh2", &e))?;
        let mut connection = Self { session, socket: handle };
        prefer_methods(&connection.session, target)?;
        connection.session.set_tcp_stream(socket);
        connection.session.set_blocking(false);
        connection.handshake(control, until)?;
        match connection.session.host_key() {
            Some((blob, _)) if target.known.accepts(blob) => {}
            _ => return Err(SessionError::Failed("Host key verification failed".into())),
        }
        connection.log_in(target, control, until)?;
        // Not before: a keepalive in the middle of the negotiation is a protocol error.
        connection.session.set_keepalive(true, KEEPALIVE_SECONDS);
        Ok(connection)
    }

    /// Starts a command on a channel of its own.
    ///
    /// # Errors
    /// [`SessionError`]; the command has read nothing.
    pub fn exec(&self, command: &str, control: &Control) -> Result<Channel, SessionError> {
        let until = Instant::now() + CONNECT_LIMIT;
        let mut channel = self.retry("open a channel", control, until, || self.session.channel_session())?;
        self.retry("start the remote shell", control, until, || channel.exec(command))?;
        Ok(channel)
    }

    /// Waits until the socket can do what the last call wanted of it; at most a second, so that callers look around.
    ///
    /// # Errors
    /// [`Stopped`] when the work has to stop.
    pub fn wait(&self, control: &Control) -> Result<(), Stopped> {
        let flags = match self.session.block_directions() {
            BlockDirections::None | BlockDirections::Inbound => PollFlags::IN,
            BlockDirections::Outbound => PollFlags::OUT,
            BlockDirections::Both => PollFlags::IN | PollFlags::OUT,
        };
        wait_for(&self.socket, flags, control)?;
        if !self.is_sending() {
            // Sends only what is due. A broken connection shows in the next call.
            let _ = self.session.keepalive_send();
        }
        Ok(())
    }

    /// Whether a packet of ours is half sent: until it is through, libssh2 must not be asked to send another, which
    /// reading may do.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        matches!(self.session.block_directions(), BlockDirections::Outbound | BlockDirections::Both)
    }

    /// Cuts the connection, so that nothing that is still to be freed can wait for the far side.
    pub fn cut(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn handshake(&mut self, control: &Control, until: Instant) -> Result<(), SessionError> {
        loop {
            match self.session.handshake() {
                Err(error) if would_block(&error) => {
                    self.wait_until("negotiate", control, until)?;
                }
                done => {
                    return done.map_err(|e| SessionError::new("Cannot negotiate", &e.message()));
                }
            }
        }
    }

    /// Calls until it no longer would block.
    fn retry<T>(
        &self,
        what: &str,
        control: &Control,
        until: Instant,
        mut call: impl FnMut() -> Result<T, ssh2::Error>,
    ) -> Result<T, SessionError> {
        loop {
            match call() {
                Err(error) if would_block(&error) => self.wait_until(what, control, until)?,
                done => {
                    return done.map_err(|e| SessionError::new(&format!("Cannot {what}"), &e.message()));
                }
            }
        }
    }

    fn wait_until(&self, what: &str, control: &Control, until: Instant) -> Result<(), SessionError> {
        if Instant::now() >= until {
            return Err(SessionError::new(&format!("Cannot {what}"), &"The host does not answer"));
        }
        Ok(self.wait(control)?)
    }

    /// The agent's keys first, then the files, as ssh does.
    fn log_in(&self, target: &Target, control: &Control, until: Instant) -> Result<(), SessionError> {
        let user = target.config.get("user").unwrap_or("oneadmin");
        let mut refusals = Vec::new();
        if let Some(socket) = &target.identities.agent {
            let only = target.identities.agent_only.as_deref();
            match self.log_in_by_agent(user, socket, only, control, until) {
                Err(SessionError::Failed(cause)) => refusals.push(cause),
                done => return done,
            }
        }
        for file in &target.identities.files {
            let attempt = || self.session.userauth_pubkey_file(user, None, file, None);
            match self.retry(&format!("log in with {}", file.display()), control, until, attempt) {
                Err(SessionError::Failed(cause)) => refusals.push(cause),
                done => return done,
            }
        }
        Err(SessionError::Failed(refusals.join("; ")))
    }

    fn log_in_by_agent(
        &self,
        user: &str,
        socket: &Path,
        only: Option<&[Vec<u8>]>,
        control: &Control,
        until: Instant,
    ) -> Result<(), SessionError> {
        const WHAT: &str = "log in with the agent's keys";
        let failed = |e: ssh2::Error| SessionError::new("Cannot ask the agent", &e.message());
        let mut agent = self.session.agent().map_err(failed)?;
        agent.set_identity_path(socket).map_err(failed)?;
        agent.connect().map_err(failed)?;
        self.retry(WHAT, control, until, || agent.list_identities())?;
        for key in agent.identities().map_err(failed)? {
            if only.is_some_and(|only| !only.iter().any(|blob| blob == key.blob())) {
                continue;
            }
            match self.retry(WHAT, control, until, || agent.userauth(user, &key)) {
                Err(SessionError::Failed(_)) => {}
                done => return done,
            }
        }
        Err(SessionError::Failed("The host accepts no key of the agent".into()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Freeing a session that is not blocking says nothing to the far side; closing the socket does.
        self.cut();
    }
}

/// Whether the call has to be made again.
pub(super) fn would_block(error: &ssh2::Error) -> bool {
    error.code() == ErrorCode::Session(EAGAIN)
}

/// Asks for the host keys that we know, and for no algorithm that the operator excluded.
fn prefer_methods(session: &Session, target: &Target) -> Result<(), SessionError> {
    let known = target.known.algorithms();
    let wanted = [
        (MethodType::HostKey, "hostkeyalgorithms", Some(known)),
        (MethodType::Kex, "kexalgorithms", None),
        (MethodType::CryptCs, "ciphers", None),
        (MethodType::CryptSc, "ciphers", None),
        (MethodType::MacCs, "macs", None),
        (MethodType::MacSc, "macs", None),
    ];
    for (method, key, only) in wanted {
        let Some(allowed) = target.config.get(key) else {
            continue;
        };
        let supported =
            session.supported_algs(method).map_err(|e| SessionError::new("Cannot use libssh2", &e.message()))?;
        let usable = |name: &&str| supported.contains(name) && only.as_ref().is_none_or(|only| only.contains(name));
        let names: Vec<&str> = allowed.split(',').filter(usable).collect();
        if names.is_empty() {
            return Err(SessionError::Failed(format!("libssh2 knows none of the configured {key}")));
        }
        session
            .method_pref(method, &names.join(","))
            .map_err(|e| SessionError::new(&format!("Cannot ask for the configured {key}"), &e.message()))?;
    }
    Ok(())
}

/// Connects to a port of the host that ssh would go to, at the first address that answers. The socket does not block.
///
/// # Errors
/// [`SessionError`]: nobody answers, or not until then.
pub fn connect(config: &SshConfig, port: u16, control: &Control, until: Instant) -> Result<TcpStream, SessionError> {
    let name = config.host_name().ok_or_else(|| SessionError::Failed("ssh -G gives no host name".into()))?;
    let addresses =
        (name, port).to_socket_addrs().map_err(|e| SessionError::new(&format!("Cannot resolve {name}"), &e))?;
    let family = config.get("addressfamily").unwrap_or("any");
    let fits = |a: &SocketAddr| !(family == "inet" && a.is_ipv6() || family == "inet6" && a.is_ipv4());
    let mut last = SessionError::Failed(format!("{name} has no address of family {family}"));
    for address in addresses.filter(fits) {
        match connect_to(&address, control, until) {
            Err(SessionError::Failed(cause)) => last = SessionError::Failed(cause),
            done => return done,
        }
    }
    Err(last)
}

fn connect_to(address: &SocketAddr, control: &Control, until: Instant) -> Result<TcpStream, SessionError> {
    let failed = |e: Errno| SessionError::new(&format!("Cannot connect to {address}"), &std::io::Error::from(e));
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
    match rustix::net::connect(&socket, address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            while !wait_for(&socket, PollFlags::OUT, control)? {
                if Instant::now() >= until {
                    return Err(failed(Errno::TIMEDOUT));
                }
            }
            sockopt::socket_error(&socket).map_err(failed)?.map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    // Small packets go out at once, and a dead peer shows. Both are improvements, not conditions.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MS);
    Ok(TcpStream::from(socket))
}

/// Waits at most a second for the descriptor; `true` if it is ready.
fn wait_for(fd: &impl AsFd, flags: PollFlags, control: &Control) -> Result<bool, Stopped> {
    control.check()?;
    let second = Duration::from_secs(1);
    let left = control.deadline.map_or(second, |at| at.saturating_duration_since(Instant::now()).min(second));
    let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(1), tv_nsec: left.subsec_nanos().into() };
    let mut fds = [PollFd::new(fd, flags), PollFd::new(&control.cancel, PollFlags::IN)];
    // An interrupted wait is a short wait.
    let _ = poll(&mut fds, Some(&timeout));
    let ready = !fds[0].revents().is_empty();
    control.check()?;
    Ok(ready)
}
