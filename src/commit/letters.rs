//! Dead letters: what is put around a record that could not be handled, and how a letter is read
//! back to the record that it settles.
//!
//! The letter is the settlement: once the broker has it, the record needs no more work, also if
//! the log never hears of it. Letters are therefore read again at every start.
//!
//! Owns: the `onced-dead-letter-*` headers. Never: sends (see `producer`).

use crate::clock;
use crate::identity::Identity;
use crate::record::{Offset, Partition, Record, Timestamp};

/// Why a record became a letter. The text is a contract: header and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Rejected,
    Exhausted,
    Conflict,
    MissingIdentity,
    Undecodable,
    TooLarge,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::Conflict => "conflict",
            Self::MissingIdentity => "missing-identity",
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too-large",
        }
    }
}

/// One letter, about to be sent.
#[derive(Clone, Debug)]
pub struct Letter {
    pub record: Record,
    pub reason: Reason,
    pub error: String,
    /// Calls made; 0 where the handler was never asked.
    pub attempts: u32,
    pub route: String,
    pub identity: Option<Identity>,
    pub origin: Origin,
    pub form: Form,
}

/// The group, the topic and the generation for which a letter settles its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub group: String,
    pub topic_id: String,
    pub generation: i64,
}

/// How much of the record a letter keeps: brokers refuse what is too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Whole,
    WithoutPayload,
    WithoutHeaders,
    WithoutKey,
}

impl Form {
    /// The next smaller one; `None`: there is nothing left to leave out.
    #[must_use]
    pub fn smaller(self) -> Option<Self> {
        match self {
            Self::Whole => Some(Self::WithoutPayload),
            Self::WithoutPayload => Some(Self::WithoutHeaders),
            Self::WithoutHeaders => Some(Self::WithoutKey),
            Self::WithoutKey => None,
        }
    }

    fn truncated(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::WithoutPayload => Some("payload"),
            Self::WithoutHeaders => Some("payload,headers"),
            Self::WithoutKey => Some("payload,headers,key"),
        }
    }
}

const PREFIX: &[u8] = b"onced-dead-letter-";
const SOURCE: &[u8] = b"onced-dead-letter-source";
const GROUP: &[u8] = b"onced-dead-letter-group";

/// The most bytes of an error's text in a header.
const ERROR_BYTES_MAX: usize = 1_024;

/// Name and value of a header; foreign names need not be UTF-8.
pub type Header = (Vec<u8>, Option<Vec<u8>>);

impl Letter {
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        if self.form == Form::WithoutKey { None } else { self.record.key() }
    }

    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        if self.form == Form::Whole { self.record.payload() } else { None }
    }

    /// The record's own headers, then ours. Those of an earlier letter are replaced.
    #[must_use]
    pub fn headers(&self, now: Timestamp) -> Vec<Header> {
        let keeps_headers = matches!(self.form, Form::Whole | Form::WithoutPayload);
        let foreign =
            self.record.headers().filter(|(name, _)| keeps_headers && !name.starts_with(PREFIX));
        let mut headers: Vec<Header> =
            foreign.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect();
        let Origin { group, topic_id, generation } = &self.origin;
        let mut put = |name: &str, value: String| {
            headers.push(([PREFIX, name.as_bytes()].concat(), Some(value.into_bytes())));
        };
        put("reason", self.reason.as_str().to_owned());
        put("error", cut(&self.error, ERROR_BYTES_MAX).to_owned());
        put("attempts", self.attempts.to_string());
        put("route", self.route.clone());
        put("source", self.record.coordinates());
        put("timestamp", clock::rfc3339(now));
        if let Some(identity) = &self.identity {
            put("identity", identity.to_string());
        }
        put("group", format!("{group}/{topic_id}/{generation}"));
        if let Some(truncated) = self.form.truncated() {
            put("truncated", truncated.to_owned());
        }
        headers
    }
}

/// At most this many bytes of a text, cut between characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Which record a letter settles, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settles {
    pub partition: Partition,
    pub offset: Offset,
    pub origin: Origin,
}

/// Reads the letter's headers. `None`: not a letter of onced. The last header of a name counts,
/// so that a letter that was dead-lettered elsewhere in between reads as its newest self.
#[must_use]
pub fn settles(letter: &Record) -> Option<Settles> {
    let text = |name| std::str::from_utf8(letter.header(name)??).ok();
    let mut source = text(SOURCE)?.rsplitn(3, '/');
    let offset = Offset(source.next()?.parse().ok()?);
    let index = source.next()?.parse().ok()?;
    let topic = source.next()?;
    let mut group = text(GROUP)?.rsplitn(3, '/');
    let generation = group.next()?.parse().ok()?;
    let topic_id = group.next()?.to_owned();
    let group = group.next()?.to_owned();
    Some(Settles {
        partition: Partition::new(topic, index),
        offset,
        origin: Origin { group, topic_id, generation },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordBuilder;

    type Pair<'a> = (&'a [u8], Option<&'a [u8]>);

    fn record(headers: &[Pair<'_>]) -> Record {
        let headers = headers.iter().copied();
        let partition = Partition::new("pay/ments", 3);
        RecordBuilder::default().build(partition, Offset(42), None, Some(b"k"), Some(b"p"), headers)
    }

    fn letter(record: Record, form: Form) -> Letter {
        let origin = Origin { group: "a/b".to_owned(), topic_id: "id".to_owned(), generation: 7 };
        Letter {
            record,
            reason: Reason::Exhausted,
            error: "é".repeat(1_000),
            attempts: 5,
            route: "payments".to_owned(),
            identity: Some(Identity([1; 16])),
            origin,
            form,
        }
    }

    fn reread(letter: &Letter) -> Record {
        let headers = letter.headers(Timestamp(0));
        let headers: Vec<Pair<'_>> = headers.iter().map(|(n, v)| (&n[..], v.as_deref())).collect();
        record(&headers)
    }

    #[test]
    fn a_letter_leads_back_to_its_record() {
        let letter = letter(record(&[]), Form::Whole);
        let settles = settles(&reread(&letter)).unwrap();
        assert_eq!(settles.partition, Partition::new("pay/ments", 3));
        assert_eq!(settles.offset, Offset(42));
        assert_eq!(settles.origin, letter.origin);
    }

    #[test]
    fn foreign_headers_stay_and_those_of_an_earlier_letter_are_replaced() {
        let first = letter(record(&[(b"\xff", None), (b"x", Some(b"1"))]), Form::Whole);
        let second = letter(reread(&first), Form::Whole);
        let names: Vec<_> =
            second.headers(Timestamp(0)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..2], [b"\xff".to_vec(), b"x".to_vec()]);
        assert_eq!(names.iter().filter(|name| name.ends_with(b"-reason")).count(), 1);
    }

    #[test]
    fn a_smaller_form_leaves_out_more_and_says_so() {
        let forms = std::iter::successors(Some(Form::Whole), |form| form.smaller());
        let said: Vec<_> = forms
            .map(|form| {
                let letter = letter(record(&[(b"x", None)]), form);
                let header = reread(&letter)
                    .header(b"onced-dead-letter-truncated")
                    .flatten()
                    .map(<[u8]>::to_vec);
                let parts = (letter.payload().is_some(), letter.key().is_some());
                (header.map(|value| String::from_utf8(value).unwrap()), parts)
            })
            .collect();
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            said,
            [
                (None, (true, true)),
                (text("payload"), (false, true)),
                (text("payload,headers"), (false, true)),
                (text("payload,headers,key"), (false, false)),
            ]
        );
    }

    #[test]
    fn what_is_no_letter_settles_nothing() {
        assert_eq!(settles(&record(&[])), None);
        let source: Pair<'_> = (SOURCE, Some(b"t/1/2"));
        for group in [&b"g"[..], b"g/id", b"g/id/x", b"\xff/id/1"] {
            assert_eq!(settles(&record(&[source, (GROUP, Some(group))])), None);
        }
        assert_eq!(settles(&record(&[(SOURCE, Some(b"t/1")), (GROUP, Some(b"g/i/1"))])), None);
    }
}
