//! The poll loop: reads, hands batches over, takes partitions and gives them back, commits.
//!
//! It runs on one thread and is the only one that touches the group's member. It never waits for
//! long: what takes time runs elsewhere and comes back as a command.
//!
//! Owns: membership and what is assigned. Never: decides about records.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::enter::{Cancelled, Entered, enter};
use super::lane::{Lane, Poller as LanePoller};
use super::worker::{Event as WorkerEvent, Owned, Worker};
use super::{Command, Failure, Shared};
use crate::metrics::{PartitionMetrics, Rebalance, VerdictLabel};
use crate::readiness::Latch;
use crate::record::{Epoch, Offset, Partition, Record};
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

const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long leaving the group may take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until it is asked to stop or cannot go on. Blocks the calling thread.
///
/// # Errors
/// Why the pipeline ended by itself.
pub fn run(shared: &Arc<Shared>) -> Result<(), Failure> {
    let kafka = &shared.config.kafka;
    let failed =
        |source| Failure::Kafka { action: "cannot create the consumer".to_owned(), source };
    let topics: Vec<&str> = shared
        .routes
        .iter()
        .flat_map(|route| route.config.topics.iter().map(|topic| &**topic))
        .collect();
    let lookup = Arc::new(Lookup::new(kafka).map_err(failed)?);
    let source = Source::subscribe(kafka, &topics).map_err(failed)?;
    let (commands, inbox) = channel();
    let workers = start_workers(shared, &commands);
    let mut poller = Poller {
        joining: Some(shared.readiness.latch("joining the group".to_owned())),
        shared: Arc::clone(shared),
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
        drain: None,
        failure: None,
        next_housekeeping: Instant::now(),
        held: false,
        max_poll_gap: max_poll_interval(shared),
        last_poll: Instant::now(),
        unanswered: FxHashMap::default(),
        commit_failed: false,
    };
    poller.serve();
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

fn start_workers(shared: &Arc<Shared>, commands: &Sender<Command>) -> Vec<WorkerHandle> {
    let channels: Vec<_> = (0..shared.config.runtime.workers).map(|_| channel()).collect();
    let senders = channels.iter().map(|(sender, _)| sender.clone()).collect();
    // A second run after a full disk has new channels; the cell is made anew with `Shared`.
    let _ = shared.workers.set(senders);
    let start = |(index, (events, receiver)): (usize, (Sender<_>, Receiver<_>))| {
        let worker =
            Worker::new(index, Arc::clone(shared), (events.clone(), receiver), commands.clone());
        let commands = commands.clone();
        let run = move || {
            let panicked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run())).is_err();
            if panicked {
                let _ = commands.send(Command::Fail(Failure::Panicked));
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(run);
        WorkerHandle { events, thread: thread.expect("the system can start a thread") }
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
    metrics: PartitionMetrics,
}

struct Entering {
    rebalance: u64,
    partitions: Vec<Partition>,
    cancelled: Cancelled,
    _latch: Latch,
}

struct Drain {
    partitions: Vec<Partition>,
    remaining: Vec<Partition>,
    positions: Vec<Position>,
    deadline: Instant,
}

struct Poller {
    shared: Arc<Shared>,
    lookup: Arc<Lookup>,
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
    drain: Option<Drain>,
    failure: Option<Failure>,
    next_housekeeping: Instant,
    held: bool,
    max_poll_gap: Duration,
    last_poll: Instant,
    joining: Option<Latch>,
    /// Sent for commit and not acknowledged.
    unanswered: FxHashMap<Partition, (Epoch, Position)>,
    commit_failed: bool,
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
            Event::Committed(Ok(offsets)) => self.committed(&offsets),
            Event::Committed(Err(error)) => {
                tracing::warn!(%error, "Offsets were not committed; they are committed again.");
                self.commit_failed = true;
            }
            Event::OutOfRange(partition) => {
                tracing::warn!(%partition, "The next offset is no longer in the topic.");
                self.fail(Failure::OutOfRange { partition });
            }
            Event::Trouble(error) => {
                tracing::warn!(%error, "Trouble with Kafka; the client goes on trying.")
            }
            Event::Fatal(source) => {
                let action = "the client cannot go on".to_owned();
                self.fail(Failure::Kafka { action, source });
            }
        }
    }

    fn take(&mut self, record: Record) {
        // Of a partition that was given back: it is read again by whoever owns it.
        let Some(assigned) =
            self.assigned.get_mut(&record.partition).filter(|assigned| !assigned.draining)
        else {
            return;
        };
        assigned.pending_bytes += record.size();
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
        let Some(assigned) = self.assigned.get(partition).filter(|assigned| !assigned.draining)
        else {
            return;
        };
        if assigned.pending.is_empty() {
            let event =
                WorkerEvent::End { partition: partition.clone(), epoch: assigned.epoch, offset };
            send(&self.workers[assigned.worker], event);
        }
    }

    fn offered(&mut self, partitions: Vec<Partition>) {
        self.rebalance += 1;
        self.joining = None;
        self.shared.metrics.rebalances.add(Rebalance::Assigned, 1);
        if partitions.is_empty() {
            tracing::info!("The group has no new partitions for this member.");
            return self.assign(&[]);
        }
        let names: Vec<_> = partitions.iter().map(ToString::to_string).collect();
        let latch =
            self.shared.readiness.latch(format!("finding the start of {}", names.join(", ")));
        let cancelled = Arc::new(AtomicBool::new(false));
        self.entering = Some(Entering {
            rebalance: self.rebalance,
            partitions: partitions.clone(),
            cancelled: Arc::clone(&cancelled),
            _latch: latch,
        });
        let (shared, lookup) = (Arc::clone(&self.shared), Arc::clone(&self.lookup));
        let (commands, rebalance) = (self.commands.clone(), self.rebalance);
        let ask = move || {
            let result = enter(&shared, &lookup, &partitions, &cancelled);
            // The poll loop is gone only when the daemon is going.
            let _ = commands.send(Command::Entered { rebalance, result });
        };
        let thread = std::thread::Builder::new().name("enter".to_owned()).spawn(ask);
        drop(thread.expect("the system can start a thread"));
    }

    fn entered(&mut self, rebalance: u64, result: Result<Vec<Entered>, Failure>) {
        let Some(entering) = self.entering.take_if(|entering| entering.rebalance == rebalance)
        else {
            return;
        };
        let entered = match result {
            Ok(entered) => entered,
            Err(failure) => return self.fail(failure),
        };
        let first: Vec<Position> = entered.iter().filter_map(first_commit).collect();
        // Nothing was read yet, so this may fail: then the partition starts the same way again.
        if let Err(error) = self.source.commit_now(&first) {
            tracing::warn!(%error, "The starting offsets were not committed; they are with the next commit.");
        }
        let starts: Vec<_> =
            entered.iter().map(|entered| (entered.partition.clone(), entered.plan.start)).collect();
        self.assign(&starts);
        for entered in entered {
            self.open(entered);
        }
        drop(entering);
    }

    fn assign(&mut self, starts: &[(Partition, Offset)]) {
        if let Err(error) = self.source.assign(starts) {
            tracing::warn!(%error, "The offered partitions could not be taken; the group offers again.");
        }
    }

    fn open(&mut self, entered: Entered) {
        let partition = entered.partition.clone();
        let worker = worker_of(&partition, self.workers.len());
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        let lane = Lane::new(&self.pace);
        let metrics = self.shared.metrics.partition(&partition.topic, partition.index);
        let owned = owned(&self.shared, entered, epoch, &lane, metrics.clone());
        let assigned = Assigned {
            epoch,
            worker,
            lane,
            pending: Vec::new(),
            pending_bytes: 0,
            paused: self.held && pause(&self.source, &partition),
            draining: false,
            metrics,
        };
        send(&self.workers[worker], WorkerEvent::Open(Box::new(owned)));
        self.assigned.insert(partition, assigned);
    }

    fn revoked(&mut self, partitions: Vec<Partition>, lost: bool) {
        self.rebalance += 1;
        let kind = if lost { Rebalance::Lost } else { Rebalance::Revoked };
        self.shared.metrics.rebalances.add(kind, 1);
        if let Some(entering) = self.entering.take() {
            entering.cancelled.store(true, Ordering::Relaxed);
            // The client gives back only what was taken.
            self.assign(
                &entering.partitions.iter().map(|p| (p.clone(), Offset(0))).collect::<Vec<_>>(),
            );
        }
        if lost {
            tracing::warn!(?partitions, "Partitions were lost; nothing more of them is committed.");
            self.lose(&partitions);
            // What was being drained is lost with the rest.
            if let Some(drain) = self.drain.take() {
                self.lose(&drain.partitions);
            }
            return self.unassign(&partitions);
        }
        self.start_drain(partitions);
    }

    fn start_drain(&mut self, partitions: Vec<Partition>) {
        let mut remaining = Vec::new();
        for partition in &partitions {
            if let Some(assigned) = self.assigned.get_mut(partition) {
                assigned.draining = true;
                assigned.pending.clear();
                let event =
                    WorkerEvent::Drain { partition: partition.clone(), epoch: assigned.epoch };
                send(&self.workers[assigned.worker], event);
                remaining.push(partition.clone());
            }
        }
        let deadline = Instant::now() + self.shared.config.runtime.drain_timeout;
        self.drain = Some(Drain { partitions, remaining, positions: Vec::new(), deadline });
    }

    fn end_drain_if_due(&mut self) {
        let due =
            |drain: &mut Drain| drain.remaining.is_empty() || Instant::now() >= drain.deadline;
        let Some(drain) = self.drain.take_if(due) else { return };
        if !drain.remaining.is_empty() {
            tracing::warn!(partitions = ?drain.remaining, "Not everything was answered in time; what is open is handled again.");
            self.lose(&drain.remaining);
        }
        if self.source.lost() {
            tracing::warn!(
                "The partitions were lost while they were drained; nothing of them is committed."
            );
        } else if let Err(error) = self.source.commit_now(&drain.positions) {
            tracing::warn!(%error, "The last offsets were not committed; the next owner absorbs what it missed.");
        }
        self.unassign(&drain.partitions);
    }

    fn unassign(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.assigned.remove(partition);
        }
        if let Err(error) = self.source.unassign(partitions) {
            tracing::warn!(%error, "Partitions could not be given back.");
        }
    }

    fn lose(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(assigned) = self.assigned.remove(partition) {
                send(
                    &self.workers[assigned.worker],
                    WorkerEvent::Lost { partition: partition.clone() },
                );
            }
            if let Some(drain) = &mut self.drain {
                drain.remaining.retain(|remaining| remaining != partition);
                drain.positions.retain(|position| position.partition != *partition);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Commit(positions) => self.commit(positions),
            Command::Drained { partition, epoch, position } => {
                self.drained(&partition, epoch, position)
            }
            Command::Entered { rebalance, result } => self.entered(rebalance, result),
            Command::Fail(failure) => self.fail(failure),
        }
    }

    fn commit(&mut self, positions: Vec<(Epoch, Position)>) {
        for (epoch, position) in positions {
            self.unanswered.insert(position.partition.clone(), (epoch, position));
        }
        self.commit_unanswered();
    }

    /// Commits what was not acknowledged yet, of the partitions that are still ours.
    fn commit_unanswered(&mut self) {
        let assigned = &self.assigned;
        self.unanswered.retain(|partition, (epoch, _)| {
            assigned.get(partition).is_some_and(|assigned| assigned.epoch == *epoch)
        });
        let positions: Vec<_> = self.unanswered.values().map(|(_, at)| at.clone()).collect();
        if let Err(error) = self.source.commit(&positions) {
            tracing::warn!(%error, "Offsets were not committed; they are committed again.");
            self.commit_failed = true;
        }
    }

    fn drained(&mut self, partition: &Partition, epoch: Epoch, position: Option<Position>) {
        if self.assigned.get(partition).is_none_or(|assigned| assigned.epoch != epoch) {
            return;
        }
        if let Some(drain) = &mut self.drain {
            drain.remaining.retain(|remaining| remaining != partition);
            drain.positions.extend(position);
        }
    }

    fn committed(&mut self, offsets: &[(Partition, Offset)]) {
        for (partition, offset) in offsets {
            if self.unanswered.get(partition).is_some_and(|(_, at)| at.offset <= *offset) {
                self.unanswered.remove(partition);
            }
            if let Some(assigned) = self.assigned.get(partition) {
                assigned.metrics.committed_offset.set(offset.0);
                self.shared.board.offsets(partition, Some(offset.0), None);
            }
        }
        self.show_lag();
    }

    fn show_lag(&self) {
        for (partition, assigned) in &self.assigned {
            let Some(end) = self.source.high_watermark(partition) else { continue };
            let committed = assigned.metrics.committed_offset.get();
            assigned.metrics.lag_records.set((end.0 - committed).max(0));
            self.shared.board.offsets(partition, None, Some(end.0));
        }
    }

    fn housekeep(&mut self) {
        self.resume_drained();
        if Instant::now() < self.next_housekeeping {
            return;
        }
        self.next_housekeeping = Instant::now() + HOUSEKEEPING;
        self.show_lag();
        if std::mem::take(&mut self.commit_failed) {
            self.commit_unanswered();
        }
        let hold = self.shared.held();
        if hold != self.held {
            self.held = hold;
            for (partition, assigned) in &mut self.assigned {
                if hold && !assigned.paused {
                    assigned.paused = pause(&self.source, partition);
                }
            }
        }
    }

    /// Partitions that were paused go on when their worker has room again.
    fn resume_drained(&mut self) {
        if self.held {
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
            match self.source.resume(std::slice::from_ref(&partition)) {
                Ok(()) => assigned.paused = false,
                Err(error) => {
                    tracing::warn!(%error, %partition, "The partition could not be resumed.")
                }
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Drains everything, commits and leaves the group.
    fn leave(&mut self) {
        if let Some(entering) = self.entering.take() {
            entering.cancelled.store(true, Ordering::Relaxed);
        }
        self.end_drain_now();
        let partitions: Vec<_> = self.assigned.keys().cloned().collect();
        self.start_drain(partitions);
        while self.drain.is_some() {
            // Keeps the membership alive; what is read now belongs to nobody.
            if let Some(event) = self.source.poll(IDLE) {
                self.on_leaving(event);
            }
            self.shared.heartbeats.beat_poller();
            while let Ok(command) = self.inbox.try_recv() {
                self.command(command);
            }
            self.end_drain_if_due();
        }
    }

    /// A hand-over that is under way ends with the rest.
    fn end_drain_now(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.deadline =
                drain.deadline.min(Instant::now() + self.shared.config.runtime.drain_timeout);
        }
        while self.drain.is_some() {
            if let Some(event) = self.source.poll(IDLE) {
                self.on_leaving(event);
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.command(command);
            }
            self.end_drain_if_due();
        }
    }

    fn on_leaving(&mut self, event: Event) {
        match event {
            Event::Revoked { partitions, lost: true } => self.lose(&partitions),
            Event::Committed(Ok(offsets)) => self.committed(&offsets),
            // A member that leaves takes nothing, and gives everything back at the end.
            _ => {}
        }
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

fn owned(
    shared: &Shared,
    entered: Entered,
    epoch: Epoch,
    lane: &Arc<Lane>,
    metrics: PartitionMetrics,
) -> Owned {
    let Entered { partition, route, shard, frontier, plan, committed, metadata, origin, cut } =
        entered;
    let absorbs = plan.absorb_until > plan.start;
    let text = || {
        format!("{partition} is reading again what was handled before, up to {}", plan.absorb_until)
    };
    metrics.position.set(frontier.position().0);
    metrics.committed_offset.set(committed.unwrap_or(plan.start).0);
    if let Some(skip) = plan.skip {
        metrics.skipped.inc_by((skip.to.0 - skip.from.0).unsigned_abs());
    }
    let behind = committed.map_or(0, |committed| plan.start.0.saturating_sub(committed.0).max(0));
    shared.routes[route].metrics.records.add(VerdictLabel::Replayed, behind.unsigned_abs());
    Owned {
        absorbing: absorbs.then(|| shared.readiness.latch(text())),
        progress: Instant::now(),
        delivered: plan.start,
        absorb_until: plan.absorb_until,
        partition,
        epoch,
        route,
        shard,
        frontier,
        lane: Arc::clone(lane),
        metadata,
        origin,
        // Below this nothing new is to be committed.
        committed: committed.or(Some(plan.start)),
        metrics,
        cut,
        draining: false,
        out: 0,
        dirty: false,
        released: (0, 0),
    }
}

/// What has to be committed before the first record: a start, or a skip with its act.
fn first_commit(entered: &Entered) -> Option<Position> {
    let needed = entered.plan.commit_start || entered.plan.skip.is_some();
    needed.then(|| Position {
        partition: entered.partition.clone(),
        offset: entered.plan.start,
        metadata: entered.metadata.encode().0,
    })
}

/// A partition stays with its worker, so that a record never overtakes one of an earlier epoch.
fn worker_of(partition: &Partition, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    partition.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("an index of a worker")
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

fn send(worker: &WorkerHandle, event: WorkerEvent) {
    // A worker that is gone has reported why.
    let _ = worker.events.send(event);
}
