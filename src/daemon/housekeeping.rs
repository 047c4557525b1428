//! What the log needs besides records: flushes, space, and an end for what is no longer owned.
//!
//! Runs on a thread of its own, so that a slow disk holds up no record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Error, disk};
use crate::clock;
use crate::config::Config;
use crate::dedup::expiry::millis;
use crate::dedup::shard::Owner;
use crate::dedup::{LogError, Store};
use crate::metrics::Metrics;
use crate::pipeline::Board;
use crate::readiness::{Latch, Readiness};
use crate::record::Timestamp;

pub(super) struct Parts {
    pub(super) store: Arc<Store>,
    pub(super) config: Arc<Config>,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
    pub(super) hold: Arc<AtomicBool>,
}

/// Ends the thread when it is dropped.
pub(super) struct Guard {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

const TICK: Duration = Duration::from_secs(1);

/// After a start, partitions that come back need their shards, however long the daemon was away.
const GRACE: Duration = Duration::from_secs(10 * 60);

pub(super) fn start(parts: Parts) -> Result<Guard, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let run = move || {
        parts.store.wake_to_flush(std::thread::current());
        let (started, next_flush) = (Instant::now(), Instant::now());
        let mut housekeeping =
            Housekeeping { parts, low: None, broken: None, expired: 0, started, next_flush };
        while !stopped.load(Ordering::Relaxed) {
            let more = housekeeping.tick();
            std::thread::park_timeout(if more { Duration::ZERO } else { TICK });
        }
    };
    let thread = std::thread::Builder::new()
        .name("housekeeping".to_owned())
        .spawn(run)
        .map_err(|source| Error::System { what: "start a thread", source })?;
    Ok(Guard { stop, thread: Some(thread) })
}

struct Housekeeping {
    parts: Parts,
    /// Held while less space is free than `log.disk_reserve`.
    low: Option<Latch>,
    broken: Option<Latch>,
    expired: u64,
    started: Instant,
    next_flush: Instant,
}

impl Housekeeping {
    /// Returns whether there is more to do at once.
    fn tick(&mut self) -> bool {
        self.watch_disk();
        self.show();
        self.keep_house().unwrap_or_else(|error| {
            if self.broken.is_none() {
                tracing::error!(%error, "The log's housekeeping failed.");
                let text = format!("the log's housekeeping failed: {error}");
                self.broken = Some(self.parts.readiness.latch(text));
            }
            false
        })
    }

    fn watch_disk(&mut self) {
        let reserve = self.parts.config.log.disk_reserve;
        let free = disk::free(&self.parts.config.log.dir);
        let low = free.as_ref().is_ok_and(|free| *free < reserve);
        if low != self.low.is_some() {
            let free = free.unwrap_or_default();
            if low {
                tracing::error!(
                    free,
                    reserve,
                    "Less space is free than log.disk_reserve. Nothing is consumed until there is more."
                );
                let text = format!(
                    "the disk is nearly full: {free} bytes are free, log.disk_reserve is {reserve}"
                );
                self.low = Some(self.parts.readiness.latch(text));
            } else {
                tracing::info!(free, "There is space on the disk again.");
                self.low = None;
            }
            self.parts.hold.store(low, Ordering::Relaxed);
        }
    }

    fn show(&mut self) {
        let (store, metrics) = (&self.parts.store, &self.parts.metrics);
        metrics.log.entries.set(i64::try_from(store.entries_estimate()).unwrap_or(i64::MAX));
        metrics.log.bytes.set(i64::try_from(store.bytes()).unwrap_or(i64::MAX));
        let expired = store.expired_total();
        metrics.log.expired.inc_by(expired - self.expired);
        self.expired = expired;
        metrics.ready.set(i64::from(self.parts.readiness.ready().is_ok()));
    }

    fn keep_house(&mut self) -> Result<bool, LogError> {
        if Instant::now() >= self.next_flush {
            self.next_flush = Instant::now() + self.parts.config.log.flush_interval;
            self.mind_shards()?;
            self.parts.store.flush()?;
            self.parts.store.compact_expired()?;
        } else if self.parts.store.filling() {
            self.parts.store.flush()?;
        }
        self.parts.store.sift()
    }

    /// Notes which shards are owned; drops those that were not for a whole window: whatever they
    /// hold has expired, and their partition starts from the group's offset if it comes back.
    fn mind_shards(&self) -> Result<(), LogError> {
        let now = clock::now();
        let owned = self.parts.board.partitions();
        let may_drop = self.started.elapsed() >= GRACE;
        for (shard, owner) in self.parts.store.shards() {
            if owned.iter().any(|at| at.topic == owner.topic && at.partition == owner.partition) {
                self.parts.store.change_owner(shard, |owner| owner.owned_at_ms = now.0)?;
            } else if may_drop && self.parts.store.drop_shard_if(shard, |owner| away(owner, now))? {
                tracing::info!(partition = %owner.partition(), "The log of a partition that was away for a whole window was dropped.");
            }
        }
        Ok(())
    }
}

fn away(owner: &Owner, now: Timestamp) -> bool {
    let window = millis(owner.ttl).saturating_add(millis(owner.lateness));
    now.0.saturating_sub(owner.owned_at_ms) > window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::acts::Acts;

    #[test]
    fn a_partition_is_away_for_a_window_only_after_ttl_and_lateness() {
        let owner = Owner {
            topic: "t".to_owned(),
            topic_id: String::new(),
            partition: 0,
            partition_count: 1,
            definition: 0,
            ttl: Duration::from_millis(100),
            lateness: Duration::from_millis(10),
            acts: Acts::default(),
            owned_at_ms: 1_000,
        };
        assert!(!away(&owner, Timestamp(1_110)));
        assert!(away(&owner, Timestamp(1_111)));
        // A clock that went back drops nothing.
        assert!(!away(&owner, Timestamp(0)));
    }
}
