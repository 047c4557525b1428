//! What earlier transactions wrote, and whether the broker has ended all of it.
//!
//! Kafka's transaction coordinator leaves out a partition that has no leader when the markers of a
//! transaction are written: it takes it for deleted (`TransactionMarkerChannelManager`, since
//! KAFKA-5202). What was written there stays open, and the next commit of the same producer id
//! commits it: outputs that were taken back would come to light beside those that replaced them.
//! It happens where a cluster of one broker is killed, and with topics of one replica.
//!
//! So after a start, and after every transaction that did not commit, nothing begins before all
//! that was written until then has ended: before the stable end of every output partition has
//! passed the end that it had.
//!
//! Owns: that question, and who is told while the answer is no. Never: writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;
use crate::readiness::Readiness;
use crate::record::{Offset, Partition};
use crate::source::lookup::Lookup;

/// Between two looks: at first, and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// An open transaction of another instance ends within its timeout. It is spoken of after this time,
/// and again each time that it has passed.
const SILENCE: Duration = Duration::from_secs(20);

/// Waits for the end of what was written.
#[derive(Clone)]
pub struct Leftovers {
    pub config: Arc<Config>,
    /// All topics that transactions write to.
    pub topics: Arc<[Arc<str>]>,
    pub readiness: Readiness,
}

/// Something in a partition that is neither committed nor aborted.
#[derive(Debug, PartialEq, Eq)]
struct Open {
    partition: Partition,
    /// Of its first record.
    from: Offset,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, from } = self;
        write!(f, "a transaction in {partition} is open since offset {}", from.0)
    }
}

impl Leftovers {
    /// Returns when everything has ended, or onced is stopping. True: it has ended.
    pub(super) fn wait(&self, stopped: &AtomicBool) -> bool {
        let started = Instant::now();
        let (mut pause, last_pause) = PAUSES;
        let mut next_word = started + SILENCE;
        let mut latch = None;
        let mut look = Look::new(self);
        while !stopped.load(Ordering::SeqCst) {
            let reason = match look.open() {
                Ok(None) => return true,
                Ok(Some(open)) => open.to_string(),
                Err(error) => format!("the ends of the output topics are not known: {error}"),
            };
            tracing::debug!(reason, "Earlier transactions have not ended.");
            let now = Instant::now();
            if now >= next_word {
                next_word = now + SILENCE;
                tracing::error!(
                    reason,
                    waited = ?now - started,
                    "Nothing is passed on before earlier transactions have ended. Where this lasts, find and end them with kafka-transactions.sh (find-hanging, describe-producers, abort)."
                );
                latch.get_or_insert_with(|| self.readiness.latch("")).set(reason);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(last_pause);
        }
        false
    }
}

/// One wait.
struct Look<'a> {
    leftovers: &'a Leftovers,
    /// Made with the first question.
    lookup: Option<Lookup>,
    /// The ends to be passed. Asked once: what others write later is none of ours.
    ends: Option<Vec<(Partition, Offset)>>,
}

impl<'a> Look<'a> {
    fn new(leftovers: &'a Leftovers) -> Self {
        Self { leftovers, lookup: None, ends: None }
    }

    /// The first that is open. `None`: all has ended.
    fn open(&mut self) -> Result<Option<Open>, KafkaError> {
        let lookup = match self.lookup.take() {
            Some(lookup) => lookup,
            None => Lookup::new(&self.leftovers.config.kafka)?,
        };
        let lookup = self.lookup.insert(lookup);
        lookup.listen();
        if self.ends.is_none() {
            let partitions = partitions(lookup, &self.leftovers.topics)?;
            let ends = lookup.all_ends(&partitions)?;
            self.ends = Some(partitions.into_iter().zip(ends).collect());
        }
        let ends = self.ends.get_or_insert_default();
        let partitions: Vec<_> = ends.iter().map(|(partition, _)| partition.clone()).collect();
        let stable = lookup.all_stable_ends(&partitions)?;
        Ok(first_open(ends, &stable))
    }
}

/// Those of the topics that exist.
fn partitions(lookup: &Lookup, topics: &[Arc<str>]) -> Result<Vec<Partition>, KafkaError> {
    let mut partitions = Vec::new();
    for topic in topics {
        let count = match lookup.partition_count(topic) {
            Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)) => 0,
            count => count?,
        };
        partitions.extend((0..count).map(|index| Partition { topic: Arc::clone(topic), index }));
    }
    Ok(partitions)
}

fn first_open(ends: &[(Partition, Offset)], stable: &[Offset]) -> Option<Open> {
    let mut both = ends.iter().zip(stable);
    let ((partition, _), stable) = both.find(|((_, end), stable)| *stable < end)?;
    Some(Open { partition: partition.clone(), from: *stable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(index: i32) -> Partition {
        Partition { topic: "out".into(), index }
    }

    #[test]
    fn what_is_open_is_named_with_its_first_offset() {
        let ends = [(partition(0), Offset(5)), (partition(1), Offset(9))];
        assert_eq!(first_open(&ends, &[Offset(5), Offset(10)]), None);
        let open = first_open(&ends, &[Offset(5), Offset(8)]).expect("partition 1 is open");
        assert_eq!(open.to_string(), "a transaction in out/1 is open since offset 8");
    }

    #[test]
    fn topics_without_partitions_hold_nothing() {
        assert_eq!(first_open(&[], &[]), None);
    }
}
