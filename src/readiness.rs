//! Whether onced is ready, as guards: it is ready when no [`Latch`] is left.
//!
//! Owns: the latches and their reasons.
//! Never: has a flag that somebody could forget to set back. What is not ready holds a latch,
//! and a panic on its way drops the latch only with the part that held it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Cheap to clone; all clones are one. Ready at first: whoever starts up takes a latch.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    latches: Arc<Mutex<Latches>>,
}

#[derive(Debug, Default)]
struct Latches {
    next: u64,
    /// By age, so that the reasons stand in the order in which they came up.
    reasons: BTreeMap<u64, String>,
}

impl Readiness {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready for this reason until the latch is dropped. The reason is shown to an operator:
    /// `"partition payments/3 is absorbing"`.
    pub fn latch(&self, reason: impl Into<String>) -> Latch {
        let mut latches = self.lock();
        let id = latches.next;
        latches.next += 1;
        latches.reasons.insert(id, reason.into());
        drop(latches);
        Latch { id, readiness: self.clone() }
    }

    /// # Errors
    ///
    /// The reasons why not, the oldest first.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let latches = self.lock();
        if latches.reasons.is_empty() {
            return Ok(());
        }
        Err(latches.reasons.values().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Latches> {
        self.latches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reason not to be ready. Dropping it releases it.
#[must_use = "a latch that is dropped no longer holds readiness back"]
#[derive(Debug)]
pub struct Latch {
    id: u64,
    readiness: Readiness,
}

impl Latch {
    /// Changes the reason, for example to show progress. Holds readiness back again where it was
    /// released.
    pub fn set(&self, reason: impl Into<String>) {
        self.readiness.lock().reasons.insert(self.id, reason.into());
    }

    /// Lets go until the next reason is set: for what comes and goes in one place.
    pub fn release(&self) {
        self.readiness.lock().reasons.remove(&self.id);
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_the_last_latch_is_dropped() {
        let readiness = Readiness::new();
        assert_eq!(readiness.ready(), Ok(()));
        let first = readiness.latch("partition payments/3 is absorbing");
        let second = readiness.clone().latch("the broker is away");
        let both =
            vec!["partition payments/3 is absorbing".to_owned(), "the broker is away".to_owned()];
        assert_eq!(readiness.ready(), Err(both));
        drop(first);
        assert_eq!(readiness.ready(), Err(vec!["the broker is away".to_owned()]));
        drop(second);
        assert_eq!(readiness.ready(), Ok(()));
    }

    #[test]
    fn a_latch_keeps_its_place_when_its_reason_changes() {
        let readiness = Readiness::new();
        let first = readiness.latch("100 records to absorb");
        let _second = readiness.latch("b");
        first.set("40 records to absorb");
        assert_eq!(readiness.ready(), Err(vec!["40 records to absorb".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn a_released_latch_holds_back_again_with_its_next_reason() {
        let readiness = Readiness::new();
        let latch = readiness.latch("starting");
        latch.release();
        assert_eq!(readiness.ready(), Ok(()));
        latch.set("stopping");
        assert_eq!(readiness.ready(), Err(vec!["stopping".to_owned()]));
    }

    #[test]
    fn equal_reasons_are_two_latches() {
        let readiness = Readiness::new();
        let first = readiness.latch("a");
        let _second = readiness.latch("a");
        drop(first);
        assert_eq!(readiness.ready(), Err(vec!["a".to_owned()]));
    }
}
