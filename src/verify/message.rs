//! One message as the verifier sees it: borrowed from the client, nothing assumed of its bytes.
//!
//! Owns: the headers that an output carries, and the digest that says whether two messages are
//! the same but for what onced adds.
//! Never: copies a payload.

use xxhash_rust::xxh3::Xxh3;

/// What onced adds to an output.
const SOURCE: &[u8] = b"onced-source";
const IDENTITY: &[u8] = b"onced-identity";
/// What onced adds to a dead letter.
const LETTER_PREFIX: &[u8] = b"onced-dead-letter-";

/// Name and value of a header; the value may be null.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// A message that was read.
#[derive(Clone, Debug, Default)]
pub struct Message<'a> {
    pub offset: i64,
    /// Milliseconds. `None`: the message carries none.
    pub timestamp: Option<i64>,
    /// The broker set the timestamp when it appended the message.
    pub dated_by_broker: bool,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub headers: Vec<Header<'a>>,
}

/// The record that an output or a letter came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

/// What stands in the identity header of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityHeader {
    Missing,
    /// It is there and is not 32 hexadecimal digits.
    Unreadable,
    Is(u128),
}

impl<'a> Message<'a> {
    /// The value of the last header of this name. `None`: no such header, or its value is null.
    pub fn header(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.headers.iter().rev().find(|(n, _)| *n == name).and_then(|(_, value)| *value)
    }

    /// Where an output says that it came from. `None`: it does not, or not legibly.
    pub fn source(&self) -> Option<Source<'a>> {
        let mut parts = std::str::from_utf8(self.header(SOURCE)?).ok()?.rsplitn(3, '/');
        let offset = parts.next()?.parse().ok().filter(|offset| *offset >= 0)?;
        let partition = parts.next()?.parse().ok().filter(|partition| *partition >= 0)?;
        Some(Source { topic: parts.next()?, partition, offset })
    }

    pub fn identity(&self) -> IdentityHeader {
        let Some(value) = self.header(IDENTITY) else { return IdentityHeader::Missing };
        let hex = value.len() == 32 && value.iter().all(u8::is_ascii_hexdigit);
        let text = std::str::from_utf8(value).ok().filter(|_| hex);
        let number = text.and_then(|text| u128::from_str_radix(text, 16).ok());
        number.map_or(IdentityHeader::Unreadable, IdentityHeader::Is)
    }

    /// How often each of onced's two headers is there.
    pub fn own_headers(&self) -> (usize, usize) {
        let count = |name| self.headers.iter().filter(|(n, _)| *n == name).count();
        (count(SOURCE), count(IDENTITY))
    }

    /// Digests of all but the headers of onced: with the timestamp, and without it.
    pub fn digests(&self) -> Digests {
        let mut hash = Xxh3::new();
        part(&mut hash, self.key);
        part(&mut hash, self.payload);
        let foreign =
            |name: &[u8]| name != SOURCE && name != IDENTITY && !name.starts_with(LETTER_PREFIX);
        for (name, value) in self.headers.iter().filter(|(name, _)| foreign(name)) {
            part(&mut hash, Some(name));
            part(&mut hash, *value);
        }
        let undated = low(hash.digest());
        hash.update(&self.timestamp.unwrap_or(-1).to_le_bytes());
        Digests { undated, dated: low(hash.digest()) }
    }
}

/// 32 bits: what is the same is never called altered, and what was altered is missed once in four
/// thousand million times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub undated: u32,
    pub dated: u32,
}

fn part(hash: &mut Xxh3, bytes: Option<&[u8]>) {
    let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
    hash.update(&length.to_le_bytes());
    hash.update(bytes.unwrap_or_default());
}

fn low(hash: u64) -> u32 {
    (hash & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[Header<'static>]) -> Message<'static> {
        Message { headers: headers.to_vec(), ..Message::default() }
    }

    #[test]
    fn an_output_says_where_it_came_from() {
        let message = with(&[(SOURCE, Some(b"x/0/1")), (SOURCE, Some(b"a/b/3/42"))]);
        assert_eq!(message.source(), Some(Source { topic: "a/b", partition: 3, offset: 42 }));
        for bad in [&b""[..], b"t", b"t/1", b"t/1/", b"t/-1/1", b"t/1/-1", b"\xff/1/1", b"t/1/1x"] {
            assert_eq!(with(&[(SOURCE, Some(bad.to_vec().leak()))]).source(), None, "{bad:?}");
        }
        assert_eq!(with(&[(SOURCE, None)]).source(), None);
    }

    #[test]
    fn an_identity_is_32_digits() {
        let of = |value: &'static [u8]| with(&[(IDENTITY, Some(value))]).identity();
        assert_eq!(of(b"000000000000000000000000000000ff"), IdentityHeader::Is(255));
        assert_eq!(of(b"+00000000000000000000000000000ff"), IdentityHeader::Unreadable);
        assert_eq!(of(b"ff"), IdentityHeader::Unreadable);
        assert_eq!(with(&[]).identity(), IdentityHeader::Missing);
    }

    #[test]
    fn only_the_headers_of_onced_do_not_count() {
        let plain = Message { key: Some(b"k"), timestamp: Some(5), ..with(&[(b"\xff", None)]) };
        let digests = plain.digests();
        let mut output = plain.clone();
        output.headers.extend([(SOURCE, Some(&b"t/0/1"[..])), (IDENTITY, Some(b"00"))]);
        assert_eq!(output.digests(), digests);
        let changes: [fn(&mut Message<'static>); 5] = [
            |message| message.key = Some(b""),
            |message| message.key = None,
            |message| message.payload = Some(b""),
            |message| message.headers[0].1 = Some(b""),
            |message| message.headers.push((b"x", None)),
        ];
        for change in changes {
            let mut other = plain.clone();
            change(&mut other);
            assert_ne!(other.digests().undated, digests.undated, "{other:?}");
        }
        let later = Message { timestamp: Some(6), ..plain };
        assert_eq!(later.digests().undated, digests.undated);
        assert_ne!(later.digests().dated, digests.dated);
    }
}
