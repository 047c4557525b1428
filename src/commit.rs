//! Settlement: what is written down when a record needs no more work.
//!
//! Owns: the contiguous frontier of a partition (`frontier`, pure), the metadata of committed
//! offsets (`offsets`, pure) dead letters (`letters`, pure) and the producer that sends them (`producer`).
//! Never: decides a verdict or calls a handler.

pub mod frontier;
pub mod letters;
pub mod offsets;
pub mod producer;
pub mod transaction;

pub use frontier::Frontier;
