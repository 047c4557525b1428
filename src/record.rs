//! The vocabulary: a Kafka record as onced sees it, and the numbers that order records.
//!
//! Owns: [`Record`], [`Partition`], [`Offset`], [`Timestamp`], [`Epoch`].
//! Never: names a type of the Kafka client, or reads a clock.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The number of a record in its partition. Never negative; gaps are normal.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Offset(pub i64);

impl Offset {
    /// The first number that is greater.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z. What producers write may be any `i64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// One ownership period of a partition, or the time since the last rewind within it.
///
/// Grows within a process and is never reused. What carries a stale epoch changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A partition of an input topic. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: Arc<str>,
    pub index: i32,
}

impl Partition {
    pub fn new(topic: impl Into<Arc<str>>, index: i32) -> Self {
        Self { topic: topic.into(), index }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

/// One Kafka message as delivered. Key, headers and payload are foreign bytes: nothing is
/// assumed about them but their length.
///
/// The bytes of a record lie together in one shared buffer, so that a clone copies nothing.
///
/// ```text
/// [header: name_len u32, value_len u32 (u32::MAX: null), name, value]*  key  payload
/// ```
#[derive(Clone, Debug)]
pub struct Record {
    pub partition: Partition,
    pub offset: Offset,
    /// `None`: the record carries no timestamp.
    pub timestamp: Option<Timestamp>,
    body: Bytes,
    headers_end: u32,
    /// `None`: null, which differs from empty.
    key: Option<Range32>,
    payload: Option<Range32>,
}

type Range32 = (u32, u32);

const NULL: u32 = u32::MAX;
const HEADER_PREFIX: usize = 8;

impl Record {
    pub fn key(&self) -> Option<&[u8]> {
        self.key.map(|range| &self.body[span(range)])
    }

    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.map(|range| &self.body[span(range)])
    }

    /// The payload as a shared buffer: no copy.
    pub fn payload_bytes(&self) -> Option<Bytes> {
        self.payload.map(|range| self.body.slice(span(range)))
    }

    /// All headers in the order of the record; names may repeat and need not be UTF-8.
    pub fn headers(&self) -> Headers<'_> {
        Headers { rest: &self.body[..self.headers_end as usize] }
    }

    /// The value of the last header of this name, compared byte by byte.
    ///
    /// `None`: no such header. `Some(None)`: its value is null.
    pub fn header(&self, name: &[u8]) -> Option<Option<&[u8]>> {
        self.headers().filter(|(n, _)| *n == name).last().map(|(_, value)| value)
    }

    /// Bytes of key, headers and payload that this record keeps in memory.
    pub fn size(&self) -> usize {
        self.body.len()
    }

    /// `topic/partition/offset`.
    pub fn coordinates(&self) -> String {
        format!("{}/{}", self.partition, self.offset)
    }
}

fn span((start, end): Range32) -> Range<usize> {
    start as usize..end as usize
}

/// Iterator over `(name, value)`; the value is `None` when it is null.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name_len, rest) = self.rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_len) as usize)?;
        let value_len = u32::from_le_bytes(*value_len);
        if value_len == NULL {
            self.rest = rest;
            return Some((name, None));
        }
        let (value, rest) = rest.split_at_checked(value_len as usize)?;
        self.rest = rest;
        Some((name, Some(value)))
    }
}

/// Builds records into shared chunks of memory: one allocation serves many records.
#[derive(Debug, Default)]
pub struct RecordBuilder {
    chunk: BytesMut,
}

/// Small enough that a record that waits for long does not pin much of what came with it.
const CHUNK_BYTES: usize = 64 * 1024;

impl RecordBuilder {
    /// Copies the parts of one message. Each part is at most what Kafka allows in one record
    /// (an `i32` of bytes).
    pub fn build<'a>(
        &mut self,
        partition: Partition,
        offset: Offset,
        timestamp: Option<Timestamp>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) -> Record {
        let headers_len: usize = headers
            .clone()
            .map(|(name, value)| HEADER_PREFIX + name.len() + value.map_or(0, <[u8]>::len))
            .sum();
        let key_len = key.map_or(0, <[u8]>::len);
        let size = headers_len + key_len + payload.map_or(0, <[u8]>::len);
        if self.chunk.capacity() < size {
            self.chunk = BytesMut::with_capacity(size.max(CHUNK_BYTES));
        }
        for (name, value) in headers {
            self.chunk.put_u32_le(len32(name.len()));
            self.chunk.put_u32_le(value.map_or(NULL, |value| len32(value.len())));
            self.chunk.put_slice(name);
            self.chunk.put_slice(value.unwrap_or_default());
        }
        self.chunk.put_slice(key.unwrap_or_default());
        self.chunk.put_slice(payload.unwrap_or_default());
        let headers_end = len32(headers_len);
        let key_end = len32(headers_len + key_len);
        Record {
            partition,
            offset,
            timestamp,
            body: self.chunk.split().freeze(),
            headers_end,
            key: key.map(|_| (headers_end, key_end)),
            payload: payload.map(|_| (key_end, len32(size))),
        }
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("a Kafka record is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> Record {
        RecordBuilder::default().build(
            Partition::new("t", 0),
            Offset(7),
            None,
            key,
            payload,
            headers.iter().copied(),
        )
    }

    #[test]
    fn parts_come_back_as_they_went_in() {
        let record = build(
            Some(b"k"),
            Some(b"payload"),
            &[(b"a", Some(b"1")), (b"\xff\x00", None), (b"a", Some(b""))],
        );
        assert_eq!(record.key(), Some(&b"k"[..]));
        assert_eq!(record.payload(), Some(&b"payload"[..]));
        let headers: Vec<_> = record.headers().collect();
        assert_eq!(
            headers,
            [(&b"a"[..], Some(&b"1"[..])), (&b"\xff\x00"[..], None), (&b"a"[..], Some(&b""[..]))]
        );
    }

    #[test]
    fn null_differs_from_empty() {
        let null = build(None, None, &[]);
        assert_eq!((null.key(), null.payload()), (None, None));
        let empty = build(Some(b""), Some(b""), &[]);
        assert_eq!((empty.key(), empty.payload()), (Some(&b""[..]), Some(&b""[..])));
    }

    #[test]
    fn the_last_header_of_a_name_wins() {
        let record = build(None, None, &[(b"a", Some(b"1")), (b"a", Some(b"2")), (b"b", None)]);
        assert_eq!(record.header(b"a"), Some(Some(&b"2"[..])));
        assert_eq!(record.header(b"b"), Some(None));
        assert_eq!(record.header(b"c"), None);
    }

    #[test]
    fn a_clone_shares_the_bytes() {
        let record = build(None, Some(b"x"), &[]);
        let clone = record.clone();
        assert_eq!(record.payload().map(<[u8]>::as_ptr), clone.payload().map(<[u8]>::as_ptr));
    }
}
