use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::keys::HEADER_KEY;
use super::*;
use crate::dedup::acts::Acts;
use crate::identity::Check;
use crate::record::{Offset, Timestamp};

pub(super) fn stamp() -> Stamp {
    Stamp { cluster_id: "cluster".to_owned(), group: "group".to_owned() }
}

pub(super) fn open(dir: &Path) -> Result<Store, LogError> {
    Store::open(&Config { dir: dir.to_owned(), memory: 16 << 20 }, &stamp())
}

pub(super) fn owner(topic: &str) -> Owner {
    Owner {
        topic: topic.to_owned(),
        topic_id: "id".to_owned(),
        partition: 3,
        partition_count: 4,
        definition: 1,
        ttl: Duration::from_secs(10),
        lateness: Duration::from_secs(1),
        acts: Acts::default(),
        owned_at_ms: 0,
    }
}

fn identity(n: u64) -> Identity {
    Identity(xxhash_rust::xxh3::xxh3_128(&n.to_be_bytes()).to_be_bytes())
}

fn entry(n: u64, time: i64) -> Entry {
    Entry { offset: Offset(n as i64), time: Timestamp(time), check: Check(n as u32) }
}

pub(super) fn state(position: i64, stream_time: i64) -> State {
    State {
        position: Offset(position),
        stream_time: Some(Timestamp(stream_time)),
        ..State::default()
    }
}

fn fill(store: &Store, shard: Shard, numbers: std::ops::Range<u64>, time: i64) {
    fill_with(Batch::default(), store, shard, numbers, time);
}

fn fill_with(
    mut batch: Batch,
    store: &Store,
    shard: Shard,
    numbers: std::ops::Range<u64>,
    time: i64,
) {
    let end = numbers.end;
    for n in numbers {
        batch.put_entry(shard, &identity(n), &entry(n, time));
    }
    batch.put_state(shard, state(end as i64, time));
    store.write(&mut batch).unwrap();
}

fn lookup(store: &Store, shard: Shard, numbers: std::ops::Range<u64>) -> Vec<Option<Entry>> {
    let identities: Vec<_> = numbers.map(identity).collect();
    let mut found = Vec::new();
    store.lookup(shard, &identities, &mut LookupScratch::default(), &mut found).unwrap();
    found
}

#[test]
fn entries_and_position_come_back_after_reopening() {
    let dir = TempDir::new().unwrap();
    let shard = {
        let store = open(dir.path()).unwrap();
        let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
        fill(&store, shard, 0..100, 5000);
        shard
    };
    let store = open(dir.path()).unwrap();
    let (found, row, at) = store.shard(&Partition::new("t", 3)).unwrap().unwrap();
    assert_eq!((found, row, at), (shard, owner("t"), state(100, 5000)));
    let found = lookup(&store, shard, 0..200);
    for (n, found) in found.into_iter().enumerate() {
        assert_eq!(found, (n < 100).then(|| entry(n as u64, 5000)), "identity {n}");
    }
}

#[test]
fn shards_do_not_see_each_other_and_numbers_are_not_reused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let a = store.create_shard(owner("a"), &state(0, 0)).unwrap();
    let b = store.create_shard(owner("b"), &state(0, 0)).unwrap();
    fill(&store, a, 0..10, 1);
    assert!(lookup(&store, b, 0..10).iter().all(Option::is_none));
    store.drop_shard(b).unwrap();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert!(store.shard(&Partition::new("b", 3)).unwrap().is_none());
    let c = store.create_shard(owner("b"), &state(0, 0)).unwrap();
    assert!(c > b);
    assert!(lookup(&store, a, 0..10).iter().all(Option::is_some));
}

#[test]
fn a_row_is_changed_in_place_and_never_comes_back_after_the_shard_was_dropped() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("a"), &state(0, 0)).unwrap();
    let changed = store.change_owner(shard, |owner| owner.owned_at_ms = 7).unwrap().unwrap();
    assert_eq!(changed, Owner { owned_at_ms: 7, ..owner("a") });
    assert!(!store.drop_shard_if(shard, |owner| owner.owned_at_ms == 0).unwrap());
    assert!(store.drop_shard_if(shard, |owner| owner.owned_at_ms == 7).unwrap());
    assert_eq!(store.change_owner(shard, |owner| owner.owned_at_ms = 8).unwrap(), None);
    drop(store);
    assert_eq!(open(dir.path()).unwrap().shards(), []);
}

#[test]
fn a_dropped_shard_leaves_no_entries() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("a"), &state(0, 0)).unwrap();
    fill(&store, shard, 0..10, 1);
    store.drop_shard(shard).unwrap();
    assert!(lookup(&store, shard, 0..10).iter().all(Option::is_none));
}

#[test]
fn expired_entries_leave_the_disk_and_live_ones_stay() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
    fill(&store, shard, 0..20_000, 1_000);
    store.flush().unwrap();
    let full = store.bytes();
    // Written, but not flushed: the filter must not use this stream time yet.
    fill(&store, shard, 20_000..20_100, 1_000 + 11_000);
    assert_eq!(store.compact_expired().unwrap(), 0);
    assert!(lookup(&store, shard, 0..100).iter().all(Option::is_some));
    store.flush().unwrap();
    assert_eq!(store.compact_expired().unwrap(), 1);
    assert!(lookup(&store, shard, 0..20_000).iter().all(Option::is_none));
    assert!(lookup(&store, shard, 20_000..20_100).iter().all(Option::is_some));
    assert!(store.bytes() * 10 < full, "{} bytes of {full} are left", store.bytes());
}

#[test]
fn what_is_young_is_found_and_a_flush_makes_it_durable_with_its_position() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shards = ["a", "b"].map(|topic| store.create_shard(owner(topic), &state(0, 0)).unwrap());
    let position =
        |store: &Store, topic| store.shard(&Partition::new(topic, 3)).unwrap().unwrap().2.position;
    let all = |store: &Store, shard, numbers: std::ops::Range<u64>| {
        let found = lookup(store, shard, numbers.clone());
        numbers.zip(found).all(|(n, found)| found == Some(entry(n, 1)))
    };
    for (shard, numbers) in shards.into_iter().zip([0..100, 100..200]) {
        fill_with(Batch::unlogged(), &store, shard, numbers, 1);
    }
    assert!(all(&store, shards[0], 0..100) && all(&store, shards[1], 100..200));
    assert!(lookup(&store, shards[0], 100..200).iter().all(Option::is_none));
    assert_eq!((position(&store, "a"), position(&store, "b")), (Offset(100), Offset(200)));
    store.flush().unwrap();
    // After a crash this is gone again, with its position.
    fill_with(Batch::unlogged(), &store, shards[0], 200..300, 1);
    assert!(all(&store, shards[0], 200..300));
    let copy = TempDir::new().unwrap();
    copy_of(&dir.path().join("db"), &copy.path().join("db"));

    let crashed = open(copy.path()).unwrap();
    assert!(all(&crashed, shards[0], 0..100) && all(&crashed, shards[1], 100..200));
    assert_eq!(position(&crashed, "a"), Offset(100));
    assert!(lookup(&crashed, shards[0], 200..300).iter().all(Option::is_none));

    // An orderly end keeps everything.
    drop(store);
    let store = open(dir.path()).unwrap();
    assert!(all(&store, shards[0], 0..100) && all(&store, shards[0], 200..300));
    assert_eq!(position(&store, "a"), Offset(300));
}

/// As a disk is found after a crash: files are only added, and those that are there stay.
fn copy_of(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        std::fs::copy(item.path(), to.join(item.file_name())).unwrap();
    }
}

#[test]
fn a_logged_write_is_newer_than_what_was_young_before() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
    fill_with(Batch::unlogged(), &store, shard, 0..10, 1);
    fill(&store, shard, 0..5, 2);
    let check = |store: &Store| {
        assert_eq!(lookup(store, shard, 4..6), [Some(entry(4, 2)), Some(entry(5, 1))]);
        let (_, _, state) = store.shard(&Partition::new("t", 3)).unwrap().unwrap();
        assert_eq!(state.position, Offset(5));
    };
    check(&store);
    store.flush().unwrap();
    check(&store);
    drop(store);
    check(&open(dir.path()).unwrap());
}

#[test]
fn a_dropped_shard_leaves_nothing_young() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let [a, b] = ["a", "b"].map(|topic| store.create_shard(owner(topic), &state(0, 0)).unwrap());
    fill_with(Batch::unlogged(), &store, a, 0..10, 1);
    fill_with(Batch::unlogged(), &store, b, 0..10, 1);
    store.drop_shard(a).unwrap();
    store.flush().unwrap();
    assert!(lookup(&store, a, 0..10).iter().all(Option::is_none));
    assert!(lookup(&store, b, 0..10).iter().all(Option::is_some));
    assert_eq!(store.shards().len(), 1);
    drop(store);
    let store = open(dir.path()).unwrap();
    assert!(lookup(&store, a, 0..10).iter().all(Option::is_none));
}

#[test]
fn a_table_that_is_full_goes_to_disk_by_itself() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
    let mut end = 0;
    while store.bytes() == 0 {
        fill_with(Batch::unlogged(), &store, shard, end..end + 1_000, 1);
        end += 1_000;
        assert!(end < 1_000_000, "memory is bounded");
    }
    assert!(lookup(&store, shard, 0..end).iter().all(Option::is_some));
}

#[test]
fn whatever_filter_is_built_meanwhile_every_entry_is_found() {
    const BATCH: u64 = 50;
    const BATCHES: u64 = 100;
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for batch in 0..BATCHES {
                let kind = if batch % 3 == 0 { Batch::default() } else { Batch::unlogged() };
                fill_with(kind, &store, shard, batch * BATCH..(batch + 1) * BATCH, 1);
                let found = lookup(&store, shard, 0..(batch + 1) * BATCH);
                assert!(found.iter().all(Option::is_some), "batch {batch}");
            }
        });
        while !writer.is_finished() {
            // As if the one before were full.
            *store.sifted.lock().unwrap() = store.begin_sieve();
            while store.sift_some(500).unwrap() {}
        }
    });
    assert!(lookup(&store, shard, 0..BATCHES * BATCH).iter().all(Option::is_some));
    let mut passed = Vec::new();
    store.sieve.pass(&(10_000..20_000).map(identity).collect::<Vec<_>>(), &mut passed);
    assert!(passed.len() < 100, "{} of 10,000 new keys are looked up", passed.len());
    drop(store);

    let store = open(dir.path()).unwrap();
    assert!(lookup(&store, shard, 0..BATCHES * BATCH).iter().all(Option::is_some));
    while store.sift_some(1_000).unwrap() {}
    assert!(lookup(&store, shard, 0..BATCHES * BATCH).iter().all(Option::is_some));
    assert!(lookup(&store, shard, 10_000..10_100).iter().all(Option::is_none));
}

#[test]
fn a_directory_of_another_group_or_cluster_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    let config = Config { dir: dir.path().to_owned(), memory: 16 << 20 };
    for stamp in [
        Stamp { group: "other".to_owned(), ..stamp() },
        Stamp { cluster_id: "other".to_owned(), ..stamp() },
    ] {
        let error = Store::open(&config, &stamp).err().unwrap();
        assert!(matches!(error, LogError::Foreign { .. }), "{error}");
    }
    open(dir.path()).unwrap();
}

#[test]
fn a_newer_format_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let newer = r#"{"format":2,"cluster_id":"cluster","group":"group","directory_id":"d"}"#;
    store.db.put(HEADER_KEY, newer).unwrap();
    drop(store);
    assert!(matches!(open(dir.path()).err(), Some(LogError::Format { found: 2, .. })));
}

#[test]
fn a_second_user_of_the_directory_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let _first = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()).err(), Some(LogError::Locked { .. })));
}

#[test]
fn bytes_that_are_no_entry_are_an_error_and_not_a_verdict() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let shard = store.create_shard(owner("t"), &state(0, 0)).unwrap();
    store.db.put(entry_key(shard, &identity(1)), b"\xff").unwrap();
    let mut found = Vec::new();
    let result = store.lookup(shard, &[identity(1)], &mut LookupScratch::default(), &mut found);
    assert!(matches!(result, Err(LogError::Corrupt { .. })));
}
