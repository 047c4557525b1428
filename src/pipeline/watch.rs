//! Watches the topics while they are read: whether they are still the ones that were assigned.
//!
//! Owns: one look at a time, and the rule that it takes two of them to refuse. Never: holds up the
//! poll loop: it runs on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::error::KafkaError;

use super::assign::{Refusal, Terms};
use super::board::Board;
use super::{Command, Route, Shared};
use crate::clock;
use crate::commit::offsets::Metadata;
use crate::config::Kafka;
use crate::record::{Epoch, Partition};
use crate::source::companion::Companion;
use crate::source::lookup::Lookup;

/// Between two looks, where `topic.metadata.refresh.interval.ms` is not set.
const INTERVAL: Duration = Duration::from_secs(30);

/// Between the look that found something and the one that has to find it again.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// What is watched, and the end of it.
pub(super) struct Watch {
    watched: Arc<Mutex<Watched>>,
    stop: Arc<AtomicBool>,
    thread: Thread,
}

/// The partitions that are read, with what was true of their topic at the start.
type Watched = BTreeMap<Partition, (Epoch, Metadata)>;

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A question to the broker may take long; nobody waits for it.
        self.thread.unpark();
    }
}

impl Watch {
    pub(super) fn start(
        shared: &Shared,
        lookup: &Arc<Lookup>,
        companion: &Arc<Companion>,
        commands: Sender<Command>,
    ) -> Self {
        let watched = Arc::<Mutex<Watched>>::default();
        let stop = Arc::<AtomicBool>::default();
        // Not all that is shared: it holds the log, and the next run has to open that.
        let eye = Eye {
            interval: interval(&shared.config.kafka),
            routes: shared.routes.clone(),
            board: Arc::clone(&shared.board),
            watched: Arc::clone(&watched),
            lookup: Arc::clone(lookup),
            companion: Arc::clone(companion),
        };
        let stopped = Arc::clone(&stop);
        let run = move || eye.watch(&stopped, &commands);
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(run);
        let thread = thread.expect("the system can start a thread").thread().clone();
        Self { watched, stop, thread }
    }

    pub(super) fn add(&self, partition: &Partition, epoch: Epoch, metadata: &Metadata) {
        lock(&self.watched).insert(partition.clone(), (epoch, metadata.clone()));
    }

    pub(super) fn remove(&self, partition: &Partition) {
        lock(&self.watched).remove(partition);
    }
}

fn lock(watched: &Mutex<Watched>) -> std::sync::MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As often as the client itself looks at its topics.
fn interval(kafka: &Kafka) -> Duration {
    let given = kafka.properties.get("topic.metadata.refresh.interval.ms");
    let ms = given.and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
    ms.map_or(INTERVAL, Duration::from_millis)
}

struct Eye {
    interval: Duration,
    routes: Vec<Arc<Route>>,
    board: Arc<Board>,
    watched: Arc<Mutex<Watched>>,
    lookup: Arc<Lookup>,
    companion: Arc<Companion>,
}

impl Eye {
    fn watch(&self, stop: &AtomicBool, commands: &Sender<Command>) {
        let mut before = Vec::new();
        loop {
            let pause = if before.is_empty() { self.interval } else { SECOND_LOOK };
            std::thread::park_timeout(pause.min(self.interval));
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // A broker that has just lost a partition, or comes back from the dead, may speak of
            // the past: it takes two looks.
            let found = self.look();
            let again = found.iter().find(|refusal| before.contains(*refusal));
            if let Some(refusal) = again {
                // The poll loop is gone only when the daemon is going.
                let _ = commands.send(Command::Fail(refusal.clone().into()));
                return;
            }
            before = found;
        }
    }

    /// One look at everything: why it should not go on.
    fn look(&self) -> Vec<Refusal> {
        let watched = lock(&self.watched).clone();
        let mut found = Vec::new();
        if !watched.is_empty() && self.companion.members().is_ok_and(|members| members > 0) {
            found.push(Refusal::HighWaterMembers { group: self.companion.group().to_owned() });
        }
        let topics: BTreeSet<_> = watched.keys().map(|partition| &partition.topic).collect();
        for topic in topics {
            let of_topic = watched.iter().filter(|(partition, _)| partition.topic == *topic);
            match self.look_at_topic(topic, of_topic) {
                Ok(refusal) => found.extend(refusal),
                Err(error) => {
                    tracing::debug!(topic = &**topic, %error, "The topic could not be looked at.");
                }
            }
        }
        // What was given back in the meantime is no longer ours to judge.
        let now = lock(&self.watched);
        let still = |refusal: &Refusal| {
            let epoch = |of: &Watched, partition| of.get(partition).map(|(epoch, _)| *epoch);
            let same = |partition| epoch(&now, partition) == epoch(&watched, partition);
            refusal.partition().is_none_or(same)
        };
        found.retain(still);
        found
    }

    fn look_at_topic<'a>(
        &self,
        topic: &str,
        partitions: impl Iterator<Item = (&'a Partition, &'a (Epoch, Metadata))>,
    ) -> Result<Option<Refusal>, KafkaError> {
        let named = |route: &&Arc<Route>| route.config.topics.iter().any(|name| **name == *topic);
        let Some(route) = self.routes.iter().find(named) else { return Ok(None) };
        let (topic_id, partition_count) =
            (self.lookup.topic_id(topic)?, self.lookup.partition_count(topic)?);
        let terms = Terms {
            topic_id: &topic_id,
            partition_count,
            definition: route.definition,
            window: &route.config.window,
        };
        for (partition, (_, metadata)) in partitions {
            if let Err(refusal) = terms.check(partition, metadata, clock::now()) {
                return Ok(Some(refusal));
            }
            // Before the end: it grows in the meantime, and the end with it.
            let Some(position) = self.board.position(partition) else { continue };
            let (_, end) = self.lookup.ends(partition)?;
            if position > end {
                let partition = partition.clone();
                return Ok(Some(Refusal::Truncated { partition, position, end }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_client() {
        let with = |text: Option<&str>| {
            let name = "topic.metadata.refresh.interval.ms".to_owned();
            let properties = text.map(|text| (name, text.to_owned())).into_iter().collect();
            let kafka = Kafka {
                brokers: String::new(),
                group: String::new(),
                start: crate::config::Start::Earliest,
                commit_interval: Duration::ZERO,
                transaction_interval: Duration::ZERO,
                properties,
            };
            interval(&kafka)
        };
        assert_eq!(with(None), INTERVAL);
        assert_eq!(with(Some("1500")), Duration::from_millis(1_500));
        // The client's word for never.
        assert_eq!(with(Some("-1")), INTERVAL);
    }
}
