//! The bytes of one entry of the log.
//!
//! Constraints:
//! - An entry says which record was handled first, so that a redelivery (the same record) and a
//!   duplicate (another record) can be told apart.
//! - Hashes do not compress; offset and time are short as varints.
//!
//! ```text
//! format (1)  check (4, big endian)  offset (varint)  time (varint, milliseconds since 1970)
//! ```
//!
//! Changing a byte of this means a new format number.

use crate::identity::Check;
use crate::record::{Offset, Timestamp};

/// The first occurrence of an identity that was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: Offset,
    pub time: Timestamp,
    pub check: Check,
}

const FORMAT: u8 = 1;

/// The most bytes that an entry takes.
pub const ENTRY_BYTES_MAX: usize = 1 + 4 + 10 + 10;

impl Entry {
    /// Appends the bytes of this entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.check.0.to_be_bytes());
        put_varint(out, self.offset.0.unsigned_abs());
        put_varint(out, self.time.0.max(0).unsigned_abs());
    }

    /// `None`: these are not the bytes of an entry.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FORMAT], rest) = bytes.split_first_chunk::<1>()? else { return None };
        let (check, mut rest) = rest.split_first_chunk::<4>()?;
        let offset = take_number(&mut rest)?;
        let time = take_number(&mut rest)?;
        rest.is_empty().then(|| Self {
            offset: Offset(offset),
            time: Timestamp(time),
            check: Check(u32::from_be_bytes(*check)),
        })
    }

    /// Only the time, for the compaction filter, which meets every entry.
    #[must_use]
    pub fn decode_time(bytes: &[u8]) -> Option<Timestamp> {
        Self::decode(bytes).map(|entry| entry.time)
    }
}

/// Seven bits a byte, the lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `None`: the bytes end within the number, or it needs more than 64 bits.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A varint that fits into an `i64`.
pub(super) fn take_number(bytes: &mut &[u8]) -> Option<i64> {
    take_varint(bytes).and_then(|value| i64::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_an_entry_are_pinned() {
        let entry = Entry {
            offset: Offset(300),
            time: Timestamp(1_700_000_000_000),
            check: Check(0x0102_0304),
        };
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        assert_eq!(bytes, [1, 1, 2, 3, 4, 0xac, 2, 0x80, 0xd0, 0x95, 0xff, 0xbc, 0x31]);
    }

    proptest! {
        #[test]
        fn an_entry_comes_back(offset in 0..=i64::MAX, time in 0..=i64::MAX, check: u32) {
            let entry = Entry { offset: Offset(offset), time: Timestamp(time), check: Check(check) };
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            prop_assert!(bytes.len() <= ENTRY_BYTES_MAX);
            prop_assert_eq!(Entry::decode(&bytes), Some(entry));
            prop_assert_eq!(Entry::decode_time(&bytes), Some(entry.time));
            for cut in 0..bytes.len() {
                prop_assert_eq!(Entry::decode(&bytes[..cut]), None);
            }
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_panic(bytes: Vec<u8>) {
            if let Some(entry) = Entry::decode(&bytes) {
                prop_assert!(entry.offset.0 >= 0 && entry.time.0 >= 0);
            }
        }
    }
}
