//! `onced bench`: how fast parts of onced are on this machine, without a broker.
//!
//! ```text
//! log      the dedup log: look-ups and inserts, as it grows and as keys expire
//! usage    what this process has used so far
//! ```
//!
//! Owns: the command. Never: judges a figure; those of two machines cannot be compared.

pub mod log;
mod usage;

use clap::Subcommand;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// The dedup log alone: new keys, duplicates, a restart, and keys that expire as fast as they
    /// come.
    ///
    /// Works in a folder of its own, which it removes. Random keys in batches that are looked up,
    /// written and flushed as the daemon does for exactly-once routes.
    Log(log::LogArgs),
}

/// Runs a benchmark. Returns the exit code.
#[must_use]
pub fn run(bench: &Bench) -> u8 {
    match bench {
        Bench::Log(args) => log::run(args),
    }
}
