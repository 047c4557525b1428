//! What was written past the write-ahead log and is not on disk yet.
//!
//! RocksDB keeps what is new in a skip list, the largest cost of an entry. Entries of transactions
//! need none: the topic is their write-ahead log, and nobody reads them in order. So they wait in a
//! hash table, and a flush hands them over as one sorted file, with the positions that belong to
//! them: RocksDB takes all of it or none.
//!
//! Owns: the two tables. Never: touches a disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::keys::{ENTRY_KEY_BYTES, entry_key};
use crate::dedup::entry::Entry;
use crate::dedup::log::Batch;
use crate::dedup::shard::{Shard, State};
use crate::identity::Identity;

/// What the table takes for one entry: its key, itself, and a byte of the hash.
const ENTRY_BYTES: usize = size_of::<(Shard, Identity, Entry)>() + 1;

/// A table that is written to, and one that is on its way to disk.
pub(super) struct Young {
    open: Table,
    closing: Option<Arc<Table>>,
    /// The closing table is of an earlier flush, which did not end.
    again: bool,
    /// Something was added at some time.
    used: bool,
    /// Entries that the open table takes without growing.
    room: usize,
}

/// Entries and states, the newest of each.
#[derive(Default)]
pub(super) struct Table {
    entries: FxHashMap<(Shard, Identity), Entry>,
    states: BTreeMap<Shard, State>,
}

impl Young {
    /// An open table takes at most so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        // The table doubles, and is full at seven eighths.
        let buckets = (bytes / ENTRY_BYTES).max(1 << 10);
        let room = (1 << buckets.ilog2()) / 8 * 7;
        Self { open: Table::default(), closing: None, again: false, used: false, room }
    }

    pub(super) fn add(&mut self, batch: &mut Batch) {
        self.used = true;
        // Not before the first entry comes: a route that is at least once has none here.
        if self.open.entries.capacity() < self.room {
            self.open.entries.reserve(self.room);
        }
        let entries = batch.entries.drain(..);
        self.open
            .entries
            .extend(entries.map(|(shard, identity, entry)| ((shard, identity), entry)));
        self.open.states.extend(batch.states.iter().cloned());
    }

    pub(super) fn entry(&self, shard: Shard, identity: &Identity) -> Option<Entry> {
        let key = (shard, *identity);
        self.tables().find_map(|table| table.entries.get(&key)).copied()
    }

    pub(super) fn state(&self, shard: Shard) -> Option<State> {
        self.tables().find_map(|table| table.states.get(&shard)).cloned()
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> {
        self.tables().flat_map(|table| table.entries.keys().map(|(_, identity)| *identity))
    }

    /// Entries that are not on disk.
    pub(super) fn len(&self) -> usize {
        self.tables().map(|table| table.entries.len()).sum()
    }

    /// What two tables may take, and the sorted copy of one. 0 where nothing was ever added.
    pub(super) fn bytes(&self) -> usize {
        if self.used { 3 * self.room * ENTRY_BYTES } else { 0 }
    }

    /// The open table should go to disk now.
    pub(super) fn filling(&self) -> bool {
        self.open.entries.len() >= self.room / 4 * 3
    }

    /// So many more would make the open table grow.
    pub(super) fn is_full(&self, more: usize) -> bool {
        !self.open.entries.is_empty() && self.open.entries.len() + more > self.room
    }

    /// What is to go to disk: all that was added until now, or first what did not get there. Still
    /// found, until [`Young::closed`].
    pub(super) fn close(&mut self) -> Option<Arc<Table>> {
        if self.closing.is_none() {
            if self.open.entries.is_empty() && self.open.states.is_empty() {
                return None;
            }
            self.again = false;
            self.closing = Some(Arc::new(std::mem::take(&mut self.open)));
        } else {
            self.again = true;
        }
        self.closing.clone()
    }

    /// It is on disk. Returns what has to follow.
    pub(super) fn closed(&mut self) -> Option<Arc<Table>> {
        self.closing = None;
        if std::mem::take(&mut self.again) { self.close() } else { None }
    }

    /// Forgets what belongs to a shard. Nothing is on its way to disk.
    pub(super) fn forget(&mut self, shard: Shard) {
        self.open.entries.retain(|(of, _), _| *of != shard);
        self.open.states.remove(&shard);
    }

    /// The newer one first.
    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.open).chain(self.closing.as_deref())
    }
}

impl Table {
    pub(super) fn states(&self) -> impl Iterator<Item = (Shard, &State)> {
        self.states.iter().map(|(shard, state)| (*shard, state))
    }

    /// All entries by their keys on disk, in order.
    pub(super) fn sorted(&self) -> Vec<([u8; ENTRY_KEY_BYTES], Entry)> {
        let entries = self.entries.iter();
        let mut sorted: Vec<_> = entries
            .map(|((shard, identity), entry)| (entry_key(*shard, identity), *entry))
            .collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        sorted
    }
}
