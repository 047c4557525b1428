//! What the tests of duplicates, crashes, offsets, windows and disks have in common: a daemon
//! with one route or several, and what it says of the records that it has settled.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{Daemon, DaemonBuilder, Kafka, Message, wait_until, wait_until_eq};

/// Long, for a machine whose cores are busy.
pub const SOON: Duration = Duration::from_secs(90);

/// A dead member is noticed after three seconds, so that a restart after a kill is quick.
const QUICK: &str = "\"session.timeout.ms\" = 3000\n\"heartbeat.interval.ms\" = 300";

const HEAD: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
commit_interval = "200ms"
[kafka.properties]
{properties}
[log]
dir = "{dir}"
memory = "32MiB"
[admin]
listen = "{admin}"
[runtime]
drain_timeout = "10s"
"#;

/// A daemon of this group with these routes.
pub fn daemon(group: &str, routes: &str) -> DaemonBuilder {
    daemon_with(QUICK, group, routes)
}

/// The same with properties of the client of its own.
pub fn daemon_with(properties: &str, group: &str, routes: &str) -> DaemonBuilder {
    Daemon::with(&format!("{HEAD}{routes}")).fill("properties", properties).fill("group", group)
}

/// A route by the name of `payments` that writes lines to standard output.
pub fn stdout_daemon(group: &str, topic: &str) -> DaemonBuilder {
    daemon(group, "[routes.payments]\ntopics = [\"{topic}\"]\nhandler.kind = \"stdout\"\n")
        .fill("topic", topic)
}

/// A route by the name of `payments` that calls a service, 16 records at once.
pub fn http_daemon(group: &str, topic: &str, url: &str) -> DaemonBuilder {
    http_daemon_with(QUICK, group, topic, url)
}

/// The same with properties of the client of its own.
pub fn http_daemon_with(properties: &str, group: &str, topic: &str, url: &str) -> DaemonBuilder {
    let route = r#"
[routes.payments]
topics = ["{topic}"]
[routes.payments.handler]
kind = "http"
url = "{url}"
concurrency = 16
order = "identity"
timeout = "60s"
[routes.payments.policy]
conflict = "suppress"
"#;
    daemon_with(properties, group, route).fill("topic", topic).fill("url", url)
}

/// One more setting, by its full name.
pub fn set(builder: DaemonBuilder, setting: &str) -> DaemonBuilder {
    builder.argument("--set").argument(setting)
}

/// A record with its key for a payload.
pub fn keyed(key: &str) -> Message {
    Message::new(format!(r#"{{"id":"{key}"}}"#)).idempotency_key(key)
}

/// Records `range` of a numbered series.
pub fn numbered(range: std::ops::Range<usize>) -> impl Iterator<Item = Message> {
    range.map(|number| keyed(&number.to_string()))
}

/// How many records this process has settled, by verdict, over all routes.
pub fn verdicts(daemon: &Daemon) -> BTreeMap<String, u64> {
    let sums = daemon.metrics().by_label("onced_records_total", "verdict");
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a count")]
    let counts = sums.into_iter().map(|(verdict, sum)| (verdict, sum as u64));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Waits until as many records are settled as these verdicts add up to, and compares.
#[track_caller]
pub fn expect_verdicts(daemon: &Daemon, expected: &[(&str, u64)]) {
    let count: u64 = expected.iter().map(|(_, count)| count).sum();
    wait_until(&format!("{count} records are settled"), SOON, || {
        let seen = verdicts(daemon);
        if seen.values().sum::<u64>() >= count { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let expected: BTreeMap<_, _> = expected
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| ((*verdict).to_owned(), *count))
        .collect();
    assert_eq!(verdicts(daemon), expected, "records by verdict");
}

/// Waits until the group has committed the end of each partition of the topic, control records
/// included, and the daemon shows a lag of zero.
#[track_caller]
pub fn wait_caught_up(kafka: &Kafka, daemon: &Daemon, group: &str, topic: &str) {
    for partition in 0..kafka.partitions(topic) {
        wait_until(&format!("{group} has committed the end of {topic}/{partition}"), SOON, || {
            let committed = kafka.committed_offset(group, topic, partition);
            let end = kafka.end_offset(topic, partition);
            if committed.unwrap_or(0) == end {
                Ok(())
            } else {
                Err(format!("{committed:?} of {end}"))
            }
        });
    }
    wait_until_eq("the lag is zero", SOON, 0.0, || {
        daemon.metrics().value("onced_lag_records", &[("topic", topic)])
    });
}

/// The idempotency keys of the records on standard output, in order.
pub fn keys_on_stdout(daemon: &Daemon) -> Vec<String> {
    daemon.stdout_json().iter().map(key_of_line).collect()
}

/// The idempotency key of one line.
pub fn key_of_line(line: &serde_json::Value) -> String {
    let headers = line["headers"].as_array().expect("headers are a list");
    let key = headers.iter().find(|header| header[0] == "Idempotency-Key");
    key.and_then(|header| header[1].as_str()).expect("the record has a key").to_owned()
}

/// Counts how often each value occurs.
pub fn counts<T: Ord>(values: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}
