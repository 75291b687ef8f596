//! Runs one command as oned's driver process would, and measures it from outside: wall, CPU, peak memory, children.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use wait4::Wait4 as _;

use super::stop::Stop;

/// What fits into a pipe before anybody reads it: half of its usual 64 KiB.
const FITS_A_PIPE: u64 = 32 * 1024;

/// How long a killed command may take to undo its work.
const GRACE: Duration = Duration::from_secs(10);

/// A command with all that it gets from its caller.
pub struct Call {
    /// The program, as an absolute path or a name on PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// File whose bytes come through a pipe on standard input; none: an empty pipe.
    pub stdin: Option<PathBuf>,
}

/// How often a wait looks whether a signal arrived.
const SLICE: Duration = Duration::from_millis(500);

/// What one run cost.
pub struct Sample {
    /// From before the start until the end was seen.
    pub wall: Duration,
    /// User and system time, with all descendants that were waited for.
    pub cpu: Duration,
    /// Largest resident set of the process or of a descendant, bytes.
    pub peak: u64,
    /// Standard output.
    pub stdout: String,
}

/// How a run ended.
pub enum Ended {
    /// Exit status 0.
    Well(Sample),
    /// Another status; the last line that it wrote to standard error, or its standard output.
    Badly(String),
}

/// Where and how long runs take place.
pub struct Bounds<'a> {
    /// A directory for the files that take the output.
    pub scratch: &'a Path,
    /// After this time the run is killed and counts as failed.
    pub deadline: Duration,
    /// Ends the run early.
    pub stop: &'a Stop,
}

/// Runs `call` once. It leads its own process group, as under oned.
///
/// # Errors
/// It cannot be started; a signal asked for the end.
pub fn run(call: &Call, bounds: &Bounds<'_>) -> Result<Ended> {
    let (out, err) = (bounds.scratch.join("stdout"), bounds.scratch.join("stderr"));
    let mut command = Command::new(&call.program);
    command.args(&call.args).env_clear().envs(call.env.iter().map(|(k, v)| (k, v))).current_dir(&call.cwd);
    command.stdout(create(&out)?).stderr(create(&err)?).process_group(0);
    let (reader, mut writer) = io::pipe().context("Cannot make a pipe")?;
    command.stdin(Stdio::from(reader));
    let mut input = call.stdin.as_deref().map(open).transpose()?;
    let small = match &input {
        Some(file) => file.metadata()?.len() <= FITS_A_PIPE,
        None => true,
    };
    if small && let Some(file) = &mut input {
        io::copy(file, &mut writer).context("Cannot fill the pipe")?;
    }

    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("Cannot start {}", call.program.display()))?;
    // Our copies of the pipe's ends have to go, else the reader never sees its end.
    drop(command);
    let feeder = if small {
        drop(writer);
        None
    } else {
        input.map(|mut file| thread::spawn(move || io::copy(&mut file, &mut writer).map(drop)))
    };
    let ended = wait(&child, bounds)?;
    let wall = start.elapsed();
    let used = child.wait4().with_context(|| format!("Cannot wait for {}", call.program.display()))?;
    if let Some(feeder) = feeder {
        // A broken pipe is the reader's decision, and shows in its exit status.
        let _ = feeder.join();
    }
    match ended {
        Wait::Ended => {}
        Wait::Stopped => bounds.stop.check()?,
        Wait::Late => return Ok(Ended::Badly(format!("longer than {} s", bounds.deadline.as_secs()))),
    }
    let stdout = text(&out)?;
    if !used.status.success() {
        let stderr = text(&err)?;
        let said = if stderr.trim().is_empty() { &stdout } else { &stderr };
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        return Ok(Ended::Badly(format!("{}: {last}", used.status)));
    }
    Ok(Ended::Well(Sample { wall, cpu: used.rusage.utime + used.rusage.stime, peak: used.rusage.maxrss, stdout }))
}

/// Runs `call` once more under `strace` and counts the processes, not threads, that it and its descendants start.
/// None where `strace` is not installed or may not trace.
///
/// # Errors
/// A signal asked for the end.
pub fn children(call: &Call, bounds: &Bounds<'_>) -> Result<Option<usize>> {
    let trace = bounds.scratch.join("strace");
    let options = ["-f", "--seccomp-bpf", "-qq", "-e", "trace=clone,?clone3,?fork,?vfork", "-e", "signal=none", "-o"];
    let mut args: Vec<OsString> = options.map(OsString::from).to_vec();
    args.extend([trace.clone().into(), "--".into(), call.program.clone().into()]);
    args.extend(call.args.iter().cloned());
    let traced = Call {
        program: PathBuf::from("strace"),
        args,
        env: call.env.clone(),
        cwd: call.cwd.clone(),
        stdin: call.stdin.clone(),
    };
    let ended = run(&traced, bounds);
    bounds.stop.check()?;
    match ended {
        Ok(Ended::Well(_)) => Ok(Some(count_processes(&text(&trace)?))),
        Ok(Ended::Badly(_)) | Err(_) => Ok(None),
    }
}

/// Counts the calls in strace's output that start a process: `resumed` lines repeat a call, threads share their group.
fn count_processes(trace: &str) -> usize {
    let starts = ["clone(", "clone3(", "fork(", "vfork("];
    trace
        .lines()
        .filter(|line| {
            // Lines begin with the process id, padded.
            let call = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
            starts.iter().any(|start| call.starts_with(start)) && !call.contains("CLONE_THREAD")
        })
        .count()
}

enum Wait {
    Ended,
    Stopped,
    Late,
}

/// Waits for the end without reaping, so that `wait4` can tell what was used.
fn wait(child: &Child, bounds: &Bounds<'_>) -> Result<Wait> {
    let pid = Pid::from_child(child);
    let fd = pidfd_open(pid, PidfdFlags::empty()).context("Cannot watch a process (pidfd_open)")?;
    let gone = |limit: Duration, stoppable: bool| -> Result<bool> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if stoppable && bounds.stop.requested() {
                return Ok(false);
            }
            // In slices: a signal may interrupt another thread than this one.
            let slice = left.min(SLICE);
            let timeout = Timespec { tv_sec: i64::try_from(slice.as_secs())?, tv_nsec: slice.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if slice == left => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error).context("Cannot wait for a process (poll)"),
            }
        }
    };
    if gone(bounds.deadline, true)? {
        return Ok(Wait::Ended);
    }
    // The group may be gone meanwhile; then there is nothing to kill.
    let _ = kill_process_group(pid, Signal::TERM);
    gone(GRACE, false)?;
    let _ = kill_process_group(pid, Signal::KILL);
    Ok(if bounds.stop.requested() { Wait::Stopped } else { Wait::Late })
}

/// Runs a helper of the bench itself (mount, gzip) to its end.
///
/// # Errors
/// It cannot be started, or fails: with its last line of standard error.
pub fn helper(program: &str, args: &[&std::ffi::OsStr], stdout: Stdio) -> Result<()> {
    // Its own group: Ctrl-C reaches us, and we decide.
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("Cannot start {program}: is it installed?"))?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{program} failed ({status}): {}", said.lines().last().unwrap_or("no message"));
    }
    Ok(())
}

/// Writes progress for the person who waits.
pub fn progress(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("Cannot create {}", path.display()))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("Cannot open {}", path.display()))
}

fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::count_processes;

    #[test]
    fn threads_and_resumed_lines_are_not_processes() {
        let trace = "\
            12  clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x1}, 88) = 13\n\
            12    clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD <unfinished ...>\n\
            12    <... clone resumed>, child_tidptr=0x7f) = 14\n\
            14    clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD, exit_signal=0}, 88) = 15\n\
            14    vfork( <unfinished ...>\n\
            14    <... vfork resumed>) = 16\n";
        assert_eq!(count_processes(trace), 3);
    }
}
