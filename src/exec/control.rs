//! When to stop: a cancel flag that SIGTERM sets, and a deadline.
//!
//! oned's driver process sends one SIGTERM to our process group at its timeout and then waits (contract 01 §11), so
//! everything that can take long looks here: child waits poll [`Cancel::fd`], copy loops call [`Control::check`].

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Why something was stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// SIGTERM, SIGINT or SIGHUP came.
    #[error("Cancelled by a signal")]
    Cancelled,
    /// The time was up.
    #[error("Timed out")]
    Deadline,
}

/// A cancel flag with a descriptor that becomes readable when it is set.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    flag: Arc<AtomicBool>,
    readable: OwnedFd,
    writer: UnixStream,
}

impl Cancel {
    /// A flag that only [`Cancel::set`] sets, for tests and for roll-back, which must not be cancelled by what caused it.
    ///
    /// # Panics
    /// When the process is out of file descriptors at its very start.
    #[must_use]
    pub fn new() -> Self {
        let (reader, writer) = UnixStream::pair().expect("a socket pair can be made");
        Self(Arc::new(Inner { flag: Arc::new(AtomicBool::new(false)), readable: reader.into(), writer }))
    }

    /// A flag that SIGTERM, SIGINT and SIGHUP set.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let cancel = Self::new();
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&cancel.0.flag))?;
            signal_hook::low_level::pipe::register(signal, cancel.0.writer.try_clone()?)?;
        }
        Ok(cancel)
    }

    /// Sets the flag.
    pub fn set(&self) {
        self.0.flag.store(true, Ordering::SeqCst);
        let _ = (&self.0.writer).write_byte();
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.flag.load(Ordering::SeqCst)
    }

    /// Becomes readable once the flag is set, and stays so: nobody reads it empty.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.readable.as_fd()
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

/// Writes one byte; a trait only so that `&UnixStream` reads well above.
trait WriteByte {
    fn write_byte(&mut self) -> io::Result<()>;
}

impl WriteByte for &UnixStream {
    fn write_byte(&mut self) -> io::Result<()> {
        io::Write::write_all(self, &[1])
    }
}

/// The cancel flag and the deadline that one piece of work obeys.
#[derive(Clone, Debug)]
pub struct Control {
    /// The cancel flag.
    pub cancel: Cancel,
    /// When the time is up.
    pub deadline: Option<Instant>,
}

impl Control {
    /// Obeys `cancel`, without a deadline.
    #[must_use]
    pub fn new(cancel: Cancel) -> Self {
        Self { cancel, deadline: None }
    }

    /// Obeys nothing but a deadline this far from now: for roll-back.
    #[must_use]
    pub fn only_within(time: Duration) -> Self {
        Self { cancel: Cancel::new(), deadline: Instant::now().checked_add(time) }
    }

    /// The same, but to be done `time` from now at the latest.
    #[must_use]
    pub fn within(&self, time: Duration) -> Self {
        let new = Instant::now().checked_add(time);
        let deadline = match (self.deadline, new) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => old.or(new),
        };
        Self { cancel: self.cancel.clone(), deadline }
    }

    /// `Err` once the work has to stop. Cheap enough for every block of a copy.
    ///
    /// # Errors
    /// [`Stopped`], which says why.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.cancel.is_set() {
            return Err(Stopped::Cancelled);
        }
        match self.deadline {
            Some(at) if Instant::now() >= at => Err(Stopped::Deadline),
            _ => Ok(()),
        }
    }

    /// A reader that ends with an error of kind [`io::ErrorKind::Other`] holding [`Stopped`] once the work has to stop.
    pub fn reader<R: Read>(&self, inner: R) -> Controlled<R> {
        Controlled { inner, control: self.clone() }
    }
}

/// See [`Control::reader`].
#[derive(Debug)]
pub struct Controlled<R> {
    inner: R,
    control: Control,
}

impl<R: Read> Read for Controlled<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.control.check().map_err(io::Error::other)?;
        self.inner.read(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_flag_stops_readers_and_wakes_pollers() {
        let cancel = Cancel::new();
        let control = Control::new(cancel.clone());
        assert_eq!(control.check(), Ok(()));
        cancel.set();
        assert_eq!(control.check(), Err(Stopped::Cancelled));
        let mut reader = control.reader(&b"abc"[..]);
        assert!(reader.read(&mut [0; 3]).is_err());
        let mut fds = [rustix::event::PollFd::new(&cancel, rustix::event::PollFlags::IN)];
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&none)).expect("poll"), 1);
    }

    #[test]
    fn the_nearer_deadline_holds() {
        let control = Control::only_within(Duration::ZERO).within(Duration::from_secs(60));
        assert_eq!(control.check(), Err(Stopped::Deadline));
    }
}
