//! The `onestore` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [verb, version] if verb == "agent" => ExitCode::from(onestore::exec::agent::serve(version)),
        _ => ExitCode::SUCCESS,
    }
}
