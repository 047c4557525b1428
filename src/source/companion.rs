//! The handle of the high-water group, `<group>.onced`: how far the group has ever committed.
//!
//! It never subscribes, so the group has no members, and a transaction may commit for it beside
//! the group's own offsets.
//!
//! Owns: the name of that group and what is asked of it. Never: joins it.

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;

use super::client;
use super::membership::GroupMetadata;
use crate::config::Kafka;

/// What the name of a group gains for its companion.
const SUFFIX: &str = ".onced";

/// Asks and commits for the high-water group.
pub struct Companion {
    consumer: BaseConsumer,
}

impl Companion {
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn new(kafka: &Kafka) -> Result<Self, KafkaError> {
        let group = format!("{}{SUFFIX}", kafka.group);
        let mut config = client::reader(kafka);
        // It is no member, and must not look like one of a fixed name.
        config.remove("group.instance.id");
        let consumer = config.set("group.id", group).create()?;
        Ok(Self { consumer })
    }

    /// Metadata of nobody: the only ones that a group without members accepts.
    #[must_use]
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        // SAFETY: the consumer is alive.
        unsafe { GroupMetadata::of(self.consumer.client().native_ptr()) }
    }
}
