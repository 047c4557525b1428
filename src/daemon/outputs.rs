//! The topics that transactions write to: whether they have room for every partition, and how
//! large a batch they take.
//!
//! Owns: what is asked of them before the first record. Never: writes to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config::{Config, HandlerKind, Route};
use crate::handler::kafka::{self, Place};
use crate::source::admin::topic_settings;

/// The broker that does not say how large a batch may be holds up the start no longer than this.
const PATIENCE: Duration = Duration::from_secs(3);

/// The client's own `batch.size`.
const BATCH_BYTES: i64 = 1_000_000;

/// What a batch weighs besides what the client counts, and more.
const FRAME_BYTES: i64 = 1_024;

/// Where an output keeps the partition of its record: an input that has more partitions than the
/// output, with both numbers.
pub(super) fn without_room(
    route: &Route,
    mut partitions: impl FnMut(&str) -> Option<i32>,
) -> Option<Crowded> {
    let HandlerKind::Kafka(kafka) = &route.handler else { return None };
    if kafka.partition != Place::Same {
        return None;
    }
    let has = partitions(&kafka.topic)?;
    route.topics.iter().find_map(|input| {
        let needs = partitions(input)?;
        let (input, output) = (input.to_string(), kafka.topic.to_string());
        (needs > has).then_some(Crowded { input, needs, output, has })
    })
}

/// An output with fewer partitions than an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "handler.partition is \"same\", but {input} has {needs} partitions and {output} only {has}: add partitions to {output}, or set handler.partition = \"key\""
)]
pub struct Crowded {
    input: String,
    needs: i32,
    output: String,
    has: i32,
}

/// The topics that the transactions of all routes write to.
pub(super) fn topics(config: &Config) -> BTreeSet<Arc<str>> {
    let topics = |(route, kafka): (&Route, &kafka::Config)| {
        let topics = std::iter::once(&kafka.topic).chain(&route.dead_letter);
        topics.map(|topic| Arc::from(&**topic)).collect::<Vec<_>>()
    };
    transacting(config).flat_map(topics).collect()
}

/// The topics whose offsets they move.
pub(super) fn inputs(config: &Config) -> BTreeSet<Arc<str>> {
    let topics = |(route, _): (&Route, _)| {
        route.topics.iter().map(|topic| Arc::from(&**topic)).collect::<Vec<_>>()
    };
    transacting(config).flat_map(topics).collect()
}

fn transacting(config: &Config) -> impl Iterator<Item = (&Route, &kafka::Config)> {
    config.routes.iter().filter_map(|route| match &route.handler {
        HandlerKind::Kafka(kafka) => Some((route, kafka)),
        _ => None,
    })
}

/// Keeps the batches of the transactions below what every topic takes that they write to: a broker
/// refuses whole batches, and the innocent of one have to be sent again one by one.
pub(super) async fn limit_batches(config: &Config, client: &mut ClientConfig) {
    let topics = topics(config);
    let asked = topics.iter().map(|topic| topic_settings(&config.kafka, topic));
    let asked = futures_util::future::join_all(asked);
    let Ok(answers) = tokio::time::timeout(PATIENCE, asked).await else {
        tracing::warn!(
            "No broker says how large a batch the output topics take; too large ones are sent again in parts."
        );
        return;
    };
    let mut smallest = None;
    for (topic, answer) in topics.into_iter().zip(answers) {
        match answer {
            Ok(settings) => smallest = smallest.into_iter().chain(settings.max_message_bytes).min(),
            Err(error) => {
                tracing::warn!(%topic, %error, "The topic's max.message.bytes cannot be read; batches that are too large are sent again in parts.");
            }
        }
    }
    let given = config.kafka.properties.get("batch.size").and_then(|text| text.parse().ok());
    if let Some(bytes) =
        smallest.map(batch_bytes).filter(|bytes| *bytes < given.unwrap_or(BATCH_BYTES))
    {
        client.set("batch.size", bytes.to_string());
    }
}

/// The `batch.size` for a topic that takes this many bytes at once. A record that is larger goes
/// alone.
fn batch_bytes(takes: i64) -> i64 {
    (takes - FRAME_BYTES).max(takes / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_leaves_room_for_its_frame() {
        assert_eq!(batch_bytes(1_048_588), 1_047_564);
        assert_eq!(batch_bytes(1_500), 750);
        assert_eq!(batch_bytes(0), 1);
    }
}
