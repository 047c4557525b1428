//! From a message in librdkafka's memory to a [`Record`]: one copy, nothing assumed of the bytes.
//!
//! Header names are read as C strings: the client's own reader panics on a name that is not
//! UTF-8, and one such record would stop a partition for ever. A NUL in a name ends it here, as it
//! does in librdkafka.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings as native;

use crate::record::{Offset, Partition, Record, RecordBuilder, Timestamp};

/// Copies a message.
///
/// # Safety
/// `message` is a message of librdkafka that is alive and carries no error.
pub(super) unsafe fn record(
    message: *const native::rd_kafka_message_t,
    partition: Partition,
    builder: &mut RecordBuilder,
) -> Record {
    // SAFETY: alive by contract.
    let parts = unsafe { &*message };
    // SAFETY: key and payload are null or have the length that stands beside them.
    let (key, payload) =
        unsafe { (bytes(parts.key, parts.key_len), bytes(parts.payload, parts.len)) };
    let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: alive by contract; `kind` outlives the call.
    let timestamp = unsafe { native::rd_kafka_message_timestamp(message, &raw mut kind) };
    let dated = kind != native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE
        && timestamp >= 0;
    // SAFETY: alive by contract, and the headers are used before the message is freed.
    let headers = unsafe { HeaderIter::of(message) };
    builder.build(
        partition,
        Offset(parts.offset),
        dated.then_some(Timestamp(timestamp)),
        key,
        payload,
        headers,
    )
}

/// # Safety
/// `pointer` is null or points to `len` bytes that live as long as the result is used.
unsafe fn bytes<'a>(pointer: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast(), len) })
}

#[derive(Clone)]
struct HeaderIter<'a> {
    headers: *const native::rd_kafka_headers_t,
    index: usize,
    message: std::marker::PhantomData<&'a ()>,
}

impl HeaderIter<'_> {
    /// # Safety
    /// `message` is alive for as long as the result is used.
    unsafe fn of(message: *const native::rd_kafka_message_t) -> Self {
        let mut headers = ptr::null_mut();
        // SAFETY: alive by contract. On an error there are no headers and the pointer stays null.
        unsafe { native::rd_kafka_message_headers(message, &raw mut headers) };
        Self { headers, index: 0, message: std::marker::PhantomData }
    }
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.headers.is_null() {
            return None;
        }
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list lives as long as its message; an index past the end is an error code.
        let found = unsafe {
            native::rd_kafka_header_get_all(
                self.headers,
                self.index,
                &raw mut name,
                &raw mut value,
                &raw mut len,
            )
        };
        if found != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        self.index += 1;
        // SAFETY: librdkafka ends names with a NUL; the value has this length or is null.
        unsafe { Some((CStr::from_ptr(name).to_bytes(), bytes(value, len))) }
    }
}
