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

mod rows;

use std::collections::BTreeMap;

use self::rows::{Last, Link, Row, Rows, Tag};
use super::finding::{Counts, Example, Fate, Found, Kind, Neighbour};
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

/// Rows on each side of an example.
const NEIGHBOURS: i64 = 4;

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

    fn order(&mut self, backward: &[super::outputs::Backward], count: u64) {
        if self.bounds.generation > 0 {
            self.counts.rerun += count;
            return;
        }
        for at in backward {
            let detail = format!(
                "output {} came from offset {}, the output before it in that partition from {}",
                at.output.place(),
                at.source,
                at.after
            );
            let spot = || Spot { offset: at.source, detail, others: Vec::new() };
            self.found.add(Kind::Reordered, spot);
        }
        // Beyond the examples only the number is known.
        let more = count - backward.len() as u64;
        self.found.append(&BTreeMap::from([(Kind::Reordered, more)]), Vec::new());
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

    /// Of outputs, those that name this offset; those before it name no record.
    fn outputs_of(&mut self, offset: i64) -> std::ops::Range<usize> {
        let start = self.outputs_done;
        let rest = self.outputs.get(start..).unwrap_or_default();
        let before = rest.iter().take_while(|output| output.source < offset).count();
        let here = rest.iter().skip(before).take_while(|output| output.source == offset).count();
        self.outputs_done = start + before + here;
        for at in start..start + before {
            self.output_without_record(at);
        }
        start + before..start + before + here
    }

    fn letters_of(&mut self, offset: i64) -> std::ops::Range<usize> {
        let start = self.letters_done;
        let rest = self.letters.get(start..).unwrap_or_default();
        let before = rest.iter().take_while(|letter| letter.source < offset).count();
        let here = rest.iter().skip(before).take_while(|letter| letter.source == offset).count();
        self.letters_done = start + before + here;
        for at in start..start + before {
            self.letter_without_record(at);
        }
        self.counts.letters += here as u64;
        start + before..start + before + here
    }

    fn output_without_record(&mut self, at: usize) {
        let Some(output) = self.outputs.get(at).copied() else { return };
        let source = output.source;
        if source >= self.bounds.committed_later {
            self.counts.torn += 1;
            if self.bounds.generation > 0 {
                // The group was rewound to before it; nobody knows to where.
                self.counts.rerun += 1;
                return;
            }
            let detail = format!(
                "output {} is committed, but the group's offset is {}: the record will be handled \
                 again",
                output.place(),
                self.bounds.committed_later
            );
            self.found.add(Kind::Torn, || Spot { offset: source, detail, others: Vec::new() });
        } else if source >= self.bounds.committed {
            self.counts.ahead += 1;
        } else if source < self.bounds.first || self.bounds.compacted {
            self.counts.below_first += 1;
        } else {
            self.counts.without_record += 1;
            let detail = format!(
                "output {} names a record that no reader of committed records gets",
                output.place()
            );
            let spot = || Spot { offset: source, detail, others: Vec::new() };
            self.found.add(Kind::AbortedRead, spot);
        }
    }

    fn letter_without_record(&mut self, at: usize) {
        let Some(letter) = self.letters.get(at) else { return };
        let source = letter.source;
        let place = format!("{}/{}", letter.partition, letter.offset);
        // An outside handler's letter comes before the offset that it settles.
        if source >= self.bounds.committed_later {
            let rewound = letter.generation < self.bounds.generation;
            if self.rules.outputs_known && !rewound {
                let detail = format!(
                    "dead letter {place} is committed, but the group's offset is {}",
                    self.bounds.committed_later
                );
                self.found.add(Kind::Torn, || Spot { offset: source, detail, others: Vec::new() });
            }
        } else if source < self.bounds.committed
            && source >= self.bounds.first
            && !self.bounds.compacted
        {
            let detail = format!(
                "dead letter {place} names a record that no reader of committed records gets"
            );
            let spot = || Spot { offset: source, detail, others: Vec::new() };
            self.found.add(Kind::AbortedRead, spot);
        }
    }

    /// Outputs and letters are their source record, but for what onced adds.
    fn compare(
        &mut self,
        input: &Input,
        outputs: std::ops::Range<usize>,
        letters: std::ops::Range<usize>,
    ) {
        let offset = input.offset;
        for output in self.outputs.get(outputs).unwrap_or_default() {
            let dated = output.has(Output::DATED);
            let digest = if dated { input.digests.dated } else { input.digests.undated };
            // A record without a timestamp gets one from the client.
            let comparable = !dated || input.timestamp.is_some();
            if comparable && output.digest != digest {
                let detail = format!("output {} differs from its source record", output.place());
                self.found.add(Kind::Altered, || Spot { offset, detail, others: Vec::new() });
            }
            let wrong = if output.has(Output::REPEATED_HEADER) {
                Some("has a header of onced twice")
            } else if output.has(Output::BAD_IDENTITY) {
                Some("has an onced-identity that is not 32 hexadecimal digits")
            } else if output.has(Output::NO_IDENTITY) && input.key.is_some() {
                Some("has no onced-identity, and its source record has a key")
            } else if !output.has(Output::NO_IDENTITY) && input.key.is_none() {
                Some("has an onced-identity, and its source record has no key")
            } else {
                None
            };
            if let Some(wrong) = wrong {
                let detail = format!("output {} {wrong}", output.place());
                self.found.add(Kind::Identity, || Spot { offset, detail, others: Vec::new() });
            }
        }
        for letter in self.letters.get(letters).unwrap_or_default() {
            if !letter.truncated && letter.digest != input.digests.undated {
                let detail = format!(
                    "dead letter {}/{} differs from its source record",
                    letter.partition, letter.offset
                );
                self.found.add(Kind::Altered, || Spot { offset, detail, others: Vec::new() });
            }
        }
    }

    /// A record with one output or more.
    fn passed(
        &mut self,
        row: &mut Row,
        tag: Tag,
        outputs: std::ops::Range<usize>,
        letters: std::ops::Range<usize>,
    ) -> Fate {
        let here = self.outputs.get(outputs).unwrap_or_default();
        let places: Vec<String> = here.iter().map(Output::place).collect();
        let Some(output) = here.first().copied() else { return Fate::Undecided };
        let offset = row.offset;
        self.counts.repeated += places.len() as u64 - 1;
        if places.len() > 1 && self.bounds.generation > 0 {
            self.counts.rerun += places.len() as u64 - 1;
        } else if places.len() > 1 {
            let detail =
                format!("offset {offset} has {} outputs: {}", places.len(), places.join(", "));
            self.found.add(Kind::Doubled, || Spot { offset, detail, others: Vec::new() });
        }
        let now = self.letters.get(letters).unwrap_or_default();
        if now.iter().any(|letter| letter.generation >= self.bounds.generation) {
            let detail = format!("offset {offset} has output {} and a dead letter", output.place());
            self.found.add(Kind::Letters, || Spot { offset, detail, others: Vec::new() });
        }
        if self.skipped(offset) {
            let detail = format!("offset {offset} was skipped, and has output {}", output.place());
            self.found.add(Kind::Skips, || Spot { offset, detail, others: Vec::new() });
        }
        if tag.identified() {
            self.passed_again(row, tag, &output);
            row.handled = self.rows.next();
            row.entry = row.handled;
        }
        Fate::Handled
    }

    /// Its key may have been handled before.
    fn passed_again(&mut self, row: &Row, tag: Tag, output: &Output) {
        let Some((before, before_tag)) = self.rows.get(row.handled).map(|(b, t)| (*b, t)) else {
            return;
        };
        let from = if self.rules.anchor_last { row.entry } else { row.handled };
        let Some((anchor, anchor_tag)) = self.rows.get(from) else { return };
        let others = vec![row.handled, from];
        let untimed = tag.untimed() || before_tag.untimed() || anchor_tag.untimed();
        let phase = !self.rules.strict_window && self.may_be_off_phase(&before, row);
        if !self.within(anchor.time, row.time) || untimed || phase {
            self.counts.beyond_window += 1;
        } else {
            let (kind, what) = if before.check == row.check {
                (Kind::Doubled, "the same")
            } else {
                (Kind::Conflicts, "another")
            };
            let detail = format!(
                "output {} of offset {}: offset {} with its key and {what} payload was handled {} \
                 before, within the window",
                output.place(),
                row.offset,
                before.offset,
                milliseconds(row.time - before.time)
            );
            let offset = row.offset;
            self.found.add(kind, || Spot { offset, detail, others: others.clone() });
        }
        let known = self.identity_at(before.offset);
        if known.is_some_and(|known| known != output.identity) && !output.has(Output::NO_IDENTITY) {
            let detail = format!(
                "offsets {} and {} have the same key, and outputs of different identities",
                before.offset, row.offset
            );
            let offset = row.offset;
            self.found.add(Kind::Identity, || Spot { offset, detail, others });
        }
    }

    /// A log that was rebuilt may count the window from a record before the one that was handled.
    fn may_be_off_phase(&self, handled: &Row, row: &Row) -> bool {
        let earlier = self.rows.get(handled.previous).map(|(earlier, _)| earlier);
        !self.rules.anchor_last
            && earlier.is_some_and(|earlier| {
                self.within(earlier.time, handled.time) && !self.within(earlier.time, row.time)
            })
    }

    fn identity_at(&self, source: i64) -> Option<u64> {
        let at = self.outputs.partition_point(|output| output.source < source);
        let output = self.outputs.get(at).filter(|output| output.source == source)?;
        let readable = !output.has(Output::NO_IDENTITY) && !output.has(Output::BAD_IDENTITY);
        readable.then_some(output.identity)
    }

    /// A record with a letter and no output.
    fn dead_lettered(&mut self, row: &Row, tag: Tag, letters: std::ops::Range<usize>) {
        let here = self.letters.get(letters).unwrap_or_default();
        let newest = here.iter().map(|letter| letter.generation).max().unwrap_or_default();
        let current: Vec<&Letter> =
            here.iter().filter(|letter| letter.generation == newest).collect();
        let Some(letter) = current.first() else { return };
        let (offset, reason) = (row.offset, letter.reason.clone());
        let twice = current.len() > 1 && self.rules.outputs_known;
        if twice {
            let detail = format!("offset {offset} has {} dead letters", current.len());
            self.found.add(Kind::Letters, || Spot { offset, detail, others: Vec::new() });
        }
        if self.skipped(offset) && self.rules.outputs_known {
            let detail = format!("offset {offset} was skipped, and has a dead letter");
            self.found.add(Kind::Skips, || Spot { offset, detail, others: Vec::new() });
        }
        if (&*reason == "missing-identity") == tag.identified()
            && (tag.identified() || self.rules.missing_is_letter)
        {
            let detail = format!(
                "offset {offset} has a dead letter that says {reason:?}, and it has {} key",
                if tag.identified() { "a" } else { "no" }
            );
            self.found.add(Kind::Letters, || Spot { offset, detail, others: Vec::new() });
            return;
        }
        if !tag.identified() || !self.rules.outputs_known {
            return;
        }
        let entry = self.rows.get(row.entry).filter(|(entry, _)| self.within(entry.time, row.time));
        let sure = !tag.untimed() && entry.is_none_or(|(_, tag)| !tag.untimed());
        let first_is_known = !self.in_cut(row);
        let any_other = self.other_payload_within(row);
        let detail = match (&*reason, entry) {
            ("conflict", _) if !any_other && sure && first_is_known => Some(format!(
                "offset {offset} is a dead letter for a conflict, and no record of its key within \
                 the window has another payload"
            )),
            ("conflict", _) => None,
            (_, Some((entry, entry_tag)))
                if sure && entry_tag.fate() == Fate::Handled && entry.check == row.check =>
            {
                Some(format!(
                    "offset {offset} is a dead letter ({reason}), and a duplicate of offset {}",
                    entry.offset
                ))
            }
            _ => None,
        };
        if let Some(detail) = detail {
            let kind = if &*reason == "conflict" { Kind::Conflicts } else { Kind::Letters };
            let others = vec![row.entry];
            self.found.add(kind, || Spot { offset, detail, others });
        }
    }

    /// A record of its key with another payload is within the window before it.
    fn other_payload_within(&self, row: &Row) -> bool {
        let mut at = row.previous;
        // Bounded: a key with more records than this has one that is near enough.
        for _ in 0..1_000 {
            let Some((before, _)) = self.rows.get(at) else { return false };
            if before.check != row.check && self.within(before.time, row.time) {
                return true;
            }
            at = before.previous;
        }
        true
    }

    /// A record with neither output nor letter.
    fn silent(&mut self, row: &mut Row, tag: Tag) -> Fate {
        let offset = row.offset;
        if self.skipped(offset) {
            return Fate::Skipped;
        }
        let hidden = offset < self.cut_below;
        if !tag.identified() {
            return self.silent_without_key(row, hidden);
        }
        let next = self.rows.next();
        let entry = self.rows.get(row.entry).map(|(entry, tag)| (*entry, tag));
        let live = entry.filter(|(entry, _)| self.within(entry.time, row.time));
        if let Some((entry, entry_tag)) = live {
            return self.suppressed(row, &entry, entry_tag, hidden);
        }
        let anchor = row.entry;
        row.entry = next;
        if !self.rules.outputs_known {
            row.handled = next;
            return Fate::Handled;
        }
        if hidden || tag.untimed() || entry.is_some_and(|(_, tag)| tag.untimed()) {
            return Fate::Undecided;
        }
        if self.in_cut(row) {
            return Fate::Undecided;
        }
        let Some((entry, _)) = entry else {
            let detail = format!(
                "offset {offset} has no output and no letter, and nothing of its key was handled before"
            );
            self.found.add(Kind::Lost, || Spot { offset, detail, others: Vec::new() });
            return Fate::Lost;
        };
        let before = self.rows.get(row.previous).map(|(before, tag)| (before.time, tag.fate()));
        let near = before
            .is_some_and(|(time, fate)| self.within(time, row.time) && fate != Fate::DeadLetter);
        if near && !self.rules.strict_window {
            row.entry = row.previous;
            return Fate::OffPhase;
        }
        let detail = format!(
            "offset {offset} has no output; offset {} of its key was {} before, and the window is {}",
            entry.offset,
            milliseconds(row.time - entry.time),
            milliseconds(self.rules.ttl)
        );
        self.found.add(Kind::SuppressedTooLate, || Spot { offset, detail, others: vec![anchor] });
        Fate::SuppressedTooLate
    }

    fn silent_without_key(&mut self, row: &Row, hidden: bool) -> Fate {
        if !self.rules.outputs_known && !self.rules.missing_is_letter {
            return Fate::Handled;
        }
        if hidden {
            return Fate::Undecided;
        }
        let offset = row.offset;
        let detail = format!("offset {offset} has no key, and has no output and no letter");
        self.found.add(Kind::Lost, || Spot { offset, detail, others: Vec::new() });
        Fate::Lost
    }

    /// Something with its key counts at its time.
    fn suppressed(&mut self, row: &mut Row, entry: &Row, entry_tag: Tag, hidden: bool) -> Fate {
        if entry.check == row.check {
            if self.rules.anchor_last && row.time > entry.time {
                row.entry = self.rows.next();
            }
            return Fate::Duplicate;
        }
        // What else counts was never handled, as far as can be seen.
        let sure = matches!(entry_tag.fate(), Fate::Handled | Fate::Duplicate)
            && !hidden
            && !entry_tag.untimed()
            && !self.in_cut(row);
        if self.rules.conflict == OnConflict::Letter && sure {
            let (offset, others) = (row.offset, vec![row.entry]);
            let detail = format!(
                "offset {offset} has the key of offset {} and another payload, and no letter says so",
                entry.offset
            );
            self.found.add(Kind::Conflicts, || Spot { offset, detail, others });
        }
        Fate::Conflict
    }

    fn within(&self, time: i64, at: i64) -> bool {
        at < time.saturating_add(self.rules.ttl)
    }

    /// Something that suppresses this record may have been deleted by retention.
    fn in_cut(&self, row: &Row) -> bool {
        let reach = self.rules.ttl.saturating_add(self.rules.lateness);
        self.cut_time.is_some_and(|cut| row.time < cut.saturating_add(reach))
    }

    fn skipped(&self, offset: i64) -> bool {
        self.bounds.skips.iter().any(|(from, to)| (*from..*to).contains(&offset))
    }

    /// All records below the committed offset were seen.
    pub fn finish(mut self) -> Verdict {
        for at in self.outputs_done..self.outputs.len() {
            self.output_without_record(at);
        }
        for at in self.letters_done..self.letters.len() {
            self.letter_without_record(at);
        }
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

    /// Different keys have different identities.
    fn identities(&mut self) {
        let mut table = identity_table(self.outputs.len());
        let mask = table.len() - 1;
        let mut wrong = Vec::new();
        for (at, output) in self.outputs.iter().enumerate() {
            if output.has(Output::NO_IDENTITY) || output.has(Output::BAD_IDENTITY) {
                continue;
            }
            let Some(row) = self.rows.find(output.source) else { continue };
            let mut slot = usize::try_from(output.identity).unwrap_or_default() & mask;
            loop {
                let taken = table.get(slot).copied().unwrap_or_default() as usize;
                let other = taken.checked_sub(1).and_then(|at| self.outputs.get(at));
                match other {
                    Some(other) if other.identity != output.identity => slot = (slot + 1) & mask,
                    Some(other) => {
                        if let Some(first) = self.rows.find(other.source)
                            && self.key(first) != self.key(row)
                        {
                            wrong.push((first, row));
                        }
                        break;
                    }
                    None => {
                        if let Some(place) = table.get_mut(slot) {
                            *place = Link::try_from(at + 1).unwrap_or_default();
                        }
                        break;
                    }
                }
            }
        }
        for (first, row) in wrong {
            let offset_of = |link| self.rows.get(link).map_or(0, |(row, _)| row.offset);
            let (a, offset) = (offset_of(first), offset_of(row));
            let detail = format!(
                "offsets {a} and {offset} have different keys, and outputs of one identity"
            );
            self.found.add(Kind::Identity, || Spot { offset, detail, others: vec![first] });
        }
    }

    fn key(&self, link: Link) -> Option<Key> {
        self.rows.get(link).filter(|(_, tag)| tag.identified()).map(|(row, _)| row.key)
    }

    fn example(&self, kind: Kind, spot: Spot) -> Example {
        let around = self.rows.around(spot.offset);
        let key = self.rows.find(spot.offset).and_then(|link| self.key(link));
        let mut links: Vec<Link> = Vec::new();
        for center in std::iter::once(around).chain(spot.others) {
            for step in -NEIGHBOURS..=NEIGHBOURS {
                let link = i64::from(center) + step;
                links.extend(Link::try_from(link).ok().filter(|link| *link > 0));
            }
        }
        links.sort_unstable();
        links.dedup();
        Example {
            kind,
            topic: self.bounds.topic.clone(),
            partition: self.bounds.partition,
            offset: spot.offset,
            detail: spot.detail,
            neighbours: links.iter().filter_map(|link| self.neighbour(*link, key)).collect(),
        }
    }

    fn neighbour(&self, link: Link, of: Option<Key>) -> Option<Neighbour> {
        let (row, tag) = self.rows.get(link)?;
        let at = self.outputs.partition_point(|output| output.source < row.offset);
        let output = self.outputs.get(at).filter(|output| output.source == row.offset);
        let key = self.key(link);
        Some(Neighbour {
            offset: row.offset,
            client_key: None,
            key: key.map(|key| format!("{:032x}", u128::from_be_bytes(key))),
            time: row.time,
            fate: tag.fate(),
            output: output.map(Output::place),
            same_key: key.is_some() && key == of,
        })
    }
}

fn milliseconds(ms: i64) -> String {
    let duration = std::time::Duration::from_millis(ms.unsigned_abs());
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", humantime::format_duration(duration))
}

/// Twice as many slots as entries, or a little more.
fn identity_table(entries: usize) -> Vec<Link> {
    vec![0; (entries * 3 / 2 + 16).next_power_of_two()]
}

#[cfg(test)]
mod tests;
