//! What runs for a fresh record: the [`Handler`] trait, the ticket to it and its answer.
//!
//! Owns: [`Claim`], [`Outcome`], [`Handler`] and one file for each handler that comes with onced.
//! Never: decides whether a record is handled, counts attempts, or settles.

mod encode;
pub mod http;
pub mod kafka;
pub mod retry;
pub mod stdout;

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::identity::Identity;
use crate::record::{Epoch, Record, Timestamp};

/// The only ticket to a handler. Made by the pipeline for a record that is to be handled, and
/// ends in exactly one settlement.
#[must_use = "a claim that is dropped leaves its record unsettled"]
#[derive(Debug)]
pub struct Claim {
    pub(crate) record: Record,
    pub(crate) identity: Option<Identity>,
    pub(crate) client_key: Option<Bytes>,
    /// `idempotency_key = "client"`: what another system is given is the client's own.
    pub(crate) gives_client_key: bool,
    pub(crate) check: crate::identity::Check,
    pub(crate) time: Timestamp,
    pub(crate) epoch: Epoch,
    pub(crate) shard: crate::dedup::Shard,
    pub(crate) attempt: u32,
}

impl Claim {
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What names the logical message. `None`: the record has none (`missing = "process"`).
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// The idempotency key as the client sent it, where it came from the record.
    pub fn client_key(&self) -> Option<&[u8]> {
        self.client_key.as_deref()
    }

    /// What to give to another system as its `Idempotency-Key`: the same at every attempt, and
    /// for every record with this identity. The record's coordinates where it has no identity.
    pub fn idempotency_key(&self) -> Cow<'_, str> {
        let client = self.client_key().filter(|_| self.gives_client_key);
        match (client.map(str::from_utf8), self.identity) {
            (Some(Ok(key)), _) => key.into(),
            (_, Some(identity)) => identity.to_string().into(),
            (_, None) => self.record.coordinates().into(),
        }
    }

    /// Counts calls for this record in this process, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// What a handler says of one claim. The variant says what happens next.
#[derive(Debug)]
pub enum Outcome {
    /// Handled: the record is settled and its identity entered into the log.
    Done,
    /// Call again later, with the same key; after the last attempt the record is a dead letter.
    Retry {
        error: BoxError,
        /// The least time until the next call; the backoff applies where it is longer.
        after: Option<Duration>,
    },
    /// This record can never be handled: it becomes a dead letter at once.
    Reject(BoxError),
    /// Nothing can be handled any more: the daemon stops with exit code 1. The record stays
    /// unsettled.
    Fatal(BoxError),
}

pub type BoxError = Box<dyn Error + Send + Sync>;

impl Outcome {
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::Retry { error: error.into(), after: None }
    }

    pub fn reject(error: impl Into<BoxError>) -> Self {
        Self::Reject(error.into())
    }

    pub fn fatal(error: impl Into<BoxError>) -> Self {
        Self::Fatal(error.into())
    }
}

/// What runs for each fresh record. A panic counts as [`Outcome::Retry`] for its claims.
///
/// Every attempt for a message carries the same [`Claim::idempotency_key`]: pass it on.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles one claim.
    async fn handle(&self, claim: &Claim) -> Outcome;

    /// Handles several claims with one call; answers one outcome for each, in their order.
    /// A missing outcome counts as [`Outcome::Retry`].
    async fn handle_batch(&self, claims: &[Claim]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(claims.len());
        for claim in claims {
            outcomes.push(self.handle(claim).await);
        }
        outcomes
    }

    /// The most claims in one call, at least 1. Above 1 the pipeline passes what waits.
    fn batch_max(&self) -> usize {
        1
    }

    /// False where [`Claim::client_key`] is never asked for: then nobody looks for it.
    fn wants_client_key(&self) -> bool {
        true
    }

    /// True where the handler works through a batch in its order and stops at the first claim
    /// that is not Done. Calls are then made one after another, for each worker.
    fn keeps_order(&self) -> bool {
        false
    }
}
