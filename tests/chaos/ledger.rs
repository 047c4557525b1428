//! The driver's own count, which knows nothing of onced but its headers.
//!
//! Owns: reading topics to their end, and comparing with what was acknowledged.
//! Never: asks a daemon.

pub mod least;
pub mod once;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::effects::source;
use crate::kafka::{Kafka, Partition};
use crate::traffic::{Acks, Route};

/// A reader that hears nothing for this long gives up.
const SILENCE: Duration = Duration::from_secs(60);
/// So many examples of each kind are shown.
const EXAMPLES: usize = 8;

/// What was found, by kind, with the first examples. Anything here is a violation.
#[derive(Default)]
pub struct Findings {
    found: Vec<(&'static str, u64, Vec<String>)>,
}

impl Findings {
    /// Kinds that the report shows also where there is none.
    pub fn of(kinds: &[&'static str]) -> Self {
        Self { found: kinds.iter().map(|kind| (*kind, 0, Vec::new())).collect() }
    }

    pub fn add(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        let at = self.found.iter().position(|(known, ..)| *known == kind);
        let at = at.unwrap_or_else(|| {
            self.found.push((kind, 0, Vec::new()));
            self.found.len() - 1
        });
        let (_, count, examples) = &mut self.found[at];
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    pub fn total(&self) -> u64 {
        self.found.iter().map(|(_, count, _)| count).sum()
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.found.iter().map(|(kind, count, _)| (*kind, *count))
    }

    pub fn examples(&self) -> impl Iterator<Item = (&'static str, &String)> {
        self.found
            .iter()
            .flat_map(|(kind, _, examples)| examples.iter().map(|example| (*kind, example)))
    }

    pub fn json(&self) -> Value {
        let kinds = self.found.iter().map(|(kind, count, examples)| {
            ((*kind).to_owned(), json!({ "count": count, "examples": examples }))
        });
        Value::Object(kinds.collect())
    }
}

/// Reads a topic from its start to its end, and returns how many records there were.
///
/// # Errors
///
/// Fails where the end is not reached.
pub fn read_topic(
    kafka: &Kafka,
    topic: &str,
    partitions: i32,
    committed: bool,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<u64, String> {
    let isolation = if committed { "read_committed" } else { "read_uncommitted" };
    let consumer: BaseConsumer = kafka.client(&[
        ("group.id", "chaos-reader"),
        ("enable.auto.commit", "false"),
        ("isolation.level", isolation),
        ("enable.partition.eof", "true"),
        ("queued.min.messages", "200000"),
        ("queued.max.messages.kbytes", "65536"),
        ("fetch.wait.max.ms", "50"),
    ]);
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&list).map_err(|error| format!("{topic}: {error}"))?;
    let mut at_the_end = HashSet::new();
    let mut count = 0;
    let mut heard = Instant::now();
    while at_the_end.len() < list.count() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                count += 1;
                each(&message);
                heard = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                at_the_end.insert(partition);
                heard = Instant::now();
            }
            // Broken connections and the like: the client tries again by itself.
            Some(Err(_)) | None if heard.elapsed() < SILENCE => {}
            _ => return Err(format!("{topic}: its end is not reached")),
        }
    }
    Ok(count)
}

/// The value of the first header of this name, as text.
fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    str::from_utf8(found.value?).ok()
}

/// How often each record was dead-lettered, compared with what must be there.
pub struct Letters {
    pub read: u64,
    pub expected: u64,
    /// Letters beyond the first of a record.
    pub repeated: u64,
    by_record: HashMap<(i32, u32), u32>,
}

impl Letters {
    pub fn read(
        kafka: &Kafka,
        route: Route,
        acks: &Acks,
        committed: &BTreeMap<Partition, i64>,
        findings: &mut Findings,
    ) -> Result<Self, String> {
        let mut by_record: HashMap<(i32, u32), u32> = HashMap::new();
        let read = read_topic(kafka, route.letters(), 1, true, |letter| {
            let Some(record) = header(letter, "onced-dead-letter-source").and_then(source) else {
                findings.add("letter without a source", || format!("offset {}", letter.offset()));
                return;
            };
            *by_record.entry(record).or_default() += 1;
            let reason = header(letter, "onced-dead-letter-reason").unwrap_or_default().to_owned();
            match acks.letters.get(&record) {
                Some(fate) if fate.reason() == reason => {}
                Some(fate) => findings.add("letter of another reason", || {
                    format!("{record:?}: {reason} instead of {}", fate.reason())
                }),
                None => findings
                    .add("letter of a record that is none", || format!("{record:?}: {reason}")),
            }
        })?;
        for (record, fate) in &acks.letters {
            let place = (route.input().to_owned(), record.0);
            // What was not reached is counted with the messages.
            let reached = committed.get(&place).is_some_and(|end| i64::from(record.1) < *end);
            if reached && !by_record.contains_key(record) {
                findings.add("lost letter", || format!("{record:?}: {}", fate.reason()));
            }
        }
        let repeated = by_record.values().map(|count| u64::from(count - 1)).sum();
        Ok(Self { read, expected: acks.letters.len() as u64, repeated, by_record })
    }

    pub fn doubled(&self) -> impl Iterator<Item = (&(i32, u32), &u32)> {
        self.by_record.iter().filter(|(_, count)| **count > 1)
    }
}
