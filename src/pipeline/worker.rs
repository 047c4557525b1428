//! One worker: a thread that owns a set of partitions and everything about them that changes.
//!
//! The loop takes events, decides and settles, writes the log once, and only then lets go of what
//! was settled: permits, room in the lanes, offsets to commit.
//!
//! Owns: the order of the stages within a partition. Never: waits for a handler or a broker.

mod collect;
mod letters;
mod records;
mod settle;
mod transact;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use self::collect::Collected;
use self::letters::LetterJob;
use self::records::{Absorbed, Read};
use self::settle::Tally;
use self::transact::{Parked, Sealed, Suspicion};
use super::dispatch::Dispatch;
use super::inflight::InFlight;
use super::lane::Lane;
use super::{Command, Failure, Shared};
use crate::clock;
use crate::commit::Frontier;
use crate::commit::letters::Origin;
use crate::commit::offsets::Metadata;
use crate::commit::producer::{OnAcknowledged, SendError};
use crate::commit::transaction::{Ended, Transactions};
use crate::dedup::store::LookupScratch;
use crate::dedup::{Batch, LogError, Shard};
use crate::fault::{self, Bug};
use crate::handler::{Claim, Outcome};
use crate::identity::Identifier;
use crate::metrics::PartitionMetrics;
use crate::readiness::Latch;
use crate::record::{Epoch, Offset, Partition, Record};
use crate::source::Position;

/// What a worker is told.
pub enum Event {
    Open(Box<Owned>),
    Records {
        partition: Partition,
        epoch: Epoch,
        records: Vec<Record>,
    },
    /// There is nothing to deliver below this offset.
    End {
        partition: Partition,
        epoch: Epoch,
        offset: Offset,
    },
    /// Finish what is with the handler, settle it, and answer [`Command::Drained`].
    Drain {
        partition: Partition,
        epoch: Epoch,
    },
    /// Another instance may own the partition already: settle nothing more.
    Lost {
        partition: Partition,
    },
    Outcomes {
        route: usize,
        claims: Vec<Claim>,
        outcomes: Vec<Outcome>,
        took: Duration,
    },
    Letter {
        token: u64,
        result: Result<(), SendError>,
    },
    /// A transaction ended.
    Transaction {
        number: u64,
        ended: Ended,
    },
    /// A permit may be free.
    Wake,
    Stop,
}

/// A partition that this worker owns.
pub struct Owned {
    pub partition: Partition,
    pub epoch: Epoch,
    pub route: usize,
    pub shard: Shard,
    pub frontier: Frontier,
    pub lane: Arc<Lane>,
    /// Records and bytes to give back to the lane with the next write.
    pub released: (usize, usize),
    /// Below this offset records enter the log and are not handled.
    pub absorb_until: Offset,
    /// Held while the partition is being absorbed.
    pub absorbing: Option<Latch>,
    /// When the absorb last said how far it is.
    pub progress: Instant,
    /// Everything below was delivered or is known not to exist.
    pub delivered: Offset,
    /// What goes with each committed offset; the stream time is filled in.
    pub metadata: Metadata,
    pub origin: Origin,
    /// The offset that was sent for commit last.
    pub committed: Option<Offset>,
    pub metrics: PartitionMetrics,
    /// The log is complete only from the first record on.
    pub cut: bool,
    pub draining: bool,
    /// Settled in transactions.
    pub exactly_once: bool,
    /// A record cannot be decided, and none behind it may be.
    pub halted: bool,
    /// When the committed offset was last written.
    pub committed_at: Instant,
    /// Calls and letters that are out.
    pub out: usize,
    pub dirty: bool,
}

/// Something to do later.
struct Timer {
    at: Instant,
    what: Due,
}

enum Due {
    Call { route: usize, claim: Claim },
    Letter { token: u64 },
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    commands: Sender<Command>,
    owned: FxHashMap<Partition, Owned>,
    inflight: InFlight<Read>,
    dispatch: Vec<Dispatch>,
    identifiers: Vec<Identifier>,
    timers: BinaryHeap<Reverse<Timer>>,
    letters: FxHashMap<u64, LetterJob>,
    next_letter: u64,
    acknowledged: Arc<OnAcknowledged>,
    batch: Batch,
    dirty: Vec<Partition>,
    /// `None`: no route has any.
    transactions: Option<Box<dyn Transactions>>,
    open: Collected,
    sealed: Option<Sealed>,
    next_transaction: u64,
    parked: VecDeque<Parked>,
    suspicions: FxHashMap<(Partition, Offset), Suspicion>,
    /// Held while transactions do not commit.
    trouble: Latch,
    troubled: bool,
    /// How often the room of a transaction is halved.
    caution: u32,
    /// Permits of settled claims, by route, to give back once the log is written.
    permits: Vec<usize>,
    tallies: Vec<Tally>,
    next_commit: Instant,
    /// Nothing is settled any more: the log cannot be written, or a transaction is lost for good.
    failed: bool,
    scratch: Scratch,
}

/// Buffers that are kept from batch to batch.
#[derive(Default)]
struct Scratch {
    read: Vec<Read>,
    identities: Vec<crate::identity::Identity>,
    found: Vec<Option<crate::dedup::Entry>>,
    lookup: LookupScratch,
    absorbed: Absorbed,
    called: Vec<Partition>,
}

/// The longest sleep: metrics and commits are due in time without an event.
const TICK: Duration = Duration::from_millis(100);

/// Events handled before the log is written and commits are considered.
const EVENTS_MAX: usize = 64;

impl Worker {
    pub fn new(
        index: usize,
        shared: Arc<Shared>,
        (sender, events): (Sender<Event>, Receiver<Event>),
        commands: Sender<Command>,
        transactions: Option<Box<dyn Transactions>>,
    ) -> Self {
        let trouble = shared.readiness.latch("starting");
        trouble.release();
        let acknowledged: Arc<OnAcknowledged> = {
            let events = sender.clone();
            // The worker is gone only when the daemon is going.
            Arc::new(move |token, result| drop(events.send(Event::Letter { token, result })))
        };
        let routes = &shared.routes;
        let dispatch = |(at, route): (usize, &Arc<_>)| {
            Dispatch::new(Arc::clone(route), at, Arc::clone(&shared.calls), sender.clone())
        };
        Self {
            index,
            dispatch: routes.iter().enumerate().map(dispatch).collect(),
            identifiers: routes
                .iter()
                .map(|route| Identifier::new(route.config.identity.clone()))
                .collect(),
            permits: vec![0; routes.len()],
            tallies: routes.iter().map(|route| Tally::new(&route.metrics)).collect(),
            events,
            commands,
            owned: FxHashMap::default(),
            inflight: InFlight::default(),
            timers: BinaryHeap::new(),
            letters: FxHashMap::default(),
            next_letter: 0,
            acknowledged,
            batch: Batch::default(),
            dirty: Vec::new(),
            transactions,
            open: Collected::new(&shared),
            sealed: None,
            next_transaction: 0,
            parked: VecDeque::new(),
            suspicions: FxHashMap::default(),
            trouble,
            troubled: false,
            caution: 0,
            next_commit: clock::instant(),
            failed: false,
            scratch: Scratch::default(),
            shared,
        }
    }

    /// Runs until [`Event::Stop`].
    pub fn run(mut self) {
        while self.turn() {}
    }

    /// One turn of the loop; false: stop.
    fn turn(&mut self) -> bool {
        self.shared.heartbeats.beat(self.index);
        match self.events.recv_timeout(self.sleep()) {
            Ok(event) => self.step(Some(event)),
            Err(RecvTimeoutError::Timeout) => self.step(None),
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    /// A turn without the wait: what came, and what is due.
    pub(super) fn step(&mut self, first: Option<Event>) -> bool {
        let mut next = first;
        for _ in 0..EVENTS_MAX {
            match next {
                Some(Event::Stop) => return false,
                Some(event) => self.on(event),
                None => break,
            }
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            if matches!(event, Event::Stop) {
                return false;
            }
            self.on(event);
        }
        self.fire_timers();
        // A flush in the background may have failed while there was nothing to write.
        if let Err(error) = self.shared.log.check() {
            self.log_failed(error);
        }
        self.write();
        self.transact();
        self.pump();
        self.answer_drained();
        self.commit_if_due();
        true
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Open(owned) => self.open(*owned),
            Event::Records { partition, epoch, records } => self.read(&partition, epoch, records),
            Event::End { partition, epoch, offset } => self.end(&partition, epoch, offset),
            Event::Drain { partition, epoch } => self.drain(&partition, epoch),
            Event::Lost { partition } => self.lose(&partition),
            Event::Outcomes { route, claims, outcomes, took } => {
                self.answered(route, claims, outcomes, took)
            }
            Event::Letter { token, result } => self.letter_answered(token, result),
            Event::Transaction { number, ended } => self.transaction_ended(number, ended),
            Event::Wake | Event::Stop => {}
        }
    }

    fn open(&mut self, mut owned: Owned) {
        let partition = owned.partition.clone();
        // The log of an exactly-once route follows its commits.
        if owned.exactly_once {
            self.owned.insert(partition.clone(), owned);
            return self.show(&partition);
        }
        owned.dirty = true;
        self.dirty.push(partition.clone());
        self.owned.insert(partition, owned);
    }

    fn drain(&mut self, partition: &Partition, epoch: Epoch) {
        if let Some(owned) = self.owned.get_mut(partition).filter(|owned| owned.epoch == epoch) {
            owned.draining = true;
            self.parked.retain(|parked| parked.partition != *partition);
            self.withdraw(partition);
        }
    }

    /// Gives up what waits for a call; what is out goes on.
    fn withdraw(&mut self, partition: &Partition) {
        let Some(route) = self.owned.get(partition).map(|owned| owned.route) else { return };
        let mut given_up = self.dispatch[route].withdraw(partition);
        let timers = std::mem::take(&mut self.timers);
        for timer in timers {
            match timer.0.what {
                Due::Call { claim, .. } if claim.record.partition == *partition => {
                    given_up.push(claim)
                }
                what => self.timers.push(Reverse(Timer { at: timer.0.at, what })),
            }
        }
        for claim in given_up {
            self.give_up(route, claim);
        }
    }

    fn lose(&mut self, partition: &Partition) {
        if let Some(owned) = self.owned.get_mut(partition) {
            owned.draining = true;
            self.withdraw(partition);
            self.open.forget(partition);
            self.suspicions.retain(|(of, _), _| of != partition);
            self.parked.retain(|parked| parked.partition != *partition);
            if let Some(owned) = self.owned.remove(partition) {
                owned.metrics.remove();
                self.shared.board.remove(partition);
            }
        }
        self.end_trouble_if_over();
    }

    /// Partitions that finished draining are handed back, with the offset to commit.
    fn answer_drained(&mut self) {
        let finished = |owned: &&Owned| {
            let out = owned.out > 0 || (owned.exactly_once && self.is_in_transaction(owned));
            owned.draining && (!out || self.failed || fault::bug(Bug::FenceBeforeDrain))
        };
        let done: Vec<Partition> =
            self.owned.values().filter(finished).map(|owned| owned.partition.clone()).collect();
        for partition in done {
            let Some(owned) = self.owned.remove(&partition) else { continue };
            self.suspicions.retain(|(of, _), _| *of != partition);
            let position = (!self.failed && !owned.exactly_once)
                .then(|| position(&owned))
                .filter(|at| Some(at.offset) > owned.committed);
            owned.metrics.remove();
            self.shared.board.remove(&partition);
            self.send(Command::Drained { partition, epoch: owned.epoch, position });
            self.end_trouble_if_over();
        }
    }

    fn commit_if_due(&mut self) {
        let now = clock::instant();
        if now < self.next_commit {
            return;
        }
        self.next_commit = now + self.shared.commit_interval;
        if self.failed {
            return;
        }
        let mut positions = Vec::new();
        let ours = |owned: &&mut Owned| !owned.draining && !owned.exactly_once;
        for owned in self.owned.values_mut().filter(ours) {
            if Some(owned.frontier.position()) > owned.committed {
                positions.push((owned.epoch, position(owned)));
                owned.committed = Some(owned.frontier.position());
            }
        }
        if !positions.is_empty() {
            self.send(Command::Commit(positions));
        }
    }

    fn pump(&mut self) {
        let mut called = std::mem::take(&mut self.scratch.called);
        if !self.failed {
            for dispatch in &mut self.dispatch {
                dispatch.pump(&mut called);
            }
        }
        for partition in called.drain(..) {
            if let Some(owned) = self.owned.get_mut(&partition) {
                owned.out += 1;
            }
        }
        self.scratch.called = called;
    }

    fn sleep(&self) -> Duration {
        let now = clock::instant();
        let timer = self.timers.peek().map(|timer| timer.0.at);
        let held = self.dispatch.iter().filter_map(Dispatch::held_until).min();
        let next = timer
            .into_iter()
            .chain(held)
            .chain(self.seal_at())
            .fold(self.next_commit, Instant::min);
        next.saturating_duration_since(now).min(TICK)
    }

    fn fire_timers(&mut self) {
        let now = clock::instant();
        while self.timers.peek().is_some_and(|timer| timer.0.at <= now) {
            match self.timers.pop().map(|timer| timer.0.what) {
                Some(Due::Call { route, claim }) => self.dispatch[route].resubmit(claim),
                Some(Due::Letter { token }) => self.send_letter(token),
                None => break,
            }
        }
    }

    fn later(&mut self, after: Duration, what: Due) {
        self.timers.push(Reverse(Timer { at: clock::instant() + after, what }));
    }

    fn log_failed(&mut self, error: LogError) {
        if !self.failed && !fault::bug(Bug::IgnoreLogError) {
            self.failed = true;
            self.send(Command::Fail(Failure::Log(error)));
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.send(Command::Fail(failure));
    }

    fn send(&self, command: Command) {
        // The poll loop is gone only when the daemon is going.
        let _ = self.commands.send(command);
    }
}

fn position(owned: &Owned) -> Position {
    let metadata = Metadata { stream_time: owned.frontier.stream_time(), ..owned.metadata.clone() };
    let (metadata, dropped) = metadata.encode();
    if dropped > 0 {
        tracing::warn!(partition = %owned.partition, dropped, "Old skips no longer fit into the commit metadata.");
    }
    let hasty = fault::bug(Bug::CommitBeforeProcess);
    let offset = if hasty { owned.delivered } else { owned.frontier.position() };
    Position { partition: owned.partition.clone(), offset, metadata }
}
