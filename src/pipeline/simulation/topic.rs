//! One partition of the input topic, as a broker keeps it: records, and offsets that are never
//! delivered.

use std::collections::BTreeSet;

use crate::dedup::expiry::{Window, millis};
use crate::record::{Offset, Partition, Record, RecordBuilder, Timestamp};

pub(super) const TOPIC: &str = "payments";

/// When the simulation begins, by the wall.
pub(super) const EPOCH: Timestamp = Timestamp(1_700_000_000_000);

/// What stands at one offset.
#[derive(Debug)]
pub(super) struct Slot {
    pub kind: Kind,
    pub record: Record,
    /// What the producer meant: which message, in which words.
    pub key: Option<u64>,
    pub variant: u64,
    /// How the handler takes it.
    pub temper: Temper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Record,
    /// Of a transaction that is still open.
    Pending,
    /// An aborted record, a transaction's marker, or one that compaction took: never delivered.
    Gap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temper {
    Good,
    Flaky,
    /// Is refused at once.
    Poison,
    /// Fails as often as it is tried.
    Hopeless,
}

/// When a record counts, as an interval: without a timestamp it depends on when it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub low: i64,
    pub high: i64,
}

impl Time {
    pub(super) fn exact(self) -> bool {
        self.low == self.high
    }
}

#[derive(Debug, Default)]
pub(super) struct Input {
    pub first: usize,
    pub slots: Vec<Slot>,
    builder: RecordBuilder,
}

impl Input {
    pub(super) fn append(&mut self, partition: &Partition, new: &New) {
        let offset = Offset(self.slots.len() as i64);
        let id = new.key.map(|key| format!("payment-{}", 100 + key));
        let payload = format!("{{\"amount\":{},\"for\":{:?}}}", new.variant, new.key);
        let record_key = new.record_key.map(|key| key.to_le_bytes());
        let headers = id.as_ref().map(|id| (&b"Idempotency-Key"[..], Some(id.as_bytes())));
        let record = self.builder.build(
            partition.clone(),
            offset,
            new.timestamp,
            record_key.as_ref().map(|key| &key[..]),
            Some(payload.as_bytes()),
            headers.into_iter(),
        );
        let New { kind, key, variant, temper, .. } = *new;
        self.slots.push(Slot { kind, record, key, variant, temper });
    }

    /// Where a reader of committed records stops.
    pub(super) fn stable_end(&self) -> usize {
        let pending = self.slots.iter().position(|slot| slot.kind == Kind::Pending);
        pending.unwrap_or(self.slots.len())
    }

    pub(super) fn close_transactions(&mut self, commit: bool) {
        for slot in &mut self.slots {
            if slot.kind == Kind::Pending {
                slot.kind = if commit { Kind::Record } else { Kind::Gap };
            }
        }
    }

    /// The first offset with a record of this time or later.
    pub(super) fn at_time(&self, time: Timestamp) -> Option<Offset> {
        let late = |slot: &&Slot| slot.record.timestamp.is_some_and(|at| at >= time);
        self.slots[self.first..].iter().find(late).map(|slot| slot.record.offset)
    }

    /// The delivered records with their times, as a reader from the beginning would fix them.
    /// Whether what was passed over has moved the clock depends on who has read it.
    pub(super) fn times(
        &self,
        wall: Timestamp,
        window: &Window,
        skipped: &BTreeSet<usize>,
    ) -> Vec<Option<Time>> {
        let (limit, lateness) = (wall.0 + millis(window.skew), millis(window.lateness));
        let (mut least, mut most): (Option<i64>, Option<i64>) = (None, None);
        let mut read = |(offset, slot): (usize, &Slot)| {
            if slot.kind != Kind::Record {
                return None;
            }
            let believed = slot.record.timestamp.filter(|at| (0..=limit).contains(&at.0));
            let Some(at) = believed else {
                let at =
                    |stream: Option<i64>, wall: i64| stream.map_or(wall, |stream| stream.max(wall));
                return Some(Time { low: at(least, EPOCH.0), high: at(most, wall.0) });
            };
            let dated =
                |stream: Option<i64>| stream.map_or(at.0, |stream| at.0.max(stream - lateness));
            let (low, high) = (dated(least), dated(most));
            if !skipped.contains(&offset) {
                least = Some(least.map_or(low, |stream| stream.max(low)));
            }
            most = Some(most.map_or(high, |stream| stream.max(high)));
            Some(Time { low, high })
        };
        self.slots[..self.stable_end()].iter().enumerate().map(&mut read).collect()
    }
}

/// A record about to be produced.
#[derive(Debug)]
pub(super) struct New {
    pub kind: Kind,
    pub key: Option<u64>,
    pub variant: u64,
    pub record_key: Option<u64>,
    pub timestamp: Option<Timestamp>,
    pub temper: Temper,
}
