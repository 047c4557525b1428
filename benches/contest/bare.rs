//! Drain and copy: what the client library itself takes. Each runs in a process of its own.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Headers as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use crate::contestant::{Place, this};
use crate::fail;
use crate::measure::cpu_of;

const VARIABLE: &str = "ONCED_BENCH_AS";
const CALL: Duration = Duration::from_secs(30);
/// As onced's default.
const TRANSACTION: Duration = Duration::from_millis(100);
/// A transaction ends early at this many records.
const TRANSACTION_RECORDS: usize = 100_000;

/// How the process is started that plays this part.
pub fn command(part: &str, place: &Place<'_>, group: &str) -> Command {
    let mut command = Command::new(this());
    let Place { kafka, input, output, partitions } = place;
    let partitions = partitions.to_string();
    let arguments = [part, kafka.bootstrap(), group, input, output, &partitions];
    command.env(VARIABLE, arguments.join(" "));
    command
}

/// This process is to play a part.
pub fn is_asked_for() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Plays it.
pub fn run() {
    let arguments = env::var(VARIABLE).unwrap_or_default();
    let arguments: Vec<_> = arguments.split(' ').collect();
    let [part, brokers, group, input, output, partitions] = arguments[..] else {
        fail("six arguments are needed")
    };
    let partitions = partitions.parse().unwrap_or(1);
    let bare = Bare { brokers, group, input, output, partitions };
    match part {
        "drain" => bare.drain(),
        _ => bare.copy(),
    }
}

struct Bare<'a> {
    brokers: &'a str,
    group: &'a str,
    input: &'a str,
    output: &'a str,
    partitions: i32,
}

impl Bare<'_> {
    fn consumer(&self) -> BaseConsumer {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers)
            .set("group.id", self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            // With the defaults it pauses for a second whenever its queue is full.
            .set("queued.min.messages", "1000000")
            .set("queued.max.messages.kbytes", "65536")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.message.max.bytes", "4194304")
            .create()
            .unwrap_or_else(|error| fail(error));
        let mut from_the_start = TopicPartitionList::new();
        for partition in 0..self.partitions {
            let added =
                from_the_start.add_partition_offset(self.input, partition, Offset::Beginning);
            added.unwrap_or_else(|error| fail(error));
        }
        consumer.assign(&from_the_start).unwrap_or_else(|error| fail(error));
        consumer
    }

    /// Reads to the end and prints records, bytes, and microseconds of time and processor from the
    /// first record on.
    fn drain(&self) {
        let consumer = self.consumer();
        let (mut records, mut bytes, mut keys, mut ends) = (0_u64, 0, 0, 0);
        let mut first = None;
        while ends < self.partitions {
            match consumer.poll(CALL) {
                Some(Ok(message)) => {
                    first.get_or_insert_with(|| (Instant::now(), cpu_of("self")));
                    records += 1;
                    bytes += message.payload().map_or(0, <[u8]>::len);
                    keys += message.key().map_or(0, <[u8]>::len);
                    let headers = message.headers();
                    let key = headers.and_then(|headers| headers.iter().next());
                    keys += key.and_then(|header| header.value).map_or(0, <[u8]>::len);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
                Some(Err(error)) => fail(error),
                None => fail("the end is not reached"),
            }
        }
        let (at, cpu) = first.unwrap_or_else(|| fail("no record"));
        let (wall, cpu) = (at.elapsed().as_micros(), (cpu_of("self") - cpu).as_micros());
        println!("{records} {bytes} {wall} {cpu} {keys}");
        // It is looked at while it runs.
        std::thread::sleep(CALL);
    }

    /// Passes everything on, in transactions, until it is ended.
    fn copy(&self) {
        let consumer = self.consumer();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers)
            .set("transactional.id", self.group)
            .set("compression.type", "lz4")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "1000000")
            .create()
            .unwrap_or_else(|error| fail(error));
        let ok = |result: Result<(), KafkaError>| result.unwrap_or_else(|error| fail(error));
        ok(producer.init_transactions(CALL));
        loop {
            let Some(begun) = self.transaction(&consumer, &producer) else { continue };
            ok(producer.flush(CALL));
            let metadata = consumer.group_metadata().unwrap_or_else(|| fail("no group"));
            ok(producer.send_offsets_to_transaction(&begun, &metadata, CALL));
            ok(producer.commit_transaction(CALL));
        }
    }

    /// One transaction's records are sent. `None`: there were none.
    fn transaction(
        &self,
        consumer: &BaseConsumer,
        producer: &BaseProducer,
    ) -> Option<TopicPartitionList> {
        let mut positions = std::collections::BTreeMap::new();
        let (mut begun, mut records) = (None, 0);
        while records < TRANSACTION_RECORDS
            && begun.is_none_or(|begun: Instant| begun.elapsed() < TRANSACTION)
        {
            let message = match consumer.poll(Duration::from_millis(10)) {
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) | None => continue,
                Some(Err(error)) => fail(error),
            };
            if begun.is_none() {
                producer.begin_transaction().unwrap_or_else(|error| fail(error));
                begun = Some(Instant::now());
            }
            records += 1;
            positions.insert(message.partition(), message.offset() + 1);
            let mut record =
                BaseRecord::<[u8], [u8]>::to(self.output).partition(message.partition());
            record.key = message.key();
            record.payload = message.payload();
            record.timestamp = message.timestamp().to_millis();
            record.headers = message.headers().map(rdkafka::message::BorrowedHeaders::detach);
            while let Err((error, back)) = producer.send(record) {
                let KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) = error else {
                    fail(error)
                };
                record = back;
                producer.poll(Duration::from_millis(1));
            }
        }
        begun?;
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in positions {
            let added = offsets.add_partition_offset(self.input, partition, Offset::Offset(offset));
            added.unwrap_or_else(|error| fail(error));
        }
        Some(offsets)
    }
}
