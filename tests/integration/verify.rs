//! `onced verify`: what was done wrong by hand is found, and where nothing is wrong it says nothing.
//!
//! No daemon runs here: inputs, outputs, letters and offsets are what each test says they are.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Daemon, Kafka, Message, onced, unique, wait_until};

const TTL_MS: i64 = 60_000;
const T0: i64 = 1_700_000_000_000;

/// One route as a daemon would have left it behind.
struct Scene<'a> {
    kafka: &'a Kafka,
    input: String,
    output: String,
    letters: String,
    group: String,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
    dead: Vec<Message>,
    /// `None`: the end.
    committed: Option<i64>,
    high_water: Option<i64>,
    acts: String,
}

struct Verified {
    code: Option<i32>,
    json: Value,
    said: String,
}

impl Verified {
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&output.stdout);
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { code: output.status.code(), json, said: format!("{text}\n{said}") }
    }

    /// This number of violations of these kinds, and none of another.
    #[track_caller]
    fn found(&self, expected: &[(&str, u64)]) -> &Self {
        let violations = self.json["violations"].as_object().expect(&self.said);
        let found: Vec<_> = violations
            .iter()
            .map(|(kind, count)| (kind.as_str(), count.as_u64().expect("a number")))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(found, expected, "{}", self.said);
        let ok = expected.is_empty();
        assert_eq!(self.json["ok"], ok, "{}", self.said);
        assert_eq!(self.code, Some(if ok { 0 } else { 6 }), "{}", self.said);
        for (kind, _) in expected {
            let shown = self.json["examples"].as_array().expect("a list");
            assert!(shown.iter().any(|example| example["kind"] == *kind), "{}", self.said);
        }
        self
    }

    /// A number of the first partition.
    #[track_caller]
    fn counts(&self, expected: &[(&str, u64)]) -> &Self {
        for (name, count) in expected {
            assert_eq!(self.json["partitions"][0][name], *count, "{name} in {}", self.said);
        }
        self
    }

    #[track_caller]
    fn example(&self, words: &[&str]) -> &Self {
        let shown = self.json["examples"].as_array().expect(&self.said);
        let fits = |example: &Value| {
            let detail = example["detail"].as_str().unwrap_or_default();
            words.iter().all(|word| detail.contains(word))
        };
        assert!(shown.iter().any(fits), "no example with {words:?} in {}", self.said);
        self
    }
}

/// A record of a key, so much after the first.
fn record(key: &str, payload: &str, after_ms: i64) -> Message {
    Message::new(payload).idempotency_key(key).timestamp(T0 + after_ms)
}

fn identity(key: &str) -> String {
    let mut hash = DefaultHasher::new();
    key.hash(&mut hash);
    format!("{:016x}{:016x}", hash.finish(), 7)
}

impl<'a> Scene<'a> {
    fn new(kafka: &'a Kafka) -> Self {
        Self {
            kafka,
            input: kafka.topic("verify-in").create(),
            output: kafka.topic("verify-out").partitions(2).create(),
            letters: kafka.topic("verify-dead").create(),
            group: unique("verify"),
            inputs: Vec::new(),
            outputs: Vec::new(),
            dead: Vec::new(),
            committed: None,
            high_water: None,
            acts: "g=0".to_owned(),
        }
    }

    /// What a daemon makes of an input: its output.
    fn output_of(&self, offset: usize) -> Message {
        let input = self.inputs[offset].clone();
        let key = input.headers.iter().find(|(name, _)| name == b"Idempotency-Key");
        let key = key.and_then(|(_, key)| key.as_deref());
        let identity = key.map(|key| identity(&String::from_utf8_lossy(key)));
        let output = input.partition(0).header("onced-source", self.source(offset));
        match identity {
            Some(identity) => output.header("onced-identity", identity),
            None => output,
        }
    }

    fn source(&self, offset: usize) -> String {
        format!("{}/0/{offset}", self.input)
    }

    fn letter_of(&self, offset: usize, reason: &str) -> Message {
        let put = |name: &str| format!("onced-dead-letter-{name}");
        Message { timestamp: None, ..self.inputs[offset].clone() }
            .header(put("reason"), reason)
            .header(put("source"), self.source(offset))
            .header(put("group"), format!("{}/id/0", self.group))
    }

    /// Adds a record, and its output.
    fn handled(&mut self, record: Message) -> usize {
        let offset = self.suppressed(record);
        let output = self.output_of(offset);
        self.outputs.push(output);
        offset
    }

    /// Adds a record alone.
    fn suppressed(&mut self, record: Message) -> usize {
        self.inputs.push(record);
        self.inputs.len() - 1
    }

    /// Adds a record, and its letter.
    fn dead_lettered(&mut self, record: Message, reason: &str) -> usize {
        let offset = self.suppressed(record);
        let letter = self.letter_of(offset, reason);
        self.dead.push(letter);
        offset
    }

    fn produce(&self) {
        self.kafka.produce(&self.input, self.inputs.clone());
        self.kafka.produce(&self.output, self.outputs.clone());
        self.kafka.produce(&self.letters, self.dead.clone());
    }

    fn commit(&self) {
        let end = i64::try_from(self.inputs.len()).expect("a few");
        let metadata = format!("onced1 d=0 t=id n=1 {}", self.acts);
        let committed = self.committed.unwrap_or(end);
        self.kafka.set_offset(&self.group, &self.input, 0, committed, &metadata);
        let group = format!("{}.onced", self.group);
        let high_water = self.high_water.unwrap_or(committed);
        self.kafka.set_offset(&group, &self.input, 0, high_water, &metadata);
    }

    fn verify_with(&self, more: &[&str]) -> Verified {
        let set = [
            format!("kafka.brokers={}", self.kafka.bootstrap()),
            format!("kafka.group={}", self.group),
            format!("routes.r.topics={}", self.input),
            format!("routes.r.dead_letter.topic={}", self.letters),
            "routes.r.handler.kind=stdout".to_owned(),
            format!("routes.r.window.ttl={TTL_MS}ms"),
            "routes.r.window.lateness=1s".to_owned(),
        ];
        let mut arguments = vec!["verify", "--json", "--output", &self.output];
        arguments.extend(set.iter().flat_map(|set| ["--set", set]));
        arguments.extend(more);
        Verified::of(&onced(arguments))
    }

    fn verify(&self) -> Verified {
        self.produce();
        self.commit();
        self.verify_with(&[])
    }
}

/// Ten records that were handled, and their duplicates.
fn scene(kafka: &Kafka) -> Scene<'_> {
    let mut scene = Scene::new(kafka);
    for n in 0..10 {
        scene.handled(record(&format!("k{n}"), "{\"a\":1}", n * 10));
    }
    for n in 0..10 {
        scene.suppressed(record(&format!("k{n}"), "{ \"a\": 1.0 }", 1_000 + n));
    }
    scene
}

#[test]
fn where_nothing_is_wrong_verify_says_nothing_and_the_sum_is_exact() {
    let test = "where_nothing_is_wrong_verify_says_nothing_and_the_sum_is_exact";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let mut scene = scene(kafka);
    scene.dead_lettered(record("k1", "{\"a\":2}", 1_100), "conflict");
    scene.dead_lettered(record("late", "bad", 1_100), "rejected");
    scene.handled(record("late", "bad", 1_200));
    // Without a key, twice; with a key, as a tombstone; with a name that is not UTF-8.
    scene.handled(Message::new("x").timestamp(T0 + 1_300));
    scene.handled(Message::new("x").timestamp(T0 + 1_300).null_header("Idempotency-Key"));
    scene.handled(Message::tombstone(b"\xff\x00").timestamp(T0 + 1_400).idempotency_key("null"));
    let hostile =
        record("hostile", "\u{0}", 1_500).header(b"\xff\xfe".to_vec(), b"\x00\xff".to_vec());
    scene.handled(hostile.clone());
    scene.suppressed(hostile);
    scene.handled(record("k0", "{\"a\":1}", TTL_MS));
    // Its own headers of another onced are replaced.
    let chained = record("chained", "c", TTL_MS).header("x", "1");
    let offset = scene.suppressed(chained.clone().header("onced-source", "t/0/1"));
    let output = chained
        .partition(1)
        .header("onced-source", scene.source(offset))
        .header("onced-identity", identity("chained"));
    scene.outputs.push(output);
    // What others wrote to the output topic, and what was taken back.
    scene.outputs.push(Message::new("foreign"));
    scene.outputs.push(Message::new("foreign").header("onced-source", "other/0/5"));
    kafka.begin(&scene.output, [Message::new("aborted").partition(1)]).abort();

    let verified = scene.verify();
    verified.found(&[]).counts(&[
        ("records", 30),
        ("handled", 17),
        ("duplicates", 11),
        ("dead_lettered", 2),
        ("unidentified", 2),
        ("beyond_window", 1),
        ("outputs", 17),
        ("undecided", 0),
    ]);
    assert_eq!(verified.json["outputs"][0]["aborted"], 1);
    assert_eq!(verified.json["outputs"][0]["foreign"], 2);
    let table = onced_table(&scene);
    assert!(table.contains("no violation") && table.contains("30 records = 17 handled"), "{table}");
}

fn onced_table(scene: &Scene<'_>) -> String {
    let set = [
        format!("kafka.brokers={}", scene.kafka.bootstrap()),
        format!("kafka.group={}", scene.group),
        format!("routes.r.topics={}", scene.input),
        format!("routes.r.dead_letter.topic={}", scene.letters),
        "routes.r.handler.kind=stdout".to_owned(),
        format!("routes.r.window.ttl={TTL_MS}ms"),
    ];
    let arguments = ["verify", "--output", &scene.output].map(str::to_owned).into_iter();
    let set = set.into_iter().flat_map(|set| ["--set".to_owned(), set]);
    let output = onced(arguments.chain(set));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Changes a scene without faults, and verifies it.
#[track_caller]
fn check(
    test: &str,
    change: impl FnOnce(&mut Scene<'_>),
    expected: &[(&str, u64)],
    words: &[&str],
) {
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let mut scene = scene(kafka);
    change(&mut scene);
    scene.verify().found(expected).example(words);
}

#[test]
fn a_record_without_output_is_lost() {
    let change = |scene: &mut Scene<'_>| drop(scene.outputs.remove(4));
    check("lost", change, &[("lost", 1)], &["offset 4", "no output"]);
}

#[test]
fn neighbours_show_the_keys_as_clients_sent_them() {
    let Some(kafka) = Kafka::shared_or_skip("neighbours") else { return };
    let mut scene = scene(kafka);
    scene.outputs.remove(4);
    let verified = scene.verify();
    let neighbours = verified.json["examples"][0]["neighbours"].as_array().unwrap().clone();
    let seen: Vec<_> = neighbours
        .iter()
        .map(|n| (n["offset"].as_i64().unwrap(), n["client_key"].as_str().unwrap()))
        .collect();
    let expected = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"];
    assert_eq!(seen, (0..).zip(expected).collect::<Vec<_>>(), "{}", verified.said);
    assert_eq!(
        (&neighbours[4]["fate"], &neighbours[5]["fate"]),
        (&"lost".into(), &"handled".into())
    );
}

#[test]
fn a_record_with_two_outputs_is_doubled() {
    let change = |scene: &mut Scene<'_>| {
        let again = scene.output_of(9);
        scene.outputs.push(again);
    };
    check("doubled source", change, &[("doubled", 1)], &["offset 9 has 2 outputs"]);
}

#[test]
fn a_duplicate_with_an_output_is_doubled() {
    let change = |scene: &mut Scene<'_>| {
        // As its own fate was: the payload is spelled otherwise and means the same.
        let output = scene.output_of(13);
        scene.outputs.push(output);
    };
    check("doubled", change, &[("doubled", 1)], &["offset 13", "offset 3"]);
}

#[test]
fn an_output_before_its_predecessor_is_reordered() {
    let change = |scene: &mut Scene<'_>| scene.outputs.swap(3, 4);
    check("reordered", change, &[("reordered", 1)], &["came from offset 3", "from 4"]);
}

#[test]
fn an_output_at_the_committed_offset_is_of_a_torn_transaction() {
    let change = |scene: &mut Scene<'_>| {
        let offset = scene.handled(record("torn", "t", 2_000));
        scene.committed = Some(i64::try_from(offset).unwrap());
    };
    check("torn", change, &[("torn", 1)], &["the group's offset is 20"]);
}

#[test]
fn an_output_of_a_record_that_was_aborted_is_an_aborted_read() {
    let Some(kafka) = Kafka::shared_or_skip("aborted read") else { return };
    let mut scene = Scene::new(kafka);
    kafka.begin(&scene.input, [record("a", "aborted", 0)]).abort();
    // Behind the aborted record and the marker.
    scene.inputs = vec![record("a", "aborted", 0), Message::new("marker"), record("b", "b", 1)];
    scene.outputs = vec![scene.output_of(0), scene.output_of(2)];
    scene.committed = Some(3);
    kafka.produce(&scene.input, [scene.inputs[2].clone()]);
    kafka.produce(&scene.output, scene.outputs.clone());
    scene.commit();
    let verified = scene.verify_with(&[]);
    verified.found(&[("aborted_read", 1)]).example(&["names a record that no reader"]);
}

#[test]
fn a_transaction_that_does_not_end_hangs() {
    let Some(kafka) = Kafka::shared_or_skip("hanging") else { return };
    let scene = scene(kafka);
    let open = kafka.begin(&scene.output, [Message::new("open").partition(1)]);
    scene.produce();
    scene.commit();
    let verified = scene.verify_with(&["--patience", "2s"]);
    verified.found(&[("hanging", 1)]).example(&["did not end within"]);
    open.abort();
    scene.verify_with(&[]).found(&[]);
}

#[test]
fn a_transaction_that_ends_is_waited_for() {
    let Some(kafka) = Kafka::shared_or_skip("waited for") else { return };
    let mut scene = scene(kafka);
    let late = scene.outputs.pop().unwrap();
    let open = kafka.begin(&scene.output, [late]);
    scene.produce();
    scene.commit();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(2));
            open.commit();
        });
        // It came behind the others that are there.
        scene.verify_with(&[]).found(&[("reordered", 1)]);
    });
}

#[test]
fn an_output_that_differs_from_its_source_is_altered() {
    let changes: [fn(&mut Message); 6] = [
        |message| message.key = Some(b"k".to_vec()),
        |message| message.payload = Some(b"{ \"a\":1}".to_vec()),
        |message| message.payload = None,
        |message| message.timestamp = Some(T0),
        |message| message.headers.insert(0, (b"x".to_vec(), None)),
        |message| message.headers[0].1 = Some(b"K5".to_vec()),
    ];
    let Some(kafka) = Kafka::shared_or_skip("altered") else { return };
    let mut scene = scene(kafka);
    for (offset, change) in (3..).zip(changes) {
        change(&mut scene.outputs[offset]);
    }
    scene.verify().found(&[("altered", 6)]).example(&["differs from its source"]);
}

#[test]
fn keys_and_identities_belong_together_one_to_one() {
    let Some(kafka) = Kafka::shared_or_skip("identity") else { return };
    let mut scene = scene(kafka);
    let set = |message: &mut Message, value: &str| {
        message.headers.last_mut().unwrap().1 = Some(value.as_bytes().to_vec());
    };
    // Two keys with one identity; one that is none; one that is missing; one key with two.
    set(&mut scene.outputs[2], &identity("k1"));
    set(&mut scene.outputs[3], "xyz");
    scene.outputs[4].headers.pop();
    scene.handled(record("k5", "{\"a\":1}", TTL_MS + 1_000));
    set(scene.outputs.last_mut().unwrap(), &identity("another"));
    scene
        .verify()
        .found(&[("identity", 4)])
        .example(&["offsets 1 and 2 have different keys"])
        .example(&["offsets 5 and 20 have the same key"]);
}

#[test]
fn a_record_after_the_window_has_an_output_of_its_own() {
    let change = |scene: &mut Scene<'_>| {
        scene.suppressed(record("k2", "{\"a\":1}", 1_002 + TTL_MS));
    };
    let words = ["offset 2 of its key", "1m"];
    check("too late", change, &[("suppressed_too_late", 1)], &words);
}

#[test]
fn a_duplicate_of_a_duplicate_is_told_apart() {
    let Some(kafka) = Kafka::shared_or_skip("off phase") else { return };
    let mut scene = scene(kafka);
    // After the window of offset 2, and within that of its duplicate.
    scene.suppressed(record("k2", "{\"a\":1}", 20 + TTL_MS));
    scene.verify().found(&[]).counts(&[("off_phase", 1)]);
    scene.verify_with(&["--strict-window"]).found(&[("suppressed_too_late", 1)]);
}

#[test]
fn conflicts_follow_the_policy() {
    let change = |scene: &mut Scene<'_>| {
        scene.suppressed(record("k1", "other", 1_100));
        scene.handled(record("k2", "other", 1_100));
        scene.dead_lettered(record("k3", "{\"a\":1}", 1_100), "conflict");
    };
    let words = ["no letter says so"];
    check("conflicts", change, &[("conflicts", 3)], &words);
    let Some(kafka) = Kafka::shared_or_skip("conflicts") else { return };
    let mut scene = scene(kafka);
    scene.suppressed(record("k1", "other", 1_100));
    scene.produce();
    scene.commit();
    let suppress = ["--set", "routes.r.policy.conflict=suppress"];
    scene.verify_with(&suppress).found(&[]).counts(&[("conflicts", 1)]);
}

#[test]
fn a_letter_that_should_not_be_is_found() {
    let change = |scene: &mut Scene<'_>| {
        let both = scene.letter_of(0, "rejected");
        let twice = scene.dead_lettered(record("bad", "b", 1_100), "rejected");
        let duplicate = scene.letter_of(12, "exhausted");
        let keyless = scene.dead_lettered(record("key", "b", 1_100), "missing-identity");
        let again = scene.letter_of(twice, "rejected");
        assert_eq!(keyless, twice + 1);
        scene.dead.extend([both, duplicate, again]);
    };
    let words = ["a duplicate of offset 2"];
    check("letters", change, &[("letters", 4)], &words);
}

#[test]
fn letters_of_other_groups_and_topics_settle_nothing() {
    let Some(kafka) = Kafka::shared_or_skip("foreign letters") else { return };
    let mut scene = scene(kafka);
    let offset = scene.suppressed(record("bad", "b", 1_100));
    for group in ["other/id/0", &format!("{}/another-id/0", scene.group)] {
        let mut letter = scene.letter_of(offset, "rejected");
        letter.headers.last_mut().unwrap().1 = Some(group.as_bytes().to_vec());
        scene.dead.push(letter);
    }
    scene.verify().found(&[("lost", 1)]);
}

#[test]
fn what_was_skipped_is_not_lost_and_enters_nothing() {
    let Some(kafka) = Kafka::shared_or_skip("skips") else { return };
    let mut scene = scene(kafka);
    scene.suppressed(record("skipped", "s", 1_100));
    scene.suppressed(record("skipped too", "s", 1_100));
    scene.handled(record("skipped", "s", 1_200));
    scene.acts = "g=0 k=20-22".to_owned();
    scene.verify().found(&[]).counts(&[("skipped", 2), ("handled", 11)]);
    // The retry of a skipped record that was suppressed is lost, and one that was handled is told.
    scene.outputs = vec![scene.output_of(21)];
    scene.inputs.clear();
    scene.kafka.produce(&scene.output, scene.outputs.clone());
    scene.verify_with(&[]).found(&[("reordered", 1), ("skips", 1)]);
}

#[test]
fn an_offset_that_a_tool_moved_forward_is_a_skip() {
    let Some(kafka) = Kafka::shared_or_skip("tool") else { return };
    let mut scene = scene(kafka);
    scene.suppressed(record("skipped", "s", 1_100));
    scene.produce();
    scene.committed = Some(20);
    scene.commit();
    kafka.set_offsets(&scene.group, &scene.input, &[21]);
    scene.verify_with(&[]).found(&[]).counts(&[("skipped", 1)]);
    // And back: what was settled stays so.
    kafka.set_offsets(&scene.group, &scene.input, &[0]);
    scene.verify_with(&[]).found(&[]).counts(&[("records", 20)]);
}

#[test]
fn offsets_that_cannot_be_are_found() {
    let Some(kafka) = Kafka::shared_or_skip("offsets") else { return };
    let mut scene = scene(kafka);
    scene.high_water = Some(19);
    scene.verify().found(&[("offsets", 1)]).example(&["the high-water group at 19"]);
    scene.high_water = None;
    scene.committed = Some(21);
    scene.commit();
    scene.verify_with(&[]).found(&[("offsets", 1)]).example(&["the topic ends at 20"]);
    scene.committed = None;
    scene.commit();
    let companion = format!("{}.onced", scene.group);
    kafka.set_offset(&companion, &scene.input, 0, 20, "a tool");
    scene.verify_with(&[]).found(&[("offsets", 1)]).example(&["not committed by onced"]);
}

#[test]
fn what_retention_deleted_is_undecided() {
    let Some(kafka) = Kafka::shared_or_skip("retention") else { return };
    let mut scene = scene(kafka);
    scene.produce();
    scene.commit();
    // The duplicates are still there, what they are duplicates of is not.
    kafka.delete_records(&scene.input, 0, 5);
    scene.verify_with(&[]).found(&[]).counts(&[
        ("records", 15),
        ("undecided", 5),
        ("below_first", 5),
        ("handled", 5),
    ]);
    // Nor is what was put out for the first of them.
    scene.inputs = vec![record("k9", "other", 1_200)];
    kafka.produce(&scene.input, scene.inputs.clone());
    kafka.delete_records(&scene.output, 0, 8);
    scene.verify_with(&[]).found(&[]).counts(&[("handled", 2), ("undecided", 8)]);
}

#[test]
fn what_is_beyond_the_committed_offset_is_not_looked_at() {
    let Some(kafka) = Kafka::shared_or_skip("beyond") else { return };
    let mut scene = scene(kafka);
    scene.suppressed(record("not yet", "n", 1_100));
    scene.committed = Some(20);
    scene.verify().found(&[]).counts(&[("records", 20)]);
}

#[test]
fn a_rewound_group_repeats_on_purpose() {
    let Some(kafka) = Kafka::shared_or_skip("rewound") else { return };
    let mut scene = scene(kafka);
    let again: Vec<_> = (5..10).map(|offset| scene.output_of(offset)).collect();
    scene.outputs.extend(again);
    scene.acts = format!("g={T0}");
    scene.verify().found(&[]).counts(&[("rerun", 6), ("repeated", 5)]);
}

#[test]
fn without_an_output_topic_it_checks_what_is_left_and_says_so() {
    let Some(kafka) = Kafka::shared_or_skip("outside") else { return };
    let mut scene = scene(kafka);
    scene.outputs.clear();
    scene.suppressed(record("k1", "other", 1_100));
    scene.produce();
    scene.commit();
    let set = [
        format!("kafka.brokers={}", scene.kafka.bootstrap()),
        format!("kafka.group={}", scene.group),
        format!("routes.r.topics={}", scene.input),
        format!("routes.r.dead_letter.topic={}", scene.letters),
        "routes.r.handler.kind=stdout".to_owned(),
    ];
    let set = set.into_iter().flat_map(|set| ["--set".to_owned(), set]);
    let arguments = ["verify", "--json"].map(str::to_owned).into_iter();
    let verified = Verified::of(&onced(arguments.chain(set)));
    verified.found(&[("conflicts", 1)]).counts(&[("handled", 10), ("duplicates", 10)]);
    assert!(verified.said.contains("is not seen from here"), "{}", verified.said);
}

#[test]
fn what_cannot_be_looked_at_ends_with_1() {
    let Some(kafka) = Kafka::shared_or_skip("cannot look") else { return };
    let scene = Scene::new(kafka);
    scene.commit();
    let verified = scene.verify_with(&["--route", "other"]);
    assert_eq!(
        (verified.code, &verified.json["ok"]),
        (Some(1), &false.into()),
        "{}",
        verified.said
    );
    let mut scene = scene;
    scene.output = unique("no-such-topic");
    let verified = scene.verify_with(&[]);
    assert_eq!(verified.code, Some(1), "{}", verified.said);
    assert!(verified.json["error"].as_str().unwrap().contains("no topic"), "{}", verified.said);
}

const ROUTE: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
transaction_interval = "20ms"

[kafka.properties]
"session.timeout.ms" = 6000

[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "0B"

[admin]
listen = "{admin}"

[routes.payments]
topics = ["{topic}"]

[routes.payments.handler]
kind = "kafka"
topic = "{output}"

[routes.payments.dead_letter]
topic = "{letters}"
"#;

#[test]
fn a_daemon_that_runs_and_is_killed_passes_at_any_time() {
    let Some(kafka) = Kafka::shared_or_skip("a daemon") else { return };
    let topic = kafka.topic("verify-daemon").partitions(2).create();
    let output = kafka.topic("verify-daemon-out").partitions(2).create();
    let letters = kafka.topic("verify-daemon-dead").create();
    let group = unique("verify-daemon");
    let mut daemon = Daemon::with(ROUTE)
        .on(kafka)
        .fill("group", &group)
        .fill("topic", &topic)
        .fill("output", &output)
        .fill("letters", &letters)
        .start();
    let verify = |daemon: &Daemon| Verified::of(&daemon.run(["verify", "--json"]));
    // Every key thrice, and some of them with another payload.
    let message = |n: usize| {
        let payload = if n.is_multiple_of(97) { format!("{n}") } else { "{}".to_owned() };
        Message::new(payload)
            .key(format!("{}", n % 1_000))
            .idempotency_key(&format!("{}", n % 1_000))
    };
    for round in 0..3 {
        kafka.produce(&topic, (round * 1_000..(round + 1) * 1_000).map(message));
        // The group has a coordinator now.
        daemon.wait_ready();
        let committed = || (0..2).any(|at| kafka.committed_offset(&group, &topic, at).is_some());
        wait_until("something is committed", Duration::from_secs(60), committed);
        verify(&daemon).found(&[]);
        daemon.kill();
        verify(&daemon).found(&[]);
        daemon.start();
    }
    let caught_up =
        |at| kafka.committed_offset(&group, &topic, at) == Some(kafka.end_offset(&topic, at));
    wait_until("all is committed", Duration::from_secs(60), || (0..2).all(caught_up));
    let verified = verify(&daemon);
    verified.found(&[]);
    let sum = |name: &str| {
        let partitions = verified.json["partitions"].as_array().unwrap();
        partitions.iter().map(|partition| partition[name].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((sum("records"), sum("handled")), (3_000, 1_000), "{}", verified.said);
    assert_eq!(sum("undecided") + sum("off_phase"), 0, "{}", verified.said);
    assert_eq!(daemon.terminate().code(), Some(0));
    verify(&daemon).found(&[]);
}
