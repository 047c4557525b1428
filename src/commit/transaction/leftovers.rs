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
//! passed the end that it had, and the group's offsets are told again.
//!
//! Owns: that question, and who is told while the answer is no. Never: writes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;
use crate::readiness::Readiness;
use crate::record::{Offset, Partition};
use crate::source::companion::Companion;
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
    /// All whose offsets they move.
    pub inputs: Arc<[Arc<str>]>,
    pub companion: Arc<Companion>,
    pub readiness: Readiness,
}

/// What may be open still.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing: the last transaction committed.
    #[default]
    No,
    /// What this producer wrote, and that it moved the offsets of these.
    Moved(Vec<Partition>),
    /// Whatever an earlier process did.
    All,
}

impl Doubt {
    /// A transaction that moved these did not commit, or not for sure.
    pub(super) fn add(&mut self, moved: impl Iterator<Item = Partition>) {
        match self {
            Self::All => {}
            Self::No => *self = Self::Moved(moved.collect()),
            Self::Moved(before) => before.extend(moved),
        }
    }
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
    /// Returns when everything in doubt has ended, or onced is stopping. True: it has ended.
    pub(super) fn wait(&self, doubt: &Doubt, stopped: &AtomicBool) -> bool {
        let started = Instant::now();
        let (mut pause, last_pause) = PAUSES;
        let mut next_word = started + SILENCE;
        let mut latch = None;
        let mut look = Look { leftovers: self, doubt, lookup: None, ends: None };
        while !stopped.load(Ordering::SeqCst) {
            let reason = match look.open() {
                Ok(None) => return true,
                Ok(Some(open)) => open.to_string(),
                Err(error) => format!(
                    "no broker tells whether earlier transactions have ended, or one that moved the group's offsets has not: {error}"
                ),
            };
            tracing::debug!(reason, "Earlier transactions have not ended.");
            let now = Instant::now();
            if now >= next_word {
                next_word = now + SILENCE;
                tracing::error!(
                    reason,
                    waited = ?now - started,
                    "Nothing is passed on before earlier transactions have ended. Where this lasts, Kafka has lost the end of one: the README says how to find out whether it was committed, and how to end it with kafka-transactions.sh."
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
    doubt: &'a Doubt,
    /// Made anew after an error: a handle may go on asking a broker that is gone.
    lookup: Option<Lookup>,
    /// The ends to be passed. Noted once: what others write later is none of ours.
    ends: Option<BTreeMap<Partition, Offset>>,
}

impl Look<'_> {
    /// The first that is open. `None`: all has ended.
    fn open(&mut self) -> Result<Option<Open>, KafkaError> {
        let lookup = match self.lookup.take() {
            Some(lookup) => lookup,
            None => Lookup::new(&self.leftovers.config.kafka)?,
        };
        lookup.listen();
        let open = self.open_in(&lookup)?;
        self.lookup = Some(lookup);
        Ok(open)
    }

    fn open_in(&mut self, lookup: &Lookup) -> Result<Option<Open>, KafkaError> {
        let partitions = partitions_of(lookup, &self.leftovers.topics)?;
        let ends = lookup.all_ends(&partitions)?;
        let stable = lookup.all_stable_ends(&partitions)?;
        let told = partitions.into_iter().zip(ends);
        let noted = self.ends.get_or_insert_with(|| told.clone().collect());
        let marks = told.zip(stable).filter_map(|((partition, end), stable)| {
            // A partition that came later has nothing of ours, and a topic that was made anew, or
            // was shortened, has nothing of what was noted.
            let until = end.min(*noted.get(&partition)?);
            Some(Mark { partition, until, stable })
        });
        if let Some(open) = marks.filter_map(Mark::open).next() {
            return Ok(Some(open));
        }
        let moved = match self.doubt {
            Doubt::No => Vec::new(),
            Doubt::Moved(partitions) => partitions.clone(),
            Doubt::All => partitions_of(lookup, &self.leftovers.inputs)?,
        };
        // Offsets that a transaction moved are told when it has ended, and not before. One by one:
        // of many, some other instance is always about to move one.
        for partition in &moved {
            let partition = std::slice::from_ref(partition);
            lookup.committed(partition)?;
            self.leftovers.companion.committed(partition)?;
        }
        Ok(None)
    }
}

/// Those of the topics that exist.
fn partitions_of(lookup: &Lookup, topics: &[Arc<str>]) -> Result<Vec<Partition>, KafkaError> {
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

/// A partition at one look.
struct Mark {
    partition: Partition,
    /// What is to be passed.
    until: Offset,
    /// Everything before has ended.
    stable: Offset,
}

impl Mark {
    fn open(self) -> Option<Open> {
        let Self { partition, until, stable } = self;
        (stable < until).then_some(Open { partition, from: stable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_named_with_its_first_offset() {
        let at = |until, stable| Mark {
            partition: Partition::new("out", 1),
            until: Offset(until),
            stable: Offset(stable),
        };
        assert_eq!(at(9, 9).open(), None);
        assert_eq!(at(9, 10).open(), None);
        let open = at(9, 8).open().expect("8 is below 9");
        assert_eq!(open.to_string(), "a transaction in out/1 is open since offset 8");
    }

    #[test]
    fn doubt_grows_until_it_is_about_everything() {
        let partition = |index| Partition::new("in", index);
        let mut doubt = Doubt::No;
        doubt.add([partition(1)].into_iter());
        doubt.add([partition(2)].into_iter());
        assert_eq!(doubt, Doubt::Moved(vec![partition(1), partition(2)]));
        doubt = Doubt::All;
        doubt.add([partition(1)].into_iter());
        assert_eq!(doubt, Doubt::All);
    }
}
