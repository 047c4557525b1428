//! One daemon: real workers, and a model of the poll loop that follows its steps.

mod enter;
mod leave;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::cluster::{self, Cluster, Outside};
use super::group::News;
use super::start::Asked;
use super::topic::Kind;
use super::transactions::{Handed, Id, Snapshot};
use crate::clock;
use crate::commit::transaction::Transactions;
use crate::fault::{Bug, bug};
use crate::pipeline::enter::Entered;
use crate::pipeline::lane::{Lane, Poller};
use crate::pipeline::worker::{Event, Worker};
use crate::pipeline::{Command, Failure, Shared};
use crate::record::{Epoch, Offset, Partition};
use crate::source::Position;

const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
const COMMIT_AGAIN: Duration = Duration::from_millis(100);
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the client reports to the poll loop.
pub(super) enum Report {
    News(News),
    Lost,
    Committed(Result<Vec<(Partition, Offset)>, ()>),
}

struct Assigned {
    epoch: Epoch,
    worker: usize,
    lane: Arc<Lane>,
    next: usize,
    /// Nothing lower goes to the high-water group.
    reached: Option<Offset>,
    ended: Option<usize>,
    draining: bool,
    reentering: bool,
}

enum Entering {
    Offered(Vec<Partition>),
    Asked(Asked),
    Entered(Vec<(Option<Offset>, Entered)>),
}

struct Drain {
    partitions: Vec<Partition>,
    remaining: Vec<Partition>,
    positions: Vec<Position>,
    deadline: Instant,
    committing: bool,
}

pub(super) struct Daemon {
    pub outside: Outside,
    shared: Arc<Shared>,
    workers: Vec<(Worker, Sender<Event>)>,
    /// What came to each worker and was not handed to it yet.
    events: Vec<Receiver<Event>>,
    doors: Vec<Sender<Event>>,
    commands: Receiver<Command>,
    pace: Arc<Poller>,
    /// The client: its member, what it commits under, and what it has to report.
    pub member: Option<u64>,
    generation: i64,
    pub reports: VecDeque<Report>,
    pub lost: bool,
    assigned: BTreeMap<Partition, Assigned>,
    next_epoch: u64,
    /// How many letters there were when the letters of a partition were read.
    letters_seen: BTreeMap<Partition, usize>,
    entering: Option<Entering>,
    reentering: Vec<Entering>,
    drain: Option<Drain>,
    unanswered: BTreeMap<Partition, (Epoch, Position)>,
    commit_failed: bool,
    commits_out: usize,
    next_attempt: Instant,
    next_housekeeping: Instant,
    stopping: bool,
    /// Why the pipeline ends by itself.
    pub failure: Option<Failure>,
    /// It has stopped and left the group.
    pub gone: bool,
}

impl Daemon {
    pub(super) fn new(
        outside: Outside,
        shared: Arc<Shared>,
        member: u64,
        cluster: &mut Cluster,
        transactions: &[Id],
    ) -> Self {
        let hand = |id| -> Box<dyn Transactions> {
            Box::new(Handed { sea: Arc::clone(&outside.cluster), id, fuse: outside.fuse.clone() })
        };
        let (sender, commands) = channel();
        let count = shared.config.runtime.workers;
        let mut workers = Vec::new();
        let (mut events, mut doors) = (Vec::new(), Vec::new());
        for index in 0..count {
            // What is sent is kept back until a step of the worker.
            let (to_model, from_model) = channel();
            let (door, inbox) = channel();
            let ends = (to_model.clone(), inbox);
            let worker = Worker::new(
                index,
                Arc::clone(&shared),
                ends,
                sender.clone(),
                transactions.get(index).map(|id| hand(*id)),
            );
            if let Some(id) = transactions.get(index) {
                cluster.transactions.add(outside.process, *id, to_model.clone());
            }
            workers.push((worker, to_model));
            events.push(from_model);
            doors.push(door);
        }
        let _ = shared.workers.set(workers.iter().map(|(_, sender)| sender.clone()).collect());
        Self {
            outside,
            shared,
            workers,
            events,
            doors,
            commands,
            pace: Poller::current(),
            member: Some(member),
            generation: 0,
            reports: VecDeque::new(),
            lost: false,
            assigned: BTreeMap::new(),
            next_epoch: 1,
            letters_seen: BTreeMap::new(),
            entering: None,
            reentering: Vec::new(),
            drain: None,
            unanswered: BTreeMap::new(),
            commit_failed: false,
            commits_out: 0,
            next_attempt: clock::instant(),
            next_housekeeping: clock::instant(),
            stopping: false,
            failure: None,
            gone: false,
        }
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// A worker handles some of what came to it.
    pub(super) fn worker_step(&mut self, at: usize, events: usize) {
        let mut coming = self.events[at].try_iter().take(events);
        let first = coming.next();
        for event in coming {
            let _ = self.doors[at].send(event);
        }
        self.workers[at].0.step(first);
    }

    /// One turn of the poll loop: one report, then what the workers said.
    pub(super) fn poll(&mut self, cluster: &mut Cluster, rng: &mut fastrand::Rng) {
        let waits = self.waits_for_answer();
        let report = self.reports.pop_front();
        let report =
            report.or_else(|| (!waits).then(|| self.news(cluster)).flatten().map(Report::News));
        if let Some(report) = report {
            self.on(cluster, report);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.command(cluster, command);
        }
        self.enter(cluster, rng);
        if rng.bool() {
            self.publish(cluster);
        }
        self.end_drain_if_due(cluster);
        self.housekeep(cluster);
    }

    /// The client reports the next change only when the last one was answered.
    fn waits_for_answer(&self) -> bool {
        self.entering.is_some() || self.drain.is_some() || self.lost
    }

    fn news(&self, cluster: &mut Cluster) -> Option<News> {
        cluster.group.members.get_mut(&self.member?)?.news.pop_front()
    }

    fn on(&mut self, cluster: &mut Cluster, report: Report) {
        match report {
            Report::News(News::Joined(generation)) => self.generation = generation,
            Report::News(News::Offered(partitions)) => {
                cluster.note(|| format!("{} is offered {partitions:?}", self.name()));
                self.publish(cluster);
                let partitions: Vec<_> = partitions.into_iter().map(cluster::partition).collect();
                if self.stopping {
                    // Nothing is read of what is taken now; it is given back with the rest.
                    return;
                }
                self.entering = Some(Entering::Offered(partitions));
            }
            Report::News(News::Revoked(partitions)) => {
                cluster.note(|| format!("{} is to give back {partitions:?}", self.name()));
                self.publish(cluster);
                self.start_drain(partitions.into_iter().map(cluster::partition).collect());
            }
            Report::Lost => self.lost(cluster),
            Report::Committed(result) => self.commit_answered(cluster, result),
        }
    }

    fn lost(&mut self, cluster: &mut Cluster) {
        self.publish(cluster);
        cluster.note(|| format!("{} has lost its partitions", self.name()));
        self.entering = None;
        let mut partitions: Vec<_> = self.assigned.keys().cloned().collect();
        self.lose(&partitions);
        if let Some(drain) = self.drain.take() {
            partitions.extend(drain.partitions);
        }
        if !bug(Bug::LostCommits) {
            self.unassign(cluster, &partitions);
        }
        self.reentering.clear();
        self.lost = false;
        self.member = None;
        self.gone = self.stopping;
    }

    fn command(&mut self, cluster: &mut Cluster, command: Command) {
        match command {
            Command::Commit(positions) => self.commit(cluster, positions),
            Command::Drained { partition, epoch, position } => {
                if self.assigned.get(&partition).is_some_and(|assigned| assigned.epoch == epoch)
                    && let Some(drain) = &mut self.drain
                {
                    drain.remaining.retain(|remaining| *remaining != partition);
                    drain.positions.extend(position);
                }
            }
            Command::Reenter(partitions) => self.reenter(partitions),
            Command::Entered { .. } | Command::Reentered { .. } => {
                unreachable!("the model enters by itself")
            }
            Command::Fail(failure) => drop(self.failure.get_or_insert(failure)),
        }
    }

    /// Hands out how the group sees this member, with what it owns at this moment.
    fn publish(&self, cluster: &mut Cluster) {
        let owned = self.assigned.iter().map(|(of, at)| (of.clone(), at.epoch)).collect();
        let (member, mut generation) = (self.member, self.generation);
        let process = self.outside.process;
        if let Some(first) = cluster.transactions.snapshots.get(&process)
            && bug(Bug::StaleMetadata)
        {
            generation = first.generation;
        }
        cluster.transactions.snapshots.insert(process, Snapshot { member, generation, owned });
    }

    /// Reads up to so many records of a partition. False: there was nothing to read.
    pub(super) fn deliver(&mut self, cluster: &mut Cluster, at: usize, count: usize) -> bool {
        let assignments = self.assigned.len();
        let Some((partition, assigned)) = self.assigned.iter_mut().nth(at) else { return false };
        if assigned.draining || assigned.reentering || !assigned.lane.has_room(assignments) {
            return false;
        }
        let input = cluster.input(partition);
        let stable = input.stable_end();
        if assigned.next >= stable && assigned.ended == Some(stable) {
            return false;
        }
        let mut records = Vec::new();
        while assigned.next < stable && records.len() < count {
            let slot = &input.slots[assigned.next];
            if slot.kind == Kind::Record {
                records.push(slot.record.clone());
            }
            assigned.next += 1;
        }
        let ended = assigned.next >= stable;
        let sender = &self.workers[assigned.worker].1;
        let epoch = assigned.epoch;
        if !records.is_empty() {
            let bytes = records.iter().map(crate::record::Record::size).sum();
            assigned.lane.add(records.len(), bytes);
            let _ = sender.send(Event::Records { partition: partition.clone(), epoch, records });
        }
        if ended {
            assigned.ended = Some(stable);
            let offset = Offset(stable as i64);
            let _ = sender.send(Event::End { partition: partition.clone(), epoch, offset });
        }
        cluster.note(|| format!("{partition} is read up to {}", assigned.next));
        true
    }

    pub(super) fn assignments(&self) -> usize {
        self.assigned.len()
    }

    fn housekeep(&mut self, cluster: &mut Cluster) {
        let now = clock::instant();
        if now < self.next_housekeeping {
            return;
        }
        self.next_housekeeping = now + HOUSEKEEPING;
        if std::mem::take(&mut self.commit_failed) {
            self.commit_unanswered(cluster);
        }
    }

    /// Drains everything, commits, leaves.
    pub(super) fn stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.reentering.clear();
        self.entering = None;
        self.gone = self.member.is_none();
        if self.drain.is_none() {
            self.start_drain(self.assigned.keys().cloned().collect());
        }
    }

    /// What it is about, for whoever looks for the reason why nothing goes on.
    pub(super) fn describe(&self) -> String {
        let partitions = self.assigned.iter().map(|(partition, at)| {
            let Assigned { epoch, next, ended, draining, reentering, .. } = at;
            let room = at.lane.has_room(self.assigned.len());
            format!("{partition} {epoch:?} next {next} ended {ended:?} draining {draining} re-entering {reentering} room {room}")
        });
        let partitions: Vec<_> = partitions.collect();
        let (entering, reentering) = (self.entering.is_some(), self.reentering.len());
        let (drain, lost) = (self.drain.is_some(), self.lost);
        format!(
            "{}: {partitions:?} entering {entering} re-entering {reentering} drain {drain} lost {lost}",
            self.name()
        )
    }

    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.outside.process.instance, self.outside.process.incarnation)
    }
}

fn index_of(offset: Offset) -> usize {
    usize::try_from(offset.0).expect("an offset is not negative")
}
