//! The words that the integration tests are written in.
//!
//! ```text
//! Kafka (kafka, topic, message, produce, consume, offsets)   a real broker, and what tests do to it
//!   └ Broker (broker)                                        its process: scripts/kafka run
//! Daemon (daemon, metrics)                                   onced as its own process, as users run it
//! HttpService (http_service)                                 the outside world that a handler calls
//! payments                                                   input, the same for the same seed
//! wait_until (wait), process, http_get                       small tools
//! ```
//!
//! It blocks, in plain threads, so that a test reads from top to bottom. It knows nothing of onced's
//! library: what it sees of the daemon is what everybody sees. Nothing that it starts outlives the
//! test process, even when that is killed.

#![allow(dead_code, unused_imports, reason = "a vocabulary: not every word is in use everywhere")]

mod broker;
mod consume;
mod daemon;
mod http_get;
mod http_service;
mod kafka;
mod message;
mod metrics;
mod offsets;
mod payments;
mod process;
mod produce;
#[cfg(test)]
mod tests;
mod topic;
mod wait;

pub use daemon::{Daemon, DaemonBuilder, onced};
pub use http_get::{Reply, http_get};
pub use http_service::{HttpService, Request, Response};
pub use kafka::{Kafka, unique};
pub use message::{Message, OwnedRecord};
pub use metrics::Metrics;
pub use offsets::Committed;
pub use payments::{Payments, payment, payments};
pub use process::{signal, spawn, wait_exit};
pub use produce::OpenTransaction;
pub use topic::TopicBuilder;
pub use wait::{Observation, wait_until, wait_until_eq};
