//! One run of one contestant, from its first progress to its last.

use std::fmt;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Onced, Place, Working};
use crate::harness::Kafka;
use crate::input::Input;
use crate::output;

/// Between two looks at the progress.
const LOOK: Duration = Duration::from_millis(10);
/// Where nothing comes any more for this long, the last progress was the end.
const QUIET: Duration = Duration::from_millis(700);
/// A run fails where it takes longer.
const LIMIT: Duration = Duration::from_secs(300);
const CALL: Duration = Duration::from_secs(30);

/// What a run showed.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Records a second.
    pub rate: f64,
    /// Microseconds of processor time, user and system, for a record.
    pub cpu: f64,
    /// The most memory that it ever had, in bytes.
    pub memory: u64,
    /// Bytes on disk for each distinct key, once it has ended. `None`: it keeps nothing.
    pub disk: Option<f64>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, cpu, memory, disk } = self;
        write!(f, "{rate:.0}/s, {cpu:.2} us of CPU a record, {} MiB", memory >> 20)?;
        disk.map_or(Ok(()), |disk| write!(f, ", {disk:.0} bytes a key on disk"))
    }
}

impl Run {
    pub fn json(&self) -> Value {
        let round = |figure: f64| (figure * 100.0).round() / 100.0;
        json!({
            "records_per_second": self.rate.round(),
            "cpu_us_per_record": round(self.cpu),
            "peak_memory_bytes": self.memory,
            "disk_bytes_per_key": self.disk.map(round),
        })
    }
}

/// A moment of a run.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    /// Of whatever is counted.
    progress: u64,
    cpu: Duration,
}

/// Runs a contestant over the whole topic and looks at what came out.
///
/// Starting, connecting and joining a group are left out: the clock starts at the first progress
/// that is seen, and what that look shows does not count.
///
/// # Errors
/// It ended, did not get to the end, or its output is wrong.
pub fn run(kafka: &Kafka, input: &Input, contestant: Contestant) -> Result<Run, String> {
    let topic = kafka.topic("contest-out").partitions(input.partitions);
    let output = if contestant.has_output() { topic.create() } else { String::new() };
    let place = Place { kafka, input: &input.topic, output: &output, partitions: input.partitions };
    let mut working = contestant.start(&place);
    let result = if contestant == Contestant::Drain {
        drained(&mut working, input)
    } else {
        let source = match &working {
            Working::Onced(_) if !contestant.is_seen_in_output() => Progress::Records,
            _ => Progress::Written(Ends::new(kafka, &output, input.partitions)),
        };
        watch(&mut working, contestant, &source, input)
    };
    let (rate, cpu) = result.map_err(|error| format!("{error}\n{}", working.said()))?;
    let memory = peak_memory(working.pid());
    if contestant == Contestant::Onced(Onced::AtLeastOnce) {
        verdicts_are_right(&working, input)?;
    }
    working.end();
    let disk = working.disk();
    if contestant.has_output() {
        output::check(kafka, &output, input, contestant.keeps_duplicates())?;
        kafka.delete_topic(&output);
    }
    let disk = (disk > 0).then(|| disk as f64 / f64::from(input.distinct));
    Ok(Run { rate, cpu, memory, disk })
}

/// Drain measures itself: it writes nothing that could be watched.
fn drained(working: &mut Working, input: &Input) -> Result<(f64, f64), String> {
    let begun = Instant::now();
    loop {
        let printed = working.printed();
        if printed.ends_with('\n') {
            let figures: Vec<u64> =
                printed.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [records, bytes, wall, cpu, _] = figures[..] else { return Err(printed) };
            if (records, bytes) != (u64::from(input.records), input.bytes) {
                return Err(format!("it read {records} records of {bytes} bytes"));
            }
            let records = records as f64;
            return Ok((records / (wall as f64 / 1e6), cpu as f64 / records));
        }
        still_working(working, begun)?;
        thread::sleep(LOOK);
    }
}

fn still_working(working: &mut Working, begun: Instant) -> Result<(), String> {
    if !working.running() {
        return Err("it ended".to_owned());
    }
    (begun.elapsed() < LIMIT).then_some(()).ok_or_else(|| format!("it took more than {LIMIT:?}"))
}

/// Where the progress is seen.
enum Progress {
    /// In the output topic, transaction markers included: their number is in proportion.
    Written(Ends),
    /// In the metrics of onced.
    Records,
}

impl Progress {
    fn now(&self, working: &Working) -> u64 {
        match (self, working) {
            (Self::Written(ends), _) => ends.sum(),
            (Self::Records, Working::Onced(daemon)) => {
                let metrics = daemon.try_metrics().unwrap_or_default();
                metrics.value("onced_records_total", &[]) as u64
            }
            (Self::Records, Working::Other { .. }) => 0,
        }
    }
}

/// Records a second, and microseconds of processor time for a record.
fn watch(
    working: &mut Working,
    contestant: Contestant,
    progress: &Progress,
    input: &Input,
) -> Result<(f64, f64), String> {
    let all = u64::from(match progress {
        Progress::Written(_) if !contestant.keeps_duplicates() => input.distinct,
        _ => input.records,
    });
    let begun = Instant::now();
    let mut first: Option<Mark> = None;
    let mut last: Option<Mark> = None;
    loop {
        still_working(working, begun)?;
        let now = progress.now(working);
        if now > 0 && last.is_none_or(|last| now > last.progress) {
            let cpu = cpu_of(&working.pid().to_string());
            let mark = Mark { at: Instant::now(), progress: now, cpu };
            first.get_or_insert(mark);
            last = Some(mark);
        }
        if let (Some(first), Some(last)) = (first, last)
            && last.progress >= all
            && last.at.elapsed() > QUIET
        {
            let share = (last.progress - first.progress) as f64 / last.progress as f64;
            let records = share * f64::from(input.records);
            let (wall, cpu) = (last.at - first.at, last.cpu.saturating_sub(first.cpu));
            return Ok((records / wall.as_secs_f64(), cpu.as_secs_f64() * 1e6 / records));
        }
        thread::sleep(LOOK);
    }
}

fn verdicts_are_right(working: &Working, input: &Input) -> Result<(), String> {
    let Working::Onced(daemon) = working else { return Ok(()) };
    let verdicts = daemon.metrics().by_label("onced_records_total", "verdict");
    let of = |verdict: &str| verdicts.get(verdict).copied().unwrap_or_default() as u32;
    let expected = (input.distinct, input.records - input.distinct);
    let found = (of("fresh"), of("duplicate"));
    (found == expected).then_some(()).ok_or_else(|| format!("verdicts {verdicts:?}"))
}

/// The stable ends of a topic's partitions.
struct Ends {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Ends {
    fn new(kafka: &Kafka, topic: &str, partitions: i32) -> Self {
        let consumer = kafka.client(&[("isolation.level", "read_committed")]);
        Self { consumer, topic: topic.to_owned(), partitions }
    }

    fn sum(&self) -> u64 {
        let end = |partition| {
            let ends = self.consumer.fetch_watermarks(&self.topic, partition, CALL);
            ends.map_or(0, |(_, end)| end as u64)
        };
        (0..self.partitions).map(end).sum()
    }
}

/// What `onced bench log` says.
///
/// # Errors
/// What it says instead.
pub fn log(keys: u64) -> Result<Value, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_onced"))
        .args(["bench", "log", "--json", "--keys", &keys.to_string()])
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// Processor time that a process has used, user and system, of all its threads.
pub fn cpu_of(pid: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before may hold blanks.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok());
    // SAFETY: it only takes a number.
    let each = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    Duration::from_micros(ticks.sum::<u64>() * 1_000_000 / each)
}

/// The most memory that a process ever had, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}
