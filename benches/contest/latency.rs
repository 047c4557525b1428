//! How long a record takes from its append to its output, at a steady rate.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Place};
use crate::harness::Kafka;
use crate::input;
use crate::options::Options;
use crate::output;

/// Starting, joining a group and warming up: what is sent before does not count.
const WARM_UP: Duration = Duration::from_secs(10);
/// How long after the last record its output may come.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two bursts.
const TICK: Duration = Duration::from_millis(2);
const CALL: Duration = Duration::from_secs(30);

/// In milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub median: f64,
    pub p99: f64,
    pub p999: f64,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, p99, p999 } = self;
        write!(f, "median {median:.0} ms, p99 {p99:.0} ms, p99.9 {p999:.0} ms")
    }
}

impl Latency {
    /// All records are new, in one partition.
    ///
    /// # Errors
    /// It ended, or an output is missing.
    pub fn measure(
        kafka: &Kafka,
        options: &Options,
        contestant: Contestant,
    ) -> Result<Self, String> {
        let (input, output) = (kafka.topic("paced").create(), kafka.topic("paced-out").create());
        let place = Place { kafka, input: &input, output: &output, partitions: 1 };
        let mut working = contestant.start(&place);
        let ended = AtomicBool::new(false);
        let warm = WARM_UP.as_secs_f64() * f64::from(options.rate);
        let (first, all) = (warm as u32, warm as u32 + options.rate * options.seconds);
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                Pace { kafka, topic: &input, rate: options.rate }.send(all);
                ended.store(true, Ordering::SeqCst);
            });
            Self::read(kafka, &output, first..all, &ended)
        });
        let result = result.map_err(|error| format!("{error}\n{}", working.said()));
        working.end();
        result
    }

    /// Of the events with these numbers.
    fn read(
        kafka: &Kafka,
        topic: &str,
        numbers: Range<u32>,
        ended: &AtomicBool,
    ) -> Result<Self, String> {
        let consumer = output::reader(kafka, topic, 1);
        let mut times = Vec::with_capacity(numbers.len());
        let mut heard = Instant::now();
        while times.len() < numbers.len() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let payload = message.payload().unwrap_or_default();
                    let number =
                        output::number(payload).ok_or("an output is none of the events")?;
                    let sent = output::sent(payload).ok_or("an output does not say when")?;
                    if numbers.contains(&number) {
                        times.push(now() - sent);
                    }
                }
                _ if ended.load(Ordering::SeqCst) && heard.elapsed() > PATIENCE => {
                    return Err(format!("{} of {} outputs came", times.len(), numbers.len()));
                }
                _ => {}
            }
        }
        times.sort_unstable();
        let at = |share: f64| times[(((times.len() - 1) as f64) * share) as usize] as f64 / 1e3;
        Ok(Self { median: at(0.5), p99: at(0.99), p999: at(0.999) })
    }

    pub fn json(&self) -> Value {
        json!({ "median_ms": self.median, "p99_ms": self.p99, "p999_ms": self.p999 })
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_micros()).expect("before the year 200,000")
}

/// Records at a steady rate.
struct Pace<'a> {
    kafka: &'a Kafka,
    topic: &'a str,
    rate: u32,
}

impl Pace<'_> {
    /// So many in all.
    fn send(&self, all: u32) {
        let producer: BaseProducer = self.kafka.client(&[("linger.ms", "0"), ("acks", "1")]);
        let begun = Instant::now();
        let mut sent = 0;
        while sent < all {
            let due = (begun.elapsed().as_secs_f64() * f64::from(self.rate)) as u32;
            for number in sent..due.min(all) {
                self.send_one(&producer, number);
            }
            sent = due;
            producer.poll(Duration::ZERO);
            thread::sleep(TICK);
        }
        producer.flush(CALL).expect("all are delivered");
    }

    fn send_one(&self, producer: &BaseProducer, number: u32) {
        let event = input::event(number, now());
        let headers = event.headers.iter().fold(
            rdkafka::message::OwnedHeaders::new(),
            |headers, (name, value)| {
                let key = std::str::from_utf8(name).expect("it is text");
                headers.insert(rdkafka::message::Header { key, value: value.as_ref() })
            },
        );
        let mut record = BaseRecord::<[u8], [u8]>::to(self.topic).headers(headers);
        record.key = event.key.as_deref();
        record.payload = event.payload.as_deref();
        while let Err((error, back)) = producer.send(record) {
            assert!(
                matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)),
                "a record cannot be sent: {error}"
            );
            record = back;
            producer.poll(Duration::from_millis(1));
        }
    }
}
