//! OpenNebula's commands, the last resort: `onevm show -x` and its like, found on `PATH`.
//!
//! Each costs a quarter of a second (contract 10). They leave encrypted attributes encrypted.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Cause, Object, Oned, OnedEnv, OnedError};

/// See the module.
#[derive(Clone, Debug)]
pub struct Cli {
    path: Option<OsString>,
    timeout: Duration,
    limit: usize,
}

impl Cli {
    /// Asks the commands on the `PATH` of `env`.
    #[must_use]
    pub fn new(env: &OnedEnv) -> Self {
        Self { path: env.path.clone(), timeout: env.total_timeout, limit: env.answer_limit }
    }

    /// Whether the command that knows of this object is installed.
    pub(super) fn can_ask(&self, object: Object) -> bool {
        self.find(words(object).0).is_some()
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        which::which_in(program, self.path.as_ref(), "/").ok()
    }

    fn ask(&self, object: Object) -> Result<String, Cause> {
        let (program, verb, id) = words(object);
        let found = self.find(program).ok_or(Cause::NoCommand(program))?;
        let mut args = vec![verb.to_owned(), "-x".to_owned()];
        args.extend(id.map(|id| id.to_string()));
        let stdout = run(program, &found, &args, self.timeout, self.limit)?;
        String::from_utf8(stdout).map_err(|_| Cause::BadReply("it is not UTF-8".to_owned()))
    }
}

/// Command, verb and id.
fn words(object: Object) -> (&'static str, &'static str, Option<u32>) {
    match object {
        Object::Vm(id) => ("onevm", "show", Some(id)),
        Object::Image(id) => ("oneimage", "show", Some(id)),
        Object::Datastore(id) => ("onedatastore", "show", Some(id)),
        Object::Host(id) => ("onehost", "show", Some(id)),
        Object::HostPool => ("onehost", "list", None),
        Object::DatastorePool => ("onedatastore", "list", None),
    }
}

impl Oned for Cli {
    fn xml(&self, object: Object) -> Result<String, OnedError> {
        self.ask(object).map_err(|cause| OnedError::new(self.place(), object, cause))
    }

    fn place(&self) -> String {
        "OpenNebula's commands".to_owned()
    }
}

/// Runs a command to its end and gives its standard output.
///
/// It stays in our process group, so that the signal that ends us ends it too.
fn run(name: &'static str, program: &Path, args: &[String], timeout: Duration, limit: usize) -> Result<Vec<u8>, Cause> {
    let failed = |text: String| Cause::Command { program: name, text };
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let stdout = drain(child.stdout.take(), limit.saturating_add(1));
    let stderr = drain(child.stderr.take(), 64 << 10);
    let deadline = Instant::now() + timeout;
    // The pipes end when the command does, or with the last of its descendants: never wait longer than the deadline.
    let answer = wait(&stdout, deadline).and_then(|out| Some((out, wait(&stderr, deadline)?)));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) if answer.is_some() => break Some(status),
            Ok(None) if answer.is_some() && Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(failed(e.to_string())),
            Ok(_) => break None,
        }
    };
    let (Some((out, err)), Some(status)) = (answer, status) else {
        // Both fail only when it has ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Cause::Timeout(timeout));
    };
    if out.len() > limit {
        return Err(Cause::TooLarge { limit });
    }
    if status.success() {
        return Ok(out);
    }
    let err = String::from_utf8_lossy(&err);
    let last = err.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(failed(last.map_or_else(|| status.to_string(), str::to_owned)))
}

/// Reads a pipe in a thread of its own; what is beyond the limit is dropped, so that the writer can end.
fn drain(pipe: Option<impl Read + Send + 'static>, limit: usize) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            let most = u64::try_from(limit).unwrap_or(u64::MAX);
            // What was read before an error is still worth having.
            let _ = pipe.by_ref().take(most).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        // Nobody listens after a timeout.
        let _ = sender.send(kept);
    });
    receiver
}

fn wait(pipe: &mpsc::Receiver<Vec<u8>>, deadline: Instant) -> Option<Vec<u8>> {
    pipe.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}
