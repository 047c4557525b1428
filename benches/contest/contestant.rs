//! Who takes part, and how each is started.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::bare;
use crate::harness::{Daemon, Kafka, signal, spawn, unique, wait_exit};

/// Who reads the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// A consumer that looks at key, header and payload.
    Drain,
    /// A consumer and a transactional producer, without deduplication.
    Copy,
    Onced(Onced),
    Streams {
        store: &'static str,
        guarantee: &'static str,
    },
    /// Records in a batch; 1,000 is its default.
    Tkati {
        batch: u32,
    },
    Bento,
}

/// What onced is measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onced {
    ExactlyOnce,
    /// `stdout` to `/dev/null`.
    AtLeastOnce,
    /// Exactly once, all handled before and the log lost: it reads the topic again.
    Absorb,
}

const EXACTLY_ONCE: &str = "exactly_once_v2";
const AT_LEAST_ONCE: &str = "at_least_once";

impl Contestant {
    /// In the order in which they take their turns.
    pub const ALL: [Self; 12] = [
        Self::Drain,
        Self::Copy,
        Self::Onced(Onced::ExactlyOnce),
        Self::Onced(Onced::AtLeastOnce),
        Self::Onced(Onced::Absorb),
        Self::Tkati { batch: 1_000 },
        Self::Tkati { batch: 10_000 },
        Self::Bento,
        Self::Streams { store: "window", guarantee: EXACTLY_ONCE },
        Self::Streams { store: "key-value", guarantee: EXACTLY_ONCE },
        Self::Streams { store: "window", guarantee: AT_LEAST_ONCE },
        Self::Streams { store: "key-value", guarantee: AT_LEAST_ONCE },
    ];

    /// What it needs and is not there; `None`: nothing.
    pub fn missing(self) -> Option<&'static str> {
        let (variable, what) = match self {
            Self::Streams { .. } => ("ONCED_BENCH_STREAMS", "it needs Java and Maven"),
            Self::Tkati { .. } => ("ONCED_BENCH_TKATI", "it needs Python 3.13"),
            Self::Bento => ("ONCED_BENCH_BENTO", "it needs Go"),
            Self::Drain | Self::Copy | Self::Onced(_) => return None,
        };
        fetched(variable).is_none().then_some(what)
    }

    /// Writes to a topic, of which each run gets a new one.
    pub fn has_output(self) -> bool {
        !matches!(self, Self::Drain | Self::Onced(Onced::AtLeastOnce))
    }

    /// What it writes is what is measured.
    pub fn is_seen_in_output(self) -> bool {
        self.has_output() && self != Self::Onced(Onced::Absorb)
    }

    /// Passes duplicates on too.
    pub fn keeps_duplicates(self) -> bool {
        self == Self::Copy
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Copy => f.write_str("copy"),
            Self::Onced(Onced::ExactlyOnce) => f.write_str("onced exactly-once"),
            Self::Onced(Onced::AtLeastOnce) => f.write_str("onced at-least-once"),
            Self::Onced(Onced::Absorb) => f.write_str("onced absorb"),
            Self::Streams { store, guarantee } => {
                let guarantee =
                    if *guarantee == EXACTLY_ONCE { "exactly-once" } else { "at-least-once" };
                write!(f, "kafka-streams {store} {guarantee}")
            }
            Self::Tkati { batch } => write!(f, "tkati-node-dedup, batches of {batch}"),
            Self::Bento => f.write_str("bento memory"),
        }
    }
}

fn fetched(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|path| !path.is_empty())
}

/// What a contestant works on.
pub struct Place<'a> {
    pub kafka: &'a Kafka,
    pub input: &'a str,
    pub output: &'a str,
    pub partitions: i32,
}

/// A contestant at work. Ends when dropped.
pub enum Working {
    Onced(Daemon),
    Other { child: Child, home: TempDir },
}

const ONCED: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"

[kafka.properties]
"compression.type" = "lz4"

[log]
dir = "{dir}"

[admin]
listen = "{admin}"

[routes.contest]
topics = ["{input}"]

[routes.contest.window]
ttl = "24h"
"#;

const TO_KAFKA: &str = r#"
[routes.contest.handler]
kind = "kafka"
topic = "{output}"
partition = "same"
"#;

const TO_STDOUT: &str = r#"
[routes.contest.handler]
kind = "stdout"
"#;

const TKATI: &str = r#"
[input]
type = "kafka"
connection = { broker = "{brokers}" }
consumer = { group_id = "{group}", batch_size = {batch}, batch_timeout_sec = 1, auto_offset_reset = "earliest" }
config = { "fetch.queue.backoff.ms" = 5, "queued.min.messages" = 1000000 }

[input.topic]
name = "{input}"
schema = { id = "string", sent = "int64", account = "string", amount = "int64", currency = "string", reference = "string", status = "string", channel = "string", region = "string" }

[output]
type = "kafka"
connection = { broker = "{brokers}" }
config = { "compression.type" = "lz4", "linger.ms" = 5, "queue.buffering.max.messages" = 1000000 }

[output.topic]
name = "{output}"
key_column = "account"
schema = { id = "string", sent = "int64", account = "string", amount = "int64", currency = "string", reference = "string", status = "string", channel = "string", region = "string" }

[dedup]
field = "id"
window_hours = 24
bucket_hours = 24
store_dir = "state"

[metrics]
enabled = false
"#;

const BENTO: &str = r#"
http:
  enabled: false
logger:
  level: WARN
input:
  kafka_franz:
    seed_brokers: ["{brokers}"]
    topics: ["{input}"]
    consumer_group: "{group}"
    start_from_oldest: true
    checkpoint_limit: 100000
    commit_period: 1s
    batching:
      count: 1000
      period: 50ms
pipeline:
  threads: 1
  processors:
    - dedupe:
        cache: seen
        key: ${! meta("Idempotency-Key") }
        drop_on_err: false
output:
  kafka_franz:
    seed_brokers: ["{brokers}"]
    topic: "{output}"
    key: ${! meta("kafka_key") }
    compression: lz4
    max_in_flight: 1
    metadata:
      include_patterns: ["^Idempotency-Key$"]
cache_resources:
  - label: seen
    memory:
      default_ttl: 24h
"#;

impl Contestant {
    /// Starts it on a group of its own.
    pub fn start(self, place: &Place<'_>) -> Working {
        let group = unique("contest");
        let home = tempfile::Builder::new().prefix("onced-bench-").tempdir();
        let home = home.expect("a temporary folder can be made");
        let fill = |template: &str| {
            template
                .replace("{brokers}", place.kafka.bootstrap())
                .replace("{group}", &group)
                .replace("{input}", place.input)
                .replace("{output}", place.output)
        };
        let write = |name: &str, text: &str| {
            fs::write(home.path().join(name), fill(text)).expect("the folder can be written");
        };
        let command = match self {
            Self::Onced(what) => return Working::Onced(onced(what, place, &group)),
            Self::Drain => bare::command("drain", place, &group),
            Self::Copy => bare::command("copy", place, &group),
            Self::Streams { store, guarantee } => {
                let threads = place.partitions.min(2).to_string();
                let classes = fetched("ONCED_BENCH_STREAMS").expect("it was there");
                let mut command = Command::new("java");
                command
                    .args(["-Xmx512m", "-cp", &classes, "Dedup", place.kafka.bootstrap(), &group])
                    .args([place.input, place.output, "state", store, guarantee, &threads]);
                command
            }
            Self::Tkati { batch } => {
                write("settings.toml", &TKATI.replace("{batch}", &batch.to_string()));
                Command::new(fetched("ONCED_BENCH_TKATI").expect("it was there"))
            }
            Self::Bento => {
                write("bento.yaml", BENTO);
                let mut command = Command::new(fetched("ONCED_BENCH_BENTO").expect("it was there"));
                command.args(["-c", "bento.yaml"]);
                command
            }
        };
        Working::other(command, home)
    }
}

fn onced(what: Onced, place: &Place<'_>, group: &str) -> Daemon {
    let handler = if what == Onced::AtLeastOnce { TO_STDOUT } else { TO_KAFKA };
    let mut daemon = Daemon::with(&format!("{ONCED}{handler}"))
        .on(place.kafka)
        .fill("group", group)
        .fill("input", place.input)
        .fill("output", place.output)
        .discard_stdout()
        .start();
    if what == Onced::Absorb {
        daemon.wait_ready();
        for partition in 0..place.partitions {
            let end = place.kafka.end_offset(place.input, partition);
            crate::harness::wait_until("all is handled", Duration::from_secs(300), || {
                place.kafka.committed_offset(group, place.input, partition) == Some(end)
            });
        }
        daemon.terminate();
        fs::remove_dir_all(daemon.data_dir()).expect("the log is there");
        daemon.start();
    }
    daemon
}

impl Working {
    fn other(mut command: Command, home: TempDir) -> Self {
        let log = File::create(home.path().join("log")).expect("the folder can be written");
        let out = File::create(home.path().join("out")).expect("the folder can be written");
        command.current_dir(home.path()).stdin(Stdio::null()).stdout(out).stderr(log);
        let child = spawn(command).expect("the contestant can be started");
        Self::Other { child, home }
    }

    pub fn pid(&self) -> u32 {
        match self {
            Self::Onced(daemon) => daemon.pid(),
            Self::Other { child, .. } => child.id(),
        }
    }

    pub fn running(&mut self) -> bool {
        match self {
            Self::Onced(daemon) => daemon.running(),
            Self::Other { child, .. } => child.try_wait().is_ok_and(|status| status.is_none()),
        }
    }

    /// The end of what it said.
    pub fn said(&self) -> String {
        let log = match self {
            Self::Onced(daemon) => daemon.stderr(),
            Self::Other { home, .. } => {
                let read = |name| fs::read_to_string(home.path().join(name)).unwrap_or_default();
                read("out") + &read("log")
            }
        };
        log.chars().skip(log.chars().count().saturating_sub(2_000)).collect()
    }

    /// What drain prints.
    pub fn printed(&self) -> String {
        match self {
            Self::Onced(_) => String::new(),
            Self::Other { home, .. } => {
                fs::read_to_string(home.path().join("out")).unwrap_or_default()
            }
        }
    }

    /// Asks it to end, and waits.
    pub fn end(&mut self) {
        match self {
            Self::Onced(daemon) => drop(daemon.terminate()),
            Self::Other { child, .. } => {
                signal(child.id(), libc::SIGTERM);
                if wait_exit(child, Duration::from_secs(40)).is_none() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }

    /// Bytes of its state on disk.
    pub fn disk(&self) -> u64 {
        match self {
            Self::Onced(daemon) => size_of(&daemon.data_dir()),
            Self::Other { home, .. } => size_of(&home.path().join("state")),
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Self::Other { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(of) if of.is_dir() => size_of(&entry.path()),
        Ok(of) => of.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// The binary of this measurement.
pub fn this() -> PathBuf {
    env::current_exe().expect("a process knows its binary")
}
