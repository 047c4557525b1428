//! A route at run time: its configuration, its handler and what all workers share of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::assign::Plan;
use crate::handler::{Handler, kafka};
use crate::metrics::RouteMetrics;
use crate::readiness::{Latch, Readiness};
use crate::{clock, config};

pub struct Route {
    pub config: config::Route,
    /// `None`: records are passed on in transactions, and nothing is called.
    handler: Option<Arc<dyn Handler>>,
    pub metrics: RouteMetrics,
    /// `identity::Config::definition`, stamped into commits and shards.
    pub definition: u64,
    permits: AtomicUsize,
    /// When the next call may start, where the route has a rate.
    next_call: Mutex<Instant>,
    paused: AtomicBool,
    pause: Mutex<Option<(Latch, String)>>,
}

impl Route {
    #[must_use]
    pub fn new(
        config: config::Route,
        handler: Option<Arc<dyn Handler>>,
        metrics: RouteMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            definition: config.identity.definition(),
            permits: AtomicUsize::new(config.concurrency),
            next_call: Mutex::new(clock::instant()),
            paused: AtomicBool::new(false),
            pause: Mutex::new(None),
            config,
            handler,
            metrics,
        })
    }

    /// The handler of a route that calls one.
    #[must_use]
    pub fn handler(&self) -> &Arc<dyn Handler> {
        self.handler.as_ref().expect("a record is submitted only where there is a handler")
    }

    /// Where records are passed on to, in transactions.
    #[must_use]
    pub fn passes_on(&self) -> Option<&kafka::Config> {
        match &self.config.handler {
            config::HandlerKind::Kafka(kafka) => Some(kafka),
            _ => None,
        }
    }

    /// Nothing is with the handler: what an earlier run of the pipeline left there counts no more.
    pub fn begin(&self) {
        self.permits.store(self.config.concurrency, Ordering::Relaxed);
        self.metrics.in_flight.set(0);
    }

    /// Whether outputs and offsets are committed in one transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.passes_on().is_some()
    }

    /// A letter that was committed with its offset lies below `C'`: it tells something only where
    /// records below it are read again.
    #[must_use]
    pub(super) fn needs_letters(&self, plan: &Plan) -> bool {
        !self.is_transactional() || plan.absorb_until > plan.start
    }

    /// Takes up to `wanted` permits to call the handler; returns how many it got.
    pub fn take_permits(&self, wanted: usize) -> usize {
        let mut free = self.permits.load(Ordering::Relaxed);
        loop {
            let taken = free.min(wanted);
            match self.permits.compare_exchange_weak(
                free,
                free - taken,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return taken,
                Err(now) => free = now,
            }
        }
    }

    pub fn return_permits(&self, count: usize) {
        self.permits.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes one call out of the route's rate.
    ///
    /// # Errors
    /// When to ask again.
    pub fn take_call(&self) -> Result<(), Instant> {
        let now = clock::instant();
        let mut next = self.next_call.lock().unwrap_or_else(PoisonError::into_inner);
        if *next > now {
            return Err(*next);
        }
        *next = now + Duration::from_secs(1) / self.config.rate.max(1);
        Ok(())
    }

    /// No handler is called any more until the daemon is started again; not ready, with this
    /// reason. The first reason stays.
    pub fn pause(&self, readiness: &Readiness, reason: String) {
        if self.paused.swap(true, Ordering::Relaxed) {
            return;
        }
        let name = &self.config.name;
        tracing::error!(route = %name, reason, "The route pauses; mend the cause and start again.");
        let latch = readiness.latch(format!("route {name} is paused: {reason}"));
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = Some((latch, reason));
    }

    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Why the route is paused.
    #[must_use]
    pub fn pause_reason(&self) -> Option<String> {
        let pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        pause.as_ref().map(|(_, reason)| reason.clone())
    }
}
