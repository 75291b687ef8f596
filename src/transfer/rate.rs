//! How fast a download may be: curl's notation (`--limit-rate`), and a reader that keeps to it.

use std::io::{self, Read};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::exec::control::Control;

/// Longest sleep before cancellation is looked at again.
const NAP: Duration = Duration::from_millis(100);

/// Bytes per second, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

/// A text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not a transfer rate: '{}'", .0.escape_debug())]
pub struct NotARate(String);

impl FromStr for Rate {
    type Err = NotARate;

    /// Reads bytes per second, or with `k`, `m`, `g`, `t` (in either case) multiples of 1024, as curl(1) does.
    ///
    /// A rate of 0 is none: it is for the caller to leave the limit out, as curl takes 0 for "no limit".
    fn from_str(text: &str) -> Result<Self, NotARate> {
        let wrong = || NotARate(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            "t" => 1 << 40,
            _ => return Err(wrong()),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true if text.is_empty() => Some(0),
            true => text.parse::<u64>().ok(),
            false => None,
        };
        if whole.is_empty() || part.len() > 9 || digits.ends_with('.') {
            return Err(wrong());
        }
        let scale = 10u64.pow(u32::try_from(part.len()).unwrap_or(0));
        let fraction = number(part).ok_or_else(wrong)?;
        let bytes = number(whole).and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
        let more = u128::from(fraction) * u128::from(factor) / u128::from(scale);
        let bytes = bytes.checked_add(u64::try_from(more).map_err(|_| wrong())?).ok_or_else(wrong)?;
        if bytes == 0 {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

/// A reader that on average is no faster than its rate.
pub struct Limited<R> {
    inner: R,
    rate: Rate,
    control: Control,
    /// Bytes handed on since then.
    since: Instant,
    bytes: u64,
}

impl<R: Read> Limited<R> {
    /// Slows `inner` down to `rate`; sleeping ends when `control` says so.
    pub fn new(inner: R, rate: Rate, control: Control) -> Self {
        Self { inner, rate, control, since: Instant::now(), bytes: 0 }
    }

    /// Waits until the bytes handed on are due.
    fn wait(&self) -> io::Result<()> {
        let micros = u128::from(self.bytes) * 1_000_000 / u128::from(self.rate.0);
        let due = self.since + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX / 4));
        loop {
            self.control.check().map_err(io::Error::other)?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        // A tenth of a second's worth at a time, so that slow rates stay smooth.
        let most = usize::try_from(self.rate.0 / 10 + 1).unwrap_or(usize::MAX).min(buf.len());
        let n = self.inner.read(&mut buf[..most])?;
        // Time that the source wasted is not made up for by a burst.
        if self.since.elapsed() > Duration::from_secs(10) {
            self.since = Instant::now();
            self.bytes = 0;
        }
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::control::Cancel;

    #[test]
    fn rates_are_read_as_curl_reads_them() {
        let cases = [("100", 100), ("1k", 1024), ("2M", 2 << 20), ("1g", 1 << 30), ("1.5K", 1536), ("8b", 8)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
        for text in ["", "k", "0", "-1", "1x", "1kk", "1.k", ".5m", "99999999999g", "1 k; rm", "1.2.3k", "+5"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_rate_is_kept() {
        let control = Control::new(Cancel::new());
        let mut reader = Limited::new(io::repeat(7).take(50_000), Rate(200_000), control);
        let start = Instant::now();
        let n = io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(n, 50_000);
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[test]
    fn waiting_ends_with_a_cancel() {
        let control = Control::new(Cancel::new());
        let mut reader = Limited::new(io::repeat(7), Rate(1), control.clone());
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 1);
        control.cancel.set();
        assert!(reader.read(&mut [0; 10]).is_err());
    }
}
