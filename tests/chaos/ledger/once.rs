//! The route `once`: every message once in the output, for a reader of committed records.

use std::collections::{BTreeMap, HashMap};

use rdkafka::Message as _;
use serde_json::{Value, json};

use super::{Findings, Letters, header, read_topic};
use crate::effects::source;
use crate::kafka::{Kafka, Partition};
use crate::traffic::{
    Acks, Fate, NONE, OUTPUT, PARTITIONS, Route, fate, id_of, partition, payload,
};

pub struct Count {
    pub findings: Findings,
    pub messages: u64,
    pub outputs: u64,
    /// Outputs of transactions that were aborted: read uncommitted and not committed.
    pub aborted_outputs: u64,
    /// Where messages were lost, as long as there are not too many places.
    pub lost_runs: Vec<String>,
    pub letters: u64,
    pub letters_expected: u64,
}

const KINDS: [&str; 6] =
    ["not reached", "lost", "doubled", "aborted read", "reordered", "lost letter"];

pub fn count(
    kafka: &Kafka,
    seed: u64,
    acks: &Acks,
    committed: &BTreeMap<Partition, i64>,
) -> Result<Count, String> {
    let mut findings = Findings::of(&KINDS);
    let mut times = vec![0_u8; acks.first.len()];
    let mut last: HashMap<(i32, i32), u32> = HashMap::new();
    let outputs = read_topic(kafka, OUTPUT, PARTITIONS, true, |output| {
        let place = || format!("output {}/{}", output.partition(), output.offset());
        let Some(id) = output.payload().and_then(id_of).filter(|id| known(acks, *id)) else {
            return findings.add("output of nothing", place);
        };
        let Some((from, offset)) = header(output, "onced-source").and_then(source) else {
            return findings.add("output without a source", place);
        };
        let index = id as usize;
        times[index] = times[index].saturating_add(1);
        if times[index] > 1 {
            findings.add("doubled", || format!("{} m-{id} from {from}/{offset}", place()));
        } else if acks.first[index] != offset && acks.first[index] != NONE {
            findings.add("output of another record", || {
                format!("{} m-{id} from offset {offset}, not {}", place(), acks.first[index])
            });
        }
        if output.payload() != Some(payload(seed, Route::Once, id).as_slice()) {
            findings.add("changed payload", place);
        }
        let end = committed.get(&(Route::Once.input().to_owned(), from));
        if end.is_none_or(|end| i64::from(offset) >= *end) {
            findings.add("aborted read", || {
                format!("{} m-{id} from {from}/{offset}, committed is {end:?}", place())
            });
        }
        let before = last.insert((output.partition(), from), offset);
        if before.is_some_and(|before| before >= offset) {
            findings.add("reordered", || format!("{} {offset} after {before:?}", place()));
        }
    })?;

    let mut messages = 0;
    let mut lost = Vec::new();
    for (id, first) in (0_u32..).zip(&acks.first) {
        if *first == NONE || acks.unknown.contains(&id) {
            continue;
        }
        messages += 1;
        let place = (Route::Once.input().to_owned(), partition(seed, id));
        if committed.get(&place).is_none_or(|end| i64::from(*first) >= *end) {
            findings.add("not reached", || format!("m-{id} at {}/{first}", place.1));
            continue;
        }
        let expected = u8::from(fate(seed, Route::Once, id) == Fate::Handled);
        if times[id as usize] < expected {
            lost.push((partition(seed, id), *first, id));
        } else if times[id as usize] > 0 && expected == 0 {
            findings.add("handled and a letter", || format!("m-{id}"));
        }
    }

    lost.sort_unstable();
    for (partition, offset, id) in &lost {
        findings.add("lost", || format!("m-{id}, acknowledged at {partition}/{offset}"));
    }

    let letters = Letters::read(kafka, Route::Once, acks, committed, &mut findings)?;
    for (record, count) in letters.doubled() {
        findings.add("doubled letter", || format!("{record:?}: {count} letters"));
    }
    let uncommitted = read_topic(kafka, OUTPUT, PARTITIONS, false, |_| {})?;
    Ok(Count {
        findings,
        messages,
        outputs,
        aborted_outputs: uncommitted.saturating_sub(outputs),
        lost_runs: runs(&lost),
        letters: letters.read,
        letters_expected: letters.expected,
    })
}

fn known(acks: &Acks, id: u32) -> bool {
    (id as usize) < acks.first.len()
}

/// Losses that lie next to each other tell more than each alone.
fn runs(lost: &[(i32, u32, u32)]) -> Vec<String> {
    const NEXT_TO: u32 = 100;
    const SHOWN: usize = 40;
    let run = |run: &[(i32, u32, u32)]| {
        let [(partition, first, _), .., (_, last, _)] = run else {
            let [(partition, offset, _)] = run else { return String::new() };
            return format!("{partition}/{offset}");
        };
        format!("{partition}/{first} to {last}: {} messages", run.len())
    };
    let near = |a: &(i32, u32, u32), b: &(i32, u32, u32)| a.0 == b.0 && b.1 - a.1 <= NEXT_TO;
    lost.chunk_by(near).take(SHOWN).map(run).collect()
}

impl Count {
    pub fn json(&self) -> Value {
        json!({
            "messages": self.messages,
            "outputs": self.outputs,
            "outputs_of_aborted_transactions": self.aborted_outputs,
            "lost_runs": self.lost_runs,
            "letters": self.letters,
            "letters_expected": self.letters_expected,
            "findings": self.findings.json(),
        })
    }
}
