//! Running things: what a driver wants done is data ([`op::Op`], [`op::Script`], [`step::Step`]), and this room is the only one that does it.
//!
//! # Layout
//!
//! - [`op`]: the typed operations and the scripts made of them; [`answer`]: what they answer. No I/O.
//! - [`cmd`]: an external command as data, its secrets typed. No I/O.
//! - [`interpret`]: the *in process* interpreter of a script (rule 5 of `docs/architecture.md`).
//! - [`error`]: how a script fails, in one line, from either interpreter.
//! - [`alive`]: whether the storage that a script is about to touch answers at all.
//! - [`fence`]: directories that a script does not leave.
//! - `files`: the file operations of it, on system calls.
//! - `guard`: what is run when a script ends, however it ends.
//! - [`quote`]: words of sh; the only place that quotes.
//! - [`posix`]: the other interpreter: a script rendered as POSIX sh, and the answers read back.
//! - [`agent`]: the in process interpreter as the far side of an ssh connection.
//! - [`control`]: cancellation (SIGTERM) and deadlines.
//! - [`process`]: one child process: spawned in its own group, waited for by pidfd, killed as a group.
//! - [`leash`]: children that die with us.
//! - [`copy`]: copies between files and streams into files, with reflinks and holes; `holes` finds where data is, `ahead`
//!   allocates and `writeback` has the disk begin early.
//! - [`carry`]: files on their way between two hosts on both of which this binary stands.
//! - [`relay`]: a file of one host as a stream for another.
//! - [`host`]: where scripts run: here, through the OpenSSH client, or through libssh2.
//! - [`lock`]: named advisory locks, compatible with `/var/lock/one`.
//! - [`source`]: opens a file that a user named, where that is allowed.
//! - [`staging`]: names of files that are not finished yet, and what becomes of them when their owner dies.
//! - [`step`]: scripts with an undo and a sentence; the undo stack.

pub mod agent;
mod ahead;
pub mod alive;
pub mod answer;
pub mod carry;
pub mod cmd;
pub mod control;
pub mod copy;
pub mod error;
pub mod fence;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod holes;
pub mod host;
pub mod interpret;
pub mod leash;
pub mod lock;
pub mod op;
pub mod posix;
mod posix_names;
mod posix_paths;
pub mod process;
pub mod quote;
pub mod relay;
pub mod source;
pub mod staging;
pub mod step;
mod writeback;
