//! Children that die with us.
//!
//! `kill -9` gives us no time to end what we started: a `qemu-img` that lives on would hold the image's lock against the
//! next try, and the space of a file that has been swept away. Linux kills a child with its parent when the child asks for
//! it (`PR_SET_PDEATHSIG`, prctl(2)), which has to be done between fork and exec; safe Rust cannot, so that this very
//! binary is executed in between: `onestore leash <parent> <program> <argument>…`. No process more, a millisecond each.
//!
//! What runs through sudo is not reached: the kernel forgets the wish when a program changes its user.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The verb of the hidden call.
pub const VERB: &str = "leash";

/// Whether this process is the binary that knows [`VERB`]: a test that uses the library is not.
static AVAILABLE: AtomicBool = AtomicBool::new(false);

/// Puts all children of this process on the leash from now on. For the binary's `main` alone.
pub fn available() {
    AVAILABLE.store(true, Ordering::Relaxed);
}

/// A command that runs `program`, on the leash where that is possible. Arguments can be added.
#[must_use]
pub fn command(program: &OsStr) -> Command {
    if !AVAILABLE.load(Ordering::Relaxed) {
        return Command::new(program);
    }
    // Not by its name: that may be another version by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("onestore").arg(VERB).arg(std::process::id().to_string()).arg(program);
    command
}

/// The hidden call: becomes the program, unless the parent is gone. Returns only on failure, with the exit status.
#[must_use]
pub fn run(words: &[OsString]) -> u8 {
    let [parent, program, arguments @ ..] = words else { return 127 };
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have died before the wish was made.
    let alive = getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| parent.to_str() == Some(&pid.to_string()));
    if !alive {
        return 128 + 9;
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("Cannot start {}: {error}", program.to_string_lossy());
    127
}
