//! What the threads of the pipeline show of themselves: for `/status` and `/livez`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::worker::Owned;
use crate::record::{Offset, Partition};

/// The state of each assigned partition, as of its last write.
#[derive(Debug, Default)]
pub struct Board {
    partitions: Mutex<BTreeMap<Partition, PartitionStatus>>,
}

/// One partition in `/status`.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    pub state: &'static str,
    pub position: i64,
    pub absorb_until: i64,
    pub open_records: usize,
    pub stream_time_ms: Option<i64>,
    pub committed_offset: Option<i64>,
    pub end_offset: Option<i64>,
}

impl Board {
    pub(super) fn update(&self, owned: &Owned) {
        let mut partitions = self.lock();
        let old = partitions.get(&owned.partition);
        let (committed_offset, end_offset) =
            old.map_or((None, None), |old| (old.committed_offset, old.end_offset));
        let status = PartitionStatus {
            topic: owned.partition.topic.to_string(),
            partition: owned.partition.index,
            state: match (owned.draining, &owned.absorbing) {
                (true, _) => "draining",
                (false, Some(_)) => "absorbing",
                (false, None) => "running",
            },
            position: owned.frontier.position().0,
            absorb_until: owned.absorb_until.0,
            open_records: owned.frontier.span(),
            stream_time_ms: owned.frontier.stream_time().map(|time| time.0),
            committed_offset,
            end_offset,
        };
        partitions.insert(owned.partition.clone(), status);
    }

    pub(super) fn offsets(&self, partition: &Partition, committed: Option<i64>, end: Option<i64>) {
        if let Some(status) = self.lock().get_mut(partition) {
            status.committed_offset = committed.or(status.committed_offset);
            status.end_offset = end.or(status.end_offset);
        }
    }

    pub(super) fn remove(&self, partition: &Partition) {
        self.lock().remove(partition);
    }

    /// How far a partition is settled, as of the last write.
    pub(super) fn position(&self, partition: &Partition) -> Option<Offset> {
        self.lock().get(partition).map(|status| Offset(status.position))
    }

    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, PartitionStatus>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When each thread was last seen alive: the poll loop, then the workers.
#[derive(Debug)]
pub struct Heartbeats {
    start: Instant,
    poller: AtomicU64,
    workers: Vec<AtomicU64>,
}

/// A thread that was not seen for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(60);

impl Heartbeats {
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let workers = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Self { start: Instant::now(), poller: AtomicU64::new(0), workers }
    }

    pub(super) fn beat(&self, worker: usize) {
        self.workers[worker].store(self.now(), Ordering::Relaxed);
    }

    /// Nothing runs yet that could be stuck.
    pub fn beat_all(&self) {
        self.beat_poller();
        (0..self.workers.len()).for_each(|worker| self.beat(worker));
    }

    pub(super) fn beat_poller(&self) {
        self.poller.store(self.now(), Ordering::Relaxed);
    }

    /// # Errors
    /// Names the thread that is stuck.
    pub fn check(&self) -> Result<(), String> {
        let late = |beat: &AtomicU64| {
            let silent = self.now().saturating_sub(beat.load(Ordering::Relaxed));
            silent > SILENCE_MAX.as_secs()
        };
        if late(&self.poller) {
            return Err("the poll loop is stuck".to_owned());
        }
        match self.workers.iter().position(late) {
            Some(index) => Err(format!("worker {index} is stuck")),
            None => Ok(()),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_secs()
    }
}
