//! Ends of all kinds, in the middle of the work: nothing is lost, and what is repeated carries the
//! same key and has a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{
    Daemon, HttpService, Kafka, Request, Response, payments, unique, wait_until, wait_until_eq,
};
use crate::scene::{
    SOON, counts, http_daemon, key_of_line, numbered, set, stdout_daemon, verdicts, wait_caught_up,
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

    let mut onced = http_daemon(&group, &topic, &service.url("/payments")).start();
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
