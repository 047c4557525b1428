//! The places for connections, and who must leave when they are all taken.
//!
//! Owns: one place for each open connection, and the order in which they have waited.
//! Never: refuses a newcomer. It may be the probe.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// At most `max` places.
pub(super) struct Connections {
    max: usize,
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    /// Counts what happens; so it is a clock that orders, and the ids of places as well.
    now: u64,
    taken: HashMap<u64, Taken>,
}

struct Taken {
    /// A request is complete and its answer is not.
    busy: bool,
    /// Since when it is so.
    since: u64,
    /// Dropping it tells the connection to leave.
    _leave: oneshot::Sender<()>,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { max, places: Arc::default() }
    }

    /// Takes a place, if need be that of the connection that has waited longest without a
    /// complete request.
    pub(super) fn enter(&self) -> Place {
        let (leave, evicted) = oneshot::channel();
        let mut places = lock(&self.places);
        while places.taken.len() >= self.max.max(1) {
            places.evict_one();
        }
        let id = places.tick();
        places.taken.insert(id, Taken { busy: false, since: id, _leave: leave });
        drop(places);
        Place { id, evicted, places: Arc::clone(&self.places) }
    }
}

impl Places {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Who is being answered leaves only when everybody is.
    fn evict_one(&mut self) {
        let longest = self.taken.iter().min_by_key(|(_, taken)| (taken.busy, taken.since));
        if let Some(id) = longest.map(|(id, _)| *id) {
            self.taken.remove(&id);
        }
    }

    fn set(&mut self, id: u64, busy: bool) {
        let since = self.tick();
        if let Some(taken) = self.taken.get_mut(&id) {
            (taken.busy, taken.since) = (busy, since);
        }
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place for one connection; dropping it makes room.
pub(super) struct Place {
    id: u64,
    evicted: oneshot::Receiver<()>,
    places: Arc<Mutex<Places>>,
}

impl Place {
    /// Returns when the connection must leave. To be awaited once.
    pub(super) async fn evicted(&mut self) {
        let _ = (&mut self.evicted).await;
    }

    /// For the one who answers on this connection.
    pub(super) fn turns(&self) -> Turns {
        Turns { id: self.id, places: Arc::clone(&self.places) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places).taken.remove(&self.id);
    }
}

pub(super) struct Turns {
    id: u64,
    places: Arc<Mutex<Places>>,
}

impl Turns {
    /// From a complete request to its answer: held so long, the connection does not wait.
    pub(super) fn take(&self) -> Turn {
        lock(&self.places).set(self.id, true);
        Turn { id: self.id, places: Arc::clone(&self.places) }
    }
}

pub(super) struct Turn {
    id: u64,
    places: Arc<Mutex<Places>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.places).set(self.id, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &mut Place) -> bool {
        place.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn evicted(places: &mut [Place]) -> Vec<bool> {
        places.iter_mut().map(is_evicted).collect()
    }

    #[test]
    fn who_has_waited_longest_leaves_first() {
        let connections = Connections::new(2);
        let mut places: Vec<Place> = (0..4).map(|_| connections.enter()).collect();
        assert_eq!(evicted(&mut places), [true, true, false, false]);
    }

    #[test]
    fn an_answer_starts_the_wait_anew() {
        let connections = Connections::new(2);
        let mut places: Vec<Place> = (0..2).map(|_| connections.enter()).collect();
        drop(places[0].turns().take());
        let _third = connections.enter();
        assert_eq!(evicted(&mut places), [false, true]);
    }

    #[test]
    fn who_is_being_answered_stays_as_long_as_anybody_waits() {
        let connections = Connections::new(2);
        let mut places: Vec<Place> = (0..2).map(|_| connections.enter()).collect();
        let turns: Vec<Turn> = places.iter().map(|place| place.turns().take()).collect();
        let mut third = connections.enter();
        assert_eq!(evicted(&mut places), [true, false], "all were busy");
        let _fourth = connections.enter();
        assert_eq!(evicted(&mut places), [true, false]);
        assert!(is_evicted(&mut third));
        drop(turns);
    }

    #[test]
    fn who_leaves_makes_room() {
        let connections = Connections::new(1);
        drop(connections.enter());
        let mut second = connections.enter();
        assert!(!is_evicted(&mut second));
        assert_eq!(lock(&connections.places).taken.len(), 1);
    }
}
