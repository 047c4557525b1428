//! Transactions: outputs, letters and the offsets of their records become visible together or not
//! at all.
//!
//! ```text
//! worker:      decide --> collect --> seal --------------------------------> answer --> log
//! transactor:                         begin, outputs, offsets, high water, commit
//! ```
//!
//! A worker collects in memory and hands over what is sealed; one transaction is under way while
//! the next is collected. Only the answer lets the log follow.
//!
//! What is copied of a record that is passed on, from the client's fetch buffer to its send buffer:
//!
//! | bytes | copies | why |
//! | --- | --- | --- |
//! | payload | 1 | out of the fetch buffer: a record that waits must not hold a whole fetch |
//! | key | 2 | the same, and librdkafka keeps its own key for the partitioner |
//! | headers | 2 | the same, and librdkafka has no call that borrows them |
//! | the two headers of ours | 2 | written as text, then into librdkafka's list |
//!
//! The payload is sent from the record's own buffer (see `client`). With compression, librdkafka
//! reads all of it once more.
//!
//! Owns: what is in a transaction and how it ended. Never: decides what is sent, or writes the
//! log.

mod client;
pub mod leftovers;
pub mod phase;
pub mod transactor;

use std::sync::Arc;

use super::letters::Letter;
use crate::identity::Identity;
use crate::record::{Epoch, Partition, Record};
use crate::source::Position;

/// One transaction, sealed.
#[derive(Debug)]
pub struct Job {
    /// Comes back with the answer.
    pub number: u64,
    /// In the order in which they are to be written.
    pub outputs: Vec<Output>,
    /// What the group and its companion commit, each under the epoch in which it was decided.
    pub positions: Vec<(Epoch, Position)>,
}

impl Job {
    /// The partitions whose offsets it moves.
    fn moved(&self) -> impl Iterator<Item = Partition> {
        self.positions.iter().map(|(_, position)| position.partition.clone())
    }
}

/// One record to write.
#[derive(Debug)]
pub enum Output {
    /// An input record, passed on to the topic of its route.
    Record { route: usize, record: Record, identity: Option<Identity> },
    /// To the dead-letter topic.
    Letter { topic: Arc<str>, letter: Box<Letter> },
}

impl Output {
    /// The input record that it comes from.
    #[must_use]
    pub fn source(&self) -> &Record {
        match self {
            Self::Record { record, .. } => record,
            Self::Letter { letter, .. } => &letter.record,
        }
    }
}

/// How a transaction ended.
#[derive(Debug)]
pub enum Ended {
    /// All of it is visible.
    Committed,
    /// Nothing of it is or will be visible.
    Aborted {
        reason: String,
        /// Places in [`Job::outputs`] that the broker refused for their size; a broker refuses
        /// whole batches, so they may be innocent.
        refused: Vec<usize>,
    },
    /// The broker did not say. Whoever enters the partitions anew finds out.
    Unknown { reason: String },
    /// Somebody else uses this `transactional.id`: a second daemon on a copy of the directory.
    Hijacked { reason: String },
}

/// Whoever brings transactions to the broker, one after another.
///
/// Where a transaction did not commit, the answer comes when the next can begin: its producer is a
/// new one, so that nothing of the old one can come late.
pub trait Transactions: Send {
    /// Starts it and returns at once. The answer is `Event::Transaction` with its number.
    fn start(&mut self, job: Job);

    /// To be called from time to time: gives up a call that does not end. Its transaction is then
    /// answered as any other, with [`Ended::Unknown`].
    fn watch(&mut self);
}
