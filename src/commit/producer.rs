//! Sends to Kafka outside of transactions: the only place that names the client's producer.
//!
//! Foreign header names need not be UTF-8, which the client's own types cannot say; so records
//! are handed to librdkafka directly.
//!
//! Owns: the acknowledgement of what was sent. Never: decides what to do when it fails.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as native;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};

use super::headers::{NativeHeaders, parts};
use super::letters::{Header, Letter};
use crate::clock;
use crate::logging;

/// Sends letters, each in a batch of its own: a broker refuses whole batches, and a letter that
/// is too large must not take others with it. Shared; cheap to clone.
#[derive(Clone)]
pub struct LetterProducer {
    inner: Arc<ThreadedProducer<Deliveries>>,
}

/// What the broker said of one letter.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Refused for its size, alone: only a smaller one can be sent.
    #[error("the record is larger than the topic's max.message.bytes")]
    TooLarge,
    #[error("cannot send to the topic {topic}")]
    Kafka { topic: String, source: KafkaError },
}

/// Whoever brings letters to the broker.
pub trait Letters: Send + Sync {
    /// Hands a letter over; the answer comes with this token.
    ///
    /// # Errors
    /// Refused at once: nothing will be acknowledged.
    fn send(
        &self,
        topic: &str,
        letter: &Letter,
        token: u64,
        acknowledged: &Arc<OnAcknowledged>,
    ) -> Result<(), SendError>;
}

/// Called once for each letter, on the producer's thread: it must not block.
pub type OnAcknowledged = dyn Fn(u64, Result<(), SendError>) + Send + Sync;

struct Ticket {
    token: u64,
    topic: String,
    acknowledged: Arc<OnAcknowledged>,
}

struct Deliveries;

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        logging::librdkafka(level, facility, text);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(SendError::of(&ticket.topic, error.clone())),
        };
        (ticket.acknowledged)(ticket.token, result);
    }
}

impl SendError {
    fn of(topic: &str, source: KafkaError) -> Self {
        match source.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
                Self::TooLarge
            }
            _ => Self::Kafka { topic: topic.to_owned(), source },
        }
    }
}

/// The client's own limit must not be what refuses a record: the topic knows better.
const MESSAGE_BYTES_MAX: &str = "1000000000";

impl LetterProducer {
    /// Connects in the background.
    ///
    /// # Errors
    /// A property in `[kafka.properties]` that librdkafka refuses.
    pub fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("batch.num.messages", "1")
            .set("linger.ms", "0")
            .set("message.max.bytes", MESSAGE_BYTES_MAX);
        let inner = config.create_with_context(Deliveries)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits until everything that was sent is answered, at most this long.
    pub fn flush(&self, timeout: Duration) {
        if let Err(error) = self.inner.flush(timeout) {
            tracing::warn!(%error, "Some dead letters were not acknowledged in time.");
        }
    }

    fn produce(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[Header],
        ticket: Box<Ticket>,
    ) -> Result<(), SendError> {
        let refused = |source| SendError::of(topic, source);
        let name = CString::new(topic).map_err(|error| refused(error.into()))?;
        let mut native_headers = NativeHeaders::new(headers.len());
        for (name, value) in headers {
            native_headers.add(name, value.as_deref());
        }
        let headers = native_headers;
        let (key, key_len) = parts(key);
        let (payload, payload_len) = parts(payload);
        let opaque = Box::into_raw(ticket);
        use native::rd_kafka_vtype_t as vtype;
        // SAFETY: the argument list is pairs of a type and its values, ended by END, as
        // rd_kafka_producev asks for; MSG_F_COPY makes it copy key and payload before it returns.
        let error = unsafe {
            native::rd_kafka_producev(
                self.inner.client().native_ptr(),
                vtype::RD_KAFKA_VTYPE_TOPIC,
                name.as_ptr(),
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                native::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                vtype::RD_KAFKA_VTYPE_VALUE,
                payload,
                payload_len,
                vtype::RD_KAFKA_VTYPE_HEADERS,
                headers.as_ptr(),
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                opaque.cast::<c_void>(),
                vtype::RD_KAFKA_VTYPE_END,
            )
        };
        if error == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            headers.given_away();
            return Ok(());
        }
        // SAFETY: librdkafka did not take the message, so the box is still ours alone.
        drop(unsafe { Box::from_raw(opaque) });
        Err(refused(KafkaError::MessageProduction(error.into())))
    }
}

impl Letters for LetterProducer {
    fn send(
        &self,
        topic: &str,
        letter: &Letter,
        token: u64,
        acknowledged: &Arc<OnAcknowledged>,
    ) -> Result<(), SendError> {
        let ticket =
            Ticket { token, topic: topic.to_owned(), acknowledged: Arc::clone(acknowledged) };
        let headers = letter.headers(clock::now());
        self.produce(topic, letter.key(), letter.payload(), &headers, Box::new(ticket))
    }
}
