//! The promise itself: an identity is handled once within its window, and everything is counted.

use std::collections::BTreeSet;

use crate::harness::{Kafka, Message, payments, unique};
use crate::scene::{
    SOON, counts, daemon, expect_verdicts, keyed, keys_on_stdout, numbered, stdout_daemon,
    wait_caught_up,
};

#[test]
fn duplicates_near_and_far_are_suppressed_and_counted() {
    const BETWEEN: usize = 40_000;
    let Some(kafka) = Kafka::shared_or_skip("duplicates_near_and_far_are_suppressed_and_counted")
    else {
        return;
    };
    let (topic, group) = (kafka.topic("duplicates").create(), unique("duplicates"));
    let near = ["a", "a", "b", "a"].map(keyed);
    let far = ["b", "a", "c", "c"].map(keyed);
    kafka.produce(&topic, near.into_iter().chain(numbered(0..BETWEEN)).chain(far));

    let mut onced = stdout_daemon(&group, &topic).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 40_003), ("duplicate", 5)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    let keys = keys_on_stdout(&onced);
    assert_eq!(keys.len(), BETWEEN + 3, "a line for each message");
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), BETWEEN + 3, "each message once");
    let distances = onced.metrics();
    assert!(distances.value("onced_duplicate_distance_seconds_count", &[]) == 5.0);
}

#[test]
fn duplicates_are_suppressed_across_a_restart() {
    let Some(kafka) = Kafka::shared_or_skip("duplicates_are_suppressed_across_a_restart") else {
        return;
    };
    let (topic, group) = (kafka.topic("restart").create(), unique("restart"));
    let input = payments(3_000, 0.3, 7);
    let distinct = input.distinct();
    let mut onced = stdout_daemon(&group, &topic).start();
    kafka.produce(&topic, input.clone());
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", distinct), ("duplicate", 3_000 - distinct)]);

    assert_eq!(onced.terminate().code(), Some(0));
    kafka.produce(&topic, input.clone());
    onced.start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("duplicate", 3_000)]);

    // Committed, so that nothing is replayed.
    wait_caught_up(kafka, &onced, &group, &topic);
    onced.kill();
    kafka.produce(&topic, input);
    onced.start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("duplicate", 3_000)]);
    let calls = counts(keys_on_stdout(&onced));
    assert_eq!(calls.len() as u64, distinct);
    assert!(calls.values().all(|times| *times == 1), "no message was handled again");
}

#[test]
fn another_payload_under_the_same_key_is_what_the_policy_says() {
    let Some(kafka) =
        Kafka::shared_or_skip("another_payload_under_the_same_key_is_what_the_policy_says")
    else {
        return;
    };
    let (dead, letters) = (kafka.topic("dead").create(), kafka.topic("letters").create());
    let (suppress, process) = (kafka.topic("suppress").create(), kafka.topic("process").create());
    let group = unique("conflicts");
    let routes = r#"
[routes.dead]
topics = ["{dead}"]
handler.kind = "stdout"
dead_letter.topic = "{letters}"
[routes.suppress]
topics = ["{suppress}"]
handler.kind = "stdout"
policy.conflict = "suppress"
[routes.process]
topics = ["{process}"]
handler.kind = "stdout"
policy.conflict = "process"
"#;
    let mut onced = daemon(&group, routes)
        .fill("dead", &dead)
        .fill("letters", &letters)
        .fill("suppress", &suppress)
        .fill("process", &process)
        .start();
    let pay = |payload: &str| Message::new(payload).key("account").idempotency_key("k");
    let input = [
        pay(r#"{"amount":1,"to":"x"}"#),
        pay(r#"{"amount":2,"to":"x"}"#),
        pay(r#"{"to": "x", "amount": 1}"#),
        pay(r#"{"amount":2,"to":"x"}"#),
    ];
    for topic in [&dead, &suppress, &process] {
        kafka.produce(topic, input.clone());
    }
    onced.wait_ready();
    // dead and suppress: one handled, one duplicate that is written in another way, two conflicts.
    // process: two handled and a duplicate of each.
    expect_verdicts(&onced, &[("fresh", 4), ("duplicate", 4), ("conflict", 4)]);
    let metrics = onced.metrics();
    for route in ["dead", "suppress"] {
        let of = |verdict| {
            metrics.value("onced_records_total", &[("route", route), ("verdict", verdict)])
        };
        assert_eq!(["fresh", "duplicate", "conflict"].map(of), [1.0, 1.0, 2.0], "{route}");
    }

    let found = kafka.read_at_least(&letters, 2, SOON);
    assert_eq!(found.len(), 2, "one letter for each conflict, none of the other routes");
    for (letter, offset) in found.iter().zip([1, 3]) {
        assert_eq!(letter.header("onced-dead-letter-reason").as_deref(), Some("conflict"));
        let source = format!("{dead}/0/{offset}");
        assert_eq!(letter.header("onced-dead-letter-source"), Some(source));
        assert_eq!(letter.header("onced-dead-letter-route").as_deref(), Some("dead"));
        assert_eq!(letter.payload, input[1].payload, "the payload as it came");
        assert_eq!(letter.key_text().as_deref(), Some("account"));
        assert_eq!(letter.header("Idempotency-Key").as_deref(), Some("k"));
    }
    let conflict = [("route", "dead"), ("reason", "conflict")];
    assert_eq!(metrics.value("onced_dead_letters_total", &conflict), 2.0);
    assert_eq!(metrics.value("onced_dead_letters_total", &[]), 2.0);

    let lines = onced.stdout_json();
    let handled = counts(lines.iter().map(|line| line["topic"].as_str().expect("a name")));
    assert_eq!(handled, [(&*dead, 1), (&*suppress, 1), (&*process, 2)].into());
    let identities: BTreeSet<_> = lines
        .iter()
        .filter(|line| line["topic"] == process.as_str())
        .map(|line| line["identity"].to_string())
        .collect();
    assert_eq!(identities.len(), 2, "another payload is another message");
}

#[test]
fn partitions_and_routes_do_not_see_each_others_identities() {
    let Some(kafka) =
        Kafka::shared_or_skip("partitions_and_routes_do_not_see_each_others_identities")
    else {
        return;
    };
    let left = kafka.topic("left").partitions(3).create();
    let right = kafka.topic("right").partitions(2).create();
    let group = unique("apart");
    let routes = r#"
[routes.left]
topics = ["{left}"]
handler.kind = "stdout"
[routes.right]
topics = ["{right}"]
handler.kind = "stdout"
"#;
    let mut onced = daemon(&group, routes).fill("left", &left).fill("right", &right).start();
    for (topic, partitions) in [(&left, 3), (&right, 2)] {
        for partition in 0..partitions {
            let twice = numbered(0..200).chain(numbered(0..200));
            kafka.produce(topic, twice.map(|message| message.partition(partition)));
        }
    }
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 1_000), ("duplicate", 1_000)]);
    let metrics = onced.metrics();
    for (route, count) in [("left", 600.0), ("right", 400.0)] {
        for verdict in ["fresh", "duplicate"] {
            let labels = [("route", route), ("verdict", verdict)];
            assert_eq!(metrics.value("onced_records_total", &labels), count, "{labels:?}");
        }
    }
    for topic in [&left, &right] {
        wait_caught_up(kafka, &onced, &group, topic);
    }
    let handled = counts(onced.stdout_json().iter().map(|line| {
        (line["topic"].to_string(), line["partition"].as_i64(), line["identity"].to_string())
    }));
    assert_eq!(handled.len(), 1_000);
    assert!(handled.values().all(|times| *times == 1));
}
