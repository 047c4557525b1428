//! Offsets on their way to the broker, and what they say of the lag.
//!
//! Never: commits for a partition under an epoch that is not the present one.

use std::time::Duration;

use rdkafka::error::KafkaError;

use super::Poller;
use crate::clock;
use crate::fault::{Bug, Point, bug, point};
use crate::record::{Epoch, Offset, Partition};
use crate::source::Position;

/// An offset that does not move is committed again after this: those of a group without members
/// expire one by one, after seven days unless the brokers say otherwise.
const STANDING_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Poller {
    pub(super) fn send_commit(&mut self, positions: &[Position]) {
        if !positions.is_empty() {
            point(Point::BeforeOffsetCommit);
        }
        for position in positions {
            self.high_water.sent(position);
            if bug(Bug::HighWaterFirst) {
                self.high_water.raise(position.clone());
            }
        }
        match self.source.commit(positions) {
            Ok(()) => self.commits_out += usize::from(!positions.is_empty()),
            Err(error) => {
                tracing::warn!(%error, "Offsets were not committed; they are committed again.");
                self.commit_failed = true;
            }
        }
    }

    pub(super) fn commit(&mut self, positions: Vec<(Epoch, Position)>) {
        for (epoch, position) in positions {
            self.unanswered.insert(position.partition.clone(), (epoch, position));
        }
        self.commit_unanswered();
    }

    /// Commits what was not acknowledged yet, of the partitions that are still ours.
    pub(super) fn commit_unanswered(&mut self) {
        let assigned = &self.assigned;
        self.unanswered.retain(|partition, (epoch, _)| {
            assigned.get(partition).is_some_and(|assigned| assigned.epoch == *epoch)
        });
        let positions: Vec<_> = self.unanswered.values().map(|(_, at)| at.clone()).collect();
        self.send_commit(&positions);
    }

    pub(super) fn commit_answered(&mut self, result: Result<Vec<(Partition, Offset)>, KafkaError>) {
        self.commits_out = self.commits_out.saturating_sub(1);
        match result {
            Ok(offsets) => self.committed(&offsets),
            Err(error) => {
                tracing::warn!(%error, "Offsets were not committed; they are committed again.");
                self.commit_failed = true;
            }
        }
    }

    pub(super) fn committed(&mut self, offsets: &[(Partition, Offset)]) {
        point(Point::AfterOffsetCommit);
        for (partition, offset) in offsets {
            self.note_standing(partition, *offset);
            self.high_water.acknowledged(partition, *offset);
            if self.unanswered.get(partition).is_some_and(|(_, at)| at.offset <= *offset) {
                self.unanswered.remove(partition);
            }
            if let Some(assigned) = self.assigned.get(partition) {
                assigned.metrics.committed_offset.set(offset.0);
                self.shared.board.offsets(partition, Some(offset.0), None);
            }
        }
        self.show_lag();
    }

    /// What an acknowledged commit said.
    fn note_standing(&mut self, partition: &Partition, offset: Offset) {
        let sent = self.unanswered.get(partition).filter(|(_, at)| at.offset == offset);
        if let Some((_, position)) = sent
            && let Some(assigned) = self.assigned.get_mut(partition)
        {
            assigned.standing = Some((position.clone(), clock::instant()));
        }
    }

    /// Commits again what has not moved for long. Routes with transactions do so in a transaction:
    /// beside one that is under way it would move the offset back.
    pub(super) fn commit_standing(&mut self) {
        let (now, shared) = (clock::instant(), &self.shared);
        let mut old = Vec::new();
        for (partition, assigned) in self.assigned.iter_mut().filter(|(_, at)| !at.draining) {
            let route = shared.route_of(&partition.topic).map(|index| &shared.routes[index]);
            if route.is_none_or(|route| route.is_transactional()) {
                continue;
            }
            let Some((position, since)) = &mut assigned.standing else { continue };
            if now.saturating_duration_since(*since) >= STANDING_MAX {
                *since = now;
                old.push((assigned.epoch, position.clone()));
            }
        }
        old.retain(|(_, position)| !self.unanswered.contains_key(&position.partition));
        if !old.is_empty() {
            self.commit(old);
        }
    }

    /// Passes on what was acknowledged to the high-water group.
    pub(super) fn raise_high_water(&mut self) {
        if let Err(failure) = self.high_water.turn() {
            self.fail(failure);
        }
    }

    pub(super) fn show_lag(&self) {
        for (partition, assigned) in &self.assigned {
            let Some(end) = self.source.high_watermark(partition) else { continue };
            let committed = assigned.metrics.committed_offset.get();
            assigned.metrics.lag_records.set((end.0 - committed).max(0));
            self.shared.board.offsets(partition, None, Some(end.0));
        }
    }
}
