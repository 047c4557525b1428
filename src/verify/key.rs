//! Which records are the same logical message, derived anew from the configuration.
//!
//! This is what an identity says, without the code that makes identities: the verifier has its
//! own keys, and checks that they and the identities of the outputs belong together one to one.
//!
//! Never: shares a line with `identity` but the configuration.

use serde_json::Value;

use super::canonical::{self, Parts, Path};
use super::message::Message;
use crate::identity::{self, Canonical, KeySource, ScopePart};

/// 128 bits that name the logical message, for the verifier alone.
pub type Key = [u8; 16];

/// What a record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derived {
    /// `None`: no key source is present.
    pub key: Option<Key>,
    /// 32 bits over the payload in its canonical form.
    pub check: u32,
}

/// Derives keys for the records of one route.
#[derive(Clone, Debug)]
pub struct Keys {
    sources: Vec<Found>,
    scope: Vec<Found>,
    json: bool,
    parts: Parts,
    payload_in_key: bool,
}

/// Where a value is found.
#[derive(Clone, Debug)]
enum Found {
    Header(Vec<u8>),
    Json(String),
    RecordKey,
    Topic,
    Text(String),
    Fingerprint,
}

/// Bytes, or a JSON scalar: each kind is apart from the others.
enum Part {
    Bytes(Vec<u8>),
    Text(Vec<u8>),
    Number(Vec<u8>),
    Boolean(bool),
}

/// The payload, in the form in which it is compared.
enum Form<'a> {
    Null,
    Bytes(&'a [u8]),
    Json(Vec<u8>),
    NotJson(&'a [u8]),
}

impl Keys {
    pub fn new(config: &identity::Config) -> Self {
        let source = |source: &KeySource| match source {
            KeySource::Header(name) => Found::Header(name.clone().into_bytes()),
            KeySource::Json(pointer) => Found::Json(pointer.to_string()),
            KeySource::RecordKey => Found::RecordKey,
            KeySource::Fingerprint => Found::Fingerprint,
        };
        let scope = |part: &ScopePart| match part {
            ScopePart::Header(name) => Found::Header(name.clone().into_bytes()),
            ScopePart::Json(pointer) => Found::Json(pointer.to_string()),
            ScopePart::RecordKey => Found::RecordKey,
            ScopePart::Topic => Found::Topic,
            ScopePart::Text(text) => Found::Text(text.clone()),
        };
        let paths = |pointers: &[identity::Pointer]| {
            pointers.iter().map(|pointer| Path::new(&pointer.to_string())).collect()
        };
        Self {
            sources: config.keys.iter().map(source).collect(),
            scope: config.scope.iter().map(scope).collect(),
            json: config.fingerprint.canonical == Canonical::Json,
            parts: Parts {
                include: paths(&config.fingerprint.include),
                exclude: paths(&config.fingerprint.exclude),
            },
            payload_in_key: config.payload_in_identity,
        }
    }

    pub fn derive(&self, topic: &str, message: &Message<'_>) -> Derived {
        let needs_document = self.json || self.pointers();
        let document = message.payload.filter(|_| needs_document).and_then(canonical::parse);
        let form = self.form(message.payload, document.as_ref());
        let check = form.hash();
        let find = |found: &Found| find(found, topic, message, document.as_ref());

        let mut text = Vec::with_capacity(64);
        for part in &self.scope {
            write(find(part).as_ref(), &mut text);
        }
        let mut key = None;
        for source in &self.sources {
            let kind = match source {
                Found::Header(_) => b'h',
                Found::Json(_) => b'j',
                Found::Fingerprint => b'f',
                _ => b'k',
            };
            if matches!(source, Found::Fingerprint) {
                text.push(kind);
                write(message.key.map(|key| Part::Bytes(key.to_vec())).as_ref(), &mut text);
                text.push(form.kind());
                text.extend(form.bytes());
                key = Some(());
                break;
            }
            if let Some(value) = find(source).filter(|value| !value.is_empty()) {
                text.push(kind);
                write(Some(&value), &mut text);
                key = Some(());
                break;
            }
        }
        if self.payload_in_key {
            text.extend(check.as_bytes());
        }
        let bytes = check.as_bytes();
        Derived {
            key: key.map(|()| first(blake3::hash(&text).as_bytes())),
            check: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    /// The key as the client sent it, for people; `None`: it has none, or none that can be shown.
    pub fn shown(&self, topic: &str, message: &Message<'_>) -> Option<String> {
        const CHARS_MAX: usize = 80;
        let document = message.payload.filter(|_| self.pointers()).and_then(canonical::parse);
        let value = self.sources.iter().find_map(|source| {
            let found = match source {
                Found::Fingerprint => &Found::RecordKey,
                source => source,
            };
            match (found, document.as_ref()) {
                (Found::Json(pointer), Some(document)) => {
                    let value = document.pointer(pointer)?;
                    scalar(value).filter(|part| !part.is_empty())?;
                    let text = value.as_str().map(str::to_owned);
                    Some(text.unwrap_or_else(|| value.to_string()))
                }
                _ => match find(found, topic, message, None)? {
                    Part::Bytes(bytes) if !bytes.is_empty() => {
                        Some(String::from_utf8_lossy(&bytes).into_owned())
                    }
                    _ => None,
                },
            }
        })?;
        let clean = value.chars().map(|char| if char.is_control() { '?' } else { char });
        Some(clean.take(CHARS_MAX).collect())
    }

    fn pointers(&self) -> bool {
        self.sources.iter().chain(&self.scope).any(|found| matches!(found, Found::Json(_)))
    }

    fn form<'a>(&self, payload: Option<&'a [u8]>, document: Option<&Value>) -> Form<'a> {
        match (payload, document) {
            (None, _) => Form::Null,
            (Some(bytes), _) if !self.json => Form::Bytes(bytes),
            (Some(bytes), None) => Form::NotJson(bytes),
            (Some(_), Some(document)) => {
                let mut out = Vec::new();
                canonical::write(document, &self.parts, &mut out);
                Form::Json(out)
            }
        }
    }
}

impl Form<'_> {
    fn kind(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bytes(_) => 1,
            Self::Json(_) => 2,
            Self::NotJson(_) => 3,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Null => &[],
            Self::Bytes(bytes) | Self::NotJson(bytes) => bytes,
            Self::Json(text) => text,
        }
    }

    fn hash(&self) -> blake3::Hash {
        blake3::Hasher::new().update(&[self.kind()]).update(self.bytes()).finalize()
    }
}

impl Part {
    fn is_empty(&self) -> bool {
        match self {
            Self::Bytes(bytes) | Self::Text(bytes) | Self::Number(bytes) => bytes.is_empty(),
            Self::Boolean(_) => false,
        }
    }
}

fn find(
    found: &Found,
    topic: &str,
    message: &Message<'_>,
    document: Option<&Value>,
) -> Option<Part> {
    let bytes = |bytes: &[u8]| Part::Bytes(bytes.to_vec());
    match found {
        Found::Header(name) => message.header(name).map(bytes),
        Found::RecordKey => message.key.map(bytes),
        Found::Topic => Some(bytes(topic.as_bytes())),
        Found::Text(text) => Some(bytes(text.as_bytes())),
        Found::Json(pointer) => scalar(document?.pointer(pointer)?),
        Found::Fingerprint => None,
    }
}

fn scalar(value: &Value) -> Option<Part> {
    match value {
        Value::String(text) => Some(Part::Text(text.clone().into_bytes())),
        Value::Bool(yes) => Some(Part::Boolean(*yes)),
        Value::Number(number) => {
            let mut out = Vec::new();
            canonical::write_number(number, &mut out);
            Some(Part::Number(out))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Each part says where it ends, so that no two lists of parts read the same.
fn write(part: Option<&Part>, out: &mut Vec<u8>) {
    let (kind, bytes): (u8, &[u8]) = match part {
        None => (b'-', &[]),
        Some(Part::Bytes(bytes)) => (b'b', bytes),
        Some(Part::Text(bytes)) => (b's', bytes),
        Some(Part::Number(bytes)) => (b'n', bytes),
        Some(Part::Boolean(true)) => (b't', &[]),
        Some(Part::Boolean(false)) => (b'f', &[]),
    };
    out.push(kind);
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn first(hash: &[u8; 32]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&hash[..16]);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{Config, Fingerprint, Identifier};
    use crate::record::{Offset, Partition, Record, RecordBuilder};

    fn config(keys: &[&str], scope: &[&str], fingerprint: Fingerprint) -> Config {
        Config {
            keys: keys.iter().map(|key| key.parse().unwrap()).collect(),
            scope: scope.iter().map(|part| part.parse().unwrap()).collect(),
            fingerprint,
            ..Config::default()
        }
    }

    fn record(message: &Message<'_>) -> Record {
        let headers = message.headers.iter().copied();
        let partition = Partition::new("t", 0);
        let (key, payload) = (message.key, message.payload);
        RecordBuilder::default().build(partition, Offset(0), None, key, payload, headers)
    }

    /// Both sides agree which of two records are the same, and which payloads.
    fn agree(config: &Config, a: &Message<'_>, b: &Message<'_>) -> Result<(), TestCaseError> {
        let mut identifier = Identifier::new(config.clone());
        let (x, y) = (identifier.identify(&record(a)), identifier.identify(&record(b)));
        let keys = Keys::new(config);
        let (p, q) = (keys.derive("t", a), keys.derive("t", b));
        prop_assert_eq!(p.key.is_some(), x.identity.is_some());
        prop_assert_eq!(p.key == q.key, x.identity == y.identity, "{:?} {:?}", a, b);
        prop_assert_eq!(p.check == q.check, x.check == y.check, "{:?} {:?}", a, b);
        Ok(())
    }

    fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
        let texts = prop::sample::select(vec!["", "1", "1.0", "a", "true", "\u{e9}"]);
        prop::option::of(prop_oneof![
            texts.prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..3),
        ])
    }

    fn payload() -> impl Strategy<Value = Option<Vec<u8>>> {
        let scalar = prop::sample::select(vec![
            "1",
            "1.0",
            "10e-1",
            "-0",
            "0",
            "\"1\"",
            "\"\"",
            "\"a\"",
            "\"\\u0061\"",
            "true",
            "null",
            "[]",
            "{}",
            "1e400",
            "12345678901234567890123",
            "\"\\ud83d\\ude00\"",
        ]);
        let object = (scalar.clone(), scalar.clone(), any::<bool>()).prop_map(|(a, b, swap)| {
            let (a, b) = (format!("\"id\":{a}"), format!("\"at\" : {b}"));
            let members = if swap { [b, a] } else { [a, b] };
            format!("{{{}}}", members.join(" , "))
        });
        let list = (scalar.clone(), scalar).prop_map(|(a, b)| format!("{{\"id\":[{a},{b}]}}"));
        let json = prop_oneof![object, list].prop_map(String::into_bytes);
        prop_oneof![3 => json.prop_map(Some), 1 => bytes()]
    }

    #[derive(Clone, Debug)]
    struct Owned {
        key: Option<Vec<u8>>,
        payload: Option<Vec<u8>>,
        headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    }

    impl Owned {
        fn message(&self) -> Message<'_> {
            let headers = self.headers.iter().map(|(name, value)| (&name[..], value.as_deref()));
            Message {
                key: self.key.as_deref(),
                payload: self.payload.as_deref(),
                headers: headers.collect(),
                ..Message::default()
            }
        }
    }

    fn message() -> impl Strategy<Value = Owned> {
        let name = prop::sample::select(vec![&b"h"[..], b"u", b"\xff"]);
        let header = (name.prop_map(<[u8]>::to_vec), bytes());
        (bytes(), payload(), prop::collection::vec(header, 0..3))
            .prop_map(|(key, payload, headers)| Owned { key, payload, headers })
    }

    fn configs() -> Vec<Config> {
        let pointers =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let parts = |include: &[&str], exclude: &[&str]| Fingerprint {
            include: pointers(include),
            exclude: pointers(exclude),
            ..Fingerprint::default()
        };
        let bytes = Fingerprint { canonical: Canonical::Bytes, ..Fingerprint::default() };
        let mut configs = vec![
            config(&["header:h"], &[], Fingerprint::default()),
            config(&["header:h", "json:/id", "record-key"], &[], Fingerprint::default()),
            config(&["json:/id/1", "json:/id"], &["topic", "text:x"], bytes.clone()),
            config(&["fingerprint"], &["header:u", "json:/at"], Fingerprint::default()),
            config(&["fingerprint"], &["record-key"], bytes),
            config(&["fingerprint"], &[], parts(&[], &["/at", "/id/0"])),
            config(&["fingerprint"], &[], parts(&["/id", "/at"], &["/id/1"])),
            config(&["header:h", "fingerprint"], &[], parts(&["/id/0"], &["/id"])),
            config(&["fingerprint"], &[], parts(&[], &[""])),
        ];
        configs.push(Config { payload_in_identity: true, ..configs[1].clone() });
        configs
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

        #[test]
        fn keys_and_identities_agree_on_what_is_the_same(a in message(), b in message()) {
            for config in configs() {
                agree(&config, &a.message(), &b.message())?;
            }
        }
    }

    #[test]
    fn a_key_is_shown_as_the_client_sent_it() {
        let keys = Keys::new(&config(
            &["header:h", "json:/id", "record-key"],
            &[],
            Fingerprint::default(),
        ));
        let shown = |message: Message<'_>| keys.shown("t", &message);
        let header = Message { headers: vec![(b"h", Some(b"a\x1b\xff"))], ..Message::default() };
        assert_eq!(shown(header).as_deref(), Some("a?\u{fffd}"));
        let json = Message { payload: Some(b"{\"id\":1.50}"), ..Message::default() };
        assert_eq!(shown(json).as_deref(), Some("1.50"));
        let record_key = Message { key: Some(b"k"), ..Message::default() };
        assert_eq!(shown(record_key).as_deref(), Some("k"));
        assert_eq!(shown(Message::default()), None);
    }
}
