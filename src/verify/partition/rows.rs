//! The records of one input partition in memory: 49 bytes each, and 6 to 12 for finding a key.
//!
//! Owns: the rows, and which row is the last one of a key.

use super::super::finding::Fate;
use super::super::key::Key;

/// Index of a row plus one; 0: none.
pub type Link = u32;

#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    pub key: Key,
    pub offset: i64,
    /// The time that counts, see `partition`.
    pub time: i64,
    pub check: u32,
    /// The last row of this key that was handled, up to this one.
    pub handled: Link,
    /// The row whose time suppresses what follows, up to this one.
    pub entry: Link,
    /// The row of this key before this one.
    pub previous: Link,
}

/// What else is known of a row, in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag(u8);

const FATES: [Fate; 9] = [
    Fate::Handled,
    Fate::Duplicate,
    Fate::Conflict,
    Fate::DeadLetter,
    Fate::Skipped,
    Fate::Lost,
    Fate::SuppressedTooLate,
    Fate::OffPhase,
    Fate::Undecided,
];

impl Tag {
    const IDENTIFIED: u8 = 0x40;
    const UNTIMED: u8 = 0x80;

    pub fn new(identified: bool, untimed: bool) -> Self {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        Self(flag(identified, Self::IDENTIFIED) | flag(untimed, Self::UNTIMED))
    }

    pub fn with(self, fate: Fate) -> Self {
        let at = FATES.iter().position(|known| *known == fate).unwrap_or_default();
        Self(self.0 & (Self::IDENTIFIED | Self::UNTIMED) | u8::try_from(at).unwrap_or_default())
    }

    pub fn fate(self) -> Fate {
        let at = usize::from(self.0 & !(Self::IDENTIFIED | Self::UNTIMED));
        FATES.get(at).copied().unwrap_or_default()
    }

    pub fn identified(self) -> bool {
        self.0 & Self::IDENTIFIED != 0
    }

    /// Its own timestamp does not count: there is none, or it lies in the future.
    pub fn untimed(self) -> bool {
        self.0 & Self::UNTIMED != 0
    }
}

/// More is reserved as it comes.
const RESERVED_MAX: usize = 1 << 26;

#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
    tags: Vec<Tag>,
}

impl Rows {
    /// Reserves addresses, which cost nothing before they are written to.
    pub fn for_about(count: usize) -> Self {
        let count = count.min(RESERVED_MAX);
        Self { rows: Vec::with_capacity(count), tags: Vec::with_capacity(count) }
    }

    /// # Panics
    /// Beyond 4 thousand million rows.
    pub fn push(&mut self, row: Row, tag: Tag) -> Link {
        self.rows.push(row);
        self.tags.push(tag);
        Link::try_from(self.rows.len()).expect("a partition has fewer than 2^32 records")
    }

    /// What the next row is called.
    pub fn next(&self) -> Link {
        Link::try_from(self.rows.len() + 1).expect("a partition has fewer than 2^32 records")
    }

    pub fn get(&self, link: Link) -> Option<(&Row, Tag)> {
        let at = (link as usize).checked_sub(1)?;
        Some((self.rows.get(at)?, *self.tags.get(at)?))
    }

    /// The row of this offset, or of the first one after it, or the last one.
    pub fn around(&self, offset: i64) -> Link {
        let at =
            self.rows.partition_point(|row| row.offset < offset).min(self.rows.len().max(1) - 1);
        Link::try_from(at + 1).unwrap_or_default()
    }

    /// The rows of this offset and later ones.
    pub fn from(&self, offset: i64) -> impl Iterator<Item = (&Row, Tag)> {
        let at = self.rows.partition_point(|row| row.offset < offset);
        self.rows.iter().zip(self.tags.iter().copied()).skip(at)
    }

    /// The row of this offset.
    pub fn find(&self, offset: i64) -> Option<Link> {
        let at = self.rows.binary_search_by_key(&offset, |row| row.offset).ok()?;
        Link::try_from(at + 1).ok()
    }
}

/// The last row of each key: an open table of links, at most 70 % full.
#[derive(Debug)]
pub struct Last {
    slots: Vec<Link>,
    used: usize,
}

impl Default for Last {
    fn default() -> Self {
        Self { slots: vec![0; 1 << 10], used: 0 }
    }
}

impl Last {
    pub fn get(&self, key: &Key, rows: &Rows) -> Link {
        self.slots.get(self.slot(key, rows)).copied().unwrap_or_default()
    }

    /// From now on this row is the last of its key.
    pub fn set(&mut self, key: &Key, link: Link, rows: &Rows) {
        let slot = self.slot(key, rows);
        if let Some(last) = self.slots.get_mut(slot) {
            self.used += usize::from(*last == 0);
            *last = link;
        }
        if self.used * 10 > self.slots.len() * 7 {
            self.grow(rows);
        }
    }

    /// Where the key is, or would be.
    fn slot(&self, key: &Key, rows: &Rows) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = start(key) & mask;
        loop {
            match self.slots.get(slot).and_then(|link| rows.get(*link)) {
                Some((row, _)) if row.key != *key => slot = (slot + 1) & mask,
                _ => return slot,
            }
        }
    }

    fn grow(&mut self, rows: &Rows) {
        let larger = vec![0; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, larger);
        for link in old {
            let Some((row, _)) = rows.get(link) else { continue };
            let slot = self.slot(&row.key, rows);
            if let Some(last) = self.slots.get_mut(slot) {
                *last = link;
            }
        }
    }
}

/// The key is a hash: any of its bytes will do.
fn start(key: &Key) -> usize {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    usize::try_from(u64::from_le_bytes([a, b, c, d, e, f, g, h])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_of_every_key_is_found_while_the_table_grows() {
        let key = |n: u32| *blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk().unwrap();
        let (mut rows, mut last) = (Rows::default(), Last::default());
        for n in 0..20_000 {
            let row = Row { key: key(n % 7_000), offset: i64::from(n), ..Row::default() };
            let expected = if n >= 7_000 { n - 7_000 + 1 } else { 0 };
            assert_eq!(last.get(&row.key, &rows), expected);
            let link = rows.push(row, Tag::default());
            last.set(&row.key, link, &rows);
        }
        assert_eq!(last.get(&key(7_000), &rows), 0);
        assert_eq!((rows.find(19_999), rows.find(20_000)), (Some(20_000), None));
    }

    #[test]
    fn a_tag_keeps_what_it_is_told() {
        for fate in FATES {
            let tag = Tag::new(true, false).with(Fate::Undecided).with(fate);
            assert_eq!((tag.fate(), tag.identified(), tag.untimed()), (fate, true, false));
        }
        assert!(Tag::new(false, true).with(Fate::Lost).untimed());
    }
}
