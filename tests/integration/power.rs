//! A file system of the daemon's own: power cuts, calls that fail, and calls that take long.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, DaemonBuilder, Kafka, unique, wait_until};
use crate::loop_disk::{Inject, LoopDisk};
use crate::scene::{SOON, counts, key_of_line, numbered, set, stdout_daemon, wait_caught_up};

const DISK_BYTES: u64 = 256 * 1024 * 1024;

/// What cannot be done here: a line that says so, and in CI a failure.
fn or_skip<T, E: Display>(test: &str, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(missing) if env::var_os("CI").is_some() => {
            panic!("{test} cannot run, and in CI every test runs: {missing}")
        }
        Err(missing) => {
            let _ = writeln!(io::stderr(), "skipped {test}: {missing}");
            None
        }
    }
}

/// A daemon about to start, with a file system of its own under its data.
fn on_disk(test: &str, builder: DaemonBuilder) -> Option<(Daemon, LoopDisk)> {
    let onced = set(builder, "log.disk_reserve=16MiB").prepare();
    let disk = or_skip(test, LoopDisk::create(&onced.data_dir(), DISK_BYTES))?;
    Some((onced, disk))
}

/// How often each message was written to standard output. A kill may tear the last line.
fn handled(onced: &Daemon) -> BTreeMap<String, usize> {
    let lines = onced.stdout_lines();
    let whole = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
    counts(whole.map(|line: serde_json::Value| key_of_line(&line)))
}

#[test]
fn a_power_cut_takes_what_was_not_synced() {
    let test = "a_power_cut_takes_what_was_not_synced";
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = or_skip(test, LoopDisk::create(&home.path().join("disk"), DISK_BYTES)) else {
        return;
    };
    let (kept, lost) = (disk.path().join("kept"), disk.path().join("lost"));
    std::fs::write(&kept, "kept").unwrap();
    std::fs::File::open(&kept).unwrap().sync_all().unwrap();
    std::fs::File::open(disk.path()).unwrap().sync_all().unwrap();
    std::fs::write(&lost, "lost").unwrap();
    disk.power_cut(|| assert!(std::fs::read(&kept).is_err(), "the disk is gone")).unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    assert!(!lost.exists());

    disk.fill(1024 * 1024).unwrap();
    assert!(disk.free_bytes().unwrap() <= 1024 * 1024);
    disk.free().unwrap();
    assert!(disk.free_bytes().unwrap() > DISK_BYTES / 2);
    let at = disk.path().to_owned();
    drop(disk);
    assert!(!at.exists() && !at.with_extension("img").exists(), "nothing is left of it");
}

#[test]
fn power_cuts_lose_nothing() {
    const CUTS: usize = 5;
    const RECORDS: usize = 20_000;
    /// What may have been in work, and what the handler does until the next commit of offsets.
    const REPEATED_PER_CUT: usize = 1_024 + 4_000;
    let test = "power_cuts_lose_nothing";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (topic, group) = (kafka.topic("power").create(), unique("power"));
    let builder = set(stdout_daemon(&group, &topic), "routes.payments.handler.rate=4000");
    let builder = set(builder, "log.flush_interval=1s");
    let builder = set(builder, "kafka.properties.\"group.instance.id\"=\"one\"");
    let Some((mut onced, disk)) = on_disk(test, builder) else { return };
    kafka.produce(&topic, numbered(0..RECORDS));
    onced.start();
    for cut in 1..=CUTS {
        wait_until("more is handled", SOON, || {
            onced.stdout_lines().len() >= cut * RECORDS / (CUTS + 2)
        });
        disk.power_cut(|| onced.kill()).expect("a power cut");
        onced.start();
    }
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled = handled(&onced);
    assert_eq!(handled.len(), RECORDS, "nothing is lost");
    let repeated = handled.values().sum::<usize>() - RECORDS;
    assert!(repeated <= CUTS * REPEATED_PER_CUT, "{repeated} lines are repeated");
    onced.kill();
}

#[test]
fn a_disk_that_loses_its_power_under_a_daemon_stops_it() {
    let test = "a_disk_that_loses_its_power_under_a_daemon_stops_it";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (topic, group) = (kafka.topic("gone").create(), unique("gone"));
    let Some((mut onced, disk)) = on_disk(test, stdout_daemon(&group, &topic)) else { return };
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, numbered(0..1_000));
    wait_caught_up(kafka, &onced, &group, &topic);

    disk.shut_down().expect("a power cut");
    kafka.produce(&topic, numbered(1_000..2_000));
    assert_eq!(onced.wait_exit(SOON).code(), Some(4), "{}", onced.stderr());
    disk.restore().expect("it comes back");
    onced.start();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(handled(&onced).len(), 2_000, "nothing is lost");
    onced.kill();
}

#[test]
fn a_sync_that_fails_stops_the_daemon_and_loses_nothing() {
    let test = "a_sync_that_fails_stops_the_daemon_and_loses_nothing";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let Some(()) = or_skip(test, Inject::available()) else { return };
    let (topic, group) = (kafka.topic("sync").create(), unique("sync"));
    let mut onced = set(stdout_daemon(&group, &topic), "log.flush_interval=1s").start();
    onced.wait_ready();
    kafka.produce(&topic, numbered(0..1_000));
    wait_caught_up(kafka, &onced, &group, &topic);

    let fault = Inject { calls: "fsync,fdatasync", fault: "error=EIO", when: "1" };
    let log = onced.home().join("strace");
    let strace = fault.attach(onced.pid(), &[], &log).expect("strace works");
    kafka.produce(&topic, numbered(1_000..2_000));
    let status = onced.wait_exit(SOON);
    assert!(strace.injected() > 0);
    assert_eq!(status.code(), Some(4), "{}", onced.stderr());
    drop(strace);
    onced.start();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(handled(&onced).len(), 2_000, "nothing is lost");
}

#[test]
fn a_slow_disk_costs_no_assignment() {
    let test = "a_slow_disk_costs_no_assignment";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let Some(()) = or_skip(test, Inject::available()) else { return };
    let (topic, group) = (kafka.topic("slow").create(), unique("slow"));
    let mut onced = set(stdout_daemon(&group, &topic), "log.flush_interval=1s").start();
    onced.wait_ready();
    let rebalances = |onced: &Daemon| onced.metrics().value("onced_rebalances_total", &[]);
    let before = rebalances(&onced);

    let fault = Inject { calls: "fsync,fdatasync", fault: "delay_enter=500000", when: "1+" };
    let log = onced.home().join("strace");
    let strace = fault.attach(onced.pid(), &[], &log).expect("strace works");
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                kafka.produce(&topic, numbered(sent..sent + 100));
                sent += 100;
            }
            sent
        });
        // Twice the session timeout.
        let begun = Instant::now();
        wait_until("calls were slow for a while", SOON, || {
            begun.elapsed() > Duration::from_secs(6) && strace.injected() > 5
        });
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("it sends")
    });
    wait_caught_up(kafka, &onced, &group, &topic);
    assert!(onced.ready());
    assert_eq!(rebalances(&onced), before, "it stays a member");
    let handled = handled(&onced);
    assert_eq!((handled.len(), handled.values().max()), (sent, Some(&1)));
}
