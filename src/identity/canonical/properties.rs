//! Property tests of the canonical form, against `serde_json` and against random spellings.

use proptest::prelude::*;
use serde_json::Value;

use super::{Document, Pointer, Scalar};

fn canonical(payload: &[u8]) -> Option<Vec<u8>> {
    without(payload, &[])
}

fn without(payload: &[u8], exclude: &[Pointer]) -> Option<Vec<u8>> {
    let mut document = Document::default();
    let mut out = Vec::new();
    document.parse(payload).ok()?;
    document.write_canonical(payload, &[], exclude, &mut out);
    Some(out)
}

/// What a payload means, apart from how it is spelled.
#[derive(Clone, Debug)]
enum Meaning {
    Null,
    Boolean(bool),
    /// Times ten to the power of the second.
    Number(i64, i16),
    String(String),
    Array(Vec<Meaning>),
    Object(Vec<(String, Meaning)>),
}

fn meaning(leaf: impl Strategy<Value = Meaning> + 'static) -> impl Strategy<Value = Meaning> {
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Meaning::Array),
            prop::collection::btree_map(name(), inner, 0..6)
                .prop_map(|members| Meaning::Object(members.into_iter().collect())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[abc]?", "[a\0]{0,3}", "aaaaaaa[ab\0é😀\"\\\\/~01]{0,3}", any::<String>()]
}

fn any_leaf() -> impl Strategy<Value = Meaning> {
    prop_oneof![few_leaves(), any_number(), any::<String>().prop_map(Meaning::String)]
}

fn any_number() -> impl Strategy<Value = Meaning> {
    (any::<i64>(), any::<i16>()).prop_map(|(digits, exponent)| Meaning::Number(digits, exponent))
}

/// Few enough that two random documents are often the same.
fn few_leaves() -> impl Strategy<Value = Meaning> {
    prop_oneof![
        Just(Meaning::Null),
        any::<bool>().prop_map(Meaning::Boolean),
        (0..3_i64).prop_map(|number| Meaning::Number(number, 0)),
        "[01]?".prop_map(Meaning::String),
    ]
}

fn few_meanings() -> impl Strategy<Value = Meaning> {
    few_leaves().prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Meaning::Array),
            prop::collection::btree_map("[ab]", inner, 0..3)
                .prop_map(|members| Meaning::Object(members.into_iter().collect())),
        ]
    })
}

/// Spells a meaning in one of its many ways.
struct Speller {
    random: u64,
    out: String,
    /// Numbers are integers in their plain spelling, for readers that compare them as text.
    plain_numbers: bool,
}

fn spell(meaning: &Meaning, seed: u64, plain_numbers: bool) -> String {
    let mut speller = Speller { random: seed | 1, out: String::new(), plain_numbers };
    speller.value(meaning);
    speller.space();
    speller.out
}

impl Speller {
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        let index = self.below(choices.len() as u64);
        choices[usize::try_from(index).unwrap()]
    }

    fn space(&mut self) {
        let space = self.pick(&["", "", "", " ", "\n", "\t", "\r\n  "]);
        self.out.push_str(space);
    }

    fn token(&mut self, token: &str) {
        self.space();
        self.out.push_str(token);
    }

    fn value(&mut self, meaning: &Meaning) {
        match meaning {
            Meaning::Null => self.token("null"),
            Meaning::Boolean(value) => self.token(&value.to_string()),
            Meaning::Number(digits, exponent) => self.number(*digits, *exponent),
            Meaning::String(text) => self.string(text),
            Meaning::Array(items) => self.list("[", items, "]", Self::value),
            Meaning::Object(members) => self.object(members),
        }
    }

    fn object(&mut self, members: &[(String, Meaning)]) {
        let mut members = members.to_vec();
        for last in (1..members.len()).rev() {
            let other = self.below(last as u64 + 1);
            members.swap(last, usize::try_from(other).unwrap());
        }
        // A member that does not count, before the one of its name that does.
        if let (Some((name, _)), 0) = (members.last().cloned(), self.below(3)) {
            members.insert(0, (name, Meaning::Array(vec![Meaning::Null])));
        }
        self.list("{", &members, "}", |speller, (name, value)| {
            speller.string(name);
            speller.token(":");
            speller.value(value);
        });
    }

    fn list<T>(&mut self, open: &str, items: &[T], close: &str, item: fn(&mut Self, &T)) {
        self.token(open);
        for (index, one) in items.iter().enumerate() {
            if index > 0 {
                self.token(",");
            }
            item(self, one);
        }
        self.token(close);
    }

    fn string(&mut self, text: &str) {
        self.token("\"");
        for character in text.chars() {
            let must = character < ' ' || matches!(character, '"' | '\\');
            match (character, self.below(4)) {
                ('\n', 0) => self.out.push_str("\\n"),
                ('"' | '\\' | '/', 0) => self.out.extend(['\\', character]),
                (_, 1..) if !must => self.out.push(character),
                _ => self.escape(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            let escape = if self.below(2) == 0 {
                format!("\\u{unit:04x}")
            } else {
                format!("\\u{unit:04X}")
            };
            self.out.push_str(&escape);
        }
    }

    /// Moves the point, and the exponent against it.
    fn number(&mut self, value: i64, exponent: i16) {
        if self.plain_numbers {
            return self.token(&value.to_string());
        }
        self.token(if value < 0 { "-" } else { "" });
        let mut exponent = i64::from(exponent);
        let mut digits = value.unsigned_abs().to_string();
        for _ in 0..self.below(3) {
            digits.push('0');
            exponent -= 1;
        }
        let places = self.below(digits.len() as u64 + 4);
        exponent += i64::try_from(places).unwrap();
        let places = usize::try_from(places).unwrap();
        let digits = format!("{}{digits}", "0".repeat((places + 1).saturating_sub(digits.len())));
        let (integer, fraction) = digits.split_at(digits.len() - places);
        let integer = integer.trim_start_matches('0');
        self.out.push_str(if integer.is_empty() { "0" } else { integer });
        if !fraction.is_empty() {
            self.out.push('.');
            self.out.push_str(fraction);
        }
        if exponent != 0 || self.below(2) == 0 {
            let mark = self.pick(&["e", "E"]);
            let sign = if exponent >= 0 { self.pick(&["", "+"]) } else { "" };
            self.out.extend([mark, sign, &exponent.to_string()]);
        }
    }
}

/// Bytes that come closer to JSON than random ones do.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let changed = (meaning(any_leaf()), any::<u64>(), any::<prop::sample::Index>(), any::<u8>());
    prop_oneof![
        "[\\[\\]{}\",:0-9eE.+\\-\\\\utrfalsn ]{0,12}".prop_map(String::into_bytes),
        "\"(\\\\u[dD][89a-fA-F][0-9a-f]{2}|\\\\u00[0-9a-f]{2}|[a\"\\\\é])*\""
            .prop_map(String::into_bytes),
        changed.prop_map(|(meaning, seed, place, byte)| {
            let mut text = spell(&meaning, seed, false).into_bytes();
            let place = place.index(text.len());
            match seed % 3 {
                0 => text[place] = byte,
                1 => drop(text.remove(place)),
                _ => text.insert(place, b"[]{}\",:0e\\"[usize::from(byte) % 10]),
            }
            text
        }),
    ]
}

proptest! {
    #[test]
    fn all_spellings_of_a_payload_have_one_form(
        meaning in meaning(any_leaf()),
        seeds: [u64; 2],
    ) {
        let [one, other] = seeds.map(|seed| spell(&meaning, seed, false));
        let form = canonical(one.as_bytes());
        prop_assert!(form.is_some(), "{one}");
        prop_assert_eq!(&form, &canonical(other.as_bytes()), "{} and {}", one, other);
        let again = canonical(form.as_ref().unwrap());
        prop_assert_eq!(again, form, "a form is its own form");
    }

    #[test]
    fn a_form_means_what_the_payload_means(meaning in meaning(few_leaves()), seed: u64) {
        let payload = spell(&meaning, seed, true);
        let form = canonical(payload.as_bytes()).unwrap();
        let read = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        prop_assert_eq!(read(payload.as_bytes()), read(&form));
    }

    #[test]
    fn two_payloads_have_one_form_only_if_they_mean_the_same(
        meanings in [few_meanings(), few_meanings()],
        seed: u64,
    ) {
        let [one, other] = meanings.map(|meaning| spell(&meaning, seed, true));
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let same = read(&one) == read(&other);
        prop_assert_eq!(canonical(one.as_bytes()) == canonical(other.as_bytes()), same);
    }

    #[test]
    fn two_numbers_have_one_form_only_if_they_are_equal(
        one in (-120..120_i64, -3..4_i16),
        other in (-120..120_i64, -3..4_i16),
        seed: u64,
    ) {
        let value = |(digits, exponent): (i64, i16)| {
            digits * 10_i64.pow((exponent + 3).unsigned_abs().into())
        };
        let form = |(digits, exponent)| {
            canonical(spell(&Meaning::Number(digits, exponent), seed, false).as_bytes())
        };
        prop_assert_eq!(form(one) == form(other), value(one) == value(other));
    }

    #[test]
    fn serde_json_agrees_on_what_is_json(payload in nearly_json()) {
        let theirs = serde_json::from_slice::<Value>(&payload);
        prop_assert_eq!(canonical(&payload).is_some(), theirs.is_ok(), "{:?}", theirs);
    }

    #[test]
    fn serde_json_agrees_on_what_a_pointer_finds(
        meaning in meaning(few_leaves()),
        seed: u64,
        names in prop::collection::vec(prop_oneof![name(), "[0-3]"], 0..3),
    ) {
        let payload = spell(&meaning, seed, true);
        let value: Value = serde_json::from_str(&payload).unwrap();
        let mut document = Document::default();
        document.parse(payload.as_bytes()).unwrap();
        let random = names.iter().map(|name| step(name)).collect::<String>();
        for pointer in std::iter::once(random).chain(pointers(&value)) {
            let ours = document.scalar(payload.as_bytes(), &pointer.parse().unwrap());
            let ours = ours.map(|scalar| match scalar {
                Scalar::String(text) => Value::from(std::str::from_utf8(text).unwrap()),
                Scalar::Number(text) | Scalar::Boolean(text) => {
                    serde_json::from_slice(text).unwrap()
                }
            });
            let theirs = value.pointer(&pointer);
            let theirs = theirs.filter(|it| it.is_string() || it.is_number() || it.is_boolean());
            prop_assert_eq!(ours.as_ref(), theirs, "{}", pointer);
        }
    }

    #[test]
    fn an_excluded_part_might_as_well_not_be_there(
        meaning in meaning(few_leaves()),
        seed: u64,
        place: prop::sample::Index,
    ) {
        // In an array, so that there is a part to exclude.
        let payload = spell(&Meaning::Array(vec![meaning]), seed, true);
        let mut value: Value = serde_json::from_str(&payload).unwrap();
        let all = pointers(&value);
        let pointer = place.get(&all);
        remove(&mut value, pointer);
        let form = without(payload.as_bytes(), &[pointer.parse().unwrap()]);
        prop_assert_eq!(form, canonical(value.to_string().as_bytes()));
    }

    #[test]
    fn no_bytes_make_it_panic(payload: Vec<u8>, pointer in "(/[a0-2]?){0,3}") {
        let pointer = pointer.parse().unwrap();
        let mut document = Document::default();
        if document.parse(&payload).is_ok() {
            document.scalar(&payload, &pointer);
        }
        without(&payload, &[pointer]);
    }
}

/// All but that of the whole document.
fn pointers(value: &Value) -> Vec<String> {
    let below = |token: String, value: &Value| {
        let token = step(&token);
        let deeper =
            pointers(value).into_iter().map(|rest| format!("{token}{rest}")).collect::<Vec<_>>();
        std::iter::once(token).chain(deeper)
    };
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| below(index.to_string(), item))
            .collect(),
        Value::Object(members) => {
            members.iter().flat_map(|(name, value)| below(name.clone(), value)).collect()
        }
        _ => Vec::new(),
    }
}

fn step(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn remove(value: &mut Value, pointer: &str) {
    let (parent, token) = pointer.rsplit_once('/').unwrap();
    let token = token.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent).unwrap() {
        Value::Array(items) => drop(items.remove(token.parse().unwrap())),
        Value::Object(members) => drop(members.remove(&token)),
        _ => unreachable!("a parent has children"),
    }
}
