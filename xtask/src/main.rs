//! Chores of the repository: `cargo xtask <chore>`.

mod bench;
mod conformance;
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
    /// Run the readers of outside bytes on bytes that libFuzzer finds
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Bench(options) => bench::run(&options),
        Chore::Conformance(args) => conformance::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}
