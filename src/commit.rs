//! Settlement: what is written down when a record needs no more work.
//!
//! Owns: the contiguous frontier of a partition (`frontier`, pure), the metadata of committed
//! offsets (`offsets`, pure), dead letters (`letters`, pure), the producer that sends them (`producer`)
//! and transactions (`transaction`).
//! Never: decides a verdict or calls a handler.

pub mod frontier;
mod headers;
pub mod letters;
pub mod offsets;
pub mod producer;
pub mod transaction;

pub use frontier::Frontier;
