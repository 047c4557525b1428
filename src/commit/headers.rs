//! Headers in librdkafka's memory. Foreign names need not be UTF-8, which the client's own types
//! cannot say.

use std::ffi::{c_char, c_void};
use std::ptr;

use rdkafka::bindings as native;

/// A list that is freed unless it was given away with a message.
pub(super) struct NativeHeaders {
    pointer: *mut native::rd_kafka_headers_t,
}

impl NativeHeaders {
    /// `expected`: how many there will be, about.
    pub(super) fn new(expected: usize) -> Self {
        // SAFETY: creates an empty list that we own.
        Self { pointer: unsafe { native::rd_kafka_headers_new(expected) } }
    }

    /// Copies both.
    pub(super) fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        let (value, value_len) = parts(value);
        // SAFETY: both are copied; the lengths are those of the slices.
        unsafe {
            native::rd_kafka_header_add(
                self.pointer,
                name.as_ptr().cast::<c_char>(),
                name.len() as isize,
                value,
                value_len as isize,
            );
        }
    }

    pub(super) fn as_ptr(&self) -> *mut native::rd_kafka_headers_t {
        self.pointer
    }

    pub(super) fn given_away(self) {
        std::mem::forget(self);
    }
}

impl Drop for NativeHeaders {
    fn drop(&mut self) {
        // SAFETY: ours until given away.
        unsafe { native::rd_kafka_headers_destroy(self.pointer) }
    }
}

/// Bytes as C wants them; null and empty differ.
pub(super) fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}
