//! The verdict over one input partition: its records in the order of their offsets, against the
//! outputs and letters that name it.
//!
//! Pure: it is fed with small structs and does no I/O. Its model of time and window is written from
//! the rules, in its own words:
//!
//! ```text
//! S      the latest time so far; t(m) = max(timestamp, S - lateness); S = max(S, t(m))
//! fresh  no record of the key that counts has t(m) < its time + ttl
//! ```
//!
//! What counts is the last record of the key that was handled (`anchor = "last"`: the last one that
//! was handled or suppressed). Where the model and what is there disagree, what is there goes into
//! the model, so that one fault is told once.
//!
//! Owns: the fate of every record, and the violations of a partition.

mod examples;
mod judge;
mod matching;
mod rows;

use std::collections::BTreeMap;

use self::rows::{Last, Link, Row, Rows, Tag};
use super::finding::{Counts, Example, Fate, Found, Kind};
use super::key::Key;
use super::message::Digests;
use super::outputs::{Letter, OfPartition, Output};

/// One record of the input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input {
    pub offset: i64,
    /// Milliseconds. `None`: it carries none.
    pub timestamp: Option<i64>,
    /// `None`: nothing identifies it.
    pub key: Option<Key>,
    pub check: u32,
    pub digests: Digests,
}

/// What the configuration says of the route.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Milliseconds, like the others.
    pub ttl: i64,
    pub lateness: i64,
    /// A duplicate prolongs the window.
    pub anchor_last: bool,
    pub missing_is_letter: bool,
    pub conflict: OnConflict,
    /// There is an output topic to look at, and outputs and offsets are one transaction.
    pub outputs_known: bool,
    /// What only a rebuilt log may do is a violation, too.
    pub strict_window: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    Letter,
    Suppress,
}

/// What the broker and the group say of the partition.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    pub topic: String,
    pub partition: i32,
    /// The first offset that the topic still has.
    pub first: i64,
    /// Records below this offset are settled.
    pub committed: i64,
    /// The same, asked again after all outputs were read: no output can come from this or a later
    /// offset.
    pub committed_later: i64,
    /// Where the high-water group is, if that is behind the group. One transaction moves both, so
    /// that nothing was handled in between.
    pub high_water: Option<i64>,
    /// Offsets that somebody chose not to handle, `from..to`.
    pub skips: Vec<(i64, i64)>,
    /// When the newest rewind was done, in milliseconds; 0: never.
    pub generation: i64,
    /// The latest time that moved the group's own clock; what is dated later did not count.
    pub stream_time: Option<i64>,
    /// What is dated later than this lies in the future.
    pub latest: i64,
    /// Records may be missing between those that are there.
    pub compacted: bool,
}

/// All that was found of one partition.
#[derive(Debug)]
pub struct Verdict {
    pub counts: Counts,
    pub violations: BTreeMap<Kind, u64>,
    pub examples: Vec<Example>,
}

/// An example before its neighbours are known.
#[derive(Debug)]
struct Spot {
    offset: i64,
    detail: String,
    /// Other rows that belong to it.
    others: Vec<Link>,
}

/// The verdict in the making.
#[derive(Debug)]
pub struct Partition {
    rules: Rules,
    bounds: Bounds,
    rows: Rows,
    last: Last,
    outputs: Vec<Output>,
    letters: Vec<Letter>,
    cut_below: i64,
    /// How many outputs and letters belong to records that were seen.
    outputs_done: usize,
    letters_done: usize,
    stream_time: Option<i64>,
    /// The time of the first record, where records before it are gone.
    cut_time: Option<i64>,
    counts: Counts,
    found: Found<Spot>,
}

impl Partition {
    pub fn new(rules: Rules, bounds: Bounds, of: OfPartition, examples_max: u64) -> Self {
        let about = usize::try_from(bounds.committed - bounds.first).unwrap_or(0);
        let mut partition = Self {
            rows: Rows::for_about(about),
            last: Last::default(),
            cut_below: of.cut_below,
            outputs_done: 0,
            letters_done: 0,
            stream_time: None,
            cut_time: None,
            counts: Counts { outputs: of.outputs.len() as u64, ..Counts::default() },
            found: Found::new(examples_max),
            outputs: of.outputs,
            letters: of.letters,
            rules,
            bounds,
        };
        partition.order(&of.backward, of.backward_count);
        partition
    }

    /// The next record. Records come in the order of their offsets, and none beyond the committed
    /// offset.
    pub fn input(&mut self, input: &Input) {
        let (time, untimed) = self.date(input.timestamp);
        let outputs = self.outputs_of(input.offset);
        let letters = self.letters_of(input.offset);
        let tag = Tag::new(input.key.is_some(), untimed);
        let mut row = Row {
            key: input.key.unwrap_or_default(),
            offset: input.offset,
            time,
            check: input.check,
            ..Row::default()
        };
        self.counts.unidentified += u64::from(input.key.is_none());
        self.counts.untimed += u64::from(untimed);
        self.compare(input, outputs.clone(), letters.clone());
        let previous = input.key.map_or(0, |key| self.last.get(&key, &self.rows));
        row.previous = previous;
        if let Some((before, _)) = self.rows.get(previous) {
            (row.handled, row.entry) = (before.handled, before.entry);
        }
        let fate = if !outputs.is_empty() {
            self.passed(&mut row, tag, outputs, letters)
        } else if !letters.is_empty() {
            self.dead_lettered(&row, tag, letters);
            Fate::DeadLetter
        } else {
            self.silent(&mut row, tag)
        };
        self.counts.count(fate);
        let link = self.rows.push(row, tag.with(fate));
        // What was skipped, or cannot be told from another, is no occurrence of its key.
        if let Some(key) = input.key.filter(|_| fate != Fate::Skipped) {
            self.last.set(&key, link, &self.rows);
        }
    }

    /// The time that counts, and whether it is not the record's own.
    fn date(&mut self, timestamp: Option<i64>) -> (i64, bool) {
        let stream_time = self.bounds.stream_time.unwrap_or(i64::MAX);
        let latest = self.bounds.latest.min(stream_time);
        let (time, untimed) = match timestamp.filter(|at| (0..=latest).contains(at)) {
            None => (self.stream_time.unwrap_or_default(), true),
            Some(at) => {
                let floor = self.stream_time.map_or(i64::MIN, |s| s - self.rules.lateness);
                let time = at.max(floor);
                self.stream_time = Some(self.stream_time.map_or(time, |s| s.max(time)));
                (time, false)
            }
        };
        if self.bounds.first > 0 && self.cut_time.is_none() {
            self.cut_time = Some(time);
        }
        (time, untimed)
    }

    /// All records below the committed offset were seen.
    pub fn finish(mut self) -> Verdict {
        for at in self.outputs_done..self.outputs.len() {
            self.output_without_record(at);
        }
        for at in self.letters_done..self.letters.len() {
            self.letter_without_record(at);
        }
        self.high_water();
        // The two tables are never in memory together.
        self.last = Last::default();
        self.identities();
        if !self.counts.adds_up(self.rules.outputs_known) {
            let detail = format!("the numbers do not add up: {:?}", self.counts);
            let offset = self.bounds.committed;
            self.found.add(Kind::Conservation, || Spot { offset, detail, others: Vec::new() });
        }
        let found = std::mem::replace(&mut self.found, Found::new(0));
        let (violations, spots) = found.into_parts();
        let examples = spots.into_iter().map(|(kind, spot)| self.example(kind, spot)).collect();
        Verdict { counts: self.counts, violations, examples }
    }
}

#[cfg(test)]
mod tests;
