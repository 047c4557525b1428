//! The bytes that are hashed, and the hashes.
//!
//! Owns: the layout below. A changed byte gives every message another identity: it means a new
//! [`VERSION`], which [`super::Config::definition`] covers, and new golden vectors.
//! Never: knows where a value came from beyond the kind of its source.
//!
//! ```text
//! identity  = first 128 bits of BLAKE3, or XXH3-128 (big endian), of
//!             version (1)  source (1)  number of scope parts (8)  part*  key  [check (4)]
//! source    = 1 header | 2 JSON | 3 record key | 4 fingerprint
//! part      = 0 (1)                            missing
//!           | type (1)  length (8)  bytes      1 bytes | 2 JSON string | 3 JSON number
//!                                              | 4 JSON boolean
//! key       = part
//!           | part (the record key)  form (1)  length (8)  bytes     fingerprint
//! form      = 0 null | 1 canonical JSON | 2 bytes | 3 bytes that were to be JSON and are not
//! check     = low 32 bits of XXH3-64 of the form, seeded by its kind
//! ```
//!
//! - Numbers are little endian.
//! - Of the source only the kind goes in. A key that moves to a header of another name keeps its
//!   identity; one that moves from a header to the payload does not.
//! - The JSON string "42" differs from the JSON number 42: a producer that changes from one to
//!   the other sends other messages.
//! - The check goes in where the payload is part of the identity.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use super::canonical::{Scalar, write_number};
use super::extract::Value;
use super::{Check, Digest, Identity};

pub(super) const VERSION: u8 = 1;

/// A payload in the form in which it is compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    Null,
    Json(&'a [u8]),
    Bytes(&'a [u8]),
    NotJson(&'a [u8]),
}

impl<'a> Form<'a> {
    /// The seed keeps null apart from empty, and bytes that are not JSON from canonical JSON that
    /// is spelled like them. That of bytes is 0: their check is what `xxhsum -H3` prints.
    pub fn check(&self) -> Check {
        let seed = match self {
            Self::Bytes(_) => 0,
            Self::Json(_) => 1,
            Self::NotJson(_) => 2,
            Self::Null => 3,
        };
        let [a, b, c, d, ..] = xxh3_64_with_seed(self.bytes(), seed).to_le_bytes();
        Check(u32::from_le_bytes([a, b, c, d]))
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Json(_) => 1,
            Self::Bytes(_) => 2,
            Self::NotJson(_) => 3,
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Null => &[],
            Self::Json(bytes) | Self::Bytes(bytes) | Self::NotJson(bytes) => bytes,
        }
    }
}

/// What an identity is the hash of. Written in the order of the layout: [`start`](Self::start),
/// a [`part`](Self::part) for each of the scope, then the key.
#[derive(Debug, Default)]
pub(super) struct Preimage {
    bytes: Vec<u8>,
}

const SOURCE_AT: usize = 1;
const SOURCE_UNKNOWN: u8 = 0;

impl Preimage {
    pub fn start(&mut self, scope_parts: usize) {
        self.bytes.clear();
        self.bytes.extend([VERSION, SOURCE_UNKNOWN]);
        self.len(scope_parts);
    }

    pub fn part(&mut self, value: Option<Value<'_>>) {
        match value {
            None => self.bytes.push(0),
            Some(Value::Bytes(bytes)) => self.tagged(1, bytes),
            Some(Value::Json(Scalar::String(text))) => self.tagged(2, text),
            Some(Value::Json(Scalar::Number(text))) => self.number(text),
            Some(Value::Json(Scalar::Boolean(text))) => self.tagged(4, text),
        }
    }

    pub fn key(&mut self, source: u8, value: Option<Value<'_>>) {
        self.source(source);
        self.part(value);
    }

    pub fn fingerprint(&mut self, source: u8, record_key: Option<&[u8]>, form: &Form<'_>) {
        self.source(source);
        self.part(record_key.map(Value::Bytes));
        self.tagged(form.tag(), form.bytes());
    }

    pub fn check(&mut self, check: Check) {
        self.bytes.extend(check.0.to_le_bytes());
    }

    pub fn identity(&self, digest: Digest) -> Identity {
        let bits = match digest {
            Digest::Blake3 => blake3::hash(&self.bytes).as_bytes().first_chunk().copied(),
            Digest::Xxh3 => Some(xxh3_128(&self.bytes).to_be_bytes()),
        };
        Identity(bits.expect("a BLAKE3 hash has 256 bits"))
    }

    pub fn shrink(&mut self, bytes_max: usize) {
        if self.bytes.capacity() > bytes_max {
            self.bytes = Vec::new();
        }
    }

    fn source(&mut self, tag: u8) {
        if let Some(source) = self.bytes.get_mut(SOURCE_AT) {
            *source = tag;
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.bytes.push(tag);
        self.len(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn number(&mut self, text: &[u8]) {
        self.bytes.push(3);
        let length_at = self.bytes.len();
        self.len(0);
        let text_at = self.bytes.len();
        write_number(text, &mut self.bytes);
        let length = (self.bytes.len() - text_at) as u64;
        if let Some(place) = self.bytes.get_mut(length_at..text_at) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn len(&mut self, len: usize) {
        self.bytes.extend_from_slice(&(len as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_as_drawn() {
        let mut preimage = Preimage::default();
        preimage.start(3);
        preimage.part(None);
        preimage.part(Some(Value::Bytes(b"")));
        preimage.part(Some(Value::Json(Scalar::Number(b"4.20"))));
        preimage.fingerprint(4, Some(b"k"), &Form::Json(b"{}"));
        preimage.check(Check(0x0102_0304));
        let expected = [
            &[1, 4, 3, 0, 0, 0, 0, 0, 0, 0][..],
            &[0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[3, 3, 0, 0, 0, 0, 0, 0, 0, b'4', b'.', b'2'],
            &[1, 1, 0, 0, 0, 0, 0, 0, 0, b'k'],
            &[1, 2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'],
            &[4, 3, 2, 1],
        ];
        assert_eq!(preimage.bytes, expected.concat());
    }

    #[test]
    fn the_kind_of_a_form_is_part_of_its_check() {
        let forms = [Form::Null, Form::Bytes(b""), Form::Json(b""), Form::NotJson(b"")];
        for (index, form) in forms.iter().enumerate() {
            for other in &forms[index + 1..] {
                assert_ne!(form.check(), other.check(), "{form:?} {other:?}");
            }
        }
    }

    /// `printf abc | xxhsum -H3` prints 78af5f94892f3950.
    #[test]
    fn the_check_of_bytes_is_plain_xxh3() {
        assert_eq!(Form::Bytes(b"abc").check(), Check(0x892f_3950));
    }
}
