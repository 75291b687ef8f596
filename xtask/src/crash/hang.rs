//! Storage that never answers: a FUSE file system that keeps every request, over a directory of the sandbox.
//!
//! The action has to give up by itself, in bounded time, and what it left waiting has to end when the mount is taken off.

use std::any::Any;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fuser::{
    AccessFlags, BackgroundSession, FileHandle, Filesystem, INodeNo, OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, Request,
};

use super::scenario::Disturbed;
use super::tracer::Trace;
use super::world::{World, tool};

/// Seconds that the action gives storage.
const PATIENCE: u64 = 1;
/// How long an action may take: it asks here, and on each host once for every script of its roll-back.
const BOUND: Duration = Duration::from_secs(15);

/// Unanswered requests, until all are answered; to drop one is to answer it with an error.
type Kept = Arc<Mutex<Option<Vec<Box<dyn Any + Send>>>>>;

struct Silent(Kept);

impl Silent {
    fn keep(&self, reply: impl Any + Send) {
        if let Some(kept) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            kept.push(Box::new(reply));
        }
    }
}

impl Filesystem for Silent {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.keep(reply);
    }

    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.keep(reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.keep(reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.keep(reply);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.keep(reply);
    }
}

/// A mount that hangs; dropped, all who wait are told, and it is taken off.
struct Hanging {
    at: PathBuf,
    session: Option<BackgroundSession>,
    kept: Kept,
}

impl Hanging {
    fn over(dir: &Path) -> Result<Self> {
        let kept: Kept = Arc::new(Mutex::new(Some(Vec::new())));
        let session = fuser::spawn_mount(Silent(Arc::clone(&kept)), dir, &fuser::Config::default());
        let session = Some(session.context("Cannot mount a FUSE file system")?);
        Ok(Self { at: dir.to_owned(), session, kept })
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // From now on it answers: this program must never wait for itself.
        drop(self.kept.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Err(error) = tool(Command::new("umount").args(["--no-canonicalize", "-l"]).arg(&self.at)) {
            eprintln!("xtask: {error:#}");
        }
        drop(self.session.take());
    }
}

/// Directories of the sandbox that may be mounts: the datastores, and where images come from.
fn places(world: &World<'_>) -> Result<Vec<PathBuf>> {
    let root = world.root();
    let mut places = Vec::new();
    for entry in fs::read_dir(root.join("one/var/datastores"))? {
        places.push(entry?.path());
    }
    // The harness's own web server reads there, too, and no storage of the action's hangs then.
    if world.case.http.is_empty() {
        places.push(root.join("files"));
    }
    places.retain(|place| place.is_dir() && !place.is_symlink());
    places.sort();
    Ok(places)
}

/// Runs the action while the directory of this number hangs; 0: none does.
///
/// # Errors
/// The directory cannot be mounted on, or the action not started.
pub fn disturb(world: &World<'_>, number: usize) -> Result<Disturbed> {
    let places = places(world)?;
    let place = number.checked_sub(1).and_then(|at| places.get(at));
    let mount = place.map(|place| Hanging::over(place)).transpose()?;
    let begin = Instant::now();
    let patience = ("ONESTORE_STORAGE_TIMEOUT".to_owned(), PATIENCE.to_string());
    let ran = world.run_with(world.call(), None, &[patience])?;
    let took = begin.elapsed();
    drop(mount);
    let mut lingering = world.processes_left();
    if ran.left_running {
        lingering.push("its process group".to_owned());
    }
    if place.is_some() && took > BOUND {
        lingering.push(format!("it took {} s", took.as_secs()));
    }
    Ok(Disturbed {
        trace: Trace { status: ran.rc(), too_long: ran.too_long, lingering, disturbed: None, same: 0 },
        at: place.map(|place| format!("{} hangs", place.display())),
        count: places.len(),
        stdout: String::from_utf8_lossy(&ran.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
    })
}
