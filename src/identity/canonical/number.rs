//! JSON numbers as exact decimals.
//!
//! Owns: the grammar of a number, and the one spelling of all that mean the same.
//! Never: converts to a machine number: 0.1 is a tenth here, and 2^64 + 1 is not 2^64.

use std::io::Write as _;

use super::NotJson;

/// More digits are refused: the sum with the length of a payload must fit an `i64`.
const EXPONENT_DIGITS_MAX: usize = 18;

/// Numbers whose integer part is longer have an exponent, as in ECMAScript.
const INTEGER_DIGITS_MAX: usize = 21;

/// Smaller fractions have an exponent, as in ECMAScript.
const FRACTION_ZEROS_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub len: usize,
    /// It is spelled as [`write()`] would. Not claimed of a number with an exponent.
    pub canonical: bool,
}

/// Reads the number that the text starts with.
pub(super) fn scan(text: &[u8]) -> Result<Scanned, NotJson> {
    let (negative, rest) = sign(text);
    let (integer, rest) = digits(rest);
    if integer.is_empty() || (integer.len() > 1 && integer.starts_with(b"0")) {
        return Err(NotJson);
    }
    let (fraction, rest) = match rest.strip_prefix(b".") {
        None => (&[][..], rest),
        Some(rest) => some_digits(rest)?,
    };
    let (exponent, rest) = match rest {
        [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] => some_digits(rest)?,
        _ => (&[][..], rest),
    };
    if exponent.len() - zeros(exponent) > EXPONENT_DIGITS_MAX {
        return Err(NotJson);
    }
    let canonical = exponent.is_empty() && is_canonical(negative, integer, fraction);
    Ok(Scanned { len: text.len() - rest.len(), canonical })
}

fn is_canonical(negative: bool, integer: &[u8], fraction: &[u8]) -> bool {
    if integer.len() > INTEGER_DIGITS_MAX {
        return false;
    }
    let zero = integer == b"0";
    match fraction {
        [] => !(zero && negative),
        [.., last] => *last != b'0' && !(zero && zeros(fraction) > FRACTION_ZEROS_MAX),
    }
}

/// Appends the canonical spelling of a number that was scanned.
pub fn write(number: &[u8], out: &mut Vec<u8>) {
    let (negative, rest) = sign(number);
    let (integer, rest) = digits(rest);
    let (fraction, rest) = digits(rest.strip_prefix(b".").unwrap_or(rest));
    let leading = match zeros(integer) {
        all if all == integer.len() => all + zeros(fraction),
        some => some,
    };
    let length = integer.len() + fraction.len();
    if leading == length {
        out.push(b'0');
        return;
    }
    if negative {
        out.push(b'-');
    }
    let digits = integer.iter().chain(fraction).copied();
    let trailing = digits.clone().rev().take_while(|digit| *digit == b'0').count();
    let count = length - leading - trailing;
    // The number is 0.DIGITS times ten to the power of `point`.
    let point = signed(integer.len()) - signed(leading) + exponent(rest);
    lay_out(digits.skip(leading).take(count), count, point, out);
}

fn lay_out(mut digits: impl Iterator<Item = u8>, count: usize, point: i64, out: &mut Vec<u8>) {
    if (1..=signed(INTEGER_DIGITS_MAX)).contains(&point) {
        let integer_len = usize::try_from(point).unwrap_or_default();
        out.extend(digits.by_ref().take(integer_len));
        out.extend(std::iter::repeat_n(b'0', integer_len.saturating_sub(count)));
        if count > integer_len {
            out.push(b'.');
            out.extend(digits);
        }
    } else if (-signed(FRACTION_ZEROS_MAX)..=0).contains(&point) {
        let zeros = usize::try_from(-point).unwrap_or_default();
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', zeros));
        out.extend(digits);
    } else {
        out.extend(digits.by_ref().take(1));
        if count > 1 {
            out.push(b'.');
            out.extend(digits);
        }
        write!(out, "e{:+}", point - 1).expect("a Vec takes all bytes");
    }
}

/// What stands behind the digits: nothing, or `e` and at most 18 significant digits.
fn exponent(text: &[u8]) -> i64 {
    let (negative, text) = match text {
        [_, b'-', rest @ ..] => (true, rest),
        [_, b'+', rest @ ..] | [_, rest @ ..] => (false, rest),
        [] => return 0,
    };
    let magnitude = text.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    if negative { -magnitude } else { magnitude }
}

fn sign(text: &[u8]) -> (bool, &[u8]) {
    text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest))
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(len)
}

fn some_digits(text: &[u8]) -> Result<(&[u8], &[u8]), NotJson> {
    Some(digits(text)).filter(|(digits, _)| !digits.is_empty()).ok_or(NotJson)
}

fn zeros(digits: &[u8]) -> usize {
    digits.iter().take_while(|digit| **digit == b'0').count()
}

fn signed(len: usize) -> i64 {
    i64::try_from(len).expect("a payload is shorter than 2^63 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spellings: &[&str], canonical: &str) {
        for spelling in spellings {
            let scanned = scan(spelling.as_bytes()).expect(spelling);
            assert_eq!(scanned.len, spelling.len(), "{spelling}");
            let plain = *spelling == canonical && !spelling.contains('e');
            assert_eq!(scanned.canonical, plain, "{spelling}");
            let mut out = Vec::new();
            write(spelling.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), canonical, "{spelling}");
        }
    }

    #[test]
    fn all_spellings_of_a_number_become_one() {
        check(&["1", "1.0", "1e0", "1E+0", "10e-1", "0.1E1", "0.01e00000000000000000000002"], "1");
        check(&["0", "-0", "0.0", "-0.00e17", "0e-5", "0E999999999999999999"], "0");
        check(&["-12.5", "-12.50", "-1.25e1", "-0.125e+2", "-125E-1"], "-12.5");
        check(&["100", "1e2", "100.0", "0.1e3"], "100");
        check(&["0.000001", "1e-6", "0.1e-5"], "0.000001");
        check(&["-0.05", "-5e-2", "-0.050"], "-0.05");
        check(&["1.0000000000000000000000001"], "1.0000000000000000000000001");
    }

    #[test]
    fn long_numbers_get_an_exponent_as_in_ecmascript() {
        check(&["100000000000000000000", "1e20"], "100000000000000000000");
        check(&["123456789012345678901"], "123456789012345678901");
        check(&["1000000000000000000000", "1e21"], "1e+21");
        check(
            &["1234567890123456789012", "1.234567890123456789012e+21"],
            "1.234567890123456789012e+21",
        );
        check(&["0.0000001", "1e-7", "10e-8"], "1e-7");
        check(&["0.00000012", "12e-8"], "1.2e-7");
    }

    #[test]
    fn a_huge_exponent_stays_an_exponent() {
        check(&["1e999999999999", "10E999999999998", "0.01e1000000000001"], "1e+999999999999");
        check(&["1e-999999999999999999", "0.1e-999999999999999998"], "1e-999999999999999999");
        assert_eq!(scan(b"1e1000000000000000000"), Err(NotJson));
    }

    #[test]
    fn numbers_that_differ_by_one_digit_stay_apart() {
        check(&["18446744073709551617"], "18446744073709551617");
        check(&["18446744073709551616"], "18446744073709551616");
        check(&["0.1000000000000000055511151231257827"], "0.1000000000000000055511151231257827");
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for text in
            ["", "-", "+1", ".5", "1.", "1.e5", "01", "-01", "00", "1e", "1e+", "NaN", "-e5"]
        {
            assert_eq!(scan(text.as_bytes()), Err(NotJson), "{text}");
        }
        assert_eq!(scan(b"12,").map(|scanned| scanned.len), Ok(2));
    }
}
