//! Partitions come and go: offered, entered, drained, given back, lost.
//!
//! Drain first, fence second: what is with a handler is answered, settled and committed before the
//! partition is given back. What was lost commits nothing.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Assigned, IDLE, Poller, pause, send};
use crate::clock;
use crate::fault::{self, Bug, Point};
use crate::metrics::{PartitionMetrics, Rebalance, VerdictLabel};
use crate::pipeline::enter::{Cancelled, Entered, enter};
use crate::pipeline::lane::{Lane, RECORDS_MAX, RECORDS_MAX_EXACTLY_ONCE};
use crate::pipeline::worker::{Event as WorkerEvent, Owned};
use crate::pipeline::{Command, Failure, Shared};
use crate::readiness::Latch;
use crate::record::{Epoch, Offset, Partition};
use crate::source::{Event, Position};

/// How long the last commit of a partition may take: a broker that is gone must not hold up the
/// end. What is not committed is absorbed by the next owner.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before a last commit that failed is sent again.
const COMMIT_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Entering {
    pub(super) rebalance: u64,
    pub(super) partitions: Vec<Partition>,
    pub(super) cancelled: Cancelled,
    _latch: Latch,
}

pub(super) struct Drain {
    pub(super) partitions: Vec<Partition>,
    pub(super) remaining: Vec<Partition>,
    pub(super) positions: Vec<Position>,
    pub(super) deadline: Instant,
    /// Everything is settled; the offsets are on their way.
    pub(super) committing: bool,
}

impl Poller {
    pub(super) fn offered(&mut self, partitions: Vec<Partition>) {
        self.rebalance += 1;
        self.publish_membership();
        // Until the end of this: there is no moment at which nothing is known and it looks ready.
        let _joining = self.joining.take();
        self.shared.metrics.rebalances.add(Rebalance::Assigned, 1);
        if partitions.is_empty() {
            tracing::info!("The group has no new partitions for this member.");
            return self.assign(&[]);
        }
        fault::point(Point::Offered);
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
        let (shared, questions) = (Arc::clone(&self.shared), Arc::clone(&self.questions));
        let (commands, rebalance) = (self.commands.clone(), self.rebalance);
        let ask = move || {
            let result = enter(&shared, &*questions, &partitions, &cancelled);
            // The poll loop is gone only when the daemon is going.
            let _ = commands.send(Command::Entered { rebalance, result });
        };
        let thread = std::thread::Builder::new().name("enter".to_owned()).spawn(ask);
        drop(thread.expect("the system can start a thread"));
    }

    pub(super) fn entered(&mut self, rebalance: u64, result: Result<Vec<Entered>, Failure>) {
        let Some(entering) = self.entering.take_if(|entering| entering.rebalance == rebalance)
        else {
            return;
        };
        let mut entered = match result {
            Ok(entered) => entered,
            Err(failure) => return self.fail(failure),
        };
        self.commit_first(&mut entered);
        let starts: Vec<_> =
            entered.iter().map(|entered| (entered.partition.clone(), entered.plan.start)).collect();
        fault::point(Point::FirstCommit);
        self.assign(&starts);
        fault::point(Point::Assigned);
        for entered in entered {
            self.open(entered);
        }
        self.publish_membership();
        drop(entering);
    }

    /// Starts and skips are committed before the first record.
    pub(super) fn commit_first(&mut self, entered: &mut [Entered]) {
        let first: Vec<Position> = entered.iter().filter_map(first_commit).collect();
        for entered in entered.iter() {
            self.high_water.begin(&entered.partition, entered.high_water);
        }
        match self.source.commit_now(&first) {
            Ok(()) => first_committed(entered, first),
            // What has no offset yet is committed with the next, also if it does not move.
            Err(error) => {
                tracing::warn!(%error, "The starting offsets were not committed; they are with the next commit.");
            }
        }
    }

    pub(super) fn assign(&mut self, starts: &[(Partition, Offset)]) {
        if let Err(error) = self.source.assign(starts) {
            tracing::warn!(%error, "The offered partitions could not be taken; the group offers again.");
        }
    }

    /// An offer has to be answered, or the client waits for that instead of leaving; and it gives
    /// back only what was taken. What is read of it belongs to nobody.
    fn take_unread(&mut self, partitions: &[Partition]) {
        let starts: Vec<_> =
            partitions.iter().map(|partition| (partition.clone(), Offset(0))).collect();
        self.assign(&starts);
    }

    fn decline(&mut self, entering: &Entering) {
        entering.cancelled.store(true, Ordering::Relaxed);
        self.take_unread(&entering.partitions);
    }

    pub(super) fn open(&mut self, entered: Entered) {
        let partition = entered.partition.clone();
        let worker = worker_of(&partition, self.workers.len());
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        let exactly_once = self.shared.routes[entered.route].passes_on().is_some();
        let lane = Lane::new(
            &self.pace,
            if exactly_once { RECORDS_MAX_EXACTLY_ONCE } else { RECORDS_MAX },
        );
        let next = entered.plan.start;
        let metrics = self.shared.metrics.partition(&partition.topic, partition.index);
        let standing = entered.standing.clone();
        // Also where it says so already: an offset of a group without members expires. A route with
        // transactions moves it in them, and what came late from here would move it back.
        let raised = standing.clone().filter(|standing| {
            !self.shared.routes[entered.route].is_transactional()
                || Some(standing.offset) > entered.high_water
        });
        self.watch.add(&partition, epoch, &entered.metadata);
        let owned = owned(&self.shared, entered, epoch, &lane, metrics.clone());
        let assigned = Assigned {
            epoch,
            worker,
            lane,
            pending: Vec::new(),
            pending_bytes: 0,
            paused: self.shared.held() && pause(&self.source, &partition),
            draining: false,
            next,
            heard: Instant::now(),
            reentering: None,
            metrics,
            standing: standing.map(|standing| (standing, clock::instant())),
        };
        if let Some(raised) = raised {
            self.high_water.raise(raised);
        }
        send(&self.workers[worker], WorkerEvent::Open(Box::new(owned)));
        self.assigned.insert(partition, assigned);
    }

    pub(super) fn revoked(&mut self, partitions: Vec<Partition>, lost: bool) {
        self.rebalance += 1;
        let kind = if lost { Rebalance::Lost } else { Rebalance::Revoked };
        self.shared.metrics.rebalances.add(kind, 1);
        self.publish_membership();
        if let Some(entering) = self.entering.take() {
            self.decline(&entering);
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

    pub(super) fn start_drain(&mut self, partitions: Vec<Partition>) {
        fault::point(Point::DrainStarted);
        let mut remaining = Vec::new();
        for partition in &partitions {
            if let Some(assigned) = self.assigned.get_mut(partition) {
                assigned.draining = true;
                assigned.pending.clear();
                if assigned.reentering.is_some() {
                    continue;
                }
                let event =
                    WorkerEvent::Drain { partition: partition.clone(), epoch: assigned.epoch };
                send(&self.workers[assigned.worker], event);
                remaining.push(partition.clone());
            }
        }
        let deadline = Instant::now() + self.shared.config.runtime.drain_timeout;
        self.drain = Some(Drain {
            partitions,
            remaining,
            positions: Vec::new(),
            deadline,
            committing: false,
        });
    }

    /// Drained, or out of time: commit, then give back.
    pub(super) fn end_drain_if_due(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        let now = Instant::now();
        if !drain.committing {
            if !drain.remaining.is_empty() && now < drain.deadline {
                return;
            }
            fault::point(Point::Drained);
            drain.committing = true;
            drain.deadline = now + COMMIT_PATIENCE;
            let (late, positions) = (drain.remaining.clone(), drain.positions.clone());
            self.commit_last(&late, positions);
        }
        if self.drain.as_ref().is_some_and(|drain| now < drain.deadline) && self.is_committing(now)
        {
            return;
        }
        if let Some(drain) = self.drain.take() {
            self.unassign(&drain.partitions);
        }
    }

    /// The broker answers a commit in the middle of a rebalance only after it, and then of the old
    /// generation: it has to be sent again.
    fn is_committing(&mut self, now: Instant) -> bool {
        if self.commits_out == 0 && self.commit_failed && !self.source.lost() {
            if now >= self.next_attempt {
                self.next_attempt = now + COMMIT_AGAIN;
                self.commit_failed = false;
                self.commit_unanswered();
            }
            return true;
        }
        let drain = self.drain.as_ref();
        self.commits_out > 0
            || drain.is_some_and(|drain| !self.high_water.is_done_with(&drain.partitions))
    }

    fn commit_last(&mut self, late: &[Partition], positions: Vec<Position>) {
        if !late.is_empty() {
            tracing::warn!(partitions = ?late, "Not everything was answered in time; what is open is handled again.");
            self.lose(late);
        }
        if self.source.lost() {
            tracing::warn!(
                "The partitions were lost while they were drained; nothing of them is committed."
            );
            return;
        }
        let epoch = |at: &Position| self.assigned.get(&at.partition).map(|assigned| assigned.epoch);
        let positions =
            positions.into_iter().filter_map(|at| epoch(&at).map(|epoch| (epoch, at))).collect();
        self.commit(positions);
    }

    pub(super) fn unassign(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.assigned.remove(partition);
            self.high_water.forget(partition);
            self.watch.remove(partition);
        }
        self.publish_membership();
        if let Err(error) = self.source.unassign(partitions) {
            tracing::warn!(%error, "Partitions could not be given back.");
        }
        fault::point(Point::Unassigned);
    }

    pub(super) fn lose(&mut self, partitions: &[Partition]) {
        if fault::bug(Bug::LostCommits) {
            return;
        }
        for partition in partitions {
            self.high_water.forget(partition);
            self.watch.remove(partition);
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
        self.publish_membership();
    }

    pub(super) fn drained(
        &mut self,
        partition: &Partition,
        epoch: Epoch,
        position: Option<Position>,
    ) {
        if self.assigned.get(partition).is_none_or(|assigned| assigned.epoch != epoch) {
            return;
        }
        if let Some(drain) = &mut self.drain {
            drain.remaining.retain(|remaining| remaining != partition);
            drain.positions.extend(position);
        }
    }

    /// Drains everything and commits.
    pub(super) fn leave(&mut self) {
        self.cancel_reentering();
        if let Some(entering) = self.entering.take() {
            self.decline(&entering);
        }
        // A hand-over that is under way comes first.
        self.finish_drain();
        let partitions: Vec<_> = self.assigned.keys().cloned().collect();
        self.start_drain(partitions);
        self.finish_drain();
    }

    pub(super) fn finish_drain(&mut self) {
        while self.drain.is_some() {
            self.shared.heartbeats.beat_poller();
            // Keeps the membership alive; records that come now belong to nobody.
            if let Some(event) = self.source.poll(IDLE) {
                self.on_leaving(event);
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.command(command);
            }
            self.raise_high_water();
            self.end_drain_if_due();
        }
    }

    pub(super) fn on_leaving(&mut self, event: Event) {
        match event {
            Event::Revoked { partitions, lost: true } => self.lose(&partitions),
            Event::Committed(result) => self.commit_answered(result),
            Event::Assigned(partitions) => self.take_unread(&partitions),
            // What is to be given back is drained anyway, and then given back.
            _ => {}
        }
    }
}

pub(in crate::pipeline) fn owned(
    shared: &Shared,
    entered: Entered,
    epoch: Epoch,
    lane: &Arc<Lane>,
    metrics: PartitionMetrics,
) -> Owned {
    let Entered {
        partition, route, shard, frontier, plan, committed, metadata, origin, cut, ..
    } = entered;
    let absorbs = plan.absorb_until > plan.start;
    let text = || {
        format!("{partition} is reading again what was handled before, up to {}", plan.absorb_until)
    };
    metrics.position.set(frontier.position().0);
    metrics.committed_offset.set(committed.unwrap_or(plan.start).0);
    // Where a new group starts is no tool's doing.
    if let Some(skip) = plan.skip.filter(|_| !plan.commit_start) {
        metrics.skipped.inc_by((skip.to.0 - skip.from.0).unsigned_abs());
    }
    let behind = committed.map_or(0, |committed| plan.start.0.saturating_sub(committed.0).max(0));
    shared.routes[route].metrics.records.add(VerdictLabel::Replayed, behind.unsigned_abs());
    Owned {
        absorbing: absorbs.then(|| shared.readiness.latch(text())),
        progress: clock::instant(),
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
        committed,
        metrics,
        cut,
        draining: false,
        exactly_once: shared.routes[route].passes_on().is_some(),
        halted: false,
        committed_at: clock::instant(),
        out: 0,
        dirty: false,
        released: (0, 0),
    }
}

fn first_committed(entered: &mut [Entered], first: Vec<Position>) {
    for position in first {
        let of = |entered: &&mut Entered| entered.partition == position.partition;
        if let Some(entered) = entered.iter_mut().find(of) {
            entered.committed = Some(position.offset);
            entered.standing = Some(position);
        }
    }
}

/// What has to be committed before the first record: a start, or a skip with its act. What lies
/// below the end of the absorb is settled, and the metadata are as of there.
pub(in crate::pipeline) fn first_commit(entered: &Entered) -> Option<Position> {
    let needed = entered.plan.commit_start || entered.plan.skip.is_some();
    needed.then(|| Position {
        partition: entered.partition.clone(),
        offset: entered.plan.start.max(entered.plan.absorb_until),
        metadata: entered.metadata.encode().0,
    })
}

/// A partition stays with its worker, so that a record never overtakes one of an earlier epoch.
fn worker_of(partition: &Partition, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    partition.hash(&mut hasher);
    usize::try_from(hasher.finish() % workers as u64).expect("an index of a worker")
}
