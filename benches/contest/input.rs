//! The topic that everybody reads: events of about 200 bytes, some of them twice.

use crate::harness::{Kafka, Message};
use crate::options::Options;
use crate::say;

/// A duplicate repeats one of this many latest events.
const LOOK_BACK: u32 = 100_000;
const SEED: u64 = 1;

/// What every key begins with; the number follows in twelve digits.
pub const KEY_START: &str = "evt-";

/// A topic that is full.
pub struct Input {
    pub topic: String,
    pub partitions: i32,
    pub records: u32,
    pub distinct: u32,
    /// Of all payloads.
    pub bytes: u64,
}

impl Input {
    pub fn produce(kafka: &Kafka, options: &Options, partitions: i32) -> Self {
        let Options { records, duplicates, .. } = *options;
        say(format_args!("producing {records} records into {partitions} partitions"));
        let topic = kafka.topic("contest").partitions(partitions).create();
        let mut events = Events::new(records, f64::from(duplicates) / 100.0);
        let mut bytes = 0;
        let messages = events.by_ref().map(|number| {
            let message = event(number, 0);
            bytes += message.payload.as_ref().map_or(0, Vec::len) as u64;
            message
        });
        kafka.produce_with(&[("compression.type", "lz4"), ("linger.ms", "50")], &topic, messages);
        let distinct = events.next;
        Self { topic, partitions, records, distinct, bytes }
    }
}

/// The event of a number: the same bytes each time, but for when it was sent, in microseconds since
/// 1970. Events of one account are in one partition, so both of a pair are.
pub fn event(number: u32, sent: i64) -> Message {
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    let account = random.u32(..10_000);
    let key = format!("{KEY_START}{number:012}");
    let payload = format!(
        r#"{{"id":"{key}","sent":{sent},"account":"acc-{account:05}","amount":{},"currency":"EUR","reference":"{:016x}{:016x}","status":"authorised","channel":"web","region":"eu-1"}}"#,
        random.u32(1..1_000_000),
        random.u64(..),
        random.u64(..),
    );
    Message::new(payload).key(format!("acc-{account:05}")).idempotency_key(&key)
}

/// The numbers of the events, in their order.
struct Events {
    left: u32,
    duplicates: f64,
    next: u32,
    random: fastrand::Rng,
}

impl Events {
    fn new(records: u32, duplicates: f64) -> Self {
        Self { left: records, duplicates, next: 0, random: fastrand::Rng::with_seed(SEED) }
    }
}

impl Iterator for Events {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        if self.next > 0 && self.random.f64() < self.duplicates {
            return Some(self.random.u32(self.next.saturating_sub(LOOK_BACK)..self.next));
        }
        self.next += 1;
        Some(self.next - 1)
    }
}
