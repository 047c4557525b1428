//! `onced rewind`: what it says runs again, exactly that does, and nothing of before hides it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Daemon, HttpService, Kafka, Response, unique, wait_until};
use crate::offsets::{TOPIC_CHANGED, expect_refusal, remove_log, start_and_settle, stop};
use crate::scene::{
    SOON, counts, daemon, expect_verdicts, keys_on_stdout, numbered, stdout_daemon, wait_caught_up,
};

/// Runs it and returns what it printed as JSON.
#[track_caller]
fn rewind<const N: usize>(onced: &Daemon, arguments: [&str; N]) -> serde_json::Value {
    let output = onced.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// It does nothing, ends with this code, and says these words.
#[track_caller]
fn expect_error<const N: usize>(
    onced: &Daemon,
    arguments: [&str; N],
    code: Option<i32>,
    words: &[&str],
) {
    let output = onced.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), code, "{said}");
    for word in words {
        assert!(said.contains(word), "it says {word:?}: {said}");
    }
}

#[test]
fn a_rewind_runs_again_exactly_what_it_said() {
    let name = "a_rewind_runs_again_exactly_what_it_said";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("again").create(), unique("again"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 100)]);
    let to = ["rewind", "--to-offset", "60", "--yes"];
    expect_error(&onced, to, Some(1), &[&group, "has members", "stop all instances"]);
    stop(&mut onced);

    expect_error(
        &onced,
        ["rewind", "--to-offset", "101"],
        Some(1),
        &["beyond 100", "goes back or stays"],
    );
    expect_error(&onced, ["rewind"], Some(2), &["--to-offset"]);
    let before = kafka.committed(&group, &topic, 0);
    let said = rewind(&onced, ["rewind", "--to-offset", "60", "--json"]);
    let partition = &said["partitions"][0];
    assert_eq!(
        (&said["done"], &partition["start"], &partition["again"]),
        (&false.into(), &60.into(), &40.into())
    );
    assert_eq!(kafka.committed(&group, &topic, 0), before, "a dry run changes nothing");

    let companion = format!("{group}.onced");
    let old_high_water = kafka.committed(&companion, &topic, 0).expect("it is there");
    let said = rewind(&onced, ["rewind", "--to-offset", "60", "--json", "--yes"]);
    assert_eq!((&said["done"], &said["partitions"][0]["again"]), (&true.into(), &40.into()));
    assert_eq!(kafka.committed(&companion, &topic, 0), kafka.committed(&group, &topic, 0));
    // As if it had died between its two commits.
    kafka.set_offset(&companion, &topic, 0, old_high_water.offset, &old_high_water.metadata);

    start_and_settle(&mut onced, &[("absorbed", 60), ("fresh", 40)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    kafka.produce(&topic, numbered(0..100));
    expect_verdicts(&onced, &[("absorbed", 60), ("fresh", 40), ("duplicate", 100)]);
    // Both may still move: they are asked together.
    wait_until("the high-water group is of the new generation", SOON, || {
        kafka.committed(&companion, &topic, 0) == kafka.committed(&group, &topic, 0)
    });
    stop(&mut onced);
    let handled = counts(keys_on_stdout(&onced));
    let twice: BTreeSet<_> =
        handled.iter().filter(|(_, times)| **times == 2).map(|(key, _)| key.clone()).collect();
    assert_eq!(twice, (60..100).map(|key| key.to_string()).collect());
    assert_eq!(keys_on_stdout(&onced).len(), 140);

    // It is done once, whatever becomes of the directory and the offsets.
    start_and_settle(&mut onced, &[]);
    stop(&mut onced);
    remove_log(&onced);
    kafka.set_offsets(&group, &topic, &[0]);
    start_and_settle(&mut onced, &[("absorbed", 200)]);
    assert_eq!(keys_on_stdout(&onced).len(), 140);
}

/// As after a cluster that lost the end of a transaction.
#[test]
fn a_log_that_is_ahead_of_the_group_counts_nothing_beyond_it_after_a_rewind_to_the_group() {
    let name =
        "a_log_that_is_ahead_of_the_group_counts_nothing_beyond_it_after_a_rewind_to_the_group";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("ahead").create(), unique("ahead"));
    let groups = [group.clone(), format!("{group}.onced")];
    let mut onced = stdout_daemon(&group, &topic).prepare();
    kafka.produce(&topic, numbered(0..60));
    start_and_settle(&mut onced, &[("fresh", 60)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);
    let before = groups.each_ref().map(|group| kafka.committed(group, &topic, 0));
    let set_back = || {
        for (group, committed) in groups.iter().zip(&before) {
            let committed = committed.as_ref().expect("both have committed");
            kafka.set_offset(group, &topic, 0, committed.offset, &committed.metadata);
        }
    };
    kafka.produce(&topic, numbered(60..100));
    start_and_settle(&mut onced, &[("fresh", 40)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);

    set_back();
    start_and_settle(&mut onced, &[("replayed", 40)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);

    set_back();
    rewind(&onced, ["rewind", "--to-committed", "--json"]);
    let said = rewind(&onced, ["rewind", "--to-committed", "--json", "--yes"]);
    assert_eq!(said["partitions"][0]["start"], 60);
    start_and_settle(&mut onced, &[("absorbed", 60), ("fresh", 40)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(keys_on_stdout(&onced).len(), 140);
}

#[test]
fn a_rewind_to_a_time_stays_where_nothing_is_that_late() {
    let name = "a_rewind_to_a_time_stays_where_nothing_is_that_late";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let topic = kafka.topic("time").partitions(2).config("retention.ms", "-1").create();
    let group = unique("time");
    // 2024-01-31T08:00:00Z is the time of number 6; partition 1 ends before.
    let dated = |(number, message): (i64, crate::harness::Message)| {
        message.timestamp(1_706_688_000_000 + (number - 6) * 1_000).partition(i32::from(number < 4))
    };
    kafka.produce(&topic, (0..).zip(numbered(0..10)).map(dated));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    let said = rewind(&onced, ["rewind", "--to-time", "2024-01-31T08:00:00Z", "--json", "--yes"]);
    let actions: Vec<_> = (0..2).map(|at| said["partitions"][at]["action"].as_str()).collect();
    assert_eq!(actions, [Some("rewind"), Some("stay")]);
    assert_eq!(said["partitions"][0]["again"], 4);
    start_and_settle(&mut onced, &[("absorbed", 2), ("fresh", 4)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(keys_on_stdout(&onced).len(), 14);
}

#[test]
fn letters_of_before_a_rewind_hide_no_record() {
    let name = "letters_of_before_a_rewind_hide_no_record";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, dead) = (kafka.topic("undone").create(), kafka.topic("undone-dead").create());
    let group = unique("undone");
    let accepts = Arc::new(AtomicBool::new(false));
    let accept = Arc::clone(&accepts);
    let service = HttpService::start(move |_| {
        if accept.load(Ordering::SeqCst) { Response::ok() } else { Response::status(400) }
    });
    let route = "[routes.payments]\ntopics = [\"{topic}\"]\ndead_letter.topic = \"{dead}\"\n\
                 handler = { kind = \"http\", url = \"{url}\" }\n";
    let mut onced = daemon(&group, route)
        .fill("topic", &topic)
        .fill("dead", &dead)
        .fill("url", &service.url("/payments"))
        .prepare();
    kafka.produce(&topic, numbered(0..10));
    start_and_settle(&mut onced, &[("fresh", 10)]);
    assert_eq!(kafka.read_at_least(&dead, 10, SOON).len(), 10);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);

    accepts.store(true, Ordering::SeqCst);
    rewind(&onced, ["rewind", "--to-offset", "4", "--json", "--yes"]);
    // The four below the start stay settled by their letters.
    start_and_settle(&mut onced, &[("replayed", 4), ("fresh", 6)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(service.requests().len(), 16);
    stop(&mut onced);

    // Also for a machine that rebuilds: the six were handled, the four were not.
    remove_log(&onced);
    start_and_settle(&mut onced, &[("replayed", 4), ("absorbed", 6)]);
    kafka.produce(&topic, numbered(0..10));
    expect_verdicts(&onced, &[("replayed", 4), ("absorbed", 6), ("fresh", 4), ("duplicate", 6)]);
}

#[test]
fn added_partitions_are_accepted_and_nothing_runs_again() {
    let name = "added_partitions_are_accepted_and_nothing_runs_again";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("added").create(), unique("added"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.add_partitions(&topic, 3);
    kafka.produce(&topic, numbered(10..15).map(|record| record.partition(1)));
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "has 3", "--accept-partitions"]);
    expect_error(&onced, ["rewind", "--to-earliest"], TOPIC_CHANGED, &["--accept-partitions"]);

    let said = rewind(&onced, ["rewind", "--accept-partitions", "--json", "--yes"]);
    let actions: Vec<_> = (0..3).map(|at| said["partitions"][at]["action"].as_str()).collect();
    assert_eq!(actions, [Some("accept"), Some("add"), Some("add")]);
    kafka.produce(&topic, numbered(0..10).map(|record| record.partition(0)));
    // The log of the first partition is as good as before.
    start_and_settle(&mut onced, &[("fresh", 5), ("duplicate", 10)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);
    start_and_settle(&mut onced, &[]);
}
