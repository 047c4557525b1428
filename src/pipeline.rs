//! The way of a record, and the only place that knows the order of the stages.
//!
//! ```text
//! poll loop (one thread)                       workers (threads)               handlers (tokio)
//!   source --> batches --[lane]--> identity --> look-up --> verdict --> dispatch --> call
//!     ^                                                      |                       |
//!     |                                                      v                       v
//!     +---- offsets to commit <---- log written <---- settlement <------------- outcome
//! ```
//!
//! Owns: the poll loop, the hand-over of partitions and the end. Never: decides a verdict (see
//! `dedup`) or where a partition starts (see `assign`).

pub mod assign;
mod board;
mod dispatch;
mod enter;
mod inflight;
pub mod lane;
mod poller;
mod route;
#[cfg(test)]
mod simulation;
pub mod standing;
mod watch;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use self::assign::Refusal;
pub use self::board::{Board, Heartbeats};
pub use self::dispatch::{Calls, Spawned};
use self::enter::Entered;
pub use self::poller::run;
pub use self::route::Route;
use self::worker::Event;
use crate::commit::producer::Letters;
use crate::commit::transaction::leftovers::Leftovers;
use crate::commit::transaction::phase::Progress;
use crate::config::Config;
use crate::dedup::{Log, LogError};
use crate::handler::BoxError;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::record::{Epoch, Partition};
use crate::shutdown::Shutdown;
use crate::source::Position;
use crate::source::companion::Companion;
use crate::source::membership::Membership;

/// What all threads of the pipeline share.
pub struct Shared {
    pub config: Arc<Config>,
    pub routes: Vec<Arc<Route>>,
    /// Empty until the broker has told it.
    pub kept: Arc<std::sync::OnceLock<Kept>>,
    pub log: Arc<dyn Log>,
    /// `None`: no route has a dead-letter topic.
    pub letters: Option<Arc<dyn Letters>>,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub board: Arc<Board>,
    pub heartbeats: Arc<Heartbeats>,
    pub calls: Arc<dyn Calls>,
    pub shutdown: Shutdown,
    /// The disk is nearly full: nothing is consumed until it is not.
    pub hold: Arc<AtomicBool>,
    pub commit_interval: Duration,
    /// `None`: no route has transactions.
    pub transacting: Option<Transacting>,
    /// The workers, to wake them when a permit of another became free.
    pub workers: std::sync::OnceLock<Vec<Sender<Event>>>,
}

/// What all transactions of the process have in common.
pub struct Transacting {
    /// Of the producers; each worker's `transactional.id` is added.
    pub client: rdkafka::ClientConfig,
    /// The group and the data directory: another copy of the directory is fenced by this one.
    pub id: String,
    /// `transaction.timeout.ms`.
    pub timeout: Duration,
    pub membership: Membership,
    pub companion: Arc<Companion>,
    pub leftovers: Leftovers,
    /// By worker.
    pub progress: Vec<Progress>,
}

/// For how many milliseconds a topic can be read again, where it is limited.
pub type Kept = rustc_hash::FxHashMap<Arc<str>, i64>;

impl Shared {
    /// The route that a topic belongs to.
    fn route_of(&self, topic: &str) -> Option<usize> {
        self.routes.iter().position(|route| route.config.topics.iter().any(|name| **name == *topic))
    }

    /// Tells the other workers that a permit is free; they may have been short of one.
    fn wake_others(&self, index: usize) {
        let workers = self.workers.get().map_or(&[][..], Vec::as_slice);
        for (at, worker) in workers.iter().enumerate() {
            if at != index {
                // A worker is gone only when the daemon is going.
                let _ = worker.send(Event::Wake);
            }
        }
    }

    fn held(&self) -> bool {
        self.hold.load(Ordering::Relaxed)
    }
}

/// What the poll loop is told.
pub(crate) enum Command {
    Commit(Vec<(Epoch, Position)>),
    /// A partition is drained; `None`: there is nothing new to commit.
    Drained {
        partition: Partition,
        epoch: Epoch,
        position: Option<Position>,
    },
    /// Everything is known to start these partitions.
    Entered {
        rebalance: u64,
        result: Result<Vec<Entered>, Failure>,
    },
    /// The transaction of these partitions did not commit: they are to be entered anew.
    Reenter(Vec<(Partition, Epoch)>),
    /// Everything is known to start these partitions anew.
    Reentered {
        ticket: u64,
        result: Result<Vec<Entered>, Failure>,
    },
    Fail(Failure),
}

/// Why the pipeline ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "route {route}: {coordinates} has none of the keys in identity.key, and identity.missing is \"fail\""
    )]
    MissingIdentity { route: String, coordinates: String },
    #[error("route {route}: the handler gave up at {coordinates}")]
    Handler { route: String, coordinates: String, source: BoxError },
    #[error("kafka: {action}")]
    Kafka { action: String, source: rdkafka::error::KafkaError },
    /// The daemon starts the partition anew, which goes on or refuses.
    #[error("{partition}: the next offset is no longer in the topic")]
    OutOfRange { partition: Partition },
    #[error(
        "another daemon uses the transactional id of worker {worker}: is log.dir a copy of a directory that is in use? start each daemon with a directory of its own ({reason})"
    )]
    Hijacked { worker: usize, reason: String },
    #[error("a worker thread panicked; this is a defect of onced")]
    Panicked,
}
