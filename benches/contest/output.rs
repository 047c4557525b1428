//! What came out: a fast wrong answer does not count.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use crate::harness::{Kafka, unique};
use crate::input::{Input, KEY_START};

const LIMIT: Duration = Duration::from_secs(60);

/// A reader of committed records, from the start of each partition.
pub fn reader(kafka: &Kafka, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = kafka.client(&[
        ("group.id", &unique("contest-reader")),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
        ("fetch.wait.max.ms", "100"),
        ("fetch.queue.backoff.ms", "5"),
        ("queued.min.messages", "500000"),
    ]);
    let mut from_the_start = TopicPartitionList::new();
    for partition in 0..partitions {
        let added = from_the_start.add_partition_offset(topic, partition, Offset::Beginning);
        added.expect("a valid offset");
    }
    consumer.assign(&from_the_start).expect("it can be assigned");
    consumer
}

/// Each event once, or, with duplicates, as often as it was there.
///
/// # Errors
/// One is lost, or is there too often.
pub fn check(
    kafka: &Kafka,
    topic: &str,
    input: &Input,
    with_duplicates: bool,
) -> Result<(), String> {
    let consumer = reader(kafka, topic, input.partitions);
    let mut seen = vec![false; input.distinct as usize];
    let (mut distinct, mut records, mut ends) = (0, 0, 0);
    let begun = Instant::now();
    while ends < input.partitions {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records += 1;
                let number = message.payload().and_then(number);
                let place = number.and_then(|number| seen.get_mut(number as usize));
                let place = place.ok_or("an output is none of the events")?;
                distinct += u32::from(!*place);
                *place = true;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(_)) | None if begun.elapsed() < LIMIT => {}
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the end of the output is not reached".to_owned()),
        }
    }
    let expected = if with_duplicates { input.records } else { input.distinct };
    let lost = input.distinct - distinct;
    (lost == 0 && records == expected)
        .then_some(())
        .ok_or_else(|| format!("{lost} lost, {records} outputs instead of {expected}"))
}

/// Of the event that a payload holds; some contestants write the JSON anew.
pub fn number(payload: &[u8]) -> Option<u32> {
    field(payload, KEY_START.as_bytes())
}

/// When it was sent, in microseconds since 1970.
pub fn sent(payload: &[u8]) -> Option<i64> {
    field(payload, b"\"sent\":")
}

/// The number after this text.
fn field<T: std::str::FromStr>(payload: &[u8], before: &[u8]) -> Option<T> {
    let at = payload.windows(before.len()).position(|window| window == before)?;
    let rest = payload[at + before.len()..].trim_ascii_start();
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}
