//! How often each target was executed, summed over runs: a file of lines `TARGET EXECUTIONS SECONDS`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// The counts, and the file that holds them; without one they are those of this run.
#[derive(Default)]
pub struct Tally {
    file: Option<PathBuf>,
    counts: BTreeMap<String, (u64, f64)>,
}

impl Tally {
    /// What a file holds; nothing where there is none yet.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is none of ours.
    pub fn open(file: &Path) -> Result<Self> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("Cannot read {}", file.display()))?,
        };
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match &words[..] {
                [name, count, seconds] => count.parse().ok().zip(seconds.parse().ok()).map(|both| (*name, both)),
                _ => None,
            };
            let (name, both) = parsed.with_context(|| format!("{}: not a count: {line}", file.display()))?;
            counts.insert(name.to_owned(), both);
        }
        Ok(Self { file: Some(file.to_owned()), counts })
    }

    /// Executions of a target in all runs.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).map_or(0, |(count, _)| *count)
    }

    /// Adds executions, and the time that they took.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn add(&mut self, name: &str, count: u64, time: Duration) -> Result<()> {
        if let Some(file) = &self.file {
            // What other runs have counted meanwhile stays.
            *self = Self::open(file)?;
        }
        let entry = self.counts.entry(name.to_owned()).or_default();
        *entry = (entry.0 + count, entry.1 + time.as_secs_f64());
        self.write()
    }

    /// Writes the file anew, whole at every moment.
    fn write(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut text = String::new();
        for (name, (count, seconds)) in &self.counts {
            writeln!(text, "{name:<14} {count:>12} {seconds:>9.1}")?;
        }
        let mut new = file.clone().into_os_string();
        new.push(".new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, file));
        written.with_context(|| format!("Cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_runs_add_up() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("tally");
        for run in 1..=2 {
            let mut tally = Tally::open(&file)?;
            tally.add("conf", 7, Duration::from_secs(2))?;
            assert_eq!(tally.of("conf"), run * 7);
        }
        let tally = Tally::open(&file)?;
        assert_eq!((tally.of("conf"), tally.of("word")), (14, 0));
        fs::write(&file, "conf many 1\n")?;
        assert!(Tally::open(&file).is_err());
        Ok(())
    }
}
