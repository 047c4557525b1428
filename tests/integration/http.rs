//! The contract of the HTTP handler, from the outside: what a call carries, what its answer means,
//! how many there are at once and in which order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{
    Daemon, DaemonBuilder, HttpService, Kafka, Message, Request, Response, unique, wait_until,
    wait_until_eq,
};

const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[kafka]
brokers = "{brokers}"
group = "{group}"
commit_interval = "100ms"
[log]
dir = "{dir}"
memory = "16MiB"
disk_reserve = "1MiB"
[admin]
listen = "{admin}"
[runtime]
workers = 2
drain_timeout = "10s"
[routes.r]
topics = ["{input}"]
dead_letter = { topic = "{dead}" }
[routes.r.handler]
kind = "http"
url = "{url}"
"#;

/// Calls fail at most for seconds, attempts do not run out, and waits are short.
const PATIENT: &str = "
[routes.r.retry]
attempts = 100000
backoff = { first = \"20ms\", max = \"20ms\" }
";

struct Scene {
    kafka: &'static Kafka,
    input: String,
    dead: String,
    group: String,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        Self::with_partitions(test, 1)
    }

    fn with_partitions(test: &str, partitions: i32) -> Option<Self> {
        let kafka = Kafka::shared_or_skip(test)?;
        let input = kafka.topic("input").partitions(partitions).create();
        Some(Self { kafka, input, dead: kafka.topic("dead").create(), group: unique("http") })
    }

    /// `more`: further lines of the handler's section, and what follows it.
    fn daemon(&self, service: &HttpService, more: &str) -> DaemonBuilder {
        Daemon::with(&[CONFIG, more].concat())
            .fill("group", &self.group)
            .fill("input", &self.input)
            .fill("dead", &self.dead)
            .fill("url", &service.url("/pay?by=onced"))
    }

    #[track_caller]
    fn wait_committed(&self, partition: i32, offset: i64) {
        wait_until_eq("the committed offset", SOON, Some(offset), || {
            self.kafka.committed_offset(&self.group, &self.input, partition)
        });
    }
}

#[track_caller]
fn header<'a>(request: &'a Request, name: &str) -> &'a str {
    request.header(name).unwrap_or_else(|| panic!("no header {name}: {request:?}"))
}

fn attempt(request: &Request) -> u32 {
    header(request, "onced-attempt").parse().expect("a number")
}

/// The bodies in the order of the calls.
fn bodies(requests: &[Request]) -> Vec<String> {
    requests.iter().map(Request::body_text).collect()
}

fn is_identity(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[test]
fn a_call_carries_the_payload_the_key_the_attempt_and_the_source() {
    let test = "a_call_carries_the_payload_the_key_the_attempt_and_the_source";
    let Some(scene) = Scene::new(test) else { return };
    let service = HttpService::start(|_| Response::ok());
    let _daemon = scene.daemon(&service, "order = \"partition\"\n").start();
    scene.kafka.produce(
        &scene.input,
        [
            Message::new("{\"amount\":1}").idempotency_key("client-1").header("foreign", "x"),
            Message::new([0xff, 0x00]).idempotency_key("client-2").header("Content-Type", "a/b"),
            Message::tombstone("k").idempotency_key("client-3"),
            Message::new("no key"),
            Message::new("").idempotency_key("client-4"),
        ],
    );
    let requests = service.wait_for(5, SOON);
    for (offset, request) in requests.iter().enumerate() {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/pay?by=onced"));
        assert_eq!(header(request, "onced-source"), format!("{}/0/{offset}", scene.input));
        assert_eq!(header(request, "onced-attempt"), "1");
        assert_eq!(request.header("foreign"), None, "a record's headers are not the call's");
    }
    let [json, bytes, tombstone, without_key, empty] = requests.as_slice() else {
        panic!("five calls: {requests:?}")
    };
    assert_eq!(
        (json.body.as_slice(), header(json, "onced-key")),
        (&b"{\"amount\":1}"[..], "client-1")
    );
    assert_eq!(header(json, "content-type"), "application/json");
    assert_eq!((bytes.body.as_slice(), header(bytes, "content-type")), (&[0xff, 0x00][..], "a/b"));
    assert_eq!((tombstone.body.len(), header(tombstone, "content-length")), (0, "0"));
    assert_eq!(header(tombstone, "onced-key"), "client-3");
    assert_eq!(header(without_key, "Idempotency-Key"), format!("{}/0/3", scene.input));
    assert_eq!(without_key.header("onced-key"), None);
    assert_eq!((empty.body.len(), header(empty, "content-length")), (0, "0"));
    let keys = [json, bytes, tombstone, empty].map(|request| header(request, "Idempotency-Key"));
    assert!(keys.iter().all(|key| is_identity(key)), "{keys:?}");
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 4, "one for each message");
}

#[test]
fn the_status_decides_what_becomes_of_a_record() {
    let Some(scene) = Scene::new("the_status_decides_what_becomes_of_a_record") else { return };
    const DONE: [u16; 4] = [200, 201, 202, 204];
    const RETRIED: [u16; 11] = [401, 403, 408, 409, 425, 429, 500, 502, 503, 504, 599];
    const REJECTED: [u16; 8] = [300, 301, 302, 307, 400, 404, 410, 422];
    // The status is in the payload; the second attempt is always fine.
    let service = HttpService::start(|request| {
        if request.path != "/pay?by=onced" {
            return Response::ok();
        }
        match request.body_text().parse() {
            Ok(status) if attempt(request) == 1 => {
                Response::status(status).header("Location", "/elsewhere")
            }
            _ => Response::ok(),
        }
    });
    let more = "[routes.r.retry]\nbackoff.first = \"10ms\"\n";
    let daemon = scene.daemon(&service, more).start();
    let all = [&DONE[..], &RETRIED[..], &REJECTED[..]].concat();
    let message =
        |status: &u16| Message::new(status.to_string()).idempotency_key(&status.to_string());
    scene.kafka.produce(&scene.input, all.iter().map(message));
    scene.wait_committed(0, all.len() as i64);

    let mut calls: BTreeMap<String, Vec<Request>> = BTreeMap::new();
    for request in service.requests() {
        assert_eq!(request.path, "/pay?by=onced", "no redirect is followed");
        calls.entry(request.body_text()).or_default().push(request);
    }
    let mut keys = HashSet::new();
    for status in all {
        let calls = &calls[&status.to_string()];
        let attempts: Vec<_> = calls.iter().map(attempt).collect();
        let expected: &[u32] = if RETRIED.contains(&status) { &[1, 2] } else { &[1] };
        assert_eq!(attempts, expected, "status {status}");
        let key = header(&calls[0], "Idempotency-Key").to_owned();
        assert!(calls.iter().all(|call| header(call, "Idempotency-Key") == key), "{status}");
        assert!(keys.insert(key), "each message has a key of its own");
    }
    let mut letters: Vec<u16> = scene
        .kafka
        .read_all(&scene.dead)
        .iter()
        .map(|letter| letter.payload_text().expect("a payload").parse().expect("a status"))
        .collect();
    letters.sort_unstable();
    assert_eq!(letters, REJECTED);
    let outcomes = daemon.metrics().by_label("onced_outcomes_total", "outcome");
    let expected = [("done", 15.0), ("fatal", 0.0), ("reject", 8.0), ("retry", 11.0)];
    assert_eq!(outcomes, expected.map(|(name, count)| (name.to_owned(), count)).into());
}

#[test]
fn a_timeout_and_a_broken_connection_are_tried_again_with_the_same_key() {
    let test = "a_timeout_and_a_broken_connection_are_tried_again_with_the_same_key";
    let Some(scene) = Scene::new(test) else { return };
    let service =
        HttpService::start(|request| match (request.body_text().as_str(), attempt(request)) {
            ("slow", 1) => Response::ok().after(Duration::from_secs(3)),
            ("broken", 1 | 2) => Response::hang_up(),
            ("half", 1) => Response::ok().header("Transfer-Encoding", "chunked"),
            _ => Response::ok(),
        });
    let more = "timeout = \"500ms\"\n[routes.r.retry]\nbackoff.first = \"10ms\"\n";
    let daemon = scene.daemon(&service, more).start();
    service.refuse_connections(1);
    let texts = ["slow", "broken", "fine"];
    let messages = texts.map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    scene.wait_committed(0, 3);
    let mut attempts: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut keys: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    for request in service.requests() {
        let body = request.body_text();
        attempts.entry(body.clone()).or_default().push(attempt(&request));
        keys.entry(body).or_default().insert(header(&request, "Idempotency-Key").to_owned());
    }
    assert!(keys.values().all(|keys| keys.len() == 1), "{keys:?}");
    // The refused connection was one of these; it carried a call that nobody read.
    for (body, attempts) in &attempts {
        assert!(attempts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{body}: {attempts:?}");
    }
    assert!(attempts["slow"].len() >= 2 - usize::from(attempts["slow"][0] == 2));
    assert!(*attempts["broken"].last().expect("a call") == 3, "{attempts:?}");
    let retried = daemon.metrics().value("onced_outcomes_total", &[("outcome", "retry")]);
    assert!((3.0..=4.0).contains(&retried), "{retried}");
    assert!(scene.kafka.read_all(&scene.dead).is_empty(), "nobody was given up");
}

#[test]
fn a_service_that_is_away_costs_no_record() {
    let Some(scene) = Scene::new("a_service_that_is_away_costs_no_record") else { return };
    let mut service = HttpService::start(|_| Response::ok());
    let mut daemon = scene.daemon(&service, PATIENT).start();
    daemon.wait_ready();
    service.go_away();
    let messages = (0..20).map(|n| Message::new(n.to_string()).idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    wait_until("calls fail", SOON, || {
        daemon.metrics().value("onced_outcomes_total", &[("outcome", "retry")]) > 40.0
    });
    service.come_back();
    scene.wait_committed(0, 20);
    let handled: HashSet<_> = bodies(&service.requests()).into_iter().collect();
    assert_eq!(handled.len(), 20);
}

#[test]
fn the_wait_between_two_calls_is_the_larger_of_backoff_and_retry_after() {
    let test = "the_wait_between_two_calls_is_the_larger_of_backoff_and_retry_after";
    let Some(scene) = Scene::new(test) else { return };
    let service =
        HttpService::start(|request| match (request.body_text().as_str(), attempt(request)) {
            ("asked", 1) => Response::status(503).retry_after(2),
            ("backoff", 1..=3) => Response::status(503).retry_after(0),
            _ => Response::ok(),
        });
    let backoff = "{ first = \"200ms\", factor = 2.0, jitter = false, max = \"300ms\" }";
    let more = format!("[routes.r.retry]\nattempts = 4\nbackoff = {backoff}\n");
    let _daemon = scene.daemon(&service, &more).start();
    let messages = ["asked", "backoff"].map(|text| Message::new(text).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    scene.wait_committed(0, 2);
    let waits = |body: &str| -> Vec<u128> {
        let requests = service.requests();
        let calls: Vec<_> = requests.iter().filter(|call| call.body_text() == body).collect();
        calls.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_millis()).collect()
    };
    // A clock that is read a little late may shorten a wait by a little.
    let at_least = |waits: &[u128], least: &[u128]| {
        waits.len() == least.len()
            && waits.iter().zip(least).all(|(wait, least)| wait + 20 >= *least)
    };
    let (asked, backoff) = (waits("asked"), waits("backoff"));
    assert!(at_least(&asked, &[2_000]), "{asked:?}");
    assert!(at_least(&backoff, &[200, 300, 300]), "{backoff:?}");
    assert!(backoff.iter().sum::<u128>() < 30_000, "{backoff:?}");
}

#[test]
fn the_bound_on_calls_is_reached_and_kept_and_connections_are_used_again() {
    let test = "the_bound_on_calls_is_reached_and_kept_and_connections_are_used_again";
    let Some(scene) = Scene::with_partitions(test, 4) else { return };
    let service = HttpService::start(|request| {
        let status = if request.number % 10 == 0 { 503 } else { 200 };
        Response::status(status).body("some words").after(Duration::from_millis(15))
    });
    let mut daemon = scene.daemon(&service, &["concurrency = 4\n", PATIENT].concat()).start();
    let messages = (0..200)
        .map(|n| Message::new(n.to_string()).partition(n % 4).idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    daemon.wait_ready();
    for partition in 0..4 {
        scene.wait_committed(partition, 50);
    }
    assert_eq!(service.max_in_flight(), 4);
    let requests = service.requests();
    let connections: HashSet<_> = requests.iter().map(|request| request.connection).collect();
    assert!(
        connections.len() <= 16,
        "{} connections for {} calls",
        connections.len(),
        requests.len()
    );
    let handled: HashSet<_> = bodies(&requests).into_iter().collect();
    assert_eq!(handled.len(), 200);
}

/// Answers 503 to `first` until `others` calls of other bodies were answered.
fn service_that_holds_back(first: &'static str, others: usize) -> HttpService {
    let answered = Arc::new(AtomicUsize::new(0));
    HttpService::start(move |request| {
        if request.body_text() != first {
            answered.fetch_add(1, Ordering::SeqCst);
            return Response::ok();
        }
        let held_back = attempt(request) < 4 || answered.load(Ordering::SeqCst) < others;
        Response::status(if held_back { 503 } else { 200 })
    })
}

/// The bodies of the calls; repeated calls of the same body count once.
fn order(service: &HttpService) -> Vec<String> {
    let mut bodies = bodies(&service.requests());
    bodies.dedup();
    bodies
}

fn position(order: &[String], body: &str) -> usize {
    order.iter().rposition(|found| found == body).unwrap_or_else(|| panic!("{body}: {order:?}"))
}

#[test]
fn records_of_one_key_go_one_after_another_while_others_go_on() {
    let test = "records_of_one_key_go_one_after_another_while_others_go_on";
    let Some(scene) = Scene::new(test) else { return };
    let service = service_that_holds_back("a1", 6);
    let _daemon = scene.daemon(&service, PATIENT).start();
    let keyed = |text: &str| Message::new(text).key(&text[..1]).idempotency_key(text);
    let mut messages: Vec<_> =
        ["a1", "a2", "b1", "b2", "b3", "a3", "c1"].iter().map(|text| keyed(text)).collect();
    messages.extend(["x", "y"].map(|text| Message::new(text).idempotency_key(text)));
    scene.kafka.produce(&scene.input, messages);
    scene.wait_committed(0, 9);
    let order = order(&service);
    let at = |body| position(&order, body);
    assert!(at("a1") < at("a2") && at("a2") < at("a3"), "{order:?}");
    assert!(at("b1") < at("b2") && at("b2") < at("b3"), "{order:?}");
    for other in ["b1", "b2", "b3", "c1", "x", "y"] {
        assert!(at(other) < at("a1"), "{other} goes on while a1 is tried again: {order:?}");
    }
    assert!(service.requests().iter().filter(|call| call.body_text() != "a1").count() == 8);
}

#[test]
fn with_order_by_identity_other_identities_of_the_key_go_on() {
    let test = "with_order_by_identity_other_identities_of_the_key_go_on";
    let Some(scene) = Scene::new(test) else { return };
    let service = service_that_holds_back("a1", 2);
    let daemon = scene.daemon(&service, &["order = \"identity\"\n", PATIENT].concat()).start();
    let keyed = |text: &str, id| Message::new(text).key("one key").idempotency_key(id);
    let messages = [keyed("a1", "1"), keyed("a2", "2"), keyed("a1", "1"), keyed("a3", "3")];
    scene.kafka.produce(&scene.input, messages);
    scene.wait_committed(0, 4);
    let order = order(&service);
    assert!(position(&order, "a2") < position(&order, "a1"), "{order:?}");
    assert!(position(&order, "a3") < position(&order, "a1"), "{order:?}");
    let duplicates = daemon.metrics().value("onced_records_total", &[("verdict", "duplicate")]);
    assert!((duplicates - 1.0).abs() < 0.1, "what waited for its first occurrence is a duplicate");
}

#[test]
fn with_order_by_partition_all_of_a_partition_waits_and_others_go_on() {
    let test = "with_order_by_partition_all_of_a_partition_waits_and_others_go_on";
    let Some(scene) = Scene::with_partitions(test, 2) else { return };
    let service = service_that_holds_back("p0-1", 3);
    let _daemon = scene.daemon(&service, &["order = \"partition\"\n", PATIENT].concat()).start();
    let messages = ["p0-1", "p1-1", "p0-2", "p1-2", "p0-3", "p1-3"].map(|text| {
        let partition = if text.starts_with("p0") { 0 } else { 1 };
        Message::new(text).key(text).partition(partition).idempotency_key(text)
    });
    scene.kafka.produce(&scene.input, messages);
    scene.wait_committed(0, 3);
    scene.wait_committed(1, 3);
    let order = order(&service);
    let at = |body| position(&order, body);
    assert!(at("p0-1") < at("p0-2") && at("p0-2") < at("p0-3"), "{order:?}");
    assert!(at("p1-1") < at("p1-2") && at("p1-2") < at("p1-3"), "{order:?}");
    assert!(at("p1-3") < at("p0-1"), "the other partition goes on: {order:?}");
}

#[test]
fn a_rate_spreads_the_calls_out() {
    let Some(scene) = Scene::with_partitions("a_rate_spreads_the_calls_out", 2) else { return };
    let service = HttpService::start(|_| Response::ok());
    let _daemon = scene.daemon(&service, "rate = 20\n").start();
    let messages = (0..40)
        .map(|n| Message::new(n.to_string()).partition(n % 2).idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    let requests = service.wait_for(40, SOON);
    let took = requests[39].at.duration_since(requests[0].at);
    // 39 gaps of 50 ms, over both workers together.
    assert!(took >= Duration::from_millis(1_900), "{took:?}");
    let most = requests.windows(11).map(|eleven| eleven[10].at.duration_since(eleven[0].at)).min();
    assert!(most >= Some(Duration::from_millis(350)), "ten calls in {most:?}");
}

#[test]
fn the_client_key_is_given_as_it_came_or_not_at_all() {
    let Some(scene) = Scene::new("the_client_key_is_given_as_it_came_or_not_at_all") else {
        return;
    };
    let service = HttpService::start(|request| {
        Response::status(if attempt(request) == 1 { 503 } else { 200 })
    });
    let more = "idempotency_key = \"client\"\n[routes.r.retry]\nbackoff.first = \"10ms\"\n";
    let _daemon = scene.daemon(&service, more).start();
    scene.kafka.produce(
        &scene.input,
        [
            Message::new("fine").idempotency_key("Order 42/a"),
            Message::new("two lines").idempotency_key("a\r\nX-Injected: 1"),
            Message::new("spaces").idempotency_key(" a "),
        ],
    );
    scene.wait_committed(0, 3);
    assert_eq!(service.header_values("Idempotency-Key"), ["Order 42/a", "Order 42/a"]);
    assert!(service.header_values("x-injected").is_empty());
    let letters = scene.kafka.read_all(&scene.dead);
    let mut said: Vec<_> = letters.iter().filter_map(|letter| letter.payload_text()).collect();
    said.sort();
    assert_eq!(said, ["spaces", "two lines"], "a key that cannot be sent unchanged is not sent");
    let error = letters[0].header("onced-dead-letter-error").unwrap_or_default();
    assert!(error.contains("idempotency_key = \"identity\""), "it says what helps: {error}");
}

#[test]
fn a_stop_does_not_wait_for_retries() {
    let Some(scene) = Scene::new("a_stop_does_not_wait_for_retries") else { return };
    let mended = Arc::new(AtomicUsize::new(0));
    let is_mended = Arc::clone(&mended);
    let service = HttpService::start(move |_| match is_mended.load(Ordering::SeqCst) {
        0 => Response::status(503).retry_after(300),
        _ => Response::ok(),
    });
    let mut daemon = scene.daemon(&service, "").start();
    let messages = (0..3).map(|n| Message::new("x").key("k").idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    service.wait_for(1, SOON);
    wait_until("the answer is counted", SOON, || {
        daemon.metrics().value("onced_outcomes_total", &[("outcome", "retry")]) > 0.5
    });
    let begun = std::time::Instant::now();
    assert!(daemon.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(9), "less than its drain_timeout of 10 s");
    mended.store(1, Ordering::SeqCst);
    daemon.start();
    scene.wait_committed(0, 3);
    let attempts: Vec<_> = service.requests().iter().map(attempt).collect();
    assert_eq!(attempts, [1, 1, 1, 1], "attempts are counted by each process");
}

#[test]
fn reading_stops_ten_thousand_records_beyond_one_that_is_not_settled() {
    let test = "reading_stops_ten_thousand_records_beyond_one_that_is_not_settled";
    let Some(scene) = Scene::new(test) else { return };
    const COUNT: usize = 13_000;
    let (others, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, gate) = (Arc::clone(&others), Arc::clone(&open));
    let service = HttpService::start(move |request| {
        if request.body_text() == "0" {
            return Response::status(if gate.load(Ordering::SeqCst) == 0 { 503 } else { 200 });
        }
        seen.fetch_add(1, Ordering::SeqCst);
        Response::ok()
    });
    let daemon = scene.daemon(&service, PATIENT).start();
    let messages = (0..COUNT).map(|n| Message::new(n.to_string()).idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    // 9,999 beyond it are read for sure; the rest would follow at once.
    wait_until("as much is handled as may be", SOON, || {
        let others = others.load(Ordering::SeqCst);
        if others >= 9_999 { Ok(()) } else { Err(others) }
    });
    wait_until("only that one is with the handler", SOON, || {
        daemon.status()["routes"][0]["in_flight"].as_i64().is_some_and(|calls| calls <= 1)
    });
    let retries = |least: usize| {
        let calls = service.requests();
        calls.iter().filter(|call| call.body_text() == "0").count() > least
    };
    let now = service.requests().iter().filter(|call| call.body_text() == "0").count();
    wait_until("it goes on trying", SOON, || retries(now + 10));
    let beyond = others.load(Ordering::SeqCst);
    assert!(beyond <= 10_000, "{beyond} were handled beyond one that is not settled");
    assert!(scene.kafka.committed_offset(&scene.group, &scene.input, 0).unwrap_or(0) == 0);
    open.store(1, Ordering::SeqCst);
    scene.wait_committed(0, COUNT as i64);
    assert_eq!(others.load(Ordering::SeqCst), COUNT - 1, "each once");
}

#[test]
fn a_password_in_the_url_is_sent_and_never_told() {
    let Some(scene) = Scene::new("a_password_in_the_url_is_sent_and_never_told") else { return };
    let service = HttpService::start(|request| match request.body_text().as_str() {
        "bad" => Response::status(400),
        "broken" => Response::hang_up(),
        _ => Response::ok(),
    });
    let url = service.url("/pay?by=onced");
    let with_password = url.replace("http://", "http://onced:hush-hush-9@");
    let more = "[routes.r.retry]\nattempts = 2\nbackoff.first = \"10ms\"\n";
    let config = [CONFIG, more].concat().replace("{url}", &with_password);
    let mut daemon = Daemon::with(&config)
        .fill("group", &scene.group)
        .fill("input", &scene.input)
        .fill("dead", &scene.dead)
        .env("ONCED_LOG", "debug")
        .start();
    let texts = ["good", "bad", "broken"];
    scene.kafka.produce(&scene.input, texts.map(|text| Message::new(text).idempotency_key(text)));
    scene.wait_committed(0, 3);
    // "onced:hush-hush-9" in Base64.
    let sent = service.header_values("Authorization");
    assert!(
        sent.len() == 4 && sent.iter().all(|sent| sent == "Basic b25jZWQ6aHVzaC1odXNoLTk="),
        "{sent:?}"
    );
    let status = daemon.status().to_string();
    assert!(daemon.terminate().success());
    let letters = format!(
        "{:?}",
        scene
            .kafka
            .read_all(&scene.dead)
            .iter()
            .map(|letter| {
                letter
                    .headers
                    .iter()
                    .map(|(_, value)| {
                        String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned()
                    })
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    );
    assert!(letters.contains("exhausted") && letters.contains("rejected"), "{letters}");
    for text in [daemon.stderr(), status, letters] {
        assert!(!text.contains("hush-hush"), "the password is told: {text}");
        assert!(!text.contains("b25jZWQ6aHVzaC1odXNo"), "the password is told: {text}");
    }
}
