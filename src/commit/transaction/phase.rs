//! Which step of its transaction a transactor is in: for `/status`, and to notice a call that does
//! not end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// A step of the protocol, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No transaction is under way.
    #[default]
    Idle,
    /// A new producer registers; what the last one left open is aborted.
    Initialising,
    /// What earlier transactions wrote has to end on the broker.
    Settling,
    Producing,
    Delivering,
    Offsets,
    HighWater,
    Committing,
    Aborting,
}

const ALL: [(Phase, &str); 9] = [
    (Phase::Idle, "idle"),
    (Phase::Initialising, "initialising"),
    (Phase::Settling, "settling"),
    (Phase::Producing, "producing"),
    (Phase::Delivering, "delivering"),
    (Phase::Offsets, "offsets"),
    (Phase::HighWater, "high-water"),
    (Phase::Committing, "committing"),
    (Phase::Aborting, "aborting"),
];

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(phase, _)| *phase == self).map_or("", |(_, name)| name)
    }

    /// May last for as long as the broker is away; no transaction is open in it.
    pub(super) fn waits_for_the_broker(self) -> bool {
        matches!(self, Self::Idle | Self::Initialising | Self::Settling)
    }
}

/// The phase, and since when. Written by one thread, read by others.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    cell: Arc<Cell>,
    /// Which writer this is.
    writer: u64,
}

#[derive(Debug, Default)]
struct Cell {
    /// The phase in the lowest byte, above it milliseconds of the wall clock.
    at: AtomicU64,
    /// The newest writer: what an older one says counts no more.
    writer: AtomicU64,
}

impl Progress {
    pub fn set(&self, phase: Phase) {
        if self.cell.writer.load(Ordering::Relaxed) != self.writer {
            return;
        }
        let place = ALL.iter().position(|(one, _)| *one == phase).unwrap_or(0) as u64;
        let now = clock::now().0.max(0).unsigned_abs();
        self.cell.at.store(now << 8 | place, Ordering::Relaxed);
    }

    /// For the thread that follows one that was given up. Readers see no difference.
    #[must_use]
    pub fn successor(&self) -> Self {
        let writer = self.cell.writer.fetch_add(1, Ordering::Relaxed) + 1;
        let successor = Self { cell: Arc::clone(&self.cell), writer };
        successor.set(Phase::Idle);
        successor
    }

    /// The phase, and for how long it has lasted.
    #[must_use]
    pub fn get(&self) -> (Phase, Duration) {
        let cell = self.cell.at.load(Ordering::Relaxed);
        let place = usize::try_from(cell & 0xff).unwrap_or(0);
        let phase = ALL.get(place).map_or(Phase::Idle, |(phase, _)| *phase);
        let now = clock::now().0.max(0).unsigned_abs();
        (phase, Duration::from_millis(now.saturating_sub(cell >> 8)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_given_up_is_not_heard() {
        let shown = Progress::default();
        let first = shown.clone();
        first.set(Phase::Committing);
        assert_eq!(shown.get().0, Phase::Committing);
        let second = first.successor();
        assert_eq!(shown.get().0, Phase::Idle);
        first.set(Phase::Aborting);
        second.set(Phase::Producing);
        first.set(Phase::Aborting);
        assert_eq!(shown.get().0, Phase::Producing);
    }
}
