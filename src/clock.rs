//! The only place that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::record::Timestamp;

/// The wall clock, in milliseconds. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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
