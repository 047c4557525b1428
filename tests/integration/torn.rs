//! Between the daemon and its broker: connections that break, requests that are late, answers
//! that never come.
//!
//! The worst of them is the end of a transaction that comes late: it would end the next one of
//! the same producer. Its epoch is what fences it off, so each of these tests looks at what the
//! broker answered to it.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::{Daemon, DaemonBuilder, Kafka, Message, OwnedRecord, unique, wait_until};
use crate::kafka_proxy::{Hold, Proxy, Which};
use crate::scene::{
    SOON, counts, daemon, keys_on_stdout, numbered, set, stdout_daemon, wait_caught_up,
};

/// How a broker refuses a producer that has a successor: an old epoch, fenced, or (51) the
/// successor is registering at this moment.
const FENCED: [Option<i16>; 3] = [Some(47), Some(90), Some(51)];

/// A broker with a second listener, before which stands a proxy.
pub struct Proxied {
    pub proxy: Proxy,
    pub kafka: Kafka,
    /// `host:port` of the proxy.
    pub bootstrap: String,
}

impl Proxied {
    /// `None`, and a line that says so, where no broker can be started.
    pub fn start_or_skip(test: &str) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let bootstrap = listener.local_addr().expect("it is bound").to_string();
        let listeners = "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
            PROXIED://127.0.0.1:{extra}";
        let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},PROXIED://{bootstrap}");
        let protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT";
        let kafka = Kafka::private_or_skip(
            test,
            &[
                ("listeners", listeners),
                ("advertised.listeners", &advertised),
                ("listener.security.protocol.map", protocols),
            ],
        )?;
        let (_, target) = kafka.extra().rsplit_once(':').expect("host:port");
        let target = target.parse().expect("a port is a number");
        let proxy = Proxy::serve(vec![(listener, target)]).expect("a proxy");
        Some(Self { proxy, kafka, bootstrap })
    }

    /// A daemon whose every connection goes through the proxy.
    pub fn through(&self, builder: DaemonBuilder) -> DaemonBuilder {
        let builder =
            set(builder.on(&self.kafka), &format!("kafka.brokers=\"{}\"", self.bootstrap));
        // A broken connection is tried again soon, also after many of them.
        set(builder, "kafka.properties.\"reconnect.backoff.max.ms\"=500")
    }

    /// Runs `disturb` while records are sent, `batch` at a time, past the proxy. Returns how many.
    pub fn while_records_flow(&self, topic: &str, batch: usize, disturb: impl FnOnce()) -> usize {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    self.kafka.produce(topic, numbered(sent..sent + batch));
                    sent += batch;
                    thread::sleep(Duration::from_millis(50));
                }
                sent
            });
            // Also when it panics: else the scope would wait for the sender for ever.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(disturb));
            stop.store(true, Ordering::Relaxed);
            let sent = sending.join().expect("it sends");
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent
        })
    }
}

#[test]
fn connections_that_are_cut_lose_nothing_and_repeat_nothing() {
    let test = "connections_that_are_cut_lose_nothing_and_repeat_nothing";
    let Some(scene) = Proxied::start_or_skip(test) else { return };
    let Proxied { proxy, kafka, bootstrap } = &scene;
    let (topic, group) = (kafka.topic("cut").partitions(2).create(), unique("cut"));
    let mut onced = scene.through(stdout_daemon(&group, &topic)).start();
    onced.wait_ready();
    let sent = scene.while_records_flow(&topic, 50, || {
        for number in 0..10 {
            thread::sleep(Duration::from_millis(300));
            proxy.cut_all();
            if number % 3 == 0 {
                proxy.refuse(Duration::from_millis(500));
            }
        }
        proxy.blackhole(Duration::from_secs(2));
        proxy.drop_responses(Which::OffsetCommit, 5);
        proxy.drop_responses(Which::Fetch, 5);
        proxy.delay(Which::Heartbeat, Duration::from_millis(500), 3);
        wait_until("all faults happen", SOON, || proxy.planned() == 0);
    });
    // A producer through it works as well.
    kafka.produce_with(&[("bootstrap.servers", bootstrap)], &topic, numbered(sent..sent + 10));
    wait_caught_up(kafka, &onced, &group, &topic);
    let injected = proxy.injected();
    assert!(injected.cut >= 10, "{injected:?}");
    assert_eq!(injected.delayed, 3);
    assert!(injected.dropped > 0, "{injected:?}");
    let handled = counts(keys_on_stdout(&onced));
    assert_eq!(handled.len(), sent + 10, "nothing is lost");
    let repeated = handled.values().sum::<usize>() - handled.len();
    assert_eq!(repeated, 0, "the log of the same process knows what was handled");
}

/// A route by the name of `payments` that passes records on to another topic.
pub fn passing_on(group: &str, topic: &str, output: &str) -> DaemonBuilder {
    let route = r#"
[routes.payments]
topics = ["{topic}"]
[routes.payments.handler]
kind = "kafka"
topic = "{output}"
[routes.payments.dead_letter]
topic = "{output}-dead"
"#;
    daemon(group, route).fill("topic", topic).fill("output", output)
}

/// Waits until all is done, and compares: each of the messages came out once, and no other.
#[track_caller]
pub fn expect_each_once(kafka: &Kafka, onced: &Daemon, topics: &Topics, sent: usize) {
    wait_caught_up(kafka, onced, &topics.group, &topics.input);
    // The offsets of a transaction may be seen before its outputs are.
    wait_stable(kafka, &topics.output);
    let passed = counts(kafka.read_all(&topics.output).iter().map(key_of));
    let doubled = passed.values().filter(|count| **count > 1).count();
    let lost = (0..sent).filter(|number| !passed.contains_key(&number.to_string())).count();
    assert_eq!((lost, doubled), (0, 0), "of {sent} lost, and doubled");
    assert_eq!(passed.len(), sent, "nothing else comes out");
}

/// Waits until no transaction is open in a topic.
#[track_caller]
fn wait_stable(kafka: &Kafka, topic: &str) {
    wait_until("no transaction is open", SOON, || {
        let (stable, end) = (kafka.stable_end_offset(topic, 0), kafka.end_offset(topic, 0));
        if stable == end { Ok(()) } else { Err(format!("{stable} of {end}")) }
    });
}

fn key_of(record: &OwnedRecord) -> String {
    let key = record.headers.iter().find(|(name, _)| name == b"Idempotency-Key");
    let key = key.and_then(|(_, value)| value.clone()).expect("outputs keep their headers");
    String::from_utf8(key).expect("it is UTF-8")
}

pub struct Topics {
    pub input: String,
    pub output: String,
    pub group: String,
}

impl Topics {
    pub fn create(kafka: &Kafka, partitions: i32) -> Self {
        let input = kafka.topic("torn").partitions(partitions).create();
        let output = kafka.topic("torn-out").config("max.message.bytes", "20000").create();
        kafka.create_topic(&format!("{output}-dead"), 1, &[]);
        Self { input, output, group: unique("torn") }
    }

    pub fn daemon(&self) -> DaemonBuilder {
        passing_on(&self.group, &self.input, &self.output)
    }
}

/// Runs a daemon that passes records on through the proxy, disturbs it meanwhile, and expects
/// each record once.
#[track_caller]
fn check(test: &str, settings: &[&str], disturb: impl FnOnce(&Proxied, &mut Daemon, &Topics)) {
    let Some(scene) = Proxied::start_or_skip(test) else { return };
    let topics = Topics::create(&scene.kafka, 2);
    let builder = settings.iter().fold(topics.daemon(), |builder, setting| set(builder, setting));
    let mut onced = scene.through(builder).start();
    onced.wait_ready();
    let sent = scene.while_records_flow(&topics.input, 20, || disturb(&scene, &mut onced, &topics));
    expect_each_once(&scene.kafka, &onced, &topics, sent);
}

/// Waits until more of these requests have come in than `before`.
#[track_caller]
fn wait_for_next(proxy: &Proxy, which: Which, before: u64) {
    wait_until(&format!("another {which:?}"), SOON, || proxy.requests(which) > before);
}

/// Lets what is held go, and expects that the broker refuses it.
#[track_caller]
fn release_fenced(hold: Hold) {
    let late = hold.release();
    assert_eq!(late.len(), 1);
    assert!(FENCED.contains(&late[0].error), "the broker answered {:?}", late[0]);
}

#[test]
fn a_commit_that_comes_late_ends_no_other_transaction() {
    check("a_commit_that_comes_late_ends_no_other_transaction", &[], |scene, _, _| {
        let proxy = &scene.proxy;
        for step in [Which::AddPartitionsToTxn, Which::Produce, Which::TxnOffsetCommit] {
            let hold = proxy.hold(Which::Commit, 1);
            assert!(hold.wait(SOON), "a transaction ends");
            // The client has tried again, and goes on: the late one meets the next transaction.
            let before = proxy.requests(step);
            wait_for_next(proxy, step, before);
            release_fenced(hold);
        }
    });
}

#[test]
fn a_commit_that_comes_late_is_noticed_also_where_closed_connections_are_not_told() {
    let quiet = "kafka.properties.\"log.connection.close\"=false";
    let test = "a_commit_that_comes_late_is_noticed_also_where_closed_connections_are_not_told";
    check(test, &[quiet], |scene, _, _| {
        let hold = scene.proxy.hold(Which::Commit, 1);
        assert!(hold.wait(SOON), "a transaction ends");
        wait_for_next(&scene.proxy, Which::Produce, scene.proxy.requests(Which::Produce));
        release_fenced(hold);
    });
}

#[test]
fn a_commit_that_the_client_gives_up_ends_no_other_transaction() {
    let impatient = "kafka.properties.\"socket.timeout.ms\"=3000";
    let test = "a_commit_that_the_client_gives_up_ends_no_other_transaction";
    check(test, &[impatient], |scene, _, _| {
        let hold = scene.proxy.hold_open(Which::Commit, 1);
        assert!(hold.wait(SOON), "a transaction ends");
        let before = scene.proxy.requests(Which::Commit);
        wait_for_next(&scene.proxy, Which::Commit, before + 1);
        release_fenced(hold);
    });
}

#[test]
fn a_commit_that_comes_after_a_kill_ends_no_other_transaction() {
    let test = "a_commit_that_comes_after_a_kill_ends_no_other_transaction";
    check(test, &[], |scene, onced, topics| {
        for which in [Which::Commit, Which::Produce] {
            // The client waits for an answer until it is killed.
            let hold = scene.proxy.hold_open(which, 1);
            assert!(hold.wait(SOON), "a transaction goes on");
            onced.kill();
            onced.start();
            onced.wait_ready();
            wait_for_next(&scene.proxy, Which::Commit, scene.proxy.requests(Which::Commit));
            let late = hold.release();
            let fenced = FENCED.contains(&late[0].error);
            assert!(fenced || which == Which::Produce, "the broker answered {:?}", late[0]);
        }
        // A late output must not leave a transaction that nobody ends.
        wait_stable(&scene.kafka, &topics.output);
    });
}

#[test]
fn an_abort_that_comes_late_loses_nothing() {
    const ROUNDS: usize = 3;
    check("an_abort_that_comes_late_loses_nothing", &[], |scene, _, topics| {
        let proxy = &scene.proxy;
        for (number, step) in
            (0..).zip([Which::AddPartitionsToTxn, Which::Produce, Which::TxnOffsetCommit])
        {
            let hold = proxy.hold(Which::Abort, 1);
            // Too large for the output: its transaction is aborted.
            let large = format!("large {number}");
            let mut random = fastrand::Rng::with_seed(number);
            let noise: String = (0..100_000).map(|_| random.alphanumeric()).collect();
            let message = Message::new(noise).idempotency_key(&large);
            scene.kafka.produce(&topics.input, [message]);
            assert!(hold.wait(SOON), "a transaction is aborted");
            wait_for_next(proxy, step, proxy.requests(step));
            release_fenced(hold);
        }
        let dead = format!("{}-dead", topics.output);
        let letters = scene.kafka.read_at_least(&dead, ROUNDS, SOON);
        let letters = counts(letters.iter().map(key_of));
        assert_eq!((letters.len(), letters.values().max()), (ROUNDS, Some(&1)));
    });
}

#[test]
fn answers_that_never_come_lose_nothing_and_double_nothing() {
    let test = "answers_that_never_come_lose_nothing_and_double_nothing";
    check(test, &[], |scene, onced, _| {
        let proxy = &scene.proxy;
        for which in [
            Which::Commit,
            Which::TxnOffsetCommit,
            Which::AddPartitionsToTxn,
            Which::AddOffsetsToTxn,
            Which::Produce,
            Which::InitProducerId,
            Which::FindCoordinator,
            Which::Fetch,
        ] {
            proxy.drop_responses(which, 2);
            if matches!(which, Which::InitProducerId | Which::FindCoordinator) {
                onced.restart();
            }
            wait_until(&format!("answers to {which:?} are dropped"), SOON, || proxy.planned() == 0);
        }
    });
}

#[test]
fn requests_that_are_late_lose_nothing_and_double_nothing() {
    let test = "requests_that_are_late_lose_nothing_and_double_nothing";
    check(test, &[], |scene, _, _| {
        let proxy = &scene.proxy;
        for which in
            [Which::AddPartitionsToTxn, Which::Produce, Which::TxnOffsetCommit, Which::EndTxn]
        {
            proxy.delay(which, Duration::from_secs(2), 2);
            wait_until(&format!("{which:?} is late"), SOON, || proxy.planned() == 0);
        }
    });
}

#[test]
fn cuts_and_black_holes_lose_nothing_and_double_nothing() {
    let test = "cuts_and_black_holes_lose_nothing_and_double_nothing";
    check(test, &[], |scene, _, _| {
        let proxy = &scene.proxy;
        for number in 0..20 {
            thread::sleep(Duration::from_millis(fastrand::u64(100..600)));
            proxy.cut_all();
            if number % 5 == 0 {
                proxy.refuse(Duration::from_secs(1));
            }
        }
        // Longer than the session timeout: another generation begins.
        proxy.blackhole(Duration::from_secs(5));
        thread::sleep(Duration::from_secs(8));
    });
}
