//! What a thread writes as a stream for somebody else: a file of one host for another, the output of a program.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::control::Control;
use super::host::Host;
use super::interpret::Io;
use super::op::{Op, Script};

/// Opens the file `path` of `host` as a stream. Its end is only reached when the host said that all was sent.
///
/// # Errors
/// When no pipe or thread can be made. What goes wrong at the host is the error of the last read.
pub fn file_of(host: &Arc<dyn Host>, path: &Path, control: &Control) -> io::Result<Relay> {
    let script = Script::from(Op::Send { path: path.to_owned() });
    let (host, control) = (Arc::clone(host), control.clone());
    Relay::start(move |mut writer| {
        let io = Io { output: Some(&mut writer), ..Io::default() };
        host.run(&script, io, &control).map(drop).map_err(io::Error::other)
    })
}

/// What a thread writes, as a reader. The last read fails with what the thread failed with.
pub struct Relay {
    reader: Option<PipeReader>,
    sender: Option<JoinHandle<io::Result<()>>>,
}

impl Relay {
    /// Starts a thread that writes.
    ///
    /// # Errors
    /// When no pipe or thread can be made.
    pub fn start(write: impl FnOnce(PipeWriter) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let sender = std::thread::Builder::new().name("relay".to_owned()).spawn(move || write(writer))?;
        Ok(Self { reader: Some(reader), sender: Some(sender) })
    }

    /// What becomes readable when there is something to read; nothing at the end.
    pub(crate) fn pipe(&self) -> Option<&PipeReader> {
        self.reader.as_ref()
    }

    /// Reads no more, and waits for the thread to end, but not longer than `time`. What it failed with is of no interest.
    pub(crate) fn end_within(mut self, time: Duration) {
        self.reader = None;
        let until = Instant::now() + time;
        while self.sender.as_ref().is_some_and(|sender| !sender.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn join(&mut self) -> io::Result<()> {
        match self.sender.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("The sending thread panicked")),
        }
    }
}

impl Read for Relay {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.reader {
            Some(reader) => reader.read(buf)?,
            None => 0,
        };
        if count == 0 && !buf.is_empty() {
            self.join()?;
        }
        Ok(count)
    }
}

impl Drop for Relay {
    /// The thread's next write fails, and what it has started ends. It is not waited for: it may not write for long.
    fn drop(&mut self) {
        self.reader = None;
        if self.sender.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_end_of_the_stream_is_the_end_of_the_work() {
        let mut relay = Relay::start(|mut w| w.write_all(b"abc").and(Err(io::Error::other("late")))).expect("a relay");
        let mut read = Vec::new();
        assert_eq!(relay.read_to_end(&mut read).expect_err("fails at the end").to_string(), "late");
        assert_eq!(read, b"abc");
    }

    #[test]
    fn a_dropped_reader_ends_the_writer() {
        let (tell, told) = std::sync::mpsc::channel();
        let relay = Relay::start(move |mut w| {
            let result = loop {
                if let Err(e) = w.write_all(&[0; 4096]) {
                    break e.kind();
                }
            };
            tell.send(result).map_err(io::Error::other)
        });
        drop(relay);
        assert_eq!(told.recv().expect("the writer ended"), io::ErrorKind::BrokenPipe);
    }
}
