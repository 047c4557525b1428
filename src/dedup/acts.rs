//! Acts: what people did to the group's offsets, as far as it still matters.
//!
//! They stand in the metadata of every committed offset, for a machine without this log, and with
//! the shard, for the time after somebody else has committed.

use serde::{Deserialize, Serialize};

use crate::record::Offset;

/// What people did to the group's offsets, as far as it still matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acts {
    /// When the newest rewind was done, in milliseconds; 0: none.
    pub generation: i64,
    /// Ranges that somebody chose not to handle, ascending.
    pub skips: Vec<Skip>,
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

    /// Adds a range, once; drops the ones that end at or before `window_start`, where they no longer
    /// matter.
    pub fn skip(&mut self, skip: Skip, window_start: Option<Offset>) {
        self.skips.retain(|old| *old != skip && window_start.is_none_or(|start| old.to > start));
        self.skips.push(skip);
    }
}
