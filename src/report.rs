//! How we speak to oned: replies on stdout, one plain line for a failure, prefixed lines for the log.
//!
//! Source: contract 01 §8. The driver process turns every stderr line without a prefix into the text that a user reads,
//! glued together; so there is exactly one. Log lines start with `INFO:`, `WARN:`, `ERROR:` and the action's name.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::exec::control::Stopped;

/// Exit status of a failed action.
pub const FAILED: u8 = 1;
/// Exit status of a call that was wrong in itself: payload, arguments, names.
pub const MISUSED: u8 = 2;
/// Exit status after a deadline, as `timeout(1)` has it.
pub const TIMED_OUT: u8 = 124;
/// Exit status after SIGTERM: 128 + 15.
pub const CANCELLED: u8 = 143;

/// A failure whose exit status is not [`FAILED`]: the call itself was wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);

/// A failure whose text the caller looks for on standard output too: a monitoring probe that hands it on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

/// The exit status for an error.
#[must_use]
pub fn exit_status(error: &anyhow::Error) -> u8 {
    match find::<Stopped>(error) {
        Some(Stopped::Cancelled) => CANCELLED,
        Some(Stopped::Deadline) => TIMED_OUT,
        None if error.is::<Misuse>() => MISUSED,
        None => FAILED,
    }
}

/// The first error of this type among the causes.
///
/// An `io::Error` hides what it was made of from `Error::source`: readers hand errors of ours on inside one.
#[must_use]
pub fn find<E: std::error::Error + 'static>(error: &anyhow::Error) -> Option<&E> {
    error.chain().find_map(within)
}

fn within<'e, E: std::error::Error + 'static>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e E> {
    if let Some(found) = error.downcast_ref::<E>() {
        return Some(found);
    }
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    std::iter::successors(Some(inner as &(dyn std::error::Error + 'static)), |e| e.source()).find_map(within)
}

/// The error and its causes as one line without control characters.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = clean(&cause.to_string());
        // A leaf that shows its source as well would say it twice.
        if !text.is_empty() && !parts.last().is_some_and(|last| last.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Longest text that is shown whole, in characters; an attribute may have as many as a document.
const LONGEST: usize = 4 << 10;

/// Control characters escaped, white space at the ends removed: what came from outside cannot forge a second line. Of a
/// text that is very long, beginning and end.
#[must_use]
pub fn clean(text: &str) -> String {
    let text = text.trim();
    let length = text.chars().count();
    let mut out = String::with_capacity(text.len().min(4 * LONGEST));
    for (at, c) in text.chars().enumerate() {
        if length > LONGEST && at >= LONGEST / 2 && at < length - LONGEST / 4 {
            if at == LONGEST / 2 {
                out.push_str(" … ");
            }
            continue;
        }
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            // Also what breaks lines or turns their direction in a user interface.
            '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Severity of a log line, as the driver process knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Only in the structured log.
    Debug,
    /// What is being done.
    Info,
    /// Something is odd, the action goes on.
    Warn,
    /// Something failed; the plain line says it to the user.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        })
    }
}

/// Writes log lines: to stderr in oned's dialect, and as JSON lines to the file that `ONESTORE_LOG` names.
#[derive(Clone, Debug)]
pub struct Log {
    action: String,
    call: String,
    quiet: bool,
    file: Option<Arc<Mutex<std::fs::File>>>,
}

impl Log {
    /// A log for the action `call` (`datastore/fs/cp`); `file` is the value of `ONESTORE_LOG`.
    ///
    /// A log file that cannot be opened is no reason to fail an action: it is said once on stderr.
    #[must_use]
    pub fn new(call: &str, file: Option<&std::path::Path>) -> Self {
        let action = call.rsplit('/').next().unwrap_or(call).to_owned();
        let mut log = Self { action, call: call.to_owned(), quiet: false, file: None };
        if let Some(path) = file {
            use std::os::unix::fs::OpenOptionsExt;
            match OpenOptions::new().create(true).append(true).mode(0o600).open(path) {
                Ok(file) => log.file = Some(Arc::new(Mutex::new(file))),
                Err(e) => log.say(Level::Warn, &format!("Cannot open log file {}: {e}", path.display())),
            }
        }
        log
    }

    /// A log that says nothing on stderr, for `explain`.
    #[must_use]
    pub fn quiet(call: &str) -> Self {
        Self { quiet: true, ..Self::new(call, None) }
    }

    /// Writes one line.
    pub fn say(&self, level: Level, text: &str) {
        let text = clean(text);
        if !self.quiet && level != Level::Debug {
            // The pipe may be gone when oned cancelled us; that must not stop the clean-up.
            let _ = writeln!(io::stderr(), "{level}: {}: {text}", self.action);
        }
        self.record(level, &text);
    }

    /// How often progress is worth telling: twice a second to a person, twice a minute to a log.
    #[must_use]
    pub fn progress_interval(&self) -> Duration {
        if io::stderr().is_terminal() { Duration::from_millis(500) } else { Duration::from_secs(30) }
    }

    /// Tells how far something has come: in place to a person, as a line to a log.
    pub fn progress(&self, text: &str) {
        if self.quiet || !io::stderr().is_terminal() {
            return self.say(Level::Info, text);
        }
        // To the beginning of the line, and the line cleared: the next text stands over it.
        let _ = write!(io::stderr(), "\r{}: {}\x1b[K\r", self.action, clean(text));
    }

    /// The one plain line of a failure.
    pub fn fail(&self, error: &anyhow::Error) {
        let line = one_line(error);
        // A line that looks like a log line would not reach the user.
        let shown = match line.split_once(':') {
            Some(("ERROR" | "INFO" | "WARN" | "DEBUG", _)) => format!("Failed: {line}"),
            _ => line,
        };
        let _ = writeln!(io::stderr(), "{shown}");
        self.record(Level::Error, &shown);
    }

    /// One JSON line in the structured log.
    fn record(&self, level: Level, text: &str) {
        let Some(file) = &self.file else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = serde_json::json!({
            "time": time.as_secs_f64(),
            "pid": std::process::id(),
            "level": level.to_string(),
            "call": self.call,
            "text": text,
        });
        if let Ok(mut file) = file.lock() {
            let _ = writeln!(file, "{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn an_error_is_one_line_and_says_nothing_twice() {
        let error = anyhow!("disk full\n$(x)\u{1b}[0m").context("Error copying /a to /b");
        assert_eq!(one_line(&error), "Error copying /a to /b: disk full $(x)\\u{1b}[0m");
        let doubled = anyhow!("inner").context("outer: inner");
        assert_eq!(one_line(&doubled), "outer: inner");
    }

    #[test]
    fn a_text_without_end_is_shortened_and_keeps_its_end() {
        let shown = clean(&format!("Bad PATH {}: no such file\u{202e}", "x".repeat(1 << 20)));
        assert!(shown.starts_with("Bad PATH xxx") && shown.ends_with("xx: no such file\\u{202e}"), "{shown}");
        assert!(shown.chars().count() < LONGEST);
    }

    #[test]
    fn the_exit_status_tells_the_kind() {
        assert_eq!(exit_status(&anyhow!("x")), FAILED);
        assert_eq!(exit_status(&anyhow::Error::new(Misuse("x".into()))), MISUSED);
        let cancelled = anyhow::Error::new(Stopped::Cancelled).context("Error copying");
        assert_eq!(exit_status(&cancelled), CANCELLED);
        let within = io::Error::other(io::Error::other(Stopped::Deadline));
        assert_eq!(exit_status(&anyhow::Error::new(within).context("Cannot read")), TIMED_OUT);
    }
}
