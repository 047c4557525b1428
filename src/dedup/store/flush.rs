//! From memory to disk: what becomes durable, when, and with what.
//!
//! Owns: the order of a flush, and how the memory is shared. Never: decides what is written.

use std::sync::{MutexGuard, PoisonError};
use std::thread::Thread;

use rocksdb::{IngestExternalFileOptions, SstFileWriter};

use super::keys::state_key;
use super::young::Table;
use super::{LogError, Memory, Store};
use crate::dedup::entry::ENTRY_BYTES_MAX;
use crate::fault::{self, Point};

impl Store {
    /// Moves the durable position: after this a power cut goes back no further. The compaction
    /// filter may now drop what expired up to here.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn flush(&self) -> Result<(), LogError> {
        let mut number = self.flushing();
        self.flush_alone(&mut number)
    }

    fn flush_alone(&self, number: &mut u64) -> Result<(), LogError> {
        self.check()?;
        let written = self.horizons.written_so_far();
        fault::point(Point::BeforeFlush);
        let young = || self.young.write().unwrap_or_else(PoisonError::into_inner);
        let mut closing = young().close();
        // Before the young entries: what they depend on, such as the row of their shard, was
        // written before them. It also waits where compactions lag behind.
        self.db.flush().map_err(|error| self.poison("flush", error))?;
        while let Some(table) = closing {
            *number += 1;
            self.ingest(&table, *number).map_err(|error| self.poison("flush", error))?;
            closing = young().closed();
        }
        fault::point(Point::AfterFlush);
        self.share_memory();
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.horizons.publish(&written, &table.rows);
        Ok(())
    }

    /// Gives RocksDB a file with all of it. After a crash it has all or nothing.
    fn ingest(&self, table: &Table, number: u64) -> Result<(), rocksdb::Error> {
        // Never the same name twice: were the last one not unlinked, it would be written over, and
        // it is a table of the database now.
        let path = self.ingest.join(format!("{number}.sst"));
        let mut file = SstFileWriter::create(&self.options);
        file.open(&path)?;
        let entries = table.sorted();
        let mut entries = entries.iter().peekable();
        let mut bytes = Vec::with_capacity(ENTRY_BYTES_MAX);
        // A shard's state stands before its entries; a shard has entries only with a state.
        for (shard, state) in table.states() {
            while let Some((key, entry)) =
                entries.next_if(|(key, _)| key[..] < state_key(shard)[..])
            {
                bytes.clear();
                entry.encode(&mut bytes);
                file.put(key, &bytes)?;
            }
            bytes.clear();
            state.encode(&mut bytes);
            file.put(state_key(shard), &bytes)?;
        }
        for (key, entry) in entries {
            bytes.clear();
            entry.encode(&mut bytes);
            file.put(key, &bytes)?;
        }
        // Synced.
        file.finish()?;
        fault::point(Point::BeforeIngest);
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(self.links);
        self.db.ingest_external_file_opts(&options, vec![&path])?;
        // It is there still where it was copied. What is left is removed at the next start.
        let _ = std::fs::remove_file(&path);
        Ok(())
    }

    /// Held by whoever flushes; counts the files that were made.
    pub(super) fn flushing(&self) -> MutexGuard<'_, u64> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// RocksDB has what the filter and the young entries leave.
    pub(super) fn share_memory(&self) {
        let Memory { bytes, cache } = &self.memory;
        let young = self.young.read().unwrap_or_else(PoisonError::into_inner).bytes();
        let left = bytes.saturating_sub(self.sieve.bytes() + young);
        cache.clone().set_capacity(left.max(bytes / 4));
    }

    /// Has the young entries flushed when they are many; waits for it where so many `more` would be
    /// too many: the disk is slower than the records are.
    pub(super) fn make_room(&self, more: usize) -> Result<(), LogError> {
        let look = || {
            let young = self.young.read().unwrap_or_else(PoisonError::into_inner);
            (young.filling(), young.is_full(more))
        };
        let (filling, full) = look();
        if full {
            let mut number = self.flushing();
            // Somebody else may have flushed meanwhile.
            return if look().1 { self.flush_alone(&mut number) } else { Ok(()) };
        }
        if filling {
            self.flusher.get().inspect(|thread| thread.unpark());
        }
        Ok(())
    }

    /// Much is in memory alone: whoever flushes should do so now.
    #[must_use]
    pub fn filling(&self) -> bool {
        self.young.read().unwrap_or_else(PoisonError::into_inner).filling()
    }

    /// This thread is woken when [`Store::filling`] becomes true.
    pub fn wake_to_flush(&self, thread: Thread) {
        let _ = self.flusher.set(thread);
    }
}
