//! Fuzzing with libFuzzer on the stable toolchain: builds `fuzz/` with LLVM's coverage counters in our own crate, runs its
//! targets one after the other, and says how often each was executed, now and in all runs that one file counts.
//!
//! No sanitizer: there is no unsafe code to be caught by one, and they need a nightly toolchain. What a target asserts is
//! in `src/fuzz.rs`.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use tally::Tally;

mod tally;

/// What the command line says.
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Args {
    /// Only these targets (the names in `fuzz/fuzz_targets`), in this order
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 3, conflicts_with = "runs")]
    seconds: u64,
    /// How often each target is executed, instead; with --tally, in all runs together
    #[arg(long)]
    runs: Option<u64>,
    /// Keep how often each target was executed in this file, which holds the sum of all runs that name it
    #[arg(long, value_name = "FILE")]
    tally: Option<PathBuf>,
    /// Add what was found to reach more code to fuzz/corpus, as few files as do
    #[arg(long)]
    keep: bool,
    /// Only compile
    #[arg(long)]
    build: bool,
    /// Run what was compiled before, whatever has changed since
    #[arg(long, conflicts_with = "build")]
    built: bool,
    /// Do not trace comparisons: libFuzzer learns less from a run, and makes about twice as many; for long campaigns
    #[arg(long)]
    plain: bool,
}

impl Args {
    /// What was asked for of rustc.
    fn flags(&self) -> &'static [&'static str] {
        if self.plain { &FLAGS[..FLAGS.len() - 1] } else { FLAGS }
    }

    /// The folder in the build folder where programs of this kind lie.
    fn programs(&self) -> &'static str {
        if self.plain { "programs-plain" } else { "programs" }
    }
}

/// Counters for every edge, and, in the last one, comparisons that libFuzzer learns from.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Whoever has this in the environment is started by cargo in the place of rustc.
const AS_RUSTC: &str = "ONESTORE_XTASK_AS_RUSTC";

/// Seconds that one input may take; MiB that the process may hold.
const LIMITS: [&str; 2] = ["-timeout=20", "-rss_limit_mb=1024"];

/// Longest inputs, in bytes, and how many of a hundred runs have them. Most of what a reader decides is decided by
/// little, and little is read a hundred times as often; what grows with the length needs some that are long.
const LENGTHS: [(u64, u64); 4] = [(256, 60), (1 << 10, 28), (4 << 10, 10), (24 << 10, 2)];

/// Executions after which a process ends and another one begins with what was found, so that a run that is broken off has
/// had all lengths.
const ROUND: u64 = 2_000_000;

/// rustc as cargo calls it here: counters are for our own crate only. Those of others tell nothing that we could mend, and
/// every run pays for them.
pub fn hidden() -> Option<Result<ExitCode>> {
    std::env::var_os(AS_RUSTC)?;
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let ours = words.windows(2).any(|pair| pair[0] == "--crate-name" && pair[1] == "onestore");
    let (rustc, rest) = words.split_first()?;
    let rest = rest.iter().filter(|word| ours || !FLAGS.iter().any(|flag| *word == flag));
    let status = Command::new(rustc).args(rest).status().context("Cannot run rustc");
    Some(status.map(|status| if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// Builds and runs; fails when a target does not hold.
///
/// # Errors
/// What cannot be built or started, a tally that cannot be read or written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let all = targets(root)?;
    let chosen = if args.targets.is_empty() { all.clone() } else { args.targets.clone() };
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("There is no target {unknown}: {}", all.join(" "));
    }
    let mut tally = args.tally.as_deref().map(Tally::open).transpose()?.unwrap_or_default();
    let build = folder(root);
    if !args.built {
        compile(root, &build, args)?;
    }
    if args.build {
        return Ok(ExitCode::SUCCESS);
    }
    // In memory where that is possible: some targets write files.
    let memory = Path::new("/dev/shm");
    let work = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let work = work.context("Cannot make a temporary folder")?;
    let place = Place { root, build: &build, programs: build.join(args.programs()), work: work.path() };
    println!("{:<14} {:>12} {:>9} {:>9} {:>14}  result", "target", "executions", "seconds", "a second", "in all runs");
    let mut failed = false;
    for name in &chosen {
        let begin = Instant::now();
        let before = tally.of(name);
        let runs = args.runs.map(|runs| if args.tally.is_some() { runs.saturating_sub(before) } else { runs });
        let result = if runs == Some(0) { None } else { fuzz(&place, name, runs, args.seconds, &mut tally)? };
        let (seconds, count) = (begin.elapsed().as_secs_f64(), tally.of(name) - before);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let speed = if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let said = result.as_deref().unwrap_or("holds");
        println!("{name:<14} {count:>12} {seconds:>9.1} {speed:>9.0} {:>14}  {said}", tally.of(name));
        failed |= result.is_some();
        if args.keep && result.is_none() {
            place.keep(name)?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Names of all targets, in order.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The folder of this build. It is its own: its flags differ from all others.
fn folder(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("fuzz")
}

/// Compiles into that folder.
fn compile(root: &Path, target: &Path, args: &Args) -> Result<()> {
    let rustc = Command::new("rustc").arg("-vV").output().context("Cannot run rustc")?;
    let text = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not name its host")?;
    // With a target named, flags do not reach build scripts.
    let words = ["build", "--quiet", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", host];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(words).current_dir(root).env("CARGO_TARGET_DIR", target);
    // Cargo is told the flags, so that it knows what is built with others.
    cargo.env("RUSTFLAGS", [&["--cfg", "fuzzing"], args.flags()].concat().join(" "));
    cargo.env("RUSTC_WRAPPER", std::env::current_exe().context("We have no path")?).env(AS_RUSTC, "1");
    let status = cargo.status().context("Cannot run cargo")?;
    ensure!(status.success(), "The fuzz targets do not compile");
    // Whoever builds meanwhile does not change what runs.
    let programs = target.join(args.programs());
    fs::create_dir_all(&programs).with_context(|| format!("Cannot make {}", programs.display()))?;
    for name in targets(root)? {
        let (from, to) = (target.join(host).join("release").join(&name), programs.join(&name));
        let _ = fs::remove_file(&to);
        fs::copy(&from, &to).with_context(|| format!("Cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Where things are.
struct Place<'a> {
    /// The repository.
    root: &'a Path,
    /// The build; in it `found`, which earlier runs of this build folder have left.
    build: &'a Path,
    /// The programs that are run.
    programs: PathBuf,
    /// A folder for what targets write.
    work: &'a Path,
}

impl Place<'_> {
    /// Inputs that are kept in the repository, and those that runs have found.
    fn corpora(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (corpus, found) = (self.root.join("fuzz/corpus").join(name), self.build.join("found").join(name));
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
        }
        Ok((corpus, found))
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(LIMITS).env("TMPDIR", self.work).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Takes what was found over into the repository.
    fn keep(&self, name: &str) -> Result<()> {
        let (corpus, found) = self.corpora(name)?;
        let mut merge = self.program(name);
        merge.args(["-merge=1", "-max_len=4096"]).arg(&corpus).arg(&found).stderr(Stdio::null());
        ensure!(merge.status()?.success(), "Cannot merge what {name} found");
        Ok(())
    }
}

/// Runs one target, that often or that many seconds; gives what is wrong where it does not hold.
fn fuzz(place: &Place<'_>, name: &str, runs: Option<u64>, seconds: u64, tally: &mut Tally) -> Result<Option<String>> {
    let part = |whole: u64, share: u64| (whole * share).div_ceil(100);
    let mut rounds: Vec<u64> = Vec::new();
    let mut left = runs.unwrap_or(1);
    while left > 0 {
        rounds.push(left.min(ROUND));
        left -= left.min(ROUND);
    }
    for round in rounds {
        for (length, share) in LENGTHS {
            let end = match runs {
                Some(_) => format!("-runs={}", part(round, share)),
                None => format!("-max_total_time={}", part(seconds, share)),
            };
            let result = stage(place, name, &[format!("-max_len={length}"), end], tally)?;
            if result.is_some() {
                return Ok(result);
            }
        }
    }
    Ok(None)
}

/// One process of libFuzzer's.
fn stage(place: &Place<'_>, name: &str, words: &[String], tally: &mut Tally) -> Result<Option<String>> {
    let (corpus, found) = place.corpora(name)?;
    let artifacts = place.root.join("fuzz/artifacts").join(name);
    fs::create_dir_all(&artifacts).with_context(|| format!("Cannot make {}", artifacts.display()))?;
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(artifacts.join(""));
    let mut command = place.program(name);
    command.args(words).arg(prefix).args(["-print_final_stats=1", "-reload=0"]).arg(&found).arg(&corpus);
    let mut begin = Instant::now();
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("Cannot start {name}"))?;
    let errors = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
    let (mut counted, mut said) = (0, Vec::new());
    for line in errors.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        // `#4096 pulse …` meanwhile, so that what was done is counted where a run is broken off.
        let meanwhile = line.strip_prefix('#').and_then(|rest| rest.split_whitespace().next());
        let at_the_end = line.strip_prefix("stat::number_of_executed_units:").map(str::trim);
        if let Some(count) = at_the_end.or(meanwhile).and_then(|number| number.parse::<u64>().ok()) {
            // An end that comes late says less than the last word before it: never taken off.
            if count >= counted + 65_536 || (at_the_end.is_some() && count > counted) {
                tally.add(name, count - counted, begin.elapsed())?;
                (counted, begin) = (count, Instant::now());
            }
        }
        let telling = ["panicked at", "assertion", "  left:", " right:", "ERROR:", "Test unit written", "SUMMARY"];
        if telling.iter().any(|word| line.contains(word)) {
            said.push(line.trim().to_owned());
        }
    }
    let status = child.wait()?;
    Ok((!status.success()).then(|| format!("FAILS ({status}): {}", said.join(" | "))))
}
