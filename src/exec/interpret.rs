//! The in-process interpreter of scripts: here, and on hosts where this binary stands.
//!
//! Answers and failures are those of [`super::posix`]; what is more here are real locks on cancellation, deadlines inside
//! copies, and typed errors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use super::cmd::Cmd;
use super::control::Control;
use super::error::{OpError, OpErrorKind, cannot, fault};
use super::files;
use super::lock::{LockDir, LockError, NamedLock};
use super::op::{Op, Script, Sparse, Value};
use super::process::{self, ProcessIo, Programs, Spawn, Stdout};

/// What [`Op::Receive`] takes.
pub enum Input<'a> {
    /// A stream. A read that is under way is waited for, also when the script is cancelled.
    Stream(&'a mut (dyn Read + Send)),
    /// A regular file or block device, all of it: its blocks are shared where the file system can.
    File(&'a File),
}

/// Input and output of a script, and where its locks are.
pub struct Io<'a> {
    /// What [`Op::Receive`] takes.
    pub input: Option<Input<'a>>,
    /// Where [`Op::Send`] writes.
    pub output: Option<&'a mut (dyn Write + Send)>,
    /// Where [`Op::Lock`] locks.
    pub locks: LockDir,
}

impl Default for Io<'_> {
    /// No streams, and the locks of this machine.
    fn default() -> Self {
        Self { input: None, output: None, locks: LockDir::from_env() }
    }
}

/// Runs a script until its end or the first operation that fails; one answer for each operation.
///
/// # Errors
/// [`OpError`], its index set. What the operations before have done stays done.
pub fn run(script: &Script, io: Io<'_>, programs: &Programs, control: &Control) -> Result<Vec<Value>, OpError> {
    let mut io = io;
    // Until the script ends, as the sh interpreter holds them.
    let mut held: Vec<NamedLock> = Vec::new();
    let mut values = Vec::with_capacity(script.ops.len());
    for (index, op) in script.ops.iter().enumerate() {
        if let Some(fault) = fault(script, index) {
            return Err(OpError::new(index, OpErrorKind::Script, format!("{}: {fault}", cannot(op))));
        }
        control.check().map_err(|stopped| OpError::io(index, op, &io::Error::other(stopped)))?;
        let value = match op {
            Op::Run(cmd) => {
                run_program(cmd, script.sends(), programs, control).map_err(|error| OpError::process(index, error))?
            }
            Op::Lock { name, wait_seconds } => {
                let lock = io.locks.take(name, Duration::from_secs(*wait_seconds), control);
                held.push(lock.map_err(|error| lock_error(index, &error))?);
                Value::Done
            }
            op => apply(op, &mut io, control).map_err(|error| OpError::io(index, op, &error))?,
        };
        values.push(value);
    }
    Ok(values)
}

fn run_program(
    cmd: &Cmd,
    dropped: bool,
    programs: &Programs,
    control: &Control,
) -> Result<Value, process::ProcessError> {
    let spawn = Spawn::of(cmd, programs)?;
    let mut io = ProcessIo::of(cmd);
    if dropped {
        io.stdout = Stdout::Null;
    }
    let done = process::run(&spawn, io, control)?;
    Ok(if dropped { Value::Done } else { Value::Bytes(done.stdout) })
}

fn lock_error(index: usize, error: &LockError) -> OpError {
    let kind = match error {
        LockError::Stopped { stopped, .. } => OpErrorKind::Stopped(*stopped),
        LockError::Open { .. } | LockError::Held { .. } => OpErrorKind::Locked,
    };
    OpError::new(index, kind, error.to_string())
}

fn apply(op: &Op, io: &mut Io<'_>, control: &Control) -> io::Result<Value> {
    let done = match op {
        Op::Stat { path, follow } => {
            return Ok(files::stat(path, *follow)?.map_or(Value::Absent, Value::Stat));
        }
        Op::ReadLink { path } => return Ok(files::read_link(path)?.map_or(Value::Absent, Value::Bytes)),
        Op::List { path } => return Ok(files::list(path)?.map_or(Value::Absent, Value::Names)),
        Op::Read { path, offset, len } => return files::read(path, *offset, *len).map(Value::Bytes),
        Op::Head { path, len } => return Ok(files::head(path, *len)?.map_or(Value::Absent, Value::Bytes)),
        Op::Tree { path, depth } => return Ok(files::tree(path, *depth, control)?.map_or(Value::Absent, Value::Tree)),
        Op::Space { path } => return files::space(path).map(Value::Space),
        Op::TreeSize { path } => return files::tree_size(path, control).map(Value::Number),
        Op::Md5 { path } => return files::md5(path, control).map(Value::Bytes),
        Op::Receive { path, sparse } => return receive(path, *sparse, io, control).map(Value::Number),
        Op::Send { path } => send(path, io, control),
        Op::MakeDir { path } => std::fs::create_dir_all(path),
        Op::Claim { path } => files::claim(path),
        Op::RemoveDirIfEmpty { path } => files::remove_dir_if_empty(path),
        Op::Symlink { target, link } => files::symlink(target, link),
        Op::HardLink { from, to } => files::hard_link(from, to),
        Op::Write { path, content, mode } => files::write(path, content.reveal().as_bytes(), *mode),
        Op::Rename { from, to } => files::rename(from, to),
        Op::Move { from, to } => files::move_file(from, to, control),
        Op::Remove { path, tree, must_exist } => files::remove(path, *tree, *must_exist, control),
        Op::Copy { from, to, sparse } => files::copy(from, to, *sparse, control),
        Op::PunchHoles { path } => files::punch_holes(path, control),
        Op::CreateSparse { path, bytes } => File::create_new(path).and_then(|file| file.set_len(*bytes)),
        Op::Sync { path } => files::sync(path),
        Op::Publish { from, to } => files::publish(from, to),
        Op::Sweep { staging, dead } => {
            files::sweep(staging, dead, control);
            Ok(())
        }
        Op::Lock { .. } | Op::Run(_) => unreachable!("handled by the caller"),
    };
    done.map(|()| Value::Done)
}

fn receive(path: &std::path::Path, sparse: Sparse, io: &mut Io<'_>, control: &Control) -> io::Result<u64> {
    match io.input.take() {
        Some(Input::Stream(stream)) => files::receive(path, stream, sparse, control),
        Some(Input::File(file)) => files::receive_file(path, file, sparse, control),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "There is no input")),
    }
}

fn send(path: &std::path::Path, io: &mut Io<'_>, control: &Control) -> io::Result<()> {
    let mut file = control.reader(File::open(path)?);
    let output = io.output.as_mut().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "There is no output"))?;
    io::copy(&mut file, output)?;
    output.flush()
}
