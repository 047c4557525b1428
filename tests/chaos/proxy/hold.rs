//! Requests that are held back: who holds them, what becomes of them, and the broker's answers.
//!
//! Owns: the fate of held requests. Never: sockets; the link that a request came in on sends it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::Shared;
use super::wire::{Head, end_txn_error};

/// How long the broker has for its answer to a request that was let go.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Holds requests until it is told to let them go to the broker, late. Dropped, they never go.
#[must_use = "dropped, the held requests never reach the broker"]
pub struct Hold {
    pub(super) shared: Arc<Shared>,
    pub(super) cell: Arc<Cell>,
}

/// A request that reached the broker late.
#[derive(Clone, Debug)]
pub struct Late {
    pub request: Head,
    /// `None` where the broker closed the connection or said nothing in 10 seconds. Of an `EndTxn`
    /// the error, zero for none; of anything else zero.
    pub error: Option<i16>,
}

impl Hold {
    /// What is held now.
    pub fn held(&self) -> Vec<Head> {
        self.cell.lock().requests.iter().map(|held| held.request.clone()).collect()
    }

    /// Waits until something is held. False when the time is over.
    pub fn wait(&self, timeout: Duration) -> bool {
        let seen = |state: &State| !state.requests.is_empty();
        self.cell.wait_until(Instant::now() + timeout, seen)
    }

    /// Sends everything that is held to the broker, each on the connection that it came in on,
    /// and waits for the answers.
    pub fn release(self) -> Vec<Late> {
        self.cell.decide(Fate::Send);
        let answered = |state: &State| state.requests.iter().all(|held| held.answer.is_some());
        self.cell.wait_until(Instant::now() + 2 * ANSWER_TIMEOUT, answered);
        let state = self.cell.lock();
        let late = state.requests.iter().map(|held| Late {
            request: held.request.clone(),
            error: held.answer.clone().flatten().and_then(|answer| error(&held.request, &answer)),
        });
        late.collect()
    }
}

fn error(request: &Head, answer: &[u8]) -> Option<i16> {
    if request.end_txn.is_some() { end_txn_error(request.api_version, answer) } else { Some(0) }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.cell.decide(Fate::Discard);
        self.shared.forget_hold(&self.cell);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Undecided,
    Send,
    Discard,
}

/// What a hold and the links that hold for it have in common.
pub(super) struct Cell {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    fate: Fate,
    requests: Vec<Held>,
}

struct Held {
    request: Head,
    /// Set once: `Some(None)` where none will come.
    answer: Option<Option<Vec<u8>>>,
}

impl Cell {
    pub fn new() -> Arc<Self> {
        let state = State { fate: Fate::Undecided, requests: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Notes a request that is held from now on; returns its number.
    pub fn add(&self, request: Head) -> usize {
        let mut state = self.lock();
        state.requests.push(Held { request, answer: None });
        self.changed.notify_all();
        state.requests.len() - 1
    }

    /// The first decision counts.
    pub fn decide(&self, fate: Fate) {
        let mut state = self.lock();
        if state.fate == Fate::Undecided {
            state.fate = fate;
            self.changed.notify_all();
        }
    }

    pub fn undecided(&self) -> bool {
        self.lock().fate == Fate::Undecided
    }

    pub fn wait_for_fate(&self) -> Fate {
        let undecided = |state: &mut State| state.fate == Fate::Undecided;
        self.changed.wait_while(self.lock(), undecided).expect("nothing panics with it").fate
    }

    /// The first answer counts.
    pub fn answer(&self, number: usize, answer: Option<Vec<u8>>) {
        self.lock().requests[number].answer.get_or_insert(answer);
        self.changed.notify_all();
    }

    /// Returns also when no answer will come, and after [`ANSWER_TIMEOUT`].
    pub fn wait_for_answer(&self, number: usize) {
        let answered = |state: &State| state.requests[number].answer.is_some();
        self.wait_until(Instant::now() + ANSWER_TIMEOUT, answered);
    }

    fn wait_until(&self, deadline: Instant, holds: impl Fn(&State) -> bool) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| !holds(state));
        !waited.expect("nothing panics with it").1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it")
    }
}
