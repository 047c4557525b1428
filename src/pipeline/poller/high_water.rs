//! What the group has committed, on its way to the high-water group.
//!
//! It follows the group's own commit once that was acknowledged: what was fenced never gets here.
//! One commit is under way at a time; the newest of each partition goes with the next.
//!
//! Owns: what is still to be written there, and that it never goes back. Never: waits.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rustc_hash::FxHashMap;

use crate::clock;
use crate::fault::{Point, point};
use crate::pipeline::Failure;
use crate::pipeline::assign::Refusal;
use crate::record::{Offset, Partition};
use crate::source::Position;
use crate::source::companion::Commits;

/// How long to wait before a commit that failed is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// Commits of one partition that may be without an answer at once; of more, the oldest is not
/// passed on, since a later one says more.
const UNANSWERED_MAX: usize = 16;

pub(super) struct HighWater {
    commits: Commits,
    partitions: FxHashMap<Partition, Progress>,
    /// Sent, and not answered yet.
    out: Vec<Position>,
    next_attempt: Instant,
}

#[derive(Default)]
struct Progress {
    /// Nothing lower is written.
    reached: Option<Offset>,
    /// Committed for the group, and not acknowledged yet; ascending.
    unanswered: Vec<Position>,
    /// To be written next.
    waiting: Option<Position>,
}

impl HighWater {
    pub(super) fn new(commits: Commits) -> Self {
        Self {
            commits,
            partitions: FxHashMap::default(),
            out: Vec::new(),
            next_attempt: clock::instant(),
        }
    }

    /// A partition starts, with what the high-water group said of it.
    pub(super) fn begin(&mut self, partition: &Partition, reached: Option<Offset>) {
        let progress = Progress { reached, ..Progress::default() };
        self.partitions.insert(partition.clone(), progress);
    }

    /// Another instance may own the partition already: what it says counts.
    pub(super) fn forget(&mut self, partition: &Partition) {
        self.partitions.remove(partition);
    }

    /// This was sent for the group. It follows when it is acknowledged.
    pub(super) fn sent(&mut self, position: &Position) {
        let Some(progress) = self.partitions.get_mut(&position.partition) else { return };
        let unanswered = &mut progress.unanswered;
        unanswered.retain(|old| old.offset != position.offset);
        if unanswered.len() == UNANSWERED_MAX {
            unanswered.remove(0);
        }
        unanswered.push(position.clone());
    }

    /// The group has this offset.
    pub(super) fn acknowledged(&mut self, partition: &Partition, offset: Offset) {
        let Some(progress) = self.partitions.get_mut(partition) else { return };
        let Some(at) = progress.unanswered.iter().position(|sent| sent.offset == offset) else {
            return;
        };
        let position = progress.unanswered.drain(..=at).next_back();
        progress.raise(position);
    }

    /// The group is known to have this.
    pub(super) fn raise(&mut self, position: Position) {
        if let Some(progress) = self.partitions.get_mut(&position.partition) {
            progress.raise(Some(position));
        }
    }

    /// Nothing of these is left to write.
    pub(super) fn is_done_with(&self, partitions: &[Partition]) -> bool {
        let waits = |partition: &Partition| {
            self.partitions.get(partition).is_some_and(|progress| progress.waiting.is_some())
                || self.out.iter().any(|position| position.partition == *partition)
        };
        !partitions.iter().any(waits)
    }

    /// Takes answers and sends what waits. To be called from time to time.
    ///
    /// # Errors
    /// The group cannot be written, and will not be: going on would protect nothing.
    pub(super) fn turn(&mut self) -> Result<(), Failure> {
        while let Some(answer) = self.commits.answer() {
            let out = std::mem::take(&mut self.out);
            match answer {
                Ok(_) => {
                    point(Point::AfterHighWaterCommit);
                    out.into_iter().for_each(|position| self.written(position));
                }
                Err(error) => self.failed(out, error)?,
            }
        }
        if self.out.is_empty() && clock::instant() >= self.next_attempt {
            return self.send();
        }
        Ok(())
    }

    fn written(&mut self, position: Position) {
        if let Some(progress) = self.partitions.get_mut(&position.partition) {
            progress.reached = progress.reached.max(Some(position.offset));
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let waiting = self.partitions.values_mut().filter_map(|progress| progress.waiting.take());
        let positions: Vec<_> = waiting.collect();
        if positions.is_empty() {
            return Ok(());
        }
        match self.commits.start(&positions) {
            Ok(()) => self.out = positions,
            Err(error) => self.failed(positions, error)?,
        }
        Ok(())
    }

    fn failed(&mut self, positions: Vec<Position>, source: KafkaError) -> Result<(), Failure> {
        let group = self.commits.group();
        match source.rdkafka_error_code() {
            // So a broker answers who is not a member, where there are members.
            Some(RDKafkaErrorCode::UnknownMemberId) => {
                return Err(Refusal::HighWaterMembers { group: group.to_owned() }.into());
            }
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                let action = format!("cannot commit for the high-water group {group}");
                return Err(Failure::Kafka { action, source });
            }
            _ => {}
        }
        tracing::warn!(group, error = %source, "The high-water group was not written; it is written again.");
        self.next_attempt = clock::instant() + AGAIN;
        for position in positions {
            if let Some(progress) = self.partitions.get_mut(&position.partition) {
                progress.waiting.get_or_insert(position);
            }
        }
        Ok(())
    }
}

impl Progress {
    fn raise(&mut self, position: Option<Position>) {
        let Some(position) = position else { return };
        if Some(position.offset) < self.reached {
            return;
        }
        if self.waiting.as_ref().is_none_or(|waiting| waiting.offset <= position.offset) {
            self.waiting = Some(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Position {
        let metadata = format!("of {offset}");
        Position { partition: Partition::new("t", 0), offset: Offset(offset), metadata }
    }

    /// What is sent next, after these calls.
    fn waiting(reached: Option<i64>, calls: impl Fn(&mut Progress)) -> Option<i64> {
        let mut progress = Progress { reached: reached.map(Offset), ..Progress::default() };
        calls(&mut progress);
        progress.waiting.map(|position| position.offset.0)
    }

    #[test]
    fn it_never_goes_back_and_may_say_the_same_again() {
        let raised = |offset| waiting(Some(10), |progress| progress.raise(Some(at(offset))));
        assert_eq!(raised(9), None);
        assert_eq!(raised(10), Some(10));
        assert_eq!(raised(11), Some(11));
        assert_eq!(waiting(None, |progress| progress.raise(Some(at(0)))), Some(0));
    }

    #[test]
    fn the_newest_waits() {
        let both = waiting(None, |progress| {
            progress.raise(Some(at(7)));
            progress.raise(Some(at(5)));
        });
        assert_eq!(both, Some(7));
    }
}
