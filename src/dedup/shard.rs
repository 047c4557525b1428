//! The state of one shard: how far its partition is settled, and when that was.
//!
//! Constraints:
//! - It is written in the same batch as the entries that it accounts for; a crash shows both or
//!   neither.
//! - It is read whole when the partition is assigned. Corrupt bytes are an error, never a guess.
//!
//! ```text
//! format (1)  position (varint)  stream time + 1 (varint, 0: none)  since + 1 (varint, 0: none)
//! last settled: 0 | 1 offset (varint) timestamp + 1 (varint) check (4, big endian)
//! settled beyond the position: count (varint), then distances (varint each)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::acts::Acts;
use super::entry::{put_varint, take_number, take_varint};
use crate::identity::Check;
use crate::record::{Offset, Partition, Timestamp};

/// The number of a shard in one data directory. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard(pub u32);

/// What a shard knows of its partition at the frontier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Every record below is settled.
    pub position: Offset,
    /// The stream time when the record before `position` was read.
    pub stream_time: Option<Timestamp>,
    /// Entries are complete for records dated from here on. `None`: for all.
    pub since: Option<Timestamp>,
    /// The last settled record, to notice that the topic is another one.
    pub last: Option<LastSettled>,
    /// Offsets at or above `position` that are settled, ascending.
    pub settled_beyond: Vec<Offset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSettled {
    pub offset: Offset,
    pub timestamp: Option<Timestamp>,
    pub check: Check,
}

/// The row of the shard table: what the shard was written for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub topic: String,
    /// Kafka's id of the topic; empty where the broker has none. Another id is another topic.
    pub topic_id: String,
    pub partition: i32,
    /// Partitions of the topic: another count sends keys to other partitions.
    pub partition_count: i32,
    /// What the identities are made of; see `identity::Config::definition`.
    pub definition: u64,
    pub ttl: Duration,
    pub lateness: Duration,
    /// What people did to the group's offsets: a commit of somebody else takes it out of the
    /// group's metadata.
    #[serde(default)]
    pub acts: Acts,
    /// Wall clock when this process last owned the partition.
    pub owned_at_ms: i64,
}

impl Owner {
    pub fn partition(&self) -> Partition {
        Partition::new(self.topic.as_str(), self.partition)
    }
}

const FORMAT: u8 = 1;

impl State {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        put_varint(out, self.position.0.unsigned_abs());
        put_time(out, self.stream_time);
        put_time(out, self.since);
        match self.last {
            None => out.push(0),
            Some(last) => {
                out.push(1);
                put_varint(out, last.offset.0.unsigned_abs());
                put_time(out, last.timestamp);
                out.extend_from_slice(&last.check.0.to_be_bytes());
            }
        }
        put_varint(out, self.settled_beyond.len() as u64);
        let mut previous = self.position.0;
        for offset in &self.settled_beyond {
            put_varint(out, offset.0.abs_diff(previous));
            previous = offset.0;
        }
    }

    /// `None`: these are not the bytes of a state.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take_byte(bytes)? != FORMAT {
            return None;
        }
        let position = Offset(take_number(bytes)?);
        let stream_time = take_time(bytes)?;
        let since = take_time(bytes)?;
        let last = match take_byte(bytes)? {
            0 => None,
            1 => Some(take_last(bytes)?),
            _ => return None,
        };
        let settled_beyond = take_offsets(bytes, position)?;
        bytes.is_empty().then_some(Self { position, stream_time, since, last, settled_beyond })
    }
}

fn put_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    put_varint(out, time.map_or(0, |time| time.0.max(0).unsigned_abs() + 1));
}

fn take_time(bytes: &mut &[u8]) -> Option<Option<Timestamp>> {
    Some(match take_varint(bytes)? {
        0 => None,
        plus_one => Some(Timestamp(i64::try_from(plus_one - 1).ok()?)),
    })
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (&byte, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(byte)
}

fn take_last(bytes: &mut &[u8]) -> Option<LastSettled> {
    let offset = Offset(take_number(bytes)?);
    let timestamp = take_time(bytes)?;
    let (check, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(LastSettled { offset, timestamp, check: Check(u32::from_be_bytes(*check)) })
}

fn take_offsets(bytes: &mut &[u8], position: Offset) -> Option<Vec<Offset>> {
    let count = usize::try_from(take_varint(bytes)?).ok()?;
    // Each takes at least a byte, so a corrupt count cannot ask for much memory.
    if count > bytes.len() {
        return None;
    }
    let mut offset = position.0;
    (0..count)
        .map(|_| {
            offset = offset.checked_add(take_number(bytes)?)?;
            Some(Offset(offset))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arbitrary() -> impl Strategy<Value = State> {
        let time = || prop::option::of((0..=i64::MAX).prop_map(Timestamp));
        let last = (0..=i64::MAX, time(), any::<u32>()).prop_map(|(offset, timestamp, check)| {
            LastSettled { offset: Offset(offset), timestamp, check: Check(check) }
        });
        (
            0..1i64 << 50,
            time(),
            time(),
            prop::option::of(last),
            prop::collection::btree_set(0i64..1 << 40, 0..50),
        )
            .prop_map(|(position, stream_time, since, last, beyond)| State {
                position: Offset(position),
                stream_time,
                since,
                last,
                settled_beyond: beyond
                    .into_iter()
                    .map(|distance| Offset(position + distance))
                    .collect(),
            })
    }

    proptest! {
        #[test]
        fn a_state_comes_back(state in arbitrary()) {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            prop_assert_eq!(State::decode(&bytes), Some(state));
            for cut in 0..bytes.len() {
                prop_assert_eq!(State::decode(&bytes[..cut]), None);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = State::decode(&bytes);
        }
    }
}
