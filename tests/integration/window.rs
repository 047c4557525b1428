//! Time, which moves with the records alone: when an identity is free again, what odd timestamps
//! do, and that expired entries give their space back.

use crate::harness::{Daemon, Kafka, Message, unique, wait_until};
use crate::scene::{SOON, expect_verdicts, keyed, set, stdout_daemon, wait_caught_up};

/// The time of the first record, in milliseconds: in 2023.
const BEGIN: i64 = 1_700_000_000_000;

/// A record of this key, so many milliseconds after the first.
fn at(after: i64, key: &str) -> Message {
    keyed(key).timestamp(BEGIN + after)
}

/// A topic that keeps records of 2023.
fn topic(kafka: &Kafka, prefix: &str) -> String {
    kafka.topic(prefix).config("retention.ms", "-1").create()
}

/// The keys and times of what was handled, by time: different keys may overtake each other.
fn handled(onced: &Daemon) -> Vec<(String, i64)> {
    let line = |line: &serde_json::Value| {
        let time = line["timestamp"].as_i64().expect("it has a timestamp");
        (crate::scene::key_of_line(line), time - BEGIN)
    };
    let mut handled: Vec<_> = onced.stdout_json().iter().map(line).collect();
    handled.sort_by_key(|(key, time)| (*time, key.clone()));
    handled
}

fn expected(handled: &[(&str, i64)]) -> Vec<(String, i64)> {
    handled.iter().map(|(key, time)| ((*key).to_owned(), *time)).collect()
}

/// A daemon whose window is ten seconds, with no lateness, and these settings.
fn daemon(group: &str, topic: &str, window: &[&str]) -> Daemon {
    let mut builder = set(stdout_daemon(group, topic), "routes.payments.window.ttl=10s");
    builder = set(builder, "routes.payments.window.lateness=0s");
    for setting in window {
        builder = set(builder, &format!("routes.payments.window.{setting}"));
    }
    builder.prepare()
}

#[test]
fn an_expired_identity_is_handled_again() {
    let Some(kafka) = Kafka::shared_or_skip("an_expired_identity_is_handled_again") else {
        return;
    };
    let (topic, group) = (topic(kafka, "expired"), unique("expired"));
    let mut onced = daemon(&group, &topic, &[]);
    onced.start();
    // In one batch, where the first is still with the handler when the last is read.
    kafka.produce(
        &topic,
        [at(0, "k"), at(9_999, "k"), at(10_000, "k"), at(19_999, "k"), at(19_999, "other")],
    );
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 3), ("duplicate", 2)]);
    // And from the log, over a restart, which takes longer than no time at all.
    assert_eq!(onced.terminate().code(), Some(0));
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, [at(19_999, "k")]);
    expect_verdicts(&onced, &[("duplicate", 1)]);
    kafka.produce(&topic, [at(20_000, "k")]);
    expect_verdicts(&onced, &[("duplicate", 1), ("fresh", 1)]);
    kafka.produce(&topic, [at(29_999, "k"), at(29_999, "other")]);
    expect_verdicts(&onced, &[("duplicate", 2), ("fresh", 2)]);
    let times = [("k", 0), ("k", 10_000), ("other", 19_999), ("k", 20_000), ("other", 29_999)];
    assert_eq!(handled(&onced), expected(&times));
    wait_caught_up(kafka, &onced, &group, &topic);
}

#[test]
fn a_late_record_counts_as_no_later_than_allowed() {
    let Some(kafka) = Kafka::shared_or_skip("a_late_record_counts_as_no_later_than_allowed") else {
        return;
    };
    let (topic, group) = (topic(kafka, "late"), unique("late"));
    let mut onced = daemon(&group, &topic, &["lateness=5s"]);
    onced.start();
    onced.wait_ready();
    // The clock stands at 14.999 s: what is dated 0 counts as of 9.999 s.
    kafka.produce(&topic, [at(0, "k"), at(14_999, "m"), at(0, "k"), at(9_000, "k")]);
    expect_verdicts(&onced, &[("fresh", 2), ("duplicate", 2)]);
    // At 15 s it counts as of 10 s, when the first one has expired.
    kafka.produce(&topic, [at(15_000, "n"), at(0, "k"), at(1, "k")]);
    expect_verdicts(&onced, &[("fresh", 4), ("duplicate", 3)]);
    let times = [("k", 0), ("k", 0), ("m", 14_999), ("n", 15_000)];
    assert_eq!(handled(&onced), expected(&times));
}

#[test]
fn the_last_occurrence_prolongs_the_window_where_it_is_the_anchor() {
    let name = "the_last_occurrence_prolongs_the_window_where_it_is_the_anchor";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let input = [0, 9_000, 18_000, 27_999, 37_999, 38_000].map(|time| at(time, "k"));
    for (anchor, times) in [
        ("first", vec![("k", 0), ("k", 18_000), ("k", 37_999)]),
        ("last", vec![("k", 0), ("k", 37_999)]),
    ] {
        let (topic, group) = (topic(kafka, "anchor"), unique("anchor"));
        let mut onced = daemon(&group, &topic, &[&format!("anchor={anchor}")]);
        onced.start();
        onced.wait_ready();
        // All at once, then one by one.
        kafka.produce(&topic, input[..2].to_vec());
        for (settled, message) in (3..).zip(&input[2..]) {
            kafka.produce(&topic, [message.clone()]);
            wait_until("it is settled", SOON, || {
                crate::scene::verdicts(&onced).values().sum::<u64>() == settled
            });
        }
        assert_eq!(handled(&onced), expected(&times), "anchor = {anchor}");
        // A rebuild comes to the same end.
        assert_eq!(onced.terminate().code(), Some(0));
        std::fs::remove_dir_all(onced.data_dir()).expect("the directory is there");
        onced.start();
        onced.wait_ready();
        kafka.produce(&topic, [at(38_500, "k")]);
        wait_caught_up(kafka, &onced, &group, &topic);
        assert_eq!(handled(&onced), expected(&times), "anchor = {anchor}, after a rebuild");
    }
}

#[test]
fn records_without_a_sensible_time_do_not_move_the_clock() {
    let name = "records_without_a_sensible_time_do_not_move_the_clock";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let topic = kafka
        .topic("odd")
        .config("retention.ms", "-1")
        .config("message.timestamp.after.max.ms", &i64::MAX.to_string())
        .config("message.timestamp.before.max.ms", &i64::MAX.to_string())
        .create();
    let group = unique("odd");
    let mut onced = daemon(&group, &topic, &[]);
    onced.start();
    const YEAR_9999: i64 = 253_402_300_799_000;
    kafka.produce(
        &topic,
        [
            at(0, "k"),
            keyed("in 1970").timestamp(1),
            keyed("in 9999").timestamp(YEAR_9999),
            keyed("never").timestamp(-1),
            keyed("at the end").timestamp(i64::MAX),
            // Neither back to 1970 nor on to 9999, or to today.
            at(9_999, "k"),
            keyed("in 1970").timestamp(1),
            keyed("in 9999").timestamp(YEAR_9999),
            keyed("never").timestamp(-1),
            keyed("at the end").timestamp(i64::MAX),
        ],
    );
    onced.wait_ready();
    expect_verdicts(&onced, &[("fresh", 5), ("duplicate", 5)]);
    let undated = onced.metrics().value("onced_undated_total", &[]);
    assert!(undated == 6.0, "three records of no sensible time, twice: {undated}");
    wait_caught_up(kafka, &onced, &group, &topic);

    // The log starts from the same clock again, and so does a rebuild.
    for again in ["restart", "rebuild"] {
        assert_eq!(onced.terminate().code(), Some(0));
        if again == "rebuild" {
            std::fs::remove_dir_all(onced.data_dir()).expect("the directory is there");
        }
        onced.start();
        onced.wait_ready();
        kafka.produce(&topic, [at(9_999, "k"), keyed("in 9999").timestamp(YEAR_9999)]);
        wait_caught_up(kafka, &onced, &group, &topic);
        assert_eq!(onced.stdout_lines().len(), 5, "{again}: both are duplicates");
    }
    kafka.produce(&topic, [at(10_000, "k")]);
    wait_until("the first has expired", SOON, || onced.stdout_lines().len() == 6);
}

#[test]
fn a_longer_window_protects_what_has_left_the_shorter_one() {
    let name = "a_longer_window_protects_what_has_left_the_shorter_one";
    let Some(kafka) = Kafka::shared_or_skip(name) else { return };
    let (topic, group) = (topic(kafka, "longer"), unique("longer"));
    let mut onced = stdout_daemon(&group, &topic).prepare();
    let path = onced.config_path();
    let config = std::fs::read_to_string(&path).expect("the configuration is there");
    let set_window = |ttl| {
        let window = format!("window = {{ ttl = \"{ttl}\", lateness = \"0s\" }}\n");
        std::fs::write(&path, format!("{config}{window}")).expect("it can be written");
    };
    set_window("10s");
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, [at(0, "k"), at(5_000, "l"), at(20_000, "m")]);
    expect_verdicts(&onced, &[("fresh", 3)]);
    wait_caught_up(kafka, &onced, &group, &topic);
    assert_eq!(onced.terminate().code(), Some(0));

    set_window("30s");
    onced.start();
    onced.wait_ready();
    kafka.produce(&topic, [at(29_999, "k"), at(30_000, "k"), at(30_000, "l")]);
    wait_caught_up(kafka, &onced, &group, &topic);
    let times = [("k", 0), ("l", 5_000), ("m", 20_000), ("k", 30_000)];
    assert_eq!(handled(&onced), expected(&times));
}

#[test]
fn what_has_expired_gives_its_space_back() {
    const RECORDS: i64 = 60_000;
    let Some(kafka) = Kafka::shared_or_skip("what_has_expired_gives_its_space_back") else {
        return;
    };
    let (topic, group) = (topic(kafka, "space"), unique("space"));
    let builder = set(stdout_daemon(&group, &topic), "routes.payments.window.ttl=10s");
    let builder = set(builder, "routes.payments.window.lateness=1s");
    let mut onced = set(builder, "log.flush_interval=1s").start();
    onced.wait_ready();
    kafka.produce(&topic, (0..RECORDS).map(|number| at(number / 60, &format!("{number}"))));
    expect_verdicts(&onced, &[("fresh", 60_000)]);
    let bytes = |onced: &Daemon| onced.metrics().value("onced_log_bytes", &[]);
    let full = wait_until("the entries are on disk", SOON, || {
        let bytes = bytes(&onced);
        if bytes > 1_000_000.0 { Ok(bytes) } else { Err(bytes) }
    });
    assert!(onced.metrics().value("onced_log_expired_total", &[]) == 0.0, "all of it protects");

    // 12 seconds after the last of them, lateness included.
    kafka.produce(&topic, [at(1_000 + 12_000, "later")]);
    wait_until("the space is given back", SOON, || {
        let bytes = bytes(&onced);
        if bytes < full / 5.0 { Ok(()) } else { Err(format!("{bytes} of {full}")) }
    });
    wait_until("they are counted", SOON, || {
        let metrics = onced.metrics();
        let expired = metrics.value("onced_log_expired_total", &[]);
        let entries = metrics.value("onced_log_entries", &[]);
        if expired == 60_000.0 && entries < 1_000.0 {
            Ok(())
        } else {
            Err(format!("{expired} expired, {entries} left"))
        }
    });
    kafka.produce(&topic, [at(13_001, "later"), at(13_001, "0")]);
    expect_verdicts(&onced, &[("fresh", 60_002), ("duplicate", 1)]);
}
