//! Chores of the repository: `cargo xtask <chore>`.

mod bench;
mod conformance;
mod crash;
mod fuzz;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Parser)]
#[command(name = "xtask", about = "Chores of this repository")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

/// The table of chores.
#[derive(Subcommand)]
enum Chore {
    /// Measure a driver tree against budgets, plain tools and another tree
    Bench(bench::Options),
    /// Judge a tree of OpenNebula storage drivers against the cases in tests/conformance
    Conformance(conformance::Args),
    /// Kill actions at every state-changing system call, and look at what is left
    Crash(crash::Args),
    /// Run the readers of outside bytes on bytes that libFuzzer finds
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    // Calls of ourselves by ourselves: before the command line is read, which takes longer than what is measured may.
    let words: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if let Some(rest) = words.strip_prefix(&[std::ffi::OsString::from(bench::floor::VERB)]) {
        return bench::floor::run(rest).map_or_else(failed, |()| ExitCode::SUCCESS);
    }
    if let Some(result) = fuzz::hidden().or_else(crash::hidden) {
        return result.unwrap_or_else(failed);
    }
    let result = match Cli::parse().chore {
        Chore::Bench(options) => bench::run(&options),
        Chore::Conformance(args) => conformance::run(&args),
        Chore::Crash(args) => crash::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
    };
    result.unwrap_or_else(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "`unwrap_or_else` hands it over")]
fn failed(error: anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::from(2)
}
