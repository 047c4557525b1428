//! A real broker as tests see it: one for all of them, or one of a test's own.
//!
//! What is done with topics, records and offsets stands in the files of those names.

use std::env;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use tempfile::TempDir;

use super::broker::{self, Broker};
use super::topic::TopicBuilder;

/// How long one call to the broker may take. Long, for a machine whose cores are busy.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

pub struct Kafka {
    bootstrap: String,
    extra: String,
    /// Declared before its folder, which goes last. `None` while it is stopped, and for a broker
    /// that somebody else runs.
    broker: Mutex<Option<Broker>>,
    home: Option<TempDir>,
}

impl Kafka {
    /// The broker that all tests share. It starts with the first test that needs it, unless
    /// `ONCED_TEST_KAFKA` names one.
    ///
    /// # Panics
    ///
    /// Panics where no broker can be started.
    pub fn shared() -> &'static Self {
        // A static is never dropped: the broker ends, and its folder goes, with the process.
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::named_or(|| Self::private(&[])))
    }

    /// The shared broker; `None`, and a line that says so, where none can be started. In CI that
    /// is a failure.
    pub fn shared_or_skip(test: &str) -> Option<&'static Self> {
        (env::var_os("ONCED_TEST_KAFKA").is_some() || can_start(test)).then(Self::shared)
    }

    /// A broker of its own for a test that stops it, or needs settings of its own. In the values,
    /// `{port}`, `{controller}` and `{extra}` stand for its ports.
    ///
    /// # Panics
    ///
    /// Panics where no broker can be started.
    pub fn private(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| format!("{key}={value}"));
        let arguments: Vec<_> =
            settings.flat_map(|setting| ["--config".to_owned(), setting]).collect();
        Self::start_new(&arguments)
    }

    /// A broker for a measurement: slower to start, and as fast as it gets.
    ///
    /// # Panics
    ///
    /// Panics where no broker can be started.
    pub fn for_benchmarks() -> Self {
        Self::named_or(|| Self::start_new(&["--bench".to_owned()]))
    }

    /// Like [`Kafka::private`]; `None` where [`Kafka::shared_or_skip`] is.
    pub fn private_or_skip(test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        can_start(test).then(|| Self::private(settings))
    }

    /// `host:port`, for a client's configuration.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// `host:port` of the listener that a private broker's settings put on `{extra}`.
    pub fn extra(&self) -> &str {
        &self.extra
    }

    /// Begins a topic whose name no other test has.
    pub fn topic(&self, prefix: &str) -> TopicBuilder<'_> {
        TopicBuilder::new(self, prefix)
    }

    /// Stops a private broker the gentle way.
    pub fn stop(&self) {
        self.take_broker().stop();
    }

    /// Stops a private broker with SIGKILL.
    pub fn kill(&self) {
        self.take_broker().kill();
    }

    /// Starts a private broker again, with its data and on the same ports.
    pub fn start(&self) {
        let home = self.home.as_ref().expect("only a private broker is started again");
        let mut broker = self.broker();
        assert!(broker.is_none(), "the broker runs");
        // The script remembers the settings.
        *broker = Some(Broker::start(home.path(), &[]));
    }

    /// A private broker loses the records of a partition, as with a lost disk: the topic, its id and
    /// all offsets of groups stay.
    pub fn lose_partition(&self, topic: &str, partition: i32) {
        let home = self.home.as_ref().expect("only a private broker can lose something");
        self.stop();
        let lost = home.path().join("data").join(format!("{topic}-{partition}"));
        std::fs::remove_dir_all(lost).expect("the partition is there");
        self.start();
    }

    /// Aborts what is open in these topics and in the offsets of all groups, with Kafka's own tool,
    /// as an operator would where a coordinator left out the markers of a transaction. Returns the
    /// topic, the partition and the first offset of each.
    pub fn abort_what_hangs(&self, topics: &[&str]) -> Vec<(String, i32, i64)> {
        let mut aborted = Vec::new();
        for topic in topics.iter().chain(&["__consumer_offsets"]) {
            for partition in 0..self.partitions(topic) {
                let place = ["--topic", topic, "--partition", &partition.to_string()];
                let producers = self.transactions(&[&["describe-producers"], &place[..]].concat());
                for since in producers.lines().filter_map(open_since) {
                    let offset = since.to_string();
                    let abort = [&["abort"], &place[..], &["--start-offset", &offset]].concat();
                    self.transactions(&abort);
                    aborted.push(((*topic).to_owned(), partition, since));
                }
            }
        }
        aborted
    }

    fn transactions(&self, arguments: &[&str]) -> String {
        let mut tool = Command::new(broker::script());
        tool.args(["transactions", "--bootstrap", &self.bootstrap]).args(arguments);
        let output = tool.output().expect("scripts/kafka can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kafka-transactions {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Stops a private broker from running; its connections stay open and say nothing.
    pub fn freeze(&self) {
        self.broker().as_ref().expect("a private broker that runs").freeze();
    }

    pub fn thaw(&self) {
        self.broker().as_ref().expect("a private broker that runs").thaw();
    }

    /// What every client of the harness starts from.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("message.max.bytes", "15000000")
            .set("reconnect.backoff.max.ms", "500")
            .set("enable.metrics.push", "false");
        config
    }

    /// A client of any kind, with these properties on top.
    pub fn client<C: FromClientConfig>(&self, properties: &[(&str, &str)]) -> C {
        let mut config = self.client_config();
        for (key, value) in properties {
            config.set(*key, *value);
        }
        config.create().expect("a client can be made of these properties")
    }

    pub(super) fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client(&[])
    }

    /// The broker that `ONCED_TEST_KAFKA` names, else another one.
    fn named_or(another: impl FnOnce() -> Self) -> Self {
        match env::var("ONCED_TEST_KAFKA") {
            Ok(bootstrap) => {
                Self { bootstrap, extra: String::new(), broker: Mutex::new(None), home: None }
            }
            Err(_) => another(),
        }
    }

    fn start_new(arguments: &[String]) -> Self {
        if let Err(missing) = broker::available() {
            panic!("no Kafka broker can be started here: {missing}");
        }
        let home = tempfile::Builder::new().prefix("onced-kafka-").tempdir();
        let home = home.expect("a temporary folder can be made");
        let broker = Broker::start(home.path(), arguments);
        Self {
            bootstrap: broker.bootstrap.clone(),
            extra: broker.extra.clone(),
            broker: Mutex::new(Some(broker)),
            home: Some(home),
        }
    }

    fn take_broker(&self) -> Broker {
        self.broker().take().expect("a private broker that runs")
    }

    fn broker(&self) -> MutexGuard<'_, Option<Broker>> {
        self.broker.lock().expect("no test panics while it holds the broker")
    }
}

/// The last column of a line of `describe-producers`, where it is an offset.
fn open_since(line: &str) -> Option<i64> {
    line.split_whitespace().last().and_then(|word| word.parse().ok())
}

/// A name that no other test has, and no earlier run on the same broker.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:012x}", fastrand::u64(..1 << 48))
}

/// Runs one call of the asynchronous admin client to its end.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without I/O needs nothing").block_on(future)
}

/// Names the call in the failure.
pub(super) trait Called<T> {
    fn called(self, what: impl Display) -> T;
}

impl<T, E: Display> Called<T> for Result<T, E> {
    #[track_caller]
    fn called(self, what: impl Display) -> T {
        self.unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

fn can_start(test: &str) -> bool {
    match broker::available() {
        Ok(()) => true,
        Err(missing) if env::var_os("CI").is_some() => {
            panic!("{test} cannot run, and in CI every test runs: {missing}")
        }
        Err(missing) => {
            // Not a print macro: those are swallowed when a test passes.
            let _ = writeln!(io::stderr(), "skipped {test}: {missing}");
            false
        }
    }
}
