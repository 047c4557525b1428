//! The records: what is sent, how fast, and what was acknowledged.
//!
//! Owns: the seeded stream of each route, the producer, the acknowledgements.
//! Never: looks at what the daemons make of it.
//!
//! A message is a number. Its key, partition and payload follow from the number and the seed, so
//! nothing but the offset of its first record is remembered.

mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
    ThreadedProducer,
};

pub use stream::{Fate, Kind, OUTPUT_BYTES_MAX, Stream, fate, id_of, partition, payload};

use crate::kafka::Kafka;

pub const PARTITIONS: i32 = 6;
/// No acknowledgement: the record was never acknowledged.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Kafka to Kafka, exactly once.
    Once,
    /// To an outside service, at least once.
    Least,
}

impl Route {
    pub fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Least => "least",
        }
    }

    pub fn input(self) -> &'static str {
        match self {
            Self::Once => "input-once",
            Self::Least => "input-least",
        }
    }

    pub fn letters(self) -> &'static str {
        match self {
            Self::Once => "dead-once",
            Self::Least => "dead-least",
        }
    }
}

/// The topic that the route `once` writes to.
pub const OUTPUT: &str = "output-once";

/// How far the campaign is; says how much may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Before the first fault.
    Before = 0,
    Faults = 1,
    /// After the last one.
    After = 2,
}

/// What was acknowledged of a route's records.
pub struct Acks {
    /// The smallest offset of each message's records, [`NONE`] where there is none.
    pub first: Vec<u32>,
    /// Records that must become a letter, by partition and offset.
    pub letters: HashMap<(i32, u32), Fate>,
    /// Messages with a record of which it is not known whether, or where, it is.
    pub unknown: HashSet<u32>,
    pub records: u64,
    /// Acknowledged without an offset: the broker had the record already when it came again.
    pub placeless: u64,
}

pub struct Traffic {
    pub seed: u64,
    pub routes: Vec<Lane>,
    phase: AtomicU8,
    stopping: AtomicBool,
}

pub struct Lane {
    pub route: Route,
    pub records: u32,
    pub sent: AtomicU32,
    pub messages: AtomicU32,
    pub acks: Arc<Mutex<Acks>>,
}

impl Lane {
    pub fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().expect("nobody panics while holding the acknowledgements")
    }
}

impl Traffic {
    pub fn new(seed: u64, routes: impl Iterator<Item = (Route, u32)>) -> Self {
        let lane = |(route, records)| Lane {
            route,
            records,
            sent: AtomicU32::new(0),
            messages: AtomicU32::new(0),
            acks: Arc::new(Mutex::new(Acks {
                first: Vec::new(),
                letters: HashMap::new(),
                unknown: HashSet::new(),
                records: 0,
                placeless: 0,
            })),
        };
        Self {
            seed,
            routes: routes.map(lane).collect(),
            phase: AtomicU8::new(Phase::Before as u8),
            stopping: AtomicBool::new(false),
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub fn sent(&self) -> u64 {
        self.routes.iter().map(|lane| u64::from(lane.sent.load(Ordering::Relaxed))).sum()
    }

    /// Sends everything, as fast as the phase allows, and waits for the acknowledgements.
    ///
    /// # Errors
    ///
    /// Fails where records are not acknowledged for a long time.
    pub fn send_all(
        &self,
        kafka: &Kafka,
        duplicates_percent: u32,
        lasts: Duration,
        dup_age_max: Duration,
    ) -> Result<(), String> {
        let producer = producer(kafka, &self.routes);
        let mut streams: Vec<_> = self
            .routes
            .iter()
            .map(|lane| Stream::new(self.seed, lane.route, duplicates_percent, dup_age_max))
            .collect();
        let mut allowed = vec![0.0_f64; streams.len()];
        let mut before = Instant::now();
        while !self.stopping.load(Ordering::SeqCst) {
            let elapsed = before.elapsed().as_secs_f64();
            before = Instant::now();
            let mut rest = false;
            for ((lane, stream), allowed) in self.routes.iter().zip(&mut streams).zip(&mut allowed)
            {
                let (rate, most) = self.pace(lane, lasts);
                *allowed = (*allowed + rate * elapsed).min(most);
                rest |= lane.sent.load(Ordering::Relaxed) < lane.records;
                while f64::from(lane.sent.load(Ordering::Relaxed)) < *allowed {
                    self.send(&producer, lane, stream)?;
                }
            }
            if !rest {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let begun = Instant::now();
        while producer.in_flight_count() > 0 && begun.elapsed() < Duration::from_secs(300) {
            thread::sleep(Duration::from_millis(20));
        }
        match producer.in_flight_count() {
            0 => Ok(()),
            left => Err(format!("{left} records are not acknowledged")),
        }
    }

    /// Records per second, and how many may have been sent.
    fn pace(&self, lane: &Lane, lasts: Duration) -> (f64, f64) {
        // A small share before the first fault, and one after the last, where nothing may be
        // repeated.
        const FIRST: f64 = 0.04;
        const LAST: f64 = 0.94;
        const BEFORE: u8 = Phase::Before as u8;
        const FAULTS: u8 = Phase::Faults as u8;
        let records = f64::from(lane.records);
        let rate = (LAST - FIRST) * records / lasts.as_secs_f64().max(1.0);
        match self.phase.load(Ordering::SeqCst) {
            BEFORE => (rate.min(FIRST * records / 4.0), FIRST * records),
            FAULTS => (rate, LAST * records),
            _ => ((2.0 * rate).max(1_000.0), records),
        }
    }

    fn send(
        &self,
        producer: &ThreadedProducer<Acknowledged>,
        lane: &Lane,
        stream: &mut Stream,
    ) -> Result<(), String> {
        let kind = stream.next();
        if let Kind::First(id) = kind {
            let mut acks = lane.acks();
            let index = id as usize;
            if acks.first.len() <= index {
                acks.first.resize(index + 1, NONE);
            }
            lane.messages.store(id + 1, Ordering::Relaxed);
        }
        let key = stream.key(kind);
        let payload = stream.payload(kind);
        let text = stream.idempotency_key(kind);
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(lane.route.input(), stream.opaque(kind))
                .partition(stream.partition(kind))
                .key(key.as_bytes())
                .payload(&payload);
        if let Some(text) = &text {
            let header = Header { key: "Idempotency-Key", value: Some(text) };
            record = record.headers(OwnedHeaders::new().insert(header));
        }
        let begun = Instant::now();
        loop {
            match producer.send(record) {
                Ok(()) => break,
                // The queue is full while a broker is away.
                Err((_, back)) if begun.elapsed() < Duration::from_secs(300) => {
                    if self.stopping.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    record = back;
                    thread::sleep(Duration::from_millis(20));
                }
                Err((error, _)) => return Err(format!("cannot send: {error}")),
            }
        }
        lane.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn producer(kafka: &Kafka, lanes: &[Lane]) -> ThreadedProducer<Acknowledged> {
    let acks = lanes.iter().map(|lane| (lane.route.input(), Arc::clone(&lane.acks))).collect();
    let mut config = rdkafka::ClientConfig::new();
    config
        .set("bootstrap.servers", kafka.bootstrap())
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", "200000")
        .set("message.timeout.ms", "600000")
        .set("reconnect.backoff.max.ms", "500")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("enable.metrics.push", "false")
        .set("log_level", "0");
    config
        .create_with_context(Acknowledged { lanes: acks })
        .expect("a producer can be made of these properties")
}

/// Notes what comes back of each record.
struct Acknowledged {
    lanes: Vec<(&'static str, Arc<Mutex<Acks>>)>,
}

impl ClientContext for Acknowledged {}

impl ProducerContext<NoCustomPartitioner> for Acknowledged {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (message, delivered) = match result {
            Ok(message) => (message, true),
            Err((_, message)) => (message, false),
        };
        let Some((_, acks)) = self.lanes.iter().find(|(topic, _)| *topic == message.topic()) else {
            return;
        };
        let mut acks = acks.lock().expect("nobody panics while holding the acknowledgements");
        let (fate, id) = stream::from_opaque(opaque);
        if !delivered {
            acks.unknown.extend(id);
            return;
        }
        acks.records += 1;
        let (partition, Ok(offset)) = (message.partition(), u32::try_from(message.offset())) else {
            acks.placeless += 1;
            acks.unknown.extend(id);
            return;
        };
        if fate != Fate::Handled {
            acks.letters.insert((partition, offset), fate);
        }
        // A record in conflict is not one of its message.
        if let Some(id) = id.filter(|_| fate != Fate::Conflict) {
            let first = &mut acks.first[id as usize];
            *first = (*first).min(offset);
        }
    }
}
