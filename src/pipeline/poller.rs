//! The poll loop: reads, hands batches over, takes partitions and gives them back, commits.
//!
//! It runs on one thread and is the only one that touches the group's member. It never waits for
//! long: what takes time runs elsewhere and comes back as a command.
//!
//! Owns: membership and what is assigned. Never: decides about records.

mod high_water;
mod membership;
mod offsets;
mod reenter;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rustc_hash::FxHashMap;

use self::high_water::HighWater;
use self::membership::{Drain, Entering};
#[cfg(test)]
pub(super) use self::membership::{first_commit, owned};
use self::reenter::Reentering;
use super::enter::Questions;
use super::lane::{Lane, Poller as LanePoller};
use super::watch::Watch;
use super::worker::{Event as WorkerEvent, Worker};
use super::{Command, Failure, Shared};
use crate::commit::transaction::Transactions;
use crate::commit::transaction::transactor::{Settings, Transactor};
use crate::metrics::PartitionMetrics;
use crate::readiness::Latch;
use crate::record::{Epoch, Offset, Partition, Record};
use crate::source::companion::{Commits, Companion};
use crate::source::lookup::Lookup;
use crate::source::{Event, Position, Source};

/// Records handed over at once: enough to make look-ups cheap, few enough to start soon.
const BATCH_RECORDS: usize = 1_000;
const BATCH_BYTES: usize = 1 << 20;

/// How long a full lane may hold up the others before its partition is paused.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest wait for an event; commands are looked at in between.
const IDLE: Duration = Duration::from_millis(20);

/// Records taken between two looks at commands and deadlines.
const RECORDS_PER_LOOK: usize = 256;

/// The least time between two warnings that a broker is in trouble.
const TROUBLE: Duration = Duration::from_secs(2);

/// A partition with records to come that is silent for so long is asked for again.
const SILENCE: Duration = Duration::from_secs(5);

/// How long moving the consumer may take.
const SEEK: Duration = Duration::from_secs(1);

const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often the group's metadata are read for transactions, besides at every rebalance event.
const MEMBERSHIP: Duration = Duration::from_millis(100);

/// How long leaving the group may take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until it is asked to stop or cannot go on. Blocks the calling thread.
///
/// `idle` is held before and after: from the first moment of the end, nobody is told that all is
/// well.
///
/// # Errors
/// Why the pipeline ended by itself.
pub fn run(shared: &Arc<Shared>, idle: &Latch) -> Result<(), Failure> {
    let kafka = &shared.config.kafka;
    let failed = |source| Failure::Kafka { action: "cannot create a client".to_owned(), source };
    let topics: Vec<&str> = shared
        .routes
        .iter()
        .flat_map(|route| route.config.topics.iter().map(|topic| &**topic))
        .collect();
    let lookup = Arc::new(Lookup::new(kafka).map_err(failed)?);
    let companion = Arc::new(Companion::new(kafka).map_err(failed)?);
    let questions = Questions {
        config: Arc::clone(&shared.config),
        lookup: Arc::clone(&lookup),
        companion: Arc::clone(&companion),
    };
    let source = Source::subscribe(kafka, &topics).map_err(failed)?;
    let (commands, inbox) = channel();
    let workers = start_workers(shared, &commands).map_err(failed)?;
    let mut poller = Poller {
        joining: Some(shared.readiness.latch("joining the group")),
        shared: Arc::clone(shared),
        watch: Watch::start(shared, &lookup, &companion, commands.clone()),
        high_water: HighWater::new(Commits::new(&companion)),
        questions: Arc::new(questions),
        lookup,
        source,
        commands,
        inbox,
        workers,
        assigned: FxHashMap::default(),
        pace: LanePoller::current(),
        next_epoch: 1,
        rebalance: 0,
        entering: None,
        reentering: Vec::new(),
        next_ticket: 0,
        next_membership: Instant::now(),
        drain: None,
        failure: None,
        next_housekeeping: Instant::now(),
        max_poll_gap: max_poll_interval(shared),
        last_poll: Instant::now(),
        unanswered: FxHashMap::default(),
        commit_failed: false,
        commits_out: 0,
        next_attempt: Instant::now(),
        next_trouble: Instant::now(),
    };
    idle.release();
    poller.serve();
    idle.set("stopping");
    poller.leave();
    poller.finish()
}

/// The consumer's `max.poll.interval.ms`: a longer gap has cost the membership.
fn max_poll_interval(shared: &Shared) -> Duration {
    let given =
        shared.config.kafka.properties.iter().find(|(name, _)| *name == "max.poll.interval.ms");
    let ms = given.and_then(|(_, value)| value.parse().ok()).unwrap_or(300_000);
    Duration::from_millis(ms)
}

struct WorkerHandle {
    events: Sender<WorkerEvent>,
    thread: JoinHandle<()>,
}

/// The transactions of one worker; their ends are events of it.
fn transactions(
    shared: &Shared,
    index: usize,
    events: &Sender<WorkerEvent>,
) -> Result<Option<Box<dyn Transactions>>, KafkaError> {
    let Some(transacting) = &shared.transacting else { return Ok(None) };
    let mut client = transacting.client.clone();
    client.set("transactional.id", format!("{}-{index}", transacting.id));
    // A commit that was sent twice is known by this wait, see `commit::transaction::transactor`.
    client.set("retry.backoff.ms", "100");
    client.set("retry.backoff.max.ms", "1000");
    let settings = Settings {
        client,
        routes: shared.routes.iter().map(|route| route.passes_on().cloned()).collect(),
        membership: transacting.membership.clone(),
        companion: Arc::clone(&transacting.companion),
        timeout: transacting.timeout,
        // An earlier run of the pipeline may have left a thread behind.
        progress: transacting.progress[index].successor(),
        leftovers: transacting.leftovers.clone(),
    };
    let events = events.clone();
    // The worker is gone only when the daemon is going.
    let ended = move |number, ended| drop(events.send(WorkerEvent::Transaction { number, ended }));
    let transactor = Transactor::start(settings, Arc::new(ended))?;
    Ok(Some(Box::new(transactor)))
}

fn start_workers(
    shared: &Arc<Shared>,
    commands: &Sender<Command>,
) -> Result<Vec<WorkerHandle>, KafkaError> {
    let channels: Vec<_> = (0..shared.config.runtime.workers).map(|_| channel()).collect();
    let senders = channels.iter().map(|(sender, _)| sender.clone()).collect();
    // A second run after a full disk has new channels; the cell is made anew with `Shared`.
    let _ = shared.workers.set(senders);
    let start = |(index, (events, receiver)): (usize, (Sender<_>, Receiver<_>))| {
        let transactions = transactions(shared, index, &events)?;
        let channel = (events.clone(), receiver);
        let worker =
            Worker::new(index, Arc::clone(shared), channel, commands.clone(), transactions);
        let commands = commands.clone();
        let run = move || {
            let panicked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run())).is_err();
            if panicked {
                let _ = commands.send(Command::Fail(Failure::Panicked));
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(run);
        Ok(WorkerHandle { events, thread: thread.expect("the system can start a thread") })
    };
    channels.into_iter().enumerate().map(start).collect()
}

/// A partition that is being read.
struct Assigned {
    epoch: Epoch,
    worker: usize,
    lane: Arc<Lane>,
    pending: Vec<Record>,
    pending_bytes: usize,
    paused: bool,
    draining: bool,
    /// The offset after the last that was delivered.
    next: Offset,
    /// When something of it was last delivered.
    heard: Instant,
    /// Its start is being found anew, under this ticket: what is delivered belongs to nobody.
    reentering: Option<u64>,
    metrics: PartitionMetrics,
    /// What the group has of it, and since when.
    standing: Option<(Position, Instant)>,
}

impl Assigned {
    /// What is delivered goes to its worker.
    fn is_read(&self) -> bool {
        !self.draining && self.reentering.is_none()
    }
}

struct Poller {
    shared: Arc<Shared>,
    lookup: Arc<Lookup>,
    questions: Arc<Questions>,
    watch: Watch,
    high_water: HighWater,
    source: Source,
    commands: Sender<Command>,
    inbox: Receiver<Command>,
    workers: Vec<WorkerHandle>,
    assigned: FxHashMap<Partition, Assigned>,
    pace: Arc<LanePoller>,
    next_epoch: u64,
    /// Counts offers and revocations: what was asked for an earlier one is stale.
    rebalance: u64,
    entering: Option<Entering>,
    reentering: Vec<Reentering>,
    next_ticket: u64,
    next_membership: Instant,
    drain: Option<Drain>,
    failure: Option<Failure>,
    next_housekeeping: Instant,
    max_poll_gap: Duration,
    last_poll: Instant,
    joining: Option<Latch>,
    /// Sent for commit and not acknowledged.
    unanswered: FxHashMap<Partition, (Epoch, Position)>,
    commit_failed: bool,
    /// Commits without an answer yet.
    commits_out: usize,
    next_trouble: Instant,
    /// When the last commit of a drain may be sent again.
    next_attempt: Instant,
}

impl Poller {
    fn serve(&mut self) {
        while self.failure.is_none() && !self.shared.shutdown.requested() {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.shared.heartbeats.beat_poller();
        self.read();
        while let Ok(command) = self.inbox.try_recv() {
            self.command(command);
        }
        self.raise_high_water();
        self.end_drain_if_due();
        self.housekeep();
    }

    /// Takes events until there are none, or it is time to look elsewhere.
    fn read(&mut self) {
        self.note_poll();
        let count = self.assigned.len();
        // What waits for room waits for a worker: there is time for a nap.
        let ready = |at: &Assigned| !at.pending.is_empty() && !at.paused && at.lane.has_room(count);
        let mut patience = if self.assigned.values().any(ready) { Duration::ZERO } else { IDLE };
        for _ in 0..RECORDS_PER_LOOK {
            match self.source.poll(patience) {
                Some(event) => self.on(event),
                None => {
                    self.hand_over_all();
                    return;
                }
            }
            // What is there is taken; what is not must not hold up what was taken.
            patience = Duration::ZERO;
        }
    }

    /// A gap that is too long has cost the partitions, whether the client says so or not.
    fn note_poll(&mut self) {
        let gap = self.last_poll.elapsed();
        self.last_poll = Instant::now();
        if gap > self.max_poll_gap && !self.assigned.is_empty() {
            tracing::error!(
                ?gap,
                "The poll loop was away for longer than max.poll.interval.ms; its partitions count as lost."
            );
            let partitions: Vec<_> = self.assigned.keys().cloned().collect();
            self.lose(&partitions);
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Record(record) => self.take(record),
            Event::End(partition, offset) => self.end(&partition, offset),
            Event::Assigned(partitions) => self.offered(partitions),
            Event::Revoked { partitions, lost } => self.revoked(partitions, lost),
            Event::Committed(result) => self.commit_answered(result),
            Event::OutOfRange(partition) => {
                tracing::warn!(%partition, "The next offset is no longer in the topic.");
                self.fail(Failure::OutOfRange { partition });
            }
            Event::Trouble { error, reason } => self.tell_trouble(&error, &reason),
            Event::Fatal(source) => {
                let action = "the client cannot go on".to_owned();
                self.fail(Failure::Kafka { action, source });
            }
        }
    }

    /// A broker that is away is told of many times a second; a log is read by people.
    fn tell_trouble(&mut self, error: &KafkaError, reason: &str) {
        if self.next_trouble > Instant::now() {
            tracing::debug!(%error, reason, "Trouble with Kafka; the client goes on trying.");
            return;
        }
        self.next_trouble = Instant::now() + TROUBLE;
        tracing::warn!(%error, reason, "Trouble with Kafka; the client goes on trying.");
    }

    fn take(&mut self, record: Record) {
        // Of a partition that was given back: it is read again by whoever owns it.
        let Some(assigned) =
            self.assigned.get_mut(&record.partition).filter(|assigned| assigned.is_read())
        else {
            return;
        };
        assigned.pending_bytes += record.size();
        assigned.next = record.offset.next();
        assigned.heard = self.last_poll;
        let full =
            assigned.pending.len() + 1 >= BATCH_RECORDS || assigned.pending_bytes >= BATCH_BYTES;
        let partition = full.then(|| record.partition.clone());
        assigned.pending.push(record);
        if let Some(partition) = partition {
            self.hand_over(&partition, PATIENCE);
        }
    }

    fn hand_over_all(&mut self) {
        let partitions: Vec<_> = self
            .assigned
            .iter()
            .filter(|(_, assigned)| !assigned.pending.is_empty())
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in partitions {
            self.hand_over(&partition, Duration::ZERO);
        }
    }

    /// Gives a batch to its worker, or pauses the partition where there is no room for long.
    fn hand_over(&mut self, partition: &Partition, patience: Duration) {
        let count = self.assigned.len();
        let Some(assigned) = self.assigned.get_mut(partition) else { return };
        let patience = if assigned.paused { Duration::ZERO } else { patience };
        let room = assigned.lane.has_room(count)
            || (!patience.is_zero() && assigned.lane.wait_for_room(count, patience));
        if !room {
            if !assigned.paused && !patience.is_zero() {
                assigned.paused = pause(&self.source, partition);
            }
            return;
        }
        assigned.lane.add(assigned.pending.len(), assigned.pending_bytes);
        assigned.pending_bytes = 0;
        let records = std::mem::replace(&mut assigned.pending, Vec::with_capacity(BATCH_RECORDS));
        let event =
            WorkerEvent::Records { partition: partition.clone(), epoch: assigned.epoch, records };
        send(&self.workers[assigned.worker], event);
    }

    fn end(&mut self, partition: &Partition, offset: Offset) {
        self.hand_over(partition, PATIENCE);
        if let Some(assigned) = self.assigned.get_mut(partition) {
            assigned.next = assigned.next.max(offset);
            assigned.heard = self.last_poll;
        }
        let Some(assigned) = self.assigned.get(partition).filter(|at| at.is_read()) else { return };
        if assigned.pending.is_empty() {
            let event =
                WorkerEvent::End { partition: partition.clone(), epoch: assigned.epoch, offset };
            send(&self.workers[assigned.worker], event);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Commit(positions) => self.commit(positions),
            Command::Drained { partition, epoch, position } => {
                self.drained(&partition, epoch, position)
            }
            Command::Entered { rebalance, result } => self.entered(rebalance, result),
            Command::Reenter(partitions) => self.reenter(partitions),
            Command::Reentered { ticket, result } => self.reentered(ticket, result),
            Command::Fail(failure) => self.fail(failure),
        }
    }

    fn housekeep(&mut self) {
        self.resume_drained();
        if Instant::now() >= self.next_membership {
            self.next_membership = Instant::now() + MEMBERSHIP;
            self.publish_membership();
        }
        if Instant::now() < self.next_housekeeping {
            return;
        }
        self.next_housekeeping = Instant::now() + HOUSEKEEPING;
        self.wake_silent();
        self.show_lag();
        self.lookup.listen();
        if std::mem::take(&mut self.commit_failed) {
            self.commit_unanswered();
        }
        self.commit_standing();
        if self.shared.held() {
            for (partition, assigned) in &mut self.assigned {
                if !assigned.paused && assigned.reentering.is_none() {
                    assigned.paused = pause(&self.source, partition);
                }
            }
        }
    }

    /// Partitions that were paused go on when their worker has room again.
    fn resume_drained(&mut self) {
        if self.shared.held() {
            return;
        }
        let count = self.assigned.len();
        let drained = |assigned: &Assigned| assigned.paused && assigned.lane.has_drained(count);
        let ready: Vec<_> = self
            .assigned
            .iter()
            .filter(|(_, assigned)| drained(assigned))
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in ready {
            self.hand_over(&partition, Duration::ZERO);
            let Some(assigned) = self.assigned.get_mut(&partition) else { continue };
            assigned.paused = !resume(&self.source, &partition);
        }
    }

    /// A partition that is silent though its topic goes on is moved to where it stands: after a pause,
    /// a rebalance and a seek within a second, the client was seen to fetch nothing more of it.
    fn wake_silent(&mut self) {
        for (partition, assigned) in &mut self.assigned {
            let asked = assigned.is_read() && !assigned.paused && assigned.pending.is_empty();
            if !asked || assigned.heard.elapsed() < SILENCE {
                continue;
            }
            assigned.heard = Instant::now();
            let next = assigned.next;
            if self.source.high_watermark(partition).is_none_or(|end| end <= next) {
                continue;
            }
            tracing::info!(%partition, %next, "Nothing of the partition came for a while; it is asked for again.");
            resume(&self.source, partition);
            if let Err(error) = self.source.seek(&[(partition.clone(), next)], SEEK) {
                tracing::warn!(%error, %partition, "The consumer could not be moved.");
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    fn finish(self) -> Result<(), Failure> {
        if !self.source.leave(LEAVE_PATIENCE) {
            tracing::warn!("Could not leave the group in time; the broker notices by itself.");
        }
        for worker in &self.workers {
            send(worker, WorkerEvent::Stop);
        }
        for worker in self.workers {
            // A panic was reported by the thread itself.
            let _ = worker.thread.join();
        }
        self.failure.map_or(Ok(()), Err)
    }
}

fn pause(source: &Source, partition: &Partition) -> bool {
    match source.pause(std::slice::from_ref(partition)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, %partition, "The partition could not be paused.");
            false
        }
    }
}

fn resume(source: &Source, partition: &Partition) -> bool {
    match source.resume(std::slice::from_ref(partition)) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, %partition, "The partition could not be resumed.");
            false
        }
    }
}

fn send(worker: &WorkerHandle, event: WorkerEvent) {
    // A worker that is gone has reported why.
    let _ = worker.events.send(event);
}
