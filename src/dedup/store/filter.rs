//! The compaction filter: gives back the space of entries that no record to come can meet.
//!
//! It asks the same pure expiry as the read path, with the stream time as of the last flush: a
//! crash goes back to there, so nothing is dropped that a record read again could still meet.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rustc_hash::FxHashMap;

use super::keys::ENTRY;
use crate::dedup::entry::Entry;
use crate::dedup::expiry::{Anchor, Window};
use crate::dedup::shard::{Owner, Shard};
use crate::record::Timestamp;

pub(super) const NAME: &CStr = c"onced.expiry";

/// How far each shard's expiry has come.
#[derive(Debug, Default)]
pub(super) struct Horizons {
    inner: Mutex<Inner>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Stream times in the memtable or on disk.
    written: FxHashMap<u32, Timestamp>,
    /// Entries of this time or an earlier one may be dropped.
    durable: FxHashMap<u32, Timestamp>,
    /// The durable horizon when the shard was last rewritten.
    compacted: FxHashMap<u32, Timestamp>,
}

impl Horizons {
    pub(super) fn written(&self, shard: Shard, stream_time: Timestamp) {
        self.inner().written.insert(shard.0, stream_time);
    }

    pub(super) fn written_so_far(&self) -> FxHashMap<u32, Timestamp> {
        self.inner().written.clone()
    }

    /// Makes known that these stream times were flushed.
    pub(super) fn publish(
        &self,
        flushed: &FxHashMap<u32, Timestamp>,
        rows: &BTreeMap<Shard, Owner>,
    ) {
        let mut inner = self.inner();
        for (shard, owner) in rows {
            if let Some(stream_time) = flushed.get(&shard.0) {
                let horizon = window_of(owner).horizon(*stream_time);
                inner.durable.insert(shard.0, horizon);
                inner.compacted.entry(shard.0).or_insert(horizon);
            }
        }
    }

    pub(super) fn forget(&self, shard: Shard) {
        let mut inner = self.inner();
        inner.written.remove(&shard.0);
        inner.durable.remove(&shard.0);
        inner.compacted.remove(&shard.0);
    }

    /// True, once, each time the shard's horizon has moved by this many milliseconds.
    pub(super) fn due(&self, shard: Shard, step_ms: i64) -> bool {
        let mut inner = self.inner();
        let Some(horizon) = inner.durable.get(&shard.0).copied() else { return false };
        let Some(compacted) = inner.compacted.get_mut(&shard.0) else { return false };
        let due = horizon.0.saturating_sub(compacted.0) >= step_ms.max(1);
        if due {
            *compacted = horizon;
        }
        due
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a window that expiry on disk depends on; a shard keeps the one it was written for.
fn window_of(owner: &Owner) -> Window {
    Window {
        ttl: owner.ttl,
        lateness: owner.lateness,
        skew: std::time::Duration::ZERO,
        anchor: Anchor::First,
    }
}

pub(super) struct ExpiryFilterFactory(pub(super) Arc<Horizons>);

impl CompactionFilterFactory for ExpiryFilterFactory {
    type Filter = ExpiryFilter;

    fn create(&mut self, _: CompactionFilterContext) -> ExpiryFilter {
        ExpiryFilter {
            durable: self.0.inner().durable.clone(),
            horizons: Arc::clone(&self.0),
            dropped: 0,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

/// One compaction's view: the horizons as they were when it began.
pub(super) struct ExpiryFilter {
    durable: FxHashMap<u32, Timestamp>,
    horizons: Arc<Horizons>,
    dropped: u64,
}

impl CompactionFilter for ExpiryFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        if self.droppable(key, value) == Some(true) {
            self.dropped += 1;
            return CompactionDecision::Remove;
        }
        CompactionDecision::Keep
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

impl ExpiryFilter {
    /// `None`: not an entry, or of a shard whose time is not known.
    fn droppable(&self, key: &[u8], value: &[u8]) -> Option<bool> {
        let (shard, rest) = key.split_first_chunk::<4>()?;
        if rest.first() != Some(&ENTRY) {
            return None;
        }
        let horizon = self.durable.get(&u32::from_be_bytes(*shard))?;
        Some(Entry::decode_time(value)? <= *horizon)
    }
}

impl Drop for ExpiryFilter {
    fn drop(&mut self) {
        self.horizons.dropped.fetch_add(self.dropped, Ordering::Relaxed);
    }
}
