//! Lets a network wait end soon after a cancel: the kernel restarts reads that a signal interrupts. And addresses a request
//! to a proxy, where that is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::exec::cmd::Secret;
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

    /// What the caller obeys.
    pub(super) fn control(&self) -> Control {
        self.control.clone()
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Stopped::Cancelled);
        }
        self.control.check()
    }
}

/// What a request to a proxy says more than one to the server (RFC 9112 §3.2.2, RFC 9110 §11.7.2).
#[derive(Clone, Debug)]
pub(super) struct Forward {
    /// Scheme and authority, put before the path.
    pub(super) origin: String,
    /// Value of `Proxy-Authorization`.
    pub(super) login: Option<Secret>,
}

impl Forward {
    /// The head of the request, as the proxy wants it.
    fn head(&self, head: &[u8]) -> Option<Vec<u8>> {
        let path = head.iter().position(|byte| *byte == b' ')? + 1;
        let end = head.windows(2).position(|window| window == b"\r\n")? + 2;
        let login = self.login.as_ref().map(|login| format!("Proxy-Authorization: {}\r\n", login.reveal()));
        let login = login.unwrap_or_default();
        Some([&head[..path], self.origin.as_bytes(), &head[path..end], login.as_bytes(), &head[end..]].concat())
    }
}

/// The part of a connector chain that puts [`Watched`] around a connection.
#[derive(Debug)]
pub(super) struct Watch {
    /// When to stop.
    pub(super) stop: Stop,
    /// Set where the connection leads to a proxy that is not asked for a tunnel.
    pub(super) forward: Option<Forward>,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Watched<In>>, ureq::Error> {
        Ok(chained.map(|inner| Watched { inner, stop: self.stop.clone(), forward: self.forward.clone() }))
    }
}

/// A connection whose waits for input are cut into slices.
#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    stop: Stop,
    /// Taken with the first bytes of the one request of this connection.
    forward: Option<Forward>,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let Some(forward) = self.forward.take() else { return self.inner.transmit_output(amount, timeout) };
        let output = self.inner.buffers().output();
        let head = forward.head(&output[..amount]).filter(|head| head.len() <= output.len());
        let head = head.ok_or_else(|| ureq::Error::Io(std::io::Error::other("The request is too long for a proxy")))?;
        output[..head.len()].copy_from_slice(&head);
        self.inner.transmit_output(head.len(), timeout)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_a_proxy_names_the_server() {
        let head = b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n";
        let forward = Forward { origin: "http://h:81".to_owned(), login: Some(Secret::new("Basic x")) };
        let text = String::from_utf8(forward.head(head).expect("a head")).expect("text");
        assert_eq!(text, "GET http://h:81/a?b HTTP/1.1\r\nProxy-Authorization: Basic x\r\nHost: h\r\n\r\n");
        assert_eq!(forward.head(b"GET"), None);
    }
}
