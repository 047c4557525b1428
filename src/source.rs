//! Where records come from: the group's consumer, and what else has to be asked of the broker.
//!
//! The rebalance callback of the client only reports; the caller of [`Source::poll`] decides when
//! partitions are taken and given back.
//!
//! Owns: everything that names the client's consumer. Never: decides where a partition starts or
//! which offset is committed.

pub mod admin;
pub mod client;
pub mod companion;
mod convert;
pub mod letters;
pub mod lookup;
pub mod membership;
mod poll;
pub mod reread;

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use self::membership::GroupMetadata;
use self::poll::{Poller, Reporting};
use crate::config::Kafka;
use crate::record::{Offset, Partition, Record};

/// What the broker says, in the order in which it says it.
#[derive(Debug)]
pub enum Event {
    Record(Record),
    /// There is nothing to deliver below this offset, for now.
    End(Partition, Offset),
    /// These partitions are offered: [`Source::assign`] takes them.
    Assigned(Vec<Partition>),
    /// These partitions are to be given back by [`Source::unassign`].
    Revoked {
        partitions: Vec<Partition>,
        lost: bool,
    },
    /// An asynchronous commit was answered.
    Committed(Result<Vec<(Partition, Offset)>, KafkaError>),
    /// The next offset of the partition is not in the topic any more.
    OutOfRange(Partition),
    /// Something that passes by itself: the client goes on trying.
    Trouble {
        error: KafkaError,
        /// The client's words: which broker, and what it said.
        reason: String,
    },
    /// A broker's answer that only a new client gets over.
    Fatal(KafkaError),
}

/// An offset to commit, with its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub partition: Partition,
    pub offset: Offset,
    pub metadata: String,
}

/// The group's member. Lives on one thread.
pub struct Source {
    // Before the consumer: it uses the consumer's queue.
    poller: Poller,
    consumer: BaseConsumer<Reporting>,
    unsubscribes: bool,
}

impl Source {
    /// Joins the group and subscribes.
    ///
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn subscribe(kafka: &Kafka, topics: &[&str]) -> Result<Self, KafkaError> {
        let consumer: BaseConsumer<Reporting> =
            client::group_member(kafka).create_with_context(Reporting)?;
        consumer.subscribe(topics)?;
        let poller = Poller::new(&consumer);
        Ok(Self { poller, consumer, unsubscribes: client::leaves_by_unsubscribing(kafka) })
    }

    /// The next event, waiting for it at most this long. Keeps the membership alive: call it at
    /// least once in `max.poll.interval.ms`.
    pub fn poll(&mut self, timeout: Duration) -> Option<Event> {
        self.poller.poll(timeout)
    }

    /// Takes offered partitions and reads each from its offset on.
    ///
    /// # Errors
    /// The client's, where the offer no longer holds.
    pub fn assign(&mut self, starts: &[(Partition, Offset)]) -> Result<(), KafkaError> {
        self.poller.forget_handles();
        let list = list(starts)?;
        if self.eager() {
            self.consumer.assign(&list)
        } else {
            self.consumer.incremental_assign(&list)
        }
    }

    /// Gives partitions back. `all`: nothing remains assigned.
    ///
    /// # Errors
    /// The client's, where the partitions are not assigned.
    pub fn unassign(&mut self, partitions: &[Partition]) -> Result<(), KafkaError> {
        self.poller.forget_handles();
        if self.eager() {
            return self.consumer.unassign();
        }
        self.consumer.incremental_unassign(&names(partitions))
    }

    /// True where the broker has given the partitions to others already.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.consumer.assignment_lost()
    }

    /// Stops fetching; throws away what was fetched ahead, so use it for long stops only.
    ///
    /// # Errors
    /// The client's, where the partitions are not assigned.
    pub fn pause(&self, partitions: &[Partition]) -> Result<(), KafkaError> {
        self.consumer.pause(&names(partitions))
    }

    /// Goes on fetching after the last record that was delivered.
    ///
    /// # Errors
    /// The client's, where the partitions are not assigned.
    pub fn resume(&self, partitions: &[Partition]) -> Result<(), KafkaError> {
        self.consumer.resume(&names(partitions))
    }

    /// Goes on reading elsewhere. What was fetched before is not delivered any more.
    ///
    /// # Errors
    /// The client's, for the first partition that could not be moved in this time.
    pub fn seek(
        &self,
        starts: &[(Partition, Offset)],
        patience: Duration,
    ) -> Result<(), KafkaError> {
        let moved = self.consumer.seek_partitions(list(starts)?, patience)?;
        moved.elements().iter().try_for_each(|element| element.error())
    }

    /// How the group sees this member. `None`: it has none.
    #[must_use]
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        // SAFETY: the consumer is alive.
        unsafe { GroupMetadata::of(self.consumer.client().native_ptr()) }
    }

    /// Commits in the background; the answer is [`Event::Committed`].
    ///
    /// # Errors
    /// The client's, where nothing was sent.
    pub fn commit(&self, positions: &[Position]) -> Result<(), KafkaError> {
        if positions.is_empty() {
            return Ok(());
        }
        self.poller.commit(&offset_list(positions.iter())?)
    }

    /// Commits and waits for the answer.
    ///
    /// # Errors
    /// The broker's: the offsets may or may not have moved.
    pub fn commit_now(&self, positions: &[Position]) -> Result<(), KafkaError> {
        if positions.is_empty() {
            return Ok(());
        }
        match self.consumer.commit(&offset_list(positions.iter())?, CommitMode::Sync) {
            // The offsets were there already.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
            result => result,
        }
    }

    /// One past the last record, as of the last answer to a fetch; asks nobody.
    #[must_use]
    pub fn high_watermark(&self, partition: &Partition) -> Option<Offset> {
        self.poller.high_watermark(partition)
    }

    /// Leaves the group, once everything was given back. False: it took longer than this; the
    /// broker notices by itself.
    #[must_use]
    pub fn leave(mut self, patience: Duration) -> bool {
        if self.unsubscribes {
            self.unsubscribe(Instant::now() + patience / 2);
        }
        let Self { poller, consumer, .. } = self;
        drop(poller);
        // Closing waits for the coordinator, which may be gone.
        let (left, waits) = std::sync::mpsc::channel();
        let leave = move || {
            drop(consumer);
            // Nobody waits any more after the patience has ended.
            let _ = left.send(());
        };
        let thread = std::thread::Builder::new().name("leave".to_owned()).spawn(leave);
        thread.is_ok() && waits.recv_timeout(patience).is_ok()
    }

    /// A client that is closed leaves the group only with partitions to give back: without, the
    /// member would stay until its session times out, and hold up every rebalance. One that
    /// unsubscribes always leaves; in the middle of a rebalance, after it.
    fn unsubscribe(&mut self, deadline: Instant) {
        self.consumer.unsubscribe();
        while self.poller.is_member() && Instant::now() < deadline {
            let answer = match self.poll(Duration::from_millis(20)) {
                Some(Event::Assigned(partitions)) => {
                    let unread: Vec<_> = partitions.into_iter().map(|p| (p, Offset(0))).collect();
                    self.assign(&unread)
                }
                // The client asks for what was given back outside of a rebalance once more, and
                // then takes only nothing for an answer.
                Some(Event::Revoked { partitions, .. }) => {
                    self.unassign(&partitions).or_else(|_| self.unassign(&[]))
                }
                _ => Ok(()),
            };
            if let Err(error) = answer {
                tracing::debug!(%error, "A rebalance was not answered while leaving.");
            }
        }
    }

    fn eager(&self) -> bool {
        matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Eager)
    }
}

fn list(starts: &[(Partition, Offset)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(starts.len());
    for (partition, offset) in starts {
        list.add_partition_offset(
            &partition.topic,
            partition.index,
            KafkaOffset::Offset(offset.0),
        )?;
    }
    Ok(list)
}

/// Offsets with their metadata, as the client takes them.
///
/// # Errors
/// A name or an offset that the client refuses.
pub fn offset_list<'a>(
    positions: impl Iterator<Item = &'a Position>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for Position { partition, offset, metadata } in positions {
        let mut element = list.add_partition(&partition.topic, partition.index);
        element.set_offset(KafkaOffset::Offset(offset.0))?;
        element.set_metadata(metadata);
    }
    Ok(list)
}

fn names(partitions: &[Partition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.index);
    }
    list
}
