//! The committed outputs and letters, sorted by the input partition that they came from.
//!
//! Owns: the order of outputs, and how far back retention lets one look.
//! Never: asks whether an output should be there (see `partition`).

use std::collections::HashMap;
use std::sync::Arc;

use super::message::{IdentityHeader, Message};

/// A committed output: 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Output {
    /// Offset of the input record that it names.
    pub source: i64,
    pub partition: u16,
    pub offset: i64,
    /// The upper half of the identity.
    pub identity: u64,
    pub digest: u32,
    pub flags: u8,
}

impl Output {
    /// The digest covers the timestamp.
    pub const DATED: u8 = 1;
    pub const NO_IDENTITY: u8 = 2;
    pub const BAD_IDENTITY: u8 = 4;
    /// One of our headers is there twice.
    pub const REPEATED_HEADER: u8 = 8;

    /// # Panics
    /// Beyond 65,535 output partitions.
    pub fn of(message: &Message<'_>, source: i64, partition: i32) -> Self {
        let digests = message.digests();
        let (mut flags, identity) = match message.identity() {
            IdentityHeader::Missing => (Self::NO_IDENTITY, 0),
            IdentityHeader::Unreadable => (Self::BAD_IDENTITY, 0),
            IdentityHeader::Is(identity) => (0, (identity >> 64) as u64),
        };
        let dated = !message.dated_by_broker;
        flags |= if dated { Self::DATED } else { 0 };
        let (sources, identities) = message.own_headers();
        flags |= if sources > 1 || identities > 1 { Self::REPEATED_HEADER } else { 0 };
        Self {
            source,
            partition: u16::try_from(partition).expect("a topic has at most 65,535 partitions"),
            offset: message.offset,
            identity,
            digest: if dated { digests.dated } else { digests.undated },
            flags,
        }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn place(&self) -> String {
        format!("{}/{}", self.partition, self.offset)
    }
}

/// A dead letter of this group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    pub source: i64,
    pub partition: i32,
    pub offset: i64,
    pub generation: i64,
    pub reason: Arc<str>,
    pub digest: u32,
    /// Parts of the record were left out.
    pub truncated: bool,
}

/// Two outputs in the wrong order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backward {
    pub source: i64,
    /// The output before it in the same output partition came from this offset.
    pub after: i64,
    pub output: Output,
}

/// What the output topic holds of one input partition.
#[derive(Debug, Default)]
pub struct OfPartition {
    pub outputs: Vec<Output>,
    pub letters: Vec<Letter>,
    pub backward: Vec<Backward>,
    pub backward_count: u64,
    /// Outputs or letters of records below this offset may have been deleted.
    pub cut_below: i64,
}

type Input = (Arc<str>, i32);

/// Collects what is read, one partition of the output or dead-letter topic after the other.
#[derive(Debug, Default)]
pub struct Collector {
    of: HashMap<Input, OfPartition>,
    /// Of the partition that is being read: first (smallest) and last source offset of each input.
    seen: HashMap<Input, (i64, i64)>,
    examples_max: u64,
}

impl Collector {
    /// Knows these input partitions; `about` says how many records each has.
    pub fn new(inputs: impl Iterator<Item = (Arc<str>, i32, usize)>, examples_max: u64) -> Self {
        let of = inputs.map(|(topic, partition, about)| {
            // Addresses, which cost nothing before they are written to.
            let outputs = Vec::with_capacity(about.min(1 << 26));
            ((topic, partition), OfPartition { outputs, ..OfPartition::default() })
        });
        Self { of: of.collect(), seen: HashMap::new(), examples_max }
    }

    /// False: no input partition of this name.
    pub fn output(&mut self, topic: &Arc<str>, partition: i32, output: Output) -> bool {
        let name = (topic.clone(), partition);
        let Some(of) = self.of.get_mut(&name) else { return false };
        // The same offset again is a double, which is told as such.
        if let Some(after) = saw(&mut self.seen, name, output.source)
            && after > output.source
        {
            of.backward_count += 1;
            if (of.backward.len() as u64) < self.examples_max {
                of.backward.push(Backward { source: output.source, after, output });
            }
        }
        of.outputs.push(output);
        true
    }

    /// False: no input partition of this name.
    pub fn letter(&mut self, topic: &Arc<str>, partition: i32, letter: Letter) -> bool {
        let name = (topic.clone(), partition);
        let Some(of) = self.of.get_mut(&name) else { return false };
        saw(&mut self.seen, name, letter.source);
        of.letters.push(letter);
        true
    }

    /// A partition of the topic was read. `cut`: what was before its first record is gone, so that
    /// nothing can be said of records before the first that was seen.
    pub fn end_partition(&mut self, cut: bool) {
        if cut {
            for (name, of) in &mut self.of {
                let first = self.seen.get(name).map_or(i64::MAX, |(first, _)| *first);
                of.cut_below = of.cut_below.max(first);
            }
        }
        self.seen.clear();
    }

    /// Nothing can be said of any record: outputs or letters are there that cannot be read.
    pub fn hidden(&mut self) {
        for of in self.of.values_mut() {
            of.cut_below = i64::MAX;
        }
    }

    pub fn take(&mut self, topic: &Arc<str>, partition: i32) -> OfPartition {
        let mut of = self.of.remove(&(topic.clone(), partition)).unwrap_or_default();
        // In place: what was read in order stays so.
        of.outputs.sort_unstable();
        of.letters.sort_by_key(|letter| (letter.source, letter.partition, letter.offset));
        of
    }
}

/// Returns the source offset that was seen before.
fn saw(seen: &mut HashMap<Input, (i64, i64)>, name: Input, source: i64) -> Option<i64> {
    let mut before = None;
    seen.entry(name)
        .and_modify(|(first, last)| {
            before = Some(*last);
            (*first, *last) = ((*first).min(source), source);
        })
        .or_insert((source, source));
    before
}
