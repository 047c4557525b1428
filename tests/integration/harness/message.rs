//! Records as bytes, on the way in and on the way out.
//!
//! Header names are bytes too: any client can write a name that is not UTF-8, and the safe
//! interface of rdkafka neither writes one nor survives reading one.

use std::ffi::CStr;
use std::ptr;

use rdkafka::Message as _;
use rdkafka::bindings::{rd_kafka_header_add, rd_kafka_header_get_all};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, OwnedHeaders};
use rdkafka::types::{RDKafkaHeaders, RDKafkaRespErr};

/// A name and a value; a value may be null.
pub type Header = (Vec<u8>, Option<Vec<u8>>);

/// A record to produce. What is not set is null, left to the partitioner, or the time of sending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<Header>,
    /// Milliseconds since 1970. The client library takes 0 for the time of sending.
    pub timestamp: Option<i64>,
}

impl Message {
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: Some(payload.into()), ..Self::default() }
    }

    /// A record with a key and a null payload.
    pub fn tombstone(key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    #[must_use]
    pub fn timestamp(mut self, milliseconds: i64) -> Self {
        self.timestamp = Some(milliseconds);
        self
    }

    #[must_use]
    pub fn header(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    #[must_use]
    pub fn null_header(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), None));
        self
    }

    /// A header by the name that most tests use.
    #[must_use]
    pub fn idempotency_key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    /// A name that holds a NUL ends there: so the client library reads it.
    pub headers: Vec<Header>,
}

/// The same record, to be produced once more.
impl From<OwnedRecord> for Message {
    fn from(record: OwnedRecord) -> Self {
        let OwnedRecord { partition, timestamp, key, payload, headers, .. } = record;
        Self { partition: Some(partition), key, payload, headers, timestamp }
    }
}

impl OwnedRecord {
    pub(super) fn copy_of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().map(read_headers).unwrap_or_default(),
        }
    }

    /// The value of the first header of this name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(found, _)| found == name.as_bytes());
        found.and_then(|(_, value)| value.as_deref()).map(text)
    }

    pub fn key_text(&self) -> Option<String> {
        self.key.as_deref().map(text)
    }

    pub fn payload_text(&self) -> Option<String> {
        self.payload.as_deref().map(text)
    }

    /// # Panics
    ///
    /// Panics where the payload is not JSON.
    pub fn json(&self) -> serde_json::Value {
        let payload = self.payload.as_deref().unwrap_or_default();
        serde_json::from_slice(payload).expect("the payload is JSON")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn native_headers(headers: &[Header]) -> Option<OwnedHeaders> {
    if headers.is_empty() {
        return None;
    }
    let native = OwnedHeaders::new_with_capacity(headers.len());
    for (name, value) in headers {
        let (bytes, length) = match value {
            Some(value) => (value.as_ptr(), value.len().cast_signed()),
            None => (ptr::null(), 0),
        };
        // SAFETY: the list is alive and nobody else has it; the lengths are those of the slices,
        // which are copied.
        let error = unsafe {
            rd_kafka_header_add(
                pointer(native.as_borrowed()).cast_mut(),
                name.as_ptr().cast(),
                name.len().cast_signed(),
                bytes.cast(),
                length,
            )
        };
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "a header can be added");
    }
    Some(native)
}

fn read_headers(headers: &BorrowedHeaders) -> Vec<Header> {
    (0..).map_while(|index| read_header(headers, index)).collect()
}

fn read_header(headers: &BorrowedHeaders, index: usize) -> Option<Header> {
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the list is borrowed from a message that is alive, and so is what the pointers are
    // set to; it is copied here. A name ends with a NUL.
    unsafe {
        let error = rd_kafka_header_get_all(
            pointer(headers),
            index,
            &raw mut name,
            &raw mut value,
            &raw mut length,
        );
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let name = CStr::from_ptr(name).to_bytes().to_vec();
        let value = (!value.is_null())
            .then(|| std::slice::from_raw_parts(value.cast::<u8>(), length).to_vec());
        Some((name, value))
    }
}

/// A reference to the safe type is a pointer to the native list under another name.
fn pointer(headers: &BorrowedHeaders) -> *const RDKafkaHeaders {
    ptr::from_ref(headers).cast()
}
