//! How fast `onced run` reads a topic, next to a consumer that does nothing with it.
//!
//! Run through `scripts/compare`, which says what is measured and takes the same options. It speaks
//! through the harness of the integration tests: the broker, the records and the daemon are theirs.

#![expect(clippy::print_stdout, reason = "the result is what it is run for")]
#![allow(clippy::cast_sign_loss, reason = "counters and counts are not negative")]

use std::collections::HashSet;
use std::env;
use std::fmt::Display;
use std::fs;
use std::process::exit;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

#[path = "../tests/integration/harness/mod.rs"]
mod harness;

use harness::{Daemon, Kafka, payments, unique, wait_until};

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"

[log]
dir = "{dir}"

[admin]
listen = "{admin}"

[routes.compare]
topics = ["{topic}"]
mode = "at-least-once"

[routes.compare.window]
ttl = "24h"

[routes.compare.handler]
kind = "stdout"
"#;

/// How often `/metrics` is looked at. An error of one interval in seconds of reading is nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The measurement fails where it takes longer than this.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);

fn main() {
    let options = Options::from_arguments(env::args().skip(1));
    let kafka = Kafka::for_benchmarks();
    let input = Input::produce(&kafka, &options);

    say("reading once, so that the first round finds the topic in memory");
    measure_bare(&kafka, &input);
    let rounds: Vec<_> =
        (1..=options.rounds).map(|round| Round::run(round, &kafka, &input)).collect();
    let result = Summary::of(&rounds);
    if options.json {
        println!("{}", result.json(&rounds, &input));
    } else {
        println!("{}", result.text(&rounds, &input));
    }
}

struct Options {
    records: usize,
    rounds: usize,
    duplicates_percent: u8,
    json: bool,
}

impl Options {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options =
            Self { records: 1_000_000, rounds: 3, duplicates_percent: 10, json: false };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--records" => options.records = value(&argument, arguments.next()),
                "--rounds" => options.rounds = value(&argument, arguments.next()),
                "--duplicates" => options.duplicates_percent = value(&argument, arguments.next()),
                "--json" => options.json = true,
                // Cargo adds this one.
                "--bench" => {}
                _ => fail_usage(&format!("unknown option '{argument}'")),
            }
        }
        if options.records == 0 || options.rounds == 0 || options.duplicates_percent > 100 {
            fail_usage("records and rounds begin at 1, and duplicates end at 100");
        }
        options
    }
}

fn value<T: FromStr>(option: &str, value: Option<String>) -> T {
    match value.as_deref().map(str::parse) {
        Some(Ok(value)) => value,
        _ => fail_usage(&format!("{option} needs a number")),
    }
}

fn fail_usage(reason: &str) -> ! {
    eprintln!("compare: {reason}; see scripts/compare --help");
    exit(2)
}

fn say(what: impl Display) {
    eprintln!("compare: {what}");
}

/// The topic that both read.
struct Input {
    topic: String,
    records: usize,
    distinct: usize,
    duplicates_percent: u8,
    bytes: usize,
}

impl Input {
    fn produce(kafka: &Kafka, options: &Options) -> Self {
        let Options { records, duplicates_percent, .. } = *options;
        say(format_args!("producing {records} records"));
        let topic = kafka.topic("compare").create();
        let share = f64::from(duplicates_percent) / 100.0;
        let mut bytes = 0;
        let mut keys = HashSet::new();
        let messages = payments(records, share, 1).inspect(|message| {
            bytes += message.payload.as_ref().map_or(0, Vec::len);
            keys.extend(message.headers.first().and_then(|(_, key)| key.clone()));
        });
        kafka.produce_with(&[("compression.type", "lz4"), ("linger.ms", "50")], &topic, messages);
        let distinct = keys.len();
        Self { topic, records, distinct, duplicates_percent, bytes }
    }

    fn end(&self) -> f64 {
        float(self.records)
    }
}

/// One turn of each.
struct Round {
    bare_rate: f64,
    onced: Onced,
}

/// What a run of the daemon showed.
struct Onced {
    /// Records per second until the last one was committed.
    rate: f64,
    /// Records per second until the last one was settled.
    settled_rate: f64,
    peak_kib: u64,
}

impl Round {
    fn run(number: usize, kafka: &Kafka, input: &Input) -> Self {
        let bare_rate = measure_bare(kafka, input);
        let onced = measure_onced(kafka, input);
        let round = Self { bare_rate, onced };
        say(format_args!("round {number}: {}", round.text()));
        round
    }

    fn ratio(&self) -> f64 {
        self.onced.rate / self.bare_rate
    }

    fn text(&self) -> String {
        format!(
            "bare {:>9.0}/s   onced {:>9.0}/s (settled {:>9.0}/s)   ratio {:.3}   peak {} MiB",
            self.bare_rate,
            self.onced.rate,
            self.onced.settled_rate,
            self.ratio(),
            self.onced.peak_kib / 1024,
        )
    }

    fn json(&self) -> Value {
        json!({
            "bare_records_per_second": self.bare_rate.round(),
            "onced_records_per_second": self.onced.rate.round(),
            "onced_settled_records_per_second": self.onced.settled_rate.round(),
            "ratio": self.ratio(),
            "onced_peak_kib": self.onced.peak_kib,
        })
    }
}

/// Records per second, from the first record to the last.
fn measure_bare(kafka: &Kafka, input: &Input) -> f64 {
    let consumer: BaseConsumer = kafka.client(&[
        ("group.id", &unique("bare")),
        ("enable.auto.commit", "false"),
        // With the defaults it pauses for a second whenever 100,000 records are waiting.
        ("queued.min.messages", "1000000"),
        ("queued.max.messages.kbytes", "262144"),
        ("fetch.queue.backoff.ms", "5"),
        ("fetch.message.max.bytes", "8388608"),
    ]);
    let mut from_the_start = TopicPartitionList::new();
    from_the_start
        .add_partition_offset(&input.topic, 0, Offset::Beginning)
        .expect("a valid offset");
    consumer.assign(&from_the_start).expect("the partition can be assigned");

    let begun = Instant::now();
    let mut first = None;
    let (mut records, mut bytes) = (0, 0);
    while records < input.records {
        assert!(begun.elapsed() < RUN_TIMEOUT, "the bare consumer does not reach the end");
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            first.get_or_insert_with(Instant::now);
            records += 1;
            bytes += message.payload().map_or(0, <[u8]>::len);
        }
    }
    let elapsed = first.expect("there is a record").elapsed();
    assert_eq!(bytes, input.bytes, "the bare consumer reads every byte");
    input.end() / elapsed.as_secs_f64()
}

/// The clock starts at the first look that shows a verdict, and what that look shows does not
/// count. So connecting and joining the group are left out, as they are for the bare consumer.
fn measure_onced(kafka: &Kafka, input: &Input) -> Onced {
    let mut daemon = Daemon::with(CONFIG)
        .on(kafka)
        .fill("group", &unique("compare"))
        .fill("topic", &input.topic)
        .discard_stdout()
        .start();

    let topic = [("topic", input.topic.as_str())];
    let (begun, before) = wait_until("the first verdict", RUN_TIMEOUT, || {
        let metrics = daemon.try_metrics().unwrap_or_default();
        let records = metrics.value("onced_records_total", &[]);
        (records > 0.0).then(|| (Instant::now(), records))
    });
    let (settled, committed) = {
        let mut settled = None;
        let committed = wait_until("the last commit", RUN_TIMEOUT, || {
            std::thread::sleep(LOOK_INTERVAL);
            let metrics = daemon.metrics();
            if metrics.value("onced_position", &topic) >= input.end() {
                settled.get_or_insert_with(|| begun.elapsed());
            }
            let offset = metrics.value("onced_committed_offset", &topic);
            if offset >= input.end() { Ok(begun.elapsed()) } else { Err(offset) }
        });
        (settled.unwrap_or(committed), committed)
    };

    check_verdicts(&daemon, input);
    let peak_kib = peak_memory_kib(daemon.pid());
    daemon.terminate();
    let rate = |elapsed: Duration| (input.end() - before) / elapsed.as_secs_f64();
    Onced { rate: rate(committed), settled_rate: rate(settled), peak_kib }
}

/// Speed is worth nothing where the answers are wrong.
fn check_verdicts(daemon: &Daemon, input: &Input) {
    let verdicts = daemon.metrics().by_label("onced_records_total", "verdict");
    let of = |verdict: &str| verdicts.get(verdict).copied().unwrap_or_default();
    let expected = (float(input.distinct), float(input.records - input.distinct));
    assert_eq!((of("fresh"), of("duplicate")), expected, "fresh and duplicate of {verdicts:?}");
}

#[expect(clippy::cast_precision_loss, reason = "counts of records are far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}

/// The most memory that the process ever had.
fn peak_memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a number of KiB")
}

struct Summary {
    median: f64,
    smallest: f64,
    largest: f64,
    peak_kib: u64,
}

impl Summary {
    fn of(rounds: &[Round]) -> Self {
        let mut ratios: Vec<_> = rounds.iter().map(Round::ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let middle = ratios.len() / 2;
        let median = match ratios.len() % 2 {
            0 => f64::midpoint(ratios[middle - 1], ratios[middle]),
            _ => ratios[middle],
        };
        let peaks = rounds.iter().map(|round| round.onced.peak_kib);
        Self {
            median,
            smallest: ratios[0],
            largest: ratios[ratios.len() - 1],
            peak_kib: peaks.max().unwrap_or_default(),
        }
    }

    fn text(&self, rounds: &[Round], input: &Input) -> String {
        let lines =
            (1..).zip(rounds).map(|(number, round)| format!("round {number}: {}", round.text()));
        let lines: Vec<_> = lines.collect();
        format!(
            "\
topic   {} records in one partition, {} bytes of JSON each, {} % duplicates, lz4
bare    a librdkafka consumer that counts them, from the first record to the last
onced   onced run, at-least-once, window 24h, stdout handler into /dev/null; from the first verdict
        in /metrics, looked at every {} ms, until the committed offset is the end of the topic
        (settled: until the position is). Connecting is left out for both

{}

ratio of onced to bare: median {:.3}, smallest {:.3}, largest {:.3}
peak memory of onced: {} MiB",
            input.records,
            input.bytes / input.records,
            input.duplicates_percent,
            LOOK_INTERVAL.as_millis(),
            lines.join("\n"),
            self.median,
            self.smallest,
            self.largest,
            self.peak_kib / 1024,
        )
    }

    fn json(&self, rounds: &[Round], input: &Input) -> Value {
        json!({
            "records": input.records,
            "record_bytes": input.bytes / input.records,
            "duplicates_percent": input.duplicates_percent,
            "rounds": rounds.iter().map(Round::json).collect::<Vec<_>>(),
            "ratio": {
                "median": self.median,
                "smallest": self.smallest,
                "largest": self.largest,
            },
            "onced_peak_kib": self.peak_kib,
        })
    }
}
