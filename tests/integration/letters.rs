//! Dead letters: what is in them, what they settle, and what happens where none can be sent.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{
    Daemon, DaemonBuilder, HttpService, Kafka, Message, OwnedRecord, Response, unique, wait_until,
    wait_until_eq,
};

const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
commit_interval = "100ms"
[kafka.properties]
"session.timeout.ms" = 6000
"heartbeat.interval.ms" = 500
"message.timeout.ms" = 2000
"topic.metadata.refresh.interval.ms" = 1000
"topic.metadata.propagation.max.ms" = 1000
[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "1MiB"
[admin]
listen = "{admin}"
[runtime]
workers = 1
drain_timeout = "10s"
[routes.r]
topics = ["{input}"]
retry = { attempts = 3, backoff = { first = "10ms", max = "50ms" } }
handler = { kind = "http", url = "{url}" }
"#;

const DEAD_LETTER: &str = "dead_letter = { topic = \"{dead}\" }\n";

/// Topics and a group of one test's own.
struct Scene {
    kafka: &'static Kafka,
    input: String,
    dead: String,
    group: String,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        Self::with_dead_topic(test, &[])
    }

    fn with_dead_topic(test: &str, config: &[(&str, &str)]) -> Option<Self> {
        let kafka = Kafka::shared_or_skip(test)?;
        let mut dead = kafka.topic("dead");
        for (key, value) in config {
            dead = dead.config(key, value);
        }
        let (input, dead) = (kafka.topic("input").create(), dead.create());
        Some(Self { kafka, input, dead, group: unique("letters") })
    }

    /// A daemon with a dead-letter topic. `route`: further lines of the route.
    fn daemon(&self, service: &HttpService, route: &str) -> DaemonBuilder {
        self.daemon_without_dead_topic(service, &[DEAD_LETTER, route].concat())
    }

    fn daemon_without_dead_topic(&self, service: &HttpService, route: &str) -> DaemonBuilder {
        Daemon::with(&[CONFIG, route].concat())
            .fill("group", &self.group)
            .fill("input", &self.input)
            .fill("dead", &self.dead)
            .fill("url", &service.url("/"))
    }

    fn letters(&self, count: usize) -> Vec<OwnedRecord> {
        self.kafka.read_at_least(&self.dead, count, SOON)
    }

    #[track_caller]
    fn wait_committed(&self, offset: i64) {
        wait_until_eq("the committed offset", SOON, Some(offset), || {
            self.kafka.committed_offset(&self.group, &self.input, 0)
        });
    }

    fn source(&self, offset: i64) -> String {
        format!("{}/0/{offset}", self.input)
    }
}

/// Rejects what says "bad", until it is told to accept everything.
fn service_that_rejects_bad() -> (HttpService, Arc<AtomicBool>) {
    let accept = Arc::new(AtomicBool::new(false));
    let accepts = Arc::clone(&accept);
    let service = HttpService::start(move |request| {
        if accepts.load(Ordering::SeqCst) || !request.body_text().contains("bad") {
            return Response::ok();
        }
        Response::status(400).body("the amount is bad")
    });
    (service, accept)
}

fn sources(service: &HttpService) -> Vec<String> {
    service.header_values("onced-source")
}

fn count(daemon: &Daemon, name: &str, labels: &[(&str, &str)]) -> i64 {
    daemon.metrics().value(name, labels) as i64
}

fn records(daemon: &Daemon, verdict: &str) -> i64 {
    count(daemon, "onced_records_total", &[("verdict", verdict)])
}

#[track_caller]
fn wait_records(daemon: &Daemon, verdict: &str, expected: i64) {
    wait_until_eq(&format!("records counted as {verdict}"), SOON, expected, || {
        records(daemon, verdict)
    });
}

#[track_caller]
fn header(letter: &OwnedRecord, name: &str) -> String {
    let name = format!("onced-dead-letter-{name}");
    letter.header(&name).unwrap_or_else(|| panic!("no header {name}: {letter:?}"))
}

#[test]
fn a_rejected_record_becomes_a_letter_that_says_everything() {
    let Some(scene) = Scene::new("a_rejected_record_becomes_a_letter_that_says_everything") else {
        return;
    };
    let (service, accept) = service_that_rejects_bad();
    let mut daemon = scene.daemon(&service, "").start();
    daemon.wait_ready();
    let message = Message::new([b"bad \xff\x00".as_slice(), b"end"].concat())
        .key([0xfe, b'k'])
        .header([0xc3, 0x28], "a name that is not UTF-8")
        .header("twice", "first")
        .header("twice", [0xff])
        .null_header("null")
        .idempotency_key("one");
    scene.kafka.produce(&scene.input, [message.clone()]);

    let letters = scene.letters(1);
    let [letter] = letters.as_slice() else { panic!("one letter: {letters:?}") };
    assert_eq!((&letter.key, &letter.payload), (&message.key, &message.payload));
    assert_eq!(&letter.headers[..5], message.headers, "the record's own headers come first");
    let names: Vec<_> =
        letter.headers[5..].iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
    let expected =
        ["reason", "error", "attempts", "route", "source", "timestamp", "identity", "group"]
            .map(|name| format!("onced-dead-letter-{name}"));
    assert_eq!(names, expected);
    assert_eq!(header(letter, "reason"), "rejected");
    let error = header(letter, "error");
    assert!(error.contains("400") && error.contains("the amount is bad"), "{error}");
    assert_eq!(header(letter, "attempts"), "1");
    assert_eq!(header(letter, "route"), "r");
    assert_eq!(header(letter, "source"), scene.source(0));
    let said = humantime::parse_rfc3339(&header(letter, "timestamp")).expect("RFC 3339");
    let said = said.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let written = letter.timestamp.expect("a timestamp");
    assert!((written - said).abs() < 60_000, "dated now: {said} {written}");
    let key = service.requests()[0].header("Idempotency-Key").map(str::to_owned);
    assert_eq!(Some(header(letter, "identity")), key, "the handler was given the identity");

    scene.wait_committed(1);
    let group = header(letter, "group");
    let parts: Vec<_> = group.split('/').collect();
    let [name, topic_id, "0"] = parts.as_slice() else { panic!("group/topic id/0: {group}") };
    assert_eq!(*name, scene.group);
    let metadata = scene.kafka.committed(&scene.group, &scene.input, 0).expect("an offset");
    let metadata = metadata.metadata;
    assert!(!topic_id.is_empty() && metadata.contains(topic_id), "{topic_id} in {metadata}");

    assert_eq!(count(&daemon, "onced_dead_letters_total", &[("reason", "rejected")]), 1);
    assert_eq!(count(&daemon, "onced_dead_letters_total", &[]), 1);
    assert_eq!(count(&daemon, "onced_outcomes_total", &[("outcome", "reject")]), 1);
    assert_eq!(records(&daemon, "fresh"), 1);

    // What was dead-lettered leaves no entry; what is handled does.
    accept.store(true, Ordering::SeqCst);
    scene.kafka.produce(&scene.input, [message.clone(), message]);
    wait_records(&daemon, "duplicate", 1);
    scene.wait_committed(3);
    assert_eq!(sources(&service), [scene.source(0), scene.source(1)]);
    assert_eq!(records(&daemon, "fresh"), 2);
}

#[test]
fn exhausted_retries_become_a_letter_and_let_the_next_of_the_key_go() {
    let test = "exhausted_retries_become_a_letter_and_let_the_next_of_the_key_go";
    let Some(scene) = Scene::new(test) else { return };
    let first = scene.source(0);
    let service = HttpService::start(move |request| {
        if request.header("onced-source") == Some(&first) {
            Response::status(503).body("later")
        } else {
            Response::ok()
        }
    });
    let mut daemon = scene.daemon(&service, "").start();
    daemon.wait_ready();
    let same = Message::new("p").key("k").idempotency_key("same");
    scene.kafka.produce(&scene.input, [same.clone(), same.clone(), same]);

    let letters = scene.letters(1);
    assert_eq!(header(&letters[0], "reason"), "exhausted");
    assert_eq!(header(&letters[0], "attempts"), "3");
    assert!(header(&letters[0], "error").contains("503"), "{:?}", letters[0]);
    wait_records(&daemon, "duplicate", 1);
    scene.wait_committed(3);
    let calls: Vec<_> = service
        .requests()
        .iter()
        .map(|request| {
            let source = request.header("onced-source").expect("a source").to_owned();
            (source, request.header("onced-attempt").expect("an attempt").to_owned())
        })
        .collect();
    let call = |offset, attempt: &str| (scene.source(offset), attempt.to_owned());
    assert_eq!(calls, [call(0, "1"), call(0, "2"), call(0, "3"), call(1, "1")]);
    assert_eq!(scene.letters(1).len(), 1);
    assert_eq!(records(&daemon, "fresh"), 2);
    assert_eq!(count(&daemon, "onced_outcomes_total", &[("outcome", "retry")]), 3);
}

#[test]
fn dead_lettering_a_letter_again_replaces_its_headers() {
    let Some(scene) = Scene::new("dead_lettering_a_letter_again_replaces_its_headers") else {
        return;
    };
    let (service, _) = service_that_rejects_bad();
    let _daemon = scene.daemon(&service, "").start();
    let earlier = Message::new("bad")
        .header("onced-dead-letter-reason", "exhausted")
        .header("before", "kept")
        .header("onced-dead-letter-truncated", "payload")
        .header("onced-dead-letter-group", "elsewhere/id/7")
        .header("onced-dead-letter-source", "elsewhere/3/5")
        .idempotency_key("one");
    scene.kafka.produce(&scene.input, [earlier]);

    let letter = &scene.letters(1)[0];
    let ours = |name: &[u8]| name.starts_with(b"onced-dead-letter-");
    let mut names: Vec<_> = letter.headers.iter().map(|(name, _)| name.clone()).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "each header once: {letter:?}");
    assert_eq!(names.iter().filter(|name| ours(name)).count(), 8);
    assert_eq!(letter.header("onced-dead-letter-truncated"), None);
    assert_eq!(header(letter, "reason"), "rejected");
    assert_eq!(header(letter, "source"), scene.source(0));
    assert_eq!(letter.header("before").as_deref(), Some("kept"));
}

#[test]
fn letters_settle_their_records_when_the_log_is_lost() {
    let Some(scene) = Scene::new("letters_settle_their_records_when_the_log_is_lost") else {
        return;
    };
    let (service, accept) = service_that_rejects_bad();
    let mut daemon = scene.daemon(&service, "").start();
    let a = Message::new("good").idempotency_key("a");
    let b = Message::new("bad").idempotency_key("b");
    let c = Message::new("good too").idempotency_key("c");
    scene.kafka.produce(&scene.input, [a.clone(), b.clone(), c]);
    scene.letters(1);
    scene.wait_committed(3);
    assert!(daemon.terminate().success());
    fs::remove_dir_all(daemon.data_dir()).expect("the data directory is there");

    accept.store(true, Ordering::SeqCst);
    daemon.start();
    daemon.wait_ready();
    wait_records(&daemon, "absorbed", 2);
    wait_records(&daemon, "replayed", 1);
    assert_eq!(service.requests().len(), 3, "nothing is handled while it absorbs");
    scene.kafka.produce(&scene.input, [a, b]);
    scene.wait_committed(5);
    assert_eq!(records(&daemon, "duplicate"), 1, "what was handled is known again");
    assert_eq!(records(&daemon, "fresh"), 1, "what was a letter left no entry");
    assert_eq!(sources(&service)[3..], [scene.source(4)]);
}

#[test]
fn a_letter_that_the_log_never_heard_of_settles_its_record() {
    let Some(scene) = Scene::new("a_letter_that_the_log_never_heard_of_settles_its_record") else {
        return;
    };
    let (service, accept) = service_that_rejects_bad();
    let mut daemon = scene.daemon(&service, "").start();
    scene.kafka.produce(&scene.input, [Message::new("bad").idempotency_key("0")]);
    let letter = scene.letters(1).remove(0);
    scene.wait_committed(1);
    assert!(daemon.terminate().success());

    // As if the daemon had died between the letter and its log.
    let numbers = ["1", "2", "3", "4"];
    let messages = numbers.map(|number| Message::new("bad").idempotency_key(number));
    scene.kafka.produce(&scene.input, messages);
    let group = header(&letter, "group");
    let another_group = format!("another-{group}");
    let another_topic = group.replace(&format!("{}/", scene.group), &format!("{}/x", scene.group));
    let letters = [(1, &group), (2, &another_group), (3, &another_topic)].map(|(offset, group)| {
        let replaced = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| {
            let value = match name.as_slice() {
                b"onced-dead-letter-source" => Some(scene.source(offset).into_bytes()),
                b"onced-dead-letter-group" => Some(group.clone().into_bytes()),
                _ => value.clone(),
            };
            (name.clone(), value)
        };
        let headers = letter.headers.iter().map(replaced).collect();
        Message { headers, ..Message::new("bad") }
    });
    scene.kafka.produce(&scene.dead, letters);

    accept.store(true, Ordering::SeqCst);
    daemon.start();
    scene.wait_committed(5);
    let mut handled = sources(&service).split_off(1);
    handled.sort();
    assert_eq!(handled, [2, 3, 4].map(|offset| scene.source(offset)), "all but the settled one");
    assert_eq!((records(&daemon, "fresh"), records(&daemon, "replayed")), (3, 1));
    let metrics = daemon.metrics();
    assert!(metrics.value("onced_lag_records", &[]) < 0.5, "{metrics:?}");
}

/// The route pauses at the record at offset 0; mended and started again, nothing is missing.
#[track_caller]
fn check_pause(
    scene: &Scene,
    mut daemon: Daemon,
    accept: &AtomicBool,
    service: &HttpService,
    reason: &[&str],
) {
    let said = wait_until("it is not ready and says why", SOON, || match daemon.get("/readyz") {
        Ok(reply) if reply.status == 503 && reply.body.contains("paused") => Ok(reply.body),
        Ok(reply) => Err(reply.body),
        Err(error) => Err(error.to_string()),
    });
    for part in reason {
        assert!(said.contains(part), "{part} in: {said}");
    }
    let source = scene.source(0);
    assert!(said.contains(&source), "{source} in: {said}");
    let status = daemon.status();
    let because = status["routes"][0]["paused_because"].as_str().unwrap_or_default();
    assert!(because.contains(&source), "{status}");
    assert_eq!(status["ready"], false);
    assert_eq!(daemon.get("/livez").expect("an answer").status, 200, "restarting would not help");
    assert!(daemon.metrics().value("onced_ready", &[]) < 0.5);

    accept.store(true, Ordering::SeqCst);
    assert!(daemon.terminate().success());
    let committed = scene.kafka.committed_offset(&scene.group, &scene.input, 0);
    assert!(committed.unwrap_or(0) == 0, "nothing is committed past the record: {committed:?}");
    daemon.start();
    daemon.wait_ready();
    scene.wait_committed(2);
    let handled = service.requests();
    assert_eq!(handled.iter().filter(|request| request.body_text() == "good").count(), 1);
    let last = handled.iter().rfind(|request| request.header("onced-source") == Some(&source));
    assert_eq!(last.and_then(|request| request.header("onced-attempt")), Some("1"));
    assert!(scene.kafka.read_all(&scene.dead).is_empty(), "no letter was written");
}

#[test]
fn without_a_dead_letter_topic_a_rejected_record_pauses_the_route() {
    let Some(scene) = Scene::new("without_a_dead_letter_topic_a_rejected_record_pauses_the_route")
    else {
        return;
    };
    let (service, accept) = service_that_rejects_bad();
    let daemon = scene.daemon_without_dead_topic(&service, "").start();
    let messages = ["bad", "good"].map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    check_pause(&scene, daemon, &accept, &service, &["rejected", "400", "dead_letter.topic"]);
}

#[test]
fn exhausted_pause_waits_for_the_other_system() {
    let Some(scene) = Scene::new("exhausted_pause_waits_for_the_other_system") else { return };
    let accept = Arc::new(AtomicBool::new(false));
    let accepts = Arc::clone(&accept);
    let service = HttpService::start(move |request| {
        let fails = request.body_text() == "bad" && !accepts.load(Ordering::SeqCst);
        Response::status(if fails { 503 } else { 200 })
    });
    let route = "[routes.r.retry]\nattempts = 2\nexhausted = \"pause\"\nbackoff.first = \"10ms\"\n";
    let config = CONFIG.replace("retry = {", "#").replace("[routes.r]", "[routes.r]\n{letter}");
    let daemon = Daemon::with(&[&config, route].concat())
        .fill("letter", DEAD_LETTER)
        .fill("group", &scene.group)
        .fill("input", &scene.input)
        .fill("dead", &scene.dead)
        .fill("url", &service.url("/"))
        .start();
    let messages = ["bad", "good"].map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    check_pause(&scene, daemon, &accept, &service, &["failed 2 times", "503", "pause"]);
    let failed = service.requests().iter().filter(|request| request.body_text() == "bad").count();
    assert_eq!(failed, 3, "two attempts, and one after the restart");
}

#[test]
fn without_a_dead_letter_topic_a_conflict_pauses_the_route() {
    let Some(scene) = Scene::new("without_a_dead_letter_topic_a_conflict_pauses_the_route") else {
        return;
    };
    let (service, _) = service_that_rejects_bad();
    let mut daemon = scene.daemon_without_dead_topic(&service, "").start();
    let messages = ["one", "other"].map(|text| Message::new(text).idempotency_key("same"));
    scene.kafka.produce(&scene.input, messages);
    wait_until("it is paused", SOON, || {
        daemon.get("/readyz").is_ok_and(|reply| reply.body.contains("conflict"))
    });
    assert!(daemon.terminate().success());
    scene.wait_committed(1);
    assert_eq!(sources(&service), [scene.source(0)]);
}

#[test]
fn a_conflict_becomes_a_letter() {
    let Some(scene) = Scene::new("a_conflict_becomes_a_letter") else { return };
    let (service, _) = service_that_rejects_bad();
    let daemon = scene.daemon(&service, "").start();
    let messages = ["one", "other", "one"].map(|text| Message::new(text).idempotency_key("same"));
    scene.kafka.produce(&scene.input, messages);
    let letter = &scene.letters(1)[0];
    scene.wait_committed(3);
    assert_eq!(letter.payload_text().as_deref(), Some("other"));
    assert_eq!(header(letter, "reason"), "conflict");
    assert_eq!(header(letter, "attempts"), "0");
    assert_eq!(sources(&service), [scene.source(0)]);
    assert_eq!((records(&daemon, "conflict"), records(&daemon, "duplicate")), (1, 1));
}

#[test]
fn a_letter_that_is_too_large_leaves_out_what_does_not_fit() {
    let test = "a_letter_that_is_too_large_leaves_out_what_does_not_fit";
    let Some(scene) = Scene::with_dead_topic(test, &[("max.message.bytes", "2000")]) else {
        return;
    };
    let service = HttpService::start(|_| Response::status(400));
    let daemon = scene.daemon(&service, "").start();
    let large = "x".repeat(5_000);
    let messages = [
        Message::new("small").key("k").header("h", "small"),
        Message::new(large.clone()).key("k").header("h", "small"),
        Message::new(large.clone()).key("k").header("h", large.clone()),
        Message::new(large.clone()).key(large.clone()).header("h", large),
        Message::new("small again").key("k").header("h", "small"),
    ];
    let numbered = (0..).zip(messages);
    let messages = numbered.map(|(at, message): (i32, _)| message.idempotency_key(&at.to_string()));
    scene.kafka.produce(&scene.input, messages);

    let mut letters = scene.letters(5);
    letters.sort_by_key(|letter| header(letter, "source"));
    let said: Vec<_> = letters
        .iter()
        .map(|letter| {
            let truncated = letter.header("onced-dead-letter-truncated");
            (letter.payload_text(), letter.key_text(), letter.header("h"), truncated)
        })
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        said,
        [
            (some("small"), some("k"), some("small"), None),
            (None, some("k"), some("small"), some("payload")),
            (None, some("k"), None, some("payload,headers")),
            (None, None, None, some("payload,headers,key")),
            (some("small again"), some("k"), some("small"), None),
        ]
    );
    for letter in &letters {
        assert_eq!(header(letter, "reason"), "rejected", "the reason stays what it was");
        assert!(header(letter, "group").starts_with(&scene.group));
    }
    scene.wait_committed(5);
    assert_eq!(count(&daemon, "onced_dead_letters_total", &[]), 5);
}

#[test]
fn a_record_of_ten_megabytes_is_handled_and_another_one_dead_lettered() {
    let test = "a_record_of_ten_megabytes_is_handled_and_another_one_dead_lettered";
    let Some(scene) = Scene::new(test) else { return };
    let service = HttpService::start(|request| {
        Response::status(if request.body.starts_with(b"b") { 400 } else { 200 })
    });
    let _daemon = scene.daemon(&service, "").start();
    let good = vec![b'g'; 10_000_000];
    let bad = vec![b'b'; 10_000_000];
    scene.kafka.produce(
        &scene.input,
        [
            Message::new(good.clone()).idempotency_key("good"),
            Message::new(bad.clone()).idempotency_key("bad"),
            Message::new(good.clone()).idempotency_key("good"),
        ],
    );
    scene.wait_committed(3);
    let requests = service.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().any(|request| request.body == good), "it arrives whole");
    let letters = scene.letters(1);
    assert_eq!(letters.len(), 1);
    assert!(letters[0].payload.as_ref() == Some(&bad), "the letter is whole");
    assert_eq!(letters[0].header("onced-dead-letter-truncated"), None);
}

#[test]
fn a_record_without_a_key_becomes_a_letter_where_the_policy_says_so() {
    let test = "a_record_without_a_key_becomes_a_letter_where_the_policy_says_so";
    let Some(scene) = Scene::new(test) else { return };
    let (service, _) = service_that_rejects_bad();
    let route = "identity = { key = [\"json:/id\"], missing = \"dead-letter\" }\n";
    let daemon = scene.daemon(&service, route).start();
    let messages = [r#"{"id":1}"#, r#"{"other":1}"#, "not JSON"].map(Message::new);
    scene.kafka.produce(&scene.input, messages);
    let letters = scene.letters(2);
    scene.wait_committed(3);
    let mut said: Vec<_> =
        letters.iter().map(|letter| (header(letter, "source"), header(letter, "reason"))).collect();
    said.sort();
    assert_eq!(
        said,
        [
            (scene.source(1), "missing-identity".to_owned()),
            (scene.source(2), "undecodable".to_owned()),
        ]
    );
    for letter in &letters {
        assert_eq!(header(letter, "attempts"), "0");
        assert_eq!(letter.header("onced-dead-letter-identity"), None);
    }
    assert_eq!(sources(&service), [scene.source(0)]);
    assert_eq!((records(&daemon, "fresh"), records(&daemon, "unidentified")), (1, 2));
}

#[test]
fn missing_fail_ends_with_the_coordinates_and_settles_nothing() {
    let Some(scene) = Scene::new("missing_fail_ends_with_the_coordinates_and_settles_nothing")
    else {
        return;
    };
    let (service, _) = service_that_rejects_bad();
    let route = "identity = { missing = \"{missing}\" }\n";
    let mut daemon = scene.daemon(&service, route).fill("missing", "fail").prepare();
    scene.kafka.produce(
        &scene.input,
        [Message::new("first").idempotency_key("1"), Message::new("no key")],
    );
    daemon.start();
    let status = daemon.wait_exit(SOON);
    assert_eq!(status.code(), Some(1), "{}", daemon.stderr());
    let (stderr, source) = (daemon.stderr(), scene.source(1));
    assert!(stderr.contains(&format!("{source} has none of the keys")), "{stderr}");
    let committed = scene.kafka.committed_offset(&scene.group, &scene.input, 0);
    assert!(committed <= Some(1), "{committed:?}");

    let config = fs::read_to_string(daemon.config_path()).expect("its configuration");
    let mended = config.replace("\"fail\"", "\"process\"");
    fs::write(daemon.config_path(), mended).expect("the folder can be written");
    daemon.start();
    scene.wait_committed(2);
    let handled = sources(&service);
    assert!(handled.contains(&source), "{handled:?}");
    // The first one was with the handler when the daemon failed: once more at the most.
    assert!(handled.len() <= 3, "{handled:?}");
    assert!(scene.kafka.read_all(&scene.dead).is_empty());
}

#[test]
fn a_letter_is_sent_again_until_its_topic_is_back() {
    let Some(scene) = Scene::new("a_letter_is_sent_again_until_its_topic_is_back") else { return };
    let (service, _) = service_that_rejects_bad();
    let mut daemon = scene.daemon(&service, "").start();
    scene.kafka.produce(&scene.input, [Message::new("bad").idempotency_key("0")]);
    scene.letters(1);
    scene.wait_committed(1);
    scene.kafka.delete_topic(&scene.dead);

    let messages = ["bad", "good"].map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    wait_until("the letter is not acknowledged", SOON, || {
        daemon.stderr().contains("was not acknowledged; it is sent again")
    });
    service.wait_for(3, SOON);
    assert!(daemon.running(), "it goes on");
    assert_eq!(scene.kafka.committed_offset(&scene.group, &scene.input, 0), Some(1));

    scene.kafka.create_topic(&scene.dead, 1, &[]);
    let letters = scene.letters(1);
    scene.wait_committed(3);
    assert_eq!(header(&letters[0], "source"), scene.source(1));
    assert_eq!(service.requests().len(), 3, "no handler was called again");
    assert_eq!(records(&daemon, "fresh"), 3);
    assert_eq!(count(&daemon, "onced_dead_letters_total", &[]), 2);
}

#[test]
fn a_stop_while_a_letter_cannot_be_sent_loses_nothing() {
    let Some(scene) = Scene::new("a_stop_while_a_letter_cannot_be_sent_loses_nothing") else {
        return;
    };
    let (service, _) = service_that_rejects_bad();
    let route = "[runtime]\ndrain_timeout = \"2s\"\n";
    let config = CONFIG.replace("[runtime]\nworkers = 1\ndrain_timeout = \"10s\"\n", "");
    let mut daemon = Daemon::with(&[&config, DEAD_LETTER, route].concat())
        .fill("group", &scene.group)
        .fill("input", &scene.input)
        .fill("dead", &scene.dead)
        .fill("url", &service.url("/"))
        .start();
    daemon.wait_ready();
    scene.kafka.delete_topic(&scene.dead);
    let messages = ["good", "bad", "good too"].map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    service.wait_for(3, SOON);
    scene.wait_committed(1);
    assert!(daemon.terminate().success(), "it does not wait for ever");
    assert_eq!(scene.kafka.committed_offset(&scene.group, &scene.input, 0), Some(1));

    scene.kafka.create_topic(&scene.dead, 1, &[]);
    daemon.start();
    scene.wait_committed(3);
    let letters = scene.kafka.read_all(&scene.dead);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(header(&letters[0], "source"), scene.source(1));
    let handled = sources(&service);
    assert_eq!(handled.iter().filter(|source| **source == scene.source(2)).count(), 1);
    assert_eq!(handled.len(), 4, "only the rejected one was asked for again");
}

#[test]
fn a_kill_in_the_middle_of_letters_writes_none_twice_and_loses_none() {
    let test = "a_kill_in_the_middle_of_letters_writes_none_twice_and_loses_none";
    let Some(scene) = Scene::new(test) else { return };
    const COUNT: usize = 2_000;
    let service = HttpService::start(|_| Response::status(422));
    let mut daemon = scene.daemon(&service, "").start();
    let messages = (0..COUNT).map(|n| Message::new("bad").idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    for part in [COUNT / 4, COUNT / 2] {
        wait_until("some letters are written", SOON, || {
            scene.kafka.end_offset(&scene.dead, 0) > part as i64
        });
        daemon.kill();
        daemon.start();
    }
    scene.wait_committed(COUNT as i64);
    let letters = scene.kafka.read_all(&scene.dead);
    let mut settled: Vec<_> = letters.iter().map(|letter| header(letter, "source")).collect();
    settled.sort();
    settled.dedup();
    assert_eq!(settled.len(), COUNT, "each record has a letter");
    assert_eq!(letters.len(), COUNT, "and no record has two");
    let calls = service.requests().len();
    assert!(calls <= COUNT + 2 * 64, "a kill repeats at most what was with the handler: {calls}");
}

#[test]
fn a_paused_route_does_not_hold_up_another() {
    let Some(scene) = Scene::new("a_paused_route_does_not_hold_up_another") else { return };
    let (service, accept) = service_that_rejects_bad();
    let other = scene.kafka.topic("other").create();
    let route = "[routes.s]\ntopics = [\"{other}\"]\nhandler = { kind = \"stdout\" }\n";
    let mut daemon = scene.daemon_without_dead_topic(&service, route).fill("other", &other).start();
    scene.kafka.produce(&scene.input, [Message::new("bad").idempotency_key("bad")]);
    wait_until("it is paused", SOON, || {
        daemon.get("/readyz").is_ok_and(|reply| reply.body.contains("route r is paused"))
    });
    let many = (0..500).map(|n| Message::new("x").idempotency_key(&n.to_string()));
    scene.kafka.produce(&other, many);
    wait_until_eq("the other route's offset", SOON, Some(500), || {
        scene.kafka.committed_offset(&scene.group, &other, 0)
    });
    assert_eq!(daemon.stdout_lines().len(), 500);
    let status = daemon.status();
    assert!(status["routes"][1]["paused_because"].is_null(), "{status}");
    accept.store(true, Ordering::SeqCst);
    // A kill is no worse than a stop.
    daemon.kill();
    daemon.start();
    scene.wait_committed(1);
    daemon.wait_ready();
    assert_eq!(daemon.stdout_lines().len(), 500, "nothing is handled again");
}
