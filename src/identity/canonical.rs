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
mod write;

use super::extract::{Pointer, Token};

pub(super) use self::number::write as write_number;

/// Arrays and objects inside each other; serde_json's limit, and enough for what people write.
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
