//! Runs one call as oned's driver processes do: own process group, standard input a pipe that is closed after the
//! data, standard output and error read apart.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// How often a running call is looked at.
const TICK: Duration = Duration::from_millis(4);
/// How long processes of a call may outlive it.
const GRACE: Duration = Duration::from_secs(2);

/// What to run.
pub struct Run<'a> {
    /// Words in front of it, see [`super::mounts`].
    pub before: Vec<OsString>,
    /// Path under which the driver is called.
    pub program: &'a Path,
    /// Arguments after the program.
    pub argv: &'a [String],
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: &'a Path,
    /// Everything it may read from standard input.
    pub stdin: Vec<u8>,
    /// When it is too long.
    pub limit: Duration,
    /// The signal to send as soon as the condition holds; the condition gets the running time.
    pub kill: Option<(Signal, &'a dyn Fn(Duration) -> bool)>,
}

/// What came of it.
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub wall: Duration,
    /// It was killed because it took too long.
    pub too_long: bool,
    /// The wanted signal was sent.
    pub signalled: bool,
    /// Processes of it were still there afterwards (they are killed).
    pub left_running: bool,
}

impl Ran {
    /// The exit status as a shell would say it: 128 + n after signal n.
    pub fn rc(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

/// Runs it to its end. Fails only if it cannot be started or waited for.
pub fn run(run: Run<'_>) -> Result<Ran> {
    let started = Instant::now();
    let mut words = run.before.into_iter().chain([run.program.as_os_str().to_owned()]);
    let mut command = Command::new(words.next().context("No program")?);
    command.args(words);
    command.args(run.argv.iter().map(OsStr::new)).env_clear().envs(run.env).current_dir(run.cwd).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command).with_context(|| format!("Cannot start {}", run.program.display()))?;
    let group = Pid::from_child(&child);
    let mut input = child.stdin.take().context("No pipe")?;
    let data = run.stdin;
    // A driver that does not read its input is not at fault: the broken pipe is ignored.
    std::thread::spawn(move || drop(input.write_all(&data)));
    let stdout = drain(child.stdout.take().context("No pipe")?);
    let stderr = drain(child.stderr.take().context("No pipe")?);
    let (status, too_long, signalled) = wait(&mut child, group, started, run.limit, run.kill)?;
    let wall = started.elapsed();
    let left_running = outlived(group);
    let finish = |stream: Receiver<Vec<u8>>| stream.recv_timeout(GRACE).unwrap_or_default();
    Ok(Ran { status, stdout: finish(stdout), stderr: finish(stderr), wall, too_long, signalled, left_running })
}

/// A script that was just written may still be open for writing in a process that another thread is about to start:
/// that passes.
fn start(command: &mut Command) -> std::io::Result<Child> {
    for _ in 0..50 {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(TICK);
            }
            other => return other,
        }
    }
    command.spawn()
}

fn wait(
    child: &mut Child,
    group: Pid,
    started: Instant,
    limit: Duration,
    kill: Option<(Signal, &dyn Fn(Duration) -> bool)>,
) -> Result<(ExitStatus, bool, bool)> {
    let mut signalled = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, false, signalled));
        }
        if started.elapsed() > limit {
            let _ = kill_process_group(group, Signal::KILL);
            return Ok((child.wait()?, true, signalled));
        }
        if let Some((signal, due)) = &kill
            && !signalled
            && due(started.elapsed())
        {
            let _ = kill_process_group(group, *signal);
            signalled = true;
        }
        std::thread::sleep(TICK);
    }
}

/// Waits a moment for the rest of the group, then ends it.
fn outlived(group: Pid) -> bool {
    let since = Instant::now();
    while test_kill_process_group(group).is_ok() {
        if since.elapsed() > GRACE {
            let _ = kill_process_group(group, Signal::KILL);
            return true;
        }
        std::thread::sleep(TICK);
    }
    false
}

fn drain(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}
