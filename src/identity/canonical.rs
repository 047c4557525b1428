//! JSON payloads: parsed once, read by pointer, written in one spelling.
//!
//! Owns: what of a payload does not matter (order of members, white space, spelling of strings
//! and numbers), and [`Document`], the parsed payload.
//! Never: recurses deeper than [`DEPTH_MAX`], computes with floating point, or takes more than
//! linear memory, whoever wrote the payload.
//!
//! The canonical form is JSON without white space. It is that of RFC 8785 where a number is a
//! double in its shortest spelling and no member name has a character beyond U+FFFF:
//!
//! - Members stand in the order of their unescaped names, byte by byte. Of members of one name
//!   the last counts, as in nearly every parser.
//! - Strings escape only quote, backslash and control characters.
//! - Numbers are exact decimals, laid out as ECMAScript does: 1, 1.0 and 10e-1 are `1`, -0 is `0`,
//!   a number that would be long is `1.5e+300`.
//! - With parts to include it is an object of these parts by pointer; one that is not there is
//!   left out. What is excluded is left out of objects and arrays alike.
//!
//! Not JSON, besides what RFC 8259 refuses: an escaped surrogate that is not in a pair, nesting
//! deeper than [`DEPTH_MAX`], an exponent of more than 18 digits, more than 4 GiB. White space is
//! the four characters of the grammar; a byte order mark is none.

mod number;
mod parse;
#[cfg(test)]
mod properties;
mod write;

use super::extract::{Pointer, Token};

pub(super) use self::number::write as write_number;

/// Arrays and objects inside each other: more than anyone writes by hand, and no strain on a stack.
pub(super) const DEPTH_MAX: u32 = 128;

/// A parsed payload. Keeps its buffers from one payload to the next.
///
/// Values stand in the order of the text; a member is its name and then its value. The nodes are
/// spans of the payload, which the methods therefore take again.
#[derive(Debug, Default)]
pub(super) struct Document {
    nodes: Vec<Node>,
    /// Strings that had escapes, without them.
    text: Vec<u8>,
    /// Room to sort the members of the objects that are being written.
    members: Vec<write::Member>,
}

/// A payload that is not JSON, or not within the bounds above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotJson;

/// A value that can be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    /// Unescaped.
    String(&'a [u8]),
    /// As it is spelled.
    Number(&'a [u8]),
    Boolean(&'a [u8]),
}

impl Document {
    /// Replaces what was parsed before.
    pub fn parse(&mut self, payload: &[u8]) -> Result<(), NotJson> {
        self.nodes.clear();
        self.text.clear();
        parse::parse(payload, &mut self.nodes, &mut self.text)
    }

    /// The scalar at the pointer. `None`: there is nothing, null, an array or an object.
    pub fn scalar<'a>(&'a self, payload: &'a [u8], pointer: &Pointer) -> Option<Scalar<'a>> {
        let tree = self.tree(payload);
        let node = tree.node(tree.find(pointer)?)?;
        match node.kind {
            Kind::Plain | Kind::Escaped => Some(Scalar::String(tree.string(node))),
            Kind::Number | Kind::CanonicalNumber => Some(Scalar::Number(tree.verbatim(node))),
            Kind::Boolean => Some(Scalar::Boolean(tree.verbatim(node))),
            Kind::Null | Kind::Array | Kind::Object => None,
        }
    }

    /// Appends the canonical form.
    pub fn write_canonical(
        &mut self,
        payload: &[u8],
        include: &[Pointer],
        exclude: &[Pointer],
        out: &mut Vec<u8>,
    ) {
        for pointer in exclude {
            let found = self.tree(payload).find(pointer);
            if let Some(node) = found.and_then(|at| self.nodes.get_mut(at)) {
                node.excluded = true;
            }
        }
        let tree = Tree { payload, nodes: &self.nodes, text: &self.text };
        write::write(tree, include, &mut self.members, out);
    }

    pub fn shrink(&mut self, bytes_max: usize) {
        if self.nodes.capacity() * size_of::<Node>() > bytes_max {
            self.nodes = Vec::new();
        }
        if self.text.capacity() > bytes_max {
            self.text = Vec::new();
        }
        if self.members.capacity() * size_of::<write::Member>() > bytes_max {
            self.members = Vec::new();
        }
    }

    fn tree<'a>(&'a self, payload: &'a [u8]) -> Tree<'a> {
        Tree { payload, nodes: &self.nodes, text: &self.text }
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    kind: Kind,
    excluded: bool,
    /// Of the text in the payload, quotes included; of an escaped string in the unescaped text.
    /// An array or object has its parent's index here while it is parsed.
    start: u32,
    /// Where that ends. Of an array or object, the index of the first node after it.
    end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    CanonicalNumber,
    Number,
    /// A string without escapes.
    Plain,
    Escaped,
    Array,
    Object,
}

impl Kind {
    /// The text in the payload is its canonical form.
    fn is_verbatim(self) -> bool {
        matches!(self, Self::Null | Self::Boolean | Self::CanonicalNumber | Self::Plain)
    }
}

/// A parsed document and the payload that it is of.
#[derive(Clone, Copy)]
struct Tree<'a> {
    payload: &'a [u8],
    nodes: &'a [Node],
    text: &'a [u8],
}

impl<'a> Tree<'a> {
    fn node(&self, at: usize) -> Option<Node> {
        self.nodes.get(at).copied()
    }

    fn find(&self, pointer: &Pointer) -> Option<usize> {
        pointer.tokens().iter().try_fold(0, |at, token| self.child(at, token))
    }

    fn child(&self, at: usize, token: &Token) -> Option<usize> {
        match self.node(at)?.kind {
            Kind::Array => self.children(at).nth(token.index?),
            Kind::Object => {
                let names = self.children(at).step_by(2);
                let same = |name: &usize| self.name(*name) == token.name.as_bytes();
                names.filter(same).last().map(|name| name + 1)
            }
            _ => None,
        }
    }

    /// The elements of an array; the names and values of an object by turns.
    fn children(self, at: usize) -> impl Iterator<Item = usize> {
        let end = self.after(at);
        let first = Some(at + 1).filter(|first| *first < end);
        std::iter::successors(first, move |child| {
            Some(self.after(*child)).filter(|next| *next < end)
        })
    }

    /// The first node behind this one and what is in it.
    fn after(&self, at: usize) -> usize {
        match self.node(at) {
            Some(Node { kind: Kind::Array | Kind::Object, end, .. }) => end as usize,
            _ => at + 1,
        }
    }

    fn name(&self, at: usize) -> &'a [u8] {
        self.node(at).map_or(&[], |node| self.string(node))
    }

    fn string(&self, node: Node) -> &'a [u8] {
        match node.kind {
            Kind::Escaped => self.text.get(node.start as usize..node.end as usize),
            _ => self.payload.get(node.start as usize + 1..node.end as usize - 1),
        }
        .unwrap_or_default()
    }

    fn verbatim(&self, node: Node) -> &'a [u8] {
        self.payload.get(node.start as usize..node.end as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: not JSON.
    fn canonical(payload: impl AsRef<[u8]>) -> Option<String> {
        selected(payload, &[], &[])
    }

    fn selected(payload: impl AsRef<[u8]>, include: &[&str], exclude: &[&str]) -> Option<String> {
        let payload = payload.as_ref();
        let pointers = |texts: &[&str]| -> Vec<Pointer> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let mut document = Document::default();
        document.parse(payload).ok()?;
        let mut out = Vec::new();
        document.write_canonical(payload, &pointers(include), &pointers(exclude), &mut out);
        Some(String::from_utf8(out).unwrap())
    }

    #[track_caller]
    fn check(payload: &str, expected: &str) {
        assert_eq!(canonical(payload).as_deref(), Some(expected));
    }

    #[track_caller]
    fn check_refused(payload: impl AsRef<[u8]>) {
        assert_eq!(canonical(payload), None);
    }

    #[test]
    fn order_and_white_space_do_not_matter() {
        check("\t{ \"b\" : [ 1 , 2 ] ,\r\n\"a\":{ } , \"\":[ ] } ", r#"{"":[],"a":{},"b":[1,2]}"#);
        check(r#"{"a":{"d":1,"c":2},"b":null}"#, r#"{"a":{"c":2,"d":1},"b":null}"#);
        check(" true ", "true");
    }

    #[test]
    fn members_stand_in_the_order_of_the_bytes_of_their_names() {
        check(
            r#"{"é":1,"b":2,"aaaaaaaab":3,"aaaaaaaa":4,"aaaaaaaaa":5,"a\u0000":6,"a":7,"Z":8}"#,
            r#"{"Z":8,"a":7,"a\u0000":6,"aaaaaaaa":4,"aaaaaaaaa":5,"aaaaaaaab":3,"b":2,"é":1}"#,
        );
    }

    #[test]
    fn the_last_member_of_a_name_counts() {
        check(r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#);
        check(r#"{"a":[1],"a":[2],"\u0061":[3]}"#, r#"{"a":[3]}"#);
        check(
            r#"{"aaaaaaaaaa":1,"aaaaaaaaaa":2,"aaaaaaaaab":3}"#,
            r#"{"aaaaaaaaaa":2,"aaaaaaaaab":3}"#,
        );
    }

    #[test]
    fn the_spelling_of_a_string_does_not_matter() {
        check(r#""\u0041\/\u00e9\ud83d\ude00""#, r#""A/é😀""#);
        check(r#""\u0022\u005C\u0008\u000C\u000a\u000D\u0009""#, r#""\"\\\b\f\n\r\t""#);
        check(r#""\u001F\u007f\u0000 plain""#, "\"\\u001f\u{7f}\\u0000 plain\"");
    }

    #[test]
    fn the_spelling_of_a_number_does_not_matter() {
        check("[1,1.0,10e-1,-0,12.50,1E400]", "[1,1,1,0,12.5,1e+400]");
    }

    #[test]
    fn values_of_different_types_stay_apart() {
        let all = ["1", "\"1\"", "true", "\"true\"", "null", "\"\"", "[]", "{}", "[[]]", "[1]"];
        for (index, one) in all.iter().enumerate() {
            for other in &all[index + 1..] {
                assert_ne!(canonical(one), canonical(other), "{one} {other}");
            }
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "nul",
            "nulll",
            "True",
            "'a'",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u+123\"",
            "\"\n\"",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1",
            "1]",
            "[1}",
            "{1:2}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\" 1}",
            "{\"a\":1]",
            "1 1",
            "// a\n1",
            "\u{feff}1",
            "\u{a0}1",
            "1\0",
            "-",
            "01",
        ] {
            check_refused(text);
        }
        check_refused(b"\"\xff\"");
        check_refused(b"\"\xed\xa0\x80\"");
    }

    #[test]
    fn a_surrogate_without_its_pair_is_refused() {
        for text in
            [r"\ud800", r"\ud800a", r"\ud800\n", r"\ud800\u0041", r"\udc00\ud800", r"\udfff"]
        {
            check_refused(format!("\"{text}\""));
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(canonical(nested(128)), Some(nested(128)));
        check_refused(nested(129));
        check_refused("[".repeat(1_000_000));
        check_refused("{\"a\":".repeat(1_000_000));
    }

    /// Does not end in the time of a test run if anything here is quadratic.
    #[test]
    fn a_payload_of_a_million_bytes_is_no_attack() {
        let list = |item: &str| vec![item; 1_000_000 / item.len()].join(",");
        for payload in [
            format!("[{}]", list("0")),
            format!("[{}]", list("{}")),
            format!("{{{}}}", list("\"a\":0")),
            format!("{{{}}}", list("\"aaaaaaaaaaaa\":{}")),
            format!(
                "[{}]",
                list(&format!("{}1{}", "{\"b\":1,\"a\":".repeat(127), "}".repeat(127)))
            ),
            format!("\"{}\"", "\\n".repeat(500_000)),
            format!("0.{}1e-5", "0".repeat(1_000_000)),
        ] {
            assert!(canonical(&payload).is_some());
        }
        let members: Vec<_> = (0..100_000).rev().map(|name| format!("\"{name:09}\":1")).collect();
        assert!(canonical(format!("{{{}}}", members.join(","))).is_some());
    }

    #[test]
    fn only_what_is_included_counts() {
        let payload = r#"{"b":{"c":[10,{"d":2.0}]},"a":1,"x~/y":3}"#;
        let check = |include: &[&str], expected: &str| {
            assert_eq!(selected(payload, include, &[]).as_deref(), Some(expected), "{include:?}");
        };
        check(&["/a"], r#"{"/a":1}"#);
        check(&["/b/c/1", "/a", "/nothing"], r#"{"/b/c/1":{"d":2},"/a":1}"#);
        check(&["/x~0~1y"], r#"{"/x~0~1y":3}"#);
        check(&["", "/b/c/0"], r#"{"":{"a":1,"b":{"c":[10,{"d":2}]},"x~/y":3},"/b/c/0":10}"#);
        check(&["/b/c/2", "/b/c/-", "/b/c/00", "/a/0"], "{}");
    }

    #[test]
    fn what_is_excluded_does_not_count() {
        let payload = r#"{"b":{"c":[10,{"d":2}]},"a":1,"b2":0,"a":5}"#;
        let check = |exclude: &[&str], expected: &str| {
            assert_eq!(selected(payload, &[], exclude).as_deref(), Some(expected), "{exclude:?}");
        };
        check(&["/a", "/nothing/there"], r#"{"b":{"c":[10,{"d":2}]},"b2":0}"#);
        check(&["/b/c/0", "/b2"], r#"{"a":5,"b":{"c":[{"d":2}]}}"#);
        check(&["/b", "/b/c"], r#"{"a":5,"b2":0}"#);
        check(&[""], "");
    }

    #[test]
    fn what_is_included_and_excluded_does_not_count() {
        let payload = r#"{"a":{"b":1,"c":2},"d":3}"#;
        let check = |include, exclude, expected: &str| {
            assert_eq!(selected(payload, &[include], &[exclude]).as_deref(), Some(expected));
        };
        check("/a", "/a/b", r#"{"/a":{"c":2}}"#);
        check("/a/b", "/a", "{}");
        check("/d", "", "{}");
    }

    #[test]
    fn a_document_forgets_the_payload_before() {
        let mut document = Document::default();
        document.parse(br#"{"a":"\n","b":1}"#).unwrap();
        document.write_canonical(b"", &[], &["/a".parse().unwrap()], &mut Vec::new());
        let payload = br#"{"a":"\t"}"#;
        document.parse(payload).unwrap();
        let mut out = Vec::new();
        document.write_canonical(payload, &[], &[], &mut out);
        assert_eq!(out, payload);
    }
}
