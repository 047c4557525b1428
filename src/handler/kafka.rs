//! The kafka handler: passes a record on to another topic, once.
//!
//! It is no call: outputs are a part of the transaction that also commits their offsets.
//!
//! Owns: what an output looks like. Never: sends (see `commit::transaction`).
//!
//! An output keeps key, payload, headers and timestamp of its record, and gains
//!
//! ```text
//! onced-source: topic/partition/offset
//! onced-identity: 32 hexadecimal digits       (where the record has an identity)
//! ```
//!
//! Headers of these names that the record came with are left out: whoever audits the output must
//! find one of each. (A record that went through another onced says so in the topic before.)

use std::fmt::Write as _;
use std::sync::Arc;

use crate::identity::Identity;
use crate::record::Record;

/// Where records are passed on to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub topic: Arc<str>,
    pub partition: Place,
    pub partitioner: Partitioner,
}

/// Which partition an output goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The partitioner says, from the record's key.
    #[default]
    Key,
    /// That of the input. The output topic has at least as many.
    Same,
}

/// How a key is mapped to a partition. Records without a key go anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java clients do by default.
    #[default]
    Murmur2,
    /// As librdkafka does by default.
    Crc32,
    /// As Sarama, a Go client, does by default.
    Fnv1a,
    /// Anywhere, also with a key.
    Random,
}

impl Partitioner {
    /// Its name in librdkafka.
    #[must_use]
    pub fn native(self) -> &'static str {
        match self {
            Self::Murmur2 => "murmur2_random",
            Self::Crc32 => "consistent_random",
            Self::Fnv1a => "fnv1a_random",
            Self::Random => "random",
        }
    }
}

pub const SOURCE: &str = "onced-source";
pub const IDENTITY: &str = "onced-identity";

/// The headers of the record that an output keeps.
pub fn kept_headers(record: &Record) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let ours = |name: &[u8]| name == SOURCE.as_bytes() || name == IDENTITY.as_bytes();
    record.headers().filter(move |(name, _)| !ours(name))
}

/// Leaves in `text` the value of [`SOURCE`].
pub fn source(text: &mut String, record: &Record) {
    text.clear();
    let written = write!(text, "{}/{}", record.partition, record.offset);
    written.expect("a string takes what is written");
}

/// Leaves in `text` the value of [`IDENTITY`].
pub fn identity(text: &mut String, identity: &Identity) {
    text.clear();
    write!(text, "{identity}").expect("a string takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Offset, Partition, RecordBuilder};

    #[test]
    fn headers_of_our_names_are_replaced_and_others_kept() {
        let headers: [(&[u8], Option<&[u8]>); 4] = [
            (b"a", Some(b"1")),
            (b"onced-source", Some(b"x/0/1")),
            (b"\xff", None),
            (b"onced-identity", Some(b"00")),
        ];
        let partition = Partition::new("in/put", 3);
        let record = RecordBuilder::default().build(
            partition,
            Offset(42),
            None,
            None,
            None,
            headers.into_iter(),
        );
        let kept: Vec<_> = kept_headers(&record).map(|(name, _)| name.to_vec()).collect();
        assert_eq!(kept, [b"a".to_vec(), b"\xff".to_vec()]);
        let mut text = "old".to_owned();
        source(&mut text, &record);
        assert_eq!(text, "in/put/3/42");
        identity(&mut text, &Identity([0xab; 16]));
        assert_eq!(text, "ab".repeat(16));
    }
}
