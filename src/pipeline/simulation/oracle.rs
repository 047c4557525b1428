//! The naive oracle: remembers everything, looks at whole partitions, and says what must be true.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::{Cluster, Stored, index, partition};
use super::topic::{Kind, Slot, Time};
use crate::clock;
use crate::config::Conflict;
use crate::dedup::expiry::{Anchor, millis};
use crate::source::Position;

/// How the records of all partitions ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub handled: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub unidentified: u64,
    pub letters: u64,
}

/// What the oracle's log holds.
#[derive(Clone, Copy)]
struct Held {
    time: Time,
    variant: u64,
}

impl Cluster {
    /// The coordinator keeps an offset.
    pub(super) fn store(&mut self, position: &Position, by: &str) {
        let Position { partition, offset, metadata } = position;
        let before = self.group.committed(index(partition));
        self.note(|| format!("{by} commits {partition} at {offset}"));
        if before.is_some_and(|before| before > *offset) {
            self.violated(format!(
                "{by} takes the committed offset of {partition} back from {before:?} to {offset}"
            ));
        }
        if let Err(text) = self.check_settled(index(partition), offset.0) {
            self.violated(format!("{by} commits {partition} at {offset}, but {text}"));
        }
        let stored = Stored { offset: *offset, metadata: metadata.clone() };
        self.group.offsets.insert(partition.index, stored);
    }

    /// The high-water group keeps an offset.
    pub(super) fn raise(&mut self, position: &Position, by: &str) {
        let Position { partition, offset, metadata } = position;
        let before = self.group.high_water(index(partition));
        let committed = self.group.committed(index(partition));
        let floor = self.moved[index(partition)].floor;
        if committed.max(Some(floor)) < Some(*offset) {
            self.violated(format!(
                "{by} takes the high-water mark of {partition} to {offset}, but the group has committed {committed:?}"
            ));
        }
        if self.rules.exactly_once && before.is_some_and(|before| before > *offset) {
            self.violated(format!(
                "{by} takes the high-water mark of {partition} back to {offset}"
            ));
        }
        let stored = Stored { offset: *offset, metadata: metadata.clone() };
        self.group.high.insert(partition.index, stored);
    }

    /// Every record below is handled, a letter, or a duplicate of one that was handled.
    fn check_settled(&mut self, at: usize, until: i64) -> Result<(), String> {
        let input = &self.inputs[at];
        let until = usize::try_from(until).expect("an offset is not negative");
        if until > input.stable_end() {
            return Err(format!("the stable end is {}", input.stable_end()));
        }
        let from = self.ledger.checked[at];
        if from >= until {
            return Ok(());
        }
        let skipped = &self.moved[at].skipped;
        let times = input.times(clock::now(), &self.rules.window, skipped);
        for offset in from..until {
            if input.slots[offset].kind == Kind::Record
                && !skipped.contains(&offset)
                && !self.ended(at, offset)
                && !self.may_be_suppressed(at, offset, &times)
            {
                let history = self.history(at, self.key(&input.slots[offset]), &times);
                return Err(format!(
                    "{offset} was neither handled nor a letter, and nothing suppresses it; {history}"
                ));
            }
        }
        self.ledger.checked[at] = until;
        Ok(())
    }

    pub(super) fn ended(&self, at: usize, offset: usize) -> bool {
        let fate = self.ledger.seen(at, self.inputs[at].slots[offset].record.offset);
        fate.is_some_and(|fate| fate.done > 0 || fate.letters > 0)
    }

    fn done(&self, at: usize, slot: &Slot) -> u32 {
        self.ledger.seen(at, slot.record.offset).map_or(0, |fate| fate.done)
    }

    fn lettered(&self, at: usize, slot: &Slot) -> bool {
        self.ledger.seen(at, slot.record.offset).is_some_and(|fate| fate.letters > 0)
    }

    /// Some record before it has the same identity, was handled, and is close enough in time. A
    /// window that every duplicate prolongs, or that was rebuilt from a part of the topic, may hang
    /// on a duplicate.
    fn may_be_suppressed(&self, at: usize, offset: usize, times: &[Option<Time>]) -> bool {
        let slots = &self.inputs[at].slots;
        let (slot, time) = (&slots[offset], times[offset]);
        let (Some(key), Some(time)) = (self.key(slot), time) else { return false };
        let ttl = millis(self.rules.window.ttl);
        let chained = self.rules.window.anchor == Anchor::Last || self.rebuilt[at];
        let mut handled = false;
        for (before, of) in slots[..offset].iter().zip(times) {
            let Some(of) = of.filter(|_| self.key(before) == Some(key)) else { continue };
            let alike = before.variant == slot.variant || self.rules.conflict == Conflict::Suppress;
            let done = self.done(at, before) > 0 && alike;
            handled |= done;
            if handled && (done || chained) && time.low < of.high + ttl {
                return true;
            }
        }
        false
    }

    /// What the route takes for one message.
    pub(super) fn key(&self, slot: &Slot) -> Option<u64> {
        let process = self.rules.conflict == Conflict::Process;
        slot.key.map(|key| if process { key * 16 + slot.variant } else { key })
    }

    /// Everything is quiet: walks each partition in its order with a log that forgets nothing.
    pub(super) fn check_end(&mut self, clean: bool) -> Result<Tally, String> {
        let mut tally = Tally::default();
        for at in 0..self.inputs.len() {
            self.walk(at, clean, &mut tally)
                .map_err(|text| format!("at the end, {}/{text}", partition(at)))?;
        }
        Ok(tally)
    }

    fn walk(&self, at: usize, clean: bool, tally: &mut Tally) -> Result<(), String> {
        let input = &self.inputs[at];
        let skipped = &self.moved[at].skipped;
        let times = input.times(clock::now(), &self.rules.window, skipped);
        let ttl = millis(self.rules.window.ttl);
        let mut vague = self.vague(at, &times);
        let mut log: BTreeMap<u64, Held> = BTreeMap::new();
        for (offset, (slot, time)) in input.slots.iter().zip(&times).enumerate() {
            let Some(time) = *time else { continue };
            let (done, lettered) = (self.done(at, slot), self.lettered(at, slot));
            let end = |what: &str| {
                format!("{offset}: {what}; {}", self.history(at, self.key(slot), &times))
            };
            if skipped.contains(&offset) {
                if done > 0 {
                    return Err(end("handled, although somebody passed it over"));
                }
                continue;
            }
            if clean && done > 1 {
                return Err(end(&format!("handled {done} times without a fault")));
            }
            tally.handled += u64::from(done > 0);
            tally.letters += u64::from(lettered);
            let Some(key) = self.key(slot) else {
                tally.unidentified += 1;
                if done == 0 && !lettered {
                    return Err(end("without an identity, and neither handled nor a letter"));
                }
                continue;
            };
            if done > 0 && lettered {
                vague.insert(key);
            }
            if vague.contains(&key) {
                if done == 0 && !lettered && !self.may_be_suppressed(at, offset, &times) {
                    return Err(end("lost"));
                }
                continue;
            }
            let held = log.get(&key).copied();
            let live = held.filter(|held| time.low < held.time.high + ttl);
            match live {
                None if done == 0 && !lettered => return Err(end("lost: nothing suppresses it")),
                None if done > 0 => drop(log.insert(key, Held { time, variant: slot.variant })),
                None => {}
                // Where a later record was handled before the conflict had its letter, a crash
                // makes it a fresh one.
                Some(held)
                    if done > 0
                        && held.variant != slot.variant
                        && self.rules.conflict == Conflict::DeadLetter
                        && !self.rules.exactly_once
                        && !clean =>
                {
                    vague.insert(key);
                }
                Some(_) if done > 0 => {
                    return Err(end("handled, but a record of its identity was handled before"));
                }
                Some(held) if held.variant != slot.variant => {
                    tally.conflicts += 1;
                    if self.rules.conflict == Conflict::DeadLetter && !lettered {
                        return Err(end("a conflict without a letter"));
                    }
                }
                Some(_) if lettered => return Err(end("a duplicate became a letter")),
                Some(held) => {
                    tally.duplicates += 1;
                    if self.rules.window.anchor == Anchor::Last && time.low > held.time.low {
                        log.insert(key, Held { time, ..held });
                    }
                }
            }
        }
        Ok(())
    }

    /// All records of a key, with their times and what became of them.
    fn history(&self, at: usize, key: Option<u64>, times: &[Option<Time>]) -> String {
        let of_key = |(slot, time): (&Slot, &Option<Time>)| {
            let time = time.filter(|_| self.key(slot) == key)?;
            let (done, lettered) = (self.done(at, slot), self.lettered(at, slot));
            let (offset, variant) = (slot.record.offset, slot.variant);
            let since = |time: i64| time - super::topic::EPOCH.0;
            let of_record = slot.record.timestamp.map(|at| since(at.0));
            let (low, high) = (since(time.low), since(time.high));
            Some(format!(
                "{offset} v{variant} by {of_record:?} t {low}..{high} done {done} letter {lettered}"
            ))
        };
        let all: Vec<_> = self.inputs[at].slots.iter().zip(times).filter_map(of_key).collect();
        format!("key {key:?}, {:?}: {}", self.rules, all.join("; "))
    }

    /// Keys of which the order of things alone does not decide: a record without a timestamp, or a
    /// log that was rebuilt in the middle of a window.
    fn vague(&self, at: usize, times: &[Option<Time>]) -> BTreeSet<u64> {
        // A rebuild cannot know which conflicts were suppressed.
        let exact =
            self.rules.window.anchor == Anchor::Last && self.rules.conflict != Conflict::Suppress;
        let loose = self.rebuilt[at] && !exact;
        let slots = self.inputs[at].slots.iter().zip(times);
        slots
            .filter(|(_, time)| time.is_some_and(|time| loose || !time.exact()))
            .filter_map(|(slot, _)| self.key(slot))
            .chain(self.moved[at].vague.iter().copied())
            .collect()
    }
}
