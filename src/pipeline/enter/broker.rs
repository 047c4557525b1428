//! What has to be asked of the broker before a partition starts, behind a narrow seam.
//!
//! Owns: the list of questions. Never: decides what an answer means.

use std::sync::Arc;

use rdkafka::error::KafkaError;

use crate::commit::letters::Settles;
use crate::config::Config;
use crate::record::{Offset, Partition, Record, Timestamp};
use crate::source::companion::Companion;
use crate::source::lookup::{Committed, Lookup};
use crate::source::{letters, reread};

/// Whoever answers. The daemon's is [`Questions`]; a simulation has a model.
///
/// # Errors
/// Every question fails with the broker's answer, or with the lack of one.
pub(crate) trait Broker {
    /// The group's offsets, in the order of the partitions; waits for transactions that moved them.
    fn committed(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError>;

    /// The same of the high-water group.
    fn high_water(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError>;

    /// The name of the high-water group.
    fn high_water_group(&self) -> &str;

    /// How many members the high-water group has: there should be none.
    fn high_water_members(&self) -> Result<usize, KafkaError>;

    /// Empty where the broker has none.
    fn topic_id(&self, topic: &str) -> Result<String, KafkaError>;

    fn partition_count(&self, topic: &str) -> Result<i32, KafkaError>;

    /// The first offset and one past the last, open transactions included.
    fn ends(&self, partition: &Partition) -> Result<(Offset, Offset), KafkaError>;

    /// The first offset whose record is of this time or later.
    fn at_time(&self, partition: &Partition, at: Timestamp) -> Result<Option<Offset>, KafkaError>;

    /// Every letter of a dead-letter topic from `since` on (all where it is not known) up to its end
    /// as it is now, open transactions included. `keep_on` is asked regularly.
    fn letters(
        &self,
        topic: &str,
        since: Option<Timestamp>,
        keep_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Settles),
    ) -> Result<(), KafkaError>;

    /// The records at these offsets, in their order; one for each partition.
    fn records_at(&self, wanted: &[(Partition, Offset)])
    -> Result<Vec<Option<Record>>, KafkaError>;
}

/// Asks Kafka.
pub(crate) struct Questions {
    pub(crate) config: Arc<Config>,
    pub(crate) lookup: Arc<Lookup>,
    pub(crate) companion: Arc<Companion>,
}

impl Broker for Questions {
    fn committed(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError> {
        self.lookup.committed(partitions)
    }

    fn high_water(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError> {
        self.companion.committed(partitions)
    }

    fn high_water_group(&self) -> &str {
        self.companion.group()
    }

    fn high_water_members(&self) -> Result<usize, KafkaError> {
        self.companion.members()
    }

    fn topic_id(&self, topic: &str) -> Result<String, KafkaError> {
        self.lookup.topic_id(topic)
    }

    fn partition_count(&self, topic: &str) -> Result<i32, KafkaError> {
        self.lookup.partition_count(topic)
    }

    fn ends(&self, partition: &Partition) -> Result<(Offset, Offset), KafkaError> {
        self.lookup.ends(partition)
    }

    fn at_time(&self, partition: &Partition, at: Timestamp) -> Result<Option<Offset>, KafkaError> {
        self.lookup.at_time(partition, at)
    }

    fn letters(
        &self,
        topic: &str,
        since: Option<Timestamp>,
        keep_on: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Settles),
    ) -> Result<(), KafkaError> {
        letters::read(&self.config.kafka, &self.lookup, topic, since, keep_on, each)
    }

    fn records_at(
        &self,
        wanted: &[(Partition, Offset)],
    ) -> Result<Vec<Option<Record>>, KafkaError> {
        reread::records_at(&self.config.kafka, wanted)
    }
}
