//! The high-water group: whatever tools, expiry and lost directories do to the group's offsets,
//! nothing runs again that was handled; and what onced alone may write is refused from others.

use std::fs;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::harness::{Daemon, Kafka, unique, wait_until, wait_until_eq};
use crate::offsets::{
    TOPIC_CHANGED, expect_refusal, expect_refusal_while_running, placed, remove_log,
    start_and_settle, stop, watchful,
};
use crate::scene::{
    SOON, counts, expect_verdicts, keyed, keys_on_stdout, numbered, stdout_daemon, wait_caught_up,
};

fn companion(group: &str) -> String {
    format!("{group}.onced")
}

/// Waits until both groups say the same of a partition, metadata included.
#[track_caller]
fn wait_high_water(kafka: &Kafka, group: &str, topic: &str, offset: i64) {
    wait_until(&format!("the high-water group says {offset}"), SOON, || {
        let high_water = kafka.committed(&companion(group), topic, 0);
        let committed = kafka.committed(group, topic, 0);
        let same =
            high_water == committed && committed.as_ref().map(|at| at.offset) == Some(offset);
        if same { Ok(()) } else { Err(format!("{high_water:?}, and the group {committed:?}")) }
    });
}

#[test]
fn offsets_reset_to_zero_under_two_instances_run_nothing_again() {
    let name = "offsets_reset_to_zero_under_two_instances_run_nothing_again";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("reset").partitions(4).create(), unique("reset"));
    let (mut empty, mut stale) =
        (stdout_daemon(&group, &topic).start(), stdout_daemon(&group, &topic).start());
    let ends = |expected: i64| {
        for partition in 0..4 {
            wait_until_eq("the end is committed", SOON, Some(expected), || {
                kafka.committed_offset(&group, &topic, partition)
            });
            wait_until_eq("the high-water group follows", SOON, Some(expected), || {
                kafka.committed_offset(&companion(&group), &topic, partition)
            });
        }
    };
    let owns = |daemon: &Daemon| {
        let status = daemon.get("/status").map(|reply| reply.body).unwrap_or_default();
        status.matches("\"open_records\"").count()
    };
    wait_until_eq("each owns two partitions", SOON, (2, 2), || (owns(&empty), owns(&stale)));
    kafka.produce(&topic, placed(0..400));
    ends(100);
    // One knows only the first half of two partitions, the other nothing at all.
    stop(&mut stale);
    kafka.produce(&topic, placed(400..800));
    ends(200);
    stop(&mut empty);
    remove_log(&empty);
    kafka.set_offsets(&group, &topic, &[0, 0, 0, 0]);
    empty.start();
    stale.start();
    kafka.produce(&topic, placed(0..900));
    ends(425);
    let handled = counts(keys_on_stdout(&empty).into_iter().chain(keys_on_stdout(&stale)));
    assert_eq!((handled.len(), handled.values().max()), (900, Some(&1)));
}

#[test]
fn offsets_reset_to_zero_with_an_empty_directory_are_absorbed_up_to_the_high_water() {
    let name = "offsets_reset_to_zero_with_an_empty_directory_are_absorbed_up_to_the_high_water";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("zero").create(), unique("zero"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 100)]);
    stop(&mut onced);
    // The last commit of a clean stop gets there too.
    wait_high_water(kafka, &group, &topic, 100);
    let checked = String::from_utf8_lossy(&onced.run(["check"]).stdout).into_owned();
    assert!(checked.contains("0: committed 100, high water 100, start 100"), "{checked}");

    kafka.set_offsets(&group, &topic, &[0]);
    remove_log(&onced);
    let checked = String::from_utf8_lossy(&onced.run(["check"]).stdout).into_owned();
    assert!(checked.contains("0: committed 0, high water 100, start 0"), "{checked}");
    kafka.produce(&topic, numbered(90..110));
    start_and_settle(&mut onced, &[("absorbed", 100), ("fresh", 10), ("duplicate", 10)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    wait_high_water(kafka, &group, &topic, 120);
    assert_eq!(keys_on_stdout(&onced).len(), 110);
}

#[test]
fn an_offset_moved_forward_with_an_empty_directory_skips_from_the_high_water() {
    let name = "an_offset_moved_forward_with_an_empty_directory_skips_from_the_high_water";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("forward").create(), unique("forward"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 100)]);
    stop(&mut onced);
    kafka.produce(&topic, numbered(100..200));
    kafka.set_offsets(&group, &topic, &[150]);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 150), ("fresh", 50)]);
    let skipped = onced.metrics().value("onced_skipped_total", &[("topic", &topic)]);
    assert!(skipped == 50.0, "{skipped}");
    kafka.produce(&topic, ["120", "10", "160"].map(keyed));
    expect_verdicts(&onced, &[("absorbed", 150), ("fresh", 51), ("duplicate", 2)]);
    wait_high_water(kafka, &group, &topic, 203);
    stop(&mut onced);

    // The act is in both groups: a reset of the one does not forget it.
    kafka.set_offsets(&group, &topic, &[0]);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 203)]);
    kafka.produce(&topic, ["130", "120", "10"].map(keyed));
    expect_verdicts(&onced, &[("absorbed", 203), ("fresh", 1), ("duplicate", 2)]);
}

#[test]
fn a_high_water_offset_that_expired_is_written_again_also_if_nothing_moves() {
    let name = "a_high_water_offset_that_expired_is_written_again_also_if_nothing_moves";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("expired").create(), unique("expired"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.delete_group(&companion(&group));
    start_and_settle(&mut onced, &[]);
    wait_high_water(kafka, &group, &topic, 10);
    stop(&mut onced);

    // The group's own offsets may be gone instead.
    kafka.delete_group(&group);
    remove_log(&onced);
    kafka.produce(&topic, numbered(5..15));
    start_and_settle(&mut onced, &[("absorbed", 10), ("fresh", 5), ("duplicate", 5)]);
    wait_high_water(kafka, &group, &topic, 20);
}

#[test]
fn a_high_water_offset_that_a_tool_wrote_is_refused() {
    let name = "a_high_water_offset_that_a_tool_wrote_is_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("tool").create(), unique("tool"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.set_offsets(&companion(&group), &topic, &[0]);
    let words = [topic.as_str(), &companion(&group), "not written by onced", "delete the group"];
    expect_refusal(&mut onced, TOPIC_CHANGED, &words);
    let checked = onced.run(["check"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("not written by onced"));
    // The way out that it names.
    kafka.delete_group(&companion(&group));
    kafka.produce(&topic, numbered(5..15));
    start_and_settle(&mut onced, &[("fresh", 5), ("duplicate", 5)]);
}

/// Joins a group and stays in it until it is dropped.
struct Member {
    stop: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Member {
    fn join(kafka: &Kafka, group: &str, topic: &str) -> Self {
        let consumer: BaseConsumer =
            kafka.client(&[("group.id", group), ("enable.auto.commit", "false")]);
        consumer.subscribe(&[topic]).expect("it can subscribe");
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let _ = consumer.poll(Duration::from_millis(100));
            }
        });
        wait_until_eq("it is a member", SOON, 1, || kafka.members(group));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn members_of_the_high_water_group_are_refused_at_the_start_and_while_it_runs() {
    let name = "members_of_the_high_water_group_are_refused_at_the_start_and_while_it_runs";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("members").create(), unique("members"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = watchful(stdout_daemon(&group, &topic)).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 10)]);
    let member = Member::join(kafka, &companion(&group), &topic);
    expect_refusal_while_running(&mut onced, &[&companion(&group), "has members"]);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&companion(&group), "has members", "kafka.group"]);
    drop(member);
    wait_until_eq("it has left", SOON, 0, || kafka.members(&companion(&group)));
    start_and_settle(&mut onced, &[]);
}

#[test]
fn another_record_in_the_place_of_the_last_one_that_was_handled_is_refused() {
    let name = "another_record_in_the_place_of_the_last_one_that_was_handled_is_refused";
    let Some(kafka) = Kafka::private_or_skip(name, &[]) else { return };
    let (topic, group) = (kafka.topic("replaced").create(), unique("replaced"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).on(&kafka).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    // A broker that lost its disk: the topic and its id stay, the records are others.
    kafka.lose_partition(&topic, 0);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "up to offset 10", "ends at 0"]);
    kafka.produce(&topic, numbered(100..120));
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "offset 9", "not the one"]);
    assert_eq!(onced.stdout_lines().len(), 10);
}

#[test]
fn a_topic_that_is_truncated_under_a_running_daemon_is_refused() {
    let name = "a_topic_that_is_truncated_under_a_running_daemon_is_refused";
    let Some(kafka) = Kafka::private_or_skip(name, &[]) else { return };
    let (topic, group) = (kafka.topic("truncated").create(), unique("truncated"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = watchful(stdout_daemon(&group, &topic)).on(&kafka).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 10)]);
    kafka.lose_partition(&topic, 0);
    expect_refusal_while_running(&mut onced, &[&topic, "truncated"]);
}

#[test]
fn a_directory_that_goes_on_where_it_was_finds_the_record_that_it_left() {
    let name = "a_directory_that_goes_on_where_it_was_finds_the_record_that_it_left";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("same").create(), unique("same"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    // Gone, it proves nothing.
    kafka.delete_records(&topic, 0, 10);
    kafka.produce(&topic, numbered(10..20));
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    // Another definition has other checks; once the window has passed that is nobody's business.
    let path = onced.config_path();
    let old = fs::read_to_string(&path).expect("the configuration is there");
    let text = format!(
        "{old}identity.fingerprint.canonical = \"bytes\"\nwindow.ttl = \"1s\"\nwindow.lateness = \"0s\"\n"
    );
    fs::write(&path, text).expect("it can be written");
    std::thread::sleep(Duration::from_millis(1_500));
    start_and_settle(&mut onced, &[]);
    stop(&mut onced);
    start_and_settle(&mut onced, &[]);
}
