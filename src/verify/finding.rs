//! What a verification can find: the kinds of violations, and the numbers of a partition.
//!
//! The names in here are a contract: `--json` prints them.

use std::collections::BTreeMap;

use serde::Serialize;

/// A violation. Each makes the exit code 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// First of its key in the window, below the committed offset: no output, letter or skip.
    Lost,
    /// More than one committed output of a key within the window, or of one source offset.
    Doubled,
    /// Outputs of one input partition in one output partition whose source offsets do not grow.
    Reordered,
    /// Read as committed, but not there: an output that a reader of uncommitted records does not
    /// get, or whose source record is none.
    AbortedRead,
    /// An output or letter at or beyond the committed offset: the transaction was torn, and its
    /// source record will be handled again.
    Torn,
    /// A transaction that did not end while the verifier waited: readers get no further.
    Hanging,
    /// Key, payload, headers or timestamp of an output or letter differ from its source record.
    Altered,
    /// Keys and identities do not belong together one to one.
    Identity,
    /// Suppressed, though nothing with its key was handled within the window before it.
    SuppressedTooLate,
    /// Same key, other payload, and not what the policy says; or a letter that says so wrongly.
    Conflicts,
    /// A letter that should not be: beside an output, a second one, or of a duplicate.
    Letters,
    /// A record in a range that somebody skipped was handled.
    Skips,
    /// Committed offsets that cannot be: beyond the end, or without the high-water group.
    Offsets,
    /// The sum does not add up.
    Conservation,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Lost,
        Self::Doubled,
        Self::Reordered,
        Self::AbortedRead,
        Self::Torn,
        Self::Hanging,
        Self::Altered,
        Self::Identity,
        Self::SuppressedTooLate,
        Self::Conflicts,
        Self::Letters,
        Self::Skips,
        Self::Offsets,
        Self::Conservation,
    ];

    /// As it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Reordered => "reordered",
            Self::AbortedRead => "aborted_read",
            Self::Torn => "torn",
            Self::Hanging => "hanging",
            Self::Altered => "altered",
            Self::Identity => "identity",
            Self::SuppressedTooLate => "suppressed_too_late",
            Self::Conflicts => "conflicts",
            Self::Letters => "letters",
            Self::Skips => "skips",
            Self::Offsets => "offsets",
            Self::Conservation => "conservation",
        }
    }
}

/// What happened to a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It has an output; without outputs to look at: it should have been handled.
    #[default]
    Handled,
    /// Suppressed: another record of its key and payload was handled.
    Duplicate,
    /// Suppressed as the policy says: another payload under the same key.
    Conflict,
    DeadLetter,
    /// In a range of offsets that somebody chose not to handle.
    Skipped,
    Lost,
    SuppressedTooLate,
    /// Suppressed by a duplicate after the window of the first: what a log that was rebuilt may do.
    OffPhase,
    /// Retention or a missing timestamp took the evidence.
    Undecided,
}

impl Fate {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict, suppressed",
            Self::DeadLetter => "dead letter",
            Self::Skipped => "skipped",
            Self::Lost => "LOST",
            Self::SuppressedTooLate => "SUPPRESSED TOO LATE",
            Self::OffPhase => "duplicate of a duplicate",
            Self::Undecided => "undecided",
        }
    }
}

/// The numbers of one input partition. Every record below the committed offset has one fate:
///
/// ```text
/// records = handled + duplicates + conflicts + dead_lettered + skipped
///         + lost + suppressed_too_late + off_phase + undecided
/// outputs = handled + repeated + torn + ahead + without_record + below_first
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Delivered below the committed offset.
    pub records: u64,
    pub handled: u64,
    pub duplicates: u64,
    /// Suppressed, with another payload than the record that was handled.
    pub conflicts: u64,
    pub dead_lettered: u64,
    pub skipped: u64,
    pub lost: u64,
    pub suppressed_too_late: u64,
    pub off_phase: u64,
    pub undecided: u64,
    /// Of `records`: without a key.
    pub unidentified: u64,
    /// Of `records`: without a timestamp that counts; not judged by time.
    pub untimed: u64,
    /// Of `handled`: a record of the same key was handled before, `ttl` or more ago.
    pub beyond_window: u64,
    /// Committed outputs that name this partition.
    pub outputs: u64,
    /// Second and further outputs of one record.
    pub repeated: u64,
    /// Outputs at or beyond the offset that was committed when all outputs had been read.
    pub torn: u64,
    /// Outputs of what was committed while the verifier read: not looked at.
    pub ahead: u64,
    /// Outputs whose source offset is no record.
    pub without_record: u64,
    /// Outputs of records that retention has deleted.
    pub below_first: u64,
    /// Letters of this group for this partition below the committed offset.
    pub letters: u64,
    /// Outputs of a record or offset that came again after a rewind: not held against anyone.
    pub rerun: u64,
}

impl Counts {
    pub fn count(&mut self, fate: Fate) {
        self.records += 1;
        *match fate {
            Fate::Handled => &mut self.handled,
            Fate::Duplicate => &mut self.duplicates,
            Fate::Conflict => &mut self.conflicts,
            Fate::DeadLetter => &mut self.dead_lettered,
            Fate::Skipped => &mut self.skipped,
            Fate::Lost => &mut self.lost,
            Fate::SuppressedTooLate => &mut self.suppressed_too_late,
            Fate::OffPhase => &mut self.off_phase,
            Fate::Undecided => &mut self.undecided,
        } += 1;
    }

    /// Both equations above. Without outputs to look at, only the first.
    pub fn adds_up(&self, outputs_known: bool) -> bool {
        let fates = self.handled
            + self.duplicates
            + self.conflicts
            + self.dead_lettered
            + self.skipped
            + self.lost
            + self.suppressed_too_late
            + self.off_phase
            + self.undecided;
        let outputs = self.handled
            + self.repeated
            + self.torn
            + self.ahead
            + self.without_record
            + self.below_first;
        self.records == fates && (!outputs_known || self.outputs == outputs)
    }
}

/// A record near an example, or the example itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    pub offset: i64,
    /// The key as the client sent it, where it is short and text; read again for the example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    /// The verifier's own key in hexadecimal digits; `None`: the record has none.
    pub key: Option<String>,
    pub time: i64,
    pub fate: Fate,
    /// Its output, `partition/offset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// It has the key of the example.
    pub same_key: bool,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    pub kind: Kind,
    /// Of the input, or of the output where the example is about one.
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub detail: String,
    /// In the order of their offsets, around the example and around what it refers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
}

/// Counts all violations and keeps the first ones of each kind.
#[derive(Clone, Debug, Default)]
pub struct Found<T> {
    counts: BTreeMap<Kind, u64>,
    examples: Vec<(Kind, T)>,
    examples_max: u64,
}

impl<T> Found<T> {
    /// `examples_max`: for each kind.
    pub fn new(examples_max: u64) -> Self {
        Self { counts: BTreeMap::new(), examples: Vec::new(), examples_max }
    }

    pub fn add(&mut self, kind: Kind, example: impl FnOnce() -> T) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= self.examples_max {
            self.examples.push((kind, example()));
        }
    }

    /// Adds what somebody else found.
    pub fn append(&mut self, counts: &BTreeMap<Kind, u64>, examples: Vec<(Kind, T)>) {
        for (kind, example) in examples {
            let kept = self.examples.iter().filter(|(k, _)| *k == kind).count() as u64;
            if kept < self.examples_max {
                self.examples.push((kind, example));
            }
        }
        for (kind, count) in counts {
            *self.counts.entry(*kind).or_default() += count;
        }
    }

    pub fn into_parts(self) -> (BTreeMap<Kind, u64>, Vec<(Kind, T)>) {
        (self.counts, self.examples)
    }
}
