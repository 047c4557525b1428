//! Waiting for a condition, never for a time.

use std::fmt::{Debug, Display};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the condition holds and returns what it saw: nothing for a `bool`, the value for an
/// `Option` or a `Result`.
///
/// # Panics
///
/// Panics with `what` and the last observation when the time is over.
#[track_caller]
pub fn wait_until<T: Observation>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> T,
) -> T::Value {
    let begun = Instant::now();
    loop {
        match condition().hold() {
            Ok(value) => return value,
            Err(seen) if begun.elapsed() > timeout => {
                panic!("waited {timeout:?} for: {what}; last seen: {seen}")
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Waits until the value is the expected one. The failure shows the last value.
///
/// # Panics
///
/// Panics with `what` and the last value when the time is over.
#[track_caller]
pub fn wait_until_eq<T: PartialEq + Debug>(
    what: &str,
    timeout: Duration,
    expected: T,
    mut value: impl FnMut() -> T,
) {
    wait_until(what, timeout, || {
        let seen = value();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}, expected {expected:?}")) }
    });
}

/// What a condition may answer.
pub trait Observation {
    type Value;

    /// The value if the condition holds, else what was seen instead.
    ///
    /// # Errors
    ///
    /// Fails while the condition does not hold.
    fn hold(self) -> Result<Self::Value, String>;
}

impl Observation for bool {
    type Value = ();

    fn hold(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not so".to_owned()) }
    }
}

impl<T> Observation for Option<T> {
    type Value = T;

    fn hold(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Observation for Result<T, E> {
    type Value = T;

    fn hold(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}
