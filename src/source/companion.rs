//! The handle of the high-water group, `<group>.onced`: how far the group has ever committed.
//!
//! It never subscribes, so the group has no members, and a transaction may commit for it beside
//! the group's own offsets.
//!
//! Owns: the name of that group, and what is asked of it and committed for it. Never: joins it, or
//! decides which offset is committed (see `pipeline`).

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::lookup::{self, Committed, PATIENCE};
use super::membership::GroupMetadata;
use super::poll::{Poller, Reporting};
use super::{Event, Position, admin, client, offset_list};
use crate::config::Kafka;
use crate::record::{Offset, Partition};

/// What the name of a group gains for its companion.
const SUFFIX: &str = ".onced";

/// Asks and commits for the high-water group. Shared by the threads that do so.
pub struct Companion {
    config: ClientConfig,
    consumer: BaseConsumer<Reporting>,
    group: String,
}

impl Companion {
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn new(kafka: &Kafka) -> Result<Self, KafkaError> {
        Self::of_group(kafka, format!("{}{SUFFIX}", kafka.group))
    }

    /// The same for the group itself: for a tool that changes the offsets of a group without
    /// members.
    ///
    /// # Errors
    /// As [`Companion::new`].
    pub fn of_group(kafka: &Kafka, group: String) -> Result<Self, KafkaError> {
        let config = client::companion(kafka, &group);
        let consumer = config.create_with_context(Reporting)?;
        Ok(Self { config, consumer, group })
    }

    /// The name of the group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Metadata of nobody: the only ones that a group without members accepts.
    #[must_use]
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        // SAFETY: the consumer is alive.
        unsafe { GroupMetadata::of(self.consumer.client().native_ptr()) }
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
        lookup::committed(&self.consumer, partitions)
    }

    /// How many members the group has. Somebody else's: this handle is none.
    ///
    /// # Errors
    /// The coordinator's answer.
    pub fn members(&self) -> Result<usize, KafkaError> {
        let ask = |handle: &BaseConsumer<Reporting>| {
            admin::group_members(handle.client().native_ptr(), &self.group, PATIENCE)
        };
        match ask(&self.consumer) {
            // For such questions a handle remembers the coordinator that it once found, and goes on
            // asking it although another broker has taken over.
            Err(KafkaError::GroupListFetch(RDKafkaErrorCode::NotCoordinator)) => {
                ask(&self.config.create_with_context(Reporting)?)
            }
            answer => answer,
        }
    }

    /// Commits and waits for the answer: for about a session timeout (45 s) where the group's
    /// coordinator is gone.
    ///
    /// # Errors
    /// The broker's: the offsets may or may not have moved. `UnknownMemberId`: the group has
    /// members.
    pub fn commit(&self, positions: &[Position]) -> Result<(), KafkaError> {
        if positions.is_empty() {
            return Ok(());
        }
        match self.consumer.commit(&offset_list(positions.iter())?, CommitMode::Sync) {
            // The offsets were there already.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
            result => result,
        }
    }
}

/// Commits for the high-water group that nobody waits for. Lives on one thread, and is the only one
/// that reads the handle's events.
pub struct Commits {
    // Before the companion: it uses its queue.
    poller: Poller,
    companion: Arc<Companion>,
}

/// The answer to one commit: the offsets that were written.
pub type Answer = Result<Vec<(Partition, Offset)>, KafkaError>;

impl Commits {
    #[must_use]
    pub fn new(companion: &Arc<Companion>) -> Self {
        Self { poller: Poller::new(&companion.consumer), companion: Arc::clone(companion) }
    }

    /// The name of the group.
    #[must_use]
    pub fn group(&self) -> &str {
        self.companion.group()
    }

    /// Hands a commit to the client and returns at once; [`Commits::answer`] has the result.
    ///
    /// # Errors
    /// The client's, where nothing was sent.
    pub fn start(&self, positions: &[Position]) -> Result<(), KafkaError> {
        self.poller.commit(&offset_list(positions.iter())?)
    }

    /// The next answer, without waiting for one. To be called from time to time also where none is
    /// expected: what the client has to say piles up.
    pub fn answer(&mut self) -> Option<Answer> {
        // A few events at most, so that a client with much to say does not hold up the caller.
        (0..16).find_map(|_| match self.poller.poll(Duration::ZERO) {
            Some(Event::Committed(answer)) => Some(answer),
            Some(Event::Trouble { error, reason }) => {
                tracing::debug!(%error, reason, "Trouble with the high-water group; the client goes on trying.");
                None
            }
            _ => None,
        })
    }
}
