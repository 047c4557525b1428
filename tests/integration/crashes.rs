//! Ends of all kinds, in the middle of the work: nothing is lost, and what is repeated carries the
//! same key and has a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{
    Daemon, HttpService, Kafka, Request, Response, payment, payments, unique, wait_until,
    wait_until_eq,
};
use crate::scene::{
    SOON, counts, http_daemon, http_daemon_with, key_of_line, numbered, set, stdout_daemon,
    verdicts, wait_caught_up,
};

const CONCURRENCY: usize = 16;

/// The keys that a service was called with: the client's, and what onced made of it.
fn calls(requests: &[Request]) -> BTreeMap<String, Vec<String>> {
    let mut calls: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in requests {
        let key = |name| request.header(name).expect("a call carries its keys").to_owned();
        calls.entry(key("onced-key")).or_default().push(key("Idempotency-Key"));
    }
    calls
}

/// Every message was called, with one key however often, and all but a few only once.
#[track_caller]
fn expect_each_once(requests: &[Request], distinct: u64, repeated_most: usize) {
    let calls = calls(requests);
    assert_eq!(calls.len() as u64, distinct, "every message is handled, and no other");
    for (message, keys) in &calls {
        let different: BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), 1, "{message} was repeated under another key: {keys:?}");
    }
    let identities: BTreeSet<_> = calls.values().flatten().collect();
    assert_eq!(identities.len() as u64, distinct, "no two messages share a key");
    let repeated = requests.len() - calls.len();
    assert!(repeated <= repeated_most, "{repeated} calls were repeated, at most {repeated_most}");
}

/// Waits until nothing is left, and every verdict of this process is accounted for.
#[track_caller]
fn wait_done(kafka: &Kafka, onced: &mut Daemon, group: &str, topic: &str) {
    onced.wait_ready();
    wait_caught_up(kafka, onced, group, topic);
}

#[test]
fn twelve_kills_lose_nothing_and_repeat_only_what_was_called() {
    const KILLS: usize = 12;
    const RECORDS: usize = 4_000;
    let Some(kafka) =
        Kafka::shared_or_skip("twelve_kills_lose_nothing_and_repeat_only_what_was_called")
    else {
        return;
    };
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(3)));
    let (topic, group) = (kafka.topic("kills").partitions(2).create(), unique("kills"));
    let input = payments(RECORDS, 0.3, 1);
    let distinct = input.distinct();
    kafka.produce(&topic, input);

    let builder = http_daemon(&group, &topic, &service.url("/payments"));
    let mut onced = set(builder, "runtime.workers=2").start();
    let step = usize::try_from(distinct).expect("a count") / (KILLS + 1);
    for kill in 1..=KILLS {
        service.wait_for(kill * step, SOON);
        onced.kill();
        onced.start();
    }
    wait_done(kafka, &mut onced, &group, &topic);
    expect_each_once(&service.requests(), distinct, KILLS * CONCURRENCY);
    assert!(verdicts(&onced).contains_key("duplicate"), "the input has duplicates to the end");
}

#[test]
fn lines_survive_twelve_kills() {
    const KILLS: usize = 12;
    const RECORDS: usize = 40_000;
    /// The most lines that are written at once.
    const BATCH: usize = 1_024;
    let Some(kafka) = Kafka::shared_or_skip("lines_survive_twelve_kills") else { return };
    let (topic, group) = (kafka.topic("lines").create(), unique("lines"));
    let input = payments(RECORDS, 0.2, 2);
    let distinct = usize::try_from(input.distinct()).expect("a count");
    kafka.produce(&topic, input);

    // A member of a fixed name: its successor takes over at once.
    let builder = set(stdout_daemon(&group, &topic), "routes.payments.handler.rate=10000");
    let builder = set(builder, "kafka.properties.\"group.instance.id\"=\"one\"");
    let mut onced = builder.start();
    let output = onced.home().join("stdout");
    let written = || fs::metadata(&output).map_or(0, |file| file.len());
    let step = 300 * (distinct / (KILLS + 2)) as u64;
    for kill in 1..=KILLS as u64 {
        wait_until("the next lines are written", SOON, || written() >= kill * step);
        onced.kill();
        onced.start();
    }
    wait_done(kafka, &mut onced, &group, &topic);

    let lines = onced.stdout_lines();
    let whole: Vec<serde_json::Value> =
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let torn = lines.len() - whole.len();
    assert!(torn <= KILLS, "{torn} lines are torn: a kill tears one at most");
    let handled = counts(whole.iter().map(key_of_line));
    assert_eq!(handled.len(), distinct, "every message has a whole line");
    let repeated = whole.len() - handled.len();
    assert!(repeated <= KILLS * BATCH, "{repeated} lines are repeated");
    let identities = counts(whole.iter().map(|line| line["identity"].to_string()));
    assert_eq!(identities.len(), distinct, "a repeated line has the same identity");
}

#[test]
fn a_first_signal_drains_and_a_restart_repeats_nothing() {
    let Some(kafka) = Kafka::shared_or_skip("a_first_signal_drains_and_a_restart_repeats_nothing")
    else {
        return;
    };
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(700)));
    let (topic, group) = (kafka.topic("drain").create(), unique("drain"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = http_daemon(&group, &topic, &service.url("/payments")).start();
    service.wait_for(CONCURRENCY + 4, SOON);

    let asked = Instant::now();
    let status = onced.terminate();
    assert_eq!(status.code(), Some(0), "{}", onced.stderr());
    assert!(asked.elapsed() < Duration::from_secs(10), "drain_timeout: {:?}", asked.elapsed());
    let called = service.requests().len();
    assert!(called < 100, "the stop came in the middle");
    let committed = kafka.committed_offset(&group, &topic, 0);
    assert_eq!(committed, Some(called as i64), "what was called was answered and is committed");

    // Another instance, without this log, would repeat nothing either.
    fs::remove_dir_all(onced.data_dir()).expect("the directory is there");
    onced.start();
    wait_done(kafka, &mut onced, &group, &topic);
    expect_each_once(&service.requests(), 100, 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let Some(kafka) = Kafka::shared_or_skip("a_second_signal_ends_it_at_once") else { return };
    let service = HttpService::start(|_| Response::ok().after(Duration::from_secs(8)));
    let (topic, group) = (kafka.topic("hang").create(), unique("hang"));
    kafka.produce(&topic, numbered(0..10));
    let mut onced = http_daemon(&group, &topic, &service.url("/payments")).start();
    service.wait_for(1, SOON);

    let pid = onced.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    wait_until("it drains", SOON, || onced.stderr().contains("draining"));
    wait_until("who drains is not ready", SOON, || !onced.ready());
    let asked = Instant::now();
    assert_eq!(onced.terminate().code(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(3), "at once: {:?}", asked.elapsed());
}

#[test]
fn calls_that_do_not_end_hold_up_a_stop_no_longer_than_the_drain_timeout() {
    let name = "calls_that_do_not_end_hold_up_a_stop_no_longer_than_the_drain_timeout";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let patient = Arc::new(AtomicBool::new(true));
    let waits = Arc::clone(&patient);
    let service = HttpService::start(move |_| {
        let slow = waits.load(Ordering::SeqCst);
        Response::ok().after(Duration::from_secs(if slow { 9 } else { 0 }))
    });
    let (topic, group) = (kafka.topic("stuck").create(), unique("stuck"));
    kafka.produce(&topic, numbered(0..4));
    let url = service.url("/payments");
    let builder = set(http_daemon(&group, &topic, &url), "runtime.drain_timeout=1s");
    let mut onced = builder.start();
    service.wait_for(4, SOON);
    let asked = Instant::now();
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    assert!(asked.elapsed() < Duration::from_secs(7), "it took {:?}", asked.elapsed());
    assert_eq!(kafka.committed_offset(&group, &topic, 0), Some(0), "nothing was answered");

    patient.store(false, Ordering::SeqCst);
    onced.start();
    wait_done(kafka, &mut onced, &group, &topic);
    expect_each_once(&service.requests(), 4, 4);
}

#[test]
fn a_broker_that_dies_and_comes_back_costs_nothing() {
    let name = "a_broker_that_dies_and_comes_back_costs_nothing";
    let Some(kafka) = Kafka::private_or_skip(name, &[]) else { return };
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(5)));
    let (topic, group) = (kafka.topic("broker").create(), unique("broker"));
    let input = payments(3_000, 0.2, 3);
    let distinct = input.distinct();
    kafka.produce(&topic, input);
    let mut onced = http_daemon(&group, &topic, &service.url("/payments")).on(&kafka).start();
    service.wait_for(800, SOON);
    kafka.kill();
    // What was read goes on; what was done cannot be committed.
    service.wait_for(1_000, SOON);
    kafka.start();
    assert!(onced.running(), "it waits for the broker");
    wait_done(&kafka, &mut onced, &group, &topic);
    expect_each_once(&service.requests(), distinct, CONCURRENCY);

    // Nothing new comes after the last commit of an outage: it has to be repeated by itself.
    kafka.kill();
    kafka.start();
    kafka.produce(&topic, numbered(0..1));
    wait_done(&kafka, &mut onced, &group, &topic);
    wait_until_eq("it is still ready", SOON, true, || onced.ready());
}

#[test]
fn a_stop_takes_the_member_out_of_the_group() {
    let Some(kafka) = Kafka::shared_or_skip("a_stop_takes_the_member_out_of_the_group") else {
        return;
    };
    // One partition, so that the second member has nothing to give back. A session lasts 45
    // seconds: long enough for a member that stayed to be seen.
    let (topic, group) = (kafka.topic("leave").create(), unique("leave"));
    let service = HttpService::start(|_| Response::ok());
    let builder = || http_daemon_with("", &group, &topic, &service.url("/payments"));
    let (mut left, mut right) = (builder().start(), builder().start());
    left.wait_ready();
    right.wait_ready();
    wait_until_eq("both are members", SOON, 2, || kafka.members(&group));
    assert_eq!(owned(&left) + owned(&right), 1);
    for (daemon, members) in [(&mut left, 1), (&mut right, 0)] {
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.stderr());
        assert_eq!(kafka.members(&group), members);
    }
}

#[test]
fn kills_while_it_absorbs_change_nothing() {
    let Some(kafka) = Kafka::shared_or_skip("kills_while_it_absorbs_change_nothing") else {
        return;
    };
    let (topic, group) = (kafka.topic("absorbing").create(), unique("absorbing"));
    // Small batches, of which a fetch brings one: so that absorbing takes a while.
    let small = [("batch.num.messages", "5"), ("linger.ms", "0")];
    kafka.produce_with(&small, &topic, numbered(0..3_000));
    let builder =
        set(stdout_daemon(&group, &topic), "kafka.properties.\"fetch.message.max.bytes\"=100");
    let mut onced = set(builder, "kafka.properties.\"group.instance.id\"=\"one\"").start();
    wait_done(kafka, &mut onced, &group, &topic);
    assert_eq!(onced.terminate().code(), Some(0));
    fs::remove_dir_all(onced.data_dir()).expect("the directory is there");

    let absorbed = |onced: &Daemon| {
        let metrics = onced.try_metrics().unwrap_or_default();
        metrics.value("onced_position", &[("topic", &topic)])
    };
    for kill in 1..=4 {
        onced.start();
        let half_way = f64::from(kill * 500);
        wait_until("it has absorbed some more", SOON, || absorbed(&onced) >= half_way);
        onced.kill();
    }
    kafka.produce(&topic, numbered(2_900..3_100));
    onced.start();
    wait_done(kafka, &mut onced, &group, &topic);
    let handled = counts(onced.stdout_json().iter().map(key_of_line));
    assert_eq!((handled.len(), handled.values().max()), (3_100, Some(&1)));
}

#[test]
fn an_instance_that_was_frozen_and_wakes_up_changes_nothing() {
    let name = "an_instance_that_was_frozen_and_wakes_up_changes_nothing";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("frozen").partitions(2).create(), unique("frozen"));
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(5)));
    let builder = || http_daemon(&group, &topic, &service.url("/payments"));
    let (mut left, mut right) = (builder().start(), builder().start());
    wait_until("each owns a partition", SOON, || owned(&left) == 1 && owned(&right) == 1);
    kafka.produce(&topic, (0..2_000).map(payment));
    service.wait_for(300, SOON);
    left.freeze();
    wait_until("the other owns both", SOON, || owned(&right) == 2);
    right.wait_ready();
    wait_caught_up(kafka, &right, &group, &topic);
    let before = service.requests().len();

    left.thaw();
    wait_until("each owns a partition", SOON, || owned(&left) == 1 && owned(&right) == 1);
    left.wait_ready();
    kafka.produce(&topic, (0..2_100).map(payment));
    wait_until("all is committed", SOON, || {
        (0..2).all(|partition| {
            let end = kafka.end_offset(&topic, partition);
            kafka.committed_offset(&group, &topic, partition) == Some(end)
        })
    });
    let after = service.requests().len();
    assert!(
        after - before <= 100 + CONCURRENCY,
        "{after} calls after {before} and 100 new messages"
    );
    // What was with the frozen one, and what it had not committed, is called again, once.
    expect_each_once(&service.requests(), 2_100, 300);
}

fn owned(daemon: &Daemon) -> usize {
    daemon.get("/status").map_or(0, |reply| reply.body.matches("\"open_records\"").count())
}

/// Three instances, of which one after the other is stopped and started again.
#[track_caller]
fn rolling_restarts(kafka: &Kafka, properties: &str) {
    const RECORDS: usize = 3_000;
    let (topic, group) = (kafka.topic("rolling").partitions(5).create(), unique("rolling"));
    let service = HttpService::start(|_| Response::ok().after(Duration::from_millis(8)));
    let url = service.url("/payments");
    let mut daemons: Vec<_> =
        (0..3).map(|_| http_daemon_with(properties, &group, &topic, &url).start()).collect();
    for daemon in &mut daemons {
        daemon.wait_ready();
    }
    let input = payments(RECORDS, 0.3, 11);
    let distinct = input.distinct();
    kafka.produce(&topic, input);
    let distinct_count = usize::try_from(distinct).expect("a count");
    for turn in 0..6 {
        service.wait_for((turn + 1) * distinct_count / 8, SOON);
        let daemon = &mut daemons[turn % 3];
        assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.stderr());
        daemon.start();
    }
    wait_until("all is committed", SOON, || {
        let open = |partition: &i32| {
            let end = kafka.end_offset(&topic, *partition);
            kafka.committed_offset(&group, &topic, *partition).unwrap_or(0) != end
        };
        let open: Vec<_> = (0..5).filter(open).collect();
        if open.is_empty() { Ok(()) } else { Err(format!("partitions {open:?} are open")) }
    });
    expect_each_once(&service.requests(), distinct, 0);
}

#[test]
fn rolling_restarts_repeat_nothing() {
    let Some(kafka) = Kafka::shared_or_skip("rolling_restarts_repeat_nothing") else { return };
    rolling_restarts(kafka, "");
}

#[test]
fn rolling_restarts_repeat_nothing_where_all_partitions_are_given_back_at_once() {
    let name = "rolling_restarts_repeat_nothing_where_all_partitions_are_given_back_at_once";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    rolling_restarts(kafka, "\"partition.assignment.strategy\" = \"range,roundrobin\"");
}

#[test]
fn rolling_restarts_repeat_nothing_where_the_broker_assigns() {
    let name = "rolling_restarts_repeat_nothing_where_the_broker_assigns";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    rolling_restarts(kafka, "\"group.protocol\" = \"consumer\"");
}

#[test]
fn without_a_broker_it_waits_and_can_be_stopped() {
    let name = "without_a_broker_it_waits_and_can_be_stopped";
    let Some(kafka) = Kafka::private_or_skip(name, &[]) else { return };
    let (topic, group) = (kafka.topic("absent").create(), unique("absent"));
    kafka.produce(&topic, numbered(0..100));
    kafka.stop();

    let mut onced = stdout_daemon(&group, &topic).on(&kafka).start();
    wait_until("it says what it waits for", SOON, || {
        let reply = onced.get("/readyz").ok()?;
        (reply.status == 503 && reply.body.contains(kafka.bootstrap())).then_some(())
    });
    assert!(onced.get("/livez").is_ok_and(|reply| reply.status == 200));
    let asked = Instant::now();
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());

    onced.start();
    kafka.start();
    wait_done(&kafka, &mut onced, &group, &topic);
    assert_eq!(onced.stdout_lines().len(), 100);
    // A stop without a broker takes no longer than is allowed, and repeats nothing.
    kafka.produce(&topic, numbered(100..200));
    wait_until("they are handled", SOON, || onced.stdout_lines().len() == 200);
    kafka.kill();
    let asked = Instant::now();
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    kafka.start();
    onced.start();
    wait_done(&kafka, &mut onced, &group, &topic);
    assert_eq!(onced.stdout_lines().len(), 200);
}
