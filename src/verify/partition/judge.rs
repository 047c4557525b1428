//! What should have become of a record, and what did.
//!
//! Owns: the rules of the window, of conflicts, letters and skips, in the verifier's words.

use std::ops::Range;
use std::time::Duration;

use super::super::finding::{Fate, Kind};
use super::super::outputs::{Letter, Output};
use super::rows::{Link, Row, Tag};
use super::{OnConflict, Partition, Spot};

impl Partition {
    /// A record with one output or more.
    pub(super) fn passed(
        &mut self,
        row: &mut Row,
        tag: Tag,
        outputs: Range<usize>,
        letters: Range<usize>,
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
        let phase = self.may_be_off_phase(&before, row);
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
        let from = handled.previous;
        self.may_be_rebuilt()
            && self
                .before(from, |earlier| {
                    self.within(earlier.time, handled.time) && !self.within(earlier.time, row.time)
                })
                .is_some()
    }

    /// With `anchor = "last"` a rebuilt log is what it was.
    fn may_be_rebuilt(&self) -> bool {
        !self.rules.anchor_last && !self.rules.strict_window
    }

    /// The newest row of a key, from this one on backwards, that fits and has no letter.
    fn before(&self, from: Link, fits: impl Fn(&Row) -> bool) -> Option<Link> {
        let mut at = from;
        // Bounded: a key with more records than this has one that fits, as far as anyone can tell.
        for _ in 0..1_000 {
            let (row, tag) = self.rows.get(at)?;
            if tag.fate() != Fate::DeadLetter && fits(row) {
                return Some(at);
            }
            at = row.previous;
        }
        Some(at)
    }

    fn identity_at(&self, source: i64) -> Option<u64> {
        let at = self.outputs.partition_point(|output| output.source < source);
        let output = self.outputs.get(at).filter(|output| output.source == source)?;
        let readable = !output.has(Output::NO_IDENTITY) && !output.has(Output::BAD_IDENTITY);
        readable.then_some(output.identity)
    }

    /// A record with a letter and no output.
    pub(super) fn dead_lettered(&mut self, row: &Row, tag: Tag, letters: Range<usize>) {
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
                if sure
                    && entry_tag.fate() == Fate::Handled
                    && entry.check == row.check
                    && !self.may_be_off_phase(entry, row) =>
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
        let other = |before: &Row| before.check != row.check && self.within(before.time, row.time);
        self.before(row.previous, other).is_some()
    }

    /// A record with neither output nor letter.
    pub(super) fn silent(&mut self, row: &mut Row, tag: Tag) -> Fate {
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
        let near = |before: &Row| self.within(before.time, row.time);
        if self.may_be_rebuilt()
            && let Some(near) = self.before(row.previous, near)
        {
            row.entry = near;
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
            let same =
                |before: &Row| before.check == row.check && self.within(before.time, row.time);
            if self.may_be_rebuilt() && self.before(row.previous, same).is_some() {
                return Fate::OffPhase;
            }
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
}

fn milliseconds(ms: i64) -> String {
    let duration = Duration::from_millis(ms.unsigned_abs());
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", humantime::format_duration(duration))
}
