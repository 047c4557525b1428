//! The identity of a message: which records are the same logical message.
//!
//! Owns: [`Identity`], [`Check`], the [`Config`] that says where they come from, and the
//! [`Identifier`] that derives both from a record in one pass over its payload.
//! Never: does I/O, reads a clock, or depends on a secret, a group, a cluster or a partition: a
//! mirror of the topic or a renamed group derives the same.
//!
//! ```text
//! record --> extract    keys and scope parts of header, record key and JSON payload
//!        --> canonical  the payload in one spelling
//!        --> digest     the bytes that are hashed: identity (128 bits), check (32 bits)
//! ```

mod canonical;
mod digest;
mod extract;

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

pub use self::extract::{KeySource, Pointer, PointerError, ScopePart, SourceError};

use self::canonical::Document;
use self::digest::{Form, Preimage};
use self::extract::Payload;
use crate::fault::{self, Bug};
use crate::record::Record;

/// 128 bits that name the logical message. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub [u8; 16]);

/// 32 bits over the payload in the route's canonical form: tells "same key, other payload" from
/// a duplicate. Shown as 8 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Check(pub u32);

/// All that shapes an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The first that is present wins.
    pub keys: Vec<KeySource>,
    /// What a key is unique within. Order matters; a missing part differs from an empty one.
    pub scope: Vec<ScopePart>,
    pub fingerprint: Fingerprint,
    pub digest: Digest,
    /// Another payload under the same key is another message: the check goes into the identity.
    pub payload_in_identity: bool,
}

/// The form in which a payload is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub canonical: Canonical,
    /// Only these parts of a JSON payload count; empty: all. Payloads that have none of them are
    /// alike. Without effect on [`Canonical::Bytes`] and on payloads that are not JSON.
    pub include: Vec<Pointer>,
    /// These parts of a JSON payload do not count, also where `include` names them.
    pub exclude: Vec<Pointer>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Canonical {
    /// One spelling for all payloads that mean the same JSON. What is not JSON stays as it is.
    #[default]
    Json,
    /// The payload as it is.
    Bytes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digest {
    #[default]
    Blake3,
    /// Faster for large payloads and not collision resistant: a producer can construct two
    /// messages of one identity, and the second is suppressed.
    Xxh3,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: vec![KeySource::Header("Idempotency-Key".into())],
            scope: Vec::new(),
            fingerprint: Fingerprint::default(),
            digest: Digest::default(),
            payload_in_identity: false,
        }
    }
}

impl Config {
    /// Names this definition of an identity. It is stamped into commits, so that a changed
    /// definition is noticed while entries of the old one still protect.
    #[must_use]
    pub fn definition(&self) -> u64 {
        let mut text = vec![
            digest::VERSION,
            self.fingerprint.canonical as u8,
            self.digest as u8,
            u8::from(self.payload_in_identity),
        ];
        list(&mut text, &self.keys);
        list(&mut text, &self.scope);
        list(&mut text, &as_set(&self.fingerprint.include));
        list(&mut text, &as_set(&self.fingerprint.exclude));
        xxh3_64(&text)
    }
}

fn list(text: &mut Vec<u8>, items: &[impl fmt::Display]) {
    text.extend((items.len() as u64).to_le_bytes());
    for item in items {
        let item = item.to_string();
        text.extend((item.len() as u64).to_le_bytes());
        text.extend(item.as_bytes());
    }
}

/// Pointers without the order and the repetitions of the file, which mean nothing.
fn as_set(pointers: &[Pointer]) -> Vec<Pointer> {
    let mut pointers = pointers.to_vec();
    pointers.sort();
    pointers.dedup();
    pointers
}

/// Derives identities. One per worker and route: it keeps its buffers, so that a record of
/// ordinary size allocates nothing.
#[derive(Debug)]
pub struct Identifier {
    config: Config,
    document: Document,
    text: Vec<u8>,
    preimage: Preimage,
}

/// What [`Identifier::identify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identified {
    /// `None`: no key source is present.
    pub identity: Option<Identity>,
    pub check: Check,
    /// Index into [`Config::keys`] of the source that won.
    pub source: Option<usize>,
    /// Number of scope parts that are missing.
    pub scope_missing: u32,
    /// The payload was to be JSON and is not, or not within the bounds of what is made canonical,
    /// so that its bytes were used. A null payload is not meant.
    pub undecodable: bool,
}

/// What one large record made the buffers grow to is given back beyond this. 256 KiB.
const SCRATCH_KEPT_BYTES: usize = 256 * 1024;

impl Identifier {
    #[must_use]
    pub fn new(mut config: Config) -> Self {
        config.fingerprint.include = as_set(&config.fingerprint.include);
        config.fingerprint.exclude = as_set(&config.fingerprint.exclude);
        Self {
            config,
            document: Document::default(),
            text: Vec::new(),
            preimage: Preimage::default(),
        }
    }

    /// Identity and check of a record. Never fails: foreign bytes have an identity too.
    pub fn identify(&mut self, record: &Record) -> Identified {
        let Self { config, document, text, preimage } = self;
        let mut payload = Payload::new(record.payload(), document);
        let form = config.fingerprint.form(&mut payload, text);
        let check = form.check();
        let scope_missing = write_scope(preimage, &config.scope, record, &mut payload);
        let source = write_key(preimage, &config.keys, record, &mut payload, &form);
        if config.payload_in_identity {
            preimage.check(check);
        }
        let identified = Identified {
            identity: source.map(|_| preimage.identity(config.digest)),
            check,
            source,
            scope_missing,
            undecodable: matches!(form, Form::NotJson(_)),
        };
        self.give_back_scratch();
        self.weakened(record, identified)
    }

    /// For the proof alone: the mistake that [`Bug::WeakIdentity`] names, where it is built in.
    fn weakened(&self, record: &Record, mut identified: Identified) -> Identified {
        if fault::bug(Bug::WeakIdentity)
            && let (Some(identity), Some(key)) = (&mut identified.identity, self.client_key(record))
        {
            let mut weak = [0; 16];
            weak[..4].copy_from_slice(&(key.len() as u32).to_be_bytes());
            weak[4..].iter_mut().zip(key.iter().take(4)).for_each(|(to, byte)| *to = *byte);
            *identity = Identity(weak);
        }
        identified
    }

    /// The key as the client sent it: the bytes of a header or record key, a JSON string without
    /// quotes and escapes, a JSON number or boolean as it is spelled. `None`: no key, or a
    /// fingerprint, which no client sent.
    #[must_use]
    pub fn client_key(&self, record: &Record) -> Option<Vec<u8>> {
        let mut document = Document::default();
        let mut payload = Payload::new(record.payload(), &mut document);
        for source in &self.config.keys {
            if *source == KeySource::Fingerprint {
                return None;
            }
            if let Some(value) = source.find(record, &mut payload) {
                return Some(value.as_sent().to_vec());
            }
        }
        None
    }

    fn give_back_scratch(&mut self) {
        self.document.shrink(SCRATCH_KEPT_BYTES);
        self.preimage.shrink(SCRATCH_KEPT_BYTES);
        if self.text.capacity() > SCRATCH_KEPT_BYTES {
            self.text = Vec::new();
        }
    }
}

impl Fingerprint {
    /// The payload in the form in which it is compared; `text` holds it where it is not the
    /// payload itself.
    fn form<'a>(&self, payload: &mut Payload<'a, '_>, text: &'a mut Vec<u8>) -> Form<'a> {
        let Some(bytes) = payload.bytes() else { return Form::Null };
        if self.canonical == Canonical::Bytes {
            return Form::Bytes(bytes);
        }
        let Some(document) = payload.document() else { return Form::NotJson(bytes) };
        text.clear();
        document.write_canonical(bytes, &self.include, &self.exclude, text);
        Form::Json(text)
    }
}

fn write_scope(
    preimage: &mut Preimage,
    scope: &[ScopePart],
    record: &Record,
    payload: &mut Payload<'_, '_>,
) -> u32 {
    let mut missing = 0;
    preimage.start(scope.len());
    for part in scope {
        let value = part.find(record, payload);
        missing += u32::from(value.is_none());
        preimage.part(value);
    }
    missing
}

fn write_key(
    preimage: &mut Preimage,
    keys: &[KeySource],
    record: &Record,
    payload: &mut Payload<'_, '_>,
    form: &Form<'_>,
) -> Option<usize> {
    keys.iter().position(|source| {
        if *source == KeySource::Fingerprint {
            preimage.fingerprint(source.tag(), record.key(), form);
            return true;
        }
        let value = source.find(record, payload);
        let present = value.is_some();
        if present {
            preimage.key(source.tag(), value);
        }
        present
    })
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an identity (32 hexadecimal digits)")]
pub struct IdentityError {
    pub text: String,
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The integer parser also takes a sign.
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u128::from_str_radix(text, 16).ok())
            .flatten()
            .map(|bits| Self(bits.to_be_bytes()))
            .ok_or_else(|| IdentityError { text: text.into() })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Offset, Partition, RecordBuilder, Timestamp};

    type Headers<'a> = &'a [(&'a str, Option<&'a str>)];

    fn record(key: Option<&str>, payload: Option<&str>, headers: Headers<'_>) -> Record {
        let headers =
            headers.iter().map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes)));
        RecordBuilder::default().build(
            Partition::new("payments", 3),
            Offset(42),
            None,
            key.map(str::as_bytes),
            payload.map(str::as_bytes),
            headers,
        )
    }

    fn config(keys: &[&str], scope: &[&str]) -> Config {
        Config {
            keys: keys.iter().map(|key| key.parse().unwrap()).collect(),
            scope: scope.iter().map(|part| part.parse().unwrap()).collect(),
            ..Config::default()
        }
    }

    fn bytes(config: Config) -> Config {
        Config {
            fingerprint: Fingerprint { canonical: Canonical::Bytes, ..Fingerprint::default() },
            ..config
        }
    }

    fn identify(config: Config, record: &Record) -> Identified {
        Identifier::new(config).identify(record)
    }

    fn payload(payload: &str) -> Record {
        record(None, Some(payload), &[])
    }

    #[test]
    fn the_first_source_that_is_present_wins() {
        let config = config(&["header:id", "json:/id", "record-key", "fingerprint"], &[]);
        let source = |record: Record| identify(config.clone(), &record).source;
        let id = r#"{"id":"x"}"#;
        assert_eq!(source(record(Some("k"), Some(id), &[("id", Some("x"))])), Some(0));
        assert_eq!(source(record(Some("k"), Some(id), &[("ID", Some("x"))])), Some(1));
        assert_eq!(source(record(Some("k"), Some(id), &[("id", None)])), Some(1));
        assert_eq!(source(record(Some("k"), Some(id), &[("id", Some(""))])), Some(1));
        assert_eq!(source(record(Some("k"), Some("{}"), &[])), Some(2));
        assert_eq!(source(record(Some("k"), None, &[])), Some(2));
        assert_eq!(source(record(Some(""), Some("not JSON"), &[])), Some(3));
        assert_eq!(source(record(None, None, &[])), Some(3));
    }

    #[test]
    fn the_last_header_of_a_name_wins() {
        let one =
            record(None, None, &[("Idempotency-Key", Some("1")), ("Idempotency-Key", Some("2"))]);
        let two = record(None, None, &[("Idempotency-Key", Some("2"))]);
        let empty =
            record(None, None, &[("Idempotency-Key", Some("1")), ("Idempotency-Key", None)]);
        assert_eq!(identify(Config::default(), &one), identify(Config::default(), &two));
        assert_eq!(identify(Config::default(), &empty).identity, None);
    }

    #[test]
    fn only_a_scalar_that_is_not_empty_is_a_json_key() {
        let source = |text| identify(config(&["json:/id"], &[]), &payload(text)).source;
        for present in [r#"{"id":"x"}"#, r#"{"id":0}"#, r#"{"id":false}"#, r#"{"id":" "}"#] {
            assert_eq!(source(present), Some(0), "{present}");
        }
        for missing in [
            "",
            "{}",
            r#"{"id":null}"#,
            r#"{"id":[]}"#,
            r#"{"id":{"a":1}}"#,
            r#"{"id":""}"#,
            r#"{"id":"x"} trailing"#,
        ] {
            assert_eq!(source(missing), None, "{missing}");
        }
    }

    #[test]
    fn without_a_key_there_is_a_check_and_no_identity() {
        let found = identify(config(&[], &["json:/tenant"]), &payload("{}"));
        assert_eq!((found.identity, found.source, found.scope_missing), (None, None, 1));
        assert_eq!(found.check, identify(config(&["fingerprint"], &[]), &payload("{ }")).check);
    }

    #[test]
    fn equal_keys_of_different_kinds_are_different_messages() {
        let record = record(Some("42"), Some(r#"{"s":"42","n":42}"#), &[("id", Some("42"))]);
        let mut all: Vec<_> = ["header:id", "json:/s", "json:/n", "record-key", "fingerprint"]
            .iter()
            .map(|key| identify(config(&[key], &[]), &record).identity)
            .collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn the_name_of_a_source_is_not_part_of_the_identity() {
        let record =
            record(None, Some(r#"{"a":"x","b":"\u0078"}"#), &[("a", Some("x")), ("b", Some("x"))]);
        let identity = |key| identify(config(&[key], &[]), &record).identity;
        assert_eq!(identity("header:a"), identity("header:b"));
        assert_eq!(identity("json:/a"), identity("json:/b"));
    }

    #[test]
    fn the_spelling_of_a_json_key_does_not_matter() {
        let identity = |text| identify(config(&["json:/id"], &[]), &payload(text)).identity;
        assert_eq!(identity(r#"{"id":42}"#), identity(r#"{"id":4.20e1}"#));
        assert_eq!(identity(r#"{"id":"a/b"}"#), identity(r#"{"id":"a\/b"}"#));
        assert_ne!(identity(r#"{"id":42}"#), identity(r#"{"id":"42"}"#));
        assert_ne!(identity(r#"{"id":true}"#), identity(r#"{"id":"true"}"#));
    }

    #[test]
    fn a_missing_scope_part_differs_from_an_empty_one_and_is_counted() {
        let config = config(&["record-key"], &["header:user", "json:/shop", "topic"]);
        let found = |text: &str, headers: Headers<'_>| {
            identify(config.clone(), &record(Some("k"), Some(text), headers))
        };
        let empty = found(r#"{"shop":""}"#, &[("user", Some(""))]);
        let half = found(r#"{"shop":null}"#, &[("user", Some(""))]);
        let missing = found("{}", &[("user", None)]);
        assert_eq!([empty, half, missing].map(|found| found.scope_missing), [0, 1, 2]);
        assert_ne!(empty.identity, half.identity);
        assert_ne!(half.identity, missing.identity);
    }

    #[test]
    fn scope_parts_do_not_run_into_each_other() {
        let config = config(&["record-key"], &["header:a", "header:b"]);
        let identity = |a, b| {
            let record = record(Some("k"), None, &[("a", Some(a)), ("b", Some(b))]);
            identify(config.clone(), &record).identity
        };
        assert_ne!(identity("x", "yz"), identity("xy", "z"));
        assert_ne!(identity("x", "y"), identity("y", "x"));
    }

    #[test]
    fn a_fingerprint_is_of_record_key_and_payload() {
        let found = |key, payload| {
            identify(config(&["fingerprint"], &[]), &record(key, payload, &[])).identity
        };
        assert_eq!(
            found(Some("k"), Some(r#"{"a":1,"b":2}"#)),
            found(Some("k"), Some(r#"{"b":2.0, "a":1}"#))
        );
        assert_ne!(found(Some("k"), Some("1")), found(Some("l"), Some("1")));
        assert_ne!(found(Some("k"), Some("1")), found(Some("k"), Some("2")));
        assert_ne!(found(None, Some("1")), found(Some(""), Some("1")));
        assert_ne!(found(None, Some("")), found(None, None));
    }

    #[test]
    fn what_is_excluded_changes_neither_fingerprint_nor_check() {
        let mut config = config(&["fingerprint"], &[]);
        config.fingerprint.exclude = vec!["/sent_at".parse().unwrap()];
        let found = |text| identify(config.clone(), &payload(text));
        assert_eq!(found(r#"{"a":1,"sent_at":1}"#), found(r#"{"sent_at":2,"a":1}"#));
        assert_ne!(found(r#"{"a":1,"sent_at":1}"#).check, found(r#"{"a":2,"sent_at":1}"#).check);
    }

    #[test]
    fn an_excluded_part_can_be_the_key() {
        let mut config = config(&["json:/id"], &[]);
        config.fingerprint.exclude = vec!["/id".parse().unwrap()];
        assert_eq!(identify(config, &payload(r#"{"id":7}"#)).source, Some(0));
    }

    #[test]
    fn what_is_not_json_counts_as_bytes_and_is_told() {
        let found = |text| identify(config(&["fingerprint"], &[]), &payload(text));
        let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
        for text in ["", "{", "\u{feff}{}", "nul", deep.as_str()] {
            assert!(found(text).undecodable, "{text}");
            assert!(!identify(bytes(config(&["fingerprint"], &[])), &payload(text)).undecodable);
        }
        assert!(!found("{}").undecodable);
        assert!(!identify(Config::default(), &record(None, None, &[])).undecodable);
        assert_ne!(found("{ ").check, found("{").check);
    }

    #[test]
    fn a_payload_in_the_identity_makes_another_payload_another_message() {
        let config = Config { payload_in_identity: true, ..config(&["record-key"], &[]) };
        let found = |text| identify(config.clone(), &record(Some("k"), Some(text), &[])).identity;
        assert_eq!(found(r#"{"a":1}"#), found(r#"{"a": 1.0}"#));
        assert_ne!(found(r#"{"a":1}"#), found(r#"{"a":2}"#));
    }

    #[test]
    fn neither_partition_nor_offset_nor_time_is_part_of_the_identity() {
        let one = record(Some("k"), Some("{}"), &[]);
        let mut other = one.clone();
        other.partition = Partition::new("payments-mirror", 9);
        other.offset = Offset(7);
        other.timestamp = Some(Timestamp(1));
        let config = config(&["record-key"], &["text:x"]);
        assert_eq!(identify(config.clone(), &one), identify(config, &other));
    }

    #[test]
    fn the_client_key_is_what_the_client_sent() {
        let client_key = |keys: &[&str], record: &Record| {
            Identifier::new(config(keys, &[]))
                .client_key(record)
                .map(|key| String::from_utf8(key).unwrap())
        };
        let record = record(Some("k"), Some(r#"{"s":"a\/b","n":4.20e1}"#), &[("id", Some("h"))]);
        let all = ["header:none", "header:id", "fingerprint"];
        assert_eq!(client_key(&all, &record).as_deref(), Some("h"));
        assert_eq!(client_key(&["json:/s"], &record).as_deref(), Some("a/b"));
        assert_eq!(client_key(&["json:/n"], &record).as_deref(), Some("4.20e1"));
        assert_eq!(client_key(&["record-key"], &record).as_deref(), Some("k"));
        assert_eq!(client_key(&["fingerprint", "record-key"], &record), None);
        assert_eq!(client_key(&["header:none"], &record), None);
    }

    #[test]
    fn a_large_record_does_not_keep_its_memory() {
        let mut identifier = Identifier::new(config(&["fingerprint"], &[]));
        let large = payload(&format!("[{}\"\\n\"]", "{\"a\":1},".repeat(200_000)));
        let small = payload("{}");
        let first = identifier.identify(&small);
        identifier.identify(&large);
        assert!(identifier.text.capacity() <= SCRATCH_KEPT_BYTES);
        assert_eq!(identifier.identify(&small), first);
    }

    #[test]
    fn every_setting_is_part_of_the_definition() {
        let base = || config(&["header:a", "record-key"], &["topic"]);
        let pointers = || vec!["/a".parse().unwrap()];
        let with = |fingerprint| Config { fingerprint, ..base() };
        let include = Fingerprint { include: pointers(), ..Fingerprint::default() };
        let exclude = Fingerprint { exclude: pointers(), ..Fingerprint::default() };
        let mut all: Vec<_> = [
            base(),
            config(&["record-key", "header:a"], &["topic"]),
            config(&["header:a"], &["record-key", "topic"]),
            config(&["header:a", "record-key"], &["text:topic"]),
            bytes(base()),
            with(include),
            with(exclude),
            Config { digest: Digest::Xxh3, ..base() },
            Config { payload_in_identity: true, ..base() },
        ]
        .iter()
        .map(Config::definition)
        .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn the_order_of_excluded_parts_means_nothing() {
        let config = |exclude: &[&str]| {
            let exclude = exclude.iter().map(|text| text.parse().unwrap()).collect();
            let fingerprint = Fingerprint { exclude, ..Fingerprint::default() };
            Config { fingerprint, ..Config::default() }
        };
        assert_eq!(config(&["/a", "/b"]).definition(), config(&["/b", "/a", "/b"]).definition());
    }

    #[test]
    fn an_identity_comes_back_from_its_digits() {
        let identity = Identity(*b"\x00\x01\xff...........!@");
        assert_eq!(identity.to_string().parse(), Ok(identity));
        assert_eq!(identity.to_string().to_uppercase().parse(), Ok(identity));
        assert_eq!(format!("{identity:?}"), "0001ff2e2e2e2e2e2e2e2e2e2e2e2140");
        for text in
            ["", "0001ff", "+001ff2e2e2e2e2e2e2e2e2e2e2e2140", "g001ff2e2e2e2e2e2e2e2e2e2e2e2140"]
        {
            let error = text.parse::<Identity>().unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} is not an identity (32 hexadecimal digits)"));
        }
    }

    /// Bytes that are on disk and in the commits of running daemons. If one of these fails, every
    /// message gets another identity and every window is void: change the code, not the vector,
    /// or raise `digest::VERSION`.
    #[test]
    fn golden_vectors() {
        let text = r#"{"id":"p-1","n":42.0,"ok":true,"sent_at":1700000000000,"to":"M\u00fcller"}"#;
        let full = record(
            Some("k-1"),
            Some(text),
            &[("Idempotency-Key", Some("h-1")), ("user", Some("u"))],
        );
        let golden = |config: Config, record: &Record, identity: &str, check: &str| {
            let found = identify(config.clone(), record);
            let found = (found.identity.unwrap().to_string(), found.check.to_string());
            assert_eq!(found, (identity.to_owned(), check.to_owned()), "{config:?}");
        };
        let xxh3 = |config| Config { digest: Digest::Xxh3, ..config };
        let with_payload = |config| Config { payload_in_identity: true, ..config };
        let selecting = |config| Config {
            fingerprint: Fingerprint {
                include: vec![
                    "/id".parse().unwrap(),
                    "/sent_at".parse().unwrap(),
                    "/to".parse().unwrap(),
                ],
                exclude: vec!["/sent_at".parse().unwrap()],
                ..Fingerprint::default()
            },
            ..config
        };
        let header = || Config::default();
        let print = || config(&["fingerprint"], &[]);
        let scope = &["header:user", "header:none", "json:/n", "topic", "text:POST /payments"];
        let null = record(None, None, &[]);
        let broken = payload("{");
        let numbers: Vec<_> = (0..2_000).map(|number: u32| number.to_string()).collect();
        let large = payload(&format!("[{}]", numbers.join(",")));

        golden(header(), &full, "15e7b3b23ef3d006e3c7fbfe8658ed14", "cfaa1e38");
        golden(xxh3(header()), &full, "a3963d4c4443bae4b8509de54bae8012", "cfaa1e38");
        golden(bytes(header()), &full, "15e7b3b23ef3d006e3c7fbfe8658ed14", "9e7570dd");
        golden(with_payload(header()), &full, "6a65c441fe9b03135fced75fcdeb2551", "cfaa1e38");
        golden(config(&["json:/id"], &[]), &full, "c992d1bf3d287bb5d075f4f00764f43b", "cfaa1e38");
        golden(config(&["json:/n"], &[]), &full, "24cfc05f0155c9c84001e284ac94e238", "cfaa1e38");
        golden(config(&["json:/ok"], &[]), &full, "71bb6aa7e8f27ef6a97838ed444b0178", "cfaa1e38");
        golden(config(&["record-key"], &[]), &full, "9fca081487760e0afdfd4b9a6188d562", "cfaa1e38");
        golden(
            config(&["record-key"], scope),
            &full,
            "cd60412fbec7a1ebcd13a7fce7323913",
            "cfaa1e38",
        );
        golden(print(), &full, "d0c9399114b7ae17b852a3aa18f55f7c", "cfaa1e38");
        golden(xxh3(print()), &full, "e193aa703808b962919ccdca1b04353e", "cfaa1e38");
        golden(bytes(print()), &full, "f3464e4065fd701fa55024a503788e8b", "9e7570dd");
        golden(selecting(print()), &full, "98621c8d2a4eb5fd67ac22f2b249c411", "4438c31f");
        golden(with_payload(print()), &full, "6b0cd850e14f325ac5ad5ee41cdb221a", "cfaa1e38");
        golden(print(), &null, "8b474dadc8a1e3633f342c92481fdc47", "2da6c9ad");
        golden(bytes(print()), &broken, "f405ab5f202fb20d3e7168c5a67fb1cd", "f5a5dd1e");
        golden(print(), &broken, "be7d23e8c5e7a3b9884e4a25bdf98614", "feafafb6");
        golden(print(), &large, "151c0fc80512f3c4126ef2b8adbe33b3", "56b5fbe8");
        golden(xxh3(print()), &large, "4d591aeaf4653e89dd500bc3d2ac3186", "56b5fbe8");
        golden(bytes(print()), &large, "6d1b5480074c9a1c6084832224c8e3bb", "2276a511");
    }

    /// Stamped into commits: see [`Config::definition`].
    #[test]
    fn golden_definitions() {
        let mut all =
            config(&["header:a", "json:/b", "record-key", "fingerprint"], &["topic", "text:x"]);
        all.fingerprint.exclude = vec!["/sent_at".parse().unwrap()];
        assert_eq!(Config::default().definition(), 0x4145_9ba3_0ea1_f795);
        assert_eq!(all.definition(), 0xa1ad_5e1b_5124_0844);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            key: Option<Vec<u8>>,
            payload: Option<Vec<u8>>,
            header: Option<Vec<u8>>,
        ) {
            let record = RecordBuilder::default().build(
                Partition::new("t", 0),
                Offset(0),
                None,
                key.as_deref(),
                payload.as_deref(),
                [(&b"a"[..], header.as_deref())].into_iter(),
            );
            let keys = ["header:a", "json:/0", "record-key", "fingerprint"];
            let config = config(&keys, &["header:a", "json:", "record-key"]);
            let mut identifier = Identifier::new(config);
            let first = identifier.identify(&record);
            prop_assert!(first.identity.is_some());
            prop_assert_eq!(identifier.identify(&record), first);
            prop_assert!(identifier.client_key(&record).is_none_or(|key| !key.is_empty()));
        }
    }
}
