//! `onced verify`: was every record handled once?
//!
//! Reads the input, the outputs (as committed and as uncommitted), the dead letters and the
//! committed offsets, decides with a model of its own what should have become of every record, and
//! compares. It is a check of the daemon: it shares no code with it but the formats (records, the
//! headers of dead letters, the metadata of commits), the configuration and the Kafka client.
//!
//! ```text
//! reader      asks the brokers: records, ends, settings         group   committed offsets
//! message     headers of onced, digests                          letter  dead letters
//! canonical   which JSON is the same                             key     which record is the same
//! outputs     what was put out, by where it came from
//! partition   the verdict over one input partition (pure)        finding its words
//! gather      the order in which all this is read                report  tables and JSON
//! ```
//!
//! # JSON
//!
//! One object; the names are a contract:
//!
//! ```text
//! ok          true: no violation
//! partitions  [{route, topic, partition, first, committed, end, generation, and the numbers of
//!             finding::Counts: records, handled, duplicates, conflicts, dead_lettered, skipped, lost,
//!             suppressed_too_late, off_phase, undecided, unidentified, untimed, beyond_window,
//!             outputs, repeated, torn, ahead, without_record, below_first, letters, rerun}]
//! outputs     [{route, topic, committed, aborted, foreign}]
//! violations  {kind: number} for every kind of finding::Kind
//! examples    [{kind, topic, partition, offset, detail, neighbours: [{offset, client_key, key, time,
//!             fate, output, same_key}]}]
//! notes       [text]
//! error       text, and only "ok": false beside it: it could not look
//! ```
//!
//! Memory: for each record of the largest input partition 49 bytes and 6 to 12 for finding it, and
//! 32 for each output: 10 million records fit into 1 GB.
//!
//! # What it cannot see
//!
//! - What a handler did outside Kafka.
//! - Records that retention has deleted, and what they suppressed: counted as undecided.
//! - What another consumer handled before the group began, and offsets that a tool moved forward
//!   longer ago than the window: both look lost.
//! - From where on a rewind ran again: outputs that came again after it are counted, not judged.
//! - The wall clock at which a record was read, which counts for records that carry no timestamp
//!   or were dated in the future: not judged by time.
//! - That two records with one key lie in different partitions.
//!
//! Owns: the exit code. Never: changes anything; it joins no group and commits nothing.

mod canonical;
mod finding;
mod gather;
mod group;
mod key;
mod letter;
mod message;
mod outputs;
mod partition;
mod progress;
mod reader;
mod report;

use std::error::Error as _;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use self::gather::Options;
use self::progress::Progress;
use self::reader::Error;
use self::report::Report;
use crate::cli::{self, ConfigArgs};
use crate::config::{Config, HandlerKind, Route};
use crate::daemon::exit;

/// What is to be verified.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only this route; all of them otherwise.
    #[arg(long)]
    route: Option<String>,
    /// The output topic, where the configuration does not name it. For one route.
    #[arg(long, value_name = "TOPIC")]
    output: Option<String>,
    /// Print one JSON object: {"ok", "partitions", "outputs", "violations", "examples", "notes"}.
    #[arg(long)]
    json: bool,
    /// The most examples of each kind of violation.
    #[arg(long, default_value_t = 32, value_name = "N")]
    examples: u64,
    /// How long an open transaction may take to end before it counts as hanging.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    patience: Duration,
    /// Count as a violation, too, what only a log that was rebuilt may do: to suppress by a
    /// duplicate, after the window of the first.
    #[arg(long)]
    strict_window: bool,
    /// No progress, also on a terminal.
    #[arg(long)]
    no_progress: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Verifies, and prints what was found. Returns the exit code.
pub fn run(args: &VerifyArgs) -> u8 {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(error) => {
            let code = cli::config_error(&error);
            return if args.json { print(&failure(&error.to_string()), code) } else { code };
        }
    };
    match verify(&config, args) {
        Ok(report) => {
            let code = if report.ok { exit::OK } else { exit::VIOLATION };
            print(&if args.json { report.json() } else { report.to_string() }, code)
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!("\n  caused by: {cause}"));
                source = cause.source();
            }
            eprintln!("error: {text}");
            if args.json { print(&failure(&text), exit::FAILED) } else { exit::FAILED }
        }
    }
}

fn verify(config: &Config, args: &VerifyArgs) -> Result<Report, Error> {
    let routes = chosen(config, args)?;
    let options = Options {
        output: args.output.clone(),
        examples: args.examples,
        patience: args.patience,
        strict_window: args.strict_window,
    };
    let progress = Progress::new(args.no_progress);
    let reports = routes
        .into_iter()
        .map(|route| gather::gather(&config.kafka, route, &options, &progress))
        .collect::<Result<Vec<_>, _>>();
    progress.end();
    reports.map(Report::of)
}

fn chosen<'a>(config: &'a Config, args: &VerifyArgs) -> Result<Vec<&'a Route>, Error> {
    let wanted = |route: &&Route| args.route.as_ref().is_none_or(|name| **name == *route.name);
    let routes: Vec<&Route> = config.routes.iter().filter(wanted).collect();
    let names = || config.routes.iter().map(|route| &*route.name).collect::<Vec<_>>().join(", ");
    match (routes.len(), &args.output) {
        (0, _) => Err(Error::Other(format!("there is no such route (there are: {})", names()))),
        (1, _) | (_, None) => Ok(routes),
        (_, Some(_)) => Err(Error::Other(format!(
            "--output is for one route: choose it with --route (there are: {})",
            names()
        ))),
    }
}

/// Where the handler of a route puts its outputs. `None`: nowhere in Kafka.
fn output_topic(route: &Route) -> Option<Arc<str>> {
    match &route.handler {
        HandlerKind::Kafka(kafka) => Some(kafka.topic.clone()),
        HandlerKind::Stdout | HandlerKind::Http(_) | HandlerKind::Registered(_) => None,
    }
}

fn failure(error: &str) -> String {
    serde_json::json!({ "ok": false, "error": error }).to_string()
}

fn print(text: &str, code: u8) -> u8 {
    match writeln!(io::stdout(), "{text}") {
        // Whoever asked has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to standard output: {error}");
            exit::FAILED
        }
        _ => code,
    }
}
