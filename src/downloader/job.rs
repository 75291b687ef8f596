//! One download: opens the source, decides what becomes of it, and puts it where it belongs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::target::{Place, Target};
use crate::exec::control::Control;
use crate::exec::copy;
use crate::exec::op::Sparse;
use crate::transfer::decode::{Allowance, Bounded};
use crate::transfer::import::{self, ImportError, Incoming};
use crate::transfer::progress::{Progress, Tell};
use crate::transfer::unpack::{self, Archive, Limits, UnpackError};

/// A download that is about to happen.
pub struct Job<'a> {
    /// Path or address.
    pub from: &'a OsStr,
    /// Where it goes.
    pub to: Target,
    /// How it is read.
    pub import: import::Options,
    /// Bytes after which standard output has got enough; the source is then not read further.
    pub most: Option<u64>,
    /// Bytes that the decoded image may have.
    pub most_decoded: Option<u64>,
    /// Whether an archive is unpacked into a directory, and how much it may hold.
    pub unpack: Option<Limits>,
    /// Who is told how far it has come, and how often.
    pub progress: Option<(Duration, Tell)>,
}

/// Whether what stands at the target may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It goes when the new one is there.
    Replace,
    /// It stays, and the download fails.
    Keep,
}

impl Job<'_> {
    /// Does it; what stands at the target is replaced.
    ///
    /// # Errors
    /// One that begins with upstream's words (contract 03 §1). Nothing of the download is then left at a path.
    pub fn run(self, control: &Control) -> Result<()> {
        let incoming = self.open(control)?;
        self.deliver(incoming, Existing::Replace, control)
    }

    /// Opens the source.
    ///
    /// # Errors
    /// As of [`Job::run`].
    pub fn open(&self, control: &Control) -> Result<Incoming> {
        import::open(self.from, &self.import, control).map_err(|error| match error {
            error @ (ImportError::Source(_) | ImportError::Scheme { .. } | ImportError::S3(_)) => error.into(),
            error @ ImportError::Http(_) => anyhow::Error::new(error).context(self.failure()),
            ImportError::Read { source, .. } => anyhow::Error::new(source).context(self.failure()),
        })
    }

    fn failure(&self) -> String {
        format!("Error copying {} to {}", import::shown(self.from), self.to.shown())
    }

    /// Puts the image where it belongs.
    ///
    /// # Errors
    /// As of [`Job::run`].
    pub fn deliver(mut self, mut incoming: Incoming, existing: Existing, control: &Control) -> Result<()> {
        let failure = self.failure();
        let archive = self.unpack.filter(|_| !incoming.opaque).zip(Archive::detect(incoming.head()));
        let plain = incoming.plain_file.take();
        // What is as long as it was said to be is no bomb.
        let endless = incoming.compression.is_some() || (incoming.encoded_len.is_none() && !incoming.opaque);
        let announced = incoming.encoded_len;
        let total = incoming.image_len();
        let mut reader: Box<dyn Read> = Box::new(incoming);
        // An archive has its own limit.
        if let (Some(most), None, true) = (self.most_decoded, archive, endless) {
            reader = Box::new(Bounded::new(reader, Allowance::Granted(most)));
        }
        if let Some((every, tell)) = self.progress.take() {
            reader = Box::new(Progress::new(reader, total, every, tell));
        }
        match self.to {
            Target::Stdout => {
                let stdout = rustix::stdio::stdout().as_fd().try_clone_to_owned().with_context(|| failure.clone())?;
                let mut reader = reader.take(self.most.unwrap_or(u64::MAX));
                pass(&mut reader, &mut File::from(stdout), control).context(failure)
            }
            Target::InPlace(path) => in_place(&mut *reader, &path, control).context(failure),
            Target::Path(place) => {
                place.sweep();
                let path = Landing { place: &place, existing, failure: &failure };
                match archive {
                    Some((limits, archive)) => path.unpack(archive, limits, &mut *reader, control),
                    None => path.write(&mut *reader, plain.as_ref().zip(announced), control),
                }
            }
        }
    }
}

/// A path, and what is said when something goes wrong on the way there.
struct Landing<'a> {
    place: &'a Place,
    existing: Existing,
    failure: &'a str,
}

impl Landing<'_> {
    fn replace(&self) -> bool {
        self.existing == Existing::Replace
    }

    fn say(&self) -> String {
        self.failure.to_owned()
    }

    /// One file: a reflink of `plain` where nothing has to be looked at, else the stream.
    fn write(&self, reader: &mut dyn Read, plain: Option<(&File, u64)>, control: &Control) -> Result<()> {
        let (staged, file) = match self.place.file("") {
            Ok(made) => made,
            Err(error) => match self.place.only_in_place(&error).filter(|_| self.replace()) {
                Some(path) => return in_place(reader, &path, control).with_context(|| self.say()),
                None => return Err(error).with_context(|| self.say()),
            },
        };
        if let Some((source, announced)) = plain {
            let copied = copy::copy_file(source, &file, Sparse::Holes, control).with_context(|| self.say())?;
            let meta = source.metadata().with_context(|| self.say())?;
            if copied.size != announced || (meta.is_file() && meta.len() != announced) {
                bail!("{}: the source was changed meanwhile", self.failure);
            }
        } else {
            copy::receive(reader, &file, Sparse::Holes, control).with_context(|| self.say())?;
        }
        self.place.publish(staged, Some(&file), self.replace()).with_context(|| self.say())
    }

    /// A directory with what is in the archive. A zip needs its end first, so it is written beside.
    fn unpack(&self, archive: Archive, limits: Limits, reader: &mut dyn Read, control: &Control) -> Result<()> {
        let bad = |error| match error {
            UnpackError::Read(source) => anyhow::Error::new(source).context(self.say()),
            error => anyhow::Error::new(error).context("Error uncompressing archive"),
        };
        let tree = self.place.directory().with_context(|| self.say())?;
        match archive {
            Archive::Tar => unpack::unpack(unpack::Source::Tar(reader), tree.path(), limits, control).map_err(bad)?,
            Archive::Zip => {
                let (_staged, file) = self.place.file(".archive").with_context(|| self.say())?;
                copy::receive(reader, &file, Sparse::Holes, control).with_context(|| self.say())?;
                unpack::unpack(unpack::Source::Zip(&file), tree.path(), limits, control).map_err(bad)?;
            }
        }
        self.place.publish(tree, None, self.replace()).with_context(|| self.say())
    }
}

fn in_place(reader: &mut dyn Read, path: &Path, control: &Control) -> io::Result<()> {
    let mut file = open_in_place(path, control)?;
    let kind = file.metadata()?.file_type();
    if kind.is_block_device() {
        copy::receive(reader, &file, Sparse::Allocate, control)?;
        return file.sync_all();
    }
    pass(reader, &mut file, control)?;
    // Pipes and terminals cannot.
    if kind.is_file() { file.sync_all() } else { Ok(()) }
}

/// Opens what stands there; a pipe's reader is waited for, as long as nobody tells us to stop.
fn open_in_place(path: &Path, control: &Control) -> io::Result<File> {
    if !path.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
        return File::options().write(true).truncate(true).open(path);
    }
    loop {
        control.check().map_err(io::Error::other)?;
        match rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => return Ok(File::from(fd)),
            // Nobody reads yet.
            Err(Errno::NXIO) => std::thread::sleep(Duration::from_millis(50)),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A pipe whose reader may stall: waiting for it ends with a cancel.
struct Patient<'a> {
    pipe: File,
    control: &'a Control,
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.pipe).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let mut fds = [PollFd::new(&self.pipe, PollFlags::OUT), PollFd::new(&self.control.cancel, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => self.control.check().map_err(io::Error::other)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies a stream to what may be a pipe. A pipe is opened once more: whether it waits is then ours to say, and not that
/// of everybody who has it.
fn pass(reader: &mut dyn Read, to: &mut File, control: &Control) -> io::Result<()> {
    let again = || {
        to.metadata().is_ok_and(|meta| meta.file_type().is_fifo()).then(|| {
            let path = format!("/proc/self/fd/{}", to.as_raw_fd());
            rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
        })?
    };
    match again() {
        Some(pipe) => copy_all(reader, &mut Patient { pipe: File::from(pipe), control }, control),
        None => copy_all(reader, to, control),
    }
}

fn copy_all(reader: &mut dyn Read, writer: &mut dyn Write, control: &Control) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        control.check().map_err(io::Error::other)?;
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => writer.write_all(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
