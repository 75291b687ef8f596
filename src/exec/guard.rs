//! What is run when a script ends, however it ends: also when whoever runs it is killed or the connection breaks.
//!
//! A guard is a process in a session of its own, so that no signal to our process group reaches it. It reads a pipe whose
//! other end the runner of the script holds: the end of the pipe is the end of the runner, and no process can die without
//! closing its descriptors. Both interpreters start the same one, [`PROGRAM`].

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::cmd::Cmd;
use super::process::{Missing, ProcessError, ProcessErrorKind, Programs, STDERR_KEPT};

/// The guard as a program of sh: its first argument is [`ALWAYS`] or [`ON_FAILURE`], the others are the command.
///
/// It says `up` when nothing but SIGKILL can end it any more. Three tries, a second apart: what stands in the way is often
/// what the script itself had begun.
pub(super) const PROGRAM: &str = "trap '' HUP INT QUIT TERM PIPE\n\
    echo up; exec >/dev/null\n\
    w=; while read -r l; do w=$l; done\n\
    [ \"$1$w\" != failurewell ] || exit 0\n\
    k=$1; shift; n=1\n\
    until o=$(\"$@\" 2>&1 </dev/null); do s=$?\n\
    [ \"$k$n\" != failure3 ] || exit 0\n\
    [ \"$n\" -lt 3 ] || { printf '%s\\n' \"$o\" >&2; exit \"$s\"; }\n\
    n=$((n + 1)); sleep 1; done";

/// The command is run in any case.
pub(super) const ALWAYS: &str = "always";

/// The command is run unless the script came to its end.
pub(super) const ON_FAILURE: &str = "failure";

/// What the runner says into the pipe when the script came to its end.
pub(super) const WELL: &str = "well";

/// The first argument for a guard.
pub(super) fn word(only_on_failure: bool) -> &'static str {
    if only_on_failure { ON_FAILURE } else { ALWAYS }
}

/// A guard of the in process interpreter.
pub(super) struct Guard {
    /// Index of the operation.
    pub index: usize,
    child: Child,
    pipe: Option<ChildStdin>,
    cmd: Cmd,
}

impl Guard {
    /// Starts it, and returns when it is on its post.
    pub fn start(index: usize, cmd: &Cmd, only_on_failure: bool, programs: &Programs) -> Result<Self, ProcessError> {
        let error = |kind| ProcessError { command: cmd.to_string(), kind, stderr: String::new() };
        let argv = argv(cmd, programs).map_err(|missing| error(ProcessErrorKind::Missing(missing)))?;
        let (setsid, argv) = argv;
        let mut command = Command::new(setsid);
        command.args(["sh", "-c", PROGRAM, "guard", word(only_on_failure)]).args(argv);
        command.env("LC_ALL", "C").env("LANG", "C").env("PATH", super::process::SEARCH_PATH);
        // Not on the leash: it is to outlive us.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = command.spawn().and_then(|mut child| {
            let mut line = String::new();
            if let Some(stdout) = child.stdout.take() {
                BufReader::new(stdout).read_line(&mut line)?;
            }
            Ok((child, line))
        });
        match spawned {
            Ok((mut child, line)) if line == "up\n" => {
                let pipe = child.stdin.take();
                Ok(Self { index, child, pipe, cmd: cmd.clone() })
            }
            Ok((mut child, _)) => {
                let _ = child.wait();
                Err(error(ProcessErrorKind::Spawn(io::Error::other("The guard did not start"))))
            }
            Err(cause) => Err(error(ProcessErrorKind::Spawn(cause))),
        }
    }

    /// The script has ended; waits until the guard has done its work.
    pub fn release(mut self, well: bool) -> Result<(), ProcessError> {
        let error = |kind, stderr| {
            Err(ProcessError { command: self.cmd.to_string(), kind, stderr }.within_limits_of(&self.cmd))
        };
        if let Some(mut pipe) = self.pipe.take()
            && well
        {
            // One that is gone cannot be told; its status says so.
            let _ = writeln!(pipe, "{WELL}");
        }
        let mut stderr = Vec::new();
        if let Some(from) = self.child.stderr.take() {
            let _ = from.take(STDERR_KEPT as u64).read_to_end(&mut stderr);
        }
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => match status.code() {
                Some(code) => error(ProcessErrorKind::Status(code), stderr),
                None => error(ProcessErrorKind::Signal(9), stderr),
            },
            Err(cause) => error(ProcessErrorKind::Io(cause), stderr),
        }
    }
}

/// `setsid`, and the command.
fn argv(cmd: &Cmd, programs: &Programs) -> Result<(OsString, Vec<OsString>), Missing> {
    let setsid = programs.find("setsid")?.swap_remove(0);
    Ok((setsid, programs.found_argv(cmd)?))
}

/// Releases all, the newest first; gives the first failure.
pub(super) fn release(guards: Vec<Guard>, well: bool) -> Option<(usize, ProcessError)> {
    let mut failed = None;
    for guard in guards.into_iter().rev() {
        let index = guard.index;
        if let Err(error) = guard.release(well) {
            failed.get_or_insert((index, error));
        }
    }
    failed
}
