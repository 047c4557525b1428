//! What the decision about one record costs, without I/O: identity and check, verdict, entry.
//!
//!     cargo bench --bench decide

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use onced::dedup::entry::Entry;
use onced::dedup::expiry::{Anchor, Window};
use onced::dedup::verdict::{Facts, decide, entry_after};
use onced::identity::{Canonical, Check, Config, Digest, Fingerprint, Identifier, Identity};
use onced::record::{Offset, Partition, Record, RecordBuilder, Timestamp};

/// About 200 bytes of JSON, members out of order, as a payment looks.
const PAYLOAD: &str = r#"{"type":"payment.captured","id":"pay-000000012345","amount":{"value":"129.90","currency":"EUR"},"customer":"c-90817","at":"2026-11-24T12:00:00.000Z","attempt":1,"meta":{"shop":"4711","ok":true}}"#;

fn record(payload: &[u8], key: Option<&[u8]>) -> Record {
    let headers = [(&b"Idempotency-Key"[..], key)];
    let headers = headers.into_iter().filter(|(_, value)| value.is_some());
    RecordBuilder::default().build(
        Partition::new("payments", 3),
        Offset(12_345),
        Some(Timestamp(1_767_225_600_000)),
        Some(b"c-90817"),
        Some(payload),
        headers,
    )
}

fn identity(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("identity");
    group.throughput(Throughput::Elements(1));
    let keyed = record(PAYLOAD.as_bytes(), Some(b"pay-000000012345"));
    let plain = Fingerprint { canonical: Canonical::Bytes, ..Fingerprint::default() };
    let cases = [
        ("header, canonical check", Config::default(), keyed.clone()),
        ("header, check of the bytes", Config { fingerprint: plain, ..Config::default() }, keyed),
        (
            "JSON pointer",
            Config { keys: vec!["json:/id".parse().expect("a key source")], ..Config::default() },
            record(PAYLOAD.as_bytes(), None),
        ),
        (
            "fingerprint, BLAKE3",
            Config {
                keys: vec!["fingerprint".parse().expect("a key source")],
                ..Config::default()
            },
            record(PAYLOAD.as_bytes(), None),
        ),
        (
            "fingerprint, XXH3",
            Config {
                keys: vec!["fingerprint".parse().expect("a key source")],
                digest: Digest::Xxh3,
                ..Config::default()
            },
            record(PAYLOAD.as_bytes(), None),
        ),
    ];
    for (name, config, record) in cases {
        let mut identifier = Identifier::new(config);
        assert!(identifier.identify(&record).identity.is_some(), "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| identifier.identify(black_box(&record)));
        });
    }
    group.finish();
}

/// The check of a payload is made of its canonical form.
fn canonical(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("canonical JSON");
    for items in [1_usize, 10, 100] {
        let payload = format!("[{}]", vec![PAYLOAD; items].join(","));
        group.throughput(Throughput::Bytes(payload.len() as u64));
        let record = record(payload.as_bytes(), Some(b"k"));
        let mut identifier = Identifier::new(Config::default());
        assert!(!identifier.identify(&record).undecodable);
        group.bench_function(format!("{} bytes", payload.len()), |bencher| {
            bencher.iter(|| identifier.identify(black_box(&record)));
        });
    }
    group.finish();
}

fn verdict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verdict");
    let window = Window {
        ttl: Duration::from_secs(86_400),
        lateness: Duration::from_secs(300),
        skew: Duration::from_secs(60),
        anchor: Anchor::First,
    };
    let facts = Facts {
        offset: Offset(1_000),
        time: Timestamp(1_767_225_600_000),
        identity: Some(Identity([7; 16])),
        check: Check(42),
    };
    let first = Entry { offset: Offset(900), time: facts.time, check: facts.check };
    for (name, entry) in [("fresh", None), ("duplicate", Some(first))] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let verdict = decide(black_box(&facts), false, black_box(entry.as_ref()), &window);
                entry_after(&verdict, &facts, &window)
            });
        });
    }
    group.finish();
}

fn entry(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    let entry = Entry {
        offset: Offset(1_234_567_890),
        time: Timestamp(1_767_225_600_000),
        check: Check(0xdead_beef),
    };
    group.bench_function("encode", |bencher| {
        bencher.iter_batched_ref(
            || Vec::with_capacity(32),
            |bytes| black_box(&entry).encode(bytes),
            BatchSize::SmallInput,
        );
    });
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    group.bench_function("decode", |bencher| bencher.iter(|| Entry::decode(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, identity, canonical, verdict, entry);
criterion_main!(benches);
