//! What lies outside of the daemons: the broker with its group, requests on their way, the called
//! system, and the ledger of what really happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::disk::{Disk, Fuse};
use super::group::Group;
use super::ledger::{Ledger, Owner};
use super::topic::{Input, TOPIC};
use super::transactions::Coordinator;
use crate::clock;
use crate::commit::letters::{Letter, Settles, settles};
use crate::commit::producer::{Letters, OnAcknowledged, SendError};
use crate::config::{Conflict, Order};
use crate::dedup::acts::Acts;
use crate::dedup::expiry::Window;
use crate::handler::{Claim, Handler};
use crate::pipeline::dispatch::Calls;
use crate::pipeline::worker::Event;
use crate::record::{Offset, Partition, RecordBuilder, Timestamp};
use crate::source::Position;

pub(super) type Shared = Arc<Mutex<Cluster>>;

/// Everything outside of the daemons. Survives them.
pub(super) struct Cluster {
    pub rules: Rules,
    pub inputs: Vec<Input>,
    pub letters: Vec<DeadLetter>,
    pub group: Group,
    pub ledger: Ledger,
    pub calls: Vec<PendingCall>,
    pub sends: Vec<PendingLetter>,
    pub requests: Vec<Request>,
    /// Commits for the high-water group, on their way.
    pub high_requests: Vec<Position>,
    pub transactions: Coordinator,
    /// By partition: a log was built from a part of the topic, a window long.
    pub rebuilt: Vec<bool>,
    /// By partition: what people did to its offsets.
    pub moved: Vec<Moved>,
    /// Nothing goes wrong any more.
    pub calm: bool,
    /// The first invariant that broke.
    pub violation: Option<String>,
    /// Kept where somebody wants to read them.
    pub steps: Option<Vec<String>>,
}

pub(super) struct DeadLetter {
    pub settles: Settles,
    pub written: Timestamp,
    /// False: the end of its transaction, or of one before it, has not reached this topic yet.
    pub stable: bool,
}

/// What people did to the offsets of a partition, and what must be true since.
#[derive(Clone, Debug, Default)]
pub(super) struct Moved {
    /// Whoever asked since must not handle what lies below.
    pub floor: Offset,
    /// These are not to be handled.
    pub skipped: BTreeSet<usize>,
    /// Of these keys it is open whether the log knows that they were handled.
    pub vague: BTreeSet<u64>,
    /// Only rewinds count here.
    pub acts: Acts,
}

/// A process: a data directory's number, and how often it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    pub instance: usize,
    pub incarnation: u64,
}

pub(super) struct PendingCall {
    pub process: Process,
    pub route: usize,
    pub claims: Vec<Claim>,
    pub answer: Sender<Event>,
}

pub(super) struct PendingLetter {
    pub process: Process,
    pub letter: Letter,
    pub token: u64,
    pub acknowledged: Arc<OnAcknowledged>,
    /// In the topic; the answer is on its way.
    pub arrived: bool,
}

/// A commit on its way to the coordinator.
pub(super) struct Request {
    pub process: Process,
    pub member: Option<u64>,
    pub generation: i64,
    pub positions: Vec<Position>,
}

/// What the route promises.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub window: Window,
    pub conflict: Conflict,
    pub order: Order,
    pub exactly_once: bool,
    /// No faults: nothing may happen twice.
    pub clean: bool,
}

impl Cluster {
    pub(super) fn new(rules: Rules, partitions: usize, steps: bool) -> Self {
        Self {
            rules,
            inputs: (0..partitions).map(|_| Input::default()).collect(),
            letters: Vec::new(),
            group: Group::new(partitions),
            ledger: Ledger::new(partitions),
            calls: Vec::new(),
            sends: Vec::new(),
            requests: Vec::new(),
            high_requests: Vec::new(),
            transactions: Coordinator::default(),
            rebuilt: vec![false; partitions],
            moved: vec![Moved::default(); partitions],
            calm: rules.clean,
            violation: None,
            steps: steps.then(Vec::new),
        }
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.steps {
            steps.push(text());
        }
    }

    pub(super) fn violated(&mut self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        self.violation.get_or_insert(text);
    }

    pub(super) fn input(&self, partition: &Partition) -> &Input {
        &self.inputs[index(partition)]
    }

    /// The letter is in the dead-letter topic.
    pub(super) fn letter_arrives(&mut self, at: usize) {
        let send = &mut self.sends[at];
        send.arrived = true;
        let written = clock::now();
        let headers = send.letter.headers(written);
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        let record = RecordBuilder::default().build(
            Partition::new("dead", 0),
            Offset(0),
            None,
            None,
            None,
            headers.into_iter(),
        );
        let settles = settles(&record).expect("a letter leads back to its record");
        let (partition, offset) = (settles.partition.clone(), settles.offset);
        self.note(|| format!("letter of {partition}/{offset} is in the topic"));
        if self.counts(&settles) {
            self.ledger.fate(&partition, offset).letters += 1;
        }
        let stable = fastrand::u8(..4) > 0;
        self.letters.push(DeadLetter { settles, written, stable });
    }
}

pub(super) fn index(partition: &Partition) -> usize {
    usize::try_from(partition.index).expect("a partition is not negative")
}

pub(super) fn partition(index: usize) -> Partition {
    thread_local! {
        static NAME: Arc<str> = TOPIC.into();
    }
    NAME.with(|name| Partition::new(Arc::clone(name), i32::try_from(index).expect("few")))
}

/// The world outside as one process sees it.
#[derive(Clone)]
pub(super) struct Outside {
    pub cluster: Shared,
    pub process: Process,
    pub disk: Arc<Mutex<Disk>>,
    pub fuse: Fuse,
}

impl Outside {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }
}

impl Calls for Outside {
    fn call(&self, route: usize, _: Arc<dyn Handler>, claims: Vec<Claim>, answer: Sender<Event>) {
        if !self.fuse.lives() {
            return;
        }
        let mut cluster = self.cluster();
        let process = self.process;
        for claim in &claims {
            let settled = {
                let disk = self.disk.lock().unwrap();
                disk.settled(&claim.record.partition, claim.record.offset)
            };
            let owner = Owner { process, epoch: claim.epoch };
            let attempt = claim.attempt();
            cluster
                .note(|| format!("{owner} calls {} attempt {attempt}", claim.record.coordinates()));
            let key = claim.idempotency_key().into_owned();
            let wrong = cluster.ledger.called(owner, &claim.record, attempt, &key, settled);
            if let Err(text) = wrong {
                cluster.violated(text);
            }
        }
        let order = cluster.rules.order;
        let doubled =
            cluster.calls.iter().filter(|call| call.process == process).find_map(|call| {
                call.claims.iter().find_map(|other| {
                    claims.iter().find(|claim| overlaps(order, other, claim)).map(|claim| {
                        format!(
                            "{} is called while {} of the same identity or key is",
                            claim.record.coordinates(),
                            other.record.coordinates()
                        )
                    })
                })
            });
        if let Some(text) = doubled {
            cluster.violated(text);
        }
        cluster.calls.push(PendingCall { process, route, claims, answer });
    }
}

/// Two claims that must not be called at the same time.
fn overlaps(order: Order, one: &Claim, other: &Claim) -> bool {
    let same_key = one.epoch == other.epoch
        && match order {
            Order::Partition => true,
            Order::RecordKey => {
                one.record.key().is_some() && one.record.key() == other.record.key()
            }
            Order::Identity => false,
        };
    let same_identity = one.identity().is_some() && one.identity() == other.identity();
    one.record.partition == other.record.partition && (same_key || same_identity)
}

impl Letters for Outside {
    fn send(
        &self,
        _: &str,
        letter: &Letter,
        token: u64,
        acknowledged: &Arc<OnAcknowledged>,
    ) -> Result<(), SendError> {
        if self.fuse.lives() {
            let send = PendingLetter {
                process: self.process,
                letter: letter.clone(),
                token,
                acknowledged: Arc::clone(acknowledged),
                arrived: false,
            };
            self.cluster().sends.push(send);
        }
        Ok(())
    }
}

pub(super) fn refused() -> KafkaError {
    KafkaError::ConsumerCommit(RDKafkaErrorCode::IllegalGeneration)
}

pub(super) fn not_sent() -> SendError {
    let source = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
    SendError::Kafka { topic: "dead".to_owned(), source }
}

/// What the group's coordinator keeps of one partition.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub offset: Offset,
    pub metadata: String,
}

pub(super) type Offsets = BTreeMap<i32, Stored>;
