//! What people and tools do to offsets, topics and data directories: nothing runs again that was
//! handled, and what cannot be told apart is refused with the way out.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{
    Daemon, DaemonBuilder, HttpService, Kafka, Message, Request, Response, payments, unique,
    wait_until, wait_until_eq,
};
use crate::scene::{
    SOON, counts, expect_verdicts, http_daemon, keyed, keys_on_stdout, numbered, set,
    stdout_daemon, verdicts, wait_caught_up,
};

/// The topic changed under us.
pub const TOPIC_CHANGED: Option<i32> = Some(5);

#[track_caller]
pub fn start_and_settle(onced: &mut Daemon, expected: &[(&str, u64)]) {
    onced.start();
    onced.wait_ready();
    expect_verdicts(onced, expected);
}

#[track_caller]
pub fn stop(onced: &mut Daemon) {
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
}

pub fn remove_log(onced: &Daemon) {
    fs::remove_dir_all(onced.data_dir()).expect("the directory is there");
}

/// It ends by itself with this code, and says these words.
#[track_caller]
pub fn expect_refusal(onced: &mut Daemon, code: Option<i32>, words: &[&str]) {
    let said_before = onced.stderr().len();
    onced.start();
    assert_eq!(onced.wait_exit(SOON).code(), code, "{}", onced.stderr());
    let said = onced.stderr().split_off(said_before);
    for word in words {
        assert!(said.contains(word), "it says {word:?}: {said}");
    }
}

#[test]
fn offsets_rewound_to_zero_run_nothing_again() {
    let Some(kafka) = Kafka::shared_or_skip("offsets_rewound_to_zero_run_nothing_again") else {
        return;
    };
    let (topic, group) = (kafka.topic("rewound").partitions(2).create(), unique("rewound"));
    let input =
        |range| numbered(range).enumerate().map(|(at, record)| record.partition((at % 2) as i32));
    kafka.produce(&topic, input(0..500));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 500)]);
    stop(&mut onced);

    kafka.set_offsets(&group, &topic, &[0, 0]);
    kafka.produce(&topic, input(500..510).chain(input(0..10)));
    start_and_settle(&mut onced, &[("replayed", 500), ("fresh", 10), ("duplicate", 10)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled = counts(keys_on_stdout(&onced));
    assert_eq!((handled.len(), handled.values().max()), (510, Some(&1)));
}

#[test]
fn a_deleted_data_directory_is_absorbed_and_runs_nothing_again() {
    let name = "a_deleted_data_directory_is_absorbed_and_runs_nothing_again";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("lost").create(), unique("lost"));
    // Small batches, of which a fetch brings one: so that absorbing takes a while.
    let small = [("batch.num.messages", "5"), ("linger.ms", "0")];
    kafka.produce_with(&small, &topic, payments(4_000, 0.25, 5));
    let distinct = payments(4_000, 0.25, 5).distinct();
    let builder = stdout_daemon(&group, &topic);
    let builder = set(builder, "kafka.properties.\"fetch.message.max.bytes\"=100");
    let mut onced = builder.prepare();
    start_and_settle(&mut onced, &[("fresh", distinct), ("duplicate", 4_000 - distinct)]);
    stop(&mut onced);
    let committed = kafka.committed_offset(&group, &topic, 0);
    remove_log(&onced);

    onced.start();
    let reason = wait_until("it says that it absorbs", SOON, || {
        let reply = onced.get("/readyz").ok()?;
        (reply.status == 503 && reply.body.contains("reading again")).then_some(reply.body)
    });
    assert!(reason.contains(&topic), "it names the partition: {reason}");
    onced.wait_ready();
    expect_verdicts(&onced, &[("absorbed", 4_000)]);
    let remaining = onced.metrics().value("onced_absorb_remaining_records", &[("topic", &topic)]);
    assert!(remaining == 0.0, "{remaining}");
    assert_eq!(kafka.committed_offset(&group, &topic, 0), committed, "absorbing commits nothing");

    kafka.produce(&topic, payments(4_000, 0.25, 5));
    expect_verdicts(&onced, &[("absorbed", 4_000), ("duplicate", 4_000)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled = counts(keys_on_stdout(&onced));
    assert_eq!((handled.len() as u64, handled.values().max()), (distinct, Some(&1)));
}

#[test]
fn what_another_consumer_of_the_group_handled_is_absorbed() {
    let name = "what_another_consumer_of_the_group_handled_is_absorbed";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("taken").create(), unique("taken"));
    kafka.produce(&topic, numbered(0..500));
    kafka.set_offset(&group, &topic, 0, 300, "of another consumer");
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("absorbed", 300), ("fresh", 200)]);
    kafka.produce(&topic, numbered(0..500));
    expect_verdicts(&onced, &[("absorbed", 300), ("fresh", 200), ("duplicate", 500)]);
    let expected: BTreeSet<_> = (300..500).map(|key| key.to_string()).collect();
    assert_eq!(keys_on_stdout(&onced).into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(onced.metrics().value("onced_skipped_total", &[]) == 0.0);

    stop(&mut onced);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 1_000)]);
    assert_eq!(keys_on_stdout(&onced).len(), 200);
}

#[test]
fn an_offset_moved_forward_skips_and_a_retry_of_what_was_skipped_is_handled() {
    let name = "an_offset_moved_forward_skips_and_a_retry_of_what_was_skipped_is_handled";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("skipped").create(), unique("skipped"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 100)]);
    stop(&mut onced);

    kafka.produce(&topic, numbered(100..200));
    kafka.set_offsets(&group, &topic, &[150]);
    start_and_settle(&mut onced, &[("fresh", 50)]);
    let skipped = || onced.metrics().value("onced_skipped_total", &[("topic", &topic)]);
    assert!(skipped() == 50.0, "{}", skipped());
    // A retry of what was skipped, once more, and of what was handled on either side.
    kafka.produce(&topic, ["120", "120", "10", "160"].map(keyed));
    expect_verdicts(&onced, &[("fresh", 51), ("duplicate", 3)]);
    stop(&mut onced);

    start_and_settle(&mut onced, &[]);
    kafka.produce(&topic, ["120", "121"].map(keyed));
    expect_verdicts(&onced, &[("fresh", 1), ("duplicate", 1)]);
    stop(&mut onced);

    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 206)]);
    kafka.produce(&topic, ["130", "120", "121", "10", "160", "99"].map(keyed));
    expect_verdicts(&onced, &[("absorbed", 206), ("fresh", 1), ("duplicate", 5)]);
    let handled = counts(keys_on_stdout(&onced));
    assert!(handled.values().all(|times| *times == 1));
    let missing: Vec<_> =
        (100..150).filter(|key| !handled.contains_key(&key.to_string())).collect();
    let expected: Vec<_> = (100..150).filter(|key| ![120, 121, 130].contains(key)).collect();
    assert_eq!(missing, expected, "what was skipped is handled only where it was sent again");
}

#[test]
fn two_skips_are_remembered_through_a_rebuild() {
    let Some(kafka) = Kafka::shared_or_skip("two_skips_are_remembered_through_a_rebuild") else {
        return;
    };
    let (topic, group) = (kafka.topic("skips").create(), unique("skips"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    for (begin, to) in [(10, 15), (20, 25)] {
        kafka.produce(&topic, numbered(begin..begin + 10));
        kafka.set_offsets(&group, &topic, &[to]);
        start_and_settle(&mut onced, &[("fresh", 5)]);
        wait_caught_up(kafka, &onced, &group, &topic);
        stop(&mut onced);
    }
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 30)]);
    kafka.produce(&topic, numbered(0..30));
    expect_verdicts(&onced, &[("absorbed", 30), ("fresh", 10), ("duplicate", 20)]);
}

#[test]
fn a_skip_survives_a_rewind_and_a_rebuild() {
    let Some(kafka) = Kafka::shared_or_skip("a_skip_survives_a_rewind_and_a_rebuild") else {
        return;
    };
    let (topic, group) = (kafka.topic("back").create(), unique("back"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.produce(&topic, numbered(10..20));
    kafka.set_offsets(&group, &topic, &[15]);
    start_and_settle(&mut onced, &[("fresh", 5)]);
    stop(&mut onced);
    // The tool takes the act out of the group's metadata, and the log remembers it.
    kafka.set_offsets(&group, &topic, &[0]);
    start_and_settle(&mut onced, &[("replayed", 20)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 20)]);
    kafka.produce(&topic, numbered(0..20));
    expect_verdicts(&onced, &[("absorbed", 20), ("fresh", 5), ("duplicate", 15)]);
}

#[test]
fn a_group_that_lost_its_offsets_goes_on_where_the_log_is() {
    let name = "a_group_that_lost_its_offsets_goes_on_where_the_log_is";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("forgotten").create(), unique("forgotten"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.produce(&topic, numbered(5..20));
    kafka.delete_group(&group);
    start_and_settle(&mut onced, &[("fresh", 10), ("duplicate", 5)]);
    wait_caught_up(kafka, &onced, &group, &topic);
}

#[test]
fn an_offset_beyond_the_end_of_the_topic_is_refused() {
    let name = "an_offset_beyond_the_end_of_the_topic_is_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("beyond").create(), unique("beyond"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.set_offsets(&group, &topic, &[1_000]);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "1000", "ends at 10"]);
    kafka.set_offsets(&group, &topic, &[10]);
    kafka.produce(&topic, numbered(5..15));
    start_and_settle(&mut onced, &[("fresh", 5), ("duplicate", 5)]);
}

#[test]
fn a_group_without_offsets_starts_where_it_is_told() {
    let name = "a_group_without_offsets_starts_where_it_is_told";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    // 2024-01-31T08:00:00Z is the time of number 5.
    for (start, first) in [("earliest", 0), ("latest", 10), ("2024-01-31T08:00:00Z", 5)] {
        let dated = |number: i64| {
            keyed(&number.to_string()).timestamp(1_706_688_000_000 + (number - 5) * 1_000)
        };
        let topic = kafka.topic("start").config("retention.ms", "-1").create();
        let group = unique("start");
        kafka.produce(&topic, (0..10).map(dated));
        let mut onced =
            set(stdout_daemon(&group, &topic), &format!("kafka.start={start}")).prepare();
        start_and_settle(&mut onced, &[("fresh", 10 - first)]);
        // Also where there is nothing to handle, the start is committed.
        wait_caught_up(kafka, &onced, &group, &topic);
        let skipped = onced.metrics().value("onced_skipped_total", &[]);
        assert!(skipped == 0.0, "no tool has moved past anything: {skipped}");

        kafka.produce(&topic, [dated(10), dated(7)]);
        let seven = if first <= 7 { "duplicate" } else { "fresh" };
        wait_caught_up(kafka, &onced, &group, &topic);
        assert!(verdicts(&onced).contains_key(seven), "start = {start}: {:?}", verdicts(&onced));
        stop(&mut onced);

        // What lay before the start was handled by nobody, and a rebuild remembers that.
        remove_log(&onced);
        start_and_settle(&mut onced, &[("absorbed", 12)]);
        kafka.produce(&topic, [dated(10), dated(7), dated(2)]);
        let fresh = u64::from(first > 2);
        expect_verdicts(&onced, &[("absorbed", 12), ("duplicate", 3 - fresh), ("fresh", fresh)]);
        let handled = counts(keys_on_stdout(&onced));
        assert!(handled.values().all(|times| *times == 1), "start = {start}: {handled:?}");
    }
}

#[test]
fn a_compacted_topic_ends_with_a_lag_of_zero() {
    let Some(kafka) = Kafka::shared_or_skip("a_compacted_topic_ends_with_a_lag_of_zero") else {
        return;
    };
    let topic = kafka
        .topic("compacted")
        .config("cleanup.policy", "compact")
        .config("segment.ms", "50")
        .config("min.cleanable.dirty.ratio", "0.001")
        .config("min.compaction.lag.ms", "0")
        .config("max.compaction.lag.ms", "100")
        .config("delete.retention.ms", "0")
        .create();
    let version = |version: usize| {
        (0..20).map(move |key| keyed(&format!("{version}-{key}")).key(format!("key {key}")))
    };
    kafka.produce(&topic, (0..50).flat_map(version));
    // Only closed segments are compacted; what comes later closes them.
    let mut produced = 1_000;
    let left = wait_until("the broker has compacted the topic", SOON, || {
        kafka.produce(&topic, version(50 + produced));
        produced += 20;
        let left = kafka.read_all(&topic);
        if left.len() < produced / 2 { Ok(left) } else { Err(left.len()) }
    });
    assert!(left[0].offset > 0 || left.windows(2).any(|two| two[1].offset > two[0].offset + 1));

    let group = unique("compacted");
    let mut onced = stdout_daemon(&group, &topic).start();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);
    remove_log(&onced);
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, version(1));
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled = counts(keys_on_stdout(&onced));
    assert!(handled.values().all(|times| *times == 1), "nothing ran again");
    let latest: Vec<_> = kafka.read_all(&topic);
    for record in latest {
        let key = record.header("Idempotency-Key").expect("it has a key");
        assert!(handled.contains_key(&key), "{key} was handled");
    }
}

#[test]
fn aborted_records_are_not_handled_and_the_lag_is_zero() {
    let name = "aborted_records_are_not_handled_and_the_lag_is_zero";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("aborted").create(), unique("aborted"));
    kafka.produce(&topic, numbered(0..10));
    kafka.begin(&topic, numbered(100..110)).abort();
    kafka.begin(&topic, numbered(10..20)).commit();
    kafka.begin(&topic, numbered(100..150)).abort();
    let mut onced = stdout_daemon(&group, &topic).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 20)]);
    wait_caught_up(kafka, &onced, &group, &topic);

    let open = kafka.begin(&topic, numbered(200..210));
    kafka.produce(&topic, numbered(20..30));
    open.abort();
    expect_verdicts(&onced, &[("fresh", 30)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    stop(&mut onced);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 30)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    let expected: BTreeSet<_> = (0..30).map(|key| key.to_string()).collect();
    assert_eq!(keys_on_stdout(&onced).into_iter().collect::<BTreeSet<_>>(), expected);
}

/// A service that answers nothing before it is told to.
fn held_service() -> (HttpService, Arc<AtomicBool>) {
    let held = Arc::new(AtomicBool::new(true));
    let waits = Arc::clone(&held);
    let service = HttpService::start(move |_| {
        let begun = Instant::now();
        while waits.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Response::ok()
    });
    (service, held)
}

#[test]
fn a_topic_that_ends_in_aborted_records_behind_a_slow_handler_ends_with_a_lag_of_zero() {
    let name = "a_topic_that_ends_in_aborted_records_behind_a_slow_handler_ends_with_a_lag_of_zero";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    // One record is with the handler, and its duplicates fill all the room that there is.
    for duplicates in [10_200, 10_900] {
        let (topic, group) = (kafka.topic("full").create(), unique("full"));
        kafka.produce(&topic, (0..=duplicates).map(|_| keyed("same")));
        kafka.begin(&topic, numbered(0..10)).abort();
        let (service, held) = held_service();
        let mut onced = http_daemon(&group, &topic, &service.url("/payments")).start();
        onced.wait_ready();
        service.wait_for(1, SOON);
        // The partition's end is heard of while there is no room for what comes before it. Nothing
        // shows that it was.
        std::thread::sleep(Duration::from_secs(2));
        held.store(false, Ordering::SeqCst);
        expect_verdicts(&onced, &[("fresh", 1), ("duplicate", duplicates)]);
        wait_caught_up(kafka, &onced, &group, &topic);
        assert_eq!(service.requests().len(), 1);
    }
}

#[test]
fn a_raised_partition_count_is_refused() {
    let Some(kafka) = Kafka::shared_or_skip("a_raised_partition_count_is_refused") else { return };
    let (topic, group) = (kafka.topic("raised").create(), unique("raised"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.add_partitions(&topic, 3);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "1 partitions", "has 3", "kafka.group"]);
    // The offsets tell it as well.
    remove_log(&onced);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "kafka.group"]);
}

#[test]
fn a_topic_of_the_same_name_that_is_another_one_is_refused() {
    let name = "a_topic_of_the_same_name_that_is_another_one_is_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("recreated").create(), unique("recreated"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce(&topic, numbered(0..20));
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "recreated", "log.dir"]);
}

#[test]
fn records_that_are_gone_before_they_were_read_are_refused() {
    let name = "records_that_are_gone_before_they_were_read_are_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("gone").create(), unique("gone"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);
    kafka.produce(&topic, numbered(10..30));
    // What was handled may go.
    kafka.delete_records(&topic, 0, 10);
    start_and_settle(&mut onced, &[("fresh", 20)]);
    stop(&mut onced);
    kafka.produce(&topic, numbered(30..50));
    kafka.delete_records(&topic, 0, 35);
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "30", "35", "retention"]);
    // The way out that it names.
    kafka.set_offsets(&group, &topic, &[35]);
    start_and_settle(&mut onced, &[("fresh", 15)]);
}

#[test]
fn another_definition_of_identity_is_refused_while_the_old_one_protects() {
    let name = "another_definition_of_identity_is_refused_while_the_old_one_protects";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("defined").create(), unique("defined"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 10)]);
    stop(&mut onced);

    let path = onced.config_path();
    let old = fs::read_to_string(&path).expect("the configuration is there");
    fs::write(&path, format!("{old}identity.scope = [\"topic\"]\n")).expect("it can be written");
    expect_refusal(&mut onced, TOPIC_CHANGED, &[&topic, "identity", "change it back"]);
    // The offsets tell it as well.
    remove_log(&onced);
    expect_refusal(&mut onced, TOPIC_CHANGED, &["identity"]);
    fs::write(&path, old).expect("it can be written");
    start_and_settle(&mut onced, &[("absorbed", 10)]);
}

#[test]
fn a_directory_in_use_or_of_another_group_is_refused() {
    let Some(kafka) = Kafka::shared_or_skip("a_directory_in_use_or_of_another_group_is_refused")
    else {
        return;
    };
    let (topic, group) = (kafka.topic("directory").create(), unique("directory"));
    let mut onced = stdout_daemon(&group, &topic).start();
    onced.wait_ready();
    let begun = Instant::now();
    let second = onced.run(["run", "--set", "admin.listen="]);
    assert_eq!(second.status.code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(15), "at once: {:?}", begun.elapsed());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another onced is using this directory"), "{said}");
    assert!(onced.ready(), "the first one is not disturbed");

    stop(&mut onced);
    let other = unique("other");
    let setting = format!("kafka.group={other}");
    let refused = onced.run(["run", "--set", "admin.listen=", "--set", &setting]);
    assert_eq!(refused.status.code(), Some(4));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&group) && said.contains(&other), "{said}");
    assert_eq!(kafka.members(&other), 0);
}

/// It ends by itself with the code of a changed topic, and says these words.
#[track_caller]
pub fn expect_refusal_while_running(onced: &mut Daemon, words: &[&str]) {
    assert_eq!(onced.wait_exit(SOON).code(), TOPIC_CHANGED, "{}", onced.stderr());
    for word in words {
        assert!(onced.stderr().contains(word), "it says {word:?}: {}", onced.stderr());
    }
}

/// Notices changes of topics within a second.
pub fn watchful(builder: DaemonBuilder) -> DaemonBuilder {
    let builder = set(builder, "kafka.properties.\"topic.metadata.refresh.interval.ms\"=1000");
    set(builder, "kafka.properties.\"metadata.max.age.ms\"=3000")
}

#[test]
fn partitions_added_under_a_running_daemon_are_refused() {
    let name = "partitions_added_under_a_running_daemon_are_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("grows").create(), unique("grows"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = watchful(stdout_daemon(&group, &topic)).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 10)]);
    kafka.add_partitions(&topic, 2);
    kafka.produce(&topic, numbered(0..10).map(|record| record.partition(1)));
    expect_refusal_while_running(&mut onced, &[&topic, "has 2", "kafka.group"]);
    assert_eq!(onced.stdout_lines().len(), 10, "nothing of the new partition was handled");
}

#[test]
fn a_topic_replaced_under_a_running_daemon_is_refused() {
    let name = "a_topic_replaced_under_a_running_daemon_is_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("replaced").create(), unique("replaced"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = watchful(stdout_daemon(&group, &topic)).start();
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 10)]);
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce(&topic, numbered(0..30));
    expect_refusal_while_running(&mut onced, &[&topic, "recreated"]);
    assert_eq!(onced.stdout_lines().len(), 10, "nothing of the other topic was handled");
}

#[test]
fn records_deleted_under_a_running_daemon_are_refused() {
    let name = "records_deleted_under_a_running_daemon_are_refused";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("overtaken").create(), unique("overtaken"));
    let (service, held) = held_service();
    let same = |count: usize| (0..count).map(|_| keyed("same"));
    kafka.produce(&topic, same(20_000));
    let mut onced = http_daemon(&group, &topic, &service.url("/payments")).start();
    onced.wait_ready();
    service.wait_for(1, SOON);
    // Reading stops ten thousand records beyond the one that is with the handler.
    kafka.produce(&topic, same(20_000));
    kafka.delete_records(&topic, 0, 35_000);
    held.store(false, Ordering::SeqCst);
    expect_refusal_while_running(&mut onced, &[&topic, "35000", "retention"]);
}

#[test]
fn a_directory_that_is_damaged_is_refused_and_absorbed_once_it_is_removed() {
    let name = "a_directory_that_is_damaged_is_refused_and_absorbed_once_it_is_removed";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("damaged").create(), unique("damaged"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    start_and_settle(&mut onced, &[("fresh", 100)]);
    stop(&mut onced);
    fs::write(onced.data_dir().join("db/CURRENT"), "MANIFEST-424242\n").expect("it is there");
    expect_refusal(&mut onced, Some(4), &["log.dir"]);
    remove_log(&onced);
    start_and_settle(&mut onced, &[("absorbed", 100)]);
    assert_eq!(onced.stdout_lines().len(), 100);
}

/// How many partitions each daemon owns.
fn owned(daemons: &[&Daemon]) -> Vec<usize> {
    let of = |daemon: &&Daemon| {
        let status = daemon.get("/status").map(|reply| reply.body).unwrap_or_default();
        status.matches("\"open_records\"").count()
    };
    daemons.iter().map(of).collect()
}

fn clients_keys(requests: &[Request]) -> impl Iterator<Item = String> {
    requests.iter().map(|request| request.header("onced-key").expect("it has a key").to_owned())
}

#[test]
fn instances_share_the_partitions_and_take_over_from_each_other() {
    let name = "instances_share_the_partitions_and_take_over_from_each_other";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("shared").partitions(4).create(), unique("shared"));
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(20)));
    let builder = || http_daemon(&group, &topic, &service.url("/payments"));
    let (mut left, mut right) = (builder().start(), builder().start());
    wait_until_eq("each owns two partitions", SOON, vec![2, 2], || owned(&[&left, &right]));
    left.wait_ready();
    right.wait_ready();

    // One is stopped in the middle: everything is handled, and nothing twice.
    kafka.produce(&topic, placed(0..1_500));
    service.wait_for(500, SOON);
    stop(&mut left);
    wait_until_eq("the other owns them all", SOON, vec![4], || owned(&[&right]));
    right.wait_ready();
    wait_caught_up(kafka, &right, &group, &topic);
    expect_handled(&service, 1_500, 0);

    // It comes back, and knows what the other did meanwhile.
    left.start();
    wait_until_eq("each owns two partitions", SOON, vec![2, 2], || owned(&[&left, &right]));
    left.wait_ready();
    kafka.produce(&topic, placed(0..1_500));
    wait_caught_up_by_both(kafka, &group, &topic);
    expect_handled(&service, 1_500, 0);

    // One is killed in the middle: what it had called may be called again.
    let requests = service.requests().len();
    kafka.produce(&topic, placed(1_500..3_000));
    service.wait_for(requests + 700, SOON);
    right.kill();
    let killed = Instant::now();
    wait_until_eq("the other owns them all", SOON, vec![4], || owned(&[&left]));
    left.wait_ready();
    wait_caught_up(kafka, &left, &group, &topic);
    // What was settled since the last commit, 200 ms before, and what was in work.
    let late = |request: &Request| {
        request.at <= killed && killed - request.at < Duration::from_millis(600)
    };
    let late = service.requests().into_iter().filter(late).count();
    expect_handled(&service, 3_000, late);
}

/// Numbered records, each in the same partition whenever it is sent.
pub fn placed(range: std::ops::Range<usize>) -> impl Iterator<Item = Message> {
    let partition = |number: usize| i32::try_from(number % 4).expect("it is small");
    range
        .clone()
        .zip(numbered(range))
        .map(move |(number, message)| message.partition(partition(number)))
}

#[track_caller]
fn expect_handled(service: &HttpService, messages: usize, repeated_most: usize) {
    let requests = service.requests();
    let handled = counts(clients_keys(&requests));
    assert_eq!(handled.len(), messages, "every message is handled");
    let repeated = requests.len() - messages;
    assert!(repeated <= repeated_most, "{repeated} calls were repeated, at most {repeated_most}");
    let keys: BTreeSet<_> = requests
        .iter()
        .map(|request| (request.header("onced-key"), request.header("Idempotency-Key")))
        .collect();
    assert_eq!(keys.len(), messages, "a repeated call has the same key");
}

#[track_caller]
fn wait_caught_up_by_both(kafka: &Kafka, group: &str, topic: &str) {
    for partition in 0..kafka.partitions(topic) {
        let end = kafka.end_offset(topic, partition);
        wait_until_eq("the end is committed", SOON, Some(end), || {
            kafka.committed_offset(group, topic, partition)
        });
    }
}
