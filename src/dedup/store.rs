//! The dedup log on disk: the only place that names RocksDB.
//!
//! Constraints:
//! - Entries, the state of their shard and the shard table share one column family, and what
//!   belongs together one write batch: a flush or a crash takes all or none.
//! - A shard has one writer. Looking up is batched and sorted.
//! - A failed write poisons the log; a full disk is told apart, since it passes.
//! - An expired entry still on disk reads as absent for whoever asks `expiry`; the compaction
//!   filter only gives space back.
//!
//! ```text
//! <dir>/lock                                    held while the log is open
//! <dir>/ingest/                                 files on their way into RocksDB; emptied at a start
//! <dir>/db/                                     RocksDB
//!   shard (u32 BE)  1                           state of the shard
//!   shard (u32 BE)  2  identity (16)            entry
//!   0 (u32)         3                           header (JSON): format, cluster, group, directory
//!   0 (u32)         4  shard (u32 BE)           row of the shard table (JSON)
//!   0 (u32)         5                           the next shard number (u32 BE), from 1
//! ```
//!
//! What is written with a write-ahead log goes through RocksDB's memtable; the rest is young until
//! a flush hands it over as a sorted file. Recovery is RocksDB's own. What a power cut or a crash
//! takes is read again from the topic, from the position on.
//!
//! ```text
//! write: logged --> memtable --> flush --> table files     unlogged --> young --> flush --> a table file
//! lookup: sieve (certainly new?) --> young --> RocksDB
//! ```
//!
//! ```text
//! header   whose directory it is             young    what is not on disk yet
//! keys     the bytes above                   flush    from there to disk
//! options  RocksDB's, and their self-check   filter   gives expired entries' space back
//! sieve    spares look-ups of new keys       peek     a look from outside
//! ```
//!
//! What was tried, by `onced bench log` (random keys in batches of 1,000, two cores; CPU
//! of look-up, insert, flush and compaction together):
//!
//! | layout | us a new key | written to disk, to bytes of entries |
//! | --- | --- | --- |
//! | memtable, universal compaction of 4 files, a filter for each file | 3.1 at 10 million | 5.7 |
//! | with the sieve in front | 3.4 at 10 million, 0.97 instead of 1.45 at 1 million | 6.8 |
//! | with the sieve, young entries and their sorted files | 1.75 at 10 million | 3.9 |
//! | the same, compaction of 10 files | 1.6 at 10 million, 1.7 to 2.1 at 20 million | 3.3 to 4.1 |

mod error;
mod filter;
mod flush;
mod header;
mod keys;
mod options;
mod peek;
mod sieve;
mod young;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::Thread;

use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamilyDescriptor, CompactOptions, DB, Options,
    WriteBatch, WriteOptions,
};

pub use self::error::LogError;
pub use self::peek::{Peek, peek};

use self::error::full;
use self::filter::Horizons;
use self::header::{check_header, has_links, lock, make_empty, read_table};
use self::keys::{ENTRY, ENTRY_KEY_BYTES, NEXT_SHARD_KEY, entry_key, prefix, state_key, table_key};
use self::sieve::Sieve;
use self::young::Young;
use super::entry::{ENTRY_BYTES_MAX, Entry};
use super::expiry::millis;
use super::log::Batch;
use super::shard::{Owner, Shard, State};
use crate::fault::{self, Bug};
use crate::identity::Identity;
use crate::record::Partition;

/// Where the log lies and what it may take.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    /// Bytes for everything: young entries, sieve, memtables and block cache.
    pub memory: u64,
}

/// What a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub cluster_id: String,
    pub group: String,
}

/// Version of all bytes in the directory. A newer one is refused, an older one converted.
pub const FORMAT: u32 = 1;

const FAMILY: &str = "default";

/// The open log. Shared by the workers; each writes only the shards of its own partitions.
pub struct Store {
    db: DB,
    options: Options,
    directory_id: String,
    memory: Memory,
    /// Where files are made that RocksDB takes over.
    ingest: PathBuf,
    table: Mutex<Table>,
    horizons: Arc<Horizons>,
    young: RwLock<Young>,
    /// One flush at a time; counts the files that were made. Taken before `table` and `young`.
    flushing: Mutex<u64>,
    /// Whether the file system has hard links, so that RocksDB need not copy.
    links: bool,
    /// Who flushes when much is young.
    flusher: OnceLock<Thread>,
    sieve: Sieve,
    /// The key from which the next filter of the sieve reads on.
    sifted: Mutex<Vec<u8>>,
    /// What the first call that failed came to: nothing is written after it.
    poisoned: OnceLock<rocksdb::Error>,
    _lock: File,
}

/// What the log may take, and the part that is left to RocksDB.
struct Memory {
    bytes: usize,
    cache: Cache,
}

#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<Shard, Owner>,
    next: u32,
}

/// Of the memory, for the young entries: 8 stands for an eighth.
const YOUNG_SHARE: usize = 8;

/// Free bytes without which the log cannot be opened: the write-ahead log becomes tables, the
/// self-check writes a few, and the first flush writes what is young.
#[must_use]
pub fn room_to_open(memory: u64) -> u64 {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    (2 * options::write_buffer_bytes(memory) + memory / YOUNG_SHARE) as u64
}

impl Store {
    /// Opens or creates the log.
    ///
    /// # Errors
    /// Names `log.dir` and the way out; nothing is changed in a directory of something else.
    pub fn open(config: &Config, stamp: &Stamp) -> Result<Self, LogError> {
        let directory = |action| {
            let path = config.dir.clone();
            move |source| LogError::Directory { path, action, source }
        };
        std::fs::create_dir_all(&config.dir).map_err(directory("create it"))?;
        let lock = lock(&config.dir)?;
        options::check_filters(&config.dir.join("self-check"))?;
        let horizons = Arc::new(Horizons::default());
        let path = config.dir.join("db");
        let memory = usize::try_from(config.memory).unwrap_or(usize::MAX);
        let cache = Cache::new_lru_cache(memory);
        let options = options::database(memory, &cache, &horizons);
        let ingest = config.dir.join("ingest");
        make_empty(&ingest).map_err(directory("make its folder ingest"))?;
        let links = has_links(&ingest);
        let family = ColumnFamilyDescriptor::new(FAMILY, options.clone());
        let db = DB::open_cf_descriptors(&options, &path, [family])
            .map_err(|error| LogError::of_opening(&config.dir, error))?;
        options::check_in_effect(&path)?;
        let header = check_header(&db, config, stamp)?;
        let table = read_table(&db)?;
        let store = Self {
            db,
            options,
            directory_id: header.directory_id,
            memory: Memory { bytes: memory, cache },
            ingest,
            table: Mutex::new(table),
            horizons,
            young: RwLock::new(Young::new(memory / YOUNG_SHARE)),
            flushing: Mutex::default(),
            links,
            flusher: OnceLock::new(),
            // 100 million keys take 120 MB.
            sieve: Sieve::new(memory / 3),
            sifted: Mutex::default(),
            poisoned: OnceLock::new(),
            _lock: lock,
        };
        store.publish_all_horizons()?;
        Ok(store)
    }

    /// Random, chosen when the directory was made.
    #[must_use]
    pub fn directory_id(&self) -> &str {
        &self.directory_id
    }

    /// The shard of a partition with its owner row and state, where there is one.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] where the state cannot be read.
    pub fn shard(&self, partition: &Partition) -> Result<Option<(Shard, Owner, State)>, LogError> {
        let found = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table
                .rows
                .iter()
                .find(|(_, owner)| {
                    owner.partition == partition.index && *owner.topic == *partition.topic
                })
                .map(|(shard, owner)| (*shard, owner.clone()))
        };
        let Some((shard, owner)) = found else { return Ok(None) };
        Ok(self.state(shard)?.map(|state| (shard, owner, state)))
    }

    /// Makes a new shard; its table row and state are written, synced, before this returns.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn create_shard(&self, owner: Owner, state: &State) -> Result<Shard, LogError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let shard = Shard(table.next);
        let mut batch = WriteBatch::default();
        batch.put(NEXT_SHARD_KEY, (shard.0 + 1).to_be_bytes());
        batch.put(table_key(shard), row_bytes(&owner));
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        batch.put(state_key(shard), bytes);
        self.write_raw(batch, true)?;
        state.stream_time.inspect(|time| self.horizons.written(shard, *time));
        table.next = shard.0 + 1;
        table.rows.insert(shard, owner);
        Ok(shard)
    }

    /// Changes a table row and writes it; nobody else changes it in between. Returns the row;
    /// `None`: the shard was dropped in the meantime.
    ///
    /// # Errors
    /// As [`Store::write`]; then the row stays as it was.
    pub fn change_owner(
        &self,
        shard: Shard,
        change: impl FnOnce(&mut Owner),
    ) -> Result<Option<Owner>, LogError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut owner) = table.rows.get(&shard).cloned() else { return Ok(None) };
        change(&mut owner);
        let mut batch = WriteBatch::default();
        batch.put(table_key(shard), row_bytes(&owner));
        self.write_raw(batch, false)?;
        table.rows.insert(shard, owner.clone());
        Ok(Some(owner))
    }

    /// Forgets a shard: its row, its position and its entries, in one batch.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn drop_shard(&self, shard: Shard) -> Result<(), LogError> {
        self.drop_shard_if(shard, |_| true).map(|_| ())
    }

    /// Forgets a shard where its row is as asked; whoever takes the partition at the same moment
    /// sees either the whole shard or none. Returns whether it was dropped.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn drop_shard_if(
        &self,
        shard: Shard,
        is: impl FnOnce(&Owner) -> bool,
    ) -> Result<bool, LogError> {
        let _none = self.flushing();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if !table.rows.get(&shard).is_some_and(is) {
            return Ok(false);
        }
        let mut batch = WriteBatch::default();
        batch.delete(table_key(shard));
        batch.delete(state_key(shard));
        batch.delete_range(prefix(shard, ENTRY), prefix(shard, ENTRY + 1));
        self.write_raw(batch, true)?;
        self.young.write().unwrap_or_else(PoisonError::into_inner).forget(shard);
        table.rows.remove(&shard);
        self.horizons.forget(shard);
        Ok(true)
    }

    /// All shards of the directory, also of partitions that live elsewhere now.
    #[must_use]
    pub fn shards(&self) -> Vec<(Shard, Owner)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.rows.iter().map(|(shard, owner)| (*shard, owner.clone())).collect()
    }

    /// Looks all identities up and leaves in `found` what the log holds for each, in their order.
    /// Entries may be expired.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for bytes that are no entry; a read that fails poisons the log.
    pub fn lookup(
        &self,
        shard: Shard,
        identities: &[Identity],
        scratch: &mut LookupScratch,
        found: &mut Vec<Option<Entry>>,
    ) -> Result<(), LogError> {
        found.clear();
        if identities.is_empty() {
            return Ok(());
        }
        found.resize(identities.len(), None);
        self.sieve.pass(identities, &mut scratch.order);
        {
            // Before RocksDB: what is young is newer, and goes there, never back.
            let young = self.young.read().unwrap_or_else(PoisonError::into_inner);
            scratch.order.retain(|place| {
                let index = *place as usize;
                found[index] = young.entry(shard, &identities[index]);
                found[index].is_none()
            });
        }
        if scratch.order.is_empty() {
            return Ok(());
        }
        scratch.sort(shard, identities);
        let family = self.db.cf_handle(FAMILY).expect("the log is opened with its column family");
        let values = self.db.batched_multi_get_cf(&family, &scratch.keys, true);
        for (place, value) in scratch.order.iter().zip(values) {
            let value = value.map_err(|error| self.poison("read", error))?;
            let Some(bytes) = value else { continue };
            let index = *place as usize;
            let entry = Entry::decode(&bytes);
            found[index] = Some(entry.ok_or_else(|| corrupt(shard, "entry", &identities[index]))?);
        }
        Ok(())
    }

    /// Writes a batch, all or nothing, and leaves it empty. A logged one goes into RocksDB's
    /// write-ahead log, unsynced: it survives the process; a power cut may take it. The others stay
    /// in memory until the next flush.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] passes; anything else poisons the log.
    pub fn write(&self, batch: &mut Batch) -> Result<(), LogError> {
        self.check()?;
        let logged = batch.logged();
        if !logged {
            self.make_room(batch.entries.len())?;
        } else if self.is_hidden(batch) {
            self.flush()?;
        }
        let writing = self.sieve.writing();
        batch.entries.iter().for_each(|(_, identity, _)| writing.add(identity));
        if logged {
            self.write_logged(batch)?;
        } else {
            self.young.write().unwrap_or_else(PoisonError::into_inner).add(batch);
        }
        drop(writing);
        for (shard, state) in batch.states.drain(..) {
            state.stream_time.inspect(|time| self.horizons.written(shard, *time));
        }
        if fault::bug(Bug::FilterAheadOfFlush) {
            self.publish_all_horizons()?;
        }
        Ok(())
    }

    /// Young entries of these shards would hide what is written past them, and replace it with the
    /// next flush.
    fn is_hidden(&self, batch: &Batch) -> bool {
        let young = self.young.read().unwrap_or_else(PoisonError::into_inner);
        batch.states.iter().any(|(shard, _)| young.state(*shard).is_some())
    }

    fn write_logged(&self, batch: &mut Batch) -> Result<(), LogError> {
        // In order, neighbours meet a warm cache in the memtable. Stable: of two changes to one
        // entry the later counts.
        batch.entries.sort_by_key(|(shard, identity, _)| (*shard, identity.0));
        let mut raw = WriteBatch::default();
        let mut bytes = Vec::with_capacity(ENTRY_BYTES_MAX);
        for (shard, identity, entry) in batch.entries.drain(..) {
            bytes.clear();
            entry.encode(&mut bytes);
            raw.put(entry_key(shard, &identity), &bytes);
        }
        for (shard, state) in &batch.states {
            bytes.clear();
            state.encode(&mut bytes);
            raw.put(state_key(*shard), &bytes);
        }
        self.write_raw(raw, false)
    }

    /// # Errors
    /// An earlier call failed, on whatever thread: the log takes nothing more.
    pub fn check(&self) -> Result<(), LogError> {
        self.poisoned.get().map_or(Ok(()), |first| Err(LogError::after(first)))
    }

    fn write_raw(&self, batch: WriteBatch, sync: bool) -> Result<(), LogError> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(|error| self.poison("write", error))
    }

    /// Rewrites the shards of which a quarter of the window has expired since the last time.
    /// Returns how many were rewritten. May take long; readers and writers go on.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn compact_expired(&self) -> Result<usize, LogError> {
        let mut compacted = 0;
        for (shard, owner) in self.shards() {
            if !self.horizons.due(shard, millis(owner.ttl) / 4) {
                continue;
            }
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            self.db.compact_range_opt(
                Some(prefix(shard, ENTRY)),
                Some(prefix(shard, ENTRY + 1)),
                &options,
            );
            compacted += 1;
        }
        Ok(compacted)
    }

    /// Entries in memory, and those on disk as RocksDB estimates them; expired ones count until they
    /// are compacted away.
    #[must_use]
    pub fn entries_estimate(&self) -> u64 {
        let young = self.young.read().unwrap_or_else(PoisonError::into_inner).len() as u64;
        young + self.property("rocksdb.estimate-num-keys")
    }

    /// Bytes of the table files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.property("rocksdb.total-sst-files-size")
    }

    /// Whether something is being flushed or compacted at this moment.
    #[must_use]
    pub fn compacting(&self) -> bool {
        // Not "compaction-pending": here it may stay at 1 with nothing to do.
        const WORK: [&str; 2] = ["rocksdb.num-running-flushes", "rocksdb.num-running-compactions"];
        WORK.iter().any(|name| self.property(name) > 0)
    }

    /// Entries that compaction has dropped since the log was opened.
    #[must_use]
    pub fn expired_total(&self) -> u64 {
        self.horizons.dropped()
    }

    fn property(&self, name: &str) -> u64 {
        self.db.property_int_value(name).ok().flatten().unwrap_or(0)
    }

    fn state(&self, shard: Shard) -> Result<Option<State>, LogError> {
        let young = self.young.read().unwrap_or_else(PoisonError::into_inner).state(shard);
        if young.is_some() {
            return Ok(young);
        }
        let bytes = self.db.get(state_key(shard)).map_err(|error| self.poison("read", error))?;
        bytes
            .map(|bytes| State::decode(&bytes).ok_or_else(|| corrupt(shard, "state", &"position")))
            .transpose()
    }

    fn publish_all_horizons(&self) -> Result<(), LogError> {
        for (shard, _) in self.shards() {
            if let Some(stream_time) = self.state(shard)?.and_then(|state| state.stream_time) {
                self.horizons.written(shard, stream_time);
            }
        }
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.horizons.publish(&self.horizons.written_so_far(), &table.rows);
        Ok(())
    }

    fn poison(&self, action: &'static str, error: rocksdb::Error) -> LogError {
        // The first one counts: what fails after a full disk fails because of it.
        let first = self.poisoned.get_or_init(|| error.clone());
        if full(first) { LogError::after(first) } else { LogError::of(action, error) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // After an orderly end nothing has to be read again. A failure was told where it happened.
        let _ = self.flush();
        self.db.cancel_all_background_work(true);
    }
}

/// Buffers of a look-up, kept between calls.
#[derive(Debug, Default)]
pub struct LookupScratch {
    order: Vec<u32>,
    keys: Vec<[u8; ENTRY_KEY_BYTES]>,
}

impl LookupScratch {
    fn sort(&mut self, shard: Shard, identities: &[Identity]) {
        self.order.sort_unstable_by_key(|place| identities[*place as usize].0);
        self.keys.clear();
        self.keys
            .extend(self.order.iter().map(|place| entry_key(shard, &identities[*place as usize])));
    }
}

fn row_bytes(owner: &Owner) -> Vec<u8> {
    serde_json::to_vec(owner).expect("a row of plain fields has a JSON form")
}

fn corrupt(shard: Shard, what: &str, which: &dyn std::fmt::Display) -> LogError {
    LogError::Corrupt { what: format!("{what} {which} of shard {}", shard.0) }
}

#[cfg(test)]
mod tests;
