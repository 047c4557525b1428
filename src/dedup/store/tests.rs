use std::time::Duration;

use tempfile::TempDir;

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
    let mut batch = Batch::default();
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
