//! Reading a topic from its start to its end.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::kafka::{CALL_TIMEOUT, Called as _, Kafka};
use super::message::OwnedRecord;
use super::wait::wait_until;

impl Kafka {
    /// Every committed record, in the order of partitions and offsets.
    ///
    /// # Panics
    ///
    /// Panics when the end is not reached in time.
    pub fn read_all(&self, topic: &str) -> Vec<OwnedRecord> {
        self.read_with("read_committed", topic)
    }

    /// The same, with the records of transactions that aborted or are still open.
    ///
    /// # Panics
    ///
    /// Panics when the end is not reached in time.
    pub fn read_uncommitted(&self, topic: &str) -> Vec<OwnedRecord> {
        self.read_with("read_uncommitted", topic)
    }

    /// Waits until there are at least so many committed records, and returns all that there are.
    ///
    /// # Panics
    ///
    /// Panics when there are fewer when the time is over.
    pub fn read_at_least(&self, topic: &str, count: usize, timeout: Duration) -> Vec<OwnedRecord> {
        wait_until(&format!("{topic} holds {count} records"), timeout, || {
            let records = self.read_all(topic);
            if records.len() >= count { Ok(records) } else { Err(records.len()) }
        })
    }

    fn read_with(&self, isolation: &str, topic: &str) -> Vec<OwnedRecord> {
        let consumer: BaseConsumer = self.client(&[
            ("isolation.level", isolation),
            // Nothing is committed, but a consumer has to have one.
            ("group.id", "reader"),
            ("enable.partition.eof", "true"),
            // The end is told in the answer to a fetch that finds nothing more.
            ("fetch.wait.max.ms", "10"),
            ("fetch.queue.backoff.ms", "10"),
        ]);
        let mut from_the_start = TopicPartitionList::new();
        for partition in 0..self.partitions(topic) {
            let added = from_the_start.add_partition_offset(topic, partition, Offset::Beginning);
            added.called("add a partition");
        }
        consumer.assign(&from_the_start).called("assign");
        let mut records = poll_to_the_end(&consumer, topic, from_the_start.count());
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }
}

fn poll_to_the_end(consumer: &BaseConsumer, topic: &str, partitions: usize) -> Vec<OwnedRecord> {
    let mut records = Vec::new();
    let mut at_the_end = std::collections::HashSet::new();
    let mut heard = Instant::now();
    while at_the_end.len() < partitions {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.push(OwnedRecord::copy_of(&message));
                heard = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                at_the_end.insert(partition);
            }
            // Broken connections and the like: the client tries again by itself.
            Some(Err(_)) | None => {
                assert!(heard.elapsed() < CALL_TIMEOUT, "the end of {topic} is not reached");
            }
        }
    }
    records
}
