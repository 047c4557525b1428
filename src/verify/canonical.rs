//! Which JSON payloads are the same: one spelling for all that mean the same.
//!
//! Written from the rules of the configuration, not from the code of the daemon. Only equality
//! counts here: the bytes are hashed and never shown.
//!
//! Never: keeps the order of members, computes with floating point.

use serde_json::{Number, Value};

/// A JSON pointer, as its reference tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    text: String,
    tokens: Vec<String>,
}

impl Path {
    /// The configuration has checked the syntax.
    pub fn new(pointer: &str) -> Self {
        let unescape = |token: &str| token.replace("~1", "/").replace("~0", "~");
        Self {
            text: pointer.to_owned(),
            tokens: pointer.split('/').skip(1).map(unescape).collect(),
        }
    }

    fn starts_with(&self, other: &Self) -> bool {
        self.tokens.starts_with(&other.tokens)
    }
}

/// Which parts of a payload count.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Empty: all.
    pub include: Vec<Path>,
    pub exclude: Vec<Path>,
}

/// Exponents of more digits are not taken for JSON.
const EXPONENT_DIGITS_MAX: usize = 18;

/// Parses a payload. `None`: it is not JSON, or beyond what the daemon takes for JSON.
pub fn parse(payload: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    numbers_are_readable(&value).then_some(value)
}

fn numbers_are_readable(value: &Value) -> bool {
    match value {
        Value::Number(number) => decimal(number.as_str()).is_some(),
        Value::Array(items) => items.iter().all(numbers_are_readable),
        Value::Object(members) => members.values().all(numbers_are_readable),
        _ => true,
    }
}

/// Appends the spelling of the parts that count.
pub fn write(value: &Value, parts: &Parts, out: &mut Vec<u8>) {
    let excluded: Vec<&[String]> = parts.exclude.iter().map(|path| &path.tokens[..]).collect();
    let root_excluded = excluded.iter().any(|rest| rest.is_empty());
    if parts.include.is_empty() {
        if !root_excluded {
            write_value(value, &excluded, out);
        }
        return;
    }
    let mut included: Vec<&Path> = parts.include.iter().collect();
    included.sort_by(|a, b| a.text.cmp(&b.text));
    included.dedup();
    for path in included {
        if parts.exclude.iter().any(|excluded| path.starts_with(excluded)) {
            continue;
        }
        let Some(found) = value.pointer(&path.text) else { continue };
        let below = excluded.iter().filter_map(|rest| rest.strip_prefix(&path.tokens[..]));
        text(&path.text, out);
        write_value(found, &below.collect::<Vec<_>>(), out);
    }
}

fn write_value(value: &Value, excluded: &[&[String]], out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(yes) => out.push(if *yes { b't' } else { b'f' }),
        Value::Number(number) => write_number(number, out),
        Value::String(string) => text(string, out),
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                member(&at.to_string(), item, excluded, false, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            out.push(b'{');
            for (name, value) in members {
                member(name, value, excluded, true, out);
            }
            out.push(b'}');
        }
    }
}

/// An item of an array or a member of an object, unless it is excluded.
fn member(name: &str, value: &Value, excluded: &[&[String]], named: bool, out: &mut Vec<u8>) {
    let enter = |rest: &&[String]| {
        rest.split_first().filter(|(first, _)| *first == name).map(|(_, rest)| rest.to_vec())
    };
    let below: Vec<Vec<String>> =
        if excluded.is_empty() { Vec::new() } else { excluded.iter().filter_map(enter).collect() };
    if below.iter().any(Vec::is_empty) {
        return;
    }
    if named {
        text(name, out);
    }
    write_value(value, &below.iter().map(|rest| &rest[..]).collect::<Vec<_>>(), out);
}

/// A string with its length in front, so that nothing needs an escape.
fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b's');
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Appends a number so that 1, 1.0 and 10e-1 are the same.
pub fn write_number(number: &Number, out: &mut Vec<u8>) {
    let decimal = decimal(number.as_str()).unwrap_or_default();
    out.push(if decimal.negative { b'-' } else { b'+' });
    out.extend(decimal.digits.as_bytes());
    out.push(b'e');
    out.extend(decimal.exponent.to_le_bytes());
}

/// `digits` times ten to the power of `exponent`; digits without zeros at either end, none for 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

fn decimal(text: &str) -> Option<Decimal> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let unsigned = exponent.trim_start_matches(['+', '-']).trim_start_matches('0');
    if unsigned.len() > EXPONENT_DIGITS_MAX {
        return None;
    }
    let exponent: i64 = exponent.parse().ok()?;
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{integer}{fraction}");
    let significant = all.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Some(Decimal::default());
    }
    let zeros = all.len() - all.trim_end_matches('0').len();
    let shift = i64::try_from(zeros).ok()? - i64::try_from(fraction.len()).ok()?;
    Some(Decimal { negative, digits: significant.to_owned(), exponent: exponent + shift })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(json: &str, include: &[&str], exclude: &[&str]) -> Vec<u8> {
        let paths = |texts: &[&str]| texts.iter().map(|text| Path::new(text)).collect();
        let parts = Parts { include: paths(include), exclude: paths(exclude) };
        let mut out = Vec::new();
        write(&parse(json.as_bytes()).unwrap(), &parts, &mut out);
        out
    }

    #[test]
    fn what_means_the_same_is_spelled_the_same() {
        for (a, b) in [
            (r#"{"a":1,"b":[2]}"#, r#" { "b" : [ 2.0 ] , "a" : 10e-1 } "#),
            ("\"\\u0041\"", "\"A\""),
            ("-0.0e7", "0"),
            ("1500", "1.5e3"),
            ("0.0012", "12E-4"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        ] {
            assert_eq!(spelled(a, &[], &[]), spelled(b, &[], &[]), "{a} {b}");
        }
        for (a, b) in [
            ("1", "-1"),
            ("1", "\"1\""),
            ("[]", "{}"),
            ("[[],1]", "[[1]]"),
            ("18446744073709551617", "18446744073709551616"),
            ("{\"a\":null}", "{}"),
        ] {
            assert_ne!(spelled(a, &[], &[]), spelled(b, &[], &[]), "{a} {b}");
        }
    }

    #[test]
    fn what_is_excluded_does_not_count() {
        let exclude = ["/at", "/items/1", "/deep/x"];
        let same = |a, b| assert_eq!(spelled(a, &[], &exclude), spelled(b, &[], &exclude));
        same(r#"{"id":1,"at":5}"#, r#"{"id":1}"#);
        same(r#"{"items":[1,2,3]}"#, r#"{"items":[1,9,3]}"#);
        same(r#"{"deep":{"x":1}}"#, r#"{"deep":{}}"#);
        assert_eq!(spelled("1", &[], &[""]), spelled("[2]", &[], &[""]));
    }

    #[test]
    fn only_what_is_included_counts() {
        let of = |json| spelled(json, &["/b", "/a"], &["/b/at"]);
        assert_eq!(of(r#"{"a":1,"b":{"at":2},"c":3}"#), of(r#"{"b":{},"a":1.0}"#));
        assert_ne!(of(r#"{"a":1}"#), of(r#"{"b":1}"#));
        assert_eq!(of("[]"), of("{\"c\":0}"));
    }

    #[test]
    fn an_exponent_has_at_most_18_digits() {
        assert!(parse(b"[1e999999999999999999, 1e0000000000000000000001]").is_some());
        assert!(parse(b"1e1000000000000000000").is_none());
        assert!(parse(b"\"\\ud800\"").is_none());
    }
}
