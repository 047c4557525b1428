//! What is certainly not in the log: one filter over all of it, in memory.
//!
//! Nearly every look-up is for a new key. RocksDB answers it with a filter for each table file, at
//! a cache miss or more each; this one answers at one cache miss for all files together. It only
//! spares look-ups: where there is none, or it says "perhaps", RocksDB is asked.
//!
//! Constraint: whoever writes entries holds [`Sieve::writing`] from before they are added until
//! RocksDB has them. So a filter that is built from what the log holds misses none: what was
//! written before building began is found there, and what is written later is added.
//!
//! A filter learns and never forgets. It is built anew when it has learnt twice what the log held,
//! without what has expired meanwhile.
//!
//! The filter is a split block Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and
//! Space-Efficient Bloom Filters): a key has all its bits in one cache line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rocksdb::ReadOptions;

use super::keys::{ENTRY, identity_of, prefix};
use super::{LogError, Store};
use crate::dedup::shard::Shard;
use crate::identity::Identity;

/// Keys that are read at once to build a filter: some tenths of a second.
const SIFT_KEYS: usize = 1 << 20;
const SIFT_READAHEAD: usize = 1 << 20;

/// One key in a hundred that is not there is looked up nevertheless, when the filter is full.
const BITS_A_KEY: u64 = 10;
/// A smaller filter is not worth building twice.
const ROOM_MIN: u64 = 1 << 20;

/// The filter in use, and the next one.
pub(super) struct Sieve {
    filters: RwLock<Filters>,
    /// Keys that the log held when it was last read: estimates may be far too low.
    held: AtomicU64,
    /// Bytes that a filter may take.
    limit: usize,
}

#[derive(Default)]
struct Filters {
    /// Knows every entry of the log.
    complete: Option<Filter>,
    /// Knows every entry that was written since it was begun, and of those before as many as were
    /// read.
    building: Option<Filter>,
}

/// Entries are being written, and no filter is begun or taken into use meanwhile. Whoever holds it
/// asks the sieve nothing else: a second lock would wait behind a thread that waits for this one.
pub(super) struct Writing<'a>(RwLockReadGuard<'a, Filters>);

impl Sieve {
    pub(super) fn new(limit: usize) -> Self {
        Self { filters: RwLock::default(), held: AtomicU64::new(0), limit }
    }

    /// Leaves in `places` which of these may be in the log.
    pub(super) fn pass(&self, identities: &[Identity], places: &mut Vec<u32>) {
        places.clear();
        let all = 0..u32::try_from(identities.len()).expect("a batch has a bound");
        match &self.read().complete {
            None => places.extend(all),
            Some(filter) => {
                places.extend(all.filter(|place| filter.may_hold(&identities[*place as usize])));
            }
        }
    }

    /// To be held while entries are added here and written to the log.
    pub(super) fn writing(&self) -> Writing<'_> {
        Writing(self.read())
    }

    /// Whether a filter is to be built: there is none, or it has learnt all that it has room for.
    pub(super) fn due(&self) -> bool {
        let filters = self.read();
        let full = |filter: &Filter| filter.added.load(Ordering::Relaxed) > filter.room;
        filters.building.is_none() && filters.complete.as_ref().is_none_or(full)
    }

    /// A new filter learns from now on. `keys`: about how many the log holds.
    pub(super) fn begin(&self, keys: u64) {
        // Made before anybody has to wait for it.
        let keys = keys.max(self.held.swap(0, Ordering::Relaxed));
        let filter = Filter::new(keys.saturating_mul(2).max(ROOM_MIN), self.limit);
        self.write().building = Some(filter);
    }

    /// What the new filter has to know of the time before it was begun.
    pub(super) fn learn(&self, identities: impl Iterator<Item = Identity>) {
        if let Some(filter) = &self.read().building {
            identities.for_each(|identity| filter.add(&identity));
        }
    }

    /// The new filter has learnt all.
    pub(super) fn finish(&self) {
        let mut filters = self.write();
        if let Some(filter) = filters.building.take() {
            // Whatever is freed here is freed after the lock.
            let old = filters.complete.replace(filter);
            drop(filters);
            drop(old);
        }
    }

    /// What the filters take.
    pub(super) fn bytes(&self) -> usize {
        let Filters { complete, building } = &*self.read();
        let blocks = complete.iter().chain(building).map(|filter| filter.blocks.len());
        blocks.sum::<usize>() * size_of::<Block>()
    }

    fn read(&self) -> RwLockReadGuard<'_, Filters> {
        self.filters.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Filters> {
        self.filters.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing<'_> {
    /// An entry that is about to be written.
    pub(super) fn add(&self, identity: &Identity) {
        let Filters { complete, building } = &*self.0;
        complete.iter().chain(building).for_each(|filter| filter.add(identity));
    }
}

impl Store {
    /// Goes on building the filter that spares look-ups, where it is due; reads a bounded number of
    /// entries. Returns whether there is more to do.
    ///
    /// # Errors
    /// A read that fails poisons the log.
    pub fn sift(&self) -> Result<bool, LogError> {
        self.sift_some(SIFT_KEYS)
    }

    /// Returns the key from which entries are to be read.
    pub(super) fn begin_sieve(&self) -> Vec<u8> {
        self.sieve.begin(self.entries_estimate());
        self.share_memory();
        // Each entry of before is young now, or RocksDB has it before it is read there. The locks
        // are those of a write in the other order: only this thread, which holds `sifted`, ever asks
        // for all of the sieve.
        let young = self.young.read().unwrap_or_else(PoisonError::into_inner);
        self.sieve.learn(young.identities());
        prefix(Shard(1), ENTRY).to_vec()
    }

    pub(super) fn sift_some(&self, keys: usize) -> Result<bool, LogError> {
        let mut next = self.sifted.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_empty() {
            if !self.sieve.due() {
                return Ok(false);
            }
            *next = self.begin_sieve();
        }
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(SIFT_READAHEAD);
        let mut entries = self.db.raw_iterator_opt(options);
        entries.seek(&*next);
        let mut left = keys;
        while let Some(key) = entries.key() {
            if left == 0 {
                key.clone_into(&mut next);
                return Ok(true);
            }
            left -= 1;
            self.sieve.learn(identity_of(key).into_iter());
            self.sieve.held.fetch_add(1, Ordering::Relaxed);
            entries.next();
        }
        entries.status().map_err(|error| self.poison("read", error))?;
        self.sieve.finish();
        self.share_memory();
        next.clear();
        Ok(false)
    }
}

/// The bits of one cache line.
#[repr(align(64))]
#[derive(Default)]
struct Block([AtomicU64; 8]);

struct Filter {
    blocks: Box<[Block]>,
    /// For so many keys.
    room: u64,
    /// How often a key was added, those included that were there.
    added: AtomicU64,
}

impl Filter {
    fn new(room: u64, limit: usize) -> Self {
        let bytes = usize::try_from(room.saturating_mul(BITS_A_KEY) / 8).unwrap_or(usize::MAX);
        let blocks = (bytes.min(limit) / size_of::<Block>()).max(1);
        Self {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            room,
            added: AtomicU64::new(0),
        }
    }

    /// Its block and, in each word of it, its bit. An identity is a hash already.
    fn place(&self, identity: &Identity) -> (&Block, u64) {
        let [high, low] = halves(identity);
        let index = (u128::from(high) * self.blocks.len() as u128) >> 64;
        (&self.blocks[usize::try_from(index).expect("less than the number of blocks")], low)
    }

    fn add(&self, identity: &Identity) {
        let (block, bits) = self.place(identity);
        for (word, bit) in block.0.iter().zip(bit_of_each_word(bits)) {
            // Duplicates are rare, but many keys share a bit: a line that need not be written
            // stays with the other cores.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        self.added.fetch_add(1, Ordering::Relaxed);
    }

    fn may_hold(&self, identity: &Identity) -> bool {
        let (block, bits) = self.place(identity);
        let mut words = block.0.iter().zip(bit_of_each_word(bits));
        words.all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }
}

fn halves(identity: &Identity) -> [u64; 2] {
    let whole = u128::from_be_bytes(identity.0);
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    [(whole >> 64) as u64, whole as u64]
}

/// Six bits of the hash for each of the eight words.
fn bit_of_each_word(bits: u64) -> impl Iterator<Item = u64> {
    (0..8).map(move |word| 1 << ((bits >> (word * 6)) & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(number: u64) -> Identity {
        Identity(xxhash_rust::xxh3::xxh3_128(&number.to_be_bytes()).to_be_bytes())
    }

    fn passed(sieve: &Sieve, numbers: std::ops::Range<u64>) -> usize {
        let identities: Vec<_> = numbers.map(identity).collect();
        let mut places = Vec::new();
        sieve.pass(&identities, &mut places);
        places.len()
    }

    #[test]
    fn where_there_is_no_filter_everything_passes() {
        let sieve = Sieve::new(1 << 20);
        sieve.writing().add(&identity(0));
        assert_eq!(passed(&sieve, 0..100), 100);
        assert!(sieve.due());
        sieve.begin(0);
        assert!(!sieve.due());
        assert_eq!(passed(&sieve, 0..100), 100);
    }

    #[test]
    fn what_was_added_passes_and_of_the_rest_one_in_a_hundred() {
        const KEYS: u64 = ROOM_MIN;
        let sieve = Sieve::new(usize::MAX);
        sieve.begin(0);
        let half = KEYS / 2;
        sieve.learn((0..half).map(identity));
        let writing = sieve.writing();
        (half..KEYS).for_each(|number| writing.add(&identity(number)));
        drop(writing);
        sieve.finish();
        assert!(!sieve.due());
        assert_eq!(passed(&sieve, 0..KEYS), KEYS as usize);
        let wrong = passed(&sieve, KEYS..2 * KEYS) as f64 / KEYS as f64;
        assert!((0.001..0.02).contains(&wrong), "{wrong}");
        sieve.writing().add(&identity(KEYS));
        assert!(sieve.due(), "it has learnt all that it has room for");
    }

    #[test]
    fn what_is_added_while_a_filter_is_built_is_in_both() {
        let sieve = Sieve::new(1 << 20);
        sieve.begin(0);
        sieve.finish();
        sieve.begin(0);
        sieve.writing().add(&identity(7));
        assert_eq!(passed(&sieve, 7..8), 1);
        sieve.finish();
        assert_eq!(passed(&sieve, 7..8), 1);
        assert_eq!(passed(&sieve, 0..7), 0);
    }

    #[test]
    fn a_filter_that_is_too_small_passes_more_and_loses_nothing() {
        let sieve = Sieve::new(64);
        sieve.begin(1_000_000);
        sieve.learn((0..1_000).map(identity));
        sieve.finish();
        assert_eq!(passed(&sieve, 0..1_000), 1_000);
    }
}
