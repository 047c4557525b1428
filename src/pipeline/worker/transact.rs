//! The transactions of a worker: when one is sealed, and what its end means.
//!
//! ```text
//! open (collects) --seal--> sealed (under way) --committed--> log, lanes, counters
//!                                              --otherwise--> all its partitions, and those that
//!                                                             were decided on top of it, are
//!                                                             entered anew
//! ```
//!
//! Constraints:
//! - The log follows the commit: it is never ahead of the committed offset.
//! - What was decided on top of a transaction that did not commit is forgotten with it.
//! - An output that the broker refuses for its own sake is found by sending suspects alone, and
//!   becomes a dead letter.

use std::time::{Duration, Instant};

use super::collect::Collected;
use super::records::Read;
use super::{Owned, Worker, position};
use crate::clock;
use crate::commit::letters::{Form, Letter, Reason};
use crate::commit::transaction::{Ended, Job, Output};
use crate::dedup::Entry;
use crate::fault::{self, Bug, Point};
use crate::metrics::{OutcomeLabel, TransactionLabel, VerdictLabel};
use crate::pipeline::{Command, Failure};
use crate::record::{Epoch, Offset, Partition, Record};

/// A transaction that is under way.
pub(super) struct Sealed {
    pub(super) number: u64,
    pub(super) collected: Collected,
    started: Instant,
}

/// What came while nothing more could be collected.
pub(super) struct Parked {
    pub(super) partition: Partition,
    pub(super) epoch: Epoch,
    pub(super) records: Vec<Record>,
    /// Behind the records: there is nothing to deliver below this offset.
    pub(super) end: Option<Offset>,
}

/// What is known of a record whose output was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// The broker refused a batch that it was in: it is sent alone.
    Suspect,
    /// It was refused alone, or its letter was, in the form before this one.
    TooLarge(Form),
    /// Even the smallest letter was refused.
    Hopeless,
}

/// What a transaction holds is halved, at most so often, each time when one did not commit: one that
/// was too much for the time that the broker gives must not come again as it was.
const CAUTION_MAX: u32 = 8;

/// A transaction that takes longer is told of by readiness: nothing is passed on meanwhile.
const TOO_LONG: Duration = Duration::from_secs(10);

/// An offset that does not move is written again so often: the broker forgets those that nobody
/// writes.
const RENEW: Duration = Duration::from_secs(24 * 60 * 60);

impl Worker {
    pub(super) fn is_exactly_once(&self, route: usize) -> bool {
        self.shared.routes[route].passes_on().is_some()
    }

    /// Seals what is due, and goes on with what waited for room.
    pub(super) fn transact(&mut self) {
        let Some(transactions) = &mut self.transactions else { return };
        transactions.watch();
        self.notice_trouble();
        loop {
            let sealed = self.seal_if_due();
            while !self.open.is_full(self.caution)
                && let Some(Parked { partition, epoch, records, end }) = self.parked.pop_front()
            {
                self.read_now(&partition, epoch, records);
                if let Some(offset) = end {
                    self.end_now(&partition, epoch, offset);
                }
            }
            // What was absorbed alone is done at once, and there may be more.
            if !sealed || self.parked.is_empty() {
                return;
            }
        }
    }

    /// Not ready while a transaction takes far too long, or the last one did not commit.
    fn notice_trouble(&mut self) {
        let now = clock::instant();
        if let Some(sealed) = &self.sealed {
            let lasted = now - sealed.started;
            if lasted > TOO_LONG {
                let seconds = lasted.as_secs();
                self.trouble.set(format!("a transaction has been under way for {seconds} seconds"));
                self.troubled = true;
            }
        }
    }

    /// What did not commit was perhaps committed after all, or is somebody else's now: with nothing
    /// left to commit there is no trouble.
    pub(super) fn end_trouble_if_over(&mut self) {
        if !self.troubled || self.sealed.is_some() || !self.open.is_empty() {
            return;
        }
        let now = clock::instant();
        if !self.owned.values().any(|owned| owned.exactly_once && needs_commit(owned, now)) {
            self.end_trouble();
        }
    }

    fn end_trouble(&mut self) {
        self.troubled = false;
        self.trouble.release();
    }

    /// When the open transaction is to be sealed, where nothing else happens.
    pub(super) fn seal_at(&self) -> Option<Instant> {
        let interval = self.shared.config.kafka.transaction_interval;
        self.open.since.filter(|_| self.sealed.is_none()).map(|since| since + interval)
    }

    fn seal_if_due(&mut self) -> bool {
        if self.sealed.is_some() || self.failed {
            return false;
        }
        let now = clock::instant();
        let mut urgent = self.open.is_full(self.caution);
        let mut moved = !self.open.is_empty();
        for owned in self.owned.values().filter(|owned| owned.exactly_once) {
            let behind = needs_commit(owned, now);
            moved |= behind;
            urgent |=
                owned.draining && (behind || self.open.touched.contains_key(&owned.partition));
        }
        if !moved {
            return false;
        }
        let since = *self.open.since.get_or_insert(now);
        if !urgent && now < since + self.shared.config.kafka.transaction_interval {
            return false;
        }
        self.seal(now);
        true
    }

    fn seal(&mut self, now: Instant) {
        let mut collected = std::mem::replace(&mut self.open, Collected::new(&self.shared));
        let mut positions = Vec::new();
        for owned in self.owned.values_mut().filter(|owned| owned.exactly_once) {
            // Where all that was delivered is settled, the position is where delivery stands.
            owned.frontier.end(owned.delivered);
            let behind = needs_commit(owned, now);
            if !behind && !collected.touched.contains_key(&owned.partition) {
                continue;
            }
            let touched = collected.touch(&owned.partition, owned.epoch, owned.shard);
            touched.position = owned.frontier.position();
            collected.batch.put_state(owned.shard, owned.frontier.state());
            if behind {
                positions.push((owned.epoch, position(owned)));
            }
        }
        let number = self.next_transaction;
        self.next_transaction += 1;
        if positions.is_empty() {
            debug_assert!(collected.outputs.is_empty(), "an output moves its offset");
            // Absorbed records alone: others have committed them.
            return self.committed(collected);
        }
        if fault::bug(Bug::LogBeforeCommit) {
            let mut early = crate::dedup::Batch::unlogged();
            early.entries.clone_from(&collected.batch.entries);
            early.states.clone_from(&collected.batch.states);
            let _ = self.shared.log.write(&mut early);
        }
        let outputs = std::mem::take(&mut collected.outputs);
        let sealed = Sealed { number, collected, started: now };
        self.sealed = Some(sealed);
        if let Some(transactions) = &mut self.transactions {
            transactions.start(Job { number, outputs, positions });
        }
    }

    pub(super) fn transaction_ended(&mut self, number: u64, ended: Ended) {
        let Some(sealed) = self.sealed.take_if(|sealed| sealed.number == number) else { return };
        let metrics = &self.shared.metrics.transactions;
        metrics.seconds.observe((clock::instant() - sealed.started).as_secs_f64());
        match ended {
            Ended::Committed => {
                metrics.ended.add(TransactionLabel::Committed, 1);
                self.caution = self.caution.saturating_sub(1);
                self.end_trouble();
                self.committed(sealed.collected);
            }
            Ended::Aborted { reason, refused } => {
                metrics.ended.add(TransactionLabel::Aborted, 1);
                self.forget(sealed.collected, reason, refused);
            }
            Ended::Unknown { reason } => {
                metrics.ended.add(TransactionLabel::Unknown, 1);
                self.forget(sealed.collected, reason, Vec::new());
            }
            Ended::Hijacked { reason } => {
                metrics.ended.add(TransactionLabel::Aborted, 1);
                // What it held is gone, and the frontiers are beyond it: nothing more is sealed.
                self.failed = true;
                let worker = self.index;
                self.fail(Failure::Hijacked { worker, reason });
            }
        }
    }

    /// The broker has it: now the log follows.
    fn committed(&mut self, mut collected: Collected) {
        let current = |owned: Option<&Owned>, epoch| owned.is_some_and(|at| at.epoch == epoch);
        let stale: Vec<Partition> = collected
            .touched
            .iter()
            .filter(|(partition, at)| !current(self.owned.get(*partition), at.epoch))
            .map(|(partition, _)| partition.clone())
            .collect();
        let mut batch = std::mem::replace(&mut collected.batch, crate::dedup::Batch::unlogged());
        for partition in &stale {
            // Somebody has entered it anew since, and absorbs this.
            batch.forget(collected.touched[partition].shard);
        }
        fault::point(Point::BeforeLogWrite);
        let started = clock::instant();
        if let Err(error) = self.shared.log.write(&mut batch)
            && !fault::bug(Bug::IgnoreLogError)
        {
            return self.log_failed(error);
        }
        fault::point(Point::AfterLogWrite);
        let took = clock::instant() - started;
        self.shared.metrics.log.write_seconds.observe(took.as_secs_f64());
        for (partition, touched) in &collected.touched {
            let owned = self.owned.get_mut(partition).filter(|owned| owned.epoch == touched.epoch);
            let Some(owned) = owned else { continue };
            let (records, bytes) = touched.released;
            owned.lane.release(records, bytes);
            if touched.position >= owned.absorb_until {
                owned.committed = owned.committed.max(Some(touched.position));
                owned.committed_at = clock::instant();
                owned.metrics.committed_offset.set(touched.position.0);
                self.shared.board.offsets(partition, Some(touched.position.0), None);
            }
            self.suspicions
                .retain(|(of, offset), _| of != partition || *offset >= touched.position);
        }
        self.count(collected);
        let touched: Vec<_> = self
            .owned
            .values()
            .filter(|owned| owned.exactly_once)
            .map(|o| o.partition.clone())
            .collect();
        for partition in touched {
            self.show(&partition);
        }
    }

    /// What it settled is counted, now that it is settled.
    fn count(&mut self, mut collected: Collected) {
        for (at, route) in self.shared.routes.iter().enumerate() {
            collected.tallies[at].publish(&route.metrics);
            route.metrics.outcomes.add(OutcomeLabel::Done, collected.passed[at]);
        }
        for (route, reason) in collected.letters {
            self.shared.routes[route].metrics.dead_letters.add(reason, 1);
        }
    }

    /// Nothing of it was or will be seen: all of its partitions, and those that were decided on
    /// top of it, are entered anew.
    fn forget(&mut self, collected: Collected, reason: String, refused: Vec<usize>) {
        tracing::warn!(reason, "A transaction was not committed; its partitions are entered anew.");
        self.trouble.set(format!("the last transaction was not committed: {reason}"));
        self.troubled = true;
        self.suspect(&collected, &refused);
        if refused.is_empty() {
            self.caution = (self.caution + 1).min(CAUTION_MAX);
        }
        let open = std::mem::replace(&mut self.open, Collected::new(&self.shared));
        let mut anew = Vec::new();
        // A partition that was lost and came back is in both, under different epochs.
        let touched = collected.touched.iter().chain(&open.touched);
        let mut seen: Vec<(Partition, Epoch)> =
            touched.map(|(partition, at)| (partition.clone(), at.epoch)).collect();
        for tally in collected.tallies.into_iter().chain(open.tallies) {
            tally.forget();
        }
        seen.sort();
        seen.dedup();
        for (partition, epoch) in seen {
            let Some(owned) = self.owned.remove(&partition) else { continue };
            if owned.epoch != epoch {
                self.owned.insert(partition, owned);
                continue;
            }
            self.parked.retain(|parked| parked.partition != partition);
            if owned.draining {
                owned.metrics.remove();
                self.shared.board.remove(&partition);
                self.send(Command::Drained { partition, epoch, position: None });
            } else {
                anew.push((partition, epoch));
            }
        }
        if !anew.is_empty() {
            self.send(Command::Reenter(anew));
        }
    }

    fn suspect(&mut self, collected: &Collected, refused: &[usize]) {
        let alone = collected.sources.len() == 1;
        for number in refused {
            let Some(at) = collected.sources.get(*number) else { continue };
            let known = self.suspicions.get(at).copied();
            let next = match known {
                _ if !alone => known.unwrap_or(Suspicion::Suspect),
                None | Some(Suspicion::Suspect) => Suspicion::TooLarge(Form::Whole),
                Some(Suspicion::TooLarge(form)) => {
                    form.smaller().map_or(Suspicion::Hopeless, Suspicion::TooLarge)
                }
                Some(Suspicion::Hopeless) => Suspicion::Hopeless,
            };
            self.suspicions.insert(at.clone(), next);
        }
    }

    /// Where a batch has to be cut, so that a suspect goes alone: the records before it.
    pub(super) fn before_suspect(
        &self,
        partition: &Partition,
        records: &[Record],
    ) -> Option<usize> {
        if self.suspicions.is_empty() {
            return None;
        }
        records
            .iter()
            .position(|record| self.suspicions.contains_key(&(partition.clone(), record.offset)))
    }

    /// A record goes to the topic of its route.
    pub(super) fn pass_on(&mut self, route: usize, read: Read, entry: Option<Entry>) {
        let known = (!self.suspicions.is_empty())
            .then(|| self.suspicions.get(&(read.record.partition.clone(), read.facts.offset)))
            .flatten();
        if let Some(Suspicion::TooLarge(_) | Suspicion::Hopeless) = known {
            let verdict = label_of(&read);
            let error = "the broker refuses the record for its size".to_owned();
            return self.dead_letter(route, read.into(), Reason::TooLarge, error, verdict);
        }
        let (record, identity) = (read.record.clone(), read.facts.identity);
        self.open.passed[route] += 1;
        self.open.put_output(Output::Record { route, record, identity });
        let verdict = label_of(&read);
        self.settle_read(read, verdict, entry);
    }

    /// The letter goes with the transaction, and settles its record there.
    pub(super) fn letter_in_transaction(
        &mut self,
        route: usize,
        mut letter: Letter,
        verdict: VerdictLabel,
    ) {
        let record = letter.record.clone();
        let at = (record.partition.clone(), record.offset);
        match self.suspicions.get(&at) {
            Some(Suspicion::TooLarge(form)) => letter.form = *form,
            Some(Suspicion::Hopeless) => {
                let coordinates = record.coordinates();
                let reason = format!(
                    "even the smallest dead letter of {coordinates} is larger than its topic takes"
                );
                self.shared.routes[route].pause(&self.shared.readiness, reason);
                return self.halt(&record.partition);
            }
            _ => {}
        }
        let Some(topic) = self.shared.routes[route].config.dead_letter.clone() else { return };
        self.open.letters.push((route, letter.reason));
        let (offset, size) = (record.offset, record.size());
        self.open.put_output(Output::Letter { topic, letter: Box::new(letter) });
        self.settle(&record.partition, offset, size, verdict, None);
    }

    /// Nothing more of a partition is decided: a record of it cannot be, and those behind it must
    /// not overtake it.
    pub(super) fn halt(&mut self, partition: &Partition) {
        if let Some(owned) = self.owned.get_mut(partition) {
            owned.halted = true;
        }
    }

    /// Whether anything of a partition is still on its way to the broker.
    pub(super) fn is_in_transaction(&self, owned: &Owned) -> bool {
        let in_it = |collected: &Collected| collected.touched.contains_key(&owned.partition);
        in_it(&self.open)
            || self.sealed.as_ref().is_some_and(|sealed| in_it(&sealed.collected))
            || needs_commit(owned, clock::instant())
    }
}

/// The group's offset is behind the position, or was not written for long.
fn needs_commit(owned: &Owned, now: Instant) -> bool {
    let at = Some(owned.frontier.position());
    let moved = at > owned.committed || (at == owned.committed && now - owned.committed_at > RENEW);
    // Below this, others have committed more than we know.
    moved && owned.frontier.position() >= owned.absorb_until
}

fn label_of(read: &Read) -> VerdictLabel {
    if read.facts.identity.is_some() { VerdictLabel::Fresh } else { VerdictLabel::Unidentified }
}
