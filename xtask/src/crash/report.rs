//! What came of it: a table for people, lines of JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::scenario::By;
use super::tracer::Who;
use crate::conformance::case::Case;

/// Marks of the table of kills and power cuts in a page.
const BEGIN: &str = "<!-- cargo xtask crash --report … --write -->";
/// Marks of the table of faults.
const BEGIN_FAULTS: &str = "<!-- cargo xtask crash --fault … --report … --write -->";
/// End of both.
const END: &str = "<!-- end of the table -->";

/// One scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The family of cases.
    pub family: String,
    /// The entry that was called.
    pub action: String,
    /// The case.
    pub variant: String,
    /// Who was killed.
    pub who: String,
    /// What was injected, if it was not a kill.
    #[serde(default)]
    pub fault: Option<String>,
    /// Faults after which the action succeeded all the same.
    #[serde(default)]
    pub succeeded: usize,
    /// Faults after which it failed, and part of what it takes away or replaces was gone or replaced.
    #[serde(default)]
    pub partly: usize,
    /// State-changing calls of an undisturbed run.
    pub points: usize,
    /// Of these, those at which a kill finds the same as at the one before; they are not tried.
    #[serde(default)]
    pub same: usize,
    /// Every other point was tried.
    #[serde(default)]
    pub full: bool,
    /// Runs that were killed, or had a fault.
    pub killed: usize,
    /// Repetitions: the action is not repeated where an earlier kill had left the same.
    #[serde(default)]
    pub repeated: usize,
    /// Kills after which the action had nothing left to do and said so.
    pub done_already: usize,
    /// Of these, those whose staging file the next writing action takes away.
    pub swept_later: usize,
    /// Kills between the last change and the exit: a whole image that oned was not told of.
    pub orphans: usize,
    /// What was wrong.
    pub failures: Vec<Failure>,
    /// How long all of it took.
    pub seconds: f64,
}

/// A kill after which something was wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Number of the point.
    pub number: usize,
    /// The call.
    pub point: String,
    /// What was wrong.
    pub wrong: Vec<String>,
    /// Standard error of the disturbed run.
    pub stderr: String,
}

impl Row {
    /// An empty one.
    pub fn new(case: &Case, who: Who, by: By) -> Self {
        let who = match who {
            _ if matches!(by, By::Lie(_)) => "tools",
            _ if matches!(by, By::Cut(_)) => "line",
            _ if by == By::Hang => "storage",
            Who::Itself => "self",
            Who::Children => "children",
            Who::Remote => "remote",
        };
        Self {
            family: case.family.clone(),
            action: case.action().to_owned(),
            variant: format!("{}/{}", case.file, case.name),
            who: who.to_owned(),
            fault: by.name().map(str::to_owned),
            succeeded: 0,
            partly: 0,
            points: 0,
            same: 0,
            full: false,
            killed: 0,
            repeated: 0,
            done_already: 0,
            swept_later: 0,
            orphans: 0,
            failures: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Whether it is of this scenario.
    pub fn is_of(&self, case: &Case, who: Who) -> bool {
        let other = Self::new(case, who, By::Kill);
        (&self.family, &self.variant, &self.who) == (&other.family, &other.variant, &other.who)
    }
}

/// The table, one line per scenario.
pub fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<26} {:<44} {:<8} {:<22} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>8} {:>7}",
        "action",
        "variant",
        "who",
        "fault",
        "points",
        "same",
        "tried",
        "left",
        "done",
        "orphans",
        "failures",
        "seconds"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<26} {:<44} {:<8} {:<22} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>8} {:>7.1}",
            row.action,
            row.variant,
            row.who,
            row.fault.as_deref().unwrap_or("kill"),
            row.points,
            row.same,
            row.killed,
            row.repeated,
            row.done_already,
            row.orphans,
            row.failures.len(),
            row.seconds
        );
    }
    text
}

/// The failures, in words.
pub fn failures(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for failure in &row.failures {
            let _ = writeln!(
                text,
                "{} {}: {} {} at {}: {}",
                row.action,
                row.variant,
                row.who,
                row.fault.as_deref().unwrap_or("killed"),
                failure.number,
                failure.point
            );
            for wrong in &failure.wrong {
                let _ = writeln!(text, "    {wrong}");
            }
            for line in failure.stderr.lines().take(4) {
                let _ = writeln!(text, "    | {line}");
            }
        }
    }
    text
}

/// Rows that were written as lines of JSON.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub fn read(files: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("Cannot read {}", file.display()))?;
        for line in text.lines() {
            rows.push(serde_json::from_str(line).with_context(|| format!("{} holds no rows", file.display()))?);
        }
    }
    Ok(rows)
}

/// Puts the tables into the page, between their marks; one without a row stays as it is.
///
/// # Errors
/// The page cannot be read or written, or has no marks.
pub fn write(page: &Path, rows: &[Row]) -> Result<()> {
    let mut text = std::fs::read_to_string(page).with_context(|| format!("Cannot read {}", page.display()))?;
    let (faults, kills): (Vec<Row>, Vec<Row>) = rows.iter().cloned().partition(|row| row.fault.is_some());
    for (begin, rows, table) in
        [(BEGIN, &kills, markdown as fn(&[Row]) -> String), (BEGIN_FAULTS, &faults, markdown_of_faults)]
    {
        if rows.is_empty() {
            continue;
        }
        let (head, rest) = text.split_once(begin).with_context(|| format!("{} has no line {begin}", page.display()))?;
        let (_, tail) = rest.split_once(END).with_context(|| format!("{} has no line {END}", page.display()))?;
        text = format!("{head}{begin}\n\n{}\n{END}{tail}", table(rows));
    }
    Ok(std::fs::write(page, text)?)
}

/// A line for each family, each fault and who had it, as Markdown.
fn markdown_of_faults(rows: &[Row]) -> String {
    let mut sums: BTreeMap<[&str; 3], [usize; 6]> = BTreeMap::new();
    for row in rows {
        let failed = row.killed - row.succeeded.min(row.killed);
        let key = [row.family.as_str(), row.fault.as_deref().unwrap_or_default(), &row.who];
        for key in [key, ["\u{7f}", "", ""]] {
            let sum = sums.entry(key).or_default();
            let add = [1, row.points, row.killed, row.succeeded, failed, row.failures.len()];
            sum.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
        }
    }
    let mut text = String::from(
        "| family | fault | in | variants | points | tried | succeeded all the same | failed as it should | failures |\n\
         |---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for ([family, fault, who], [variants, points, tried, succeeded, failed, failures]) in &sums {
        let family = if who.is_empty() { "**all**" } else { family };
        let failed = failed - failures.min(failed);
        let _ = writeln!(
            text,
            "| {family} | {fault} | {who} | {variants} | {points} | {tried} | {succeeded} | {failed} | {failures} |"
        );
    }
    text
}

/// A line for each action and each way to disturb it, as Markdown.
fn markdown(rows: &[Row]) -> String {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    let mut all = Sum::default();
    for row in rows {
        sums.entry((&row.action, &row.who)).or_default().add(row);
        all.add(row);
    }
    let mut text = String::from(
        "| action | disturbed | variants | in full | points | the same | tried | repeated | answered \"done already\" | whole, untold | failures |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for ((action, who), sum) in &sums {
        let _ = writeln!(text, "| `{action}` | {who} | {sum}");
    }
    let _ = writeln!(text, "| **all** | | {all}");
    text
}

/// Sums of rows.
#[derive(Default)]
struct Sum {
    variants: usize,
    points: usize,
    same: usize,
    full: usize,
    killed: usize,
    repeated: usize,
    done: usize,
    orphans: usize,
    failures: usize,
}

impl Sum {
    fn add(&mut self, row: &Row) {
        self.variants += 1;
        self.points += row.points;
        self.same += row.same;
        self.full += usize::from(row.full || row.killed >= row.points);
        self.killed += row.killed;
        // Rows that do not tell were written when each kill was followed by a repetition.
        self.repeated += if row.repeated == 0 { row.killed } else { row.repeated };
        self.done += row.done_already;
        self.orphans += row.orphans;
        self.failures += row.failures.len();
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { variants, points, same, full, killed, repeated, done, orphans, failures } = self;
        write!(f, "{variants} | {full} | {points} | {same} | {killed} | {repeated} | {done} | {orphans} | {failures} |")
    }
}
