//! The keys of the database; [`super`] shows them all.
//!
//! Owns: their bytes. Changing one means a new format number.

use crate::dedup::shard::Shard;
use crate::identity::Identity;

pub(super) const STATE: u8 = 1;
pub(super) const ENTRY: u8 = 2;
pub(super) const HEADER_KEY: [u8; 5] = [0, 0, 0, 0, 3];
pub(super) const TABLE_PREFIX: [u8; 5] = [0, 0, 0, 0, 4];
pub(super) const NEXT_SHARD_KEY: [u8; 5] = [0, 0, 0, 0, 5];
pub(super) const ENTRY_KEY_BYTES: usize = 4 + 1 + 16;

pub(super) fn prefix(shard: Shard, kind: u8) -> [u8; 5] {
    let [a, b, c, d] = shard.0.to_be_bytes();
    [a, b, c, d, kind]
}

pub(super) fn state_key(shard: Shard) -> [u8; 5] {
    prefix(shard, STATE)
}

pub(super) fn entry_key(shard: Shard, identity: &Identity) -> [u8; ENTRY_KEY_BYTES] {
    let mut key = [0; ENTRY_KEY_BYTES];
    key[..5].copy_from_slice(&prefix(shard, ENTRY));
    key[5..].copy_from_slice(&identity.0);
    key
}

/// `None` for the key of something else.
pub(super) fn identity_of(key: &[u8]) -> Option<Identity> {
    let key: &[u8; ENTRY_KEY_BYTES] = key.try_into().ok()?;
    (key[4] == ENTRY).then(|| Identity(*key.last_chunk().expect("16 of 21 bytes")))
}

pub(super) fn table_key(shard: Shard) -> [u8; 9] {
    let mut key = [0; 9];
    key[..5].copy_from_slice(&TABLE_PREFIX);
    key[5..].copy_from_slice(&shard.0.to_be_bytes());
    key
}
