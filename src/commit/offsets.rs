//! What stands in the metadata of a committed offset: enough to know, on a machine without this
//! data directory, which topic it was, how identities were made and how far time had come.
//!
//! ```text
//! onced1 d=<definition, hex> t=<topic id> n=<partitions> s=<stream time, ms> g=<generation>
//!        r=<rewinds: generation-start,...> k=<skips: from-to,...>
//! ```
//!
//! Foreign input: anyone may commit for the group. What does not read as ours is not ours.

use std::fmt::Write;

use crate::dedup::acts::{Acts, Rewind, Skip};
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
    /// At most [`METADATA_BYTES_MAX`] bytes; what does not fit is dropped, the oldest skip first,
    /// then the oldest rewind. The number of acts dropped comes with it.
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
        let rewinds: Vec<String> = self
            .acts
            .rewinds
            .iter()
            .map(|rewind| format!("{}-{}", rewind.generation, rewind.start))
            .collect();
        let acts = skips.len() + rewinds.len();
        for dropped in 0..acts {
            let (skips, rewinds) = match dropped.checked_sub(skips.len()) {
                None => (&skips[dropped..], &rewinds[..]),
                Some(rewinds_dropped) => (&[][..], &rewinds[rewinds_dropped..]),
            };
            let text = format!("{head}{}{}", list("r", rewinds), list("k", skips));
            if text.len() <= METADATA_BYTES_MAX {
                return (text, dropped);
            }
        }
        (head, acts)
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
                "r" => {
                    let rewind = |(generation, start)| Rewind { generation, start: Offset(start) };
                    metadata.acts.rewinds = pairs(value)?.into_iter().map(rewind).collect();
                }
                "k" => {
                    let skip = |(from, to)| Skip { from: Offset(from), to: Offset(to) };
                    metadata.acts.skips = pairs(value)?.into_iter().map(skip).collect();
                }
                // A newer onced may say more.
                _ => {}
            }
        }
        Some(metadata)
    }
}

/// One part of the metadata; nothing where there is nothing to list.
fn list(name: &str, items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!(" {name}={}", items.join(",")) }
}

/// Two numbers, each not negative, joined by a dash; several of them, joined by commas.
fn pairs(text: &str) -> Option<Vec<(i64, i64)>> {
    let pair = |text: &str| {
        let (left, right) = text.split_once('-')?;
        Some((left.parse().ok()?, right.parse().ok()?))
    };
    text.split(',').map(pair).collect()
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
            acts: Acts {
                generation: 77,
                rewinds: vec![Rewind { generation: 77, start: Offset(5) }],
                skips: (0..skips).map(skip).collect(),
            },
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
        assert_eq!(read.acts.rewinds, full.acts.rewinds);
    }

    #[test]
    fn what_an_older_onced_wrote_has_no_list_of_rewinds() {
        let text = b"onced1 d=1 t=id n=2 g=9 s=5 k=1-2";
        let read = Metadata::decode(text).unwrap();
        assert_eq!((read.acts.generation, read.acts.rewinds.len()), (9, 0));
        assert_eq!(read.acts.skips.len(), 1);
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
