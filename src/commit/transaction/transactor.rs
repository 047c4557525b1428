//! The thread that brings transactions to the broker, for one worker.
//!
//! librdkafka has no transactions of version 2: a commit or an abort that is delayed in the network
//! could end a later transaction of the same producer. So after every abort, and after a commit
//! that took long or saw a connection break, the next transaction has another producer: its epoch
//! fences whatever of the old one is still under way.
//!
//! Constraints:
//! - Outputs are acknowledged before offsets are sent: a record whose output is refused never
//!   moves an offset, and the broker need not be asked twice while it registers partitions.
//! - The group's own offsets go before those of its companion: what is fenced moves neither.
//! - A transaction in which a partition is no longer owned, or not in the same epoch, is aborted.
//!
//! Owns: the protocol of one transaction. Never: tries a transaction again (its records are read
//! again).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{Class, Client, Message, Refused};
use super::leftovers::{Doubt, Leftovers};
use super::phase::{Phase, Progress};
use super::{Ended, Job, Output, Transactions};
use crate::clock;
use crate::commit::headers::NativeHeaders;
use crate::fault::{self, Bug, Point};
use crate::handler::kafka::{self, Partitioner, Place};
use crate::source::companion::Companion;
use crate::source::membership::{Membership, Snapshot};
use crate::source::offset_list;

/// What a transactor needs to begin.
#[derive(Clone)]
pub struct Settings {
    /// Of the producer, with its `transactional.id`.
    pub client: ClientConfig,
    /// By route; `None`: it has no transactions.
    pub routes: Vec<Option<kafka::Config>>,
    pub membership: Membership,
    pub companion: Arc<Companion>,
    /// `transaction.timeout.ms`.
    pub timeout: Duration,
    pub progress: Progress,
    pub leftovers: Leftovers,
}

/// Called with the number of a transaction and its end, on the transactor's thread.
pub type OnEnded = dyn Fn(u64, Ended) + Send + Sync;

/// A commit that takes longer may have been sent twice: librdkafka waits `retry.backoff.ms`, 100 ms
/// give or take a fifth, before it sends one again. It does not tell of a connection that closes
/// (only of one that cannot be made), so time is what tells.
const SLOW: Duration = Duration::from_millis(60);

/// Between two attempts to register a producer.
const AGAIN: Duration = Duration::from_millis(300);

/// The last wait for a broker that goes on refusing.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A producer that is fenced so often in a row, each time right after it registered.
const HIJACKS: u32 = 3;

/// Hands transactions to a thread. The thread ends with it, once its call has ended.
pub struct Transactor {
    settings: Settings,
    ended: Arc<OnEnded>,
    jobs: Sender<Job>,
    stopped: Arc<AtomicBool>,
    /// Of the transaction that is under way.
    number: u64,
}

impl Transactor {
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn start(settings: Settings, ended: Arc<OnEnded>) -> Result<Self, KafkaError> {
        // Tells at the start what is wrong with the properties.
        drop(Client::new(&settings.client)?);
        let (jobs, stopped) = spawn(&settings, &ended, None);
        Ok(Self { settings, ended, jobs, stopped, number: 0 })
    }
}

impl Transactions for Transactor {
    fn start(&mut self, job: Job) {
        self.number = job.number;
        // The thread ends before us only when the process does.
        let _ = self.jobs.send(job);
    }

    fn watch(&mut self) {
        let (phase, lasted) = self.settings.progress.get();
        // librdkafka gives up by itself after the transaction's timeout, and twice that to register.
        let patience = self.settings.timeout * 3 + Duration::from_secs(30);
        if phase.waits_for_the_broker() || lasted < patience {
            return;
        }
        tracing::error!(
            phase = phase.name(),
            ?lasted,
            "A call of a transaction does not end; its producer is given up."
        );
        // The old thread may come back: its producer is fenced by the new one, and it is heard no
        // more. Until then it could still commit, so the new one answers for it, once it registered.
        self.stopped.store(true, Ordering::SeqCst);
        self.settings.progress = self.settings.progress.successor();
        let reason = format!("{} took longer than {patience:?}", phase.name());
        let owed = Some((self.number, Ended::Unknown { reason }));
        (self.jobs, self.stopped) = spawn(&self.settings, &self.ended, owed);
    }
}

impl Drop for Transactor {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// `owed`: what is answered when the thread has registered its producer.
fn spawn(
    settings: &Settings,
    ended: &Arc<OnEnded>,
    owed: Option<(u64, Ended)>,
) -> (Sender<Job>, Arc<AtomicBool>) {
    let (sender, jobs) = channel();
    let stopped = Arc::<AtomicBool>::default();
    let thread = Thread {
        settings: settings.clone(),
        ended: Arc::clone(ended),
        jobs,
        stopped: Arc::clone(&stopped),
        client: None,
        registered: Instant::now(),
        doubt: Doubt::All,
        fenced: 0,
        failures: 0,
        commit_took: Duration::ZERO,
        text: String::new(),
    };
    let spawned =
        std::thread::Builder::new().name("transactor".to_owned()).spawn(move || thread.run(owed));
    drop(spawned.expect("the system can start a thread"));
    (sender, stopped)
}

struct Thread {
    settings: Settings,
    ended: Arc<OnEnded>,
    jobs: Receiver<Job>,
    stopped: Arc<AtomicBool>,
    /// Registered, and with no transaction open.
    client: Option<Client>,
    registered: Instant,
    /// What has to have ended before the next transaction.
    doubt: Doubt,
    /// How often in a row, of all fences, a producer was fenced soon after it registered.
    fenced: u32,
    /// Transactions in a row that did not commit.
    failures: u32,
    /// By the last transaction.
    commit_took: Duration,
    text: String,
}

/// Why a transaction is not committed.
enum Stop {
    Abort {
        reason: String,
        refused: Vec<usize>,
    },
    /// The producer is of no more use; nothing was committed.
    Broken(Refused),
    /// The commit was sent, and its answer is not known.
    Unknown(Refused),
}

impl Stop {
    fn of(step: &str, error: Refused) -> Self {
        match error.class {
            Class::Fatal => Self::Broken(error),
            _ => Self::Abort { reason: format!("{step}: {error}"), refused: Vec::new() },
        }
    }
}

impl Thread {
    fn run(mut self, owed: Option<(u64, Ended)>) {
        // Registering takes a moment, and aborts what an earlier process left open.
        self.register();
        if let Some((number, ended)) = owed
            && self.client.is_some()
        {
            (self.ended)(number, ended);
        }
        while let Ok(job) = self.jobs.recv() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let number = job.number;
            let ended = self.transact(&job);
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            // What did not commit is answered when the next can begin.
            if !matches!(ended, Ended::Committed | Ended::Hijacked { .. }) {
                self.pause();
                self.register();
            }
            self.settings.progress.set(Phase::Idle);
            (self.ended)(number, ended);
        }
    }

    fn transact(&mut self, job: &Job) -> Ended {
        self.register();
        let Some(mut client) = self.client.take() else {
            return Ended::Aborted { reason: "onced is stopping".to_owned(), refused: Vec::new() };
        };
        let troubles = client.troubles();
        self.commit_took = Duration::ZERO;
        let result = self.attempt(&mut client, job);
        let ended = match result {
            Ok(()) => {
                self.failures = 0;
                let troubled = client.troubles() != troubles;
                // With a broker that died, the marker of this commit may be left out.
                if troubled {
                    self.doubt.add(job.moved());
                }
                let late = self.commit_took > SLOW || troubled;
                if !late || fault::bug(Bug::NoRecycle) {
                    self.client = Some(client);
                }
                return Ended::Committed;
            }
            Err(Stop::Abort { reason, refused }) => self.abort(&client, reason, refused),
            Err(Stop::Broken(error)) => self.broken(&error),
            Err(Stop::Unknown(error)) => match self.broken(&error) {
                Ended::Aborted { reason, .. } => Ended::Unknown { reason },
                ended => ended,
            },
        };
        self.failures = self.failures.saturating_add(1);
        self.doubt.add(job.moved());
        if fault::bug(Bug::NoRecycle) && matches!(ended, Ended::Aborted { .. }) {
            self.client = Some(client);
        }
        ended
    }

    fn attempt(&mut self, client: &mut Client, job: &Job) -> Result<(), Stop> {
        let progress = self.settings.progress.clone();
        progress.set(Phase::Producing);
        client.begin().map_err(|error| Stop::of("begin", error))?;
        fault::point(Point::TransactionBegun);
        let refused = self.produce(client, job)?;
        progress.set(Phase::Delivering);
        self.deliver(client, refused)?;
        fault::point(Point::OutputsDelivered);
        let snapshot = self.fenced_off(job)?;
        let offsets = offset_list(job.positions.iter().map(|(_, position)| position))
            .map_err(|error| Stop::Abort { reason: error.to_string(), refused: Vec::new() })?;
        progress.set(Phase::Offsets);
        self.send_offsets(client, &offsets, &snapshot, "offsets")?;
        fault::point(Point::OffsetsSent);
        progress.set(Phase::HighWater);
        self.send_high_water(client, &offsets)?;
        fault::point(Point::HighWaterSent);
        progress.set(Phase::Committing);
        let started = Instant::now();
        let committed = self.commit(client);
        self.commit_took = started.elapsed();
        committed?;
        fault::point(Point::TransactionCommitted);
        Ok(())
    }

    /// Hands all outputs over. Returns those that the client refused for their size.
    fn produce(&mut self, client: &mut Client, job: &Job) -> Result<Vec<usize>, Stop> {
        let mut refused = Vec::new();
        for (number, output) in job.outputs.iter().enumerate() {
            loop {
                let message = self
                    .message(client, output)
                    .map_err(|error| Stop::of("open the output topic", error))?;
                // SAFETY: the job outlives the client's use of it: a transaction ends when all is
                // delivered, or with the client dropped, and both before `job` goes.
                match unsafe { client.produce(message, number) } {
                    Ok(()) => break,
                    Err(RDKafkaErrorCode::QueueFull) => client.make_room(),
                    Err(RDKafkaErrorCode::MessageSizeTooLarge) => {
                        refused.push(number);
                        break;
                    }
                    Err(code) => {
                        return Err(Stop::Abort {
                            reason: format!("produce: {code:?}"),
                            refused: Vec::new(),
                        });
                    }
                }
            }
            if number == 0 {
                fault::point(Point::OutputProduced);
            }
        }
        Ok(refused)
    }

    fn message<'a>(
        &mut self,
        client: &mut Client,
        output: &'a Output,
    ) -> Result<Message<'a>, Refused> {
        match output {
            Output::Record { route, record, identity } => {
                let config = self.settings.routes[*route].as_ref();
                let config = config.expect("outputs come from routes that pass records on");
                let mut headers = NativeHeaders::new(8);
                for (name, value) in kafka::kept_headers(record) {
                    headers.add(name, value);
                }
                kafka::source(&mut self.text, record);
                headers.add(kafka::SOURCE.as_bytes(), Some(self.text.as_bytes()));
                if let Some(identity) = identity {
                    kafka::identity(&mut self.text, identity);
                    headers.add(kafka::IDENTITY.as_bytes(), Some(self.text.as_bytes()));
                }
                Ok(Message {
                    topic: client.topic(&config.topic, config.partitioner.native())?,
                    partition: match config.partition {
                        Place::Key => None,
                        Place::Same => Some(record.partition.index),
                    },
                    key: record.key(),
                    payload: record.payload(),
                    timestamp: record.timestamp,
                    headers,
                })
            }
            Output::Letter { topic, letter } => {
                let mut headers = NativeHeaders::new(16);
                for (name, value) in letter.headers(clock::now()) {
                    headers.add(&name, value.as_deref());
                }
                Ok(Message {
                    topic: client.topic(topic, Partitioner::default().native())?,
                    partition: None,
                    key: letter.key(),
                    payload: letter.payload(),
                    // Letters are dated by the wall clock: that is how they are found again.
                    timestamp: None,
                    headers,
                })
            }
        }
    }

    /// Waits until every output is acknowledged.
    fn deliver(&self, client: &Client, mut refused: Vec<usize>) -> Result<(), Stop> {
        let deadline = Instant::now() + self.settings.timeout;
        while !client.flush(Duration::from_millis(200)) && client.failed().is_empty() {
            if Instant::now() > deadline || self.stopped.load(Ordering::SeqCst) {
                let reason = "the outputs were not acknowledged in time".to_owned();
                return Err(Stop::Abort { reason, refused: Vec::new() });
            }
        }
        let mut reason = None;
        for (number, code) in client.failed() {
            match code {
                RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                    refused.push(number);
                }
                code => reason = reason.or(Some(format!("an output was not delivered: {code:?}"))),
            }
        }
        match (refused.is_empty(), reason) {
            (true, None) => Ok(()),
            (true, Some(reason)) => Err(Stop::Abort { reason, refused }),
            (false, _) => {
                let reason = "outputs were refused for their size".to_owned();
                Err(Stop::Abort { reason, refused })
            }
        }
    }

    /// The newest look at the group, where all partitions are still ours in it.
    fn fenced_off(&self, job: &Job) -> Result<Arc<Snapshot>, Stop> {
        let abort = |reason: &str| Stop::Abort { reason: reason.to_owned(), refused: Vec::new() };
        let newest = self.settings.membership.newest();
        let snapshot = newest.ok_or_else(|| abort("this daemon is not a member of the group"))?;
        let mut touched = job.positions.iter().map(|(epoch, at)| (&at.partition, *epoch));
        if snapshot.covers(&mut touched) || fault::bug(Bug::NoEpochCheck) {
            return Ok(snapshot);
        }
        Err(abort("a partition was given away before the commit"))
    }

    fn send_offsets(
        &self,
        client: &Client,
        offsets: &TopicPartitionList,
        snapshot: &Snapshot,
        step: &str,
    ) -> Result<(), Stop> {
        self.patiently(|| client.send_offsets(offsets, &snapshot.metadata))
            .map_err(|error| Stop::of(step, error))
    }

    fn send_high_water(&self, client: &Client, offsets: &TopicPartitionList) -> Result<(), Stop> {
        let Some(companion) = self.settings.companion.group_metadata() else {
            let reason = "the high-water group has no metadata".to_owned();
            return Err(Stop::Abort { reason, refused: Vec::new() });
        };
        self.patiently(|| client.send_offsets(offsets, &companion))
            .map_err(|error| Stop::of("high-water offsets", error))
    }

    fn commit(&self, client: &Client) -> Result<(), Stop> {
        self.patiently(|| client.commit()).map_err(|error| match error.class {
            // The broker, or the client, says that this transaction cannot be committed.
            Class::Abortable => Stop::of("commit", error),
            _ => Stop::Unknown(error),
        })
    }

    /// Makes a call again while that is allowed, up to the transaction's timeout.
    fn patiently(&self, call: impl Fn() -> Result<(), Refused>) -> Result<(), Refused> {
        let deadline = Instant::now() + self.settings.timeout;
        loop {
            match call() {
                Err(error) if error.class == Class::Retriable && Instant::now() < deadline => {
                    tracing::debug!(%error, "A call of a transaction is made again.");
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    fn abort(&mut self, client: &Client, reason: String, refused: Vec<usize>) -> Ended {
        self.settings.progress.set(Phase::Aborting);
        // Whether this works or not: the next producer's epoch ends what is open.
        let aborted = client.abort();
        fault::point(Point::TransactionAborted);
        match aborted {
            Err(error) if error.class == Class::Fatal => match self.broken(&error) {
                Ended::Aborted { .. } => Ended::Aborted { reason, refused },
                ended => ended,
            },
            Err(error) => {
                tracing::debug!(%error, "An abort failed; the next producer aborts instead.");
                Ended::Aborted { reason, refused }
            }
            Ok(()) => Ended::Aborted { reason, refused },
        }
    }

    /// A fatal error before the commit was answered: nothing of it will be visible.
    fn broken(&mut self, error: &Refused) -> Ended {
        let reason = error.to_string();
        if error.is_fenced() {
            // The broker itself fences only who was away for the whole timeout. A commit in between
            // says nothing: two daemons that fence each other commit in turns.
            let soon = self.registered.elapsed() < self.settings.timeout / 2;
            self.fenced = if soon { self.fenced + 1 } else { 0 };
        }
        if self.fenced >= HIJACKS {
            return Ended::Hijacked { reason };
        }
        Ended::Aborted { reason, refused: Vec::new() }
    }

    /// A broker that refuses again and again is not asked without a rest.
    fn pause(&self) {
        if self.failures > 1 {
            let pause = Duration::from_millis(50) * 2_u32.saturating_pow(self.failures.min(12));
            std::thread::sleep(pause.min(PAUSE_MAX));
        }
    }

    /// Makes a producer, where there is none, and registers it: whatever an earlier one left open
    /// is aborted, or was committed, once this returns. After a transaction that did not commit, it
    /// also is seen to be so.
    fn register(&mut self) {
        while self.client.is_none() && !self.stopped.load(Ordering::SeqCst) {
            self.settings.progress.set(Phase::Initialising);
            match Client::new(&self.settings.client).map_err(|error| error.to_string()) {
                Ok(client) => match self.patiently(|| client.init()) {
                    Ok(()) => {
                        if self.doubt != Doubt::No {
                            self.settings.progress.set(Phase::Settling);
                            if !self.settings.leftovers.wait(&self.doubt, &self.stopped) {
                                return;
                            }
                            self.doubt = Doubt::No;
                        }
                        // From here on: a wait says nothing of who fences whom.
                        self.registered = Instant::now();
                        self.client = Some(client);
                        fault::point(Point::ProducerRecycled);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "A producer could not register; trying again.");
                        std::thread::sleep(AGAIN);
                    }
                },
                Err(error) => {
                    tracing::error!(error, "A producer could not be made; trying again.");
                    std::thread::sleep(AGAIN);
                }
            }
        }
        self.settings.progress.set(Phase::Idle);
    }
}
