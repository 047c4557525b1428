//! Calls: which claim is with the handler, which waits for its turn, which for another attempt.
//!
//! Owns: order and concurrency of one route in one worker. Never: settles.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use futures_util::FutureExt as _;
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::route::Route;
use super::worker::Event;
use crate::clock;
use crate::config::Order;
use crate::handler::{Claim, Handler, Outcome};
use crate::record::Partition;

/// One after another for the same key, within an epoch of a partition.
type OrderKey = (u64, u64);

/// Whoever runs the handlers.
pub trait Calls: Send + Sync {
    /// Starts a call and returns at once; the answer is [`Event::Outcomes`] of this route.
    fn call(
        &self,
        route: usize,
        handler: Arc<dyn Handler>,
        claims: Vec<Claim>,
        answer: Sender<Event>,
    );
}

/// Calls as tasks of a runtime.
pub struct Spawned(pub tokio::runtime::Handle);

impl Calls for Spawned {
    fn call(
        &self,
        route: usize,
        handler: Arc<dyn Handler>,
        claims: Vec<Claim>,
        answer: Sender<Event>,
    ) {
        self.0.spawn(async move {
            let started = Instant::now();
            let outcomes = AssertUnwindSafe(handler.handle_batch(&claims)).catch_unwind().await;
            let outcomes = outcomes.unwrap_or_else(|panic| panicked(&claims, panic.as_ref()));
            // The worker is gone only when the daemon is going.
            let _ =
                answer.send(Event::Outcomes { route, claims, outcomes, took: started.elapsed() });
        });
    }
}

/// The calls of one route in one worker.
pub struct Dispatch {
    route: Arc<Route>,
    index: usize,
    outside: Arc<dyn Calls>,
    events: Sender<Event>,
    /// To be called as soon as a permit is free.
    ready: VecDeque<Claim>,
    /// Claims behind one that is called, sent as a letter, or waits for another attempt.
    behind: FxHashMap<OrderKey, VecDeque<Claim>>,
    calls: usize,
    /// No call before this, where one that keeps order has to be repeated.
    held_until: Option<Instant>,
}

impl Dispatch {
    pub fn new(
        route: Arc<Route>,
        index: usize,
        outside: Arc<dyn Calls>,
        events: Sender<Event>,
    ) -> Self {
        let (ready, behind) = Default::default();
        Self { route, index, outside, events, ready, behind, calls: 0, held_until: None }
    }

    /// Takes a claim; it is called when it is its turn.
    pub fn submit(&mut self, claim: Claim) {
        match self.order_key(&claim) {
            None => self.ready.push_back(claim),
            Some(key) => match self.behind.get_mut(&key) {
                Some(behind) => behind.push_back(claim),
                None => {
                    self.behind.insert(key, VecDeque::new());
                    self.ready.push_back(claim);
                }
            },
        }
    }

    /// A claim that was called comes back for another attempt; its key is still its own.
    pub fn resubmit(&mut self, claim: Claim) {
        self.ready.push_front(claim);
    }

    /// The rest of a batch that a handler which keeps order did not come to: it goes first, and
    /// nothing goes before `until`.
    pub fn hold(&mut self, claims: Vec<Claim>, until: Instant) {
        for claim in claims.into_iter().rev() {
            self.ready.push_front(claim);
        }
        self.held_until = Some(until);
    }

    /// When calls go on, where they are held.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        self.held_until.filter(|_| !self.ready.is_empty())
    }

    /// The claim is settled or given up: the next one of its key may go.
    pub fn finished(&mut self, claim: &Claim) {
        let Some(key) = self.order_key(claim) else { return };
        let Some(behind) = self.behind.get_mut(&key) else { return };
        match behind.pop_front() {
            Some(next) => self.ready.push_back(next),
            None => drop(self.behind.remove(&key)),
        }
    }

    /// Calls the handler for what is ready, as far as permits reach. Returns the partitions of the
    /// claims that were called.
    pub fn pump(&mut self, called: &mut Vec<Partition>) {
        let held = self.held_until.is_some_and(|until| clock::instant() < until);
        if held || self.ready.is_empty() || self.route.paused() {
            return;
        }
        self.held_until = None;
        let one_call = self.route.handler().keeps_order();
        let paced = self.route.config.rate > 0;
        let batch_max = if paced { 1 } else { self.route.handler().batch_max().max(1) };
        while !self.ready.is_empty() && (!one_call || self.calls == 0) {
            if paced && let Err(at) = self.route.take_call() {
                self.held_until = Some(at);
                return;
            }
            let claims = self.take(batch_max);
            if claims.is_empty() {
                return;
            }
            called.extend(claims.iter().map(|claim| claim.record.partition.clone()));
            self.call(claims);
        }
    }

    /// Takes the claims of a partition that were not called, or wait for another attempt.
    pub fn withdraw(&mut self, partition: &Partition) -> Vec<Claim> {
        let of_it = |claim: &Claim| claim.record.partition == *partition;
        let (mut gone, kept): (Vec<_>, Vec<_>) = self.ready.drain(..).partition(of_it);
        self.ready = kept.into();
        for behind in self.behind.values_mut() {
            if behind.front().is_some_and(of_it) {
                gone.extend(behind.drain(..));
            }
        }
        gone
    }

    /// A call has ended.
    pub fn answered(&mut self) {
        self.calls -= 1;
    }

    /// From the front, as many as permits reach: a claim that was called before has its permit.
    fn take(&mut self, batch_max: usize) -> Vec<Claim> {
        let count = self.ready.len().min(batch_max);
        let new = self.ready.iter().take(count).filter(|claim| claim.attempt == 0).count();
        let mut permits = self.route.take_permits(new);
        let mut claims = Vec::with_capacity(count);
        while claims.len() < count {
            let Some(claim) = self.ready.pop_front() else { break };
            if claim.attempt == 0 {
                if permits == 0 {
                    self.ready.push_front(claim);
                    break;
                }
                permits -= 1;
            }
            claims.push(claim);
        }
        self.route.return_permits(permits);
        claims
    }

    fn call(&mut self, mut claims: Vec<Claim>) {
        for claim in &mut claims {
            claim.attempt += 1;
        }
        self.calls += 1;
        self.route.metrics.in_flight.add(claims.len() as i64);
        let handler = Arc::clone(self.route.handler());
        self.outside.call(self.index, handler, claims, self.events.clone());
    }

    fn order_key(&self, claim: &Claim) -> Option<OrderKey> {
        if self.route.handler().keeps_order() {
            return None;
        }
        let key = match self.route.config.order {
            // Kafka promises an order only to records with a key.
            Order::RecordKey => xxh3_64(claim.record.key()?),
            Order::Identity => xxh3_64(&claim.identity?.0),
            Order::Partition => 0,
        };
        Some((claim.epoch.0, key))
    }
}

fn panicked(claims: &[Claim], panic: &(dyn std::any::Any + Send)) -> Vec<Outcome> {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    claims.iter().map(|_| Outcome::retry(format!("the handler panicked: {text}"))).collect()
}
