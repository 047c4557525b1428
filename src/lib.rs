//! onced handles every Kafka message once, however often it is delivered.
//!
//! # The promise
//!
//! Each message has an *identity*: an idempotency key, or a fingerprint of its payload. Within the
//! window (`ttl`) a handler runs for one record of an identity; the others are suppressed. With
//! outside handlers that is at least once with the same `Idempotency-Key` at every attempt: a
//! crash can run again what was with the handler, and after a move to another instance what was
//! settled since the last commit or beyond the frontier, at most [`pipeline::lane::RECORDS_MAX`]
//! records of a partition.
//! Nothing is lost: an offset is committed only when all before it is settled in the log.
//!
//! # The way of a record
//!
//! ```text
//! Kafka --> source --> identity --> dedup --> handler --> commit --> Kafka
//!           poll       extract      verdict   outcome     settle, position,
//!           convert    digest       claim     retry       offsets
//! ```
//!
//! # Words
//!
//! | word | meaning |
//! | --- | --- |
//! | record | one Kafka message as delivered |
//! | identity | 128 bits that name the logical message |
//! | check | 32 bits over the payload: tells "same key, other payload" from a duplicate |
//! | entry | identity -> the first occurrence that was handled |
//! | shard | the part of the log that belongs to one input partition |
//! | position | every offset below it is settled |
//! | verdict | what the log says of a record |
//! | claim | the only ticket to a handler |
//! | settle | write down that a record needs no more work |
//! | letter | a record in the dead-letter topic; it settles the record that it came from |
//! | absorb | read a record into the log without handling it |
//! | epoch | one ownership period of a partition |
//!
//! # As a library
//!
//! ```no_run
//! use onced::handler::{Claim, Handler, Outcome};
//!
//! struct Charge;
//!
//! #[onced::async_trait]
//! impl Handler for Charge {
//!     async fn handle(&self, claim: &Claim) -> Outcome {
//!         // Pass `claim.idempotency_key()` on to whoever moves the money.
//!         match claim.record().payload() {
//!             Some(payload) if payload.len() < 1_000 => Outcome::Done,
//!             Some(_) => Outcome::reject("the payment is too large"),
//!             None => Outcome::Done,
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = onced::config::load(&onced::config::Sources {
//!     file: Some("onced.toml".as_ref()), // with handler.kind = "charge"
//!     env: onced::config::environment(),
//!     set: &[],
//!     handlers: &["charge".to_owned()],
//! })?;
//! onced::Consumer::builder(config).handler("charge", Charge).run()?;
//! # Ok(())
//! # }
//! ```

pub mod record;
pub mod clock;

pub mod source;
pub mod identity;
pub mod dedup;
pub mod handler;
pub mod commit;
pub mod pipeline;

pub mod config;
pub mod daemon;
pub mod admin;
pub mod metrics;
pub mod readiness;
pub mod shutdown;
pub mod logging;
pub mod check;
pub mod verify;
pub mod demo;
pub mod bench;
pub mod rewind;
pub mod cli;
pub mod fault;

pub use async_trait::async_trait;
pub use daemon::Consumer;
