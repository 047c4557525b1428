//! One daemon: real workers, and a model of the poll loop that follows its steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::cluster::{self, Cluster, Outside, Request, index, refused};
use super::group::News;
use super::ledger::Owner;
use super::start::{self, Answers, Asked};
use super::topic::Kind;
use super::transactions::{Handed, Id, Snapshot};
use crate::clock;
use crate::commit::transaction::Transactions;
use crate::fault::{Bug, bug};
use crate::pipeline::enter::{Cancelled, Entered, try_enter};
use crate::pipeline::lane::{Lane, Poller, RECORDS_MAX};
use crate::pipeline::poller::{first_commit, owned};
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
        self.unassign(cluster, &partitions);
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

    fn enter(&mut self, cluster: &mut Cluster, rng: &mut fastrand::Rng) {
        if rng.bool() {
            return;
        }
        if let Some(entering) = self.entering.take() {
            match self.further(cluster, entering) {
                Some(Entering::Entered(mut entered)) if rng.bool() => {
                    self.commit_first(cluster, &mut entered, rng);
                    for (stood, entered) in entered {
                        self.open(cluster, stood, entered);
                    }
                    self.publish(cluster);
                }
                entering => self.entering = entering,
            }
        }
        for entering in std::mem::take(&mut self.reentering) {
            match self.further(cluster, entering) {
                Some(Entering::Entered(mut entered)) if rng.bool() => {
                    // Some may have been given back meanwhile.
                    entered.retain(|(_, entered)| {
                        let assigned = self.assigned.get(&entered.partition);
                        assigned.is_some_and(|assigned| assigned.reentering && !assigned.draining)
                    });
                    self.commit_first(cluster, &mut entered, rng);
                    for (stood, entered) in entered {
                        self.open(cluster, stood, entered);
                    }
                    self.publish(cluster);
                }
                entering => self.reentering.extend(entering),
            }
        }
    }

    /// The next question. `None`: the start was refused.
    fn further(&mut self, cluster: &Cluster, entering: Entering) -> Option<Entering> {
        match entering {
            Entering::Offered(partitions) => {
                // The coordinator answers when the transactions that wrote an offset have ended.
                if partitions.iter().any(|at| cluster.transactions.unstable(at)) {
                    return Some(Entering::Offered(partitions));
                }
                Some(Entering::Asked(start::ask(cluster, partitions)))
            }
            Entering::Asked(asked) => {
                // Also where the log stood before.
                let stood = |partition: &Partition| {
                    (partition.clone(), self.outside.disk.lock().unwrap().position(partition))
                };
                let stood: BTreeMap<_, _> = asked.partitions.iter().map(stood).collect();
                let answers = Answers { cluster, asked: &asked };
                let cancelled = Cancelled::default();
                match try_enter(&self.shared, &answers, &asked.partitions, &cancelled) {
                    Ok(entered) => {
                        let with = |entered: Entered| {
                            (stood.get(&entered.partition).copied().flatten(), entered)
                        };
                        Some(Entering::Entered(entered.into_iter().map(with).collect()))
                    }
                    Err(failure) => {
                        self.failure.get_or_insert(failure);
                        None
                    }
                }
            }
            entered @ Entering::Entered(_) => Some(entered),
        }
    }

    fn reenter(&mut self, partitions: Vec<(Partition, Epoch)>) {
        let mut anew = Vec::new();
        for (partition, epoch) in partitions {
            let assigned = self.assigned.get_mut(&partition);
            let Some(assigned) = assigned.filter(|assigned| assigned.epoch == epoch) else {
                continue;
            };
            if assigned.draining {
                if let Some(drain) = &mut self.drain {
                    drain.remaining.retain(|remaining| *remaining != partition);
                }
                continue;
            }
            assigned.reentering = true;
            anew.push(partition);
        }
        if !anew.is_empty() && !bug(Bug::NoReentry) {
            self.reentering.push(Entering::Offered(anew));
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

    fn commit_first(
        &mut self,
        cluster: &mut Cluster,
        entered: &mut [(Option<Offset>, Entered)],
        rng: &mut fastrand::Rng,
    ) {
        let first: Vec<Position> =
            entered.iter().filter_map(|(_, entered)| first_commit(entered)).collect();
        let accepted = cluster.group.accepts(self.member, self.generation);
        if accepted && rng.u8(..8) > 0 {
            for position in &first {
                cluster.store(position, &self.name());
            }
            // The answer may be lost on its way.
            if rng.u8(..8) > 0 {
                for (_, entered) in entered {
                    let position = first_commit(entered).map(|position| position.offset);
                    entered.committed = position.or(entered.committed);
                }
            }
        }
    }

    fn open(&mut self, cluster: &mut Cluster, stood: Option<Offset>, entered: Entered) {
        let plan = &entered.plan;
        let first = cluster.input(&entered.partition).first;
        let in_the_middle = stood < Some(plan.start) && index_of(plan.start) > first;
        if plan.absorb_until > plan.start && in_the_middle {
            cluster.rebuilt[index(&entered.partition)] = true;
        }
        let partition = entered.partition.clone();
        let worker = index(&partition) % self.workers.len();
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        let owner = Owner { process: self.outside.process, epoch };
        let settled = entered.plan.absorb_until.max(entered.plan.start);
        cluster.note(|| {
            format!(
                "{owner} takes {partition} at {}, absorbs to {}",
                entered.plan.start, entered.plan.absorb_until
            )
        });
        cluster.ledger.took(owner, &partition, settled);
        let lane = Lane::new(&self.pace, RECORDS_MAX);
        let metrics = self.shared.metrics.partition(&partition.topic, partition.index);
        let next = index_of(entered.plan.start);
        let owned = owned(&self.shared, entered, epoch, &lane, metrics);
        let _ = self.workers[worker].1.send(Event::Open(Box::new(owned)));
        let assigned =
            Assigned { epoch, worker, lane, next, ended: None, draining: false, reentering: false };
        self.assigned.insert(partition, assigned);
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

    fn commit(&mut self, cluster: &mut Cluster, positions: Vec<(Epoch, Position)>) {
        for (epoch, position) in positions {
            self.unanswered.insert(position.partition.clone(), (epoch, position));
        }
        self.commit_unanswered(cluster);
    }

    fn commit_unanswered(&mut self, cluster: &mut Cluster) {
        let assigned = &self.assigned;
        self.unanswered.retain(|partition, (epoch, _)| {
            assigned.get(partition).is_some_and(|assigned| assigned.epoch == *epoch)
        });
        let positions: Vec<_> = self.unanswered.values().map(|(_, at)| at.clone()).collect();
        if positions.is_empty() {
            return;
        }
        self.commits_out += 1;
        cluster.requests.push(Request {
            process: self.outside.process,
            member: self.member,
            generation: self.generation,
            positions,
        });
    }

    fn commit_answered(
        &mut self,
        cluster: &mut Cluster,
        result: Result<Vec<(Partition, Offset)>, ()>,
    ) {
        self.commits_out = self.commits_out.saturating_sub(1);
        let Ok(offsets) = result else {
            self.commit_failed = true;
            return;
        };
        for (partition, offset) in offsets {
            if self.unanswered.get(&partition).is_some_and(|(_, at)| at.offset <= offset)
                && let Some((_, position)) = self.unanswered.remove(&partition)
            {
                // It follows, and may come late.
                cluster.high_requests.push(position);
            }
        }
    }

    fn start_drain(&mut self, partitions: Vec<Partition>) {
        let mut remaining = Vec::new();
        for partition in &partitions {
            if let Some(assigned) = self.assigned.get_mut(partition) {
                assigned.draining = true;
                if assigned.reentering {
                    continue;
                }
                let epoch = assigned.epoch;
                let event = Event::Drain { partition: partition.clone(), epoch };
                let _ = self.workers[assigned.worker].1.send(event);
                remaining.push(partition.clone());
            }
        }
        let deadline = clock::instant() + DRAIN_TIMEOUT;
        self.drain = Some(Drain {
            partitions,
            remaining,
            positions: Vec::new(),
            deadline,
            committing: false,
        });
    }

    fn end_drain_if_due(&mut self, cluster: &mut Cluster) {
        let Some(drain) = &mut self.drain else { return };
        let now = clock::instant();
        if !drain.committing {
            if !drain.remaining.is_empty() && now < drain.deadline {
                return;
            }
            drain.committing = true;
            drain.deadline = now + COMMIT_PATIENCE;
            let (late, positions) = (drain.remaining.clone(), drain.positions.clone());
            self.commit_last(cluster, &late, positions);
        }
        if self.drain.as_ref().is_some_and(|drain| now < drain.deadline)
            && self.is_committing(cluster, now)
        {
            return;
        }
        if let Some(drain) = self.drain.take() {
            // With a log that failed there is nothing to wait for.
            if self.failure.is_none() {
                self.check_drained(cluster, &drain.partitions);
            }
            self.unassign(cluster, &drain.partitions);
            if self.stopping && !self.assigned.is_empty() {
                self.start_drain(self.assigned.keys().cloned().collect());
            } else {
                self.gone = self.stopping;
            }
        }
    }

    /// What was not given up for being late has no call and no letter out.
    fn check_drained(&self, cluster: &mut Cluster, partitions: &[Partition]) {
        let process = self.outside.process;
        for partition in partitions {
            let Some(assigned) = self.assigned.get(partition) else { continue };
            let out = cluster.calls.iter().filter(|call| call.process == process).any(|call| {
                call.claims.iter().any(|claim| {
                    claim.record.partition == *partition && claim.epoch == assigned.epoch
                })
            });
            if out {
                let name = self.name();
                cluster.violated(format!("{name} gives {partition} back while a call is out"));
            }
        }
    }

    fn is_committing(&mut self, cluster: &mut Cluster, now: Instant) -> bool {
        if self.commits_out == 0 && self.commit_failed && !self.lost {
            if now >= self.next_attempt {
                self.next_attempt = now + COMMIT_AGAIN;
                self.commit_failed = false;
                self.take_generation(cluster);
                self.commit_unanswered(cluster);
            }
            return true;
        }
        self.commits_out > 0
    }

    /// The client learns the generation by itself, while the poll loop is busy.
    fn take_generation(&mut self, cluster: &mut Cluster) {
        let member = self.member.and_then(|member| cluster.group.members.get_mut(&member));
        let Some(member) = member else { return };
        while let Some(News::Joined(generation)) = member.news.front() {
            self.generation = *generation;
            member.news.pop_front();
        }
    }

    fn commit_last(&mut self, cluster: &mut Cluster, late: &[Partition], positions: Vec<Position>) {
        self.lose(late);
        if self.lost {
            return;
        }
        let epoch = |at: &Position| self.assigned.get(&at.partition).map(|assigned| assigned.epoch);
        let positions =
            positions.into_iter().filter_map(|at| epoch(&at).map(|epoch| (epoch, at))).collect();
        self.commit(cluster, positions);
    }

    fn unassign(&mut self, cluster: &mut Cluster, partitions: &[Partition]) {
        for partition in partitions {
            self.assigned.remove(partition);
        }
        self.publish(cluster);
        if let Some(member) = self.member {
            let places: Vec<_> = partitions.iter().map(index).collect();
            cluster.note(|| format!("{} gives back {places:?}", self.name()));
            cluster.group.returned(member, &places);
        }
    }

    fn lose(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(assigned) = self.assigned.remove(partition) {
                let event = Event::Lost { partition: partition.clone() };
                let _ = self.workers[assigned.worker].1.send(event);
            }
            if let Some(drain) = &mut self.drain {
                drain.remaining.retain(|remaining| remaining != partition);
                drain.positions.retain(|position| position.partition != *partition);
            }
        }
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

impl Cluster {
    /// The coordinator decides about a commit.
    pub(super) fn commit_arrives(&mut self, at: usize) -> (Request, Report) {
        let request = self.requests.remove(at);
        let name = format!("{}.{}", request.process.instance, request.process.incarnation);
        if !self.group.accepts(request.member, request.generation) {
            let now = self.group.generation;
            self.note(|| {
                format!(
                    "commit of {name} under {} is refused in {now}: {}",
                    request.generation,
                    refused()
                )
            });
            return (request, Report::Committed(Err(())));
        }
        for position in &request.positions {
            self.store(position, &name);
        }
        let offsets =
            request.positions.iter().map(|at| (at.partition.clone(), at.offset)).collect();
        (request, Report::Committed(Ok(offsets)))
    }
}
