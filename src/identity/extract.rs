//! Where the keys and the scope of an identity come from.
//!
//! Owns: [`KeySource`], [`ScopePart`] and [`Pointer`], how they are spelled in the configuration,
//! and what they find in a record.
//! Never: parses a payload that nothing asks for, or the same payload twice.
//!
//! Missing is, for a key and for a scope part: no such header, a header or record key that is
//! null, a payload that is not JSON, nothing at the pointer, a JSON null, array or object. An
//! empty value counts as missing for a key, since it tells no message from another; as a scope
//! part it is there.

use std::fmt;
use std::str::FromStr;

use super::canonical::{Document, Scalar};
use crate::record::Record;

/// Where an idempotency key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The last header of this name, compared byte by byte.
    Header(String),
    /// A string, number or boolean in the payload.
    Json(Pointer),
    RecordKey,
    /// Record key and payload. Always present.
    Fingerprint,
}

/// A part of what a key is unique within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopePart {
    /// The last header of this name, compared byte by byte.
    Header(String),
    /// A string, number or boolean in the payload.
    Json(Pointer),
    RecordKey,
    Topic,
    /// The same for every record: keeps routes apart that share their keys.
    Text(String),
}

/// A JSON pointer (RFC 6901).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer {
    /// As it was written: there is one way to write a pointer.
    text: String,
    tokens: Vec<Token>,
}

/// One step of a pointer: a member name, or an index where it reads as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Token {
    pub name: String,
    pub index: Option<usize>,
}

/// A key or a scope part that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Bytes(&'a [u8]),
    Json(Scalar<'a>),
}

impl<'a> Value<'a> {
    /// The bytes that the producer wrote, without the quotes and escapes of a JSON string.
    pub fn as_sent(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Json(Scalar::String(text) | Scalar::Number(text) | Scalar::Boolean(text)) => text,
        }
    }
}

impl KeySource {
    /// The key of a record. Finds nothing for a fingerprint, which is not a value of the record.
    pub(super) fn find<'a>(
        &self,
        record: &'a Record,
        payload: &'a mut Payload<'_, '_>,
    ) -> Option<Value<'a>> {
        let value = match self {
            Self::Header(name) => header(record, name),
            Self::Json(pointer) => payload.scalar(pointer),
            Self::RecordKey => record.key().map(Value::Bytes),
            Self::Fingerprint => None,
        };
        value.filter(|value| !value.as_sent().is_empty())
    }

    /// Keeps equal bytes of different kinds of source apart.
    pub(super) fn tag(&self) -> u8 {
        match self {
            Self::Header(_) => 1,
            Self::Json(_) => 2,
            Self::RecordKey => 3,
            Self::Fingerprint => 4,
        }
    }
}

impl ScopePart {
    pub(super) fn find<'a>(
        &'a self,
        record: &'a Record,
        payload: &'a mut Payload<'_, '_>,
    ) -> Option<Value<'a>> {
        match self {
            Self::Header(name) => header(record, name),
            Self::Json(pointer) => payload.scalar(pointer),
            Self::RecordKey => record.key().map(Value::Bytes),
            Self::Topic => Some(Value::Bytes(record.partition.topic.as_bytes())),
            Self::Text(text) => Some(Value::Bytes(text.as_bytes())),
        }
    }
}

fn header<'a>(record: &'a Record, name: &str) -> Option<Value<'a>> {
    record.header(name.as_bytes()).flatten().map(Value::Bytes)
}

/// The payload of one record: parsed at most once, and only when something asks.
#[derive(Debug)]
pub(super) struct Payload<'a, 'd> {
    bytes: Option<&'a [u8]>,
    document: &'d mut Document,
    parsed: Option<bool>,
}

impl<'a, 'd> Payload<'a, 'd> {
    pub fn new(bytes: Option<&'a [u8]>, document: &'d mut Document) -> Self {
        Self { bytes, document, parsed: None }
    }

    pub fn bytes(&self) -> Option<&'a [u8]> {
        self.bytes
    }

    /// `None`: the payload is null or not JSON.
    pub fn document(&mut self) -> Option<&mut Document> {
        let bytes = self.bytes?;
        let document = &mut *self.document;
        self.parsed.get_or_insert_with(|| document.parse(bytes).is_ok()).then_some(document)
    }

    fn scalar(&mut self, pointer: &Pointer) -> Option<Value<'_>> {
        let bytes = self.bytes?;
        self.document()?.scalar(bytes, pointer).map(Value::Json)
    }
}

impl Pointer {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PointerError {
    #[error(
        "the JSON pointer {text:?} does not start with '/' \
         (write \"/{text}\", or \"\" for the whole document)"
    )]
    NoSlash { text: String },
    #[error(
        "the JSON pointer {text:?} has a '~' without 0 or 1 after it \
         (write ~0 for '~' and ~1 for '/')"
    )]
    Escape { text: String },
}

impl FromStr for Pointer {
    type Err = PointerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut tokens = text.split('/');
        if tokens.next() != Some("") {
            return Err(PointerError::NoSlash { text: text.into() });
        }
        let escape = || PointerError::Escape { text: text.into() };
        let tokens = tokens.map(|token| Token::parse(token).ok_or_else(escape));
        Ok(Self { text: text.into(), tokens: tokens.collect::<Result<_, _>>()? })
    }
}

impl Token {
    fn parse(text: &str) -> Option<Self> {
        let mut runs = text.split('~');
        let mut name = runs.next()?.to_owned();
        for run in runs {
            let (unescaped, rest) = match run.split_at_checked(1)? {
                ("0", rest) => ('~', rest),
                ("1", rest) => ('/', rest),
                _ => return None,
            };
            name.push(unescaped);
            name.push_str(rest);
        }
        let index = index(&name);
        Some(Self { name, index })
    }
}

/// Digits without a leading zero; what an array has no place for is no index.
fn index(name: &str) -> Option<usize> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = name.len() > 1 && name.starts_with('0');
    (digits && !leading_zero).then(|| name.parse().ok()).flatten()
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    #[error(
        "unknown identity key {text:?} \
         (known forms: header:NAME, json:/POINTER, record-key, fingerprint)"
    )]
    UnknownKey { text: String },
    #[error(
        "unknown scope part {text:?} \
         (known forms: header:NAME, json:/POINTER, record-key, topic, text:TEXT)"
    )]
    UnknownScope { text: String },
    #[error("{text:?} names no header (write header:NAME)")]
    NoHeaderName { text: String },
    #[error(transparent)]
    Pointer(#[from] PointerError),
}

impl FromStr for KeySource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("header", name)) => header_name(text, name).map(Self::Header),
            Some(("json", pointer)) => Ok(Self::Json(pointer.parse()?)),
            None if text == "record-key" => Ok(Self::RecordKey),
            None if text == "fingerprint" => Ok(Self::Fingerprint),
            _ => Err(SourceError::UnknownKey { text: text.into() }),
        }
    }
}

impl FromStr for ScopePart {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("header", name)) => header_name(text, name).map(Self::Header),
            Some(("json", pointer)) => Ok(Self::Json(pointer.parse()?)),
            Some(("text", text)) => Ok(Self::Text(text.into())),
            None if text == "record-key" => Ok(Self::RecordKey),
            None if text == "topic" => Ok(Self::Topic),
            _ => Err(SourceError::UnknownScope { text: text.into() }),
        }
    }
}

fn header_name(text: &str, name: &str) -> Result<String, SourceError> {
    if name.is_empty() {
        return Err(SourceError::NoHeaderName { text: text.into() });
    }
    Ok(name.into())
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::RecordKey => f.write_str("record-key"),
            Self::Fingerprint => f.write_str("fingerprint"),
        }
    }
}

impl fmt::Display for ScopePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::RecordKey => f.write_str("record-key"),
            Self::Topic => f.write_str("topic"),
            Self::Text(text) => write!(f, "text:{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn comes_back<T: FromStr + fmt::Display>(text: &str)
    where
        T::Err: fmt::Debug,
    {
        assert_eq!(text.parse::<T>().unwrap().to_string(), text);
    }

    #[test]
    fn sources_come_back_as_they_are_spelled() {
        for text in ["header:Idempotency-Key", "header:a:b", "json:/a~1b/~0/0", "json:", "json:/"] {
            comes_back::<KeySource>(text);
            comes_back::<ScopePart>(text);
        }
        comes_back::<KeySource>("record-key");
        comes_back::<KeySource>("fingerprint");
        for text in ["record-key", "topic", "text:POST /payments", "text:", "text:json:/a"] {
            comes_back::<ScopePart>(text);
        }
    }

    #[test]
    fn an_error_names_the_text_and_the_way_out() {
        let key = |text: &str| text.parse::<KeySource>().unwrap_err().to_string();
        assert_eq!(
            key("Header:x"),
            "unknown identity key \"Header:x\" \
             (known forms: header:NAME, json:/POINTER, record-key, fingerprint)"
        );
        assert_eq!(key("record-key:x"), key("Header:x").replace("Header:x", "record-key:x"));
        assert_eq!(key("header:"), "\"header:\" names no header (write header:NAME)");
        assert_eq!(
            key("json:a/b"),
            "the JSON pointer \"a/b\" does not start with '/' \
             (write \"/a/b\", or \"\" for the whole document)"
        );
        let scope = "topics".parse::<ScopePart>().unwrap_err();
        assert_eq!(
            scope.to_string(),
            "unknown scope part \"topics\" \
             (known forms: header:NAME, json:/POINTER, record-key, topic, text:TEXT)"
        );
    }

    #[test]
    fn a_pointer_unescapes_its_names() {
        let pointer: Pointer = "/~01/a~1b//é".parse().unwrap();
        let names: Vec<_> = pointer.tokens().iter().map(|token| token.name.as_str()).collect();
        assert_eq!(names, ["~1", "a/b", "", "é"]);
        assert_eq!("".parse(), Ok(Pointer::default()));
    }

    #[test]
    fn a_bad_escape_in_a_pointer_is_an_error() {
        for text in ["/~", "/a~2", "/~é", "/~~0", "/a/~/b"] {
            assert_eq!(text.parse::<Pointer>(), Err(PointerError::Escape { text: text.into() }));
        }
    }

    #[test]
    fn an_index_is_digits_without_a_leading_zero() {
        assert_eq!(["0", "10", "907"].map(index), [Some(0), Some(10), Some(907)]);
        for name in ["", "00", "01", "-", "-1", "+1", "1a", "٣", "99999999999999999999"] {
            assert_eq!(index(name), None, "{name}");
        }
    }
}
