//! Where a partition starts: one pure function from what the broker and the log know.
//!
//! | name | meaning |
//! | --- | --- |
//! | `C` | the group's committed offset |
//! | `H` | the offset of the high-water group |
//! | `C'` | the greater of the two: what lies below was handled, here or elsewhere |
//! | `P` | the position of the shard in this data directory |
//! | `X` | the first offset whose record can still matter to the window at `C'` |
//!
//! The start is `min(C', max(P, X))` where `P <= C'`, else `P`; from there to `C'` the partition
//! is absorbed. What is absent counts as below everything.
//!
//! Owns: the start and the reasons to refuse one. Never: does I/O.

use crate::commit::offsets::Metadata;
use crate::dedup::acts::Skip;
use crate::dedup::expiry::Window;
use crate::dedup::shard::LastSettled;
use crate::fault::{self, Bug};
use crate::record::{Offset, Partition, Timestamp};

/// What is known of one partition before its first record is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub committed: Option<Offset>,
    /// The committed offset carries our metadata.
    pub committed_by_us: bool,
    pub high_water: Option<Offset>,
    pub position: Option<Offset>,
    /// The last record that the shard has settled, and what now lies at its offset. `None`: it was
    /// not looked for, or there is nothing any more, which proves nothing.
    pub last: Option<(LastSettled, LastSettled)>,
    /// `X`; `None`: no record of the topic can matter.
    pub window_start: Option<Offset>,
    /// The first offset that the topic still has.
    pub first: Offset,
    /// One past the last record of the topic.
    pub end: Offset,
    /// Where the route starts without any offset.
    pub start: Offset,
}

impl Known {
    /// `C'`.
    #[must_use]
    pub fn settled(&self) -> Option<Offset> {
        self.committed.max(self.high_water)
    }

    /// `X`: `C'` where no record of the topic can matter.
    #[must_use]
    pub fn window_start(&self) -> Option<Offset> {
        self.window_start.or(self.settled())
    }

    /// True where the partition goes on at its position, so that the last settled record has to be
    /// the one that the topic has.
    #[must_use]
    pub fn starts_at_position(&self) -> bool {
        self.position.is_some() && self.position >= self.settled()
    }
}

/// Where and how to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub start: Offset,
    /// Below this offset records enter the log, but are not handled. Not greater than `start`:
    /// there is nothing to absorb.
    pub absorb_until: Offset,
    /// These were not handled, and will not be: a tool moved the offset forward, or they lie below
    /// the start of a new group.
    pub skip: Option<Skip>,
    /// Nothing is committed yet: the start has to be, before the first record.
    pub commit_start: bool,
}

/// Why the daemon does not go on, and what to do about it. Exit code 5.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "{partition}: the topic was recreated (its id was {was}, now it is {is}); what its group and log say is of another topic: use a new kafka.group and log.dir for the new topic"
    )]
    Recreated { partition: Partition, was: String, is: String },
    #[error(
        "{partition}: the log is settled up to offset {position}, but the topic ends at {end}: it was truncated or recreated; use a new kafka.group and log.dir, or restore the topic"
    )]
    Truncated { partition: Partition, position: Offset, end: Offset },
    #[error(
        "{partition}: the group's offset is {committed}, but the topic ends at {end}: it was truncated or recreated, or a tool moved the offset too far; move it back to {end} with any tool, or use a new kafka.group and log.dir"
    )]
    Beyond { partition: Partition, committed: Offset, end: Offset },
    #[error(
        "{partition}: the group has once committed offset {high_water}, but the topic ends at {end}: it was truncated or recreated; use a new kafka.group and log.dir, or restore the topic"
    )]
    HighWaterBeyond { partition: Partition, high_water: Offset, end: Offset },
    #[error(
        "{partition}: the record at offset {offset} is not the one that was handled: the topic was truncated or recreated and written again; use a new kafka.group and log.dir, or restore the topic"
    )]
    Replaced { partition: Partition, offset: Offset },
    #[error(
        "{partition}: the offset {offset} of the group {group} was not written by onced: a tool has moved it, and what was handled is no longer known; put it back, or delete the group {group} with any tool to rely on the offsets of the group itself"
    )]
    HighWaterForeign { partition: Partition, group: String, offset: Offset },
    #[error(
        "the group {group} has members, but onced alone keeps its offsets, and is no member of it: stop those consumers, or use a new kafka.group"
    )]
    HighWaterMembers { group: String },
    #[error(
        "{partition}: records from offset {unread} on were not read, and the topic now begins at {first}: they are lost to retention; to accept that, move the group's offset to {first} with any tool"
    )]
    Gone { partition: Partition, unread: Offset, first: Offset },
    #[error(
        "{partition}: the topic had {was} partitions and now has {is}: the same key may now go to another partition, where its duplicates are not seen; to accept that, stop all instances and run `onced rewind --accept-partitions`, or use a new kafka.group and log.dir"
    )]
    PartitionCount { partition: Partition, was: i32, is: i32 },
    #[error(
        "{partition}: routes.*.identity (or policy.conflict) was changed while entries of the old definition still protect; change it back, or use a new kafka.group and log.dir"
    )]
    Definition { partition: Partition },
}

impl Refusal {
    /// The partition that it is about.
    #[must_use]
    pub fn partition(&self) -> Option<&Partition> {
        match self {
            Self::Recreated { partition, .. }
            | Self::Truncated { partition, .. }
            | Self::Beyond { partition, .. }
            | Self::HighWaterBeyond { partition, .. }
            | Self::Replaced { partition, .. }
            | Self::HighWaterForeign { partition, .. }
            | Self::Gone { partition, .. }
            | Self::PartitionCount { partition, .. }
            | Self::Definition { partition } => Some(partition),
            Self::HighWaterMembers { .. } => None,
        }
    }
}

/// What a partition is read under now.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub topic_id: &'a str,
    pub partition_count: i32,
    /// `identity::Config::definition`.
    pub definition: u64,
    pub window: &'a Window,
}

impl Terms<'_> {
    /// Compares them with those of an earlier commit, or of the shard.
    ///
    /// # Errors
    /// A [`Refusal`] where entries would no longer mean what they meant.
    pub fn check(
        &self,
        partition: &Partition,
        was: &Metadata,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let partition = partition.clone();
        let known = !was.topic_id.is_empty() && !self.topic_id.is_empty();
        if known && was.topic_id != self.topic_id {
            let (was, is) = (was.topic_id.clone(), self.topic_id.to_owned());
            return Err(Refusal::Recreated { partition, was, is });
        }
        if was.partition_count != 0 && was.partition_count != self.partition_count {
            let (was, is) = (was.partition_count, self.partition_count);
            return Err(Refusal::PartitionCount { partition, was, is });
        }
        let live = was.stream_time.is_some_and(|at| !self.window.droppable(at, now));
        if live && was.definition != self.definition {
            return Err(Refusal::Definition { partition });
        }
        Ok(())
    }
}

/// Decides where the partition starts.
///
/// # Errors
/// A [`Refusal`] where going on would lose or double records in silence.
pub fn plan(partition: &Partition, known: &Known) -> Result<Plan, Refusal> {
    let skip = skip(known);
    let settled = known.settled();
    let end = known.end;
    if let Some(position) = known.position.filter(|position| *position > end) {
        return Err(Refusal::Truncated { partition: partition.clone(), position, end });
    }
    if let Some(high_water) = known.high_water.filter(|high_water| *high_water > end) {
        return Err(Refusal::HighWaterBeyond { partition: partition.clone(), high_water, end });
    }
    if let Some(committed) = known.committed.filter(|committed| *committed > end) {
        return Err(Refusal::Beyond { partition: partition.clone(), committed, end });
    }
    if let Some((was, _)) = known.last.filter(|(was, is)| was != is && known.starts_at_position()) {
        return Err(Refusal::Replaced { partition: partition.clone(), offset: was.offset });
    }
    let mut start = start(known, settled, skip);
    let mut absorb_until = settled.unwrap_or(start);
    if fault::bug(Bug::NoAbsorb) {
        start = start.max(absorb_until);
    }
    if fault::bug(Bug::AbsorbEndsEarly) {
        absorb_until = known.position.unwrap_or_default();
    }
    let unread = settled.max(known.position);
    if let Some(unread) = unread.filter(|unread| *unread < known.first) {
        return Err(Refusal::Gone { partition: partition.clone(), unread, first: known.first });
    }
    Ok(Plan {
        start: start.max(known.first),
        absorb_until,
        skip,
        commit_start: known.committed.is_none(),
    })
}

fn start(known: &Known, settled: Option<Offset>, skip: Option<Skip>) -> Offset {
    match (settled, known.position) {
        (None, None) => known.start,
        (None, Some(position)) => position,
        (Some(settled), Some(position)) if position > settled => position,
        // What was skipped does not enter, so there is nothing to absorb.
        (Some(settled), _) if skip.is_some_and(|skip| known.position >= Some(skip.from)) => settled,
        (Some(settled), position) => {
            settled.min(known.window_start.unwrap_or(settled).max(position.unwrap_or_default()))
        }
    }
}

/// An offset beyond all that we know of, committed by somebody else: a tool moved it. Where we
/// know nothing at all, the group was another consumer's, which handled what lies below; and where
/// there was no group, nobody did.
fn skip(known: &Known) -> Option<Skip> {
    let (from, to) = match (known.high_water.max(known.position), known.committed) {
        (None, None) => (known.first, known.start),
        (Some(from), Some(committed)) if !known.committed_by_us => (from, committed),
        _ => return None,
    };
    (to > from).then_some(Skip { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            committed: None,
            committed_by_us: true,
            high_water: None,
            position: None,
            last: None,
            window_start: None,
            first: Offset(0),
            end: Offset(1_000),
            start: Offset(0),
        }
    }

    fn offsets(committed: i64, position: i64) -> Known {
        Known { committed: Some(Offset(committed)), position: Some(Offset(position)), ..known() }
    }

    #[track_caller]
    fn check(known: &Known, start: i64, absorb_until: i64) {
        let plan = plan(&Partition::new("t", 0), known).unwrap();
        assert_eq!((plan.start, plan.absorb_until), (Offset(start), Offset(absorb_until)));
    }

    #[test]
    fn a_clean_restart_goes_on_where_it_was() {
        check(&offsets(500, 500), 500, 500);
    }

    #[test]
    fn a_crash_after_the_commit_and_before_the_log_absorbs_the_few_between() {
        check(&Known { window_start: Some(Offset(200)), ..offsets(500, 490) }, 490, 500);
    }

    #[test]
    fn nothing_is_absorbed_where_no_record_of_the_topic_can_matter() {
        check(&offsets(500, 300), 500, 500);
    }

    #[test]
    fn a_crash_after_the_log_and_before_the_offset_starts_at_the_position() {
        check(&offsets(400, 500), 500, 400);
    }

    #[test]
    fn a_lost_disk_absorbs_one_window() {
        let lost =
            Known { committed: Some(Offset(500)), window_start: Some(Offset(200)), ..known() };
        check(&lost, 200, 500);
        check(&Known { window_start: None, ..lost }, 500, 500);
    }

    #[test]
    fn a_partition_that_lived_elsewhere_absorbs_only_what_is_new() {
        let away = Known { window_start: Some(Offset(100)), ..offsets(500, 300) };
        check(&away, 300, 500);
        check(&Known { window_start: Some(Offset(400)), ..away }, 400, 500);
    }

    #[test]
    fn offsets_that_were_reset_back_run_nothing_again() {
        check(&offsets(0, 500), 500, 0);
        let empty = Known { committed: Some(Offset(0)), high_water: Some(Offset(500)), ..known() };
        check(&Known { window_start: Some(Offset(200)), ..empty }, 200, 500);
    }

    #[test]
    fn an_offset_moved_forward_by_a_tool_is_a_skip_that_is_not_absorbed() {
        let moved =
            Known { committed_by_us: false, window_start: Some(Offset(0)), ..offsets(700, 500) };
        check(&moved, 700, 700);
        let plan = plan(&Partition::new("t", 0), &moved).unwrap();
        assert_eq!(plan.skip, Some(Skip { from: Offset(500), to: Offset(700) }));
    }

    #[test]
    fn the_group_of_another_consumer_is_absorbed() {
        let taken = Known {
            committed: Some(Offset(700)),
            committed_by_us: false,
            window_start: Some(Offset(0)),
            ..known()
        };
        check(&taken, 0, 700);
        assert_eq!(plan(&Partition::new("t", 0), &taken).unwrap().skip, None);
    }

    #[test]
    fn a_new_group_starts_where_the_route_says() {
        let late = Known { start: Offset(300), ..known() };
        check(&late, 300, 300);
        let plan = plan(&Partition::new("t", 0), &late).unwrap();
        assert_eq!(plan.skip, Some(Skip { from: Offset(0), to: Offset(300) }));
        assert!(plan.commit_start);
    }

    #[test]
    fn a_new_group_that_starts_at_the_beginning_skips_nothing() {
        check(&known(), 0, 0);
        assert_eq!(plan(&Partition::new("t", 0), &known()).unwrap().skip, None);
    }

    #[test]
    fn a_group_whose_offsets_expired_starts_at_the_position() {
        check(&Known { position: Some(Offset(500)), ..known() }, 500, 500);
    }

    #[test]
    fn a_tool_that_moved_the_offset_forward_skips_from_the_high_water_or_the_position() {
        let foreign = Known { committed_by_us: false, ..known() };
        let skip = |high_water: Option<i64>, position: Option<i64>| {
            let (high_water, position) = (high_water.map(Offset), position.map(Offset));
            let committed = Some(Offset(700));
            let window_start = Some(Offset(100));
            let known = Known { committed, high_water, position, window_start, ..foreign.clone() };
            let plan = plan(&Partition::new("t", 0), &known).unwrap();
            let skip = plan.skip.map(|skip| (skip.from.0, skip.to.0));
            (plan.start.0, plan.absorb_until.0, skip)
        };
        // An empty directory absorbs the window, but not what was skipped.
        assert_eq!(skip(Some(500), None), (100, 700, Some((500, 700))));
        assert_eq!(skip(Some(500), Some(600)), (700, 700, Some((600, 700))));
        assert_eq!(skip(Some(600), Some(500)), (500, 700, Some((600, 700))));
        // Back and forward again, up to where it had been.
        assert_eq!(skip(Some(700), None), (100, 700, None));
        assert_eq!(skip(Some(900), None), (100, 900, None));
    }

    #[test]
    fn a_group_whose_offsets_are_gone_goes_on_at_its_high_water() {
        let gone =
            Known { high_water: Some(Offset(500)), window_start: Some(Offset(200)), ..known() };
        check(&gone, 200, 500);
        check(&Known { position: Some(Offset(400)), ..gone }, 400, 500);
    }

    #[test]
    fn a_high_water_beyond_the_end_is_refused_wherever_the_offset_is() {
        let known = Known { high_water: Some(Offset(1_001)), ..offsets(0, 0) };
        let refused = plan(&Partition::new("t", 0), &known);
        assert!(matches!(refused, Err(Refusal::HighWaterBeyond { .. })), "{refused:?}");
    }

    #[test]
    fn another_record_in_the_place_of_the_last_settled_one_is_refused() {
        let mark = |time| LastSettled {
            offset: Offset(499),
            timestamp: Some(Timestamp(time)),
            check: crate::identity::Check(1),
        };
        let with = |last, known| plan(&Partition::new("t", 0), &Known { last, ..known });
        let other = Some((mark(1), mark(2)));
        let refused = with(other, offsets(500, 500));
        assert!(matches!(refused, Err(Refusal::Replaced { offset: Offset(499), .. })));
        assert!(with(other, offsets(400, 500)).is_err());
        assert!(with(Some((mark(1), mark(1))), offsets(500, 500)).is_ok());
        // Gone, by retention or compaction.
        assert!(with(None, offsets(500, 500)).is_ok());
        // Nothing of the log is relied on but what lies in the window.
        assert!(with(other, offsets(600, 500)).is_ok());
    }

    #[test]
    fn what_is_gone_or_truncated_is_refused() {
        let plan = |known: &Known| plan(&Partition::new("t", 0), known);
        let truncated = Known { end: Offset(400), ..offsets(300, 500) };
        assert!(matches!(plan(&truncated), Err(Refusal::Truncated { .. })));
        let beyond = Known { committed_by_us: false, ..offsets(1_001, 500) };
        assert!(matches!(plan(&beyond), Err(Refusal::Beyond { .. })));
        let gone = Known { first: Offset(600), ..offsets(500, 500) };
        assert!(matches!(plan(&gone), Err(Refusal::Gone { unread: Offset(500), .. })));
        // What retention took from the window alone makes the window shorter, no more.
        check(
            &Known { first: Offset(450), window_start: Some(Offset(450)), ..offsets(500, 400) },
            450,
            500,
        );
    }
}
