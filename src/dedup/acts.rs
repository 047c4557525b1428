//! Acts: what people did to the group's offsets, as far as it still matters.
//!
//! They stand in the metadata of every committed offset, for a machine without this log, and with
//! the shard, for the time after somebody else has committed.

use serde::{Deserialize, Serialize};

use crate::record::{Offset, Timestamp};

/// What people did to the group's offsets, as far as it still matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acts {
    /// When the newest rewind was done, in milliseconds; 0: none.
    pub generation: i64,
    /// The rewinds that still matter, ascending; the newest is the one of `generation`.
    #[serde(default)]
    pub rewinds: Vec<Rewind>,
    /// Ranges that somebody chose not to handle, ascending.
    pub skips: Vec<Skip>,
}

/// The offsets from `start` on were handled anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// When it was done, in milliseconds: the name of the generation.
    pub generation: i64,
    pub start: Offset,
}

/// Offsets `from..to` were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    pub from: Offset,
    pub to: Offset,
}

impl Acts {
    #[must_use]
    pub fn skipped(&self, offset: Offset) -> bool {
        self.skips.iter().any(|skip| (skip.from..skip.to).contains(&offset))
    }

    /// False where a letter of this generation says nothing of the offset: a later rewind had the
    /// record handled anew.
    #[must_use]
    pub fn letter_counts(&self, generation: i64, offset: Offset) -> bool {
        self.rewinds.iter().all(|rewind| rewind.generation <= generation || offset < rewind.start)
    }

    /// Adds a range, once.
    pub fn skip(&mut self, skip: Skip) {
        self.skips.retain(|old| *old != skip);
        self.skips.push(skip);
        self.skips.sort_by_key(|skip| skip.from);
    }

    /// Begins a generation at `start`. It cuts off what was skipped from there on: these records
    /// are to be handled now.
    pub fn rewind(&mut self, now: Timestamp, start: Offset) {
        // Two rewinds in a millisecond, or a clock that was set back: a later act has a later name.
        self.generation = now.0.max(self.generation.saturating_add(1));
        self.rewinds.push(Rewind { generation: self.generation, start });
        self.skips.retain_mut(|skip| {
            skip.to = skip.to.min(start);
            skip.from < skip.to
        });
    }

    /// Forgets what no longer matters: skips that end at or before `window_start`, below which
    /// nothing is read again; rewinds done before `letters_since`, from which on letters are read.
    /// The newest rewind stays: it names the generation.
    pub fn prune(&mut self, window_start: Offset, letters_since: Option<Timestamp>) {
        self.skips.retain(|skip| skip.to > window_start);
        let newest = self.generation;
        self.rewinds.retain(|rewind| {
            rewind.generation == newest
                || letters_since.is_none_or(|since| rewind.generation >= since.0)
        });
    }

    /// What both know. Of two generations the older knows nothing of what came after it.
    #[must_use]
    pub fn merged(self, other: &Self) -> Self {
        if self.generation != other.generation {
            return if self.generation > other.generation { self } else { other.clone() };
        }
        let mut merged = self;
        for skip in &other.skips {
            merged.skip(*skip);
        }
        for rewind in &other.rewinds {
            if !merged.rewinds.contains(rewind) {
                merged.rewinds.push(*rewind);
            }
        }
        merged.rewinds.sort_by_key(|rewind| rewind.generation);
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(from: i64, to: i64) -> Skip {
        Skip { from: Offset(from), to: Offset(to) }
    }

    fn acts(skips: &[(i64, i64)]) -> Acts {
        let skips = skips.iter().map(|(from, to)| skip(*from, *to)).collect();
        Acts { skips, ..Acts::default() }
    }

    #[test]
    fn a_rewind_cuts_off_skips_at_its_start() {
        let mut acts = acts(&[(0, 10), (20, 40), (50, 60)]);
        acts.rewind(Timestamp(7), Offset(30));
        assert_eq!(acts.skips, [skip(0, 10), skip(20, 30)]);
        assert_eq!(acts.generation, 7);
    }

    #[test]
    fn a_later_rewind_has_a_later_name_also_where_the_clock_goes_back() {
        let mut acts = Acts::default();
        for now in [7, 7, 3] {
            acts.rewind(Timestamp(now), Offset(0));
        }
        let names: Vec<_> = acts.rewinds.iter().map(|rewind| rewind.generation).collect();
        assert_eq!((names, acts.generation), (vec![7, 8, 9], 9));
    }

    #[test]
    fn a_letter_says_nothing_of_what_a_later_rewind_had_handled_anew() {
        let mut acts = Acts::default();
        acts.rewind(Timestamp(100), Offset(10));
        acts.rewind(Timestamp(200), Offset(20));
        let counts = |generation, offset| acts.letter_counts(generation, Offset(offset));
        assert!(counts(0, 9) && !counts(0, 10) && !counts(0, 15) && !counts(0, 25));
        assert!(counts(100, 15) && !counts(100, 20));
        assert!(counts(200, 25));
    }

    #[test]
    fn skips_leave_when_the_window_has_passed_their_end() {
        let mut acts = acts(&[(0, 10), (20, 40)]);
        acts.prune(Offset(9), None);
        assert_eq!(acts.skips.len(), 2);
        acts.prune(Offset(10), None);
        assert_eq!(acts.skips, [skip(20, 40)]);
    }

    #[test]
    fn rewinds_leave_with_the_letters_before_them_and_the_newest_stays() {
        let mut acts = Acts::default();
        for now in [100, 200, 300] {
            acts.rewind(Timestamp(now), Offset(now));
        }
        acts.prune(Offset(0), Some(Timestamp(200)));
        assert_eq!(acts.rewinds.len(), 2);
        acts.prune(Offset(0), Some(Timestamp(1_000)));
        assert_eq!(acts.rewinds, [Rewind { generation: 300, start: Offset(300) }]);
        assert_eq!(acts.generation, 300);
    }

    #[test]
    fn what_two_know_of_one_generation_is_put_together_and_an_older_one_knows_nothing() {
        let (left, right) = (acts(&[(0, 10)]), acts(&[(20, 40), (0, 10)]));
        assert_eq!(left.clone().merged(&right).skips, [skip(0, 10), skip(20, 40)]);
        let mut newer = Acts::default();
        newer.rewind(Timestamp(5), Offset(0));
        assert_eq!(left.clone().merged(&newer), newer);
        assert_eq!(newer.clone().merged(&left), newer);
    }
}
