//! The daemon with crash points and known bugs, for tests alone: see `onced::fault`.

use std::process::ExitCode;

fn main() -> ExitCode {
    onced::cli::main()
}
