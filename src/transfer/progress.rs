//! How far a long stream has come, told now and then.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Takes a line such as `412 MiB of 1024 MiB (40 %), 96 MiB/s, 6 s left`.
pub type Tell = Box<dyn FnMut(&str) + Send>;

/// A reader that tells how far it has come, not more often than asked for.
pub struct Progress<R> {
    inner: R,
    total: Option<u64>,
    done: u64,
    start: Instant,
    last: Instant,
    every: Duration,
    tell: Tell,
}

impl<R> Progress<R> {
    /// Tells `tell` about `inner`, whose length in bytes may be known, once in `every`.
    pub fn new(inner: R, total: Option<u64>, every: Duration, tell: Tell) -> Self {
        let now = Instant::now();
        Self { inner, total, done: 0, start: now, last: now, every, tell }
    }
}

impl<R: Read> Read for Progress<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.done += count as u64;
        if self.last.elapsed() >= self.every {
            self.last = Instant::now();
            (self.tell)(&line(self.done, self.total, self.start.elapsed()));
        }
        Ok(count)
    }
}

/// The line for `done` bytes of `total` after `time`.
fn line(done: u64, total: Option<u64>, time: Duration) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let seconds = time.as_secs().max(1);
    let speed = done / seconds;
    let Some(total) = total.filter(|total| *total >= done && *total > 0) else {
        return format!("{} MiB, {} MiB/s", mib(done), mib(speed));
    };
    let left = (total - done).checked_div(speed).map_or_else(String::new, |left| format!(", {left} s left"));
    format!("{} MiB of {} MiB ({} %), {} MiB/s{left}", mib(done), mib(total), done * 100 / total, mib(speed))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let (gib, ten) = (1 << 30, Duration::from_secs(10));
        assert_eq!(line(gib / 2, Some(gib), ten), "512 MiB of 1024 MiB (50 %), 51 MiB/s, 10 s left");
        assert_eq!(line(gib, None, ten), "1024 MiB, 102 MiB/s");
        assert_eq!(line(0, Some(gib), Duration::ZERO), "0 MiB of 1024 MiB (0 %), 0 MiB/s");
    }

    #[test]
    fn the_bytes_pass_unchanged() {
        let (tell, told) = channel();
        let tell: Tell = Box::new(move |line: &str| tell.send(line.to_owned()).expect("heard"));
        let mut read = Vec::new();
        Progress::new(&b"abc"[..], Some(3), Duration::ZERO, tell).read_to_end(&mut read).expect("reads");
        assert_eq!(read, b"abc");
        assert!(told.iter().count() >= 1);
    }
}
