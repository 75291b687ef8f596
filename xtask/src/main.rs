//! Chores of the repository: `cargo xtask <chore>`.

mod bench;
mod conformance;

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
    let result = match Cli::parse().chore {
        Chore::Bench(options) => bench::run(&options),
        Chore::Conformance(args) => conformance::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}
