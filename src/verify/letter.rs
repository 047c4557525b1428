//! Dead letters, as the verifier reads them: by the headers, which are a format that the daemon
//! and the verifier share.

use super::message::Message;
use super::outputs::Letter;
use crate::commit::letters;
use crate::record::{Offset, Partition, RecordBuilder};

/// A letter, and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub topic: String,
    pub partition: i32,
    pub group: String,
    pub topic_id: String,
    pub letter: Letter,
}

/// `None`: it is no letter of onced.
pub fn read(message: &Message<'_>, partition: i32) -> Option<Read> {
    // Only the headers are looked at.
    let record = RecordBuilder::default().build(
        Partition::new("", partition),
        Offset(message.offset),
        None,
        None,
        None,
        message.headers.iter().copied(),
    );
    let settles = letters::settles(&record)?;
    let text = |name: &[u8]| message.header(name).map(String::from_utf8_lossy);
    let reason = text(b"onced-dead-letter-reason").unwrap_or_default();
    Some(Read {
        topic: settles.partition.topic.to_string(),
        partition: settles.partition.index,
        group: settles.origin.group,
        topic_id: settles.origin.topic_id,
        letter: Letter {
            source: settles.offset.0,
            partition,
            offset: message.offset,
            generation: settles.origin.generation,
            reason: reason.as_ref().into(),
            digest: message.digests().undated,
            truncated: text(b"onced-dead-letter-truncated").is_some(),
        },
    })
}
