//! What the cache of images knows of each: `<image>-metadata`, a YAML file of two keys, as upstream's `tm_cache.rb` writes it.
//!
//! Source: contract 02 §11. Upstream's Ruby and this read and write the same files, so the text is kept to the letter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::transfer::sigv4;

/// Seconds of a day.
const DAY: u64 = 86_400;

/// One image of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// When it was last asked for, in seconds since 1970.
    pub last_used: u64,
    /// oned's `MODTIME` of the image when it was fetched: another one means other data.
    pub modtime: String,
}

impl Metadata {
    /// An image that is used now.
    pub fn now(modtime: &str) -> Self {
        Self { last_used: seconds(SystemTime::now()), modtime: modtime.to_owned() }
    }

    /// The content of the file; nothing where it is empty or not whole, as after a failed fetch.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim().trim_matches(['\'', '"']).to_owned()).filter(|value| !value.is_empty())
        };
        Some(Self { last_used: epoch(&value(":last_used: ")?)?, modtime: value(":modtime: ")? })
    }
}

/// Whether what was asked for at `last_used`, in seconds since 1970, was not for as long as `age`.
pub fn is_older(last_used: u64, age: Duration, now: SystemTime) -> bool {
    last_used.saturating_add(age.as_secs()) < seconds(now)
}

/// The content of the file.
impl std::fmt::Display for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (year, month, day) = sigv4::date(self.last_used / DAY);
        let rest = self.last_used % DAY;
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        writeln!(
            f,
            "---\n:last_used: '{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00'\n:modtime: '{}'",
            self.modtime
        )
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970 of `2026-11-21T20:30:00+01:00`; nothing for another text, or a time before.
fn epoch(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        text.get(from..to).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    };
    let mark = |at: usize, byte: u8| (text.as_bytes().get(at) == Some(&byte)).then_some(());
    for (at, byte) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        mark(at, byte)?;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let zone = match text.get(19..)? {
        "Z" => 0,
        zone if zone.len() == 6 => {
            let away = number(20, 22)? * 3600 + number(23, 25)? * 60;
            if zone.starts_with('-') { -away } else { away }
        }
        _ => return None,
    };
    // Days of the civil calendar: years begin in March, so that a leap day is the last one.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second - zone).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_one_that_ruby_writes() {
        let data = Metadata { last_used: 1_795_293_065, modtime: "1795290000".into() };
        let text = "---\n:last_used: '2026-11-21T20:31:05+00:00'\n:modtime: '1795290000'\n";
        assert_eq!(data.to_string(), text);
        assert_eq!(Metadata::parse(text), Some(data.clone()));
        let there = "---\n:last_used: '2026-11-21T21:31:05+01:00'\n:modtime: '1795290000'\n";
        assert_eq!(Metadata::parse(there), Some(data));
    }

    #[test]
    fn what_a_failed_fetch_leaves_is_nothing() {
        for text in ["", "---\n", "--- {}\n", "---\n:modtime: '1'\n", "---\n:last_used: 'soon'\n:modtime: '1'\n"] {
            assert_eq!(Metadata::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_time_is_read_back() {
        for last_used in [0, 951_782_399, 951_868_800, 1_709_164_800, 4_102_444_799, 1_795_293_065] {
            let data = Metadata { last_used, modtime: "7".into() };
            assert_eq!(Metadata::parse(&data.to_string()), Some(data));
        }
        for bad in [
            "2026-11-21 20:31:05+00:00",
            "2026-11-21T20:31:05",
            "1969-12-31T23:59:59Z",
            "2026-1-21T20:31:05Z",
            "2026-13-21T20:31:05Z",
            "2026-11-21T24:31:05Z",
        ] {
            assert_eq!(epoch(bad), None, "{bad}");
        }
    }
}
