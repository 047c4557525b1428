//! The kafka handler: what an output looks like, where it goes, and what is passed on once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, DaemonBuilder, Kafka, Message, OwnedRecord, payments, unique};
use crate::harness::{wait_until, wait_until_eq};
use crate::scene::{
    SOON, counts, daemon_with, expect_verdicts, keyed, numbered, set, verdicts, wait_caught_up,
};

/// A dead member is noticed after three seconds, and what it left open is aborted as soon.
pub const QUICK: &str = "\"session.timeout.ms\" = 3000\n\"heartbeat.interval.ms\" = 300\n\"transaction.timeout.ms\" = 3000";

const ROUTE: &str = r#"
[routes.pass]
topics = ["{input}"]
dead_letter.topic = "{dead}"
handler = { kind = "kafka", topic = "{output}", partition = "same" }
"#;

/// An input, an output and a dead-letter topic of one group.
pub struct Stage<'a> {
    pub kafka: &'a Kafka,
    pub input: String,
    pub output: String,
    pub dead: String,
    pub group: String,
}

impl<'a> Stage<'a> {
    pub fn new(kafka: &'a Kafka, name: &str, partitions: i32) -> Self {
        let topic = |kind| kafka.topic(&format!("{name}-{kind}"));
        Self {
            kafka,
            input: topic("in").partitions(partitions).create(),
            output: topic("out").partitions(partitions).create(),
            dead: topic("dead").create(),
            group: unique(name),
        }
    }

    pub fn daemon(&self) -> DaemonBuilder {
        self.daemon_with(QUICK, ROUTE)
    }

    pub fn daemon_with(&self, properties: &str, route: &str) -> DaemonBuilder {
        let builder = daemon_with(properties, &self.group, route)
            .on(self.kafka)
            .fill("input", &self.input)
            .fill("output", &self.output)
            .fill("dead", &self.dead);
        set(builder, "kafka.transaction_interval=50ms")
    }

    pub fn produce(&self, messages: impl IntoIterator<Item = Message>) {
        self.kafka.produce(&self.input, messages);
    }

    pub fn outputs(&self) -> Vec<OwnedRecord> {
        self.kafka.read_all(&self.output)
    }

    /// How many records were written to the output, whatever became of their transaction.
    pub fn written(&self) -> i64 {
        let partitions = 0..self.kafka.partitions(&self.output);
        partitions.map(|partition| self.kafka.end_offset(&self.output, partition)).sum()
    }

    /// The group has committed the end of every input partition.
    #[track_caller]
    pub fn wait_committed(&self) {
        for partition in 0..self.kafka.partitions(&self.input) {
            let end = self.kafka.end_offset(&self.input, partition);
            let what = format!("the end of {}/{partition} is committed", self.input);
            wait_until_eq(&what, SOON, end, || {
                self.kafka.committed_offset(&self.group, &self.input, partition).unwrap_or(0)
            });
        }
    }

    /// A reader of committed records sees each message once, and each partition in its order.
    #[track_caller]
    pub fn expect_each_once(&self, distinct: usize) {
        let outputs = self.outputs();
        let seen = counts(outputs.iter().map(key));
        let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
        assert_eq!(doubled, [], "no message is passed on twice; {} outputs", outputs.len());
        assert_eq!(seen.len(), distinct, "no message is lost");
        for pair in outputs.windows(2) {
            let ((before, at), (after, next)) = (source(&pair[0]), source(&pair[1]));
            assert!(before != after || at < next, "{at} before {next} in {before}");
        }
    }
}

fn key(output: &OwnedRecord) -> String {
    output.header("Idempotency-Key").expect("an output keeps its headers")
}

/// The partition and the offset that an output says it comes from.
pub fn source(output: &OwnedRecord) -> (String, i64) {
    let source = output.header("onced-source").expect("an output says where it comes from");
    let (partition, offset) = source.rsplit_once('/').expect("topic/partition/offset");
    (partition.to_owned(), offset.parse().expect("a number"))
}

/// One more setting of the client.
pub fn property(builder: DaemonBuilder, name: &str, value: &str) -> DaemonBuilder {
    set(builder, &format!("kafka.properties.\"{name}\"={value}"))
}

#[test]
fn an_output_is_its_record_with_two_headers_more() {
    let Some(kafka) = Kafka::shared_or_skip("an_output_is_its_record_with_two_headers_more") else {
        return;
    };
    let stage = Stage::new(kafka, "kept", 3);
    let an_hour_ago = clock_ms() - 3_600_000;
    let base = |number: i32| Message {
        partition: Some(number % 3),
        timestamp: Some(an_hour_ago + i64::from(number)),
        ..Message::new(format!("payload {number}"))
    };
    let input = [
        base(0).key("foobar").header("a", "1").header("a", "2").idempotency_key("k0"),
        base(1).null_header(b"\xff\xfe".to_vec()).header("", "nameless").idempotency_key("k1"),
        Message { key: Some(Vec::new()), payload: Some(Vec::new()), ..base(2) },
        Message { payload: None, ..base(3).key("tombstone").idempotency_key("k3") },
        base(4).header("onced-source", "x/0/1").header("onced-identity", "00").header("b", "3"),
        base(5).key(b"\x00\xff".to_vec()).header("onced-source", "y").idempotency_key("k5"),
    ];
    stage.produce(input.clone());
    let mut onced = stage.daemon().start();
    onced.wait_ready();
    let outputs = kafka.read_at_least(&stage.output, input.len(), SOON);
    assert_eq!(outputs.len(), input.len());
    for message in &input {
        let output = outputs
            .iter()
            .find(|output| output.timestamp == message.timestamp)
            .expect("an output keeps the timestamp of its record");
        assert_eq!((&output.key, &output.payload), (&message.key, &message.payload));
        assert_eq!(Some(output.partition), message.partition, "partition = \"same\"");
        let ours: [&[u8]; 2] = [b"onced-source", b"onced-identity"];
        let kept: Vec<_> =
            message.headers.iter().filter(|(name, _)| !ours.contains(&&**name)).collect();
        let got: Vec<_> = output.headers.iter().take(kept.len()).collect();
        assert_eq!(got, kept, "an output keeps all headers, in order");
        let gained: Vec<_> = output.headers[kept.len()..].iter().map(|(name, _)| &**name).collect();
        let identified = message.headers.iter().any(|(name, _)| name == b"Idempotency-Key");
        assert_eq!(gained, ours[..1 + usize::from(identified)], "once each");
        assert!(source(output).0.starts_with(&stage.input), "{:?}", source(output));
        if identified {
            assert_eq!(output.header("onced-identity").map(|hex| hex.len()), Some(32));
        }
    }
}

fn clock_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("it is after 1970").as_millis()).expect("it is before 2262")
}

#[test]
fn keys_go_where_other_clients_put_them() {
    let Some(kafka) = Kafka::shared_or_skip("keys_go_where_other_clients_put_them") else { return };
    /// What Java's client computes: `Utils.murmur2` of the key.
    const MURMUR2: [(&str, i32); 5] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("abc", 479_470_107),
    ];
    /// CRC-32 as zip has it.
    const CRC32: [(&str, u32); 3] =
        [("foobar", 0x9ef6_1f95), ("abc", 0x3524_41c2), ("123456789", 0xcbf4_3926)];
    let route = "[routes.pass]\ntopics = [\"{input}\"]\nhandler = { kind = \"kafka\", topic = \"{output}\" }\n";
    for partitioner in ["murmur2", "crc32"] {
        let mut stage = Stage::new(kafka, "place", 1);
        stage.output = kafka.topic("place-out").partitions(7).create();
        let expected: Vec<(&str, i32)> = match partitioner {
            "murmur2" => MURMUR2.iter().map(|(key, hash)| (*key, (hash & i32::MAX) % 7)).collect(),
            _ => CRC32
                .iter()
                .map(|(key, hash)| (*key, i32::try_from(hash % 7).expect("small")))
                .collect(),
        };
        stage.produce(expected.iter().map(|(key, _)| Message::new("x").key(*key)));
        let builder = stage.daemon_with(QUICK, route);
        let setting = format!("routes.pass.handler.partitioner={partitioner}");
        let mut onced = set(builder, &setting).start();
        onced.wait_ready();
        let outputs = kafka.read_at_least(&stage.output, expected.len(), SOON);
        for (key, partition) in expected {
            let output = outputs.iter().find(|output| output.key_text().as_deref() == Some(key));
            let found = output.expect("every record is passed on").partition;
            assert_eq!(found, partition, "{key} by {partitioner}");
        }
    }
}

#[test]
fn duplicates_and_conflicts_are_seen_in_and_across_transactions_and_restarts() {
    let name = "duplicates_and_conflicts_are_seen_in_and_across_transactions_and_restarts";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let stage = Stage::new(kafka, "again", 1);
    let conflict = || Message::new(r#"{"id":"other"}"#).key("kept").idempotency_key("a");
    stage.produce([keyed("a"), keyed("a"), keyed("b"), conflict(), keyed("a")]);
    let mut onced = stage.daemon().start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 2), ("duplicate", 2), ("conflict", 1)]);
    stage.produce([keyed("b"), keyed("c"), conflict()]);
    expect_verdicts(&onced, &[("fresh", 3), ("duplicate", 3), ("conflict", 2)]);
    wait_caught_up(kafka, &onced, &stage.group, &stage.input);
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    stage.produce([keyed("a"), keyed("c"), keyed("d")]);
    onced.start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 1), ("duplicate", 2)]);
    wait_caught_up(kafka, &onced, &stage.group, &stage.input);
    onced.kill();
    stage.produce([keyed("d"), conflict(), keyed("e")]);
    onced.start();
    stage.wait_committed();
    stage.expect_each_once(5);

    let letters = kafka.read_all(&stage.dead);
    let sources: Vec<_> =
        letters.iter().map(|letter| letter.header("onced-dead-letter-source")).collect();
    let at = |offset: i64| Some(format!("{}/0/{offset}", stage.input));
    assert_eq!(sources, [at(3), at(7), at(12)], "a letter for each conflict, once");
    assert_eq!(letters[0].header("onced-dead-letter-reason").as_deref(), Some("conflict"));
    assert_eq!(letters[0].payload, conflict().payload);
    let transactions = onced.metrics();
    assert!(transactions.value("onced_transactions_total", &[("result", "committed")]) >= 1.0);
    assert_eq!(transactions.value("onced_transactions_total", &[("result", "aborted")]), 0.0);
}

#[test]
fn a_record_without_identity_is_what_the_policy_says() {
    let Some(kafka) = Kafka::shared_or_skip("a_record_without_identity_is_what_the_policy_says")
    else {
        return;
    };
    let input = || [keyed("a"), Message::new("{}"), keyed("b")];
    let stage = Stage::new(kafka, "letter", 1);
    stage.produce(input());
    let mut onced = set(stage.daemon(), "routes.pass.identity.missing=dead-letter").start();
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(2);
    let letters = kafka.read_all(&stage.dead);
    let reasons: Vec<_> = letters.iter().map(|l| l.header("onced-dead-letter-reason")).collect();
    assert_eq!(reasons, [Some("missing-identity".to_owned())]);

    let stage = Stage::new(kafka, "fail", 1);
    stage.produce(input());
    let mut onced = set(stage.daemon(), "routes.pass.identity.missing=fail").start();
    for _ in 0..2 {
        assert_eq!(onced.wait_exit(SOON).code(), Some(1), "{}", onced.stderr());
        assert!(onced.stderr().contains(&format!("{}/0/1", stage.input)), "it names the record");
        assert_eq!(kafka.committed_offset(&stage.group, &stage.input, 0), Some(1));
        // What is before it was passed on; what is behind it was not.
        stage.expect_each_once(1);
        onced.start();
    }
}

#[test]
fn without_a_dead_letter_topic_a_route_pauses_as_a_whole() {
    let Some(kafka) =
        Kafka::shared_or_skip("without_a_dead_letter_topic_a_route_pauses_as_a_whole")
    else {
        return;
    };
    let stage = Stage::new(kafka, "pause", 2);
    let route = "[routes.pass]\ntopics = [\"{input}\"]\nhandler = { kind = \"kafka\", topic = \"{output}\", partition = \"same\" }\n";
    let mut onced = stage.daemon_with(QUICK, route).start();
    onced.wait_ready();
    let conflict = Message::new("other").idempotency_key("a");
    let left = [keyed("a"), keyed("b"), conflict, keyed("behind")];
    stage.produce(left.map(|message| message.partition(0)));
    wait_until("it is not ready, and says why", SOON, || {
        let reply = onced.get("/readyz").ok()?;
        let says = reply.body.contains("dead_letter.topic") && reply.body.contains("/0/2");
        (reply.status == 503 && says).then_some(())
    });
    wait_until_eq("what is before it is committed", SOON, Some(2), || {
        kafka.committed_offset(&stage.group, &stage.input, 0)
    });
    stage.produce((0..20).map(|number| keyed(&format!("right-{number}")).partition(1)));
    let received = || onced.metrics().value("onced_lag_records", &[("topic", &stage.input)]);
    wait_until("the daemon sees them", SOON, || received() >= 22.0);
    // A restart pauses there again.
    onced.kill();
    onced.start();
    wait_until("it pauses again", SOON, || onced.stderr().matches("The route pauses").count() == 2);
    let outputs = stage.outputs();
    let left: Vec<_> = outputs.iter().filter(|at| at.partition == 0).map(key).collect();
    assert_eq!(left, ["a", "b"], "nothing behind the conflict");
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    assert_eq!(kafka.committed_offset(&stage.group, &stage.input, 0), Some(2));
}

#[test]
fn a_stop_commits_what_was_collected_and_a_restart_repeats_nothing() {
    let name = "a_stop_commits_what_was_collected_and_a_restart_repeats_nothing";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let stage = Stage::new(kafka, "stop", 2);
    let mut onced = set(stage.daemon(), "kafka.transaction_interval=1h").start();
    onced.wait_ready();
    stage.produce(numbered(0..500));
    wait_until("all is read", SOON, || {
        let body = onced.get("/status").map(|reply| reply.body).unwrap_or_default();
        onced.metrics().value("onced_lag_records", &[("topic", &stage.input)]) >= 500.0
            && body.contains("\"open_records\"")
    });
    let asked = Instant::now();
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    let passed = stage.outputs().len();
    let committed: i64 =
        (0..2).map(|at| kafka.committed_offset(&stage.group, &stage.input, at).unwrap_or(0)).sum();
    assert_eq!(passed as i64, committed, "what was collected was committed");
    drop(onced);

    let mut onced = stage.daemon().start();
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(500);
    assert!(!verdicts(&onced).contains_key("duplicate"), "{:?}", verdicts(&onced));
}

#[test]
fn the_lag_reaches_zero_where_the_input_ends_in_aborted_records() {
    let name = "the_lag_reaches_zero_where_the_input_ends_in_aborted_records";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let stage = Stage::new(kafka, "aborted", 1);
    let mut onced = stage.daemon().start();
    kafka.begin(&stage.input, numbered(0..10)).commit();
    kafka.begin(&stage.input, numbered(5..20)).abort();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &stage.group, &stage.input);
    stage.expect_each_once(10);
    kafka.begin(&stage.input, numbered(20..30)).abort();
    wait_caught_up(kafka, &onced, &stage.group, &stage.input);
    onced.kill();
    onced.start();
    wait_caught_up(kafka, &onced, &stage.group, &stage.input);
    stage.expect_each_once(10);
}

#[test]
fn a_record_that_is_too_large_becomes_a_letter_and_its_neighbours_pass() {
    let name = "a_record_that_is_too_large_becomes_a_letter_and_its_neighbours_pass";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    for dead_takes in ["1048588", "30000"] {
        let mut stage = Stage::new(kafka, "large", 2);
        let small = [("max.message.bytes", "30000")];
        kafka.configure_topic(&stage.output, &small);
        stage.dead = kafka.topic("large-dead").config("max.message.bytes", dead_takes).create();
        let large = |key: &str| {
            let payload: Vec<u8> = (0..60_000).map(|_| fastrand::u8(..)).collect();
            Message { payload: Some(payload), ..keyed(key) }.key("k")
        };
        let first = large("large-1");
        let mut input: Vec<_> = numbered(0..300).collect();
        input[150] = first.clone();
        input[151] = large("large-2");
        input[299] = large("large-3");
        // Duplicates of what was refused were not handled before either.
        input.push(first.clone());
        stage.produce(input.into_iter().map(|message| message.partition(0)));
        stage.produce(numbered(300..400).map(|message| message.partition(1)));
        let mut onced = stage.daemon().start();
        onced.wait_ready();
        stage.wait_committed();
        stage.expect_each_once(397);
        let letters = kafka.read_all(&stage.dead);
        let of = |header: &str| letters.iter().map(|l| l.header(header)).collect::<Vec<_>>();
        assert_eq!(of("onced-dead-letter-reason"), vec![Some("too-large".to_owned()); 4]);
        let at = |offset: i64| Some(format!("{}/0/{offset}", stage.input));
        assert_eq!(of("onced-dead-letter-source"), [150, 151, 299, 300].map(at));
        let truncated = dead_takes == "30000";
        assert_eq!(of("onced-dead-letter-truncated")[0].is_some(), truncated);
        assert_eq!(letters[0].payload.is_none(), truncated, "with its payload where that fits");
        wait_until_eq("it is ready again", SOON, true, || onced.ready());
        assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    }
}

#[test]
fn batches_are_smaller_than_what_the_topics_take() {
    let Some(kafka) = Kafka::shared_or_skip("batches_are_smaller_than_what_the_topics_take") else {
        return;
    };
    let stage = Stage::new(kafka, "batches", 1);
    kafka.configure_topic(&stage.output, &[("max.message.bytes", "5000")]);
    let input = payments(20_000, 0.1, 5);
    let distinct = usize::try_from(input.distinct()).expect("a count");
    stage.produce(input);
    let mut onced = property(stage.daemon(), "transaction.timeout.ms", "30000").start();
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(distinct);
    let aborted = onced.metrics().value("onced_transactions_total", &[("result", "aborted")]);
    assert_eq!(aborted, 0.0, "no batch was refused");
}

#[test]
fn large_records_that_wait_for_room_are_not_passed_over() {
    let Some(kafka) = Kafka::shared_or_skip("large_records_that_wait_for_room_are_not_passed_over")
    else {
        return;
    };
    // More bytes than a transaction holds, and no more records behind them.
    let stage = Stage::new(kafka, "parked", 1);
    let record = |number: usize| {
        let mut message = keyed(&number.to_string());
        message.payload = Some(vec![b'x'; 200_000]);
        message
    };
    stage.produce((0..150).map(record));
    let mut onced = stage.daemon().start();
    onced.wait_ready();
    stage.wait_committed();
    stage.expect_each_once(150);
    assert!(!verdicts(&onced).contains_key("replayed"), "{:?}", verdicts(&onced));
}

#[test]
fn an_output_topic_that_cannot_be_used_is_named_at_the_start() {
    let Some(kafka) =
        Kafka::shared_or_skip("an_output_topic_that_cannot_be_used_is_named_at_the_start")
    else {
        return;
    };
    let mut stage = Stage::new(kafka, "unusable", 3);
    stage.output = unique("missing");
    let mut onced = stage.daemon().start();
    assert_eq!(onced.wait_exit(SOON).code(), Some(1));
    assert!(onced.stderr().contains(&stage.output), "{}", onced.stderr());

    stage.output = kafka.topic("narrow").partitions(2).create();
    let mut onced = stage.daemon().start();
    assert_eq!(onced.wait_exit(SOON).code(), Some(1));
    let stderr = onced.stderr();
    for part in [&*stage.output, &*stage.input, "3 partitions", "only 2", "\"same\""] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    assert_eq!(kafka.committed_offset(&stage.group, &stage.input, 0), None, "nothing was begun");
}

#[test]
fn an_output_topic_that_goes_and_comes_back_costs_nothing() {
    let Some(kafka) =
        Kafka::shared_or_skip("an_output_topic_that_goes_and_comes_back_costs_nothing")
    else {
        return;
    };
    let stage = Stage::new(kafka, "gone", 1);
    stage.produce(numbered(0..50));
    let mut onced = stage.daemon().start();
    onced.wait_ready();
    stage.wait_committed();
    kafka.delete_topic(&stage.output);
    stage.produce(numbered(40..100));
    wait_until("it is not ready", SOON, || !onced.ready());
    kafka.create_topic(&stage.output, 1, &[]);
    stage.wait_committed();
    stage.expect_each_once(50);
    wait_until_eq("it is ready again", SOON, true, || onced.ready());
}

#[test]
fn what_was_not_flushed_is_absorbed_and_no_log_is_written_ahead() {
    const RECORDS: usize = 5_000;
    let name = "what_was_not_flushed_is_absorbed_and_no_log_is_written_ahead";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let stage = Stage::new(kafka, "flush", 1);
    let mut onced = set(stage.daemon(), "log.flush_interval=1h").start();
    onced.wait_ready();
    stage.produce(numbered(0..RECORDS));
    stage.wait_committed();
    let ahead = bytes_of(&onced.data_dir(), ".log");
    assert!(ahead < 10_000, "{ahead} bytes were written ahead: rows of shards alone are");
    let committed: BTreeSet<_> = stage.outputs().iter().map(key).collect();
    onced.kill();
    stage.produce(numbered(RECORDS - 100..RECORDS + 100));
    onced.start();
    onced.wait_ready();
    let absorbed = RECORDS as u64;
    expect_verdicts(&onced, &[("absorbed", absorbed), ("duplicate", 100), ("fresh", 100)]);
    stage.wait_committed();
    stage.expect_each_once(RECORDS + 100);
    assert_eq!(committed.len(), RECORDS);
    // A clean stop flushes: nothing is absorbed after it.
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    stage.produce(numbered(0..10));
    onced.start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("duplicate", 10)]);
}

/// The size of all files with this ending, in all folders below.
fn bytes_of(dir: &Path, ending: &str) -> u64 {
    let entries = fs::read_dir(dir).expect("the folder can be read").flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_of(&entry.path(), ending),
        Ok(about) if entry.path().to_string_lossy().ends_with(ending) => about.len(),
        _ => 0,
    };
    entries.map(size).sum()
}

/// The daemon's own view: how many partitions it owns.
pub fn owned(daemon: &Daemon) -> usize {
    daemon.get("/status").map_or(0, |reply| reply.body.matches("\"open_records\"").count())
}
