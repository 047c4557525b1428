//! The committed offsets of the group and of its high-water group.
//!
//! Owns: which offset counts, and which acts. Never: commits.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use rdkafka::bindings as native;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::reader::{Error, Isolation, Reader};
use crate::commit::offsets::Metadata;
use crate::config::Kafka;

/// The high-water group is called like the group, and this.
const HIGH_WATER: &str = ".onced";

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    /// `None`: somebody else committed it.
    pub metadata: Option<Metadata>,
}

/// Both groups, for one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    pub group: Option<Committed>,
    pub high_water: Option<Committed>,
}

impl Offsets {
    /// Records below this offset are settled. `None`: nothing was ever committed.
    pub fn settled(&self) -> Option<i64> {
        let group = self.group.as_ref().map(|committed| committed.offset);
        let high = self.high_water.as_ref().map(|committed| committed.offset);
        match (self.group.as_ref().and_then(|c| c.metadata.as_ref()), self.high_water_metadata()) {
            // A rewind: what the high-water group says is of an older generation.
            (Some(ours), Some(high)) if high.acts.generation < ours.acts.generation => group,
            _ => group.max(high),
        }
    }

    /// The metadata that count: those of the higher offset that has ours.
    pub fn metadata(&self) -> Option<&Metadata> {
        let with = |committed: &'_ Option<Committed>| {
            committed.as_ref().is_some_and(|committed| committed.metadata.is_some())
        };
        let mut known: Vec<&Committed> = [&self.group, &self.high_water]
            .into_iter()
            .filter(|committed| with(committed))
            .flatten()
            .collect();
        known.sort_by_key(|committed| committed.offset);
        known.last().and_then(|committed| committed.metadata.as_ref())
    }

    /// Offsets that somebody chose not to handle; a tool's move forward that no daemon has seen yet
    /// is one, too.
    pub fn skips(&self) -> Vec<(i64, i64)> {
        let acts = self.metadata().map(|metadata| metadata.acts.skips.clone()).unwrap_or_default();
        let mut skips: Vec<_> = acts.iter().map(|skip| (skip.from.0, skip.to.0)).collect();
        if let (Some(group), Some(high)) = (&self.group, &self.high_water)
            && group.metadata.is_none()
            && group.offset > high.offset
        {
            skips.push((high.offset, group.offset));
        }
        skips
    }

    /// Where the high-water group is, if that is behind an offset of the group that is ours. A start
    /// or a skip is committed for the group first.
    pub fn behind(&self) -> Option<i64> {
        let group = self.group.as_ref().filter(|group| group.metadata.is_some())?;
        let high = self.high_water.as_ref().map_or(0, |high| high.offset);
        (high < group.offset).then_some(high)
    }

    pub fn generation(&self) -> i64 {
        self.metadata().map_or(0, |metadata| metadata.acts.generation)
    }

    fn high_water_metadata(&self) -> Option<&Metadata> {
        self.high_water.as_ref().and_then(|committed| committed.metadata.as_ref())
    }
}

/// Asks for the offsets of both groups. Waits for transactions that move them.
pub struct Groups {
    group: Reader,
    high_water: Reader,
}

impl Groups {
    /// # Errors
    /// A property that the client refuses.
    pub fn new(kafka: &Kafka) -> Result<Self, Error> {
        let companion = Kafka { group: format!("{}{HIGH_WATER}", kafka.group), ..kafka.clone() };
        Ok(Self {
            group: Reader::new(kafka, Isolation::Committed)?,
            high_water: Reader::new(&companion, Isolation::Committed)?,
        })
    }

    /// In the order of the partitions. The high-water group is asked last: it is never behind.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn offsets(
        &self,
        partitions: &[(&str, i32)],
        patience: Duration,
    ) -> Result<Vec<Offsets>, Error> {
        let group = committed(&self.group, partitions, patience)?;
        let high_water = committed(&self.high_water, partitions, patience)?;
        let both = group.into_iter().zip(high_water);
        Ok(both.map(|(group, high_water)| Offsets { group, high_water }).collect())
    }
}

fn committed(
    reader: &Reader,
    partitions: &[(&str, i32)],
    patience: Duration,
) -> Result<Vec<Option<Committed>>, Error> {
    let started = Instant::now();
    loop {
        match ask(reader, partitions) {
            // A coordinator that moves, or a transaction that is about to end.
            Err(code) if passes(code) && started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(code) => {
                return Err(Error::Broker {
                    what: "cannot ask for the committed offsets".to_owned(),
                    source: KafkaError::OffsetFetch(code),
                });
            }
            Ok(offsets) => return Ok(offsets),
        }
    }
}

fn passes(code: RDKafkaErrorCode) -> bool {
    !matches!(
        code,
        RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::Authentication
    )
}

fn ask(
    reader: &Reader,
    partitions: &[(&str, i32)],
) -> Result<Vec<Option<Committed>>, RDKafkaErrorCode> {
    let client = reader.native().client().native_ptr();
    let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
    // SAFETY: the list is ours, used while alive and destroyed once; names are copied by the calls.
    unsafe {
        let list = native::rd_kafka_topic_partition_list_new(count);
        for (topic, partition) in partitions {
            let name = CString::new(*topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
            native::rd_kafka_topic_partition_list_add(list, name.as_ptr(), *partition);
        }
        let code: RDKafkaErrorCode = native::rd_kafka_committed(client, list, 10_000).into();
        let answer = if code == RDKafkaErrorCode::NoError {
            let elements = std::slice::from_raw_parts(
                (*list).elems,
                usize::try_from((*list).cnt).unwrap_or_default(),
            );
            partitions.iter().map(|name| found(elements, name)).collect()
        } else {
            Err(code)
        };
        native::rd_kafka_topic_partition_list_destroy(list);
        answer
    }
}

/// # Safety
/// The elements are alive.
unsafe fn found(
    elements: &[native::rd_kafka_topic_partition_t],
    (topic, partition): &(&str, i32),
) -> Result<Option<Committed>, RDKafkaErrorCode> {
    let element = elements.iter().find(|element| {
        // SAFETY: an element has a name that ends with a NUL.
        let name = unsafe { CStr::from_ptr(element.topic) };
        element.partition == *partition && name.to_bytes() == topic.as_bytes()
    });
    let Some(element) = element else { return Ok(None) };
    let code: RDKafkaErrorCode = element.err.into();
    if code != RDKafkaErrorCode::NoError {
        return Err(code);
    }
    let metadata = if element.metadata.is_null() {
        None
    } else {
        // SAFETY: the client says how long the metadata are.
        let bytes = unsafe {
            std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size)
        };
        Metadata::decode(bytes)
    };
    Ok((element.offset >= 0).then_some(Committed { offset: element.offset, metadata }))
}
