//! When a record is tried again: the delay between two calls, as a pure function.
//!
//! Owns: [`Policy`] and [`Backoff`].
//! Never: sleeps, reads a clock or draws a random number (`random` is a parameter).

use std::time::Duration;

/// How often a record is given to its handler, and how long it waits in between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Calls in all, the first included. At least 1.
    pub attempts: u32,
    pub backoff: Backoff,
}

/// The wait grows from `first` by `factor` with every call, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub first: Duration,
    /// At least 1.0: a wait never gets shorter.
    pub factor: f64,
    /// At least `first`.
    pub max: Duration,
    /// Spread the calls over the second half of the wait, so that records that failed together
    /// do not come back together.
    pub jitter: bool,
}

/// A downstream system may ask for a longer wait, but not park a partition for a day.
pub const AFTER_MAX: Duration = Duration::from_secs(5 * 60);

impl Default for Policy {
    fn default() -> Self {
        Self { attempts: 5, backoff: Backoff::default() }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: true,
        }
    }
}

impl Policy {
    /// The wait before the next call, after `attempt` calls; `None` when there is no next call.
    ///
    /// `after` is what the downstream system asked for: the longer wait counts. `random` lies
    /// between 0 and 1 and decides where in the jitter's range the wait ends.
    #[must_use]
    pub fn delay(&self, attempt: u32, after: Option<Duration>, random: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let backoff = self.backoff.delay(attempt, random);
        Some(backoff.max(after.unwrap_or_default().min(AFTER_MAX)))
    }
}

impl Backoff {
    fn delay(&self, attempt: u32, random: f64) -> Duration {
        let whole = self.whole(attempt);
        if !self.jitter {
            return whole;
        }
        let half = whole / 2;
        let spread = (whole - half).as_secs_f64() * random.clamp(0.0, 1.0);
        half + Duration::try_from_secs_f64(spread).unwrap_or_default().min(whole - half)
    }

    fn whole(&self, attempt: u32) -> Duration {
        let steps = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let growth = self.factor.powi(steps).min(f64::MAX);
        // What is too large for a `Duration` is larger than `max`.
        Duration::try_from_secs_f64(self.first.as_secs_f64() * growth)
            .map_or(self.max, |grown| grown.min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn policy(attempts: u32, jitter: bool) -> Policy {
        let backoff = Backoff { first: ms(100), factor: 2.0, max: ms(1000), jitter };
        Policy { attempts, backoff }
    }

    #[test]
    fn the_wait_doubles_up_to_its_maximum() {
        let policy = policy(10, false);
        let waits: Vec<_> =
            (1..=6).filter_map(|attempt| policy.delay(attempt, None, 0.5)).collect();
        assert_eq!(waits, [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]);
    }

    #[test]
    fn the_last_attempt_is_followed_by_none() {
        let policy = policy(3, true);
        assert!(policy.delay(2, None, 0.0).is_some());
        assert_eq!(policy.delay(3, None, 0.0), None);
        assert_eq!(policy.delay(4, Some(ms(1)), 0.0), None);
    }

    #[test]
    fn a_policy_of_one_attempt_never_calls_again() {
        assert_eq!(policy(1, false).delay(1, Some(ms(5)), 0.5), None);
    }

    #[test]
    fn jitter_reaches_from_half_to_the_whole() {
        let policy = policy(3, true);
        assert_eq!(policy.delay(1, None, 0.0), Some(ms(50)));
        assert_eq!(policy.delay(1, None, 0.5), Some(ms(75)));
        assert_eq!(policy.delay(1, None, 1.0), Some(ms(100)));
    }

    #[test]
    fn the_largest_numbers_end_at_the_maximum() {
        let backoff = Backoff {
            first: Duration::MAX,
            factor: f64::INFINITY,
            max: Duration::MAX,
            jitter: true,
        };
        let policy = Policy { attempts: u32::MAX, backoff };
        assert_eq!(policy.delay(u32::MAX - 1, None, 1.0), Some(Duration::MAX));
        assert!(policy.delay(u32::MAX - 1, None, f64::NAN) >= Some(Duration::MAX / 2));
    }

    #[test]
    fn a_longer_wait_that_was_asked_for_counts_for_at_most_five_minutes() {
        let policy = policy(3, false);
        assert_eq!(policy.delay(1, Some(ms(99)), 0.0), Some(ms(100)));
        assert_eq!(policy.delay(1, Some(ms(2000)), 0.0), Some(ms(2000)));
        assert_eq!(policy.delay(1, Some(Duration::MAX), 0.0), Some(AFTER_MAX));
    }

    prop_compose! {
        fn any_backoff()(
            first in 1u64..10_000_000,
            more in 0u64..100_000_000,
            factor in 1.0f64..=100.0,
            jitter: bool,
        ) -> Backoff {
            Backoff { first: ms(first), factor, max: ms(first + more), jitter }
        }
    }

    proptest! {
        #[test]
        fn a_wait_lies_between_half_of_the_first_and_the_maximum(
            backoff in any_backoff(),
            attempt in 1..u32::MAX,
            random in 0.0f64..=1.0,
        ) {
            let policy = Policy { attempts: u32::MAX, backoff };
            let wait = policy.delay(attempt, None, random);
            prop_assert!(wait >= Some(backoff.first / 2));
            prop_assert!(wait <= Some(backoff.max));
        }

        #[test]
        fn a_wait_never_gets_shorter_with_more_attempts(
            backoff in any_backoff(),
            attempt in 1..1_000u32,
            random in 0.0f64..=1.0,
        ) {
            let policy = Policy { attempts: u32::MAX, backoff };
            let next = policy.delay(attempt + 1, None, random);
            prop_assert!(next >= policy.delay(attempt, None, random));
        }

        #[test]
        fn what_was_asked_for_only_prolongs_a_wait(
            backoff in any_backoff(),
            attempt in 1..100u32,
            asked in 0u64..1_000_000_000,
        ) {
            let policy = Policy { attempts: u32::MAX, backoff };
            let without = policy.delay(attempt, None, 0.3);
            let with = policy.delay(attempt, Some(ms(asked)), 0.3);
            prop_assert_eq!(with, without.max(Some(ms(asked).min(AFTER_MAX))));
        }

        #[test]
        fn no_number_makes_it_panic(
            attempts: u32,
            attempt: u32,
            first: Duration,
            max: Duration,
            factor in prop::num::f64::ANY,
            random in prop::num::f64::ANY,
        ) {
            let backoff = Backoff { first, factor, max, jitter: true };
            let _ = Policy { attempts, backoff }.delay(attempt, None, random);
        }
    }
}
