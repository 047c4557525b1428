//! A batch of records: its time and identity, one look-up, a decision for each.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::collect::Collected;
use super::transact::Parked;
use super::{Owned, Worker};
use crate::clock;
use crate::commit::frontier::Delivery;
use crate::commit::letters::Reason;
use crate::config::{Conflict, KeyGiven, Missing};
use crate::dedup::expiry::Window;
use crate::dedup::shard::LastSettled;
use crate::dedup::verdict::{decide, entry_after};
use crate::dedup::{Entry, Facts, Shard, Verdict};
use crate::fault::{self, Bug, Point};
use crate::handler::Claim;
use crate::identity::{Identified, Identity};
use crate::metrics::VerdictLabel;
use crate::pipeline::Failure;
use crate::pipeline::inflight::Flight;
use crate::record::{Epoch, Offset, Partition, Record};

/// A record whose time and identity are fixed, and that is not decided yet.
#[derive(Debug)]
pub struct Read {
    pub record: Record,
    pub epoch: Epoch,
    pub shard: Shard,
    pub facts: Facts,
    pub identified: Identified,
}

/// How often an absorb says how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

/// Entries that this batch made or changed, and that the look-up cannot have seen.
pub type Absorbed = FxHashMap<Identity, Entry>;

impl Worker {
    pub(super) fn read(&mut self, partition: &Partition, epoch: Epoch, records: Vec<Record>) {
        let exactly_once = self.owned.get(partition).is_some_and(|owned| owned.exactly_once);
        if exactly_once && (self.open.is_full(self.caution) || !self.parked.is_empty()) {
            let partition = partition.clone();
            return self.parked.push_back(Parked { partition, epoch, records, end: None });
        }
        self.read_now(partition, epoch, records);
    }

    /// Decides a batch; a record whose output was refused goes alone, and what is behind it waits.
    pub(super) fn read_now(
        &mut self,
        partition: &Partition,
        epoch: Epoch,
        mut records: Vec<Record>,
    ) {
        // Of an earlier epoch: its lane is gone with it.
        if self.owned.get(partition).is_none_or(|owned| owned.epoch != epoch) {
            return;
        }
        if let Some(before) = self.before_suspect(partition, &records) {
            let alone = before == 0 && self.open.is_empty();
            let rest = records.split_off(before + usize::from(alone));
            self.open.closed = true;
            if !rest.is_empty() {
                self.parked.push_front(Parked {
                    partition: partition.clone(),
                    epoch,
                    records: rest,
                    end: None,
                });
            }
        }
        self.decide_batch(partition, epoch, records);
        // What was to go alone needed no transaction after all.
        self.open.closed &= !self.open.is_empty();
    }

    fn decide_batch(&mut self, partition: &Partition, epoch: Epoch, records: Vec<Record>) {
        // What was settled before must be found by the look-up.
        self.write();
        let Some(mut owned) = self.owned.remove(partition) else { return };
        if owned.epoch == epoch && !owned.draining && !self.failed {
            let mut read = std::mem::take(&mut self.scratch.read);
            self.fix(&mut owned, records, &mut read);
            let found = self.look_up(&owned, &read);
            self.owned.insert(partition.clone(), owned);
            if found {
                self.decide_all(partition, &mut read);
            }
            read.clear();
            self.scratch.read = read;
            self.delivered(partition);
            return;
        }
        let bytes = records.iter().map(Record::size).sum();
        if owned.exactly_once {
            owned.lane.release(records.len(), bytes);
        } else {
            owned.release(records.len(), bytes);
        }
        self.owned.insert(partition.clone(), owned);
    }

    /// Fixes time and identity of each record in offset order.
    fn fix(&mut self, owned: &mut Owned, records: Vec<Record>, read: &mut Vec<Read>) {
        let route = &self.shared.routes[owned.route];
        let window = &route.config.window;
        let identifier = &mut self.identifiers[owned.route];
        let exactly_once = owned.exactly_once;
        let tally = match exactly_once {
            true => &mut self.open.tallies[owned.route],
            false => &mut self.tallies[owned.route],
        };
        let wall = clock::now();
        let mut clock = owned.frontier.clock();
        for record in records {
            let delivery = owned.frontier.look(record.offset);
            owned.delivered = owned.delivered.max(record.offset.next());
            match delivery {
                Delivery::Below => {
                    tally.count(VerdictLabel::Replayed);
                    owned.release(1, record.size());
                    continue;
                }
                Delivery::Repeated => {
                    tracing::warn!(partition = %owned.partition, offset = %record.offset, "A record came twice in one epoch; the second is passed over.");
                    owned.release(1, record.size());
                    continue;
                }
                Delivery::Settled | Delivery::Open => {}
            }
            let dated = clock.read(record.timestamp, wall, window);
            if std::mem::take(&mut owned.cut) {
                owned.frontier.protect_since(Some(dated.time));
            }
            tally.undated += u64::from(!dated.by_record);
            let identified = identifier.identify(&record);
            tally.scope_missing += u64::from(identified.scope_missing);
            let mark = LastSettled {
                offset: record.offset,
                timestamp: record.timestamp,
                check: identified.check,
            };
            let before = owned.frontier.span();
            owned.frontier.deliver(mark, clock.now());
            if delivery == Delivery::Settled {
                tally.count(VerdictLabel::Replayed);
                owned.release(before + 1 - owned.frontier.span(), record.size());
                continue;
            }
            let facts = Facts {
                offset: record.offset,
                time: dated.time,
                identity: identified.identity,
                check: identified.check,
            };
            read.push(Read { record, epoch: owned.epoch, shard: owned.shard, facts, identified });
        }
    }

    /// One look-up for the batch; false: the log failed.
    fn look_up(&mut self, owned: &Owned, read: &[Read]) -> bool {
        let scratch = &mut self.scratch;
        scratch.identities.clear();
        scratch.identities.extend(read.iter().filter_map(|read| read.facts.identity));
        let started = clock::instant();
        let result = self.shared.log.lookup(
            owned.shard,
            &scratch.identities,
            &mut scratch.lookup,
            &mut scratch.found,
        );
        self.shared.metrics.log.lookup_seconds.observe((clock::instant() - started).as_secs_f64());
        result.map_err(|error| self.log_failed(error)).is_ok()
    }

    fn decide_all(&mut self, partition: &Partition, read: &mut Vec<Read>) {
        let found = std::mem::take(&mut self.scratch.found);
        let mut entries = found.iter();
        self.scratch.absorbed.clear();
        for read in read.drain(..) {
            let mut entry = None;
            if let Some(identity) = &read.facts.identity {
                let found = entries.next().copied().flatten();
                // What is collected is never older than what this batch remembers.
                let made = self.collected(read.shard, identity).or_else(|| {
                    let absorbed = &self.scratch.absorbed;
                    if absorbed.is_empty() { None } else { absorbed.get(identity).copied() }
                });
                entry = made.or(found);
            }
            self.decide_one(partition, read, entry);
        }
        self.scratch.found = found;
    }

    fn decide_one(&mut self, partition: &Partition, read: Read, entry: Option<Entry>) {
        let Some(owned) = self.owned.get(partition) else { return };
        // It stays unsettled, and so does all that is behind it.
        if owned.halted || (owned.exactly_once && self.shared.routes[owned.route].paused()) {
            return;
        }
        let window = self.window(owned.route);
        if read.facts.offset < owned.absorb_until {
            let verdict = decide(&read.facts, false, entry.as_ref(), &window);
            let skipped =
                owned.metadata.acts.skipped(read.facts.offset) && !fault::bug(Bug::SkipEnters);
            let after = if skipped { None } else { entry_after(&verdict, &read.facts, &window) };
            self.remember(&read.facts, after);
            fault::point(Point::Absorbed);
            return self.settle_read(read, VerdictLabel::Absorbed, after);
        }
        let read = match read.facts.identity {
            // In one transaction, or on top of one: what is decided stands or falls with it.
            Some(_) if owned.exactly_once => read,
            None => read,
            Some(identity) => match self.inflight.wait(read.shard, identity, read) {
                Ok(()) => return,
                Err(read) => read,
            },
        };
        let verdict = decide(&read.facts, false, entry.as_ref(), &window);
        let after = entry_after(&verdict, &read.facts, &window);
        if !matches!(verdict, Verdict::Fresh) {
            self.remember(&read.facts, after);
        }
        fault::point(Point::Decided);
        self.act(read, verdict, entry, VecDeque::new());
    }

    /// What the transactions that are not committed yet will make of the log.
    fn collected(&self, shard: Shard, identity: &Identity) -> Option<Entry> {
        if self.transactions.is_none() || fault::bug(Bug::NoOverlay) {
            return None;
        }
        let sealed = self.sealed.as_ref().map(|sealed| &sealed.collected);
        let of = |collected: &Collected| collected.entry(shard, identity);
        of(&self.open).or_else(|| sealed.and_then(of))
    }

    fn remember(&mut self, facts: &Facts, entry: Option<Entry>) {
        if let (Some(identity), Some(entry)) = (facts.identity, entry) {
            self.scratch.absorbed.insert(identity, entry);
        }
    }

    /// Does what follows from a verdict that is final. `waiting`: records that wait behind it.
    pub(super) fn act(
        &mut self,
        read: Read,
        verdict: Verdict,
        prior: Option<Entry>,
        waiting: VecDeque<Read>,
    ) {
        let Some(route) = self.owned.get(&read.record.partition).map(|owned| owned.route) else {
            return;
        };
        let policy = &self.shared.routes[route].config;
        let after = entry_after(&verdict, &read.facts, &policy.window);
        match verdict {
            Verdict::Fresh => self.take_off(route, read, prior, waiting),
            Verdict::Duplicate { first } => {
                self.tally(route).duplicate(read.facts.time, first.time);
                self.settle_read(read, VerdictLabel::Duplicate, after);
            }
            Verdict::Replayed => self.settle_read(read, VerdictLabel::Replayed, None),
            Verdict::InDoubt => self.settle_read(read, VerdictLabel::InDoubt, None),
            Verdict::Conflict { first } => match policy.conflict {
                Conflict::DeadLetter => {
                    let error = conflict_text(&read, &first);
                    self.dead_letter(
                        route,
                        read.into(),
                        Reason::Conflict,
                        error,
                        VerdictLabel::Conflict,
                    );
                }
                Conflict::Suppress | Conflict::Process => {
                    self.settle_read(read, VerdictLabel::Conflict, None);
                }
            },
            Verdict::Unidentified => self.unidentified(route, read),
        }
    }

    fn unidentified(&mut self, route: usize, read: Read) {
        if fault::bug(Bug::DropUnidentified) {
            return self.settle_read(read, VerdictLabel::Unidentified, None);
        }
        match self.shared.routes[route].config.missing {
            Missing::Process if self.is_exactly_once(route) => self.pass_on(route, read, None),
            Missing::Process => {
                let claim = self.claim(route, read);
                self.dispatch[route].submit(claim);
            }
            Missing::DeadLetter => {
                let reason = if read.identified.undecodable {
                    Reason::Undecodable
                } else {
                    Reason::MissingIdentity
                };
                let error =
                    "no source in routes.*.identity.key is present in the record".to_owned();
                self.dead_letter(route, read.into(), reason, error, VerdictLabel::Unidentified);
            }
            Missing::Fail => {
                self.halt(&read.record.partition);
                let route = self.shared.routes[route].config.name.to_string();
                self.fail(Failure::MissingIdentity {
                    route,
                    coordinates: read.record.coordinates(),
                });
            }
        }
    }

    fn take_off(
        &mut self,
        route: usize,
        read: Read,
        prior: Option<Entry>,
        waiting: VecDeque<Read>,
    ) {
        if self.is_exactly_once(route) {
            let entry = entry_after(&Verdict::Fresh, &read.facts, &self.window(route));
            return self.pass_on(route, read, entry);
        }
        if let Some(identity) = read.facts.identity {
            self.inflight.take_off(read.shard, identity, Flight { prior, waiting });
        }
        let claim = self.claim(route, read);
        self.dispatch[route].submit(claim);
    }

    fn claim(&self, route: usize, read: Read) -> Claim {
        let route_of = &self.shared.routes[route];
        let gives_client_key = route_of.config.idempotency_key == KeyGiven::Client;
        let wanted = gives_client_key || route_of.handler().wants_client_key();
        let client_key = wanted.then(|| self.identifiers[route].client_key(&read.record)).flatten();
        Claim {
            identity: read.facts.identity,
            client_key: client_key.map(Into::into),
            gives_client_key,
            check: read.facts.check,
            time: read.facts.time,
            epoch: read.epoch,
            shard: read.shard,
            attempt: 0,
            record: read.record,
        }
    }

    /// The record in flight with this identity is settled or given up: those that waited for it
    /// are decided, in order, until one of them takes off itself.
    pub(super) fn land(
        &mut self,
        shard: Shard,
        identity: Option<Identity>,
        handled: Option<Entry>,
    ) {
        let Some(identity) = identity else { return };
        let Some(Flight { prior, mut waiting }) = self.inflight.land(shard, identity) else {
            return;
        };
        let mut entry = handled.or(prior);
        while let Some(read) = waiting.pop_front() {
            let current = self.owned.get(&read.record.partition);
            let Some(owned) = current.filter(|owned| owned.epoch == read.epoch) else { continue };
            let draining = owned.draining;
            let window = self.window(owned.route);
            let verdict = decide(&read.facts, false, entry.as_ref(), &window);
            let after = entry_after(&verdict, &read.facts, &window);
            // What needs a handler or a letter is left to the next owner. A duplicate needs none,
            // and open it would hold back the offset of all that was handled after it. But where
            // the record before it was given up, it must not prolong the window: the next owner
            // would find that record within it, and suppress what nobody has handled.
            let prolongs = handled.is_none() && after.is_some();
            if draining && (prolongs || !matches!(verdict, Verdict::Duplicate { .. })) {
                return;
            }
            if matches!(verdict, Verdict::Fresh) {
                return self.act(read, verdict, entry, waiting);
            }
            self.act(read, verdict, entry, VecDeque::new());
            entry = after.or(entry);
        }
    }

    pub(super) fn end(&mut self, partition: &Partition, epoch: Epoch, offset: Offset) {
        // Behind the records that wait, or the position would pass over them.
        if self.parked.iter().any(|parked| parked.partition == *partition) {
            let (partition, records) = (partition.clone(), Vec::new());
            let end = Some(offset);
            return self.parked.push_back(Parked { partition, epoch, records, end });
        }
        self.end_now(partition, epoch, offset);
    }

    pub(super) fn end_now(&mut self, partition: &Partition, epoch: Epoch, offset: Offset) {
        let Some(owned) = self.owned.get_mut(partition).filter(|owned| owned.epoch == epoch) else {
            return;
        };
        owned.delivered = owned.delivered.max(offset);
        self.advance_to_end(partition);
        self.delivered(partition);
        self.end_trouble_if_over();
    }

    /// The partition may have been read up to where it was settled before.
    fn delivered(&mut self, partition: &Partition) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        let Some(absorbing) = &owned.absorbing else { return };
        let remaining = owned.absorb_until.0.saturating_sub(owned.delivered.0).max(0);
        owned.metrics.absorb_remaining_records.set(remaining);
        if remaining == 0 {
            owned.absorbing = None;
            tracing::info!(%partition, until = %owned.absorb_until, "The partition has caught up with what was handled before.");
        } else if clock::instant() - owned.progress >= PROGRESS {
            owned.progress = clock::instant();
            absorbing.set(format!(
                "{partition} is reading again what was handled before: {remaining} records to offset {}",
                owned.absorb_until
            ));
            tracing::info!(%partition, remaining, until = %owned.absorb_until, "Reading again what was handled before.");
        }
    }

    pub(super) fn window(&self, route: usize) -> Window {
        self.shared.routes[route].config.window
    }
}

fn conflict_text(read: &Read, first: &Entry) -> String {
    format!(
        "the same identity was handled with another payload: offset {} with check {}, this is offset {} with check {}",
        first.offset, first.check, read.facts.offset, read.facts.check
    )
}

/// What a settlement needs to know of a record.
#[derive(Debug)]
pub struct Subject {
    pub record: Record,
    pub epoch: Epoch,
    pub identity: Option<Identity>,
    /// The claim, where the record was given to the handler.
    pub claim: Option<Claim>,
}

impl From<Read> for Subject {
    fn from(read: Read) -> Self {
        Self { epoch: read.epoch, identity: read.facts.identity, record: read.record, claim: None }
    }
}
