//! The catalogue of metrics: every family with its help, unit, labels and buckets.
//!
//! Owns: the registry, and typed handles whose labels are resolved once.
//! Never: labels by anything that a producer chooses (keys, error texts), or looks up a label
//! where records flow. A suppressed duplicate is what onced is for, never an error.
//!
//! Handles are cheap to clone and may be used from any thread. Stages add once per batch; what
//! observes each record uses a [`LocalHistogram`] of its own (`histogram.local()`) and flushes it
//! per batch.

use std::marker::PhantomData;
use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use prometheus::local::LocalHistogram;
pub use prometheus::{Histogram, IntCounter, IntGauge};

use crate::commit::letters::Reason;

/// All metrics of the process, or of one test.
pub struct Metrics {
    registry: Registry,
    names: Vec<String>,
    routes: RouteFamilies,
    partitions: PartitionFamilies,
    pub log: LogMetrics,
    pub rebalances: Counters<Rebalance>,
    pub transactions: TransactionMetrics,
    /// 1 when every assigned partition is past what it absorbs.
    pub ready: IntGauge,
}

impl Metrics {
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut catalogue = Catalogue::default();
        let routes = RouteFamilies::new(&mut catalogue);
        let partitions = PartitionFamilies::new(&mut catalogue);
        let log = LogMetrics::new(&mut catalogue);
        let rebalances = catalogue.counters(
            "onced_rebalances_total",
            "Assignments, revocations and lost assignments that the broker reported.",
            &["kind"],
        );
        let transactions = TransactionMetrics::new(&mut catalogue);
        let ready = catalogue.gauge(
            "onced_ready",
            "1 when every assigned partition is past the offset up to which it absorbs, else 0.",
        );
        let build = "The version of onced, as a label; always 1.";
        catalogue
            .gauges("onced_build_info", build, &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        catalogue.process();
        Arc::new(Self {
            routes,
            partitions,
            log,
            rebalances: Counters::new(&rebalances, &[]),
            transactions,
            ready,
            registry: catalogue.registry,
            names: catalogue.names,
        })
    }

    /// The handles of a route. All that ask for a route share its counters.
    #[must_use]
    pub fn route(&self, name: &str) -> RouteMetrics {
        self.routes.resolve(name)
    }

    /// The handles of a partition, from its assignment to its revocation.
    #[must_use]
    pub fn partition(&self, topic: &str, partition: i32) -> PartitionMetrics {
        self.partitions.resolve(topic, partition)
    }

    /// Everything in the text format, version 0.0.4.
    #[must_use]
    pub fn encode(&self) -> String {
        let families = self.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("a family that was gathered has a name and a value")
    }
}

/// The names of all families, sorted; those of the process collector included.
#[must_use]
pub fn names() -> Vec<String> {
    let mut names = Metrics::new().names.clone();
    names.sort();
    names
}

/// The metrics of one route.
#[derive(Clone)]
pub struct RouteMetrics {
    /// Records by verdict, each counted once, when it is settled.
    pub records: Counters<VerdictLabel>,
    /// Handler calls by what they said.
    pub outcomes: Counters<OutcomeLabel>,
    pub dead_letters: Counters<Reason>,
    pub handler_seconds: Histogram,
    pub end_to_end_seconds: Histogram,
    pub duplicate_distance_seconds: Histogram,
    /// Shared by all workers of the route: add and subtract, never set.
    pub in_flight: IntGauge,
    pub scope_missing: IntCounter,
    pub undated: IntCounter,
}

/// The metrics of one assigned partition.
#[derive(Clone)]
pub struct PartitionMetrics {
    pub position: IntGauge,
    pub committed_offset: IntGauge,
    pub lag_records: IntGauge,
    pub absorb_remaining_records: IntGauge,
    pub window_seconds: IntGauge,
    pub skipped: IntCounter,
    families: PartitionFamilies,
    labels: [String; 2],
}

impl PartitionMetrics {
    /// Takes the partition out of the exposition, so that no dashboard shows what another
    /// instance owns. What this handle still writes is not seen.
    pub fn remove(&self) {
        let labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        let families = &self.families;
        let gauges = [
            &families.position,
            &families.committed_offset,
            &families.lag_records,
            &families.absorb_remaining_records,
            &families.window_seconds,
        ];
        // An error says that the partition is not there, which is what was asked for.
        for gauge in gauges {
            let _ = gauge.remove_label_values(&labels);
        }
        let _ = families.skipped.remove_label_values(&labels);
    }
}

/// The metrics of the dedup log.
#[derive(Clone)]
pub struct LogMetrics {
    pub lookup_seconds: Histogram,
    pub write_seconds: Histogram,
    pub entries: IntGauge,
    pub bytes: IntGauge,
    pub expired: IntCounter,
}

/// The metrics of transactions.
#[derive(Clone)]
pub struct TransactionMetrics {
    pub ended: Counters<TransactionLabel>,
    pub seconds: Histogram,
}

/// One counter for each value of a label.
#[derive(Clone)]
pub struct Counters<L> {
    counters: Arc<[IntCounter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Counters<L> {
    /// `before`: the values of the labels that stand before this one.
    fn new(family: &IntCounterVec, before: &[&str]) -> Self {
        let resolve = |label: &L| family.with_label_values(&[before, &[label.text()]].concat());
        Self { counters: L::ALL.iter().map(resolve).collect(), label: PhantomData }
    }

    pub fn add(&self, label: L, count: u64) {
        self.counter(label).inc_by(count);
    }

    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.counter(label).get()
    }

    fn counter(&self, label: L) -> &IntCounter {
        self.counters.get(label.index()).expect("every value of a label has a counter")
    }
}

/// A label whose values are known beforehand, so that all of them are there from the start.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];
    /// Where it stands in [`Label::ALL`].
    fn index(self) -> usize;
    fn text(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($value,)+
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn index(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }
    };
}

label! {
    /// How a record was settled: the verdict, or absorbed without one.
    VerdictLabel {
        Fresh = "fresh",
        Duplicate = "duplicate",
        Replayed = "replayed",
        Conflict = "conflict",
        InDoubt = "in_doubt",
        Unidentified = "unidentified",
        Absorbed = "absorbed",
    }
}

label! {
    /// What a handler said of a call.
    OutcomeLabel {
        Done = "done",
        Retry = "retry",
        Reject = "reject",
        Fatal = "fatal",
    }
}

label! {
    /// What the broker reported.
    Rebalance {
        Assigned = "assigned",
        Revoked = "revoked",
        Lost = "lost",
    }
}

label! {
    /// How a transaction ended.
    TransactionLabel {
        Committed = "committed",
        Aborted = "aborted",
        Unknown = "unknown",
    }
}

impl Label for Reason {
    const ALL: &'static [Self] = &[
        Self::Rejected,
        Self::Exhausted,
        Self::Conflict,
        Self::MissingIdentity,
        Self::Undecodable,
        Self::TooLarge,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn text(self) -> &'static str {
        self.as_str()
    }
}

struct RouteFamilies {
    records: IntCounterVec,
    outcomes: IntCounterVec,
    dead_letters: IntCounterVec,
    handler_seconds: HistogramVec,
    end_to_end_seconds: HistogramVec,
    duplicate_distance_seconds: HistogramVec,
    in_flight: IntGaugeVec,
    scope_missing: IntCounterVec,
    undated: IntCounterVec,
}

impl RouteFamilies {
    fn new(catalogue: &mut Catalogue) -> Self {
        Self {
            records: catalogue.counters(
                "onced_records_total",
                "Records by verdict, counted once, when they are settled.",
                &["route", "verdict"],
            ),
            outcomes: catalogue.counters(
                "onced_outcomes_total",
                "Handler calls by outcome; a record may take several.",
                &["route", "outcome"],
            ),
            dead_letters: catalogue.counters(
                "onced_dead_letters_total",
                "Records that became a dead letter, by reason.",
                &["route", "reason"],
            ),
            handler_seconds: catalogue.histograms(
                "onced_handler_seconds",
                "How long a handler call took.",
                &HANDLER_BUCKETS,
            ),
            end_to_end_seconds: catalogue.histograms(
                "onced_end_to_end_seconds",
                "From the timestamp of a record to its settlement.",
                &END_TO_END_BUCKETS,
            ),
            duplicate_distance_seconds: catalogue.histograms(
                "onced_duplicate_distance_seconds",
                "From the first occurrence of a message to a duplicate, by their timestamps.",
                &DISTANCE_BUCKETS,
            ),
            in_flight: catalogue.gauges(
                "onced_in_flight",
                "Records whose handler was called and whose settlement is not in the log.",
                &["route"],
            ),
            scope_missing: catalogue.counters(
                "onced_scope_missing_total",
                "Records in which a part of the identity's scope was missing.",
                &["route"],
            ),
            undated: catalogue.counters(
                "onced_undated_total",
                "Records without a timestamp, or with one too far ahead of the wall clock.",
                &["route"],
            ),
        }
    }

    fn resolve(&self, route: &str) -> RouteMetrics {
        let labels = &[route];
        RouteMetrics {
            records: Counters::new(&self.records, labels),
            outcomes: Counters::new(&self.outcomes, labels),
            dead_letters: Counters::new(&self.dead_letters, labels),
            handler_seconds: self.handler_seconds.with_label_values(labels),
            end_to_end_seconds: self.end_to_end_seconds.with_label_values(labels),
            duplicate_distance_seconds: self.duplicate_distance_seconds.with_label_values(labels),
            in_flight: self.in_flight.with_label_values(labels),
            scope_missing: self.scope_missing.with_label_values(labels),
            undated: self.undated.with_label_values(labels),
        }
    }
}

#[derive(Clone)]
struct PartitionFamilies {
    position: IntGaugeVec,
    committed_offset: IntGaugeVec,
    lag_records: IntGaugeVec,
    absorb_remaining_records: IntGaugeVec,
    window_seconds: IntGaugeVec,
    skipped: IntCounterVec,
}

impl PartitionFamilies {
    fn new(catalogue: &mut Catalogue) -> Self {
        let labels = &["topic", "partition"];
        let mut gauge = |name, help| catalogue.gauges(name, help, labels);
        Self {
            position: gauge("onced_position", "Every record below this offset is settled."),
            committed_offset: gauge(
                "onced_committed_offset",
                "The offset that the group has committed.",
            ),
            lag_records: gauge(
                "onced_lag_records",
                "Offsets between the committed one and the end of the log.",
            ),
            absorb_remaining_records: gauge(
                "onced_absorb_remaining_records",
                "Offsets that are still to be absorbed before records are handled.",
            ),
            window_seconds: gauge(
                "onced_window_seconds",
                "For how long back duplicates are truly recognised; the configured ttl when all is well.",
            ),
            skipped: catalogue.counters(
                "onced_skipped_total",
                "Offsets past which a tool moved the group.",
                labels,
            ),
        }
    }

    fn resolve(&self, topic: &str, partition: i32) -> PartitionMetrics {
        let labels = [topic.to_owned(), partition.to_string()];
        PartitionMetrics {
            position: self.position.with_label_values(&labels),
            committed_offset: self.committed_offset.with_label_values(&labels),
            lag_records: self.lag_records.with_label_values(&labels),
            absorb_remaining_records: self.absorb_remaining_records.with_label_values(&labels),
            window_seconds: self.window_seconds.with_label_values(&labels),
            skipped: self.skipped.with_label_values(&labels),
            families: self.clone(),
            labels,
        }
    }
}

impl LogMetrics {
    fn new(catalogue: &mut Catalogue) -> Self {
        Self {
            lookup_seconds: catalogue.histogram(
                "onced_log_lookup_seconds",
                "How long a batch of lookups in the dedup log took.",
                &LOOKUP_BUCKETS,
            ),
            write_seconds: catalogue.histogram(
                "onced_log_write_seconds",
                "How long a write batch to the dedup log took.",
                &WRITE_BUCKETS,
            ),
            entries: catalogue.gauge("onced_log_entries", "Entries in the dedup log, estimated."),
            bytes: catalogue.gauge("onced_log_bytes", "Bytes of the dedup log on disk."),
            expired: catalogue.counter(
                "onced_log_expired_total",
                "Entries that were dropped after their window.",
            ),
        }
    }
}

impl TransactionMetrics {
    fn new(catalogue: &mut Catalogue) -> Self {
        let ended = catalogue.counters(
            "onced_transactions_total",
            "Transactions of exactly-once routes, by how they ended.",
            &["result"],
        );
        Self {
            ended: Counters::new(&ended, &[]),
            seconds: catalogue.histogram(
                "onced_transaction_seconds",
                "From the end of collecting to the answer of the broker.",
                &TRANSACTION_BUCKETS,
            ),
        }
    }
}

// In seconds. Each ends where an operator must act, not where the values end.
const HANDLER_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
const END_TO_END_BUCKETS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 600.0];
const LOOKUP_BUCKETS: [f64; 13] = [
    0.000_01, 0.000_025, 0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1,
];
const TRANSACTION_BUCKETS: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
const WRITE_BUCKETS: [f64; 13] =
    [0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];
const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
/// What `ttl` is chosen by.
const DISTANCE_BUCKETS: [f64; 15] = [
    1.0,
    5.0,
    15.0,
    MINUTE,
    5.0 * MINUTE,
    15.0 * MINUTE,
    HOUR,
    3.0 * HOUR,
    6.0 * HOUR,
    12.0 * HOUR,
    DAY,
    2.0 * DAY,
    4.0 * DAY,
    7.0 * DAY,
    30.0 * DAY,
];

/// Registers families and keeps their names.
#[derive(Default)]
struct Catalogue {
    registry: Registry,
    names: Vec<String>,
}

impl Catalogue {
    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.into())))
    }

    fn histograms(&mut self, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.into()),
            &["route"],
        ))
    }

    /// CPU, memory and descriptors of the process, where the system tells them.
    fn process(&mut self) {
        #[cfg(target_os = "linux")]
        self.register(prometheus::process_collector::ProcessCollector::for_self());
    }

    fn add<C: Collector + Clone + 'static>(&mut self, family: prometheus::Result<C>) -> C {
        let family = family.expect("a family of the catalogue has a valid name and valid labels");
        self.register(family.clone());
        family
    }

    fn register(&mut self, collector: impl Collector + 'static) {
        self.names.extend(collector.desc().iter().map(|desc| desc.fq_name.clone()));
        self.registry
            .register(Box::new(collector))
            .expect("a family of the catalogue is registered once");
    }
}

#[cfg(test)]
mod tests;
