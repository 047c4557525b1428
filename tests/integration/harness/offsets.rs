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
    /// Bytes, since any client may write what it likes.
    pub metadata: Vec<u8>,
}

impl Committed {
    pub fn metadata_text(&self) -> String {
        String::from_utf8_lossy(&self.metadata).into_owned()
    }
}

impl Kafka {
    /// What a group has committed for a partition. Waits for a transaction that is about to
    /// change it.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        let consumer: BaseConsumer = self.client(&[("group.id", group)]);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, partition);
        let found = consumer.committed_offsets(wanted, CALL_TIMEOUT).called("committed offsets");
        let [entry] = native_entries(&found) else { panic!("one partition was asked for") };
        (entry.offset >= 0).then(|| Committed { offset: entry.offset, metadata: metadata(entry) })
    }

    /// The committed offset alone.
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        self.committed(group, topic, partition).map(|committed| committed.offset)
    }

    /// Commits offsets from partition 0 on, without metadata, as a tool does that resets them.
    /// The group must be without members.
    pub fn set_offsets(&self, group: &str, topic: &str, offsets: &[i64]) {
        for (partition, offset) in (0..).zip(offsets) {
            self.set_offset(group, topic, partition, *offset, b"");
        }
    }

    /// Commits an offset with any metadata. The group must be without members.
    pub fn set_offset(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
        metadata: &[u8],
    ) {
        let consumer: BaseConsumer = self.client(&[("group.id", group)]);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).called("an offset");
        set_metadata(&mut offsets, metadata);
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

/// The safe accessor panics on metadata that is not UTF-8, and the setter takes only text.
fn native_entries(list: &TopicPartitionList) -> &[rd_kafka_topic_partition_t] {
    // SAFETY: the list is borrowed, and its count is that of its entries.
    unsafe {
        let native = &*list.ptr();
        if native.elems.is_null() {
            return &[];
        }
        slice::from_raw_parts(native.elems, usize::try_from(native.cnt).expect("a count"))
    }
}

fn metadata(entry: &rd_kafka_topic_partition_t) -> Vec<u8> {
    if entry.metadata.is_null() {
        return Vec::new();
    }
    // SAFETY: pointer and size belong together, and the entry is borrowed.
    unsafe { slice::from_raw_parts(entry.metadata.cast::<u8>(), entry.metadata_size).to_vec() }
}

fn set_metadata(list: &mut TopicPartitionList, metadata: &[u8]) {
    if metadata.is_empty() {
        return;
    }
    // SAFETY: the list has one entry without metadata. It frees the copy, which comes from the
    // allocator that it frees with.
    unsafe {
        let copy = libc::malloc(metadata.len());
        assert!(!copy.is_null(), "out of memory");
        copy.cast::<u8>().copy_from_nonoverlapping(metadata.as_ptr(), metadata.len());
        let entry = &mut *(*list.ptr()).elems;
        entry.metadata = copy;
        entry.metadata_size = metadata.len();
    }
}
