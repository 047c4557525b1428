//! Reads what a route left behind, in the order that makes the answer exact, and has it judged.
//!
//! ```text
//! committed offsets       what lies below them is settled
//! ends of the outputs     what is settled lies below them
//! outputs, letters        read as committed; outputs once more as uncommitted
//! committed offsets       no output that was read comes from these or later ones
//! input                   partition by partition, up to the first committed offset
//! ```
//!
//! So a daemon may run meanwhile: what it does counts neither for nor against it.
//!
//! Owns: that order. Never: judges a record (see `partition`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::finding::{Counts, Example, Found, Kind};
use super::group::{Groups, Offsets};
use super::key::Keys;
use super::letter;
use super::message::Message;
use super::outputs::{Collector, Output};
use super::partition::{Bounds, Input, OnConflict, Partition, Rules};
use super::progress::Progress;
use super::reader::{self, Error, Isolation, Reach, Reader};
use crate::clock;
use crate::config::{Conflict, Kafka, Missing, Route};
use crate::dedup::expiry::Anchor;

/// What the command line adds to the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    pub output: Option<String>,
    pub examples: u64,
    /// How long an open transaction is waited for.
    pub patience: Duration,
    pub strict_window: bool,
}

/// One input partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionReport {
    pub route: String,
    pub topic: String,
    pub partition: i32,
    /// The first offset of the topic.
    pub first: i64,
    /// Below this offset everything was looked at. `None`: nothing is committed.
    pub committed: Option<i64>,
    pub end: i64,
    pub generation: i64,
    #[serde(flatten)]
    pub counts: Counts,
}

/// One output topic.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OutputReport {
    pub route: String,
    pub topic: String,
    /// Read as committed.
    pub committed: u64,
    /// Read as uncommitted only: what a transaction took back.
    pub aborted: u64,
    /// Without `onced-source`, or of a topic that is none of the route's.
    pub foreign: u64,
}

/// What was found of one route.
#[derive(Debug, Default)]
pub struct RouteReport {
    pub partitions: Vec<PartitionReport>,
    pub output: Option<OutputReport>,
    pub violations: BTreeMap<Kind, u64>,
    pub examples: Vec<Example>,
    pub notes: Vec<String>,
}

type Name = (Arc<str>, i32);

struct Gather<'a> {
    kafka: &'a Kafka,
    route: &'a Route,
    options: &'a Options,
    progress: &'a Progress,
    committed: Reader,
    uncommitted: Reader,
    found: Found<Example>,
    notes: Vec<String>,
}

/// # Errors
/// The brokers did not answer, or not so that something follows from it.
pub fn gather(
    kafka: &Kafka,
    route: &Route,
    options: &Options,
    progress: &Progress,
) -> Result<RouteReport, Error> {
    let mut gather = Gather {
        kafka,
        route,
        options,
        progress,
        committed: Reader::new(kafka, Isolation::Committed)?,
        uncommitted: Reader::new(kafka, Isolation::Uncommitted)?,
        found: Found::new(options.examples),
        notes: Vec::new(),
    };
    gather.run()
}

/// What an input partition is known by before it is read.
struct Known {
    name: Name,
    offsets: Offsets,
    first: i64,
    end: i64,
}

impl Gather<'_> {
    fn run(&mut self) -> Result<RouteReport, Error> {
        let groups = Groups::new(self.kafka)?;
        let names = self.inputs()?;
        let asked: Vec<(&str, i32)> = names.iter().map(|(topic, at)| (&**topic, *at)).collect();
        let offsets = groups.offsets(&asked, self.options.patience)?;
        let mut known = Vec::new();
        for (name, offsets) in names.iter().zip(offsets) {
            let (first, end) = self.uncommitted.ends(&name.0, name.1)?;
            known.push(Known { name: name.clone(), offsets, first, end });
        }
        if known.iter().all(|known| known.offsets.settled().is_none()) {
            return Err(Error::Other(format!(
                "the group {:?} has committed nothing for the topics of route {}: there is nothing \
                 to verify yet",
                self.kafka.group, self.route.name
            )));
        }
        for known in &known {
            self.judge_offsets(known);
        }
        let mut collector = Collector::new(
            known.iter().map(|known| {
                let about = known.offsets.settled().unwrap_or(0).min(known.end) - known.first;
                (known.name.0.clone(), known.name.1, usize::try_from(about).unwrap_or(0))
            }),
            self.options.examples,
        );
        let output = self.outputs(&mut collector)?;
        self.letters(&mut collector, &known)?;
        let later = groups.offsets(&asked, self.options.patience)?;
        drop(groups);
        let mut compacted = Vec::new();
        for topic in &self.route.topics {
            if reader::is_compacted(self.kafka, topic) == Some(true) {
                self.note(format!(
                    "{topic} is compacted: records that are gone are not looked at, nor what came \
                     of them"
                ));
                compacted.push(topic.clone());
            }
        }
        let mut partitions = Vec::new();
        for (known, later) in known.iter().zip(&later) {
            partitions.push(self.input(
                known,
                later,
                &mut collector,
                (output.is_some(), compacted.contains(&known.name.0)),
            )?);
        }
        let found = std::mem::replace(&mut self.found, Found::new(0));
        let (violations, examples) = found.into_parts();
        Ok(RouteReport {
            partitions,
            output,
            violations,
            examples: examples.into_iter().map(|(_, example)| example).collect(),
            notes: std::mem::take(&mut self.notes),
        })
    }

    fn inputs(&self) -> Result<Vec<Name>, Error> {
        let mut names = Vec::new();
        for topic in &self.route.topics {
            let count = self.committed.partitions(topic)?;
            names.extend((0..count).map(|index| (topic.clone(), index)));
        }
        Ok(names)
    }

    fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn violation(
        &mut self,
        kind: Kind,
        (topic, partition): (&str, i32),
        offset: i64,
        detail: String,
    ) {
        let topic = topic.to_owned();
        let neighbours = Vec::new();
        self.found.add(kind, || Example { kind, topic, partition, offset, detail, neighbours });
    }

    fn judge_offsets(&mut self, known: &Known) {
        let Known { name: (topic, index), offsets, end, .. } = known;
        let place = (&**topic, *index);
        let Some(settled) = offsets.settled() else {
            self.note(format!("{topic}/{index}: the group has committed nothing"));
            return;
        };
        if settled > *end {
            let detail = format!("offset {settled} is committed, and the topic ends at {end}");
            self.violation(Kind::Offsets, place, settled, detail);
        }
        match &offsets.group {
            Some(group) if group.metadata.is_some() => {}
            Some(group) => self.note(format!(
                "{topic}/{index}: the group's offset {} was not committed by onced",
                group.offset
            )),
            None => self.note(format!("{topic}/{index}: the group's offset is gone")),
        }
        if let Some(high) = &offsets.high_water
            && high.metadata.is_none()
        {
            let detail =
                format!("the high-water group's offset {} was not committed by onced", high.offset);
            self.violation(Kind::Offsets, place, high.offset, detail);
        }
        if offsets.generation() > 0 {
            self.note(format!(
                "{topic}/{index}: the group was rewound: outputs that came again are counted as \
                 \"rerun\", not as doubled or out of order"
            ));
        }
        if known.first > 0 {
            self.note(format!(
                "{topic}/{index}: records below offset {} are deleted: what they may have \
                 suppressed is undecided",
                known.first
            ));
        }
    }

    fn output_topic(&self) -> Option<Arc<str>> {
        match &self.options.output {
            Some(topic) => Some(topic.as_str().into()),
            None => super::output_topic(self.route),
        }
    }

    /// Reads the output topic, both ways.
    fn outputs(&mut self, collector: &mut Collector) -> Result<Option<OutputReport>, Error> {
        let Some(topic) = self.output_topic() else {
            self.note(format!(
                "route {}: its handler writes to no topic: that each record was handled once is \
                 not seen from here; input, letters and offsets are",
                self.route.name
            ));
            return Ok(None);
        };
        if reader::is_compacted(self.kafka, &topic) == Some(true) {
            self.note(format!(
                "output topic {topic} is compacted: outputs that are gone cannot be told from \
                 outputs that never were"
            ));
            collector.hidden();
        }
        let mut report = OutputReport {
            route: self.route.name.to_string(),
            topic: topic.to_string(),
            ..OutputReport::default()
        };
        for index in 0..self.committed.partitions(&topic)? {
            let (first, end) = self.uncommitted.ends(&topic, index)?;
            if first > 0 {
                self.note(format!(
                    "output {topic}/{index}: records below offset {first} are deleted: what they \
                     settled is undecided"
                ));
            }
            let seen =
                self.committed_outputs((&topic, index), (first, end), collector, &mut report)?;
            collector.end_partition(first > 0);
            self.compare((&topic, index), (first, end), &seen, &mut report)?;
        }
        Ok(Some(report))
    }

    /// Returns offset and digest of each record that is committed.
    fn committed_outputs(
        &mut self,
        (topic, index): (&str, i32),
        (first, end): (i64, i64),
        collector: &mut Collector,
        report: &mut OutputReport,
    ) -> Result<Seen, Error> {
        let mut seen = Seen { records: Vec::new(), until: end };
        let input = |topic: &str| self.route.topics.iter().find(|known| ***known == *topic);
        self.progress.start(&format!("output {topic}/{index}"), first, end);
        let reach = self.committed.read(
            (topic, index),
            (first, end),
            self.options.patience,
            |message| {
                self.progress.step();
                report.committed += 1;
                seen.records.push((message.offset, message.digests().dated));
                let known = message.source().is_some_and(|source| {
                    input(source.topic).is_some_and(|name| {
                        let output = Output::of(message, source.offset, index);
                        collector.output(name, source.partition, output)
                    })
                });
                report.foreign += u64::from(!known);
            },
        )?;
        if let Reach::Hidden(at) = reach {
            let detail = format!(
                "a transaction in {topic}/{index} is open at offset {at}, and did not end within \
                 {:?}: readers get no further, and outputs behind it are not looked at",
                self.options.patience
            );
            self.violation(Kind::Hanging, (topic, index), at, detail);
            collector.hidden();
            seen.until = at;
        }
        Ok(seen)
    }

    /// A reader of uncommitted records gets all that a reader of committed ones does.
    fn compare(
        &mut self,
        (topic, index): (&str, i32),
        (first, end): (i64, i64),
        seen: &Seen,
        report: &mut OutputReport,
    ) -> Result<(), Error> {
        let mut rest = seen.records.iter().copied().peekable();
        let mut wrong: Vec<(i64, &str)> = Vec::new();
        let mut wrong_count = 0;
        let mut add = |offset, what| {
            wrong_count += 1;
            if (wrong.len() as u64) < self.options.examples {
                wrong.push((offset, what));
            }
        };
        self.progress.start(&format!("output {topic}/{index}, uncommitted"), first, end);
        self.uncommitted.read((topic, index), (first, end), self.options.patience, |message| {
            self.progress.step();
            while let Some((offset, _)) = rest.next_if(|(offset, _)| *offset < message.offset) {
                add(offset, "is not there for a reader of uncommitted records");
            }
            match rest.next_if(|(offset, _)| *offset == message.offset) {
                Some((offset, digest)) if digest != message.digests().dated => {
                    add(offset, "reads otherwise for a reader of uncommitted records");
                }
                Some(_) => {}
                None if message.offset < seen.until => report.aborted += 1,
                None => {}
            }
        })?;
        for (offset, _) in rest {
            add(offset, "is not there for a reader of uncommitted records");
        }
        for (offset, what) in &wrong {
            let detail =
                format!("output {topic}/{index}/{offset} was read as committed, and {what}");
            self.violation(Kind::AbortedRead, (topic, index), *offset, detail);
        }
        let more = wrong_count - wrong.len() as u64;
        self.found.append(&BTreeMap::from([(Kind::AbortedRead, more)]), Vec::new());
        Ok(())
    }

    fn letters(&mut self, collector: &mut Collector, known: &[Known]) -> Result<(), Error> {
        let Some(topic) = self.route.dead_letter.clone() else { return Ok(()) };
        let partitions = match self.committed.partitions(&topic) {
            Ok(partitions) => partitions,
            Err(Error::NoTopic { .. }) => {
                self.note(format!("there is no dead-letter topic {topic:?}: no letters"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let ids: BTreeMap<Name, String> = known
            .iter()
            .filter_map(|known| {
                let id = &known.offsets.metadata()?.topic_id;
                Some((known.name.clone(), id.clone()))
            })
            .collect();
        let input = |topic: &str| self.route.topics.iter().find(|known| ***known == *topic);
        for index in 0..partitions {
            let (first, end) = self.uncommitted.ends(&topic, index)?;
            self.progress.start(&format!("letters {topic}/{index}"), first, end);
            let group = self.kafka.group.as_str();
            let each = |message: &Message<'_>| {
                self.progress.step();
                let Some(read) = letter::read(message, index) else { return };
                let Some(name) = input(&read.topic) else { return };
                let id = ids.get(&(name.clone(), read.partition));
                if read.group == group && id.is_none_or(|id| *id == read.topic_id) {
                    collector.letter(name, read.partition, read.letter);
                }
            };
            let reach =
                self.committed.read((&topic, index), (first, end), self.options.patience, each)?;
            collector.end_partition(first > 0);
            if let Reach::Hidden(at) = reach {
                let detail = format!("a transaction in {topic}/{index} is open at offset {at}");
                self.violation(Kind::Hanging, (&topic, index), at, detail);
                collector.hidden();
            }
        }
        Ok(())
    }

    /// Reads one input partition and has it judged.
    fn input(
        &mut self,
        known: &Known,
        later: &Offsets,
        collector: &mut Collector,
        (outputs_known, compacted): (bool, bool),
    ) -> Result<PartitionReport, Error> {
        let (topic, index) = (&known.name.0, known.name.1);
        // Retention may have gone on since.
        let (first, _) = self.uncommitted.ends(topic, index)?;
        let settled = known.offsets.settled();
        let until = settled.unwrap_or(0).min(known.end);
        let bounds = Bounds {
            topic: topic.to_string(),
            partition: index,
            first,
            committed: until,
            // Without any offset there is nothing to hold against an output.
            committed_later: later.settled().unwrap_or(i64::MAX).max(until),
            high_water: known.offsets.behind().filter(|_| outputs_known),
            skips: known.offsets.skips(),
            generation: known.offsets.generation().max(later.generation()),
            stream_time: known
                .offsets
                .metadata()
                .and_then(|metadata| metadata.stream_time)
                .map(|s| s.0),
            latest: clock::now().0.saturating_add(millis(self.route.window.skew)),
            compacted,
        };
        let generation = bounds.generation;
        let rules = self.rules(outputs_known);
        let of = collector.take(topic, index);
        let mut partition = Partition::new(rules, bounds, of, self.options.examples);
        let keys = Keys::new(&self.route.identity);
        self.progress.start(&format!("input {topic}/{index}"), first, until);
        let reach = self.committed.read(
            (topic, index),
            (first, until),
            self.options.patience,
            |message| {
                self.progress.step();
                let derived = keys.derive(topic, message);
                partition.input(&Input {
                    offset: message.offset,
                    timestamp: message.timestamp,
                    key: derived.key,
                    check: derived.check,
                    digests: message.digests(),
                });
            },
        )?;
        if let Reach::Hidden(at) = reach {
            return Err(Error::Other(format!(
                "offset {until} of {topic}/{index} is committed, and an open transaction hides the \
                 records from offset {at} on"
            )));
        }
        let mut verdict = partition.finish();
        for example in &mut verdict.examples {
            self.fill_in(&keys, (topic, index), example)?;
        }
        if verdict.counts.untimed > 0 {
            self.note(format!(
                "{topic}/{index}: {} records carry no timestamp or are dated in the future: not \
                 judged by time",
                verdict.counts.untimed
            ));
        }
        let examples =
            verdict.examples.into_iter().map(|example| (example.kind, example)).collect();
        self.found.append(&verdict.violations, examples);
        Ok(PartitionReport {
            route: self.route.name.to_string(),
            topic: topic.to_string(),
            partition: index,
            first,
            committed: settled,
            end: known.end,
            generation,
            counts: verdict.counts,
        })
    }

    fn rules(&self, outputs_known: bool) -> Rules {
        let window = &self.route.window;
        Rules {
            ttl: millis(window.ttl),
            lateness: millis(window.lateness),
            anchor_last: window.anchor == Anchor::Last,
            missing_is_letter: self.route.missing == Missing::DeadLetter,
            conflict: match self.route.conflict {
                Conflict::Suppress => OnConflict::Suppress,
                Conflict::DeadLetter | Conflict::Process => OnConflict::Letter,
            },
            outputs_known,
            strict_window: self.options.strict_window,
        }
    }

    /// Reads the records of an example again, for what their keys look like.
    fn fill_in(
        &self,
        keys: &Keys,
        (topic, index): (&str, i32),
        example: &mut Example,
    ) -> Result<(), Error> {
        let mut at = 0;
        while let Some(start) = example.neighbours.get(at).map(|neighbour| neighbour.offset) {
            // Those that lie together are read together.
            let near = |neighbour: &&super::finding::Neighbour| neighbour.offset < start + 100;
            let count = example.neighbours.iter().skip(at).take_while(near).count();
            let run = example.neighbours.get_mut(at..at + count).unwrap_or_default();
            let end = run.last().map_or(start, |last| last.offset + 1);
            self.committed.read(
                (topic, index),
                (start, end),
                self.options.patience,
                |message| {
                    if let Some(found) = run.iter_mut().find(|n| n.offset == message.offset) {
                        found.client_key = keys.shown(topic, message);
                    }
                },
            )?;
            at += count;
        }
        Ok(())
    }
}

/// What a reader of committed records got of one output partition.
struct Seen {
    records: Vec<(i64, u32)>,
    /// It got no further.
    until: i64,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
