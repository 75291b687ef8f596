//! Lets a network wait end soon after a cancel: the kernel restarts reads that a signal interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::exec::control::{Control, Stopped};

/// How long a wait may go on before the flags are looked at.
const SLICE: Duration = Duration::from_millis(200);

/// Reasons to stop: what the caller obeys, and that nobody wants the data any more.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    control: Control,
    abandoned: Arc<AtomicBool>,
}

impl Stop {
    pub(super) fn new(control: &Control) -> Self {
        Self { control: control.clone(), abandoned: Arc::default() }
    }

    /// Tells workers that nobody waits for them.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Stopped::Cancelled);
        }
        self.control.check()
    }
}

/// The part of a connector chain that puts [`Watched`] around a connection.
#[derive(Debug)]
pub(super) struct Watch(pub(super) Stop);

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Watched<In>>, ureq::Error> {
        Ok(chained.map(|inner| Watched { inner, stop: self.0.clone() }))
    }
}

/// A connection whose waits for input are cut into slices.
#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    stop: Stop,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let start = Instant::now();
        let whole = (!timeout.after.is_not_happening()).then_some(*timeout.after);
        loop {
            self.stop.check().map_err(|stopped| ureq::Error::Io(std::io::Error::other(stopped)))?;
            let left = whole.map(|whole| whole.saturating_sub(start.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            let part = NextTimeout { after: slice.into(), reason: timeout.reason, per_read: None, per_write: None };
            match self.inner.await_input(part) {
                Err(ureq::Error::Timeout(_)) => {}
                result => return result,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
