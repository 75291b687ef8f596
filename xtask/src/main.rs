//! Chores of the repository: `cargo xtask <chore>`.

mod bench;

use std::ffi::OsString;
use std::process::ExitCode;

/// One chore: its name, what it does, and its function, which gets the words after the name.
type Chore = (&'static str, &'static str, fn(Vec<OsString>) -> anyhow::Result<ExitCode>);

const CHORES: &[Chore] =
    &[("bench", "Measure a driver tree against budgets, plain tools and another tree", bench::main)];

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let name = words.next().unwrap_or_default();
    let Some((_, _, chore)) = CHORES.iter().find(|(known, ..)| name == *known) else {
        eprintln!("Usage: cargo xtask CHORE [--help]\n");
        for (name, what, _) in CHORES {
            eprintln!("  {name:<12} {what}");
        }
        return ExitCode::from(2);
    };
    match chore(words.collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
