//! Whose directory it is: the lock, the header, the shard table.
//!
//! Owns: reading them at a start, and refusing what belongs to somebody else.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;

use rocksdb::{DB, WriteOptions};
use serde::{Deserialize, Serialize};

use super::keys::{HEADER_KEY, NEXT_SHARD_KEY, TABLE_PREFIX};
use super::{Config, FORMAT, LogError, Stamp, Table};
use crate::dedup::shard::{Owner, Shard};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) cluster_id: String,
    pub(super) group: String,
    pub(super) directory_id: String,
}

pub(super) fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let directory =
        |source| LogError::Directory { path: dir.to_owned(), action: "write into it", source };
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(directory(error)),
    }
}

pub(super) fn make_empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(folder),
    }
}

pub(super) fn check_header(db: &DB, config: &Config, stamp: &Stamp) -> Result<Header, LogError> {
    let read = db.get(HEADER_KEY).map_err(|error| LogError::of("read", error))?;
    let Some(bytes) = read else { return write_header(db, stamp) };
    let header: Header = serde_json::from_slice(&bytes)
        .map_err(|_| LogError::Corrupt { what: "the header".to_owned() })?;
    let path = || config.dir.clone();
    if header.format != FORMAT {
        return Err(LogError::Format { path: path(), found: header.format });
    }
    for (what, found, wanted) in
        [("group", &header.group, &stamp.group), ("cluster", &header.cluster_id, &stamp.cluster_id)]
    {
        if found != wanted {
            let (found, wanted) = (found.clone(), wanted.clone());
            return Err(LogError::Foreign { path: path(), what, found, wanted });
        }
    }
    Ok(header)
}

fn write_header(db: &DB, stamp: &Stamp) -> Result<Header, LogError> {
    let header = Header {
        format: FORMAT,
        cluster_id: stamp.cluster_id.clone(),
        group: stamp.group.clone(),
        directory_id: format!("{:032x}", fastrand::u128(..)),
    };
    let bytes = serde_json::to_vec(&header).expect("a header of plain fields has a JSON form");
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.put_opt(HEADER_KEY, bytes, &options).map_err(|error| LogError::of("write", error))?;
    Ok(header)
}

pub(super) fn read_table(db: &DB) -> Result<Table, LogError> {
    let failed = |error| LogError::of("read", error);
    let next = match db.get(NEXT_SHARD_KEY).map_err(failed)? {
        None => 1,
        Some(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(u32::from_be_bytes)
            .map_err(|_| LogError::Corrupt { what: "the next shard number".to_owned() })?,
    };
    let mut rows = BTreeMap::new();
    for item in db.iterator(rocksdb::IteratorMode::From(&TABLE_PREFIX, rocksdb::Direction::Forward))
    {
        let (key, value) = item.map_err(failed)?;
        let Some(number) = key.strip_prefix(&TABLE_PREFIX[..]) else { break };
        let row = || LogError::Corrupt { what: "the shard table".to_owned() };
        let number = <[u8; 4]>::try_from(number).map_err(|_| row())?;
        let owner: Owner = serde_json::from_slice(&value).map_err(|_| row())?;
        rows.insert(Shard(u32::from_be_bytes(number)), owner);
    }
    Ok(Table { rows, next })
}

/// Whether files in this folder can have a second name.
pub(super) fn has_links(folder: &Path) -> bool {
    let (one, other) = (folder.join("one"), folder.join("other"));
    let linked = File::create(&one).and_then(|_| std::fs::hard_link(&one, &other)).is_ok();
    // Else the next start removes them.
    let _ = std::fs::remove_file(one);
    let _ = std::fs::remove_file(other);
    linked
}
