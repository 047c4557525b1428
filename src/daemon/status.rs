//! What `/status` shows.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::commit::transaction::phase::Progress;
use crate::config::{Config, HandlerKind};
use crate::metrics::{Label as _, Metrics, VerdictLabel};
use crate::pipeline::{Board, Route};
use crate::readiness::Readiness;

pub(super) struct Source {
    pub(super) config: Arc<Config>,
    pub(super) routes: Vec<Arc<Route>>,
    pub(super) board: Arc<Board>,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<Metrics>,
    /// Of the transactions, by worker.
    pub(super) progress: Vec<Progress>,
}

impl Source {
    pub(super) fn show(&self) -> Value {
        let reasons = self.readiness.ready().err().unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "group": self.config.kafka.group,
            "ready": reasons.is_empty(),
            "not_ready_because": reasons,
            "routes": self.routes.iter().map(|route| route_status(route)).collect::<Vec<_>>(),
            "partitions": self.board.partitions(),
            "transactions": self
                .progress
                .iter()
                .map(|at| {
                    let (phase, lasted) = at.get();
                    json!({ "phase": phase.name(), "lasted_ms": lasted.as_millis() as u64 })
                })
                .collect::<Vec<_>>(),
            "log": {
                "dir": self.config.log.dir.display().to_string(),
                "entries": self.metrics.log.entries.get(),
                "bytes": self.metrics.log.bytes.get(),
                "disk_free_bytes": super::disk::free(&self.config.log.dir).ok(),
            },
        })
    }
}

fn route_status(route: &Route) -> Value {
    let config = &route.config;
    let records: serde_json::Map<String, Value> = VerdictLabel::ALL
        .iter()
        .map(|verdict| (verdict.text().to_owned(), route.metrics.records.get(*verdict).into()))
        .collect();
    json!({
        "name": &*config.name,
        "topics": config.topics.iter().map(|topic| &**topic).collect::<Vec<_>>(),
        "handler": match &config.handler {
            HandlerKind::Stdout => "stdout",
            HandlerKind::Http(_) => "http",
            HandlerKind::Kafka(_) => "kafka",
            HandlerKind::Registered(kind) => kind,
        },
        "paused_because": route.pause_reason(),
        "in_flight": route.metrics.in_flight.get(),
        "records": records,
    })
}
