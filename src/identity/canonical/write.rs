//! From nodes to the canonical form.
//!
//! Owns: the order and the choice of members, and the spelling of strings.
//! Never: copies a payload member by byte where its spelling is canonical already, or recurses
//! deeper than the parser let the payload nest.

use std::cmp::Ordering;
use std::io::Write as _;

use super::parse::plain_len;
use super::{Kind, Node, Pointer, Tree, number};

/// Appends the canonical form of what is included and not excluded.
pub(super) fn write(
    tree: Tree<'_>,
    include: &[Pointer],
    members: &mut Vec<Member>,
    out: &mut Vec<u8>,
) {
    members.clear();
    let mut writer = Writer { tree, members, out };
    if include.is_empty() {
        writer.root();
    } else {
        writer.parts(include);
    }
}

/// A member while its object is put in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// The first eight bytes of the name, filled up with zeros: decides most comparisons.
    prefix: u64,
    name_len: u32,
    /// The node of the name.
    at: u32,
}

struct Writer<'a> {
    tree: Tree<'a>,
    /// A stack: those of the object being written are at the end.
    members: &'a mut Vec<Member>,
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn root(&mut self) {
        if self.is_kept(0) {
            self.value(0);
        }
    }

    /// An object of the included parts by pointer.
    fn parts(&mut self, include: &[Pointer]) {
        let mut between = Separator::default();
        self.out.push(b'{');
        for pointer in include {
            let Some(at) = self.find_kept(pointer) else { continue };
            between.write(self.out);
            self.string(pointer.text().as_bytes());
            self.out.push(b':');
            self.value(at);
        }
        self.out.push(b'}');
    }

    fn find_kept(&self, pointer: &Pointer) -> Option<usize> {
        let kept = |at: usize| Some(at).filter(|at| self.is_kept(*at));
        let root = kept(0)?;
        pointer.tokens().iter().try_fold(root, |at, token| kept(self.tree.child(at, token)?))
    }

    fn value(&mut self, at: usize) {
        let Some(node) = self.tree.node(at) else { return };
        match node.kind {
            Kind::Array => self.array(at),
            Kind::Object => self.object(at),
            Kind::Number => number::write(self.tree.verbatim(node), self.out),
            Kind::Escaped => self.string(self.tree.string(node)),
            _ => self.out.extend_from_slice(self.tree.verbatim(node)),
        }
    }

    fn array(&mut self, at: usize) {
        let mut between = Separator::default();
        self.out.push(b'[');
        for child in self.tree.children(at) {
            if self.is_kept(child) {
                between.write(self.out);
                self.value(child);
            }
        }
        self.out.push(b']');
    }

    fn object(&mut self, at: usize) {
        let base = self.members.len();
        self.collect(at, base);
        let mut between = Separator::default();
        self.out.push(b'{');
        for index in base..self.members.len() {
            let Some([member, rest @ ..]) = self.members.get(index..) else { break };
            let at = member.at as usize;
            let replaced = rest.first().is_some_and(|next| member.same_name(next, self.tree));
            let Some([name, value, ..]) = self.tree.nodes.get(at..) else { break };
            if !replaced && !value.excluded {
                between.write(self.out);
                self.member(at, *name, *value);
            }
        }
        self.out.push(b'}');
        self.members.truncate(base);
    }

    /// Puts the members of an object on the stack, in order.
    fn collect(&mut self, at: usize, base: usize) {
        let tree = self.tree;
        let end = tree.after(at);
        let mut name = at + 1;
        let mut last: Option<Member> = None;
        let mut in_order = true;
        while name < end {
            let member = Member::new(tree, name);
            in_order = in_order && last.is_none_or(|last| last.order(&member, tree).is_lt());
            self.members.push(member);
            last = Some(member);
            name = tree.after(name + 1);
        }
        if let (false, Some(members)) = (in_order, self.members.get_mut(base..)) {
            members.sort_unstable_by(|a, b| a.order(b, tree));
        }
    }

    fn member(&mut self, at: usize, name: Node, value: Node) {
        // Nothing but the colon is between them.
        let adjacent = name.end + 1 == value.start;
        if adjacent && name.kind == Kind::Plain && value.kind.is_verbatim() {
            let span = name.start as usize..value.end as usize;
            self.out.extend_from_slice(self.tree.payload.get(span).unwrap_or_default());
            return;
        }
        self.value(at);
        self.out.push(b':');
        self.value(at + 1);
    }

    /// Escapes as little as JSON allows, with the short escapes where there are some.
    fn string(&mut self, mut text: &[u8]) {
        self.out.push(b'"');
        while let Some((plain, rest)) = text.split_at_checked(plain_len(text)) {
            self.out.extend_from_slice(plain);
            let Some((special, rest)) = rest.split_first() else { break };
            match special {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', *special]),
                0x08 => self.out.extend_from_slice(b"\\b"),
                0x0c => self.out.extend_from_slice(b"\\f"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                control => write!(self.out, "\\u{control:04x}").expect("a Vec takes all bytes"),
            }
            text = rest;
        }
        self.out.push(b'"');
    }

    fn is_kept(&self, at: usize) -> bool {
        self.tree.node(at).is_some_and(|node| !node.excluded)
    }
}

impl Member {
    fn new(tree: Tree<'_>, at: usize) -> Self {
        let name = tree.name(at);
        let narrow = |place| u32::try_from(place).expect("the parser counts nodes with 32 bits");
        Self { prefix: prefix(name), name_len: narrow(name.len()), at: narrow(at) }
    }

    /// Members of one name stand in the order of the text.
    fn order(&self, other: &Self, tree: Tree<'_>) -> Ordering {
        self.order_by_name(other, tree).then(self.at.cmp(&other.at))
    }

    fn same_name(&self, other: &Self, tree: Tree<'_>) -> bool {
        self.order_by_name(other, tree).is_eq()
    }

    fn order_by_name(&self, other: &Self, tree: Tree<'_>) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| {
            // In equal prefixes short names differ by zeros at the end at most.
            if self.name_len.max(other.name_len) <= 8 {
                return self.name_len.cmp(&other.name_len);
            }
            tree.name(self.at as usize).cmp(tree.name(other.at as usize))
        })
    }
}

/// The first eight bytes, filled up with zeros, as a number that sorts like them.
fn prefix(name: &[u8]) -> u64 {
    let number = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
    if let Some(first) = name.first_chunk::<8>() {
        return number(first);
    }
    let half = |bytes: &[u8; 4]| u64::from(u32::from_be_bytes(*bytes));
    match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        // The halves overlap, in the same bytes.
        (Some(first), Some(last)) => half(first) << 32 | half(last) << (8 * (8 - name.len())),
        _ => name.iter().zip([56, 48, 40]).fold(0, |sum, (byte, at)| sum | u64::from(*byte) << at),
    }
}

/// A comma before every value but the first.
#[derive(Default)]
struct Separator {
    wanted: bool,
}

impl Separator {
    fn write(&mut self, out: &mut Vec<u8>) {
        if self.wanted {
            out.push(b',');
        }
        self.wanted = true;
    }
}
