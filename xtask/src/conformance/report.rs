//! The score.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter, Write as _};

use super::case::Case;
use super::run::Verdict;

/// Whose tree it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Everything has to pass.
    Ours,
    /// Marks of what is known to be wrong count.
    Upstream,
}

/// A case and how it ended.
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// How it ended.
    pub verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Score {
    Passed,
    KnownWrong,
    Failed,
}

/// All outcomes of a run.
pub struct Report {
    side: Side,
    outcomes: Vec<Outcome>,
    verbose: bool,
}

impl Report {
    /// A report on these outcomes.
    pub fn new(side: Side, outcomes: Vec<Outcome>, verbose: bool) -> Self {
        Self { side, outcomes, verbose }
    }

    /// How many cases failed without being known to.
    pub fn failed(&self) -> usize {
        self.count(Score::Failed)
    }

    fn count(&self, score: Score) -> usize {
        self.outcomes.iter().filter(|outcome| self.score(outcome) == score).count()
    }

    fn score(&self, outcome: &Outcome) -> Score {
        let verdict = &outcome.verdict;
        let known = self.side == Side::Upstream && outcome.case.upstream.is_some() && !verdict.broken;
        match verdict.differences.is_empty() {
            true => Score::Passed,
            false if known => Score::KnownWrong,
            false => Score::Failed,
        }
    }

    /// Passed, known wrong, failed and all, by family and action.
    fn rows(&self) -> BTreeMap<(String, String), [usize; 4]> {
        let mut rows: BTreeMap<(String, String), [usize; 4]> = BTreeMap::new();
        for outcome in &self.outcomes {
            let key = (outcome.case.family.clone(), outcome.case.action().to_owned());
            let row = rows.entry(key).or_default();
            row[self.score(outcome) as usize] += 1;
            row[3] += 1;
        }
        rows
    }

    fn of(&self, score: Score) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| self.score(outcome) == score)
    }

    /// Cases that are marked as known to be wrong in upstream's tree and passed there.
    fn better_than_known(&self) -> impl Iterator<Item = &Outcome> {
        self.of(Score::Passed).filter(|outcome| self.side == Side::Upstream && outcome.case.upstream.is_some())
    }

    fn totals(&self) -> [usize; 4] {
        let [passed, known, failed] = [Score::Passed, Score::KnownWrong, Score::Failed].map(|score| self.count(score));
        [passed, known, failed, self.outcomes.len()]
    }

    /// The same as a Markdown document.
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| family | action | passed | known wrong | failed | total |\n|---|---|--:|--:|--:|--:|\n");
        for ((family, action), [passed, known, failed, total]) in self.rows() {
            let _ = writeln!(text, "| {family} | `{action}` | {passed} | {known} | {failed} | {total} |");
        }
        let [passed, known, failed, total] = self.totals();
        let _ = writeln!(text, "| | all | {passed} | {known} | {failed} | {total} |");
        for (score, title) in [(Score::Failed, "Failed"), (Score::KnownWrong, "Known to be wrong")] {
            if self.count(score) == 0 {
                continue;
            }
            let _ = writeln!(text, "\n## {title}\n");
            for outcome in self.of(score) {
                let _ = writeln!(text, "- `{}`: {}", outcome.case.id(), outcome.case.why);
                if let (Score::KnownWrong, Some(reason)) = (score, &outcome.case.upstream) {
                    let _ = writeln!(text, "  {}", reason.trim_start_matches("fails: "));
                }
                let _ = writeln!(text, "  First difference: `{}`", lines(&outcome.verdict)[0]);
            }
        }
        text
    }
}

/// Characters of a difference that are shown.
const SHOWN: usize = 400;

/// What differs, each in one line that can be read.
fn lines(verdict: &Verdict) -> Vec<String> {
    let line = |difference: &String| difference.replace('\n', " / ").chars().take(SHOWN).collect();
    verdict.differences.iter().map(line).collect()
}

fn write_lines(f: &mut Formatter<'_>, verdict: &Verdict) -> fmt::Result {
    lines(verdict).iter().try_for_each(|line| writeln!(f, "    - {line}"))
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for outcome in self.of(Score::KnownWrong) {
            writeln!(f, "known wrong {}", outcome.case.id())?;
            write_lines(f, &outcome.verdict)?;
        }
        for outcome in self.better_than_known() {
            writeln!(f, "passes, though marked as wrong: {}", outcome.case.id())?;
        }
        for outcome in self.of(Score::Failed) {
            writeln!(f, "FAILED {} ({} ms)", outcome.case.id(), outcome.verdict.wall_ms)?;
            writeln!(f, "    {}", outcome.case.why)?;
            write_lines(f, &outcome.verdict)?;
            if self.verbose {
                for line in outcome.verdict.stderr.lines() {
                    writeln!(f, "    | {line}")?;
                }
            }
        }
        writeln!(
            f,
            "\n{:<10} {:<26} {:>7} {:>12} {:>7} {:>6}",
            "family", "action", "passed", "known wrong", "failed", "total"
        )?;
        for ((family, action), [passed, known, failed, total]) in self.rows() {
            writeln!(f, "{family:<10} {action:<26} {passed:>7} {known:>12} {failed:>7} {total:>6}")?;
        }
        let [passed, known, failed, total] = self.totals();
        writeln!(f, "{:<10} {:<26} {passed:>7} {known:>12} {failed:>7} {total:>6}\n", "", "all")?;
        writeln!(f, "{passed} passed, {failed} failed")
    }
}
