//! Runs a program and everything that it starts under ptrace, counts its state-changing calls, and disturbs one of them.
//!
//! The program is started by way of this binary itself ([`become_traced`]): it asks to be traced, puts a seccomp filter
//! over itself that stops it at the calls of [`super::calls`] and at no others, and turns into the program. So the kernel
//! picks the calls, and a run costs few more milliseconds than an undisturbed one. A process that is killed at such a
//! stop does not make the call; and one whose registers are changed there makes another one, or none ([`super::fault`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::calls::{self, Call, Effect};
use super::fault::{Fault, Way};
use super::same::Changes;

/// Word for the command line of this binary that makes it the traced program.
pub const WORD: &str = "crash-traced";
/// The same, stopped at `close` too.
pub const CLOSING: &str = "crash-traced-closing";

/// How long processes may outlive the first one.
const GRACE: Duration = Duration::from_secs(15);
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Whose calls are counted, and who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Who {
    /// The action's process, at any call of it or of its children
    #[value(name = "self")]
    Itself,
    /// The child that makes the call
    Children,
    /// Everything at the other end of ssh, at any call over there
    Remote,
}

/// A process, stopped at the entry of a call that counts.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pid: Pid,
    call: Call,
}

impl Stop {
    /// It in words.
    pub fn point(self) -> Point {
        let program = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default().trim_end().to_owned();
        Point { program, call: self.call.name, about: self.call.about(self.pid) }
    }
}

/// A call that was counted, for people.
#[derive(Clone, Debug)]
pub struct Point {
    /// Name of the program that made it.
    pub program: String,
    /// Name of the call.
    pub call: &'static str,
    /// What it was about.
    pub about: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.program, self.call, self.about)
    }
}

/// What is done to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing: it is made.
    Let,
    /// It is not made, since the process is killed.
    Kill,
    /// It fails, or does half of its work.
    Fault(Fault),
}

/// Says what is done at each call that changes something.
pub trait Plan {
    /// Whether this call of a stopped process counts at all; `child`: it is not the action's own.
    fn counts(&self, _pid: Pid, _child: bool, _call: &Call) -> bool {
        true
    }

    /// Whether stops are left out at which a kill finds what it would have found at the one before ([`super::same`]).
    fn leaves_out_the_same(&self) -> bool {
        false
    }

    /// What is done to a call that counts.
    fn deed(&mut self, stop: Stop) -> Deed;
}

/// What a traced run came to.
#[derive(Debug, Default)]
pub struct Trace {
    /// Wait status of the first process: exit code, or 128 and the signal.
    pub status: i32,
    /// Where it was disturbed.
    pub disturbed: Option<Point>,
    /// Stops that were left out.
    pub same: usize,
    /// Processes that had to be ended.
    pub lingering: Vec<String>,
    /// It took too long.
    pub too_long: bool,
}

/// Asks to be traced, and becomes the program; with `closes`, one that is stopped at `close` too.
///
/// # Errors
/// The kernel refuses one of them; on success this does not return.
pub fn become_traced(words: &[OsString], closes: bool) -> Result<std::convert::Infallible> {
    let (program, arguments) = words.split_first().context("No program")?;
    ptrace::traceme().context("Cannot be traced")?;
    raise(Signal::SIGSTOP)?;
    let rules: BTreeMap<i64, Vec<_>> = calls::numbers(closes).map(|number| (number, Vec::new())).collect();
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), std::env::consts::ARCH.try_into()?)?;
    let filter: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&filter).context("Cannot put up the filter")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("Cannot run {}", program.display()))
}

/// A command that runs `program` traced, at `close` too if `closes`; arguments, environment and descriptors are the
/// caller's to add.
///
/// # Errors
/// This binary cannot be found.
pub fn command(program: &std::path::Path, closes: bool) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("Cannot find this binary")?);
    command.arg(if closes { CLOSING } else { WORD }).arg(program);
    Ok(command)
}

/// What the watchdog and the loop both know.
#[derive(Default)]
struct Shared {
    first: i32,
    traced: BTreeSet<i32>,
    until: Option<Instant>,
    over: bool,
    lingering: Vec<String>,
    too_long: bool,
}

/// Follows a child that [`command`] started, to the end of it and of everything that it started.
///
/// Has to be called by the thread that started it: that is the tracer.
///
/// # Errors
/// The kernel refuses to trace.
pub fn follow(child: &Child, who: Who, plan: &mut dyn Plan) -> Result<Trace> {
    let first = Pid::from_raw(i32::try_from(child.id())?);
    match waitpid(first, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => bail!("The traced program did not start: {other:?}"),
    }
    ptrace::setoptions(
        first,
        Options::PTRACE_O_EXITKILL
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACESYSGOOD,
    )?;
    let shared = Arc::new(Mutex::new(Shared {
        first: first.as_raw(),
        until: Some(Instant::now() + LIMIT),
        ..Shared::default()
    }));
    lock(&shared).traced.insert(first.as_raw());
    let watchdog = {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || watch(&shared))
    };
    ptrace::cont(first, None)?;
    let mut trace = Trace::default();
    let result = events(first, who, plan, &shared, &mut trace);
    lock(&shared).over = true;
    watchdog.thread().unpark();
    let _ = watchdog.join();
    let mut shared = lock(&shared);
    trace.lingering = std::mem::take(&mut shared.lingering);
    trace.too_long = shared.too_long;
    result.map(|()| trace)
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn events(first: Pid, who: Who, plan: &mut dyn Plan, shared: &Mutex<Shared>, trace: &mut Trace) -> Result<()> {
    let mut known = BTreeSet::from([first.as_raw()]);
    let mut stopped_once = known.clone();
    let mut began = false;
    // Calls that are made, and are to answer this in the place of what the kernel says.
    let mut answers = BTreeMap::new();
    let mut changes = Changes::default();
    loop {
        // Other children of this thread are none of ours and may live on: nobody is waited for when all of ours are gone.
        let mut flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        if known.is_empty() {
            flags |= WaitPidFlag::WNOHANG;
        }
        let status = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("Cannot wait for traced processes"),
        };
        match status {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                known.remove(&pid.as_raw());
                stopped_once.remove(&pid.as_raw());
                answers.remove(&pid.as_raw());
                changes.has_gone(pid);
                lock(shared).traced.remove(&pid.as_raw());
                if pid == first {
                    trace.status = match status {
                        WaitStatus::Exited(_, code) => code,
                        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                        _ => 0,
                    };
                    lock(shared).until = Some(Instant::now() + GRACE);
                }
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                known.insert(pid.as_raw());
                let made =
                    [libc::PTRACE_EVENT_CLONE, libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_VFORK].contains(&event);
                if made && let Ok(new) = ptrace::getevent(pid) {
                    let new = i32::try_from(new)?;
                    known.insert(new);
                    lock(shared).traced.insert(new);
                }
                if event == libc::PTRACE_EVENT_EXEC {
                    // What came before was this binary on its way.
                    began = true;
                    changes.has_gone(pid);
                } else if event == libc::PTRACE_EVENT_SECCOMP && began {
                    let answer = at_call(pid, first, who, plan, trace, &mut changes);
                    if answer.is_some() || changes.is_open(pid) {
                        answers.extend(answer.map(|answer| (pid.as_raw(), answer)));
                        let _ = ptrace::syscall(pid, None);
                        continue;
                    }
                }
                resume(pid, None);
            }
            WaitStatus::PtraceSyscall(pid) => {
                changes.has_ended(pid);
                if let Some(answer) = answers.remove(&pid.as_raw()) {
                    // One that was killed meanwhile hears no answer.
                    let _ = calls::answer(pid, answer);
                }
                resume(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => {
                known.insert(pid.as_raw());
                lock(shared).traced.insert(pid.as_raw());
                let new = stopped_once.insert(pid.as_raw());
                // A new process or thread begins with a stop of the kernel's.
                resume(pid, (!(new && signal == Signal::SIGSTOP) && signal != Signal::SIGTRAP).then_some(signal));
            }
            _ => {}
        }
    }
}

/// One that was killed meanwhile cannot be resumed, and need not.
fn resume(pid: Pid, signal: Option<Signal>) {
    let _ = ptrace::cont(pid, signal);
}

/// Does what the plan says; gives what the call is to answer when it was made, if that is something else.
fn at_call(
    pid: Pid,
    first: Pid,
    who: Who,
    plan: &mut dyn Plan,
    trace: &mut Trace,
    changes: &mut Changes,
) -> Option<Errno> {
    let group = group(pid).ok()?;
    // A process that was killed meanwhile has no call to read.
    let call = calls::of(pid).ok()??;
    let counts = !(who == Who::Children && group == first) && plan.counts(pid, group != first, &call);
    if plan.leaves_out_the_same() {
        let victim = if who == Who::Children { group } else { first };
        let same = counts && changes.none_since_kill_of(victim);
        // Who is about to end does nothing more, whoever is killed; but its parent hears of it.
        let ends = who == Who::Itself && group != first && call.name == "exit_group";
        changes.begin(pid, if ends { Effect::None } else { call.effect() });
        if same {
            trace.same += 1;
            return None;
        }
    }
    if !counts {
        return None;
    }
    let stop = Stop { pid, call };
    match plan.deed(stop) {
        Deed::Let => return None,
        Deed::Kill => {
            trace.disturbed = Some(stop.point());
            let _ = match who {
                Who::Itself => kill(first, Signal::SIGKILL),
                Who::Children => kill(group, Signal::SIGKILL),
                Who::Remote => kill(Pid::from_raw(0), Signal::SIGKILL),
            };
        }
        Deed::Fault(fault) => {
            let point = stop.point();
            let way = fault.inject(pid, &call).ok()?;
            trace.disturbed = Some(point);
            return if let Way::Afterwards(answer) = way { Some(answer) } else { None };
        }
    }
    None
}

/// The process that a thread belongs to.
fn group(thread: Pid) -> Result<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:")).context("No Tgid")?;
    Ok(Pid::from_raw(line.trim().parse()?))
}

fn watch(shared: &Mutex<Shared>) {
    let mut before = Instant::now();
    loop {
        {
            let mut shared = lock(shared);
            // Somebody stopped all of us for a while: that time is nobody's.
            let stopped = before.elapsed();
            if stopped > Duration::from_secs(5) {
                shared.until = shared.until.map(|until| until + stopped);
            }
            before = Instant::now();
            if shared.over {
                return;
            }
            if shared.until.is_some_and(|until| Instant::now() > until) {
                shared.too_long |= shared.traced.contains(&shared.first);
                for pid in shared.traced.clone() {
                    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    shared.lingering.push(String::from_utf8_lossy(&line).replace('\0', " "));
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                shared.until = Some(Instant::now() + GRACE);
            }
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
