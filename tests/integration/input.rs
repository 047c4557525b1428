//! Bad input, from records to configuration: a clear result, nothing lost, and the good record
//! that follows is handled.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::{
    Daemon, DaemonBuilder, Kafka, Message, payments, unique, wait_until, wait_until_eq,
};

const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
commit_interval = "100ms"
[kafka.properties]
"reconnect.backoff.max.ms" = 500
[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "1MiB"
[admin]
listen = "{admin}"
[runtime]
workers = 1
[routes.r]
topics = ["{input}"]
handler = { kind = "stdout" }
"#;

fn daemon(group: &str, input: &str, route: &str) -> DaemonBuilder {
    Daemon::with(&[CONFIG, route].concat()).fill("group", group).fill("input", input)
}

#[track_caller]
fn wait_committed(kafka: &Kafka, group: &str, topic: &str, offset: i64) {
    wait_until_eq("the committed offset", SOON, Some(offset), || {
        kafka.committed_offset(group, topic, 0)
    });
}

/// The lines once there are so many, in the order of their offsets.
#[track_caller]
fn wait_lines(daemon: &Daemon, count: usize) -> Vec<Value> {
    wait_until(&format!("{count} lines on standard output"), SOON, || {
        let text = daemon.stdout_lines().join("\n");
        let whole = text.lines().filter(|line| line.ends_with('}')).count();
        if whole >= count { Ok(()) } else { Err(whole) }
    });
    let mut lines = daemon.stdout_json();
    lines.sort_by_key(|line| line["offset"].as_i64());
    lines
}

fn in_base64(bytes: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(bytes) })
}

fn records(daemon: &Daemon, verdict: &str) -> i64 {
    daemon.metrics().value("onced_records_total", &[("verdict", verdict)]) as i64
}

#[test]
fn hostile_records_come_out_as_they_went_in() {
    let Some(kafka) = Kafka::shared_or_skip("hostile_records_come_out_as_they_went_in") else {
        return;
    };
    let input = kafka.topic("hostile").config("max.message.bytes", "4000000").create();
    let group = unique("input");
    let mut daemon = daemon(&group, &input, "").start();
    let large_key = vec![b'k'; 1 << 20];
    let many = (0..10_000).fold(Message::new("many headers"), |message, number| {
        message.header(format!("h{}", number % 7), number.to_string())
    });
    let hostile = [
        Message::new("name").header([0xc3, 0x28], "v").idempotency_key("name"),
        Message::new("value").header("n", [0xff, 0xfe]).idempotency_key("value"),
        Message::new([0, b'\n', b'"', b'\\', 0x1f])
            .key([0])
            .header("n", "a\0b")
            .idempotency_key("nul"),
        Message::new("nul in a name").header("a\0b", "v").idempotency_key("nul name"),
        many.idempotency_key("many"),
        Message::new("twice").idempotency_key("first").idempotency_key("last"),
        Message::new("twice").idempotency_key("last"),
        Message::new("null key").idempotency_key("null key"),
        Message::tombstone("t").idempotency_key("tombstone"),
        Message::new("").key("").idempotency_key("empty"),
        Message::new("large key").key(large_key.clone()).idempotency_key("large key"),
        Message::new([0xff, 0x00, 0xc3]).key([0x80]).idempotency_key("bytes"),
        Message::new("null header").null_header("n").header("", "").idempotency_key("null header"),
        Message::new("\u{fffd}\u{2028}\u{10ffff}\u{7f}").idempotency_key("odd text"),
        // A key that is not UTF-8 is a key like any other.
        Message::new("odd key").header("Idempotency-Key", [0xff]),
        Message::new("odd key").header("Idempotency-Key", [0xff]),
        Message::new("other odd key").header("Idempotency-Key", [0xfe]),
    ];
    // A good record behind each, so that none is lost with its neighbour.
    let good = |at: usize| Message::new("good").idempotency_key(&format!("good {at}"));
    let count = hostile.len();
    let messages = hostile.into_iter().enumerate();
    kafka.produce(&input, messages.flat_map(|(at, message)| [message, good(at)]));

    wait_committed(kafka, &group, &input, 2 * count as i64);
    assert!(daemon.running());
    let lines = wait_lines(&daemon, 2 * count - 2);
    assert_eq!(lines.len(), 2 * count - 2, "two are duplicates");
    assert_eq!(
        (records(&daemon, "fresh"), records(&daemon, "duplicate")),
        (2 * count as i64 - 2, 2)
    );
    let good = lines.iter().filter(|line| line["payload"] == "good").count();
    assert_eq!(good, count);
    let line = |at: i64| {
        let found = lines.iter().find(|line| line["offset"] == 2 * at);
        found.unwrap_or_else(|| panic!("no line for offset {}", 2 * at))
    };
    let with_key =
        |name: Value, value: Value, key: &str| json!([[name, value], ["Idempotency-Key", key]]);
    assert_eq!(line(0)["headers"], with_key(in_base64(&[0xc3, 0x28]), json!("v"), "name"));
    assert_eq!(line(1)["headers"], with_key(json!("n"), in_base64(&[0xff, 0xfe]), "value"));
    assert_eq!(line(2)["payload"], "\0\n\"\\\u{1f}");
    assert_eq!(line(2)["key"], "\0");
    assert_eq!(line(2)["headers"], with_key(json!("n"), json!("a\0b"), "nul"));
    assert_eq!(line(3)["headers"][1], json!(["Idempotency-Key", "nul name"]));
    assert_eq!(line(4)["headers"].as_array().map(Vec::len), Some(10_001));
    assert_eq!(line(4)["headers"][9_999], json!(["h3", "9999"]));
    assert_eq!(
        line(5)["headers"],
        json!([["Idempotency-Key", "first"], ["Idempotency-Key", "last"]])
    );
    assert!(lines.iter().all(|line| line["offset"] != 12), "the last of two headers is the key");
    assert_eq!(line(7)["key"], Value::Null);
    assert_eq!((&line(8)["payload"], &line(8)["key"]), (&Value::Null, &json!("t")));
    assert_eq!((&line(9)["payload"], &line(9)["key"]), (&json!(""), &json!("")));
    assert_eq!(line(10)["key"].as_str().map(str::len), Some(large_key.len()));
    assert_eq!(line(11)["payload"], in_base64(&[0xff, 0x00, 0xc3]));
    assert_eq!(line(11)["key"], in_base64(&[0x80]));
    assert_eq!(
        line(12)["headers"],
        json!([["n", null], ["", ""], ["Idempotency-Key", "null header"]])
    );
    assert_eq!(line(13)["payload"], "\u{fffd}\u{2028}\u{10ffff}\u{7f}");
    assert_ne!(line(14)["identity"], line(16)["identity"]);
    let fields: Vec<_> = line(0).as_object().expect("an object").keys().cloned().collect();
    let expected = [
        "identity",
        "attempt",
        "topic",
        "partition",
        "offset",
        "timestamp",
        "key",
        "headers",
        "payload",
    ];
    assert_eq!(fields, expected, "the fields of the contract, in their order");
    assert_eq!((&line(0)["attempt"], &line(0)["topic"]), (&json!(1), &json!(input)));
    assert!(!daemon.stderr().contains("panicked"), "{}", daemon.stderr());
}

#[test]
fn what_is_not_json_has_no_key_and_is_handled_all_the_same() {
    let test = "what_is_not_json_has_no_key_and_is_handled_all_the_same";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let input = kafka.topic("json").create();
    let group = unique("input");
    let daemon = daemon(&group, &input, "identity = { key = [\"json:/a/0/id\"] }\n").start();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_objects = "{\"a\":".repeat(100_000);
    let without = [
        "not JSON".to_owned(),
        deep,
        deep_objects,
        "{\"a\":[{\"id\":null}]}".to_owned(),
        "{\"a\":[{\"id\":\"\"}]}".to_owned(),
        "{\"a\":[{\"id\":{}}]}".to_owned(),
        "{\"a\":[{\"id\":1}]} trailing".to_owned(),
        "{\"a\":[{\"id\":1}".to_owned(),
        "\u{feff}{\"a\":[{\"id\":1}]}".to_owned(),
        "NaN".to_owned(),
        String::new(),
    ];
    let count = without.len();
    let mut messages: Vec<_> = without.iter().cloned().map(Message::new).collect();
    messages.push(Message::tombstone("k"));
    messages.push(Message::new([b'{', 0xff, b'}']));
    // Twice each: without a key nothing is deduplicated.
    let twice = messages.iter().chain(&messages).cloned().collect::<Vec<_>>();
    kafka.produce(&input, twice);
    let good = Message::new("{ \"a\" : [ {\"id\" : 17} ] }");
    kafka.produce(&input, [good.clone(), good]);

    let count = 2 * (count + 2) + 2;
    let all = count as i64;
    wait_committed(kafka, &group, &input, all);
    let said = daemon.metrics().by_label("onced_records_total", "verdict");
    assert_eq!(said["fresh"] as i64, 1, "{said:?}");
    assert_eq!(said["duplicate"] as i64, 1, "{said:?}");
    assert_eq!(said["unidentified"] as i64, all - 2, "{said:?}");
    let lines = wait_lines(&daemon, count - 1);
    assert!(lines[0]["identity"].is_null(), "{}", lines[0]);
    assert!(lines.last().is_some_and(|line| line["identity"].is_string()));
}

#[test]
fn a_fingerprint_of_what_is_not_json_is_that_of_its_bytes() {
    let test = "a_fingerprint_of_what_is_not_json_is_that_of_its_bytes";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let input = kafka.topic("fingerprint").create();
    let group = unique("input");
    let route = "identity = { key = [\"fingerprint\"] }\n";
    let daemon = daemon(&group, &input, route).start();
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let pairs = [
        (Message::new("not JSON"), Message::new("not  JSON")),
        (Message::new(deep.clone()), Message::new(format!("{deep} "))),
        (Message::new("{\"a\":1,\"b\":2}"), Message::new("{\"a\":1,\"b\":3}")),
        (Message::new("").key("k"), Message::tombstone("k")),
        (Message::new("x").key("k"), Message::new("x").key("")),
        (Message::new("y").key(""), Message::new("y")),
    ];
    let count = pairs.len() as i64;
    let messages = pairs.into_iter().flat_map(|(one, other)| [one.clone(), other, one]);
    kafka.produce(&input, messages.collect::<Vec<_>>());
    kafka.produce(&input, [Message::new(" { \"b\":2.0, \"a\":1 }")]);
    wait_committed(kafka, &group, &input, 3 * count + 1);
    let said = daemon.metrics().by_label("onced_records_total", "verdict");
    assert_eq!(said["fresh"] as i64, 2 * count, "each pair is two messages: {said:?}");
    assert_eq!(said["duplicate"] as i64, count + 1, "each repetition is one: {said:?}");
}

#[test]
fn timestamps_from_1970_to_9999_expire_nothing_early() {
    let test = "timestamps_from_1970_to_9999_expire_nothing_early";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    let input = kafka
        .topic("times")
        .config("message.timestamp.after.max.ms", "9223372036854775807")
        .config("retention.ms", "-1")
        .create();
    let group = unique("input");
    let daemon = daemon(&group, &input, "window = { ttl = \"1h\" }\n").start();
    let in_9999 = 253_402_300_799_000;
    let at = |key: &str, time: i64| Message::new(key).idempotency_key(key).timestamp(time);
    kafka.produce(
        &input,
        [
            Message::new("now").idempotency_key("now"),
            at("1970", 1),
            at("1970", 1),
            at("9999", in_9999),
            at("9999", in_9999),
            at("largest", i64::MAX / 2),
            // The far future moved no clock: what came before is still in its window.
            Message::new("now").idempotency_key("now"),
            at("1970", 1),
            at("good", in_9999 - 1),
            Message::new("good too").idempotency_key("good too"),
        ],
    );
    wait_committed(kafka, &group, &input, 10);
    let said = daemon.metrics().by_label("onced_records_total", "verdict");
    assert_eq!((said["fresh"] as i64, said["duplicate"] as i64), (6, 4), "{said:?}");
    let undated = daemon.metrics().value("onced_undated_total", &[]);
    assert!((undated - 4.0).abs() < 0.1, "dated further ahead than skew: {undated}");
    let lines = wait_lines(&daemon, 6);
    assert_eq!(lines[1]["timestamp"], json!(1), "the record keeps its own time");
    assert_eq!(lines[2]["timestamp"], json!(in_9999));
}

#[test]
fn a_topic_that_is_missing_ends_the_start_with_its_name() {
    let test = "a_topic_that_is_missing_ends_the_start_with_its_name";
    if Kafka::shared_or_skip(test).is_none() {
        return;
    }
    let missing = unique("no-such-topic");
    let mut daemon = daemon(&unique("input"), &missing, "").start();
    assert_eq!(daemon.wait_exit(SOON).code(), Some(1), "{}", daemon.stderr());
    let stderr = daemon.stderr();
    assert!(stderr.contains(&missing) && stderr.contains("routes.r"), "{stderr}");
    assert!(daemon.stdout_lines().is_empty());

    // The dead-letter topic counts too, before a record is read.
    let kafka = Kafka::shared();
    let input = kafka.topic("input").create();
    kafka.produce(&input, [Message::new("good").idempotency_key("good")]);
    let dead = unique("no-such-dead-topic");
    let route = "dead_letter = { topic = \"{dead}\" }\n";
    let mut daemon = self::daemon(&unique("input"), &input, route).fill("dead", &dead).start();
    assert_eq!(daemon.wait_exit(SOON).code(), Some(1), "{}", daemon.stderr());
    assert!(daemon.stderr().contains(&dead), "{}", daemon.stderr());
    kafka.create_topic(&dead, 1, &[]);
    daemon.start();
    assert_eq!(wait_lines(&daemon, 1)[0]["payload"], "good");
}

#[test]
fn a_wrong_password_and_a_broker_that_is_away_are_waited_out() {
    let test = "a_wrong_password_and_a_broker_that_is_away_are_waited_out";
    let settings = [
        (
            "listeners",
            "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_PLAINTEXT://127.0.0.1:{extra}",
        ),
        ("advertised.listeners", "PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{extra}"),
        ("sasl.enabled.mechanisms", "PLAIN"),
        (
            "listener.name.sasl_plaintext.plain.sasl.jaas.config",
            "org.apache.kafka.common.security.plain.PlainLoginModule required user_onced=\"right-secret-1\";",
        ),
    ];
    let Some(kafka) = Kafka::private_or_skip(test, &settings) else { return };
    let input = kafka.topic("input").create();
    let group = unique("input");
    let sasl = "[kafka.properties]\n\"security.protocol\" = \"sasl_plaintext\"\n\
        \"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"onced\"\n\
        \"sasl.password\" = \"{password}\"\n\"debug\" = \"security,conf,broker\"\n";
    let config = CONFIG.replace("[kafka.properties]\n", sasl).replace("{brokers}", kafka.extra());
    let mut daemon = Daemon::with(&config)
        .fill("group", &group)
        .fill("input", &input)
        .fill("password", "wrong-secret-2")
        .env("ONCED_LOG", "debug")
        .prepare();
    kafka.produce(&input, [Message::new("good").idempotency_key("good")]);
    daemon.start();
    wait_until("it says what is wrong", SOON, || match daemon.get("/readyz") {
        Ok(reply) if reply.status == 503 && reply.body.contains("uthentication") => Ok(()),
        Ok(reply) => Err(reply.body),
        Err(error) => Err(error.to_string()),
    });
    assert!(daemon.stderr().contains("uthentication"), "{}", daemon.stderr());
    assert!(daemon.running() && daemon.stdout_lines().is_empty());
    assert_eq!(daemon.get("/livez").expect("an answer").status, 200);
    assert!(daemon.terminate().success(), "it can be stopped while it waits");
    let text = fs::read_to_string(daemon.config_path()).expect("its configuration");
    let mended = text.replace("wrong-secret-2", "right-secret-1");
    fs::write(daemon.config_path(), mended).expect("the folder can be written");
    daemon.start();
    assert_eq!(wait_lines(&daemon, 1)[0]["payload"], "good");
    daemon.wait_ready();

    // The broker goes away in the middle and comes back 20 seconds later.
    let status = daemon.status().to_string();
    let (batch, distinct) = (payments(5_000, 0.2, 7), payments(5_000, 0.2, 7).distinct());
    kafka.produce(&input, batch);
    kafka.stop();
    std::thread::sleep(Duration::from_secs(20));
    assert!(daemon.running(), "{}", daemon.stderr());
    assert_eq!(daemon.get("/livez").expect("an answer").status, 200);
    kafka.start();
    let late = (0..10).map(|n| Message::new("late").idempotency_key(&format!("late {n}")));
    kafka.produce(&input, late);
    wait_committed(&kafka, &group, &input, 5_011);
    daemon.wait_ready();
    let lines = daemon.stdout_json();
    assert_eq!(lines.len() as u64, distinct + 11, "once each");
    assert_eq!(daemon.stdout_lines().len() as u64, distinct + 11);
    assert!(daemon.terminate().success());
    for secret in ["right-secret-1", "wrong-secret-2"] {
        assert!(!daemon.stderr().contains(secret), "the log tells a password");
        assert!(!status.contains(secret), "/status tells a password");
    }
}

/// Somebody who owns nothing. `None` where nobody can be somebody else here.
fn as_nobody(arguments: &[&str]) -> Option<Output> {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = if root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(env!("CARGO_BIN_EXE_onced"));
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_onced"))
    };
    let output = command.args(arguments).env("RUST_BACKTRACE", "0").output();
    output.ok().filter(|output| !String::from_utf8_lossy(&output.stderr).contains("setpriv: "))
}

#[test]
fn a_data_directory_without_permission_is_named() {
    let test = "a_data_directory_without_permission_is_named";
    let Some(kafka) = Kafka::shared_or_skip(test) else { return };
    if as_nobody(&["--version"]).is_none_or(|output| !output.status.success()) {
        eprintln!("skipped {test}: onced cannot be run as somebody else here");
        return;
    }
    let input = kafka.topic("input").create();
    kafka.produce(&input, [Message::new("good").idempotency_key("good")]);
    let mut daemon = daemon(&unique("input"), &input, "").prepare();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    fs::create_dir(daemon.data_dir()).expect("the folder is ours");
    mode(daemon.home(), 0o755);
    mode(&daemon.config_path(), 0o644);
    mode(&daemon.data_dir(), 0o555);
    let config = daemon.config_path();
    let config = config.to_str().expect("a name in UTF-8");
    let output = as_nobody(&["run", "--config", config]).expect("it ran before");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let dir = daemon.data_dir().display().to_string();
    let last = stderr.lines().filter(|line| !line.contains("INFO")).collect::<Vec<_>>().join("\n");
    assert!(last.contains(&dir) && last.contains("ermission"), "{stderr}");
    assert!(!stderr.contains("panicked") && output.stdout.is_empty(), "{stderr}");

    mode(&daemon.data_dir(), 0o755);
    daemon.start();
    assert_eq!(wait_lines(&daemon, 1)[0]["payload"], "good");
}

/// Exit code 3 and these words, before anything is opened.
#[track_caller]
fn check_refused(change: impl FnOnce(&str) -> String, words: &[&str]) {
    let nobody = "127.0.0.1:9";
    let daemon = Daemon::with(&change(CONFIG).replace("{brokers}", nobody))
        .fill("group", "g")
        .fill("input", "t")
        .prepare();
    let output = daemon.run(["run"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word} in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "standard output is for records");
    assert!(!stderr.contains("hush-hush"), "a password is told: {stderr}");
    assert!(!daemon.data_dir().exists(), "nothing is opened before all is checked");
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_with_the_way_out() {
    if Kafka::shared_or_skip("a_configuration_that_cannot_be_meant_is_refused_with_the_way_out")
        .is_none()
    {
        return;
    }
    let with = |more: &str| {
        let more = more.to_owned();
        move |config: &str| format!("{config}{more}")
    };
    check_refused(
        with("[routes.r.window]\nttll = \"1h\"\n"),
        &["routes.r.window.ttll", "routes.r.window.ttl"],
    );
    check_refused(with("mod = \"at-least-once\"\n"), &["routes.r.mod", "routes.r.mode"]);
    check_refused(with("[routes.r.window]\nttl = \"0s\"\n"), &["routes.r.window.ttl", "1ms"]);
    check_refused(with("[routes.r.window]\nttl = \"-1h\"\n"), &["routes.r.window.ttl"]);
    check_refused(
        with("mode = \"exactly-once\"\n"),
        &["routes.r.mode", "exactly-once", "at-least-once"],
    );
    check_refused(with("mode = \"sometimes\"\n"), &["routes.r.mode", "sometimes", "at-least-once"]);
    check_refused(with("[routes.r.policy]\nconflict = \"dead-letter\"\n"), &["dead_letter.topic"]);
    check_refused(
        with("[routes.s]\ntopics = [\"t\"]\nhandler = { kind = \"stdout\" }\n"),
        &["topics", "\"t\""],
    );
    check_refused(with("[kafka.properties]\n"), &["onced.toml:", "duplicate key"]);
    check_refused(
        |config| config.replace("[kafka.properties]", "[kafka.properties]\n\"group.id\" = \"x\""),
        &["group.id", "kafka.group"],
    );
    check_refused(
        |config| {
            config.replace("[kafka.properties]", "[kafka.properties]\n\"no.such.property\" = 1")
        },
        &["kafka.properties.\"no.such.property\"", "onced.toml:"],
    );
    check_refused(
        |config| config.replace("kind = \"stdout\"", "kind = \"stdoutt\""),
        &["stdoutt", "stdout"],
    );
    check_refused(|_| "this is [not TOML".to_owned(), &["onced.toml"]);
    // All that is wrong is said at once.
    check_refused(
        with("mode = \"sometimes\"\n[routes.r.window]\nttl = \"0s\"\n"),
        &["routes.r.mode", "routes.r.window.ttl"],
    );
}

#[test]
fn a_password_in_the_wrong_place_is_not_told() {
    if Kafka::shared_or_skip("a_password_in_the_wrong_place_is_not_told").is_none() {
        return;
    }
    let property = |line: &str| {
        let lines = format!("[kafka.properties]\n{line}");
        move |config: &str| config.replace("[kafka.properties]", &lines)
    };
    check_refused(property("\"sasl.passwordd\" = \"hush-hush\""), &["sasl.passwordd"]);
    check_refused(property("\"sasl.password\" = [\"hush-hush\"]"), &["sasl.password"]);
    check_refused(property("\"sasl.password\" = \"hush-hush"), &["onced.toml:"]);
    check_refused(property("\"bootstrap.servers\" = \"hush-hush\""), &["bootstrap.servers"]);
    check_refused(
        |config| config.replace("[kafka]", "[kafka]\nsasl_password = \"hush-hush\""),
        &["kafka.sasl_password"],
    );
    check_refused(
        |config| config.replace("[kafka]", "password = \"hush-hush\"\n[kafka]"),
        &["password"],
    );
    let http = |url: &str| {
        let handler = format!("kind = \"http\", url = \"{url}\"");
        move |config: &str| config.replace("kind = \"stdout\"", &handler)
    };
    check_refused(http("htp://user:hush-hush@host/"), &["routes.r.handler.url"]);
    check_refused(http("user:hush-hush@host"), &["routes.r.handler.url"]);
    check_refused(http("http://user:hush-hush@ho st/"), &["routes.r.handler.url"]);
}
