//! What the two groups and the log say of a partition, and which of it counts.
//!
//! The group's offset can be moved by any tool; the high-water group's is moved by onced alone. A
//! rewind begins a generation: what is of an older one counts as absent.
//!
//! Owns: which of several sources counts. Pure. Never: decides where the partition starts (see
//! `assign`).

use super::assign::{Refusal, Terms};
use crate::commit::offsets::Metadata;
use crate::dedup::State;
use crate::dedup::acts::Acts;
use crate::dedup::shard::Owner;
use crate::record::{Offset, Partition, Timestamp};
use crate::source::lookup::Committed;

/// What is left of two offsets and a shard once each was weighed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `C`.
    pub committed: Option<Offset>,
    /// `C` carries our metadata.
    pub committed_by_us: bool,
    /// `H`, unless a rewind has made it void.
    pub high_water: Option<Offset>,
    /// Of the higher of `C` and `H` that has ours.
    pub metadata: Option<Metadata>,
    /// False: the shard is of an older generation, and is to be dropped.
    pub shard_counts: bool,
    /// `S`: as of the metadata, else as of the shard.
    pub stream_time: Option<Timestamp>,
    /// What is known of acts, from wherever.
    pub acts: Acts,
}

impl Standing {
    /// Weighs what is known.
    ///
    /// # Errors
    /// [`Refusal::HighWaterForeign`] where the high-water group's offset is not ours.
    pub fn of(
        partition: &Partition,
        group: &str,
        committed: Option<&Committed>,
        high_water: Option<&Committed>,
        shard: Option<(&Owner, &State)>,
    ) -> Result<Self, Refusal> {
        let said = committed.and_then(|committed| committed.metadata.as_ref());
        let high_water = high_water.map(|high_water| {
            let metadata = high_water.metadata.as_ref();
            let foreign = || Refusal::HighWaterForeign {
                partition: partition.clone(),
                group: group.to_owned(),
                offset: high_water.offset,
            };
            metadata.map(|metadata| (high_water.offset, metadata)).ok_or_else(foreign)
        });
        let high_water = high_water.transpose()?.filter(|(_, of_high_water)| {
            said.is_none_or(|said| of_high_water.acts.generation >= said.acts.generation)
        });
        let offset = committed.map(|committed| committed.offset);
        let metadata = match (said, high_water) {
            // Of equal ones the group's: it is written first, and may say more.
            (Some(_), Some((high_water, of_high_water))) if Some(high_water) > offset => {
                Some(of_high_water)
            }
            (Some(said), _) => Some(said),
            (None, high_water) => high_water.map(|(_, of_high_water)| of_high_water),
        };
        let told = [said, high_water.map(|(_, of_high_water)| of_high_water)];
        let generation = told.iter().flatten().map(|said| said.acts.generation).max().unwrap_or(0);
        let shard_counts = shard.is_some_and(|(owner, _)| owner.acts.generation >= generation);
        let shard = shard.filter(|_| shard_counts);
        let remembered = shard.map(|(owner, _)| &owner.acts);
        let acts = told.iter().flatten().map(|said| &said.acts).chain(remembered);
        Ok(Self {
            committed: offset,
            committed_by_us: said.is_some(),
            high_water: high_water.map(|(offset, _)| offset),
            // A rewind leaves it out: then a shard of that generation knows more.
            stream_time: metadata
                .and_then(|said| said.stream_time)
                .or(shard.and_then(|(_, state)| state.stream_time)),
            metadata: metadata.cloned(),
            shard_counts,
            acts: acts.fold(Acts::default(), Acts::merged),
        })
    }

    /// `C'`: what lies below was handled, here or elsewhere.
    #[must_use]
    pub fn settled(&self) -> Option<Offset> {
        self.committed.max(self.high_water)
    }

    /// Compares what was said with what is: the topic's id with all that counts, the rest with the
    /// metadata that count, else with the shard.
    ///
    /// A commit that names the present number of partitions was made by someone who accepted it, so
    /// that a shard of before is none the worse.
    ///
    /// # Errors
    /// A [`Refusal`] where entries would no longer mean what they meant.
    pub fn check(
        &self,
        partition: &Partition,
        terms: &Terms<'_>,
        shard: Option<(&Owner, &State)>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if let Some(said) = &self.metadata {
            terms.check(partition, said, now)?;
        }
        let Some((owner, state)) = shard.filter(|_| self.shard_counts) else { return Ok(()) };
        let accepted = self.metadata.as_ref().map(|said| said.partition_count);
        let was = Metadata {
            definition: owner.definition,
            topic_id: owner.topic_id.clone(),
            partition_count: accepted.filter(|count| *count != 0).unwrap_or(owner.partition_count),
            stream_time: state.stream_time,
            acts: Acts::default(),
        };
        terms.check(partition, &was, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dedup::acts::Skip;
    use crate::dedup::expiry::{Anchor, Window};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn metadata(generation: i64, stream_time: i64) -> Metadata {
        let acts = Acts { generation, ..Acts::default() };
        Metadata {
            definition: 1,
            topic_id: "id".to_owned(),
            partition_count: 3,
            stream_time: Some(Timestamp(stream_time)),
            acts,
        }
    }

    fn ours(offset: i64, generation: i64) -> Committed {
        Committed { offset: Offset(offset), metadata: Some(metadata(generation, offset)) }
    }

    fn foreign(offset: i64) -> Committed {
        Committed { offset: Offset(offset), metadata: None }
    }

    fn shard(generation: i64) -> (Owner, State) {
        let owner = Owner {
            topic: "t".to_owned(),
            topic_id: "id".to_owned(),
            partition: 0,
            partition_count: 3,
            definition: 1,
            ttl: Duration::from_secs(1),
            lateness: Duration::ZERO,
            acts: Acts { generation, ..Acts::default() },
            owned_at_ms: 0,
        };
        (owner, State { stream_time: Some(Timestamp(77)), ..State::default() })
    }

    fn standing(
        committed: Option<Committed>,
        high_water: Option<Committed>,
        shard: Option<&(Owner, State)>,
    ) -> Result<Standing, Refusal> {
        let shard = shard.map(|(owner, state)| (owner, state));
        let partition = Partition::new("t", 0);
        Standing::of(&partition, "g.onced", committed.as_ref(), high_water.as_ref(), shard)
    }

    #[track_caller]
    fn check(committed: Option<Committed>, high_water: Option<Committed>, of: i64, settled: i64) {
        let standing = standing(committed, high_water, None).unwrap();
        assert_eq!(standing.settled(), Some(Offset(settled)));
        assert_eq!(standing.stream_time, Some(Timestamp(of)), "S is that of the metadata");
    }

    #[test]
    fn the_metadata_of_the_higher_offset_count_where_they_are_ours() {
        check(Some(ours(500, 0)), Some(ours(400, 0)), 500, 500);
        check(Some(ours(0, 0)), Some(ours(400, 0)), 400, 400);
        check(Some(foreign(0)), Some(ours(400, 0)), 400, 400);
        check(Some(foreign(700)), Some(ours(400, 0)), 400, 700);
        check(Some(ours(500, 0)), None, 500, 500);
        check(None, Some(ours(400, 0)), 400, 400);
    }

    #[test]
    fn a_high_water_of_an_older_generation_is_absent() {
        check(Some(ours(100, 2)), Some(ours(500, 1)), 100, 100);
        // The second commit of a rewind: now both say it.
        check(Some(ours(100, 2)), Some(ours(100, 2)), 100, 100);
        // A tool moved the offset after a rewind.
        check(Some(foreign(0)), Some(ours(100, 2)), 100, 100);
    }

    #[test]
    fn a_high_water_that_a_tool_wrote_is_refused() {
        let refused = standing(Some(ours(500, 0)), Some(foreign(400)), None);
        assert!(matches!(refused, Err(Refusal::HighWaterForeign { .. })), "{refused:?}");
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("g.onced") && text.contains("400"), "{text}");
    }

    #[test]
    fn a_shard_of_an_older_generation_does_not_count_and_lends_nothing() {
        let (old, new) = (shard(1), shard(2));
        let rewound = Committed {
            metadata: Some(Metadata { stream_time: None, ..metadata(2, 0) }),
            ..ours(9, 2)
        };
        let standing_of =
            |shard: &(Owner, State)| standing(Some(rewound.clone()), None, Some(shard)).unwrap();
        let standing = standing_of(&old);
        assert!(!standing.shard_counts);
        assert_eq!((standing.stream_time, standing.acts.generation), (None, 2));
        assert!(standing_of(&new).shard_counts);
        assert_eq!(standing_of(&new).stream_time, Some(Timestamp(77)));
    }

    #[test]
    fn without_any_offset_the_shard_counts_whatever_its_generation() {
        let standing = standing(None, None, Some(&shard(5))).unwrap();
        assert!(standing.shard_counts);
        assert_eq!(standing.acts.generation, 5);
    }

    #[test]
    fn acts_that_only_the_shard_knows_are_kept() {
        let mut shard = shard(0);
        shard.0.acts.skip(Skip { from: Offset(1), to: Offset(2) });
        let standing = standing(Some(foreign(5)), Some(ours(1, 0)), Some(&shard)).unwrap();
        assert_eq!(standing.acts.skips.len(), 1);
    }

    #[test]
    fn a_partition_count_that_the_commit_accepts_is_no_reason_against_the_shard() {
        let window = Window {
            ttl: Duration::from_secs(1),
            lateness: Duration::ZERO,
            skew: Duration::ZERO,
            anchor: Anchor::First,
        };
        let partition = Partition::new("t", 0);
        let terms = Terms { topic_id: "id", partition_count: 4, definition: 1, window: &window };
        let shard = shard(0);
        let accepted = |count| {
            let said = Metadata { partition_count: count, ..metadata(0, 0) };
            let committed = Committed { metadata: Some(said), ..ours(5, 0) };
            let standing = standing(Some(committed), None, Some(&shard)).unwrap();
            standing.check(&partition, &terms, Some((&shard.0, &shard.1)), NOW)
        };
        assert_eq!(accepted(4), Ok(()));
        assert!(matches!(accepted(3), Err(Refusal::PartitionCount { was: 3, is: 4, .. })));
        let none = standing(None, None, Some(&shard)).unwrap();
        let refused = none.check(&partition, &terms, Some((&shard.0, &shard.1)), NOW);
        assert!(matches!(refused, Err(Refusal::PartitionCount { .. })));
    }
}
