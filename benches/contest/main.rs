//! onced next to what it would replace: the same broker, the same topic, in turns.
//!
//! ```text
//! options      what is asked for
//! input        the topic: events, duplicates, what has to come out
//! contestant   who takes part, and how each is started
//!   bare       drain and copy, which run in processes of their own as all others do
//! measure      one run: progress, processor time, memory, disk
//! output       what came out: nothing lost, nothing doubled
//! latency      from append to output, at a steady rate
//! picture      the log alone, as it grows
//! report       the table, the ratios with their goals, JSON
//! ```
//!
//! Run through `scripts/bench`, which fetches the contestants. It speaks through the harness of the
//! integration tests: the broker and the daemon are theirs.

#![expect(clippy::print_stdout, reason = "the result is what it is run for")]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "counts are not negative, and figures for people"
)]

mod bare;
mod contestant;
mod input;
mod latency;
mod measure;
mod options;
mod output;
mod picture;
mod report;

#[path = "../../tests/integration/harness/mod.rs"]
mod harness;

use std::fmt::Display;
use std::fs;
use std::process::exit;

use clap::Parser as _;

use crate::contestant::Contestant;
use crate::harness::Kafka;
use crate::input::Input;
use crate::latency::Latency;
use crate::measure::Run;
use crate::options::Options;
use crate::report::{Layout, Report};

fn main() {
    if bare::is_asked_for() {
        return bare::run();
    }
    let options = Options::parse();
    let contestants = chosen(&options);
    let kafka = Kafka::for_benchmarks();
    let mut report = Report::new(&options);
    for partitions in &options.partitions {
        let input = Input::produce(&kafka, &options, *partitions);
        say(format_args!("reading once, so that the first round finds the topic in memory"));
        let warm = measure::run(&kafka, &input, Contestant::Drain);
        warm.unwrap_or_else(|error| fail(error));
        let mut layout = Layout::new(*partitions);
        for round in 1..=options.rounds {
            for contestant in &contestants {
                let run = measure::run(&kafka, &input, *contestant);
                say(format_args!(
                    "{partitions} partitions, round {round}: {}",
                    told(*contestant, &run)
                ));
                layout.add(*contestant, run);
            }
        }
        report.layouts.push(layout);
        keep(&options, &report);
    }
    if options.seconds > 0 {
        for contestant in contestants.iter().filter(|contestant| contestant.is_seen_in_output()) {
            let latency = Latency::measure(&kafka, &options, *contestant);
            say(format_args!("latency: {contestant}: {}", text(&latency)));
            report.latencies.push((*contestant, latency));
        }
    }
    if options.keys > 0 {
        say(format_args!("the log alone, up to {} keys", options.keys));
        report.log = Some(measure::log(options.keys).unwrap_or_else(|error| fail(error)));
    }
    keep(&options, &report);
    println!("{}", if options.json { json(&report) } else { report.text() });
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(&report.json()).expect("it is plain data")
}

/// Writes the files that were asked for, with what is known so far.
fn keep(options: &Options, report: &Report) {
    let Some(path) = &options.report else { return };
    let write = |ending: &str, text: String| {
        fs::write(path.with_extension(ending), text).unwrap_or_else(|error| fail(error));
    };
    write("json", format!("{}\n", json(report)));
    write("md", report.markdown());
    if let Some(log) = &report.log {
        write("svg", picture::draw(log));
    }
}

/// Those that were asked for and can be had.
fn chosen(options: &Options) -> Vec<Contestant> {
    let all = Contestant::ALL.into_iter();
    let wanted = |contestant: &Contestant| {
        let name = contestant.to_string();
        options.only.is_empty() || options.only.iter().any(|only| name.starts_with(only.as_str()))
    };
    let can_be_had = |contestant: &Contestant| match contestant.missing() {
        None => true,
        Some(what) => {
            say(format_args!("{contestant} is left out: {what}"));
            false
        }
    };
    all.filter(wanted).filter(can_be_had).collect()
}

fn told(contestant: Contestant, run: &Result<Run, String>) -> String {
    format!("{contestant}: {}", text(run))
}

fn text<T: Display>(result: &Result<T, String>) -> String {
    result.as_ref().map_or_else(|error| format!("failed: {error}"), ToString::to_string)
}

fn say(text: impl Display) {
    eprintln!("bench: {text}");
}

fn fail(reason: impl Display) -> ! {
    say(reason);
    exit(1);
}
