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

