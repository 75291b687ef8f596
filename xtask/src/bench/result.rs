//! From samples to figures: medians, ratios of pairs, and whether budgets are kept.

use std::time::Duration;

use super::lab::Who;
use super::measure::Sample;
use super::subject::{Budget, PEAK, Subject, Tool};

/// All runs of one contestant.
pub struct Series {
    /// Who it is.
    pub who: Who,
    /// The plain tool, if that is who.
    pub tool: Option<Tool>,
    /// What came out.
    pub outcome: Outcome,
}

/// How a series ended.
pub enum Outcome {
    /// Every run went well: the samples in the order of the rounds, and the number of child processes if known.
    Ran {
        /// One sample a round.
        samples: Vec<Figures>,
        /// Processes that were started besides the first one.
        children: Option<usize>,
    },
    /// A run failed, with what it said.
    Failed(String),
    /// It was not run, with the reason.
    NotRun(String),
}

/// One sample's numbers.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Seconds.
    pub wall: f64,
    /// Seconds.
    pub cpu: f64,
    /// Bytes.
    pub peak: u64,
}

impl From<&Sample> for Figures {
    fn from(sample: &Sample) -> Self {
        let seconds = |d: Duration| d.as_secs_f64();
        Self { wall: seconds(sample.wall), cpu: seconds(sample.cpu), peak: sample.peak }
    }
}

/// One subject with all its series.
pub struct Row {
    /// What was measured.
    pub subject: &'static Subject,
    /// Who was measured.
    pub series: Vec<Series>,
}

/// What became of a budget.
pub struct Verdict {
    /// The budget in words.
    pub budget: String,
    /// Kept or not; none where it cannot be told.
    pub kept: Option<bool>,
}

impl Series {
    /// The samples; none where there are none.
    pub fn samples(&self) -> &[Figures] {
        match &self.outcome {
            Outcome::Ran { samples, .. } => samples,
            Outcome::Failed(_) | Outcome::NotRun(_) => &[],
        }
    }

    /// Median of the wall time, seconds.
    pub fn wall(&self) -> Option<f64> {
        median(self.samples().iter().map(|s| s.wall))
    }

    /// Median of the CPU time, seconds.
    pub fn cpu(&self) -> Option<f64> {
        median(self.samples().iter().map(|s| s.cpu))
    }

    /// Largest peak of all runs, bytes.
    pub fn peak(&self) -> Option<u64> {
        self.samples().iter().map(|s| s.peak).max()
    }

    /// Child processes.
    pub fn children(&self) -> Option<usize> {
        match &self.outcome {
            Outcome::Ran { children, .. } => *children,
            Outcome::Failed(_) | Outcome::NotRun(_) => None,
        }
    }
}

impl Row {
    /// The series of somebody.
    pub fn of(&self, who: Who) -> Option<&Series> {
        self.series.iter().find(|s| s.who == who)
    }

    /// The series of the plain tools.
    pub fn tools(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(|s| s.who == Who::Tool)
    }

    /// The median over the rounds of the other's wall time by ours.
    pub fn times_faster(&self) -> Option<f64> {
        pairs(self.of(Who::Other)?, self.of(Who::Drivers)?, |other, ours| other / ours)
    }

    /// The median over the rounds of our wall time by a tool's.
    pub fn by_tool(&self, tool: &Series) -> Option<f64> {
        pairs(self.of(Who::Drivers)?, tool, |ours, tool| ours / tool)
    }

    /// The median over the rounds of our wall time by that of the slowest tool.
    pub fn by_slowest(&self) -> Option<f64> {
        let tools: Vec<&[Figures]> = self.tools().map(Series::samples).collect();
        let slowest = |n: usize| tools.iter().filter_map(|samples| samples.get(n)).map(|s| s.wall).reduce(f64::max);
        let ours = self.of(Who::Drivers)?.samples().iter().enumerate();
        median(ours.filter_map(|(n, sample)| Some(sample.wall / slowest(n)?)))
    }

    /// Every budget of the subject with what became of it.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let ours = self.of(Who::Drivers);
        let tool = self.tools().next();
        let judge = |budget: &Budget| match *budget {
            Budget::Wall(ms) => Verdict {
                budget: format!("≤ {ms} ms"),
                kept: ours.and_then(Series::wall).map(|wall| wall * 1000.0 <= ms),
            },
            Budget::Cpu(ms) => Verdict {
                budget: format!("≤ {ms} ms CPU"),
                kept: ours.and_then(Series::cpu).map(|cpu| cpu * 1000.0 <= ms),
            },
            Budget::Children(n) => Verdict {
                budget: format!("≤ {n} child"),
                kept: ours.and_then(Series::children).map(|children| children <= n),
            },
            Budget::TimesFaster(n) => {
                Verdict { budget: format!("≥ {n} × faster"), kept: self.times_faster().map(|times| times >= n) }
            }
            Budget::ByTool(n) => Verdict {
                budget: format!("≤ {n} × the tool"),
                kept: tool.and_then(|tool| self.by_tool(tool)).map(|by| by <= n),
            },
            Budget::ByFloor(n) => {
                let is_floor = |s: &&Series| matches!(s.tool, Some(Tool::Floor | Tool::OnHostFloor(_)));
                let floor = self.tools().find(is_floor);
                Verdict {
                    budget: format!("≤ {n} × the floor"),
                    kept: floor.and_then(|floor| self.by_tool(floor)).map(|by| by <= n),
                }
            }
            Budget::BySlowest(n) => {
                Verdict { budget: format!("≤ {n} × the slowest tool"), kept: self.by_slowest().map(|by| by <= n) }
            }
            Budget::OverTool(seconds) => Verdict {
                budget: format!("≤ the tool + {seconds} s"),
                kept: ours.zip(tool).and_then(|(o, t)| pairs(o, t, |o, t| o - t)).map(|over| over <= seconds),
            },
        };
        let mut verdicts: Vec<Verdict> = self.subject.budgets.iter().map(judge).collect();
        verdicts.push(Verdict {
            budget: format!("≤ {} MiB", PEAK >> 20),
            kept: ours.and_then(Series::peak).map(|peak| peak <= PEAK),
        });
        verdicts
    }

    /// Whether a budget is not kept, or our own run failed.
    pub fn is_over(&self) -> bool {
        let failed = self.of(Who::Drivers).is_some_and(|s| matches!(s.outcome, Outcome::Failed(_)));
        failed || self.verdicts().iter().any(|v| v.kept == Some(false))
    }
}

/// Median over the rounds that both ran, of `relate(a, b)` on their wall times.
fn pairs(a: &Series, b: &Series, relate: fn(f64, f64) -> f64) -> Option<f64> {
    median(a.samples().iter().zip(b.samples()).map(|(a, b)| relate(a.wall, b.wall)))
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
pub mod tests {
    use super::{Figures, Outcome, Row, Series, median};
    use crate::bench::lab::Who;
    use crate::bench::subject::SUBJECTS;

    /// A series with these wall times in milliseconds.
    pub fn series(who: Who, walls: &[f64]) -> Series {
        let samples = walls.iter().map(|w| Figures { wall: w / 1000.0, cpu: w / 2000.0, peak: 5 << 20 }).collect();
        Series { who, tool: None, outcome: Outcome::Ran { samples, children: Some(0) } }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn ratios_are_of_pairs_not_of_medians() {
        // A burst of noise hits both of a pair; ratio by ratio it does not show.
        let walls = [1.0, 1.0, 50.0, 50.0, 50.0];
        let slower = walls.map(|w| w * 40.0);
        let series = vec![series(Who::Drivers, &walls), series(Who::Other, &slower)];
        let row = Row { subject: &SUBJECTS[0], series };
        assert!((row.times_faster().unwrap() - 40.0).abs() < 1e-9);
    }

    #[test]
    fn a_broken_budget_is_over_and_an_unknown_one_is_not() {
        let good = Row { subject: &SUBJECTS[0], series: vec![series(Who::Drivers, &[2.0])] };
        assert!(!good.is_over());
        let unknown = good.verdicts().iter().filter(|v| v.kept.is_none()).count();
        assert_eq!(unknown, 1, "there is no other tree to be faster than");
        let slow = Row { subject: &SUBJECTS[0], series: vec![series(Who::Drivers, &[4.0])] };
        assert!(slow.is_over());
        let failed = Series { who: Who::Drivers, tool: None, outcome: Outcome::Failed("x".into()) };
        assert!(Row { subject: &SUBJECTS[0], series: vec![failed] }.is_over());
    }
}
