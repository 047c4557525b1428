//! The broker's side of a start: the daemon's own questions, answered by the model.

use rdkafka::error::KafkaError;

use super::cluster::{Cluster, index};
use super::topic::Kind;
use crate::commit::letters::Settles;
use crate::commit::offsets::Metadata;
use crate::fault::{Bug, bug};
use crate::pipeline::enter::Broker;
use crate::record::{Offset, Partition, Record, Timestamp};
use crate::source::lookup::Committed;

pub(super) const TOPIC_ID: &str = "topic-id";

/// The group's offsets as they were told first; the rest is asked later, and may be newer.
pub(super) struct Asked {
    pub partitions: Vec<Partition>,
    committed: Vec<Option<Committed>>,
}

pub(super) fn ask(cluster: &Cluster, partitions: Vec<Partition>) -> Asked {
    let committed = partitions.iter().map(|partition| committed(cluster, partition)).collect();
    Asked { partitions, committed }
}

fn committed(cluster: &Cluster, partition: &Partition) -> Option<Committed> {
    cluster.group.offsets.get(&partition.index).map(read)
}

pub(super) fn read(stored: &super::cluster::Stored) -> Committed {
    let metadata = Metadata::decode(stored.metadata.as_bytes());
    Committed { offset: stored.offset, metadata }
}

/// Answers what is asked after that.
pub(super) struct Answers<'a> {
    pub cluster: &'a Cluster,
    pub asked: &'a Asked,
}

impl Broker for Answers<'_> {
    fn committed(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError> {
        let told = |partition: &Partition| {
            let at = self.asked.partitions.iter().position(|asked| asked == partition);
            match at {
                Some(at) => self.asked.committed[at].clone(),
                None => committed(self.cluster, partition),
            }
        };
        Ok(partitions.iter().map(told).collect())
    }

    fn high_water(&self, partitions: &[Partition]) -> Result<Vec<Option<Committed>>, KafkaError> {
        let high = &self.cluster.group.high;
        Ok(partitions.iter().map(|partition| high.get(&partition.index).map(read)).collect())
    }

    fn high_water_group(&self) -> &str {
        "g.onced"
    }

    fn high_water_members(&self) -> Result<usize, KafkaError> {
        Ok(0)
    }

    fn topic_id(&self, _: &str) -> Result<String, KafkaError> {
        Ok(TOPIC_ID.to_owned())
    }

    fn partition_count(&self, _: &str) -> Result<i32, KafkaError> {
        Ok(self.cluster.inputs.len() as i32)
    }

    fn ends(&self, partition: &Partition) -> Result<(Offset, Offset), KafkaError> {
        let input = self.cluster.input(partition);
        Ok((Offset(input.first as i64), Offset(input.slots.len() as i64)))
    }

    fn at_time(&self, partition: &Partition, at: Timestamp) -> Result<Option<Offset>, KafkaError> {
        Ok(self.cluster.input(partition).at_time(at))
    }

    fn letters(
        &self,
        _: &str,
        since: Option<Timestamp>,
        _: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Settles),
    ) -> Result<(), KafkaError> {
        let letters = self.cluster.letters.iter();
        letters
            .take_while(|letter| letter.stable || !bug(Bug::LettersToStable))
            .filter(|letter| Some(letter.written) >= since)
            .for_each(|letter| each(letter.settles.clone()));
        Ok(())
    }

    fn records_at(
        &self,
        wanted: &[(Partition, Offset)],
    ) -> Result<Vec<Option<Record>>, KafkaError> {
        let find = |(partition, offset): &(Partition, Offset)| {
            let slots = &self.cluster.inputs[index(partition)].slots;
            let slot = usize::try_from(offset.0).ok().and_then(|at| slots.get(at))?;
            (slot.kind == Kind::Record).then(|| slot.record.clone())
        };
        Ok(wanted.iter().map(find).collect())
    }
}
