//! Identities whose record is with a handler, and the records that wait for its answer.
//!
//! A record is decided only when no other with its identity is in flight, whatever its time or
//! epoch: the answer would not be final. So this outlives epochs.
//!
//! Owns: who waits for whom. Never: decides.

use std::collections::VecDeque;
use std::collections::hash_map::Entry as Slot;

use rustc_hash::FxHashMap;

use crate::dedup::{Entry, Shard};
use crate::identity::Identity;

/// Records in flight by identity; `W` is what waits.
#[derive(Debug)]
pub struct InFlight<W> {
    flights: FxHashMap<(Shard, Identity), Flight<W>>,
}

/// One identity in flight.
#[derive(Debug)]
pub struct Flight<W> {
    /// What the log held when the record took off; it stands where the record is not handled.
    pub prior: Option<Entry>,
    pub waiting: VecDeque<W>,
}

impl<W> Default for InFlight<W> {
    fn default() -> Self {
        Self { flights: FxHashMap::default() }
    }
}

impl<W> InFlight<W> {
    /// Puts a record behind the one in flight, or gives it back where there is none.
    ///
    /// # Errors
    /// The record itself: it can be decided now.
    pub fn wait(&mut self, shard: Shard, identity: Identity, record: W) -> Result<(), W> {
        match self.flights.get_mut(&(shard, identity)) {
            Some(flight) => {
                flight.waiting.push_back(record);
                Ok(())
            }
            None => Err(record),
        }
    }

    /// A record takes off, with those that waited behind an earlier one.
    pub fn take_off(&mut self, shard: Shard, identity: Identity, flight: Flight<W>) {
        match self.flights.entry((shard, identity)) {
            Slot::Vacant(slot) => drop(slot.insert(flight)),
            Slot::Occupied(_) => unreachable!("an identity has one record in flight"),
        }
    }

    /// The record is settled or given up; the caller decides those that waited.
    pub fn land(&mut self, shard: Shard, identity: Identity) -> Option<Flight<W>> {
        self.flights.remove(&(shard, identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_wait_in_order_behind_the_one_in_flight() {
        let mut inflight = InFlight::default();
        let (shard, identity) = (Shard(1), Identity([1; 16]));
        assert_eq!(inflight.wait(shard, identity, 1), Err(1));
        inflight.take_off(shard, identity, Flight { prior: None, waiting: VecDeque::new() });
        for record in [2, 3] {
            assert_eq!(inflight.wait(shard, identity, record), Ok(()));
        }
        assert_eq!(inflight.wait(Shard(2), identity, 4), Err(4));
        let flight = inflight.land(shard, identity).unwrap();
        assert_eq!(flight.waiting, [2, 3]);
        assert!(inflight.land(shard, identity).is_none());
    }
}
