//! What stands in the metadata of a committed offset: enough to know, on a machine without this
//! data directory, which topic it was, how identities were made and how far time had come.
//!
//! ```text
//! onced1 d=<definition, hex> t=<topic id> n=<partitions> s=<stream time, ms> g=<generation> k=<skips: from-to,...>
//! ```
//!
//! Foreign input: anyone may commit for the group. What does not read as ours is not ours.

use std::fmt::Write;

use crate::dedup::acts::{Acts, Skip};
use crate::record::{Offset, Timestamp};

/// Kafka's `offset.metadata.max.bytes` is 4,096 by default.
pub const METADATA_BYTES_MAX: usize = 4_000;

const PREFIX: &str = "onced1 ";

/// The metadata of one committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// See `identity::Config::definition`.
    pub definition: u64,
    pub topic_id: String,
    pub partition_count: i32,
    /// The stream time at the committed offset.
    pub stream_time: Option<Timestamp>,
    pub acts: Acts,
}

impl Metadata {
    /// At most [`METADATA_BYTES_MAX`] bytes; what does not fit is dropped, the oldest skip first.
    /// The number of skips dropped comes with it.
    #[must_use]
    pub fn encode(&self) -> (String, usize) {
        let mut head = format!(
            "{PREFIX}d={:x} t={} n={} g={}",
            self.definition, self.topic_id, self.partition_count, self.acts.generation
        );
        if let Some(stream_time) = self.stream_time {
            let _ = write!(head, " s={}", stream_time.0);
        }
        let skips: Vec<String> =
            self.acts.skips.iter().map(|skip| format!("{}-{}", skip.from, skip.to)).collect();
        for dropped in 0..=skips.len() {
            let kept = skips[dropped..].join(",");
            let text = if kept.is_empty() { head.clone() } else { format!("{head} k={kept}") };
            if text.len() <= METADATA_BYTES_MAX {
                return (text, dropped);
            }
        }
        (head, skips.len())
    }

    /// `None`: this was not written by onced.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix(PREFIX)?;
        let mut metadata = Self::default();
        for part in text.split(' ') {
            let (name, value) = part.split_once('=')?;
            match name {
                "d" => metadata.definition = u64::from_str_radix(value, 16).ok()?,
                "t" => value.clone_into(&mut metadata.topic_id),
                "n" => metadata.partition_count = value.parse().ok()?,
                "s" => metadata.stream_time = Some(Timestamp(value.parse().ok()?)),
                "g" => metadata.acts.generation = value.parse().ok()?,
                "k" => {
                    metadata.acts.skips =
                        value.split(',').map(decode_skip).collect::<Option<_>>()?
                }
                // A newer onced may say more.
                _ => {}
            }
        }
        Some(metadata)
    }
}

fn decode_skip(text: &str) -> Option<Skip> {
    let (from, to) = text.split_once('-')?;
    Some(Skip { from: Offset(from.parse().ok()?), to: Offset(to.parse().ok()?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metadata(skips: usize) -> Metadata {
        let skip = |n: usize| Skip {
            from: Offset(n as i64 * 1_000_000),
            to: Offset(n as i64 * 1_000_000 + 5),
        };
        Metadata {
            definition: 0xfeed,
            topic_id: "aB-_12".to_owned(),
            partition_count: 12,
            stream_time: Some(Timestamp(1_700_000_000_000)),
            acts: Acts { generation: 77, skips: (0..skips).map(skip).collect() },
        }
    }

    #[test]
    fn metadata_comes_back() {
        for metadata in [metadata(0), metadata(3), Metadata::default()] {
            let (text, dropped) = metadata.encode();
            assert_eq!((Metadata::decode(text.as_bytes()), dropped), (Some(metadata), 0));
        }
    }

    #[test]
    fn the_oldest_skips_go_first_where_not_all_fit() {
        let full = metadata(1_000);
        let (text, dropped) = full.encode();
        assert!(text.len() <= METADATA_BYTES_MAX && dropped > 0);
        let read = Metadata::decode(text.as_bytes()).unwrap();
        assert_eq!(read.acts.skips, full.acts.skips[dropped..]);
    }

    #[test]
    fn foreign_metadata_is_not_ours() {
        for text in ["", "onced", "onced1", "onced1 x", "onced1 n=many", "some tool"] {
            assert_eq!(Metadata::decode(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text in "onced1 ([a-z]=[0-9,-]{0,9} ?){0,5}") {
            let _ = Metadata::decode(&bytes);
            let _ = Metadata::decode(text.as_bytes());
        }
    }
}
