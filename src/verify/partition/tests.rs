//! The judge against the rules of the daemon itself: what a daemon without faults leaves behind
//! raises no alarm, and each fault does.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dedup::entry::Entry;
use crate::dedup::expiry::{Anchor, StreamClock, Window};
use crate::dedup::verdict::{self, Facts};
use crate::identity::{Check, Identity};
use crate::record::{Offset, Timestamp};
use crate::verify::outputs::{Letter, Output};

const TTL: i64 = 100;
const LATENESS: i64 = 20;
const NOW: i64 = 10_000;

/// A record, as a test thinks of it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    offset: i64,
    timestamp: Option<i64>,
    /// `None`: it has no key.
    key: Option<u8>,
    check: u32,
    /// The handler would reject it.
    rejected: bool,
}

/// What a daemon left behind.
#[derive(Clone, Debug, Default)]
struct Left {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    letters: Vec<Letter>,
    fates: Vec<Fate>,
}

fn rules(anchor: Anchor, conflict: OnConflict) -> Rules {
    Rules {
        ttl: TTL,
        lateness: LATENESS,
        anchor_last: anchor == Anchor::Last,
        missing_is_letter: false,
        conflict,
        outputs_known: true,
        strict_window: false,
    }
}

fn bounds(left: &Left) -> Bounds {
    let committed = left.inputs.last().map_or(0, |input| input.offset + 1);
    Bounds {
        topic: "t".to_owned(),
        committed,
        committed_later: committed,
        latest: NOW,
        ..Bounds::default()
    }
}

fn key(of: u8) -> Key {
    *blake3::hash(&[of]).as_bytes().first_chunk().unwrap()
}

fn input(sent: &Sent) -> Input {
    let digest = u32::try_from(sent.offset).unwrap() * 2;
    Input {
        offset: sent.offset,
        timestamp: sent.timestamp,
        key: sent.key.map(key),
        check: sent.check,
        digests: Digests { undated: digest, dated: digest + 1 },
    }
}

fn output(input: &Input, at: usize) -> Output {
    let flags = Output::DATED | if input.key.is_none() { Output::NO_IDENTITY } else { 0 };
    Output {
        source: input.offset,
        partition: u16::try_from(at % 3).unwrap(),
        offset: i64::try_from(at).unwrap(),
        identity: input.key.map_or(0, |key| u64::from(key[0]) << 8 | u64::from(key[1])),
        digest: input.digests.dated,
        flags,
    }
}

fn letter(input: &Input, reason: &str) -> Letter {
    let digest = input.digests.undated;
    Letter { source: input.offset, reason: reason.into(), digest, ..Letter::default() }
}

/// A daemon without faults, by the rules of its own code.
fn run(sent: &[Sent], anchor: Anchor, conflict: OnConflict) -> Left {
    let ms = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    let window = Window { ttl: ms(TTL), lateness: ms(LATENESS), skew: ms(0), anchor };
    let mut clock = StreamClock::at(None);
    let mut log: HashMap<u8, Entry> = HashMap::new();
    let mut left = Left::default();
    for record in sent {
        let input = input(record);
        // The wall is far behind what the verifier takes for the future, where it does not matter.
        let dated = clock.read(record.timestamp.map(Timestamp), Timestamp(NOW), &window);
        let facts = Facts {
            offset: Offset(record.offset),
            time: dated.time,
            identity: record.key.map(|key| Identity([key; 16])),
            check: Check(record.check),
        };
        let entry = record.key.and_then(|key| log.get(&key));
        let decided = verdict::decide(&facts, false, entry, &window);
        let at = left.outputs.len();
        let fate = match decided {
            verdict::Verdict::Fresh | verdict::Verdict::Unidentified if record.rejected => {
                left.letters.push(letter(&input, "rejected"));
                Fate::DeadLetter
            }
            verdict::Verdict::Fresh | verdict::Verdict::Unidentified => {
                left.outputs.push(output(&input, at));
                Fate::Handled
            }
            verdict::Verdict::Duplicate { .. } => Fate::Duplicate,
            verdict::Verdict::Conflict { .. } if conflict == OnConflict::Letter => {
                left.letters.push(letter(&input, "conflict"));
                Fate::DeadLetter
            }
            verdict::Verdict::Conflict { .. } => Fate::Conflict,
            other => panic!("{other:?} without a cause"),
        };
        if fate != Fate::DeadLetter
            && let Some(key) = record.key
            && let Some(after) = verdict::entry_after(&decided, &facts, &window)
        {
            log.insert(key, after);
        }
        left.inputs.push(input);
        left.fates.push(fate);
    }
    left
}

fn judge(rules: Rules, bounds: Bounds, left: &Left) -> Verdict {
    let of = OfPartition {
        outputs: left.outputs.clone(),
        letters: left.letters.clone(),
        ..OfPartition::default()
    };
    let mut of = of;
    of.outputs.sort_unstable();
    let mut partition = Partition::new(rules, bounds, of, 8);
    left.inputs.iter().for_each(|input| partition.input(input));
    partition.finish()
}

fn found(verdict: &Verdict) -> Vec<(Kind, u64)> {
    let violations = verdict.violations.iter().map(|(kind, count)| (*kind, *count));
    violations.filter(|(_, count)| *count > 0).collect()
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let record = (0..3_i64, -30..40_i64, prop::option::weighted(0.9, 0..6_u8), 0..8_u32, 0..10_u8);
    prop::collection::vec(record, 1..80).prop_map(|records| {
        let (mut offset, mut time) = (0, 1_000);
        let next = |(gap, step, key, check, luck): (i64, i64, Option<u8>, u32, u8)| {
            offset += gap + 1;
            time += step;
            // Mostly one payload for a key.
            let check = if check == 0 { 1 } else { 0 };
            Sent { offset, timestamp: Some(time), key, check, rejected: luck == 0 }
        };
        records.into_iter().map(next).collect()
    })
}

fn anchor() -> impl Strategy<Value = Anchor> {
    prop_oneof![Just(Anchor::First), Just(Anchor::Last)]
}

fn conflict() -> impl Strategy<Value = OnConflict> {
    prop_oneof![Just(OnConflict::Letter), Just(OnConflict::Suppress)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_daemon_without_faults_raises_no_alarm_and_every_fate_is_known(
        sent in sent(), anchor in anchor(), conflict in conflict(), strict: bool,
    ) {
        let left = run(&sent, anchor, conflict);
        let rules = Rules { strict_window: strict, ..rules(anchor, conflict) };
        let verdict = judge(rules, bounds(&left), &left);
        prop_assert_eq!(found(&verdict), [], "{:?}", verdict.examples);
        let mut counts = Counts::default();
        left.fates.iter().for_each(|fate| counts.count(*fate));
        let known = Counts {
            unidentified: verdict.counts.unidentified,
            untimed: 0,
            beyond_window: verdict.counts.beyond_window,
            outputs: left.outputs.len() as u64,
            letters: left.letters.len() as u64,
            ..counts
        };
        prop_assert_eq!(verdict.counts, known);
    }

    #[test]
    fn an_output_that_is_taken_away_is_missed(
        sent in sent(), anchor in anchor(), conflict in conflict(), which: prop::sample::Index,
    ) {
        let mut left = run(&sent, anchor, conflict);
        prop_assume!(!left.outputs.is_empty());
        left.outputs.remove(which.index(left.outputs.len()));
        let rules = Rules { strict_window: true, ..rules(anchor, conflict) };
        let verdict = judge(rules, bounds(&left), &left);
        let kinds = found(&verdict);
        let told = |kind: Kind| kinds.iter().any(|(found, _)| *found == kind);
        prop_assert!(told(Kind::Lost) || told(Kind::SuppressedTooLate), "{kinds:?}");
    }

    #[test]
    fn a_duplicate_that_is_passed_is_doubled(
        sent in sent(), anchor in anchor(), which: prop::sample::Index,
    ) {
        let mut left = run(&sent, anchor, OnConflict::Letter);
        let duplicates: Vec<usize> = (0..left.fates.len())
            .filter(|at| left.fates[*at] == Fate::Duplicate)
            .collect();
        prop_assume!(!duplicates.is_empty());
        let at = duplicates[which.index(duplicates.len())];
        let extra = output(&left.inputs[at], left.outputs.len());
        left.outputs.push(extra);
        let rules = Rules { strict_window: true, ..rules(anchor, OnConflict::Letter) };
        let kinds = found(&judge(rules, bounds(&left), &left));
        prop_assert!(kinds.iter().any(|(kind, _)| *kind == Kind::Doubled), "{kinds:?}");
    }

    #[test]
    fn a_log_that_is_rebuilt_raises_no_alarm(
        sent in sent(), conflict in conflict(), at: prop::sample::Index,
    ) {
        let left = run_with_rebuild(&sent, conflict, at.index(sent.len()));
        let verdict = judge(rules(Anchor::First, conflict), bounds(&left), &left);
        prop_assert_eq!(found(&verdict), [], "{:?}", verdict.examples);
    }
}

/// A daemon that loses its log before the record at `lost_at`, and absorbs what the window needs.
fn run_with_rebuild(sent: &[Sent], conflict: OnConflict, lost_at: usize) -> Left {
    let ms = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    let anchor = Anchor::First;
    let window = Window { ttl: ms(TTL), lateness: ms(LATENESS), skew: ms(0), anchor };
    let before = run(&sent[..lost_at], anchor, conflict);
    let mut clock = StreamClock::at(None);
    for record in &sent[..lost_at] {
        clock.read(record.timestamp.map(Timestamp), Timestamp(NOW), &window);
    }
    let horizon = clock.now().map(|now| now.0 - TTL - LATENESS);
    let from =
        sent[..lost_at].iter().position(|record| record.timestamp >= horizon).unwrap_or(lost_at);
    let mut log: HashMap<u8, Entry> = HashMap::new();
    let mut clock = StreamClock::at(None);
    let mut left = before.clone();
    left.inputs.truncate(from);
    left.fates.truncate(from);
    for (index, record) in sent.iter().enumerate().skip(from) {
        let dated = clock.read(record.timestamp.map(Timestamp), Timestamp(NOW), &window);
        let facts = Facts {
            offset: Offset(record.offset),
            time: dated.time,
            identity: record.key.map(|key| Identity([key; 16])),
            check: Check(record.check),
        };
        let input = input(record);
        let absorbed = index < lost_at;
        let lettered = absorbed && before.letters.iter().any(|l| l.source == record.offset);
        let entry = record.key.and_then(|key| log.get(&key));
        let decided = verdict::decide(&facts, lettered, entry, &window);
        let mut enters = true;
        if !absorbed {
            let at = left.outputs.len();
            match decided {
                verdict::Verdict::Fresh | verdict::Verdict::Unidentified if record.rejected => {
                    left.letters.push(letter(&input, "rejected"));
                    enters = false;
                }
                verdict::Verdict::Fresh | verdict::Verdict::Unidentified => {
                    left.outputs.push(output(&input, at));
                }
                verdict::Verdict::Conflict { .. } if conflict == OnConflict::Letter => {
                    left.letters.push(letter(&input, "conflict"));
                }
                _ => {}
            }
        }
        if enters
            && let Some(key) = record.key
            && let Some(after) = verdict::entry_after(&decided, &facts, &window)
        {
            log.insert(key, after);
        }
        left.inputs.push(input);
    }
    left
}

fn plain(offset: i64, key: u8, timestamp: i64) -> Sent {
    Sent { offset, timestamp: Some(timestamp), key: Some(key), check: 0, rejected: false }
}

#[test]
fn a_lost_record_is_told_once_however_often_it_comes() {
    let sent: Vec<_> = (0..5).map(|offset| plain(offset, 1, 1_000 + offset)).collect();
    let mut left = run(&sent, Anchor::First, OnConflict::Letter);
    left.outputs.clear();
    let verdict = judge(rules(Anchor::First, OnConflict::Letter), bounds(&left), &left);
    assert_eq!(found(&verdict), [(Kind::Lost, 1)]);
    assert_eq!((verdict.counts.lost, verdict.counts.duplicates), (1, 4));
}

#[test]
fn a_record_from_the_future_does_not_move_the_clock() {
    let mut sent = vec![plain(0, 1, 1_000), plain(1, 2, NOW + 1), plain(2, 1, 1_010)];
    sent.push(plain(3, 2, 1_010));
    let left = run(&sent, Anchor::First, OnConflict::Letter);
    let verdict = judge(rules(Anchor::First, OnConflict::Letter), bounds(&left), &left);
    assert_eq!(found(&verdict), []);
    // A daemon whose clock stood at 1,010 when it committed did not believe it either.
    let bounds = Bounds { latest: 2 * NOW, stream_time: Some(1_010), ..bounds(&left) };
    let verdict = judge(rules(Anchor::First, OnConflict::Letter), bounds, &left);
    assert_eq!((found(&verdict), verdict.counts.handled), (vec![], 2));
}

#[test]
fn records_without_a_timestamp_are_not_judged_by_time() {
    let undated = |offset| Sent { timestamp: None, ..plain(offset, 1, 0) };
    let mut left = run(&[undated(0), undated(1), undated(2)], Anchor::First, OnConflict::Letter);
    left.outputs.push(output(&left.inputs[2], 5));
    let verdict = judge(rules(Anchor::First, OnConflict::Letter), bounds(&left), &left);
    assert_eq!((found(&verdict), verdict.counts.handled), (vec![], 2));
}

#[test]
fn an_example_shows_what_is_around_it_and_around_what_it_refers_to() {
    let mut sent: Vec<_> = (0..50_u8).map(|key| plain(i64::from(key), key, 1_000)).collect();
    sent.push(plain(50, 3, 1_001));
    let mut left = run(&sent, Anchor::First, OnConflict::Letter);
    left.outputs.push(output(&left.inputs[50], 50));
    let verdict = judge(rules(Anchor::First, OnConflict::Letter), bounds(&left), &left);
    assert_eq!(found(&verdict), [(Kind::Doubled, 1)]);
    let offsets: Vec<_> = verdict.examples[0].neighbours.iter().map(|n| n.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6, 7, 46, 47, 48, 49, 50]);
    let same: Vec<_> =
        verdict.examples[0].neighbours.iter().filter(|n| n.same_key).map(|n| n.offset).collect();
    assert_eq!(same, [3, 50]);
}

/// `cargo test --release --lib verify::partition::tests::ten_million -- --ignored --nocapture`
#[test]
#[ignore = "takes half a minute and most of a GB"]
fn ten_million_records_in_one_partition_fit_into_a_gigabyte() {
    const RECORDS: i64 = 10_000_000;
    // The worst case: no duplicate, and an output for each.
    let mut collector = super::super::outputs::Collector::new(
        [("t".into(), 0, usize::try_from(RECORDS).unwrap())].into_iter(),
        32,
    );
    let make = |offset: i64| {
        let hash = blake3::hash(&offset.to_le_bytes());
        let mut key = Key::default();
        key.copy_from_slice(&hash.as_bytes()[..16]);
        let identity = u64::from_le_bytes(*hash.as_bytes().last_chunk().unwrap());
        let digests = Digests { undated: 1, dated: 2 };
        let timestamp = Some(1_000 + offset / 1_000);
        (Input { offset, timestamp, key: Some(key), check: 0, digests }, identity)
    };
    let topic: std::sync::Arc<str> = "t".into();
    // As if read from three output partitions, one after the other.
    for partition in 0..3 {
        for offset in (0..RECORDS).filter(|offset| offset % 3 == partition) {
            let (input, identity) = make(offset);
            let mut output = output(&input, usize::try_from(offset).unwrap());
            output.identity = identity;
            collector.output(&topic, 0, output);
        }
        collector.end_partition(false);
    }
    let bounds = Bounds {
        topic: "t".to_owned(),
        committed: RECORDS,
        committed_later: RECORDS,
        latest: i64::MAX,
        ..Bounds::default()
    };
    let rules = Rules { ttl: 86_400_000, ..rules(Anchor::First, OnConflict::Letter) };
    let mut partition = Partition::new(rules, bounds, collector.take(&topic, 0), 32);
    (0..RECORDS).for_each(|offset| partition.input(&make(offset).0));
    let verdict = partition.finish();
    assert_eq!((found(&verdict), verdict.counts.handled), (vec![], RECORDS.unsigned_abs()));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak resident set: {} MiB", peak / 1024);
    assert!(peak < 1_000_000_000 / 1024, "{peak} kB");
}
