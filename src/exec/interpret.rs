//! The in-process interpreter of scripts: here, and on hosts where this binary stands.
//!
//! Answers and failures are those of [`super::posix`]; what is more here are real locks on cancellation, deadlines inside
//! copies, and typed errors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::alive::{self, Silence};
use super::carry;
use super::cmd::Cmd;
use super::control::Control;
use super::error::{OpError, OpErrorKind, cannot, fault};
use super::fence::{self, Fences};
use super::files;
use super::guard::{self, Guard};
use super::lock::{LockDir, LockError, NamedLock};
use super::op::{Op, Role, Script, Sparse, Value};
use super::process::{self, ProcessIo, Programs, Spawn, Stdout};
use super::source::{PathPolicy, SourceError, open_local};
use super::staging;

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
    /// Where [`Op::Send`] and [`Op::SendAllowed`] write.
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
    alive::ask(script, programs, control).map_err(|(index, silence)| {
        let op = &script.ops[index];
        match silence {
            Silence::Stopped(stopped) => OpError::io(index, op, &io::Error::other(stopped)),
            dead @ Silence::Dead { .. } => OpError::io(index, op, &io::Error::other(dead)),
        }
    })?;
    // Until the script ends, as the sh interpreter holds them: the guards first, they may need the locks.
    let mut locks = Vec::new();
    let mut guards = Vec::new();
    let result = run_ops(script, io, programs, control, (&mut locks, &mut guards));
    let failed = guard::release(guards, result.is_ok());
    match (result, failed) {
        (result, None) => result,
        (Ok(_), Some((index, failed))) => Err(OpError::process(index, failed)),
        (Err(error), Some((index, failed))) => Err(error.besides(&OpError::process(index, failed).to_string())),
    }
}

fn run_ops(
    script: &Script,
    mut io: Io<'_>,
    programs: &Programs,
    control: &Control,
    (locks, guards): (&mut Vec<NamedLock>, &mut Vec<Guard>),
) -> Result<Vec<Value>, OpError> {
    let fences = Fences::new(&script.fences);
    let mut values = Vec::with_capacity(script.ops.len());
    let mut claimed: Option<&Path> = None;
    for (index, op) in script.ops.iter().enumerate() {
        if let Some(fault) = fault(script, index) {
            return Err(OpError::new(index, OpErrorKind::Script, format!("{}: {fault}", cannot(op))));
        }
        control.check().map_err(|stopped| OpError::io(index, op, &io::Error::other(stopped)))?;
        if let Op::Claim { path } = op {
            claimed = Some(path);
        }
        let value = match op {
            Op::Run(cmd) => {
                run_program(cmd, script.sends(), programs, control).map_err(|error| OpError::process(index, error))?
            }
            Op::Lock { name, wait_seconds } => {
                let lock = io.locks.take(name, Duration::from_secs(*wait_seconds), control);
                locks.push(lock.map_err(|error| lock_error(index, &error))?);
                Value::Done
            }
            Op::Guard { cmd, only_on_failure } => {
                let guard = Guard::start(index, cmd, *only_on_failure, programs);
                guards.push(guard.map_err(|error| OpError::process(index, error))?);
                Value::Done
            }
            Op::Carry(_) | Op::Attend { .. } => {
                carried(op, &fences, &mut io, programs, control).map_err(|error| OpError::io(index, op, &error))?
            }
            op => apply(op, (claimed, &fences), &mut io, control).map_err(|error| OpError::io(index, op, &error))?,
        };
        values.push(value);
    }
    Ok(values)
}

fn carried(op: &Op, fences: &Fences<'_>, io: &mut Io<'_>, programs: &Programs, control: &Control) -> io::Result<Value> {
    let (reached, _held) = fence::reach_all(op, fences)?;
    let output = io.output.take().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "There is no output"))?;
    match (&reached, io.input.take()) {
        (Op::Carry(carry), _) => carry::drive::run(carry, programs, control, output)?,
        (Op::Attend { reads, writes }, Some(Input::Stream(input))) => {
            carry::peer::attend(reads.clone(), writes.clone(), input, output, control)?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "There is no input")),
    }
    Ok(Value::Done)
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
    let done = process::run(&spawn, io, control).map_err(|error| error.within_limits_of(cmd))?;
    Ok(if dropped { Value::Done } else { Value::Bytes(done.stdout) })
}

fn lock_error(index: usize, error: &LockError) -> OpError {
    let kind = match error {
        LockError::Stopped { stopped, .. } => OpErrorKind::Stopped(*stopped),
        LockError::Open { .. } | LockError::Held { .. } => OpErrorKind::Locked,
    };
    OpError::new(index, kind, error.to_string())
}

/// How often [`Op::Claim`] makes a directory that others remove.
const CLAIM_TRIES: u32 = 100;

/// Does one operation. `claimed` is the claim that this script has put into a staging directory.
fn apply(
    op: &Op,
    (claimed, fences): (Option<&Path>, &Fences<'_>),
    io: &mut Io<'_>,
    control: &Control,
) -> io::Result<Value> {
    match op {
        Op::MakeDir { path } => return fences.make_dirs(path).map(|()| Value::Done),
        Op::Claim { path } => return claim(path, fences).map(|()| Value::Done),
        // Name by name: what lies in the staging directory, and what it became beside it, are reached one by one.
        Op::Sweep { staging, dead } => {
            for path in dead.iter().map(|name| staging.join(name)) {
                let Some(to) = staging::final_of(&path) else { continue };
                if let (Ok(path), Ok(to)) = (fences.reach(&path, Role::Name), fences.reach(&to, Role::Name)) {
                    files::sweep(&path.path, &to.path, control);
                }
            }
            return Ok(Value::Done);
        }
        _ => {}
    }
    match fence::reach_all(op, fences) {
        Ok((op, _held)) => {
            let claimed = claimed.and_then(|path| fences.reach(path, Role::Name).ok());
            at_place(&op, claimed.as_ref().map(|reached| reached.path.as_path()), io, control)
        }
        Err(error) if files::is_absent(&error) => match op {
            Op::Stat { .. } | Op::ReadLink { .. } | Op::List { .. } | Op::Head { .. } | Op::Tree { .. } => {
                Ok(Value::Absent)
            }
            Op::Remove { must_exist: false, .. } | Op::RemoveDirIfEmpty { .. } | Op::PutBack { .. } => Ok(Value::Done),
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn claim(path: &Path, fences: &Fences<'_>) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let dir = path.parent().unwrap_or(path);
        let claimed = fences
            .make_dirs(dir.parent().unwrap_or(dir))
            .and_then(|()| files::private_dir(&fences.reach(dir, Role::Name)?.path))
            .and_then(|()| files::claim(&fences.reach(path, Role::Name)?.path));
        match claimed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < CLAIM_TRIES => tries += 1,
            result => return result,
        }
    }
}

fn at_place(op: &Op, claimed: Option<&Path>, io: &mut Io<'_>, control: &Control) -> io::Result<Value> {
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
        Op::Sha256 { path } => return files::sha256(path, control).map(Value::Bytes),
        Op::Receive { path, sparse } => return receive(path, *sparse, io, control).map(Value::Number),
        Op::Send { path } => send(File::open(path)?, io, control),
        Op::SendAllowed { path, policy } => send_allowed(path, policy, io, control),
        Op::RemoveDirIfEmpty { path } => files::remove_dir_if_empty(path),
        Op::Symlink { target, link } => files::symlink(target, link, claimed),
        Op::HardLink { from, to } => files::hard_link(from, to),
        Op::Write { path, content, mode } => files::write(path, content.reveal().as_bytes(), *mode, claimed),
        Op::Rename { from, to } => files::rename(from, to),
        Op::Replace { from, to, kept } => files::replace(from, to, kept),
        Op::PutBack { from, to } => files::put_back(from, to),
        Op::Move { from, to } => files::move_file(from, to, claimed, control),
        Op::Remove { path, tree, must_exist } => files::remove(path, *tree, *must_exist, control),
        Op::Copy { from, to, sparse } => files::copy(from, to, *sparse, control),
        Op::PunchHoles { path } => files::punch_holes(path, control),
        Op::CreateSparse { path, bytes } => File::create_new(path).and_then(|file| file.set_len(*bytes)),
        Op::Sync { path } => files::sync(path),
        Op::Publish { from, to } => files::publish(from, to),
        Op::MakeDir { .. }
        | Op::Claim { .. }
        | Op::Sweep { .. }
        | Op::Lock { .. }
        | Op::Guard { .. }
        | Op::Run(_)
        | Op::Carry(_)
        | Op::Attend { .. } => {
            unreachable!("handled by the callers")
        }
    };
    done.map(|()| Value::Done)
}

fn receive(path: &Path, sparse: Sparse, io: &mut Io<'_>, control: &Control) -> io::Result<u64> {
    match io.input.take() {
        Some(Input::Stream(stream)) => files::receive(path, stream, sparse, control),
        Some(Input::File(file)) => files::receive_file(path, file, sparse, control),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "There is no input")),
    }
}

fn send(file: File, io: &mut Io<'_>, control: &Control) -> io::Result<()> {
    let output = output(io)?;
    io::copy(&mut control.reader(file), output)?;
    output.flush()
}

fn send_allowed(path: &Path, policy: &PathPolicy, io: &mut Io<'_>, control: &Control) -> io::Result<()> {
    let home = std::env::var_os("HOME");
    let policy = policy.clone().at_home(home.as_deref().map(Path::new));
    let source = open_local(path, &policy).map_err(SourceError::cause)?;
    writeln!(output(io)?, "{}", source.len)?;
    send(source.file, io, control)
}

fn output<'a>(io: &'a mut Io<'_>) -> io::Result<&'a mut (dyn Write + Send)> {
    match &mut io.output {
        Some(output) => Ok(&mut **output),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "There is no output")),
    }
}
