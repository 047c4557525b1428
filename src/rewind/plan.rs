//! What a rewind does to each partition: one pure function.
//!
//! Owns: the new offsets and what is committed with them. Never: does I/O.

use crate::commit::offsets::Metadata;
use crate::dedup::acts::Skip;
use crate::pipeline::assign::{Refusal, Terms};
use crate::pipeline::standing::Standing;
use crate::record::{Offset, Partition, Timestamp};
use crate::source::Position;

/// Where the partitions are to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Offset(Offset),
    /// The first record of this time or later; where it lies was asked.
    Time(Timestamp),
    Earliest,
    /// Where the group stands. Its log may be ahead of that, where the broker lost the end of a
    /// transaction.
    Committed,
}

/// What is known of one partition.
#[derive(Clone, Debug)]
pub struct Sight {
    pub partition: Partition,
    pub standing: Standing,
    /// The first offset that the topic still has.
    pub first: Offset,
    /// Where the time of [`Target::Time`] lies; `None`: no record is that late.
    pub at_time: Option<Offset>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// `None`: only the number of partitions is to be accepted.
    pub target: Option<Target>,
    pub accept_partitions: bool,
    pub now: Timestamp,
}

/// What is done to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new generation begins at the position.
    Rewind { from: Offset, position: Position },
    /// Nothing runs again; the commit says how many partitions there are now.
    Accept { position: Position },
    /// A partition without any offset begins at its first record.
    Add { position: Position },
    /// Nothing.
    Stay,
}

impl Step {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rewind { .. } => "rewind",
            Self::Accept { .. } => "accept",
            Self::Add { .. } => "add",
            Self::Stay => "stay",
        }
    }

    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        match self {
            Self::Rewind { position, .. } | Self::Accept { position } | Self::Add { position } => {
                Some(position)
            }
            Self::Stay => None,
        }
    }

    /// Offsets that are handled again; gaps count, so there may be fewer records.
    #[must_use]
    pub fn again(&self) -> i64 {
        match self {
            Self::Rewind { from, position } => from.0 - position.offset.0,
            _ => 0,
        }
    }
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "{partition}: {asked} lies beyond {settled}, up to which it was handled: a rewind goes back or stays; to pass records over, move the group's offset forward with any tool"
    )]
    Forward { partition: Partition, asked: Offset, settled: Offset },
    #[error("{partition}: {asked} is no longer in the topic, which begins at {first}")]
    Gone { partition: Partition, asked: Offset, first: Offset },
}

/// Decides what happens to a partition.
///
/// # Errors
/// Nothing may be done to any partition then.
pub fn plan(sight: &Sight, terms: &Terms<'_>, order: &Order) -> Result<Step, PlanError> {
    let (partition, standing) = (&sight.partition, &sight.standing);
    if let Some(said) = &standing.metadata {
        // The definition is no matter: the new generation is absorbed under the one of now.
        let definition = terms.definition;
        let partition_count =
            if order.accept_partitions { terms.partition_count } else { said.partition_count };
        let was = Metadata { definition, partition_count, ..said.clone() };
        terms.check(partition, &was, order.now)?;
    }
    let Some(settled) = standing.settled() else {
        if !order.accept_partitions {
            return Ok(Step::Stay);
        }
        let position = position(partition, sight.first, &fresh(terms));
        return Ok(Step::Add { position });
    };
    if settled < sight.first {
        let (partition, first) = (partition.clone(), sight.first);
        return Err(Refusal::Gone { partition, unread: settled, first }.into());
    }
    let start = match order.target {
        None => settled,
        Some(target) => start(sight, target, settled)?,
    };
    if start < settled || order.target == Some(Target::Committed) {
        let mut metadata = carried(sight, terms, settled);
        metadata.stream_time = None;
        metadata.definition = terms.definition;
        metadata.acts.rewind(order.now, start);
        let position = position(partition, start, &metadata);
        return Ok(Step::Rewind { from: settled, position });
    }
    let accepts = order.accept_partitions
        && standing
            .metadata
            .as_ref()
            .is_some_and(|said| said.partition_count != terms.partition_count);
    if accepts {
        let metadata = carried(sight, terms, settled);
        return Ok(Step::Accept { position: position(partition, settled, &metadata) });
    }
    Ok(Step::Stay)
}

fn start(sight: &Sight, target: Target, settled: Offset) -> Result<Offset, PlanError> {
    let (partition, first) = (sight.partition.clone(), sight.first);
    match target {
        Target::Earliest => Ok(first),
        Target::Committed => Ok(settled),
        Target::Time(_) => Ok(sight.at_time.map_or(settled, |at| at.min(settled))),
        Target::Offset(asked) if asked > settled => {
            Err(PlanError::Forward { partition, asked, settled })
        }
        Target::Offset(asked) if asked < first => Err(PlanError::Gone { partition, asked, first }),
        Target::Offset(asked) => Ok(asked),
    }
}

fn fresh(terms: &Terms<'_>) -> Metadata {
    Metadata {
        definition: terms.definition,
        topic_id: terms.topic_id.to_owned(),
        partition_count: terms.partition_count,
        ..Metadata::default()
    }
}

/// What goes on being true, with the skip that a tool has made since onced ran last.
fn carried(sight: &Sight, terms: &Terms<'_>, settled: Offset) -> Metadata {
    let standing = &sight.standing;
    let mut metadata = standing.metadata.clone().unwrap_or_else(|| fresh(terms));
    metadata.topic_id = terms.topic_id.to_owned();
    metadata.partition_count = terms.partition_count;
    metadata.acts = standing.acts.clone();
    if let Some(from) =
        standing.high_water.filter(|from| !standing.committed_by_us && *from < settled)
    {
        metadata.acts.skip(Skip { from, to: settled });
    }
    metadata
}

fn position(partition: &Partition, offset: Offset, metadata: &Metadata) -> Position {
    Position { partition: partition.clone(), offset, metadata: metadata.encode().0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dedup::acts::{Acts, Rewind};
    use crate::dedup::expiry::{Anchor, Window};

    const WINDOW: Window = Window {
        ttl: Duration::from_secs(1),
        lateness: Duration::ZERO,
        skew: Duration::ZERO,
        anchor: Anchor::First,
    };
    const TERMS: Terms<'_> =
        Terms { topic_id: "id", partition_count: 2, definition: 7, window: &WINDOW };
    const NOW: Timestamp = Timestamp(1_000);

    fn sight(committed: i64) -> Sight {
        let metadata = Metadata { stream_time: Some(Timestamp(5)), ..fresh(&TERMS) };
        let standing = Standing {
            committed: Some(Offset(committed)),
            committed_by_us: true,
            high_water: Some(Offset(committed)),
            metadata: Some(metadata),
            ..Standing::default()
        };
        Sight { partition: Partition::new("t", 0), standing, first: Offset(10), at_time: None }
    }

    fn plan_to(sight: &Sight, target: Target) -> Result<Step, PlanError> {
        let order = Order { target: Some(target), accept_partitions: false, now: NOW };
        plan(sight, &TERMS, &order)
    }

    fn metadata_of(step: &Step) -> Metadata {
        Metadata::decode(step.position().unwrap().metadata.as_bytes()).unwrap()
    }

    #[test]
    fn a_rewind_begins_a_generation_without_a_stream_time() {
        let step = plan_to(&sight(100), Target::Offset(Offset(40))).unwrap();
        assert_eq!((step.again(), step.position().unwrap().offset), (60, Offset(40)));
        let metadata = metadata_of(&step);
        assert_eq!(metadata.stream_time, None);
        assert_eq!(metadata.acts.generation, 1_000);
        assert_eq!(metadata.acts.rewinds, [Rewind { generation: 1_000, start: Offset(40) }]);
    }

    #[test]
    fn it_goes_back_or_stays_and_never_forward() {
        assert_eq!(plan_to(&sight(100), Target::Offset(Offset(100))), Ok(Step::Stay));
        let forward = plan_to(&sight(100), Target::Offset(Offset(101)));
        assert!(matches!(forward, Err(PlanError::Forward { .. })));
        let gone = plan_to(&sight(100), Target::Offset(Offset(9)));
        assert!(matches!(gone, Err(PlanError::Gone { .. })));
        let at = |at_time: Option<i64>| {
            let sight = Sight { at_time: at_time.map(Offset), ..sight(100) };
            plan_to(&sight, Target::Time(NOW)).unwrap().again()
        };
        assert_eq!((at(Some(30)), at(Some(100)), at(Some(500)), at(None)), (70, 0, 0, 0));
        assert_eq!(plan_to(&sight(100), Target::Earliest).unwrap().again(), 90);
    }

    #[test]
    fn where_the_log_may_be_ahead_a_generation_begins_at_the_same_offset() {
        let step = plan_to(&sight(100), Target::Committed).unwrap();
        assert_eq!((step.again(), step.position().unwrap().offset), (0, Offset(100)));
        let rewinds = metadata_of(&step).acts.rewinds;
        assert_eq!(rewinds, [Rewind { generation: 1_000, start: Offset(100) }]);
    }

    #[test]
    fn what_a_tool_did_to_the_offset_does_not_widen_or_narrow_it() {
        let mut reset = sight(100);
        reset.standing.committed = Some(Offset(0));
        reset.standing.committed_by_us = false;
        assert_eq!(plan_to(&reset, Target::Offset(Offset(40))).unwrap().again(), 60);

        let mut skipped = sight(100);
        skipped.standing.committed = Some(Offset(150));
        skipped.standing.committed_by_us = false;
        let step = plan_to(&skipped, Target::Offset(Offset(120))).unwrap();
        // What was passed over and is not to run again stays passed over.
        assert_eq!(metadata_of(&step).acts.skips, [Skip { from: Offset(100), to: Offset(120) }]);
    }

    #[test]
    fn a_second_rewind_remembers_the_first() {
        let mut sight = sight(100);
        sight.standing.acts = Acts::default();
        sight.standing.acts.rewind(Timestamp(500), Offset(20));
        let metadata = metadata_of(&plan_to(&sight, Target::Earliest).unwrap());
        assert_eq!(metadata.acts.rewinds.len(), 2);
    }

    #[test]
    fn a_raised_partition_count_is_refused_unless_it_is_accepted() {
        let mut grown = sight(100);
        grown.standing.metadata.as_mut().unwrap().partition_count = 1;
        let refused = plan_to(&grown, Target::Earliest);
        assert!(matches!(refused, Err(PlanError::Refused(Refusal::PartitionCount { .. }))));

        let accept = Order { target: None, accept_partitions: true, now: NOW };
        let step = plan(&grown, &TERMS, &accept).unwrap();
        assert_eq!((step.name(), step.again()), ("accept", 0));
        let metadata = metadata_of(&step);
        assert_eq!((metadata.partition_count, metadata.acts.generation), (2, 0));
        assert_eq!(metadata.stream_time, Some(Timestamp(5)), "the log stays good");

        let added = Sight { standing: Standing::default(), ..sight(0) };
        let step = plan(&added, &TERMS, &accept).unwrap();
        assert_eq!((step.name(), step.position().unwrap().offset), ("add", Offset(10)));
        assert_eq!(plan(&sight(100), &TERMS, &accept), Ok(Step::Stay));
    }

    #[test]
    fn another_topic_of_the_same_name_is_refused() {
        let terms = Terms { topic_id: "other", ..TERMS };
        let order = Order { target: Some(Target::Earliest), accept_partitions: true, now: NOW };
        let refused = plan(&sight(100), &terms, &order);
        assert!(matches!(refused, Err(PlanError::Refused(Refusal::Recreated { .. }))));
    }
}
