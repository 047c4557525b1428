//! The daemon: everything that lives as long as the process, and the one place that knows all of
//! it.
//!
//! Owns: the order of starting and stopping, the log's housekeeping and the exit codes.
//! Never: touches a record.

pub(crate) mod disk;
mod housekeeping;
mod outputs;
mod retention;
mod status;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Runtime;

use crate::admin::{self, AdminError};
use crate::commit::producer::{LetterProducer, Letters};
use crate::commit::transaction::leftovers::Leftovers;
use crate::commit::transaction::phase::Progress;
use crate::config::{Config, HandlerKind, Mode};
use crate::dedup::store::{self, Stamp};
use crate::dedup::{LogError, Store};
use crate::handler::Handler;
use crate::handler::http::{Http, HttpError};
use crate::handler::stdout::{Stdout, StdoutError};
use crate::metrics::Metrics;
use crate::pipeline::{self, Board, Failure, Heartbeats, Kept, Route, Shared, Transacting};
use crate::readiness::{Latch, Readiness};
use crate::shutdown::Shutdown;
use crate::source::client;
use crate::source::companion::Companion;
use crate::source::lookup::Lookup;
use crate::source::membership::Membership;

/// The ways in which the process ends. They are a contract.
pub mod exit {
    /// Fine.
    pub const OK: u8 = 0;
    /// Failed: see the last lines of the log.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 3;
    /// The log cannot be trusted.
    pub const LOG: u8 = 4;
    /// The topic changed under us.
    pub const TOPIC: u8 = 5;
    /// `verify` found a violation.
    pub const VIOLATION: u8 = 6;
}

/// A consumer that handles each message once.
pub struct Consumer;

impl Consumer {
    /// Starts from a resolved configuration.
    #[must_use]
    pub fn builder(config: Config) -> Builder {
        Builder { config, handlers: HashMap::new(), shutdown: Shutdown::new() }
    }
}

/// What a consumer is made of.
pub struct Builder {
    config: Config,
    handlers: HashMap<String, Arc<dyn Handler>>,
    shutdown: Shutdown,
}

impl Builder {
    /// Registers a handler for all routes with `handler.kind = "<kind>"`.
    #[must_use]
    pub fn handler(mut self, kind: &str, handler: impl Handler) -> Self {
        self.handlers.insert(kind.to_owned(), Arc::new(handler));
        self
    }

    /// Stops when this is requested; without it, never.
    #[must_use]
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.shutdown = shutdown;
        self
    }

    /// Runs until the shutdown is requested. Blocks the calling thread; not to be called from
    /// async code.
    ///
    /// # Errors
    /// Why the daemon could not start or go on; see [`Error::exit_code`].
    pub fn run(self) -> Result<(), Error> {
        let runtime =
            Runtime::new().map_err(|source| Error::System { what: "start the runtime", source })?;
        let result = Daemon::new(self, &runtime)?.run();
        // A handler that hangs must not hold up the exit: its claim stays unsettled.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what}")]
    System { what: &'static str, source: std::io::Error },
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("routes.{route}.handler")]
    Http { route: String, source: HttpError },
    #[error("routes.{route}.handler")]
    Stdout { route: String, source: StdoutError },
    #[error("routes.{route}.handler.kind = \"{kind}\": no such handler is registered")]
    NoHandler { route: String, kind: String },
    #[error("kafka.properties: the client refuses a property: {reason}")]
    Client { reason: String },
    #[error("routes.{route}: the topic {topic} cannot be used; create it or correct the name")]
    Topic { route: String, topic: String, source: KafkaError },
    #[error("routes.{route}: the output topic cannot be used")]
    Output { route: String, source: outputs::Crowded },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Pipeline(#[from] Failure),
}

impl Error {
    fn client(error: &KafkaError) -> Self {
        Self::Client { reason: client::without_value(error) }
    }

    /// See [`exit`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client { .. } | Self::NoHandler { .. } | Self::Http { .. } => exit::CONFIG,
            Self::Log(error) | Self::Pipeline(Failure::Log(error)) => log_exit_code(error),
            Self::Pipeline(Failure::Refused(_)) => exit::TOPIC,
            _ => exit::FAILED,
        }
    }
}

fn log_exit_code(error: &LogError) -> u8 {
    match error {
        LogError::Directory { .. } | LogError::Locked { .. } | LogError::DiskFull { .. } => {
            exit::FAILED
        }
        _ => exit::LOG,
    }
}

/// How often a full disk is looked at.
const SPACE_INTERVAL: Duration = Duration::from_millis(500);

struct Daemon<'a> {
    config: Arc<Config>,
    runtime: &'a Runtime,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    board: Arc<Board>,
    heartbeats: Arc<Heartbeats>,
    hold: Arc<AtomicBool>,
    /// Of the transactions, by worker.
    progress: Vec<Progress>,
    handlers: Vec<Option<Arc<dyn Handler>>>,
    /// Held while no pipeline runs.
    idle: Latch,
    /// The log of the last run.
    store: Weak<Store>,
}

impl<'a> Daemon<'a> {
    fn new(builder: Builder, runtime: &'a Runtime) -> Result<Self, Error> {
        let Builder { config, handlers, shutdown } = builder;
        let readiness = Readiness::new();
        Ok(Self {
            handlers: make_handlers(&config, &handlers, runtime)?,
            idle: readiness.latch("starting"),
            store: Weak::new(),
            metrics: Metrics::new(),
            board: Arc::default(),
            heartbeats: Arc::new(Heartbeats::new(config.runtime.workers)),
            hold: Arc::default(),
            progress: vec![(); config.runtime.workers]
                .iter()
                .map(|()| Progress::default())
                .collect(),
            config: Arc::new(config),
            runtime,
            shutdown,
            readiness,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        let routes = self.routes();
        let status = status::Source {
            config: Arc::clone(&self.config),
            routes: routes.clone(),
            board: Arc::clone(&self.board),
            readiness: self.readiness.clone(),
            metrics: Arc::clone(&self.metrics),
            progress: self.progress.clone(),
        };
        self.serve_admin(status)?;
        let lookup = Lookup::new(&self.config.kafka).map_err(|error| Error::client(&error))?;
        let Some(cluster_id) = self.wait_for_broker(&lookup) else { return Ok(()) };
        self.check_topics(&lookup)?;
        drop(lookup);
        let kept = self.look_at_retention();
        let stamp = Stamp { cluster_id, group: self.config.kafka.group.clone() };
        let mut needed = self.room_to_open();
        while !self.shutdown.requested() {
            self.wait_for_space(std::mem::replace(&mut needed, self.room_to_open()));
            match self.run_once(&routes, &stamp, &kept) {
                Err(Error::Log(error) | Error::Pipeline(Failure::Log(error))) if error.passes() => {
                    tracing::error!(%error, "The disk is full. Nothing is consumed until there is space.");
                    needed = needed.max(self.config.log.disk_reserve);
                }
                // Retention was faster: whether that matters is decided at the start.
                Err(Error::Pipeline(Failure::OutOfRange { .. })) => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// Opens the log and runs the pipeline on it, until it ends.
    fn run_once(
        &mut self,
        routes: &[Arc<Route>],
        stamp: &Stamp,
        kept: &Arc<OnceLock<Kept>>,
    ) -> Result<(), Error> {
        self.idle.set("starting");
        self.wait_for_last_user();
        if self.shutdown.requested() {
            return Ok(());
        }
        let log = &self.config.log;
        let config = store::Config { dir: log.dir.clone(), memory: log.memory };
        let store = Arc::new(Store::open(&config, stamp)?);
        self.store = Arc::downgrade(&store);
        routes.iter().for_each(|route| route.begin());
        let _housekeeping = housekeeping::start(housekeeping::Parts {
            store: Arc::clone(&store),
            config: Arc::clone(&self.config),
            board: Arc::clone(&self.board),
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            hold: Arc::clone(&self.hold),
        })?;
        let store_id = store.directory_id().to_owned();
        let shared = Arc::new(Shared {
            letters: self.letter_producer()?,
            config: Arc::clone(&self.config),
            routes: routes.to_vec(),
            kept: Arc::clone(kept),
            log: store,
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            board: Arc::clone(&self.board),
            heartbeats: Arc::clone(&self.heartbeats),
            calls: Arc::new(pipeline::Spawned(self.runtime.handle().clone())),
            transacting: self.transacting(store_id)?,
            shutdown: self.shutdown.clone(),
            hold: Arc::clone(&self.hold),
            commit_interval: self.config.kafka.commit_interval,
            workers: OnceLock::new(),
        });
        Ok(pipeline::run(&shared, &self.idle)?)
    }

    /// Asks in the background: some brokers answer late or never, and no record waits for it.
    fn look_at_retention(&self) -> Arc<OnceLock<Kept>> {
        let (kept, config) = (Arc::<OnceLock<Kept>>::default(), Arc::clone(&self.config));
        let answer = Arc::clone(&kept);
        self.runtime.spawn(async move { answer.set(retention::look(&config).await) });
        kept
    }

    /// A question to the broker may outlive the pipeline that asked, and holds the log.
    fn wait_for_last_user(&self) {
        while self.store.strong_count() > 0 && !self.shutdown.requested() {
            self.heartbeats.beat_all();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn routes(&self) -> Vec<Arc<Route>> {
        let make = |(config, handler): (&crate::config::Route, &Option<Arc<dyn Handler>>)| {
            Route::new(config.clone(), handler.clone(), self.metrics.route(&config.name))
        };
        self.config.routes.iter().zip(&self.handlers).map(make).collect()
    }

    fn letter_producer(&self) -> Result<Option<Arc<dyn Letters>>, Error> {
        let needed = self.config.routes.iter().any(|route| route.dead_letter.is_some());
        if !needed {
            return Ok(None);
        }
        let producer = LetterProducer::new(client::base(&self.config.kafka));
        Ok(Some(Arc::new(producer.map_err(|error| Error::client(&error))?)))
    }

    /// What exactly-once routes need, where there are any.
    fn transacting(&self, directory_id: String) -> Result<Option<Transacting>, Error> {
        if self.config.routes.iter().all(|route| route.mode != Mode::ExactlyOnce) {
            return Ok(None);
        }
        let kafka = &self.config.kafka;
        let companion = Companion::new(kafka).map_err(|error| Error::client(&error))?;
        let (mut client, timeout) = client::transactional(kafka);
        self.runtime.block_on(outputs::limit_batches(&self.config, &mut client));
        let companion = Arc::new(companion);
        Ok(Some(Transacting {
            client,
            timeout,
            id: format!("{}-{directory_id}", kafka.group),
            membership: Membership::default(),
            companion: Arc::clone(&companion),
            leftovers: Leftovers {
                config: Arc::clone(&self.config),
                topics: outputs::topics(&self.config).into_iter().collect(),
                inputs: outputs::inputs(&self.config).into_iter().collect(),
                companion,
                readiness: self.readiness.clone(),
            },
            progress: self.progress.clone(),
        }))
    }

    fn serve_admin(&self, status: status::Source) -> Result<(), Error> {
        let Some(address) = self.config.admin.listen else { return Ok(()) };
        // Not the handlers' runtime: one that blocks must not keep a probe waiting.
        let system = |source| Error::System { what: "start the admin server", source };
        let own =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let listener = own.block_on(admin::bind(address))?;
        tracing::info!(address = %listener.local_addr().unwrap_or(address), "The admin server listens.");
        let heartbeats = Arc::clone(&self.heartbeats);
        let sources = admin::Sources {
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            status: Arc::new(move || status.show()),
            liveness: Arc::new(move || heartbeats.check()),
        };
        let serve = move || own.block_on(admin::serve(listener, sources, std::future::pending()));
        // Answers until the process ends: whoever asks while it drains is told so.
        std::thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(system)?;
        Ok(())
    }

    /// The cluster's id, however long the broker takes. `None`: the shutdown came first.
    fn wait_for_broker(&self, lookup: &Lookup) -> Option<String> {
        let latch = self.readiness.latch("waiting for the broker");
        let mut trouble = None;
        while !self.shutdown.requested() {
            self.heartbeats.beat_all();
            match lookup.cluster_id(Duration::from_secs(5)) {
                Ok(id) => return Some(id),
                Err(error) => {
                    let brokers = &self.config.kafka.brokers;
                    // The client does not repeat itself at once.
                    trouble = lookup.listen().or(trouble);
                    let error = trouble.clone().unwrap_or_else(|| error.to_string());
                    tracing::error!(brokers, error, "No broker answers; trying again.");
                    latch.set(format!("no broker answers at {brokers}: {error}"));
                }
            }
        }
        None
    }

    /// Every input, output and dead-letter topic is there, and outputs have room.
    fn check_topics(&self, lookup: &Lookup) -> Result<(), Error> {
        let mut partitions = HashMap::new();
        for route in &self.config.routes {
            let output = match &route.handler {
                HandlerKind::Kafka(kafka) => Some(&kafka.topic),
                _ => None,
            };
            for topic in route.topics.iter().chain(&route.dead_letter).chain(output) {
                match lookup.partition_count(topic) {
                    Err(source)
                        if source.rdkafka_error_code()
                            == Some(RDKafkaErrorCode::BrokerTransportFailure) =>
                    {
                        tracing::warn!(%topic, error = %source, "The topic could not be looked at.");
                    }
                    Err(source) => {
                        let (route, topic) = (route.name.to_string(), topic.to_string());
                        return Err(Error::Topic { route, topic, source });
                    }
                    Ok(count) => drop(partitions.insert(Arc::clone(topic), count)),
                }
            }
            if let Some(source) = outputs::without_room(route, |of| partitions.get(of).copied()) {
                return Err(Error::Output { route: route.name.to_string(), source });
            }
        }
        Ok(())
    }

    /// Opening the log writes: what its write-ahead log holds becomes tables. Also with no reserve
    /// a full disk must not make it try in vain, and call handlers for what it cannot note.
    fn room_to_open(&self) -> u64 {
        store::room_to_open(self.config.log.memory)
    }

    fn wait_for_space(&self, needed: u64) {
        let dir = &self.config.log.dir;
        let latch = self.readiness.latch("looking at the disk");
        while !self.shutdown.requested() {
            self.heartbeats.beat_all();
            match disk::free(dir) {
                Ok(free) if free < needed => latch.set(format!(
                    "the disk is full: {free} bytes are free in {}, onced waits for {needed}",
                    dir.display()
                )),
                // Opening it says what is wrong with the directory.
                _ => break,
            }
            std::thread::sleep(SPACE_INTERVAL);
        }
        self.hold.store(false, Ordering::Relaxed);
    }
}

fn make_handlers(
    config: &Config,
    registered: &HashMap<String, Arc<dyn Handler>>,
    runtime: &Runtime,
) -> Result<Vec<Option<Arc<dyn Handler>>>, Error> {
    let _inside = runtime.enter();
    let make = |route: &crate::config::Route| -> Result<Option<Arc<dyn Handler>>, Error> {
        let name = || route.name.to_string();
        Ok(Some(match &route.handler {
            HandlerKind::Kafka(_) => return Ok(None),
            HandlerKind::Stdout => {
                Arc::new(Stdout::new().map_err(|source| Error::Stdout { route: name(), source })?)
            }
            HandlerKind::Http(config) => Arc::new(
                Http::new(config, route.concurrency)
                    .map_err(|source| Error::Http { route: name(), source })?,
            ),
            HandlerKind::Registered(kind) => registered
                .get(kind)
                .cloned()
                .ok_or_else(|| Error::NoHandler { route: name(), kind: kind.clone() })?,
        }))
    };
    config.routes.iter().map(make).collect()
}
