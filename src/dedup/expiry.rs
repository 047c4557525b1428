//! Time: when an entry stops suppressing, as pure functions of what the records say.
//!
//! Owns: [`Window`], [`StreamClock`] and the two questions asked of an entry's time. The read
//! path and the compaction filter ask here and nowhere else.
//! Never: reads a clock (`now` is a parameter).

use std::time::Duration;

use crate::fault::{self, Bug};
use crate::record::Timestamp;

/// For how long an entry suppresses, and how far records may be out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// An entry suppresses records that are less than this much later. At least 1 ms.
    pub ttl: Duration,
    /// How far behind the stream time a record's own timestamp counts; older is dated there.
    pub lateness: Duration,
    /// How far ahead of the wall clock a record's timestamp is believed.
    pub skew: Duration,
    pub anchor: Anchor,
}

/// Which occurrence the window is counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Anchor {
    /// The one that was handled: a duplicate does not prolong the window.
    #[default]
    First,
    /// The last one seen: it does.
    Last,
}

impl Window {
    /// True where an entry of this time no longer suppresses a record of time `at`.
    #[must_use]
    pub fn expired(&self, entry: Timestamp, at: Timestamp) -> bool {
        let ttl = millis(self.ttl) * if fault::bug(Bug::WindowTwice) { 2 } else { 1 };
        at.0 >= entry.0.saturating_add(ttl)
    }

    /// True where no record to come can meet the entry: even one that is as late as allowed is
    /// dated past its end. Only then may it leave the disk.
    #[must_use]
    pub fn droppable(&self, entry: Timestamp, stream_time: Timestamp) -> bool {
        entry.0 <= self.horizon(stream_time).0
    }

    /// Entries of this time or an earlier one are droppable at this stream time; records dated
    /// later are what a rebuild has to read.
    #[must_use]
    pub fn horizon(&self, stream_time: Timestamp) -> Timestamp {
        Timestamp(
            stream_time.0.saturating_sub(millis(self.ttl)).saturating_sub(millis(self.lateness)),
        )
    }
}

/// A duration in whole milliseconds, at most `i64::MAX`.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The shard's clock `S`. The records move it, never the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamClock {
    now: Option<Timestamp>,
}

/// The time of one record, fixed when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    pub time: Timestamp,
    /// False where the record had no timestamp that could be believed.
    pub by_record: bool,
}

impl StreamClock {
    #[must_use]
    pub fn at(now: Option<Timestamp>) -> Self {
        Self { now }
    }

    /// `None` until the first record with a timestamp.
    #[must_use]
    pub fn now(&self) -> Option<Timestamp> {
        self.now
    }

    /// Fixes the time of the next record. `wall` is used only for a record without a timestamp,
    /// before 1970, or dated further ahead of `wall` than the window's skew.
    pub fn read(
        &mut self,
        timestamp: Option<Timestamp>,
        wall: Timestamp,
        window: &Window,
    ) -> Dated {
        if fault::bug(Bug::WallClockExpiry) {
            return Dated { time: wall, by_record: true };
        }
        let limit = wall.0.saturating_add(millis(window.skew));
        let Some(timestamp) = timestamp.filter(|t| (0..=limit).contains(&t.0)) else {
            let time = self.now.map_or(wall, |now| now.max(wall));
            return Dated { time, by_record: false };
        };
        let floor = self.now.map_or(i64::MIN, |now| now.0.saturating_sub(millis(window.lateness)));
        let time = Timestamp(timestamp.0.max(floor));
        self.now = Some(self.now.map_or(time, |now| now.max(time)));
        Dated { time, by_record: true }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(ttl_ms: u64, lateness_ms: u64) -> Window {
        Window {
            ttl: Duration::from_millis(ttl_ms),
            lateness: Duration::from_millis(lateness_ms),
            skew: Duration::from_millis(50),
            anchor: Anchor::First,
        }
    }

    #[test]
    fn an_entry_expires_exactly_at_its_ttl() {
        let window = window(100, 10);
        assert!(!window.expired(Timestamp(1000), Timestamp(1099)));
        assert!(window.expired(Timestamp(1000), Timestamp(1100)));
        assert!(!window.droppable(Timestamp(1000), Timestamp(1109)));
        assert!(window.droppable(Timestamp(1000), Timestamp(1110)));
    }

    #[test]
    fn records_move_the_clock_and_never_back() {
        let mut clock = StreamClock::default();
        let window = window(100, 10);
        let wall = Timestamp(10_000);
        assert_eq!(clock.read(Some(Timestamp(1000)), wall, &window).time, Timestamp(1000));
        assert_eq!(clock.read(Some(Timestamp(995)), wall, &window).time, Timestamp(995));
        assert_eq!(clock.read(Some(Timestamp(5)), wall, &window).time, Timestamp(990));
        assert_eq!(clock.now(), Some(Timestamp(1000)));
    }

    #[test]
    fn a_record_from_the_future_or_without_a_date_does_not_move_the_clock() {
        let mut clock = StreamClock::at(Some(Timestamp(1000)));
        let window = window(100, 10);
        for timestamp in
            [None, Some(Timestamp(2051)), Some(Timestamp(i64::MAX)), Some(Timestamp(-1))]
        {
            let dated = clock.read(timestamp, Timestamp(2000), &window);
            assert_eq!(dated, Dated { time: Timestamp(2000), by_record: false });
        }
        assert_eq!(clock.now(), Some(Timestamp(1000)));
        assert!(clock.read(Some(Timestamp(2050)), Timestamp(2000), &window).by_record);
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let window = window(u64::MAX, u64::MAX);
        assert!(!window.expired(Timestamp(0), Timestamp(i64::MAX - 1)));
        assert!(
            !window.droppable(Timestamp(0), Timestamp(i64::MAX))
                || window.horizon(Timestamp(i64::MAX)).0 >= 0
        );
        StreamClock::default().read(Some(Timestamp(i64::MAX)), Timestamp(i64::MAX), &window);
    }

    proptest! {
        /// What the filter drops could not have suppressed any record read from then on.
        #[test]
        fn a_dropped_entry_is_expired_for_every_later_record(
            entry in 0i64..10_000,
            records in prop::collection::vec(prop::option::of(0i64..20_000), 1..50),
            ttl in 1u64..3_000,
            lateness in 0u64..3_000,
        ) {
            let window = window(ttl, lateness);
            let mut clock = StreamClock::default();
            let mut dropped = false;
            for timestamp in records {
                let dated = clock.read(timestamp.map(Timestamp), Timestamp(20_000), &window);
                if dropped && dated.by_record {
                    prop_assert!(window.expired(Timestamp(entry), dated.time));
                }
                dropped |= clock.now().is_some_and(|now| window.droppable(Timestamp(entry), now));
            }
        }
    }
}
