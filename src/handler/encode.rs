//! One claim as one line of JSON: what the stdout handler and the command handler hand over.
//!
//! Owns: the fields of the line and how foreign bytes are written into them.
//! Never: writes to a file, or fails: any bytes have an encoding, and only one.
//!
//! Written by hand because it is the hot path of the stdout handler: a record costs less than
//! the formatting of its numbers would.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Claim;
use crate::identity::Identity;
use crate::record::Headers;

/// Appends the line with its newline:
/// `identity, attempt, topic, partition, offset, timestamp, key, headers, payload`.
///
/// Bytes are a string where they are UTF-8, `null` where there are none, else
/// `{"base64": "..."}`; headers are a list of `[name, value]` in the order of the record.
pub(crate) fn line(out: &mut Vec<u8>, claim: &Claim) {
    let record = claim.record();
    out.extend_from_slice(b"{\"identity\":");
    identity(out, claim.identity());
    out.extend_from_slice(b",\"attempt\":");
    integer(out, claim.attempt().into());
    out.extend_from_slice(b",\"topic\":");
    string(out, &record.partition.topic);
    out.extend_from_slice(b",\"partition\":");
    integer(out, record.partition.index.into());
    out.extend_from_slice(b",\"offset\":");
    integer(out, record.offset.0);
    out.extend_from_slice(b",\"timestamp\":");
    match record.timestamp {
        Some(timestamp) => integer(out, timestamp.0),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"key\":");
    bytes(out, record.key());
    out.extend_from_slice(b",\"headers\":");
    headers(out, record.headers());
    out.extend_from_slice(b",\"payload\":");
    bytes(out, record.payload());
    out.extend_from_slice(b"}\n");
}

fn identity(out: &mut Vec<u8>, identity: Option<Identity>) {
    let Some(Identity(id)) = identity else {
        return out.extend_from_slice(b"null");
    };
    let mut text = [b'"'; 2 + 32];
    for (pair, byte) in text[1..33].chunks_exact_mut(2).zip(id) {
        pair.copy_from_slice(&hex(byte));
    }
    out.extend_from_slice(&text);
}

fn headers(out: &mut Vec<u8>, headers: Headers<'_>) {
    out.push(b'[');
    for (at, (name, value)) in headers.enumerate() {
        out.extend_from_slice(if at == 0 { b"[" } else { b",[" });
        bytes(out, Some(name));
        out.push(b',');
        bytes(out, value);
        out.push(b']');
    }
    out.push(b']');
}

fn bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        return out.extend_from_slice(b"null");
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => string(out, text),
        Err(_) => base64(out, bytes),
    }
}

fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"base64\":\"");
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.extend_from_slice(b"\"}");
}

/// Bytes that are looked at together: one machine word.
const WORD: usize = size_of::<u64>();

fn string(out: &mut Vec<u8>, text: &str) {
    // Room for a text whose every byte needs a backslash, so that the loop rarely grows.
    out.reserve(2 + 2 * text.len());
    out.push(b'"');
    let (words, rest) = text.as_bytes().as_chunks::<WORD>();
    for word in words {
        if is_plain(u64::from_le_bytes(*word)) {
            out.extend_from_slice(word);
        } else {
            escape_word(out, *word);
        }
    }
    for byte in rest {
        escape(out, *byte);
    }
    out.push(b'"');
}

/// True where no byte of the word needs an escape. May be wrong in one direction only: a word
/// that is called plain is plain.
fn is_plain(word: u64) -> bool {
    const ONES: u64 = u64::from_le_bytes([1; WORD]);
    const HIGH: u64 = ONES << 7;
    let zero_in = |x: u64| x.wrapping_sub(ONES) & !x;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = zero_in(word ^ (ONES * u64::from(b'"')));
    let backslash = zero_in(word ^ (ONES * u64::from(b'\\')));
    (control | quote | backslash) & HIGH == 0
}

/// Payloads are mostly JSON, where every other word holds a quote: no branch depends on where.
fn escape_word(out: &mut Vec<u8>, word: [u8; WORD]) {
    let mut escaped = [0; 2 * WORD];
    let mut len = 0;
    for byte in word {
        let escape = ESCAPES[byte as usize];
        if escape == UNICODE {
            return word.into_iter().for_each(|byte| self::escape(out, byte));
        }
        escaped[len] = b'\\';
        len += usize::from(escape != PLAIN);
        escaped[len] = if escape == PLAIN { byte } else { escape };
        len += 1;
    }
    let end = out.len() + len;
    // A copy of constant length and a cut are faster than a copy of `len` bytes.
    out.extend_from_slice(&escaped);
    out.truncate(end);
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    match ESCAPES[byte as usize] {
        PLAIN => out.push(byte),
        UNICODE => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&hex(byte));
        }
        escape => out.extend_from_slice(&[b'\\', escape]),
    }
}

/// What follows the backslash for each byte; [`PLAIN`]: the byte stands for itself,
/// [`UNICODE`]: it is written as `\u00xx`.
const ESCAPES: [u8; 256] = {
    let mut escapes = [PLAIN; 256];
    let mut control = 0;
    while control < 0x20 {
        escapes[control] = UNICODE;
        control += 1;
    }
    escapes[0x08] = b'b';
    escapes[0x09] = b't';
    escapes[0x0a] = b'n';
    escapes[0x0c] = b'f';
    escapes[0x0d] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};
const PLAIN: u8 = 0;
const UNICODE: u8 = b'u';

fn integer(out: &mut Vec<u8>, value: i64) {
    const DIGITS_MAX: usize = 20; // -9223372036854775808
    let mut text = [0; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        text[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&text[start..]);
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
pub(crate) mod testing {
    use bytes::Bytes;

    use super::*;
    use crate::dedup::Shard;
    use crate::identity::Check;
    use crate::record::{Epoch, Offset, Partition, RecordBuilder, Timestamp};

    pub(crate) type Header<'a> = (&'a [u8], Option<&'a [u8]>);

    /// The first attempt of the record at `payments/3/42` with the identity `07...07`.
    pub(crate) fn claim(
        key: Option<&[u8]>,
        headers: &[Header<'_>],
        payload: Option<&[u8]>,
    ) -> Claim {
        let record = RecordBuilder::default().build(
            Partition::new("payments", 3),
            Offset(42),
            Some(Timestamp(1_700_000_000_123)),
            key,
            payload,
            headers.iter().copied(),
        );
        Claim {
            record,
            identity: Some(Identity([7; 16])),
            client_key: Some(Bytes::from_static(b"client-key")),
            gives_client_key: false,
            check: Check(0),
            time: Timestamp(1_700_000_000_123),
            epoch: Epoch(0),
            shard: Shard(0),
            attempt: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::testing::{Header, claim};
    use super::*;
    use crate::record::{Offset, Timestamp};

    fn encoded(claim: &Claim) -> Vec<u8> {
        let mut out = Vec::new();
        line(&mut out, claim);
        out
    }

    fn parsed(claim: &Claim) -> Value {
        serde_json::from_slice(&encoded(claim)).expect("a line is one JSON object")
    }

    #[test]
    fn a_line_has_every_field_in_the_order_of_the_contract() {
        let line = encoded(&claim(
            Some(b"user-1"),
            &[(b"a", Some(b"1")), (b"b", None)],
            Some(b"{\"x\":1}"),
        ));
        let expected = concat!(
            r#"{"identity":"07070707070707070707070707070707","attempt":1,"topic":"payments","#,
            r#""partition":3,"offset":42,"timestamp":1700000000123,"key":"user-1","#,
            r#""headers":[["a","1"],["b",null]],"payload":"{\"x\":1}"}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn what_is_absent_is_null_and_what_is_empty_is_an_empty_string() {
        let mut absent = claim(None, &[], None);
        absent.identity = None;
        absent.record.timestamp = None;
        let line = parsed(&absent);
        for field in ["identity", "timestamp", "key", "payload"] {
            assert_eq!(line[field], Value::Null, "{field}");
        }
        assert_eq!(line["headers"], json!([]));
        let empty = parsed(&claim(Some(b""), &[(b"", Some(b""))], Some(b"")));
        assert_eq!((&empty["key"], &empty["payload"]), (&json!(""), &json!("")));
        assert_eq!(empty["headers"], json!([["", ""]]));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_base64_wherever_they_stand() {
        let headers: [Header<'_>; 1] = [(b"\xff", Some(b"\xfe\x00"))];
        let line = parsed(&claim(Some(b"\x80"), &headers, Some(b"ok\xc3")));
        assert_eq!(line["key"], json!({"base64": "gA=="}));
        assert_eq!(line["headers"], json!([[{"base64": "/w=="}, {"base64": "/gA="}]]));
        assert_eq!(line["payload"], json!({"base64": "b2vD"}));
    }

    #[test]
    fn the_extreme_numbers_are_written_in_full() {
        for number in [i64::MIN, -1, 0, 9, 10, i64::MAX] {
            let mut claim = claim(None, &[], None);
            claim.record.offset = Offset(number);
            claim.record.timestamp = Some(Timestamp(number));
            let line = parsed(&claim);
            assert_eq!(line["offset"].as_i64(), Some(number));
            assert_eq!(line["timestamp"].as_i64(), Some(number));
        }
    }

    #[test]
    fn every_byte_is_escaped_alike_in_a_word_and_behind_the_last_one() {
        for byte in 0..=0x7f_u8 {
            let text = String::from(char::from(byte)).repeat(WORD + 1);
            let mut out = Vec::new();
            string(&mut out, &text);
            assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
        }
    }

    proptest! {
        #[test]
        fn any_record_is_one_line_from_which_its_bytes_can_be_read(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
            text in "(?s).{0,80}",
            name in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let headers: [Header<'_>; 1] = [(&name, Some(text.as_bytes()))];
            let claim = claim(key.as_deref(), &headers, Some(text.as_bytes()));
            let bytes = encoded(&claim);
            prop_assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(bytes.last(), Some(&b'\n'));
            let line = parsed(&claim);
            prop_assert_eq!(line["payload"].as_str(), Some(text.as_str()));
            prop_assert_eq!(decoded(&line["key"]), key);
            prop_assert_eq!(decoded(&line["headers"][0][0]), Some(name.clone()));
        }
    }

    fn decoded(value: &Value) -> Option<Vec<u8>> {
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(STANDARD.decode(other["base64"].as_str().unwrap()).unwrap()),
        }
    }
}
