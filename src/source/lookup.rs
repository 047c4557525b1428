//! Questions to the broker that belong to no poll loop: offsets, ends, topics.
//!
//! Two handles, because the end that a reader of committed records is told lies before
//! transactions that are still open.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataBroker;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::Logging;
use super::poll::elements;
use super::{client, names, poll};
use crate::commit::offsets::Metadata;
use crate::config::Kafka;
use crate::fault::{self, Bug};
use crate::record::{Offset, Partition, Timestamp};

/// How long one question may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Asks; joins no group and reads no records.
pub struct Lookup {
    committed: BaseConsumer<Logging>,
    uncommitted: BaseConsumer<Logging>,
}

/// What the group has committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: Offset,
    /// `None`: somebody else committed it.
    pub metadata: Option<Metadata>,
}

impl Lookup {
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn new(kafka: &Kafka) -> Result<Self, KafkaError> {
        let committed = client::reader(kafka).create_with_context(Logging)?;
        let uncommitted = client::reader(kafka)
            .set("isolation.level", "read_uncommitted")
            .create_with_context(Logging)?;
        Ok(Self { committed, uncommitted })
    }

    /// Logs what the client has to say. To be called from time to time: it piles up. Returns what
    /// went wrong with the connections since the last time, in the client's words.
    pub fn listen(&self) -> Option<String> {
        [&self.committed, &self.uncommitted].map(poll::listen).into_iter().flatten().next()
    }

    /// The id of the cluster; empty where the broker has none.
    ///
    /// # Errors
    /// No broker answered within this time.
    pub fn cluster_id(&self, patience: Duration) -> Result<String, KafkaError> {
        self.committed
            .client()
            .fetch_cluster_id(patience)
            .ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure))
    }

    /// Partitions of a topic.
    ///
    /// # Errors
    /// [`RDKafkaErrorCode::UnknownTopicOrPartition`] where there is no such topic.
    pub fn partition_count(&self, topic: &str) -> Result<i32, KafkaError> {
        let metadata = self.committed.fetch_metadata(Some(topic), PATIENCE)?;
        let unknown = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
        let topic = metadata.topics().iter().find(|found| found.name() == topic).ok_or(unknown)?;
        if let Some(error) = topic.error() {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        Ok(i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
    }

    /// The id of a topic; empty where the broker has none.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn topic_id(&self, topic: &str) -> Result<String, KafkaError> {
        let metadata = self.committed.fetch_metadata(Some(topic), PATIENCE)?;
        let answered = |broker: &&MetadataBroker| broker.id() == metadata.orig_broker_id();
        let brokers = metadata.brokers();
        let broker = brokers.iter().find(answered).or(brokers.first());
        let none = KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure);
        let broker = broker.ok_or(none)?.id();
        super::admin::topic_id(self.committed.client().native_ptr(), topic, broker, PATIENCE)
    }

    /// The group's offsets, in the order of the partitions. Waits for open transactions that
    /// moved them.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn committed(
        &self,
        partitions: &[Partition],
    ) -> Result<Vec<Option<Committed>>, KafkaError> {
        committed(&self.committed, partitions)
    }

    /// The first offset and one past the last, transactions that are still open included.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn ends(&self, partition: &Partition) -> Result<(Offset, Offset), KafkaError> {
        Self::ends_told(&self.uncommitted, partition)
    }

    /// The same of a dead-letter topic.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn letter_ends(&self, partition: &Partition) -> Result<(Offset, Offset), KafkaError> {
        let stable = fault::bug(Bug::LettersToStable);
        Self::ends_told(if stable { &self.committed } else { &self.uncommitted }, partition)
    }

    fn ends_told(
        handle: &BaseConsumer<Logging>,
        partition: &Partition,
    ) -> Result<(Offset, Offset), KafkaError> {
        let ask = || handle.fetch_watermarks(&partition.topic, partition.index, PATIENCE);
        let (first, end) = match ask() {
            // The handle remembers a topic as it was before partitions were added.
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) =>
            {
                handle.fetch_metadata(Some(&partition.topic), PATIENCE)?;
                ask()?
            }
            answer => answer?,
        };
        Ok((Offset(first), Offset(end)))
    }

    /// One past the last offset of each partition, in their order, transactions that are still
    /// open included. One question for each leader.
    ///
    /// # Errors
    /// The broker's answer, for any of them.
    pub fn all_ends(&self, partitions: &[Partition]) -> Result<Vec<Offset>, KafkaError> {
        Self::all_ends_told(&self.uncommitted, partitions)
    }

    /// The same, before the first record of a transaction that is still open.
    ///
    /// # Errors
    /// As [`Lookup::all_ends`].
    pub fn all_stable_ends(&self, partitions: &[Partition]) -> Result<Vec<Offset>, KafkaError> {
        Self::all_ends_told(&self.committed, partitions)
    }

    fn all_ends_told(
        handle: &BaseConsumer<Logging>,
        partitions: &[Partition],
    ) -> Result<Vec<Offset>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            // Kafka's "time" of the end.
            list.add_partition_offset(&partition.topic, partition.index, KafkaOffset::End)?;
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let found = handle.offsets_for_times(list, PATIENCE)?;
        let end = |partition: &Partition| {
            let element = found.find_partition(&partition.topic, partition.index);
            match element.map(|element| (element.error(), element.offset())) {
                Some((Ok(()), KafkaOffset::Offset(offset))) => Ok(Offset(offset)),
                Some((Err(error), _)) => Err(error),
                _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset)),
            }
        };
        partitions.iter().map(end).collect()
    }

    /// The first offset whose record is of this time or later. `None`: there is none.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn at_time(
        &self,
        partition: &Partition,
        time: Timestamp,
    ) -> Result<Option<Offset>, KafkaError> {
        let mut list = TopicPartitionList::new();
        let time = KafkaOffset::Offset(time.0.max(0));
        list.add_partition_offset(&partition.topic, partition.index, time)?;
        let found = self.uncommitted.offsets_for_times(list, PATIENCE)?;
        let element = found.find_partition(&partition.topic, partition.index);
        match element.map(|element| (element.error(), element.offset())) {
            Some((Ok(()), KafkaOffset::Offset(offset))) => Ok(Some(Offset(offset))),
            Some((Err(error), _)) => Err(error),
            _ => Ok(None),
        }
    }
}

/// What the handle's group has committed, in the order of the partitions.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[Partition],
) -> Result<Vec<Option<Committed>>, KafkaError> {
    let list = consumer.committed_offsets(names(partitions), PATIENCE)?;
    // SAFETY: the list outlives the loop. Its metadata are foreign bytes, which the client's
    // own reader would require to be UTF-8.
    let elements = unsafe { elements(list.ptr()) };
    let offset = |partition: &Partition| {
        let found = elements.iter().find(|element| {
            // SAFETY: an element has a name that ends with a NUL.
            let topic = unsafe { std::ffi::CStr::from_ptr(element.topic) };
            element.partition == partition.index && topic.to_bytes() == partition.topic.as_bytes()
        });
        // What was not told is not absent: taken for absent, all would be handled again.
        let told =
            found.filter(|element| element.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        let Some(element) = told else {
            let code = found.map_or(RDKafkaErrorCode::NoOffset, |element| element.err.into());
            return Err(KafkaError::OffsetFetch(code));
        };
        let offset = Offset(element.offset);
        Ok((element.offset >= 0).then(|| Committed { offset, metadata: metadata_of(element) }))
    };
    partitions.iter().map(offset).collect()
}

fn metadata_of(element: &rdkafka::bindings::rd_kafka_topic_partition_t) -> Option<Metadata> {
    if element.metadata.is_null() {
        return None;
    }
    // SAFETY: librdkafka says how long the metadata are.
    let bytes =
        unsafe { std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) };
    Metadata::decode(bytes)
}
