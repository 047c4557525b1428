//! The decision: what the log says of a record, as one pure function.
//!
//! Owns: the table of verdicts and what each does to the entry.
//! Never: reads the log, a clock or the policy of a route. That a record with the same identity
//! is in flight is the pipeline's to know: it asks only when the answer can be final.

use super::entry::Entry;
use super::expiry::{Anchor, Window};
use crate::identity::{Check, Identity};
use crate::record::{Offset, Timestamp};

/// What the log says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not handled within the window: to be handled.
    Fresh,
    /// Another record with this identity and payload was handled.
    Duplicate { first: Entry },
    /// This very record is settled.
    Replayed,
    /// Another record with this identity, but another payload, was handled.
    Conflict { first: Entry },
    /// Called by an earlier owner that left no settlement (at-most-once routes).
    InDoubt,
    /// The record carries nothing that could identify it.
    Unidentified,
}

/// What a decision is made of. All of it was fixed when the record was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub offset: Offset,
    pub time: Timestamp,
    pub identity: Option<Identity>,
    pub check: Check,
}

/// The table: the first row that fits decides.
///
/// `settled`: the record lies below the position, in the set settled beyond it, or has a letter.
/// `entry`: what the log holds for the identity, expired or not.
#[must_use]
pub fn decide(record: &Facts, settled: bool, entry: Option<&Entry>, window: &Window) -> Verdict {
    if settled {
        return Verdict::Replayed;
    }
    if record.identity.is_none() {
        return Verdict::Unidentified;
    }
    match entry {
        None => Verdict::Fresh,
        Some(first) if window.expired(first.time, record.time) => Verdict::Fresh,
        // The log is ahead of the topic's order only for what is decided again.
        Some(first) if first.offset >= record.offset => Verdict::Fresh,
        Some(first) if first.check == record.check => Verdict::Duplicate { first: *first },
        Some(first) => Verdict::Conflict { first: *first },
    }
}

/// The entry as it is when the record is settled; `None`: as it was.
///
/// For [`Verdict::Fresh`] this holds when the record was handled (or absorbed); a dead-lettered
/// record leaves no entry.
#[must_use]
pub fn entry_after(verdict: &Verdict, record: &Facts, window: &Window) -> Option<Entry> {
    match verdict {
        Verdict::Fresh => {
            Some(Entry { offset: record.offset, time: record.time, check: record.check })
        }
        Verdict::Duplicate { first }
            if window.anchor == Anchor::Last && record.time > first.time =>
        {
            Some(Entry { time: record.time, ..*first })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn window(anchor: Anchor) -> Window {
        let ms = Duration::from_millis;
        Window { ttl: ms(100), lateness: ms(20), skew: ms(0), anchor }
    }

    fn facts(offset: i64, time: i64, check: u32) -> Facts {
        Facts {
            offset: Offset(offset),
            time: Timestamp(time),
            identity: Some(Identity([7; 16])),
            check: Check(check),
        }
    }

    fn entry(offset: i64, time: i64, check: u32) -> Entry {
        Entry { offset: Offset(offset), time: Timestamp(time), check: Check(check) }
    }

    #[track_caller]
    fn check(record: &Facts, settled: bool, entry: Option<Entry>, expected: Verdict) {
        assert_eq!(decide(record, settled, entry.as_ref(), &window(Anchor::First)), expected);
    }

    #[test]
    fn the_first_row_that_fits_decides() {
        let first = entry(5, 1000, 1);
        let anonymous = Facts { identity: None, ..facts(9, 1000, 1) };
        check(&anonymous, true, None, Verdict::Replayed);
        check(&anonymous, false, None, Verdict::Unidentified);
        check(&facts(9, 1050, 1), true, Some(first), Verdict::Replayed);
        check(&facts(9, 1050, 1), false, None, Verdict::Fresh);
        check(&facts(9, 1100, 1), false, Some(first), Verdict::Fresh);
        check(&facts(5, 1000, 1), false, Some(first), Verdict::Fresh);
        check(&facts(4, 1000, 1), false, Some(first), Verdict::Fresh);
        check(&facts(9, 1099, 1), false, Some(first), Verdict::Duplicate { first });
        check(&facts(9, 1099, 2), false, Some(first), Verdict::Conflict { first });
    }

    #[test]
    fn a_duplicate_prolongs_the_window_only_with_the_last_anchor() {
        let first = entry(5, 1000, 1);
        let duplicate = Verdict::Duplicate { first };
        let record = facts(9, 1050, 1);
        assert_eq!(entry_after(&duplicate, &record, &window(Anchor::First)), None);
        assert_eq!(
            entry_after(&duplicate, &record, &window(Anchor::Last)),
            Some(entry(5, 1050, 1))
        );
        let earlier = facts(9, 990, 1);
        assert_eq!(entry_after(&duplicate, &earlier, &window(Anchor::Last)), None);
    }

    proptest! {
        /// The table against a naive model that remembers every handled record.
        #[test]
        fn a_stream_is_decided_as_by_a_model_that_forgets_nothing(
            records in prop::collection::vec((0u8..4, 0u32..2, 0i64..15), 1..200),
        ) {
            let window = window(Anchor::First);
            let mut log: HashMap<u8, Entry> = HashMap::new();
            let mut handled: Vec<(u8, u32, i64)> = Vec::new();
            let mut time = 0;
            for (offset, (key, payload, step)) in records.into_iter().enumerate() {
                time += step;
                let record = Facts { identity: Some(Identity([key; 16])), ..facts(offset as i64, time, payload) };
                let verdict = decide(&record, false, log.get(&key), &window);
                let last = handled.iter().rev().find(|(k, _, t)| *k == key && time < t + 100);
                match last {
                    None => prop_assert_eq!(verdict, Verdict::Fresh),
                    Some((_, p, _)) if *p == payload => {
                        let duplicate = matches!(verdict, Verdict::Duplicate { .. });
                        prop_assert!(duplicate, "{:?}", verdict);
                    }
                    Some(_) => {
                        let conflict = matches!(verdict, Verdict::Conflict { .. });
                        prop_assert!(conflict, "{:?}", verdict);
                    }
                }
                if verdict == Verdict::Fresh {
                    handled.push((key, payload, time));
                }
                if let Some(entry) = entry_after(&verdict, &record, &window) {
                    log.insert(key, entry);
                }
            }
        }
    }
}
