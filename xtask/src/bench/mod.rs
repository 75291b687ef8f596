//! `cargo xtask bench`: what driver calls cost, measured from outside, against budgets, plain tools and another tree.
//!
//! All contestants of a subject run in turn, round by round, so that whatever else the machine does hits them alike: the figures that count are medians, and medians of the ratios of a round.
//!
//! # Layout
//! `subject` says what is measured and what it may cost; `job` turns that into commands inside the `lab` (on an `xfs`
//! where needed, with `files`, `payload` and a `server`; `vm` and `cloud` on a `host`, `floor` as a measure); `measure` runs one; `result`,
//! `report` and `chart` tell.

mod chart;
mod cloud;
mod files;
pub mod floor;
mod host;
mod job;
mod lab;
mod measure;
mod payload;
mod report;
mod result;
mod server;
mod stop;
mod subject;
mod vm;
mod xfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::job::Runner;
use self::lab::{Ground, Lab, Tree, Who};
use self::measure::{Bounds, Ended, progress};
use self::result::{Figures, Outcome, Row, Series};
use self::stop::Stop;
use self::subject::{Class, Job, SUBJECTS, Subject};

/// Measures driver calls; prints tables.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The driver tree (a `remotes` directory) to measure, instead of one laid out from the release binary
    #[arg(long, value_name = "DIR")]
    drivers: Option<PathBuf>,
    /// The binary to lay a tree out from, instead of the newest release build
    #[arg(long, value_name = "FILE", conflicts_with = "drivers")]
    binary: Option<PathBuf>,
    /// Another driver tree to compare with; `lib` beside it becomes `$ONE_LOCATION/lib`
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// What the other tree is called in the report
    #[arg(long, value_name = "NAME", default_value = "other tree")]
    against_name: String,
    /// Only subjects whose name matches: `fs/cp*`
    #[arg(long, value_name = "GLOB", default_value = "*")]
    only: String,
    /// Rounds for actions that only answer; those on a VM's disk get a half, those that move data a sixth, at least 3
    #[arg(long, value_name = "N", default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Few rounds, and nothing that takes minutes
    #[arg(long)]
    quick: bool,
    /// Where the temporary directory is made; its file system is the one that is measured
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Write docs/performance.md and docs/performance.svg
    #[arg(long)]
    write: bool,
    /// Exit with 1 when a budget is not kept
    #[arg(long)]
    check: bool,
}

impl Options {
    fn rounds(&self, class: Class) -> u32 {
        match (class, self.quick) {
            (Class::Short | Class::Disk, true) => self.runs.min(5),
            (Class::Data, true) => 2,
            (Class::Short, false) => self.runs,
            (Class::Data, false) => (self.runs / 6).max(3),
            (Class::Disk, false) => (self.runs / 2).max(5),
        }
    }
}

/// The chore.
///
/// # Errors
/// Nothing to measure; the work directory cannot be used; a signal asked for the end.
pub fn run(options: &Options) -> Result<ExitCode> {
    let rows = measure_all(options)?;
    let tables = report::tables(&rows);
    print!("{tables}");
    if options.write {
        let docs = repository().join("docs");
        report::write(&docs.join("performance.md"), &format!("{}\n{tables}", conditions(options)))?;
        let measured = if options.drivers.is_some() { "measured tree" } else { "onestore" };
        let svg = chart::svg(&rows, measured, &options.against_name);
        fs::write(docs.join("performance.svg"), svg).context("Cannot write docs/performance.svg")?;
    }
    let over: Vec<&str> = rows.iter().filter(|row| row.is_over()).map(|row| row.subject.name).collect();
    if !over.is_empty() {
        progress(&format!("Over budget: {}", over.join(", ")));
    }
    Ok(ExitCode::from(u8::from(options.check && !over.is_empty())))
}

fn measure_all(options: &Options) -> Result<Vec<Row>> {
    let wanted = |s: &&Subject| subject::matches(&options.only, s.name) && !(options.quick && s.slow);
    let subjects: Vec<&'static Subject> = SUBJECTS.iter().filter(wanted).collect();
    if subjects.is_empty() {
        let names: Vec<&str> = SUBJECTS.iter().map(|s| s.name).collect();
        bail!("No subject matches {:?}; there are {}", options.only, names.join(" "));
    }
    let work = options.work.clone().unwrap_or_else(std::env::temp_dir);
    let mut lab = Lab::new(&work, Stop::install()?)?;
    if let Some(dir) = &options.drivers {
        lab.trees.push(Tree { who: Who::Drivers, remotes: tree(dir)? });
    } else {
        let binary = options.binary.clone().map_or_else(newest_binary, Ok)?;
        progress(&format!("Measuring {}", binary.display()));
        lab.lay_out(&binary, &repository().join("remotes/onestore/launch"))?;
    }
    if let Some(dir) = &options.against {
        lab.trees.push(Tree { who: Who::Other, remotes: tree(dir)? });
    }
    let mut rows = Vec::new();
    for subject in subjects {
        lab.stop.check()?;
        progress(&format!("{}: {}", subject.name, subject.what));
        // What takes another tree minutes is not run more often than what moves data.
        let class = if subject.slow { Class::Data } else { subject.class };
        rows.push(measure_one(&mut lab, subject, options.rounds(class))?);
    }
    Ok(rows)
}

/// Measures all contestants of one subject in turn.
fn measure_one(lab: &mut Lab, subject: &'static Subject, rounds: u32) -> Result<Row> {
    if subject.ground == Ground::Reflink {
        lab.mount_xfs();
        if let Some(why) = &lab.no_xfs {
            let series = Series { who: Who::Drivers, tool: None, outcome: Outcome::NotRun(why.clone()) };
            return Ok(Row { subject, series: vec![series] });
        }
    }
    if matches!(subject.job, Job::Vm(_)) {
        lab.start_host();
        if let Some(why) = &lab.no_host {
            let series = Series { who: Who::Drivers, tool: None, outcome: Outcome::NotRun(why.clone()) };
            return Ok(Row { subject, series: vec![series] });
        }
    }
    let prepared = job::prepare(lab, subject)?;
    let mut series = Vec::new();
    let mut runners = Vec::new();
    for tree in &lab.trees {
        match (tree.who, subject.not_other) {
            // Whether a launcher stands before it makes no difference where data is moved.
            (Who::Link, _) if subject.class != Class::Short => {}
            (Who::Other, Some(why)) => {
                series.push(Series { who: tree.who, tool: None, outcome: Outcome::NotRun(why.to_owned()) });
            }
            _ => runners.push(job::of_tree(lab, subject, &prepared, tree)?),
        }
    }
    for tool in subject.tools {
        runners.push(job::of_tool(lab, subject, &prepared, *tool)?);
    }
    let deadline = Duration::from_secs(if subject.class == Class::Short && !subject.slow { 60 } else { 120 });
    let bounds = Bounds { scratch: lab.scratch(), deadline, stop: &lab.stop };

    let mut samples: Vec<Vec<Figures>> = runners.iter().map(|_| Vec::new()).collect();
    let mut failures: Vec<Option<String>> = runners.iter().map(|_| None).collect();
    // The first round warms caches and does not count. Each round begins with another contestant, so that none always
    // follows the same one.
    for round in 0..=usize::try_from(rounds)? {
        for turn in 0..runners.len() {
            let i = (round + turn) % runners.len();
            if failures[i].is_some() {
                continue;
            }
            match once(&runners[i], &bounds)? {
                Ok(figures) if round > 0 => samples[i].push(figures),
                Ok(_) => {}
                Err(why) => failures[i] = Some(why),
            }
        }
    }
    for ((runner, samples), failure) in runners.iter().zip(samples).zip(failures) {
        let outcome = match failure {
            Some(why) => Outcome::Failed(why),
            None => Outcome::Ran { samples, children: count_children(runner, &bounds)? },
        };
        runner.after()?;
        series.push(Series { who: runner.who, tool: runner.tool, outcome });
    }
    Ok(Row { subject, series })
}

/// One run with its preparation and judgement; the inner error is the contestant's, the outer ours.
fn once(runner: &Runner, bounds: &Bounds<'_>) -> Result<Result<Figures, String>> {
    runner.before()?;
    let ended = match measure::run(&runner.call, bounds) {
        Ok(ended) => ended,
        Err(error) => {
            bounds.stop.check()?;
            return Ok(Err(format!("{error:#}")));
        }
    };
    Ok(match ended {
        Ended::Well(sample) => match runner.judge(&sample.stdout) {
            Ok(()) => Ok(Figures::from(&sample)),
            Err(error) => Err(format!("{error:#}")),
        },
        Ended::Badly(why) => Err(why),
    })
}

/// Children of the trees only: everybody knows those of the plain tools.
fn count_children(runner: &Runner, bounds: &Bounds<'_>) -> Result<Option<usize>> {
    if runner.who == Who::Tool {
        return Ok(None);
    }
    runner.before()?;
    measure::children(&runner.call, bounds)
}

/// The absolute path of a tree.
fn tree(dir: &Path) -> Result<PathBuf> {
    let path = fs::canonicalize(dir).with_context(|| format!("Cannot find the tree {}", dir.display()))?;
    if !path.join("datastore").is_dir() {
        bail!("{} is no driver tree: it has no directory datastore", dir.display());
    }
    Ok(path)
}

/// The root of the repository: cargo says where this package lies.
fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("xtask"), PathBuf::from);
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The release binary built last, static or not. This program lies in the same target directory.
fn newest_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("Cannot tell where this program lies")?;
    let target = own.ancestors().nth(2).context("This program does not lie in a target directory")?;
    let machine = std::env::consts::ARCH;
    let places = [
        target.join(format!("{machine}-unknown-linux-musl/release/onestore")),
        target.join(format!("{machine}-unknown-linux-gnu/release/onestore")),
        target.join("release/onestore"),
    ];
    let built = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let newest = places.into_iter().filter(|p| p.exists()).max_by_key(built);
    newest.context("There is no release build: run `cargo build --release` first, or name a --binary or --drivers")
}

/// Where and how it was measured, for the page.
fn conditions(options: &Options) -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key)).map(str::to_owned);
        line.and_then(|l| l.split_once(':').map(|(_, v)| v.trim().to_owned())).unwrap_or_else(|| "unknown".to_owned())
    };
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(repository()).output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let command = if options.against.is_some() {
        format!("cargo xtask bench --against DIR --against-name '{}' --write", options.against_name)
    } else {
        "cargo xtask bench --write".to_owned()
    };
    format!(
        "Command: `{command}`, at commit {commit}; {} rounds for actions that only answer, {} on a VM's disk, {} for those that move data.\n\
         Machine: {cpus} × {}, Linux {kernel}; shared with other work.\n\
         The other tree: {}.\n\n![Chart of the wall times](performance.svg)\n",
        options.rounds(Class::Short),
        options.rounds(Class::Disk),
        options.rounds(Class::Data),
        first("/proc/cpuinfo", "model name"),
        if options.against.is_some() { options.against_name.as_str() } else { "none" },
    )
}
