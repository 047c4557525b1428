//! Outputs and letters against the records that they name: is there one, is it the same, and do
//! keys and identities belong together one to one.
//!
//! Never: asks whether the record should have been handled (see `judge`).

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::finding::{Fate, Kind};
use super::super::outputs::{Backward, Output};
use super::rows::Link;
use super::{Input, Partition, Spot};

impl Partition {
    pub(super) fn order(&mut self, backward: &[Backward], count: u64) {
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

    /// Of outputs, those that name this offset; those before it name no record.
    pub(super) fn outputs_of(&mut self, offset: i64) -> Range<usize> {
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

    pub(super) fn letters_of(&mut self, offset: i64) -> Range<usize> {
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

    pub(super) fn output_without_record(&mut self, at: usize) {
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

    pub(super) fn letter_without_record(&mut self, at: usize) {
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
    pub(super) fn compare(&mut self, input: &Input, outputs: Range<usize>, letters: Range<usize>) {
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

    /// Nothing was handled beyond the offset of the high-water group.
    pub(super) fn high_water(&mut self) {
        let Some(high_water) = self.bounds.high_water else { return };
        let settled = self.rows.from(high_water).find(|(_, tag)| tag.fate() != Fate::Skipped);
        if let Some(offset) = settled.map(|(row, _)| row.offset) {
            let detail = format!(
                "the group is at {}, the high-water group at {high_water}, and offset {offset} was \
                 settled: one transaction moves both",
                self.bounds.committed
            );
            self.found.add(Kind::Offsets, || Spot { offset, detail, others: Vec::new() });
        }
    }

    /// Different keys have different identities.
    pub(super) fn identities(&mut self) {
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
}

/// Twice as many slots as entries, or a little more.
fn identity_table(entries: usize) -> Vec<Link> {
    vec![0; (entries * 3 / 2 + 16).next_power_of_two()]
}
