//! The transactional producer, as thin as it can be over librdkafka.
//!
//! Bytes are not copied into it: a payload is read from the record's own buffer, which therefore
//! has to outlive the delivery (see [`Client::produce`]). Callbacks run on the thread that calls.
//!
//! Owns: librdkafka's handle and the class of its errors. Never: decides what follows from one.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::bindings as native;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::commit::headers::{NativeHeaders, parts};
use crate::logging;
use crate::record::Timestamp;
use crate::source::membership::GroupMetadata;

/// A producer with a `transactional.id`. Used by one thread.
pub(super) struct Client {
    handle: NonNull<native::rd_kafka_t>,
    /// What the callbacks saw; librdkafka holds the same pointer.
    seen: Box<Seen>,
    topics: Vec<Topic>,
}

// SAFETY: librdkafka's handles may be used from any thread, and `seen` only by the one that calls.
unsafe impl Send for Client {}

#[derive(Default)]
struct Seen {
    /// Outputs that were not delivered: their number and why.
    failed: RefCell<Vec<(usize, RDKafkaErrorCode)>>,
    /// Errors of the connections since the beginning.
    troubles: Cell<u64>,
}

struct Topic {
    name: CString,
    handle: NonNull<native::rd_kafka_topic_t>,
}

/// librdkafka's RD_KAFKA_PARTITION_UA: its partitioner chooses.
const UNASSIGNED: i32 = -1;

/// A topic that was opened for a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopicNumber(usize);

/// One record to be written.
pub(super) struct Message<'a> {
    pub topic: TopicNumber,
    /// `None`: the partitioner decides.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    /// `None`: now.
    pub timestamp: Option<Timestamp>,
    pub headers: NativeHeaders,
}

/// Why a call failed, in librdkafka's three classes.
#[derive(Debug)]
pub(super) struct Refused {
    pub class: Class,
    pub code: RDKafkaErrorCode,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The same call may be made again.
    Retriable,
    /// The transaction has to be aborted.
    Abortable,
    /// The producer is of no more use.
    Fatal,
    Other,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.text, self.code)
    }
}

impl Refused {
    /// Another producer with the same `transactional.id` took over, or the broker gave the
    /// transaction up.
    pub(super) fn is_fenced(&self) -> bool {
        matches!(
            self.code,
            RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
        )
    }
}

impl Client {
    /// Connects in the background.
    ///
    /// # Errors
    /// A property that librdkafka refuses.
    pub(super) fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        let config = config.create_native_config()?;
        let seen = Box::<Seen>::default();
        let mut text = [0; 512];
        // SAFETY: the copy of the configuration is ours until rd_kafka_new takes it. `seen` is
        // boxed and outlives the handle, see Drop.
        let handle = unsafe {
            let copy = native::rd_kafka_conf_dup(config.ptr());
            native::rd_kafka_conf_set_opaque(copy, ptr::from_ref(&*seen).cast_mut().cast());
            native::rd_kafka_conf_set_dr_msg_cb(copy, Some(delivered));
            native::rd_kafka_conf_set_error_cb(copy, Some(troubled));
            native::rd_kafka_conf_set_log_cb(copy, Some(logged));
            let kind = native::rd_kafka_type_t::RD_KAFKA_PRODUCER;
            let handle = native::rd_kafka_new(kind, copy, text.as_mut_ptr(), text.len());
            if handle.is_null() {
                native::rd_kafka_conf_destroy(copy);
            }
            handle
        };
        match NonNull::new(handle) {
            Some(handle) => Ok(Self { handle, seen, topics: Vec::new() }),
            None => Err(KafkaError::ClientCreation(text_of(text.as_ptr()))),
        }
    }

    /// A topic to write to. The first partitioner that is given for a name counts.
    pub(super) fn topic(&mut self, name: &str, partitioner: &str) -> Result<TopicNumber, Refused> {
        let other = |text: &str| Refused {
            class: Class::Other,
            code: RDKafkaErrorCode::InvalidArgument,
            text: text.to_owned(),
        };
        let name = CString::new(name).map_err(|_| other("the topic's name holds a NUL"))?;
        if let Some(at) = self.topics.iter().position(|topic| topic.name == name) {
            return Ok(TopicNumber(at));
        }
        let partitioner = CString::new(partitioner).map_err(|_| other("a NUL"))?;
        // SAFETY: the topic configuration is ours until rd_kafka_topic_new takes it.
        let handle = unsafe {
            let config = native::rd_kafka_default_topic_conf_dup(self.handle.as_ptr());
            let key = c"partitioner".as_ptr();
            native::rd_kafka_topic_conf_set(config, key, partitioner.as_ptr(), ptr::null_mut(), 0);
            native::rd_kafka_topic_new(self.handle.as_ptr(), name.as_ptr(), config)
        };
        let handle = NonNull::new(handle).ok_or_else(|| other("the topic cannot be opened"))?;
        self.topics.push(Topic { name, handle });
        Ok(TopicNumber(self.topics.len() - 1))
    }

    pub(super) fn init(&self) -> Result<(), Refused> {
        // SAFETY: alive; the error is ours.
        self.check(unsafe { native::rd_kafka_init_transactions(self.handle.as_ptr(), -1) })
    }

    pub(super) fn begin(&self) -> Result<(), Refused> {
        self.seen.failed.borrow_mut().clear();
        // SAFETY: alive; the error is ours.
        self.check(unsafe { native::rd_kafka_begin_transaction(self.handle.as_ptr()) })
    }

    pub(super) fn send_offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &GroupMetadata,
    ) -> Result<(), Refused> {
        // SAFETY: all are alive, and the call copies what it needs.
        self.check(unsafe {
            native::rd_kafka_send_offsets_to_transaction(
                self.handle.as_ptr(),
                offsets.ptr(),
                group.as_ptr(),
                -1,
            )
        })
    }

    pub(super) fn commit(&self) -> Result<(), Refused> {
        // SAFETY: alive; the error is ours.
        self.check(unsafe { native::rd_kafka_commit_transaction(self.handle.as_ptr(), -1) })
    }

    pub(super) fn abort(&self) -> Result<(), Refused> {
        // SAFETY: alive; the error is ours.
        self.check(unsafe { native::rd_kafka_abort_transaction(self.handle.as_ptr(), -1) })
    }

    /// Hands a record over. Its payload is not copied.
    ///
    /// # Safety
    /// The payload lives, unmoved, until the record was delivered or this client is dropped.
    pub(super) unsafe fn produce(
        &self,
        message: Message<'_>,
        number: usize,
    ) -> Result<(), RDKafkaErrorCode> {
        use native::rd_kafka_vtype_t as vtype;
        let topic = self.topics[message.topic.0].handle.as_ptr();
        let (key, key_len) = parts(message.key);
        let (payload, payload_len) = parts(message.payload);
        let partition = message.partition.unwrap_or(UNASSIGNED);
        // librdkafka takes 0 for now.
        let timestamp = message.timestamp.map_or(0, |timestamp| timestamp.0);
        // SAFETY: pairs of a type and its values, ended by END, as rd_kafka_producev asks for.
        // Without MSG_F_COPY it reads the payload later: by contract it lives that long. The key
        // is copied.
        let error = unsafe {
            native::rd_kafka_producev(
                self.handle.as_ptr(),
                vtype::RD_KAFKA_VTYPE_RKT,
                topic,
                vtype::RD_KAFKA_VTYPE_PARTITION,
                partition,
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                vtype::RD_KAFKA_VTYPE_VALUE,
                payload,
                payload_len,
                vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                timestamp,
                vtype::RD_KAFKA_VTYPE_HEADERS,
                message.headers.as_ptr(),
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                ptr::without_provenance_mut::<c_void>(number),
                vtype::RD_KAFKA_VTYPE_END,
            )
        };
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            message.headers.given_away();
            return Ok(());
        }
        Err(error.into())
    }

    /// Serves callbacks while the queue is full.
    pub(super) fn make_room(&self) {
        // SAFETY: alive.
        unsafe { native::rd_kafka_poll(self.handle.as_ptr(), 10) };
    }

    /// Sends what lingers, and waits at most this long. True: all of it was answered.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let patience = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: alive.
        let error = unsafe { native::rd_kafka_flush(self.handle.as_ptr(), patience) };
        error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// The outputs of this transaction that were not delivered.
    pub(super) fn failed(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        self.seen.failed.borrow().clone()
    }

    /// How many errors the connections had since the beginning.
    pub(super) fn troubles(&self) -> u64 {
        // SAFETY: alive. What is there is served; the call does not wait.
        unsafe { native::rd_kafka_poll(self.handle.as_ptr(), 0) };
        self.seen.troubles.get()
    }

    fn check(&self, error: *mut native::rd_kafka_error_t) -> Result<(), Refused> {
        let Some(error) = NonNull::new(error) else { return Ok(()) };
        let error = error.as_ptr();
        // SAFETY: not null, ours, destroyed once after its parts were copied.
        unsafe {
            let class = if native::rd_kafka_error_is_fatal(error) != 0 {
                Class::Fatal
            } else if native::rd_kafka_error_txn_requires_abort(error) != 0 {
                Class::Abortable
            } else if native::rd_kafka_error_is_retriable(error) != 0 {
                Class::Retriable
            } else {
                Class::Other
            };
            let mut code = native::rd_kafka_error_code(error).into();
            if class == Class::Fatal {
                code = self.fatal_code().unwrap_or(code);
            }
            let text = text_of(native::rd_kafka_error_string(error));
            native::rd_kafka_error_destroy(error);
            Err(Refused { class, code, text })
        }
    }

    /// The code behind a general fatal one.
    fn fatal_code(&self) -> Option<RDKafkaErrorCode> {
        // SAFETY: alive; without a buffer it writes no text.
        let code =
            unsafe { native::rd_kafka_fatal_error(self.handle.as_ptr(), ptr::null_mut(), 0) };
        (code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
    }
}

impl Drop for Client {
    /// Throws away what is under way. Once this returns, nothing reads a payload any more.
    fn drop(&mut self) {
        let what = native::RD_KAFKA_PURGE_F_QUEUE | native::RD_KAFKA_PURGE_F_INFLIGHT;
        // SAFETY: alive, destroyed once, the topics first. It waits for librdkafka's threads.
        unsafe {
            native::rd_kafka_purge(self.handle.as_ptr(), what);
            native::rd_kafka_poll(self.handle.as_ptr(), 0);
            for topic in &self.topics {
                native::rd_kafka_topic_destroy(topic.handle.as_ptr());
            }
            native::rd_kafka_destroy(self.handle.as_ptr());
        }
    }
}

unsafe extern "C" fn delivered(
    _: *mut native::rd_kafka_t,
    message: *const native::rd_kafka_message_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls with a message that is alive, and with what `Client::new` set.
    let (message, seen) = unsafe { (&*message, &*opaque.cast::<Seen>()) };
    if message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        seen.failed.borrow_mut().push((message._private.addr(), message.err.into()));
    }
}

unsafe extern "C" fn troubled(
    _: *mut native::rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls with what `Client::new` set.
    let seen = unsafe { &*opaque.cast::<Seen>() };
    seen.troubles.set(seen.troubles.get() + 1);
    tracing::debug!(code, reason = text_of(reason), "Trouble with Kafka in a transaction.");
}

unsafe extern "C" fn logged(
    _: *const native::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    let level = match level {
        ..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    };
    logging::librdkafka(level, &text_of(facility), &text_of(text));
}

/// A text of librdkafka's, copied.
fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka ends its texts with a NUL.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
