//! `onced check` finds what is wrong before `onced run` does, and changes nothing.

use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, DaemonBuilder, Kafka, Message, onced, unique, wait_until};

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"

[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "0B"

[admin]
listen = "{admin}"

[routes.payments]
topics = ["{topic}"]

[routes.payments.handler]
kind = "stdout"

[routes.payments.dead_letter]
topic = "{letters}"
"#;

/// What a check said.
struct Checked {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Checked {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    #[track_caller]
    fn ends_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// There is a row of this level with all of these words.
    #[track_caller]
    fn says(&self, level: &str, words: &[&str]) -> &Self {
        let fits = |line: &str| {
            line.trim_start().starts_with(level) && words.iter().all(|word| line.contains(word))
        };
        let found = self.stdout.lines().any(fits);
        assert!(found, "no {level} with {words:?} in\n{}\n{}", self.stdout, self.stderr);
        self
    }
}

fn check(daemon: &Daemon) -> Checked {
    Checked::of(&daemon.run(["check"]))
}

fn check_with(daemon: &Daemon, set: &str) -> Checked {
    Checked::of(&daemon.run(["check", "--set", set]))
}

fn daemon(kafka: &Kafka, group: &str, topic: &str, letters: &str) -> DaemonBuilder {
    Daemon::with(CONFIG)
        .on(kafka)
        .fill("group", group)
        .fill("topic", topic)
        .fill("letters", letters)
}

/// A daemon that is not started, with a group and topics of its own.
fn prepared(kafka: &Kafka) -> (Daemon, String, String) {
    let (group, topic) = (unique("check"), kafka.topic("check").create());
    let letters = kafka.topic("check-dead").create();
    (daemon(kafka, &group, &topic, &letters).prepare(), group, topic)
}

/// A configuration without a file, for brokers that need no topic of a test.
fn check_on(brokers: &str, more: &[&str]) -> Checked {
    let home = tempfile::tempdir().expect("a temporary folder can be made");
    let brokers = format!("kafka.brokers={brokers}");
    let dir = format!("log.dir={}", home.path().join("data").display());
    let mut set = vec![brokers.as_str(), "kafka.group=g", "log.disk_reserve=0B", &dir];
    set.extend(["routes.p.topics=t", "routes.p.handler.kind=stdout"]);
    set.extend(more);
    let arguments = set.into_iter().flat_map(|set| ["--set", set]);
    let checked = Checked::of(&onced(["check"].into_iter().chain(arguments)));
    let made = home.path().read_dir().expect("the folder is there").count();
    assert_eq!(made, 0, "a check makes no directory");
    checked
}

#[test]
fn a_check_that_finds_nothing_wrong_ends_with_0_and_leaves_no_trace() {
    let test = "a_check_that_finds_nothing_wrong_ends_with_0_and_leaves_no_trace";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (daemon, group, topic) = prepared(kafka);
    kafka.produce(&topic, [Message::new("one")]);

    let checked = check(&daemon);
    checked
        .ends_with(0)
        .says("ok", &["kafka.brokers", "1 broker", kafka.bootstrap()])
        .says("ok", &[&topic, "1 partition, may be read"])
        .says("ok", &["dead-letter topic", "may be written and read"])
        .says("ok", &[&group, "may be joined"])
        .says("ok", &[&group, &topic, "no offsets: starts at the first record"])
        .says("ok", &["log.dir", "is not there; the first start makes it"]);
    let last = checked.stdout.lines().last().unwrap_or_default();
    assert!(last.ends_with("0 notes, 0 warnings, 0 failed"), "{}", checked.stdout);
    assert_eq!(checked.stderr, "", "standard error is for what goes wrong");
    assert!(!checked.stdout.contains('\u{1b}'), "no colours where nobody looks");

    assert!(!daemon.data_dir().exists(), "a check makes no directory");
    assert_eq!(kafka.committed(&group, &topic, 0), None, "a check commits nothing");
    assert_eq!(kafka.members(&group), 0, "a check joins no group");
}

#[test]
fn the_json_form_is_one_object_with_all_rows() {
    let test = "the_json_form_is_one_object_with_all_rows";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (daemon, ..) = prepared(kafka);
    let output = daemon.run(["check", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(found["ok"], true);
    let rows = found["checks"].as_array().expect("a list");
    assert!(rows.len() > 10, "{found:#}");
    for row in rows {
        let fields: Vec<_> = row.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["level", "subject", "found", "advice"]);
    }
}

#[test]
fn a_wrong_configuration_ends_with_3_and_lists_all_problems() {
    let arguments = ["check", "--set", "routes.p.topics=t", "--set", "routes.p.windw.ttl=1h"];
    let text = Checked::of(&onced(arguments));
    text.ends_with(3);
    for problem in
        ["kafka.group", "routes.p.handler.kind", "the nearest known key is routes.p.window.ttl"]
    {
        assert!(text.stderr.contains(problem), "{problem} is not in {}", text.stderr);
    }

    let output = onced(arguments.into_iter().chain(["--json"]));
    assert_eq!(output.status.code(), Some(3));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["ok"], false);
    let rows = found["checks"].as_array().expect("a list");
    assert_eq!(rows.len(), 3, "{found:#}");
    assert!(rows.iter().all(|row| row["level"] == "failed"), "{found:#}");
}

#[test]
fn a_property_that_the_client_refuses_ends_with_3_and_its_value_stays_secret() {
    let checked = check_on("127.0.0.1:1", &["kafka.properties.sasl.pasword=hunter2"]);
    checked.ends_with(3);
    assert!(checked.stderr.contains("sasl.pasword"), "{}", checked.stderr);
    assert!(!format!("{}{}", checked.stdout, checked.stderr).contains("hunter2"));
}

#[test]
fn a_broker_that_is_not_there_is_named_soon() {
    let started = Instant::now();
    let checked = check_on("127.0.0.1:1", &[]);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let words = ["kafka.brokers", "no broker answered at 127.0.0.1:1", "Connection refused"];
    checked.ends_with(1).says("failed", &words);
    // Without a dead-letter topic each policy says where the route pauses.
    checked
        .says("warning", &["routes.p.policy.conflict", "the route pauses at the first"])
        .says("warning", &["routes.p.retry.exhausted", "the route pauses at the first"])
        .says("ok", &["routes.p.identity.missing", "not deduplicated"])
        .says("ok", &["routes.p.policy.duplicate", "suppressed"]);
}

#[test]
fn a_broker_that_accepts_and_says_nothing_is_named_within_a_bound() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    let started = Instant::now();
    check_on(&address, &[]).ends_with(1).says("failed", &["no broker answered at", &address]);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_missing_topic_ends_with_1_and_is_named_with_the_way_out() {
    let test = "a_missing_topic_ends_with_1_and_is_named_with_the_way_out";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (missing, letters) = (unique("missing"), unique("missing-dead"));
    let daemon = daemon(kafka, &unique("check"), &missing, &letters).prepare();
    check(&daemon)
        .ends_with(1)
        .says("failed", &[&missing, "there is no such topic", "or correct routes.payments.topics"])
        .says("failed", &[&letters, "or correct routes.payments.dead_letter.topic"]);
    assert_eq!(kafka.partitions(&missing), 0, "a check makes no topic");
}

#[test]
fn a_missing_dead_letter_topic_alone_ends_with_1() {
    let test = "a_missing_dead_letter_topic_alone_ends_with_1";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (topic, letters) = (kafka.topic("check").create(), unique("missing"));
    let checked = check(&daemon(kafka, &unique("check"), &topic, &letters).prepare());
    checked.ends_with(1).says("failed", &["dead-letter topic", &letters]);
    assert!(checked.stdout.ends_with(" 1 failed\n"), "{}", checked.stdout);
}

#[test]
fn topics_that_keep_less_than_the_window_are_a_warning_and_no_failure() {
    let test = "topics_that_keep_less_than_the_window_are_a_warning_and_no_failure";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let topic = kafka.topic("short").config("retention.ms", "3600000").create();
    let letters = kafka.topic("compacted").config("cleanup.policy", "compact").create();
    let daemon = daemon(kafka, &unique("check"), &topic, &letters).prepare();
    check(&daemon)
        .ends_with(0)
        .says("warning", &[&topic, "keeps records for only 1h (retention.ms)", "86700000"])
        .says("warning", &[&letters, "is compacted", "min.compaction.lag.ms"])
        .says("warning", &[&letters, "refuses the letters of records without a key"]);

    let window = "routes.payments.window={ ttl = '50m', lateness = '5m' }";
    check_with(&daemon, window).ends_with(0).says("ok", &[&topic, "keeps records for 1h"]);
}

#[test]
fn sizes_of_the_topics_are_compared() {
    let Some(kafka) = Kafka::shared_or_skip("sizes_of_the_topics_are_compared") else { return };
    let topic = kafka.topic("large").config("retention.bytes", "1073741824").create();
    let letters = kafka.topic("small").config("max.message.bytes", "1000").create();
    let daemon = daemon(kafka, &unique("check"), &topic, &letters).prepare();
    check(&daemon)
        .ends_with(0)
        .says("note", &[&topic, "1.0 GiB a partition (retention.bytes)"])
        .says("warning", &[&letters, "1000 B at once", "goes without its payload"]);
}

#[test]
fn a_refused_user_is_reported_as_such() {
    let test = "a_refused_user_is_reported_as_such";
    let Some(kafka) = Kafka::private_or_skip(test, &LOGINS) else { return };
    kafka.create_topic("t", 1, &[]);
    let login = |user: &str, password: &str| {
        let user = format!("kafka.properties.sasl.username={user}");
        let given = format!("kafka.properties.sasl.password={password}");
        let protocol = "kafka.properties.security.protocol=SASL_PLAINTEXT";
        let mechanism = "kafka.properties.sasl.mechanisms=PLAIN";
        let checked = check_on(kafka.extra(), &[protocol, mechanism, &user, &given]);
        assert!(!checked.stdout.contains(password), "{}", checked.stdout);
        checked
    };
    login("onced", "wrong-password")
        .ends_with(1)
        .says("failed", &["kafka.brokers", "authentication failed at", kafka.extra()]);
    login("stranger", "right-password")
        .ends_with(1)
        .says("ok", &["kafka.brokers"])
        .says("failed", &["topic t", "authorization failed", "allow READ"])
        .says("failed", &["group g", "authorization failed"]);
    login("onced", "right-password").ends_with(0).says("ok", &["topic t", "may be read"]);

    let without_login = check_on(kafka.extra(), &[]);
    without_login.ends_with(1).says("failed", &["kafka.brokers", "security.protocol"]);
}

/// A listener with passwords beside the plain one, and an authorizer that trusts one of two users.
const LOGINS: [(&str, &str); 6] = [
    (
        "listeners",
        "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
         SASL_PLAINTEXT://127.0.0.1:{extra}",
    ),
    ("advertised.listeners", "PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{extra}"),
    ("sasl.enabled.mechanisms", "PLAIN"),
    (
        "listener.name.sasl_plaintext.plain.sasl.jaas.config",
        "org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_onced=\"right-password\" user_stranger=\"right-password\";",
    ),
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("super.users", "User:ANONYMOUS;User:onced"),
];

#[test]
fn offsets_of_another_consumer_are_told_and_stay_as_they_are() {
    let test = "offsets_of_another_consumer_are_told_and_stay_as_they_are";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (daemon, group, topic) = prepared(kafka);
    kafka.produce(&topic, (0..5).map(|n| Message::new(n.to_string())));
    kafka.set_offset(&group, &topic, 0, 3, "theirs");
    let before = kafka.committed(&group, &topic, 0);

    let words = [&group, "another consumer has committed offsets; about 3 below them"];
    check(&daemon).ends_with(0).says("note", &words);
    assert_eq!(kafka.committed(&group, &topic, 0), before);
}

#[test]
fn what_run_would_refuse_is_found_before() {
    let test = "what_run_would_refuse_is_found_before";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let (mut daemon, group, topic) = prepared(kafka);
    kafka.produce(&topic, (0..3).map(|n| Message::new(n.to_string())));
    daemon.start();
    daemon.wait_ready();
    check(&daemon)
        .ends_with(0)
        .says("note", &[&group, "1 member now: an onced of this group is running"])
        .says("note", &["log.dir", "another onced is using it"]);
    wait_until("all is handled", Duration::from_secs(60), || {
        let lines = daemon.stdout_lines().len();
        if lines == 3 { Ok(()) } else { Err(lines) }
    });
    daemon.terminate();

    check(&daemon)
        .ends_with(0)
        .says("ok", &[&group, &topic, "goes on at its offsets, 0 behind the end"])
        .says("ok", &["log.dir", "holds the log of 1 partition of this group"]);
    check_with(&daemon, "kafka.group=another")
        .ends_with(1)
        .says("failed", &["log.dir", "belongs to the group", &group]);
    check_with(&daemon, "routes.payments.identity.scope=['topic']")
        .ends_with(1)
        .says("failed", &[&topic, "identity", "exit code 5"]);
    check_with(&daemon, "log.dir=elsewhere")
        .ends_with(0)
        .says("note", &[&topic, "about 3 offsets are read into the log first"]);
    assert!(!daemon.home().join("elsewhere").exists(), "a check makes no directory");

    kafka.set_offset(&group, &topic, 0, 1, "");
    check(&daemon).ends_with(0).says("note", &[&topic, "2 behind the log"]);
    kafka.add_partitions(&topic, 2);
    let added = [&topic, "had 1 partitions and now has 2", "exit code 5"];
    check(&daemon).ends_with(1).says("failed", &added);
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[]);
    check(&daemon).ends_with(1).says("failed", &[&topic, "was recreated", "exit code 5"]);
}
