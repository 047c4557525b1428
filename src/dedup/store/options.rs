//! RocksDB's options, and the proof at every start that they are in effect.
//!
//! The load is: many look-ups, nearly all of them misses; as many inserts of random keys; no
//! scans. So Bloom filters decide the cost of a record, and universal compaction rewrites least.

use std::path::Path;
use std::sync::Arc;

use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompactionStyle, LogLevel, Options, UniversalCompactOptions,
    WriteBufferManager,
};

use super::LogError;
use super::filter::{ExpiryFilterFactory, Horizons, NAME};

/// 10 bits a key answer "absent" wrongly once in a hundred look-ups.
const BLOOM_BITS: f64 = 10.0;

/// Options of the log within this many bytes of memory, which the cache holds at most.
pub(super) fn database(memory: usize, cache: &Cache, horizons: &Arc<Horizons>) -> Options {
    let mut options = common(cache);
    options.create_if_missing(true);
    options.set_compaction_filter_factory(ExpiryFilterFactory(Arc::clone(horizons)));
    // Memtables are charged to the cache: one budget for both, at most a half for writes.
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        memory / 2,
        false,
        cache.clone(),
    ));
    options.set_write_buffer_size(write_buffer_bytes(memory));
    options.set_max_write_buffer_number(4);
    options.set_max_total_wal_size(memory as u64);
    options.set_max_background_jobs(2);
    options.set_max_open_files(512);
    options.set_wal_bytes_per_sync(1 << 20);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    options
}

/// Small: an insert into a skip list that fits into the processor's cache costs half.
pub(super) fn write_buffer_bytes(memory: usize) -> usize {
    (memory / 8).clamp(1 << 20, 8 << 20)
}

fn common(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(BLOOM_BITS, false);
    table.set_format_version(6);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut universal = UniversalCompactOptions::default();
    universal.set_max_merge_width(16);
    universal.set_min_merge_width(8);
    // Entries of a batch come sorted: with the place of the last one as a hint, the next is found
    // in half the comparisons. 5 bytes: the shard and the kind. There is no setter for it.
    let mut options = Options::default()
        .get_options_from_string("memtable_insert_with_hint_prefix_extractor=fixed:5")
        .expect("RocksDB knows this option");
    options.set_block_based_table_factory(&table);
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_level_zero_file_num_compaction_trigger(10);
    options.set_universal_compaction_options(&universal);
    // Misses must end at the filter of the last level too.
    options.set_optimize_filters_for_hits(false);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.1);
    options
}

/// Reads back what RocksDB says it runs with.
///
/// # Errors
/// [`LogError::SelfCheck`] names the option that is not as set.
pub(super) fn check_in_effect(db: &Path) -> Result<(), LogError> {
    let failed = |what: String| LogError::SelfCheck { what };
    let text = newest_options_file(db)
        .map_err(|error| failed(format!("cannot read the options back: {error}")))?;
    let factory = format!("compaction_filter_factory={}", NAME.to_string_lossy());
    for wanted in
        ["filter_policy=bloomfilter", "compaction_style=kCompactionStyleUniversal", &factory]
    {
        if !text.lines().any(|line| line.trim().starts_with(wanted)) {
            return Err(failed(format!("the option {wanted} is not in effect")));
        }
    }
    Ok(())
}

fn newest_options_file(db: &Path) -> std::io::Result<String> {
    let mut newest = None;
    for item in std::fs::read_dir(db)? {
        let path = item?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if name
            .as_deref()
            .is_some_and(|name| name.starts_with("OPTIONS-") && !name.ends_with("dbtmp"))
        {
            newest = newest.max(Some(path));
        }
    }
    let path = newest.ok_or_else(|| std::io::Error::other("there is no OPTIONS file"))?;
    std::fs::read_to_string(path)
}

/// Proves in a scratch database that a look-up of an absent key ends at the Bloom filter.
///
/// # Errors
/// [`LogError::SelfCheck`] where it does not; [`LogError::Failed`] where the scratch database
/// cannot be written.
pub(super) fn check_filters(scratch: &Path) -> Result<(), LogError> {
    let failed = |error| LogError::of("self-check", error);
    let mut options = common(&Cache::new_lru_cache(1 << 20));
    options.create_if_missing(true);
    options.enable_statistics();
    options.set_statistics_level(StatsLevel::ExceptTimers);
    // A rest of an earlier check that was killed would count as found.
    DB::destroy(&Options::default(), scratch).map_err(failed)?;
    {
        let db = DB::open(&options, scratch).map_err(failed)?;
        for n in 0..256u32 {
            db.put(probe_key(n), n.to_be_bytes()).map_err(failed)?;
        }
        db.flush().map_err(failed)?;
        for n in 256..512u32 {
            db.get_pinned(probe_key(n)).map_err(failed)?;
        }
    }
    let useful = options.get_ticker_count(Ticker::BloomFilterUseful);
    DB::destroy(&Options::default(), scratch).map_err(failed)?;
    if useful < 200 {
        let what = format!("the Bloom filter answered {useful} of 256 look-ups of absent keys");
        return Err(LogError::SelfCheck { what });
    }
    Ok(())
}

/// Spread over the key space, so that file bounds alone rule nothing out.
fn probe_key(n: u32) -> [u8; 8] {
    xxhash_rust::xxh3::xxh3_64(&n.to_be_bytes()).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_database_without_our_options_does_not_pass_the_self_check() {
        let dir = TempDir::new().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        drop(DB::open(&options, dir.path()).unwrap());
        let error = check_in_effect(dir.path()).unwrap_err();
        assert!(error.to_string().contains("filter_policy"), "{error}");
    }

    #[test]
    fn absent_keys_end_at_the_filter() {
        let dir = TempDir::new().unwrap();
        check_filters(&dir.path().join("probe")).unwrap();
    }
}
