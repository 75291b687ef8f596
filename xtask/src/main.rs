//! Chores of the repository: `cargo xtask <chore>`.

mod bench;
mod conformance;
mod crash;

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
}

fn main() -> ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    // Before the command line is read, which would take longer than what is measured here may.
    if let Some(rest) = words.strip_prefix(&[std::ffi::OsString::from(bench::floor::VERB)]) {
        return match bench::floor::run(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(result) = crash::hidden() {
        return result.unwrap_or_else(failed);
    }
    let result = match Cli::parse().chore {
        Chore::Bench(options) => bench::run(&options),
        Chore::Conformance(args) => conformance::run(&args),
        Chore::Crash(args) => crash::run(&args),
    };
    result.unwrap_or_else(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "`unwrap_or_else` hands it over")]
fn failed(error: anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::from(2)
}
