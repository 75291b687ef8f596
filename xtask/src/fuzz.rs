//! Fuzzing with libFuzzer on the stable toolchain: builds `fuzz/` with LLVM's coverage counters, runs its targets one
//! after the other, and says how often each was executed.
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

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// Only these targets (the names in `fuzz/fuzz_targets`)
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 3, conflicts_with = "runs")]
    seconds: u64,
    /// How often each target is executed, instead
    #[arg(long)]
    runs: Option<u64>,
    /// Add what was found to reach more code to fuzz/corpus, as few files as do
    #[arg(long)]
    keep: bool,
    /// Only compile
    #[arg(long)]
    build: bool,
}

/// Counters for every edge, and comparisons that libFuzzer learns from.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// Longest input, in bytes; seconds that one may take; MiB that the process may hold.
const LIMITS: [&str; 3] = ["-max_len=24576", "-timeout=20", "-rss_limit_mb=1024"];

/// Builds and runs; fails when a target does not hold.
///
/// # Errors
/// What cannot be built or started.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let all = targets(root)?;
    let chosen = if args.targets.is_empty() { all.clone() } else { args.targets.clone() };
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("There is no target {unknown}: {}", all.join(" "));
    }
    let programs = build(root)?;
    if args.build {
        return Ok(ExitCode::SUCCESS);
    }
    // In memory where that is possible: some targets write files.
    let memory = Path::new("/dev/shm");
    let work = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let work = work.context("Cannot make a temporary folder")?;
    println!("{:<14} {:>12} {:>9} {:>9}  result", "target", "executions", "seconds", "a second");
    let mut failed = false;
    for name in &chosen {
        let begin = Instant::now();
        let (count, result) = fuzz(root, &programs, name, work.path(), args)?;
        let seconds = begin.elapsed().as_secs_f64();
        let speed = if seconds > 0.0 { f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds } else { 0.0 };
        println!("{name:<14} {count:>12} {seconds:>9.1} {speed:>9.0}  {}", result.as_deref().unwrap_or("holds"));
        failed |= result.is_some();
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

/// Compiles; gives the folder of the programs. Their build has a folder of its own: its flags differ from all others.
fn build(root: &Path) -> Result<PathBuf> {
    let rustc = Command::new("rustc").arg("-vV").output().context("Cannot run rustc")?;
    let text = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not name its host")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("fuzz");
    // With a target named, flags do not reach build scripts.
    let words = ["build", "--quiet", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", host];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(words).current_dir(root).env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", FLAGS);
    let status = cargo.status().context("Cannot run cargo")?;
    ensure!(status.success(), "The fuzz targets do not compile");
    Ok(target.join(host).join("release"))
}

/// Runs one target; gives how often it was executed, and what is wrong where it does not hold.
fn fuzz(root: &Path, programs: &Path, name: &str, work: &Path, args: &Args) -> Result<(u64, Option<String>)> {
    let corpus = root.join("fuzz/corpus").join(name);
    let found = work.join(name);
    let artifacts = root.join("fuzz/artifacts").join(name);
    for folder in [&corpus, &found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    }
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(artifacts.join(""));
    let end = match args.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", args.seconds),
    };
    let mut command = Command::new(programs.join(name));
    command.args(LIMITS).arg(prefix).args(["-print_final_stats=1", &end]).arg(&found).arg(&corpus);
    command.env("TMPDIR", work).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("Cannot start {name}"))?;
    let errors = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
    let (mut count, mut said) = (0, Vec::new());
    for line in errors.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            count = number.trim().parse().unwrap_or(0);
        }
        let telling = ["panicked at", "assertion", "  left:", " right:", "ERROR:", "Test unit written", "SUMMARY"];
        if telling.iter().any(|word| line.contains(word)) {
            said.push(line.trim().to_owned());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        return Ok((count, Some(format!("FAILS ({status}): {}", said.join(" | ")))));
    }
    if args.keep {
        let mut merge = Command::new(programs.join(name));
        merge.arg("-merge=1").args(LIMITS).arg(&corpus).arg(&found).env("TMPDIR", work);
        let status = merge.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "Cannot merge what {name} found");
    }
    Ok((count, None))
}
