//! Offsets on their way to the broker, and what they say of the lag.
//!
//! Never: commits for a partition under an epoch that is not the present one.

use rdkafka::error::KafkaError;

use super::Poller;
use crate::record::{Epoch, Offset, Partition};
use crate::source::Position;

impl Poller {
    pub(super) fn send_commit(&mut self, positions: &[Position]) {
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
        for (partition, offset) in offsets {
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

    pub(super) fn show_lag(&self) {
        for (partition, assigned) in &self.assigned {
            let Some(end) = self.source.high_watermark(partition) else { continue };
            let committed = assigned.metrics.committed_offset.get();
            assigned.metrics.lag_records.set((end.0 - committed).max(0));
            self.shared.board.offsets(partition, None, Some(end.0));
        }
    }
}
