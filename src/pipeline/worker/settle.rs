//! Settlement: from an outcome to the log, and from the log to what was held back for it.
//!
//! ```text
//! outcome -> entry and frontier (in memory) -> one write batch -> permits, lanes, metrics
//! ```
//!
//! The offset is committed later, from the written frontier: never ahead of the log.

use std::time::Duration;

use super::records::{Read, Subject};
use super::{Due, Owned, Worker};
use crate::clock;
use crate::commit::letters::Reason;
use crate::config::Exhausted;
use crate::dedup::Entry;
use crate::dedup::expiry::millis;
use crate::handler::{BoxError, Claim, Outcome};
use crate::metrics::{Label as _, LocalHistogram, OutcomeLabel, RouteMetrics, VerdictLabel};
use crate::pipeline::Failure;
use crate::record::{Partition, Timestamp};

/// Counts of one route since the last write; metrics are touched once a batch.
pub(super) struct Tally {
    verdicts: [u64; VerdictLabel::ALL.len()],
    duplicate_distance: LocalHistogram,
    end_to_end: LocalHistogram,
    pub(super) undated: u64,
    pub(super) scope_missing: u64,
}

impl Tally {
    pub(super) fn new(metrics: &RouteMetrics) -> Self {
        Self {
            verdicts: [0; VerdictLabel::ALL.len()],
            duplicate_distance: metrics.duplicate_distance_seconds.local(),
            end_to_end: metrics.end_to_end_seconds.local(),
            undated: 0,
            scope_missing: 0,
        }
    }

    pub(super) fn count(&mut self, verdict: VerdictLabel) {
        self.verdicts[verdict as usize] += 1;
    }

    pub(super) fn duplicate(&mut self, time: Timestamp, first: Timestamp) {
        self.duplicate_distance.observe(seconds(time.0.saturating_sub(first.0)));
    }

    /// What was not settled after all is not counted.
    pub(super) fn forget(self) {
        self.duplicate_distance.clear();
        self.end_to_end.clear();
    }

    pub(super) fn publish(&mut self, metrics: &RouteMetrics) {
        for (verdict, count) in VerdictLabel::ALL.iter().zip(&mut self.verdicts) {
            if *count > 0 {
                metrics.records.add(*verdict, std::mem::take(count));
            }
        }
        self.duplicate_distance.flush();
        self.end_to_end.flush();
        metrics.undated.inc_by(std::mem::take(&mut self.undated));
        metrics.scope_missing.inc_by(std::mem::take(&mut self.scope_missing));
    }
}

fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1_000.0
}

impl Worker {
    /// The handler answered.
    pub(super) fn answered(
        &mut self,
        route: usize,
        claims: Vec<Claim>,
        outcomes: Vec<Outcome>,
        took: Duration,
    ) {
        self.dispatch[route].answered();
        let metrics = &self.shared.routes[route].metrics;
        metrics.in_flight.sub(claims.len() as i64);
        metrics.handler_seconds.observe(took.as_secs_f64());
        let wall = clock::now();
        let mut outcomes = outcomes.into_iter();
        let mut repeated = Repeated::default();
        for claim in claims {
            let missing = || Outcome::retry("the handler answered fewer outcomes than claims");
            let outcome = outcomes.next().unwrap_or_else(missing);
            self.outcome(route, claim, outcome, wall, &mut repeated);
        }
        if !repeated.claims.is_empty() {
            self.dispatch[route].hold(repeated.claims, clock::instant() + repeated.after);
        }
    }

    fn outcome(
        &mut self,
        route: usize,
        claim: Claim,
        outcome: Outcome,
        wall: Timestamp,
        repeated: &mut Repeated,
    ) {
        let metrics = &self.shared.routes[route].metrics;
        metrics.outcomes.add(label(&outcome), 1);
        let owned =
            self.owned.get_mut(&claim.record.partition).filter(|owned| owned.epoch == claim.epoch);
        let Some(owned) = owned else { return self.give_up(route, claim) };
        owned.out -= 1;
        match outcome {
            Outcome::Done => self.done(route, claim, wall),
            Outcome::Retry { error, after } => self.retry(route, claim, &error, after, repeated),
            Outcome::Reject(error) => self.reject(route, claim, Reason::Rejected, &error),
            Outcome::Fatal(error) => {
                let coordinates = claim.record.coordinates();
                // The record stays in flight: what waits behind it must not be called in its
                // place, since it would then be handled again itself after the restart.
                let reason = format!("the handler gave up at {coordinates}: {}", chain(&error));
                let route = &self.shared.routes[route];
                route.pause(&self.shared.readiness, reason);
                let route = route.config.name.to_string();
                self.fail(Failure::Handler { route, coordinates, source: error });
            }
        }
    }

    fn done(&mut self, route: usize, claim: Claim, wall: Timestamp) {
        if let Some(written) = claim.record.timestamp {
            self.tallies[route].end_to_end.observe(seconds(wall.0.saturating_sub(written.0)));
        }
        let entry = Entry { offset: claim.record.offset, time: claim.time, check: claim.check };
        let verdict = fresh_label(&claim);
        self.settle_claim(route, &claim, verdict, Some(entry));
    }

    /// Settles the record of a claim and lets those go that waited for it.
    pub(super) fn settle_claim(
        &mut self,
        route: usize,
        claim: &Claim,
        verdict: VerdictLabel,
        entry: Option<Entry>,
    ) {
        let handled = entry.filter(|_| claim.identity.is_some());
        let identified = claim.identity.zip(handled);
        self.settle(
            &claim.record.partition,
            claim.record.offset,
            claim.record.size(),
            verdict,
            identified,
        );
        self.dispatch[route].finished(claim);
        self.permits[route] += usize::from(claim.attempt > 0);
        self.land(claim.shard, claim.identity, handled);
    }

    fn retry(
        &mut self,
        route: usize,
        claim: Claim,
        error: &BoxError,
        after: Option<Duration>,
        repeated: &mut Repeated,
    ) {
        let config = &self.shared.routes[route].config;
        let coordinates = claim.record.coordinates();
        tracing::debug!(coordinates, attempt = claim.attempt, error = %chain(error), "A call is to be repeated.");
        if self.owned.get(&claim.record.partition).is_none_or(|owned| owned.draining) {
            return self.give_up(route, claim);
        }
        match config.retry.delay(claim.attempt, after, fastrand::f64()) {
            Some(delay) if self.shared.routes[route].handler().keeps_order() => {
                repeated.after = repeated.after.max(delay);
                repeated.claims.push(claim);
            }
            Some(delay) => self.later(delay, Due::Call { route, claim }),
            None => match config.exhausted {
                Exhausted::DeadLetter => self.reject(route, claim, Reason::Exhausted, error),
                Exhausted::Pause => {
                    let attempts = claim.attempt;
                    let reason = format!(
                        "{coordinates} failed {attempts} times and retry.exhausted is \"pause\": {}",
                        chain(error)
                    );
                    self.shared.routes[route].pause(&self.shared.readiness, reason);
                    // It stays where a paused route leaves it, with its key and its permit.
                    self.dispatch[route].resubmit(claim);
                }
            },
        }
    }

    fn reject(&mut self, route: usize, claim: Claim, reason: Reason, error: &BoxError) {
        let verdict = fresh_label(&claim);
        let error = chain(error);
        let subject = Subject {
            record: claim.record.clone(),
            epoch: claim.epoch,
            identity: claim.identity,
            claim: Some(claim),
        };
        self.dead_letter(route, subject, reason, error, verdict);
    }

    /// The record stays unsettled: whoever owns its partition next decides it again.
    pub(super) fn give_up(&mut self, route: usize, claim: Claim) {
        self.dispatch[route].finished(&claim);
        self.permits[route] += usize::from(claim.attempt > 0);
        self.land(claim.shard, claim.identity, None);
    }

    /// Settles a record that no handler was called for.
    pub(super) fn settle_read(&mut self, read: Read, verdict: VerdictLabel, entry: Option<Entry>) {
        let identified = read.facts.identity.zip(entry);
        self.settle(
            &read.record.partition,
            read.record.offset,
            read.record.size(),
            verdict,
            identified,
        );
    }

    /// The one place where a record is settled and counted.
    pub(super) fn settle(
        &mut self,
        partition: &Partition,
        offset: crate::record::Offset,
        size: usize,
        verdict: VerdictLabel,
        entry: Option<(crate::identity::Identity, Entry)>,
    ) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        if owned.exactly_once {
            return self.collect(partition, offset, size, verdict, entry);
        }
        if let Some((identity, entry)) = entry {
            self.batch.put_entry(owned.shard, &identity, &entry);
        }
        let before = owned.frontier.span();
        let newly = owned.frontier.settle(offset);
        assert!(newly, "a record is settled exactly once");
        owned.release(before - owned.frontier.span(), size);
        self.tallies[owned.route].count(verdict);
        if !std::mem::replace(&mut owned.dirty, true) {
            self.dirty.push(partition.clone());
        }
    }

    /// Settles a record with the open transaction.
    fn collect(
        &mut self,
        partition: &Partition,
        offset: crate::record::Offset,
        size: usize,
        verdict: VerdictLabel,
        entry: Option<(crate::identity::Identity, Entry)>,
    ) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        let (shard, before) = (owned.shard, owned.frontier.span());
        let newly = owned.frontier.settle(offset);
        assert!(newly, "a record is settled exactly once");
        let touched = self.open.touch(partition, owned.epoch, shard);
        touched.released.0 += before - owned.frontier.span();
        touched.released.1 += size;
        if let Some((identity, entry)) = entry {
            self.open.put_entry(shard, identity, entry);
        }
        self.open.tallies[owned.route].count(verdict);
    }

    /// The counts of a route, where they stand until its records are settled.
    pub(super) fn tally(&mut self, route: usize) -> &mut Tally {
        if self.is_exactly_once(route) {
            return &mut self.open.tallies[route];
        }
        &mut self.tallies[route]
    }

    pub(super) fn advance_to_end(&mut self, partition: &Partition) {
        let Some(owned) = self.owned.get_mut(partition) else { return };
        let before = owned.frontier.position();
        owned.frontier.end(owned.delivered);
        if owned.exactly_once {
            return;
        }
        if owned.frontier.position() > before && !std::mem::replace(&mut owned.dirty, true) {
            self.dirty.push(partition.clone());
        }
    }

    /// Writes what was settled, and lets go of what waited for that.
    pub(super) fn write(&mut self) {
        if self.failed {
            return;
        }
        if !self.dirty.is_empty() {
            let dirty = std::mem::take(&mut self.dirty);
            for partition in &dirty {
                let Some(owned) = self.owned.get_mut(partition) else { continue };
                // Where all that was delivered is settled, the position is where delivery stands.
                owned.frontier.end(owned.delivered);
                self.batch.put_state(owned.shard, owned.frontier.state());
            }
            if !self.write_batch() {
                return;
            }
            for partition in &dirty {
                if let Some(owned) = self.owned.get_mut(partition) {
                    owned.dirty = false;
                }
                self.show(partition);
            }
            self.dirty = dirty;
            self.dirty.clear();
        }
        self.let_go();
    }

    /// Shows where a partition stands, in metrics and `/status`.
    pub(super) fn show(&self, partition: &Partition) {
        let Some(owned) = self.owned.get(partition) else { return };
        let window = millis(self.shared.routes[owned.route].config.window.ttl);
        let kept = self.shared.kept.get().and_then(|kept| kept.get(&owned.partition.topic));
        publish(owned, kept.map_or(window, |kept| window.min(*kept)));
        self.shared.board.update(owned);
    }

    fn write_batch(&mut self) -> bool {
        let started = clock::instant();
        if let Err(error) = self.shared.log.write(&mut self.batch) {
            self.log_failed(error);
            return !self.failed;
        }
        self.shared.metrics.log.write_seconds.observe((clock::instant() - started).as_secs_f64());
        true
    }

    fn let_go(&mut self) {
        for owned in self.owned.values_mut() {
            let (records, bytes) = std::mem::take(&mut owned.released);
            if records > 0 || bytes > 0 {
                owned.lane.release(records, bytes);
            }
        }
        for (route, permits) in self.shared.routes.iter().zip(&mut self.permits) {
            let permits = std::mem::take(permits);
            if permits > 0 {
                route.return_permits(permits);
                self.shared.wake_others(self.index);
            }
        }
        for (route, tally) in self.shared.routes.iter().zip(&mut self.tallies) {
            tally.publish(&route.metrics);
        }
    }
}

impl Owned {
    /// To be given back to the lane with the next write: a wake-up for each record would cost more
    /// than the record.
    pub(super) fn release(&mut self, records: usize, bytes: usize) {
        self.released.0 += records;
        self.released.1 += bytes;
    }
}

/// What a handler that keeps order did not come to.
#[derive(Default)]
pub(super) struct Repeated {
    claims: Vec<Claim>,
    after: Duration,
}

fn publish(owned: &Owned, ttl_ms: i64) {
    owned.metrics.position.set(owned.frontier.position().0);
    let covered = match (owned.frontier.since(), owned.frontier.stream_time()) {
        (Some(since), Some(now)) => now.0.saturating_sub(since.0).clamp(0, ttl_ms),
        _ => ttl_ms,
    };
    owned.metrics.window_seconds.set(covered / 1_000);
}

fn label(outcome: &Outcome) -> OutcomeLabel {
    match outcome {
        Outcome::Done => OutcomeLabel::Done,
        Outcome::Retry { .. } => OutcomeLabel::Retry,
        Outcome::Reject(_) => OutcomeLabel::Reject,
        Outcome::Fatal(_) => OutcomeLabel::Fatal,
    }
}

fn fresh_label(claim: &Claim) -> VerdictLabel {
    if claim.identity.is_some() { VerdictLabel::Fresh } else { VerdictLabel::Unidentified }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
