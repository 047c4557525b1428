//! Reads the consumer's queue, event by event.
//!
//! The client's own `poll` hides at which offset a partition ends and allocates for each message;
//! so the queue is read directly.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as native;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::{Event, convert};
use crate::logging;
use crate::record::{Offset, Partition, RecordBuilder};

/// The client's context. Events are read from the queue, so its callbacks never run.
pub struct Reporting;

impl ClientContext for Reporting {}
impl ConsumerContext for Reporting {}

pub(super) struct Poller {
    queue: NonNull<native::rd_kafka_queue_t>,
    handle: NonNull<native::rd_kafka_t>,
    builder: RecordBuilder,
    /// Names of the partitions by librdkafka's handles, which live while they are assigned.
    handles: Vec<(*const native::rd_kafka_topic_t, i32, Partition)>,
}

// SAFETY: librdkafka's handles may be used from any thread; the poller is used by one at a time.
unsafe impl Send for Poller {}

/// Destroys an event, and with it the messages that it holds.
struct Owned(NonNull<native::rd_kafka_event_t>);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: polled by us and destroyed once.
        unsafe { native::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

impl Poller {
    /// The consumer must outlive the poller.
    pub(super) fn new(consumer: &BaseConsumer<Reporting>) -> Self {
        let handle = consumer.client().native_ptr();
        // SAFETY: the handle is alive; a consumer has a queue.
        let queue = unsafe { native::rd_kafka_queue_get_consumer(handle) };
        Self {
            queue: NonNull::new(queue).expect("a consumer has a queue"),
            handle: NonNull::new(handle).expect("a client has a handle"),
            builder: RecordBuilder::default(),
            handles: Vec::new(),
        }
    }

    /// To be called when the assignment changes: topic handles may be freed.
    pub(super) fn forget_handles(&mut self) {
        self.handles.clear();
    }

    /// Commits; the answer comes as an event. The client's own call would answer nobody.
    pub(super) fn commit(&self, offsets: &TopicPartitionList) -> Result<(), KafkaError> {
        // SAFETY: handle, list and queue are alive; the list is copied. There is no callback.
        let code = unsafe {
            native::rd_kafka_commit_queue(
                self.handle.as_ptr(),
                offsets.ptr(),
                self.queue.as_ptr(),
                None,
                std::ptr::null_mut(),
            )
        };
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        Err(KafkaError::ConsumerCommit(code.into()))
    }

    /// Whether the group knows this client, as far as the client knows.
    pub(super) fn is_member(&self) -> bool {
        // SAFETY: the handle is alive; the text is ours, and freed by whom it comes from.
        unsafe {
            let id = native::rd_kafka_memberid(self.handle.as_ptr());
            let member = !id.is_null() && *id != 0;
            native::rd_kafka_mem_free(self.handle.as_ptr(), id.cast());
            member
        }
    }

    pub(super) fn high_watermark(&self, partition: &Partition) -> Option<Offset> {
        let topic = CString::new(&*partition.topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the handle is alive and all pointers outlive the call, which asks no broker.
        let code = unsafe {
            native::rd_kafka_get_watermark_offsets(
                self.handle.as_ptr(),
                topic.as_ptr(),
                partition.index,
                &raw mut low,
                &raw mut high,
            )
        };
        (code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(Offset(high))
    }

    pub(super) fn poll(&mut self, timeout: Duration) -> Option<Event> {
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours and alive.
        let event = unsafe { native::rd_kafka_queue_poll(self.queue.as_ptr(), timeout) };
        let event = Owned(NonNull::new(event)?);
        // SAFETY: alive until `event` is dropped.
        match unsafe { native::rd_kafka_event_type(event.0.as_ptr()) } {
            native::RD_KAFKA_EVENT_FETCH => self.fetched(&event),
            native::RD_KAFKA_EVENT_ERROR => Some(self.error(&event)),
            native::RD_KAFKA_EVENT_REBALANCE => Some(self.rebalance(&event)),
            native::RD_KAFKA_EVENT_OFFSET_COMMIT => Some(committed(&event)),
            native::RD_KAFKA_EVENT_LOG => {
                log(&event);
                None
            }
            _ => None,
        }
    }

    fn fetched(&mut self, event: &Owned) -> Option<Event> {
        // SAFETY: a fetch event of a consumer holds one message, alive as long as the event.
        let message = unsafe { native::rd_kafka_event_message_next(event.0.as_ptr()) };
        // SAFETY: null, or alive as said.
        let parts = unsafe { message.as_ref() }?;
        if parts.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            let error = KafkaError::MessageConsumption(parts.err.into());
            return Some(Event::Trouble { error, reason: error_text(event) });
        }
        let partition = self.partition(parts.rkt, parts.partition);
        // SAFETY: alive, and without an error.
        Some(Event::Record(unsafe { convert::record(message, partition, &mut self.builder) }))
    }

    fn partition(&mut self, topic: *const native::rd_kafka_topic_t, index: i32) -> Partition {
        let known = self.handles.iter().find(|(handle, i, _)| *handle == topic && *i == index);
        if let Some((_, _, partition)) = known {
            return partition.clone();
        }
        // SAFETY: the message holds its topic.
        let name = unsafe { CStr::from_ptr(native::rd_kafka_topic_name(topic)) };
        let partition = Partition::new(name.to_string_lossy().as_ref(), index);
        self.handles.push((topic, index, partition.clone()));
        partition
    }

    fn error(&self, event: &Owned) -> Event {
        // SAFETY: alive until `event` is dropped.
        let code = unsafe { native::rd_kafka_event_error(event.0.as_ptr()) };
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF
            && let Some((partition, offset)) = topic_partition(event)
        {
            return Event::End(partition, offset);
        }
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
            && let Some((partition, _)) = topic_partition(event)
        {
            return Event::OutOfRange(partition);
        }
        // SAFETY: alive until `event` is dropped.
        if unsafe { native::rd_kafka_event_error_is_fatal(event.0.as_ptr()) } != 0 {
            return Event::Fatal(KafkaError::MessageConsumptionFatal(self.fatal_code()));
        }
        let reason = error_text(event);
        Event::Trouble { error: KafkaError::MessageConsumption(code.into()), reason }
    }

    /// A fatal event carries a general code; the client keeps the one behind it.
    fn fatal_code(&self) -> RDKafkaErrorCode {
        let mut text = [0; 512];
        // SAFETY: the handle is alive, the buffer has the length given.
        let code = unsafe {
            native::rd_kafka_fatal_error(self.handle.as_ptr(), text.as_mut_ptr(), text.len())
        };
        // SAFETY: librdkafka ends the text with a NUL.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) };
        tracing::error!(error = %text.to_string_lossy(), "The Kafka client cannot go on.");
        code.into()
    }

    fn rebalance(&self, event: &Owned) -> Event {
        // SAFETY: alive until `event` is dropped; the list belongs to it.
        let (code, list) = unsafe {
            (
                native::rd_kafka_event_error(event.0.as_ptr()),
                native::rd_kafka_event_topic_partition_list(event.0.as_ptr()),
            )
        };
        // SAFETY: the list lives as long as the event.
        let partitions = unsafe { elements(list) }.iter().map(name_of).collect();
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assigned(partitions),
            _ => {
                // SAFETY: the handle is alive.
                let lost = unsafe { native::rd_kafka_assignment_lost(self.handle.as_ptr()) } != 0;
                Event::Revoked { partitions, lost }
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // SAFETY: our reference to the queue, given back once.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

fn committed(event: &Owned) -> Event {
    // SAFETY: alive until `event` is dropped; the list belongs to it.
    let (code, list) = unsafe {
        (
            native::rd_kafka_event_error(event.0.as_ptr()),
            native::rd_kafka_event_topic_partition_list(event.0.as_ptr()),
        )
    };
    // SAFETY: the list is null or lives as long as the event.
    let list = unsafe { elements(list) };
    let failed = std::iter::once(code).chain(list.iter().map(|element| element.err)).find(|code| {
        !matches!(
            code,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__NO_OFFSET
        )
    });
    Event::Committed(match failed {
        Some(code) => Err(KafkaError::ConsumerCommit(code.into())),
        None => Ok(list.iter().map(|element| (name_of(element), Offset(element.offset))).collect()),
    })
}

/// What the client says of an error, besides its code.
fn error_text(event: &Owned) -> String {
    // SAFETY: alive until `event` is dropped; the text belongs to it and ends with a NUL.
    let text = unsafe { CStr::from_ptr(native::rd_kafka_event_error_string(event.0.as_ptr())) };
    text.to_string_lossy().into_owned()
}

/// Logs what a handle that reads no records has to say. Returns what went wrong last.
pub(super) fn listen<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<String> {
    // SAFETY: the handle is alive; a consumer has a queue, and this reference is given back below.
    let queue = unsafe { native::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    let mut trouble = None;
    // SAFETY: the queue is ours and alive.
    while let Some(event) = NonNull::new(unsafe { native::rd_kafka_queue_poll(queue, 0) }) {
        let event = Owned(event);
        // SAFETY: alive until `event` is dropped.
        let (kind, code) = unsafe {
            let event = event.0.as_ptr();
            (native::rd_kafka_event_type(event), native::rd_kafka_event_error(event))
        };
        match kind {
            native::RD_KAFKA_EVENT_LOG => log(&event),
            // That all brokers are down follows from what was said of each.
            native::RD_KAFKA_EVENT_ERROR
                if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN =>
            {
                trouble = Some(error_text(&event));
            }
            _ => {}
        }
    }
    // SAFETY: our reference, given back once.
    unsafe { native::rd_kafka_queue_destroy(queue) };
    trouble
}

/// Passes on what the client logs, as its other handles do.
fn log(event: &Owned) {
    let (mut facility, mut text, mut level) = (std::ptr::null(), std::ptr::null(), 0);
    // SAFETY: alive until `event` is dropped; 0 says that the pointers were set to its texts,
    // which end with a NUL.
    let (facility, text) = unsafe {
        let event = event.0.as_ptr();
        if native::rd_kafka_event_log(event, &raw mut facility, &raw mut text, &raw mut level) != 0
        {
            return;
        }
        (CStr::from_ptr(facility).to_string_lossy(), CStr::from_ptr(text).to_string_lossy())
    };
    logging::librdkafka(log_level(level), facility.trim(), text.trim());
}

/// The levels of syslog.
fn log_level(level: i32) -> RDKafkaLogLevel {
    match level {
        ..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

fn topic_partition(event: &Owned) -> Option<(Partition, Offset)> {
    // SAFETY: alive until `event` is dropped; the result is a copy that we own.
    let element =
        NonNull::new(unsafe { native::rd_kafka_event_topic_partition(event.0.as_ptr()) })?;
    // SAFETY: not null.
    let parts = unsafe { element.as_ref() };
    let found = (name_of(parts), Offset(parts.offset));
    // SAFETY: ours, destroyed once.
    unsafe { native::rd_kafka_topic_partition_destroy(element.as_ptr()) };
    Some(found)
}

/// # Safety
/// `list` is null or lives as long as the result is used.
pub(super) unsafe fn elements<'a>(
    list: *const native::rd_kafka_topic_partition_list_t,
) -> &'a [native::rd_kafka_topic_partition_t] {
    // SAFETY: by contract.
    match unsafe { list.as_ref() } {
        // SAFETY: the list says how many elements it has.
        Some(list) if !list.elems.is_null() => unsafe {
            std::slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or(0))
        },
        _ => &[],
    }
}

fn name_of(element: &native::rd_kafka_topic_partition_t) -> Partition {
    // SAFETY: an element has a name that ends with a NUL.
    let topic = unsafe { CStr::from_ptr(element.topic) };
    Partition::new(topic.to_string_lossy().as_ref(), element.partition)
}
