//! The route `least`: every message called, and called again only where something had happened.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Findings, Letters};
use crate::effects::Call;
use crate::journal::{Event, SETTLES_MS};
use crate::kafka::{Kafka, Partition};
use crate::traffic::{Acks, Fate, NONE, Route, fate, partition};

#[derive(Default)]
pub struct Count {
    pub findings: Findings,
    pub messages: u64,
    pub calls: u64,
    /// Calls that the service had asked for by its answer.
    pub retries: u64,
    pub repeated: u64,
    /// With an event between the two calls; the others have one whose consequences last.
    pub repeated_after_event: u64,
    /// Calls at times when nothing had happened for long.
    pub quiet_calls: u64,
    pub letters: u64,
    pub letters_expected: u64,
    pub letters_repeated: u64,
}

const KINDS: [&str; 6] = [
    "not reached",
    "lost",
    "another key",
    "another record",
    "repeated without a cause",
    "lost letter",
];

pub fn count(
    kafka: &Kafka,
    seed: u64,
    acks: &Acks,
    mut calls: Vec<Call>,
    events: &[Event],
    committed: &BTreeMap<Partition, i64>,
) -> Result<Count, String> {
    let mut count = Count { findings: Findings::of(&KINDS), ..Count::default() };
    let causes = Causes::of(events);
    calls.sort_unstable_by_key(|call| (call.id, call.at_ms));
    count.calls = calls.len() as u64;
    count.quiet_calls =
        calls.iter().filter(|call| causes.quiet(call.at_ms, call.at_ms)).count() as u64;

    let mut called = vec![false; acks.first.len()];
    for calls in calls.chunk_by(|a, b| a.id == b.id) {
        let Some(called) = called.get_mut(calls[0].id as usize) else {
            count.findings.add("call of nothing", || format!("{:?}", calls[0]));
            continue;
        };
        *called = calls.iter().any(|call| call.answer == 200 || call.answer == 422);
        count.judge(seed, acks, calls, &causes);
    }
    for (id, first) in (0_u32..).zip(&acks.first) {
        if *first == NONE || acks.unknown.contains(&id) {
            continue;
        }
        count.messages += 1;
        let place = (Route::Least.input().to_owned(), partition(seed, id));
        if called[id as usize] {
            continue;
        }
        if committed.get(&place).is_none_or(|end| i64::from(*first) >= *end) {
            count.findings.add("not reached", || format!("m-{id} at {}/{first}", place.1));
        } else {
            count.findings.add("lost", || format!("m-{id}, acknowledged at offset {first}"));
        }
    }
    let letters = Letters::read(kafka, Route::Least, acks, committed, &mut count.findings)?;
    count.letters = letters.read;
    count.letters_expected = letters.expected;
    count.letters_repeated = letters.repeated;
    Ok(count)
}

impl Count {
    /// All calls of one message, by time.
    fn judge(&mut self, seed: u64, acks: &Acks, calls: &[Call], causes: &Causes) {
        let id = calls[0].id;
        let first = acks.first[id as usize];
        // A send whose answer is unknown may have been the first of the message.
        let certain = !acks.unknown.contains(&id);
        let handled = fate(seed, Route::Least, id) == Fate::Handled && certain;
        for call in calls {
            if call.key != calls[0].key {
                self.findings.add("another key", || format!("m-{id}: {call:?}"));
            }
            if handled && first != NONE && call.offset != first {
                self.findings.add("another record", || {
                    format!("m-{id} is offset {first}, called for {}", call.offset)
                });
            }
        }
        for pair in calls.windows(2) {
            let [before, after] = pair else { continue };
            if before.answer == 503 && after.attempt == before.attempt.saturating_add(1) {
                self.retries += 1;
                continue;
            }
            self.repeated += 1;
            if causes.between(before.at_ms, after.at_ms) {
                self.repeated_after_event += 1;
            } else if causes.quiet(before.at_ms, after.at_ms) {
                self.findings.add("repeated without a cause", || {
                    format!(
                        "m-{id}, {}/{}: attempt {} at {} ms from port {} and {} at {} ms from {}",
                        after.partition,
                        after.offset,
                        before.attempt,
                        before.at_ms,
                        before.peer,
                        after.attempt,
                        after.at_ms,
                        after.peer
                    )
                });
            }
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "messages": self.messages,
            "calls": self.calls,
            "calls_in_quiet": self.quiet_calls,
            "retries_asked_for": self.retries,
            "repeated": self.repeated,
            "repeated_with_an_event_between": self.repeated_after_event,
            "letters": self.letters,
            "letters_expected": self.letters_expected,
            "letters_repeated": self.letters_repeated,
            "findings": self.findings.json(),
        })
    }
}

/// When something happened, in order.
struct Causes(Vec<u32>);

impl Causes {
    fn of(events: &[Event]) -> Self {
        let mut times: Vec<u32> = events.iter().map(|event| event.at_ms).collect();
        times.sort_unstable();
        Self(times)
    }

    fn between(&self, after: u32, until: u32) -> bool {
        let next = self.0.partition_point(|at| *at <= after);
        self.0.get(next).is_some_and(|at| *at <= until)
    }

    /// Nothing happened from a while before the first time to the second.
    fn quiet(&self, from: u32, until: u32) -> bool {
        !self.between(from.saturating_sub(SETTLES_MS), until)
    }
}
