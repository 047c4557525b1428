//! Transactions: a model of the client that brings them to the broker, step by step, and of the
//! coordinator that ends them.
//!
//! ```text
//! begun, outputs --> offsets --> high water --> end --> answered
//!       \________________\____________\___________\--> a new producer registers --> answered
//! ```
//!
//! What a client asked to end may reach the coordinator late; a producer that registered since has
//! fenced it.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use super::cluster::{Cluster, DeadLetter, Process, Shared as Sea, index};
use super::disk::Fuse;
use super::topic::Temper;
use crate::clock;
use crate::commit::letters::{Form, settles};
use crate::commit::transaction::{Ended, Job, Output, Transactions};
use crate::fault::{Bug, bug};
use crate::pipeline::worker::Event;
use crate::record::{Epoch, Offset, Partition, RecordBuilder};
use crate::source::Position;

/// A `transactional.id`: data directory and worker.
pub(super) type Id = (usize, u64, usize);

/// What the coordinator keeps of one id.
#[derive(Default)]
pub(super) struct Producer {
    epoch: u64,
    open: Option<Open>,
}

#[derive(Default)]
struct Open {
    records: Vec<(Partition, Offset)>,
    letters: Vec<DeadLetter>,
    offsets: Vec<Position>,
    high_water: Vec<Position>,
}

/// An end that is on its way to the coordinator.
struct End {
    id: Id,
    epoch: u64,
    commit: bool,
}

/// What the poll loop has handed out for transactions.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    pub member: Option<u64>,
    pub generation: i64,
    pub owned: BTreeMap<Partition, Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Outputs,
    Offsets,
    HighWater,
    Commit,
    /// The answer is known, and given once a new producer has registered.
    Register,
}

/// The client of one worker.
pub(super) struct Client {
    pub process: Process,
    id: Id,
    /// `None`: a producer has to be made.
    epoch: Option<u64>,
    stage: Stage,
    job: Option<Job>,
    ended: Option<Ended>,
    events: Sender<Event>,
}

#[derive(Default)]
pub(super) struct Coordinator {
    producers: BTreeMap<Id, Producer>,
    ends: Vec<End>,
    pub clients: Vec<Client>,
    pub snapshots: BTreeMap<Process, Snapshot>,
    /// By partition: the last record that was passed on.
    pub passed_on: BTreeMap<i32, Offset>,
}

impl Coordinator {
    /// An open transaction has written an offset of this partition: nobody is told the committed
    /// one before it ends.
    pub(super) fn unstable(&self, partition: &Partition) -> bool {
        let open = self.producers.values().filter_map(|producer| producer.open.as_ref());
        open.flat_map(|open| open.offsets.iter().chain(&open.high_water))
            .any(|position| position.partition == *partition)
    }

    pub(super) fn quiet(&self) -> bool {
        self.clients.iter().all(|client| client.stage == Stage::Idle)
    }

    /// A new producer registers: it fences the last one and ends what that left open.
    fn register(&mut self, id: Id) -> u64 {
        let producer = self.producers.entry(id).or_default();
        producer.epoch += 1;
        producer.open = None;
        producer.epoch
    }

    /// The process has started: its clients register.
    pub(super) fn add(&mut self, process: Process, id: Id, events: Sender<Event>) {
        let epoch = Some(self.register(id));
        let stage = Stage::Idle;
        self.clients.push(Client { process, id, epoch, stage, job: None, ended: None, events });
    }

    /// The process is dead; what it has asked for may still come.
    pub(super) fn remove(&mut self, instance: usize) {
        self.clients.retain(|client| client.process.instance != instance);
    }

    /// Transactions of which nobody has heard for long are aborted.
    pub(super) fn time_out(&mut self, alive: impl Fn(&Id) -> bool) {
        for (id, producer) in &mut self.producers {
            if producer.open.is_some() && !alive(id) {
                producer.epoch += 1;
                producer.open = None;
            }
        }
    }
}

impl Client {
    pub(super) fn id(&self) -> Id {
        self.id
    }
}

impl Cluster {
    /// Some client comes a step further.
    pub(super) fn transact(&mut self, at: usize, rng: &mut fastrand::Rng) {
        let client = &self.transactions.clients[at];
        match client.stage {
            Stage::Idle => {}
            Stage::Outputs => self.produce(at, rng),
            Stage::Offsets => self.send_offsets(at),
            Stage::HighWater => self.send_high_water(at),
            Stage::Commit => self.end(at, rng),
            Stage::Register => {
                let id = client.id;
                if !(bug(Bug::NoRecycle) && client.epoch.is_some()) {
                    let epoch = self.transactions.register(id);
                    self.transactions.clients[at].epoch = Some(epoch);
                }
                self.answer_transaction(at);
            }
        }
    }

    fn answer_transaction(&mut self, at: usize) {
        let client = &mut self.transactions.clients[at];
        client.stage = Stage::Idle;
        let (job, ended) = (client.job.take(), client.ended.take());
        if let (Some(job), Some(ended)) = (job, ended) {
            let number = job.number;
            let text = format!("transaction {number} of {:?} is {ended:?}", client.id);
            let _ = client.events.send(Event::Transaction { number, ended });
            self.note(|| text);
        }
    }

    /// The open transaction of a client, where it is not fenced.
    fn open(&mut self, at: usize) -> Option<&mut Open> {
        let client = &self.transactions.clients[at];
        let producer = self.transactions.producers.get_mut(&client.id)?;
        let valid = Some(producer.epoch) == client.epoch;
        valid.then(|| producer.open.get_or_insert_default())
    }

    fn stop(&mut self, at: usize, reason: &str, refused: Vec<usize>) {
        let client = &mut self.transactions.clients[at];
        client.ended = Some(Ended::Aborted { reason: reason.to_owned(), refused });
        client.stage = Stage::Register;
    }

    fn produce(&mut self, at: usize, rng: &mut fastrand::Rng) {
        if self.transactions.clients[at].epoch.is_none() {
            let epoch = self.transactions.register(self.transactions.clients[at].id);
            self.transactions.clients[at].epoch = Some(epoch);
        }
        let job = self.transactions.clients[at].job.take().expect("a transaction has its job");
        let mut refused = Vec::new();
        for (number, output) in job.outputs.iter().enumerate() {
            let record = output.source();
            let huge = self.input(&record.partition).slots[record.offset.0 as usize].temper
                == Temper::Hopeless;
            let too_large = match output {
                Output::Record { .. } => huge,
                Output::Letter { letter, .. } => huge && letter.form == Form::Whole,
            };
            // A batch is refused as a whole.
            if too_large || (!refused.is_empty() && rng.bool()) {
                refused.push(number);
            }
        }
        let found = self.open(at).is_some();
        if found {
            for output in &job.outputs {
                self.put(at, output);
            }
        }
        self.transactions.clients[at].job = Some(job);
        if !found {
            self.stop(at, "fenced", Vec::new());
        } else if !refused.is_empty() {
            self.abort(at, "outputs were refused for their size", refused, rng);
        } else if !self.calm && rng.u8(..20) == 0 {
            self.abort(at, "an output was not delivered", Vec::new(), rng);
        } else {
            self.transactions.clients[at].stage = Stage::Offsets;
        }
    }

    fn put(&mut self, at: usize, output: &Output) {
        match output {
            Output::Record { record, .. } => {
                let place = (record.partition.clone(), record.offset);
                self.open(at).expect("it is open").records.push(place);
            }
            Output::Letter { letter, .. } => {
                let written = clock::now();
                let headers = letter.headers(written);
                let headers: Vec<_> =
                    headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
                let dead = Partition::new("dead", 0);
                let headers = headers.into_iter();
                let record =
                    RecordBuilder::default().build(dead, Offset(0), None, None, None, headers);
                let settles = settles(&record).expect("a letter leads back to its record");
                let letter = DeadLetter { settles, written, stable: fastrand::bool() };
                if bug(Bug::LettersOutside) {
                    return self.show_letter(letter);
                }
                self.open(at).expect("it is open").letters.push(letter);
            }
        }
    }

    fn abort(&mut self, at: usize, reason: &str, refused: Vec<usize>, rng: &mut fastrand::Rng) {
        self.send_end(at, false, rng);
        self.stop(at, reason, refused);
    }

    /// The request to end a transaction goes out; some of it may be late, or come twice.
    fn send_end(&mut self, at: usize, commit: bool, rng: &mut fastrand::Rng) -> Sent {
        let client = &self.transactions.clients[at];
        let (id, epoch) = (client.id, client.epoch.unwrap_or(0));
        let sent = match rng.u8(..12) {
            _ if self.calm => Sent::Heard,
            0 => Sent::Late,
            1 => Sent::Unheard,
            2 => Sent::Twice,
            _ => Sent::Heard,
        };
        if sent != Sent::Late {
            self.end_arrives(&End { id, epoch, commit });
        }
        if matches!(sent, Sent::Late | Sent::Twice) {
            self.transactions.ends.push(End { id, epoch, commit });
        }
        sent
    }

    fn send_offsets(&mut self, at: usize) {
        let client = &self.transactions.clients[at];
        let positions = client.job.as_ref().expect("it has its job").positions.clone();
        let snapshot = self.transactions.snapshots.get(&client.process).cloned();
        let Some(snapshot) = snapshot else {
            return self.stop(at, "not a member", Vec::new());
        };
        let covers = positions
            .iter()
            .all(|(epoch, position)| snapshot.owned.get(&position.partition) == Some(epoch));
        if !covers && !bug(Bug::NoEpochCheck) {
            return self.stop(at, "a partition was given away before the commit", Vec::new());
        }
        if !self.group.accepts(snapshot.member, snapshot.generation) {
            return self.stop(at, "offsets: the generation is an old one", Vec::new());
        }
        let positions: Vec<_> = positions.into_iter().map(|(_, position)| position).collect();
        match self.open(at) {
            None => self.stop(at, "fenced", Vec::new()),
            Some(_) if bug(Bug::OffsetsOutside) => {
                positions.iter().for_each(|position| self.store(position, "a producer"));
                self.transactions.clients[at].stage = Stage::HighWater;
            }
            Some(open) => {
                open.offsets.extend(positions);
                self.transactions.clients[at].stage = Stage::HighWater;
            }
        }
    }

    fn send_high_water(&mut self, at: usize) {
        let job = self.transactions.clients[at].job.as_ref().expect("it has its job");
        let positions: Vec<_> = job.positions.iter().map(|(_, at)| at.clone()).collect();
        match self.open(at) {
            None => self.stop(at, "fenced", Vec::new()),
            Some(open) => {
                open.high_water.extend(positions);
                self.transactions.clients[at].stage = Stage::Commit;
            }
        }
    }

    fn end(&mut self, at: usize, rng: &mut fastrand::Rng) {
        if self.open(at).is_none() {
            return self.stop(at, "fenced", Vec::new());
        }
        let sent = self.send_end(at, true, rng);
        let client = &mut self.transactions.clients[at];
        match sent {
            Sent::Heard => client.ended = Some(Ended::Committed),
            Sent::Twice => {
                // It was slow: another producer goes on.
                client.ended = Some(Ended::Committed);
                if !bug(Bug::NoRecycle) {
                    client.epoch = None;
                }
            }
            Sent::Late | Sent::Unheard => {
                client.ended = Some(Ended::Unknown { reason: "no answer".to_owned() });
                client.stage = Stage::Register;
                return;
            }
        }
        self.answer_transaction(at);
    }

    /// A late request reaches the coordinator.
    pub(super) fn late_end(&mut self, rng: &mut fastrand::Rng) {
        if !self.transactions.ends.is_empty() {
            let at = rng.usize(..self.transactions.ends.len());
            let end = self.transactions.ends.swap_remove(at);
            self.end_arrives(&end);
        }
    }

    fn end_arrives(&mut self, end: &End) {
        let Some(producer) = self.transactions.producers.get_mut(&end.id) else { return };
        if producer.epoch != end.epoch {
            return self.note(|| format!("an end of {:?} is fenced", end.id));
        }
        let Some(open) = producer.open.take() else { return };
        self.note(|| format!("the transaction of {:?} ends, committed: {}", end.id, end.commit));
        if end.commit {
            self.make_visible(&end.id, open);
        }
    }

    fn make_visible(&mut self, id: &Id, open: Open) {
        for (partition, offset) in open.records {
            let last = self.transactions.passed_on.insert(partition.index, offset);
            if last.is_some_and(|last| last >= offset) {
                self.violated(format!("{partition}/{offset} is passed on after {last:?}"));
            }
            self.ledger.executions += 1;
            self.ledger.fate(&partition, offset).done += 1;
            self.check_once(&partition, offset);
        }
        open.letters.into_iter().for_each(|letter| self.show_letter(letter));
        let name = format!("a transaction of {id:?}");
        for position in &open.offsets {
            self.store(position, &name);
        }
        for position in &open.high_water {
            self.raise(position, &name);
        }
    }

    fn show_letter(&mut self, letter: DeadLetter) {
        let (partition, offset) = (letter.settles.partition.clone(), letter.settles.offset);
        if self.counts(&letter.settles) {
            self.ledger.fate(&partition, offset).letters += 1;
            self.check_once(&partition, offset);
        }
        self.letters.push(letter);
    }

    fn check_once(&mut self, partition: &Partition, offset: Offset) {
        let fate = self.ledger.fate(partition, offset);
        if fate.done + fate.letters > 1 {
            let (done, letters) = (fate.done, fate.letters);
            self.violated(format!(
                "{partition}/{offset} was passed on {done} times and is {letters} letters"
            ));
        }
    }

    /// The log of an exactly-once route follows the committed offset.
    pub(super) fn check_log(&mut self, name: usize, partition: &Partition, position: Offset) {
        let committed = self.group.committed(index(partition));
        let high = self.group.high_water(index(partition));
        if position > Offset(0) && Some(position) > committed.max(high) {
            self.violated(format!(
                "the log of {name} is at {position} of {partition}, and the committed offset at {committed:?}"
            ));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Heard,
    /// Applied, and the answer is lost.
    Unheard,
    /// Not applied yet, and given up.
    Late,
    /// Applied when it was sent again; the first one is still under way.
    Twice,
}

/// What a worker hands its transactions to.
pub(super) struct Handed {
    pub sea: Sea,
    pub id: Id,
    pub fuse: Fuse,
}

impl Transactions for Handed {
    fn start(&mut self, job: Job) {
        if !self.fuse.lives() {
            return;
        }
        let mut sea = self.sea.lock().unwrap();
        sea.note(|| {
            let outputs: Vec<_> =
                job.outputs.iter().map(|output| output.source().coordinates()).collect();
            let positions: Vec<_> = job
                .positions
                .iter()
                .map(|(epoch, at)| {
                    format!("{} at {} in epoch {}", at.partition, at.offset, epoch.0)
                })
                .collect();
            format!("{:?} begins transaction {}: {outputs:?}, {positions:?}", self.id, job.number)
        });
        let client = sea.transactions.clients.iter_mut().find(|client| client.id == self.id);
        let client = client.expect("a worker that lives has a client");
        assert_eq!(client.stage, Stage::Idle, "one transaction is under way at a time");
        client.job = Some(job);
        client.stage = Stage::Outputs;
    }

    fn watch(&mut self) {}
}
