//! Offsets: what a group has committed, what a tool may set, where a partition begins and ends.

use std::slice;

use rdkafka::admin::AdminOptions;
use rdkafka::bindings::rd_kafka_topic_partition_t;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::kafka::{CALL_TIMEOUT, Called as _, Kafka, block_on};

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    /// Empty where there is none. The broker keeps text: other bytes come back as `U+FFFD`.
    pub metadata: String,
}

impl Kafka {
    /// What a group has committed for a partition. Waits for a transaction that is about to
    /// change it.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        let consumer: BaseConsumer = self.client(&[("group.id", group)]);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, partition);
        let found = consumer.committed_offsets(wanted, CALL_TIMEOUT).called("committed offsets");
        let entries = found.elements();
        let [entry] = entries.as_slice() else { panic!("one partition was asked for") };
        let Offset::Offset(offset) = entry.offset() else { return None };
        Some(Committed { offset, metadata: entry.metadata().to_owned() })
    }

    /// The committed offset alone.
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        self.committed(group, topic, partition).map(|committed| committed.offset)
    }

    /// Commits offsets from partition 0 on, without metadata, as a tool does that resets them.
    /// The group must be without members.
    pub fn set_offsets(&self, group: &str, topic: &str, offsets: &[i64]) {
        for (partition, offset) in (0..).zip(offsets) {
            self.set_offset(group, topic, partition, *offset, "");
        }
    }

    /// Commits an offset with metadata of the caller's. The group must be without members.
    pub fn set_offset(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        metadata: &str,
    ) {
        let consumer: BaseConsumer = self.client(&[("group.id", group)]);
        let mut offsets = TopicPartitionList::new();
        let mut entry = offsets.add_partition(topic, partition);
        entry.set_offset(Offset::Offset(offset)).called("an offset");
        if !metadata.is_empty() {
            entry.set_metadata(metadata);
        }
        consumer.commit(&offsets, CommitMode::Sync).called("commit offsets");
    }

    /// The offset after the last record, control records included, whatever its transaction.
    pub fn end_offset(&self, topic: &str, partition: i32) -> i64 {
        self.watermarks("read_uncommitted", topic, partition).1
    }

    /// The offset up to which a consumer that reads committed records gets.
    pub fn stable_end_offset(&self, topic: &str, partition: i32) -> i64 {
        self.watermarks("read_committed", topic, partition).1
    }

    pub fn start_offset(&self, topic: &str, partition: i32) -> i64 {
        self.watermarks("read_uncommitted", topic, partition).0
    }

    /// Deletes the records below an offset, as retention does.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).called("an offset");
        let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT));
        let deleted = block_on(self.admin().delete_records(&offsets, &options));
        for entry in deleted.called("delete records").elements() {
            entry.error().called("delete records");
        }
    }

    /// Deletes a group, with its offsets. It must be without members.
    pub fn delete_group(&self, group: &str) {
        let deleted = block_on(self.admin().delete_groups(&[group], &AdminOptions::new()));
        for result in deleted.called("delete a group") {
            result.map_err(|(_, code)| code).called("delete a group");
        }
    }

    /// How many members a group has.
    pub fn members(&self, group: &str) -> usize {
        let consumer: BaseConsumer = self.client(&[]);
        let groups = consumer.fetch_group_list(Some(group), CALL_TIMEOUT).called("list groups");
        groups.groups().iter().map(|group| group.members().len()).sum()
    }

    fn watermarks(&self, isolation: &str, topic: &str, partition: i32) -> (i64, i64) {
        let consumer: BaseConsumer = self.client(&[("isolation.level", isolation)]);
        consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT).called("fetch watermarks")
    }
}
