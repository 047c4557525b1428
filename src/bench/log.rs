//! The dedup log alone: what a look-up and an insert cost, as it grows and as keys expire.
//!
//! Owns: the load and the table of its figures.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::usage::{Usage, Used, peak_memory};
use crate::daemon::exit;
use crate::dedup::acts::Acts;
use crate::dedup::entry::Entry;
use crate::dedup::log::Batch;
use crate::dedup::shard::{Owner, Shard, State};
use crate::dedup::store::{Config, LogError, LookupScratch, Stamp, Store};
use crate::identity::{Check, Identity};
use crate::record::{Offset, Timestamp};

/// When the first key comes: 2026-01-01.
const BEGIN_MS: i64 = 1_767_225_600_000;
const TTL: Duration = Duration::from_secs(24 * 3_600);
/// What the daemon's `log.flush_interval` is for, on the wall clock.
const FLUSH: Duration = Duration::from_secs(5);
/// How many keys are looked up again at each size.
const DUPLICATES: u64 = 500_000;

/// So long without a compaction, and the log has settled.
const REST: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct LogArgs {
    /// Distinct keys within the window.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..=2_000_000_000))]
    keys: u64,
    /// Windows that follow the first, in which keys leave as fast as they come.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=100))]
    windows: u64,
    /// Keys that are looked up and written at once.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
    /// `log.memory`, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..=1_048_576))]
    memory: u64,
    /// Where the folder is made that the log lies in: a real disk. Default: the temporary folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// One row: the cost of what was done since the row before.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    /// Keys that were looked up; new ones also were inserted.
    keys: u64,
    per_second: f64,
    wall_us: f64,
    cpu_us: f64,
    /// Bytes of the log's files for each key that is in the window.
    disk_bytes_per_key: f64,
    /// Bytes that went to the disk for each byte of entries. 0 where nothing was inserted.
    write_amplification: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    keys: u64,
    batch: u64,
    memory_mib: u64,
    rows: Vec<Row>,
    /// From opening the directory to the first verdict, in seconds.
    reopen_seconds: f64,
    peak_memory_mib: u64,
}

pub(super) fn run(args: &LogArgs) -> u8 {
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let home = base.join(format!("onced-bench-{:016x}", fastrand::u64(..)));
    let result = measure(args, &home);
    if let Err(error) = fs::remove_dir_all(&home)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("warning: {} is left behind: {error}", home.display());
    }
    match result {
        Ok(report) => {
            show(&report, args.json);
            exit::OK
        }
        Err(error) => {
            eprintln!("error: {error}");
            exit::FAILED
        }
    }
}

fn measure(args: &LogArgs, home: &Path) -> Result<Report, LogError> {
    let mut load = Load::new(args, home)?;
    let mut rows = Vec::new();
    for size in sizes(args.keys) {
        let cost = load.insert_until(size)?;
        rows.push(load.row(format!("new, up to {}", short(size)), &cost));
        let cost = load.look_up_again()?;
        rows.push(load.row(format!("duplicates, of {}", short(size)), &cost));
    }
    let cost = load.settle()?;
    rows.push(load.row("settled".to_owned(), &cost));
    let reopen = load.reopen(home)?;
    for window in 1..=args.windows {
        let cost = load.insert_until((window + 1) * args.keys)?;
        rows.push(load.row(format!("steady window {window}"), &cost));
    }
    Ok(Report {
        keys: args.keys,
        batch: args.batch,
        memory_mib: args.memory,
        rows,
        reopen_seconds: reopen.as_secs_f64(),
        peak_memory_mib: peak_memory() >> 20,
    })
}

/// Where it is worth a look: 1, 2, 5, 10 ... million, and the whole.
fn sizes(keys: u64) -> Vec<u64> {
    let steps = (0..4).flat_map(|power| [1, 2, 5].map(|step| step * 1_000_000 * 10_u64.pow(power)));
    steps.filter(|size| *size < keys).chain([keys]).collect()
}

/// What a stretch of work cost.
struct Cost {
    used: Used,
    keys: u64,
    entry_bytes: u64,
}

/// The log under a load of numbered keys.
struct Load<'a> {
    args: &'a LogArgs,
    store: Store,
    shard: Shard,
    scratch: LookupScratch,
    found: Vec<Option<Entry>>,
    identities: Vec<Identity>,
    batch: Batch,
    /// The number of the next new key.
    next: u64,
    flushed: Instant,
    bar: ProgressBar,
}

impl<'a> Load<'a> {
    fn new(args: &'a LogArgs, home: &Path) -> Result<Self, LogError> {
        let store = open(args, home)?;
        let owner = Owner {
            topic: "bench".to_owned(),
            topic_id: String::new(),
            partition: 0,
            partition_count: 1,
            definition: 0,
            ttl: TTL,
            lateness: Duration::ZERO,
            acts: Acts::default(),
            owned_at_ms: BEGIN_MS,
        };
        let shard = store.create_shard(owner, &State::default())?;
        Ok(Self {
            args,
            store,
            shard,
            scratch: LookupScratch::default(),
            found: Vec::new(),
            identities: Vec::new(),
            batch: Batch::unlogged(),
            next: 0,
            flushed: Instant::now(),
            bar: bar(args.keys * (args.windows + 1)),
        })
    }

    fn insert_until(&mut self, end: u64) -> Result<Cost, LogError> {
        let (usage, begin) = (Usage::now(), self.next);
        let mut entry_bytes = 0;
        let mut bytes = Vec::new();
        while self.next < end {
            let batch_end = (self.next + self.args.batch).min(end);
            self.identities.clear();
            self.identities.extend((self.next..batch_end).map(identity));
            self.look_up(false)?;
            for (number, identity) in (self.next..).zip(&self.identities) {
                let offset = Offset(number.try_into().expect("numbers of keys are small"));
                // Payload checks look random too.
                let check = Check(u32::from_be_bytes(*identity.0.first_chunk().expect("16 bytes")));
                let entry = Entry { offset, time: self.time(number), check };
                bytes.clear();
                entry.encode(&mut bytes);
                entry_bytes += 16 + bytes.len() as u64;
                self.batch.put_entry(self.shard, identity, &entry);
            }
            let position = Offset(batch_end.try_into().expect("numbers of keys are small"));
            let stream_time = Some(self.time(batch_end));
            self.batch.put_state(self.shard, State { position, stream_time, ..State::default() });
            self.store.write(&mut self.batch)?;
            self.next = batch_end;
            self.housekeeping()?;
            self.bar.set_position(batch_end);
        }
        Ok(Cost { used: usage.until_now(), keys: end - begin, entry_bytes })
    }

    /// Keys of the window, anywhere in it.
    fn look_up_again(&mut self) -> Result<Cost, LogError> {
        let usage = Usage::now();
        let mut random = fastrand::Rng::with_seed(self.next);
        let (count, from) = (DUPLICATES.min(self.next), self.next.saturating_sub(self.args.keys));
        let mut left = count;
        while left > 0 {
            let some = left.min(self.args.batch);
            self.identities.clear();
            let numbers = (0..some).map(|_| random.u64(from..self.next));
            self.identities.extend(numbers.map(identity));
            self.look_up(true)?;
            left -= some;
        }
        Ok(Cost { used: usage.until_now(), keys: count, entry_bytes: 0 })
    }

    /// A figure for a log that answers wrongly is worth nothing.
    fn look_up(&mut self, present: bool) -> Result<(), LogError> {
        self.store.lookup(self.shard, &self.identities, &mut self.scratch, &mut self.found)?;
        match self.found.iter().position(|found| found.is_some() != present) {
            None => Ok(()),
            Some(at) => Err(LogError::Corrupt {
                what: format!(
                    "key {} was {}found",
                    self.identities[at],
                    if present { "not " } else { "" }
                ),
            }),
        }
    }

    /// As the daemon's: flushes, and rewrites what has expired.
    fn housekeeping(&mut self) -> Result<(), LogError> {
        self.store.sift()?;
        if self.store.filling() {
            self.store.flush()?;
        }
        if self.flushed.elapsed() < FLUSH {
            return Ok(());
        }
        self.store.flush()?;
        self.store.compact_expired()?;
        self.flushed = Instant::now();
        Ok(())
    }

    /// Until nothing is left to be compacted.
    fn settle(&mut self) -> Result<Cost, LogError> {
        let usage = Usage::now();
        self.store.flush()?;
        // Between two compactions there may be a moment of rest.
        let mut rested = Instant::now();
        while rested.elapsed() < REST {
            if self.store.compacting() {
                rested = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Cost { used: usage.until_now(), keys: 0, entry_bytes: 0 })
    }

    /// From opening the directory to the first verdict.
    fn reopen(&mut self, home: &Path) -> Result<Duration, LogError> {
        let elsewhere = home.join("elsewhere");
        let old = std::mem::replace(&mut self.store, open(self.args, &elsewhere)?);
        drop(old);
        let begun = Instant::now();
        self.store = open(self.args, home)?;
        self.identities.clear();
        self.identities.push(identity(self.next - 1));
        self.look_up(true)?;
        Ok(begun.elapsed())
    }

    /// A window passes with as many keys as there are to be in one.
    fn time(&self, number: u64) -> Timestamp {
        let ttl_ms = TTL.as_millis();
        let passed = u128::from(number) * ttl_ms / u128::from(self.args.keys);
        Timestamp(BEGIN_MS + i64::try_from(passed).expect("some windows are no age of the world"))
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn row(&self, what: String, cost: &Cost) -> Row {
        let Cost { used, keys, entry_bytes } = cost;
        let held = self.next.min(self.args.keys).max(1);
        let seconds = used.wall.as_secs_f64();
        Row {
            what,
            keys: *keys,
            per_second: *keys as f64 / seconds,
            wall_us: used.wall_us(*keys),
            cpu_us: used.cpu_us(*keys),
            disk_bytes_per_key: self.store.bytes() as f64 / held as f64,
            write_amplification: match entry_bytes {
                0 => 0.0,
                bytes => used.written as f64 / *bytes as f64,
            },
        }
    }
}

fn open(args: &LogArgs, home: &Path) -> Result<Store, LogError> {
    let stamp = Stamp { cluster_id: String::new(), group: "bench".to_owned() };
    Store::open(&Config { dir: home.to_owned(), memory: args.memory << 20 }, &stamp)
}

/// The key of a number: random bits, the same each time.
fn identity(number: u64) -> Identity {
    Identity(xxhash_rust::xxh3::xxh3_128(&number.to_be_bytes()).to_be_bytes())
}

fn bar(length: u64) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(
        "{bar:30} {human_pos} of {human_len} keys, {per_sec}, {eta} left",
    )
    .expect("the template is right");
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}

fn short(keys: u64) -> String {
    match keys {
        _ if keys.is_multiple_of(1_000_000) => format!("{} M", keys / 1_000_000),
        _ => keys.to_string(),
    }
}

#[expect(clippy::print_stdout, reason = "the figures are what the command is for")]
fn show(report: &Report, json: bool) {
    if json {
        let text = serde_json::to_string_pretty(report).expect("plain fields have a JSON form");
        println!("{text}");
        return;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "",
        "keys/s",
        "us a key",
        "CPU us a key",
        "disk B a key",
        "written/entry B",
    ]);
    for row in &report.rows {
        let none = |value: f64, text: String| if value == 0.0 { String::new() } else { text };
        let figures = [
            none(row.per_second, format!("{:.0}", row.per_second)),
            none(row.per_second, format!("{:.2}", row.wall_us)),
            none(row.per_second, format!("{:.2}", row.cpu_us)),
            format!("{:.1}", row.disk_bytes_per_key),
            none(row.write_amplification, format!("{:.1}", row.write_amplification)),
        ];
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(&row.what)].into_iter().chain(figures.map(right)));
    }
    println!("{table}");
    println!(
        "\n{} keys in a window, batches of {}, log.memory {} MiB: reopened in {:.2} s, peak memory {} MiB",
        report.keys, report.batch, report.memory_mib, report.reopen_seconds, report.peak_memory_mib
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_has_all_its_rows() {
        let home = tempfile::tempdir().unwrap();
        let args =
            LogArgs { keys: 5_000, windows: 2, batch: 1_000, memory: 8, dir: None, json: false };
        let report = measure(&args, &home.path().join("log")).unwrap();
        let names: Vec<_> = report.rows.iter().map(|row| row.what.as_str()).collect();
        let wanted = [
            "new, up to 5000",
            "duplicates, of 5000",
            "settled",
            "steady window 1",
            "steady window 2",
        ];
        assert_eq!(names, wanted);
        // Before the first flush nothing need be on disk.
        assert!(report.rows[2..].iter().all(|row| row.disk_bytes_per_key > 0.0), "{report:?}");
        assert!(report.rows.iter().all(|row| (row.keys > 0) == (row.cpu_us > 0.0)), "{report:?}");
        assert!(report.reopen_seconds > 0.0);
    }

    #[test]
    fn sizes_end_with_the_whole() {
        assert_eq!(sizes(5_000), [5_000]);
        assert_eq!(sizes(3_000_000), [1_000_000, 2_000_000, 3_000_000]);
        assert_eq!(sizes(2_000_000), [1_000_000, 2_000_000]);
    }
}
