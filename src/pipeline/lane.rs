//! The bound between the poll loop and a worker, one for each partition.
//!
//! Channels here carry batches without a bound of their own: a lane admits a batch only while the
//! partition has room, in records and in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Reading stops this many records beyond one that is not settled. Another instance that takes
/// the partition over may handle so many again, so the number is part of the guarantee.
pub const RECORDS_MAX: usize = 10_000;

/// The same for exactly-once routes, where nothing is handled again: several transactions, so that
/// one can be collected while another is under way.
pub const RECORDS_MAX_EXACTLY_ONCE: usize = 60_000;

/// Bytes of unsettled records in memory, all partitions together; each gets its share.
pub const BYTES_MAX: usize = 64 << 20;

/// The least share of a partition: a batch.
const SHARE_MIN: usize = 1 << 20;

/// Counts what a worker has of one partition.
#[derive(Debug)]
pub struct Lane {
    records_max: usize,
    /// Records at or beyond the frontier.
    records: AtomicUsize,
    /// Bytes of the records that are not settled.
    bytes: AtomicUsize,
    poller: Arc<Poller>,
}

/// The poll loop's thread, which waits here while a lane is full.
#[derive(Debug)]
pub struct Poller {
    thread: Thread,
    waits: AtomicBool,
}

impl Poller {
    /// The calling thread is the one that will wait.
    #[must_use]
    pub fn current() -> Arc<Self> {
        Arc::new(Self { thread: std::thread::current(), waits: AtomicBool::new(false) })
    }
}

impl Lane {
    #[must_use]
    pub fn new(poller: &Arc<Poller>, records_max: usize) -> Arc<Self> {
        Arc::new(Self {
            records_max,
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            poller: Arc::clone(poller),
        })
    }

    /// True where a batch may be handed over, with this many partitions assigned.
    #[must_use]
    pub fn has_room(&self, partitions: usize) -> bool {
        self.below(self.records_max, (BYTES_MAX / partitions.max(1)).max(SHARE_MIN))
    }

    /// True where enough room is free again to go on with a partition that was paused.
    #[must_use]
    pub fn has_drained(&self, partitions: usize) -> bool {
        self.below(self.records_max / 2, (BYTES_MAX / partitions.max(1)).max(SHARE_MIN) / 2)
    }

    fn below(&self, records: usize, bytes: usize) -> bool {
        self.records.load(Ordering::Relaxed) < records && self.bytes.load(Ordering::Relaxed) < bytes
    }

    /// Waits until there is room, at most this long. Only the poll loop calls it.
    #[must_use]
    pub fn wait_for_room(&self, partitions: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.poller.waits.store(true, Ordering::SeqCst);
        let mut room = self.has_room(partitions);
        while !room && Instant::now() < deadline {
            std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
            room = self.has_room(partitions);
        }
        self.poller.waits.store(false, Ordering::SeqCst);
        room
    }

    pub fn add(&self, records: usize, bytes: usize) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The frontier passed this many records, and this many bytes were settled.
    pub fn release(&self, records: usize, bytes: usize) {
        self.records.fetch_sub(records, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.poller.waits.load(Ordering::SeqCst) {
            self.poller.thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_has_room_again_once_records_are_settled() {
        let lane = Lane::new(&Poller::current(), RECORDS_MAX);
        lane.add(RECORDS_MAX, 10);
        assert!(!lane.wait_for_room(1, Duration::from_millis(1)));
        lane.release(1, 0);
        assert!(lane.has_room(1) && !lane.has_drained(1));
        lane.release(RECORDS_MAX - 1, 10);
        assert!(lane.has_drained(1));
    }

    #[test]
    fn partitions_share_the_bytes() {
        let lane = Lane::new(&Poller::current(), RECORDS_MAX);
        lane.add(1, BYTES_MAX / 4);
        assert!(lane.has_room(3) && !lane.has_room(4));
    }

    #[test]
    fn the_waiting_poll_loop_is_woken_by_a_release() {
        let lane = Lane::new(&Poller::current(), RECORDS_MAX);
        lane.add(RECORDS_MAX, 0);
        let worker = {
            let lane = Arc::clone(&lane);
            std::thread::spawn(move || lane.release(RECORDS_MAX, 0))
        };
        assert!(lane.wait_for_room(1, Duration::from_secs(60)));
        worker.join().unwrap();
    }
}
