//! Runs a reader in a thread of its own, so that two stages of an import use two cores.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes of one buffer: 256 KiB.
const BUFFER: usize = 256 << 10;
/// Buffers of one pipe; two pipes in a row hold 3 MiB.
const BUFFERS: usize = 6;

type Filled = io::Result<Vec<u8>>;

/// The other end of a reader that runs in a thread. Dropping it ends the thread at its next buffer.
pub(super) struct Overlapped {
    filled: Receiver<Filled>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    done: bool,
}

impl Overlapped {
    /// Starts to read `reader` ahead.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(super) fn start(name: &str, mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let (send_filled, filled) = sync_channel(BUFFERS);
        let (empty, take_empty) = channel::<Vec<u8>>();
        for _ in 0..BUFFERS {
            // The receiver is alive.
            let _ = empty.send(Vec::new());
        }
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || pump(&mut *reader, &take_empty, &send_filled))?;
        Ok(Self { filled, empty, current: Vec::new(), at: 0, done: false })
    }
}

/// Fills buffers until the end, an error, or nobody takes them. An empty buffer is the end.
fn pump(reader: &mut dyn Read, empty: &Receiver<Vec<u8>>, filled: &SyncSender<Filled>) {
    while let Ok(mut buffer) = empty.recv() {
        buffer.resize(BUFFER, 0);
        let (n, failed) = fill(reader, &mut buffer);
        buffer.truncate(n);
        let last = n < BUFFER;
        if n > 0 && filled.send(Ok(buffer)).is_err() {
            return;
        }
        if last {
            let _ = filled.send(failed.map_or(Ok(Vec::new()), Err));
            return;
        }
    }
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (n, Some(error)),
        }
    }
    (n, None)
}

impl Read for Overlapped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.done && !buf.is_empty() {
            // The thread may have ended.
            let _ = self.empty.send(std::mem::take(&mut self.current));
            self.at = 0;
            self.current = match self.filled.recv() {
                Ok(Ok(buffer)) => buffer,
                Ok(Err(error)) => {
                    self.done = true;
                    return Err(error);
                }
                // It ends without a word only by a panic.
                Err(_) => return Err(io::Error::other("A stage of the import died")),
            };
            self.done = self.current.is_empty();
        }
        let n = buf.len().min(self.current.len() - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails;

    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }

    struct Panics;

    impl Read for Panics {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("on purpose")
        }
    }

    #[test]
    fn bytes_and_errors_come_through_in_order() {
        let data: Vec<u8> = (0..3_000_001u32).map(|n| n.to_le_bytes()[1]).collect();
        for len in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, data.len()] {
            let mut out = Vec::new();
            let reader = io::Cursor::new(data[..len].to_vec());
            Overlapped::start("t", Box::new(reader)).unwrap().read_to_end(&mut out).unwrap();
            assert!(out == data[..len], "{len}");
        }
        let reader = io::Cursor::new(data.clone()).chain(Fails);
        let mut out = Vec::new();
        let error = Overlapped::start("t", Box::new(reader)).unwrap().read_to_end(&mut out).unwrap_err();
        assert_eq!(error.to_string(), "broken");
        assert!(out == data);
    }

    #[test]
    fn a_reader_that_panics_is_no_end_of_data() {
        let mut reader = Overlapped::start("t", Box::new(Panics)).unwrap();
        assert!(reader.read(&mut [0; 4]).is_err());
    }
}
