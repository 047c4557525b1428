//! The dedup log: which identities were handled, and what that says of the next record.
//!
//! The log is a materialised view of the input partitions; Kafka is its write-ahead log. What a
//! crash takes from it is read again from the topic.
//!
//! Owns: the verdict (`verdict`, pure), time (`expiry`, pure), the bytes on disk (`entry`,
//! `shard`, `acts`), the seam to whoever keeps them (`log`) and the database (`store`, the only place
//! that names RocksDB).
//! Never: calls a handler, talks to a broker, or knows what a policy does with a verdict.

pub mod acts;
pub mod entry;
pub mod expiry;
pub mod log;
pub mod shard;
pub mod store;
pub mod verdict;

pub use entry::Entry;
pub use log::{Batch, Log};
pub use shard::{Shard, State};
pub use store::{LogError, Store};
pub use verdict::{Facts, Verdict};
