//! The `onestore` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    onestore::cli::main(std::env::args_os())
}
