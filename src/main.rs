//! The boot sequence: arguments, then the command; its exit code is the last word.

use std::process::ExitCode;

fn main() -> ExitCode {
    onced::cli::main()
}
