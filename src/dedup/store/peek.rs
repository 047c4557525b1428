//! A look at a log that somebody else may own: nothing is written, nothing is locked.

use std::path::Path;

use rocksdb::{DB, Options};

use super::header::{Header, read_table};
use super::keys::{HEADER_KEY, state_key};
use super::{FORMAT, LogError, Owner, Stamp, State};

/// What a data directory holds, apart from its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    pub stamp: Stamp,
    /// A shard that was made and never written has no state.
    pub shards: Vec<(Owner, State)>,
}

/// Looks into a data directory. `None`: there is no log yet.
///
/// # Errors
/// Why it cannot be read. A daemon that starts at the same moment may be the reason.
pub fn peek(dir: &Path) -> Result<Option<Peek>, LogError> {
    let path = dir.join("db");
    // RocksDB writes this file last when it makes a database.
    if !path.join("CURRENT").exists() {
        return Ok(None);
    }
    let failed = |error| LogError::of("look", error);
    let mut options = Options::default();
    options.set_max_open_files(64);
    let db = DB::open_for_read_only(&options, &path, false).map_err(failed)?;
    let Some(bytes) = db.get(HEADER_KEY).map_err(failed)? else { return Ok(None) };
    let header: Header = serde_json::from_slice(&bytes)
        .map_err(|_| LogError::Corrupt { what: "the header".to_owned() })?;
    if header.format != FORMAT {
        return Err(LogError::Format { path: dir.to_owned(), found: header.format });
    }
    let mut shards = Vec::new();
    for (shard, owner) in read_table(&db)?.rows {
        let Some(bytes) = db.get(state_key(shard)).map_err(failed)? else { continue };
        let corrupt = || LogError::Corrupt { what: format!("the state of shard {}", shard.0) };
        shards.push((owner, State::decode(&bytes).ok_or_else(corrupt)?));
    }
    Ok(Some(Peek { stamp: Stamp { cluster_id: header.cluster_id, group: header.group }, shards }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use super::super::tests::{open, owner, stamp, state};
    use super::*;

    fn files(dir: &Path) -> BTreeSet<(String, u64, SystemTime)> {
        let read = std::fs::read_dir(dir).unwrap();
        let file = |item: std::io::Result<std::fs::DirEntry>| {
            let item = item.unwrap();
            let metadata = item.metadata().unwrap();
            (item.file_name().into_string().unwrap(), metadata.len(), metadata.modified().unwrap())
        };
        read.map(file).collect()
    }

    #[test]
    fn a_look_sees_the_stamp_and_the_shards_and_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(peek(home.path()).unwrap(), None);
        assert_eq!(files(home.path()).len(), 0);
        let store = open(home.path()).unwrap();
        store.create_shard(owner("topic"), &state(5, 7)).unwrap();
        let expected = Some(Peek { stamp: stamp(), shards: vec![(owner("topic"), state(5, 7))] });
        assert_eq!(peek(home.path()).unwrap(), expected, "while it is open elsewhere");
        drop(store);

        let before = files(&home.path().join("db"));
        assert_eq!(peek(home.path()).unwrap(), expected);
        assert_eq!(files(&home.path().join("db")), before);
    }

    #[test]
    fn what_is_not_a_log_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("db")).unwrap();
        std::fs::write(home.path().join("db/CURRENT"), "nonsense").unwrap();
        assert!(peek(home.path()).is_err());
    }
}
