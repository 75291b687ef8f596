//! What came of it: a table for people, lines of JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::tracer::Who;
use crate::conformance::case::Case;

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
    /// State-changing calls of an undisturbed run.
    pub points: usize,
    /// Runs that were killed.
    pub killed: usize,
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
    pub fn new(case: &Case, who: Who) -> Self {
        let who = match who {
            Who::Itself => "self",
            Who::Children => "children",
            Who::Remote => "remote",
        };
        Self {
            family: case.family.clone(),
            action: case.action().to_owned(),
            variant: format!("{}/{}", case.file, case.name),
            who: who.to_owned(),
            points: 0,
            killed: 0,
            done_already: 0,
            swept_later: 0,
            orphans: 0,
            failures: Vec::new(),
            seconds: 0.0,
        }
    }
}

/// The table, one line per scenario.
pub fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<26} {:<44} {:<8} {:>6} {:>6} {:>6} {:>7} {:>8} {:>7}",
        "action", "variant", "who", "points", "killed", "done", "orphans", "failures", "seconds"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<26} {:<44} {:<8} {:>6} {:>6} {:>6} {:>7} {:>8} {:>7.1}",
            row.action, row.variant, row.who, row.points, row.killed, row.done_already, row.orphans, row.failures.len(), row.seconds
        );
    }
    text
}

/// The failures, in words.
pub fn failures(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for failure in &row.failures {
            let _ = writeln!(text, "{} {}: {} killed at {}: {}", row.action, row.variant, row.who, failure.number, failure.point);
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

/// A line for each action and each who, as Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut sums: BTreeMap<(&str, &str), (usize, usize, usize, usize, usize, f64)> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry((&row.action, &row.who)).or_default();
        sum.0 += 1;
        sum.1 += row.points;
        sum.2 += row.killed;
        sum.3 += row.orphans;
        sum.4 += row.failures.len();
        sum.5 += row.seconds;
    }
    let mut text = String::from(
        "| action | killed | variants | points | kills | whole, untold | failures | seconds |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut all = (0, 0, 0, 0, 0, 0.0);
    for ((action, who), sum) in &sums {
        let _ = writeln!(
            text,
            "| `{action}` | {who} | {} | {} | {} | {} | {} | {:.0} |",
            sum.0, sum.1, sum.2, sum.3, sum.4, sum.5
        );
        all = (all.0 + sum.0, all.1 + sum.1, all.2 + sum.2, all.3 + sum.3, all.4 + sum.4, all.5 + sum.5);
    }
    let _ = writeln!(text, "| all | | {} | {} | {} | {} | {} | {:.0} |", all.0, all.1, all.2, all.3, all.4, all.5);
    text
}
