//! A disk that fills up: onced waits, says so, and goes on when there is space.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, Kafka, unique, wait_until};
use crate::scene::{SOON, counts, keys_on_stdout, numbered, set, stdout_daemon, wait_caught_up};

/// A small file system of its own. Ends when dropped.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// `None`, and a line that says so, where nothing may be mounted. In CI that is a failure.
    fn mount(test: &str, at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("the folder can be made");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        let answer = command.output().map_err(|error| error.to_string()).and_then(|output| {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(words) }
        });
        match answer {
            Ok(()) => Some(Self { at: at.to_owned() }),
            Err(error) if env::var_os("CI").is_some() => {
                panic!("{test} cannot run, and in CI every test runs: {error}")
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "skipped {test}: {error}");
                None
            }
        }
    }

    /// Takes space until this many KiB are left.
    fn fill(&self, left_kib: usize) {
        let mut file =
            File::options().create(true).append(true).open(self.ballast()).expect("space");
        while free_kib(&self.at) > left_kib {
            let kib = (free_kib(&self.at) - left_kib).min(256);
            if file.write_all(&vec![7; kib * 1024]).is_err() {
                break;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may still run.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn free_kib(at: &Path) -> usize {
    let output = Command::new("df").args(["--output=avail", "-k"]).arg(at).output();
    let output = output.expect("df runs").stdout;
    let text = String::from_utf8_lossy(&output);
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df prints a number")
}

/// Waits until it is not ready because of the disk.
#[track_caller]
fn wait_disk_reason(onced: &mut Daemon) {
    wait_until("it says that the disk is full", SOON, || {
        assert!(onced.running(), "it stays alive: {}", onced.stderr());
        match onced.get("/readyz") {
            Ok(reply) if reply.status == 503 && reply.body.contains("the disk is") => Ok(()),
            Ok(reply) => Err(format!("{} {}", reply.status, reply.body)),
            Err(error) => Err(error.to_string()),
        }
    });
}

#[test]
fn a_disk_that_is_nearly_full_stops_consumption_until_there_is_space() {
    let name = "a_disk_that_is_nearly_full_stops_consumption_until_there_is_space";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("nearly").create(), unique("nearly"));
    let mut onced = set(stdout_daemon(&group, &topic), "log.disk_reserve=16MiB").prepare();
    let Some(disk) = SmallDisk::mount(name, &onced.data_dir(), "48m") else { return };
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, numbered(0..1_000));
    wait_caught_up(kafka, &onced, &group, &topic);

    disk.fill(8 * 1024);
    wait_disk_reason(&mut onced);
    wait_stopped(kafka, &mut onced, &topic);
    assert!(onced.get("/livez").is_ok_and(|reply| reply.status == 200), "it is alive");
    // A start under the same circumstances handles nothing either.
    onced.restart();
    wait_disk_reason(&mut onced);
    let before = keys_on_stdout(&onced).len();
    kafka.produce(&topic, numbered(1_000..3_000));
    nothing_happens(&mut onced, before);

    disk.free();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled =
        counts(keys_on_stdout(&onced).into_iter().filter(|key| !key.starts_with("probe")));
    assert_eq!((handled.len(), handled.values().max()), (3_000, Some(&1)));
}

/// Sends probes until one is not handled any more: the hold is looked at once a second.
#[track_caller]
fn wait_stopped(kafka: &Kafka, onced: &mut Daemon, topic: &str) {
    let mut probes = 0;
    wait_until("a record is not handled", SOON, || {
        probes += 1;
        let probe = format!("probe {probes}");
        kafka.produce(topic, [crate::scene::keyed(&probe)]);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            if keys_on_stdout(onced).contains(&probe) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    });
}

/// For two seconds: that something does not happen cannot be waited for.
#[track_caller]
fn nothing_happens(onced: &mut Daemon, lines: usize) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(onced.running(), "it stays alive");
        assert!(!onced.ready(), "it is not ready");
        assert_eq!(onced.stdout_lines().len(), lines, "nothing is handled");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_disk_that_is_full_is_waited_out() {
    let name = "a_disk_that_is_full_is_waited_out";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("full").create(), unique("full"));
    let builder = set(stdout_daemon(&group, &topic), "log.disk_reserve=0B");
    let builder = set(builder, "log.flush_interval=1s");
    let mut onced = builder.prepare();
    let Some(disk) = SmallDisk::mount(name, &onced.data_dir(), "64m") else { return };
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, numbered(0..1_000));
    wait_caught_up(kafka, &onced, &group, &topic);

    disk.fill(64);
    kafka.produce(&topic, numbered(1_000..40_000));
    wait_disk_reason(&mut onced);
    let full = onced.stdout_lines().len();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert!(onced.running(), "it stays alive: {}", onced.stderr());
        assert!(!onced.ready(), "it is not ready while the disk is full");
        std::thread::sleep(Duration::from_millis(20));
    }
    let more = onced.stdout_lines().len() - full;
    assert!(more <= 1_024, "{more} records are called while nothing can be noted");

    disk.free();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    let keys = keys_on_stdout(&onced);
    let handled = counts(&keys);
    assert_eq!(handled.len(), 40_000, "nothing is lost");
    let repeated = keys.len() - handled.len();
    assert!(repeated <= 2 * 1_024, "{repeated} lines are repeated: what was in work and no more");
}

#[test]
fn a_start_on_a_full_disk_waits_for_space() {
    let name = "a_start_on_a_full_disk_waits_for_space";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("tight").create(), unique("tight"));
    kafka.produce(&topic, numbered(0..100));
    let mut onced = set(stdout_daemon(&group, &topic), "log.disk_reserve=0B").prepare();
    let Some(disk) = SmallDisk::mount(name, &onced.data_dir(), "48m") else { return };
    disk.fill(0);
    onced.start();
    wait_disk_reason(&mut onced);
    nothing_happens(&mut onced, 0);
    disk.free();
    onced.wait_ready();
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(onced.stdout_lines().len(), 100);

    // One that waits can be stopped.
    assert_eq!(onced.terminate().code(), Some(0));
    disk.fill(0);
    onced.start();
    wait_disk_reason(&mut onced);
    assert_eq!(onced.terminate().code(), Some(0), "{}", onced.stderr());
}

#[test]
fn a_full_disk_is_noticed_and_waited_out_while_nothing_comes_in() {
    let name = "a_full_disk_is_noticed_and_waited_out_while_nothing_comes_in";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (kafka.topic("idle").create(), unique("idle"));
    let builder = set(stdout_daemon(&group, &topic), "log.disk_reserve=0B");
    let mut onced = set(builder, "log.flush_interval=2s").prepare();
    let Some(disk) = SmallDisk::mount(name, &onced.data_dir(), "48m") else { return };
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, numbered(0..20_000));
    wait_until("all is handled", SOON, || onced.stdout_lines().len() == 20_000);
    // The next flush has to write what is in memory, and cannot.
    disk.fill(0);
    wait_disk_reason(&mut onced);
    disk.free();
    onced.wait_ready();
    kafka.produce(&topic, numbered(19_000..21_000));
    wait_caught_up(kafka, &onced, &group, &topic);
    let handled = counts(keys_on_stdout(&onced));
    assert_eq!((handled.len(), handled.values().max()), (21_000, Some(&1)));
}
