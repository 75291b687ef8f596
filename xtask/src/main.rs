//! Chores of the repository: `cargo xtask <chore>`.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("xtask: no such chore");
    ExitCode::from(2)
}
