//! Reads single records again, to see whether the topic is still the one that was read before.
//!
//! Records of open and of aborted transactions count: whatever lies at the offset of a record that
//! was committed, and is not that record, is of another history.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::lookup::PATIENCE;
use super::poll::{Poller, Reporting};
use super::{Event, client, list};
use crate::config::Kafka;
use crate::record::{Offset, Partition, Record};

/// The records at these offsets, in their order; one for each partition. `None`: there is no record
/// of this offset any more.
///
/// # Errors
/// The broker's answer, or that there is none for a long time.
pub fn records_at(
    kafka: &Kafka,
    wanted: &[(Partition, Offset)],
) -> Result<Vec<Option<Record>>, KafkaError> {
    let mut found = vec![None; wanted.len()];
    if wanted.is_empty() {
        return Ok(found);
    }
    let consumer: BaseConsumer<Reporting> = client::reader(kafka)
        .set("isolation.level", "read_uncommitted")
        // One record of each is enough; a batch that is larger comes whole all the same.
        .set("fetch.message.max.bytes", "16384")
        .set("queued.min.messages", "1")
        .create_with_context(Reporting)?;
    let mut poller = Poller::new(&consumer);
    consumer.assign(&list(wanted)?)?;
    let mut open: Vec<usize> = (0..wanted.len()).collect();
    let started = Instant::now();
    while !open.is_empty() {
        if started.elapsed() > PATIENCE {
            return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
        }
        let (partition, record) = match poller.poll(Duration::from_millis(100)) {
            Some(Event::Record(record)) => (record.partition.clone(), Some(record)),
            Some(Event::End(partition, _) | Event::OutOfRange(partition)) => (partition, None),
            Some(Event::Fatal(error)) => return Err(error),
            _ => continue,
        };
        open.retain(|index| {
            let (of, offset) = &wanted[*index];
            if *of == partition {
                found[*index] = record.clone().filter(|record| record.offset == *offset);
            }
            *of != partition
        });
    }
    Ok(found)
}
