//! Chores of the repository: `cargo xtask <chore>`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod conformance;

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
    /// Judge a tree of OpenNebula storage drivers against the cases in tests/conformance
    Conformance(conformance::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Conformance(args) => conformance::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}
