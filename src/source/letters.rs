//! Reads the dead-letter topic at the start: each letter settles the record that it came from.
//!
//! One reading serves all partitions that are assigned together.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::lookup::Lookup;
use super::poll::{Poller, Reporting};
use super::{Event, client, list};
use crate::commit::letters::{Settles, settles};
use crate::config::Kafka;
use crate::record::{Offset, Partition, Timestamp};

/// Reads the letters from `since` on (all where it is not known) up to the end of the topic as it
/// is now, and calls `each` for every one that settles a record. `keep_on` is asked regularly.
///
/// # Errors
/// The broker's answer, after retries; or that `keep_on` said no.
pub fn read(
    kafka: &Kafka,
    lookup: &Lookup,
    topic: &str,
    since: Option<Timestamp>,
    keep_on: &dyn Fn() -> bool,
    mut each: impl FnMut(Settles),
) -> Result<(), KafkaError> {
    let mut ends = HashMap::new();
    let mut starts = Vec::new();
    for index in 0..lookup.partition_count(topic)? {
        let partition = Partition::new(topic, index);
        let (first, end) = lookup.letter_ends(&partition)?;
        let start = match since {
            None => Some(first),
            Some(since) => lookup.at_time(&partition, since)?,
        };
        if let Some(start) = start.filter(|start| *start < end) {
            ends.insert(partition.clone(), end);
            starts.push((partition, start));
        }
    }
    if starts.is_empty() {
        return Ok(());
    }
    let consumer: BaseConsumer<Reporting> = client::reader(kafka).create_with_context(Reporting)?;
    let mut poller = Poller::new(&consumer);
    consumer.assign(&list(&starts)?)?;
    drain(&mut poller, ends, keep_on, &mut each)
}

/// A topic that answers nothing for so long cannot be read.
const SILENCE_MAX: Duration = Duration::from_secs(120);

fn drain(
    poller: &mut Poller,
    mut ends: HashMap<Partition, Offset>,
    keep_on: &dyn Fn() -> bool,
    each: &mut impl FnMut(Settles),
) -> Result<(), KafkaError> {
    let mut heard = Instant::now();
    while !ends.is_empty() {
        if !keep_on() || heard.elapsed() > SILENCE_MAX {
            return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
        }
        match poller.poll(Duration::from_millis(100)) {
            Some(Event::Record(letter)) => {
                heard = Instant::now();
                if let Some(settles) = settles(&letter) {
                    each(settles);
                }
                if ends.get(&letter.partition).is_some_and(|end| letter.offset.next() >= *end) {
                    ends.remove(&letter.partition);
                }
            }
            // Below the end of a transaction that is still open: it is told again when it closes.
            Some(Event::End(partition, offset)) => {
                heard = Instant::now();
                if ends.get(&partition).is_some_and(|end| offset >= *end) {
                    ends.remove(&partition);
                }
            }
            Some(Event::Fatal(error)) => return Err(error),
            Some(Event::Trouble { error, reason }) => {
                tracing::warn!(%error, reason, "Trouble while reading dead letters.")
            }
            _ => {}
        }
    }
    Ok(())
}
