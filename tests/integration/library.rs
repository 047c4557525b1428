//! onced as a library: handlers in Rust, in this process. The only tests that know the library.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use onced::Consumer;
use onced::config::{self, Config, Sources};
use onced::daemon::{Error, exit};
use onced::handler::{Claim, Handler, Outcome};
use onced::shutdown::Shutdown;
use tempfile::TempDir;

use crate::harness::{Kafka, Message, payments, unique, wait_until, wait_until_eq};

const SOON: Duration = Duration::from_secs(60);

/// Topic, group and data directory of one test's own.
struct Scene {
    kafka: &'static Kafka,
    input: String,
    dead: String,
    group: String,
    home: TempDir,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        let kafka = Kafka::shared_or_skip(test)?;
        Some(Self {
            kafka,
            input: kafka.topic("input").create(),
            dead: kafka.topic("dead").create(),
            group: unique("library"),
            home: tempfile::tempdir().expect("a temporary folder can be made"),
        })
    }

    fn config(&self, more: &[&str]) -> Config {
        self.config_in(self.home.path(), more)
    }

    fn config_in(&self, dir: &Path, more: &[&str]) -> Config {
        let mut set = vec![
            format!("kafka.brokers={}", self.kafka.bootstrap()),
            format!("kafka.group={}", self.group),
            "kafka.commit_interval=100ms".to_owned(),
            format!("log.dir={}", dir.join("data").display()),
            "log.memory=16MiB".to_owned(),
            "log.disk_reserve=1MiB".to_owned(),
            "admin.listen=".to_owned(),
            "runtime.workers=1".to_owned(),
            "runtime.drain_timeout=5s".to_owned(),
            format!("routes.r.topics=[\"{}\"]", self.input),
            format!("routes.r.dead_letter.topic={}", self.dead),
            "routes.r.handler.kind=mine".to_owned(),
            "routes.r.retry.backoff.first=10ms".to_owned(),
        ];
        set.extend(more.iter().map(|more| (*more).to_owned()));
        let sources =
            Sources { file: None, env: Vec::new(), set: &set, handlers: &["mine".to_owned()] };
        config::load(&sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn start(&self, handler: impl Handler, more: &[&str]) -> Running {
        let shutdown = Shutdown::new();
        let builder = Consumer::builder(self.config(more)).handler("mine", handler);
        let builder = builder.shutdown(shutdown.clone());
        Running { shutdown, thread: Some(thread::spawn(|| builder.run())) }
    }

    #[track_caller]
    fn wait_committed(&self, offset: i64) {
        wait_until_eq("the committed offset", SOON, Some(offset), || {
            self.kafka.committed_offset(&self.group, &self.input, 0)
        });
    }
}

/// A consumer in a thread of its own.
struct Running {
    shutdown: Shutdown,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Running {
    #[track_caller]
    fn stop(self) {
        self.shutdown.request();
        self.wait().expect("a shutdown that was asked for is no failure");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    fn wait(mut self) -> Result<(), Error> {
        let thread = self.thread.take().expect("it is waited for once");
        wait_until("run() returns", SOON, || thread.is_finished());
        thread.join().expect("run() does not panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

/// What a handler saw, and what it answers.
struct Told<F> {
    calls: Arc<Mutex<Vec<Call>>>,
    answer: F,
}

#[derive(Clone, Debug, PartialEq)]
struct Call {
    payload: String,
    offset: i64,
    attempt: u32,
    key: String,
}

impl Call {
    fn of(claim: &Claim) -> Self {
        Self {
            payload: String::from_utf8_lossy(claim.record().payload().unwrap_or_default()).into(),
            offset: claim.record().offset.0,
            attempt: claim.attempt(),
            key: claim.idempotency_key().into_owned(),
        }
    }
}

fn told<F: Fn(&Call) -> Outcome + Send + Sync + 'static>(
    answer: F,
) -> (Told<F>, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    (Told { calls: Arc::clone(&calls), answer }, calls)
}

fn seen(calls: &Mutex<Vec<Call>>) -> Vec<Call> {
    calls.lock().expect("no panic while it is held").clone()
}

#[onced::async_trait]
impl<F: Fn(&Call) -> Outcome + Send + Sync + 'static> Handler for Told<F> {
    async fn handle(&self, claim: &Claim) -> Outcome {
        let call = Call::of(claim);
        self.calls.lock().expect("no panic while it is held").push(call.clone());
        (self.answer)(&call)
    }
}

#[test]
fn a_handler_from_rust_handles_each_message_once() {
    let Some(scene) = Scene::new("a_handler_from_rust_handles_each_message_once") else { return };
    let (handler, calls) = told(|_| Outcome::Done);
    let running = scene.start(handler, &[]);
    scene.kafka.produce(&scene.input, payments(500, 0.3, 11));
    scene.wait_committed(500);
    running.stop();
    let distinct = payments(500, 0.3, 11).distinct();
    let mut keys: Vec<_> = seen(&calls).into_iter().map(|call| call.key).collect();
    assert_eq!(keys.len() as u64, distinct);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len() as u64, distinct, "each with a key of its own");

    // Another consumer with the same directory goes on where this one stopped.
    let (handler, calls) = told(|_| Outcome::Done);
    let running = scene.start(handler, &[]);
    scene.kafka.produce(&scene.input, payments(500, 0.3, 11));
    scene.kafka.produce(&scene.input, [Message::new("new").idempotency_key("new")]);
    scene.wait_committed(1_001);
    running.stop();
    let payloads: Vec<_> = seen(&calls).into_iter().map(|call| call.payload).collect();
    assert_eq!(payloads, ["new"]);
}

#[test]
fn a_panic_is_a_retry_and_the_consumer_lives_on() {
    let Some(scene) = Scene::new("a_panic_is_a_retry_and_the_consumer_lives_on") else { return };
    let (handler, calls) = told(|call| {
        assert!(call.payload != "always", "this one always panics");
        if call.payload == "twice" && call.attempt < 3 {
            std::panic::panic_any(17);
        }
        Outcome::Done
    });
    let running = scene.start(handler, &["routes.r.retry.attempts=4"]);
    let texts = ["twice", "always", "never"];
    scene.kafka.produce(&scene.input, texts.map(|text| Message::new(text).idempotency_key(text)));
    scene.wait_committed(3);
    running.stop();
    let attempts = |text: &str| -> Vec<u32> {
        let calls = seen(&calls);
        calls.iter().filter(|call| call.payload == text).map(|call| call.attempt).collect()
    };
    assert_eq!(attempts("twice"), [1, 2, 3]);
    assert_eq!(attempts("always"), [1, 2, 3, 4]);
    assert_eq!(attempts("never"), [1]);
    let letters = scene.kafka.read_all(&scene.dead);
    let [letter] = letters.as_slice() else { panic!("one letter: {letters:?}") };
    assert_eq!(letter.header("onced-dead-letter-reason").as_deref(), Some("exhausted"));
    let error = letter.header("onced-dead-letter-error").expect("an error");
    assert!(error.contains("panicked") && error.contains("always panics"), "{error}");
}

/// Answers for less than it was given; what is "late" it never answers first.
struct Batches {
    sizes: Arc<Mutex<Vec<usize>>>,
    done: Arc<Mutex<Vec<String>>>,
    /// Closed until the records are there, so that they come together.
    gate: Arc<tokio::sync::Semaphore>,
}

#[onced::async_trait]
impl Handler for Batches {
    async fn handle(&self, _: &Claim) -> Outcome {
        unreachable!("it takes batches")
    }

    async fn handle_batch(&self, claims: &[Claim]) -> Vec<Outcome> {
        let _open = self.gate.acquire().await.expect("nobody closes it");
        self.sizes.lock().expect("no panic").push(claims.len());
        let answered = claims.len().div_ceil(2);
        let mut done = self.done.lock().expect("no panic");
        done.extend(claims[..answered].iter().map(|claim| Call::of(claim).payload));
        claims[..answered].iter().map(|_| Outcome::Done).collect()
    }

    fn batch_max(&self) -> usize {
        10
    }
}

#[test]
fn a_handler_of_batches_may_answer_for_less_than_it_was_given() {
    let test = "a_handler_of_batches_may_answer_for_less_than_it_was_given";
    let Some(scene) = Scene::new(test) else { return };
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (sizes, done) = (Arc::default(), Arc::default());
    let handler =
        Batches { sizes: Arc::clone(&sizes), done: Arc::clone(&done), gate: Arc::clone(&gate) };
    let running =
        scene.start(handler, &["routes.r.retry.attempts=1000", "routes.r.handler.concurrency=30"]);
    let texts: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
    let messages = texts.iter().map(|text| Message::new(text.clone()).idempotency_key(text));
    scene.kafka.produce(&scene.input, messages);
    gate.add_permits(1_000);
    scene.wait_committed(100);
    running.stop();
    let sizes = sizes.lock().expect("no panic").clone();
    assert!(sizes.iter().all(|size| (1..=10).contains(size)), "{sizes:?}");
    assert!(sizes.contains(&10), "what waits is given together: {sizes:?}");
    let mut done = done.lock().expect("no panic").clone();
    done.sort();
    assert_eq!(done, texts, "each is done once, what was not answered in a later call");
    assert!(scene.kafka.read_all(&scene.dead).is_empty());
}

#[test]
fn fatal_ends_the_run_and_leaves_the_record_unsettled() {
    let Some(scene) = Scene::new("fatal_ends_the_run_and_leaves_the_record_unsettled") else {
        return;
    };
    let (handler, calls) = told(|call| match call.payload.as_str() {
        "fatal" => Outcome::fatal("the safe is empty"),
        _ => Outcome::Done,
    });
    scene.kafka.produce(&scene.input, [Message::new("before").idempotency_key("before")]);
    let running = scene.start(handler, &[]);
    scene.wait_committed(1);
    // The same message twice: the second one waits for the first.
    let fatal = Message::new("fatal").idempotency_key("fatal");
    scene.kafka.produce(&scene.input, [fatal.clone(), fatal]);
    let error = running.wait().expect_err("it cannot go on");
    assert_eq!(error.exit_code(), exit::FAILED, "{error}");
    let text = format!("{error:?} {error}");
    assert!(text.contains("the safe is empty"), "{text}");
    assert!(text.contains(&format!("{}/0/1", scene.input)), "{text}");
    let offsets: Vec<_> = seen(&calls).into_iter().map(|call| call.offset).collect();
    assert_eq!(offsets, [0, 1], "after a fatal answer nothing more of the message is called");
    assert_eq!(scene.kafka.committed_offset(&scene.group, &scene.input, 0), Some(1));
    assert!(scene.kafka.read_all(&scene.dead).is_empty());

    let (handler, calls) = told(|_| Outcome::Done);
    let running = scene.start(handler, &[]);
    scene.wait_committed(3);
    running.stop();
    let offsets: Vec<_> = seen(&calls).into_iter().map(|call| call.offset).collect();
    assert_eq!(offsets, [1], "it is handled when the cause is gone, once");
}

#[test]
fn reject_and_retry_from_rust_become_letters() {
    let Some(scene) = Scene::new("reject_and_retry_from_rust_become_letters") else { return };
    let (handler, calls) = told(|call| match call.payload.as_str() {
        "reject" => Outcome::reject("never"),
        _ => Outcome::Retry { error: "later".into(), after: Some(Duration::from_millis(200)) },
    });
    let running = scene.start(handler, &["routes.r.retry.attempts=2"]);
    let texts = ["reject", "retry"];
    scene.kafka.produce(&scene.input, texts.map(|text| Message::new(text).idempotency_key(text)));
    scene.wait_committed(2);
    running.stop();
    let mut letters: Vec<_> = scene
        .kafka
        .read_all(&scene.dead)
        .iter()
        .map(|letter| {
            let header = |name: &str| letter.header(&format!("onced-dead-letter-{name}"));
            [header("reason"), header("error"), header("attempts")].map(Option::unwrap_or_default)
        })
        .collect();
    letters.sort();
    assert_eq!(letters, [["exhausted", "later", "2"], ["rejected", "never", "1"]]);
    assert_eq!(seen(&calls).len(), 3);
}

/// Takes its time, and counts.
struct Slow {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    takes: Duration,
}

#[onced::async_trait]
impl Handler for Slow {
    async fn handle(&self, _: &Claim) -> Outcome {
        self.begun.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        self.ended.fetch_add(1, Ordering::SeqCst);
        Outcome::Done
    }
}

#[test]
fn a_shutdown_waits_for_the_calls_that_are_out_and_no_longer_than_it_may() {
    let test = "a_shutdown_waits_for_the_calls_that_are_out_and_no_longer_than_it_may";
    let Some(scene) = Scene::new(test) else { return };
    let counted = |takes: Duration| {
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let slow = Slow { begun: Arc::clone(&begun), ended: Arc::clone(&ended), takes };
        (slow, begun, ended)
    };
    let messages = (0..3).map(|n| Message::new("x").idempotency_key(&n.to_string()));
    scene.kafka.produce(&scene.input, messages);
    let (slow, begun, ended) = counted(Duration::from_millis(700));
    let running = scene.start(slow, &["routes.r.handler.concurrency=2"]);
    wait_until_eq("two calls are out", SOON, 2, || begun.load(Ordering::SeqCst));
    running.stop();
    assert_eq!((begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst)), (2, 2));
    assert_eq!(scene.kafka.committed_offset(&scene.group, &scene.input, 0), Some(2));

    // One that hangs is left, and handled again.
    let (slow, begun, _) = counted(Duration::from_secs(3_600));
    let running = scene.start(slow, &["runtime.drain_timeout=1s"]);
    wait_until_eq("a call is out", SOON, 1, || begun.load(Ordering::SeqCst));
    running.stop();
    assert_eq!(scene.kafka.committed_offset(&scene.group, &scene.input, 0), Some(2));
    let (handler, calls) = told(|_| Outcome::Done);
    let running = scene.start(handler, &[]);
    scene.wait_committed(3);
    running.stop();
    assert_eq!(seen(&calls).len(), 1);
    assert_eq!(seen(&calls)[0].attempt, 1);
}

#[test]
fn a_handler_that_nobody_registered_is_a_configuration_error() {
    let test = "a_handler_that_nobody_registered_is_a_configuration_error";
    let Some(scene) = Scene::new(test) else { return };
    let error = Consumer::builder(scene.config(&[])).run().expect_err("nobody is \"mine\"");
    assert_eq!(error.exit_code(), exit::CONFIG, "{error}");
    assert!(error.to_string().contains("mine"), "{error}");
    assert!(!scene.home.path().join("data").exists(), "nothing is opened before");

    // One directory, two consumers: the second is told at once.
    let (handler, _) = told(|_| Outcome::Done);
    let running = scene.start(handler, &[]);
    scene.kafka.produce(&scene.input, [Message::new("x").idempotency_key("x")]);
    scene.wait_committed(1);
    let (handler, _) = told(|_| Outcome::Done);
    let second = scene.start(handler, &[]).wait().expect_err("the directory is in use");
    assert_eq!(second.exit_code(), exit::FAILED, "{second}");
    running.stop();
}
