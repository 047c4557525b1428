//! Reads topics for the verifier: one partition at a time, from its first offset to an end that
//! was asked for before.
//!
//! A consumer of its own, without a group: it subscribes to nothing, commits nothing, and its
//! events are read from the queue, because the client's own `poll` panics on a header name that is
//! not UTF-8 and hides where a partition ends.
//!
//! Owns: what is asked of the broker. Never: judges an answer.

use std::ffi::CStr;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::bindings as native;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::message::{Header, Message};
use crate::config::Kafka;
use crate::logging;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that sends nothing for so long does not send any more.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why the verifier could not look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Broker {
        what: String,
        #[source]
        source: KafkaError,
    },
    #[error("there is no topic {topic:?} at these brokers")]
    NoTopic { topic: String },
    #[error(
        "records of {topic}/{partition} were deleted while they were read; run verify again, or \
         let the topic keep more"
    )]
    Overtaken { topic: String, partition: i32 },
    #[error("{topic}/{partition} sent nothing for {SILENCE_MAX:?} at offset {offset}")]
    Silent { topic: String, partition: i32, offset: i64 },
    #[error("{0}")]
    Other(String),
}

fn broker(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Error {
    let what = what.into();
    move |source| Error::Broker { what, source }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    Uncommitted,
}

/// How far a reading got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    End,
    /// A transaction that is still open hides what comes from this offset on.
    Hidden(i64),
}

struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        logging::librdkafka(level, facility, text);
    }
}

impl ConsumerContext for Context {}

pub struct Reader {
    queue: NonNull<native::rd_kafka_queue_t>,
    // After the queue: it is destroyed while the client is alive.
    consumer: BaseConsumer<Context>,
}

/// Destroys an event, and with it the messages that it holds.
struct Event(NonNull<native::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: polled by us and destroyed once.
        unsafe { native::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: our reference to the queue, given back once, while the client is alive.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

impl Reader {
    /// # Errors
    /// A property that the client refuses.
    pub fn new(kafka: &Kafka, isolation: Isolation) -> Result<Self, Error> {
        let mut config = config(kafka);
        config
            .set("group.id", &kafka.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set(
                "isolation.level",
                match isolation {
                    Isolation::Committed => "read_committed",
                    Isolation::Uncommitted => "read_uncommitted",
                },
            );
        let consumer: BaseConsumer<Context> = config
            .create_with_context(Context)
            .map_err(|error| Error::Other(format!("cannot make a client: {}", safe(&error))))?;
        // SAFETY: the client is alive; a consumer has a queue.
        let queue = unsafe { native::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Ok(Self { queue: NonNull::new(queue).expect("a consumer has a queue"), consumer })
    }

    pub fn native(&self) -> &BaseConsumer<impl ConsumerContext> {
        &self.consumer
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// [`Error::NoTopic`], or the broker's answer.
    pub fn partitions(&self, topic: &str) -> Result<i32, Error> {
        let what = || format!("cannot ask for topic {topic:?}");
        let metadata =
            self.consumer.fetch_metadata(Some(topic), PATIENCE).map_err(broker(what()))?;
        let none = || Error::NoTopic { topic: topic.to_owned() };
        let found =
            metadata.topics().iter().find(|found| found.name() == topic).ok_or_else(none)?;
        match found.error().map(RDKafkaErrorCode::from) {
            None => Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)),
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                Err(none())
            }
            Some(code) => Err(broker(what())(KafkaError::MetadataFetch(code))),
        }
    }

    /// The first offset, and the end as a reader of this isolation sees it.
    ///
    /// # Errors
    /// The broker's answer.
    pub fn ends(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        let what = format!("cannot ask where {topic}/{partition} ends");
        self.consumer.fetch_watermarks(topic, partition, PATIENCE).map_err(broker(what))
    }

    /// Calls `each` for every record of `from..until`. Waits for `patience` where a transaction
    /// that is open hides what is below `until`.
    ///
    /// # Errors
    /// The broker's answer, or [`Error::Overtaken`].
    pub fn read(
        &self,
        (topic, partition): (&str, i32),
        (from, until): (i64, i64),
        patience: Duration,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<Reach, Error> {
        if from >= until {
            return Ok(Reach::End);
        }
        let what = || format!("cannot read {topic}/{partition}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))
            .map_err(broker(what()))?;
        self.consumer.assign(&list).map_err(broker(what()))?;
        let read = self.drain((topic, partition), (from, until), patience, &mut each);
        self.consumer.unassign().map_err(broker(what()))?;
        // Nothing of this partition may come when the next one is read.
        while self.poll(Duration::ZERO).is_some() {}
        read
    }

    fn drain(
        &self,
        (topic, partition): (&str, i32),
        (from, until): (i64, i64),
        patience: Duration,
        each: &mut impl FnMut(&Message<'_>),
    ) -> Result<Reach, Error> {
        let mut position = from;
        let mut heard = Instant::now();
        let mut stuck: Option<Instant> = None;
        while position < until {
            let Some(event) = self.poll(Duration::from_millis(100)) else {
                if stuck.is_some_and(|since| since.elapsed() >= patience) {
                    return Ok(Reach::Hidden(position));
                }
                if stuck.is_none() && heard.elapsed() >= SILENCE_MAX {
                    let topic = topic.to_owned();
                    return Err(Error::Silent { topic, partition, offset: position });
                }
                continue;
            };
            match event.kind() {
                native::RD_KAFKA_EVENT_FETCH => {
                    let Some(offset) = event.message(partition, until, each) else { continue };
                    position = position.max(offset + 1);
                    (heard, stuck) = (Instant::now(), None);
                }
                native::RD_KAFKA_EVENT_ERROR => match event.code() {
                    RDKafkaErrorCode::PartitionEOF => {
                        let Some(end) = event.end(partition) else { continue };
                        if end > position {
                            (position, stuck) = (end, None);
                        }
                        if position < until {
                            stuck.get_or_insert_with(Instant::now);
                        }
                    }
                    RDKafkaErrorCode::AutoOffsetReset => {
                        return Err(Error::Overtaken { topic: topic.to_owned(), partition });
                    }
                    code if lasting(code) => {
                        let what = format!("cannot read {topic}/{partition}: {}", event.text());
                        return Err(broker(what)(KafkaError::MessageConsumption(code)));
                    }
                    // Passes by itself: the client goes on trying.
                    _ => tracing::debug!(error = event.text(), "Trouble while reading."),
                },
                _ => event.log(),
            }
        }
        Ok(Reach::End)
    }

    fn poll(&self, patience: Duration) -> Option<Event> {
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours and alive.
        NonNull::new(unsafe { native::rd_kafka_queue_poll(self.queue.as_ptr(), patience) })
            .map(Event)
    }
}

/// What does not pass by itself.
fn lasting(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::Fatal
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::BadMessage
    )
}

impl Event {
    fn kind(&self) -> i32 {
        // SAFETY: alive until it is dropped, as in the methods below.
        unsafe { native::rd_kafka_event_type(self.0.as_ptr()) }
    }

    fn code(&self) -> RDKafkaErrorCode {
        // SAFETY: alive.
        unsafe { native::rd_kafka_event_error(self.0.as_ptr()) }.into()
    }

    fn text(&self) -> String {
        // SAFETY: alive; the text belongs to it and ends with a NUL.
        let text = unsafe { CStr::from_ptr(native::rd_kafka_event_error_string(self.0.as_ptr())) };
        text.to_string_lossy().into_owned()
    }

    /// The offset at which the partition ends.
    fn end(&self, partition: i32) -> Option<i64> {
        // SAFETY: alive; the result is a copy that we own and destroy once.
        unsafe {
            let element = NonNull::new(native::rd_kafka_event_topic_partition(self.0.as_ptr()))?;
            let found = (element.as_ref().partition, element.as_ref().offset);
            native::rd_kafka_topic_partition_destroy(element.as_ptr());
            (found.0 == partition).then_some(found.1)
        }
    }

    /// Shows the message; returns its offset. One at or beyond `until` is not shown.
    fn message(
        &self,
        partition: i32,
        until: i64,
        each: &mut impl FnMut(&Message<'_>),
    ) -> Option<i64> {
        // SAFETY: a fetch event of a consumer holds one message, which lives as long as the event.
        let message = unsafe { native::rd_kafka_event_message_next(self.0.as_ptr()) };
        // SAFETY: null, or alive as said.
        let parts = unsafe { message.as_ref() }?;
        let sound = parts.err == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        if !sound || parts.partition != partition {
            return None;
        }
        if parts.offset < until {
            // SAFETY: alive until the event is dropped, which is after this call.
            each(&unsafe { borrow(message, parts) });
        }
        Some(parts.offset)
    }

    fn log(&self) {
        let (mut facility, mut text, mut level) = (ptr::null(), ptr::null(), 0);
        // SAFETY: alive; 0 says that the pointers were set to its texts, which end with a NUL.
        unsafe {
            let event = self.0.as_ptr();
            if native::rd_kafka_event_log(event, &raw mut facility, &raw mut text, &raw mut level)
                == 0
            {
                let facility = CStr::from_ptr(facility).to_string_lossy();
                let text = CStr::from_ptr(text).to_string_lossy();
                let level = if level <= 3 { RDKafkaLogLevel::Error } else { RDKafkaLogLevel::Info };
                logging::librdkafka(level, facility.trim(), text.trim());
            }
        }
    }
}

/// # Safety
/// The message is alive for as long as the result is used, and carries no error.
unsafe fn borrow<'a>(
    message: *const native::rd_kafka_message_t,
    parts: &native::rd_kafka_message_t,
) -> Message<'a> {
    use native::rd_kafka_timestamp_type_t as kind;
    let mut dated_by = kind::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: alive by contract; key and payload have the lengths that stand beside them.
    unsafe {
        let timestamp = native::rd_kafka_message_timestamp(message, &raw mut dated_by);
        let dated = dated_by != kind::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && timestamp >= 0;
        Message {
            offset: parts.offset,
            timestamp: dated.then_some(timestamp),
            dated_by_broker: dated_by == kind::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME,
            key: bytes(parts.key, parts.key_len),
            payload: bytes(parts.payload, parts.len),
            headers: headers(message),
        }
    }
}

/// # Safety
/// `pointer` is null or points to `len` bytes that live as long as the result is used.
unsafe fn bytes<'a>(pointer: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast(), len) })
}

/// # Safety
/// The message is alive for as long as the result is used.
unsafe fn headers<'a>(message: *const native::rd_kafka_message_t) -> Vec<Header<'a>> {
    let mut list = ptr::null_mut();
    let mut found = Vec::new();
    // SAFETY: the list lives as long as the message; an index past its end is an error code. Names
    // end with a NUL, values have the length that is told or are null.
    unsafe {
        native::rd_kafka_message_headers(message, &raw mut list);
        while !list.is_null() {
            let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
            let code = native::rd_kafka_header_get_all(
                list,
                found.len(),
                &raw mut name,
                &raw mut value,
                &raw mut len,
            );
            if code != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                break;
            }
            found.push((CStr::from_ptr(name).to_bytes(), bytes(value, len)));
        }
    }
    found
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "onced-verify")
        .set("enable.metrics.push", "false")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "32768");
    for (name, value) in kafka.properties.iter() {
        // A member of this name may be in the group; the verifier joins none.
        if name != "group.instance.id" {
            config.set(name, value);
        }
    }
    config.set("bootstrap.servers", &kafka.brokers);
    config
}

/// The error without the value of a property, which may be a password.
fn safe(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => format!("it refuses the property {name}"),
        error => error.to_string(),
    }
}

/// Whether a topic is compacted. `None`: this user may not ask.
pub fn is_compacted(kafka: &Kafka, topic: &str) -> Option<bool> {
    let admin: AdminClient<DefaultClientContext> = config(kafka).create().ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let asked = [ResourceSpecifier::Topic(topic)];
    let answers = runtime.block_on(admin.describe_configs(&asked, &options)).ok()?;
    let settings = answers.into_iter().next()?.ok()?;
    let policy = settings.get("cleanup.policy")?.value.clone()?;
    Some(policy.contains("compact"))
}
