//! From the bytes of a payload to nodes.
//!
//! Owns: the grammar of JSON (RFC 8259).
//! Never: recurses, goes back in the text, or panics on any bytes.

#![expect(
    clippy::inline_always,
    reason = "one loop that keeps the place in a register is a fifth faster, for every record"
)]

use super::{DEPTH_MAX, Kind, Node, NotJson, number};

/// Appends the nodes of the payload, and its strings that had escapes.
pub(super) fn parse(
    payload: &[u8],
    nodes: &mut Vec<Node>,
    text: &mut Vec<u8>,
) -> Result<(), NotJson> {
    // Spans and node indexes are 32 bits; there are never more nodes than bytes.
    u32::try_from(payload.len()).map_err(|_| NotJson)?;
    std::str::from_utf8(payload).map_err(|_| NotJson)?;
    Parser { payload, at: 0, nodes, text, open: NONE, depth: 0 }.document()
}

struct Parser<'a> {
    payload: &'a [u8],
    at: usize,
    nodes: &'a mut Vec<Node>,
    text: &'a mut Vec<u8>,
    /// The innermost array or object that has not ended.
    open: u32,
    depth: u32,
}

const NONE: u32 = u32::MAX;

impl<'a> Parser<'a> {
    fn document(mut self) -> Result<(), NotJson> {
        let first = self.token()?;
        self.value(first)?;
        while self.open != NONE {
            self.step()?;
        }
        self.skip_space();
        if self.at == self.payload.len() { Ok(()) } else { Err(NotJson) }
    }

    /// Reads the next child of the innermost array or object, or its end.
    #[inline(always)]
    fn step(&mut self) -> Result<(), NotJson> {
        let open = self.open as usize;
        let object = self.nodes.get(open).is_some_and(|node| node.kind == Kind::Object);
        let first = self.nodes.len() == open + 1;
        let token = match self.token()? {
            b'}' if object => return self.close(),
            b']' if !object => return self.close(),
            b',' if !first => self.token()?,
            token if first => token,
            _ => return Err(NotJson),
        };
        if !object {
            return self.value(token);
        }
        self.name(token)?;
        let token = self.token()?;
        self.value(token)
    }

    fn name(&mut self, token: u8) -> Result<(), NotJson> {
        if token != b'"' {
            return Err(NotJson);
        }
        self.string()?;
        if self.token()? == b':' { Ok(()) } else { Err(NotJson) }
    }

    #[inline(always)]
    fn value(&mut self, token: u8) -> Result<(), NotJson> {
        match token {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b'{' => self.open(Kind::Object),
            b'[' => self.open(Kind::Array),
            b't' => self.literal(b"true", Kind::Boolean),
            b'f' => self.literal(b"false", Kind::Boolean),
            b'n' => self.literal(b"null", Kind::Null),
            _ => Err(NotJson),
        }
    }

    fn open(&mut self, kind: Kind) -> Result<(), NotJson> {
        if self.depth == DEPTH_MAX {
            return Err(NotJson);
        }
        self.depth += 1;
        let index = narrow(self.nodes.len());
        self.nodes.push(Node { kind, excluded: false, start: self.open, end: NONE });
        self.open = index;
        Ok(())
    }

    fn close(&mut self) -> Result<(), NotJson> {
        let end = narrow(self.nodes.len());
        let node = self.nodes.get_mut(self.open as usize).ok_or(NotJson)?;
        node.end = end;
        self.open = node.start;
        self.depth -= 1;
        Ok(())
    }

    fn literal(&mut self, literal: &[u8], kind: Kind) -> Result<(), NotJson> {
        let start = self.at - 1;
        if !self.payload.get(start..).is_some_and(|rest| rest.starts_with(literal)) {
            return Err(NotJson);
        }
        self.at = start + literal.len();
        self.leaf(kind, start, self.at);
        Ok(())
    }

    #[inline(always)]
    fn number(&mut self) -> Result<(), NotJson> {
        let start = self.at - 1;
        let scanned = number::scan(self.payload.get(start..).unwrap_or_default())?;
        self.at = start + scanned.len;
        let kind = if scanned.canonical { Kind::CanonicalNumber } else { Kind::Number };
        self.leaf(kind, start, self.at);
        Ok(())
    }

    #[inline(always)]
    fn string(&mut self) -> Result<(), NotJson> {
        let start = self.at - 1;
        self.at += plain_len(self.rest());
        match self.next()? {
            b'"' => self.leaf(Kind::Plain, start, self.at),
            b'\\' => self.escaped(start + 1)?,
            _ => return Err(NotJson),
        }
        Ok(())
    }

    /// Reads on in a string whose first escape was met.
    #[cold]
    fn escaped(&mut self, start: usize) -> Result<(), NotJson> {
        let text_start = self.text.len();
        self.text.extend_from_slice(self.payload.get(start..self.at - 1).unwrap_or_default());
        loop {
            self.escape()?;
            let (run, _) = self.rest().split_at(plain_len(self.rest()));
            self.text.extend_from_slice(run);
            self.at += run.len();
            match self.next()? {
                b'"' => break,
                b'\\' => {}
                _ => return Err(NotJson),
            }
        }
        self.leaf(Kind::Escaped, text_start, self.text.len());
        Ok(())
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        let byte = match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode(),
            _ => return Err(NotJson),
        };
        self.text.push(byte);
        Ok(())
    }

    fn unicode(&mut self) -> Result<(), NotJson> {
        let mut code = self.hex()?;
        if (0xd800..0xdc00).contains(&code) {
            if (self.next()?, self.next()?) != (b'\\', b'u') {
                return Err(NotJson);
            }
            let low = self.hex()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(NotJson);
            }
            code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        let character = char::from_u32(code).ok_or(NotJson)?;
        self.text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn hex(&mut self) -> Result<u32, NotJson> {
        let digits = self.rest().first_chunk::<4>().ok_or(NotJson)?;
        let code = digits
            .iter()
            .try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?));
        self.at += digits.len();
        code.ok_or(NotJson)
    }

    #[inline(always)]
    fn leaf(&mut self, kind: Kind, start: usize, end: usize) {
        let (start, end) = (narrow(start), narrow(end));
        self.nodes.push(Node { kind, excluded: false, start, end });
    }

    /// The next byte that is not white space.
    fn token(&mut self) -> Result<u8, NotJson> {
        self.skip_space();
        self.next()
    }

    fn next(&mut self) -> Result<u8, NotJson> {
        let byte = *self.payload.get(self.at).ok_or(NotJson)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.payload.get(self.at) {
            self.at += 1;
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.payload.get(self.at..).unwrap_or_default()
    }
}

fn narrow(place: usize) -> u32 {
    u32::try_from(place).expect("the length of the payload was checked")
}

/// How many bytes stand before the first quote, backslash or control character.
#[inline(always)]
pub(super) fn plain_len(text: &[u8]) -> usize {
    let (words, tail) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let in_tail = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    words.len() * 8 + in_tail.unwrap_or(tail.len())
}

/// Sets the top bit of the first byte, from below, that is a quote, a backslash or a control
/// character. What is set above it means nothing: the subtractions borrow.
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let control = word.wrapping_sub(ONES * 0x20);
    let quote = (word ^ (ONES * 0x22)).wrapping_sub(ONES);
    let backslash = (word ^ (ONES * 0x5c)).wrapping_sub(ONES);
    (control | quote | backslash) & !word & (ONES * 0x80)
}
