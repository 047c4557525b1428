//! What is asked for.

use std::path::PathBuf;

use clap::Parser;

/// onced next to what it would replace: the same broker, the same topic, in turns.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
pub struct Options {
    /// Records in the topic.
    #[arg(long, default_value_t = 2_000_000)]
    pub records: u32,
    /// Rounds; in each all contestants take their turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Partitions of the topic. Several: the whole measurement for each.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    pub partitions: Vec<i32>,
    /// Percent of the records that repeat one of the last 100,000.
    #[arg(long, default_value_t = 10)]
    pub duplicates: u8,
    /// Only the contestants whose names begin so.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Records a second while latency is measured.
    #[arg(long, default_value_t = 10_000)]
    pub rate: u32,
    /// For how long latency is measured; 0: not at all.
    #[arg(long, default_value_t = 20)]
    pub seconds: u32,
    /// Up to how many keys the log alone is measured; 0: not at all.
    #[arg(long, default_value_t = 20_000_000)]
    pub keys: u64,
    /// The result as JSON on standard output.
    #[arg(long)]
    pub json: bool,
    /// Also write FILE.json, FILE.md and FILE.svg.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    pub bench: bool,
}
