//! One child process: spawned in its own process group, fed, drained, waited for by pidfd, killed as a group, always reaped.
//!
//! oned's driver process sends SIGTERM to our process group (contract 01 §11); a child in a group of its own does not get
//! it, so that *we* decide the order and can still roll back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::cmd::{Cmd, Limits, Secret};
use super::control::{Control, Stopped};
use super::leash;

/// Where programs are looked for, whatever `PATH` our caller has.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of standard error that are kept: the last 16 KiB.
pub const STDERR_KEPT: usize = 16 << 10;

/// Bytes of standard output that an answer may have: 64 MiB, more than any listing that we read.
pub const STDOUT_LIMIT: usize = 64 << 20;

/// How long a child may take to end after SIGTERM, before SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// Programs whose name upstream lets the environment override (contract 01 §9), as upstream spells the variable.
const OVERRIDABLE: &[(&str, &str)] = &[
    ("awk", "AWK"),
    ("cp", "CP"),
    ("dd", "DD"),
    ("df", "DF"),
    ("du", "DU"),
    ("iscsiadm", "ISCSIADM"),
    ("lvchange", "LVCHANGE"),
    ("lvcreate", "LVCREATE"),
    ("lvremove", "LVREMOVE"),
    ("lvs", "LVS"),
    ("md5sum", "MD5SUM"),
    ("mkfs", "MKFS"),
    ("mkswap", "MKSWAP"),
    ("qemu-img", "QEMU_IMG"),
    ("rados", "RADOS"),
    ("rbd", "RBD"),
    ("readlink", "READLINK"),
    ("rm", "RM"),
    ("sed", "SED"),
    ("ssh", "SSH"),
    ("sudo", "SUDO"),
    ("tar", "TAR"),
    ("virsh", "VIRSH"),
    ("wget", "WGET"),
];

/// The package that brings a program, where its name does not say it (names of Debian and Ubuntu).
const PACKAGES: &[(&str, &str)] = &[
    ("ceph", "ceph-common"),
    ("cryptsetup", "cryptsetup-bin"),
    ("flock", "util-linux"),
    ("iscsiadm", "open-iscsi"),
    ("lvchange", "lvm2"),
    ("lvconvert", "lvm2"),
    ("lvcreate", "lvm2"),
    ("lvremove", "lvm2"),
    ("lvs", "lvm2"),
    ("mkfs", "util-linux"),
    ("mkfs.ext2", "e2fsprogs"),
    ("mkfs.ext3", "e2fsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkisofs", "genisoimage"),
    ("mkswap", "util-linux"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("rados", "ceph-common"),
    ("rbd", "ceph-common"),
    ("setsid", "util-linux"),
    ("ssh", "openssh-client"),
    ("vgs", "lvm2"),
    ("virsh", "libvirt-clients"),
];

/// How programs are called: upstream's overrides from the environment, else the name looked up in [`SEARCH_PATH`].
#[derive(Clone, Debug, Default)]
pub struct Programs {
    overrides: BTreeMap<String, Vec<OsString>>,
}

impl Programs {
    /// With what the environment overrides: `QEMU_IMG=/opt/qemu/bin/qemu-img`, `SUDO="sudo -n"`. Words are split at blanks.
    #[must_use]
    pub fn from_env() -> Self {
        let mut new = Self::default();
        for (program, variable) in OVERRIDABLE {
            if let Some(value) = std::env::var(variable).ok().filter(|value| !value.trim().is_empty()) {
                new = new.with(program, value.split_whitespace());
            }
        }
        new
    }

    /// Calls `program` by these words instead.
    #[must_use]
    pub fn with<W: AsRef<OsStr>>(mut self, program: &str, words: impl IntoIterator<Item = W>) -> Self {
        let words = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self.overrides.insert(program.to_owned(), words);
        self
    }

    /// The words that a program is called by where nothing is looked up: the override, else its name.
    #[must_use]
    pub fn words(&self, program: &str) -> Vec<OsString> {
        match (self.overrides.get(program), program) {
            (Some(words), _) if !words.is_empty() => words.clone(),
            (_, "sudo") => vec!["sudo".into(), "-n".into()],
            _ => vec![program.into()],
        }
    }

    /// The same with the first word looked up.
    ///
    /// # Errors
    /// [`Missing`], when it is not installed here.
    pub fn find(&self, program: &str) -> Result<Vec<OsString>, Missing> {
        let mut words = self.words(program);
        let missing = || Missing { program: program.to_owned() };
        let first = words.first_mut().ok_or_else(missing)?;
        *first = which::which_in(&*first, Some(SEARCH_PATH), "/").map_err(|_| missing())?.into_os_string();
        Ok(words)
    }

    /// A shell that is given one command line: bash where it is, as upstream's scripts have it, else sh. For lines that are
    /// command lines by contract and come from the operator's own programs; nothing of ours is put together as one.
    #[must_use]
    pub fn command_line(&self, line: OsString) -> Vec<OsString> {
        let shell = self.find("bash").or_else(|_| self.find("sh"));
        let mut argv = shell.unwrap_or_else(|_| vec!["/bin/sh".into()]);
        argv.extend(["-c".into(), line]);
        argv
    }

    /// The whole argument list of a command, sudo and limits included, each word as [`Programs::words`] gives it.
    #[must_use]
    pub fn argv(&self, cmd: &Cmd) -> Vec<OsString> {
        let mut argv = limits_argv(cmd.limits);
        if cmd.sudo {
            argv.extend(self.words("sudo"));
        }
        argv.extend(self.words(&cmd.program));
        argv.extend(cmd.args.iter().cloned());
        argv
    }

    /// The same, with the first word of every program looked up. What sudo runs is only checked: sudoers rules are
    /// about the name that sudo finds itself.
    pub(super) fn found_argv(&self, cmd: &Cmd) -> Result<Vec<OsString>, Missing> {
        let mut argv = limits_argv(cmd.limits);
        if let Some(first) = argv.first_mut() {
            let name = first.to_string_lossy().into_owned();
            *first = self.find(&name)?.remove(0);
        }
        let found = self.find(&cmd.program)?;
        if cmd.sudo {
            argv.extend(self.find("sudo")?);
            argv.extend(self.words(&cmd.program));
        } else {
            argv.extend(found);
        }
        argv.extend(cmd.args.iter().cloned());
        Ok(argv)
    }
}

/// Limits by way of `prlimit(1)`: in force before the program's first instruction, as a call on a child's number would
/// not be, in bytes, as `ulimit` is not in every shell, and inherited through sudo.
fn limits_argv(limits: Limits) -> Vec<OsString> {
    let options = [("cpu", limits.cpu_seconds), ("as", limits.address_space), ("fsize", limits.file_size)];
    let options = options.iter().filter_map(|(name, value)| value.map(|value| format!("--{name}={value}").into()));
    let options: Vec<OsString> = options.collect();
    let mut argv = Vec::new();
    if !options.is_empty() {
        argv = [vec!["prlimit".into()], options, vec!["--".into()]].concat();
    }
    if let Some(seconds) = limits.wall_seconds {
        // In the group that it is started in: what ends a script whose connection is gone ends that group.
        // Verbose: a program that somebody else kills has the same status.
        let words = ["timeout", "-v", "--foreground", "-s", "KILL"];
        argv.extend(words.into_iter().map(Into::into).chain([format!("{seconds}s").into()]));
    }
    argv
}

/// A program that is not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot find the program {program}: install the package {}", package(program))]
pub struct Missing {
    /// Its name.
    pub program: String,
}

fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

/// A child to be run.
#[derive(Clone, Debug)]
pub struct Spawn {
    /// Program and arguments, the program as an absolute path.
    pub argv: Vec<OsString>,
    /// Environment on top of ours.
    pub env: Vec<(String, Secret)>,
    /// The command for people, without secrets.
    pub shown: String,
    /// Exit statuses besides 0 that count as success.
    pub also_ok: Vec<i32>,
    /// Texts that are struck out of standard error before anybody sees it.
    pub hidden: Vec<Secret>,
    /// Whether it dies with us, see [`leash`]: not worth its millisecond for a program that only answers and ends.
    pub on_leash: bool,
}

impl Spawn {
    /// What has to be run for `cmd`. Its [`Cmd::secret_stdin`] is up to the caller, see [`ProcessIo::of`].
    ///
    /// # Errors
    /// When a program is missing.
    pub fn of(cmd: &Cmd, programs: &Programs) -> Result<Self, ProcessError> {
        let shown = cmd.to_string();
        let argv = match programs.found_argv(cmd) {
            Ok(argv) => argv,
            Err(missing) => return Err(ProcessError::new(shown, ProcessErrorKind::Missing(missing))),
        };
        let hidden = cmd.secret_env.iter().map(|(_, value)| value).chain(&cmd.secret_stdin).cloned().collect();
        Ok(Self { argv, env: cmd.secret_env.clone(), shown, also_ok: cmd.also_ok.clone(), hidden, on_leash: true })
    }
}

/// Standard input of a child.
#[derive(Default)]
pub enum Stdin<'a> {
    /// `/dev/null`.
    #[default]
    Null,
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this reader gives. [`run`] returns only after a read that is under way, so the reader must not block for
    /// ever: [`Control::reader`], or a source that ends with the connection.
    Stream(&'a mut (dyn Read + Send)),
    /// This file, handed to the child.
    File(File),
}

/// Standard output of a child.
pub enum Stdout<'a> {
    /// Captured; more than this many bytes is an error.
    Capture(usize),
    /// Copied to a writer.
    Writer(&'a mut (dyn Write + Send)),
    /// This file, handed to the child.
    File(File),
    /// Dropped.
    Null,
}

impl Default for Stdout<'_> {
    fn default() -> Self {
        Self::Capture(STDOUT_LIMIT)
    }
}

/// Input and output of a child; standard error is always captured.
#[derive(Default)]
pub struct ProcessIo<'a> {
    /// Standard input.
    pub stdin: Stdin<'a>,
    /// Standard output.
    pub stdout: Stdout<'a>,
}

impl ProcessIo<'_> {
    /// The standard input that `cmd` asks for; output captured.
    #[must_use]
    pub fn of(cmd: &Cmd) -> Self {
        let stdin = match &cmd.secret_stdin {
            Some(text) => Stdin::Bytes(text.reveal().as_bytes().to_vec()),
            None => Stdin::Null,
        };
        Self { stdin, stdout: Stdout::default() }
    }
}

/// A child that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Exit status: 0 or one of [`Spawn::also_ok`].
    pub status: i32,
    /// What was captured.
    pub stdout: Vec<u8>,
    /// The last [`STDERR_KEPT`] bytes of standard error, secrets struck out.
    pub stderr: String,
}

/// A child that did not end well. Its text is one line.
#[derive(Debug)]
pub struct ProcessError {
    /// The command for people.
    pub command: String,
    /// What happened.
    pub kind: ProcessErrorKind,
    /// The last [`STDERR_KEPT`] bytes of standard error, secrets struck out.
    pub stderr: String,
}

/// What happened to a child.
#[derive(Debug)]
pub enum ProcessErrorKind {
    /// The program is not installed.
    Missing(Missing),
    /// It could not be started.
    Spawn(io::Error),
    /// It ended with this exit status.
    Status(i32),
    /// It was ended by this signal, which was not ours.
    Signal(i32),
    /// It ran for longer than these seconds: [`Limits::wall_seconds`].
    OverTime(u64),
    /// We ended it.
    Stopped(Stopped),
    /// It wrote more than this many bytes.
    TooMuch(usize),
    /// Its input could not be read, or its output not written.
    Io(io::Error),
}

impl ProcessError {
    fn new(command: String, kind: ProcessErrorKind) -> Self {
        Self { command, kind, stderr: String::new() }
    }

    /// The same with [`ProcessErrorKind::OverTime`], where `timeout(1)` says that it has killed the program.
    #[must_use]
    pub fn within_limits_of(mut self, cmd: &Cmd) -> Self {
        let killed = matches!(self.kind, ProcessErrorKind::Status(137) | ProcessErrorKind::Signal(9));
        let said = || self.stderr.lines().any(|line| line.contains("timeout: sending signal KILL to command"));
        if let Some(seconds) = cmd.limits.wall_seconds
            && killed
            && said()
        {
            self.kind = ProcessErrorKind::OverTime(seconds);
        }
        self
    }
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = &self.command;
        match &self.kind {
            ProcessErrorKind::Missing(missing) => return write!(f, "{missing}"),
            ProcessErrorKind::Spawn(_) => return write!(f, "Cannot start {command}"),
            ProcessErrorKind::TooMuch(limit) => return write!(f, "{command} wrote more than {limit} bytes"),
            ProcessErrorKind::Io(_) => return write!(f, "Cannot pass data through {command}"),
            ProcessErrorKind::Status(status) => write!(f, "{command} failed with exit status {status}")?,
            ProcessErrorKind::Signal(signal) => write!(f, "{command} was ended by signal {signal}")?,
            ProcessErrorKind::OverTime(seconds) => {
                return write!(f, "{command} ran for more than {seconds} seconds, its limit, and was killed");
            }
            ProcessErrorKind::Stopped(Stopped::Cancelled) => return write!(f, "{command} was cancelled by a signal"),
            ProcessErrorKind::Stopped(Stopped::Deadline) => {
                return write!(f, "{command} took too long and was stopped");
            }
        }
        match last_words(&self.stderr) {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ProcessError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ProcessErrorKind::Spawn(error) | ProcessErrorKind::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The line of a program's standard error that says most: the last one that is not a hint at its manual.
#[must_use]
pub fn last_words(stderr: &str) -> Option<String> {
    let noise = |line: &&str| line.is_empty() || (line.starts_with("Try ") && line.contains("--help"));
    let line = stderr.lines().map(str::trim).rfind(|line| !noise(line))?;
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

/// Runs one child to its end.
///
/// On cancellation or at the deadline the child's group gets SIGTERM, [`GRACE`] later SIGKILL. Output that a surviving
/// grandchild writes after the child's end is not waited for.
///
/// # Errors
/// [`ProcessError`]. A child that has succeeded in the very moment of a cancellation has succeeded.
pub fn run(spawn: &Spawn, io: ProcessIo<'_>, control: &Control) -> Result<Finished, ProcessError> {
    let error = |kind| ProcessError::new(spawn.shown.clone(), kind);
    control.check().map_err(|stopped| error(ProcessErrorKind::Stopped(stopped)))?;
    let (mut running, stdin, stdout) = start(spawn, io).map_err(|cause| error(ProcessErrorKind::Spawn(cause)))?;
    let mut output = Output { to: stdout, captured: Vec::new(), stderr: Vec::new(), failed: None };
    let (ended, fed) = thread::scope(|scope| {
        // The feeder is told to stop by this pair when the child has ended.
        let (stop, stopped) = UnixStream::pair()?;
        let feeder = running.child.stdin.take().map(|pipe| scope.spawn(move || feed(stdin, &pipe, &stopped)));
        let ended = running.wait(&mut output, control);
        drop(stop);
        let fed = feeder.map_or(Ok(()), |feeder| {
            feeder.join().unwrap_or_else(|_| Err(io::Error::other("The reader of the input panicked")))
        });
        Ok::<_, io::Error>((ended, fed))
    })
    .map_err(|cause| error(ProcessErrorKind::Io(cause)))?;
    let stderr = strike_out(&output.stderr, &spawn.hidden);
    let error = |kind| Err(ProcessError { command: spawn.shown.clone(), kind, stderr: stderr.clone() });
    let (status, stopped) = match ended {
        Ok(ended) => ended,
        Err(cause) => return error(ProcessErrorKind::Io(cause)),
    };
    if let Some(failed) = output.failed {
        return error(failed);
    }
    let good = status.code().filter(|code| *code == 0 || spawn.also_ok.contains(code));
    if let (Some(stopped), None) = (stopped, good) {
        return error(ProcessErrorKind::Stopped(stopped));
    }
    // A broken input explains a child that failed for want of it, and spoils one that did not notice.
    if let Err(cause) = fed {
        return error(ProcessErrorKind::Io(cause));
    }
    match (good, status.code()) {
        (Some(status), _) => Ok(Finished { status, stdout: output.captured, stderr }),
        (None, Some(code)) => error(ProcessErrorKind::Status(code)),
        (None, None) => error(ProcessErrorKind::Signal(status.signal().unwrap_or_default())),
    }
}

/// Spawns the child in a group of its own.
fn start<'a>(spawn: &Spawn, io: ProcessIo<'a>) -> io::Result<(Running, Stdin<'a>, Stdout<'a>)> {
    let (program, args) =
        spawn.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "No program"))?;
    let mut command = if spawn.on_leash { leash::command(program) } else { std::process::Command::new(program) };
    command.args(args).env("LC_ALL", "C").env("LANG", "C").process_group(0).stderr(Stdio::piped());
    for (name, value) in &spawn.env {
        command.env(name, value.reveal());
    }
    let stdin = match io.stdin {
        Stdin::Null => {
            command.stdin(Stdio::null());
            Stdin::Null
        }
        Stdin::File(file) => {
            command.stdin(file);
            Stdin::Null
        }
        fed => {
            command.stdin(Stdio::piped());
            fed
        }
    };
    let stdout = match io.stdout {
        Stdout::File(file) => {
            command.stdout(file);
            Stdout::Null
        }
        Stdout::Null => {
            command.stdout(Stdio::null());
            Stdout::Null
        }
        piped => {
            command.stdout(Stdio::piped());
            piped
        }
    };
    let child = command.spawn()?;
    Ok((Running { child, reaped: false }, stdin, stdout))
}

/// A child that is killed and reaped when it is dropped before its end, as by a panic.
struct Running {
    child: Child,
    reaped: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // Failing means that the child is gone, or root's: then waiting for it would take for ever.
            if self.signal(Signal::KILL).is_ok() {
                let _ = self.child.wait();
            }
        }
    }
}

impl Running {
    fn signal(&self, signal: Signal) -> io::Result<()> {
        kill_process_group(Pid::from_child(&self.child), signal).map_err(io::Error::from)
    }

    /// Waits for the end while draining both outputs. Also tells whether we ended it.
    fn wait(&mut self, output: &mut Output<'_>, control: &Control) -> io::Result<(ExitStatus, Option<Stopped>)> {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        for fd in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let mut stopped = None;
        let mut kill_at = None;
        loop {
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            fds.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            if stopped.is_none() {
                fds.push(PollFd::new(&control.cancel, PollFlags::IN));
            }
            wait_for(&mut fds, if stopped.is_none() { control.deadline } else { kill_at })?;
            let ended = fds[0].revents().intersects(PollFlags::IN);
            drop(fds);
            // What a child wrote before its end is in the pipe by now; what a grandchild may still write is not ours.
            if stdout.as_mut().is_some_and(|pipe| output.drain(pipe, Output::out)) {
                stdout = None;
            }
            if stderr.as_mut().is_some_and(|pipe| output.drain(pipe, Output::err)) {
                stderr = None;
            }
            if ended {
                break;
            }
            if stopped.is_none() {
                let give_up = output.failed.is_some().then_some(Stopped::Cancelled);
                stopped = control.check().err().or(give_up);
                if stopped.is_some() {
                    let _ = self.signal(Signal::TERM);
                    kill_at = Instant::now().checked_add(GRACE);
                }
            } else if kill_at.is_some_and(|at| Instant::now() >= at) {
                self.signal(Signal::KILL)?;
                kill_at = None;
            }
        }
        if stopped.is_some() {
            // The child is a zombie still, so that its number cannot be another group's: what is left of the group goes.
            let _ = self.signal(Signal::KILL);
        }
        let status = self.child.wait()?;
        self.reaped = true;
        Ok((status, stopped))
    }
}

/// `poll` until something happens or `until`.
fn wait_for(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What becomes of a child's output.
struct Output<'a> {
    to: Stdout<'a>,
    captured: Vec<u8>,
    stderr: Vec<u8>,
    failed: Option<ProcessErrorKind>,
}

impl Output<'_> {
    /// Takes what is in the pipe; `true` at its end.
    fn drain(&mut self, pipe: &mut impl Read, mut take: impl FnMut(&mut Self, &[u8])) -> bool {
        let mut block = vec![0; 64 << 10];
        // Not for ever: a child that writes faster than we read must not keep us from looking at the clock.
        for _ in 0..16 {
            match pipe.read(&mut block) {
                Ok(0) => return true,
                Ok(len) => take(self, &block[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }

    fn out(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        match &mut self.to {
            Stdout::Capture(limit) if self.captured.len() + bytes.len() > *limit => {
                self.failed = Some(ProcessErrorKind::TooMuch(*limit));
            }
            Stdout::Capture(_) => self.captured.extend_from_slice(bytes),
            Stdout::Writer(writer) => {
                self.failed = writer.write_all(bytes).err().map(ProcessErrorKind::Io);
            }
            Stdout::File(_) | Stdout::Null => {}
        }
    }

    fn err(&mut self, bytes: &[u8]) {
        self.stderr.extend_from_slice(bytes);
        let extra = self.stderr.len().saturating_sub(STDERR_KEPT);
        self.stderr.drain(..extra);
    }
}

/// Writes a child's input until it ends, the child closes it, or `stopped` is hung up.
fn feed(stdin: Stdin<'_>, pipe: &std::process::ChildStdin, stopped: &UnixStream) -> io::Result<()> {
    rustix::io::ioctl_fionbio(pipe, true)?;
    match stdin {
        Stdin::Null | Stdin::File(_) => Ok(()),
        Stdin::Bytes(bytes) => write_until(pipe, &bytes, stopped.as_fd()).map(|_| ()),
        Stdin::Stream(reader) => {
            let mut block = vec![0; 256 << 10];
            loop {
                let len = match reader.read(&mut block) {
                    Ok(0) => return Ok(()),
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                if !write_until(pipe, &block[..len], stopped.as_fd())? {
                    return Ok(());
                }
            }
        }
    }
}

/// `false` when nobody reads any more, which is the child's good right.
fn write_until(mut pipe: &std::process::ChildStdin, mut bytes: &[u8], stopped: BorrowedFd<'_>) -> io::Result<bool> {
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) => match error.kind() {
                io::ErrorKind::BrokenPipe => return Ok(false),
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    let mut fds =
                        [PollFd::new(&pipe, PollFlags::OUT), PollFd::from_borrowed_fd(stopped, PollFlags::IN)];
                    wait_for(&mut fds, None)?;
                    if !fds[1].revents().is_empty() {
                        return Ok(false);
                    }
                }
                _ => return Err(error),
            },
        }
    }
    Ok(true)
}

/// The text of standard error with secrets struck out: programs like to quote what they were given.
fn strike_out(stderr: &[u8], hidden: &[Secret]) -> String {
    let mut text = String::from_utf8_lossy(stderr).into_owned();
    for secret in hidden {
        for line in secret.reveal().lines().map(str::trim).filter(|line| line.len() > 3) {
            text = text.replace(line, "***");
        }
    }
    text
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
