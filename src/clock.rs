//! The only place that reads the wall clock, and the monotonic clock of the pipeline.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::record::Timestamp;

/// The wall clock, in milliseconds. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Timestamp {
    if let Some((wall, _)) = simulated::now() {
        return wall;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// For deadlines and intervals.
#[must_use]
pub fn instant() -> Instant {
    if let Some((_, instant)) = simulated::now() {
        return instant;
    }
    Instant::now()
}

/// RFC 3339 in UTC with milliseconds. What lies outside of the years 1970 to 9999 is written
/// as milliseconds.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    const LAST: i64 = 253_402_300_799_999; // 9999-12-31T23:59:59.999Z
    match u64::try_from(at.0) {
        Ok(ms) if at.0 <= LAST => {
            humantime::format_rfc3339_millis(UNIX_EPOCH + std::time::Duration::from_millis(ms))
                .to_string()
        }
        _ => at.0.to_string(),
    }
}

#[cfg(not(test))]
mod simulated {
    use std::time::Instant;

    use crate::record::Timestamp;

    #[inline(always)]
    pub(super) fn now() -> Option<(Timestamp, Instant)> {
        None
    }
}

/// Time that only a simulation moves, one for each thread.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    use crate::record::Timestamp;

    thread_local! {
        static NOW: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    }

    pub(super) fn now() -> Option<(Timestamp, Instant)> {
        NOW.get()
    }

    /// Stops both clocks of this thread at this wall time.
    pub(crate) fn start(wall: Timestamp) {
        NOW.set(Some((wall, Instant::now())));
    }

    pub(crate) fn advance(by: Duration) {
        let (wall, instant) = NOW.get().expect("the simulated time was started");
        let ms = i64::try_from(by.as_millis()).expect("a simulation is short");
        NOW.set(Some((Timestamp(wall.0 + ms), instant + by)));
    }

    pub(crate) fn stop() {
        NOW.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_times_are_written_without_a_panic() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(253_402_300_799_999)), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(Timestamp(i64::MAX)), i64::MAX.to_string());
        assert_eq!(rfc3339(Timestamp(-1)), "-1");
    }
}
